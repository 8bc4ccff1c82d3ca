"""The view: which node is primary, which are members, in which epoch (I3).

A view changes only by compare-and-set from epoch e to e+1 on a *view register*, and a new primary
must have been a member before. A register answers two questions: ``get``, and ``cas``, which
changes the view if its epoch is one below that of the new one. Under ``fail-stop`` there is no
register outside: the only other party is asked itself, and ``failover.py`` says what its answer, or
its silence, means.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class View(NamedTuple):
    """Nodes are named by their incarnation: a random id, new at each start and whenever a node
    discards its state, so that a restarted node is never taken for the one that it was."""

    epoch: int
    primary: str
    members: tuple[str, ...]

    @property
    def is_vacant(self) -> bool:
        """Whether an operator has said that there is no history, or that the last one is lost: an
        empty node may begin one."""
        return self.epoch > 0 and not self.primary

    def alone(self, node: str) -> View:
        """The next view, with ``node`` as its only member."""
        return View(self.epoch + 1, node, (node,))

    def joined_by(self, node: str) -> View:
        """The next view, with ``node`` as one more member."""
        return View(self.epoch + 1, self.primary, (*self.members, node))


NO_VIEW = View(0, "", ())
"""What a node knows that has never heard of a history, and what a register holds that has never
been initialised."""


class Cas(Enum):
    """How a compare-and-set ended."""

    WON = "won"
    LOST = "lost"  # another view stands: it is the second value of the result
    UNDECIDED = "undecided"  # it may have happened, now or later: ask again
