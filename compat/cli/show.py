"""Locks as people read them, and as programs do.

For people: columns; names and owners with everything escaped that is no visible character, so that
nothing that a client has called itself drives the terminal.

For programs: JSON, one object in one line, plain ASCII. The fields are those of INSPECT and LOCKS,
times in milliseconds, `remaining_ms` -1 without a lease. Names and owners are bytes to the server:
here they are text, decoded as UTF-8, and what is not UTF-8 stands as \\xff (one backslash), which
a name could also contain as it is written.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

# A longer name sticks out of its column, and does not push all others to the right.
COLUMN_WIDTH_MAX = 40

_UNITS_S = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


def as_json(fields: Mapping[str, Any]) -> str:
    """One line."""
    return json.dumps(_as_text(fields))


def _as_text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, Mapping):
        return {_as_text(key): _as_text(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_text(each) for each in value]
    return value


def length(length_ms: int) -> str:
    """A duration with two units at most: 320ms, 4.2s, 3m12s, 2h05m, 400d03h."""
    if length_ms < 1_000:
        return f"{length_ms}ms"
    if length_ms < 60_000:
        return f"{length_ms // 100 / 10}s"
    seconds = length_ms // 1_000
    for (unit_s, unit), (below_s, below) in itertools.pairwise(_UNITS_S):
        if seconds >= unit_s:
            return f"{seconds // unit_s}{unit}{seconds % unit_s // below_s:02}{below}"
    raise AssertionError(length_ms)


def remaining(remaining_ms: int) -> str:
    """What is left of a lease."""
    return "none" if remaining_ms < 0 else length(remaining_ms)


def columns(rows: Sequence[Sequence[str]], widths: Sequence[int] = ()) -> list[str]:
    """The rows as lines; numbers are not treated differently from text."""
    wide = widths_of(rows, widths)
    return [
        "  ".join(
            cell + " " * (width - _width(cell)) for cell, width in zip(row, wide, strict=True)
        ).rstrip()
        for row in rows
    ]


def widths_of(rows: Sequence[Sequence[str]], at_least: Sequence[int] = ()) -> list[int]:
    """How wide each column is, in cells of the terminal."""
    found = [min(COLUMN_WIDTH_MAX, max(map(_width, column))) for column in zip(*rows, strict=True)]
    return [max(pair) for pair in zip(found, at_least or found, strict=True)]


def _width(text: str) -> int:
    """In cells of a terminal: two for a Chinese character, none for an accent on its own."""
    return sum(
        0 if unicodedata.combining(each) else 1 + (unicodedata.east_asian_width(each) in "WF")
        for each in text
    )
