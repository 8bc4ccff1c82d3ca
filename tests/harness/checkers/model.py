"""The sequential model: what one lock does if requests come one after the other.

A lock is free, or held by a grant. Fencing tokens rise from grant to grant, so the model carries
the highest one so far. A grant whose answer nobody saw has some token, we do not know which: it is
*unnamed* until an answer that shows its token names it. Answers that rule a token out are kept
until then, so that the model is exact.

Time does not occur here, see linearizable.py; an expiry is a release like any other.
"""

from __future__ import annotations

from typing import NamedTuple

from .history import LOCK, READ, RENEW, UNDO, UNLOCK, UNLOCK_TOKEN, VERIFY

FREE = -1
EXPIRE = "expire"


class Lock(NamedTuple):
    """State of one lock. `holder` is the number of the event that granted it, or FREE; `token` that
    of the grant, 0 while it is unnamed; `highest` the least that the highest token so far can be;
    `ruled_out` what the token of an unnamed grant is not, above `highest`."""

    holder: int = FREE
    token: int = 0
    highest: int = 0
    ruled_out: frozenset[int] = frozenset()

    def __str__(self) -> str:
        if self.holder == FREE:
            return "free"
        return f"held with token {self.token}" if self.token else "held with a token nobody saw"


class Event(NamedTuple):
    """Something that may happen to the lock: an operation, or the expiry of a lease.

    `argument` as in an Operation; of an expiry the token, or, negative, the event -n-1 that made
    the grant. `answer` None: the outcome is unknown, so this happens at most once; if it happens,
    it does what such a request does when it succeeds.
    """

    number: int
    kind: str
    reqid: str
    answer: int | None
    argument: int | str
    text: str


class Model:
    """The transitions, for the events of one lock. `known` are the tokens of answered grants: they
    cannot be that of an unnamed one."""

    def __init__(self, events: list[Event]) -> None:
        self._events = events
        self.known = {event.answer for event in events if event.kind == LOCK and event.answer}

    def step(self, lock: Lock, event: Event, undone: bool = False) -> Lock | None:
        """The lock after `event`; None if it cannot happen now, with that answer. `undone`: an undo
        of this LOCK went before, so it is not granted any more."""
        kind, answer = event.kind, event.answer
        if kind == LOCK:
            return self._lock(lock, event, undone)
        if kind == UNLOCK:
            held = lock.holder != FREE
            return None if held == (answer == 0) else _released(lock) if held else lock
        if kind == UNDO:
            return self._undo(lock, event)
        if kind == EXPIRE:
            return self._expire(lock, int(event.argument))
        if kind == READ and not answer:
            return lock if lock.holder == FREE else None
        token = int(answer or 0) if kind == READ else int(event.argument)
        assert kind in (READ, VERIFY, RENEW, UNLOCK_TOKEN), f"unknown kind of event {kind!r}"
        if answer == 0:
            return self._rule_out(lock, token)
        named = self._name(lock, token)
        return _released(named) if named is not None and kind == UNLOCK_TOKEN else named

    def _lock(self, lock: Lock, event: Event, undone: bool) -> Lock | None:
        held, token = lock.holder != FREE, event.answer
        if token == 0:
            return lock if held or undone else None
        if held or undone:
            return None
        if token is None:
            return Lock(event.number, 0, self._unused_after(lock.highest, frozenset()))
        return Lock(event.number, token, token) if token > lock.highest else None

    def _undo(self, lock: Lock, event: Event) -> Lock | None:
        theirs = lock.holder != FREE and self._events[lock.holder].reqid == event.argument
        if event.answer is not None and theirs != bool(event.answer):
            return None
        return _released(lock) if theirs else lock

    def _expire(self, lock: Lock, argument: int) -> Lock | None:
        if lock.holder == FREE:
            return None
        if argument < 0:
            return _released(lock) if lock.holder == -argument - 1 else None
        named = self._name(lock, argument)
        return None if named is None else _released(named)

    def _name(self, lock: Lock, token: int) -> Lock | None:
        """The grant turns out to have this token."""
        if lock.holder == FREE or lock.token:
            return lock if lock.holder != FREE and lock.token == token else None
        if token < lock.highest or token in self.known or token in lock.ruled_out:
            return None
        return Lock(lock.holder, token, token)

    def _rule_out(self, lock: Lock, token: int) -> Lock | None:
        """The grant, if there is one, turns out not to have this token."""
        if lock.holder == FREE or lock.token:
            return None if lock.holder != FREE and lock.token == token else lock
        if token < lock.highest or token in self.known or token in lock.ruled_out:
            return lock
        ruled_out = lock.ruled_out | {token}
        highest = lock.highest
        if token == highest:
            highest = self._unused_after(highest, ruled_out)
        return Lock(lock.holder, 0, highest, frozenset(t for t in ruled_out if t > highest))

    def _unused_after(self, token: int, ruled_out: frozenset[int]) -> int:
        token += 1
        while token in self.known or token in ruled_out:
            token += 1
        return token


def _released(lock: Lock) -> Lock:
    return Lock(FREE, 0, lock.highest)
