"""Real nodes as processes: started, stopped, killed, and reaped whatever happens.

A node's stderr goes to a file; a failed wait shows it, and so does a failed test (conftest.py). A
node dies with the process that started it (PR_SET_PDEATHSIG), so an interrupted run leaves nothing
behind. The kernel means the *thread* that started it: threads other than the main one use the
`Zygote`.

The zygote is a process that has loaded the server and forks: a node is up in some milliseconds
instead of half a second, which pays where a test needs hundreds of pairs. What it forks is a
process like any other and runs the same `main`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import hiredis

from .ports import HOST, Port
from .wire import Closed, ReplyError, Wire

TIMEOUT_S = 20.0
POLL_S = 0.005
LOG_SHOWN_BYTES = 6_000

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def environment() -> dict[str, str]:
    """This process's, without what would be read as flags."""
    return {name: text for name, text in os.environ.items() if not name.startswith("HOLDFAST_")}


def wait_until(
    condition: Callable[[], object],
    what: str,
    nodes: Iterable[Node] = (),
    *,
    timeout_s: float = TIMEOUT_S,
    poll_s: float = POLL_S,
) -> None:
    """Wait for `condition`; fail with `what` and the nodes' logs if it does not come."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            logs = "\n".join(node.log_tail() for node in nodes)
            raise AssertionError(f"not within {timeout_s} s: {what}\n{logs}")
        time.sleep(poll_s)


class ViewKind(NamedTuple):
    """Where it is kept who is primary, as flags of the first primary and of the first backup."""

    name: str
    primary: tuple[str, ...] = ()
    backup: tuple[str, ...] = ()


FAIL_STOP = ViewKind("fail-stop")


class Process(Protocol):
    """What a launcher starts."""

    pid: int

    def poll(self) -> int | None:
        """The exit code (negative: the signal), None while it runs."""

    def wait(self, timeout: float) -> int:
        """Wait for the exit code."""


class Launcher(Protocol):
    """A way of starting `holdfast serve`."""

    def start(self, arguments: Sequence[str], log: Path) -> Process:
        """Start a node with its stderr appended to `log`."""


class Command:
    """The command line, as a user starts it."""

    def start(self, arguments: Sequence[str], log: Path) -> Process:
        """A new interpreter."""
        assert threading.current_thread() is threading.main_thread(), "the node would die with it"
        with log.open("ab") as stderr:
            return subprocess.Popen(
                [sys.executable, "-m", "holdfast.server", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=environment(),
                cwd=log.parent,
                preexec_fn=die_with_parent,
            )


class Zygote:
    """A process that has loaded the server and forks nodes. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
            preexec_fn=die_with_parent,
        )

    def start(self, arguments: Sequence[str], log: Path) -> Process:
        """A fork."""
        return Forked(self, self.call("fork", list(arguments), str(log)))

    def call(self, *request: object) -> int:
        """Have the zygote do something; a number comes back."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        with self._lock:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            answer = stdout.readline()
        assert answer, "the zygote has died"
        return int(answer)

    def close(self) -> None:
        """End it; nodes that are still there die with it."""
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class Forked:
    """A child of the zygote's."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self.pid = pid
        self._zygote = zygote
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        if self._code is None:
            code = self._zygote.call("poll", self.pid)
            self._code = None if code == RUNS else code
        return self._code

    def wait(self, timeout: float) -> int:
        """Wait for the exit code."""
        deadline_s = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline_s:
                raise subprocess.TimeoutExpired("node", timeout)
            time.sleep(0.001)
        return code


class FarWire(Wire):
    """A connection to a node that has an address of its own."""

    def __init__(self, node: Node, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.sock = socket.create_connection((node.host, node.port), timeout_s)
        self._reader = hiredis.Reader(replyError=ReplyError)


RUNS = 1_000
"""What the zygote says of a child that has not ended."""


class Node:
    """One node: a port, a log, and a process that may come and go."""

    def __init__(
        self, name: str, port: Port, log: Path, launcher: Launcher, host: str = HOST
    ) -> None:
        self.name = name
        self.host = host
        self.log = log
        self.arguments: list[str] = []
        self._port = port
        self._launcher = launcher
        self._process: Process | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port.number

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """For Clerk."""
        return f"redis://{self.address}"

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether its process lives (stopped counts as alive)."""
        return self._process is not None and self._process.poll() is None

    # -- life and death --------------------------------------------------------------------------

    def start(self, *arguments: str) -> Node:
        """Start the process; without arguments, with those of the last time."""
        assert not self.is_running
        if arguments:
            self.arguments = ["serve", "--port", str(self.port), *arguments]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._process = self._launcher.start(self.arguments, self.log)
        return self

    def kill(self) -> float:
        """`kill -9`, and wait until nothing is left of it; the instant of the kill."""
        assert self._process is not None
        at_s = time.monotonic()
        self._signal(signal.SIGKILL)
        self._process.wait(TIMEOUT_S)
        return at_s

    def restart(self) -> None:
        """`kill -9`, and a new process at once."""
        self.kill()
        self.start()

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._signal(signal.SIGTERM)
        return self._process.wait(TIMEOUT_S)

    def freeze(self) -> None:
        """SIGSTOP: back when the kernel says that it stands still."""
        self._signal(signal.SIGSTOP)
        wait_until(lambda: self._state() == "T", f"{self.name} stands still", poll_s=0.001)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self.is_running:
            os.kill(self.pid, number)

    def _state(self) -> str:
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0]

    def reap(self) -> None:
        """End the process if there is one, without a word."""
        if self._process is not None and self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._process.wait(TIMEOUT_S)

    # -- what it says ----------------------------------------------------------------------------

    def wire(self, timeout_s: float = TIMEOUT_S) -> Wire:
        """A connection."""
        return Wire(self.port, timeout_s) if self.host == HOST else FarWire(self, timeout_s)

    def ask(self, *words: str | bytes, timeout_s: float = TIMEOUT_S) -> object:
        """The reply to one request, on a connection of its own. Raises what `Wire` raises."""
        with self.wire(timeout_s) as wire:
            return wire.ask(*words)

    def answers(self) -> bool:
        """Whether it answers a PING."""
        try:
            return self.ask("PING", timeout_s=1.0) == b"PONG"
        except (OSError, Closed):
            return False

    def info(self, section: str = "replication") -> dict[str, str]:
        """`INFO section`, empty if there is no answer."""
        try:
            text = self.ask("INFO", section, timeout_s=2.0)
        except (OSError, Closed):
            return {}
        assert isinstance(text, bytes)
        lines = (line.partition(":") for line in text.decode().splitlines())
        return {name: value for name, colon, value in lines if colon}

    @property
    def mode(self) -> str:
        """recovery, joining, paired, solo, blocked or deposed; empty if it does not answer."""
        return self.info().get("holdfast_mode", "")

    @property
    def role(self) -> str:
        """master or slave, in Redis' words."""
        return self.info().get("role", "")

    @property
    def epoch(self) -> int:
        """Of the view that it knows."""
        return int(self.info().get("holdfast_epoch", "0"))

    @property
    def resyncs(self) -> tuple[int, int]:
        """How many full and partial ones this process has had part in, in either role."""
        stats = self.info("stats")
        return int(stats["sync_full"]), int(stats["sync_partial_ok"])

    @property
    def log_text(self) -> str:
        """Everything it has logged, over all its processes."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def log_tail(self) -> str:
        """The end of its log, with a headline."""
        return f"--- log of {self.name} ({self.address}) ---\n{self.log_text[-LOG_SHOWN_BYTES:]}"

    def wait_logged(self, text: str, *, times: int = 1, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until `text` is in the log so often."""
        wait_until(
            lambda: self.log_text.count(text) >= times,
            f"{self.name} logs {text!r} {times} times",
            [self],
            timeout_s=timeout_s,
        )

    def __repr__(self) -> str:
        return f"<{self.name} {self.address}>"


def _are_paired(primary: Node, backup: Node) -> bool:
    for node in (primary, backup):
        assert node.is_running, f"{node} has ended\n{node.log_tail()}"
    return (
        primary.mode == backup.mode == "paired"
        and primary.role == "master"
        and backup.role == "slave"
    )


class Cluster:
    """The nodes of one test, in one folder. `close` reaps them all."""

    def __init__(self, folder: Path, launcher: Launcher | None = None) -> None:
        self.folder = folder
        self.nodes: list[Node] = []
        self._launcher = launcher or Command()
        self._ports: list[Port] = []
        self._closers: list[Callable[[], None]] = []

    def port(self) -> Port:
        """A port that stays reserved until the cluster is closed."""
        port = Port()
        self._ports.append(port)
        return port

    def node(self, name: str) -> Node:
        """A node that has not been started."""
        node = Node(name, self.port(), self.folder / f"{name}.log", self._launcher)
        self.nodes.append(node)
        return node

    def pair(
        self, *arguments: str, wait: bool = True, view: ViewKind = FAIL_STOP
    ) -> tuple[Node, Node]:
        """A primary and its backup, paired; `arguments` go to both."""
        primary, backup = self.node("P"), self.node("B")
        primary.start("--backup", backup.address, *view.primary, *arguments)
        if view.name == "etcd":
            self.wait_begun(primary)
        backup.start("--replicaof", primary.address, *view.backup, *arguments)
        if wait:
            self.wait_paired(primary, backup)
        return primary, backup

    def wait_begun(self, primary: Node) -> None:
        """Wait until it has claimed a vacant register, which a backup might do that hears nothing
        of it for its time-out: on a busy machine a short one is over before a node is up."""
        wait_until(lambda: primary.mode == "solo", f"{primary} begins", self.nodes)

    def wait_paired(self, primary: Node, backup: Node, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until the one serves and the other may be promoted, and both know it."""
        wait_until(
            lambda: _are_paired(primary, backup),
            f"{primary} and {backup} are a pair",
            self.nodes,
            timeout_s=timeout_s,
        )

    def defer(self, close: Callable[[], None]) -> None:
        """Have something else closed with the nodes."""
        self._closers.append(close)

    def close(self) -> None:
        """Reap everything."""
        for node in self.nodes:
            node.reap()
        for close in reversed(self._closers):
            close()
        for port in self._ports:
            port.release()
