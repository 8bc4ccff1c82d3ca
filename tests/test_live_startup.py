"""How nodes begin: who may serve with nothing in memory, and who has to wait (F5).

An empty node never serves on its own word: a supervisor that restarts a crashed primary would
bring back an empty lock server.
"""

from __future__ import annotations

import time

import pytest
from harness.pairs import PATIENT
from harness.processes import Cluster, Node, wait_until
from harness.wire import ReplyError

# Long against the ticks in which a node looks for its peer (50 ms).
A_WHILE_S = 0.5


def refusal(node: Node, *words: str) -> str:
    """The code word with which `node` refuses a request."""
    with pytest.raises(ReplyError) as caught:
        node.ask(*words)
    return caught.value.code


def wait_up(*nodes: Node) -> None:
    """Wait until they answer PING."""
    for node in nodes:
        wait_until(node.answers, f"{node} is up", nodes)


def assert_stays_empty(node: Node) -> None:
    """For a while, all that depends on the state is refused with -LOADING, and PING is not."""
    until_s = time.monotonic() + A_WHILE_S
    with node.wire() as client:
        while time.monotonic() < until_s:
            for number, request in enumerate(
                (("LOCK", "a", "r1"), ("UNLOCK", "a", "r2"), ("INSPECT", "a"))
            ):
                client.send(*request)
                with pytest.raises(ReplyError) as caught:
                    client.read()
                assert caught.value.code == "LOADING", (number, caught.value)
            assert client.ask("PING") == b"PONG"
            time.sleep(0.02)
    assert node.mode == "recovery"


def test_an_empty_node_answers_loading_until_it_has_heard_from_its_peer(cluster: Cluster) -> None:
    """The first primary alone: -LOADING. Its peer appears, as blank as itself: it begins."""
    primary, backup = cluster.node("P"), cluster.node("B")
    primary.start("--backup", backup.address)
    wait_up(primary)
    assert_stays_empty(primary)
    backup.start("--replicaof", primary.address)
    cluster.wait_paired(primary, backup)
    assert primary.ask("LOCK", "a", "r1")


def test_an_empty_backup_answers_loading_until_its_primary_is_there(cluster: Cluster) -> None:
    """The first backup alone never begins; its primary appears: it joins, and is -READONLY."""
    primary, backup = cluster.node("P"), cluster.node("B")
    backup.start("--replicaof", primary.address)
    wait_up(backup)
    assert_stays_empty(backup)
    primary.start("--backup", backup.address)
    cluster.wait_paired(primary, backup)
    assert refusal(backup, "LOCK", "a", "r1") == "READONLY"


def test_of_two_blank_nodes_only_the_one_with_backup_begins(cluster: Cluster) -> None:
    """Two nodes that were both told --replicaof the other: neither begins."""
    one, other = cluster.node("one"), cluster.node("other")
    one.start("--replicaof", other.address)
    other.start("--replicaof", one.address)
    wait_up(one, other)
    assert_stays_empty(one)
    assert_stays_empty(other)
    assert "a new history" not in one.log_text + other.log_text


def test_a_node_without_a_peer_serves_at_once_and_a_backup_may_join_it_later(
    cluster: Cluster,
) -> None:
    """Primary-only; the backup that joins has everything, but is promoted by hand only, since the
    primary was not told of it."""
    primary, backup = cluster.node("P"), cluster.node("B")
    primary.start("--log-level", "info")
    wait_up(primary)
    token = primary.ask("LOCK", "a", "r1")
    assert token
    backup.start("--replicaof", primary.address)
    cluster.wait_paired(primary, backup)
    primary.kill()
    backup.wait_logged("REPLICAOF NO ONE")
    assert refusal(backup, "LOCK", "a", "r1") == "READONLY"
    assert backup.ask("REPLICAOF", "NO", "ONE") == b"OK"
    assert backup.ask("LOCK", "a", "r1") == token


def test_bootstrap_overrides_silence(cluster: Cluster) -> None:
    """--bootstrap, and nobody answers: an operator knows that both nodes were lost."""
    primary, backup = cluster.node("P"), cluster.node("B")
    primary.start("--backup", backup.address, "--bootstrap")
    wait_until(lambda: primary.mode == "solo", "it begins", [primary])
    assert primary.ask("LOCK", "a", "r1")


def test_bootstrap_never_overrides_a_peer_that_serves(cluster: Cluster) -> None:
    """P killed, B promoted, P started with --bootstrap by a careless hand: it joins B."""
    primary, backup = cluster.pair()
    token = primary.ask("LOCK", "a", "r1")
    primary.kill()
    wait_until(lambda: backup.role == "master", "the backup takes over", cluster.nodes)
    primary.start("--backup", backup.address, "--bootstrap")
    cluster.wait_paired(backup, primary)
    assert backup.ask("LOCK", "a", "r1") == token
    assert refusal(primary, "LOCK", "a", "r1") == "READONLY"


def test_bootstrap_never_overrides_a_peer_that_has_state_but_does_not_serve(
    cluster: Cluster,
) -> None:
    """With --failover manual B holds the state and waits for an operator; P with --bootstrap waits
    for B, and joins it when it has been promoted."""
    primary, backup = cluster.pair("--failover", "manual")
    token = primary.ask("LOCK", "a", "r1")
    primary.kill()
    backup.wait_logged("REPLICAOF NO ONE")
    primary.start("--backup", backup.address, "--bootstrap", "--failover", "manual")
    wait_up(primary)
    assert_stays_empty(primary)
    assert backup.ask("REPLICAOF", "NO", "ONE") == b"OK"
    cluster.wait_paired(backup, primary)
    assert backup.ask("LOCK", "a", "r1") == token


def test_after_the_loss_of_both_nodes_nobody_begins_without_bootstrap(cluster: Cluster) -> None:
    """B, restarted alone, waits; with both nodes blank again the one with --backup begins. Tokens
    of the new history are above all of the lost one (I7)."""
    primary, backup = cluster.pair()
    token = primary.ask("LOCK", "a", "r1")
    primary.kill()
    backup.kill()
    backup.start()
    wait_up(backup)
    assert_stays_empty(backup)
    primary.start()
    cluster.wait_paired(primary, backup)
    assert primary.ask("LOCK", "a", "r1") > token  # type: ignore[operator]


def test_the_node_with_the_state_outlives_a_primary_that_was_restarted_empty(
    cluster: Cluster,
) -> None:
    """B stands still for a moment; meanwhile P is killed and restarted, blank. P never begins: B
    takes over as soon as it runs again, and P joins it. (A moment is less than the time-outs: a B
    that may have been bypassed meanwhile takes over from nobody.)"""
    primary, backup = cluster.pair(*PATIENT)
    token = primary.ask("LOCK", "a", "r1")
    backup.freeze()
    primary.kill()
    primary.start()
    wait_up(primary)
    assert refusal(primary, "LOCK", "a", "r2") == "LOADING"
    backup.thaw()
    cluster.wait_paired(backup, primary)
    assert backup.ask("LOCK", "a", "r1") == token


def test_a_node_that_heard_of_a_history_does_not_begin_another(cluster: Cluster) -> None:
    """P is restarted, hears that B serves, and cannot join, since B has another backup. All that
    held the history die, and B comes back blank, and unable to ask anybody (or it would hear of the
    history from P, and say so). P began the first history and finds a blank peer, but knows that
    there is a history which it does not hold: it waits, until an operator says --bootstrap."""
    primary, backup = cluster.pair()
    primary.kill()
    wait_until(lambda: backup.role == "master", "the backup takes over", cluster.nodes)
    third = cluster.node("third")
    third.start("--replicaof", backup.address)
    cluster.wait_paired(backup, third)
    primary.start()
    primary.wait_logged("this primary has a backup")
    backup.kill()
    third.kill()
    backup.start("--replicaof", f"127.0.0.1:{cluster.port().number}")
    wait_up(primary, backup)
    assert_stays_empty(primary)
    assert_stays_empty(backup)
    primary.terminate()
    primary.start("--backup", backup.address, "--bootstrap")
    wait_until(lambda: primary.mode == "solo", "it begins", cluster.nodes)


def test_a_second_backup_is_refused_and_does_no_harm(cluster: Cluster) -> None:
    """A third node asks to join a pair: refused, again and again, at a civil rate; the pair is a
    pair all the while, and the stranger never serves."""
    primary, backup = cluster.pair()
    third = cluster.node("third")
    third.start("--replicaof", primary.address)
    third.wait_logged("this primary has a backup")
    assert_stays_empty(third)
    assert primary.ask("LOCK", "a", "r1")
    cluster.wait_paired(primary, backup)
    assert "epoch 2 ->" not in primary.log_text + backup.log_text
    backup.kill()
    # The place is free, and the third node may have it.
    cluster.wait_paired(primary, third)
    primary.kill()
    wait_until(
        lambda: third.role == "master" or "REPLICAOF NO ONE" in third.log_text,
        "it knows",
        cluster.nodes,
    )


def test_a_refused_backup_does_not_knock_without_pause(cluster: Cluster) -> None:
    """Refusals come no faster than a node's usual retries; each costs the primary a connection."""
    primary, _ = cluster.pair()
    third = cluster.node("third")
    third.start("--replicaof", primary.address)
    third.wait_logged("listening")

    def received() -> int:
        text = primary.ask("INFO", "stats")
        assert isinstance(text, bytes)
        return int(text.decode().partition("total_connections_received:")[2].split()[0])

    wait_until(third.answers, "it is up", [third])
    before = received()
    time.sleep(1.0)
    assert received() - before < 100


def test_a_stopped_pair_leaves_nothing_behind(cluster: Cluster) -> None:
    """SIGTERM on either node: it ends with 0; the backup of a primary that stops takes over."""
    primary, backup = cluster.pair()
    token = primary.ask("LOCK", "a", "r1")
    assert primary.terminate() == 0
    wait_until(lambda: backup.role == "master", "the backup takes over", cluster.nodes)
    assert backup.ask("LOCK", "a", "r1") == token
    assert backup.terminate() == 0
