"""A lock is a key: GET, DEL, EXISTS, TTL, PTTL and TYPE; LOCKS; the bounds; and what a backup says.

How the commands on keys compare with a real Redis stands in test_commands_beside_redis.py.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.alone import info_of
from harness.bounded import Bounded
from harness.processes import Cluster, Node, wait_until
from harness.raw import lone_node
from harness.wire import ReplyError, Wire, as_map, encode

from holdfast.server.core import limits

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One for the whole file: each test takes names and ids of its own, and gives them back."""
    with lone_node(tmp_path_factory.mktemp("keys")) as node:
        yield node


@pytest.fixture(params=["2", "3"], ids=["RESP2", "RESP3"])
def wire(node: Node, request: pytest.FixtureRequest) -> Iterator[Wire]:
    """A connection; nothing is held at its beginning."""
    with node.wire() as wire:
        wire.ask("HELLO", request.param)
        while names := [lock["name"] for lock in walk(wire)]:
            wire.ask("DEL", *names[: limits.NAMES_MAX])
        yield wire


def reqid() -> str:
    """A request id nobody has used."""
    return f"request {next(_numbers)}"


def lock(wire: Wire, name: str | bytes, *options: str | int) -> int:
    """Take a free lock: its fencing token."""
    token = wire.ask("LOCK", name, reqid(), *options)
    assert isinstance(token, int) and token > 0
    return token


def page(wire: Wire, cursor: int, *options: str | int) -> tuple[int, list[dict[str, Any]]]:
    """One LOCKS: the next cursor, and the locks."""
    reply = wire.ask("LOCKS", cursor, *options)
    assert isinstance(reply, list)
    next_cursor, locks = reply
    assert isinstance(next_cursor, bytes), "as SCAN has it"
    return int(next_cursor), [as_map(each) for each in locks]


def walk(wire: Wire, *options: str | int) -> Iterator[dict[str, Any]]:
    """All pages of LOCKS."""
    cursor = 0
    while True:
        cursor, locks = page(wire, cursor, *options)
        yield from locks
        if not cursor:
            return


def error(wire: Wire, *words: str | bytes | int) -> str:
    """The error that a request is answered with; it changes nothing."""
    before = wire.digest()
    with pytest.raises(ReplyError) as caught:
        wire.ask(*words)
    assert wire.digest() == before, words
    return str(caught.value)


# -- keys ----------------------------------------------------------------------------------------


def test_the_value_of_a_lock_is_its_owner(wire: Wire) -> None:
    assert wire.ask("GET", "a") is None
    lock(wire, "a", "OWNER", "me")
    assert wire.ask("GET", "a") == b"me"
    wire.ask("DEL", "a")
    request = reqid()
    wire.ask("LOCK", "a", request)
    assert wire.ask("get", "a") == request.encode()


def test_the_time_to_live_of_a_lock_is_its_lease(wire: Wire) -> None:
    assert wire.ask("TTL", "a") == wire.ask("PTTL", "a") == -2
    lock(wire, "a")
    assert wire.ask("TTL", "a") == wire.ask("PTTL", "a") == -1
    lock(wire, "b", "EX", 100)
    left_ms = wire.ask("PTTL", "b")
    assert isinstance(left_ms, int) and 60_000 < left_ms <= 100_000
    left_s = wire.ask("TTL", "b")
    assert isinstance(left_s, int) and 60 < left_s <= 100


def test_a_held_lock_is_a_string_and_exists(wire: Wire) -> None:
    assert wire.ask("TYPE", "a") == b"none"
    lock(wire, "a")
    assert wire.ask("TYPE", "a") == b"string"
    assert wire.ask("EXISTS", "a", "b", "a", "a") == 3
    assert wire.ask("EXISTS", "b") == 0


def test_a_key_whose_lease_has_passed_is_gone_for_every_command(node: Node, wire: Wire) -> None:
    """Whoever asks first sees it, not only the timer: the question comes while the node is busy.

    That holds in turns that are on time. In a late one the lease goes on until all input has been
    read (test_live_leases), so a round for which this machine took too long shows nothing.
    """
    gone = {"GET": None, "TTL": -2, "PTTL": -2, "TYPE": b"none", "EXISTS": 0, "DEL": 0}
    for command, answer in gone.items():
        for _ in range(200):
            expired = int(info_of_wire(wire)["locks_lease_expired_total"])
            with node.wire() as other:
                started_s = time.monotonic()
                wire.send("LOCK", "short", reqid(), "PX", 1)
                wire.send("DEBUG", "SLEEP", "0.005")
                time.sleep(0.002)
                other.send(command, "short")
                assert wire.read() != 0
                assert wire.read() == b"OK"
                answered = other.read()
                was_on_time = time.monotonic() - started_s < limits.LATE_MS / 1000
            if was_on_time:
                break
        else:
            raise AssertionError("this machine is never on time")
        assert answered == answer, command
        assert int(info_of_wire(wire)["locks_lease_expired_total"]) == expired + 1


def info_of_wire(wire: Wire) -> dict[str, str]:
    """INFO of the locks, over a connection that there is."""
    text = wire.ask("INFO", "locks")
    assert isinstance(text, bytes)
    return dict(line.split(":", 1) for line in text.decode().split("\r\n") if ":" in line)


def test_del_releases_whoever_holds_it_and_counts(wire: Wire) -> None:
    token = lock(wire, "a", "OWNER", "somebody")
    lock(wire, "b", "PX", 60_000)
    before = int(info_of_wire(wire)["locks_forced_total"])
    assert wire.ask("DEL", "a", "c", "a", "b") == 2
    assert wire.ask("DEL", "a", "b", "c") == 0
    assert wire.ask("VERIFY", "a", token) == 0
    assert int(info_of_wire(wire)["locks_forced_total"]) == before + 2


def test_a_released_key_goes_to_the_first_in_line(node: Node, wire: Wire) -> None:
    """DEL hands on as UNLOCK does; and each name of it by itself."""
    names = [reqid() for _ in range(3)]
    waiting = []
    for name in names:
        lock(wire, name)
        for number in range(2):
            each = node.wire()
            each.send("LOCK", name, reqid(), "WAIT", 60_000, "OWNER", f"{name} {number}")
            waiting.append(each)
            wait_until(lambda n=name, c=number: wire.inspect(n)["waiter_count"] == c + 1, "in line")
    assert wire.ask("DEL", *names) == 3
    for name, first, second in zip(names, waiting[::2], waiting[1::2], strict=True):
        assert first.read() != 0
        assert wire.ask("GET", name) == f"{name} 0".encode()
        second.close()
        first.close()


def test_del_of_one_name_twice_releases_who_was_granted_it_in_between(
    node: Node, wire: Wire
) -> None:
    """As a second DEL behind the first would."""
    name = reqid()
    lock(wire, name)
    with node.wire() as waiting:
        waiting.send("LOCK", name, reqid(), "WAIT", 60_000)
        wait_until(lambda: wire.inspect(name)["waiter_count"] == 1, "it waits")
        assert wire.ask("DEL", name, name) == 2
        token = waiting.read()
        assert isinstance(token, int) and token > 0
        assert wire.ask("VERIFY", name, token) == 0


@pytest.mark.parametrize("name", [b"", b"n" * 513, b"n" * 60_000], ids=len)
def test_names_that_no_lock_can_have_are_keys_that_do_not_exist(wire: Wire, name: bytes) -> None:
    before = wire.digest()
    assert wire.ask("GET", name) is None
    assert wire.ask("TTL", name) == wire.ask("PTTL", name) == -2
    assert wire.ask("TYPE", name) == b"none"
    assert wire.ask("EXISTS", name) == wire.ask("DEL", name, name) == 0
    assert wire.digest() == before


def test_one_command_has_at_most_1000_keys(wire: Wire) -> None:
    names = [f"k{number}" for number in range(limits.NAMES_MAX)]
    wire.sock.sendall(b"".join(encode("LOCK", name, reqid()) for name in names))
    assert all(wire.read() for _ in names)
    for command in ("EXISTS", "DEL"):
        said = error(wire, command, *names, "one more")
        assert said == "ERR at most 1000 keys in one command"
    assert wire.ask("EXISTS", *names) == limits.NAMES_MAX
    assert wire.ask("DEL", *names) == limits.NAMES_MAX
    assert wire.ask("EXISTS", *names) == 0


@pytest.mark.parametrize("command", ["GET", "TTL", "PTTL", "TYPE", "EXISTS", "DEL"])
def test_a_wrong_number_of_keys_is_said_in_redis_words(wire: Wire, command: str) -> None:
    said = f"ERR wrong number of arguments for '{command.lower()}' command"
    assert error(wire, command) == said
    if command not in ("EXISTS", "DEL"):
        assert error(wire, command, "a", "b") == said


# -- LOCKS ---------------------------------------------------------------------------------------


def test_locks_shows_what_is_held(node: Node, wire: Wire) -> None:
    assert page(wire, 0) == (0, [])
    token = lock(wire, b"\x00a", "OWNER", "me", "PX", 60_000)
    name = reqid()  # (whoever has waited for it before is still in line for a moment)
    other = lock(wire, name)
    with node.wire() as waiting:
        waiting.send("LOCK", name, reqid(), "WAIT", 60_000)
        wait_until(lambda: wire.inspect(name)["waiter_count"] == 1, "it waits")
        cursor, [second, first] = page(wire, 0)
        assert cursor == 0
        held_ms, left_ms = first.pop("held_ms"), first.pop("remaining_ms")
        assert 0 <= held_ms and 0 < left_ms <= 60_000
        assert first == {
            "name": b"\x00a", "owner": b"me", "fencing_token": token, "waiter_count": 0,
        }  # fmt: skip
        assert second["fencing_token"] == other and second["remaining_ms"] == -1
        assert second["waiter_count"] == 1


def test_a_lock_is_a_map_in_resp3_and_a_flat_list_in_resp2(node: Node) -> None:
    with node.wire() as wire:
        lock(wire, "shape")
        reply = wire.ask("LOCKS", "0", "MATCH", "shape")
        assert isinstance(reply, list) and isinstance(reply[1][0], list)
        wire.ask("HELLO", "3")
        reply = wire.ask("LOCKS", "0", "MATCH", "shape")
        assert isinstance(reply, list) and isinstance(reply[1][0], dict)


@pytest.mark.parametrize("count", [1, 2, 7, 10, 100, 101, 1000])
def test_a_walk_shows_every_lock_once_however_large_its_pages(wire: Wire, count: int) -> None:
    names = [b"w%d" % number for number in range(100)]
    for name in names:
        lock(wire, name)
    newest_first = names[::-1]
    assert [each["name"] for each in walk(wire, "COUNT", count)] == newest_first
    cursor, locks = page(wire, 0, "count", count)
    assert len(locks) == min(count, 100) and bool(cursor) == (count < 100)
    assert len(page(wire, 0)[1]) == 10, "as SCAN has it"


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("*", 30), ("w*", 20), ("w1?", 10), ("w[0-4]", 5), ("w[^0-4]", 5), ("", 0), ("x\\*", 1),
        ("x*", 10), ("W*", 0), ("*" * limits.GLOBS_BYTES_MAX, 30), ("nobody", 0),
    ],
)  # fmt: skip
def test_match_chooses_names(wire: Wire, glob: str, found: int) -> None:
    for number in range(20):
        lock(wire, f"w{number}")
    for suffix in ("*", *map(str, range(9))):
        lock(wire, f"x{suffix}")
    names = [each["name"] for each in walk(wire, "MATCH", glob, "COUNT", 3)]
    assert len(names) == len(set(names)) == found
    assert [each["name"] for each in walk(wire, "COUNT", 1000, "MATCH", glob)] == names


def test_a_pattern_has_at_most_512_bytes(wire: Wire) -> None:
    longest = "?" * limits.GLOBS_BYTES_MAX
    lock(wire, "n" * limits.GLOBS_BYTES_MAX)
    assert len(page(wire, 0, "MATCH", longest)[1]) == 1
    said = error(wire, "LOCKS", "0", "MATCH", longest + "?")
    assert said == f"ERR the pattern is longer than {limits.GLOBS_BYTES_MAX} bytes"


@pytest.mark.parametrize("cursor", [1, 10**15, 2**63 - 1])
def test_a_cursor_of_ones_own_making_is_harmless(wire: Wire, cursor: int) -> None:
    lock(wire, "a")
    _, locks = page(wire, cursor)
    assert len(locks) <= 10


def test_a_walk_finds_what_stays_while_locks_come_and_go(node: Node, wire: Wire) -> None:
    """Others come, go, are granted anew and renewed between its pages."""
    rng = random.Random(1)
    staying = {b"stay %d" % number for number in range(200)}
    moving = [b"move %d" % number for number in range(200)]
    tokens = {}
    for name in rng.sample([*staying, *moving], 400):
        tokens[name] = lock(wire, name, "PX", 60_000)
    with node.wire() as other:
        for count in (7, 50, 20):
            found, cursor = [], 0
            while True:
                cursor, locks = page(wire, cursor, "COUNT", count)
                found += [each["name"] for each in locks]
                for name in rng.sample(moving, 5):  # fewer than a page: the walk gains on them
                    if not other.ask("DEL", name):
                        lock(other, name)
                for name in rng.sample(sorted(staying), 5):
                    assert other.ask("RENEW", name, tokens[name], "PX", 70_000) == 1
                if rng.random() < 0.1:
                    assert list(walk(other, "COUNT", 100)), "another walk goes on beside it"
                if not cursor:
                    break
            assert staying <= set(found)
            assert sum(name in staying for name in found) == len(staying), "each once"


def test_a_walk_of_expired_locks_shows_none_of_them(wire: Wire) -> None:
    for number in range(50):
        lock(wire, f"short {number}", "PX", 20)
    wait_until(lambda: wire.ask("PTTL", "short 49") == -2, "they have ended")
    assert list(walk(wire)) == []
    assert wire.ask("DBSIZE") == 0


# -- bounds --------------------------------------------------------------------------------------


@pytest.fixture
def bounded(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Starts a node without a peer, with other bounds."""
    clusters: list[Cluster] = []

    def start(**bounds: int) -> Node:
        clusters.append(Cluster(tmp_path, Bounded(**bounds)))
        node = clusters[-1].node("N").start("--log-level", "info")
        wait_until(node.answers, "it answers", [node])
        return node

    yield start
    for cluster in clusters:
        cluster.close()


def test_the_waiters_of_a_lock_are_bounded(bounded: Callable[..., Node]) -> None:
    node = bounded(WAITERS_PER_LOCK_MAX=3)
    with node.wire() as wire:
        lock(wire, "a")
        lock(wire, "b")
        waiting = [node.wire() for _ in range(5)]
        for number, each in enumerate(waiting[:3]):
            each.send("LOCK", "a", f"w{number}", "WAIT", 60_000)
        wait_until(lambda: wire.inspect("a")["waiter_count"] == 3, "the line is full")
        said = "ERR too many waiters are in line; nothing was done, try again later"
        assert error(wire, "LOCK", "a", "w3", "WAIT", 60_000) == said
        assert error(wire, "LOCK", "a", "@c:5", "WAIT", 60_000) == said
        assert wire.ask("LOCK", "a", "r", "WAIT", 0) == 0, "who does not wait is refused as ever"
        waiting[3].send("LOCK", "a", "w2", "WAIT", 60_000)  # a repeat joins the wait that there is
        waiting[4].send("LOCK", "b", "w4", "WAIT", 60_000)  # another line
        wait_until(lambda: wire.inspect("b")["waiter_count"] == 1, "it waits")
        for number in range(3):
            assert wire.ask("UNLOCK", "a", reqid()) == 1
            assert waiting[number].read() != 0
        assert waiting[3].read() != 0
        assert wire.ask("UNLOCK", "a", reqid()) == 1
        assert wire.ask("LOCK", "a", "w3", "WAIT", 60_000) != 0, "its refusal was not remembered"
        assert wire.ask("LOCK", "c", "@c:4") != 0, "nor has it frozen anything"


def test_the_waiters_of_all_locks_are_bounded(bounded: Callable[..., Node]) -> None:
    node = bounded(WAITERS_MAX=3)
    with node.wire() as wire:
        waiting = [node.wire() for _ in range(3)]
        for number, each in enumerate(waiting):
            lock(wire, f"a{number}")
            each.send("LOCK", f"a{number}", f"w{number}", "WAIT", 60_000)
        wait_until(lambda: info_of(node)["locks_waiters"] == "3", "the lines are full")
        assert error(wire, "LOCK", "a0", "w3", "WAIT", 1).startswith("ERR too many waiters")
        waiting[1].close()
        wait_until(lambda: info_of(node)["locks_waiters"] == "2", "its place is given up", [node])
        assert wire.ask("LOCK", "a0", "w3", "WAIT", 1) == 0


def test_the_locks_are_bounded(bounded: Callable[..., Node]) -> None:
    node = bounded(LOCKS_MAX=3)
    with node.wire() as wire:
        for number in range(3):
            lock(wire, f"a{number}")
        for options in ((), ("PX", 1000), ("WAIT", 1000), ("OWNER", "me")):
            assert error(wire, "LOCK", "a3", "r3", *options) == "ERR too many locks are held"
        assert wire.ask("EXISTS", "a0", "a1", "a2") == 3, "nothing is evicted"
        assert wire.ask("DEL", "a0") == 1
        assert wire.ask("LOCK", "a3", "r3") != 0


# -- on the backup -------------------------------------------------------------------------------

ON_STATE: tuple[tuple[str | int, ...], ...] = (
    ("LOCK", "a", "r"), ("LOCK", "a", "r", "PX", 5, "WAIT", 5, "OWNER", "o"), ("UNLOCK", "a", "r"),
    ("UNLOCK", "a", "r", "TOKEN", 1), ("UNLOCK", "a", "r", "REQUEST", "q"), ("INSPECT", "a"),
    ("RENEW", "a", 1, "PX", 5), ("VERIFY", "a", 1), ("LOCKS", 0), ("GET", "a"), ("DEL", "a", "b"),
    ("EXISTS", "a", "b"), ("TTL", "a"), ("PTTL", "a"), ("TYPE", "a"),
)  # fmt: skip


def test_a_backup_answers_none_of_it_but_tells_its_digest(forked_cluster: Cluster) -> None:
    primary, backup = forked_cluster.pair()
    with primary.wire() as wire, backup.wire() as other:
        lock(wire, "a", "PX", 600_000)
        for number in range(2_500):
            wire.send("LOCK", f"b{number}", reqid(), "PX", 600_000)
        assert all(wire.read() for _ in range(2_500))
        for words in ON_STATE:
            said = error(other, *words)
            assert said.startswith("READONLY "), words
        assert wire.digest() == other.digest()


def test_a_node_without_state_answers_none_of_it(forked_cluster: Cluster) -> None:
    node = forked_cluster.node("B")
    node.start("--replicaof", f"127.0.0.1:{forked_cluster.port().number}", "--log-level", "info")
    wait_until(node.answers, "it is up", [node])
    with node.wire() as wire:
        for words in (*ON_STATE, ("DEBUG", "DIGEST")):
            with pytest.raises(ReplyError, match="LOADING "):
                wire.ask(*words)
