"""From a call that has ended to what the checkers are given of it.

How often a put without a request id was sent matters: each copy may be done by itself, should the
register have begun again meanwhile. With an id all copies are one put.
"""

from __future__ import annotations

from harness.checkers.history import Operation
from harness.checkers.registers import (
    CONFLICT,
    DELETE,
    DELETED,
    GET,
    NO_KEY,
    PUT,
    SHOWN,
    STALE,
    WRITTEN,
    Answer,
    RegisterOperation,
)
from holdfast.compat.attempts import Call, Finish, Kind, PutRequest, Refusal, Request, Verdict

GUARDED = "g-"
"""So begin the names of registers that only holders of a lock write; the lock's name follows."""

_REGISTER_COMMANDS = frozenset((b"VGET", b"VPUT", b"DEL", b"PEXPIRE"))
_OUTCOMES = {"VERSION": CONFLICT, "NOKEY": NO_KEY, "STALETOKEN": STALE}


def delete_request(key: bytes) -> Request:
    """DEL. Clerk has no such call: as far as answers and doubts go it is like a RENEW."""
    return Request(Kind.RENEW, key, b"", (b"DEL", key))


def end_request(key: bytes, length_ms: int) -> Request:
    """PEXPIRE, likewise."""
    return Request(Kind.RENEW, key, b"", (b"PEXPIRE", key, b"%d" % length_ms))


def is_of_register(request: Request) -> bool:
    """Whether it is about a versioned register."""
    return request.words[0] in _REGISTER_COMMANDS


def lock_operation(
    client: str, request: Request, call_us: int, return_us: int | None, answer: int | None
) -> Operation:
    """What was asked of a lock, as its caller saw it."""
    words = request.words
    argument: int | str = 0
    lease_ms = 0
    match request.kind:
        case Kind.ACQUIRE:
            kind = "lock"
            lease_ms = int(words[words.index(b"PX") + 1]) if b"PX" in words else 0
        case Kind.RELEASE:
            kind = "unlock_token" if b"TOKEN" in words else "unlock"
            argument = int(words[4]) if b"TOKEN" in words else 0
        case Kind.UNDO:
            kind, argument = "undo", words[4].decode()
        case Kind.RENEW:
            kind, argument, lease_ms = "renew", int(words[2]), int(words[4])
        case Kind.VERIFY:
            kind, argument = "verify", int(words[2])
        case _:
            kind = "read"
    return Operation(
        client,
        kind,
        request.name.decode(),
        request.request_id.decode(),
        call_us,
        return_us,
        answer,
        argument,
        lease_ms,
    )


def register_operations(
    client: str, call: Call, finish: Finish | None, call_us: int, now_us: int
) -> list[RegisterOperation]:
    """What was asked of a register, as its caller saw it; and what its copies may have done. No
    ``finish``: the caller died. One that was certainly not done is none of these."""
    request = call.request
    answer = _answer_to(request, finish)
    if request.words[0] == b"PEXPIRE" or (request.kind is Kind.GET and answer is None):
        return []
    unknown = _of_unknown_outcome(client, request, call_us)
    doubts = _doubts(call, answer)
    answered = unknown._replace(return_us=now_us, answer=answer)
    return [answered] * (answer is not None) + [unknown] * doubts


def _doubts(call: Call, answer: Answer | None) -> int:
    """How many copies may be done or not, besides what the answer says."""
    request = call.request
    copies = 1 if request.request_id or request.kind is Kind.GET else call.sendings
    if answer is None:
        return copies
    if answer.maybe:
        return copies - 2  # (One more is in the answer.)
    if request.kind is Kind.PUT and answer.outcome != WRITTEN:
        return 0  # so says Clerk: it knows of each that it was not done
    return copies - 1


def late_copy(
    client: str, request: Request, finish: Finish, now_us: int
) -> list[RegisterOperation]:
    """What a copy may do that arrives long after the answer: of a put without a request id all that
    the put might have, unless its grant has ended. With an id nothing that is not known of."""
    if request.kind is not Kind.PUT or request.request_id:
        return []
    answer = _answer_to(request, finish)
    if answer is not None and answer.outcome == STALE:
        return []
    return [_of_unknown_outcome(client, request, now_us)]


def outcome_of(operation: RegisterOperation) -> str:
    """What its caller was told, to be counted."""
    answer = operation.answer
    if answer is None:
        return f"{operation.kind}: indeterminate"
    guarded = answer.outcome == WRITTEN and operation.key.startswith(GUARDED)
    fenced = " by a holder" if guarded else ""
    return f"{operation.kind}: {answer.outcome}{fenced}" + " maybe" * answer.maybe


def _of_unknown_outcome(client: str, request: Request, call_us: int) -> RegisterOperation:
    kind = {Kind.GET: GET, Kind.PUT: PUT}.get(request.kind, DELETE)
    operation = RegisterOperation(client, kind, request.name.decode(), call_us, None, None)
    if not isinstance(request, PutRequest):
        return operation
    fence = None if request.fence is None else (request.fence[0].decode(), request.fence[1])
    return operation._replace(version=request.version, value=request.words[2], fence=fence)


def _answer_to(request: Request, finish: Finish | None) -> Answer | None:
    if finish is None or finish.value is None:
        return None
    value, maybe = finish.value, finish.verdict is Verdict.INDETERMINATE
    if isinstance(value, Refusal):
        return Answer(_OUTCOMES[value.code], value.current_version, maybe=maybe)
    if request.kind is Kind.GET:
        return Answer(SHOWN, value[1], value[0])
    if request.kind is Kind.PUT:
        return Answer(WRITTEN, value)
    return Answer(DELETED if value else NO_KEY)
