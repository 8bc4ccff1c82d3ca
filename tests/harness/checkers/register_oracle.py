"""Linearizability of a versioned register by trying all orders: slow, short, and written apart from
the search that it is there to judge. For one register and a handful of operations."""

from __future__ import annotations

from collections.abc import Sequence

from .registers import (
    CONFLICT,
    DELETE,
    DELETED,
    GET,
    NO_KEY,
    SHOWN,
    STALE,
    WRITTEN,
    Answer,
    RegisterOperation,
)

_World = tuple[bytes, int] | None  # a real register: value and version, or none


def do(world: _World, op: RegisterOperation) -> tuple[_World, Answer]:
    """What a register does, and says. (It has nothing to do with locks.)"""
    if op.kind == DELETE:
        return None, Answer(DELETED if world else NO_KEY)
    if op.kind == GET:
        return world, Answer(SHOWN, world[1], world[0]) if world else Answer(NO_KEY)
    if world is None and op.version:
        return world, Answer(NO_KEY)
    if world is not None and world[1] != op.version:
        return world, Answer(CONFLICT, world[1])
    return (op.value, op.version + 1), Answer(WRITTEN, op.version + 1)


def is_possible(operations: Sequence[RegisterOperation]) -> bool:
    """Whether one register can have given these answers in any order that time allows."""
    must = tuple(
        op._replace(answer=op.answer._replace(maybe=False))
        for op in operations
        if op.answer is not None and op.answer.outcome != STALE
    )
    may = tuple(op for op in operations if op.answer is None or op.answer.maybe)
    return _search(None, 0, must, may)


def _search(
    world: _World,
    now: int,
    must: tuple[RegisterOperation, ...],
    may: tuple[RegisterOperation, ...],
) -> bool:
    if any(op.return_us is not None and op.return_us < now for op in must):
        return False
    if not must:
        return True
    for i, op in enumerate(must):
        after, answer = do(world, op)
        if answer == op.answer:
            if _search(after, max(now, op.call_us), must[:i] + must[i + 1 :], may):
                return True
    for i, op in enumerate(may):
        after, _ = do(world, op)
        if _search(after, max(now, op.call_us), must, may[:i] + may[i + 1 :]):
            return True
    return False
