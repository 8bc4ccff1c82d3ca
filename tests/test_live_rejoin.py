"""A pair that was broken becomes whole by itself, while one member in sync survives.

Nodes are killed, restarted, stopped, frozen and cut off, in any order, under load; the clients'
histories have to be possible, and every request answered (I1, I2, I4, I7, I13).

HOLDFAST_TEST_ROUNDS=n walks that far; HOLDFAST_TEST_SEED=n uses that seed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest
from harness.etcd import EtcdServer
from harness.pairs import (
    BACKUP_TIMEOUT_S,
    KINDS,
    PATIENT,
    PROMOTION_TIMEOUT_S,
    Load,
    Pair,
    digests_agree,
    held,
    new_register,
    rounds,
    seed,
)
from harness.processes import Cluster, Node, wait_until
from harness.wire import encode

FAULTS = ("kill", "restart", "stop", "freeze", "flap", "cut")
BLIP_S = min(BACKUP_TIMEOUT_S, PROMOTION_TIMEOUT_S) / 4
"""A cut so short that nobody is suspected."""


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


def started(request: pytest.FixtureRequest, cluster: Cluster, kind: str, *arguments: str) -> Pair:
    """A pair of this kind."""
    return Pair(cluster, new_register(request, kind, cluster.folder), *arguments).start()


class Walk:
    """One fault after the other, on the primary or on the backup, under load."""

    def __init__(self, pair: Pair, rng: random.Random, load: Load) -> None:
        self.pair, self.rng, self.load = pair, rng, load

    def step(self, fault: str, whom: str) -> None:
        """The fault, what has to go on meanwhile, and its end."""
        pair = self.pair
        primary, backup = pair.wait_whole()
        node = primary if whom == "primary" else backup
        print(f"{fault} the {whom}, {node}, epoch {primary.epoch}")
        getattr(self, fault)(node)
        pair.wait_whole()
        self.load.goes_on(pair.nodes)

    def _other_goes_on(self, node: Node) -> None:
        """Wait for it. Where the register is on B's machine nobody goes on without B."""
        if self.pair.kind != "backup" or node is not self.pair.b:
            self.pair.wait_serving(self.pair.other(node))
            self.load.goes_on(self.pair.nodes)

    def kill(self, node: Node) -> None:
        """It comes back when the other one has gone on."""
        node.kill()
        self._other_goes_on(node)
        node.start()

    def restart(self, node: Node) -> None:
        """It is back before anybody has noticed."""
        node.restart()

    def stop(self, node: Node) -> None:
        """SIGTERM."""
        assert node.terminate() == 0
        self._other_goes_on(node)
        node.start()

    def freeze(self, node: Node) -> None:
        """SIGSTOP, beyond the time-outs or within them."""
        node.freeze()
        if self.rng.random() < 0.7:
            self._other_goes_on(node)
        node.thaw()

    def flap(self, node: Node) -> None:
        """The link is reset, a few times in a row, in the middle of a frame for once."""
        for _ in range(self.rng.randrange(1, 4)):
            self.pair.reset()
        self.pair.way_to(node).cut_after(self.rng.randrange(1, 2000), to_node=False)

    def cut(self, node: Node) -> None:
        """Nothing passes. Where a register decides for longer than the time-outs, so that one of
        them goes on alone; without, two would: there it is a short one."""
        if self.pair.kind == "etcd":
            self.pair.isolate(node)
            self._other_goes_on(node)
        elif self.pair.kind == "backup" and node is self.pair.a:
            self.pair.cut()
            self._other_goes_on(node)
        else:
            self.pair.cut()
            time.sleep(self.rng.random() * BLIP_S)  # so long does this fault last
        self.pair.heal()


@pytest.mark.parametrize("kind", KINDS)
def test_any_fault_after_any_other_loses_nothing_and_the_pair_is_whole_again(
    request: pytest.FixtureRequest, forked_cluster: Cluster, kind: str
) -> None:
    """Each fault on the primary and on the backup, in random order (and on, for the rounds)."""
    number = seed()
    rng = random.Random(number)
    pair = started(request, forked_cluster, kind)
    load = Load(pair.ports, number)
    walk = Walk(pair, rng, load)
    steps = [(fault, whom) for fault in FAULTS for whom in ("primary", "backup")]
    rng.shuffle(steps)
    steps += [rng.choice(steps) for _ in range(rounds(0) - len(steps))]
    for fault, whom in steps:
        walk.step(fault, whom)
    primary, backup = pair.wait_whole()
    load.stop(primary)
    wait_until(lambda: digests_agree(primary, backup), "both have the same state", pair.nodes)
    assert "Traceback" not in pair.a.log_text + pair.b.log_text
    assert "ALARM" not in pair.a.log_text + pair.b.log_text


@pytest.mark.parametrize("kind", KINDS)
def test_a_link_that_flaps_under_load_costs_partial_resyncs_only(
    request: pytest.FixtureRequest, forked_cluster: Cluster, kind: str
) -> None:
    """Reset, over and over, in the middle of a frame too: the backup goes on where it was, the
    primary stays the primary, nobody is sent a snapshot."""
    number = seed()
    rng = random.Random(number)
    pair = started(request, forked_cluster, kind, *PATIENT)
    load = Load(pair.ports, number)
    full, partial = pair.a.resyncs
    assert (full, partial) == (1, 0)
    for flap in range(6):
        cuts = pair.to_a.cut_count
        if flap % 2:
            pair.to_a.cut_after(rng.randrange(1, 5000), to_node=flap % 4 == 1)
            wait_until(lambda: pair.to_a.cut_count > cuts, "a frame is cut", pair.nodes)  # noqa: B023
        else:
            assert pair.to_a.reset()
        wait_until(lambda: pair.a.resyncs[1] > partial, "it comes back", pair.nodes)  # noqa: B023
        pair.cluster.wait_paired(pair.a, pair.b)
        partial = pair.a.resyncs[1]
        load.goes_on(pair.nodes)
    load.stop(pair.a)
    for node in pair.nodes:
        assert node.resyncs[0] == full and node.resyncs[1] >= 6
    wait_until(lambda: digests_agree(pair.a, pair.b), "both have the same state", pair.nodes)
    assert pair.a.role == "master" and "PROMOTED" not in pair.b.log_text


@pytest.mark.parametrize("kind", ["fail-stop"])
def test_a_backup_that_was_frozen_until_the_backlog_was_overrun_is_sent_a_snapshot(
    request: pytest.FixtureRequest, forked_cluster: Cluster, kind: str
) -> None:
    """B frozen, A goes on alone and writes more than its backlog keeps; B thawed: a full resync,
    and what it has then is all of it. A shorter while before costs a partial one."""
    pair = started(request, forked_cluster, kind)
    load = Load(pair.ports, seed(), clients=2)
    full, partial = pair.a.resyncs
    pair.b.freeze()
    pair.wait_serving(pair.a)
    load.goes_on(pair.nodes)
    pair.b.thaw()
    pair.cluster.wait_paired(pair.a, pair.b)
    assert pair.a.resyncs == (full, partial + 1)

    pair.b.freeze()
    pair.wait_serving(pair.a)
    overrun(pair.a)
    pair.b.thaw()
    pair.cluster.wait_paired(pair.a, pair.b)
    assert pair.a.resyncs == (full + 1, partial + 1)
    load.goes_on(pair.nodes)
    load.stop(pair.a)
    pair.a.kill()
    pair.wait_serving(pair.b)
    names = [f"{n}-".ljust(500, "x") for n in range(12_000)]
    assert all(held(pair.b, names[::1000]).values())


def overrun(primary: Node) -> None:
    """Write more than a primary's backlog keeps: entries of 1,500 bytes."""
    info = primary.info()
    with primary.wire() as client:
        for first in range(0, 12_000, 1000):
            names = [f"{n}-".ljust(500, "x") for n in range(first, first + 1000)]
            client.sock.sendall(
                b"".join(encode("LOCK", name, "r" + name[:490], "OWNER", name) for name in names)
            )
            assert all(client.read() for _ in names)
    assert int(primary.info()["repl_backlog_first_byte_offset"]) > int(info["master_repl_offset"])


@pytest.mark.parametrize("kind", ["fail-stop", "etcd"])
def test_either_node_may_die_again_and_again_and_the_state_goes_from_hand_to_hand(
    request: pytest.FixtureRequest, forked_cluster: Cluster, kind: str
) -> None:
    """A dies, comes back, B dies, comes back, ...: tokens rise, what was locked at first still is,
    each epoch is above the one before, and both nodes always agree (F11)."""
    pair = started(request, forked_cluster, kind, *PATIENT)
    primary, backup = pair.a, pair.b
    tokens = [primary.ask("LOCK", "first", "r0")]
    epochs = [primary.epoch]
    for number in range(1, 7):
        primary.kill()
        pair.wait_serving(backup)
        tokens.append(backup.ask("LOCK", f"{number}", f"r{number}"))
        primary.start()
        primary, backup = backup, primary
        pair.cluster.wait_paired(primary, backup)
        epochs.append(primary.epoch)
        wait_until(lambda: digests_agree(primary, backup), "both agree", pair.nodes)  # noqa: B023
    assert tokens == sorted(set(tokens)) and epochs == sorted(set(epochs))  # type: ignore[type-var]
    assert held(primary, ["first"]) == {"first": tokens[0]}
