"""What a register may do to the view it holds; the same for every kind of register.

R1  The view changes by compare-and-set from epoch e to e+1, and only once there is one.
R2  A proposal that stands already has won: its first answer was lost. (Nobody else can have made
    the same one: it names the proposer's incarnation as primary.)
R3  A first view, and one after a loss, are written on the word of an operator alone: a *vacant*
    one, which an empty node may claim, or that of a node which serves.
R4  Epochs only grow. Where the last one cannot be read, the operator has to name one.
"""

from __future__ import annotations

from ..core.view import NO_VIEW, Cas, View
from .encoding import EPOCH_MAX, is_sound
from .errors import DamagedRegister, RegisterError

INIT = "holdfast view init"


def after_loss(flags: str = "") -> str:
    """What an operator says when a register that was lost cannot be brought back: first what loses
    nothing. ``flags``: what the words need besides."""
    return (
        f"'{INIT}{flags} --from HOST:PORT' goes on with the view of the node that serves; one that "
        "is blocked with its state serves after REPLICAOF NO ONE FORCE. Only if no node has its "
        f"state any more: '{INIT}{flags} --epoch N', with N above every epoch in the logs of the "
        "nodes"
    )


def decide(standing: View, proposed: View) -> tuple[Cas | None, str]:
    """How a compare-and-set ends that meets ``standing``, and why; None: it is to be written.

    Raises RegisterError on a proposal that is no view of nodes: it can have come from a peer.
    """
    if not is_sound(proposed) or proposed.is_vacant:
        raise RegisterError(f"{proposed!r:.200} is no view that a node can propose")
    if standing == proposed:
        return Cas.WON, f"the register holds epoch {proposed.epoch} as proposed, since before"
    if standing == NO_VIEW:
        return Cas.LOST, f"the register holds no view; an operator says '{INIT}'"
    if not _may_follow(standing, proposed):
        return Cas.LOST, f"{proposed.primary} is no member of the view of epoch {standing.epoch}"
    if standing.epoch != proposed.epoch - 1:
        return Cas.LOST, f"the register is at epoch {standing.epoch}, not {proposed.epoch - 1}"
    return None, f"the register goes from epoch {standing.epoch} to {proposed.epoch}"


def initial(
    standing: View | DamagedRegister, *, force: bool, at_least: int, given: View | None
) -> View:
    """The view to write on an operator's word. ``standing``: NO_VIEW where there is nothing.

    Raises RegisterError if that word is not enough.
    """
    if given is not None and not (is_sound(given) and given.primary):
        raise RegisterError(f"{described(given)}: that is no view to take over")
    if isinstance(standing, DamagedRegister):
        return _after_damage(standing, force, at_least, given)
    if standing not in (NO_VIEW, given) and not force:
        raise RegisterError(
            f"there is a view already: {described(standing)}. Nothing was changed. If that history "
            f"is lost, both nodes with it, '{INIT} --force' lets an empty node begin another"
        )
    if given is not None:
        return _taken_over(standing, given)
    return _vacant(max(standing.epoch + 1, at_least))


def _may_follow(standing: View, proposed: View) -> bool:
    """A new primary was a member, and begins alone (I3); so does who claims a vacant view."""
    if proposed.primary == standing.primary:
        return True
    was_member = standing.is_vacant or proposed.primary in standing.members
    return was_member and proposed.members == (proposed.primary,)


def described(view: View) -> str:
    """A view in a sentence."""
    if view == NO_VIEW:
        return "no view"
    if view.is_vacant:
        return f"epoch {view.epoch}, vacant"
    return f"epoch {view.epoch}, primary {view.primary}, members {', '.join(view.members)}"


def _after_damage(damage: DamagedRegister, force: bool, at_least: int, given: View | None) -> View:
    if not force or (given is None and not at_least):
        raise RegisterError(
            f"{damage}. Nothing was changed. If it cannot be brought back: {after_loss(' --force')}"
        )
    return _vacant(at_least) if given is None else given


def _taken_over(standing: View, given: View) -> View:
    if given.epoch <= standing.epoch and given != standing:
        raise RegisterError(
            f"the register is at epoch {standing.epoch}, and the view to take over at "
            f"{given.epoch}: epochs only grow. Nothing was changed. A register that another pair, "
            "or an earlier one, has left has to be removed by hand first"
        )
    return given


def _vacant(epoch: int) -> View:
    if not 1 <= epoch <= EPOCH_MAX:
        raise RegisterError(f"an epoch is a number from 1 to {EPOCH_MAX}, not {epoch}")
    return View(epoch, "", ())
