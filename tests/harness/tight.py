"""A node with tighter bounds than the product's, so that a test reaches them soon.

    tight.py NAME=NUMBER,... serve ...      names of core/limits.py; the rest as on the command line

Everything else about the node is the product's. What its bounds are in the product is asserted
where they stand (core/limits.py); here it is shown what happens at one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .processes import Process


class Tight:
    """A launcher of such nodes: `Tight(BLOCKED_MAX_MS=500)`."""

    def __init__(self, **bounds: int) -> None:
        self._bounds = ",".join(f"{name}={number}" for name, number in bounds.items())

    def start(self, arguments: Sequence[str], log: Path) -> Process:
        """A new interpreter that runs this file."""
        from .processes import die_with_parent, environment  # (not when it is run as a script)

        with log.open("ab") as stderr:
            return subprocess.Popen(
                [sys.executable, __file__, self._bounds, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=environment(),
                cwd=log.parent,
                preexec_fn=die_with_parent,
            )


def tighten(bounds: str) -> None:
    """Before anything is imported that derives something from a bound."""
    from holdfast.server.core import limits

    assert "holdfast.server.core.replica" not in sys.modules
    for name, _, number in (each.partition("=") for each in bounds.split(",")):
        assert int(number) < getattr(limits, name), f"{name} is no tighter"
        setattr(limits, name, int(number))


def run(bounds: str, arguments: list[str]) -> int:
    """Tighten, and serve."""
    tighten(bounds)
    from holdfast.server.__main__ import main

    return main(arguments)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:]))
