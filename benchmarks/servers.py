"""Starts what is measured, on free local ports, and takes it all down again, whatever happens.

`running(side, mode, ...)` yields a `Pair` of processes that serve, and, when replicated, whose
backup has caught up. A process ends with its `with` block; should the benchmark itself be killed,
the kernel kills it (`PR_SET_PDEATHSIG`). Linux only, as `/proc` is.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
START_MAX_S = 15.0
STOP_MAX_S = 5.0
POLL_S = 0.02
ASK_MAX_S = 1.0
START_ATTEMPTS_MAX = 3  # a free port may be taken by another before its server binds it
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)

REDIS_COMMAND = [
    "redis-server", "--bind", HOST, "--save", "", "--appendonly", "no",
    "--repl-diskless-sync-delay", "0",  # or a replica waits 5 s before its first copy
]  # fmt: skip


class ServerError(Exception):
    """A server did not start, or did not become ready."""


class EndedEarlyError(ServerError):
    """A server ended at once: perhaps its port was taken."""


@dataclass(frozen=True)
class Node:
    """One server process."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def explained(self, what: str) -> str:
        """What went wrong, with the last lines that the server wrote."""
        tail = self.log.read_text(errors="replace").splitlines()[-8:]
        return "\n  ".join([f"{what}; its last lines:", *tail])


@dataclass(frozen=True)
class Pair:
    """A primary, and its backup when replicated."""

    primary: Node
    backup: Node | None

    def pids(self) -> dict[str, int]:
        """Process ids by role."""
        nodes = {"primary": self.primary, "backup": self.backup}
        return {role: node.process.pid for role, node in nodes.items() if node is not None}


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def ask(port: int, line: str, limit_s: float = ASK_MAX_S) -> str:
    """The reply to one inline command; "" if the server cannot be asked yet."""
    try:
        with socket.create_connection((HOST, port), timeout=limit_s) as sock:
            sock.sendall(line.encode() + b"\r\nQUIT\r\n")
            return b"".join(iter(lambda: sock.recv(65536), b"")).decode(errors="replace")
    except OSError:
        return ""


def redis_arguments(port: int, directory: str, primary_port: int | None) -> list[str]:
    """A redis-server that persists nothing; a replica if told of a primary."""
    replica = ["--replicaof", f"{HOST} {primary_port}"] if primary_port else []
    return [*REDIS_COMMAND, "--port", str(port), "--dir", directory, *replica]


def holdfast_arguments(
    command: list[str], port: int, *, backup: int | None = None, primary: int | None = None
) -> list[str]:
    """One Holdfast node; `backup` and `primary` are the ports of its peer."""
    peer = ["--backup", f"{HOST}:{backup}"] if backup else []
    peer += ["--replicaof", f"{HOST}:{primary}"] if primary else []
    return [*command, "--port", str(port), *peer]


ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _before_program() -> None:
    """In a child: have the kernel end it when we end, and undo what `spawned` did to signals."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)


@contextlib.contextmanager
def spawned(arguments: list[str], **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process of our own, from its start to its end; `how` as for Popen.

    A Ctrl-C in the midst of its start waits until we know it: nobody else would end it.
    """
    process = None
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
        try:
            process = subprocess.Popen(
                arguments, start_new_session=True, preexec_fn=_before_program, **how
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
        yield process
    finally:
        if process is not None:
            stop(process)


@contextlib.contextmanager
def started(arguments: list[str], port: int, directory: str) -> Iterator[Node]:
    """A server process, from its start to its end; settings of ours in the environment are off."""
    log = Path(directory, f"{port}.log")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")}
    with (
        log.open("wb") as output,
        spawned(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        ) as process,
    ):
        yield Node(port, process, log)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process, by force if it does not end when asked, and reap it."""
    process.terminate()
    try:
        process.wait(STOP_MAX_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(ready: Callable[[], bool], nodes: list[Node], what: str) -> None:
    """Poll; give up when a process has ended or time is over."""
    until_s = time.monotonic() + START_MAX_S
    while not ready():
        for node in nodes:
            if node.process.poll() is not None:
                ended = f"the server on port {node.port} ended before it was {what}"
                raise EndedEarlyError(node.explained(ended))
        if time.monotonic() > until_s:
            late = f"the server on port {nodes[0].port} was not {what} within {START_MAX_S} s"
            raise ServerError(nodes[0].explained(late))
        time.sleep(POLL_S)


def listens(port: int) -> bool:
    """Whether a server answers at all; a Holdfast that knows of a backup may not serve yet."""
    return ask(port, "PING") != ""


def serves(port: int) -> bool:
    """Whether a server answers PING as one that serves."""
    return ask(port, "PING").startswith("+PONG")


def holdfast_is_paired(port: int) -> bool:
    """Whether this primary's backup is a member, so that every reply waits for it."""
    return "holdfast_mode:paired\r\n" in ask(port, "INFO replication")


def redis_is_paired(port: int) -> bool:
    """Whether this primary has a replica that is up to date."""
    return "state=online" in ask(port, "INFO replication")


@contextlib.contextmanager
def attempt(side: str, mode: str, holdfast_command: list[str]) -> Iterator[Pair]:
    """Start a node or a pair on ports that were free a moment ago, and wait until it serves."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-"))
        a_port, b_port = free_port(), free_port()
        b_wanted = mode == "replicated"
        if side == "holdfast":
            a = holdfast_arguments(holdfast_command, a_port, backup=b_port if b_wanted else None)
            b = holdfast_arguments(holdfast_command, b_port, primary=a_port)
        else:
            a = redis_arguments(a_port, directory, None)
            b = redis_arguments(b_port, directory, a_port)
        primary = stack.enter_context(started(a, a_port, directory))
        wait_until(lambda: listens(a_port), [primary], "listening")
        if not b_wanted:
            wait_until(lambda: serves(a_port), [primary], "serving")
            yield Pair(primary, None)
            return
        backup = stack.enter_context(started(b, b_port, directory))
        is_paired = holdfast_is_paired if side == "holdfast" else redis_is_paired
        wait_until(lambda: is_paired(a_port), [primary, backup], "paired")
        yield Pair(primary, backup)


@contextlib.contextmanager
def running(side: str, mode: str, holdfast_command: list[str]) -> Iterator[Pair]:
    """Fresh servers for one measurement: `side` "holdfast" or "redis", `mode` as in `run.py`."""
    with contextlib.ExitStack() as stack:
        for attempts_left in reversed(range(START_ATTEMPTS_MAX)):
            try:
                pair = stack.enter_context(attempt(side, mode, holdfast_command))
                break
            except EndedEarlyError:
                if not attempts_left:
                    raise
        yield pair
