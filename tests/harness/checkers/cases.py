"""Histories of one lock, written by hand: what it can do, and what it cannot."""

from __future__ import annotations

from .history import LOCK, READ, RENEW, UNDO, UNLOCK, UNLOCK_TOKEN, VERIFY, Operation

MS = 1000


def op(kind: str, call: int, end: int | None, answer: int | None, **more: object) -> Operation:
    """An operation on lock a; times in ms. Its request id is its instant, unless told otherwise."""
    reqid = f"r{call}" if kind in (LOCK, UNLOCK, UNLOCK_TOKEN, UNDO) else ""
    end_us = None if end is None else end * MS
    made = Operation("c", kind, "a", reqid, call * MS, end_us, answer)
    return made._replace(**more)  # type: ignore[arg-type]


POSSIBLE = {
    "nothing at all": [],
    "a grant, a release, a grant": [op(LOCK, 0, 1, 5), op(UNLOCK, 2, 3, 1), op(LOCK, 4, 5, 9)],
    "a refusal while it was held": [op(LOCK, 0, 1, 5), op(LOCK, 2, 3, 0)],
    "a refusal beside the grant that came in between": [op(LOCK, 0, 9, 0), op(LOCK, 1, 8, 5)],
    "one lock waits for the release": [
        op(LOCK, 0, 1, 5),
        op(LOCK, 2, 9, 7, wait_ms=20),
        op(UNLOCK, 3, 4, 1),
    ],
    "a release of unknown outcome": [
        op(LOCK, 0, 1, 5),
        op(UNLOCK, 2, None, None),
        op(LOCK, 9, 10, 7),
    ],
    "a grant of unknown outcome": [op(LOCK, 0, None, None), op(LOCK, 8, 9, 0)],
    "a grant of unknown outcome that a read shows": [
        op(LOCK, 0, None, None),
        op(READ, 3, 4, 6),
        op(UNLOCK_TOKEN, 5, 6, 1, argument=6),
        op(LOCK, 7, 8, 7),
    ],
    "a late copy is executed long after": [
        op(LOCK, 0, None, None),
        op(READ, 3, 4, 0),
        op(LOCK, 5, 6, 0),
    ],
    "an undone lock is refused though nobody holds it": [
        op(LOCK, 0, 9, 0, reqid="x"),
        op(UNDO, 1, 2, 0, argument="x"),
    ],
    "an undo releases what its request was granted": [
        op(LOCK, 0, None, None, reqid="x"),
        op(UNDO, 1, 2, 1, argument="x"),
        op(READ, 3, 4, 0),
    ],
    "two grants of unknown outcome, of which the second was undone": [
        op(LOCK, 0, None, None, reqid="x"),
        op(LOCK, 1, 2, 0),
        op(UNLOCK, 3, None, None),
        op(LOCK, 4, None, None, reqid="y"),
        op(UNDO, 5, 6, 1, argument="y"),
    ],
    "a lease passes": [op(LOCK, 0, 1, 5, lease_ms=50), op(LOCK, 60, 61, 8)],
    "what is about an ended grant is refused": [
        op(LOCK, 0, 1, 5),
        op(UNLOCK, 2, 3, 1),
        op(VERIFY, 4, 5, 0, argument=5),
        op(RENEW, 6, 7, 0, argument=5, lease_ms=9),
        op(UNLOCK_TOKEN, 8, 9, 0, argument=5),
    ],
}

IMPOSSIBLE = {
    "two grants and no release": [op(LOCK, 0, 1, 5), op(LOCK, 2, 3, 6)],
    "a refusal while it was free": [op(LOCK, 0, 1, 0)],
    "two releases of one grant": [op(LOCK, 0, 1, 5), op(UNLOCK, 2, 6, 1), op(UNLOCK, 3, 7, 1)],
    "a release of a grant that had ended": [
        op(LOCK, 0, 1, 5),
        op(UNLOCK, 2, 3, 1),
        op(LOCK, 4, 5, 6),
        op(UNLOCK_TOKEN, 7, 8, 1, argument=5),
    ],
    "a read of who had gone": [op(LOCK, 0, 1, 5), op(UNLOCK, 2, 3, 1), op(READ, 4, 5, 5)],
    "a read that does not see the holder": [op(LOCK, 0, 1, 5), op(READ, 2, 3, 0)],
    "a read of a token that nobody was given": [op(LOCK, 0, 1, 5), op(READ, 2, 3, 6)],
    "a refusal of the holder's own renewal": [
        op(LOCK, 0, 1, 5, lease_ms=100),
        op(RENEW, 2, 3, 0, argument=5, lease_ms=100),
    ],
    "one release of unknown outcome cannot end two grants": [
        op(LOCK, 0, 1, 5),
        op(UNLOCK, 2, None, None),
        op(LOCK, 9, 10, 7),
        op(LOCK, 11, 12, 9),
    ],
    "a grant after its undo": [
        op(UNDO, 0, 1, 0, argument="x"),
        op(LOCK, 2, 3, 7, reqid="x"),
    ],
    "an undone request of unknown outcome holds nothing": [
        op(LOCK, 0, None, None, reqid="x"),
        op(UNDO, 1, 2, 0, argument="x"),
        op(LOCK, 3, 4, 0),
    ],
    "two tokens seen of one grant": [
        op(LOCK, 0, None, None),
        op(READ, 3, 4, 6),
        op(READ, 5, 6, 7),
    ],
    "a token that was ruled out": [
        op(LOCK, 0, None, None),
        op(LOCK, 1, 2, 0),
        op(VERIFY, 3, 4, 0, argument=6),
        op(READ, 5, 6, 6),
    ],
    "the only order puts the larger token first": [
        op(LOCK, 0, 9, 8),
        op(LOCK, 0, 20, 5),
        op(READ, 8, 9, 8),
        op(UNLOCK_TOKEN, 10, 11, 1, argument=8),
    ],
    "a lease that ends early": [op(LOCK, 0, 1, 5, lease_ms=50), op(LOCK, 30, 40, 8)],
    "a lease that was renewed ends early": [
        op(LOCK, 0, 1, 5, lease_ms=50),
        op(RENEW, 30, 31, 1, argument=5, lease_ms=50),
        op(LOCK, 60, 61, 8),
    ],
    "no lease, no expiry": [op(LOCK, 0, 1, 5), op(LOCK, 60_000, 60_001, 8)],
}
