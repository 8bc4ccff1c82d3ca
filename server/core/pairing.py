"""Pairing: what a node does about the other one. The link in either role, turns and signs of life.

Three parts, one state machine; input are the methods called from outside, output the calls of
``outside.py``, and nothing waits:

``Pairing``   (here) the link, a backup's side of it, the planned change of roles
``Feed``      (``feed.py``) a primary's side of the link
``Inquiry``   (``inquiry.py``) who is primary: looking for one, deciding about a peer that is lost

The rules stand in ``replica.py`` and ``failover.py``. A node has one link at most; whatever arrives
for another is of the past, and dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ...resp.encoder import pack
from ...resp.replies import fields_of
from . import limits, snapshot, stream
from .failover import Answer, NoAnswer
from .feed import Feed, Joiner
from .follower import Diverged, StaleStream
from .inquiry import Inquiry
from .outside import Link, Outside, Settings
from .replica import Phase, Replica, Role
from .view import Cas, View

_JOIN_RETRY_MS_MAX = 1000
_SAID_MAX = 100
_MILLISECONDS = re.compile(r"\d+ ms")


class Pairing:
    """One node's dealings with the other."""

    def __init__(self, outside: Outside, replica: Replica, settings: Settings) -> None:
        self.outside = outside
        self.replica = replica
        self.settings = settings
        self.port = 0  # where this node listens: what it tells a primary that it joins
        self.link: Link | None = None  # to the backup, or to the primary
        self.link_lost_ms = 0
        self.backup_port = 0  # where the backup that we know listens
        self.full_resyncs = 0
        self.partial_resyncs = 0
        self.partial_resyncs_refused = 0  # where a snapshot had to do instead
        self.stopping = False
        self.was_deposed = False  # and has not joined since
        self.switching = ""  # "", "waiting-for-sync" or "failover-in-progress"
        self._switch_by_ms = 0  # 0: without a limit
        self.offered_ms = 0  # when the backup was told to take over
        self.has_handed_over = False  # and has not joined the new primary yet
        self.peer_timeout_ms = (
            1 << 60
        )  # after which the other node bypasses this one, if it said so
        # Before the backup is told to take over it has to acknowledge this frame, and the register
        # to answer this request: both are sent after the switch was asked for.
        self._switch_frame = 0
        self._switch_request = 0
        self.switches_failed = 0
        self._joins_as = ""  # the incarnation under which this node has asked to join
        self._join_retry_ms = 0  # how long a refused JOIN is not repeated
        self.join_again_ms = 0  # not before this instant
        self._probe = 0
        self._probe_due = False
        self._probe_after_stall = 0
        self._said: set[str] = set()  # while in this mode, so that each is said once
        self._mode_said = ""
        self.inquiry = Inquiry(self)
        self.feed = Feed(self)
        replica.keeps_backlog = settings.has_peer

    # -- start and turns -------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve (a node without a peer), or to look for the peer."""
        if self.settings.has_peer:
            self.changed(f"looking for {self.settings.peer_name}")
            self.proceed()
        else:
            self.begin_history("no peer is configured: primary-only")

    def begin_turn(self, gap_ms: int) -> None:
        """A loop turn begins, ``gap_ms`` after the one before it (F4)."""
        settings = self.settings
        is_primary = self.replica.role is Role.PRIMARY
        peer_ms = settings.promotion_timeout_ms if is_primary else settings.backup_timeout_ms
        peer_ms = min(peer_ms, self.peer_timeout_ms)  # the two may have been told different ones
        limit_ms = int(peer_ms * limits.STALL_SHARE)
        if gap_ms <= limit_ms or settings.has_register:
            return
        # Each stall anew: an answer that was under way before this one proves nothing.
        was_stalled = self.replica.stalled
        self.replica.note_stall()
        self._probe_after_stall = self._probe + 1
        if self.replica.stalled and not was_stalled:
            self.log(
                "warning",
                f"this node stood still for {gap_ms} ms (limit {limit_ms} ms): it bypasses nobody "
                "until its peer has answered",
            )

    def end_turn(self) -> None:
        """The turn's one write to the peer. Then, between two turns, whoever wants to join."""
        replica, link = self.replica, self.link
        if replica.role is Role.PRIMARY:
            self.feed.end_turn(link)
            if self.switching == "waiting-for-sync" and self._may_hand_over():
                self._hand_over()
        elif link is not None:
            data = replica.follower.ack() if replica.synced else b""
            if self._probe_due:
                self._probe_due = False
                data += pack((stream.PROBE, self._probe))
            if data:
                link.write(data)

    def tick(self) -> None:
        """Every ``heartbeat_ms``: signs of life, and the watch over the peer's."""
        if self.mode != self._mode_said:
            self.changed(f"the peer was heard {self.inquiry.silence()[1]} ms ago")
        replica, link, now_ms = self.replica, self.link, self.outside.boot_ms()
        if replica.role is Role.PRIMARY:
            if not self.switching:
                replica.forget()
            overdue = replica.drop_overdue()
            if overdue:
                self.outside.drop(overdue, f"held back for {limits.BLOCKED_MAX_MS} ms")
            if link is not None:
                replica.beat()
                self.feed.watch(link, now_ms)
            self._watch_switch(now_ms)
        elif link is not None:
            self._probe += 1
            self._probe_due = True
            self._watch_primary(link, now_ms - link.last_heard_ms)
        self.inquiry.tick(now_ms)

    def _watch_primary(self, link: Link, silent_ms: int) -> None:
        timeout_ms = self.settings.promotion_timeout_ms
        if self.inquiry.promotes_itself():
            if silent_ms > timeout_ms * limits.SUSPECT_SHARE:
                self.inquiry.suspect(f"the primary has been silent for {silent_ms} ms")
        elif silent_ms > timeout_ms:
            if self.replica.is_member:  # the link is kept: whoever wakes up finds us where we were
                self.say("the primary is silent; an operator may say REPLICAOF NO ONE here")
            else:
                self.lose_link(f"the primary has been silent for {silent_ms} ms")

    def proceed(self) -> None:
        """Take the next step about the peer, if there is one and nothing is under way."""
        self.inquiry.proceed()

    # -- what comes back from outside ------------------------------------------------------------

    def on_answer(self, outcome: Answer | NoAnswer) -> None:
        """What the peer said to what it was asked."""
        self.inquiry.on_answer(outcome)

    def on_view(self, result: Cas | None, view: View) -> None:
        """What the view register said to a compare-and-set, or (None) to a get. UNDECIDED: it did
        not answer either."""
        self.inquiry.on_view(result, view)

    def answer_ask(self) -> Answer:
        """``PEER ASK``."""
        return self._answer()

    def answer_proposal(self, proposer: str, epoch: int) -> Answer:
        """``PEER PROPOSE``: answer it; a backup that accepts is out, and joins again."""
        if self.settings.has_register:
            return self._answer()  # the register decides
        answer = self._answer(proposer, epoch)
        if answer.accepted:
            self.log("warning", f"the primary goes on without this backup, epoch {epoch}")
            self.drop_link()
            self.changed("the primary goes on without this backup")
            self.proceed()
        return answer

    def _answer(self, proposer: str = "", epoch: int = 0) -> Answer:
        answer = self.replica.answer(proposer, epoch)
        return answer._replace(register=self.settings.register_name)

    def join_request(self, joiner: Joiner) -> str:
        """``PEER JOIN``; an error's text, or empty: it is attached between two turns."""
        if self.switching:
            return "TRYAGAIN this primary is handing over"
        return self.feed.join_request(joiner)

    def on_messages(self, link: Link, messages: Iterable[Any]) -> None:
        """What has arrived on the link. An exception among the messages is an error reply."""
        if link is not self.link:
            return
        if self.replica.role is Role.PRIMARY:
            self.feed.on_messages(link, messages)
        else:
            self._on_primary_messages(link, messages)

    def on_link_lost(self, link: Link, why: str) -> None:
        """The link has ended."""
        if link is self.link:
            self.lose_link(why)

    def lose_link(self, why: str) -> None:
        """The link is broken, or not worth keeping."""
        link = self.link
        if link is None:
            return
        self.drop_link()
        if self.replica.role is Role.PRIMARY:
            self.log("warning", f"link to backup {link.peer} is lost: {why}")
            self.feed.on_lost(why)
        else:
            self._on_primary_lost(link, why)

    def drop_link(self) -> None:
        """Close the link, and think no more of it."""
        if self.link is not None:
            self.link.close()
            self.link = None
        self.link_lost_ms = self.outside.boot_ms()

    # -- the backup's side -----------------------------------------------------------------------

    def on_dialled(self, link: Link | None, why: str = "") -> None:
        """The primary was dialled: ask to join it.

        This node joins under a new incarnation, but is the old one until the stream begins: until
        then a member keeps its promises, and may be promoted if the primary dies.
        """
        if not self.inquiry.has_dialled(link, why) or link is None:
            return
        replica, now_ms = self.replica, self.outside.boot_ms()
        self.link = link
        self._join_retry_ms = min(max(2 * self._join_retry_ms, 50), _JOIN_RETRY_MS_MAX)
        self.join_again_ms = now_ms + self._join_retry_ms
        self._joins_as = self.outside.new_id()
        history, epoch, offset, checksum = replica.point if replica.synced else ("-", 0, 0, 0)
        link.write(
            pack(
                (
                    "PEER", "JOIN", stream.PROTOCOL_VERSION, self._joins_as, replica.incarnation,
                    self.port, history, epoch, offset, checksum, self.settings.register_name,
                    self.settings.promotion_timeout_ms,
                )
            )
        )  # fmt: skip

    def _on_primary_messages(self, link: Link, messages: Iterable[Any]) -> None:
        now_ms = self.outside.boot_ms()
        try:
            for message in messages:
                if isinstance(message, Exception):
                    self._on_refused(link, str(message))
                    return
                self._on_primary_message(message, now_ms)
                if link.closed:
                    return
        except StaleStream as stale:
            self.lose_link(f"stale: {stale}")
        except Diverged as diverged:
            self.outside.fail(f"ALARM: this backup's state is not its primary's: {diverged}")
        except (ValueError, IndexError, TypeError, AttributeError) as error:
            self.lose_link(f"it does not keep to the protocol: {error!r}")

    def _on_primary_message(self, message: list[bytes], now_ms: int) -> None:
        follower, kind = self.replica.follower, message[0]
        if kind == stream.ENTRIES:
            payload = message[2]
            follower.on_entries(message[1], payload, fields_of(payload), now_ms)
        elif kind == stream.BEAT:
            epoch, frame, offset = map(int, message[1:])
            follower.on_beat(epoch, frame, offset)
        elif kind == stream.ECHO:
            if int(message[1]) >= self._probe_after_stall and self.replica.stalled:
                self.replica.stalled = False
                self.log("info", "the primary has answered: this node may be promoted again")
        elif kind == stream.VIEW:
            self._on_view_message(message)
        elif kind == stream.ITEMS:
            follower.load_items(fields_of(message[1]))
        elif kind == stream.BEGIN:
            self._on_snapshot(message)
        elif kind == stream.END:
            follower.load_end(int(message[1]), int(message[2]), int(message[3]), now_ms)
            self._on_joined(f"the snapshot is loaded at offset {self.replica.state.offset}")
        elif kind == stream.CONTINUE:
            epoch, frame = int(message[1]), int(message[2])
            follower.on_continue(
                epoch, frame, message[3].decode(), int(message[4]), now_ms, self._joins_as
            )
            self.partial_resyncs += 1
            self._on_joined(f"the stream goes on at offset {self.replica.state.offset}")
        elif kind == stream.HANDOVER:
            follower.on_handover(int(message[1]), int(message[2]))
            self.inquiry.take_over()
        else:
            raise ValueError(f"unknown message {kind!r}")

    def _on_snapshot(self, message: list[bytes]) -> None:
        header = snapshot.Header(message[4].decode(), *map(int, message[5:]))
        follower = self.replica.follower
        follower.load(int(message[1]), message[2].decode(), header, self._joins_as, int(message[3]))
        self.full_resyncs += 1
        assert self.link is not None
        self.log("info", f"joining {self.link.peer}: a snapshot of {header.items} items comes")
        self._forget_past("a snapshot comes")

    def _on_joined(self, how: str) -> None:
        self._join_retry_ms = 0
        self.log("info", how)
        self._forget_past(how)

    def _forget_past(self, why: str) -> None:
        self.was_deposed = self.has_handed_over = False
        self.inquiry.bootstrap = False
        self.changed(why)

    def _on_view_message(self, message: list[bytes]) -> None:
        epoch, frame, before = int(message[1]), int(message[2]), self.replica.view.epoch
        timeout_ms = int(message[6])
        self.replica.follower.on_view(
            epoch, frame, message[3].decode(), message[4].decode(), message[5] == b"1"
        )
        self.peer_timeout_ms = timeout_ms
        self.log("info", f"member of the view of epoch {before} -> {epoch}")
        self.changed("this node is a member")

    def _on_refused(self, link: Link, why: str) -> None:
        self.say(f"{link.peer} refuses this backup: {why}")
        self.drop_link()
        self.outside.roles_changed()
        self.proceed()

    def _on_primary_lost(self, link: Link, why: str) -> None:
        self.log("warning", f"link to primary {link.peer} is lost: {why}")
        if self.replica.is_loading:
            self.replica.discard(self.outside.new_id())  # half a state is none
        self.changed(f"the link is lost: {why}")
        if self.inquiry.promotes_itself():
            self.inquiry.suspect("its link is lost")
        else:
            if self.replica.is_member:
                self.log(
                    "warning",
                    "not promoted by itself: an operator may say REPLICAOF NO ONE here",
                )
            self.proceed()

    # -- the planned change of roles (FAILOVER) --------------------------------------------------

    def switch(self, timeout_ms: int) -> str:
        """Hand over to the backup; why not, as an error's text. From here on requests that depend
        on the state are to be left unexecuted until ``switching`` is empty again."""
        replica = self.replica
        if self.switching:
            return "ERR FAILOVER already in progress."
        if replica.role is not Role.PRIMARY:
            return "ERR FAILOVER is not valid when server is a replica."
        if replica.phase is not Phase.MEMBER or replica.blocked:
            return f"ERR FAILOVER requires a backup in sync, this primary is {self.mode}."
        if not self.inquiry.register_answers:
            return "ERR FAILOVER needs the view register, which does not answer."
        self.switching = "waiting-for-sync"
        self._switch_by_ms = self.outside.boot_ms() + timeout_ms if timeout_ms else 0
        self._switch_frame = replica.ask_for_ack()
        self._switch_request = self.inquiry.look()
        self.log("warning", "FAILOVER: handing over to the backup as soon as it has everything")
        self.outside.another_turn()
        self.outside.roles_changed()
        return ""

    def abort_switch(self, why: str) -> str:
        """Stay the primary; why not, as an error's text."""
        if not self.switching:
            return "ERR No failover in progress."
        if self.switching != "waiting-for-sync":
            return "ERR FAILOVER cannot be aborted: the backup was told to take over."
        self.switches_failed += 1
        self.end_switch(f"FAILOVER is off: {why}")
        return ""

    def _watch_switch(self, now_ms: int) -> None:
        if self.switching == "failover-in-progress":
            silent_ms = now_ms - self.offered_ms
            if silent_ms > self.settings.backup_timeout_ms * limits.SUSPECT_SHARE:
                self.inquiry.suspect(f"the backup has not taken over for {silent_ms} ms")
            return
        if not self.switching:
            return
        if self.replica.phase is not Phase.MEMBER or self.replica.blocked:
            self.abort_switch("the backup is lost")
        elif not self.inquiry.register_answers:
            self.abort_switch("the view register does not answer")
        elif self.inquiry.has_forgotten:
            self.abort_switch("the view register is behind this node")
        elif self._switch_by_ms and now_ms >= self._switch_by_ms:
            self.abort_switch("its time is up")
        elif not self.replica.is_quiet:
            self.replica.beat()

    def _may_hand_over(self) -> bool:
        """Whether the backup is known to be there, with everything, and so is the register."""
        replica = self.replica
        return (
            replica.is_quiet
            and not self.outside.owes_answers()
            and replica.outbound is not None
            and replica.outbound.acked_frame >= self._switch_frame
            and self.link is not None
            and not self.link.closed
            and self.inquiry.has_looked(self._switch_request)
        )

    def _hand_over(self) -> None:
        assert self.link is not None
        self.switching = "failover-in-progress"
        self.offered_ms = self.outside.boot_ms()
        self.link.write(self.replica.hand_over())
        self.changed("FAILOVER: the backup was told to take over")

    def end_switch(self, text: str) -> None:
        """Whatever came of it: requests go on."""
        self.switching = ""
        self.log("warning", text)
        self.outside.roles_changed()

    # -- changes of role -------------------------------------------------------------------------

    def begin_history(self, why: str, after_epoch: int = 0) -> None:
        """This empty node is the first primary."""
        quarantine_ms = self.settings.quarantine_ms
        self.replica.begin_turn(self.outside.boot_ms())
        self.replica.begin_history(
            self.outside.new_id(), self.outside.wall_us(), after_epoch, quarantine_ms
        )
        level = "warning" if self.inquiry.bootstrap else "info"
        self.log(level, f"a new history begins in epoch {self.replica.view.epoch}: {why}")
        if quarantine_ms:
            self.log("warning", f"no lock is granted for {quarantine_ms} ms (--quarantine-ms)")
        self._forget_past(why)

    def go_alone(self, view: View, why: str) -> None:
        """The view of this primary alone stands."""
        self.drop_link()
        self.feed.close_cut()
        self.replica.begin_turn(self.outside.boot_ms())
        self.outside.release(self.replica.go_alone(view))
        if self.switching:
            self.switches_failed += 1
            self.end_switch("FAILOVER came to nothing: this node goes on")
        self.log(
            "warning",
            f"serving alone, epoch {view.epoch - 1} -> {view.epoch}: the backup is out: {why}",
        )
        self.changed(why)

    def promote(self, view: View, after: View, why: str) -> None:
        """The view of this backup alone stands."""
        self.drop_link()
        self.replica.begin_turn(self.outside.boot_ms())
        self.replica.promote(view, after, self.outside.wall_us())
        self.has_handed_over = False
        self._promoted("PROMOTED", why)

    def promote_by_force(self, after_epoch: int = 0) -> None:
        """An operator says so."""
        self.drop_link()
        self.replica.begin_turn(self.outside.boot_ms())
        self.replica.promote_by_force(self.outside.wall_us(), after_epoch)
        self._promoted("PROMOTED BY FORCE", "an operator says so")

    def _promoted(self, text: str, why: str) -> None:
        replica = self.replica
        self.log(
            "warning",
            f"{text} in epoch {replica.view.epoch}, at offset {replica.state.offset}: {why}",
        )
        self.changed(why)
        self.outside.another_turn()  # its first entry goes into the backlog at the end of a turn

    def stand_down(self, why: str) -> None:
        """PRIMARY to EMPTY: this node's clients ask the other one."""
        self.drop_link()
        self.feed.close_cut()
        self.inquiry.forget_admission()
        abandoned = self.replica.stand_down(self.outside.new_id())
        self.was_deposed = True
        self.log("warning", f"DEPOSED: {why}; this node drops its state")
        self.outside.drop(abandoned, "this node is no longer the primary")
        self.outside.close_clients("this node is no longer the primary")
        self.switching = ""
        self.changed(why)

    def step_aside(self, view: View) -> None:
        """PRIMARY to BACKUP: the other node has taken over as planned."""
        self.drop_link()
        tickets, abandoned = self.replica.step_aside(view)
        self.outside.drop(abandoned, "this node is no longer the primary")
        self.switching = ""
        self.has_handed_over = True
        self.changed(f"handed over: the peer serves in epoch {view.epoch}")
        self.outside.turn_away(tickets)

    def discard(self, why: str) -> None:
        """BACKUP to EMPTY: what is here is of a history that is no more."""
        offset = self.replica.state.offset
        self.log("warning", f"this node drops its state, which was at offset {offset}: {why}")
        self.drop_link()
        self.replica.discard(self.outside.new_id())
        self.changed(why)

    # -- what others see -------------------------------------------------------------------------

    @property
    def mode(self) -> str:
        """One word for ``INFO replication``.

        paired    both nodes have everything that was answered
        solo      a primary without a backup
        joining   a backup is being brought up to date, seen from either side
        blocked   the peer is lost, and it is not decided who goes on: nothing is answered
        deposed   was primary, another one serves: looking for it
        recovery  no state, and no primary to get it from: waits for the peer, or an operator
        """
        replica = self.replica
        if replica.role is Role.BACKUP and not self.link_is_up:
            return "blocked"
        if replica.role is Role.PRIMARY and replica.phase >= Phase.PROPOSED:
            _, silent_ms, timeout_ms = self.inquiry.silence()
            if silent_ms > timeout_ms:
                return "blocked"  # nothing has been acknowledged for as long: nothing is answered
        if replica.role is Role.EMPTY and self.was_deposed:
            return "deposed"
        return replica.mode

    @property
    def link_is_up(self) -> bool:
        """Whether there is a link, and the peer has been heard on it lately."""
        if self.link is None:
            return False
        silent_ms = self.outside.boot_ms() - self.link.last_heard_ms
        return silent_ms <= self.settings.promotion_timeout_ms

    def changed(self, why: str) -> None:
        """Role, phase or link are others now. A change of the mode is logged, with ``why``."""
        mode = self.mode
        if mode != self._mode_said:
            before = self._mode_said or "starting"
            self._mode_said = mode
            self._said.clear()
            epoch = self.replica.view.epoch
            self.log("info", f"mode {before} -> {mode}, epoch {epoch}: {why}")
        self.outside.roles_changed()

    def log(self, level: str, text: str) -> None:
        """``level``: info, warning or error."""
        self.outside.log(level, text)

    def say(self, text: str, level: str = "info") -> None:
        """Log what may come up again and again, once in each mode: durations alone are no news."""
        news = _MILLISECONDS.sub("", text)
        if news not in self._said and len(self._said) < _SAID_MAX:
            self._said.add(news)
            self.log(level, text)

    def stop(self) -> None:
        """Stop watching, and close the link."""
        self.stopping = True
        if self.link is not None:
            self.link.close()
            self.link = None
