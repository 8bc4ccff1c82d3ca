"""Registers through Clerk on a real pair: what is acknowledged is there and was done once, whatever
becomes of the primary and of the replies; and RegisterLock, which is made of nothing else.

HOLDFAST_TEST_SEED=n uses that seed.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness.alone import alone
from harness.processes import Cluster, Node, wait_until
from harness.programs import python_with, run
from harness.proxy import Proxy
from harness.workers import Workers
from redis.exceptions import ResponseError

import holdfast
from holdfast.compat import (
    AsyncClerk,
    Clerk,
    IndeterminateError,
    LockNotHeldError,
    MaybeError,
    NoKeyError,
    RegisterLock,
    StaleTokenError,
    VersionError,
)

# What is lost on the way through a proxy, of the requests and of the replies.
LOST_SHARE = 0.1


@pytest.fixture
def seed() -> int:
    """Printed, so that a failure can be repeated as far as timing allows."""
    number = int(os.environ.get("HOLDFAST_TEST_SEED", "0")) or random.randrange(1, 1_000_000)
    print(f"seed {number}")
    return number


class _Pair:
    """A pair behind proxies that lose messages."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.nodes = self.primary, _ = cluster.pair()
        self.proxies = [Proxy(cluster.port(), node.port) for node in self.nodes]
        for number, proxy in enumerate(self.proxies):
            cluster.defer(proxy.close)
            rng = random.Random(seed * 2 + number)
            proxy.lose(rng, requests=LOST_SHARE, replies=LOST_SHARE)

    def clerk(self) -> Clerk:
        """Through the proxies."""
        return Clerk(*(proxy.url for proxy in self.proxies))

    def heal(self) -> None:
        """Nothing is lost any more."""
        for proxy in self.proxies:
            proxy.lose(random.Random(0))


@pytest.fixture
def lossy(cluster: Cluster, seed: int) -> _Pair:
    return _Pair(cluster, seed)


@pytest.fixture
def clerk(cluster: Cluster) -> Iterator[Clerk]:
    """Of one node."""
    with Clerk(alone(cluster).url) as clerk:
        yield clerk


def one_more(value: bytes | None) -> str:
    return str(int(value or b"0") + 1)


class Count:
    """Of what threads have done."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0

    def add(self, count: int = 1) -> None:
        with self._lock:
            self.value += count


def through_a_failover(
    step: Callable[[random.Random], None], count: Count, seed: int, primary: Node, *, threads: int
) -> None:
    """Has threads do `step` until they have counted a while, before and after `kill -9`."""
    workers = Workers([(random.Random(seed + number), step) for number in range(threads)])

    def go_on() -> None:
        goal = count.value + 100
        wait_until(lambda: count.value >= goal or workers.errors, "they go on")

    go_on()
    primary.kill()
    go_on()
    workers.stop()


# --- what a node answers ---------------------------------------------------------------------


@pytest.mark.parametrize("once", [True, False])
def test_a_register_is_made_written_and_refused_by_its_version(clerk: Clerk, once: bool) -> None:
    with pytest.raises(NoKeyError):
        clerk.get("a")
    with pytest.raises(NoKeyError):
        clerk.put("a", "x", 1, once=once)
    assert clerk.put("a", "x", 0, once=once) == 1
    assert clerk.put("a", b"\x00\r\n", 1, once=once) == 2
    for version in (0, 1, 3):
        with pytest.raises(VersionError) as raised:
            clerk.put("a", "y", version, once=once)
        assert raised.value.current_version == 2
    assert clerk.get("a") == (b"\x00\r\n", 2)
    assert clerk.update("a", lambda value: None) == (b"\x00\r\n", 2)


def test_a_fence_lets_only_the_holder_of_the_lock_write(clerk: Clerk) -> None:
    with clerk.lock("l") as lock:
        token = lock.fencing_token
        assert token is not None
        assert clerk.put("a", "x", 0, fence=lock) == 1
        assert clerk.update("a", one_more_of_text, fence=("l", token)) == (b"xx", 2)
        with pytest.raises(StaleTokenError):
            clerk.put("a", "y", 2, fence=("l", token - 1))
    with pytest.raises(StaleTokenError):
        clerk.put("a", "y", 2, fence=("l", token))
    with pytest.raises(StaleTokenError):
        clerk.update("a", one_more_of_text, fence=("l", token))
    assert clerk.get("a") == (b"xx", 2)


def one_more_of_text(value: bytes | None) -> bytes:
    return (value or b"") + b"x"


def test_a_lock_is_no_register_and_a_register_no_lock(clerk: Clerk) -> None:
    clerk.acquire("l")
    clerk.put("a", "x", 0)
    for call in (lambda: clerk.get("l"), lambda: clerk.acquire("a"), lambda: clerk.put("l", "", 0)):
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            call()


# --- failovers and lost messages -------------------------------------------------------------


@pytest.mark.parametrize("once", [True, False])
def test_every_acknowledged_update_counts_once_through_a_failover(
    cluster: Cluster, seed: int, once: bool
) -> None:
    primary, backup = cluster.pair()
    done, in_doubt = Count(), Count()
    with Clerk(primary.url, backup.url) as clerk:

        def step(rng: random.Random) -> None:
            try:
                clerk.update("n", one_more, once=once)
                done.add()
            except IndeterminateError:
                assert not once, "one under a request id is answered by the new primary"
                in_doubt.add()

        through_a_failover(step, done, seed, primary, threads=6)
        value, version = clerk.get("n")
        assert int(value) == version
        assert done.value <= version <= done.value + in_doubt.value


def test_of_puts_that_race_through_a_failover_one_is_done_for_each_version(
    cluster: Cluster, seed: int
) -> None:
    primary, backup = cluster.pair()
    done: dict[int, bytes] = {}
    count = Count()
    with Clerk(primary.url, backup.url) as clerk:
        clerk.put("a", "", 0)

        def step(rng: random.Random) -> None:
            value, version = clerk.get("a")
            assert done.get(version, value) == value
            try:
                written = b"%x" % rng.getrandbits(64)
                new = clerk.put("a", written, version)
            except VersionError as error:
                assert error.current_version > version
                return
            assert new == version + 1 and done.setdefault(new, written) is written
            count.add()

        through_a_failover(step, count, seed, primary, threads=6)
        value, version = clerk.get("a")
        assert (version, value) == (count.value + 1, done[version])


def test_updates_under_request_ids_are_done_once_though_messages_and_the_primary_are_lost(
    lossy: _Pair, seed: int
) -> None:
    done = Count()
    with lossy.clerk() as clerk:

        def step(rng: random.Random) -> None:
            clerk.update("n", one_more)
            done.add()

        through_a_failover(step, done, seed, lossy.primary, threads=4)
        assert clerk.get("n") == (b"%d" % done.value, done.value)


def test_a_maybe_is_settled_by_reading_and_never_said_of_what_was_not_lost(lossy: _Pair) -> None:
    maybes, puts = {True: 0, False: 0}, 0
    with lossy.clerk() as clerk:
        while puts < 100 or (not maybes[True] and puts < 2_000):
            puts += 1
            try:
                assert clerk.put("a", f"{puts}", puts - 1, once=False) == puts
                continue
            except MaybeError as error:
                assert isinstance(error.__cause__, VersionError)
            done = clerk.get("a") == (b"%d" % puts, puts)
            maybes[done] += 1
            with pytest.raises((VersionError, MaybeError)):
                clerk.put("a", "again", puts - 1, once=False)
            assert done, "nobody else writes"
        assert clerk.get("a") == (b"%d" % puts, puts)
    assert maybes[True], "no reply was lost"


def test_what_the_tasks_of_a_loop_update_counts_once_through_a_failover(cluster: Cluster) -> None:
    primary, backup = cluster.pair()

    async def scene() -> None:
        done = Count()
        async with AsyncClerk(primary.url, backup.url) as clerk:

            async def work() -> None:
                for _ in range(20):
                    await clerk.update("n", one_more)
                    done.add()
                    if done.value == 50:
                        primary.kill()

            await asyncio.gather(*(work() for _ in range(10)))
            assert await clerk.get("n") == (b"200", 200)

    asyncio.run(scene())


# --- RegisterLock ----------------------------------------------------------------------------


class _Section:
    """Notices when two are in it; and `total` is only right if never two are."""

    def __init__(self) -> None:
        self._inside = threading.Lock()
        self.total = 0
        self.entries = Count()

    def visit(self, rng: random.Random) -> None:
        assert self._inside.acquire(blocking=False), "two hold the lock"
        try:
            total = self.total
            threading.Event().wait(rng.random() / 1_000)
            self.total = total + 1
        finally:
            self._inside.release()
        self.entries.add()


def test_one_at_a_time_holds_a_register_lock_though_messages_and_the_primary_are_lost(
    lossy: _Pair, seed: int
) -> None:
    section = _Section()
    with ExitStack() as clerks:
        locks = [RegisterLock(clerks.enter_context(lossy.clerk()), "l") for _ in range(2)]
        free = list(locks)

        def step(rng: random.Random) -> None:
            lock = free.pop()
            if rng.random() < 0.3:
                if not lock.acquire(timeout=rng.random() / 100):
                    free.append(lock)
                    return
                section.visit(rng)
                lock.release()
            else:
                with lock:
                    section.visit(rng)
            free.append(lock)

        through_a_failover(step, section.entries, seed, lossy.primary, threads=2)
        lossy.heal()
        clerk = clerks.enter_context(lossy.clerk())
        assert clerk.get("l").value == b""
    assert section.total == section.entries.value


def test_a_register_lock_guards_a_counter_kept_in_the_same_pair(lossy: _Pair, seed: int) -> None:
    """Read and written with plain gets and puts, which would lose updates without the lock."""
    done = Count()
    with ExitStack() as clerks:

        def worker(number: int) -> Callable[[random.Random], None]:
            clerk = clerks.enter_context(lossy.clerk())
            lock = RegisterLock(clerk, "l")

            def step(rng: random.Random) -> None:
                with lock:
                    try:
                        value, version = clerk.get("n")
                    except NoKeyError:
                        value, version = b"0", 0
                    assert int(value) == version
                    assert clerk.put("n", one_more(value), version) == version + 1
                done.add()

            return step

        workers = Workers([(random.Random(seed + n), worker(n)) for n in range(4)])
        wait_until(lambda: done.value >= 60 or workers.errors, "they go on")
        workers.stop()
        lossy.heal()
        clerk = clerks.enter_context(lossy.clerk())
        assert clerk.get("n") == (b"%d" % done.value, done.value)
        assert clerk.get("l").value == b""


def test_a_register_lock_whose_nodes_are_gone_is_given_back_when_one_is_there_again(
    cluster: Cluster,
) -> None:
    node = alone(cluster)
    with Clerk(node.url, deadline_ms=150, read_timeout_ms=50) as clerk:
        lock, other = RegisterLock(clerk, "l"), RegisterLock(clerk, "l")
        lock.acquire()
        node.freeze()
        with pytest.raises(IndeterminateError, match="in the background"):
            lock.release()
        node.thaw()
        wait_until(lambda: other.acquire(blocking=False), "it is free", [node])
        lock.release()  # nothing is left to be done
        with pytest.raises(VersionError):
            clerk.put("l", "", 1)
        other.release()
        assert clerk.get("l").value == b""


def test_an_acquire_that_a_stopped_node_leaves_open_is_never_granted_later(
    cluster: Cluster,
) -> None:
    node = alone(cluster)
    with Clerk(node.url, deadline_ms=150, read_timeout_ms=50) as clerk:
        lock = RegisterLock(clerk, "l")
        put = clerk.put

        def freezing_put(*args: object, **options: object) -> int:
            node.freeze()
            return put(*args, **options)  # type: ignore[arg-type]

        clerk.put = freezing_put  # type: ignore[method-assign]
        with pytest.raises(IndeterminateError, match="do not enter"):
            lock.acquire()
        clerk.put = put  # type: ignore[method-assign]
        node.thaw()
        assert lock.acquire(timeout=10)
        lock.release()
        assert clerk.get("l").value == b""


# --- versions of redis-py --------------------------------------------------------------------

VERSIONS = """
import asyncio, sys, redis
from holdfast.compat import AsyncClerk, Clerk, NoKeyError, StaleTokenError, VersionError

version, url = sys.argv[1:]
assert redis.__version__.startswith(version + "."), redis.__version__

def refused(call, expected):
    try:
        call()
    except expected as error:
        return error
    sys.exit(f"not refused: {expected}")

class Awaited:
    def __init__(self, url):
        self.clerk, self.loop = AsyncClerk(url), asyncio.new_event_loop()
    def __getattr__(self, name):
        return lambda *a, **o: self.loop.run_until_complete(getattr(self.clerk, name)(*a, **o))

for key, clerk in [("a", Clerk(url)), ("b", Awaited(url))]:
    refused(lambda: clerk.get(key), NoKeyError)
    assert clerk.put(key, b"x", 0) == 1
    assert refused(lambda: clerk.put(key, b"x", 5), VersionError).current_version == 1
    refused(lambda: clerk.put(key, b"x", 1, fence=("l", 1), once=False), StaleTokenError)
    assert clerk.update(key, lambda value: value + b"y") == (b"xy", 2)
    assert clerk.get(key) == (b"xy", 2)
    clerk.close()
print("done")
"""


@pytest.mark.parametrize("parser", ["hiredis", "pure"])
@pytest.mark.parametrize("version", ["5.0", "6", "7"])
def test_registers_work_with_older_redis_py(
    cluster: Cluster, tmp_path: Path, version: str, parser: str
) -> None:
    python = python_with(f"redis=={version}.*", *(["hiredis"] if parser == "hiredis" else []))
    (tmp_path / "holdfast").symlink_to(Path(holdfast.__file__).resolve().parent)
    source = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{VERSIONS}"
    assert run(python, "-c", source, version, alone(cluster).url) == "done\n"
    assert sys.executable != python


def test_a_lock_is_given_back_although_its_clerk_was_closed_meanwhile(cluster: Cluster) -> None:
    """``with Clerk(...) as clerk, RegisterLock(clerk, ...)``, and no network at the release."""
    nodes = cluster.pair()
    proxies = [Proxy(cluster.port(), node.port) for node in nodes]
    for proxy in proxies:
        cluster.defer(proxy.close)
    urls = [proxy.url for proxy in proxies]
    with (
        pytest.raises(IndeterminateError, match="given back in the background"),
        Clerk(*urls, deadline_ms=600, read_timeout_ms=200) as clerk,
        RegisterLock(clerk, "l"),
    ):
        for proxy in proxies:
            proxy.hold()
    for proxy in proxies:
        proxy.reset()
        proxy.heal()
    with Clerk(*(node.url for node in nodes)) as other:
        wait_until(lambda: other.get("l").value == b"", "it is given back", cluster.nodes)
        assert RegisterLock(other, "l").acquire(blocking=False)


def test_a_forked_child_does_not_release_its_parents_lock(cluster: Cluster) -> None:
    node = alone(cluster)
    with Clerk(node.url) as clerk:
        lock = RegisterLock(clerk, "l")
        lock.acquire()
        value = clerk.get("l").value
        child = os.fork()
        if child == 0:
            try:
                lock.release()
            except LockNotHeldError:
                os._exit(17)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
        assert clerk.get("l").value == value
        lock.release()
