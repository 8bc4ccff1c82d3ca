"""All clients' sockets behind one watcher of the event loop.

The sockets sit in an epoll set of their own, and only that set's file descriptor is known to the
loop. When it is ready, one call returns every socket that has something, and they are served in a
plain ``for``. Per request that is half a microsecond less than a watcher for each socket, and per
connection half a kilobyte. Links and listeners, which are few, have ordinary watchers.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

from .core import limits

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
_SOCKETS_AT_A_TIME = 32  # and then a look at the clock

Callbacks = tuple[Callable[[], None], Callable[[], None]]


class Poller:
    """Calls ``on_readable`` or ``on_writable`` of whoever registered a socket."""

    def __init__(self, loop: Any) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callbacks] = {}
        self._watcher = loop.io(self._epoll.fileno(), 1)
        self._watcher.start(self._on_ready)

    def register(
        self, fd: int, on_readable: Callable[[], None], on_writable: Callable[[], None]
    ) -> None:
        """Watch ``fd`` for reading."""
        self._callbacks[fd] = (on_readable, on_writable)
        self._epoll.register(fd, READ)

    def watch(self, fd: int, events: int) -> None:
        """Change what ``fd`` is watched for: READ, WRITE, both or 0."""
        self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Forget ``fd``, before it is closed."""
        del self._callbacks[fd]
        self._epoll.unregister(fd)

    def _on_ready(self) -> None:
        deadline = perf_counter_ns() + limits.POLL_BUDGET_NS
        while True:
            ready = self._epoll.poll(0, _SOCKETS_AT_A_TIME)
            self._serve(ready)
            if len(ready) < _SOCKETS_AT_A_TIME or perf_counter_ns() > deadline:
                return

    def _serve(self, ready: list[tuple[int, int]]) -> None:
        callbacks = self._callbacks
        for fd, events in ready:
            registered = callbacks.get(fd)
            if registered is None:
                continue  # closed by the callback of one before it
            on_readable, on_writable = registered
            if events != READ and events & WRITE:
                on_writable()
                if events == WRITE or callbacks.get(fd) is not registered:
                    continue
            on_readable()

    def close(self) -> None:
        """Stop watching."""
        self._watcher.stop()
        self._watcher.close()
        self._epoll.close()
