"""Bad input, and what Redis says to it: shared by the tests of the decoder and of live servers.

A `Bad` is answered with its error, and then the connection is closed. Each was measured on
redis-server 7.0.15 unless `DEVIATIONS` in test_live_protocol.py says otherwise.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from .wire import encode

LONG = 64 * 1024 + 1
"""One byte more than an inline command, or a header, may have."""


class Bad(NamedTuple):
    """Bytes that break the protocol, and the words behind `Protocol error: `."""

    data: bytes
    error: str

    def __repr__(self) -> str:
        shown = repr(self.data) if len(self.data) < 50 else f"{self.data[:8]!r}...{len(self.data)}"
        return f"{shown}-{self.error}"


_COUNTS = (
    b"2147483648", b"3000000000", b"9223372036854775808", b"99999999999999999999",
    b"-9223372036854775809", b"-99999999999999999999", b"9" * 400, b"", b"-", b"abc", b"1abc",
    b" 1", b"1 ", b"+1", b"01", b"00", b"-0", b"-01", b"--1", b"1.0", b"0x1", b"1_0", b"1\n",
    b"\xc2\xb2", b"\xd9\xa1",
)  # fmt: skip
_LENGTHS = (
    *_COUNTS, b"-1", b"-10", b"-9223372036854775808", b"2000000000", b"536870913", b"blabla", b"04",
    b"+4",
)  # fmt: skip
_NOT_BULK = (
    b"fooz", b":1", b"+PING", b"-ERR", b"*1", b"%1", b"~1", b"_", b"#t", b",1.5", b"(1", b"=4",
    b">1", b"|1", b"!4", b" $4",
)  # fmt: skip
_UNBALANCED = (
    b"'abc", b'""x""', b'"abc', b'PING "', b"PING '", b"PING 'a'b", b'PING "a"b', b"PING a'b",
    b"'\\'", b"PING 'a\\\\'", b'PING "a\\"', b'PING "\\', b"\"'",
)  # fmt: skip

BAD: tuple[Bad, ...] = (
    *(Bad(b"*%b\r\n" % count, "invalid multibulk length") for count in _COUNTS),
    *(Bad(b"*1\r\n$%b\r\n" % length, "invalid bulk length") for length in _LENGTHS),
    *(Bad(b"*1\r\n%b\r\n" % item, f"expected '$', got '{chr(item[0])}'") for item in _NOT_BULK),
    Bad(b"*2\r\n$4\r\nECHO\r\n*1\r\n", "expected '$', got '*'"),
    Bad(b"*2\r\n$4\r\nECHO\r\n$-1\r\n", "invalid bulk length"),
    *(Bad(line + b"\r\n", "unbalanced quotes in request") for line in _UNBALANCED),
    Bad(b"'abc\n", "unbalanced quotes in request"),
    Bad(b"*" + b"1" * LONG, "too big mbulk count string"),
    Bad(b"*" + bytes(LONG), "too big mbulk count string"),
    Bad(b"*1\r\n$" + b"1" * LONG, "too big bulk count string"),
    Bad(b"*1\r\n$" + bytes(LONG), "too big bulk count string"),
    Bad(b"P" * LONG, "too big inline request"),
    Bad(bytes(LONG), "too big inline request"),
)

OURS: tuple[Bad, ...] = (
    # Redis has 2^20 elements of 512 MiB, skips the two bytes behind an argument whatever they are,
    # and does not look at the byte behind a header's CR.
    Bad(b"*1025\r\n", "invalid multibulk length"),
    Bad(b"*1048577\r\n", "invalid multibulk length"),
    Bad(b"*1\r\n$1048577\r\n", "invalid bulk length"),
    Bad(b"*1\r\n$1048576\r\n", "request larger than 1048576 bytes"),
    Bad(b"*1\r\n$4\r\nPINGxx", "expected CRLF behind an argument"),
    Bad(b"*1\r\n$4\r\nPING\n\n", "expected CRLF behind an argument"),
    Bad(b"*1\r\n$4\r\nPING\r\r", "expected CRLF behind an argument"),
    Bad(b"*1\r\n$3\r\nPING\r\n", "expected CRLF behind an argument"),
    Bad(b"*1\rX$4\r\nPING\r\n", "invalid multibulk length"),
    Bad(b"*1\r\n$4\rXPING\r\n", "invalid bulk length"),
    # Redis takes a NUL for the end of what has arrived, and waits for 64 KiB more.
    Bad(b"*1\x00\r\n", "invalid multibulk length"),
    Bad(b"*\x001\r\n", "invalid multibulk length"),
    Bad(b"*1\r\n$4\x00\r\n", "invalid bulk length"),
    # A control character would break the line of the error.
    Bad(b"*1\r\n\r\n", "expected '$', got '?'"),
    Bad(b"*1\r\n\n\r\n", "expected '$', got '?'"),
    Bad(b"*1\r\n\x00\r\n", "expected '$', got '?'"),
    Bad(b"*1\r\n\xff\r\n", "expected '$', got '?'"),
)

IGNORED: tuple[bytes, ...] = (
    b"\r\n", b"\n", b"*0\r\n", b"*-1\r\n", b"*-10\r\n", b"*-9223372036854775808\r\n", b"   \r\n",
    b"\t\v\f\r\n", b"\r\n\r\n\n", b"*0\r\n*-1\r\n\r\n",
)  # fmt: skip

WAITING: tuple[bytes, ...] = (
    b"*", b"*1", b"*1\r", b"*1\r\n", b"*1\r\n$", b"*1\r\n$4", b"*1\r\n$4\r", b"*1\r\n$4\r\n",
    b"*1\r\n$4\r\nPING", b"*1\r\n$4\r\nPING\r", b"PING", b"PING\r", b'PING "a',
    b"*3\r\n$4\r\nLOCK\r\n", b"*1\n$4\nPING\n", b"$4", b"PING\0\r\n", b"\0\r\nPING\r\n",
    b"PING\r\0\n",
)  # fmt: skip
"""Not complete: nothing is answered, nothing is closed."""

NESTED = b"*1\r\n" * 1_000
ARRAY_BOMB = b"*2147483647\r\n"
TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(32, 64)) + b"\x20" + bytes(160)
HTTP_POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\n\r\nPING\r\n"
HTTP_GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

GOOD: tuple[bytes, ...] = (
    encode("PING"),
    encode("ECHO", "a\r\nb"),
    encode("LOCK", "name", "@client:1"),
    encode("LOCK", b"\x00\xff\r\n$1\r\n", b"*1\r\n$4\r\nPING\r\n"),
    encode("ECHO", ""),
    encode("ECHO", "x" * 5_000),
    b"PING\r\n",
    b'ECHO "a\\x00b"\r\n',
    b"ECHO 'it\\'s'\n",
)

MARKS = (
    b"\r\n",
    b"\r",
    b"\n",
    b"\x00",
    b"$",
    b"*",
    b"-",
    b"0",
    b"1",
    b'"',
    b"'",
    b"\\",
    b" ",
    b"\xff",
)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """`data` with a few bytes changed, taken away, doubled or put in."""
    mutated = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(mutated))
        match rng.randrange(5):
            case 0:
                mutated[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del mutated[at : at + rng.randint(1, 4)]
            case 2:
                mutated[at:at] = rng.choice(MARKS)
            case 3:
                mutated[at:at] = mutated[at : at + rng.randint(1, 16)]
            case _:
                mutated[at:at] = rng.choice(BAD[:60]).data
    return bytes(mutated)
