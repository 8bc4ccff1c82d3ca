"""Deliberate bugs of the pair: who is the primary, who is a member, what a node keeps.

Each of them the simulator has to catch. Many of these rules have more than one guard, so that
nothing shows where only one is gone: such a mutant takes all of them away, and says which they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from holdfast.resp.encoder import pack
from holdfast.server.core import stream
from holdfast.server.core.ballot import Ballot
from holdfast.server.core.feed import Feed, Joiner
from holdfast.server.core.follower import Follower
from holdfast.server.core.lock_table import LockTable
from holdfast.server.core.pairing import Pairing
from holdfast.server.core.replica import Phase, Replica, Role
from holdfast.server.core.sender import Sender
from holdfast.server.core.state import State
from holdfast.server.core.view import Cas, View

from .links import Door
from .mutant import mutant
from .options import ETCD
from .register import Register
from .requests import Requests

FORGETS_US = 6_000_000
"""How long a register goes by an older view after an outage."""

# -- old streams ---------------------------------------------------------------------------------


def _stays_open(original: Any) -> Any:
    def promote(self: Pairing, view: View, after: View, why: str) -> None:
        self.link = None
        original(self, view, after, why)

    return promote


def _acks_any(original: Any) -> Any:
    def on_messages(self: Pairing, link: Any, messages: Iterable[Any]) -> None:
        if link is self.link or self.replica.role is not Role.PRIMARY:
            original(self, link, messages)
            return
        for message in messages:
            if message[0] == stream.ENTRIES:
                header = stream.decode_entries(message[1])
                words = stream.ACK, header.stream_epoch, header.frame, header.last_offset
                link.write(pack(words))
            elif message[0] == stream.BEAT:
                link.write(pack((stream.ACK, *message[1:])))

    return on_messages


def _stamped_by_stream(original: Any) -> Any:
    def on_entries(self: Follower, header: bytes, *rest: Any) -> None:
        known = stream.decode_entries(header)
        original(self, stream._HEADER.pack(*known._replace(epoch=known.stream_epoch)), *rest)

    return on_entries


def _without_epoch(original: Any) -> Any:
    return lambda checksum, epoch, *rest: original(checksum, 0, *rest)


# -- members -------------------------------------------------------------------------------------


def _joins_as_it_is(original: Any) -> Any:
    def on_dialled(self: Pairing, link: Any, why: str = "") -> None:
        outside: Any = self.outside
        outside.new_id = lambda: self.replica.incarnation
        try:
            original(self, link, why)
        finally:
            del outside.new_id

    return on_dialled


def _attached_at_once(original: Any) -> Any:
    def join_request(self: Feed, joiner: Joiner) -> str:
        replica = self._replica
        is_back = joiner.incarnation == replica.backup and not replica.blocked
        if replica.phase is Phase.MEMBER and is_back:
            self._pairing.drop_link()
            self.close_cut()
            self._outside.drop(replica._without_backup(), "the backup joins anew")
        return str(original(self, joiner))

    return join_request


def _member_already(original: Any) -> Any:
    def proposal(self: Sender) -> View | None:
        view: View | None = original(self)
        if view is not None and self.backup in self.view.members:
            self.phase = Phase.MEMBER
            return None
        return view

    return proposal


def _keeps_view(original: Any) -> Any:
    def begin_following(
        self: Replica, view: View, incarnation: str, state: State | None = None
    ) -> None:
        is_known = view.epoch == self.view.epoch and incarnation in self.view.members
        original(self, self.view if is_known else view, incarnation, state)

    return begin_following


def _not_yet(original: Any) -> Any:
    def require_acks(self: Sender, outbound: Any) -> None:
        original(self, outbound)
        self.holding = False

    return require_acks


def _from_now_on(original: Any) -> Any:
    def change(self: Sender, *arguments: Any) -> Any:
        result = original(self, *arguments)
        self.holding = self.holding or self.phase is Phase.MEMBER or self.blocked
        return result

    return change


def _asked_is_needed(original: Any) -> Any:
    def execute(self: Requests, door: Door, data: Any) -> None:
        inquiry = self._process.pairing.inquiry
        if inquiry.promotes_itself() and not door.end.closed:
            after = inquiry.ballot.last_view()
            inquiry.bypass(after.alone(self._replica.incarnation), after)
        original(self, door, data)

    return execute


# -- what a node keeps, and what it does by itself -----------------------------------------------


def _kept(original: Any) -> Any:
    def stand_down(self: Any, incarnation: str) -> Any:
        self.kept = self.state
        return original(self, incarnation)

    return stand_down


def _beneath(original: Any) -> Any:
    def begin_following(
        self: Any, view: View, incarnation: str, state: State | None = None
    ) -> None:
        if state is not None and "kept" in vars(self):
            state.locks.held.update(self.kept.locks.held)
            del self.kept
        original(self, view, incarnation, state)

    return begin_following


def _own_timers(original: Any) -> Any:
    def tick(self: Pairing) -> None:
        replica = self.replica
        if replica.role is Role.BACKUP and replica.synced:
            now_ms = replica.state_time_ms()
            for name, grant in list(replica.state.locks.held.items()):
                if 0 < grant[4] <= now_ms:
                    replica.state.locks.release(name)
        original(self)

    return tick


def _ended_already(original: Any) -> Any:
    return lambda self, name, now_ms: self.release(name) or 1


# -- the register --------------------------------------------------------------------------------


def _remembers_last(original: Any) -> Any:
    def take(self: Any, view: View) -> None:
        self.before = self.view
        original(self, view)

    return take


def _goes_back(original: Any) -> Any:
    """After an outage it shows the view before the last for a while, to whom it has shown the last
    one, and goes by that if it is believed. (To forget it for all does harm whoever checks.)"""

    def on_data(self: Any, end: Any, data: Any) -> None:
        now_us, newer, known = self._network.now_us, self.view, vars(self)
        asker, older = end.peer.owner._process, known.get("before")
        misled, seen = known.setdefault("misled", set()), asker.pairing.inquiry.seen
        if self.is_down:
            self.forgets_until_us = now_us + FORGETS_US
        elif older is not None and now_us < known.get("forgets_until_us", 0):
            if seen == newer and data[0] == "get":
                misled.add((asker, older))
            if (seen == newer and data[0] == "get") or (seen == older and (asker, seen) in misled):
                self.view = older
        original(self, end, data)
        if self.view is older:
            self.view = newer

    return on_data


def _takes_its_word(original: Any) -> Any:
    def on_view(self: Ballot, result: Cas | None, view: View) -> None:
        known = max(self.seen.epoch, self._replica.view.epoch)
        if result is Cas.UNDECIDED or view.epoch >= known:
            original(self, result, view)
            return
        self.is_busy = False
        self._seen_ms = self._outside.boot_ms()
        self._note_register(True)
        self.seen = view
        self._heed(view)
        self._inquiry.proceed()

    return on_view


def add() -> None:
    """All of them."""
    # Three guards: who is promoted closes its link, and drops what still comes on it (Pairing); a
    # follower refuses what is of a lower epoch (``_check_epoch``); what it acknowledges is of its
    # own epoch, which the old primary does not count.
    mutant(
        "a promoted backup acknowledges the old stream",
        (Pairing, "promote", _stays_open),
        (Pairing, "on_messages", _acks_any),
        register=ETCD,
    )
    # Two: the checksum, an alarm at the next batch, takes in the epoch; and so does the digest.
    mutant(
        "entries without their epoch",
        (Follower, "on_entries", _stamped_by_stream),
        (stream, "chain", _without_epoch),
        small_limits=False,
        fault_every_ms=600,
    )
    # Three: it joins under a new identity (C4); a primary whose member it was attaches it only when
    # a view without it stands; and what begins a stream names the primary as the only member. The
    # first one gone alone shows nowhere: no view is left in which the old identity counts.
    mutant(
        "a member that joins anew stays a member",
        (Pairing, "on_dialled", _joins_as_it_is),
        (Feed, "join_request", _attached_at_once),
        (Sender, "proposal", _member_already),
        (Replica, "begin_following", _keeps_view),
        register=ETCD,
        small_limits=True,
        fault_every_ms=600,
        spread_us=20_000,
        think_ms=200,
    )
    mutant(
        "replies do not wait for a proposed backup",
        (Sender, "_require_acks", _not_yet),
        (Sender, "on_ack", _from_now_on),
        (Sender, "lose_link", _from_now_on),
    )
    mutant("a backup that a client asks takes over", (Requests, "execute", _asked_is_needed))
    # Two: the state is dropped with the role, and a snapshot is loaded into an empty one.
    mutant(
        "a deposed primary keeps its locks",
        (Replica, "stand_down", _kept),
        (Replica, "begin_following", _beneath),
    )
    mutant(
        "a backup ends leases by itself",
        (Pairing, "tick", _own_timers),
        (LockTable, "expire", _ended_already),
    )
    # A bug of the register, and the check against it gone: that it is not behind what is known.
    mutant(
        "a register that goes back on its word is believed",
        (Register, "take", _remembers_last),
        (Register, "on_data", _goes_back),
        (Ballot, "on_view", _takes_its_word),
        register=ETCD,
        fault_every_ms=1_000,
        promotion_timeout_ms=1_100,
        backup_timeout_ms=1_000,
    )
