"""What goes wrong in a run: one thing after the other is chosen, and mends itself after a while.

With a register anything may happen at any time, but that no node is lost while the other one does
not hold everything (one at a time, which is all that is promised). Under ``fail-stop`` nothing may
make a live node look dead for longer than its time-outs, but for a pause, which it knows of itself:
that is the assumption, and what happens when it does not hold is not promised.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from .cluster import Cluster
from .network import Host, Network
from .node import Process
from .options import Options
from .scheduler import Scheduler
from .trace import Trace
from .workload import Workload

MS = 1_000
SECOND = 1_000_000


class Faults:
    """Chooses what goes wrong, and mends it."""

    def __init__(
        self,
        options: Options,
        scheduler: Scheduler,
        network: Network,
        cluster: Cluster,
        workload: Workload,
        trace: Trace,
        rng: random.Random,
    ) -> None:
        self._options = options
        self._scheduler = scheduler
        self._network = network
        self._cluster = cluster
        self._workload = workload
        self._trace = trace
        self._rng = rng
        self._is_over = False
        self.are_suspended = False
        self._undo: dict[int, Callable[[], None]] = {}  # what mends the faults that last
        self._number = 0
        self._pair_is_busy_until_us = 0  # fail-stop: one fault of the pair at a time
        timeout_ms = min(options.backup_timeout_ms, options.promotion_timeout_ms)
        self._silence_us = timeout_ms * MS * 2 // 5  # a silence that no time-out notices
        self._kinds: list[tuple[int, Callable[[], None]]] = [
            (4, self._kill),
            (3, self._kill_in_turn),
            (2, self._switch_off),
            (4, self._pause),
            (2, self._break_link),
            (3, self._cut_pair),
            (1, self._slow_pair),
            (2, self._cut_clients),
            (2, self._crash_client),
            (2, self._pause_client),
            (1, self._jump_wall_clock),
            (1, self._switch_roles),
        ]
        if cluster.has_register:
            self._kinds += [
                (3, self._cut_register),
                (2, self._stop_register),
                (3, self._lose_answers),
                (1, self._flap),
            ]
        self._weights = [weight for weight, _ in self._kinds]

    def start(self) -> None:
        """The first comes when the pair has had the time to form, or nearly so."""
        self._scheduler.after(int(SECOND * (0.3 + self._rng.random())), self._next)

    def _next(self) -> None:
        if self._is_over:
            return
        (_, fault) = self._rng.choices(self._kinds, self._weights)[0]
        if not self.are_suspended:
            fault()
        every_us = self._options.fault_every_ms * MS
        self._scheduler.after(int(self._rng.expovariate(1 / every_us)), self._next)

    def mend_all(self) -> None:
        """From now on nothing goes wrong any more."""
        self._is_over = True
        for number in list(self._undo):
            self._mend(number)
        network = self._network
        network.loss = 0.0
        for number in (0, 1):
            process = self._cluster.processes[number]
            if process is not None:
                process.crash_point = ""
            self._cluster.restart(number)

    def _lasts(self, length_us: int, mend: Callable[[], None]) -> None:
        """``mend`` ends a fault after ``length_us``, or when all faults end."""
        self._number += 1
        self._undo[self._number] = mend
        self._scheduler.after(length_us, self._mend, self._number)

    def _mend(self, number: int) -> None:
        mend = self._undo.pop(number, None)
        if mend is not None:
            mend()

    def _length_us(self, longest_us: int) -> int:
        """Mostly short, sometimes long."""
        return int(longest_us * self._rng.random() ** 2) + 20 * MS

    def _note(self, what: str, *words: object) -> None:
        self._trace.count(f"fault: {what}")
        self._trace.say("----", what, *words)

    def _victim(self) -> tuple[int, Process] | None:
        number = int(self._rng.random() * 2)
        process = self._cluster.alive(number)
        return None if process is None else (number, process)

    def _pair_is_busy(self, length_us: int) -> bool:
        """Under fail-stop: whether another fault of the pair is too recent for one more. A new one
        is taken to last for ``length_us``."""
        if self._cluster.has_register:
            return False
        now_us = self._scheduler.now_us
        if now_us < self._pair_is_busy_until_us:
            return True
        options = self._options
        margin_us = 3 * MS * max(options.backup_timeout_ms, options.promotion_timeout_ms) // 2
        self._pair_is_busy_until_us = now_us + length_us + margin_us
        return False

    # -- processes -------------------------------------------------------------------------------

    def _kill(self) -> None:
        victim = self._victim()
        if victim is None or not self._cluster.may_lose(victim[0]):
            return
        if self._pair_is_busy(0):
            return
        number, process = victim
        instantly = self._rng.random() < 0.3
        self._note("instant restart" if instantly else "crash", process.host)
        self._cluster.kill(number, silent=False)
        self._return_later(number, 0 if instantly else self._length_us(5 * SECOND))

    def _return_later(self, number: int, delay_us: int) -> None:
        self._lasts(delay_us, lambda: self._cluster.restart(number))

    def _kill_in_turn(self) -> None:
        victim = self._victim()
        if victim is None or not self._cluster.may_lose(victim[0]) or self._pair_is_busy(0):
            return
        number, process = victim
        process.may_crash = lambda: self._cluster.may_lose(number)
        process.crash_point = self._rng.choice(("executed", "forwarded", "answered", "released"))
        self._note("crash in a turn", process.host, process.crash_point)
        self._scheduler.after(30 * MS, self._disarm, number, process)
        self._return_later(number, 30 * MS + self._length_us(4 * SECOND))

    def _disarm(self, number: int, process: Process) -> None:
        process.crash_point = ""
        self._cluster.bury(number)

    def _switch_off(self) -> None:
        victim = self._victim()
        if victim is None or not self._cluster.may_lose(victim[0]) or self._pair_is_busy(0):
            return
        number, process = victim
        self._note("machine off", process.host)
        self._cluster.kill(number, silent=True)
        self._return_later(number, 100 * MS + self._length_us(5 * SECOND))

    def _pause(self) -> None:
        victim = self._victim()
        length_us = self._length_us(4 * SECOND)
        if victim is None or victim[1].paused or self._pair_is_busy(length_us):
            return
        process = victim[1]
        self._note("pause", process.host, f"{length_us / SECOND:.3f} s")
        process.pause()
        self._lasts(length_us, process.go_on)

    def _switch_roles(self) -> None:
        for number in (0, 1):
            process = self._cluster.alive(number)
            if process is None or not self._cluster.is_whole() or process.paused:
                continue
            if process.replica.role.value == "primary" and not self._pair_is_busy(0):
                self._note("planned switch", process.host)
                process.receive(process.pairing.switch, self._rng.choice((0, 500, 2_000)))
                return

    def _jump_wall_clock(self) -> None:
        if self._options.total_loss:
            return
        host = self._cluster.hosts[int(self._rng.random() * 2)]
        jump_us = int((self._rng.random() - 0.5) * 7_200 * SECOND)
        self._note("wall clock jump", host, f"{jump_us / SECOND:.0f} s")
        host.clock.wall_error_us += jump_us

    # -- the network -----------------------------------------------------------------------------

    def _cut(self, ways: list[tuple[Host, Host]], length_us: int) -> None:
        for source, target in ways:
            self._network.cut_way(source, target)

        def mend() -> None:
            for source, target in ways:
                self._network.mend_way(source, target)

        self._lasts(length_us, mend)

    def _ways(self, one: Host, other: Host) -> list[tuple[Host, Host]]:
        rolled = self._rng.random()
        if rolled < 0.5:
            return [(one, other), (other, one)]
        return [(one, other)] if rolled < 0.75 else [(other, one)]

    def _cut_pair(self) -> None:
        length_us = self._length_us(5 * SECOND)
        if not self._cluster.has_register:
            length_us = int(self._silence_us * self._rng.random())
        if self._pair_is_busy(length_us):
            return
        ways = self._ways(*self._cluster.hosts)
        self._note("pair cut", "one way" if len(ways) == 1 else "both ways", length_us // MS, "ms")
        self._trace.count(f"fault: pair cut {'one way' if len(ways) == 1 else 'both ways'}")
        if self._rng.random() < 0.3:
            self._break_link_now()
        self._cut(ways, length_us)

    def _flap(self) -> None:
        self._note("flapping")
        for number in range(6):
            ways = self._ways(*self._cluster.hosts)
            delay_us = int(number * 250 * MS)
            self._scheduler.after(delay_us, self._flap_once, ways)

    def _flap_once(self, ways: list[tuple[Host, Host]]) -> None:
        if not self._is_over and not self.are_suspended:
            self._cut(ways, 150 * MS)

    def _break_link(self) -> None:
        if not self._pair_is_busy(0):
            self._break_link_now()

    def _break_link_now(self) -> None:
        for number in (0, 1):
            process = self._cluster.alive(number)
            link = process.pairing.link if process is not None else None
            if link is not None:
                self._note("link breaks")
                late_us = int(self._rng.random() ** 4 * self._silence_us)
                self._network.break_off(link.end, late_us, int(self._rng.random() * 5 * MS))
                return

    def _slow_pair(self) -> None:
        one, other = (host.name for host in self._cluster.hosts)
        length_us = self._length_us(4 * SECOND)
        if self._pair_is_busy(length_us):
            return
        slow_us = int(self._silence_us * self._rng.random())
        if self._cluster.has_register:
            slow_us = int(2 * SECOND * self._rng.random() ** 2)
        self._note("slow pair", slow_us // MS, "ms")
        ways = [(one, other), (other, one)]
        self._network.slow.update(dict.fromkeys(ways, slow_us))

        def mend() -> None:
            for way in ways:
                self._network.slow.pop(way, None)

        self._lasts(length_us, mend)

    def _cut_clients(self) -> None:
        node = self._cluster.hosts[int(self._rng.random() * 2)]
        ways = []
        for client in self._workload.clients:
            if self._rng.random() < 0.7:
                ways += self._ways(client.host, node)
        self._note("clients cut", node)
        self._cut(ways, self._length_us(4 * SECOND))

    # -- clients ---------------------------------------------------------------------------------

    def _crash_client(self) -> None:
        number = int(self._rng.random() * len(self._workload.clients))
        self._trace.count("fault: client crash")
        self._workload.crash(
            number, silent=self._rng.random() < 0.3, restart_us=self._length_us(2 * SECOND)
        )

    def _pause_client(self) -> None:
        clients = self._workload.clients
        client = clients[int(self._rng.random() * len(clients))]
        if client.paused or not client.alive:
            return
        self._note("client pause", client.name)
        client.pause()
        self._lasts(self._length_us(5 * SECOND), client.go_on)

    # -- the register ----------------------------------------------------------------------------

    def _cut_register(self) -> None:
        node = self._cluster.hosts[int(self._rng.random() * 2)]
        if node.name == self._cluster.register_host.name:
            return
        self._note("register cut", node)
        self._cut(self._ways(node, self._cluster.register_host), self._length_us(5 * SECOND))

    def _stop_register(self) -> None:
        register = self._cluster.register
        assert register is not None
        self._note("register out of order")
        register.is_down = True

        def mend() -> None:
            register.is_down = False

        self._lasts(self._length_us(5 * SECOND), mend)

    def _lose_answers(self) -> None:
        register = self._cluster.register
        assert register is not None
        self._note("register loses answers")
        register.loses_answers = 0.7

        def mend() -> None:
            register.loses_answers = 0.0

        self._lasts(self._length_us(8 * SECOND), mend)

    # -- the loss of everything ------------------------------------------------------------------

    def lose_all(self) -> None:
        """F8: both nodes at once."""
        self._note("total loss")
        for number in (0, 1):
            process = self._cluster.processes[number]
            if process is not None:
                process.go_on()
            self._cluster.kill(number, silent=False)
