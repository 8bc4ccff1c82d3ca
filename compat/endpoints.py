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
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.backoff import NoBackoff
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
    SENDING_MIN_US,
    Call,
    Fate,
    Finish,
    Seen,
    Send,
)

# More threads than this at once pay for a new connection now and then.
IDLE_CONNECTIONS_MAX = 128

# What a URL must not say, since Clerk says it.
_DECIDED_BY_CLERK = (
    "decode_responses",
    "encoding",
    "encoding_errors",
    "health_check_interval",
    "max_connections",
    "protocol",
    "retry",
    "retry_on_error",
    "retry_on_timeout",
    "socket_connect_timeout",
    "socket_timeout",
    "timeout",
)

_parse_url: Callable[[str], dict[str, Any]] = parse_url

# The code word of an error, where redis-py cut it from the message. From version 7 on it is kept as
# `status_code`; which classes there are differs, so they go by name.
_CODE_BY_CLASS = {
    "ReadOnlyError": "READONLY",
    "BusyLoadingError": "LOADING",
    "TryAgainError": "TRYAGAIN",
    "MasterDownError": "MASTERDOWN",
}


def now_us() -> int:
    """The clock of all deadlines here: rises steadily, tells nothing of the time of day."""
    return time.monotonic_ns() // 1_000


class InheritedError(RuntimeError):
    """In a forked child: what is going on there was begun by its parent, and is the parent's."""


# How often this process, or one that it descends from, has begun to fork.
_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(before=_count_fork)


def _refuse_if_inherited(owner_pid: int) -> None:
    if os.getpid() != owner_pid:
        raise InheritedError("this call was begun by the parent of a forked process")


@dataclass(frozen=True)
class Target:
    """Where a node is, as its URL says. `label` is fit for messages: it has no password."""

    label: str
    connection_class: type[Any]
    options: dict[str, Any]

    @classmethod
    def from_url(cls, url: str) -> Target:
        """Raises TypeError or ValueError, with the reason, for a URL that cannot be used."""
        if not isinstance(url, str):
            raise TypeError(f"a node's URL must be a str, not {type(url).__name__}")
        options = _parse_url(url)
        if options.pop("db", 0) != 0:
            raise ValueError("there is only database 0; leave the number out of the URL")
        if taken := sorted(set(_DECIDED_BY_CLERK) & options.keys()):
            raise ValueError(f"Clerk decides {', '.join(taken)}; leave it out of the URL")
        base = options.pop("connection_class", Connection)
        if base is UnixDomainSocketConnection:
            label = options.get("path", "")
        else:
            label = _host_and_port(options)
            _check_host(options.get("host", ""))
            options.setdefault("socket_keepalive", True)
        target = cls(label, type("ClerkConnection", (_DeadlineMixin, base), {}), options)
        try:
            target.connection()
        except (TypeError, RedisError) as error:
            raise ValueError(f"the URL for {label} has an option of no use: {error}") from error
        return target

    def connection(self) -> Any:
        """A new connection, not yet dialled, that never sends anything twice."""
        return self.connection_class(
            **self.options,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            retry_on_timeout=False,
            health_check_interval=0,
        )


def _host_and_port(options: dict[str, Any]) -> str:
    host, port = options.get("host", "localhost"), options.get("port", 6379)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_host(host: str) -> None:
    """As looking it up would: an error that is no OSError, and comes only with the first call."""
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise ValueError(f"{host!r:.80} cannot be a host name: {error}") from error


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
        self._pace()
        received = self._sock.recv(*args)
        _refuse_if_inherited(self._connection.owner_pid)
        return received

    def recv_into(self, *args: Any) -> Any:
        self._pace()
        received = self._sock.recv_into(*args)
        _refuse_if_inherited(self._connection.owner_pid)
        return received

    def _pace(self) -> None:
        _refuse_if_inherited(self._connection.owner_pid)
        if self._sock.gettimeout() != 0:
            left_us = self._connection.wait_until_us - now_us()
            if left_us <= 0:
                raise TimeoutError("timed out")
            self._sock.settimeout(left_us / 1_000_000)


class _DeadlineMixin:
    """A redis-py connection whose every wait ends at `deadline_us` at the latest."""

    owner_pid = 0
    connect_timeout_us = 0
    read_timeout_us = 0
    deadline_us = 0
    wait_until_us = 0
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
        self.wait_until_us = min(self.deadline_us, now_us() + self.read_timeout_us)

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


class Endpoint:
    """One node: its idle connections, the last used first. Safe to share between threads."""

    def __init__(self, target: Target, *, connect_timeout_ms: int, read_timeout_ms: int) -> None:
        self.label = target.label
        self._target = target
        self._connect_timeout_us = connect_timeout_ms * 1_000
        self._read_timeout_us = read_timeout_ms * 1_000
        self._lock = threading.Lock()
        self._idle: list[Any] = []
        self._closed = False
        self._pid = os.getpid()

    def attempt(self, words: Sequence[bytes], deadline_us: int) -> Seen:
        """Sends the request once, at most. Only a bug, a fork, a signal or the like raises."""
        forks = _forks
        try:
            connection = self._ready(deadline_us)
        except RedisError as error:
            return _seen_of(error, otherwise=Fate.NOT_SENT if forks == _forks else Fate.LOST)
        in_step = False
        try:
            connection.send_command(*words, check_health=False)
            value = connection.read_response()
            in_step = True
            return Seen(Fate.ANSWERED, value=value)
        except (RedisError, OSError) as error:
            # An error of this class was returned as a reply; the others cost the connection.
            in_step = isinstance(error, ResponseError)
            return _seen_of(error, otherwise=Fate.LOST)
        finally:
            self._after_use(connection, in_step)

    def close(self) -> None:
        """Closes the idle connections; one in use is closed after its use."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.disconnect()

    def _ready(self, deadline_us: int) -> Any:
        """A connection on which nothing is under way; raises RedisError if there is none."""
        connection = self._quiet_idle() or self._new_connection()
        connection.deadline_us = deadline_us
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
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None or _is_quiet(connection):
                return connection
            connection.disconnect()

    def _new_connection(self) -> Any:
        connection = self._target.connection()
        connection.owner_pid = self._pid
        connection.connect_timeout_us = self._connect_timeout_us
        connection.read_timeout_us = self._read_timeout_us
        return connection

    def _after_use(self, connection: Any, in_step: bool) -> None:
        with self._lock:
            keep = in_step and not self._closed and len(self._idle) < IDLE_CONNECTIONS_MAX
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.disconnect()


def _is_quiet(connection: Any) -> bool:
    """False if the node has hung up meanwhile, or has said something that nobody asked for.

    Worth a system call: it tells "not sent" from "lost" for all idle connections to a dead node.
    """
    try:
        return not connection.can_read(timeout=0)
    except (RedisError, OSError):
        return False


def _seen_of(error: Exception, otherwise: Fate) -> Seen:
    """`otherwise` is the fate of an attempt whose error is not an answer of the node's."""
    code = _code_of(error)
    if code is None:
        return Seen(otherwise, error=error)
    if code in NOT_EXECUTED_CODES:
        return Seen(Fate.NOT_EXECUTED, error=error)
    if code == GONE_CODE:
        return Seen(Fate.GONE, error=error)
    return Seen(Fate.REJECTED, error=error)


def _code_of(error: Exception) -> str | None:
    """The code word of an error that the node answered; None if it answered nothing."""
    if not isinstance(error, (ResponseError, BusyLoadingError, AuthenticationError)):
        return None
    code = getattr(error, "status_code", None) or _CODE_BY_CLASS.get(type(error).__name__)
    return code or str(error).partition(" ")[0]


class Nodes:
    """All the nodes of a Clerk, in one process; `primary` is the one that answered last."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.endpoints = tuple(endpoints)
        self.primary = 0
        self._pid = os.getpid()

    @property
    def is_inherited(self) -> bool:
        """True in a forked child. Greenlets live on there, in the middle of their parent's calls:
        what such a one goes on to send would be sent twice, and what it reads is not for it.
        """
        return os.getpid() != self._pid

    def perform(self, call: Call) -> Finish:
        """Makes the attempts that `call` decides on, until its verdict."""
        step: Send | Finish = call.start()
        while isinstance(step, Send):
            if step.delay_us:
                time.sleep(step.delay_us / 1_000_000)
            _refuse_if_inherited(self._pid)
            endpoint = self.endpoints[step.node]
            seen = endpoint.attempt(call.request.words, call.deadline_us)
            _refuse_if_inherited(self._pid)
            step = call.observe(seen, now_us())
        if step.node is not None:
            self.primary = step.node
        return step

    def close(self) -> None:
        for endpoint in self.endpoints:
            endpoint.close()
