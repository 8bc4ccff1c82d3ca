"""Where a view is kept, as it is written on the command line."""

from __future__ import annotations

import re
from typing import NamedTuple

from ..config import FAIL_STOP, Address, ConfigError

BACKUP = "backup"
ETCD_SCHEME = "etcd://"

DEFAULT_PREFIX = "/holdfast"
_PREFIX = re.compile(r"(/[A-Za-z0-9._-]+)+")
_PREFIX_MAX = 200
ENDPOINTS_MAX = 16


class EtcdUrl(NamedTuple):
    """``etcd://HOST:PORT[,HOST:PORT...][/PREFIX]``: the members of one cluster, and the key."""

    endpoints: tuple[Address, ...]
    prefix: str

    def __str__(self) -> str:
        return ETCD_SCHEME + ",".join(map(str, self.endpoints)) + self.prefix

    @property
    def key(self) -> str:
        """The key that holds the view."""
        return self.prefix + "/view"

    @classmethod
    def parse(cls, text: str) -> EtcdUrl:
        """Raises ConfigError on anything else."""
        if not text.startswith(ETCD_SCHEME):
            raise ConfigError(f"{text!r} is not etcd://HOST:PORT[,HOST:PORT...][/PREFIX]")
        hosts, slash, path = text.removeprefix(ETCD_SCHEME).partition("/")
        if "@" in hosts:
            raise ConfigError(
                "a user does not belong into an etcd:// address, where others see the password: "
                "give --etcd-user and --etcd-password-file"
            )
        return cls(_endpoints(hosts), _prefix(slash + path.rstrip("/")))


def view_kind(text: str) -> str:
    """The value of ``--view``, checked. Raises ConfigError."""
    if text.startswith(ETCD_SCHEME):
        return str(EtcdUrl.parse(text))
    if text in (FAIL_STOP, BACKUP):
        return text
    hint = ""
    if re.match(r"https?://|etcds://", text):
        hint = "; write etcd:// also with TLS, which --etcd-ca turns on"
    raise ConfigError(f"{text!r} is none of {FAIL_STOP}, {BACKUP}, etcd://HOST:PORT,...{hint}")


def _endpoints(hosts: str) -> tuple[Address, ...]:
    endpoints = tuple(Address.parse(host) for host in hosts.split(",") if host)
    if not endpoints:
        raise ConfigError("etcd:// names no member; write for example etcd://10.0.0.5:2379")
    if len(set(endpoints)) != len(endpoints):
        raise ConfigError("etcd:// names the same member twice; name each once")
    if len(endpoints) > ENDPOINTS_MAX:
        raise ConfigError(f"etcd:// names more than {ENDPOINTS_MAX} members; a few are enough")
    return endpoints


def _prefix(path: str) -> str:
    if path in ("", "/"):
        return DEFAULT_PREFIX
    if len(path) > _PREFIX_MAX or not _PREFIX.fullmatch(path):
        raise ConfigError(
            f"the prefix {path!r} may have letters, digits, '.', '_', '-' between single slashes, "
            f"{_PREFIX_MAX} characters at most"
        )
    return path
