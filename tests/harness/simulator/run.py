"""One run: a seed, its options, a phase with faults, a phase without, and the verdict."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from harness.checkers import check_all, check_tokens
from harness.checkers.history import History
from holdfast.server.core import limits
from holdfast.server.core import sender as sender_module

from .cluster import Cluster
from .faults import Faults
from .loss import Loss, split
from .network import Network
from .node import Process
from .options import Options
from .scheduler import Scheduler
from .trace import Trace
from .versioned import RegisterWork, check_fenced_order
from .workload import Workload

MS = 1_000
POLL_US = 50 * MS
SETTLE_US = 3_000_000


@dataclass
class Result:
    """What came of a run."""

    options: Options
    problems: list[str]
    counts: Counter[str]
    fingerprint: str
    events: int
    simulated_us: int
    lines: list[str]
    history: History

    def __str__(self) -> str:
        verdict = "\n".join(self.problems) or "all is well"
        return f"{self.options}\n{verdict}"


SMALL_LIMITS = {
    "CATCH_UP_BYTES_PER_TURN": 200,
    "SNAPSHOT_ITEMS_PER_SLICE": 2,
    "BACKLOG_BYTES_MAX": 2_500,
    "BACKLOG_KEPT_BYTES_MAX": 1_500,
    "DUE_PER_TURN": 2,
}
SMALL_UNACKED = 24


@contextmanager
def _limits_of(options: Options) -> Iterator[None]:
    """The bounds of the core, small where this run wants them felt."""
    if not options.small_limits:
        yield
        return
    before = {name: getattr(limits, name) for name in SMALL_LIMITS}
    unacked = sender_module._UNACKED_LIMIT
    for name, value in SMALL_LIMITS.items():
        setattr(limits, name, value)
    sender_module._UNACKED_LIMIT = SMALL_UNACKED
    try:
        yield
    finally:
        sender_module._UNACKED_LIMIT = unacked
        for name, value in before.items():
            setattr(limits, name, value)


class Run:
    """One run, being made."""

    def __init__(self, options: Options, *, tells: bool = False) -> None:
        self.options = options
        self.scheduler = Scheduler()
        self.trace = Trace(self.scheduler, tells=tells)
        self.network = Network(self.scheduler, self._dice("network"))
        self.network.spread_us = options.spread_us
        self.network.loss = options.loss_per_mille / 1_000
        self.cluster = Cluster(
            options, self.scheduler, self.network, self.trace, self._dice("cluster")
        )
        rng = self._dice("clients")
        hosts = [self.cluster.new_host(f"c{number}") for number in range(options.clients)]
        self.registers = RegisterWork(options, self.trace, self._dice("registers"))
        self.workload = Workload(
            options,
            self.scheduler,
            self.network,
            self.trace,
            rng,
            hosts,
            self.cluster.hosts,
            self.registers,
        )
        self.faults = Faults(
            options,
            self.scheduler,
            self.network,
            self.cluster,
            self.workload,
            self.trace,
            self._dice("faults"),
        )
        self.loss = Loss(self)

    def _dice(self, purpose: str) -> random.Random:
        return random.Random(f"{self.options.seed}/{purpose}")

    def make(self) -> Result:
        """Run it, and judge."""
        with _limits_of(self.options):
            self._make()
        self._judge()
        self.trace.count("packet lost", self.network.lost_count)
        return Result(
            self.options,
            self.trace.problems,
            self.trace.counts,
            self.trace.fingerprint(),
            self.scheduler.events,
            self.scheduler.now_us,
            self.trace.lines,
            self.trace.history,
        )

    def _make(self) -> None:
        for number in (0, 1):
            self.cluster.start(number)
        self.workload.start()
        self.faults.start()
        if self.options.total_loss:
            self.scheduler.after(self.options.safety_ms * MS // 3, self.loss.begin)
        self.scheduler.run(self.options.safety_ms * MS)
        self.trace.say("====", "no more faults")
        self.faults.mend_all()
        for client in self.workload.clients:
            client.go_on()
        self.workload.stopping = self.registers.stopping = True
        self._wait_until_whole()
        self.workload.finish()

    def _wait_until_whole(self) -> None:
        """I13."""
        until_us = self.scheduler.now_us + self.options.liveness_ms * MS
        begun_us = self.scheduler.now_us
        self.workload.prove()
        while self.scheduler.now_us < until_us:
            self.scheduler.run(self.scheduler.now_us + POLL_US)
            if self.cluster.is_whole() and all(self.workload.through.values()):
                self.trace.count("whole again")
                self.trace.counts["ms until whole again"] += (
                    self.scheduler.now_us - begun_us
                ) // MS
                self._compare_states()
                return
        waiting = [name for name, through in self.workload.through.items() if not through]
        self.trace.problem(
            f"I13: not whole {self.options.liveness_ms} ms after the last fault, these clients do "
            f"not get through: {waiting}; {self.cluster.describe()}"
        )

    def _compare_states(self) -> None:
        """I5, at rest."""
        until_us = self.scheduler.now_us + SETTLE_US
        while self.scheduler.now_us < until_us:
            self.scheduler.run(self.scheduler.now_us + POLL_US)
            one, other = (process for process in self.cluster.processes)
            if one is None or other is None:
                break
            if one.replica.state.offset == other.replica.state.offset and not _is_overdue(one):
                one.chronicle.record_digest()
                other.chronicle.record_digest()
                return
        self.trace.problem(f"I5: the nodes do not come to rest: {self.cluster.describe()}")

    # -- verdict ---------------------------------------------------------------------------------

    def _judge(self) -> None:
        drift = 2 * self.options.clock_ppm / 1_000_000
        history = self.trace.history
        parts = split(history, self.loss.at_us) if self.loss.at_us else (history,)
        for part in parts:
            self.trace.problems += check_all(part, clock_drift=drift)
            self.trace.problems += check_fenced_order(part)
        if len(parts) == 1:
            return
        self.trace.problems += check_tokens(history.operations)


def _is_overdue(process: Process) -> bool:
    """Whether a register is still there though its time has come. (Either node may be asked: the
    offsets are equal.)"""
    state = process.replica.state
    return any(
        0 < each[3] <= process.replica.state_time_ms() for each in state.registers.held.values()
    )


def run_seed(options: Options, *, tells: bool = False) -> Result:
    """Run it."""
    return Run(options, tells=tells).make()
