"""An operator's word: REPLICAOF NO ONE [FORCE] and REPLICAOF host port.

Everything here may wait for the network; what comes of it is the text of a reply. ``FORCE`` is the
only way past the rules of ``core/failover.py``, and its answers say what that may have lost.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import gevent

from . import clock
from .config import Address
from .core.failover import Answer, Standing
from .core.replica import Role
from .link import ask
from .peer import Peer, new_id

if TYPE_CHECKING:
    from .connection import Connection

log = logging.getLogger(__name__)

_ASK_TIMEOUT_S = 0.5
_LOOK_S = 0.02


class ByHand:
    """What an operator may do about the pair of one node."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._pairing = peer.pairing
        self._inquiry = peer.pairing.inquiry
        self._replica = peer.pairing.replica

    def promote(self, *, force: bool) -> str:
        """REPLICAOF NO ONE [FORCE] (waits). What came of it, as the text of a reply."""
        replica = self._replica
        if replica.role is Role.PRIMARY:
            return self._go_on(force=force) if replica.blocked else "OK"
        if not replica.synced:
            return "ERR this node has no state that it could serve; see --bootstrap"
        if force:
            return self._promote_by_force()
        if not replica.is_member:
            return (
                "ERR this node is not a member of the view: it may lack what was answered last; "
                "REPLICAOF NO ONE FORCE serves what it has"
            )
        return self._promote_member()

    def _promote_by_force(self) -> str:
        offset = self._replica.state.offset
        self._pairing.promote_by_force(self._inquiry.seen.epoch)
        self._inquiry.record(self._replica.view)
        return (
            f"OK serving what was here at offset {offset}; whatever the primary answered "
            "after that is lost, and if it still serves there are two primaries now"
        )

    def _go_on(self, *, force: bool) -> str:
        """A primary that is blocked, because its backup is lost and this node stood still."""
        pairing, replica, inquiry = self._pairing, self._replica, self._inquiry
        if not force and inquiry.trouble:
            return (
                f"ERR the backup is lost, and {inquiry.trouble}; if the backup is certainly gone, "
                "REPLICAOF NO ONE FORCE goes on without it"
            )
        if not force and not replica.stalled:
            return f"ERR the backup is lost, and it is being decided: {inquiry.reason}"
        if not force and pairing.switching:
            return (
                "ERR this primary has told its backup to take over, and does not know whether it "
                "has; if it certainly has not, REPLICAOF NO ONE FORCE goes on without it"
            )
        if not force:
            return (
                "ERR this primary is blocked: the backup may have taken over while this node stood "
                "still; if that is certainly not so, REPLICAOF NO ONE FORCE goes on without it"
            )
        view = replica.view.alone(replica.incarnation)
        pairing.go_alone(view, "an operator says so")
        inquiry.record(view)
        return (
            "OK going on alone; whatever the backup answered meanwhile, if it took over, is lost, "
            "and if it still serves there are two primaries now"
        )

    def _promote_member(self) -> str:
        replica, inquiry = self._replica, self._inquiry
        timeout_ms = self._pairing.settings.promotion_timeout_ms + 1000
        deadline_ms = clock.boot_ms() + timeout_ms
        inquiry.insist()
        try:
            while replica.role is Role.BACKUP and replica.is_member:
                if inquiry.refused:
                    return f"ERR {inquiry.refused}"
                if clock.boot_ms() > deadline_ms:
                    why = inquiry.trouble or inquiry.reason
                    return f"ERR undecided: {why}; REPLICAOF NO ONE FORCE overrides it"
                gevent.sleep(_LOOK_S)
        finally:
            inquiry.insists = False
        return "OK" if replica.role is Role.PRIMARY else "ERR this node is no longer a member"

    def follow(self, address: Address, asking: Connection) -> str:
        """REPLICAOF host port (waits). What came of it, as the text of the reply to ``asking``,
        the one connection that outlives the change."""
        peer, pairing, replica = self._peer, self._pairing, self._replica
        if replica.role is not Role.PRIMARY and address == peer.address and pairing.link:
            return "OK Already connected to specified master"
        outcome = ask(address, _ASK_TIMEOUT_S, "ASK")
        if not isinstance(outcome, Answer):
            return f"ERR {address} is {outcome.value}: it is not followed"
        if outcome.incarnation == replica.incarnation:
            return "ERR that is this very node"
        serving = outcome.standing is Standing.SERVING
        least = replica.view.epoch + (replica.role is Role.PRIMARY)
        if replica.role is not Role.EMPTY and not (serving and outcome.view.epoch >= least):
            return (
                f"ERR {address} is {outcome.standing.value} in epoch {outcome.view.epoch}, this "
                f"node's is {replica.view.epoch}: only a serving node of a higher epoch is followed"
            )
        if (why := self._why_refused(address, outcome)) and replica.role is not Role.EMPTY:
            return f"ERR {address} would refuse this node: {why}. Nothing was changed"
        peer.follow(address)
        log.warning("following %s on an operator's word", address)
        if replica.role is Role.PRIMARY:
            peer.spared = asking
            pairing.stand_down("an operator says so")
            peer.spared = None
        else:
            pairing.drop_link()
            if replica.role is Role.BACKUP:
                replica.renew_incarnation(new_id())
            pairing.changed("an operator says so")
        pairing.proceed()
        return "OK"

    def _why_refused(self, address: Address, answer: Answer) -> str:
        """What this node would be told when it joins there, having given up what it has."""
        own = self._pairing.settings.register_name
        if answer.register != own:
            return f"its view is kept in {answer.register}, and this node's in {own}"
        is_other = self._replica.role is Role.PRIMARY or address != self._peer.address
        return "it has a backup already" if answer.has_backup and is_other else ""
