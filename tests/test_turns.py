"""The whole locking protocol: no greenlet switch between decoding a request and queueing its reply.

One thread, one writer, and nothing waits while it holds state. harness/traced_node.py is a real
node that looks at itself with greenlet.settrace; real clients hammer it here. The same script
counts writes: one a loop turn to the peer, in each direction, and one to each client.
"""

from __future__ import annotations

import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest
from harness.processes import Cluster, Node, wait_until
from harness.traced_node import Traced
from harness.wire import Closed, ReplyError, encode
from harness.workers import Workers

from holdfast.server.core import limits
from holdfast.server.poller import HANG_UP, READ, LateInput, Poller

REQUESTS_MIN = 3_000


@pytest.fixture
def traced(tmp_path: Path) -> Traced:
    """How the nodes of a test here are started."""
    return Traced(tmp_path)


@pytest.fixture
def traced_cluster(tmp_path: Path, traced: Traced, request: pytest.FixtureRequest) -> Cluster:
    """Traced nodes, reaped at the end."""
    cluster = Cluster(tmp_path, traced)
    request.addfinalizer(cluster.close)
    return cluster


def hammer(primary: Node, requests_min: int = REQUESTS_MIN) -> None:
    """Six clients that pipeline all kinds of requests, some in pieces, some behind a command whose
    answer takes time (so that they are executed later)."""
    answered = [0] * 6

    def client(number: int) -> Callable[[random.Random], None]:
        wire = primary.wire()

        def step(rng: random.Random) -> None:
            requests = [
                rng.choice(
                    [
                        encode("LOCK", f"l{rng.randrange(3)}", f"{number}-{rng.random()}"),
                        encode("UNLOCK", f"l{rng.randrange(3)}", f"{number}-{rng.random()}"),
                        encode("LOCK", f"l{rng.randrange(3)}", f"{number}-{rng.random()}", "PX", 2),
                        encode("INSPECT", f"l{rng.randrange(3)}"),
                        encode("DEL", "l0", "l1"),
                        encode("LOCKS", "0"),
                        encode("PING"),
                        b"PING inline\r\n",
                        encode("NOSUCH", "command"),
                        encode("LOCK", "too few"),
                    ]
                )
                for _ in range(rng.randrange(1, 30))
            ]
            for waits in (
                encode("REPLICAOF", "NO", "ONE"),
                encode("DEBUG", "DIGEST"),
                encode("LOCK", "l1", f"{number}-{rng.random()}", "PX", "3", "WAIT", "5"),
            ):
                if rng.random() < 0.2:
                    requests.insert(rng.randrange(len(requests)), waits)
            data = b"".join(requests)
            cut = rng.randrange(len(data))
            wire.sock.sendall(data[:cut])
            wire.sock.sendall(data[cut:])
            for _ in requests:
                try:
                    wire.read()
                except ReplyError as error:
                    assert error.code in ("ERR", "TRYAGAIN"), error
                answered[number] += 1

        return step

    workers = Workers([(random.Random(number), client(number)) for number in range(6)])
    wait_until(lambda: sum(answered) > requests_min or workers.errors, "they have been busy")
    workers.stop()


def test_no_greenlet_switch_between_decoding_a_request_and_queueing_its_reply(
    traced: Traced, traced_cluster: Cluster
) -> None:
    """A pair under load: thousands of requests, many switches, none of them inside."""
    primary, backup = traced_cluster.pair()
    hammer(primary)
    report = traced.report(primary)
    assert report["violations"] == []
    assert report["requests"] >= REQUESTS_MIN
    assert report["sections"] > 100
    assert report["switches"] > 20, "the trace function was never called"
    backup.reap()


def test_a_handler_that_switches_greenlets_is_seen(traced: Traced, traced_cluster: Cluster) -> None:
    """The test above can fail."""
    traced.sabotage = "switch"
    node = traced_cluster.node("P").start("--log-level", "info")
    wait_until(node.answers, "it is up", [node])
    assert node.ask("YIELDING") == b"OK"
    violations = traced.report(node)["violations"]
    assert len(violations) == 2 and "YIELDING" in violations[0], "there and back"


def test_a_handler_that_sleeps_with_gevent_is_seen(traced: Traced, traced_cluster: Cluster) -> None:
    """Called from the event loop, gevent itself refuses, and the node stops: our own bug is never
    served over. So it is behind a command whose answer took time: that is executed by the loop,
    too, and not by the greenlet that had the answer."""
    traced.sabotage = "sleep"
    node = traced_cluster.node("P").start("--log-level", "info")
    for before in (b"", encode("REPLICAOF", "NO", "ONE"), encode("DEBUG", "DIGEST")):
        wait_until(node.answers, "it is up", [node])
        with node.wire() as client, pytest.raises(Closed):
            client.sock.sendall(before + encode("YIELDING"))
            while True:
                client.read()
        wait_until(lambda: not node.is_running, "it stops", [node])
        assert node.log_text.count("BlockingSwitchOutError: ") >= 1
        node.log.unlink()
        node.start()


def test_one_write_a_turn_to_the_peer_and_to_each_client(
    traced: Traced, traced_cluster: Cluster
) -> None:
    """All entries of a turn leave in one write, one ack answers them, and the replies that it
    releases leave in one write to each client."""
    primary, backup = traced_cluster.pair()
    hammer(primary, requests_min=20_000)
    for node in (primary, backup):
        report = traced.report(node)
        by_writes = {int(writes): turns for writes, turns in report["turns_by_link_writes"].items()}
        assert by_writes.get(1, 0) > 50, "the turns with a write"
        assert max(by_writes) == 1, f"{node}: turns by writes to the peer: {by_writes}"
        assert report["second_flushes"] == 0


# -- what a turn may take ------------------------------------------------------------------------


def test_one_wake_up_of_very_many_connections_takes_many_turns(
    traced: Traced, traced_cluster: Cluster
) -> None:
    """All of them have sent the same request, and all get its answer."""
    node = traced_cluster.node("P").start("--log-level", "info")
    wait_until(node.answers, "it is up", [node])
    wires = [node.wire() for _ in range(900)]
    with node.wire() as holder:
        assert holder.ask("LOCK", "a", "holder") != 0
        for wire in wires:
            wire.sock.sendall(encode("PING") + encode("LOCK", "a", "same", "WAIT", 60_000))
            assert wire.read() == b"PONG"
        assert holder.ask("UNLOCK", "a", "u") == 1
        tokens = {wire.read() for wire in wires}
        assert tokens == {holder.inspect("a")["fencing_token"]}
        for wire in wires:  # (a node that stops closes all of its connections in one turn)
            wire.close()
        wait_until(lambda: holder.ask("CLIENT", "LIST").count(b"\n") == 1, "they are gone")  # type: ignore[union-attr]
    report = traced.report(node)
    assert 100 < report["most_flushes_in_a_turn"] < 400


def test_a_digest_takes_one_slice_a_turn(traced_cluster: Cluster) -> None:
    """So others are answered between any two of them."""
    node = traced_cluster.node("P").start("--log-level", "info")
    wait_until(node.answers, "it is up", [node])
    count = 20 * limits.DIGEST_ITEMS_PER_SLICE
    with node.wire() as wire, node.wire() as other:
        for first in range(0, count, 2_000):
            numbers = range(first, first + 2_000)
            wire.sock.sendall(b"".join(encode("LOCK", f"l{n}", f"r{n}") for n in numbers))
            assert all(wire.read() for _ in numbers)
        wire.send("DEBUG", "DIGEST")
        answered = 0
        while wire.is_silent_for(0.0001):
            assert other.ask("PING") == b"PONG"
            answered += 1
        assert answered > 10, "of forty slices"


# -- what is unread ------------------------------------------------------------------------------


class Sockets:
    """Some sockets behind a Poller, on this thread's loop."""

    def __init__(self, count: int) -> None:
        self.poller = Poller(gevent.get_hub().loop, lambda: 0)
        self.served: list[int] = []
        self.takes_s = 0.0
        self.reads = True
        self.pairs: list[tuple[socket.socket, socket.socket]] = []
        for _ in range(count):
            self.add()

    def add(self, data: bytes = b"") -> None:
        """One more, into which this has been written."""
        theirs, ours = socket.socketpair()
        theirs.sendall(data)
        number = len(self.pairs)
        self.pairs.append((theirs, ours))
        ours.setblocking(False)
        self.poller.register(ours.fileno(), lambda: self.serve(number), lambda: None)

    def serve(self, number: int) -> None:
        """Read as much at a time as a connection does."""
        self.served.append(number)
        if self.reads:
            self.pairs[number][1].recv(limits.RECEIVE_BYTES)
        time.sleep(self.takes_s)

    def send(self, number: int, data: bytes) -> None:
        """Have this lie in one of them."""
        self.pairs[number][0].sendall(data)

    def watch(self, number: int, events: int) -> None:
        """What it is watched for."""
        self.poller.watch(self.pairs[number][1].fileno(), events)

    def close(self) -> None:
        """All of them."""
        self.poller.close()
        for pair in self.pairs:
            for each in pair:
                each.close()


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    """A hundred."""
    sockets = Sockets(100)
    yield sockets
    sockets.close()


def turn() -> None:
    """One turn of the loop, or two."""
    gevent.sleep(0.001)


def test_sockets_for_which_there_is_no_time_come_first_in_the_next_turn(sockets: Sockets) -> None:
    sockets.takes_s = limits.POLL_BUDGET_NS / 4e9
    sockets.reads = False  # all of them stay ready
    for number in range(100):
        sockets.send(number, b"x")
    turns = 0
    while len(sockets.served) < 300:
        before = len(sockets.served)
        turn()
        assert len(sockets.served) - before <= 10, "the clock is looked at for every one"
        turns += 1
    times = Counter(sockets.served)
    assert len(times) == 100
    assert max(times.values()) - min(times.values()) <= 1, "round and round"


def test_idle_is_what_the_kernel_says_and_not_what_was_read_last(sockets: Sockets) -> None:
    assert sockets.poller.is_idle()
    sockets.send(1, bytes(limits.RECEIVE_BYTES))  # as much as is read at a time, and no more
    assert not sockets.poller.is_idle()
    turn()
    assert sockets.poller.is_idle()
    sockets.watch(1, HANG_UP)
    sockets.send(1, b"behind a command that waits")
    assert sockets.poller.is_idle(), "nobody is to read it"
    sockets.watch(1, HANG_UP | READ)
    assert not sockets.poller.is_idle()


def test_late_input_is_what_lay_there_and_not_what_comes_later(sockets: Sockets) -> None:
    """One socket had two and a half reads in it, one is kept full for ever."""
    late = LateInput(sockets.poller)
    sockets.send(0, bytes(limits.RECEIVE_BYTES * 5 // 2))
    sockets.send(1, b"x")
    sockets.takes_s = limits.POLL_BUDGET_NS / 0.9e9  # one a turn
    is_read = False
    while not is_read:
        is_read = late.is_read(True, True, [])
        late.end_turn()
        sockets.send(1, b"x")
        turn()
    assert sockets.served.count(0) == 3 and len(sockets.served) < 10


def test_late_input_is_what_waited_to_be_accepted_and_to_be_executed_too(sockets: Sockets) -> None:
    late = LateInput(sockets.poller)
    one, other, later = "one connection", "another", "and one that comes later"
    assert not late.is_read(False, True, []), "it may not have looked at who wants to be accepted"
    assert not late.is_read(False, False, []), "more may be there"
    sockets.add(b"x")
    assert not late.is_read(False, True, [one]), "nothing was read of that"
    turn()
    assert not late.is_read(False, True, [one, other])
    assert not late.is_read(False, True, [other, later])
    assert late.is_read(False, True, [later])


def test_every_late_turn_is_another(sockets: Sockets) -> None:
    late = LateInput(sockets.poller)
    assert late.is_read(True, True, []), "nothing is there"
    late.end_turn()
    sockets.send(0, b"x")
    assert not late.is_read(True, True, [])
    late.end_turn()
    late.end_turn()  # a turn in which nobody asks
    turn()
    sockets.send(1, b"x")
    assert not late.is_read(True, True, []), "that is another's"
    turn()
    assert late.is_read(True, True, [])
    assert not late.is_read(True, True, ["left"]), "and this one, too"
