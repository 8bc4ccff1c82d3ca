"""The client commands of `holdfast`: what they read, what they show, what they refuse.

Nothing here needs a node; tests/test_live_cli_lock.py has those that do.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness.ports import Port
from harness.processes import environment

from holdfast.compat import Clerk, cli
from holdfast.compat.cli import holding, program, running, servers, show
from holdfast.compat.endpoints import now_us
from holdfast.compat.leases import Grant
from holdfast.server import __main__ as holdfast_main
from holdfast.server import flags

TIMEOUT_S = 20


def holdfast(
    *arguments: str | bytes, stdin: int = subprocess.DEVNULL, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Runs the program to its end."""
    return subprocess.run(
        [sys.executable, "-m", "holdfast.server", *arguments],
        env={**environment(), **extra},
        stdin=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


# ---- durations


@pytest.mark.parametrize(
    ("text", "length_ms"),
    [
        ("500ms", 500),
        ("30s", 30_000),
        ("5m", 300_000),
        ("1h", 3_600_000),
        ("2d", 172_800_000),
        ("0s", 0),
        ("007s", 7_000),
    ],
)
def test_a_duration_is_a_whole_number_and_a_unit(text: str, length_ms: int) -> None:
    assert program.duration(text) == length_ms


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "1.5s", "1h30m", "30 s", "30S", " 30s", "30s\n", "1e3s", "٣s", "1w"]
)
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="500ms, 30s, 5m, 1h"):
        program.duration(text)


def test_a_plain_number_is_refused_with_what_to_write() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="'30' is no duration; write 30s for"):
        program.duration("30")


@pytest.mark.parametrize(
    ("length_ms", "text"),
    [
        (0, "0ms"),
        (999, "999ms"),
        (1_000, "1.0s"),
        (4_270, "4.2s"),
        (59_999, "59.9s"),
        (60_000, "1m00s"),
        (192_000, "3m12s"),
        (7_500_000, "2h05m"),
        (31_536_000_000, "365d00h"),
    ],
)
def test_a_length_is_shown_with_two_units_at_most(length_ms: int, text: str) -> None:
    assert show.length(length_ms) == text


# ---- what is shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"report", "report"),
        ("Zürich 東京".encode(), "Zürich 東京"),
        (b"\x1b[2J", "\\x1b[2J"),
        (b"a\r\nb\t", "a\\r\\nb\\t"),
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"\x9b31m", "\\x9b31m"),  # C1, as a byte
        ("\x9b31m".encode(), "\\x9b31m"),  # and as UTF-8
        ("\u202egnp.exe".encode(), "\\u202egnp.exe"),  # turns the direction of writing
        ("\u200b".encode(), "\\u200b"),  # invisible
        (b"back\\slash", "back\\\\slash"),
    ],
)
def test_a_name_never_reaches_the_terminal_raw(name: bytes, shown: str) -> None:
    assert program.printable(name) == shown


def test_columns_line_up_and_a_giant_sticks_out_alone() -> None:
    rows = [("NAME", "LEASE"), ("a", "none"), ("東京", "1.0s"), ("x" * 300, "2.0s"), ("b", "3.0s")]
    lines = show.columns(rows)
    width = show.COLUMN_WIDTH_MAX
    assert lines[0] == "NAME".ljust(width) + "  LEASE"
    assert lines[2] == "東京" + " " * (width - 4) + "  1.0s"
    assert lines[3] == "x" * 300 + "  2.0s"
    assert lines[4] == "b".ljust(width) + "  3.0s"


def test_json_is_ascii_in_one_line_with_bytes_as_text() -> None:
    line = show.as_json({"name": b"\xffa\n", "owner": "ü".encode(), "waiters": [{"owner": b"x"}]})
    assert line.isascii() and "\n" not in line
    assert json.loads(line) == {"name": "\\xffa\n", "owner": "ü", "waiters": [{"owner": "x"}]}


# ---- where the nodes are


def test_the_flag_wins_over_the_variable_and_that_over_both_nodes_of_this_machine() -> None:
    several = {"HOLDFAST_SERVERS": " h:1, h:2\n"}
    assert servers.named(["h:3"], several) == ("--server", ("h:3",))
    assert servers.named(None, several) == ("HOLDFAST_SERVERS", ("h:1", "h:2"))
    assert servers.named(None, {"HOLDFAST_SERVERS": " "}) == ("default", servers.DEFAULT)
    assert [url[-4:] for url in servers.DEFAULT] == ["6379", "6380"]


# ---- the command line


@pytest.mark.parametrize("command", [*cli.COMMANDS])
def test_help_has_examples_and_the_exit_codes(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for words in (f"usage: holdfast {command}", "examples:", "exit codes:", "HOLDFAST_SERVERS"):
        assert words in text
    listed = {int(word) for word in text.partition("exit codes:")[2].split() if word.isdecimal()}
    every = {program.EXIT_USAGE, program.EXIT_UNAVAILABLE}
    own = {"lock": {75, 79, 126, 127}, "once": {0, 79, 124, 126, 127}}
    assert listed >= every | own.get(command, {0})


def test_help_of_the_whole_lists_the_client_commands() -> None:
    text = holdfast("--help").stdout
    for command, says in holdfast_main._CLIENT_COMMANDS.items():
        assert f" {command} " in text and says in text
    assert set(holdfast_main._CLIENT_COMMANDS) == {*cli.COMMANDS, "demo"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lock"], "there is no command; write it after --, as in: holdfast lock NAME -- COMMAND"),
        (["lock", "a", "true"], "write it after --"),
        (["lock", "a", "--"], "there is no command after --"),
        (["lock", "--", "true"], "required: NAME"),
        (["lock", "", "--", "true"], "a lock's name has 1 to 512 bytes, not 0"),
        (["lock", "n" * 513, "--", "true"], "a lock's name has 1 to 512 bytes, not 513"),
        (["lock", "a", "b", "--", "true"], "unrecognized arguments: b"),
        (["lock", "a", "--leas", "1s", "--", "true"], "--leas"),
        (["lock", "a", "--lease", "30", "--", "true"], "--lease: '30' is no duration; write 30s"),
        (["lock", "a", "--lease", "0s", "--", "true"], "--lease: must be from 1ms to 365d"),
        (["lock", "a", "--lease", "366d", "--", "true"], "--lease: must be from 1ms to 365d"),
        (["lock", "a", "--lease", "1ms", "--", "true"], "--lease: must be 100ms at least"),
        (["lock", "a", "--wait", "1s", "--no-wait", "--", "true"], "not allowed with"),
        (["lock", "a", "\x1b[2J", "--", "true"], "unrecognized arguments: \\x1b[2J"),
        (["once", "a", "--at-most", "1s", "--", "true"], "required: --at-least"),
        (["once", "a", "--at-least", "1s", "--", "true"], "required: --at-most"),
        (
            ["once", "a", "--at-least", "2s", "--at-most", "1s", "--", "true"],
            "--at-least must not be longer than --at-most",
        ),
        (["ls", "a"], "unrecognized arguments: a"),
        (["who"], "required: NAME"),
        (["break", "a"], "'holdfast who a' shows it"),
        (["break", "a", "--token", "x"], "'x' is no fencing token"),
        (["break", "a", "--token", "0"], "a fencing token is above 0, not 0"),
        (["break", "a", "--token", "-1"], "argument --token"),
        (["break", "a", "--token", "1" * 20], "is no fencing token"),
        (["break", "a", "--token", "٣"], "'٣' is no fencing token"),
    ],
)
def test_a_wrong_command_line_is_refused_with_what_is_wrong(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    message, advice = shown.err.splitlines()
    assert says in message
    assert advice == f"Try 'holdfast {arguments[0]} --help'."


@pytest.mark.parametrize(
    ("server", "says"),
    [
        ("host", "--server: 'host' is neither redis://HOST:PORT nor HOST:PORT"),
        ("http://h:1", "--server: "),
        ("redis://h:99999999", "--server: "),
        ("redis://h:1/3", "--server: there is only database 0"),
        ("redis://a..b:1", "--server: "),
    ],
)
def test_a_bad_url_is_one_line(server: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["who", "a", "--server", server]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert shown.err.startswith(f"holdfast: {says}")


def test_a_bad_url_in_the_variable_names_the_variable() -> None:
    done = holdfast("ls", HOLDFAST_SERVERS="redis://h:1 nonsense")
    assert done.returncode == 2
    assert done.stderr.startswith("holdfast: HOLDFAST_SERVERS: 'nonsense' is neither")


@pytest.mark.parametrize("words", [["ls"], ["lock", "a", "--", "touch", "ran"]])
def test_no_node_is_one_line_and_a_code_of_its_own(words: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from holdfast.compat.cli import main, servers\n"
        "servers.DEADLINE_MS = 200  # enough to find nobody\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    port = Port()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            env={**environment(), "HOLDFAST_SERVERS": f"127.0.0.1:{port.number}"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    finally:
        port.release()
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.startswith("holdfast: no node serves: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "ran").exists()


def test_a_server_that_is_no_lock_server_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        script = (
            "import socket,sys\n"
            "s = socket.socket(fileno=int(sys.argv[1]))\n"
            "while True:\n"
            " c, _ = s.accept()\n"
            " while d := c.recv(9999):\n"
            "  c.sendall(b\"-ERR unknown command 'x\\x1b'\\r\\n\" * d.count(b'*'))\n"
        )
        other = subprocess.Popen(
            [sys.executable, "-c", script, str(listener.fileno())], pass_fds=[listener.fileno()]
        )
        try:
            done = holdfast("who", "a", "--server", f"127.0.0.1:{listener.getsockname()[1]}")
        finally:
            other.kill()
            other.wait()
    assert done.returncode == 69
    assert done.stderr == "holdfast: the server refuses: unknown command 'x\\x1b'\n"


# ---- commands that cannot be run


def test_a_command_that_cannot_be_run_is_found_before_anybody_is_asked(tmp_path: Path) -> None:
    folder, script = tmp_path / "folder", tmp_path / "script"
    folder.mkdir()
    script.write_text("#!/bin/sh\n")
    for command, code, says in (
        ("no-such-command", 127, "no-such-command: command not found"),
        (str(tmp_path / "nothing"), 127, "nothing: command not found"),
        (str(folder), 126, "folder: is a directory"),
        (str(script), 126, "script: is not executable"),
    ):
        with pytest.raises(program.Failure, match=says) as failed:
            running.check([command])
        assert failed.value.code == code


@pytest.mark.parametrize("words", [["lock", "a"], ["once", "a", "--at-least=1s", "--at-most=1s"]])
def test_it_is_one_line_and_a_code_as_shells_have_it(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--", "no-such-command"]) == 127
    assert capsys.readouterr().err == "holdfast: no-such-command: command not found\n"


# ---- until when a grant is trusted


def test_a_grant_is_trusted_for_98_percent_of_its_lease_from_the_sending_of_its_request() -> None:
    now_ms = holding.now_ms()

    def grant(sent_ms: int, lease_ms: int) -> holding.Holding:
        nobody = Clerk("redis://127.0.0.1:1")
        return holding.Holding(nobody, b"a", Grant(1, lease_ms, sent_ms * 1_000), renew_ms=30_000)

    long = grant(now_ms, 100_000)
    assert long.trusted_until_ms == now_ms + 98_000 and long.is_trusted
    late = grant(now_ms - 9_800, 10_000)
    late.problem = "refused"
    assert not late.is_trusted and late.loss == "no renewal was answered in time (refused)"


def test_one_clock_is_everybodys_and_goes_on_while_the_machine_is_suspended() -> None:
    clock_us = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000
    assert 0 <= now_us() - clock_us < 1_000_000
    assert 0 <= holding.now_ms() - clock_us // 1_000 < 1_000


# ---- what is loaded, and what is known


def test_the_variables_of_the_client_side_are_no_misspelt_flags() -> None:
    environ = dict.fromkeys(("HOLDFAST_SERVERS", "HOLDFAST_TOKEN", "HOLDFAST_LOCK"), "x")
    assert flags.unknown_variables(environ) == []
    assert set(environ) == set(flags.CLIENT_VARIABLES)
    assert servers.VARIABLE in environ


def test_a_serving_node_loads_nothing_of_the_client_side() -> None:
    code = (
        "import sys, holdfast.server.__main__ as m, holdfast.server.node\n"
        "try: m.main(['serve', '--port', 'x'])\n"
        "except SystemExit: pass\n"
        "print([name for name in sys.modules if name.startswith(('redis', 'holdfast.compat'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_the_client_side_loads_nothing_of_gevent() -> None:
    code = (
        "import sys, holdfast.server.__main__ as m\n"
        "try: m.main(['ls', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in sys.modules if name.startswith(('gevent', 'greenlet'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_whoever_came_of_a_process_is_found_and_nobody_else() -> None:
    shell = "sh -c 'sleep 60 & sleep 60 & echo up; wait' & exec sleep 60"
    other = subprocess.Popen(["sleep", "60"])
    parent = subprocess.Popen(["sh", "-c", shell], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert parent.stdout is not None and parent.stdout.readline() == b"up\n"
        below = running.descendants(parent.pid)
        assert len(below) == 3
        assert {other.pid, parent.pid, *below} <= set(running.descendants(os.getpid()))
        assert not {parent.pid, *below} & set(
            running.descendants(os.getpid(), besides=[parent.pid])
        )
    finally:
        os.killpg(parent.pid, 9)
        other.kill()
        for each in (parent, other):
            each.wait()
        parent.stdout.close()
