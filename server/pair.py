"""`holdfast pair`: a primary and a backup on this machine, two processes under one supervisor.

The supervisor starts both, waits until the pair is whole, tells how to connect, and then sleeps
until a signal arrives. A node that ends, however it ends, is started again with its command line:
it comes back empty and joins whoever serves. (Also one that somebody stopped with SIGTERM: to be
rid of a node, stop the pair.)

Two empty nodes that meet take it for the first start, and begin a new history in which every lock
is free. The nodes cannot know better; the supervisor does:

S1  A node is started again only while the other one says that it has the locks. One that is silent
    is waited for.
S2  When no node has the locks (both ended, or one ended before the other had joined it) nothing is
    started again: the supervisor says that all locks are lost, stops what is left, and exits
    with 1. So let nothing restart the supervisor by itself.

    why S1:   P dies. B, which has only just been started, has nothing yet.
              P is started again, and asks B: "have you heard of a history?" "Never."
              P begins a new one, and gives away locks that are held.

The nodes are in sessions of their own, so that a terminal's Ctrl-C reaches only the supervisor,
which stops the backup before the primary. They die with the supervisor, however it ends: the kernel
kills them (PR_SET_PDEATHSIG), since a supervisor under `kill -9` can do nothing itself.

One thread, no event loop: the signals are blocked and waited for, so none can arrive at a bad time.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import signal
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import flags
from .config import Address, Config, ConfigError, dialled_host
from .supervised import SupervisedNode, now_ms

_log = logging.getLogger(__name__)

# How often a node is asked for its state while an answer is awaited; never in quiet times.
POLL_INTERVAL_MS = 50
# A pair is whole within a second; after this long the user is told that something is odd, and the
# nodes are asked less often: it may take until an operator comes.
SLOW_START_MS = 10_000
SLOW_POLL_INTERVAL_MS = 1_000
# What a failover may take on top of the silence that starts it.
FAILOVER_MARGIN_MS = 1_000
_QUIET_MS = 3_600_000

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AWAITED_SIGNALS = (*_STOP_SIGNALS, signal.SIGCHLD)


class PortTaken(Exception):
    """One of the two ports cannot be bound; `flag` changes it, `error` says why."""

    def __init__(self, error: OSError | UnicodeError, host: str, port: int, flag: str) -> None:
        super().__init__(error, host, port, flag)
        self.error, self.host, self.port, self.flag = error, host, port, flag


@dataclass(frozen=True, slots=True)
class Plan:
    """What the two nodes are told: their own configurations, as `serve` will read them."""

    primary: Config
    backup: Config

    @classmethod
    def from_flags(cls, values: Mapping[str, Any]) -> Plan:
        """Raises ConfigError if the values make no pair."""
        ports = {"--port": values["port"], "--backup-port": values["backup_port"]}
        for flag, port in ports.items():
            flags.check_port(flag, port)
        if values["port"] == values["backup_port"]:
            raise ConfigError(
                f"--port and --backup-port are both {values['port']}: each node needs its own"
            )
        shared = {name: value for name, value in values.items() if name not in _PORT_NAMES}
        # The register `--view backup` is a file of the first backup's, and only of its.
        of_primary = {name: value for name, value in shared.items() if name != "view_file"}
        host = dialled_host(Config(bind=values["bind"]).bind)
        primary, backup = (Address(host, port) for port in ports.values())
        return cls(
            primary=Config(**of_primary, port=primary.port, backup=backup),
            backup=Config(**shared, port=backup.port, replicaof=primary),
        )


_PORT_NAMES = ("port", "backup_port")


def check_ports_free(plan: Plan) -> None:
    """Raises PortTaken for the first address that cannot be bound.

    A node finds that out too, but two nodes at once say it in two places, one half started.
    """
    for config, flag in ((plan.primary, "--port"), (plan.backup, "--backup-port")):
        for host in config.bind:
            try:
                _try_bind(host, config.port)
            except (OSError, UnicodeError) as error:
                raise PortTaken(error, host, config.port, flag) from None


def _try_bind(host: str, port: int) -> None:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        # As servers do: connections of an earlier run that linger in TIME_WAIT take no port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind(address)


def run(plan: Plan) -> int:
    """Runs both until stopped (0), until the pair fails to start or has lost all locks (1)."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED_SIGNALS)
    primary = SupervisedNode("primary", plan.primary, mask)
    backup = SupervisedNode("backup", plan.backup, mask)
    try:
        return _Supervisor(plan, primary, backup).run()
    finally:
        for node in (backup, primary):
            node.kill()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@dataclass(slots=True)
class _Death:
    """A node that ended and has not been started again."""

    node: SupervisedNode
    survivor: SupervisedNode
    report_by_ms: int
    start_again_ms: int
    delay_ms: int
    lived_ms: int
    reported: bool = False


class _Supervisor:
    def __init__(self, plan: Plan, primary: SupervisedNode, backup: SupervisedNode) -> None:
        self._plan = plan
        self._nodes = (backup, primary)
        self._founded = False  # it has been whole once: there is a history, which may be lost
        self._whole = False
        self._death: _Death | None = None
        self._changed_ms = now_ms()  # when a node was last started, or ended
        self._said_slow = False
        # What the nodes that live say of their state, in this turn of the loop.
        self._states: dict[SupervisedNode, bool | None] = {}
        self._stateless_since_ms = 0  # since when all of them have none; 0: that is not so

    def run(self) -> int:
        for node in reversed(self._nodes):
            node.start()
        while True:
            signum = _next_signal(self._patience_ms())
            if signum in _STOP_SIGNALS:
                self._stop()
                return 0
            dead = [node for node in self._nodes if not node.alive]
            if dead and not self._founded:
                return self._give_up()
            if self._is_lost():
                return self._report_loss()
            if dead:
                self._after_a_death(dead[0])
            elif not self._whole:
                self._check_whole()

    def _patience_ms(self) -> int:
        if self._whole:
            return _QUIET_MS
        slow = now_ms() - self._changed_ms > SLOW_START_MS
        return SLOW_POLL_INTERVAL_MS if slow else POLL_INTERVAL_MS

    def _stop(self) -> None:
        """The backup first: the other way round it would take over from a primary that leaves."""
        _log.info("stopping")
        alive = [node for node in self._nodes if node.alive]
        for node in sorted(alive, key=lambda node: node.info().get("role") == "master"):
            node.stop()
        _log.info("stopped")

    # -- two nodes -------------------------------------------------------------------------------

    def _check_whole(self) -> None:
        infos = {node: node.info() for node in self._nodes}
        if _is_whole(infos.values()):
            self._found_whole(*sorted(self._nodes, key=lambda node: infos[node]["role"]))
        elif not self._said_slow and now_ms() - self._changed_ms > SLOW_START_MS:
            self._said_slow = True
            _log.warning(
                "the pair is not whole after %d ms; still waiting (%s)",
                SLOW_START_MS,
                ", ".join(
                    f"{node.address} says: {info.get('holdfast_mode', 'nothing')}"
                    for node, info in infos.items()
                ),
            )

    def _found_whole(self, primary: SupervisedNode, backup: SupervisedNode) -> None:
        primary.name, backup.name = "primary", "backup"
        self._nodes = (backup, primary)
        self._whole = True
        if self._founded:
            _log.info(
                "the pair is whole again: primary on %s (process %d), backup on %s (process %d)",
                primary.address, primary.pid, backup.address, backup.pid,
            )  # fmt: skip
            return
        self._founded = True
        # Whoever reads this may have left (`| head -1`); the pair does not stop for it.
        with contextlib.suppress(OSError):
            print(how_to_connect(primary, backup), flush=True)

    def _give_up(self) -> int:
        for node in reversed(self._nodes):
            if not node.alive:
                _log.error("%s ended before the pair was whole (%s)", node, node.death)
        self._stop()
        return 1

    # -- one node --------------------------------------------------------------------------------

    def _after_a_death(self, dead: SupervisedNode) -> None:
        """Says once what still serves, when that is known; then starts the node again (S1)."""
        if self._death is None:
            self._death = self._note_death(dead)
        death = self._death
        if not death.reported:
            info = death.survivor.info()
            waited_for = not self._is_settled(info) and not _keeps_register(dead)
            if waited_for and now_ms() < death.report_by_ms:
                return
            death.reported = True
            self._report_death(death, info)
        if now_ms() >= death.start_again_ms and self._states[death.survivor]:
            self._death = None
            self._changed_ms = now_ms()
            dead.start()

    def _note_death(self, dead: SupervisedNode) -> _Death:
        self._whole = self._said_slow = False
        self._changed_ms = now_ms()
        lived_ms = dead.lived_ms
        delay_ms = dead.restart_delay.after(lived_ms)
        silence_ms = self._plan.backup.promotion_timeout_ms
        return _Death(
            node=dead,
            survivor=next(node for node in self._nodes if node is not dead),
            report_by_ms=now_ms() + silence_ms + FAILOVER_MARGIN_MS,
            start_again_ms=now_ms() + delay_ms,
            delay_ms=delay_ms,
            lived_ms=lived_ms,
        )

    def _is_settled(self, info: dict[str, str]) -> bool:
        if self._plan.primary.failover == "manual" and info.get("role") == "slave":
            return True
        # A primary that has not yet noticed still counts its backup; then it is blocked until it is
        # decided that it goes on alone.
        return info.get("role") == "master" and info.get("holdfast_mode") == "solo"

    def _report_death(self, death: _Death, info: dict[str, str]) -> None:
        dead, survivor = death.node, death.survivor
        soon = f", {death.lived_ms} ms after its start" if death.delay_ms else ""
        _log.log(
            logging.WARNING if dead.was_stopped else logging.ERROR,
            "%s %s (%s%s); %s; %s",
            dead.address,  # (which of the two it was may have changed since this pair was whole)
            "stopped" if dead.was_stopped else "died",
            dead.death,
            soon,
            self._what_serves(survivor, info),
            _what_next(death) if info else f"{dead.address} is started again when it does",
        )
        if info.get("role") == "master":
            survivor.name, dead.name = "primary", "backup"

    def _what_serves(self, survivor: SupervisedNode, info: dict[str, str]) -> str:
        address = survivor.address
        if not info:
            return f"{address} is left and does not answer"
        command = f"{redis_cli(address)} REPLICAOF NO ONE"
        if info.get("role") != "master":
            return f"{address} is left as a backup and serves nothing; '{command}' promotes it"
        if info.get("holdfast_mode") == "blocked":
            return (
                f"{address} is left as the primary and answers nothing: it is not decided whether "
                f"it may go on; '{command}' says why"
            )
        if self._plan.primary.min_backups:
            return f"{address} serves alone, without new grants (--min-backups)"
        return f"{address} serves alone, and all locks are lost if it ends too"

    # -- no node ---------------------------------------------------------------------------------

    def _is_lost(self) -> bool:
        """Whether no node has the locks any more (S2). One that does not answer may have them."""
        alive = [node for node in self._nodes if node.alive]
        if not self._founded or (self._whole and len(alive) == 2):
            return False
        self._states = {node: node.holds_state() for node in alive}
        if any(state is not False for state in self._states.values()):
            self._stateless_since_ms = 0
            return False
        # Not at the first word: the last of a snapshot may still lie unread in a node's buffers.
        self._stateless_since_ms = self._stateless_since_ms or now_ms()
        return not alive or now_ms() - self._stateless_since_ms > FAILOVER_MARGIN_MS

    def _report_loss(self) -> int:
        for node in reversed(self._nodes):
            if node.alive:
                _log.error("%s is left, and has no state", node)
            else:
                _log.error("%s is gone (%s)", node, node.death)
        _log.error(
            "ALL LOCKS ARE LOST: no node of this pair has them any more, so none is started again. "
            "Make sure that their holders are gone too, or fenced; then start the pair anew, with "
            "all locks free. (With --view, 'holdfast view init --force' comes first.)"
        )
        self._stop()
        return 1


def _what_next(death: _Death) -> str:
    delay = f" in {death.delay_ms} ms" if death.delay_ms else ""
    return f"starting {death.node.address} again{delay}"


def redis_cli(address: Address) -> str:
    """`redis-cli` with what it takes to reach the node."""
    host = "" if address.host in ("127.0.0.1", "localhost") else f" -h {address.host}"
    return f"redis-cli{host} -p {address.port}"


def how_to_connect(primary: SupervisedNode, backup: SupervisedNode) -> str:
    cli = redis_cli(primary.address)
    shell = [
        (f"{cli} LOCK a r1", "takes lock a: its fencing token, or 0 if it is taken"),
        (f"{cli} UNLOCK a r2", "gives it back: 1, or 0 if nobody held it; a new id each time"),
        (f"kill -9 {primary.pid}", "ends the primary as a crash would; it is started again"),
    ]
    activate = Path(sys.prefix, "bin", "activate")
    if sys.prefix != sys.base_prefix and activate.exists():
        shell.append((f". {shlex.quote(str(activate))}", "brings holdfast into another terminal"))
    width = max(len(command) for command, _ in shell[:3])
    lines = "\n".join(f"    {command:{width}}    {text}" for command, text in shell)
    return f"""
Holdfast: primary on {primary.address} (process {primary.pid}), \
backup on {backup.address} (process {backup.pid}). Ctrl-C stops both.

{lines}

    from holdfast import Clerk
    clerk = Clerk("redis://{primary.address}", "redis://{backup.address}")
    token = clerk.acquire("a")
"""


def _is_whole(infos: Iterable[Mapping[str, str]]) -> bool:
    """Whether one serves and the other may be promoted, and both know it."""
    said = sorted((info.get("role"), info.get("holdfast_mode")) for info in infos if info)
    return said == [("master", "paired"), ("slave", "paired")]


def _next_signal(timeout_ms: int) -> int | None:
    info = signal.sigtimedwait(_AWAITED_SIGNALS, timeout_ms / 1000)
    return info.si_signo if info is not None else None


def _keeps_register(node: SupervisedNode) -> bool:
    """Whether nothing can be decided before this node is back (``--view backup``)."""
    return "--view-file" in node.command
