"""The original lock service's own tests, over real processes and sockets.

MIT 6.824, spring 2013, lab 1. One test each, named for them. `kill -9` takes the place of the
original's `kill()`, and harness/lab.py says how a primary dies "just before its reply". Each runs
with a connection per request and opaque request ids, with persistent connections and @client:n
ids, and with Clerk. `c1` and `c2` are clerks.

HOLDFAST_TEST_ROUNDS=1000 repeats ConcurrentCounts so often; HOLDFAST_TEST_SEED=n uses that seed.
What the original has no part of, a primary that stands still and comes back, and a view register
that decides, is asked of ConcurrentCounts as well.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness.checkers import History, check_all, from_ops
from harness.etcd import EtcdServer
from harness.history import Recorder, explain
from harness.lab import CLERKS, IMPATIENT_CLERKS, Lab, LabClerk, MakeClerk
from harness.pairs import Register
from harness.processes import FAIL_STOP, Cluster, ViewKind, Zygote, wait_until
from harness.workers import Workers

ROUNDS = int(os.environ.get("HOLDFAST_TEST_ROUNDS", "25"))
FEW_ROUNDS = int(os.environ.get("HOLDFAST_TEST_ROUNDS", "6"))
AT_ONCE = ("--backup-timeout-ms", "150", "--promotion-timeout-ms", "150")
PHASE_S = 0.3
SHORT_PHASE_S = 0.06


@pytest.fixture(params=CLERKS)
def lab(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Lab]:
    """A pair, and the kind of clerk that this run is about."""
    yield Lab(cluster, CLERKS[request.param])


@pytest.fixture
def seed() -> int:
    """Printed, so that a failure can be repeated as far as timing allows."""
    number = int(os.environ.get("HOLDFAST_TEST_SEED", "0")) or random.randrange(1, 1_000_000)
    print(f"seed {number}")
    return number


def test_basic(lab: Lab) -> None:
    """Lock and unlock; two locks at once; a second lock and a second unlock are refused."""
    c = lab.clerk()
    assert c.lock("a")
    assert c.unlock("a")
    assert c.lock("a")
    assert c.lock("b")
    assert c.unlock("a")
    assert c.unlock("b")
    assert c.lock("a")
    assert not c.lock("a")
    assert c.unlock("a")
    assert not c.unlock("a")
    lab.kill_primary()
    lab.kill_backup()


def test_primary_failure(lab: Lab) -> None:
    """The backup has the same state, and takes over at once."""
    c = lab.clerk()
    lock_some(c)
    lab.kill_primary()
    use_the_same(c)


def test_primary_failure_just_before_reply_1(lab: Lab) -> None:
    """PrimaryFail2: the lost answer to a LOCK was true, and the backup says so."""
    c1, c2 = lab.clerk(), lab.clerk()
    assert c1.lock("a")
    assert c1.lock("b")
    lab.primary_dies_before_its_next_reply()
    assert c2.lock("c")
    lab.wait_died()
    assert not c1.lock("c")
    assert c2.unlock("c")
    assert c1.lock("c")


def test_primary_failure_just_before_reply_2(lab: Lab) -> None:
    """PrimaryFail3: the lost answer to a LOCK was false; the client held that lock itself."""
    c1 = lab.clerk()
    assert c1.lock("a")
    assert c1.lock("b")
    lab.primary_dies_before_its_next_reply()
    assert not c1.lock("b")
    lab.wait_died()


def test_primary_failure_just_before_reply_3(lab: Lab) -> None:
    """PrimaryFail4: the lost answer to a LOCK was false; another client held that lock."""
    c1, c2 = lab.clerk(), lab.clerk()
    assert c1.lock("a")
    assert c1.lock("b")
    lab.primary_dies_before_its_next_reply()
    assert not c2.lock("b")
    lab.wait_died()


def test_primary_failure_just_before_reply_4(lab: Lab) -> None:
    """PrimaryFail5: the lost answer to an UNLOCK was false."""
    c1, c2 = lab.clerk(), lab.clerk()
    assert c1.lock("a")
    assert c1.lock("b")
    assert c1.unlock("b")
    lab.primary_dies_before_its_next_reply()
    assert not c1.unlock("b")
    lab.wait_died()
    assert c2.lock("b")


def test_primary_failure_just_before_reply_5(lab: Lab) -> None:
    """PrimaryFail6: the lost answer to an UNLOCK was true. On the backup the lock is free by the
    time that the request comes again; the answer is true all the same."""
    c1, c2 = lab.clerk(), lab.clerk()
    assert c1.lock("a")
    assert c1.unlock("a")
    assert not c2.unlock("a")
    assert c1.lock("b")
    lab.primary_dies_before_its_next_reply()
    assert c2.unlock("b")
    lab.wait_died()
    assert c1.lock("b")


def test_primary_failure_just_before_reply_6(lab: Lab) -> None:
    """PrimaryFail7: an UNLOCK that comes again after somebody else was granted the lock is answered
    true, and does not release the new holder."""
    c1, c2 = lab.clerk(), lab.clerk()
    assert c1.lock("a")
    assert c1.unlock("a")
    assert not c2.unlock("a")
    assert c1.lock("b")
    unlock = lab.background_loses_its_reply(lambda: c2.unlock("b"))
    assert c1.lock("b")
    assert not unlock.is_over
    lab.end_silence()
    assert unlock.result()
    assert c1.unlock("b")


def test_primary_failure_just_before_reply_7(lab: Lab) -> None:
    """PrimaryFail8: an UNLOCK that was refused, and comes again after the lock was granted, is
    refused again, and does not release the holder."""
    c1, c2 = lab.clerk(), lab.clerk()
    assert c1.lock("a")
    assert c1.unlock("a")
    unlock = lab.background_loses_its_reply(lambda: c2.unlock("a"))
    assert c1.lock("a")
    assert not unlock.is_over
    lab.end_silence()
    assert not unlock.result()
    assert c1.unlock("a")


def test_backup_failure(lab: Lab) -> None:
    """The primary goes on alone with the same state."""
    c = lab.clerk()
    lock_some(c)
    lab.kill_backup()
    use_the_same(c)


def lock_some(c: LabClerk) -> None:
    """What PrimaryFail1 and BackupFail do before the failure."""
    assert c.lock("a")
    assert c.lock("b")
    assert c.unlock("b")
    assert c.lock("c")
    assert not c.lock("c")
    assert c.lock("d")
    assert c.unlock("d")
    assert c.lock("d")


def use_the_same(c: LabClerk) -> None:
    """And what they must see after it."""
    assert not c.lock("a")
    assert c.unlock("a")
    assert not c.unlock("b")
    assert c.lock("b")
    assert c.unlock("c")
    assert c.unlock("d")


def test_many_clients_with_a_primary_failure(lab: Lab, seed: int) -> None:
    """Many: each clerk's last operation on each of its own locks is what a new clerk then finds."""
    held: dict[str, bool] = {}

    def step_of(number: int, clerk: LabClerk) -> Callable[[random.Random], None]:
        def step(rng: random.Random) -> None:
            name = f"{number}-{rng.randrange(10)}"
            if rng.random() < 0.5:
                assert clerk.lock(name) != held.get(name, False)
                held[name] = True
            else:
                assert clerk.unlock(name) == held.get(name, False)
                held[name] = False

        return step

    workers = Workers(
        [(random.Random(seed + number), step_of(number, lab.clerk())) for number in range(2)]
    )
    time.sleep(PHASE_S)
    lab.kill_primary()
    time.sleep(PHASE_S)
    wait_until(lambda: len(held) == 20 or workers.errors, "each lock is used", lab.nodes)
    workers.stop()
    fresh = lab.clerk()
    assert {name: not fresh.lock(name) for name in held} == held


def test_many_clients_on_a_single_lock_with_a_primary_failure(lab: Lab, seed: int) -> None:
    """ConcurrentCounts: every true answer corresponds to exactly one change of the lock."""
    concurrent_counts(lab, clients=2, seed=seed, phase_s=PHASE_S)


@pytest.mark.parametrize("clients", [2, 8])
def test_concurrent_counts_passes_many_times_in_a_row(
    clients: int, zygote: Zygote, tmp_path: Path, seed: int, measured: list[str]
) -> None:
    """ConcurrentCounts with shortened phases, a fresh pair and a `kill -9` each time."""
    started_s = time.monotonic()

    def round_of(number: int) -> int:
        kind = list(CLERKS)[number % len(CLERKS)]
        try:
            return one_round(CLERKS[kind], clients, seed + number, tmp_path / f"{number}", zygote)
        except BaseException as error:
            raise AssertionError(f"round {number}, {kind}, seed {seed + number}") from error

    with ThreadPoolExecutor(2) as two:
        operations = sum(two.map(round_of, range(ROUNDS)))
    measured.append(
        f"ConcurrentCounts, {clients} clients: {ROUNDS} times, {operations} operations, "
        f"{time.monotonic() - started_s:.1f} s"
    )


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.mark.parametrize("clients", [2, 8])
@pytest.mark.parametrize(
    ("view", "fault"), [("fail-stop", "freeze"), ("etcd", "freeze"), ("etcd", "kill")]
)
def test_concurrent_counts_passes_with_a_register_and_with_a_primary_that_comes_back(
    request: pytest.FixtureRequest,
    clients: int,
    view: str,
    fault: str,
    zygote: Zygote,
    tmp_path: Path,
    seed: int,
    measured: list[str],
) -> None:
    """The same with etcd as register; and with a primary that stands still until it is deposed, and
    then finds requests in its sockets that were answered elsewhere."""
    started_s = time.monotonic()
    server = request.getfixturevalue("etcd") if view == "etcd" else None
    took_over: list[bool] = []

    def round_of(number: int) -> int:
        register = Register(view, f"/{tmp_path.name}-{number}", server)
        if server is not None:
            register.init()
        kind = list(IMPATIENT_CLERKS)[number % len(IMPATIENT_CLERKS)]
        try:
            return one_round(
                IMPATIENT_CLERKS[kind],
                clients,
                seed + number,
                tmp_path / f"{number}",
                zygote,
                *AT_ONCE,
                view=register.view_kind(),
                fault=fault,
                took_over=took_over,
            )
        except BaseException as error:
            raise AssertionError(f"round {number}, {kind}, seed {seed + number}") from error

    with ThreadPoolExecutor(2) as two:
        operations = sum(two.map(round_of, range(FEW_ROUNDS)))
    assert sum(took_over) > FEW_ROUNDS // 2, "a fault that changes nothing tests nothing"
    measured.append(
        f"ConcurrentCounts, {view}, {fault}, {clients} clients: {FEW_ROUNDS} times, "
        f"{sum(took_over)} failovers, {operations} operations, {time.monotonic() - started_s:.1f} s"
    )


def one_round(
    make_clerk: MakeClerk,
    clients: int,
    seed: int,
    folder: Path,
    zygote: Zygote,
    *arguments: str,
    view: ViewKind = FAIL_STOP,
    fault: str = "kill",
    took_over: list[bool] | None = None,
) -> int:
    """One pair, one failover; how many operations there were. `took_over` is told whether the
    backup did."""
    cluster = Cluster(folder, zygote)
    try:
        lab = Lab(cluster, make_clerk, *arguments, view=view)
        count = concurrent_counts(
            lab, clients=clients, seed=seed, phase_s=SHORT_PHASE_S, fault=fault
        )
        if took_over is not None:
            took_over.append("PROMOTED" in lab.backup.log_text)
        return count
    except BaseException:
        for node in cluster.nodes:
            print(node.log_tail())
        raise
    finally:
        cluster.close()


def concurrent_counts(
    lab: Lab, *, clients: int, seed: int, phase_s: float, fault: str = "kill"
) -> int:
    """`clients` clerks lock and unlock one lock at random; the primary is killed, or stands still
    until the backup serves and comes back; they go on. What is required of the counts is the
    original's; the history is checked as well, since counts that agree may still hide two errors
    that cancel out."""
    history = Recorder()
    rng = random.Random(seed)

    def step_of(who: str, clerk: LabClerk) -> Callable[[random.Random], None]:
        def step(rng: random.Random) -> None:
            if rng.random() < 0.5:
                history.run(who, "lock", "x", lambda: clerk.token("x"))
            else:
                history.run(who, "unlock", "x", lambda: clerk.unlock("x"))

        return step

    workers = Workers(
        [
            (random.Random(rng.random()), step_of(f"c{number}", lab.clerk()))
            for number in range(clients)
        ]
    )
    # On a busy machine the threads may need longer than a phase to begin.
    wait_until(history.has_succeeded, "a first success", lab.nodes)
    time.sleep(phase_s * (0.5 + rng.random()))
    if fault == "kill":
        lab.kill_primary()
    else:
        stand_still(lab, history, phase_s)
    killed_s = lab.killed_s
    wait_until(lambda: history.has_called_after(killed_s), "they go on", lab.nodes)
    time.sleep(phase_s)
    workers.stop()
    fresh = lab.clerk()
    locked = bool(history.run("fresh", "unlock", "x", lambda: fresh.unlock("x")))
    ops = history.ops
    locks = sum(op.kind == "lock" and op.result > 0 for op in ops)
    unlocks = sum(op.kind == "unlock" and op.result > 0 for op in ops[:-1])
    assert unlocks <= locks <= unlocks + 1, (locks, unlocks)
    assert locked == (locks != unlocks), (locks, unlocks, locked)
    assert not (problem := explain(ops)), problem
    assert not (problems := check_all(History(operations=from_ops(ops)))), "\n".join(problems)
    assert any(op.return_s < killed_s and op.result > 0 for op in ops), "none before the failure"
    return len(ops)


def stand_still(lab: Lab, history: Recorder, phase_s: float) -> None:
    """The primary is stopped, and goes on when the backup has answered somebody. (A backup that is
    itself held up by the machine just then takes nothing over: half a second is enough.)"""
    lab.freeze_primary()
    until_s = time.monotonic() + 0.5
    while time.monotonic() < until_s and not history.has_called_after(lab.killed_s):
        time.sleep(0.005)
    time.sleep(phase_s / 2)
    lab.primary.thaw()
