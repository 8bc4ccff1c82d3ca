"""`holdfast demo`: why a lock alone protects nothing, shown with real processes.

storage.py   holdfast demo storage: a storage server that refuses stale fencing tokens
client.py    holdfast demo client:  a holder that looks at its lease, stands still, and writes
accident.py  holdfast demo fencing: the classic accident from end to end
children.py  processes that are started for it, heard, stopped, and always reaped
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

# part -> (module, the line in `holdfast demo --help`)
_PARTS = {
    "fencing": ("accident", "the whole accident by itself, in a few seconds"),
    "storage": ("storage", "a storage server that refuses stale fencing tokens"),
    "client": ("client", "a client that takes the lock, waits for a key, and writes"),
}

_DESCRIPTION = "A stale holder meets a storage that checks fencing tokens, with real processes."

_EPILOG = """\
parts:
{parts}
  'holdfast demo PART --help' has the flags of each.

by hand, in three terminals (and 'holdfast pair' in one more):
  1   holdfast demo storage
  2   holdfast demo client 1           takes the lock, reads, and waits for Enter. Leave it there:
                                       this is the pause that no program sees coming
  3   holdfast demo client 2           stands in line until the lease of client 1 is over.
                                       Enter: it writes, and is accepted
  2   Enter                            client 1 writes with its old token, and is refused: 409

  Instead of waiting for the lease an operator can revoke the grant while client 1 is paused:
  3   holdfast who invoice-7           shows the holder and its token
      redis-cli DEL invoice-7          or: holdfast break invoice-7 --token TOKEN
      holdfast demo client 2           has the lock at once

  What happens without fencing: start over with 'holdfast demo storage --unfenced'. Client 1 is
  accepted, and what client 2 has written is lost.
"""


def main(argv: Sequence[str]) -> int:
    """Runs what stands behind `holdfast demo`; returns the exit code.

    Raises SystemExit(2) on a wrong command line, after saying what was wrong.
    """
    from ..cli import program

    return program.guarded(_run, argv)


def _run(argv: Sequence[str]) -> int:
    if argv and argv[0] in _PARTS:
        module = importlib.import_module(f".{_PARTS[argv[0]][0]}", __name__)
        return int(module.main(argv[1:]))
    from ..cli.program import Parser

    parts = "\n".join(f"  {name:10}{text}" for name, (_, text) in _PARTS.items())
    parser = Parser("demo", _DESCRIPTION, _EPILOG.format(parts=parts))
    parser.usage = "holdfast demo PART [...]"
    parser.add_argument("part", metavar="PART", choices=list(_PARTS), help="one of those below")
    parser.parse_args(argv)
    raise AssertionError("no part, and no complaint about it")
