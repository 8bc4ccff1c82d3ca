"""VGET and VPUT: requests on versioned registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...resp import encoder
from ..core import limits
from ..core.limits import NAME_BYTES_MAX
from ..core.register_table import NO_KEY, STALE_TOKEN
from ..core.reply_cache import Refused
from . import reading
from .refusing import error_of, refusal
from .table import COMMANDS, Argument, command, wrong_arity

if TYPE_CHECKING:
    from ..connection import Connection

_NO_KEY = encoder.error("NOKEY there is no register of this name")
_STALE_TOKEN = encoder.error(
    "STALETOKEN this fencing token is not that of the lock's current grant; nothing was written"
)
_BAD_NAME = encoder.error(f"ERR key must be 1 to {NAME_BYTES_MAX} bytes long")
_BAD_VALUE = encoder.error(f"ERR value must be at most {limits.VALUE_BYTES_MAX} bytes long")
_BAD_VERSION = encoder.error(
    f"ERR version must be a whole number from 0 (create) to {limits.VERSION_MAX}"
)
_BAD_REQID = encoder.error(f"ERR request id must be 1 to {NAME_BYTES_MAX} bytes long")
_BAD_LOCK = encoder.error(f"ERR lock name must be 1 to {NAME_BYTES_MAX} bytes long")
_SYNTAX = encoder.error(
    "ERR syntax error, VPUT is: key value version [reqid] [FENCE lockname fencing-token]"
)

_KEY = Argument("key", "key")


@command(
    "vget",
    2,
    "Returns a register: its value and its version",
    group="registers",
    flags=("readonly", "fast"),
    depends_on_state=True,  # (not hot: large values are to be paid for, turn by turn)
    key_position=1,
    arguments=(_KEY,),
)
def vget(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``VGET key``"""
    name = argv[1]
    if not 0 < len(name) <= NAME_BYTES_MAX:
        return _BAD_NAME
    executor = connection.node.replica.executor
    register = executor.registers.look(name)
    if isinstance(register, tuple):
        _, value, version, _ = register
        return b"*2\r\n$%d\r\n%b\r\n:%d\r\n" % (len(value), value, version)
    grant = executor.look(name) if register is None else register
    if isinstance(grant, Refused):
        return refusal(connection, grant)
    is_lock = grant is not None or executor.queue.length(name)
    return error_of(Refused.IS_LOCK) if is_lock else _NO_KEY


@command(
    "vput",
    -4,
    "Writes a register if it still has that version (0: none yet): the new version",
    group="registers",
    flags=("write", "denyoom", "fast"),
    hot=True,
    key_position=1,
    arguments=(
        _KEY,
        Argument("value"),
        Argument("version", "integer"),
        Argument("reqid", optional=True),
        Argument(
            "fence",
            "block",
            token="FENCE",
            optional=True,
            arguments=(Argument("lockname"), Argument("fencing-token", "integer")),
        ),
    ),
)
def vput(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``VPUT key value version [reqid] [FENCE lockname fencing-token]``"""
    if len(argv) < 4:
        return wrong_arity(COMMANDS["vput"])
    reqid = fence = b""
    if len(argv) > 4:
        options = _put_options(argv)
        if isinstance(options, bytes):
            return options
        reqid, fence = options
    _, name, value, number = argv[:4]
    version = reading.integer(number)
    if not 0 < len(name) <= NAME_BYTES_MAX:
        return _BAD_NAME
    if len(value) > limits.VALUE_BYTES_MAX:
        return _BAD_VALUE
    if version is None or not 0 <= version <= limits.VERSION_MAX:
        return _BAD_VERSION
    registers = connection.node.replica.executor.registers
    answer = registers.put(name, reqid, value, version, fence)
    if isinstance(answer, Refused):
        return refusal(connection, answer)
    return b":%d\r\n" % answer if answer > 0 else _refused(answer)


def _refused(answer: int) -> bytes:
    if answer == NO_KEY:
        return _NO_KEY
    if answer == STALE_TOKEN:
        return _STALE_TOKEN
    return encoder.error(f"VERSION the current version is {-answer}")


def _put_options(argv: list[bytes]) -> tuple[bytes, bytes] | bytes:
    """Request id, and fence as the executor takes it; or an error reply."""
    options = argv[4:]
    reqid = options.pop(0) if len(options) in (1, 4) else None
    if reqid is not None and reqid.upper() == b"FENCE":
        return _SYNTAX  # or a fence whose lock and token are missing would be none, without a word
    if reqid is not None and not 0 < len(reqid) <= NAME_BYTES_MAX:
        return _BAD_REQID
    if not options:
        return reqid or b"", b""
    if len(options) != 3 or options[0].upper() != b"FENCE":
        return _SYNTAX
    _, lock_name, number = options
    token = reading.fencing_token(number)
    if not 0 < len(lock_name) <= NAME_BYTES_MAX:
        return _BAD_LOCK
    if token is None:
        return reading.BAD_TOKEN
    return reqid or b"", b"%d %b" % (token, lock_name)
