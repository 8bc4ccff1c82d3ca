"""RegisterLock, on a Clerk that says what the test tells it to. (What it decides is in
test_register_steps.py, and how it fares on real nodes in test_live_clerk_registers.py.)
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from redis.exceptions import ResponseError

import holdfast.compat.register_lock as register_lock
from holdfast.compat import (
    IndeterminateError,
    LockLostError,
    LockNotHeldError,
    MaybeError,
    NoKeyError,
    RegisterLock,
    UnavailableError,
    Versioned,
    VersionError,
)

WAIT_MAX_S = 10.0


class _Clerk:
    """A register in memory. `trouble` is called with each put, and may raise; what it raises after
    `apply` came from a put that was done.
    """

    def __init__(self) -> None:
        self.register: Versioned | None = None
        self.puts: list[tuple[bytes, int]] = []
        self.before_get: Callable[[], None] = lambda: None
        self.trouble: Callable[[bytes, int], None] = lambda value, version: None
        self._lock = threading.RLock()

    def get(self, key: bytes) -> Versioned:
        self.before_get()
        with self._lock:
            if self.register is None:
                raise NoKeyError(key)
            return self.register

    def put(self, key: bytes, value: bytes, version: int, *, once: bool) -> int:
        assert not once
        self.puts.append((value, version))
        self.trouble(value, version)
        return self.apply(key, value, version)

    def apply(self, key: bytes, value: bytes, version: int) -> int:
        with self._lock:
            current = 0 if self.register is None else self.register.version
            if current == 0 and version > 0:
                raise NoKeyError(key)
            if current != version:
                raise VersionError(key, version, current)
            self.register = Versioned(value, version + 1)
            return version + 1

    @property
    def value(self) -> bytes:
        return b"" if self.register is None else self.register.value


def indeterminate() -> IndeterminateError:
    return IndeterminateError("VPUT", b"l", b"", 2, "timed out", "read the register again")


def unavailable() -> UnavailableError:
    return UnavailableError("VGET", b"l", b"", 2, "refused")


def maybe() -> MaybeError:
    return MaybeError("VPUT", b"l", b"", 2, "timed out", "read the register again")


@pytest.fixture
def clerk() -> _Clerk:
    return _Clerk()


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register_lock, "PAUSE_MAX_MS", 2)


def wait_until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + WAIT_MAX_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def test_it_is_taken_and_given_back_and_each_acquisition_has_an_identity_of_its_own(
    clerk: _Clerk,
) -> None:
    lock = RegisterLock(clerk, "l")
    identities = set()
    for _ in range(3):
        assert lock.acquire() is True
        identities.add(clerk.value)
        assert "not" not in repr(lock)
        lock.release()
        assert clerk.value == b"" and "not held" in repr(lock)
    assert len(identities) == 3 and b"" not in identities
    assert clerk.register == Versioned(b"", 6)


def test_only_one_has_it_and_who_does_not_wait_is_told_so_at_once(clerk: _Clerk) -> None:
    first, second = RegisterLock(clerk, "l"), RegisterLock(clerk, "l")
    with first:
        assert second.acquire(blocking=False) is False
        assert second.acquire(timeout=0.01) is False
        assert len(clerk.puts) == 1
    assert second.acquire(blocking=False) is True


def test_who_waits_has_it_when_it_is_free(clerk: _Clerk) -> None:
    first, second = RegisterLock(clerk, "l"), RegisterLock(clerk, "l")
    first.acquire()
    thread = threading.Thread(target=second.acquire, daemon=True)
    thread.start()
    first.release()
    thread.join(WAIT_MAX_S)
    assert not thread.is_alive() and clerk.value != b""
    second.release()


def test_what_cannot_be_meant_is_refused(clerk: _Clerk) -> None:
    lock = RegisterLock(clerk, "l")
    with pytest.raises(ValueError):
        lock.acquire(blocking=False, timeout=1)
    with pytest.raises(ValueError):
        lock.acquire(timeout=-1)
    with pytest.raises(LockNotHeldError):
        lock.release()
    with lock, pytest.raises(RuntimeError, match="held already"):
        lock.acquire()
    with pytest.raises(ValueError):
        RegisterLock(clerk, "")
    with pytest.raises(ValueError):
        RegisterLock(clerk, "l", settle_ms=0)


def test_an_object_that_another_thread_is_using_says_so(clerk: _Clerk) -> None:
    lock, other = RegisterLock(clerk, "l"), RegisterLock(clerk, "l")
    other.acquire()
    thread = threading.Thread(target=lock.acquire, daemon=True)
    thread.start()
    wait_until(lambda: lock._is_in_use)
    with pytest.raises(RuntimeError, match="in use"):
        lock.acquire()
    with pytest.raises(RuntimeError, match="in use"):
        lock.release()
    other.release()
    thread.join(WAIT_MAX_S)
    lock.release()
    assert clerk.value == b""


@pytest.mark.parametrize("error", [maybe, indeterminate])
@pytest.mark.parametrize("done", [True, False])
def test_a_put_of_unknown_outcome_is_settled_by_reading(
    clerk: _Clerk, error: Callable[[], Exception], done: bool
) -> None:
    """Each put of the lock is once of unknown outcome, and then as usual."""
    lock = RegisterLock(clerk, "l")
    seen = set()

    def trouble(value: bytes, version: int) -> None:
        if (value, version) not in seen:
            seen.add((value, version))
            if done:
                clerk.apply(b"l", value, version)
            raise error()

    clerk.trouble = trouble
    for _ in range(3):
        assert lock.acquire()
        assert clerk.value != b""
        lock.release()
        assert clerk.value == b""
    assert len(clerk.puts) == (6 if done else 12)


def test_a_put_in_doubt_when_the_wait_is_over_is_made_impossible_before_acquire_says_no(
    clerk: _Clerk,
) -> None:
    lock = RegisterLock(clerk, "l")

    def trouble(value: bytes, version: int) -> None:
        if value != b"":
            raise indeterminate()

    clerk.trouble = trouble
    assert lock.acquire(blocking=False) is False
    ours, bump = clerk.puts
    assert bump == (b"", 0) and clerk.register == Versioned(b"", 1)
    with pytest.raises(VersionError):  # the late copy
        clerk.apply(b"l", *ours)


def test_a_holder_that_finds_the_register_changed_has_lost_the_lock(clerk: _Clerk) -> None:
    lock = RegisterLock(clerk, "l")
    lock.acquire()
    clerk.register = Versioned(b"stranger", 2)
    with pytest.raises(LockLostError):
        lock.release()
    assert clerk.value == b"stranger"
    with pytest.raises(LockNotHeldError):
        lock.release()


def test_no_node_at_all_leaves_nothing_and_says_not_done(clerk: _Clerk) -> None:
    lock = RegisterLock(clerk, "l")

    def fail() -> None:
        raise unavailable()

    clerk.before_get = fail
    with pytest.raises(UnavailableError):
        lock.acquire()
    assert lock._settler is None and clerk.puts == []


@pytest.mark.parametrize("error", [unavailable(), ResponseError("OOM registers are full")])
def test_a_put_that_was_certainly_not_done_leaves_nothing_and_is_raised(
    clerk: _Clerk, error: Exception
) -> None:
    lock = RegisterLock(clerk, "l")

    def trouble(value: bytes, version: int) -> None:
        raise error

    clerk.trouble = trouble
    with pytest.raises(type(error)):
        lock.acquire()
    assert lock._settler is None


@pytest.mark.parametrize("done", [True, False])
def test_if_no_node_answers_the_background_settles_and_the_caller_is_told_that_nobody_knows(
    clerk: _Clerk, brisk: None, done: bool
) -> None:
    lock = RegisterLock(clerk, "l")
    silent = [True]

    def trouble(value: bytes, version: int) -> None:
        if silent[0]:
            clerk.before_get = fail
            if done:
                clerk.apply(b"l", value, version)
            raise indeterminate()

    def fail() -> None:
        if silent[0]:
            raise unavailable()

    clerk.trouble = trouble
    with pytest.raises(IndeterminateError, match=r"do not enter .* in the background"):
        lock.acquire()
    with pytest.raises(IndeterminateError):  # which joins in, and can do no more
        lock.release()
    with pytest.raises(IndeterminateError):
        lock.acquire()
    ours = clerk.puts[0]
    silent[0] = False
    wait_until(lambda: lock._settler is not None and not lock._settler.is_alive())
    assert clerk.value == b"" and clerk.register is not None
    assert clerk.register.version == (2 if done else 1)
    with pytest.raises(VersionError):
        clerk.apply(b"l", *ours)
    lock.release()  # nothing is left to be done
    assert lock.acquire()


def test_a_release_that_no_node_answers_goes_on_in_the_background(
    clerk: _Clerk, brisk: None
) -> None:
    lock = RegisterLock(clerk, "l")
    lock.acquire()
    silent = [True]

    def trouble(value: bytes, version: int) -> None:
        if silent[0]:
            raise unavailable()

    clerk.trouble = trouble
    with pytest.raises(IndeterminateError, match="stop using"):
        lock.release()
    assert clerk.value != b""
    silent[0] = False
    wait_until(lambda: clerk.value == b"")
    assert lock.acquire()


def test_a_release_whose_puts_all_stay_in_doubt_ends_and_the_background_goes_on(
    clerk: _Clerk, brisk: None
) -> None:
    lock = RegisterLock(clerk, "l")
    lock.acquire()
    doubtful = [True]

    def trouble(value: bytes, version: int) -> None:
        if doubtful[0]:
            raise indeterminate()

    clerk.trouble = trouble
    with pytest.raises(IndeterminateError):
        lock.release()
    doubtful[0] = False
    wait_until(lambda: clerk.value == b"")


def test_the_background_gives_up_aloud_and_the_next_call_sees_to_it(
    clerk: _Clerk, brisk: None, caplog: pytest.LogCaptureFixture
) -> None:
    lock = RegisterLock(clerk, "l", settle_ms=1)
    lock.acquire()

    def trouble(value: bytes, version: int) -> None:
        raise unavailable()

    clerk.trouble = trouble
    with pytest.raises(IndeterminateError):
        lock.release()
    wait_until(lambda: "gave up settling the lock" in caplog.text)
    assert clerk.value.decode() in caplog.text
    clerk.trouble = lambda value, version: None
    assert lock.acquire()
    assert [value for value, _ in clerk.puts].count(b"") >= 2


class _Stop(BaseException):
    """What a signal's handler raises, or gevent.Timeout."""


@pytest.mark.parametrize("moment", ["before the put", "after the put", "at the first reading"])
def test_an_acquire_that_is_interrupted_leaves_nothing_behind(clerk: _Clerk, moment: str) -> None:
    lock = RegisterLock(clerk, "l")
    clerk.register = Versioned(b"", 4)

    def trouble(value: bytes, version: int) -> None:
        clerk.trouble = lambda value, version: None
        if moment == "after the put":
            clerk.apply(b"l", value, version)
        raise _Stop

    def stop() -> None:
        clerk.before_get = lambda: None
        raise _Stop

    if moment == "at the first reading":
        clerk.before_get = stop
    clerk.trouble = trouble
    with pytest.raises(_Stop):
        lock.acquire()
    settler = lock._settler
    if moment == "at the first reading":
        assert settler is None
        return
    assert settler is not None
    settler.join(WAIT_MAX_S)
    assert clerk.value == b"" and clerk.register.version > 4
    clerk.trouble = lambda value, version: None
    assert lock.acquire()


def test_a_release_that_is_interrupted_is_carried_through(clerk: _Clerk) -> None:
    lock = RegisterLock(clerk, "l")
    lock.acquire()

    def trouble(value: bytes, version: int) -> None:
        clerk.trouble = lambda value, version: None
        raise _Stop

    clerk.trouble = trouble
    with pytest.raises(_Stop):
        lock.release()
    wait_until(lambda: clerk.value == b"")


def _interrupting(stop_at: int) -> Callable[[Any, str, Any], Any]:
    """Raises at that line of the lock's, counted from the beginning, as a signal's handler may."""
    lines = itertools.count(1)

    def trace(frame: Any, event: str, argument: Any) -> Any:
        code = frame.f_code
        ours = code.co_filename.endswith(("compat/register_lock.py", "compat/register_steps.py"))
        # (Not at the very edge of a `with`: Python runs no handlers between it and what it calls.)
        ours = ours and not code.co_name.startswith("__")
        if ours and event == "line" and next(lines) == stop_at:
            sys.settrace(None)
            raise _Stop
        return trace

    return trace


def test_wherever_a_use_is_interrupted_the_lock_does_not_stay_held(clerk: _Clerk) -> None:
    for stop_at in range(1, 1_000):
        lock = RegisterLock(clerk, "l")
        sys.settrace(_interrupting(stop_at))
        try:
            with lock:
                assert clerk.value != b""
            sys.settrace(None)
            break
        except _Stop:
            pass
        finally:
            sys.settrace(None)
        if lock._settler is not None:
            lock._settler.join(WAIT_MAX_S)
        assert clerk.value == b"", f"line {stop_at}"
        assert "not held" in repr(lock) and not lock._is_in_use
    assert 40 < stop_at < 999


def _failing(clerk: _Clerk) -> _Clerk:
    """One at which no release succeeds."""

    def trouble(value: bytes, version: int) -> None:
        if value == b"":
            raise unavailable()

    clerk.trouble = trouble
    return clerk


def test_an_exception_on_its_way_is_not_replaced_by_a_failing_release(
    clerk: _Clerk, brisk: None, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyError), RegisterLock(_failing(clerk), "l", settle_ms=1):
        raise KeyError
    assert "leaving the lock 'l'" in caplog.text
    with pytest.raises(IndeterminateError), RegisterLock(_failing(_Clerk()), "l", settle_ms=1):
        pass


FORKS = """
import os, sys
from gevent import monkey; monkey.patch_all()
import gevent
from holdfast.compat import RegisterLock, Versioned
from holdfast.compat.endpoints import InheritedError

parent, puts = os.getpid(), []

class Clerk:
    register = Versioned(b"", 1)
    def get(self, key):
        return self.register
    def put(self, key, value, version, *, once):
        puts.append(value)
        gevent.sleep(0.2)
        if os.getpid() != parent:
            raise InheritedError
        self.register = Versioned(value, version + 1)
        return version + 1

lock = RegisterLock(Clerk(), "l")
taking = gevent.spawn(lock.acquire)
gevent.sleep(0.05)
child = os.fork()
if child == 0:
    taking.join()
    gevent.sleep(0.1)
    os._exit(0 if len(puts) == 1 and lock._settler is None else 1)
assert taking.get() and "not" not in repr(lock)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_greenlet_that_lives_on_in_a_forked_child_does_not_free_its_parents_lock() -> None:
    pytest.importorskip("gevent")
    done = subprocess.run(
        [sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_end_of_the_program_waits_a_moment_for_the_background() -> None:
    source = """
import holdfast.compat.register_lock as register_lock
from holdfast.compat import IndeterminateError, RegisterLock, UnavailableError, Versioned
register_lock.PAUSE_MAX_MS = 100

class Clerk:
    register, fails = Versioned(b"", 1), 2
    def get(self, key):
        return self.register
    def put(self, key, value, version, *, once):
        if value == b"" and self.fails:
            self.fails -= 1
            raise UnavailableError("VPUT", key, b"", 1, "refused")
        self.register = Versioned(value, version + 1)
        if value == b"":
            print("freed", flush=True)
        return version + 1

lock = RegisterLock(Clerk(), "l")
lock.acquire()
try:
    lock.release()
except IndeterminateError:
    print("ends", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout == "ends\nfreed\n", done.stderr
