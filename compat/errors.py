"""What Clerk raises. Every one is a `redis.exceptions.RedisError` too.

What a node answers with an error of its own (-NOAUTH, -ERR, ...) is raised as redis-py's own
exception for it, and means: not done.
"""

from __future__ import annotations

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import LockError, LockNotOwnedError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError


class ClerkError(RedisError):
    """A request of Clerk's that got no answer before its deadline."""

    def __init__(
        self, command: str, name: bytes, request_id: bytes, tries: int, reason: str
    ) -> None:
        super().__init__(command, name, request_id, tries, reason)
        self.command = command
        self.name = name
        self.request_id = request_id
        self.tries = tries
        self.reason = reason

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def _what(self) -> str:
        """The request in words: LOCK 'a' (request id @0123456789abcdef:1, tries: 3)."""
        sent_as = f"request id {self.request_id.decode()}, " if self.request_id else ""
        return f"{self.command} {_shown(self.name)} ({sent_as}tries: {self.tries})"


class IndeterminateError(ClerkError, RedisTimeoutError):
    """The request was sent, and nobody can say whether it was done. (redis-py's TimeoutError means
    that too: what is written for redis-py, and catches that, catches this.)

    After `acquire`: do not enter the critical section; Clerk undoes the request in the background.
    After `release`: stop using what the lock protects and treat it as released.
    `command`, `name`, `request_id` and `tries` tell which request it was, `reason` what was seen,
    `assume` what the caller should do now.
    """

    def __init__(
        self, command: str, name: bytes, request_id: bytes, tries: int, reason: str, assume: str
    ) -> None:
        super().__init__(command, name, request_id, tries, reason)
        self.args = (*self.args, assume)
        self.assume = assume

    def __str__(self) -> str:
        return f"it is unknown whether {self._what()} was done: {self.reason}; {self.assume}"


class UnavailableError(ClerkError, RedisConnectionError):
    """No node took the request before the deadline. It was certainly not done."""

    def __str__(self) -> str:
        return f"no node took {self._what()}: {self.reason}; it was not done"


class LockNotAcquiredError(LockError):
    """`with clerk.lock(...)`: somebody else held the lock for the whole wait."""


class LockNotHeldError(LockError):
    """The lock object holds nothing that could be released, extended or renewed."""


class LockLostError(LockNotOwnedError):
    """The lock was acquired, and is no longer held: its lease ran out, or it was released by
    somebody else. What it protects may have been changed by another holder since.
    """


def _shown(name: bytes) -> str:
    try:
        return repr(name.decode())
    except UnicodeDecodeError:
        return repr(name)
