"""What the clients of a run do: take locks, hold, renew, give back, and misbehave now and then.
(What they do with registers is in ``versioned.py``.)
"""

from __future__ import annotations

import random
from typing import Any

from harness.checkers.history import Belief
from holdfast.compat.attempts import (
    Request,
    Verdict,
    inspect_request,
    release_request,
    renew_request,
    verify_request,
)
from holdfast.compat.leases import Grant, Renewal, Wanted

from .client import Plan, SimClient, belief_end
from .network import Host, Network
from .options import Options
from .scheduler import Scheduler
from .tasks import Steps
from .trace import Trace
from .versioned import RegisterWork

DEADLINE_US = 4_000_000
PUBLIC = b"public"
"""The lock that anybody may release, by a bare UNLOCK: nobody believes to hold it."""


class Holding:
    """A grant in its client's hands: from when to when it acts as the holder."""

    def __init__(self, client: SimClient, name: bytes, grant: Grant) -> None:
        self.client = client
        self.name = name
        self.token = grant.token
        self.grant = grant
        self.from_us = client.scheduler.now_us
        self.is_over = False

    def renewed(self, grant: Grant) -> None:
        """It is trusted for longer, unless that had ended before: then it begins anew."""
        now_us = self.client.scheduler.now_us
        end_us = belief_end(self.grant, self.client.clock)
        if end_us is not None and end_us < now_us:
            self._record(end_us)
            self.from_us = now_us
        self.grant = grant

    def end(self) -> None:
        """From now on it does not act as the holder."""
        if self.is_over:
            return
        self.is_over = True
        now_us = self.client.scheduler.now_us
        end_us = belief_end(self.grant, self.client.clock)
        self._record(now_us if end_us is None else min(now_us, end_us))

    def _record(self, until_us: int) -> None:
        if self.name == PUBLIC or until_us <= self.from_us:
            return
        self.client.trace.history.beliefs.append(
            Belief(self.client.name, self.name.decode(), self.token, self.from_us, until_us)
        )


class Workload:
    """All clients of a run."""

    def __init__(
        self,
        options: Options,
        scheduler: Scheduler,
        network: Network,
        trace: Trace,
        rng: random.Random,
        hosts: list[Host],
        nodes: list[Host],
        registers: RegisterWork,
    ) -> None:
        self._options = options
        self._scheduler = scheduler
        self._network = network
        self._trace = trace
        self._rng = rng
        self._hosts = hosts
        self._nodes = nodes
        self._registers = registers
        self._lives = 0
        self._holdings: dict[str, dict[Holding, None]] = {}
        self.stopping = False
        self.through: dict[str, bool] = {}
        self.names = [f"n{number}".encode() for number in range(options.locks - 1)] + [PUBLIC]
        self.clients = [self._born(host) for host in hosts]

    def start(self) -> None:
        """The clients begin."""
        for client in self.clients:
            self._begin(client)

    def _born(self, host: Host) -> SimClient:
        self._lives += 1
        rng = self._rng
        nodes = self._nodes if rng.random() < 0.8 else self._nodes[::-1]
        client = SimClient(
            f"{host.name}{self._lives}",
            host,
            nodes,
            self._scheduler,
            self._network,
            self._trace,
            rng,
        )
        if not self._options.total_loss:  # (a copy of before the loss would be a new request)
            client.late_copy_share = self._options.late_copy_percent / 100
        client.is_opaque = 100 * rng.random() < self._options.opaque_percent
        self._holdings[client.name] = {}
        return client

    def _begin(self, client: SimClient) -> None:
        for _ in range(2):
            client.spawn_later(int(self._rng.random() * 300_000), self._work(client))
        client.spawn_later(1, self._registers.work(client, self._holdings[client.name]))

    def crash(self, number: int, *, silent: bool, restart_us: int) -> None:
        """A client dies, holding what it holds; another one begins in its place."""
        client = self.clients[number]
        if not client.alive:
            return
        self._trace.count("client crash")
        self._trace.say(client.name, "dies")
        for holding in list(self._holdings[client.name]):
            holding.end()
            self._trace.count("client died holding")
        client.die(silent=silent)
        self._scheduler.after(restart_us, self._reborn, number)

    def _reborn(self, number: int) -> None:
        if self.clients[number].alive:
            return
        self.clients[number] = self._born(self._hosts[number])
        if not self.stopping:
            self._begin(self.clients[number])

    # -- what a client does ----------------------------------------------------------------------

    def _work(self, client: SimClient) -> Steps:
        rng = self._rng
        old: list[tuple[bytes, int]] = []
        while not self.stopping:
            yield from client.sleep(self._think_us())
            name = self.names[int(rng.random() * len(self.names))]
            rolled = rng.random()
            if rolled < 0.62:
                yield from self._hold(client, name, old)
            elif rolled < 0.82:
                yield from client.read(inspect_request(name), DEADLINE_US)
            elif rolled < 0.9 and old:
                yield from self._misuse(client, *old[int(rng.random() * len(old))])
            elif name == PUBLIC:
                yield from self._release(client, name, None)

    def _think_us(self) -> int:
        return int(self._rng.expovariate(1 / (self._options.think_ms * 1_000)))

    def _hold(self, client: SimClient, name: bytes, old: list[tuple[bytes, int]]) -> Steps:
        rng = self._rng
        lease_ms = None if name == PUBLIC else rng.choice((300, 600, 1_000, 1_000, 2_500))
        if name == b"n0" and rng.random() < 0.3:
            lease_ms = None
        wait_ms = rng.choice((0, 0, 0, 200, 1_000, 3_000))
        until_us = client.clock.us() + wait_ms * 1_000
        wanted = Wanted(name, lease_ms, None, until_us)
        plan = Plan(int(rng.random() * 500_000)) if wait_ms and rng.random() < 0.15 else Plan()
        deadline_us = rng.choice((700_000, 2_000_000, DEADLINE_US))
        grant = yield from client.acquire(wanted, deadline_us, plan)
        if grant is None:
            return
        self._trace.count("acquired")
        old.append((name, grant.token))
        del old[:-4]
        holding = Holding(client, name, grant)
        holdings = self._holdings[client.name]
        holdings[holding] = None
        keeps = yield from self._use(client, holding, lease_ms)
        holding.end()
        del holdings[holding]
        self._registers.note_end(client, holding)
        if keeps:
            self._trace.count("lease left to run out")
        else:
            token = None if name == PUBLIC and rng.random() < 0.3 else grant.token
            yield from self._release(client, name, token)

    def _use(self, client: SimClient, holding: Holding, lease_ms: int | None) -> Steps:
        """Hold for a while; whether the lease is then left to run out."""
        rng = self._rng
        length_us = int(rng.expovariate(1 / 250_000))
        rolled = rng.random()
        if lease_ms is not None and rolled < 0.25:
            yield from self._renew_in_background(client, holding, lease_ms, 4 * length_us)
        elif lease_ms is not None and rolled < 0.4:
            yield from self._renew_by_hand(client, holding, lease_ms, length_us)
        elif rolled < 0.5:
            yield from client.sleep(length_us // 2)
            request = verify_request(holding.name, holding.token)
            yield from client.read(request, DEADLINE_US)
        else:
            yield from client.sleep(length_us)
        return lease_ms is not None and rng.random() < 0.15

    def _renew_in_background(
        self, client: SimClient, holding: Holding, lease_ms: int, length_us: int
    ) -> Steps:
        """As ``_Renewer``, in one thread."""
        renewal = Renewal(holding.grant, lease_ms)
        until_us = client.clock.us() + length_us
        while client.clock.us() < until_us:
            wait_us = renewal.wait_us(client.clock.us())
            if wait_us is None:
                self._trace.count("lock lost")
                return
            if wait_us:
                yield from client.sleep(min(wait_us, until_us - client.clock.us()))
                continue
            left_us = renewal.begin(client.clock.us())
            request = renew_request(holding.name, holding.token, lease_ms)
            finish, sent_us = yield from client.renew(request, lease_ms, left_us)
            if finish.verdict is Verdict.ANSWERED:
                renewal.answered(sent_us if finish.value else None)
                if finish.value and not renewal.is_lost_for_good(client.clock.us()):
                    self._trace.count("renewed")
                    holding.renewed(renewal.grant)
            else:
                renewal.failed(client.clock.us())

    def _renew_by_hand(
        self, client: SimClient, holding: Holding, lease_ms: int, length_us: int
    ) -> Steps:
        renewal = Renewal(holding.grant)
        yield from client.sleep(min(length_us, lease_ms * 700))
        request = renew_request(holding.name, holding.token, lease_ms)
        finish, sent_us = yield from client.renew(request, lease_ms, DEADLINE_US)
        if finish.verdict is Verdict.ANSWERED:
            renewal.acknowledge(lease_ms, sent_us if finish.value else None)
            if finish.value and not renewal.is_lost_for_good(client.clock.us()):
                self._trace.count("renewed")
                holding.renewed(renewal.grant)
        yield from client.sleep(length_us)

    def _release(self, client: SimClient, name: bytes, token: int | None) -> Steps:
        loan = client.borrow()
        request = release_request(loan, name, token)
        if client.is_opaque:
            words = (*request.words[:2], client.opaque_id(), *request.words[3:])
            request = Request(request.kind, request.name, words[2], words)
        finish: Any = yield from client.change(request, loan, DEADLINE_US)
        return finish

    def _misuse(self, client: SimClient, name: bytes, token: int) -> Steps:
        """A former holder that does not know better."""
        rolled = self._rng.random()
        if rolled < 0.4:
            yield from client.read(verify_request(name, token), DEADLINE_US)
        elif rolled < 0.7:
            yield from self._release(client, name, token)
        else:
            yield from client.renew(renew_request(name, token, 500), 500, DEADLINE_US)

    # -- the end ---------------------------------------------------------------------------------

    def prove(self) -> None:
        """Each client takes and gives back a lock of its own, and writes a register meanwhile: is
        it served?"""
        for number in range(len(self.clients)):
            self._reborn(number)
        for client in self.clients:
            self.through[client.name] = False
            client.spawn_later(1, self._prove(client))

    def _prove(self, client: SimClient) -> Steps:
        name = f"own-{client.name}".encode()
        while True:
            wanted = Wanted(name, 5_000, None, client.clock.us())
            grant = yield from client.acquire(wanted, DEADLINE_US)
            if grant is not None:
                served = yield from self._registers.prove(client, name, grant.token, DEADLINE_US)
                finish = yield from self._release(client, name, grant.token)
                if served and finish.verdict is Verdict.ANSWERED:
                    break
            yield from client.sleep(100_000)
        self.through[client.name] = True

    def forget_the_lost(self) -> None:
        """Everything was lost (F8): grants without a lease are no promise any more."""
        for holdings in self._holdings.values():
            for holding in list(holdings):
                if holding.grant.lease_ms is None:
                    holding.end()

    def finish(self) -> None:
        """The run is over: what is held is held to the end."""
        for holdings in self._holdings.values():
            for holding in holdings:
                holding.end()
        for client in self.clients:
            if client.alive:
                client.die(silent=False)
