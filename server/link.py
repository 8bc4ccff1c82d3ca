"""The replication link: one TCP connection between the nodes, and how a node asks its peer.

The backup dials the primary's ordinary port and sends ``PEER JOIN``; from then on the connection
carries the messages of ``core/stream.py``. Like a client's connection a link lives in callbacks:
what arrives is handled to completion, what is to be sent goes out once per loop turn.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable
from typing import Any

import gevent
import gevent.socket

from ..resp.decoder import Decoder
from ..resp.encoder import pack
from ..resp.replies import reply_parser
from .clock import boot_ms
from .config import Address
from .core.failover import Answer, NoAnswer
from .core.stream import PROTOCOL_VERSION, decode_answer

_OWN_FAULTS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
_RECEIVE_BYTES = 256 * 1024

Parser = Callable[[bytes], Iterable[Any]]


class Link:
    """One end of a replication link.

    ``on_messages`` gets the link and what has arrived, ``on_lost`` the link and why it ended.
    """

    def __init__(
        self,
        loop: Any,
        sock: socket.socket,
        parse: Parser,
        on_messages: Callable[[Link, Iterable[Any]], None],
        on_lost: Callable[[Link, str], None],
        peer: str,
    ) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.peer = peer
        self._loop = loop
        self.address: Address | None = None  # where the peer listens, if it said so
        self.last_heard_ms = boot_ms()
        self.last_taken_ms = self.last_heard_ms  # when the socket last took something,
        self.last_drained_ms = self.last_heard_ms  # and when it last took all that was queued
        self.closed = False
        self._parse = parse
        self._on_messages = on_messages
        self._on_lost = on_lost
        self._unsent = bytearray()
        self._read_watcher = loop.io(sock.fileno(), 1)
        self._write_watcher = loop.io(sock.fileno(), 2)
        self._read_watcher.start(self._on_readable)

    @property
    def unsent_bytes(self) -> int:
        """What the socket has not taken yet."""
        return len(self._unsent)

    def _on_readable(self) -> None:
        try:
            data = self.sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self.lose(f"read failed: {error}")
            return
        if not data:
            self.lose("closed by the peer")
            return
        self.last_heard_ms = boot_ms()
        self._on_messages(self, self._parse(data))

    def write(self, data: bytes) -> None:
        """Send now, or as soon as the socket takes it."""
        if self.closed:
            return
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.lose(f"write failed: {error}")
            return
        self.last_taken_ms = boot_ms()
        if sent < len(data):
            self._unsent += memoryview(data)[sent:]
            self._write_watcher.start(self._on_writable)

    def _on_writable(self) -> None:
        try:
            sent = self.sock.send(memoryview(self._unsent)[:_RECEIVE_BYTES])
        except BlockingIOError:
            return
        except OSError as error:
            self.lose(f"write failed: {error}")
            return
        self.last_taken_ms = boot_ms()
        del self._unsent[:sent]
        if not self._unsent:
            self.last_drained_ms = self.last_taken_ms
            self._write_watcher.stop()

    def lose(self, why: str) -> None:
        """The link is broken: close it, and say so soon. Not at once: whoever is just writing has
        more to do, and does not expect the world to have changed behind it."""
        if not self.closed:
            self.close()
            self._loop.run_callback_threadsafe(self._on_lost, self, why)

    def close(self) -> None:
        """Close without telling anybody."""
        if self.closed:
            return
        self.closed = True
        for watcher in (self._read_watcher, self._write_watcher):
            watcher.stop()
            watcher.close()
        self.sock.close()


def request_parser() -> Parser:
    """The strict decoder of requests as the parser of what a backup sends: it dialled us, and may
    be anybody. Raises ProtocolError."""
    decoder = Decoder()

    def parse(data: bytes) -> Iterable[Any]:
        yield from decoder.feed(data)
        if decoder.error is not None:
            raise decoder.error

    return parse


_last_resolved: dict[Address, tuple[str, int]] = {}
"""Where a peer was last reached: its name may go with it (a container's does), and a peer that
cannot be looked up is not yet a peer that is gone."""


def _connect(address: Address, timeout_s: float) -> Any:
    """Connect (waits). Raises OSError."""
    address.host.encode(
        "idna"
    )  # raises ValueError here: in the resolver's thread nobody catches it
    try:
        sock = gevent.socket.create_connection((address.host, address.port), timeout_s)
    except socket.gaierror:
        if address not in _last_resolved:
            raise
        return gevent.socket.create_connection(_last_resolved[address], timeout_s)
    _last_resolved[address] = sock.getpeername()[:2]
    return sock


def dial(address: Address, timeout_s: float) -> socket.socket:
    """Connect for a link (waits). Raises OSError, ValueError."""
    with gevent.Timeout(timeout_s, TimeoutError):
        cooperative = _connect(address, timeout_s)
    # The file descriptor goes on as a plain non-blocking socket: links use watchers, not greenlets.
    return socket.socket(fileno=cooperative.detach())


def ask(address: Address, timeout_s: float, *request: bytes | str | int) -> Answer | NoAnswer:
    """Send ``PEER ...`` to the node at ``address`` on a connection of its own, and wait for its
    answer for at most ``timeout_s``."""
    try:
        return decode_answer(call(address, timeout_s, *request))
    except ConnectionRefusedError:
        return NoAnswer.GONE
    except ValueError:
        return NoAnswer.STRANGER
    except OSError as error:
        own_fault = isinstance(error, socket.gaierror) or error.errno in _OWN_FAULTS
        return NoAnswer.UNASKED if own_fault else NoAnswer.SILENT


def call(address: Address, timeout_s: float, *request: bytes | str | int) -> Any:
    """The reply to ``PEER ...``, whatever it is (waits). Raises OSError, ValueError."""
    with gevent.Timeout(timeout_s, TimeoutError), _connect(address, timeout_s) as sock:
        sock.sendall(pack((b"PEER", request[0], PROTOCOL_VERSION, *request[1:])))
        parse = reply_parser()
        while True:
            data = sock.recv(4096)
            if not data:
                raise ConnectionResetError("closed before it answered")
            for reply in parse(data):
                return reply
