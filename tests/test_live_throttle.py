"""A replication link that passes a few kilobytes a second (F10): the stream is slower than the
requests. What is not acknowledged is bounded, and beyond the bound requests are refused with
-TRYAGAIN, unexecuted; no answer comes before the backup has it, and every answer is right. With the
link as fast as before, so is the pair.

The bound is a quarter of a million entries in the product, and a few thousand here.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.pairs import LONG_S, PATIENT, Load, Pair, Register, digests_agree, seed
from harness.processes import Cluster, wait_until
from harness.tight import Tight
from harness.wire import ReplyError, encode

UNACKED_MAX = 3_000
SLOW = 16 * 1024
"""Bytes a second: some five hundred entries."""
CLIENTS = 4
REQUESTS = 1_500
"""Of each client: together twice the bound."""
PIECE = 500
"""Of them at a time: far from the bound."""


@pytest.fixture
def pair(tmp_path: Path, request: pytest.FixtureRequest) -> Pair:
    """Time-outs of a minute: a slow link is no reason to lose anybody."""
    cluster = Cluster(tmp_path, Tight(UNACKED_ENTRIES_MAX=UNACKED_MAX))
    request.addfinalizer(cluster.close)
    return Pair(cluster, Register("fail-stop"), *PATIENT).start()


def unacked(pair: Pair) -> int:
    """How many of A's entries the backup has not acknowledged."""
    info = pair.a.info()
    backup = dict(each.split("=") for each in info["slave0"].split(","))
    return int(info["master_repl_offset"]) - int(backup["offset"])


def refused_count(pair: Pair) -> int:
    """How many requests A has refused with TRYAGAIN."""
    count = pair.a.info("errorstats").get("errorstat_TRYAGAIN", "count=0")
    return int(count.removeprefix("count="))


class Flood:
    """A client that sends all of its LOCKs at once, each of a lock of its own."""

    def __init__(self, pair: Pair, number: int) -> None:
        self.wire = pair.a.wire()
        self.ids = [f"{number}-{n}" for n in range(REQUESTS)]
        self.tokens: list[int] = []  # 0: refused

    def send(self, ids: list[str]) -> None:
        """In one go."""
        self.wire.sock.sendall(b"".join(encode("LOCK", f"flood {each}", each) for each in ids))

    def read(self) -> int:
        """The next fencing token, 0 if that request was refused with TRYAGAIN."""
        try:
            token = self.wire.read(LONG_S)
        except ReplyError as error:
            assert error.code == "TRYAGAIN", error
            return 0
        assert isinstance(token, int) and token, "nobody else asks for this lock"
        return token

    def read_all(self) -> None:
        """All answers that are to come; those that are grants are in order."""
        self.tokens += [self.read() for _ in self.ids[len(self.tokens) :]]
        granted = [token for token in self.tokens if token]
        assert granted == sorted(granted)

    def held_count(self) -> int:
        """How many of its locks are held, whatever it was told."""
        pieces = (self.ids[n : n + PIECE] for n in range(0, REQUESTS, PIECE))
        counts = [self.wire.ask("EXISTS", *(f"flood {each}" for each in ids)) for ids in pieces]
        assert all(isinstance(count, int) for count in counts)
        return sum(counts)  # type: ignore[arg-type]

    def ask_again(self) -> list[int]:
        """Everything under the same ids, so slowly that nothing has to be refused."""
        again: list[int] = []
        for n in range(0, REQUESTS, PIECE):
            self.send(self.ids[n : n + PIECE])
            again += [self.read() for _ in self.ids[n : n + PIECE]]
        return again


def test_behind_a_slow_link_requests_are_refused_before_too_much_is_unacknowledged(
    pair: Pair,
) -> None:
    """Twice the bound is asked for at once, beside clients whose history is checked. While the link
    is slow no more than the bound is unacknowledged, A answers INFO and PING at once, and the first
    grant that is told is on the backup already (a fencing token is an offset). With the link as
    fast as before all are answered; a grant is told the same again, and what was refused was not
    executed: it is granted when it is asked again."""
    load = Load(pair.ports, seed(), clients=3, patience_s=LONG_S)
    load.goes_on(pair.nodes)
    floods = [Flood(pair, number) for number in range(CLIENTS)]
    pair.to_a.throttle(SLOW, to_node=False)
    for flood in floods:
        flood.send(flood.ids)
    wait_until(lambda: refused_count(pair) > REQUESTS, "requests are refused", pair.nodes)
    assert UNACKED_MAX // 4 < max(unacked(pair) for _ in range(10)) <= UNACKED_MAX
    assert pair.a.ask("PING") == b"PONG"
    first = floods[0].read()
    assert 0 < first <= int(pair.b.info()["slave_repl_offset"]), "the backup does not have it"
    assert 0 < unacked(pair) <= UNACKED_MAX, "the link was not slow at all"
    floods[0].tokens.append(first)
    pair.to_a.heal()
    for flood in floods:
        flood.read_all()
    load.goes_on(pair.nodes)
    check_answers(floods)
    load.goes_on(pair.nodes)
    load.stop(pair.a)
    wait_until(lambda: digests_agree(pair.a, pair.b), "both have the same state", pair.nodes)
    assert pair.a.mode == "paired" and "suspecting" not in pair.a.log_text + pair.b.log_text


def check_answers(floods: list[Flood]) -> None:
    """What was granted is held, and nothing else; asked again, all of it is, under tokens of its
    own, and what was granted before under the same as before."""
    newest = max(max(flood.tokens) for flood in floods)
    assert any(0 in flood.tokens for flood in floods)
    for flood in floods:
        assert flood.held_count() == sum(token > 0 for token in flood.tokens)
    everything: list[int] = []
    for flood in floods:
        again = flood.ask_again()
        for token, now in zip(flood.tokens, again, strict=True):
            assert now == token if token else now > newest
        everything += again
        flood.wire.close()
    assert len(set(everything)) == CLIENTS * REQUESTS
