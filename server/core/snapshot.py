"""Snapshots: the whole state as it was at one offset, cut without stopping service.

A ``Cut`` copies the lists of *keys* (ten milliseconds for a million) and walks them in slices while
the state moves on. A value that is about to change before its key was reached is saved first: the
tables call that ``before_cut``, and it is the only trace of a snapshot in them. Keys that come
later are not in the lists; opaque replies never change, and a generation of them that is dropped
meanwhile is kept alive by the cut. Every item has seven fields, so a slice is one flat list:

    L  name    fencing token  reqid    owner  granted_at_ms  expires_at_ms
    V  name    created at     value    -      version        expires_at_ms
    C  client  sequence       command  name   answer         generation (1 young, 0 old)
    R  name    command        reqid    -      answer         generation

``restore`` is the way back.

A ``Digest`` walks a cut too, and adds up a hash of every item: the sum does not depend on the order
of the tables, which may differ between two nodes that hold the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from . import limits
from .reply_cache import Record, RequestKey, fields_of
from .state import State

ITEM_FIELDS = 7
_BYTES_LIKE_AN_ITEM = 128  # of a value: to hash so many takes as long as any other item


def _value_bytes(item: tuple[bytes | int, ...]) -> int:
    """Of a register; nothing else has a size worth a look."""
    value = item[3]
    return len(value) if item[0] == b"V" and isinstance(value, bytes) else 0


class Header(NamedTuple):
    """What a snapshot says before its items. ``epoch`` and times are the state's own."""

    history: str
    offset: int
    epoch: int
    time_ms: int
    grants_from_ms: int
    clients_since_ms: int
    replies_since_ms: int
    old_replies_since_ms: int
    items: int


class Cut:
    """One snapshot being sent. At most one at a time on a state; ``close`` it in any case."""

    def __init__(self, state: State) -> None:
        locks, registers, replies = state.locks, state.registers, state.replies
        assert locks.before_cut is None and replies.before_cut is None, "one cut at a time"
        locks.before_cut = {}
        registers.before_cut, registers.cut_at = {}, state.offset
        replies.before_cut = {}
        self._state = state
        self.header = Header(
            state.history,
            state.offset,
            state.epoch,
            state.time_ms,
            state.grants_from_ms,
            replies.clients_since_ms,
            replies.replies_since_ms,
            replies.old_replies_since_ms,
            sum(
                (
                    len(locks.held),
                    len(registers.held),
                    len(replies.clients) + len(replies.old_clients),
                    len(replies.replies) + len(replies.old_replies),
                )
            ),
        )
        self.items = self._walk(
            list(locks.held),
            list(registers.held),
            [(table, list(table)) for table in (replies.old_clients, replies.clients)],
            [(table, list(table)) for table in (replies.old_replies, replies.replies)],
        )

    def slice(self, items_max: int) -> list[bytes | int]:
        """The next items, flat; empty when all are sent. Fewer if they are large."""
        fields = list[bytes | int]()
        room_bytes = limits.CATCH_UP_BYTES_PER_TURN
        for item in islice(self.items, items_max):
            fields += item
            room_bytes -= _value_bytes(item)
            if room_bytes <= 0:
                break
        return fields

    def close(self) -> None:
        """Let the tables forget about the cut."""
        self._state.locks.before_cut = None
        self._state.registers.before_cut = None
        self._state.replies.before_cut = None

    def _walk(
        self,
        names: list[bytes],
        names_of_registers: list[bytes],
        clients: list[tuple[dict[bytes, Record], list[bytes]]],
        replies: list[tuple[dict[RequestKey, int], list[RequestKey]]],
    ) -> Iterator[tuple[bytes | int, ...]]:
        # Generations are walked as the dicts they were at the cut: rotated out, they live on here.
        held, registers = self._state.locks.held, self._state.registers.held
        saved_grants = self._state.locks.before_cut
        saved_registers = self._state.registers.before_cut
        saved_records = self._state.replies.before_cut
        assert saved_grants is not None and saved_records is not None
        assert saved_registers is not None
        for name in names:
            # What was saved comes first: the name may have been released and granted again.
            token, reqid, owner, granted_at_ms, expires_at_ms = saved_grants.get(name) or held[name]
            yield b"L", name, token, reqid, owner, granted_at_ms, expires_at_ms
        for name in names_of_registers:
            created, value, version, ends_at_ms = saved_registers.get(name) or registers[name]
            yield b"V", name, created, value, b"", version, ends_at_ms
        for generation, (records, keys_of_clients) in enumerate(clients):
            for client in keys_of_clients:
                record = saved_records.get(client) or records[client]
                sequence, command, answer, name = fields_of(record)
                yield b"C", client, sequence, command, name, answer, generation
        for generation, (answers, keys) in enumerate(replies):
            for key in keys:
                command, name, reqid = key
                yield b"R", name, command, reqid, b"", answers[key], generation


class Digest:
    """A fingerprint of the whole state, computed in slices: equal on two nodes at the same offset
    (I5). ``close`` it in any case."""

    _MODULUS = 1 << 256

    def __init__(self, state: State) -> None:
        self._cut = Cut(state)
        self.offset = state.offset
        self._sum = self._hash(self._cut.header)

    def advance(self, items_max: int) -> bool:
        """Take in the next items, fewer if they are large; whether there may be more."""
        for item in islice(self._cut.items, items_max):
            self._sum += self._hash(item)
            items_max -= 1 + _value_bytes(item) // _BYTES_LIKE_AN_ITEM
            if items_max <= 0:
                return True
        return False

    @staticmethod
    def _hash(item: tuple[object, ...]) -> int:
        return int.from_bytes(
            hashlib.blake2b(repr(tuple(item)).encode(), digest_size=32).digest(), "big"
        )

    def hexdigest(self) -> str:
        """The fingerprint of what has been taken in."""
        return f"{self._sum % self._MODULUS:064x}"

    def close(self) -> None:
        """Let the tables forget about the cut."""
        self._cut.close()


def digest(state: State) -> str:
    """The fingerprint of ``state``, in one go."""
    whole = Digest(state)
    while whole.advance(1 << 16):
        pass
    whole.close()
    return whole.hexdigest()


def restore(header: Header) -> State:
    """An empty state that stands where the snapshot was cut; fill it with ``load``."""
    state = State(
        header.history, header.offset, header.epoch, header.time_ms, header.grants_from_ms
    )
    state.replies.clients_since_ms = header.clients_since_ms
    state.replies.replies_since_ms = header.replies_since_ms
    state.replies.old_replies_since_ms = header.old_replies_since_ms
    return state


def load(state: State, fields: list[bytes]) -> int:
    """Put one slice of items into ``state``; how many they were."""
    locks, replies = state.locks, state.replies
    field = iter(fields)
    items = 0
    for kind, key, number, third, other, value, last in zip(*[field] * ITEM_FIELDS, strict=True):
        items += 1
        if kind == b"L":
            expires_at_ms = int(last)
            locks.held[key] = (int(number), third, other, int(value), expires_at_ms)
            if expires_at_ms:
                locks.leases += 1
        elif kind == b"V":
            state.registers.load(key, (int(number), third, int(value), int(last)))
        elif kind == b"C":
            record = int(number), int(third), int(value), other
            replies.load_client(key, record, is_young=last == b"1")
        else:
            assert kind == b"R", f"unknown kind of snapshot item {kind!r}"
            table = replies.replies if last == b"1" else replies.old_replies
            table[int(number), key, third] = int(value)
    return items
