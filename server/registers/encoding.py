"""A view as the bytes that are kept: one line of JSON, with a format number and a checksum.

There is one way to write a view. What is read must be exactly what would be written for it, so
every truncation, every flipped bit and every edit by hand is noticed.
"""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

from ..core.view import View

FORMAT = 1
# A pair has two members of 40 characters; this is enough for any view, and for no accident.
ENCODED_BYTES_MAX = 4096
# Exact as a number of every JSON reader.
EPOCH_MAX = 2**53 - 1

# Incarnations are hexadecimal; this is what can be shown and joined by commas.
_NODE = re.compile(r"[0-9A-Za-z._:-]{1,64}")


class Malformed(ValueError):
    """Bytes that are no view; the text says why, to follow "it"."""


def encode(view: View) -> bytes:
    """The bytes of a view that may be kept."""
    assert is_sound(view), view
    return _line(view)


def decode(data: bytes) -> View:
    """The view of which these are the bytes. Raises Malformed."""
    if not data:
        raise Malformed("is empty")
    if len(data) > ENCODED_BYTES_MAX:
        raise Malformed(f"is longer than {ENCODED_BYTES_MAX} bytes, which no view is")
    fields = _fields(data)
    if fields["holdfast_view"] != FORMAT:
        raise Malformed(
            f"has the format {fields['holdfast_view']!r}, and this version of Holdfast reads "
            f"{FORMAT}; use the version that wrote it"
        )
    view = _view(fields)
    if not is_sound(view) or _line(view) != data:
        raise Malformed("is not as Holdfast wrote it: its checksum or its form is wrong")
    return view


def is_sound(view: View) -> bool:
    """Whether a register may hold it: vacant, or with a primary that is one of the members."""
    if not 1 <= view.epoch <= EPOCH_MAX:
        return False
    if view.is_vacant:
        return view.members == ()
    distinct = len(set(view.members)) == len(view.members)
    return distinct and view.primary in view.members and all(map(_NODE.fullmatch, view.members))


def _line(view: View) -> bytes:
    body = {"epoch": view.epoch, "primary": view.primary, "members": list(view.members)}
    checksum = zlib.crc32(json.dumps(body).encode())
    return json.dumps({"holdfast_view": FORMAT, **body, "crc32": checksum}).encode() + b"\n"


def _fields(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data.decode("ascii"))
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or "holdfast_view" not in fields:
        raise Malformed("is not a view of Holdfast, or only a part of one")
    return fields


def _view(fields: dict[str, Any]) -> View:
    epoch, primary, members = (fields.get(name) for name in ("epoch", "primary", "members"))
    # type() and not isinstance(): True is no epoch.
    if type(epoch) is int and isinstance(primary, str) and isinstance(members, list):
        if all(isinstance(member, str) for member in members):
            return View(epoch, primary, tuple(members))
    raise Malformed("has fields that are missing, or of the wrong kind")
