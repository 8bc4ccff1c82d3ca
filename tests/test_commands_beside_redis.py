"""The same bytes to Holdfast and to a real redis-server: the replies agree, byte for byte.

What differs on purpose stands here too, each with its reason.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import hiredis
import pytest
from harness.ports import HOST
from harness.processes import Cluster, Node, Zygote, wait_until
from harness.redis_server import RedisServer
from harness.wire import encode

REDIS_VERSION = "7.0.15"


class Raw:
    """A connection whose replies are kept as the bytes that came."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection((HOST, port), 10.0)

    def ask(self, *words: str | bytes) -> bytes:
        """The bytes of the reply to one request."""
        self._sock.sendall(encode(*words))
        reader, received = hiredis.Reader(), b""
        while True:
            data = self._sock.recv(65536)
            received += data
            reader.feed(data)
            if not data or reader.gets() is not False:
                return received

    def close(self) -> None:
        self._sock.close()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        raw = Raw(server.port)
        shown = raw.ask("INFO", "server")
        raw.close()
        if b"redis_version:%b\r\n" % REDIS_VERSION.encode() not in shown:
            pytest.skip(f"NOT COMPARED WITH REDIS: it is another version than {REDIS_VERSION}")
        yield server


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Iterator[Node]:
    cluster = Cluster(Path(tmp_path_factory.mktemp("holdfast")), zygote)
    node = cluster.node("N").start("--log-level", "info")
    wait_until(node.answers, "the node answers", [node])
    yield node
    cluster.close()


def both(node: Node, redis: RedisServer, requests: list[tuple[str | bytes, ...]]) -> None:
    """Send the requests, over one connection each, and compare every reply."""
    ours, theirs = Raw(node.port), Raw(redis.port)
    try:
        for request in requests:
            assert ours.ask(*request) == theirs.ask(*request), request
    finally:
        ours.close()
        theirs.close()


SAME = """
PING
PING hello
PING a b
ping
pInG
ECHO hello
ECHO
ECHO a b
SELECT 0
SELECT abc
SELECT 99
SELECT -1
SELECT 99999999999999
SELECT 1 2
SELECT
QUIT_
HELLO 4
HELLO 1
HELLO abc
HELLO 3 foo
HELLO 3 AUTH u
HELLO 3 AUTH u p
HELLO 3 AUTH u p SETNAME x
HELLO 3 SETNAME
HELLO 3 SETNAME a\tb
AUTH
AUTH p
AUTH default p
AUTH u p
AUTH u p x
RESET
RESET x
CLIENT
CLIENT FOO
CLIENT GETNAME
CLIENT GETNAME x
CLIENT SETNAME
CLIENT SETNAME name
CLIENT GETNAME
CLIENT SETNAME a\tb
CLIENT GETNAME
CLIENT ID x
CLIENT LIST foo
CLIENT LIST TYPE
CLIENT LIST TYPE foo
CLIENT LIST TYPE pubsub
CLIENT LIST TYPE master
CLIENT LIST ID
CLIENT LIST ID abc
CLIENT LIST ID 987654
CLIENT KILL
CLIENT KILL 1.2.3.4:5
CLIENT KILL foo bar
CLIENT KILL ID 0
CLIENT KILL ID -1
CLIENT KILL ID abc
CLIENT KILL ID 987654
CLIENT KILL ID 987654 ADDR
CLIENT KILL TYPE foo
CLIENT KILL TYPE replica
CLIENT KILL USER nobody
CLIENT KILL USER default ID 987654
CLIENT KILL SKIPME maybe
CLIENT KILL ADDR 1.2.3.4:5
CLIENT KILL LADDR 1.2.3.4:5
CLIENT REPLY
CLIENT REPLY foo
CLIENT REPLY ON
CLIENT NO-EVICT
CLIENT NO-EVICT foo
CLIENT NO-EVICT ON
CLIENT NO-EVICT OFF
CLIENT HELP x
CLIENT MAINT_NOTIFICATIONS ON
COMMAND FOO
COMMAND COUNT x
COMMAND LIST foo
COMMAND LIST FILTERBY foo x
COMMAND LIST FILTERBY ACLCAT
COMMAND LIST FILTERBY ACLCAT nonsense
COMMAND LIST FILTERBY MODULE nonsense
COMMAND LIST FILTERBY PATTERN nonsense*
COMMAND LIST FILTERBY PATTERN client|l*
COMMAND LIST FILTERBY PATTERN [e]ch\\o
COMMAND INFO nonsense
COMMAND INFO nonsense rubbish
COMMAND DOCS nonsense
COMMAND GETKEYS
COMMAND GETKEYS nonsense a
COMMAND GETKEYS echo a
COMMAND GETKEYSANDFLAGS nonsense a
CONFIG
CONFIG FOO
CONFIG GET
CONFIG GET nonsense
CONFIG GET maxclients
CONFIG GET MAXCLIENTS
CONFIG GET maxcl?ents
CONFIG GET save
CONFIG GET appendonly
CONFIG GET timeout
CONFIG GET [l-n]axclients
CONFIG GET maxmemory-policy
CONFIG SET
CONFIG SET a
CONFIG SET a b c
CONFIG SET nonsense 1
CONFIG SET Nonsense 1
CONFIG SET maxclients 100 nonsense 1
CONFIG GET maxclients
CONFIG SET maxclients abc
CONFIG SET maxclients 10 maxclients 11
CONFIG SET slowlog-max-len 7
CONFIG GET slowlog-max-len
CONFIG SET slowlog-max-len 128 slowlog-log-slower-than 5000
CONFIG GET slowlog-m*
CONFIG SET slowlog-log-slower-than -1
CONFIG GET slowlog-log-slower-than
CONFIG SET slowlog-log-slower-than 0
CONFIG GET slowlog-log-slower-than
CONFIG SET slowlog-log-slower-than 10000
CONFIG SET save \x00
CONFIG RESETSTAT
CONFIG RESETSTAT x
CONFIG REWRITE
CONFIG HELP x
SLOWLOG
SLOWLOG FOO
SLOWLOG RESET
SLOWLOG LEN
SLOWLOG LEN x
SLOWLOG GET
SLOWLOG GET 0
SLOWLOG GET -1
SLOWLOG GET -2
SLOWLOG GET abc
SLOWLOG GET 1 2
TIME x
DBSIZE
DBSIZE x
ROLE x
WAIT
WAIT abc 1
WAIT 1 abc
WAIT 0 -1
WAIT -1 10
WAIT 0 0
WAIT 1 1
WAIT 2 1
REPLICAOF
REPLICAOF a
REPLICAOF h abc
REPLICAOF h 65536
REPLICAOF h -1
REPLICAOF NO ONE
SLAVEOF NO ONE
SHUTDOWN foo
SHUTDOWN ABORT
SHUTDOWN ABORT NOW
SHUTDOWN SAVE NOSAVE
GET
GET a
GET a b
DEL
DEL a
DEL a b a
EXISTS
EXISTS a
EXISTS a b a
TTL
TTL a
TTL a b
PTTL
PTTL a
PTTL a b
TYPE
TYPE a
TYPE a b
GET \x00
DEL \x00
EXISTS \x00
TTL \x00
TYPE \x00
DEBUG
COMMAND GETKEYS GET a
COMMAND GETKEYS GET a b
COMMAND GETKEYS DEL a
COMMAND GETKEYS DEL a b a
COMMAND GETKEYS EXISTS a b
COMMAND GETKEYS TTL a
COMMAND GETKEYS PTTL a
COMMAND GETKEYS TYPE a
COMMAND GETKEYSANDFLAGS GET a
COMMAND GETKEYSANDFLAGS TTL a
COMMAND GETKEYSANDFLAGS PTTL a
COMMAND GETKEYSANDFLAGS TYPE a
COMMAND GETKEYSANDFLAGS EXISTS a b
COMMAND GETKEYSANDFLAGS DEL a b
INFO nonsense
INFO cluster
INFO CLUSTER nonsense
INFO keyspace
FOO
foo a b c
FOO a\tb
CLIENT|LIST
COMMAND|INFO
"""


def requests_of(text: str) -> list[tuple[str | bytes, ...]]:
    """One request a line; a tab stands for a space in an argument, NUL for an empty one."""
    return [
        tuple(word.replace("\t", " ").replace("\x00", "") for word in line.split(" "))
        for line in text.splitlines()
        if line
    ]


@pytest.mark.parametrize("protocol", ["2", "3"])
def test_replies_agree_with_redis_byte_for_byte(
    node: Node, redis: RedisServer, protocol: str
) -> None:
    for request in requests_of(SAME):
        ours, theirs = Raw(node.port), Raw(redis.port)
        try:
            for raw in (ours, theirs):
                raw.ask("HELLO", protocol)
            assert ours.ask(*request) == theirs.ask(*request), request
        finally:
            ours.close()
            theirs.close()


def test_several_patterns_of_config_get_agree_with_redis_in_any_order(
    node: Node, redis: RedisServer
) -> None:
    found = []
    for port in (node.port, redis.port):
        raw, reader = Raw(port), hiredis.Reader()
        raw.ask("HELLO", "3")
        reader.feed(raw.ask("CONFIG", "GET", "slowlog-*", "SAVE", "maxclient[rs]", "nonsense"))
        found.append(reader.gets())
        raw.close()
    assert found[0] == found[1] and len(found[0]) == 4


@pytest.mark.parametrize("protocol", ["2", "3"])
@pytest.mark.parametrize("owner", [b"me", b"", b"\x00\r\n\xff", b"o" * 512], ids=len)
def test_a_held_lock_is_the_key_that_it_would_be_in_redis(
    node: Node, redis: RedisServer, protocol: str, owner: bytes
) -> None:
    """Its value is its owner; a lease is a time to live."""
    ours, theirs = Raw(node.port), Raw(redis.port)
    unique = f"{time.monotonic_ns()}"
    names = [f"{unique} {number}" for number in range(3)]
    options = ("OWNER", owner) if owner else ()
    for raw in (ours, theirs):
        raw.ask("HELLO", protocol)
    for name, lease in ((names[0], ()), (names[1], ("PX", "1000000"))):
        assert ours.ask("LOCK", name, owner or b"r", *options, *lease).startswith(b":")
        assert theirs.ask("SET", name, owner or b"r", "NX", *lease) == b"+OK\r\n"
    for request in (
        *(("GET", name) for name in names),
        *(("TYPE", name) for name in names),
        *(("TTL", name) for name in (names[0], names[2])),
        *(("PTTL", name) for name in (names[0], names[2])),
        ("EXISTS", *names, *names),
        ("EXISTS", names[2]),
        ("TTL", names[1]),
        ("DEL", names[0], names[0], names[2]),
        ("GET", names[0]),
        ("TTL", names[0]),
        ("DEL", *names),
        ("EXISTS", *names),
        ("DEL", *names),
    ):
        assert ours.ask(*request) == theirs.ask(*request), request
    for raw in (ours, theirs):
        raw.close()


@pytest.mark.parametrize("left_ms", [1_400, 1_600, 60_499, 60_900])
def test_seconds_are_rounded_as_in_redis(node: Node, redis: RedisServer, left_ms: int) -> None:
    """Half a second or more is a whole one."""
    ours, theirs = Raw(node.port), Raw(redis.port)
    name = f"{time.monotonic_ns()}"
    for _ in range(20):  # (both were asked within one millisecond, or nearly: else try again)
        ours.ask("DEL", name)
        theirs.ask("DEL", name)
        ours.ask("LOCK", name, name + str(time.monotonic_ns()), "PX", str(left_ms))
        theirs.ask("SET", name, "x", "PX", str(left_ms))
        if ours.ask("TTL", name) == theirs.ask("TTL", name):
            break
    else:
        raise AssertionError("never the same")
    for raw in (ours, theirs):
        raw.close()


def test_a_conversation_on_one_connection_agrees_with_redis(node: Node, redis: RedisServer) -> None:
    both(
        node,
        redis,
        [
            ("CLIENT", "SETNAME", "one"),
            ("CLIENT", "GETNAME"),
            ("CLIENT", "GETNAME"),
            ("CLIENT", "SETNAME", ""),
            ("CLIENT", "GETNAME"),
            ("CLIENT", "SETNAME", "two"),
            ("RESET",),
            ("CLIENT", "GETNAME"),
            ("SELECT", "0"),
            ("PING",),
            ("QUIT",),
        ],
    )


def test_odd_bytes_in_a_command_are_quoted_as_redis_quotes_them(
    node: Node, redis: RedisServer
) -> None:
    both(
        node,
        redis,
        [
            (b"",),
            (b"\xff\xfe", b"\x80"),
            (b"a\r\nb", b"c\r\nd"),
            (b"nul\0hidden", b"a\0b"),
            (b"x" * 200, b"y" * 200),
            (b"x", b"y" * 100, b"z" * 100, b"w"),
            (b"x", *[b"arg%d" % number for number in range(100)]),
            ("CLIENT", b"s" * 200),
            ("CLIENT", b"a\0b"),
            ("PING",),
        ],
    )


@pytest.mark.parametrize("protocol", [2, 3])
def test_hello_introduces_itself_in_the_shape_of_redis(
    node: Node, redis: RedisServer, protocol: int
) -> None:
    ours, theirs = Raw(node.port), Raw(redis.port)
    replies = [raw.ask("HELLO", str(protocol)) for raw in (ours, theirs)]
    without_ids = [[line for line in reply.split(b"\r\n") if line[:1] != b":"] for reply in replies]
    assert without_ids[0] == without_ids[1]
    assert b":%d\r\n" % protocol in replies[0]


# How ours differ from Redis' own words about the same command, and why.
FLAGS_DIFFER = {
    "ping": "it is answered while loading, too: monitoring must not take a joining node for dead",
}
ARITY_DIFFERS = {
    "replicaof": "NO ONE takes FORCE",
    "slaveof": "NO ONE takes FORCE",
    "command|getkeys": "a command without arguments is a command, too",
    "command|getkeysandflags": "likewise",
}
CATEGORIES_DIFFER: dict[str, str] = {}
ABSENT_THERE = {
    "client|setinfo": "since Redis 7.2",
    "client|no-touch": "since Redis 7.2",
    "lock": "ours",
    "unlock": "ours",
    "renew": "ours",
    "verify": "ours",
    "inspect": "ours",
    "locks": "ours",
    "vget": "ours",
    "vput": "ours",
    "debug|sleep": "not described there, and not to be had unless it is configured",
    "debug|digest": "likewise",
    "debug|help": "likewise",
}


def described(port: int, *names: str) -> dict[str, list[object]]:
    """COMMAND INFO by name, subcommands included."""
    reader = hiredis.Reader(encoding="utf-8")
    raw = Raw(port)
    reader.feed(raw.ask("COMMAND", "INFO", *names))
    raw.close()
    found = {}
    for entry in reader.gets():
        for each in [entry, *(entry[9] if entry else [])]:
            if each:
                found[each[0]] = each
    return found


def test_the_table_describes_its_commands_as_redis_does(node: Node, redis: RedisServer) -> None:
    ours = described(node.port, *described_names(node))
    theirs = described(redis.port, *[name for name in ours if "|" not in name])
    for name, entry in ours.items():
        if name in ABSENT_THERE:
            assert name not in theirs
            continue
        other = theirs[name]
        assert (entry[1] == other[1]) != (name in ARITY_DIFFERS), (name, entry[1], other[1])
        same_flags = set(entry[2]) == set(other[2])  # type: ignore[call-overload]
        assert same_flags != (name in FLAGS_DIFFER), (name, entry[2], other[2])
        assert entry[3:6] == other[3:6], name
        same = set(entry[6]) == set(other[6])  # type: ignore[call-overload]
        assert same != (name in CATEGORIES_DIFFER), (name, entry[6], other[6])
        assert entry[8] == other[8], (name, "key specifications")
        assert len(entry) == len(other)


def described_names(node: Node) -> list[str]:
    """All commands of ours."""
    reply = node.ask("COMMAND", "LIST")
    assert isinstance(reply, list)
    return [name.decode() for name in reply if b"|" not in name]


@pytest.mark.parametrize("protocol", ["2", "3"])
@pytest.mark.parametrize("what", ["INFO", "DOCS"])
def test_descriptions_have_the_types_that_redis_gives_them(
    node: Node, redis: RedisServer, protocol: str, what: str
) -> None:
    """The skeleton of the reply, types without values, agrees for a command with no extras."""
    for name in ("echo", "select"):
        replies = []
        for port in (node.port, redis.port):
            raw = Raw(port)
            raw.ask("HELLO", protocol)
            replies.append(skeleton(raw.ask("COMMAND", what, name)))
            raw.close()
        assert replies[0] == replies[1], name


def documented(port: int, *names: str) -> dict[str, dict[str, object]]:
    """COMMAND DOCS by name."""
    reader = hiredis.Reader(encoding="utf-8")
    raw = Raw(port)
    raw.ask("HELLO", "3")
    reader.feed(raw.ask("COMMAND", "DOCS", *names))
    raw.close()
    found = reader.gets()
    assert isinstance(found, dict)
    return found


def test_the_commands_on_keys_are_documented_as_in_redis(node: Node, redis: RedisServer) -> None:
    names = ("get", "del", "exists", "ttl", "pttl", "type")
    ours, theirs = (documented(port, *names) for port in (node.port, redis.port))
    assert list(ours) == list(names)
    for name in names:
        for field in ("group", "arguments"):
            assert ours[name][field] == theirs[name][field], (name, field)


def skeleton(reply: bytes) -> list[bytes]:
    """The first bytes of a reply's headers, and the names of fields."""
    fields = (b"name", b"type", b"summary", b"since", b"group", b"complexity", b"arguments")
    return [
        line if line in fields or line[:1] in b"*%~" else line[:1]
        for line in reply.split(b"\r\n")
        if line[:1] in (b"*", b"%", b"~", b":", b"+", b"$") or line in fields
    ]


@pytest.mark.parametrize("protocol", ["2", "3"])
def test_keys_and_their_flags_come_in_the_shape_of_redis(
    node: Node, redis: RedisServer, protocol: str
) -> None:
    ours, theirs = Raw(node.port), Raw(redis.port)
    for raw in (ours, theirs):
        raw.ask("HELLO", protocol)
    assert ours.ask("COMMAND", "GETKEYS", "LOCK", "a", "r1") == theirs.ask(
        "COMMAND", "GETKEYS", "SET", "a", "r1"
    )
    flags = ours.ask("COMMAND", "GETKEYSANDFLAGS", "INSPECT", "a")
    assert sorted(flags.split(b"\r\n")) == sorted(
        theirs.ask("COMMAND", "GETKEYSANDFLAGS", "GET", "a").split(b"\r\n")
    )


def test_a_few_things_differ_on_purpose(node: Node) -> None:
    raw = Raw(node.port)
    # One database; Redis has sixteen.
    assert raw.ask("SELECT", "1") == b"-ERR DB index is out of range\r\n"
    # Redis allows "=" in a name, and breaks the parsers of CLIENT LIST with it.
    assert raw.ask("CLIENT", "SETNAME", "a=b").startswith(b"-ERR Client names cannot contain")
    # A name is bounded (I12).
    assert raw.ask("CLIENT", "SETNAME", "n" * 256) == b"+OK\r\n"
    assert raw.ask("CLIENT", "SETNAME", "n" * 257).startswith(b"-ERR Client names cannot be longer")
    # maxclients is bounded by what the node is built for.
    assert b"between 1 and 10000 inclusive" in raw.ask("CONFIG", "SET", "maxclients", "10001")
    # Nothing that needs what is not here: all of these are unknown commands.
    # (MULTI comes last: up to EXEC, all that follows it is refused.)
    for word in ("SUBSCRIBE", "MONITOR", "SENTINEL", "CLUSTER", "HGET", "LATENCY", "MULTI"):
        assert raw.ask(word, "x").startswith(b"-ERR unknown command '%b'" % word.encode())
    raw.close()
