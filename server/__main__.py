"""The `holdfast` command: `serve` one node, `pair` both, `version`; and the commands of the client
side, which are imported when one of them is run, and only then.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import flags, log
from .config import Config, ConfigError, check_distinct

_log = logging.getLogger("holdfast.server")  # also when run as __main__

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # as shells report a death by SIGINT

_DESCRIPTION = """\
Holdfast is a replicated lock server that speaks the Redis protocol. Any Redis client takes and
gives back locks on it; a primary answers only once its backup has the change too.
"""

_EXAMPLES = """\
examples:
  holdfast pair
      a primary on 6379 and a backup on 6380, on this machine, until Ctrl-C
  redis-cli -p 6379 LOCK a r1
      takes lock a for the request r1: a number greater than 0 (the fencing token), or 0 if it
      is taken
  redis-cli -p 6379 UNLOCK a r2
      gives it back: 1, or 0 if nobody held it. r1 and r2 are request ids: each new request needs
      a new one, the same again gets the first answer again

  holdfast lock report -- ./report.sh
      runs a script while holding a lock; 'holdfast ls' shows it

  on two machines:
    host1$ holdfast serve --bind 0.0.0.0 --backup host2:6379
    host2$ holdfast serve --bind 0.0.0.0 --replicaof host1:6379

'holdfast COMMAND --help' lists the flags of a command, and more examples.
"""

# The commands of the client side, with what `--help` says of them.
_CLIENT_COMMANDS = {
    "lock": "run a command under a lock, stop it if the lock is lost",
    "once": "run a command on one machine of many, for cron",
    "ls": "list the locks that are held",
    "who": "show who holds a lock, and who waits for it",
    "break": "release a lock that somebody else holds",
    "demo": "replay the accident that fencing tokens prevent",
}

_VIEW_COMMAND = {"view": "show or initialise the view register of a pair"}

_SERVE_EXAMPLES = """\
examples:
  holdfast serve
      one node alone on 127.0.0.1:6379; no backup, so its locks end with it
  holdfast serve --port 6379 --backup 127.0.0.1:6380
  holdfast serve --port 6380 --replicaof 127.0.0.1:6379
      a pair: the first primary, and in another terminal the first backup
  HOLDFAST_PORT=7001 holdfast serve
      every flag can be given as an environment variable; the flag wins

There is no password: bind only to addresses of a network that you trust.
Stop it with Ctrl-C or SIGTERM.
"""

_PAIR_EXAMPLES = """\
examples:
  holdfast pair
  holdfast pair --port 7001 --backup-port 7002
  HOLDFAST_BACKUP_PORT=7002 holdfast pair --failover manual

Both nodes run on this machine, so the pair outlives the loss of either process, not of the
machine. A node that dies is started again and joins the other; when neither has the locks any
more the pair ends. Do not have it restarted by itself (Restart=always): it would begin with no
locks at all. Stop it with Ctrl-C or SIGTERM. (With --view backup or etcd its next start waits for
'holdfast view init --force'.)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: the process's own) and returns the exit code.

    Raises SystemExit(2) on a wrong command line, after saying what was wrong.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments and arguments[0] in _CLIENT_COMMANDS:
        return _run_client(arguments)
    if arguments and arguments[0] in _VIEW_COMMAND:
        return _run_view(arguments[1:])
    parser = _build_parser()
    # Not parse_args: it blames an unknown flag on the whole, and points away from its command's.
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        getattr(given, "parser", parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if given.version:
        return _version(given)
    if not hasattr(given, "run"):
        parser.print_help(sys.stderr)
        return flags.EXIT_USAGE
    try:
        return int(given.run(given))
    except ConfigError as error:
        hint = flags.from_environment(given.flags, given, str(error))
        blame = f" (from the environment: {', '.join(hint)})" if hint else ""
        _usage_error(given.parser, f"{error}{blame}")
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _run_client(arguments: list[str]) -> int:
    # A serving node never loads what these import.
    try:
        if arguments[0] == "demo":
            from ..compat import demo

            return demo.main(arguments[1:])
        from ..compat import cli

        return cli.main(arguments)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _run_view(arguments: list[str]) -> int:
    from . import views

    try:
        return views.main(arguments)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _build_parser() -> argparse.ArgumentParser:
    parser = flags.Parser(
        prog="holdfast",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, run, its_flags, text, epilog in (
        ("serve", _serve, flags.SERVE_FLAGS, "run one node", _SERVE_EXAMPLES),
        ("pair", _pair, flags.PAIR_FLAGS, "run a primary and a backup here", _PAIR_EXAMPLES),
        ("version", _version, (), "print the version", ""),
    ):
        command = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            # A prefix that is unique today may be ambiguous tomorrow.
            allow_abbrev=False,
        )
        flags.add_flags(command, its_flags)
        command.set_defaults(run=run, flags=its_flags, parser=command)
    for name, text in {**_CLIENT_COMMANDS, **_VIEW_COMMAND}.items():
        commands.add_parser(name, help=text)  # to be listed; they read their own command line
    return parser


def _version(given: argparse.Namespace) -> int:
    from .. import __version__

    print(f"holdfast {__version__}")
    return 0


def _serve(given: argparse.Namespace) -> int:
    config = Config(**flags.resolve(flags.SERVE_FLAGS, given))
    if not __debug__:
        return _refuse_optimised()
    check_distinct(config.bind)
    # Late, so that --help and an error do not wait for gevent.
    from .node import Node
    from .registers import RegisterError

    _set_up_log(config.log_level, config.port)
    node = Node(config)
    try:
        node.peer.keeper.check()
    except RegisterError as error:
        return _fail(str(error))
    try:
        node.start()
    except (OSError, UnicodeError) as error:  # UnicodeError: a host that is no name at all
        return _fail(explain_bind_error(error, config.bind, config.port, "--port"))
    _log.debug("configuration: %s", config)
    return int(node.run())


def _pair(given: argparse.Namespace) -> int:
    from . import pair

    values = flags.resolve(flags.PAIR_FLAGS, given)
    plan = pair.Plan.from_flags(values)
    if not __debug__:
        return _refuse_optimised()
    check_distinct(plan.primary.bind)
    _set_up_log(plan.primary.log_level, "pair")
    try:
        pair.check_ports_free(plan)
    except pair.PortTaken as taken:
        under_make = os.environ.get(flags.MAKE_VARIABLE)
        flag = "'make run PORT=... BACKUP_PORT=...'" if under_make else taken.flag
        return _fail(explain_bind_error(taken.error, (taken.host,), taken.port, flag))
    return pair.run(plan)


def _set_up_log(level: str, label: str | int) -> None:
    log.set_up(level, label)
    for warning in flags.unknown_variables():
        _log.warning("%s", warning)


def explain_bind_error(
    error: OSError | UnicodeError, bind: tuple[str, ...], port: int, flag: str
) -> str:
    """Why nothing listens, and the flag that changes it."""
    where = f"port {port} on {', '.join(bind)}"
    if isinstance(error, UnicodeError):
        return f"cannot resolve --bind {' '.join(bind)}: not a host name; give an address"
    if isinstance(error, socket.gaierror):
        return f"cannot resolve --bind {' '.join(bind)}: {error.strerror}; give an address"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use; choose another with {flag}, or stop what listens there"
    if error.errno == errno.EACCES:
        return f"{where} is not permitted to this user; choose one from 1024 up with {flag}"
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return f"this machine has no address {', '.join(bind)}; choose one that it has with --bind"
    return f"cannot listen on {where}: {error.strerror or error}; see --bind and {flag}"


def _usage_error(parser: flags.Parser, text: str) -> NoReturn:
    parser.error(text)


def _refuse_optimised() -> int:
    return _fail(
        "refusing to start under 'python -O' or PYTHONOPTIMIZE: assertions are safety checks of "
        "this server; start it without"
    )


def _fail(text: str) -> int:
    print(f"holdfast: {text}", file=sys.stderr)
    return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
