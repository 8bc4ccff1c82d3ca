"""`holdfast view`: look at the view register of a pair, or write its first view, by hand.

It asks the register itself and no node, so it works when no node does.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, NoReturn

from . import flags
from .config import Address, ConfigError
from .core.failover import NoAnswer, Standing
from .core.view import NO_VIEW, View
from .registers import EtcdRegister, FileRegister, RegisterError
from .registers.encoding import EPOCH_MAX
from .registers.opening import open_register
from .registers.rules import INIT, after_loss

EXIT_FAILED = 1
_ASK_TIMEOUT_S = 2.0

_DESCRIPTION = """\
Shows or writes the view of a pair: which node is primary, which are members, in which epoch. It is
kept in a register outside the nodes, which decides who goes on when they lose each other.
"""

_EXAMPLES = """\
examples:
  holdfast view init --view backup --view-file /var/lib/holdfast/view
      before the first start, on the machine of the first backup
  holdfast view init --view etcd://10.0.0.5:2379,10.0.0.6:2379,10.0.0.7:2379/locks
      the same in etcd; each pair needs a prefix of its own
  holdfast view show --view etcd://10.0.0.5:2379/locks --json
  holdfast view init --force --view backup --view-file /var/lib/holdfast/view
      after both nodes were lost: lets an empty node begin a new history. A node that still has
      the old one drops it
  holdfast view init --view backup --view-file /var/lib/holdfast/view --from 10.0.0.1:6379
      after the register was lost: goes on with the view of the node that serves. One that is
      blocked with its state serves after REPLICAOF NO ONE FORCE
"""

_INIT = """\
Lets an empty node begin a history: says that there is none, or with --force that the last one is
lost. The locks that it held are then free for whoever asks first.
"""


_FORCE = "although there is a view: its history is lost"
_FROM = "write the view of the node that serves there, so that it goes on with this register"
_EPOCH = "the epoch to write, if it is above that of the register [default: the next]"

_LAYOUT: dict[str, Any] = {
    "epilog": _EXAMPLES,
    "formatter_class": argparse.RawDescriptionHelpFormatter,
    "allow_abbrev": False,
}


def main(arguments: list[str]) -> int:
    """Runs `holdfast view ARGUMENTS` and returns the exit code: 0, or 1 with a line on stderr.

    Raises SystemExit(2) on a wrong command line, after saying what was wrong.
    """
    parser = _build_parser()
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        getattr(given, "parser", parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if not hasattr(given, "run"):
        parser.print_help(sys.stderr)
        return flags.EXIT_USAGE
    try:
        register = open_register(**flags.resolve(flags.REGISTER_FLAGS, given))
        return int(given.run(register, given))
    except ConfigError as error:
        hint = flags.from_environment(flags.REGISTER_FLAGS, given, str(error))
        blame = f" (from the environment: {', '.join(hint)})" if hint else ""
        _usage_error(given.parser, f"{error}{blame}")
    except RegisterError as error:
        print(f"{given.parser.prog}: {error}", file=sys.stderr)
        return EXIT_FAILED


def _usage_error(parser: flags.Parser, text: str) -> NoReturn:
    parser.error(text)


def _build_parser() -> flags.Parser:
    parser = flags.Parser(prog="holdfast view", description=_DESCRIPTION, **_LAYOUT)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    show = commands.add_parser("show", help="print it", description="Prints the view.", **_LAYOUT)
    show.add_argument("--json", action="store_true", help="as one line of JSON")
    show.set_defaults(run=_show, parser=show)
    init = commands.add_parser("init", help="write the first one", description=_INIT, **_LAYOUT)
    init.add_argument("--force", action="store_true", help=_FORCE)
    init.add_argument("--epoch", type=_epoch, default=0, metavar="N", help=_EPOCH)
    init.add_argument("--from", dest="source", type=_address, metavar="HOST:PORT", help=_FROM)
    init.set_defaults(run=_init, parser=init)
    for command in (show, init):
        flags.add_flags(command, flags.REGISTER_FLAGS)
    return parser


def _epoch(text: str) -> int:
    if text.isascii() and text.isdecimal() and len(text) <= 16 and 1 <= int(text) <= EPOCH_MAX:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no epoch, which is a number from 1 up")


def _show(register: FileRegister | EtcdRegister, given: argparse.Namespace) -> int:
    view = register.get()
    if view == NO_VIEW:
        raise RegisterError(
            f"there is no view in {register}. Before the first start of a pair: "
            f"'{INIT}'. If there was one, the register has lost it: {after_loss()}"
        )
    print(_as_json(view) if given.json else _as_text(view))
    return 0


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _init(register: FileRegister | EtcdRegister, given: argparse.Namespace) -> int:
    if given.source is not None:
        view = register.init(force=given.force, view=_view_of(given.source))
        print(f"the view in {register} is that of {given.source} now:\n{_as_text(view)}")
        return 0
    view = register.init(force=given.force, at_least=given.epoch)
    print(
        f"the view in {register} is vacant, at epoch {view.epoch}: "
        "the first empty node to claim it begins a history"
    )
    return 0


def _view_of(address: Address) -> View:
    # Late: nothing else here needs gevent.
    from .link import ask

    answer = ask(address, _ASK_TIMEOUT_S, "ASK")
    if isinstance(answer, NoAnswer):
        raise RegisterError(f"{address} is {answer.value}. Nothing was changed")
    if answer.standing is not Standing.SERVING:
        raise RegisterError(
            f"{address} does not serve (it says: {answer.standing.value}), so its view is not one "
            "to go on from. Nothing was changed. (A node that is blocked with its state serves "
            "after REPLICAOF NO ONE FORCE.)"
        )
    return answer.view


def _as_json(view: View) -> str:
    return json.dumps({**view._asdict(), "vacant": view.is_vacant})


def _as_text(view: View) -> str:
    rows = (
        ("epoch", str(view.epoch)),
        ("primary", view.primary or "none: vacant, for an empty node to claim"),
        ("members", " ".join(view.members) or "none"),
    )
    return "\n".join(f"{name:<9}{text}" for name, text in rows)
