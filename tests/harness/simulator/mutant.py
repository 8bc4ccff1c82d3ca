"""What a deliberate bug is: methods that are replaced while it is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from .options import Options, draw

Wrap = Callable[[Any], Any]
"""From what there is to what replaces it."""


@dataclass(frozen=True)
class Mutant:
    """A bug, and the kind of runs in which it can show."""

    name: str
    patches: tuple[tuple[Any, str, Wrap], ...]
    options: dict[str, Any]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While it is there."""
        before = []
        try:
            for owner, attribute, wrap in self.patches:
                original = getattr(owner, attribute)
                before.append((owner, attribute, owner.__dict__[attribute]))
                setattr(owner, attribute, wrap(original))
            yield
        finally:
            for owner, attribute, original in reversed(before):
                setattr(owner, attribute, original)

    def options_of(self, seed: int) -> Options:
        """Those of the seed, but for what the mutant needs."""
        return replace(draw(seed), **self.options)


MUTANTS: dict[str, Mutant] = {}


def mutant(name: str, *patches: tuple[Any, str, Wrap], **options: Any) -> None:
    """One more. ``options``: those of the runs, where those of the seed will not do."""
    MUTANTS[name] = Mutant(name, patches, options)
