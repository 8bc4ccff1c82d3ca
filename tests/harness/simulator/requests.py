"""What a simulated node does with its clients' requests: words to the executor, answers to doors.

The part of ``server/commands/locks.py`` and ``server/connection.py`` that a simulated client can
see. A connection has one request under way at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from harness.checkers.history import Expiry, Granted, Joined, Left
from harness.checkers.registers import DELETE, RegisterOperation
from holdfast.server.core.executor import Executor
from holdfast.server.core.register_table import NO_KEY, STALE_TOKEN
from holdfast.server.core.replica import Role
from holdfast.server.core.reply_cache import Refused
from holdfast.server.core.state import LOCK, PUT, UNDO, UNLOCK, UNLOCK_GRANT

from .links import Door

if TYPE_CHECKING:
    from .node import Process

_AT_ONCE = (Refused.TRY_AGAIN, Refused.NO_REPLICAS, Refused.QUARANTINE)
_COMMANDS = {b"LOCK": LOCK, b"UNLOCK": UNLOCK, b"VPUT": PUT}


class Reply(NamedTuple):
    """What goes to a client: a number, or the text of an error; and what it was to. ``said`` is
    what really goes if that is not the number."""

    answer: int | str
    command: str = ""
    name: str = ""
    reqid: str = ""
    computed_us: int = 0
    offset: int = 0
    needed_frame: int = 0
    repeat: bool = False
    said: Any = None


Said = tuple[Door, Reply]


class Requests:
    """One process' clients."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._replica = process.replica
        self._trace = process.trace
        self._parked: list[tuple[Door, Any]] = []  # while the roles are being switched
        self._is_repeat = False
        self._noted = 0  # how many ends of waits of this turn are noted
        self._watch_expiry(process.replica.executor)

    def _watch_expiry(self, executor: Executor) -> None:
        """Note every EXPIRE that this node appends."""
        replica, process = self._replica, self._process
        end_lease = executor._end_lease
        expiries = self._trace.history.expiries
        assert expiries is not None

        def watched(name: bytes) -> None:
            token = replica.state.locks.held[name][0]
            expiries.append(Expiry(name.decode(), token, process.now_us))
            self._trace.count("expiry")
            end_lease(name)

        executor._end_lease = watched
        end_register = executor.registers._expire

        def watched_register(name: bytes) -> None:
            self._note_end_of_register(name.decode())
            end_register(name)

        executor.registers._expire = watched_register

    def _note_end_of_register(self, key: str) -> None:
        """Its time has come, says this node. (Which may be lost with it.)"""
        now_us, trace = self._process.now_us, self._trace
        node = self._replica.incarnation
        trace.count("register expired")
        trace.history.registers.append(RegisterOperation(node, DELETE, key, now_us, None, None))
        if key not in trace.ends_us or now_us < trace.ends_us[key]:
            trace.problem(f"I8: {node} ends the register {key} early: {trace.ends_us.get(key)}")

    # -- requests --------------------------------------------------------------------------------

    def begin_turn(self) -> None:
        """What was parked is executed now, unless it has to wait longer."""
        if self._parked and not self._process.pairing.switching:
            parked, self._parked = self._parked, []
            for door, data in parked:
                self.execute(door, data)

    def execute(self, door: Door, data: tuple[tuple[bytes, ...], int]) -> None:
        """Execute a request, or say why not."""
        if door.end.closed:
            return
        words, sending = data
        replica = self._replica
        if words[0] == b"PING":
            self._process.say((door, Reply(1)), at_once=True)
        elif replica.role is not Role.PRIMARY:
            code = "READONLY" if replica.role is Role.BACKUP and replica.synced else "LOADING"
            self._process.say((door, Reply(code)), at_once=True)
        elif self._process.pairing.switching:
            self._trace.count("request parked during a switch")
            self._parked.append((door, data))
        else:
            self._is_repeat = sending > 1 and self._note_repeat(words)
            getattr(self, "_" + words[0].decode().lower())(door, words)
            self._note_ends()

    def _note_repeat(self, words: tuple[bytes, ...]) -> bool:
        """Whether this was answered before."""
        command = _COMMANDS.get(words[0])
        if command is None:
            return False
        reqid = _options_of_put(words)[0] if command == PUT else words[2]
        if not reqid:
            return False
        known = self._replica.state.replies.recall(command, words[1], reqid)
        if isinstance(known, int):
            kind = "put: repeat" if command == PUT else "repeat"
            self._trace.count(f"{kind} answered from the cache")
        elif known is Refused.REQUEST_GONE:
            self._trace.count("late copy told REQUESTGONE")
        return isinstance(known, int)

    def _lock(self, door: Door, words: tuple[bytes, ...]) -> None:
        _, name, reqid = words[:3]
        options = dict(zip(words[3::2], words[4::2], strict=True))
        executor, state = self._replica.executor, self._replica.state
        waiter = executor.queue.find(name, reqid)
        stands = waiter is not None and not waiter.gone_at_ms
        before, door.waits_for = state.offset, (name, reqid)
        answer = executor.lock(
            name,
            reqid,
            door,
            options.get(b"OWNER", b""),
            int(options.get(b"PX", 0)),
            int(options.get(b"WAIT", 0)),
        )
        if answer is None:
            if stands:
                self._trace.count("repeat joins its wait")
            else:
                self._line(Joined, name, reqid)
            return
        door.waits_for = None
        self._note_ends()
        if isinstance(answer, int) and answer > before:
            self._line(Granted, name, reqid, answer)
        self._answer(door, "lock", name, reqid, answer)

    def _unlock(self, door: Door, words: tuple[bytes, ...]) -> None:
        _, name, reqid = words[:3]
        kind, argument = UNLOCK, b""
        if len(words) > 3:
            kind = UNLOCK_GRANT if words[3] == b"TOKEN" else UNDO
            argument = words[4]
        answer = self._replica.executor.unlock(kind, name, reqid, argument)
        self._answer(door, "unlock", name, reqid, answer)

    def _renew(self, door: Door, words: tuple[bytes, ...]) -> None:
        answer = self._replica.executor.renew(words[1], int(words[2]), int(words[4]))
        self._answer(door, "renew", words[1], b"", answer)

    def _verify(self, door: Door, words: tuple[bytes, ...]) -> None:
        grant = self._replica.executor.look(words[1])
        if not isinstance(grant, Refused):
            grant = int(grant is not None and grant[0] == int(words[2]))
        self._answer(door, "verify", words[1], b"", grant)

    def _inspect(self, door: Door, words: tuple[bytes, ...]) -> None:
        grant = self._replica.executor.look(words[1])
        if not isinstance(grant, Refused):
            grant = 0 if grant is None else grant[0]
        self._answer(door, "read", words[1], b"", grant)

    def _vget(self, door: Door, words: tuple[bytes, ...]) -> None:
        found = self._replica.executor.registers.look(words[1])
        if isinstance(found, tuple):
            self._answer(door, "vget", words[1], b"", found[2], [found[1], found[2]])
        else:
            self._answer(door, "vget", words[1], b"", 0 if found is None else found, "NOKEY")

    def _vput(self, door: Door, words: tuple[bytes, ...]) -> None:
        _, key, value, version = words[:4]
        reqid, fence = _options_of_put(words)
        answer = self._replica.executor.registers.put(key, reqid, value, int(version), fence)
        if self._replica.state.registers.before_cut:
            self._trace.count("register changed while a snapshot is sent")
        self._answer(door, "vput", key, reqid, answer, _said_of_put(answer))

    def _pexpire(self, door: Door, words: tuple[bytes, ...]) -> None:
        answer = self._replica.executor.registers.end_in(words[1], int(words[2]))
        self._answer(door, "pexpire", words[1], b"", answer)

    def _del(self, door: Door, words: tuple[bytes, ...]) -> None:
        self._answer(door, "del", words[1], b"", self._replica.executor.delete(words[1]))

    def _answer(
        self,
        door: Door,
        command: str,
        name: bytes,
        reqid: bytes,
        answer: Any,
        said: Any = None,
    ) -> None:
        if isinstance(answer, Refused):
            code = answer.value.split()[0]
            self._trace.count(f"refused: {code}")
            self._process.say((door, Reply(code)), at_once=answer in _AT_ONCE)
            return
        process = self._process
        reply = Reply(
            answer,
            command,
            name.decode(),
            reqid.decode(),
            process.turn_us,
            self._replica.state.offset,
            repeat=self._is_repeat,
            said=said,
        )
        process.say((door, reply), at_once=False)

    # -- waiting ---------------------------------------------------------------------------------

    def tell_answered(self) -> None:
        """Those whose wait is over."""
        executor = self._replica.executor
        if not executor.answered:
            return
        self._note_ends()
        self._noted = 0
        answered, executor.answered = executor.answered, []
        for tickets, answer in answered:
            for door in tickets:
                assert door.waits_for is not None
                name, reqid = door.waits_for
                self._answer(door, "lock", name, reqid, answer)
                door.waits_for = None

    def _note_ends(self) -> None:
        """Waits that have ended, in the order in which they did."""
        answered = self._replica.executor.answered
        for tickets, answer in answered[self._noted :]:
            if tickets:
                name, reqid = tickets[0].waits_for
                self._note_end_of_wait(name, reqid, answer)
            elif answer:
                self._trace.problem(f"I9: token {answer} was granted to a connection that is gone")
        self._noted = len(answered)

    def _note_end_of_wait(self, name: bytes, reqid: bytes, answer: int) -> None:
        if answer:
            self._trace.count("waiter granted")
            self._line(Granted, name, reqid, answer)
        else:
            self._trace.count("wait ended without a grant")
            self._line(Left, name, reqid)

    def hang_up(self, door: Door) -> None:
        """A client's connection is gone."""
        replica = self._replica
        waited = door.waits_for
        if waited is None or replica.role is not Role.PRIMARY:
            return
        replica.executor.hang_up(door)
        waiter = replica.executor.queue.find(*waited)
        if waiter is not None and waiter.gone_at_ms:
            self._trace.count("waiter hung up")
            self._line(Left, *waited)

    def turn_away(self, doors: list[Door]) -> None:
        """They waited here; the other node serves now."""
        for door in doors:
            door.waits_for = None
            self._trace.count("waiter turned away")
            self._process.say((door, Reply("READONLY")), at_once=True)

    def _line(self, record: Any, name: bytes, reqid: bytes, *token: int) -> None:
        replica = self._replica
        self._trace.history.line.append(
            record(
                replica.incarnation,
                # Not the view's epoch: the line goes on when a backup joins or is lost.
                self._process.chronicle.reigns_since,
                name.decode(),
                reqid.decode(),
                *token,
                self._process.now_us,
            )
        )


def _options_of_put(words: tuple[bytes, ...]) -> tuple[bytes, bytes]:
    """Request id, and fence as the executor takes it."""
    options = words[4:]
    reqid, fence = (options[0], options[1:]) if len(options) in (1, 4) else (b"", options)
    return reqid, b"%b %b" % (fence[2], fence[1]) if fence else b""


def _said_of_put(answer: int | Refused) -> str | None:
    """What goes to the client instead of that number."""
    if isinstance(answer, Refused) or answer > 0:
        return None
    if answer == STALE_TOKEN:
        return "STALETOKEN"
    return "NOKEY" if answer == NO_KEY else f"VERSION {-answer}"
