"""The `holdfast` command as its user meets it: real processes, real sockets, always reaped."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.server import flags, pair, supervised
from holdfast.server.__main__ import explain_bind_error
from holdfast.server.config import Address

TIMEOUT_S = 20
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \S+ (debug|info |warning|error) \S.*")


def environment(**extra: str) -> dict[str, str]:
    """This process's, without what would be read as flags."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    return {**own, **extra}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "holdfast.server", *arguments]


def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Runs a command that ends by itself."""
    return subprocess.run(
        command(*arguments),
        env=environment(**extra),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


class Running:
    """A started command; its two outputs are collected line by line."""

    def __init__(self, *arguments: str, **extra: str) -> None:
        self.process = subprocess.Popen(
            command(*arguments),
            env=environment(**extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._queue: queue.Queue[str] = queue.Queue()
        for stream in (self.process.stdout, self.process.stderr):
            threading.Thread(target=self._collect, args=(stream,), daemon=True).start()

    def _collect(self, stream: object) -> None:
        for line in stream:  # type: ignore[attr-defined]
            self._queue.put(line.rstrip("\n"))

    def line_with(self, pattern: str) -> re.Match[str]:
        """Waits for the next line that `pattern` is found in."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                line = self._queue.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line with {pattern!r} in {self.lines}") from None
            self.lines.append(line)
            found = re.search(pattern, line)
            if found:
                return found

    def end(self, signum: int | None = None) -> int:
        """Sends a signal, if any, and returns the exit code."""
        if signum is not None:
            self.process.send_signal(signum)
        return self.process.wait(TIMEOUT_S)


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def _start(*arguments: str, **extra: str) -> Running:
        started.append(Running(*arguments, **extra))
        return started[-1]

    yield _start
    for running in started:
        # A pair gets the chance to stop its nodes; under SIGKILL the kernel does.
        running.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(5)
        running.process.kill()
        running.process.wait()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def ask(port: int, request: str) -> bytes:
    """The first part of the answer to an inline request."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        connection.sendall(request.encode() + b"\r\n")
        return connection.recv(4096)


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether a process lives; one that is dead and not yet reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


# ---- what ends at once


def test_version_is_the_one_of_the_package() -> None:
    import holdfast

    for words in ("version", "--version"):
        done = run(words)
        assert (done.returncode, done.stdout) == (0, f"holdfast {holdfast.__version__}\n")


def test_help_shows_the_commands_and_how_to_begin() -> None:
    done = run("--help")
    assert done.returncode == 0
    for words in ("serve", "pair", "version", "redis-cli -p 6379 LOCK a r1"):
        assert words in done.stdout


def test_without_a_command_there_is_the_help() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == run("--help").stdout


DEFAULTS_SHOWN = {
    "bind": "127.0.0.1",
    "port": "6379",
    "backup_port": "6380",
    "backup": "none",
    "replicaof": "none",
    "bootstrap": "no",
    "min_backups": "0",
    "failover": "auto",
    "backup_timeout_ms": "2000",
    "promotion_timeout_ms": "3000",
    "quarantine_ms": "0",
    "view": "fail-stop",
    "view_file": "none",
    "etcd_ca": "none",
    "etcd_cert": "none",
    "etcd_key": "none",
    "etcd_user": "none",
    "etcd_password_file": "none",
    "log_level": "info",
}


@pytest.mark.parametrize(
    ("name", "its_flags"), [("serve", flags.SERVE_FLAGS), ("pair", flags.PAIR_FLAGS)]
)
def test_help_of_a_command_shows_every_flag_its_variable_and_its_default(
    name: str, its_flags: tuple[flags.Flag, ...]
) -> None:
    text = " ".join(run(name, "--help").stdout.split())
    assert "examples:" in text
    for flag in its_flags:
        assert flag.option in text
        shown = re.search(rf"\[default: (\S+); env {flag.variable}\]", text)
        assert shown, flag.name
        assert shown[1] == DEFAULTS_SHOWN[flag.name]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prot"], "--prot"),
        (["sevre"], "sevre"),
        (["serve", "--prot", "1"], "--prot"),
        (["serve", "--por", "1"], "--por"),
        (["serve", "--port"], "--port"),
        (["serve", "--port", "abc"], "--port: 'abc' is not a whole number"),
        (["serve", "--port", "70000"], "--port must be from 0 to 65535, not 70000"),
        (["serve", "--backup", "6380"], "--backup: '6380' is not HOST:PORT"),
        (["serve", "--min-backups", "2"], "--min-backups must be from 0 to 1"),
        (["serve", "--failover", "never"], "--failover: 'never' is not one of auto, manual"),
        (["serve", "--backup", "h:1", "--replicaof", "h:2"], "exclude each other"),
        (["serve", "--port", "7000", "--backup", "localhost:7000"], "is this node itself"),
        (["pair", "--port", "0"], "--port must be from 1 to 65535"),
        (["pair", "--port", "6380"], "--port and --backup-port are both 6380"),
        (["pair", "--promotion-timeout-ms", "1"], "--promotion-timeout-ms must be from 100"),
        (["pair", "--bind", "::1", "--bind", "::1"], "--bind names the same address twice"),
        (
            ["serve", "--bind", "127.0.0.1", "--bind", "127.1"],
            "--bind 127.0.0.1 and --bind 127.1 are the same address, 127.0.0.1",
        ),
        (
            ["pair", "--bind", "127.0.0.1", "0.0.0.0"],
            "--bind 0.0.0.0 takes in --bind 127.0.0.1",
        ),
    ],
)
def test_a_wrong_command_line_is_refused_with_what_is_wrong(
    arguments: list[str], says: str
) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    message, advice = done.stderr.splitlines()
    assert says in message
    program = " ".join(["holdfast", *(name for name in arguments if name in ("serve", "pair"))])
    assert advice == f"Try '{program} --help'."


def test_a_bad_variable_is_named() -> None:
    done = run("serve", HOLDFAST_PORT="abc")
    assert done.returncode == 2
    assert "HOLDFAST_PORT: 'abc' is not a whole number\n" in done.stderr


def test_a_variable_that_does_not_fit_a_flag_is_named() -> None:
    at_fault, not_at_fault = {"HOLDFAST_REPLICAOF": "h:2"}, {"HOLDFAST_BACKUP_TIMEOUT_MS": "500"}
    done = run("serve", "--backup", "h:1", **at_fault, **not_at_fault)
    assert done.returncode == 2
    assert "(from the environment: HOLDFAST_REPLICAOF)" in done.stderr


@pytest.mark.parametrize("name", ["serve", "pair"])
def test_a_misspelt_variable_is_named_with_what_it_may_have_meant(
    name: str, taken_port: int
) -> None:
    done = run(name, "--port", str(taken_port), HOLDFAST_BAKCUP_PORT="7002", HOLDFAST_MAKE="")
    warning, error = done.stderr.splitlines()
    assert LOG_LINE.fullmatch(warning)
    assert warning.endswith(
        "HOLDFAST_BAKCUP_PORT is ignored, no flag has it; the nearest is HOLDFAST_BACKUP_PORT"
    )
    assert "is in use" in error


@pytest.mark.parametrize("name", ["serve", "pair"])
def test_nothing_starts_without_assertions(name: str) -> None:
    done = run(name, PYTHONOPTIMIZE="1")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "python -O" in done.stderr


def test_a_port_in_use_is_one_line_with_the_port_and_the_flag(taken_port: int) -> None:
    done = run("serve", "--port", str(taken_port))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"holdfast: port {taken_port} on 127.0.0.1 is in use; choose another with --port, "
        "or stop what listens there"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flag", ["--port", "--backup-port"])
def test_a_pair_names_the_port_in_use_and_its_flag(taken_port: int, flag: str) -> None:
    other = {"--port": "--backup-port", "--backup-port": "--port"}[flag]
    done = run("pair", flag, str(taken_port), other, str(free_ports(1)[0]))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"holdfast: port {taken_port} on 127.0.0.1 is in use; choose another with {flag}, "
        "or stop what listens there\n"
    )


def test_under_make_a_port_in_use_is_changed_as_make_wants_it(taken_port: int) -> None:
    done = run("pair", "--port", str(taken_port), HOLDFAST_MAKE="1")
    assert done.returncode == 1
    assert "choose another with 'make run PORT=... BACKUP_PORT=...'" in done.stderr


@pytest.mark.parametrize("bind", ["no-such-host.invalid", "a..b", "192.0.2.1"])
@pytest.mark.parametrize("name", ["serve", "pair"])
def test_an_address_that_cannot_be_bound_is_one_line(name: str, bind: str) -> None:
    ports = free_ports(2)
    more = ["--backup-port", str(ports[1])] if name == "pair" else []
    done = run(name, "--bind", bind, "--port", str(ports[0]), *more)
    assert done.returncode == 1
    assert bind in done.stderr and "--bind" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_privileged_port_is_explained() -> None:
    text = explain_bind_error(OSError(errno.EACCES, "x"), ("127.0.0.1",), 80, "--port")
    assert "port 80 on 127.0.0.1 is not permitted" in text and "--port" in text


# ---- one node


def listening_port(running: Running) -> int:
    return int(running.line_with(r"listening on 127\.0\.0\.1:(\d+)")[1])


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_node_serves_until_a_signal_and_stops_orderly(
    start: Callable[..., Running], signum: int
) -> None:
    node = start("serve", "--port", "0")
    port = listening_port(node)
    assert ask(port, "PING") == b"+PONG\r\n"
    assert node.end(signum) == 0
    assert all(LOG_LINE.fullmatch(line) for line in node.lines), node.lines


def test_a_node_on_any_free_port_is_called_by_that_port_in_its_log(
    start: Callable[..., Running],
) -> None:
    node = start("serve", "--port", "0", "--log-level", "debug")
    port = listening_port(node)
    node.line_with(rf" {port} debug configuration: ")
    assert ask(port, "PING") == b"+PONG\r\n"
    node.process.send_signal(signal.SIGTERM)
    node.line_with(rf" {port} info  stopped$")
    assert node.end() == 0


def test_a_variable_stands_for_its_flag(start: Callable[..., Running]) -> None:
    port = free_ports(1)[0]
    assert listening_port(start("serve", HOLDFAST_PORT=str(port))) == port


def test_the_flag_wins_over_the_variable(start: Callable[..., Running], taken_port: int) -> None:
    node = start("serve", "--port", "0", HOLDFAST_PORT=str(taken_port))
    assert listening_port(node) != taken_port


def test_a_node_does_not_load_the_client_side() -> None:
    code = (
        "import sys, holdfast.server.__main__, holdfast.server.node\n"
        "print(sorted({'redis', 'holdfast.compat'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.stdout == "[]\n", done.stderr


# ---- both


class Pair:
    def __init__(self, start: Callable[..., Running], *arguments: str, **extra: str) -> None:
        self.port, self.backup_port = free_ports(2)
        self.running = start(
            "pair",
            "--port",
            str(self.port),
            "--backup-port",
            str(self.backup_port),
            *arguments,
            **extra,
        )
        self.pids = [
            int(self.running.line_with(rf"{name} \S+ is process (\d+)")[1])
            for name in ("primary", "backup")
        ]
        said = self.running.line_with(
            r"^Holdfast: primary on \S+ \(process (\d+)\), backup on \S+ \(process (\d+)\)"
        )
        assert [int(pid) for pid in said.groups()] == self.pids

    def gone(self) -> bool:
        return not any(is_running(pid) for pid in self.pids)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_pair_says_how_to_connect_and_stops_both_on_a_signal(
    start: Callable[..., Running], signum: int
) -> None:
    both = Pair(start)
    both.running.line_with(f"redis-cli -p {both.port} LOCK a r1")
    both.running.line_with(rf"kill -9 {both.pids[0]} ")
    if sys.prefix != sys.base_prefix:
        both.running.line_with(rf"\. '?{re.escape(sys.prefix)}/bin/activate")
    both.running.line_with(rf"redis://127\.0\.0\.1:{both.port}.*:{both.backup_port}")
    assert int(ask(both.port, "LOCK a r1")[1:]) > 0
    assert both.running.end(signum) == 0
    assert both.gone()


def test_a_node_of_a_pair_that_does_not_stop_is_killed(start: Callable[..., Running]) -> None:
    both = Pair(start)
    os.kill(both.pids[1], signal.SIGSTOP)
    both.running.process.send_signal(signal.SIGINT)
    both.running.line_with("backup .* did not stop within 5000 ms; killing it")
    assert both.running.end() == 0
    assert both.gone()


def test_a_terminals_interrupt_does_not_reach_the_nodes_of_a_pair(
    start: Callable[..., Running],
) -> None:
    both = Pair(start)
    assert [os.getsid(pid) for pid in both.pids] == both.pids


def test_the_nodes_of_a_pair_do_not_survive_its_kill(start: Callable[..., Running]) -> None:
    both = Pair(start)
    both.running.end(signal.SIGKILL)
    eventually(both.gone, "a node outlived its supervisor")


def test_variables_meant_for_one_node_do_not_reach_both(start: Callable[..., Running]) -> None:
    both = Pair(start, HOLDFAST_BACKUP="127.0.0.1:1", HOLDFAST_BOOTSTRAP="1")
    assert both.running.end(signal.SIGINT) == 0


def test_the_nodes_of_a_pair_are_told_of_one_another() -> None:
    values = flags.resolve(flags.PAIR_FLAGS, _nothing_given(), {"HOLDFAST_BIND": "0.0.0.0"})
    plan = pair.Plan.from_flags(values)
    assert plan.primary.backup == Address("127.0.0.1", 6380)
    assert plan.backup.replicaof == Address("127.0.0.1", 6379)
    assert supervised.serve_command(plan.backup)[1:6] == [
        "-m",
        "holdfast.server",
        "serve",
        "--bind",
        "0.0.0.0",
    ]


def test_the_file_of_the_view_register_is_the_backups_alone() -> None:
    given = {"HOLDFAST_VIEW": "backup", "HOLDFAST_VIEW_FILE": "/nowhere/view"}
    plan = pair.Plan.from_flags(flags.resolve(flags.PAIR_FLAGS, _nothing_given(), given))
    assert (plan.primary.view, plan.primary.view_file) == ("backup", "")
    assert (plan.backup.view, plan.backup.view_file) == ("backup", "/nowhere/view")


def _nothing_given() -> argparse.Namespace:
    return argparse.Namespace(**{flag.name: None for flag in flags.PAIR_FLAGS})


# ---- the supervisor's small client


@pytest.mark.parametrize(
    ("chunks", "text"),
    [
        ([b"$4\r\nPING\r\n"], b"PING"),
        ([b"$", b"4\r", b"\nPI", b"NG"], b"PING"),
        ([b"-LOADING waiting\r\n"], b""),
        ([b"$-1\r\n"], b""),
        ([b"$4\r\nPI"], b""),
        ([b"$" + b"9" * 5_000 + b"\r\n"], b""),
        ([], b""),
    ],
)
def test_a_bulk_string_is_read_in_any_pieces(chunks: list[bytes], text: bytes) -> None:
    rest = iter(chunks)
    assert supervised._read_bulk(lambda size: next(rest, b"")) == text


def test_a_node_that_does_not_answer_has_no_state() -> None:
    assert supervised.replication_info(Address("127.0.0.1", free_ports(1)[0])) == {}
