"""Contention for people: the tables and the picture of `contention.py`."""

import statistics
from collections.abc import Callable
from typing import Any

from .parts import Results, median_of, number, ratio_text, worst_of
from .plot import COLOURS
from .report import table
from .summary import Cell, runs_of, sides_of

TITLE = "One lock, many clients: hand-over and fairness"
SHARES = (0.0, 0.5, 0.9, 1.1, 2.0)  # bounds of the histogram, in fair shares
COLUMNS = (
    "clients", "lock", "hand-over p50 ms", "x Clerk", "p95 ms", "max ms", "grants/s",
    "commands/grant", "CPU us/grant", "busy",
)  # fmt: skip
FAIRNESS_COLUMNS = (
    "clients", "lock", "grants/s", "to itself", "wait p50 ms", "p95 ms", "longest ms",
    "grants per client: min", "median", "max", "Jain",
)  # fmt: skip
HISTOGRAM_COLUMNS = ("lock", "none", "to 0.5", "to 0.9", "to 1.1", "to 2", "more")

LEGEND = """\
A **hand-over** is the time from a release, just before it is sent, to the next grant, just after
its reply was received, if that went to another client who was waiting before the release;
*x Clerk* is how many times Clerk's it is. *Holdfast* is `LOCK ... WAIT` over bare sockets, *Clerk*
is `clerk.lock` of Holdfast's Python client (it renews at once what it waited for: one more
command), *redis-py* is its `Lock` with the sleep that is named; replicated, with a `WAIT` behind
each change. *CPU* is the primary's / the backup's for each grant, *busy* how much of a core the
primary and the busiest load process had: near 100 % the load, not the lock, sets the pace. Medians
over the rounds; *max* and *longest* are the worst of all. *Jain* is 1 if all clients had the same
number of grants, 1/n if one had them all; among few grants per client chance alone lowers it.
"""


def histogram(counts: list[int]) -> list[int]:
    """How many clients had nothing; then, up to each bound of SHARES, and beyond the last."""
    fair = sum(counts) / len(counts)
    bins = [0] * (len(SHARES) + 1)
    for count in counts:
        bins[sum(count > bound * fair for bound in SHARES)] += 1
    return bins


def cpu_text(cell: Cell, side: str) -> str:
    """The primary's CPU time per grant, and the backup's if there is one."""
    roles = runs_of(cell, side)[0]["cpu_us_per_grant"]
    return " / ".join(number(median_of(cell, side, f"cpu_us_per_grant.{role}")) for role in roles)


def handover_row(cell: Cell, side: str) -> list[str]:
    """One row on the yielding pattern."""

    def median(path: str) -> str:
        return number(median_of(cell, side, path))

    busy = [median_of(cell, side, f"{who}_busy") for who in ("primary", "generator")]
    return [
        str(cell["contenders_count"]),
        side,
        median("handover_ms.p50"),
        ratio_text(cell, side, "Clerk", "handover_ms.p50"),
        median("handover_ms.p95"),
        number(worst_of(cell, side, "handover_ms.max")),
        median("throughput_per_s"),
        median("commands_per_grant"),
        cpu_text(cell, side),
        ", ".join(f"{part:.0%}" for part in busy),
    ]


def fairness_row(cell: Cell, side: str) -> list[str]:
    """One row on who got the lock."""

    def median(path: str) -> str:
        return number(median_of(cell, side, path))

    counts = [f"{median_of(cell, side, f'client_{which}'):g}" for which in ("min", "median", "max")]
    return [
        str(cell["contenders_count"]),
        side,
        median("throughput_per_s"),
        f"{median_of(cell, side, 'kept_part'):.0%}",
        median("wait_ms.p50"),
        median("wait_ms.p95"),
        number(worst_of(cell, side, "longest_wait_ms")),
        *counts,
        f"{median_of(cell, side, 'jain'):.3f}",
    ]


def histogram_row(cell: Cell, side: str) -> list[str]:
    """How many clients had which share of the grants, on average over the rounds."""
    rounds = [histogram(run["grants_per_client"]) for run in runs_of(cell, side)]
    return [side, *(f"{statistics.mean(counts):g}" for counts in zip(*rounds, strict=True))]


def rows_of(cells: list[Cell], row: Callable[[Cell, str], list[str]]) -> list[list[str]]:
    """A row for each side of each cell."""
    return [row(cell, side) for cell in cells for side in sides_of(cell)]


def chosen(results: Results, **wanted: str) -> list[Cell]:
    """The cells of a mode, of a pattern, or of both."""
    return [c for c in results["cells"] if all(c[key] == wanted[key] for key in wanted)]


def tables(results: Results) -> str:
    """All of it."""
    settings = results["settings"]
    pieces = [
        f"Rounds: {settings['rounds']}, of {settings['seconds']:g} s; the lock is held for"
        f" {settings['hold_ms']:g} ms.\n",
        LEGEND,
    ]
    for mode in settings["modes"]:
        if cells := chosen(results, mode=mode, pattern="yielding"):
            heading = f"## Hand-over, {mode}: who released lets another have it first"
            pieces.append(f"{heading}\n\n{table(COLUMNS, rows_of(cells, handover_row))}\n")
    for mode, pattern in [(m, p) for m in settings["modes"] for p in settings["patterns"]]:
        if cells := chosen(results, mode=mode, pattern=pattern):
            pieces.append(f"## Fairness, {mode}, {pattern}\n")
            pieces.append(table(FAIRNESS_COLUMNS, rows_of(cells, fairness_row)) + "\n")
            pieces.append(histogram_text(cells[-1]))
    return "\n".join(pieces)


def histogram_text(cell: Cell) -> str:
    """The histogram of one cell, in words and a table."""
    rows = rows_of([cell], histogram_row)
    return (
        f"Grants per client, of {cell['contenders_count']}: how many clients had no grant, up to"
        f" half of a fair share, up to 0.9 of it, and so on.\n\n{table(HISTOGRAM_COLUMNS, rows)}\n"
    )


def draw(pyplot: Any, results: Results) -> Any:
    """Hand-over above, a picture for each mode; below, grants per client by pattern."""
    modes, patterns = results["settings"]["modes"], results["settings"]["patterns"]
    columns = max(len(modes), len(patterns))
    figure, axes = pyplot.subplots(2, columns, figsize=(7.5 * columns, 8), squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, mode in zip(axes[0], modes, strict=False):
        if cells := chosen(results, mode=mode, pattern="yielding"):
            draw_handover(axis, mode, cells)
    for axis, pattern in zip(axes[1], patterns, strict=False):
        if cells := chosen(results, mode=modes[0], pattern=pattern):
            draw_shares(axis, f"{modes[0]}, {pattern}", cells[-1])
    figure.suptitle(TITLE)
    return figure


def draw_handover(axes: Any, mode: str, cells: list[Cell]) -> None:
    """Bars of the medians, with a line up to p95."""
    axes.set_visible(True)
    for index, side in enumerate(sides_of(cells[0])):
        heights = [max(median_of(cell, side, "handover_ms.p50"), 1e-3) for cell in cells]
        tops = [median_of(cell, side, "handover_ms.p95") for cell in cells]
        up = [max(0.0, top - height) for top, height in zip(tops, heights, strict=True)]
        places = [i + (index - 1.5) * 0.2 for i in range(len(cells))]
        axes.bar(
            places, heights, 0.19, yerr=[[0.0] * len(up), up], capsize=3, label=side,
            color=COLOURS[index % len(COLOURS)], ecolor="#444444",
        )  # fmt: skip
        for place, height in zip(places, heights, strict=True):
            axes.annotate(number(height), (place, height), fontsize=7.5, ha="right", va="bottom")
    axes.set_yscale("log")
    axes.set_xticks(range(len(cells)), [str(cell["contenders_count"]) for cell in cells])
    axes.set_xlabel("clients")
    axes.set_ylabel("hand-over ms (p50, line to p95)")
    axes.set_title(mode)
    axes.legend(fontsize=8)


def draw_shares(axes: Any, title: str, cell: Cell) -> None:
    """Each client's grants in fair shares, from the least to the most."""
    axes.set_visible(True)
    for index, side in enumerate(sides_of(cell)):
        rounds = [sorted(run["grants_per_client"]) for run in runs_of(cell, side)]
        means = [statistics.mean(at_rank) for at_rank in zip(*rounds, strict=True)]
        fair = statistics.mean(means)
        shares = [mean / fair for mean in means]
        axes.step(
            range(1, len(shares) + 1), shares, where="mid", label=side,
            color=COLOURS[index % len(COLOURS)],
        )  # fmt: skip
    axes.set_yscale("symlog", linthresh=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"the {cell['contenders_count']} clients, by their grants")
    axes.set_ylabel("grants, in fair shares")
    axes.set_title(title)
    axes.legend(fontsize=8)
