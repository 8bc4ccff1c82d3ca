"""One simulated process around the real core: what ``server/node.py`` does, without its sockets.

A turn takes no time. What arrives while a process is paused waits for it, timers and input; when it
goes on, either kind may come first, and not all of the input comes in its first turn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from holdfast.server.core.backlog import Point
from holdfast.server.core.failover import Answer, NoAnswer
from holdfast.server.core.feed import Joiner
from holdfast.server.core.outside import Settings
from holdfast.server.core.pairing import Pairing
from holdfast.server.core.replica import Replica, Role
from holdfast.server.core.view import NO_VIEW, Cas, View

from .chronicle import Chronicle
from .links import Door, Question, SimLink
from .network import End, Host, Network
from .requests import Requests, Said
from .scheduler import Scheduler
from .trace import Trace

REGISTER_TIMEOUT_US = 1_000_000
TURN_DELAY_US = 150


class Crash(Exception):
    """The process dies in the middle of a turn."""


class Pair:
    """What the two nodes of a run have in common."""

    def __init__(
        self, scheduler: Scheduler, network: Network, trace: Trace, rng: random.Random
    ) -> None:
        self.scheduler = scheduler
        self.network = network
        self.trace = trace
        self.rng = rng
        self.register: Host | None = None
        self.ids = 0
        self.socket_bytes = 200_000
        # What each node has ever proposed to the register: epoch and members.
        self.proposals: dict[str, list[tuple[int, tuple[str, ...]]]] = {"A": [], "B": []}

    def new_id(self) -> str:
        """An identity: short, for the reader."""
        self.ids += 1
        return f"i{self.ids}"


class Process:
    """A node's process, from its start to its death (``Outside`` of its ``Pairing``)."""

    def __init__(
        self, pair: Pair, host: Host, peer: Host, settings: Settings, min_backups: int
    ) -> None:
        self.host = host
        self.peer_host = peer
        self.clock = host.clock
        self.network = pair.network
        self.trace = pair.trace
        self.socket_bytes = pair.socket_bytes
        self.alive = True
        self.paused = False
        self.crash_point = ""  # where in a turn it dies
        self.may_crash: Callable[[], bool] = lambda: True  # asked right before it does
        self.ends: dict[End, None] = {}  # everything that dies with it
        self.turn_us = 0  # true time of this turn
        self.reads_all = True  # all that had arrived is looked at in this turn
        self._pair = pair
        self._scheduler = pair.scheduler
        self._random = pair.rng.random
        self._settings = settings
        self._inbox: list[tuple[bool, Callable[..., object], tuple[Any, ...]]] = []
        self._turn_is_due = False
        self._last_turn_ms = self.clock.ms()
        self._alarm_us = 0
        self._later = 0  # which of the calls of call_later counts
        self._said: list[Said] = []  # replies of this turn that wait for the backup
        self._out: list[Said] = []  # and those that do not
        self.replica = Replica(self._first_incarnation(), min_backups, self.clock.ms)
        self.chronicle = Chronicle(self.replica, host.name, pair.trace, pair.scheduler)
        self.pairing = Pairing(self, self.replica, settings)
        self.requests = Requests(self)
        host.listener = self
        self._tell("starts as", self.replica.incarnation)
        self.after_us(1_000 * settings.heartbeat_ms, self._tick)
        self.receive(self.pairing.start)

    def _first_incarnation(self) -> str:
        return self._pair.new_id()

    def _tell(self, *words: object) -> None:
        self.trace.say(self.host.name, *words)

    @property
    def now_us(self) -> int:
        """True time."""
        return self._scheduler.now_us

    # -- what arrives ----------------------------------------------------------------------------

    def accept(self, end: End) -> None:
        """Somebody has connected: the kernel takes it, whatever the process does."""
        self.ends[end] = None
        Door(self, end)

    def receive(self, call: Callable[..., object], *arguments: Any) -> None:
        """Input: ``call`` is made in a turn."""
        if self.alive:
            self._inbox.append((False, call, arguments))
            self._need_turn()

    def after_us(self, local_us: int, call: Callable[..., object], *arguments: Any) -> None:
        """A timer of this process, on its own clock."""
        self._scheduler.after(self.clock.true_us(local_us), self._on_timer, call, arguments)

    def _on_timer(self, call: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        if self.alive:
            self._inbox.append((True, call, arguments))
            self._need_turn()

    def _need_turn(self) -> None:
        if not self._turn_is_due and not self.paused:
            self._turn_is_due = True
            self._scheduler.after(int(TURN_DELAY_US * self._random()), self._turn)

    def pause(self) -> None:
        """SIGSTOP."""
        self.paused = True

    def go_on(self) -> None:
        """SIGCONT: first in line are the timers, or the input, or what came first."""
        if not self.paused:
            return
        self.paused = False
        rolled = self._random()
        if rolled < 0.4:
            self._inbox.sort(key=lambda item: not item[0])
        elif rolled < 0.6:
            self._inbox.sort(key=lambda item: item[0])
        if rolled < 0.5:
            self.reads_all = False
        self._need_turn()

    def die(self, *, orderly: bool, silent: bool = False) -> None:
        """kill -9, or (``silent``) the machine is switched off."""
        if not self.alive:
            return
        self.alive = False
        self.host.listener = None
        self._inbox.clear()
        ends, self.ends = self.ends, {}
        for end in ends:
            self.network.leave(end, orderly=orderly, silent=silent)

    # -- turns -----------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._turn_is_due = False
        if not self.alive or self.paused:
            return
        try:
            self._run_turn()
        except Crash:
            self.trace.count(f"crash: {self.crash_point}")
            self._tell("dies in mid-turn:", self.crash_point)
            self.die(orderly=self._random() < 0.5)
        except Exception as error:
            self.fail(f"{type(error).__name__}: {error}", error)

    def _run_turn(self) -> None:
        replica, now_ms = self.replica, self.clock.ms()
        gap_ms, self._last_turn_ms = now_ms - self._last_turn_ms, now_ms
        self.turn_us = self._scheduler.now_us
        replica.begin_turn(now_ms)
        if gap_ms > self._settings.heartbeat_ms:
            self.pairing.begin_turn(gap_ms)
        inbox, self._inbox = self._inbox, []
        if not self.reads_all and len(inbox) > 3:
            inbox, self._inbox = inbox[:3], inbox[3:]
        else:
            self.reads_all = True
        self.requests.begin_turn()
        for _, call, arguments in inbox:
            call(*arguments)
            if not self.alive:
                return
        self._end_turn(now_ms)
        if self._inbox:
            self._need_turn()

    def _end_turn(self, now_ms: int) -> None:
        replica = self.replica
        if replica.role is Role.PRIMARY:
            delay_ms = None
            if not self.pairing.switching:
                delay_ms = replica.executor.work_off(self._input_is_read)
            self.requests.tell_answered()
            if delay_ms is not None:
                self._wake_in(delay_ms)
        offset = replica.state.offset
        if self.crash_point and self._said:
            self._crash_at("executed")
        if self._said:
            self._hold_back()
        self.pairing.end_turn()
        if self.crash_point:
            self._crash_at("forwarded")
        out, self._out = self._out, []
        for said in out:
            self._leave(said)
            if self.crash_point:
                self._crash_at("answered")
        self.chronicle.look_at_state(offset)

    def _crash_at(self, point: str) -> None:
        if self.crash_point == point and self.may_crash():
            raise Crash

    def _input_is_read(self) -> bool:
        return not self._inbox

    def _hold_back(self) -> None:
        said, self._said = self._said, []
        replica = self.replica
        frame = self.chronicle.last_frame + 1
        if replica.holding:
            held = [(door, reply._replace(needed_frame=frame)) for door, reply in said]
            replica.hold_back(held, 16 * len(held))
        else:
            self._out += said

    def _wake_in(self, delay_ms: int) -> None:
        if delay_ms <= 0:
            self.another_turn()
            return
        at_us = self.clock.us() + delay_ms * 1_000
        if self._alarm_us > self.clock.us() and self._alarm_us <= at_us:
            return
        self._alarm_us = at_us
        self.after_us(delay_ms * 1_000, _nothing)

    def _tick(self) -> None:
        self.pairing.tick()
        self.after_us(1_000 * self._settings.heartbeat_ms, self._tick)

    # -- replies ---------------------------------------------------------------------------------

    def say(self, said: Said, *, at_once: bool) -> None:
        """Queue a reply; ``at_once``: it says nothing about the state."""
        if self.replica.holding and not at_once:
            self._said.append(said)
        else:
            self._out.append(said)

    def _leave(self, said: Said) -> None:
        door, reply = said
        if door.end.closed:
            return
        self.network.send(door.end, reply.answer if reply.said is None else reply.said)
        if reply.command and isinstance(reply.answer, int):
            self.chronicle.note_reply(reply)

    # -- input, in turns -------------------------------------------------------------------------

    def on_door(self, door: Door, data: Any) -> None:
        """A request, or a word of the other node's."""
        if door.end.closed:
            return
        if door.link is not None:
            self.on_link(door.link, data)
        elif door.early is not None:
            door.early.append(data)
        elif data[0] == "PEER":
            self._on_peer(door, data)
        elif isinstance(data[0], list):
            self._on_join(door, data[0][0])
        else:
            self.requests.execute(door, data)

    def _on_peer(self, door: Door, words: tuple[Any, ...]) -> None:
        answer = (
            self.pairing.answer_ask()
            if words[1] == "ASK"
            else self.pairing.answer_proposal(str(words[2]), int(words[3]))
        )
        self.network.send(door.end, answer)

    def _on_join(self, door: Door, words: list[bytes]) -> None:
        assert words[:2] == [b"PEER", b"JOIN"], words
        incarnation, formerly = words[3].decode(), words[4].decode()
        port, history, epoch, offset, checksum, register, timeout_ms = words[5:]
        point = None
        if history != b"-":
            point = Point(history.decode(), int(epoch), int(offset), int(checksum))
        joiner = Joiner(
            door, incarnation, formerly, int(port), point, register.decode(), int(timeout_ms)
        )
        error = self.pairing.join_request(joiner)
        door.early = []
        if error:
            self.trace.count("join refused")
            self.network.send(door.end, ([RuntimeError(error)], 0, ""))

    def on_door_closed(self, door: Door, why: str) -> None:
        """A client has hung up, or the other node has."""
        self.ends.pop(door.end, None)
        if door.link is not None:
            self.on_link_closed(door.link, why)
        else:
            self.requests.hang_up(door)

    def on_link(self, link: SimLink, data: tuple[list[Any], int, str]) -> None:
        """The other node's messages."""
        if link.closed:
            return
        messages, _, sender = data
        link.last_heard_ms = self.clock.ms()
        if self.replica.role is Role.PRIMARY:
            link.watch_acks(messages, sender)
        self.pairing.on_messages(link, messages)

    def on_link_closed(self, link: SimLink, why: str) -> None:
        """The link has ended."""
        self.ends.pop(link.end, None)
        if not link.closed:
            link.closed = True
            self.pairing.on_link_lost(link, why)

    # -- Outside ---------------------------------------------------------------------------------

    def boot_ms(self) -> int:
        """CLOCK_BOOTTIME."""
        return self.clock.ms()

    def wall_us(self) -> int:
        """The wall clock."""
        return self.clock.wall_us()

    def new_id(self) -> str:
        """An identity."""
        return self._pair.new_id()

    def random(self) -> float:
        """From 0 up to 1."""
        return self._random()

    def ask(self, words: tuple[bytes | str | int, ...], timeout_ms: int) -> None:
        """A question to the peer."""
        self.trace.count(f"asks: {words[0]!s}")
        Question(
            self, self.peer_host, ("PEER", *words), max(timeout_ms, 1) * 1_000, self._on_answer
        )

    def _on_answer(self, answer: Answer | None, why: str) -> None:
        if answer is None:
            self.pairing.on_answer(NoAnswer.GONE if why == "refused" else NoAnswer.SILENT)
        else:
            self.pairing.on_answer(answer)

    def dial(self, timeout_ms: int) -> None:
        """Connect to the peer for a link."""
        self.network.dial(self.host, self.peer_host, _NOBODY, timeout_ms * 1_000, self._on_dialled)

    def _on_dialled(self, end: End | None, why: str) -> None:
        if not self.alive:
            if end is not None:
                self.network.close(end)
            return
        if end is None:
            self.receive(self.pairing.on_dialled, None, why)
            return
        self.ends[end] = None
        self.receive(self.pairing.on_dialled, SimLink(self, end), "")

    def view_get(self) -> None:
        """Read the register."""
        self._ask_register(("get", NO_VIEW))

    def view_cas(self, view: View) -> None:
        """Compare-and-set on it."""
        self._tell("proposes", view.epoch, ",".join(view.members))
        self._pair.proposals[self.host.name].append((view.epoch, view.members))
        self._ask_register(("cas", view))

    def _ask_register(self, words: tuple[str, View]) -> None:
        assert self._pair.register is not None
        Question(self, self._pair.register, words, REGISTER_TIMEOUT_US, self._on_view)

    def _on_view(self, answer: tuple[Cas | None, View] | None, why: str) -> None:
        if answer is None:
            self.trace.count("register: undecided")
            self.pairing.on_view(Cas.UNDECIDED, NO_VIEW)
        else:
            self.pairing.on_view(*answer)

    def call_later(self, delay_ms: int) -> None:
        """``proceed``, later; the last call counts."""
        self._later += 1
        self.after_us(delay_ms * 1_000, self._proceed, self._later)

    def _proceed(self, number: int) -> None:
        if number == self._later:
            self.pairing.proceed()

    def adopt(
        self, joiner: Door, incarnation: str, port: int, formerly: str = ""
    ) -> SimLink | None:
        """A connection becomes a link."""
        if joiner.end.closed:
            return None
        joiner.link = SimLink(self, joiner.end)
        for data in joiner.early or ():
            self.receive(self.on_link, joiner.link, data)
        return joiner.link

    def release(self, replies: Iterable[tuple[Any, Any]]) -> None:
        """Replies of earlier turns leave."""
        for said in replies:
            self._leave(said)
            if self.crash_point:
                self._crash_at("released")

    def drop(self, replies: Iterable[tuple[Any, Any]], why: str) -> None:
        """Close these connections."""
        for door, _ in replies:
            self.trace.count("reply dropped with its connection")
            self.close_door(door)

    def close_door(self, door: Door) -> None:
        """Without a word."""
        self.ends.pop(door.end, None)
        self.network.close(door.end)
        self.requests.hang_up(door)

    def close_clients(self, why: str) -> None:
        """All of them."""
        for end in list(self.ends):
            door = end.owner
            if isinstance(door, Door) and door.link is None:
                self.close_door(door)
        self._said.clear()

    def turn_away(self, tickets: list[Any]) -> None:
        """Those in line are told that nothing was done."""
        self.requests.turn_away(tickets)

    def roles_changed(self) -> None:
        """Note promotions."""
        self.chronicle.note_role()

    def owes_answers(self) -> bool:
        """All are queued in the turn in which they are known."""
        return bool(self.replica.executor.answered)

    def is_from(self, joiner: Any, port: int) -> bool:
        """The other node has one port."""
        return True

    def another_turn(self) -> None:
        """Once more, soon."""
        self._need_turn()

    def abandon_digest(self) -> None:
        """Digests are taken at one go here."""

    def log(self, level: str, text: str) -> None:
        """The story; some lines are counted by their beginning."""
        self.chronicle.note_log(text)

    def fail(self, why: str, error: Exception | None = None) -> None:
        """The process cannot go on: never in a sound program."""
        self.trace.problem(f"{self.host.name} ({self.replica.incarnation}) fails: {why}")
        if error is not None and self.trace.tells:
            import traceback

            self.trace.lines += traceback.format_exception(error)
        self.die(orderly=True)


class _Nobody:
    def on_data(self, end: End, data: Any) -> None:
        """Nobody listens yet."""

    def on_closed(self, end: End, why: str) -> None:
        """Nobody cares yet."""

    def on_late(self, end: End) -> None:
        """Nobody closes it yet."""


_NOBODY = _Nobody()


def _nothing() -> None:
    """A turn is all that was wanted."""
