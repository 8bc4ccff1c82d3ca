"""CONFIG, SLOWLOG, TIME, DBSIZE, SHUTDOWN and DEBUG SLEEP on a real node."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest
from harness.alone import alone, config_of, info_of
from harness.processes import Cluster, Node, wait_until
from harness.wire import Closed, ReplyError, Wire


@pytest.fixture
def node(forked_cluster: Cluster) -> Node:
    return alone(forked_cluster)


@pytest.fixture
def wire(node: Node) -> Iterator[Wire]:
    with node.wire() as wire:
        yield wire


# -- CONFIG ----------------------------------------------------------------------------------------


def test_what_tools_ask_for_is_answered(node: Node) -> None:
    names = ("databases", "maxclients", "slowlog-max-len", "save", "appendonly", "timeout",
             "maxmemory", "maxmemory-policy", "bind", "port", "min-replicas-to-write")  # fmt: skip
    assert config_of(node, *names) == {
        "databases": "1",
        "maxclients": "10000",
        "slowlog-max-len": "128",
        "save": "",
        "appendonly": "no",
        "timeout": "0",
        "maxmemory": "0",
        "maxmemory-policy": "noeviction",
        "bind": "127.0.0.1",
        "port": str(node.port),
        "min-replicas-to-write": "0",
    }


def test_our_own_flags_are_shown_under_their_names(forked_cluster: Cluster) -> None:
    node = alone(
        forked_cluster,
        "--backup-timeout-ms", "1500", "--promotion-timeout-ms", "2500", "--failover", "manual",
        "--log-level", "debug", "--min-backups", "1",
    )  # fmt: skip
    names = ("backup-timeout-ms", "promotion-timeout-ms", "failover", "log*level", "min-*")
    assert config_of(node, *names) == {
        "backup-timeout-ms": "1500",
        "promotion-timeout-ms": "2500",
        "failover": "manual",
        "loglevel": "debug",
        "log-level": "debug",
        "min-backups": "1",
        "min-replicas-to-write": "1",
        "min-slaves-to-write": "1",
    }


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("maxclients", "100", "100"),
        ("slowlog-max-len", "5", "5"),
        ("slowlog-log-slower-than", "123", "123"),
        ("loglevel", "debug", "debug"),
        ("loglevel", "notice", "info"),
        ("log-level", "WARNING", "warning"),
        ("min-backups", "1", "1"),
        ("min-replicas-to-write", "1", "1"),
        ("failover", "manual", "manual"),
        ("backup-timeout-ms", "1000", "1000"),
        ("promotion-timeout-ms", "1000", "1000"),
        ("save", "", ""),
        ("MaxClients", "99", "99"),
    ],
)
def test_what_can_change_live_changes(node: Node, name: str, value: str, shown: str) -> None:
    assert node.ask("CONFIG", "SET", name, value) == b"OK"
    assert config_of(node, name.lower()) == {name.lower(): shown}


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("maxclients", "0", "between 1 and 10000"),
        ("maxclients", "1e3", "couldn't be parsed into an integer"),
        ("slowlog-max-len", "1025", "between 0 and 1024"),
        ("slowlog-log-slower-than", "-2", "between -1 and"),
        ("loglevel", "loud", "must be one of debug, info, warning, error"),
        ("min-backups", "2", "must be from 0 to 1, not 2"),
        ("failover", "sometimes", "must be auto or manual"),
        ("backup-timeout-ms", "99", "must be from 100 to 600000, not 99"),
        ("promotion-timeout-ms", "x", "couldn't be parsed into an integer"),
        ("databases", "3", "can't set immutable config"),
        ("appendonly", "yes", "can't set immutable config"),
        ("port", "1", "can't set immutable config"),
        ("replicaof", "127.0.0.1 1", "can't set immutable config"),
        ("min-backups", "\u0661", "couldn't be parsed into an integer"),
    ],
)
def test_what_cannot_be_set_is_refused_with_the_reason(
    node: Node, name: str, value: str, why: str
) -> None:
    before = config_of(node, "*")
    with pytest.raises(ReplyError, match=f"possibly related to argument '{name}'.*{why}"):
        node.ask("CONFIG", "SET", name, value)
    assert config_of(node, "*") == before


def test_several_pairs_are_set_all_or_none(node: Node) -> None:
    before = config_of(node, "*")
    for bad in (("failover", "x"), ("nonsense", "1"), ("maxclients", "0"), ("databases", "9")):
        with pytest.raises(ReplyError):
            node.ask("CONFIG", "SET", "min-backups", "1", "slowlog-max-len", "3", *bad)
    with pytest.raises(ReplyError, match="duplicate parameter"):
        node.ask("CONFIG", "SET", "min-backups", "1", "min-replicas-to-write", "0")
    assert config_of(node, "*") == before
    assert node.ask("CONFIG", "SET", "min-backups", "1", "slowlog-max-len", "3") == b"OK"
    assert config_of(node, "min-backups", "slowlog-max-len") == {
        "min-backups": "1",
        "slowlog-max-len": "3",
    }


def test_min_backups_takes_effect_at_once(node: Node) -> None:
    assert node.ask("LOCK", "a", "r1")
    node.ask("CONFIG", "SET", "min-replicas-to-write", "1")
    with pytest.raises(ReplyError, match=r"^NOREPLICAS"):
        node.ask("LOCK", "b", "r2")
    node.ask("CONFIG", "SET", "min-replicas-to-write", "0")
    assert node.ask("LOCK", "b", "r2")


def test_maxclients_takes_effect_at_once(node: Node, wire: Wire) -> None:
    wire.ask("CONFIG", "SET", "maxclients", "1")
    with node.wire() as other, pytest.raises(ReplyError, match="max number of clients reached"):
        other.read()
    assert info_of_wire(wire)["rejected_connections"] == "1"
    wire.ask("CONFIG", "SET", "maxclients", "2")
    assert node.ask("PING") == b"PONG"


def info_of_wire(wire: Wire) -> dict[str, str]:
    text = wire.ask("INFO")
    assert isinstance(text, bytes)
    lines = (line.partition(":") for line in text.decode().split("\r\n"))
    return {name: value for name, colon, value in lines if colon}


def test_the_log_level_takes_effect_at_once(node: Node) -> None:
    node.ask("CONFIG", "SET", "loglevel", "debug")
    node.ask("PING")
    node.wait_logged("closed by the client")


def test_shorter_time_outs_shorten_the_heartbeat(forked_cluster: Cluster) -> None:
    primary, backup = forked_cluster.pair()
    for node in (primary, backup):
        request = ("backup-timeout-ms", "300", "promotion-timeout-ms", "300")
        assert node.ask("CONFIG", "SET", *request) == b"OK"
    backup.freeze()
    wait_until(lambda: primary.mode == "solo", "it goes on alone", [primary], timeout_s=1.5)
    backup.thaw()


def test_a_pattern_flood_is_refused(node: Node) -> None:
    for flood in (["*"] * 513, ["*a" * 300], ["[" + "a" * 100_000]):
        with pytest.raises(ReplyError, match="patterns of more than 512 bytes in all"):
            node.ask("CONFIG", "GET", *flood)
    with pytest.raises(ReplyError, match="a pattern of more than 512 bytes"):
        node.ask("COMMAND", "LIST", "FILTERBY", "PATTERN", "*" * 513)
    assert config_of(node, *["data*"] * 100) == {"databases": "1"}
    assert config_of(node, *["databases"] * 1000) == {"databases": "1"}


def test_resetstat_resets_the_counters(node: Node, wire: Wire) -> None:
    wire.ask("LOCK", "a", "r1")
    wire.ask("LOCK", "a", "r2")
    with pytest.raises(ReplyError):
        wire.ask("NONSENSE")
    before = info_of(node, "everything")
    assert (before["keyspace_hits"], before["keyspace_misses"]) == ("1", "1")
    assert before["errorstat_ERR"] == "count=1" and "cmdstat_lock" in before
    assert wire.ask("CONFIG", "RESETSTAT") == b"OK"
    after = info_of(node, "everything")
    assert (after["keyspace_hits"], after["keyspace_misses"]) == ("0", "0")
    assert "errorstat_ERR" not in after and "cmdstat_lock" not in after
    assert int(after["total_net_input_bytes"]) < int(before["total_net_input_bytes"])
    assert after["locks_held"] == "1"


# -- SLOWLOG ---------------------------------------------------------------------------------------


def test_slow_requests_are_kept_newest_first(node: Node, wire: Wire) -> None:
    wire.ask("CLIENT", "SETNAME", "me")
    wire.ask("CONFIG", "SET", "slowlog-log-slower-than", "0")
    wire.ask("ECHO", "one")
    wire.ask("ECHO", "x" * 200)
    wire.ask("CONFIG", "SET", "slowlog-log-slower-than", "-1")
    entries = wire.ask("SLOWLOG", "GET", "3")
    assert isinstance(entries, list)
    number, at_s, microseconds, argv, address, name = entries[0]
    assert argv == [b"ECHO", b"x" * 128 + b"... (72 more bytes)"]
    assert entries[1][3] == [b"ECHO", b"one"] and entries[1][0] == number - 1
    assert abs(at_s - time.time()) < 5 and 0 <= microseconds < 10**6
    assert address == "{}:{}".format(*wire.sock.getsockname()).encode() and name == b"me"
    assert wire.ask("SLOWLOG", "LEN") == len(wire.ask("SLOWLOG", "GET", "-1"))  # type: ignore[arg-type]
    wire.ask("CONFIG", "SET", "slowlog-max-len", "1")
    assert wire.ask("SLOWLOG", "GET", "-1") == entries[:1]
    assert wire.ask("SLOWLOG", "RESET") == b"OK"
    assert wire.ask("SLOWLOG", "LEN") == 0


def test_a_request_of_many_arguments_is_cut_in_the_slow_log(wire: Wire) -> None:
    wire.ask("CONFIG", "SET", "slowlog-log-slower-than", "0")
    wire.ask("INFO", *["nonsense"] * 99)
    wire.ask("CONFIG", "SET", "slowlog-log-slower-than", "-1")
    entries = wire.ask("SLOWLOG", "GET")
    assert isinstance(entries, list)
    assert len(entries[0][3]) == 32 and entries[0][3][-1] == b"... (69 more arguments)"


# -- the rest --------------------------------------------------------------------------------------


def test_time_is_the_wall_clock(node: Node) -> None:
    reply = node.ask("TIME")
    assert isinstance(reply, list)
    assert abs(int(reply[0]) + int(reply[1]) / 1e6 - time.time()) < 5


def test_dbsize_counts_held_locks(wire: Wire) -> None:
    assert wire.ask("DBSIZE") == 0
    wire.ask("LOCK", "a", "r1")
    wire.ask("LOCK", "b", "r2")
    assert wire.ask("DBSIZE") == 2
    wire.ask("UNLOCK", "a", "r3")
    assert wire.ask("DBSIZE") == 1


def test_a_backup_refuses_dbsize(forked_cluster: Cluster) -> None:
    _, backup = forked_cluster.pair()
    with pytest.raises(ReplyError, match=r"^READONLY"):
        backup.ask("DBSIZE")


@pytest.mark.parametrize("words", [(), ("NOSAVE",), ("SAVE",), ("nosave", "now", "force")])
def test_shutdown_stops_the_node_in_order(forked_cluster: Cluster, words: tuple[str, ...]) -> None:
    node = alone(forked_cluster)
    with node.wire() as wire, pytest.raises(Closed):
        wire.ask("SHUTDOWN", *words)
    wait_until(lambda: not node.is_running, "it has ended", [node])
    assert node.log_text.count("stopped") == 1 and "SHUTDOWN from 127.0.0.1" in node.log_text


def test_what_came_before_a_shutdown_is_answered(node: Node) -> None:
    with node.wire() as wire:
        wire.send("LOCK", "a", "r1")
        wire.send("SHUTDOWN")
        assert wire.read()
        with pytest.raises(Closed):
            wire.read()


def test_debug_sleep_holds_everything_up(node: Node, wire: Wire) -> None:
    started_s = time.monotonic()
    wire.send("DEBUG", "SLEEP", "0.3")
    assert wire.read() == b"OK"
    assert time.monotonic() - started_s >= 0.3


@pytest.mark.parametrize("seconds", ["-1", "61", "nan", "inf", "x", "", "1_0", "0x1"])
def test_debug_sleep_refuses_what_is_no_sensible_time(wire: Wire, seconds: str) -> None:
    with pytest.raises(ReplyError, match="seconds must be a number from 0 to 60"):
        wire.ask("DEBUG", "SLEEP", seconds)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "wrong number of arguments for 'debug' command"),
        (("FOO",), "unknown subcommand 'FOO'"),
        (("SEGFAULT",), "unknown subcommand 'SEGFAULT'"),
        (("SLEEP",), "wrong number of arguments for 'debug|sleep' command"),
        (("SLEEP", "1", "2"), "wrong number of arguments for 'debug|sleep' command"),
        (("DIGEST", "x"), "wrong number of arguments for 'debug|digest' command"),
    ],
)
def test_no_other_debug_exists(wire: Wire, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ReplyError, match=said.replace("|", r"\|")):
        wire.ask("DEBUG", *words)


def test_debug_digest_tells_the_state_and_its_offset(wire: Wire) -> None:
    digests = set()
    for _ in range(3):
        before = wire.ask("DEBUG", "digest")
        assert before == wire.ask("DEBUG", "DIGEST"), "nothing has changed"
        assert isinstance(before, list)
        digest, offset = before
        assert re.fullmatch(rb"[0-9a-f]{64}", digest) and offset > 1_700_000_000_000_000
        digests.add(digest)
        assert wire.ask("LOCK", "digested", offset) >= 0
    assert len(digests) == 3


def test_debug_says_what_it_can_do(wire: Wire) -> None:
    lines = wire.ask("DEBUG", "HELP")
    assert isinstance(lines, list)
    assert b"DIGEST" in lines and b"SLEEP <seconds>" in lines
