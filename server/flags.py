"""The command line: one table of flags, each also an environment variable, and what reads it.

A flag given on the command line wins over its variable, and that over the default. An error names
whichever of the two was wrong.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from .config import FAILOVER_MODES, LOG_LEVELS, PORT_MAX, Address, Config, ConfigError
from .registers.url import view_kind

ENV_PREFIX = "HOLDFAST_"
EXIT_USAGE = 2
# Set by the Makefile: whoever reads an error typed `make run`.
MAKE_VARIABLE = ENV_PREFIX + "MAKE"
# Read, or set, by the commands of the client side: `holdfast lock`.
CLIENT_VARIABLES = tuple(ENV_PREFIX + name for name in ("SERVERS", "TOKEN", "LOCK"))
TEST_PREFIX = ENV_PREFIX + "TEST_"  # for this project's own tests

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


class Flag(NamedTuple):
    """`read` turns text into the value, or raises ConfigError. Without `metavar` it is a switch."""

    name: str
    read: Callable[[str], Any]
    default: Any
    metavar: str
    help: str

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENV_PREFIX + self.name.upper()


def _number(text: str) -> int:
    # int() takes " 1_000 " and the digits of every script; a flag does not. Fifteen digits are more
    # than any flag allows, and their value is then refused by its range.
    if not (text.isascii() and text.removeprefix("-").isdecimal() and len(text) <= 15):
        raise ConfigError(f"{text!r} is not a whole number")
    return int(text)


def _switch(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ConfigError(f"{text!r} is neither yes nor no; write 1 or 0")
    return text.lower() in _TRUE


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ConfigError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return read


def _hosts(text: str) -> tuple[str, ...]:
    return tuple(host for host in re.split(r"[\s,]+", text) if host)


_BIND = Flag(
    "bind",
    _hosts,
    Config().bind,
    "ADDRESS",
    "address to listen on; several may be given, with spaces or commas between them",
)
_BACKUP_PORT = Flag("backup_port", _number, 6380, "PORT", "port of the backup")
REGISTER_FLAGS = (
    Flag(
        "view",
        view_kind,
        Config().view,
        "WHERE",
        "where it is kept who is primary: fail-stop (nowhere: a silent node is dead), backup (a "
        "file of the first backup's), or etcd://HOST:PORT,.../PREFIX",
    ),
    Flag("view_file", str, Config().view_file, "FILE", "for --view backup: that file"),
    Flag("etcd_ca", str, Config().etcd_ca, "FILE", "certificate authority of etcd; TLS with it"),
    Flag("etcd_cert", str, Config().etcd_cert, "FILE", "this node's certificate for etcd"),
    Flag("etcd_key", str, Config().etcd_key, "FILE", "the key of --etcd-cert"),
    Flag("etcd_user", str, Config().etcd_user, "NAME", "user of etcd"),
    Flag(
        "etcd_password_file",
        str,
        Config().etcd_password_file,
        "FILE",
        "a file whose one line is the password of --etcd-user",
    ),
)
_TUNING = (
    Flag(
        "min_backups",
        _number,
        Config().min_backups,
        "N",
        "with 1, a primary without its backup refuses new grants (-NOREPLICAS) instead of "
        "going on alone",
    ),
    Flag(
        "failover",
        _one_of(FAILOVER_MODES),
        Config().failover,
        "auto|manual",
        "whether a backup that lost its primary promotes itself, or waits for REPLICAOF NO ONE",
    ),
    Flag(
        "backup_timeout_ms",
        _number,
        Config().backup_timeout_ms,
        "MS",
        "silence after which the primary goes on without its backup",
    ),
    Flag(
        "promotion_timeout_ms",
        _number,
        Config().promotion_timeout_ms,
        "MS",
        "silence after which the backup takes the primary for dead",
    ),
    Flag(
        "quarantine_ms",
        _number,
        Config().quarantine_ms,
        "MS",
        "how long a new history grants no lock: the longest lease that a lost one can have given",
    ),
    *REGISTER_FLAGS,
    Flag(
        "log_level",
        _one_of(LOG_LEVELS),
        Config().log_level,
        "LEVEL",
        f"how much to write to stderr: {', '.join(LOG_LEVELS)}",
    ),
)
SERVE_FLAGS: tuple[Flag, ...] = (
    _BIND,
    Flag("port", _number, Config().port, "PORT", "port to listen on; 0 takes any free one"),
    Flag("backup", Address.parse, None, "HOST:PORT", "for the first primary: where its backup is"),
    Flag(
        "replicaof", Address.parse, None, "HOST:PORT", "for the first backup: where its primary is"
    ),
    Flag(
        "bootstrap",
        _switch,
        False,
        "",
        "once, by hand, after both nodes were lost: begin an empty history although the peer does "
        "not answer. Never in a unit file: it can make a second primary",
    ),
    *_TUNING,
)
PAIR_FLAGS: tuple[Flag, ...] = (
    _BIND,
    Flag("port", _number, Config().port, "PORT", "port of the primary"),
    _BACKUP_PORT,
    *_TUNING,
)


class Parser(argparse.ArgumentParser):
    """argparse, saying in the last line of an error where to read on."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")


def add_flags(parser: argparse.ArgumentParser, flags: tuple[Flag, ...]) -> None:
    """Declares `flags`; what is not given stays None, for `resolve` to look further."""
    for flag in flags:
        text = f"{flag.help} [{_default_text(flag)}; env {flag.variable}]".replace("%", "%%")
        if not flag.metavar:
            parser.add_argument(flag.option, action="store_const", const="1", help=text)
        elif flag is _BIND:
            # As in `--bind A --bind B`, and as in `--bind A B`.
            parser.add_argument(
                flag.option, action="extend", nargs="+", metavar=flag.metavar, help=text
            )
        else:
            parser.add_argument(flag.option, metavar=flag.metavar, help=text)


def resolve(
    flags: tuple[Flag, ...],
    given: argparse.Namespace,
    environ: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """The value of every flag, by name. Raises ConfigError naming the flag or the variable."""
    values = {}
    for flag in flags:
        text = getattr(given, flag.name)
        if text is not None:
            text = ",".join(text) if isinstance(text, list) else text
            values[flag.name] = _read(flag, flag.option, text)
        # An empty variable is one that somebody unset the easy way.
        elif environ.get(flag.variable):
            values[flag.name] = _read(flag, flag.variable, environ[flag.variable])
        else:
            values[flag.name] = flag.default
    return values


def from_environment(
    flags: tuple[Flag, ...],
    given: argparse.Namespace,
    error: str,
    environ: Mapping[str, str] = os.environ,
) -> list[str]:
    """The variables to look at after `error`: those that stand for a flag which it names."""
    return [
        flag.variable
        for flag in flags
        if getattr(given, flag.name) is None
        and environ.get(flag.variable)
        and re.search(rf"{flag.option}(?![\w-])", error)
    ]


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """A warning for each variable that looks like ours and that nothing reads."""
    known = sorted({flag.variable for flag in (*SERVE_FLAGS, *PAIR_FLAGS)})
    warnings = []
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name.startswith(TEST_PREFIX) or not environ[name]:
            continue
        if name in known or name in (MAKE_VARIABLE, *CLIENT_VARIABLES):
            continue
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
        warnings.append(f"{name} is ignored, no flag has it; the nearest is {nearest[0]}")
    return warnings


def to_arguments(flags: tuple[Flag, ...], values: Mapping[str, Any]) -> list[str]:
    """The command line that gives `values`: how `pair` tells its nodes what it was told."""
    arguments = []
    for flag in flags:
        value = values.get(flag.name)
        if value is None or value is False or value == "":
            continue
        if flag is _BIND:
            arguments += [part for host in value for part in (flag.option, host)]
        elif value is True:
            arguments.append(flag.option)
        else:
            arguments += [flag.option, str(value)]
    return arguments


def check_port(option: str, port: int) -> None:
    """A port for `pair`, which has to know its nodes' ports before they listen."""
    if not 1 <= port <= PORT_MAX:
        raise ConfigError(f"{option} must be from 1 to {PORT_MAX}, not {port}")


def _read(flag: Flag, source: str, text: str) -> Any:
    try:
        return flag.read(text)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _default_text(flag: Flag) -> str:
    if flag.default is None or flag.default is False or flag.default == "":
        return "default: none" if flag.metavar else "default: no"
    shown = " ".join(flag.default) if flag is _BIND else flag.default
    return f"default: {shown}"
