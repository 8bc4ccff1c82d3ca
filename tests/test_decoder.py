"""The decoder of requests: Redis' answers to bad input, the limits, and one meaning for all splits.

`reference` below is a second decoder, as plain as can be: it sees all bytes at once and knows no
fast path. Whatever arrives, in whatever pieces, the real one must agree with it.

HOLDFAST_TEST_SEED=n repeats the mutations of seed n.
"""

from __future__ import annotations

import os
import random
import re
import time
import tracemalloc
from collections.abc import Iterable, Iterator
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
    Bad,
    mutate,
)
from harness.redis_server import RedisServer
from harness.wire import ReplyError, Wire, encode
from hypothesis import example, given, settings
from hypothesis import strategies as st

from holdfast.resp import decoder
from holdfast.resp.decoder import Decoder, split_inline
from holdfast.server.core.limits import RECEIVE_BYTES

ELEMENTS_MAX = 1024
INLINE_MAX = 64 * 1024
REQUEST_MAX = 1024 * 1024
BULK_MAX = REQUEST_MAX - len(b"*1\r\n$1048556\r\n\r\n")
PING = encode("PING")
Outcome = tuple[list[list[bytes]], str]


def decode(chunks: Iterable[bytes]) -> Outcome:
    """What a decoder makes of `chunks`: the requests, and the error or nothing."""
    reader = Decoder()
    requests = []
    for chunk in chunks:
        failed = reader.error is not None
        found = reader.feed(chunk)
        assert not (failed and found), "nothing is read after a fault"
        requests += found
    if reader.error is not None:
        assert reader.feed(PING) == []
        assert reader.buffered_bytes == 0
    return requests, str(reader.error or "")


def bytewise(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


def cuts(length: int) -> Iterable[int]:
    """Every position; of a long input those at its ends, and some between."""
    if length < 5_000:
        return range(length + 1)
    return [*range(64), *range(64, length - 64, 4_999), *range(length - 64, length + 1)]


# -- the table of bad input ----------------------------------------------------------------------


@pytest.mark.parametrize("bad", [*BAD, *OURS], ids=repr)
def test_bad_input_is_refused_in_redis_words_however_it_is_split(bad: Bad) -> None:
    assert decode([bad.data]) == ([], bad.error)
    assert decode(bytewise(bad.data)) == ([], bad.error)
    for cut in cuts(len(bad.data)):
        assert decode([bad.data[:cut], bad.data[cut:]]) == ([], bad.error), cut


@pytest.mark.parametrize("bad", [*BAD, *OURS], ids=repr)
def test_requests_before_bad_input_are_good_and_none_behind_it_is_read(bad: Bad) -> None:
    data = PING + bad.data + PING
    outcome = ([[b"PING"]], bad.error)
    assert decode([data]) == outcome
    assert decode([PING, bad.data, PING]) == outcome
    for cut in cuts(len(data)):
        assert decode([data[:cut], data[cut:]]) == outcome, cut


@pytest.mark.parametrize("ignored", IGNORED, ids=repr)
def test_empty_requests_are_ignored_however_they_are_split(ignored: bytes) -> None:
    data = ignored + PING
    assert decode(bytewise(data)) == ([[b"PING"]], "")
    for cut in range(len(data) + 1):
        reader = Decoder()
        assert reader.feed(data[:cut]) + reader.feed(data[cut:]) == [[b"PING"]]
        assert reader.error is None
        assert reader.buffered_bytes == 0


@pytest.mark.parametrize("part", WAITING, ids=repr)
def test_an_incomplete_request_waits(part: bytes) -> None:
    assert decode([part]) == ([], "")
    assert decode(bytewise(part)) == ([], "")


@pytest.mark.parametrize("good", GOOD, ids=lambda good: repr(good[:40]))
def test_good_requests_are_read_however_they_are_split(good: bytes) -> None:
    requests, error = decode([good])
    assert len(requests) == 1
    assert not error
    assert decode(bytewise(good * 2)) == (requests * 2, "")
    for cut in cuts(len(good) * 2):
        assert decode([(good * 2)[:cut], (good * 2)[cut:]]) == (requests * 2, ""), cut


def test_other_protocols_end_soon() -> None:
    requests, error = decode([HTTP_POST])
    assert requests[:2] == [[b"POST", b"/", b"HTTP/1.1"], [b"Host:", b"localhost"]]
    assert decode([HTTP_GET])[0][1] == [b"Host:", b"localhost"]
    assert not error
    # A TLS hello has no line end: it waits, and a flood of such bytes is too big.
    assert decode([TLS_HELLO]) == ([], "")
    assert decode([TLS_HELLO * 1_000])[1] == "too big inline request"
    assert decode([NESTED]) == ([], "expected '$', got '*'")


# -- the limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("inline", [False, True])
def test_a_request_may_have_1024_elements_and_not_1025(inline: bool) -> None:
    def request(count: int) -> bytes:
        return b"x " * count + b"\r\n" if inline else encode(*["x"] * count)

    assert decode([request(ELEMENTS_MAX)]) == ([[b"x"] * ELEMENTS_MAX], "")
    assert decode([PING, request(ELEMENTS_MAX)[:-1], b"\n"])[0][1] == [b"x"] * ELEMENTS_MAX
    assert decode([request(ELEMENTS_MAX + 1)]) == ([], "invalid multibulk length")


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_an_inline_command_may_have_64_kib_and_not_one_byte_more(line_end: bytes) -> None:
    line = b"ECHO " + b"x" * (INLINE_MAX - 5)
    expected: Outcome = ([[b"ECHO", line[5:]]], "")
    whole = line + line_end
    assert decode([whole]) == expected
    assert decode(bytewise(whole)) == expected
    for cut in cuts(len(whole)):
        assert decode([whole[:cut], whole[cut:]]) == expected, cut
    assert decode([line + b"x" + line_end]) == ([], "too big inline request")
    assert decode(bytewise(line + b"x")) == ([], "too big inline request")


def test_a_header_may_have_64_kib_and_not_one_byte_more() -> None:
    for sign, error in ((b"*", "mbulk count"), (b"*1\r\n$", "bulk count")):
        longest = sign + b"x" * (INLINE_MAX - 1)
        assert decode([longest]) == ([], "")
        assert decode([longest + b"\r\n"])[1].startswith("invalid")
        assert decode([longest + b"x"])[1] == f"too big {error} string"


def test_a_bulk_and_a_request_may_have_1_mib_in_all_and_not_one_byte_more() -> None:
    one = encode(b"x" * BULK_MAX)
    assert len(one) == REQUEST_MAX
    assert decode([one]) == ([[b"x" * BULK_MAX]], "")
    assert decode([one[:70_000], one[70_000:]]) == ([[b"x" * BULK_MAX]], "")
    too_big = f"request larger than {REQUEST_MAX} bytes"
    assert decode([b"*1\r\n$%d\r\n" % (BULK_MAX + 1)]) == ([], too_big)
    assert decode([b"*1\r\n$%d\r\n" % REQUEST_MAX]) == ([], too_big)
    assert decode([b"*1\r\n$%d\r\n" % (REQUEST_MAX + 1)]) == ([], "invalid bulk length")


def test_the_limit_of_a_request_holds_on_the_fast_path_too() -> None:
    many = encode(*[b"x" * 4_000] * 300)
    assert len(many) > REQUEST_MAX
    too_big: Outcome = ([], f"request larger than {REQUEST_MAX} bytes")
    assert decode([many]) == too_big
    assert decode([PING + b"\r\n", many]) == ([[b"PING"]], too_big[1])
    assert decode([PING[:3], PING[3:] + many]) == ([[b"PING"]], too_big[1])
    assert decode(many[at : at + 65_536] for at in range(0, len(many), 65_536)) == too_big
    # More than that in one chunk is no fault as long as no single request is larger.
    assert decode([encode("ECHO", b"x" * 4_000) * 300])[0] == [[b"ECHO", b"x" * 4_000]] * 300


def test_a_request_over_the_limit_is_refused_before_its_bytes_are_buffered() -> None:
    reader = Decoder()
    start = b"*3\r\n$4\r\nECHO\r\n$600000\r\n"
    reader.feed(start)
    for fed in range(10_000, 600_001, 10_000):
        reader.feed(b"x" * 10_000)
        assert reader.buffered_bytes == len(start) + fed
    assert reader.feed(b"\r\n$600000\r") == []
    assert reader.error is None
    reader.feed(b"\n")
    assert str(reader.error) == f"request larger than {REQUEST_MAX} bytes"
    assert reader.buffered_bytes == 0


def test_what_is_buffered_never_exceeds_the_limit_by_more_than_a_chunk() -> None:
    chunk = b"x" * 65_536
    for start in (b"*1\r\n$1048000\r\n", b"", b"*", b"*1\r\n$", encode("PING")[:-1]):
        reader = Decoder()
        reader.feed(start)
        for _ in range(64):
            reader.feed(chunk)
            assert reader.buffered_bytes <= REQUEST_MAX + len(chunk)
        assert reader.error is not None, start
        assert reader.buffered_bytes == 0


def test_buffered_bytes_counts_what_is_held_of_an_incomplete_request() -> None:
    request = encode("LOCK", "name", "reqid")
    reader = Decoder()
    for at in range(len(request) - 1):
        assert reader.feed(request[at : at + 1]) == []
        assert reader.buffered_bytes == at + 1
    assert reader.feed(request[-1:]) == [[b"LOCK", b"name", b"reqid"]]
    assert reader.buffered_bytes == 0


def test_headers_that_promise_much_allocate_nothing() -> None:
    bombs = [ARRAY_BOMB, b"*1024\r\n", b"*1\r\n$1048556\r\n", b"*1\r\n$2147483647\r\n"]
    tracemalloc.start()
    try:
        readers = []
        before, _ = tracemalloc.get_traced_memory()
        for bomb in bombs * 250:
            readers.append(Decoder())
            readers[-1].feed(bomb)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 1_500 * len(readers), (after - before, peak - before)


@pytest.mark.parametrize(
    "data",
    [
        b" " * (INLINE_MAX - 1) + b"\n",
        b"x " * (INLINE_MAX // 2 - 1) + b"\n",
        b'"' + b"\\" * (INLINE_MAX - 4) + b'"\n',
        b"'" + b"\\'" * (INLINE_MAX // 2 - 4) + b"\n",
        b'x"' * (INLINE_MAX // 2 - 1) + b"\n",
        b"\n" * RECEIVE_BYTES,
        b"*0\r\n" * (RECEIVE_BYTES // 4),
        b"*1\r\n$0\r\n\r\n" * (RECEIVE_BYTES // 10),
        b"PING\n" * (RECEIVE_BYTES // 5),
    ],
    ids=lambda data: repr(data[:6]),
)
def test_neither_a_line_nor_a_chunk_takes_the_decoder_50_ms(data: bytes) -> None:
    spent_s = []
    for _ in range(5):  # the machine may have been busy with something else
        started_s = time.process_time()
        Decoder().feed(data)
        spent_s.append(time.process_time() - started_s)
    assert min(spent_s) < 0.05, spent_s


def test_a_request_that_arrives_byte_by_byte_costs_no_more_than_its_length() -> None:
    # 64 KiB of header and 200,000 bytes of argument: quadratic work would take minutes.
    started_s = time.perf_counter()
    decode(bytewise(b"*" + b"1" * LONG))
    decode(bytewise(encode(b"x" * 200_000)))
    assert time.perf_counter() - started_s < 5


# -- one meaning for all splits ------------------------------------------------------------------


class Reference:
    """The plain decoder: all bytes at once, no fast path. Raises Fault."""

    class Fault(Exception):
        pass

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.requests: list[list[bytes]] = []

    def outcome(self) -> Outcome:
        try:
            while self.at < len(self.data) and self.request():
                pass
        except Reference.Fault as fault:
            return self.requests, str(fault)
        return self.requests, ""

    def request(self) -> bool:
        """Read one request; False: it is incomplete."""
        if self.data[self.at] != ord("*"):
            return self.inline()
        start = self.at
        count = self.number("multibulk length", "mbulk")
        if count is None:
            return False
        if count > decoder.ELEMENTS_MAX:
            raise self.Fault("invalid multibulk length")
        arguments: list[bytes] = []
        while len(arguments) < count:
            argument = self.argument(start)
            if argument is None:
                return False
            arguments.append(argument)
        if arguments:
            self.requests.append(arguments)
        return True

    def number(self, what: str, short: str) -> int | None:
        line = self.data[self.at : self.at + decoder.INLINE_BYTES_MAX + 1]
        end = line.find(b"\r")
        if end < 0:
            if len(line) > decoder.INLINE_BYTES_MAX:
                raise self.Fault(f"too big {short} count string")
            return None
        after = self.data[self.at + end + 1 : self.at + end + 2]
        if not after:
            return None
        digits = line[1:end]
        canonical = re.fullmatch(rb"0|-?[1-9][0-9]*", digits) and len(digits) < 30
        if after != b"\n" or not canonical or not -(2**63) <= int(digits) < 2**63:
            raise self.Fault(f"invalid {what}")
        self.at += end + 2
        return int(digits)

    def argument(self, start: int) -> bytes | None:
        if self.at == len(self.data):
            return None
        if self.data[self.at] != ord("$"):
            shown = chr(self.data[self.at]) if 32 <= self.data[self.at] < 127 else "?"
            raise self.Fault(f"expected '$', got '{shown}'")
        length = self.number("bulk length", "bulk")
        if length is None:
            return None
        if not 0 <= length <= decoder.REQUEST_BYTES_MAX:
            raise self.Fault("invalid bulk length")
        end = self.at + length
        if end + 2 - start > decoder.REQUEST_BYTES_MAX:
            raise self.Fault(f"request larger than {decoder.REQUEST_BYTES_MAX} bytes")
        if end + 2 > len(self.data):
            return None
        if self.data[end : end + 2] != b"\r\n":
            raise self.Fault("expected CRLF behind an argument")
        argument = self.data[self.at : end]
        self.at = end + 2
        return argument

    def inline(self) -> bool:
        end = self.data.find(b"\n", self.at)
        if b"\0" in self.data[self.at : end + 1]:
            end = -1  # as in Redis
        rest = self.data[self.at : end if end >= 0 else len(self.data)]
        line = rest[:-1] if rest.endswith(b"\r") else rest
        if len(line) > decoder.INLINE_BYTES_MAX:
            raise self.Fault("too big inline request")
        if end < 0:
            return False
        arguments = split_plainly(line)
        if arguments is None:
            raise self.Fault("unbalanced quotes in request")
        if len(arguments) > decoder.ELEMENTS_MAX:
            raise self.Fault("invalid multibulk length")
        if arguments:
            self.requests.append(arguments)
        self.at = end + 1
        return True


SPACES = b" \t\r\n\v\f"
ENDS_WORD = b" \t\r\n"  # in the middle of a word, as in Redis, \v and \f are part of it
ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}


def split_plainly(line: bytes) -> list[bytes] | None:
    """The splitting of Redis, character by character; None: unbalanced."""
    words: list[bytes] = []
    at = 0
    while True:
        while at < len(line) and line[at] in SPACES:
            at += 1
        if at == len(line):
            return words
        word, quote = b"", b""
        while at < len(line) and (quote or line[at] not in ENDS_WORD):
            char = line[at : at + 1]
            at += 1
            if not quote:
                if char in (b'"', b"'"):
                    quote = char
                else:
                    word += char
            elif char == quote:
                if at < len(line) and line[at] not in SPACES:
                    return None
                quote = b""
                break
            elif char == b"\\" and quote == b"'" and line[at : at + 1] == b"'":
                word += b"'"
                at += 1
            elif char == b"\\" and quote == b'"' and at < len(line):
                hexadecimal = re.match(rb"x([0-9a-fA-F]{2})", line[at:])
                if hexadecimal:
                    word += bytes.fromhex(hexadecimal[1].decode())
                    at += 3
                else:
                    word += ESCAPED.get(line[at : at + 1], line[at : at + 1])
                    at += 1
            else:
                word += char
        if quote:
            return None
        words.append(word)


arguments = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [b"\r\n", b"a\r\n$1\r\nb", b"\r", b"\n", b"$4", b"*1", b"x" * 4_095, b"x" * 4_096]
    ),
)
requests = st.one_of(
    st.lists(arguments, min_size=1, max_size=5),
    st.lists(arguments, min_size=3, max_size=3),
)
pieces = st.one_of(
    requests.map(lambda request: encode(*request)),
    st.sampled_from(GOOD),
    st.sampled_from(IGNORED),
    st.text("abz \t\v\f'\"\\xnr4f\r", max_size=12).map(lambda line: line.encode() + b"\n"),
)
faults = st.one_of(
    st.sampled_from([bad.data for bad in (*BAD, *OURS) if len(bad.data) < LONG]),
    st.sampled_from(WAITING),
    st.binary(max_size=20),
)
streams = st.tuples(st.lists(pieces, max_size=6), st.one_of(st.just(b""), faults)).map(
    lambda parts: b"".join(parts[0]) + parts[1]
)


def split_at(data: bytes, positions: Iterable[int]) -> list[bytes]:
    ends = [*sorted(position % (len(data) + 1) for position in positions), len(data)]
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


positions = st.lists(st.integers(0, 100_000), max_size=6)


@settings(max_examples=500, deadline=None)
@given(sent=st.lists(requests, max_size=8), at=positions)
def test_any_list_of_requests_is_read_as_it_was_sent_in_any_split(
    sent: list[list[bytes]], at: list[int]
) -> None:
    data = b"".join(encode(*request) for request in sent)
    assert decode(split_at(data, at)) == (sent, "")


@settings(max_examples=1_000, deadline=None)
@given(data=streams, at=positions)
@example(data=b"PING\r\n*1\r\n$4\r\nPING\r\n", at=[3])
def test_any_split_of_any_bytes_gives_the_same_requests_and_the_same_error(
    data: bytes, at: list[int]
) -> None:
    expected = Reference(data).outcome()
    assert decode([data]) == expected
    assert decode(split_at(data, at)) == expected
    if len(data) < 1_000:
        assert decode(bytewise(data)) == expected


@settings(max_examples=1_000, deadline=None)
@given(data=streams, at=positions, limit=st.integers(8, 60))
def test_the_same_holds_close_to_the_limits(data: bytes, at: list[int], limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "INLINE_BYTES_MAX", limit)
        patch.setattr(decoder, "REQUEST_BYTES_MAX", 2 * limit)
        expected = Reference(data).outcome()
        assert decode([data]) == expected
        assert decode(split_at(data, at)) == expected
        assert decode(bytewise(data)) == expected


def test_mutations_of_the_corpus_mean_the_same_in_every_split() -> None:
    seed = int(os.environ.get("HOLDFAST_TEST_SEED", "0")) or random.randrange(1, 1_000_000)
    print(f"seed {seed}")
    rng = random.Random(seed)
    corpus = [bad.data for bad in (*BAD, *OURS) if len(bad.data) < LONG]
    corpus += [*GOOD, *IGNORED, *WAITING, HTTP_GET, TLS_HELLO]
    for _ in range(6_000):
        data = mutate(b"".join(rng.choices(corpus, k=rng.randint(1, 4))), rng)
        expected = Reference(data).outcome()
        at = [rng.randrange(len(data) + 1) for _ in range(rng.randint(1, 5))]
        assert decode([data]) == expected, (seed, data)
        assert decode(split_at(data, at)) == expected, (seed, data, at)


# -- inline commands -----------------------------------------------------------------------------

LINES = (
    b"ECHO hello", b"  ECHO   hello  ", b"\tECHO\thello\t", b'ECHO "hello world"', b"ECHO 'a b'",
    b'"ECHO" "x"', b"'ECHO' 'x'", b'ECHO ""', b"ECHO ''", b'ECHO a"b c"', b"ECHO a'b c'",
    b'E"CHO" x', b'ECHO "\\n\\r\\t\\b\\a"', b'ECHO "\\x00\\xff\\x4a\\x4A"', b'ECHO "\\x4"',
    b'ECHO "\\xzz"', b'ECHO "\\q\\\\"', b'ECHO "\\""', b"ECHO '\\''", b"ECHO '\\n'", b"ECHO '\\\\'",
    b"ECHO '\\\\n'", b"ECHO 'a\\\\\\'b'", b"ECHO \\n", b"ECHO a\\\"b", b"ECHO \\", b"ECHO a\x0bb",
    b"ECHO a\x0cb", b"ECHO \x0ba", b"ECHO \x0ca\x0c", b'ECHO "a"\x0b', b'"ECHO"\x0b"a"',
    b'"ECHO"\x0b\x0c a', b"ECHO a\rb", b'ECHO "a\rb"', b"ECHO \xff\xfe", b"ECHO \xc2\xa0",
    b"ECHO \x1c\x1d\x1e\x1f", b"ECHO \x85", b"ECHO 'a'b", b'ECHO "a"b', b'ECHO "a', b"ECHO 'a",
    b"ECHO a'b", b'ECHO "a\\', b'ECHO "a\\"', b"ECHO 'a\\'", b'ECHO a"b', b"ECHO \"a'b\"",
    b"ECHO 'a\"b'", b"ECHO #comment", b"ECHO *1", b"ECHO $1", b"ECHO \x7f\x01", b"ECHO a b",
    b"ECHO",
)  # fmt: skip


@pytest.mark.parametrize("line", LINES, ids=repr)
def test_inline_commands_are_split_as_the_plain_splitter_does(line: bytes) -> None:
    assert split_inline(line) == split_plainly(line)


@settings(max_examples=1_000, deadline=None)
@given(line=st.text("ab \t\v\f'\"\\xnrtbaq4f\0\r", max_size=24))
def test_any_line_is_split_as_the_plain_splitter_does(line: str) -> None:
    assert split_inline(line.encode()) == split_plainly(line.encode())


def test_inline_commands_are_split_as_redis_does(tmp_path: Path) -> None:
    seed = int(os.environ.get("HOLDFAST_TEST_SEED", "0")) or random.randrange(1, 1_000_000)
    print(f"seed {seed}")
    rng = random.Random(seed)
    alphabet = b"ab  \t\v\f'\"\\xnrtq4f\xff\r"
    made = [b"ECHO " + bytes(rng.choices(alphabet, k=rng.randint(1, 12))) for _ in range(1_000)]
    with RedisServer(tmp_path) as redis:
        echo = RedisEcho(redis.port)
        for line in (*LINES, *made):
            assert echo(line) == our_echo(line), (seed, line)


def our_echo(line: bytes) -> str:
    requests, error = decode([line + b"\r\n"])
    if error:
        return f"ERR Protocol error: {error}"
    [request] = requests
    if len(request) != 2:
        return "ERR wrong number of arguments for 'echo' command"
    return repr(request[1])


class RedisEcho:
    """What Redis answers to a line; it is dialled again whenever it has hung up."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.wire = Wire(port)

    def __call__(self, line: bytes) -> str:
        self.wire.sock.sendall(line + b"\r\n")
        try:
            return repr(self.wire.read())
        except ReplyError as error:
            if "Protocol error" in str(error):
                self.wire.close()
                self.wire = Wire(self.port)
            return str(error)
