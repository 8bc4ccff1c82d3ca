"""A TCP proxy in front of a node, which loses, delays and cuts what a test tells it to.

One thread, one selector. A *flow* is one direction of one connection. What can be done to flows:

hold      keep what comes, and deliver it later: a network that drops packets, as TCP sees it
swallow   read and throw away: only for a flow that will never be used again
delay     deliver later by so much
reset     end the connection with RST

To nodes and clients a proxy that refuses is a closed port: the dial is refused. One that holds new
connections accepts them, and nothing comes of it.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable

from .ports import HOST, Port

_CHUNK_BYTES = 65536
_RST = struct.pack("ii", 1, 0)

TO_NODE, TO_CLIENT = 0, 1


class _Flow:
    """One direction of a connection."""

    def __init__(self, source: socket.socket, sink: socket.socket, direction: int) -> None:
        self.source, self.sink, self.direction = source, sink, direction
        self.chunks: deque[tuple[float, bytes]] = deque()  # (due, data)
        self.ended = False  # the source has said all
        self.shut = False  # and the sink knows


class _Connection:
    def __init__(self, client: socket.socket, node: socket.socket) -> None:
        self.client, self.node = client, node
        self.flows = (_Flow(client, node, TO_NODE), _Flow(node, client, TO_CLIENT))
        self.held = [False, False]  # by direction
        self.deaf = False  # its replies are swallowed
        self.close_at_s: float | None = None
        self.closed = False


class Proxy:
    """Listens on its own port and passes everything to `target_port`, until told otherwise."""

    def __init__(self, port: Port, target_port: int) -> None:
        self.port = port.number
        self._target_port = target_port
        self._lock = threading.RLock()
        self._selector = selectors.DefaultSelector()
        self._connections: list[_Connection] = []
        self._held = [False, False]
        self._delay_s = 0.0
        self._listener: socket.socket | None = None
        self._deaf: tuple[bytes, float, Callable[[], None]] | None = None
        self._closed = False
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self.accept_connections()
        self._thread = threading.Thread(target=self._run, daemon=True, name="proxy")
        self._thread.start()

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """For Clerk."""
        return f"redis://{self.address}"

    # -- what a test says ------------------------------------------------------------------------

    def refuse_connections(self) -> None:
        """Every dial from now on is refused; connections that exist go on."""
        with self._lock:
            if self._listener is not None:
                self._selector.unregister(self._listener)
                self._listener.close()
                self._listener = None
            self._wake()

    def accept_connections(self) -> None:
        """Listen (again)."""
        with self._lock:
            if self._listener is None:
                self._listener = socket.socket()
                self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self._listener.bind((HOST, self.port))
                self._listener.listen(256)
                self._listener.setblocking(False)
                self._selector.register(self._listener, selectors.EVENT_READ)
            self._wake()

    def hold(self, *, to_node: bool = True, to_client: bool = True) -> None:
        """Deliver nothing in these directions: a black hole, or one half of it."""
        with self._lock:
            self._held = [to_node, to_client]
            self._wake()

    def hold_existing(self, *, to_node: bool = True, to_client: bool = True) -> None:
        """The same for the connections that there are; new ones work."""
        with self._lock:
            for connection in self._connections:
                connection.held = [to_node, to_client]
            self._wake()

    def heal(self) -> None:
        """Deliver everything, what was held included."""
        with self._lock:
            self._held = [False, False]
            for connection in self._connections:
                connection.held = [False, False]
            self._delay_s = 0.0
            self._wake()

    def delay(self, seconds: float) -> None:
        """Everything takes so much longer, in either direction."""
        with self._lock:
            self._delay_s = seconds
            self._wake()

    def reset(self) -> int:
        """End all connections with a RST to both sides; how many there were."""
        with self._lock:
            connections = [each for each in self._connections if not each.closed]
            for connection in connections:
                for sock in (connection.client, connection.node):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
                self._end(connection)
            self._wake()
            return len(connections)

    def go_deaf(self, marker: bytes, silence_s: float, on_swallowed: Callable[[], None]) -> None:
        """The next request with `marker` in it is passed on and its reply swallowed. New
        connections are refused from the moment of that request; `on_swallowed` is called when its
        reply is seen (so the request is then wherever it has to be before its reply may leave), and
        the client hears nothing until its connection is closed, `silence_s` later or at
        `end_silence`."""
        with self._lock:
            self._deaf = (marker, silence_s, on_swallowed)

    def end_silence(self) -> None:
        """Close the connection that has been deaf, now."""
        with self._lock:
            for connection in self._connections:
                if connection.deaf:
                    connection.close_at_s = time.monotonic()
            self._wake()

    def close(self) -> None:
        """End everything, the thread included."""
        with self._lock:
            self._closed = True
            self._wake()
        self._thread.join(10)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_write.send(b"!")

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            events = self._selector.select(self._timeout_s())
            calls: list[Callable[[], None]] = []
            with self._lock:
                if self._closed:
                    break
                for key, mask in events:
                    if key.fileobj is self._wake_read:
                        with contextlib.suppress(BlockingIOError):
                            self._wake_read.recv(4096)
                    elif key.fileobj is self._listener:
                        self._accept()
                    elif isinstance(key.data, _Connection) and not key.data.closed:
                        if mask & selectors.EVENT_READ:
                            self._read(key.data, key.fileobj, calls)
                self._move()
            for call in calls:
                call()
        with self._lock:
            for connection in self._connections:
                self._end(connection)
            if self._listener is not None:
                self._listener.close()
            self._selector.close()
            self._wake_read.close()
            self._wake_write.close()

    def _timeout_s(self) -> float | None:
        with self._lock:
            now_s = time.monotonic()
            due = [each.close_at_s for each in self._connections if each.close_at_s is not None]
            for connection in self._connections:
                for flow in connection.flows:
                    if flow.chunks and not self._is_held(connection, flow):
                        due.append(max(flow.chunks[0][0], now_s + 0.001))
            return max(0.0, min(due) - now_s) if due else None

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        try:
            node = socket.create_connection((HOST, self._target_port), 5.0)
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
            client.close()
            return
        connection = _Connection(client, node)
        for sock in (client, node):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(sock, selectors.EVENT_READ, connection)
        self._connections.append(connection)

    def _read(
        self, connection: _Connection, fileobj: object, calls: list[Callable[[], None]]
    ) -> None:
        flow = connection.flows[TO_NODE if fileobj is connection.client else TO_CLIENT]
        try:
            data = flow.source.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if flow.direction is TO_CLIENT and connection.deaf:
            if not data:
                self._selector.unregister(flow.source)
            elif connection.close_at_s is None and self._deaf is not None:
                _, silence_s, on_swallowed = self._deaf
                self._deaf = None
                connection.close_at_s = time.monotonic() + silence_s
                calls.append(on_swallowed)
            return
        if not data:
            flow.ended = True
            self._selector.unregister(flow.source)
            return
        if self._deaf is not None and flow.direction is TO_NODE and not self._any_deaf():
            if self._deaf[0] in data:
                connection.deaf = True
                self.refuse_connections()
        flow.chunks.append((time.monotonic() + self._delay_s, data))

    def _any_deaf(self) -> bool:
        return any(connection.deaf for connection in self._connections)

    def _move(self) -> None:
        now_s = time.monotonic()
        for connection in self._connections:
            if connection.closed:
                continue
            if connection.close_at_s is not None and now_s >= connection.close_at_s:
                self._end(connection)
                continue
            for flow in connection.flows:
                self._deliver(connection, flow, now_s)
            if not connection.deaf and all(flow.shut for flow in connection.flows):
                self._end(connection)
        self._connections = [each for each in self._connections if not each.closed]

    def _is_held(self, connection: _Connection, flow: _Flow) -> bool:
        return self._held[flow.direction] or connection.held[flow.direction]

    def _deliver(self, connection: _Connection, flow: _Flow, now_s: float) -> None:
        if flow.shut or self._is_held(connection, flow):
            return
        chunks = flow.chunks
        try:
            while chunks and chunks[0][0] <= now_s:
                due_s, data = chunks[0]
                sent = flow.sink.send(data)
                if sent < len(data):
                    chunks[0] = (due_s, data[sent:])
                    return
                chunks.popleft()
        except BlockingIOError:
            return
        except OSError:
            chunks.clear()
            flow.ended = True
        if flow.ended and not chunks:
            flow.shut = True
            if not connection.deaf:
                # Nobody here uses half-closed connections: what one side ends is over.
                self._end(connection)

    def _end(self, connection: _Connection) -> None:
        if connection.closed:
            return
        connection.closed = True
        for sock in (connection.client, connection.node):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(sock)
            sock.close()
