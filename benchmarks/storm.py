"""A million leases that run out within one second: does anybody else have to wait?

The leases' ends are spread over a second, in no order. Meanwhile another process sends PINGs, and
takes and gives back a lock of its own, at a steady pace (see `paced.py`), and the number of locks
that are left is asked for now and then.
"""

import argparse
import contextlib
import time
from typing import Any

from .children import Child, child
from .fill import Filler
from .gauges import keys_count
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

NAME = "storm"
TITLE = "Leases that run out all at once"
SIDES = ("Holdfast", "Redis")
PACE_US = 1_000
TRIAL_COUNT = 10_000  # locks taken to learn how fast that goes
TRIAL_LEASE_MS = 100
HASTE = 1.3  # the leases' ends are set for filling that takes so much longer than the trial
LEAD_S = 1.5  # and that much later: before it, waits are measured in peace
CALM_S = 1.0
SPREAD_MS = 1_000
STEP = 7_919  # a prime, so that consecutive locks end far apart
LOOK_S = 0.05
GONE_MAX_S = 120.0
AFTER_S = 0.2
STOP_MAX_S = 30.0
CLOCK_S = 1e-9


class Storm:
    """The leases of one run: `count` of them, which end from `start_s` on, within a second."""

    def __init__(self, count: int, start_s: float) -> None:
        self.count = count
        self.start_s = start_s
        self.end_s = start_s + SPREAD_MS / 1000

    def lease_ms(self, index: int) -> int:
        """What one lock's lease has to be, asked for now; raises RunError if it is too late."""
        left_ms = round((self.start_s - time.monotonic()) * 1000) + index * STEP % SPREAD_MS
        if left_ms < 1:
            raise RunError("taking the locks took longer than expected: the first have run out")
        return left_ms


def prepare(filler: Filler, port: int, count: int) -> Storm:
    """Learn how fast locks can be taken, and when the leases can end therefore."""
    trial_count = min(TRIAL_COUNT, count)
    took_s = filler.fill(b"trial", range(trial_count), lambda _: TRIAL_LEASE_MS)
    wait_until_gone(port, time.monotonic() + GONE_MAX_S)
    return Storm(count, time.monotonic() + took_s * count / trial_count * HASTE + LEAD_S)


def wait_until_gone(port: int, until_s: float) -> list[tuple[float, int]]:
    """Wait until no lock is left; when there were how many."""
    seen: list[tuple[float, int]] = []
    while not seen or seen[-1][1] > 1:  # one may be the paced client's
        if time.monotonic() > until_s:
            raise RunError(f"{seen[-1][1]:,} leases have not ended {GONE_MAX_S:g} s later")
        time.sleep(LOOK_S)
        seen.append((time.monotonic(), keys_count(port)))
    return seen


def run_once(pair: Pair, paced: Child, mode: str, side: str, count: int) -> Run:
    """Take all the locks, wait for their end, and see who had to wait."""
    port = pair.primary.port
    lock = "LOCK" if side == "Holdfast" else "SET, WAIT" if mode == "replicated" else "SET"
    with contextlib.closing(Filler(port, side == "Holdfast")) as filler:
        storm = prepare(filler, port, count)
        fill_s = filler.fill(b"lock", range(count), storm.lease_ms)
    if storm.start_s - time.monotonic() < CALM_S / 2:
        raise RunError(f"taking the locks took {fill_s:.1f} s, longer than expected")
    time.sleep(max(0.0, storm.start_s - CALM_S - time.monotonic()))
    taken_count = keys_count(port)
    paced.send({"port": port, "kinds": ["PING", lock], "interval_us": PACE_US})
    paced.receive()
    paced.send({"go": True})
    time.sleep(max(0.0, storm.start_s - time.monotonic()))
    seen = wait_until_gone(port, storm.end_s + GONE_MAX_S)
    time.sleep(AFTER_S)
    paced.send({"stop": True})
    reply = paced.receive(STOP_MAX_S)
    if taken_count != count:
        raise RunError(f"{taken_count:,} of {count:,} locks were held when the first was to end")
    return {"count": count, "fill_s": fill_s} | figures(storm, seen, reply)


def figures(storm: Storm, seen: list[tuple[float, int]], reply: dict[str, Any]) -> Run:
    """Waits before and during the storm, and when it was over."""
    gone_s = seen[-1][0]
    ping, lock = (stream["waits"] for stream in reply["streams"])
    waits = {"ping": ping, "lock": lock}
    run: Run = {"gone_s": gone_s - storm.end_s}
    for name, start_s, end_s in (
        ("calm", storm.start_s - CALM_S, storm.start_s),
        ("storm", storm.start_s, gone_s),
    ):
        for kind, each in waits.items():
            inside = [wait for sent, wait in each if start_s <= sent * CLOCK_S < end_s]
            run[f"{name}_{kind}_ms"] = spread_of(inside)
        late = [ns for when, ns in reply["late"] if start_s <= when * CLOCK_S < end_s]
        run[f"{name}_own_ms"] = max(late, default=0) / 1e6
    run["left"] = [(round(when - storm.start_s, 3), left) for when, left in seen]
    run["course"] = {kind: course_of(each, storm.start_s) for kind, each in waits.items()}
    return run


def course_of(waits: list[tuple[int, int]], start_s: float) -> list[tuple[float, float]]:
    """The longest wait in ms of each short while, with its time from the storm's start."""
    longest: dict[int, int] = {}
    for sent_ns, wait_ns in waits:
        while_index = int((sent_ns * CLOCK_S - start_s) // LOOK_S)
        longest[while_index] = max(longest.get(while_index, 0), wait_ns)
    return [(round(i * LOOK_S, 3), wait / 1e6) for i, wait in sorted(longest.items())]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The part's own part of the command line."""
    parser.add_argument("--count", type=positive, help="leases that end at once (1,000,000)")


def settle(options: argparse.Namespace) -> None:
    """One round, and by default some 80 s in all."""
    options.rounds = options.rounds or 1
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
        with (
            running(side.lower(), cell["mode"], options.holdfast_command) as pair,
            child("paced") as paced,
        ):
            runs[side] = run = run_once(pair, paced, cell["mode"], side, options.count)
        progress(
            f"{round_index + 1}/{options.rounds} {cell['mode']:12} {side:8}"
            f" taken in {run['fill_s']:.1f} s; PING waited at most"
            f" {number(run['storm_ping_ms']['max'])} ms, a lock"
            f" {number(run['storm_lock_ms']['max'])} ms; all gone after {run['gone_s']:.1f} s"
        )
    cell["rounds"].append({side: runs[side] for side in SIDES})


# Showing

COLUMNS = (
    "mode", "server", "what", "calm p50 ms", "p99 ms", "max ms", "storm p50 ms", "p99 ms",
    "max ms", "generator late ms", "gone after s",
)  # fmt: skip
LEGEND = """\
*calm* is the second before the first of these leases ends, *storm* the time from then until no lock
is left; **gone after** counts from the end of the last lease. *PING* needs nothing but a turn of
the server's loop, so its longest wait is the loop's longest pause; *lock* is `LOCK` and `UNLOCK` in
turns (Redis: `SET NX PX` and `DEL`; replicated, each with a `WAIT`). Requests are sent at a steady
pace, answered or not, so a pause is felt by all that were due in it. *generator late* is what the
measuring process itself was late by: less than that cannot be told. (Redis answers for a key that
has expired as if it were gone, as Holdfast does; *gone* is when its memory is free as well.)
Medians over the rounds; *max* is the worst of all.
"""


def rows(cell: Cell) -> list[list[str]]:
    """PING and lock, of both sides."""
    made = []
    for side in sides_of(cell):
        for kind in ("ping", "lock"):
            waits = [
                show(cell, side, f"{phase}_{kind}_ms.{part}")
                for phase in ("calm", "storm")
                for part, show in (("p50", median_text), ("p99", median_text), ("max", worst_text))
            ]
            late = max(worst_of(cell, side, f"{phase}_own_ms") for phase in ("calm", "storm"))
            gone = number(median_of(cell, side, "gone_s"))
            what = "PING" if kind == "ping" else "lock"
            made.append([cell["mode"], side, what, *waits, number(late), gone])
    return made


def median_text(cell: Cell, side: str, path: str) -> str:
    """The median of the rounds."""
    return number(median_of(cell, side, path))


def worst_text(cell: Cell, side: str, path: str) -> str:
    """The worst of the rounds."""
    return number(worst_of(cell, side, path))


def tables(results: Results) -> str:
    """All of it."""
    settings = results["settings"]
    how = f"{settings['count']:,} leases; rounds: {settings['rounds']}.\n"
    made = table(COLUMNS, [row for cell in results["cells"] for row in rows(cell)])
    return "\n".join([how, LEGEND, made]) + "\n"


def draw(pyplot: Any, results: Results) -> Any:
    """The last round's course: the longest waits above, the locks that are left below."""
    cells = results["cells"]
    figure, axes = pyplot.subplots(2, len(cells), figsize=(7.5 * len(cells), 8), squeeze=False)
    for column, cell in enumerate(cells):
        waits, left = axes[:, column]
        for index, side in enumerate(sides_of(cell)):
            run = runs_of(cell, side)[-1]
            for kind, style in (("ping", "-"), ("lock", ":")):
                times, values = zip(*run["course"][kind], strict=True)
                colour = COLOURS[index * 2]
                label = f"{side}, {'PING' if kind == 'ping' else kind}"
                waits.plot(times, values, style, color=colour, label=label)
            times, counts = zip(*run["left"], strict=True)
            left.plot(times, counts, color=COLOURS[index * 2], label=side)
        waits.set_title(cell["mode"])
        waits.set_yscale("log")
        waits.set_ylabel(f"longest wait in {LOOK_S * 1000:g} ms, ms")
        left.set_ylabel("locks left")
        left.set_xlabel("s since the first lease's end")
        waits.legend(fontsize=8)
        left.legend(fontsize=8)
    figure.suptitle(f"{results['settings']['count']:,} leases end within a second")
    return figure
