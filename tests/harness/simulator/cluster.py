"""The two nodes of a run, their machines, and the register: what is started, killed, looked at."""

from __future__ import annotations

import random

from holdfast.server.core.outside import Settings
from holdfast.server.core.replica import Phase, Role
from holdfast.server.core.view import View

from .network import Host, Network
from .node import Pair, Process
from .options import BACKUP, FAIL_STOP, Options
from .register import Register
from .scheduler import Clock, Scheduler
from .trace import Trace

QUARANTINE_MS = 3_000


class Cluster:
    """Two hosts, with a process each most of the time."""

    def __init__(
        self,
        options: Options,
        scheduler: Scheduler,
        network: Network,
        trace: Trace,
        rng: random.Random,
    ) -> None:
        self.options = options
        self.scheduler = scheduler
        self.network = network
        self.trace = trace
        self.has_register = options.register != FAIL_STOP
        self._rng = rng
        self.hosts = [self.new_host(name) for name in ("A", "B")]
        self.pair = Pair(scheduler, network, trace, random.Random(rng.random()))
        self.pair.socket_bytes = 3_000 if options.small_limits else 200_000
        self.register: Register | None = None
        if self.has_register:
            host = self.hosts[1] if options.register == BACKUP else self.new_host("W")
            self.register_host = host
            self._start_register(host)
        self.processes: list[Process | None] = [None, None]
        self.has_lost_all = False
        self.begins_anew = -1  # which node is told to begin a new history (F8)

    def new_host(self, name: str) -> Host:
        """A machine with a clock of its own."""
        ppm = self.options.clock_ppm
        rate_ppm = self._rng.randint(-ppm, ppm)
        return Host(name, Clock(self.scheduler, rate_ppm, self._rng.randint(0, 10**10)))

    def _start_register(self, host: Host) -> None:
        # On the machine of a node it has a port of its own: a host beside it, with the same name.
        beside = Host(host.name, host.clock)
        self.register = Register(
            beside, self.network, self.trace, random.Random(self._rng.random())
        )
        beside.listener = self.register
        self.register_host = beside
        self.pair.register = beside

    def start(self, number: int) -> None:
        """Start a node's process."""
        if self.processes[number] is not None:
            return
        options, host = self.options, self.hosts[number]
        settings = Settings(
            first_primary=number == 0,
            bootstrap=number == self.begins_anew,
            backup_timeout_ms=options.backup_timeout_ms,
            promotion_timeout_ms=options.promotion_timeout_ms,
            heartbeat_ms=options.heartbeat_ms,
            quarantine_ms=QUARANTINE_MS if self.has_lost_all else 0,
            has_register=self.has_register,
        )
        self.begins_anew = -1 if number == self.begins_anew else self.begins_anew
        self.processes[number] = Process(
            self.pair, host, self.hosts[1 - number], settings, options.min_backups
        )

    def kill(self, number: int, *, silent: bool) -> None:
        """Kill a node's process, or switch its machine off (``silent``)."""
        process = self.processes[number]
        if process is None:
            return
        self.trace.say(process.host.name, "machine goes down" if silent else "is killed")
        process.die(orderly=self._rng.random() < 0.5, silent=silent)
        self.processes[number] = None
        if silent:
            self._set_down(number, True)

    def _set_down(self, number: int, down: bool) -> None:
        host = self.hosts[number]
        host.down = down
        if self.has_register and self.register_host.name == host.name:
            self.register_host.down = down

    def restart(self, number: int) -> None:
        """A node that is not there is started again, and its machine before that."""
        host = self.hosts[number]
        if host.down:
            self._set_down(number, False)
            host.clock.reboot(self._rng.randint(0, 10**7))
        self.bury(number)
        self.start(number)

    def bury(self, number: int) -> None:
        """Forget a process that died by itself."""
        process = self.processes[number]
        if process is not None and not process.alive:
            self.processes[number] = None

    def alive(self, number: int) -> Process | None:
        """The process of a node, if it lives."""
        process = self.processes[number]
        return process if process is not None and process.alive else None

    def begin_anew(self) -> None:
        """An operator after a total loss: ``view init --force``, or ``--bootstrap``."""
        if self.register is not None:
            self.register.take(View(self.register.view.epoch + 1, "", ()))
        self.has_lost_all = True
        self.begins_anew = 0
        for number in (0, 1):
            self.restart(number)

    # -- what is true, whatever the nodes believe ------------------------------------------------

    def is_whole(self) -> bool:
        """Both nodes are members of one view, and know it."""
        both = [self.alive(0), self.alive(1)]
        for primary, backup in (both, both[::-1]):
            if primary is None or backup is None or primary.paused or backup.paused:
                continue
            lead, other = primary.replica, backup.replica
            if (
                lead.role is Role.PRIMARY
                and lead.phase is Phase.MEMBER
                and not lead.blocked
                and lead.backup == other.incarnation
                and other.role is Role.BACKUP
                and other.is_member
                and other.view == lead.view
            ):
                return self.register is None or self.register.view == lead.view
        return False

    def may_lose(self, number: int) -> bool:
        """Whether everything that was ever answered survives the loss of this node's state."""
        process, other = self.alive(number), self.alive(1 - number)
        if process is None or other is None or other.paused:
            return False
        if self.register is not None:
            return self._holds_all(self.register, process, other)
        if process.pairing.switching or other.pairing.switching or other.replica.stalled:
            return False
        if self.is_whole():
            return True
        lead, rest = other.replica, process.replica
        return (
            lead.role is Role.PRIMARY
            and lead.phase <= Phase.REQUIRED
            and rest.role is not Role.PRIMARY
            and lead.view.epoch >= rest.view.epoch
        )

    def _holds_all(self, register: Register, process: Process, other: Process) -> bool:
        view, replica = register.view, other.replica
        if replica.incarnation not in view.members:
            return False
        if replica.role is not Role.PRIMARY and not replica.synced:
            return False
        number = self.hosts.index(process.host)
        for epoch, members in self.pair.proposals[self.hosts[number].name]:
            if epoch > view.epoch and replica.incarnation not in members:
                return False  # a proposal that may still win leaves the other one out
        return True

    def describe(self) -> str:
        """Both nodes in a line each, for the report of a failure."""
        return "; ".join(
            "none" if process is None else _describe(process) for process in self.processes
        )


def _describe(process: Process) -> str:
    replica = process.replica
    state = "alive" if process.alive else "dead"
    if process.paused:
        state = "paused"
    return (
        f"{process.host.name}={replica.incarnation} {state} {replica.role.value} "
        f"mode {process.pairing.mode} {replica.phase.name} view {replica.view} "
        f"backup {replica.backup!r} "
        f"blocked={replica.blocked} stalled={replica.stalled} synced={replica.synced} "
        f"offset {replica.state.offset} link {process.pairing.link is not None}"
    )
