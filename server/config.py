"""What a node is told at its start: one frozen value, checked once, here.

Every error says what is wrong and what to do about it, in the words of the command line, so that it
can be shown to whoever typed it.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

FailoverMode = Literal["auto", "manual"]
LogLevel = Literal["debug", "info", "warning", "error"]

FAILOVER_MODES: tuple[str, ...] = get_args(FailoverMode)
LOG_LEVELS: tuple[str, ...] = get_args(LogLevel)

PORT_MAX = 65535
# Below this, an ordinary pause of a busy machine would look like a death.
PEER_TIMEOUT_MS_MIN = 100
# Above this, it is a unit mistaken: nobody wants to wait ten minutes for a failover.
PEER_TIMEOUT_MS_MAX = 600_000
# A quarantine is as long as the longest lease that a lost history can have given.
QUARANTINE_MS_MAX = 365 * 86_400_000
FAIL_STOP = "fail-stop"
# A pair has one backup.
BACKUPS_MAX = 1


class ConfigError(ValueError):
    """The configuration cannot be used as it is; the text says why and what to do."""


class Address(NamedTuple):
    """Where a node listens. `host` is a name or an address, IPv6 without its brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Reads `HOST:PORT` or `[IPV6]:PORT`; raises ConfigError on anything else."""
        host, colon, port = text.rpartition(":")
        if not colon or not host:
            raise ConfigError(f"{text!r} is not HOST:PORT; write for example 10.0.0.2:6379")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            if not _is_ipv6(host):
                raise ConfigError(f"{host!r} in {text!r} is not an IPv6 address")
        elif ":" in host or "[" in host or "]" in host:
            raise ConfigError(f"{text!r}: write an IPv6 address in brackets, as in [::1]:6379")
        elif any(character.isspace() or character in "/@," for character in host):
            raise ConfigError(f"{text!r}: {host!r} is not a host; write HOST:PORT, nothing around")
        try:
            host.encode("idna")
        except UnicodeError:
            raise ConfigError(f"{text!r}: {host!r} cannot be a host name") from None
        # isdecimal() alone would let through the digits of other scripts.
        if not (port.isascii() and port.isdecimal() and 1 <= int(port[:9]) <= PORT_MAX):
            raise ConfigError(f"{text!r}: the port must be a number from 1 to {PORT_MAX}")
        return cls(host, int(port))


@dataclass(frozen=True, slots=True)
class Config:
    """One node's configuration. Raises ConfigError if it makes no sense.

    `backup` is the first primary's view of its peer, `replicaof` the first backup's; at most one of
    the two is set, and with neither the node is primary-only. Port 0 takes any free port.
    """

    bind: tuple[str, ...] = ("127.0.0.1",)
    port: int = 6379
    backup: Address | None = None
    replicaof: Address | None = None
    bootstrap: bool = False
    min_backups: int = 0
    failover: FailoverMode = "auto"
    backup_timeout_ms: int = 2000
    promotion_timeout_ms: int = 3000
    quarantine_ms: int = 0
    view: str = FAIL_STOP
    view_file: str = ""
    etcd_ca: str = ""
    etcd_cert: str = ""
    etcd_key: str = ""
    etcd_user: str = ""
    etcd_password_file: str = ""
    log_level: LogLevel = "info"

    def __post_init__(self) -> None:
        self._check_listening()
        self._check_peer()
        self._check_choices()
        self._check_register()

    @property
    def peer(self) -> Address | None:
        """The other node, whichever of the two flags named it; None for a node alone."""
        return self.backup or self.replicaof

    def _check_listening(self) -> None:
        if not self.bind or not all(self.bind):
            raise ConfigError("--bind needs an address, for example --bind 127.0.0.1")
        for host in self.bind:
            if not isinstance(host, str) or any(c.isspace() for c in host):
                raise ConfigError(f"--bind {host!r} is not an address")
        if len(set(self.bind)) != len(self.bind):
            raise ConfigError("--bind names the same address twice; name each once")
        _check_range("--port", self.port, 0, PORT_MAX, "; 0 takes any free port")

    def _check_peer(self) -> None:
        if self.backup is not None and self.replicaof is not None:
            raise ConfigError(
                "--backup and --replicaof exclude each other: give --backup to the first primary, "
                "--replicaof to the first backup"
            )
        peer = self.peer
        if peer is None:
            return
        flag = "--backup" if self.backup is not None else "--replicaof"
        _check_range(f"the port in {flag}", peer.port, 1, PORT_MAX)
        if peer.port == self.port and self._is_own_host(peer.host):
            raise ConfigError(
                f"{flag} {peer} is this node itself; name the other node, or give this one "
                "another --port"
            )

    def _check_choices(self) -> None:
        _check_range("--min-backups", self.min_backups, 0, BACKUPS_MAX, ": a pair has one backup")
        for flag, timeout_ms in (
            ("--backup-timeout-ms", self.backup_timeout_ms),
            ("--promotion-timeout-ms", self.promotion_timeout_ms),
        ):
            _check_range(flag, timeout_ms, PEER_TIMEOUT_MS_MIN, PEER_TIMEOUT_MS_MAX)
        if self.failover not in FAILOVER_MODES:
            raise ConfigError(f"--failover must be auto or manual, not {self.failover!r}")
        if self.log_level not in LOG_LEVELS:
            raise ConfigError(f"--log-level must be one of {', '.join(LOG_LEVELS)}")

    def _check_register(self) -> None:
        _check_range("--quarantine-ms", self.quarantine_ms, 0, QUARANTINE_MS_MAX)
        if self.view == FAIL_STOP:
            if any(self.register_flags[1:]):
                raise ConfigError("--view-file and the --etcd flags go with another --view")
        elif self.peer is None:
            raise ConfigError(f"--view {self.view} is for a pair: give --backup or --replicaof too")
        elif self.view == "backup" and bool(self.view_file) != (self.replicaof is not None):
            raise ConfigError(
                "--view backup: the node with --replicaof keeps the register and needs "
                "--view-file, the other one has none"
            )

    @property
    def register_flags(self) -> tuple[str, ...]:
        """What names the view register, in the order of `registers.opening.open_register`."""
        return (
            self.view, self.view_file, self.etcd_ca, self.etcd_cert, self.etcd_key,
            self.etcd_user, self.etcd_password_file,
        )  # fmt: skip

    def _is_own_host(self, host: str) -> bool:
        """As far as the text tells: no name is looked up. A miss is found by the handshake."""
        if _canonical(host) in {_canonical(own) for own in self.bind}:
            return True
        return _is_loopback(host) and any(_is_wildcard(own) for own in self.bind)


def dialled_host(bind: tuple[str, ...]) -> str:
    """The host by which a process of this machine reaches a node that is bound so."""
    first = bind[0]
    if _is_wildcard(first):
        return "::1" if ":" in first else "127.0.0.1"
    return first


def check_distinct(bind: tuple[str, ...]) -> None:
    """Raises ConfigError if two of the addresses cannot both be bound to one port.

    Looks names up, which `Config` does not. A name that is not found is left to whoever binds it.
    """
    seen: dict[tuple[int, str], str] = {}
    for host in bind if len(bind) > 1 else ():
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError):
            continue
        family, address = found[0][0], str(found[0][4][0])  # the one that is bound
        for (other_family, other), other_host in seen.items():
            if family != other_family:
                continue
            if address == other:
                raise ConfigError(
                    f"--bind {other_host} and --bind {host} are the same address, {address}; "
                    "give one of them"
                )
            if _is_wildcard(address) or _is_wildcard(other):
                every, one = (host, other_host) if _is_wildcard(address) else (other_host, host)
                raise ConfigError(f"--bind {every} takes in --bind {one}; give one of them")
        seen[family, address] = host


def _check_range(what: str, value: int, least: int, most: int, hint: str = "") -> None:
    # bool is an int to Python; nobody means it as one.
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"{what} must be from {least} to {most}, not {value!r}{hint}")


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _canonical(host: str) -> str:
    lowered = host.lower()
    if lowered == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(lowered))
    except ValueError:
        return lowered


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(_canonical(host)).is_loopback
    except ValueError:
        return False


def _is_wildcard(host: str) -> bool:
    return host in ("0.0.0.0", "::")
