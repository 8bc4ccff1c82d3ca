"""The view register in a file: what it answered is on disk, and what is damaged is refused (F7).

The contract which it shares with etcd is in test_registers.py.
"""

from __future__ import annotations

import errno
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.server.core.view import Cas, View
from holdfast.server.registers import DamagedRegister, FileRegister, RegisterError
from holdfast.server.registers.encoding import encode

VACANT = View(1, "", ())
AB = View(3, "a", ("a", "b"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a file that holds AB."""
    path = tmp_path / "view"
    FileRegister(path).init(view=AB)
    return path


def assert_refused(path: Path) -> None:
    """By every operation, and nothing is reset, unless an operator names the epoch."""
    register = FileRegister(path)
    for operation in (register.get, lambda: register.cas(View(4, "b", ("b",))), register.init):
        with pytest.raises(DamagedRegister if operation != register.init else RegisterError):
            operation()
    with pytest.raises(RegisterError, match=r"--force --epoch N"):
        register.init(force=True)


def test_a_file_cut_short_anywhere_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert_refused(path)
        assert path.read_bytes() == whole[:length]


def test_a_file_with_any_bit_flipped_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for bit in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(DamagedRegister):
            FileRegister(path).get()


def test_a_file_with_more_behind_it_is_refused(path: Path) -> None:
    for tail in (b"\n", b" ", b"\0", path.read_bytes(), b"x" * 10_000):
        whole = encode(AB) + tail
        path.write_bytes(whole)
        assert_refused(path)
        assert path.read_bytes() == whole


def test_what_is_no_regular_file_is_refused_and_not_waited_for(path: Path) -> None:
    path.unlink()
    path.mkdir()
    assert_refused(path)
    path.rmdir()
    os.mkfifo(path)
    assert_refused(path)


def test_a_file_that_cannot_be_read_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.read
    for number in (errno.EIO, errno.EACCES):
        monkeypatch.setattr(os, "read", failing(real, number))
        assert_refused(path)
    monkeypatch.setattr(os, "read", real)
    assert FileRegister(path).get() == AB


def test_a_passing_shortage_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "read", failing(os.read, errno.ENFILE))
    with pytest.raises(RegisterError) as raised:
        FileRegister(path).get()
    assert not isinstance(raised.value, DamagedRegister)
    with pytest.raises(RegisterError):
        FileRegister(path).init(force=True, at_least=9)


def test_a_damaged_file_is_written_anew_by_force_with_an_epoch(path: Path) -> None:
    path.write_bytes(b"")
    with pytest.raises(RegisterError, match="--force --epoch N"):
        FileRegister(path).init(at_least=9)
    assert FileRegister(path).init(force=True, at_least=9) == View(9, "", ())
    path.write_bytes(b"")
    assert FileRegister(path).init(force=True, view=AB) == AB


def test_without_its_folder_nothing_is_written(tmp_path: Path) -> None:
    register = FileRegister(tmp_path / "unmounted" / "view")
    with pytest.raises(DamagedRegister, match=r"there is no folder .*unmounted.* mount its disk"):
        register.get()
    with pytest.raises(RegisterError, match="there is no folder"):
        register.init(force=True, at_least=3)
    assert os.listdir(tmp_path) == []


def test_a_symbolic_link_stays_one_and_its_file_is_changed(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "link"
    link.parent.mkdir()
    link.symlink_to(path)
    assert FileRegister(link).cas(AB.alone("b")) == (Cas.WON, AB.alone("b"))
    assert link.is_symlink()
    assert FileRegister(path).get() == AB.alone("b")
    assert os.listdir(link.parent) == ["link"]


def test_a_holder_of_the_lock_that_stands_still_is_not_waited_for_for_ever(path: Path) -> None:
    command = ["flock", str(path.parent), "sh", "-c", "echo; read line"]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdin and holder.stdout
        holder.stdout.readline()
        with pytest.raises(RegisterError, match=r"has had .* locked"):
            FileRegister(path, lock_timeout_s=0.05).cas(AB.alone("b"))
        threading.Timer(0.1, holder.stdin.close).start()
        assert FileRegister(path).get() == AB


def test_the_file_is_given_to_the_owner_of_its_folder(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: only root can write for another user")
    os.chown(tmp_path, 65534, 65534)
    FileRegister(tmp_path / "view").init()
    found = (tmp_path / "view").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (65534, 65534, 0o644)


# -- errors and crashes at every step ------------------------------------------------------------

STEPS = ("open", "unlink", "write", "fsync", "close", "rename")


def failing(real: Callable[..., Any], number: int, times: int = 1 << 30, after: int = 0) -> Any:
    """`real`, which fails so many times after having worked so many times."""
    calls = iter(range(1 << 30))

    def call(*arguments: Any, **more: Any) -> Any:
        if after <= next(calls) < after + times:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **more)

    return call


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("step", ["open", "write", "fsync", "rename"])
def test_after_an_error_at_any_step_the_old_or_the_new_view_stands_as_was_said(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    proposed, real = AB.alone("b"), getattr(os, step)
    ends = []
    for after in range(4):
        path.write_bytes(encode(AB))
        monkeypatch.setattr(os, step, failing(real, number, times=1, after=after))
        try:
            result = FileRegister(path).cas(proposed)
        except RegisterError:
            ends.append("error")
            monkeypatch.setattr(os, step, real)
            assert FileRegister(path).get() == AB
        else:
            ends.append("won")
            monkeypatch.setattr(os, step, real)
            assert result == (Cas.WON, proposed)
            assert FileRegister(path).get() == proposed
        assert os.listdir(path.parent) == ["view"]
    assert ends[0] == "error" and ends[-1] == "won"


def test_a_disk_that_fails_behind_the_rename_leaves_an_error_and_the_same_question_settles_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposed, real = AB.alone("b"), os.fsync
    monkeypatch.setattr(os, "fsync", failing(real, errno.EIO, after=2))  # of the folder, and on
    with pytest.raises(RegisterError, match="Ask again, it may have been changed"):
        FileRegister(path).cas(proposed)
    with pytest.raises(RegisterError, match="cannot be read"):
        FileRegister(path).get()
    monkeypatch.setattr(os, "fsync", real)
    assert FileRegister(path).cas(proposed) == (Cas.WON, proposed)


def run(code: str, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Runs code that finds the register's parts imported."""
    preamble = """
        import errno, os, resource, signal, sys
        from holdfast.server.core.view import Cas, View
        from holdfast.server.registers import *
    """
    source = textwrap.dedent(preamble) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", source, *arguments], capture_output=True, text=True, **more
    )


# Dies at the n-th step: before it; or, where that is a write, in the middle of it.
CRASHING = f"""
    path, operation, left = sys.argv[1], sys.argv[2], int(sys.argv[3])
    def crashing(name, real):
        def call(*arguments, **more):
            global left
            left -= 1
            if left == 0:
                if name == "write":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                print(name, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **more)
        return call
    for name in {STEPS!r}:
        setattr(os, name, crashing(name, getattr(os, name)))
    register = FileRegister(path)
    register.init() if operation == "init" else register.cas(View(4, "b", ("b",)))
"""


@pytest.mark.parametrize("operation", ["init", "cas"])
def test_a_crash_at_any_step_leaves_the_old_or_the_new_view(tmp_path: Path, operation: str) -> None:
    path, new = tmp_path / "view", VACANT if operation == "init" else View(4, "b", ("b",))
    died: list[str] = []
    for step in range(1, 50):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        if operation == "cas":
            path.write_bytes(encode(AB))
        done = run(CRASHING, str(path), operation, str(step))
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        renamed = "rename" in died
        died.append(done.stdout.strip())
        register = FileRegister(path)
        if renamed:
            assert register.get() == new
        elif operation == "cas":
            assert register.get() == AB
        else:
            with pytest.raises(DamagedRegister, match="does not exist"):
                register.get()
        again = register.init(force=True) if operation == "init" else register.cas(new)[1]
        assert again.epoch >= new.epoch
        assert os.listdir(tmp_path) == ["view"], "what a dead writer left is cleared away"
    assert {"open", "write", "fsync", "rename", "close"} <= set(died)
    assert died.count("fsync") >= 2 and died[-1] == "close"


def test_the_file_is_on_disk_before_its_name_and_its_name_before_the_answer(
    path: Path, tmp_path: Path
) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("THE ORDER OF SYSTEM CALLS IS NOT TESTED: no strace here (apt: strace)")
    code = """
        from holdfast.server.core.view import View
        from holdfast.server.registers import FileRegister
        import os, sys
        result = FileRegister(sys.argv[1]).cas(View(4, "b", ("b",)))
        os.write(1, b"ANSWER")
    """
    log = tmp_path / "strace"
    calls = "trace=openat,flock,write,fsync,fdatasync,rename,renameat,renameat2,unlinkat,close"
    done = subprocess.run(
        [strace, "-f", "-y", "-e", calls, "-o", str(log)]  # noqa: RUF005
        + [sys.executable, "-c", textwrap.dedent(code), str(path)],
        capture_output=True,
        text=True,
    )
    if "ptrace" in done.stderr:
        pytest.skip("THE ORDER OF SYSTEM CALLS IS NOT TESTED: strace is not permitted here")
    assert done.stdout == "ANSWER", done.stderr
    folder, new = re.escape(f"<{path.parent}>"), re.escape(f"<{path}.new>")
    order = [
        rf"flock\(\d+{folder}, LOCK_EX",
        rf"openat\(\d+{folder}, \"view\", O_RDONLY",
        rf"openat\(\d+{folder}, \"view.new\", O_WRONLY\|O_CREAT\|O_EXCL",
        rf"write\(\d+{new}, ",
        rf"fsync\(\d+{new}\)",
        rf"close\(\d+{new}\)",
        rf"rename\w*\(\d+{folder}, \"view.new\", \d+{folder}, \"view\"",
        rf"fsync\(\d+{folder}\)",
        rf"close\(\d+{folder}\)",
        r"write\(1<.*\"ANSWER\"",
    ]
    text = log.read_text()
    assert re.search(".*?".join(order), text, re.DOTALL), text


def test_with_a_limit_on_file_sizes_the_old_view_stays(path: Path) -> None:
    code = """
        resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))
        try:
            FileRegister(sys.argv[1]).cas(View(4, "b", ("b",)))
        except RegisterError as error:
            print(error)
    """
    done = run(code, str(path))
    assert "File too large; raise the limit" in done.stdout, done.stderr
    assert "Nothing was changed" in done.stdout
    assert FileRegister(path).get() == AB
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 40


FULL = """
    folder = sys.argv[1]
    register = FileRegister(folder + "/view")
    view = register.init()
    with open(folder + "/ballast", "wb", 0) as ballast:
        try:
            while ballast.write(b"x" * 4096):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
    for _ in range(3):
        try:
            raise SystemExit(register.cas(view.alone("a")))
        except RegisterError as error:
            print(error)
        assert FileRegister(folder + "/view").get() == view
    os.unlink(folder + "/ballast")
    assert register.cas(view.alone("a"))[0] is Cas.WON
    print("then won")
"""


def test_on_a_full_disk_the_old_view_stays_until_there_is_room(tmp_path: Path) -> None:
    # In a namespace of its own: what is mounted there goes with the process.
    mounted = ["unshare", "--mount", "sh", "-c"]
    mounted += ['mount -t tmpfs -o size=64k none "$0" && exec "$@"', str(tmp_path)]
    if subprocess.run([*mounted, "true"], capture_output=True).returncode != 0:
        pytest.skip("NOT TESTED ON A FULL DISK: mounting a tmpfs is not permitted here")
    preamble = "import errno, os, sys\nfrom holdfast.server.core.view import Cas\n"
    preamble += "from holdfast.server.registers import FileRegister, RegisterError\n"
    code = [sys.executable, "-c", preamble + textwrap.dedent(FULL), str(tmp_path)]
    done = subprocess.run([*mounted, *code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("No space left on device; make room on its disk") == 3
    assert done.stdout.endswith("then won\n")


def test_processes_that_are_killed_while_they_race_never_take_an_epoch_back(path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed:", seed)
    rng = random.Random(seed)
    code = """
        register, number = FileRegister(sys.argv[1]), 0
        print("ready", flush=True)
        while True:
            number += 1
            view = register.get()
            members = (view.primary, f"{os.getpid()}-{number}")
            register.cas(view._replace(epoch=view.epoch + 1, members=members))
    """
    source = "import os, sys\nfrom holdfast.server.registers import FileRegister\n"
    racing = [sys.executable, "-c", source + textwrap.dedent(code), str(path)]
    last = AB
    for _ in range(10):
        pair = [subprocess.Popen(racing, stdout=subprocess.PIPE) for _ in range(2)]
        try:
            for process in pair:
                assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            deadline_s = time.monotonic() + rng.uniform(0.01, 0.1)
            while time.monotonic() < deadline_s:
                view = FileRegister(path).get()
                assert view == last if view.epoch == last.epoch else view.epoch > last.epoch
                last = view
        finally:
            for process in pair:
                process.kill()
                process.communicate()
    view = FileRegister(path).get()
    assert view.epoch >= last.epoch > AB.epoch
