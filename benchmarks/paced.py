"""Requests at a steady pace, and how long each had to wait: an open loop.

A *stream* is a connection that sends one request at each beat, whether or not the one before has
been answered. So a server that stands still for 50 ms is seen by 50 requests of a beat of 1 ms,
with waits of 50, 49, ... ms; a client that waits for each answer before it asks again would have
seen it once, and called it rare. Every reply is checked.

What this process itself was late by is told as well: no wait below that means much.
"""

import gc
import itertools
import os
import re
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator

from .children import Message, listen, serve, wait_for_go
from .load import RECV_BYTES_MIN, SILENCE_MAX_S, LoadError, connect, encode

LEASE_MS = b"60000"
LATE_NS = 1_000_000  # what this process is late by is told from here on

Check = Callable[[bytes], object]  # truthy for the right reply

GRANTED = re.compile(rb":[1-9][0-9]*").fullmatch
RELEASED = re.compile(rb":1(?:\r\n:1)?").fullmatch  # with the reply to WAIT, if there is one
SET = re.compile(rb"\+OK(?:\r\n:1)?").fullmatch
PONG = re.compile(rb"\+PONG").fullmatch


def pings(_name: bytes) -> Iterator[tuple[bytes, Check]]:
    """PING, for ever."""
    return itertools.repeat((encode(b"PING"), PONG))


def locks(name: bytes) -> Iterator[tuple[bytes, Check]]:
    """LOCK and UNLOCK in turns."""
    client = os.urandom(6).hex().encode()
    for n in itertools.count():
        yield encode(b"LOCK", name, b"%s-%d-l" % (client, n), b"PX", LEASE_MS), GRANTED
        yield encode(b"UNLOCK", name, b"%s-%d-u" % (client, n)), RELEASED


def sets(name: bytes) -> Iterator[tuple[bytes, Check]]:
    """The same on Redis."""
    for _ in itertools.count():
        yield encode(b"SET", name, b"owner", b"NX", b"PX", LEASE_MS), SET
        yield encode(b"DEL", name), RELEASED


def replicated_sets(name: bytes) -> Iterator[tuple[bytes, Check]]:
    """The same, each with a WAIT behind it: only both promise what one reply of Holdfast does."""
    wait = encode(b"WAIT", b"1", b"10000")
    return ((request + wait, check) for request, check in sets(name))


KINDS = {"PING": pings, "LOCK": locks, "SET": sets, "SET, WAIT": replicated_sets}


class Stream:
    """One connection and its requests."""

    def __init__(self, port: int, kind: str, name: str, interval_us: int) -> None:
        self.kind = kind
        self.waits: list[tuple[int, int]] = []  # (sent, wait), nanoseconds
        self.due_ns = 0
        self._interval_ns = interval_us * 1000
        self._lines = 2 if kind == "SET, WAIT" else 1  # of the replies to a request
        self._requests = KINDS[kind](name.encode())
        self._unanswered: deque[tuple[int, Check]] = deque()
        self._received = b""
        self.sock = connect(port)
        self.sock.setblocking(False)

    def beat(self, now_ns: int) -> None:
        """Send what is due. Beats that were missed are left out."""
        late_ns = now_ns - self.due_ns
        request, check = next(self._requests)
        self._unanswered.append((now_ns, check))
        if self.sock.send(request) != len(request):
            raise LoadError("the server does not read what it is sent")
        self.due_ns += self._interval_ns * (1 + late_ns // self._interval_ns)

    def receive(self) -> None:
        """Count the replies that have come."""
        piece = self.sock.recv(RECV_BYTES_MIN)
        if not piece:
            raise LoadError("the server closed a connection")
        now_ns = time.monotonic_ns()
        *lines, self._received = (self._received + piece).split(b"\r\n")
        while len(lines) >= self._lines:
            reply = b"\r\n".join(lines[: self._lines])
            del lines[: self._lines]
            sent_ns, check = self._unanswered.popleft()
            if not check(reply):
                raise LoadError(f"wrong reply {reply[:200]!r} to {self.kind}")
            self.waits.append((sent_ns, now_ns - sent_ns))
        self._received = b"\r\n".join([*lines, self._received])

    @property
    def is_idle(self) -> bool:
        """Whether all that was sent has been answered."""
        return not self._unanswered


def drive(streams: list[Stream], interval_us: int) -> list[tuple[int, int]]:
    """Keep the beat until the parent says something; when and by how much it was missed."""
    start_ns = time.monotonic_ns()
    for index, stream in enumerate(streams):  # evenly over the interval
        stream.due_ns = start_ns + interval_us * 1000 * index // len(streams)
    sockets = {stream.sock.fileno(): stream for stream in streams}
    watched = [*sockets, sys.stdin.fileno()]
    late: list[tuple[int, int]] = []
    while True:
        next_ns = min(stream.due_ns for stream in streams)
        left_s = max(0, next_ns - time.monotonic_ns()) / 1e9
        readable, _, _ = select.select(watched, [], [], left_s)
        now_ns = time.monotonic_ns()
        if now_ns - next_ns > LATE_NS:
            late.append((now_ns, now_ns - next_ns))
        for stream in streams:
            if stream.due_ns <= now_ns:
                stream.beat(now_ns)
        for descriptor in readable:
            if descriptor not in sockets:
                return late
            sockets[descriptor].receive()


def finish(streams: list[Stream]) -> None:
    """Wait for the last replies."""
    until_s = time.monotonic() + SILENCE_MAX_S
    while busy := [stream for stream in streams if not stream.is_idle]:
        if time.monotonic() > until_s:
            raise LoadError(f"no reply for {SILENCE_MAX_S} s")
        readable, _, _ = select.select([stream.sock for stream in busy], [], [], 0.1)
        for stream in busy:
            if stream.sock in readable:
                stream.receive()


def work(job: Message) -> Message:
    """All streams, from the parent's go to its next word."""
    interval_us = job["interval_us"]
    run = os.urandom(4).hex()  # a run may end with locks that are held
    streams = [
        Stream(job["port"], kind, f"paced:{run}:{index}", interval_us)
        for index, kind in enumerate(job["kinds"])
    ]
    try:
        wait_for_go()
        late = drive(streams, interval_us)
        listen()
        finish(streams)
    finally:
        for stream in streams:
            stream.sock.close()
    return {
        "streams": [{"kind": stream.kind, "waits": stream.waits} for stream in streams],
        "late": late,
    }


if __name__ == "__main__":
    gc.disable()  # a collection would show as a wait
    sys.exit(serve(work))
