"""How late a lease that has run out is noticed: idle, and under a steady load.

Leases of varied length, one waiter each. Lateness counts from the end of the lease as its holder
reckons it, from just before the request was sent, to the moment at which the waiter has its grant.
A grant that came early is a failure of the whole run.
"""

import argparse
import contextlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from .children import Child, child, sleep_until_ns
from .gauges import Wire
from .parts import (
    Results,
    Trials,
    median_of,
    number,
    progress,
    spread_of,
    turned,
    worst_of,
)
from .plot import COLOURS
from .report import table
from .run import RunError, positive
from .servers import Pair, running
from .summary import Cell, Run, runs_of, sides_of

NAME = "expiry"
TITLE = "Leases that run out: how late the next waiter is granted"
LOADS = ("idle", "loaded")
LOAD_INTERVAL_US = 2_000  # of each stream of the load
LEASE_MS = (50, 500)
SLEEPS_S = (0.1, 0.005)
START_S = 0.02
END_MAX_S = 40.0


class Group(NamedTuple):
    """What the runs of one mode and round share."""

    pairs: dict[str, Pair]
    lanes: Child
    load: Child


@contextlib.contextmanager
def group_of(mode: str, options: argparse.Namespace) -> Iterator[Group]:
    """Everything started; and ended. Redis tells of keys that expire."""
    with contextlib.ExitStack() as stack:
        pairs = {
            system: stack.enter_context(running(system, mode, options.holdfast_command))
            for system in ("holdfast", "redis")
        }
        wire = Wire(pairs["redis"].primary.port)
        wire.expect(b"+OK", b"CONFIG", b"SET", b"notify-keyspace-events", b"Kx")
        wire.close()
        lanes = stack.enter_context(child("lanes", patched=True))
        yield Group(pairs, lanes, stack.enter_context(child("paced")))


def sides_wanted(mode: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What the lanes have to know of each side. A replica changes nothing for Redis' waiters."""
    sides: dict[str, dict[str, Any]] = {"Holdfast": {"kind": "holdfast"}}
    if mode == options.modes[0]:
        for sleep_s in options.sleeps:
            sides[f"redis-py {sleep_s * 1000:g} ms"] = {"kind": "redis-py", "sleep_s": sleep_s}
        sides["Redis events"] = {"kind": "events"}
    return sides


@contextlib.contextmanager
def under_load(group: Group, pair: Pair, is_holdfast: bool, rate: int) -> Iterator[list[int]]:
    """A steady load beside the block; afterwards the list holds the number of its requests."""
    requests: list[int] = []
    if not rate:
        yield requests
        return
    streams_count = max(1, round(rate * LOAD_INTERVAL_US / 1e6))
    kinds = ["LOCK" if is_holdfast else "SET"] * streams_count
    job = {"port": pair.primary.port, "kinds": kinds, "interval_us": LOAD_INTERVAL_US}
    group.load.send(job)
    group.load.receive()
    group.load.send({"go": True})
    yield requests
    group.load.send({"stop": True})
    streams = group.load.receive(END_MAX_S)["streams"]
    requests.append(sum(len(stream["waits"]) for stream in streams))


def run_once(group: Group, cell: Cell, name: str, side: dict[str, Any],
             options: argparse.Namespace) -> Run:  # fmt: skip
    """One measurement."""
    is_holdfast = side["kind"] == "holdfast"
    pair = group.pairs["holdfast" if is_holdfast else "redis"]
    job = {**side, "port": pair.primary.port, "lanes": options.lanes, "name": name}
    group.lanes.send({**job, "lease_ms": options.lease_ms})
    group.lanes.receive()
    rate = options.load_rate if cell["load"] == "loaded" else 0
    began_ns = time.monotonic_ns()
    with under_load(group, pair, is_holdfast, rate) as requests:
        from_ns = time.monotonic_ns() + round(START_S * 1e9)
        until_ns = from_ns + round(options.seconds * 1e9)
        group.lanes.send({"from_ns": from_ns, "until_ns": until_ns})
        sleep_until_ns(until_ns)
        lateness = group.lanes.receive(END_MAX_S)["lateness"]
    took_s = (time.monotonic_ns() - began_ns) / 1e9
    return figures(lateness) | {"load_per_s": sum(requests) / took_s}


def figures(lateness: list[tuple[int, int]]) -> Run:
    """The lateness of one run; raises RunError if anything was granted early."""
    if not lateness:
        raise RunError("not one lease ran out")
    lease_ms, earliest_ns = min(lateness, key=lambda each: each[1])
    if earliest_ns < 0:
        raise RunError(f"a lease of {lease_ms} ms ended {-earliest_ns / 1e6:.3f} ms early")
    late_ns = [late_ns for _, late_ns in lateness]
    return {
        "leases_count": len(lateness),
        "late_ms": spread_of(late_ns),
        "earliest_ms": earliest_ns / 1e6,
        "lateness_ms": [round(late_ns / 1e6, 3) for late_ns in sorted(late_ns)],
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The part's own part of the command line."""
    add = parser.add_argument
    add("--seconds", type=float, help="measured per run (2)")
    add("--lanes", type=positive, default=40, help="leases that run at a time (40)")
    add("--lease-ms", nargs=2, type=positive, default=list(LEASE_MS), metavar=("FROM", "TO"))
    add("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    add("--load-rate", type=positive, default=4000, help="requests a second of the load (4000)")
    add("--sleeps", nargs="+", type=float, default=list(SLEEPS_S), metavar="S", help="redis-py's")


def settle(options: argparse.Namespace) -> None:
    """By default some 75 s in all."""
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (0.5 if options.quick else 1.5)


def measure(options: argparse.Namespace, trials: Trials) -> list[Cell]:
    """Round by round, mode by mode."""
    cells: list[Cell] = [
        {"mode": mode, "load": load, "rounds": []}
        for mode in options.modes
        for load in options.loads
    ]
    for round_index in range(options.rounds):
        for mode in options.modes:
            if not trials.may_go_on:
                return cells
            with trials.trial(f"{mode}, round {round_index + 1}"), group_of(mode, options) as group:
                for cell in cells:
                    if cell["mode"] == mode:
                        measure_cell(group, cell, round_index, options)
    return cells


def measure_cell(group: Group, cell: Cell, round_index: int, options: argparse.Namespace) -> None:
    """All sides of a cell once."""
    sides = sides_wanted(cell["mode"], options)
    runs: dict[str, Run] = {}
    for side in turned(list(sides), round_index):
        name = f"{cell['load']}:{side}"
        runs[side] = run = run_once(group, cell, name, sides[side], options)
        progress(
            f"{round_index + 1}/{options.rounds} {cell['mode']:12} {cell['load']:6} {side:15}"
            f" {run['leases_count']} leases, late p50 {number(run['late_ms']['p50'])} ms,"
            f" max {number(run['late_ms']['max'])} ms"
        )
    cell["rounds"].append({side: runs[side] for side in sides})


# Showing

COLUMNS = (
    "mode", "load/s", "waiter", "leases", "late p50 ms", "p95 ms", "p99 ms", "max ms",
    "earliest ms",
)  # fmt: skip
LEGEND = """\
**late** is the time from the end of a lease, as its holder reckons it from just before its request
was sent, to the grant of the one who waited; so it includes the way of the request, and the
server's clock of whole milliseconds. *Holdfast* is `LOCK ... WAIT`, *redis-py* is its `Lock` with
the sleep that is named, *Redis events* waits for Redis' word that the key has expired, then takes
it. None may be early: *earliest* is the smallest of all. Medians over the rounds; *max* is the
worst of all.
"""


def row(cell: Cell, side: str) -> list[str]:
    """One row of the table."""
    leases_count = sum(run["leases_count"] for run in runs_of(cell, side))
    earliest_ms = min(run["earliest_ms"] for run in runs_of(cell, side))
    return [
        cell["mode"],
        f"{median_of(cell, side, 'load_per_s'):,.0f}",
        side,
        f"{leases_count:,}",
        *(number(median_of(cell, side, f"late_ms.{part}")) for part in ("p50", "p95", "p99")),
        number(worst_of(cell, side, "late_ms.max")),
        number(earliest_ms),
    ]


def tables(results: Results) -> str:
    """All of it."""
    settings = results["settings"]
    first, last = settings["lease_ms"]
    how = (
        f"Rounds: {settings['rounds']}, of {settings['seconds']:g} s;"
        f" {settings['lanes']} leases at a time, of {first} to {last} ms.\n"
    )
    rows = [row(cell, side) for cell in results["cells"] for side in sides_of(cell)]
    return "\n".join([how, LEGEND, table(COLUMNS, rows)]) + "\n"


def draw(pyplot: Any, results: Results) -> Any:
    """Which part of the waiters was granted how long after the end; a picture for each load."""
    loads = results["settings"]["loads"]
    figure, axes = pyplot.subplots(1, len(loads), figsize=(7.5 * len(loads), 4.5), squeeze=False)
    for axis, load in zip(axes[0], loads, strict=True):
        ours, theirs = iter(COLOURS[:2]), iter(COLOURS[2:] * 9)
        for cell in [cell for cell in results["cells"] if cell["load"] == load]:
            for side in sides_of(cell):
                colour = next(ours if side == "Holdfast" else theirs)
                draw_late(axis, f"{side}, {cell['mode']}", colour, runs_of(cell, side))
        axis.set_xscale("log")
        axis.set_xlabel("ms after the lease's end")
        axis.set_ylabel("part of the waiters granted")
        axis.set_title(load)
        axis.legend(fontsize=8)
    figure.suptitle(TITLE)
    return figure


def draw_late(axes: Any, label: str, colour: str, runs: list[Run]) -> None:
    """One curve, of all rounds together."""
    late_ms = sorted(late for run in runs for late in run["lateness_ms"])
    parts = [(i + 1) / len(late_ms) for i in range(len(late_ms))]
    axes.step(late_ms, parts, where="post", color=colour, label=label)
