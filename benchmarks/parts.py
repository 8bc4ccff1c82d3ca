"""What the parts of the benchmark beside throughput have in common.

A part is a module with the constants and functions of `Part`. Its measurements come in *cells* (one
setting each, such as a mode and a number of clients); a cell holds, for each round, one run of each
side: plain data, which goes into the JSON file as it is.
"""

import argparse
import contextlib
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from . import machine, plot, report
from .children import ChildError
from .load import LoadError, percentile
from .run import FAILURES_MAX, FORMAT, HERE, MODES, RunError, positive
from .servers import ServerError
from .summary import Cell, Run, runs_of

Results = dict[str, Any]

FAILURES = (
    RunError, ServerError, ChildError, LoadError, OSError, subprocess.TimeoutExpired,
)  # fmt: skip


class Part(Protocol):
    """A module such as `contention`."""

    NAME: str
    TITLE: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The part's own part of the command line."""

    def settle(self, options: argparse.Namespace) -> None:
        """Fill in what the command line left open; `options.quick` asks for little of all."""

    def measure(self, options: argparse.Namespace, trials: "Trials") -> list[Cell]:
        """All rounds of all cells."""

    def tables(self, results: Results) -> str:
        """Markdown: what it means first, then the tables."""

    def draw(self, pyplot: Any, results: Results) -> Any:
        """A figure; None if there is nothing to draw."""


class Trials:
    """Failures so far. One loses what it interrupts, and is told; after a few nothing is tried."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    @contextlib.contextmanager
    def trial(self, what: str) -> Iterator[None]:
        """The place where failures of a measurement end up."""
        try:
            yield
        except FAILURES as error:
            self.failures.append(f"{what}: {error}")
            print(f"FAILED {self.failures[-1]}", file=sys.stderr, flush=True)

    @property
    def may_go_on(self) -> bool:
        """False once the figures are of no use any more."""
        return len(self.failures) < FAILURES_MAX


def turned(sides: list[str], round_index: int) -> list[str]:
    """The order of the sides: they take turns at going first."""
    return sides[::-1] if round_index % 2 else sides


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        yield Path(folder)


def progress(text: str) -> None:
    """A line on what was just measured."""
    print(text, flush=True)


# Figures


def spread_of(values_ns: list[int]) -> dict[str, float]:
    """p50, p95, p99 and max in milliseconds; zeros if there was nothing."""
    ordered = sorted(values_ns) or [0]
    parts = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: percentile(ordered, part) / 1e6 for name, part in parts.items()}


def at(run: Run, path: str) -> float:
    """A figure of a run by its path: "wait_ms.p50"."""
    found: Any = run
    for key in path.split("."):
        found = found[key]
    return float(found)


def median_of(cell: Cell, side: str, path: str) -> float:
    """The median over the rounds."""
    return float(statistics.median(at(run, path) for run in runs_of(cell, side)))


def worst_of(cell: Cell, side: str, path: str) -> float:
    """The largest of all rounds."""
    return max(at(run, path) for run in runs_of(cell, side))


def ratio_text(cell: Cell, side: str, other: str, path: str) -> str:
    """How many times the other side's figure this side's is: the median of the rounds' ratios."""
    ratios = [
        at(a_round[side], path) / at(a_round[other], path)
        for a_round in cell["rounds"]
        if at(a_round[other], path)
    ]
    return number(statistics.median(ratios)) if ratios else "-"


def number(value: float) -> str:
    """Three digits that count, and no more after the point than make sense."""
    if value and abs(value) < 0.0995:
        return f"{value:.3f}"
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:,.{digits}f}"


# Running a part, from the command line to the files


def parser_of(part: Part | ModuleType) -> argparse.ArgumentParser:
    """The command line of one part."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {part.NAME}", description=part.__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--quick", action="store_true", help="little of all; results are named quick")
    add("--rounds", type=positive, help="times through all cells")
    add("--modes", nargs="+", choices=MODES, default=list(MODES))
    part.add_arguments(parser)
    add("--no-run", action="store_true", help="measure nothing: show the results that are there")
    add("--name", help=f"of the files in --directory ({part.NAME})")
    add("--directory", type=Path, default=HERE / "results", help="for the results")
    add("--holdfast-command", type=shlex.split, metavar="COMMAND", help="to measure another build")
    return parser


def options_of(part: Part | ModuleType, argv: list[str]) -> argparse.Namespace:
    """The command line, with all that it left open."""
    options = parser_of(part).parse_args(argv)
    options.argv = [part.NAME, *argv]
    options.name = options.name or (f"quick.{part.NAME}" if options.quick else part.NAME)
    default_command = [sys.executable, "-m", "holdfast.server", "serve"]
    options.holdfast_command = options.holdfast_command or default_command
    part.settle(options)
    return options


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the run was asked for, for the JSON file."""
    left_out = {"argv", "name", "directory", "holdfast_command", "no_run", "quick"}
    return {key: value for key, value in vars(options).items() if key not in left_out}


def all_results(part: Part | ModuleType, options: argparse.Namespace) -> Results:
    """Everything that goes into the JSON file."""
    machine_before, busy_before = machine.describe(), machine.busy_ticks()
    trials = Trials()
    cells = part.measure(options, trials)
    return {
        "format": FORMAT,
        "part": part.NAME,
        "machine": {**machine_before, **machine.stolen_part(busy_before)},
        "command": shlex.join(["python", "-m", "benchmarks", *options.argv]),
        "settings": settings_of(options),
        "failures": trials.failures,
        "cells": [cell for cell in cells if cell["rounds"]],
    }


def markdown(part: Part | ModuleType, results: Results, plot_name: str | None) -> str:
    """The whole page."""
    how = f"{report.machine_text(results['machine'])}`{results['command']}`\n"
    pieces = [f"# {part.TITLE}\n", how]
    if results["failures"]:
        failures = "\n".join(f"- {failure}" for failure in results["failures"])
        pieces.append(f"## FAILED: do not use these figures\n\n{failures}\n")
    if plot_name:
        pieces.append(f"![{part.TITLE}]({plot_name})\n")
    if results["cells"]:
        pieces.append(part.tables(results))
    return "\n".join(pieces)


def write(part: Part | ModuleType, results: Results, directory: Path, name: str) -> None:
    """The JSON, the tables and the plot, side by side."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.json").write_text(json.dumps(results, separators=(",", ":")) + "\n")
    picture = directory / f"{name}.png"
    has_plot = bool(results["cells"]) and plot.save(lambda it: part.draw(it, results), picture)
    text = markdown(part, results, f"{name}.png" if has_plot else None)
    (directory / f"{name}.md").write_text(text)
    print(f"written: {directory / name}.json, .md{', .png' if has_plot else ''}")


def main(part: Part | ModuleType, argv: list[str]) -> int:
    """0; or 1 if anything was wrong: then the last good results stay."""
    options = options_of(part, argv)
    if options.no_run:
        results = json.loads((options.directory / f"{options.name}.json").read_text())
    else:
        results = all_results(part, options)
    name = f"failed.{part.NAME}" if results["failures"] else options.name
    write(part, results, options.directory, name)
    print("\n" + markdown(part, results, None))
    return 1 if results["failures"] else 0
