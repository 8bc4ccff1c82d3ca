"""View registers: where the view of the pair is kept and changed (``core/view.py``).

There is one so far, ``fail-stop``: no register at all, but the peer itself is asked. It rests on
the assumption of the original lock service, that a silent node is dead; see docs/guarantees.md for
what follows when it is not.
"""

from __future__ import annotations

from collections.abc import Callable

from .core.failover import Answer, NoAnswer, Verdict, judge
from .core.replica import Replica
from .core.view import Cas, View


class FailStop:
    """The view as this node knows it, changed by asking the peer.

    ``ask`` sends the peer a proposal and waits for its answer; ``silence`` says which incarnation
    is suspected, for how long it has been silent, and how long it may be.
    """

    def __init__(
        self,
        replica: Replica,
        ask: Callable[[View], Answer | NoAnswer],
        silence: Callable[[], tuple[str, int, int]],
    ) -> None:
        self._replica = replica
        self._ask = ask
        self._silence = silence
        self.reason = ""  # why the last compare-and-set ended as it did

    def get(self) -> View:
        """The view as this node knows it."""
        return self._replica.view

    def cas(self, view: View) -> tuple[Cas, View]:
        """Change the view. Waits for the peer if it is to be left out of the new one."""
        replica = self._replica
        known = replica.view
        if view.epoch != known.epoch + 1:
            return Cas.LOST, known
        if set(known.members) <= set(view.members):
            self.reason = "nobody is left out, and this node is the only one to decide"
            return Cas.WON, view
        suspect, _, _ = self._silence()
        stalls = replica.stalls
        outcome = self._ask(view)
        if replica.view != known:  # something else was decided while we waited
            return Cas.LOST, replica.view
        _, silent_ms, timeout_ms = self._silence()
        if (
            isinstance(outcome, Answer)
            and outcome.incarnation == suspect
            and replica.stalls == stalls
        ):
            replica.stalled = False  # F4: that very incarnation has answered what we asked since
        verdict, self.reason = judge(
            outcome,
            suspect=suspect,
            epoch=known.epoch,
            silent_ms=silent_ms,
            timeout_ms=timeout_ms,
            stalled=replica.stalled,
        )
        if verdict is Verdict.BYPASS:
            return Cas.WON, view
        if verdict is Verdict.YIELD:
            assert isinstance(outcome, Answer)
            return Cas.LOST, outcome.view
        return Cas.UNDECIDED, known
