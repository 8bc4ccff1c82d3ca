"""PEER: what the other node says to this one. Not for clients.

``PEER ASK version``, ``PEER PROPOSE version incarnation epoch`` and ``PEER JOIN version incarnation
port``; see ``core/stream.py`` for what follows on the connection after JOIN.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ...resp import encoder
from ..core.stream import PROTOCOL_VERSION, encode_answer
from .table import command

if TYPE_CHECKING:
    from ..connection import Connection

_INCARNATION = re.compile(rb"[0-9A-Za-z]{1,64}")
_NUMBER = re.compile(rb"[0-9]{1,18}")


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
        return encode_answer(pairing.replica.answer())
    if len(rest) == 2 and _INCARNATION.fullmatch(rest[0]) and _NUMBER.fullmatch(rest[1]):
        incarnation, number = rest[0].decode("ascii"), int(rest[1])
        if verb == b"PROPOSE":
            return encode_answer(pairing.proposal_from_peer(incarnation, number))
        if verb == b"JOIN" and 0 < number < 65536:
            return pairing.feed.join_request(connection, incarnation, number)
    return encoder.error("ERR malformed PEER request")
