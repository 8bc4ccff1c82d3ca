"""A network that loses messages, between clients and one node, on real sockets.

TCP loses nothing, it only hangs up, so the losses of a network of datagrams are made up here: this
proxy cuts both streams into whole messages (RESP) and rolls its dice for each request:

lost          it never reaches the node
reply lost    it does, and the answer never reaches the client
delayed       the request, the reply, or each: by up to `delay_max_s`
duplicated    sent twice in a row; one of the two answers is thrown away
late          one more copy comes on a connection of its own, long after: behind the answer, or, of
              a request that was lost, behind the moment when its client gave up and hung up

A client tells replies apart by their order alone. So a connection on which a request or a reply was
lost stays silent from there on, or the next reply would be taken for the one that is missing:

    client    sends A, sends B, reads                       what it must not do: take b for A's
    proxy     loses A; passes B on, throws the answer b away
    client    hears nothing, hangs up, asks again on a new connection

All dice of a request are thrown at once when it comes, always the same number of them: with one
client that does one thing after the other, the faults are a function of the seed.

What a client says before its first request (AUTH, CLIENT SETINFO, ...) is spared: to lose that is
to refuse the connection, which is another fault and another proxy's (proxy.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections import deque
from collections.abc import Coroutine
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, NamedTuple

from .ports import HOST, Port

_CHUNK_BYTES = 65536
_RST = struct.pack("ii", 1, 0)
_START_S = 10.0

SPARED = frozenset({b"AUTH", b"CLIENT", b"HELLO", b"PING", b"QUIT", b"SELECT"})


class Verdict(Enum):
    """What becomes of a reply."""

    DELIVER = "to the client"
    LOSE = "lost"
    SILENCE = "behind one that was lost"
    SPARE = "to the other copy of a request"


class Faults(NamedTuple):
    """Shares, from 0 to 1, of what happens to requests and replies; lengths of time in seconds."""

    lost_requests: float = 0.1
    lost_replies: float = 0.1
    delayed: float = 0.1  # of the requests, and of the replies
    delay_max_s: float = 0.026
    duplicated: float = 0.1
    first_answers: float = 0.5  # of the duplicated: the client gets the first copy's answer
    late: float = 0.1  # of the requests that are answered: one more copy follows
    late_of_lost: float = 0.5  # of the lost: they come late instead of never
    late_max_s: float = 0.2


NO_FAULTS = Faults(0, 0, 0, 0, 0, 0, 0, 0, 0)


@dataclass
class Counts:
    """What a proxy has done."""

    requests: int = 0  # that came and were not spared
    lost_requests: int = 0
    lost_replies: int = 0
    delayed_requests: int = 0
    delayed_replies: int = 0
    duplicated: int = 0
    first_answers: int = 0  # of two, the first was passed on
    second_answers: int = 0
    late_answered: int = 0  # copies that the node took in after the first was answered,
    late_lost: int = 0  # and those of a lost request that it took in after the client had gone

    def missing(self) -> list[str]:
        """What has never happened: a fault that never happens tests nothing."""
        return [name for name, count in asdict(self).items() if not count]


class Fate(NamedTuple):
    """What is to become of one request."""

    lost: bool
    reply_lost: bool
    request_delay_s: float
    reply_delay_s: float
    duplicated: bool
    first_answers: bool
    late_s: float | None


def fate_of(rng: random.Random, faults: Faults) -> Fate:
    """Throw the dice: ten of them, whatever they show."""
    lost, reply_lost, delayed, reply_delayed, duplicated, first, late, *lengths = (
        rng.random() for _ in range(10)
    )
    delay_s, reply_delay_s = (each * faults.delay_max_s for each in lengths[:2])
    is_lost = lost < faults.lost_requests
    late_share = faults.late_of_lost if is_lost else faults.late
    return Fate(
        lost=is_lost,
        reply_lost=reply_lost < faults.lost_replies,
        request_delay_s=delay_s if delayed < faults.delayed else 0.0,
        reply_delay_s=reply_delay_s if reply_delayed < faults.delayed else 0.0,
        duplicated=duplicated < faults.duplicated,
        first_answers=first < faults.first_answers,
        late_s=lengths[2] * faults.late_max_s if late < late_share else None,
    )


# -- messages -------------------------------------------------------------------------------------

_SIZED = b"$=!"  # a length, and so many bytes
_LISTS = {ord("*"): 1, ord("~"): 1, ord(">"): 1, ord("%"): 2, ord("|"): 2}


class Cutter:
    """Cuts a stream of RESP into whole messages, whatever pieces it comes in."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._begin()

    def _begin(self) -> None:
        self._at = 0  # everything before has been looked at
        self._open = 1  # values that the message still lacks

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that these bytes complete, as they came."""
        self._data += data
        messages = []
        while self._is_whole():
            messages.append(bytes(self._data[: self._at]))
            del self._data[: self._at]
            self._begin()
        return messages

    def _is_whole(self) -> bool:
        while self._open:
            end = self._data.find(b"\r\n", self._at)
            if end < 0:
                return False
            kind, next_at = self._data[self._at], end + 2
            if kind in _SIZED:
                size = int(self._data[self._at + 1 : end])
                next_at += size + 2 if size >= 0 else 0
                if next_at > len(self._data):
                    return False
            elif kind in _LISTS:
                self._open += max(0, int(self._data[self._at + 1 : end])) * _LISTS[kind]
                self._open += kind == ord("|")  # attributes come before the value they are about
            self._at, self._open = next_at, self._open - 1
        return True


def command_of(request: bytes) -> bytes:
    """The first word of a request, in capitals."""
    return request.split(b"\r\n", 3)[2].upper()


# -- the proxy ------------------------------------------------------------------------------------


class LossyProxy:
    """Listens on its own port, and passes messages to and from `target_port`, or does not.

    `faults` may be changed at any time, for the requests that come from then on.
    """

    def __init__(self, port: Port, target_port: int, seed: object, faults: Faults) -> None:
        self.port = port.number
        self.target_port = target_port
        self.faults = faults
        self.counts = Counts()
        self.late_due = 0  # copies that are still under way
        self.rng = random.Random(f"{seed}")
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="lossy proxy")
        self._thread.start()
        assert self._listening.wait(_START_S), "the proxy does not listen"

    @property
    def url(self) -> str:
        """For Clerk."""
        return f"redis://{HOST}:{self.port}"

    def heal(self) -> None:
        """No more faults. (What is late already comes nevertheless: see `late_due`.)"""
        self.faults = NO_FAULTS

    def close(self) -> None:
        """End everything, the thread included."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(_START_S)
        assert not self._thread.is_alive(), "the proxy hangs"

    # -- in the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, HOST, self.port, reuse_address=True)
        self._listening.set()
        await self._closing.wait()
        server.close()
        await asyncio.sleep(0)  # in which who has just been let in gets a task
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # in which the connections are really closed

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._spawn(self._pass(reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = _Peer(reader, writer)
        node = await dial(self.target_port)
        if node is None:
            client.reset()
            return
        await _Connection(self, client, node).run()

    def send_late(self, request: bytes, delay_s: float, gone: asyncio.Event | None) -> None:
        """One more copy on a connection of its own, so much later, or so much after its client has
        `gone`."""
        self.late_due += 1
        self._spawn(self._send_late(request, delay_s, gone))

    async def _send_late(self, request: bytes, delay_s: float, gone: asyncio.Event | None) -> None:
        try:
            if gone is not None:
                await gone.wait()
            await asyncio.sleep(delay_s)
            if await ask_once(self.target_port, request):
                self.counts.late_answered += gone is None
                self.counts.late_lost += gone is not None
        finally:
            self.late_due -= 1


class _Peer:
    """One end: a socket, and the messages on their way to it, each with the time when it is due."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self._now_s = asyncio.get_running_loop().time
        self._cutter = Cutter()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def read(self) -> list[bytes] | None:
        """The next messages; None at the end."""
        try:
            data = await self._reader.read(_CHUNK_BYTES)
        except OSError:
            return None
        return self._cutter.feed(data) if data else None

    def send(self, message: bytes, delay_s: float = 0.0) -> None:
        """Deliver it later, behind what is under way already. Empty: the end."""
        self._due.put_nowait((self._now_s() + delay_s, message))

    async def deliver(self) -> None:
        """Until the end has been delivered, or this peer does not listen any more."""
        with contextlib.suppress(OSError):
            while True:
                due_s, message = await self._due.get()
                if (left_s := due_s - self._now_s()) > 0:
                    await asyncio.sleep(left_s)
                if not message:
                    return
                self._writer.write(message)
                await self._writer.drain()

    def reset(self) -> None:
        """Hang up with a RST."""
        sock = self._writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
        self._writer.transport.abort()

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


async def dial(port: int) -> _Peer | None:
    """A connection to the node; None if there is nobody."""
    try:
        return _Peer(*await asyncio.open_connection(HOST, port))
    except OSError:
        return None


async def ask_once(port: int, request: bytes) -> bool:
    """Send this on a connection of its own; whether an answer came."""
    peer = await dial(port)
    if peer is None:
        return False
    delivery = asyncio.ensure_future(peer.deliver())
    try:
        peer.send(request)
        return bool(await peer.read())
    finally:
        delivery.cancel()
        peer.close()


class _Reply(NamedTuple):
    """What becomes of the next reply of the node's, decided when its request came."""

    verdict: Verdict
    delay_s: float = 0.0
    request: bytes = b""
    late_s: float | None = None


class _Connection:
    def __init__(self, proxy: LossyProxy, client: _Peer, node: _Peer) -> None:
        self._proxy, self._client, self._node = proxy, client, node
        self._replies: deque[_Reply] = deque()  # to come, one for each request at the node
        self._is_silent = False  # for what comes from now on
        self._gone = asyncio.Event()  # the client has hung up

    async def run(self) -> None:
        """Until one side hangs up and the other has been given everything before that."""
        to_node = asyncio.ensure_future(self._node.deliver())
        to_client = asyncio.ensure_future(self._client.deliver())
        reads = [asyncio.ensure_future(work) for work in (self._requests(), self._answers())]
        try:
            # A request that was delayed reaches the node although its client has gone.
            await asyncio.wait([to_node, to_client], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (to_node, to_client, *reads):
                task.cancel()
            self._gone.set()
            self._client.close()
            self._node.close()

    async def _requests(self) -> None:
        try:
            while (messages := await self._client.read()) is not None:
                for message in messages:
                    self._request(message)
        finally:
            self._gone.set()
            self._node.send(b"")

    async def _answers(self) -> None:
        try:
            while (messages := await self._node.read()) is not None:
                for message in messages:
                    self._answer(message)
        finally:
            self._client.send(b"")

    def _request(self, message: bytes) -> None:
        if command_of(message) in SPARED:
            self._expect(_Reply(Verdict.DELIVER))
            self._node.send(message)
            return
        proxy = self._proxy
        proxy.counts.requests += 1
        fate = fate_of(proxy.rng, proxy.faults)
        if fate.lost:
            self._lose(message, fate)
        else:
            self._send(message, fate)

    def _lose(self, message: bytes, fate: Fate) -> None:
        self._proxy.counts.lost_requests += 1
        self._is_silent = True
        if fate.late_s is not None:
            self._proxy.send_late(message, fate.late_s, self._gone)

    def _send(self, message: bytes, fate: Fate) -> None:
        counts = self._proxy.counts
        counts.delayed_requests += fate.request_delay_s > 0
        self._node.send(message, fate.request_delay_s)
        verdict = Verdict.LOSE if fate.reply_lost else Verdict.DELIVER
        reply = _Reply(verdict, fate.reply_delay_s, message, fate.late_s)
        if not fate.duplicated:
            self._expect(reply)
            return
        self._node.send(message)
        copies = [reply, _Reply(Verdict.SPARE)]
        for each in copies if fate.first_answers else copies[::-1]:
            self._expect(each)
        counts.duplicated += 1
        counts.first_answers += fate.first_answers
        counts.second_answers += not fate.first_answers

    def _expect(self, reply: _Reply) -> None:
        if self._is_silent and reply.verdict is not Verdict.SPARE:
            reply = reply._replace(verdict=Verdict.SILENCE)
        self._is_silent = self._is_silent or reply.verdict is Verdict.LOSE
        self._replies.append(reply)

    def _answer(self, message: bytes) -> None:
        if message[:1] == b">":  # pushed: no answer to anything
            self._client.send(message)
            return
        counts = self._proxy.counts
        verdict, delay_s, request, late_s = self._replies.popleft()
        if late_s is not None:
            self._proxy.send_late(request, late_s, None)
        if verdict is Verdict.DELIVER:
            counts.delayed_replies += delay_s > 0
            self._client.send(message, delay_s)
        counts.lost_replies += verdict is Verdict.LOSE
