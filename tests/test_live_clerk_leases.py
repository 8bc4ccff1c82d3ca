"""Leases, waiting and lost locks, with Clerks on a real pair that fails in every way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from harness.alone import alone
from harness.processes import TIMEOUT_S, Cluster, Node, wait_until
from harness.proxy import Proxy

from holdfast.compat import Clerk, IndeterminateError, Lock, LockLostError
from holdfast.compat.endpoints import now_us

WAITERS = 8
QUICK = ("--promotion-timeout-ms", "600", "--backup-timeout-ms", "400")


@pytest.fixture
def node(forked_cluster: Cluster) -> Node:
    return alone(forked_cluster)


@pytest.fixture
def clerk_of() -> Iterator[Callable[..., Clerk]]:
    """Clerks that are closed, and the threads that use them joined."""
    clerks: list[Clerk] = []

    def make(*nodes: Node | Proxy, **options: int) -> Clerk:
        clerks.append(Clerk(*(each.url for each in nodes), **options))
        return clerks[-1]

    yield make
    for each in clerks:
        each.close()


class Waiter(threading.Thread):
    """A Clerk that stands in line, and tells the others when it is its turn."""

    def __init__(self, clerk: Clerk, number: int, turns: list[int], wait_ms: int) -> None:
        super().__init__(daemon=True)
        self.clerk, self.number, self.turns, self.wait_ms = clerk, number, turns, wait_ms
        self.token = 0
        self.start()

    def run(self) -> None:
        """Take the lock, note it, give it back."""
        self.token = self.clerk.acquire("a", lease_ms=20_000, wait_ms=self.wait_ms)
        if self.token:
            self.turns.append(self.number)
            assert self.clerk.release("a", self.token)


def stand_in_line(
    clerk_of: Callable[..., Clerk], *nodes: Node, count: int = WAITERS
) -> tuple[list[Waiter], list[int]]:
    """Waiters that came one after the other, and whose turn it was so far."""
    turns: list[int] = []
    waiters = []
    with Clerk(*(node.url for node in nodes)) as watching:
        for number in range(count):
            waiters.append(Waiter(clerk_of(*nodes), number, turns, 20_000))
            wait_until(
                lambda: watching.inspect("a")["waiter_count"] == len(waiters), "it stands in line"
            )
    return waiters, turns


def join(waiters: list[Waiter]) -> list[int]:
    """Their fencing tokens, when all have had their turn."""
    for waiter in waiters:
        waiter.join(TIMEOUT_S)
        assert not waiter.is_alive(), waiter.turns
    return [waiter.token for waiter in waiters]


# --- leases ----------------------------------------------------------------------------------


def test_a_lease_ends_by_itself_and_the_next_in_line_has_the_lock(
    node: Node, clerk_of: Callable[..., Clerk]
) -> None:
    clerk, other = clerk_of(node), clerk_of(node)
    begun = time.monotonic()
    first = clerk.acquire("a", lease_ms=300)
    second = other.acquire("a", lease_ms=20_000, wait_ms=10_000)
    assert 0.29 < time.monotonic() - begun < 1.0
    assert second > first > 0
    assert not clerk.verify("a", first) and other.verify("a", second)
    assert clerk.renew("a", first, 1_000) is False
    assert clerk.release("a", first) is False
    assert other.renew("a", second, 60_000) is True
    assert clerk.inspect("a")["remaining_ms"] > 50_000
    assert other.release("a", second) is True


def test_inspect_and_locks_show_who_holds_and_who_waits(
    node: Node, clerk_of: Callable[..., Clerk]
) -> None:
    clerk = clerk_of(node)
    tokens = {b"a%d" % number: clerk.acquire(f"a{number}", owner="me") for number in range(250)}
    clerk.acquire("b", lease_ms=60_000)
    seen = {lock["name"]: lock for lock in clerk.locks()}
    assert seen.keys() == {*tokens, b"b"}
    assert {lock["name"]: lock["fencing_token"] for lock in clerk.locks("a*")} == tokens
    assert (seen[b"a0"]["owner"], seen[b"a0"]["remaining_ms"]) == (b"me", -1)
    assert 0 < seen[b"b"]["remaining_ms"] <= 60_000
    held = threading.Event()
    thread = threading.Thread(
        target=lambda: clerk.acquire("b", wait_ms=20_000, owner="next") and held.set()
    )
    thread.start()
    wait_until(lambda: clerk.inspect("b")["waiter_count"] == 1, "it stands in line")
    assert clerk.inspect("b")["waiters"][0][0] == b"next"
    assert clerk.release("b")
    assert held.wait(TIMEOUT_S)
    thread.join()
    assert clerk.inspect("b")["owner"] == b"next"


def test_a_grant_whose_answer_comes_after_its_lease_is_not_counted_as_granted(
    forked_cluster: Cluster, node: Node, clerk_of: Callable[..., Clerk]
) -> None:
    proxy = Proxy(forked_cluster.port(), node.port)
    forked_cluster.defer(proxy.close)
    clerk = clerk_of(proxy)
    assert clerk.acquire("warm")
    proxy.delay(0.15)
    with pytest.raises(IndeterminateError, match="do not enter"):
        clerk.acquire("a", lease_ms=200)
    proxy.delay(0)
    assert clerk.acquire("a", lease_ms=200, wait_ms=5_000) > 0


# --- waiting ---------------------------------------------------------------------------------


def test_a_wait_may_be_longer_than_every_time_out(
    node: Node, clerk_of: Callable[..., Clerk]
) -> None:
    clerk = clerk_of(node, read_timeout_ms=100, connect_timeout_ms=100, deadline_ms=300)
    token = clerk.acquire("a")
    threading.Timer(1.0, clerk.release, ("a", token)).start()
    begun = time.monotonic()
    assert clerk.acquire("a", wait_ms=10_000) > token
    assert 0.9 < time.monotonic() - begun < 2.0
    begun = time.monotonic()
    assert clerk.acquire("a", wait_ms=500) == 0
    assert 0.45 < time.monotonic() - begun < 1.0


def test_clerks_have_the_lock_in_the_order_in_which_they_came(
    node: Node, clerk_of: Callable[..., Clerk]
) -> None:
    clerk = clerk_of(node)
    token = clerk.acquire("a")
    waiters, turns = stand_in_line(clerk_of, node)
    clerk.release("a", token)
    tokens = join(waiters)
    assert turns == list(range(WAITERS)) and tokens == sorted(tokens)


def test_all_who_wait_have_their_turn_though_the_primary_dies(
    forked_cluster: Cluster, clerk_of: Callable[..., Clerk]
) -> None:
    primary, backup = forked_cluster.pair()
    clerk = clerk_of(primary, backup)
    token = clerk.acquire("a", lease_ms=20_000)
    waiters, turns = stand_in_line(clerk_of, primary, backup)
    primary.kill()
    wait_until(lambda: clerk.inspect("a")["waiter_count"] == WAITERS, "they stand in line again")
    assert turns == [] and clerk.verify("a", token)
    clerk.release("a", token)
    tokens = join(waiters)
    assert sorted(turns) == list(range(WAITERS)) and len(set(tokens)) == WAITERS
    assert min(tokens) > token


def test_all_who_wait_have_their_turn_though_the_primary_falls_silent(
    forked_cluster: Cluster, clerk_of: Callable[..., Clerk]
) -> None:
    primary, backup = forked_cluster.pair(*QUICK)
    clerk = clerk_of(primary, backup, read_timeout_ms=200)
    token = clerk.acquire("a", lease_ms=20_000)
    turns: list[int] = []
    waiters = [
        Waiter(clerk_of(primary, backup, read_timeout_ms=200), number, turns, 20_000)
        for number in range(3)
    ]
    wait_until(lambda: clerk.inspect("a")["waiter_count"] == 3, "they stand in line")
    primary.freeze()
    assert clerk.release("a", token)
    assert 0 not in join(waiters) and sorted(turns) == [0, 1, 2]


def test_an_abandoned_wait_ends_at_once(node: Node, clerk_of: Callable[..., Clerk]) -> None:
    clerk = clerk_of(node)
    clerk.acquire("a")
    waiter = Waiter(clerk_of(node, deadline_ms=100), 0, [], 60_000)
    wait_until(lambda: clerk.inspect("a")["waiter_count"] == 1, "it stands in line")
    # What an interrupted or given up acquire leaves to the background, done by hand.
    (lent,) = clerk.inspect("a")["waiters"]
    client, _, number = lent[0].decode().partition(":")
    assert node.ask("UNLOCK", "a", f"{client}:{int(number) + 1}", "REQUEST", lent[0]) == 0
    assert join([waiter]) == [0]
    assert clerk.inspect("a")["waiter_count"] == 0


# --- renewing --------------------------------------------------------------------------------


def test_a_renewed_lock_is_kept_through_the_death_of_the_primary(
    forked_cluster: Cluster, clerk_of: Callable[..., Clerk]
) -> None:
    primary, backup = forked_cluster.pair()
    lost: list[Lock] = []
    with clerk_of(primary, backup).lock(
        "a", lease_ms=1_000, renew=True, on_lost=lost.append
    ) as lock:
        primary.kill()
        time.sleep(1.5)
        assert lock.owned()
    assert lost == []


def test_when_both_nodes_fall_silent_the_lock_is_lost_when_its_last_renewal_is_not_trusted_any_more(
    forked_cluster: Cluster, clerk_of: Callable[..., Clerk]
) -> None:
    primary, backup = forked_cluster.pair()
    told: list[int] = []
    lock = clerk_of(primary, backup).lock(
        "a", lease_ms=600, renew=True, on_lost=lambda lock: told.append(now_us())
    )
    lock.acquire()
    time.sleep(0.5)
    for each in (backup, primary):
        each.freeze()
    wait_until(lambda: told, "it is told", timeout_s=5)
    assert lock._held is not None
    grant = lock._held.renewal.grant
    assert grant.trusted_until_us is not None
    late_us = told[0] - grant.trusted_until_us
    assert -30_000 < late_us < 100_000
    assert lock.lost and not lock.owned()
    begun = time.monotonic()
    with pytest.raises(LockLostError):
        lock.release()
    assert time.monotonic() - begun < 2.0, "nobody waits long for what is lost anyway"
