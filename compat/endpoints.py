"""One attempt on one node, over redis-py's connections, and what was seen of it.

redis-py is used at the level of single connections, one step at a time (dial, send, read), with its
own retries off. Only so is it certain whether anything was sent: an error from the first step
means NOT_SENT, from the others LOST, unless it is an error that the node answered. A connection
goes back among the idle ones only after exactly one whole reply to its one request was read; after
anything else it is closed, so a reply that arrives late is never taken for the next one.

Waiting: dialling, and each reply as a whole, takes as long as the connect or read time-out allows
and no longer than what the deadline leaves, the replies to greetings (AUTH, CLIENT SETINFO)
included. A socket's own time-out is for one wait, and a node that sends its reply byte by byte has
many; so the socket is told before each wait what is left.
(Looking up a host name is the system's business and is not bounded here.)

Standing in line. The reply to a LOCK with a wait may take as long as the wait, so its read has more
time. When nothing came for a read time-out, and the node has not answered anybody else meanwhile
either, it is sent a PING on another connection. If that is not answered in time, the node counts as
silent, and the attempt as LOST: the process is stopped, or the machine or the way to it is gone.
Should only this connection be dead (a router forgot it), TCP's keepalives find that out.

Forks. The greenlets of a gevent program live on in a forked child, in the middle of their attempts
and on the parent's sockets. What the child reads there is lost to the parent, and what it sent
there would be done in the parent's name:

    parent            dials, waits for its greeting's reply; forks
    child             reads that reply, would go on and send the LOCK
    parent            hears nothing: the dial has failed, "not sent", "not done"
    node              has granted the lock

So every use of a socket asks first whose it is, and in a child raises InheritedError. And, twice is
safer than once, a dial that failed is LOST in the parent if there was a fork meanwhile.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis.connection import Connection, UnixDomainSocketConnection, parse_url
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from .attempts import (
    GONE_CODE,
    NOT_EXECUTED_CODES,
    REFUSAL_CODES,
    SENDING_MIN_US,
    Call,
    Fate,
    Finish,
    Refusal,
    Request,
    Seen,
    Send,
    ping_request,
)
from .leases import Wanted, renewal_attempt_us
from .targets import Family, Target

# It goes on while the machine is suspended, as the nodes' own clocks do: a lease that ran out
# meanwhile is known to have run out.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

# More threads than this at once pay for a new connection now and then.
IDLE_CONNECTIONS_MAX = 128

# The code word of an error, where redis-py cut it from the message. From version 7 on it is kept as
# `status_code`; which classes there are differs, so they go by name.
_CODE_BY_CLASS = {
    "ReadOnlyError": "READONLY",
    "BusyLoadingError": "LOADING",
    "TryAgainError": "TRYAGAIN",
    "MasterDownError": "MASTERDOWN",
}


def now_us() -> int:
    """The one clock of the client side: rises steadily, tells nothing of the time of day."""
    return time.clock_gettime_ns(_CLOCK) // 1_000


class InheritedError(RuntimeError):
    """In a forked child: what is going on there was begun by its parent, and is the parent's."""


# How often this process, or one that it descends from, has begun to fork.
_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(before=_count_fork)


def forks_begun() -> int:
    return _forks


def refuse_if_inherited(owner_pid: int) -> None:
    if os.getpid() != owner_pid:
        raise InheritedError("this call was begun by the parent of a forked process")


class _PacedSocket:
    """A connected socket that is told before each wait how long it may take, and refuses to be
    used in a forked child. Reads that do not wait (redis-py looks for news so) are let through.
    """

    def __init__(self, sock: Any, connection: _DeadlineMixin) -> None:
        self._sock = sock
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendall(self, data: bytes) -> None:
        self._connection.begin_waiting()
        self._pace()
        self._sock.sendall(data)

    def recv(self, *args: Any) -> Any:
        return self._received(self._sock.recv, *args)

    def recv_into(self, *args: Any) -> Any:
        return self._received(self._sock.recv_into, *args)

    def _received(self, receive: Callable[..., Any], *args: Any) -> Any:
        while True:
            self._pace()
            try:
                received = receive(*args)
            except TimeoutError:
                if not self._connection.goes_on_waiting():
                    raise
                continue
            refuse_if_inherited(self._connection.owner_pid)
            return received

    def _pace(self) -> None:
        refuse_if_inherited(self._connection.owner_pid)
        if self._sock.gettimeout() != 0:
            left_us = self._connection.wait_until_us - now_us()
            if left_us <= 0:
                raise TimeoutError("timed out")
            if self._connection.is_there is not None:
                left_us = min(left_us, self._connection.read_timeout_us)
            self._sock.settimeout(left_us / 1_000_000)


class _DeadlineMixin:
    """A redis-py connection whose every wait ends at `deadline_us` at the latest."""

    owner_pid = 0
    connect_timeout_us = 0
    read_timeout_us = 0
    deadline_us = 0
    wait_until_us = 0
    reply_by_us: int | None = None
    is_there: Callable[[], bool] | None = None
    _sock: Any
    socket_timeout: float | None
    socket_connect_timeout: float | None

    @property
    def is_dialled(self) -> bool:
        return self._sock is not None

    def dial(self) -> None:
        """Raises RedisError; nothing but greetings has been sent then."""
        self.socket_connect_timeout = self._left_s(self.connect_timeout_us)
        self.socket_timeout = self._left_s(self.read_timeout_us)
        self.connect()  # type: ignore[attr-defined]

    def begin_waiting(self) -> None:
        """Before each send, and for each reply, however many pieces it comes in."""
        usual_us = min(self.deadline_us, now_us() + self.read_timeout_us)
        self.wait_until_us = usual_us if self.reply_by_us is None else self.reply_by_us

    def goes_on_waiting(self) -> bool:
        """Whether to, after a while without a word from the node."""
        if self.is_there is None or self.wait_until_us <= now_us():
            return False
        return self.is_there()

    def read_reply(self, reply_by_us: int, is_there: Callable[[], bool] | None) -> Any:
        """The reply to the one request that was sent; `is_there` looks after a node that is to
        take longer for it. Raises RedisError or OSError.
        """
        self.reply_by_us, self.is_there = reply_by_us, is_there
        try:
            return self.read_response()
        finally:
            self.reply_by_us = self.is_there = None

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        # redis-py reads the replies to its greetings through here as well.
        self.begin_waiting()
        return super().read_response(*args, **kwargs)  # type: ignore[misc]

    def _connect(self) -> Any:
        return _PacedSocket(super()._connect(), self)  # type: ignore[misc]

    def _left_s(self, timeout_us: int) -> float:
        """Seconds; never 0, which would mean not to wait but to fail in another way."""
        left_us = min(timeout_us, self.deadline_us - now_us())
        if left_us <= 0:
            raise RedisTimeoutError("the deadline has passed")
        return left_us / 1_000_000


_FAMILY = Family(parse_url, Connection, UnixDomainSocketConnection, Retry, _DeadlineMixin)


def target_of(url: str) -> Target:
    """Raises TypeError or ValueError."""
    return Target.from_url(url, _FAMILY)


class Endpoint:
    """One node: its idle connections, the last used first. Safe to share between threads, and with
    the handlers of signals: these may come in the middle of anything here, so there is no lock that
    they could find locked. What a list does, `pop` and `append`, is done at once.
    """

    def __init__(self, target: Target, *, connect_timeout_ms: int, read_timeout_ms: int) -> None:
        self.label = target.label
        self._target = target
        self._connect_timeout_us = connect_timeout_ms * 1_000
        self._read_timeout_us = read_timeout_ms * 1_000
        self._idle: list[Any] = []
        self._closed = False
        self._pid = os.getpid()
        self._heard_us = 0

    def attempt(self, call: Call) -> Seen:
        """Sends the request once, at most. Only a bug, a fork, a signal or the like raises."""
        forks = forks_begun()
        try:
            connection = self._ready(call)
        except RedisError as error:
            return seen_of(error, otherwise=Fate.NOT_SENT if forks == forks_begun() else Fate.LOST)
        in_step = False
        try:
            sent_us = now_us()
            connection.send_command(*call.sending(sent_us), check_health=False)
            reply_by_us = call.reply_by_us(sent_us, self._read_timeout_us)
            look = None if call.wait_until_us <= sent_us else lambda: self._is_there(call)
            value = connection.read_reply(reply_by_us, look)
            in_step = True
            return Seen(Fate.ANSWERED, value=value)
        except (RedisError, OSError) as error:
            # An error of this class was returned as a reply; the others cost the connection.
            in_step = isinstance(error, ResponseError)
            return seen_of(error, otherwise=Fate.LOST)
        finally:
            self._after_use(connection, in_step)

    def _is_there(self, call: Call) -> bool:
        """Whether the node, silent towards `call` for a read time-out, answers anybody at all."""
        if now_us() - self._heard_us >= self._read_timeout_us:
            seen = self.attempt(ping_call(self._connect_timeout_us + self._read_timeout_us))
            if not shows_life(seen):
                return False
        call.node_is_there(now_us())
        return True

    def close(self) -> None:
        """Closes the idle connections; one in use is closed after its use."""
        self._closed = True
        while (connection := self._pop_idle()) is not None:
            connection.disconnect()

    def _ready(self, call: Call) -> Any:
        """A connection on which nothing is under way; raises RedisError if there is none."""
        connection = self._quiet_idle() or self._new_connection()
        connection.deadline_us = deadline_us = call.deadline_us
        connection.connect_timeout_us = call.timeout_us(self._connect_timeout_us)
        connection.read_timeout_us = call.timeout_us(self._read_timeout_us)
        try:
            if not connection.is_dialled:
                connection.dial()
            if deadline_us - now_us() < SENDING_MIN_US:
                raise RedisTimeoutError("the deadline leaves no time for an answer")
            if not connection.is_dialled:  # or redis-py would dial while it sends
                raise RedisConnectionError("the connection is closed")
        except BaseException:
            connection.disconnect()
            raise
        return connection

    def _quiet_idle(self) -> Any:
        while True:
            connection = self._pop_idle()
            if connection is None or _is_quiet(connection):
                return connection
            connection.disconnect()

    def _pop_idle(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _new_connection(self) -> Any:
        connection = self._target.connection()
        connection.owner_pid = self._pid
        return connection

    def _after_use(self, connection: Any, in_step: bool) -> None:
        if in_step:
            self._heard_us = now_us()
        if in_step and len(self._idle) < IDLE_CONNECTIONS_MAX:
            self._idle.append(connection)
        else:
            connection.disconnect()
        if self._closed:  # perhaps only just
            self.close()


def _is_quiet(connection: Any) -> bool:
    """False if the node has hung up meanwhile, or has said something that nobody asked for.

    Worth a system call: it tells "not sent" from "lost" for all idle connections to a dead node.
    """
    try:
        return not connection.can_read(timeout=0)
    except (RedisError, OSError):
        return False


def ping_call(timeout_us: int) -> Call:
    """For one attempt at one node."""
    return Call(
        ping_request(),
        node_count=1,
        first_node=0,
        deadline_us=now_us() + timeout_us,
        jitter=random.random,
    )


def shows_life(seen: Seen) -> bool:
    """Whether the node said anything at all, even if only that it has no room for us."""
    if seen.fate in (Fate.NOT_SENT, Fate.LOST):
        return "max number of clients" in str(seen.error)
    return True


def seen_of(error: Exception, otherwise: Fate) -> Seen:
    """`otherwise` is the fate of an attempt whose error is not an answer of the node's."""
    code = _code_of(error)
    if code is None:
        return Seen(otherwise, error=error)
    if code in NOT_EXECUTED_CODES:
        return Seen(Fate.NOT_EXECUTED, error=error)
    if code == GONE_CODE:
        return Seen(Fate.GONE, error=error)
    if code in REFUSAL_CODES and (refusal := _refusal_of(code, error)) is not None:
        return Seen(Fate.ANSWERED, value=refusal, error=error)
    return Seen(Fate.REJECTED, error=error)


def _refusal_of(code: str, error: Exception) -> Refusal | None:
    """None if it does not say what it has to."""
    if code != "VERSION":
        return Refusal(code)
    last = str(error).rpartition(" ")[2]
    return Refusal(code, int(last)) if last.isdecimal() else None


def _code_of(error: Exception) -> str | None:
    """The code word of an error that the node answered; None if it answered nothing."""
    if not isinstance(error, (ResponseError, BusyLoadingError, AuthenticationError)):
        return None
    code = getattr(error, "status_code", None) or _CODE_BY_CLASS.get(type(error).__name__)
    return code or str(error).partition(" ")[0]


class NodesBase:
    """All the nodes of a Clerk, in one process; `primary` is the one that answered last."""

    def __init__(self, node_count: int) -> None:
        self.primary = 0
        self.node_count = node_count
        self._pid = os.getpid()

    @property
    def is_inherited(self) -> bool:
        """True in a forked child. Greenlets live on there, in the middle of their parent's calls:
        what such a one goes on to send would be sent twice, and what it reads is not for it.
        """
        return os.getpid() != self._pid

    def call(self, request: Request, deadline_us: int) -> Call:
        """A call that ends in `deadline_us`."""
        return self._call(request, deadline_us=now_us() + deadline_us)

    def renew_call(self, request: Request, lease_ms: int, deadline_us: int) -> Call:
        """A RENEW that ends in `deadline_us`, and waits no longer for a reply than it has use."""
        ends_us = now_us() + deadline_us
        return self._call(request, deadline_us=ends_us, attempt_us=renewal_attempt_us(lease_ms))

    def lock_call(self, request: Request, wanted: Wanted, deadline_us: int) -> Call:
        """A LOCK that ends in `deadline_us`, not counting its wait."""
        begun_us = now_us()
        until_us = wanted.wait_of_one_request(begun_us)
        if wanted.wait_until_us is None:
            ends = {"deadline_us": begun_us + deadline_us, "patience_us": deadline_us}
        else:
            ends = {"deadline_us": max(begun_us, until_us) + deadline_us}
        return self._call(request, wait_until_us=until_us, **ends)

    def _call(self, request: Request, **options: int) -> Call:
        return Call(
            request,
            node_count=self.node_count,
            first_node=self.primary,
            jitter=random.random,
            **options,
        )


class Nodes(NodesBase):
    """Those of Clerk."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        super().__init__(len(endpoints))
        self.endpoints = tuple(endpoints)

    def perform(self, call: Call) -> Finish:
        """Makes the attempts that `call` decides on, until its verdict."""
        step: Send | Finish = call.start()
        while isinstance(step, Send):
            if step.delay_us:
                time.sleep(step.delay_us / 1_000_000)
            refuse_if_inherited(self._pid)
            seen = self.endpoints[step.node].attempt(call)
            refuse_if_inherited(self._pid)
            step = call.observe(seen, now_us())
        if step.node is not None:
            self.primary = step.node
        return step

    def close(self) -> None:
        for endpoint in self.endpoints:
            endpoint.close()
