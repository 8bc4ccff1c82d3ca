"""Waiting on real nodes: first come, first served (I9); one release wakes one waiter; and what
becomes of a waiter whose connection, or whose node, goes away."""

from __future__ import annotations

import contextlib
import itertools
import resource
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.alone import info_of
from harness.ports import HOST
from harness.processes import Cluster, Node, wait_until
from harness.programs import needed
from harness.raw import Raw, lone_node, settle
from harness.wire import Closed, ReplyError, Wire, encode

from holdfast.server.core import limits

WAIT = 60_000
GRACE_S = 2.0
"""How long the place of a waiter whose connection is gone is kept."""

_numbers = itertools.count(1)


def unique(what: str = "r") -> str:
    """A name or request id nobody has used."""
    return f"{what} {next(_numbers)}"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One for most of the file: each test takes names and ids of its own."""
    with lone_node(tmp_path_factory.mktemp("waiting")) as node:
        yield node


@pytest.fixture
def wire(node: Node) -> Iterator[Wire]:
    """The connection that holds, looks and releases."""
    with node.wire() as wire:
        yield wire


@pytest.fixture
def name(wire: Wire) -> str:
    """A lock that is held."""
    name = unique("lock")
    assert wire.ask("LOCK", name, unique()) != 0
    return name


@pytest.fixture
def connect(node: Node) -> Iterator[Callable[[], Wire]]:
    """Makes connections, which are closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(node.wire())


def in_line(wire: Wire, name: str) -> list[str]:
    """The owners of those who stand in line, the first in line first."""
    return [owner.decode() for owner, _ in wire.inspect(name)["waiters"]]


def wait_in_line(wire: Wire, name: str, *owners: str) -> None:
    """Wait until exactly these stand in line."""
    wait_until(lambda: in_line(wire, name) == list(owners), f"{owners} stand in line for {name}")


def join(each: Wire, name: str, reqid: str, *options: str | int) -> None:
    """Stand in line; back when it does. (What is sent before LOCK is answered once all of the
    pipeline was looked at.)"""
    each.sock.sendall(encode("PING") + encode("LOCK", name, reqid, "WAIT", WAIT, *options))
    assert each.read() == b"PONG"


def hung_up(each: Wire) -> bool:
    """Whether the server has closed this connection without a word."""
    with pytest.raises(Closed):
        each.read()
    return True


# -- the line ------------------------------------------------------------------------------------


def test_waiters_are_granted_in_the_order_in_which_they_joined(
    wire: Wire, name: str, connect: Callable[[], Wire]
) -> None:
    waiting = [connect() for _ in range(20)]
    for number, each in enumerate(waiting):
        join(each, name, f"{name} {number}", "OWNER", f"o{number}")
    assert in_line(wire, name) == [f"o{number}" for number in range(20)]
    tokens = []
    for number, each in enumerate(waiting):
        assert wire.ask("UNLOCK", name, unique()) == 1
        tokens.append(each.read())
        assert wire.ask("GET", name) == f"o{number}".encode()
    assert tokens == sorted(tokens) and len(set(tokens)) == 20


@pytest.mark.parametrize(
    "release", ["UNLOCK", "UNLOCK TOKEN", "UNLOCK REQUEST", "DEL", "a lease that ends"]
)
def test_whatever_ends_a_grant_wakes_exactly_one(
    node: Node, wire: Wire, connect: Callable[[], Wire], release: str
) -> None:
    """The others are sent not one byte."""
    name, holder = unique("lock"), unique()
    lease = ("PX", "150") if release == "a lease that ends" else ()
    token = wire.ask("LOCK", name, holder, *lease)
    assert isinstance(token, int) and token > 0
    waiting = [connect() for _ in range(30)]
    for number, each in enumerate(waiting):
        join(each, name, f"{name} {number}")
    if not lease:
        options = {"UNLOCK TOKEN": ("TOKEN", token), "UNLOCK REQUEST": ("REQUEST", holder)}
        if release == "DEL":
            assert wire.ask("DEL", name) == 1
        else:
            assert wire.ask("UNLOCK", name, unique(), *options.get(release, ())) == 1
    assert waiting[0].read() != 0
    settle(node.port)
    socks = [each.sock for each in waiting]
    assert select.select(socks, [], [], 0)[0] == []
    assert wire.inspect(name)["waiter_count"] == 29


def test_a_newcomer_does_not_pass_those_in_line(
    wire: Wire, name: str, connect: Callable[[], Wire]
) -> None:
    waiting = connect()
    join(waiting, name, unique())
    wire.sock.sendall(encode("UNLOCK", name, unique()) + encode("LOCK", name, unique()))
    assert wire.read() == 1
    assert wire.read() == 0
    assert waiting.read() != 0


def test_a_wait_that_runs_out_leaves_the_line(
    wire: Wire, name: str, connect: Callable[[], Wire]
) -> None:
    first, second = connect(), connect()
    before = int(info_of_wire(wire)["locks_timeouts_total"])
    first.sock.sendall(encode("PING") + encode("LOCK", name, "short", "WAIT", 100))
    assert first.read() == b"PONG"
    join(second, name, "long")
    assert first.read() == 0
    assert in_line(wire, name) == ["long"]
    assert int(info_of_wire(wire)["locks_timeouts_total"]) == before + 1
    wire.ask("UNLOCK", name, unique())
    assert second.read() != 0


def test_two_connections_with_the_same_request_wait_as_one_and_both_are_answered(
    wire: Wire, name: str, connect: Callable[[], Wire]
) -> None:
    one, other, behind = connect(), connect(), connect()
    join(one, name, "same")
    join(behind, name, "behind")
    join(other, name, "same")
    assert in_line(wire, name) == ["same", "behind"]
    one.close()
    settle_wire(wire)
    assert in_line(wire, name) == ["same", "behind"]
    wire.ask("UNLOCK", name, unique())
    token = other.read()
    assert isinstance(token, int) and wire.ask("VERIFY", name, token) == 1


def test_undo_ends_a_wait_and_so_does_the_next_request_of_the_client(
    wire: Wire, name: str, connect: Callable[[], Wire]
) -> None:
    opaque, first, second = connect(), connect(), connect()
    join(opaque, name, "opaque")
    join(first, name, "@one:1")
    join(second, name, "@two:1")
    assert wire.ask("UNLOCK", name + " other", "u", "REQUEST", "opaque") == 0
    assert len(in_line(wire, name)) == 3, "that was the request for another lock"
    assert wire.ask("UNLOCK", name, "u", "REQUEST", "opaque") == 0
    assert opaque.read() == 0
    assert wire.ask("UNLOCK", name, "@one:2", "REQUEST", "@one:1") == 0
    assert first.read() == 0
    assert wire.ask("LOCK", unique("lock"), "@two:2") != 0
    assert second.read() == 0
    with pytest.raises(ReplyError, match="REQUESTGONE"):
        wire.ask("LOCK", name, "@two:1", "WAIT", WAIT)
    assert in_line(wire, name) == []
    assert wire.ask("LOCK", name, "opaque", "WAIT", WAIT) == 0, "refused, for good"


def test_waiting_blocks_nobody_else(wire: Wire, name: str, connect: Callable[[], Wire]) -> None:
    waiting = connect()
    join(waiting, name, unique())
    for _ in range(100):
        assert wire.ask("PING") == b"PONG"
        other = unique("lock")
        assert wire.ask("LOCK", other, unique(), "WAIT", WAIT) != 0
        assert wire.ask("UNLOCK", other, unique()) == 1
    assert waiting.is_silent_for(0.01)


# -- pipelines, MULTI, CLIENT REPLY --------------------------------------------------------------


@pytest.mark.parametrize("pieces", ["in one piece", "in many"])
def test_what_stands_behind_a_waiting_lock_waits_too_and_answers_keep_their_order(
    wire: Wire, name: str, connect: Callable[[], Wire], pieces: str
) -> None:
    each, behind = connect(), unique("lock")
    requests = [
        encode("ECHO", "before"),
        encode("LOCK", name, "waits", "WAIT", WAIT),
        encode("ECHO", "behind"),
        encode("LOCK", behind, "b"),
        encode("NONSENSE"),
        encode("UNLOCK", name, "u"),
        encode("LOCK", name, "again", "WAIT", WAIT),
        encode("ECHO", "last"),
    ]
    if pieces == "in one piece":
        each.sock.sendall(b"".join(requests))
    else:
        for request in requests:
            each.sock.sendall(request)
            settle_wire(wire)
    assert each.read() == b"before"
    wait_in_line(wire, name, "waits")
    assert each.is_silent_for(0.05)
    assert wire.inspect(behind)["state"] == b"free", "what is behind is not executed"
    wire.ask("UNLOCK", name, unique())
    assert each.read() != 0
    assert each.read() == b"behind"
    assert each.read() != 0
    with pytest.raises(ReplyError, match="unknown command"):
        each.read()
    assert each.read() == 1
    assert each.read() != 0
    assert each.read() == b"last"


def test_what_stands_behind_a_wait_is_not_executed_when_the_client_hangs_up(
    node: Node, wire: Wire, name: str
) -> None:
    behind = unique("lock")
    with Raw(node.port) as raw:
        raw.send(encode("LOCK", name, "waits", "WAIT", WAIT) + encode("LOCK", behind, "b"))
        wait_in_line(wire, name, "waits")
    wait_until(lambda: not is_waiting(wire), "it has been noticed")
    wire.ask("UNLOCK", name, unique())
    assert wire.inspect(name)["state"] == wire.inspect(behind)["state"] == b"free"


def test_a_lock_between_multi_and_exec_does_not_wait(
    wire: Wire, name: str, connect: Callable[[], Wire]
) -> None:
    each = connect()
    each.sock.sendall(
        encode("MULTI") + encode("LOCK", name, "m", "WAIT", WAIT) + encode("EXEC") + encode("PING")
    )
    for _ in range(3):
        with pytest.raises(ReplyError):
            each.read()
    assert each.read() == b"PONG"
    assert in_line(wire, name) == []


def test_a_waiter_that_wants_no_reply_is_granted_all_the_same(
    wire: Wire, name: str, connect: Callable[[], Wire]
) -> None:
    off, skip = connect(), connect()
    off.sock.sendall(
        encode("CLIENT", "REPLY", "OFF")
        + encode("LOCK", name, "off", "WAIT", WAIT)
        + encode("PING")
        + encode("CLIENT", "REPLY", "ON")
        + encode("ECHO", "on again")
    )
    wait_in_line(wire, name, "off")
    skip.sock.sendall(
        encode("CLIENT", "REPLY", "SKIP")
        + encode("LOCK", name, "skip", "WAIT", WAIT)
        + encode("ECHO", "not skipped")
    )
    wait_in_line(wire, name, "off", "skip")
    assert off.is_silent_for(0.05)
    wire.ask("UNLOCK", name, unique())
    assert off.read() == b"OK"
    assert off.read() == b"on again"
    assert wire.ask("GET", name) == b"off"
    assert skip.is_silent_for(0.05)
    wire.ask("UNLOCK", name, unique())
    assert skip.read() == b"not skipped"
    assert wire.ask("GET", name) == b"skip"


# -- a waiter whose connection goes away ---------------------------------------------------------


def info_of_wire(wire: Wire, *sections: str) -> dict[str, str]:
    """INFO over a connection that there is."""
    text = wire.ask("INFO", *sections)
    assert isinstance(text, bytes)
    return dict(line.split(":", 1) for line in text.decode().split("\r\n") if ":" in line)


def is_waiting(wire: Wire) -> bool:
    """Whether any connection waits."""
    return info_of_wire(wire, "clients")["blocked_clients"] != "0"


def settle_wire(wire: Wire) -> None:
    """Give the server some turns."""
    for _ in range(3):
        assert wire.ask("PING") == b"PONG"


def leave(node: Node, wire: Wire, raw: Raw, how: str) -> None:
    """Go away as a client does; back when the server has noticed."""
    before = int(info_of_wire(wire, "clients")["blocked_clients"])
    if how == "close":
        raw.close()
    elif how == "reset":
        raw.reset()
    elif how == "half-close":
        raw.finish()
        assert raw.read_to_end() == b"", "nothing is said to it"
    else:
        own = f"{HOST}:{raw.sock.getsockname()[1]}"
        assert wire.ask("CLIENT", "KILL", own) == b"OK"
        assert raw.read_to_end() == b"", "nothing is said to it"
    wait_until(
        lambda: int(info_of_wire(wire, "clients")["blocked_clients"]) == before - 1,
        "it has been noticed",
    )


@pytest.mark.parametrize("how", ["close", "reset", "half-close", "CLIENT KILL"])
def test_a_waiter_that_is_gone_is_passed_over_and_never_granted(
    node: Node, wire: Wire, name: str, connect: Callable[[], Wire], how: str
) -> None:
    raw, second = Raw(node.port), connect()
    raw.send(encode("LOCK", name, "first", "WAIT", WAIT))
    wait_in_line(wire, name, "first")
    join(second, name, "second")
    leave(node, wire, raw, how)
    wire.ask("UNLOCK", name, unique())
    assert second.read() != 0
    assert wire.ask("GET", name) == b"second"
    wire.ask("UNLOCK", name, unique())
    assert wire.inspect(name)["state"] == b"free"
    raw.close()


@pytest.mark.parametrize("how", ["close", "reset", "half-close", "CLIENT KILL"])
def test_its_place_is_kept_for_a_repeat_of_the_request(
    node: Node, wire: Wire, name: str, connect: Callable[[], Wire], how: str
) -> None:
    raw, second, again = Raw(node.port), connect(), connect()
    raw.send(encode("LOCK", name, "first", "WAIT", WAIT))
    wait_in_line(wire, name, "first")
    join(second, name, "second")
    left_s = time.monotonic()
    leave(node, wire, raw, how)
    join(again, name, "first")
    assert time.monotonic() < left_s + GRACE_S, "(too slow a machine)"
    assert in_line(wire, name) == ["first", "second"]
    wire.ask("UNLOCK", name, unique())
    assert again.read() != 0
    assert wire.ask("GET", name) == b"first"
    raw.close()


def test_its_place_is_lost_after_the_grace_period(
    node: Node, wire: Wire, name: str, connect: Callable[[], Wire]
) -> None:
    raw, second, again = Raw(node.port), connect(), connect()
    raw.send(encode("LOCK", name, "first", "WAIT", WAIT))
    wait_in_line(wire, name, "first")
    join(second, name, "second")
    raw.close()
    closed_s = time.monotonic()
    wait_in_line(wire, name, "second")
    assert time.monotonic() >= closed_s + GRACE_S - 0.1, "it was kept for so long"
    join(again, name, "first")
    assert in_line(wire, name) == ["second", "first"]


def test_a_lock_that_comes_free_while_all_in_line_are_gone_is_for_who_comes_back_first(
    node: Node, wire: Wire, name: str, connect: Callable[[], Wire]
) -> None:
    raw, again = Raw(node.port), connect()
    raw.send(encode("LOCK", name, "first", "WAIT", WAIT))
    wait_in_line(wire, name, "first")
    leave(node, wire, raw, "close")
    wire.ask("UNLOCK", name, unique())
    assert wire.inspect(name)["state"] == b"free"
    assert again.ask("LOCK", name, "first", "WAIT", WAIT) != 0
    assert wire.ask("GET", name) == b"first"


def test_a_hang_up_is_noticed_behind_more_than_is_read_of_a_pipeline(
    node: Node, wire: Wire, name: str, connect: Callable[[], Wire]
) -> None:
    """Of what stands behind a waiting LOCK only so much is read, but its end is seen: as soon as it
    has arrived, for which there must be room in the receive window; a reset has always."""
    second = connect()
    for how, behind in (("half-close", 6_000), ("close", 6_000), ("reset", 60_000)):
        raw = Raw(node.port)
        raw.send(encode("LOCK", name, how, "WAIT", WAIT) + encode("PING") * behind)
        wait_until(lambda how=how: how in in_line(wire, name), "it waits")  # type: ignore[misc]
        leave(node, wire, raw, how)
    join(second, name, "second")
    wire.ask("UNLOCK", name, unique())
    assert second.read() != 0


def test_what_stood_behind_a_long_pipeline_is_executed_once_the_wait_is_over(
    node: Node, wire: Wire, name: str
) -> None:
    with Raw(node.port) as raw:
        raw.send(encode("LOCK", name, "first", "WAIT", WAIT) + encode("PING") * 60_000)
        wait_in_line(wire, name, "first")
        wire.ask("UNLOCK", name, unique())
        answers = b":%d\r\n" % wire.inspect(name)["fencing_token"] + b"+PONG\r\n" * 60_000
        assert raw.read_exactly(len(answers)) == answers
        raw.send(encode("ECHO", "more"))
        assert raw.read_exactly(10) == b"$4\r\nmore\r\n"


def test_a_client_that_has_hung_up_before_its_lock_is_looked_at_does_not_wait(
    node: Node, wire: Wire, name: str
) -> None:
    """Its request stood behind others that took turns; those are answered."""
    with Raw(node.port) as raw:
        digests = encode("DEBUG", "HELP") * 3_000
        raw.send(digests + encode("LOCK", name, "late", "WAIT", WAIT))
        raw.finish()
        answer = raw.read_to_end()
        assert answer == b"" or answer.startswith(b"*")
    wire.ask("UNLOCK", name, unique())
    assert wire.inspect(name)["state"] == b"free"


def test_a_repeat_of_its_wait_that_was_hung_up_on_is_not_granted(
    node: Node, wire: Wire, name: str
) -> None:
    """Its place is kept, and the lock is free: but there is nobody to hold it."""
    first = Raw(node.port)
    first.send(encode("LOCK", name, "w", "WAIT", WAIT))
    wait_in_line(wire, name, "w")
    leave(node, wire, first, "close")
    wire.ask("UNLOCK", name, unique())
    before = encode("DEBUG", "SLEEP", "0.01") * 5  # a turn each: the end is read by then
    with Raw(node.port) as again:
        again.send(before + encode("LOCK", name, "w", "WAIT", WAIT) + encode("PING"))
        again.finish()
        assert again.read_to_end() == b"+OK\r\n" * 5
    assert wire.inspect(name)["state"] == b"free"
    with Raw(node.port) as other:
        other.send(before + encode("LOCK", name, "x", "wait", "0"))
        other.finish()
        answer = other.read_to_end()
        token = b":%d\r\n" % wire.inspect(name)["fencing_token"]
        assert answer == b"+OK\r\n" * 5 + token, "that one does not wait"


def test_a_hang_up_while_it_waits_drops_no_earlier_answer(
    node: Node, wire: Wire, name: str
) -> None:
    data = b"x" * 1_000_000
    raw = Raw(node.port, receive_buffer_bytes=4_096)
    raw.send(encode("ECHO", data) * 8 + encode("LOCK", name, "w", "WAIT", WAIT) + encode("PING"))
    wait_in_line(wire, name, "w")
    raw.finish()
    wait_until(lambda: hung_up_count(wire, name) == 1, "it is not in line any more")
    assert raw.read_to_end() == b"$1000000\r\n%b\r\n" % data * 8
    raw.close()


def hung_up_count(wire: Wire, name: str) -> int:
    """How many stand in line for ``name`` without a connection."""
    blocked = int(info_of_wire(wire, "clients")["blocked_clients"])
    return len(in_line(wire, name)) - blocked


def test_a_hang_up_while_it_waits_drops_no_answer_that_is_held_back(
    forked_cluster: Cluster,
) -> None:
    patient = ("--promotion-timeout-ms", "60000", "--backup-timeout-ms", "60000")
    primary, backup = forked_cluster.pair(*patient)
    with primary.wire() as wire, Raw(primary.port) as raw:
        wire.ask("LOCK", "a", "r")
        backup.freeze()
        raw.send(encode("LOCK", "b", "r b") + encode("LOCK", "a", "w", "WAIT", WAIT))
        wait_until(lambda: info_of(primary)["blocked_clients"] == "1", "it waits")
        raw.finish()
        wait_until(lambda: info_of(primary)["blocked_clients"] == "0", "its end is noticed")
        backup.thaw()
        token = b":%d\r\n" % wire.inspect("b")["fencing_token"]
        assert raw.read_to_end() == token
        assert wire.ask("UNLOCK", "a", "u") == 1
        assert wire.inspect("a")["state"] == b"free"


# -- what is shown -------------------------------------------------------------------------------


def test_info_and_client_list_show_who_waits(tmp_path: Path) -> None:
    with lone_node(tmp_path) as node, contextlib.ExitStack() as stack:
        wire = stack.enter_context(node.wire())
        waiting = [stack.enter_context(node.wire()) for _ in range(3)]
        for lock in ("a", "b"):
            wire.ask("LOCK", lock, f"r {lock}")
        for each, lock in zip(waiting, ("a", "a", "b"), strict=True):
            join(each, lock, unique())
        wait_until(lambda: int(info_of(node)["locks_longest_wait_ms"]) >= 50, "some time passes")
        shown = info_of_wire(wire, "clients", "locks", "keyspace")
        assert shown["blocked_clients"] == "3"
        assert (shown["locks_waiters"], shown["locks_waited_keys"]) == ("3", "2")
        assert (shown["locks_held"], shown["locks_leased"]) == ("2", "0")
        assert (shown["locks_granted_total"], shown["locks_denied_total"]) == ("2", "0")
        assert shown["db0"] == "keys=2,expires=0,avg_ttl=0"
        lines = wire.ask("CLIENT", "LIST")
        assert isinstance(lines, bytes)
        blocked = [line for line in lines.decode().splitlines() if " flags=b " in line]
        assert len(blocked) == 3 and all(" cmd=lock " in line for line in blocked)
        wire.ask("UNLOCK", "a", "u")
        assert waiting[0].read() != 0
        waiting[1].close()
        wait_until(lambda: info_of(node)["blocked_clients"] == "1", "one has left")
        wait_until(lambda: info_of(node)["locks_waiters"] == "1", "its place is given up")
        shown = info_of_wire(wire, "clients", "locks")
        assert (shown["locks_waiters"], shown["locks_waited_keys"]) == ("1", "1")
        assert shown["locks_granted_total"] == "3"
        wire.ask("UNLOCK", "b", "v")
        assert waiting[2].read() != 0
        shown = info_of_wire(wire, "clients", "locks")
        assert shown["blocked_clients"] == shown["locks_waiters"] == "0"
        assert shown["locks_longest_wait_ms"] == shown["locks_waited_keys"] == "0"


def test_redis_cli_waits(node: Node, wire: Wire, name: str) -> None:
    cli = needed("redis-cli", "redis-tools")

    def start(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [cli, "-h", HOST, "-p", str(node.port), *words], stdout=subprocess.PIPE, text=True
        )

    with start("LOCK", name, "short", "WAIT", "100") as waiting:
        assert waiting.communicate(timeout=20)[0] == "0\n"
    with start("LOCK", name, "long", "WAIT", "20000") as waiting:
        wait_in_line(wire, name, "long")
        wire.ask("UNLOCK", name, unique())
        assert waiting.communicate(timeout=20)[0] == f"{wire.inspect(name)['fencing_token']}\n"


# -- a node that goes away -----------------------------------------------------------------------


def test_a_node_that_is_told_to_stop_closes_its_waiters_without_a_word(
    forked_cluster: Cluster,
) -> None:
    node = forked_cluster.node("N").start("--log-level", "info")
    wait_until(node.answers, "it is up", [node])
    with node.wire() as wire, node.wire() as waiting, node.wire() as behind:
        wire.ask("LOCK", "a", "r")
        join(waiting, "a", "first")
        join(behind, "a", "second")
        behind.send("PING")
        assert node.terminate() == 0
        assert hung_up(waiting) and hung_up(behind)


def test_a_primary_that_was_deposed_closes_its_waiters_without_a_word(
    forked_cluster: Cluster,
) -> None:
    primary, backup = forked_cluster.pair("--promotion-timeout-ms", "300")
    with primary.wire() as wire, primary.wire() as waiting, primary.wire() as short:
        token = wire.ask("LOCK", "a", "r", "PX", 600_000)
        join(waiting, "a", "first")
        short.send("LOCK", "a", "short", "WAIT", 500)
        wait_until(lambda: in_line(wire, "a") == ["first", "short"], "both wait")
        primary.freeze()
        wait_until(lambda: backup.role == "master", "the backup serves", [backup])
        primary.thaw()
        assert hung_up(waiting) and hung_up(short)
        forked_cluster.wait_paired(backup, primary)
    with backup.wire() as wire:
        assert wire.inspect("a")["waiters"] == [], "the line was the old primary's alone"
        assert wire.inspect("a")["fencing_token"] == token
        assert backup.ask("INFO", "clients")


def test_after_a_failover_who_asks_again_stands_in_line_again(forked_cluster: Cluster) -> None:
    primary, backup = forked_cluster.pair()
    with contextlib.ExitStack() as stack:
        wire = stack.enter_context(primary.wire())
        held = wire.ask("LOCK", "a", "holder")
        assert isinstance(held, int)
        waiting = [stack.enter_context(primary.wire()) for _ in range(5)]
        for number, each in enumerate(waiting):
            join(each, "a", f"w{number}")
        primary.kill()
        for each in waiting:
            assert hung_up(each)
        wait_until(lambda: backup.role == "master", "the backup serves", [backup])
        wire = stack.enter_context(backup.wire())
        again = [stack.enter_context(backup.wire()) for _ in range(5)]
        for number in (3, 1, 4, 0, 2):
            join(again[number], "a", f"w{number}")
        assert in_line(wire, "a") == ["w3", "w1", "w4", "w0", "w2"]
        assert wire.ask("VERIFY", "a", held) == 1
        last = held
        for number in (3, 1, 4, 0, 2):
            assert wire.ask("UNLOCK", "a", unique()) == 1
            token = again[number].read()
            assert isinstance(token, int) and token > last
            last = token


def test_a_grant_to_a_waiter_is_on_both_nodes_before_it_is_told(forked_cluster: Cluster) -> None:
    """With a backup that stands still, nobody hears anything; with the primary gone, the backup
    knows of what was told, and a repeat has the same answer."""
    patient = ("--promotion-timeout-ms", "60000", "--backup-timeout-ms", "60000")
    primary, backup = forked_cluster.pair(*patient)
    with primary.wire() as wire, primary.wire() as waiting:
        wire.ask("LOCK", "a", "r")
        join(waiting, "a", "w", "PX", 600_000)
        backup.freeze()
        wire.send("UNLOCK", "a", "u")
        assert waiting.is_silent_for(0.2) and wire.is_silent_for(0.05)
        backup.thaw()
        assert wire.read() == 1
        token = waiting.read()
        assert token != 0
    primary.kill()
    wait_until(lambda: backup.role == "master", "the backup serves", [backup])
    assert backup.ask("LOCK", "a", "w", "WAIT", "1000") == token


def test_a_lone_primary_that_wants_a_backup_grants_to_no_waiter_until_there_is_one(
    forked_cluster: Cluster,
) -> None:
    """Releases go on; who stood in line is first when there is a backup again."""
    primary, backup = forked_cluster.pair("--min-backups", "1")
    with contextlib.ExitStack() as stack:
        wire, first, short = (stack.enter_context(primary.wire()) for _ in range(3))
        wire.ask("LOCK", "a", "r")
        join(first, "a", "first")
        short.send("LOCK", "a", "short", "WAIT", 400)
        wait_until(lambda: wire.inspect("a")["waiter_count"] == 2, "both wait")
        backup.kill()
        wait_until(lambda: primary.mode == "solo", "the primary is alone", [primary])
        assert wire.ask("UNLOCK", "a", "u") == 1
        assert wire.inspect("a")["state"] == b"free"
        with pytest.raises(ReplyError, match="NOREPLICAS"):
            wire.ask("LOCK", "a", "new", "WAIT", WAIT)
        assert short.read() == 0, "its wait has run out"
        assert first.is_silent_for(0.05)
        backup.start()
        assert first.read() != 0
        forked_cluster.wait_paired(primary, backup)
        assert wire.digest() == backup_digest(backup)


def backup_digest(backup: Node) -> tuple[str, int]:
    with backup.wire() as wire:
        return wire.digest()


# -- many ----------------------------------------------------------------------------------------

CLIENTS = 10_000


class Crowd:
    """Very many connections, without a thread or an object of ours for each."""

    def __init__(self, port: int, count: int) -> None:
        self.raws = [Raw(port) for _ in range(count)]
        self.received = [b""] * count
        self._numbers = {raw.sock.fileno(): at for at, raw in enumerate(self.raws)}
        self._epoll = select.epoll()
        for fd in self._numbers:
            self._epoll.register(fd, select.EPOLLIN)

    def join(self, number: int, data: bytes) -> None:
        """Have one of them send this, and be sure that the server has looked at it."""
        raw = self.raws[number]
        raw.send(encode("PING") + data)
        assert raw.read_exactly(7) == b"+PONG\r\n"

    def read_until(self, done: Callable[[], bool]) -> None:
        """Take what they are sent."""
        deadline_s = time.monotonic() + 60
        while not done():
            assert time.monotonic() < deadline_s, "they wait without end"
            for fd, _ in self._epoll.poll(1.0):
                number = self._numbers[fd]
                data = self.raws[number].receive()
                assert data, f"{number} was hung up"
                self.received[number] += data

    def close(self) -> None:
        """Hang up."""
        self._epoll.close()
        for raw in self.raws:
            raw.reset()


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Enough file descriptors for the crowd."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < CLIENTS + 300:
        pytest.skip(f"10,000 WAITERS NOT TRIED: only {hard} file descriptors are allowed here")
    wanted = hard if hard != resource.RLIM_INFINITY else CLIENTS + 1_000
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_10_000_waiters_on_one_lock_are_granted_in_order_and_10_000_locks_have_one_each(
    forked_cluster: Cluster, descriptors: None, measured: list[str]
) -> None:
    """All that may be connected. Each gives the lock back by what stands behind its LOCK."""
    node = forked_cluster.node("N").start("--log-level", "info")
    wait_until(node.answers, "it is up", [node])
    control = node.wire()
    token = control.ask("LOCK", "a", "holder", "PX", 60_000)
    assert isinstance(token, int)
    crowd = Crowd(node.port, CLIENTS - 1)
    try:
        for number in range(CLIENTS - 1):
            lock = encode("LOCK", "a", f"w{number}", "WAIT", WAIT)
            crowd.join(number, lock + encode("UNLOCK", "a", f"u{number}"))
        assert info_of_wire(control, "locks")["locks_waiters"] == str(CLIENTS - 1)
        listed = control.inspect("a")["waiters"]
        assert len(listed) == limits.INSPECT_WAITERS_MAX, "the first in line"
        # The last place is taken by the connection that releases: it stands in line, too.
        released_s = time.monotonic()
        control.sock.sendall(
            encode("UNLOCK", "a", "u", "TOKEN", token) + encode("LOCK", "a", "last", "WAIT", WAIT)
        )
        assert control.read() == 1
        crowd.read_until(lambda: crowd.received[-1].count(b"\r\n") == 2)
        last = control.read()
        took_s = time.monotonic() - released_s
        crowd.read_until(lambda: all(text.count(b"\r\n") == 2 for text in crowd.received))
        tokens = [int(text.split()[0][1:]) for text in crowd.received] + [last]
        assert tokens == sorted(tokens) and len(set(tokens)) == CLIENTS
        assert {text.split()[1] for text in crowd.received} == {b":1"}

        control.ask("DEL", "a")
        names = [f"l{number}" for number in range(CLIENTS - 1)]
        control.sock.sendall(b"".join(encode("LOCK", name, f"h {name}") for name in names))
        assert all(control.read() for _ in names)
        crowd.received = [b""] * len(names)
        for number, name in enumerate(names):
            crowd.join(number, encode("LOCK", name, f"v{number}", "WAIT", WAIT))
        all_released_s = time.monotonic()
        control.sock.sendall(b"".join(encode("UNLOCK", name, f"x {name}") for name in names))
        crowd.read_until(lambda: all(text.endswith(b"\r\n") for text in crowd.received))
        all_took_s = time.monotonic() - all_released_s
        assert all(control.read() == 1 for _ in names)
        tokens = [int(text[1:]) for text in crowd.received]
        assert tokens == sorted(tokens) and len(set(tokens)) == len(names)
        shown = info_of_wire(control, "clients", "locks")
        assert shown["blocked_clients"] == shown["locks_waiters"] == "0"
        assert shown["locks_held"] == str(len(names))
        measured.append(
            f"{CLIENTS} waiters on one lock were served in {took_s:.2f} s, "
            f"{len(names)} locks with a waiter each in {all_took_s:.2f} s"
        )
    finally:
        crowd.close()
        control.close()
    assert node.answers()


def test_a_signal_is_not_lost_on_a_node_with_waiters(forked_cluster: Cluster) -> None:
    """It stops at once, though waits of an hour are under way."""
    primary, backup = forked_cluster.pair()
    with primary.wire() as wire, primary.wire() as waiting:
        wire.ask("LOCK", "a", "r")
        join(waiting, "a", "w")
        started_s = time.monotonic()
        assert primary.terminate() == 0
        assert time.monotonic() - started_s < 10
        assert hung_up(waiting)
    wait_until(lambda: backup.role == "master", "the backup serves", [backup])
    assert signal.SIGTERM.name in primary.log_text
