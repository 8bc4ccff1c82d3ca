"""Listening sockets: accept clients, within the bound on their number."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable
from typing import Any

from .core import limits

# A client whose machine has lost power says no word more: keepalive tells, so that nobody who stood
# in line for it is granted a lock that it will never give back.
_SOCKET_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, limits.KEEPALIVE_IDLE_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, limits.KEEPALIVE_IDLE_S // 3),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
ACCEPTS_PER_TURN = 100
_PAUSE_S = 0.1  # when the process is out of file descriptors


class Listener:
    """One listening socket. ``on_accept`` gets each new socket and its address."""

    def __init__(
        self,
        loop: Any,
        host: str,
        port: int,
        on_accept: Callable[[socket.socket, Any], None],
        on_trouble: Callable[[str], None],
    ) -> None:
        """Bind and listen. Raises OSError."""
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self._sock = socket.socket(family, kind)
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self._sock.setblocking(False)
            self._sock.bind(address)
            self._sock.listen(limits.LISTEN_QUEUE_MAX)
        except OSError:
            self._sock.close()
            raise
        self.host, self.port = self._sock.getsockname()[:2]
        self._on_accept = on_accept
        self._on_trouble = on_trouble
        self._loop = loop
        self._timer: Any = None
        self._in_trouble = False
        self._watcher = loop.io(self._sock.fileno(), 1)
        self._watcher.start(self._on_readable)

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits to be accepted."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return not poll.poll(0)

    def _on_readable(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, address = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pause(error)
                    return
                continue  # that connection is gone already
            self._in_trouble = False
            sock.setblocking(False)
            for level, option, value in _SOCKET_OPTIONS:
                sock.setsockopt(level, option, value)
            self._on_accept(sock, address)

    def _pause(self, error: OSError) -> None:
        if not self._in_trouble:
            self._in_trouble = True
            self._on_trouble(f"cannot accept connections for now: {error}")
        self._watcher.stop()
        # A new one each time: a timer of gevent's that was stopped fires at once when it is
        # started again.
        self._timer = self._loop.timer(_PAUSE_S)
        self._timer.start(self._resume)

    def _resume(self) -> None:
        self._timer.stop()
        self._timer.close()
        self._timer = None
        self._watcher.start(self._on_readable)

    def close(self) -> None:
        """Stop listening."""
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
        self._watcher.stop()
        self._watcher.close()
        self._sock.close()
