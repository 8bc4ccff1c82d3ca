"""Linearizability by trying all orders: slow, short, and written apart from the search that it is
there to judge. For one lock and a handful of operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .history import LOCK, READ, RENEW, UNDO, UNLOCK, Expiry, Operation

ROUNDING_US = 1000


@dataclass(frozen=True)
class _World:
    """A real lock, whose tokens are all known."""

    token: int = 0  # 0: free
    reqid: str = ""
    lease_end_us: int | None = None
    highest: int = 0
    undone: frozenset[str] = frozenset()
    now: int = 0


class Oracle:
    """All orders of these operations, and of the expiries, if those were watched."""

    def __init__(self, operations: Sequence[Operation], expiries: Sequence[Expiry] | None) -> None:
        self._known = {op.answer for op in operations if op.kind == LOCK and op.answer}
        seen = {op.answer or 0 for op in operations if op.kind in (LOCK, READ)}
        seen |= {int(op.argument) for op in operations if isinstance(op.argument, int)}
        seen |= {expiry.token for expiry in expiries or ()}
        self._tokens = range(1, max(seen, default=0) + len(operations) + 2)
        self._expiries = expiries
        self._operations = operations

    def is_possible(self) -> bool:
        must = tuple(op for op in self._operations if op.answer is not None)
        may = tuple(op for op in self._operations if op.answer is None)
        return self._search(_World(), must, may, tuple(self._expiries or ()))

    def _search(
        self,
        world: _World,
        must: tuple[Operation, ...],
        may: tuple[Operation, ...],
        expiries: tuple[Expiry, ...],
    ) -> bool:
        if not must:
            return True
        if any(op.return_us is not None and op.return_us < world.now for op in must):
            return False
        return (
            any(
                self._search(after, must[:i] + must[i + 1 :], may, expiries)
                for i, op in enumerate(must)
                for after, answer in self._do(world, op)
                if answer == op.answer
            )
            or any(
                self._search(after, must, may[:i] + may[i + 1 :], expiries)
                for i, op in enumerate(may)
                for after, _ in self._do(world, op)
            )
            or any(
                self._search(after, must, may, left)
                for after, left in self._expire(world, expiries)
            )
        )

    def _expire(
        self, world: _World, expiries: tuple[Expiry, ...]
    ) -> Iterator[tuple[_World, tuple[Expiry, ...]]]:
        if not world.token or world.lease_end_us is None:
            return
        end = max(world.now, world.lease_end_us)
        if self._expiries is None:
            yield replace(world, token=0, now=end), ()
        for i, expiry in enumerate(expiries):
            if expiry.token == world.token and expiry.at_us >= end:
                left = expiries[:i] + expiries[i + 1 :]
                yield replace(world, token=0, now=expiry.at_us), left

    def _do(self, world: _World, op: Operation) -> Iterator[tuple[_World, int]]:
        """What can come of it, with the answer."""
        world = replace(world, now=max(world.now, op.call_us))
        if op.kind == LOCK:
            yield from self._lock(world, op)
        elif op.kind == READ:
            yield world, world.token
        elif op.kind == UNLOCK:
            yield replace(world, token=0), int(world.token > 0)
        elif op.kind == UNDO:
            fits = bool(world.token) and world.reqid == op.argument
            undone = world.undone | {str(op.argument)}
            yield replace(world, undone=undone, token=0 if fits else world.token), int(fits)
        elif not world.token or world.token != op.argument:
            yield world, 0
        elif op.kind == "unlock_token":
            yield replace(world, token=0), 1
        elif op.kind == RENEW and world.lease_end_us is not None:
            end = max(world.lease_end_us, op.call_us + op.lease_ms * 1000 - ROUNDING_US)
            yield replace(world, lease_end_us=end), 1
        else:
            yield world, 1

    def _lock(self, world: _World, op: Operation) -> Iterator[tuple[_World, int]]:
        if world.token or op.reqid in world.undone:
            yield world, 0
            return
        end = op.call_us + op.lease_ms * 1000 - ROUNDING_US if op.lease_ms else None
        tokens = [t for t in self._tokens if t not in self._known] if op.answer is None else []
        for token in [op.answer] if op.answer else tokens:
            if token > world.highest:
                yield (
                    replace(world, token=token, reqid=op.reqid, lease_end_us=end, highest=token),
                    token,
                )
