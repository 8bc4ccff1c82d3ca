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
from .core.view import Cas
from .link import ASK_TIMEOUT_S, RETRY_S, ask
from .pairing import Pairing, new_incarnation

if TYPE_CHECKING:
    from .connection import Connection

log = logging.getLogger(__name__)


class ByHand:
    """What an operator may do about the pair of one node."""

    def __init__(self, pairing: Pairing) -> None:
        self._pairing = pairing

    def promote(self, *, force: bool) -> str:
        """REPLICAOF NO ONE [FORCE] (waits). What came of it, as the text of a reply."""
        pairing = self._pairing
        replica = pairing.replica
        if replica.role is Role.PRIMARY:
            return self._go_on(force=force) if replica.blocked else "OK"
        if not replica.synced:
            return "ERR this node has no state that it could serve; see --bootstrap"
        if force:
            pairing.drop_link()
            replica.begin_turn(clock.boot_ms())
            offset = replica.state.offset
            replica.promote_by_force(clock.wall_us())
            pairing.node.role_changed()
            log.warning("PROMOTED BY FORCE in epoch %d from offset %d", replica.view.epoch, offset)
            return (
                f"OK serving what was here at offset {offset}; whatever the primary answered "
                "after that is lost, and if it still serves there are two primaries now"
            )
        if not replica.is_member:
            return (
                "ERR this node is not a member of the view: it may lack what was answered last; "
                "REPLICAOF NO ONE FORCE serves what it has"
            )
        pairing.insists = True
        try:
            return self._promote_through_register()
        finally:
            pairing.insists = False

    def _go_on(self, *, force: bool) -> str:
        """A primary that is blocked, because its backup is lost and this node stood still."""
        pairing = self._pairing
        replica = pairing.replica
        if not force and not replica.stalled:
            return f"ERR the backup is lost, and it is being decided: {pairing.register.reason}"
        if not force:
            return (
                "ERR this primary is blocked: the backup may have taken over while this node stood "
                "still; if that is certainly not so, REPLICAOF NO ONE FORCE goes on without it"
            )
        pairing.register.reason = "an operator says so"
        pairing.bypass(replica.view.alone(replica.incarnation))
        return (
            "OK going on alone; whatever the backup answered meanwhile, if it took over, is lost, "
            "and if it still serves there are two primaries now"
        )

    def _promote_through_register(self) -> str:
        pairing = self._pairing
        replica = pairing.replica
        deadline_ms = clock.boot_ms() + pairing.node.config.promotion_timeout_ms + 1000
        while replica.role is Role.BACKUP and replica.is_member:
            result, view = pairing.register.cas(replica.view.alone(replica.incarnation))
            if replica.role is not Role.BACKUP or not replica.is_member:
                break
            if result is Cas.WON:
                pairing.bypass(view)
                return "OK"
            if result is Cas.LOST:
                return "ERR the primary is alive and serves; it would have to be stopped first"
            if clock.boot_ms() > deadline_ms:
                return (
                    f"ERR undecided: {pairing.register.reason}; REPLICAOF NO ONE FORCE overrides it"
                )
            gevent.sleep(RETRY_S)
        return "OK" if replica.role is Role.PRIMARY else "ERR this node is no longer a member"

    def follow(self, address: Address, asking: Connection) -> str:
        """REPLICAOF host port (waits). What came of it, as the text of the reply to ``asking``,
        the one connection that outlives the change."""
        pairing = self._pairing
        replica = pairing.replica
        if replica.role is not Role.PRIMARY and address == pairing.peer_address and pairing.link:
            return "OK Already connected to specified master"
        outcome = ask(address, ASK_TIMEOUT_S, "ASK")
        if not isinstance(outcome, Answer):
            return f"ERR {address} is {outcome.value}: it is not followed"
        if outcome.incarnation == replica.incarnation:
            return "ERR that is this very node"
        serving = outcome.standing is Standing.SERVING
        if replica.role is not Role.EMPTY and not (
            serving and outcome.view.epoch > replica.view.epoch
        ):
            return (
                f"ERR {address} is {outcome.standing.value} in epoch {outcome.view.epoch}, this "
                f"node's is {replica.view.epoch}: only a serving node of a higher epoch is followed"
            )
        if outcome.has_backup and replica.role is Role.PRIMARY:
            return f"ERR {address} has a backup already: this node would lose its state for nothing"
        pairing.drop_link()
        pairing.peer_address = address
        log.warning("following %s on an operator's word", address)
        if replica.role is Role.PRIMARY:
            pairing.stand_down(sparing=asking)
        elif replica.role is Role.BACKUP:
            replica.renew_incarnation(new_incarnation())
        pairing.node.role_changed()
        pairing.look_for_primary()
        return "OK"
