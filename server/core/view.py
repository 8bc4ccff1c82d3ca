"""The view: which node is primary, which are members, in which epoch (I3).

A view changes only by compare-and-set from epoch e to e+1 on a *view register*, and a new primary
must have been a member before. The register's interface is the whole of what the rest of the
server knows about it. Under ``fail-stop`` there is no register outside: the only other party is
asked itself, and ``failover.py`` says what its answer, or its silence, means.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, Protocol


class View(NamedTuple):
    """Nodes are named by their incarnation: a random id, new at each start and whenever a node
    discards its state, so that a restarted node is never taken for the one that it was."""

    epoch: int
    primary: str
    members: tuple[str, ...]

    def alone(self, node: str) -> View:
        """The next view, with ``node`` as its only member."""
        return View(self.epoch + 1, node, (node,))

    def joined_by(self, node: str) -> View:
        """The next view, with ``node`` as one more member."""
        return View(self.epoch + 1, self.primary, (*self.members, node))


NO_VIEW = View(0, "", ())
"""What a node knows that has never heard of a history."""


class Cas(Enum):
    """How a compare-and-set ended."""

    WON = "won"
    LOST = "lost"  # another view stands: it is the second value of the result
    UNDECIDED = "undecided"  # nothing is known yet: ask again


class ViewRegister(Protocol):
    """Where the view is kept. Never in the path of a request."""

    reason: str
    """Why the last compare-and-set ended as it did, for the log."""

    def get(self) -> View:
        """The view as far as the register knows."""

    def cas(self, view: View) -> tuple[Cas, View]:
        """Change the view to ``view`` if its epoch is one above the register's. May wait for the
        network: whoever calls it looks again at epoch and role afterwards."""
