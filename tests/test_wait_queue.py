"""The wait queue: first come, first served, and a place is kept for a moment (I9, W1 to W4)."""

from __future__ import annotations

import heapq
import random

import pytest

from holdfast.server.core import limits
from holdfast.server.core.wait_queue import Waiter, WaitQueue


def joined(
    queue: WaitQueue,
    name: bytes,
    reqid: bytes,
    ticket: str,
    now_ms: int = 100,
    wait_ms: int = 9_000,
) -> Waiter:
    waiter = Waiter(name, reqid, b"", 0, now_ms, now_ms + wait_ms)
    queue.join(waiter, ticket)
    return waiter


def test_a_line_is_in_the_order_of_joining_and_each_name_has_its_own() -> None:
    queue = WaitQueue()
    waiters = [joined(queue, b"a", b"r%d" % n, f"c{n}", wait_ms=9_000 - n) for n in range(5)]
    other = joined(queue, b"b", b"r1", "d")
    assert list(queue.line(b"a")) == waiters and list(queue.line(b"b")) == [other]
    assert (len(queue), queue.length(b"a"), queue.length(b"c"), queue.connections) == (6, 5, 0, 6)
    assert [queue.take_first(b"a") for _ in range(6)] == [*waiters, None]
    assert queue.take_first(b"b") is other
    assert not queue and not queue.lines and queue.connections == 0


def test_a_repeat_attends_the_wait_and_does_not_join_again() -> None:
    queue = WaitQueue()
    waiter = joined(queue, b"a", b"r1", "c1")
    with pytest.raises(AssertionError):
        joined(queue, b"a", b"r1", "c2")
    queue.attend(waiter, "c2")
    assert queue.find(b"a", b"r1") is waiter and waiter.tickets == ["c1", "c2"]
    assert queue.find(b"a", b"r2") is None and queue.find(b"b", b"r1") is None
    queue.hang_up("c1", 200)
    assert waiter.tickets == ["c2"] and not waiter.gone_at_ms
    assert queue.take_first(b"a") is waiter


def test_a_gone_waiter_is_passed_over_and_keeps_its_place() -> None:
    queue = WaitQueue()
    first, second, third = (joined(queue, b"a", b"r%d" % n, f"c{n}") for n in range(3))
    queue.hang_up("c0", 200)
    queue.hang_up("c0", 300)  # of a connection that does not wait
    assert first.gone_at_ms == 200
    assert queue.take_first(b"a") is second
    queue.attend(first, "d")
    assert queue.take_first(b"a") is first
    queue.hang_up("c2", 300)
    assert queue.take_first(b"a") is None and list(queue.line(b"a")) == [third]


def pop_due(queue: WaitQueue, now_ms: int) -> Waiter | None:
    """The next whose time is over, whatever deadlines came to nothing before it."""
    while (due := queue.pop_due(now_ms))[0]:
        if due[1] is not None:
            return due[1]
    return None


def test_a_waiter_leaves_by_itself_when_its_wait_or_its_grace_is_over() -> None:
    queue = WaitQueue()
    grace_ms = limits.WAITER_GRACE_MS
    long, short = joined(queue, b"a", b"r1", "c1", 100), joined(queue, b"a", b"r2", "c2", 100, 50)
    assert queue.first_due_ms == 150 and pop_due(queue, 149) is None
    assert pop_due(queue, 150) is short and short.deadline_ms == 150
    queue.hang_up("c1", 200)
    assert long.due_ms == 200 + grace_ms and pop_due(queue, 199 + grace_ms) is None
    assert pop_due(queue, 200 + grace_ms) is long, "it is gone for good"
    assert pop_due(queue, 10**9) is None and not queue


def test_who_came_back_within_the_grace_period_stays_to_the_end_of_its_wait() -> None:
    queue = WaitQueue()
    waiter = joined(queue, b"a", b"r1", "c1")
    queue.hang_up("c1", 200)
    queue.attend(waiter, "c2")
    assert pop_due(queue, 200 + limits.WAITER_GRACE_MS) is None
    queue.hang_up("c2", 5_000)
    assert pop_due(queue, 4_999 + limits.WAITER_GRACE_MS) is None, "each time the grace is new"
    queue.attend(waiter, "c3")
    assert pop_due(queue, 9_099) is None
    assert pop_due(queue, 9_100) is waiter


def test_who_is_gone_when_the_wait_ends_first_leaves_then() -> None:
    queue = WaitQueue()
    waiter = joined(queue, b"a", b"r1", "c1", wait_ms=500)
    queue.hang_up("c1", 200)
    assert waiter.due_ms == 600 and pop_due(queue, 600) is waiter


def test_a_client_waits_at_most_once() -> None:
    queue = WaitQueue()
    waiter = joined(queue, b"a", b"@c:5", "c1")
    assert queue.of_client(b"c") is waiter and waiter.sequence == 5
    assert queue.of_client(b"d") is None
    with pytest.raises(AssertionError):
        joined(queue, b"b", b"@c:6", "c2")
    queue.take(waiter)
    assert queue.of_client(b"c") is None
    joined(queue, b"c", b"@c:7", "c2")


def test_a_waiter_leaves_once_and_without_a_trace() -> None:
    queue = WaitQueue()
    waiter = joined(queue, b"a", b"@c:5", "c1")
    queue.attend(waiter, "c2")
    queue.take(waiter)
    with pytest.raises(AssertionError):
        queue.take(waiter)
    assert not queue and queue.connections == 0 and not queue.lines
    queue.hang_up("c1", 100)  # it was answered a moment ago
    assert pop_due(queue, 10**9) is None


def test_the_bounds_are_of_a_line_and_of_all_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WAITERS_PER_LOCK_MAX", 3)
    monkeypatch.setattr(limits, "WAITERS_MAX", 5)
    queue = WaitQueue()
    for n in range(3):
        assert not queue.is_full(b"a")
        joined(queue, b"a", b"r%d" % n, f"c{n}")
    assert queue.is_full(b"a") and not queue.is_full(b"b")
    for n in range(3, 5):
        joined(queue, b"b", b"r%d" % n, f"c{n}")
    assert queue.is_full(b"b") and queue.is_full(b"c")
    queue.take_first(b"a")
    assert not queue.is_full(b"c")


def test_coming_and_going_leaves_nothing_behind() -> None:
    """Places that are given up are forgotten, whatever else goes on."""
    queue, dice, now_ms, waiting = WaitQueue(), random.Random(7), 0, dict[str, Waiter]()
    for n in range(20_000):
        now_ms += dice.randrange(3)
        waiting[f"c{n}"] = joined(queue, b"%d" % dice.randrange(5), b"r%d" % n, f"c{n}", now_ms)
        ticket = dice.choice(list(waiting)) if n % 50 == 0 else f"c{n}"
        waiter = waiting.pop(ticket, None)
        if waiter is not None and not waiter.left:
            if dice.random() < 0.5:
                queue.hang_up(ticket, now_ms)
            else:
                queue.take(waiter)
        while pop_due(queue, now_ms) is not None:
            pass
    assert len(queue) == sum(queue.length(name) for name in queue.lines)
    assert len(queue._deadlines) < 2 * len(queue) + 4_096
    while pop_due(queue, 10**9) is not None:
        pass
    assert not queue and not queue.lines and queue.connections == 0 and not queue._by_client


def test_a_crowd_that_is_gone_is_not_looked_at_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many places are kept, a release costs no more for it."""
    looked_at = 0

    def counting(ranks: list[object]) -> object:
        nonlocal looked_at
        looked_at += 1
        return heapq.heappop(ranks)

    monkeypatch.setattr("holdfast.server.core.wait_queue.heappop", counting)
    queue, crowd = WaitQueue(), 2_000
    for n in range(crowd):
        joined(queue, b"a", b"gone %d" % n, f"g{n}")
        queue.hang_up(f"g{n}", 100)
    for n in range(500):
        waiter = joined(queue, b"a", b"r%d" % n, f"c{n}")
        assert queue.take_first(b"a") is waiter
    assert queue.length(b"a") == crowd and looked_at < crowd + 2 * 500
    queue.attend(list(queue.line(b"a"))[700], "back")
    queue.attend(list(queue.line(b"a"))[300], "back too")
    last = joined(queue, b"a", b"last", "c")
    back = [queue.take_first(b"a") for _ in range(4)]
    assert [waiter.reqid for waiter in back if waiter] == [b"gone 300", b"gone 700", b"last"]
    assert back[2] is last


def test_it_knows_who_has_waited_longest() -> None:
    queue = WaitQueue()
    assert queue.longest_wait_ms(500) == 0
    joined(queue, b"a", b"r1", "c1", 50)
    first = joined(queue, b"b", b"r2", "c2", 100)
    joined(queue, b"b", b"r3", "c3", 300)
    assert queue.longest_wait_ms(500) == 450
    queue.take_first(b"a")
    assert queue.longest_wait_ms(500) == 400 and queue.take_first(b"b") is first
