"""The threads of a simulated client, as generators, and the connections at which they wait.

A task yields how long it waits, in microseconds of its machine's clock (None: for ever), and is
sent what came first: the end of that time (``TIME``) or an event of the connection it waits at.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from .network import End

if TYPE_CHECKING:
    from .client import SimClient

Steps = Generator["int | None", Any, Any]


class _Event:
    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


TIME = _Event("time is up")
CLOSED = _Event("connection closed")


class Interrupted(Exception):
    """The caller of a request has lost patience."""


class Task:
    """A thread of a client."""

    __slots__ = ("_client", "_steps", "_waits", "is_over")

    def __init__(self, client: SimClient, steps: Steps) -> None:
        self._client = client
        self._steps = steps
        self._waits = 0
        self.is_over = False

    def wake(self, event: Any) -> None:
        """What it waits for has come, or something else."""
        if not self.is_over:
            self._on_event(self._waits, event)

    def _on_event(self, waits: int, event: Any) -> None:
        client = self._client
        if client.paused and client.alive:
            client.deferred.append((self, waits, event))
            return
        if waits != self._waits or self.is_over or not client.alive:
            return
        self._waits += 1
        client.running = self
        try:
            delay_us = self._steps.send(event)
        except StopIteration:
            self.end()
            return
        if delay_us is not None:
            true_us = client.clock.true_us(max(delay_us, 0))
            client.scheduler.after(true_us, self._on_event, self._waits, TIME)

    def start(self) -> None:
        """Begin now."""
        self._client.tasks[self] = None
        self._on_event(0, None)

    def end(self) -> None:
        """It is over, or its process is."""
        self.is_over = True
        self._client.tasks.pop(self, None)
        self._steps.close()


class Wire:
    """A client's connection."""

    __slots__ = ("closed", "end", "task")

    def __init__(self, task: Task | None) -> None:
        self.task: Task | None = task  # who waits at it; None: it is idle
        self.end: End | None = None
        self.closed = False

    def on_data(self, end: End, data: Any) -> None:
        """A reply; one that nobody waits for makes the connection useless."""
        if self.task is None:
            self.closed = True
        else:
            self.task.wake((self, data))

    def on_closed(self, end: End, why: str) -> None:
        """The node has hung up."""
        self.closed = True
        if self.task is not None:
            self.task.wake((self, CLOSED))

    def on_late(self, end: End) -> None:
        """This side had closed it."""
