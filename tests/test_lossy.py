"""The network that loses messages does to them what it says, and to each request its own."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator

import hiredis
import pytest
from harness.checkers import History, check_all, from_ops
from harness.history import Recorder
from harness.lab import RawClerk
from harness.lossy import NO_FAULTS, Counts, Cutter, Faults, LossyProxy, command_of, fate_of
from harness.ports import Port
from harness.processes import Cluster, wait_until
from harness.scripted import Node, ok
from harness.wire import Closed, ReplyError, Wire, encode
from harness.workers import Workers

SILENT_S = 0.1
PATIENCE_S = 0.08

Through = Callable[[Faults], LossyProxy]


@pytest.fixture
def seed() -> int:
    """Printed, so that a failure can be repeated."""
    number = int(os.environ.get("HOLDFAST_TEST_SEED", "0")) or random.randrange(1, 1_000_000)
    print(f"seed {number}")
    return number


class CountingNode(Node):
    """Answers the n-th request that it takes in with n."""

    def __init__(self) -> None:
        numbers = itertools.count(1)
        super().__init__(lambda heard: b":%d\r\n" % next(numbers), ok)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def names(self) -> list[bytes]:
        """The first argument of each request, as they came."""
        return [words[1] for words in self.words]


@pytest.fixture
def node() -> Iterator[CountingNode]:
    node = CountingNode()
    yield node
    node.stop()


@pytest.fixture
def through(node: CountingNode, seed: int) -> Iterator[Through]:
    """Makes a proxy in front of the node."""
    port = Port()
    proxies: list[LossyProxy] = []

    def make(faults: Faults) -> LossyProxy:
        proxies.append(LossyProxy(port, node.port, seed, faults))
        return proxies[0]

    yield make
    for proxy in proxies:
        proxy.close()
    port.release()


# -- messages -------------------------------------------------------------------------------------


def any_message(rng: random.Random, depth: int = 0) -> bytes:
    """A value of RESP3, with line ends where they do not count."""
    kind = rng.choice("+-:$$=*~%_#," if depth < 3 else "+-:$")
    if kind in "$=":
        data = rng.choice([b"", b"\r\n", b"$1\r\n", rng.randbytes(rng.randrange(40))])
        data = b"txt:" + data if kind == "=" else data
        return (
            b"$-1\r\n" if rng.random() < 0.1 else b"%c%d\r\n%b\r\n" % (ord(kind), len(data), data)
        )
    if kind in "*~%":
        count = rng.randrange(4)
        values = (any_message(rng, depth + 1) for _ in range(count * (1 + (kind == "%"))))
        if kind == "%":
            values = (b"+k%d\r\n" % n if n % 2 == 0 else value for n, value in enumerate(values))
        elif kind == "~":
            values = (b":%d\r\n" % n for n in range(count))
        return b"%c%d\r\n%b" % (ord(kind), count, b"".join(values))
    if kind in "+-":
        return kind.encode() + b"OK some words\r\n"
    return {":": b":-12\r\n", "_": b"_\r\n", "#": b"#t\r\n", ",": b",1.5\r\n"}[kind]


def test_a_stream_is_cut_into_the_messages_that_a_parser_sees_however_it_comes(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(300):
        sent = [any_message(rng) for _ in range(rng.randrange(1, 6))]
        stream, cutter, cut = b"".join(sent), Cutter(), []
        while stream:
            size = rng.randint(1, rng.choice([1, 7, 1000]))
            cut += cutter.feed(stream[:size])
            stream = stream[size:]
        assert cut == sent
        for message in cut:
            reader = hiredis.Reader(replyError=ReplyError)
            reader.feed(message)
            assert reader.gets() is not False and reader.gets() is False, message


def test_attributes_belong_to_the_value_behind_them() -> None:
    message = b"|1\r\n+ttl\r\n:3600\r\n*1\r\n:5\r\n"
    assert Cutter().feed(message + b":7\r\n") == [message, b":7\r\n"]


def test_a_request_is_known_by_its_first_word() -> None:
    assert command_of(encode("vput", "a", b"\r\n", 0)) == b"VPUT"


# -- the dice -------------------------------------------------------------------------------------


def test_the_fates_are_a_function_of_the_seed_whatever_the_shares(seed: int) -> None:
    def fates(faults: Faults) -> list[object]:
        rng = random.Random(seed)
        return [fate_of(rng, faults) for _ in range(100)]

    assert fates(Faults()) == fates(Faults())
    without = fates(Faults(duplicated=0.0, late=0.0))
    assert [fate[:4] for fate in fates(Faults())] == [fate[:4] for fate in without]  # type: ignore[index]
    assert all(not any(fate[:5]) and fate[6] is None for fate in fates(NO_FAULTS))  # type: ignore[index]


def test_each_fault_is_as_frequent_as_its_share_says(seed: int) -> None:
    rng = random.Random(seed)
    fates = [fate_of(rng, Faults()) for _ in range(20_000)]
    counts = [
        sum(fate.lost for fate in fates),
        sum(fate.reply_lost for fate in fates),
        sum(fate.request_delay_s > 0 for fate in fates),
        sum(fate.reply_delay_s > 0 for fate in fates),
        sum(fate.duplicated for fate in fates),
    ]
    assert all(1_700 < count < 2_300 for count in counts), counts
    assert max(fate.request_delay_s for fate in fates) <= 0.026
    lost = [fate for fate in fates if fate.lost]
    assert 0.4 < sum(fate.late_s is not None for fate in lost) / len(lost) < 0.6


# -- what it does ---------------------------------------------------------------------------------


def test_without_faults_everything_passes_as_it_came(node: CountingNode, through: Through) -> None:
    proxy = through(NO_FAULTS)
    with Wire(proxy.port) as wire:
        for number in range(200):
            wire.send("PUT", number, b"\r\n" * 5_000)
        assert [wire.read() for _ in range(200)] == list(range(1, 201))
    assert node.names == [b"%d" % number for number in range(200)]
    assert proxy.counts == Counts(requests=200)


def test_a_request_that_is_lost_reaches_nobody_and_silences_its_connection(
    node: CountingNode, through: Through
) -> None:
    proxy = through(NO_FAULTS)
    with Wire(proxy.port) as wire:
        assert wire.ask("PUT", "a") == 1
        proxy.faults = NO_FAULTS._replace(lost_requests=1.0)
        wire.send("PUT", "b")
        wait_until(lambda: proxy.counts.lost_requests == 1, "it is lost")
        proxy.heal()
        wire.send("PUT", "c")
        assert wire.is_silent_for(SILENT_S), "the answer to c would be taken for b's"
        assert node.names == [b"a", b"c"]
    with Wire(proxy.port) as wire:
        assert wire.ask("PUT", "d") == 3


def test_a_reply_that_is_lost_was_of_a_request_that_was_done(
    node: CountingNode, through: Through
) -> None:
    proxy = through(NO_FAULTS)
    with Wire(proxy.port) as wire:
        wire.send("PUT", "a")
        proxy_is_asked(proxy, 1)
        proxy.faults = NO_FAULTS._replace(lost_replies=1.0)
        wire.send("PUT", "b")
        proxy_is_asked(proxy, 2)
        proxy.heal()
        wire.send("PUT", "c")
        assert wire.read() == 1, "what was asked before is answered"
        assert wire.is_silent_for(SILENT_S)
        assert node.names == [b"a", b"b", b"c"]
    assert proxy.counts == Counts(requests=3, lost_replies=1)


def proxy_is_asked(proxy: LossyProxy, count: int) -> None:
    wait_until(lambda: proxy.counts.requests == count, f"{count} requests have come")


def test_greetings_are_spared(node: CountingNode, through: Through) -> None:
    proxy = through(NO_FAULTS._replace(lost_requests=1.0))
    with Wire(proxy.port) as wire:
        assert wire.ask("CLIENT", "SETINFO", "LIB-NAME", "x") == b"OK"
    assert proxy.counts == Counts()


def test_messages_that_are_delayed_stay_in_order(node: CountingNode, through: Through) -> None:
    proxy = through(NO_FAULTS._replace(delayed=0.5, delay_max_s=0.01))
    started_s = time.monotonic()
    with Wire(proxy.port) as wire:
        for number in range(60):
            wire.send("PUT", number)
        assert [wire.read() for _ in range(60)] == list(range(1, 61))
    assert node.names == [b"%d" % number for number in range(60)]
    assert proxy.counts.delayed_requests > 10 and proxy.counts.delayed_replies > 10
    assert time.monotonic() - started_s > 0.005


@pytest.mark.parametrize("first", [True, False])
def test_a_request_that_is_duplicated_is_answered_once(
    first: bool, node: CountingNode, through: Through
) -> None:
    proxy = through(NO_FAULTS._replace(duplicated=1.0, first_answers=float(first)))
    with Wire(proxy.port) as wire:
        assert wire.ask("PUT", "a") == (1 if first else 2)
        assert wire.ask("PUT", "b") == (3 if first else 4)
    wait_until(lambda: node.names == [b"a", b"a", b"b", b"b"], "the last copy has come")
    assert {heard.connection for heard in node.heard} == {0}


def test_a_late_copy_comes_behind_the_answer_on_another_connection(
    node: CountingNode, through: Through
) -> None:
    proxy = through(NO_FAULTS._replace(late=1.0, late_max_s=0.05))
    with Wire(proxy.port) as wire:
        assert wire.ask("PUT", "a") == 1
        proxy.heal()
        wait_until(lambda: proxy.counts.late_answered == 1, "the copy is answered")
        assert wire.ask("PUT", "b") == 3
    assert [(heard.words[1], heard.connection) for heard in node.heard] == [
        (b"a", 0),
        (b"a", 1),
        (b"b", 0),
    ]
    assert proxy.late_due == 0


def test_a_request_that_is_late_comes_when_its_client_has_given_up(
    node: CountingNode, through: Through
) -> None:
    proxy = through(NO_FAULTS._replace(lost_requests=1.0, late_of_lost=1.0, late_max_s=0.05))
    with Wire(proxy.port) as wire:
        wire.send("PUT", "a")
        assert wire.is_silent_for(SILENT_S)
        assert node.names == [] and proxy.late_due == 1
        proxy.heal()
        with Wire(proxy.port) as other:
            assert other.ask("PUT", "b") == 1
    wait_until(lambda: proxy.counts.late_lost == 1, "the copy is answered")
    assert node.names == [b"b", b"a"]


def test_where_nobody_listens_nobody_is_let_in(node: CountingNode, through: Through) -> None:
    proxy = through(NO_FAULTS)
    with Wire(proxy.port) as wire:
        assert wire.ask("PUT", "a") == 1
        node.stop()
        with pytest.raises(Closed):
            wire.ask("PUT", "b")
    with pytest.raises((Closed, OSError)), Wire(proxy.port) as wire:
        wire.ask("PUT", "c")


def test_a_request_that_was_under_way_when_its_client_hung_up_is_done(
    node: CountingNode, through: Through
) -> None:
    proxy = through(NO_FAULTS._replace(delayed=1.0, delay_max_s=0.1))
    with Wire(proxy.port) as wire:
        wire.send("PUT", "a")
        proxy_is_asked(proxy, 1)
    node.wait_until(lambda: node.names == [b"a"])


def test_closing_it_ends_its_thread(through: Through) -> None:
    proxy = through(NO_FAULTS)
    with Wire(proxy.port) as wire:
        wire.ask("PUT", "a")
        proxy.close()
        with pytest.raises(Closed):
            wire.ask("PUT", "b")
    assert "lossy proxy" not in [thread.name for thread in threading.enumerate()]


# -- with a real node -----------------------------------------------------------------------------


def test_a_lock_behind_it_is_a_lock_all_the_same(cluster: Cluster, seed: int) -> None:
    """Every fault happens, and what three clients see is linearizable: request ids do that."""
    node = cluster.node("P").start("--log-level", "info")
    wait_until(node.answers, "the node serves", [node])
    proxy = LossyProxy(cluster.port(), node.port, seed, Faults())
    cluster.defer(proxy.close)
    history = Recorder()

    def step_of(who: str, clerk: RawClerk) -> Callable[[random.Random], None]:
        def step(rng: random.Random) -> None:
            kind = rng.choice(["lock", "unlock"])
            history.run(who, kind, "x", lambda: clerk.call(kind.upper(), "x"))

        return step

    clerks = [
        RawClerk((proxy.port,), persistent=number > 0, sessions=number > 1, patience_s=PATIENCE_S)
        for number in range(3)
    ]
    workers = Workers(
        [(random.Random(seed + n), step_of(f"c{n}", clerk)) for n, clerk in enumerate(clerks)]
    )
    wait_until(lambda: workers.errors or not proxy.counts.missing(), f"{proxy.counts}")
    workers.stop()
    for clerk in clerks:
        clerk.close()
    problems = check_all(History(operations=from_ops(history.ops)))
    assert not problems, "\n".join([*problems, f"{proxy.counts}"])
    assert sum(clerk.resent for clerk in clerks) >= proxy.counts.lost_requests > 0
