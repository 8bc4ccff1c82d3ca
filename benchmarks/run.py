"""Holdfast beside Redis, in the same minutes on the same machine: `make bench`.

Every measurement gets fresh servers, so that no side carries more state than the other. A round
goes once through all cells; within a cell the sides take turns at going first. What a neighbour on
the machine does to one side it so does to the other, and the ratio of neighbouring runs is what
counts.
"""

import argparse
import itertools
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import crosscheck, machine, plot, report
from .servers import ServerError, running
from .summary import Cell, Run, cell_key

HERE = Path(__file__).resolve().parent
LOAD = HERE / "load.py"
FORMAT = 1  # of the JSON; raise it when a reader of the old one would be misled
CONNECTIONS = (1, 10, 50, 200)
PIPELINES = (1, 16)
MODES = ("primary-only", "replicated")
FAILURES_MAX = 5
WARMUP_PART = 0.25  # of the window, before it
LOAD_OVERHEAD_MAX_S = 30.0  # encoding, connecting and ending, on top of the time asked for


class RunError(Exception):
    """A measurement that came to nothing; the text says why."""


def workloads_of(mode: str, pipeline: int, ids: str) -> dict[str, str]:
    """The workload of each side. With a pipeline, Redis may also wait once for a whole batch."""
    holdfast = "holdfast" if ids == "opaque" else "holdfast-client-ids"
    if mode == "primary-only":
        return {"holdfast": holdfast, "redis": "redis"}
    sides = {"holdfast": holdfast, "redis": "redis-wait"}
    return sides if pipeline == 1 else {**sides, "redis-batch": "redis-wait-batch"}


def run_once(side: str, workload: str, cell: Cell, options: argparse.Namespace) -> Run:
    """One measurement with servers of its own."""
    system = "holdfast" if side == "holdfast" else "redis"
    with running(system, cell["mode"], options.holdfast_command) as pair:
        command = [sys.executable, str(LOAD), "--port", str(pair.primary.port)]
        command += ["--workload", workload, "--connections", str(cell["connections_count"])]
        command += ["--pipeline", str(cell["pipeline"])]
        command += ["--window-ms", str(round(options.seconds * 1000))]
        command += ["--warmup-ms", str(round(options.seconds * 1000 * WARMUP_PART))]
        for role, pid in pair.pids().items():
            command += [f"--{role}-pid", str(pid)]
        limit_s = options.seconds * (1 + WARMUP_PART) + LOAD_OVERHEAD_MAX_S
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
        if done.returncode:
            raise RunError(done.stderr.strip()[-600:])
        run: Run = json.loads(done.stdout)
        return run


def run_cell_round(cell: Cell, round_index: int, options: argparse.Namespace) -> dict[str, Run]:
    """All sides of a cell once, in an order that turns round by round."""
    workloads = workloads_of(cell["mode"], cell["pipeline"], options.request_ids)
    order = list(workloads)
    if round_index % 2:
        order.reverse()
    runs = {side: run_once(side, workloads[side], cell, options) for side in order}
    return {side: runs[side] for side in workloads}


def cells_wanted(options: argparse.Namespace) -> list[Cell]:
    """The matrix, empty."""
    return [
        {"mode": mode, "connections_count": connections, "pipeline": pipeline, "rounds": []}
        for mode in options.modes
        for pipeline in options.pipelines
        for connections in options.connections
    ]


def measure(options: argparse.Namespace) -> tuple[list[Cell], list[str]]:
    """The whole matrix, round by round; a failure loses its round of its cell, and is told.

    After a few the rest is not tried: the figures are of no use any more.
    """
    cells = cells_wanted(options)
    failures: list[str] = []
    for round_index, cell in itertools.product(range(options.rounds), cells):
        if len(failures) == FAILURES_MAX:
            print(f"GIVING UP after {FAILURES_MAX} failures", file=sys.stderr)
            break
        try:
            cell["rounds"].append(run_cell_round(cell, round_index, options))
            print(report.progress_line(cell, round_index, options.rounds), flush=True)
        except (RunError, ServerError, subprocess.TimeoutExpired) as error:
            failures.append(f"{cell_key(cell)}, round {round_index + 1}: {error}")
            print(f"FAILED {failures[-1]}", file=sys.stderr, flush=True)
    return [cell for cell in cells if cell["rounds"]], failures


def measure_crosscheck(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    """redis-benchmark as a second, independent generator."""
    if options.no_crosscheck:
        return [], []
    try:
        return crosscheck.measure(options.rounds, options.seconds, options.holdfast_command), []
    except (crosscheck.CrosscheckError, ServerError, subprocess.TimeoutExpired) as error:
        print(f"FAILED cross-check: {error}", file=sys.stderr)
        return [], [f"cross-check: {error}"]


def all_results(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that goes into the JSON file."""
    machine_before = machine.describe()
    busy_before = machine.busy_ticks()
    cells, failures = measure(options)
    rows, crosscheck_failures = measure_crosscheck(options)
    return {
        "format": FORMAT,
        "machine": {**machine_before, **machine.stolen_part(busy_before)},
        "command": shlex.join(["python", "-m", "benchmarks", *options.argv]),
        "settings": {
            "rounds": options.rounds,
            "seconds": options.seconds,
            "warmup_seconds": options.seconds * WARMUP_PART,
            "request_ids": options.request_ids,
        },
        "failures": failures + crosscheck_failures,
        "cells": cells,
        "crosscheck": rows,
    }


def write(results: dict[str, Any], directory: Path, name: str) -> None:
    """The JSON, the tables and the plot, side by side."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    has_plot = plot.draw(results, directory / f"{name}.png")
    text = report.markdown(results, f"{name}.png" if has_plot else None)
    (directory / f"{name}.md").write_text(text)
    print(f"written: {directory / name}.json, .md{', .png' if has_plot else ''}")


def positive(text: str) -> int:
    """A whole number from 1 up."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The command line, with the settings of `--quick` filled in where nothing else was said."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks [throughput]", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "Other parts: python -m benchmarks contention | expiry | storm | memory | all"
    add = parser.add_argument
    add("--quick", action="store_true", help="1 round of 0.5 s; results are named quick")
    add("--rounds", type=positive, help="times through all cells (5)")
    add("--seconds", type=float, help="measured per run, after the warm-up (2)")
    add("--modes", nargs="+", choices=MODES, default=list(MODES))
    add("--connections", nargs="+", type=positive, default=list(CONNECTIONS), metavar="N")
    add("--pipelines", nargs="+", type=positive, default=list(PIPELINES), metavar="P")
    add("--request-ids", choices=("opaque", "client"), default="opaque", help="Holdfast's")
    add("--no-crosscheck", action="store_true", help="skip redis-benchmark")
    add("--compare", type=Path, metavar="OLD.json", help="print what differs from older results")
    add("--no-run", action="store_true", help="measure nothing: show the results that are there")
    add("--name", help="of the files in --directory (latest)")
    add("--directory", type=Path, default=HERE / "results", help="for the results")
    add("--holdfast-command", type=shlex.split, metavar="COMMAND", help="to measure another build")
    options = parser.parse_args(argv)
    options.argv = argv
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = options.seconds or (0.5 if options.quick else 2.0)
    options.name = options.name or ("quick" if options.quick else "latest")
    default_command = [sys.executable, "-m", "holdfast.server", "serve"]
    options.holdfast_command = options.holdfast_command or default_command
    return options


def main(argv: list[str]) -> int:
    """0; or 1 if a reply was wrong or a server failed: then the last good results stay."""
    options = parse_arguments(argv)
    old = json.loads(options.compare.read_text()) if options.compare else None
    if options.no_run:
        results = json.loads((options.directory / f"{options.name}.json").read_text())
    else:
        results = all_results(options)
    write(results, options.directory, "failed" if results["failures"] else options.name)
    print("\n" + report.markdown(results, None))
    if old:
        print(report.comparison(old, results))
    return 1 if results["failures"] else 0
