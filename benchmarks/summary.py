"""From the raw runs to medians, ratios and spreads: pure functions over plain data.

A *cell* is one mode, number of connections and pipeline depth. It holds, for each round, one run
(see `load.Result`) of each side, so that a ratio compares runs that were neighbours in time.
"""

import statistics
from dataclasses import dataclass
from typing import Any

Run = dict[str, Any]
Cell = dict[str, Any]

AIM_RATIO = 0.9
AIM_CONNECTIONS = 50
BUSY_LIMIT = 0.95  # a process that had this much of a core could do no more


@dataclass(frozen=True)
class SideSummary:
    """Medians over the rounds of one side of a cell."""

    throughput_per_s: float
    spread: float  # of the throughput: (largest - smallest) / median
    p50_ms: float
    p99_ms: float
    user_us: float  # the primary's, per operation
    system_us: float
    backup_us: float | None  # the backup's, user and system together
    generator_busy: float
    primary_busy: float

    @property
    def cpu_us(self) -> float:
        """The primary's CPU time per operation, user and system together."""
        return self.user_us + self.system_us

    @property
    def is_generator_bound(self) -> bool:
        """Whether the generator was the bottleneck, so that the server could have done more."""
        return self.generator_busy >= BUSY_LIMIT and self.primary_busy < BUSY_LIMIT


@dataclass(frozen=True)
class Ratio:
    """Holdfast / Redis: the median over the rounds, and the smallest and largest."""

    median: float
    low: float
    high: float


def total_us(run: Run, role: str = "primary") -> float:
    """CPU microseconds per operation of one process in one run."""
    cpu = run["cpu_us"][role]
    return float(cpu["user"] + cpu["system"])


def side_summary(runs: list[Run]) -> SideSummary:
    """The medians of one side's runs."""

    def median(values: list[float]) -> float:
        return float(statistics.median(values))

    throughputs = [float(run["throughput_per_s"]) for run in runs]
    backups = [total_us(run, "backup") for run in runs if "backup" in run["cpu_us"]]
    return SideSummary(
        throughput_per_s=median(throughputs),
        spread=(max(throughputs) - min(throughputs)) / median(throughputs),
        p50_ms=median([run["p50_ms"] for run in runs]),
        p99_ms=median([run["p99_ms"] for run in runs]),
        user_us=median([run["cpu_us"]["primary"]["user"] for run in runs]),
        system_us=median([run["cpu_us"]["primary"]["system"] for run in runs]),
        backup_us=median(backups) if backups else None,
        generator_busy=median([run["generator_busy"] for run in runs]),
        primary_busy=median([total_us(run) * run["throughput_per_s"] / 1e6 for run in runs]),
    )


def ratio_of(values: list[tuple[float, float]]) -> Ratio:
    """The ratio over rounds, from (Holdfast, Redis) of each."""
    ratios = [ours / theirs if theirs else float("nan") for ours, theirs in values]
    return Ratio(float(statistics.median(ratios)), min(ratios), max(ratios))


def runs_of(cell: Cell, side: str) -> list[Run]:
    """One side's runs, a round after another."""
    return [a_round[side] for a_round in cell["rounds"]]


def throughput_ratio(cell: Cell, other: str = "redis") -> Ratio:
    """How much more Holdfast gets done in a second."""
    return ratio_of(
        [
            (a_round["holdfast"]["throughput_per_s"], a_round[other]["throughput_per_s"])
            for a_round in cell["rounds"]
        ]
    )


def cpu_ratio(cell: Cell, other: str = "redis") -> Ratio:
    """How much more CPU time the primary spends on an operation; below 1 is better."""
    return ratio_of(
        [(total_us(a_round["holdfast"]), total_us(a_round[other])) for a_round in cell["rounds"]]
    )


def sides_of(cell: Cell) -> list[str]:
    """The sides that every round of a cell has."""
    return list(cell["rounds"][0]) if cell["rounds"] else []


def cell_key(cell: Cell) -> tuple[str, int, int]:
    """What two results have to agree in to be compared."""
    return (cell["mode"], cell["connections_count"], cell["pipeline"])
