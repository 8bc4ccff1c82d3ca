"""The feed: a primary's end of the link, from a backup's JOIN to its loss.

Phases and rules stand in ``replica.py``. A backup joins between two turns, so that no entry is half
in its snapshot; what it asks at the wrong time is refused with a reason, and it asks again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ...resp.encoder import pack
from ...resp.errors import ProtocolError
from . import limits, snapshot, stream
from .backlog import Point
from .outside import Link
from .replica import BacklogOverrun, Phase, Role

if TYPE_CHECKING:
    from .pairing import Pairing


class Joiner(NamedTuple):
    """Who asks to join. ``connection``: opaque here. ``formerly``: the incarnation that the node is
    until the stream begins."""

    connection: Any
    incarnation: str
    formerly: str
    port: int
    point: Point | None  # where it stands, if it has a whole state
    register: str  # where it thinks that the view is kept
    promotion_timeout_ms: int  # when it takes a silent primary for dead


class Feed:
    """What a primary does for the backup that is attached to it, or wants to be."""

    def __init__(self, pairing: Pairing) -> None:
        self._pairing = pairing
        self._outside = pairing.outside
        self._replica = pairing.replica
        self._cut: snapshot.Cut | None = None
        self._joiner: Joiner | None = None

    # -- turns -----------------------------------------------------------------------------------

    def end_turn(self, link: Link | None) -> None:
        """This turn's entries to the backup; then, between two turns, whoever wants to join."""
        if link is not None:
            self._send(link)
        else:
            self._replica.end_turn()
        if self._joiner is not None:
            self._attach(self._joiner)

    def _send(self, link: Link) -> None:
        """This turn's entries to the backup; some of the snapshot or the backlog to one that
        joins."""
        replica = self._replica
        room = limits.CATCH_UP_BYTES_PER_TURN - link.unsent_bytes
        if self._cut is not None and room > 0:
            self._send_slices(link, self._cut, room)
        try:
            data = replica.end_turn(room)
        except BacklogOverrun:
            self._pairing.lose_link("it cannot keep up with the writes; a new snapshot is needed")
            return
        if data:
            link.write(data)
        if room > 0 and (self._cut is not None or replica.has_more_to_send):
            self._outside.another_turn()  # or the rest would wait for the next event
        if link.unsent_bytes > limits.LINK_BYTES_MAX:
            self._pairing.lose_link(f"it left {link.unsent_bytes} bytes of the stream unread")

    def _send_slices(self, link: Link, cut: snapshot.Cut, room: int) -> None:
        while room > 0:
            fields = cut.slice(limits.SNAPSHOT_ITEMS_PER_SLICE)
            if not fields:
                self.close_cut()
                self._replica.snapshot_sent()
                return
            payload = pack(tuple(fields))
            link.write(pack((stream.ITEMS, payload)))
            if link.closed:
                return
            room -= len(payload)

    def close_cut(self) -> None:
        """Give up the snapshot that is being sent, if one is."""
        if self._cut is not None:
            self._cut.close()
            self._cut = None

    def watch(self, link: Link, now_ms: int) -> None:
        """A member has to acknowledge, one that joins has to get on: to talk is not enough."""
        replica, timeout_ms = self._replica, self._pairing.settings.backup_timeout_ms
        assert replica.outbound is not None
        since_ms = replica.outbound.waits_since_ms or now_ms
        if replica.phase >= Phase.PROPOSED:
            if now_ms - since_ms > timeout_ms * limits.SUSPECT_SHARE:
                self._pairing.inquiry.suspect(
                    f"the backup has not acknowledged anything for {now_ms - since_ms} ms"
                )
            return
        if self._cut is not None or link.unsent_bytes:
            since_ms = link.last_taken_ms
        else:
            since_ms = max(since_ms, link.last_drained_ms)
        if now_ms - since_ms > timeout_ms:
            self._pairing.lose_link(f"the joining backup has not got on for {now_ms - since_ms} ms")

    # -- joining ---------------------------------------------------------------------------------

    def join_request(self, joiner: Joiner) -> str:
        """Why ``joiner`` cannot be attached, as an error's text; empty if it will be, between this
        turn and the next."""
        replica = self._replica
        if joiner.incarnation == replica.incarnation or joiner.formerly == replica.incarnation:
            return "ERR that is this very node"
        own_register = self._pairing.settings.register_name
        if joiner.register != own_register:
            return (
                f"ERR the view is kept in {joiner.register} there and in {own_register} here: give "
                "both nodes the same --view"
            )
        if replica.role is not Role.PRIMARY:
            return f"ERR this node is {self._pairing.mode}, it has no stream to give"
        if replica.phase is Phase.NONE and self._joiner is None:
            self._joiner = joiner
            return ""
        if replica.backup and joiner.formerly == replica.backup and not replica.blocked:
            # It says so itself: it follows us no more, and what it acknowledged is all it has.
            self._pairing.lose_link("the backup asks to join anew")
        elif replica.phase >= Phase.PROPOSED and self._is_ours(joiner):
            self._pairing.inquiry.suspect("the backup asks to join under another incarnation")
        if self._pairing.mode == "blocked":
            return "TRYAGAIN this primary is blocked, it is not decided whether its backup is lost"
        return "TRYAGAIN this primary has a backup"

    def _is_ours(self, joiner: Joiner) -> bool:
        return self._outside.is_from(joiner.connection, joiner.port)

    def _attach(self, joiner: Joiner) -> None:
        self._joiner = None
        replica = self._replica
        if replica.role is not Role.PRIMARY or replica.phase is not Phase.NONE:
            self._outside.drop([(joiner.connection, b"")], "it asked to join, and cannot any more")
            return
        link = self._outside.adopt(
            joiner.connection, joiner.incarnation, joiner.port, joiner.formerly
        )
        if link is None:
            return
        pairing = self._pairing
        pairing.link = link
        pairing.backup_port = joiner.port
        pairing.peer_timeout_ms = joiner.promotion_timeout_ms
        self._outside.abandon_digest()
        self._cut = replica.attach(joiner.incarnation, joiner.point)
        if self._cut is None:
            assert joiner.point is not None
            pairing.partial_resyncs += 1
            pairing.log(
                "info",
                f"backup {link.peer} comes back: the stream goes on from offset "
                f"{joiner.point.offset}, here is {replica.state.offset}",
            )
        else:
            pairing.full_resyncs += 1
            pairing.partial_resyncs_refused += joiner.point is not None
            header = self._cut.header
            pairing.log(
                "info",
                f"backup {link.peer} joins: sending it a snapshot of {header.items} items at "
                f"offset {header.offset}",
            )
        link.write(replica.end_turn(0))
        self._outside.another_turn()
        pairing.changed("a backup joins")

    # -- what the backup says --------------------------------------------------------------------

    def on_messages(self, link: Link, messages: Iterable[Any]) -> None:
        """Acks and probes."""
        try:
            for message in messages:
                if message[0] == stream.ACK:
                    epoch, frame, offset = map(int, message[1:])
                    self._on_ack(epoch, frame, offset)
                elif message[0] == stream.PROBE:
                    self._replica.echo(message[1])
                else:
                    raise ValueError(f"unknown message {message[0]!r}")
                if link.closed:
                    return
        except (ValueError, IndexError, TypeError, ProtocolError) as error:
            self._pairing.lose_link(f"it does not keep to the protocol: {error}")

    def _on_ack(self, epoch: int, frame: int, offset: int) -> None:
        replica = self._replica
        before = replica.phase
        self._outside.release(replica.on_ack(epoch, frame, offset))
        if replica.phase is before and before is not Phase.REQUIRED:
            return
        if replica.phase is Phase.MEMBER:
            self._pairing.changed("the backup is a member")
        proposal = replica.proposal()
        if proposal is not None:
            replica.propose()
            self._pairing.inquiry.admit(proposal)

    def on_lost(self, why: str) -> None:
        """The link is gone."""
        replica, pairing = self._replica, self._pairing
        self.close_cut()
        if replica.phase >= Phase.PROPOSED:
            replica.lose_link()
            pairing.changed(why)
            pairing.inquiry.suspect("its link is lost")
        elif replica.phase is not Phase.NONE:
            self._outside.release(replica.drop_joining_backup())
            pairing.changed(why)
