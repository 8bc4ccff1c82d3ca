"""`holdfast pair` when nodes end: they come back and join, and no lock is lost in silence.

The supervisor runs as a process of its own; its log, with its nodes', goes to a file. What has to
happen behind its back (two deaths at once, a port taken) is done while it stands still.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.ports import HOST, Port
from harness.processes import TIMEOUT_S, die_with_parent, environment, wait_until
from harness.wire import Wire

from holdfast.server import supervised
from holdfast.server.config import Address, Config

ROUNDS = 4


class Pair:
    """A running `holdfast pair`, whole when the constructor returns."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        self._ports = [Port(), Port()]
        self.port, self.backup_port = (port.number for port in self._ports)
        ports = ("--port", str(self.port), "--backup-port", str(self.backup_port))
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "holdfast.server", "pair", *ports, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(),
                preexec_fn=die_with_parent,
            )
        self.wait_logged("Ctrl-C stops both")

    @property
    def text(self) -> str:
        """All that the supervisor and its nodes have said."""
        return self.log.read_text(errors="replace")

    def said(self, pattern: str) -> list[re.Match[str]]:
        """Where `pattern` is found in what the supervisor itself has logged."""
        lines = self.text.splitlines(keepends=True)
        own = "".join(line for line in lines if " pair " in line)
        return list(re.finditer(pattern, own))

    def wait_logged(self, text: str) -> None:
        """Waits until the supervisor or a node has said so."""
        self._wait(lambda: text in self.text, text)

    def wait_said(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Waits until the supervisor has said so, so often; the last time."""
        self._wait(lambda: len(self.said(pattern)) >= times, f"{pattern!r}, {times} times")
        return self.said(pattern)[-1]

    def _wait(self, condition: Callable[[], object], what: str) -> None:
        try:
            wait_until(condition, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text}") from None

    def wait_whole_again(self, times: int = 1) -> None:
        """Waits until a pair that lost a node has been whole again, so often."""
        self.wait_said("the pair is whole again", times)

    def processes(self, port: int) -> list[int]:
        """Every process that has been the node on `port`, the present one last."""
        found = self.said(rf" {HOST}:{port} is process (\d+)")
        return [int(match[1]) for match in found]

    def signal_node(self, port: int, number: int) -> None:
        """Sends a signal to the node's process."""
        os.kill(self.processes(port)[-1], number)

    def kill(self, port: int) -> None:
        """`kill -9` to the node on `port`."""
        self.signal_node(port, signal.SIGKILL)

    def stand_still(self) -> None:
        """Has the supervisor see nothing until `go_on`."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Ends `stand_still`."""
        os.kill(self._process.pid, signal.SIGCONT)

    def end(self, number: int | None = None) -> int:
        """The exit code, after a signal, if any."""
        if number is not None:
            os.kill(self._process.pid, number)
        return self._process.wait(TIMEOUT_S)

    @property
    def primary_port(self) -> int:
        """Of the node that serves."""
        ports = (self.port, self.backup_port)
        return next(port for port in ports if role(port) == "master")

    def close(self) -> None:
        """Ends it, and with it its nodes."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for port in self._ports:
            port.release()


def role(port: int) -> str:
    """Of a node, in Redis' words; empty if it does not answer."""
    return supervised.replication_info(Address(HOST, port)).get("role", "")


def ask(port: int, *words: str) -> object:
    """A node's answer to one request."""
    with Wire(port) as wire:
        return wire.ask(*words)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    started: list[Pair] = []

    def _start(*arguments: str) -> Pair:
        started.append(Pair(tmp_path / "pair.log", *arguments))
        return started[-1]

    yield _start
    for pair in started:
        pair.close()


# ---- one node ends


@pytest.mark.parametrize("dead", [0, 1])
def test_a_node_that_is_killed_comes_back_and_joins_the_other(
    start: Callable[..., Pair], dead: int
) -> None:
    pair = start()
    ports = (pair.port, pair.backup_port)
    died, left = ports[dead], ports[1 - dead]
    token = ask(pair.port, "LOCK", "a", "r1")
    pair.kill(died)
    pair.wait_said(
        rf"error {HOST}:{died} died \(signal 9\); {HOST}:{left} serves alone, "
        rf"and all locks are lost if it ends too; starting {HOST}:{died} again\n"
    )
    pair.wait_whole_again()
    before, now = pair.processes(died)
    assert before != now and len(pair.processes(left)) == 1
    pair.wait_said(
        rf"whole again: primary on {HOST}:{left} \(process {pair.processes(left)[0]}\), "
        rf"backup on {HOST}:{died} \(process {now}\)"
    )
    assert ask(left, "LOCK", "a", "r1") == token
    assert role(died) == "slave"


def test_one_death_after_the_other_loses_no_lock(start: Callable[..., Pair]) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    choose = random.Random(seed)
    pair = start()
    tokens = {}
    for number in range(ROUNDS):
        name = f"lock{number}"
        tokens[name] = ask(pair.primary_port, "LOCK", name, f"{name}:1")
        ending = choose.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
        pair.signal_node(choose.choice([pair.port, pair.backup_port]), ending)
        pair.wait_whole_again(number + 1)
        primary = pair.primary_port
        for each, token in tokens.items():
            assert ask(primary, "LOCK", each, f"{each}:1") == token, (seed, number, each)
            assert ask(primary, "LOCK", each, f"{each}:{number + 2}") == 0, (seed, number, each)


def test_a_node_that_was_stopped_has_not_died_and_comes_back_too(
    start: Callable[..., Pair],
) -> None:
    pair = start()
    pair.signal_node(pair.backup_port, signal.SIGTERM)
    pair.wait_said(
        rf"warning {HOST}:{pair.backup_port} stopped \(exit code 0\); "
        rf"{HOST}:{pair.port} serves alone, .*; starting {HOST}:{pair.backup_port} again\n"
    )
    pair.wait_whole_again()


def test_a_node_that_keeps_dying_is_waited_with(start: Callable[..., Pair]) -> None:
    pair = start()
    pair.kill(pair.backup_port)
    for times, delay_ms in enumerate((500, 1000), start=2):
        pair.wait_whole_again(times - 1)
        pair.kill(pair.backup_port)
        pair.wait_said(
            r"died \(signal 9, \d+ ms after its start\); .*; "
            rf"starting {HOST}:{pair.backup_port} again in {delay_ms} ms\n"
        )
        pair.wait_said(rf"{HOST}:{pair.backup_port} is process", times + 1)


def test_a_node_that_cannot_start_again_is_tried_until_it_can(
    start: Callable[..., Pair],
) -> None:
    pair = start("--backup-timeout-ms", "300")
    pair.stand_still()
    pair.kill(pair.backup_port)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wait_until(lambda: _takes(taken, pair.backup_port), "the port is free")
        pair.go_on()
        pair.wait_logged(f"port {pair.backup_port} on {HOST} is in use")
        pair.wait_said(
            rf"error {HOST}:{pair.backup_port} died \(exit code 1, its own last lines say "
            rf"why, \d+ ms after its start\); {HOST}:{pair.port} serves alone.*; "
            rf"starting {HOST}:{pair.backup_port} again in 500 ms\n"
        )
        assert ask(pair.port, "LOCK", "a", "r1") != 0
    pair.wait_whole_again()


def _takes(taken: socket.socket, port: int) -> bool:
    try:
        taken.bind((HOST, port))
        taken.listen()
    except OSError:
        return False
    return True


def test_with_manual_failover_the_node_comes_back_and_an_operator_decides(
    start: Callable[..., Pair],
) -> None:
    pair = start("--failover", "manual")
    token = ask(pair.port, "LOCK", "a", "r1")
    pair.kill(pair.port)
    pair.wait_said(
        rf"{HOST}:{pair.port} died \(signal 9\); {HOST}:{pair.backup_port} is left as a "
        rf"backup and serves nothing; 'redis-cli -p {pair.backup_port} REPLICAOF NO ONE' promotes "
        rf"it; starting {HOST}:{pair.port} again\n"
    )
    pair.wait_said(rf"{HOST}:{pair.port} is process", 2)
    ask(pair.backup_port, "REPLICAOF", "NO", "ONE")
    pair.wait_whole_again()
    assert ask(pair.backup_port, "LOCK", "a", "r1") == token


def test_after_a_failover_the_backup_is_still_stopped_first(start: Callable[..., Pair]) -> None:
    pair = start()
    pair.kill(pair.port)
    pair.wait_whole_again()
    assert pair.end(signal.SIGINT) == 0
    assert "PROMOTED" not in pair.text.partition(" stopping\n")[2]


# ---- what could lose locks in silence


def unanswered_count(port: int) -> int:
    """How many have asked a node that stands still, and hung up: their connections lie there."""
    close_wait, local = "08", f":{port:04X}"
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(local) and row[3] == close_wait for row in rows)


def test_a_node_is_not_started_while_the_other_does_not_say_that_it_has_the_locks(
    start: Callable[..., Pair],
) -> None:
    pair = start("--promotion-timeout-ms", "500")
    token = ask(pair.port, "LOCK", "a", "r1")
    pair.signal_node(pair.port, signal.SIGSTOP)
    pair.kill(pair.backup_port)
    pair.wait_said(
        rf"died \(signal 9\); {HOST}:{pair.port} is left and does not answer; "
        rf"{HOST}:{pair.backup_port} is started again when it does\n"
    )
    asked = unanswered_count(pair.port)
    wait_until(lambda: unanswered_count(pair.port) >= asked + 2, "the supervisor asks again")
    assert len(pair.processes(pair.backup_port)) == 1
    pair.signal_node(pair.port, signal.SIGCONT)
    pair.wait_said(rf"{HOST}:{pair.backup_port} is process", 2)
    # It stood still for longer than its peer waits for it, so it does not trust itself.
    ask(pair.port, "REPLICAOF", "NO", "ONE", "FORCE")
    pair.wait_whole_again()
    assert ask(pair.port, "LOCK", "a", "r1") == token


def test_when_both_nodes_end_at_once_nothing_is_started_again(
    start: Callable[..., Pair],
) -> None:
    pair = start()
    pair.stand_still()
    pair.kill(pair.port)
    pair.kill(pair.backup_port)
    pair.go_on()
    assert pair.end() == 1
    for port in (pair.port, pair.backup_port):
        pair.wait_said(rf"{HOST}:{port} is gone \(signal 9\)")
        assert len(pair.processes(port)) == 1
    pair.wait_said("error ALL LOCKS ARE LOST: .*start the pair anew")


def test_when_a_node_ends_before_the_other_has_joined_it_again_nothing_begins_anew(
    start: Callable[..., Pair],
) -> None:
    pair = start("--promotion-timeout-ms", "500")
    pair.kill(pair.port)
    pair.wait_said(rf"{HOST}:{pair.port} is process", 2)
    # It is still loading its code, and shall know nothing when its peer dies.
    pair.signal_node(pair.port, signal.SIGSTOP)
    pair.kill(pair.backup_port)
    pair.wait_said(rf"{HOST}:{pair.backup_port} died .*does not answer")
    pair.signal_node(pair.port, signal.SIGCONT)
    assert pair.end() == 1
    pair.wait_said(rf"{HOST}:{pair.port} is left, and has no state")
    pair.wait_said("error ALL LOCKS ARE LOST")
    assert len(pair.processes(pair.backup_port)) == 1
    assert pair.text.count("a new history begins") == 1


# ---- the parts


def test_the_first_restart_is_at_once_and_those_of_a_node_that_keeps_dying_ever_later() -> None:
    delay = supervised.RestartDelay()
    assert [delay.after(300) for _ in range(8)] == [0, 500, 1000, 2000, 4000, 8000, 10000, 10000]
    assert delay.after(30_000) == 10_000, "neither early nor good for long: as before"
    assert delay.after(60_000) == 0
    assert delay.after(300) == 500


@pytest.mark.parametrize(
    ("role", "answer", "holds"),
    [
        ("master", b"", True),
        ("slave", b"-READONLY this node is the backup", True),
        ("slave", b"-LOADING this node has no state yet", False),
        ("slave", b"", None),
        ("slave", b"-ERR what", None),
        ("", b"-LOADING", None),
    ],
)
def test_a_node_has_the_locks_if_it_serves_or_could(
    role: str, answer: bytes, holds: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A backup whose snapshot was cut short says so in no field of INFO.
    info = {"role": role, "holdfast_mode": "blocked"} if role else {}
    node = supervised.SupervisedNode("backup", Config(), set())
    monkeypatch.setattr(supervised.SupervisedNode, "alive", True)
    monkeypatch.setattr(supervised, "replication_info", lambda address: info)
    monkeypatch.setattr(supervised, "first_line", lambda address, command: answer)
    assert node.holds_state() is holds


def test_a_process_that_cannot_be_made_is_a_dead_node_and_not_the_end_of_the_supervisor() -> None:
    node = supervised.SupervisedNode("backup", Config(), set())
    node.command = ["/no/such/program"]
    node.start()
    assert not node.alive and not node.was_stopped
    assert node.death.startswith("not started: ") and "/no/such/program" in node.death
    node.stop()
    node.kill()


@pytest.mark.parametrize(
    ("chunks", "line"),
    [
        ([b"-LOADING no\r\nmore"], b"-LOADING no"),
        ([b"-LOA", b"DING no\r", b"\n"], b"-LOADING no"),
        ([b"-LOADING"], b""),
        ([], b""),
    ],
)
def test_the_first_line_of_an_answer_is_read_in_any_pieces(
    chunks: list[bytes], line: bytes
) -> None:
    rest = iter(chunks)
    assert supervised._read_line(lambda size: next(rest, b"")) == line
