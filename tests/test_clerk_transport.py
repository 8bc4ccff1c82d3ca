"""Clerk over real sockets and real redis-py, against nodes that say what the test tells them to."""

from __future__ import annotations

import gc
import os
import pickle
import random
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from harness.scripted import (
    HANG_UP,
    RESET,
    SILENCE,
    WAIT_MAX_S,
    Action,
    Heard,
    Node,
    Script,
    ok,
    say,
)
from redis.exceptions import ResponseError

import holdfast.compat.leases as leases
import holdfast.compat.sessions as sessions
from holdfast.compat import Clerk, ClerkError, IndeterminateError, UnavailableError
from holdfast.compat.attempts import Call, Fate, Seen
from holdfast.compat.endpoints import Endpoint, now_us, target_of


@pytest.fixture
def node() -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def start(*answers: bytes | Action, script: Script | None = None, **more: Any) -> Node:
        more.setdefault("greet", ok)
        nodes.append(Node(script or say(*answers), **more))
        return nodes[-1]

    yield start
    for each in nodes:
        each.stop()


@pytest.fixture
def refused() -> Iterator[str]:
    """The URL of a port that nobody listens on, and that nobody else can take meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{sock.getsockname()[1]}"


@pytest.fixture
def clerk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Clerk]]:
    monkeypatch.setattr(sessions, "UNDO_AT_END_MS", 10)
    clerks: list[Clerk] = []

    def make(*nodes: Node | str, **options: Any) -> Clerk:
        urls = [each if isinstance(each, str) else each.url for each in nodes]
        options = {"deadline_ms": 5_000, "undo_ms": 1_000, **options}
        clerks.append(Clerk(*urls, **options))
        return clerks[-1]

    yield make
    for each in clerks:
        each.close()


@pytest.fixture
def ample_time(monkeypatch: pytest.MonkeyPatch) -> int:
    """A deadline_ms that leaves 30 ms for attempts and four seconds for the answer to the last,
    so that it is no race, on a busy machine, whether that one is still answered.
    """
    monkeypatch.setattr("holdfast.compat.attempts.ATTEMPT_MIN_US", 4_000_000)
    return 4_030


# --- answers ---------------------------------------------------------------------------------


def test_a_grant_is_its_fencing_token_and_a_refusal_is_zero(node, clerk):
    n = node(b":1800000000000001\r\n", b":0\r\n")
    c = clerk(n)
    assert c.acquire("a") == 1800000000000001
    assert c.acquire(b"a") == 0


def test_a_release_is_true_or_false(node, clerk):
    c = clerk(node(b":1\r\n", b":0\r\n"))
    assert c.release("a") is True
    assert c.release("a") is False


def test_one_thread_uses_one_client_id_with_rising_numbers_and_one_connection(node, clerk):
    n = node(b":1\r\n")
    c = clerk(n)
    c.acquire("a"), c.release("a"), c.acquire("é")
    client = n.heard[0].client
    assert re.fullmatch(rb"@[0-9a-f]{16}", client)
    assert n.words == [
        (b"LOCK", b"a", client + b":1"),
        (b"UNLOCK", b"a", client + b":2"),
        (b"LOCK", "é".encode(), client + b":3"),
    ]
    assert n.connection_count == 1


def test_inspect_gives_the_fields_by_name(node, clerk):
    reply = b"*8\r\n$5\r\nstate\r\n$4\r\nheld\r\n$5\r\nowner\r\n$3\r\n@\xff:\r\n"
    reply += b"$13\r\nfencing_token\r\n:7\r\n$7\r\nheld_ms\r\n:12\r\n"
    n = node(reply)
    expected = {"state": "held", "owner": b"@\xff:", "fencing_token": 7, "held_ms": 12}
    assert clerk(n).inspect("a") == expected
    assert n.words == [(b"INSPECT", b"a")]


# --- the table: what leads to the other node -------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        b"-READONLY You can't write against a read only replica.\r\n",
        b"-NOREPLICAS Not enough good replicas to write.\r\n",
        b"-TRYAGAIN Too many unacknowledged entries.\r\n",
        b"-MASTERDOWN Link with MASTER is down.\r\n",
        b"-LOADING Holdfast is waiting for its peer\r\n",
        b"-READONLY\r\n",
    ],
)
def test_a_node_that_did_not_execute_it_sends_the_clerk_to_the_other(
    node, clerk, ample_time, error
):
    first, second = node(error), node(b":5\r\n")
    assert clerk(first, second).acquire("a") == 5
    assert first.words == second.words and len(first.words) == 1
    c = clerk(node(error), deadline_ms=ample_time)
    with pytest.raises(UnavailableError):
        c.acquire("a")


@pytest.mark.parametrize("answer", [HANG_UP, RESET, SILENCE, b":", b"garbage\r\n", b"$-1\r\n"])
def test_a_lost_answer_is_asked_for_at_the_other_node_under_the_same_id(node, clerk, answer):
    first, second = node(answer), node(b":5\r\n")
    assert clerk(first, second, read_timeout_ms=50).acquire("a") == 5
    assert first.words == second.words and len(first.words) == 1
    c = clerk(node(answer), deadline_ms=300, read_timeout_ms=100)
    with pytest.raises(IndeterminateError):
        c.acquire("a")


def test_a_refused_connection_leads_to_the_other_node(node, clerk, refused):
    assert clerk(refused, node(b":5\r\n")).acquire("a") == 5


@pytest.mark.parametrize("greeting", [SILENCE, HANG_UP, b"-LOADING wait\r\n"])
def test_a_node_that_does_not_even_greet_leads_to_the_other(node, clerk, greeting):
    first = node(b":4\r\n", greet=say(greeting))
    second = node(b":5\r\n")
    assert clerk(first, second, read_timeout_ms=50).acquire("a") == 5
    assert first.heard == []


def test_a_node_without_room_for_a_client_leads_to_the_other(node, clerk):
    first = node(b":4\r\n", greet=say(b"-ERR max number of clients reached\r\n"))
    assert clerk(first, node(b":5\r\n")).acquire("a") == 5


def test_the_node_that_answered_last_is_asked_first(node, clerk):
    first, second = node(b"-READONLY no\r\n"), node(b":5\r\n")
    c = clerk(first, second)
    for _ in range(3):
        c.acquire("a")
    assert (len(first.heard), len(second.heard)) == (1, 3)


def test_a_failover_of_a_few_milliseconds_costs_not_much_more(node, clerk, refused):
    promoted_at = time.monotonic() + 0.02

    def script(heard: Heard) -> bytes:
        return b":5\r\n" if time.monotonic() > promoted_at else b"-READONLY not yet\r\n"

    assert clerk(refused, node(script=script)).acquire("a") == 5
    assert time.monotonic() < promoted_at + 0.2


# --- the table: what is raised at once -------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (b"-ERR syntax error\r\n", redis.ResponseError),
        (b"-WRONGTYPE no\r\n", redis.ResponseError),
        (b"-NOPERM no\r\n", redis.exceptions.NoPermissionError),
        (b"-NOAUTH Authentication required.\r\n", redis.AuthenticationError),
        (b"-WRONGPASS invalid\r\n", redis.AuthenticationError),
    ],
)
def test_any_other_error_is_raised_at_once(node, clerk, error, expected):
    first, second = node(error), node(b":1\r\n")
    with pytest.raises(expected):
        clerk(first, second).acquire("a")
    assert (len(first.heard), len(second.heard)) == (1, 0)


def test_a_missing_password_is_raised_at_once(node, clerk):
    first, second = node(b":1\r\n", greet=say(b"-NOAUTH no\r\n")), node(b":1\r\n")
    with pytest.raises(redis.AuthenticationError):
        clerk(first, second).acquire("a")
    assert second.heard == []


def test_an_error_after_a_lost_answer_does_not_mean_not_done(node, clerk):
    first, second = node(HANG_UP), node(b"-ERR syntax error\r\n")
    with pytest.raises(IndeterminateError) as caught:
        clerk(first, second).acquire("a")
    assert isinstance(caught.value.__cause__, ResponseError)
    assert caught.value.tries == 2


def test_readonly_after_a_lost_answer_does_not_mean_not_done(node, clerk):
    first, second = node(HANG_UP, b"-READONLY no\r\n"), node(b"-READONLY no\r\n")
    with pytest.raises(IndeterminateError):
        clerk(first, second, deadline_ms=150).acquire("a")


def test_requestgone_is_indeterminate_and_its_client_id_is_never_used_again(node, clerk):
    n = node(b"-REQUESTGONE forgotten\r\n", b":1\r\n")
    c = clerk(n)
    with pytest.raises(IndeterminateError, match="no longer knows") as caught:
        c.acquire("a")
    assert "in the background" not in str(caught.value)
    c.acquire("a")
    assert len(n.heard) == 2 and n.heard[0].client != n.heard[1].client
    assert n.words[1][2].endswith(b":1")


# --- the deadline ----------------------------------------------------------------------------


def test_if_nobody_took_it_it_was_certainly_not_done(node, clerk, ample_time, refused):
    frozen = node(b":1\r\n", greet=say(SILENCE))
    readonly = node(b"-READONLY no\r\n")
    c = clerk(refused, frozen, readonly, deadline_ms=ample_time, read_timeout_ms=50)
    for call in (c.acquire, c.release, c.inspect):
        with pytest.raises(UnavailableError, match="it was not done") as caught:
            call("a")
        assert isinstance(caught.value, redis.ConnectionError)
        assert isinstance(caught.value.__cause__, redis.RedisError)


def test_the_client_id_goes_on_after_a_request_that_nobody_took(node, clerk, ample_time):
    n = node(b"-READONLY no\r\n")
    c = clerk(n, deadline_ms=ample_time)
    with pytest.raises(UnavailableError):
        c.acquire("a")
    n.script = say(b":1\r\n")
    c.acquire("a")
    assert n.words[-1][2] == n.heard[0].client + b":2"


def test_silence_is_indeterminate_at_the_deadline_and_sent_once_a_try(node, clerk):
    n = node(SILENCE)
    c = clerk(n, deadline_ms=300, read_timeout_ms=60)
    before = time.monotonic()
    with pytest.raises(IndeterminateError) as caught:
        c.release("a")
    assert 0.27 < time.monotonic() - before < 2
    error = caught.value
    assert len(n.heard) == error.tries > 1
    assert len(set(n.words)) == 1
    assert (error.command, error.name, error.request_id) == ("UNLOCK", b"a", n.words[0][2])
    assert not isinstance(error, redis.ConnectionError)
    assert "treat it as released" in str(error)


def test_each_try_dials_once(node, clerk):
    n = node(greet=say(HANG_UP))
    with pytest.raises(UnavailableError) as caught:
        clerk(n, deadline_ms=100).acquire("a")
    assert n.connection_count == caught.value.tries > 1


def test_a_node_that_is_slow_in_every_step_cannot_stretch_the_deadline(node, clerk):
    def slow(heard: Heard) -> bytes:
        time.sleep(0.35)
        return b"+OK\r\n"

    # Three greetings, each within the read time-out: over a second in all.
    url = node(SILENCE, greet=slow).url.replace("redis://", "redis://:secret@")
    c = clerk(url, deadline_ms=400)
    before = time.monotonic()
    with pytest.raises(UnavailableError):
        c.acquire("a")
    assert time.monotonic() - before < 0.8


@pytest.mark.parametrize("dripping", ["reply", "greeting"])
@pytest.mark.parametrize("option", ["deadline_ms", "read_timeout_ms"])
def test_a_node_whose_words_come_byte_by_byte_cannot_stretch_a_time_out(
    node, clerk, dripping, option
):
    def drip(heard: Heard) -> bytes:
        for byte in b":1800000000000001\r\n":
            n.drop(heard.connection, bytes([byte]))
            time.sleep(0.1)
        return b""

    slow = {"script": drip} if dripping == "reply" else {"script": say(b":1\r\n"), "greet": drip}
    n = node(**slow)
    c = clerk(n, node(b":5\r\n"), **{option: 400})
    before = time.monotonic()
    if option == "read_timeout_ms":
        assert c.acquire("a") == 5
    else:
        with pytest.raises(IndeterminateError if dripping == "reply" else UnavailableError):
            c.acquire("a")
    assert 0.35 < time.monotonic() - before < 0.9


def test_a_lost_inspection_is_asked_again_and_never_indeterminate(node, clerk):
    c = clerk(node(HANG_UP), deadline_ms=150)
    with pytest.raises(UnavailableError):
        c.inspect("a")
    assert clerk(node(HANG_UP), node(b"*0\r\n")).inspect("a") == {}


def test_what_is_written_for_redis_py_catches_what_clerk_raises():
    assert issubclass(IndeterminateError, redis.TimeoutError)
    assert issubclass(UnavailableError, redis.ConnectionError)
    assert not issubclass(IndeterminateError, UnavailableError)


def test_an_error_tells_what_and_what_now_and_survives_pickling(node, clerk):
    n = node(HANG_UP)
    with pytest.raises(IndeterminateError) as caught:
        clerk(n, deadline_ms=150).acquire("a")
    error = caught.value
    told = f"LOCK 'a' (request id {n.words[0][2].decode()}, tries: {error.tries})"
    assert told in str(error) and "do not enter the critical section" in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) and copy.request_id == error.request_id
    assert isinstance(copy, ClerkError) and isinstance(copy, redis.RedisError)


# --- standing in line ------------------------------------------------------------------------


def in_line(answer_after_s: float, answer: bytes) -> Script:
    """A node at which a LOCK stands in line, and which answers PINGs meanwhile."""

    def script(heard: Heard) -> bytes:
        if heard.words[0] == b"PING":
            return b"+PONG\r\n"
        if heard.words[0] == b"LOCK":
            time.sleep(answer_after_s)
            return answer
        return b":1\r\n"

    return script


def commands(node: Node) -> list[bytes]:
    return [words[0] for words in node.words]


def waits(node: Node) -> list[int]:
    return [int(words[-1]) for words in node.words if words[-2:-1] == (b"WAIT",)]


def test_a_wait_longer_than_the_read_time_out_is_waited_for_in_one_place(node, clerk):
    n = node(script=in_line(0.5, b":5\r\n"))
    c = clerk(n, node(b":9\r\n"), read_timeout_ms=100, deadline_ms=300)
    assert c.acquire("a", wait_ms=10_000) == 5
    assert commands(n).count(b"LOCK") == 1 and 2 <= commands(n).count(b"PING") <= 5
    assert n.connection_count == 2


def test_a_wait_that_runs_out_is_a_refusal(node, clerk):
    n = node(script=in_line(0.2, b":0\r\n"))
    assert clerk(n).acquire("a", wait_ms=200) == 0
    assert commands(n) == [b"LOCK"]


def test_a_node_that_answers_others_is_not_asked_whether_it_is_there(node, clerk):
    n = node(script=lambda heard: in_line(0.5 * (heard.words[1] == b"a"), b":5\r\n")(heard))
    c = clerk(n, read_timeout_ms=200)
    done = threading.Event()

    def chat() -> None:
        while not done.wait(0.02):
            c.release("b")

    thread = threading.Thread(target=chat)
    thread.start()
    assert c.acquire("a", wait_ms=10_000) == 5
    done.set()
    thread.join(WAIT_MAX_S)
    assert b"PING" not in commands(n)


def test_a_node_that_falls_silent_while_we_stand_in_line_sends_the_clerk_to_the_other(node, clerk):
    silent, other = node(SILENCE), node(b":5\r\n")
    before = time.monotonic()
    assert clerk(silent, other, read_timeout_ms=100).acquire("a", wait_ms=60_000) == 5
    assert 0.15 < time.monotonic() - before < 1
    assert commands(silent) == [b"LOCK", b"PING"]
    assert other.words[0][:3] == silent.words[0][:3]
    (first,), (second,) = waits(silent), waits(other)
    assert 59_900 <= first <= 60_000 and second <= first - 150


@pytest.mark.parametrize("end", [HANG_UP, RESET])
def test_a_node_that_dies_while_we_stand_in_line_is_noticed_at_once(node, clerk, end):
    def script(heard: Heard) -> Action:
        time.sleep(0.1)
        return end

    before = time.monotonic()
    c = clerk(node(script=script), node(b":5\r\n"))
    assert c.acquire("a", wait_ms=60_000) == 5
    assert time.monotonic() - before < 1


def test_the_deadline_comes_after_the_wait(node, clerk):
    n = node(script=in_line(9, b":1\r\n"))
    before = time.monotonic()
    c = clerk(n, deadline_ms=200, read_timeout_ms=100)
    with pytest.raises(IndeterminateError):
        c.acquire("a", wait_ms=400)
    assert 0.45 < time.monotonic() - before < 1.5
    n.wait_until(lambda: b"UNLOCK" in commands(n))
    assert n.words[-1][3:] == (b"REQUEST", n.words[0][2])


def test_who_waits_as_long_as_it_takes_does_not_wait_where_nobody_is(node, clerk, refused):
    c = clerk(refused, node(b"-READONLY no\r\n"), deadline_ms=200)
    with pytest.raises(UnavailableError):
        c.acquire("a", wait_ms=None)


def test_a_wait_is_as_long_as_a_node_takes_it_at_most(node, clerk):
    n = node(b":5\r\n")
    for wait_ms in (None, 10**12):
        assert clerk(n).acquire("a", wait_ms=wait_ms) == 5
    assert all(86_399_000 < wait <= 86_400_000 for wait in waits(n))


def test_an_interrupted_wait_is_undone_so_that_it_is_never_granted(node):
    n = node(script=lambda heard: SILENCE if heard.words[0] == b"LOCK" else b":1\r\n")
    done = run_program(
        """
        import signal, sys
        from holdfast.compat import Clerk
        def stop(*_):
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, stop)
        clerk = Clerk(sys.argv[1])
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            clerk.acquire("a", wait_ms=60_000)
        except KeyboardInterrupt:
            clerk.close()
            print("stopped")
        """,
        n.url,
    )
    assert done.stdout == "stopped\n", done.stderr
    assert n.words[1][3:] == (b"REQUEST", n.words[0][2])


# --- late grants -----------------------------------------------------------------------------


def test_a_grant_that_stood_in_line_is_renewed_at_once(node, clerk):
    n = node(script=in_line(0.1, b":5\r\n"))
    assert clerk(n).acquire("a", lease_ms=300, wait_ms=1_000) == 5
    assert n.words[1] == (b"RENEW", b"a", b"5", b"PX", b"300")
    assert len(n.words) == 2


def test_a_grant_that_comes_at_once_costs_no_renewal(node, clerk, monkeypatch):
    monkeypatch.setattr(leases, "AT_ONCE_MAX_US", 1_000_000)
    n = node(b":5\r\n")
    assert clerk(n).acquire("a", lease_ms=60_000, wait_ms=1_000, owner="me") == 5
    (words,) = n.words
    assert words[3:7] == (b"PX", b"60000", b"OWNER", b"me")


def test_a_fencing_token_knows_how_long_its_grant_may_be_trusted(node, clerk):
    n = node(script=late_grants(b":1\r\n"))
    c = clerk(n)
    before_us = now_us()
    token = c.acquire("a", lease_ms=60_000, wait_ms=1_000)
    assert ([words[0] for words in n.words], token) == ([b"LOCK", b"RENEW"], 5)
    renewed_us = token.grant.sent_us
    assert renewed_us > before_us + 50_000, "it counts from the renewal"
    passed_ms = (now_us() - renewed_us) // 1_000
    assert token.left_ms() <= 58_800 - passed_ms
    assert type(token + 0) is int and f"{token}" == repr(token) == "5"
    assert type(pickle.loads(pickle.dumps(token))) is int
    assert c.acquire("a").left_ms() is None and c.renew("a", token, 1_000)
    assert clerk(node(b":0\r\n")).acquire("a", lease_ms=1_000).left_ms() == 0


def late_grants(*renewals: bytes | Action) -> Script:
    """The first LOCK is answered late, every other at once; renewals as they are told."""
    left = list(renewals)
    locks = []

    def script(heard: Heard) -> bytes | Action:
        if heard.words[0] == b"LOCK":
            locks.append(heard)
            time.sleep(0.1 if len(locks) == 1 else 0)
            return b":%d\r\n" % (4 + len(locks))
        if heard.words[0] == b"RENEW":
            return left.pop(0) if len(left) > 1 else left[0]
        return b":1\r\n"

    return script


def test_a_late_grant_that_is_not_current_any_more_is_not_counted_as_granted(node, clerk):
    n = node(script=late_grants(b":0\r\n"))
    assert clerk(n).acquire("a", lease_ms=300) == 0
    assert commands(n) == [b"LOCK", b"RENEW"]


def test_a_late_grant_whose_renewal_stays_unanswered_is_undone(node, clerk):
    n = node(script=late_grants(SILENCE))
    c = clerk(n, read_timeout_ms=100)
    with pytest.raises(IndeterminateError):
        c.acquire("a", lease_ms=300)
    c._session._undoer.wait_idle(5_000)
    assert n.words[-1][3:] == (b"REQUEST", n.words[0][2])


@pytest.mark.parametrize("renewal", [b":0\r\n", SILENCE], ids=["refused", "unanswered"])
def test_after_a_grant_that_came_too_late_the_rest_of_the_wait_is_stood_in_line(
    node, clerk, monkeypatch, renewal
):
    n = node(script=late_grants(renewal, b":1\r\n"))
    c = clerk(n, read_timeout_ms=10_000)
    assert c.acquire("a", lease_ms=300, wait_ms=10_000) == 6
    c._session._undoer.wait_idle(5_000)
    first, second = (words for words in n.words if words[0] == b"LOCK")
    assert first[2] != second[2] and waits(n)[1] < waits(n)[0]
    undone = [words[3:] for words in n.words if words[0] == b"UNLOCK"]
    assert undone == ([] if renewal == b":0\r\n" else [(b"REQUEST", first[2])])


# --- the other calls -------------------------------------------------------------------------


def test_a_release_may_name_its_grant(node, clerk):
    n = node(b":1\r\n")
    assert clerk(n).release("a", 7) is True
    assert n.words[0][3:] == (b"TOKEN", b"7")


def test_renew_and_verify_are_true_or_false_and_have_no_request_id(node, clerk):
    n = node(b":1\r\n", b":1\r\n", b":0\r\n")
    c = clerk(n)
    assert c.renew("a", 7, 300) is True and c.verify("a", 7) is True
    assert c.renew("a", 7, lease_ms=300) is False and c.verify("a", 7) is False
    renewal, verification = n.words[:2]
    assert renewal == (b"RENEW", b"a", b"7", b"PX", b"300")
    assert verification == (b"VERIFY", b"a", b"7")


def test_a_lost_renewal_is_sent_again_and_is_in_doubt_if_nobody_answers(node, clerk, refused):
    assert clerk(node(HANG_UP), node(b":1\r\n")).renew("a", 7, 300) is True
    c = clerk(node(HANG_UP), deadline_ms=150)
    with pytest.raises(IndeterminateError, match="renew once more"):
        c.renew("a", 7, 300)
    with pytest.raises(UnavailableError):
        clerk(refused, deadline_ms=150).renew("a", 7, 300)


def test_locks_walks_page_by_page(node, clerk):
    def page(cursor: bytes, *names: bytes) -> bytes:
        locks = b"".join(b"*2\r\n$4\r\nname\r\n$1\r\n%b\r\n" % name for name in names)
        return b"*2\r\n$%d\r\n%b\r\n*%d\r\n%b" % (len(cursor), cursor, len(names), locks)

    n = node(page(b"17", b"a", b"\xff"), page(b"9"), page(b"0", b"c"))
    assert [lock["name"] for lock in clerk(n).locks(match="*")] == [b"a", b"\xff", b"c"]
    assert [words[1] for words in n.words] == [b"0", b"17", b"9"]
    assert {words[2:4] for words in n.words} == {(b"MATCH", b"*")}


@pytest.mark.parametrize(("token", "error"), [(0, ValueError), (-1, ValueError), ("7", TypeError)])
def test_a_fencing_token_is_that_of_a_grant(clerk, refused, token, error):
    c = clerk(refused)
    for call in (c.release, c.verify, lambda name, token: c.renew(name, token, 1)):
        with pytest.raises(error):
            call("a", token)


# --- undoing ---------------------------------------------------------------------------------


def deaf_to_lock(heard: Heard) -> bytes | Action:
    return SILENCE if heard.words[0] == b"LOCK" else b":1\r\n"


def test_an_abandoned_acquire_is_undone_and_its_client_id_comes_back_only_then(node, clerk):
    answer_undo = threading.Event()

    def script(heard: Heard) -> bytes | Action:
        if heard.words[1] == b"other":
            return b":1\r\n"
        if b"REQUEST" in heard.words:
            assert answer_undo.wait(WAIT_MAX_S)
        return deaf_to_lock(heard)

    n = node(script=script)
    c = clerk(n, deadline_ms=300, read_timeout_ms=5_000, undo_ms=5_000)
    with pytest.raises(IndeterminateError, match="in the background"):
        c.acquire("a")
    n.wait_until(lambda: len(n.heard) == 2)
    client = n.heard[0].client
    assert n.words[1] == (b"UNLOCK", b"a", client + b":2", b"REQUEST", client + b":1")
    c.acquire("other")
    assert n.heard[2].client != client
    answer_undo.set()
    c._session._undoer.wait_idle(5_000)
    c.acquire("other")
    assert n.words[3][2] == client + b":3"


def test_an_undo_is_sent_again_until_it_is_answered(node, clerk):
    answers = iter([SILENCE, HANG_UP, b"-READONLY no\r\n", b":0\r\n"])
    n = node(script=lambda heard: next(answers))
    c = clerk(n, deadline_ms=300, undo_ms=5_000)
    with pytest.raises(IndeterminateError):
        c.acquire("a")
    n.wait_until(lambda: len(n.heard) == 4)
    assert len(set(n.words[1:])) == 1


def test_an_undo_that_is_refused_is_reported_and_its_client_id_is_not_used_again(
    node, clerk, caplog
):
    n = node(SILENCE, b"-ERR no\r\n", b":1\r\n")
    c = clerk(n, deadline_ms=300)
    with pytest.raises(IndeterminateError):
        c.acquire("a")
    c._session._undoer.wait_idle(5_000)
    assert "gave up undoing the acquire of b'a'" in caplog.text
    c.acquire("b")
    assert n.heard[2].client != n.heard[0].client


def test_after_an_indeterminate_release_the_next_request_freezes_it(node, clerk):
    n = node(SILENCE, b":1\r\n")
    c = clerk(n, deadline_ms=300)
    with pytest.raises(IndeterminateError):
        c.release("a")
    c.acquire("a")
    assert n.words[1] == (b"LOCK", b"a", n.heard[0].client + b":2")


def test_an_acquire_that_is_interrupted_is_undone(node, clerk, monkeypatch):
    n = node(b":1\r\n")
    c = clerk(n)
    attempt = Endpoint.attempt

    def interrupted(self: Endpoint, call: Call) -> Seen:
        result = attempt(self, call)
        if call.request.command == "LOCK":
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Endpoint, "attempt", interrupted)
    with pytest.raises(KeyboardInterrupt):
        c.acquire("a")
    n.wait_until(lambda: len(n.heard) == 2)
    assert n.words[1][3:] == (b"REQUEST", n.words[0][2])


class Stop(BaseException):
    """What gevent.Timeout is: no Exception."""


class Complaint(Exception):
    """What the handler of a signal might raise."""


class Trap:
    """Raises `exception` at the `point`-th place of this thread at which Python might run the
    handler of a signal. Since 3.11 these are: after a call of something written in C, at the
    beginning of a Python function, and at the end of a loop's turn.

    With `own` only in our own code: what is sprung in `threading` breaks it.
    """

    def __init__(self, exception: type[BaseException], point: int, *, own: bool = False) -> None:
        self.exception, self.left = exception, point
        self.folder = str(Path(leases.__file__).parent) if own else ""
        self.sprung_in = ""

    def __enter__(self) -> None:
        gc.disable()  # an exception in a finalizer is swallowed
        sys.setprofile(self._watch)

    def __exit__(self, *exc: object) -> None:
        sys.setprofile(None)
        gc.enable()

    def _watch(self, frame: Any, event: str, argument: Any) -> None:
        if event not in ("call", "c_return") or frame.f_code is Trap.__exit__.__code__:
            return
        if not frame.f_code.co_filename.startswith(self.folder):
            return
        self.left -= 1
        if self.left == 0 and argument is not sys.setprofile:
            self.sprung_in = frame.f_code.co_qualname if sys.version_info >= (3, 11) else "?"
            raise self.exception


class Book:
    """Locks by name, with the request that holds each: what `UNLOCK ... REQUEST` goes by."""

    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}
        self.numbers: dict[bytes, int] = {}

    def script(self, heard: Heard) -> bytes:
        command, name, request_id = heard.words[:3]
        if command == b"RENEW":
            return b":%d\r\n" % (name in self.held)
        number = int(request_id.rpartition(b":")[2])
        last = self.numbers.get(heard.client, 0)
        assert number != last, "a number came twice"
        if number < last:  # its thread was slow: the request that undoes it was served first
            return b"-REQUESTGONE a later request of this client was executed\r\n"
        self.numbers[heard.client] = number
        if command == b"LOCK":
            self.held[name] = request_id
            return b":%d\r\n" % len(self.numbers)
        if heard.words[3:4] == (b"REQUEST",) and self.held.get(name) != heard.words[4]:
            return b":0\r\n"
        return b":%d\r\n" % bool(self.held.pop(name, b""))


def take_and_renew(clerk: Clerk, name: str) -> bool:
    return clerk.lock(name, lease_ms=60_000, renew=True).acquire()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="one point is beyond us in 3.10: give_back")
@pytest.mark.parametrize("exception", [Stop, Complaint])
@pytest.mark.parametrize(
    "take",
    [
        lambda clerk, name: clerk.acquire(name),
        lambda clerk, name: clerk.acquire(name, lease_ms=60_000, wait_ms=60_000),
        lambda clerk, name: clerk.lock(name).acquire(),
        take_and_renew,
    ],
    ids=["held until released", "renewed at once", "lock object", "renewing lock object"],
)
def test_wherever_an_acquire_is_interrupted_its_lock_is_undone(
    node, clerk, monkeypatch, take, exception
):
    monkeypatch.setattr(leases, "AT_ONCE_MAX_US", -1)
    book = Book()
    n = node(script=book.script)
    c = clerk(n)
    sprung: list[str] = []
    for point in range(1, 5_000):
        c.release("warm")  # so that a connection is there, and dialling is no part of this
        name, token = f"lock{point}", None
        trap = Trap(exception, point, own=take is take_and_renew)
        try:
            with trap:
                token = take(c, name)
        except exception:
            sprung.append(trap.sprung_in)
        c._session._undoer.wait_idle(5_000)
        if not trap.sprung_in:
            assert token
            break
        assert token or name.encode() not in book.held, trap.sprung_in
        loans = [each[0] for each in c._session._clients._free]
        assert len(loans) == len(set(loans)), trap.sprung_in
    assert len(sprung) > 50, sprung
    assert {"ClientPool.give_back", "SessionBase.settle", "Call.observe"} <= set(sprung)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="as above")
def test_wherever_the_giving_up_of_an_acquire_is_interrupted_it_is_undone_once(
    node, clerk, monkeypatch
):
    book = Book()
    n = node(script=book.script)
    lost = Seen(Fate.LOST, error=OSError("lost"))
    attempt = Endpoint.attempt

    def deaf(self: Endpoint, call: Call) -> Seen:
        seen = attempt(self, call)
        return lost if call.request.command == "LOCK" else seen

    monkeypatch.setattr(Endpoint, "attempt", deaf)
    c = clerk(n, deadline_ms=15)  # no time for a second attempt
    for point in range(1, 5_000):
        c._deadline_us = 5_000_000
        c.release("warm")
        c._deadline_us = 15_000
        name, trap = f"lock{point}", Trap(Stop, point)
        before = len(n.heard)
        try:
            with trap:
                c.acquire(name)
        except (Stop, IndeterminateError):
            pass
        c._session._undoer.wait_idle(5_000)
        assert name.encode() not in book.held, trap.sprung_in
        assert len(n.heard) - before <= 2, (trap.sprung_in, n.words[before:])
        loans = [each[0] for each in c._session._clients._free]
        assert len(loans) == len(set(loans)), trap.sprung_in
        if not trap.sprung_in:
            break
    assert point > 50


def test_too_many_abandoned_acquires_are_given_up_aloud_the_oldest_first(
    node, clerk, monkeypatch, caplog
):
    monkeypatch.setattr(sessions, "UNDO_QUEUE_MAX", 1)
    n = node(SILENCE)
    c = clerk(n, deadline_ms=200)
    for name in "abc":
        with pytest.raises(IndeterminateError):
            c.acquire(name)
    assert "gave up undoing the acquire of b'b': too many others" in caplog.text


# --- connections -----------------------------------------------------------------------------


def test_a_late_reply_is_never_taken_for_the_next_one(node, clerk):
    answer_late = threading.Event()

    def script(heard: Heard) -> bytes:
        if heard.connection == 0:
            assert answer_late.wait(WAIT_MAX_S)
            return b":111\r\n"
        return b":%d\r\n" % len(n.heard)

    n = node(script=script)
    c = clerk(n, read_timeout_ms=100)
    assert c.acquire("a") == 2
    answer_late.set()
    n.wait_until(lambda: 0 in n.hung_up)
    assert c.acquire("b") == 3
    assert {heard.connection for heard in n.heard} == {0, 1}


def test_a_reply_that_nobody_asked_for_costs_the_connection(node, clerk):
    n = node(b":1\r\n:99\r\n", b":2\r\n")
    c = clerk(n)
    assert [c.acquire("a"), c.acquire("a")] == [1, 2]
    assert [heard.connection for heard in n.heard] == [0, 1]


def test_a_connection_that_died_while_idle_is_noticed_before_sending(node, clerk):
    n = node(b":1\r\n")
    c = clerk(n, deadline_ms=300)
    c.acquire("a")
    n.stop()
    n.wait_until(lambda: 0 in n.hung_up)
    with pytest.raises(UnavailableError):
        c.acquire("a")


def test_an_error_reply_keeps_the_connection(node, clerk):
    n = node(b"-ERR no\r\n", b"-READONLY no\r\n", b":1\r\n")
    c = clerk(n)
    with pytest.raises(ResponseError):
        c.acquire("a")
    c.acquire("a")
    assert n.connection_count == 1


def test_close_hangs_up_and_refuses_further_calls(node, clerk):
    n = node(b":1\r\n")
    with clerk(n) as c:
        c.acquire("a")
    n.wait_until(lambda: n.hung_up == {0})
    with pytest.raises(RuntimeError, match="closed"):
        c.acquire("a")
    c.close()


def test_a_call_under_way_at_close_ends_as_usual_and_its_connection_then_too(node, clerk):
    closed = threading.Event()

    def script(heard: Heard) -> bytes:
        assert closed.wait(WAIT_MAX_S)
        return b":1\r\n"

    n = node(script=script)
    c = clerk(n)
    tokens: list[int] = []
    thread = threading.Thread(target=lambda: tokens.append(c.acquire("a")))
    thread.start()
    n.wait_until(lambda: len(n.heard) == 1)
    c.close()
    closed.set()
    n.wait_until(lambda: n.hung_up == {0})
    thread.join(WAIT_MAX_S)
    assert tokens == [1]


def test_a_unix_socket_and_a_password_work_as_in_any_redis_url(node, clerk, tmp_path):
    n = node(b":1\r\n", path=str(tmp_path / "s"))
    assert clerk(n).acquire("a") == 1
    n = node(b":1\r\n")
    c = clerk(n.url.replace("redis://", "redis://me:p%40ss@"))
    assert c.acquire("a") == 1
    assert n.greetings[0].words == (b"AUTH", b"me", b"p@ss")
    assert "ss" not in repr(c)


# --- many threads ----------------------------------------------------------------------------


class Locks:
    """One memory for both nodes: locks, and the last answer of each client, as the nodes
    keep them."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self.random = random.Random(7)
        self.held: set[bytes] = set()
        self.last: dict[bytes, tuple[int, tuple[bytes, ...], int]] = {}
        self.effects: dict[bytes, int] = {}

    def script(self, heard: Heard) -> bytes | Action:
        with self.mutex:
            answer = self.execute(heard.words)
            return self.random.choice((HANG_UP, RESET, answer, answer, answer, answer))

    def execute(self, words: tuple[bytes, ...]) -> bytes:
        command, name, request_id = words[:3]
        client, _, number = request_id.partition(b":")
        n, last_words, last_answer = self.last.get(client, (0, (), 0))
        if int(number) < n:
            return b"-REQUESTGONE\r\n"
        if int(number) > n:
            assert int(number) == n + 1
            last_answer = int((name in self.held) == (command == b"UNLOCK"))
            if last_answer:
                self.held ^= {name}
                self.effects[command] = self.effects.get(command, 0) + 1
            self.last[client] = (int(number), words, last_answer)
        else:
            assert words == last_words
        return b":%d\r\n" % last_answer


def test_32_threads_share_a_clerk_and_every_true_answer_is_one_change(node, clerk):
    locks = Locks()
    c = clerk(node(script=locks.script), node(script=locks.script))
    counts = {b"LOCK": 0, b"UNLOCK": 0}
    mutex, failures = threading.Lock(), []

    def work(seed: int) -> None:
        dice = random.Random(seed)
        try:
            for _ in range(20):
                command = dice.choice((b"LOCK", b"UNLOCK"))
                done = c.acquire("a") if command == b"LOCK" else c.release("a")
                with mutex:
                    counts[command] += bool(done)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_MAX_S)
    assert failures == []
    assert counts == locks.effects
    assert counts[b"LOCK"] - counts[b"UNLOCK"] == len(locks.held)
    assert len(locks.last) <= 32


# --- other programs --------------------------------------------------------------------------


def run_program(source: str, *urls: str) -> subprocess.CompletedProcess[str]:
    """Runs a program of its own, which finds the URLs in sys.argv."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source), *urls],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_a_forked_child_has_its_own_connections_and_client_ids(node):
    n = node(b":1\r\n")
    done = run_program(
        """
        import os, sys
        from holdfast.compat import Clerk
        clerk = Clerk(sys.argv[1])
        clerk.acquire("parent")
        child = os.fork()
        if child == 0:
            try:
                clerk.acquire("child")
                clerk.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        clerk.acquire("parent")
        """,
        n.url,
    )
    assert done.returncode == 0, done.stderr
    before, child, after = n.heard
    assert [each.words[1] for each in n.heard] == [b"parent", b"child", b"parent"]
    assert before.connection == after.connection != child.connection
    assert before.client == after.client != child.client


@pytest.mark.parametrize("waiting_for", ["its greeting", "its reply", "its next attempt"])
def test_a_call_that_a_fork_copied_is_not_gone_on_with_by_the_child(node, waiting_for):
    """Greenlets live on in the child of a gevent program, in the middle of their calls. The parent
    stands still meanwhile, so that here all that happens between the marks is the child's doing.
    """
    pytest.importorskip("gevent")
    forked = threading.Event()

    def script(heard: Heard) -> bytes:
        if heard.words[1] == b"a" and waiting_for == "its reply":
            assert forked.wait(WAIT_MAX_S)
        if heard.words[1] == b"begin":
            forked.set()
        return b":1\r\n" if forked.is_set() else b"-TRYAGAIN\r\n"

    def greet(heard: Heard) -> bytes:
        if heard.connection == 0 and waiting_for == "its greeting":
            assert forked.wait(WAIT_MAX_S)
        return b"+OK\r\n"

    n = node(script=script, greet=greet)
    done = run_program(
        """
        from gevent import monkey; monkey.patch_all()
        import gevent, os, sys
        from holdfast.compat import Clerk
        clerk = Clerk(sys.argv[1], read_timeout_ms=500)
        call = gevent.spawn(clerk.acquire, "a")
        gevent.sleep(0.1)
        child = os.fork()
        if child == 0:
            try:
                clerk.acquire("begin")
                call.join()
                clerk.acquire("end")
                os._exit(0 if isinstance(call.exception, RuntimeError) else 9)
            finally:
                os._exit(8)
        status = monkey.get_original("os", "waitpid")(child, 0)[1]
        call.join()
        sys.exit(os.waitstatus_to_exitcode(status) or call.value != 1)
        """,
        n.url,
    )
    assert done.returncode == 0, done.stderr
    names = [words[1] for words in n.words]
    assert names.index(b"end") == names.index(b"begin") + 1
    assert len({words for words in n.words if words[1] == b"a"}) == 1


def test_a_dial_that_failed_while_the_program_forked_is_not_certain_to_have_sent_nothing(node):
    done = run_program(
        """
        import os, sys, threading
        from holdfast.compat import Clerk, IndeterminateError, UnavailableError
        seen = []
        def call(clerk):
            try:
                clerk.release("a")
            except (IndeterminateError, UnavailableError) as error:
                seen.append(type(error))
        for forks, expected in ((False, UnavailableError), (True, IndeterminateError)):
            clerk = Clerk(sys.argv[1], deadline_ms=400)
            thread = threading.Thread(target=call, args=(clerk,))
            thread.start()
            thread.join(0.1)
            if forks:
                child = os.fork()
                if child == 0:
                    os._exit(0)
                os.waitpid(child, 0)
            thread.join()
            assert seen.pop() is expected, forks
        """,
        node(b":1\r\n", greet=say(SILENCE)).url,
    )
    assert done.returncode == 0, done.stderr


def test_an_undo_that_a_fork_copied_is_dropped_by_the_child_without_a_word(node):
    pytest.importorskip("gevent")
    forked = threading.Event()

    def script(heard: Heard) -> bytes | Action:
        if heard.words[0] == b"LOCK" and heard.words[1] == b"a":
            return SILENCE
        if heard.words[1] == b"begin":
            forked.set()
        assert forked.wait(WAIT_MAX_S)
        return b":1\r\n"

    n = node(script=script)
    done = run_program(
        """
        from gevent import monkey; monkey.patch_all()
        import gevent, os, sys
        from holdfast.compat import Clerk, IndeterminateError
        clerk = Clerk(sys.argv[1], deadline_ms=300, read_timeout_ms=500)
        try:
            clerk.acquire("a")
        except IndeterminateError:
            gevent.sleep(0.1)
        child = os.fork()
        if child == 0:
            clerk.acquire("begin")
            gevent.sleep(0.2)
            os._exit(0)
        monkey.get_original("os", "waitpid")(child, 0)
        clerk.close()
        """,
        n.url,
    )
    # (`threading` itself complains of such a greenlet's end, in any program: KeyError.)
    assert done.returncode == 0 and "Inherited" not in done.stderr, done.stderr
    undos = [words for words in n.words if words[0] == b"UNLOCK"]
    assert undos and {words[3:] for words in undos} == {(b"REQUEST", n.words[0][2])}


def test_in_a_patched_program_greenlets_run_while_others_wait_for_a_reply(node):
    pytest.importorskip("gevent")
    everybody_asked = threading.Event()

    def script(heard: Heard) -> bytes:
        if len(n.heard) >= 10:
            everybody_asked.set()
        assert everybody_asked.wait(WAIT_MAX_S)
        return b":1\r\n"

    n = node(script=script)
    done = run_program(
        """
        from gevent import monkey; monkey.patch_all()
        import gevent, sys
        from holdfast.compat import Clerk
        with Clerk(sys.argv[1], read_timeout_ms=9_000) as clerk:
            jobs = [gevent.spawn(clerk.acquire, f"lock{i}") for i in range(10)]
            gevent.joinall(jobs, raise_error=True)
            print(sum(job.value for job in jobs))
        """,
        n.url,
    )
    assert (done.returncode, done.stdout) == (0, "10\n"), done.stderr
    assert len({heard.client for heard in n.heard}) == 10


def test_an_acquire_cut_short_by_a_gevent_timeout_is_undone(node):
    pytest.importorskip("gevent")
    n = node(script=deaf_to_lock)
    done = run_program(
        """
        from gevent import monkey; monkey.patch_all()
        import gevent, sys
        from holdfast.compat import Clerk
        clerk = Clerk(sys.argv[1])
        with gevent.Timeout(0.1, False):
            clerk.acquire("a")
            sys.exit("it was answered")
        clerk.close()
        """,
        n.url,
    )
    assert done.returncode == 0, done.stderr
    assert n.words[1][3:] == (b"REQUEST", n.words[0][2])


def test_a_program_that_ends_with_the_error_still_undoes_its_acquire(node):
    busy = [b"-TRYAGAIN\r\n"] * 8
    n = node(SILENCE, *busy, b":1\r\n")
    done = run_program(
        """
        import sys
        from holdfast.compat import Clerk
        Clerk(sys.argv[1], deadline_ms=300).acquire("a")
        """,
        n.url,
    )
    assert "IndeterminateError" in done.stderr
    assert len(n.words) == 2 + len(busy)
    assert {words[3:] for words in n.words[1:]} == {(b"REQUEST", n.words[0][2])}


def test_a_program_that_does_not_use_gevent_does_not_get_it(node):
    done = run_program(
        """
        import socket, sys, threading
        before = socket.socket, threading.Lock
        from holdfast.compat import Clerk
        with Clerk(sys.argv[1]) as clerk:
            clerk.acquire("a")
        loaded = {"gevent", "holdfast.server", "holdfast.resp"} & sys.modules.keys()
        sys.exit(str(loaded) if loaded or before != (socket.socket, threading.Lock) else 0)
        """,
        node(b":1\r\n").url,
    )
    assert done.returncode == 0, done.stderr


# --- mistakes of the caller ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", b"", "x" * 513, "é" * 257, "\ud800"])
def test_a_name_has_1_to_512_bytes(clerk, refused, name):
    c = clerk(refused)
    for call in (c.acquire, c.release, c.inspect):
        with pytest.raises(ValueError):
            call(name)


@pytest.mark.parametrize("name", [None, 1, bytearray(b"a"), ["a"]])
def test_a_name_is_text_or_bytes(clerk, refused, name):
    with pytest.raises(TypeError, match="must be str or bytes"):
        clerk(refused).acquire(name)


def test_names_of_1_and_512_bytes_are_sent_as_they_are(node, clerk):
    n = node(b":1\r\n")
    c = clerk(n)
    for name in (b"\0", b"\r" * 512):
        c.acquire(name)
        assert n.words[-1][1] == name


NO_SERVERS = ["", "6379", ":6379", "host", "::1:6379", "u:p@h:1", "h:1/0"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        *((text, "neither redis://HOST:PORT nor HOST:PORT") for text in NO_SERVERS),
        ("redis://127.0.0.1:6379/3", "database 0"),
        ("unix:///tmp/s?db=1", "database 0"),
        ("redis://127.0.0.1?retry_on_timeout=1", "Clerk decides retry_on_timeout"),
        ("redis://127.0.0.1?socket_timeout=3&protocol=3", "Clerk decides protocol, socket_timeout"),
        ("redis://127.0.0.1?nonsense=1", "nonsense"),
        ("redis://a..b:6379", "'a..b' cannot be a host name"),
        ("redis://" + "é" * 70, "cannot be a host name"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_with_the_reason(url, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        Clerk(url)


def test_what_may_be_a_password_is_not_repeated():
    with pytest.raises(ValueError, match=r"^'\.\.\.@h:1' is neither"):
        Clerk("me:secret@h:1")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("redis://h:1", "h:1"),
        ("rediss://h:1?ssl_check_hostname=false", "h:1"),
        ("unix:///run/x", "/run/x"),
        ("h:6379", "h:6379"),
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("[::1]:6379", "[::1]:6379"),
    ],
)
def test_a_node_is_a_url_or_a_host_with_its_port(text, label):
    assert target_of(text).label == label


def test_database_0_may_be_named():
    Clerk("redis://127.0.0.1:6379/0", "redis://[::1]:6380").close()


@pytest.mark.parametrize(
    ("args", "options", "error"),
    [
        ((), {}, ValueError),
        ((6379,), {}, TypeError),
        (("redis://h",), {"deadline_ms": 0}, ValueError),
        (("redis://h",), {"read_timeout_ms": -1}, ValueError),
        (("redis://h",), {"deadline_ms": 1.5}, TypeError),
        (("redis://h",), {"undo_ms": True}, TypeError),
    ],
)
def test_a_clerk_that_cannot_be_meant_is_refused(args, options, error):
    with pytest.raises(error):
        Clerk(*args, **options)
