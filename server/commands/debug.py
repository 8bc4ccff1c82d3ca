"""DEBUG: DIGEST, a fingerprint of the whole state to compare the two nodes by; SLEEP, for tests.

A digest is computed in slices from a fixed cut of the state, while requests go on (snapshot.py).
One cut is made at a time: a backup that joins comes first.
"""

from __future__ import annotations

import ipaddress
import math
import time
from functools import partial
from typing import TYPE_CHECKING

from ...resp import encoder
from ..core import limits
from ..core.snapshot import Digest
from .table import Argument, command, container

if TYPE_CHECKING:
    from ..connection import Connection

_NO_STATE = encoder.error("LOADING this node has no state yet")
_BUSY = encoder.error("TRYAGAIN a snapshot or a digest is being made; ask again in a moment")

_FLAGS = ("admin", "noscript", "loading", "stale")
_SLEEP_S_MAX = 60.0

container("debug", "A container for debugging commands", group="server", flags=_FLAGS)


@command(
    "debug|sleep",
    3,
    "Has the server sleep, as if it were stuck: for tests, from this machine only",
    group="server",
    flags=_FLAGS,
    arguments=(Argument("seconds", "double"),),
)
def debug_sleep(connection: Connection, argv: list[bytes]) -> bytes:
    """``DEBUG SLEEP seconds``: nothing at all is done meanwhile, no heartbeat either."""
    if not _is_local(connection):
        return encoder.error("ERR DEBUG command not allowed. It can be run from a local connection")
    seconds = _float(argv[2])
    if seconds is None or not 0 <= seconds <= _SLEEP_S_MAX:
        return encoder.error(f"ERR seconds must be a number from 0 to {_SLEEP_S_MAX:g}")
    time.sleep(seconds)
    return encoder.OK


@command(
    "debug|digest",
    2,
    "Returns a digest of the state, equal on both nodes, and the offset it is of",
    group="server",
    flags=_FLAGS,
)
def debug_digest(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``DEBUG DIGEST``"""
    node = connection.node
    state = node.replica.state
    if not state.history or node.replica.is_loading:
        return _NO_STATE
    if state.locks.before_cut is not None:
        return _BUSY
    node.digest = digest = Digest(state)
    connection.pause()
    node.do_in_steps(partial(_advance, connection, digest))
    return None


def _advance(connection: Connection, digest: Digest) -> bool:
    """One slice, in one turn of the loop; whether there is more to do."""
    node = connection.node
    if node.digest is not digest:
        connection.resume(_BUSY)
        return False
    if not connection.closed and digest.advance(limits.DIGEST_ITEMS_PER_SLICE):
        return True
    node.abandon_digest()
    connection.resume(encoder.encode([digest.hexdigest(), digest.offset]))
    return False


def _is_local(connection: Connection) -> bool:
    try:
        peer = ipaddress.ip_address(connection.sock.getpeername()[0])
    except (OSError, ValueError):
        return False
    mapped = getattr(peer, "ipv4_mapped", None)
    return bool((mapped or peer).is_loopback)


def _float(text: bytes) -> float | None:
    try:
        value = float(text[:32])
    except ValueError:
        return None
    return value if math.isfinite(value) and b"_" not in text else None
