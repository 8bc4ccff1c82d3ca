"""Walking a table page by page, as SCAN walks keys.

Locks and registers stand in their tables in the order in which they came to be: by an offset, the
first of what is stored with a name (lock table, L2; register table, V5). A walk goes through them
*backwards*, the newest first. So a cursor is one offset, that of the next: every name that is there
from the walk's beginning to its end is found exactly once, the walk ends however many come
meanwhile, since they come behind its back, and a cursor needs no memory on this side: it means the
same on the other node, after a failover.

A dict cannot be entered in its middle. So the pages after the first come from a copy of the table's
lists (twenty milliseconds for a million locks), which all walks over the table share and which is
kept for the next page. One that is older than a walk lacks what came before the walk began; then
it is made anew.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import islice
from operator import itemgetter

from .lock_table import Grant
from .register_table import Register

Table = dict[bytes, Grant] | dict[bytes, Register]
"""Names in the order of the offset that comes first in what is stored with them."""

_offset = itemgetter(0)


class Walk:
    """All walks over one table share one copy."""

    __slots__ = ("_names", "_newest", "_offsets", "_table")

    def __init__(self) -> None:
        self._names: list[bytes] = []
        self._offsets: list[int] = []
        self._table: Table | None = None  # whose lists they are: a node may join anew
        self._newest = 0  # what came later is not in them

    def page(self, table: Table, cursor: int, count: int) -> tuple[int, list[bytes]]:
        """The next cursor (0: that was all), and up to ``count`` names that are in the table."""
        if not cursor:
            names = list(islice(reversed(table), count + 1))
            if len(names) <= count:
                return 0, names
            return table[names[-1]][0], names[:-1]
        if self._table is not table or self._newest < min(cursor, _newest(table)):
            self._copy(table)
        end = bisect_right(self._offsets, cursor)
        begin = max(end - count, 0)
        names = [
            self._names[at]
            for at in range(end - 1, begin - 1, -1)
            if self._is_there(table, self._names[at], self._offsets[at])
        ]
        return (self._offsets[begin - 1] if begin else 0), names

    @staticmethod
    def _is_there(table: Table, name: bytes, offset: int) -> bool:
        stored = table.get(name)
        return stored is not None and stored[0] == offset

    def _copy(self, table: Table) -> None:
        self._names, self._table = list(table), table
        self._offsets = list(map(_offset, table.values()))
        self._newest = _newest(table)

    def forget(self) -> None:
        """Give back the copy's memory."""
        self._names, self._offsets, self._table, self._newest = [], [], None, 0


def _newest(table: Table) -> int:
    return table[next(reversed(table))][0] if table else 0
