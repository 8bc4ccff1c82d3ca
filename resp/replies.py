"""Replies in: hiredis, for what comes from a peer that this node has dialled itself and trusts not
to promise arrays of absurd length. (What anybody may send goes through ``decoder.py``.)"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import hiredis


def fields_of(payload: bytes) -> list[bytes]:
    """The byte strings of one whole array. Raises ValueError."""
    reader = hiredis.Reader()
    reader.feed(payload)
    try:
        fields = reader.gets()
    except hiredis.HiredisError as error:
        raise ValueError(f"a payload is not RESP: {error}") from None
    if not isinstance(fields, list):
        raise ValueError("a payload is not an array")
    return fields


def reply_parser() -> Callable[[bytes], Iterable[Any]]:
    """An incremental parser: bytes in, the replies that they complete out; an error reply is an
    exception among them. Raises ValueError on what is no RESP."""
    reader = hiredis.Reader()

    def parse(data: bytes) -> Iterable[Any]:
        reader.feed(data)
        while True:
            try:
                reply = reader.gets()
            except hiredis.HiredisError as error:
                raise ValueError(f"not RESP: {error}") from None
            if reply is False:
                return
            yield reply

    return parse
