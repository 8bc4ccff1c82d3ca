"""Walking a table page by page, as SCAN walks keys.

Locks and registers stand in their tables in the order in which they came to be: by an offset, the
first of what is stored with a name (lock table, L2; register table, V5). A walk goes through them
*backwards*, the newest first. So a cursor is one offset, that of the next: every name that is there
from the walk's beginning to its end is found exactly once, the walk ends however many come
meanwhile, since they come behind its back, and a cursor needs no memory on this side: it means the
same on the other node, after a failover.

A dict can be entered at its end, and not in its middle. So the pages after the first come from a
copy of the table's lists (50 ms for a million names), which all walks over the table share and
which is kept for the next page. What is newer than the copy is looked up at the table's end, as
long as that is little; else the copy is made anew.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice
from operator import itemgetter

from .lock_table import Grant
from .register_table import Register

Table = dict[bytes, Grant] | dict[bytes, Register]
"""Names in the order of the offset that comes first in what is stored with them."""

_offset = itemgetter(0)
_NEWER_MAX = 2_000  # names looked up at the table's end rather than copying all of it


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
        found = list(islice(self.names_from(table, cursor), count + 1))
        next_cursor = found[-1][0] if len(found) > count else 0
        return next_cursor, [name for _, name in found[:count] if name]

    def names_from(self, table: Table, cursor: int) -> Iterator[tuple[int, bytes]]:
        """Offsets and names from a cursor on, while the table does not change. The name is empty
        where one was that is gone."""
        if not cursor:
            for name in reversed(table):
                yield table[name][0], name
            return
        if self._table is not table:
            self._copy(table)
        elif self._newest < cursor:
            newer = list(islice(self._newer(table), _NEWER_MAX + 1))
            if len(newer) > _NEWER_MAX:
                self._copy(table)
            else:
                yield from (each for each in newer if each[0] <= cursor)
        for at in range(bisect_right(self._offsets, cursor) - 1, -1, -1):
            stored = table.get(self._names[at])
            is_there = stored is not None and stored[0] == self._offsets[at]
            yield self._offsets[at], self._names[at] if is_there else b""

    def _newer(self, table: Table) -> Iterator[tuple[int, bytes]]:
        """What the copy lacks, newest first."""
        for name in reversed(table):
            offset = table[name][0]
            if offset <= self._newest:
                return
            yield offset, name

    def _copy(self, table: Table) -> None:
        self._names, self._table = list(table), table
        self._offsets = list(map(_offset, table.values()))
        self._newest = self._offsets[-1] if self._offsets else 0

    def forget(self) -> None:
        """Give back the copy's memory."""
        self._names, self._offsets, self._table, self._newest = [], [], None, 0
