"""Many seeds over worker processes; what was seen of them all together."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .options import draw
from .run import run_seed

CHUNK = 10

REQUIRED = (
    # what goes wrong
    "fault: crash",
    "fault: instant restart",
    "fault: crash in a turn",
    "fault: machine off",
    "fault: pause",
    "fault: link breaks",
    "fault: pair cut both ways",
    "fault: pair cut one way",
    "fault: slow pair",
    "fault: flapping",
    "fault: clients cut",
    "fault: client crash",
    "fault: client pause",
    "fault: wall clock jump",
    "fault: planned switch",
    "fault: register cut",
    "fault: register out of order",
    "fault: register loses answers",
    "fault: total loss",
    "crash: executed",
    "crash: forwarded",
    "crash: answered",
    "crash: released",
    "packet lost",
    "late copy sent",
    # what it leads to
    "promotion",
    "goes on alone",
    "blocked",
    "deposed",
    "stands down, becomes empty",
    "stands down, becomes backup",
    "proposal accepted by the backup",
    "old stream shut out",
    "ack of another epoch",
    "stall noticed",
    "full resync",
    "partial resync",
    "backlog overrun",
    "join refused",
    "register: cas lost",
    "register: undecided",
    "register: answer of cas lost",
    "reply dropped with its connection",
    "repeat answered from the cache",
    "repeat joins its wait",
    "late copy told REQUESTGONE",
    "indeterminate",
    "undo",
    "expiry",
    "renewed",
    "lock lost",
    "grant came too late",
    "waiter granted",
    "waiter hung up",
    "waiter turned away",
    "wait ended without a grant",
    "refused: TRYAGAIN",
    "refused: NOREPLICAS",
    "request parked during a switch",
    "client died holding",
    # versioned registers
    "put: written",
    "put: written by a holder",
    "put: conflict",
    "put: no key",
    "put: stale token",
    "put: indeterminate",
    "put: conflict maybe",
    "put: repeat answered from the cache",
    "update tried again",
    "delete: deleted",
    "register expired",
    "register changed while a snapshot is sent",
    "whole again",
)
"""What a campaign of some size must have seen: what never happens is tested by nothing."""
ENOUGH_TO_SEE_ALL = 1_000
"""That size, in runs: the rarest come about once in a hundred."""


@dataclass
class Campaign:
    """What came of many runs."""

    runs: int = 0
    simulated_us: int = 0
    events: int = 0
    took_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)  # seed -> options and problems

    def missing(self) -> list[str]:
        """What should have happened, and did not."""
        return [what for what in REQUIRED if not self.counts[what]]

    def __str__(self) -> str:
        lines = [f"{count:10} {what}" for what, count in sorted(self.counts.items())]
        speed = self.simulated_us / 1_000_000 / max(self.took_s, 0.001)
        lines += [
            f"{self.runs} runs, {self.simulated_us // 1_000_000} simulated seconds in "
            f"{self.took_s:.1f} s ({speed:.0f} a second), {self.events} events, "
            f"{len(self.failures)} failures"
        ]
        return "\n".join(lines)


Partial = tuple[int, int, int, Counter[str], dict[int, str]]


def _run_chunk(work: tuple[list[int], str, int]) -> Partial:
    seeds, register, safety_ms = work
    gc.disable()
    simulated_us, events = 0, 0
    counts: Counter[str] = Counter()
    failures = {}
    for seed in seeds:
        result = run_seed(draw(seed, register, safety_ms))
        simulated_us += result.simulated_us
        events += result.events
        counts += result.counts
        if result.problems:
            failures[seed] = str(result)
    gc.collect()
    return len(seeds), simulated_us, events, counts, failures


def _chunks(
    seeds: Iterable[int], register: str, safety_ms: int, ends_s: float
) -> Iterator[tuple[list[int], str, int]]:
    chunk: list[int] = []
    for seed in seeds:
        chunk.append(seed)
        if len(chunk) == CHUNK:
            if time.monotonic() > ends_s:
                return
            yield chunk, register, safety_ms
            chunk = []
    if chunk:
        yield chunk, register, safety_ms


def run_campaign(
    seeds: Iterable[int],
    *,
    workers: int = 2,
    budget_s: float = 1e9,
    register: str = "",
    safety_ms: int = 0,
    failures_max: int = 20,
) -> Campaign:
    """Run ``seeds``, for about ``budget_s`` at most; it ends early after many failures."""
    campaign = Campaign()
    begun_s = time.monotonic()
    chunks = _chunks(seeds, register, safety_ms, begun_s + budget_s)
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        waiting: list[Any] = []
        for _ in range(2 * workers):
            _submit(pool, chunks, waiting)
        while waiting:
            runs, simulated_us, events, counts, failures = waiting.pop(0).get()
            campaign.runs += runs
            campaign.simulated_us += simulated_us
            campaign.events += events
            campaign.counts += counts
            campaign.failures |= failures
            if len(campaign.failures) < failures_max:
                _submit(pool, chunks, waiting)
    campaign.took_s = time.monotonic() - begun_s
    return campaign


def _submit(pool: Any, chunks: Iterator[Any], waiting: list[Any]) -> None:
    work = next(chunks, None)
    if work is not None:
        waiting.append(pool.apply_async(_run_chunk, (work,)))
