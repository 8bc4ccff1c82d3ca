"""holdfast lock: runs a command under a lock.

The wrappers that everybody knows each get one thing wrong: one never notices that the lease is
gone, the other hides the command's exit code. Here the command is stopped when the lock is lost,
and its code is ours. How it is run and stopped is in `running`.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

from . import program, running, servers, taking
from .program import Parser, duration, lease, lock_name, quoted, say, split_command

LEASE_MS = 30_000
GRACE_MS = 10_000
# A shorter one is over before its renewal can have been answered.
LEASE_MS_MIN = 100

_DESCRIPTION = """\
Runs COMMAND while holding the lock NAME, and gives the lock back when it ends. The lock is renewed
while the command runs. The fencing token is in the command's environment as HOLDFAST_TOKEN, the
lock's name as HOLDFAST_LOCK.
"""

_EPILOG = f"""\
when the lock is lost:
  If an operator breaks the lock, or no renewal is answered for as long as the lease may be trusted
  (98 % of it), the command and everything it has started are sent TERM, and after --grace KILL.
  The lock may be somebody else's by then: stopping is the best that can be done from outside, and
  a command that ends slowly overlaps with the next holder. What makes that harmless is the fencing
  token: pass HOLDFAST_TOKEN on to what the command writes to, and have lower ones refused there.

signals:
  TERM, INT, HUP, QUIT, USR1, USR2, WINCH, TSTP and CONT are handed on to the command; keys of the
  terminal (Ctrl-C, Ctrl-Z) reach it by themselves, once. While stopped (Ctrl-Z) nothing is renewed.
  After a kill -9 of 'holdfast lock' the kernel kills the command, though not what that has started,
  and the lease runs out.

exit codes:
  The command's own; 128+n if signal n ended it. And of 'holdfast lock' itself:
    {program.EXIT_USAGE}    wrong command line
    {program.EXIT_UNAVAILABLE}   no node answered, or what it did is unknown; nothing was run
    {program.EXIT_HELD}   somebody else has the lock (with --no-wait, or when --wait was over)
    {program.EXIT_LOST}   the lock was lost; the command has been stopped
    {program.EXIT_CANNOT_EXECUTE}  the command cannot be executed
    {program.EXIT_NOT_FOUND}  the command was not found

{servers.HELP}
examples:
  holdfast lock nightly-report -- ./report.sh
      waits for the lock as long as it takes, then runs the script
  holdfast lock deploy --no-wait -- make deploy || echo "not deployed: $?"
  holdfast lock deploy --wait 5m --lease 10s --server db1:6379 --server db2:6379 -- ./deploy
  holdfast lock counter -- sh -c 'curl -T value "http://store/counter?fence=$HOLDFAST_TOKEN"'
"""


def main(argv: Sequence[str]) -> int:
    """Raises SystemExit and Failure."""
    parser = _parser()
    given, command = split_command(parser, argv)
    wait_ms = 0 if given.no_wait else given.wait
    if given.lease < LEASE_MS_MIN:
        parser.error(f"argument --lease: must be {LEASE_MS_MIN}ms at least")
    running.check(command)
    with servers.clerk(given) as clerk:
        with servers.answers_expected():
            holding = taking.take(
                clerk, given.name, lease_ms=given.lease, renew_ms=given.lease, wait_ms=wait_ms
            )
        if holding is None:
            say(f"somebody else has lock {quoted(given.name)}")
            return program.EXIT_HELD
        run = running.Running(command, holding, grace_ms=given.grace)
        try:
            outcome = run.run()
        except program.Failure:
            running.give_back(holding)
            raise
        code = running.exit_code(outcome, holding, release=True)
    return taking.die_of(signal.SIGINT) if outcome.keyed == signal.SIGINT else code


def _parser() -> Parser:
    parser = Parser("lock", _DESCRIPTION, _EPILOG)
    parser.usage = "holdfast lock NAME [flags] -- COMMAND [ARGUMENT ...]"
    parser.add_argument("name", metavar="NAME", type=lock_name, help="of the lock")
    parser.add_argument(
        "--lease",
        type=lease,
        default=LEASE_MS,
        metavar="DURATION",
        help="how long the lock outlives this machine; renewed after a third of it [default: 30s]",
    )
    wait = parser.add_mutually_exclusive_group()
    wait.add_argument(
        "--wait",
        type=duration,
        metavar="DURATION",
        help="stand in line for so long [default: as long as it takes]",
    )
    wait.add_argument("--no-wait", action="store_true", help="do not stand in line; as --wait 0s")
    add_grace(parser)
    servers.add_flag(parser)
    return parser


def add_grace(parser: Parser) -> None:
    """Declares --grace."""
    parser.add_argument(
        "--grace",
        type=duration,
        default=GRACE_MS,
        metavar="DURATION",
        help="between TERM and KILL when the command has to be stopped [default: 10s]",
    )
