"""The load generator against a real redis-server: it counts what it did, and trusts no reply.

Holdfast's own workload runs against Redis too: two commands under other names do for `LOCK` (any
integer above 0 is a grant) and `UNLOCK` (which here "deletes" the request id as well).
"""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOAD = ROOT / "benchmarks" / "load.py"
START_MAX_S = 10.0
AS_HOLDFAST = ("--rename-command", "SETNX", "LOCK", "--rename-command", "DEL", "UNLOCK")
PIPELINE = 4
CONNECTIONS_COUNT = 8

pytestmark = pytest.mark.skipif(
    shutil.which("redis-server") is None,
    reason="NO redis-server: THE BENCHMARK'S LOAD GENERATOR IS NOT TESTED; install redis-server",
)


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def ask(port: int, line: str) -> str:
    """The reply to one inline command."""
    with socket.create_connection(("127.0.0.1", port), timeout=START_MAX_S) as sock:
        sock.sendall(line.encode() + b"\r\nQUIT\r\n")
        return b"".join(iter(lambda: sock.recv(65536), b"")).decode()


def wait_until_serving(port: int) -> None:
    """Poll until the server takes connections."""
    until_s = time.monotonic() + START_MAX_S
    while True:
        try:
            ask(port, "PING")
            return
        except OSError:
            assert time.monotonic() < until_s, f"redis-server does not answer on port {port}"
            time.sleep(0.02)


@contextmanager
def redis_server(directory: Path, *arguments: str) -> Iterator[int]:
    """A redis-server of our own; its port."""
    port = free_port()
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", ""]
    command += ["--appendonly", "no", "--dir", str(directory), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_until_serving(port)
        yield port
    finally:
        process.kill()
        process.wait()


def load(port: int, workload: str) -> subprocess.CompletedProcess[str]:
    """Run the generator for a moment."""
    command = [sys.executable, str(LOAD), "--port", str(port), "--workload", workload]
    command += ["--connections", str(CONNECTIONS_COUNT), "--pipeline", str(PIPELINE)]
    command += ["--warmup-ms", "50", "--window-ms", "150"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What a run that went well printed."""
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def calls_of(port: int, command: str) -> int:
    """How often the server ran a command, by its own count."""
    found = re.search(rf"cmdstat_{command}:calls=(\d+)", ask(port, "INFO commandstats"))
    return int(found.group(1)) if found else 0


@pytest.mark.parametrize(
    ("workload", "lock", "unlock", "arguments"),
    [
        ("redis", "set", "evalsha", ()),
        ("holdfast", "setnx", "del", AS_HOLDFAST),
        ("holdfast-client-ids", "setnx", "del", AS_HOLDFAST),
    ],
)
def test_load_generator_counts_as_many_operations_as_the_server(
    tmp_path: Path, workload: str, lock: str, unlock: str, arguments: tuple[str, ...]
) -> None:
    """Locks and unlocks come in equal numbers, and no lock stays behind."""
    with redis_server(tmp_path, *arguments) as port:
        result = result_of(load(port, workload))
        locks, unlocks = calls_of(port, lock), calls_of(port, unlock)
        assert ask(port, "DBSIZE").startswith(":0\r\n")
    assert locks == unlocks
    assert locks + unlocks == result["operations_total_count"]
    assert 0 < result["operations_count"] < result["operations_total_count"]
    assert result["operations_count"] % PIPELINE == 0
    assert 0 < result["p50_ms"] <= result["p99_ms"]


def test_the_benchmark_measures_a_real_holdfast(tmp_path: Path) -> None:
    """One short cell, all the way to the written results."""
    command = [sys.executable, "-m", "benchmarks", "--rounds", "1", "--seconds", "0.2"]
    command += ["--modes", "primary-only", "--connections", "4", "--pipelines", "1"]
    command += ["--no-crosscheck", "--directory", str(tmp_path), "--name", "smoke"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "smoke.json").read_text())
    assert results["failures"] == []
    ((runs,),) = [cell["rounds"] for cell in results["cells"]]
    assert all(runs[side]["operations_count"] > 0 for side in ("holdfast", "redis"))
    assert (tmp_path / "smoke.md").read_text()


@pytest.mark.parametrize(
    ("workload", "arguments", "before", "reply"),
    [
        # Somebody else holds a name that comes up later in the run.
        ("redis", (), "SET lock:000007:3 somebody", "$-1"),
        ("holdfast", AS_HOLDFAST, "SET lock:000007:3 somebody", ":0"),
        # Nobody acknowledges: WAIT's reply is the one that is wrong.
        ("redis-wait", (), "PING", ":0"),
        ("holdfast", (), "PING", "-ERR unknown command 'LOCK'"),
    ],
)
def test_load_generator_fails_on_a_wrong_reply(
    tmp_path: Path, workload: str, arguments: tuple[str, ...], before: str, reply: str
) -> None:
    """No figures come out, the exit status is not zero, and the message shows the reply."""
    with redis_server(tmp_path, *arguments) as port:
        ask(port, before)
        done = load(port, workload)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "wrong reply" in done.stderr
    assert reply in done.stderr
