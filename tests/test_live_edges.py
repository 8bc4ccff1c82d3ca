"""Where several rare things meet: full nodes, peers that talk nonsense, pauses, and names.

Each of these was wrong once.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.ports import HOST
from harness.processes import Cluster, Node, wait_until
from harness.proxy import Proxy
from harness.raw import Raw
from harness.wire import Closed, ReplyError, Wire, encode

from holdfast.server.core import limits, stream
from holdfast.server.core.failover import Answer, Standing
from holdfast.server.core.snapshot import Header
from holdfast.server.core.view import View

FULL = b"-ERR max number of clients reached\r\n"
BEGINS = "a new history begins"
QUICK = ("--backup-timeout-ms", "500", "--promotion-timeout-ms", "500")
BOTH_FAMILIES = ("--bind", HOST, "::1")


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


def fill(node: Node) -> tuple[Wire, list[Raw]]:
    """Let the node be at maxclients; the connection that can still ask, and the idle ones."""
    wire = node.wire()
    assert wire.ask("CONFIG", "SET", "maxclients", "5") == b"OK"
    wait_until(
        lambda: int(info_of(wire, "clients")["connected_clients"]) == 1, "nobody else", [node]
    )
    idle = [Raw(node.port) for _ in range(4)]
    with Raw(node.port) as beyond:
        beyond.send(encode("PING"))
        assert beyond.read_to_end() == FULL
    return wire, idle


def cpu_s(node: Node) -> float:
    """CPU time that the process has used."""
    fields = Path(f"/proc/{node.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Impostor:
    """A listening port where a test says what comes back. Each connection is answered once."""

    def __init__(self, port: int, answer: Callable[[bytes], bytes]) -> None:
        self.address = f"{HOST}:{port}"
        self._answer = answer
        self._sock = socket.socket()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sock.bind((HOST, port))
        self._sock.listen(64)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._sock.accept()
            except OSError:
                return
            with client:
                client.settimeout(5.0)
                try:
                    client.sendall(self._answer(client.recv(4096)))
                    client.shutdown(socket.SHUT_WR)
                    client.recv(4096)  # (an end; a reset would take the answer with it)
                except OSError:
                    pass

    def close(self) -> None:
        """Listen no more."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._thread.join(10)
        self._sock.close()


# -- nodes that are full of clients --------------------------------------------------------------


def test_a_pair_that_is_full_of_clients_is_whole_again_after_its_link_was_reset(
    forked_cluster: Cluster,
) -> None:
    """Both nodes are at maxclients, and the link breaks: each still has to hear the other, or each
    would take the other for dead."""
    cluster = forked_cluster
    primary, backup = cluster.node("P"), cluster.node("B")
    proxy = Proxy(cluster.port(), primary.port)
    cluster.defer(proxy.close)
    primary.start("--backup", backup.address)
    backup.start("--replicaof", proxy.address)
    cluster.wait_paired(primary, backup)
    epoch = primary.epoch
    (to_primary, idle), (to_backup, more_idle) = fill(primary), fill(backup)
    assert proxy.reset() >= 1

    def is_whole_again() -> bool:
        before, of_backup, after = map(info_of, (to_primary, to_backup, to_primary))
        roles = {before["role"], after["role"]}
        assert roles != {"master"} or of_backup["role"] == "slave", "two primaries"
        modes = (after["holdfast_mode"], of_backup["holdfast_mode"])
        return modes == ("paired", "paired") and int(after["holdfast_epoch"]) > epoch

    wait_until(is_whole_again, "the pair is whole again", cluster.nodes)
    assert info_of(to_primary)["holdfast_epoch"] == info_of(to_backup)["holdfast_epoch"]
    assert to_primary.ask("LOCK", "same", "P")
    assert error_of(lambda: to_backup.ask("LOCK", "same", "B")) == "READONLY"
    for each in (*idle, *more_idle, to_primary, to_backup):
        each.close()


def test_bootstrap_never_overrides_a_peer_that_serves_and_is_full_of_clients(
    forked_cluster: Cluster,
) -> None:
    """B has taken over and is at maxclients; P, started with --bootstrap by a careless hand, joins
    it."""
    cluster = forked_cluster
    primary, backup = cluster.pair()
    token = primary.ask("LOCK", "a", "r1")
    primary.kill()
    wait_until(lambda: backup.role == "master", "the backup takes over", cluster.nodes)
    to_backup, idle = fill(backup)
    begun = primary.log_text.count(BEGINS)
    primary.start("--backup", backup.address, "--bootstrap")
    wait_until(lambda: info_of(to_backup)["holdfast_mode"] == "paired", "paired", cluster.nodes)
    wait_until(lambda: primary.mode == "paired", "both know it", cluster.nodes)
    assert primary.log_text.count(BEGINS) == begun
    assert to_backup.ask("LOCK", "a", "r1") == token
    assert to_backup.ask("LOCK", "a", "r9") == 0
    assert error_of(lambda: primary.ask("LOCK", "a", "r10")) == "READONLY"
    for each in (*idle, to_backup):
        each.close()


# -- pauses, and operators -----------------------------------------------------------------------


def test_a_backup_under_manual_failover_says_once_that_its_primary_is_silent(
    forked_cluster: Cluster,
) -> None:
    """The primary stands still, nobody may take over: INFO tells the truth, the log does not
    repeat itself, and when the primary goes on they are a pair as before."""
    primary, backup = forked_cluster.pair(*QUICK, "--failover", "manual")
    token = primary.ask("LOCK", "a", "r1")
    said = len(backup.log_text)
    primary.freeze()
    wait_until(lambda: backup.mode == "blocked", "the backup knows it", [backup])
    assert backup.info()["master_link_status"] == "down"
    wait_until(
        lambda: int(backup.info()["master_last_io_seconds_ago"]) >= 2,
        "four time-outs have gone by",
        [backup],
    )
    assert (backup.mode, backup.role) == ("blocked", "slave")
    lines = [re.sub(r"\d+", "", line) for line in backup.log_text[said:].splitlines()]
    assert len(lines) <= 3, lines
    assert max(Counter(lines).values()) == 1, lines
    primary.thaw()
    forked_cluster.wait_paired(primary, backup)
    assert backup.info()["master_link_status"] == "up"
    assert primary.ask("LOCK", "a", "r1") == token


def test_a_backup_whose_primary_is_dead_is_promoted_when_failover_is_set_to_auto(
    forked_cluster: Cluster,
) -> None:
    """An operator need not say REPLICAOF NO ONE: CONFIG SET failover auto does."""
    primary, backup = forked_cluster.pair("--failover", "manual")
    token = primary.ask("LOCK", "a", "r1")
    primary.kill()
    backup.wait_logged("REPLICAOF NO ONE")
    assert backup.role == "slave"
    assert backup.ask("CONFIG", "SET", "failover", "auto") == b"OK"
    wait_until(lambda: backup.role == "master", "it is promoted", [backup])
    assert backup.ask("LOCK", "a", "r1") == token


def test_a_primary_whose_pause_no_backup_could_have_used_serves_again_by_itself(
    forked_cluster: Cluster,
) -> None:
    """It stood still for longer than its backup may be silent, but for too short a time to have
    been replaced; its backup is another process now, and so it is bypassed."""
    primary, backup = forked_cluster.pair("--backup-timeout-ms", "600")
    token = primary.ask("LOCK", "a", "r1")
    primary.freeze()
    frozen_s = time.monotonic()
    backup.kill()
    backup.start()
    wait_until(backup.answers, "the backup is back", [backup])
    time.sleep(max(0.0, frozen_s + 1.0 - time.monotonic()))  # the pause is what is tested
    primary.thaw()
    assert time.monotonic() - frozen_s < 3.0 * limits.STALL_SHARE, "this machine is too slow"
    forked_cluster.wait_paired(primary, backup)
    assert primary.ask("LOCK", "a", "r1") == token


def test_a_lock_that_is_held_back_is_never_answered_with_the_ok_of_replicaof(
    forked_cluster: Cluster,
) -> None:
    """LOCK, REPLICAOF on one connection: the LOCK's reply is dropped with the state, and what came
    next would be taken for it. The connection is closed."""
    cluster = forked_cluster
    timeout = ("--backup-timeout-ms", "10000")
    primary, backup = cluster.pair(*timeout)
    other, its_backup = cluster.node("P2"), cluster.node("B2")
    other.start("--backup", its_backup.address)
    its_backup.start("--replicaof", other.address)
    cluster.wait_paired(other, its_backup)
    its_backup.kill()
    wait_until(lambda: other.mode == "solo", "it serves in a higher epoch", cluster.nodes)
    assert other.epoch > primary.epoch
    backup.freeze()
    with primary.wire() as wire:
        wire.send("LOCK", "x", "r1")
        assert wire.is_silent_for(0.05)
        wire.send("REPLICAOF", HOST, str(other.port))
        with pytest.raises(Closed):
            wire.read()
    cluster.wait_paired(other, primary)


# -- peers that are not what they should be ------------------------------------------------------


@pytest.mark.parametrize("reads", [False, True], ids=["reads nothing", "reads everything"])
def test_a_joiner_that_talks_and_never_acknowledges_makes_room_for_the_real_backup(
    forked_cluster: Cluster, reads: bool
) -> None:
    """PEER JOIN and then nothing but PROBE: it is dropped after the time-out, and until then it
    costs nothing."""
    timeout_s = 1.0
    primary = started(forked_cluster, "--backup-timeout-ms", str(int(timeout_s * 1000)))
    backup = forked_cluster.node("B")
    if not reads:  # then the snapshot has to be more than sockets buffer
        with primary.wire() as wire:
            for _ in range(20):
                first = info_of(wire)["master_repl_offset"]
                wire.sock.sendall(
                    b"".join(
                        encode("LOCK", f"{first}-{n}-".ljust(500, "x"), f"r{first}-{n}")
                        for n in range(1000)
                    )
                )
                assert all(wire.read() for _ in range(1000))
    with Raw(primary.port, receive_buffer_bytes=8192) as joiner:
        nowhere = ("-", "0", "0", "0")  # it has no state to come back with
        who = ("ab" * 20, "cd" * 20, "7149")
        told = ("fail-stop", "3000")
        joiner.send(encode("PEER", "JOIN", stream.PROTOCOL_VERSION, *who, *nowhere, *told))
        primary.wait_logged("joins: sending it a snapshot")
        joined_s, used_s = time.monotonic(), cpu_s(primary)

        def is_dropped() -> bool:
            joiner.send(encode(stream.PROBE, "1"))
            while reads and joiner.has_something() and joiner.receive():
                pass
            return re.search("link to backup .* is lost", primary.log_text) is not None

        wait_until(is_dropped, "it is dropped", [primary], poll_s=0.02)
        lasted_s = time.monotonic() - joined_s
        assert timeout_s * 0.9 < lasted_s < timeout_s * 5
        assert (cpu_s(primary) - used_s) / lasted_s < 0.5
    backup.start("--replicaof", primary.address)
    forked_cluster.wait_paired(primary, backup)


NONSENSE = (
    b"*9\r\n$1\r\n" + stream.PROTOCOL_VERSION + b"\r\n" + 8 * b":1\r\n",
    b"*7\r\n" + 7 * b":1\r\n",
    b"*7\r\n" + 7 * b"$-1\r\n",
    b"*7\r\n" + 7 * b"*0\r\n",
    b":1\r\n",
    b"$-1\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"*1\r\n$-1\r\n",
    b"+OK\r\n",
    b"-ERR no\r\n",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"",
)


def test_a_peer_that_answers_with_nonsense_does_not_end_the_process(
    forked_cluster: Cluster,
) -> None:
    """REPLICAOF to a port where something else listens: an error, and the node serves on."""
    node = started(forked_cluster)
    token = node.ask("LOCK", "a", "r1")
    answers = [b""]
    impostor = Impostor(forked_cluster.port().number, lambda _: answers[0])
    forked_cluster.defer(impostor.close)
    host, _, port = impostor.address.partition(":")
    for answers[0] in NONSENSE:
        assert error_of(lambda: node.ask("REPLICAOF", host, port)) == "ERR", answers
        assert node.ask("LOCK", "a", "r1") == token, answers
    assert "Traceback" not in node.log_text


def test_a_primary_that_streams_nonsense_does_not_end_its_backup(forked_cluster: Cluster) -> None:
    """The answer to PEER ASK is fine, what follows JOIN is not: the link is lost, each time."""
    view = View(7, "aa" * 20, ("aa" * 20,))
    fine = stream.encode_answer(Answer("aa" * 20, Standing.SERVING, False, view))
    left = list(NONSENSE[1:6])

    def answer(request: bytes) -> bytes:
        if b"JOIN" not in request:
            return fine
        return left.pop() if left else b""

    impostor = Impostor(forked_cluster.port().number, answer)
    forked_cluster.defer(impostor.close)
    node = forked_cluster.node("B").start("--replicaof", impostor.address, "--log-level", "debug")
    node.wait_logged("does not keep to the protocol", times=5)
    assert error_of(lambda: node.ask("LOCK", "a", "r1")) == "LOADING"
    assert node.is_running
    assert "Traceback" not in node.log_text


def test_a_peer_that_saw_a_higher_epoch_joins_a_history_that_was_bootstrapped(
    forked_cluster: Cluster,
) -> None:
    """B had begun to load a snapshot of epoch 7 when that primary was lost for good. The history
    that --bootstrap begins is above it, or B would refuse it for ever."""
    cluster = forked_cluster
    primary, backup = cluster.node("P"), cluster.node("B")
    lost = "aa" * 20
    view = View(7, lost, (lost,))
    header = Header("history", 1000, 7, 5, 0, 0, 0, 0, 99)
    begin = encode(stream.BEGIN, "7", lost, "0", *map(str, header))

    def answer(request: bytes) -> bytes:
        if b"JOIN" in request:
            return begin
        return stream.encode_answer(Answer(lost, Standing.SERVING, False, view))

    impostor = Impostor(primary.port, answer)
    backup.start("--replicaof", primary.address)
    backup.wait_logged("a snapshot of 99 items comes")
    impostor.close()
    primary.start("--backup", backup.address, "--bootstrap")
    cluster.wait_paired(primary, backup)
    assert primary.epoch == backup.epoch > 7


# -- names and addresses -------------------------------------------------------------------------


def has_ipv6() -> bool:
    """Whether there is a ::1 here."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("[::1]", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")),
        "localhost",
    ],
)
def test_a_pair_finds_itself_and_fails_over_by_another_name(
    forked_cluster: Cluster, host: str
) -> None:
    cluster = forked_cluster
    primary, backup = cluster.node("P"), cluster.node("B")
    bind = BOTH_FAMILIES if host == "[::1]" else ()
    primary.start("--backup", f"{host}:{backup.port}", *bind)
    backup.start("--replicaof", f"{host}:{primary.port}", *bind)
    cluster.wait_paired(primary, backup)
    if bind:
        assert primary.info()["slave0"].startswith(f"ip=::1,port={backup.port},")
        assert backup.info()["master_host"] == "::1"
    token = primary.ask("LOCK", "a", "r1")
    primary.kill()
    wait_until(lambda: backup.role == "master", "the backup takes over", cluster.nodes)
    assert backup.ask("LOCK", "a", "r1") == token
    primary.start()
    cluster.wait_paired(backup, primary)


def test_a_node_that_is_bound_to_two_addresses_is_one_node(forked_cluster: Cluster) -> None:
    node = started(forked_cluster, "--bind", HOST, "--bind", "127.0.0.2")
    token = node.ask("LOCK", "a", "r1")
    with socket.create_connection(("127.0.0.2", node.port), 20.0) as sock:
        sock.sendall(encode("LOCK", "a", "r1"))
        assert sock.recv(100) == b":%d\r\n" % token
    for host in (HOST, "127.0.0.2"):
        assert f"listening on {host}:{node.port}" in node.log_text


@pytest.mark.parametrize("role", ["--backup", "--replicaof"])
def test_a_node_waits_for_a_peer_whose_name_does_not_resolve(
    forked_cluster: Cluster, role: str
) -> None:
    """Its name may come back with the peer (a container's does): nothing is decided about it."""
    host = "no-such-host.invalid"
    node = forked_cluster.node("P").start(role, f"{host}:7000")
    node.wait_logged(f"waiting for {host}:7000")
    assert error_of(lambda: node.ask("LOCK", "a", "r1")) == "LOADING"
    assert node.is_running
    assert "Traceback" not in node.log_text
