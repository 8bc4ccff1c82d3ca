"""The sender: a primary's end of the stream (``stream.py``), from an entry to its backup's ack.

What requests append in a turn is sealed at its end into one batch, which goes into the backlog and
to the backup; what the turn has answered is held back until the backup has that. A backup that
joins is sent what it lacks first. Phases and rules are those of ``replica.py``, and so is the other
half of every replica: which role it has, and when that changes.

This is a base class, and not a part like ``Follower``, because every request passes through here:
another object between would cost each of them a look-up or two.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any

from ...resp.encoder import pack
from . import limits, snapshot, stream
from .backlog import BATCH_BYTES, Backlog, Batch, Point
from .reply_cache import Refused
from .state import FORGET, SHORT, State
from .view import NO_VIEW, View

if TYPE_CHECKING:
    from .executor import Executor

UNLIMITED = 2**63
"""Above every offset and every frame."""


class Role(Enum):
    """What this node is."""

    EMPTY = "empty"
    BACKUP = "backup"
    PRIMARY = "primary"


class Phase(IntEnum):
    """How far the attached backup is."""

    NONE = 0
    SNAPSHOT = 1
    CATCHING_UP = 2
    REQUIRED = 3
    PROPOSED = 4
    MEMBER = 5


Replies = list[tuple[Any, bytes]]
"""Connections (opaque here) and what goes out on each."""

HeldBack = tuple[int, int, Replies, int]
"""One turn's replies that wait for the backup: frame, since when (ms), replies, their bytes."""


# A request that is let through may append a few entries more than one; and what is due without
# being asked has its share: one step at a time (an end and a grant each) is under way.
_UNACKED_LIMIT = (
    limits.UNACKED_ENTRIES_MAX - limits.ENTRIES_PER_REQUEST_MAX - 3 * limits.DUE_PER_TURN
)


class BacklogOverrun(Exception):
    """The joining backup is slower than the writes: its snapshot has to be cut anew."""


class Sender:
    """What a replica does while it is the primary."""

    executor: Executor

    def __init__(
        self,
        incarnation: str,
        min_backups: int,
        clock: Callable[[], int] | None,
    ) -> None:
        self.incarnation = incarnation
        self._now_ms: int = 0
        self._clock = clock or (lambda: self._now_ms)
        self.min_backups = min_backups
        self.role = Role.EMPTY  # until ``Replica`` changes it
        self.view = NO_VIEW
        self.state: State = State("", 0, 0, 0)
        self.stalled = False  # F4 of failover.py
        self.phase = Phase.NONE
        self.backup = ""  # incarnation of the attached (or lost, undecided) backup
        self.holding = False  # whether replies that depend on the state are held back
        self.held_back: deque[HeldBack] = deque()
        self.held_back_bytes = 0
        self.overflows = False  # too much is held back: only repeats are answered
        self.blocked = False  # the backup is lost, and it is not decided yet who goes on
        self.outbound: stream.Outbound | None = None
        self._frame = 0  # goes on over all backups
        self._required_frame = 0
        self._stalled_at_frame = 0
        self._unsent_bytes = 0  # of the backlog, to a backup that joins
        self._all_sent_ms = 0  # since when nothing of the backlog is left to be sent
        self.keeps_backlog = False  # for a backup that may come, or come back
        self.backlog = Backlog(limits.BACKLOG_KEPT_BYTES_MAX, Point("", 0, 0, 0))
        self.checksum = 0  # chained over the entries up to ``state.offset``
        self.offset_limit = UNLIMITED  # from here on nothing is appended for requests
        self.no_grants: Refused | None = None  # why no lock is granted at present
        self._beat_wanted = False
        self._messages: list[bytes] = []  # to be sent at the end of this turn
        self._clock_offset_ms = 0
        # The entries of this turn (first_offset 0: none yet):
        self._first_offset = 0
        self._kinds = bytearray()
        self._fields: list[bytes] = []
        self._answers: list[int] = []

    # -- the hot path: a request on the primary --------------------------------------------------

    def begin_turn(self, now_ms: int) -> None:
        """A turn of the event loop begins: all that happens in it happens now."""
        self._now_ms = now_ms
        if self.role is Role.PRIMARY:
            self._review_grants()
            self.executor.begin_turn()

    def _review_grants(self) -> None:
        """Whether locks may be granted. Looked at once a turn and when the phase changes, not for
        every request: the bound on their number may be passed by one turn's worth."""
        if self.min_backups and (self.phase is not Phase.MEMBER or self.blocked):
            self.no_grants = Refused.NO_REPLICAS
        elif len(self.state.locks.held) >= limits.LOCKS_MAX:
            self.no_grants = Refused.LOCKS_FULL
        elif self.state.grants_from_ms > self.state_time_ms():
            self.no_grants = Refused.QUARANTINE
        else:
            self.no_grants = None

    def append(
        self, kind: int, name: bytes, reqid: bytes, owner: bytes = b"", argument: bytes = b""
    ) -> int:
        """Apply an entry here, and have it go to the backup with this turn; its answer."""
        if not self._first_offset:
            self._first_offset = self.state.offset + 1
            self.state.stamp(self.view.epoch, self.state_time_ms())
        answer = self.state.apply(kind, name, reqid, owner, argument)
        if self.keeps_backlog:
            self._kinds.append(kind)
            if kind in SHORT:
                self._fields += (name, reqid)
            else:
                self._fields += (name, reqid, owner, argument)
            self._answers.append(answer)
        return answer

    def hold_back(self, replies: Replies, size_bytes: int) -> None:
        """Keep what this turn has answered until the backup has the turn (C1)."""
        frame = (self.outbound.frame if self.outbound else self._frame) + 1
        self.held_back.append((frame, self._now_ms, replies, size_bytes))
        self.held_back_bytes += size_bytes
        self.overflows = self.held_back_bytes > limits.HELD_BACK_BYTES_MAX
        self._beat_wanted = True

    def end_turn(self, room_bytes: int = limits.CATCH_UP_BYTES_PER_TURN) -> bytes:
        """Everything that is to go to the peer for this turn, in one piece.

        ``room_bytes``: how much of the backlog the link can take now.
        """
        messages = self._messages
        outbound = self.outbound
        if self._first_offset:
            if self.keeps_backlog:
                batch = self._seal()
                self.backlog.append(batch)
                if self.phase >= Phase.REQUIRED and outbound is not None and not self.blocked:
                    frame = outbound.sending(batch.last_offset, self._now_ms)
                    messages.append(stream.encode_entries(self.view.epoch, frame, batch))
                    self._beat_wanted = False
                elif outbound is not None:
                    self._unsent_bytes += len(batch.payload) + BATCH_BYTES
            self._first_offset = 0
        if outbound is not None:
            if self.blocked:
                messages.clear()
            elif self.phase is Phase.CATCHING_UP:
                self._catch_up(outbound, room_bytes)
            elif self.phase is Phase.SNAPSHOT:
                self._refuse_overrun(outbound)
            elif self._beat_wanted and self.phase >= Phase.REQUIRED:
                self._frame_message(stream.BEAT, self.state.offset)
            self._frame = outbound.frame
            self._beat_wanted = False
        if not messages:
            return b""
        data = messages[0] if len(messages) == 1 else b"".join(messages)
        messages.clear()
        return data

    def on_ack(self, epoch: int, frame: int, offset: int) -> Replies:
        """Count the backup's ack; the replies that may leave now (C1). Raises ValueError."""
        if epoch != self.view.epoch or self.outbound is None:
            return []  # of an earlier epoch: the ack that counts is still to come
        outbound = self.outbound
        is_new = outbound.on_ack(frame, offset)
        if is_new:
            outbound.progress_ms = self._now_ms
        if self.phase >= Phase.REQUIRED:
            limit = outbound.acked_offset + _UNACKED_LIMIT
            self.offset_limit = max(self.offset_limit, limit)
        if self.stalled and frame > self._stalled_at_frame:
            self.stalled = False
        if self.phase is Phase.SNAPSHOT:
            if is_new:  # END's: no other frame was sent
                self.phase = Phase.CATCHING_UP
        elif self.phase is Phase.PROPOSED and frame >= self._required_frame:
            self.phase = Phase.MEMBER
            self._review_grants()
        turns: list[Replies] = []
        held_back = self.held_back
        while held_back and held_back[0][0] <= frame:
            _, _, replies, size_bytes = held_back.popleft()
            self.held_back_bytes -= size_bytes
            turns.append(replies)
        self.overflows = self.held_back_bytes > limits.HELD_BACK_BYTES_MAX
        if len(turns) == 1:
            return turns[0]
        return [reply for replies in turns for reply in replies]

    def _seal(self) -> Batch:
        """The entries of this turn as a batch."""
        state, answers = self.state, self._answers
        payload = pack((bytes(self._kinds), *self._fields))
        self.checksum = stream.chain(self.checksum, state.epoch, state.time_ms, payload, answers)
        self._clear_entries()
        return Batch(
            self._first_offset, state.offset, state.epoch, state.time_ms, self.checksum, payload
        )

    def _clear_entries(self) -> None:
        self._kinds.clear()
        self._fields.clear()
        self._answers.clear()

    def _frame_message(self, kind: bytes, *fields: bytes | int | str) -> int:
        assert self.outbound is not None
        # In mid-turn (VIEW) what this turn has appended goes out behind the message.
        offset = self._first_offset - 1 if self._first_offset else self.state.offset
        frame = self.outbound.sending(offset, self._now_ms)
        self._messages.append(pack((kind, self.view.epoch, frame, *fields)))
        return frame

    # -- the primary's own entries ---------------------------------------------------------------

    def forget(self) -> None:
        """Append the entries that are due: forgetting what is old enough (R4)."""
        assert self.role is Role.PRIMARY
        if self.state.offset >= self.offset_limit:
            return
        replies, now_ms = self.state.replies, self.state_time_ms()
        if replies.replies_due(now_ms):
            self.append(FORGET, b"", b"", b"", b"r")
        if replies.clients_due(now_ms):
            self.append(FORGET, b"", b"", b"", b"c")

    def state_time_ms(self) -> int:
        """State time of this turn (for a backup: an estimate that is never ahead)."""
        return max(self._now_ms + self._clock_offset_ms, self.state.time_ms)

    def real_time_ms(self) -> int:
        """State time at this instant: from when on something lasts that begins now."""
        return max(self._clock() + self._clock_offset_ms, self.state.time_ms)

    def has_acked(self, offset: int) -> bool:
        """Whether nothing up to ``offset`` is on its way to a backup whose acks are waited for."""
        return self.phase < Phase.REQUIRED or (
            self.outbound is not None and self.outbound.acked_offset >= offset
        )

    def entry_time_ms(self) -> int:
        """The time that an entry appended now is stamped with: one for all of a turn."""
        return self.state.time_ms if self._first_offset else self.state_time_ms()

    # -- the primary and its backup --------------------------------------------------------------

    def attach(self, incarnation: str, at: Point | None = None) -> snapshot.Cut | None:
        """A backup joins that stands ``at`` a point. If what it lacks is in the backlog, the stream
        goes on from there (None); else a snapshot is cut for it. What is appended from now on goes
        to it later."""
        assert self.role is Role.PRIMARY and self.phase is Phase.NONE, (self.role, self.phase)
        assert not self._first_offset, "between two turns: no entry is half in the snapshot"
        if not self.keeps_backlog:
            self._begin_backlog()
        self.backlog.bytes_max = limits.BACKLOG_BYTES_MAX
        self.backup = incarnation
        self._unsent_bytes = 0
        self._all_sent_ms = 0
        position = self.backlog.position_behind(at) if at is not None else None
        if at is not None and position is not None:
            self.phase = Phase.CATCHING_UP
            self.outbound = stream.Outbound(self._frame, at.offset, position)
            self._unsent_bytes = self.backlog.bytes_behind(position)
            frame = self.outbound.sending(at.offset, self._now_ms)
            self._messages.append(
                pack(
                    (
                        stream.CONTINUE,
                        self.view.epoch,
                        frame,
                        self.incarnation,
                        self.state_time_ms(),
                    )
                )
            )
            return None
        self.phase = Phase.SNAPSHOT
        self.outbound = stream.Outbound(self._frame, self.state.offset, self.backlog.end)
        cut = snapshot.Cut(self.state)
        self._messages.append(
            pack((stream.BEGIN, self.view.epoch, self.incarnation, self.checksum, *cut.header))
        )
        return cut

    def _begin_backlog(self) -> None:
        self.keeps_backlog = True
        self.backlog = Backlog(limits.BACKLOG_KEPT_BYTES_MAX, self.point)

    @property
    def point(self) -> Point:
        """Where this node stands."""
        return Point(self.state.history, self.state.epoch, self.state.offset, self.checksum)

    def snapshot_sent(self) -> None:
        """The last item of the snapshot is on its way: END, which the backup will acknowledge."""
        assert self.phase is Phase.SNAPSHOT and self.outbound is not None
        frame = self.outbound.sending(self.outbound.acked_offset, self._now_ms)
        # State time goes with it, and with CONTINUE: the last entry may be old.
        self._messages.append(pack((stream.END, self.view.epoch, frame, self.state_time_ms())))

    def _catch_up(self, outbound: stream.Outbound, room_bytes: int) -> None:
        """Send backlog as far as there is room; when the backup has nearly all of it, its acks
        become required."""
        backlog = self.backlog
        while room_bytes > 0 and outbound.backlog_position < backlog.end:
            self._refuse_overrun(outbound)
            batch = backlog.batch_at(outbound.backlog_position)
            assert batch is not None
            frame = outbound.sending(batch.last_offset, self._now_ms)
            self._messages.append(stream.encode_entries(self.view.epoch, frame, batch))
            outbound.backlog_position += 1
            size_bytes = len(batch.payload) + BATCH_BYTES
            room_bytes -= size_bytes
            self._unsent_bytes -= size_bytes
        if self.has_more_to_send:
            self._all_sent_ms = 0
            return
        self._all_sent_ms = self._all_sent_ms or self._now_ms
        behind_ms = self._now_ms - (outbound.oldest_unacked_ms or self._now_ms)
        patience_ms = limits.CATCH_UP_PATIENCE_MS
        if behind_ms <= limits.CAUGHT_UP_MS or self._now_ms - self._all_sent_ms > patience_ms:
            self._require_acks(outbound)

    def _refuse_overrun(self, outbound: stream.Outbound) -> None:
        if outbound.backlog_position < self.backlog.start_position:
            raise BacklogOverrun

    @property
    def joiner_lags(self) -> bool:
        """Whether a backup that joins is so far behind that what is written has to wait for it."""
        is_joining = Phase.NONE < self.phase < Phase.REQUIRED
        return is_joining and self._unsent_bytes > limits.JOINER_LAG_BYTES

    def _require_acks(self, outbound: stream.Outbound) -> None:
        self.backlog.bytes_max = limits.BACKLOG_KEPT_BYTES_MAX
        self.phase = Phase.REQUIRED
        self.holding = True
        # (Not from the acked offset, which may lie before a promotion's skip: before this backup is
        # a member it has acknowledged all that is here, and is not promoted.)
        self.offset_limit = self.state.offset + _UNACKED_LIMIT
        self._required_frame = self._frame_message(stream.BEAT, self.state.offset)

    @property
    def has_more_to_send(self) -> bool:
        """Whether there is backlog that has not been sent to the backup that joins."""
        outbound = self.outbound
        return (
            self.phase is Phase.CATCHING_UP
            and outbound is not None
            and outbound.backlog_position < self.backlog.end
        )

    def proposal(self) -> View | None:
        """The view to propose now that the joining backup has everything; None: not yet."""
        if self.phase is not Phase.REQUIRED or self.outbound is None:
            return None
        if self.outbound.acked_frame < self._required_frame:
            return None
        return self.view.joined_by(self.backup)

    def propose(self) -> None:
        """The proposal is sent: from here on the backup may be a member, and be promoted."""
        assert self.proposal() is not None
        self.phase = Phase.PROPOSED
        self._required_frame = UNLIMITED  # no ack makes it a member before it is told

    def admit(self, view: View, *, may_promote_itself: bool, timeout_ms: int = 0) -> None:
        """The view with the backup in it stands: tell it. ``timeout_ms``: of its own silence."""
        self.adopt(view)
        members = ",".join(view.members)
        self._required_frame = self._frame_message(
            stream.VIEW, view.primary, members, int(may_promote_itself), timeout_ms
        )

    def adopt(self, view: View) -> None:
        """The view with the proposed backup in it stands."""
        assert self.phase is Phase.PROPOSED and view == self.view.joined_by(self.backup), view
        self.view = view

    def echo(self, number: bytes) -> None:
        """Answer the peer's PROBE."""
        self._messages.append(pack((stream.ECHO, number)))

    def beat(self) -> None:
        """Time for a sign of life: a frame goes out this turn unless one is on its way."""
        if self.outbound is not None and not self.outbound.unacked:
            self._beat_wanted = True

    def drop_joining_backup(self) -> Replies:
        """A backup that was not yet proposed is lost: nothing depends on it (C1)."""
        assert self.phase in (Phase.SNAPSHOT, Phase.CATCHING_UP, Phase.REQUIRED), self.phase
        return self._without_backup()

    def lose_link(self) -> None:
        """The link to a backup that may have been promoted broke: nothing leaves until it is
        decided who goes on. What is appended meanwhile reaches the backup with a new snapshot."""
        assert self.phase in (Phase.PROPOSED, Phase.MEMBER), self.phase
        self.blocked = True
        self._review_grants()

    def drop_overdue(self) -> Replies:
        """Held back for too long: these connections are to be closed, their clients ask again."""
        overdue: Replies = []
        while self.held_back and self._now_ms - self.held_back[0][1] > limits.BLOCKED_MAX_MS:
            _, _, replies, size_bytes = self.held_back.popleft()
            self.held_back_bytes -= size_bytes
            overdue += replies
        self.overflows = self.held_back_bytes > limits.HELD_BACK_BYTES_MAX
        return overdue

    def _without_backup(self) -> Replies:
        if self.outbound is not None:
            self._frame = self.outbound.frame
        self.outbound = None
        self.phase = Phase.NONE
        self.backup = ""
        self.holding = self.blocked = False
        self._review_grants()
        self._beat_wanted = False
        self.offset_limit = UNLIMITED
        self.backlog.bytes_max = limits.BACKLOG_KEPT_BYTES_MAX
        self._messages.clear()
        released = [reply for _, _, replies, _ in self.held_back for reply in replies]
        self.held_back.clear()
        self.held_back_bytes = 0
        self.overflows = False
        return released
