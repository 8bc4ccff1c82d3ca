"""Walking the held locks page by page, as SCAN walks keys.

Grants stand in the table in the order of their tokens (lock table, L2). So a cursor is two of them:
the one with which the page begins, and the newest that was there when the walk began, where it
ends. Every lock that is held from the walk's beginning to its end is found exactly once, the walk
ends however many are granted meanwhile, and a cursor needs no memory on this side: it means the
same on the other node, after a failover.

A dict cannot be entered in its middle. So the pages after the first come from a copy of the table's
lists (twenty milliseconds for a million locks), which all walks share and which is kept for the
next page. One that is older than a walk lacks only what was granted before the walk began, at its
end; then it is made anew.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import islice
from operator import itemgetter

from .lock_table import Grant, LockTable

_token = itemgetter(0)
_SHIFT = 1 << 64  # a cursor is one decimal number to whoever passes it on


class Walk:
    """All walks over one table share one copy."""

    __slots__ = ("_grants", "_locks", "_names", "_newest")

    def __init__(self) -> None:
        self._names: list[bytes] = []
        self._grants: list[Grant] = []
        self._locks: LockTable | None = None  # whose lists they are: a node may join anew
        self._newest = 0  # what was granted up to here is in them, if it is held

    def page(self, locks: LockTable, cursor: int, count: int) -> tuple[int, list[bytes]]:
        """The next cursor (0: that was all), and up to ``count`` names that are held."""
        held = locks.held
        if not cursor:
            names = list(islice(held, count + 1))
            if len(names) <= count:
                return 0, names
            return _cursor(held[names[-1]][0], _newest(held)), names[:-1]
        first, last = divmod(cursor, _SHIFT)
        if self._locks is not locks:
            self._copy(locks, last)
        at = bisect_left(self._grants, first, key=_token)
        if at + count > len(self._grants) and self._newest < last:
            self._copy(locks, last)
            at = bisect_left(self._grants, first, key=_token)
        end = min(at + count, bisect_left(self._grants, last + 1, key=_token))
        names = [
            name
            for name, (token, *_) in zip(self._names[at:end], self._grants[at:end], strict=True)
            if locks.is_current(name, token)
        ]
        if end < len(self._grants) and self._grants[end][0] <= last:
            return _cursor(self._grants[end][0], last), names
        return 0, names

    def _copy(self, locks: LockTable, last: int) -> None:
        held = locks.held
        self._names, self._grants, self._locks = list(held), list(held.values()), locks
        self._newest = max(_newest(held), last)

    def forget(self) -> None:
        """Give back the copy's memory."""
        self._names, self._grants, self._locks, self._newest = [], [], None, 0


def _cursor(first: int, last: int) -> int:
    return first * _SHIFT + last


def _newest(held: dict[bytes, Grant]) -> int:
    return next(reversed(held.values()))[0] if held else 0
