"""The replicated state, and the one door into it.

Theory of operation
-------------------
The state is the lock table, the reply cache, and where in the stream of entries they stand
(offset, the epoch and the time of the last entry). ``apply`` is the only thing that changes it, on
the primary and on the backup alike. It is deterministic: the same state and the same entry give
the same state and the same answer on every machine and in every process (I5). What could differ,
the time and the epoch, comes with the batch of entries: all entries that a primary appends in one
turn of its loop carry the same stamp.

An entry is a kind, a name and a request id; all but the two most frequent kinds carry two more
fields, owner and argument.

=========  ===============================================  ==========================
kind       meaning                                          answer
=========  ===============================================  ==========================
LOCK       grant ``name`` if it is free; the owner is the   fencing token, or 0
           request id
UNLOCK     release ``name``, whoever holds it               1, or 0 if it was not held
LOCK_WITH  LOCK for ``owner``                               as LOCK
UNDO       release what the LOCK ``argument`` got, or make  1, or 0
           sure that it never gets anything
EPOCH      a history or a new primary's reign begins, at    0
           the offset ``argument``
FORGET     rotate the opaque ids (``argument`` "r") or the  0
           client ids ("c") of the reply cache
=========  ===============================================  ==========================

Every entry takes one offset, and an answer is an int. Refusals are entries too: they bind the
answer to the request id on both nodes.

Reads (``recall``, the table itself) are the primary's business; nothing here depends on them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from . import limits
from .lock_table import LockTable
from .reply_cache import ReplyCache

LOCK = ord("L")
UNLOCK = ord("U")
LOCK_WITH = ord("W")
UNDO = ord("Q")
EPOCH = ord("E")
FORGET = ord("F")

COMMAND_OF = {LOCK: LOCK, LOCK_WITH: LOCK, UNLOCK: UNLOCK, UNDO: UNLOCK}
"""The command that a request is one of: what its request id is bound to, besides the name."""


class State:
    """One node's copy of the replicated state.

    ``history`` names the run of entries that began with a first primary; ``offset`` counts the
    entries (from the wall clock in microseconds at the history's start, so that fencing tokens
    rise through a cold start too); ``time_ms`` is state time: the primary's CLOCK_BOOTTIME,
    continued by whoever is promoted.
    """

    __slots__ = ("epoch", "history", "locks", "offset", "replies", "time_ms")

    def __init__(self, history: str, offset: int, epoch: int, time_ms: int) -> None:
        self.history = history
        self.offset = offset
        self.epoch = epoch
        self.time_ms = time_ms
        self.locks = LockTable()
        self.replies = ReplyCache(time_ms)

    def stamp(self, epoch: int, time_ms: int) -> None:
        """The epoch and the time of the entries that follow. Neither goes back."""
        assert epoch >= self.epoch, f"entry of epoch {epoch} after one of {self.epoch} (I3)"
        assert time_ms >= self.time_ms, f"state time went back: {time_ms} < {self.time_ms} (I8)"
        self.epoch = epoch
        self.time_ms = time_ms

    def apply(
        self, kind: int, name: bytes, reqid: bytes, owner: bytes = b"", argument: bytes = b""
    ) -> int:
        """Apply the next entry; its answer. The caller has ``stamp``ed it and made sure that its
        request is a new one and well-formed."""
        self.offset = offset = self.offset + 1
        if kind == LOCK:
            answer = self.locks.grant(name, offset, reqid, reqid, self.time_ms)
        elif kind == UNLOCK:
            answer = self.locks.release(name)
        elif kind == LOCK_WITH:
            kind = LOCK
            answer = self.locks.grant(name, offset, reqid, owner or reqid, self.time_ms)
        elif kind == UNDO:
            kind = UNLOCK
            answer = self._undo(name, argument)
        elif kind == EPOCH:
            return self._begin_epoch(int(argument))
        else:
            assert kind == FORGET, f"unknown kind of entry {kind!r}"
            return self._forget(argument)
        self.replies.remember(kind, name, reqid, answer, self.time_ms)
        return answer

    def apply_batch(
        self, first_offset: int, epoch: int, time_ms: int, kinds: bytes, fields: Iterable[bytes]
    ) -> list[int]:
        """Apply the entries of one batch, received from the primary; their answers.

        Raises StopIteration if there are fewer fields than the kinds call for.
        """
        assert first_offset == self.offset + 1, f"entry {first_offset} after {self.offset} (I5)"
        self.stamp(epoch, time_ms)
        apply = self.apply
        take = iter(fields).__next__
        answers = []
        for kind in kinds:
            if kind == LOCK or kind == UNLOCK:
                answers.append(apply(kind, take(), take()))
            else:
                answers.append(apply(kind, take(), take(), take(), take()))
        return answers

    def _undo(self, name: bytes, undone: bytes) -> int:
        """Release the grant made by ``undone``; if there was none, there never will be.

        A client's earlier request is frozen by remembering the one that undoes it (reply cache,
        R2); an opaque one that is unknown is recorded as refused.
        """
        answer = self.locks.release_grant_of(name, undone)
        if self.replies.recall(LOCK, name, undone) is None:  # the grant may outlive its answer
            self.replies.remember(LOCK, name, undone, 0, self.time_ms)
        return answer

    def _forget(self, table: bytes) -> int:
        if table == b"r":
            self.replies.rotate_replies(self.time_ms)
        else:
            assert table == b"c", f"unknown table {table!r}"
            self.replies.rotate_clients(self.time_ms)
        return 0

    def _begin_epoch(self, offset: int) -> int:
        """Skip ahead to ``offset``, past everything that a deposed primary can have numbered."""
        assert offset >= self.offset, f"epoch at {offset} behind {self.offset} (I7)"
        self.offset = offset
        return 0

    def next_epoch_offset(self, wall_clock_us: int) -> int:
        """Where a newly promoted primary's numbering starts (I7): past every entry that the old
        primary can have appended without our knowing, and not behind the wall clock."""
        return max(self.offset + limits.UNACKED_ENTRIES_MAX + 1, wall_clock_us)

    def digest(self) -> str:
        """A fingerprint of the whole state: equal on two nodes at the same offset (I5)."""
        tables: tuple[Iterable[object], ...] = (
            sorted(self.locks.held.items()),
            sorted(self.replies.clients.items()),
            sorted(self.replies.old_clients.items()),
            sorted(self.replies.replies.items()),
            sorted(self.replies.old_replies.items()),
            (self.replies.clients_since_ms, self.replies.replies_since_ms),
        )
        content = repr((self.history, self.offset, self.epoch, self.time_ms, tables))
        return hashlib.sha256(content.encode()).hexdigest()
