"""The replica: this node's role, its epoch, and which replies may leave.

Theory of operation
-------------------
A node is EMPTY (no state), BACKUP (state, follows a stream) or PRIMARY (answers requests). It
changes role in one function each: ``begin_history``, ``promote``, ``stand_down``, ``load``.

A primary has at most one backup attached, in a phase:

    SNAPSHOT -> CATCHING_UP -> REQUIRED -> PROPOSED -> MEMBER
    '---- no reply waits ----'  '---- every reply waits ----'

REQUIRED begins when the whole backlog has been sent: from then on each reply that depends on the
state is *held back* until the backup has acknowledged the frame that went out at the end of the
reply's own loop turn. When the first such frame is acknowledged, so is everything that was
appended before the requirement began, and only then is the backup proposed as a member, which may
be promoted. A backup that is lost before PROPOSED is dropped; one that is lost after it may have
been promoted, so the primary is *blocked*: it holds everything back until its proposal to go on
alone is decided.

Rules
-----
C1  (I6) Held-back replies are data: a queue of (frame, connection, bytes). They leave by an ack of
    the current epoch, or when this node is decided to be alone.
C2  (I6) A node that stands down closes the connections of its held-back replies. It never turns
    one into an error that reads as "not done".
C3  (I3) A message of a lower epoch is refused, by either side.
C4  A node that discards its state takes a new incarnation: its old acks are promises that it can
    no longer keep.

Nothing here does IO or knows a clock: times are arguments (CLOCK_BOOTTIME in milliseconds), bytes
to be sent are returned by ``end_turn``. State time is CLOCK_BOOTTIME plus ``_clock_offset_ms``; a
promoted backup continues from the last entry's time plus what has passed since it arrived, so
state time is never ahead of real time and no lease ends early (I8).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum, IntEnum
from typing import Any

from ...resp.encoder import pack
from . import limits, snapshot, stream
from .backlog import BATCH_BYTES, Backlog, Batch, Point
from .executor import Executor
from .failover import Answer, Standing
from .follower import Follower
from .reply_cache import Refused
from .state import EPOCH, FORGET, SHORT, State
from .view import NO_VIEW, View

_UNLIMITED = 2**63
# A request that is let through may append a few entries more than one; and what is due without
# being asked has its share: one step at a time (an end and a grant each) is under way.
_UNACKED_LIMIT = (
    limits.UNACKED_ENTRIES_MAX - limits.ENTRIES_PER_REQUEST_MAX - 3 * limits.DUE_PER_TURN
)


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


class Replica:
    """One node's part in the pair."""

    def __init__(
        self,
        incarnation: str,
        min_backups: int = 0,
        clock: Callable[[], int] | None = None,
    ) -> None:
        """``clock`` gives CLOCK_BOOTTIME in milliseconds; without one, turns take no time."""
        self.incarnation = incarnation
        self._now_ms: int = 0
        self._clock = clock or (lambda: self._now_ms)
        self.min_backups = min_backups
        self.role = Role.EMPTY
        self.view = NO_VIEW
        self.state: State = State("", 0, 0, 0)
        self.heard_of_history = False
        self.stalled = False  # F4 of failover.py
        self.stalls = 0  # how often
        # As primary:
        self.executor = Executor(self)
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
        self._all_sent_ms = 0  # since when nothing of the backlog is left to be sent
        self.keeps_backlog = False  # for a backup that may come, or come back
        self.backlog = Backlog(limits.BACKLOG_KEPT_BYTES_MAX, Point("", 0, 0, 0))
        self.checksum = 0  # chained over the entries up to ``state.offset``
        self.offset_limit = _UNLIMITED  # from here on nothing is appended for requests
        self.no_grants: Refused | None = None  # why no lock is granted at present
        self._beat_wanted = False
        self._messages: list[bytes] = []  # to be sent at the end of this turn
        self._clock_offset_ms = 0
        # The entries of this turn (first_offset 0: none yet):
        self._first_offset = 0
        self._kinds = bytearray()
        self._fields: list[bytes] = []
        self._answers: list[int] = []
        self._reigns_since = 0  # the epoch in which this node became the primary
        # As backup:
        self.follower = Follower(self)

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
            self._first_offset = 0
        if outbound is not None:
            if self.blocked:
                messages.clear()
            elif self.phase is Phase.CATCHING_UP:
                self._catch_up(outbound, room_bytes)
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
        self._all_sent_ms = 0
        position = self.backlog.position_behind(at) if at is not None else None
        if at is not None and position is not None:
            self.phase = Phase.CATCHING_UP
            self.outbound = stream.Outbound(self._frame, at.offset, position)
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
            batch = backlog.batch_at(outbound.backlog_position)
            if batch is None:
                raise BacklogOverrun
            frame = outbound.sending(batch.last_offset, self._now_ms)
            self._messages.append(stream.encode_entries(self.view.epoch, frame, batch))
            outbound.backlog_position += 1
            room_bytes -= len(batch.payload) + BATCH_BYTES
        if self.has_more_to_send:
            self._all_sent_ms = 0
            return
        self._all_sent_ms = self._all_sent_ms or self._now_ms
        behind_ms = self._now_ms - (outbound.oldest_unacked_ms or self._now_ms)
        patience_ms = limits.CATCH_UP_PATIENCE_MS
        if behind_ms <= limits.CAUGHT_UP_MS or self._now_ms - self._all_sent_ms > patience_ms:
            self._require_acks(outbound)

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
        self._required_frame = _UNLIMITED  # no ack makes it a member before it is told

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

    def go_alone(self, view: View) -> Replies:
        """The view of this primary alone stands: everything held back may leave."""
        assert self.role is Role.PRIMARY and view == self.view.alone(self.incarnation), view
        self.view = view
        self.stalled = False
        return self._without_backup()

    def _without_backup(self) -> Replies:
        if self.outbound is not None:
            self._frame = self.outbound.frame
        self.outbound = None
        self.phase = Phase.NONE
        self.backup = ""
        self.holding = self.blocked = False
        self._review_grants()
        self._beat_wanted = False
        self.offset_limit = _UNLIMITED
        self.backlog.bytes_max = limits.BACKLOG_KEPT_BYTES_MAX
        self._messages.clear()
        released = [reply for _, _, replies, _ in self.held_back for reply in replies]
        self.held_back.clear()
        self.held_back_bytes = 0
        self.overflows = False
        return released

    def note_stall(self) -> None:
        """This node's loop stood still for long: it may have been bypassed (F4)."""
        if self.role is Role.EMPTY or (self.role is Role.PRIMARY and len(self.view.members) < 2):
            return  # (a backup may find the view that makes it a member in what it reads next)
        self.stalled = True
        self.stalls += 1
        self._stalled_at_frame = self.outbound.frame if self.outbound else self._frame

    # -- a planned change of roles ---------------------------------------------------------------

    @property
    def is_quiet(self) -> bool:
        """Whether the backup has everything that was appended, and every reply has left."""
        return (
            self.phase is Phase.MEMBER
            and not self.blocked
            and not self._first_offset
            and not self.held_back
            and not self.executor.answered
            and self.outbound is not None
            and not self.outbound.unacked
        )

    def ask_for_ack(self) -> int:
        """A frame goes out this turn, whatever happens: its number, at least."""
        assert self.outbound is not None
        self._beat_wanted = True
        return self.outbound.frame + 1

    def hand_over(self) -> bytes:
        """Tell the backup to take over; what to send. From here on this node is silent until that
        very backup, or the view register, has answered: it may serve already."""
        assert self.is_quiet and not self._messages
        self._frame_message(stream.HANDOVER)
        data = b"".join(self._messages)
        self._messages.clear()
        self.blocked = self.stalled = True
        self._stalled_at_frame = _UNLIMITED  # F4, and no ack is that answer
        self._review_grants()
        return data

    def step_aside(self, view: View) -> tuple[list[object], Replies]:
        """PRIMARY to BACKUP, with its state: the other node has taken over as planned. Who stood in
        line here, and what was held back since, whose connections are to be closed (C2)."""
        assert self.role is Role.PRIMARY and self.blocked and not self.executor.answered
        assert view.epoch > self.view.epoch and not self._first_offset, (view, self.view)
        tickets = self.executor.queue.tickets()
        abandoned = self._without_backup()
        self.executor.end()
        self.role = Role.BACKUP
        self.view = view
        self.stalled = False
        self.keeps_backlog = False
        self.backlog = Backlog(limits.BACKLOG_KEPT_BYTES_MAX, self.point)
        self.follower.begin_at_rest()
        return tickets, abandoned

    # -- changes of role: one function each ------------------------------------------------------

    def begin_history(
        self, history: str, wall_clock_us: int, after_epoch: int = 0, quarantine_ms: int = 0
    ) -> None:
        """EMPTY to PRIMARY: the first primary of a new history (the caller has made sure, F5), in
        an epoch above ``after_epoch`` and any that this node has seen."""
        assert self.role is Role.EMPTY, self.role
        epoch = max(after_epoch, self.view.epoch) + 1
        self.role = Role.PRIMARY
        self.heard_of_history = True
        self.view = View(epoch, self.incarnation, (self.incarnation,))
        self._reigns_since = epoch
        self._clock_offset_ms = 0
        grants_from_ms = self._now_ms + quarantine_ms if quarantine_ms else 0
        self.state = State(history, wall_clock_us, epoch, self._now_ms, grants_from_ms)
        self.checksum = 0
        if self.keeps_backlog:
            self._begin_backlog()
        self._review_grants()
        self.executor.begin()

    @property
    def synced(self) -> bool:
        """Whether this backup has a whole state."""
        return self.follower.synced

    @property
    def is_loading(self) -> bool:
        """Whether the state is only partly here: a snapshot is being loaded."""
        return self.role is Role.BACKUP and not self.synced

    @property
    def is_member(self) -> bool:
        """Whether this node may be promoted: it has everything that was ever answered."""
        return self.synced and self.incarnation in self.view.members

    def promote(self, view: View, after: View, wall_clock_us: int) -> None:
        """BACKUP to PRIMARY, alone: the view that says so stands, ``after`` one in which this node
        was a member (I3)."""
        assert self.role is Role.BACKUP and self.synced, self.role
        assert self.incarnation in after.members and after.epoch >= self.view.epoch, after
        assert view == after.alone(self.incarnation), (view, after)
        self._become_primary(view, wall_clock_us)

    def promote_by_force(self, wall_clock_us: int, after_epoch: int = 0) -> None:
        """BACKUP to PRIMARY on an operator's word, whatever that loses."""
        assert self.role is Role.BACKUP and self.synced, (self.role, self.synced)
        epoch = max(self.view.epoch, after_epoch) + 1
        self._become_primary(View(epoch, self.incarnation, (self.incarnation,)), wall_clock_us)

    def _become_primary(self, view: View, wall_clock_us: int) -> None:
        self.role = Role.PRIMARY
        self.view = view
        self.stalled = False
        self._reigns_since = view.epoch
        self.phase = Phase.NONE
        self.follower.end()
        self._begin_backlog()
        offset = self.state.next_epoch_offset(wall_clock_us)
        self.append(EPOCH, b"", b"", b"", b"%d" % offset)
        assert self.state.offset == offset, "the skip is an entry like any other (I7)"
        self._review_grants()
        self.executor.begin()

    def stand_down(self, incarnation: str) -> Replies:
        """PRIMARY to EMPTY: another view stands. The held-back replies, whose connections are to
        be closed without a word (C2). ``incarnation``: the new one (C4)."""
        assert self.role is Role.PRIMARY, self.role
        abandoned = self._without_backup()
        self.discard(incarnation)
        return abandoned

    def discard(self, incarnation: str) -> None:
        """Drop the state, and with it this incarnation (C4)."""
        self.role = Role.EMPTY
        self.incarnation = incarnation
        self.executor.end()
        self.state = State("", 0, 0, 0)
        self.checksum = 0
        self.backlog = Backlog(limits.BACKLOG_KEPT_BYTES_MAX, self.point)
        self.follower.end()
        self.stalled = False
        self._first_offset = 0
        self._clear_entries()

    def renew_incarnation(self, incarnation: str) -> None:
        """This backup joins anew: it is no member any more (C4)."""
        assert self.role is not Role.PRIMARY
        self.incarnation = incarnation
        self.follower.may_promote_itself = False
        self.stalled = False

    def begin_following(self, view: View, incarnation: str, state: State | None = None) -> None:
        """EMPTY or BACKUP to BACKUP of ``view``'s primary, as ``incarnation`` (C4), with what it
        has, or with another ``state``."""
        assert self.role is not Role.PRIMARY
        self.role = Role.BACKUP
        self.incarnation = incarnation or self.incarnation
        self.heard_of_history = True
        self.stalled = False
        self.view = view
        if state is not None:
            self.state = state

    def set_state_time(self, time_ms: int, now_ms: int) -> None:
        """The primary's time was ``time_ms`` before now. Both clocks are read in whole
        milliseconds, rounded down: one less, and this node's estimate is never ahead (I8)."""
        self._clock_offset_ms = time_ms - now_ms - 1

    # -- what the peer is told -------------------------------------------------------------------

    def answer(self, proposer: str = "", epoch: int = 0) -> Answer:
        """Answer the peer's ASK, or its proposal of a view of itself alone in ``epoch`` (F1)."""
        accepted = (
            self.role is Role.BACKUP
            and proposer == self.view.primary != ""
            and (
                self.view.epoch < epoch <= self.view.epoch + 2
                or View(epoch, proposer, (proposer,)) == self.view
            )
        )  # (It may not have heard of its admission; or the answer to the same was lost.)
        if accepted:
            self.view = View(epoch, proposer, (proposer,))
            self.follower.may_promote_itself = False
        has_backup = self.phase is not Phase.NONE
        return Answer(
            self.incarnation, self._standing(), accepted, self.view, has_backup, self._reigns_since
        )

    def _standing(self) -> Standing:
        if self.role is Role.PRIMARY:
            return Standing.SERVING
        if self.role is Role.BACKUP and self.synced:
            return Standing.STATE
        return Standing.HEARD if self.heard_of_history else Standing.BLANK

    @property
    def mode(self) -> str:
        """One word for ``INFO replication``, as far as this node knows without its link."""
        if self.role is Role.PRIMARY:
            if self.blocked:
                return "blocked"
            if self.phase is Phase.NONE:
                return "solo"
            return "paired" if self.phase is Phase.MEMBER else "joining"
        if self.role is Role.BACKUP:
            return "paired" if self.is_member else "joining"
        return "recovery"


class BacklogOverrun(Exception):
    """The joining backup is slower than the writes: its snapshot has to be cut anew."""
