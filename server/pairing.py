"""Pairing: how this node finds its peer and follows it, and what it does when it is lost.

(How a primary feeds its backup is ``feed.py``, what an operator may say is ``by_hand.py``.)

The rules stand in the core (``failover.py``, ``replica.py``); here they meet sockets and clocks.
What happens on the link happens in callbacks. What has to wait, for a dial or an answer, is one of
two greenlets, and each looks at role and view again after every wait:

``_seek``     a node without a primary asks its peer until it can join it (or begin a history)
``_decide``   a node that suspects its peer has the view register decide who goes on

At most one of the two runs.
"""

from __future__ import annotations

import logging
import random
import re
import secrets
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import gevent
import hiredis

from ..resp import encoder
from . import clock
from .config import Address, Config
from .core import limits, snapshot, stream
from .core.failover import Answer, NoAnswer, Standing, Step, step_of_empty_node
from .core.replica import Diverged, Phase, Replica, Role, StaleStream
from .core.view import Cas, View, ViewRegister
from .feed import Feed
from .link import ASK_TIMEOUT_S, RETRY_S, Link, ask, dial, reply_parser
from .view_register import FailStop

if TYPE_CHECKING:
    from .connection import Connection
    from .node import Node

log = logging.getLogger(__name__)

_RETRY_FIRST_S = 0.002  # a process that is being killed may reset a dial or two before it refuses
_JOIN_RETRY_MS_MAX = 1000
_MILLISECONDS = re.compile(r"\d+ ms")


def new_incarnation() -> str:
    """A node's identity: 40 hexadecimal digits, as Redis' run ids."""
    return secrets.token_hex(20)


class Pairing:
    """One node's dealings with the other."""

    def __init__(self, node: Node, replica: Replica) -> None:
        config = node.config
        self.node = node
        self.replica = replica
        self.peer_address: Address | None = config.peer
        self.register: ViewRegister = FailStop(replica, self._propose, self._silence)
        self.link: Link | None = None  # to the backup, or to the primary
        self.heartbeat_ms = _heartbeat_ms(config)
        self.link_lost_ms = 0
        self.full_resyncs = 0
        self._greenlet: gevent.Greenlet[..., None] | None = None
        self.feed = Feed(self, replica)
        self._joins_as = ""  # the incarnation under which this node has asked to join
        self._join_retry_ms = 0  # how long a refused JOIN is not repeated
        self._join_again_ms = 0  # not before this instant
        self._probe = 0
        self._probe_due = False
        self._probe_after_stall = 0
        self.insists = False  # an operator wants a decision now
        self._bootstrap = config.bootstrap  # once: it is used up with the first history
        self._unanswered_since_ms = 0  # since when the peer that is sought has not answered
        self._said = ""  # the last thing logged while waiting, so that it is said once

    def reconfigured(self) -> None:
        """The node's configuration is another one: take what is derived from it."""
        self.heartbeat_ms = _heartbeat_ms(self.node.config)

    # -- start and turns -------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve (a node without a peer), or to look for the peer."""
        if self.peer_address is None:
            self._begin_history("no peer is configured: primary-only")
        else:
            self._run(self._seek)

    def begin_turn(self, now_ms: int, gap_ms: int) -> None:
        """A loop turn begins, ``gap_ms`` after the one before it."""
        config = self.node.config
        is_primary = self.replica.role is Role.PRIMARY
        peer_ms = config.promotion_timeout_ms if is_primary else config.backup_timeout_ms
        limit_ms = int(peer_ms * limits.STALL_SHARE)
        if gap_ms <= limit_ms:
            return
        # Each stall anew: an answer that was under way before this one proves nothing.
        was_stalled = self.replica.stalled
        self.replica.note_stall()
        self._probe_after_stall = self._probe + 1
        if self.replica.stalled and not was_stalled:
            log.warning(
                "this node stood still for %d ms (limit %d ms): it bypasses nobody until its "
                "peer has answered",
                gap_ms,
                limit_ms,
            )

    def end_turn(self) -> None:
        """The turn's one write to the peer. Then, between two turns, whoever wants to join."""
        replica, link = self.replica, self.link
        if replica.role is Role.PRIMARY:
            self.feed.end_turn(link)
        elif link is not None:
            data = replica.ack() if replica.synced else b""
            if self._probe_due:
                self._probe_due = False
                data += encoder.pack((stream.PROBE, self._probe))
            if data:
                link.write(data)

    def tick(self, now_ms: int) -> None:
        """Every ``heartbeat_ms``: signs of life, and the watch over the peer's."""
        replica, link = self.replica, self.link
        if replica.role is Role.PRIMARY:
            replica.forget()
            for connection, _ in replica.drop_overdue():
                connection.close(f"its reply was held back for {limits.BLOCKED_MAX_MS} ms")
            if link is not None:
                replica.beat()
                self.feed.watch(link, now_ms)
        elif link is not None:
            self._probe += 1
            self._probe_due = True
            self._watch_primary(link, now_ms - link.last_heard_ms)

    def _watch_primary(self, link: Link, silent_ms: int) -> None:
        replica, timeout_ms = self.replica, self.node.config.promotion_timeout_ms
        if replica.is_member and self._promotes_itself():
            if silent_ms > timeout_ms * limits.SUSPECT_SHARE:
                self.suspect(f"the primary has been silent for {silent_ms} ms")
        elif silent_ms > timeout_ms:
            if replica.is_member:  # the link is kept: whoever wakes up finds us where we were
                self.say("the primary is silent; an operator may say REPLICAOF NO ONE here")
            else:
                link.lose(f"the primary has been silent for {silent_ms} ms")

    # -- the backup's side -----------------------------------------------------------------------

    def _join(self, address: Address) -> bool:
        """Dial the primary and ask to join (waits). Whether there is a link now.

        It joins under a new incarnation, but is the old one until a snapshot makes it drop its
        state: until then a member keeps its promises, and may be promoted if the primary dies.
        """
        replica = self.replica
        view = replica.view
        try:
            sock = dial(address, ASK_TIMEOUT_S)
        except OSError as error:
            self.say("cannot reach the primary at %s: %s", address, error)
            return False
        if (
            replica.role is Role.PRIMARY
            or replica.view != view
            or self.link is not None
            or self.peer_address != address
        ):
            sock.close()
            return False
        self.link = Link(
            self.node.loop, sock, reply_parser(), self._on_primary_messages, self._on_primary_lost,
            str(address),
        )  # fmt: skip
        self.link.address = address
        self._join_retry_ms = min(max(2 * self._join_retry_ms, 50), _JOIN_RETRY_MS_MAX)
        self._join_again_ms = clock.boot_ms() + self._join_retry_ms
        self._joins_as = new_incarnation()
        self.link.write(
            encoder.pack(("PEER", "JOIN", stream.PROTOCOL_VERSION, self._joins_as, self.node.port))
        )
        return True

    def _on_primary_messages(self, link: Link, messages: Iterable[Any]) -> None:
        now_ms = clock.boot_ms()
        try:
            for message in messages:
                if isinstance(message, Exception):
                    self._on_refused(link, str(message))
                    return
                self._on_primary_message(message, now_ms)
                if link.closed:
                    return
        except StaleStream as stale:
            link.lose(f"stale: {stale}")
        except Diverged as diverged:
            self.node.fail(f"ALARM: this backup's state is not its primary's: {diverged}")
        except (ValueError, IndexError, TypeError, AttributeError, hiredis.HiredisError) as error:
            link.lose(f"it does not keep to the protocol: {error}")

    def _on_primary_message(self, message: list[bytes], now_ms: int) -> None:
        replica = self.replica
        kind = message[0]
        if kind == stream.ENTRIES:
            payload = message[2]
            replica.on_entries(message[1], payload, _fields(payload), now_ms)
        elif kind == stream.BEAT:
            epoch, frame, offset = map(int, message[1:])
            replica.on_beat(epoch, frame, offset)
        elif kind == stream.ECHO:
            if int(message[1]) >= self._probe_after_stall and replica.stalled:
                replica.stalled = False
                log.info("the primary has answered: this node may be promoted again")
        elif kind == stream.VIEW:
            self._on_view(message)
        elif kind == stream.ITEMS:
            replica.load_items(_fields(message[1]))
        elif kind == stream.BEGIN:
            self._on_snapshot(message)
        elif kind == stream.END:
            replica.load_end(int(message[1]), int(message[2]), int(message[3]), now_ms)
            self._join_retry_ms = 0
            self.node.role_changed()
            log.info("snapshot is loaded at offset %d", replica.state.offset)
        else:
            raise ValueError(f"unknown message {kind!r}")

    def _on_snapshot(self, message: list[bytes]) -> None:
        header = snapshot.Header(message[3].decode(), *map(int, message[4:]))
        self.replica.load(int(message[1]), message[2].decode(), header, self._joins_as)
        self._bootstrap = False
        self.full_resyncs += 1
        self.node.role_changed()
        log.info("joining %s: a snapshot of %d items comes", self.peer, header.items)

    def _on_view(self, message: list[bytes]) -> None:
        epoch, frame = int(message[1]), int(message[2])
        before = self.replica.view.epoch
        self.replica.on_view(
            epoch, frame, message[3].decode(), message[4].decode(), message[5] == b"1"
        )
        log.info("member of the view of %s: epoch %d -> %d: paired", self.peer, before, epoch)

    def _on_refused(self, link: Link, why: str) -> None:
        self.say("%s refuses this backup: %s", link.peer, why)
        link.close()
        self.link = None
        self._run(self._seek)

    def _on_primary_lost(self, link: Link, why: str) -> None:
        if link is not self.link:
            return
        self.link = None
        self.link_lost_ms = clock.boot_ms()
        log.warning("link to primary %s is lost: %s", link.peer, why)
        self.node.role_changed()
        if self.replica.is_member and self._promotes_itself():
            self.suspect("its link is lost")
        else:
            if self.replica.is_member:
                log.warning("not promoted by itself: an operator may say REPLICAOF NO ONE here")
            self._run(self._seek)

    def _promotes_itself(self) -> bool:
        return self.replica.may_promote_itself and self.node.config.failover == "auto"

    @property
    def peer(self) -> str:
        return self.link.peer if self.link else str(self.peer_address)

    # -- looking for a primary -------------------------------------------------------------------

    def _seek(self) -> None:
        """Ask the peer until this node can join it, begins a history, or is told otherwise."""
        while self._needs_primary() and not self._in_doubt():
            address = self.peer_address
            assert address is not None, "only a node with a peer can be without a primary"
            outcome = ask(address, ASK_TIMEOUT_S, "ASK")
            if not self._needs_primary() or address != self.peer_address:
                continue
            step, why = self._next_step(outcome)
            if step is Step.BEGIN:
                seen = outcome.view.epoch if isinstance(outcome, Answer) else 0
                self._begin_history(why, seen)
            elif step is Step.WAIT:
                self.say("waiting for %s: %s", address, why)
            elif clock.boot_ms() >= self._join_again_ms and self._join(address):
                return
            if self._needs_primary():
                gevent.sleep(RETRY_S * (0.5 + random.random()))

    def _needs_primary(self) -> bool:
        return (
            self.replica.role is not Role.PRIMARY and self.link is None and not self.node.stopping
        )

    def _next_step(self, outcome: Answer | NoAnswer) -> tuple[Step, str]:
        replica, config = self.replica, self.node.config
        if isinstance(outcome, Answer) and outcome.incarnation == replica.incarnation:
            return Step.WAIT, "that is this very node: its peer must be another one"
        if replica.role is Role.BACKUP:
            if isinstance(outcome, Answer) and outcome.standing is Standing.SERVING:
                return Step.JOIN, "the primary is there"
            return Step.WAIT, "no primary there; this node has state but may not serve by itself"
        if isinstance(outcome, Answer):
            self._unanswered_since_ms = 0
        elif not self._unanswered_since_ms:
            self._unanswered_since_ms = clock.boot_ms()
        step = step_of_empty_node(
            outcome,
            heard=replica.heard_of_history,
            first_primary=config.backup is not None,
            bootstrap=self._bootstrap,
        )
        if isinstance(outcome, Answer) and outcome.standing is not Standing.BLANK:
            replica.heard_of_history = True
        if step[0] is Step.BEGIN and self._unanswered_since_ms:
            # --bootstrap overrides silence: but not that of a peer which is only slow to answer.
            left_ms = config.promotion_timeout_ms - clock.boot_ms() + self._unanswered_since_ms
            if left_ms > 0:
                return Step.WAIT, f"{step[1]}; a new history begins if it stays so"
        return step

    def _begin_history(self, why: str, after_epoch: int = 0) -> None:
        self.replica.begin_turn(clock.boot_ms())
        self.replica.begin_history(secrets.token_hex(20), clock.wall_us(), after_epoch)
        self.node.role_changed()
        level = logging.WARNING if self._bootstrap else logging.INFO
        log.log(level, "a new history begins in epoch %d: %s", self.replica.view.epoch, why)
        self._bootstrap = False

    # -- deciding about a peer that is lost ------------------------------------------------------

    def suspect(self, why: str) -> None:
        if self._greenlet is None:
            log.warning("suspecting %s: %s", self.peer, why)
            self._run(self._decide)

    def _decide(self) -> None:
        """Have the register decide who goes on, until it is decided or the peer is back."""
        replica = self.replica
        retry_s = _RETRY_FIRST_S
        while self._in_doubt():
            proposal = replica.view.alone(replica.incarnation)
            result, view = self.register.cas(proposal)
            if (
                self.node.stopping
                or not self._in_doubt()
                or replica.view.epoch != proposal.epoch - 1
            ):
                continue  # the wait was long enough for the world to change: look again
            if result is Cas.WON:
                self.bypass(view)
            elif result is Cas.LOST:
                self._yield_to(view)
            else:
                self.say("undecided about %s: %s", self.peer, self.register.reason)
                gevent.sleep(retry_s)
                retry_s = min(2 * retry_s, RETRY_S, self.heartbeat_ms / 1000)

    def _in_doubt(self) -> bool:
        """Whether the peer, whom this node needs to go on, is lost for now."""
        replica = self.replica
        if self.node.stopping:
            return False
        if replica.role is Role.PRIMARY and replica.phase >= Phase.PROPOSED:
            return replica.blocked or self._silence()[1] > self.heartbeat_ms * 2
        if replica.role is Role.BACKUP and replica.is_member and self._promotes_itself():
            return self.link is None or self._silence()[1] > self.heartbeat_ms * 3
        return False

    def _silence(self) -> tuple[str, int, int]:
        """Which incarnation is suspected, for how long it has been silent, and its limit, ms."""
        replica, config, now_ms = self.replica, self.node.config, clock.boot_ms()
        if replica.role is Role.PRIMARY:
            since_ms = replica.outbound.oldest_unacked_ms if replica.outbound else None
            if since_ms is None:
                since_ms = self.link_lost_ms if self.link is None else now_ms
            return replica.backup, now_ms - since_ms, config.backup_timeout_ms
        since_ms = self.link.last_heard_ms if self.link else self.link_lost_ms
        return replica.view.primary, now_ms - since_ms, config.promotion_timeout_ms

    def _propose(self, view: View) -> Answer | NoAnswer:
        """Ask the peer to accept a view of this node alone (waits)."""
        if self.peer_address is None:
            return NoAnswer.SILENT
        _, silent_ms, timeout_ms = self._silence()
        left_s = max(timeout_ms - silent_ms, 2 * self.heartbeat_ms) / 1000
        # Before its time is up a peer that only hangs is asked, not yet told to step aside.
        if self.link is not None and silent_ms < timeout_ms and not self.insists:
            request: tuple[str | int, ...] = ("ASK",)
        else:
            request = ("PROPOSE", self.replica.incarnation, view.epoch)
        outcome = ask(self.peer_address, min(left_s, ASK_TIMEOUT_S), *request)
        # The wait may have ended in the very batch of events that a standstill ended in.
        self.begin_turn(0, clock.boot_ms() - self.node.last_turn_ms)
        if request == ("ASK",) and self.link is not None and isinstance(outcome, Answer):
            known = self.replica.view
            if outcome.view.epoch <= known.epoch:
                return outcome._replace(standing=Standing.STATE)  # it is there: no more to decide
        return outcome

    def bypass(self, view: View) -> None:
        """The view of this node alone stands."""
        replica = self.replica
        self.drop_link()
        replica.begin_turn(clock.boot_ms())
        if replica.role is Role.PRIMARY:
            self.feed.close_cut()
            self.feed.release(replica.go_alone(view))
            log.warning(
                "serving alone, epoch %d -> %d: the backup is out: %s",
                view.epoch - 1, view.epoch, self.register.reason,
            )  # fmt: skip
        else:
            replica.promote(view, clock.wall_us())
            log.warning(
                "PROMOTED, epoch %d -> %d, at offset %d: the primary is out: %s",
                view.epoch - 1, view.epoch, replica.state.offset, self.register.reason,
            )  # fmt: skip
        self.node.role_changed()

    def _yield_to(self, view: View) -> None:
        """The peer's view stands: a primary stands down, a backup joins again."""
        replica = self.replica
        self.drop_link()
        if replica.role is Role.PRIMARY:
            log.warning(
                "DEPOSED: the peer serves in epoch %d, this node's was %d; it drops its state",
                view.epoch, replica.view.epoch,
            )  # fmt: skip
            self.stand_down()
            self.node.role_changed()
            return
        log.info("the primary serves: joining it again")
        self.node.role_changed()
        gevent.sleep(max(self._join_again_ms - clock.boot_ms(), 0) / 1000)
        if self.peer_address is not None and self._in_doubt():
            self._join(self.peer_address)

    def stand_down(self, sparing: Connection | None = None) -> None:
        """This node is no longer the primary: its clients ask the other one."""
        self.feed.close_cut()
        self.replica.stand_down(new_incarnation())
        self.node.close_clients("this node is no longer the primary", sparing)

    def proposal_from_peer(self, proposer: str, epoch: int) -> Answer:
        """``PEER PROPOSE``: answer it; a backup that accepts is out, and joins again."""
        answer = self.replica.answer(proposer, epoch)
        if answer.accepted:
            log.warning("the primary goes on without this backup, epoch %d", epoch)
            self.drop_link()
            self.node.role_changed()
            self._run(self._seek)
        return answer

    # -- what others see and do -----------------------------------------------------------------

    @property
    def mode(self) -> str:
        """One word for ``INFO replication``: the replica's, as far as its link bears it out."""
        if self.replica.role is Role.BACKUP and not self.link_is_up:
            return "blocked"
        return self.replica.mode

    @property
    def link_is_up(self) -> bool:
        """Whether there is a link, and the peer has been heard on it lately."""
        if self.link is None:
            return False
        silent_ms = clock.boot_ms() - self.link.last_heard_ms
        return silent_ms <= self.node.config.promotion_timeout_ms

    def look_for_primary(self) -> None:
        """Seek, unless a task runs already that will come to it."""
        self._run(self._seek)

    def drop_link(self) -> None:
        """Close the link, without a word to whoever watches it."""
        if self.link is not None:
            self.link.close()
            self.link = None
        self.link_lost_ms = clock.boot_ms()

    # -- the one task at a time ------------------------------------------------------------------

    def _run(self, task: Callable[[], None]) -> None:
        """Start ``task`` unless one runs already (that one looks at the new situation itself)."""
        if self._greenlet is None and not self.node.stopping:
            self._greenlet = gevent.spawn(self._run_to_the_end, task)

    def _run_to_the_end(self, task: Callable[[], None]) -> None:
        try:
            task()
        except gevent.GreenletExit:
            raise
        except BaseException:
            self.node.crash("a task of the pairing failed")
        finally:
            self._greenlet = None
        if self._in_doubt():
            self._run(self._decide)
        elif self._needs_primary():
            self._run(self._seek)

    def say(self, text: str, *arguments: object) -> None:
        """Log what may come up again and again, once: durations alone make no news."""
        line = text % arguments
        news = _MILLISECONDS.sub("", line)
        if news != self._said:
            self._said = news
            log.info("%s", line)

    def stop(self) -> None:
        """Stop watching, and close the link."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
        if self.link is not None:
            self.link.close()
            self.link = None


def _heartbeat_ms(config: Config) -> int:
    """How often a sign of life goes out."""
    return max(10, min(200, config.backup_timeout_ms // 10, config.promotion_timeout_ms // 10))


def _fields(payload: bytes) -> list[bytes]:
    reader = hiredis.Reader()
    reader.feed(payload)
    fields = reader.gets()
    if not isinstance(fields, list):
        raise ValueError("a payload is not an array")
    return fields
