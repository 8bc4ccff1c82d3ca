"""True time, and what happens in it: a heap of calls, and the clocks of machines beside it.

Nothing here, nor in anything that runs on it, looks at a real clock, iterates a set, or rolls dice
other than those that came from the seed: so one seed is one run, in any process.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

PPM = 1_000_000


class Scheduler:
    """True time in microseconds, which no process sees, and the calls that are to come."""

    __slots__ = ("_heap", "_number", "now_us", "stopped")

    def __init__(self) -> None:
        self.now_us = 0
        self.stopped = False
        self._heap: list[tuple[int, int, Callable[..., object], tuple[Any, ...]]] = []
        self._number = 0  # calls of one instant keep their order

    @property
    def events(self) -> int:
        """How many calls there have been, or will be."""
        return self._number

    def at(self, at_us: int, call: Callable[..., object], *arguments: Any) -> None:
        """Have ``call`` made at that instant."""
        self._number += 1
        heappush(self._heap, (at_us, self._number, call, arguments))

    def after(self, delay_us: int, call: Callable[..., object], *arguments: Any) -> None:
        """Have ``call`` made so much later."""
        self._number += 1
        heappush(self._heap, (self.now_us + delay_us, self._number, call, arguments))

    def run(self, until_us: int) -> None:
        """Let time pass, up to that instant or until ``stopped``."""
        heap = self._heap
        while heap and heap[0][0] <= until_us and not self.stopped:
            self.now_us, _, call, arguments = heappop(heap)
            call(*arguments)
        if not self.stopped:
            self.now_us = max(self.now_us, until_us)


class Clock:
    """A machine's CLOCK_BOOTTIME: it goes ``rate_ppm`` too fast, and starts anew with the machine.

    Wall clock time is true time plus an error that may jump.
    """

    __slots__ = ("_rate", "_scheduler", "_start_us", "wall_error_us")

    def __init__(self, scheduler: Scheduler, rate_ppm: int, uptime_us: int) -> None:
        self._scheduler = scheduler
        self._rate = PPM + rate_ppm
        self._start_us = uptime_us
        self.wall_error_us = 0
        self.reboot(uptime_us)

    def reboot(self, uptime_us: int) -> None:
        """The machine starts: from now on the clock goes from ``uptime_us``."""
        self._start_us = uptime_us - self._scheduler.now_us * self._rate // PPM

    def us(self) -> int:
        """CLOCK_BOOTTIME in microseconds."""
        return self._start_us + self._scheduler.now_us * self._rate // PPM

    def ms(self) -> int:
        """CLOCK_BOOTTIME in milliseconds, rounded down as the product does."""
        return (self._start_us + self._scheduler.now_us * self._rate // PPM) // 1_000

    def wall_us(self) -> int:
        """The time of day."""
        return WALL_CLOCK_US + self._scheduler.now_us + self.wall_error_us

    def true_us(self, local_us: int) -> int:
        """How long ``local_us`` of this clock last; never less (a timer is not early)."""
        return local_us * PPM // self._rate + 1

    def true_instant_us(self, local_us: int) -> int:
        """When this clock shows, or showed, ``local_us``; rounded down."""
        return (local_us - self._start_us) * PPM // self._rate


WALL_CLOCK_US = 1_800_000_000_000_000
