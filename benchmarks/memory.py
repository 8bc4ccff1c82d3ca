"""What a held lock costs in memory: growth of the process, by the number of locks.

`LOCK name reqid PX ms` beside Redis' `SET name owner PX ms`, with names and owners of the same
lengths; on the primary, and on the backup where there is one.
"""

import argparse
import contextlib
import time
from typing import Any

from .fill import Filler
from .gauges import info, keys_count, rss_bytes
from .parts import (
    Results,
    Trials,
    median_of,
    number,
    progress,
    ratio_text,
    turned,
)
from .plot import COLOURS
from .report import table
from .run import RunError, positive
from .servers import Pair, running
from .summary import Cell, Run, runs_of, sides_of

NAME = "memory"
TITLE = "Memory per held lock"
SIDES = ("Holdfast", "Redis")
AIM_RATIO = 3.0
LEASE_MS = 3_600_000
WARM_UP_COUNT = 1_000
STEPS = 10
CALM_S = 0.3
CALM_MAX_S = 10.0
CALM_PART = 0.001
"""Memory has come to rest when it has changed by less than this part for that long."""


def resident(pair: Pair) -> dict[str, int]:
    """Resident bytes by role."""
    return {role: rss_bytes(pid) for role, pid in pair.pids().items()}


def at_rest(pair: Pair) -> dict[str, int]:
    """Resident bytes by role, once they change no more: a table may still be growing."""
    until_s = time.monotonic() + CALM_MAX_S
    before = resident(pair)
    while True:
        time.sleep(CALM_S)
        after = resident(pair)
        is_calm = all(abs(after[r] - before[r]) <= CALM_PART * before[r] for r in before)
        if is_calm or time.monotonic() > until_s:
            return after
        before = after


def backlog_bytes(pair: Pair) -> int:
    """What the primary keeps of the stream, for a backup that was away: bounded, so no lock's."""
    return int(info(pair.primary.port, "replication").get("repl_backlog_histlen", 0))


def run_once(pair: Pair, side: str, count: int) -> Run:
    """Take locks, and watch the processes grow."""
    port = pair.primary.port
    with contextlib.closing(Filler(port, side == "Holdfast")) as filler:
        filler.fill(b"warm", range(WARM_UP_COUNT), lambda _: LEASE_MS)
        before, backlog_before = at_rest(pair), backlog_bytes(pair)
        course: list[tuple[int, dict[str, int]]] = []
        for step in range(STEPS):
            numbers = range(count * step // STEPS, count * (step + 1) // STEPS)
            filler.fill(b"lock", numbers, lambda _: LEASE_MS)
            now = resident(pair) if step < STEPS - 1 else at_rest(pair)
            course.append((numbers.stop, {role: now[role] - before[role] for role in now}))
    held_count = keys_count(port)
    if held_count != count + WARM_UP_COUNT:
        raise RunError(f"{held_count:,} locks are held instead of {count + WARM_UP_COUNT:,}")
    grown = course[-1][1]
    return {
        "count": count,
        "bytes_per_lock": {role: grown[role] / count for role in grown},
        "backlog_bytes_per_lock": (backlog_bytes(pair) - backlog_before) / count,
        "course": course,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The part's own part of the command line."""
    parser.add_argument("--count", type=positive, help="locks (1,000,000)")


def settle(options: argparse.Namespace) -> None:
    """Two rounds, and by default some 70 s in all."""
    options.rounds = options.rounds or (1 if options.quick else 2)
    options.count = options.count or (50_000 if options.quick else 1_000_000)


def measure(options: argparse.Namespace, trials: Trials) -> list[Cell]:
    """Round by round, mode by mode, with fresh servers for each run."""
    cells: list[Cell] = [{"mode": mode, "rounds": []} for mode in options.modes]
    for round_index in range(options.rounds):
        for cell in cells:
            if not trials.may_go_on:
                return cells
            with trials.trial(f"{cell['mode']}, round {round_index + 1}"):
                measure_cell(cell, round_index, options)
    return cells


def measure_cell(cell: Cell, round_index: int, options: argparse.Namespace) -> None:
    """Both sides once."""
    runs: dict[str, Run] = {}
    for side in turned(list(SIDES), round_index):
        with running(side.lower(), cell["mode"], options.holdfast_command) as pair:
            runs[side] = run_once(pair, side, options.count)
        sizes = ", ".join(
            f"{role} {size:.0f}" for role, size in runs[side]["bytes_per_lock"].items()
        )
        which = f"{round_index + 1}/{options.rounds} {cell['mode']:12} {side:8}"
        progress(f"{which} bytes per lock: {sizes}")
    cell["rounds"].append({side: runs[side] for side in SIDES})


# Showing

COLUMNS = (
    "mode", "process", "Holdfast bytes/lock", "Redis bytes/lock", "ratio", "of it stream kept",
)  # fmt: skip
LEGEND = """\
Growth of the resident memory divided by the number of locks; medians over the rounds. A table that
doubles makes this a saw-tooth over the number of locks (see the plot), so compare at one number.
*of it stream kept*: entries (Redis: bytes) that the primary keeps for a backup that was away, up to
a fixed bound, Holdfast's / Redis'; a pair that has run for a while has that memory already.
"""


def row(cell: Cell, role: str) -> list[str]:
    """One process, Holdfast's beside Redis'."""
    path = f"bytes_per_lock.{role}"
    kept = [number(median_of(cell, side, "backlog_bytes_per_lock")) for side in SIDES]
    return [
        cell["mode"],
        role,
        *(f"{median_of(cell, side, path):.0f}" for side in SIDES),
        ratio_text(cell, "Holdfast", "Redis", path),
        " / ".join(kept) if role == "primary" else "-",
    ]


def roles_of(cell: Cell) -> list[str]:
    """The processes that were measured."""
    return list(runs_of(cell, "Holdfast")[0]["bytes_per_lock"])


def aim_line(cell: Cell, role: str) -> str:
    """Whether the aim was reached."""
    ratio = float(ratio_text(cell, "Holdfast", "Redis", f"bytes_per_lock.{role}"))
    verdict = "reached" if ratio <= AIM_RATIO else "NOT reached"
    return f"- {cell['mode']}, {role}: {ratio:.2f} times Redis'; aim {AIM_RATIO:g}: {verdict}"


def tables(results: Results) -> str:
    """All of it."""
    settings = results["settings"]
    each = [(cell, role) for cell in results["cells"] for role in roles_of(cell)]
    how = f"{settings['count']:,} locks under a lease; rounds: {settings['rounds']}.\n"
    aims = "\n".join(aim_line(*one) for one in each) + "\n"
    return "\n".join([how, aims, LEGEND, table(COLUMNS, [row(*one) for one in each])]) + "\n"


def draw(pyplot: Any, results: Results) -> Any:
    """Growth by the number of locks, of the last round; a picture for each mode."""
    cells = results["cells"]
    figure, axes = pyplot.subplots(1, len(cells), figsize=(7.5 * len(cells), 4.5), squeeze=False)
    for axis, cell in zip(axes[0], cells, strict=True):
        for index, side in enumerate(sides_of(cell)):
            course = runs_of(cell, side)[-1]["course"]
            for role, style in zip(roles_of(cell), ("-", ":"), strict=False):
                counts = [count / 1e3 for count, _ in course]
                sizes = [grown[role] / 1e6 for _, grown in course]
                label = f"{side}, {role}"
                axis.plot(counts, sizes, style, color=COLOURS[index * 2], label=label)
        axis.set_title(cell["mode"])
        axis.set_xlabel("thousand locks held")
        axis.set_ylabel("growth of resident memory, MB")
        axis.legend(fontsize=8)
    figure.suptitle(TITLE)
    return figure
