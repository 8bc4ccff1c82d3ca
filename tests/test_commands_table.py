"""The command table: what it says of each command is complete, and the small readers are right."""

from __future__ import annotations

import re
import time

import hiredis
import pytest

from holdfast.server import commands
from holdfast.server.commands import configuration, info, introspection, reading, table
from holdfast.server.core import limits

commands.load()
ALL = [
    each for parent in table.COMMANDS.values() for each in (parent, *parent.subcommands.values())
]
# The commands there are to be, and no others.
WANTED = """
    ping echo hello auth select quit reset time dbsize command client config info slowlog role
    replicaof slaveof failover wait shutdown debug lock unlock renew verify inspect locks get del
    exists ttl pttl type scan expire pexpire persist vget vput
"""


def test_the_commands_are_those_that_were_asked_for() -> None:
    assert {each.name for each in table.public_commands()} == set(WANTED.split())


@pytest.mark.parametrize("command", ALL, ids=lambda command: command.name)
def test_every_command_says_what_it_is(command: table.Command) -> None:
    assert command.summary[0].isupper() and not command.summary.endswith(".")
    assert len(command.summary) < 80
    assert command.group in ("connection", "server", "locks", "registers", "string", "generic")
    assert command.arity != 0 and re.fullmatch(r"\d+\.\d+\.\d+", command.since)
    assert command.handler.__doc__ or command.subcommands or command.name.endswith("help")


@pytest.mark.parametrize("command", ALL, ids=lambda command: command.name)
def test_arguments_described_fit_the_arity(command: table.Command) -> None:
    if command.subcommands or command.name == "peer":
        return
    words = 2 if "|" in command.name else 1
    least = words + sum(least_words(argument) for argument in command.arguments)
    if command.arity > 0:
        assert least == command.arity
    else:
        assert least >= -command.arity or command.name in ("auth", "client|kill")


def least_words(argument: table.Argument) -> int:
    if argument.optional:
        return 0
    inner = [least_words(each) for each in argument.arguments]
    if argument.type == "pure-token":
        return 1
    own = (min(inner) if argument.type == "oneof" else sum(inner)) if inner else 1
    return own + bool(argument.token)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("command", ALL, ids=lambda command: command.name)
def test_every_description_can_be_parsed(command: table.Command, protocol: int) -> None:
    for encoded, replies in (
        (introspection._info(command, protocol), 1),
        (introspection._docs(command, protocol), 2),
    ):
        reader = hiredis.Reader()
        reader.feed(encoded)
        for _ in range(replies):
            assert reader.gets() is not False
        assert reader.gets() is False and not reader.has_data()


def test_help_is_made_of_the_table() -> None:
    lines = list(table.help_lines(table.COMMANDS["client"]))
    assert lines[0] == "CLIENT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"
    assert "LIST [TYPE (NORMAL|MASTER|REPLICA|PUBSUB)] [ID <client-id> [<client-id> ...]]" in lines
    assert "REPLY (ON|OFF|SKIP)" in lines
    assert lines[-2:] == ["HELP", "    Lists the subcommands."]


def test_a_command_is_written_as_its_arguments_say() -> None:
    assert table.syntax(table.COMMANDS["lock"]) == (
        "LOCK <name> <reqid> [PX <milliseconds>|EX <seconds>] [WAIT <milliseconds>] [OWNER <owner>]"
    )
    assert table.syntax(table.COMMANDS["renew"]) == (
        "RENEW <name> <fencing-token> (PX <milliseconds>|EX <seconds>)"
    )
    assert table.syntax(table.COMMANDS["locks"]) == "LOCKS <cursor> [MATCH <glob>] [COUNT <count>]"
    assert table.syntax(table.COMMANDS["del"]) == "DEL <key> [<key> ...]"
    assert table.syntax(table.COMMANDS["wait"]) == "WAIT <numreplicas> <timeout>"
    assert (
        table.syntax(table.COMMANDS["shutdown"]) == "SHUTDOWN [NOSAVE|SAVE] [NOW] [FORCE] [ABORT]"
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"0", 0),
        (b"-1", -1),
        (b"9223372036854775807", 2**63 - 1),
        (b"-9223372036854775808", -(2**63)),
        (b"9223372036854775808", None),
        (b"", None),
        (b"-0", None),
        (b"+1", None),
        (b"01", None),
        (b" 1", None),
        (b"1\n", None),
        (b"1_0", None),
        (b"1.0", None),
        ("\u0661".encode(), None),
        (b"9" * 100_000, None),
    ],
)
def test_integers_are_read_as_redis_reads_them(text: bytes, value: int | None) -> None:
    assert reading.integer(text) == value


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        (b"*", b"", True),
        (b"", b"", True),
        (b"", b"a", False),
        (b"a", b"a", True),
        (b"a", b"ab", False),
        (b"a*", b"abc", True),
        (b"*c", b"abc", True),
        (b"a*c", b"abbc", True),
        (b"a*c", b"abbd", False),
        (b"a**c", b"ac", True),
        (b"*ab*ab*", b"xxabyyabzz", True),
        (b"?", b"", False),
        (b"a?c", b"abc", True),
        (b"[abc]x", b"bx", True),
        (b"[^abc]x", b"bx", False),
        (b"[^abc]x", b"dx", True),
        (b"[a-c]x", b"bx", True),
        (b"[c-a]x", b"bx", True),
        (b"[a-c]x", b"dx", False),
        (b"[\\]]x", b"]x", True),
        (b"[abc", b"b", True),
        (b"\\*", b"*", True),
        (b"\\*", b"a", False),
        (b"\\", b"\\", True),
        (b"[]", b"a", False),
        (b"\xff*", b"\xff\x00", True),
    ],
)
def test_globs_match_as_in_redis(pattern: bytes, text: bytes, matches: bool) -> None:
    assert reading.Glob(pattern).matches(text) is matches


def test_a_hostile_glob_costs_little() -> None:
    started_s = time.perf_counter()
    assert not reading.Glob(b"*a" * 255 + b"b").matches(b"a" * 512)
    assert not reading.Glob(b"*" + b"?" * 255 + b"b").matches(b"a" * 512)
    assert time.perf_counter() - started_s < 0.5


def test_every_setting_can_be_shown_and_no_name_is_said_twice() -> None:
    for name in configuration.SETTINGS:
        assert name == name.lower() and "_" not in name
    assert limits.SLOWLOG_MAX <= limits.SLOWLOG_LENGTH_MAX


def test_the_sections_of_info_are_named_as_they_are_asked_for() -> None:
    for name, section in info.SECTIONS.items():
        assert section.heading.lower() == name
