"""LOCK, UNLOCK, RENEW, VERIFY and INSPECT: requests on locks.

A request is checked here for its form, executed by the executor (at most once), and its answer
encoded. The connection holds the reply back until the backup has it.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from ...resp import encoder
from ..core import limits
from ..core.limits import NAME_BYTES_MAX
from ..core.lock_table import Grant
from ..core.reply_cache import AT, Refused, split_reqid
from ..core.state import UNDO, UNLOCK, UNLOCK_GRANT
from . import reading
from .refusing import error_of, refusal
from .table import COMMANDS, Argument, command, shown, wrong_arity

if TYPE_CHECKING:
    from ..connection import Connection

_LEASE = Argument(
    "lease",
    "oneof",
    arguments=(
        Argument("milliseconds", "integer", token="PX"),
        Argument("seconds", "integer", token="EX"),
    ),
)
_OPTIONAL_LEASE = Argument("lease", "oneof", optional=True, arguments=_LEASE.arguments)

_NAME = Argument("name", "key")
_REQID = Argument("reqid")
_TOKEN = Argument("fencing-token", "integer")


@command(
    "lock",
    -3,
    "Grants a lock, or stands in line for it: its fencing token, or 0 if refused",
    group="locks",
    flags=("write", "blocking", "fast"),
    hot=True,
    key_position=1,
    arguments=(
        _NAME,
        _REQID,
        _OPTIONAL_LEASE,
        Argument("milliseconds", "integer", token="WAIT", optional=True),
        Argument("owner", token="OWNER", optional=True),
    ),
)
def lock(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``LOCK name reqid [PX ms | EX s] [WAIT ms] [OWNER owner]``"""
    owner, lease_ms, wait_ms = b"", 0, 0
    if len(argv) != 3:
        options = _lock_options(argv)
        if isinstance(options, bytes):
            return options
        owner, lease_ms, wait_ms = options
    _, name, reqid = argv[:3]
    if not 0 < len(name) <= NAME_BYTES_MAX or not 0 < len(reqid) <= NAME_BYTES_MAX:
        return _bad_length(name, reqid)
    executor = connection.node.replica.executor
    answer = executor.lock(name, reqid, connection, owner, lease_ms, wait_ms)
    if answer.__class__ is not int:
        if answer is None:
            connection.pause()
            if connection.ended:  # it has hung up already: its place is kept for a repeat
                connection.close("closed by the client")
            return None
        return refusal(connection, answer)
    return b":%d\r\n" % answer if answer else encoder.ZERO


def _lock_options(argv: list[bytes]) -> tuple[bytes, int, int] | bytes:
    """Owner, lease and wait; or an error reply."""
    if len(argv) < 3:
        return wrong_arity(COMMANDS["lock"])
    if len(argv) == 5 and argv[3] == b"PX":  # by far the most frequent
        lease_ms = _lease_ms(b"PX", argv[4])
        return lease_ms if isinstance(lease_ms, bytes) else (b"", lease_ms, 0)
    values = reading.options(argv, (b"PX", b"EX", b"WAIT", b"OWNER"))
    if isinstance(values, bytes):
        return values
    if b"PX" in values and b"EX" in values:
        return encoder.error("ERR PX and EX exclude each other")
    lease: int | bytes = 0
    for unit in (b"PX", b"EX"):
        if unit in values:
            lease = _lease_ms(unit, values[unit])
    if isinstance(lease, bytes):
        return lease
    wait_ms = reading.integer(values.get(b"WAIT", b"0"))
    if wait_ms is None or not 0 <= wait_ms <= limits.WAIT_MS_MAX:
        return encoder.error(
            f"ERR value of WAIT must be a whole number of milliseconds from 0 (do not wait) to "
            f"{limits.WAIT_MS_MAX}"
        )
    owner = values.get(b"OWNER")
    if owner is not None and not 0 < len(owner) <= NAME_BYTES_MAX:
        return _bad_value("OWNER")
    return owner or b"", lease, wait_ms


@command(
    "unlock",
    -3,
    "Releases a lock: 1, or 0 if it was not held",
    group="locks",
    flags=("write", "fast"),
    hot=True,
    key_position=1,
    arguments=(
        _NAME,
        _REQID,
        Argument(
            "which",
            "oneof",
            optional=True,
            arguments=(
                Argument("fencing-token", "integer", token="TOKEN"),
                Argument("old-reqid", token="REQUEST"),
            ),
        ),
    ),
)
def unlock(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``UNLOCK name reqid [TOKEN fencing-token | REQUEST old-reqid]``"""
    kind, argument = UNLOCK, b""
    if len(argv) != 3:
        option = _unlock_option(argv)
        if isinstance(option, bytes):
            return option
        kind, argument = option
    _, name, reqid = argv[:3]
    if not 0 < len(name) <= NAME_BYTES_MAX or not 0 < len(reqid) <= NAME_BYTES_MAX:
        return _bad_length(name, reqid)
    answer = connection.node.replica.executor.unlock(kind, name, reqid, argument)
    if answer.__class__ is not int:
        return refusal(connection, answer)
    return encoder.ONE if answer else encoder.ZERO


def _unlock_option(argv: list[bytes]) -> tuple[int, bytes] | bytes:
    """The kind of entry, and its argument; or an error reply."""
    if len(argv) < 3:
        return wrong_arity(COMMANDS["unlock"])
    values = reading.options(argv, (b"TOKEN", b"REQUEST"))
    if isinstance(values, bytes):
        return values
    if len(values) == 2:
        return encoder.error("ERR TOKEN and REQUEST exclude each other")
    ((keyword, value),) = values.items()
    if keyword == b"TOKEN":
        return reading.BAD_TOKEN if reading.fencing_token(value) is None else (UNLOCK_GRANT, value)
    if not 0 < len(value) <= NAME_BYTES_MAX:
        return _bad_value("REQUEST")
    return _undo_problem(argv[2], value) or (UNDO, value)


@command(
    "renew",
    5,
    "Restarts the lease of a grant, if it has not ended: 1, or 0",
    group="locks",
    flags=("write", "fast"),
    hot=True,
    key_position=1,
    arguments=(_NAME, _TOKEN, _LEASE),
)
def renew(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``RENEW name fencing-token PX ms | EX s``: never shortens the lease."""
    if len(argv) != 5:
        return wrong_arity(COMMANDS["renew"])
    _, name, token, unit, length = argv
    fencing_token = reading.fencing_token(token)
    lease_ms = _lease_ms(unit.upper(), length)
    if not 0 < len(name) <= NAME_BYTES_MAX:
        return _bad_length(name, b"-")
    if fencing_token is None:
        return reading.BAD_TOKEN
    if isinstance(lease_ms, bytes):
        return lease_ms
    executor = connection.node.replica.executor
    answer = executor.renew(name, fencing_token, lease_ms)
    return refusal(connection, answer) if isinstance(answer, Refused) else encoder.integer(answer)


@command(
    "verify",
    3,
    "Tells whether a grant is still the current one: 1, or 0",
    group="locks",
    flags=("readonly", "fast"),
    hot=True,
    key_position=1,
    arguments=(_NAME, _TOKEN),
)
def verify(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``VERIFY name fencing-token``"""
    if len(argv) != 3:
        return wrong_arity(COMMANDS["verify"])
    if not 0 < len(argv[1]) <= NAME_BYTES_MAX:
        return _bad_length(argv[1], b"-")
    fencing_token = reading.fencing_token(argv[2])
    if fencing_token is None:
        return reading.BAD_TOKEN
    grant = connection.node.replica.executor.look(argv[1])
    if isinstance(grant, Refused):
        return refusal(connection, grant)
    return encoder.ONE if grant is not None and grant[0] == fencing_token else encoder.ZERO


@command(
    "inspect",
    2,
    "Shows a lock: state, owner, fencing token, lease, and who stands in line for it",
    group="locks",
    flags=("readonly", "fast"),
    depends_on_state=True,
    key_position=1,
    arguments=(_NAME,),
)
def inspect(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``INSPECT name``: a map."""
    name = argv[1]
    if not 0 < len(name) <= NAME_BYTES_MAX:
        return _bad_length(name, b"-")
    replica = connection.node.replica
    executor = replica.executor
    grant = executor.look(name)
    if isinstance(grant, Refused):
        return refusal(connection, grant)
    known: dict[str, Any] = {"state": "free", "owner": None, "fencing_token": 0}
    known |= {"remaining_ms": 0, "held_ms": 0}
    if grant is not None:
        known = {"state": "held"} | known_of(connection, grant)
    time_ms = replica.real_time_ms()
    in_line = [
        [waiter.owner or waiter.reqid, time_ms - waiter.joined_ms]
        for waiter in islice(executor.queue.line(name), limits.INSPECT_WAITERS_MAX)
    ]
    known |= {"waiter_count": executor.queue.length(name), "waiters": in_line}
    return encoder.encode(known, connection.protocol)


def known_of(connection: Connection, grant: Grant) -> dict[str, Any]:
    """What INSPECT and LOCKS show of a grant."""
    replica = connection.node.replica
    fencing_token, _, owner, granted_at_ms, expires_at_ms = grant
    return {
        "owner": owner,
        "fencing_token": fencing_token,
        "remaining_ms": replica.executor.remaining_ms(expires_at_ms),
        "held_ms": replica.real_time_ms() - granted_at_ms,
    }


# -- what the arguments say ------------------------------------------------------------------------


def _lease_ms(unit: bytes, length: bytes) -> int | bytes:
    """The length of a lease, in milliseconds; or an error reply."""
    if unit == b"PX":
        factor, what = 1, "milliseconds"
    elif unit == b"EX":
        factor, what = 1000, "seconds"
    else:
        return encoder.error(f"ERR expected PX or EX, got '{shown(unit, 64)}'")
    value = reading.integer(length)
    if value is None or not 1 <= value <= limits.LEASE_MS_MAX // factor:
        return encoder.error(
            f"ERR value of {unit.decode()} must be a whole number of {what} from 1 to "
            f"{limits.LEASE_MS_MAX // factor}"
        )
    return value * factor


def _undo_problem(reqid: bytes, undone: bytes) -> bytes:
    """Why ``reqid`` may not undo the request ``undone``, as an error reply; empty if it may.

    Of an ``@client`` only the same client with a higher n may: that freezes the undone one.
    """
    if undone[0] != AT:
        return b""
    old = split_reqid(undone)
    if old is None:
        return error_of(Refused.MALFORMED)
    new = split_reqid(reqid) if reqid[:1] == b"@" else None
    if new is None or new[0] != old[0] or new[1] <= old[1]:
        return encoder.error(
            "ERR a request of an @client can be undone only by a request of the same client "
            "with a higher number"
        )
    return b""


def _bad_value(option: str) -> bytes:
    return encoder.error(f"ERR value of {option} must be 1 to {NAME_BYTES_MAX} bytes long")


def _bad_length(name: bytes, reqid: bytes) -> bytes:
    what = "lock name" if not 0 < len(name) <= NAME_BYTES_MAX else "request id"
    return encoder.error(f"ERR {what} must be 1 to {NAME_BYTES_MAX} bytes long")
