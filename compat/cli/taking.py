"""Taking a lock for a command, so that a signal can end the wait and leaves nothing behind."""

from __future__ import annotations

import contextlib
import getpass
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from types import FrameType

from redis.exceptions import RedisError

from ..arguments import NAME_BYTES_MAX
from ..clerk import Clerk
from ..outcomes import REFUSED
from .holding import Holding
from .program import EXIT_BY_SIGNAL

# Those that ask a program to end. They end the wait, and are handed on to a command that runs.
ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
# Those whose meaning is the command's own affair.
OWN_AFFAIR = frozenset({signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH})
# One of these would otherwise kill us between the grant and the command.
BLOCKED = ENDING | OWN_AFFAIR | {signal.SIGTSTP, signal.SIGCONT, signal.SIGCHLD}


class Interrupted(BaseException):
    """A signal came while we stood in line."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def take(
    clerk: Clerk, name: bytes, *, lease_ms: int, renew_ms: int, wait_ms: int | None
) -> Holding | None:
    """Stands in line for the lock, for `wait_ms` (None: as long as it takes); None if that ran out.

    From then on the signals in BLOCKED are blocked. A signal ends the wait: the request is undone,
    and this process dies of that signal. Raises what Clerk raises.
    """
    token = REFUSED
    try:
        with _interruptible():
            token = clerk.acquire(name, lease_ms=lease_ms, wait_ms=wait_ms, owner=_owner())
            return Holding(clerk, name, token.grant, renew_ms=renew_ms) if token.grant else None
    except Interrupted as interrupted:
        if token:
            with contextlib.suppress(RedisError):
                clerk.release(name, fencing_token=token)
        clerk.close()  # waits a moment for the undo
        raise SystemExit(die_of(interrupted.number)) from None


def die_of(number: int) -> int:
    """Ends this process by a signal, as who waits for it expects of one that a signal ended.

    Comes back, with the exit code that stands for it, only where signals cannot end us (as process
    1 of a container).
    """
    if sys.stdout is not None:
        sys.stdout.flush()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # SIGQUIT asks for no core of ours
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    return EXIT_BY_SIGNAL + number


def obeyed(numbers: frozenset[signal.Signals]) -> frozenset[signal.Signals]:
    """Without those that are ignored, as nohup(1) has it: they stay ignored, by the command too."""
    return frozenset(each for each in numbers if signal.getsignal(each) is not signal.SIG_IGN)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Signals that end a program raise Interrupted in here; afterwards they are blocked."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    blocked = obeyed(BLOCKED)
    watched = obeyed(ENDING | OWN_AFFAIR - {signal.SIGWINCH})
    before = {each: signal.signal(each, interrupt) for each in watched}
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        for each, handler in before.items():
            signal.signal(each, handler)


def _owner() -> bytes:
    """Who we are, for `holdfast who`: user@host:process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a process id without an entry in the list of users
        user = str(os.getuid())
    return os.fsencode(f"{user}@{socket.gethostname()}:{os.getpid()}")[:NAME_BYTES_MAX]
