"""What the clients of a run do with versioned registers, and two things that must hold of these.

    r0        is never deleted: its versions only rise
    r1        is deleted now and then
    x1, x2..  are given an end, once
    g-<lock>  is written by those who hold that lock, or did: every put is fenced

Clients turn to the same kind of register at the same time, so that they get into each other's way.
All of it has dice of its own, and is little: locks are what most of a run is about.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from harness.checkers.history import LOCK, History, Operation
from harness.checkers.registers import GET, NEVER, SHOWN, WRITTEN, RegisterOperation
from holdfast.compat.attempts import Finish, Refusal, Verdict
from holdfast.compat.registers import Put, Update, get_request, put_of

from .options import Options
from .records import GUARDED, delete_request, end_request
from .tasks import Steps
from .trace import Trace

if TYPE_CHECKING:
    from .client import SimClient

DEADLINES_US = (700_000, 2_000_000, 4_000_000)
LENGTHS_MS = (150, 400, 1_000, 2_000)
LOOKS, LOOK_US = 12, 40_000  # for something that is held


class Grant(Protocol):
    """A lock in its client's hands."""

    name: bytes
    token: int


class RegisterWork:
    """All clients' work on registers."""

    def __init__(self, options: Options, trace: Trace, rng: random.Random) -> None:
        self._every_us = options.registers_every_ms * 1_000
        self._clock_ppm = options.clock_ppm
        self._trace = trace
        self._rng = rng
        self._themes = (self._race_r0, self._put_fenced, self._race_r1, self._race_to_an_end)
        self._first = int(rng.random() * len(self._themes))
        self._former: dict[str, deque[tuple[bytes, int]]] = defaultdict(lambda: deque(maxlen=3))
        self._values = 0
        self._ending = 0  # how many registers were given an end
        self.stopping = False

    def note_end(self, client: SimClient, grant: Grant) -> None:
        """A client gives a lock back, or its lease runs out; it may put as if it held it still."""
        self._former[client.name].append((grant.name, grant.token))

    def work(self, client: SimClient, held: Iterable[Grant]) -> Steps:
        """What a thread of a client does. ``held``: what the client holds, at any time."""
        while True:
            yield from client.sleep(self._until_next_us(client))
            if self.stopping:
                return
            theme = self._first + client.scheduler.now_us // self._every_us
            yield from self._themes[theme % len(self._themes)](client, held)

    def _until_next_us(self, client: SimClient) -> int:
        every_us, rolled = self._every_us, self._rng.random
        left_us = every_us - client.scheduler.now_us % every_us
        return left_us + every_us * int(2 * rolled()) + int(20_000 * rolled())

    # -- one thing to do -------------------------------------------------------------------------

    def _race_r0(self, client: SimClient, held: Iterable[Grant]) -> Steps:
        yield from self._race(client, b"r0")

    def _race_r1(self, client: SimClient, held: Iterable[Grant]) -> Steps:
        if self._rng.random() < 0.3:
            yield from client.read(delete_request(b"r1"), self._deadline_us())
        yield from self._race(client, b"r1")

    def _race(self, client: SimClient, key: bytes) -> Steps:
        if self._rng.random() < 0.5:
            yield from self.update(client, key, self._deadline_us())
            return
        finish = yield from client.read(get_request(key), self._deadline_us())
        version = _version_in(finish)
        if version is not None:
            yield from client.sleep(int(self._rng.expovariate(1 / 20_000)))
            yield from self._put(client, self._put_of(key, version))

    def _put_fenced(self, client: SimClient, held: Iterable[Grant]) -> Steps:
        """By a holder who thinks about it for a while, or by a former one."""
        for _ in range(LOOKS):
            if list(held):
                break
            yield from client.sleep(LOOK_US)
        grants = [(grant.name, grant.token) for grant in held] or [*self._former[client.name]]
        if not grants:
            return
        name, token = grants[int(self._rng.random() * len(grants))]
        key = GUARDED.encode() + name
        finish = yield from client.read(get_request(key), self._deadline_us())
        version = _version_in(finish)
        if version is not None:
            yield from client.sleep(int(self._rng.expovariate(1 / 50_000)))
            yield from self._put(client, self._put_of(key, version, (name, token)))

    def _race_to_an_end(self, client: SimClient, held: Iterable[Grant]) -> Steps:
        if not self._ending or self._rng.random() < 0.4:
            yield from self._make_one_that_ends(client)
        else:
            yield from self._race(client, b"x%d" % self._ending)

    def _make_one_that_ends(self, client: SimClient) -> Steps:
        """Nothing else of that name is ever given an end: so it is known when it may come."""
        rng = self._rng
        self._ending += 1
        key = b"x%d" % self._ending
        yield from self._put(client, self._put_of(key, 0))
        length_ms = rng.choice(LENGTHS_MS)
        least_us = length_ms * (1_000_000 - self._clock_ppm) // 1_000
        self._trace.ends_us[key.decode()] = client.scheduler.now_us + least_us
        yield from client.read(end_request(key, length_ms), self._deadline_us())
        yield from client.sleep(int(2_000 * length_ms * rng.random()))
        yield from self.update(client, key, self._deadline_us())

    def update(self, client: SimClient, key: bytes, deadline_us: int) -> Steps:
        """As ``_Session.update``."""
        wanted = Update(deadline_us, client.clock.us(), self._rng.random)
        while True:
            left_us = wanted.left_us(client.clock.us())
            finish: Finish = yield from client.read(get_request(key), left_us)
            version = _version_in(finish)
            if version is None:
                return
            put = self._put_of(key, version)
            finish = yield from self._put(client, put, wanted.left_us(client.clock.us()))
            if finish.verdict is not Verdict.ANSWERED or not isinstance(finish.value, Refusal):
                return
            pause_us = wanted.conflict(client.clock.us())
            if pause_us is None:
                return
            self._trace.count("update tried again")
            yield from client.sleep(pause_us)

    def prove(self, client: SimClient, name: bytes, token: int, deadline_us: int) -> Steps:
        """The holder of a lock writes a register of its own; returns whether it is served."""
        put = self._put_of(name + b"'s", 0, (name, token))
        finish = yield from client.put(put, True, deadline_us)
        return finish.verdict is Verdict.ANSWERED

    def _put(self, client: SimClient, put: Put, deadline_us: int = 0) -> Steps:
        """With a request id, or without; returns Finish."""
        once = self._rng.random() < 0.6
        return (yield from client.put(put, once, deadline_us or self._deadline_us()))

    def _put_of(self, key: bytes, version: int, fence: tuple[bytes, int] | None = None) -> Put:
        """Every value is another one; that of a fenced put tells its fencing token."""
        self._values += 1
        token = 0 if fence is None else fence[1]
        return put_of(key, b"%d %d" % (token, self._values), version, fence)

    def _deadline_us(self) -> int:
        return self._rng.choice(DEADLINES_US)


def _version_in(finish: Any) -> int | None:
    """What a get has shown, 0 if there is none; None: nothing."""
    if finish.verdict is not Verdict.ANSWERED:
        return None
    return 0 if isinstance(finish.value, Refusal) else int(finish.value[1])


# -- what must hold ------------------------------------------------------------------------------


def check_fenced_order(history: History) -> list[str]:
    """Problems: a register that is only written by holders of one lock, and by an earlier one after
    a later one has written it, or after its grant had been answered and the register was looked at.
    So fence and write were not one step (G3)."""
    shown: dict[str, list[RegisterOperation]] = defaultdict(list)
    for op in history.registers:
        if op.key.startswith(GUARDED) and op.answer is not None and not op.answer.maybe:
            shown[op.key].append(op)
    grants: dict[str, list[Operation]] = defaultdict(list)
    for lock in history.operations:
        if lock.kind == LOCK and lock.answer and lock.return_us is not None:
            grants[GUARDED + lock.name].append(lock)
    return [
        f"register {key!r}: {problem} (G3)"
        for key, operations in shown.items()
        if (problem := _stale_write(operations, grants[key]))
    ]


def _stale_write(operations: Iterable[RegisterOperation], grants: Iterable[Operation]) -> str:
    """The first; empty if there is none."""
    answers = [(op, op.answer) for op in operations if op.answer is not None]
    writers: dict[int, int] = {}  # version -> fencing token of who wrote it
    for op, answer in answers:
        if answer.outcome in (SHOWN, WRITTEN):
            value = answer.value if answer.outcome == SHOWN else op.value
            writers[answer.version] = int(value.split()[0])
    # Token -> the lowest version that its holder can have written.
    first = {token: version for version, token in sorted(writers.items(), reverse=True)}
    granted = sorted((lock.return_us or 0, lock.answer or 0) for lock in grants)
    for op, answer in answers:
        if op.kind == GET:
            known = granted[: bisect_right(granted, (op.call_us, 0))]
            token = max((token for _, token in known), default=0)
            first[token] = min(first.get(token, NEVER), answer.version + 1)
    highest, least = 0, sorted((version, token) for token, version in first.items())
    for version, writer in sorted(writers.items()):
        while least and least[0][0] <= version:
            highest = max(highest, least.pop(0)[1])
        if writer < highest:
            return f"version {version} is of token {writer}, though {highest} was granted before"
    return ""
