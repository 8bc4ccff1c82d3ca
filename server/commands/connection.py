"""The commands of a connection: PING, ECHO, HELLO, AUTH, SELECT, QUIT, RESET.

They are answered by any node at any time, whatever its role. (CLIENT has a file of its own.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...resp import encoder
from ..core.limits import CLIENT_NAME_BYTES_MAX
from ..core.replica import Role
from . import reading
from .table import COMMANDS, Argument, command, shown, wrong_arity

if TYPE_CHECKING:
    from ..connection import Connection

REDIS_VERSION = "7.0.15"
"""The Redis whose commands, replies and error texts are answered here."""

_AT_ANY_TIME = ("noscript", "loading", "stale", "fast", "no_auth", "allow_busy")
_WRONG_PASSWORD = encoder.error("WRONGPASS invalid username-password pair or user is disabled.")
_NO_PASSWORD = encoder.error(
    "ERR AUTH <password> called without any password configured for the default user. "
    "Are you sure your configuration is correct?"
)
_BAD_NAME = encoder.error("ERR Client names cannot contain spaces, newlines or special characters.")
_NAME_TOO_LONG = encoder.error(
    f"ERR Client names cannot be longer than {CLIENT_NAME_BYTES_MAX} bytes"
)
_INT32 = range(-(2**31), 2**31)


@command(
    "ping",
    -1,
    "Returns PONG, or its argument",
    group="connection",
    flags=("loading", "stale", "fast"),
    arguments=(Argument("message", optional=True),),
)
def ping(connection: Connection, argv: list[bytes]) -> bytes:
    """``PING [message]``"""
    if len(argv) == 1:
        return encoder.PONG
    return encoder.bulk(argv[1]) if len(argv) == 2 else wrong_arity(COMMANDS["ping"])


@command(
    "echo",
    2,
    "Returns its argument",
    group="connection",
    flags=("loading", "stale", "fast"),
    arguments=(Argument("message"),),
)
def echo(connection: Connection, argv: list[bytes]) -> bytes:
    """``ECHO message``"""
    return encoder.bulk(argv[1])


@command(
    "hello",
    -1,
    "Chooses the protocol, and introduces client and server",
    group="connection",
    flags=_AT_ANY_TIME,
    arguments=(
        Argument(
            "arguments",
            "block",
            optional=True,
            arguments=(
                Argument("protover", "integer"),
                Argument(
                    "username_password",
                    "block",
                    token="AUTH",
                    optional=True,
                    arguments=(Argument("username"), Argument("password")),
                ),
                Argument("clientname", token="SETNAME", optional=True),
            ),
        ),
    ),
)
def hello(connection: Connection, argv: list[bytes]) -> bytes:
    """``HELLO [protover [AUTH username password] [SETNAME clientname]]``"""
    protocol = connection.protocol
    if len(argv) > 1:
        version = reading.integer(argv[1])
        if version is None:
            return encoder.error("ERR Protocol version is not an integer or out of range")
        if version not in (2, 3):
            return encoder.error("NOPROTO unsupported protocol version")
        protocol = version
    error, name = _read_hello_options(argv)
    if error:
        return error
    if name is not None:
        connection.name = name
    connection.protocol = protocol
    is_primary = connection.node.replica.role is Role.PRIMARY
    introduction = {
        "server": "redis",
        "version": REDIS_VERSION,
        "proto": protocol,
        "id": connection.id,
        "mode": "standalone",
        "role": "master" if is_primary else "replica",
        "modules": [],
    }
    return encoder.encode(introduction, protocol)


def _read_hello_options(argv: list[bytes]) -> tuple[bytes, bytes | None]:
    """An error reply, or empty, and the name to be set, if any."""
    error, name = b"", None
    position = 2
    while position < len(argv):
        option, after = argv[position].upper(), argv[position + 1 :]
        if option == b"AUTH" and len(after) >= 2:
            error = error or authentication_error(after[0])
            position += 3
        elif option == b"SETNAME" and after:
            name = after[0]
            problem = name_problem(name)
            if problem:
                return problem, None
            position += 2
        else:
            text = f"ERR Syntax error in HELLO option '{shown(argv[position])}'"
            return encoder.error(text), None
    return error, name


@command(
    "auth",
    -2,
    "Authenticates; there are no passwords yet, so only the user 'default' exists",
    group="connection",
    flags=_AT_ANY_TIME,
    arguments=(Argument("username", optional=True), Argument("password")),
)
def auth(connection: Connection, argv: list[bytes]) -> bytes:
    """``AUTH [username] password``"""
    if len(argv) > 3:
        return reading.SYNTAX_ERROR
    return _NO_PASSWORD if len(argv) == 2 else authentication_error(argv[1]) or encoder.OK


def authentication_error(user: bytes) -> bytes:
    """Why ``user`` cannot log in, as a reply. As in a Redis without passwords, the default user
    can, whatever password he gives; there is no other."""
    return b"" if user == b"default" else _WRONG_PASSWORD


def name_problem(name: bytes) -> bytes:
    """Why a connection cannot have this name, as an error reply; empty: it can.

    More than Redis forbids: "=", since monitoring tools split CLIENT LIST at it.
    """
    if len(name) > CLIENT_NAME_BYTES_MAX:
        return _NAME_TOO_LONG
    return b"" if is_plain(name) else _BAD_NAME


def is_plain(text: bytes) -> bool:
    """Whether ``text`` can stand in a line of CLIENT LIST."""
    return all(33 <= byte <= 126 for byte in text) and b"=" not in text


@command(
    "select",
    2,
    "Chooses the database: there is one, 0",
    group="connection",
    flags=("loading", "stale", "fast"),
    arguments=(Argument("index", "integer"),),
)
def select(connection: Connection, argv: list[bytes]) -> bytes:
    """``SELECT index``"""
    index = reading.integer(argv[1])
    if index is None:
        return reading.NOT_AN_INTEGER
    if index not in _INT32:
        return encoder.error(
            f"ERR value is out of range, value must between {_INT32[0]} and {_INT32[-1]}"
        )
    return encoder.error("ERR DB index is out of range") if index else encoder.OK


@command("quit", -1, "Closes the connection", group="connection", flags=_AT_ANY_TIME)
def quit_(connection: Connection, argv: list[bytes]) -> None:
    """``QUIT``"""
    answer_and_close(connection, encoder.OK)


def answer_and_close(connection: Connection, reply: bytes) -> None:
    """The last reply of a connection, unless it wants none."""
    if not connection.silent:
        connection.reply(reply)
    connection.close_after_replies()


@command(
    "reset", 1, "Resets the connection to how it began", group="connection", flags=_AT_ANY_TIME
)
def reset(connection: Connection, argv: list[bytes]) -> bytes:
    """``RESET``"""
    connection.protocol = 2
    connection.name = b""
    connection.silent = ""
    connection.flags.clear()
    return b"+RESET\r\n"
