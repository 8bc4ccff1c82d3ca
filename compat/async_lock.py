"""AsyncLock: the lock object of AsyncClerk, what `redis.asyncio.lock.Lock` is to redis-py.

What it decides, and what its states mean, stands in `lock`. The object belongs to the task that
acquires it, until the lock is released or the task has ended: another task that acquired it would
take the first one's grant away. Use one lock object for each task.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import weakref
from collections.abc import Callable
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any, Literal

from redis.exceptions import LockError, RedisError

from .endpoints import now_us
from .errors import UnavailableError
from .leases import GONE, Grant
from .lock import RELEASE_LOST_MS, Held, LockBase

if TYPE_CHECKING:
    from .async_clerk import AsyncClerk

_log = logging.getLogger(__name__)


class AsyncLock(LockBase):
    """A lock that can be taken and given back: `async with clerk.lock("a") as lock: ...`

    Made by `AsyncClerk.lock`. `name`, `fencing_token` and `lost` tell about it and are plain
    attributes; the methods are those of `Lock`, to be awaited.
    """

    def __init__(
        self,
        clerk: AsyncClerk,
        name: str | bytes,
        *,
        lease_ms: int | None = 30_000,
        wait_ms: int | None = None,
        renew: bool = False,
        on_lost: Callable[[AsyncLock], object] | None = None,
        owner: str | bytes | None = None,
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
        self._own = SimpleNamespace()
        self._user: weakref.ref[asyncio.Task[Any]] | None = None

    async def acquire(
        self,
        blocking: bool | None = None,
        blocking_timeout: float | None = None,
        token: str | bytes | None = None,
    ) -> bool:
        """True once the lock is held, False if somebody else held it for the whole wait.

        blocking          False: do not wait
        blocking_timeout  how long to wait, in seconds, instead of the lock's `wait_ms`
        token             redis-py's word for the owner

        Raises LockError if another task, which still lives, holds it with this object.
        """
        wanted = self._wanted(blocking, blocking_timeout, token)
        self._claim()
        try:
            granted = await self._clerk._acquire(wanted)
            if granted is not None:
                assert granted.grant is not None
                self._hold(granted.grant)
        finally:
            self._unclaim_unless_held()
        return granted is not None

    async def release(self) -> None:
        """Raises LockNotHeldError if it was not acquired, LockLostError if it was lost since."""
        held = self._to_be("release")
        was_lost = held.is_lost_for_good
        self._end_renewing(held)
        held.is_held = False  # a renewal under way must not take what follows for a loss
        user, self._user = self._user, None
        if was_lost:
            with contextlib.suppress(RedisError):
                await self._clerk._release(self.name, held.token, RELEASE_LOST_MS * 1_000)
            await self._tell(held)
            raise self._not_owned("release")
        try:
            released = await self._clerk.release(self.name, held.token)
        except UnavailableError:
            held.is_held, self._user = True, user  # certainly not done: it may be tried again
            raise
        if not released:
            held.renewal.lose(GONE)
            await self._tell(held)
            raise self._not_owned("release")

    async def extend(self, additional_time: float, replace_ttl: bool = False) -> Literal[True]:
        """Adds so many seconds to what is left of the lease, or has it last so long from now on
        (which never shortens it). Raises LockNotHeldError, LockLostError.
        """
        held = self._leased("extend")
        lease_ms = self._extended_ms(held, additional_time, replace_ttl)
        return await self._renew(held, lease_ms, "extend")

    async def reacquire(self) -> Literal[True]:
        """Has the lease begin anew. Raises LockNotHeldError, LockLostError."""
        held = self._leased("reacquire")
        assert self.lease_ms is not None
        return await self._renew(held, self.lease_ms, "reacquire")

    async def locked(self) -> bool:
        """Whether anybody holds the lock."""
        return bool((await self._clerk.inspect(self.name))["state"] == "held")

    async def owned(self) -> bool:
        """Whether this object holds the lock: a node is asked, and a lost lock is never owned."""
        token = self.fencing_token
        if token is None or self.lost:
            return False
        return await self._clerk.verify(self.name, token) and not self.lost

    async def __aenter__(self) -> AsyncLock:
        if await self.acquire():
            return self
        raise self._not_acquired()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Releases; an exception that is on its way is not replaced by what goes wrong here."""
        try:
            await self.release()
        except Exception as error:
            self._left_unreleased(error, exc)

    def _claim(self) -> None:
        """For the task that runs."""
        user = None if self._user is None else self._user()
        task = asyncio.current_task()
        if user is not None and user is not task and not user.done():
            raise LockError(
                "Cannot acquire a lock object that another task uses: "
                "use one lock object for each task"
            )
        self._user = None if task is None else weakref.ref(task)

    def _unclaim_unless_held(self) -> None:
        if (held := self._held) is None or not held.is_held:
            self._user = None

    def _hold(self, grant: Grant) -> None:
        before, held = self._held, self._new_held(grant)
        self._own.held = held
        if before is not None:
            self._end_renewing(before)
        if self._renews:
            renewing = _renew_on(weakref.ref(self), held)
            held.renewer = asyncio.create_task(renewing, name="holdfast-renew")

    async def _renew(self, held: Held, lease_ms: int, verb: str) -> Literal[True]:
        self._check_lease(lease_ms)
        clerk = self._clerk
        if not held.is_lost_for_good:
            sent_us = await clerk._renew(self.name, held.token, lease_ms, clerk._deadline_us)
            held.renewal.acknowledge(lease_ms, sent_us)
        if held.is_lost_for_good:
            await self._tell(held)
            raise self._not_owned(verb)
        return True

    def _end_renewing(self, held: Held) -> None:
        """One that has begun to tell of a loss has ended anyway: whoever is told is not cut off."""
        renewer, held.renewer = held.renewer, None
        if renewer is not None and not held.is_being_told:
            renewer.cancel()

    async def _renew_in_background(self, held: Held) -> int | None:
        """One step of the renewer's: the microseconds until the next, or None when it is over."""
        if not held.is_held:
            return None
        wait_us = held.renewal.wait_us(now_us())
        if wait_us == 0:
            await self._try_to_renew(held, held.renewal.begin(now_us()))
            wait_us = held.renewal.wait_us(now_us()) if held.is_held else None
        if wait_us is None and held.renewal.loss:
            await self._tell(held)
        return wait_us

    async def _try_to_renew(self, held: Held, left_us: int) -> None:
        assert self.lease_ms is not None
        try:
            sent_us = await self._clerk._renew(self.name, held.token, self.lease_ms, left_us)
        except Exception as error:
            self._renewal_failed(held, error)
        else:
            self._renewal_answered(held, sent_us)

    async def _renewer_cancelled(self, held: Held) -> None:
        """By `release`, or by somebody else: then nobody renews it any more."""
        if held.is_held and held.renewer is not None and not held.is_being_told:
            held.renewal.lose("the task that renews it was cancelled")
            await self._tell(held)

    async def _tell(self, held: Held) -> None:
        if (on_lost := self._whom_to_tell(held)) is not None:
            try:
                told = on_lost(self)
                if inspect.isawaitable(told):
                    await told
            except Exception:
                _log.exception("on_lost of the lock %r went wrong", self.name)


async def _renew_on(lock_ref: weakref.ref[AsyncLock], held: Held) -> None:
    """Renews one grant in a task of its own. It does not keep the lock object alive: one that is
    forgotten is renewed no more.
    """
    try:
        while (lock := lock_ref()) is not None:
            wait_us = await lock._renew_in_background(held)
            del lock
            if wait_us is None:
                return
            await asyncio.sleep(wait_us / 1_000_000)
    except asyncio.CancelledError:
        if (lock := lock_ref()) is not None:
            await lock._renewer_cancelled(held)
        raise
