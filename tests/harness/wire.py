"""A bare RESP client: what was sent is known, what comes back is shown as it is."""

from __future__ import annotations

import socket
import time
from typing import Any

import hiredis

from .ports import HOST


class Closed(Exception):
    """The node has closed, or reset, the connection."""


class ReplyError(Exception):
    """An error reply; `code` is its first word."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text.partition(" ")[0]


def encode(*words: str | bytes | int) -> bytes:
    """A request as RESP."""
    out = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode()
        out.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(out)


def as_map(reply: object) -> dict[str, Any]:
    """A map by its names: of RESP3, or the flat list that it is in RESP2."""
    if isinstance(reply, list):
        reply = dict(zip(reply[::2], reply[1::2], strict=True))
    assert isinstance(reply, dict)
    return {name.decode(): value for name, value in reply.items()}


class Wire:
    """One connection. Raises OSError if it cannot be made."""

    def __init__(self, port: int, timeout_s: float = 20.0) -> None:
        self.timeout_s = timeout_s
        self.sock = socket.create_connection((HOST, port), timeout_s)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader(replyError=ReplyError)

    def send(self, *words: str | bytes | int) -> None:
        """Send a request. Raises Closed."""
        try:
            self.sock.sendall(encode(*words))
        except OSError as error:
            raise Closed(str(error)) from error

    def read(self, timeout_s: float | None = None) -> object:
        """The next reply; error replies are raised. Raises Closed, TimeoutError."""
        deadline_s = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        while (reply := self._reader.gets()) is False:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("no reply")
            self.sock.settimeout(left_s)
            try:
                data = self.sock.recv(65536)
            except TimeoutError:
                raise
            except OSError as error:
                raise Closed(str(error)) from error
            if not data:
                raise Closed("end of stream")
            self._reader.feed(data)
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    def ask(self, *words: str | bytes | int, timeout_s: float | None = None) -> object:
        """Send a request and read its reply."""
        self.send(*words)
        return self.read(timeout_s)

    def is_silent_for(self, seconds: float) -> bool:
        """Whether nothing comes, not even an end, for so long."""
        try:
            self.read(seconds)
        except TimeoutError:
            return True
        except (Closed, ReplyError):
            return False
        return False

    def inspect(self, name: str) -> dict[str, Any]:
        """INSPECT as a dict."""
        return as_map(self.ask("INSPECT", name))

    def digest(self) -> tuple[str, int]:
        """DEBUG DIGEST: of the state, and the offset at which it was taken."""
        deadline_s = time.monotonic() + self.timeout_s
        while True:
            try:
                reply = self.ask("DEBUG", "DIGEST")
            except ReplyError as error:
                if error.code != "TRYAGAIN" or time.monotonic() > deadline_s:
                    raise  # (only one at a time is computed)
                time.sleep(0.005)
                continue
            assert isinstance(reply, list)
            return reply[0].decode(), reply[1]

    def close(self) -> None:
        """Hang up."""
        self.sock.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
