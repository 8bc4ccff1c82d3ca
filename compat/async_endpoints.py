"""The same as `endpoints`, in an event loop: one attempt on one node, and what was seen of it.

Every wait is a task of its own, waited for no longer than the deadline allows: so redis-py's own
time-outs are not needed but for dialling, a cancellation always comes through (which `wait_for` of
older Pythons cannot promise), and the node can be asked whether it is there while the reply to a
LOCK that stands in line is still being waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from redis.asyncio.connection import Connection, UnixDomainSocketConnection, parse_url
from redis.asyncio.retry import Retry
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .attempts import SENDING_MIN_US, Call, Fate, Finish, Seen, Send
from .endpoints import (
    IDLE_CONNECTIONS_MAX,
    NodesBase,
    forks_begun,
    now_us,
    ping_call,
    refuse_if_inherited,
    seen_of,
    shows_life,
)
from .targets import Family, Target

T = TypeVar("T")


class _Mixin:
    """A redis-py connection that is closed without waiting."""

    socket_timeout: float | None
    socket_connect_timeout: float | None

    async def dial(self, connect_timeout_us: int, read_timeout_us: int) -> None:
        """Raises RedisError; nothing but greetings has been sent then."""
        self.socket_connect_timeout = connect_timeout_us / 1_000_000
        self.socket_timeout = read_timeout_us / 1_000_000  # for the replies to greetings
        await self.connect()  # type: ignore[attr-defined]
        self.socket_timeout = None  # from here on time is measured by whoever waits

    async def ask(self, words: Sequence[bytes]) -> Any:
        """Sends a request, returns the reply; raises RedisError or OSError."""
        await self.send_command(*words, check_health=False)  # type: ignore[attr-defined]
        return await self.read_response()  # type: ignore[attr-defined]

    async def is_quiet(self) -> bool:
        """False if the node has hung up, or has said something that nobody asked for."""
        # It became `can_read` in redis-py 8.
        look = getattr(self, "can_read", None) or self.can_read_destructive  # type: ignore[attr-defined]
        try:
            return not await look()
        except (RedisError, OSError):
            return False


_FAMILY = Family(parse_url, Connection, UnixDomainSocketConnection, Retry, _Mixin)


def target_of(url: str) -> Target:
    """Raises TypeError or ValueError."""
    return Target.from_url(url, _FAMILY)


class AsyncEndpoint:
    """One node: its idle connections, the last used first. For the tasks of one event loop."""

    def __init__(self, target: Target, *, connect_timeout_ms: int, read_timeout_ms: int) -> None:
        self.label = target.label
        self._target = target
        self._connect_timeout_us = connect_timeout_ms * 1_000
        self._read_timeout_us = read_timeout_ms * 1_000
        self._idle: list[Any] = []
        self._closed = False
        self._heard_us = 0

    async def attempt(self, call: Call) -> Seen:
        """Sends the request once, at most. Only a bug, a fork or a cancellation raises."""
        forks = forks_begun()
        try:
            connection = await self._ready(call)
        except RedisError as error:
            return seen_of(error, otherwise=Fate.NOT_SENT if forks == forks_begun() else Fate.LOST)
        in_step = False
        try:
            value = await self._exchange(connection, call)
            in_step = True
            return Seen(Fate.ANSWERED, value=value)
        except (RedisError, OSError) as error:
            # An error of this class was returned as a reply; the others cost the connection.
            in_step = isinstance(error, ResponseError)
            return seen_of(error, otherwise=Fate.LOST)
        finally:
            await self._after_use(connection, in_step)

    async def close(self) -> None:
        """Closes the idle connections; one in use is closed after its use."""
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.disconnect(nowait=True)

    async def _exchange(self, connection: Any, call: Call) -> Any:
        sent_us = now_us()
        asking = connection.ask(call.sending(sent_us))
        reply_by_us = call.reply_by_us(sent_us, self._read_timeout_us)
        if call.wait_until_us <= sent_us:
            return await _until(reply_by_us, asking)
        return await _until(
            reply_by_us, asking, self._read_timeout_us, lambda: self._is_there(call)
        )

    async def _is_there(self, call: Call) -> bool:
        """Whether the node, silent towards `call` for a read time-out, answers anybody at all."""
        if now_us() - self._heard_us >= self._read_timeout_us:
            seen = await self.attempt(ping_call(self._connect_timeout_us + self._read_timeout_us))
            if not shows_life(seen):
                return False
        call.node_is_there(now_us())
        return True

    async def _ready(self, call: Call) -> Any:
        """A connection on which nothing is under way; raises RedisError if there is none."""
        deadline_us = call.deadline_us
        connection = await self._quiet_idle() or self._target.connection()
        try:
            if not connection.is_connected:
                dialling = connection.dial(
                    call.timeout_us(self._connect_timeout_us),
                    call.timeout_us(self._read_timeout_us),
                )
                await _until(deadline_us, dialling)
            if deadline_us - now_us() < SENDING_MIN_US:
                raise RedisTimeoutError("the deadline leaves no time for an answer")
            if not connection.is_connected:  # or redis-py would dial while it sends
                raise RedisConnectionError("the connection is closed")
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def _quiet_idle(self) -> Any:
        while self._idle:
            connection = self._idle.pop()
            try:
                if await connection.is_quiet():
                    return connection
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            await connection.disconnect(nowait=True)
        return None

    async def _after_use(self, connection: Any, in_step: bool) -> None:
        if in_step:
            self._heard_us = now_us()
        if in_step and not self._closed and len(self._idle) < IDLE_CONNECTIONS_MAX:
            self._idle.append(connection)
        else:
            await connection.disconnect(nowait=True)


async def _until(
    ends_us: int,
    coroutine: Coroutine[Any, Any, T],
    look_us: int | None = None,
    is_there: Callable[[], Awaitable[bool]] | None = None,
) -> T:
    """What `coroutine` returns; at `ends_us` it is cancelled, and redis-py's TimeoutError raised.
    So it is if `is_there`, asked every `look_us`, says no.
    """
    task = asyncio.ensure_future(coroutine)
    task.add_done_callback(_retrieved)
    try:
        while not task.done():
            left_us = ends_us - now_us()
            if left_us <= 0:
                raise RedisTimeoutError("timed out")
            pause_us = left_us if look_us is None else min(left_us, look_us)
            await asyncio.wait({task}, timeout=pause_us / 1_000_000)
            if is_there is not None and not task.done() and ends_us > now_us():
                if not await is_there() and not task.done():
                    raise RedisTimeoutError("the node is silent")
        return task.result()
    finally:
        task.cancel()


def _retrieved(task: asyncio.Future[Any]) -> None:
    """Have asyncio not complain of an error that nobody waits for any more."""
    if not task.cancelled():
        task.exception()


class AsyncNodes(NodesBase):
    """Those of AsyncClerk."""

    def __init__(self, endpoints: Sequence[AsyncEndpoint]) -> None:
        super().__init__(len(endpoints))
        self.endpoints = tuple(endpoints)

    async def perform(self, call: Call) -> Finish:
        """Makes the attempts that `call` decides on, until its verdict."""
        step: Send | Finish = call.start()
        while isinstance(step, Send):
            if step.delay_us:
                await asyncio.sleep(step.delay_us / 1_000_000)
            refuse_if_inherited(self._pid)
            seen = await self.endpoints[step.node].attempt(call)
            refuse_if_inherited(self._pid)
            step = call.observe(seen, now_us())
        if step.node is not None:
            self.primary = step.node
        return step

    async def close(self) -> None:
        for endpoint in self.endpoints:
            await endpoint.close()
