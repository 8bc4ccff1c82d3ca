"""A node's connections: to its clients, to its peer, and those on which it asks a question."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import hiredis

from harness.checkers.history import Ack
from holdfast.server.core import stream
from holdfast.server.core.replica import Role

from .network import End

if TYPE_CHECKING:
    from .node import Process

SOCKET_BYTES = 200_000
"""What the system takes off a sender's hands before the other side has it."""

_NUMBERED = frozenset((stream.BEAT, stream.VIEW, stream.END, stream.CONTINUE, stream.HANDOVER))


def messages_of(data: bytes) -> list[list[bytes]]:
    """The whole messages in ``data``."""
    reader = hiredis.Reader()
    reader.feed(data)
    messages = []
    while (message := reader.gets()) is not False:
        messages.append(message)
    return messages


class Door:
    """A connection that came in: a client's, or one of the other node's."""

    __slots__ = ("early", "end", "link", "process", "waits_for")

    def __init__(self, process: Process, end: End) -> None:
        self.process = process
        self.end = end
        self.link: SimLink | None = None
        self.early: list[Any] | None = None  # what comes behind a JOIN before it is a link
        self.waits_for: tuple[bytes, bytes] | None = None  # name and request id, in line
        end.owner = self

    def on_data(self, end: End, data: Any) -> None:
        """Something has arrived: it is looked at in a turn."""
        self.process.receive(self.process.on_door, self, data)

    def on_closed(self, end: End, why: str) -> None:
        """The other side is gone."""
        self.process.receive(self.process.on_door_closed, self, why)

    def on_late(self, end: End) -> None:
        """This side had closed it."""


class SimLink:
    """One end of a replication link (``Link`` of the core's outside)."""

    __slots__ = (
        "_in_flight",
        "_last_drained_us",
        "_last_taken_us",
        "closed",
        "end",
        "is_to_primary",
        "last_heard_ms",
        "peer",
        "process",
        "socket_bytes",
    )

    def __init__(self, process: Process, end: End) -> None:
        now_us = process.clock.us()
        self.process = process
        self.end = end
        self.peer = end.peer.host.name
        self.closed = False
        self.is_to_primary = process.replica.role is not Role.PRIMARY
        self.last_heard_ms = now_us // 1_000
        self.socket_bytes = process.socket_bytes
        self._in_flight = 0
        self._last_taken_us = self._last_drained_us = now_us
        end.owner = self
        end.on_taken = self._on_taken

    @property
    def last_taken_ms(self) -> int:
        """When the socket last took something."""
        return self._last_taken_us // 1_000

    @property
    def last_drained_ms(self) -> int:
        """When it had last taken all."""
        return self._last_drained_us // 1_000

    @property
    def unsent_bytes(self) -> int:
        """What the socket has not taken yet."""
        return max(0, self._in_flight - self.socket_bytes)

    def write(self, data: bytes) -> None:
        """Send whole messages."""
        if self.closed:
            return
        process = self.process
        messages = messages_of(data)
        for message in messages:
            kind = message[0]
            if kind == stream.ENTRIES:
                process.chronicle.sent_frame(int.from_bytes(message[1][8:16], "big"))
            elif kind in _NUMBERED:
                process.chronicle.sent_frame(int(message[2]))
        self._in_flight += len(data)
        self._note_taken()
        process.network.send(self.end, (messages, len(data), process.replica.incarnation))

    def close(self) -> None:
        """Close, and hear no more of it."""
        if not self.closed:
            self.closed = True
            self.process.ends.pop(self.end, None)
            self.process.network.close(self.end)

    def _on_taken(self, data: tuple[Any, int, str]) -> None:
        self._in_flight -= data[1]
        self._note_taken()

    def _note_taken(self) -> None:
        if self._in_flight <= self.socket_bytes:
            self._last_taken_us = self._last_drained_us = self.process.clock.us()
        elif self._in_flight - self.socket_bytes < self.socket_bytes:
            self._last_taken_us = self.process.clock.us()

    def on_data(self, end: End, data: Any) -> None:
        """Messages have arrived: they are looked at in a turn."""
        if not self.closed:
            self.process.receive(self.process.on_link, self, data)

    def on_closed(self, end: End, why: str) -> None:
        """The other side is gone."""
        if not self.closed:
            self.process.receive(self.process.on_link_closed, self, why)

    def on_late(self, end: End) -> None:
        """What the other side sent before it knew that this one is done with it."""
        if self.process.replica.role is Role.PRIMARY and self.is_to_primary:
            self.process.trace.count("old stream shut out")

    def watch_acks(self, messages: list[list[bytes]], backup: str) -> None:
        """Note what the backup acknowledges, as it arrives here."""
        process = self.process
        for message in messages:
            if message[0] == stream.ACK:
                epoch, frame, offset = map(int, message[1:])
                if epoch != process.replica.view.epoch:
                    process.trace.count("ack of another epoch")
                process.chronicle.note_ack(epoch, frame)
                process.trace.history.acks.append(  # type: ignore[union-attr]
                    Ack(
                        process.replica.incarnation,
                        backup,
                        epoch,
                        frame,
                        process.chronicle.frames_us.get(frame, 0),
                        offset,
                        process.now_us,
                    )
                )


class Question:
    """A question on a connection of its own: its answer, or what else came of it, arrives once.

    Both the answer and the end of the time may be there when a process that stood still goes on:
    which one it sees first decides.
    """

    def __init__(
        self,
        process: Process,
        target: Any,
        words: Any,
        timeout_us: int,
        done: Callable[[Any, str], None],
    ) -> None:
        self._process = process
        self._words = words
        self._done = done
        self._end: End | None = None
        self._is_over = False
        process.network.dial(process.host, target, self, timeout_us, self._on_dialled)
        process.after_us(timeout_us, self._finish, None, "silent")

    def _on_dialled(self, end: End | None, why: str) -> None:
        if end is None:
            if not self._process.alive:
                return
            self._process.receive(self._finish, None, why)
            return
        self._end = end
        if self._is_over or not self._process.alive:
            self._process.network.close(end)
        else:
            self._process.ends[end] = None
            self._process.network.send(end, self._words)

    def on_data(self, end: End, data: Any) -> None:
        """The answer."""
        self._process.receive(self._finish, data, "")

    def on_closed(self, end: End, why: str) -> None:
        """There will be none."""
        self._process.receive(self._finish, None, "silent")

    def on_late(self, end: End) -> None:
        """It comes too late."""

    def _finish(self, answer: Any, why: str) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self._end is not None:
            self._process.ends.pop(self._end, None)
            self._process.network.close(self._end)
        self._done(answer, why)
