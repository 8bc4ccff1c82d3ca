"""`holdfast lock`, `once`, `ls`, `who`, `break`: real commands under real locks of a real pair."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.commands import Command, Commands
from harness.processes import (
    TIMEOUT_S,
    Cluster,
    Node,
    Zygote,
    die_with_parent,
    environment,
    wait_until,
)
from harness.programs import needed

HELD, LOST, STOPPED = 75, 79, 124

HOLDFAST = (sys.executable, "-m", "holdfast.server")

# Says `up`, and then the name of every signal that it gets; QUIT ends it with code 7.
LISTENER = """
import os, signal
def say(number, frame):
    os.write(1, (signal.Signals(number).name[3:] + "\\n").encode())
    if number == signal.SIGQUIT: os._exit(7)
for name in "TERM INT HUP QUIT USR1 USR2 WINCH CONT".split():
    signal.signal(getattr(signal, "SIG" + name), say)
os.write(1, b"up\\n")
while True: signal.pause()
"""
LISTENING = (sys.executable, "-S", "-c", LISTENER)

# Says `up`, and dies of the next signal. (A shell may lose a key between two of its commands.)
VICTIM = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.write(1, b"up\\n")
signal.pause()
"""

# Deaf to TERM, with a child that is deaf too; says both their process ids.
DEAF = ("sh", "-c", "trap '' TERM; sleep 60 & echo $$ $!; wait; sleep 60")


class Program:
    """A started `holdfast`, with the nodes in its environment; its stdout is read line by line."""

    def __init__(
        self,
        nodes: tuple[Node, ...],
        folder: Path,
        commands: Commands,
        *words: str | bytes,
        before: tuple[str, ...] = (),
        stderr_fd: int | None = None,
        path: str | None = None,
    ) -> None:
        self._log = folder / f"{time.monotonic_ns()}.stderr"
        with self._log.open("wb") as log:
            env = {**environment(), "HOLDFAST_SERVERS": " ".join(node.url for node in nodes)}
            env |= {} if path is None else {"PATH": path}
            nothing = os.open(os.devnull, os.O_RDONLY)
            self._stdout, writing = os.pipe()
            files = (nothing, writing, log.fileno() if stderr_fd is None else stderr_fd)
            self.process: Command | subprocess.Popen[bytes] = (
                _execute([*before, *HOLDFAST, *words], env, folder, files)
                if before or stderr_fd is not None
                else commands.start(words, env=env, folder=folder, files=files)
            )
            os.close(nothing)
            os.close(writing)
        self._read = b""

    def line(self) -> str:
        """The next line; empty at the end."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while b"\n" not in self._read:
            left_s = deadline_s - time.monotonic()
            ready, _, _ = select.select([self._stdout], [], [], max(0, left_s))
            assert ready, f"no line; stderr: {self.stderr}"
            data = os.read(self._stdout, 65536)
            if not data:
                break
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return line.decode(errors="surrogateescape")

    def end(self) -> int:
        """Wait for its exit code; a signal's is negative."""
        return self.process.wait(TIMEOUT_S)

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return self._log.read_text()

    def close(self) -> None:
        """End it and what it runs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(TIMEOUT_S)
        os.close(self._stdout)


def _execute(
    words: list[str | bytes], env: dict[str, str], folder: Path, files: tuple[int, int, int]
) -> subprocess.Popen[bytes]:
    """In an interpreter of its own."""
    stdin, stdout, stderr = files
    return subprocess.Popen(
        words,
        env=env,
        cwd=folder,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )


Start = Callable[..., Program]


@pytest.fixture(scope="module")
def shared(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One pair for all tests that leave it whole."""
    cluster = Cluster(tmp_path_factory.mktemp("shared"), zygote)
    cluster.pair()
    yield cluster
    cluster.close()


@pytest.fixture
def node(shared: Cluster) -> Node:
    """The primary that serves them."""
    return shared.nodes[0]


@pytest.fixture
def start_on(tmp_path: Path, commands: Commands) -> Iterator[Callable[..., Program]]:
    """Starts `holdfast` with nodes and words."""
    started: list[Program] = []

    def start(nodes: tuple[Node, ...], *words: str | bytes, **more: Any) -> Program:
        started.append(Program(nodes, tmp_path, commands, *words, **more))
        return started[-1]

    yield start
    for program in started:
        program.close()


@pytest.fixture
def start(start_on: Start, shared: Cluster) -> Start:
    """Starts `holdfast` with words, on the shared pair."""
    return lambda *words, **more: start_on(tuple(shared.nodes), *words, **more)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A lock of the test's own."""
    return f"lock-{abs(hash(request.node.nodeid)):x}"


def token_of(node: Node, name: str | bytes) -> int:
    """The fencing token of the present grant, 0 if there is none."""
    return int(str(inspect(node, name)["fencing_token"]))


def inspect(node: Node, name: str | bytes) -> dict[str, object]:
    """INSPECT as a dict."""
    reply = node.ask("INSPECT", name)
    assert isinstance(reply, list)
    return {key.decode(): value for key, value in zip(reply[::2], reply[1::2], strict=True)}


def take(node: Node, name: str | bytes, *words: str) -> int:
    """As somebody else; the fencing token."""
    token = node.ask("LOCK", name, f"other-{time.monotonic_ns()}", *words)
    assert isinstance(token, int)
    return token


def is_alive(pid: int) -> bool:
    """Whether it runs (a dead one that was not reaped does not)."""
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX"
    return False


# ---- lock: what the command is given, and what is given back


def test_the_exit_code_of_the_command_is_passed_through(
    start: Start, node: Node, name: str
) -> None:
    codes = {"exit 0": 0, "exit 3": 3, "exit 255": 255, "kill -9 $$": 137}
    for program, code in [
        (start("lock", name, "--", "sh", "-c", script), code) for script, code in codes.items()
    ]:
        assert (program.end(), program.stderr) == (code, "")
    assert token_of(node, name) == 0, "the lock is given back"


def test_the_command_has_the_token_and_the_name_in_its_environment(
    start: Start, node: Node
) -> None:
    name = b"\xff \xc3\xbc " + os.urandom(4).replace(b"\0", b"-").replace(b"\n", b"-")
    program = start("lock", name, "--", "sh", "-c", 'echo "$HOLDFAST_TOKEN $HOLDFAST_LOCK"; read x')
    token, _, shown = program.line().partition(" ")
    assert shown.encode(errors="surrogateescape") == name
    assert program.end() == 1, "the command read the end of our stdin"
    assert take(node, name) > int(token) > 0


def test_others_see_who_holds_the_lock(start: Start, node: Node, name: str) -> None:
    program = start("lock", name, "--", *LISTENING)
    program.line()
    owner = inspect(node, name)["owner"]
    assert isinstance(owner, bytes) and owner.endswith(f":{program.process.pid}".encode())


def test_a_lock_is_renewed_for_as_long_as_the_command_runs(
    start: Start, node: Node, name: str
) -> None:
    words = ("--lease", "600ms", "--", "sh", "-c", "echo $HOLDFAST_TOKEN; sleep 1.2")
    program = start("lock", name, *words)
    token = int(program.line())
    until_s = time.monotonic() + 1
    while time.monotonic() < until_s:
        assert token_of(node, name) == token
        assert take(node, name) == 0
    assert (program.end(), program.stderr) == (0, "")


# ---- lock: lost


def test_a_broken_lock_stops_the_command_and_has_a_code_of_its_own(
    start: Start, node: Node, name: str
) -> None:
    program = start("lock", name, "--lease", "600ms", "--", *LISTENING)
    assert program.line() == "up"
    node.ask("DEL", name)
    assert [program.line(), program.line()] == ["TERM", "CONT"]
    program.process.send_signal(signal.SIGQUIT)  # and so it ends, within its grace time
    assert [program.line(), program.line()] == ["QUIT", ""]
    assert program.end() == LOST, "and not the command's own, 7"
    assert program.stderr == (
        f"holdfast: lock '{name}' is lost: it was released by somebody else, or its lease ran out; "
        "stopping the command\n"
    )


def test_what_does_not_end_on_term_is_killed_after_the_grace_time_with_all_that_came_of_it(
    start: Start, node: Node, name: str
) -> None:
    program = start("lock", name, "--lease", "600ms", "--grace", "600ms", "--", *DEAF)
    pids = [int(word) for word in program.line().split()]
    node.ask("DEL", name)
    wait_until(lambda: "stopping" in program.stderr, "it notices")
    assert all(map(is_alive, pids))
    assert program.end() == LOST
    assert not any(map(is_alive, pids))


def test_what_the_command_left_behind_is_stopped_too_when_the_lock_is_lost(
    start: Start, node: Node, name: str
) -> None:
    # The shell ends on TERM; its children, in a session of their own, are orphans then.
    orphans = (
        "trap 'exit 5' TERM; setsid sh -c 'trap \"\" TERM; sleep 60 & echo $$ $!; wait' & wait"
    )
    words = ("--lease", "600ms", "--grace", "300ms", "--", "sh", "-c", orphans)
    program = start("lock", name, *words)
    pids = [int(word) for word in program.line().split()]
    node.ask("DEL", name)
    assert program.end() == LOST
    assert not any(map(is_alive, pids))


def test_without_a_grace_time_it_is_killed_at_once(start: Start, node: Node, name: str) -> None:
    program = start("lock", name, "--lease", "600ms", "--grace", "0s", "--", *LISTENING)
    assert program.line() == "up"
    node.ask("DEL", name)
    assert program.line() == "", "it never had a TERM"
    assert program.end() == LOST


def test_a_command_that_ended_by_itself_without_its_lock_has_lost_it(
    start: Start, node: Node, name: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "go")
    program = start("lock", name, "--", "sh", "-c", "echo; read x < go; exit 4")
    program.line()
    node.ask("DEL", name)
    (tmp_path / "go").write_text("\n")
    assert program.end() == LOST
    assert "was released by somebody else before the command ended (with code 4)" in program.stderr


def test_a_command_whose_end_is_seen_when_the_lease_is_over_has_lost_it(
    start: Start, node: Node, name: str
) -> None:
    program = start("lock", name, "--lease", "600ms", "--", "sh", "-c", "echo $$; kill -STOP $PPID")
    pid = int(program.line())
    wait_until(lambda: token_of(node, name) == 0, "its lease runs out while holdfast is stopped")
    assert not is_alive(pid)
    program.process.send_signal(signal.SIGCONT)
    assert program.end() == LOST
    assert program.stderr.endswith("; the command has ended\n")


def test_the_lock_is_lost_at_the_last_acknowledged_instant_when_no_node_answers(
    start_on: Start, forked_cluster: Cluster, name: str
) -> None:
    both = forked_cluster.pair()
    program = start_on(both, "lock", name, "--lease", "700ms", "--", *LISTENING)
    assert program.line() == "up"
    for each in both:
        each.freeze()
    at_s = time.monotonic()
    assert program.line() == "TERM"
    assert time.monotonic() - at_s < 0.7 + 0.4, "no waiting for an answer beyond the lease"
    program.process.send_signal(signal.SIGQUIT)
    assert program.end() == LOST
    assert "is lost: no renewal was answered in time" in program.stderr


def test_the_loss_of_one_node_does_not_lose_the_lock(
    start_on: Start, forked_cluster: Cluster, name: str
) -> None:
    primary, backup = forked_cluster.pair()
    words = ("--lease", "1200ms", "--", "sh", "-c", "echo $HOLDFAST_TOKEN; sleep 1.6; exit 6")
    program = start_on((primary, backup), "lock", name, *words)
    token = int(program.line())
    primary.kill()
    time.sleep(1.3)  # longer than the lease
    assert token_of(backup, name) == token
    assert (program.end(), program.stderr) == (6, "")
    assert token_of(backup, name) == 0


def test_a_command_is_stopped_although_nobody_reads_what_is_said_of_it(
    start: Start, node: Node, name: str
) -> None:
    closed = ("sh", "-c", 'exec "$@" 2>&-', "sh")
    words = ("--lease", "600ms", "--", "sh", "-c", "echo $$; exec sleep 60")
    program = start("lock", name, *words, before=closed)
    pid = int(program.line())
    node.ask("DEL", name)
    assert program.end() == LOST
    assert not is_alive(pid)


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """What to write to that nobody reads, though it is open: the write would wait forever."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for size in (65_536, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, b"x" * size)
    os.set_blocking(writing, True)
    yield writing
    os.close(reading)
    os.close(writing)


def test_a_command_is_stopped_and_killed_although_the_reader_of_stderr_has_stopped(
    start: Start, node: Node, name: str, full_pipe: int
) -> None:
    words = ("--grace", "100ms", "--", *DEAF)
    ways = {
        "lock": ("lock", "--lease", "600ms"),
        "once": ("once", "--at-least", "600ms", "--at-most", "20s"),
        "at most": ("once", "--at-least", "300ms", "--at-most", "300ms"),
    }
    programs = {
        way: start(command, f"{name} {way}", *flags, *words, stderr_fd=full_pipe)
        for way, (command, *flags) in ways.items()
    }
    pids = [int(word) for program in programs.values() for word in program.line().split()]
    for way in ("lock", "once"):
        node.ask("DEL", f"{name} {way}")
    codes = {way: program.end() for way, program in programs.items()}
    assert codes == {"lock": LOST, "once": LOST, "at most": STOPPED}
    assert not any(map(is_alive, pids))


# ---- lock: waiting


def test_it_waits_by_default_and_runs_when_its_turn_comes(
    start: Start, node: Node, name: str
) -> None:
    token = take(node, name)
    program = start("lock", name, "--", "sh", "-c", "echo $HOLDFAST_TOKEN")
    wait_until(lambda: inspect(node, name)["waiter_count"] == 1, "it stands in line")
    node.ask("UNLOCK", name, "r2", "TOKEN", str(token))
    assert int(program.line()) > token
    assert program.end() == 0


def test_a_lease_shorter_than_the_wait_is_whole_when_the_command_begins(
    start: Start, node: Node, name: str
) -> None:
    take(node, name)
    program = start("lock", name, "--lease", "700ms", "--", "sh", "-c", "sleep 0.2; exit 3")
    wait_until(lambda: inspect(node, name)["waiter_count"] == 1, "it stands in line")
    time.sleep(0.7)
    node.ask("DEL", name)
    assert (program.end(), program.stderr) == (3, "")


def test_a_lock_that_somebody_else_keeps_has_a_code_of_its_own(
    start: Start, node: Node, name: str, tmp_path: Path
) -> None:
    token = take(node, name)
    waits = (("--no-wait",), ("--wait", "0s"), ("--wait", "300ms"))
    for program in [start("lock", name, *wait, "--", "touch", "ran") for wait in waits]:
        assert program.end() == HELD
        assert program.stderr == f"holdfast: somebody else has lock '{name}'\n"
    assert not (tmp_path / "ran").exists()
    assert token_of(node, name) == token


def test_a_signal_ends_the_wait_and_leaves_nothing_in_line(
    start: Start, node: Node, name: str
) -> None:
    take(node, name)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    programs = [start("lock", name, "--", "touch", "ran") for _ in numbers]
    wait_until(lambda: inspect(node, name)["waiter_count"] == 3, "they stand in line")
    for program, number in zip(programs, numbers, strict=True):
        program.process.send_signal(number)
        assert (program.end(), program.stderr) == (-number, "")
    assert inspect(node, name)["waiter_count"] == 0
    node.ask("DEL", name)
    assert token_of(node, name) == 0, "and it is not granted to one of them later"


# ---- lock: what is run


def test_a_script_without_a_first_line_that_names_a_program_is_read_by_the_shell(
    start: Start, name: str, tmp_path: Path
) -> None:
    script = tmp_path / "bin" / "bare-script"
    script.parent.mkdir()
    script.write_text('echo "$0 $1 $HOLDFAST_LOCK"; exit 4\n')
    script.chmod(0o755)
    path = f"{script.parent}:{os.environ['PATH']}"
    for command in (str(script), script.name):
        program = start("lock", name, "--", command, "a b", path=path)
        assert program.line() == f"{script} a b {name}"
        assert (program.end(), program.stderr) == (4, "")


# ---- lock: signals


def test_signals_are_handed_on_and_the_end_of_the_command_is_waited_for(
    start: Start, node: Node, name: str
) -> None:
    program = start("lock", name, "--", *LISTENING)
    assert program.line() == "up"
    for each in ("TERM", "INT", "HUP", "USR1", "USR2", "WINCH", "CONT"):
        program.process.send_signal(getattr(signal, f"SIG{each}"))
        assert program.line() == each
    assert token_of(node, name) > 0
    program.process.send_signal(signal.SIGQUIT)
    assert (program.line(), program.line(), program.end()) == ("QUIT", "", 7)
    assert token_of(node, name) == 0


def test_term_reaches_what_a_shell_has_started_as_well(start: Start, name: str) -> None:
    program = start("lock", name, "--", "sh", "-c", "sleep 60 & echo $!; wait; true")
    sleeper = int(program.line())
    program.process.terminate()
    assert program.end() == 128 + signal.SIGTERM
    wait_until(lambda: not is_alive(sleeper), "the sleeper ends")


def test_signals_that_are_ignored_stay_so_as_nohup_wants_it(
    start: Start, node: Node, name: str
) -> None:
    take(node, name)
    script = "kill -HUP $PPID; kill -HUP $$; echo here; exit 5"
    program = start("lock", name, "--", "sh", "-c", script, before=("nohup",))
    wait_until(lambda: inspect(node, name)["waiter_count"] == 1, "it stands in line")
    program.process.send_signal(signal.SIGHUP)
    node.ask("DEL", name)
    assert (program.line(), program.end()) == ("here", 5)


def test_the_command_dies_with_holdfast(start: Start, name: str) -> None:
    program = start("lock", name, "--", "sh", "-c", "echo $$; exec sleep 60")
    pid = int(program.line())
    program.process.kill()
    program.end()
    wait_until(lambda: not is_alive(pid), "the command ends")


# ---- lock: in a terminal


class Keyboard:
    """A terminal of its own, as a shell has it: keys send signals."""

    def __init__(self, nodes: list[Node], *words: str) -> None:
        self._screen, self._inner = pty.openpty()

        def prepare() -> None:
            die_with_parent()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            words,
            env={**environment(), "HOLDFAST_SERVERS": " ".join(node.url for node in nodes)},
            stdin=self._inner,
            stdout=self._inner,
            stderr=self._inner,
            start_new_session=True,
            preexec_fn=prepare,
        )
        self.shown = ""

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._screen, text.encode())

    def is_still(self) -> bool:
        """Whether nobody can write to it."""
        return not select.select([], [self._inner], [], 0)[1]

    def wait_shown(self, text: str) -> str:
        """Wait until `text` is shown, and forget everything up to it; what came before it."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while text not in self.shown:
            left_s = max(0, deadline_s - time.monotonic())
            assert select.select([self._screen], [], [], left_s)[0], (text, self.shown)
            try:
                self.shown += os.read(self._screen, 65536).decode()
            except OSError:  # nobody has the terminal any more
                raise AssertionError((text, self.shown)) from None
        skipped, _, self.shown = self.shown.partition(text)
        return skipped

    def close(self) -> None:
        """Hang up."""
        self.process.kill()
        self.process.wait(TIMEOUT_S)
        os.close(self._inner)
        os.close(self._screen)


@pytest.fixture
def keyboard(shared: Cluster) -> Iterator[Callable[..., Keyboard]]:
    """Starts a program in a terminal."""
    started: list[Keyboard] = []

    def start(*words: str) -> Keyboard:
        started.append(Keyboard(shared.nodes, *words))
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_a_key_of_the_terminal_reaches_the_command_once(
    keyboard: Callable[..., Keyboard], node: Node, name: str
) -> None:
    terminal = keyboard(*HOLDFAST, "lock", name, "--", *LISTENING)
    terminal.wait_shown("up")
    for _ in range(2):
        terminal.type("\x03")
        terminal.wait_shown("INT")
        terminal.process.send_signal(signal.SIGUSR1)  # handed on after anything that came before
        assert "INT" not in terminal.wait_shown("USR1")
    terminal.process.send_signal(signal.SIGINT)  # from a program: nobody else passes that on
    terminal.wait_shown("INT")
    terminal.type("\x1c")
    terminal.wait_shown("QUIT")
    assert terminal.process.wait(TIMEOUT_S) == 7
    assert token_of(node, name) == 0


def test_a_terminal_that_stands_still_keeps_no_command_that_has_lost_its_lock(
    keyboard: Callable[..., Keyboard], node: Node, name: str
) -> None:
    words = ("--lease", "600ms", "--grace", "100ms", "--", *LISTENING)
    terminal = keyboard(*HOLDFAST, "lock", name, *words)
    terminal.wait_shown("up")
    terminal.type("\x13")  # Ctrl-S
    wait_until(terminal.is_still, "nothing more can be shown")
    node.ask("DEL", name)
    assert terminal.process.wait(TIMEOUT_S) == LOST


def test_a_script_ends_with_the_key_that_ended_its_command(
    keyboard: Callable[..., Keyboard], node: Node, name: str
) -> None:
    command = f"{' '.join(HOLDFAST)} lock {name} -- {sys.executable} -S -c '{VICTIM}'"
    terminal = keyboard(needed("bash", "bash"), "-c", f"{command}; echo the next line runs")
    terminal.wait_shown("up")
    terminal.type("\x03")
    assert terminal.process.wait(TIMEOUT_S) == -signal.SIGINT
    assert token_of(node, name) == 0


def test_a_job_is_stopped_and_continued_with_its_renewals(
    keyboard: Callable[..., Keyboard], node: Node, name: str
) -> None:
    terminal = keyboard(needed("bash", "bash"), "--norc", "-i")
    inner = 'trap "echo continued; exit 9" CONT; echo "u"p; while :; do sleep 0.02; done'
    for lease, code in (("30s", 9), ("700ms", LOST)):
        terminal.type(f"{' '.join(HOLDFAST)} lock {name} --lease {lease} -- sh -c '{inner}'\n")
        terminal.wait_shown("up\r\n")
        terminal.type("\x1a")
        terminal.wait_shown("Stopped")
        if code == LOST:
            wait_until(lambda: token_of(node, name) == 0, "its lease runs out")
        terminal.type("fg; echo code $?\n")
        terminal.wait_shown(f"code {code}\r\n")
        assert token_of(node, name) == 0


# ---- once

ONCE = ("--at-most", "20s", "--at-least")


def test_of_three_machines_one_runs_the_command(start: Start, node: Node, name: str) -> None:
    script = "echo ran; exit 3"
    machines = [start("once", name, *ONCE, "20s", "--", "sh", "-c", script) for _ in range(3)]
    assert sorted(machine.line() for machine in machines) == ["", "", "ran"]
    assert sorted(machine.end() for machine in machines) == [0, 0, 3]
    assert [machine.stderr for machine in machines] == [""] * 3, "cron has nothing to mail"
    late = start("once", name, *ONCE, "20s", "--verbose", "--", "echo", "ran")
    assert (late.end(), late.line()) == (0, "")
    assert late.stderr == f"holdfast: another machine has lock '{name}'; nothing to do\n"
    node.ask("DEL", name)  # as when at-least is over
    following = start("once", name, *ONCE, "0s", "--", "echo", "ran")
    assert (following.line(), following.end()) == ("ran", 0)


def test_a_short_command_leaves_the_lock_held_for_at_least_so_long_and_not_longer(
    start: Start, node: Node, name: str
) -> None:
    assert start("once", name, *ONCE, "15s", "--", "true").end() == 0
    remaining_ms = inspect(node, name)["remaining_ms"]
    assert isinstance(remaining_ms, int) and 0 < remaining_ms <= 15_000


def test_a_command_that_ends_in_the_last_moments_of_at_least_keeps_it_too(
    start: Start, node: Node, name: str
) -> None:
    # Renewed after a third, for longer than at-least: so holdfast stays until that is over.
    at_s = time.monotonic()
    assert start("once", name, *ONCE, "1s", "--", "sleep", "0.4").end() == 0
    assert 1 <= time.monotonic() - at_s < 5
    assert token_of(node, name) == 0


def test_a_long_command_keeps_the_lock_and_gives_it_back_at_once(
    start: Start, node: Node, name: str
) -> None:
    words = (*ONCE, "700ms", "--", "sh", "-c", "echo $HOLDFAST_TOKEN; sleep 1.2")
    program = start("once", name, *words)
    token = int(program.line())
    time.sleep(0.9)  # longer than at-least
    assert token_of(node, name) == token
    assert (program.end(), program.stderr) == (0, "")
    assert token_of(node, name) == 0


def test_a_command_is_stopped_at_at_most_and_has_the_lock_until_it_has_ended(
    start: Start, node: Node, name: str
) -> None:
    words = ("--at-least", "800ms", "--at-most", "800ms", "--grace", "600ms", "--", *DEAF)
    program = start("once", name, *words)
    pids = [int(word) for word in program.line().split()]
    wait_until(lambda: "stopping" in program.stderr, "its time is over")
    assert "has been held for --at-most; stopping the command" in program.stderr
    assert all(map(is_alive, pids)) and token_of(node, name) > 0
    assert program.end() == STOPPED
    assert not any(map(is_alive, pids)) and token_of(node, name) == 0


def test_once_stops_the_command_as_well_when_the_lock_is_broken(
    start: Start, node: Node, name: str
) -> None:
    program = start("once", name, *ONCE, "1s", "--", "sh", "-c", "echo; exec sleep 60")
    program.line()
    node.ask("DEL", name)
    assert program.end() == LOST


# ---- ls, who, break


def test_locks_are_listed_in_columns_with_nothing_raw(
    start_on: Start, forked_cluster: Cluster
) -> None:
    pair = forked_cluster.pair()
    assert (empty := start_on(pair, "ls")).end() == 0
    assert (empty.line(), empty.stderr) == ("", "holdfast: no lock is held\n")
    take(pair[0], b"evil\x1b[2J\n\xff", "OWNER", "worker-1")
    take(pair[0], "deploy:web", "PX", "90000", "OWNER", "worker-2")
    program = start_on(pair, "ls")
    rows = [program.line() for _ in range(3)]
    assert [row.split()[0] for row in rows] == ["NAME", "deploy:web", "evil\\x1b[2J\\n\\xff"]
    assert [row.split()[1] for row in rows] == ["OWNER", "worker-2", "worker-1"]
    assert [row.split()[3] for row in rows[1:]] == ["1m29s", "none"]
    for column in ("OWNER", "TOKEN", "LEASE"):
        at = rows[0].index(column)
        assert all(row[at - 1] == " " != row[at] for row in rows)
    some = start_on(pair, "ls", "--match", "deploy:*", "--json")
    (found,) = (json.loads(some.line()),)
    assert some.line() == ""
    assert (found["name"], found["owner"], found["waiter_count"]) == ("deploy:web", "worker-2", 0)
    assert 0 < found["remaining_ms"] <= 90_000 and found["held_ms"] >= 0
    program = start_on(pair, "ls", "--json")
    assert {json.loads(program.line())["name"] for _ in range(2)} == {
        "deploy:web",
        "evil\x1b[2J\n\\xff",
    }


def test_who_shows_holder_and_line(start: Start, node: Node, name: str) -> None:
    free = start("who", name)
    assert (free.line(), free.end()) == (f"'{name}' is free", 1)
    token = take(node, name, "OWNER", "worker-1\x1b[2J")
    with node.wire() as second:
        second.send("LOCK", name, "r2", "WAIT", "60000", "OWNER", "worker-2")
        wait_until(lambda: inspect(node, name)["waiter_count"] == 1, "it stands in line")
        program = start("who", name)
        assert program.line() == f"'{name}' is held"
        facts = [program.line().split(maxsplit=1) for _ in range(6)]
        assert facts[0] == ["owner", "worker-1\\x1b[2J"]
        assert facts[1][1].split() == ["token", str(token)]
        assert facts[2] == ["lease", "none, held until it is unlocked"]
        assert facts[4:] == [["waiters", "1"], ["1.", facts[5][1]]]
        assert facts[5][1].startswith("worker-2")
        assert program.end() == 0
        program = start("who", name, "--json")
        shown = json.loads(program.line())
        assert (program.line(), program.end()) == ("", 0)
    assert shown["name"] == name and shown["state"] == "held"
    assert (shown["owner"], shown["fencing_token"]) == ("worker-1\x1b[2J", token)
    assert [each["owner"] for each in shown["waiters"]] == ["worker-2"]
    assert shown["remaining_ms"] == -1


def test_break_releases_that_grant_only_and_says_what_happened(
    start: Start, node: Node, name: str
) -> None:
    token = take(node, name, "OWNER", "worker-1")
    stale = start("break", name, "--token", str(token - 1))
    assert (stale.end(), stale.line()) == (1, "")
    assert stale.stderr == (
        f"holdfast: nothing was released: token {token - 1} is not the current grant of '{name}'; "
        f"worker-1 holds it under token {token}\n"
    )
    assert token_of(node, name) == token
    broken = start("break", name, "--token", str(token))
    assert (broken.end(), broken.stderr) == (0, "")
    assert broken.line() == f"released '{name}', token {token}; it is free now"
    again = start("break", name, "--token", str(token), "--json")
    assert again.end() == 1
    assert json.loads(again.line()) == {
        "name": name,
        "fencing_token": token,
        "released": False,
        "now": {"state": "free", "owner": None, "fencing_token": 0},
    }
