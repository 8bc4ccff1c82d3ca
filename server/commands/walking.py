"""LOCKS and SCAN: walking what there is, page by page, with no state on this side.

A page ends when it is full, or when its time is up: then it is shorter than was asked for, or even
empty, and the walk goes on with the next one, as in Redis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from ...resp import encoder
from ..core import limits
from ..core.lock_table import Grant
from ..core.reply_cache import Refused
from ..core.walk import Table, Walk
from . import reading
from .locks import known_of
from .refusing import refusal
from .table import Argument, command

if TYPE_CHECKING:
    from ..connection import Connection

_BAD_CURSOR = encoder.error("ERR invalid cursor")
_NAMES_AT_A_TIME = 16  # and then a look at the clock
_SCAN_COUNT_MAX = 2**31  # to Redis it is a hint: whoever asks for more than a page gets a page

_CURSOR = Argument("cursor", "integer")
_MATCH = Argument("glob", "pattern", token="MATCH", optional=True)
_COUNT = Argument("count", "integer", token="COUNT", optional=True)

Look = Callable[[bytes], Any]
"""What there is of a name, as of now: None if nothing, Refused if that cannot be said."""


class _Page(NamedTuple):
    """What is asked for: where the page begins, and what is to be on it."""

    cursor: int
    names_max: int
    glob: reading.Glob | None
    deadline_ns: int

    def collect(
        self, walk: Walk, table: Table, look: Look
    ) -> tuple[int, list[tuple[bytes, Any]]] | Refused:
        """The next cursor, and names with what there is of them; or why there is no answer."""
        cursor, names = self._choose(walk.names_from(table, self.cursor))
        found: list[tuple[bytes, Any]] = []
        for name in names:
            there = look(name)  # (which may end it, and so change the table)
            if isinstance(there, Refused):
                return there
            if there is not None:
                found.append((name, there))
        return cursor, found

    def _choose(self, names: Iterator[tuple[int, bytes]]) -> tuple[int, list[bytes]]:
        """The next cursor, and those of the next names that match, until the time is up."""
        chosen: list[bytes] = []
        step = _NAMES_AT_A_TIME if self.glob is None else 1
        for number, (offset, name) in enumerate(names):
            is_late = number and number % step == 0 and perf_counter_ns() > self.deadline_ns
            if number == self.names_max or is_late:
                return offset, chosen
            if name and (self.glob is None or self.glob.matches(name)):
                chosen.append(name)
        return 0, chosen


def _read(argv: list[bytes], values: dict[bytes, bytes], count_max: int) -> _Page | bytes:
    """The page that a request asks for; or an error reply."""
    cursor = reading.integer(argv[1])
    if cursor is None or cursor < 0:
        return _BAD_CURSOR
    count = reading.integer(values.get(b"COUNT", b"10"))
    if count is None or not 1 <= count <= count_max:
        return encoder.error(f"ERR value of COUNT must be from 1 to {count_max}")
    if len(values.get(b"MATCH", b"")) > limits.GLOBS_BYTES_MAX:
        return encoder.error(f"ERR the pattern is longer than {limits.GLOBS_BYTES_MAX} bytes")
    glob = reading.Glob(values[b"MATCH"]) if b"MATCH" in values else None
    deadline_ns = perf_counter_ns() + limits.TURN_BUDGET_NS
    return _Page(cursor, min(count, limits.LOCKS_PAGE_MAX), glob, deadline_ns)


@command(
    "locks",
    -2,
    "Walks the held locks, as SCAN walks keys",
    group="locks",
    flags=("readonly",),
    depends_on_state=True,
    arguments=(_CURSOR, _MATCH, _COUNT),
    complexity="O(1) for every call, O(N) for a walk",
)
def locks(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``LOCKS cursor [MATCH glob] [COUNT n]``: the next cursor, and a map for each lock."""
    values = reading.options(argv, (b"MATCH", b"COUNT"), first=2)
    page = values if isinstance(values, bytes) else _read(argv, values, limits.LOCKS_PAGE_MAX)
    if isinstance(page, bytes):
        return page
    node = connection.node
    node.walked_ms = node.now_ms
    executor = node.replica.executor
    held = page.collect(node.walk, node.replica.state.locks.held, executor.look)
    if isinstance(held, Refused):
        return refusal(connection, held)
    cursor, grants = held

    def shown(name: bytes, grant: Grant) -> dict[str, Any]:
        known = known_of(connection, grant)
        return {"name": name} | known | {"waiter_count": executor.queue.length(name)}

    listed = [shown(name, grant) for name, grant in grants]
    return encoder.encode([str(cursor), listed], connection.protocol)


@command(
    "scan",
    -2,
    "Walks the names of all locks and registers",
    group="generic",
    flags=("readonly",),
    categories=("keyspace",),
    depends_on_state=True,
    arguments=(
        _CURSOR,
        Argument("pattern", "pattern", token="MATCH", optional=True),
        _COUNT,
        Argument("type", token="TYPE", optional=True),
    ),
    complexity="O(1) for every call, O(N) for a walk",
)
def scan(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``SCAN cursor [MATCH pattern] [COUNT count] [TYPE string|register]``

    The locks come first, then the registers. A cursor is that of the table, doubled; an odd one is
    the registers'.
    """
    values = reading.options(argv, (b"MATCH", b"COUNT", b"TYPE"), first=2)
    if isinstance(values, bytes):
        return values
    page = _read(argv, values, _SCAN_COUNT_MAX)
    if isinstance(page, bytes):
        return page
    wanted = values.get(b"TYPE", b"").lower()
    node = connection.node
    node.walked_ms = node.now_ms
    executor, state = node.replica.executor, node.replica.state
    tables: tuple[tuple[bytes, Walk, Table, Look], ...] = (
        (b"string", node.walk, state.locks.held, executor.look),
        (b"register", node.register_walk, state.registers.held, executor.registers.look),
    )
    cursor, first = divmod(page.cursor, len(tables))
    names: list[bytes] = []
    for number, (kind, walk, table, look) in enumerate(tables):
        if number < first or not table or wanted not in (b"", kind):
            continue
        found = page._replace(cursor=cursor if number == first else 0).collect(walk, table, look)
        if isinstance(found, Refused):
            return refusal(connection, found)
        cursor, there = found
        names += [name for name, _ in there]
        if cursor:
            next_cursor = len(tables) * cursor + number
            return encoder.encode([str(next_cursor), names], connection.protocol)
    return encoder.encode(["0", names], connection.protocol)
