"""Processes of the benchmark's own that make load: a job in, a result out, a line of JSON each.

A child ends with its `with` block, or with the benchmark, whatever happens (see `servers.py`).

    parent                                 child
      job ───────────────────────────────▶   connects, says that it is ready
      ◀───────────────────────────── ready
      go (from when, until when) ────────▶   works
      ◀──────────────────────────── result
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .servers import spawned

ROOT = Path(__file__).resolve().parent.parent
READ_BYTES = 1 << 20
READY_MAX_S = 20.0

Message = dict[str, Any]
Work = Callable[[Message], Message]


class ChildError(Exception):
    """A child failed, said nothing in time, or is gone."""


class Child:
    """The parent's end."""

    def __init__(self, process: subprocess.Popen[bytes], what: str) -> None:
        self._process = process
        self._what = what
        self._received = b""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, message: Message) -> None:
        """One line, to the child."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ChildError(f"{self._what} is gone") from None

    def receive(self, limit_s: float = READY_MAX_S) -> Message:
        """The next line from the child; raises ChildError if that tells of a failure."""
        until_s = time.monotonic() + limit_s
        while b"\n" not in self._received:
            self._received += self._read(until_s - time.monotonic())
        line, _, self._received = self._received.partition(b"\n")
        message: Message = json.loads(line)
        if "error" in message:
            raise ChildError(f"{self._what}: {message['error']}")
        return message

    def _read(self, limit_s: float) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        if not select.select([descriptor], [], [], max(0.0, limit_s))[0]:
            raise ChildError(f"{self._what} said nothing in time")
        piece = os.read(descriptor, READ_BYTES)
        if not piece:
            raise ChildError(f"{self._what} is gone")
        return piece


@contextlib.contextmanager
def child(module: str, *, patched: bool = False) -> Iterator[Child]:
    """A process that runs `benchmarks.<module>`; `patched`: by gevent, threads are greenlets."""
    run = ["-m", "gevent.monkey", "--module"] if patched else ["-m"]
    arguments = [sys.executable, *run, f"benchmarks.{module}"]
    with spawned(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        try:
            yield Child(process, module)
        finally:
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def say(message: Message) -> None:
    """One line, to the parent."""
    print(json.dumps(message), flush=True)


def listen() -> Message | None:
    """The next line from the parent; None if it wants nothing more."""
    line = sys.stdin.readline()
    return json.loads(line) if line else None


def serve(work: Work) -> int:
    """A child's main: do one job after another, and tell of failures instead of dying of them."""
    while (job := listen()) is not None:
        try:
            say(work(job))
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})
    return 0


def wait_for_go() -> Message:
    """Tell the parent that all is prepared; what it says then."""
    say({"ready": True})
    go = listen()
    if go is None:
        raise ChildError("the parent is gone")
    return go


def sleep_until_ns(instant_ns: int) -> None:
    """Sleep to an instant of the monotonic clock, which all processes of a machine share."""
    while (left_ns := instant_ns - time.monotonic_ns()) > 0:
        time.sleep(left_ns / 1e9)
