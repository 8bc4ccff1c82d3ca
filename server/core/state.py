"""The replicated state, and the one door into it.

Theory of operation
-------------------
The state is the lock table, the register table, the reply cache, and where in the stream of entries
they stand (offset, the epoch and the time of the last entry). ``apply`` is the only thing that
changes it, on the primary and on the backup alike. It is deterministic: the same state and the same
entry give the same state and the same answer on every machine and in every process (I5). What could
differ, the time and the epoch, comes with the batch of entries: all entries that a primary appends
in one turn of its loop carry the same stamp.

An entry is a kind, a name and a request id; all but the shortest kinds carry two more fields, owner
and argument. A time in an argument is state time: the instant at which a lease ends.

=============  ===========================================  ==========================
kind           meaning                                      answer
=============  ===========================================  ==========================
LOCK           grant ``name`` if it is free; the owner is   fencing token, or 0
               the request id
UNLOCK         release ``name``, whoever holds it           1, or 0 if it was not held
LOCK_WITH      LOCK for ``owner`` (or the request id),      as LOCK
               with a lease up to ``argument`` (or none)
UNLOCK_GRANT   release the grant with token ``argument``    1, or 0 if it has ended
UNDO           release what the LOCK ``argument`` got, or   1, or 0
               make sure that it never gets anything
REFUSE         the LOCK ``reqid`` is refused: its wait is   0
               over
EXPIRE         the time of the lock or register ``name``    1
               has passed
DELETE         end the lock or register ``name``, by a      1, or 0 if there is neither
               command without a request id
RENEW          extend the lease of the grant with token     1, or 0 if it has ended
               ``owner`` up to ``argument``
PUT            write ``owner`` to the register ``name``;    as the register table has it
               ``argument``: version, or version, fencing
               token and lock. It may have no request id
END_AT         the register ``name`` ends at ``argument``   1, or 0 if there is none
EPOCH          a history or a new primary's reign begins,   0
               at the offset ``argument``
FORGET         rotate the opaque ids (``argument`` "r") or  0
               the client ids ("c") of the reply cache
=============  ===========================================  ==========================

Every entry takes one offset, and an answer is an int. Refusals are entries too: they bind the
answer to the request id on both nodes.

Reads (``recall``, the table itself) are the primary's business; nothing here depends on them.
"""

from __future__ import annotations

from collections.abc import Iterable

from . import limits
from .lock_table import LockTable
from .register_table import STALE_TOKEN, RegisterTable
from .reply_cache import ReplyCache

LOCK = ord("L")
UNLOCK = ord("U")
LOCK_WITH = ord("W")
UNLOCK_GRANT = ord("G")
UNDO = ord("Q")
REFUSE = ord("N")
EXPIRE = ord("X")
DELETE = ord("D")
RENEW = ord("R")
PUT = ord("P")
END_AT = ord("A")
EPOCH = ord("E")
FORGET = ord("F")

COMMAND_OF = {
    LOCK: LOCK,
    LOCK_WITH: LOCK,
    REFUSE: LOCK,
    UNLOCK: UNLOCK,
    UNLOCK_GRANT: UNLOCK,
    UNDO: UNLOCK,
    PUT: PUT,
}
"""The command that an entry is a request of: what its request id is bound to, besides the name."""

SHORT = frozenset((LOCK, UNLOCK, REFUSE, EXPIRE, DELETE))
"""Kinds whose entries carry a name and a request id only."""


class State:
    """One node's copy of the replicated state.

    ``history`` names the run of entries that began with a first primary; ``offset`` counts the
    entries (from the wall clock in microseconds at the history's start, so that fencing tokens
    rise through a cold start too); ``time_ms`` is state time: the primary's CLOCK_BOOTTIME,
    continued by whoever is promoted. ``grants_from_ms``: no lock is granted before that instant,
    for a history that may follow a lost one, whose holders still trust their leases (quarantine).
    """

    __slots__ = (
        "epoch",
        "grants_from_ms",
        "history",
        "locks",
        "offset",
        "registers",
        "replies",
        "time_ms",
    )

    def __init__(
        self, history: str, offset: int, epoch: int, time_ms: int, grants_from_ms: int = 0
    ) -> None:
        self.history = history
        self.offset = offset
        self.epoch = epoch
        self.time_ms = time_ms
        self.grants_from_ms = grants_from_ms
        self.locks = LockTable()
        self.registers = RegisterTable()
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
            expires_at_ms = int(argument or 0)
            answer = self.locks.grant(
                name, offset, reqid, owner or reqid, self.time_ms, expires_at_ms
            )
        elif kind in COMMAND_OF:
            answer = self._answer_rarer(kind, name, owner, argument)
            if not reqid:  # of a put: it is remembered nowhere
                return answer
            kind = COMMAND_OF[kind]
        else:
            return self._apply_without_request(kind, name, owner, argument)
        self.replies.remember(kind, name, reqid, answer, self.time_ms)
        return answer

    def _answer_rarer(self, kind: int, name: bytes, owner: bytes, argument: bytes) -> int:
        if kind == PUT:
            return self._put(name, owner, argument)
        if kind == UNLOCK_GRANT:
            return self.locks.release_grant(name, int(argument))
        if kind == UNDO:
            return self._undo(name, argument)
        assert kind == REFUSE, f"unknown kind of request {kind!r}"
        return 0

    def _apply_without_request(self, kind: int, name: bytes, owner: bytes, argument: bytes) -> int:
        """Entries that no request id asked for: their answers are not remembered."""
        if kind == RENEW:
            return self.locks.renew(name, int(owner), int(argument))
        if kind == EXPIRE:
            return self._table_of(name).expire(name, self.time_ms)
        if kind == DELETE:
            return self._table_of(name).delete(name)
        if kind == END_AT:
            return self.registers.end_at(name, int(argument))
        if kind == EPOCH:
            return self._begin_epoch(int(argument))
        assert kind == FORGET, f"unknown kind of entry {kind!r}"
        return self._forget(argument)

    def put_refusal(self, name: bytes, argument: bytes) -> int | None:
        """Why a PUT of that ``argument`` would not write; None: it would."""
        version, _, fence = argument.partition(b" ")
        if fence:
            fencing_token, _, lock_name = fence.partition(b" ")
            if not self.locks.is_current(lock_name, int(fencing_token)):
                return STALE_TOKEN
        return self.registers.refusal(name, int(version))

    def _put(self, name: bytes, value: bytes, argument: bytes) -> int:
        assert name not in self.locks.held, f"{name!r} is a lock, not a register (I5)"
        refusal = self.put_refusal(name, argument)
        if refusal is not None:
            return refusal
        return self.registers.write(name, self.offset, value, int(argument.partition(b" ")[0]))

    def _table_of(self, name: bytes) -> LockTable | RegisterTable:
        return self.registers if name in self.registers.held else self.locks

    def apply_batch(
        self, first_offset: int, epoch: int, time_ms: int, kinds: bytes, fields: Iterable[bytes]
    ) -> list[int]:
        """Apply the entries of one batch, received from the primary; their answers.

        Raises StopIteration if there are fewer fields than the kinds call for.
        """
        assert first_offset == self.offset + 1, f"entry {first_offset} after {self.offset} (I5)"
        self.stamp(epoch, time_ms)
        apply, short = self.apply, SHORT
        take = iter(fields).__next__
        answers = []
        for kind in kinds:
            if kind in short:
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
