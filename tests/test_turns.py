"""The whole locking protocol: no greenlet switch between decoding a request and queueing its reply.

One thread, one writer, and nothing waits while it holds state. harness/traced_node.py is a real
node that looks at itself with greenlet.settrace; real clients hammer it here. The same script
counts writes: one a loop turn to the peer, in each direction, and one to each client.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness import traced_node
from harness.processes import Cluster, Node, Process, die_with_parent, environment, wait_until
from harness.wire import Closed, ReplyError, encode
from harness.workers import Workers

REQUESTS_MIN = 3_000


class Traced:
    """A launcher of traced nodes; `report` is what one saw, once it has ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sabotage = "none"

    def start(self, arguments: Sequence[str], log: Path) -> Process:
        """A new interpreter that runs traced_node.py."""
        with log.open("ab") as stderr:
            return subprocess.Popen(
                [
                    sys.executable,
                    traced_node.__file__,
                    str(log.with_suffix(".json")),
                    self.sabotage,
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                env=environment(),
                preexec_fn=die_with_parent,
            )

    def report(self, node: Node) -> dict[str, Any]:
        """Stop `node` and read its report."""
        code = node.terminate()
        assert code == 0, f"exit code {code}\n{node.log_tail()}"
        report = json.loads(node.log.with_suffix(".json").read_text())
        assert isinstance(report, dict)
        print(node.name, report)
        return report


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
    answer takes time (so that they are executed later, from a greenlet)."""
    answered = [0] * 6

    def client(number: int) -> Callable[[random.Random], None]:
        wire = primary.wire()

        def step(rng: random.Random) -> None:
            requests = [
                rng.choice(
                    [
                        encode("LOCK", f"l{rng.randrange(3)}", f"{number}-{rng.random()}"),
                        encode("UNLOCK", f"l{rng.randrange(3)}", f"{number}-{rng.random()}"),
                        encode("INSPECT", f"l{rng.randrange(3)}"),
                        encode("PING"),
                        b"PING inline\r\n",
                        encode("NOSUCH", "command"),
                        encode("LOCK", "too few"),
                    ]
                )
                for _ in range(rng.randrange(1, 30))
            ]
            if rng.random() < 0.2:
                requests.insert(rng.randrange(len(requests)), encode("REPLICAOF", "NO", "ONE"))
            data = b"".join(requests)
            cut = rng.randrange(len(data))
            wire.sock.sendall(data[:cut])
            wire.sock.sendall(data[cut:])
            for _ in requests:
                try:
                    wire.read()
                except ReplyError as error:
                    assert error.code == "ERR", error
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
    assert report["switches"] > 100, "the trace function was never called"
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
    served over. Behind a command whose answer took time, in a greenlet, the trace sees it."""
    traced.sabotage = "sleep"
    node = traced_cluster.node("P").start("--log-level", "info")
    wait_until(node.answers, "it is up", [node])
    with node.wire() as client:
        client.sock.sendall(encode("REPLICAOF", "NO", "ONE") + encode("YIELDING"))
        assert client.read() == b"OK"
        assert client.read() == b"OK"
    assert traced.report(node)["violations"]
    node.start()
    wait_until(node.answers, "it is up", [node])
    with node.wire() as client, pytest.raises(Closed):
        client.ask("YIELDING")
    wait_until(lambda: not node.is_running, "it stops", [node])
    assert "BlockingSwitchOutError" in node.log_text


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
