"""What Clerk and AsyncClerk have in common: client ids, the settling of requests, undos to be made.

Undoing. An `acquire` whose outcome stayed unknown may have been granted, and nobody else would
ever give that lock back (without a lease), or not for long (with one). So it is undone in the
background, by whoever `_begin` has started when there is something to undo, and who ends when there
is not:
  - not "when the Clerk is next used": a program that has just got IndeterminateError may well
    idle, or end, and its lock would stay held; and the next call would pay for the last;
  - after a fork the child has neither the worker nor the work: undoing stays the parent's;
  - no program is kept from ending for a node that may never come back. The end of the program and
    `close()` wait a bounded while instead.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from abc import ABC, abstractmethod
from collections import deque
from typing import NamedTuple

from .arguments import lease_length_ms, lock_name, owner_name, wait_length_ms
from .attempts import (
    Aftermath,
    Call,
    Client,
    ClientPool,
    Finish,
    Request,
    aftermath,
    undo_request,
)
from .endpoints import NodesBase, now_us
from .leases import Wanted

_log = logging.getLogger(__name__)

# How long close(), and the end of the program, wait for undos that are under way.
UNDO_AT_END_MS = 1_000

# An undo that had to stand in line behind others still gets this long.
UNDO_MIN_MS = 1_000

# Abandoned requests remembered for undoing: while no node answers there may be one a deadline for
# every thread; with more than this the oldest is given up, aloud.
UNDO_QUEUE_MAX = 1_024

# How many locks are asked for at a time.
LOCKS_PAGE_COUNT = 100


def wanted(
    name: str | bytes, lease_ms: int | None, wait_ms: int | None, owner: str | bytes | None
) -> Wanted:
    """What `acquire` was asked for; the wait begins here. Raises TypeError or ValueError."""
    wait = wait_length_ms(wait_ms)
    return Wanted(
        lock_name(name),
        lease_length_ms(lease_ms),
        owner_name(owner),
        None if wait is None else now_us() + wait * 1_000,
    )


class Abandoned(NamedTuple):
    """An acquire of unknown outcome. The undo is numbered at once and sent as often as needed."""

    client: Client
    undo: Request
    deadline_us: int

    @property
    def left_us(self) -> int:
        """How long it may be tried from now on."""
        return max(self.deadline_us - now_us(), UNDO_MIN_MS * 1_000)

    def give_up(self, reason: str) -> None:
        """Say that it will not be undone."""
        _log.warning(
            "gave up undoing the acquire of %r: %s; it may stay held by request %s until its lease "
            "ends or it is unlocked",
            self.undo.name,
            reason,
            self.undo.words[-1].decode(),
        )


class Undos(ABC):
    """Abandoned acquires, and whoever undoes them, one after the other, while there are any."""

    def __init__(self, nodes: NodesBase, clients: ClientPool, undo_ms: int) -> None:
        self._nodes = nodes
        self._clients = clients
        self._undo_us = undo_ms * 1_000
        # A signal's handler may come while it is held, and come back here.
        self._lock = threading.RLock()
        self._queue: deque[Abandoned] = deque()
        self._running = False
        self._undoing = 0

    @property
    def is_idle(self) -> bool:
        return not self._queue and not self._undoing

    def add(self, client: Client, abandoned: Request) -> None:
        """Takes over the loan of the client id."""
        loan = Client(client.client_id, client.last_n)
        job = Abandoned(loan, undo_request(loan, abandoned), now_us() + self._undo_us)
        client.lent = False  # no signal's handler comes between this and the next line
        self._queue.append(job)
        if len(self._queue) > UNDO_QUEUE_MAX:
            with contextlib.suppress(IndexError):  # somebody may have done it meanwhile
                self._queue.popleft().give_up("too many others to undo")
        self.start()

    def start(self) -> None:
        """Has somebody at work if there is any."""
        starting = False
        try:
            with self._lock:
                if self._running or not self._queue:
                    return
                starting = self._running = True
            self._begin()
        except BaseException as error:
            # No thread to be had: the next abandoned acquire, or close(), tries again. So does
            # whoever was interrupted here, if need be with a second thread, which does no harm.
            if starting:
                self._running = False
            if not isinstance(error, RuntimeError):
                raise
            _log.warning("cannot undo abandoned acquires yet: %s", error)

    @abstractmethod
    def _begin(self) -> None:
        """Starts a worker; RuntimeError if there is none to be had."""

    def _next_job(self) -> Abandoned | None:
        """The worker's next; at None it ends."""
        with self._lock:
            if self._queue and not self._nodes.is_inherited:
                self._undoing += 1
                return self._queue.popleft()
            self._running = False
            return None

    def _call(self, job: Abandoned, left_us: int) -> Call:
        return self._nodes.call(job.undo, left_us)

    def _settle(self, job: Abandoned, finish: Finish) -> None:
        if aftermath(job.undo.kind, finish) is Aftermath.REUSE:
            self._clients.give_back(job.client)
        else:
            job.give_up(str(finish.lost or finish.error))


class SessionBase:
    """What a Clerk has of its own in one process: connections, client ids, undos under way."""

    def __init__(self, nodes: NodesBase, clients: ClientPool, undos: Undos) -> None:
        self._nodes = nodes
        self._clients = clients
        self._undos = undos

    def borrow(self) -> Client:
        return self._clients.borrow()

    def settle(self, client: Client, request: Request, finish: Finish) -> None:
        """Decides what becomes of the client id (R3); the last call before the caller (R5)."""
        if self._nodes.is_inherited:
            return  # the client id, and the undoing, are the parent's
        if not client.lent:
            self._undos.start()  # it was settled before the interruption, or nearly so
            return
        match aftermath(request.kind, finish):
            case Aftermath.REUSE:
                self._clients.give_back(client)
            case Aftermath.UNDO:
                self._undos.add(client, request)
            case Aftermath.RETIRE:
                client.lent = False
                _log.warning(
                    "%s %r: the server no longer knows request id %s; its client id is given up",
                    request.command,
                    request.name,
                    request.request_id.decode(),
                )


def new_clients() -> ClientPool:
    """A pool whose client ids nobody else has."""
    return ClientPool(lambda: secrets.token_hex(8))
