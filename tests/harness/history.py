"""What clients saw of a lock, and whether one lock can have behaved so.

A history is linearizable if every operation can be given an instant between its call and its
return such that, in that order, each answer is the right one (I1). For a lock this needs no search:

- A refusal changes nothing, so it is placed as early as it fits; moving it forward harms nobody.
- Of several releases that would fit next, the one that returned first goes first: they do the same,
  so in any order that works the two can be swapped.
- Grants come in the order of their fencing tokens (I7), so the next one is always known.
- An operation of unknown outcome may have happened at any time after its call, or never. It is used
  when nothing else fits: one used earlier could be swapped with what fitted instead.

So every step is forced, and a history that gets stuck cannot be explained at all.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

UNKNOWN = -1


class Op(NamedTuple):
    """One operation as its client saw it. `result`: the token of a grant, 0 for a refusal, 1 for a
    release, UNKNOWN; of an inspect the token of the holder, 0 if the lock was free."""

    kind: str  # lock, unlock, inspect
    name: str
    call_s: float
    return_s: float
    result: int
    who: str = ""

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.name} -> {self.result} "
            f"[{self.call_s:.6f} .. {self.return_s:.6f}] by {self.who}"
        )


class Recorder:
    """Collects the operations of many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ops: list[Op] = []

    def run(self, who: str, kind: str, name: str, call: Callable[[], int]) -> int:
        """Do `call` and record it; an exception leaves its outcome unknown, and is raised."""
        call_s = time.monotonic()
        try:
            result = int(call())
        except BaseException:
            self._add(Op(kind, name, call_s, math.inf, UNKNOWN, who))
            raise
        self._add(Op(kind, name, call_s, time.monotonic(), result, who))
        return result

    def _add(self, op: Op) -> None:
        with self._lock:
            self._ops.append(op)

    def has_called_after(self, instant_s: float) -> bool:
        """Whether an operation that was called later has returned."""
        with self._lock:
            return any(op.call_s > instant_s for op in self._ops[-50:])

    def has_succeeded(self) -> bool:
        """Whether any operation has returned something true; one of unknown outcome has not."""
        with self._lock:
            return any(op.result > 0 for op in self._ops)

    @property
    def ops(self) -> list[Op]:
        """All of them, by the instants of their calls."""
        with self._lock:
            return sorted(self._ops, key=lambda op: op.call_s)


def explain(ops: Iterable[Op]) -> str:
    """Empty if each lock can have behaved as these operations say, else what cannot be. The locks
    were free before the first operation."""
    ops = list(ops)
    by_name: dict[str, list[Op]] = defaultdict(list)
    for op in ops:
        by_name[op.name].append(op)
    problems = [explain_one(some) for some in by_name.values()]
    tokens = sorted(op.result for op in ops if op.kind == "lock" and op.result > 0)
    problems += [
        f"fencing token {token} was given twice"
        for token, after in itertools.pairwise(tokens)
        if token == after
    ]
    return "\n".join(filter(None, problems))


def explain_one(ops: list[Op]) -> str:
    """The same for the operations on one lock."""
    unknown = [op for op in ops if op.result == UNKNOWN and op.kind != "inspect"]
    waiting = sorted(
        (op for op in ops if op.result != UNKNOWN), key=lambda op: op.call_s, reverse=True
    )
    grants = sorted((op for op in waiting if _is_grant(op)), key=lambda op: op.result, reverse=True)
    open_ops: list[Op] = []
    placed: list[Op] = []
    holder = 0  # fencing token; UNKNOWN: that of a grant of unknown outcome
    while open_ops or waiting:
        bound_s = min((op.return_s for op in open_ops), default=math.inf)
        while waiting and waiting[-1].call_s <= bound_s:
            open_ops.append(waiting.pop())
            bound_s = min(bound_s, open_ops[-1].return_s)
        fitting = [op for op in open_ops if op.call_s <= bound_s]
        op = _next(fitting, grants, holder) or _unknown(unknown, bound_s, holder)
        if op is None:
            return _stuck(holder, fitting, placed)
        if op.result == UNKNOWN:
            unknown.remove(op)
            holder = UNKNOWN if op.kind == "lock" else 0
        else:
            open_ops.remove(op)
            if op.kind == "unlock" and op.result:
                holder = 0
            elif _is_grant(op):
                holder = grants.pop().result
        placed.append(op)
    return ""


def _is_grant(op: Op) -> bool:
    return op.kind == "lock" and op.result > 0


def _next(fitting: list[Op], grants: list[Op], holder: int) -> Op | None:
    """What is to be placed next, of the operations that can be."""
    for op in fitting:
        if op.kind == "inspect" and (op.result == holder or (holder == UNKNOWN and op.result)):
            return op
        if op.kind != "inspect" and not op.result and bool(holder) == (op.kind == "lock"):
            return op
    if not holder:
        return grants[-1] if grants and grants[-1] in fitting else None
    releases = [op for op in fitting if op.kind == "unlock" and op.result]
    return min(releases, key=lambda op: op.return_s, default=None)


def _unknown(unknown: list[Op], bound_s: float, holder: int) -> Op | None:
    kind = "unlock" if holder else "lock"
    for op in unknown:
        if op.kind == kind and op.call_s <= bound_s:
            return op
    return None


def _stuck(holder: int, fitting: list[Op], placed: list[Op]) -> str:
    state = f"held with token {holder}" if holder else "free"
    before = "\n".join(f"    {op}" for op in placed[-6:])
    stuck = "\n".join(f"    {op}" for op in fitting)
    return f"the lock is {state} after\n{before}\n  and none of these can be next:\n{stuck}"
