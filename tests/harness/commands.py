"""Commands of the `holdfast` program in processes that are forked, not started.

A process has loaded the client side and forks: a command begins in some milliseconds instead of a
quarter of a second. What it forks has a session, an environment, a folder and files of its own,
runs the same `main`, and ends as an interpreter ends. What is claimed of the program's own start,
of a terminal, or of what is inherited with exec needs an interpreter of its own all the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.processes import die_with_parent, environment

RUNS = 1_000
"""Instead of an exit code."""

REQUEST_BYTES_MAX = 65_536


class Commands:
    """Forks commands. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "harness.commands", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=Path(__file__).parent.parent,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment(),
                preexec_fn=die_with_parent,
            )

    def start(
        self,
        words: Sequence[str | bytes],
        *,
        env: Mapping[str, str],
        folder: Path,
        files: tuple[int, int, int],
    ) -> Command:
        """`holdfast` with words, in a session of its own; `files` are its 0, 1 and 2."""
        texts = [os.fsdecode(word) for word in words]
        return Command(self, self.call(["fork", texts, dict(env), str(folder)], files))

    def call(self, request: object, files: Sequence[int] = ()) -> int:
        """Have the process do something; a number comes back."""
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(request).encode()], files)
            answer = self._socket.recv(100)
        assert answer, "the process that forks has died"
        return int(answer)

    def close(self) -> None:
        """End it; commands that are still there die with it."""
        self._process.kill()
        self._process.wait()
        self._socket.close()


class Command:
    """One that was forked; the methods are those of Popen."""

    def __init__(self, commands: Commands, pid: int) -> None:
        self.pid = pid
        self._commands = commands
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code (negative: the signal), None while it runs."""
        if self._code is None:
            code = self._commands.call(["poll", self.pid])
            self._code = None if code == RUNS else code
        return self._code

    def wait(self, timeout: float) -> int:
        """Wait for the exit code."""
        deadline_s = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline_s:
                raise subprocess.TimeoutExpired("holdfast", timeout)
            time.sleep(0.002)
        return code

    def send_signal(self, number: int) -> None:
        """Nothing once its exit code is known: the process id may be another's."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _serve(requests: socket.socket) -> list[str] | None:
    """Forks and polls; None at the end. In a child that was forked: what `main` is to run."""
    while True:
        data, files, _, _ = socket.recv_fds(requests, REQUEST_BYTES_MAX, 3)
        if not data:
            return None
        verb, *rest = json.loads(data)
        if verb == "poll":
            requests.send(b"%d" % _code_of(*rest))
            continue
        child = os.fork()
        if child == 0:
            requests.close()
            _become(files, *rest[1:])
            return list(rest[0])
        for each in files:
            os.close(each)
        requests.send(b"%d" % child)


def _become(files: Sequence[int], environ: Mapping[str, str], folder: str) -> None:
    die_with_parent()
    os.setsid()
    for number, each in enumerate(files):
        os.dup2(each, number)
        os.close(each)
    # Those that Python made at its start know what was there then, whether it could seek for one.
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)


def _code_of(pid: int) -> int:
    with contextlib.suppress(ChildProcessError):
        done, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if done else RUNS
    return -signal.SIGKILL


def _main() -> None:
    # What a command would spend its start on.
    import holdfast.compat.cli.lock
    import holdfast.compat.cli.once
    import holdfast.compat.cli.operators
    import holdfast.compat.demo.client
    import holdfast.compat.demo.storage  # noqa: F401
    from holdfast.server.__main__ import main

    words = _serve(socket.socket(fileno=int(sys.argv[1])))
    if words is not None:
        sys.exit(main(words))


if __name__ == "__main__":
    _main()
