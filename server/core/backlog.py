"""The backlog: the recent entries by offset, encoded, for a backup that is catching up.

It holds whole batches (all entries of one loop turn of the primary) without a gap, and answers one
question: can I serve from this point on? The oldest batches go when the bound in bytes is reached.
A backup that comes back names the point at which it stands (``Point``); if that is on this
history, between two batches that are here, it gets what follows (*partial resync*).
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import NamedTuple

BATCH_BYTES = 300
"""A batch without its payload: what a turn with one entry is mostly made of."""

_DROPPED_AT_A_TIME = 64  # a bound that was lowered is reached in steps, without a pause


class Point(NamedTuple):
    """A place in a history. Two nodes at equal points hold the same state (I5): an offset of one
    epoch was given out by one primary only, and the checksum, chained over everything before, says
    so too."""

    history: str
    epoch: int  # of the last entry
    offset: int
    checksum: int


class Batch(NamedTuple):
    """The entries of one turn, stamped: what is sent, and sent again, as it is.

    ``checksum`` is chained over all entries of the stream and their answers, up to this batch's
    end. ``epoch`` is that in which they were appended, whatever epoch sends them later.
    """

    first_offset: int
    last_offset: int
    epoch: int
    time_ms: int
    checksum: int
    payload: bytes


class Backlog:
    """A run of batches without gaps, bounded in bytes. It begins at a point.

    Positions count batches, from the first that ever was in here.
    """

    __slots__ = ("_batches", "_dropped", "_start", "bytes_max", "size_bytes")

    def __init__(self, bytes_max: int, start: Point) -> None:
        self._batches: deque[Batch] = deque()
        self.bytes_max = bytes_max
        self._start = start  # behind which the first batch stands
        self._dropped = 0  # batches that have left, so that a position stays valid
        self.size_bytes = 0

    def append(self, batch: Batch) -> None:
        """Take the next batch; the oldest leave beyond the bound."""
        self._batches.append(batch)
        self.size_bytes += len(batch.payload) + BATCH_BYTES
        if self.size_bytes > self.bytes_max:
            self._drop()

    def _drop(self) -> None:
        batches = self._batches
        for _ in range(_DROPPED_AT_A_TIME):
            if self.size_bytes <= self.bytes_max:
                return
            _, offset, epoch, _, checksum, payload = batches.popleft()
            self._start = Point(self._start.history, epoch, offset, checksum)
            self.size_bytes -= len(payload) + BATCH_BYTES
            self._dropped += 1

    @property
    def end(self) -> int:
        """The position behind the last batch."""
        return self._dropped + len(self._batches)

    @property
    def start_position(self) -> int:
        """The position of the first batch that is here."""
        return self._dropped

    def bytes_behind(self, position: int) -> int:
        """The size of the batches from there on."""
        behind = islice(self._batches, position - self._dropped, None)
        return sum(len(batch.payload) + BATCH_BYTES for batch in behind)

    def batch_at(self, position: int) -> Batch | None:
        """The batch at a position below ``end``; None if it has left."""
        index = position - self._dropped
        return self._batches[index] if index >= 0 else None

    def position_behind(self, point: Point) -> int | None:
        """Where to go on for a node that stands at ``point``; None if that is not on this history,
        or no longer here."""
        history, epoch, offset, checksum = point
        if history != self._start.history or offset < self._start.offset:
            return None
        if point == self._start:
            return self._dropped
        for back, batch in enumerate(reversed(self._batches)):
            if batch.last_offset <= offset:
                found = (batch.epoch, batch.last_offset, batch.checksum)
                return self.end - back if found == (epoch, offset, checksum) else None
        return None

    @property
    def first_offset(self) -> int:
        """Offset of the oldest entry held, 0 if there is none."""
        return self._batches[0].first_offset if self._batches else 0
