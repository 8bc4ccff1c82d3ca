"""A node with smaller bounds, so that a test can reach them, or with a wall clock that steps.

    bounded.py '{"WAITERS_MAX": 3}' FILE serve ...     the rest as on the command line

FILE holds the seconds by which this process's wall clock is off, and may be written while it runs;
if there is none, it is right. `Bounded` is a launcher of such nodes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .processes import Process


class Bounded:
    """Starts nodes whose `limits` are these; `wall_clock_off` is FILE."""

    def __init__(self, wall_clock_off: Path = Path("/nonexistent"), **bounds: int) -> None:
        self._arguments = [json.dumps(bounds), str(wall_clock_off)]

    def start(self, arguments: Sequence[str], log: Path) -> Process:
        """A new interpreter that runs this file."""
        from .processes import die_with_parent, environment  # (not when it is run as a script)

        with log.open("ab") as stderr:
            return subprocess.Popen(
                [sys.executable, __file__, *self._arguments, *arguments],
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                env=environment(),
                cwd=log.parent,
                preexec_fn=die_with_parent,
            )


def step_wall_clock(file: Path) -> None:
    """Have every look at the wall clock be off by what stands in `file`."""
    real_ns = time.time_ns

    def off_ns() -> int:
        off_s = float(file.read_text() or 0) if file.exists() else 0.0
        return real_ns() + int(off_s * 1e9)

    time.time_ns = off_ns
    time.time = lambda: off_ns() / 1e9


def run(bounds: dict[str, int], file: Path, arguments: list[str]) -> int:
    """Change what is to be changed, and be a node."""
    step_wall_clock(file)
    from holdfast.server.core import limits

    for name, bound in bounds.items():
        assert isinstance(getattr(limits, name), int)
        setattr(limits, name, bound)
    from holdfast.server.__main__ import main

    return main(arguments)


if __name__ == "__main__":
    sys.exit(run(json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
