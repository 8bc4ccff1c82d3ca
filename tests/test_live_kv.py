"""The tests of a key/value service whose network loses messages, over real processes and sockets.

MIT 6.5840, spring 2025, kvsrv1, one each: Clerk's get and put, and the lock made of them, on a pair
with a lossy proxy (harness/lossy.py) in front of either node. `ErrMaybe` of the original is
MaybeError, and exists with `once=False` only; a put with a request id has one outcome. What the
original has no part of, a primary that dies under it, is added. Histories are checked to be
linearizable; a check that cannot decide is a failure.

That network duplicates requests as well. A put without an id that was done would be refused by its
own second copy, so for those the first copy is the one that is answered, as it is on TCP.

HOLDFAST_TEST_ROUNDS=1000 repeats the failover so often; HOLDFAST_TEST_SEED=n uses that seed.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness.checkers import History, check_all, check_registers, from_ops
from harness.checkers.registers import (
    CONFLICT,
    GET,
    NO_KEY,
    PUT,
    SHOWN,
    STALE,
    WRITTEN,
    Answer,
    RegisterOperation,
)
from harness.history import Recorder
from harness.lossy import Faults, LossyProxy
from harness.processes import Cluster, Node, Zygote, wait_until
from harness.wire import Wire, encode
from harness.workers import Workers

from holdfast.compat import (
    Clerk,
    IndeterminateError,
    MaybeError,
    NoKeyError,
    RegisterError,
    RegisterLock,
    StaleTokenError,
    Versioned,
    VersionError,
)

ROUNDS = int(os.environ.get("HOLDFAST_TEST_ROUNDS", "4"))
READ_TIMEOUT_MS = 40  # what is lost costs so much time; a rare delay each way is longer
LOSSY = Faults()
LOSSY_WITHOUT_IDS = Faults(first_answers=1.0)
NEVER_WITHOUT_IDS = frozenset({"second_answers"})


@pytest.fixture
def seed() -> int:
    """Printed, so that a failure can be repeated as far as timing allows."""
    number = int(os.environ.get("HOLDFAST_TEST_SEED", "0")) or random.randrange(1, 1_000_000)
    print(f"seed {number}")
    return number


# -- clerks, and what they record -----------------------------------------------------------------


class RecordedClerk:
    """Clerk's get and put, recorded."""

    def __init__(self, clerk: Clerk, who: str, history: list[RegisterOperation]) -> None:
        self.clerk = clerk
        self.token = 0  # of the grant that this clerk was given last
        self._who, self._history = who, history

    def get(self, key: str | bytes) -> Versioned:
        """As Clerk's. (One that was never answered says nothing.)"""
        call_us = now_us()
        try:
            shown = self.clerk.get(key)
        except NoKeyError:
            self._add(GET, key, call_us, Answer(NO_KEY))
            raise
        self._add(GET, key, call_us, Answer(SHOWN, shown.version, shown.value))
        return shown

    def put(
        self,
        key: str | bytes,
        value: str | bytes,
        version: int,
        *,
        once: bool = True,
        fence: tuple[str, int] | None = None,
    ) -> int:
        """As Clerk's."""
        call_us = now_us()
        answer: Answer | None = None
        try:
            answer = Answer(WRITTEN, self.clerk.put(key, value, version, once=once, fence=fence))
            return answer.version
        except (RegisterError, IndeterminateError) as error:
            answer = answer_of(error)
            raise
        finally:
            self._add(PUT, key, call_us, answer, version, as_bytes(value), fence)

    def _add(
        self, kind: str, key: str | bytes, call_us: int, answer: Answer | None, *of_put: Any
    ) -> None:
        return_us = None if answer is None else now_us() + 1
        what = (self._who, kind, as_bytes(key).decode(), call_us, return_us, answer)
        self._history.append(RegisterOperation(*what, *of_put))


def now_us() -> int:
    return time.monotonic_ns() // 1000


def as_bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def answer_of(error: BaseException | None) -> Answer | None:
    """What a put that raised this was told; None: nobody knows."""
    if isinstance(error, MaybeError):
        answer = answer_of(error.__cause__)
        assert answer is not None
        return answer._replace(maybe=True)
    if isinstance(error, VersionError):
        return Answer(CONFLICT, error.current_version)
    if isinstance(error, StaleTokenError):
        return Answer(STALE)
    return Answer(NO_KEY) if isinstance(error, NoKeyError) else None


class Bench:
    """A pair behind a network, and clerks that know it by that. `faults` None: a good network."""

    def __init__(self, cluster: Cluster, seed: int, faults: Faults | None) -> None:
        self.primary, self.backup = cluster.pair()
        self.rng = random.Random(seed)
        self.history: list[RegisterOperation] = []
        self.proxies: list[LossyProxy] = []
        self._cluster = cluster
        self._urls = [self.primary.url, self.backup.url]
        if faults is not None:
            self.proxies = [self._proxy(node, faults) for node in (self.primary, self.backup)]
            self._urls = [proxy.url for proxy in self.proxies]

    def _proxy(self, node: Node, faults: Faults) -> LossyProxy:
        proxy = LossyProxy(self._cluster.port(), node.port, self.rng.random(), faults)
        self._cluster.defer(proxy.close)
        return proxy

    def clerk(self, who: str = "c") -> RecordedClerk:
        """One more."""
        clerk = Clerk(*self._urls, read_timeout_ms=READ_TIMEOUT_MS if self.proxies else 1_000)
        self._cluster.defer(clerk.close)
        return RecordedClerk(clerk, who, self.history)

    def workers(self, count: int, step: Callable[[RecordedClerk, random.Random], None]) -> Workers:
        """So many clerks that do this again and again."""
        rngs = [random.Random(self.rng.random()) for _ in range(count)]
        clerks = [self.clerk(f"c{number}") for number in range(count)]
        steps = [partial(step, clerk) for clerk in clerks]
        return Workers(list(zip(rngs, steps, strict=True)))

    def assert_linearizable(self) -> None:
        """Or show why not."""
        assert not (problems := check_registers(self.history)), "\n".join(problems)

    def faults(self) -> Counter[str]:
        """What both proxies have done."""
        total: Counter[str] = Counter()
        for proxy in self.proxies:
            total.update(asdict(proxy.counts))
        return total

    def missing(self, but: frozenset[str] = frozenset()) -> frozenset[str]:
        """Faults that have not happened, and should: those test nothing."""
        return frozenset(name for name, count in self.faults().items() if not count) - but


def writes_of(history: list[RegisterOperation]) -> tuple[int, int]:
    """How many puts were done, and how many may have been."""
    puts = [op.answer for op in history if op.kind == PUT]
    done = sum(answer is not None and answer.outcome == WRITTEN for answer in puts)
    return done, sum(answer is None or answer.maybe for answer in puts)


def find(clerk: RecordedClerk, key: str) -> Versioned:
    """What there is; version 0 if there is nothing."""
    try:
        return clerk.get(key)
    except NoKeyError:
        return Versioned(b"", 0)


# -- the original's tests -------------------------------------------------------------------------


def test_reliable_put(forked_cluster: Cluster, seed: int) -> None:
    """ReliablePut: what a put and a get come to, of a register that is there and one that is not;
    with a request id and without one the same."""
    bench = Bench(forked_cluster, seed, None)
    clerk = bench.clerk()
    for once in (True, False):
        key = f"k-{once}"
        assert clerk.put(key, "6.5840", 0, once=once) == 1
        assert clerk.get(key) == (b"6.5840", 1)
        with pytest.raises(VersionError) as refused:
            clerk.put(key, "6.5840", 0, once=once)
        assert refused.value.current_version == 1
        with pytest.raises(NoKeyError):
            clerk.put(f"y-{once}", "6.5840", 1, once=once)
        with pytest.raises(NoKeyError):
            clerk.get(f"y-{once}")
    bench.assert_linearizable()


def race(bench: Bench, *, once: bool | None, never: frozenset[str] = frozenset()) -> Versioned:
    """PutConcurrent: ten clerks put to one register what they see fit, with ids, without, or (None)
    now so, now so, for a second and until every fault has happened; what there is in the end."""

    def step(clerk: RecordedClerk, rng: random.Random) -> None:
        version, with_id = find(clerk, "k").version, rng.random() < 0.5 if once is None else once
        with contextlib.suppress(VersionError, MaybeError):
            clerk.put("k", f"{rng.random()}", version, once=with_id)

    workers = bench.workers(10, step)
    time.sleep(1.0)
    wait_until(lambda: workers.errors or not bench.missing(never), "every fault happens")
    workers.stop()
    return bench.clerk("last").get("k")


def test_concurrent_puts_on_a_good_network_each_have_a_version_of_their_own(
    forked_cluster: Cluster, seed: int, measured: list[str]
) -> None:
    """PutConcurrentReliable: the last version is the number of puts that were done."""
    bench = Bench(forked_cluster, seed, None)
    last = race(bench, once=None)
    assert writes_of(bench.history) == (last.version, 0)
    bench.assert_linearizable()
    measured.append(f"racing puts: {len(bench.history)} operations, {last.version} written")


def test_one_client_on_a_lossy_network_always_knows_in_the_end_what_it_has_written(
    forked_cluster: Cluster, seed: int, measured: list[str]
) -> None:
    """UnreliableNet: after `maybe` the same put is refused, and whatever was said, the register has
    exactly the next version."""
    bench = Bench(forked_cluster, seed, LOSSY_WITHOUT_IDS)
    clerk, maybe = bench.clerk(), 0
    for version in range(100):
        try:
            assert clerk.put("k", f"{version}", version, once=False) == version + 1
        except MaybeError:
            maybe += 1
            with pytest.raises((VersionError, MaybeError)) as refused:
                clerk.put("k", f"{version}", version, once=False)
            answer = answer_of(refused.value)
            assert answer is not None and answer.version == version + 1
        assert clerk.get("k") == (b"%d" % version, version + 1)
    assert maybe > 0, "that is what this is about"
    bench.assert_linearizable()
    assert not bench.missing(NEVER_WITHOUT_IDS), bench.faults()
    measured.append(f"lossy network, one client: {maybe} of 100 puts maybe; {bench.faults()}")


def test_one_client_with_request_ids_on_a_lossy_network_is_never_in_doubt(
    forked_cluster: Cluster, seed: int
) -> None:
    """The same where each put has an id: it is answered as it was the first time."""
    bench = Bench(forked_cluster, seed, LOSSY)
    clerk, version = bench.clerk(), 0
    while version < 30 or bench.missing():
        assert clerk.put("k", f"{version}", version) == version + 1
        assert clerk.get("k") == (b"%d" % version, version + 1)
        with pytest.raises(VersionError):
            clerk.put("k", "another", version)
        version += 1
        assert version < 1_000, f"some fault does not happen: {bench.faults()}"
    bench.assert_linearizable()


@pytest.mark.parametrize("once", [True, False], ids=["with ids", "without ids"])
def test_many_clients_that_race_on_a_lossy_network_see_one_register(
    once: bool, forked_cluster: Cluster, seed: int, measured: list[str]
) -> None:
    bench = Bench(forked_cluster, seed, LOSSY if once else LOSSY_WITHOUT_IDS)
    last = race(bench, once=once, never=frozenset() if once else NEVER_WITHOUT_IDS)
    done, maybe = writes_of(bench.history)
    assert done <= last.version <= done + maybe
    assert bool(maybe) == (not once)
    bench.assert_linearizable()
    said = f"{done} done, {maybe} maybe, {last.version} written"
    measured.append(f"racing puts, lossy, once={once}: {len(bench.history)} operations, {said}")


# -- memory ---------------------------------------------------------------------------------------

CLIENTS = 100_000
FEWER = 20_000
PIPELINE = 500
VALUE = b"v" * 1_000
REPLY_BYTES_MAX = 200
NOTHING_BYTES_MAX = 40  # in all 800 KB: by so much the memory of a process wavers


def rss_bytes(node: Node) -> int:
    pages = int(Path(f"/proc/{node.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def put_many(wire: Wire, first: int, count: int, *, ids: bool) -> None:
    """Puts, from this version on, each with an id such as another Clerk has, or without."""
    for start in range(first, first + count, PIPELINE):
        versions = range(start, start + PIPELINE)
        words = ((n, f"@{secrets.token_hex(8)}:1") if ids else (n,) for n in versions)
        puts = (encode("VPUT", "k", VALUE, *each) for each in words)
        wire.sock.sendall(b"".join(puts))
        assert [wire.read() for _ in versions] == [version + 1 for version in versions]


def test_what_100000_clients_leave_behind_is_small(cluster: Cluster, measured: list[str]) -> None:
    """MemPutManyClients: each puts once, a value of 1,000 bytes; what stays is what is remembered
    of it, on either node. Without request ids that is nothing."""
    nodes = cluster.pair()

    def grown_by(wire: Wire, first: int, count: int, *, ids: bool) -> list[float]:
        before = [rss_bytes(node) for node in nodes]
        put_many(wire, first, count, ids=ids)
        return [(rss_bytes(n) - b) / count for n, b in zip(nodes, before, strict=True)]

    with nodes[0].wire() as wire:
        # What is kept for a backup that comes back takes up its bounded share first.
        grown_by(wire, 0, 2 * FEWER, ids=False)
        nothing = grown_by(wire, 2 * FEWER, FEWER, ids=False)
        replies = grown_by(wire, 3 * FEWER, CLIENTS, ids=True)
    said = [f"{size:.1f}" for size in (*nothing, *replies)]
    measured.append(f"bytes left by a put, primary and backup, without an id and with one: {said}")
    assert max(nothing) <= NOTHING_BYTES_MAX, nothing
    assert max(replies) <= REPLY_BYTES_MAX, replies


# -- the lock made of a register ------------------------------------------------------------------


class Section:
    """What a lock protects, by the original's test: the register l0, which is free or has a name in
    it. And a count, since two holders may still miss one another there."""

    def __init__(self) -> None:
        self.entered = 0
        self._inside = 0
        self._mutex = threading.Lock()

    def visit(self, clerk: RecordedClerk, me: bytes) -> None:
        """As the holder."""
        self._count(1)
        found = find(clerk, "l0")
        assert found.value == b"", f"{found} has been there"
        version = self._put(clerk, me, found.version)
        time.sleep(0.01)
        assert clerk.get("l0") == (me, version)
        self._put(clerk, b"", version)
        self._count(-1)

    def _put(self, clerk: RecordedClerk, value: bytes, version: int) -> int:
        with contextlib.suppress(MaybeError):  # (by nobody else)
            assert clerk.put("l0", value, version, once=False) == version + 1
        return version + 1

    def _count(self, change: int) -> None:
        with self._mutex:
            self._inside += change
            self.entered += change > 0
            assert self._inside in (0, 1), "two holders"


@pytest.mark.parametrize("faults", [None, LOSSY_WITHOUT_IDS], ids=["good network", "lossy"])
@pytest.mark.parametrize("clients", [1, 10])
def test_a_lock_made_of_a_register_has_one_holder(
    clients: int, faults: Faults | None, forked_cluster: Cluster, seed: int, measured: list[str]
) -> None:
    """One and many clients, reliable and unreliable."""
    bench, section = Bench(forked_cluster, seed, faults), Section()

    def step(clerk: RecordedClerk, rng: random.Random) -> None:
        me = b"%d" % rng.getrandbits(60)
        with RegisterLock(clerk, "l"):
            section.visit(clerk, me)

    workers = bench.workers(clients, step)
    time.sleep(2.0)
    workers.stop()
    last = bench.clerk("last")
    assert find(last, "l").value == find(last, "l0").value == b"", "nobody holds it in the end"
    assert section.entered > 1
    bench.assert_linearizable()
    said = f"held {section.entered} times, {len(bench.history)} operations"
    measured.append(f"lock of a register, {clients} clients, lossy={faults is not None}: {said}")


# -- and a failover -------------------------------------------------------------------------------


def test_histories_with_lost_messages_and_a_failover_are_linearizable(
    zygote: Zygote, tmp_path: Path, seed: int, measured: list[str]
) -> None:
    """Registers, a lock, and puts that are fenced by it, while the primary is killed."""
    started_s = time.monotonic()
    benches: list[Bench] = []

    def round_of(number: int) -> None:
        try:
            cluster = Cluster(tmp_path / f"{number}", zygote)
            benches.append(fail_over(cluster, seed + number, once=number % 2 == 0))
        except BaseException as error:
            raise AssertionError(f"round {number}, seed {seed + number}") from error

    with ThreadPoolExecutor(2) as two:
        list(two.map(round_of, range(ROUNDS)))
    faults, outcomes = Counter[str](), Counter[str]()
    for bench in benches:
        faults.update(bench.faults())
        answers = ((op.kind, op.answer) for op in bench.history)
        outcomes.update(f"{kind}: {answer.outcome if answer else '?'}" for kind, answer in answers)
    assert all(faults.values()), faults
    assert all(outcomes[f"{PUT}: {each}"] for each in (WRITTEN, CONFLICT, STALE)), outcomes
    took = f"{ROUNDS} rounds, {time.monotonic() - started_s:.1f} s"
    measured.append(f"registers with a failover: {took}, {dict(outcomes)}; {dict(faults)}")


def fail_over(cluster: Cluster, seed: int, *, once: bool) -> Bench:
    """One pair, one `kill -9` in the middle; puts with request ids, or also without."""
    try:
        bench, locks = Bench(cluster, seed, LOSSY if once else LOSSY_WITHOUT_IDS), Recorder()
        workers = bench.workers(6, lambda clerk, rng: anything(clerk, rng, locks, once=once))

        go_on(bench, workers)
        bench.primary.kill()
        go_on(bench, workers)
        workers.stop()
        assert "PROMOTED" in bench.backup.log_text
        history = History(operations=from_ops(locks.ops), registers=bench.history)
        assert not (problems := check_all(history)), "\n".join(problems)
        return bench
    except BaseException:
        for node in cluster.nodes:
            print(node.log_tail())
        raise
    finally:
        cluster.close()


def go_on(bench: Bench, workers: Workers) -> None:
    """For 80 more answers to what is asked from now on."""
    from_us = now_us()
    wait_until(
        lambda: workers.errors or sum(op.call_us > from_us for op in list(bench.history)) > 80,
        "they go on",
        (bench.primary, bench.backup),
    )


def anything(clerk: RecordedClerk, rng: random.Random, locks: Recorder, *, once: bool) -> None:
    """One thing, to the lock or to one of two registers. Who is given the lock writes under its
    token; who is not gives it back, so that tokens become stale."""
    key, chance = rng.choice("ab"), rng.random()
    if chance < 0.1:
        locks.run("c", "unlock", "x", lambda: clerk.clerk.release("x"))
    elif chance < 0.2:
        clerk.token = locks.run("c", "lock", "x", lambda: clerk.clerk.acquire("x"))
    else:
        read_and_write(clerk, key, rng, once=once)


def read_and_write(clerk: RecordedClerk, key: str, rng: random.Random, *, once: bool) -> None:
    """What is read may be written over, under the token that this clerk was given last."""
    version = find(clerk, key).version
    fence = ("x", clerk.token) if clerk.token and rng.random() < 0.5 else None
    if rng.random() < 0.75:
        with contextlib.suppress(RegisterError, MaybeError):
            with_id = once or rng.random() < 0.5
            clerk.put(key, f"{rng.random()}", version, once=with_id, fence=fence)
