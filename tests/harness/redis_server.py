"""A real redis-server beside ours, for comparison; where there is none, the test is skipped."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from .ports import HOST, Port
from .processes import die_with_parent, wait_until
from .wire import Closed, Wire


class RedisServer:
    """A redis-server 7 that keeps nothing, as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = Port()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port.number

    def __enter__(self) -> RedisServer:
        command = shutil.which("redis-server")
        if command is None:
            self._port.release()
            pytest.skip("NOT COMPARED WITH REDIS: no redis-server here (apt: redis-server)")
        version = subprocess.run([command, "--version"], capture_output=True, text=True).stdout
        if "v=7." not in version:
            self._port.release()
            pytest.skip(f"NOT COMPARED WITH REDIS: redis-server 7 is wanted, here is {version}")
        with (self._folder / "redis.log").open("wb") as log:
            self._process = subprocess.Popen(
                [command, "--port", str(self.port), "--bind", HOST, "--save", ""],
                stdin=subprocess.DEVNULL,
                stdout=log,
                cwd=self._folder,
                preexec_fn=die_with_parent,
            )
        wait_until(self._answers, "redis-server answers")
        return self

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self._folder / "redis.log").read_text()
        try:
            with Wire(self.port, 1.0) as wire:
                return wire.ask("PING") == b"PONG"
        except (OSError, Closed):
            return False

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._port.release()
