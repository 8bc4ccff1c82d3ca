"""FAILOVER, the planned change of roles, on real nodes (F15): no request is lost, each is refused
at most once, and whatever goes wrong half-way leaves one primary, or none, and never two."""

from __future__ import annotations

import contextlib
import itertools
import random
import secrets
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import redis
from harness.etcd import EtcdServer
from harness.history import Recorder
from harness.lab import RealClerk
from harness.pairs import (
    KINDS,
    LONG_S,
    PATIENT,
    Pair,
    check,
    digests_agree,
    error_of,
    held,
    new_register,
    rounds,
    seed,
    token_of,
)
from harness.ports import HOST
from harness.processes import Cluster, Node, wait_until
from harness.wire import Closed, Wire
from harness.workers import Workers
from redis.backoff import NoBackoff
from redis.retry import Retry

from holdfast import Clerk

HANDOVER = b"*3\r\n$1\r\nH\r\n"
SILENT_S = 0.5


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def pair(request: pytest.FixtureRequest, forked_cluster: Cluster) -> Pair:
    """Time-outs of a minute: nothing here may need one. The test's parameter says the kind."""
    kind = request.getfixturevalue("kind")
    return Pair(
        forked_cluster, new_register(request, kind, forked_cluster.folder), *PATIENT
    ).start()


class Plain:
    """An application with redis-py and nothing else: what a node refuses, it asks of the other. Any
    other error ends the test, and so does a second refusal."""

    def __init__(self, ports: tuple[int, ...]) -> None:
        self._nodes = [
            redis.Redis(host=HOST, port=port, retry=Retry(NoBackoff(), 0), socket_timeout=LONG_S)
            for port in ports
        ]
        self._prefix = f"@{secrets.token_hex(6)}:"
        self._numbers = itertools.count(1)
        self._current = 0
        self.refused = 0

    def _call(self, command: str, name: str) -> int:
        reqid = f"{self._prefix}{next(self._numbers)}"
        try:
            return self._ask(command, name, reqid)
        except redis.ReadOnlyError:
            self.refused += 1
            self._current = 1 - self._current
            return self._ask(command, name, reqid)

    def _ask(self, *words: str) -> int:
        node: Any = self._nodes[self._current]  # (not every version has types)
        return int(node.execute_command(*words))

    def token(self, name: str) -> int:
        """LOCK"""
        return self._call("LOCK", name)

    def unlock(self, name: str) -> bool:
        """UNLOCK"""
        return self._call("UNLOCK", name) == 1

    def close(self) -> None:
        """Hang up."""
        for node in self._nodes:
            node.close()


class Clients:
    """Plain clients and Clerks at full speed; what they saw is checked at the end."""

    def __init__(self, ports: tuple[int, ...], number: int) -> None:
        self.history = Recorder()
        self.plain = [Plain(ports) for _ in range(3)]
        self._all: list[Plain | RealClerk] = [*self.plain, *(RealClerk(ports) for _ in range(3))]
        self.steps = [0] * len(self._all)
        self._workers = Workers(
            [(random.Random(number + n), partial(self._step, n)) for n in range(len(self._all))]
        )

    def _step(self, n: int, rng: random.Random) -> None:
        client, who, name = self._all[n], f"c{n}", f"{rng.randrange(3)}"
        if rng.random() < 0.5:
            self.history.run(who, "lock", name, lambda: client.token(name))
        else:
            self.history.run(who, "unlock", name, lambda: client.unlock(name))
        self.steps[n] += 1

    def go_on(self, nodes: list[Node]) -> None:
        """Wait until each has had an answer to a request that it has sent since."""
        before = list(self.steps)
        wait_until(
            lambda: (
                all(now > then + 1 for now, then in zip(self.steps, before, strict=True))
                or self._workers.errors
            ),
            "every client goes on",
            nodes,
        )

    def stop(self, primary: Node) -> None:
        """End them; the histories must be possible."""
        self._workers.stop()
        for client in self._all:
            client.close()
        with primary.wire() as wire:
            for name in ("0", "1", "2"):
                self.history.run("last", "inspect", name, partial(token_of, wire, name))
        check(self.history)


def switched(pair: Pair, primary: Node) -> Node:
    """FAILOVER on `primary`; the other one, once they are a pair the other way round."""
    assert primary.ask("FAILOVER") == b"OK"
    pair.cluster.wait_paired(pair.other(primary), primary)
    return pair.other(primary)


def failover_state(node: Node) -> str:
    """`master_failover_state`"""
    return node.info()["master_failover_state"]


# -- it works ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_switching_back_and_forth_under_load_loses_no_request_and_refuses_each_once_at_most(
    pair: Pair, kind: str
) -> None:
    """Each switch takes one epoch, one partial resync and no snapshot; no connection is closed, no
    request is refused twice; both nodes have the same state all the while."""
    clients = Clients(pair.ports, seed())
    primary, epoch = pair.a, pair.a.epoch
    switches = rounds(20 if kind == "etcd" else 8)
    for _ in range(switches):
        clients.go_on(pair.nodes)
        primary = switched(pair, primary)
        assert primary.epoch >= epoch + 2  # the new primary's, and that in which the other joined
        epoch = primary.epoch
    clients.go_on(pair.nodes)
    clients.stop(primary)
    assert all(client.refused >= 1 for client in clients.plain)
    wait_until(lambda: digests_agree(*pair.wait_whole()), "both agree", pair.nodes)
    for node in pair.nodes:
        assert node.resyncs == (1, switches), "a snapshot was sent"


@pytest.mark.parametrize("kind", ["fail-stop", "etcd"])
def test_who_stands_in_line_is_sent_to_the_other_node_and_served_there(
    pair: Pair, kind: str
) -> None:
    """Two waiters on a lock, one with bare RESP and one with Clerk: the first is told -READONLY,
    asks the other node under the same id, and both are granted in the end (I9 for who is there)."""
    token = pair.a.ask("LOCK", "a", "r0")
    clerk = Clerk(*(node.url for node in pair.nodes), deadline_ms=int(LONG_S * 1000))
    granted: list[int] = []
    thread = threading.Thread(target=lambda: granted.append(clerk.acquire("a", wait_ms=None)))
    with pair.a.wire() as waiter, pair.b.wire() as other:
        waiter.send("LOCK", "a", "w1", "WAIT", 60_000)
        wait_until(lambda: waiters(pair.a) == 1, "one waits", pair.nodes)
        thread.start()
        wait_until(lambda: waiters(pair.a) == 2, "two wait", pair.nodes)
        switched(pair, pair.a)
        assert error_of(waiter.read).startswith("READONLY")
        wait_until(lambda: waiters(pair.b) == 1, "the Clerk waits there", pair.nodes)
        other.send("LOCK", "a", "w1", "WAIT", 60_000)
        wait_until(lambda: waiters(pair.b) == 2, "both wait there", pair.nodes)
        assert pair.b.ask("UNLOCK", "a", "u0") == 1
        thread.join(LONG_S)
        assert granted and granted[0] > token  # type: ignore[operator]
        assert clerk.release("a", granted[0])
        assert other.read() > granted[0]  # type: ignore[operator]
    clerk.close()


def waiters(node: Node) -> int:
    """How many stand in line."""
    return int(node.info("locks")["locks_waiters"])


@pytest.mark.parametrize("kind", ["fail-stop", "etcd"])
def test_leases_and_answers_survive_a_switch(pair: Pair, kind: str) -> None:
    """A repeat is answered the same by the other node, a lease is not ended by the switch, and goes
    on to its end there."""
    with pair.a.wire() as client:
        token = client.ask("LOCK", "a", "r1", "PX", 60_000)
        short = client.ask("LOCK", "b", "r2", "PX", 1_000)
        assert client.ask("LOCK", "a", "r3") == 0
    primary = switched(pair, pair.a)
    with primary.wire() as client:
        assert client.ask("LOCK", "a", "r1", "PX", 60_000) == token
        assert client.ask("LOCK", "a", "r3") == 0
        assert client.ask("VERIFY", "a", token) == 1  # type: ignore[arg-type]
        assert client.ask("LOCK", "b", "r4", "WAIT", 20_000) > short  # type: ignore[operator]


# -- it is refused, or called off ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fail-stop"])
def test_what_makes_no_sense_is_refused_and_changes_nothing(pair: Pair, kind: str) -> None:
    """No backup, on a backup, twice, nothing to abort, wrong words."""
    ask = pair.a.ask
    wrong = (("ABORT", "TIMEOUT", "1"), ("TIMEOUT",), ("TIMEOUT", "0"), ("TIMEOUT", "x"), ("NOW",))
    for words in wrong:
        assert error_of(partial(ask, "FAILOVER", *words)).startswith("ERR"), words
    assert "No failover in progress" in error_of(partial(ask, "FAILOVER", "ABORT"))
    assert "TO is not supported" in error_of(partial(ask, "FAILOVER", "TO", HOST, "1"))
    assert "replica" in error_of(partial(pair.b.ask, "FAILOVER"))
    assert failover_state(pair.a) == "no-failover" and pair.a.mode == "paired"
    pair.b.freeze()
    with pair.a.wire() as client:  # something that the backup has not acknowledged
        client.send("LOCK", "b", "r2")
        assert client.is_silent_for(SILENT_S / 5)
    assert pair.a.ask("FAILOVER") == b"OK"
    assert "already in progress" in error_of(lambda: pair.a.ask("FAILOVER"))
    pair.b.kill()
    pair.wait_serving(pair.a)
    assert failover_state(pair.a) == "no-failover"
    assert "in sync" in error_of(lambda: pair.a.ask("FAILOVER"))
    assert pair.a.ask("LOCK", "a", "r1")


@pytest.mark.parametrize("how", ["TIMEOUT", "ABORT"])
@pytest.mark.parametrize("kind", ["fail-stop", "etcd"])
def test_a_switch_to_a_frozen_backup_is_called_off_and_the_service_goes_on(
    pair: Pair, kind: str, how: str
) -> None:
    """B frozen with something not acknowledged: the switch waits, and requests do. When it is off,
    by its time-out or by ABORT, they are executed; B thawed, they are answered."""
    token = pair.a.ask("LOCK", "a", "r1")
    with pair.a.wire() as held_back, pair.a.wire() as waiting:
        pair.b.freeze()
        held_back.send("LOCK", "b", "r2")
        assert held_back.is_silent_for(SILENT_S / 5)
        assert pair.a.ask("FAILOVER", *(("TIMEOUT", "300") if how == "TIMEOUT" else ())) == b"OK"
        waiting.send("LOCK", "c", "r3")
        assert waiting.is_silent_for(SILENT_S / 5)
        if how == "ABORT":
            assert failover_state(pair.a) == "waiting-for-sync"
            assert pair.a.ask("FAILOVER", "ABORT") == b"OK"
        wait_until(lambda: failover_state(pair.a) == "no-failover", "it is off", pair.nodes)
        pair.b.thaw()
        second = held_back.read()
        assert second > token and waiting.read() > second  # type: ignore[operator]
    pair.cluster.wait_paired(pair.a, pair.b)
    assert switched(pair, pair.a) is pair.b


# -- it goes wrong behind the offer ----------------------------------------------------------------


def offer(pair: Pair, then: Callable[[], object], *, deliver: bool) -> Wire:
    """FAILOVER on A; `then` at the very moment of the offer, which B gets or not. A connection on
    which a LOCK was sent to A, back when `then` was done."""
    done = threading.Event()

    def act() -> None:
        then()
        done.set()

    pair.to_a.trip(HANDOVER, act, to_node=False, deliver=deliver)
    assert pair.a.ask("FAILOVER") == b"OK"
    assert done.wait(LONG_S), "no offer was made"
    client = pair.a.wire()
    client.send("LOCK", "late", "late")
    return client


def kill_and_reset(pair: Pair, node: Node) -> None:
    """It dies, and its connections with it."""
    node.kill()
    pair.reset()


@pytest.mark.parametrize("kind", ["fail-stop"])
@pytest.mark.parametrize("back", [False, True], ids=["gone for good", "back and empty"])
def test_without_a_register_a_primary_whose_backup_died_after_the_offer_is_silent(
    pair: Pair, kind: str, back: bool
) -> None:
    """B may have taken over and granted before it died: A says nothing, and tells operators why. B
    back with nothing is not that B. REPLICAOF NO ONE FORCE, and A goes on with what it has."""
    token = pair.a.ask("LOCK", "a", "r1")
    with offer(pair, lambda: kill_and_reset(pair, pair.b), deliver=False) as client:
        if back:
            pair.b.start()
        assert client.is_silent_for(SILENT_S)
        assert pair.a.mode == "blocked" and failover_state(pair.a) == "failover-in-progress"
        assert "cannot be aborted" in error_of(lambda: pair.a.ask("FAILOVER", "ABORT"))
        assert "FORCE" in error_of(lambda: pair.a.ask("REPLICAOF", "NO", "ONE"))
        assert client.is_silent_for(0.05)
        answer = pair.a.ask("REPLICAOF", "NO", "ONE", "FORCE")
        assert isinstance(answer, bytes) and answer.startswith(b"OK")
        assert client.read() > token  # type: ignore[operator]
    assert failover_state(pair.a) == "no-failover"
    if not back:
        pair.b.start()
    pair.cluster.wait_paired(pair.a, pair.b)
    assert held(pair.a, ["a"]) == {"a": token}


@pytest.mark.parametrize("deliver", [False, True], ids=["offer lost", "offer delivered"])
@pytest.mark.parametrize("kind", ["etcd"])
def test_with_a_register_it_decides_when_the_backup_dies_after_the_offer(
    pair: Pair, kind: str, deliver: bool
) -> None:
    """B dead: if the register never heard of its taking over A goes on by itself; if it did, A is
    out, and as B is dead nobody serves. Whichever it was, the register's view says so."""
    token = pair.a.ask("LOCK", "a", "r1")
    with offer(pair, lambda: kill_and_reset(pair, pair.b), deliver=deliver) as client:
        wait_until(lambda: pair.a.mode != "blocked", "it is decided", pair.nodes)
        if pair.a.role == "master":
            assert client.read() > token  # type: ignore[operator]
            assert pair.register.view().members == (pair.a.info()["holdfast_incarnation"],)
            pair.b.start()
            pair.cluster.wait_paired(pair.a, pair.b)
            assert held(pair.a, ["a"]) == {"a": token}
        else:
            assert deliver, "A has stood down though B cannot have taken over"
            with pytest.raises(Closed):
                client.read()


@pytest.mark.parametrize("kind", ["fail-stop", "etcd"])
def test_an_offer_that_is_lost_with_the_link_leaves_one_primary_and_a_pair(
    pair: Pair, kind: str
) -> None:
    """Both nodes live, the link is reset in the moment of the offer: they agree by themselves, and
    A's client is answered or told to ask B."""
    token = pair.a.ask("LOCK", "a", "r1")
    with offer(pair, pair.reset, deliver=False) as client:
        primary, _ = pair.wait_whole()
        if primary is pair.a:
            assert client.read() > token  # type: ignore[operator]
        else:
            assert error_of(client.read).startswith("READONLY")
    assert held(primary, ["a"]) == {"a": token}


@pytest.mark.parametrize("kind", KINDS)
def test_a_primary_that_dies_after_the_offer_is_replaced_at_once(pair: Pair, kind: str) -> None:
    """B has the offer, A is killed: B serves with everything, and A comes back as its backup."""
    token = pair.a.ask("LOCK", "a", "r1")
    offer_and_die(pair)
    pair.wait_serving(pair.b)
    assert pair.b.ask("LOCK", "a", "r1") == token
    pair.a.start()
    pair.cluster.wait_paired(pair.b, pair.a)


def offer_and_die(pair: Pair) -> None:
    """A is killed when its offer has been delivered."""
    died = threading.Event()

    def die() -> None:
        pair.a.kill()
        died.set()

    pair.to_a.trip(HANDOVER, die, to_node=False, deliver=True)
    with contextlib.suppress(Closed):  # it may die before it has said OK
        pair.a.ask("FAILOVER")
    assert died.wait(LONG_S)
