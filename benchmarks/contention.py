"""One lock that many want: how it is handed over, at what cost, and how fairly.

Holdfast (`LOCK ... WAIT` over bare sockets, and its own client, `clerk.lock`) beside redis-py's
`Lock`, which sleeps and asks again. Two patterns of use:

yielding  who has given the lock back asks again only when another has got it. Somebody always
          waits, so this shows how long the lock lies idle between two holders.
greedy    who has given the lock back asks again at once, as a program in a loop does. This shows
          who gets it: a lock that is polled for is mostly taken again by who has just released it.
"""

import argparse
import contextlib
import itertools
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .children import Child, child, sleep_until_ns
from .contend import TURN
from .contention_report import TITLE, draw, tables
from .gauges import calls, cpu_us, sent_count
from .parts import Trials, number, progress, scratch, spread_of, turned
from .run import RunError, positive
from .servers import Pair, running
from .summary import Cell, Run

NAME = "contention"
__all__ = ["NAME", "TITLE", "add_arguments", "draw", "measure", "settle", "tables"]
PATTERNS = ("yielding", "greedy")
CONTENDERS = (2, 10, 100)
SLEEPS_S = (0.1, 0.005)  # redis-py's default, and one for who cannot wait
CONTENDERS_PER_PROCESS = 50  # and two processes at most: a third would have no core
PROCESSES_MAX = 2
WARMUP_S = 0.2  # connections are made in it, too
START_S = 0.02
DRAIN_MAX_S = 30.0


class Grant(NamedTuple):
    """One time that a client had the lock; nanoseconds of the clock that all processes share."""

    client: int
    began_ns: int  # to wait
    granted_ns: int  # its grant was received
    released_ns: int  # its release was about to be sent


# From the grants of a run to its figures: pure


def in_order(grants: list[Grant]) -> list[Grant]:
    """By time; raises RunError if two clients ever had the lock at once."""
    ordered = sorted(grants, key=lambda grant: grant.granted_ns)
    for before, after in itertools.pairwise(ordered):
        if after.granted_ns < before.released_ns:
            raise RunError(f"clients {before.client} and {after.client} both had the lock")
    return ordered


def handovers_ns(ordered: list[Grant], from_ns: int, until_ns: int) -> list[int]:
    """From each release to the next grant, where that went to another, who was waiting already."""
    return [
        after.granted_ns - before.released_ns
        for before, after in itertools.pairwise(ordered)
        if from_ns <= after.granted_ns < until_ns
        and after.client != before.client
        and after.began_ns <= before.released_ns
    ]


def kept_part(ordered: list[Grant], from_ns: int, until_ns: int) -> float:
    """The part of the grants that went to who had just released."""
    clients = [grant.client for grant in ordered if from_ns <= grant.granted_ns < until_ns]
    pairs = list(itertools.pairwise(clients))
    return sum(a == b for a, b in pairs) / max(1, len(pairs))


def waits_ns(ordered: list[Grant], from_ns: int, until_ns: int) -> tuple[list[int], int]:
    """How long each grant was waited for, and the longest wait, be it unfinished at the end."""
    waits = [g.granted_ns - g.began_ns for g in ordered if from_ns <= g.granted_ns < until_ns]
    unfinished = [
        until_ns - grant.began_ns
        for grant in ordered
        if grant.began_ns < until_ns <= grant.granted_ns
    ]
    return waits, max([*waits, *unfinished], default=0)


def jain_index(counts: list[int]) -> float:
    """1 if all have the same, 1/n if one of n has all."""
    squares = sum(count * count for count in counts)
    return sum(counts) ** 2 / (len(counts) * squares) if squares else 0.0


def figures(grants: list[Grant], contenders_count: int, from_ns: int, until_ns: int) -> Run:
    """All that the grants of one run tell of its window."""
    ordered = in_order(grants)
    window = [grant for grant in ordered if from_ns <= grant.granted_ns < until_ns]
    if not window:
        raise RunError("not one grant in the window")
    window_s = (until_ns - from_ns) / 1e9
    per_client = Counter(grant.client for grant in window)
    counts = [per_client[client] for client in range(contenders_count)]
    handovers = handovers_ns(ordered, from_ns, until_ns)
    waits, longest_ns = waits_ns(ordered, from_ns, until_ns)
    held = sorted(grant.released_ns - grant.granted_ns for grant in window)
    return {
        "window_s": window_s,
        "grants_count": len(window),
        "grants_total_count": len(ordered),
        "throughput_per_s": len(window) / window_s,
        "handovers_count": len(handovers),
        "handover_ms": spread_of(handovers),
        "kept_part": kept_part(ordered, from_ns, until_ns),
        "wait_ms": spread_of(waits),
        "longest_wait_ms": longest_ns / 1e6,
        "hold_p50_ms": statistics.median(held) / 1e6,
        "grants_per_client": counts,
        "client_min": min(counts),
        "client_median": statistics.median(counts),
        "client_max": max(counts),
        "jain": jain_index(counts),
    }


# Measuring


class Group(NamedTuple):
    """What the runs of one mode and round share: servers of both kinds, and processes for load.

    The servers that are not measured at the moment are idle.
    """

    pairs: dict[str, Pair]
    children: list[Child]
    folder: Path


@contextlib.contextmanager
def group_of(mode: str, options: argparse.Namespace) -> Iterator[Group]:
    """Everything started; and ended."""
    with contextlib.ExitStack() as stack:
        pairs = {
            system: stack.enter_context(running(system, mode, options.holdfast_command))
            for system in ("holdfast", "redis")
        }
        children = [
            stack.enter_context(child("contend", patched=True)) for _ in range(PROCESSES_MAX)
        ]
        yield Group(pairs, children, stack.enter_context(scratch()))


def sides_wanted(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What a load process has to know of each side."""
    return {
        "Holdfast": {"kind": "raw"},
        "Clerk": {"kind": "clerk"},
        **{
            f"redis-py {sleep_s * 1000:g} ms": {"kind": "redis-py", "sleep_s": sleep_s}
            for sleep_s in options.sleeps
        },
    }


def system_of(kind: str) -> str:
    """Which server a side talks to."""
    return "redis" if kind == "redis-py" else "holdfast"


class Reading(NamedTuple):
    """What the counters said near one end of the window."""

    at_ns: int
    calls: dict[str, int]
    cpu_us: dict[str, float]


def reading_of(pair: Pair, children: list[Child]) -> Reading:
    """Read all counters."""
    pids = pair.pids() | {f"generator {i}": each.pid for i, each in enumerate(children)}
    counted = calls(pair.primary.port)
    return Reading(time.monotonic_ns(), counted, {role: cpu_us(pids[role]) for role in pids})


def run_once(
    group: Group, cell: Cell, side: dict[str, Any], name: str, options: argparse.Namespace
) -> Run:
    """One measurement: all contenders of one kind, on a lock of its own."""
    contenders_count = cell["contenders_count"]
    pair = group.pairs[system_of(side["kind"])]
    needed = -(-contenders_count // CONTENDERS_PER_PROCESS)
    children = group.children[:needed]
    counted = calls(pair.primary.port)
    prepare(children, job_of(group, pair, cell, side, name, options.hold_ms))
    start_ns = time.monotonic_ns() + round(START_S * 1e9)
    from_ns = start_ns + round(WARMUP_S * 1e9)
    until_ns = from_ns + round(options.seconds * 1e9)
    for each in children:
        each.send({"from_ns": start_ns, "until_ns": until_ns})
    before, after = readings_at(pair, children, from_ns, until_ns)
    replies = [each.receive(DRAIN_MAX_S) for each in children]
    grants = [Grant(*grant) for reply in replies for grant in reply["grants"]]
    run = figures(grants, contenders_count, from_ns, until_ns)
    check_counts(side["kind"], counted, calls(pair.primary.port), len(grants))
    run["ran_out_count"] = sum(reply["ran_out_count"] for reply in replies)
    return run | costs(before, after, grants)


def job_of(
    group: Group, pair: Pair, cell: Cell, side: dict[str, Any], name: str, hold_ms: float
) -> dict[str, Any]:
    """What every load process is told."""
    turns = group.folder / "turns"
    turns.write_bytes(TURN.pack(0, time.monotonic_ns(), 0))
    nodes = [pair.primary, *([pair.backup] if pair.backup else [])]
    job = {"ports": [node.port for node in nodes], "name": name, "turns": str(turns)}
    job |= {"hold_ms": hold_ms, "is_yielding": cell["pattern"] == "yielding"}
    return {**side, **job, "contenders_count": cell["contenders_count"]}


def prepare(children: list[Child], job: dict[str, Any]) -> None:
    """Give each process its share of the clients, and wait until all are ready."""
    for index, each in enumerate(children):
        clients = range(index, job["contenders_count"], len(children))
        each.send({**job, "clients": list(clients)})
    for each in children:
        each.receive()


def readings_at(
    pair: Pair, children: list[Child], from_ns: int, until_ns: int
) -> tuple[Reading, Reading]:
    """The counters at both ends of the window."""
    sleep_until_ns(from_ns)
    before = reading_of(pair, children)
    sleep_until_ns(until_ns)
    return before, reading_of(pair, children)


def check_counts(
    kind: str, before: dict[str, int], after: dict[str, int], grants_count: int
) -> None:
    """The server's own count of releases must agree (redis-py's script calls DEL)."""
    command = "del" if kind == "redis-py" else "unlock"
    released = after.get(command, 0) - before.get(command, 0)
    # Clerk sends a request again if its answer is late.
    if released != grants_count and not (kind == "clerk" and released > grants_count):
        raise RunError(f"{grants_count} grants, but the server counted {released} releases")


def costs(before: Reading, after: Reading, grants: list[Grant]) -> dict[str, Any]:
    """Commands and CPU time per grant, of the grants between the two readings."""
    span_us = (after.at_ns - before.at_ns) / 1e3
    count = sum(before.at_ns <= grant.granted_ns < after.at_ns for grant in grants) or 1
    spent_us = {role: after.cpu_us[role] - before.cpu_us[role] for role in before.cpu_us}
    servers = {role: us / count for role, us in spent_us.items() if " " not in role}
    generators = [us for role, us in spent_us.items() if " " in role]
    return {
        "commands_per_grant": sent_count(before.calls, after.calls) / count,
        "cpu_us_per_grant": servers,
        "primary_busy": spent_us["primary"] / span_us,
        "generator_busy": max(generators) / span_us,  # of the busiest of them
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The part's own part of the command line."""
    add = parser.add_argument
    add("--seconds", type=float, help="measured per run (0.6)")
    add("--contenders", nargs="+", type=positive, default=list(CONTENDERS), metavar="N")
    add("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS))
    add("--all-cells", action="store_true", help="the greedy pattern in replicated mode, too")
    add("--sleeps", nargs="+", type=float, default=list(SLEEPS_S), metavar="S", help="redis-py's")
    add("--hold-ms", type=float, default=1.0, help="how long the lock is held (1)")


def settle(options: argparse.Namespace) -> None:
    """Two rounds, and by default some 80 s in all."""
    options.rounds = options.rounds or (1 if options.quick else 2)
    options.seconds = options.seconds or (0.3 if options.quick else 0.6)


def cells_wanted(options: argparse.Namespace) -> list[Cell]:
    """The matrix, empty. What the greedy pattern shows does not depend on a backup."""
    return [
        {"mode": mode, "pattern": pattern, "contenders_count": contenders, "rounds": []}
        for mode in options.modes
        for pattern in options.patterns
        for contenders in options.contenders
        if pattern == "yielding" or mode == options.modes[0] or options.all_cells
    ]


def measure(options: argparse.Namespace, trials: Trials) -> list[Cell]:
    """Round by round, mode by mode."""
    cells = cells_wanted(options)
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
    sides = sides_wanted(options)
    runs: dict[str, Run] = {}
    for side in turned(list(sides), round_index):
        name = f"{cell['pattern']}:{cell['contenders_count']}:{side}"
        runs[side] = run_once(group, cell, sides[side], name, options)
        progress(progress_line(cell, side, runs[side], f"{round_index + 1}/{options.rounds}"))
    cell["rounds"].append({side: runs[side] for side in sides})


def progress_line(cell: Cell, side: str, run: Run, round_text: str) -> str:
    """One line on one run."""
    where = f"{cell['mode']:12} {cell['pattern']:8} n={cell['contenders_count']:<3}"
    return (
        f"{round_text} {where} {side:15} {run['throughput_per_s']:6.0f} grants/s,"
        f" hand-over {number(run['handover_ms']['p50'])} ms,"
        f" Jain {run['jain']:.2f}"
    )
