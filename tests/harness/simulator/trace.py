"""What happened in a run: for the checkers, for counting, reading, and comparing runs."""

from __future__ import annotations

import zlib
from collections import Counter
from typing import Any

from harness.checkers.history import History

from .scheduler import Scheduler


class Trace:
    """Everything that a run leaves behind.

    ``say`` is for what is rare and tells the story; it is kept as text when ``tells`` is set. All
    of it, and every operation and reply, goes into ``fingerprint``: two runs of one seed are equal
    if these are.
    """

    def __init__(self, scheduler: Scheduler, *, tells: bool) -> None:
        self._scheduler = scheduler
        self.tells = tells
        self.counts: Counter[str] = Counter()
        self.history = History(expiries=[], acks=[])
        self.ends_us: dict[str, int] = {}  # registers that end, none before that instant
        self.problems: list[str] = []
        self.lines: list[str] = []
        self._crc = 0
        self._crc_other = 1

    def count(self, what: str, by: int = 1) -> None:
        """Something that a campaign must have seen."""
        self.counts[what] += by

    def say(self, who: object, *words: Any) -> None:
        """Tell the story."""
        line = f"{self._scheduler.now_us / 1_000_000:10.6f} {who!s:4} {' '.join(map(str, words))}"
        self._take_in(line)
        if self.tells:
            self.lines.append(line)

    def problem(self, text: str) -> None:
        """Something that must not happen."""
        at_s = self._scheduler.now_us / 1_000_000
        self.problems.append(f"at {at_s:.6f} s: {text}")
        self.say("!!!!", text)

    def _take_in(self, text: str) -> None:
        data = text.encode()
        self._crc = zlib.crc32(data, self._crc)
        self._crc_other = zlib.adler32(data, self._crc_other)

    def fingerprint(self) -> str:
        """Equal for two runs that were the same."""
        history = self.history
        for records in (
            history.operations,
            history.registers,
            history.replies,
            history.beliefs,
            history.digests,
        ):
            self._take_in(repr(records))
        self._take_in(repr(sorted(self.counts.items())))
        return f"{self._crc:08x}{self._crc_other:08x}"
