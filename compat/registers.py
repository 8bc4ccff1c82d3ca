"""Versioned registers, as Clerk has them: no socket, clock, thread or dice in here either.

A register has a value and a version, which counts what was written: 1 was the first. A put names
the version that it was decided upon, and is refused if that is not the current one (0: if there is
a register). So of several that were decided upon the same version one is done, and none writes over
what its caller has not seen.

    a   get ──▶ "x", 6                  put "y" (6) ──▶ 7
    b        get ──▶ "x", 6                               put "z" (6) ──▶ refused, it has 7

Versions rise as long as the register is there. One that was deleted, or has expired, begins again
with 1, and then what was decided upon the old one may fit by accident.

What a put comes to that is sent several times is decided in `attempts`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from .arguments import fencing_token, lock_name, register_key, register_value, register_version
from .attempts import ATTEMPT_MIN_US, Client, Kind, PutRequest, Request
from .errors import LockNotHeldError, NoKeyError

# The first wait after somebody else was faster, doubled each time up to the last: a few round
# trips, then what 100 that write to one register need to get out of each other's way.
CONFLICT_FIRST_US = 1_000
CONFLICT_MAX_US = 100_000


class Versioned(NamedTuple):
    """What a register holds, or held a moment ago."""

    value: bytes
    version: int


class Holding(Protocol):
    """What a lock object shows of its grant; None: it holds none."""

    name: str | bytes

    @property
    def fencing_token(self) -> int | None:
        """The number of the grant."""


# A lock's name and the fencing token of a grant of it, or a lock object that holds one.
Fence = tuple[str | bytes, int] | Holding


def get_request(key: bytes) -> Request:
    return Request(Kind.GET, key, b"", (b"VGET", key))


class Put(NamedTuple):
    """What a caller of `put` wants, checked."""

    key: bytes
    value: bytes
    version: int
    fence: tuple[bytes, int] | None

    def request(self, client: Client | None = None) -> PutRequest:
        """Under a number of that client's; without one, under no request id."""
        request_id = b"" if client is None else client.next_request_id()
        words = [b"VPUT", self.key, self.value, b"%d" % self.version]
        if client is not None:
            words.append(request_id)
        if self.fence is not None:
            name, token = self.fence
            words += [b"FENCE", name, b"%d" % token]
        return PutRequest(Kind.PUT, self.key, request_id, tuple(words), self.version, self.fence)


def put_of(key: str | bytes, value: str | bytes, version: int, fence: Fence | None) -> Put:
    """Raises TypeError, ValueError, or LockNotHeldError."""
    return Put(register_key(key), register_value(value), register_version(version), fence_of(fence))


def fence_of(fence: Fence | None) -> tuple[bytes, int] | None:
    """Raises TypeError, ValueError, or LockNotHeldError."""
    if fence is None:
        return None
    if isinstance(fence, tuple):
        name, token = fence
        return lock_name(name), fencing_token(token)
    if not hasattr(fence, "fencing_token") or not hasattr(fence, "name"):
        raise TypeError(
            f"fence must be a lock's name and a fencing token, or a lock object, not {fence!r}"
        )
    held = fence.fencing_token
    if held is None:
        raise LockNotHeldError("Cannot fence with an unlocked lock")
    return lock_name(fence.name), fencing_token(held)


def left_alone(key: bytes, found: Versioned | None) -> Versioned:
    """What `update` returns that has nothing to write; raises NoKeyError, as `get` would."""
    if found is None:
        raise NoKeyError(key)
    return found


class Update:
    """One `update` on its way: for how long it goes on, and how long it waits between its tries.
    The time that the caller's function takes is not counted.
    """

    def __init__(self, deadline_us: int, now_us: int, jitter: Callable[[], float]) -> None:
        self.conflicts = 0
        self._ends_us = now_us + deadline_us
        self._jitter = jitter

    def left_us(self, now_us: int) -> int:
        """For the next get or put."""
        return max(1, self._ends_us - now_us)

    def applied(self, took_us: int) -> None:
        """The caller's function has returned."""
        self._ends_us += took_us

    def conflict(self, now_us: int) -> int | None:
        """Somebody else has written: how long to wait before it is read again; None: no more. The
        first time nothing is waited, whoever it was is done.
        """
        self.conflicts += 1
        pause_us = self._pause_us()
        return pause_us if self._ends_us - now_us - pause_us >= 2 * ATTEMPT_MIN_US else None

    def _pause_us(self) -> int:
        if self.conflicts == 1:
            return 0
        longest_us = min(CONFLICT_MAX_US, CONFLICT_FIRST_US << min(self.conflicts - 1, 16))
        return int(longest_us * self._jitter())
