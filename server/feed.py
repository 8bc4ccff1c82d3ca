"""The feed: a primary's end of the link, from a backup's JOIN to its loss.

Phases and rules stand in ``core/replica.py``. Everything here runs in callbacks but for
``_learn_address``, which dials.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import gevent

from ..resp import encoder
from ..resp.errors import ProtocolError
from . import clock
from .config import Address
from .core import limits, snapshot, stream
from .core.failover import Answer
from .core.replica import BacklogOverrun, Phase, Replica, Replies, Role
from .core.view import Cas, View
from .link import ASK_TIMEOUT_S, RETRY_S, Link, ask, request_parser

if TYPE_CHECKING:
    from .connection import Connection
    from .pairing import Pairing

log = logging.getLogger(__name__)


class Feed:
    """What a primary does for the backup that is attached to it, or wants to be."""

    def __init__(self, pairing: Pairing, replica: Replica) -> None:
        self._pairing = pairing
        self._replica = replica
        self._cut: snapshot.Cut | None = None
        self._joining: tuple[Connection, str, int] | None = None

    def end_turn(self, link: Link | None) -> None:
        """This turn's entries to the backup; then, between two turns, whoever wants to join."""
        if link is not None:
            self._send(link)
        else:
            self._replica.end_turn()
        if self._joining is not None:
            self._attach(*self._joining)

    def _send(self, link: Link) -> None:
        """This turn's entries to the backup; some of the snapshot or the backlog to one that joins.

        Any write may find that the backup is gone, and then ``link`` is closed and forgotten.
        """
        replica = self._replica
        room = limits.CATCH_UP_BYTES_PER_TURN - link.unsent_bytes
        if self._cut is not None and room > 0:
            self._send_slices(link, self._cut, room)
        try:
            data = replica.end_turn(room)
        except BacklogOverrun:
            link.lose("it cannot keep up with the writes; a new snapshot is needed")
            return
        if data:
            link.write(data)
        if room > 0 and (self._cut is not None or replica.phase is Phase.CATCHING_UP):
            self._pairing.node.another_turn()  # or the rest would wait for the next event
        if link.unsent_bytes > limits.LINK_BYTES_MAX:
            link.lose(f"it left {link.unsent_bytes} bytes of the stream unread")

    def watch(self, link: Link, now_ms: int) -> None:
        """A member has to acknowledge, one that joins has to get on: to talk is not enough."""
        replica, timeout_ms = self._replica, self._pairing.node.config.backup_timeout_ms
        assert replica.outbound is not None
        since_ms = replica.outbound.oldest_unacked_ms or now_ms
        if replica.phase >= Phase.PROPOSED:
            if now_ms - since_ms > timeout_ms * limits.SUSPECT_SHARE:
                self._pairing.suspect(
                    f"the backup has not acknowledged anything for {now_ms - since_ms} ms"
                )
            return
        if self._cut is not None or link.unsent_bytes:
            since_ms = link.last_taken_ms
        else:
            since_ms = max(since_ms, link.last_drained_ms)
        if now_ms - since_ms > timeout_ms:
            link.lose(f"the joining backup has not got on for {now_ms - since_ms} ms")

    def join_request(self, connection: Connection, incarnation: str, port: int) -> bytes | None:
        """``PEER JOIN``: a backup wants to be attached. Done between two turns; an error reply if
        it cannot be. None: the connection becomes the link."""
        replica = self._replica
        if incarnation == replica.incarnation:
            return encoder.error("ERR that is this very node")
        if replica.role is not Role.PRIMARY:
            return encoder.error(f"ERR this node is {replica.mode}, it has no stream to give")
        if replica.phase is not Phase.NONE or self._joining is not None:
            if (
                replica.backup
                and replica.phase >= Phase.PROPOSED
                and self._is_known(connection, port)
            ):
                self._pairing.suspect("the backup asks to join under another incarnation")
            return encoder.error("TRYAGAIN this primary has a backup")
        self._joining = (connection, incarnation, port)
        connection.pause()
        return None

    def _is_known(self, connection: Connection, port: int) -> bool:
        """Whether the node that asks is the one at the address of the backup that we know."""
        address = self._pairing.link.address if self._pairing.link else self._pairing.peer_address
        return address is not None and address.port == port

    def _attach(self, connection: Connection, incarnation: str, port: int) -> None:
        self._joining = None
        if connection.closed or self._replica.role is not Role.PRIMARY:
            return
        try:
            host = connection.sock.getpeername()[0]
        except OSError:
            connection.close("it asked to join, and is gone")
            return
        sock = connection.detach("it is a replication link now")
        link = Link(
            self._pairing.node.loop,
            sock,
            request_parser(),
            self._on_backup_messages,
            self._on_backup_lost,
            str(Address(host, port)),
        )
        link.address = Address(host, port)
        self._pairing.link = link
        self._pairing.peer_address = link.address
        gevent.spawn(self._learn_address, link, incarnation)
        self._pairing.node.abandon_digest()
        self._cut = self._replica.attach(incarnation)
        self._pairing.full_resyncs += 1
        log.info(
            "backup %s joins: sending it a snapshot of %d items at offset %d",
            link.peer,
            self._cut.header.items,
            self._cut.header.offset,
        )
        link.write(self._replica.end_turn(0))
        self._pairing.node.another_turn()

    def _learn_address(self, link: Link, incarnation: str) -> None:
        """Find out where to ask for this backup once its link is lost (waits): at the configured
        address if it answers there, which may lead through a proxy; else where it says it is."""
        configured = self._pairing.node.config.peer
        while configured is not None and self._replica.backup == incarnation:
            answer = ask(configured, ASK_TIMEOUT_S, "ASK")
            is_it = isinstance(answer, Answer) and answer.incarnation == incarnation
            if is_it and self._replica.backup == incarnation:
                link.address = self._pairing.peer_address = configured
            if is_it or self._replica.phase is Phase.MEMBER:
                return
            gevent.sleep(RETRY_S)  # it becomes that incarnation with the snapshot

    def _send_slices(self, link: Link, cut: snapshot.Cut, room: int) -> None:
        while room > 0:
            fields = cut.slice(limits.SNAPSHOT_ITEMS_PER_SLICE)
            if not fields:
                self.close_cut()
                self._replica.snapshot_sent()
                return
            payload = encoder.pack(tuple(fields))
            link.write(encoder.pack((stream.ITEMS, payload)))
            if link.closed:
                return
            room -= len(payload)

    def close_cut(self) -> None:
        """Give up the snapshot that is being sent, if one is."""
        if self._cut is not None:
            self._cut.close()
            self._cut = None

    def _on_backup_messages(self, link: Link, messages: Iterable[list[bytes]]) -> None:
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
        except (ValueError, IndexError, ProtocolError) as error:
            link.lose(f"it does not keep to the protocol: {error}")

    def _on_ack(self, epoch: int, frame: int, offset: int) -> None:
        replica = self._replica
        before = replica.phase
        self.release(replica.on_ack(epoch, frame, offset))
        if replica.phase is before and before is not Phase.REQUIRED:
            return
        if replica.phase is Phase.MEMBER:
            self._pairing.say(
                "backup %s is a member in epoch %d: paired", self._pairing.peer, replica.view.epoch
            )
        proposal = replica.proposal()
        if proposal is not None:
            self._admit(proposal)

    def _admit(self, proposal: View) -> None:
        result, view = self._pairing.register.cas(proposal)
        assert result is Cas.WON, "the only member of a view decides about it alone"
        # A primary that was not told of its peer cannot ask it later: promotion is by hand then.
        auto = self._pairing.node.config.peer is not None
        self._replica.admit(view, may_promote_itself=auto)
        log.info(
            "backup %s has everything: epoch %d -> %d",
            self._pairing.peer,
            view.epoch - 1,
            view.epoch,
        )

    def _on_backup_lost(self, link: Link, why: str) -> None:
        if link is not self._pairing.link:
            return
        replica = self._replica
        self._pairing.link = None
        self._pairing.link_lost_ms = clock.boot_ms()
        self.close_cut()
        log.warning("link to backup %s is lost: %s", link.peer, why)
        if replica.phase >= Phase.PROPOSED:
            replica.lose_link()
            self._pairing.suspect("its link is lost")
        elif replica.phase is not Phase.NONE:
            self.release(replica.drop_joining_backup())
            self._pairing.say("serving alone in epoch %d", replica.view.epoch)

    def release(self, replies: Replies) -> None:
        """Let replies go that no longer wait for the backup."""
        for connection, data in replies:
            connection.release(data)
