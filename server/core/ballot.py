"""The ballot: what this node proposes to the view register, and what it makes of its answers.

``inquiry.py`` says when to propose, and carries out what follows. One request to the register can
be under way; its answer, whatever was asked, is a view that stands. Without a register outside
there is nothing to propose to: ``failover.py`` decides.

R1  A proposal is settled only by a view of its epoch or a later one: one that was not answered may
    still win, at any time. Reading the epoch before it proves nothing.
R2  A view that stands is *heeded* in whatever answer it comes.
R3  A backup whose proposal is not settled keeps its identity, and so its state: it joins nobody.

    why R3:   B proposes itself, hears nothing, finds that P serves, joins it as B2. Then its
              proposal wins: P stands down for B, whom there is no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import limits
from .failover import Step
from .outside import Settings
from .replica import Phase, Role
from .view import NO_VIEW, Cas, View

if TYPE_CHECKING:
    from .inquiry import Inquiry
    from .pairing import Pairing

_MENDED_BY = (
    "'holdfast view init --from HOST:PORT', of the node that serves (one that is blocked with its "
    "state serves after REPLICAOF NO ONE FORCE)"
)
_GET_AGAIN_MS = 250  # how often the register is read by a node that waits for a primary


class Ballot:
    """One node's dealings with the view register."""

    def __init__(self, pairing: Pairing, inquiry: Inquiry) -> None:
        self._pairing = pairing
        self._inquiry = inquiry
        self._outside = pairing.outside
        self._replica = pairing.replica
        self.seen = NO_VIEW  # what the register showed last
        self.shown_epoch = 0  # which may be behind what this node knows
        self.register_answers = True  # as far as is known
        self.is_busy = False  # a request is under way
        self._seen_ms = -1
        self._is_current = False  # not behind what this node knows
        self._requests = 0  # sent to the register so far,
        self._answered = 0  # and which of them was answered last
        self._looks_again = False  # as soon as the one that is under way is answered
        self.has_forgotten = False  # but behind it, which only an operator mends
        self.admission: View | None = None  # proposed to the register, undecided
        self._forced: View | None = None  # what an operator has forced, and the register lacks
        self._promoted_from = NO_VIEW  # the view behind which this backup proposed itself
        self._unsettled = NO_VIEW  # the proposal that is not settled (R1)

    # -- what is known ---------------------------------------------------------------------------

    def last_view(self) -> View:
        """The newest view that this node knows of: it may be a member without having been told."""
        own = self._replica.view
        return self.seen if self.seen.epoch > own.epoch else own

    def known_epoch(self) -> int:
        """No primary of a lower epoch is joined. (A node without state has none of its own.)"""
        own = self._replica.view.epoch if self._replica.role is Role.BACKUP else 0
        return max(own, self.seen.epoch)

    def must_settle(self) -> bool:
        """Whether this node may join nobody before its proposal is settled (R3)."""
        is_open = self._unsettled.epoch > max(self.seen.epoch, self._replica.view.epoch)
        return self._replica.role is Role.BACKUP and is_open

    # -- reading ---------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> None:
        """Every ``heartbeat_ms``, unless the peer is being asked: what was not settled is proposed
        again, else the register is read now and then."""
        if self.is_busy:
            return
        if self._forced is not None and self.seen.epoch == self._forced.epoch - 1:
            self._cas(self._forced)
        elif self.admission is not None and self._pairing.link is not None:
            self._cas(self.admission)
        elif now_ms - self._seen_ms >= limits.LOOK_AROUND_MS:
            self._get()

    def read_if_outdated(self, now_ms: int) -> bool:
        """For a node that looks for a primary: whether the register is read first."""
        if self.is_busy:
            return False
        # A member may not have been told that it is one: the register comes first.
        stale = self._seen_ms <= self._pairing.link_lost_ms
        if stale or now_ms - self._seen_ms > _GET_AGAIN_MS:
            self._get()
            return True
        return False

    def look(self) -> int:
        """Read the register, if there is one, now or as soon as it has answered what is under way.
        The number of that request, for ``has_looked``."""
        if not self._settings.has_register:
            return 0
        self._looks_again = self.is_busy
        if not self.is_busy:
            self._get()
            return self._requests
        return self._requests + 1

    def has_looked(self, number: int) -> bool:
        """Whether that request, or a later one, has shown a view that is not behind what this node
        knows. Without a register there is nothing to look at."""
        return not number or (self._is_current and self._answered >= number)

    def _get(self) -> None:
        self.is_busy = True
        self._requests += 1
        self._outside.view_get()

    # -- proposing -------------------------------------------------------------------------------

    def admit(self, proposal: View) -> None:
        """Have the joining backup made a member."""
        if self._settings.has_register:
            self.admission = proposal
            if not self.is_busy and self._forced is None:  # else a tick sends it
                self._cas(proposal)
            return
        # The only member of a view decides about it alone. A primary that was not told of its peer
        # cannot ask it later: promotion is by hand then.
        self._tell_member(proposal, may_promote_itself=self._settings.has_peer)

    def _tell_member(self, view: View, *, may_promote_itself: bool) -> None:
        timeout_ms = self._settings.backup_timeout_ms
        self._replica.admit(view, may_promote_itself=may_promote_itself, timeout_ms=timeout_ms)
        link = self._pairing.link
        name = link.peer if link is not None else ""
        text = f"backup {name} has everything: epoch {view.epoch - 1} -> {view.epoch}"
        self._pairing.log("info", text)

    def record(self, view: View) -> None:
        """Tell the register of what an operator has forced, as soon as it can be told."""
        if self._settings.has_register:
            self._forced = view
            self.look()

    def withdraw(self) -> None:
        """This node is no primary any more: what it wanted as one is not proposed again."""
        self.admission = self._forced = None

    def propose_self(self) -> None:
        """Propose that this node goes on, or takes over, alone."""
        after = self.last_view()
        self._promoted_from = after
        self._cas(after.alone(self._replica.incarnation))

    def settle(self) -> None:
        """Propose once more what is not settled (R1)."""
        self._cas(self._unsettled)

    def claim(self) -> None:
        """Propose that this empty node begins a history."""
        incarnation = self._replica.incarnation
        self._cas(View(self.seen.epoch + 1, incarnation, (incarnation,)))

    def claim_or_wait(self, *, peer_is_silent: bool) -> tuple[Step, str]:
        """An empty node, a register, and no primary that answers (F5)."""
        seen = self.seen
        if not self.register_answers or self._seen_ms < 0:
            return Step.WAIT, "the view register has not answered"
        if seen == NO_VIEW:
            return Step.WAIT, "the view register is empty: 'holdfast view init' begins"
        if seen.epoch < self._replica.view.epoch:
            return Step.WAIT, (
                f"the view register has forgotten: it is in epoch {seen.epoch}, this node has seen "
                f"{self._replica.view.epoch}; 'holdfast view init --force --epoch' mends it"
            )
        if not seen.is_vacant:
            return Step.WAIT, (
                f"the register's primary of epoch {seen.epoch} is not there; if no node has its "
                "state any more: 'holdfast view init --force'"
            )
        if self._settings.first_primary or self._inquiry.bootstrap:
            return Step.BEGIN, f"the register is vacant in epoch {seen.epoch}"
        if peer_is_silent:
            return Step.BEGIN, f"the register is vacant in epoch {seen.epoch}, the peer is silent"
        return Step.WAIT, "the register is vacant: the node with --backup begins"

    def _cas(self, view: View) -> None:
        if self.is_busy:
            self._inquiry.again()
            return
        self.is_busy = True
        self._requests += 1
        self._unsettled = view
        self._outside.view_cas(view)

    # -- what the register says ------------------------------------------------------------------

    def on_view(self, result: Cas | None, view: View) -> None:
        """The answer to a compare-and-set, or (None) to a get."""
        self.is_busy = False
        self._seen_ms = self._outside.boot_ms()
        if self._pairing.stopping:
            return
        self._note_register(result is not Cas.UNDECIDED)
        if result is Cas.UNDECIDED:
            self._pairing.say("the view register does not answer")
            self._inquiry.on_register_failed()
            return
        self._is_current = False
        self._answered = self._requests
        self.shown_epoch = view.epoch
        known = self.known_epoch()
        if self._replica.role is Role.PRIMARY:
            known = max(known, self._replica.view.epoch)
        if self._forced is not None and view.epoch == self._forced.epoch - 1:
            self.seen = view  # it lacks what an operator has forced: the next tick says it
            self._inquiry.proceed()
            return
        if view.epoch < known:
            self._note_forgotten(view.epoch, known)
            self._inquiry.on_register_failed()
            return
        self.has_forgotten = False
        self.seen = view
        self._is_current = True
        self._heed(view)
        if self._looks_again and not self.is_busy:
            self._looks_again = False
            self._get()
        self._inquiry.proceed()

    def _note_register(self, answers: bool) -> None:
        if answers != self.register_answers:
            self.register_answers = answers
            text = "answers again" if answers else "settles nothing: no change of roles is possible"
            self._pairing.log("info" if answers else "warning", f"the view register {text}")

    def _note_forgotten(self, epoch: int, known: int) -> None:
        self._pairing.say(
            f"the view register has forgotten: it is in epoch {epoch}, this node knows "
            f"{known}; nothing is decided by it until an operator mends it: {_MENDED_BY}",
            "warning",
        )
        self.has_forgotten = True

    @property
    def register_status(self) -> str:
        """One word for ``INFO replication``: unknown (not asked yet, or not answered yet), up, down
        or forgotten (it answers, and is behind what this node knows)."""
        if not self.register_answers:
            return "down"
        if self._seen_ms < 0:
            return "unknown"
        return "forgotten" if self.has_forgotten else "up"

    @property
    def trouble(self) -> str:
        """Why the register decides nothing; empty if it may."""
        if not self.register_answers:
            return "the view register does not answer"
        if self.has_forgotten:
            return f"the view register is behind this node ({_MENDED_BY} mends that)"
        return ""

    def _heed(self, view: View) -> None:
        """``view`` stands (R2)."""
        replica = self._replica
        if replica.role is Role.PRIMARY:
            self._heed_as_primary(view)
        elif replica.role is Role.BACKUP:
            self._heed_as_backup(view)
        elif view.primary == replica.incarnation:  # our claim has won, whenever that was
            self._pairing.begin_history("the view register was vacant", view.epoch - 1)

    def _heed_as_primary(self, view: View) -> None:
        replica, pairing, inquiry = self._replica, self._pairing, self._inquiry
        if self._forced is not None and view.epoch >= self._forced.epoch:
            self._forced = None
        if view.epoch < replica.view.epoch:
            return
        if view.epoch == replica.view.epoch and view.primary == replica.incarnation:
            return
        if view == replica.view.alone(replica.backup) and inquiry.has_offered():
            pairing.step_aside(view)
            return
        if view.primary != replica.incarnation:
            vacant = ", vacant: an operator has declared the history lost" * view.is_vacant
            inquiry.stand_down(f"the view register is in epoch {view.epoch}{vacant}")
            return
        joined = replica.view.joined_by(replica.backup)
        if view == joined and replica.phase is Phase.PROPOSED:
            self.admission = None
            if pairing.link is not None:
                self._tell_member(view, may_promote_itself=True)
            else:
                replica.adopt(view)  # told too late: it is lost already
        elif replica.phase >= Phase.PROPOSED and view.members == (replica.incarnation,):
            if view.epoch == joined.epoch + 1:
                replica.adopt(joined)  # both of our proposals have won, and no answer came
            inquiry.bypass(view, replica.view)

    def _heed_as_backup(self, view: View) -> None:
        replica, inquiry = self._replica, self._inquiry
        if view.primary == replica.incarnation:
            if view == self._promoted_from.alone(replica.incarnation):
                inquiry.reason = inquiry.reason or "the view register says so"
                inquiry.bypass(view, self._promoted_from)
        elif view.is_vacant and view.epoch > replica.view.epoch:
            self._pairing.discard(f"the view register is vacant in epoch {view.epoch}")
        elif replica.incarnation not in view.members and view.epoch > replica.view.epoch:
            inquiry.on_left_out(view)

    @property
    def _settings(self) -> Settings:
        return self._pairing.settings
