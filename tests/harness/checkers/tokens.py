"""Fencing tokens: of two grants of a name the later has the larger one; none is used twice (I7).

Whoever saw a token (a read, a positive answer about it) saw it after it was given, so what was seen
counts as well: a grant that was requested after that must have a larger one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from operator import attrgetter
from typing import NamedTuple

from .history import LOCK, READ, RENEW, UNLOCK_TOKEN, VERIFY, Operation


class _Sight(NamedTuple):
    """An answer that showed the token of the holder, or gave it."""

    token: int
    op: Operation
    return_us: int

    @property
    def is_grant(self) -> bool:
        return self.op.kind == LOCK


def check_tokens(operations: Iterable[Operation]) -> list[str]:
    """Problems with the tokens of all names. Takes n log n."""
    sights = [sight for op in operations if (sight := _sight(op)) is not None]
    by_name: dict[str, list[_Sight]] = defaultdict(list)
    for sight in sights:
        by_name[sight.op.name].append(sight)
    problems = _used_twice(sights)
    for _, some in sorted(by_name.items()):
        problems += _gone_back(some)
    return problems


def _sight(op: Operation) -> _Sight | None:
    if not op.answer or op.return_us is None:
        return None
    if op.kind in (LOCK, READ):
        return _Sight(op.answer, op, op.return_us)
    if op.kind in (VERIFY, RENEW, UNLOCK_TOKEN):
        return _Sight(int(op.argument), op, op.return_us)
    return None


def _used_twice(sights: list[_Sight]) -> list[str]:
    problems = []
    first: dict[int, _Sight] = {}
    for sight in sorted(sights, key=lambda sight: not sight.is_grant):
        other = first.setdefault(sight.token, sight)
        if other is not sight and (sight.is_grant or sight.op.name != other.op.name):
            problems.append(
                f"fencing token {sight.token} was used twice (I7): {other.op} and {sight.op}"
            )
    return problems


def _gone_back(sights: list[_Sight]) -> list[str]:
    """For each sight: is the highest token of those that returned before its call lower?"""
    problems = []
    by_return = sorted(sights, key=attrgetter("return_us"))
    highest: _Sight | None = None
    done = 0
    for sight in sorted(sights, key=lambda sight: sight.op.call_us):
        while by_return[done].return_us < sight.op.call_us:
            if highest is None or by_return[done].token > highest.token:
                highest = by_return[done]
            done += 1
        if highest is not None and _is_behind(sight, highest):
            problems.append(
                f"fencing token {sight.token} came after {highest.token} (I7): "
                f"{highest.op}, later {sight.op}"
            )
    return problems


def _is_behind(sight: _Sight, highest: _Sight) -> bool:
    """A grant must be above all that was seen before; what else is seen may be the same again."""
    return sight.token <= highest.token if sight.is_grant else sight.token < highest.token
