"""The replica: this node's role, its epoch, and which replies may leave.

What a primary does for its backup, through the phases below, is in ``sender.py``; what a backup
does in ``follower.py``. Here are the rules of both, and the changes from one to the other.

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

from collections.abc import Callable

from . import limits, stream
from .backlog import Backlog
from .executor import Executor
from .failover import Answer, Standing
from .follower import Follower
from .sender import UNLIMITED, BacklogOverrun, Phase, Replies, Role, Sender
from .state import EPOCH, State
from .view import View

__all__ = ["BacklogOverrun", "Phase", "Replica", "Replies", "Role"]


class Replica(Sender):
    """One node's part in the pair."""

    def __init__(
        self,
        incarnation: str,
        min_backups: int = 0,
        clock: Callable[[], int] | None = None,
    ) -> None:
        """``clock`` gives CLOCK_BOOTTIME in milliseconds; without one, turns take no time."""
        super().__init__(incarnation, min_backups, clock)
        self.heard_of_history = False
        self.stalls = 0  # how often this node stood still (F4 of failover.py)
        self._reigns_since = 0  # the epoch in which this node became the primary
        self.executor = Executor(self)  # as primary
        self.follower = Follower(self)  # as backup

    # -- a peer that is lost ---------------------------------------------------------------------

    def go_alone(self, view: View) -> Replies:
        """The view of this primary alone stands: everything held back may leave."""
        assert self.role is Role.PRIMARY and view == self.view.alone(self.incarnation), view
        self.view = view
        self.stalled = False
        return self._without_backup()

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
        self._stalled_at_frame = UNLIMITED  # F4, and no ack is that answer
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
