"""Histories made by clients of a correct lock server, whole and spoilt, to check the checkers.

The server is one lock table that executes every request at one instant between its call and its
return, in a time of its own. Some answers are lost: such a request is executed late, or never.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from .history import (
    LOCK,
    READ,
    RENEW,
    UNDO,
    UNLOCK,
    UNLOCK_TOKEN,
    VERIFY,
    Expiry,
    Operation,
)


@dataclass
class Sample:
    """How to make a history. Times in microseconds; of ranges, both ends are possible."""

    seed: int
    clients: int = 3
    names: int = 1
    operations: int = 5
    unit_us: int = 1000  # all delays are multiples of it
    delay_max: int = 2  # from call to execution, from there to the return, from there to the next
    lost: float = 0.2  # how many answers are lost
    leased: float = 0.3  # how many locks have a lease
    lease_ms_max: int = 4
    wait_ms_max: int = 0


@dataclass
class _Grant:
    token: int
    reqid: str
    ends_us: int | None


@dataclass
class _Client:
    """What a client knows: what it holds, by name, and requests whose answer it never saw."""

    name: str
    held: dict[str, int] = field(default_factory=dict)
    lost: list[tuple[str, str]] = field(default_factory=list)


class _Run:
    """One run: the things that happen, by time."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self.random = random.Random(sample.seed)
        self.now = 0
        self.operations: list[Operation] = []
        self.expiries: list[Expiry] = []
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._grants: dict[str, _Grant] = {}
        self._undone: set[str] = set()
        self._token = 0
        self._reqids = itertools.count(1)
        self._calls = 0
        for number in range(sample.clients):
            client = _Client(f"c{number}")
            self._after(self._delay(), lambda client=client: self._call(client))  # type: ignore[misc]

    def run(self) -> None:
        while self._agenda:
            self.now, _, action = heapq.heappop(self._agenda)
            action()

    def _after(self, delay_us: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.now + delay_us, next(self._order), action))

    def _delay(self, factor: int = 1) -> int:
        return self.random.randint(0, self.sample.delay_max * factor) * self.sample.unit_us

    # -- clients ---------------------------------------------------------------------------------

    def _call(self, client: _Client) -> None:
        if self._calls >= self.sample.operations:
            return
        self._calls += 1
        op = self._choose(client)
        if self.random.random() >= self.sample.lost:
            self._after(self._delay(), lambda: self._execute(op, client))
            return
        self.operations.append(op)
        if op.kind == LOCK:
            client.lost.append((op.name, op.reqid))
        if self.random.random() < 0.7:
            self._after(self._delay(4), lambda: self._execute(op, None))
        self._after(self._delay(3), lambda: self._call(client))

    def _choose(self, client: _Client) -> Operation:
        """The next request of this client, its answer still unknown."""
        name = f"lock-{self.random.randrange(self.sample.names)}"
        chance = self.random.random()
        if client.lost and chance < 0.6:
            name, undone = client.lost.pop()
            return self._op(client, UNDO, name, undone)
        if chance < 0.15:
            return self._op(client, READ, name)
        if name not in client.held:
            return self._op(client, UNLOCK if chance > 0.95 else LOCK, name)
        token = client.held[name]
        kind = self.random.choice((UNLOCK, UNLOCK_TOKEN, UNLOCK_TOKEN, VERIFY, RENEW))
        if kind in (UNLOCK, UNLOCK_TOKEN):
            del client.held[name]
        return self._op(client, kind, name, 0 if kind == UNLOCK else token)

    def _op(self, client: _Client, kind: str, name: str, argument: int | str = 0) -> Operation:
        sample, rnd = self.sample, self.random
        with_lease = kind == RENEW or (kind == LOCK and rnd.random() < sample.leased)
        reqid = f"r{next(self._reqids)}" if kind in (LOCK, UNLOCK, UNLOCK_TOKEN, UNDO) else ""
        lease_ms = rnd.randint(1, sample.lease_ms_max) if with_lease else 0
        wait_ms = rnd.randint(0, sample.wait_ms_max) if kind == LOCK else 0
        return Operation(
            client.name, kind, name, reqid, self.now, None, None, argument, lease_ms, wait_ms
        )

    def _return(self, client: _Client, op: Operation, answer: int) -> None:
        self.operations.append(op._replace(return_us=self.now, answer=answer))
        if op.kind == LOCK and answer:
            client.held[op.name] = answer
        elif op.kind in (VERIFY, RENEW) and not answer:
            client.held.pop(op.name, None)
        self._after(self._delay(), lambda: self._call(client))

    # -- the server ------------------------------------------------------------------------------

    def _execute(self, op: Operation, client: _Client | None) -> None:
        waits = op.kind == LOCK and self.now < op.call_us + op.wait_ms * 1000
        if waits and op.name in self._grants and op.reqid not in self._undone:
            self._after(self.sample.unit_us, lambda: self._execute(op, client))
            return
        answer = self._answer(op)
        if client is not None:
            self._after(self._delay(), lambda: self._return(client, op, answer))

    def _answer(self, op: Operation) -> int:
        grant = self._grants.get(op.name)
        if op.kind == LOCK:
            return 0 if grant or op.reqid in self._undone else self._grant(op)
        if op.kind == READ:
            return grant.token if grant else 0
        if op.kind == UNDO:
            self._undone.add(str(op.argument))
            fits = grant is not None and grant.reqid == op.argument
        else:
            fits = grant is not None and (op.kind == UNLOCK or grant.token == op.argument)
        if not fits or grant is None:
            return 0
        if op.kind in (UNLOCK, UNLOCK_TOKEN, UNDO):
            del self._grants[op.name]
        elif op.kind == RENEW and grant.ends_us is not None:
            grant.ends_us = max(grant.ends_us, self.now + op.lease_ms * 1000)
        return 1

    def _grant(self, op: Operation) -> int:
        self._token += self.random.randint(1, 3)
        grant = _Grant(self._token, op.reqid, None)
        self._grants[op.name] = grant
        if op.lease_ms:
            grant.ends_us = self.now + op.lease_ms * 1000
            self._after(op.lease_ms * 1000, lambda: self._expire(op.name, grant))
        return grant.token

    def _expire(self, name: str, grant: _Grant) -> None:
        if self._grants.get(name) is not grant or grant.ends_us is None:
            return
        if grant.ends_us > self.now:
            self._after(grant.ends_us - self.now, lambda: self._expire(name, grant))
            return
        del self._grants[name]
        self.expiries.append(Expiry(name, grant.token, self.now))


def make(sample: Sample) -> tuple[list[Operation], list[Expiry]]:
    """The operations of one run, and the expiries that the server applied."""
    run = _Run(sample)
    run.run()
    return run.operations, run.expiries


def spoil(operations: list[Operation], rnd: random.Random) -> list[Operation]:
    """The same with one answer changed, which may or may not be possible still."""
    answered = [i for i, op in enumerate(operations) if op.answer is not None]
    if not answered:
        return operations
    spoilt = list(operations)
    index = rnd.choice(answered)
    op = operations[index]
    tokens = [o.answer for o in operations if o.kind == LOCK and o.answer]
    if op.kind in (LOCK, READ):
        choices = {0, max(tokens, default=0) + 1, rnd.randint(1, 9), *tokens} - {op.answer}
        answer = 0 if op.answer and rnd.random() < 0.5 else rnd.choice(sorted(choices))
    else:
        answer = 1 - int(op.answer or 0)
    spoilt[index] = op._replace(answer=answer)
    return spoilt


def shake(operations: list[Operation], rnd: random.Random, unit_us: int) -> list[Operation]:
    """The same with one operation moved, shortened, lengthened, left out or of unknown outcome."""
    index = rnd.randrange(len(operations))
    op = operations[index]
    call_us = max(0, op.call_us + rnd.randint(-2, 2) * unit_us)
    chance = rnd.random()
    if chance < 0.2:
        return operations[:index] + operations[index + 1 :]
    if chance < 0.4 or op.return_us is None:
        op = op._replace(answer=None, return_us=None)
    else:
        return_us = max(call_us, op.return_us + rnd.randint(-2, 2) * unit_us)
        op = op._replace(call_us=call_us, return_us=return_us)
    return [*operations[:index], op, *operations[index + 1 :]]


def scramble(rnd: random.Random, count: int, unit_us: int) -> tuple[list[Operation], list[Expiry]]:
    """Operations on one lock, and expiries, that make no sense together, or do by chance."""
    return (
        [_any_operation(rnd, number, unit_us) for number in range(count)],
        [
            Expiry("a", rnd.randint(1, 4), rnd.randint(0, 9) * unit_us)
            for _ in range(rnd.randint(0, 2))
        ],
    )


def _any_operation(rnd: random.Random, number: int, unit_us: int) -> Operation:
    kind = rnd.choice((LOCK, LOCK, LOCK, UNLOCK, UNLOCK_TOKEN, UNDO, UNDO, RENEW, VERIFY, READ))
    call_us = rnd.randint(0, 6) * unit_us
    answer = rnd.choice((0, rnd.randint(1, 4))) if kind in (LOCK, READ) else rnd.randint(0, 1)
    argument: int | str = 0
    if kind == UNDO:
        argument = f"r{rnd.randint(0, 3)}"
    elif kind in (UNLOCK_TOKEN, RENEW, VERIFY):
        argument = rnd.randint(1, 4)
    lease_ms = rnd.choice((0, 1, 3)) if kind == LOCK else 2 if kind == RENEW else 0
    op = Operation("c", kind, "a", f"r{number}", call_us, None, None, argument, lease_ms)
    if rnd.random() < 0.3:
        return op
    return op._replace(return_us=call_us + rnd.randint(0, 8) * unit_us, answer=answer)
