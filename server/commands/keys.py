"""Locks and registers are keys: GET, DEL, EXISTS, TTL, TYPE and the like on their names.

A held lock is the Redis string key of that name; its value is its owner and its time to live is its
lease. A register is a key of a type of its own. Names that neither can have (empty, or too long)
are keys that do not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeGuard

from ...resp import encoder
from ..core import limits
from ..core.lock_table import Grant
from ..core.register_table import Register
from ..core.reply_cache import Refused
from . import reading
from .refusing import refusal
from .table import Argument, command

if TYPE_CHECKING:
    from ..connection import Connection
    from ..core.executor import Executor

_on_keys = partial(
    command, group="generic", categories=("keyspace",), depends_on_state=True, key_position=1
)

_KEY = (Argument("key", "key"),)
_KEYS = (Argument("key", "key", multiple=True),)
_STRING = encoder.encode(encoder.Status("string"))
_REGISTER = encoder.encode(encoder.Status("register"))
_NONE = encoder.encode(encoder.Status("none"))
_NO_SUCH_KEY = encoder.integer(-2)
_REGISTER_FIELDS = 4
_IS_LOCK = encoder.error(
    "WRONGTYPE this name is a lock: its lease is restarted by RENEW; nothing was done"
)
_TOO_MANY = encoder.error(f"ERR at most {limits.NAMES_MAX} keys in one command")


def _look(
    connection: Connection, name: bytes, show: Callable[[Grant | Register | None], bytes]
) -> bytes | None:
    found = look(connection.node.replica.executor, name)
    return refusal(connection, found) if isinstance(found, Refused) else show(found)


def look(executor: Executor, name: bytes) -> Grant | Register | Refused | None:
    """What there is of that name, whether lock or register. The last field says when it ends."""
    found = executor.registers.look(name)
    return executor.look(name) if found is None else found


def _look_at_end(
    connection: Connection, name: bytes, in_unit: Callable[[int], int]
) -> bytes | None:
    def remaining(found: Grant | Register | None) -> bytes:
        if found is None:
            return _NO_SUCH_KEY
        left_ms = connection.node.replica.executor.remaining_ms(found[-1])
        return encoder.integer(left_ms if left_ms < 0 else in_unit(left_ms))

    return _look(connection, name, remaining)


def _is_register(found: Grant | Register) -> TypeGuard[Register]:
    return len(found) == _REGISTER_FIELDS


@command(
    "get",
    2,
    "Returns the owner of a lock",
    group="string",
    flags=("readonly", "fast"),
    categories=("string",),
    depends_on_state=True,
    key_position=1,
    arguments=_KEY,
)
def get(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``GET key``"""

    grant = connection.node.replica.executor.look(argv[1])
    if isinstance(grant, Refused):
        return refusal(connection, grant)
    return encoder.NULL[connection.protocol] if grant is None else encoder.bulk(grant[2])


@_on_keys(
    "type",
    2,
    "Returns the type of a key: string for a held lock, or register",
    flags=("readonly", "fast"),
    key_flags=("RO",),
    arguments=_KEY,
)
def type_(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``TYPE key``"""

    def type_of(found: Grant | Register | None) -> bytes:
        if found is None:
            return _NONE
        return _REGISTER if _is_register(found) else _STRING

    return _look(connection, argv[1], type_of)


@_on_keys(
    "pttl",
    2,
    "Returns a key's remaining milliseconds; -1: it has no end, -2: no such key",
    flags=("readonly", "fast"),
    arguments=_KEY,
)
def pttl(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``PTTL key``"""
    return _look_at_end(connection, argv[1], lambda left_ms: left_ms)


@_on_keys(
    "ttl",
    2,
    "Returns a key's remaining seconds; -1: it has no end, -2: no such key",
    flags=("readonly", "fast"),
    arguments=_KEY,
)
def ttl(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``TTL key``: rounded as Redis does."""
    return _look_at_end(connection, argv[1], lambda left_ms: (left_ms + 500) // 1000)


@_on_keys(
    "exists",
    -2,
    "Returns how many of the keys exist; one named twice counts twice",
    flags=("readonly", "fast"),
    key_flags=("RO",),
    arguments=_KEYS,
    complexity="O(N) with the number of keys",
)
def exists(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``EXISTS key [key ...]``"""
    names = argv[1:]
    if len(names) > limits.NAMES_MAX:
        return _TOO_MANY
    executor, count = connection.node.replica.executor, 0
    for name in names:
        found = look(executor, name)
        if isinstance(found, Refused):
            return refusal(connection, found)
        count += found is not None
    return encoder.integer(count)


@_on_keys(
    "del",
    -2,
    "Releases locks, whoever holds them, and deletes registers: how many there were",
    flags=("write",),
    key_flags=("RM", "delete"),
    arguments=_KEYS,
    complexity="O(N) with the number of keys",
)
def del_(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``DEL key [key ...]``"""
    names = argv[1:]
    if len(names) > limits.NAMES_MAX:
        return _TOO_MANY
    executor = connection.node.replica.executor
    refused = executor.refuses_entries(len(names))
    if refused is not None:  # all of it or nothing
        return refusal(connection, refused)
    count = 0
    for name in names:
        released = executor.delete(name)
        assert isinstance(released, int), "there was room for all of them"
        count += released
    return encoder.integer(count)


# -- the end of a register -------------------------------------------------------------------------

_CONDITION = Argument(
    "condition",
    "oneof",
    optional=True,
    arguments=(
        Argument("nx", "pure-token", token="NX"),
        Argument("xx", "pure-token", token="XX"),
        Argument("gt", "pure-token", token="GT"),
        Argument("lt", "pure-token", token="LT"),
    ),
)


@_on_keys(
    "pexpire",
    -3,
    "Has a register end after some milliseconds: 1, or 0 if there is none",
    flags=("write", "fast"),
    key_flags=("RW", "update"),
    arguments=(*_KEY, Argument("milliseconds", "integer"), _CONDITION),
)
def pexpire(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``PEXPIRE key milliseconds [NX|XX|GT|LT]``"""
    return _end_in(connection, argv, 1)


@_on_keys(
    "expire",
    -3,
    "Has a register end after some seconds: 1, or 0 if there is none",
    flags=("write", "fast"),
    key_flags=("RW", "update"),
    arguments=(*_KEY, Argument("seconds", "integer"), _CONDITION),
)
def expire(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``EXPIRE key seconds [NX|XX|GT|LT]``"""
    return _end_in(connection, argv, 1000)


@_on_keys(
    "persist",
    2,
    "Has a register stay: 1, or 0 if there is none or it would have stayed",
    flags=("write", "fast"),
    key_flags=("RW", "update"),
    arguments=_KEY,
)
def persist(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``PERSIST key``"""
    executor = connection.node.replica.executor
    register = _register(connection, argv[1])
    if not isinstance(register, tuple):
        return register
    return _changed(connection, executor.registers.end_never(argv[1]))


def _end_in(connection: Connection, argv: list[bytes], unit_ms: int) -> bytes | None:
    length = reading.integer(argv[2])
    if length is None:
        return reading.NOT_AN_INTEGER
    if length * unit_ms > limits.LEASE_MS_MAX:
        return encoder.error(
            f"ERR invalid expire time in '{argv[0].lower().decode()}' command: at most "
            f"{limits.LEASE_MS_MAX // unit_ms}"
        )
    conditions = {word.upper() for word in argv[3:]}
    if not conditions <= {b"NX", b"XX", b"GT", b"LT"} or len(conditions) != len(argv) - 3:
        return reading.SYNTAX_ERROR
    if {b"NX"} < conditions:
        return encoder.error("ERR NX and XX, GT or LT options at the same time are not compatible")
    if {b"GT", b"LT"} <= conditions:
        return encoder.error("ERR GT and LT options at the same time are not compatible")
    register = _register(connection, argv[1])
    if not isinstance(register, tuple):
        return register
    executor = connection.node.replica.executor
    left_ms = executor.remaining_ms(register[-1])
    if not _is_met(conditions, left_ms, length * unit_ms):
        return encoder.ZERO
    return _changed(connection, executor.registers.end_in(argv[1], length * unit_ms))


def _is_met(conditions: set[bytes], left_ms: int, length_ms: int) -> bool:
    """As in Redis: what has no end ends after everything that has one."""
    has_end = left_ms >= 0
    return (
        not (b"NX" in conditions and has_end)
        and not (b"XX" in conditions and not has_end)
        and not (b"GT" in conditions and not (has_end and length_ms > left_ms))
        and not (b"LT" in conditions and has_end and length_ms >= left_ms)
    )


def _register(connection: Connection, name: bytes) -> Register | bytes | None:
    """The register of that name, or the reply if there is none (None: it has been sent)."""
    found = look(connection.node.replica.executor, name)
    if isinstance(found, Refused):
        return refusal(connection, found)
    if found is None:
        return encoder.ZERO
    return found if _is_register(found) else _IS_LOCK


def _changed(connection: Connection, answer: int | Refused) -> bytes | None:
    return refusal(connection, answer) if isinstance(answer, Refused) else encoder.integer(answer)
