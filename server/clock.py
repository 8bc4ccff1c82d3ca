"""The clocks of the shell. The core never sees them: it gets their readings as arguments."""

from __future__ import annotations

import time


def boot_ms() -> int:
    """Milliseconds since boot, time spent suspended included (CLOCK_BOOTTIME).

    It never steps: setting the wall clock expires nothing.
    """
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def wall_us() -> int:
    """The wall clock in microseconds: where a new history or reign starts its offsets (I7)."""
    return time.time_ns() // 1000
