"""The core against a model, whatever clients, time and failures do (I1, I2, I4, I5, I7 to I9, I11).

Two nodes whose clocks drift apart serve requests with and without leases and waits, and puts with
and without request ids and fences on the same few names, while turns are late, the backup lags, is
lost, takes over without what it had not received, and both are lost. A ``Model`` that knows no
replication, no cache and no schedule does the same, one thing after the other. Both must give every
request the same answer, and hold the same locks and registers, after each step.

HOLDFAST_TEST_ROUNDS=n runs n histories (a failure prints how to repeat it).
"""

from __future__ import annotations

import copy
import math
import os
from dataclasses import dataclass, field
from typing import TypeVar

from harness.replicas import WALL_CLOCK_US, Pair, SimNode, Wire
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from holdfast.server.core.replica import Phase
from holdfast.server.core.snapshot import digest
from holdfast.server.core.state import EXPIRE, LOCK_WITH, REFUSE

ROUNDS = int(os.environ.get("HOLDFAST_TEST_ROUNDS", "300"))
CLOCK_DRIFT_MAX = 0.01
GRACE_MS = 2_000
ON_TIME_MS = 10  # a turn may be so late
FOR_EVER = 1 << 62
REQUEST_US = 20  # no node executes a request in less
NOT_EXECUTED = {"-ERR", "-REQUESTGONE", "-NOREPLICAS", "-WRONGTYPE"}  # and so not remembered

assert (1 - 2 * CLOCK_DRIFT_MAX) / (1 - CLOCK_DRIFT_MAX) < 1 / (1 + CLOCK_DRIFT_MAX), (
    "what the slowest clock takes for a lease x (1 - 2 x drift) is over before the fastest clock "
    "has counted the lease: a holder that trusts so much never overlaps the next one (I8)"
)


# -- the model ------------------------------------------------------------------------------------


Request = tuple[str, str, str]
"""Command (L, U, P), name, request id."""

Answer = TypeVar("Answer", int, str)


@dataclass
class Holder:
    token: int
    reqid: str
    ends_ms: int  # state time
    safe_until_us: float  # real time until which its lease must not end


@dataclass
class Cell:
    """A register."""

    value: str
    version: int
    ends_ms: int = FOR_EVER
    safe_until_us: float = 0


@dataclass
class Wait:
    reqid: str
    lease_ms: int
    until_ms: int
    connections: list[str]
    gone_ms: int = 0


@dataclass
class Model:
    """A lock server as its clients know it. Whoever drives it sets the clocks."""

    offset: int  # counts what happened: tokens come from it
    held: dict[str, Holder] = field(default_factory=dict)
    cells: dict[str, Cell] = field(default_factory=dict)  # in the order of their creation
    lines: dict[str, list[Wait]] = field(default_factory=dict)
    answers: dict[Request, int | str] = field(default_factory=dict)  # the first of each
    last: dict[str, int] = field(default_factory=dict)  # number executed, of each client
    freed: dict[str, None] = field(default_factory=dict)  # released while nothing may be granted
    told: dict[str, str] = field(default_factory=dict)  # connection -> answer
    turn_ms = now_ms = judged_ms = 0  # state time: of the turn, now, and up to which things end
    real_us = 0
    may_grant = True

    def lock(self, who: str, name: str, reqid: str, lease_ms: int, wait_ms: int) -> None:
        line = self.lines.setdefault(name, [])
        for wait in line:
            if wait.reqid == reqid:
                wait.connections.append(who)
                return self.serve(name) if name not in self.held else None
        refused = self.known("L", name, reqid) or self.is_cell(name)
        if refused is None and not self.may_grant:
            refused = "-NOREPLICAS"
        if refused is not None:
            self.told[who] = refused
            return None
        self.end_earlier_wait(reqid)
        if name in self.freed and name not in self.held:
            self.serve(name)
        self.expire(name)
        if name in self.held and wait_ms:
            line.append(Wait(reqid, lease_ms, self.now_ms + 1 + wait_ms, [who]))
        else:
            self.told[who] = str(self.grant(name, reqid, lease_ms))
        return None

    def unlock(self, who: str, name: str, reqid: str, token: int = 0, undone: str = "") -> None:
        refused = self.known("U", name, reqid)
        if refused is None and not undone:
            refused = self.is_cell(name)
        if refused is not None:
            self.told[who] = refused
            return
        self.end_earlier_wait(reqid)
        for wait in [wait for wait in self.lines.get(name, ()) if wait.reqid == undone]:
            self.refuse(name, wait)
        expired = self.expire(name, serve=False)
        holder = self.held.get(name)
        ends = holder is not None and token in (0, holder.token) and undone in ("", holder.reqid)
        if ends:
            del self.held[name]
        if undone and undone[0] != "@":
            self.answers.setdefault(("L", name, undone), 0)
        self.told[who] = str(self.remember("U", name, reqid, int(ends)))
        if ends or expired:
            self.serve(name)

    def renew(self, who: str, name: str, token: int, lease_ms: int) -> None:
        holder = self.held.get(name)
        if holder is not None and holder.ends_ms <= self.judged_ms - ON_TIME_MS:
            self.expire(name)  # up to then the renewal may have been there in time
            self.told[who] = "0"
            return
        is_current = holder is not None and holder.token == token
        wrong = None if holder is not None else self.is_cell(name)
        self.told[who] = wrong or str(int(is_current))
        if is_current and self.now_ms + 1 + lease_ms > holder.ends_ms:
            self.offset += 1
            holder.ends_ms = self.now_ms + 1 + lease_ms
            holder.safe_until_us = max(holder.safe_until_us, self.safe_until_us(lease_ms))

    def delete(self, who: str, name: str) -> None:
        if name in self.cells:
            there = self.is_cell(name) is not None
            if there:
                self.offset += 1
                del self.cells[name]
            self.told[who] = str(int(there))
            return
        expired = self.expire(name, serve=False)
        self.told[who] = str(int(name in self.held))
        if self.held.pop(name, None) is not None:
            self.offset += 1
            expired = True
        if expired:
            self.serve(name)

    def verify(self, who: str, name: str, token: int) -> None:
        self.expire(name)
        is_current = name in self.held and self.held[name].token == token
        self.told[who] = self.is_cell(name) or str(int(is_current))

    def put(
        self, who: str, name: str, reqid: str, value: str, version: int, fence: tuple[str, int]
    ) -> None:
        refused = self.known("P", name, reqid) if reqid else None
        if refused is None and not self.may_grant:
            refused = "-NOREPLICAS"
        if refused is not None:
            self.told[who] = refused
            return
        for each in (name, fence[0]):
            self.is_cell(each)
            self.expire(each)
        if name in self.held or self.lines.get(name):
            self.told[who] = "-WRONGTYPE"
            return
        answer = self.put_answer(name, version, fence)
        if answer[0] != "-":
            cell = self.cells.setdefault(name, Cell(value, 0))
            cell.value, cell.version = value, version + 1
        if reqid:
            self.end_earlier_wait(reqid)
            self.remember("P", name, reqid, answer)
        elif answer[0] != "-":
            self.offset += 1
        self.told[who] = answer

    def put_answer(self, name: str, version: int, fence: tuple[str, int]) -> str:
        lock, token = fence
        if lock and (lock not in self.held or self.held[lock].token != token):
            return "-STALETOKEN"
        cell = self.cells.get(name)
        if cell is None:
            return "-NOKEY" if version else "1"
        return str(version + 1) if cell.version == version else f"-VERSION {cell.version}"

    def get(self, who: str, name: str) -> None:
        if not self.is_cell(name):
            self.expire(name)
        cell = self.cells.get(name)
        none = "-WRONGTYPE" if name in self.held else "-NOKEY"
        self.told[who] = none if cell is None else f"{cell.value} version {cell.version}"

    def expire_in(self, who: str, name: str, length_ms: int) -> None:
        """0 ms: at once; FOR_EVER: never."""
        if not self.is_cell(name):
            self.expire(name)
        cell = self.cells.get(name)
        if cell is None or (length_ms == cell.ends_ms == FOR_EVER):
            self.told[who] = "-WRONGTYPE" if name in self.held else "0"
            return
        self.told[who] = "1"
        self.offset += 1
        if length_ms == 0:
            del self.cells[name]
        elif length_ms == FOR_EVER:
            cell.ends_ms = FOR_EVER
        else:
            cell.ends_ms = self.now_ms + 1 + length_ms
            cell.safe_until_us = self.safe_until_us(length_ms)

    def hang_up(self, who: str) -> None:
        for line in self.lines.values():
            for wait in line:
                if who in wait.connections:
                    wait.connections.remove(who)
                    wait.gone_ms = self.turn_ms

    def end_turn(self, appended: list[tuple[int, str, str]]) -> None:
        """What is due is done, in whatever order it was: all of it, and nothing else."""
        for kind, name, reqid in appended:
            if kind == EXPIRE and name in self.cells:
                assert not self.is_cell(name), f"the time of the register {name} has not come"
            elif kind == EXPIRE:
                assert self.expire(name, serve=False), f"the lease of {name} has not passed"
                if not self.may_grant:
                    self.serve(name)
            elif kind == LOCK_WITH:
                self.serve(name)
                assert self.held[name].reqid == reqid, "another one was the first in line (I9)"
            else:
                assert kind == REFUSE, kind
                (wait,) = [wait for wait in self.lines[name] if wait.reqid == reqid]
                assert wait.until_ms <= self.judged_ms, "its wait is not over"
                self.refuse(name, wait)
        for line in self.lines.values():
            for wait in list(line):
                if not wait.connections and wait.gone_ms + GRACE_MS <= self.judged_ms:
                    line.remove(wait)
        if self.may_grant:
            self.freed.clear()
        assert self.first_due_ms() > self.judged_ms
        for name, line in self.lines.items():
            free = name not in self.held and name not in self.freed
            assert not free or not any(wait.connections for wait in line), "somebody waits for it"

    def first_end_ms(self) -> int:
        return min((cell.ends_ms for cell in self.cells.values()), default=FOR_EVER)

    def first_due_ms(self) -> int:
        waits = [wait for line in self.lines.values() for wait in line]
        return min(
            [holder.ends_ms for holder in self.held.values()]
            + [cell.ends_ms for cell in self.cells.values()]
            + [wait.until_ms for wait in waits]
            + [wait.gone_ms + GRACE_MS for wait in waits if not wait.connections],
            default=FOR_EVER,
        )

    # What happens inside:

    def known(self, command: str, name: str, reqid: str) -> str | None:
        """The first answer, or why it is not executed; None: it is a new request."""
        answer = self.answers.get((command, name, reqid))
        client, at, number = reqid.rpartition(":")
        if not at:
            return None if answer is None else str(answer)
        if int(number) == self.last.get(client):
            return "-ERR" if answer is None else str(answer)
        waiting = [w.reqid for line in self.lines.values() for w in line if client in w.reqid]
        if reqid in waiting:
            return "-ERR"
        last = max([self.last.get(client, -1), *(int(r.rpartition(":")[2]) for r in waiting)])
        return "-REQUESTGONE" if int(number) < last else None

    def remember(self, command: str, name: str, reqid: str, answer: Answer) -> Answer:
        self.offset += 1
        self.answers[command, name, reqid] = answer
        client, at, number = reqid.rpartition(":")
        if at:
            self.last[client] = int(number)
        return answer

    def grant(self, name: str, reqid: str, lease_ms: int) -> int:
        token = 0 if name in self.held else self.offset + 1
        if token:
            ends_ms = self.now_ms + 1 + lease_ms if lease_ms else FOR_EVER
            self.held[name] = Holder(token, reqid, ends_ms, self.safe_until_us(lease_ms))
        return self.remember("L", name, reqid, token)

    def safe_until_us(self, lease_ms: int) -> float:
        return self.real_us + 1_000 * lease_ms / (1 + CLOCK_DRIFT_MAX)

    def is_cell(self, name: str) -> str | None:
        """What is said of a register to who asks for a lock; one whose time has come ends."""
        cell = self.cells.get(name)
        if cell is None:
            return None
        if cell.ends_ms > self.judged_ms:
            return "-WRONGTYPE"
        assert self.real_us >= cell.safe_until_us, f"the register {name} ends early (I8)"
        del self.cells[name]
        self.offset += 1
        return None

    def expire(self, name: str, *, serve: bool = True) -> bool:
        holder = self.held.get(name)
        if holder is None or holder.ends_ms > self.judged_ms:
            return False
        assert self.real_us >= holder.safe_until_us, f"the lease of {name} ends early (I8)"
        del self.held[name]
        self.offset += 1
        if serve:
            self.serve(name)
        return True

    def serve(self, name: str) -> None:
        if not self.may_grant:
            if self.lines.get(name):
                self.freed[name] = None
            return
        self.freed.pop(name, None)
        line = self.lines.get(name, [])
        first = next((wait for wait in line if wait.connections), None)
        if first is not None:
            line.remove(first)
            token = self.grant(name, first.reqid, first.lease_ms)
            self.told |= dict.fromkeys(first.connections, str(token))

    def end_earlier_wait(self, reqid: str) -> None:
        client, at, _ = reqid.rpartition(":")
        for name, line in self.lines.items():
            for wait in [wait for wait in line if at and wait.reqid.startswith(client + ":")]:
                self.refuse(name, wait)

    def refuse(self, name: str, wait: Wait) -> None:
        self.lines[name].remove(wait)
        self.remember("L", name, wait.reqid, 0)
        self.told |= dict.fromkeys(wait.connections, "0")


# -- the nodes ------------------------------------------------------------------------------------


class Node(SimNode):
    """A node with a clock of its own, which notes what it has decided to tell."""

    def __init__(self, name: str, *, since_ms: int, rate: float, min_backups: int = 0) -> None:
        self.told: dict[str, str] = {}
        self.since_ms, self.rate = since_ms, rate
        super().__init__(name, now_ms=since_ms, min_backups=min_backups)
        self.appended: list[tuple[int, str, str]] = []  # kind, name and request id
        append = self.replica.append

        def noting(kind: int, name: bytes, reqid: bytes, *more: bytes) -> int:
            self.appended.append((kind, name.decode(), reqid.decode()))
            return append(kind, name, reqid, *more)

        self.replica.append = noting  # type: ignore[method-assign]

    def look_at_the_clock(self, real_us: int) -> None:
        self.now_ms = self.since_ms + int(real_us * self.rate / 1_000)

    def begin_turn(self) -> None:
        self.judged_ms = self.replica.executor._horizon_ms  # in the turn that is over
        super().begin_turn()

    def _tell(self, client: str, answer: object) -> None:
        before = len(self.said) + len(self._held)
        super()._tell(client, answer)
        if len(self.said) + len(self._held) > before:
            self.told[client] = (self._held or self.said)[-1][1]

    def _answer(self, client: str, text: str) -> None:
        self.told[client] = text
        super()._answer(client, text)


class Watched(Pair):
    """Tells the machine of each end of a turn, whoever asked for it."""

    def __init__(self, machine: LocksAgainstModel) -> None:
        super().__init__()
        self.machine = machine

    def turn(self) -> None:
        self.machine.before_the_end_of_turn()
        super().turn()
        self.machine.after_the_end_of_turn()

    def deliver(self, bytes_max: int | None = None) -> None:
        assert isinstance(self.backup, Node)
        self.backup.look_at_the_clock(self.machine.real_us)
        super().deliver(bytes_max)


def is_token(text: str) -> bool:
    """No version gets that high."""
    return text.isdigit() and int(text) >= WALL_CLOCK_US


names = st.sampled_from("aabbr")
names_of_registers = st.sampled_from("abrrrr")
ends = st.sampled_from([0, 5, 40, 40, 300, 300, 2_500, 2_500, FOR_EVER])
rates = st.sampled_from([1 - CLOCK_DRIFT_MAX, 1.0, 1 + CLOCK_DRIFT_MAX])
leases = st.sampled_from([0, 0, 5, 40, 300, 2_500])
waits = st.sampled_from([0, 30, 500, 6_000, 6_000])
pauses = st.sampled_from([1, 4, 9, 15, 45, 350, 1_100, 2_100, 6_500])
kinds = st.integers(0, 4)
malformed_ids = st.sampled_from(["@", "@x:", "@x:01", "@:1", "@x:-1", "@x:9z"])


class LocksAgainstModel(RuleBasedStateMachine):
    """A turn of the primary goes on until ``a_turn_ends``, or time passes."""

    @initialize(rate=rates, other=rates, min_backups=st.sampled_from([0, 0, 0, 1]))
    def begin(self, rate: float, other: float, min_backups: int) -> None:
        self.real_us = 0
        self.rates = [rate, other]
        self.min_backups = min_backups
        self.connections = 0
        self.failed_at = 0  # as many connections had there been then
        self.nodes = 0
        self.numbers = {"@x": 1, "@y": 1}
        self.tokens: list[int] = []  # all that were ever given, lost ones too
        self.asked: dict[str, Request] = {}
        self.begin_history()
        self.a_backup_joins()

    # -- machinery -------------------------------------------------------------------------------

    def new_node(self) -> Node:
        self.nodes += 1
        node = Node(
            f"N{self.nodes}",
            since_ms=[1_000, 70_000][self.nodes % 2],
            rate=self.rates[self.nodes % 2],
            min_backups=self.min_backups,
        )
        node.look_at_the_clock(self.real_us)
        node.begin_turn()
        return node

    def begin_history(self) -> None:
        self.failed_at = self.connections
        self.batch_end = 0
        self.pair = Watched(self)
        self.pair.primary = self.node = self.new_node()
        wall_us = WALL_CLOCK_US + self.real_us
        self.node.replica.begin_history("another", wall_us)
        self.begun = (self.real_us, self.node.replica.state_time_ms())
        self.model = Model(wall_us)
        self.kept: dict[int, Model] = {}  # as it was at an offset
        self.node.end_turn()

    def sync(self) -> None:
        """The model's clocks show what the node's do."""
        replica, model = self.node.replica, self.model
        model.turn_ms = replica.state_time_ms()
        model.now_ms = replica.real_time_ms()
        model.judged_ms = replica.executor._horizon_ms
        model.real_us = self.real_us
        model.may_grant = replica.no_grants is None
        since_us, since_ms = self.begun
        most_ms = (self.real_us - since_us) * (1 + CLOCK_DRIFT_MAX) / 1_000 + 1
        assert model.now_ms - since_ms <= most_ms, "state time is ahead of real time (I8)"
        assert model.judged_ms <= model.now_ms

    def is_time(self) -> bool:
        """For a failure: after a while without one."""
        return self.connections > self.failed_at + 8

    def connection(self) -> str:
        self.connections += 1
        self.real_us += REQUEST_US
        self.node.look_at_the_clock(self.real_us)
        self.sync()
        return f"c{self.connections}"

    def before_the_end_of_turn(self) -> None:
        self.node.look_at_the_clock(self.real_us)  # a grant made now counts its lease from now on
        self.sync()
        replica = self.node.replica
        self.is_on_time = not replica.executor._late_until_ms
        self.node.appended.clear()
        # What is due goes out in batches, one at a time.
        acked = replica.outbound.acked_offset if replica.outbound else 0
        self.batch_is_under_way = replica.phase >= Phase.REQUIRED and acked < self.batch_end

    def after_the_end_of_turn(self) -> None:
        model = self.model
        model.judged_ms = self.node.judged_ms
        if self.is_on_time or self.node.input_is_read:
            assert model.judged_ms == model.turn_ms
        if not self.batch_is_under_way:
            before = model.offset
            model.end_turn(self.node.appended)
            self.batch_end = model.offset if model.offset != before else self.batch_end
        held, cells = copy.deepcopy((model.held, model.cells))
        self.kept[model.offset] = Model(
            0, held, cells, answers={**model.answers}, last={**model.last}
        )
        self.sync()

    def settle(self) -> None:
        self.node.input_is_read = True
        for _ in range(40):
            self.pair.turn()
            is_quiet = not self.pair.to_backup.lying and not self.pair.to_primary.lying
            if is_quiet and self.node.cut is None:
                break
            self.pair.deliver()
            self.pair.ack()
        replica = self.node.replica
        if replica.phase is not Phase.NONE:
            assert replica.phase is Phase.MEMBER and not replica.held_back
            self.pair.assert_agreed()
        self.check_what_was_said(self.node)

    def check_what_was_said(self, node: Node) -> None:
        """Each answer that left is the only one to its request, on either node (I2, I4)."""
        for connection, text in node.said:
            asked = self.asked.get(connection)
            if asked is not None and text.split()[0] not in NOT_EXECUTED:
                assert str(self.model.answers.get(asked)) == text, (connection, asked, text)

    # -- requests --------------------------------------------------------------------------------

    def lock_as(self, name: str, reqid: str, lease_ms: int, wait_ms: int) -> None:
        who = self.connection()
        options = ["PX", str(lease_ms)] if lease_ms else []
        options += ["WAIT", str(wait_ms)] if wait_ms else []
        self.asked[who] = ("L", name, reqid)
        self.node.lock(who, name, reqid, *options)
        self.model.lock(who, name, reqid, lease_ms, wait_ms)

    def unlock_as(self, name: str, reqid: str, token: int = 0, undone: str = "") -> None:
        who = self.connection()
        self.asked[who] = ("U", name, reqid)
        if token:
            self.node.unlock_grant(who, name, reqid, str(token))
        elif undone:
            self.node.undo(who, name, reqid, undone)
        else:
            self.node.unlock(who, name, reqid)
        self.model.unlock(who, name, reqid, token, undone)

    def put_as(self, name: str, reqid: str, data: st.DataObject) -> None:
        """Mostly the current version, so that many are written; and mostly without a fence."""
        cell = self.model.cells.get(name)
        version = data.draw(st.sampled_from([cell.version if cell else 0] * 3 + [0, 1, 2]))
        lock = data.draw(st.sampled_from(["", "", "", "a", *(2 * list(self.model.held))]))
        fence = (lock, 0)
        if lock:
            holder = self.model.held.get(lock)
            current = holder.token if holder else self.some_token(data)
            fence = (lock, data.draw(st.sampled_from([current, current, self.some_token(data)])))
        who = self.connection()
        options = [reqid] if reqid else []
        options += ["FENCE", lock, str(fence[1])] if lock else []
        if reqid:
            self.asked[who] = ("P", name, reqid)
        value = f"value {who}"
        self.node.put(who, name, value, str(version), *options)
        self.model.put(who, name, reqid, value, version, fence)

    def number(self, client: str, step: int) -> str:
        self.numbers[client] = max(self.numbers[client] + step, 1)
        return f"{client}:{self.numbers[client]}"

    def some_token(self, data: st.DataObject) -> int:
        holders = [holder.token for holder in self.model.held.values()]
        return data.draw(st.sampled_from([*(2 * holders), *self.tokens[-2:], 7]))

    def request_id(self, kind: int, data: st.DataObject) -> str:
        """A new one, one that may have been used, or the next (or a late copy) of a client."""
        if kind == 0:
            return data.draw(st.sampled_from([f"r{n}" for n in range(12)]))
        if kind == 1:
            client = data.draw(st.sampled_from(list(self.numbers)))
            return self.number(client, data.draw(st.sampled_from([-1, 0, 1, 1, 1, 1, 2])))
        return f"s{self.connections}"

    @rule(name=names, kind=kinds, lease_ms=leases, wait_ms=waits, data=st.data())
    def lock(self, name: str, kind: int, lease_ms: int, wait_ms: int, data: st.DataObject) -> None:
        self.lock_as(name, self.request_id(kind, data), lease_ms, wait_ms)

    lock_again = lock_once_more = lock  # so much more often

    @precondition(lambda self: self.asked)
    @rule(lease_ms=leases, wait_ms=waits, data=st.data())
    def a_request_is_sent_again(self, lease_ms: int, wait_ms: int, data: st.DataObject) -> None:
        waiting = [self.asked[who] for who in self.node.waiting if who in self.asked]
        sent = waiting + list(self.asked.values())[-6:]
        command, name, reqid = data.draw(st.sampled_from(sent))
        if command == "L":
            self.lock_as(name, reqid, lease_ms, wait_ms)
        elif command == "U":
            self.unlock_as(name, reqid)
        else:
            self.put_as(name, reqid, data)

    @rule(name=names_of_registers, kind=kinds, data=st.data())
    def put(self, name: str, kind: int, data: st.DataObject) -> None:
        self.put_as(name, self.request_id(kind, data), data)

    put_again = put

    @rule(name=names_of_registers, data=st.data())
    def put_without_a_request_id(self, name: str, data: st.DataObject) -> None:
        self.put_as(name, "", data)

    @precondition(lambda self: self.model.held)
    @rule(step=st.sampled_from([-1, 0, 1]), data=st.data())
    def a_client_puts_while_it_waits(self, step: int, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(list(self.numbers)))
        self.lock_as(next(iter(self.model.held)), self.number(client, 1), 0, 6_000)
        self.put_as(data.draw(names_of_registers), self.number(client, step), data)

    @precondition(lambda self: self.node.waiting)
    @rule(kind=kinds, data=st.data())
    def a_name_whose_line_is_gone_is_put_to(self, kind: int, data: st.DataObject) -> None:
        """And one of them comes back."""
        name, line = next((name, line) for name, line in self.model.lines.items() if line)
        self.sync()
        for gone in [connection for wait in line for connection in wait.connections]:
            self.node.hang_up(gone)
            self.model.hang_up(gone)
        who = self.connection()
        self.node.delete(who, name)
        self.model.delete(who, name)
        self.put_as(name, self.request_id(kind, data), data)
        if line:
            self.lock_as(name, line[0].reqid, 0, 6_000)

    @rule(name=names_of_registers)
    def get(self, name: str) -> None:
        who = self.connection()
        self.node.get(who, name)
        self.model.get(who, name)

    @rule(name=names_of_registers, length_ms=ends)
    def a_register_is_given_an_end(self, name: str, length_ms: int) -> None:
        self.end_in(name, length_ms)

    @precondition(lambda self: self.model.cells)
    @rule(length_ms=ends.filter(lambda length_ms: 0 < length_ms < FOR_EVER), data=st.data())
    def a_register_that_there_is_is_given_an_end(self, length_ms: int, data: st.DataObject) -> None:
        self.end_in(data.draw(st.sampled_from(list(self.model.cells))), length_ms)

    @precondition(lambda self: self.model.first_end_ms() < FOR_EVER)
    @rule(short_ms=st.sampled_from([1, 0, 0]), kind=kinds, data=st.data())
    def a_register_is_asked_for_when_it_is_due(
        self, short_ms: int, kind: int, data: st.DataObject
    ) -> None:
        """Or in the millisecond before."""
        self.pair.turn()
        self.pass_time_until(self.model.first_end_ms() - short_ms)
        name = min(self.model.cells, key=lambda name: self.model.cells[name].ends_ms, default="r")
        match data.draw(st.integers(0, 4)):
            case 0:
                self.get(name)
            case 1:
                self.delete_or_verify(name, data)
            case 2:
                self.lock_as(name, self.request_id(kind, data), 0, 0)
            case 3:
                self.unlock_as(name, self.request_id(kind, data))
            case _:
                self.put_as(name, self.request_id(kind, data), data)

    def end_in(self, name: str, length_ms: int) -> None:
        who = self.connection()
        if length_ms == FOR_EVER:
            self.node.persist(who, name)
        else:
            self.node.expire_in(who, name, str(length_ms))
        self.model.expire_in(who, name, length_ms)

    @precondition(lambda self: self.model.cells)
    @rule(data=st.data())
    def a_register_is_deleted(self, data: st.DataObject) -> None:
        name, who = data.draw(st.sampled_from(list(self.model.cells))), self.connection()
        self.node.delete(who, name)
        self.model.delete(who, name)

    @rule(name=names, kind=kinds, data=st.data())
    def unlock(self, name: str, kind: int, data: st.DataObject) -> None:
        self.unlock_as(name, self.request_id(kind, data))

    @rule(name=names, kind=kinds, data=st.data())
    def unlock_a_grant(self, name: str, kind: int, data: st.DataObject) -> None:
        self.unlock_as(name, self.request_id(kind, data), token=self.some_token(data))

    @rule(name=names, kind=kinds, data=st.data())
    def undo(self, name: str, kind: int, data: st.DataObject) -> None:
        if kind == 1:
            client = data.draw(st.sampled_from(list(self.numbers)))
            undone = self.number(client, 0)
            self.unlock_as(name, self.number(client, 1), undone=undone)
        else:
            line = self.model.lines.get(name, [])
            known = [wait.reqid for wait in line if wait.reqid[0] != "@"] + ["r0", "r1"]
            undone = data.draw(st.sampled_from(known))
            self.unlock_as(name, self.request_id(kind, data), undone=undone)

    @rule(name=names, lease_ms=leases.filter(bool), data=st.data())
    def renew(self, name: str, lease_ms: int, data: st.DataObject) -> None:
        who, token = self.connection(), self.some_token(data)
        self.node.renew(who, name, str(token), str(lease_ms))
        self.model.renew(who, name, token, lease_ms)

    @rule(name=names, data=st.data())
    def delete_or_verify(self, name: str, data: st.DataObject) -> None:
        who, token = self.connection(), self.some_token(data)
        if data.draw(st.booleans()):
            self.node.delete(who, name)
            self.model.delete(who, name)
        else:
            self.node.verify(who, name, str(token))
            self.model.verify(who, name, token)

    @precondition(lambda self: self.connections % 8 == 7)
    @rule(name=names, reqid=malformed_ids, wait_ms=waits)
    def malformed(self, name: str, reqid: str, wait_ms: int) -> None:
        before = digest(self.node.replica.state)
        who = self.connection()
        self.node.lock(who, name, reqid, "WAIT", str(wait_ms))
        assert self.node.told.pop(who) == "-ERR"
        assert digest(self.node.replica.state) == before, "it changes nothing (I11)"

    @precondition(lambda self: self.node.waiting)
    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.node.waiting))
        self.sync()
        self.node.hang_up(gone)
        self.model.hang_up(gone)

    # -- time ------------------------------------------------------------------------------------

    @rule(pause_ms=pauses)
    def time_passes(self, pause_ms: int) -> None:
        self.pair.turn()
        self.pass_time(pause_ms)

    @rule(short_ms=st.sampled_from([1, 0, 0]))
    def time_passes_until_something_is_due(self, short_ms: int) -> None:
        """Or until the millisecond before."""
        self.pair.turn()
        self.pass_time_until(self.model.first_due_ms() - short_ms)

    def pass_time_until(self, then_ms: int) -> None:
        node = self.node
        node.look_at_the_clock(self.real_us)
        self.sync()
        left_ms = then_ms - self.model.now_ms
        if 0 < left_ms < 10_000:
            then_us = math.ceil((node.now_ms + left_ms - node.since_ms) * 1_000 / node.rate)
            self.pass_time((then_us - self.real_us) / 1_000)

    @rule(pause_ms=st.sampled_from([15, 350, 6_500]))
    def a_turn_is_late_and_its_input_not_read_yet(self, pause_ms: int) -> None:
        self.node.input_is_read = True
        self.pair.turn()
        self.node.input_is_read = False
        judged_ms = self.model.judged_ms
        self.pass_time(pause_ms)
        if judged_ms < self.model.first_due_ms() < self.model.turn_ms - ON_TIME_MS:
            assert self.model.judged_ms == judged_ms, "a renewal may be in the input (X5)"

    @rule(pause_ms=st.integers(1, 30))
    def the_node_is_busy(self, pause_ms: int) -> None:
        self.real_us += 1_000 * pause_ms

    @rule()
    def all_input_is_read(self) -> None:
        self.node.input_is_read = True

    @rule()
    def a_turn_ends(self) -> None:
        self.pair.turn()

    def pass_time(self, pause_ms: float) -> None:
        self.real_us += round(1_000 * pause_ms)
        for node in (self.node, self.pair.backup):
            if isinstance(node, Node):
                node.look_at_the_clock(self.real_us)
                node.begin_turn()
        self.sync()

    # -- the backup ------------------------------------------------------------------------------

    @rule()
    def the_backup_reads(self) -> None:
        if self.node.replica.phase is not Phase.NONE:
            self.pair.deliver()

    @rule()
    def acks_arrive(self) -> None:
        self.pair.ack()

    @rule()
    def all_settles(self) -> None:
        self.settle()

    @precondition(lambda self: self.node.replica.phase is Phase.NONE)
    @rule()
    def a_backup_joins(self) -> None:
        self.pair.backup = self.new_node()
        self.pair.link()
        self.settle()

    @precondition(lambda self: self.node.replica.phase is Phase.MEMBER and self.is_time())
    @rule()
    def the_backup_is_lost(self) -> None:
        self.failed_at = self.connections
        self.pair.turn()
        self.pair.lose_link()
        self.node.go_alone()

    @precondition(lambda self: self.node.replica.phase is Phase.MEMBER and self.is_time())
    @rule(pause_ms=st.sampled_from([300, 900, 5_000]), wall_is_behind=st.booleans())
    def the_primary_is_lost_and_the_backup_takes_over(
        self, pause_ms: int, wall_is_behind: bool
    ) -> None:
        # What was not acknowledged is lost.
        self.failed_at = self.connections
        self.node, old = self.pair.backup, self.node
        self.pair.primary, self.pair.backup = self.node, old
        self.pair.to_backup, self.pair.to_primary = Wire(), Wire()
        replica = self.node.replica
        self.model = self.kept[replica.state.offset]
        self.check_what_was_said(old)
        self.real_us += 1_000 * pause_ms
        self.node.look_at_the_clock(self.real_us)
        self.node.begin_turn()
        wall_us = WALL_CLOCK_US + (0 if wall_is_behind else self.real_us)
        replica.promote(replica.view.alone(replica.incarnation), replica.view, wall_us)
        self.model.offset = replica.state.offset
        self.kept = {}
        self.node.end_turn()  # the leases that it took over are scheduled now
        self.sync()

    @precondition(lambda self: self.connections > 20 and self.is_time())
    @rule()
    def both_are_lost_and_a_new_history_begins(self) -> None:
        self.real_us += 1_000
        self.begin_history()
        self.asked = {}

    # -- after each step -------------------------------------------------------------------------

    @invariant()
    def the_answers_agree(self) -> None:
        told = dict(self.node.told)
        for connections, answer in self.node.replica.executor.answered:  # in this turn
            told |= dict.fromkeys(connections, str(answer))
        expected = self.model.told
        assert told == expected, (
            {who: text for who, text in told.items() if expected.get(who) != text},
            {who: text for who, text in expected.items() if told.get(who) != text},
        )

    @invariant()
    def the_locks_agree(self) -> None:
        state = self.node.replica.state
        assert state.offset == self.model.offset
        held = {
            name.decode(): (token, reqid.decode(), ends_ms or FOR_EVER)
            for name, (token, reqid, _, _, ends_ms) in state.locks.held.items()
        }
        assert held == {n: (h.token, h.reqid, h.ends_ms) for n, h in self.model.held.items()}
        assert state.locks.leases == sum(ends_ms != FOR_EVER for _, _, ends_ms in held.values())

    @invariant()
    def the_registers_agree(self) -> None:
        registers = self.node.replica.state.registers
        cells = [
            (name.decode(), Cell(value.decode(), version, ends_ms or FOR_EVER))
            for name, (_, value, version, ends_ms) in registers.held.items()
        ]
        assert cells == [
            (name, Cell(cell.value, cell.version, cell.ends_ms))
            for name, cell in self.model.cells.items()
        ]
        assert registers.expiring == sum(cell.ends_ms != FOR_EVER for _, cell in cells)
        created = [register[0] for register in registers.held.values()]
        assert created == sorted(set(created)), "in the order in which they were created (V5)"
        for name in self.model.cells:
            assert name not in self.model.held and not self.model.lines.get(name), "both (G1)"

    @invariant()
    def the_lines_agree(self) -> None:
        queue = self.node.replica.executor.queue
        lines = {
            name.decode(): [(w.reqid.decode(), w.tickets) for w in queue.line(name)]
            for name in queue.lines
        }
        assert lines == {
            name: [(wait.reqid, wait.connections) for wait in line]
            for name, line in self.model.lines.items()
            if line
        }
        assert len(queue) == sum(map(len, lines.values()))

    @invariant()
    def tokens_rise(self) -> None:
        """Of all grants that were ever made, of any name and in any history (I7)."""
        new = sorted(
            {int(text) for text in self.node.told.values() if is_token(text)}
            | {holder.token for holder in self.model.held.values()}
        )
        last = self.tokens[-1] if self.tokens else 0
        fresh = [token for token in new if token not in self.tokens]
        assert all(token > last for token in fresh), (fresh, self.tokens)
        self.tokens += fresh


LocksAgainstModel.TestCase.settings = settings(
    max_examples=ROUNDS, stateful_step_count=75, deadline=None, print_blob=True
)
TestLocksAgainstModel = LocksAgainstModel.TestCase
