"""A view register on a machine of its own: get and compare-and-set, with outages and lost answers.

A request that got lost on the way back was executed all the same, and one whose asker has given up
waiting may still be executed, later.
"""

from __future__ import annotations

import random

from harness.checkers.history import View as TakenView
from holdfast.server.core.view import NO_VIEW, Cas, View

from .network import End, Host, Network
from .trace import Trace

Request = tuple[str, View]
"""``get`` or ``cas``, and the view proposed."""

Reply = tuple["Cas | None", View]


class Register:
    """The process that keeps the view. What it has taken is durable."""

    def __init__(self, host: Host, network: Network, trace: Trace, rng: random.Random) -> None:
        self.host = host
        self.view = View(1, "", ())  # an operator has said: view init
        self.is_down = False
        self.loses_answers = 0.0
        self._network = network
        self._trace = trace
        self._random = rng.random

    def accept(self, end: End) -> None:
        """A node has connected."""
        end.owner = self

    def on_data(self, end: End, data: Request) -> None:
        """Execute a request, unless the register is out of order."""
        if self.is_down:
            self._trace.count("register: request in an outage")
            return
        kind, view = data
        reply: Reply = (None, self.view) if kind == "get" else self._cas(view)
        if self._random() < self.loses_answers:
            self._trace.count(f"register: answer of {kind} lost")
            return
        self._network.send(end, reply)

    def on_closed(self, end: End, why: str) -> None:
        """The asker has gone, or gave up."""

    def on_late(self, end: End) -> None:
        """Never: this side closes nothing."""

    def _cas(self, view: View) -> Reply:
        if self.view == view:
            return Cas.WON, view  # asked again, the answer had been lost
        if self.view == NO_VIEW or view.epoch != self.view.epoch + 1:
            self._trace.count("register: cas lost")
            return Cas.LOST, self.view
        self.take(view)
        return Cas.WON, view

    def take(self, view: View) -> None:
        """``view`` stands from now on."""
        self.view = view
        self._trace.say("W", "view", view.epoch, view.primary or "(vacant)", ",".join(view.members))
        record = TakenView(view.epoch, view.primary, view.members, self._network.now_us)
        self._trace.history.views.append(record)
        self._trace.count("register: cas won")
