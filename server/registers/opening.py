"""The register that the flags name, for a node and for `holdfast view` alike."""

from __future__ import annotations

import os

from ..config import ConfigError
from .etcd import EtcdRegister
from .file import FileRegister
from .url import BACKUP, ETCD_SCHEME

# More is not a password but the wrong file.
_PASSWORD_BYTES_MAX = 1024


def open_register(
    view: str,
    view_file: str = "",
    etcd_ca: str = "",
    etcd_cert: str = "",
    etcd_key: str = "",
    etcd_user: str = "",
    etcd_password_file: str = "",
) -> FileRegister | EtcdRegister:
    """The parameters are the flags of those names. Asks nobody yet. Raises ConfigError."""
    if view.startswith(ETCD_SCHEME):
        if view_file:
            raise ConfigError("--view-file is for --view backup; etcd keeps the view in a key")
        password = _password(etcd_user, etcd_password_file)
        return EtcdRegister(view, etcd_ca, etcd_cert, etcd_key, etcd_user, password)
    if etcd_ca or etcd_cert or etcd_key or etcd_user or etcd_password_file:
        raise ConfigError("the --etcd flags are for --view etcd://...")
    if view != BACKUP:
        raise ConfigError(
            f"there is no register under {view}; give --view backup or --view etcd://..."
        )
    return FileRegister(_checked_path(view_file))


def _checked_path(path: str) -> str:
    if not path:
        raise ConfigError("--view backup needs --view-file, the file that keeps the view")
    if "\0" in path or path.endswith(os.sep) or os.path.isdir(path):
        raise ConfigError(f"--view-file {path!r} is a folder; name a file in it")
    return path


def _password(user: str, file: str) -> str:
    if ":" in user:
        raise ConfigError(
            "--etcd-user is a name alone; the password does not belong on a command line, where "
            "others see it: put it into a file for --etcd-password-file"
        )
    if bool(user) != bool(file):
        raise ConfigError("--etcd-user and --etcd-password-file go together: give both or none")
    return _first_line(file) if file else ""


def _first_line(file: str) -> str:
    try:
        with open(file, "rb") as opened:
            data = opened.read(_PASSWORD_BYTES_MAX + 1)
        password = data.decode().removesuffix("\n").removesuffix("\r")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise ConfigError(f"--etcd-password-file {file}: {reason}") from None
    if not password or "\n" in password or len(data) > _PASSWORD_BYTES_MAX:
        raise ConfigError(f"--etcd-password-file {file}: it must hold one line, the password")
    return password
