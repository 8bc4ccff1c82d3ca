"""The same bytes to a real redis-server 7 and to Holdfast: the same answer, and the same end.

Where they differ it is on purpose, and stands in a list here with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness.corpus import (
    BAD,
    HTTP_GET,
    HTTP_POST,
    IGNORED,
    LONG,
    NESTED,
    OURS,
    TLS_HELLO,
    WAITING,
    Bad,
)
from harness.processes import Node
from harness.raw import Exchange, Raw, answer_to, exchange, last_words, lone_node, settle
from harness.redis_server import RedisServer
from harness.wire import encode

PING = encode("PING")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One for the whole file: none of this may harm it."""
    with lone_node(tmp_path_factory.mktemp("protocol")) as node:
        yield node


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The real one."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as redis:
        yield redis


def same(node: Node, redis: RedisServer, data: bytes) -> Exchange:
    """What both say to `data`."""
    ours, theirs = exchange(node.port, data), exchange(redis.port, data)
    assert ours == theirs
    return ours


# -- what is the same ----------------------------------------------------------------------------


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_bad_input_is_answered_as_by_redis(node: Node, redis: RedisServer, bad: Bad) -> None:
    error = b"-ERR Protocol error: " + bad.error.encode() + b"\r\n"
    assert last_words(node.port, bad.data) == error
    assert last_words(redis.port, bad.data) == error


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_good_bad_good_is_answered_as_by_redis(node: Node, redis: RedisServer, bad: Bad) -> None:
    # Redis takes what arrives in one piece for one, even if it is too long.
    data = PING + bad.data + (PING if len(bad.data) < LONG else b"")
    answers = b"+PONG\r\n-ERR Protocol error: " + bad.error.encode() + b"\r\n"
    assert last_words(node.port, data) == answers
    assert last_words(redis.port, data) == answers


@pytest.mark.parametrize("ignored", IGNORED, ids=repr)
def test_empty_requests_are_ignored_as_by_redis(
    node: Node, redis: RedisServer, ignored: bytes
) -> None:
    assert same(node, redis, ignored) == (b"", True)
    assert same(node, redis, ignored + b"PING\r\n" + ignored) == (b"+PONG\r\n", True)


@pytest.mark.parametrize("part", WAITING, ids=repr)
def test_an_incomplete_request_is_waited_for_as_by_redis(
    node: Node, redis: RedisServer, part: bytes
) -> None:
    for port in (node.port, redis.port):
        with Raw(port) as raw:
            raw.send(PING + part)
            assert raw.read_exactly(7) == b"+PONG\r\n"
            settle(port)
            assert not raw.has_something()


REQUESTS: tuple[bytes, ...] = (
    PING,
    b"PING\r\n",
    b"ping\n",
    b"PiNg\r\n",
    b" PING \r\n",
    b'"PING"\r\n',
    encode("PING", "x"),
    encode("PING", ""),
    encode("PING", "a", "b"),
    encode("PING", b"\x00\r\n\xff"),
    encode("ECHO", ""),
    encode("ECHO", b"\x00\r\n\xff"),
    encode("ECHO", "x" * 100_000),
    encode("ECHO", "x" * 4_095) + encode("ECHO", "x" * 4_096),
    encode("ECHO"),
    encode("ECHO", "a", "b"),
    b"ECHO 'a b' c\r\n",
    b"ECHO\r\n",
    PING * 1_000,
    b"PING\r\n" * 1_000,
    PING + b"PING\r\n" + b"*0\r\n" + encode("ECHO", "a") + b"\r\n" + PING,
    # unknown commands
    encode("FOO"),
    encode("foo", "a", "b"),
    encode(""),
    encode("", "a"),
    encode("x" * 128),
    encode("x" * 129),
    encode("x" * 1_000, "y" * 1_000, "z"),
    encode("FOO", "a" * 127, "b"),
    encode("FOO", "a" * 128, "b"),
    encode("FOO", "a" * 129, "b"),
    encode("FOO", *["ab"] * 60),
    encode("FOO", *[""] * 60),
    encode("FOO", *["x"] * 1_000),
    encode(b"FOO\r\nBAR", b"a\r\nb"),
    encode(b"FOO\nBAR", b"\r", b"\n"),
    encode(b"\xff\xfe", b"\x80"),
    encode(b"FOO\x00BAR", b"a\x00b"),
    encode(b"\x00"),
    encode("FOO", "\u00e9\u4e2d"),
    encode("'", "'"),
    encode("%s%n", "%d"),
    encode("PING "),
    encode("PING\r\n"),
    b"FOO a 'b c' \"d\\n\"\r\n",
    # the protocol, and what a connection is told
    encode("HELLO", "4"),
    encode("HELLO", "1"),
    encode("HELLO", "0"),
    encode("HELLO", "-3"),
    encode("HELLO", "abc"),
    encode("HELLO", ""),
    encode("HELLO", "03"),
    encode("HELLO", "+3"),
    encode("HELLO", " 3"),
    encode("HELLO", "99999999999999999999"),
    encode("HELLO", "3", "FOO"),
    encode("HELLO", "3", "SETNAME"),
    encode("HELLO", "3", "SETNAME", "a b"),
    encode("HELLO", "3", "AUTH", "x"),
    encode("HELLO", "3", "AUTH", "nobody", "wrong"),
    encode("AUTH", "x"),
    encode("AUTH", "nobody", "x"),
    encode("AUTH", "a", "b", "c"),
    encode("AUTH"),
    encode("SELECT", "0"),
    encode("SELECT", "abc"),
    encode("SELECT", ""),
    encode("SELECT", "99999999999"),
    encode("SELECT"),
    encode("QUIT"),
    encode("QUIT") + PING,
    PING + encode("QUIT") + PING,
    b"QUIT\r\nPING\r\n",
    encode("RESET"),
    encode("RESET", "x"),
    encode("CLIENT"),
    encode("CLIENT", "REPLY", "OFF") + PING + encode("CLIENT", "REPLY", "ON") + PING,
    encode("CLIENT", "REPLY", "SKIP") + PING + PING,
    encode("CLIENT", "REPLY", "SKIP") * 2 + PING + PING,
    encode("CLIENT", "REPLY", "OFF")
    + encode("CLIENT", "REPLY", "SKIP")
    + PING * 3
    + encode("CLIENT", "REPLY", "ON"),
    encode("CLIENT", "REPLY", "FOO"),
    encode("CLIENT", "REPLY"),
    encode("CLIENT", "SETNAME", "a b"),
    encode("CLIENT", "SETNAME", "a\r\n"),
    encode("CLIENT", "SETNAME", "a") + encode("CLIENT", "GETNAME"),
    encode("CLIENT", "GETNAME"),
    encode("COMMAND", "GETKEYS"),
    encode("CONFIG"),
    NESTED,
)


@pytest.mark.parametrize("data", REQUESTS, ids=lambda data: repr(data[:50]))
def test_requests_are_answered_as_by_redis(node: Node, redis: RedisServer, data: bytes) -> None:
    same(node, redis, data)


@pytest.mark.parametrize("data", [*IGNORED, *REQUESTS[:5]], ids=repr)
def test_requests_in_single_bytes_are_answered_as_by_redis(
    node: Node, redis: RedisServer, data: bytes
) -> None:
    answers = []
    for port in (node.port, redis.port):
        with Raw(port) as raw:
            for at in range(len(data)):
                raw.send(data[at : at + 1])
                if at % 4 == 0:
                    settle(port)
            raw.finish()
            answers.append(raw.read_to_end())
    assert answers[0] == answers[1]


def test_hello_3_changes_the_form_of_what_follows_as_in_redis(
    node: Node, redis: RedisServer
) -> None:
    for form, null in ((b"3", b"_\r\n"), (b"2", b"$-1\r\n")):
        for port in (node.port, redis.port):
            answer = answer_to(port, encode("HELLO", form) + encode("CLIENT", "GETNAME"))
            assert answer.endswith(null)
            assert answer.startswith(b"%7\r\n" if form == b"3" else b"*14\r\n")
            assert b"$5\r\nproto\r\n:" + form in answer


@pytest.mark.parametrize(
    "data",
    [HTTP_POST, b"POST x\r\n", b"post\r\n", b"Host: x\r\n", b"HOST: \r\n", HTTP_GET + PING],
    ids=lambda data: repr(data[:20]),
)
def test_a_browser_that_was_tricked_is_hung_up_on_as_by_redis(
    node: Node, redis: RedisServer, data: bytes
) -> None:
    assert last_words(node.port, data) == last_words(redis.port, data) == b""


def test_a_tls_hello_is_waited_on_as_by_redis(node: Node, redis: RedisServer) -> None:
    assert answer_to(node.port, TLS_HELLO) == answer_to(redis.port, TLS_HELLO) == b""


# -- what differs, and why -----------------------------------------------------------------------


@pytest.mark.parametrize("bad", OURS, ids=repr)
def test_where_we_are_stricter_on_purpose_we_say_so_and_close(
    node: Node, redis: RedisServer, bad: Bad
) -> None:
    """The reasons stand beside `OURS`."""
    error = b"-ERR Protocol error: " + bad.error.encode() + b"\r\n"
    assert exchange(node.port, bad.data) == (error, False)
    assert answer_to(redis.port, bad.data) != error


DEVIATIONS: dict[bytes, tuple[bytes, str]] = {
    b"*1\r\nfooz": (
        b"-ERR Protocol error: expected '$', got 'f'\r\n",
        "Redis waits for the end of the line before it looks at its first byte",
    ),
    encode("SELECT", "1"): (
        b"-ERR DB index is out of range\r\n",
        "there is one database",
    ),
}


@pytest.mark.parametrize("data", DEVIATIONS, ids=repr)
def test_other_differences_are_these(node: Node, redis: RedisServer, data: bytes) -> None:
    expected, reason = DEVIATIONS[data]
    assert answer_to(node.port, data) == expected, reason
    assert answer_to(redis.port, data) != expected, "no deviation any more"
