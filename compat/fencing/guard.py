"""FencingGuard: the one door to what is guarded. The rule stands in the package's docstring."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Generic, Protocol, TypeVar, cast, overload

from ..arguments import fencing_token
from .memory import MemoryStore

# What a signed 64-bit column holds; a lock server's tokens stay below 2^53 for centuries.
TOKEN_MAX = 2**63 - 1

# As UTF-8 at most 2,048 bytes: an index entry of PostgreSQL holds 2,700.
RESOURCE_CHARACTERS_MAX = 512

Handle = TypeVar("Handle")
HandleOut = TypeVar("HandleOut", covariant=True)


class Store(Protocol[HandleOut]):
    """Where the highest tokens are kept. Names and tokens come checked."""

    def transaction(self, resource: str, token: int) -> AbstractContextManager[HandleOut]:
        """Check and remember `token`, and keep every other one out while the body runs.

        Raises StaleTokenError instead of running the body.
        """

    def highest(self, resource: str) -> int:
        """The highest token seen, 0 if there was none."""

    def create_table(self) -> None:
        """Make what has to be made, if it is not there."""


class FencingGuard(Generic[Handle]):
    """Lets the holder of the highest fencing token through, and refuses those before it.

    Safe to share between threads. Stores: MemoryStore() (the default: forgets when the process
    ends, so only for what is forgotten with it), SQLiteStore(path), DatabaseStore(connection).

    Every method raises TypeError or ValueError for a resource that is not a str of 1 to 512
    characters (without NUL and lone surrogates, which databases do not store), and for a token that
    is not an int from 1 to 2^63-1; and what the database's driver raises, as it is: nothing was
    written then, except if it was the commit that failed, which leaves that unknown.
    """

    @overload
    def __init__(self: FencingGuard[None]) -> None: ...

    @overload
    def __init__(self, store: Store[Handle]) -> None: ...

    def __init__(self, store: Store[Handle] | None = None) -> None:
        self._store = store if store is not None else cast("Store[Handle]", MemoryStore())

    def guarding(self, resource: str, token: int) -> AbstractContextManager[Handle]:
        """Guard the body of a `with`, be it a read, a write, or both.

            with guard.guarding("invoice-7", token) as cursor:
                cursor.execute("UPDATE invoices SET total = 110 WHERE id = 7")

        With a database the body gets a cursor, and is one transaction with the check: what it does
        through this cursor is committed at its end, and rolled back if it raises, token and all.
        Do not commit in it. With the memory store there is nothing to get and nothing to roll back.

        Raises StaleTokenError, before the body, and GuardUseError.
        """
        return self._store.transaction(*_checked(resource, token))

    def check(self, resource: str, token: int) -> None:
        """Announce `token`: from now on all lower ones are refused. Guards nothing else.

        Returns when no write of a lower token is under way any more, so what is read next stays
        until this holder changes it. For a write use `guarding`: between this check and a write
        that follows it, a higher token may come. Raises StaleTokenError, GuardUseError.
        """
        with self.guarding(resource, token):
            pass

    def highest(self, resource: str) -> int:
        """The highest token that the resource has seen, 0 if there was none."""
        return self._store.highest(_checked_resource(resource))

    def create_table(self) -> None:
        """Create the store's table if it is not there, as the first use does: for programs that may
        create tables, before those that may not. Two may do it at once.
        """
        self._store.create_table()


def _checked(resource: object, token: int) -> tuple[str, int]:
    checked = fencing_token(token)
    if checked > TOKEN_MAX:
        raise ValueError(f"a fencing token is at most 2^63-1, not {checked}")
    return _checked_resource(resource), checked


def _checked_resource(resource: object) -> str:
    if not isinstance(resource, str):
        raise TypeError(f"a resource is named by a str, not {resource!r}")
    if not 0 < len(resource) <= RESOURCE_CHARACTERS_MAX:
        raise ValueError(
            f"the name of a resource has 1 to {RESOURCE_CHARACTERS_MAX} characters,"
            f" not {len(resource)}"
        )
    if "\0" in resource or any("\ud800" <= each <= "\udfff" for each in resource):
        raise ValueError(f"the name of a resource has no NUL and no lone surrogate: {resource!r}")
    return resource
