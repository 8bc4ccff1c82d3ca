"""The benchmark measures what it says it does, and trusts no reply.

Holdfast's own workload runs against Redis too: two commands under other names do for `LOCK` (any
integer above 0 is a grant) and `UNLOCK` (which here "deletes" the request id as well).
"""

import importlib.util
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
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


# -- the parts on waiting and leases ---------------------------------------------------------------


@pytest.fixture(scope="module")
def parts() -> ModuleType:
    """The package `benchmarks`, which is no part of what is installed."""
    folder = ROOT / "benchmarks"
    spec = importlib.util.spec_from_file_location("benchmarks", folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["benchmarks"] = package
    spec.loader.exec_module(package)
    names = ("children", "contention", "expiry", "fill", "gauges", "memory", "resync", "storm")
    for name in names:
        importlib.import_module(f"benchmarks.{name}")
    return package


MS = 1_000_000


def grants_of(parts: ModuleType, *rows: tuple[int, int, int, int]) -> list[Any]:
    """Grants from (client, began, granted, released) in milliseconds."""
    return [
        parts.contention.Grant(client, began * MS, granted * MS, released * MS)
        for client, began, granted, released in rows
    ]


def test_a_handover_is_from_a_release_to_the_grant_of_one_who_waited(parts: ModuleType) -> None:
    """Not to the same client, not to one who came later, and not outside of the window."""
    grants = grants_of(
        parts,
        (0, 0, 10, 20),
        (1, 5, 23, 30),  # 3 ms behind the release of client 0
        (1, 31, 32, 40),  # has taken it again
        (2, 45, 46, 50),  # came when nobody had it
        (0, 21, 57, 60),  # 7 ms behind
        (1, 41, 99, 100),  # after the window
    )
    run = parts.contention.figures(grants[::-1], 3, 0, 90 * MS)
    assert run["handovers_count"] == 2
    assert (run["handover_ms"]["p50"], run["handover_ms"]["max"]) == (3, 7)
    assert run["kept_part"] == 1 / 4
    assert run["grants_per_client"] == [2, 2, 1]
    assert (run["grants_count"], run["grants_total_count"]) == (5, 6)
    assert run["wait_ms"]["max"] == 36
    assert run["longest_wait_ms"] == 49  # of client 1, who still waits at the end


def test_two_holders_at_once_are_an_error_of_the_run(parts: ModuleType) -> None:
    """Then the figures would be those of no lock at all."""
    grants = grants_of(parts, (0, 0, 10, 20), (1, 0, 19, 30))
    with pytest.raises(parts.contention.RunError, match="clients 0 and 1 both had the lock"):
        parts.contention.figures(grants, 2, 0, 50 * MS)


def test_fairness_is_told_by_an_index_and_a_histogram(parts: ModuleType) -> None:
    """All the same: 1. One of n has all: 1/n."""
    assert parts.contention.jain_index([5, 5, 5, 5]) == 1
    assert parts.contention.jain_index([20, 0, 0, 0]) == 1 / 4
    assert parts.contention_report.histogram([20, 0, 0, 0]) == [3, 0, 0, 0, 0, 1]
    assert parts.contention_report.histogram([10, 10, 3, 17]) == [0, 1, 0, 2, 1, 0]


def test_a_lease_that_ended_early_is_an_error_of_the_run(parts: ModuleType) -> None:
    """However little."""
    assert parts.expiry.figures([(50, 1), (60, 2 * MS)])["late_ms"]["max"] == 2
    with pytest.raises(parts.expiry.RunError, match=r"a lease of 60 ms ended 0\.001 ms early"):
        parts.expiry.figures([(50, 1), (60, -1000)])


def part(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run a part of the benchmark as one does by hand; its cells."""
    command = [sys.executable, "-m", "benchmarks", *arguments, "--rounds", "1"]
    command += ["--modes", "primary-only", "--directory", str(tmp_path), "--name", "tiny"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "tiny.json").read_text())
    assert results["failures"] == []
    assert (tmp_path / "tiny.md").read_text()
    cells: list[dict[str, Any]] = results["cells"]
    return cells


def test_contention_measures_real_locks(tmp_path: Path) -> None:
    """Every side hands the lock over; the counts were compared with the servers' in the run."""
    tiny = ("--seconds", "0.3", "--contenders", "3", "--patterns", "yielding", "--sleeps", "0.005")
    (cell,) = part(tmp_path, "contention", *tiny)
    ((runs),) = cell["rounds"]
    assert list(runs) == ["Holdfast", "Clerk", "redis-py 5 ms"]
    for run in runs.values():
        assert run["handovers_count"] > 0
        assert 0 < run["handover_ms"]["p50"] <= run["handover_ms"]["p95"]
        assert sum(run["grants_per_client"]) == run["grants_count"] <= run["grants_total_count"]
        # A grant and a release, give or take those that straddle the ends of the window.
        assert run["commands_per_grant"] > 1
        assert run["cpu_us_per_grant"]["primary"] > 0
        assert run["kept_part"] == 0


def test_expiry_measures_real_leases(tmp_path: Path) -> None:
    """With the load beside it; none was early, or the run would have failed."""
    tiny = ("--seconds", "0.2", "--lanes", "4", "--lease-ms", "20", "50", "--loads", "loaded")
    (cell,) = part(tmp_path, "expiry", *tiny, "--load-rate", "1000", "--sleeps", "0.005")
    ((runs),) = cell["rounds"]
    assert list(runs) == ["Holdfast", "redis-py 5 ms", "Redis events"]
    for run in runs.values():
        assert run["leases_count"] >= 4
        assert 0 <= run["earliest_ms"] <= run["late_ms"]["p50"]
        assert run["load_per_s"] > 100


HOLDFAST = [sys.executable, "-m", "holdfast.server", "serve"]


def test_memory_measures_the_processes_that_hold_the_locks(
    parts: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the bytes of the names and owners; and none is counted that was not there."""
    memory = parts.memory
    monkeypatch.setattr(memory, "CALM_S", 0.05)
    with memory.running("holdfast", "primary-only", HOLDFAST) as pair:
        run = memory.run_once(pair, "Holdfast", 10_000)
        assert 34 < run["bytes_per_lock"]["primary"] < 2_000
        assert run["course"][-1][0] == 10_000
        ask(pair.primary.port, "DEL warm:000000007")
        held_count = parts.gauges.keys_count(pair.primary.port)
    assert held_count == 10_000 + memory.WARM_UP_COUNT - 1


def test_storm_sees_waits_and_the_end_of_all_leases(
    parts: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of PING and of a lock, in the calm before and in the storm."""
    storm = parts.storm
    for name, value in {"LEAD_S": 0.7, "CALM_S": 0.3, "SPREAD_MS": 200, "TRIAL_COUNT": 500}.items():
        monkeypatch.setattr(storm, name, value)
    with (
        storm.running("holdfast", "primary-only", HOLDFAST) as pair,
        storm.child("paced") as paced,
    ):
        run = storm.run_once(pair, paced, "primary-only", "Holdfast", 2_000)
    assert run["left"][-1][1] <= 1
    assert 0 < run["gone_s"] < 10
    for kind in ("ping", "lock"):
        for phase in ("calm", "storm"):
            waits = run[f"{phase}_{kind}_ms"]
            assert 0 < waits["p50"] <= waits["p99"] <= waits["max"]


@pytest.mark.parametrize("side", ["Holdfast", "Redis"])
def test_resync_sees_a_backup_come_back_empty_and_with_its_state(
    parts: ModuleType, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    """Each by the resync that it is to be; and waits are there of before, and of during it."""
    resync = parts.resync
    for name in ("SETTLE_S", "ALONE_S", "RESYNC_MIN_S", "AFTER_S"):
        monkeypatch.setattr(resync, name, 0.2)
    tiny = ["--count", "500", "--seconds", "0.3", "--load-rate", "500"]
    options = importlib.import_module("benchmarks.parts").options_of(resync, tiny)
    runs = resync.run_once(side, ["full", "partial"], options)
    assert list(runs) == ["full", "partial"]
    for run in runs.values():
        assert run["attempts_count"] >= 1
        assert 0 < run["resync_s"] < resync.BACK_MAX_S
        assert run["load_per_s"] > 50
        for kind in ("ping", "lock"):
            for phase in ("calm", "resync"):
                waits = run[f"{phase}_{kind}_ms"]
                assert 0 < waits["p50"] <= waits["p99"] <= waits["max"]
    if side == "Holdfast":
        assert runs["full"]["sent_count"] >= 500  # the locks, and replies that are remembered
        assert runs["partial"]["sent_count"] > 0


def resync_run(parts: ModuleType, waits_ms: list[tuple[float, int]]) -> dict[str, Any]:
    """The figures of a calm from 0 s to 1 s, alone from 4 s, and a resync from 5 s to 5.5 s, out of
    (sent at, waited) of a lock."""
    resync = parts.resync
    readings = [resync.Reading(at_s, at_s * 4e5, at_s * 1e5) for at_s in (0, 1, 5, 5.5)]
    calm, lost, begun, paired = readings
    course = resync.Course(calm, lost, 4, 5, begun, paired, 1_000, 1)
    waits = [(round(at_s * 1e9), wait_ms * MS) for at_s, wait_ms in waits_ms]
    seen = {
        "streams": [{"waits": waits[:1]}, {"waits": waits}],
        "late": [(round(5.2e9), 7 * MS)],
        "load": {"streams": [{"waits": waits}]},
    }
    run: dict[str, Any] = resync.figures(course, seen)
    return run


def test_waits_of_a_resync_are_those_of_requests_sent_in_it(parts: ModuleType) -> None:
    """Over a second at least; what waited while the backup was lost counts nowhere."""
    run = resync_run(
        parts, [(0.1, 2), (0.9, 4), (1.5, 2_000), (4.5, 5), (5.1, 8), (5.9, 12), (6.1, 99)]
    )
    assert (run["calm_lock_ms"]["p50"], run["calm_lock_ms"]["max"]) == (2, 4)
    assert run["alone_lock_ms"]["max"] == 5
    assert (run["resync_lock_ms"]["p50"], run["resync_lock_ms"]["max"]) == (8, 12)
    assert (run["calm_own_ms"], run["resync_own_ms"]) == (0, 7)
    assert (run["resync_s"], run["sent_per_s"], run["load_per_s"]) == (0.5, 2_000, 2)
    assert run["resync_primary"] == pytest.approx({"busy": 0.4, "queued": 0.1})


def test_the_ratio_of_a_resync_is_the_median_of_the_rounds_own(parts: ModuleType) -> None:
    """And the aim is told from it."""
    rounds = [
        {"Holdfast": resync_run(parts, [(0.1, calm_ms), (5.1, resync_ms)])}
        for calm_ms, resync_ms in ((1, 2), (10, 50), (2, 8))
    ]
    cell = {"kind": "full", "rounds": rounds}
    row = parts.resync.wait_row(cell, "Holdfast", "lock")
    ratio, between = row[parts.resync.WAIT_COLUMNS.index("p99 ratio") :][:2]
    assert (ratio, between) == ("4.00", "2.00 to 5.00")
    assert "4.00 times" in parts.resync.aim_line(cell)
    assert "NOT reached" in parts.resync.aim_line(cell)


def test_a_resync_of_the_wrong_kind_is_an_error_of_the_run(parts: ModuleType) -> None:
    """As when the backlog did not reach back far enough."""
    resync = parts.resync
    before = resync.Look(0.0, "paired", {"full": 1, "partial": 0}, 100)
    after = resync.Look(9.0, "paired", {"full": 3, "partial": 0}, 200)
    assert resync.attempts("full", before, after) == 2
    with pytest.raises(resync.RunError, match="to be a partial resync was another"):
        resync.attempts("partial", before, after)


def test_paced_requests_feel_a_pause_as_often_as_they_were_due_in_it(
    parts: ModuleType, tmp_path: Path
) -> None:
    """A server that stands still for 100 ms is no rare event for who asks every 2 ms."""
    pause_s = 0.1
    debug = ("--enable-debug-command", "local")
    with redis_server(tmp_path, *debug) as port, parts.children.child("paced") as paced:
        paced.send({"port": port, "kinds": ["PING", "SET"], "interval_us": 2_000})
        paced.receive()
        paced.send({"go": True})
        wire = parts.gauges.Wire(port)
        wire.expect(b"+OK", b"DEBUG", b"SLEEP", b"%.1f" % pause_s)
        wire.close()
        paced.send({"stop": True})
        reply = paced.receive()
    for stream in reply["streams"]:
        waits_ms = [wait_ns / MS for _, wait_ns in stream["waits"]]
        assert max(waits_ms) > pause_s * 1000 / 2
        assert sum(wait_ms > pause_s * 1000 / 4 for wait_ms in waits_ms) > 5


def test_a_wrong_reply_ends_a_paced_run_with_an_error(parts: ModuleType, tmp_path: Path) -> None:
    """Nothing comes out of it, and the child goes on to serve."""
    with redis_server(tmp_path) as port, parts.children.child("paced") as paced:
        for _ in range(2):
            paced.send({"port": port, "kinds": ["LOCK"], "interval_us": 1_000})
            paced.receive()
            paced.send({"go": True})
            with pytest.raises(parts.children.ChildError, match="unknown command 'LOCK'"):
                paced.receive()


def test_filling_checks_every_reply(parts: ModuleType, tmp_path: Path) -> None:
    """One that is wrong, of many in a batch, is found."""
    with redis_server(tmp_path) as port:
        ask(port, "HSET lock:000000777 a b")
        filler = parts.fill.Filler(port, False)
        assert filler.fill(b"lock", range(1_000), lambda _: 60_000) > 0
        assert parts.gauges.keys_count(port) == 1_000
        filler.close()
        filler = parts.fill.Filler(port, True)
        with pytest.raises(parts.fill.LoadError, match="unknown command 'LOCK'"):
            filler.fill(b"lock", range(1_000), lambda _: 60_000)
        filler.close()


def command_line(pid: int) -> str:
    """Of a process; "" once it has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def started_by(pid: int) -> set[int]:
    """The servers and processes for load that a process has started."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    children = {int(word) for word in text.split()}
    return {
        it
        for it in children
        if re.search(r"--port|redis-server .*:|benchmarks\.\w", command_line(it))
    }


@pytest.mark.parametrize(
    ("part", "processes_count", "number", "status"),
    [
        # In the midst of measuring: two servers, and two processes for load.
        ("contention", 4, signal.SIGINT, 130),
        # As soon as there is a server.
        ("memory", 1, signal.SIGTERM, 143),
    ],
)
def test_an_interrupted_part_leaves_no_process_behind(
    tmp_path: Path, part: str, processes_count: int, number: signal.Signals, status: int
) -> None:
    """Nor results."""
    command = [sys.executable, "-m", "benchmarks", part, "--modes", "primary-only"]
    process = subprocess.Popen([*command, "--directory", str(tmp_path)], cwd=ROOT)
    try:
        until_s = time.monotonic() + START_MAX_S
        while len(below := started_by(process.pid)) < processes_count:
            assert time.monotonic() < until_s
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(20) == status
    finally:
        process.kill()
        process.wait()
    assert not [pid for pid in below if Path(f"/proc/{pid}").exists()]
    assert not list(tmp_path.iterdir())
