"""Checkers of recorded histories, one file each; a run records a `History` (history.py).

They share no code with the server: what they hold against it is written down a second time here.
Each returns the problems as sentences; an empty list means that all is well.

    history.py       what is recorded
    model.py         the sequential model of one lock
    linearizable.py  I1, I8: each lock can have behaved as its clients saw it
    registers.py     I1: each versioned register can have behaved as its clients saw it
    tokens.py        I7: fencing tokens rise and are used once
    beliefs.py       I1, I8: no two holders at a time; no lease ends early
    replies.py       I4: all answers to one request are equal
    commits.py       I3, I6: one voice an epoch; no reply before what it depends on is safe
    digests.py       I5: one state at one offset
    fairness.py      I9: first come, first served
    live.py          histories of real processes, converted
"""

from __future__ import annotations

from .beliefs import check_beliefs, check_leases
from .commits import check_commits, check_one_voice, check_promotions
from .digests import check_digests
from .fairness import check_fairness
from .history import History
from .linearizable import STEPS_MAX, check_linearizable
from .live import from_ops
from .registers import check_registers, fences_of
from .replies import check_replies
from .tokens import check_tokens

__all__ = [
    "History",
    "check_all",
    "check_beliefs",
    "check_commits",
    "check_digests",
    "check_fairness",
    "check_leases",
    "check_linearizable",
    "check_one_voice",
    "check_promotions",
    "check_registers",
    "check_replies",
    "check_tokens",
    "from_ops",
]


def check_all(
    history: History,
    *,
    clock_drift: float = 0.0,
    window_us: int = 0,
    steps_max: int = STEPS_MAX,
) -> list[str]:
    """The problems that any of them finds, the cheapest first. `clock_drift` and the rest as in
    `check_linearizable`."""
    operations, expiries = history.operations, history.expiries
    fences = fences_of(history.registers, (operation.name for operation in operations))
    return [
        *check_one_voice(history.replies),
        *check_promotions(history.promotions, history.views),
        *check_commits(history.replies, history.acks, history.views),
        *check_digests(history.digests),
        *check_replies(history.replies, operations),
        *check_tokens(operations),
        *check_beliefs(history.beliefs),
        *check_leases(operations, expiries or (), clock_drift),
        *check_fairness(history.line),
        *check_linearizable(
            [*operations, *fences],
            expiries,
            clock_drift=clock_drift,
            window_us=window_us,
            steps_max=steps_max,
        ),
        *check_registers(history.registers, steps_max=steps_max),
    ]
