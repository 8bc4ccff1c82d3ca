"""A backup that was lost comes back, under load: does anybody have to wait for it?

In two ways. *full*: the backup is killed and started again, empty, so it is sent everything.
*partial*: it is stopped until its primary serves alone, and then goes on, so it is sent what it
missed. The primary is under a steady load all the time. Another process sends PINGs, and takes and
gives back a lock of its own, at a steady pace (see `paced.py`).

    calm                  lost      alone              resync                      after
    |- both serve --------|- wait --|- the load goes on |- JOIN ... member again ---|

Waits of the calm are what is normal; those of the resync, beside them, are the result.
"""

import argparse
import contextlib
import re
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .children import Child, child
from .fill import Filler
from .gauges import INFO_MAX_S, Wire, cpu_us
from .parts import Results, Trials, at, median_of, number, progress, spread_of, turned, worst_of
from .plot import COLOURS
from .report import table
from .run import RunError, positive
from .run import run_once as throughput_once
from .servers import POLL_S, Node, Pair, ask, running, started
from .storm import CLOCK_S, course_of, median_text, worst_text
from .summary import Cell, Run, runs_of, sides_of

NAME = "resync"
TITLE = "A backup that comes back under load"
SIDES = ("Holdfast", "Redis")
KINDS = ("full", "partial")
WAITS = {"ping": "PING", "lock": "lock"}
MODE = "replicated"
AIM_RATIO = 3.0
LOAD_PART = 0.45  # of what 50 connections get out of Holdfast
LOAD_INTERVAL_US = 4_000  # of each stream of the load
PACE_US = 1_000
LEASE_MS = 3_600_000
REDIS_BACKLOG = b"16mb"  # as much as Holdfast keeps for a backup that is away
SETTLE_S = 0.5
ALONE_S = 1.0
RESYNC_MIN_S = 1.0
"""Waits are taken over so long from the JOIN at least: a hundredth of less is a few requests."""
AFTER_S = 0.5
LOST_MAX_S = 20.0
BACK_MAX_S = 180.0
END_MAX_S = 60.0


class Look(NamedTuple):
    """What a primary says about its backup."""

    at_s: float
    state: str  # "paired", "alone", or what is between
    begun: dict[str, int]  # resyncs so far, by their kind
    offset: int  # of the stream: Holdfast counts entries, Redis bytes


def look(port: int) -> Look:
    """Ask; both servers use Redis' words for it."""
    at_s = time.monotonic()
    text = ask(port, "INFO stats\r\nINFO replication", INFO_MAX_S)
    said = dict(re.findall(r"^(\w+):([^\r]*)\r$", text, re.MULTILINE))
    if "connected_slaves" not in said:
        raise RunError(f"INFO on port {port} was answered {text[:200]!r}")
    is_paired = said.get("holdfast_mode", "paired") == "paired" and "state=online" in text
    is_alone = said.get("holdfast_mode", "solo") == "solo" and said["connected_slaves"] == "0"
    state = "paired" if is_paired else "alone" if is_alone else "between"
    begun = {"full": int(said["sync_full"]), "partial": int(said["sync_partial_ok"])}
    return Look(at_s, state, begun, int(said["master_repl_offset"]))


def looks_until(port: int, is_so: Callable[[Look], bool], limit_s: float, what: str) -> list[Look]:
    """The last look at which it was not so, and the first at which it is."""
    until_s = time.monotonic() + limit_s
    last = now = look(port)
    while not is_so(now):
        if time.monotonic() > until_s:
            raise RunError(f"it took more than {limit_s:g} s until {what}")
        time.sleep(POLL_S)
        last, now = now, look(port)
    return [last, now]


# The backup goes and comes


def lose(kind: str, pair: Pair, side: str) -> None:
    """The backup dies, or is stopped. Redis would miss one that is stopped after a minute only; so
    it is told."""
    assert pair.backup is not None
    process = pair.backup.process
    process.send_signal(signal.SIGKILL if kind == "full" else signal.SIGSTOP)
    if kind == "full":
        process.wait()
    elif side == "Redis":
        with contextlib.closing(Wire(pair.primary.port)) as wire:
            wire.expect(b":1", b"CLIENT", b"KILL", b"TYPE", b"replica")


def bring_back(kind: str, backup: Node, stack: contextlib.ExitStack) -> Node:
    """The backup goes on, or another is started in its place: the same command, no state."""
    if kind == "partial":
        backup.process.send_signal(signal.SIGCONT)
        return backup
    arguments, folder = backup.process.args, backup.log.parent
    assert isinstance(arguments, list)
    (folder / "dump.rdb").unlink(missing_ok=True)  # a replica of Redis keeps what it was sent
    return stack.enter_context(started(arguments, backup.port, str(folder)))


# Load and gauges


class Crew(NamedTuple):
    """The processes that make load, and that measure."""

    load: Child
    paced: Child

    @contextlib.contextmanager
    def at_work(self, port: int, side: str, rate: int) -> Iterator[dict[str, Any]]:
        """Requests beside the block; afterwards the dictionary holds what the paced saw."""
        lock = "LOCK" if side == "Holdfast" else "SET"
        streams_count = max(1, round(rate * LOAD_INTERVAL_US / 1e6))
        jobs = {
            self.load: {"kinds": [lock] * streams_count, "interval_us": LOAD_INTERVAL_US},
            self.paced: {"kinds": ["PING", lock], "interval_us": PACE_US},
        }
        for worker, job in jobs.items():
            worker.send({"port": port, **job})
            worker.receive()
        for worker in jobs:
            worker.send({"go": True})
        seen: dict[str, Any] = {}
        yield seen
        for worker in reversed(jobs):
            worker.send({"stop": True})
        seen["load"] = self.load.receive(END_MAX_S)
        seen.update(self.paced.receive(END_MAX_S))


class Reading(NamedTuple):
    """Of the primary's clocks."""

    at_s: float
    busy_us: float
    queued_us: float  # it could have run, and had no core

    @classmethod
    def of(cls, pid: int) -> "Reading":
        """Now. (Where the kernel keeps no such records, the time in the queue is always 0.)"""
        tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
        queued_ns = sum(int(task.read_text().split()[1]) for task in tasks)
        return cls(time.monotonic(), cpu_us(pid), queued_ns / 1e3)

    def parts_until(self, later: "Reading") -> dict[str, float]:
        """How much of a core it had, and how much more it would have liked."""
        us = (later.at_s - self.at_s) * 1e6
        busy_us, queued_us = later.busy_us - self.busy_us, later.queued_us - self.queued_us
        return {"busy": busy_us / us, "queued": queued_us / us}


class Course(NamedTuple):
    """When what happened, in seconds of the monotonic clock, with what the clocks read then."""

    calm: Reading
    lost: Reading
    alone_s: float
    joined_s: float  # a moment before
    resync: Reading
    paired: Reading
    sent_count: int
    attempts_count: int


# One run


def capacity_per_s(options: argparse.Namespace) -> float:
    """What a pair can do for 50 connections that wait for nothing but their replies."""
    cell = {"mode": MODE, "connections_count": 50, "pipeline": 1}
    return float(throughput_once("holdfast", "holdfast", cell, options)["throughput_per_s"])


def run_once(side: str, order: list[str], options: argparse.Namespace) -> dict[str, Run]:
    """Both kinds of resync of one pair, in this order."""
    with contextlib.ExitStack() as stack:
        pair = stack.enter_context(running(side.lower(), MODE, options.holdfast_command))
        crew = Crew(stack.enter_context(child("paced")), stack.enter_context(child("paced")))
        prepare(pair.primary.port, side, options.count)
        runs: dict[str, Run] = {}
        for kind in order:
            runs[kind], backup = resync(kind, side, pair, crew, options, stack)
            pair = Pair(pair.primary, backup)
        return runs


def prepare(port: int, side: str, count: int) -> None:
    """Take the locks."""
    if side == "Redis":
        with contextlib.closing(Wire(port)) as wire:
            wire.expect(b"+OK", b"CONFIG", b"SET", b"repl-backlog-size", REDIS_BACKLOG)
    with contextlib.closing(Filler(port, side == "Holdfast")) as filler:
        filler.fill(b"lock", range(count), lambda _: LEASE_MS)


def resync(
    kind: str, side: str, pair: Pair, crew: Crew, options: argparse.Namespace,
    stack: contextlib.ExitStack,
) -> tuple[Run, Node]:  # fmt: skip
    """From calm to calm; the figures, and who is the backup now."""
    port = pair.primary.port
    looks_until(port, lambda it: it.state == "paired", BACK_MAX_S, "the pair was whole")
    with crew.at_work(port, side, options.load_rate) as seen:
        time.sleep(SETTLE_S)
        course, backup = course_through(kind, side, pair, options.seconds, stack)
        time.sleep(max(AFTER_S, course.joined_s + RESYNC_MIN_S - time.monotonic()))
    return figures(course, seen), backup


def course_through(
    kind: str, side: str, pair: Pair, calm_s: float, stack: contextlib.ExitStack
) -> tuple[Course, Node]:
    """Let it happen."""
    assert pair.backup is not None
    port, pid = pair.primary.port, pair.primary.process.pid
    calm = Reading.of(pid)
    time.sleep(calm_s)
    before, lost = look(port), Reading.of(pid)
    time.sleep(SETTLE_S)  # what was sent in the calm is answered in the calm
    with going_on_at_the_end(pair.backup.process):
        lose(kind, pair, side)
        alone = looks_until(port, lambda it: it.state == "alone", LOST_MAX_S, "it was alone")[1]
        time.sleep(ALONE_S)
        backup = bring_back(kind, pair.backup, stack)
    joined = looks_until(port, lambda it: it.begun != before.begun, BACK_MAX_S, "a backup joined")
    resync_begun = Reading.of(pid)
    paired = looks_until(port, lambda it: it.state == "paired", BACK_MAX_S, "it was a member")[1]
    attempts_count = attempts(kind, before, paired)
    sent_count = items_of(pair.primary.log) if kind == "full" else joined[1].offset - before.offset
    readings = resync_begun, Reading.of(pid)
    return (
        Course(calm, lost, alone.at_s, joined[0].at_s, *readings, sent_count, attempts_count),
        backup,
    )


@contextlib.contextmanager
def going_on_at_the_end(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A process that stays stopped, since something went wrong, would not end when asked."""
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def attempts(kind: str, before: Look, after: Look) -> int:
    """How often this kind of resync was begun; raises RunError if the other kind was."""
    rose = {each: after.begun[each] - before.begun[each] for each in KINDS}
    if rose[kind] != sum(rose.values()):
        raise RunError(f"what was to be a {kind} resync was another: {rose}")
    return rose[kind]


def items_of(log: Path) -> int:
    """Items of the last snapshot, by Holdfast's log; 0 if it does not say."""
    found = re.findall(r"a snapshot of (\d+) items", log.read_text(errors="replace"))
    return int(found[-1]) if found else 0


def figures(course: Course, seen: dict[str, Any]) -> Run:
    """Waits in the calm, alone and during the resync; how long it took, and what it was."""
    resync_s = course.paired.at_s - course.joined_s
    run: Run = {
        "resync_s": resync_s,
        "sent_count": course.sent_count,
        "sent_per_s": course.sent_count / resync_s,
        "attempts_count": course.attempts_count,
        "load_per_s": load_per_s(seen["load"], course),
        "calm_primary": course.calm.parts_until(course.lost),
        "resync_primary": course.resync.parts_until(course.paired),
    }
    phases = {
        "calm": (course.calm.at_s, course.lost.at_s),
        "alone": (course.alone_s, course.joined_s),
        "resync": (course.joined_s, max(course.paired.at_s, course.joined_s + RESYNC_MIN_S)),
    }
    waits = {kind: stream["waits"] for kind, stream in zip(WAITS, seen["streams"], strict=True)}
    for phase, (start_s, end_s) in phases.items():
        for kind, each in waits.items():
            inside = [wait for sent, wait in each if start_s <= sent * CLOCK_S < end_s]
            run[f"{phase}_{kind}_ms"] = spread_of(inside)
        late = [ns for when, ns in seen["late"] if start_s <= when * CLOCK_S < end_s]
        run[f"{phase}_own_ms"] = max(late, default=0) / 1e6
    run["course"] = {kind: course_of(each, course.joined_s) for kind, each in waits.items()}
    return run


def load_per_s(load: dict[str, Any], course: Course) -> float:
    """Requests of the load in the calm."""
    start_s, end_s = course.calm.at_s, course.lost.at_s
    sent = (sent * CLOCK_S for stream in load["streams"] for sent, _ in stream["waits"])
    return float(sum(start_s <= each < end_s for each in sent) / (end_s - start_s))


# The part


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The part's own part of the command line."""
    parser.add_argument("--count", type=positive, help="locks that are held (1,000,000)")
    parser.add_argument("--seconds", type=float, help="of calm before each resync")
    parser.add_argument(
        "--load-rate", type=positive, help=f"requests a second ({LOAD_PART} of what it can do)"
    )


def settle(options: argparse.Namespace) -> None:
    """Three rounds, and some ten minutes in all. What is measured needs a pair in any case."""
    options.modes = [MODE]
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.count = options.count or (50_000 if options.quick else 1_000_000)
    options.seconds = options.seconds or (2.0 if options.quick else 5.0)


def measure(options: argparse.Namespace, trials: Trials) -> list[Cell]:
    """Round by round; the sides and the kinds take turns at going first."""
    if not options.load_rate:
        with trials.trial("capacity"):
            options.load_rate = round(capacity_per_s(options) * LOAD_PART)
    cells: list[Cell] = [{"kind": kind, "rounds": []} for kind in KINDS]
    for round_index in range(options.rounds if options.load_rate else 0):
        if not trials.may_go_on:
            break
        with trials.trial(f"round {round_index + 1}"):
            measure_round(cells, round_index, options)
    return cells


def measure_round(cells: list[Cell], round_index: int, options: argparse.Namespace) -> None:
    """All of it once."""
    runs: dict[str, dict[str, Run]] = {}
    for side in turned(list(SIDES), round_index):
        runs[side] = run_once(side, turned(list(KINDS), round_index), options)
        for kind, run in runs[side].items():
            progress(
                f"{round_index + 1}/{options.rounds} {side:8} {kind:7} in"
                f" {run['resync_s']:.2f} s; p99 of a lock {number(run['calm_lock_ms']['p99'])} ms,"
                f" then {number(run['resync_lock_ms']['p99'])} ms"
            )
    for cell in cells:
        cell["rounds"].append({side: runs[side][cell["kind"]] for side in SIDES})


# Showing

WAIT_COLUMNS = (
    "resync", "server", "what", "calm p50 ms", "p99 ms", "max ms", "resync p50 ms", "p99 ms",
    "max ms", "p99 ratio", "lowest to highest", "generator late ms",
)  # fmt: skip
WORK_COLUMNS = (
    "resync", "server", "load/s", "sent", "took s", "lowest to highest", "sent/s", "attempts",
    "busy calm", "resync", "queued calm", "resync",
)  # fmt: skip
LEGEND = """\
*full*: the backup was killed and started again, empty. *partial*: it was stopped until its primary
served alone, and then went on. *calm* is the time before, *resync* that from a moment before the
backup joined (without its start) until every reply waited for it again, at least a second.
**p99 ratio** is resync / calm: the median of the rounds' own, with the smallest and the largest.
*PING* needs nothing but a turn of the server's loop; *lock* is `LOCK` and `UNLOCK` in turns. On
Redis it is `SET NX PX` and `DEL` *without* `WAIT`, which would fail or hang while the replica is
away; so a lock of Holdfast waits for the backup in the calm, and one of Redis never does. Redis
forks, and its child sends the snapshot. Requests are sent at a steady pace, answered or not, so a
pause is felt by all that were due in it. *generator late* is what the measuring process itself was
late by: less than that cannot be told. Medians over the rounds; *max* is the worst of all.
"""
WORK_LEGEND = """\
*sent*: items of the snapshot (locks and remembered replies), or entries that the backup had missed.
*busy* is how much of a core the primary had, *queued* the part of the time in which it could have
run and had to wait for a core, which is the machine's doing and part of every wait above.
"""


def ratios_of(cell: Cell, side: str, kind: str) -> list[float]:
    """p99 during the resync by p99 in the calm, of each round."""
    pairs = [
        (at(run, f"resync_{kind}_ms.p99"), at(run, f"calm_{kind}_ms.p99"))
        for run in runs_of(cell, side)
    ]
    return [resync_ms / calm_ms for resync_ms, calm_ms in pairs if calm_ms]


def range_text(values: list[float]) -> str:
    """From the smallest to the largest."""
    return f"{number(min(values))} to {number(max(values))}" if values else "-"


def wait_row(cell: Cell, side: str, kind: str) -> list[str]:
    """One row of the first table."""
    waits = [
        show(cell, side, f"{phase}_{kind}_ms.{part}")
        for phase in ("calm", "resync")
        for part, show in (("p50", median_text), ("p99", median_text), ("max", worst_text))
    ]
    ratios = ratios_of(cell, side, kind)
    ratio = number(statistics.median(ratios)) if ratios else "-"
    late = max(worst_of(cell, side, f"{phase}_own_ms") for phase in ("calm", "resync"))
    return [cell["kind"], side, WAITS[kind], *waits, ratio, range_text(ratios), number(late)]


def work_row(cell: Cell, side: str) -> list[str]:
    """One row of the second. What Redis sends is not told in items."""
    is_told = side == "Holdfast"
    parts = ("busy", "queued")
    return [
        cell["kind"],
        side,
        f"{median_of(cell, side, 'load_per_s'):,.0f}",
        f"{median_of(cell, side, 'sent_count'):,.0f}" if is_told else "-",
        number(median_of(cell, side, "resync_s")),
        range_text([at(run, "resync_s") for run in runs_of(cell, side)]),
        f"{median_of(cell, side, 'sent_per_s'):,.0f}" if is_told else "-",
        f"{worst_of(cell, side, 'attempts_count'):.0f}",
        *(
            f"{median_of(cell, side, f'{phase}_primary.{part}'):.0%}"
            for part in parts
            for phase in ("calm", "resync")
        ),
    ]


def aim_line(cell: Cell) -> str:
    """Whether the aim was reached."""
    ratio = statistics.median(ratios_of(cell, "Holdfast", "lock") or [float("nan")])
    verdict = "reached" if ratio < AIM_RATIO else "NOT reached"
    return (
        f"- {cell['kind']} resync: the p99 of a lock is {number(ratio)} times what it is in the"
        f" calm; aim below {AIM_RATIO:g}: {verdict}"
    )


def tables(results: Results) -> str:
    """All of it."""
    settings, cells = results["settings"], results["cells"]
    how = (
        f"{settings['count']:,} locks held; rounds: {settings['rounds']}; {settings['seconds']:g} s"
        f" of calm; a load of {settings['load_rate']:,} requests a second.\n"
    )
    aims = "\n".join(aim_line(cell) for cell in cells) + "\n"
    each = [(cell, side) for cell in cells for side in sides_of(cell)]
    waits = table(WAIT_COLUMNS, [wait_row(*one, kind) for one in each for kind in WAITS])
    work = table(WORK_COLUMNS, [work_row(*one) for one in each])
    return "\n".join([how, aims, LEGEND, waits, "", WORK_LEGEND, work]) + "\n"


def draw(pyplot: Any, results: Results) -> Any:
    """The last round's course: the longest waits, and where each resync ended."""
    cells = results["cells"]
    figure, axes = pyplot.subplots(1, len(cells), figsize=(7.5 * len(cells), 4.5), squeeze=False)
    for axis, cell in zip(axes[0], cells, strict=True):
        for index, side in enumerate(sides_of(cell)):
            draw_course(axis, side, COLOURS[index * 2], runs_of(cell, side)[-1])
        axis.axvline(0, color=COLOURS[4], linewidth=0.8)
        axis.set_title(f"{cell['kind']} resync")
        axis.set_yscale("log")
        axis.set_ylabel("longest wait in 50 ms, ms")
        axis.set_xlabel("s since the backup joined; dashed: it is a member again")
        axis.legend(fontsize=8)
    figure.suptitle(f"A backup comes back; {results['settings']['count']:,} locks are held")
    return figure


def draw_course(axes: Any, side: str, colour: str, run: Run) -> None:
    """PING and lock of one side."""
    for kind, style in (("ping", "-"), ("lock", ":")):
        times, values = zip(*run["course"][kind], strict=True)
        axes.plot(times, values, style, color=colour, label=f"{side}, {WAITS[kind]}")
    axes.axvline(run["resync_s"], color=colour, linestyle="--", linewidth=0.8)
