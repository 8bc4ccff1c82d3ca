"""The lock object of Clerk: what `redis.lock.Lock` is to redis-py, with a fencing token.

Its methods take and raise what redis-py's do. `timeout` and `sleep` are gone: the lease is a matter
of `clerk.lock(...)`, and nothing polls. As in redis-py each thread has a grant of its own: a thread
whose lease ran out can neither see nor release what another thread took with the same object.

    held ──release()──▶ not held
     │
     └─ a node says that the grant is not the current one, or its trust has run out ─▶ lost

Everything that is known of one grant is in one `Held`, whatever the object goes on to hold: a
renewal that ends late, and whoever is told of a loss, concern that grant and no other.

With `renew=True` a lost lock stays lost until it is acquired again, whatever a node says later:
its holder may have been told. Without, nobody has, so there a trust that ran out can be mended by
`extend` or `reacquire`: a node that still renews that very grant has given it to nobody else.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any, Literal

from redis.exceptions import RedisError

from . import sessions
from .arguments import lease_length_ms, lock_name, owner_name, wait_length_ms
from .endpoints import now_us
from .errors import LockLostError, LockNotAcquiredError, LockNotHeldError, UnavailableError
from .leases import GONE, Grant, Renewal, Wanted

if TYPE_CHECKING:
    from .clerk import Clerk

_log = logging.getLogger(__name__)

# What is tried for a lock that is lost anyway: to give it back at once, should it still be held.
RELEASE_LOST_MS = 1_000


class Held:
    """One grant of a lock object's, from its acquisition to its release and beyond."""

    def __init__(self, grant: Grant, renew_ms: int | None) -> None:
        self.token = grant.token
        self.renewal = Renewal(grant, renew_ms)
        self.is_held = True
        # Whatever renews it in the background.
        self.renewer: Any = None
        self._untold = [True]

    @property
    def is_being_told(self) -> bool:
        """Whether somebody has begun to tell of its loss, or has done so."""
        return not self._untold

    @property
    def is_lost(self) -> bool:
        """What was released in time is lost no more."""
        return self.renewal.is_lost(now_us()) if self.is_held else bool(self.renewal.loss)

    @property
    def is_lost_for_good(self) -> bool:
        return self.renewal.is_lost_for_good(now_us())

    def told(self) -> bool:
        """Whether this is the first to tell of the loss: True once, whoever asks meanwhile."""
        try:
            return self._untold.pop()
        except IndexError:
            return False


class LockBase:
    """What Lock and AsyncLock know and decide; no waiting in here."""

    # Where the grant is kept: `held`, if there is one.
    _own: Any

    def __init__(
        self,
        name: str | bytes,
        *,
        lease_ms: int | None,
        wait_ms: int | None,
        renew: bool,
        on_lost: Callable[[Any], object] | None,
        owner: str | bytes | None,
        raise_on_release_error: bool,
    ) -> None:
        lock_name(name)
        owner_name(owner)
        if renew and lease_ms is None:
            raise ValueError("renew=True needs a lease: without one there is nothing to renew")
        self.name = name
        self.lease_ms = lease_length_ms(lease_ms)
        self.wait_ms = wait_length_ms(wait_ms)
        self.owner = owner
        self._renews = renew
        self._on_lost = on_lost
        self._raises_on_release_error = raise_on_release_error

    @property
    def fencing_token(self) -> int | None:
        """The number of the grant, to be handed to whatever the lock protects; None if not held.
        One of a lost lock stays, for there it is needed most.
        """
        held = self._held
        return held.token if held is not None and held.is_held else None

    @property
    def lost(self) -> bool:
        """True if the lock was acquired, and cannot be counted on any more. Asks nobody.
        Stays True after `release`, until the lock is acquired again.
        """
        held = self._held
        return held is not None and held.is_lost

    def __repr__(self) -> str:
        state = "lost" if self.lost else "not held" if self.fencing_token is None else "held"
        return f"<{type(self).__name__} {self.name!r} {state}>"

    @property
    def _held(self) -> Held | None:
        """The last grant, also after its release."""
        held: Held | None = getattr(self._own, "held", None)
        return held

    def _new_held(self, grant: Grant) -> Held:
        return Held(grant, self.lease_ms if self._renews else None)

    # -- acquiring -------------------------------------------------------------------------------

    def _wanted(
        self,
        blocking: bool | None,
        blocking_timeout: float | None,
        token: str | bytes | None,
    ) -> Wanted:
        owner = self.owner if token is None else token
        return sessions.wanted(
            self.name, self.lease_ms, self._wait(blocking, blocking_timeout), owner
        )

    def _wait(self, blocking: bool | None, blocking_timeout: float | None) -> int | None:
        """`blocking` and `blocking_timeout` (s) as redis-py has them; the wait in ms."""
        if blocking is False:
            return 0
        if blocking_timeout is not None:
            endless = blocking_timeout == math.inf
            return None if endless else max(0, int(blocking_timeout * 1_000))
        return None if blocking and self.wait_ms == 0 else self.wait_ms

    def _not_acquired(self) -> LockNotAcquiredError:
        return LockNotAcquiredError(
            "Unable to acquire lock within the time specified", lock_name=_text(self.name)
        )

    # -- what is held ----------------------------------------------------------------------------

    def _to_be(self, verb: str) -> Held:
        held = self._held
        if held is None or not held.is_held:
            raise LockNotHeldError(f"Cannot {verb} an unlocked lock", lock_name=_text(self.name))
        return held

    def _leased(self, verb: str) -> Held:
        held = self._to_be(verb)
        if held.renewal.grant.lease_ms is None:
            raise LockNotHeldError(
                f"Cannot {verb} a lock with no timeout", lock_name=_text(self.name)
            )
        return held

    def _not_owned(self, verb: str) -> LockLostError:
        return LockLostError(
            f"Cannot {verb} a lock that's no longer owned", lock_name=_text(self.name)
        )

    def _extended_ms(self, held: Held, additional_time: float, replace_ttl: bool) -> int:
        left_ms = 0 if replace_ttl else held.renewal.grant.left_ms(now_us())
        return left_ms + int(additional_time * 1_000)

    @staticmethod
    def _check_lease(lease_ms: int) -> None:
        if lease_ms <= 0:
            raise ValueError(f"a lease must be above 0 ms, not {lease_ms}")

    def _left_unreleased(self, error: Exception, exc: BaseException | None) -> None:
        """At the end of a `with` whose release failed: an exception that is on its way is not
        replaced by this one.
        """
        wanted = self._raises_on_release_error or not isinstance(error, RedisError)
        if exc is None and wanted:
            raise error
        _log.warning("leaving the lock %r: %s", self.name, error)

    # -- what a renewal in the background comes to -----------------------------------------------

    def _renewal_answered(self, held: Held, sent_us: int | None) -> None:
        if held.is_held:  # what was released meanwhile is not lost
            held.renewal.answered(sent_us)

    def _renewal_failed(self, held: Held, error: Exception) -> None:
        if held.is_held:
            _log.warning("the lock %r could not be renewed: %s", self.name, error)
        held.renewal.failed(now_us())

    def _whom_to_tell(self, held: Held) -> Callable[[Any], object] | None:
        """Of a loss, once."""
        if not held.told():
            return None
        loss = held.renewal.loss
        _log.warning("the lock %r (fencing token %d) is lost: %s", self.name, held.token, loss)
        return self._on_lost


class Lock(LockBase):
    """A lock that can be taken and given back: `with clerk.lock("a") as lock: ...`

    Made by `Clerk.lock`, which explains the options. `name`, `fencing_token` and `lost` tell about
    it, to each thread about its own grant; every method may also raise what Clerk's do.
    """

    def __init__(
        self,
        clerk: Clerk,
        name: str | bytes,
        *,
        lease_ms: int | None = 30_000,
        wait_ms: int | None = None,
        renew: bool = False,
        on_lost: Callable[[Lock], object] | None = None,
        owner: str | bytes | None = None,
        thread_local: bool = True,
        raise_on_release_error: bool = True,
    ) -> None:
        super().__init__(
            name,
            lease_ms=lease_ms,
            wait_ms=wait_ms,
            renew=renew,
            on_lost=on_lost,
            owner=owner,
            raise_on_release_error=raise_on_release_error,
        )
        self._clerk = clerk
        self._is_thread_local = thread_local
        self._own = threading.local() if thread_local else SimpleNamespace()

    def acquire(
        self,
        sleep: float | None = None,
        blocking: bool | None = None,
        blocking_timeout: float | None = None,
        token: str | bytes | None = None,
    ) -> bool:
        """True once the lock is held, False if somebody else held it for the whole wait.

        blocking          False: do not wait
        blocking_timeout  how long to wait, in seconds, instead of the lock's `wait_ms`
        token             redis-py's word for the owner
        sleep             means nothing here: nothing polls
        """
        granted = self._clerk._acquire(self._wanted(blocking, blocking_timeout, token))
        if granted is None:
            return False
        # No call outside of this `try`: a signal's handler may raise in any, and nobody would
        # release the lock (R5).
        try:
            assert granted.grant is not None
            self._hold(granted.grant)
        except BaseException:
            self._drop(granted)
            raise
        return True

    def release(self) -> None:
        """Raises LockNotHeldError if it was not acquired, LockLostError if it was lost since."""
        held = self._to_be("release")
        was_lost = held.is_lost_for_good
        self._end_renewing(held)
        held.is_held = False  # a renewal under way must not take what follows for a loss
        if was_lost:
            with contextlib.suppress(RedisError):
                self._clerk._release(self.name, held.token, RELEASE_LOST_MS * 1_000)
            self._tell(held)
            raise self._not_owned("release")
        try:
            released = self._clerk.release(self.name, held.token)
        except UnavailableError:
            held.is_held = True  # certainly not done: it may be tried again
            raise
        if not released:
            held.renewal.lose(GONE)
            self._tell(held)
            raise self._not_owned("release")

    def extend(self, additional_time: float, replace_ttl: bool = False) -> Literal[True]:
        """Adds so many seconds to what is left of the lease, or has it last so long from now on
        (which never shortens it). Raises LockNotHeldError, LockLostError.
        """
        held = self._leased("extend")
        return self._renew(held, self._extended_ms(held, additional_time, replace_ttl), "extend")

    def reacquire(self) -> Literal[True]:
        """Has the lease begin anew. Raises LockNotHeldError, LockLostError."""
        held = self._leased("reacquire")
        assert self.lease_ms is not None
        return self._renew(held, self.lease_ms, "reacquire")

    def locked(self) -> bool:
        """Whether anybody holds the lock."""
        return bool(self._clerk.inspect(self.name)["state"] == "held")

    def owned(self) -> bool:
        """Whether this object holds the lock: a node is asked, and a lost lock is never owned."""
        token = self.fencing_token
        if token is None or self.lost:
            return False
        return self._clerk.verify(self.name, token) and not self.lost

    def __enter__(self) -> Lock:
        if self.acquire():
            return self
        raise self._not_acquired()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Releases; an exception that is on its way is not replaced by what goes wrong here."""
        try:
            self.release()
        except Exception as error:
            self._left_unreleased(error, exc)

    def _hold(self, grant: Grant) -> None:
        before, held = self._held, self._new_held(grant)
        self._own.held = held
        if before is not None:
            self._end_renewing(before)
        if self._renews:
            held.renewer = _Renewer(self, held)
            held.renewer.start()

    def _drop(self, token: int) -> None:
        """No thread to be had, or a signal: whoever asked for the lock will not have it."""
        held = self._held
        if held is not None and held.token == token:
            held.is_held = False
            self._end_renewing(held)
        with contextlib.suppress(RedisError):
            self._clerk.release(self.name, token)

    def _renew(self, held: Held, lease_ms: int, verb: str) -> Literal[True]:
        self._check_lease(lease_ms)
        clerk = self._clerk
        if not held.is_lost_for_good:
            sent_us = clerk._renew(self.name, held.token, lease_ms, clerk._deadline_us)
            held.renewal.acknowledge(lease_ms, sent_us)
        if held.is_lost_for_good:
            self._tell(held)
            raise self._not_owned(verb)
        return True

    def _end_renewing(self, held: Held) -> None:
        renewer, held.renewer = held.renewer, None
        if renewer is not None:
            renewer.stop()

    def _try_to_renew(self, held: Held, left_us: int) -> None:
        """One renewal of the renewer's."""
        assert self.lease_ms is not None
        try:
            sent_us = self._clerk._renew(self.name, held.token, self.lease_ms, left_us)
        except Exception as error:
            self._renewal_failed(held, error)
        else:
            self._renewal_answered(held, sent_us)

    def _tell_in_background(self, held: Held) -> None:
        if self._is_thread_local:
            self._own.held = held  # so that in `on_lost` the lock is what it is to its holder
        self._tell(held)

    def _tell(self, held: Held) -> None:
        if (on_lost := self._whom_to_tell(held)) is not None:
            try:
                on_lost(self)
            except Exception:
                _log.exception("on_lost of the lock %r went wrong", self.name)


class _Renewer:
    """Renews one grant in threads (greenlets, in a program patched by gevent) of its own, so that
    no lock's silence keeps another from being renewed. One looks at the clock; a second one lives
    for each renewal, for that may take longer than anybody allows: looking up a host name does.

    It does not keep the lock object alive, nor the grant of a thread that has ended: what is
    forgotten is renewed no more. A forked child's copy does nothing.
    """

    def __init__(self, lock: Lock, held: Held) -> None:
        self._lock = weakref.ref(lock)
        self._held = weakref.ref(held)
        self._pid = os.getpid()
        # True: it is to end. False: a renewal has ended. (A queue that a signal's handler may
        # interrupt, as it may no Event.)
        self._news: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def start(self) -> None:
        threading.Thread(target=self._run, name="holdfast-renew", daemon=True).start()

    def stop(self) -> None:
        """By any thread, and a signal's handler."""
        self._news.put(True)

    def _run(self) -> None:
        while (wait_us := self._step()) is not None:
            with contextlib.suppress(queue.Empty):
                if self._news.get(timeout=wait_us / 1_000_000):
                    return

    def _step(self) -> int | None:
        """What is due; the microseconds until it is to be called again, or None when it is over."""
        lock, held = self._lock(), self._held()
        if lock is None or held is None or not held.is_held or os.getpid() != self._pid:
            return None
        wait_us = held.renewal.wait_us(now_us())
        if wait_us is None:
            lock._tell_in_background(held)
        elif wait_us == 0:
            self._begin(lock, held, held.renewal.begin(now_us()))
            wait_us = held.renewal.wait_us(now_us()) or 0
        return wait_us

    def _begin(self, lock: Lock, held: Held, left_us: int) -> None:
        def renew() -> None:
            lock._try_to_renew(held, left_us)
            self._news.put(False)

        try:
            threading.Thread(target=renew, name="holdfast-renewal", daemon=True).start()
        except RuntimeError:  # no thread to be had
            renew()


def _text(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode(errors="backslashreplace")
