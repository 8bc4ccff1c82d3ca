"""Have Spin search the model of views and of the commit rule (``holdfast.pml``) exhaustively.

    python tests/model/check.py                 all variants, a table
    python tests/model/check.py --only good     one of them (``--list``: their names)
    python tests/model/check.py --story NAME    the steps of the shortest run that the variant fails

The good model has to pass, and to have been searched completely. A model less one of the rules has
to give a client a wrong answer. A ``REACH_`` variant looks for a run that has to exist, so that the
good model does not pass because nothing happens in it. The exit code is 0 only if all of this is
as it should be.

Needs ``spin`` (Debian and Ubuntu: the package `spin`) and ``gcc``. The search is breadth first: it
has no limit on depth, and what it finds is found by a shortest run.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

MODEL = Path(__file__).resolve().parent
MODEL_FILES = ("holdfast.pml", "steps.pml")

BOUNDS = {"OPS": 3, "EPOCHS": 7, "NAMES": 4, "FRAMES": 4}
"""Operations, epochs, incarnations of each node, frames in one epoch."""

MEMORY_MAX_MB = 4000
SEARCH_TIMEOUT_S = 300

GOOD = "good"
RULES = {
    "REPLY_BEFORE_ACK": "the reply to a change does not wait for the ack",
    "READS_WITHOUT_ACK": "a read is answered at once",
    "NO_EPOCH_CHECK": "a frame of a lower epoch is taken",
    "EARLIER_EPOCH_ACK_COUNTS": "acks of an earlier epoch count",
    "SOLO_WITHOUT_CAS": "a primary that lost its member goes on without the register",
    "RELEASE_WHILE_BLOCKED": "it answers before it is decided who goes on",
    "PROMOTE_WITHOUT_CAS": "a backup promotes itself without the register",
    "PROMOTE_NONMEMBER": "a backup that is no member proposes itself",
    "RESTART_KEEPS_IDENTITY": "a restarted node is taken for the one that it was",
    "ADMIT_BEFORE_CAUGHT_UP": "a backup is proposed before its acks are required",
    "ADMIT_BEFORE_FIRST_ACK": "it is proposed before it acknowledged the first frame since",
    "RELEASE_WHILE_PROPOSAL_IN_DOUBT": "replies leave unacknowledged while a proposal is in doubt",
    "LOST_CAS_MEANS_FAILED": "a proposal without an answer is taken for failed",
    "READING_E_MEANS_FAILED": "reading the epoch known before is taken for a failure",
    "DEPOSED_KEEPS_STATE": "what a deposed primary has is taken to be on the history",
    "DEPOSED_KEEPS_REPLIES": "a deposed primary keeps its held-back replies",
    "REGISTER_WITHOUT_COMPARE": "the register takes proposals to change a view that is over",
}
"""Each takes a rule away."""

RUNS = {
    "REACH_PROMOTED_ANSWERS": "a promoted backup answers, with all that was answered before",
    "REACH_REJOINED_ANSWERS": "a former primary rejoins, is promoted and answers",
    "REACH_THREE_REIGNS_ANSWER": "three promoted primaries in turn answer",
    "REACH_STALE_READ_HELD_BACK": "a deposed primary that does not know it holds a read back",
    "REACH_DEPOSED_WHILE_HOLDING_BACK": "and is then told",
    "REACH_OLD_PRIMARY_REFUSED": "a promoted backup that has answered refuses the old stream",
    "REACH_LOST_ANSWER_HAD_WON": "an admission that was never answered had won",
    "REACH_ADMITTED_WITHOUT_BEING_TOLD": "a backup is promoted that nobody told of its admission",
    "REACH_PROPOSAL_OF_THE_DEAD_WINS": "a proposal wins whose sender is dead",
    "REACH_DEPOSED_CONTINUES": "a deposed primary rejoins by partial resync",
    "REACH_DEPOSED_TAIL_IS_REPLACED": "what only a deposed primary has is thrown away",
}
"""Each looks for a run that must exist."""

VARIANTS = {GOOD: "all rules", **RULES, **RUNS}

# Held back from the models less a rule: only what a client sees counts.
CLIENT_INVARIANTS = {"I2_answered_is_here", "I4_executed_once", "I3_no_stale_answer"}
_SOUGHT = "not_yet_seen"


class Outcome(NamedTuple):
    """What Spin says of one variant."""

    variant: str
    violated: str  # the invariant; empty: none
    complete: bool  # whether every state within the bounds was looked at
    states: int
    depth: int  # of the search; of the violation, if there is one
    search_s: float
    memory_mb: float
    trouble: str = ""  # why the variant could not be judged

    @property
    def as_expected(self) -> bool:
        """Whether this is how the variant has to end."""
        if self.trouble:
            return False
        if self.variant == GOOD:
            return self.complete and not self.violated
        if self.variant in RULES:
            return self.violated in CLIENT_INVARIANTS
        return self.violated == _SOUGHT

    @property
    def result(self) -> str:
        """The result in words."""
        if self.trouble:
            return self.trouble
        if self.violated == _SOUGHT:
            return "reached"
        if self.violated:
            return f"violates {self.violated}"
        return "passes" if self.complete else "not searched completely"


class ToolMissing(Exception):
    """Spin or a C compiler is not installed."""


def require_tools() -> None:
    """Raise ToolMissing if Spin or a C compiler is not here."""
    for tool, package in (("spin", "spin"), ("gcc", "gcc")):
        if shutil.which(tool) is None:
            raise ToolMissing(f"{tool} is not installed: on Debian, apt-get install {package}")


def check(
    variant: str,
    bounds: dict[str, int] | None = None,
    memory_max_mb: int = MEMORY_MAX_MB,
) -> Outcome:
    """Search one variant. Raises ToolMissing."""
    require_tools()
    with tempfile.TemporaryDirectory(prefix="holdfast-model-") as folder:
        return _check_in(Path(folder), variant, bounds or BOUNDS, memory_max_mb)


def check_all(
    variants: Iterable[str], jobs: int = 2, tell: Callable[[Outcome], None] | None = None
) -> list[Outcome]:
    """Search several, ``jobs`` at a time; ``tell`` is given each outcome in turn."""
    outcomes = []
    with ThreadPoolExecutor(jobs) as pool:
        for outcome in pool.map(check, variants):
            outcomes.append(outcome)
            if tell is not None:
                tell(outcome)
    return outcomes


def story(variant: str) -> Iterator[str]:
    """The steps of the shortest run that the variant fails; none if it passes."""
    require_tools()
    with tempfile.TemporaryDirectory(prefix="holdfast-model-") as name:
        folder = Path(name)
        _check_in(folder, variant, BOUNDS, MEMORY_MAX_MB)
        if not (folder / "holdfast.pml.trail").exists():
            return
        replay = _run(folder, "spin", "-t", *_switches(variant, BOUNDS), "holdfast.pml")
        for line in replay.stdout.splitlines():
            if re.match(r"\s*(node \d|register): ", line):
                yield line.strip()


def verdict(variant: str, output: str, search_s: float = 0.0) -> Outcome:
    """What the output of the search says."""
    violated = re.search(r"^pan:\d+: assertion violated (\w+)", output, re.MULTILINE)
    errors = re.search(r"depth reached (\d+), errors: (\d+)", output)
    states = re.search(r"^\s*(\d+) states, stored", output, re.MULTILINE)
    memory = re.search(r"([\d.]+)\s+total actual memory usage", output)
    # Anything that Spin has to say against the search counts: a bound on memory or depth that was
    # reached, a step that blocked halfway.
    complaint = re.search(r"^(pan:(?! elapsed| rate).*|.*not completed.*)$", output, re.MULTILINE)
    if not errors or not states or not memory:
        return _no_verdict(variant, f"search broke off: {output.strip()[-200:]}", search_s)
    if complaint and not violated:
        return _no_verdict(variant, f"search incomplete: {complaint[1].strip()}", search_s)
    return Outcome(
        variant,
        violated[1] if violated else "",
        complaint is None and errors[2] == "0",
        int(states[1]),
        int(errors[1]),
        search_s,
        float(memory[1]),
    )


def _no_verdict(variant: str, trouble: str, search_s: float = 0.0) -> Outcome:
    return Outcome(variant, "", False, 0, 0, search_s, 0.0, trouble)


def _check_in(folder: Path, variant: str, bounds: dict[str, int], memory_max_mb: int) -> Outcome:
    for name in MODEL_FILES:
        shutil.copy(MODEL / name, folder)
    made = _run(folder, "spin", "-a", *_switches(variant, bounds), "holdfast.pml")
    if made.returncode or "rror" in made.stdout:
        return _no_verdict(variant, f"spin: {made.stdout.strip()}")
    # Only the good model is searched to the end: for the others compiling is what takes the time.
    level = "-O2" if variant == GOOD else "-O0"
    defines = ("-DSAFETY", "-DBFS", f"-DMEMLIM={memory_max_mb}")
    built = _run(folder, "gcc", level, "-w", *defines, "-o", "pan", "pan.c")
    if built.returncode:
        return _no_verdict(variant, f"gcc: {built.stdout.strip()}")
    began = time.monotonic()
    try:
        # -E: a node that has nothing left to do is no error. -w: a small table, it grows.
        searched = _run(folder, "./pan", "-E", "-w20", timeout_s=SEARCH_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return _no_verdict(variant, f"search not completed in {SEARCH_TIMEOUT_S} s")
    return verdict(variant, searched.stdout, time.monotonic() - began)


def _switches(variant: str, bounds: dict[str, int]) -> list[str]:
    switches = [f"-D{name}={value}" for name, value in bounds.items()]
    if variant in RULES:
        switches.append("-DCLIENTS_JUDGE")
    return switches if variant == GOOD else [*switches, f"-D{variant}"]


def _run(
    folder: Path, *command: str, timeout_s: float | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )


# -- the command ----------------------------------------------------------------------------------

_ROW = "{:34} {:34} {:>9} {:>6} {:>7} {:>7}"


def _tell(outcome: Outcome) -> None:
    row = _ROW.format(
        outcome.variant,
        outcome.result,
        outcome.states,
        outcome.depth,
        f"{outcome.search_s:.1f}",
        f"{outcome.memory_mb:.0f}",
    )
    print(row if outcome.as_expected else f"{row}  NOT AS EXPECTED", flush=True)


def _table(variants: list[str], jobs: int) -> int:
    bounds = ", ".join(f"{name}={value}" for name, value in BOUNDS.items())
    print(f"Bounds: {bounds}. Within them every state is looked at.")
    print(_ROW.format("variant", "result", "states", "depth", "seconds", "MB"))
    outcomes = check_all(variants, jobs, _tell)
    wrong = [outcome.variant for outcome in outcomes if not outcome.as_expected]
    print(f"NOT AS EXPECTED: {', '.join(wrong)}" if wrong else "All as expected.")
    return 1 if wrong else 0


def _tell_story(variant: str) -> int:
    print(f"{variant}: {VARIANTS[variant]}")
    steps = list(story(variant))
    print("\n".join(steps) if steps else "No run fails it.")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(description="Search the model of views and commit with Spin.")
    parser.add_argument("--only", metavar="NAME", choices=VARIANTS, help="search this variant only")
    parser.add_argument("--story", metavar="NAME", choices=VARIANTS, help="tell how it fails")
    parser.add_argument("--list", action="store_true", help="list the variants")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default 2)")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(f"{name:34} {text}" for name, text in VARIANTS.items()))
        return 0
    try:
        if options.story:
            return _tell_story(options.story)
        return _table([options.only] if options.only else list(VARIANTS), options.jobs)
    except ToolMissing as missing:
        print(missing, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
