"""A node that says what the test tells it to, and remembers what it was asked."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

WAIT_MAX_S = 10.0


class Action(NamedTuple):
    """Something to do instead of answering."""

    what: str


HANG_UP = Action("close the connection in good order")
RESET = Action("reset the connection")
SILENCE = Action("never answer")


class Heard(NamedTuple):
    """One request as a node received it; `connection` counts the node's connections from 0."""

    connection: int
    words: tuple[bytes, ...]

    @property
    def client(self) -> bytes:
        return self.words[2].partition(b":")[0]


Script = Callable[[Heard], "bytes | Action"]


class Node:
    """A server that speaks RESP2 and leaves it to `script` what to say to each request. Greetings
    (CLIENT, AUTH) are answered by `greet` and not recorded.
    """

    def __init__(self, script: Script, greet: Script, path: str | None = None) -> None:
        self.script, self.greet = script, greet
        self.heard: list[Heard] = []
        self.greetings: list[Heard] = []
        self.hung_up: set[int] = set()
        self._changed = threading.Condition()
        self._connections: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self._listener.bind(path or ("127.0.0.1", 0))
        self._listener.listen(100)
        port = None if path else self._listener.getsockname()[1]
        self.url = f"unix://{path}" if path else f"redis://127.0.0.1:{port}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def words(self) -> list[tuple[bytes, ...]]:
        return [heard.words for heard in self.heard]

    @property
    def connection_count(self) -> int:
        return len(self._connections)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_MAX_S), self.heard

    def drop(self, connection: int, data: bytes) -> None:
        """Say this much, before the answer."""
        self._connections[connection].sendall(data)

    def stop(self) -> None:
        """As a process that is killed: the listener and every connection are gone."""
        for sock in [self._listener, *self._connections]:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(sock)
            number = len(self._connections) - 1
            threading.Thread(target=self._serve, args=(sock, number), daemon=True).start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        try:
            with sock, sock.makefile("rb") as stream:
                while (words := read_words(stream)) is not None:
                    self._answer(sock, Heard(number, words))
        except OSError:
            pass
        with self._changed:
            self.hung_up.add(number)
            self._changed.notify_all()

    def _answer(self, sock: socket.socket, heard: Heard) -> None:
        greeting = heard.words[0] in (b"CLIENT", b"AUTH")
        with self._changed:
            (self.greetings if greeting else self.heard).append(heard)
            self._changed.notify_all()
        answer = (self.greet if greeting else self.script)(heard)
        if isinstance(answer, bytes):
            sock.sendall(answer)
        elif answer is RESET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise OSError("reset")
        elif answer is HANG_UP:
            sock.shutdown(socket.SHUT_RDWR)


def read_words(stream: Any) -> tuple[bytes, ...] | None:
    if not (header := stream.readline()):
        return None
    words = []
    for _ in range(int(header[1:])):
        length = int(stream.readline()[1:])
        words.append(stream.read(length + 2)[:-2])
    return tuple(words)


def say(*answers: bytes | Action) -> Script:
    """These answers in turn; the last one again and again."""
    left = list(answers)
    return lambda heard: left.pop(0) if len(left) > 1 else left[0]


def ok(heard: Heard) -> bytes:
    return b"+OK\r\n"
