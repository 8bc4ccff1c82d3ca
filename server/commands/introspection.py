"""COMMAND: what the command table says of itself, to clients and to redis-cli's hints.

Descriptions never change while the server runs, so each is encoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING

from ...resp import encoder
from ..core.limits import GLOBS_BYTES_MAX
from . import reading
from .table import (
    COMMANDS,
    Argument,
    Command,
    command,
    declare_help,
    public_commands,
    shown,
)

if TYPE_CHECKING:
    from ..connection import Connection

_FLAGS = ("loading", "stale")
_CATEGORIES = ("connection",)
_NAMES = (Argument("command-name", optional=True, multiple=True),)
_WHOLE_COMMAND = (Argument("command"), Argument("arg", optional=True, multiple=True))


@command(
    "command",
    -1,
    "Describes all commands",
    group="server",
    flags=_FLAGS,
    categories=_CATEGORIES,
    complexity="O(N) where N is the number of commands",
)
def command_(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``COMMAND [subcommand ...]``"""
    if len(argv) > 1:
        return COMMANDS["command"].run_subcommand(connection, argv)
    return _array(_info(each, connection.protocol) for each in public_commands())


declare_help("command")


@command(
    "command|count",
    2,
    "Returns the number of commands",
    group="server",
    flags=_FLAGS,
    categories=_CATEGORIES,
)
def count(connection: Connection, argv: list[bytes]) -> bytes:
    """``COMMAND COUNT``"""
    return encoder.integer(sum(1 for _ in public_commands()))


@command(
    "command|info",
    -2,
    "Describes commands: arity, flags, keys",
    group="server",
    flags=_FLAGS,
    categories=_CATEGORIES,
    arguments=_NAMES,
)
def info(connection: Connection, argv: list[bytes]) -> bytes:
    """``COMMAND INFO [command-name ...]``: null for a name that is unknown."""
    protocol = connection.protocol
    if len(argv) == 2:
        return _array(_info(each, protocol) for each in public_commands())
    found = map(_named, argv[2:])
    return _array(_info(each, protocol) if each else encoder.NULL[protocol] for each in found)


@command(
    "command|docs",
    -2,
    "Documents commands, for people",
    group="server",
    flags=_FLAGS,
    categories=_CATEGORIES,
    arguments=_NAMES,
)
def docs(connection: Connection, argv: list[bytes]) -> bytes:
    """``COMMAND DOCS [command-name ...]``: unknown names are left out."""
    found = list(filter(None, map(_named, argv[2:]))) if len(argv) > 2 else list(public_commands())
    protocol = connection.protocol
    header = b"%%%d\r\n" % len(found) if protocol == 3 else b"*%d\r\n" % (2 * len(found))
    return header + b"".join(_docs(each, protocol) for each in found)


@command(
    "command|list",
    -2,
    "Returns the names of commands and subcommands",
    group="server",
    flags=_FLAGS,
    categories=_CATEGORIES,
    arguments=(
        Argument(
            "filterby",
            "oneof",
            token="FILTERBY",
            optional=True,
            arguments=(
                Argument("module-name", token="MODULE"),
                Argument("category", token="ACLCAT"),
                Argument("pattern", "pattern", token="PATTERN"),
            ),
        ),
    ),
)
def list_(connection: Connection, argv: list[bytes]) -> bytes:
    """``COMMAND LIST [FILTERBY MODULE name|ACLCAT category|PATTERN glob]``"""
    if len(argv) == 2:
        return _names(_with_subcommands(public_commands()))
    if len(argv) != 5 or argv[2].upper() != b"FILTERBY":
        return reading.SYNTAX_ERROR
    if len(argv[4]) > GLOBS_BYTES_MAX:
        return encoder.error(f"ERR a pattern of more than {GLOBS_BYTES_MAX} bytes")
    wanted = _list_filter(argv[3].upper(), argv[4])
    if wanted is None:
        return reading.SYNTAX_ERROR
    return _names(each for each in _with_subcommands(public_commands()) if wanted(each))


def _list_filter(kind: bytes, value: bytes) -> Callable[[Command], bool] | None:
    match kind:
        case b"MODULE":
            return lambda each: False  # there are none
        case b"ACLCAT":
            category = f"@{shown(value).lower()}"
            return lambda each: category in _categories(each)
        case b"PATTERN":
            glob = reading.Glob(value.lower())
            return lambda each: glob.matches(each.name.encode())
        case _:
            return None


@command(
    "command|getkeys",
    -3,
    "Returns the lock names in a command",
    group="server",
    flags=_FLAGS,
    categories=_CATEGORIES,
    arguments=_WHOLE_COMMAND,
)
def get_keys(connection: Connection, argv: list[bytes]) -> bytes:
    """``COMMAND GETKEYS command [arg ...]``"""
    found = _with_key(argv[2:])
    return found if isinstance(found, bytes) else encoder.encode(_keys(found, argv[2:]))


@command(
    "command|getkeysandflags",
    -3,
    "Returns the lock names in a command, and what it does with them",
    group="server",
    flags=_FLAGS,
    categories=_CATEGORIES,
    arguments=_WHOLE_COMMAND,
)
def get_keys_and_flags(connection: Connection, argv: list[bytes]) -> bytes:
    """``COMMAND GETKEYSANDFLAGS command [arg ...]``"""
    found = _with_key(argv[2:])
    if isinstance(found, bytes):
        return found
    flags = _key_flags(found)
    return encoder.encode([[key, flags] for key in _keys(found, argv[2:])], connection.protocol)


def _keys(declared: Command, argv: list[bytes]) -> list[bytes]:
    """The lock names in a request."""
    first = declared.key_position
    return argv[first:] if declared.takes_keys else argv[first : first + 1]


def _with_key(argv: list[bytes]) -> Command | bytes:
    """The command that ``argv`` is a request of, or the error reply."""
    declared = _named(argv[0])
    if declared is not None and declared.subcommands and len(argv) > 1:
        declared = declared.subcommands.get(argv[1].upper(), declared)
    if declared is None:
        return encoder.error("ERR Invalid command specified")
    if not declared.key_position:
        return encoder.error("ERR The command has no key arguments")
    if not declared.arguments_min <= len(argv) <= declared.arguments_max:
        return encoder.error("ERR Invalid number of arguments specified for command")
    return declared


def _named(name: bytes) -> Command | None:
    """A command, or a subcommand by its full name, as ``client|list``."""
    parent, _, child = name.lower().decode("latin-1").partition("|")
    declared = COMMANDS.get(parent)
    if declared is None or declared not in public_commands():
        return None
    return declared.subcommands.get(child.upper().encode("latin-1")) if child else declared


def _with_subcommands(commands: Iterable[Command]) -> Iterator[Command]:
    for each in commands:
        yield each
        yield from each.subcommands.values()


def _names(commands: Iterable[Command]) -> bytes:
    return encoder.encode([each.name for each in commands])


def _array(items: Iterable[bytes], sign: bytes = b"*") -> bytes:
    encoded = list(items)
    return b"%b%d\r\n%b" % (sign, len(encoded), b"".join(encoded))


# -- one command -----------------------------------------------------------------------------------


@cache
def _info(each: Command, protocol: int) -> bytes:
    """One element of COMMAND INFO."""
    key = each.key_position
    set_sign = b"~" if protocol == 3 else b"*"
    specs = [encoder.encode(_key_spec(each), protocol)] if key else []
    subcommands = (_info(sub, protocol) for sub in each.subcommands.values())
    plain = (
        each.name,
        each.arity,
        _statuses(each.flags),
        key,
        -1 if each.takes_keys else key,
        int(bool(key)),
        _statuses(_categories(each)),
        frozenset[str](),  # tips
    )
    return b"".join(
        [
            b"*%d\r\n" % (len(plain) + 2),
            *(encoder.encode(field, protocol) for field in plain),
            _array(specs, set_sign),
            _array(subcommands, set_sign),
        ]
    )


def _statuses(words: Iterable[str]) -> frozenset[encoder.Status]:
    return frozenset(map(encoder.Status, words))


def _categories(each: Command) -> frozenset[str]:
    """The ACL categories: those that follow from what else is said of the command, and its own."""
    flags = each.flags
    found: set[str] = {flag for flag in ("write", "admin", "blocking") if flag in flags}
    found.add("fast" if "fast" in flags else "slow")
    found.update({"dangerous"} if "admin" in flags else ())
    found.update({"read"} if "readonly" in flags else ())
    # (A container is not in its group's category, as in Redis: its subcommands are.)
    in_group = each.group == "connection" and not (each.subcommands and each.arity == -2)
    found.update({"connection"} if in_group else ())
    return frozenset(f"@{category}" for category in (*found, *each.categories))


def _key_flags(each: Command) -> frozenset[encoder.Status]:
    usual = ("RO", "access") if "readonly" in each.flags else ("RW", "update")
    return _statuses(each.key_flags or usual)


def _key_spec(each: Command) -> dict[str, object]:
    return {
        "flags": _key_flags(each),
        "begin_search": {"type": "index", "spec": {"index": each.key_position}},
        "find_keys": {
            "type": "range",
            "spec": {"lastkey": -1 if each.takes_keys else 0, "keystep": 1, "limit": 0},
        },
    }


@cache
def _docs(each: Command, protocol: int) -> bytes:
    """A name and its documentation: one pair of the map of COMMAND DOCS."""
    fields: dict[str, object] = {
        "summary": each.summary,
        "since": each.since,
        "group": each.group,
        "complexity": each.complexity,
    }
    if each.arguments:
        fields["arguments"] = list(map(_argument, each.arguments))
    if not each.subcommands:
        return encoder.encode(each.name) + encoder.encode(fields, protocol)
    count = len(fields) + 1
    header = b"%%%d\r\n" % count if protocol == 3 else b"*%d\r\n" % (2 * count)
    subs = each.subcommands.values()
    subs_header = b"%%%d\r\n" % len(subs) if protocol == 3 else b"*%d\r\n" % (2 * len(subs))
    parts = [encoder.encode(each.name), header]
    for name, value in fields.items():
        parts += [encoder.encode(name), encoder.encode(value, protocol)]
    parts += [encoder.encode("subcommands"), subs_header, *(_docs(sub, protocol) for sub in subs)]
    return b"".join(parts)


def _argument(argument: Argument) -> dict[str, object]:
    fields: dict[str, object] = {"name": argument.name, "type": argument.type}
    if argument.type == "key":
        fields["key_spec_index"] = 0
    if argument.token:
        fields["token"] = argument.token
    flags = [flag for flag in ("optional", "multiple") if getattr(argument, flag)]
    if flags:
        fields["flags"] = _statuses(flags)
    if argument.arguments:
        fields["arguments"] = list(map(_argument, argument.arguments))
    return fields
