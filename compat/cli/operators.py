"""holdfast ls, who, break: what operators ask, and the one thing that they do."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..clerk import Clerk
from . import program, servers, show
from .program import Parser, fencing_token, lock_name, printable, quoted, say

EXIT_FREE = 1
EXIT_NOT_CURRENT = 1

# So many rows are lined up with one another; a million locks need not be known before the first
# is shown.
ROWS_ALIGNED = 1_000

_HEADLINE = ("NAME", "OWNER", "TOKEN", "LEASE", "HELD", "WAITERS")

_JSON = """\
json:
  {what} plain ASCII. Times are in milliseconds; remaining_ms is
  -1 for a lock without a lease. Bytes of a name or owner that are not UTF-8 stand as \\xff.
"""

_LS_EPILOG = f"""\
{_JSON.format(what="--json prints one object in a line for each lock,")}
exit codes:
  0    also if there are none
  {program.EXIT_USAGE}    wrong command line
  {program.EXIT_UNAVAILABLE}   no node answered

{servers.HELP}
examples:
  holdfast ls
  holdfast ls --match 'deploy:*'
  holdfast ls --json | jq -r 'select(.waiter_count > 0) | .name'
"""

_WHO_EPILOG = f"""\
{_JSON.format(what="--json prints one object in one line,")}
exit codes:
  0    somebody holds it
  {EXIT_FREE}    it is free
  {program.EXIT_USAGE}    wrong command line
  {program.EXIT_UNAVAILABLE}   no node answered

{servers.HELP}
examples:
  holdfast who deploy
  holdfast who deploy --json | jq .fencing_token
"""

_BREAK_DESCRIPTION = """\
Releases the lock NAME if TOKEN is the fencing token of its present grant, and grants it to the
first in line. Whoever holds it is not asked, learns of it when it renews, within a third of its
lease ('holdfast lock', after up to 10 s by default, then stops its command), and may still be at
work: only a storage that refuses lower fencing tokens is safe from it.
"""

_BREAK_EPILOG = f"""\
The token is asked for so that only the grant that you have seen is released, and not one that
somebody was given meanwhile. 'holdfast who NAME' shows it.

{_JSON.format(what="--json prints one object in one line,")}
exit codes:
  0    released
  {EXIT_NOT_CURRENT}    that grant is no longer the current one; nothing was released
  {program.EXIT_USAGE}    wrong command line
  {program.EXIT_UNAVAILABLE}   no node answered, or it is unknown whether it was released

{servers.HELP}
examples:
  holdfast break deploy --token 1795189602897460
"""


def list_locks(argv: Sequence[str]) -> int:
    """holdfast ls. Raises SystemExit and Failure."""
    parser = Parser("ls", "Lists the locks that are held.", _LS_EPILOG)
    parser.add_argument(
        "--match",
        metavar="GLOB",
        help="only names like this, as in KEYS: * ? [a-z], and \\ before one that is meant",
    )
    given = _parse(parser, argv)
    with servers.clerk(given, servers.OPERATOR_DEADLINE_MS) as clerk, servers.answers_expected():
        match = None if given.match is None else os.fsencode(given.match)
        locks: Iterator[Mapping[str, Any]] = iter(clerk.locks(match=match))
        lines = map(show.as_json, locks) if given.json else _table(locks, given.match)
        for line in lines:
            print(line)
    return 0


def _table(locks: Iterator[Mapping[str, Any]], glob: str | None) -> Iterator[str]:
    rows: list[Sequence[str]] = [_HEADLINE]
    widths: Sequence[int] = ()
    while batch := sorted(itertools.islice(locks, ROWS_ALIGNED), key=lambda lock: lock["name"]):
        rows += map(_row, batch)
        widths = show.widths_of(rows, widths)
        yield from show.columns(rows, widths)
        rows = []
    if rows:
        say(
            "no lock is held"
            if glob is None
            else f"no lock that is held matches {quoted(glob.encode(errors='surrogateescape'))}"
        )


def _row(lock: Mapping[str, Any]) -> Sequence[str]:
    return (
        printable(lock["name"]),
        printable(lock["owner"]),
        str(lock["fencing_token"]),
        show.remaining(lock["remaining_ms"]),
        show.length(lock["held_ms"]),
        str(lock["waiter_count"]),
    )


def who(argv: Sequence[str]) -> int:
    """holdfast who. Raises SystemExit and Failure."""
    parser = Parser("who", "Shows who holds the lock NAME, and who waits for it.", _WHO_EPILOG)
    parser.add_argument("name", metavar="NAME", type=lock_name, help="of the lock")
    given = _parse(parser, argv)
    with servers.clerk(given, servers.OPERATOR_DEADLINE_MS) as clerk, servers.answers_expected():
        lock = clerk.inspect(given.name)
    held = lock["state"] == "held"
    if given.json:
        print(show.as_json({"name": given.name, **lock, "waiters": list(_waiters(lock))}))
    else:
        print("\n".join(_portrait(given.name, lock) if held else [_free(given.name)]))
    return 0 if held else EXIT_FREE


def _waiters(lock: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    for owner, waiting_ms in lock["waiters"]:
        yield {"owner": owner, "waiting_ms": waiting_ms}


def _free(name: bytes) -> str:
    return f"{quoted(name)} is free"


def _portrait(name: bytes, lock: Mapping[str, Any]) -> list[str]:
    left_ms = lock["remaining_ms"]
    lease = "none, held until it is unlocked" if left_ms < 0 else f"{show.length(left_ms)} left"
    facts = [
        ("owner", printable(lock["owner"])),
        ("fencing token", str(lock["fencing_token"])),
        ("lease", lease),
        ("held for", show.length(lock["held_ms"])),
        ("waiters", str(lock["waiter_count"])),
    ]
    line = [
        (f"{place}.", printable(each["owner"]), f"for {show.length(each['waiting_ms'])}")
        for place, each in enumerate(_waiters(lock), 1)
    ]
    return [
        f"{quoted(name)} is held",
        *("  " + text for text in show.columns(facts)),
        *("    " + text for text in show.columns(line)),
    ]


def break_grant(argv: Sequence[str]) -> int:
    """holdfast break. Raises SystemExit and Failure."""
    parser = Parser("break", _BREAK_DESCRIPTION, _BREAK_EPILOG)
    parser.add_argument("name", metavar="NAME", type=lock_name, help="of the lock")
    parser.add_argument(
        "--token", type=fencing_token, metavar="TOKEN", help="of the grant to release"
    )
    given = _parse(parser, argv)
    if given.token is None:
        parser.error(
            "--token is needed, so that no other grant than the one you mean is released; "
            f"'holdfast who {os.fsdecode(given.name)}' shows it"
        )
    with servers.clerk(given, servers.OPERATOR_DEADLINE_MS) as clerk:
        with servers.answers_expected():
            released = clerk.release(given.name, fencing_token=given.token)
        now = _present(clerk, given.name)
    if given.json:
        done = {"name": given.name, "fencing_token": given.token, "released": released}
        print(show.as_json({**done, "now": now}))
    else:
        _tell(given, released, now)
    return 0 if released else EXIT_NOT_CURRENT


def _present(clerk: Clerk, name: bytes) -> Mapping[str, Any] | None:
    """Who has it now; None if that cannot be found out, which undoes nothing of what was done."""
    with contextlib.suppress(program.Failure), servers.answers_expected():
        lock = clerk.inspect(name)
        return {field: lock[field] for field in ("state", "owner", "fencing_token")}
    return None


def _tell(given: argparse.Namespace, released: bool, now: Mapping[str, Any] | None) -> None:
    if now is None:
        present = "who has it now is unknown, no node answers"
    elif now["state"] == "held":
        present = f"{printable(now['owner'])} holds it under token {now['fencing_token']}"
    else:
        present = "it is free now"
    if released:
        print(f"released {quoted(given.name)}, token {given.token}; {present}")
    else:
        say(
            f"nothing was released: token {given.token} is not the current grant of "
            f"{quoted(given.name)}; {present}"
        )


def _parse(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    parser.add_argument("--json", action="store_true", help="for programs, see below")
    servers.add_flag(parser)
    return parser.parse_args(argv)
