"""Pictures: throughput and CPU time per operation, Holdfast beside Redis. Needs matplotlib."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .summary import Cell, runs_of, side_summary, sides_of

# (mode, Redis' side) -> (name in the legend, colour)
HOLDFAST = ("Holdfast", "#1f5fa8")
REDIS = {
    ("primary-only", "redis"): ("Redis", "#d9822b"),
    ("replicated", "redis"): ("Redis, WAIT after each command", "#d9822b"),
    ("replicated", "redis-batch"): ("Redis, one WAIT a batch", "#f0c088"),
}
# of the other parts' pictures: ours in blue, theirs in orange
COLOURS = ("#1f5fa8", "#6fa8dc", "#d9822b", "#f0c088", "#a0a0a0", "#606060")
FAINTER = 0.55  # the system part of a CPU bar


def style_of(mode: str, side: str) -> tuple[str, str]:
    """Legend and colour of a side."""
    return HOLDFAST if side == "holdfast" else REDIS[mode, side]


def bars_of(cells: list[Cell], side: str) -> list[tuple[int, Any]]:
    """(index of the cell, its summary) for the cells that have this side."""
    return [
        (index, side_summary(runs_of(cell, side)))
        for index, cell in enumerate(cells)
        if side in sides_of(cell)
    ]


def offsets(sides: list[str]) -> tuple[float, dict[str, float]]:
    """The width of a bar, and where each side's stands around its cell's tick."""
    width = 0.8 / len(sides)
    return width, {side: (i - (len(sides) - 1) / 2) * width for i, side in enumerate(sides)}


def draw_throughput(axes: Any, mode: str, cells: list[Cell], sides: list[str]) -> None:
    """Operations a second, on a logarithmic scale, with the values on the bars."""
    width, place = offsets(sides)
    for side in sides:
        label, colour = style_of(mode, side)
        bars = bars_of(cells, side)
        at = [index + place[side] for index, _ in bars]
        values = [summary.throughput_per_s / 1000 for _, summary in bars]
        drawn = axes.bar(at, values, width * 0.94, label=label, color=colour)
        axes.bar_label(
            drawn, [f"{v:.3g}" if v < 10 else f"{v:.0f}" for v in values], fontsize=7.5, padding=2
        )
    axes.set_yscale("log")
    axes.set_ylabel("thousand operations / s")
    axes.margins(y=0.15)


def draw_cpu(axes: Any, mode: str, cells: list[Cell], sides: list[str]) -> None:
    """The primary's CPU time: user below, system above and fainter."""
    width, place = offsets(sides)
    for side in sides:
        label, colour = style_of(mode, side)
        bars = bars_of(cells, side)
        at = [index + place[side] for index, _ in bars]
        user = [summary.user_us for _, summary in bars]
        system = [summary.system_us for _, summary in bars]
        axes.bar(at, user, width * 0.94, label=f"{label}: user", color=colour)
        top = axes.bar(at, system, width * 0.94, bottom=user, color=colour, alpha=FAINTER)
        totals = [f"{summary.cpu_us:.1f}" for _, summary in bars]
        axes.bar_label(top, totals, fontsize=7.5, padding=2)
    axes.set_ylabel("primary's CPU us / operation\n(solid user, faint system)")
    axes.margins(y=0.15)


def draw_mode(axes_pair: Any, mode: str, cells: list[Cell]) -> None:
    """One column of the picture."""
    sides = list(dict.fromkeys(side for cell in cells for side in sides_of(cell)))
    ticks = [f"{cell['connections_count']} x {cell['pipeline']}" for cell in cells]
    for axes, drawer in zip(axes_pair, (draw_throughput, draw_cpu), strict=True):
        drawer(axes, mode, cells, sides)
        axes.set_xticks(range(len(cells)), ticks)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    axes_pair[0].set_title(mode)
    axes_pair[0].legend(fontsize=8, loc="upper left")
    axes_pair[1].set_xlabel("connections x pipeline")


def draw(results: dict[str, Any], path: Path) -> bool:
    """Write the picture of throughput; False, with a word of why, if that could not be done."""
    modes = list(dict.fromkeys(cell["mode"] for cell in results["cells"]))
    return bool(modes) and save(lambda pyplot: draw_modes(pyplot, modes, results), path)


def draw_modes(pyplot: Any, modes: list[str], results: dict[str, Any]) -> Any:
    """A column for each mode."""
    size = (7.5 * len(modes), 8)
    figure, axes = pyplot.subplots(2, len(modes), figsize=size, squeeze=False)
    for column, mode in enumerate(modes):
        draw_mode(axes[:, column], mode, [c for c in results["cells"] if c["mode"] == mode])
    m = results["machine"]
    figure.suptitle(f"Lock/unlock, Holdfast beside Redis {m['redis']}; {m['cores_count']} cores")
    return figure


def save(draw_figure: Callable[[Any], Any], path: Path) -> bool:
    """Have a figure drawn, and write it; False, with a word of why, without matplotlib."""
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
        matplotlib.use("Agg")
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        print(f"NO PLOT: {error}; pip install matplotlib", file=sys.stderr)
        return False
    figure = draw_figure(pyplot)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True
