"""LOCK, UNLOCK and INSPECT: requests on locks.

A request is checked here for its form, executed by the replica (at most once), and its answer
encoded. The connection holds the reply back until the backup has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...resp import encoder
from ..core.limits import NAME_BYTES_MAX
from ..core.reply_cache import AT, Refused, split_reqid
from ..core.state import LOCK, LOCK_WITH, UNDO, UNLOCK
from .table import COMMANDS, Argument, command, wrong_arity

if TYPE_CHECKING:
    from ..connection import Connection

_NOT_YET = frozenset((b"PX", b"EX", b"WAIT", b"TOKEN"))
# Nothing was executed, and the state was not read either: these need not wait for the backup.
_AT_ONCE = frozenset((Refused.TRY_AGAIN, Refused.NO_REPLICAS))
_REFUSALS = {refused: encoder.error(refused.value) for refused in Refused}

_NAME = Argument("name", "key")
_REQID = Argument("reqid")


@command(
    "lock",
    -3,
    "Grants a lock if nobody holds it: its fencing token, or 0",
    group="locks",
    flags=("write", "fast"),
    hot=True,
    key_position=1,
    arguments=(_NAME, _REQID, Argument("owner", token="OWNER", optional=True)),
)
def lock(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``LOCK name reqid [OWNER owner]``"""
    kind, owner = LOCK, b""
    if len(argv) != 3:
        owner, problem = _option(argv, b"OWNER")
        if problem:
            return problem
        kind = LOCK_WITH
    _, name, reqid = argv[:3]
    if not 0 < len(name) <= NAME_BYTES_MAX or not 0 < len(reqid) <= NAME_BYTES_MAX:
        return _bad_length(name, reqid)
    node = connection.node
    answer = node.replica.request(kind, name, reqid, owner)
    if answer.__class__ is not int:
        return _refuse(connection, answer)
    return b":%d\r\n" % answer if answer else encoder.ZERO


@command(
    "unlock",
    -3,
    "Releases a lock: 1, or 0 if it was not held",
    group="locks",
    flags=("write", "fast"),
    hot=True,
    key_position=1,
    arguments=(_NAME, _REQID, Argument("old-reqid", token="REQUEST", optional=True)),
)
def unlock(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``UNLOCK name reqid [REQUEST old-reqid]``"""
    kind, undone = UNLOCK, b""
    if len(argv) != 3:
        undone, problem = _option(argv, b"REQUEST")
        problem = problem or _undo_problem(argv[2], undone)
        if problem:
            return problem
        kind = UNDO
    _, name, reqid = argv[:3]
    if not 0 < len(name) <= NAME_BYTES_MAX or not 0 < len(reqid) <= NAME_BYTES_MAX:
        return _bad_length(name, reqid)
    answer = connection.node.replica.request(kind, name, reqid, b"", undone)
    if answer.__class__ is not int:
        return _refuse(connection, answer)
    return encoder.ONE if answer else encoder.ZERO


@command(
    "inspect",
    2,
    "Shows a lock: state, owner, fencing token, and for how long it has been held",
    group="locks",
    flags=("readonly", "fast"),
    hot=True,
    key_position=1,
    arguments=(_NAME,),
)
def inspect(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``INSPECT name``: a map."""
    if len(argv) != 2:
        return wrong_arity(COMMANDS["inspect"])
    name = argv[1]
    if not 0 < len(name) <= NAME_BYTES_MAX:
        return _bad_length(name, b"-")
    replica = connection.node.replica
    if replica.overflows:
        connection.refuse(_REFUSALS[Refused.TRY_AGAIN])
        return None
    grant = replica.state.locks.held.get(name)
    shown: dict[str, object] = {"state": "free", "owner": None, "fencing_token": 0, "held_ms": 0}
    if grant is not None:
        fencing_token, _, owner, granted_at_ms = grant
        shown = {
            "state": "held",
            "owner": owner,
            "fencing_token": fencing_token,
            "held_ms": replica.state_time_ms() - granted_at_ms,
        }
    return encoder.encode(shown, connection.protocol)


def _refuse(connection: Connection, refused: object) -> bytes | None:
    assert isinstance(refused, Refused)
    reply = _REFUSALS[refused]
    if refused in _AT_ONCE:
        connection.refuse(reply)
        return None
    return reply


def _option(argv: list[bytes], known: bytes) -> tuple[bytes, bytes]:
    """The value of the one option that may stand behind the request id; or an error reply."""
    name = argv[0].lower().decode("latin-1")
    if len(argv) < 3:
        return b"", wrong_arity(COMMANDS[name])
    keyword = argv[3].upper()
    shown = keyword[:64].decode("utf-8", "replace")
    if keyword in _NOT_YET:
        return b"", encoder.error(f"ERR option {shown} is not supported by this version")
    if keyword != known:
        return b"", encoder.error(f"ERR unknown option '{shown}', {name} has {known.decode()}")
    if len(argv) == 4:
        return b"", encoder.error(f"ERR option {shown} needs a value")
    if len(argv) > 5:
        again = argv[5].upper()
        if again == known:
            return b"", encoder.error(f"ERR option {shown} is given twice")
        _, problem = _option(argv[:3] + argv[5:], known)
        return b"", problem
    value = argv[4]
    if not 0 < len(value) <= NAME_BYTES_MAX:
        return b"", encoder.error(f"ERR value of {shown} must be 1 to {NAME_BYTES_MAX} bytes long")
    return value, b""


def _undo_problem(reqid: bytes, undone: bytes) -> bytes:
    """Why ``reqid`` may not undo the request ``undone``, as an error reply; empty if it may.

    Of an ``@client`` only the same client with a higher n may: that freezes the undone one.
    """
    if undone[0] != AT:
        return b""
    old = split_reqid(undone)
    if old is None:
        return _REFUSALS[Refused.MALFORMED]
    new = split_reqid(reqid) if reqid[:1] == b"@" else None
    if new is None or new[0] != old[0] or new[1] <= old[1]:
        return encoder.error(
            "ERR a request of an @client can be undone only by a request of the same client "
            "with a higher number"
        )
    return b""


def _bad_length(name: bytes, reqid: bytes) -> bytes:
    what = "lock name" if not 0 < len(name) <= NAME_BYTES_MAX else "request id"
    return encoder.error(f"ERR {what} must be 1 to {NAME_BYTES_MAX} bytes long")
