"""The checker of versioned registers finds what is wrong, and nothing in what is right. Its search
is held against one that tries all orders."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
from harness.checkers import History, check_all, check_registers
from harness.checkers.cases import op as lock_op
from harness.checkers.history import LOCK, UNLOCK
from harness.checkers.register_oracle import is_possible
from harness.checkers.register_samples import (
    RegisterSample,
    make_registers,
    scramble_registers,
    shake_registers,
    spoil_registers,
)
from harness.checkers.registers import (
    CONFLICT,
    DELETE,
    DELETED,
    GET,
    NO_KEY,
    PUT,
    SHOWN,
    STALE,
    WRITTEN,
    Answer,
    RegisterOperation,
    fences_of,
)

NONE = Answer(NO_KEY)
X1, X2, Y2, Z3 = (Answer(SHOWN, n, v) for n, v in ((1, b"x"), (2, b"x"), (2, b"y"), (3, b"z")))


def get(call: int, end: int, answer: Answer) -> RegisterOperation:
    return RegisterOperation("g", GET, "r", call, end, answer)


def put(
    call: int, end: int | None, version: int, value: bytes, answer: Answer | None = None
) -> RegisterOperation:
    """One that was done; or with this answer; or, without an end, of unknown outcome."""
    done = Answer(WRITTEN, version + 1) if end is not None else None
    return RegisterOperation("p", PUT, "r", call, end, answer or done, version, value)


def delete(call: int, end: int | None, answer: Answer | None = None) -> RegisterOperation:
    return RegisterOperation("d", DELETE, "r", call, end, answer)


def has(version: int, *, maybe: bool = False) -> Answer:
    return Answer(CONFLICT, version, maybe=maybe)


POSSIBLE = {
    "nothing at all": [],
    "it is made, read, written over": [
        get(0, 1, NONE),
        put(2, 3, 0, b"x"),
        get(4, 5, X1),
        put(6, 7, 1, b"y"),
        get(8, 9, Y2),
    ],
    "puts that do not fit": [
        put(0, 1, 3, b"x", NONE),
        put(2, 3, 0, b"x"),
        put(4, 5, 0, b"y", has(1)),
        put(6, 7, 9, b"y", has(1)),
    ],
    "a get beside a put sees either": [put(0, 9, 0, b"x"), get(1, 2, NONE), get(3, 4, X1)],
    "three puts at a time, each on the other's version": [
        put(0, 9, 2, b"z"),
        put(0, 9, 0, b"x"),
        put(0, 9, 1, b"y"),
        get(10, 11, Z3),
    ],
    "a put of unknown outcome that a get shows": [put(0, None, 0, b"x"), get(8, 9, X1)],
    "a put of unknown outcome that a get does not show": [put(0, None, 0, b"x"), get(8, 9, NONE)],
    "a late copy writes long after": [
        put(0, None, 0, b"x"),
        get(8, 9, NONE),
        get(10, 11, X1),
    ],
    "maybe, and it was": [
        put(0, 1, 0, b"x"),
        put(2, 3, 1, b"y", has(2, maybe=True)),
        get(4, 5, Y2),
    ],
    "maybe, and it was somebody else": [
        put(0, 1, 0, b"x"),
        put(2, 5, 1, b"z", has(2, maybe=True)),
        put(3, 4, 1, b"y"),
        get(6, 7, Y2),
    ],
    "of two puts of unknown outcome the one that is seen": [
        put(0, None, 0, b"x"),
        put(0, None, 0, b"y"),
        get(4, 5, Answer(SHOWN, 1, b"y")),
        put(6, 7, 1, b"x"),
    ],
    "it is deleted, and begins again": [
        put(0, 1, 0, b"x"),
        put(2, 3, 1, b"y"),
        delete(4, 5, Answer(DELETED)),
        put(6, 7, 1, b"y", NONE),
        put(8, 9, 0, b"x"),
        get(10, 11, X1),
    ],
    "a late copy fits again behind a delete": [
        put(0, 1, 0, b"x"),
        put(2, None, 1, b"y"),
        delete(4, 5, Answer(DELETED)),
        put(6, 7, 0, b"x"),
        get(8, 9, Y2),
    ],
    "it was the second that was deleted, and the first that came late": [
        put(0, None, 0, b"x"),
        delete(1, None),
        put(2, None, 0, b"y"),
        delete(4, 5, Answer(DELETED)),
        get(6, 7, X1),
    ],
    "made twice at a time, and the first stayed": [
        put(0, 9, 0, b"x"),
        put(0, 9, 0, b"y"),
        delete(0, 9, Answer(DELETED)),
        get(10, 11, X1),
    ],
    "a stale token says nothing of the register": [put(0, 1, 7, b"x", Answer(STALE))],
}

IMPOSSIBLE = {
    "a put that was lost": [put(0, 1, 0, b"x"), get(2, 3, NONE)],
    "two puts of one version": [put(0, 1, 0, b"x"), put(0, 9, 1, b"y"), put(0, 9, 1, b"z")],
    "two puts that make it": [put(0, 9, 0, b"x"), put(0, 9, 0, b"y")],
    "a value that nobody wrote": [put(0, 1, 0, b"x"), get(2, 3, Answer(SHOWN, 1, b"y"))],
    "a value with the wrong version": [put(0, 1, 0, b"x"), get(2, 3, X2)],
    "a get that goes back": [
        put(0, 1, 0, b"x"),
        put(2, 9, 1, b"y"),
        get(3, 4, Y2),
        get(5, 6, X1),
    ],
    "a version that nobody can have written": [put(0, None, 0, b"x"), get(8, 9, Y2)],
    "a conflict with nobody": [put(0, 1, 0, b"x"), put(2, 3, 1, b"y", has(2))],
    "a conflict with a version that had gone": [
        put(0, 1, 0, b"x"),
        put(2, 3, 1, b"y"),
        put(4, 5, 0, b"z", has(1)),
    ],
    "no key where there is one": [put(0, 1, 0, b"x"), put(2, 3, 1, b"y", NONE)],
    "maybe, but nobody has written": [
        put(0, 1, 0, b"x"),
        put(2, 3, 1, b"y", has(2, maybe=True)),
        get(4, 5, X1),
    ],
    "maybe, and yet a third version": [
        put(0, 1, 0, b"x"),
        put(2, 3, 1, b"y", has(3, maybe=True)),
        get(4, 5, Z3),
    ],
    "one put of unknown outcome that wrote twice": [
        put(0, None, 0, b"x"),
        delete(4, 5, Answer(DELETED)),
        get(6, 7, X1),
    ],
    "a put of unknown outcome before its call": [get(0, 1, X1), put(2, None, 0, b"x")],
    "a delete of nothing": [delete(0, 1, Answer(DELETED))],
    "a delete that was not seen": [
        put(0, 1, 0, b"x"),
        delete(2, 3, Answer(DELETED)),
        get(4, 5, X1),
    ],
    "a put that answers with a version that is not the next": [
        put(0, 1, 0, b"x", Answer(WRITTEN, 2))
    ],
    "a conflict with the very version that it names": [
        put(0, 1, 0, b"x"),
        put(2, 3, 1, b"y", has(1)),
    ],
    "no key to a put that makes one": [put(0, 1, 0, b"x", NONE)],
}


@pytest.mark.parametrize("some", POSSIBLE.values(), ids=POSSIBLE)
def test_what_a_register_can_do_is_no_problem(some: list[RegisterOperation]) -> None:
    assert check_registers(some) == []
    assert is_possible(some)


@pytest.mark.parametrize("some", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_a_register_cannot_do_is_found_and_told(some: list[RegisterOperation]) -> None:
    problem = "\n".join(check_registers(some))
    assert "register 'r'" in problem and "I1" in problem
    assert any(str(one) in problem for one in some)
    assert not is_possible(some)


def test_registers_are_judged_one_by_one() -> None:
    bad = IMPOSSIBLE["two puts that make it"]
    good = [one._replace(key=key) for one, key in zip(bad, "bc", strict=True)]
    assert check_registers(good) == []
    assert len(check_registers(good + bad)) == 1


# -- against all orders ---------------------------------------------------------------------------


def agree(seed: object, some: list[RegisterOperation]) -> bool:
    """Whether this history is possible, of which both must think the same."""
    possible, problems = is_possible(some), check_registers(some)
    told = "\n".join(map(str, some))
    assert possible == (problems == []), f"seed {seed}: possible: {possible}\n{told}\n{problems}"
    return possible


def small_sample(seed: int) -> RegisterSample:
    rnd = random.Random(seed)
    return RegisterSample(
        seed,
        clients=rnd.randint(2, 4),
        operations=rnd.randint(2, 7),
        delay_max=rnd.randint(1, 3),
        lost=rnd.choice((0, 0.2, 0.5)),
        deletes=rnd.choice((0, 0, 0.2)),
        values=rnd.choice((0, 1, 3)),
    )


def test_histories_of_a_real_register_whole_and_spoilt_are_judged_as_by_trying_all_orders() -> None:
    first = random.randrange(1 << 30)
    print(f"seeds from {first}")
    verdicts: dict[bool, int] = defaultdict(int)
    for seed in range(first, first + 1_000):
        rnd = random.Random(seed)
        some = make_registers(small_sample(seed))
        assert agree(seed, some), f"seed {seed}: a real register did it"
        spoilt = spoil_registers(some, rnd)
        verdicts[agree(seed, spoilt)] += 1
        verdicts[agree(seed, shake_registers(spoilt, rnd))] += 1
    assert min(verdicts.values()) > 300, dict(verdicts)


def test_histories_made_at_random_are_judged_as_by_trying_all_orders() -> None:
    first = random.randrange(1 << 30)
    print(f"seeds from {first}")
    verdicts: dict[bool, int] = defaultdict(int)
    for seed in range(first, first + 3_000):
        rnd = random.Random(seed)
        verdicts[agree(seed, scramble_registers(rnd, rnd.randint(1, 6)))] += 1
    assert min(verdicts.values()) > 500, dict(verdicts)


def long_sample(seed: int, **more: float) -> RegisterSample:
    return RegisterSample(
        seed,
        clients=8,
        keys=3,
        operations=1_500,
        delay_max=300,
        lost=0.1,
        values=0,
        **more,
    )


@pytest.mark.parametrize("deletes", [0, 0.05])
def test_a_long_history_is_decided_in_few_steps(deletes: float) -> None:
    first = random.randrange(1 << 30)
    print(f"seeds from {first}")
    for seed in range(first, first + 5):
        some = make_registers(long_sample(seed, deletes=deletes))
        assert len(some) == 1_500
        assert check_registers(some, steps_max=20_000) == []


def test_one_wrong_answer_in_a_long_history_is_nearly_always_found() -> None:
    """Not where an operation of unknown outcome explains it."""
    first = random.randrange(1 << 30)
    print(f"seeds from {first}")
    found = 0
    for seed in range(first, first + 20):
        some = make_registers(long_sample(seed))
        found += check_registers(spoil_registers(some, random.Random(seed))) != []
    assert found >= 15


def test_a_search_that_is_given_up_is_a_problem() -> None:
    (problem, *_) = check_registers(make_registers(long_sample(1)), steps_max=2)
    assert "could not decide" in problem


# -- together with the rest -----------------------------------------------------------------------


def test_a_fenced_put_is_a_look_at_the_lock_as_well() -> None:
    done = put(5, 6, 0, b"x")._replace(fence=("a", 5))
    late = put(9, 10, 1, b"y", Answer(STALE))._replace(fence=("a", 5))
    elsewhere = put(9, 10, 7, b"y", Answer(STALE))._replace(fence=("b", 5))
    assert [one.answer for one in fences_of([done, late, elsewhere], {"a"})] == [1, 0]
    locks = [
        lock_op(LOCK, 0, 1, 5)._replace(call_us=0, return_us=1),
        lock_op(UNLOCK, 7, 8, 1)._replace(call_us=7, return_us=8),
    ]
    assert check_all(History(operations=locks, registers=[done, late, elsewhere])) == []
    done_late = late._replace(answer=Answer(WRITTEN, 2))
    (problem,) = check_all(History(operations=locks, registers=[done, done_late]))
    assert "lock 'a'" in problem and "verify a 5 -> 1" in problem
    refused_early = done._replace(answer=Answer(STALE))
    (problem,) = check_all(History(operations=locks, registers=[refused_early]))
    assert "lock 'a'" in problem


def test_a_whole_run_has_its_registers_checked_too() -> None:
    (problem,) = check_all(History(registers=IMPOSSIBLE["two puts that make it"]))
    assert "register 'r'" in problem
