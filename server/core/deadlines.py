"""Deadlines: what is due when, in O(log n).

A heap whose items stay in it when what they stood for is over (a lock was released, a waiter was
granted): taking one out of the middle would cost O(n). Whoever takes a due item out looks whether
it still means anything. So that dead items cannot pile up (a lease of a year, taken and given back
ten thousand times a second), the heap is *swept* when it has grown to twice what is alive: its
items move to a new one, a few with each ``add``, and the dead stay behind. Popping a heap's last
item leaves a heap, so the old one remains usable meanwhile, and nobody waits for a sweep.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Generic, TypeVar

Key = TypeVar("Key")

_SWEEP_STEP = 4  # items moved with each that is added: the sweep is over long before the next one
_SWEEP_FLOOR = 1_024  # not worth it below


class Deadlines(Generic[Key]):
    """Keys by the instant at which they are due. Each has a number, which settles ties (the lower
    first), so keys are never compared."""

    __slots__ = ("_alive", "_heap", "_is_live", "_old", "_sweep_at")

    def __init__(self, is_live: Callable[[int, Key], bool], alive: Callable[[], int]) -> None:
        """``is_live`` tells of a number and key whether it still means anything; ``alive`` how
        many do, about."""
        self._heap: list[tuple[int, int, Key]] = []
        self._old: list[tuple[int, int, Key]] = []  # being swept
        self._is_live = is_live
        self._alive = alive
        self._sweep_at = _SWEEP_FLOOR

    def __len__(self) -> int:
        return len(self._heap) + len(self._old)

    def add(self, at_ms: int, number: int, key: Key) -> None:
        """Have ``key`` come up at ``at_ms``."""
        heappush(self._heap, (at_ms, number, key))
        if self._old:
            self._sweep()
        elif len(self._heap) > self._sweep_at:
            if len(self._heap) > 2 * self._alive() + _SWEEP_FLOOR:
                self._old, self._heap = self._heap, []
            self._sweep_at = max(2 * len(self), _SWEEP_FLOOR)

    def _sweep(self) -> None:
        old = self._old
        for _ in range(min(_SWEEP_STEP, len(old))):
            item = old.pop()
            if self._is_live(item[1], item[2]):
                heappush(self._heap, item)
        if not old:
            self._sweep_at = max(2 * len(self._heap), _SWEEP_FLOOR)

    @property
    def first_ms(self) -> int | None:
        """When the next one is due, dead or alive."""
        heap = self._first_heap()
        return heap[0][0] if heap else None

    def pop_due(self, now_ms: int) -> tuple[int, Key] | None:
        """Take out the earliest (number, key) if it is due."""
        heap = self._first_heap()
        if not heap or heap[0][0] > now_ms:
            return None
        _, number, key = heappop(heap)
        return number, key

    def _first_heap(self) -> list[tuple[int, int, Key]]:
        heap, old = self._heap, self._old
        if not old:
            return heap
        return old if not heap or old[0][:2] < heap[0][:2] else heap
