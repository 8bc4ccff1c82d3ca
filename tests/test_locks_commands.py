"""LOCK, UNLOCK, RENEW, VERIFY and INSPECT over a real socket, against a node that serves alone.

The contract in one line each: a token or 0; 1 or 0; the same answer to the same request, refusals
included (I4); and whatever is malformed, stale or not known changes nothing (I11).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import pytest
from harness.processes import Node, wait_until
from harness.raw import lone_node
from harness.wire import ReplyError, Wire, as_map, encode

NAME_MAX = 512
LEASE_MAX_MS = 365 * 86_400_000
YEAR_S = 365 * 86_400
DAY = 86_400_000
SEQUENCE_MAX = 2**63 - 1
MALFORMED = (
    "ERR request ids that begin with '@' have the form @<client>:<n>, "
    "n a decimal number without leading zeros below 2^63"
)
GONE = (
    "REQUESTGONE a later request of this client was executed; "
    "whether this one was is no longer known"
)
REUSED = "ERR request id was already used for another command or name"
NOT_ITS_OWN = (
    "ERR a request of an @client can be undone only by a request of the same client "
    "with a higher number"
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One for the whole file: each test takes names and ids of its own."""
    with lone_node(tmp_path_factory.mktemp("locks")) as node:
        yield node


@pytest.fixture
def wire(node: Node) -> Iterator[Wire]:
    """A connection."""
    with node.wire() as wire:
        yield wire


_numbers = itertools.count(1)


@pytest.fixture
def name() -> str:
    """A lock nobody has used."""
    return f"lock {next(_numbers)}"


@pytest.fixture
def client() -> str:
    """A client id nobody has used, without its @."""
    return f"client {next(_numbers)}"


def reqid() -> str:
    """An opaque request id nobody has used."""
    return f"request {next(_numbers)}"


def error(wire: Wire, *words: str | bytes | int) -> str:
    """The error that a request is answered with."""
    with pytest.raises(ReplyError) as caught:
        wire.ask(*words)
    return str(caught.value)


def is_held(wire: Wire, name: str) -> bool:
    return wire.inspect(name)["state"] == b"held"


def lock(wire: Wire, name: str | bytes, *rest: str | bytes) -> int:
    """LOCK; the fencing token or 0."""
    token = wire.ask("LOCK", name, *rest)
    assert isinstance(token, int)
    return token


# -- the state machine ---------------------------------------------------------------------------


def test_a_free_lock_is_granted_and_a_held_one_refused(wire: Wire, name: str) -> None:
    assert lock(wire, name, reqid()) > 0
    assert lock(wire, name, reqid()) == 0
    assert wire.ask("UNLOCK", name, reqid()) == 1
    assert wire.ask("UNLOCK", name, reqid()) == 0
    assert lock(wire, name, reqid()) > 0


def test_fencing_tokens_rise_with_every_grant_over_all_names(wire: Wire, name: str) -> None:
    tokens = []
    for at in range(50):
        tokens.append(lock(wire, f"{name} {at % 3}", reqid()))
        assert wire.ask("UNLOCK", f"{name} {at % 3}", reqid()) == 1
    assert tokens == sorted(set(tokens))
    assert tokens[0] > 1_700_000_000_000_000  # microseconds of the wall clock
    assert tokens[-1] < 2**53  # exact in a double


def test_locks_are_told_apart_by_every_byte_of_their_names(wire: Wire, name: str) -> None:
    for suffix in ("", " ", "\x00", "\x00\x00", "a", "A", "\r\n", "\u00e9"):
        assert lock(wire, name + suffix, reqid()) > 0


def test_anyone_may_unlock(node: Node, wire: Wire, name: str) -> None:
    assert lock(wire, name, "@one:1", "OWNER", "one") > 0
    with node.wire() as other:
        assert other.ask("UNLOCK", name, reqid()) == 1
    assert not is_held(wire, name)


def test_a_lock_outlives_the_connection_that_took_it(node: Node, wire: Wire, name: str) -> None:
    with node.wire() as other:
        token = lock(other, name, reqid())
    assert lock(wire, name, reqid()) == 0
    assert wire.inspect(name)["fencing_token"] == token


def test_commands_and_options_may_be_written_in_any_case(wire: Wire, name: str) -> None:
    assert wire.ask("lOcK", name, reqid(), "oWnEr", "Me") != 0
    assert wire.ask("lock", name, reqid()) == 0
    assert wire.inspect(name)["owner"] == b"Me"
    assert wire.ask("Unlock", name, reqid()) == 1


def test_inline_requests_take_and_give_back_locks_too(wire: Wire, client: str) -> None:
    name = client.replace(" ", "")
    wire.sock.sendall(f"LOCK {name} '@{client}:1'\r\nLOCK {name} \"@{client}:1\"\n".encode())
    token = wire.read()
    assert token == wire.read() == wire.inspect(name)["fencing_token"]
    wire.sock.sendall(f"unlock {name} r\r\n".encode())
    assert wire.read() == 1


# -- INSPECT -------------------------------------------------------------------------------------


def test_inspect_shows_a_held_and_a_free_lock(wire: Wire, name: str) -> None:
    free = {"state": b"free", "owner": None, "fencing_token": 0, "remaining_ms": 0, "held_ms": 0}
    nobody = {"waiter_count": 0, "waiters": []}
    free |= nobody
    assert wire.inspect(name) == free
    owned = reqid()
    token = lock(wire, name, owned)
    shown = wire.inspect(name)
    held_ms = shown.pop("held_ms")
    assert isinstance(held_ms, int)
    assert 0 <= held_ms < 60_000
    held = {"state": b"held", "owner": owned.encode(), "fencing_token": token, "remaining_ms": -1}
    assert shown == held | nobody
    wire.ask("UNLOCK", name, reqid())
    assert wire.inspect(name) == free


def test_inspect_is_a_map_in_resp3_and_a_flat_array_in_resp2(wire: Wire, name: str) -> None:
    token = lock(wire, name, reqid(), "OWNER", "me")
    flat = wire.ask("INSPECT", name)
    assert isinstance(flat, list)
    assert flat[:6] == [b"state", b"held", b"owner", b"me", b"fencing_token", token]
    wire.ask("HELLO", "3")
    shown = wire.ask("INSPECT", name)
    assert isinstance(shown, dict)
    assert list(shown)[:4] == flat[0:8:2]
    assert shown[b"fencing_token"] == token
    free = wire.ask("INSPECT", name + " free")
    assert isinstance(free, dict)
    assert free[b"owner"] is None


def test_inspect_shows_what_is_left_of_a_lease(wire: Wire, name: str) -> None:
    lock(wire, name, reqid(), "PX", "1000")
    lefts = []
    while is_held(wire, name):
        shown = wire.inspect(name)
        if shown["state"] == b"held":
            assert shown["remaining_ms"] + shown["held_ms"] >= 999  # (one clock, two looks)
            lefts.append(shown["remaining_ms"])
    assert lefts == sorted(lefts, reverse=True)
    assert lefts[0] <= 1_000


@pytest.mark.parametrize("protocol", ["2", "3"])
def test_inspect_shows_who_stands_in_line(node: Node, wire: Wire, name: str, protocol: str) -> None:
    lock(wire, name, "held")
    with node.wire() as one, node.wire() as other:
        one.send("LOCK", name, "first", "WAIT", "60000", "OWNER", b"\x00me")
        wait_until(lambda: wire.inspect(name)["waiter_count"] == 1, "one waits")
        other.send("LOCK", name, "second", "WAIT", "60000", "PX", "50000")
        wait_until(lambda: wire.inspect(name)["waiter_count"] == 2, "both wait")
        wire.ask("HELLO", protocol)
        reply = wire.ask("INSPECT", name)
        assert isinstance(reply, dict if protocol == "3" else list)
        shown = as_map(reply)
        assert shown["waiter_count"] == 2
        [[owner, waits_ms], [other_owner, other_waits_ms]] = shown["waiters"]
        assert (owner, other_owner) == (b"\x00me", b"second")
        assert 60_000 > waits_ms >= other_waits_ms >= 0
        wire.ask("UNLOCK", name, reqid())
        assert one.read() != 0


def test_inspect_changes_nothing(wire: Wire, name: str) -> None:
    for _ in range(3):
        assert not is_held(wire, name)
    assert lock(wire, name, reqid()) > 0
    for _ in range(3):
        assert is_held(wire, name)


# -- OWNER ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("owner", [b"x", b"\x00\r\n\xff", b"OWNER", b"o" * NAME_MAX], ids=len)
def test_the_owner_is_shown_as_it_was_given(wire: Wire, name: str, owner: bytes) -> None:
    assert lock(wire, name, reqid(), "OWNER", owner) > 0
    assert wire.inspect(name)["owner"] == owner


def test_a_refused_request_does_not_change_the_owner(wire: Wire, name: str) -> None:
    token = lock(wire, name, reqid(), "OWNER", "first")
    assert lock(wire, name, reqid(), "OWNER", "second") == 0
    shown = wire.inspect(name)
    assert (shown["owner"], shown["fencing_token"]) == (b"first", token)


def test_a_repeat_with_another_owner_is_the_same_request(wire: Wire, name: str) -> None:
    request = reqid()
    token = lock(wire, name, request, "OWNER", "first")
    assert lock(wire, name, request, "OWNER", "second") == token
    assert lock(wire, name, request) == token
    assert wire.inspect(name)["owner"] == b"first"


# -- at most once --------------------------------------------------------------------------------


@pytest.fixture(params=["opaque", "@client:n"])
def ids(request: pytest.FixtureRequest) -> Iterator[str]:
    """Request ids of one kind, each new, for one client."""
    prefix = f"@c{next(_numbers)}:" if request.param == "@client:n" else f"r{next(_numbers)}-"
    return (f"{prefix}{n}" for n in itertools.count(1))


def test_a_repeated_grant_is_the_first_one(node: Node, ids: Iterator[str], name: str) -> None:
    request = next(ids)
    with node.wire() as one, node.wire() as other:
        token = lock(one, name, request)
        assert token > 0
        assert lock(other, name, request) == token
        assert [lock(one, name, request) for _ in range(10)] == [token] * 10
        assert one.inspect(name)["fencing_token"] == token


def test_a_repeated_grant_is_not_granted_again_once_released(
    wire: Wire, ids: Iterator[str], name: str
) -> None:
    request = next(ids)
    token = lock(wire, name, request)
    assert wire.ask("UNLOCK", name, reqid()) == 1
    assert lock(wire, name, request) == token
    assert not is_held(wire, name)


def test_a_refusal_is_remembered(wire: Wire, ids: Iterator[str], name: str) -> None:
    lock(wire, name, reqid())
    request = next(ids)
    assert lock(wire, name, request) == 0
    assert wire.ask("UNLOCK", name, reqid()) == 1
    assert lock(wire, name, request) == 0
    assert not is_held(wire, name)


def test_a_repeated_release_does_not_release_the_next_holder(
    wire: Wire, ids: Iterator[str], name: str
) -> None:
    lock(wire, name, reqid())
    request = next(ids)
    assert wire.ask("UNLOCK", name, request) == 1
    token = lock(wire, name, reqid())
    assert wire.ask("UNLOCK", name, request) == 1
    assert wire.inspect(name)["fencing_token"] == token


def test_a_refused_release_does_not_release_the_next_holder_either(
    wire: Wire, ids: Iterator[str], name: str
) -> None:
    request = next(ids)
    assert wire.ask("UNLOCK", name, request) == 0
    token = lock(wire, name, reqid())
    assert wire.ask("UNLOCK", name, request) == 0
    assert wire.inspect(name)["fencing_token"] == token


def test_an_opaque_id_means_another_request_with_another_command_or_name(
    wire: Wire, name: str
) -> None:
    request = reqid()
    token = lock(wire, name, request)
    other = lock(wire, name + " other", request)
    assert other > token > 0
    assert wire.ask("UNLOCK", name, request) == 1
    assert wire.ask("UNLOCK", name + " other", request) == 1
    assert lock(wire, name, request) == token
    assert lock(wire, name + " other", request) == other


def test_an_id_of_a_client_means_one_request_only(wire: Wire, name: str, client: str) -> None:
    token = lock(wire, name, f"@{client}:1")
    assert error(wire, "LOCK", name + " other", f"@{client}:1") == REUSED
    assert error(wire, "UNLOCK", name, f"@{client}:1") == REUSED
    assert error(wire, "UNLOCK", name + " other", f"@{client}:1") == REUSED
    assert not is_held(wire, name + " other")
    assert lock(wire, name, f"@{client}:1") == token
    assert wire.ask("UNLOCK", name, f"@{client}:2") == 1
    assert error(wire, "LOCK", name, f"@{client}:2") == REUSED


def test_executing_n_freezes_everything_below(wire: Wire, name: str, client: str) -> None:
    assert lock(wire, name, f"@{client}:5") > 0
    assert wire.ask("UNLOCK", name, f"@{client}:7") == 1
    for n in (0, 1, 4, 5, 6):
        assert error(wire, "LOCK", name, f"@{client}:{n}") == GONE
        assert error(wire, "UNLOCK", name, f"@{client}:{n}") == GONE
        assert error(wire, "LOCK", name + " never used", f"@{client}:{n}") == GONE
    assert not is_held(wire, name)
    assert wire.ask("UNLOCK", name, f"@{client}:7") == 1
    assert lock(wire, name, f"@{client}:8") > 0


def test_a_refusal_freezes_what_is_below_too(wire: Wire, name: str, client: str) -> None:
    lock(wire, name, reqid())
    assert lock(wire, name, f"@{client}:2") == 0
    assert error(wire, "UNLOCK", name, f"@{client}:1") == GONE
    assert is_held(wire, name)


def test_clients_do_not_disturb_each_other(wire: Wire, name: str, client: str) -> None:
    # Names that differ in case, that end in digits and that hold colons are different clients.
    clients = [f"@{client}", f"@{client.upper()}", f"@{client}:1", f"@{client}:1:", f"@@{client}"]
    for at, each in enumerate(clients):
        token = lock(wire, f"{name} {at}", f"{each}:1")
        assert token > 0
        assert lock(wire, f"{name} {at}", f"{each}:1") == token


@pytest.mark.parametrize(
    "n", [0, 1, 2**31, 2**32, 2**53 + 1, SEQUENCE_MAX - 1, SEQUENCE_MAX], ids=str
)
def test_n_is_any_number_below_2_to_the_63(wire: Wire, name: str, client: str, n: int) -> None:
    token = lock(wire, name, f"@{client}:{n}")
    assert token > 0
    assert lock(wire, name, f"@{client}:{n}") == token


MALFORMED_IDS: tuple[bytes, ...] = (
    b"@", b"@x", b"@:", b"@:1", b"@c:", b"@c:x", b"@c:-1", b"@c:+1", b"@c: 1", b"@c:1 ", b"@c:01",
    b"@c:00", b"@c:0x1", b"@c:1.0", b"@c:1_0", b"@c:1e3", b"@c:1\x00", b"@c:1\r\n", b"@c:1:",
    b"@c:1:x", b"@c:" + str(2**63).encode(), b"@c:" + str(2**64).encode(),
    b"@c:" + str(2**64 + 1).encode(), b"@c:" + b"9" * 20, b"@c:" + b"1" * 500, "@c:\u0661".encode(),
    "@c:\u00b2".encode(), b"@\xff:\xff",
)  # fmt: skip


@pytest.mark.parametrize("malformed", MALFORMED_IDS, ids=lambda reqid: repr(reqid[:24]))
def test_a_malformed_id_is_refused_and_changes_nothing(
    wire: Wire, name: str, malformed: bytes
) -> None:
    assert error(wire, "LOCK", name, malformed) == MALFORMED
    assert not is_held(wire, name)
    assert lock(wire, name, reqid()) > 0
    assert error(wire, "UNLOCK", name, malformed) == MALFORMED
    assert error(wire, "UNLOCK", name, reqid(), "REQUEST", malformed) == MALFORMED
    assert is_held(wire, name)


def test_a_malformed_n_freezes_nothing(wire: Wire, name: str, client: str) -> None:
    for n in ("010", str(2**63), str(2**64), "9" * 40, "", "x", "-1", "1e9"):
        assert error(wire, "LOCK", name, f"@{client}:{n}") == MALFORMED
    assert lock(wire, name, f"@{client}:0") > 0


def test_a_request_that_is_refused_for_its_form_freezes_nothing(
    wire: Wire, name: str, client: str
) -> None:
    high = f"@{client}:9"
    for request in (
        ("LOCK", name, high, "PX", "0"),
        ("LOCK", name, high, "WAIT", "-1"),
        ("LOCK", name, high, "FOO", "x"),
        ("LOCK", name, high, "OWNER"),
        ("LOCK", name, high, "OWNER", ""),
        ("LOCK", "", high),
        ("LOCK", "x" * (NAME_MAX + 1), high),
        ("LOCK", high),
        ("UNLOCK", name, high, "TOKEN", "0"),
        ("UNLOCK", name, high, "REQUEST", "@x"),
        ("UNLOCK", name, high, "REQUEST", f"@{client}:9"),
        ("UNLOCK", name, high, "REQUEST", "@another:1"),
        ("INSPECT", name, high),
    ):
        assert error(wire, *request).startswith("ERR ")
    assert lock(wire, name, f"@{client}:1") > 0


# -- UNLOCK ... REQUEST --------------------------------------------------------------------------


def test_undo_releases_the_grant_that_the_request_made(
    wire: Wire, ids: Iterator[str], name: str
) -> None:
    undone, undo = next(ids), next(ids)
    assert lock(wire, name, undone) > 0
    assert wire.ask("UNLOCK", name, undo, "REQUEST", undone) == 1
    assert not is_held(wire, name)
    assert wire.ask("UNLOCK", name, undo, "REQUEST", undone) == 1
    assert not is_held(wire, name)


def test_undo_leaves_the_grant_of_another_request_alone(
    wire: Wire, ids: Iterator[str], name: str
) -> None:
    undone, undo = next(ids), next(ids)
    holder = lock(wire, name, reqid())
    assert lock(wire, name, undone) == 0
    assert wire.ask("UNLOCK", name, undo, "REQUEST", undone) == 0
    assert wire.inspect(name)["fencing_token"] == holder


def test_undo_of_a_grant_that_is_over_leaves_the_next_holder_alone(
    wire: Wire, ids: Iterator[str], name: str
) -> None:
    undone, undo = next(ids), next(ids)
    assert lock(wire, name, undone) > 0
    assert wire.ask("UNLOCK", name, reqid()) == 1
    holder = lock(wire, name, reqid())
    assert wire.ask("UNLOCK", name, undo, "REQUEST", undone) == 0
    assert wire.inspect(name)["fencing_token"] == holder


def test_undo_keeps_an_unknown_request_from_ever_being_granted(wire: Wire, name: str) -> None:
    undone = reqid()
    assert wire.ask("UNLOCK", name, reqid(), "REQUEST", undone) == 0
    assert lock(wire, name, undone) == 0  # its late copy
    assert not is_held(wire, name)
    assert lock(wire, name, reqid()) > 0


def test_undo_keeps_an_unknown_request_of_a_client_from_ever_being_granted(
    wire: Wire, name: str, client: str
) -> None:
    assert wire.ask("UNLOCK", name, f"@{client}:4", "REQUEST", f"@{client}:3") == 0
    assert error(wire, "LOCK", name, f"@{client}:3") == GONE
    assert not is_held(wire, name)
    assert wire.ask("UNLOCK", name, f"@{client}:4", "REQUEST", f"@{client}:3") == 0
    assert lock(wire, name, f"@{client}:5") > 0


def test_undo_means_the_request_on_that_lock_only(wire: Wire, name: str) -> None:
    undone = reqid()
    assert lock(wire, name, undone) > 0
    assert wire.ask("UNLOCK", name + " other", reqid(), "REQUEST", undone) == 0
    assert is_held(wire, name)


def test_undo_is_the_same_request_as_an_unlock_with_its_id(
    wire: Wire, ids: Iterator[str], name: str
) -> None:
    undone, undo = next(ids), next(ids)
    assert lock(wire, name, undone) > 0
    assert wire.ask("UNLOCK", name, undo, "REQUEST", undone) == 1
    holder = lock(wire, name, reqid())
    assert wire.ask("UNLOCK", name, undo) == 1
    assert wire.inspect(name)["fencing_token"] == holder


def test_a_client_undoes_only_its_own_requests_and_with_a_higher_n(
    wire: Wire, name: str, client: str
) -> None:
    undone = f"@{client}:5"
    assert lock(wire, name, undone) > 0
    for undo in (f"@{client}:5", f"@{client}:4", f"@{client}x:6", reqid(), "@x", f"@{client}"):
        assert error(wire, "UNLOCK", name, undo, "REQUEST", undone) == NOT_ITS_OWN
    assert is_held(wire, name)
    assert wire.ask("UNLOCK", name, f"@{client}:6", "REQUEST", undone) == 1


def test_a_client_may_undo_an_opaque_request(wire: Wire, name: str, client: str) -> None:
    undone = reqid()
    assert lock(wire, name, undone) > 0
    assert wire.ask("UNLOCK", name, f"@{client}:1", "REQUEST", undone) == 1
    assert not is_held(wire, name)


# -- the form of requests ------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["LOCK", "UNLOCK"])
def test_names_and_request_ids_have_1_to_512_bytes(
    wire: Wire, name: str, client: str, command: str
) -> None:
    longest = name + "n" * (NAME_MAX - len(name))
    for good in (name[-1:], longest):
        assert isinstance(wire.ask(command, good, reqid()), int)
    prefix = f"{client}-"
    for good in ("r", prefix + "r" * (NAME_MAX - len(prefix))):
        assert isinstance(wire.ask(command, name, good), int)
    bound = f"must be 1 to {NAME_MAX} bytes long"
    options = ("WAIT", "1000", "PX", "5") if command == "LOCK" else ("TOKEN", "1")
    for bad in ("", longest + "n"):
        assert error(wire, command, bad, reqid()) == f"ERR lock name {bound}"
    for bad in ("", "r" * (NAME_MAX + 1), "@" + "c" * NAME_MAX + ":1"):
        assert error(wire, command, name, bad) == f"ERR request id {bound}"
    for bad in ("", longest + "n"):
        assert error(wire, "INSPECT", bad) == f"ERR lock name {bound}"
        assert error(wire, "VERIFY", bad, "1") == f"ERR lock name {bound}"
        assert error(wire, "RENEW", bad, "1", "PX", "1") == f"ERR lock name {bound}"
        assert error(wire, command, bad, reqid(), *options) == f"ERR lock name {bound}"
    assert wire.inspect(longest)["state"] in (b"held", b"free")


def test_a_client_id_of_512_bytes_works(wire: Wire, name: str, client: str) -> None:
    longest = "@" + client + "c" * (NAME_MAX - 21 - len(client)) + ":" + str(SEQUENCE_MAX)
    assert len(longest) == NAME_MAX
    token = lock(wire, name, longest)
    assert lock(wire, name, longest) == token > 0


@pytest.mark.parametrize("option", ["OWNER", "REQUEST"])
def test_an_owner_and_an_undone_request_have_1_to_512_bytes(
    wire: Wire, name: str, option: str
) -> None:
    command = "LOCK" if option == "OWNER" else "UNLOCK"
    said = f"ERR value of {option} must be 1 to {NAME_MAX} bytes long"
    for bad in ("", "o" * (NAME_MAX + 1)):
        assert error(wire, command, name, reqid(), option, bad) == said
    assert not is_held(wire, name)
    assert isinstance(wire.ask(command, name, reqid(), option, "o" * NAME_MAX), int)


BINARY = (
    b"\x00",
    b"\r\n",
    b"a\r\nb",
    b"$1\r\n",
    b"*1\r\n$4\r\nPING\r\n",
    b"\xff\xfe",
    bytes(range(256)),
)


@pytest.mark.parametrize("binary", BINARY, ids=repr)
def test_names_and_request_ids_are_binary_safe(wire: Wire, binary: bytes) -> None:
    token = lock(wire, b"binary " + binary, b"binary " + binary)
    assert token > 0
    assert lock(wire, b"binary " + binary, b"binary " + binary) == token
    assert lock(wire, b"binary " + binary, b"other " + binary) == 0
    flat = wire.ask("INSPECT", b"binary " + binary)
    assert isinstance(flat, list)
    assert flat[flat.index(b"owner") + 1] == b"binary " + binary
    assert wire.ask("UNLOCK", b"binary " + binary, b"@" + binary + b":1") == 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        *(("lock", ["a"] * count) for count in (0, 1)),
        *(("unlock", ["a"] * count) for count in (0, 1)),
        *(("inspect", ["a"] * count) for count in (0, 2, 3)),
        *(("renew", ["a"] * count) for count in (0, 1, 2, 3, 5)),
        *(("verify", ["a"] * count) for count in (0, 1, 3)),
        ("locks", []),
    ],
    ids=lambda value: value if isinstance(value, str) else len(value),
)
@pytest.mark.parametrize("spell", [str.lower, str.upper, str.title])
def test_a_wrong_number_of_arguments_is_said_in_redis_words(
    wire: Wire, command: str, words: list[str], spell: type[str]
) -> None:
    said = f"ERR wrong number of arguments for '{command}' command"
    assert error(wire, spell(command), *words) == said
    assert not is_held(wire, "a")


# -- numbers -------------------------------------------------------------------------------------

NO_NUMBERS: tuple[bytes, ...] = (
    *(b"", b"x", b"-", b"-1", b"-0", b"+5", b" 5", b"5 ", b"05", b"00", b"1.5", b"1e3", b"0x10"),
    *(b"1_000", b"5\0", b"\0", b"5\r\n", b"1,5", b"nan", b"inf", b"5ms", b"--5", b"\xff"),
    *("\u0663".encode(), "\u00b2".encode(), "\uff15".encode(), b"5" * 500),
    *(str(2**63).encode(), str(2**64 + 5).encode(), b"9" * 20, b"1" + b"0" * 19),
)
"""What is a number to somebody, but not here."""


def refuses(wire: Wire, said: str, *words: str | bytes | int) -> None:
    """The request is answered with this error, and changes nothing at all."""
    before = wire.digest()
    assert error(wire, *words).startswith(said), words
    assert wire.digest() == before, words


def no_number(number: bytes) -> str:
    return repr(number[:24])


@pytest.mark.parametrize("number", [*NO_NUMBERS, b"0"], ids=no_number)
def test_a_lease_that_is_no_number_of_at_least_1_is_refused(
    wire: Wire, name: str, number: bytes
) -> None:
    for unit, what, most in (("PX", "milliseconds", LEASE_MAX_MS), ("EX", "seconds", YEAR_S)):
        said = f"ERR value of {unit} must be a whole number of {what} from 1 to {most}"
        refuses(wire, said, "LOCK", name, reqid(), unit, number)
        refuses(wire, said, "LOCK", name, reqid(), "WAIT", "5", unit.lower(), number)
        refuses(wire, said, "RENEW", name, "1", unit, number)


@pytest.mark.parametrize("number", NO_NUMBERS, ids=no_number)
def test_a_wait_that_is_no_number_is_refused(wire: Wire, name: str, number: bytes) -> None:
    said = f"ERR value of WAIT must be a whole number of milliseconds from 0 (do not wait) to {DAY}"
    refuses(wire, said, "LOCK", name, reqid(), "WAIT", number)
    lock(wire, name, reqid())
    refuses(wire, said, "LOCK", name, reqid(), "OWNER", "me", "WAIT", number)


@pytest.mark.parametrize("number", [*NO_NUMBERS, b"0"], ids=no_number)
def test_a_fencing_token_that_is_no_number_of_at_least_1_is_refused(
    wire: Wire, name: str, number: bytes
) -> None:
    said = "ERR fencing token must be a decimal number from 1 to 2^63-1"
    lock(wire, name, reqid(), "PX", "60000")
    refuses(wire, said, "UNLOCK", name, reqid(), "TOKEN", number)
    refuses(wire, said, "RENEW", name, number, "PX", "100")
    refuses(wire, said, "VERIFY", name, number)
    assert is_held(wire, name)


@pytest.mark.parametrize("number", [*NO_NUMBERS, b"0", b"1001"], ids=no_number)
def test_a_count_that_is_no_number_from_1_to_1000_is_refused(wire: Wire, number: bytes) -> None:
    refuses(wire, "ERR value of COUNT must be from 1 to 1000", "LOCKS", "0", "COUNT", number)


@pytest.mark.parametrize("number", [*NO_NUMBERS, b"9" * 40], ids=no_number)
def test_a_cursor_that_is_no_number_is_refused(wire: Wire, number: bytes) -> None:
    refuses(wire, "ERR invalid cursor", "LOCKS", number)


def test_the_longest_lease_is_a_year(wire: Wire, name: str) -> None:
    for number, (unit, most) in enumerate((("PX", LEASE_MAX_MS), ("EX", YEAR_S))):
        each = f"{name} {number}"
        token = lock(wire, each, reqid(), unit, str(most))
        assert 0 <= LEASE_MAX_MS - remaining_ms(wire, each) < 60_000
        assert wire.ask("RENEW", each, token, unit, most) == 1
        said = f"ERR value of {unit} must be a whole number of"
        refuses(wire, said, "LOCK", each, reqid(), unit, most + 1)
        refuses(wire, said, "RENEW", each, token, unit, most + 1)


def test_the_longest_wait_is_a_day(node: Node, wire: Wire, name: str) -> None:
    lock(wire, name, reqid())
    refuses(wire, "ERR value of WAIT must", "LOCK", name, reqid(), "WAIT", DAY + 1)
    with node.wire() as waiting:
        waiting.send("LOCK", name, reqid(), "WAIT", DAY)
        wait_until(lambda: wire.inspect(name)["waiter_count"] == 1, "it waits")
        wire.ask("UNLOCK", name, reqid())
        assert waiting.read() != 0


def test_the_shortest_lease_and_the_shortest_wait_are_a_millisecond(wire: Wire, name: str) -> None:
    token = lock(wire, name, reqid(), "PX", "1")
    assert token > 0
    wait_until(lambda: not is_held(wire, name), "it has ended")
    assert lock(wire, name, reqid()) > token
    assert lock(wire, name, reqid(), "WAIT", "1") == 0


# -- options -------------------------------------------------------------------------------------


def remaining_ms(wire: Wire, name: str) -> int:
    return int(wire.inspect(name)["remaining_ms"])


@pytest.mark.parametrize("spell", [str.upper, str.lower, str.title])
@pytest.mark.parametrize("lease", [("PX", "90000"), ("EX", "90")], ids=" ".join)
def test_options_come_in_any_order_and_case(
    wire: Wire, name: str, lease: tuple[str, str], spell: Callable[[str], str]
) -> None:
    options = [lease, ("WAIT", "10"), ("OWNER", "me")]
    for at, chosen in enumerate(
        order for count in (1, 2, 3) for order in itertools.permutations(options, count)
    ):
        each = f"{name} {at}"
        words = [word for keyword, value in chosen for word in (spell(keyword), value)]
        request = reqid()
        token = lock(wire, each, request, *words)
        assert token > 0
        shown = wire.inspect(each)
        assert shown["owner"] == (b"me" if ("OWNER", "me") in chosen else request.encode())
        left_ms = remaining_ms(wire, each)
        assert 80_000 < left_ms <= 90_000 if lease in chosen else left_ms == -1
        assert lock(wire, each, reqid(), *words) == 0
        assert wire.ask("UNLOCK", each, reqid(), spell("TOKEN"), token) == 1


def test_a_wait_of_0_does_not_wait(wire: Wire, name: str) -> None:
    lock(wire, name, reqid())
    request = reqid()
    assert lock(wire, name, request, "WAIT", "0") == 0
    wire.ask("UNLOCK", name, reqid())
    assert lock(wire, name, request, "WAIT", "60000") == 0, "it was refused, for good"


def test_a_wait_that_is_not_needed_costs_nothing(wire: Wire, name: str) -> None:
    assert lock(wire, name, reqid(), "WAIT", str(DAY)) > 0


def test_a_wait_that_ran_out_is_a_refusal_for_good(wire: Wire, name: str) -> None:
    lock(wire, name, reqid())
    request = reqid()
    started_s = time.monotonic()
    assert lock(wire, name, request, "WAIT", "50") == 0
    assert time.monotonic() - started_s >= 0.05
    wire.ask("UNLOCK", name, reqid())
    assert lock(wire, name, request, "WAIT", "50") == 0
    assert not is_held(wire, name)


# -- RENEW, VERIFY, UNLOCK ... TOKEN -------------------------------------------------------------


@pytest.mark.parametrize("unit", ["PX", "px", "Ex", "EX"])
def test_a_renewal_restarts_the_lease_and_never_shortens_it(
    wire: Wire, name: str, unit: str
) -> None:
    def length(seconds: int) -> int:
        return seconds if unit.upper() == "EX" else seconds * 1000

    token = lock(wire, name, reqid(), "PX", "20000")
    assert wire.ask("RENEW", name, token, unit, length(90)) == 1
    assert 80_000 < remaining_ms(wire, name) <= 90_000
    before = wire.digest()
    assert wire.ask("RENEW", name, token, unit, length(10)) == 1
    assert wire.digest() == before, "a late copy changes nothing"
    assert remaining_ms(wire, name) > 80_000
    assert wire.inspect(name)["fencing_token"] == token


def test_a_grant_without_a_lease_stays_without_one(wire: Wire, name: str) -> None:
    token = lock(wire, name, reqid())
    before = wire.digest()
    assert wire.ask("RENEW", name, token, "PX", "1") == 1
    assert wire.digest() == before
    assert remaining_ms(wire, name) == -1


def test_an_old_token_neither_renews_nor_releases_nor_verifies(wire: Wire, name: str) -> None:
    old = lock(wire, name, reqid(), "PX", "60000")
    assert wire.ask("VERIFY", name, old) == 1
    wire.ask("UNLOCK", name, reqid())
    assert wire.ask("VERIFY", name, old) == 0
    current = lock(wire, name, reqid(), "PX", "60000")
    for stale in (old, current + 1, 1, 2**63 - 1):
        assert wire.ask("VERIFY", name, stale) == 0
        assert wire.ask("RENEW", name, stale, "PX", "90000") == 0
        assert wire.ask("UNLOCK", name, reqid(), "TOKEN", stale) == 0
    assert wire.ask("VERIFY", name, current) == 1
    assert wire.ask("VERIFY", name + " other", current) == 0
    assert remaining_ms(wire, name) <= 60_000
    assert wire.ask("UNLOCK", name, reqid(), "TOKEN", current) == 1


def test_what_a_token_refused_is_remembered(wire: Wire, ids: Iterator[str], name: str) -> None:
    token = lock(wire, name, next(ids))
    request = next(ids)
    assert wire.ask("UNLOCK", name, request, "TOKEN", token + 1) == 0
    assert wire.ask("UNLOCK", name, request, "TOKEN", token) == 0, "a repeat"
    assert wire.ask("UNLOCK", name, next(ids), "token", token) == 1


def test_reads_and_renewals_leave_nothing_in_the_reply_cache(wire: Wire, name: str) -> None:
    token = lock(wire, name, reqid(), "PX", "60000")
    before = wire.digest()
    for words in (
        *(("VERIFY", name, token), ("INSPECT", name), ("LOCKS", "0"), ("GET", name)),
        *(("TTL", name), ("PTTL", name), ("TYPE", name), ("EXISTS", name, name)),
        *(("RENEW", name, token + 1, "PX", "70000"), ("DEL", name + " free")),
    ):
        wire.ask(*words)
    assert wire.digest() == before


@pytest.mark.parametrize("words", [("PX",), (), ("PX", "1", "EX", "1"), ("PX", "1", "x")])
def test_a_renewal_has_one_lease(wire: Wire, name: str, words: tuple[str, ...]) -> None:
    said = "ERR wrong number of arguments for 'renew' command"
    refuses(wire, said, "RENEW", name, "1", *words)


@pytest.mark.parametrize("unit", ["", "P", "PXX", "WAIT", "PXAT", "KEEPTTL", "X" * 1_000, "P\0X"])
def test_a_renewal_is_in_milliseconds_or_seconds(wire: Wire, name: str, unit: str) -> None:
    token = lock(wire, name, reqid(), "PX", "60000")
    refuses(wire, "ERR expected PX or EX, got '", "RENEW", name, token, unit, "100000")


# -- options that are none -----------------------------------------------------------------------


def test_px_and_ex_exclude_each_other(wire: Wire, name: str) -> None:
    said = "ERR PX and EX exclude each other"
    refuses(wire, said, "LOCK", name, reqid(), "PX", "1000", "EX", "1")
    refuses(wire, said, "LOCK", name, reqid(), "ex", "1", "WAIT", "5", "px", "1000")


def test_token_and_request_exclude_each_other(wire: Wire, name: str) -> None:
    token = lock(wire, name, reqid())
    said = "ERR TOKEN and REQUEST exclude each other"
    refuses(wire, said, "UNLOCK", name, reqid(), "REQUEST", "r", "TOKEN", token)
    refuses(wire, said, "UNLOCK", name, reqid(), "TOKEN", token, "REQUEST", "r")


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        ("LOCK", ["FOO"], "ERR unknown option 'FOO'"),
        ("LOCK", ["FOO", "x"], "ERR unknown option 'FOO'"),
        ("LOCK", ["", "x"], "ERR unknown option ''"),
        ("LOCK", ["REQUEST", "x"], "ERR unknown option 'REQUEST'"),
        ("LOCK", ["F\r\n+OK\r\n", "x"], "ERR unknown option 'F  +OK  '"),
        ("LOCK", ["F" * 1_000, "x"], "ERR unknown option '" + "F" * 64 + "'"),
        ("LOCK", ["OWNER"], "ERR option OWNER needs a value"),
        ("LOCK", ["OWNER", "x", "OWNER", "y"], "ERR option OWNER is given twice"),
        ("LOCK", ["OWNER", "x", "owner"], "ERR option OWNER is given twice"),
        ("LOCK", ["OWNER", "x", "FOO"], "ERR unknown option 'FOO'"),
        ("LOCK", ["OWNER", "x"] * 500, "ERR option OWNER is given twice"),
        ("LOCK", ["x"] * 1_000, "ERR unknown option 'X'"),
        *(("LOCK", [each], f"ERR option {each} needs a value") for each in ("PX", "EX", "WAIT")),
        *(("LOCK", [each.lower()], f"ERR option {each} needs a value") for each in ("PX", "WAIT")),
        ("LOCK", ["PX", "5000", "EX"], "ERR option EX needs a value"),
        ("LOCK", ["PX", "5000", "px", "6000"], "ERR option PX is given twice"),
        ("LOCK", ["EX", "5", "WAIT", "1", "EX", "5"], "ERR option EX is given twice"),
        ("LOCK", ["WAIT", "5", "wait", "5"], "ERR option WAIT is given twice"),
        ("LOCK", ["PX", "5000", "NX", "x"], "ERR unknown option 'NX'"),
        ("LOCK", ["TOKEN", "5"], "ERR unknown option 'TOKEN'"),
        ("LOCK", ["P\0X", "5"], "ERR unknown option 'P'"),
        ("LOCK", ["PX ", "5"], "ERR unknown option 'PX '"),
        ("UNLOCK", ["TOKEN"], "ERR option TOKEN needs a value"),
        ("UNLOCK", ["TOKEN", "1", "TOKEN", "2"], "ERR option TOKEN is given twice"),
        ("UNLOCK", ["PX", "5"], "ERR unknown option 'PX'"),
        ("LOCKS", ["COUNT"], "ERR option COUNT needs a value"),
        ("LOCKS", ["MATCH"], "ERR option MATCH needs a value"),
        ("LOCKS", ["COUNT", "5", "count", "5"], "ERR option COUNT is given twice"),
        ("LOCKS", ["MATCH", "*", "MATCH", "*"], "ERR option MATCH is given twice"),
        ("LOCKS", ["TYPE", "string"], "ERR unknown option 'TYPE'"),
        ("UNLOCK", ["FOO", "x"], "ERR unknown option 'FOO'"),
        ("UNLOCK", ["OWNER", "x"], "ERR unknown option 'OWNER'"),
        ("UNLOCK", ["REQUEST"], "ERR option REQUEST needs a value"),
        ("UNLOCK", ["REQUEST", "x", "REQUEST", "y"], "ERR option REQUEST is given twice"),
    ],
)
def test_unknown_repeated_and_incomplete_options_are_refused_and_change_nothing(
    wire: Wire, name: str, command: str, options: list[str], said: str
) -> None:
    if command == "LOCKS":
        refuses(wire, said, command, "0", *options)
        return
    if command == "UNLOCK":
        lock(wire, name, reqid())
    request = reqid()
    refuses(wire, said, command, name, request, *options)
    assert wire.ask(command, name, request) != 0, "the refused request was not remembered"


def test_errors_in_a_pipeline_do_not_disturb_what_is_around_them(wire: Wire, name: str) -> None:
    requests = [
        encode("LOCK", name, reqid()),
        encode("LOCK", name),
        encode("LOCK", name, "@x"),
        encode("LOCK", name, reqid(), "PX", "0"),
        encode("LOCK", name, reqid()),
        encode("UNLOCK", name, reqid()),
        encode("INSPECT"),
        encode("UNLOCK", name, reqid()),
    ]
    wire.sock.sendall(b"".join(requests))
    answers: list[object] = []
    for _ in requests:
        try:
            answers.append(wire.read())
        except ReplyError as said:
            answers.append(said.code)
    assert isinstance(answers[0], int)
    assert answers[1:] == ["ERR", "ERR", "ERR", 0, 1, "ERR", 0]
