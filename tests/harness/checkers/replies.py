"""At-most-once: all answers to one request are equal, whichever node gives them (I4)."""

from __future__ import annotations

from collections.abc import Iterable

from .history import LOCK, UNDO, UNLOCK, UNLOCK_TOKEN, Operation, Reply

COMMAND_OF = {LOCK: "LOCK", UNLOCK: "UNLOCK", UNLOCK_TOKEN: "UNLOCK", UNDO: "UNLOCK"}


def check_replies(replies: Iterable[Reply], operations: Iterable[Operation] = ()) -> list[str]:
    """Problems: a request (command, name and request id) with two different answers, as the nodes
    sent them or as a client got them. Errors are no answers."""
    first: dict[tuple[str, str, str], tuple[int, object]] = {}
    problems = []
    for request, answer, where in [*_sent(replies), *_received(operations)]:
        before, place = first.setdefault(request, (answer, where))
        if before != answer:
            problems.append(
                f"{' '.join(request)} was answered {before} and {answer} (I4): {place}, {where}"
            )
    return problems


def _sent(replies: Iterable[Reply]) -> list[tuple[tuple[str, str, str], int, object]]:
    return [
        ((reply.command.upper(), reply.name, reply.reqid), reply.answer, reply)
        for reply in replies
        if reply.reqid and isinstance(reply.answer, int)
    ]


def _received(operations: Iterable[Operation]) -> list[tuple[tuple[str, str, str], int, object]]:
    return [
        ((COMMAND_OF[op.kind], op.name, op.reqid), op.answer, op)
        for op in operations
        if op.reqid and op.answer is not None and op.kind in COMMAND_OF
    ]
