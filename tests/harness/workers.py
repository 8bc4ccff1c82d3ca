"""Threads that do random operations until they are told to stop."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence

JOIN_S = 40.0


class Workers:
    """Runs `step(rng)` in a loop in one thread for each generator, until `stop`."""

    def __init__(self, steps: Sequence[tuple[random.Random, Callable[[random.Random], None]]]):
        self._stop = threading.Event()
        self.errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=each, daemon=True) for each in steps
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, rng: random.Random, step: Callable[[random.Random], None]) -> None:
        try:
            while not self._stop.is_set():
                step(rng)
        except BaseException as error:
            self.errors.append(error)

    def stop(self) -> None:
        """Have them stop; fails if one hangs or has raised."""
        self._stop.set()
        for thread in self._threads:
            thread.join(JOIN_S)
            assert not thread.is_alive(), "a client hangs"
        if self.errors:
            raise self.errors[0]
