"""VGET and VPUT over a real socket, and registers as keys: against a node that serves alone.

Every bound is tried at its limit and one past it; whatever is malformed, stale or not known changes
nothing, which DEBUG DIGEST shows (I11). How PEXPIRE and the like compare with a real Redis stands
at the end.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from harness.alone import info_of
from harness.bounded import Bounded
from harness.processes import Cluster, Node, wait_until
from harness.raw import lone_node
from harness.redis_server import RedisServer
from harness.wire import ReplyError, Wire, as_map, encode

from holdfast.server.core import limits

NO_KEY = "NOKEY there is no register of this name"
STALE = "STALETOKEN this fencing token is not that of the lock's current grant; nothing was written"
IS_LOCK = "WRONGTYPE this name is a lock, not a register; nothing was done"
IS_REGISTER = "WRONGTYPE this name is a register, not a lock; nothing was done"
SYNTAX = "ERR syntax error, VPUT is: key value version [reqid] [FENCE lockname fencing-token]"
BAD_VERSION = f"ERR version must be a whole number from 0 (create) to {limits.VERSION_MAX}"
BAD_TOKEN = "ERR fencing token must be a decimal number from 1 to 2^63-1"
NOT_AN_INTEGER = "ERR value is not an integer or out of range"

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One for the whole file: each test takes names and ids of its own, and gives them back."""
    with lone_node(tmp_path_factory.mktemp("registers")) as node:
        yield node


@pytest.fixture(params=["2", "3"], ids=["RESP2", "RESP3"])
def wire(node: Node, request: pytest.FixtureRequest) -> Iterator[Wire]:
    """A connection; there is no key at its beginning."""
    with node.wire() as wire:
        wire.ask("HELLO", request.param)
        while names := scan(wire, "COUNT", 1000):
            wire.ask("DEL", *names[: limits.NAMES_MAX])
        yield wire


def reqid() -> str:
    """A request id nobody has used."""
    return f"request {next(_numbers)}"


def client() -> str:
    """A client id nobody has used."""
    return f"@client {next(_numbers)}"


def error(wire: Wire, *words: str | bytes | int) -> str:
    """The error that a request is answered with; it changes nothing."""
    before = wire.digest()
    with pytest.raises(ReplyError) as caught:
        wire.ask(*words)
    assert wire.digest() == before, words
    return str(caught.value)


def remembered_error(wire: Wire, *words: str | bytes | int) -> str:
    """The error that a request is answered with, which may be bound to its id."""
    with pytest.raises(ReplyError) as caught:
        wire.ask(*words)
    return str(caught.value)


def create(wire: Wire, name: str | bytes, value: str | bytes = "x") -> None:
    assert wire.ask("VPUT", name, value, 0) == 1


def lock(wire: Wire, name: str | bytes, *options: str | int) -> int:
    """Take a free lock: its fencing token."""
    token = wire.ask("LOCK", name, reqid(), *options)
    assert isinstance(token, int) and token > 0
    return token


def scan(wire: Wire, *options: str | int) -> list[bytes]:
    """All pages of SCAN."""
    names, cursor = list[bytes](), b"0"
    while True:
        reply = wire.ask("SCAN", cursor, *options)
        assert isinstance(reply, list)
        cursor, found = reply
        assert 0 <= int(cursor) < 2**63, "clients keep it in a signed 64-bit integer"
        names += found
        if cursor == b"0":
            return names


# -- VGET and VPUT --------------------------------------------------------------------------------


def test_a_register_is_created_written_and_read(wire: Wire) -> None:
    assert error(wire, "VGET", "a") == NO_KEY
    assert wire.ask("VPUT", "a", "one", 0) == 1
    assert wire.ask("VGET", "a") == [b"one", 1]
    assert wire.ask("vput", "a", "two", 1) == 2
    assert wire.ask("vGet", "a") == [b"two", 2]


def test_the_last_word_of_a_conflict_is_the_current_version(wire: Wire) -> None:
    create(wire, "a")
    for version in range(1, 12):
        assert error(wire, "VPUT", "a", "y", 99) == f"VERSION the current version is {version}"
        assert error(wire, "VPUT", "a", "y", 0) == f"VERSION the current version is {version}"
        assert wire.ask("VPUT", "a", "y", version) == version + 1
    assert error(wire, "VPUT", "none", "y", 12) == NO_KEY


def test_a_repeat_gets_the_first_answer_errors_too(wire: Wire) -> None:
    written, conflict, unknown, stale = (reqid() for _ in range(4))
    for _ in range(2):
        assert wire.ask("VPUT", "a", "one", 0, written) == 1
        said = remembered_error(wire, "VPUT", "a", "no", 0, conflict)
        assert said == "VERSION the current version is 1"
        assert remembered_error(wire, "VPUT", "b", "no", 3, unknown) == NO_KEY
        put = ("VPUT", "a", "no", 1, stale, "FENCE", "l", 7)
        assert remembered_error(wire, *put) == STALE
    assert wire.ask("VGET", "a") == [b"one", 1]
    wire.ask("DEL", "a")
    assert wire.ask("VPUT", "a", "one", 0, written) == 1
    assert error(wire, "VGET", "a") == NO_KEY, "the first answer, not a second effect"


def test_a_clients_ids_are_the_same_as_for_locks(wire: Wire) -> None:
    me = client()
    assert wire.ask("VPUT", "a", "x", 0, f"{me}:5") == 1
    assert wire.ask("VPUT", "a", "other", 9, f"{me}:5") == 1
    reused = "ERR request id was already used for another command or name"
    assert error(wire, "LOCK", "a", f"{me}:5") == reused
    assert error(wire, "VPUT", "b", "x", 0, f"{me}:5") == reused
    assert error(wire, "VPUT", "a", "x", 1, f"{me}:4").startswith("REQUESTGONE ")
    assert wire.ask("LOCK", "l", f"{me}:6") != 0
    assert error(wire, "VPUT", "a", "x", 1, f"{me}:5").startswith("REQUESTGONE ")


def test_a_put_ends_its_clients_earlier_wait(node: Node, wire: Wire) -> None:
    me = client()
    lock(wire, "l")
    with node.wire() as waiting:
        waiting.send("LOCK", "l", f"{me}:1", "WAIT", 60_000)
        wait_until(lambda: wire.inspect("l")["waiter_count"] == 1, "it waits")
        assert wire.ask("VPUT", "a", "x", 0, f"{me}:2") == 1
        assert waiting.read() == 0


def test_a_fenced_put_is_written_while_the_lock_is_held_and_not_after(wire: Wire) -> None:
    token = lock(wire, "l")
    assert wire.ask("VPUT", "a", "one", 0, "FENCE", "l", token) == 1
    assert wire.ask("VPUT", "a", "two", 1, reqid(), "fence", "l", token) == 2
    assert error(wire, "VPUT", "a", "no", 2, "FENCE", "l", token + 1) == STALE
    assert error(wire, "VPUT", "a", "no", 2, "FENCE", "other", token) == STALE
    wire.ask("UNLOCK", "l", reqid())
    assert error(wire, "VPUT", "a", "no", 2, "FENCE", "l", token) == STALE
    assert error(wire, "VPUT", "none", "no", 2, "FENCE", "l", token) == STALE, "the fence first"
    assert wire.ask("VGET", "a") == [b"two", 2]


def test_a_fence_that_names_nothing_is_refused(wire: Wire) -> None:
    """A shell whose variables are empty sends that: it must not write without a fence."""
    for words in (
        ("FENCE",),
        ("fence",),
        ("r1", "FENCE"),
        ("FENCE", "l"),
        ("FENCE", "FENCE", "l", 7),
    ):
        assert error(wire, "VPUT", "a", "x", 0, *words).startswith("ERR syntax error, VPUT is:")


BINARY = [b"", b"\r\n", b"$3\r\nabc\r\n", b"\x00" * 9, bytes(range(256)), b"*1\r\n$4\r\nPING\r\n"]


@pytest.mark.parametrize("value", BINARY, ids=len)
def test_values_and_names_are_bytes(wire: Wire, value: bytes) -> None:
    name = b"name \r\n\x00\xff" + value
    create(wire, name, value)
    assert wire.ask("VGET", name) == [value, 1]
    assert wire.ask("EXISTS", name, name[:-1]) == 1
    assert scan(wire) == [name]
    token = lock(wire, value + b" 7 \r\n")
    assert wire.ask("VPUT", name, value, 1, "FENCE", value + b" 7 \r\n", token) == 2


def test_names_are_told_apart_by_every_byte(wire: Wire) -> None:
    for number, suffix in enumerate(("", " ", "\x00", "\x00\x00", "a", "A", "\r\n", "\u00e9")):
        create(wire, "n" + suffix, str(number))
    for number, suffix in enumerate(("", " ", "\x00", "\x00\x00", "a", "A", "\r\n", "\u00e9")):
        assert wire.ask("VGET", "n" + suffix) == [str(number).encode(), 1]


# -- bounds ---------------------------------------------------------------------------------------


def test_a_name_has_1_to_512_bytes(wire: Wire) -> None:
    longest, too_long = "n" * 512, "n" * 513
    create(wire, longest)
    assert wire.ask("VGET", longest) == [b"x", 1]
    said = "ERR key must be 1 to 512 bytes long"
    for name in ("", too_long, "n" * 60_000):
        assert error(wire, "VGET", name) == said
        assert error(wire, "VPUT", name, "x", 0) == said
        for command in ("TTL", "PTTL"):
            assert wire.ask(command, name) == -2
        assert wire.ask("TYPE", name) == b"none"
        assert wire.ask("PERSIST", name) == wire.ask("PEXPIRE", name, 100) == 0


def test_a_value_has_at_most_65536_bytes(wire: Wire) -> None:
    longest = random.Random(1).randbytes(65_536)
    create(wire, "a", longest)
    assert wire.ask("VGET", "a") == [longest, 1]
    said = "ERR value must be at most 65536 bytes long"
    assert error(wire, "VPUT", "a", longest + b"x", 1) == said
    assert error(wire, "VPUT", "a", longest + b"x", 1, reqid()) == said
    assert wire.ask("VPUT", "a", "", 1) == 2
    assert wire.ask("VGET", "a") == [b"", 2]


def test_a_request_id_has_1_to_512_bytes(wire: Wire) -> None:
    longest = reqid().ljust(512, "r")
    assert wire.ask("VPUT", "a", "x", 0, longest) == wire.ask("VPUT", "a", "x", 0, longest) == 1
    said = "ERR request id must be 1 to 512 bytes long"
    for wrong in ("", longest + "r"):
        assert error(wire, "VPUT", "a", "x", 1, wrong) == said
        assert error(wire, "VPUT", "a", "x", 1, wrong, "FENCE", "l", 7) == said


def test_the_lock_of_a_fence_has_1_to_512_bytes(wire: Wire) -> None:
    longest = "l" * 512
    token = lock(wire, longest)
    assert wire.ask("VPUT", "a", "x", 0, "FENCE", longest, token) == 1
    for wrong in ("", longest + "l"):
        said = error(wire, "VPUT", "a", "x", 1, "FENCE", wrong, token)
        assert said == "ERR lock name must be 1 to 512 bytes long"


def test_a_version_is_a_whole_number_from_0_to_its_largest(wire: Wire) -> None:
    create(wire, "a")
    largest = limits.VERSION_MAX
    assert error(wire, "VPUT", "a", "x", largest) == "VERSION the current version is 1"
    for wrong in (
        "", " 1", "1 ", "+1", "01", "00", "-0", "-1", "1.0", "1e1", "0x1", "one", "\u0661", "1\r\n",
        largest + 1, 2**63, 2**64 + 1, "9" * 400,
    ):  # fmt: skip
        assert error(wire, "VPUT", "a", "x", wrong) == BAD_VERSION, wrong
        assert error(wire, "VPUT", "a", "x", wrong, reqid(), "FENCE", "l", 7) == BAD_VERSION


def test_a_fencing_token_is_a_number_from_1_to_the_largest_there_is(wire: Wire) -> None:
    create(wire, "a")
    for token in (1, 2**63 - 1):
        assert error(wire, "VPUT", "a", "x", 1, "FENCE", "l", token) == STALE
    for wrong in ("", "0", "-1", "01", "+1", "1.0", "x", 2**63, "9" * 400):
        assert error(wire, "VPUT", "a", "x", 1, "FENCE", "l", wrong) == BAD_TOKEN


@pytest.mark.parametrize("wrong", ["@", "@c", "@c:", "@:1", "@c:01", "@c:-1", f"@c:{2**63}"])
def test_a_malformed_client_id_is_said_to_be_one(wire: Wire, wrong: str) -> None:
    said = error(wire, "VPUT", "a", "x", 0, wrong)
    assert said.startswith("ERR request ids that begin with '@' have the form @<client>:<n>")


def test_a_wrong_number_of_arguments_or_a_wrong_word_is_an_error(wire: Wire) -> None:
    create(wire, "a")
    for words in (("VGET",), ("VGET", "a", "b"), ("VPUT",), ("VPUT", "a"), ("VPUT", "a", "x")):
        said = f"ERR wrong number of arguments for '{words[0].lower()}' command"
        assert error(wire, *words) == said
    put = ("VPUT", "a", "x", 1)
    for more in (
        ("r", "FENCE"), ("FENCE", "l"), ("FENSE", "l", 7), ("r", "FENSE", "l", 7),
        ("r", "FENCE", "l"), ("FENCE", "l", 7, "r"), ("r", "FENCE", "l", 7, "more"),
        ("FENCE", "l", 7, "FENCE", "l", 7),
    ):  # fmt: skip
        assert error(wire, *put, *more) == SYNTAX, more


@pytest.fixture
def bounded(tmp_path: Path) -> Iterator[Node]:
    """A node without a peer, on which registers are small."""
    room = 3 * (limits.REGISTER_OVERHEAD_BYTES + 1) + 20
    cluster = Cluster(tmp_path, Bounded(REGISTERS_BYTES_MAX=room))
    node = cluster.node("N").start("--log-level", "info")
    wait_until(node.answers, "it answers", [node])
    yield node
    cluster.close()


def test_all_registers_together_are_bounded(bounded: Node) -> None:
    full = "OOM registers take up as much memory as they may; nothing was done"
    with bounded.wire() as wire:
        for name, value in (("a", "1" * 10), ("b", "2" * 10), ("c", "")):
            create(wire, name, value)
        assert info_of(bounded)["registers_bytes"] == str(3 * 251 + 20)
        for words in (("d", "", 0), ("d", "", 0, "r1"), ("c", "1", 1), ("c", "1", 1, "@c:2")):
            assert error(wire, "VPUT", *words) == full, words
        assert error(wire, "VPUT", "c", "1", 7) == "VERSION the current version is 1"
        assert wire.ask("VPUT", "a", "1" * 9, 1) == 2
        assert wire.ask("VPUT", "c", "1", 1, "@c:2") == 2, "OOM was not remembered"
        assert wire.ask("EXISTS", "a", "b", "c") == 3, "nothing is evicted"
        assert lock(wire, "l") > 0, "locks have room of their own"
        wire.ask("DEL", "b")
        assert wire.ask("VPUT", "d", "", 0, "r1") == 1


# -- a lock or a register -------------------------------------------------------------------------


def test_a_command_on_locks_says_that_a_register_is_none(wire: Wire) -> None:
    create(wire, "a")
    for words in (
        ("LOCK", "a", reqid()), ("LOCK", "a", reqid(), "WAIT", 100, "PX", 100), ("GET", "a"),
        ("UNLOCK", "a", reqid()), ("UNLOCK", "a", reqid(), "TOKEN", 7), ("RENEW", "a", 7, "PX", 5),
        ("VERIFY", "a", 7), ("INSPECT", "a"),
    ):  # fmt: skip
        assert error(wire, *words) == IS_REGISTER, words
    assert wire.ask("UNLOCK", "a", reqid(), "REQUEST", reqid()) == 0, "to undo is to bind"
    assert wire.ask("VGET", "a") == [b"x", 1]


def test_a_command_on_registers_says_that_a_lock_is_none(wire: Wire) -> None:
    lock(wire, "a", "PX", 60_000)
    for words in (("VGET", "a"), ("VPUT", "a", "x", 0), ("VPUT", "a", "x", 5, reqid())):
        assert error(wire, *words) == IS_LOCK
    for end in (("PEXPIRE", "a", 100), ("EXPIRE", "a", 0), ("PERSIST", "a")):
        said = error(wire, *end)
        assert said.startswith("WRONGTYPE ") and "RENEW" in said
    wire.ask("DEL", "a")
    create(wire, "a")
    wire.ask("DEL", "a")
    assert lock(wire, "a") > 0


# -- registers as keys ----------------------------------------------------------------------------


def test_type_exists_del_and_dbsize_take_both(wire: Wire) -> None:
    create(wire, "v")
    lock(wire, "l")
    assert [wire.ask("TYPE", name) for name in ("v", "l", "n")] == [b"register", b"string", b"none"]
    assert wire.ask("EXISTS", "v", "l", "n", "v") == 3
    assert wire.ask("DBSIZE") == 2
    assert wire.ask("DEL", "v", "n", "l", "v") == 2
    assert wire.ask("DBSIZE") == wire.ask("EXISTS", "v", "l") == 0
    create(wire, "v")
    assert wire.ask("VGET", "v") == [b"x", 1], "it begins again"


def test_ttl_and_pttl_say_what_is_left(wire: Wire) -> None:
    assert wire.ask("TTL", "v") == wire.ask("PTTL", "v") == -2
    create(wire, "v")
    assert wire.ask("TTL", "v") == wire.ask("PTTL", "v") == -1
    assert wire.ask("EXPIRE", "v", 100) == 1
    left_ms, left_s = wire.ask("PTTL", "v"), wire.ask("TTL", "v")
    assert isinstance(left_ms, int) and 60_000 < left_ms <= 100_000
    assert isinstance(left_s, int) and 60 < left_s <= 100
    assert wire.ask("VPUT", "v", "y", 1) == 2
    assert isinstance(left := wire.ask("PTTL", "v"), int) and 0 < left <= left_ms, "a put keeps it"
    assert wire.ask("PERSIST", "v") == 1
    assert wire.ask("TTL", "v") == wire.ask("PTTL", "v") == -1


def test_a_register_expires_by_itself_and_is_gone_for_every_command(wire: Wire) -> None:
    for name in ("v", "w"):
        create(wire, name)
        assert wire.ask("PEXPIRE", name, 20) == 1
    wait_until(lambda: wire.ask("DBSIZE") == 0, "they are gone, though nobody asked for them")
    assert error(wire, "VGET", "v") == error(wire, "VPUT", "v", "y", 1) == NO_KEY
    assert wire.ask("TYPE", "v") == b"none" and wire.ask("TTL", "v") == -2
    assert wire.ask("DEL", "v") == wire.ask("EXISTS", "v", "w") == wire.ask("PERSIST", "v") == 0
    create(wire, "v")
    assert wire.ask("TTL", "v") == -1


def test_an_end_is_at_most_a_year_from_now(wire: Wire) -> None:
    create(wire, "v")
    year_ms = limits.LEASE_MS_MAX
    assert wire.ask("PEXPIRE", "v", year_ms) == wire.ask("EXPIRE", "v", year_ms // 1000) == 1
    said = "ERR invalid expire time in '{}' command: at most {}"
    for length in (year_ms + 1, 2**63 - 1):
        assert error(wire, "PEXPIRE", "v", length) == said.format("pexpire", year_ms)
    for length in (year_ms // 1000 + 1, 2**63 - 1):
        assert error(wire, "EXPIRE", "v", length) == said.format("expire", year_ms // 1000)
    for command in ("EXPIRE", "PEXPIRE"):
        for wrong in ("", "1.5", "x", "01", 2**63, -(2**63) - 1):
            assert error(wire, command, "v", wrong) == NOT_AN_INTEGER
        assert error(wire, command, "v") == (
            f"ERR wrong number of arguments for '{command.lower()}' command"
        )


def test_info_shows_registers_and_keys(node: Node, wire: Wire) -> None:
    wire.ask("CONFIG", "RESETSTAT")
    create(wire, "v", "12345")
    create(wire, "w")
    wire.ask("PEXPIRE", "v", 60_000)
    lock(wire, "l", "PX", 60_000)
    lock(wire, "m")
    error(wire, "VPUT", "v", "x", 9)
    error(wire, "VPUT", "none", "x", 9)
    error(wire, "VPUT", "v", "x", 1, "FENCE", "l", 7)
    shown = info_of(node, "registers", "keyspace")
    assert shown == {
        "registers_held": "2",
        "registers_expiring": "1",
        "registers_bytes": str(2 * (limits.REGISTER_OVERHEAD_BYTES + 1) + 6),
        "registers_written_total": "2",
        "registers_conflicts_total": "2",
        "registers_stale_tokens_total": "1",
        "registers_expired_total": "0",
        "db0": "keys=4,expires=2,avg_ttl=0",
    }
    wire.ask("PEXPIRE", "v", 5)
    wait_until(lambda: info_of(node, "registers")["registers_expired_total"] == "1", "it ends")
    assert info_of(node, "stats")["expired_keys"] == "1"


# -- SCAN -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 10, 60, 61, 1000])
def test_a_walk_shows_every_lock_and_register_once_however_large_its_pages(
    wire: Wire, count: int
) -> None:
    for number in range(30):
        create(wire, f"v{number}")
        lock(wire, f"l{number}")
    names = scan(wire, "COUNT", count)
    assert sorted(names) == sorted(b"%c%d" % (kind, n) for kind in b"vl" for n in range(30))
    assert scan(wire, "COUNT", count, "TYPE", "register") == names[30:]
    assert scan(wire, "type", "STRING", "count", count) == names[:30]
    assert scan(wire, "COUNT", count, "TYPE", "list") == []
    found = scan(wire, "COUNT", count, "MATCH", "?1*", "TYPE", "Register")
    assert sorted(found) == sorted([b"v1"] + [b"v1%d" % number for number in range(10)])
    assert len(scan(wire, "MATCH", "*2?", "COUNT", count)) == 20


def test_a_walk_over_one_kind_only_ends_too(wire: Wire) -> None:
    assert scan(wire) == []
    create(wire, "v")
    assert scan(wire, "COUNT", 1) == scan(wire, "COUNT", 1, "TYPE", "register") == [b"v"]
    assert scan(wire, "TYPE", "string") == []
    wire.ask("DEL", "v")
    lock(wire, "l")
    assert scan(wire, "COUNT", 1) == scan(wire, "COUNT", 1, "TYPE", "string") == [b"l"]
    assert scan(wire, "TYPE", "register") == []


@pytest.mark.parametrize("cursor", [1, 2, 3, 10**15, 10**15 + 1, 2**63 - 2, 2**63 - 1])
def test_a_cursor_of_ones_own_making_is_harmless(wire: Wire, cursor: int) -> None:
    for number in range(20):
        create(wire, f"v{number}")
        lock(wire, f"l{number}")
    before = wire.digest()
    for options in ((), ("TYPE", "string"), ("TYPE", "register"), ("COUNT", 1)):
        reply = wire.ask("SCAN", cursor, *options)
        assert isinstance(reply, list) and len(reply[1]) <= 40
    assert wire.digest() == before
    for wrong in (-1, 2**63, "x", "", "01"):
        assert error(wire, "SCAN", wrong) == "ERR invalid cursor"


def test_a_walk_finds_what_stays_while_locks_and_registers_come_and_go(
    node: Node, wire: Wire
) -> None:
    """Others change places, from a lock to a register and back, between its pages."""
    rng = random.Random(1)
    kinds: dict[str, Callable[[Wire, str], object]] = {"v": create, "l": lock}
    staying = [f"stay {kind} {number}" for kind in kinds for number in range(80)]
    moving = [f"move {kind} {number}" for kind in kinds for number in range(80)]
    for name in rng.sample([*staying, *moving], 320):
        kinds[name.split()[1]](wire, name)
    written = dict.fromkeys(staying, 1)
    with node.wire() as other:
        for count in (7, 40):
            found, cursor = list[bytes](), b"0"
            while True:
                reply = wire.ask("SCAN", cursor, "COUNT", count)
                assert isinstance(reply, list)
                cursor, names = reply
                found += names
                for name in rng.sample(moving, 3):  # fewer than a page: the walk gains on them
                    other.ask("DEL", name)
                    kinds[rng.choice("vl")](other, name)
                for name in rng.sample(staying[:80], 3):
                    written[name] += 1
                    assert other.ask("VPUT", name, "y", written[name] - 1) == written[name]
                    assert other.ask("PEXPIRE", name, 60_000) == 1
                if rng.random() < 0.2:
                    assert len(scan(other, "COUNT", 100)) == 320, "another walk goes on beside it"
                if cursor == b"0":
                    break
            stayed = [name for name in found if name.startswith(b"stay")]
            assert sorted(stayed) == sorted(name.encode() for name in staying), "each once"


def test_locks_walks_locks_only(wire: Wire) -> None:
    create(wire, "v")
    lock(wire, "l")
    reply = wire.ask("LOCKS", 0)
    assert isinstance(reply, list)
    assert [as_map(each)["name"] for each in reply[1]] == [b"l"]


# -- how the bytes come ---------------------------------------------------------------------------


def test_large_values_come_through_a_pipeline(wire: Wire) -> None:
    values = [random.Random(number).randbytes(65_536) for number in range(60)]
    wire.sock.sendall(
        b"".join(
            encode("VPUT", f"v{number}", value, 0) + encode("VGET", f"v{number}")
            for number, value in enumerate(values)
        )
    )
    for value in values:
        assert wire.read() == 1
        assert wire.read() == [value, 1]


def test_a_large_value_may_come_byte_by_byte(wire: Wire) -> None:
    value = random.Random(7).randbytes(65_536)
    for byte in encode("VPUT", "a", value, 0):
        wire.sock.sendall(bytes((byte,)))
    assert wire.read() == 1
    assert wire.ask("VGET", "a") == [value, 1]


def test_a_put_behind_a_wait_is_executed_after_it(node: Node, wire: Wire) -> None:
    lock(wire, "l")
    with node.wire() as waiting:
        waiting.send("LOCK", "l", reqid(), "WAIT", 60_000)
        waiting.send("VPUT", "a", "x", 0)
        wait_until(lambda: wire.inspect("l")["waiter_count"] == 1, "it waits")
        assert wire.ask("EXISTS", "a") == 0
        wire.ask("UNLOCK", "l", reqid())
        assert waiting.read() != 0
        assert waiting.read() == 1


def test_an_inline_request_may_put_too(wire: Wire) -> None:
    wire.sock.sendall(b'VPUT a "two words\\r\\n" 0\r\nVGET a\r\n')
    assert wire.read() == 1
    assert wire.read() == [b"two words\r\n", 1]


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py_asks_for_it_with_execute_command(node: Node, protocol: int) -> None:
    name = reqid()
    with redis.Redis(port=node.port, protocol=protocol) as client_of_redis:
        ask = client_of_redis.execute_command
        assert ask("VPUT", name, b"\x00one", 0) == 1
        assert ask("VGET", name) == [b"\x00one", 1]
        with pytest.raises(redis.ResponseError, match="the current version is 1"):
            ask("VPUT", name, "two", 0)
        with pytest.raises(redis.ResponseError, match="no register"):
            ask("VGET", name + "?")
        assert client_of_redis.type(name) == b"register"
        assert client_of_redis.pexpire(name, 60_000, gt=False)
        assert 0 < client_of_redis.pttl(name) <= 60_000
        assert name.encode() in client_of_redis.scan_iter(match="request*", _type="register")
        with client_of_redis.pipeline(transaction=False) as pipeline:
            for version in range(1, 100):
                pipeline.execute_command("VPUT", name, str(version), version)
            assert pipeline.execute() == list(range(2, 101))
        assert client_of_redis.delete(name) == 1


# -- beside a real Redis --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server, Wire(server.port) as wire:
        yield wire


def answer(wire: Wire, *words: str | int) -> object:
    """The reply, an error as its text."""
    try:
        return wire.ask(*words)
    except ReplyError as error:
        return f"-{error}"


CONDITIONS = [(), ("NX",), ("XX",), ("GT",), ("LT",), ("XX", "GT"), ("XX", "LT"), ("xx", "lt")]
UNFIT = [("NX", "XX"), ("NX", "GT"), ("NX", "LT"), ("GT", "LT"), ("XX", "GT", "LT")]


@pytest.mark.parametrize("conditions", CONDITIONS + UNFIT, ids=" ".join)
@pytest.mark.parametrize("command", ["PEXPIRE", "EXPIRE"])
def test_an_end_is_set_under_the_conditions_that_redis_has(
    node: Node, real: Wire, command: str, conditions: tuple[str, ...]
) -> None:
    """For a key without an end, with one, and for none; sooner, later, now and in the past."""
    unit = 1 if command == "PEXPIRE" else 1000
    with node.wire() as ours:
        for ends in (None, 500_000):
            for length in (900_000, 100_000, 0, -1, -1_000_000):
                name = reqid()
                assert ours.ask("VPUT", name, "x", 0) == 1
                assert real.ask("SET", name, "x") == b"OK"
                said = list[list[object]]()
                for wire in (ours, real):
                    if ends is not None:
                        assert wire.ask("PEXPIRE", name, ends) == 1
                    said.append(
                        [
                            answer(wire, command, name, length // unit, *conditions),
                            wire.ask("TTL", name),
                            wire.ask("EXISTS", name),
                            answer(wire, command, name + "none", length // unit, *conditions),
                            wire.ask("PERSIST", name),
                            wire.ask("PERSIST", name),
                            wire.ask("TTL", name),
                        ]
                    )
                assert said[0] == said[1], (ends, length)


def test_an_end_that_is_no_number_is_refused_as_in_redis(node: Node, real: Wire) -> None:
    with node.wire() as ours:
        for command in ("PEXPIRE", "EXPIRE"):
            for length in ("", "x", "1.5", " 1", "01", 2**63, -(2**63) - 1):
                words = (command, "none", length)
                assert answer(ours, *words) == answer(real, *words), words
        for wrong in (("PERSIST",), ("PERSIST", "a", "b"), ("EXPIRE", "a"), ("PEXPIRE",)):
            assert answer(ours, *wrong) == answer(real, *wrong), wrong


def test_a_condition_is_measured_against_what_is_left_as_in_redis(node: Node, real: Wire) -> None:
    """GT and LT with nearly the same end: strictly later, strictly sooner."""
    with node.wire() as ours:
        for condition, length, expected in (
            ("GT", 400_000, 0), ("GT", 600_000, 1), ("LT", 600_000, 0), ("LT", 400_000, 1),
        ):  # fmt: skip
            name = reqid()
            ours.ask("VPUT", name, "x", 0)
            real.ask("SET", name, "x")
            for wire in (ours, real):
                wire.ask("PEXPIRE", name, 500_000)
                assert wire.ask("PEXPIRE", name, length, condition) == expected
                left = wire.ask("TTL", name)
                assert left in (500, 499) if not expected else left in range(399, 601)
