"""Reading arguments: numbers as Redis reads them, globs, and the errors said everywhere."""

from __future__ import annotations

import re

from ...resp import encoder
from .table import shown

SYNTAX_ERROR = encoder.error("ERR syntax error")
NOT_AN_INTEGER = encoder.error("ERR value is not an integer or out of range")
BAD_TOKEN = encoder.error("ERR fencing token must be a decimal number from 1 to 2^63-1")

_INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")
_INT64 = range(-(2**63), 2**63)


def integer(text: bytes) -> int | None:
    """A 64-bit integer in its one canonical form; None for anything else."""
    if not _INTEGER.fullmatch(text):
        return None
    value = int(text)
    return value if value in _INT64 else None


def fencing_token(text: bytes) -> int | None:
    """A fencing token; None for anything else."""
    value = integer(text)
    return value if value is not None and value > 0 else None


def options(
    argv: list[bytes], known: tuple[bytes, ...], first: int = 3
) -> dict[bytes, bytes] | bytes:
    """The values of the options from ``first`` on, each given once; or an error reply."""
    values: dict[bytes, bytes] = {}
    for at in range(first, len(argv), 2):
        keyword = argv[at].upper()
        if keyword not in known:
            return encoder.error(
                f"ERR unknown option '{shown(keyword, 64)}', "
                f"{argv[0].lower().decode()} has {b', '.join(known).decode()}"
            )
        if keyword in values:
            return encoder.error(f"ERR option {keyword.decode()} is given twice")
        if at + 1 == len(argv):
            return encoder.error(f"ERR option {keyword.decode()} needs a value")
        values[keyword] = argv[at + 1]
    return values


class Glob:
    """A pattern: ``*``, ``?``, ``[a-z]``, ``[^a]`` and ``\\``, as in Redis.

    It is read once, into what each of its elements accepts. A mismatch then goes back to the last
    ``*`` only, so the work is at most the product of the lengths.
    """

    __slots__ = ("_elements",)

    def __init__(self, pattern: bytes) -> None:
        self._elements: list[bytes | None] = []  # the bytes that fit; None: a "*"
        at = 0
        while at < len(pattern):
            at = self._read_element(pattern, at)

    def _read_element(self, pattern: bytes, at: int) -> int:
        sign = pattern[at : at + 1]
        if sign == b"*":
            if self._elements[-1:] != [None]:
                self._elements.append(None)
        elif sign == b"?":
            self._elements.append(_ANY)
        elif sign == b"[":
            return self._read_class(pattern, at + 1)
        else:
            at += sign == b"\\" and at + 1 < len(pattern)
            self._elements.append(pattern[at : at + 1])
        return at + 1

    def _read_class(self, pattern: bytes, at: int) -> int:
        """What is in brackets; one that is not closed reaches to the end, as in Redis."""
        negated = pattern[at : at + 1] == b"^"
        at += negated
        found = set[int]()
        while at < len(pattern) and pattern[at : at + 1] != b"]":
            if pattern[at : at + 1] == b"\\" and at + 1 < len(pattern):
                at += 1
                found.add(pattern[at])
            elif pattern[at + 1 : at + 2] == b"-" and at + 2 < len(pattern):
                low, high = sorted((pattern[at], pattern[at + 2]))
                found.update(range(low, high + 1))
                at += 2
            else:
                found.add(pattern[at])
            at += 1
        self._elements.append(bytes(byte for byte in _ANY if (byte in found) is not negated))
        return at + 1

    def matches(self, text: bytes) -> bool:
        """Whether the whole of ``text`` fits."""
        elements = self._elements
        at = position = resume = 0
        star = -1
        while position < len(text):
            element = elements[at] if at < len(elements) else b""
            if element is None:
                star, resume = at, position
                at += 1
            elif text[position] in element:
                at += 1
                position += 1
            elif star >= 0:
                resume += 1
                at, position = star + 1, resume
            else:
                return False
        return elements[at:] in ([], [None])


_ANY = bytes(range(256))
_GLOB_SIGNS = re.compile(rb"[*?\[\\]")


def is_glob(text: bytes) -> bool:
    """Whether it is more than a plain name."""
    return _GLOB_SIGNS.search(text) is not None
