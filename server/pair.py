"""`holdfast pair`: a primary and a backup on this machine, two processes under one supervisor.

The supervisor starts both, waits until the pair is whole, tells how to connect, and then sleeps
until a signal arrives. It does not restart a node that died: it says what still serves, prints the
command that starts the node again (empty, it joins whoever serves as the backup), and goes on. A
node started so is not the supervisor's: it is neither watched nor stopped with the pair.

The nodes are in sessions of their own, so that a terminal's Ctrl-C reaches only the supervisor,
which stops the backup before the primary. They die with the supervisor, however it ends: the kernel
kills them (PR_SET_PDEATHSIG), since a supervisor under `kill -9` can do nothing itself.

One thread, no event loop: the signals are blocked and waited for, so none can arrive at a bad time.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import flags
from .config import Address, Config, ConfigError, dialled_host

_log = logging.getLogger(__name__)

STOP_GRACE_MS = 5_000
# How often a node is asked for its state while an answer is awaited; never in quiet times.
POLL_INTERVAL_MS = 50
# A pair is whole within a second; after this long the user is told that something is odd.
SLOW_START_MS = 10_000
# What a failover may take on top of the silence that starts it.
FAILOVER_MARGIN_MS = 1_000
_ASK_TIMEOUT_MS = 500
_ANSWER_BYTES_MAX = 1 << 16
_QUIET_MS = 3_600_000

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AWAITED_SIGNALS = (*_STOP_SIGNALS, signal.SIGCHLD)
_PR_SET_PDEATHSIG = 1

# Loaded here: between fork and exec is no time to load a library.
_libc = ctypes.CDLL(None, use_errno=True)


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
        host = dialled_host(Config(bind=values["bind"]).bind)
        primary, backup = (Address(host, port) for port in ports.values())
        return cls(
            primary=Config(**shared, port=primary.port, backup=backup),
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
    """Runs both nodes until stopped (0), until the pair fails to start or both are gone (1)."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED_SIGNALS)
    nodes: list[_Node] = []
    try:
        for name, config in (("primary", plan.primary), ("backup", plan.backup)):
            nodes.append(_Node(name, config, mask))
        return _Supervisor(plan, *nodes).run()
    finally:
        for node in nodes:
            node.kill()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _Node:
    """One child process. `name` is the part it began in, not the one it may have now."""

    def __init__(self, name: str, config: Config, mask: set[int | signal.Signals]) -> None:
        self.name = name
        self.address = Address(dialled_host(config.bind), config.port)
        self.command = serve_command(config)
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            env=_node_environment(),
            start_new_session=True,
            preexec_fn=_between_fork_and_exec(os.getpid(), mask),
        )
        _log.info("%s %s is process %d", name, self.address, self.pid)

    def __str__(self) -> str:
        return f"{self.name} {self.address}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def death(self) -> str:
        code = self._process.returncode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    @property
    def death_level(self) -> int:
        """A node that somebody stopped is no error."""
        return logging.ERROR if self._process.returncode else logging.WARNING

    def stop(self) -> None:
        """SIGTERM, patience, SIGKILL; returns when the process is gone."""
        self._process.terminate()
        try:
            self._process.wait(STOP_GRACE_MS / 1000)
        except subprocess.TimeoutExpired:
            _log.warning("%s did not stop within %d ms; killing it", self, STOP_GRACE_MS)
            self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def info(self) -> dict[str, str]:
        """Its INFO replication; empty if it does not answer."""
        return replication_info(self.address)


class _Supervisor:
    def __init__(self, plan: Plan, primary: _Node, backup: _Node) -> None:
        self._plan = plan
        self._primary = primary
        self._backup = backup
        self._whole = False
        self._said_slow = False
        self._started_ms = _now_ms()
        # A node that died and of whose survivor it is not yet known whether it serves.
        self._unreported: _Node | None = None
        self._report_by_ms = 0

    def run(self) -> int:
        while True:
            waiting = not self._whole or self._unreported is not None
            signum = _next_signal(POLL_INTERVAL_MS if waiting else _QUIET_MS)
            if signum in _STOP_SIGNALS:
                self._stop()
                return 0
            alive = [node for node in (self._backup, self._primary) if node.alive]
            if len(alive) < 2 and not self._whole:
                return self._give_up()
            if not alive:
                return self._report_both_gone()
            if len(alive) == 1:
                self._after_a_death(alive[0])
            elif not self._whole:
                self._check_whole()

    def _stop(self) -> None:
        """The backup first: the other way round it would take over from a primary that leaves."""
        _log.info("stopping")
        for node in (self._backup, self._primary):
            if node.alive:
                node.stop()
        _log.info("stopped")

    def _check_whole(self) -> None:
        info = self._primary.info()
        if _is_whole(info):
            self._whole = True
            # Whoever reads this may have left (`| head -1`); the pair does not stop for it.
            with contextlib.suppress(OSError):
                print(how_to_connect(self._primary, self._backup), flush=True)
        elif not self._said_slow and _now_ms() - self._started_ms > SLOW_START_MS:
            self._said_slow = True
            _log.warning(
                "the backup has not joined after %d ms; still waiting (primary says: mode %s)",
                SLOW_START_MS,
                info.get("holdfast_mode", "nothing"),
            )

    def _give_up(self) -> int:
        for node in (self._primary, self._backup):
            if not node.alive:
                _log.error("%s ended before the pair was whole (%s)", node, node.death)
        self._stop()
        return 1

    def _after_a_death(self, survivor: _Node) -> None:
        """Says once what still serves, when that is known: a failover takes its time."""
        dead = self._primary if survivor is self._backup else self._backup
        if self._report_by_ms == 0:
            silence_ms = self._plan.backup.promotion_timeout_ms
            self._unreported = dead
            self._report_by_ms = _now_ms() + silence_ms + FAILOVER_MARGIN_MS
        if self._unreported is None:
            return
        info = survivor.info()
        if not self._is_settled(info) and _now_ms() < self._report_by_ms:
            return
        self._unreported = None
        _log.log(
            dead.death_level,
            "%s %s (%s); %s. To start it again: %s",
            dead,
            "died" if dead.death_level == logging.ERROR else "stopped",
            dead.death,
            self._what_serves(survivor, info),
            shlex.join(dead.command),
        )

    def _is_settled(self, info: dict[str, str]) -> bool:
        if self._plan.primary.failover == "manual" and info:
            return True
        # A primary that has not yet noticed still counts its backup.
        return info.get("role") == "master" and not _is_whole(info)

    def _what_serves(self, survivor: _Node, info: dict[str, str]) -> str:
        address = survivor.address
        if not info:
            return f"{address} is left and does not answer"
        if info.get("role") != "master":
            command = f"{redis_cli(address)} REPLICAOF NO ONE"
            return f"{address} is left as a backup and serves nothing; '{command}' promotes it"
        if self._plan.primary.min_backups:
            return f"{address} serves alone, without new grants (--min-backups)"
        return f"{address} serves alone; when it ends too, all locks are lost"

    def _report_both_gone(self) -> int:
        for node in (self._primary, self._backup):
            _log.log(node.death_level, "%s is gone (%s)", node, node.death)
        _log.error("no node of this pair is left; one started again by hand may serve")
        return 1


def serve_command(config: Config) -> list[str]:
    """The command line of the node that `config` describes."""
    values = {flag.name: getattr(config, flag.name) for flag in flags.SERVE_FLAGS}
    told = flags.to_arguments(flags.SERVE_FLAGS, values)
    return [sys.executable, "-m", "holdfast.server", "serve", *told]


def redis_cli(address: Address) -> str:
    """`redis-cli` with what it takes to reach the node."""
    host = "" if address.host in ("127.0.0.1", "localhost") else f" -h {address.host}"
    return f"redis-cli{host} -p {address.port}"


def how_to_connect(primary: _Node, backup: _Node) -> str:
    cli = redis_cli(primary.address)
    shell = [
        (f"{cli} LOCK a r1", "takes lock a: its fencing token, or 0 if it is taken"),
        (f"{cli} UNLOCK a r2", "gives it back: 1, or 0 if nobody held it; a new id each time"),
        (f"kill -9 {primary.pid}", "ends the primary as a crash would"),
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


def replication_info(address: Address) -> dict[str, str]:
    """The fields of a node's INFO replication; empty if it does not answer in time."""
    try:
        with socket.create_connection(address, _ASK_TIMEOUT_MS / 1000) as connection:
            connection.sendall(b"*2\r\n$4\r\nINFO\r\n$11\r\nreplication\r\n")
            text = _read_bulk(connection.recv)
    except OSError:
        return {}
    fields = (line.partition(":") for line in text.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in fields if colon}


def _read_bulk(receive: Callable[[int], bytes]) -> bytes:
    """One bulk string; empty if the answer is anything else, or ends early."""
    received = b""
    while len(received) < _ANSWER_BYTES_MAX:
        header, end, body = received.partition(b"\r\n")
        if end:
            if not (header.startswith(b"$") and header[1:].isdigit()):
                return b""
            length = int(header[1:])
            if len(body) >= length:
                return body[:length]
        chunk = receive(_ANSWER_BYTES_MAX)
        if not chunk:
            return b""
        received += chunk
    return b""


def _is_whole(info: Mapping[str, str]) -> bool:
    return info.get("connected_slaves") == "1" and info.get("holdfast_mode") == "paired"


def _next_signal(timeout_ms: int) -> int | None:
    info = signal.sigtimedwait(_AWAITED_SIGNALS, timeout_ms / 1000)
    return info.si_signo if info is not None else None


def _node_environment() -> dict[str, str]:
    """The supervisor's own, without what would be read as flags of a node.

    HOLDFAST_BACKUP, say, is meant for a `serve`; here the backup would read it too.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(flags.ENV_PREFIX)
    }
    # `python -m` puts the working directory first on the path, and a user's own `queue.py` there
    # would replace the standard library's. The console script does not; nor shall its nodes.
    if not {"", os.getcwd()} & set(sys.path):
        environment["PYTHONSAFEPATH"] = "1"
    return environment


def _between_fork_and_exec(
    supervisor_pid: int, mask: set[int | signal.Signals]
) -> Callable[[], None]:
    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # It may have died between the fork and the line above.
        if os.getppid() != supervisor_pid:
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    return prepare


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
