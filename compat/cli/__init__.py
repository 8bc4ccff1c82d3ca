"""The client commands of the `holdfast` program, one module a family.

    prctl.py      what the kernel is asked for
    program.py    what they all share: the parser, durations, exit codes, one-line errors
    servers.py    where the nodes are
    show.py       locks as people and as programs read them
    holding.py    a grant that is renewed, and until when it may be trusted
    taking.py     standing in line, so that a signal can end it
    running.py    a command that runs under a grant: signals, and stopping it
    lock.py       holdfast lock
    once.py       holdfast once
    operators.py  holdfast ls, who, break

`holdfast` imports this when one of these commands is run; `holdfast serve` never loads it.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

# command -> (module, function). Loaded when it is run: other programs use parts of this package.
COMMANDS = {
    "lock": ("lock", "main"),
    "once": ("once", "main"),
    "ls": ("operators", "list_locks"),
    "who": ("operators", "who"),
    "break": ("operators", "break_grant"),
}


def main(argv: Sequence[str]) -> int:
    """Runs a client command with its arguments, `argv`; returns the exit code.

    Raises SystemExit(2) on a wrong command line, after saying what was wrong.
    """
    from . import program

    command, *arguments = argv
    module, function = COMMANDS[command]
    run = getattr(importlib.import_module(f".{module}", __name__), function)
    return program.guarded(run, arguments)
