"""Bytes to a server and back, as they are: for clients that do not keep to the protocol."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .ports import HOST
from .processes import Cluster, Node, wait_until
from .wire import Wire, encode

TIMEOUT_S = 20.0
MARKER = b"still here"
_MARKER_REQUEST = encode("ECHO", MARKER)
_MARKER_REPLY = b"$10\r\nstill here\r\n"


@contextlib.contextmanager
def lone_node(folder: Path, *arguments: str) -> Iterator[Node]:
    """A primary without a backup; at the end it must still be there and answer."""
    cluster = Cluster(folder)
    try:
        node = cluster.node("node").start("--log-level", "info", *arguments)
        wait_until(node.answers, f"{node} answers", [node])
        yield node
        assert node.is_running, f"the node has ended\n{node.log_tail()}"
        assert node.answers(), node.log_tail()
        assert "Traceback" not in node.log_text, node.log_tail()
    finally:
        cluster.close()


class Raw:
    """A socket whose peer may hang up at any time."""

    def __init__(self, port: int, *, receive_buffer_bytes: int = 0) -> None:
        self.sock = socket.socket()
        if receive_buffer_bytes:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect((HOST, port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> bool:
        """Send all of it; False if the peer has hung up."""
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def finish(self) -> None:
        """Say that nothing more will be sent."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def read_to_end(self) -> bytes:
        """Everything until the peer hangs up. Raises TimeoutError if it does not."""
        received = bytearray()
        while data := self.receive():
            received += data
        return bytes(received)

    def read_exactly(self, length: int) -> bytes:
        """So many bytes, fewer if the peer hangs up."""
        received = bytearray()
        while len(received) < length and (data := self.receive()):
            received += data
        return bytes(received)

    def receive(self) -> bytes:
        """What comes next; empty at the end."""
        try:
            return self.sock.recv(1 << 20)
        except ConnectionResetError:
            return b""

    def has_something(self) -> bool:
        """Whether there is something to be read now, be it the end."""
        return bool(select.select([self.sock], [], [], 0)[0])

    def reset(self) -> None:
        """Vanish: the peer sees a reset, not an orderly end."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
            )
        self.sock.close()

    def close(self) -> None:
        """Hang up."""
        self.sock.close()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Exchange(NamedTuple):
    """What came back for some bytes, and whether the connection would have gone on."""

    answer: bytes
    stays_open: bool


def exchange(port: int, data: bytes) -> Exchange:
    """Send `data` and, behind it, a request that only an open connection answers."""
    with Raw(port) as raw:
        raw.send(data + _MARKER_REQUEST)
        received = bytearray()
        while not received.endswith(_MARKER_REPLY) and (chunk := raw.receive()):
            received += chunk
    stays_open = received.endswith(_MARKER_REPLY)
    return Exchange(bytes(received).removesuffix(_MARKER_REPLY), stays_open)


def answer_to(port: int, data: bytes) -> bytes:
    """What comes back for some bytes and the end of the stream behind them."""
    with Raw(port) as raw:
        raw.send(data)
        raw.finish()
        return raw.read_to_end()


def last_words(port: int, data: bytes) -> bytes:
    """What comes back for `data` until the server, by itself, hangs up."""
    with Raw(port) as raw:
        raw.send(data)
        return raw.read_to_end()


def settle(port: int) -> None:
    """Wait until the server has taken, and answered, what was sent on other connections."""
    with Wire(port) as wire:
        for _ in range(3):
            assert wire.ask("PING") == b"PONG"


class Bystander:
    """A well-behaved client that goes on locking and unlocking while others misbehave.

    As a context manager it checks at its end that every answer was right and that it got on.
    """

    def __init__(self, port: int) -> None:
        self.rounds = 0
        self.slowest_ms = 0.0
        self._wire = Wire(port)
        self._name = f"bystander {threading.get_ident()} {time.monotonic_ns()}"
        self._stop = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            while not self._stop:
                self._round()
        except BaseException as error:
            self._error = error

    def _round(self) -> None:
        started_s = time.monotonic()
        n = 2 * self.rounds
        token = self._wire.ask("LOCK", self._name, f"@{self._name}:{n}")
        assert isinstance(token, int)
        assert token > 0
        assert self._wire.ask("UNLOCK", self._name, f"@{self._name}:{n + 1}") == 1
        self.slowest_ms = max(self.slowest_ms, (time.monotonic() - started_s) * 1000)
        self.rounds += 1

    def goes_on(self) -> None:
        """Wait until it has come round again."""
        before = self.rounds
        wait_until(
            lambda: self.rounds > before + 2 or self._error is not None, "the bystander gets on"
        )
        if self._error is not None:
            raise AssertionError(f"the bystander was harmed: {self._error!r}") from self._error

    def __enter__(self) -> Bystander:
        self._thread.start()
        self.goes_on()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.goes_on()
        self._stop = True
        self._thread.join(TIMEOUT_S)
        self._wire.close()
