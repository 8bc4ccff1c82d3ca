"""What the node counts for INFO, SLOWLOG and the rest. None of it is replicated state."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from .core import limits


class SlowRequest(NamedTuple):
    """One line of SLOWLOG."""

    number: int
    at_s: int
    microseconds: int
    argv: list[bytes]
    address: str
    client_name: bytes


_ARGUMENTS_SHOWN = 32
_BYTES_SHOWN = 128


def trimmed(argv: list[bytes]) -> list[bytes]:
    """A request as SLOWLOG keeps it: what is cut off is counted in words, as in Redis."""
    more = len(argv) - _ARGUMENTS_SHOWN
    kept = argv if more <= 0 else argv[: _ARGUMENTS_SHOWN - 1]
    shown = [
        argument
        if len(argument) <= _BYTES_SHOWN
        else b"%b... (%d more bytes)" % (argument[:_BYTES_SHOWN], len(argument) - _BYTES_SHOWN)
        for argument in kept
    ]
    return shown if more <= 0 else [*shown, b"... (%d more arguments)" % (more + 1)]


class Stats:
    """Counters since the start or the last CONFIG RESETSTAT."""

    def __init__(self) -> None:
        self.slow_requests: deque[SlowRequest] = deque(maxlen=limits.SLOWLOG_MAX)
        self.slow_count = 0
        self._samples: deque[tuple[int, int, int, int]] = deque(maxlen=16)
        self.reset()

    def reset(self) -> None:
        """CONFIG RESETSTAT."""
        self.connections_received = 0
        self.connections_rejected = 0
        self.protocol_errors = 0
        self.output_overflows = 0
        self.errors: dict[str, int] = {}
        self.closed_bytes_in = 0  # of connections that have ended
        self.closed_bytes_out = 0
        self._samples.clear()

    def count_error(self, reply: bytes) -> None:
        """Count an error reply by its code word."""
        code = reply[1 : reply.find(b" ")].decode("latin-1")
        self.errors[code] = self.errors.get(code, 0) + 1

    def sample(self, now_ms: int, commands: int, bytes_in: int, bytes_out: int) -> None:
        """Note the totals, about every 100 ms: the instantaneous rates are taken from these."""
        self._samples.append((now_ms, commands, bytes_in, bytes_out))

    def rates(self) -> tuple[float, float, float]:
        """Commands, bytes in and bytes out a second, over the last second and a half."""
        if len(self._samples) < 2:
            return 0.0, 0.0, 0.0
        first, last = self._samples[0], self._samples[-1]
        seconds = max(last[0] - first[0], 1) / 1000
        commands, bytes_in, bytes_out = (
            (last[column] - first[column]) / seconds for column in (1, 2, 3)
        )
        return commands, bytes_in, bytes_out
