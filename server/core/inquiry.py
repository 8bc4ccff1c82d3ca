"""The inquiry: who is primary. Looking for one, and deciding about a peer that is lost.

One question to the peer, one dial and one request to the view register can be under way. What their
outcome means is judged by the rules of ``failover.py``, in the situation as it is *then*: whatever
was asked in another one is dropped, and ``proceed`` asks again if there is still something to ask.

    in doubt          a primary with a backup that may have been promoted, or a backup that may be,
                      has lost the other one -> ask it -> bypass it, yield to it, or wait
    needs a primary   everybody else without a link -> ask the peer -> join it, begin, or wait
    alone             a primary without a backup looks now and then whether its peer serves too

Under ``fail-stop`` the peer's answer, or its silence, is the decision. With a register outside that
is a view which stands: what is proposed, and what is heeded, is the part of ``ballot.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from . import limits
from .ballot import Ballot
from .failover import (
    Answer,
    NoAnswer,
    Standing,
    Step,
    Verdict,
    judge,
    judge_for_register,
    step_of_empty_node,
)
from .outside import Link, Settings
from .replica import Phase, Role
from .view import Cas, View

if TYPE_CHECKING:
    from .pairing import Pairing

ASK_TIMEOUT_MS = 500
"""How long one question to the peer may take."""
RETRY_MS = 50
"""How soon it is asked again."""
_RETRY_FIRST_MS = 2  # a process that is being killed may reset a dial or two before it refuses


class _Question(NamedTuple):
    """What the peer is being asked, and in which situation."""

    purpose: str  # decide, seek or look
    proposes: bool
    view: View
    suspect: str
    stalls: int


class Inquiry:
    """One node's questions about who is primary."""

    def __init__(self, pairing: Pairing) -> None:
        self._pairing = pairing
        self._outside = pairing.outside
        self._replica = pairing.replica
        self.ballot = Ballot(pairing, self)
        self.bootstrap = pairing.settings.bootstrap  # once: used up with the first history
        self.reason = ""  # of the last verdict
        self.insists = False  # an operator wants this backup promoted
        self.refused = ""  # why that was not done
        self._suspected = False
        self._taking_over = False  # the primary has told this backup to
        self._question: _Question | None = None
        self._dialling = False
        self._wake_ms = 0  # when ``proceed`` is called without being asked to
        self._retry_ms = _RETRY_FIRST_MS
        self._look_ms = 0
        self._unanswered_since_ms = 0  # since when the peer that is sought has not answered

    # -- what is there to do ---------------------------------------------------------------------

    def suspect(self, why: str) -> None:
        """The peer seems to be lost."""
        if not self._suspected:
            self._suspected = True
            self._retry_ms = _RETRY_FIRST_MS
            self._pairing.log("warning", f"suspecting {self._settings.peer_name}: {why}")
        self.proceed()

    def tick(self, now_ms: int) -> None:
        """Every ``heartbeat_ms``."""
        if self._settings.has_register and not self._question:
            self.ballot.tick(now_ms)
        if now_ms >= self._wake_ms:
            self.proceed()

    def proceed(self) -> None:
        """Take the next step, unless one is under way, whose outcome will say what the next is."""
        if self._question is not None or self._dialling or self._pairing.stopping:
            return
        if self.in_doubt():
            self._decide()
            return
        self._suspected = False
        if self._needs_primary():
            self._seek()
        elif self._is_alone() and self._outside.boot_ms() >= self._look_ms:
            self._ask("look", "ASK")

    def in_doubt(self) -> bool:
        """Whether the peer, whom this node needs to go on, is lost for now."""
        replica, link = self._replica, self._pairing.link
        silent_ms = self.silence()[1]
        if replica.role is Role.PRIMARY and replica.phase >= Phase.PROPOSED:
            return link is None or (self._suspected and silent_ms > 2 * self._settings.heartbeat_ms)
        if self.promotes_itself():
            if link is None or self.insists or self._taking_over:
                return True
            return self._suspected and silent_ms > 3 * self._settings.heartbeat_ms
        return False

    def promotes_itself(self) -> bool:
        """Whether this is a backup that may propose to take over."""
        replica, settings = self._replica, self._settings
        if replica.role is not Role.BACKUP or not replica.synced:
            return False
        if replica.incarnation not in self.ballot.last_view().members:
            return False
        if self.insists or self._taking_over:
            return True
        # (Under fail-stop a primary that was not told of its peer could not ask it.)
        may = settings.has_register or replica.follower.may_promote_itself
        return may and settings.failover_auto

    def _needs_primary(self) -> bool:
        return self._replica.role is not Role.PRIMARY and self._pairing.link is None

    def _is_alone(self) -> bool:
        replica = self._replica
        return (
            replica.role is Role.PRIMARY
            and replica.phase is Phase.NONE
            and (self._settings.has_peer or self._pairing.backup_port > 0)
        )

    def silence(self) -> tuple[str, int, int]:
        """Which incarnation is suspected, for how long it has been silent, and its limit, ms."""
        replica, link, now_ms = self._replica, self._pairing.link, self._outside.boot_ms()
        lost_ms = self._pairing.link_lost_ms
        if replica.role is Role.PRIMARY:
            since_ms = replica.outbound.waits_since_ms if replica.outbound else None
            if self.has_offered():
                since_ms = self._pairing.offered_ms  # to acknowledge that is not to take over
            if since_ms is None:
                since_ms = lost_ms if link is None else now_ms
            return replica.backup, now_ms - since_ms, self._settings.backup_timeout_ms
        since_ms = link.last_heard_ms if link is not None else lost_ms
        return replica.view.primary, now_ms - since_ms, self._settings.promotion_timeout_ms

    # -- asking the peer -------------------------------------------------------------------------

    def _ask(self, purpose: str, *words: str | int, timeout_ms: int = ASK_TIMEOUT_MS) -> None:
        replica = self._replica
        proposes = words[0] == "PROPOSE"
        suspect = self.silence()[0]
        self._question = _Question(purpose, proposes, replica.view, suspect, replica.stalls)
        self._outside.ask(words, timeout_ms)

    def on_answer(self, outcome: Answer | NoAnswer) -> None:
        """What came of the question."""
        question, self._question = self._question, None
        if question is None or self._pairing.stopping:
            return
        if question.purpose == "decide":
            self._on_suspect_answered(question, outcome)
        elif question.purpose == "seek":
            self._on_peer_found(question, outcome)
        else:
            self._look_ms = self._outside.boot_ms() + limits.LOOK_AROUND_MS
            self._on_other_seen(outcome)

    def again(self, delay_ms: int | None = None) -> None:
        """Have ``proceed`` called a little later."""
        if delay_ms is None:
            delay_ms = int(RETRY_MS * (0.5 + self._outside.random()))
        self._wake_ms = self._outside.boot_ms() + delay_ms
        self._outside.call_later(delay_ms)

    # -- deciding about a peer that is lost ------------------------------------------------------

    def _decide(self) -> None:
        if self._settings.has_register and self.ballot.is_busy:
            return  # its answer goes on from here
        if self._settings.has_register and self._taking_over:
            self.ballot.propose_self()
            return
        _, silent_ms, timeout_ms = self.silence()
        left_ms = max(timeout_ms - silent_ms, 2 * self._settings.heartbeat_ms)
        is_early = self._pairing.link is not None and silent_ms < timeout_ms and not self.insists
        if self._settings.has_register or is_early:
            # Before its time is up a peer that only hangs is asked, not yet told to step aside.
            words: tuple[str | int, ...] = ("ASK",)
        else:
            words = ("PROPOSE", self._replica.incarnation, self._replica.view.epoch + 1)
        self._ask("decide", *words, timeout_ms=min(left_ms, ASK_TIMEOUT_MS))

    def _on_suspect_answered(self, question: _Question, outcome: Answer | NoAnswer) -> None:
        replica, pairing = self._replica, self._pairing
        if not self.in_doubt() or replica.view != question.view:
            self.proceed()  # the wait was long enough for the world to change: look again
            return
        has_answered = isinstance(outcome, Answer) and outcome.incarnation == question.suspect
        if has_answered and replica.stalls == question.stalls and not pairing.switching:
            replica.stalled = False  # F4: that very incarnation has answered what we asked since
        verdict, self.reason = self._judge(question, outcome)
        if verdict is Verdict.WAIT and pairing.switching:
            self.reason += "; it was told to take over, and may have"
        if verdict is Verdict.YIELD and self.ballot.must_settle():
            self.ballot.settle()
        elif verdict is Verdict.YIELD:
            assert isinstance(outcome, Answer)
            self._yield_to(outcome)
        elif verdict is Verdict.WAIT:
            self._say_undecided()
            self.again(self._retry_ms)
            self._retry_ms = min(2 * self._retry_ms, RETRY_MS, self._settings.heartbeat_ms)
        elif self._settings.has_register:
            self.ballot.propose_self()
        else:
            self.bypass(replica.view.alone(replica.incarnation), replica.view)

    def _say_undecided(self) -> None:
        text, level = f"undecided about {self._settings.peer_name}: {self.reason}", "info"
        if self._replica.stalled:  # (F4)
            text += (
                "; if it has certainly not taken over, REPLICAOF NO ONE FORCE has this node go on"
            )
            level = "warning"
        self._pairing.say(text, level)

    def _judge(self, question: _Question, outcome: Answer | NoAnswer) -> tuple[Verdict, str]:
        replica, linked = self._replica, self._pairing.link is not None
        suspect, silent_ms, timeout_ms = self.silence()
        early = not question.proposes and silent_ms < timeout_ms and not self.insists
        if linked and early and isinstance(outcome, Answer):
            if outcome.view.epoch <= replica.view.epoch:
                # It is there, and the link stands: there is no more to decide.
                outcome = outcome._replace(standing=Standing.STATE)
        if self._settings.has_register:
            return judge_for_register(
                outcome, suspect=suspect, epoch=replica.view.epoch, silent_ms=silent_ms,
                timeout_ms=timeout_ms, linked=linked,
            )  # fmt: skip
        return judge(
            outcome, suspect=suspect, epoch=replica.view.epoch, silent_ms=silent_ms,
            timeout_ms=timeout_ms, stalled=replica.stalled,
        )  # fmt: skip

    def bypass(self, view: View, after: View) -> None:
        """The view of this node alone stands."""
        self._suspected = self._taking_over = False
        self.ballot.admission = None
        if self._replica.role is Role.PRIMARY:
            self._pairing.go_alone(view, self.reason)
        else:
            self.insists = False
            self._pairing.promote(view, after, self.reason)

    def _yield_to(self, answer: Answer) -> None:
        """The peer serves: a primary stands down, a backup joins it again."""
        replica, pairing = self._replica, self._pairing
        if self.insists:
            self.insists = False
            self.refused = "the primary is alive and serves; it would have to be stopped first"
            self.proceed()
            return
        self._suspected = self._taking_over = False
        if replica.role is Role.BACKUP:
            pairing.drop_link()
            pairing.log("info", f"the primary serves: joining it again ({self.reason})")
            pairing.changed(self.reason)
            self._join()
        elif self.has_offered():
            pairing.step_aside(answer.view)
            self.proceed()
        else:
            self.stand_down(f"the peer serves in epoch {answer.view.epoch}")

    def has_offered(self) -> bool:
        """Whether this primary has told its backup to take over."""
        return self._pairing.switching == "failover-in-progress"

    def stand_down(self, why: str) -> None:
        """Another node goes on as the primary."""
        self.ballot.admission = None
        self._suspected = False
        self._pairing.stand_down(f"{why}, this node's was {self._replica.view.epoch}")
        self.proceed()

    def take_over(self) -> None:
        """The primary hands over to this member (FAILOVER)."""
        replica = self._replica
        if replica.incarnation not in replica.view.members:
            raise ValueError("told to take over, but not a member")
        self._taking_over = True
        self.reason = "the primary hands over"
        if self._settings.has_register:
            self.proceed()
        else:
            self.bypass(replica.view.alone(replica.incarnation), replica.view)

    def insist(self) -> None:
        """An operator wants this member promoted (REPLICAOF NO ONE): ``refused`` says why not."""
        self.insists = True
        self.refused = ""
        self.suspect("an operator wants this backup promoted")

    def _on_other_seen(self, outcome: Answer | NoAnswer) -> None:
        """A primary that is alone has looked whether its peer serves too (F6)."""
        if not self._is_alone() or not isinstance(outcome, Answer):
            return
        own = self._replica.answer()
        is_other = outcome.incarnation != own.incarnation
        if outcome.standing is not Standing.SERVING or not is_other:
            return
        higher = outcome.rank > own.rank
        if self._settings.has_register:
            higher = outcome.view.epoch > own.view.epoch
            if not higher:
                return  # it has not looked at the register yet
        self._pairing.say(
            f"the peer serves too, in epoch {outcome.view.epoch} (since {outcome.reigns_since}); "
            f"here it is {own.view.epoch} (since {own.reigns_since}): "
            f"{'it' if higher else 'this node'} goes on"
        )
        if higher:
            self.stand_down(f"the peer serves in epoch {outcome.view.epoch}")

    # -- looking for a primary -------------------------------------------------------------------

    def _seek(self) -> None:
        if self._settings.has_register and self.ballot.read_if_outdated(self._outside.boot_ms()):
            return
        self._ask("seek", "ASK")

    def _on_peer_found(self, question: _Question, outcome: Answer | NoAnswer) -> None:
        if not self._needs_primary() or self.in_doubt() or self._replica.view != question.view:
            self.proceed()
            return
        step, why = self._next_step(outcome)
        if step is Step.JOIN and self.ballot.must_settle():
            self.ballot.settle()
        elif step is Step.JOIN:
            self._join()
        elif step is Step.BEGIN and self._settings.has_register:
            self.ballot.claim()
        elif step is Step.BEGIN:
            seen = outcome.view.epoch if isinstance(outcome, Answer) else 0
            self._pairing.begin_history(why, seen)
        else:
            self._pairing.say(f"waiting for {self._settings.peer_name}: {why}")
            self.again()

    def _next_step(self, outcome: Answer | NoAnswer) -> tuple[Step, str]:
        replica = self._replica
        if isinstance(outcome, Answer):
            self._unanswered_since_ms = 0
            if outcome.incarnation == replica.incarnation:
                return Step.WAIT, "that is this very node: its peer must be another one"
            if outcome.standing is Standing.SERVING:
                known = self.ballot.known_epoch()
                if outcome.view.epoch < known:
                    return Step.WAIT, f"it serves in epoch {outcome.view.epoch}, known is {known}"
                replica.heard_of_history = True
                return Step.JOIN, "the primary is there"
        elif not self._unanswered_since_ms:
            self._unanswered_since_ms = self._outside.boot_ms()
        if replica.role is Role.BACKUP:
            return Step.WAIT, "no primary there; this node has state but may not serve by itself"
        if self._settings.has_register:
            is_silent = isinstance(outcome, NoAnswer) and self._has_been_silent()
            return self.ballot.claim_or_wait(peer_is_silent=is_silent)
        return self._begin_or_wait(outcome)

    def _begin_or_wait(self, outcome: Answer | NoAnswer) -> tuple[Step, str]:
        """F5."""
        replica, settings = self._replica, self._settings
        step = step_of_empty_node(
            outcome,
            heard=replica.heard_of_history,
            first_primary=settings.first_primary,
            bootstrap=self.bootstrap,
        )
        if isinstance(outcome, Answer) and outcome.standing is not Standing.BLANK:
            replica.heard_of_history = True
        # --bootstrap overrides silence: but not that of a peer which is only slow to answer.
        if step[0] is Step.BEGIN and not self._has_been_silent():
            return Step.WAIT, f"{step[1]}; a new history begins if it stays so"
        return step

    def _has_been_silent(self) -> bool:
        """Whether a peer that does not answer has had its time."""
        since_ms = self._unanswered_since_ms
        silent_ms = self._outside.boot_ms() - since_ms
        return not since_ms or silent_ms >= self._settings.promotion_timeout_ms

    def _join(self) -> None:
        wait_ms = self._pairing.join_again_ms - self._outside.boot_ms()
        if wait_ms > 0:
            self.again(wait_ms)
            return
        self._dialling = True
        self._outside.dial(ASK_TIMEOUT_MS)

    def has_dialled(self, link: Link | None, why: str) -> bool:
        """The dial has ended; whether the link is wanted."""
        self._dialling = False
        wanted = self._needs_primary() and not self._pairing.stopping
        if link is None:
            self._pairing.say(f"cannot reach the primary: {why}")
        elif not wanted:
            link.close()
        if link is None and wanted:
            self.again()
        elif not wanted:
            self.proceed()
        return wanted

    # -- the ballot ------------------------------------------------------------------------------

    def admit(self, proposal: View) -> None:
        """Have the joining backup made a member."""
        self.ballot.admit(proposal)

    def forget_admission(self) -> None:
        """This node is no primary any more."""
        self.ballot.withdraw()

    @property
    def seen(self) -> View:
        """What the register showed last."""
        return self.ballot.seen

    @property
    def register_answers(self) -> bool:
        """Whether the register does, as far as is known."""
        return self.ballot.register_answers

    @property
    def has_forgotten(self) -> bool:
        """Whether the register is behind what this node knows, which only an operator mends."""
        return self.ballot.has_forgotten

    @property
    def trouble(self) -> str:
        """Why the register decides nothing; empty if it may, or if there is none."""
        return self.ballot.trouble

    def record(self, view: View) -> None:
        """Have the register told of what an operator has forced."""
        self.ballot.record(view)

    def look(self) -> int:
        """Read the register, if there is one; the request's number, for ``has_looked``."""
        return self.ballot.look()

    def has_looked(self, number: int) -> bool:
        """Whether that request has shown a view that is not behind what this node knows."""
        return self.ballot.has_looked(number)

    def on_view(self, result: Cas | None, view: View) -> None:
        """What the register said."""
        self.ballot.on_view(result, view)

    def on_left_out(self, view: View) -> None:
        """The view that stands goes on without this backup."""
        if self.insists:
            self.insists = False
            self.refused = f"the view of epoch {view.epoch} goes on without this node"
        self._taking_over = False

    def on_register_failed(self) -> None:
        """The register did not answer, or has forgotten: it decides nothing now."""
        if self.in_doubt():
            self.again()
        elif self._needs_primary() and self._question is None and not self._dialling:
            self._ask("seek", "ASK")

    @property
    def _settings(self) -> Settings:
        return self._pairing.settings
