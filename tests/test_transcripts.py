"""Transcripts as specification: tests/scenarios/<a sentence>.txt.

A transcript is a list of blocks, each of them a command (or several), ``----``, and the effects. It
drives two replicas back to back (``harness/replicas.py``): P, which begins as primary, and B.

    nodes [min-backups]             two new nodes; P begins a history
    P lock CLIENT NAME REQID [PX MS] [WAIT MS] [OWNER OWNER]    requests, to the node named
    P unlock CLIENT NAME REQID
    P unlock-grant CLIENT NAME REQID TOKEN  (UNLOCK ... TOKEN)
    P undo CLIENT NAME REQID OLD-REQID      (UNLOCK ... REQUEST)
    P renew CLIENT NAME TOKEN MS
    P verify CLIENT NAME TOKEN
    P delete CLIENT NAME
    P inspect CLIENT NAME
    P put CLIENT NAME VALUE VERSION [REQID] [FENCE LOCK TOKEN]      (VPUT)
    P get CLIENT NAME                       (VGET)
    P expire-in CLIENT NAME MS              (PEXPIRE)
    P persist CLIENT NAME
    P hang up CLIENT                the client's connection is gone
    turn                            the primary's loop turn ends: its frame goes on the wire
    P turn                          the same on a node that is alone
    deliver [first]                 the backup reads all that lies on the wire, or one message
    ack                             the primary reads what the backup has sent
    settle                          turn, deliver, ack, until nothing is under way
    link [NAME]                     the other node asks to join, under a new name if there is one
    rejoin NAME                     the same, with the state that it has, as that incarnation
    lose link                       it breaks; what is on the wire is lost
    hand over                       the primary tells its backup to take over
    P go alone | promote | force | stand down NAME | step aside | stall | forget
    P sleep MS                      its next turn begins so much later
    P input is unread | read        whether the sockets are empty at the ends of its turns
    P due                           when the core wants its next turn to end
    P room ENTRIES                  so many may be appended until an ack comes
    P is proposed by NAME EPOCH     a peer proposes a view of itself alone
    P state                         what the node knows

One that begins with ``pair`` drives the whole core of two nodes that are a pair, P and B, and shows
what they ask each other and the view register (``harness/outside.py``):

    pair register | fail-stop
    P lock CLIENT NAME
    lose link                       both hear that it broke
    P hears ANSWER                  what comes of its question: gone, silent, or what the peer says
    register answers P              what P has asked is done, and it hears of it
    register loses its answer to P  it is done, and P hears nothing
    register is out of Ps reach     it is not done, and P hears nothing
    P waits                         until it wants to take the next step

Rewrite the effects with ``REWRITE_TRANSCRIPTS=1 pytest tests/test_transcripts.py``, and commit only
lines that you can explain.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.outside import GET, Duo, World, paired
from harness.replicas import Pair, SimNode, fields_of, messages_of, pack

from holdfast.server.core import stream
from holdfast.server.core.failover import NoAnswer
from holdfast.server.core.follower import Diverged, StaleStream
from holdfast.server.core.replica import Replica, Role
from holdfast.server.core.state import (
    COMMAND_OF,
    DELETE,
    END_AT,
    EPOCH,
    EXPIRE,
    FORGET,
    LOCK,
    LOCK_WITH,
    PUT,
    REFUSE,
    RENEW,
    SHORT,
    UNDO,
    UNLOCK,
    UNLOCK_GRANT,
)
from holdfast.server.core.view import Cas, View

REQUESTS = (
    "lock", "unlock", "unlock-grant", "undo", "renew", "verify", "delete", "inspect", "put", "get",
    "expire-in", "persist",
)  # fmt: skip
SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))
KINDS = {
    LOCK: "LOCK", LOCK_WITH: "LOCK", UNLOCK: "UNLOCK", UNLOCK_GRANT: "UNLOCK GRANT", UNDO: "UNDO",
    REFUSE: "REFUSE", RENEW: "RENEW", EXPIRE: "EXPIRE", DELETE: "DELETE", PUT: "PUT",
    END_AT: "END AT", EPOCH: "EPOCH", FORGET: "FORGET",
}  # fmt: skip


def entries_of(payload: bytes) -> str:
    """The entries of a batch, for people."""
    kinds, *fields = fields_of(payload)
    field = iter(fields)
    shown = list[str]()
    for kind in kinds:
        words = [next(field) for _ in range(2 if kind in SHORT else 4)]
        shown.append(" ".join([KINDS[kind], *(word.decode() for word in words if word)]))
    return ", ".join(shown)


def message_for_people(message: list[bytes]) -> str:
    kind, *fields = message
    match kind:
        case stream.ENTRIES:
            header = stream.decode_entries(fields[0])
            return (
                f"ENTRIES epoch {header.stream_epoch} frame {header.frame} "
                f"offset {header.last_offset}: {entries_of(fields[1])}"
            )
        case stream.BEAT | stream.ACK:
            epoch, frame, offset = map(int, fields)
            name = "BEAT" if kind == stream.BEAT else "ACK"
            return f"{name} epoch {epoch} frame {frame} offset {offset}"
        case stream.VIEW:
            words = [field.decode() for field in fields]
            return "VIEW epoch {} frame {}: primary {}, members {}".format(*words)
        case stream.BEGIN:
            return f"BEGIN epoch {int(fields[0])}: a snapshot of {int(fields[-1])} items"
        case stream.ITEMS:
            return "ITEMS"
        case stream.END:
            return f"END epoch {int(fields[0])} frame {int(fields[1])}"
        case stream.CONTINUE:
            return f"CONTINUE epoch {int(fields[0])} frame {int(fields[1])}"
        case stream.HANDOVER:
            return f"HANDOVER epoch {int(fields[0])} frame {int(fields[1])}"
        case other:
            return f"{other!r} {fields}"


def mode_of(replica: Replica, mode: str) -> str:
    """What a node is, in a few words."""
    backup = f", the backup is {replica.phase.name}" if replica.backup else ""
    if replica.role is not Role.PRIMARY:
        backup = ""
    return f"{replica.role.value}, {mode}{backup}, epoch {replica.view.epoch}"


class Runner:
    """Runs the commands of one transcript; each gives its effects, as lines."""

    def __init__(self) -> None:
        self.pair = Pair()
        self.effects: list[str] = []
        self.modes = dict[str, str]()
        self.forget_what_was_seen()

    @property
    def nodes(self) -> dict[str, SimNode]:
        return {node.name: node for node in (self.pair.primary, self.pair.backup)}

    def run(self, command: str) -> list[str]:
        self.effects = []
        words = command.split()
        try:
            if words[0] in self.nodes:
                self.on_node(self.nodes[words[0]], words[1:])
            else:
                getattr(self, "do_" + words[0])(*words[1:])
        except AssertionError:
            self.effects.append("assertion: that must never be asked")
        except (Diverged, StaleStream) as error:
            self.effects.append(f"{type(error).__name__}: {error}")
        for node in self.nodes.values():
            self.observe(node)
        return self.effects or ["(nothing)"]

    def observe(self, node: SimNode) -> None:
        """Say what has changed on a node."""
        seen = self.seen.setdefault(node.name, [0, 0])
        self.effects += [f"{client} <- {text}" for client, text in node.said[seen[0] :]]
        self.effects += [f"{client} is closed without a word" for client in node.closed[seen[1] :]]
        self.seen[node.name] = [len(node.said), len(node.closed)]
        mode = mode_of(node.replica, node.replica.mode)
        if self.modes.get(node.name) != mode:
            self.modes[node.name] = mode
            self.effects.append(f"{node.name} is {mode}")

    def forget_what_was_seen(self) -> None:
        self.seen = dict[str, list[int]]()
        self.modes = {}

    # -- the pair --------------------------------------------------------------------------------

    def do_nodes(self, option: str = "") -> None:
        self.pair = Pair(min_backups=int(option == "min-backups"))
        self.pair.turn()
        self.forget_what_was_seen()

    def do_turn(self) -> None:
        before = len(self.pair.to_backup.lying)
        self.pair.turn()
        for message in messages_of(self.pair.to_backup.lying[before:]):
            self.effects.append(
                f"{self.pair.primary.name} -> {self.pair.backup.name}: "
                + message_for_people(message)
            )

    def do_deliver(self, first: str = "") -> None:
        before = len(self.pair.to_primary.lying)
        message = messages_of(self.pair.to_backup.lying)[0] if first else []
        self.pair.deliver(len(pack(*message)) if first else None)
        for message in messages_of(self.pair.to_primary.lying[before:]):
            self.effects.append(
                f"{self.pair.backup.name} -> {self.pair.primary.name}: "
                + message_for_people(message)
            )

    def do_ack(self) -> None:
        self.pair.ack()

    def do_settle(self) -> None:
        self.pair.settle()

    def do_link(self, name: str = "") -> None:
        pair = self.pair
        if pair.backup.replica.role is Role.PRIMARY:
            pair.primary, pair.backup = pair.backup, pair.primary
        if name:
            pair.backup = SimNode(name, now_ms=90_000)
        pair.link()
        self.show_wire()

    def do_rejoin(self, incarnation: str) -> None:
        pair = self.pair
        if pair.backup.replica.role is Role.PRIMARY:
            pair.primary, pair.backup = pair.backup, pair.primary
        pair.link(incarnation)
        self.show_wire()

    def show_wire(self) -> None:
        names = f"{self.pair.primary.name} -> {self.pair.backup.name}: "
        messages = messages_of(self.pair.to_backup.lying)
        self.effects += [names + message_for_people(message) for message in messages]

    def do_lose(self, _link: str) -> None:
        self.pair.lose_link()

    def do_hand(self, _over: str) -> None:
        self.pair.to_backup.lying += self.pair.primary.replica.hand_over()
        self.show_wire()

    # -- one node --------------------------------------------------------------------------------

    def on_node(self, node: SimNode, words: list[str]) -> None:
        match words:
            case [request, *arguments] if request in REQUESTS:
                getattr(node, request.replace("-", "_"))(*arguments)
            case ["hang", "up", client]:
                node.hang_up(client)
            case ["turn"]:
                assert node.end_turn() == b"", "it is alone"
            case ["input", "is", state]:
                node.input_is_read = {"read": True, "unread": False}[state]
            case ["due"]:
                due_ms = node.due_in_ms
                said = "nothing is due" if due_ms is None else f"something is due in {due_ms} ms"
                self.effects.append(said)
            case ["room", entries]:
                node.replica.offset_limit = node.replica.state.offset + int(entries)
            case ["go", "alone"]:
                node.go_alone()
            case ["promote"]:
                node.promote()
            case ["force"]:
                node.replica.promote_by_force(0)
            case ["stand", "down", name]:
                node.stand_down(name)
            case ["step", "aside"]:
                (other,) = (each for each in self.nodes.values() if each is not node)
                waiting, abandoned = node.replica.step_aside(other.replica.view)
                self.effects += [f"{client} is turned away" for client in waiting]
                node.close(abandoned)
            case ["stall"]:
                node.replica.note_stall()
            case ["forget"]:
                node.replica.forget()
            case ["sleep", milliseconds]:
                node.sleep(int(milliseconds))
                node.close(node.replica.drop_overdue())
            case ["is", "proposed", "by", name, epoch]:
                answer = node.replica.answer(name, int(epoch))
                accepted = "accepted" if answer.accepted else "not accepted"
                self.effects.append(f"{accepted}; {answer.standing.value} in {answer.view}")
            case ["state"]:
                self.show(node)
            case _:
                raise ValueError(words)

    def show(self, node: SimNode) -> None:
        replica = node.replica
        state = replica.state
        self.effects.append(
            f"epoch {replica.view.epoch}, members {','.join(replica.view.members) or '-'}, "
            f"offset {state.offset}, {len(replica.held_back)} turns held back"
            + (", stalled" if replica.stalled else "")
        )
        for name, (token, reqid, owner, at_ms, expires_at_ms) in sorted(state.locks.held.items()):
            self.effects.append(
                f"{name.decode()}: token {token}, request {reqid.decode()}, "
                f"owner {owner.decode()}, since {at_ms}"
                + (f", until {expires_at_ms}" if expires_at_ms else "")
            )
        for name, (created, value, version, ends_at_ms) in sorted(state.registers.held.items()):
            self.effects.append(
                f"{name.decode()}: {value.decode()}, version {version}, created at {created}"
                + (f", until {ends_at_ms}" if ends_at_ms else "")
            )
        queue = replica.executor.queue
        for name in sorted(queue.lines):
            line = [
                f"{waiter.reqid.decode()} of {' and '.join(waiter.tickets) or 'nobody'}"
                for waiter in queue.line(name)
            ]
            self.effects.append(f"{name.decode()}: in line {', '.join(line)}")


class DuoRunner:
    """The same for transcripts that begin with ``pair``."""

    def __init__(self) -> None:
        self.duo = Duo()
        self.effects: list[str] = []
        self.seen: dict[str, list[int]] = {}
        self.modes: dict[str, str] = {}

    @property
    def worlds(self) -> dict[str, World]:
        return {world.name: world for world in (self.duo.primary, self.duo.backup)}

    def run(self, command: str) -> list[str]:
        self.effects = []
        self.do(command.split())
        for world in self.worlds.values():
            self.observe(world)
        return self.effects or ["(nothing)"]

    def do(self, words: list[str]) -> None:
        match words:
            case ["pair", kind]:
                self.duo = paired(register=kind == "register")
                self.seen, self.modes = {}, {}
            case [name, "lock", client, lock]:
                self.worlds[name].lock(client, lock)
            case ["lose", "link"]:
                self.duo.lose_link()
            case [name, "hears", what]:
                self.hear(self.worlds[name], what)
            case [name, "waits"]:
                self.worlds[name].timer()
            case ["register", "answers", name]:
                self.duo.register_answers(self.worlds[name])
                self.effects.append(f"the register has {words_for(self.duo.view)}")
            case ["register", "loses", "its", "answer", "to", name]:
                asked = self.worlds[name].register_asked
                if isinstance(asked, View):
                    self.duo.cas(asked)
                self.effects.append(f"the register has {words_for(self.duo.view)}")
                self.worlds[name].register_says(Cas.UNDECIDED)
            case ["register", "is", "out", "of", whose, "reach"]:
                self.worlds[whose[0]].register_says(Cas.UNDECIDED)
            case _:
                raise ValueError(words)

    def hear(self, world: World, what: str) -> None:
        (peer,) = (each for each in self.worlds.values() if each is not world)
        match what:
            case "gone":
                world.answer(NoAnswer.GONE)
            case "silent":
                world.answer(NoAnswer.SILENT)
            case name if name == peer.name:
                assert world.asked is not None
                verb, *rest = world.asked
                if verb == "PROPOSE":
                    world.answer(peer.pairing.answer_proposal(str(rest[0]), int(rest[1])))
                else:
                    world.answer(peer.pairing.answer_ask())
            case _:
                raise ValueError(what)

    def observe(self, world: World) -> None:
        """Say what is new about a node."""
        counts = [len(world.questions), len(world.released), len(world.dropped)]
        asked, released, dropped = self.seen.get(world.name, [0, 0, 0])
        self.seen[world.name] = counts
        self.effects += [f"{client} <- its reply" for client in world.released[released:]]
        self.effects += [f"{client} is closed without a word" for client in world.dropped[dropped:]]
        mode = mode_of(world.replica, world.pairing.mode)
        if self.modes.get(world.name) != mode:
            self.modes[world.name] = mode
            self.effects.append(f"{world.name} is {mode}")
        for words in world.questions[asked:]:
            text = " ".join(str(word) for word in words)
            self.effects.append(f"{world.name} asks its peer: {text}")
        if world.dialling and not self.modes.get(world.name + " dials"):
            self.effects.append(f"{world.name} dials its peer, to join it")
        self.modes[world.name + " dials"] = "yes" if world.dialling else ""
        wanted = world.register_asked
        text = "-" if wanted is None else "get" if wanted == GET else f"cas {words_for(wanted)}"
        if self.modes.get(world.name + " wants", "-") != text and wanted is not None:
            self.effects.append(f"{world.name} asks the register: {text}")
        self.modes[world.name + " wants"] = text


def words_for(view: View | str) -> str:
    """A view, for people."""
    assert isinstance(view, View)
    return f"epoch {view.epoch}, primary {view.primary}, members {','.join(view.members)}"


Block = tuple[list[str], list[str]]
"""The lines before ``----``, comments included, and the effects after it."""


def blocks_of(text: str) -> Iterator[Block]:
    for block in text.strip("\n").split("\n\n"):
        lines = block.splitlines()
        if "----" in lines:
            at = lines.index("----")
            yield lines[:at], lines[at + 1 :]
        else:
            yield lines, []


def played(text: str) -> str:
    """The transcript with the effects that its commands have now."""
    is_of_duo = any(line.startswith("pair ") for line in text.splitlines())
    runner = DuoRunner() if is_of_duo else Runner()
    shown = list[str]()
    for before, _ in blocks_of(text):
        commands = [line for line in before if line and not line.startswith("#")]
        effects = [effect for command in commands for effect in runner.run(command)]
        if len(effects) > 1:
            effects = [effect for effect in effects if effect != "(nothing)"] or ["(nothing)"]
        shown.append("\n".join([*before, *(["----", *effects] if commands else [])]))
    return "\n\n".join(shown) + "\n"


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    text = path.read_text()
    now = played(text)
    if os.environ.get("REWRITE_TRANSCRIPTS"):
        path.write_text(now)
    else:
        assert now == text


def test_there_are_transcripts_and_each_asserts_something() -> None:
    assert len(SCENARIOS) >= 10
    for path in SCENARIOS:
        blocks = list(blocks_of(path.read_text()))
        assert sum(effects != [] for _, effects in blocks) >= 3, path
        assert path.read_text().startswith("# "), "it says first what it is about"
        assert "assertion:" not in path.read_text() or "never" in path.read_text()


def test_every_kind_of_request_has_a_name_here() -> None:
    assert set(COMMAND_OF) <= set(KINDS)
