"""Clerk: takes and gives back named locks on a pair of nodes, reads and writes versioned registers,
and follows a failover by itself.

What to do about each thing that can happen is decided in `attempts`, `leases` and `registers`,
sending and receiving is in `endpoints`; here they are joined, for any number of threads or
greenlets.

In a program patched by gevent the threads of this package are greenlets, in any other they are
threads, since `threading` and `time` are looked up when used. Nothing is ever patched here. They
are daemons: no program is kept from ending for a node that may never come back.
"""

from __future__ import annotations

import atexit
import copy
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

from . import sessions
from .arguments import fencing_token as checked_token
from .arguments import glob_pattern, length_ms, lock_name, register_key
from .attempts import (
    Client,
    Request,
    inspect_request,
    locks_request,
    release_request,
    renew_request,
    verify_request,
)
from .endpoints import Endpoint, InheritedError, Nodes, now_us, target_of
from .errors import NoKeyError, VersionError
from .leases import Acquisition, Wanted
from .lock import Lock
from .outcomes import REFUSED, FencingToken, fields_of, page_of, value_of
from .registers import Fence, Put, Update, Versioned, fence_of, get_request, left_alone, put_of
from .sessions import Abandoned, SessionBase, Undos, new_clients, wanted

_log = logging.getLogger(__name__)

# How often close() looks whether the undos are done.
UNDO_POLL_S = 0.002


class Clerk:
    """A client of a lock server pair: `Clerk("redis://h1:6379", "redis://h2:6380")`, or, for short,
    `Clerk("h1:6379", "h2:6380")`.

    Share one between all threads and greenlets. After a fork, parent and child may both go on with
    it: the child starts with connections and client ids of its own. Times are in milliseconds:

    deadline_ms         for one call, retries and failover included, a wait in line not
    connect_timeout_ms  for dialling a node once
    read_timeout_ms     for one reply, before the other node is asked; a wait in line may be longer
    undo_ms             for undoing, in the background, an `acquire` whose outcome stayed unknown

    Every call may raise UnavailableError (not done: no node took it), IndeterminateError (nobody
    can say whether it was done; only from those that change something), or what redis-py raises for
    an error that a node answered, such as -NOAUTH or -ERR (not done).
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
        self._deadline_us = length_ms("deadline_ms", deadline_ms) * 1_000
        self._connect_timeout_ms = length_ms("connect_timeout_ms", connect_timeout_ms)
        self._read_timeout_ms = length_ms("read_timeout_ms", read_timeout_ms)
        self._undo_ms = length_ms("undo_ms", undo_ms)
        self._targets = [target_of(url) for url in urls]
        self._closed = False
        self._begin()
        _clerks.add(self)

    def acquire(
        self,
        name: str | bytes,
        lease_ms: int | None = None,
        wait_ms: int | None = 0,
        owner: str | bytes | None = None,
    ) -> FencingToken:
        """The fencing token (above 0) if the lock was granted, 0 if not.

        lease_ms   the lock ends by itself so long after its grant or its last renewal; do not
                   count on the last 2 % of that. None: it is held until it is released
        wait_ms    stands in line, first come first served, for so long; None: as long as it takes,
                   provided that there is a node to wait at (UnavailableError after deadline_ms)
        owner      what `inspect` shows others; by default the id of the request

        A grant is yours for what is left of its lease when this returns, counted so that clocks and
        slow networks cannot make it overlap with the next holder's: what comes too late is not
        counted as granted, and given back. The fencing token is an int that knows how long that is:
        `token.left_ms()` (None without a lease).
        """
        return self._acquire(wanted(name, lease_ms, wait_ms, owner)) or REFUSED

    def release(self, name: str | bytes, fencing_token: int | None = None) -> bool:
        """True if the lock was held and now is not, False if it was not held.

        With its fencing token only that very grant is released; without, the lock is released
        whoever holds it.
        """
        session = self._open_session()
        token = None if fencing_token is None else checked_token(fencing_token)
        return session.release(lock_name(name), token, self._deadline_us)

    def renew(self, name: str | bytes, fencing_token: int, lease_ms: int) -> bool:
        """Has the lease of that very grant begin anew; False if it is not the current one any more.

        A lease is never shortened. After an IndeterminateError it may be called again.
        """
        length_ms("lease_ms", lease_ms)
        return self._renew(name, fencing_token, lease_ms, self._deadline_us) is not None

    def verify(self, name: str | bytes, fencing_token: int) -> bool:
        """Whether that grant is still the current one: True is the truth of a moment ago."""
        request = verify_request(lock_name(name), checked_token(fencing_token))
        return bool(self._read(request))

    def inspect(self, name: str | bytes) -> dict[str, Any]:
        """What INSPECT shows: `state`, `owner` (bytes), `fencing_token`, `remaining_ms` (-1: no
        lease), `held_ms`, `waiter_count`, `waiters` (lists of owner and waiting ms), first in line
        first.
        """
        return fields_of(self._read(inspect_request(lock_name(name))))

    def locks(self, match: str | bytes | None = None) -> Iterator[dict[str, Any]]:
        """Walks the held locks, in no order, `match` being a pattern as KEYS has it. Each has
        `name` and `owner` (bytes), `fencing_token`, `remaining_ms`, `held_ms`, `waiter_count`. One
        that is held all the time of the walk is seen; others may be, or not.
        """
        pattern = glob_pattern(match)
        cursor = b"0"
        while True:
            request = locks_request(cursor, pattern, sessions.LOCKS_PAGE_COUNT)
            cursor, page = page_of(self._read(request))
            yield from page
            if cursor == b"0":
                return

    def lock(
        self,
        name: str | bytes,
        *,
        lease_ms: int | None = 30_000,
        wait_ms: int | None = None,
        renew: bool = False,
        on_lost: Callable[[Lock], object] | None = None,
        owner: str | bytes | None = None,
        thread_local: bool = True,
        raise_on_release_error: bool = True,
    ) -> Lock:
        """A lock object with the interface of redis-py's: `with clerk.lock("a") as lock: ...`

        wait_ms       as in `acquire`: None waits as long as it takes, 0 does not wait
        renew         renews the lease in the background while the lock is held and the object kept:
                      one that nothing refers to any more is renewed no more
        on_lost       is called with the lock, once for each grant that is lost, by whoever finds
                      that out: that background, or a call of `extend`, `reacquire` or `release`
        thread_local  each thread has a grant of its own, and knows of no other's; False: one that
                      all threads share, for a lock that one thread takes and another gives back
        raise_on_release_error  False: what goes wrong with the release at the end of a `with` is
                      logged and not raised
        """
        return Lock(
            self,
            name,
            lease_ms=lease_ms,
            wait_ms=wait_ms,
            renew=renew,
            on_lost=on_lost,
            owner=owner,
            thread_local=thread_local,
            raise_on_release_error=raise_on_release_error,
        )

    def get(self, key: str | bytes) -> Versioned:
        """The register's value and its version, to be unpacked; NoKeyError if there is none."""
        return self._open_session().get(register_key(key), self._deadline_us)

    def put(
        self,
        key: str | bytes,
        value: str | bytes,
        version: int,
        *,
        fence: Fence | None = None,
        once: bool = True,
    ) -> int:
        """Writes the register if it has that version, and returns the new one; 0 makes a register
        that is not there. Of several puts with one version one is done.

        fence  a lock's name and a fencing token, or a lock object that is held: writes only while
               that is the current grant of the lock
        once   the request has an id, for which the nodes remember the answer, as for a lock: sent
               again it is answered as it was the first time. False: nothing is remembered, and
               a put that was lost, sent again and refused may be what it was refused for

        Nothing was written, and a new reading is needed: VersionError (it has another version),
        NoKeyError (there is none, and `version` was above 0), StaleTokenError (the fence).
        Nobody knows whether it was written: IndeterminateError; with `once=False` also MaybeError,
        which a new reading settles.
        """
        put = put_of(key, value, version, fence)
        return self._open_session().put(put, once, self._deadline_us)

    def update(
        self,
        key: str | bytes,
        function: Callable[[bytes | None], str | bytes | None],
        *,
        fence: Fence | None = None,
        once: bool = True,
    ) -> Versioned:
        """Reads the register, writes what `function` makes of its value, and does both again while
        somebody else was faster; returns what was written, and its version.

        `function` is given None if there is no register, and may be called many times: it should do
        nothing but compute. Returns it None, the register is left as it is, and what `get` says of
        it is what this says.

        `fence` and `once` are those of `put`. Whoever was not faster by the deadline, in which the
        time that `function` takes is not counted, gets the VersionError (or NoKeyError) of the last
        try. After an IndeterminateError the last value that `function` returned may have been
        written, or not: to do it again may be to do it twice.
        """
        wanted = Update(self._deadline_us, now_us(), random.random)
        session = self._open_session()
        return session.update(register_key(key), function, fence_of(fence), once, wanted)

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

    def _copied(self) -> Clerk:
        """An open one like it, for what has to be brought to an end when this one was closed."""
        copied = copy.copy(self)
        copied._closed = False
        copied._begin()
        _clerks.add(copied)
        return copied

    def _open_session(self) -> _Session:
        if self._closed:
            raise RuntimeError("this Clerk is closed")
        return self._session

    def _acquire(self, wanted: Wanted) -> FencingToken | None:
        return self._open_session().acquire(wanted, self._deadline_us)

    def _release(self, name: str | bytes, token: int, deadline_us: int) -> bool:
        deadline_us = min(deadline_us, self._deadline_us)
        return self._open_session().release(lock_name(name), token, deadline_us)

    def _renew(self, name: str | bytes, token: int, lease_ms: int, deadline_us: int) -> int | None:
        """The instant from which the renewed lease counts; None if the grant is not current."""
        request = renew_request(lock_name(name), checked_token(token), lease_ms)
        deadline_us = min(deadline_us, self._deadline_us)
        return self._open_session().renew(request, lease_ms, deadline_us)

    def _read(self, request: Request) -> Any:
        return self._open_session().ask(request, self._deadline_us)


class _Session(SessionBase):
    """What a Clerk has of its own in one process."""

    _nodes: Nodes

    def __init__(self, endpoints: Sequence[Endpoint], undo_ms: int) -> None:
        nodes, clients = Nodes(endpoints), new_clients()
        self._undoer = _Undoer(nodes, clients, undo_ms)
        super().__init__(nodes, clients, self._undoer)

    def acquire(self, wanted: Wanted, deadline_us: int) -> FencingToken | None:
        """A lock, within its wait, or None.

        Between the answer and the caller nothing may raise unnoticed (R5). So settling is the last
        thing inside the `try`, and nothing that follows it, from here to the caller, makes a call.
        """
        while True:
            client = self.borrow()
            request = wanted.request(client)
            call = self._nodes.lock_call(request, wanted, deadline_us)
            acquisition = Acquisition(call, wanted.lease_ms)
            try:
                if acquisition.take(self._nodes.perform(call), now_us()):
                    left_us = acquisition.renewal_left_us(deadline_us)
                    renewal = self._nodes.call(acquisition.renewal(), left_us)
                    acquisition.confirm(renewal, self._nodes.perform(renewal), now_us())
                grant, finish = acquisition.grant, acquisition.finish
                token = None if grant is None else FencingToken(grant)
                self.settle(client, request, finish)
                if token is not None:
                    return token
            except BaseException:
                # A signal, or a greenlet killed (gevent.Timeout): the caller will never have the
                # answer, so a lock that was granted has to be given back.
                self.settle(client, request, call.interrupt())
                raise
            if not wanted.may_go_on_after(acquisition, now_us()):
                value_of(request, finish)
                return None

    def release(self, name: bytes, token: int | None, deadline_us: int) -> bool:
        return self.change(lambda client: release_request(client, name, token), deadline_us) == 1

    def change(self, build: Callable[[Client], Request], deadline_us: int) -> int:
        """The answer to a request that has an id, and needs no undoing."""
        client = self.borrow()
        request = build(client)
        call = self._nodes.call(request, deadline_us)
        try:
            finish = self._nodes.perform(call)
            self.settle(client, request, finish)
        except BaseException:
            self.settle(client, request, call.interrupt())
            raise
        return int(value_of(request, finish))

    def renew(self, request: Request, lease_ms: int, deadline_us: int) -> int | None:
        call = self._nodes.renew_call(request, lease_ms, deadline_us)
        renewed = value_of(request, self._nodes.perform(call))
        return call.first_sent_us if renewed else None

    def ask(self, request: Request, deadline_us: int) -> Any:
        """The answer to a request that has no id."""
        return value_of(request, self._nodes.perform(self._nodes.call(request, deadline_us)))

    def get(self, key: bytes, deadline_us: int) -> Versioned:
        return Versioned(*self.ask(get_request(key), deadline_us))

    def put(self, put: Put, once: bool, deadline_us: int) -> int:
        if once:
            return self.change(put.request, deadline_us)
        return int(self.ask(put.request(), deadline_us))

    def update(
        self,
        key: bytes,
        function: Callable[[bytes | None], str | bytes | None],
        fence: tuple[bytes, int] | None,
        once: bool,
        update: Update,
    ) -> Versioned:
        while True:
            found = self._find(key, update.left_us(now_us()))
            begun_us = now_us()
            value = function(None if found is None else found.value)
            update.applied(now_us() - begun_us)
            if value is None:
                return left_alone(key, found)
            put = put_of(key, value, 0 if found is None else found.version, fence)
            try:
                version = self.put(put, once, update.left_us(now_us()))
            except (VersionError, NoKeyError):
                pause_us = update.conflict(now_us())
                if pause_us is None:
                    raise
                time.sleep(pause_us / 1_000_000)
            else:
                return Versioned(put.value, version)

    def _find(self, key: bytes, deadline_us: int) -> Versioned | None:
        try:
            return self.get(key, deadline_us)
        except NoKeyError:
            return None

    def close(self) -> None:
        self._undoer.wait_idle(sessions.UNDO_AT_END_MS)
        self._nodes.close()


class _Undoer(Undos):
    """Undoes abandoned acquires in a thread that lives while there are any."""

    _nodes: Nodes

    def wait_idle(self, timeout_ms: int) -> None:
        """Returns once nothing is left to undo, or after that time.

        It looks now and then. A threading.Event, which `add` would have to clear, is no lock that
        a signal's handler may interrupt: it can be left locked for good.
        """
        self.start()
        deadline_us = now_us() + timeout_ms * 1_000
        while not self.is_idle and now_us() < deadline_us:
            time.sleep(UNDO_POLL_S)

    def _begin(self) -> None:
        _undoers.add(self)
        threading.Thread(target=self._run, name="holdfast-undo", daemon=True).start()

    def _run(self) -> None:
        while (job := self._next_job()) is not None:
            try:
                self._settle(job, self._nodes.perform(self._call(job, job.left_us)))
            except InheritedError:
                pass  # a greenlet that lives on in a forked child: the work is the parent's
            except Exception:
                _log.exception("undoing %s went wrong", job.undo.words)
            finally:
                with self._lock:
                    self._undoing -= 1

    def _next_job(self) -> Abandoned | None:
        job = super()._next_job()
        if job is None:
            _undoers.discard(self)
        return job


_clerks: weakref.WeakSet[Clerk] = weakref.WeakSet()
_undoers: set[_Undoer] = set()


def _begin_anew_in_child() -> None:
    _undoers.clear()
    for clerk in list(_clerks):
        clerk._begin()


def _wait_for_undos_at_exit() -> None:
    deadline_us = now_us() + sessions.UNDO_AT_END_MS * 1_000
    for undoer in list(_undoers):
        undoer.wait_idle(max(0, deadline_us - now_us()) // 1_000)


os.register_at_fork(after_in_child=_begin_anew_in_child)
atexit.register(_wait_for_undos_at_exit)
