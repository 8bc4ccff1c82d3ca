"""CLIENT, HELLO, RESET, QUIT and CLIENT REPLY on a real node."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest
from harness.alone import alone, info_of
from harness.ports import HOST
from harness.processes import Cluster, Node, wait_until
from harness.wire import Closed, ReplyError, Wire, encode

# What redis_exporter accepts: no space and no "=" in a value.
LINE = re.compile(r"id=\d+ addr=[^ =]+:\d+( [a-z-]+=[^ =]*)+")


@pytest.fixture
def node(forked_cluster: Cluster) -> Node:
    return alone(forked_cluster)


@pytest.fixture
def wire(node: Node) -> Iterator[Wire]:
    with node.wire() as wire:
        yield wire


def lines_of(reply: object) -> list[dict[str, str]]:
    """CLIENT LIST as dicts; every line is checked for its form."""
    assert isinstance(reply, bytes)
    lines = reply.decode().splitlines()
    assert all(LINE.fullmatch(line) for line in lines), lines
    return [dict(part.split("=", 1) for part in line.split(" ")) for line in lines]


def number_of(wire: Wire) -> int:
    number = wire.ask("CLIENT", "ID")
    assert isinstance(number, int)
    return number


def is_closed(wire: Wire) -> bool:
    try:
        wire.ask("PING")
    except Closed:
        return True
    return False


def test_client_info_tells_what_the_client_said_of_itself(wire: Wire) -> None:
    wire.ask("CLIENT", "SETNAME", "me")
    wire.ask("CLIENT", "SETINFO", "LIB-NAME", "redis-py(x_v1)")
    wire.ask("client", "setinfo", "lib-ver", "8.1.0")
    (line,) = lines_of(wire.ask("CLIENT", "INFO"))
    own = wire.sock.getsockname()
    assert line["id"] == str(number_of(wire))
    assert line["addr"] == f"{own[0]}:{own[1]}"
    assert line["laddr"] == "{}:{}".format(*wire.sock.getpeername())
    assert (line["name"], line["lib-name"], line["lib-ver"]) == ("me", "redis-py(x_v1)", "8.1.0")
    assert (line["cmd"], line["user"], line["resp"], line["db"]) == (
        "client|info",
        "default",
        "2",
        "0",
    )
    assert (line["flags"], line["multi"]) == ("N", "-1")


def test_client_list_shows_everybody_and_can_be_narrowed(node: Node, wire: Wire) -> None:
    with node.wire() as other:
        other.ask("ECHO", "x")
        both = {str(number_of(wire)), str(number_of(other))}
        assert {line["id"] for line in lines_of(wire.ask("CLIENT", "LIST"))} == both
        assert len(lines_of(wire.ask("CLIENT", "LIST", "TYPE", "normal"))) == 2
        narrowed = wire.ask("CLIENT", "LIST", "ID", number_of(other), 987654)
        (line,) = lines_of(narrowed)
        assert line["id"] == str(number_of(other)) and line["cmd"] == "client|id"
        other.ask("ECHO", "x")
        assert {line["cmd"] for line in lines_of(wire.ask("CLIENT", "LIST"))} == {
            "client|list",
            "echo",
        }


@pytest.mark.parametrize("name", ["a b", "a=b", "a\nb", "caf\u00e9", "\x7f", "n" * 257])
def test_a_name_that_would_break_client_list_is_refused(wire: Wire, name: str) -> None:
    for request in (
        ("CLIENT", "SETNAME", name),
        ("CLIENT", "SETINFO", "LIB-NAME", name),
        ("HELLO", "2", "SETNAME", name),
    ):
        with pytest.raises(ReplyError, match="cannot"):
            wire.ask(*request)
    assert wire.ask("CLIENT", "GETNAME") is None
    (line,) = lines_of(wire.ask("CLIENT", "INFO"))
    assert line["name"] == line["lib-name"] == ""


def test_a_refused_hello_changes_nothing(wire: Wire) -> None:
    for request in (("HELLO", "3", "SETNAME", "a b"), ("HELLO", "3", "AUTH", "u", "p"),
                    ("HELLO", "3", "AUTH", "u", "p", "SETNAME", "x")):  # fmt: skip
        with pytest.raises(ReplyError):
            wire.ask(*request)
    (line,) = lines_of(wire.ask("CLIENT", "INFO"))
    assert (line["resp"], line["name"]) == ("2", "")


def test_hello_sets_name_and_protocol_at_once(wire: Wire) -> None:
    shown = wire.ask("HELLO", "3", "AUTH", "default", "secret", "SETNAME", "three")
    assert isinstance(shown, dict)
    assert (shown[b"proto"], shown[b"server"], shown[b"role"]) == (3, b"redis", b"master")
    (line,) = lines_of(wire.ask("CLIENT", "INFO"))
    assert (line["resp"], line["name"]) == ("3", "three")
    assert wire.ask("CLIENT", "GETNAME") == b"three"


def test_reset_goes_back_to_how_the_connection_began(wire: Wire) -> None:
    wire.ask("HELLO", "3", "SETNAME", "three")
    wire.ask("CLIENT", "NO-EVICT", "ON")
    wire.ask("CLIENT", "NO-TOUCH", "ON")
    assert lines_of(wire.ask("CLIENT", "INFO"))[0]["flags"] == "Te"
    wire.send("CLIENT", "REPLY", "OFF")
    assert wire.ask("RESET") == b"RESET"
    (line,) = lines_of(wire.ask("CLIENT", "INFO"))
    assert (line["resp"], line["name"], line["flags"]) == ("2", "", "N")


def test_quit_answers_what_came_before_it_and_nothing_after(node: Node) -> None:
    with socket.create_connection((HOST, node.port), 10) as sock:
        sock.sendall(encode("ECHO", "x") + encode("QUIT") + encode("ECHO", "y"))
        received = b""
        while data := sock.recv(4096):
            received += data
    assert received == b"$1\r\nx\r\n+OK\r\n"


# -- CLIENT REPLY ----------------------------------------------------------------------------------


def test_reply_off_silences_everything_until_on(wire: Wire) -> None:
    for request in (("CLIENT", "REPLY", "OFF"), ("PING",), ("LOCK", "a", "r1"), ("NONSENSE",),
                    ("CLIENT", "REPLY", "SKIP"), ("LOCK",), ("ECHO", "x")):  # fmt: skip
        wire.send(*request)
    assert wire.ask("CLIENT", "REPLY", "ON") == b"OK"
    assert wire.inspect("a")["state"] == b"held"


def test_reply_skip_silences_exactly_the_next_command(node: Node) -> None:
    with socket.create_connection((HOST, node.port), 10) as sock:
        sock.sendall(
            encode("CLIENT", "REPLY", "SKIP")
            + encode("ECHO", "skipped")
            + encode("ECHO", "said")
            + encode("CLIENT", "REPLY", "SKIP")
            + encode("LOCK", "a", "r1")
            + encode("ECHO", "said too")
            + encode("CLIENT", "REPLY", "SKIP")
            + encode("WAIT", "1", "1")
            + encode("QUIT")
        )
        received = b""
        while data := sock.recv(4096):
            received += data
    assert received == b"$4\r\nsaid\r\n$8\r\nsaid too\r\n+OK\r\n"


def test_a_refusal_that_does_not_wait_for_the_backup_is_silenced_too(
    forked_cluster: Cluster,
) -> None:
    node = alone(forked_cluster, "--min-backups", "1")
    with node.wire() as wire:
        wire.send("CLIENT", "REPLY", "OFF")
        wire.send("LOCK", "a", "r1")
        assert wire.ask("CLIENT", "REPLY", "ON") == b"OK"
        wire.send("CLIENT", "REPLY", "SKIP")
        wire.send("LOCK", "a", "r1")
        assert wire.ask("PING") == b"PONG"


def test_quit_behind_reply_off_closes_without_a_word(node: Node) -> None:
    with socket.create_connection((HOST, node.port), 10) as sock:
        sock.sendall(encode("CLIENT", "REPLY", "OFF") + encode("PING") + encode("QUIT"))
        assert sock.recv(4096) == b""


# -- CLIENT KILL -----------------------------------------------------------------------------------


def test_kill_by_address_closes_that_client_only(node: Node, wire: Wire) -> None:
    with node.wire() as victim, node.wire() as other:
        address = "{}:{}".format(*victim.sock.getsockname())
        other.ask("PING")
        assert wire.ask("CLIENT", "KILL", address) == b"OK"
        assert is_closed(victim) and not is_closed(other)
        with pytest.raises(ReplyError, match="ERR No such client"):
            wire.ask("CLIENT", "KILL", address)


def test_kill_by_filters_wants_all_of_them_to_fit(node: Node, wire: Wire) -> None:
    with node.wire() as victim:
        number = number_of(victim)
        address = "{}:{}".format(*victim.sock.getsockname())
        assert wire.ask("CLIENT", "KILL", "ID", number, "TYPE", "pubsub") == 0
        assert wire.ask("CLIENT", "KILL", "ID", number, "ADDR", "1.2.3.4:5") == 0
        assert wire.ask("CLIENT", "KILL", "ID", number, "MAXAGE", 1000) == 0
        assert wire.ask("CLIENT", "KILL", "ID", number, "ID", 987654) == 0  # the last one counts
        assert not is_closed(victim)
        fits = ("ID", number, "ADDR", address, "TYPE", "normal", "USER", "default")
        assert wire.ask("CLIENT", "KILL", *fits) == 1
        assert is_closed(victim)


def test_kill_spares_the_one_who_asks_unless_told_otherwise(node: Node, wire: Wire) -> None:
    laddr = "{}:{}".format(*wire.sock.getpeername())
    with node.wire() as other:
        other.ask("PING")
        assert wire.ask("CLIENT", "KILL", "LADDR", laddr) == 1
        assert is_closed(other) and not is_closed(wire)
    assert wire.ask("CLIENT", "KILL", "LADDR", laddr, "SKIPME", "no") == 1
    assert is_closed(wire)


def test_a_client_can_kill_itself_by_its_address_and_hears_of_it(wire: Wire) -> None:
    assert wire.ask("CLIENT", "KILL", "{}:{}".format(*wire.sock.getsockname())) == b"OK"
    assert is_closed(wire)


def test_thousands_are_killed_without_a_pause_for_the_others(node: Node, wire: Wire) -> None:
    victims = [node.wire() for _ in range(1_200)]
    wait_until(lambda: info_of(node)["connected_clients"] == "1202", "all are connected", [node])
    assert wire.ask("CLIENT", "KILL", "TYPE", "normal") == 1_200
    assert info_of(node, "clients")["connected_clients"] == "2"
    assert all(is_closed(victim) for victim in victims)
    for victim in victims:
        victim.close()


def test_a_killed_waiter_is_gone(node: Node, wire: Wire) -> None:
    with node.wire() as waiting:
        number = number_of(waiting)
        waiting.send("WAIT", "1", "0")
        wait_until(lambda: info_of(node)["blocked_clients"] == "1", "it waits", [node])
        (line,) = lines_of(wire.ask("CLIENT", "LIST", "ID", number))
        assert (line["flags"], line["cmd"]) == ("b", "wait")
        assert wire.ask("CLIENT", "KILL", "ID", number) == 1
        assert info_of(node)["blocked_clients"] == "0"
