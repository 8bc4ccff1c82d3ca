"""Where a node is: its URL, made into redis-py's connections that leave all decisions to Clerk."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from redis.backoff import NoBackoff
from redis.exceptions import RedisError

# A connection that stands in line says nothing for hours: after 5 s of that the kernel asks, three
# times at most. (The names are Linux's.)
_KEEPALIVE_S = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}

_HOST_PORT = re.compile(r"(\[[^\[\]/@]+\]|[^\s:/@]+):[0-9]{1,5}")

# What a URL must not say, since Clerk says it.
_DECIDED_BY_CLERK = (
    "decode_responses",
    "encoding",
    "encoding_errors",
    "health_check_interval",
    "max_connections",
    "protocol",
    "retry",
    "retry_on_error",
    "retry_on_timeout",
    "socket_connect_timeout",
    "socket_timeout",
    "timeout",
)


class Family(NamedTuple):
    """One of redis-py's two: what waits in threads, and what waits in an event loop."""

    parse_url: Callable[[str], Any]
    connection: type[Any]
    unix_connection: type[Any]
    retry: type[Any]
    mixin: type[Any]


@dataclass(frozen=True)
class Target:
    """Where a node is, as its URL says. `label` is fit for messages: it has no password."""

    label: str
    connection_class: type[Any]
    retry_class: type[Any]
    options: dict[str, Any]

    @classmethod
    def from_url(cls, url: str, family: Family) -> Target:
        """`url` may be HOST:PORT as well. Raises TypeError or ValueError, with the reason, for one
        that cannot be used."""
        if not isinstance(url, str):
            raise TypeError(f"a node's URL must be a str, not {type(url).__name__}")
        options = dict(family.parse_url(_in_full(url)))
        if options.pop("db", 0) != 0:
            raise ValueError("there is only database 0; leave the number out of the URL")
        if taken := sorted(set(_DECIDED_BY_CLERK) & options.keys()):
            raise ValueError(f"Clerk decides {', '.join(taken)}; leave it out of the URL")
        base = options.pop("connection_class", family.connection)
        if base is family.unix_connection:
            label = options.get("path", "")
        else:
            label = _host_and_port(options)
            _check_host(options.get("host", ""))
            options.setdefault("socket_keepalive", True)
            options["socket_keepalive_options"] = _keepalive_options()
        mixed = type("ClerkConnection", (family.mixin, base), {})
        target = cls(label, mixed, family.retry, options)
        try:
            target.connection()
        except (TypeError, RedisError) as error:
            raise ValueError(f"the URL for {label} has an option of no use: {error}") from error
        return target

    def connection(self) -> Any:
        """A new connection, not yet dialled, that never sends anything twice."""
        return self.connection_class(
            **self.options,
            protocol=2,
            retry=self.retry_class(NoBackoff(), 0),
            retry_on_timeout=False,
            health_check_interval=0,
        )


def _in_full(url: str) -> str:
    """What `url` is, or stands for."""
    if "://" in url:
        return url
    if _HOST_PORT.fullmatch(url):
        return f"redis://{url}"
    _, at, rest = url.rpartition("@")
    shown = f"...@{rest}" if at else url  # (What is left out may be a password.)
    raise ValueError(f"{shown!r} is neither redis://HOST:PORT nor HOST:PORT")


def _keepalive_options() -> dict[int, int]:
    return {
        getattr(socket, name): value
        for name, value in _KEEPALIVE_S.items()
        if hasattr(socket, name)
    }


def _host_and_port(options: dict[str, Any]) -> str:
    host, port = options.get("host", "localhost"), options.get("port", 6379)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_host(host: str) -> None:
    """As looking it up would: an error that is no OSError, and comes only with the first call."""
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise ValueError(f"{host!r:.80} cannot be a host name: {error}") from error
