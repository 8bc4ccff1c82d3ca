"""Who is no node of this pair and talks to its nodes as if it were (F14); rules for operators.

`PEER` needs no password: what a stranger can do with it is bounded. It may cost the pair a moment;
it never makes a primary, a member or a history, and takes away no lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from harness.etcd import EtcdServer
from harness.pairs import KINDS, PATIENT, Load, Pair, error_of, held, new_register, seed
from harness.processes import Cluster, Node, wait_until
from harness.raw import Raw
from harness.wire import Wire, encode

from holdfast.server.core.stream import ACK, CONTINUE, END, ENTRIES, HANDOVER, PROTOCOL_VERSION
from holdfast.server.core.stream import VIEW as VIEW_MESSAGE
from holdfast.server.registers.opening import open_register

NAME = "ab" * 20
JOIN = b"$4\r\nJOIN\r\n"


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def pair(request: pytest.FixtureRequest, forked_cluster: Cluster) -> Pair:
    """Time-outs of a minute. The test's parameter says how the view is kept."""
    kind = request.getfixturevalue("kind")
    return Pair(
        forked_cluster, new_register(request, kind, forked_cluster.folder), *PATIENT
    ).start()


def views(pair: Pair) -> list[tuple[str, ...]]:
    """What both nodes say about who is who."""
    names = ("role", "holdfast_epoch", "holdfast_primary", "holdfast_members", "holdfast_mode")
    return [tuple(node.info()[name] for name in names) for node in pair.nodes]


def is_unharmed(pair: Pair, before: list[tuple[str, ...]], load: Load) -> None:
    """The same pair in the same view, and clients who go on."""
    load.goes_on(pair.nodes)
    assert views(pair) == before
    load.stop(pair.a)


MALFORMED: tuple[tuple[str | bytes, ...], ...] = (
    ("ASK", "x"),
    ("PROPOSE",),
    ("PROPOSE", NAME),
    ("PROPOSE", NAME, "-1"),
    ("PROPOSE", NAME, "1e9"),
    ("PROPOSE", "no name!", "9"),
    ("PROPOSE", NAME, "9" * 20),
    ("JOIN",),
    ("JOIN", NAME, NAME, "0", "-", "0", "0", "0", "fail-stop", "3000"),
    ("JOIN", NAME, NAME, "65536", "-", "0", "0", "0", "fail-stop", "3000"),
    ("JOIN", NAME, NAME, "7000", "-", "0", "0", "x", "fail-stop", "3000"),
    ("JOIN", NAME * 2, NAME, "7000", "-", "0", "0", "0", "fail-stop", "3000"),
    ("JOIN", b"\x00\xff", NAME, "7000", "-", "0", "0", "0", "fail-stop", "3000"),
    ("JOIN", NAME, NAME, "7000", "-", "0", "0", "0", "fail-stop"),
    ("VIEW", "1"),
    ("VIEW", "1", NAME, ""),
    ("VIEW", "1", NAME, f"{NAME},,"),
    ("VIEW", "x", NAME, NAME),
    ("HANDOVER",),
    ("",),
)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_malformed_or_of_another_version_is_an_error_and_nothing_else(
    pair: Pair, kind: str
) -> None:
    """Each on one connection, which goes on; to both nodes, under load."""
    load, before = Load(pair.ports, seed(), clients=2), views(pair)
    for node in pair.nodes:
        with node.wire() as stranger:
            for words in MALFORMED:
                ask = partial(stranger.ask, "PEER", words[0], PROTOCOL_VERSION, *words[1:])
                assert error_of(ask).startswith("ERR"), words
            for version in ("1", "99", "", "2 "):
                for words in (
                    ("ASK",),
                    ("JOIN", NAME, NAME, "7000", "-", "0", "0", "0", "fail-stop", "3000"),
                ):
                    ask = partial(stranger.ask, "PEER", words[0], version, *words[1:])
                    assert "is not spoken here" in error_of(ask)
            assert stranger.ask("PING") == b"PONG"
    is_unharmed(pair, before, load)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stranger_who_proposes_is_not_accepted(pair: Pair, kind: str) -> None:
    """PROPOSE by a name that is not the primary's, of any epoch; to the primary by any name."""
    load, before = Load(pair.ports, seed(), clients=2), views(pair)
    incarnations = [node.info()["holdfast_incarnation"] for node in pair.nodes]
    for node in pair.nodes:
        for epoch in (0, 1, pair.a.epoch, pair.a.epoch + 1, 2**62):
            answer = propose(node, NAME, epoch)
            assert answer[3] == b"0", "accepted"
    for epoch in (pair.a.epoch, pair.a.epoch + 1, 2**62):
        assert propose(pair.a, incarnations[1], epoch)[3] == b"0", "a serving primary accepted"
    is_unharmed(pair, before, load)


def propose(node: Node, name: str, epoch: int) -> list[bytes]:
    """What it answers to a proposal."""
    answer = node.ask("PEER", "PROPOSE", PROTOCOL_VERSION, name, str(epoch))
    assert isinstance(answer, list)
    return answer


@pytest.mark.parametrize("kind", ["fail-stop"])
def test_a_proposal_in_the_name_of_the_primary_costs_a_rejoin_and_nothing_else(
    pair: Pair, kind: str
) -> None:
    """Somebody replays what the primary would say: the backup is out until it has joined again,
    which it does by itself, from where it was. A is primary all the while, and loses nothing."""
    load = Load(pair.ports, seed(), clients=4)
    token = pair.a.ask("LOCK", "a", "r1")
    name = pair.a.info()["holdfast_incarnation"]
    full, _ = pair.a.resyncs
    assert propose(pair.b, name, pair.a.epoch + 1)[3] == b"1"
    pair.cluster.wait_paired(pair.a, pair.b)
    load.goes_on(pair.nodes)
    load.stop(pair.a)
    assert pair.a.resyncs[0] == full and held(pair.a, ["a"]) == {"a": token}


@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_the_stream_are_no_requests(pair: Pair, kind: str) -> None:
    """ENTRIES, ACK, VIEW, HANDOVER and so on, sent to a client's port: unknown commands."""
    load, before = Load(pair.ports, seed(), clients=2), views(pair)
    for node in pair.nodes:
        with node.wire() as stranger:
            for message in (ENTRIES, ACK, VIEW_MESSAGE, HANDOVER, CONTINUE, END):
                ask = partial(stranger.ask, message, str(pair.a.epoch + 1), "1", "1")
                assert error_of(ask).startswith("ERR unknown command")
    is_unharmed(pair, before, load)


@pytest.mark.parametrize("kind", ["fail-stop", "etcd"])
def test_a_join_that_is_replayed_makes_no_member(
    request: pytest.FixtureRequest, forked_cluster: Cluster, kind: str
) -> None:
    """The very bytes with which B joined, sent again by another: refused while B is there. With B
    dead they get a snapshot, but whoever cannot acknowledge it never is a member, and makes room
    for B."""
    register = new_register(request, kind, forked_cluster.folder)
    pair = Pair(forked_cluster, register, "--backup-timeout-ms", "600").init()
    seen: list[bytes] = []
    pair.to_a.tap = seen.append
    pair.start_a()
    pair.start_b()
    pair.cluster.wait_paired(pair.a, pair.b)
    (join,) = [data for data in seen if JOIN in data]
    join = join[join.index(b"*12\r\n") :]
    load, before = Load(pair.ports, seed(), clients=2), views(pair)
    for node in pair.nodes:
        with Raw(node.port) as stranger:
            stranger.send(join)
            assert stranger.receive().startswith((b"-TRYAGAIN", b"-ERR"))
    is_unharmed(pair, before, load)
    pair.b.kill()
    pair.wait_serving(pair.a)
    with Raw(pair.a.port) as stranger:
        stranger.send(join)
        assert b"SB" in stranger.receive()
        pair.a.wait_logged("joins: sending it a snapshot", times=2)
        assert pair.a.ask("LOCK", "a", "r1", timeout_s=5.0), "a stranger holds replies back"
        for epoch in (pair.a.epoch, pair.a.epoch + 1):
            stranger.send(encode(ACK, epoch, 10**6, 10**18))  # of what was never sent
        wait_until(lambda: pair.a.mode == "solo", "the stranger is dropped", [pair.a])
    pair.b.start()
    pair.cluster.wait_paired(pair.a, pair.b)


@pytest.mark.parametrize("kind", KINDS)
def test_the_register_of_another_node_is_read_and_changed_by_one_epoch_only(
    pair: Pair, kind: str
) -> None:
    """PEER VIEW is answered where the register is, and refuses what does not follow, and a primary
    that is no member. (Whoever may talk to the port may speak for a member: keep strangers out.)"""
    ask = partial(pair.b.ask, "PEER", "VIEW", PROTOCOL_VERSION)
    if kind != "backup":
        assert "keeps no view register" in error_of(ask)
        return
    epoch = pair.a.epoch
    for wrong in (epoch, epoch - 1, epoch + 1, epoch + 2):
        answer = ask(str(wrong), NAME, NAME)
        assert isinstance(answer, list) and answer[0] == b"lost"
    assert pair.register.view().epoch == epoch
    assert "keeps no view register" in error_of(
        partial(pair.a.ask, "PEER", "VIEW", PROTOCOL_VERSION)
    )


# -- by hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fail-stop", "etcd"])
def test_a_primary_follows_only_a_serving_node_of_a_higher_epoch(pair: Pair, kind: str) -> None:
    """REPLICAOF on a primary: not to itself, to nobody, to its backup, or to a stranger of a lower
    epoch. On the backup it is answered that this is so already."""
    lone = pair.cluster.node("lone").start("--log-level", "info")
    wait_until(lambda: lone.mode == "solo", "it serves", [lone])
    before = views(pair)
    host = pair.a.host

    def follow(node: Node, port: int) -> str:
        return error_of(partial(node.ask, "REPLICAOF", host, str(port)))

    assert "very node" in follow(pair.a, pair.a.port)
    assert "only a serving node of a higher epoch" in follow(pair.a, pair.b.port)
    assert "only a serving node of a higher epoch" in follow(pair.a, lone.port)
    assert "not followed" in follow(pair.a, pair.cluster.port().number)
    assert pair.b.ask("REPLICAOF", host, str(pair.to_a.port)) == b"OK Already connected to " + (
        b"specified master"
    )
    assert views(pair) == before
    token = pair.a.ask("LOCK", "a", "r1")
    assert held(pair.a, ["a"]) == {"a": token}


def test_nobody_gives_up_what_it_has_for_a_primary_that_would_refuse_it(
    forked_cluster: Cluster, tmp_path: Path
) -> None:
    """REPLICAOF of a primary towards one whose view is kept elsewhere, and of a backup towards one
    that has a backup: refused, with the reason, and nothing has changed."""
    path = str(tmp_path / "view")
    open_register("backup", path).init(at_least=9)
    elsewhere = forked_cluster.node("elsewhere").start(
        "--view", "backup", "--view-file", path, "--replicaof", "127.0.0.1:1", "--bootstrap"
    )
    wait_until(lambda: elsewhere.mode == "solo", "it serves", [elsewhere])
    primary, backup = forked_cluster.pair()
    token = primary.ask("LOCK", "a", "r1")

    def follow(node: Node, other: Node) -> str:
        return error_of(partial(node.ask, "REPLICAOF", other.host, str(other.port)))

    for node in (primary, backup):
        assert "view is kept in backup" in follow(node, elsewhere)
    one, another = forked_cluster.node("one"), forked_cluster.node("another")
    one.start("--backup", another.address)
    another.start("--replicaof", one.address)
    forked_cluster.wait_paired(one, another)
    assert "has a backup already" in follow(backup, one)
    assert "has a backup already" in follow(another, primary)
    forked_cluster.wait_paired(primary, backup)
    forked_cluster.wait_paired(one, another)
    assert held(primary, ["a"]) == {"a": token}
    assert "epoch 2 ->" not in primary.log_text + one.log_text


def test_a_lone_primary_that_follows_one_of_a_higher_epoch_gives_up_what_it_has(
    forked_cluster: Cluster,
) -> None:
    """Two histories, an operator joins them: the lower one stands down, its clients are sent away
    without a word, and it becomes the backup."""
    high, backup = forked_cluster.pair()
    backup.kill()
    wait_until(lambda: high.mode == "solo", "it serves alone", [high])
    low = forked_cluster.node("low").start("--log-level", "info")
    wait_until(lambda: low.mode == "solo", "it serves", [low])
    assert low.ask("LOCK", "a", "r1")
    client = Wire(low.port)
    assert client.ask("REPLICAOF", high.host, str(high.port)) == b"OK"
    forked_cluster.wait_paired(high, low)
    assert held(high, ["a"]) == {"a": 0}
    client.close()
