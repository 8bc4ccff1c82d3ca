"""Fairness: waiters are granted in the order in which they joined (I9).

The line is one node's, in one epoch: a promotion begins it anew. A waiter whose connection is gone
has Left; when its repeat finds its place kept, it has Joined again. It may then be granted as if it
had stood there all the time, but until then it has not been overtaken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from .history import Granted, Joined, Left


class _Line:
    """Who stands in one line. Places are numbers, in the order of the records."""

    def __init__(self) -> None:
        self._records = 0
        self._first: dict[str, int] = {}  # joined for the first time
        self._there: dict[str, Joined] = {}  # and is there now
        self._since: dict[str, int] = {}  # without a break

    def take(self, record: Joined | Left | Granted) -> list[str]:
        """The problems that this next record shows."""
        self._records += 1
        if isinstance(record, Joined):
            self._first.setdefault(record.reqid, self._records)
            self._since.setdefault(record.reqid, self._records)
            self._there.setdefault(record.reqid, record)
            return []
        self._there.pop(record.reqid, None)
        self._since.pop(record.reqid, None)
        if isinstance(record, Left):
            return []
        place = self._first.pop(record.reqid, self._records)
        return [
            f"a waiter was overtaken (I9): {waiter}, but {record}"
            for waiter in self._there.values()
            if self._since[waiter.reqid] < place
        ]


def check_fairness(line: Iterable[Joined | Left | Granted]) -> list[str]:
    """Problems: a grant past somebody who had joined before, and was there all the time."""
    lines: dict[tuple[str, int, str], _Line] = defaultdict(_Line)
    problems = []
    for record in line:
        problems += lines[record.node, record.epoch, record.name].take(record)
    return problems
