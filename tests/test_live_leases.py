"""Leases on real nodes: never early (I8), soon after their end, and none renewed in time is lost.

A client's clock is CLOCK_MONOTONIC here; the lease of a grant is measured from before the request
was sent, which is earlier than it can have begun.
"""

from __future__ import annotations

import ast
import contextlib
import random
import select
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from harness.alone import info_of
from harness.bounded import Bounded
from harness.processes import Cluster, Node, wait_until
from harness.traced_node import Traced
from harness.wire import Closed, ReplyError, Wire, encode

import holdfast.server
from holdfast.server import clock
from holdfast.server.core import limits

PATIENT = ("--promotion-timeout-ms", "60000", "--backup-timeout-ms", "60000")
"""For pairs whose primary stands still for a while and is to stay primary."""


def started(cluster: Cluster, *arguments: str) -> Node:
    """A node without a peer."""
    node = cluster.node("N").start("--log-level", "info", *arguments)
    wait_until(node.answers, f"{node} is up", [node])
    return node


def locked(wire: Wire, name: str, lease_ms: int) -> tuple[int, float]:
    """A lock with a lease: its fencing token, and when it ends at the earliest."""
    sent_s = time.monotonic()
    token = wire.ask("LOCK", name, f"{name} {sent_s}", "PX", lease_ms)
    assert isinstance(token, int) and token > 0
    return token, sent_s + lease_ms / 1000


def stand_in_line(node: Node, names: Sequence[str]) -> list[Wire]:
    """For each of the locks a connection that waits for it."""
    waiting = []
    for name in names:
        wire = node.wire()
        wire.send("LOCK", name, f"{name} next", "WAIT", 60_000)
        waiting.append(wire)
    return waiting


def granted_at(waiting: Sequence[Wire]) -> list[float]:
    """When each of them was granted its lock."""
    by_fd = {wire.sock.fileno(): at for at, wire in enumerate(waiting)}
    poll = select.poll()
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    found = [0.0] * len(waiting)
    left = len(waiting)
    while left:
        ready = poll.poll(60_000)
        now_s = time.monotonic()
        assert ready, "one waits without end"
        for fd, _ in ready:
            poll.unregister(fd)
            found[by_fd[fd]] = now_s
            left -= 1
    for wire in waiting:
        token = wire.read()
        assert isinstance(token, int) and token > 0
        wire.close()
    return found


# -- when a lease ends ---------------------------------------------------------------------------


def test_a_lease_never_ends_early_and_who_waits_has_the_lock_soon_after(
    forked_cluster: Cluster, measured: list[str]
) -> None:
    primary, _ = forked_cluster.pair(*PATIENT)
    rng = random.Random(3)
    names = [f"a{number}" for number in range(200)]
    waiting = [primary.wire() for _ in names]
    with primary.wire() as wire:
        ends_s = []
        first_s = time.monotonic() + 2.0  # (when all of them wait, and are watched)
        for name, each in zip(names, waiting, strict=True):
            left_ms = int((first_s - time.monotonic()) * 1000)
            assert left_ms > 0, "(too slow a machine)"
            _, end_s = locked(wire, name, left_ms + rng.randrange(1_000))
            ends_s.append(end_s)
            each.send("LOCK", name, f"{name} next", "WAIT", 60_000)
    late_ms = [
        (at_s - end_s) * 1000 for at_s, end_s in zip(granted_at(waiting), ends_s, strict=True)
    ]
    assert min(late_ms) >= 0, "one ended early"
    median_ms = statistics.median(late_ms)
    measured.append(
        f"a waiter has the lock {median_ms:.1f} ms after its lease's end in the median, "
        f"{max(late_ms):.1f} ms at most (of {len(names)}, on a pair)"
    )
    assert median_ms < 20


def test_a_renewed_lease_ends_after_the_renewal_and_not_before(forked_cluster: Cluster) -> None:
    node = started(forked_cluster)
    names = [f"a{number}" for number in range(50)]
    with node.wire() as wire:
        tokens = [locked(wire, name, 200)[0] for name in names]
        waiting = stand_in_line(node, names)
        ends_s = []
        for name, token in zip(names, tokens, strict=True):
            sent_s = time.monotonic()
            assert wire.ask("RENEW", name, token, "PX", 700) == 1
            assert wire.ask("RENEW", name, token, "PX", 1) == 1, "a late copy of a shorter one"
            ends_s.append(sent_s + 0.7)
    for at_s, end_s in zip(granted_at(waiting), ends_s, strict=True):
        assert end_s <= at_s < end_s + 5


def test_a_waiters_lease_begins_when_it_is_granted(forked_cluster: Cluster) -> None:
    node = started(forked_cluster)
    with node.wire() as wire, node.wire() as first, node.wire() as second:
        token, _ = locked(wire, "a", 60_000)
        first.send("LOCK", "a", "first", "PX", 300, "WAIT", 60_000)
        wait_until(lambda: wire.inspect("a")["waiter_count"] == 1, "it waits")
        second.send("LOCK", "a", "second", "WAIT", 60_000)
        wait_until(
            lambda: wire.inspect("a")["waiters"] and wire.inspect("a")["waiters"][0][1] > 400,
            "it has waited for longer than its lease",
        )
        released_s = time.monotonic()
        assert wire.ask("UNLOCK", "a", "u", "TOKEN", token) == 1
        assert first.read() != 0
        assert second.read() != 0
        assert time.monotonic() - released_s >= 0.3


# -- a process that stands still -----------------------------------------------------------------


@pytest.fixture(params=["alone", "in a pair"])
def stoppable(request: pytest.FixtureRequest, forked_cluster: Cluster) -> Node:
    """A primary that may be stopped for a while without losing its role."""
    if request.param == "alone":
        return started(forked_cluster)
    return forked_cluster.pair(*PATIENT)[0]


@pytest.mark.parametrize("clients", ["one pipeline", "many connections", "new connections"])
def test_what_was_renewed_in_time_is_not_lost_when_the_process_stood_still(
    stoppable: Node, clients: str
) -> None:
    """The RENEWs lie in the sockets when it goes on, and all leases have passed: the timers of the
    event loop come first, a signal having woken it, and must not end them."""
    kept = [f"kept {number}" for number in range(60)]
    lost = [f"lost {number}" for number in range(60)]
    with stoppable.wire() as wire:
        tokens = [locked(wire, name, 1_000)[0] for name in kept]
        end_s = max(locked(wire, name, 1_000)[1] for name in lost)
        wires = [wire]
        if clients == "many connections":
            wires = [stoppable.wire() for _ in kept]
            assert all(each.ask("PING") == b"PONG" for each in wires)
        stoppable.freeze()
        assert time.monotonic() < end_s - 0.1, "(too slow a machine: the leases are over)"
        if clients == "new connections":  # the kernel takes them, nobody has accepted them
            wires = [stoppable.wire() for _ in kept]
        for at, (name, token) in enumerate(zip(kept, tokens, strict=True)):
            wires[at % len(wires)].send("RENEW", name, token, "PX", 60_000)
        wait_until(lambda: time.monotonic() > end_s + 0.2, "all leases have passed")
        stoppable.thaw()
        assert all(wires[at % len(wires)].read() == 1 for at in range(len(kept)))
        assert wire.ask("EXISTS", *kept) == len(kept)
        assert wire.ask("EXISTS", *lost) == 0


def test_a_release_that_came_in_time_serves_who_waited_though_the_process_stood_still(
    stoppable: Node,
) -> None:
    """No wait runs out before the release that lies in a socket is read."""
    with stoppable.wire() as holder, stoppable.wire() as waiter:
        assert holder.ask("LOCK", "a", "r") != 0
        began_s = time.monotonic()
        waiter.send("LOCK", "a", "w", "WAIT", 700)
        wait_until(lambda: holder.inspect("a")["waiter_count"] == 1, "it waits")
        stoppable.freeze()
        assert time.monotonic() < began_s + 0.6, "(too slow a machine)"
        holder.send("UNLOCK", "a", "u")
        wait_until(lambda: time.monotonic() > began_s + 0.9, "its wait is over")
        stoppable.thaw()
        assert holder.read() == 1
        assert waiter.read() != 0


def test_debug_sleep_is_no_excuse_either(forked_cluster: Cluster) -> None:
    """The same when it is a callback that takes long, and not the process that is stopped."""
    node = started(forked_cluster)
    with node.wire() as wire, node.wire() as sleeper:
        kept, _ = locked(wire, "kept", 300)
        locked(wire, "lost", 300)
        sleeper.send("DEBUG", "SLEEP", "0.6")
        wire.send("RENEW", "kept", kept, "PX", 60_000)
        assert wire.read() == 1
        assert sleeper.read() == b"OK"
        assert wire.ask("EXISTS", "kept") == 1
        assert wire.ask("EXISTS", "lost") == 0


def test_a_read_that_fills_the_buffer_to_its_last_byte_holds_nothing_up(
    forked_cluster: Cluster,
) -> None:
    """It looks as if there were more, and nothing more ever comes."""
    node = started(forked_cluster)
    requests = b"PING\r\n" * 2_700
    requests += b"\r\n" * ((limits.RECEIVE_BYTES - len(requests)) // 2)
    assert len(requests) == limits.RECEIVE_BYTES
    with node.wire() as wire, node.wire() as full:
        _, end_s = locked(wire, "a", 1_500)
        waiting = stand_in_line(node, ["a"])
        wait_until(lambda: wire.inspect("a")["waiter_count"] == 1, "it waits")
        full.sock.sendall(requests)
        assert all(full.read() == b"PONG" for _ in range(2_700))
        node.freeze()
        wait_until(lambda: time.monotonic() > end_s + 1.2, "the lease has passed, long ago")
        node.thaw()
        thawed_s = time.monotonic()
        assert granted_at(waiting)[0] - thawed_s < limits.LATE_INPUT_MS / 2_000


def test_who_keeps_its_socket_full_for_ever_holds_nothing_up_and_loses_nobody_a_lease(
    forked_cluster: Cluster,
) -> None:
    """All that was there is read once, and no more is waited for."""
    node = started(forked_cluster)
    stop = threading.Event()
    flood = threading.Thread(target=keep_full, args=(node, stop), daemon=True)
    with node.wire() as wire, node.wire() as holder:
        flood.start()
        kept, _ = locked(holder, "kept", 1_500)
        _, end_s = locked(wire, "lost", 1_500)
        waiting = stand_in_line(node, ["lost"])
        wait_until(lambda: wire.inspect("lost")["waiter_count"] == 1, "it waits")
        node.freeze()
        assert time.monotonic() < end_s - 0.1, "(too slow a machine)"
        holder.send("RENEW", "kept", kept, "PX", 60_000)
        wait_until(lambda: time.monotonic() > end_s + 1.2, "both leases have passed, long ago")
        node.thaw()
        thawed_s = time.monotonic()
        assert granted_at(waiting)[0] - thawed_s < limits.LATE_INPUT_MS / 2_000
        assert holder.read() == 1
        stop.set()
        flood.join(30)


def keep_full(node: Node, stop: threading.Event) -> None:
    """Send faster than is read."""
    with node.wire() as wire:
        wire.sock.setblocking(False)
        data, at = encode("CLIENT", "REPLY", "OFF") + encode("LOCK", "full", "r") * 10_000, 0
        while not stop.is_set():
            select.select([], [wire.sock], [], 0.1)
            with contextlib.suppress(BlockingIOError):
                at = (at + wire.sock.send(data[at:])) % len(data)


# -- failover ------------------------------------------------------------------------------------


def test_no_lease_ends_early_through_a_failover_and_all_of_them_end(
    forked_cluster: Cluster, measured: list[str]
) -> None:
    primary, backup = forked_cluster.pair("--promotion-timeout-ms", "500")
    rng = random.Random(5)
    names = [f"a{number}" for number in range(100)]
    with primary.wire() as wire:
        ends_s = [locked(wire, name, rng.randrange(1_200, 2_200))[1] for name in names]
        kept, _ = locked(wire, "kept", 600_000)
    primary.kill()
    wait_until(lambda: backup.role == "master", "the backup serves", [backup])
    serves_s = time.monotonic()
    found_s = granted_at(stand_in_line(backup, names))
    late_ms = []
    for at_s, end_s in zip(found_s, ends_s, strict=True):
        assert at_s >= end_s, "it ended early"
        late_ms.append((at_s - max(end_s, serves_s)) * 1000)
    assert max(late_ms) < 5_000
    measured.append(
        f"behind a failover a waiter has the lock {statistics.median(late_ms):.1f} ms after its "
        f"lease's end in the median, {max(late_ms):.1f} ms at most"
    )
    with backup.wire() as wire:
        assert wire.ask("VERIFY", "kept", kept) == 1
        left_ms = wire.ask("PTTL", "kept")
        assert isinstance(left_ms, int) and 500_000 < left_ms <= 600_000
        assert wire.ask("RENEW", "kept", kept, "PX", 700_000) == 1


def test_a_lease_goes_on_when_the_pair_is_whole_again(forked_cluster: Cluster) -> None:
    """What is left of it travels in the snapshot: twice through a failover, never early."""
    primary, backup = forked_cluster.pair("--promotion-timeout-ms", "500")
    with primary.wire() as wire:
        token, end_s = locked(wire, "a", 4_000)
    primary.kill()
    wait_until(lambda: backup.role == "master", "the backup serves", [backup])
    primary.start()
    forked_cluster.wait_paired(backup, primary)
    backup.kill()
    wait_until(lambda: primary.role == "master", "the first one serves again", [primary])
    assert time.monotonic() < end_s, "(too slow a machine: nothing is left of the lease)"
    assert primary.ask("VERIFY", "a", str(token)) == 1
    [at_s] = granted_at(stand_in_line(primary, ["a"]))
    assert end_s <= at_s < end_s + 5


# -- clocks --------------------------------------------------------------------------------------


def test_the_clock_of_leases_counts_time_spent_suspended() -> None:
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    assert before <= clock.boot_ms() <= time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def test_the_wall_clock_is_read_for_offsets_and_for_show_only() -> None:
    """`time.time`, `time_ns` and the like stand in few places of the server, all known here."""
    known = {
        "clock.py": {"wall_us"},
        "connection.py": {"__init__"},  # CLIENT LIST: age and idle
        "node.py": {"__init__", "_tick"},  # CLIENT LIST and SLOWLOG
        "commands/server.py": {"time_"},  # TIME
        "log.py": {"format"},
        "commands/info.py": None,  # shows, and decides nothing
        "commands/client.py": None,
    }
    folder = Path(holdfast.server.__file__).parent
    for file in folder.rglob("*.py"):
        allowed = known.get(str(file.relative_to(folder)), set())
        for function in ast.walk(ast.parse(file.read_text())):
            if allowed is None or not isinstance(function, ast.FunctionDef):
                continue
            if any(is_wall_clock(node) for node in ast.walk(function)):
                assert function.name in allowed, (file.name, function.name)


def is_wall_clock(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    if isinstance(function, ast.Name):
        return function.id in ("time", "time_ns", "now", "utcnow")
    return (
        isinstance(function, ast.Attribute)
        and function.attr in ("time", "time_ns", "now", "utcnow", "localtime", "gmtime")
        and isinstance(function.value, ast.Name)
        and function.value.id in ("time", "datetime")
    )


def test_steps_of_the_wall_clock_neither_end_nor_prolong_a_lease(tmp_path: Path) -> None:
    """A day forth and back while leases run, as this process's `time.time` sees it."""
    off = tmp_path / "off"
    cluster = Cluster(tmp_path, Bounded(off))
    try:
        node = started(cluster)
        names = [f"a{number}" for number in range(12)]
        with node.wire() as wire:
            ends_s = [locked(wire, name, 600 + 50 * at)[1] for at, name in enumerate(names)]
            locked(wire, "long", 600_000)
            waiting = stand_in_line(node, names)
            for off_s in ("86400", "-86400"):
                off.write_text(off_s)
                reply = wire.ask("TIME")
                assert isinstance(reply, list)
                assert abs(int(reply[0]) - time.time() - int(off_s)) < 60, "it has stepped"
                if off_s == "86400":
                    assert wire.ask("EXISTS", *names, "long") == len(names) + 1
            for at_s, end_s in zip(granted_at(waiting), ends_s, strict=True):
                assert end_s <= at_s < end_s + 5
            left_ms = wire.ask("PTTL", "long")
            assert isinstance(left_ms, int) and 500_000 < left_ms <= 600_000
    finally:
        cluster.close()


# -- many at a time ------------------------------------------------------------------------------

LEASES = 60_000


class Probe:
    """A client that asks for little, again and again, and notes how long it takes."""

    def __init__(self, node: Node) -> None:
        self.took_ms: list[float] = []
        self._wire = node.wire()
        self._stop = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        number = 0
        try:
            while not self._stop:
                for words in (
                    ("PING",),
                    ("LOCK", "probe", f"@probe:{number}"),
                    ("UNLOCK", "probe", f"@probe:{number + 1}"),
                ):
                    sent_s = time.monotonic()
                    assert self._wire.ask(*words) != 0
                    self.took_ms.append((time.monotonic() - sent_s) * 1000)
                number += 2
                time.sleep(0.001)
        except BaseException as error:
            self._error = error

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join(30)
        self._wire.close()
        if self._error is not None:
            raise self._error


def lock_many(node: Node, count: int) -> float:
    """So many locks whose leases all end at the same time; when that is."""
    with node.wire() as wire:
        started_s = time.monotonic()
        lock_some(wire, range(1_000), 600_000)
        estimate_s = (time.monotonic() - started_s) * count / 1_000
        end_s = time.monotonic() + estimate_s + 2
        for first in range(1_000, count, 1_000):
            lease_ms = int((end_s - time.monotonic()) * 1000)
            assert lease_ms > 100, "(too slow a machine)"
            lock_some(wire, range(first, first + 1_000), lease_ms)
        names = [f"many {number}" for number in range(1_000)]
        wire.ask("DEL", *names)
        lock_some(wire, range(1_000), int((end_s - time.monotonic()) * 1000))
        assert wire.ask("DBSIZE") == count
        return end_s


def lock_some(wire: Wire, numbers: range, lease_ms: int) -> None:
    moment = time.monotonic_ns()
    wire.sock.sendall(
        b"".join(
            encode("LOCK", f"many {number}", f"{number} {moment}", "PX", lease_ms)
            for number in numbers
        )
    )
    for _ in numbers:
        assert wire.read() != 0


def test_many_leases_that_end_in_the_same_moment_stall_nobody(
    tmp_path: Path, measured: list[str]
) -> None:
    """Turns are measured in CPU time: what else this machine does is not the node's doing."""
    traced = Traced(tmp_path)
    cluster = Cluster(tmp_path, traced)
    try:
        primary, backup = cluster.pair(*PATIENT)
        end_s = lock_many(primary, LEASES)
        with Probe(primary) as probe, primary.wire() as wire:
            wait_until(lambda: time.monotonic() > end_s - 0.3, "they are about to end")
            idle = len(probe.took_ms)
            wait_until(lambda: wire.ask("DBSIZE") <= 1, "all have ended", [primary], timeout_s=60)
            took_s = time.monotonic() - end_s
            busy_ms = probe.took_ms[idle:]
        with primary.wire() as wire, backup.wire() as other:
            assert wire.ask("EXISTS", *(f"many {n}" for n in range(0, LEASES, 1_000))) == 0
            assert wire.digest() == other.digest()
        report = traced.report(primary)
        longest_ms = report["longest_expiring_turn_ms"]
        measured.append(
            f"{LEASES} leases ended in {took_s:.1f} s and {report['expiring_turns']} turns of at "
            f"most {longest_ms:.1f} ms; others' requests took {statistics.median(busy_ms):.1f} ms "
            f"in the median, {max(busy_ms):.1f} ms at most"
        )
        assert longest_ms < 50
        assert report["expiring_turns"] > LEASES // 2_000, "they were not ended all at once"
        assert statistics.median(busy_ms) < 50
    finally:
        cluster.close()


def test_a_slow_backup_is_not_buried_under_leases_that_end(forked_cluster: Cluster) -> None:
    """Every reply waits for what went out before it: so no more than a batch is under way."""
    primary, backup = forked_cluster.pair(*PATIENT)
    count = 10 * limits.DUE_PER_TURN
    with primary.wire() as wire:
        end_s = time.monotonic() + 3
        for first in range(0, count, 1_000):
            lock_some(wire, range(first, first + 1_000), int((end_s - time.monotonic()) * 1000))
        before = int(info_of(primary)["locks_fence_last"])
        backup.freeze()
        assert time.monotonic() < end_s, "(too slow a machine)"
        wait_until(lambda: time.monotonic() > end_s + 0.5, "all leases have passed")
        appended = int(info_of(primary)["locks_fence_last"]) - before
        assert 0 < appended <= limits.DUE_PER_TURN, "leases that ended"
        backup.thaw()
        wait_until(lambda: wire.ask("DBSIZE") == 0, "all have ended", [primary, backup])
        with backup.wire() as other:
            wait_until(lambda: wire.digest() == other.digest(), "both agree", [primary, backup])


# -- both nodes ----------------------------------------------------------------------------------


def storm(rng: random.Random, wire: Wire, requests: int) -> None:
    """Requests of all kinds, pipelined, one client at a time; what is answered does not matter."""
    data = []
    for number in range(requests):
        name, unique = f"s{rng.randrange(20)}", f"{number} {rng.random()}"
        reqid = rng.choice([unique, f"@c{rng.randrange(5)}:{number}"])
        data.append(
            encode(
                *rng.choice(
                    [
                        ("LOCK", name, reqid),
                        ("LOCK", name, reqid, "OWNER", "o"),
                        ("LOCK", name, reqid, "PX", rng.randrange(1, 100)),
                        ("LOCK", name, reqid, "PX", 600_000),
                        ("LOCK", name, reqid, "PX", 20, "WAIT", rng.randrange(1, 5)),
                        ("UNLOCK", name, reqid),
                        ("UNLOCK", name, reqid, "TOKEN", rng.randrange(1, 2**62)),
                        ("UNLOCK", name, reqid, "REQUEST", f"old {rng.random()}"),
                        ("RENEW", name, rng.randrange(1, 2**62), "PX", 50),
                        ("DEL", name, f"s{rng.randrange(20)}"),
                        ("INSPECT", name),
                        ("GET", name),
                        ("LOCKS", 0, "COUNT", 5),
                        ("LOCK", name, reqid, "PX", 0),
                    ]
                )
            )
        )
    wire.sock.sendall(b"".join(data))
    for _ in data:
        try:
            wire.read()
        except ReplyError as error:
            assert error.code in ("ERR", "REQUESTGONE"), error


@pytest.mark.parametrize("seed", range(3))
def test_both_nodes_agree_after_a_storm_and_while_a_backup_joins(
    forked_cluster: Cluster, seed: int
) -> None:
    """DEBUG DIGEST is asked for all the time, on both; it may say to ask again, no more."""
    primary, backup = forked_cluster.pair(*PATIENT)
    stop = threading.Event()
    errors: list[BaseException] = []

    def client(number: int) -> None:
        rng = random.Random(seed * 100 + number)
        with primary.wire() as wire:
            while not stop.is_set():
                storm(rng, wire, 100)

    def digests(node: Node) -> None:
        while not stop.is_set():
            with contextlib.suppress(Closed, OSError), node.wire() as wire:
                while not stop.is_set():
                    try:
                        wire.ask("DEBUG", "DIGEST")
                    except ReplyError as error:
                        assert error.code in ("TRYAGAIN", "LOADING"), error

    def guarded(run: object, argument: object) -> None:
        try:
            run(argument)  # type: ignore[operator]
        except BaseException as error:
            errors.append(error)

    work = [(client, 0), (client, 1), (client, 2), (digests, primary), (digests, backup)]
    threads = [threading.Thread(target=guarded, args=each, daemon=True) for each in work]
    for thread in threads:
        thread.start()
    for _ in range(2):
        before = primary.ask("DBSIZE")
        assert isinstance(before, int)
        backup.kill()
        wait_until(lambda: primary.mode == "solo", "the primary goes on alone", [primary])
        backup.start()
        forked_cluster.wait_paired(primary, backup)
        assert not errors, errors
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not errors, errors
    with primary.wire() as wire, backup.wire() as other:
        wait_until(lambda: wire.digest() == other.digest(), "both nodes agree", [primary, backup])
        assert primary.is_running and backup.is_running
        assert backup.mode == "paired"
