"""Processes that are started, heard, stopped and resumed, and reaped whatever happens."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from ..cli.prctl import die_with_parent
from ..cli.program import Failure

WAIT_S = 20.0
STOP_GRACE_S = 8.0
EXIT_FAILED = 1


class Child:
    """A Python module that runs as a process; every line that it prints is heard."""

    def __init__(self, name: str, *command: str, hear: Callable[[str, str], None]) -> None:
        self.name = name
        self._hear = hear
        self._last_words = "nothing"
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(),
            text=True,
            errors="replace",
            # A Ctrl-C is for the demo alone: it ends its children in order. Should it be killed,
            # the kernel ends them.
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._hear(self.name, line.rstrip("\n"))
            self._last_words = line.strip() or self._last_words
            self._lines.put(line)
        self._lines.put(None)

    def wait_line(self, pattern: str) -> re.Match[str]:
        """Wait for the next line in which `pattern` is found. Raises Failure."""
        deadline_s = time.monotonic() + WAIT_S
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                raise self._failure(f"has not said {pattern!r} within {WAIT_S:.0f} s") from None
            if line is None:
                raise self._failure(f"has ended without saying {pattern!r}")
            if found := re.search(pattern, line):
                return found

    def wait_end(self) -> int:
        """Wait until it has ended and all it said is heard; the exit code. Raises Failure."""
        try:
            code = self._process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            raise self._failure("does not end") from None
        while self._lines.get() is not None:
            pass
        return code

    def press_enter(self) -> None:
        """On its keyboard; it may be read much later."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: its exit code says more
            self._process.stdin.write("\n")
            self._process.stdin.flush()

    def stop(self) -> None:
        """SIGSTOP: back when the kernel says that it stands still."""
        self._process.send_signal(signal.SIGSTOP)
        # WNOWAIT leaves it to Popen to see the end, should that come first.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def reap(self, *, gently: bool = False) -> None:
        """End it, if it has not ended. Gently: it is asked first, and may end children itself."""
        if gently and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_GRACE_S)
            except subprocess.TimeoutExpired:
                pass
        self._process.kill()
        self._process.wait()

    def _failure(self, what: str) -> Failure:
        return Failure(EXIT_FAILED, f"{self.name} {what}; its last words: {self._last_words}")


def _environment() -> dict[str, str]:
    """Without what would be read as flags; and output that comes when it is printed."""
    environment = {
        name: text for name, text in os.environ.items() if not name.startswith("HOLDFAST_")
    }
    # `python -m` puts the working directory first on the path, and a file of the user's there
    # would replace one of the standard library's.
    if not {"", os.getcwd()} & set(sys.path):
        environment["PYTHONSAFEPATH"] = "1"
    return {**environment, "PYTHONUNBUFFERED": "1"}


class Children:
    """A context manager: at its end none of them is left."""

    def __init__(self, hear: Callable[[str, str], None]) -> None:
        self._hear = hear
        self._all: list[tuple[Child, bool]] = []

    def start(self, name: str, *command: str, gently: bool = False) -> Child:
        """Start `python -m command`."""
        child = Child(name, *command, hear=self._hear)
        self._all.append((child, gently))
        return child

    def __enter__(self) -> Children:
        self._handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, *_ENDING)}
        for each in _ENDING:
            if self._handlers[each] is not signal.SIG_IGN:  # as nohup has it
                signal.signal(each, _end)
        return self

    def __exit__(self, *_: object) -> None:
        # A second Ctrl-C must not leave half of them: for this moment it is not heard.
        for each in self._handlers:
            signal.signal(each, signal.SIG_IGN)
        try:
            for child, gently in reversed(self._all):
                child.reap(gently=gently)
        finally:
            for each, handler in self._handlers.items():
                signal.signal(each, handler)


_ENDING = (signal.SIGTERM, signal.SIGHUP)


def _end(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)
