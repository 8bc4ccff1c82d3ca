"""Takes very many locks in a short time: requests in batches, several of them under way.

Names and owners have the same lengths on both sides. A Holdfast lock is owned by its request id;
these are of a thousand clients (`@client:n`), so that remembering replies costs next to nothing.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator

from .load import LoadError, connect

BATCH = 500
BATCHES_UNDER_WAY_MAX = 4
CLIENTS_COUNT = 1_000
REPLY_MAX_S = 30.0

LeaseMs = Callable[[int], int]  # of lock number i; asked when its batch is made


class Filler:
    """A connection that takes locks `<prefix>:<number>` on one server."""

    def __init__(self, port: int, is_holdfast: bool) -> None:
        self._is_holdfast = is_holdfast
        self._run = os.urandom(4).hex().encode()
        self._taken = 0  # with all prefixes: numbers of a client's requests must rise
        self._sock = connect(port)
        self._sock.settimeout(REPLY_MAX_S)
        self._replies = self._sock.makefile("rb")

    def fill(self, prefix: bytes, numbers: range, lease_ms: LeaseMs) -> float:
        """Take these locks, all of which must be free; the seconds that it took."""
        began_s = time.monotonic()
        under_way: deque[int] = deque()
        for batch in batches(numbers):
            if len(under_way) == BATCHES_UNDER_WAY_MAX:
                self._check(under_way.popleft())
            self._sock.sendall(b"".join(self._requests(prefix, batch, lease_ms)))
            under_way.append(len(batch))
        for count in under_way:
            self._check(count)
        return time.monotonic() - began_s

    def _requests(self, prefix: bytes, batch: range, lease_ms: LeaseMs) -> Iterator[bytes]:
        for index in batch:
            name = b"%b:%09d" % (prefix, index)
            client, n = self._taken % CLIENTS_COUNT, self._taken // CLIENTS_COUNT + 1
            self._taken += 1
            owner = b"@%b-%03d:%07d" % (self._run, client, 1_000_000 + n)
            lease = b"%d" % lease_ms(index)
            head = b"*5\r\n$4\r\nLOCK" if self._is_holdfast else b"*5\r\n$3\r\nSET"
            yield b"%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$2\r\nPX\r\n$%d\r\n%b\r\n" % (
                head, len(name), name, len(owner), owner, len(lease), lease,
            )  # fmt: skip

    def _check(self, count: int) -> None:
        """Read so many replies, each of which must be a grant."""
        for _ in range(count):
            reply = self._replies.readline()
            is_granted = reply[:1] == b":" and reply != b":0\r\n" and reply[-1:] == b"\n"
            if not (is_granted if self._is_holdfast else reply == b"+OK\r\n"):
                raise LoadError(f"wrong reply {reply[:200]!r} to a {self}")

    def __repr__(self) -> str:
        return "LOCK" if self._is_holdfast else "SET"

    def close(self) -> None:
        """Hang up."""
        self._replies.close()
        self._sock.close()


def batches(numbers: range) -> Iterator[range]:
    """The numbers, a few at a time."""
    return (numbers[start : start + BATCH] for start in range(0, len(numbers), BATCH))
