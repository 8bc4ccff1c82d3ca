"""A node dies, or a message is lost, at one exact point of the protocol (F1, F2, F6, F7, F11).

A proxy watches what passes, and acts at the sight of a message: before it arrives, or behind it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from harness.etcd import EtcdServer
from harness.pairs import (
    LONG_S,
    PATIENT,
    QUICK,
    Load,
    Pair,
    digests_agree,
    ends_without_a_word,
    held,
    new_register,
    seed,
)
from harness.processes import Cluster, Node, wait_until
from harness.proxy import Proxy
from harness.wire import Closed, Wire, encode

ENTRIES = b"*3\r\n$1\r\nE\r\n"
ACK = b"*4\r\n$1\r\nA\r\n"
ITEMS = b"$2\r\nSI\r\n"
END = b"$2\r\nSE\r\n"
VIEW = b"*7\r\n$1\r\nV\r\n"
TRANSACTION = b"/v3/kv/txn"
OK = b"HTTP/1.1 200"


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def pair(request: pytest.FixtureRequest, forked_cluster: Cluster) -> Pair:
    """Time-outs of a minute: none is needed. Not started."""
    kind = request.getfixturevalue("kind")
    return Pair(forked_cluster, new_register(request, kind, forked_cluster.folder), *PATIENT)


class Event:
    """Something done once by the proxy; `wait` until it was."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action, self._done = action, threading.Event()

    def __call__(self) -> None:
        self._action()
        self._done.set()

    def wait(self) -> None:
        """Fails if it does not come."""
        assert self._done.wait(LONG_S), "that message never came by"


def dies(pair: Pair, node: Node) -> Event:
    """The node is killed, and its connections are reset."""
    return Event(lambda: (node.kill(), pair.reset()))


def answer_or_end(wire: Wire) -> object:
    """The reply; None if the connection ends without one."""
    try:
        return wire.read()
    except Closed:
        return None


@contextmanager
def sent(node: Node, *requests: tuple[str, ...]) -> Iterator[list[Wire]]:
    """Each on a connection of its own."""
    wires = [node.wire() for _ in requests]
    for wire, request in zip(wires, requests, strict=True):
        wire.send(*request)
    yield wires
    for wire in wires:
        wire.close()


POINTS = {
    "before the backup has it": (ENTRIES, False, False),
    "when the backup has it": (ENTRIES, False, True),
    "before the ack": (ACK, True, False),
    "behind the ack": (ACK, True, True),
}
"""The message, whether it goes from the backup to the primary, and whether it is delivered."""


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("kind", ["fail-stop", "etcd"])
def test_a_primary_that_dies_around_a_grant_leaves_one_outcome(
    pair: Pair, kind: str, point: str
) -> None:
    """A LOCK is on its way when A dies. Whoever was answered is answered the same by B; whoever was
    not is answered now, once and for all; a refusal around which a lock was released stays one."""
    pair.start()
    marker, to_node, deliver = POINTS[point]
    with pair.a.wire() as client:
        first = client.ask("LOCK", "held", "r0")
    died = dies(pair, pair.a)
    pair.to_a.trip(marker, died, to_node=to_node, deliver=deliver)
    with sent(pair.a, ("LOCK", "a", "r1")) as (granted,):
        answer = answer_or_end(granted)
        died.wait()
    pair.wait_serving(pair.b)
    with pair.b.wire() as client:
        on_backup = held(pair.b, ["a"])["a"]
        token = client.ask("LOCK", "a", "r1")
        assert token == client.ask("LOCK", "a", "r1") > first  # type: ignore[operator]
        assert answer in (None, token)
        assert on_backup in (0, token)
        if point == "before the backup has it":
            assert answer is None and on_backup == 0
        if to_node:
            assert on_backup == token, "what the backup acknowledged is not there"
        assert client.ask("UNLOCK", "a", "u1") == client.ask("UNLOCK", "a", "u1") == 1
        assert client.ask("LOCK", "a", "r1") == token
        assert held(pair.b, ["a", "held"]) == {"a": 0, "held": first}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("kind", ["etcd"])
def test_a_backup_that_dies_around_a_grant_costs_no_answer(
    pair: Pair, kind: str, point: str
) -> None:
    """B dies instead: the LOCK under way is answered once by A, which goes on alone at once, and
    the pair is whole when B is back."""
    pair.start()
    marker, to_node, deliver = POINTS[point]
    died = dies(pair, pair.b)
    pair.to_a.trip(marker, died, to_node=to_node, deliver=deliver)
    with sent(pair.a, ("LOCK", "a", "r1")) as (client,):
        token = client.read()
        died.wait()
        assert client.ask("LOCK", "a", "r1") == token != 0
        assert client.ask("LOCK", "a", "r2") == 0
        pair.b.start()
        pair.cluster.wait_paired(pair.a, pair.b)
        assert client.is_silent_for(0.01), "answered twice"
    pair.a.kill()
    pair.wait_serving(pair.b)
    assert held(pair.b, ["a"]) == {"a": token}


def fill(node: Node, count: int = 3000) -> None:
    """State of half a megabyte."""
    with node.wire() as client:
        names = [f"{n}-".ljust(150, "x") for n in range(count)]
        client.sock.sendall(b"".join(encode("LOCK", name, name[:100]) for name in names))
        assert all(client.read() for _ in names)


@pytest.mark.parametrize("victim", ["backup", "primary"])
@pytest.mark.parametrize(
    ("kind", "marker"),
    [("fail-stop", ITEMS), ("etcd", END), ("fail-stop", VIEW), ("etcd", VIEW)],
    ids=["items, fail-stop", "end, etcd", "view, fail-stop", "view, etcd"],
)
def test_a_node_that_dies_while_the_backup_joins(
    pair: Pair, kind: str, victim: str, marker: bytes
) -> None:
    """During the snapshot, at its end, or when B is told that it is a member. B dead: A serves on,
    and B comes back. A dead: B serves if it was admitted, and only with everything; else nobody
    does (I2, I3)."""
    pair.start()
    pair.b.kill()
    pair.wait_serving(pair.a)
    fill(pair.a)
    newest = pair.a.ask("LOCK", "newest", "r1")
    died = dies(pair, pair.b if victim == "backup" else pair.a)
    pair.to_a.trip(marker, died, to_node=False, deliver=True)
    pair.start_b()
    died.wait()
    if victim == "backup":
        assert pair.a.ask("LOCK", "newest", "r1") == newest
        pair.b.start()
        pair.cluster.wait_paired(pair.a, pair.b)
    elif marker is VIEW:
        # (Without a register it is a member only if it has read that message.)
        wait_until(
            lambda: pair.b.role == "master" or "no primary there" in pair.b.log_text,
            "B serves, or waits",
            pair.nodes,
        )
        if kind == "etcd" or "member of the view" in pair.b.log_text.rpartition("a snapshot of")[2]:
            pair.wait_serving(pair.b)
            assert held(pair.b, ["newest"]) == {"newest": newest}
    else:
        pair.a.start()
        for node in pair.nodes:
            wait_until(lambda: node.mode != "", "it answers", pair.nodes)  # noqa: B023
            assert not (node.role == "master" and node.mode == "solo")


@pytest.mark.parametrize("kind", ["etcd"])
@pytest.mark.parametrize("lost", ["request", "answer"])
@pytest.mark.parametrize("dead", [False, True], ids=["", "backup dies"])
def test_the_admission_of_a_backup_is_lost_on_its_way_to_the_register_or_back(
    request: pytest.FixtureRequest, forked_cluster: Cluster, kind: str, lost: str, dead: bool
) -> None:
    """A proposes the view with B in it, and hears nothing: B may be a member. It asks again; and if
    B dies meanwhile, A goes on only when the register has said so. No client notices more than a
    pause (F7: answer lost after success)."""
    register = new_register(request, kind, forked_cluster.folder)
    pair = Pair(forked_cluster, register, *QUICK).init()
    pair.start_a()
    pair.wait_serving(pair.a)
    load = Load(pair.ports, seed(), clients=4)
    proxy = pair.etcd_of[pair.a]
    lose = Event(lambda: (pair.b.kill() if dead else None, proxy.reset()))
    lose_transaction(proxy, lost, lose)
    pair.start_b()
    lose.wait()
    if dead:
        pair.wait_serving(pair.a)
        load.goes_on(pair.nodes)
        pair.b.start()
    pair.cluster.wait_paired(pair.a, pair.b)
    load.goes_on(pair.nodes)
    load.stop(pair.a)


def lose_transaction(proxy: Proxy, lost: str, lose: Callable[[], None]) -> None:
    """The next compare-and-set does not arrive, or its answer does not."""
    if lost == "request":
        proxy.trip(TRANSACTION, lose, to_node=True)
    else:
        then = lambda: proxy.trip(OK, lose, to_node=False)  # noqa: E731
        proxy.trip(TRANSACTION, then, to_node=True, deliver=True)


@pytest.mark.parametrize("kind", ["etcd"])
@pytest.mark.parametrize("lost", ["request", "answer"])
@pytest.mark.parametrize("dies_first", ["primary", "backup"])
def test_a_proposal_to_go_on_alone_is_lost_on_its_way_to_the_register_or_back(
    pair: Pair, kind: str, lost: str, dies_first: str
) -> None:
    """One node dies; what the other proposes is lost, or the answer is. It asks until it knows, and
    serves with everything, in the very view that the register shows."""
    pair.start()
    token = pair.a.ask("LOCK", "a", "r1")
    node = pair.a if dies_first == "primary" else pair.b
    other = pair.other(node)
    lose = Event(pair.etcd_of[other].reset)
    lose_transaction(pair.etcd_of[other], lost, lose)
    node.kill()
    lose.wait()
    pair.wait_serving(other)
    assert held(other, ["a"]) == {"a": token}
    view = pair.register.view()
    assert view.members == (other.info()["holdfast_incarnation"],)
    assert view.epoch == other.epoch
    node.start()
    pair.wait_whole()


@pytest.mark.parametrize("kind", ["etcd", "backup"])
def test_a_deposed_primary_drops_what_nobody_was_told_and_joins_again(
    request: pytest.FixtureRequest, forked_cluster: Cluster, kind: str
) -> None:
    """A is cut off with LOCKs that it executed and could not answer (its uncommitted tail). B takes
    over and grants the same locks; A, healed, has B's state and nothing else (F11, I5, I6)."""
    register = new_register(request, kind, forked_cluster.folder)
    pair = Pair(forked_cluster, register).start()
    first = pair.a.ask("LOCK", "first", "r0")
    pair.isolate(pair.a)
    tail = [("LOCK", f"tail-{n}", f"r{n}") for n in range(20)]
    with sent(pair.a, *tail, ("UNLOCK", "first", "u1")) as wires:
        pair.wait_serving(pair.b)
        with pair.b.wire() as client:
            assert client.inspect("tail-0")["state"] == b"free"
            again = {name: client.ask("LOCK", name, reqid) for _, name, reqid in tail[:10]}
        pair.heal()
        assert all(map(ends_without_a_word, wires)), "the tail was answered"
    pair.cluster.wait_paired(pair.b, pair.a)
    wait_until(lambda: digests_agree(pair.b, pair.a), "both have the same state", pair.nodes)
    pair.b.kill()
    if kind == "backup":
        pair.b.start()
    wait_until(lambda: pair.a.role == "master", "A takes over", pair.nodes)
    assert held(pair.a, [*again, "tail-15", "first"]) == {**again, "tail-15": 0, "first": first}


@pytest.mark.parametrize("kind", ["fail-stop", "etcd"])
def test_a_reply_that_is_cut_in_the_middle_is_had_again_in_full(pair: Pair, kind: str) -> None:
    """The client's connection is reset behind some bytes of the reply: the same request on a new
    one has the same answer; and so has it on B, once A is dead (F1 mid-reply, F6)."""
    pair.start()
    proxy = pair.proxy(pair.a.port)
    for number in range(1, 5):
        proxy.cut_after(number, to_node=False)
        with Wire(proxy.port) as client, pytest.raises(Closed):
            client.ask("LOCK", f"{number}", f"r{number}")
    tokens = held(pair.a, ["1", "2", "3", "4"])
    assert all(tokens.values())
    pair.a.kill()
    pair.wait_serving(pair.b)
    with pair.b.wire() as client:
        for name, token in tokens.items():
            assert client.ask("LOCK", name, f"r{name}") == token
