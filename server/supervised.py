"""One node of a supervised pair: its process, what it says of itself, when it is started again.

Whether it *may* be started again is the supervisor's question (`pair.py`): an empty node that meets
no state may begin a new history. Here is only the pace: at once, unless it keeps dying.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from . import flags
from .config import Address, Config, dialled_host

_log = logging.getLogger(__name__)

STOP_GRACE_MS = 5_000
# A node that lives shorter than this is waited for longer the next time, from RESTART_FIRST_MS to
# RESTART_MAX_MS; one that has lived for RESTART_FORGET_MS is started at once again.
RESTART_SOON_MS = 10_000
RESTART_FIRST_MS = 500
RESTART_MAX_MS = 10_000
RESTART_FORGET_MS = 60_000
_ASK_TIMEOUT_MS = 500
_ANSWER_BYTES_MAX = 1 << 16
_HEADER_BYTES_MAX = 9

_PR_SET_PDEATHSIG = 1

# Loaded here: between fork and exec is no time to load a library.
_libc = ctypes.CDLL(None, use_errno=True)


def now_ms() -> int:
    """The monotonic clock."""
    return time.monotonic_ns() // 1_000_000


class RestartDelay:
    """How long a node that died is waited with: nothing the first time, then ever longer."""

    def __init__(self) -> None:
        self._ms: int | None = None

    def after(self, lived_ms: int) -> int:
        """What to wait, in ms, after a process that lived for `lived_ms`."""
        if self._ms is None or lived_ms >= RESTART_FORGET_MS:
            self._ms = 0
        elif lived_ms < RESTART_SOON_MS:
            self._ms = min(max(2 * self._ms, RESTART_FIRST_MS), RESTART_MAX_MS)
        return self._ms


class SupervisedNode:
    """One node, and the child process that it is at present.

    `name` is the part in which it was last seen, `primary` or `backup`; it may have changed since.
    """

    def __init__(self, name: str, config: Config, mask: set[int | signal.Signals]) -> None:
        self.name = name
        self.address = Address(dialled_host(config.bind), config.port)
        self.command = serve_command(config)
        self.restart_delay = RestartDelay()
        self._mask = mask
        # As of now: a restart shall differ in nothing, even if the working directory is gone then.
        self._environment = _node_environment()
        self._process: subprocess.Popen[bytes] | None = None
        self._started_ms = 0
        self._not_started = ""

    def __str__(self) -> str:
        return f"{self.name} {self.address}"

    # -- life and death --------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the process. If that fails the node is dead, and `death` says why."""
        self._started_ms = now_ms()
        self._process = None
        try:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                env=self._environment,
                start_new_session=True,
                preexec_fn=_between_fork_and_exec(os.getpid(), self._mask),
            )
        except (OSError, subprocess.SubprocessError) as error:
            # Out of processes or memory: the supervisor must not die of it, and both nodes with it.
            self._not_started = f"not started: {error}"
            return
        _log.info("%s is process %d", self, self._process.pid)

    @property
    def pid(self) -> int:
        """Of the running process; 0 if there is none."""
        return self._process.pid if self._process is not None else 0

    @property
    def alive(self) -> bool:
        """Whether the process runs (stopped counts as running). Reaps it if not."""
        return self._process is not None and self._process.poll() is None

    @property
    def lived_ms(self) -> int:
        """How long ago the process was started."""
        return now_ms() - self._started_ms

    @property
    def was_stopped(self) -> bool:
        """Whether it ended in order: somebody stopped it, which is no error."""
        return self._process is not None and self._process.returncode == 0

    @property
    def death(self) -> str:
        """How it ended, in words."""
        if self._process is None:
            return self._not_started
        code = self._process.returncode
        if code is not None and code < 0:
            return f"signal {-code}"
        return f"exit code {code}, its own last lines say why" if code else "exit code 0"

    def stop(self) -> None:
        """SIGTERM, patience, SIGKILL; returns when the process is gone."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_GRACE_MS / 1000)
        except subprocess.TimeoutExpired:
            _log.warning("%s did not stop within %d ms; killing it", self, STOP_GRACE_MS)
            self.kill()

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    # -- what it says ----------------------------------------------------------------------------

    def info(self) -> dict[str, str]:
        """Its INFO replication; empty if it does not answer."""
        return replication_info(self.address) if self.alive else {}

    def holds_state(self) -> bool | None:
        """Whether it has the locks, be it to serve them or to be promoted; None: it does not say.

        INFO does not tell a backup whose snapshot was cut short from one that has it all. A command
        on the state does: a node without it answers -LOADING.
        """
        info = self.info()
        if not info:
            return None
        if info.get("role") == "master" and "holdfast_mode" in info:
            return True
        answer = first_line(self.address, b"DBSIZE") if self.alive else b""
        if answer.startswith(b"-LOADING"):
            return False
        return True if answer.startswith((b"-READONLY", b":")) else None


def serve_command(config: Config) -> list[str]:
    """The command line of the node that `config` describes."""
    values = {flag.name: getattr(config, flag.name) for flag in flags.SERVE_FLAGS}
    told = flags.to_arguments(flags.SERVE_FLAGS, values)
    return [sys.executable, "-m", "holdfast.server", "serve", *told]


def replication_info(address: Address) -> dict[str, str]:
    """The fields of a node's INFO replication; empty if it does not answer in time."""
    text = _ask(address, b"*2\r\n$4\r\nINFO\r\n$11\r\nreplication\r\n", _read_bulk)
    fields = (line.partition(":") for line in text.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in fields if colon}


def first_line(address: Address, command: bytes) -> bytes:
    """The first line of a node's answer to a command without arguments; empty if none comes."""
    return _ask(address, command + b"\r\n", _read_line)


def _ask(
    address: Address, request: bytes, read: Callable[[Callable[[int], bytes]], bytes]
) -> bytes:
    try:
        with socket.create_connection(address, _ASK_TIMEOUT_MS / 1000) as connection:
            connection.sendall(request)
            return read(connection.recv)
    except OSError:
        return b""


def _read_line(receive: Callable[[int], bytes]) -> bytes:
    """What comes before the first line break; empty if the answer ends early."""
    received = b""
    while len(received) < _ANSWER_BYTES_MAX:
        chunk = receive(_ANSWER_BYTES_MAX)
        if not chunk:
            break
        received += chunk
        line, end, _ = received.partition(b"\r\n")
        if end:
            return line
    return b""


def _read_bulk(receive: Callable[[int], bytes]) -> bytes:
    """One bulk string; empty if the answer is anything else, or ends early."""
    received = b""
    while len(received) < _ANSWER_BYTES_MAX:
        header, end, body = received.partition(b"\r\n")
        if end:
            if not _is_bulk_header(header):
                return b""
            length = int(header[1:])
            if len(body) >= length:
                return body[:length]
        chunk = receive(_ANSWER_BYTES_MAX)
        if not chunk:
            return b""
        received += chunk
    return b""


def _is_bulk_header(header: bytes) -> bool:
    return len(header) <= _HEADER_BYTES_MAX and header[:1] == b"$" and header[1:].isdigit()


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
