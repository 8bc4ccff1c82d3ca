"""The world around a ``Pairing``, under the hand of a test: nothing happens by itself.

What the core asks for is recorded (``asked``, ``dialling``, ``register_asked``, ``timer_ms``) and
answered when the test says so. ``Duo`` joins two such nodes by links whose bytes it carries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from holdfast.server.core.backlog import Point
from holdfast.server.core.failover import Answer, NoAnswer, Standing
from holdfast.server.core.feed import Joiner
from holdfast.server.core.outside import Settings
from holdfast.server.core.pairing import Pairing
from holdfast.server.core.replica import Phase, Replica, Replies
from holdfast.server.core.view import NO_VIEW, Cas, View

from .replicas import messages_of

GET = "get"
HEARTBEAT_MS = 100
BACKUP_TIMEOUT_MS = 2_000
PROMOTION_TIMEOUT_MS = 3_000

Words = tuple[bytes | str | int, ...]


class ScriptedLink:
    """One end of a link: what was written lies in ``sent``."""

    def __init__(self, world: World, peer: str) -> None:
        self.peer = peer
        self.host = peer
        self.address: Any = peer
        self.closed = False
        self.sent = b""
        self.unsent_bytes = 0
        self.last_heard_ms = self.last_taken_ms = self.last_drained_ms = world.now_ms

    def write(self, data: bytes) -> None:
        if not self.closed:
            self.sent += data

    def close(self) -> None:
        self.closed = True

    def take(self) -> list[Any]:
        """The messages that were written."""
        data, self.sent = self.sent, b""
        return messages_of(data)


class World:
    """One node, and everything around it."""

    def __init__(self, name: str, *, now_ms: int = 50_000, **settings: Any) -> None:
        self.name = name
        self.now_ms = now_ms
        self.asked: Words | None = None
        self.ask_timeout_ms = 0
        self.questions: list[Words] = []  # all there were
        self.dialling = False
        self.register_asked: View | str | None = None  # GET, or the view of a compare-and-set
        self.proposals: list[View] = []  # all there were
        self.timer_ms: int | None = None
        self.accepted: ScriptedLink | None = None
        self.owes = False  # whether answers wait to be queued
        self.released: list[str] = []
        self.dropped: list[str] = []
        self.turned_away: list[Any] = []
        self.clients_closed = 0
        self.logged: list[str] = []
        self.failed = ""
        self._ids = 0
        self.replica = Replica(name, 0, self.boot_ms)
        defaults: dict[str, Any] = {
            "heartbeat_ms": HEARTBEAT_MS,
            "backup_timeout_ms": BACKUP_TIMEOUT_MS,
            "promotion_timeout_ms": PROMOTION_TIMEOUT_MS,
        }
        self.pairing = Pairing(self, self.replica, Settings(**(defaults | settings)))
        self.pairing.port = 7_000 + ord(name[0])
        self.replica.begin_turn(self.now_ms)

    # -- what the core asks for (core/outside.py) ------------------------------------------------

    def boot_ms(self) -> int:
        return self.now_ms

    def wall_us(self) -> int:
        return 1_000_000

    def new_id(self) -> str:
        self._ids += 1
        return f"{self.name}{self._ids}"

    def random(self) -> float:
        return 0.5

    def ask(self, words: Words, timeout_ms: int) -> None:
        assert self.asked is None, "one question at a time"
        assert timeout_ms > 0
        self.asked, self.ask_timeout_ms = words, timeout_ms
        self.questions.append(words)

    def dial(self, timeout_ms: int) -> None:
        assert not self.dialling and timeout_ms > 0
        self.dialling = True

    def view_get(self) -> None:
        assert self.register_asked is None, "one request at a time"
        self.register_asked = GET

    def view_cas(self, view: View) -> None:
        assert self.register_asked is None, "one request at a time"
        self.register_asked = view
        self.proposals.append(view)

    def call_later(self, delay_ms: int) -> None:
        assert delay_ms > 0
        self.timer_ms = delay_ms

    def adopt(
        self, joiner: Any, incarnation: str, port: int, formerly: str = ""
    ) -> ScriptedLink | None:
        assert isinstance(joiner, ScriptedLink)
        if joiner.closed:
            return None
        self.accepted = joiner
        return joiner

    def release(self, replies: Iterable[tuple[Any, bytes]]) -> None:
        self.released += [client for client, _ in replies]

    def drop(self, replies: Iterable[tuple[Any, bytes]], why: str) -> None:
        assert why
        self.dropped += [client for client, _ in replies]

    def close_clients(self, why: str) -> None:
        self.clients_closed += 1

    def turn_away(self, tickets: list[Any]) -> None:
        self.turned_away += tickets

    def roles_changed(self) -> None:
        pass

    def owes_answers(self) -> bool:
        return self.owes

    def is_from(self, joiner: Any, port: int) -> bool:
        assert isinstance(joiner, ScriptedLink) and self.accepted is not None
        return (joiner.host, port) == (self.accepted.host, self.pairing.backup_port)

    def another_turn(self) -> None:
        pass

    def abandon_digest(self) -> None:
        pass

    def log(self, level: str, text: str) -> None:
        assert level in ("info", "warning", "error")
        self.logged.append(text)

    def fail(self, why: str) -> None:
        self.failed = why

    # -- what happens ----------------------------------------------------------------------------

    def answer(self, outcome: Answer | NoAnswer) -> None:
        """What comes of the question that was asked."""
        assert self.asked is not None, "nothing was asked"
        self.asked = None
        self.pairing.on_answer(outcome)

    def register_says(self, result: Cas | None, view: View = NO_VIEW) -> None:
        """What the view register says to what it was asked."""
        assert self.register_asked is not None, "the register was not asked"
        assert (result is None) <= (self.register_asked == GET)
        self.register_asked = None
        self.pairing.on_view(result, view)

    def sleep(self, milliseconds: int) -> None:
        """Time passes, in many turns of the loop, and the link shows signs of life in none."""
        self.now_ms += milliseconds
        self.replica.begin_turn(self.now_ms)

    def stand_still(self, milliseconds: int) -> None:
        """Time passes in one turn of the loop."""
        self.sleep(milliseconds)
        self.pairing.begin_turn(milliseconds)

    def tick(self) -> None:
        """A heartbeat, and the end of its turn."""
        self.pairing.tick()
        self.pairing.end_turn()

    def timer(self) -> None:
        """What was to be done later is done."""
        assert self.timer_ms is not None, "nothing is to be done later"
        self.sleep(self.timer_ms)
        self.timer_ms = None
        self.pairing.proceed()

    def lock(self, client: str, name: str = "a") -> None:
        """A request whose reply is held back if need be."""
        self.replica.executor.lock(name.encode(), client.encode(), client)
        replies: Replies = [(client, b"")]
        if self.replica.holding:
            self.replica.hold_back(replies, 1)
        else:
            self.released.append(client)
        self.pairing.end_turn()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, and nothing is to be done later."""
        return (self.asked, self.dialling, self.register_asked, self.timer_ms) == (
            None, False, None, None
        )  # fmt: skip

    def says(self, text: str) -> bool:
        """Whether that was logged."""
        return any(text in line for line in self.logged)


class Duo:
    """Two nodes, P and B. ``paired`` makes them a pair; ``carry`` carries what lies on the link."""

    def __init__(self, *, register: bool = False, **settings: Any) -> None:
        self.register = register
        self.view = View(1, "", ())  # of the register: vacant
        shared = {"has_register": register, **settings}
        self.primary = World("P", first_primary=True, **shared)
        self.backup = World("B", now_ms=90_000, **shared)
        self.to_primary: ScriptedLink | None = None  # the backup's end
        self.to_backup: ScriptedLink | None = None

    def cas(self, view: View) -> tuple[Cas, View]:
        """The register's own rule."""
        if view.epoch == self.view.epoch + 1:
            self.view = view
            return Cas.WON, view
        return Cas.LOST, self.view

    def register_answers(self, world: World) -> None:
        """The register answers what ``world`` has asked it."""
        asked = world.register_asked
        world.sleep(1)
        if asked == GET:
            world.register_says(None, self.view)
        else:
            assert isinstance(asked, View)
            world.register_says(*self.cas(asked))

    def begin(self) -> None:
        """P begins the first history, in epoch 1, or 2 with a register."""
        world = self.primary
        world.pairing.start()
        if self.register:
            self.register_answers(world)
        world.answer(blank("B"))
        if self.register:
            self.register_answers(world)
            world.answer(blank("B"))  # it looks around
        world.pairing.end_turn()

    def seek(self) -> None:
        """B looks for a primary, finds P, and dials it."""
        world = self.backup
        if world.is_idle:
            world.pairing.proceed()
        for _ in range(9):
            if world.register_asked is not None:
                self.register_answers(world)
            elif world.asked is not None:
                world.answer(self.primary.replica.answer())
            elif world.dialling:
                return
            else:
                world.timer()
        raise AssertionError(f"it never dials: {world.logged}")

    def dial(self) -> str:
        """The dial succeeds: what P says to the JOIN, as an error's text."""
        self.to_primary = ScriptedLink(self.backup, "P")
        self.backup.dialling = False
        self.backup.pairing.on_dialled(self.to_primary)
        if self.to_primary.closed:
            return "closed"
        (words,) = self.to_primary.take()
        self.to_backup = ScriptedLink(self.primary, "B")
        refused = self.primary.pairing.join_request(joiner_of(words, self.to_backup))
        self.primary.pairing.end_turn()
        return refused

    def carry(self, rounds: int = 50) -> None:
        """Turns of both, and what each has written reaches the other, until all is quiet."""
        for _ in range(rounds):
            moved = [self.carry_to_backup(), self.carry_to_primary()]
            if not any(moved):
                return
        assert rounds < 50, "it never settles"

    def carry_to_backup(self) -> bool:
        """A turn of P; what it has written reaches B, in one turn of B."""
        self.primary.pairing.end_turn()
        assert self.to_backup is not None and self.to_primary is not None
        messages = self.to_backup.take()
        if messages:
            self.to_primary.last_heard_ms = self.backup.now_ms
            self.backup.pairing.on_messages(self.to_primary, messages)
        self.backup.pairing.end_turn()
        return bool(messages)

    def carry_to_primary(self) -> bool:
        """What B has written reaches P."""
        assert self.to_backup is not None and self.to_primary is not None
        messages = self.to_primary.take()
        if messages:
            self.to_backup.last_heard_ms = self.primary.now_ms
            self.primary.pairing.on_messages(self.to_backup, messages)
        return bool(messages)

    def join(self) -> None:
        """B joins, up to where its admission is decided."""
        self.seek()
        assert self.dial() == ""
        self.carry()

    def lose_link(self) -> None:
        """Both hear that it broke; what was on it is lost."""
        self.lose_link_of(self.primary)
        self.lose_link_of(self.backup)

    def lose_link_of(self, world: World) -> None:
        """One hears that it broke."""
        link = world.pairing.link
        assert link is not None
        world.pairing.on_link_lost(link, "it broke")


def joining(**settings: Any) -> Duo:
    """P serves, and B has asked to join it; with a register its admission is not decided."""
    duo = Duo(**settings)
    duo.begin()
    duo.backup.pairing.start()
    duo.join()
    return duo


def paired(**settings: Any) -> Duo:
    """P and B, a pair: in epoch 2, or 3 with a register."""
    duo = joining(**settings)
    if duo.register:
        duo.register_answers(duo.primary)
    duo.carry()
    assert duo.primary.replica.phase is Phase.MEMBER and duo.backup.replica.is_member
    assert duo.primary.pairing.mode == duo.backup.pairing.mode == "paired"
    for world, link in ((duo.primary, duo.to_backup), (duo.backup, duo.to_primary)):
        assert link is not None
        world.sleep(100)  # so that it may join again at once
        link.last_heard_ms = link.last_taken_ms = link.last_drained_ms = world.now_ms
        world.timer_ms = None
        world.questions.clear()
        world.proposals.clear()
        assert world.is_idle
    return duo


def joiner_of(words: list[bytes], connection: ScriptedLink) -> Joiner:
    """What PEER JOIN says."""
    incarnation, formerly, port, history = (word.decode() for word in words[3:7])
    point = Point(history, *map(int, words[7:10])) if history != "-" else None
    register, timeout_ms = words[10].decode(), int(words[11])
    return Joiner(connection, incarnation, formerly, int(port), point, register, timeout_ms)


def serving(name: str, epoch: int, *, since: int = 0) -> Answer:
    """A primary's answer."""
    return Answer(name, Standing.SERVING, False, View(epoch, name, (name,)), False, since)


def following(name: str, epoch: int, *, accepted: bool = False) -> Answer:
    """That of a node that has state and does not serve."""
    primary = "P" if name.startswith("B") else "B"
    return Answer(name, Standing.STATE, accepted, View(epoch, primary, (primary,)))


def blank(name: str) -> Answer:
    """That of a node that never heard of a history."""
    return Answer(name, Standing.BLANK, False, NO_VIEW)
