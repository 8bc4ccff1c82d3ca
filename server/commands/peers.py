"""PEER: what the other node says to this one. Not for clients.

``PEER ASK version``
    Answered with the whole view, and what this node is in it.
``PEER PROPOSE version incarnation epoch``
    The same; a backup accepts its primary's proposal of a view without it (fail-stop).
``PEER JOIN version incarnation formerly port history epoch offset checksum register timeout``
    The connection becomes the replication link; see ``core/stream.py`` for what follows on it.
``PEER VIEW version [epoch primary members]``
    Reads, or compare-and-sets, the view register that this node keeps (``--view backup``).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ...resp import encoder
from ..core.backlog import Point
from ..core.feed import Joiner
from ..core.stream import PROTOCOL_VERSION, encode_answer
from ..core.view import View
from .table import command

if TYPE_CHECKING:
    from ..connection import Connection

_NAME = re.compile(rb"[0-9A-Za-z]{1,64}")
_NUMBER = re.compile(rb"[0-9]{1,19}")
_REGISTER_BYTES_MAX = 256
_MALFORMED = encoder.error("ERR malformed PEER request")
_NO_REGISTER = encoder.error("ERR this node keeps no view register; see --view-file")


@command(
    "peer",
    -3,
    "Internal: one node talks to the other",
    group="server",
    flags=("admin", "noscript", "loading", "stale"),
)
def peer(connection: Connection, argv: list[bytes]) -> bytes | None:
    """Answer the peer, or turn its connection into the replication link."""
    if argv[2] != PROTOCOL_VERSION:
        return encoder.error(
            f"ERR replication protocol {argv[2][:16].decode('latin-1')} is not spoken here, "
            f"this node has {PROTOCOL_VERSION.decode()}"
        )
    pairing = connection.node.pairing
    verb, rest = argv[1].upper(), argv[3:]
    if verb == b"ASK" and not rest:
        return encode_answer(pairing.answer_ask())
    if verb == b"PROPOSE" and len(rest) == 2 and _are([rest[0]], _NAME) and _are(rest[1:], _NUMBER):
        return encode_answer(pairing.answer_proposal(rest[0].decode(), int(rest[1])))
    if verb == b"JOIN":
        return _join(connection, rest)
    if verb == b"VIEW":
        return _view(connection, rest)
    return _MALFORMED


def _join(connection: Connection, words: list[bytes]) -> bytes | None:
    if len(words) != 9 or len(words[3]) > 64 or len(words[7]) > _REGISTER_BYTES_MAX:
        return _MALFORMED
    if not (_are(words[:2], _NAME) and _are([words[2], *words[4:7], words[8]], _NUMBER)):
        return _MALFORMED
    incarnation, formerly, port, history = (word.decode("latin-1") for word in words[:4])
    if not 0 < int(port) < 65536 or not int(words[8]):
        return _MALFORMED
    epoch, offset, checksum = map(int, words[4:7])
    register, timeout_ms = words[7].decode("latin-1"), int(words[8])
    point = Point(history, epoch, offset, checksum) if history != "-" else None
    joiner = Joiner(connection, incarnation, formerly, int(port), point, register, timeout_ms)
    refused = connection.node.pairing.join_request(joiner)
    if refused:
        return encoder.error(refused)
    connection.pause()
    return None


def _view(connection: Connection, words: list[bytes]) -> bytes | None:
    node = connection.node
    if not node.peer.keeper.keeps_file:
        return _NO_REGISTER
    if not words:
        node.peer.answer_view_request(connection, None)
        return None
    if len(words) != 3 or not _are(words[:1], _NUMBER) or not _are(words[1:2], _NAME):
        return _MALFORMED
    members = words[2].split(b",")
    if not _are(members, _NAME):
        return _MALFORMED
    view = View(int(words[0]), words[1].decode(), tuple(name.decode() for name in members))
    node.peer.answer_view_request(connection, view)
    return None


def _are(words: list[bytes], form: re.Pattern[bytes]) -> bool:
    return all(form.fullmatch(word) for word in words)
