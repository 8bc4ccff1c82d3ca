"""The command table: one entry holds name, arity, flags, summary and handler of a command.

It feeds dispatch, COMMAND (INFO, DOCS, LIST, GETKEYS), the README's table and the statistics. A
new command is one decorated function in this folder.

A handler gets the connection and the request, and returns the encoded reply. It runs to completion
and must not wait. If the answer takes time it calls ``connection.pause()``, returns None, and has
``connection.resume(reply)`` called later. None also means "answered by myself".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import TYPE_CHECKING

from ...resp import encoder

if TYPE_CHECKING:
    from ..connection import Connection

Handler = Callable[["Connection", list[bytes]], bytes | None]

ARGUMENTS_ANY = 1 << 30


@dataclass(slots=True)
class Argument:
    """One argument, as COMMAND DOCS describes it (redis-cli's hints are made of it).

    ``type`` is one of Redis' words: key, string, integer, pattern, pure-token, oneof, block.
    """

    name: str
    type: str = "string"
    token: str = ""  # the keyword before it
    optional: bool = False
    multiple: bool = False
    arguments: Sequence[Argument] = ()  # of a oneof or a block


@dataclass(slots=True, eq=False)
class Command:
    """A command, or a subcommand (``name`` is then ``client|list``)."""

    name: str
    arity: int  # as in Redis: the name counts, negative means "at least"
    summary: str
    handler: Handler
    group: str
    since: str
    flags: tuple[str, ...] = ()
    depends_on_state: bool = False  # its replies are under the commit rule (I6)
    hot: bool = False  # takes the short way through the connection (``hot_table``)
    key_position: int = 0  # of the lock's name, 0: there is none
    key_flags: tuple[str, ...] = ()  # what is done with it, in Redis' words
    arguments: Sequence[Argument] = ()
    categories: tuple[str, ...] = ()  # of ACLs, beyond those that follow from flags and group
    complexity: str = "O(1)"
    subcommands: dict[bytes, Command] = field(default_factory=dict)
    # Statistics (INFO commandstats):
    calls: int = 0
    nanoseconds: int = 0  # of the calls that were timed one by one
    sampled_calls: int = 0
    sampled_ns: int = 0
    rejected_calls: int = 0
    failed_calls: int = 0
    # Derived:
    arguments_min: int = 0
    arguments_max: int = 0

    def __post_init__(self) -> None:
        self.arguments_min = abs(self.arity)
        self.arguments_max = self.arity if self.arity > 0 else ARGUMENTS_ANY

    @property
    def takes_keys(self) -> bool:
        """Whether all that follows the first key is keys, too."""
        return any(argument.type == "key" and argument.multiple for argument in self.arguments)

    def add_sample(self, nanoseconds: int, calls: int) -> None:
        """Calls that were timed together, to stand for those that were not."""
        self.sampled_ns += nanoseconds
        self.sampled_calls += calls

    @property
    def microseconds(self) -> int:
        """Service time of all calls; of a command that is only sampled, extrapolated."""
        if not self.sampled_calls:
            return self.nanoseconds // 1000
        return self.calls * self.sampled_ns // self.sampled_calls // 1000

    def reset_statistics(self) -> None:
        """CONFIG RESETSTAT."""
        self.calls = self.nanoseconds = self.sampled_calls = self.sampled_ns = 0
        self.rejected_calls = self.failed_calls = 0

    def subcommand(self, argv: list[bytes]) -> Command | bytes:
        """The subcommand that ``argv`` names, or the error reply that Redis would give."""
        sub = self.subcommands.get(argv[1].upper())
        if sub is None:
            return encoder.error(
                f"ERR unknown subcommand '{shown(argv[1])}'. Try {self.name.upper()} HELP."
            )
        if not sub.arguments_min <= len(argv) <= sub.arguments_max:
            sub.rejected_calls += 1
            return wrong_arity(sub)
        return sub

    def run_subcommand(self, connection: Connection, argv: list[bytes]) -> bytes | None:
        """Find the subcommand and run it: the handler of a command that is only a container."""
        sub = self.subcommand(argv)
        if isinstance(sub, bytes):
            return sub
        connection.last_subcommand = sub
        started = perf_counter_ns()
        reply = sub.handler(connection, argv)
        sub.calls += 1
        sub.nanoseconds += perf_counter_ns() - started
        if reply is not None and reply[0] == 45:  # "-"
            sub.failed_calls += 1
        return reply


COMMANDS: dict[str, Command] = {}
"""All commands by lower-case name, in the order in which they were declared."""


def command(
    name: str,
    arity: int,
    summary: str,
    *,
    group: str,
    since: str = "0.1.0",
    flags: Sequence[str] = (),
    depends_on_state: bool = False,
    hot: bool = False,
    key_position: int = 0,
    key_flags: Sequence[str] = (),
    arguments: Sequence[Argument] = (),
    categories: Sequence[str] = (),
    complexity: str = "O(1)",
) -> Callable[[Handler], Handler]:
    """Declare a command; ``name`` with a "|" declares a subcommand of one that exists."""

    def declare(handler: Handler) -> Handler:
        declared = Command(
            name=name,
            arity=arity,
            summary=summary,
            handler=handler,
            group=group,
            since=since,
            flags=tuple(flags),
            depends_on_state=depends_on_state or hot,
            hot=hot,
            key_position=key_position,
            key_flags=tuple(key_flags),
            arguments=arguments,
            categories=tuple(categories),
            complexity=complexity,
        )
        parent, bar, child = name.partition("|")
        if bar:
            COMMANDS[parent].subcommands[child.upper().encode()] = declared
        else:
            assert name not in COMMANDS, f"{name} is declared twice"
            COMMANDS[name] = declared
        return handler

    return declare


def container(
    name: str,
    summary: str,
    *,
    group: str,
    flags: Sequence[str] = (),
    categories: Sequence[str] = (),
) -> None:
    """Declare a command that only has subcommands, with the HELP that lists them."""
    parent = Command(
        name=name, arity=-2, summary=summary, handler=_unset, group=group, since="0.1.0",
        flags=tuple(flags), categories=tuple(categories), complexity="Depends on subcommand.",
    )  # fmt: skip
    parent.handler = parent.run_subcommand
    COMMANDS[name] = parent
    declare_help(name)


def declare_help(name: str) -> None:
    """Declare the HELP subcommand of ``name``: what its other subcommands say of themselves."""
    parent = COMMANDS[name]

    def run_help(connection: Connection, argv: list[bytes]) -> bytes:
        return encoder.encode([encoder.Status(line) for line in help_lines(parent)])

    declare = command(
        f"{name}|help", 2, "Lists the subcommands", group=parent.group,
        flags=("loading", "stale"), categories=parent.categories,
    )  # fmt: skip
    declare(run_help)


def _unset(connection: Connection, argv: list[bytes]) -> bytes | None:
    raise AssertionError("a container's handler is set right behind its construction")


def public_commands() -> Iterator[Command]:
    """The commands that are meant for clients: all but what the nodes say to each other."""
    return (declared for declared in COMMANDS.values() if declared.name != "peer")


def help_lines(parent: Command) -> Iterator[str]:
    """The lines of ``<parent> HELP``, laid out as Redis does."""
    yield f"{parent.name.upper()} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"
    for sub in sorted(parent.subcommands.values(), key=lambda sub: sub.name.endswith("|help")):
        yield syntax(sub)
        yield f"    {sub.summary}."


def syntax(declared: Command) -> str:
    """How a command is written; a subcommand without the name of its container."""
    return " ".join([declared.name.rpartition("|")[2].upper(), *map(_written, declared.arguments)])


def _written(argument: Argument) -> str:
    inner = [_written(each) for each in argument.arguments]
    if argument.type == "pure-token":
        text = argument.token
    elif argument.type == "oneof":
        bare = argument.optional and not argument.token
        text = "|".join(inner) if bare else f"({'|'.join(inner)})"
    else:
        text = " ".join(inner) or f"<{argument.name}>"
    if argument.token and argument.type != "pure-token":
        text = f"{argument.token} {text}"
    if argument.multiple:
        text = f"{text} [{text} ...]"
    return f"[{text}]" if argument.optional else text


def hot_table() -> dict[bytes, Command]:
    """The commands that take the short way on a primary, by their usual spellings. Their handlers
    check the number of arguments and count their errors themselves."""
    table = {}
    for name, declared in COMMANDS.items():
        if declared.hot:
            table[name.encode()] = table[name.upper().encode()] = declared
    return table


def find(argv: list[bytes]) -> Command | None:
    """The command that a request names, in any mixture of cases."""
    return COMMANDS.get(argv[0].lower().decode("latin-1"))


def wrong_arity(declared: Command) -> bytes:
    """Redis' answer to a wrong number of arguments."""
    return encoder.error(f"ERR wrong number of arguments for '{declared.name}' command")


def unknown(argv: list[bytes]) -> bytes:
    """Redis' answer to an unknown command: name and arguments are cut at 128 characters."""
    arguments = ""
    for argument in argv[1:]:
        if len(arguments) >= 128:
            break
        arguments += f"'{shown(argument, 128 - len(arguments))}' "
    return encoder.error(
        f"ERR unknown command '{shown(argv[0])}', with args beginning with: {arguments}"
    )


def shown(text: bytes, bytes_max: int = 128) -> str:
    """What a client sent as an error reply quotes it: cut in length, and at a NUL as in Redis."""
    return text[:bytes_max].partition(b"\0")[0].decode("utf-8", "surrogateescape")
