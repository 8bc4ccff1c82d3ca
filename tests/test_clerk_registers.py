"""get, put and update of Clerk and AsyncClerk over real sockets and real redis-py: nodes that say
what the test tells them to.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from harness.scripted import HANG_UP, SILENCE, Action, Heard, Node, Script, ok, say
from redis.exceptions import ResponseError

import holdfast.compat.fencing as fencing
from holdfast.compat import (
    AsyncClerk,
    Clerk,
    IndeterminateError,
    LockNotHeldError,
    MaybeError,
    NoKeyError,
    RegisterError,
    StaleTokenError,
    UnavailableError,
    Versioned,
    VersionError,
)
from holdfast.compat.arguments import VALUE_BYTES_MAX

NOKEY = b"-NOKEY there is no register of this name\r\n"
VERSION_7 = b"-VERSION the current version is 7\r\n"
STALETOKEN = b"-STALETOKEN this fencing token is not that of the lock's current grant\r\n"
READONLY = b"-READONLY You can't write against a read only replica.\r\n"


def register(value: bytes, version: int) -> bytes:
    return b"*2\r\n$%d\r\n%b\r\n:%d\r\n" % (len(value), value, version)


StartNode = Callable[..., Node]
MakeClerk = Callable[..., Any]


class _Awaited:
    """An AsyncClerk that is called like a Clerk."""

    def __init__(self, *urls: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._clerk = AsyncClerk(*urls, **options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            return self._loop.run_until_complete(getattr(self._clerk, name)(*args, **options))

        return call

    def close(self) -> None:
        self._loop.run_until_complete(self._clerk.close())
        self._loop.close()


@pytest.fixture(params=[Clerk, _Awaited], ids=["Clerk", "AsyncClerk"])
def clerk(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    clerks: list[Any] = []

    def make(*nodes: Node | str, **options: Any) -> Any:
        urls = [each if isinstance(each, str) else each.url for each in nodes]
        clerks.append(request.param(*urls, **{"deadline_ms": 5_000, **options}))
        return clerks[-1]

    yield make
    for each in clerks:
        each.close()


@pytest.fixture
def node() -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def start(*answers: bytes | Action, script: Script | None = None) -> Node:
        nodes.append(Node(script or say(*answers), ok))
        return nodes[-1]

    yield start
    for each in nodes:
        each.stop()


# --- get -------------------------------------------------------------------------------------


def test_a_get_is_a_value_and_a_version(node: StartNode, clerk: MakeClerk) -> None:
    n = node(register(b"x\r\ny", 7))
    value, version = found = clerk(n).get("é")
    assert (value, version) == (b"x\r\ny", 7) and isinstance(found, Versioned)
    assert found.value == value and found.version == version
    assert n.words == [(b"VGET", "é".encode())]


def test_an_empty_value_is_a_value_and_no_register_is_an_error(
    node: StartNode, clerk: MakeClerk
) -> None:
    c = clerk(node(register(b"", 1), NOKEY))
    assert c.get("a") == (b"", 1)
    with pytest.raises(NoKeyError, match="there is no register 'a'") as raised:
        c.get("a")
    assert raised.value.key == b"a"


def test_a_lost_get_is_asked_again_elsewhere_and_is_never_indeterminate(
    node: StartNode, clerk: MakeClerk
) -> None:
    assert clerk(node(HANG_UP), node(register(b"x", 7))).get("a") == (b"x", 7)
    with pytest.raises(UnavailableError):
        clerk(node(HANG_UP), deadline_ms=100).get("a")


# --- put -------------------------------------------------------------------------------------


def test_a_put_is_the_new_version_under_request_ids_that_rise(
    node: StartNode, clerk: MakeClerk
) -> None:
    n = node(b":1\r\n", b":2\r\n")
    c = clerk(n)
    assert c.put("a", "ü", 0) == 1
    assert c.put(b"a", b"y", 1, fence=("l", 3)) == 2
    client = n.words[0][4].partition(b":")[0]
    assert n.words == [
        (b"VPUT", b"a", "ü".encode(), b"0", client + b":1"),
        (b"VPUT", b"a", b"y", b"1", client + b":2", b"FENCE", b"l", b"3"),
    ]


def test_a_put_that_is_not_once_leaves_no_request_id_behind(
    node: StartNode, clerk: MakeClerk
) -> None:
    n = node(b":7\r\n")
    c = clerk(n)
    assert c.put("a", "x", 6, once=False) == 7
    assert c.put("a", "x", 6, once=False, fence=("l", 3)) == 7
    assert n.words == [
        (b"VPUT", b"a", b"x", b"6"),
        (b"VPUT", b"a", b"x", b"6", b"FENCE", b"l", b"3"),
    ]


@pytest.mark.parametrize("once", [True, False])
def test_each_refusal_is_an_error_of_its_own_and_keeps_the_connection(
    node: StartNode, clerk: MakeClerk, once: bool
) -> None:
    n = node(VERSION_7, NOKEY, STALETOKEN, b":7\r\n")
    c = clerk(n)
    with pytest.raises(VersionError, match="has version 7, not 5") as version:
        c.put("a", "x", 5, once=once)
    assert (version.value.key, version.value.version) == (b"a", 5)
    assert version.value.current_version == 7
    with pytest.raises(NoKeyError):
        c.put("a", "x", 5, once=once)
    with pytest.raises(StaleTokenError, match="token 3 is not the current grant of 'l'") as stale:
        c.put("a", "x", 5, fence=("l", 3), once=once)
    assert (stale.value.lock_name, stale.value.token) == (b"l", 3)
    assert c.put("a", "x", 6, once=once) == 7
    assert n.connection_count == 1


def test_a_refusal_of_what_was_lost_is_final_under_a_request_id(
    node: StartNode, clerk: MakeClerk
) -> None:
    first, second = node(HANG_UP), node(VERSION_7)
    with pytest.raises(VersionError):
        clerk(first, second).put("a", "x", 6)
    assert first.words == second.words


@pytest.mark.parametrize("refusal", [VERSION_7, NOKEY, STALETOKEN])
def test_without_one_a_refusal_of_what_was_lost_is_a_maybe(
    node: StartNode, clerk: MakeClerk, refusal: bytes
) -> None:
    first, second = node(HANG_UP), node(refusal)
    with pytest.raises(MaybeError, match="read the register again") as raised:
        clerk(first, second).put("a", "x", 6, fence=("l", 3), once=False)
    assert isinstance(raised.value, IndeterminateError) and raised.value.request_id == b""
    assert isinstance(raised.value.__cause__, RegisterError) and raised.value.tries == 2
    assert first.words == second.words


def test_a_refusal_of_what_was_certainly_not_done_is_no_maybe(
    node: StartNode, clerk: MakeClerk
) -> None:
    with pytest.raises(VersionError):
        clerk(node(READONLY), node(VERSION_7)).put("a", "x", 6, once=False)


@pytest.mark.parametrize("once", [True, False])
def test_a_lost_put_that_is_answered_with_the_new_version_is_done(
    node: StartNode, clerk: MakeClerk, once: bool
) -> None:
    assert clerk(node(HANG_UP), node(b":7\r\n")).put("a", "x", 6, once=once) == 7


@pytest.mark.parametrize("once", [True, False])
def test_silence_is_indeterminate_and_nobody_at_all_is_unavailable(
    node: StartNode, clerk: MakeClerk, once: bool
) -> None:
    with pytest.raises(IndeterminateError, match="read the register again") as raised:
        clerk(node(SILENCE), deadline_ms=150, read_timeout_ms=50).put("a", "x", 6, once=once)
    assert not isinstance(raised.value, MaybeError)
    with pytest.raises(UnavailableError, match="was not done"):
        clerk(node(READONLY), deadline_ms=100).put("a", "x", 6, once=once)


def test_after_an_indeterminate_put_the_next_request_freezes_it(
    node: StartNode, clerk: MakeClerk
) -> None:
    n = node(script=lambda heard: SILENCE if heard.words[1] == b"a" else b":1\r\n")
    c = clerk(n, deadline_ms=150, read_timeout_ms=50)
    with pytest.raises(IndeterminateError):
        c.put("a", "x", 6)
    lost = n.words[0][4]
    c.release("b")
    assert n.words[-1][2].partition(b":")[0] == lost.partition(b":")[0]
    assert int(n.words[-1][2].rpartition(b":")[2]) == int(lost.rpartition(b":")[2]) + 1


def test_a_put_whose_outcome_is_forgotten_is_indeterminate_and_its_client_id_given_up(
    node: StartNode, clerk: MakeClerk
) -> None:
    n = node(b"-REQUESTGONE it was long ago\r\n", b":1\r\n")
    c = clerk(n)
    with pytest.raises(IndeterminateError, match="no longer knows"):
        c.put("a", "x", 6)
    c.put("a", "x", 0)
    assert n.words[0][4].partition(b":")[0] != n.words[1][4].partition(b":")[0]


@pytest.mark.parametrize(
    "error", [b"-WRONGTYPE this name is a lock\r\n", b"-OOM full\r\n", b"-ERR syntax\r\n"]
)
def test_any_other_error_is_raised_as_redis_py_has_it(
    node: StartNode, clerk: MakeClerk, error: Any
) -> None:
    n = node(error)
    with pytest.raises(ResponseError) as raised:
        clerk(n).put("a", "x", 6, once=False)
    assert not isinstance(raised.value, RegisterError) and len(n.words) == 1


# --- fences ----------------------------------------------------------------------------------


def test_a_lock_object_that_is_held_is_a_fence(node: StartNode) -> None:
    n = node(script=lambda heard: b":33\r\n" if heard.words[0] == b"LOCK" else b":1\r\n")
    with Clerk(n.url) as c:
        lock = c.lock("l", lease_ms=None)
        with pytest.raises(LockNotHeldError):
            c.put("a", "x", 0, fence=lock)
        with lock:
            assert c.put("a", "x", 0, fence=lock) == 1
        assert n.words[-2][-3:] == (b"FENCE", b"l", b"33")


def test_whoever_catches_a_stale_token_of_the_guard_catches_that_of_a_put() -> None:
    error = StaleTokenError(b"a", b"l", 3)
    assert isinstance(error, fencing.StaleTokenError) and isinstance(error, fencing.FencingError)
    assert isinstance(error, redis.RedisError)
    assert (error.resource, error.token, error.highest_token) == ("a", 3, None)


# --- update ----------------------------------------------------------------------------------


def a_register(value: bytes, version: int, *, conflicts: int = 0) -> Script:
    """One that somebody else writes to just before each of the first so many puts."""
    held: list[Any] = [value, version, conflicts]

    def script(heard: Heard) -> bytes:
        if heard.words[0] == b"VGET":
            return register(held[0], held[1]) if held[1] else NOKEY
        if held[2]:
            held[1:] = [held[1] + 1, held[2] - 1]
        if int(heard.words[3]) != held[1]:
            return b"-VERSION the current version is %d\r\n" % held[1]
        held[:2] = [heard.words[2], held[1] + 1]
        return b":%d\r\n" % held[1]

    return script


def one_more(value: bytes | None) -> str:
    return str(int(value or b"0") + 1)


def test_an_update_reads_computes_and_writes(node: StartNode, clerk: MakeClerk) -> None:
    n = node(script=a_register(b"41", 6))
    c = clerk(n)
    assert c.update("a", one_more, fence=("l", 3)) == (b"42", 7)
    assert [words[0] for words in n.words] == [b"VGET", b"VPUT"]
    assert n.words[1][1:4] == (b"a", b"42", b"6") and n.words[1][-3:] == (b"FENCE", b"l", b"3")


def test_an_update_of_what_is_not_there_makes_it(node: StartNode, clerk: MakeClerk) -> None:
    c = clerk(node(script=a_register(b"", 0)))
    assert c.update("a", one_more) == (b"1", 1)


def test_an_update_does_both_again_until_it_fits(node: StartNode, clerk: MakeClerk) -> None:
    n = node(script=a_register(b"41", 6, conflicts=5))
    assert clerk(n).update("a", one_more, once=False) == (b"42", 12)
    puts = [words for words in n.words if words[0] == b"VPUT"]
    assert [int(words[3]) for words in puts] == [6, 7, 8, 9, 10, 11]
    assert {len(words) for words in puts} == {4}


def test_an_update_that_has_nothing_to_write_writes_nothing(
    node: StartNode, clerk: MakeClerk
) -> None:
    n = node(script=a_register(b"41", 6))
    assert clerk(n).update("a", lambda value: None) == (b"41", 6)
    empty = node(NOKEY)
    with pytest.raises(NoKeyError):
        clerk(empty).update("a", lambda value: None)
    assert len(n.words) == len(empty.words) == 1


def test_an_update_that_is_never_fast_enough_ends_at_the_deadline(
    node: StartNode, clerk: MakeClerk
) -> None:
    n = node(script=a_register(b"41", 6, conflicts=10**9))
    started_s = time.monotonic()
    with pytest.raises(VersionError):
        clerk(n, deadline_ms=300).update("a", one_more)
    assert time.monotonic() - started_s < 5
    assert len(n.words) > 4


def test_an_update_whose_put_is_in_doubt_says_so_and_computes_no_more(
    node: StartNode, clerk: MakeClerk
) -> None:
    computed = []

    def script(heard: Heard) -> bytes | Action:
        return register(b"41", 6) if heard.words[0] == b"VGET" else SILENCE

    def function(value: bytes | None) -> str:
        computed.append(value)
        return "42"

    c = clerk(node(script=script), deadline_ms=150, read_timeout_ms=50)
    with pytest.raises(IndeterminateError):
        c.update("a", function)
    assert computed == [b"41"]


def test_a_maybe_ends_an_update_too(node: StartNode, clerk: MakeClerk) -> None:
    answers = [register(b"41", 6), HANG_UP, VERSION_7]
    n = node(*answers)
    with pytest.raises(MaybeError):
        clerk(n).update("a", one_more, once=False)
    assert len(n.words) == 3


def test_what_the_function_raises_is_raised(node: StartNode, clerk: MakeClerk) -> None:
    n = node(register(b"x", 6))
    with pytest.raises(ValueError):
        clerk(n).update("a", one_more)
    assert len(n.words) == 1


def test_a_slow_function_leaves_its_put_the_time_that_it_needs(
    node: StartNode, clerk: MakeClerk
) -> None:
    def slow(value: bytes | None) -> str:
        time.sleep(0.3)
        return one_more(value)

    c = clerk(node(script=a_register(b"41", 6)), deadline_ms=200)
    assert c.update("a", slow) == (b"42", 7)


def test_the_function_of_an_async_update_may_be_a_coroutine_function(node: StartNode) -> None:
    n = node(script=a_register(b"41", 6))

    async def function(value: bytes | None) -> str | None:
        await asyncio.sleep(0)
        return one_more(value)

    async def scene() -> None:
        async with AsyncClerk(n.url) as c:
            assert await c.update("a", function) == (b"42", 7)

    asyncio.run(scene())


def test_threads_that_update_one_register_lose_nothing(node: StartNode) -> None:
    lock, script = threading.Lock(), a_register(b"0", 1)

    def one_at_a_time(heard: Heard) -> bytes | Action:
        with lock:
            return script(heard)

    n = node(script=one_at_a_time)
    with Clerk(n.url) as c:
        threads = [
            threading.Thread(target=lambda: [c.update("a", one_more) for _ in range(5)])
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert c.get("a") == (b"30", 31)


# --- arguments and errors --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "more", "error"),
    [
        (("", "x", 0), {}, ValueError),
        ((7, "x", 0), {}, TypeError),
        (("a", 7, 0), {}, TypeError),
        (("a", None, 0), {}, TypeError),
        (("a", b"x" * (VALUE_BYTES_MAX + 1), 0), {}, ValueError),
        (("a", "x", -1), {}, ValueError),
        (("a", "x", "1"), {}, TypeError),
        (("a", "x", True), {}, TypeError),
        (("a", "x", 0), {"fence": ("l", 0)}, ValueError),
        (("a", "x", 0), {"fence": ("", 1)}, ValueError),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_sent(
    node: StartNode, clerk: MakeClerk, args: Any, more: Any, error: Any
) -> None:
    n = node(b":1\r\n")
    with pytest.raises(error):
        clerk(n).put(*args, **more)
    assert n.words == []


def test_the_longest_value_and_the_empty_one_are_sent_as_they_are(
    node: StartNode, clerk: MakeClerk
) -> None:
    n = node(b":1\r\n")
    c = clerk(n)
    for value in (b"", b"x" * VALUE_BYTES_MAX):
        c.put("a", value, 0)
        assert n.words[-1][2] == value


@pytest.mark.parametrize(
    "error",
    [
        NoKeyError(b"a"),
        VersionError(b"a", 5, 7),
        StaleTokenError(b"a", b"l", 3),
        MaybeError("VPUT", b"a", b"", 2, "timed out", "read the register again"),
    ],
)
def test_errors_survive_pickling(error: Any) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and str(copy) == str(error) and repr(copy) == repr(error)
    assert vars(copy) == vars(error)
    assert isinstance(error, redis.RedisError)
