"""Programs of the system and other people's packages: found, or the test is skipped, loudly."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import select
import shutil
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from .processes import TIMEOUT_S, die_with_parent, environment

CACHE = Path(__file__).resolve().parents[2] / ".cache"
"""What is made once and kept: git-ignored, in the checkout, where nobody else writes."""


def needed(program: str, package: str) -> str:
    """The path of a program; without it the test is skipped, and says what to install."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"NOT TESTED: {program} is not here (apt: {package})")
    return path


def run(*command: str, stdin: bytes | None = None, timeout_s: float = 60.0) -> str:
    """What a program prints, its exit code being 0."""
    done = subprocess.run(
        command, input=stdin, capture_output=True, timeout=timeout_s, env=environment()
    )
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout.decode()


def python_with(*requirements: str) -> str:
    """A Python that has other versions of packages than ours has, made once for all runs."""
    mark = hashlib.sha256(" ".join([*requirements, sys.version]).encode()).hexdigest()[:12]
    CACHE.mkdir(exist_ok=True)
    folder = CACHE / f"python-{mark}"
    python = folder / "bin" / "python"
    with (CACHE / f"python-{mark}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be making it
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _make_venv(folder, python, requirements)
            (folder / "complete").touch()
    return str(python)


def _make_venv(folder: Path, python: Path, requirements: tuple[str, ...]) -> None:
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", *requirements],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            wanted = " ".join(requirements)
            pytest.skip(f"NOT TESTED: cannot install {wanted}: {done.stderr[-300:]}")


class Terminal:
    """A program in a terminal of its own: type into it, and see what it shows."""

    def __init__(self, *command: str) -> None:
        self._screen, inner = pty.openpty()
        termios.tcsetwinsize(inner, (24, 120))
        self._process = subprocess.Popen(
            command,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env={**environment(), "TERM": "xterm", "HOME": "/nonexistent"},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        os.close(inner)
        self.shown = b""

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._screen, text.encode())

    def wait_shown(self, *texts: bytes) -> None:
        """Wait until all of `texts` have been shown."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while not all(text in self.shown for text in texts):
            assert time.monotonic() < deadline_s, (texts, self.shown[-3000:])
            self.wait_more()

    def wait_more(self) -> None:
        """Wait until something more is shown."""
        if select.select([self._screen], [], [], TIMEOUT_S)[0]:
            self.shown += os.read(self._screen, 65536)
            return
        raise AssertionError(f"nothing more is shown than {self.shown[-3000:]!r}")

    def forget(self) -> None:
        """Look only at what is shown from now on."""
        self.shown = b""

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.wait()
        os.close(self._screen)
