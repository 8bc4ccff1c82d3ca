"""Commands on the pair: ROLE, REPLICAOF (SLAVEOF), FAILOVER, WAIT."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent

from ...resp import encoder
from ..core.replica import Phase, Role
from . import reading
from .table import Argument, command

if TYPE_CHECKING:
    from ..connection import Connection

log = logging.getLogger(__name__)

_NO_WAIT_ON_BACKUP = encoder.error(
    "ERR WAIT cannot be used with replica instances. Please also note that since Redis 4.0 if a "
    "replica is configured to be writable (which is not the default) writes to replicas are just "
    "local and are not propagated."
)
_TIMEOUT_MS_MAX = 2**53


# -- ROLE ------------------------------------------------------------------------------------------


@command(
    "role",
    1,
    "Tells whether this node is the primary or the backup, and how far each is",
    group="server",
    flags=("noscript", "loading", "stale", "fast"),
    categories=("admin", "dangerous"),
)
def role(connection: Connection, argv: list[bytes]) -> bytes:
    """``ROLE``: as Redis', what the node believes. Offsets count entries."""
    node = connection.node
    replica, pairing = node.replica, node.pairing
    address = pairing.link.address if pairing.link is not None else node.peer.address
    if replica.role is Role.PRIMARY:
        backups = []
        if pairing.link is not None and replica.outbound is not None and address is not None:
            backups.append([address.host, str(address.port), str(replica.outbound.acked_offset)])
        return encoder.encode(["master", replica.state.offset, backups])
    host, port = (address.host, address.port) if address is not None else ("", 0)
    offset = replica.state.offset if replica.synced else -1
    return encoder.encode(["slave", host, port, link_state(node), offset])


def link_state(node: Any) -> str:
    """A backup's link to its primary, in Redis' words."""
    if not node.pairing.link_is_up:
        return "connect"
    return "connected" if node.replica.synced else "sync"


# -- REPLICAOF -------------------------------------------------------------------------------------


_REPLICAOF = (
    Argument(
        "args",
        "oneof",
        arguments=(
            Argument(
                "host-port",
                "block",
                arguments=(Argument("host"), Argument("port", "integer")),
            ),
            Argument(
                "no-one",
                "block",
                arguments=(
                    Argument("no", "pure-token", "NO"),
                    Argument("one", "pure-token", "ONE"),
                    Argument("force", "pure-token", "FORCE", optional=True),
                ),
            ),
        ),
    ),
)
_REPLICAOF_FLAGS = ("admin", "noscript", "stale", "no_async_loading")


@command(
    "replicaof",
    -3,
    "Follows another primary, or (NO ONE) becomes the primary",
    group="server",
    flags=_REPLICAOF_FLAGS,
    arguments=_REPLICAOF,
)
@command(
    "slaveof",
    -3,
    "The old name of REPLICAOF",
    group="server",
    flags=_REPLICAOF_FLAGS,
    arguments=_REPLICAOF,
)
def replicaof(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``REPLICAOF host port | NO ONE [FORCE]``"""
    by_hand = connection.node.by_hand
    words = [word.upper() for word in argv[1:]]
    if words[:2] == [b"NO", b"ONE"]:
        if words[2:] not in ([], [b"FORCE"]):
            return reading.SYNTAX_ERROR
        forced = len(words) == 3
        _in_background(connection, lambda: by_hand.promote(force=forced))
        return None
    if len(words) != 2:
        return reading.SYNTAX_ERROR
    host, port = (word[:256].decode("utf-8", "replace") for word in argv[1:])
    if not 0 < (reading.integer(argv[2]) or 0) < 65536:
        return encoder.error("ERR Invalid master port")
    try:
        address = connection.node.read_address(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        )
    except ValueError as error:
        return encoder.error(f"ERR {error}")
    _in_background(connection, lambda: by_hand.follow(address, connection))
    return None


def _in_background(connection: Connection, task: Callable[[], str]) -> None:
    """Run what has to wait for the network, and answer then."""

    def run() -> None:
        text = task()
        log.info("%s said REPLICAOF: %s", connection.address, text)
        is_error = not text.startswith("OK")
        connection.resume(encoder.encode(encoder.Error(text) if is_error else encoder.Status(text)))

    connection.pause()
    gevent.spawn(run)


# -- FAILOVER --------------------------------------------------------------------------------------


@command(
    "failover",
    -1,
    "Hands over to the backup: a planned change of roles",
    group="server",
    flags=("admin", "noscript", "stale"),
    arguments=(
        Argument("abort", "pure-token", "ABORT", optional=True),
        Argument("milliseconds", "integer", "TIMEOUT", optional=True),
    ),
)
def failover(connection: Connection, argv: list[bytes]) -> bytes:
    """``FAILOVER [TIMEOUT ms] [ABORT]``

    As in Redis the reply is at once, and ``INFO replication`` tells how far it is
    (``master_failover_state``). Requests wait for a few milliseconds meanwhile, unexecuted; then
    this node refuses them (-READONLY), and the other one takes them.
    """
    pairing = connection.node.pairing
    options = [word.upper() for word in argv[1:]]
    if options == [b"ABORT"]:
        problem = pairing.abort_switch("an operator says so")
    elif not options:
        problem = pairing.switch(0)
    elif len(options) == 2 and options[0] == b"TIMEOUT":
        timeout_ms = reading.integer(options[1])
        if timeout_ms is None:
            return reading.NOT_AN_INTEGER
        if not 0 < timeout_ms <= _TIMEOUT_MS_MAX:
            return encoder.error("ERR FAILOVER timeout must be greater than 0")
        problem = pairing.switch(timeout_ms)
    elif options[0] == b"TO":
        return encoder.error("ERR FAILOVER TO is not supported: a pair has one backup")
    else:
        return reading.SYNTAX_ERROR
    return encoder.error(problem) if problem else encoder.OK


# -- WAIT ------------------------------------------------------------------------------------------


@command(
    "wait",
    3,
    "Waits until backups have everything so far; returns how many have",
    group="connection",
    flags=("noscript",),
    arguments=(Argument("numreplicas", "integer"), Argument("timeout", "integer")),
)
def wait(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``WAIT numreplicas timeout``

    Whatever a paired primary has answered is on the backup already. What this adds: on a primary
    that serves alone it waits for a backup to become a member. It does not go through the gate of
    the commands that depend on state, since a backup answers in Redis' words.
    """
    node = connection.node
    if node.replica.role is Role.BACKUP and node.replica.synced:
        return _NO_WAIT_ON_BACKUP
    if node.gate is not None:
        return node.gate
    wanted, timeout_ms = reading.integer(argv[1]), reading.integer(argv[2])
    if wanted is None:
        return reading.NOT_AN_INTEGER
    if timeout_ms is None or timeout_ms > _TIMEOUT_MS_MAX:
        return encoder.error("ERR timeout is not an integer or out of range")
    if timeout_ms < 0:
        return encoder.error("ERR timeout is negative")
    waits = node.waits
    offset = node.replica.state.offset
    have = waits.backups_at(offset)
    if have < wanted:
        connection.pause()
        waits.add(_Wait(connection, wanted, offset), timeout_ms)
    elif not connection.silent:
        connection.reply_held_back(encoder.integer(have))
    return None


class _Wait:
    """One WAIT that has not been answered. ``timer``: None if it may last for ever."""

    __slots__ = ("connection", "offset", "timer", "wanted")

    def __init__(self, connection: Connection, wanted: int, offset: int) -> None:
        self.connection = connection
        self.wanted = wanted
        self.offset = offset
        self.timer: Any = None


class Waits:
    """All of one node's.

    Offsets only rise, so waits for one backup are satisfied in the order in which they came: once
    a loop turn the first in line is looked at, and nothing is done while there is none. More than
    one backup there never is: those only time out.
    """

    def __init__(self, node: Any) -> None:
        self._node = node
        self._line: deque[_Wait] = deque()
        self._unanswered: set[_Wait] = set()
        self._watcher = node.loop.check(priority=node.loop.MINPRI)  # behind what has come in

    def backups_at(self, offset: int) -> int:
        """How many backups are members and have acknowledged ``offset``."""
        replica = self._node.replica
        return int(
            replica.role is Role.PRIMARY
            and replica.phase is Phase.MEMBER
            and not replica.blocked
            and replica.outbound is not None
            and replica.outbound.acked_offset >= offset
        )

    def add(self, wait: _Wait, timeout_ms: int) -> None:
        """Answer when the backups are there, or when the time is up (0: for ever)."""
        if len(self._unanswered) > 2 * len(self._node.connections) + 16:
            self._forget_closed()
        self._unanswered.add(wait)
        if timeout_ms:
            wait.timer = self._node.loop.timer(timeout_ms / 1000)
            wait.timer.start(self._answer, wait)
        if wait.wanted == 1:
            self._line.append(wait)
            if not self._watcher.active:
                self._watcher.start(self._look)

    def turn_away(self, error: bytes) -> None:
        """This node is no primary any more: it cannot say how many backups have anything."""
        for wait in list(self._unanswered):
            self._forget(wait)
            wait.connection.resume(error)

    def _look(self) -> None:
        line = self._line
        while line and (line[0] not in self._unanswered or self.backups_at(line[0].offset)):
            wait = line.popleft()
            if wait in self._unanswered:
                self._answer(wait)
        if not line:
            self._watcher.stop()

    def _answer(self, wait: _Wait) -> None:
        self._forget(wait)
        # (A connection that has been closed since takes no notice.)
        wait.connection.resume(encoder.integer(self.backups_at(wait.offset)), held_back=True)

    def _forget(self, wait: _Wait) -> None:
        self._unanswered.discard(wait)
        if wait.timer is not None:
            wait.timer.stop()
            wait.timer.close()

    def _forget_closed(self) -> None:
        for wait in [wait for wait in self._unanswered if wait.connection.closed]:
            self._forget(wait)
        self._line = deque(wait for wait in self._line if wait in self._unanswered)
