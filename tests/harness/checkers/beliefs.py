"""Of two holders of a name, never both act as such at one instant (I1, I8); no lease ends early."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from .history import LOCK, Belief, Expiry, Operation

LEASE_ROUNDING_US = 1000  # nodes count whole milliseconds: one may be lost when a lease begins


def check_beliefs(beliefs: Iterable[Belief]) -> list[str]:
    """Problems: two beliefs on one name that overlap. One client may believe in the same grant over
    several intervals; where one ends and the next begins, at one instant, is no overlap."""
    by_name: dict[str, list[Belief]] = defaultdict(list)
    problems = []
    for belief in beliefs:
        if belief.until_us is not None and belief.until_us < belief.from_us:
            problems.append(f"a belief ended before it began: {belief}")
        elif belief.until_us != belief.from_us:
            by_name[belief.name].append(belief)
    for _, some in sorted(by_name.items()):
        problems += _overlaps(sorted(some, key=lambda belief: belief.from_us))
    return problems


def _overlaps(beliefs: list[Belief]) -> list[str]:
    problems = []
    going_on: list[Belief] = []
    for belief in beliefs:
        going_on = [b for b in going_on if b.until_us is None or b.until_us > belief.from_us]
        problems += [
            f"two holders of {belief.name!r} at {belief.from_us} (I1, I8): {other} and {belief}"
            for other in going_on
            if (other.client, other.token) != (belief.client, belief.token)
        ]
        going_on.append(belief)
    return problems


def check_leases(
    operations: Iterable[Operation], expiries: Iterable[Expiry], clock_drift: float = 0.0
) -> list[str]:
    """Problems: a lease that expired before its length had passed since its LOCK was sent, or a
    grant without a lease that expired (I8).

    Renewals are not looked at: a deposed primary that has not heard of one may apply an expiry
    that nobody will ever see. (One that is seen is found by `check_linearizable`.)
    """
    granted = {
        (op.name, op.answer): op for op in operations if op.kind == LOCK and op.answer is not None
    }
    problems = []
    for expiry in expiries:
        op = granted.get((expiry.name, expiry.token))
        if op is None:
            continue
        if not op.lease_ms:
            problems.append(f"a grant without a lease expired (I8): {op}, {expiry}")
            continue
        end_us = op.call_us + int(op.lease_ms * 1000 * (1 - clock_drift)) - LEASE_ROUNDING_US
        if expiry.at_us < end_us:
            problems.append(f"a lease expired before {end_us} (I8): {op}, {expiry}")
    return problems
