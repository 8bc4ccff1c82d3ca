"""CONFIG: what the node was told, in Redis' names where it has them, and what can change live.

A setting is one of three kinds: a field of the node's configuration, which is checked by the very
rules that check the command line; a number of the running node; or a constant, which says what a
Redis tool that asks for it needs to know of this server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from ...resp import encoder
from ...resp.decoder import REQUEST_BYTES_MAX
from ..core import limits
from ..core.replica import Role
from . import reading
from .table import COMMANDS, Argument, command, container, shown

if TYPE_CHECKING:
    from ..connection import Connection

_ADMIN = ("admin", "noscript", "loading", "stale")
_NEVER_SLOW_NS = 1 << 62

# Redis' names of log levels that have another one here.
_LEVELS = {"verbose": "debug", "notice": "info"}


class Setting(NamedTuple):
    """How a setting is shown, and, if it can change, how its text is read and then applied.

    ``field``: it is that field of the configuration. ``read`` raises ValueError.
    """

    show: Callable[[Any], object]
    read: Callable[[str], Any] | None = None
    field: str = ""
    apply: Callable[[Any, Any], None] | None = None


def _number(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = reading.integer(text.encode())
        if value is None:
            raise ValueError("argument couldn't be parsed into an integer")
        if not least <= value <= most:
            raise ValueError(f"argument must be between {least} and {most} inclusive")
        return value

    return read


_any_number = _number(-(2**63), 2**63 - 1)


def _constant(value: object) -> Setting:
    return Setting(lambda node: value)


def _of_config(field: str, read: Callable[[str], Any] | None = None) -> Setting:
    return Setting(lambda node: getattr(node.config, field), read, field if read else "")


def _show_slow_us(node: Any) -> int:
    return -1 if node.slow_ns >= _NEVER_SLOW_NS else max(0, node.slow_ns) // 1000


def _set_slow_us(node: Any, microseconds: int) -> None:
    """0: every request is slow; -1: none is."""
    node.slow_ns = _NEVER_SLOW_NS if microseconds < 0 else microseconds * 1000 - (not microseconds)


def _set_slowlog_length(node: Any, length: int) -> None:
    newest = islice(node.stats.slow_requests, length)
    node.stats.slow_requests = deque(newest, maxlen=length)


def _set_connections_max(node: Any, count: int) -> None:
    node.connections_max = count


def _show_primary(node: Any) -> str:
    address = node.peer.address
    if node.replica.role is Role.PRIMARY or address is None:
        return ""
    return f"{address.host} {address.port}"


_MIN_BACKUPS = _of_config("min_backups", _any_number)
_LOG_LEVEL = _of_config("log_level", lambda text: _LEVELS.get(text.lower(), text.lower()))
_PRIMARY = Setting(_show_primary)

SETTINGS: dict[str, Setting] = {
    "bind": Setting(lambda node: " ".join(node.config.bind)),
    "port": Setting(lambda node: node.port),
    "backup": _of_config("backup"),
    "replicaof": _PRIMARY,
    "slaveof": _PRIMARY,
    "bootstrap": _of_config("bootstrap"),
    "min-backups": _MIN_BACKUPS,
    "min-replicas-to-write": _MIN_BACKUPS,
    "min-slaves-to-write": _MIN_BACKUPS,
    "failover": _of_config("failover", lambda text: text.lower()),
    "backup-timeout-ms": _of_config("backup_timeout_ms", _any_number),
    "promotion-timeout-ms": _of_config("promotion_timeout_ms", _any_number),
    "quarantine-ms": _of_config("quarantine_ms"),
    "view": _of_config("view"),
    "view-file": _of_config("view_file"),
    "etcd-ca": _of_config("etcd_ca"),
    "etcd-cert": _of_config("etcd_cert"),
    "etcd-key": _of_config("etcd_key"),
    "etcd-user": _of_config("etcd_user"),
    "etcd-password-file": _of_config("etcd_password_file"),
    "log-level": _LOG_LEVEL,
    "loglevel": _LOG_LEVEL,
    "maxclients": Setting(
        lambda node: node.connections_max,
        _number(1, limits.CONNECTIONS_MAX),
        apply=_set_connections_max,
    ),
    "slowlog-log-slower-than": Setting(
        _show_slow_us, _number(-1, 2**62 // 1000), apply=_set_slow_us
    ),
    "slowlog-max-len": Setting(
        lambda node: node.stats.slow_requests.maxlen,
        _number(0, limits.SLOWLOG_LENGTH_MAX),
        apply=_set_slowlog_length,
    ),
    "appendonly": _constant("no"),
    "cluster-enabled": _constant("no"),
    "databases": _constant(1),
    "enable-debug-command": _constant("local"),
    "maxmemory": _constant(0),
    "maxmemory-policy": _constant("noeviction"),
    "proto-max-bulk-len": _constant(REQUEST_BYTES_MAX),
    "protected-mode": _constant("no"),
    "repl-backlog-size": _constant(limits.BACKLOG_BYTES_MAX),
    "replica-read-only": _constant("yes"),
    "slave-read-only": _constant("yes"),
    "requirepass": _constant(""),
    "save": _constant(""),
    "tcp-backlog": _constant(limits.LISTEN_QUEUE_MAX),
    "timeout": _constant(0),
}

container("config", "A container for server configuration commands", group="server")


def _shown(setting: Setting, node: Any) -> str:
    value = setting.show(node)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


@command(
    "config|get",
    -3,
    "Returns the settings whose names match a pattern",
    group="server",
    flags=_ADMIN,
    arguments=(Argument("parameter", "pattern", multiple=True),),
    complexity="O(N) where N is the number of settings",
)
def config_get(connection: Connection, argv: list[bytes]) -> bytes:
    """``CONFIG GET pattern [pattern ...]``: a map."""
    # A name that is asked for as it is keeps its spelling, as in Redis.
    plain = {shown(name).lower(): shown(name) for name in argv[2:] if not reading.is_glob(name)}
    patterns = [name.lower() for name in argv[2:] if reading.is_glob(name)]
    if sum(map(len, patterns)) > limits.GLOBS_BYTES_MAX:
        return encoder.error(f"ERR patterns of more than {limits.GLOBS_BYTES_MAX} bytes in all")
    globs = [reading.Glob(pattern) for pattern in patterns]
    found = {
        plain.get(name, name): _shown(setting, connection.node)
        for name, setting in SETTINGS.items()
        if name in plain or any(glob.matches(name.encode()) for glob in globs)
    }
    return encoder.encode(found, connection.protocol)


@command(
    "config|set",
    -4,
    "Changes settings of the running server: all of those given, or none",
    group="server",
    flags=_ADMIN,
    arguments=(
        Argument(
            "parameter_value",
            "block",
            multiple=True,
            arguments=(Argument("parameter"), Argument("value")),
        ),
    ),
    complexity="O(N) where N is the number of settings given",
)
def config_set(connection: Connection, argv: list[bytes]) -> bytes:
    """``CONFIG SET name value [name value ...]``"""
    if len(argv) % 2:
        return reading.SYNTAX_ERROR
    node = connection.node
    names = [shown(name).lower() for name in argv[2::2]]
    for name, as_given in zip(names, argv[2::2], strict=True):
        if name not in SETTINGS:
            return encoder.error(
                f"ERR Unknown option or number of arguments for CONFIG SET - '{shown(as_given)}'"
            )
    config = node.config
    actions: list[tuple[Callable[[Any, Any], None], Any]] = []
    seen: list[Setting] = []
    for name, value in zip(names, argv[3::2], strict=True):
        setting, text = SETTINGS[name], value[:128].decode("utf-8", "surrogateescape")
        try:
            if setting in seen:
                raise ValueError("duplicate parameter")
            seen.append(setting)
            if setting.read is None:
                _check_unchanged(text, _shown(setting, node))
            elif setting.field:
                config = replace(config, **{setting.field: setting.read(text)})
            elif setting.apply is not None:
                actions.append((setting.apply, setting.read(text)))
        except ValueError as error:
            return encoder.error(
                f"ERR CONFIG SET failed (possibly related to argument '{name}') - {error}"
            )
    if config != node.config:
        node.reconfigure(config)
    for action, argument in actions:
        action(node, argument)
    return encoder.OK


def _check_unchanged(text: str, present: str) -> None:
    """What cannot change may be set to what it is. Raises ValueError."""
    if text != present:
        raise ValueError(f"can't set immutable config, it is '{present}' here")


@command("config|resetstat", 2, "Resets the counters of INFO", group="server", flags=_ADMIN)
def config_resetstat(connection: Connection, argv: list[bytes]) -> bytes:
    """``CONFIG RESETSTAT``"""
    node = connection.node
    node.stats.reset()
    node.pairing.full_resyncs = node.pairing.partial_resyncs = 0
    node.pairing.partial_resyncs_refused = 0
    node.replica.executor.reset_statistics()
    for each in node.connections.values():
        each.bytes_in = each.bytes_out = 0
    for declared in COMMANDS.values():
        declared.reset_statistics()
        for sub in declared.subcommands.values():
            sub.reset_statistics()
    return encoder.OK


@command(
    "config|rewrite", 2, "Refused: there is no configuration file", group="server", flags=_ADMIN
)
def config_rewrite(connection: Connection, argv: list[bytes]) -> bytes:
    """``CONFIG REWRITE``"""
    return encoder.error("ERR The server is running without a config file")
