"""All clients' sockets behind one watcher of the event loop.

The sockets sit in an epoll set of their own, and only that set's file descriptor is known to the
loop. When it is ready, one call returns every socket that has something, and they are served in a
plain ``for``. Per request that is half a microsecond less than a watcher for each socket, and per
connection half a kilobyte. Links and listeners, which are few, have ordinary watchers.
"""

from __future__ import annotations

import select
import struct
from collections.abc import Callable, Iterable
from fcntl import ioctl
from termios import FIONREAD
from time import perf_counter_ns
from typing import Any

from .core import limits

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANG_UP = select.EPOLLRDHUP
_SOCKETS_AT_A_TIME = 32

Callbacks = tuple[Callable[[], None], Callable[[], None]]


class Poller:
    """Calls ``on_readable`` or ``on_writable`` of whoever registered a socket."""

    def __init__(self, loop: Any, charged_ns: Callable[[], int]) -> None:
        """``charged_ns``: time of this turn that is bounded elsewhere."""
        self._charged_ns = charged_ns
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callbacks] = {}
        self._unserved: list[tuple[int, int]] = []  # what the last look found, and time cut off
        self._marked: dict[int, int] | None = None  # how often these are to be read: ``mark``
        self._watcher = loop.io(self._epoll.fileno(), 1)
        self._watcher.start(self._on_ready)

    def register(
        self, fd: int, on_readable: Callable[[], None], on_writable: Callable[[], None]
    ) -> None:
        """Watch ``fd`` for reading."""
        self._callbacks[fd] = (on_readable, on_writable)
        self._epoll.register(fd, READ)
        if self._marked is not None and (unread := _reads(fd)):
            self._marked[fd] = unread  # it may have lain in the listening socket by then

    def watch(self, fd: int, events: int) -> None:
        """Change what ``fd`` is watched for: READ, WRITE, HANG_UP, or none of them."""
        self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Forget ``fd``, before it is closed."""
        del self._callbacks[fd]
        self._epoll.unregister(fd)
        if self._marked:
            self._marked.pop(fd, None)

    # -- serving ---------------------------------------------------------------------------------

    def _on_ready(self) -> None:
        # One command that takes long must not keep what stands behind it from being read.
        deadline_ns = perf_counter_ns() - self._charged_ns() + limits.POLL_BUDGET_NS
        if self._unserved:
            self._unserved = self._serve(self._unserved, deadline_ns)
        while not self._unserved:
            ready = self._epoll.poll(0, _SOCKETS_AT_A_TIME)
            # (What is left has to be kept: the kernel would name it last the next time.)
            self._unserved = self._serve(ready, deadline_ns)
            if len(ready) < _SOCKETS_AT_A_TIME:
                return

    def _serve(self, ready: list[tuple[int, int]], deadline_ns: int) -> list[tuple[int, int]]:
        """Serve one after the other until the time is up; those that are left.

        By the time that they are served one may be closed, and another may have its number: a
        socket that is read with nothing there takes no harm.
        """
        callbacks = self._callbacks
        for position, (fd, events) in enumerate(ready, 1):
            registered = callbacks.get(fd)
            if registered is None:
                continue  # closed by the callback of one before it
            if self._marked:
                self._count_off(fd)
            on_readable, on_writable = registered
            if events != READ and events & WRITE:
                on_writable()
            if events != WRITE and callbacks.get(fd) is registered:
                on_readable()
            if perf_counter_ns() - self._charged_ns() > deadline_ns:
                return ready[position:]
        return []

    # -- what is unread --------------------------------------------------------------------------

    def is_idle(self) -> bool:
        """Whether nothing is to be done for any socket. Those that are not watched do not count."""
        return not self._epoll.poll(0, 1)

    def mark(self) -> None:
        """Remember what lies unread in the sockets now: ``has_marked`` until it has been read."""
        ready = self._epoll.poll(0, max(len(self._callbacks), 1))
        self._marked = {fd: max(_reads(fd), 1) for fd, events in ready if events != WRITE}

    @property
    def has_marked(self) -> bool:
        """Whether some of that is unread still."""
        return bool(self._marked)

    def forget_mark(self) -> None:
        """Nobody asks any more."""
        self._marked = None

    def _count_off(self, fd: int) -> None:
        assert self._marked is not None
        reads = self._marked.pop(fd, 0)
        if reads > 1:
            self._marked[fd] = reads - 1

    def close(self) -> None:
        """Stop watching."""
        self._watcher.stop()
        self._watcher.close()
        self._epoll.close()


def _reads(fd: int) -> int:
    """How many times a socket has to be read for what lies in it now."""
    unread_bytes: int = struct.unpack("i", ioctl(fd, FIONREAD, bytes(4)))[0]
    return -(-unread_bytes // limits.RECEIVE_BYTES)


class LateInput:
    """Behind a late turn: has all been looked at that had arrived when it began? (executor, X5)

    It is asked at the end of a late turn, and of those that follow, until it is so or the core has
    waited for long enough. What had arrived may lie in four places, and moves from one to the next:

        connections that nobody has accepted   until a turn accepts all that there are
        sockets                                each ready one's bytes are counted at the first
                                               question, and it is read as often as they need
        requests that were left for a turn     until their connections have none left
        requests behind a command that waits   not counted: for now nothing executes them

    With clients that keep their sockets full for ever there is always something more: it came
    later, and is not waited for.
    """

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._is_marked = False
        self._was_asked = False  # in this turn
        self._has_accepted = False  # all
        self._behind: set[object] | None = None  # None: something is unread in the sockets

    def is_read(self, is_idle: bool, accepts_all: bool, next_turn: Iterable[object]) -> bool:
        """Whether it has. ``is_idle``: nobody waits to be accepted. ``accepts_all``: in this turn
        as many as wanted to be were accepted, if the loop has looked."""
        self._was_asked = True
        behind = set(next_turn)
        if not is_idle or behind or not self._poller.is_idle():
            if not self._is_marked:
                # A signal (SIGCONT!) wakes the loop with nothing but its timers: it may not have
                # looked at all in this turn. When it is asked again, it has.
                self._is_marked = True
                self._poller.mark()
                return False
            if not self._has_executed(accepts_all, behind):
                return False
        self._forget()
        return True

    def _has_executed(self, accepts_all: bool, behind: set[object]) -> bool:
        """Whether what had arrived at the first question has been executed."""
        self._has_accepted = self._has_accepted or accepts_all
        if not self._has_accepted or self._poller.has_marked:
            return False
        self._behind = behind if self._behind is None else self._behind & behind
        return not self._behind

    def end_turn(self) -> None:
        """If it was not asked in this turn, the next question is about another late turn."""
        if self._is_marked and not self._was_asked:
            self._forget()
        self._was_asked = False

    def _forget(self) -> None:
        self._is_marked = self._has_accepted = False
        self._behind = None
        self._poller.forget_mark()
