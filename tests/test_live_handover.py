"""What a hand-over (FAILOVER) means for who is connected to the old primary, on real nodes: whoever
waits is told where to go, whoever was held up is not kept for ever; and how a primary knows its
backup by its address."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gevent
import pytest
from harness.etcd import EtcdServer
from harness.pairs import LONG_S, PATIENT, Pair, Register, error_of, new_register
from harness.ports import HOST
from harness.processes import Cluster, Node, wait_until
from harness.tight import Tight
from harness.wire import Closed, Wire, encode

from holdfast.server.config import Config
from holdfast.server.connection import Connection
from holdfast.server.core.replica import Replica
from holdfast.server.peer import Peer

HANDOVER = b"*3\r\n$1\r\nH\r\n"
MINUTE_MS = 60_000
TIMED_WAIT_MS = 1_000
HELD_UP_MS = 1_600
"""After this a request that a FAILOVER holds up is sent away, in the nodes of some tests here."""


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def pair(request: pytest.FixtureRequest, forked_cluster: Cluster) -> Pair:
    """Time-outs of a minute: nothing here may need one. The test's parameter says the kind."""
    register = new_register(request, request.getfixturevalue("kind"), forked_cluster.folder)
    return Pair(forked_cluster, register, *PATIENT).start()


def waiters(node: Node) -> int:
    """How many requests stand in line."""
    return int(node.info("locks")["locks_waiters"])


def refusal(wire: Wire) -> str:
    """The error that comes next."""
    return error_of(wire.read)


def names(text: str, pair: Pair, node: Node) -> bool:
    """Whether an operator who reads this knows that `node` is the one to ask: by its own address,
    or by the one that its peer was given for it."""
    named = re.search(r"the primary is (\S+)$", text)
    return named is not None and named[1] in (node.address, pair.way_to(node).address)


# -- who waits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fail-stop", "etcd"])
def test_whoever_waits_is_told_once_that_nothing_was_done_and_who_the_new_primary_is(
    pair: Pair, kind: str
) -> None:
    """Two connections with one request, a third with requests behind the one that waits; one that
    has hung up; and WAIT, with a time-out and without. Each is answered -READONLY, once, with the
    other node's address; then what stands behind it. On the new primary nobody is in line yet, and
    nothing of it was executed."""
    token = pair.a.ask("LOCK", "a", "r0")
    wires = [pair.a.wire() for _ in range(6)]
    one, again, pipelined, gone, endless, timed = wires
    one.send("LOCK", "a", "w1", "WAIT", MINUTE_MS)
    again.send("LOCK", "a", "w1", "WAIT", MINUTE_MS)
    pipelined.sock.sendall(
        encode("LOCK", "a", "w2", "WAIT", MINUTE_MS) + encode("PING") + encode("LOCK", "b", "r2")
    )
    gone.send("LOCK", "a", "w3", "WAIT", MINUTE_MS)
    wait_until(lambda: waiters(pair.a) == 3, "three stand in line", pair.nodes)
    gone.close()
    endless.send("WAIT", 2, 0)
    timed.send("WAIT", 2, MINUTE_MS)
    assert all(each.is_silent_for(0.02) for each in (one, endless, timed))
    assert pair.a.ask("FAILOVER") == b"OK"
    for wire in (one, again, pipelined, endless, timed):
        text = refusal(wire)
        assert text.startswith("READONLY this node has handed over"), text
        assert names(text, pair, pair.b), text
    assert pipelined.read() == b"PONG"
    text = refusal(pipelined)
    assert text.startswith("READONLY ") and names(text, pair, pair.b), text
    pair.cluster.wait_paired(pair.b, pair.a)
    assert waiters(pair.b) == waiters(pair.a) == 0
    assert (pair.b.ask("EXISTS", "b"), pair.b.ask("LOCK", "a", "r0")) == (0, token)
    for wire in (one, again, pipelined, endless, timed):
        assert wire.ask("PING") == b"PONG", "something else was said before"
        wire.close()


@pytest.mark.parametrize("kind", ["fail-stop"])
def test_a_wait_that_was_turned_away_is_not_answered_once_more_when_its_time_is_up(
    pair: Pair, kind: str
) -> None:
    """WAIT 2 with a time-out that ends behind the hand-over."""
    with pair.a.wire() as client:
        client.send("WAIT", 2, TIMED_WAIT_MS)
        assert pair.a.ask("FAILOVER") == b"OK"
        assert refusal(client).startswith("READONLY this node has handed over")
        assert client.is_silent_for(1.2 * TIMED_WAIT_MS / 1000)
        assert client.ask("PING") == b"PONG"
    pair.cluster.wait_paired(pair.b, pair.a)


# -- who asks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["etcd"])
def test_a_node_that_has_handed_over_names_its_successor_and_tells_nobody_to_promote_it(
    pair: Pair, kind: str
) -> None:
    """A has handed over and cannot reach B yet. It has lost its link, but not its primary: the text
    of a backup whose primary is lost, which says REPLICAOF NO ONE, would send an operator to make
    a second primary. Once A follows B it says what every backup says; and in its next reign
    nothing of it is left."""
    pair.to_b.refuse_connections()
    assert pair.a.ask("FAILOVER") == b"OK"
    wait_until(lambda: pair.a.role == "slave", "A has stepped aside", pair.nodes)
    for words in (("LOCK", "a", "r1"), ("INSPECT", "a"), ("WAIT", "0", "0")):
        text = error_of(partial(pair.a.ask, *words))
        assert text.startswith("READONLY this node has handed over") or words[0] == "WAIT", text
        assert "REPLICAOF" not in text
    assert names(error_of(lambda: pair.a.ask("LOCK", "a", "r1")), pair, pair.b)
    assert pair.b.ask("LOCK", "a", "r1"), "the one that is named serves"
    pair.to_b.accept_connections()
    pair.cluster.wait_paired(pair.b, pair.a)
    text = error_of(lambda: pair.a.ask("LOCK", "a", "r1"))
    assert text.startswith("READONLY this node is the backup") and names(text, pair, pair.b), text
    assert pair.b.ask("FAILOVER") == b"OK"
    pair.cluster.wait_paired(pair.a, pair.b)
    pair.to_b.refuse_connections()
    pair.b.kill()
    pair.wait_serving(pair.a)
    assert pair.a.ask("LOCK", "c", "r3")


# -- who is held up --------------------------------------------------------------------------------


@pytest.fixture
def tight_pair(tmp_path: Path, request: pytest.FixtureRequest) -> Pair:
    """Two nodes that hold a request up for a second or two."""
    cluster = Cluster(tmp_path, Tight(BLOCKED_MAX_MS=HELD_UP_MS))
    request.addfinalizer(cluster.close)
    return Pair(cluster, Register("fail-stop"), *PATIENT).start()


def never_ends(pair: Pair, how: str) -> None:
    """A FAILOVER that waits: for an ack of a backup that stands still, or, behind the offer, for a
    word of one that has died."""
    if how == "waiting-for-sync":
        pair.b.freeze()
        assert pair.a.ask("FAILOVER") == b"OK"
    else:
        died = threading.Event()

        def die() -> None:
            pair.b.kill()
            died.set()

        pair.to_a.trip(HANDOVER, die, to_node=False)
        assert pair.a.ask("FAILOVER") == b"OK"
        assert died.wait(LONG_S)
    assert pair.a.info()["master_failover_state"] == how


@pytest.mark.parametrize("how", ["waiting-for-sync", "failover-in-progress"])
def test_a_request_that_a_hand_over_holds_up_for_too_long_is_sent_elsewhere_unexecuted(
    tight_pair: Pair, how: str
) -> None:
    """Its connection is closed without a word, when its time is up and not before; that of a client
    who came later, and of one who asks for nothing that waits, are not. When the switch is over the
    later one is answered, and the one that was sent away was never executed."""
    pair = tight_pair
    never_ends(pair, how)
    with pair.a.wire() as first, pair.a.wire() as later, pair.a.wire() as calm:
        sent_s = time.monotonic()
        first.send("LOCK", "first", "r1")
        assert first.is_silent_for(0.75 * HELD_UP_MS / 1000)
        later.send("LOCK", "later", "r2")
        with pytest.raises(Closed):
            first.read(LONG_S)
        assert time.monotonic() - sent_s >= HELD_UP_MS / 1000
        assert calm.ask("PING") == b"PONG"
        end_switch(pair, how)
        assert later.read() != 0
        assert (calm.ask("EXISTS", "first"), calm.ask("EXISTS", "later")) == (0, 1)
    assert pair.a.ask("LOCK", "first", "r1"), "asked again, it is executed for the first time"


def end_switch(pair: Pair, how: str) -> None:
    """By an operator's word; what is executed then is answered at once."""
    if how == "waiting-for-sync":
        assert pair.a.ask("FAILOVER", "ABORT") == b"OK"
        pair.b.thaw()
    else:
        answer = pair.a.ask("REPLICAOF", "NO", "ONE", "FORCE")
        assert isinstance(answer, bytes) and answer.startswith(b"OK")


# -- whom the primary knows by its address ---------------------------------------------------------


@pytest.mark.parametrize("kind", ["fail-stop", "etcd"])
def test_a_backup_that_is_back_where_it_was_ends_the_wait_for_its_lost_self(
    pair: Pair, kind: str
) -> None:
    """The link is a black hole, B is killed and started again: A, which sees no end of the link,
    would wait for a minute. Somebody asks to join from B's host and port: so A asks B who it is
    now, and goes on."""
    token = pair.a.ask("LOCK", "a", "r1")
    pair.to_a.hold_existing()
    pair.b.restart()
    with pair.a.wire() as client:
        client.send("LOCK", "b", "r2")
        assert client.read() > token  # type: ignore[operator]
    pair.a.wait_logged("the backup asks to join under another incarnation")
    pair.cluster.wait_paired(pair.a, pair.b)


@pytest.mark.parametrize("kind", ["fail-stop"])
def test_a_stranger_at_another_port_makes_nobody_suspect_the_backup(pair: Pair, kind: str) -> None:
    """A third node on the same machine asks to join: it is refused, and that is all."""
    third = pair.cluster.node("third").start("--replicaof", pair.a.address, *PATIENT)
    third.wait_logged("TRYAGAIN this primary has a backup")
    assert pair.a.ask("LOCK", "a", "r1")
    assert "suspecting" not in pair.a.log_text
    assert "another incarnation" not in pair.a.log_text
    assert pair.a.mode == pair.b.mode == "paired"


class Joiner:
    """A connection that asks to join, as far as `Peer` looks at it. `host`: where it comes from;
    empty: it is gone."""

    def __init__(self, host: str = HOST, sock: socket.socket | None = None) -> None:
        self._host, self._sock = host, sock
        self.sock: Any = self
        self.closed = False
        self.why = ""

    def getpeername(self) -> tuple[str, int]:
        """Of the socket, which this is too. The port that it dialled from says nothing."""
        if not self._host:
            raise OSError("Transport endpoint is not connected")
        return self._host, 40_000

    def detach(self, why: str) -> socket.socket:
        """It becomes the link."""
        self.why = why
        assert self._sock is not None
        return self._sock

    def close(self, why: str) -> None:
        """It is not wanted."""
        self.why = why
        self.closed = True


def connection(host: str = HOST, sock: socket.socket | None = None) -> Connection:
    """A `Joiner` in the place of a real one."""
    return cast("Connection", Joiner(host, sock))


@pytest.fixture
def peer() -> Iterator[Peer]:
    """The real one, of a node that does nothing else."""
    node = SimpleNamespace(config=Config(), loop=gevent.get_hub().loop)
    peer = Peer(cast("Any", node), Replica("A"))
    yield peer
    peer.stop()


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    """One end of a connection."""
    with socket.create_server((HOST, 0)) as server:
        with socket.create_connection(server.getsockname()) as near, server.accept()[0]:
            yield near


def test_before_it_had_a_backup_a_primary_knows_nobody(peer: Peer) -> None:
    """Neither a host nor a port is a match for none."""
    assert not peer.is_from(connection(), 6380)
    assert not peer.is_from(connection(""), 0)


def test_a_backup_is_known_by_its_host_and_by_the_port_that_it_listens_on(
    peer: Peer, tcp: socket.socket
) -> None:
    """Both, and still when its link is lost; not by either alone; and one that has hung up by the
    time it is looked at is nobody."""
    link = peer.adopt(connection(HOST, tcp), "B1", 6380)
    assert link is not None
    for _ in range(2):
        assert peer.is_from(connection(), 6380)
        assert not peer.is_from(connection(), 6381)
        assert not peer.is_from(connection("10.0.0.9"), 6380)
        assert not peer.is_from(connection(""), 6380)
        link.close()


def test_a_primary_knows_its_last_backup_and_not_the_one_before(
    peer: Peer, tcp: socket.socket
) -> None:
    """Another one takes the place; one that is gone before it is adopted does not."""
    assert peer.adopt(connection(HOST, tcp.dup()), "B1", 6380) is not None
    other = peer.adopt(connection("10.0.0.9", tcp.dup()), "C1", 6390)
    assert other is not None
    assert peer.adopt(connection(""), "D1", 6400) is None
    assert peer.is_from(connection("10.0.0.9"), 6390)
    assert not peer.is_from(connection(), 6380)
    assert not peer.is_from(connection(), 6400)
    other.close()
