"""Highest tokens in this process's memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import StaleTokenError
from .turnstile import Turnstile


class _Seen:
    """What is known of one resource."""

    __slots__ = ("highest", "turnstile")

    def __init__(self) -> None:
        self.highest = 0
        self.turnstile = Turnstile()


class MemoryStore:
    """For what lives and dies with this process.

    Resources do not wait for one another. Whoever guards one inside another does so in the same
    order everywhere, as with any locks. Nothing is ever forgotten, since forgetting a token would
    let a stale one in: some hundred bytes for each resource ever seen.
    """

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    @contextmanager
    def transaction(self, resource: str, token: int) -> Iterator[None]:
        """See `Store`."""
        # setdefault is one step: of two threads that come first, both get the same entry.
        seen = self._seen.setdefault(resource, _Seen())
        seen.turnstile.enter(f"resource {resource!r}")
        try:
            if token < seen.highest:
                raise StaleTokenError(resource, token, seen.highest)
            seen.highest = token
            yield
        finally:
            seen.turnstile.leave()

    def highest(self, resource: str) -> int:
        """See `Store`."""
        seen = self._seen.get(resource)
        return seen.highest if seen else 0

    def create_table(self) -> None:
        """See `Store`. There is nothing to make."""
