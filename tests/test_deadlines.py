"""Deadlines: what is due when, in order, without keeping what is over (I12)."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.server.core.deadlines import _SWEEP_FLOOR, Deadlines


class Alive(set[int]):
    """The numbers that still mean something."""

    def deadlines(self) -> Deadlines[str]:
        return Deadlines(lambda number, _: number in self, lambda: len(self))


def test_nothing_is_due_before_its_time_and_all_of_it_then() -> None:
    deadlines = Alive({1, 2}).deadlines()
    assert deadlines.first_ms is None and deadlines.pop_due(10**12) is None
    deadlines.add(200, 1, "late")
    deadlines.add(100, 2, "soon")
    assert (len(deadlines), deadlines.first_ms) == (2, 100)
    assert deadlines.pop_due(99) is None
    assert deadlines.pop_due(100) == (2, "soon")
    assert deadlines.pop_due(199) is None
    assert deadlines.pop_due(200) == (1, "late")
    assert len(deadlines) == 0 and deadlines.first_ms is None


def test_of_what_is_due_at_the_same_time_the_lower_number_comes_first() -> None:
    deadlines: Deadlines[object] = Deadlines(lambda *_: True, lambda: 9)
    for number in (5, 3, 9, 1):
        deadlines.add(100, number, object())  # which nobody can compare
    assert [due[0] for _ in range(4) if (due := deadlines.pop_due(100))] == [1, 3, 5, 9]


def test_what_is_over_does_not_pile_up() -> None:
    """A lease of a year, taken and given back all the time, beside a few that stay."""
    alive = Alive(range(50))
    deadlines = alive.deadlines()
    for number in range(50):
        deadlines.add(10**9 + number, number, "stays")
    longest = 0
    for number in range(1_000, 101_000):
        deadlines.add(10**9, number, "over already")
        longest = max(longest, len(deadlines))
    assert longest < 3 * _SWEEP_FLOOR
    left = []
    while (due := deadlines.pop_due(10**10)) is not None:
        left += [due[0]] if due[0] in alive else []
    assert left == list(range(50)), "nothing that means something was swept away"


def test_a_schedule_that_is_all_alive_is_not_swept_time_and_again() -> None:
    looked_at = 0

    def is_live(_number: int, _key: str) -> bool:
        nonlocal looked_at
        looked_at += 1
        return True

    count = 0
    deadlines: Deadlines[str] = Deadlines(is_live, lambda: count)
    for count in range(1, 100_001):
        deadlines.add(count, count, "alive")
    assert looked_at == 0 and len(deadlines) == 100_000


def test_it_can_be_used_while_it_is_swept() -> None:
    alive = Alive(range(1_000))
    deadlines = alive.deadlines()
    for number in range(1_000):
        deadlines.add(5_000 + number, number, "alive")
    number = 10_000
    while not deadlines._old and number < 100_000:
        deadlines.add(2_000, number, "dead")
        number += 1
    alive.add(1)
    deadlines.add(1_000, 1, "the first")
    assert deadlines._old, "in the midst of it"
    assert deadlines.first_ms == 1_000
    assert deadlines.pop_due(1_999) == (1, "the first")
    while (due := deadlines.pop_due(4_999)) is not None:
        assert due[1] == "dead"
    assert deadlines.pop_due(5_000) == (0, "alive")
    alive.add(20_000)
    deadlines.add(5_001, 20_000, "new")
    assert [deadlines.pop_due(5_001) for _ in range(3)] == [(1, "alive"), (20_000, "new"), None]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_through_additions_endings_and_sweeps_all_that_lives_comes_up_in_order(seed: int) -> None:
    dice = random.Random(seed)
    alive = Alive()
    deadlines, expected, now_ms = alive.deadlines(), dict[int, int](), 0
    for number in range(6_000):
        at_ms = now_ms + dice.randrange(1, 3_000)
        deadlines.add(at_ms, number, "")
        if dice.random() < 0.05:
            alive.add(number)
            expected[number] = at_ms
        if dice.random() < 0.1:
            now_ms += dice.randrange(10)
            while (due := deadlines.pop_due(now_ms)) is not None:
                if due[0] in alive:
                    first = min(expected.items(), key=lambda item: (item[1], item[0]))
                    assert due[0] == first[0] and first[1] <= now_ms
                    del expected[due[0]]
                    alive.remove(due[0])
            assert not expected or min(expected.values()) > now_ms
    assert len(deadlines) < 2 * len(alive) + 3 * _SWEEP_FLOOR
