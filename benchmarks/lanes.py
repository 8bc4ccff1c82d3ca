"""Leases that run out with somebody waiting: how long after its end is the lock granted?

A *lane* is a thread that takes a lock under a lease and lets it run out, again and again, while a
second connection of its waits for that lock. The lease is counted from just before its request was
sent, which is before the server can have granted it; so a grant that comes earlier than that was
given too early, whatever the way there took. Run by `expiry.py` in a process patched by gevent.
"""

import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import redis
import redis.lock

from .children import Message, serve, sleep_until_ns, wait_for_go
from .gauges import Wire
from .load import HOST, LoadError

LEASE_MS = 60_000  # of who waited
WAIT_MS = 30_000
EVENT = "__keyspace@0__:{name}"  # the channel on which Redis tells of a key


class Lane(Protocol):
    """The holder and the waiter of one kind of lock."""

    def take(self, name: str, lease_ms: int) -> None:
        """The holder's part."""

    def wait(self, name: str) -> None:
        """The waiter's part: return once the lock is its own."""

    def give_back(self, name: str) -> None:
        """The waiter's, too."""


class HoldfastLane:
    """`LOCK ... PX` and `LOCK ... WAIT`."""

    def __init__(self, port: int) -> None:
        self._holder, self._waiter = Wire(port), Wire(port, WAIT_MS / 1000)
        self._client = os.urandom(6).hex().encode()
        self._request = 0

    def _ask(self, wire: Wire, command: bytes, name: str, *options: bytes) -> None:
        self._request += 1
        reqid = b"%s-%d" % (self._client, self._request)
        if wire.ask(command, name.encode(), reqid, *options) == b":0":
            raise LoadError(f"{command!r} {name} was refused")

    def take(self, name: str, lease_ms: int) -> None:
        self._ask(self._holder, b"LOCK", name, b"PX", b"%d" % lease_ms)

    def wait(self, name: str) -> None:
        times = (b"PX", b"%d" % LEASE_MS, b"WAIT", b"%d" % WAIT_MS)
        self._ask(self._waiter, b"LOCK", name, *times)

    def give_back(self, name: str) -> None:
        self._ask(self._waiter, b"UNLOCK", name)


class RedisLane:
    """`SET NX PX`; a subclass waits."""

    def __init__(self, port: int) -> None:
        self._holder = Wire(port)
        self._redis: Any = redis.Redis(host=HOST, port=port)

    def take(self, name: str, lease_ms: int) -> None:
        self._holder.expect(b"+OK", b"SET", name.encode(), b"me", b"NX", b"PX", b"%d" % lease_ms)

    def give_back(self, name: str) -> None:
        self._redis.delete(name)


class PollingLane(RedisLane):
    """redis-py's `Lock`, which sleeps and asks again."""

    def __init__(self, port: int, sleep_s: float) -> None:
        super().__init__(port)
        self._sleep_s = sleep_s

    def wait(self, name: str) -> None:
        lock = redis.lock.Lock(self._redis, name, LEASE_MS / 1000, self._sleep_s)
        lock.acquire(blocking_timeout=WAIT_MS / 1000)


class EventLane(RedisLane):
    """Redis tells when it has removed the key (`notify-keyspace-events Kx`): then `SET NX PX`."""

    def wait(self, name: str) -> None:
        with self._redis.pubsub(ignore_subscribe_messages=True) as events:
            events.subscribe(EVENT.format(name=name))
            until_s = time.monotonic() + WAIT_MS / 1000
            while not events.get_message(timeout=1.0):
                if time.monotonic() > until_s:
                    raise LoadError(f"no event told that {name} has expired")
        if not self._redis.set(name, "me", nx=True, px=LEASE_MS):
            raise LoadError(f"{name} was there again")


def lane_of(job: Message) -> Lane:
    """A lane of the kind that the job asks for."""
    if job["kind"] == "holdfast":
        return HoldfastLane(job["port"])
    if job["kind"] == "events":
        return EventLane(job["port"])
    return PollingLane(job["port"], job["sleep_s"])


def run_lane(index: int, lane: Lane, job: Message, go: Message) -> list[tuple[int, int]]:
    """For each lease its length in milliseconds, and how late the waiter was granted in ns."""
    dice = random.Random(index)
    shortest_ms, longest_ms = job["lease_ms"]
    lateness: list[tuple[int, int]] = []
    # Not all at once: the lanes' first leases begin spread over the longest one.
    sleep_until_ns(go["from_ns"] + round(longest_ms * 1e6 * dice.random()))
    while time.monotonic_ns() < go["until_ns"]:
        name = f"lease:{job['name']}:{index}:{len(lateness)}"
        lease_ms = dice.randint(shortest_ms, longest_ms)
        sent_ns = time.monotonic_ns()
        lane.take(name, lease_ms)
        lane.wait(name)
        lateness.append((lease_ms, time.monotonic_ns() - sent_ns - lease_ms * 1_000_000))
        lane.give_back(name)
    return lateness


def work(job: Message) -> Message:
    """All lanes at once."""
    lanes = [lane_of(job) for _ in range(job["lanes"])]
    go = wait_for_go()
    with ThreadPoolExecutor(len(lanes)) as pool:
        futures = [pool.submit(run_lane, i, lane, job, go) for i, lane in enumerate(lanes)]
    return {"lateness": [row for future in futures for row in future.result()]}


if __name__ == "__main__":
    sys.exit(serve(work))
