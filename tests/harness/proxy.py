"""A TCP proxy in front of a node, which loses, delays and cuts what a test tells it to.

One thread, one selector. A *flow* is one direction of one connection. What can be done to flows:

hold      keep what comes, and deliver it later: a network that drops packets, as TCP sees it
swallow   read and throw away: only for a flow that will never be used again
delay     deliver later by so much
throttle  deliver so many bytes a second, and take no more than that from the sender
reset     end the connection with RST
cut       pass so many bytes more, and then reset: in the middle of a frame
lose      end connections at random, a request or a reply going down with each
trip      at the sight of some bytes do something, such as to kill who sent them

To nodes and clients a proxy that refuses is a closed port: the dial is refused. So it is while
nobody listens behind it, which it finds out before it passes on that a connection has ended. One
that holds new connections accepts them, and nothing comes of it.
"""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from .ports import HOST, Port

_CHUNK_BYTES = 65536
_RST = struct.pack("ii", 1, 0)

_PROBE_S = 0.005  # how often a node that is gone is looked for
_THROTTLED_S = 0.005  # what passes of a throttled flow passes in pieces of so long
_QUEUED_BYTES_MAX = 65536  # of a throttled flow, in here: more is left with the sender

TO_NODE, TO_CLIENT = 0, 1


class _Flow:
    """One direction of a connection."""

    def __init__(self, source: socket.socket, sink: socket.socket, direction: int) -> None:
        self.source, self.sink, self.direction = source, sink, direction
        self.chunks: deque[tuple[float, bytes]] = deque()  # (due, data)
        self.passed_bytes = 0  # since the cut was armed
        self.ended = False  # the source has said all
        self.shut = False  # and the sink knows
        self.queued_bytes = 0
        self.is_read = True  # or there is too much of it here already
        self.free_at_s = 0.0  # when a throttled one may go on


class _Connection:
    def __init__(self, client: socket.socket, node: socket.socket) -> None:
        self.client, self.node = client, node
        self.flows = (_Flow(client, node, TO_NODE), _Flow(node, client, TO_CLIENT))
        self.held = [False, False]  # by direction
        self.deaf = False  # its replies are swallowed
        self.close_at_s: float | None = None
        self.closed = False


class Trip(NamedTuple):
    """Waits for `marker` in one direction."""

    marker: bytes
    direction: int
    deliver: bool
    on_sight: Callable[[], None]


class Loss(NamedTuple):
    """What share of requests, and of replies, is lost."""

    rng: random.Random
    shares: tuple[float, float]  # by direction


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
        self._throttle: list[int] = [0, 0]  # bytes a second, by direction; 0: any number
        self._listener: socket.socket | None = None
        self._refuses = False
        self._node_is_gone = False
        self._deaf: tuple[bytes, float, Callable[[], None]] | None = None
        self._trips: list[Trip] = []
        self._cut: tuple[int, int] | None = None  # direction, bytes
        self._loss: Loss | None = None
        self.lost_count = 0  # connections that ended by `lose`
        self.cut_count = 0
        self.tap: Callable[[bytes], None] | None = None  # is shown what goes to the node
        self._closed = False
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._listen_or_not()
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
            self._refuses = True
            self._listen_or_not()
            self._wake()

    def accept_connections(self) -> None:
        """Listen (again)."""
        with self._lock:
            self._refuses = False
            self._listen_or_not()
            self._wake()

    def hold(self, *, to_node: bool = True, to_client: bool = True) -> None:
        """Deliver nothing in these directions: a black hole, or one half of it."""
        with self._lock:
            self._held = [to_node, to_client]
            self._wake()

    def hold_more(self, *, to_node: bool = False, to_client: bool = False) -> None:
        """The same, beside what is held already."""
        self.hold(to_node=to_node or self._held[0], to_client=to_client or self._held[1])

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
            self._throttle = [0, 0]
            self._loss = None
            self._wake()

    def delay(self, seconds: float) -> None:
        """Everything takes so much longer, in either direction."""
        with self._lock:
            self._delay_s = seconds
            self._wake()

    def throttle(self, bytes_per_s: int, *, to_node: bool) -> None:
        """On each connection so much passes in this direction; 0: as fast as it can. What does not
        pass stays with the sender, beyond a few packets here."""
        with self._lock:
            self._throttle[TO_NODE if to_node else TO_CLIENT] = bytes_per_s
            self._wake()

    def reset(self) -> int:
        """End all connections with a RST to both sides; how many there were."""
        with self._lock:
            connections = [each for each in self._connections if not each.closed]
            for connection in connections:
                self._reset(connection)
            self._wake()
            return len(connections)

    def cut_after(self, count: int, *, to_node: bool) -> None:
        """The first connection that has passed `count` bytes from now on in this direction is
        reset; so is what it would have passed beyond. Once."""
        with self._lock:
            self._cut = (TO_NODE if to_node else TO_CLIENT, count)
            for connection in self._connections:
                for flow in connection.flows:
                    flow.passed_bytes = 0

    def lose(self, rng: random.Random, *, requests: float = 0.0, replies: float = 0.0) -> None:
        """Of what is read from a client, or from the node, this share is thrown away, and its
        connection reset: a network that loses messages, for who has a connection per request."""
        with self._lock:
            self._loss = Loss(rng, (requests, replies))

    def trip(
        self,
        marker: bytes,
        on_sight: Callable[[], None],
        *,
        to_node: bool,
        deliver: bool = False,
    ) -> None:
        """Call `on_sight` when `marker` is next seen in this direction: behind its delivery, or
        instead of it. In the latter case nothing passes on that connection any more, until `heal`.
        (What is looked at is what comes in one read, so a marker may be missed that is split.)"""
        with self._lock:
            direction = TO_NODE if to_node else TO_CLIENT
            self._trips.append(Trip(marker, direction, deliver, on_sight))

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
                if self._node_is_gone:
                    self._probe()
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
            due += [now_s + _PROBE_S] if self._node_is_gone else []
            for connection in self._connections:
                for flow in connection.flows:
                    if flow.chunks and not self._is_held(connection, flow):
                        due.append(max(flow.chunks[0][0], flow.free_at_s, now_s + 0.001))
            return max(0.0, min(due) - now_s) if due else None

    def _listen_or_not(self) -> None:
        wanted = not self._refuses and not self._node_is_gone
        if wanted and self._listener is None:
            self._listener = socket.socket()
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind((HOST, self.port))
            self._listener.listen(256)
            self._listener.setblocking(False)
            self._selector.register(self._listener, selectors.EVENT_READ)
        elif not wanted and self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _look_for_node(self) -> socket.socket | None:
        """Dial it. While it is gone, nobody listens here either."""
        try:
            node = socket.create_connection((HOST, self._target_port), 5.0)
        except OSError as error:
            self._node_is_gone = isinstance(error, ConnectionRefusedError)
            node = None
        else:
            self._node_is_gone = False
        self._listen_or_not()
        return node

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        node = self._look_for_node()
        if node is None:
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
            if flow.direction is TO_CLIENT and not self._node_is_gone:
                self._probe()
            return
        if self._deaf is not None and flow.direction is TO_NODE and not self._any_deaf():
            if self._deaf[0] in data:
                connection.deaf = True
                self.refuse_connections()
        if self._loss is not None and self._loss.rng.random() < self._loss.shares[flow.direction]:
            self.lost_count += 1
            self._reset(connection)
            return
        flow.chunks.append((time.monotonic() + self._delay_s, data))
        flow.queued_bytes += len(data)
        if self.tap is not None and flow.direction is TO_NODE:
            self.tap(data)
        for trip in [each for each in self._trips if each.direction is flow.direction]:
            if trip.marker in data:
                self._trips.remove(trip)
                if not trip.deliver:
                    connection.held = [True, True]
                calls.append(trip.on_sight)

    def _probe(self) -> None:
        node = self._look_for_node()
        if node is not None:
            node.close()

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
                self._read_or_not(connection, flow)
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
            while chunks and chunks[0][0] <= now_s and self._may_pass(flow, now_s):
                due_s, data = chunks[0]
                sent = flow.sink.send(data[: self._bytes_at_a_time(flow)])
                flow.passed_bytes += sent
                flow.queued_bytes -= sent
                self._note_passed(flow, sent, now_s)
                if self._bytes_before_cut(flow) == 0:
                    self._cut = None
                    self.cut_count += 1
                    self._reset(connection)
                    return
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

    def _may_pass(self, flow: _Flow, now_s: float) -> bool:
        return not self._throttle[flow.direction] or flow.free_at_s <= now_s

    def _note_passed(self, flow: _Flow, count: int, now_s: float) -> None:
        bytes_per_s = self._throttle[flow.direction]
        if bytes_per_s:  # (from when it was free: a proxy that is late makes up for it)
            since_s = max(flow.free_at_s, now_s - _THROTTLED_S)
            flow.free_at_s = since_s + count / bytes_per_s

    def _bytes_at_a_time(self, flow: _Flow) -> int | None:
        bytes_per_s = self._throttle[flow.direction]
        piece = max(1, int(bytes_per_s * _THROTTLED_S)) if bytes_per_s else None
        bounds = [each for each in (piece, self._bytes_before_cut(flow)) if each is not None]
        return min(bounds, default=None)

    def _read_or_not(self, connection: _Connection, flow: _Flow) -> None:
        """A throttled flow is read while there is little of it here."""
        if connection.closed or flow.ended:
            return
        is_full = flow.queued_bytes > _QUEUED_BYTES_MAX
        wanted = not (self._throttle[flow.direction] and is_full)
        if flow.is_read and not wanted:
            self._selector.unregister(flow.source)
        elif wanted and not flow.is_read:
            self._selector.register(flow.source, selectors.EVENT_READ, connection)
        flow.is_read = wanted

    def _bytes_before_cut(self, flow: _Flow) -> int | None:
        if self._cut is None or self._cut[0] is not flow.direction:
            return None
        return max(0, self._cut[1] - flow.passed_bytes)

    def _reset(self, connection: _Connection) -> None:
        for sock in (connection.client, connection.node):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
        self._end(connection)

    def _end(self, connection: _Connection) -> None:
        if connection.closed:
            return
        connection.closed = True
        for sock in (connection.client, connection.node):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(sock)
            sock.close()
