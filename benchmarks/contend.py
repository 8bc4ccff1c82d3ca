"""The contenders of one process: each takes the one lock, holds it a moment, and gives it back.

A contender is a thread with a connection (or a client library) of its own. `contention.py` runs
this in processes patched by gevent, where threads are greenlets: a hundred threads would fight for
the interpreter and show that as latency. Every kind of lock is driven by the same loop, and timed
as the program that uses it sees it: *released* is read just before the release is begun, *granted*
just after the call that took the lock has returned.
"""

import mmap
import os
import random
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import redis
import redis.lock

from holdfast.compat import Clerk

from .children import Message, serve, sleep_until_ns, wait_for_go
from .gauges import Wire
from .load import HOST, LoadError

LEASE_MS = 30_000
WAIT_MS = 10_000
REPLICATED_MAX_MS = 1_000
LOOK_S = 0.001  # how often to look for a grant in another process
SPREAD_S = 0.1  # over which the clients come, at random
TURN = struct.Struct("=qqq")  # the number of the latest grant, its time, and that since the last


class Contender(Protocol):
    """One client's way to the lock."""

    def acquire(self) -> bool:
        """Wait for the lock; False if the wait ran out."""

    def release(self) -> None:
        """Give it back; raises an exception if it was not held."""

    def close(self) -> None:
        """Hang up."""


class Raw:
    """Holdfast's commands over a bare socket."""

    def __init__(self, port: int, name: str) -> None:
        self._wire = Wire(port, WAIT_MS / 1000 * 2)
        self._name = name.encode()
        self._client = os.urandom(6).hex().encode()
        self._request = 0
        self._token = b""

    def _next_id(self) -> bytes:
        self._request += 1
        return b"%s-%d" % (self._client, self._request)

    def acquire(self) -> bool:
        times = (b"PX", b"%d" % LEASE_MS, b"WAIT", b"%d" % WAIT_MS)
        self._token = self._wire.ask(b"LOCK", self._name, self._next_id(), *times)[1:]
        return self._token != b"0"

    def release(self) -> None:
        self._wire.expect(b":1", b"UNLOCK", self._name, self._next_id(), b"TOKEN", self._token)

    def close(self) -> None:
        self._wire.close()


class Clerks:
    """Holdfast's own client. It renews at once whatever it had to wait for."""

    def __init__(self, ports: list[int], name: str) -> None:
        self._clerk = Clerk(*(f"redis://{HOST}:{port}" for port in ports))
        self._lock = self._clerk.lock(name, lease_ms=LEASE_MS, wait_ms=WAIT_MS)

    def acquire(self) -> bool:
        return self._lock.acquire()

    def release(self) -> None:
        self._lock.release()

    def close(self) -> None:
        self._clerk.close()


class ReplicatedLock(redis.lock.Lock):
    """redis-py's lock with what it leaves out: it waits until a replica has each change."""

    def do_acquire(self, token: str) -> bool:
        taken: bool = super().do_acquire(token)
        if taken:
            self._wait()
        return taken

    def do_release(self, expected_token: str) -> None:
        super().do_release(expected_token)
        self._wait()

    def _wait(self) -> None:
        # On the connection of the change: nobody else uses this client, so it has but one.
        if self.redis.wait(1, REPLICATED_MAX_MS) != 1:
            raise LoadError("the replica did not acknowledge")


class Polling:
    """redis-py's lock, which asks again after each sleep."""

    def __init__(self, port: int, name: str, sleep_s: float, is_replicated: bool) -> None:
        self._redis: Any = redis.Redis(host=HOST, port=port)
        kind = ReplicatedLock if is_replicated else redis.lock.Lock
        self._lock = kind(
            self._redis,
            name,
            timeout=LEASE_MS / 1000,
            sleep=sleep_s,
            blocking_timeout=WAIT_MS / 1000,
        )

    def acquire(self) -> bool:
        return self._lock.acquire()

    def release(self) -> None:
        self._lock.release()

    def close(self) -> None:
        self._redis.close()


def contender_of(job: Message) -> Contender:
    """A contender of the kind that the job asks for, connected on first use at the latest."""
    ports, name = job["ports"], job["name"]
    if job["kind"] == "raw":
        return Raw(ports[0], name)
    if job["kind"] == "clerk":
        return Clerks(ports, name)
    return Polling(ports[0], name, job["sleep_s"], len(ports) > 1)


class Turns:
    """The latest grant, in memory that all processes of a run share.

    Only who holds the lock writes, so the lock under test is also what protects this.
    """

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), TURN.size)
        self._changed = threading.Condition()

    def _read(self) -> tuple[int, int, int]:
        number, granted_ns, since_ns = TURN.unpack(self._memory[:])
        return number, granted_ns, since_ns

    def count(self, granted_ns: int) -> int:
        """One more grant; its number."""
        with self._changed:
            number, before_ns, _ = self._read()
            self._memory[:] = TURN.pack(number + 1, granted_ns, granted_ns - before_ns)
            self._changed.notify_all()
        return number + 1

    def wait_for_another(self, number: int, until_ns: int) -> float:
        """Return once there was a later grant than that; the seconds between the last two."""
        with self._changed:
            while self._read()[0] == number and time.monotonic_ns() < until_ns:
                self._changed.wait(LOOK_S)
            return self._read()[2] / 1e9

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()


def contend(client: int, contender: Contender, job: Message, go: Message, turns: Turns) -> Message:
    """One client, from start to end. It ends without the lock; in the end nobody holds it long.

    Pollers that come back whenever somebody is granted soon all ask at the same moments, since
    each takes over the step of the one who was granted. So a yielding client comes back a random
    while later, within the time that the last hand-over took. Of two, the other has to be waiting
    when the lock is given back, or there is no hand-over: it comes back at once.
    """
    now_ns, hold_s, until_ns = time.monotonic_ns, job["hold_ms"] / 1000, go["until_ns"]
    grants: list[tuple[int, int, int, int]] = []
    ran_out_count = 0
    dice = random.Random(client)
    sleep_until_ns(go["from_ns"] + round(SPREAD_S * 1e9 * dice.random()))
    while (began_ns := now_ns()) < until_ns:
        if not contender.acquire():
            ran_out_count += 1
            continue
        granted_ns = now_ns()
        number = turns.count(granted_ns)
        if granted_ns < until_ns:
            time.sleep(hold_s)
        released_ns = now_ns()
        contender.release()
        grants.append((client, began_ns, granted_ns, released_ns))
        if job["is_yielding"]:
            since_s = turns.wait_for_another(number, until_ns)
            if job["contenders_count"] > 2:
                time.sleep(since_s * dice.random())
    return {"grants": grants, "ran_out_count": ran_out_count}


def work(job: Message) -> Message:
    """All contenders of this process at once."""
    turns = Turns(Path(job["turns"]))
    clients: list[int] = job["clients"]
    contenders = [contender_of(job) for _ in clients]
    try:
        go = wait_for_go()
        with ThreadPoolExecutor(len(clients)) as pool:
            pairs = zip(clients, contenders, strict=True)
            futures = [pool.submit(contend, *pair, job, go, turns) for pair in pairs]
        rows = [future.result() for future in futures]
    finally:
        for contender in contenders:
            contender.close()
        turns.close()
    return {
        "grants": [grant for row in rows for grant in row["grants"]],
        "ran_out_count": sum(row["ran_out_count"] for row in rows),
    }


if __name__ == "__main__":
    sys.exit(serve(work))
