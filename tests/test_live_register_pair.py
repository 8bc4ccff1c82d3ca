"""Registers on a real pair: no acknowledged put is lost, and no reply leaves too early (I6, I7).

HOLDFAST_TEST_ROUNDS=n kills n primaries, HOLDFAST_TEST_SEED=n uses that seed.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from harness.bounded import Bounded
from harness.pairs import PATIENT, Pair, Register, digests_agree, rounds, seed
from harness.processes import Cluster, Node, wait_until
from harness.wire import Closed, ReplyError, Wire, encode

WRITERS = 8
HELD_BACK_BYTES_MAX = 16 << 20


def create(wire: Wire, count: int, value_bytes: int, prefix: str = "v") -> dict[str, bytes]:
    """So many registers, in one pipeline: their values."""
    dice = random.Random(prefix)
    values = {f"{prefix}{number}": dice.randbytes(value_bytes) for number in range(count)}
    wire.sock.sendall(b"".join(encode("VPUT", name, value, 0) for name, value in values.items()))
    assert [wire.read() for _ in values] == [1] * count
    return values


def has_all(node: Node, values: dict[str, bytes]) -> bool:
    """Whether they are there as they were created."""
    with node.wire() as wire:
        return all(wire.ask("VGET", name) == [value, 1] for name, value in values.items())


def serves(node: Node) -> bool:
    return node.role == "master" and node.mode in ("solo", "paired")


# -- replies --------------------------------------------------------------------------------------


def test_replies_are_held_back_until_the_backup_has_what_they_depend_on(
    forked_cluster: Cluster,
) -> None:
    """Those of puts, refused ones too, and of reads, which show what is not safe yet."""
    primary, backup = forked_cluster.pair(*PATIENT)
    with primary.wire() as writer, primary.wire() as reader, primary.wire() as other:
        assert writer.ask("VPUT", "a", "one", 0) == 1
        backup.freeze()
        writer.send("VPUT", "a", "two", 1, "@w:1")
        assert writer.is_silent_for(0.1)
        reader.send("VGET", "a")
        other.send("VPUT", "a", "three", 1)
        for wire in (reader, other, writer):
            assert wire.is_silent_for(0.1)
        backup.thaw()
        assert writer.read() == 2
        assert reader.read() == [b"two", 2]
        with pytest.raises(ReplyError, match="VERSION the current version is 2"):
            other.read()
    assert digests_agree(primary, backup)


# -- a primary that dies --------------------------------------------------------------------------


class Put(NamedTuple):
    """One that was sent: whether it was answered, too."""

    value: bytes
    version: int
    reqid: str


class Writer(threading.Thread):
    """Writes registers of its own, each version once, until the connection ends."""

    def __init__(self, node: Node, number: int, rng: random.Random) -> None:
        super().__init__(daemon=True)
        self.name_of = [f"writer {number}: {register}" for register in range(3)]
        self.acknowledged: dict[str, Put] = {}
        self.in_flight: tuple[str, Put] | None = None
        self._wire, self._rng, self._client = node.wire(), rng, f"@writer {number}"
        self.sent = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while True:
                self._put(self._rng.choice(self.name_of))
        except Closed:
            pass
        except BaseException as error:
            self.error = error

    def _put(self, name: str) -> None:
        known = self.acknowledged.get(name)
        self.sent += 1
        value = self._rng.randbytes(self._rng.choice([0, 9, 700, 20_000]))
        put = Put(value, known.version if known else 0, f"{self._client}:{self.sent}")
        self.in_flight = name, put
        assert self._wire.ask("VPUT", name, put.value, put.version, put.reqid) == put.version + 1
        self.acknowledged[name], self.in_flight = put._replace(version=put.version + 1), None

    def check(self, wire: Wire) -> None:
        """What was acknowledged is there; what was not may be, and is done once in any case."""
        assert self.error is None, self.error
        if self.in_flight is not None:
            name, put = self.in_flight
            for _ in range(2):
                answer = wire.ask("VPUT", name, put.value, put.version, put.reqid)
                assert answer == put.version + 1
            self.acknowledged[name] = put._replace(version=put.version + 1)
        for name, put in self.acknowledged.items():
            assert wire.ask("VGET", name) == [put.value, put.version], name


def test_every_acknowledged_put_is_there_after_the_primary_was_killed(
    forked_cluster: Cluster,
) -> None:
    """And one whose reply was lost, sent again to the new primary, is executed once."""
    number = seed()
    for kill in range(rounds(3)):
        rng = random.Random(f"{number} {kill}")
        primary, backup = forked_cluster.pair()
        writers = [Writer(primary, each, random.Random(rng.random())) for each in range(WRITERS)]
        for writer in writers:
            writer.start()
        wait_until(lambda: all(writer.acknowledged for writer in writers), "all write")  # noqa: B023
        time.sleep(rng.random() * 0.2)
        primary.kill()
        for writer in writers:
            writer.join(10)
            assert not writer.is_alive()
        wait_until(lambda: serves(backup), "the backup takes over", [backup])  # noqa: B023
        with backup.wire() as wire:
            for writer in writers:
                writer.check(wire)
        backup.kill()


def test_a_fence_and_the_end_of_a_register_outlive_the_primary(forked_cluster: Cluster) -> None:
    primary, backup = forked_cluster.pair()
    with primary.wire() as wire:
        token, old = wire.ask("LOCK", "l", "r1"), wire.ask("LOCK", "m", "r2")
        assert isinstance(token, int) and isinstance(old, int)
        wire.ask("UNLOCK", "m", "u2")
        assert wire.ask("VPUT", "a", "one", 0, "@c:1", "FENCE", "l", token) == 1
        assert wire.ask("VPUT", "short", "x", 0) == wire.ask("VPUT", "long", "x", 0) == 1
        assert wire.ask("PEXPIRE", "short", 300) == wire.ask("PEXPIRE", "long", 600_000) == 1
        started_s = time.monotonic()
    primary.kill()
    wait_until(lambda: serves(backup), "the backup takes over", [backup])
    with backup.wire() as wire:
        assert wire.ask("VPUT", "a", "again", 0, "@c:1", "FENCE", "l", token) == 1, "a repeat"
        with pytest.raises(ReplyError, match="STALETOKEN"):
            wire.ask("VPUT", "a", "two", 1, "FENCE", "m", old)
        assert wire.ask("VPUT", "a", "two", 1, "FENCE", "l", token) == 2
        left_ms = wire.ask("PTTL", "long")
        assert isinstance(left_ms, int) and 500_000 < left_ms <= 600_000
        wait_until(lambda: wire.ask("EXISTS", "short") == 0, "it ends")
        assert time.monotonic() - started_s >= 0.29, "not early (I8)"
        assert wire.ask("EXISTS", "long") == 1


# -- a backup that joins --------------------------------------------------------------------------


def test_a_backup_that_joins_is_sent_the_registers_while_they_change(
    forked_cluster: Cluster,
) -> None:
    """Large ones, small ones, and some that end: a full resync."""
    primary, backup = forked_cluster.pair("--log-level", "info")
    backup.kill()
    wait_until(lambda: primary.mode == "solo", "it goes on alone", [primary])
    with primary.wire() as wire:
        values = create(wire, 2_000, 20, "small") | create(wire, 100, 65_536, "large")
        for number in range(0, 100, 10):
            assert wire.ask("PEXPIRE", f"small{number}", 600_000) == 1
        backup.start()
        versions = dict.fromkeys((f"small{number}" for number in range(1_000, 1_010)), 1)
        while primary.mode != "paired" or backup.mode != "paired":
            for name in versions:
                versions[name] += 1
                assert wire.ask("VPUT", name, "changed", versions[name] - 1) == versions[name]
    assert primary.resyncs == (2, 0)
    wait_until(lambda: digests_agree(primary, backup), "both have the same", [primary, backup])
    primary.kill()
    wait_until(lambda: serves(backup), "the backup takes over", [backup])
    for name in versions:
        del values[name]
    assert has_all(backup, values)
    with backup.wire() as wire:
        for name, version in versions.items():
            assert wire.ask("VGET", name) == [b"changed", version]
        left_ms = wire.ask("PTTL", "small10")
        assert isinstance(left_ms, int) and 0 < left_ms <= 600_000
        assert wire.ask("PTTL", "small11") == -1


def test_a_backup_that_comes_back_is_sent_the_registers_that_it_lacks(
    forked_cluster: Cluster,
) -> None:
    """A partial resync."""
    pair = Pair(forked_cluster, Register("fail-stop"), *PATIENT).start()
    with pair.a.wire() as wire:
        values = create(wire, 50, 5_000, "before")
        for number in range(3):
            partial = pair.a.resyncs[1]
            assert pair.to_a.reset()
            values |= create(wire, 50, 5_000, f"while {number} ")
            wait_until(lambda: pair.a.resyncs[1] > partial, "it comes back", pair.nodes)  # noqa: B023
            pair.cluster.wait_paired(pair.a, pair.b)
    assert pair.a.resyncs[0] == 1, "nobody was sent a snapshot"
    wait_until(lambda: digests_agree(pair.a, pair.b), "both have the same", pair.nodes)
    pair.a.kill()
    wait_until(lambda: serves(pair.b), "the backup takes over", pair.nodes)
    assert has_all(pair.b, values)


# -- a backup that reads nothing ------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    """A pair of much patience with a smaller bound, whose backup stands still."""
    bounded = Bounded(HELD_BACK_BYTES_MAX=HELD_BACK_BYTES_MAX, LINK_BYTES_MAX=HELD_BACK_BYTES_MAX)
    cluster = Cluster(tmp_path, bounded)
    try:
        primary, backup = cluster.pair(*PATIENT)
        backup.freeze()
        yield primary, backup
    finally:
        cluster.close()


@pytest.mark.parametrize(("value_bytes", "name_bytes"), [(65_536, 8), (100, 512)])
def test_puts_under_a_backup_that_reads_nothing_end_in_tryagain_and_not_in_a_lost_link(
    stopped: tuple[Node, Node], value_bytes: int, name_bytes: int
) -> None:
    """What is on its way to it is bounded, names and ids included; then nothing is done, and
    afterwards all goes on."""
    primary, backup = stopped
    with primary.wire() as wire, primary.wire() as other:
        sent = fill(primary, wire, value_bytes, name_bytes)
        for words in (("VPUT", "z", "x", 0), ("VPUT", "z", "x", 0, "r"), ("VGET", "z")):
            with pytest.raises(ReplyError, match=r"^TRYAGAIN "):
                other.ask(*words)
        assert primary.mode == "paired", primary.log_tail()
        backup.thaw()
        written = sum(is_written(wire) for _ in range(sent))
        assert 0 < written <= sent
        assert wire.ask("VPUT", "z", "x", 0, "r") == 1, "that was not remembered"
        assert wire.ask("DBSIZE") == written + 1
    assert primary.mode == backup.mode == "paired" and primary.resyncs == (1, 0)
    assert digests_agree(primary, backup)


def fill(primary: Node, wire: Wire, value_bytes: int, name_bytes: int) -> int:
    """Send puts until so much is held back that nothing more is executed; how many they were."""
    sent, value = 0, b"v" * value_bytes
    while int(primary.info("locks")["pair_held_back_bytes"]) <= HELD_BACK_BYTES_MAX:
        assert primary.mode == "paired", primary.log_tail()
        batch = range(sent, sent + 1 + (1 << 20) // (value_bytes + 2 * name_bytes))
        names = [(b"%d" % number).ljust(name_bytes, b".") for number in batch]
        wire.sock.sendall(b"".join(encode("VPUT", name, value, 0, name) for name in names))
        sent = batch.stop
    return sent


def is_written(wire: Wire) -> bool:
    """Whether the next put was; else it was not done at all."""
    try:
        return wire.read() == 1
    except ReplyError as error:
        assert error.code == "TRYAGAIN"
        return False
