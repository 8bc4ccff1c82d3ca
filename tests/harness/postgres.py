"""A real PostgreSQL for one test module; where there is none, its tests are skipped, and say so."""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from .processes import TIMEOUT_S, wait_until

USER = "holdfast"
DATABASE = "postgres"

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
# It ends its own processes and leaves nothing in the system: what SIGKILL would not do.
_IMMEDIATE_SHUTDOWN = signal.SIGQUIT

_SETTINGS = (
    "listen_addresses=",  # a socket in its own folder is enough, and no port can be taken
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "shared_buffers=8MB",
    "max_connections=40",
    "autovacuum=off",
    "log_statement=none",
)


class Postgres:
    """A server that keeps nothing, as a context manager. PostgreSQL refuses to run as root: for
    root it runs as the user `postgres`, or `nobody`."""

    def __init__(self) -> None:
        self._bin = _binaries()
        self._user = _unprivileged_user() if os.geteuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="holdfast-pg-"))
        self._log = self.folder / "log"

    @property
    def socket_path(self) -> Path:
        """Of the unix socket."""
        return self.folder / ".s.PGSQL.5432"

    def __enter__(self) -> Postgres:
        try:
            self._start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        return self

    def _start(self) -> None:
        if self._user is not None:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        data = str(self.folder / "data")
        initdb = [str(self._bin / "initdb"), "--no-sync", "--no-instructions", "--auth=trust"]
        initdb += ["--encoding=UTF8", "--locale=C", f"--username={USER}", f"--pgdata={data}"]
        done = subprocess.run(
            initdb, preexec_fn=self._become, cwd=self.folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        command = [str(self._bin / "postgres"), "-D", data, "-k", str(self.folder)]
        for setting in _SETTINGS:
            command += ["-c", setting]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                preexec_fn=self._become,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            wait_until(self._answers, "PostgreSQL answers")
        except BaseException:
            self._stop()
            raise

    def _become(self) -> None:
        if self._user is not None:
            os.setgroups([])
            os.setgid(self._user.pw_gid)
            os.setuid(self._user.pw_uid)
        _libc.prctl(_PR_SET_PDEATHSIG, _IMMEDIATE_SHUTDOWN)  # after setuid, which clears it

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text(errors="replace")
        ready = [str(self._bin / "pg_isready"), "-q", "-h", str(self.folder), "-U", USER]
        return subprocess.run(ready, cwd=self.folder).returncode == 0

    def _stop(self) -> None:
        self._process.send_signal(_IMMEDIATE_SHUTDOWN)
        try:
            self._process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __exit__(self, *_: object) -> None:
        self._stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def _binaries() -> Path:
    """The newest installed server's; Debian keeps them out of PATH."""
    debian = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    newest = sorted(debian, key=lambda path: float(path.parts[-3]), reverse=True)
    found = [str(path) for path in newest] or [shutil.which("postgres") or ""]
    if not found[0]:
        pytest.skip("NOT TESTED WITH POSTGRESQL: it is not here (apt: postgresql)")
    return Path(found[0]).resolve().parent


def _unprivileged_user() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    pytest.skip("NOT TESTED WITH POSTGRESQL: no user but root to run it as")
