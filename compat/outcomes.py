"""What a caller is told: the value of a request that was answered, else its error; of a grant its
fencing token.
"""

from __future__ import annotations

from typing import Any

from .attempts import Aftermath, Finish, Kind, PutRequest, Refusal, Request, Verdict, aftermath
from .endpoints import now_us
from .errors import (
    ClerkError,
    IndeterminateError,
    MaybeError,
    NoKeyError,
    RegisterError,
    StaleTokenError,
    UnavailableError,
    VersionError,
)
from .leases import Grant


class FencingToken(int):
    """The number of a grant, 0 for none; an int in every respect. It knows until when the grant may
    be trusted: counted from an instant that the caller does not see.
    """

    grant: Grant | None

    def __new__(cls, grant: Grant | None) -> FencingToken:
        self = super().__new__(cls, 0 if grant is None else grant.token)
        self.grant = grant
        return self

    def left_ms(self) -> int | None:
        """For how long the grant may still be trusted, 0 if not at all; None: until it is released.
        What is renewed later counts from the sending of that renewal, and changes nothing here.
        """
        if self.grant is None:
            return 0
        until_us = self.grant.trusted_until_us
        return None if until_us is None else max(0, until_us - now_us()) // 1_000

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        # Another machine has another clock.
        return int, (int(self),)


REFUSED = FencingToken(None)


def value_of(request: Request, finish: Finish) -> Any:
    """The reply; raises the error if there is none, or if it is a refusal that is one."""
    if finish.verdict is not Verdict.ANSWERED:
        raise error_of(request, finish)
    if isinstance(finish.value, Refusal):
        raise refused(request, finish.value)
    return finish.value


def refused(request: Request, refusal: Refusal) -> RegisterError:
    """What the caller of `get` or `put` is told of it."""
    if refusal.code == "NOKEY":
        return NoKeyError(request.name)
    assert isinstance(request, PutRequest)
    if refusal.code == "VERSION":
        return VersionError(request.name, request.version, refusal.current_version)
    lock_name, token = request.fence or (b"", 0)
    return StaleTokenError(request.name, lock_name, token)


def error_of(request: Request, finish: Finish) -> Exception:
    """What the caller of a request that was not answered is to be told."""
    assert finish.verdict is not Verdict.ANSWERED
    if finish.verdict is Verdict.REJECTED:
        assert finish.error is not None
        return finish.error
    told = (request.command, request.name, request.request_id, finish.tries, _reason(finish))
    if isinstance(finish.value, Refusal):
        maybe = MaybeError(*told, _assume(request, finish))
        maybe.__cause__ = refused(request, finish.value)
        return maybe
    error: ClerkError = (
        UnavailableError(*told)
        if finish.verdict is Verdict.UNAVAILABLE
        else IndeterminateError(*told, _assume(request, finish))
    )
    error.__cause__ = finish.error
    return error


def fields_of(reply: list[Any] | dict[Any, Any]) -> dict[str, Any]:
    """A map, which RESP2 flattens. Names of fields and states are text; names of locks and owners
    are bytes.
    """
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    fields = {key.decode(): value for key, value in pairs}
    if isinstance(state := fields.get("state"), bytes):
        fields["state"] = state.decode()
    return fields


def page_of(reply: list[Any]) -> tuple[bytes, list[dict[str, Any]]]:
    """What LOCKS answers: the next cursor, `b"0"` at the end, and some locks."""
    cursor, locks = reply
    return cursor, [fields_of(lock) for lock in locks]


def _reason(finish: Finish) -> str:
    if finish.gone:
        return f"the server no longer knows its outcome ({finish.error})"
    if isinstance(finish.value, Refusal):
        return f"{finish.lost}, and to the next copy: {finish.value.code}"
    if finish.lost is None or finish.lost is finish.error or finish.error is None:
        return str(finish.lost or finish.error)
    return f"{finish.lost}, and at the last try: {finish.error}"


def _assume(request: Request, finish: Finish) -> str:
    """What the caller is to do, and what Clerk will."""
    if request.kind is Kind.RELEASE:
        return "stop using what the lock protects, treat it as released"
    if request.kind is Kind.RENEW:
        return "count on the lease that was acknowledged before, or renew once more"
    if request.kind is Kind.PUT:
        return _assume_put(finish)
    if aftermath(request.kind, finish) is Aftermath.UNDO:
        undone = "if the lock was granted, Clerk gives it back in the background"
    else:
        undone = "if the lock was granted, it is held until somebody unlocks it"
    return f"do not enter the critical section; {undone}"


def _assume_put(finish: Finish) -> str:
    if isinstance(finish.value, Refusal):
        return "read the register again: unless it is deleted, no late copy writes any more"
    return "read the register again: while its version is the same, a late copy may still write"
