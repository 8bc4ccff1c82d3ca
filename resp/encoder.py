"""Reply values in, bytes out: RESP2, and RESP3 for connections that said ``HELLO 3``.

=================  ==========================  =====================
Python             RESP2                       RESP3
=================  ==========================  =====================
int                integer                     integer
bytes, str         bulk string                 bulk string
None               null bulk string            null
bool               integer 1 or 0              boolean
float              bulk string                 double
list, tuple        array                       array
dict               array of keys and values    map
frozenset          array                       set
Status             simple string               simple string
Error              error                       error
Verbatim           bulk string                 verbatim string (txt)
=================  ==========================  =====================

The hot path does not come here: it uses the constants and ``integer``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import hiredis

OK = b"+OK\r\n"
PONG = b"+PONG\r\n"
ZERO = b":0\r\n"
ONE = b":1\r\n"
NULL = {2: b"$-1\r\n", 3: b"_\r\n"}

pack = cast("Callable[[tuple[object, ...]], bytes]", hiredis.pack_command)
"""A tuple of bytes, str and int as a RESP array of bulk strings: what one node sends the other."""


class Status(str):
    """A simple string, as ``OK``."""


class Error(str):
    """An error, beginning with its code word, as ``ERR syntax error``."""


class Verbatim(str):
    """Text for people, as INFO's."""


def integer(value: int) -> bytes:
    """An integer reply."""
    return b":%d\r\n" % value


def error(text: str) -> bytes:
    """An error reply; ``text`` starts with the code word. Line ends in it become spaces."""
    return b"-%b\r\n" % text.replace("\r", " ").replace("\n", " ").encode(
        "utf-8", "surrogateescape"
    )


def bulk(value: bytes) -> bytes:
    """A bulk string reply."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def encode(value: Any, protocol: int = 2) -> bytes:
    """``value`` as a reply in RESP2 or RESP3. Raises TypeError for what has no form there."""
    parts: list[bytes] = []
    _encode(value, protocol, parts.append)
    return b"".join(parts)


def _encode(value: Any, protocol: int, write: Any) -> None:
    match value:
        case None:
            write(NULL[protocol])
        case bool():
            write((b"#t\r\n" if value else b"#f\r\n") if protocol == 3 else integer(value))
        case int():
            write(integer(value))
        case Status():
            write(b"+%b\r\n" % value.encode())
        case Error():
            write(error(value))
        case Verbatim():
            text = value.encode()
            if protocol == 3:
                write(b"=%d\r\ntxt:%b\r\n" % (len(text) + 4, text))
            else:
                write(bulk(text))
        case bytes():
            write(bulk(value))
        case str():
            write(bulk(value.encode("utf-8", "surrogateescape")))
        case float():
            text = repr(value).encode()
            write(b",%b\r\n" % text if protocol == 3 else bulk(text))
        case dict():
            write(b"%%%d\r\n" % len(value) if protocol == 3 else b"*%d\r\n" % (2 * len(value)))
            for key, item in value.items():
                _encode(key, protocol, write)
                _encode(item, protocol, write)
        case frozenset():
            _encode_items(sorted(value), b"~" if protocol == 3 else b"*", protocol, write)
        case list() | tuple():
            _encode_items(value, b"*", protocol, write)
        case _:
            raise TypeError(f"no RESP form for {type(value).__name__}")


def _encode_items(items: Iterable[Any], sign: bytes, protocol: int, write: Any) -> None:
    items = list(items)
    write(b"%b%d\r\n" % (sign, len(items)))
    for item in items:
        _encode(item, protocol, write)
