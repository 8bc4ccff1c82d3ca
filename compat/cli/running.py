"""A command that runs under a grant: its signals, and how it is stopped.

 1. The command runs while the grant is trusted (see `holding`), and is stopped at the instant when
    it no longer is: TERM, and KILL after the grace time. The lock may be somebody else's by then:
    the lease leaves no time to end in good order. What keeps a command that ends slowly from doing
    harm is the fencing token, refused by what it writes to.

 2. "The command" is the process that we started and everything that came of it and still runs: all
    our descendants (we are their subreaper, so those whose parents have ended are found as well).
    A process group would miss the jobs of a shell, and would hit whatever else stands in our
    pipeline.

 3. The command stays in our process group, so that a terminal, job control and pipelines treat it
    as they would without us. What a terminal sends (Ctrl-C, Ctrl-\\, Ctrl-Z, a new size, its end)
    it sends to the whole group: the kernel has sent it, the command has it already, and it is not
    handed on. What a process sends to us (kill) is:

        TERM INT HUP QUIT    to the command and everything that came of it, as a terminal would do
        USR1 USR2 WINCH      to the process that we started
        TSTP                 to all of it, and we stop ourselves; CONT, when we are continued

    Somebody who sends a signal to our whole group by hand (kill -- -PGID) makes the command get it
    twice; there is no telling that.

 4. While we are stopped (Ctrl-Z) nothing is renewed. A job that is continued after its lease is
    over is stopped as in 1, before it is told to continue where that is ours to tell.

 5. Killed with -9 we can stop nothing: the kernel then kills the process that we started
    (PR_SET_PDEATHSIG), but not what came of it, and not a set-user-ID program. The lease runs out.

All signals in `taking.BLOCKED` are blocked in every thread and read here, one by one, with who sent
them. They stay blocked until we end: there is still a lock to give back.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from redis.exceptions import RedisError

from . import prctl
from .holding import Holding, now_ms
from .program import (
    EXIT_BY_SIGNAL,
    EXIT_CANNOT_EXECUTE,
    EXIT_LOST,
    EXIT_NOT_FOUND,
    EXIT_STOPPED,
    Failure,
    quoted,
    say,
)
from .taking import BLOCKED, ENDING, OWN_AFFAIR, obeyed

# A timer of the kernel stands still while the machine is suspended, and leases do not.
LOOK_AT_CLOCK_MS = 1_000
# After KILL: new children of those that die are looked for so often, and given up after so long.
KILL_AGAIN_MS = 20
KILL_GIVE_UP_MS = 5_000


class Reason(Enum):
    """Why a command ended."""

    BY_ITSELF = "it ended by itself"
    LOST = "the lock was lost"
    AT_MOST = "its time was over"


class Outcome(NamedTuple):
    """`code` is the command's own, 128+n if signal n ended it; `keyed` that signal, if a key of the
    terminal sent it to us as well.
    """

    reason: Reason
    code: int
    keyed: int | None


class Running:
    """One command, from its start to its end; `run` once.

    `stop_at_ms` is when it is stopped although the lock is not lost.
    """

    def __init__(
        self,
        command: Sequence[str],
        holding: Holding,
        *,
        grace_ms: int,
        stop_at_ms: int | None = None,
    ) -> None:
        self._command = command
        self._holding = holding
        self._grace_ms = grace_ms
        self._stop_at_ms = stop_at_ms
        self._signals = obeyed(BLOCKED)
        self._keyed: set[int] = set()
        self._code: int | None = None
        self._reason = Reason.BY_ITSELF
        self._kill_at_ms: int | None = None
        self._spared: set[int] = set()
        self._unstoppable: set[int] = set()

    def run(self) -> Outcome:
        """Starts the command and waits for its end. Raises Failure if it cannot be started."""
        self._child = self._started()
        self._holding.start(on_loss=_wake)
        while not self._is_over():
            info = signal.sigtimedwait(self._signals, self._wait_ms() / 1_000)
            self._reap()
            self._look_at_clock()
            if info is not None:
                self._on_signal(info.si_signo, by_kernel=info.si_code > 0)
        assert self._code is not None
        if self._code >= 0:
            return Outcome(self._reason, self._code, None)
        keyed = -self._code if -self._code in self._keyed else None
        return Outcome(self._reason, EXIT_BY_SIGNAL - self._code, keyed)

    def _started(self) -> subprocess.Popen[bytes]:
        prctl.adopt_orphans()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as ignored, it reaps for us
        self._spared = set(descendants(os.getpid()))  # of whoever became us with exec
        try:
            return self._executed()
        except FileNotFoundError as error:
            raise Failure(EXIT_NOT_FOUND, f"{self._command[0]}: {error.strerror}") from None
        except OSError as error:
            raise Failure(EXIT_CANNOT_EXECUTE, f"{self._command[0]}: {error.strerror}") from None

    def _executed(self) -> subprocess.Popen[bytes]:
        """As execvp(3) does it: a file without a #! line is read by the shell."""
        program = self._command[0]
        try:
            return self._child_of(self._command)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
        return self._child_of(["/bin/sh", shutil.which(program) or program, *self._command[1:]])

    def _child_of(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            env=_environ(self._holding),
            close_fds=False,  # what was opened for the command is the command's
            preexec_fn=_before_exec(os.getpid(), self._signals),
        )

    def _is_over(self) -> bool:
        if self._code is None:
            return False
        if self._reason is Reason.BY_ITSELF:
            return True  # what it leaves behind is its own affair
        assert self._kill_at_ms is not None
        given_up = now_ms() >= self._kill_at_ms + KILL_GIVE_UP_MS
        return given_up or not set(self._all()) - self._unstoppable

    def _wait_ms(self) -> int:
        now = now_ms()
        instants = [now + LOOK_AT_CLOCK_MS]
        if self._reason is not Reason.LOST:
            instants.append(self._holding.trusted_until_ms)
        if self._reason is Reason.BY_ITSELF and self._stop_at_ms is not None:
            instants.append(self._stop_at_ms)
        if self._kill_at_ms is not None and now < self._kill_at_ms + KILL_GIVE_UP_MS:
            instants.append(max(self._kill_at_ms, now + KILL_AGAIN_MS))
        return max(0, min(instants) - now)

    def _look_at_clock(self) -> None:
        """Does what is due. A command whose end is seen too late may have run on too long."""
        if self._reason is not Reason.LOST and not self._holding.is_trusted:
            self._stop(Reason.LOST, f"is lost: {self._holding.loss}")
        elif (
            self._reason is Reason.BY_ITSELF
            and self._code is None
            and self._stop_at_ms is not None
            and now_ms() >= self._stop_at_ms
        ):
            self._stop(Reason.AT_MOST, "has been held for --at-most")
        if self._kill_at_ms is not None and now_ms() >= self._kill_at_ms:
            self._send(signal.SIGKILL, self._all())

    def _stop(self, reason: Reason, said: str) -> None:
        self._reason = reason
        if self._kill_at_ms is None:
            self._kill_at_ms = now_ms() + self._grace_ms
            if self._grace_ms:
                self._send(signal.SIGTERM, self._all())
                self._send(signal.SIGCONT, self._all())  # what is stopped cannot end
        then = "stopping the command" if self._code is None else "the command has ended"
        say(f"lock {quoted(self._holding.name)} {said}; {then}")

    def _on_signal(self, number: int, by_kernel: bool) -> None:
        if number == signal.SIGCHLD:
            return
        if by_kernel:
            self._keyed.add(number)
        elif number in OWN_AFFAIR:
            self._send(number, [self._child.pid] if self._code is None else [])
        elif number in ENDING or number in (signal.SIGTSTP, signal.SIGCONT):
            self._send(number, self._all())
        if number == signal.SIGTSTP:
            self._stop_ourselves()

    def _stop_ourselves(self) -> None:
        """Until somebody continues us. Not SIGSTOP: where nobody would, TSTP stops nothing."""
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})

    def _send(self, number: int, pids: Collection[int]) -> None:
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
            except PermissionError as error:
                if pid not in self._unstoppable:
                    self._unstoppable.add(pid)
                    say(f"cannot send a signal to process {pid}: {error.strerror}")

    def _all(self) -> list[int]:
        """The command and everything that came of it and still runs."""
        found = descendants(os.getpid(), besides=self._spared)
        return found or ([self._child.pid] if self._code is None else [])

    def _reap(self) -> None:
        """Also those that were handed to us when their parents ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._child.pid:
                self._code = self._child.returncode = os.waitstatus_to_exitcode(status)


def check(command: Sequence[str]) -> None:
    """Says at once, and not after a wait, that a command cannot be run. Raises Failure."""
    program = command[0]
    if shutil.which(program) is not None:
        return
    path = Path(program)
    if "/" in program and path.exists():
        what = "is a directory" if path.is_dir() else "is not executable"
        raise Failure(EXIT_CANNOT_EXECUTE, f"{program}: {what}")
    raise Failure(EXIT_NOT_FOUND, f"{program}: command not found")


def exit_code(outcome: Outcome, holding: Holding, *, release: bool) -> int:
    """What `holdfast` ends with after its command, having given the lock back if it is to.

    A command that ended by itself and whose lock was broken by then has lost it all the same.
    """
    if outcome.reason is Reason.LOST:
        return EXIT_LOST
    if release and not give_back(holding):
        say(
            f"lock {quoted(holding.name)} was released by somebody else before the command ended "
            f"(with code {outcome.code})"
        )
        return EXIT_LOST
    return EXIT_STOPPED if outcome.reason is Reason.AT_MOST else outcome.code


def keep_until(holding: Holding, until_ms: int) -> bool:
    """Has the lock held until then, by its lease or by staying; True if it is to be released now.

    No renewal was begun: the first lease runs out at that instant, and nobody needs to stay. A
    signal that asks us to end is obeyed: what the last renewal gave runs out soon after.
    """
    holding.stop()
    while (left_ms := until_ms - now_ms()) > 0:
        if not holding.renewals_begun or signal.sigtimedwait(obeyed(ENDING), left_ms / 1_000):
            return False
    return True


def give_back(holding: Holding) -> bool:
    """Releases the lock; False if it was gone while it was trusted.

    One that nobody could be asked to release, or that was over before somebody was, has not been
    lost: its lease runs out, and the command has ended.
    """
    try:
        return holding.release() or not holding.is_trusted
    except RedisError as error:
        say(f"lock {quoted(holding.name)} stays held until its lease runs out: {error}")
        return True


def descendants(pid: int, besides: Collection[int] = ()) -> list[int]:
    """The living descendants of a process, parents first; none of those `besides`, nor of theirs.

    Empty where there is no /proc.
    """
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name of the program stands in brackets, and may contain some.
            state, parent = (
                (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            )
        except OSError:
            continue  # it has ended
        if state not in "ZX":
            children.setdefault(int(parent), []).append(int(folder.name))
    found = [pid]
    for each in found:
        found += [child for child in children.get(each, []) if child not in besides]
    return found[1:]


def _environ(holding: Holding) -> Mapping[bytes, bytes]:
    own = {b"HOLDFAST_TOKEN": b"%d" % holding.token, b"HOLDFAST_LOCK": holding.name}
    return {**os.environb, **own}


def _wake() -> None:
    """Has the main thread, which waits for signals, look at what has changed."""
    os.kill(os.getpid(), signal.SIGCHLD)


def _before_exec(parent: int, blocked: Collection[int]) -> Callable[[], None]:
    """What the child does between fork and exec."""

    def prepare() -> None:
        prctl.die_with_parent()
        if os.getppid() != parent:  # we were killed before that was known
            os.kill(os.getpid(), signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)

    return prepare
