"""Where the nodes are, and what their silence means to a command line."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from collections.abc import Iterator, Mapping

from redis.exceptions import RedisError

from ..clerk import Clerk
from ..errors import ClerkError, UnavailableError
from .program import EXIT_UNAVAILABLE, EXIT_USAGE, Failure, Parser

VARIABLE = "HOLDFAST_SERVERS"
# Both nodes of `holdfast pair`. A port where nobody listens refuses at once and costs nothing.
DEFAULT = ("redis://127.0.0.1:6379", "redis://127.0.0.1:6380")

# How long to look for a node that answers: a failover takes 3 s when the primary hangs.
DEADLINE_MS = 10_000
# Who looks at a terminal for the answer is told sooner; a failover takes milliseconds.
OPERATOR_DEADLINE_MS = 3_000

HELP = f"""\
servers:
  --server, or the variable {VARIABLE} (spaces or commas between several), names both nodes of
  the pair, as redis://HOST:PORT or HOST:PORT; which of them is the primary does not matter.
  Without either it is {DEFAULT[0]} and {DEFAULT[1]}.
"""


def add_flag(parser: Parser) -> None:
    """Declares --server."""
    parser.add_argument(
        "--server",
        action="append",
        metavar="URL",
        help=f"a node, redis://HOST:PORT or HOST:PORT; give it once for each [env {VARIABLE}; "
        f"default: {' and '.join(DEFAULT)}]",
    )


def clerk(given: argparse.Namespace, deadline_ms: int = DEADLINE_MS) -> Clerk:
    """A Clerk for the nodes that were named. Raises Failure for a URL that cannot be used."""
    source, urls = named(given.server)
    try:
        return Clerk(*urls, deadline_ms=deadline_ms)
    except ValueError as error:
        raise Failure(EXIT_USAGE, f"{source}: {error}") from None


def named(
    given: list[str] | None, environ: Mapping[str, str] = os.environ
) -> tuple[str, tuple[str, ...]]:
    """Who named the nodes, and what they are called."""
    if given:
        return "--server", tuple(given)
    words = [word for word in re.split(r"[\s,]+", environ.get(VARIABLE, "")) if word]
    return (VARIABLE, tuple(words)) if words else ("default", DEFAULT)


@contextlib.contextmanager
def answers_expected() -> Iterator[None]:
    """Turns what Clerk raises into a line and an exit code."""
    try:
        yield
    except UnavailableError as error:
        raise Failure(
            EXIT_UNAVAILABLE,
            f"no node serves: {error.reason.rstrip('.')}. Is one running? --server or {VARIABLE} "
            "says where",
        ) from None
    except ClerkError as error:
        raise Failure(EXIT_UNAVAILABLE, str(error)) from None
    except RedisError as error:
        raise Failure(EXIT_UNAVAILABLE, f"the server refuses: {error}") from None
