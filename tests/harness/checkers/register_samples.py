"""Histories made by clients of a correct register, whole and spoilt, to check its checker.

The register executes each copy of a request at one instant between its sending and its return. Some
answers are lost: such a copy is executed late, or never, and its client may send another one.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from .register_oracle import do
from .registers import (
    CONFLICT,
    DELETE,
    DELETED,
    GET,
    NO_KEY,
    PUT,
    SHOWN,
    STALE,
    WRITTEN,
    Answer,
    RegisterOperation,
)


@dataclass
class RegisterSample:
    """How to make a history. Times in units; of ranges, both ends are possible."""

    seed: int
    clients: int = 3
    keys: int = 1
    operations: int = 5
    delay_max: int = 2  # from call to execution, from there to the return, from there to the next
    lost: float = 0.2  # how many answers are lost
    deletes: float = 0.0  # how many operations are deletes
    values: int = 3  # how many different ones are written; 0: each is another


class _Run:
    """One run: the things that happen, by time."""

    def __init__(self, sample: RegisterSample) -> None:
        self.sample = sample
        self.random = random.Random(sample.seed)
        self.operations: list[RegisterOperation] = []
        self._now = 0
        self._worlds: dict[str, tuple[bytes, int] | None] = {}
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._calls = 0
        self._known: dict[tuple[str, str], int] = {}  # client and key: the version it saw last

    def run(self) -> None:
        for number in range(self.sample.clients):
            self._after(self._delay(), self._caller(f"c{number}"))
        while self._agenda:
            self._now, _, action = heapq.heappop(self._agenda)
            action()

    def _after(self, delay: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self._now + delay, next(self._order), action))

    def _delay(self, factor: int = 1) -> int:
        return self.random.randint(0, self.sample.delay_max * factor)

    def _caller(self, client: str) -> Callable[[], None]:
        return lambda: self._call(client)

    def _call(self, client: str) -> None:
        if self._calls < self.sample.operations:
            self._calls += 1
            self._send(self._choose(client), sent_before=False)

    def _choose(self, client: str) -> RegisterOperation:
        sample, rnd = self.sample, self.random
        key, chance = f"r{rnd.randrange(sample.keys)}", rnd.random()
        kind = DELETE if chance < sample.deletes else PUT if chance < 0.7 else GET
        version = self._known.get((client, key), 0) if kind == PUT else 0
        if kind == PUT and rnd.random() < 0.1:
            version += 1
        value = b"%d" % (rnd.randrange(sample.values) if sample.values else self._calls)
        value = value if kind == PUT else b""
        return RegisterOperation(client, kind, key, self._now, None, None, version, value)

    def _send(self, op: RegisterOperation, *, sent_before: bool) -> None:
        """One copy. If it is lost the client sends another one, or gives up."""
        rnd = self.random
        if rnd.random() >= self.sample.lost:
            self._after(self._delay(), lambda: self._execute(op, sent_before))
            return
        if rnd.random() < 0.6:
            self._after(self._delay(4), lambda: self._execute(op, None))
        # (Where registers are deleted, a second copy of a put may write after the first.)
        if rnd.random() < 0.5 and not self.sample.deletes:
            self._after(self._delay(3), lambda: self._send(op, sent_before=True))
        else:
            self.operations.append(op)
            self._after(self._delay(3), self._caller(op.client))

    def _execute(self, op: RegisterOperation, sent_before: bool | None) -> None:
        """`sent_before`: whether this is not the first copy; None: nobody waits for the answer."""
        self._worlds[op.key], answer = do(self._worlds.get(op.key), op)
        if sent_before is not None:
            self._after(self._delay(), lambda: self._return(op, answer, sent_before))

    def _return(self, op: RegisterOperation, answer: Answer, sent_before: bool) -> None:
        if sent_before and op.kind == PUT and answer.outcome in (CONFLICT, NO_KEY):
            answer = answer._replace(maybe=True)
        self.operations.append(op._replace(return_us=self._now, answer=answer))
        if answer.outcome in (SHOWN, WRITTEN, CONFLICT, NO_KEY):
            self._known[op.client, op.key] = answer.version
        self._after(self._delay(), self._caller(op.client))


def make_registers(sample: RegisterSample) -> list[RegisterOperation]:
    """The operations of one run."""
    run = _Run(sample)
    run.run()
    return run.operations


def spoil_registers(
    operations: list[RegisterOperation], rnd: random.Random
) -> list[RegisterOperation]:
    """The same with one answer changed, which may or may not be possible still."""
    answered = [i for i, op in enumerate(operations) if op.answer is not None]
    if not answered:
        return operations
    spoilt = list(operations)
    index = rnd.choice(answered)
    op = operations[index]
    assert op.answer is not None
    spoilt[index] = op._replace(answer=_another(op, op.answer, operations, rnd))
    return spoilt


def _another(
    op: RegisterOperation,
    answer: Answer,
    operations: list[RegisterOperation],
    rnd: random.Random,
) -> Answer:
    """One that an operation of this kind can have, and most likely not this one."""
    version = max(1, answer.version + rnd.choice((-1, 1)))
    value = rnd.choice([b"x", *(each.value for each in operations if each.kind == PUT)])
    if op.kind == GET:
        shown = rnd.choice((Answer(SHOWN, version, answer.value), Answer(SHOWN, version, value)))
        return rnd.choice((Answer(NO_KEY), shown, Answer(SHOWN, max(1, answer.version), value)))
    if op.kind == DELETE:
        return Answer(NO_KEY if answer.outcome == DELETED else DELETED)
    conflict = Answer(CONFLICT, version + (version == op.version))
    choices = [Answer(WRITTEN, op.version + 1), conflict, conflict._replace(maybe=True)]
    if op.version:
        choices.append(Answer(NO_KEY))
    return rnd.choice([each for each in choices if each != answer])


def shake_registers(
    operations: list[RegisterOperation], rnd: random.Random
) -> list[RegisterOperation]:
    """The same with one operation moved, shortened, lengthened, left out or of unknown outcome."""
    if not operations:
        return operations
    index = rnd.randrange(len(operations))
    op = operations[index]
    if op.return_us is None or rnd.random() < 0.2:
        return operations[:index] + operations[index + 1 :]
    if rnd.random() < 0.2:
        changed = op._replace(return_us=None, answer=None)
    else:
        shift, longer = rnd.randint(-3, 3), rnd.randint(-2, 2)
        call_us = max(0, op.call_us + shift)
        changed = op._replace(
            call_us=call_us, return_us=max(call_us, op.return_us + shift + longer)
        )
    return [*operations[:index], changed, *operations[index + 1 :]]


def scramble_registers(rnd: random.Random, count: int) -> list[RegisterOperation]:
    """Operations that have nothing to do with one another."""
    return [_any_operation(rnd) for _ in range(count)]


def _any_operation(rnd: random.Random) -> RegisterOperation:
    kind = rnd.choice((GET, GET, PUT, PUT, PUT, PUT, DELETE) if rnd.random() < 0.5 else (GET, PUT))
    call_us, version, value = rnd.randint(0, 6), rnd.randint(0, 2), rnd.choice((b"x", b"y"))
    op = RegisterOperation("c", kind, "r0", call_us, None, None)
    if kind == PUT:
        op = op._replace(version=version, value=value)
    if rnd.random() < 0.25:
        return op
    if kind == GET:
        answer = Answer(SHOWN, version, value) if version else Answer(NO_KEY)
    elif kind == DELETE:
        answer = Answer(rnd.choice((DELETED, NO_KEY)))
    elif rnd.random() < 0.6:
        answer = Answer(WRITTEN, version + 1)
    else:
        has = rnd.choice([n for n in range(4) if n != version])
        answer = Answer(CONFLICT, has) if has else Answer(NO_KEY)
        answer = answer._replace(maybe=rnd.random() < 0.3)
        answer = Answer(STALE) if rnd.random() < 0.1 else answer
    return op._replace(return_us=call_us + rnd.randint(0, 8), answer=answer)
