"""A lock is a key: GET, DEL, EXISTS, TTL, PTTL and TYPE on a lock's name.

A held lock is the Redis string key of that name; its value is its owner and its time to live is its
lease. Names that no lock can have (empty, or too long) are keys that do not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...resp import encoder
from ..core import limits
from ..core.lock_table import Grant
from ..core.reply_cache import Refused
from .locks import refusal
from .table import Argument, command

if TYPE_CHECKING:
    from ..connection import Connection

_KEY = (Argument("key", "key"),)
_KEYS = (Argument("key", "key", multiple=True),)
_STRING = encoder.encode(encoder.Status("string"))
_NONE = encoder.encode(encoder.Status("none"))
_NO_SUCH_KEY = encoder.integer(-2)
_TOO_MANY = encoder.error(f"ERR at most {limits.NAMES_MAX} keys in one command")


def _look(
    connection: Connection, name: bytes, show: Callable[[Grant | None], bytes]
) -> bytes | None:
    grant = connection.node.replica.executor.look(name)
    return refusal(connection, grant) if isinstance(grant, Refused) else show(grant)


def _look_at_lease(
    connection: Connection, name: bytes, in_unit: Callable[[int], int]
) -> bytes | None:
    def remaining(grant: Grant | None) -> bytes:
        if grant is None:
            return _NO_SUCH_KEY
        left_ms = connection.node.replica.executor.remaining_ms(grant)
        return encoder.integer(left_ms if left_ms < 0 else in_unit(left_ms))

    return _look(connection, name, remaining)


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

    def owner(grant: Grant | None) -> bytes:
        return encoder.NULL[connection.protocol] if grant is None else encoder.bulk(grant[2])

    return _look(connection, argv[1], owner)


@command(
    "type",
    2,
    "Returns the type of a key: a held lock is a string",
    group="generic",
    flags=("readonly", "fast"),
    categories=("keyspace",),
    depends_on_state=True,
    key_position=1,
    key_flags=("RO",),
    arguments=_KEY,
)
def type_(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``TYPE key``"""
    return _look(connection, argv[1], lambda grant: _NONE if grant is None else _STRING)


@command(
    "pttl",
    2,
    "Returns the milliseconds left of a lock's lease; -1: it has none, -2: not held",
    group="generic",
    flags=("readonly", "fast"),
    categories=("keyspace",),
    depends_on_state=True,
    key_position=1,
    arguments=_KEY,
)
def pttl(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``PTTL key``"""
    return _look_at_lease(connection, argv[1], lambda left_ms: left_ms)


@command(
    "ttl",
    2,
    "Returns the seconds left of a lock's lease; -1: it has none, -2: not held",
    group="generic",
    flags=("readonly", "fast"),
    categories=("keyspace",),
    depends_on_state=True,
    key_position=1,
    arguments=_KEY,
)
def ttl(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``TTL key``: rounded as Redis does."""
    return _look_at_lease(connection, argv[1], lambda left_ms: (left_ms + 500) // 1000)


@command(
    "exists",
    -2,
    "Returns how many of the named locks are held; one named twice counts twice",
    group="generic",
    flags=("readonly", "fast"),
    categories=("keyspace",),
    depends_on_state=True,
    key_position=1,
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
        grant = executor.look(name)
        if isinstance(grant, Refused):
            return refusal(connection, grant)
        count += grant is not None
    return encoder.integer(count)


@command(
    "del",
    -2,
    "Releases locks, whoever holds them: how many were held",
    group="generic",
    flags=("write",),
    categories=("keyspace",),
    depends_on_state=True,
    key_position=1,
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
