"""What to make of the peer's answer, or of its silence: the rules of ``fail-stop``.

A node that suspects its peer dials it and proposes a view of itself alone. Rules:

F1  A peer that answers at all decides. A serving primary never accepts: "re-attach to me". A
    backup accepts its primary's proposal, and from then on may bypass nobody until it is a member
    again.
F2  A peer that answers under another incarnation is not the one we knew: that one is dead.
    An answer that cannot be understood, or a question that could not be asked, bypasses nobody.
F3  A peer that is gone (connection refused) is bypassed at once, a silent one only when it has
    been silent for its time-out.
F4  A node whose own loop stood still for about its peer's time-out may have been bypassed itself.
    It bypasses nobody until that same incarnation has answered it; failing that, an operator
    decides.
F5  An empty node never serves on its own word (``step_of_empty_node``).
F6  Two primaries can be the outcome when two live nodes cannot reach each other. When they can, the
    one of the lower epoch stands down; at equal epochs the one that reigns for longer, so that the
    promoted backup goes on.

With a view register outside the register decides, and F1, F4 and F6 fall away: whoever suspects
asks the peer first only so that a broken connection between two live nodes moves nobody.

    why F4:   P ======stopped======> resumes, hears nothing, dials B: refused.
              B    silence.. promotes, serves, dies.
              P alone again would give away locks that B granted.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from .view import View


class Standing(str, Enum):
    """What a node says of itself when it is asked."""

    SERVING = "serving"  # a primary
    STATE = "state"  # has state, does not serve
    HEARD = "heard"  # heard of a history, holds none of it
    BLANK = "blank"  # never heard of any


class Answer(NamedTuple):
    """A peer's answer to ASK and PROPOSE."""

    incarnation: str
    standing: Standing
    accepted: bool
    view: View
    has_backup: bool = False  # a primary that takes no other one
    reigns_since: int = 0  # the epoch in which it became the primary
    register: str = ""  # what keeps its view, in the words of --view

    @property
    def rank(self) -> tuple[int, int, str]:
        """Of two primaries that find each other the higher goes on (F6)."""
        return self.view.epoch, self.reigns_since, self.incarnation


class NoAnswer(Enum):
    """The other ways in which asking can end."""

    GONE = "gone"  # connection refused: there is no process
    SILENT = "silent"  # nothing came back in time
    STRANGER = "answering, but not as a Holdfast node of this version"
    UNASKED = "not to be asked (no name service, or no file descriptor left here)"


class Verdict(Enum):
    """What a node may do about a peer that it suspects."""

    BYPASS = "bypass"  # go on, or take over, without it
    YIELD = "yield"  # the peer's view stands: join it
    WAIT = "wait"  # not yet known: ask again


def judge(
    outcome: Answer | NoAnswer,
    *,
    suspect: str,
    epoch: int,
    silent_ms: int,
    timeout_ms: int,
    stalled: bool,
) -> tuple[Verdict, str]:
    """May the node of ``epoch`` bypass the incarnation ``suspect``, under ``fail-stop``? With the
    reason, for the log.

    ``silent_ms``: for how long the peer has been silent; ``stalled``: whether our own loop stood
    still since that incarnation last answered.
    """
    if isinstance(outcome, Answer):
        if outcome.standing is Standing.SERVING and (
            outcome.incarnation == suspect or outcome.view.epoch > epoch
        ):
            return Verdict.YIELD, f"it serves in epoch {outcome.view.epoch}, ours is {epoch}"
        if outcome.incarnation == suspect:
            if outcome.accepted:
                return Verdict.BYPASS, "it has accepted"
            return Verdict.WAIT, "it answers, but does not accept"
        if stalled:
            return Verdict.WAIT, "it was restarted while this node stood still"
        return Verdict.BYPASS, "its process is another one now"
    if stalled:
        return Verdict.WAIT, f"it is {outcome.value}, and this node itself stood still"
    if outcome in (NoAnswer.STRANGER, NoAnswer.UNASKED):
        return Verdict.WAIT, f"it is {outcome.value}"
    if outcome is NoAnswer.GONE:
        return Verdict.BYPASS, "its process is gone"
    if silent_ms >= timeout_ms:
        return Verdict.BYPASS, f"{outcome.value} for {silent_ms} ms, the limit is {timeout_ms} ms"
    return Verdict.WAIT, f"{outcome.value} for {silent_ms} ms, the limit is {timeout_ms} ms"


def judge_for_register(
    outcome: Answer | NoAnswer,
    *,
    suspect: str,
    epoch: int,
    silent_ms: int,
    timeout_ms: int,
    linked: bool,
) -> tuple[Verdict, str]:
    """Is it time for the node of ``epoch`` to propose a view without ``suspect`` to the register
    (BYPASS)? Whether that is done is the register's answer. ``linked``: the link still stands."""
    if isinstance(outcome, Answer):
        if outcome.standing is Standing.SERVING and (
            outcome.incarnation == suspect or outcome.view.epoch > epoch
        ):
            return Verdict.YIELD, f"it serves in epoch {outcome.view.epoch}, ours is {epoch}"
        if outcome.incarnation != suspect:
            return Verdict.BYPASS, "its process is another one now"
        if linked and silent_ms < timeout_ms:
            return Verdict.WAIT, "it answers, and the link stands"
        return Verdict.BYPASS, "it answers, but has not followed"
    if outcome is NoAnswer.GONE:
        return Verdict.BYPASS, "its process is gone"
    if silent_ms >= timeout_ms:
        return Verdict.BYPASS, f"{outcome.value} for {silent_ms} ms, the limit is {timeout_ms} ms"
    return Verdict.WAIT, f"{outcome.value} for {silent_ms} ms, the limit is {timeout_ms} ms"


class Step(Enum):
    """What a node without state does next."""

    JOIN = "join"
    BEGIN = "begin"  # a new history
    WAIT = "wait"


def step_of_empty_node(
    outcome: Answer | NoAnswer, *, heard: bool, first_primary: bool, bootstrap: bool
) -> tuple[Step, str]:
    """What an empty node with a peer does (F5), with the reason.

    ``heard``: whether this node itself has heard of a history; ``first_primary``: whether it was
    started with ``--backup``; ``bootstrap``: it overrides silence, never a peer that has state.
    """
    if isinstance(outcome, NoAnswer):
        if bootstrap and outcome in (NoAnswer.GONE, NoAnswer.SILENT):
            return Step.BEGIN, f"the peer is {outcome.value}, --bootstrap was given"
        return Step.WAIT, f"the peer is {outcome.value}; an empty node does not serve on its own"
    match outcome.standing:
        case Standing.SERVING:
            return Step.JOIN, f"the peer serves in epoch {outcome.view.epoch}"
        case Standing.STATE:
            return Step.WAIT, "the peer has state but does not serve"
        case Standing.HEARD:
            if bootstrap:
                return Step.BEGIN, "the peer lost its history, --bootstrap was given"
            return Step.WAIT, "the peer knows of a history that it does not hold; see --bootstrap"
        case Standing.BLANK:
            if bootstrap or (first_primary and not heard):
                return Step.BEGIN, "neither node has heard of a history"
            return Step.WAIT, "the peer is empty too; the node with --backup begins"
