"""Histories of real processes, which `harness.history` records by threads, as histories of these
checkers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

from .history import LOCK, READ, UNLOCK, Operation

_KINDS = {"lock": LOCK, "unlock": UNLOCK, "inspect": READ}


class LiveOp(Protocol):
    """What `harness.history.Op` has: seconds, and -1 as the result of unknown outcome."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def call_s(self) -> float: ...
    @property
    def return_s(self) -> float: ...
    @property
    def result(self) -> int: ...
    @property
    def who(self) -> str: ...


def from_ops(ops: Iterable[LiveOp], lease_ms: int = 0) -> list[Operation]:
    """The same operations, each with a request id of its own; `lease_ms` is that of every LOCK.

    Instants are kept to the microsecond and rounded outward, so that no order is made up.
    """
    return [_from_op(op, f"op-{number}", lease_ms) for number, op in enumerate(ops, 1)]


def _from_op(op: LiveOp, reqid: str, lease_ms: int) -> Operation:
    kind = _KINDS[op.kind]
    unknown = op.result < 0 or math.isinf(op.return_s)
    return Operation(
        client=op.who,
        kind=kind,
        name=op.name,
        reqid="" if kind == READ else reqid,
        call_us=math.floor(op.call_s * 1_000_000),
        return_us=None if unknown else math.ceil(op.return_s * 1_000_000),
        answer=None if unknown else op.result,
        lease_ms=lease_ms if kind == LOCK else 0,
    )
