"""AsyncClerk: Clerk for the tasks of an event loop.

The decisions are Clerk's own (`attempts`, `leases`, `registers`), and so is what both say to their
callers (`outcomes`); what differs is how to wait. A cancellation is here what a signal's handler is
there: an `acquire` that is cancelled is undone.

The undoing is a task. Whoever ends the loop cancels all tasks, as `asyncio.run` does: then the undo
under way is given a second more, for which `asyncio.run` waits.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any

from . import sessions
from .arguments import fencing_token as checked_token
from .arguments import glob_pattern, length_ms, lock_name, register_key
from .async_endpoints import AsyncEndpoint, AsyncNodes, target_of
from .async_lock import AsyncLock
from .attempts import (
    Client,
    Request,
    inspect_request,
    locks_request,
    release_request,
    renew_request,
    verify_request,
)
from .endpoints import now_us
from .errors import NoKeyError, VersionError
from .leases import Acquisition, Wanted
from .outcomes import REFUSED, FencingToken, fields_of, page_of, value_of
from .registers import Fence, Put, Update, Versioned, fence_of, get_request, left_alone, put_of
from .sessions import Abandoned, SessionBase, Undos, new_clients, wanted

_log = logging.getLogger(__name__)

# What a function given to `update` returns; None: leave the register as it is.
Written = str | bytes | None


class AsyncClerk:
    """A client of a lock server pair: `AsyncClerk("redis://h1:6379", "redis://h2:6380")`,
    or, for short, `AsyncClerk("h1:6379", "h2:6380")`.

    The parameters, the methods and what they raise are those of `Clerk`. Share one between all
    tasks. In each event loop, and in a forked child, it has connections and client ids of its own.
    Close it (`async with`, or `await clerk.close()`), in each loop that goes on afterwards.
    """

    def __init__(
        self,
        *urls: str,
        deadline_ms: int = 10_000,
        connect_timeout_ms: int = 500,
        read_timeout_ms: int = 1_000,
        undo_ms: int = 60_000,
    ) -> None:
        if not urls:
            raise ValueError('AsyncClerk needs the URL of a node, like "redis://127.0.0.1:6379"')
        self._deadline_us = length_ms("deadline_ms", deadline_ms) * 1_000
        self._connect_timeout_ms = length_ms("connect_timeout_ms", connect_timeout_ms)
        self._read_timeout_ms = length_ms("read_timeout_ms", read_timeout_ms)
        self._undo_ms = length_ms("undo_ms", undo_ms)
        self._targets = [target_of(url) for url in urls]
        self._closed = False
        self._sessions: dict[asyncio.AbstractEventLoop, _AsyncSession] = {}

    async def acquire(
        self,
        name: str | bytes,
        lease_ms: int | None = None,
        wait_ms: int | None = 0,
        owner: str | bytes | None = None,
    ) -> FencingToken:
        """The fencing token (above 0) if the lock was granted, 0 if not: see `Clerk.acquire`."""
        return await self._acquire(wanted(name, lease_ms, wait_ms, owner)) or REFUSED

    async def release(self, name: str | bytes, fencing_token: int | None = None) -> bool:
        """True if the lock was held (by that grant) and now is not: see `Clerk.release`."""
        session = self._open_session()
        token = None if fencing_token is None else checked_token(fencing_token)
        return await session.release(lock_name(name), token, self._deadline_us)

    async def renew(self, name: str | bytes, fencing_token: int, lease_ms: int) -> bool:
        """Has the lease of that very grant begin anew: see `Clerk.renew`."""
        length_ms("lease_ms", lease_ms)
        return await self._renew(name, fencing_token, lease_ms, self._deadline_us) is not None

    async def verify(self, name: str | bytes, fencing_token: int) -> bool:
        """Whether that grant is still the current one: True is the truth of a moment ago."""
        request = verify_request(lock_name(name), checked_token(fencing_token))
        return bool(await self._read(request))

    async def inspect(self, name: str | bytes) -> dict[str, Any]:
        """What INSPECT shows: see `Clerk.inspect`."""
        return fields_of(await self._read(inspect_request(lock_name(name))))

    async def locks(self, match: str | bytes | None = None) -> AsyncIterator[dict[str, Any]]:
        """Walks the held locks (`async for`): see `Clerk.locks`."""
        pattern = glob_pattern(match)
        cursor = b"0"
        while True:
            request = locks_request(cursor, pattern, sessions.LOCKS_PAGE_COUNT)
            cursor, page = page_of(await self._read(request))
            for lock in page:
                yield lock
            if cursor == b"0":
                return

    def lock(
        self,
        name: str | bytes,
        *,
        lease_ms: int | None = 30_000,
        wait_ms: int | None = None,
        renew: bool = False,
        on_lost: Callable[[AsyncLock], object] | None = None,
        owner: str | bytes | None = None,
        raise_on_release_error: bool = True,
    ) -> AsyncLock:
        """A lock object with the interface of redis-py's: `async with clerk.lock("a") as lock: ...`

        The options are those of `Clerk.lock`, but for `thread_local`: the object belongs to the
        task that acquires it. `on_lost` may be a coroutine function; once begun it is not
        cancelled by a release.
        """
        return AsyncLock(
            self,
            name,
            lease_ms=lease_ms,
            wait_ms=wait_ms,
            renew=renew,
            on_lost=on_lost,
            owner=owner,
            raise_on_release_error=raise_on_release_error,
        )

    async def get(self, key: str | bytes) -> Versioned:
        """The register's value and its version, to be unpacked: see `Clerk.get`."""
        return await self._open_session().get(register_key(key), self._deadline_us)

    async def put(
        self,
        key: str | bytes,
        value: str | bytes,
        version: int,
        *,
        fence: Fence | None = None,
        once: bool = True,
    ) -> int:
        """Writes the register if it has that version: see `Clerk.put`. One that is cancelled may
        have been done, or be done yet, like one that raised IndeterminateError.
        """
        put = put_of(key, value, version, fence)
        return await self._open_session().put(put, once, self._deadline_us)

    async def update(
        self,
        key: str | bytes,
        function: Callable[[bytes | None], Written | Awaitable[Written]],
        *,
        fence: Fence | None = None,
        once: bool = True,
    ) -> Versioned:
        """Reads, writes what `function` makes of it, again while somebody else was faster: see
        `Clerk.update`. `function` may be a coroutine function.
        """
        wanted = Update(self._deadline_us, now_us(), random.random)
        session = self._open_session()
        return await session.update(register_key(key), function, fence_of(fence), once, wanted)

    async def close(self) -> None:
        """Closes all connections, after waiting a second at most for undos that are under way.
        Calls under way end as usual; new ones are refused. One that was cancelled may be repeated.
        """
        self._closed = True
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is not None and not session.is_inherited:
            await session.close()
        self._sessions.pop(loop, None)

    async def __aenter__(self) -> AsyncClerk:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncClerk {' '.join(target.label for target in self._targets)}>"

    def _open_session(self) -> _AsyncSession:
        """That of the running loop: connections belong to the loop in which they were dialled."""
        if self._closed:
            raise RuntimeError("this AsyncClerk is closed")
        session = self._sessions.get(loop := asyncio.get_running_loop())
        if session is None or session.is_inherited:
            self._forget_ended_loops()
            session = self._sessions[loop] = self._new_session()
        return session

    def _new_session(self) -> _AsyncSession:
        endpoints = [
            AsyncEndpoint(
                target,
                connect_timeout_ms=self._connect_timeout_ms,
                read_timeout_ms=self._read_timeout_ms,
            )
            for target in self._targets
        ]
        return _AsyncSession(endpoints, self._undo_ms)

    def _forget_ended_loops(self) -> None:
        for loop, session in list(self._sessions.items()):
            if loop.is_closed() or session.is_inherited:
                self._sessions.pop(loop, None)

    async def _acquire(self, wanted: Wanted) -> FencingToken | None:
        return await self._open_session().acquire(wanted, self._deadline_us)

    async def _release(self, name: str | bytes, token: int, deadline_us: int) -> bool:
        deadline_us = min(deadline_us, self._deadline_us)
        return await self._open_session().release(lock_name(name), token, deadline_us)

    async def _renew(
        self, name: str | bytes, token: int, lease_ms: int, deadline_us: int
    ) -> int | None:
        """The instant from which the renewed lease counts; None if the grant is not current."""
        request = renew_request(lock_name(name), checked_token(token), lease_ms)
        deadline_us = min(deadline_us, self._deadline_us)
        return await self._open_session().renew(request, lease_ms, deadline_us)

    async def _read(self, request: Request) -> Any:
        return await self._open_session().ask(request, self._deadline_us)


class _AsyncSession(SessionBase):
    """What an AsyncClerk has of its own in one event loop of one process."""

    _nodes: AsyncNodes

    def __init__(self, endpoints: Sequence[AsyncEndpoint], undo_ms: int) -> None:
        nodes, clients = AsyncNodes(endpoints), new_clients()
        self._undoer = _AsyncUndoer(nodes, clients, undo_ms)
        super().__init__(nodes, clients, self._undoer)

    @property
    def is_inherited(self) -> bool:
        return self._nodes.is_inherited

    async def acquire(self, wanted: Wanted, deadline_us: int) -> FencingToken | None:
        """A lock, within its wait, or None. Nothing waits between settling and the caller (R5)."""
        while True:
            client = self.borrow()
            request = wanted.request(client)
            call = self._nodes.lock_call(request, wanted, deadline_us)
            acquisition = Acquisition(call, wanted.lease_ms)
            try:
                if acquisition.take(await self._nodes.perform(call), now_us()):
                    left_us = acquisition.renewal_left_us(deadline_us)
                    renewal = self._nodes.call(acquisition.renewal(), left_us)
                    acquisition.confirm(renewal, await self._nodes.perform(renewal), now_us())
                grant, finish = acquisition.grant, acquisition.finish
                token = None if grant is None else FencingToken(grant)
                self.settle(client, request, finish)
                if token is not None:
                    return token
            except BaseException as error:
                # The caller will never have the answer: a lock that was granted has to be given
                # back. Whoever cancelled this may be about to end the loop, and a task that has not
                # begun by then never does: let the undoing begin.
                self.settle(client, request, call.interrupt())
                if isinstance(error, asyncio.CancelledError):
                    await asyncio.sleep(0)
                raise
            if not wanted.may_go_on_after(acquisition, now_us()):
                value_of(request, finish)
                return None

    async def release(self, name: bytes, token: int | None, deadline_us: int) -> bool:
        def build(client: Client) -> Request:
            return release_request(client, name, token)

        return await self.change(build, deadline_us) == 1

    async def change(self, build: Callable[[Client], Request], deadline_us: int) -> int:
        """The answer to a request that has an id, and needs no undoing."""
        client = self.borrow()
        request = build(client)
        call = self._nodes.call(request, deadline_us)
        try:
            finish = await self._nodes.perform(call)
            self.settle(client, request, finish)
        except BaseException:
            self.settle(client, request, call.interrupt())
            raise
        return int(value_of(request, finish))

    async def renew(self, request: Request, lease_ms: int, deadline_us: int) -> int | None:
        call = self._nodes.renew_call(request, lease_ms, deadline_us)
        renewed = value_of(request, await self._nodes.perform(call))
        return call.first_sent_us if renewed else None

    async def ask(self, request: Request, deadline_us: int) -> Any:
        """The answer to a request that has no id."""
        call = self._nodes.call(request, deadline_us)
        return value_of(request, await self._nodes.perform(call))

    async def get(self, key: bytes, deadline_us: int) -> Versioned:
        return Versioned(*await self.ask(get_request(key), deadline_us))

    async def put(self, put: Put, once: bool, deadline_us: int) -> int:
        if once:
            return await self.change(put.request, deadline_us)
        return int(await self.ask(put.request(), deadline_us))

    async def update(
        self,
        key: bytes,
        function: Callable[[bytes | None], Written | Awaitable[Written]],
        fence: tuple[bytes, int] | None,
        once: bool,
        update: Update,
    ) -> Versioned:
        while True:
            found = await self._find(key, update.left_us(now_us()))
            begun_us = now_us()
            value = function(None if found is None else found.value)
            if inspect.isawaitable(value):
                value = await value
            update.applied(now_us() - begun_us)
            if value is None:
                return left_alone(key, found)
            put = put_of(key, value, 0 if found is None else found.version, fence)
            try:
                version = await self.put(put, once, update.left_us(now_us()))
            except (VersionError, NoKeyError):
                pause_us = update.conflict(now_us())
                if pause_us is None:
                    raise
                await asyncio.sleep(pause_us / 1_000_000)
            else:
                return Versioned(put.value, version)

    async def _find(self, key: bytes, deadline_us: int) -> Versioned | None:
        try:
            return await self.get(key, deadline_us)
        except NoKeyError:
            return None

    async def close(self) -> None:
        await self._undoer.wait_idle(sessions.UNDO_AT_END_MS)
        await self._nodes.close()


class _AsyncUndoer(Undos):
    """Undoes abandoned acquires in a task that lives while there are any."""

    _nodes: AsyncNodes
    _task: asyncio.Task[None] | None = None

    async def wait_idle(self, timeout_ms: int) -> None:
        """Returns once nothing is left to undo, or after that time."""
        self.start()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=timeout_ms / 1_000)

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="holdfast-undo")

    async def _run(self) -> None:
        try:
            while (job := self._next_job()) is not None:
                try:
                    await self._undo(job)
                except Exception:
                    _log.exception("undoing %s went wrong", job.undo.words)
                finally:
                    self._undoing -= 1
        finally:
            self._running = False

    async def _undo(self, job: Abandoned) -> None:
        try:
            finish = await self._nodes.perform(self._call(job, job.left_us))
        except asyncio.CancelledError:
            # The loop is about to end.
            last = self._call(job, sessions.UNDO_AT_END_MS * 1_000)
            self._settle(job, await self._nodes.perform(last))
            raise
        self._settle(job, finish)
