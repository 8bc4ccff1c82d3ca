"""Malformed and hostile input over real sockets (F13): each such client harms only itself (I12).

A well-behaved client goes on locking and unlocking meanwhile, and every test ends with a look at
whether the node is still there, still answers and has logged no traceback.

HOLDFAST_TEST_SEED=n repeats the fuzz of seed n.
"""

from __future__ import annotations

import itertools
import os
import random
import resource
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.corpus import (
    ARRAY_BOMB,
    BAD,
    GOOD,
    HTTP_GET,
    HTTP_POST,
    IGNORED,
    LONG,
    NESTED,
    OURS,
    TLS_HELLO,
    WAITING,
    mutate,
)
from harness.processes import Cluster, Node, wait_until
from harness.raw import (
    Bystander,
    Raw,
    answer_to,
    exchange,
    last_words,
    lone_node,
    settle,
)
from harness.wire import Wire, encode

from holdfast.server.core import limits
from holdfast.server.core.stream import PROTOCOL_VERSION

PING = encode("PING")
PONG = b"+PONG\r\n"
MIB = 1024 * 1024
FREE = [
    *(b"state", b"free", b"owner", None, b"fencing_token", 0, b"remaining_ms", 0, b"held_ms", 0),
    *(b"waiter_count", 0, b"waiters", []),
]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One for the whole file: none of this may harm it."""
    with lone_node(tmp_path_factory.mktemp("hostile")) as node:
        yield node


@pytest.fixture
def fresh_node(tmp_path: Path) -> Iterator[Node]:
    """One whose memory, limits or settings a test looks at or changes."""
    with lone_node(tmp_path) as node:
        yield node


@pytest.fixture
def bystander(node: Node) -> Iterator[Bystander]:
    """Somebody who behaves, and must not notice."""
    with Bystander(node.port) as bystander:
        yield bystander


@pytest.fixture
def rng() -> random.Random:
    """Its seed is printed."""
    seed = int(os.environ.get("HOLDFAST_TEST_SEED", "0")) or random.randrange(1, 1_000_000)
    print(f"seed {seed}")
    return random.Random(seed)


def client_count(node: Node) -> int:
    """Connections, the one that asks not counted."""
    text = node.ask("INFO", "clients")
    assert isinstance(text, bytes)
    [line] = [line for line in text.splitlines() if line.startswith(b"connected_clients:")]
    return int(line.partition(b":")[2]) - 1


def memory_mib(node: Node, what: str) -> float:
    """VmRSS (now) or VmHWM (the most so far)."""
    for line in Path(f"/proc/{node.pid}/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1]) / 1024
    raise AssertionError(what)


def core_ms(node: Node) -> float:
    """How long its event loop has had a core."""
    return int(Path(f"/proc/{node.pid}/schedstat").read_text().split()[0]) / 1e6


def ping_ms(node: Node, wire: Wire) -> float:
    """How long the node has a PING wait: by the clock, or what it had of a core meanwhile if that
    is less. (A busy machine gives its cores to others.)"""
    core_before_ms, started_s = core_ms(node), time.perf_counter()
    assert wire.ask("PING") == b"PONG"
    waited_ms = (time.perf_counter() - started_s) * 1000
    return min(waited_ms, core_ms(node) - core_before_ms)


# -- vanishing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset", "finish"])
def test_a_client_that_vanishes_mid_request_leaves_nothing_behind(
    node: Node, bystander: Bystander, how: str
) -> None:
    before = client_count(node)
    request = encode("LOCK", "half a request", f"{how} 1")
    raws = []
    for cut in range(len(request)):
        raw = Raw(node.port)
        raw.send(PING + request[:cut])
        assert raw.read_exactly(7) == PONG
        raws.append(raw)
    for raw in raws:
        if how == "finish":
            raw.finish()
            assert raw.read_to_end() == b""
            raw.close()
        else:
            raw.reset() if how == "reset" else raw.close()
    wait_until(lambda: client_count(node) == before, "all of them are forgotten", [node])
    assert node.ask("INSPECT", "half a request") == FREE


def test_clients_that_reset_with_replies_under_way_harm_nobody(
    node: Node, bystander: Bystander
) -> None:
    before = client_count(node)
    for count in (1, 2, 100, 5_000):
        for _ in range(20):
            raw = Raw(node.port, receive_buffer_bytes=4_096)
            raw.send(PING * count + encode("LOCK", "a", "@")[: count % 20])
            raw.reset()
    wait_until(lambda: client_count(node) == before, "all of them are forgotten", [node])


def test_a_client_that_ends_its_side_gets_its_answers_first(node: Node) -> None:
    # As `printf ... | nc -N` does. Some of these take more than one turn of the loop.
    assert answer_to(node.port, PING) == PONG
    assert answer_to(node.port, PING * 30_000) == PONG * 30_000
    switched = encode("CLIENT", "REPLY", "OFF") + encode("CLIENT", "REPLY", "ON") + PING
    assert answer_to(node.port, switched) == b"+OK\r\n" + PONG


def test_a_client_that_ends_its_side_gets_answers_that_are_held_back_too(cluster: Cluster) -> None:
    primary, _ = cluster.pair()
    answer = answer_to(primary.port, encode("LOCK", "a", "1") + encode("LOCK", "a", "2"))
    assert answer.startswith(b":")
    assert answer.endswith(b"\r\n:0\r\n")


def test_nothing_behind_quit_is_executed_even_if_the_client_resets(cluster: Cluster) -> None:
    primary, backup = cluster.pair(
        "--backup-timeout-ms", "60000", "--promotion-timeout-ms", "60000"
    )
    backup.freeze()  # so that the reply before QUIT is held back, and the connection stays
    raw = Raw(primary.port)
    raw.send(encode("LOCK", "before", "1") + encode("QUIT"))
    settle(primary.port)
    raw.send(encode("LOCK", "behind", "2"))
    raw.reset()
    settle(primary.port)
    backup.thaw()
    with primary.wire() as wire:
        assert wire.inspect("before")["state"] == b"held"
        assert wire.inspect("behind")["state"] == b"free"


# -- floods --------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [b"\x00", b"*\x00", b"$\x00"], ids=repr)
@pytest.mark.parametrize("payload", [b"A" * 1_023 + b"\n", bytes(1_024)], ids=["lines", "NULs"])
def test_a_desync_flood_ends_in_a_protocol_error(
    node: Node, bystander: Bystander, start: bytes, payload: bytes
) -> None:
    raw = Raw(node.port)
    assert raw.send(start)
    sent = 0
    while raw.send(payload * 8):
        sent += len(payload) * 8
        assert sent < 64 * MIB, "it goes on taking it in"
    assert raw.read_to_end().startswith(b"-ERR Protocol error: too big")


def test_random_bytes_without_end_are_cut_off(
    node: Node, bystander: Bystander, rng: random.Random
) -> None:
    for _ in range(10):
        raw = Raw(node.port)
        sent = 0
        while raw.send(rng.randbytes(16_384)):
            sent += 16_384
            assert sent < 64 * MIB, "it goes on taking it in"
        assert b"-ERR Protocol error: " in raw.read_to_end()[-200:]


def test_an_array_bomb_does_not_hold_the_loop(node: Node) -> None:
    bombs = [ARRAY_BOMB, b"*1000000000\r\n", b"*1024\r\n$1048576\r\n", NESTED]
    with Wire(node.port) as wire:
        slowest_ms = []
        for _ in range(3):  # the machine may have been busy with something else
            slowest_ms.append(0.0)
            for bomb in bombs * 10:
                with Raw(node.port) as raw:
                    raw.send(bomb)
                    slowest_ms[-1] = max(slowest_ms[-1], ping_ms(node, wire))
    assert min(slowest_ms) < 50, slowest_ms


CHUNKS = {
    "LOCK": encode("LOCK", "chunk", "1"),
    "LOCK inline": b"LOCK chunk 1\r\n",
    "INSPECT inline": b"INSPECT a\r\n",
    "line ends": b"\n",
    "empty arrays": b"*0\r\n",
    "unknown commands": b"A\r\n",
    "wrong arity": b"LOCK\r\n",
    "unknown options": b"LOCK a b c d\r\n",
    "CONFIG GET *": b"CONFIG GET *\r\n",
    "COMMAND DOCS": b"COMMAND DOCS\r\n",
    "INFO": b"INFO\r\n",
}


@pytest.mark.parametrize("flood", CHUNKS)
def test_no_chunk_of_requests_holds_the_loop_for_50_ms(node: Node, flood: str) -> None:
    data = CHUNKS[flood] * (limits.RECEIVE_BYTES // len(CHUNKS[flood]))
    spent_ms = []
    with Wire(node.port) as wire:
        for _ in range(5):  # the machine may have been busy with something else
            with Raw(node.port) as raw:
                settle(node.port)
                raw.send(data)
                spent_ms.append(ping_ms(node, wire))
            settle(node.port)
    assert min(spent_ms) < 50, spent_ms


def test_expensive_requests_of_many_connections_do_not_add_up(fresh_node: Node) -> None:
    """One of them in a turn; others are answered in between, and those that keep coming do not
    keep what was left for later from being executed."""
    sleep = encode("DEBUG", "SLEEP", "0.01")
    spent_ms = []
    with Wire(fresh_node.port) as wire:
        for _ in range(3):  # the machine may have been busy with something else
            raws = [Raw(fresh_node.port) for _ in range(64)]
            settle(fresh_node.port)
            fresh_node.freeze()
            for raw in raws:
                raw.send(sleep)
            wire.send("PING")
            started_s = time.perf_counter()
            fresh_node.thaw()
            assert wire.read() == b"PONG"
            spent_ms.append((time.perf_counter() - started_s) * 1000)
            for raw in raws:
                assert raw.read_exactly(5) == b"+OK\r\n"
                raw.close()
    assert min(spent_ms) < 200, spent_ms
    with Raw(fresh_node.port) as patient, Wire(fresh_node.port) as eager:
        patient.send(sleep * 10)
        asked = 0
        while not patient.has_something():
            eager.ask("DEBUG", "SLEEP", "0.01")
            asked += 1
        assert patient.read_exactly(50) == b"+OK\r\n" * 10
        assert asked < 10


# -- replies that nobody reads -------------------------------------------------------------------


def test_a_client_that_never_reads_is_dropped_at_its_bound(fresh_node: Node) -> None:
    node = fresh_node
    request = encode("ECHO", "x" * 32_000)
    with Bystander(node.port):
        before_mib = memory_mib(node, "VmRSS")
        for _ in range(3):
            raw = Raw(node.port, receive_buffer_bytes=4_096)
            sent = 0
            while raw.send(request):
                sent += len(request)
                assert sent < 4 * limits.OUTPUT_BYTES_MAX, "it is not dropped"
            # The kernel holds some megabytes of it.
            assert sent > limits.OUTPUT_BYTES_MAX
            raw.close()
        wait_until(lambda: client_count(node) == 1, "they are forgotten", [node])
    # Each is held once, joined once with what is new, and moved once while its buffer grows.
    bound_mib = 3 * limits.OUTPUT_BYTES_MAX / MIB + 16
    assert memory_mib(node, "VmHWM") - before_mib < bound_mib
    assert memory_mib(node, "VmRSS") - before_mib < 16, "it is given back"


def test_replies_behind_one_that_is_held_back_are_bounded_too(cluster: Cluster) -> None:
    primary, backup = cluster.pair(
        "--backup-timeout-ms", "60000", "--promotion-timeout-ms", "60000"
    )
    before_mib = memory_mib(primary, "VmRSS")
    backup.freeze()
    raw = Raw(primary.port)
    raw.send(encode("LOCK", "held back", "1"))
    settle(primary.port)
    # What can be sent ends where the server hangs up, or reads no more.
    raw.sock.settimeout(1.0)
    request = encode("ECHO", "x" * 60_000)
    sent = 0
    try:
        while raw.send(request) and sent < 4 * limits.HELD_BACK_BYTES_MAX:
            sent += len(request)
    except TimeoutError:
        pass
    settle(primary.port)
    bound_mib = (limits.HELD_BACK_BYTES_MAX + 2 * limits.OUTPUT_BYTES_MAX) / MIB + 16
    assert memory_mib(primary, "VmHWM") - before_mib < bound_mib
    backup.thaw()


@pytest.mark.parametrize("command", ["COMMAND DOCS", "COMMAND", "INFO", "INSPECT x", "CLIENT LIST"])
def test_short_requests_with_long_answers_stay_within_the_bound_too(
    fresh_node: Node, command: str
) -> None:
    node = fresh_node
    with Bystander(node.port):
        before_mib = memory_mib(node, "VmRSS")
        raw = Raw(node.port, receive_buffer_bytes=4_096)
        sent = 0
        while raw.send(f"{command}\r\n".encode() * 1_000):
            sent += 1_000
            assert sent < 10_000_000, "it is not dropped"
        wait_until(lambda: client_count(node) == 1, "it is forgotten", [node])
    assert memory_mib(node, "VmHWM") - before_mib < 3 * limits.OUTPUT_BYTES_MAX / MIB + 16


def test_a_slow_reader_gets_every_byte(node: Node, bystander: Bystander) -> None:
    raw = Raw(node.port, receive_buffer_bytes=4_096)
    payloads = [b"%06d" % number + b"x" * 8_000 for number in range(1_500)]
    raw.send(b"".join(encode("ECHO", payload) for payload in payloads) + encode("QUIT"))
    expected = b"".join(b"$8006\r\n%b\r\n" % payload for payload in payloads) + b"+OK\r\n"
    received = bytearray()
    while len(received) < 300_000:
        received += raw.sock.recv(997)
    assert bytes(received) + raw.read_to_end() == expected


def test_a_pipeline_of_100_000_sent_before_anything_is_read_is_answered_in_order(
    node: Node, bystander: Bystander
) -> None:
    count = 100_000
    requests, lines = [], []
    for number in range(count // 4):
        requests += [
            encode("ECHO", f"{number}"),
            encode("UNLOCK", "pipeline", f"@pipeline:{2 * number}"),
            encode("LOCK", "pipeline", f"@pipeline:{2 * number + 1}"),
            b"PING\r\n",
        ]
        lines += [b"$%d" % len(str(number)), b"%d" % number, b":1", b"token", b"+PONG"]
    lines[2] = b":0"
    with Raw(node.port) as raw:
        assert raw.send(b"".join(requests))
        raw.send(encode("QUIT"))
        answers = raw.read_to_end().split(b"\r\n")
    assert answers[-2:] == [b"+OK", b""]
    tokens = [int(token[1:]) for token in answers[3:-2:5]]
    assert len(tokens) == count // 4
    assert all(earlier < later for earlier, later in itertools.pairwise(tokens))
    answers[3:-2:5] = [b"token"] * len(tokens)
    assert answers[:-2] == lines


# -- many ----------------------------------------------------------------------------------------


def test_slow_requests_are_answered_in_the_end(node: Node, bystander: Bystander) -> None:
    raws = [Raw(node.port) for _ in range(100)]
    requests = [encode("LOCK", f"slow {at}", "1") for at in range(len(raws))]
    for position in range(max(map(len, requests))):
        for raw, request in zip(raws, requests, strict=True):
            raw.send(request[position : position + 1])
    for raw, request in zip(raws, requests, strict=True):
        assert raw.sock.recv(64)[:1] == b":", request
        raw.close()


def test_thousands_of_idle_connections_do_not_matter(node: Node, bystander: Bystander) -> None:
    before = client_count(node)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(2_000, soft - 200)
    assert count > 100, f"only {soft} file descriptors here"
    started_s = time.perf_counter()
    raws = [Raw(node.port) for _ in range(count)]
    wait_until(lambda: client_count(node) == before + count, "all are accepted", [node])
    bystander.goes_on()
    for raw in raws:
        raw.send(PING)
    assert all(raw.read_exactly(7) == PONG for raw in raws)
    print(f"{count} connections in {time.perf_counter() - started_s:.2f} s")
    for raw in raws:
        raw.close()
    wait_until(lambda: client_count(node) == before, "all are forgotten", [node])


def test_beyond_maxclients_a_client_is_told_and_hung_up_on(fresh_node: Node) -> None:
    node = fresh_node
    with node.wire() as operator:
        assert operator.ask("CONFIG", "SET", "maxclients", "5") == b"OK"
        with Bystander(node.port) as bystander:
            raws = [Raw(node.port) for _ in range(3)]
            settled = [raw.send(PING) and raw.read_exactly(7) for raw in raws]
            assert settled == [PONG] * 3
            for _ in range(20):
                refusal = b"-ERR max number of clients reached\r\n"
                assert last_words(node.port, b"") == refusal
            bystander.goes_on()
            raws.pop().close()
            wait_until(lambda: exchange(node.port, b"").stays_open, "there is room again", [node])
            assert operator.ask("PING") == b"PONG"
        for raw in raws:
            raw.close()


def test_a_client_that_is_refused_and_gone_already_harms_nobody(fresh_node: Node) -> None:
    node = fresh_node
    with node.wire() as operator:
        assert operator.ask("CONFIG", "SET", "maxclients", "1") == b"OK"
        node.freeze()  # so that they are gone when they are accepted
        for _ in range(20):
            Raw(node.port).reset()
        node.thaw()
        assert operator.ask("PING") == b"PONG"
        assert operator.ask("CONFIG", "SET", "maxclients", "10000") == b"OK"


def test_a_client_that_is_gone_when_it_is_accepted_harms_nobody(node: Node) -> None:
    with Wire(node.port) as wire:
        assert wire.ask("PING") == b"PONG"
        node.freeze()
        for how in range(60):
            raw = Raw(node.port)
            if how % 3:
                raw.send((PING, ARRAY_BOMB)[how % 2])
            raw.reset() if how % 4 else raw.close()
        node.thaw()
        assert wire.ask("PING") == b"PONG"


JOIN = encode(
    "PEER", "JOIN", PROTOCOL_VERSION, "0123abcd", "4567ef", "1", "-", "0", "0", "0", "fail-stop",
    "3000",
)  # fmt: skip


def test_a_joining_node_that_vanishes_at_once_harms_nobody(fresh_node: Node) -> None:
    node = fresh_node
    with Wire(node.port) as wire:
        assert wire.ask("LOCK", "a", "1")
        for how in range(60):
            raw = Raw(node.port)
            raw.send(JOIN + (b"", b"garbage\r\n", ARRAY_BOMB)[how % 3])
            raw.reset() if how % 4 else raw.close()
            assert wire.ask("PING") == b"PONG"
        assert wire.ask("LOCK", "a", "2") == 0


PEER = [b"peer"]
# What stops the node, changes its role or its settings for good, on purpose.
NOT_FUZZED = {"shutdown", "replicaof", "slaveof", "failover", "config|set", "debug|segfault"}
WORDS: tuple[bytes, ...] = (
    b"", b"0", b"1", b"-1", b"9999999999", b"9" * 30, b"x", b"*", b"@c:1", b"\x00\r\n\xff", b"[",
    b"\\", b"y" * 600, b"lock", b"ON", b"OFF", b"ID", b"ADDR", b"TYPE", b"normal", b"MATCH",
    b"OWNER", b"REQUEST", b"GETKEYS", b"0.001", b"JOIN", b"PROPOSE",
    b"VIEW", b"-", PROTOCOL_VERSION, PROTOCOL_VERSION, b"0123abcd",
)  # fmt: skip


def every_command(node: Node) -> list[list[bytes]]:
    """All commands and subcommands that the node names, as the words that call them."""
    with node.wire() as wire:
        listed = wire.ask("COMMAND", "LIST")
        described = wire.ask("COMMAND", "INFO")
    assert isinstance(listed, list)
    assert isinstance(described, list)
    names = {name.decode() for name in listed} | {"peer"}
    names |= {sub[0].decode() for command in described for sub in command[9]}
    return [name.encode().split(b"|") for name in sorted(names - NOT_FUZZED)]


def test_no_arguments_of_any_command_harm_the_node(fresh_node: Node, rng: random.Random) -> None:
    commands = every_command(fresh_node)
    assert [b"lock"] in commands
    assert [b"client", b"list"] in commands
    for command in commands:
        for _ in range(30):
            words = [*command, *rng.choices(WORDS, k=rng.randint(0, 9 if command == PEER else 4))]
            if words[0] == b"debug" and words[1:2] == [b"SLEEP"]:
                words[2:] = [b"0.001"]
            last = encode(*words)
            answer = answer_to(fresh_node.port, last)
            assert not answer or answer[:1] in b"+-:$*%=_~,#", words
            assert fresh_node.is_running, words
        assert fresh_node.answers(), last


def test_a_client_that_is_gone_when_its_command_runs_harms_nobody(fresh_node: Node) -> None:
    node = fresh_node
    requests = [
        encode(*command, *words)
        for command in every_command(node)
        for words in ((), ("1",), ("1", "1"))
    ]
    requests += [
        encode("DEBUG", "SLEEP", "0"),
        encode("CLIENT", "KILL", "ID", "1"),
        encode("PEER", "ASK", PROTOCOL_VERSION),
        JOIN,
    ]
    with Wire(node.port) as wire:
        raws = [Raw(node.port) for _ in requests]
        assert wire.ask("PING") == b"PONG"  # they are accepted
        for some in range(0, len(raws), 25):
            node.freeze()  # so that they are gone when their commands are read
            for raw, request in list(zip(raws, requests, strict=True))[some : some + 25]:
                raw.send(request)
                raw.reset()
            node.thaw()
            assert wire.ask("PING") == b"PONG", requests[some : some + 25]


def test_out_of_file_descriptors_it_stops_accepting_and_recovers(fresh_node: Node) -> None:
    node = fresh_node
    with Bystander(node.port) as bystander:
        used = len(list(Path(f"/proc/{node.pid}/fd").iterdir()))
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (used + 20, used + 20))
        raws = [Raw(node.port) for _ in range(60)]
        node.wait_logged("cannot accept connections for now")
        served = [raw for raw in raws if raw.send(PING)]
        bystander.goes_on()
        wait_until(lambda: sum(raw.has_something() for raw in served) >= 15, "some are served")
        assert sum(raw.has_something() for raw in served) <= 20
        first = [raw for raw in served if raw.has_something()]
        for raw in first:
            raw.close()
        rest = [raw for raw in served if raw not in first]
        for raw in rest[:15]:
            assert raw.read_exactly(7) == PONG
        for raw in rest:
            raw.close()
        wait_until(node.answers, "it accepts again", [node])


# -- anything at all -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [HTTP_GET, HTTP_POST, TLS_HELLO, NESTED, ARRAY_BOMB], ids=lambda data: repr(data[:12])
)
def test_other_protocols_change_nothing(node: Node, bystander: Bystander, data: bytes) -> None:
    with Raw(node.port) as raw:
        raw.send(data)
        settle(node.port)
        bystander.goes_on()


def test_bad_input_changes_nothing_whatever_it_is_cut_into(
    node: Node, bystander: Bystander, rng: random.Random
) -> None:
    """Whole, in two pieces and in single bytes, a bad input is answered and changes no lock."""
    behind = encode("LOCK", "behind bad input", "1")
    for bad in (*BAD, *OURS):
        if len(bad.data) >= LONG:
            continue
        error = b"-ERR Protocol error: " + bad.error.encode() + b"\r\n"
        assert last_words(node.port, PING + bad.data + behind) == PONG + error
        cut = rng.randrange(len(bad.data))
        with Raw(node.port) as raw:
            for piece in (bad.data[:cut], bad.data[cut:], behind):
                raw.send(piece)
                settle(node.port)
            assert raw.read_to_end() == error
    assert node.ask("INSPECT", "behind bad input") == FREE


def test_mutated_sessions_end_orderly_and_harm_nobody(
    node: Node, bystander: Bystander, rng: random.Random
) -> None:
    """Every session ends with what any connection may end with: well-formed replies."""
    corpus = [bad.data for bad in (*BAD, *OURS) if len(bad.data) < LONG]
    corpus += [*GOOD, *IGNORED, *WAITING, HTTP_GET, HTTP_POST, TLS_HELLO]
    corpus += [
        encode("LOCK", "fuzz", "1", "OWNER", "x"),
        encode("UNLOCK", "fuzz", "2", "REQUEST", "1"),
        encode("INSPECT", "fuzz"),
        encode("HELLO", "3"),
        encode("CLIENT", "LIST"),
        encode("COMMAND", "DOCS", "lock"),
        b"CONFIG GET *\r\n",
    ]
    for _ in range(1_000):
        data = mutate(b"".join(rng.choices(corpus, k=rng.randint(1, 4))), rng)
        answer = answer_to(node.port, data)
        assert not answer or answer[:1] in b"+-:$*%=_~,#", (data, answer)
        assert not answer or answer.endswith(b"\r\n"), (data, answer)
    bystander.goes_on()


def test_mutated_names_and_request_ids_come_back_as_they_were_sent(
    node: Node, rng: random.Random
) -> None:
    for _ in range(300):
        name = rng.randbytes(rng.randint(1, 40)) + struct.pack("<d", rng.random())
        owner = rng.randbytes(rng.randint(1, limits.NAME_BYTES_MAX))
        with Wire(node.port) as wire:
            assert wire.ask("LOCK", name, b"r" + rng.randbytes(20), "OWNER", owner)
            shown = wire.ask("INSPECT", name)
            assert isinstance(shown, list)
            assert shown[shown.index(b"owner") + 1] == owner
    assert exchange(node.port, encode("INSPECT", name)).stays_open
