"""The README is true: its session is played, its examples run, its table is the server's.

`python tests/test_readme.py` prints the table of commands for pasting.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness.processes import Cluster, Node, wait_until
from harness.wire import Wire

from holdfast.server import commands
from holdfast.server.commands.table import COMMANDS, syntax

README = (Path(__file__).parent.parent / "README.md").read_text()


def commands_table() -> str:
    """The README's table of commands, from the one table that the server has."""
    commands.load()
    lines = ["| command | |", "|---|---|"]
    groups = ["locks", "registers", "generic", "string", "connection", "server"]
    ordered = sorted(COMMANDS.items(), key=lambda item: (groups.index(item[1].group), item[0]))
    for name, command in ordered:
        if name == "peer":  # between the nodes
            continue
        subcommands = sorted(sub.decode() for sub in command.subcommands if sub != b"HELP")
        written = f"{name.upper()} {'|'.join(subcommands)}" if subcommands else syntax(command)
        written = written.replace("|", "\\|")  # or it would end the cell
        lines.append(f"| `{written}` | {command.summary} |")
    return "\n".join(lines)


def session(port: int, number: int = 0) -> list[tuple[str, str]]:
    """The commands typed in a session of the README on a port, each with what it shows as
    printed."""
    block = re.findall(rf"\$ redis-cli -p {port}\n((?:    .*\n)+)", README)[number]
    prompt = f"127.0.0.1:{port}> "
    lines = [line[4:] for line in block.splitlines()]
    typed = [at for at, line in enumerate(lines) if line.startswith(prompt)]
    return [
        (lines[at].removeprefix(prompt), "\n".join(lines[at + 1 : end]))
        for at, end in zip(typed, [*typed[1:], len(lines)], strict=True)
    ]


def redis_cli(node: Node, command: str) -> str:
    """What redis-cli prints for one command, formatted as on a terminal."""
    return subprocess.run(
        ["redis-cli", "--no-raw", "-p", str(node.port), *command.split()],
        check=True,
        capture_output=True,
        text=True,
        timeout=20,
    ).stdout.strip("\n")


def with_own_numbers(text: str, tokens: dict[str, str]) -> str:
    """Fencing tokens and times differ from run to run: name the tokens by their order."""

    def name(match: re.Match[str]) -> str:
        return tokens.setdefault(match.group(), f"token {len(tokens)}")

    text = re.sub(r"\d{16}", name, text)
    return re.sub(r'("held_ms"\n10\) \(integer\)) \d+', r"\1 N", text)


needs_redis_cli = pytest.mark.skipif(
    shutil.which("redis-cli") is None, reason="redis-cli IS NOT INSTALLED (Debian: redis-tools)"
)


@needs_redis_cli
def test_the_redis_cli_session_prints_what_the_readme_shows(cluster: Cluster) -> None:
    primary, backup = cluster.pair()
    shown_tokens: dict[str, str] = {}
    real_tokens: dict[str, str] = {}

    def play(node: Node, commands: list[tuple[str, str]]) -> None:
        assert len(commands) == 4
        for command, shown in commands:
            printed = redis_cli(node, command)
            assert with_own_numbers(printed, real_tokens) == with_own_numbers(shown, shown_tokens)

    play(primary, session(6379))
    primary.kill()
    wait_until(lambda: "READONLY" not in redis_cli(backup, "INSPECT report"), "the backup serves")
    play(backup, session(6380))


@needs_redis_cli
@pytest.mark.parametrize(("number", "count"), [(1, 5), (2, 9)], ids=["leases", "registers"])
def test_a_session_prints_what_the_readme_shows(number: int, count: int, cluster: Cluster) -> None:
    primary, _ = cluster.pair()
    commands = session(6379, number)
    assert len(commands) == count
    shown_tokens: dict[str, str] = {}
    real_tokens: dict[str, str] = {}
    for command, shown in commands:
        named = with_own_numbers(command, shown_tokens)
        for token, name in real_tokens.items():
            named = named.replace(name, token)
        printed = redis_cli(primary, named)
        assert with_own_numbers(printed, real_tokens) == with_own_numbers(shown, shown_tokens)


def python_examples() -> list[str]:
    """The README's Python blocks."""
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


SAID = r"working under fencing token \d{16}\n"
SAID_OF_REGISTERS = r"not written: .*version.*\nleft: Versioned\(value=b'7', version=4\)\n"


@pytest.mark.parametrize(
    ("number", "said", "left"),
    [(0, SAID, 0), (1, SAID, 0), (2, SAID, 0), (3, SAID_OF_REGISTERS, 1)],
)
def test_the_python_examples_run(number: int, said: str, left: int, cluster: Cluster) -> None:
    primary, backup = cluster.pair()
    example = python_examples()[number]
    example = example.replace("6379", str(primary.port))
    example = example.replace("6380", str(backup.port))
    ran = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, timeout=30, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.match(said, ran.stdout)
    with Wire(primary.port) as wire:
        assert wire.ask("DBSIZE") == left, "the example gives its lock back"


def test_every_python_block_of_the_readme_is_run() -> None:
    assert len(python_examples()) == 4


def test_the_table_of_commands_is_the_servers() -> None:
    shown = README.split("compares this table with the server's -->\n\n")[1].split("\n\n")[0]
    assert shown == commands_table(), f"the README should have:\n\n{commands_table()}"


if __name__ == "__main__":
    print(commands_table())
