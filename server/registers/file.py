"""The view in a file of this machine, for the nodes and for `holdfast view` alike.

The file is never changed but replaced, and nothing is answered that a power failure could take
back:

    write FILE.new, fsync it  ->  rename it to FILE  ->  fsync the folder  ->  answer

Every operation reads the file anew, under an exclusive lock on the *folder*: a lock file could be
deleted or copied, and the file itself is another one after each change. A reader fsyncs the folder
too, for the writer may have died between the rename and its own fsync.

Only `init` ever creates the file. The file system has to be a local one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator

from ..core.view import NO_VIEW, Cas, View
from .encoding import ENCODED_BYTES_MAX, Malformed, decode, encode
from .errors import DamagedRegister, RegisterError
from .rules import INIT, after_loss, decide, initial

# How long to wait for the lock. Its holder needs a few milliseconds, unless it was stopped.
LOCK_TIMEOUT_S = 2.0
_LOCK_POLL_S = 0.002
# Of this process or machine, and for now: they say nothing about the file.
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)
_HINTS = {
    errno.ENOSPC: "; make room on its disk",
    errno.EDQUOT: "; raise the quota of this user",
    errno.EFBIG: "; raise the limit on the size of files (ulimit -f)",
    errno.EACCES: "; let the user of this process write in its folder",
    errno.EPERM: "; let the user of this process write in its folder",
    errno.EROFS: "; mount its disk for writing",
}


class Missing(DamagedRegister):
    """There is no file: never made, lost, or its disk is not mounted."""


class FileRegister:
    """A view register in a file. Raises RegisterError if it cannot be read or written now, and
    DamagedRegister if it is missing or is not what was written."""

    def __init__(self, path: str | os.PathLike[str], lock_timeout_s: float = LOCK_TIMEOUT_S):
        self._path = os.fspath(path)
        self._lock_timeout_s = lock_timeout_s
        self.reason = ""  # why the last compare-and-set ended as it did

    def __str__(self) -> str:
        return self._path

    def get(self) -> View:
        """The view that is kept."""
        with self._locked() as (folder, name):
            return self._read(folder, name)

    def cas(self, view: View) -> tuple[Cas, View]:
        """Change the view to ``view`` if its epoch is one above that of the file. Never undecided,
        but an error can be raised after the file was replaced, if its disk fails: ask again."""
        with self._locked() as (folder, name):
            standing = self._read(folder, name)
            result, self.reason = decide(standing, view)
            if result is not None:
                return result, standing
            self._write(folder, name, view)
            return Cas.WON, view

    def init(self, force: bool = False, at_least: int = 0, view: View | None = None) -> View:
        """Write a vacant view, or ``view``, on the word of an operator, and return it."""
        with self._locked() as (folder, name):
            written = initial(
                self._standing(folder, name), force=force, at_least=at_least, given=view
            )
            self._write(folder, name, written)
            return written

    # -- the folder ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[tuple[int, str]]:
        """The folder, open and ours alone, and the name of the file in it."""
        # Resolved: a rename over a symbolic link would replace the link.
        folder_path, name = os.path.split(os.path.realpath(self._path))
        try:
            folder = os.open(folder_path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise self._no_folder(folder_path, error) from None
        try:
            self._lock(folder, folder_path)
            yield folder, name
        finally:
            os.close(folder)  # and the lock with it

    def _lock(self, folder: int, folder_path: str) -> None:
        deadline_s = time.monotonic() + self._lock_timeout_s
        while True:
            try:
                return fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise RegisterError(
                        f"another process has had {folder_path} locked for "
                        f"{self._lock_timeout_s} s; see which with 'fuser -v {folder_path}'"
                    ) from None
            except OSError as error:
                raise RegisterError(
                    f"cannot lock {folder_path}: {error.strerror}; "
                    "keep the file on a local file system"
                ) from None
            time.sleep(_LOCK_POLL_S)

    def _no_folder(self, folder_path: str, error: OSError) -> RegisterError:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return Missing(
                f"there is no folder {folder_path} for the view; create it, or mount its disk"
            )
        return RegisterError(f"cannot open the folder {folder_path}: {error.strerror}")

    # -- reading ---------------------------------------------------------------------------------

    def _standing(self, folder: int, name: str) -> View | DamagedRegister:
        """For whoever may write a first view."""
        try:
            return self._read(folder, name)
        except Missing:
            return NO_VIEW
        except DamagedRegister as damage:
            return damage

    def _read(self, folder: int, name: str) -> View:
        try:
            data = _contents(folder, name)
            os.fsync(folder)
        except FileNotFoundError:
            raise Missing(
                f"{self._path} does not exist. Before the first start of a pair: '{INIT}'. If the "
                f"file was lost, or its disk is not mounted, bring it back; else {after_loss()}"
            ) from None
        except OSError as error:
            kind = RegisterError if error.errno in _PASSING else DamagedRegister
            raise kind(f"{self._path} cannot be read: {error.strerror}") from None
        try:
            return decode(data)
        except Malformed as malformed:
            raise DamagedRegister(
                f"{self._path} {malformed}. Bring it back from a copy; if there is none: "
                f"{after_loss(' --force')}"
            ) from None

    # -- writing ---------------------------------------------------------------------------------

    def _write(self, folder: int, name: str, view: View) -> None:
        try:
            _replace(folder, name, encode(view))
        except OSError as error:
            # At or behind the rename it may have happened all the same. To read fsyncs again.
            standing = self._standing(folder, name)
            if standing == view:
                return
            outcome = "Ask again, it may have been changed"
            if isinstance(standing, View):
                outcome = "Nothing was changed"
            hint = _HINTS.get(error.errno or 0, "")
            raise RegisterError(
                f"cannot write {self._path}: {error.strerror}{hint}. {outcome}"
            ) from None


def _contents(folder: int, name: str) -> bytes:
    # Not blocking: a FIFO of that name would be waited for.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    file = os.open(name, flags, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return _read_all(file)
    finally:
        os.close(file)


def _read_all(file: int) -> bytes:
    data = b""
    while len(data) <= ENCODED_BYTES_MAX:
        chunk = os.read(file, ENCODED_BYTES_MAX + 1)
        if not chunk:
            break
        data += chunk
    return data


def _replace(folder: int, name: str, data: bytes) -> None:
    """The file's new contents, on disk when this returns. Raises OSError."""
    new = f"{name}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new, dir_fd=folder)  # a writer has died; perhaps it was another user's
    try:
        _write_new(folder, new, data)
        os.rename(new, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new, dir_fd=folder)
        raise
    os.fsync(folder)


def _write_new(folder: int, new: str, data: bytes) -> None:
    file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder)
    try:
        if os.geteuid() == 0:
            # 'sudo holdfast view init' writes for a node that is not root: its folder is its own.
            owner = os.fstat(folder)
            os.fchown(file, owner.st_uid, owner.st_gid)
        while data:
            data = data[os.write(file, data) :]
        os.fsync(file)
    finally:
        os.close(file)
