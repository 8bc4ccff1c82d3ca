"""The encoder of replies: exact bytes, and what real parsers read in them."""

from __future__ import annotations

import math
import socket
from typing import Any

import hiredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Connection
from redis import exceptions as redis_errors

from holdfast.resp import encoder
from holdfast.resp.encoder import Error, Status, Verbatim, encode

EXACT: list[tuple[Any, bytes, bytes]] = [
    (0, b":0\r\n", b":0\r\n"),
    (-1, b":-1\r\n", b":-1\r\n"),
    (2**63 - 1, b":9223372036854775807\r\n", b":9223372036854775807\r\n"),
    (-(2**63), b":-9223372036854775808\r\n", b":-9223372036854775808\r\n"),
    (b"", b"$0\r\n\r\n", b"$0\r\n\r\n"),
    (b"\x00\r\n\xff", b"$4\r\n\x00\r\n\xff\r\n", b"$4\r\n\x00\r\n\xff\r\n"),
    ("a", b"$1\r\na\r\n", b"$1\r\na\r\n"),
    ("\u00e9\udcff", b"$3\r\n\xc3\xa9\xff\r\n", b"$3\r\n\xc3\xa9\xff\r\n"),
    (None, b"$-1\r\n", b"_\r\n"),
    (True, b":1\r\n", b"#t\r\n"),
    (False, b":0\r\n", b"#f\r\n"),
    (1.5, b"$3\r\n1.5\r\n", b",1.5\r\n"),
    (math.inf, b"$3\r\ninf\r\n", b",inf\r\n"),
    (-math.inf, b"$4\r\n-inf\r\n", b",-inf\r\n"),
    ([], b"*0\r\n", b"*0\r\n"),
    ((1, b"a"), b"*2\r\n:1\r\n$1\r\na\r\n", b"*2\r\n:1\r\n$1\r\na\r\n"),
    ({}, b"*0\r\n", b"%0\r\n"),
    ({b"a": 1, "b": None}, b"*4\r\n$1\r\na\r\n:1\r\n$1\r\nb\r\n$-1\r\n",
     b"%2\r\n$1\r\na\r\n:1\r\n$1\r\nb\r\n_\r\n"),
    (frozenset((b"b", b"a")), b"*2\r\n$1\r\na\r\n$1\r\nb\r\n", b"~2\r\n$1\r\na\r\n$1\r\nb\r\n"),
    (Status("OK"), b"+OK\r\n", b"+OK\r\n"),
    (Error("ERR no"), b"-ERR no\r\n", b"-ERR no\r\n"),
    (Verbatim("a: 1\r\n"), b"$6\r\na: 1\r\n\r\n", b"=10\r\ntxt:a: 1\r\n\r\n"),
    ([{"a": [True]}], b"*1\r\n*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
     b"*1\r\n%1\r\n$1\r\na\r\n*1\r\n#t\r\n"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "resp2", "resp3"), EXACT, ids=lambda value: repr(value)[:30])
def test_every_type_has_one_form_in_resp2_and_one_in_resp3(
    value: Any, resp2: bytes, resp3: bytes
) -> None:
    assert encode(value) == encode(value, 2) == resp2
    assert encode(value, 3) == resp3


def test_the_ready_made_replies_are_what_the_encoder_would_make() -> None:
    assert encoder.OK == encode(Status("OK"))
    assert encoder.PONG == encode(Status("PONG"))
    assert encoder.ZERO == encoder.integer(0) == encode(0)
    assert encoder.ONE == encoder.integer(1) == encode(1)
    assert {protocol: encode(None, protocol) for protocol in (2, 3)} == encoder.NULL
    assert encoder.bulk(b"a\r\n") == encode(b"a\r\n")
    assert encoder.error("ERR no") == encode(Error("ERR no"))
    assert encoder.pack((b"LOCK", b"a", 1)) == b"*3\r\n$4\r\nLOCK\r\n$1\r\na\r\n$1\r\n1\r\n"


@pytest.mark.parametrize("value", [object(), bytearray(b"a"), {1, 2}, memoryview(b"a"), 1j])
@pytest.mark.parametrize("protocol", [2, 3])
def test_what_has_no_form_is_a_type_error(value: Any, protocol: int) -> None:
    with pytest.raises(TypeError, match="no RESP form"):
        encode(value, protocol)
    with pytest.raises(TypeError, match="no RESP form"):
        encode([1, {"a": value}], protocol)


# -- what parsers read ---------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False)
scalars = st.one_of(st.none(), st.booleans(), numbers, floats, st.binary(max_size=20), texts)
keys = st.one_of(numbers, st.binary(max_size=8))
values = st.recursive(
    st.one_of(
        scalars, texts.map(Verbatim), st.from_regex(r"[A-Z ]{1,9}", fullmatch=True).map(Status)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.frozensets(st.binary(max_size=4), max_size=4),
    ),
    max_leaves=12,
)


def as_read(value: Any, protocol: int) -> Any:
    """What a client has in hand after it has parsed the reply."""
    match value:
        case None | bytes():
            return value
        case bool():
            return value if protocol == 3 else int(value)
        case int():
            return value
        case float():
            return value if protocol == 3 else repr(value).encode()
        case str():
            return value.encode()
        case dict() if protocol == 3:
            return {as_read(key, 3): as_read(item, 3) for key, item in value.items()}
        case dict():
            return [as_read(part, 2) for pair in value.items() for part in pair]
        case frozenset():
            return set(value) if protocol == 3 else sorted(value)
        case list() | tuple():
            return [as_read(item, protocol) for item in value]
        case _:
            raise AssertionError(value)


def sets_as_lists(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, list):
        return [sets_as_lists(item) for item in value]
    if isinstance(value, dict):
        return {key: sets_as_lists(item) for key, item in value.items()}
    return value


@settings(max_examples=600, deadline=None)
@given(value=values, protocol=st.sampled_from([2, 3]))
def test_hiredis_reads_what_was_meant(value: Any, protocol: int) -> None:
    reader = hiredis.Reader()
    reader.feed(encode(value, protocol) + encoder.PONG)
    assert sets_as_lists(reader.gets()) == sets_as_lists(as_read(value, protocol))
    assert reader.gets() == b"PONG"


class ParserOfRedisPy:
    """redis-py's own parser, fed through a socket pair."""

    def __init__(self, protocol: int) -> None:
        from redis._parsers import _RESP2Parser, _RESP3Parser

        ours, theirs = socket.socketpair()
        self.ours = ours
        connection: type[Any] = Connection
        self.connection = connection(protocol=protocol)
        self.connection._sock = theirs
        parser_class: type[Any] = _RESP3Parser if protocol == 3 else _RESP2Parser
        self.parser = parser_class(socket_read_size=65536)
        self.parser.on_connect(self.connection)

    def read(self, data: bytes) -> Any:
        self.ours.sendall(data)
        return self.parser.read_response(disable_decoding=True)

    def close(self) -> None:
        self.ours.close()
        self.connection._sock.close()
        self.connection._sock = None


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py_reads_what_was_meant(protocol: int) -> None:
    parser = ParserOfRedisPy(protocol)

    @settings(max_examples=300, deadline=None)
    @given(value=values)
    def check(value: Any) -> None:
        read = parser.read(encode(value, protocol))
        assert sets_as_lists(read) == sets_as_lists(as_read(value, protocol))

    try:
        check()
        for value, resp2, resp3 in EXACT:
            if isinstance(value, Error):
                read = parser.read(resp3 if protocol == 3 else resp2)
                assert isinstance(read, redis_errors.ResponseError)
            elif value != "\u00e9\udcff":
                read = parser.read(resp3 if protocol == 3 else resp2)
                assert sets_as_lists(read) == sets_as_lists(as_read(value, protocol))
    finally:
        parser.close()


# -- errors --------------------------------------------------------------------------------------


@settings(max_examples=500, deadline=None)
@given(text=st.text(max_size=60), protocol=st.sampled_from([2, 3]))
def test_an_error_is_one_line_whatever_it_quotes(text: str, protocol: int) -> None:
    said = f"ERR unknown command '{text}'".encode("utf-8", "replace").decode()
    for reply in (encoder.error(said), encode(Error(said), protocol)):
        assert reply.startswith(b"-ERR ")
        assert reply.endswith(b"\r\n")
        assert b"\r" not in reply[:-2]
        assert b"\n" not in reply[:-2]


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=40))
def test_an_error_quotes_any_bytes(data: bytes) -> None:
    reply = encoder.error("ERR " + data.decode("utf-8", "surrogateescape"))
    shown = data.replace(b"\r", b" ").replace(b"\n", b" ")
    assert reply == b"-ERR " + shown + b"\r\n"


def test_an_error_inside_an_array_is_one_line_too() -> None:
    reader = hiredis.Reader()
    reader.feed(encode([Error("ERR a\r\n+OK\r\nb"), 1], 3))
    error, number = reader.gets()
    assert str(error) == "ERR a  +OK  b"
    assert number == 1
    assert reader.gets() is False
