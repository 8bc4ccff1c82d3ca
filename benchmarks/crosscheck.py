"""`redis-benchmark` as a second, independent generator: single commands, without replication.

It is another program in another language, so a figure that both generators agree on is not an
artefact of one. It sends the same command over random names: nothing is unlocked, so soon most are
refused, on both sides. It ends at the first error reply, but does not look at values; `load.py`
does.
"""

import csv
import statistics
import subprocess
from typing import Any

from .load import HOST, cpu_of, per_operation_us
from .servers import Pair, running

CONNECTIONS_COUNT = 50
NAMES_COUNT = 100_000
REQUESTS_PER_S = {1: 100_000, 16: 400_000}  # by pipeline: how many make about a second
WARMUP_DIVISOR = 4
LIMIT_S = 120.0
COMMANDS = {
    "holdfast": ["LOCK", "lock:__rand_int__", "req:__rand_int__"],
    "redis": ["SET", "key:__rand_int__", "v", "NX", "PX", "30000"],
}

Row = dict[str, Any]


class CrosscheckError(Exception):
    """redis-benchmark failed, or printed what we do not understand."""


def benchmark(port: int, side: str, pipeline: int, requests_count: int) -> dict[str, str]:
    """Run redis-benchmark once; its CSV line by column name."""
    command = ["redis-benchmark", "-h", HOST, "-p", str(port), "-c", str(CONNECTIONS_COUNT)]
    command += ["-P", str(pipeline), "-n", str(requests_count), "-r", str(NAMES_COUNT), "--csv"]
    command += COMMANDS[side]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    lines = [line for line in done.stdout.splitlines() if line.startswith('"')]
    if done.returncode or len(lines) != 2:
        said = (done.stderr or done.stdout).strip()[-400:]
        raise CrosscheckError(f"redis-benchmark ended with {done.returncode}: {said}")
    return next(csv.DictReader(lines))


def run_once(pair: Pair, side: str, pipeline: int, seconds: float) -> Row:
    """Warm up, then measure a fixed number of requests, so that both sides' state grows alike."""
    requests_count = max(1000, round(REQUESTS_PER_S[pipeline] * seconds))
    port, pid = pair.primary.port, pair.primary.process.pid
    benchmark(port, side, pipeline, requests_count // WARMUP_DIVISOR)
    before = cpu_of(pid)
    line = benchmark(port, side, pipeline, requests_count)
    cpu = per_operation_us(before, cpu_of(pid), requests_count)
    return {
        "throughput_per_s": float(line["rps"]),
        "p50_ms": float(line["p50_latency_ms"]),
        "p99_ms": float(line["p99_latency_ms"]),
        "user_us": cpu.user,
        "system_us": cpu.system,
    }


def medians(runs: list[Row]) -> Row:
    """The median of each figure."""
    return {figure: statistics.median(run[figure] for run in runs) for figure in runs[0]}


def measure_pipeline(pipeline: int, rounds: int, seconds: float, command: list[str]) -> Row:
    """Both sides at one depth, taking turns, with fresh servers each time."""
    runs: dict[str, list[Row]] = {side: [] for side in COMMANDS}
    for round_index in range(rounds):
        for side in sorted(runs, reverse=bool(round_index % 2)):
            with running(side, "primary-only", command) as pair:
                runs[side].append(run_once(pair, side, pipeline, seconds))
    pairs = zip(runs["holdfast"], runs["redis"], strict=True)
    ratios = [ours["throughput_per_s"] / theirs["throughput_per_s"] for ours, theirs in pairs]
    sides = {side: medians(of_side) for side, of_side in runs.items()}
    ratio = statistics.median(ratios)
    return {"connections_count": CONNECTIONS_COUNT, "pipeline": pipeline, "ratio": ratio, **sides}


def measure(rounds: int, seconds: float, command: list[str]) -> list[Row]:
    """A row for each pipeline depth."""
    return [measure_pipeline(pipeline, rounds, seconds, command) for pipeline in REQUESTS_PER_S]
