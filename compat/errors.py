"""What Clerk raises. Every one is a `redis.exceptions.RedisError` too.

What a node answers with an error of its own (-NOAUTH, -ERR, ...) is raised as redis-py's own
exception for it, and means: not done.
"""

from __future__ import annotations

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import LockError, LockNotOwnedError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .fencing.errors import StaleTokenError as FencingStaleTokenError


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


class MaybeError(IndeterminateError):
    """A put that was to leave nothing behind (`once=False`) was sent, its reply was lost, and when
    it was sent again the register had changed: by the first copy of the put, or by somebody else.

    Read the register again: unlike after any other IndeterminateError that settles it, for a copy
    of the put that is still under way names a version, or a fencing token, that is gone for good.
    (Unless the register is deleted: the next one of its name counts from 1 again.) `__cause__` is
    what the last copy was answered.
    """


class UnavailableError(ClerkError, RedisConnectionError):
    """No node took the request before the deadline. It was certainly not done."""

    def __str__(self) -> str:
        return f"no node took {self._what()}: {self.reason}; it was not done"


class RegisterError(ResponseError):
    """A node has answered that it cannot do this. Nothing was written."""

    def __init__(self, key: bytes, *more: object) -> None:
        super().__init__(key, *more)
        self.key = key

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class NoKeyError(RegisterError):
    """There is no such register. (A put with version 0 makes it.)"""

    def __init__(self, key: bytes) -> None:
        super().__init__(key)

    def __str__(self) -> str:
        return f"there is no register {_shown(self.key)}"


class VersionError(RegisterError):
    """The register has not the version that the put named: somebody has written meanwhile. Read it
    again, and decide anew (which is what `update` does).
    """

    def __init__(self, key: bytes, version: int, current_version: int) -> None:
        super().__init__(key, version, current_version)
        self.version = version
        self.current_version = current_version

    def __str__(self) -> str:
        there = f"the register {_shown(self.key)} has version {self.current_version}"
        return f"{there}, not {self.version}; nothing was written"


class StaleTokenError(RegisterError, FencingStaleTokenError):
    """The grant that `fence` named is not the current one of its lock, which has expired, or was
    released, and may be somebody else's. Do not try again: take the lock anew, read again.

    One of `holdfast.compat.fencing.StaleTokenError` too: `resource` is the key as text, `token` the
    fencing token; `highest_token` is None, for what is compared is the lock itself.
    """

    def __init__(self, key: bytes, lock_name: bytes, token: int) -> None:
        Exception.__init__(self, key, lock_name, token)
        self.key = key
        self.resource = key.decode(errors="backslashreplace")
        self.lock_name = lock_name
        self.token = token
        self.highest_token = None

    def __str__(self) -> str:
        grant = f"fencing token {self.token} is not the current grant of {_shown(self.lock_name)}"
        return f"{grant}: nothing was written to {_shown(self.key)}"


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
