"""Hosts, the ways between them, and connections as TCP has them.

Within a connection messages keep their order and none is lost while it lives; a lost packet only
delays what comes behind it. Across connections everything may overtake everything. A way (from one
host to another, in one direction) can be cut: what is sent then arrives after it is mended, or
never, if the connection breaks. What a process has sent arrives even if it dies right after.

A message is any value and arrives whole: no bytes are counted but those of replication links,
whose senders have to know what the other side has not taken yet.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Protocol

from .scheduler import Clock, Scheduler

RETRANSMISSION_US = 200_000


class Owner(Protocol):
    """Whoever uses one end of a connection."""

    def on_data(self, end: End, data: Any) -> None:
        """A message has arrived."""

    def on_closed(self, end: End, why: str) -> None:
        """The other side has closed it, or it broke."""

    def on_late(self, end: End) -> None:
        """Something came after this side had closed it."""


class Listener(Protocol):
    """Whoever takes connections on a host."""

    def accept(self, end: End) -> None:
        """Somebody has connected."""


class Host:
    """A machine."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        self.listener: Listener | None = None  # None: connections are refused
        self.down = False  # switched off: it does not even refuse

    def __repr__(self) -> str:
        return self.name


class End:
    """One end of a connection."""

    __slots__ = (
        "arrives_us",
        "closed",
        "gone",
        "held",
        "host",
        "on_taken",
        "owner",
        "peer",
    )

    def __init__(self, host: Host, owner: Owner | None) -> None:
        self.host = host
        self.owner = owner
        self.peer: End = self
        self.closed = False  # by this side, or it knows that the connection has ended
        self.gone = False  # nobody is here any more: its process is dead
        self.held: list[Any] = []  # sent into a way that is cut
        self.arrives_us = 0  # when what was sent last arrives
        self.on_taken: Callable[[Any], None] | None = None  # a message sent here was taken


_CLOSE = object()


class Network:
    """All the ways between hosts."""

    def __init__(self, scheduler: Scheduler, rng: random.Random) -> None:
        self._scheduler = scheduler
        self._random = rng.random
        self.base_us = 100
        self.spread_us = 600
        self.loss = 0.0  # share of messages whose packet is lost: they arrive later
        self.slow: dict[tuple[str, str], int] = {}  # ways on which everything takes longer, us
        self.cut: dict[tuple[str, str], int] = {}  # ways that are cut, and how often
        self._held: dict[tuple[str, str], list[End]] = {}
        self.lost_count = 0

    @property
    def now_us(self) -> int:
        """True time."""
        return self._scheduler.now_us

    # -- connections -----------------------------------------------------------------------------

    def dial(
        self,
        source: Host,
        target: Host,
        owner: Owner,
        timeout_us: int,
        done: Callable[[End | None, str], None],
    ) -> None:
        """Connect; ``done`` gets this side's end, or None and why ("refused", "silent")."""
        there, back = (source.name, target.name), (target.name, source.name)
        way_us = self._delay_us(there)
        if there in self.cut or back in self.cut or target.down or way_us > timeout_us:
            self._scheduler.after(timeout_us, done, None, "silent")
        else:
            self._scheduler.after(way_us, self._arrive_dial, source, target, owner, done)

    def _arrive_dial(
        self, source: Host, target: Host, owner: Owner, done: Callable[[End | None, str], None]
    ) -> None:
        way_us = self._delay_us((target.name, source.name))
        if target.down:
            self._scheduler.after(RETRANSMISSION_US, done, None, "silent")
            return
        listener = target.listener
        if listener is None:
            self._scheduler.after(way_us, done, None, "refused")
            return
        near, far = End(source, owner), End(target, None)
        near.peer, far.peer = far, near
        listener.accept(far)
        far.arrives_us = self._scheduler.now_us + way_us  # before that nothing gets there
        self._scheduler.after(way_us, done, near, "")

    def send(self, end: End, data: Any) -> None:
        """Have ``data`` arrive at the other end."""
        if end.closed:
            return
        self._send(end, data)

    def _send(self, end: End, data: Any) -> None:
        way = (end.host.name, end.peer.host.name)
        if way in self.cut:
            if not end.held:
                self._held.setdefault(way, []).append(end)
            end.held.append(data)
            return
        at_us = self._scheduler.now_us + self._delay_us(way)
        if at_us <= end.arrives_us:
            at_us = end.arrives_us + 1
        end.arrives_us = at_us
        self._scheduler.at(at_us, self._arrive, end.peer, data)

    def close(self, end: End) -> None:
        """Close this side: the other one sees it behind everything that was sent."""
        if not end.closed:
            end.closed = True
            self._send(end, _CLOSE)

    def break_off(self, end: End, near_us: int, far_us: int) -> None:
        """Break a connection: what is under way is lost; the sides see it at different times."""
        self._drop_held(end)
        self._drop_held(end.peer)
        for side, delay_us in ((end, near_us), (end.peer, far_us)):
            owner, side.owner = side.owner, None
            if owner is not None and not side.closed:
                self._scheduler.after(delay_us, self._tell_broken, side, owner)

    def _tell_broken(self, end: End, owner: Owner) -> None:
        if not end.closed and not end.gone:
            end.closed = True
            owner.on_closed(end, "connection reset")

    def leave(self, end: End, *, orderly: bool, silent: bool) -> None:
        """The process at ``end`` dies. ``orderly``: what it has sent still arrives; ``silent``: so
        does its machine, and nobody is told."""
        end.gone = True
        if silent:
            self._drop_held(end)
            end.closed = True
        elif orderly:
            self.close(end)
        elif not end.closed:
            end.closed = True
            self._drop_held(end)
            self._scheduler.after(
                self._delay_us((end.host.name, end.peer.host.name)), self._reset, end.peer
            )

    def _arrive(self, end: End, data: Any) -> None:
        if end.gone or end.owner is None:
            if not end.host.down and data is not _CLOSE:
                self._reset_by(end)
            return
        if end.closed:
            end.owner.on_late(end)
            return
        if data is _CLOSE:
            end.closed = True
            end.owner.on_closed(end, "closed by the peer")
            return
        taken = end.peer.on_taken
        if taken is not None:
            taken(data)
        end.owner.on_data(end, data)

    def _reset_by(self, end: End) -> None:
        """Nobody is there any more: say so."""
        way = (end.host.name, end.peer.host.name)
        if way not in self.cut:
            self._scheduler.after(self._delay_us(way), self._reset, end.peer)

    def _reset(self, end: End) -> None:
        if not end.closed and not end.gone and end.owner is not None:
            end.closed = True
            end.owner.on_closed(end, "connection reset")

    # -- ways ------------------------------------------------------------------------------------

    def _delay_us(self, way: tuple[str, str]) -> int:
        rolled = self._random()
        delay_us = self.base_us + int(self.spread_us * rolled * rolled)
        if way in self.slow:
            delay_us += int(self.slow[way] * self._random())
        if self.loss and self._random() < self.loss:
            self.lost_count += 1
            delay_us += RETRANSMISSION_US
        return delay_us

    def cut_way(self, source: Host, target: Host) -> None:
        """Nothing gets from ``source`` to ``target`` until it is mended as often."""
        way = (source.name, target.name)
        self.cut[way] = self.cut.get(way, 0) + 1

    def mend_way(self, source: Host, target: Host) -> None:
        """What was held up goes on its way, a while later."""
        way = (source.name, target.name)
        self.cut[way] -= 1
        if self.cut[way]:
            return
        del self.cut[way]
        for end in self._held.pop(way, ()):
            held, end.held = end.held, []
            late_us = self._scheduler.now_us + int(self._random() * RETRANSMISSION_US)
            end.arrives_us = max(end.arrives_us, late_us)
            for data in held:
                self._send(end, data)

    def _drop_held(self, end: End) -> None:
        if end.held:
            end.held = []
            self._held[end.host.name, end.peer.host.name].remove(end)
