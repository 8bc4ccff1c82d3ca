"""One node: the event loop's turns, the clients, and the ways in which a process ends.

A turn of the loop::

    begin_turn      the clock is read: all that is stamped in this turn is stamped with this time;
                    requests that were left for this turn are executed
      callbacks     bytes are read, requests executed, acks counted; replies are queued
    end_turn        what is due is done, and one step of what takes many turns; what waits for the
                    backup is set aside under the number of the turn's frame, the frame goes to the
                    peer in one write, then every client's replies in one write each

State is touched only from these callbacks, and each runs to completion (docs/protocol.md,
"Concurrency").
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

import gevent
import gevent.event

from ..resp import encoder
from . import clock, commands
from . import log as log_setup
from .by_hand import ByHand
from .commands import table
from .commands.replication import Waits
from .config import Address, Config
from .connection import Connection, format_address
from .core import limits
from .core.replica import Replica, Replies, Role
from .core.snapshot import Digest
from .core.walk import Walk
from .listener import ACCEPTS_PER_TURN, Listener
from .peer import Peer, new_id
from .poller import LateInput, Poller
from .stats import SlowRequest, Stats, trimmed

log = logging.getLogger(__name__)

_RESUMED_PER_TURN = 300  # connections that are told the end of their wait: five milliseconds
_DRAIN_S = 1.0  # how long an orderly stop waits for the replies that are under way
EXIT_FAILED = 70  # EX_SOFTWARE: our own bug, or a state that cannot be trusted


class Node:
    """A lock server. ``start`` it, then ``run`` it to its end."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.hub = gevent.get_hub()
        self.loop: Any = self.hub.loop
        self.port = config.port
        self.replica = Replica(new_id(), config.min_backups, clock.boot_ms)
        self.peer = Peer(self, self.replica)
        self.pairing = self.peer.pairing
        self.by_hand = ByHand(self.peer)
        self.stats = Stats()
        commands.load()
        self.waits = Waits(self)
        self.walk = Walk()  # of the locks
        self.register_walk = Walk()
        self.walked_ms = 0  # when one of them was last used
        self.digest: Digest | None = None  # DEBUG DIGEST, while it is computed
        self.hot: dict[bytes, table.Command] = {}  # see Connection._run
        self.poller = Poller(self.loop, lambda: self.turn_spent_ns + self.turn_fast_ns)
        self.connections: dict[int, Connection] = {}
        self.connections_max = limits.CONNECTIONS_MAX
        self.slow_ns = 10_000_000  # CONFIG slowlog-log-slower-than
        self.gate: bytes | None = None  # the answer to all that depends on state; None: execute it
        self.switching = False  # FAILOVER is under way: what depends on state is left for later
        self.turn_connections: list[Connection] = []  # those with replies queued in this turn
        self.turn_holds = False  # some of them must wait for the backup
        self.turn_spent_ns = 0  # on commands that are neither hot nor fast
        self.turn_fast_ns = 0  # on those that Redis calls fast
        self.sample_due = False  # time the next hot commands
        self.started_ms = clock.boot_ms()
        self.wall_s = time.time()
        self.stopping = False
        self._next_turn: list[Connection] = []
        self._held_up: dict[Connection, int] = {}  # by a FAILOVER, since when
        self._accepted_count = 0  # in this turn
        self._late_input = LateInput(self.poller)
        self._answered: deque[tuple[Connection, bytes]] = deque()  # their waits are over
        self._in_steps: list[Callable[[], bool]] = []
        self._alarm: Any = None  # the timer for what is due next
        self._alarm_ms = 0
        self._maybe_peers: deque[tuple[int, Connection]] = deque()
        self._connection_count = 0
        self._listeners: list[Listener] = []
        self.last_turn_ms = self.started_ms
        self._stopped = gevent.event.Event()
        self._exit_code = 0
        self._watchers: list[Any] = []

    # -- start -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Bind the listening sockets. Raises OSError."""
        _raise_descriptor_limit()
        try:
            for host in self.config.bind:
                listener = Listener(self.loop, host, self.port, self._on_accept, log.warning)
                self._listeners.append(listener)
                self.port = listener.port  # with --port 0 all addresses share the first's
        except BaseException:
            self._close_listeners()
            raise
        log_setup.set_label(self.port)  # the real one, of --port 0
        for listener in self._listeners:
            log.info("listening on %s", format_address((listener.host, listener.port)))
        self._watch()
        self.role_changed()
        self.peer.start()

    def _watch(self) -> None:
        # The check watcher runs first in its turn, the prepare watcher last: right before the loop
        # goes to sleep.
        check = self.loop.check(priority=self.loop.MAXPRI)
        check.start(self._begin_turn)
        prepare = self.loop.prepare(priority=self.loop.MINPRI)
        prepare.start(self._end_turn)
        self._watchers = [check, prepare, self._start_ticker()]

    def _start_ticker(self) -> Any:
        period_s = self.pairing.settings.heartbeat_ms / 1000
        ticker = self.loop.timer(period_s, period_s)
        ticker.start(self._tick)
        return ticker

    def run(self) -> int:
        """Serve until stopped; the process' exit code."""
        # gevent would print the error of a callback and go on (a method of its own, replaced).
        self.hub.handle_error = self._on_error  # type: ignore[assignment,method-assign]
        for number in (signal.SIGTERM, signal.SIGINT):
            gevent.signal_handler(number, self.stop, signal.Signals(number).name)
        # What exists now stays: the collector need not look at it again. What requests leave behind
        # has no cycles, so its rare full passes would only cost pauses.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 1000)
        self._stopped.wait()
        return self._exit_code

    # -- turns -----------------------------------------------------------------------------------

    def _begin_turn(self) -> None:
        now_ms = clock.boot_ms()
        gap_ms = now_ms - self.last_turn_ms
        self.last_turn_ms = now_ms
        self.replica.begin_turn(now_ms)
        if gap_ms > self.pairing.settings.heartbeat_ms:
            self.pairing.begin_turn(gap_ms)
        if self._next_turn:
            self._run_next_turn()

    def _end_turn(self) -> None:
        if self.replica.role is Role.PRIMARY:
            if not self.switching:
                self._work_off()
            self._note_answered()
        self._accepted_count = 0
        if self._answered:
            self._resume_answered()
        if self._in_steps:
            steps, self._in_steps = self._in_steps, []
            self._in_steps[:0] = [step for step in steps if step()]
        if self._next_turn or self._answered or self._in_steps:
            self.another_turn()
        if self.turn_holds or self.replica.executor.put_bytes:
            self.turn_holds = False
            self._hold_back()
        self.pairing.end_turn()
        connections = self.turn_connections
        if connections:
            self.turn_connections = []
            for connection in connections:
                connection.flush()
        self.turn_spent_ns = self.turn_fast_ns = 0

    def _hold_back(self) -> None:
        """Set this turn's replies aside that must wait for the backup."""
        replies: Replies = []
        size_bytes = 0
        for connection in self.turn_connections:
            held = connection.take_held()
            if held:
                replies.append((connection, held))
                size_bytes += len(held)
        self.turn_connections = [
            connection for connection in self.turn_connections if connection.queued
        ]
        if self.replica.overflows and self.replica.held_back_bytes > _HELD_BACK_BYTES_LIMIT:
            for connection, _ in replies:  # repeats, which may not be told "not done"
                connection.close("too much is held back")
        elif self.replica.holding and (replies or self.replica.executor.put_bytes):
            # (What stands behind them may go now.) Puts count as replies do, even those that nobody
            # wants an answer to: they lie in the link until the backup has them.
            self.replica.hold_back(replies, size_bytes + self.replica.executor.put_bytes)
        else:  # in this very turn it was decided that this node goes on alone
            self.peer.release(replies)

    def _work_off(self) -> None:
        """Do what is due."""
        executor = self.replica.executor
        delay_ms = executor.work_off(self._input_is_read)
        self._late_input.end_turn()
        if delay_ms is not None:
            self._wake_in(delay_ms, clock.boot_ms())

    def _note_answered(self) -> None:
        """Whose wait was ended in this turn, by a request or because it was due."""
        executor = self.replica.executor
        if executor.answered:
            answered, executor.answered = executor.answered, []
            for connections, answer in answered:
                reply = encoder.integer(answer)
                self._answered.extend((connection, reply) for connection in connections)

    @property
    def owes_answers(self) -> bool:
        """Whether there are answers that have not been queued yet."""
        return bool(self._answered or self.replica.executor.answered)

    def _input_is_read(self) -> bool:
        """Whether all has been looked at that had arrived when a late turn began (executor, X5)."""
        accepts_all = self._accepted_count < ACCEPTS_PER_TURN
        is_idle = all(listener.is_idle for listener in self._listeners)
        is_read = self._late_input.is_read(is_idle, accepts_all, self._next_turn)
        if not is_read:
            self.another_turn()
        return is_read

    def _resume_answered(self) -> None:
        """Tell those whose wait is over: some in each turn, thousands may have sent one request."""
        answered = self._answered
        for _ in range(min(len(answered), _RESUMED_PER_TURN)):
            connection, reply = answered.popleft()
            connection.resume(reply, held_back=True)

    def _wake_in(self, delay_ms: int, now_ms: int) -> None:
        """Have the loop turn again by then."""
        if delay_ms <= 0:
            self.another_turn()
            return
        at_ms = now_ms + delay_ms
        if self._alarm is not None:
            if self._alarm_ms <= at_ms:
                return  # it will look again then
            self._alarm.stop()
            self._alarm.close()
        self._alarm_ms = at_ms
        self._alarm = self.loop.timer(delay_ms / 1000)
        self._alarm.start(self._on_alarm, update=True)

    def _on_alarm(self) -> None:
        # What is due is done at the end of this turn, when its input has been read.
        self._alarm.close()
        self._alarm = None

    def abandon_digest(self) -> None:
        """Let go of the cut of a digest, if one is being computed."""
        if self.digest is not None:
            self.digest.close()
            self.digest = None

    def another_turn(self) -> None:
        """Have the loop turn once more before it sleeps."""
        # Not run_callback: behind gevent's own prepare watcher, where we are, it wakes nobody.
        self.loop.run_callback_threadsafe(_nothing)

    def do_in_steps(self, step: Callable[[], bool]) -> None:
        """Call ``step`` at the end of each turn, of this one too, for as long as it returns True.
        (``gevent.sleep(0)`` is no way to do this: gevent goes on with up to fifty of those before
        it looks at a socket.)"""
        self._in_steps.append(step)

    def resume_next_turn(self, connection: Connection) -> None:
        """Go on with this connection's pipeline in the next turn: others come first."""
        if not connection.has_next_turn:
            connection.has_next_turn = True
            self._next_turn.append(connection)

    def _run_next_turn(self) -> None:
        """Go on with what was left for this turn, before anything is read: newcomers might take up
        every turn's time. They have half of it, or they would wait for all that is left."""
        connections, self._next_turn = self._next_turn, []
        for connection in connections:
            connection.run_pending()
        self.turn_spent_ns = min(self.turn_spent_ns, limits.TURN_BUDGET_NS // 2)
        self.turn_fast_ns = min(self.turn_fast_ns, limits.TURN_BUDGET_NS // 2)

    def has_time_for(self, argv: list[bytes]) -> bool:
        """Whether a command that is not hot may be executed in this turn: the first always may, and
        so it goes on. Fast ones have time of their own: a PING does not stand behind a DEBUG."""
        spent_ns, fast_ns = self.turn_spent_ns, self.turn_fast_ns
        if spent_ns <= limits.TURN_BUDGET_NS and fast_ns <= limits.TURN_BUDGET_NS:
            return True
        command = table.find(argv)
        is_fast = command is not None and "fast" in command.flags
        return (fast_ns if is_fast else spent_ns) <= limits.TURN_BUDGET_NS

    def _tick(self) -> None:
        self.wall_s = time.time()
        self.sample_due = True
        now_ms = self.last_turn_ms
        self.pairing.tick()
        self._send_away_strangers(now_ms)
        if self._held_up:
            self._close_held_up(now_ms)
        if now_ms - self.walked_ms > limits.WALK_KEPT_MS:
            self.walk.forget()
            self.register_walk.forget()
        bytes_in, bytes_out = self.network_bytes()
        self.stats.sample(now_ms, self.commands_processed(), bytes_in, bytes_out)

    def role_changed(self) -> None:
        """Set the answer to requests that depend on state, after any change of role."""
        replica = self.replica
        if replica.role is Role.PRIMARY:
            self.gate = None
        elif replica.role is Role.BACKUP and self.pairing.has_handed_over:
            self.gate = encoder.error(
                f"READONLY this node has handed over, the primary is {self.peer.address}"
            )
        elif replica.role is Role.BACKUP and replica.synced and self.pairing.link is None:
            self.gate = encoder.error(
                f"READONLY this node is the backup, and its primary {self.peer.address} is "
                "lost; if it stays so and nothing promotes this node: REPLICAOF NO ONE"
            )
        elif replica.role is Role.BACKUP and replica.synced:
            self.gate = encoder.error(
                f"READONLY this node is the backup, the primary is {self.peer.address}"
            )
        else:
            self.gate = encoder.error(
                f"LOADING this node has no state yet, its peer is {self.peer.address}"
            )
        self.switching = bool(self.pairing.switching)
        self.hot = table.hot_table() if self.gate is None and not self.switching else {}
        if self._held_up and not self.switching:
            held_up, self._held_up = self._held_up, {}
            for connection in held_up:
                connection.go_on()

    def holds_up(self, connection: Connection, argv: list[bytes]) -> bool:
        """Whether a request has to be left until it is known who is primary (FAILOVER): then its
        connection is paused."""
        if not self.switching:
            return False
        command = table.find(argv)
        if command is None or not (command.depends_on_state or command.name == "wait"):
            return False
        connection.pause()
        self._held_up[connection] = self.last_turn_ms
        return True

    def _close_held_up(self, now_ms: int) -> None:
        """Those who have waited for a FAILOVER to end for too long: they ask again, elsewhere."""
        overdue_ms = now_ms - limits.BLOCKED_MAX_MS
        for connection in [
            each for each, since_ms in self._held_up.items() if since_ms < overdue_ms
        ]:
            connection.close("it was held up for too long")

    @property
    def now_ms(self) -> int:
        """CLOCK_BOOTTIME as of this turn."""
        return self.last_turn_ms

    def reconfigure(self, config: Config) -> None:
        """CONFIG SET: take a configuration that differs in what can change while running."""
        before, self.config = self.config, config
        self.replica.min_backups = config.min_backups
        log_setup.set_level(config.log_level)
        self.peer.reconfigured()
        self._watchers[-1].stop()
        self._watchers[-1] = self._start_ticker()
        log.info("reconfigured: %s, it was: %s", config, before)

    read_address = staticmethod(Address.parse)  # for commands, which know nothing of the shell

    # -- clients ---------------------------------------------------------------------------------

    def _on_accept(self, sock: socket.socket, address: Any) -> None:
        self.stats.connections_received += 1
        self._accepted_count += 1
        beyond = len(self.connections) - self.connections_max
        if beyond >= limits.CONNECTIONS_FOR_PEER_MAX:
            self.stats.connections_rejected += 1
            with contextlib.suppress(OSError):  # it may be gone already
                sock.send(b"-ERR max number of clients reached\r\n")
            sock.close()
            return
        self._connection_count += 1
        connection = Connection(self, sock, format_address(address), self._connection_count)
        self.connections[connection.id] = connection
        if beyond >= 0:
            connection.silent = "full"
            self._maybe_peers.append((self.last_turn_ms, connection))

    def _send_away_strangers(self, now_ms: int) -> None:
        """Who came beyond the bound and has not turned out to be the peer."""
        waiting = self._maybe_peers
        while waiting and now_ms - waiting[0][0] > limits.CONNECTIONS_FOR_PEER_MS:
            _, connection = waiting.popleft()
            if connection.silent == "full" and not connection.closed:
                connection.send_away()
                self.stats.connections_rejected += 1

    def forget_connection(self, connection: Connection, why: str) -> None:
        """A connection has ended."""
        log.debug("client %s: %s", connection.address, why)
        self.connections.pop(connection.id, None)
        self._held_up.pop(connection, None)
        self.stats.closed_bytes_in += connection.bytes_in
        self.stats.closed_bytes_out += connection.bytes_out

    def close_clients(self, why: str, sparing: Connection | None = None) -> None:
        """Close every client's connection, held-back replies and all (C2 of the replica)."""
        for connection in list(self.connections.values()):
            if connection is not sparing or connection.has_held_back:
                connection.close(why)

    def unknown_command(self, connection: Connection, argv: list[bytes]) -> bytes | None:
        """Redis' answer; but a browser that was tricked into talking to us gets none at all."""
        name = argv[0].lower()
        if name == b"multi":
            connection.silent = "multi"  # or what follows would be executed one by one
        if name in (b"post", b"host:"):
            log.warning("client %s speaks HTTP: closed", connection.address)
            connection.close("possible cross-protocol attack")
            return None
        return table.unknown(argv)

    def note_slow(self, connection: Connection, argv: list[bytes], nanoseconds: int) -> None:
        """Remember a request that took longer than ``slow_ns``."""
        stats = self.stats
        stats.slow_requests.appendleft(
            SlowRequest(
                stats.slow_count, int(self.wall_s), nanoseconds // 1000,
                trimmed(argv), connection.address, connection.name,
            )
        )  # fmt: skip
        stats.slow_count += 1

    def commands_processed(self) -> int:
        """Commands executed since the start or the last reset."""
        return sum(command.calls for command in table.COMMANDS.values())

    def network_bytes(self) -> tuple[int, int]:
        """Bytes received from and sent to clients."""
        bytes_in, bytes_out = self.stats.closed_bytes_in, self.stats.closed_bytes_out
        for connection in self.connections.values():
            bytes_in += connection.bytes_in
            bytes_out += connection.bytes_out
        return bytes_in, bytes_out

    # -- the end ---------------------------------------------------------------------------------

    def stop(self, why: str, exit_code: int = 0) -> None:
        """Stop in order: no new requests, then what is under way, then the connections."""
        if self.stopping:
            return
        self.stopping = True
        self._exit_code = exit_code
        log.info("stopping: %s", why)
        gevent.spawn(self._stop)

    def _stop(self) -> None:
        self._close_listeners()
        for connection in list(self.connections.values()):
            connection.close_after_replies()
        deadline_ms = clock.boot_ms() + int(_DRAIN_S * 1000)
        while self.connections and clock.boot_ms() < deadline_ms:
            gevent.sleep(0.005)
        self.close_clients("the server stops")
        for watcher in self._watchers:
            watcher.stop()
        self.peer.stop()
        self.poller.close()
        log.info("stopped")
        self._stopped.set()

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def fail(self, why: str) -> None:
        """This process cannot be trusted any more: end it at once, the peer takes over."""
        log.error("%s", why)
        logging.shutdown()
        os._exit(EXIT_FAILED)

    def crash(self, why: str) -> None:
        """Our own bug, with its traceback: the same."""
        log.error("%s", why, exc_info=True)
        self.fail("this node stops: a failed assertion is never served over")

    def _on_error(
        self,
        context: object,
        kind: type[BaseException] | None,
        value: BaseException | str | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and issubclass(
            kind, (gevent.GreenletExit, SystemExit, KeyboardInterrupt)
        ):
            self.stop(kind.__name__)
            return
        if kind is not None and issubclass(kind, self.hub.NOT_ERROR):
            return  # gevent tells of it twice: whoever looked up that name gets it too
        error = value if isinstance(value, BaseException) else None
        text = "".join(traceback.format_exception(kind, error, trace))
        log.error("unexpected error in %r:\n%s", context, text)
        self.fail("this node stops: an error that nobody expected is never served over")


def _nothing() -> None:
    """What is run where the turn is all that is wanted."""


def _raise_descriptor_limit() -> None:
    """Shells give a process 1,024 file descriptors, often, and allow it more if it asks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else hard
    wanted = min(wanted, limits.DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


_HELD_BACK_BYTES_LIMIT = 2 * limits.HELD_BACK_BYTES_MAX

if sys.flags.optimize:
    raise RuntimeError("run without -O: the assertions of the core are safety checks")
