"""One at a time, and never oneself again."""

from __future__ import annotations

import os
import threading

from .errors import GuardUseError

# Counts the forks between the first process and this one.
_generation = 0


def _after_fork() -> None:
    global _generation
    _generation += 1


os.register_at_fork(after_in_child=_after_fork)


class _Turn:
    """Who is inside, as one process sees it."""

    __slots__ = ("inside", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside: int | None = None


class Turnstile:
    """A lock that tells a thread which comes back while it is inside, instead of standing still.

    A forked child finds nobody inside: whoever was has stayed with the parent, and would never
    leave.
    """

    __slots__ = ("__weakref__", "_turns")

    def __init__(self) -> None:
        self._turns: dict[int, _Turn] = {}

    def enter(self, what: str) -> None:
        """Wait for one's turn. Raises GuardUseError, naming `what`, if one is inside already."""
        turn = self._turn()
        # Only this thread writes its own ident there, so the look needs no lock.
        if turn.inside == threading.get_ident():
            raise GuardUseError(
                f"{what} is being guarded by this very thread: end that `with` block first"
            )
        turn.lock.acquire()
        turn.inside = threading.get_ident()

    def leave(self) -> None:
        """Let the next one in."""
        turn = self._turn()
        if turn.inside == threading.get_ident():  # and did not enter before a fork
            turn.inside = None
            turn.lock.release()

    @property
    def was_forked_occupied(self) -> bool:
        """Whether somebody was inside in the parent, or its parent, at the fork."""
        here = self._turn()
        return any(turn is not here and turn.inside is not None for turn in self._turns.values())

    def _turn(self) -> _Turn:
        # setdefault is one step: of two threads that come first, both get the same.
        return self._turns.setdefault(_generation, _Turn())
