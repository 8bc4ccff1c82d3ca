"""The backlog: the recent entries by offset, encoded, for a backup that is catching up.

It is kept from the cut of a snapshot until everything since has been sent.

It holds whole batches (all entries of one loop turn of the primary), and answers one question: can
I serve from offset n on? The oldest batches go when the bound in bytes is reached.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

BATCH_BYTES = 300
"""A batch without its payload: what a turn with one entry is mostly made of."""


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
    """A run of batches without gaps, bounded in bytes."""

    __slots__ = ("_batches", "_bytes_max", "_dropped", "size_bytes")

    def __init__(self, bytes_max: int) -> None:
        self._batches: deque[Batch] = deque()
        self._bytes_max = bytes_max
        self._dropped = 0  # batches that have left, so that a position stays valid
        self.size_bytes = 0

    def append(self, batch: Batch) -> None:
        """Take the next batch; the oldest leave beyond the bound."""
        self._batches.append(batch)
        self.size_bytes += len(batch.payload) + BATCH_BYTES
        while self.size_bytes > self._bytes_max:
            self.size_bytes -= len(self._batches.popleft().payload) + BATCH_BYTES
            self._dropped += 1

    def clear(self) -> None:
        """Forget everything; positions go on."""
        self._dropped += len(self._batches)
        self._batches.clear()
        self.size_bytes = 0

    @property
    def end(self) -> int:
        """The position behind the last batch."""
        return self._dropped + len(self._batches)

    def batch_at(self, position: int) -> Batch | None:
        """The batch at a position below ``end``; None if it has left."""
        index = position - self._dropped
        return self._batches[index] if index >= 0 else None

    @property
    def first_offset(self) -> int:
        """Offset of the oldest entry held, 0 if there is none."""
        return self._batches[0].first_offset if self._batches else 0
