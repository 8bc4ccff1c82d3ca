"""Clients at the edges: repeats, waits without end, transactions, and what is counted of them.

Each of these was wrong once.
"""

from __future__ import annotations

import os
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from harness.processes import Cluster, Node, wait_until
from harness.raw import Raw, exchange
from harness.replicas import Pair
from harness.wire import ReplyError, Wire, encode

from holdfast.server.core import limits
from holdfast.server.core.reply_cache import Refused

MIB = 1024 * 1024


def started(cluster: Cluster, *arguments: str) -> Node:
    """A node without a peer."""
    node = cluster.node("P").start("--log-level", "info", *arguments)
    wait_until(node.answers, f"{node} is up", [node])
    return node


def error_of(ask: Callable[[], object]) -> str:
    """The code word of the error that comes."""
    with pytest.raises(ReplyError) as caught:
        ask()
    return caught.value.code


def info_of(wire: Wire, *sections: str) -> dict[str, str]:
    """INFO over a connection that there is: of a node that takes no other."""
    text = wire.ask("INFO", *(sections or ("replication",)))
    assert isinstance(text, bytes)
    lines = (line.partition(":") for line in text.decode().splitlines())
    return {name: value for name, colon, value in lines if colon}


def cpu_s(node: Node) -> float:
    """CPU time that the process has used."""
    fields = Path(f"/proc/{node.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(node: Node) -> float:
    """The memory that the process has now."""
    [line] = re.findall(r"VmRSS:\s*(\d+) kB", Path(f"/proc/{node.pid}/status").read_text())
    return int(line) / 1024


def test_a_repeat_of_an_executed_request_is_answered_however_much_is_held_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TRY_AGAIN says "nothing was done", which would be a lie about the first LOCK."""
    monkeypatch.setattr(limits, "HELD_BACK_BYTES_MAX", 100)
    pair = Pair()
    pair.join()
    replica = pair.primary.replica
    executor = replica.executor
    token = executor.lock(b"L", b"r1", "c")
    assert isinstance(token, int) and token > 0
    replica.hold_back([("c", b"x" * 101)], 101)
    assert replica.overflows
    assert executor.lock(b"L", b"r1", "c") == token
    assert executor.lock(b"M", b"r2", "c") is Refused.TRY_AGAIN
    assert b"M" not in replica.state.locks.held
    pair.settle()
    assert not replica.overflows
    assert isinstance(executor.lock(b"M", b"r2", "c"), int)


def test_what_is_sent_behind_a_wait_that_never_ends_is_not_read_without_end(
    forked_cluster: Cluster,
) -> None:
    node = started(forked_cluster)
    before_mib = resident_mib(node)
    echo = encode("ECHO", b"x" * MIB)
    sent = 0
    with Raw(node.port) as raw:
        raw.send(encode("WAIT", "2", "0"))
        raw.sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            while sent < 100:
                raw.sock.sendall(echo)
                sent += 1
        assert sent < 100, "it reads and reads"
        assert resident_mib(node) - before_mib < 30
        assert node.ask("PING") == b"PONG"


def test_out_of_file_descriptors_it_neither_spins_nor_fills_its_log(
    forked_cluster: Cluster,
) -> None:
    node = started(forked_cluster)
    with node.wire() as wire:  # nobody else's descriptor is on its way to be closed then
        wait_until(lambda: info_of(wire, "clients")["connected_clients"] == "1", "it is alone")
        used = len(list(Path(f"/proc/{node.pid}/fd").iterdir())) - 1
    wait_until(lambda: len(list(Path(f"/proc/{node.pid}/fd").iterdir())) == used, "and idle")
    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (used + 3, used + 3))
    raws = [Raw(node.port) for _ in range(8)]
    node.wait_logged("cannot accept connections for now")
    used_s, since_s = cpu_s(node), time.monotonic()
    time.sleep(1.0)  # what happens meanwhile is what is measured: nothing
    assert (cpu_s(node) - used_s) / (time.monotonic() - since_s) < 0.3
    assert node.log_text.count("cannot accept") == 1
    for raw in raws:
        raw.close()
    wait_until(node.answers, "it accepts again", [node])


def test_nothing_between_multi_and_exec_is_executed(forked_cluster: Cluster) -> None:
    """A transaction is refused as a whole, in one piece or in many; behind it all is as before."""
    node = started(forked_cluster)
    words = (("MULTI",), ("LOCK", "a", "r1"), ("lock", "b", "r2"), ("UNLOCK", "c", "r3"))
    token = node.ask("LOCK", "c", "r0")
    for end in ("EXEC", "discard"):
        answer, stays_open = exchange(node.port, b"".join(encode(*w) for w in (*words, (end,))))
        lines = answer.splitlines()
        assert stays_open
        assert len(lines) == 5
        assert all(line.startswith(b"-") for line in lines), lines
        assert lines[-1].startswith(b"-EXECABORT ")
        with node.wire() as wire:
            for each in (*words, (end,)):
                assert error_of(lambda each=each: wire.ask(*each)) in ("ERR", "EXECABORT")  # type: ignore[misc]
            assert wire.inspect("a")["state"] == wire.inspect("b")["state"] == b"free"
            assert wire.inspect("c")["fencing_token"] == token
            assert wire.ask("LOCK", f"behind {end}", "r4")


def test_the_default_pipeline_of_redis_py_raises_and_takes_no_lock(
    forked_cluster: Cluster,
) -> None:
    node = started(forked_cluster)
    with redis.Redis(port=node.port) as client:
        pipeline = client.pipeline()
        pipeline.execute_command("LOCK", "a", "r1")
        pipeline.execute_command("LOCK", "b", "r2")
        with pytest.raises(redis.exceptions.ResponseError):
            pipeline.execute()
        assert client.execute_command("LOCK", "a", "r3") > 0
        assert client.execute_command("LOCK", "b", "r4") > 0


def test_repeats_are_counted_neither_as_grants_nor_as_refusals(forked_cluster: Cluster) -> None:
    node = started(forked_cluster)
    with node.wire() as wire:
        for _ in range(3):
            assert wire.ask("LOCK", "a", "r1")
            assert wire.ask("LOCK", "a", "r2") == 0
            assert wire.ask("lock", "a", "r1")
        counted = info_of(wire, "stats", "locks")
    assert (counted["keyspace_hits"], counted["keyspace_misses"]) == ("1", "1")
    assert (counted["locks_granted_total"], counted["locks_denied_total"]) == ("1", "1")


@pytest.mark.parametrize("name", ["LOCK", "lock", "LoCK"])
def test_an_error_is_counted_once_whatever_the_spelling_of_the_command(
    forked_cluster: Cluster, name: str
) -> None:
    """LOCK and lock take the short way, LoCK the long one; a refusal that is not held back a third
    one."""
    node = started(forked_cluster, "--min-backups", "1")
    with node.wire() as wire:
        assert error_of(lambda: wire.ask(name, "a", "r1", "PX", "0")) == "ERR"
        assert error_of(lambda: wire.ask(name, "a", "r1")) == "NOREPLICAS"
        counted = info_of(wire, "stats", "errorstats", "commandstats")
    assert counted["errorstat_ERR"] == counted["errorstat_NOREPLICAS"] == "count=1"
    assert counted["total_error_replies"] == "2"
    assert counted["cmdstat_lock"].startswith("calls=2,")


@pytest.mark.parametrize("host", [b"a..b", b".", b"x" * 64, b"\xff"])
def test_a_host_that_cannot_be_a_name_is_refused_and_ends_nothing(
    cluster: Cluster, host: bytes
) -> None:
    node = started(cluster)
    with Wire(node.port) as wire:
        assert error_of(lambda: wire.ask("REPLICAOF", host, "7000")) == "ERR"
        assert wire.ask("LOCK", "a", "r1") != 0
