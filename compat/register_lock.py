"""RegisterLock: a lock made of one versioned register, with nothing but `get` and `put`.

It is what a lock can be where there are only conditional writes, and it shows how the outcome of a
put that nobody knows is found out: not by guessing, and not by asking the server to remember, but
by reading an identity that nobody else would have written. What is decided is in `register_steps`,
with its rules; here it is done.

What it is not:
  - There is no lease. A holder that dies, or whose machine does, keeps the lock until somebody who
    knows that it is gone writes `b""` over the register. Where that matters use `Clerk.lock`: that
    is what leases are for.
  - There is no line to stand in: who looks at the right moment has it, the others look again, less
    and less often.
  - There is no fencing token. (A storage that looks at one belongs to `Clerk.lock` as well.)

That only one has it does not depend on any time, clock, or order of messages. It does depend on the
register's being neither deleted nor given an expiry, nor written to by anybody else.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import random
import secrets
import threading
import time
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from redis.exceptions import RedisError, ResponseError

from . import sessions
from .arguments import length_ms, register_key
from .endpoints import now_us
from .errors import (
    ClerkError,
    IndeterminateError,
    LockLostError,
    LockNotHeldError,
    MaybeError,
    NoKeyError,
    UnavailableError,
    VersionError,
)
from .register_steps import NO_REGISTER, Acquiring, Done, Freeing, Read, Step, Write
from .registers import Versioned

_log = logging.getLogger(__name__)

# So many puts in doubt, each after its deadline, are waited for before the background goes on.
DOUBTS_MAX = 3

# How long the background waits, at most, before it tries once more to reach a node.
PAUSE_MAX_MS = 200


class Registers(Protocol):
    """What is needed of a Clerk."""

    def get(self, key: bytes) -> Versioned:
        """See `Clerk.get`."""

    def put(self, key: bytes, value: bytes, version: int, *, once: bool) -> int:
        """See `Clerk.put`."""


class _Held(NamedTuple):
    identity: bytes
    version: int


class RegisterLock:
    """A lock in the register `name`: `with RegisterLock(clerk, "a"): ...`

    It has no lease, no line and no fencing token: a holder that dies keeps it until somebody writes
    an empty value over it, and who waits asks again and again. `Clerk.lock` has all three; this one
    is for where there is nothing but registers. The register must hold nothing else: any other
    value counts as somebody who holds the lock.

    The object is not shared: one thread or greenlet at a time may use it, and RuntimeError tells
    a second one so. Give each its own. (It may be acquired by one, and later released by another.)
    After a fork, what was acquired before is the parent's.

    Calls take as long as those of the Clerk: up to its `deadline_ms` where no node answers,
    whatever the time-out. `settle_ms` is for how long the background goes on with what could not be
    brought to an end, after the Clerk was closed too.
    """

    def __init__(self, clerk: Registers, name: str | bytes, *, settle_ms: int = 60_000) -> None:
        for method in ("get", "put"):
            if not callable(getattr(clerk, method, None)):
                raise TypeError(f"clerk must be a Clerk, not {clerk!r}")
        self.name = name
        self._hands = _Hands(clerk, register_key(name))
        self._settle_us = length_ms("settle_ms", settle_ms) * 1_000
        self._is_in_use = False
        self._pid = os.getpid()
        self._held: _Held | None = None
        # An identity that was given up, or is to be released, and not known to be gone.
        self._freeing: Freeing | None = None
        self._settler: _Settler | None = None

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """True once the lock is held, False if somebody else held it all the time.

        blocking  False: looks once, and does not wait
        timeout   how long to wait, in seconds; None: as long as it takes

        Whoever is told False, or gets an exception, has not the lock and will not have it.
        UnavailableError: no node answered, and nothing was done. IndeterminateError: the lock may
        have been taken; it is given back in the background, as it is after any other exception,
        that of a signal's handler included. The next call of `acquire` or `release` sees to that
        before anything else, and raises IndeterminateError while it cannot.
        """
        until_us = _until_us(blocking, timeout)
        self._forget_parents()
        self._refuse_second_use()
        if self._held is not None:
            raise RuntimeError(f"{self!r} is held already")
        acquiring = Acquiring(_new_identity(), until_us=until_us, jitter=random.random)
        pid = os.getpid()
        # No call between the answer and the caller outside of this `try`: a signal's handler may
        # raise in any, and nobody would release the lock.
        try:
            self._is_in_use = True
            self._free()
            version = self._hands.perform(acquiring).version
            if version is not None:
                self._held = _Held(acquiring.identity, version)
            elif acquiring.at_stake:
                self._freeing = acquiring.giving_up()
                self._free()
            self._is_in_use = False
            return version is not None
        except BaseException as error:
            self._leave(pid, acquiring)
            self._raise_if_unsettled(error, "do not enter the critical section")
            raise

    def release(self) -> None:
        """Gives the lock back. In any case it is not held afterwards.

        IndeterminateError: no node has acknowledged that yet; the background goes on. When this is
        called once more, it returns as soon as nothing of ours is left in the register.
        Raises LockNotHeldError if it was not acquired, LockLostError if somebody else has changed
        the register meanwhile.
        """
        self._forget_parents()
        self._refuse_second_use()
        held, pid = self._held, os.getpid()
        if held is None and self._freeing is None:
            raise LockNotHeldError("Cannot release an unlocked lock", lock_name=_text(self.name))
        try:
            self._is_in_use = True
            if held is not None:
                self._freeing = Freeing(held.identity, held=held.version)
                self._held = None
            was_lost = self._free()
            self._is_in_use = False
        except BaseException as error:
            self._leave(pid)
            self._raise_if_unsettled(error, "stop using what the lock protects")
            raise
        if was_lost:
            raise LockLostError(
                "Cannot release a lock that's no longer owned", lock_name=_text(self.name)
            )

    def __enter__(self) -> RegisterLock:
        try:
            self.acquire()
            return self
        except BaseException:
            self._leave_if_interrupted()
            raise

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Releases; an exception that is on its way is not replaced by what goes wrong here."""
        try:
            self.release()
        except RedisError as error:
            if exc is None:
                raise
            _log.warning("leaving the lock %r: %s", self.name, error)
        except BaseException:
            self._leave_if_interrupted()
            raise

    def __repr__(self) -> str:
        state = "not held" if self._held is None else "held"
        return f"<{type(self).__name__} {self.name!r} {state}>"

    def _free(self) -> bool:
        """What has to be freed is, before anything else; whether it had been lost before."""
        freeing = self._freeing
        if freeing is None:
            return False
        self._hands.perform(freeing)
        self._freeing = None
        return freeing.was_lost

    def _forget_parents(self) -> None:
        """In a forked child: what was acquired before is the parent's, and so is what is open."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._held = self._freeing = self._settler = None
            self._is_in_use = False

    def _refuse_second_use(self) -> None:
        if self._is_in_use:
            raise RuntimeError(f"{self!r} is in use by another thread or greenlet")

    def _leave(self, pid: int, acquiring: Acquiring | None = None) -> None:
        """A call ends by an exception: what it leaves open is the background's. (What a greenlet
        leaves open that lives on in a forked child is the parent's.)
        """
        self._is_in_use = False
        if os.getpid() != pid:
            return
        if self._freeing is None:
            if acquiring is not None and acquiring.at_stake:
                self._freeing = acquiring.giving_up()
            elif acquiring is None and self._held is not None:
                self._freeing = Freeing(self._held.identity, held=self._held.version)
        self._held = None
        if self._freeing is not None and not self._is_being_settled(self._freeing):
            self._settler = _Settler(self._hands, self._freeing, self._settle_us)
            self._settler.begin()

    def _leave_if_interrupted(self) -> None:
        """At the edge of a `with`, where nobody else would see to it."""
        if not self._is_in_use and self._held is not None:
            self._leave(os.getpid())

    def _is_being_settled(self, freeing: Freeing) -> bool:
        settler = self._settler
        return settler is not None and settler.freeing is freeing and settler.is_alive()

    def _raise_if_unsettled(self, error: BaseException, told: str) -> None:
        if self._freeing is not None and isinstance(error, ClerkError):
            assume = f"{told}; if the lock is ours, it is given back in the background"
            what = ("VPUT", self._hands.key, b"", error.tries, error.reason)
            raise IndeterminateError(*what, assume) from error


class _Hands:
    """Does what is decided."""

    def __init__(self, clerk: Registers, key: bytes) -> None:
        self.key = key
        self._clerk = clerk
        self._own: Any = None

    def go_on_after_close(self) -> bool:
        """Use a Clerk of our own from now on, if the one that was given can be copied."""
        copied = getattr(self._clerk, "_copied", None)
        if copied is None or not getattr(self._clerk, "_closed", False):
            return False
        self._clerk = self._own = copied()
        return True

    def copied(self) -> _Hands:
        """For somebody else."""
        return _Hands(self._clerk, self.key)

    def close(self) -> None:
        """Close a Clerk of our own."""
        if self._own is not None:
            self._own.close()

    def perform(self, steps: Acquiring | Freeing) -> Done:
        """Until it is done. Raises what `get` raises; what a put raises that was not done; and, of
        a Freeing, IndeterminateError after too many puts in doubt.
        """
        step: Step = steps.start()
        doubts = 0
        while not isinstance(step, Done):
            if isinstance(step, Read):
                if step.delay_us:
                    time.sleep(step.delay_us / 1_000_000)
                step = steps.read(self._read(), now_us())
                continue
            try:
                step = self._write(step, steps)
            except IndeterminateError:
                doubts += 1
                step = steps.doubtful()
                if doubts >= DOUBTS_MAX and isinstance(steps, Freeing):
                    raise
        return step

    def _read(self) -> Versioned:
        try:
            return self._clerk.get(self.key)
        except NoKeyError:
            return NO_REGISTER

    def _write(self, step: Write, steps: Acquiring | Freeing) -> Step:
        try:
            version = self._clerk.put(self.key, step.value, step.version, once=False)
        except MaybeError:
            return steps.maybe()
        except (VersionError, NoKeyError):
            return steps.refused(now_us())
        except (UnavailableError, ResponseError):
            steps.not_done()
            raise
        return steps.written(version)


class _Settler(threading.Thread):
    """Goes on with a Freeing, for a bounded while. A forked child's copy does nothing."""

    def __init__(self, hands: _Hands, freeing: Freeing, settle_us: int) -> None:
        super().__init__(name="holdfast-settle", daemon=True)
        self.freeing = freeing
        self._hands = hands.copied()  # it may get a Clerk of its own
        self._until_us = now_us() + settle_us
        self._pid = os.getpid()

    def begin(self) -> None:
        try:
            self.start()
        except RuntimeError as error:
            # No thread to be had: the next call of `acquire` or `release` sees to it.
            _log.warning("cannot settle the lock %r yet: %s", self._hands.key, error)

    def run(self) -> None:
        _settlers.add(self)
        try:
            reason = self._settle()
        finally:
            _settlers.discard(self)
            self._hands.close()
        if reason is not None and os.getpid() == self._pid:
            _log.warning(
                "gave up settling the lock %r: %s; it may stay held by %s until b'' is written",
                self._hands.key,
                reason,
                self.freeing.identity.decode(),
            )

    def _settle(self) -> Exception | None:
        """Why it was given up; None: it is done."""
        while os.getpid() == self._pid:
            try:
                self._hands.perform(self.freeing)
                return None
            except RedisError as error:
                if now_us() >= self._until_us:
                    return error
            except Exception as error:
                if not self._hands.go_on_after_close():
                    return error
            time.sleep(PAUSE_MAX_MS * random.uniform(0.5, 1) / 1_000)
        return None


# Waited for when the program ends, as the undos of Clerk's are.
_settlers: set[_Settler] = set()


def _wait_for_settlers_at_exit() -> None:
    deadline_us = now_us() + sessions.UNDO_AT_END_MS * 1_000
    for settler in list(_settlers):
        settler.join(max(0, deadline_us - now_us()) / 1_000_000)


os.register_at_fork(after_in_child=_settlers.clear)
atexit.register(_wait_for_settlers_at_exit)


def _new_identity() -> bytes:
    return secrets.token_hex(16).encode()


def _until_us(blocking: bool, timeout: float | None) -> int | None:
    if not blocking:
        if timeout is not None:
            raise ValueError("who does not wait has no time-out")
        return now_us()
    if timeout is None or timeout == math.inf:
        return None
    if timeout < 0:
        raise ValueError(f"a time-out must not be below 0, it is {timeout}")
    return now_us() + int(timeout * 1_000_000)


def _text(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode(errors="backslashreplace")
