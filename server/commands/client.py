"""CLIENT: what a client says of itself, and what is known of all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from time import time
from typing import TYPE_CHECKING

from ...resp import encoder
from ..core.limits import CLIENT_NAME_BYTES_MAX
from . import reading
from .connection import answer_and_close, is_plain, name_problem
from .table import Argument, Command, command, container, shown

if TYPE_CHECKING:
    from ..connection import Connection

_HARMLESS = ("noscript", "loading", "stale")
_ADMIN = ("admin", *_HARMLESS)
_TYPES = (b"NORMAL", b"MASTER", b"REPLICA", b"SLAVE", b"PUBSUB")
_CLOSED_PER_TURN = 500

_ON_OFF = Argument(
    "enabled",
    "oneof",
    arguments=(Argument("on", "pure-token", "ON"), Argument("off", "pure-token", "OFF")),
)
_TYPE = Argument(
    "client-type",
    "oneof",
    token="TYPE",
    optional=True,
    arguments=[
        Argument(name.lower(), "pure-token", name)
        for name in ("NORMAL", "MASTER", "REPLICA", "PUBSUB")
    ],
)
_YES_NO = Argument(
    "skipme",
    "oneof",
    token="SKIPME",
    optional=True,
    arguments=(Argument("yes", "pure-token", "YES"), Argument("no", "pure-token", "NO")),
)

container("client", "A container for client connection commands", group="connection")


@command(
    "client|id", 2, "Returns the number of this connection", group="connection", flags=_HARMLESS
)
def client_id(connection: Connection, argv: list[bytes]) -> bytes:
    """``CLIENT ID``"""
    return encoder.integer(connection.id)


@command(
    "client|setname",
    3,
    "Gives this connection a name",
    group="connection",
    flags=_HARMLESS,
    arguments=(Argument("connection-name"),),
)
def set_name(connection: Connection, argv: list[bytes]) -> bytes:
    """``CLIENT SETNAME name``: an empty one takes it away."""
    problem = name_problem(argv[2])
    if problem:
        return problem
    connection.name = argv[2]
    return encoder.OK


@command(
    "client|getname", 2, "Returns the name of this connection", group="connection", flags=_HARMLESS
)
def get_name(connection: Connection, argv: list[bytes]) -> bytes:
    """``CLIENT GETNAME``"""
    return encoder.encode(connection.name or None, connection.protocol)


@command(
    "client|setinfo",
    4,
    "Notes which library the client uses",
    group="connection",
    flags=_HARMLESS,
    arguments=(
        Argument(
            "attr",
            "oneof",
            arguments=(
                Argument("libname", token="LIB-NAME"),
                Argument("libver", token="LIB-VER"),
            ),
        ),
    ),
)
def set_info(connection: Connection, argv: list[bytes]) -> bytes:
    """``CLIENT SETINFO LIB-NAME name | LIB-VER version``"""
    option, value = argv[2].upper(), argv[3]
    if option not in (b"LIB-NAME", b"LIB-VER"):
        return encoder.error(f"ERR Unrecognized option '{shown(argv[2])}'")
    if not is_plain(value) or len(value) > CLIENT_NAME_BYTES_MAX:
        return encoder.error(
            f"ERR {shown(argv[2])} cannot contain spaces, newlines or special characters."
        )
    if option == b"LIB-NAME":
        connection.library_name = value
    else:
        connection.library_version = value
    return encoder.OK


@command(
    "client|info",
    2,
    "Returns what is known of this connection",
    group="connection",
    flags=_HARMLESS,
)
def client_info(connection: Connection, argv: list[bytes]) -> bytes:
    """``CLIENT INFO``"""
    return _listed([connection], connection.protocol)


@command(
    "client|list",
    -2,
    "Lists the client connections",
    group="connection",
    flags=_ADMIN,
    arguments=(
        _TYPE,
        Argument(
            "id",
            "block",
            token="ID",
            optional=True,
            arguments=(Argument("client-id", "integer", multiple=True),),
        ),
    ),
    complexity="O(N) where N is the number of client connections",
)
def client_list(connection: Connection, argv: list[bytes]) -> bytes:
    """``CLIENT LIST [TYPE normal|master|replica|pubsub] [ID client-id ...]``"""
    connections = connection.node.connections
    found: Iterable[Connection] = connections.values()
    option = argv[2].upper() if len(argv) > 2 else b""
    if option == b"TYPE" and len(argv) == 4:
        if argv[3].upper() not in _TYPES:
            return _unknown_type(argv[3])
        # The other node is not a client here, and nobody subscribes: all are normal ones.
        found = found if argv[3].upper() == b"NORMAL" else ()
    elif option == b"ID" and len(argv) > 3:
        numbers = [reading.integer(text) for text in argv[3:]]
        if None in numbers:
            return encoder.error("ERR Invalid client ID")
        found = [connections[number] for number in numbers if number in connections]
    elif option:
        return reading.SYNTAX_ERROR
    return _listed(found, connection.protocol)


def _listed(connections: Iterable[Connection], protocol: int) -> bytes:
    now_s = time()
    return encoder.encode(
        encoder.Verbatim("".join([_line(each, now_s) for each in connections])), protocol
    )


def _line(client: Connection, now_s: float) -> str:
    """A client's line in Redis' form. (Ten thousand of them are made in one go: keep it plain.)"""
    unread, unwritten = client.input_bytes, client.output_bytes
    flags = "".join(sorted(client.flags)) + ("b" if client.paused else "")
    return (
        f"id={client.id} addr={client.address} laddr={client.local_address} "
        f"fd={client.sock.fileno()} name={client.name.decode()} "
        f"age={max(0, int(now_s - client.created_s))} "
        f"idle={max(0, int(now_s - client.last_active_s))} flags={flags or 'N'} db=0 sub=0 psub=0 "
        f"ssub=0 multi=-1 qbuf={unread} qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 "
        f"obl={unwritten} oll=0 omem={unwritten} tot-mem={unread + unwritten} "
        f"events={'rw' if unwritten else 'r'} cmd={_last_command(client)} user=default redir=-1 "
        f"resp={client.protocol} lib-name={client.library_name.decode()} "
        f"lib-ver={client.library_version.decode()}\n"
    )


def _last_command(client: Connection) -> str:
    last = client.last_command
    if last is None:
        return "NULL"
    sub: Command | None = client.last_subcommand if last.subcommands else None
    return sub.name if sub is not None and sub.name.startswith(last.name + "|") else last.name


@command(
    "client|kill",
    -3,
    "Closes client connections",
    group="connection",
    flags=_ADMIN,
    arguments=(
        Argument(
            "filter",
            "oneof",
            arguments=(
                Argument("ip:port"),
                Argument(
                    "filters",
                    "block",
                    arguments=(
                        Argument("client-id", "integer", token="ID", optional=True),
                        _TYPE,
                        Argument("username", token="USER", optional=True),
                        Argument("ip:port", token="ADDR", optional=True),
                        Argument("local-ip:port", token="LADDR", optional=True),
                        _YES_NO,
                        Argument("maxage", "integer", token="MAXAGE", optional=True),
                    ),
                ),
            ),
        ),
    ),
    complexity="O(N) where N is the number of client connections",
)
def client_kill(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``CLIENT KILL ip:port``, or ``CLIENT KILL`` with filters, all of which must fit."""
    connections = connection.node.connections
    if len(argv) == 3:
        address = shown(argv[2])
        victims = [each for each in connections.values() if each.address == address]
        reply = encoder.OK if victims else encoder.error("ERR No such client")
        return _kill(connection, victims, reply)
    skip_me = True
    filters: dict[bytes, Callable[[Connection], bool]] = {}  # the last of a kind counts
    for position in range(2, len(argv), 2):
        option, value = argv[position].upper(), argv[position + 1 : position + 2]
        if not value:
            return reading.SYNTAX_ERROR
        if option == b"SKIPME" and value[0].upper() in (b"YES", b"NO"):
            skip_me = value[0].upper() == b"YES"
            continue
        wanted = _filter(option, value[0])
        if isinstance(wanted, bytes):
            return wanted
        filters[option] = wanted
    wanted_all = list(filters.values())
    victims = [each for each in connections.values() if all(fits(each) for fits in wanted_all)]
    if skip_me and connection in victims:
        victims.remove(connection)
    return _kill(connection, victims, encoder.integer(len(victims)))


def _filter(option: bytes, value: bytes) -> Callable[[Connection], bool] | bytes:
    """One filter of CLIENT KILL, or the error reply."""
    text = shown(value)
    match option:
        case b"ID":
            number = reading.integer(value)
            if number is None or number < 1:
                return encoder.error("ERR client-id should be greater than 0")
            return lambda client: client.id == number
        case b"ADDR":
            return lambda client: client.address == text
        case b"LADDR":
            return lambda client: client.local_address == text
        case b"TYPE":
            if value.upper() not in _TYPES:
                return _unknown_type(value)
            return lambda client: value.upper() == b"NORMAL"
        case b"USER":
            if value != b"default":
                return encoder.error(f"ERR No such user '{text}'")
            return lambda client: True
        case b"MAXAGE":
            age_s = reading.integer(value)
            if age_s is None:
                return encoder.error("ERR maxage is not an integer or out of range")
            if age_s < 1:
                return encoder.error("ERR maxage should be greater than 0")
            since_s = time() - age_s
            return lambda client: client.created_s <= since_s
        case _:
            return reading.SYNTAX_ERROR


def _unknown_type(name: bytes) -> bytes:
    return encoder.error(f"ERR Unknown client type '{shown(name)}'")


def _kill(connection: Connection, victims: list[Connection], reply: bytes) -> bytes | None:
    """Close connections; the one that asks comes last, and gets its answer."""
    why = f"killed by client {connection.address}"
    if len(victims) > _CLOSED_PER_TURN:
        connection.pause()
        step = partial(_kill_some, connection, deque(victims), reply, why, connection in victims)
        connection.node.do_in_steps(step)
        return None
    for victim in victims:
        if victim is not connection:
            victim.close(why)
    if connection not in victims:
        return reply
    answer_and_close(connection, reply)
    return None


def _kill_some(
    connection: Connection, victims: deque[Connection], reply: bytes, why: str, itself: bool
) -> bool:
    """The same for thousands, some in each turn of the loop; whether there are more."""
    for _ in range(min(len(victims), _CLOSED_PER_TURN)):
        victim = victims.popleft()
        if victim is not connection:
            victim.close(why)
    if victims:
        return True
    connection.resume(reply)
    if itself and not connection.closed:
        connection.close_after_replies()
    return False


@command(
    "client|reply",
    3,
    "Turns the replies to this connection on or off, or skips the next one",
    group="connection",
    flags=_HARMLESS,
    arguments=(
        Argument(
            "on_off_skip",
            "oneof",
            arguments=(
                Argument("on", "pure-token", "ON"),
                Argument("off", "pure-token", "OFF"),
                Argument("skip", "pure-token", "SKIP"),
            ),
        ),
    ),
)
def client_reply(connection: Connection, argv: list[bytes]) -> bytes | None:
    """``CLIENT REPLY ON|OFF|SKIP``: only ON is answered."""
    match argv[2].upper():
        case b"ON":
            connection.silent = ""
            return encoder.OK
        case b"OFF":
            connection.silent = "off"
        case b"SKIP":
            connection.silent = connection.silent or "skip"
        case _:
            return reading.SYNTAX_ERROR
    return None


@command(
    "client|no-evict",
    3,
    "Accepted for compatibility: no client is ever evicted for memory",
    group="connection",
    flags=_ADMIN,
    arguments=(_ON_OFF,),
)
def no_evict(connection: Connection, argv: list[bytes]) -> bytes:
    """``CLIENT NO-EVICT ON|OFF``"""
    return _switch(connection, argv[2], "e")


@command(
    "client|no-touch",
    3,
    "Accepted for compatibility: reading a lock never changes it",
    group="connection",
    flags=_HARMLESS,
    arguments=(_ON_OFF,),
)
def no_touch(connection: Connection, argv: list[bytes]) -> bytes:
    """``CLIENT NO-TOUCH ON|OFF``"""
    return _switch(connection, argv[2], "T")


def _switch(connection: Connection, value: bytes, letter: str) -> bytes:
    match value.upper():
        case b"ON":
            connection.flags.add(letter)
        case b"OFF":
            connection.flags.discard(letter)
        case _:
            return reading.SYNTAX_ERROR
    return encoder.OK
