"""Commands on the server as a whole: TIME, DBSIZE, SLOWLOG, SHUTDOWN.

INFO, CONFIG and DEBUG have files of their own.
"""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING

from ...resp import encoder
from . import reading
from .table import Argument, command, container, shown

if TYPE_CHECKING:
    from ..connection import Connection

_SLOWLOG = ("admin", "loading", "stale")


@command(
    "time",
    1,
    "Returns the server's wall clock: seconds, and microseconds of the second",
    group="server",
    flags=("loading", "stale", "fast"),
)
def time_(connection: Connection, argv: list[bytes]) -> bytes:
    """``TIME``"""
    seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    return encoder.encode([str(seconds), str(microseconds)])


@command(
    "dbsize",
    1,
    "Returns the number of held locks and registers",
    group="server",
    flags=("readonly", "fast"),
    categories=("keyspace",),
    depends_on_state=True,
)
def dbsize(connection: Connection, argv: list[bytes]) -> bytes:
    """``DBSIZE``"""
    state = connection.node.replica.state
    return encoder.integer(len(state.locks.held) + len(state.registers.held))


# -- SLOWLOG ---------------------------------------------------------------------------------------

container("slowlog", "A container for slow log commands", group="server")


@command(
    "slowlog|get",
    -2,
    "Returns the newest entries of the slow log, 10 of them by default",
    group="server",
    flags=_SLOWLOG,
    arguments=(Argument("count", "integer", optional=True),),
    complexity="O(N) where N is the number of entries returned",
)
def slowlog_get(connection: Connection, argv: list[bytes]) -> bytes:
    """``SLOWLOG GET [count]``; -1: all."""
    if len(argv) > 3:
        return encoder.error(
            f"ERR unknown subcommand or wrong number of arguments for '{shown(argv[1])}'. "
            "Try SLOWLOG HELP."
        )
    count = reading.integer(argv[2]) if len(argv) == 3 else 10
    if count is None or count < -1:
        return encoder.error("ERR count should be greater than or equal to -1")
    entries = connection.node.stats.slow_requests
    return encoder.encode(
        [
            [slow.number, slow.at_s, slow.microseconds, slow.argv, slow.address, slow.client_name]
            for slow in islice(entries, len(entries) if count < 0 else min(count, len(entries)))
        ]
    )


@command("slowlog|len", 2, "Returns the length of the slow log", group="server", flags=_SLOWLOG)
def slowlog_len(connection: Connection, argv: list[bytes]) -> bytes:
    """``SLOWLOG LEN``"""
    return encoder.integer(len(connection.node.stats.slow_requests))


@command("slowlog|reset", 2, "Empties the slow log", group="server", flags=_SLOWLOG)
def slowlog_reset(connection: Connection, argv: list[bytes]) -> bytes:
    """``SLOWLOG RESET``"""
    connection.node.stats.slow_requests.clear()
    return encoder.OK


# -- SHUTDOWN --------------------------------------------------------------------------------------


@command(
    "shutdown",
    -1,
    "Stops the server in order: what is under way is answered first",
    group="server",
    flags=("admin", "noscript", "loading", "stale", "no_multi", "allow_busy"),
    arguments=(
        Argument(
            "nosave_save",
            "oneof",
            optional=True,
            arguments=(
                Argument("nosave", "pure-token", "NOSAVE"),
                Argument("save", "pure-token", "SAVE"),
            ),
        ),
        Argument("now", "pure-token", "NOW", optional=True),
        Argument("force", "pure-token", "FORCE", optional=True),
        Argument("abort", "pure-token", "ABORT", optional=True),
    ),
)
def shutdown(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``SHUTDOWN [NOSAVE|SAVE] [NOW] [FORCE] [ABORT]``: no reply, but a closed connection.

    Nothing is on disk, so SAVE and NOSAVE are the same; a stop is at once, so NOW and FORCE change
    nothing, and there is never one to abort.
    """
    words = {word.upper() for word in argv[1:]}
    if words - {b"NOSAVE", b"SAVE", b"NOW", b"FORCE", b"ABORT"} or {b"NOSAVE", b"SAVE"} <= words:
        return reading.SYNTAX_ERROR
    if b"ABORT" in words:
        alone = len(words) == 1
        return encoder.error("ERR No shutdown in progress.") if alone else reading.SYNTAX_ERROR
    connection.node.stop(f"SHUTDOWN from {connection.address}")
    connection.close_after_replies()
    return None
