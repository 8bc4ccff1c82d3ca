"""What one process leaves behind for the checkers, noted as it happens."""

from __future__ import annotations

from harness.checkers.history import Digest, Promotion
from harness.checkers.history import Reply as ReplyRecord
from holdfast.server.core.replica import Replica, Role
from holdfast.server.core.snapshot import digest
from holdfast.server.core.view import NO_VIEW

from .requests import Reply
from .scheduler import Scheduler
from .trace import Trace

DIGEST_EVERY = 11  # offsets: both nodes come by the same ones


class Chronicle:
    """Of one process."""

    def __init__(self, replica: Replica, name: str, trace: Trace, scheduler: Scheduler) -> None:
        self._replica = replica
        self._name = name
        self._trace = trace
        self._scheduler = scheduler
        self.frames_us: dict[int, int] = {}  # when each frame was sent, true time
        self.last_frame = 0
        self.reigns_since = 0  # the epoch in which it became the primary
        self._acked = (0, 0)  # epoch, highest frame
        self._role = Role.EMPTY
        self._view = NO_VIEW
        self._digested = 0

    # -- the link and the replies ----------------------------------------------------------------

    def sent_frame(self, frame: int) -> None:
        """A frame goes out."""
        self.last_frame = frame
        self.frames_us[frame] = self._scheduler.now_us

    def note_ack(self, epoch: int, frame: int) -> None:
        """An ack has come in."""
        known_epoch, known_frame = self._acked
        self._acked = (epoch, max(frame, known_frame) if epoch == known_epoch else frame)

    def note_reply(self, reply: Reply) -> None:
        """A reply leaves."""
        replica, (epoch, frame) = self._replica, self._acked
        self._trace.history.replies.append(
            ReplyRecord(
                replica.incarnation,
                replica.view.epoch,
                reply.command,
                reply.name,
                reply.reqid,
                reply.answer,
                reply.computed_us,
                self._scheduler.now_us,
                reply.offset,
                not reply.needed_frame or not replica.holding,
                reply.needed_frame,
                frame if epoch == replica.view.epoch else 0,
            )
        )

    # -- the state -------------------------------------------------------------------------------

    def look_at_state(self, offset: int) -> None:
        """Take a digest now and then."""
        if offset == self._digested or offset % DIGEST_EVERY:
            return
        replica = self._replica
        whole = replica.role is Role.PRIMARY or (replica.role is Role.BACKUP and replica.synced)
        if whole and replica.state.locks.before_cut is None:
            self._digested = offset
            self.record_digest()

    def record_digest(self) -> None:
        """Note what the state is, for the other node's to be compared with."""
        state, now_us = self._replica.state, self._scheduler.now_us
        self._trace.history.digests.append(
            Digest(self._replica.incarnation, state.history, state.offset, digest(state), now_us)
        )

    # -- roles and views -------------------------------------------------------------------------

    def note_role(self) -> None:
        """Role or view may be others now."""
        role, view = self._replica.role, self._replica.view
        if role is not self._role:
            before, self._role = self._role, role
            self._trace.say(self._name, f"{before.value} -> {role.value}, epoch {view.epoch}")
            if role is Role.PRIMARY:
                self._note_promotion(before)
            elif before is Role.PRIMARY:
                self._trace.count(f"stands down, becomes {role.value}")
        if view.epoch > self._view.epoch or role is not Role.PRIMARY:
            self._view = view

    def _note_promotion(self, before: Role) -> None:
        replica, history = self._replica, self._trace.history
        self.reigns_since = replica.view.epoch
        members = self._view.members if self._view.epoch < replica.view.epoch else ()
        for taken in history.views:
            if taken.epoch == replica.view.epoch - 1:
                members = taken.members
        self._trace.count("promotion" if before is Role.BACKUP else "history begun")
        history.promotions.append(
            Promotion(replica.incarnation, replica.view.epoch, members, self._scheduler.now_us)
        )

    def note_log(self, text: str) -> None:
        """A line of the node's log."""
        self._trace.say(self._name, text)
        for part, what in _COUNTED_LINES:
            if part in text:
                self._trace.count(what)


_COUNTED_LINES = (
    ("a snapshot of", "full resync"),
    ("comes back: the stream goes on", "partial resync"),
    ("stale: ", "stale stream refused"),
    ("serving alone", "goes on alone"),
    ("PROMOTED", "promoted"),
    ("DEPOSED", "deposed"),
    ("stood still", "stall noticed"),
    ("refuses this backup", "backup refused"),
    ("cannot keep up", "backlog overrun"),
    ("has not got on", "joining backup dropped"),
    ("-> blocked", "blocked"),
    ("-> paired", "paired"),
    ("goes on without this backup", "proposal accepted by the backup"),
)
