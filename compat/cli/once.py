"""holdfast once: cron on many machines, run by one of them.

Every machine has the same line in its crontab. They start within the error of their clocks of one
another; whoever comes first takes the lock, and the others find it held and go home.

    at-least   for how long the others find it held, however short the command is: longer than the
               clocks differ, shorter than the time between two runs
    at-most    for how long the command may run

    A  |-- LOCK PX at-least ---- command ends -|- - - lease runs on - - -|  free
    B     |-- held, exit 0
    C                                   |-- held, exit 0 (without at-least it would run again)

Rules:

 1. Nobody waits. Who finds the lock held exits with 0 and says nothing: cron sends no mail.

 2. The grant's first lease is at-least. A lease is never shortened, so it is not longer.

 3. While the command runs beyond that, the grant is renewed like that of `holdfast lock`, for
    RUNNING_LEASE_MS each time and not for at-most: if the machine dies, the others wait for what is
    left of that, or of at-least, and not for at-most.

 4. A command that ends before at-least leaves the lease to run out by itself, and we end with it.
    That goes for one that failed, too. Only if a renewal has been sent already (in the last
    seconds of at-least) do we stay until at-least is over, and release.
    One that ends later: the lock is released at once.

 5. A command that still runs at at-most is stopped, TERM, and KILL after --grace. The lock is
    renewed until it has really ended: at-most bounds the command, not the exclusion.

 6. A lost lock stops the command as in `holdfast lock`.

 7. A command that cannot be run on this machine never takes the lock from one where it can.

Lengths are counted from the grant: at-least from when its answer had come (the server began to
count before that), so that it is never undercut.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

from . import program, running, servers, taking
from .holding import now_ms
from .lock import LEASE_MS_MIN, add_grace
from .program import LEASE_MS_MAX, Parser, duration, lock_name, quoted, say, split_command

RUNNING_LEASE_MS = 30_000

_DESCRIPTION = """\
Runs COMMAND unless another machine runs it, or ran it a moment ago: for the same crontab line on
many machines. The lock NAME is taken without waiting, kept for --at-least however soon the command
ends, and the command is stopped if it takes longer than --at-most. The fencing token is in its
environment as HOLDFAST_TOKEN, the lock's name as HOLDFAST_LOCK.
"""

_EPILOG = f"""\
the two lengths:
  --at-least is longer than the machines' clocks differ, or one that is late would run the command
  again; and shorter than the time between two runs. It holds for a command that fails, too.
  --at-most is longer than the command takes if all is well. It is stopped then: TERM to it and
  everything it has started, KILL after --grace; the lock is kept until it has ended.
  If the machine dies, the others wait for what is left of --at-least, or of 30s if that is more.
  What happens when the lock is lost, and to signals, says 'holdfast lock --help'.

exit codes:
  0    another machine has the lock: nothing was run and nothing is said (but see --verbose)
  The command's own; 128+n if signal n ended it. And of 'holdfast once' itself:
    {program.EXIT_USAGE}    wrong command line
    {program.EXIT_UNAVAILABLE}   no node answered, or what it did is unknown; nothing was run
    {program.EXIT_LOST}   the lock was lost; the command has been stopped
    {program.EXIT_STOPPED}  the command was stopped at --at-most
    {program.EXIT_CANNOT_EXECUTE}  the command cannot be executed
    {program.EXIT_NOT_FOUND}  the command was not found

{servers.HELP}
examples:
  0 3 * * *  holdfast once nightly --at-least 10m --at-most 4h -- /usr/local/bin/nightly
  * * * * *  holdfast once poll --at-least 30s --at-most 50s --grace 5s -- ./poll
"""


def main(argv: Sequence[str]) -> int:
    """Raises SystemExit and Failure."""
    parser = _parser()
    given, command = split_command(parser, argv)
    if not given.at_least <= given.at_most <= LEASE_MS_MAX:
        parser.error("--at-least must not be longer than --at-most, and that not than 365d")
    if given.at_most < LEASE_MS_MIN:
        parser.error(f"argument --at-most: must be {LEASE_MS_MIN}ms at least")
    running.check(command)
    lease_ms = max(given.at_least, LEASE_MS_MIN)
    with servers.clerk(given) as clerk:
        with servers.answers_expected():
            holding = taking.take(
                clerk, given.name, lease_ms=lease_ms, renew_ms=RUNNING_LEASE_MS, wait_ms=0
            )
        if holding is None:
            if given.verbose:
                say(f"another machine has lock {quoted(given.name)}; nothing to do")
            return 0
        granted_ms = now_ms()
        run = running.Running(
            command, holding, grace_ms=given.grace, stop_at_ms=granted_ms + given.at_most
        )
        try:
            outcome = run.run()
        except program.Failure:
            running.give_back(holding)
            raise
        lost = outcome.reason is running.Reason.LOST
        release = not lost and running.keep_until(holding, granted_ms + given.at_least)
        code = running.exit_code(outcome, holding, release=release)
    return taking.die_of(signal.SIGINT) if outcome.keyed == signal.SIGINT else code


def _parser() -> Parser:
    parser = Parser("once", _DESCRIPTION, _EPILOG)
    parser.usage = "holdfast once NAME --at-least D --at-most D [flags] -- COMMAND [ARGUMENT ...]"
    parser.add_argument("name", metavar="NAME", type=lock_name, help="of the lock")
    for flag, text in (
        ("--at-least", "how long the lock stays held, however soon the command ends"),
        ("--at-most", "how long the command may run"),
    ):
        parser.add_argument(flag, type=duration, required=True, metavar="DURATION", help=text)
    add_grace(parser)
    parser.add_argument(
        "--verbose", action="store_true", help="say so if another machine has the lock"
    )
    servers.add_flag(parser)
    return parser
