"""A simulated client: the real decisions of Clerk (``compat/attempts.py``, ``compat/leases.py``),
and around them, as generators, what ``endpoints.py`` and ``clerk.py`` do with sockets and threads.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, NamedTuple

from holdfast.compat.attempts import (
    GONE_CODE,
    NOT_EXECUTED_CODES,
    REFUSAL_CODES,
    SENDING_MIN_US,
    Aftermath,
    Call,
    Client,
    ClientPool,
    Fate,
    Finish,
    Kind,
    Refusal,
    Request,
    Seen,
    Send,
    Verdict,
    aftermath,
    ping_request,
    undo_request,
)
from holdfast.compat.leases import Acquisition, Grant, Wanted, renewal_attempt_us
from holdfast.compat.registers import Put

from .network import End, Host, Network
from .records import (
    is_of_register,
    late_copy,
    lock_operation,
    outcome_of,
    register_operations,
)
from .scheduler import Scheduler
from .tasks import CLOSED, TIME, Interrupted, Steps, Task, Wire
from .trace import Trace

CONNECT_TIMEOUT_US = 300_000
READ_TIMEOUT_US = 600_000
UNDO_US = 20_000_000


class Err(Exception):
    """What a node answered, or what happened to the connection."""


_READ_KINDS = {Kind.VERIFY: "verify", Kind.INSPECT: "read"}


class Plan(NamedTuple):
    """What a client does when its request waits in line."""

    interrupt_us: int | None = None


class SimClient:
    """A process with one Clerk in it."""

    def __init__(
        self,
        name: str,
        host: Host,
        nodes: list[Host],
        scheduler: Scheduler,
        network: Network,
        trace: Trace,
        rng: random.Random,
    ) -> None:
        self.name = name
        self.host = host
        self.clock = host.clock
        self.scheduler = scheduler
        self.network = network
        self.trace = trace
        self.rng = rng
        self.nodes = nodes
        self.alive = True
        self.paused = False
        self.deferred: list[tuple[Task, int, Any]] = []
        self.running: Task | None = None
        self.tasks: dict[Task, None] = {}
        self.late_copy_share = 0.0
        self.is_opaque = False  # its request ids are not @client:n
        self._primary = 0
        self._idle: list[list[Wire]] = [[] for _ in nodes]
        self._wires: dict[Wire, None] = {}
        self._heard_us = [0 for _ in nodes]
        self._ids = 0
        self._pool = ClientPool(self._new_client_id)
        self._open: dict[Call, tuple[int, int]] = {}  # calls under way: true time, place in line

    def _new_client_id(self) -> str:
        self._ids += 1
        return f"{self.name}.{self._ids}"

    def opaque_id(self) -> bytes:
        """A request id that is not @client:n."""
        self._ids += 1
        return f"{self.name}-{self._ids}".encode()

    # -- life ------------------------------------------------------------------------------------

    def spawn(self, steps: Steps) -> Task:
        """Start a thread."""
        task = Task(self, steps)
        task.start()
        return task

    def spawn_later(self, delay_us: int, steps: Steps) -> None:
        """Start a thread after a while."""
        task = Task(self, steps)
        self.scheduler.after(delay_us, task.start)

    def pause(self) -> None:
        """SIGSTOP."""
        self.paused = True

    def go_on(self) -> None:
        """SIGCONT."""
        if not self.paused:
            return
        self.paused = False
        deferred, self.deferred = self.deferred, []
        for task, waits, event in deferred:
            task._on_event(waits, event)

    def die(self, *, silent: bool) -> None:
        """The process is killed, or its machine."""
        self.alive = False
        for wire in self._wires:
            if wire.end is not None:
                self.network.leave(wire.end, orderly=True, silent=silent)
        self._wires.clear()
        for call in self._open:
            self._record(call, None)
        self._open.clear()
        for task in list(self.tasks):
            task.end()

    # -- one attempt -----------------------------------------------------------------------------

    def _attempt(self, call: Call, node: int, plan: Plan) -> Steps:
        """As ``Endpoint.attempt``; returns Seen."""
        wire = self._quiet_idle(node)
        if wire is None:
            left_us = min(call.timeout_us(CONNECT_TIMEOUT_US), call.deadline_us - self.clock.us())
            if left_us <= 0:
                return Seen(Fate.NOT_SENT, error=Err("the deadline has passed"))
            wire = yield from self._dial(node, left_us)
            if isinstance(wire, str):
                return Seen(Fate.NOT_SENT, error=Err(wire))
        if call.deadline_us - self.clock.us() < SENDING_MIN_US or wire.closed:
            self._drop(wire)
            return Seen(Fate.NOT_SENT, error=Err("no time left, or the connection is closed"))
        wire.task = self.running
        try:
            seen = yield from self._exchange(call, node, wire, plan)
        except Interrupted:
            self._drop(wire)
            raise
        if seen.fate is Fate.LOST:
            self._drop(wire)
        else:
            self._heard_us[node] = self.clock.us()
            wire.task = None
            self._idle[node].append(wire)
        return seen

    def _dial(self, node: int, left_us: int) -> Steps:
        """A Wire, or why not."""
        wire = Wire(self.running)
        task = self.running
        assert task is not None

        def done(end: End | None, why: str) -> None:
            if not self.alive or wire.closed:
                if end is not None:
                    self.network.close(end)
                return
            wire.end = end
            if end is not None:
                self._wires[wire] = None
            task.wake((wire, why))

        self.network.dial(self.host, self.nodes[node], wire, self.clock.true_us(left_us), done)
        event = yield left_us
        if event is TIME or wire.end is None:
            wire.closed = True
            if wire.end is not None:
                self._drop(wire)
            return "silent" if event is TIME else str(event[1])
        return wire

    def _exchange(self, call: Call, node: int, wire: Wire, plan: Plan) -> Steps:
        sent_us = self.clock.us()
        if call not in self._open and call.request.kind is not Kind.PING:
            self._open[call] = (self.scheduler.now_us, 0)
        words = call.sending(sent_us)
        assert wire.end is not None
        self.network.send(wire.end, (words, call.sendings))
        reply_by_us = call.reply_by_us(sent_us, READ_TIMEOUT_US)
        waits = call.wait_until_us > sent_us
        while True:
            now_us = self.clock.us()
            left_us = reply_by_us - now_us
            if left_us <= 0:
                return Seen(Fate.LOST, error=Err("no reply in time"))
            if waits:
                left_us = min(left_us, READ_TIMEOUT_US)
                if plan.interrupt_us is not None:
                    left_us = min(left_us, plan.interrupt_us)
            event = yield left_us
            if event is TIME:
                if plan.interrupt_us is not None:
                    raise Interrupted
                if waits and not (yield from self._is_there(call, node, wire)):
                    return Seen(Fate.LOST, error=Err("the node is silent"))
                continue
            if event[0] is not wire:
                continue
            return self._seen(event[1])

    def _is_there(self, call: Call, node: int, wire: Wire) -> Steps:
        """As ``Endpoint._is_there``: ask a silent node on another connection."""
        if self.clock.us() - self._heard_us[node] >= READ_TIMEOUT_US:
            ping = self._call(ping_request(), CONNECT_TIMEOUT_US + READ_TIMEOUT_US, nodes=1)
            ping.start()
            early: list[Any] = []
            steps = self._attempt(ping, node, Plan())
            event = None
            while True:  # the reply that is waited for may come meanwhile
                try:
                    delay_us = steps.send(event)
                except StopIteration as result:
                    seen: Seen = result.value
                    break
                event = yield delay_us
                while isinstance(event, tuple) and event[0] is wire:
                    early.append(event)
                    event = yield delay_us
            if early:
                self.scheduler.after(1, wire.on_data, wire.end, early[0][1])
                return True
            if seen.fate in (Fate.NOT_SENT, Fate.LOST):
                return False
        call.node_is_there(self.clock.us())
        return True

    def _seen(self, data: Any) -> Seen:
        if data is CLOSED:
            return Seen(Fate.LOST, error=Err("connection closed"))
        if isinstance(data, (int, list)):
            return Seen(Fate.ANSWERED, value=data)
        code, _, version = data.partition(" ")
        if code in REFUSAL_CODES:
            return Seen(Fate.ANSWERED, value=Refusal(code, int(version or 0)))
        if data in NOT_EXECUTED_CODES:
            return Seen(Fate.NOT_EXECUTED, error=Err(data))
        if data == GONE_CODE:
            return Seen(Fate.GONE, error=Err(data))
        return Seen(Fate.REJECTED, error=Err(data))

    def _quiet_idle(self, node: int) -> Wire | None:
        idle = self._idle[node]
        while idle:
            wire = idle.pop()
            if not wire.closed:
                return wire
            self._drop(wire)
        return None

    def _drop(self, wire: Wire) -> None:
        wire.closed = True
        wire.task = None
        self._wires.pop(wire, None)
        if wire.end is not None:
            self.network.close(wire.end)

    # -- one call --------------------------------------------------------------------------------

    def _call(self, request: Request, deadline_us: int, *, nodes: int = 0, **options: Any) -> Call:
        return Call(
            request,
            node_count=nodes or len(self.nodes),
            first_node=0 if nodes else self._primary,
            jitter=self.rng.random,
            deadline_us=self.clock.us() + deadline_us,
            **options,
        )

    def perform(self, call: Call, plan: Plan = Plan()) -> Steps:  # noqa: B008 (immutable)
        """As ``Nodes.perform``; returns Finish."""
        step = call.start()
        try:
            while isinstance(step, Send):
                if step.delay_us:
                    yield from self.sleep(step.delay_us)
                seen = yield from self._attempt(call, step.node, plan)
                if call.request.kind is Kind.INSPECT and seen.fate is Fate.ANSWERED:
                    seen = seen._replace(value=[b"token", seen.value])
                step = call.observe(seen, self.clock.us())
        except Interrupted:
            step = call.interrupt()
            self.trace.count("call interrupted")
        if step.node is not None:
            self._primary = step.node
        if call in self._open:
            self._record(call, step)
            del self._open[call]
            if step.verdict in (Verdict.ANSWERED, Verdict.INDETERMINATE):
                # (Else none was ever taken in, and all have arrived.)
                self._copy_late(call.request, step)
        return step

    def sleep(self, local_us: int) -> Steps:
        """Nothing for so long."""
        until_us = self.clock.us() + local_us
        while self.clock.us() < until_us:
            yield until_us - self.clock.us()

    def _record(self, call: Call, finish: Finish | None) -> None:
        """The operation as its caller saw it."""
        request = call.request
        verdict = Verdict.INDETERMINATE if finish is None else finish.verdict
        if verdict is Verdict.REJECTED:
            self._judge_rejection(call, finish)
        if verdict in (Verdict.UNAVAILABLE, Verdict.REJECTED):
            self.trace.count(f"client told: {verdict.value}")
            return
        if is_of_register(request):
            self._record_of_register(call, finish)
            return
        answer, return_us = None, None
        if verdict is Verdict.ANSWERED and finish is not None:
            value = finish.value
            answer = value[1] if isinstance(value, list) else value
            return_us = self.scheduler.now_us
        elif request.kind in _READ_KINDS:
            return
        else:
            self.trace.count("indeterminate")
        self.trace.history.operations.append(
            lock_operation(self.name, request, self._open[call][0], return_us, answer)
        )

    def _record_of_register(self, call: Call, finish: Finish | None) -> None:
        call_us, now_us = self._open[call][0], self.scheduler.now_us
        operations = register_operations(self.name, call, finish, call_us, now_us)
        self.trace.history.registers += operations
        for operation in operations[:1]:
            self.trace.count(outcome_of(operation))

    def _judge_rejection(self, call: Call, finish: Finish | None) -> None:
        error = str(finish.error) if finish is not None else ""
        if error not in _FAIR_REJECTIONS:
            self.trace.problem(f"{self.name} was told {error} to {call.request.words}")

    def _copy_late(self, request: Request, finish: Finish) -> None:
        """The network may have kept a copy of what was sent, and deliver it long after. (Not of
        what changes registers without Clerk: of that nothing is promised.)"""
        if is_of_register(request) and request.kind is not Kind.PUT:
            return
        if self.rng.random() < self.late_copy_share:
            delay_us = int(3_000_000 * self.rng.random() ** 3)
            self.trace.count("late copy sent")
            self.trace.history.registers += late_copy(
                self.name, request, finish, self.scheduler.now_us
            )
            self.scheduler.after(delay_us, self._send_copy, request.words, self.rng.random() < 0.5)

    def _send_copy(self, words: tuple[bytes, ...], to_first: bool) -> None:
        target = self.nodes[0 if to_first else -1]
        wire = Wire(None)

        def done(end: End | None, why: str) -> None:
            if end is not None:
                self.network.send(end, (words, 2))
                self.scheduler.after(2_000_000, self.network.close, end)

        self.network.dial(self.host, target, wire, CONNECT_TIMEOUT_US, done)

    # -- Clerk -----------------------------------------------------------------------------------

    def borrow(self) -> Client:
        """A client id."""
        return self._pool.borrow()

    def acquire(self, wanted: Wanted, deadline_us: int, plan: Plan = Plan()) -> Steps:  # noqa: B008
        """As ``_Session.acquire``; returns Grant or None."""
        while True:
            client = self.borrow()
            request = self._request(wanted, client)
            until_us = wanted.wait_of_one_request(self.clock.us())
            wait_us = max(0, until_us - self.clock.us())
            call = self._call(request, wait_us + deadline_us, wait_until_us=until_us)
            acquisition = Acquisition(call, wanted.lease_ms)
            finish = yield from self.perform(call, plan)
            if acquisition.take(finish, self.clock.us()):
                renewal = self._call(
                    acquisition.renewal(), acquisition.renewal_left_us(deadline_us)
                )
                answer = yield from self.perform(renewal)
                acquisition.confirm(renewal, answer, self.clock.us())
                if acquisition.came_late:
                    self.trace.count("grant came too late")
            self.settle(client, request, acquisition.finish)
            if acquisition.grant is not None:
                return acquisition.grant
            if not wanted.may_go_on_after(acquisition, self.clock.us()):
                return None

    def _request(self, wanted: Wanted, client: Client) -> Request:
        request = wanted.request(client)
        if not self.is_opaque:
            return request
        reqid = self.opaque_id()
        words = (*request.words[:2], reqid, *request.words[3:])
        return request.__class__(request.kind, request.name, reqid, words)

    def settle(self, client: Client, request: Request, finish: Finish) -> None:
        """As ``SessionBase.settle``: what becomes of the client id."""
        fate = aftermath(request.kind, finish)
        if fate is Aftermath.REUSE:
            self._pool.give_back(client)
            return
        client.lent = False
        if fate is Aftermath.UNDO:
            self.trace.count("undo")
            loan = Client(client.client_id, client.last_n)
            self.spawn_later(1, self._undo(loan, undo_request(loan, request)))
        else:
            self.trace.count("client id retired")

    def _undo(self, client: Client, undo: Request) -> Steps:
        finish = yield from self.perform(self._call(undo, UNDO_US))
        if aftermath(undo.kind, finish) is Aftermath.REUSE:
            self._pool.give_back(client)
        else:
            self.trace.count("undo given up")

    def change(self, request: Request, client: Client, deadline_us: int) -> Steps:
        """As ``_Session.change``; returns Finish."""
        finish = yield from self.perform(self._call(request, deadline_us))
        self.settle(client, request, finish)
        return finish

    def read(self, request: Request, deadline_us: int) -> Steps:
        """As ``_Session.ask``; returns Finish."""
        return (yield from self.perform(self._call(request, deadline_us)))

    def put(self, put: Put, once: bool, deadline_us: int) -> Steps:
        """As ``_Session.put``; returns Finish."""
        if not once:
            return (yield from self.read(put.request(), deadline_us))
        loan = self.borrow()
        request = put.request(loan)
        if self.is_opaque:
            reqid = self.opaque_id()
            words = (*request.words[:4], reqid, *request.words[5:])
            request = replace(request, request_id=reqid, words=words)
        return (yield from self.change(request, loan, deadline_us))

    def renew(self, request: Request, lease_ms: int, deadline_us: int) -> Steps:
        """As ``_Session.renew``; returns (Finish, when it was sent)."""
        call = self._call(request, deadline_us, attempt_us=renewal_attempt_us(lease_ms))
        finish = yield from self.perform(call)
        return finish, call.first_sent_us


_FAIR_REJECTIONS = ("QUARANTINE",)


def belief_end(grant: Grant, clock: Any) -> int | None:
    """True time at which ``grant`` is trusted no more; None: never."""
    until_us = grant.trusted_until_us
    return None if until_us is None else clock.true_instant_us(until_us)
