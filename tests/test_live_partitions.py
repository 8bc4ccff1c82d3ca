"""Two live nodes that cannot reach each other, or the view register (F4).

The network is a proxy between any two of them. With a register outside never do two serve (I1, I3);
under fail-stop two may, and one of them stands down when they meet again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from harness.etcd import EtcdServer
from harness.pairs import (
    BACKUP_TIMEOUT_S,
    KINDS,
    SAFE_KINDS,
    Load,
    Pair,
    digests_agree,
    ends_without_a_word,
    held,
    new_register,
    seed,
    serves_alone,
)
from harness.processes import Cluster, Node, wait_until

SILENT_S = 0.3


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def pair(request: pytest.FixtureRequest, forked_cluster: Cluster) -> Pair:
    """The test's parameter says how the view is kept."""
    kind = request.getfixturevalue("kind")
    return Pair(forked_cluster, new_register(request, kind, forked_cluster.folder)).start()


def one_goes_on(pair: Pair) -> Node:
    """Wait until exactly one serves alone; which."""
    wait_until(lambda: any(map(serves_alone, pair.nodes)), "one goes on alone", pair.nodes)
    (serving,) = [node for node in pair.nodes if node.mode == "solo"]
    return serving


@pytest.mark.parametrize("kind", SAFE_KINDS)
def test_partition_1_an_old_primary_never_shows_an_old_value(pair: Pair, kind: str) -> None:
    """A is cut off from B and from the register, B takes over, and what A held changes there. Who
    asks A, before or after that, is not answered; healed, those connections end without a word."""
    token = pair.a.ask("LOCK", "a", "r1")
    pair.isolate(pair.a)
    with pair.a.wire() as early, pair.a.wire() as late, pair.a.wire() as again:
        early.send("INSPECT", "a")
        again.send("LOCK", "a", "r1")
        pair.wait_serving(pair.b)
        assert pair.b.ask("UNLOCK", "a", "u1") == 1
        assert pair.b.ask("LOCK", "a", "r2") > token  # type: ignore[operator]
        late.send("INSPECT", "a")
        assert late.is_silent_for(SILENT_S) and early.is_silent_for(0.01)
        pair.heal()
        for client in (early, late, again):
            assert ends_without_a_word(client), "an old primary has answered"
    pair.cluster.wait_paired(pair.b, pair.a)


@pytest.mark.parametrize("kind", ["etcd"])
def test_partition_2_an_old_primary_whose_successor_died_does_not_serve_alone(
    pair: Pair, kind: str
) -> None:
    """A cut off -> B takes over -> a third joins B -> B is killed -> the third takes over. A, which
    now finds that its backup B is gone, must not conclude that it may go on: the register, which it
    cannot reach, knows better."""
    token = pair.a.ask("LOCK", "a", "r1")
    pair.isolate(pair.a)
    pair.wait_serving(pair.b)
    third = pair.cluster.node("third")
    view = pair.register.view_kind()
    third.start("--replicaof", pair.b.address, *view.backup, *pair.b_arguments[-4:])
    pair.cluster.wait_paired(pair.b, third)
    assert pair.b.ask("UNLOCK", "a", "u1") == 1
    pair.b.kill()
    pair.wait_serving(third)
    newest = third.ask("LOCK", "a", "r2")
    assert newest > token  # type: ignore[operator]
    with pair.a.wire() as client:
        client.send("INSPECT", "a")
        pair.to_a.heal()
        pair.to_b.heal()
        assert client.is_silent_for(BACKUP_TIMEOUT_S + SILENT_S)
        assert pair.a.mode == "blocked"
        pair.heal()
        assert ends_without_a_word(client), "an old primary has answered"
    wait_until(lambda: pair.a.mode == "deposed", "A knows", pair.nodes)
    assert held(third, ["a"]) == {"a": newest}
    assert pair.a.ask("REPLICAOF", third.address.split(":")[0], str(third.port)) == b"OK"
    pair.cluster.wait_paired(third, pair.a)


@pytest.mark.parametrize("kind", SAFE_KINDS)
def test_a_one_way_cut_leaves_one_that_serves_and_the_pair_is_whole_when_it_is_healed(
    pair: Pair, kind: str
) -> None:
    """What A sends is lost, then what B sends, then all: one of the two goes on each time, under
    load, and the histories are possible."""
    load = Load(pair.ports, seed())
    for senders in ([pair.a], [pair.b], pair.nodes):
        for sender in senders:
            pair.cut_one_way(sender)
        serving = one_goes_on(pair)
        load.goes_on(pair.nodes)
        assert serving is pair.b or kind == "etcd", "without its register A has gone on"
        pair.heal()
        pair.wait_whole()
        load.goes_on(pair.nodes)
    load.stop(pair.wait_whole()[0])


@pytest.mark.parametrize("kind", ["etcd"])
def test_without_the_register_a_pair_goes_on_and_a_cut_between_its_nodes_stops_both(
    pair: Pair, kind: str
) -> None:
    """Nobody reaches the register, one way or not at all: the pair serves, since nothing is to be
    decided. Cut the nodes apart as well, and nobody serves; bring the register back for B, and B
    does."""
    load = Load(pair.ports, seed(), clients=3)
    load.goes_on(pair.nodes)
    pair.etcd_of[pair.a].hold(to_node=False)  # what it asks arrives, and is not answered
    pair.etcd_of[pair.b].hold()
    wait_until(
        lambda: {node.info()["holdfast_register_status"] for node in pair.nodes} == {"down"},
        "both know that the register is not there",
        pair.nodes,
    )
    load.goes_on(pair.nodes)
    load.stop(pair.a)
    assert {node.mode for node in pair.nodes} == {"paired"}
    token = pair.a.ask("LOCK", "x", "r1")
    pair.cut()
    with pair.a.wire() as client:
        client.send("LOCK", "y", "r2")
        assert client.is_silent_for(BACKUP_TIMEOUT_S + SILENT_S)
        wait_until(lambda: pair.b.mode == "blocked", "B is blocked", pair.nodes)
        pair.etcd_of[pair.b].heal()
        pair.wait_serving(pair.b)
        assert pair.b.ask("LOCK", "x", "r1") == token
        pair.heal()
        # What A had proposed, or proposes now, comes too late.
        assert ends_without_a_word(client)
    pair.cluster.wait_paired(pair.b, pair.a)


@pytest.mark.parametrize("kind", SAFE_KINDS)
def test_a_primary_that_answers_nobody_says_so(pair: Pair, kind: str) -> None:
    """Cut off in silence, no connection has ended: beyond the time-out its mode is blocked all the
    same, and whoever watches `pair_in_sync` is told."""
    pair.isolate(pair.a)
    with pair.a.wire() as client:
        client.send("INSPECT", "a")
        pair.wait_serving(pair.b)
        wait_until(lambda: pair.a.mode == "blocked", "A is blocked", [pair.a], timeout_s=2.0)
        assert pair.a.info("locks")["pair_in_sync"] == "0"
        assert client.is_silent_for(0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_flaps_for_less_than_the_time_outs_moves_nobody(
    pair: Pair, kind: str
) -> None:
    """Cuts of a tenth of the time-out, this way, that way, both ways, over and over: the primary
    stays the primary, the link stands, and everybody is answered."""
    number = seed()
    rng = random.Random(number)
    load = Load(pair.ports, number)
    epoch = pair.a.epoch
    for _ in range(10):
        proxy = rng.choice([pair.to_a, pair.to_b])
        proxy.hold(to_node=rng.random() < 0.6, to_client=rng.random() < 0.6)
        with pair.a.wire() as client:  # this lasts as long as the cut does
            assert client.ask("PING") == b"PONG"
            client.send("INSPECT", "0")
            client.is_silent_for(BACKUP_TIMEOUT_S / 10)
        pair.heal()
        load.goes_on(pair.nodes)
    load.stop(pair.a)
    assert pair.a.epoch == epoch and pair.a.mode == "paired"


def test_without_a_register_two_may_serve_and_the_promoted_one_goes_on_when_they_meet(
    request: pytest.FixtureRequest, forked_cluster: Cluster
) -> None:
    """fail-stop, the nodes cut apart for longer than the time-outs: both serve (split brain, as
    documented), with fencing tokens that tell them apart. Healed: A stands down by itself, drops
    what it granted alone, and joins B; whoever held A's lock finds its token refused."""
    register = new_register(request, "fail-stop", forked_cluster.folder)
    pair = Pair(forked_cluster, register).start()
    common = pair.a.ask("LOCK", "common", "r1")
    pair.cut()
    for node in pair.nodes:
        pair.wait_serving(node)
    old, new = pair.a.ask("LOCK", "x", "ra"), pair.b.ask("LOCK", "x", "rb")
    assert new > old > common  # type: ignore[operator]
    pair.heal()
    pair.cluster.wait_paired(pair.b, pair.a)
    assert "DEPOSED" in pair.a.log_text and "DEPOSED" not in pair.b.log_text
    wait_until(lambda: digests_agree(pair.b, pair.a), "both have the same state", pair.nodes)
    assert pair.b.ask("VERIFY", "x", old) == 0  # type: ignore[arg-type]
    assert held(pair.b, ["common", "x"]) == {"common": common, "x": new}
