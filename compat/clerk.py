"""Clerk: takes and gives back named locks on a pair of nodes, and follows a failover by itself.

What to do about each thing that can happen is decided in `attempts`, sending and receiving is in
`endpoints`; here they are joined, for any number of threads or greenlets.

Undoing. An `acquire` whose outcome stayed unknown may have been granted, and nobody else would
ever give that lock back. So it is undone in the background, by a daemon thread that is started when
there is something to undo and ends when there is not:
  - not "when the Clerk is next used": a program that has just got IndeterminateError may well
    idle, or end, and its lock would stay held; and the next call would pay for the last;
  - in a program patched by gevent the thread is a greenlet, in any other a thread, since
    `threading` and `time` are looked up when used. Nothing is ever patched here;
  - after a fork the child has neither the thread nor the work: undoing stays the parent's;
  - a daemon, so that no program is kept from ending for a node that may never come back. The end
    of the program and `close()` wait a bounded while for it instead.
"""

from __future__ import annotations

import atexit
import logging
import os
import random
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple

from .attempts import (
    NAME_BYTES_MAX,
    Aftermath,
    Call,
    Client,
    ClientPool,
    Finish,
    Kind,
    Request,
    Verdict,
    acquire_request,
    aftermath,
    inspect_request,
    release_request,
    undo_request,
)
from .endpoints import Endpoint, InheritedError, Nodes, Target, now_us
from .errors import ClerkError, IndeterminateError, UnavailableError

_log = logging.getLogger(__name__)

# How long close(), and the end of the program, wait for undos that are under way.
UNDO_AT_END_MS = 1_000

# How often close() looks whether they are done.
UNDO_POLL_S = 0.002

# An undo that had to stand in line behind others still gets this long.
UNDO_MIN_MS = 1_000

# Abandoned requests remembered for undoing: while no node answers there may be one a deadline for
# every thread; with more than this the oldest is given up, aloud.
UNDO_QUEUE_MAX = 1_024


class Clerk:
    """A client of a lock server pair: `Clerk("redis://h1:6379", "redis://h2:6380")`.

    Share one between all threads and greenlets. After a fork, parent and child may both go on with
    it: the child starts with connections and client ids of its own. Times are in milliseconds:

    deadline_ms         for one call, retries and failover included
    connect_timeout_ms  for dialling a node once
    read_timeout_ms     for one reply, before the other node is asked
    undo_ms             for undoing, in the background, an `acquire` whose outcome stayed unknown

    Every call may raise UnavailableError (not done: no node took it), IndeterminateError (nobody
    can say whether it was done; not from `inspect`), or what redis-py raises for an error that a
    node answered, such as -NOAUTH or -ERR (not done).
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
            raise ValueError('Clerk needs the URL of a node, such as "redis://127.0.0.1:6379"')
        self._deadline_us = _length_ms("deadline_ms", deadline_ms) * 1_000
        self._connect_timeout_ms = _length_ms("connect_timeout_ms", connect_timeout_ms)
        self._read_timeout_ms = _length_ms("read_timeout_ms", read_timeout_ms)
        self._undo_ms = _length_ms("undo_ms", undo_ms)
        self._targets = [Target.from_url(url) for url in urls]
        self._closed = False
        self._begin()
        _clerks.add(self)

    def acquire(self, name: str | bytes) -> int:
        """The fencing token (above 0) if the lock was granted, 0 if somebody holds it."""
        return self._change(acquire_request, name)

    def release(self, name: str | bytes) -> bool:
        """True if the lock was held, by whomever, and now is not; False if it was not held."""
        return self._change(release_request, name) == 1

    def inspect(self, name: str | bytes) -> dict[str, Any]:
        """What INSPECT shows: `state`, `owner` (bytes), `fencing_token`, `held_ms`, ..."""
        request = inspect_request(_lock_name(name))
        finish = self._open_session().perform(request, self._deadline_us)
        if finish.verdict is not Verdict.ANSWERED:
            raise _error(request, finish)
        return _fields(finish.value)

    def close(self) -> None:
        """Closes all connections, after waiting a second at most for undos that are under way (any
        left over go on in the background). Calls under way end as usual; new ones are refused.
        """
        if not self._closed:
            self._closed = True
            self._session.close()

    def __enter__(self) -> Clerk:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Clerk {' '.join(target.label for target in self._targets)}>"

    def _begin(self) -> None:
        """At the start, and again in every forked child: nothing in common with the parent."""
        self._session = _Session(
            [
                Endpoint(
                    target,
                    connect_timeout_ms=self._connect_timeout_ms,
                    read_timeout_ms=self._read_timeout_ms,
                )
                for target in self._targets
            ],
            self._undo_ms,
        )

    def _open_session(self) -> _Session:
        if self._closed:
            raise RuntimeError("this Clerk is closed")
        return self._session

    def _change(self, build: Callable[[Client, bytes], Request], name: str | bytes) -> int:
        lock_name = _lock_name(name)
        return self._open_session().change(build, lock_name, self._deadline_us)


class _Session:
    """What a Clerk has of its own in one process: connections, client ids, undos under way."""

    def __init__(self, endpoints: Sequence[Endpoint], undo_ms: int) -> None:
        self._nodes = Nodes(endpoints)
        self._clients = ClientPool(lambda: secrets.token_hex(8))
        self._lock = threading.Lock()
        self._undoer = _Undoer(self, undo_ms)

    def change(
        self, build: Callable[[Client, bytes], Request], name: bytes, deadline_us: int
    ) -> int:
        """The answer to a request that changes something, under a client id of this process.

        Between the answer and the caller nothing may raise unnoticed (R5). So settling is the last
        thing inside the `try`, and nothing that follows it, from here to the caller, makes a call.
        """
        client = self.borrow()
        request = build(client, name)
        call = self._call(request, deadline_us)
        try:
            finish = self._nodes.perform(call)
            value: int = finish.value
            self._settle(client, request, finish)
            if finish.verdict is Verdict.ANSWERED:
                return value
        except BaseException:
            # A signal, or a greenlet killed (gevent.Timeout): the caller will never have the
            # answer, so a lock that was granted has to be given back.
            self._settle(client, request, call.interrupt())
            raise
        raise _error(request, finish)

    def perform(self, request: Request, deadline_us: int) -> Finish:
        return self._nodes.perform(self._call(request, deadline_us))

    def borrow(self) -> Client:
        with self._lock:
            return self._clients.borrow()

    def give_back(self, client: Client) -> None:
        self._clients.give_back(client)

    @property
    def is_inherited(self) -> bool:
        return self._nodes.is_inherited

    def close(self) -> None:
        self._undoer.wait_idle(UNDO_AT_END_MS)
        self._nodes.close()

    def _call(self, request: Request, deadline_us: int) -> Call:
        return Call(
            request,
            node_count=len(self._nodes.endpoints),
            first_node=self._nodes.primary,
            deadline_us=now_us() + deadline_us,
            jitter=random.random,
        )

    def _settle(self, client: Client, request: Request, finish: Finish) -> None:
        if self.is_inherited:
            return  # the client id, and the undoing, are the parent's
        if not client.lent:
            self._undoer.start()  # it was settled before the interruption, or nearly so
            return
        match aftermath(request.kind, finish):
            case Aftermath.REUSE:
                self.give_back(client)
            case Aftermath.UNDO:
                self._undoer.add(client, request)
            case Aftermath.RETIRE:
                client.lent = False
                _log.warning(
                    "%s %r: the server no longer knows request id %s; its client id is given up",
                    request.command,
                    request.name,
                    request.request_id.decode(),
                )


class _Abandoned(NamedTuple):
    """An acquire of unknown outcome. The undo is numbered at once and sent as often as needed."""

    client: Client
    undo: Request
    deadline_us: int


class _Undoer:
    """Undoes abandoned acquires one after the other, in a thread that lives while there are any."""

    def __init__(self, session: _Session, undo_ms: int) -> None:
        self._session = session
        self._undo_us = undo_ms * 1_000
        self._lock = threading.Lock()
        self._queue: deque[_Abandoned] = deque()
        self._running = False
        self._undoing = 0

    def add(self, client: Client, abandoned: Request) -> None:
        """Takes over the loan of the client id."""
        loan = Client(client.client_id, client.last_n)
        job = _Abandoned(loan, undo_request(loan, abandoned), now_us() + self._undo_us)
        with self._lock:
            if len(self._queue) == UNDO_QUEUE_MAX:
                _give_up(self._queue.popleft(), "too many others to undo")
            client.lent = False  # no signal's handler comes between this and the next line
            self._queue.append(job)
        self.start()

    def wait_idle(self, timeout_ms: int) -> None:
        """Returns once nothing is left to undo, or after that time.

        It looks now and then. A threading.Event, which `add` would have to clear, is no lock that
        a signal's handler may interrupt: it can be left locked for good.
        """
        self.start()
        deadline_us = now_us() + timeout_ms * 1_000
        while (self._queue or self._undoing) and now_us() < deadline_us:
            time.sleep(UNDO_POLL_S)

    def start(self) -> None:
        """Has a thread at work if there is any to do."""
        starting = False
        try:
            with self._lock:
                if self._running or not self._queue:
                    return
                starting = self._running = True
            _undoers.add(self)
            threading.Thread(target=self._run, name="holdfast-undo", daemon=True).start()
        except BaseException as error:
            # No thread to be had: the next abandoned acquire, or close(), tries again. So does
            # whoever was interrupted here, if need be with a second thread, which does no harm.
            if starting:
                self._running = False
            if not isinstance(error, RuntimeError):
                raise
            _log.warning("cannot undo abandoned acquires yet: %s", error)

    def _run(self) -> None:
        while (job := self._next_job()) is not None:
            try:
                self._undo(job)
            except InheritedError:
                pass  # a greenlet that lives on in a forked child: the work is the parent's
            except Exception:
                _log.exception("undoing %s went wrong", job.undo.words)
            finally:
                with self._lock:
                    self._undoing -= 1

    def _next_job(self) -> _Abandoned | None:
        with self._lock:
            if self._queue and not self._session.is_inherited:
                self._undoing += 1
                return self._queue.popleft()
            self._running = False
            _undoers.discard(self)
            return None

    def _undo(self, job: _Abandoned) -> None:
        left_us = max(job.deadline_us - now_us(), UNDO_MIN_MS * 1_000)
        finish = self._session.perform(job.undo, left_us)
        if aftermath(job.undo.kind, finish) is Aftermath.REUSE:
            self._session.give_back(job.client)
        else:
            _give_up(job, str(finish.lost or finish.error))


def _give_up(job: _Abandoned, reason: str) -> None:
    _log.warning(
        "gave up undoing the acquire of %r: %s; it may stay held by owner %s until it is unlocked",
        job.undo.name,
        reason,
        job.undo.words[-1].decode(),
    )


def _error(request: Request, finish: Finish) -> Exception:
    """What the caller of a request that was not answered is to be told."""
    assert finish.verdict is not Verdict.ANSWERED
    if finish.verdict is Verdict.REJECTED:
        assert finish.error is not None
        return finish.error
    told = (request.command, request.name, request.request_id, finish.tries, _reason(finish))
    error: ClerkError = (
        UnavailableError(*told)
        if finish.verdict is Verdict.UNAVAILABLE
        else IndeterminateError(*told, _assume(request, finish))
    )
    error.__cause__ = finish.error
    return error


def _reason(finish: Finish) -> str:
    if finish.gone:
        return f"the server no longer knows its outcome ({finish.error})"
    if finish.lost is None or finish.lost is finish.error:
        return str(finish.error)
    return f"{finish.lost}, and at the last try: {finish.error}"


def _assume(request: Request, finish: Finish) -> str:
    """What the caller is to do, and what Clerk will."""
    if request.kind is Kind.RELEASE:
        return "stop using what the lock protects, treat it as released"
    if aftermath(request.kind, finish) is Aftermath.UNDO:
        undone = "if the lock was granted, Clerk gives it back in the background"
    else:
        undone = "if the lock was granted, it is held until somebody unlocks it"
    return f"do not enter the critical section; {undone}"


def _lock_name(name: str | bytes) -> bytes:
    if isinstance(name, str):
        encoded = name.encode()
    elif isinstance(name, bytes):
        encoded = name
    else:
        raise TypeError(f"a lock's name must be str or bytes, not {type(name).__name__}")
    if not 1 <= len(encoded) <= NAME_BYTES_MAX:
        raise ValueError(f"a lock's name has 1 to {NAME_BYTES_MAX} bytes, not {len(encoded)}")
    return encoded


def _length_ms(what: str, value: int) -> int:
    if type(value) is not int:
        raise TypeError(f"{what} must be an int, in milliseconds, not {type(value).__name__}")
    if value <= 0:
        raise ValueError(f"{what} must be above 0, not {value}")
    return value


def _fields(reply: list[Any] | dict[Any, Any]) -> dict[str, Any]:
    """INSPECT's reply: a map, which RESP2 flattens. Names and states are text, owners are not."""
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    fields = {key.decode(): value for key, value in pairs}
    if isinstance(state := fields.get("state"), bytes):
        fields["state"] = state.decode()
    return fields


_clerks: weakref.WeakSet[Clerk] = weakref.WeakSet()
_undoers: set[_Undoer] = set()


def _begin_anew_in_child() -> None:
    _undoers.clear()
    for clerk in list(_clerks):
        clerk._begin()


def _wait_for_undos_at_exit() -> None:
    deadline_us = now_us() + UNDO_AT_END_MS * 1_000
    for undoer in list(_undoers):
        undoer.wait_idle(max(0, deadline_us - now_us()) // 1_000)


os.register_at_fork(after_in_child=_begin_anew_in_child)
atexit.register(_wait_for_undos_at_exit)
