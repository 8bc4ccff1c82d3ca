"""A primary that stands still for long (SIGSTOP: F5), with requests in its sockets that it finds
there when it goes on.

    0 s      P is stopped; clients go on sending to it
    1 s      B has taken over, and answers everybody who asks it
    5 s      P goes on: it reads requests that B may have executed long ago, and leases of its own
             that have ended meanwhile
             it must not answer one of them

HOLDFAST_TEST_ROUNDS=2 (or more) has it stand still for half a minute too; HOLDFAST_TEST_SEED=n uses
that seed.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest
from harness.etcd import EtcdServer
from harness.lab import RawClerk
from harness.pairs import (
    LONG_S,
    Load,
    Pair,
    digests_agree,
    ends_without_a_word,
    new_register,
    rounds,
    seed,
)
from harness.processes import Cluster, wait_until

PAUSES_S = (5, 30) if rounds(1) > 1 else (5,)
LEASE_MS = 2_500
"""Longer than it takes B to take over, and shorter than any pause."""
PATIENT_CLERKS = 6


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def pair(request: pytest.FixtureRequest, forked_cluster: Cluster) -> Pair:
    """Time-outs of less than a second."""
    kind = request.getfixturevalue("kind")
    return Pair(forked_cluster, new_register(request, kind, forked_cluster.folder)).start()


class PatientClerks:
    """Clients that ask A, which stands still, and wait for it as long as it takes; a word from A is
    an answer, an end of the connection sends them to B with the same request id. What they saw goes
    into the history of everybody else."""

    def __init__(self, pair: Pair, load: Load, number: int, pause_s: int) -> None:
        self.clerks = [
            RawClerk(pair.ports, persistent=True, sessions=n % 2 == 0, patience_s=pause_s + LONG_S)
            for n in range(PATIENT_CLERKS)
        ]
        self.answers: list[int] = []
        rng = random.Random(number)
        self._threads = [
            threading.Thread(target=self._call, args=(load, n, rng.randrange(4)), daemon=True)
            for n in range(PATIENT_CLERKS)
        ]
        for thread in self._threads:
            thread.start()

    def _call(self, load: Load, n: int, name: int) -> None:
        call = self.clerks[n].token if n % 3 else self.clerks[n].unlock
        kind = "lock" if n % 3 else "unlock"
        self.answers.append(
            load.history.run(f"patient {n}", kind, f"{name}", partial(call, f"{name}"))
        )

    def join(self) -> None:
        """Each has its answer, and not from A."""
        for thread in self._threads:
            thread.join(LONG_S)
        assert len(self.answers) == PATIENT_CLERKS, "one of them was never answered"
        for clerk in self.clerks:
            assert clerk.resent > 0, "a primary that was deposed in its sleep has answered"
            clerk.close()


@pytest.mark.parametrize("kind", ["fail-stop", "etcd"])
@pytest.mark.parametrize("pause_s", PAUSES_S)
def test_a_primary_that_stood_still_for_long_answers_nothing_that_it_finds_in_its_sockets(
    pair: Pair, kind: str, pause_s: int
) -> None:
    """Clients that give up and hang up, clients that wait, and one that renews a lease: all of
    their requests lie in A's sockets when it goes on, and none is answered by it. B has granted the
    lease's lock to the next one when it had ended, and not before. The histories are possible, A
    joins B, and both have the same state (I1, I3, I6, I8)."""
    number = seed()
    load = Load(pair.ports, number)
    load.goes_on(pair.nodes)
    holder, looker = pair.a.wire(), pair.a.wire()
    leased_s = time.monotonic()
    token = holder.ask("LOCK", "leased", "l1", "PX", LEASE_MS)
    assert isinstance(token, int)
    pair.a.freeze()
    frozen_s = time.monotonic()
    holder.send("RENEW", "leased", token, "PX", LEASE_MS)
    holder.send("UNLOCK", "leased", "n2")
    looker.send("VERIFY", "leased", token)
    looker.send("PING")
    patient = PatientClerks(pair, load, number, pause_s)
    pair.wait_serving(pair.b)
    with pair.b.wire() as client:
        next_token = client.ask("LOCK", "leased", "l2", "WAIT", 60_000)
        assert time.monotonic() - leased_s >= LEASE_MS / 1000, "B has ended the lease too early"
        assert isinstance(next_token, int) and next_token > token
        load.goes_on(pair.nodes)
        time.sleep(max(0.0, frozen_s + pause_s - time.monotonic()))  # so long does it stand still
        pair.a.thaw()
        assert ends_without_a_word(holder) and ends_without_a_word(looker)
        patient.join()
        assert client.ask("VERIFY", "leased", next_token) == 1, "a late request has ended its grant"
    pair.cluster.wait_paired(pair.b, pair.a)
    load.goes_on(pair.nodes)
    load.stop(pair.b)
    wait_until(lambda: digests_agree(pair.b, pair.a), "both have the same state", pair.nodes)
    assert pair.a.log_text.count("DEPOSED") == 1
