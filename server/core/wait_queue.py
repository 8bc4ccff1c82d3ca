"""The wait queue: who stands in line for what. The primary's alone, outside state and digest.

Rules
-----
W1  First come, first served (I9): each name has its own line, in the order of joining.
W2  A waiter is a request, and has the connections that sent it: a repeat joins the wait, and both
    get the answer. A waiter without any connection is *gone*: it is passed over, never granted,
    and keeps its place for a grace period in case the same request is sent again.
W3  A client id (``@client:n``) has one request at a time: it waits at most once.
W4  A waiter leaves by being taken, once; nothing is answered here.

What is in line is lost with the primary: clients send their requests again, and stand in line anew.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Any

from . import limits
from .deadlines import Deadlines
from .reply_cache import AT, split_reqid

Ticket = Any
"""A connection that wants the answer: hashable, and opaque here."""


_RANKS_FLOOR = 64


class Waiter:
    """A request in line. Times are state time in milliseconds."""

    __slots__ = (
        "client",
        "deadline_ms",
        "gone_at_ms",
        "is_ranked",
        "joined_ms",
        "lease_ms",
        "left",
        "name",
        "number",
        "owner",
        "reqid",
        "sequence",
        "tickets",
    )

    def __init__(
        self,
        name: bytes,
        reqid: bytes,
        owner: bytes,
        lease_ms: int,
        joined_ms: int,
        deadline_ms: int,
    ) -> None:
        self.name = name
        self.reqid = reqid
        self.owner = owner  # empty: the request id
        self.lease_ms = lease_ms
        self.joined_ms = joined_ms
        self.deadline_ms = deadline_ms
        self.tickets: list[Ticket] = []
        self.gone_at_ms = 0  # when the last connection was lost; 0: one is there
        self.left = False  # not in line any more
        self.is_ranked = False  # among those of its line who can be granted
        self.number = 0  # in the order of joining, over all lines
        self.client, self.sequence = b"", 0
        if reqid[0] == AT:
            identity = split_reqid(reqid)
            assert identity is not None, "malformed ids never get here"
            self.client, self.sequence = identity

    @property
    def due_ms(self) -> int:
        """When it leaves the line by itself: its wait is over, or its grace period."""
        if not self.gone_at_ms:
            return self.deadline_ms
        return min(self.deadline_ms, self.gone_at_ms + limits.WAITER_GRACE_MS)


class Line:
    """Those who stand in line for one name."""

    __slots__ = ("_ranks", "waiters")

    def __init__(self) -> None:
        self.waiters: OrderedDict[bytes, Waiter] = OrderedDict()  # by request id, in order
        # Those who are there, and some who were: whoever is gone is dropped here when the turn
        # comes to it, once, and comes back with a new rank. So a crowd that is gone costs nothing.
        self._ranks: list[tuple[int, Waiter]] = []

    def rank(self, waiter: Waiter) -> None:
        """Have ``waiter`` be granted when its turn comes, which its number says."""
        if waiter.is_ranked:
            return
        waiter.is_ranked = True
        heappush(self._ranks, (waiter.number, waiter))
        if len(self._ranks) > 2 * len(self.waiters) + _RANKS_FLOOR:
            self._ranks = [rank for rank in self._ranks if not rank[1].left]
            heapify(self._ranks)

    def first(self) -> Waiter | None:
        """The first who is there (W1, W2)."""
        ranks = self._ranks
        while ranks:
            _, waiter = ranks[0]
            if not waiter.left and not waiter.gone_at_ms:
                return waiter
            heappop(ranks)
            waiter.is_ranked = False
        return None


class WaitQueue:
    """All lines. False when nobody waits at all."""

    __slots__ = ("_by_client", "_by_ticket", "_deadlines", "_everybody", "_number", "lines")

    def __init__(self) -> None:
        self.lines: dict[bytes, Line] = {}  # by name
        self._by_client: dict[bytes, Waiter] = {}
        self._by_ticket: dict[Ticket, Waiter] = {}
        self._everybody: OrderedDict[int, Waiter] = OrderedDict()  # in the order of joining
        self._number = 0  # of waiters, and of deadlines
        self._deadlines: Deadlines[Waiter] = Deadlines(
            lambda _, waiter: not waiter.left, lambda: len(self._everybody)
        )

    def __len__(self) -> int:
        return len(self._everybody)

    @property
    def connections(self) -> int:
        """How many connections wait."""
        return len(self._by_ticket)

    def find(self, name: bytes, reqid: bytes) -> Waiter | None:
        """The waiter of this very request."""
        line = self.lines.get(name)
        return line.waiters.get(reqid) if line is not None else None

    def of_client(self, client: bytes) -> Waiter | None:
        """The waiting request of ``client`` (W3)."""
        return self._by_client.get(client)

    def line(self, name: bytes) -> Iterator[Waiter]:
        """Who stands in line for ``name``, the first in line first."""
        line = self.lines.get(name)
        return iter(line.waiters.values() if line is not None else ())

    def length(self, name: bytes) -> int:
        """How many stand in line for ``name``."""
        line = self.lines.get(name)
        return len(line.waiters) if line is not None else 0

    def is_full(self, name: bytes) -> bool:
        """Whether nobody more may join the line for ``name``."""
        return len(self) >= limits.WAITERS_MAX or self.length(name) >= limits.WAITERS_PER_LOCK_MAX

    def join(self, waiter: Waiter, ticket: Ticket) -> None:
        """Stand in line, at its end."""
        line = self.lines.get(waiter.name)
        if line is None:
            line = self.lines[waiter.name] = Line()
        assert waiter.reqid not in line.waiters, "a repeat joins the wait that there is (W2)"
        line.waiters[waiter.reqid] = waiter
        if waiter.client:
            assert waiter.client not in self._by_client, "one request of a client at a time (W3)"
            self._by_client[waiter.client] = waiter
        self._number += 1
        waiter.number = self._number
        self._everybody[waiter.number] = waiter
        self.attend(waiter, ticket)
        self._schedule(waiter)

    def attend(self, waiter: Waiter, ticket: Ticket) -> None:
        """``ticket`` wants the answer too: a repeat of the request (W2)."""
        waiter.tickets.append(ticket)
        waiter.gone_at_ms = 0
        self._by_ticket[ticket] = waiter
        self.lines[waiter.name].rank(waiter)

    def hang_up(self, ticket: Ticket, now_ms: int) -> None:
        """A connection is gone; if it was its waiter's last, the grace period begins (W2)."""
        waiter = self._by_ticket.pop(ticket, None)
        if waiter is None:
            return
        waiter.tickets.remove(ticket)
        if not waiter.tickets:
            waiter.gone_at_ms = now_ms
            self._schedule(waiter)

    def tickets(self) -> list[Ticket]:
        """All connections that wait, in no order that means anything."""
        return list(self._by_ticket)

    def take_first(self, name: bytes) -> Waiter | None:
        """Take the first in line for ``name`` who is still there (W1, W2)."""
        line = self.lines.get(name)
        waiter = line.first() if line is not None else None
        if waiter is not None:
            self.take(waiter)
        return waiter

    def take(self, waiter: Waiter) -> None:
        """Take ``waiter`` out of its line (W4)."""
        assert not waiter.left, "a waiter leaves once (W4)"
        waiter.left = True
        line = self.lines[waiter.name]
        del line.waiters[waiter.reqid]
        if not line.waiters:
            del self.lines[waiter.name]
        if waiter.client:
            del self._by_client[waiter.client]
        for ticket in waiter.tickets:
            del self._by_ticket[ticket]
        del self._everybody[waiter.number]

    @property
    def first_due_ms(self) -> int | None:
        """When the next one may have to leave by itself."""
        return self._deadlines.first_ms

    def pop_due(self, now_ms: int) -> tuple[bool, Waiter | None]:
        """Look at the next deadline: whether it is due, and who has left because of it, the wait or
        the grace period being over."""
        due = self._deadlines.pop_due(now_ms)
        if due is None:
            return False, None
        _, waiter = due
        if waiter.left or waiter.due_ms > now_ms:
            # (Of one that came back within its grace period, the end of the wait is to come yet.)
            return True, None
        self.take(waiter)
        return True, waiter

    def _schedule(self, waiter: Waiter) -> None:
        self._number += 1
        self._deadlines.add(waiter.due_ms, self._number, waiter)

    def longest_wait_ms(self, now_ms: int) -> int:
        """How long the one who has waited longest has done so."""
        first = next(iter(self._everybody.values()), None)
        return now_ms - first.joined_ms if first is not None else 0
