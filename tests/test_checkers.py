"""The checkers of histories: each finds what is wrong, and nothing in what is right. The search for
a linearization is held against one that tries all orders."""

from __future__ import annotations

import ast
import math
import random
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from harness import checkers
from harness import history as live
from harness.checkers import (
    History,
    check_all,
    check_beliefs,
    check_commits,
    check_digests,
    check_fairness,
    check_leases,
    check_linearizable,
    check_one_voice,
    check_promotions,
    check_replies,
    check_tokens,
    from_ops,
)
from harness.checkers.cases import IMPOSSIBLE, MS, POSSIBLE, op
from harness.checkers.history import (
    LOCK,
    READ,
    RENEW,
    UNLOCK,
    UNLOCK_TOKEN,
    VERIFY,
    Ack,
    Belief,
    Digest,
    Expiry,
    Granted,
    Joined,
    Left,
    Operation,
    Promotion,
    Reply,
    View,
)
from harness.checkers.oracle import Oracle
from harness.checkers.samples import Sample, make, scramble, shake, spoil

# -- linearizability ------------------------------------------------------------------------------


@pytest.mark.parametrize("some", POSSIBLE.values(), ids=POSSIBLE)
def test_what_a_lock_can_do_is_no_problem(some: list[Operation]) -> None:
    assert check_linearizable(some) == []
    assert check_tokens(some) == []


@pytest.mark.parametrize("some", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_a_lock_cannot_do_is_found_and_told(some: list[Operation]) -> None:
    problem = "\n".join(check_linearizable(some))
    assert "lock 'a'" in problem and "I1" in problem
    assert any(str(one) in problem for one in some)


def test_locks_are_judged_one_by_one() -> None:
    bad = [op(LOCK, 0, 1, 5), op(LOCK, 2, 3, 6)]
    good = [one._replace(name=name) for one, name in zip(bad, "bc", strict=True)]
    assert check_linearizable(good) == []
    assert len(check_linearizable(good + bad)) == 1


@pytest.mark.parametrize(
    ("at_ms", "possible"), [(None, False), (40, False), (55, True), (58, False)]
)
def test_a_lease_ends_when_the_trace_says_so(at_ms: int | None, possible: bool) -> None:
    some = [op(LOCK, 0, 1, 5, lease_ms=50), op(READ, 53, 54, 5), op(LOCK, 56, 57, 8)]
    expiries = [] if at_ms is None else [Expiry("a", 5, at_ms * MS)]
    assert (check_linearizable(some, expiries) == []) == possible
    assert check_linearizable(some, expiries, window_us=3 * MS) == [] or at_ms in (None, 40)


def test_the_expiry_of_a_lost_primary_need_not_have_happened() -> None:
    some = [op(LOCK, 0, 1, 5, lease_ms=50), op(READ, 70, 71, 5), op(UNLOCK, 80, 81, 1)]
    assert check_linearizable(some, [Expiry("a", 5, 60 * MS)]) == []


def test_the_clock_of_a_node_may_run_fast_by_as_much_as_is_allowed() -> None:
    some = [op(LOCK, 0, 1, 5, lease_ms=1000), op(LOCK, 995, 996, 8)]
    assert check_linearizable(some)
    assert check_linearizable(some, clock_drift=0.01) == []


def test_a_search_that_is_given_up_is_a_problem() -> None:
    some, expiries = make(long_sample(1))
    (problem, *_) = check_linearizable(some, expiries, steps_max=2)
    assert "could not decide" in problem


# -- against all orders ---------------------------------------------------------------------------


def agree(seed: object, some: list[Operation], expiries: list[Expiry] | None) -> bool:
    """Whether this history is possible, of which both must think the same."""
    possible = Oracle(some, expiries).is_possible()
    problems = check_linearizable(some, expiries)
    told = "\n".join(map(str, [*some, *(expiries or ())]))
    assert possible == (problems == []), f"seed {seed}: possible: {possible}\n{told}\n{problems}"
    return possible


def small_sample(seed: int) -> Sample:
    rnd = random.Random(seed)
    return Sample(
        seed,
        clients=rnd.randint(2, 4),
        operations=rnd.randint(2, 6),
        delay_max=rnd.randint(1, 3),
        lost=rnd.choice((0, 0.2, 0.5)),
        leased=rnd.choice((0, 0.5)),
        wait_ms_max=rnd.choice((0, 3)),
    )


def test_histories_of_a_real_lock_whole_and_spoilt_are_judged_as_by_trying_all_orders() -> None:
    first = random.randrange(1 << 30)
    print(f"seeds from {first}")
    verdicts: dict[bool, int] = defaultdict(int)
    for seed in range(first, first + 700):
        rnd = random.Random(seed)
        some, seen = make(small_sample(seed))
        spoilt = spoil(some, rnd)
        for expiries in (seen, None):
            assert agree(seed, some, expiries), f"seed {seed}: a real lock did it"
            verdicts[agree(seed, spoilt, expiries)] += 1
            verdicts[agree(seed, shake(spoilt, rnd, MS), expiries)] += 1
    assert min(verdicts.values()) > 300, dict(verdicts)


def test_histories_made_at_random_are_judged_as_by_trying_all_orders() -> None:
    first = random.randrange(1 << 30)
    print(f"seeds from {first}")
    verdicts: dict[bool, int] = defaultdict(int)
    for seed in range(first, first + 2000):
        rnd = random.Random(seed)
        some, seen = scramble(rnd, rnd.randint(2, 5), MS)
        for expiries in (seen, None):
            verdicts[agree(seed, some, expiries)] += 1
    assert min(verdicts.values()) > 500, dict(verdicts)


def long_sample(seed: int, names: int = 4) -> Sample:
    """About 30 seconds of six clients on four locks."""
    return Sample(
        seed,
        clients=6,
        names=names,
        operations=300,
        delay_max=300,
        lost=0.1,
        lease_ms_max=2000,
        wait_ms_max=500,
    )


def test_a_long_history_is_decided_in_few_steps() -> None:
    first = random.randrange(1 << 30)
    print(f"seeds from {first}")
    for seed in range(first, first + 10):
        some, expiries = make(long_sample(seed))
        assert check_linearizable(some, expiries, steps_max=20_000) == []
        assert check_linearizable(some, steps_max=20_000) == []
        assert check_tokens(some) == []
        assert check_leases(some, expiries) == []
        assert check_replies([], some) == []


def test_one_wrong_answer_in_a_long_history_is_found_whenever_it_can_be() -> None:
    """So many locks that all orders of the operations on the spoilt one can be tried."""
    first = random.randrange(1 << 30)
    print(f"seeds from {first}")
    found = 0
    for seed in range(first, first + 60):
        some, _ = make(long_sample(seed, names=100))
        spoilt = spoil(some, random.Random(seed))
        (name,) = {a.name for a, b in zip(some, spoilt, strict=True) if a != b}
        its_own = [one for one in spoilt if one.name == name]
        if len(its_own) <= 7:  # more would now and then take the oracle minutes
            possible = Oracle(its_own, None).is_possible()
            assert (check_linearizable(spoilt) == []) == possible, f"seed {seed}, lock {name}"
            found += not possible
    assert found > 20


def test_one_wrong_answer_in_a_long_history_of_few_locks_is_mostly_found() -> None:
    first = random.randrange(1 << 30)
    print(f"seeds from {first}")
    found = 0
    for seed in range(first, first + 20):
        some, expiries = make(long_sample(seed))
        found += check_linearizable(spoil(some, random.Random(seed)), expiries) != []
    assert found >= 12


# -- tokens, beliefs, leases ----------------------------------------------------------------------


def test_tokens_that_rise_are_no_problem() -> None:
    beside = op(LOCK, 0, 9, 7, name="b")
    assert check_tokens([op(LOCK, 0, 1, 5), beside, op(READ, 2, 3, 5), op(LOCK, 4, 5, 8)]) == []
    assert check_tokens([op(LOCK, 0, 9, 8), op(LOCK, 5, 6, 5), op(LOCK, 6, 9, 0)]) == []


@pytest.mark.parametrize(
    "some",
    [
        [op(LOCK, 0, 1, 8), op(LOCK, 4, 5, 7)],
        [op(LOCK, 0, 1, 8), op(LOCK, 4, 5, 8)],
        [op(LOCK, 0, 3, 8), op(LOCK, 2, 5, 8, name="b")],
        [op(READ, 0, 1, 8), op(READ, 4, 5, 8, name="b")],
        [op(READ, 0, 1, 8), op(LOCK, 4, 5, 8)],
        [op(READ, 0, 1, 8), op(READ, 4, 5, 7)],
        [op(RENEW, 0, 1, 1, argument=8), op(VERIFY, 4, 5, 1, argument=7)],
    ],
)
def test_tokens_that_go_back_or_are_used_twice_are_found(some: list[Operation]) -> None:
    problems = check_tokens(some)
    assert problems and all("(I7)" in problem for problem in problems)


def test_beliefs_that_follow_one_another_are_no_problem() -> None:
    same = [Belief("x", "a", 5, 0, 8), Belief("x", "a", 5, 6, 10)]
    assert check_beliefs([*same, Belief("y", "a", 7, 10, None), Belief("z", "b", 8, 3, 12)]) == []
    assert check_beliefs([Belief("x", "a", 5, 0, 10), Belief("y", "a", 7, 4, 4)]) == []


@pytest.mark.parametrize(
    "beliefs",
    [
        [Belief("x", "a", 5, 0, 11), Belief("y", "a", 7, 10, 20)],
        [Belief("x", "a", 5, 0, None), Belief("y", "a", 7, 10, 20)],
        [Belief("x", "a", 5, 0, 11), Belief("y", "a", 5, 10, 20)],
        [Belief("x", "a", 5, 0, 50), Belief("x", "a", 5, 1, 2), Belief("y", "a", 7, 10, 20)],
        [Belief("x", "a", 5, 9, 3)],
    ],
)
def test_beliefs_that_overlap_are_found(beliefs: list[Belief]) -> None:
    assert check_beliefs(beliefs)
    assert check_beliefs(beliefs[::-1])


def test_an_expiry_is_neither_early_nor_of_a_grant_without_a_lease() -> None:
    leased, without = op(LOCK, 0, 1, 5, lease_ms=50), op(LOCK, 0, 1, 6)
    assert check_leases([leased, without], [Expiry("a", 5, 50 * MS), Expiry("a", 9, 0)]) == []
    assert check_leases([leased], [Expiry("a", 5, 48 * MS)])
    assert check_leases([leased], [Expiry("a", 5, 48 * MS)], clock_drift=0.1) == []
    assert check_leases([without], [Expiry("a", 6, 50 * MS)])


# -- replies --------------------------------------------------------------------------------------


def reply(node: str, epoch: int, at: int, answer: int | str = 1, **more: object) -> Reply:
    """One that waited for frame 3, which was acknowledged in time."""
    made = Reply(node, epoch, "LOCK", "a", "r1", answer, at - 1, at, 100, False, 3, 3)
    return made._replace(**more)  # type: ignore[arg-type]


def test_equal_answers_and_errors_are_no_problem() -> None:
    replies = [reply("m", 1, 5, 7), reply("n", 2, 9, 7), reply("n", 2, 9, "-REQUESTGONE gone")]
    replies += [reply("m", 1, 5, 0, command="UNLOCK"), reply("m", 1, 5, 0, name="b")]
    replies += [reply("m", 1, 5, 0, reqid=""), reply("m", 1, 5, 1, reqid="")]
    assert check_replies(replies, [op(LOCK, 1, 2, 7, reqid="r1")]) == []


def test_two_answers_to_one_request_are_found() -> None:
    assert check_replies([reply("m", 1, 5, 7), reply("n", 2, 9, 0)])
    assert check_replies([reply("m", 1, 5, 7), reply("m", 1, 9, 8)])
    assert check_replies([reply("m", 1, 5, 7)], [op(LOCK, 1, 2, 0, reqid="r1")])
    assert check_replies([], [op(UNLOCK, 1, 2, 0), op(UNLOCK_TOKEN, 1, 3, 1, argument=5)])


def test_one_voice_an_epoch_is_no_problem() -> None:
    assert check_one_voice([reply("m", 1, 1), reply("n", 2, 2), reply("m", 1, 3)]) == []
    assert check_one_voice([reply("m", 1, 1), reply("n", 1, 2, "-READONLY ask m")]) == []


@pytest.mark.parametrize(
    "replies",
    [
        [reply("m", 1, 1), reply("n", 1, 2)],
        [reply("m", 2, 1), reply("m", 1, 2)],
        [reply("m", 1, 1), reply("n", 2, 2), reply("m", 2, 3)],
    ],
)
def test_two_voices_in_an_epoch_and_epochs_that_go_back_are_found(replies: list[Reply]) -> None:
    assert all("(I3)" in problem for problem in check_one_voice(replies))
    assert check_one_voice(replies)


VIEWS = [
    View(1, "m", ("m",), 10),
    View(2, "m", ("m", "n"), 20),
    View(3, "n", ("n",), 30),
    View(4, "", (), 40),
    View(5, "o", ("o",), 50),
]


def test_members_that_become_primaries_are_no_problem() -> None:
    promotions = [Promotion("m", 1, (), 10), Promotion("n", 3, ("m", "n"), 30)]
    assert check_promotions([*promotions, Promotion("o", 5, (), 50)], VIEWS) == []


@pytest.mark.parametrize(
    ("promotions", "views"),
    [
        ([Promotion("o", 3, ("m", "n"), 30)], []),
        ([Promotion("n", 3, ("m", "n"), 30), Promotion("m", 3, ("m", "n"), 31)], []),
        ([], [VIEWS[1], View(3, "o", ("o",), 30)]),
        ([], [VIEWS[1], View(2, "n", ("n",), 30)]),
        ([], [VIEWS[1], View(3, "n", ("m",), 30)]),
    ],
)
def test_strangers_that_become_primaries_are_found(
    promotions: list[Promotion], views: list[View]
) -> None:
    assert check_promotions(promotions, views)


ACK = Ack("m", "n", epoch=2, frame=3, frame_sent_us=24, offset=100, at_us=25)


def test_a_reply_that_leaves_after_its_acknowledgement_is_no_problem() -> None:
    assert check_commits([reply("m", 2, 25)], [ACK], VIEWS) == []
    late = ACK._replace(frame=9, frame_sent_us=69, offset=200, at_us=70)
    assert check_commits([reply("m", 2, 25), reply("m", 2, 70, acked_frame=9)], [ACK, late]) == []
    assert check_commits([reply("m", 1, 15, solo=True)], [], VIEWS) == []
    assert check_commits([reply("m", 1, 20, solo=True)], [], VIEWS) == []
    assert check_commits([reply("m", 1, 5, solo=True)], [], VIEWS) == []
    assert check_commits([reply("n", 9, 25, "-READONLY ask m", acked_frame=0)], [], VIEWS) == []


@pytest.mark.parametrize(
    ("one", "ack"),
    [
        (reply("m", 2, 25, acked_frame=2), ACK),
        (reply("m", 2, 25, computed_us=26), ACK._replace(frame_sent_us=27)),
        (reply("m", 3, 25), ACK),
        (reply("m", 2, 24), ACK),
        (reply("m", 2, 25), ACK._replace(frame=2)),
        (reply("m", 2, 25), ACK._replace(frame_sent_us=23)),
        (reply("m", 2, 25), ACK._replace(offset=99)),
        (reply("m", 2, 25), ACK._replace(node="n", backup="m")),
        (reply("m", 1, 25, solo=True), ACK),
        (reply("m", 2, 35, solo=True), ACK),
    ],
)
def test_a_reply_that_leaves_too_early_is_found(one: Reply, ack: Ack) -> None:
    assert check_commits([one], [ack], VIEWS)


# -- agreement and fairness -----------------------------------------------------------------------


def test_two_states_at_one_offset_are_found() -> None:
    here = Digest("m", "h", 7, "aa")
    fine = [Digest("n", "h", 7, "aa"), Digest("n", "h", 8, "bb"), Digest("n", "i", 7, "cc")]
    assert check_digests([here, *fine]) == []
    assert check_digests([here, *fine, Digest("n", "h", 7, "ab")])
    assert check_digests([here, *fine, Digest("o", "i", 7, "aa")])


def line(text: str) -> list[Joined | Left | Granted]:
    """+x joins, -x leaves, x is granted; a word may begin with a node's letter and a colon."""
    records: list[Joined | Left | Granted] = []
    for at, word in enumerate(text.split()):
        node, _, said = word.rpartition(":")
        place = (node or "m", 1, "a", said.lstrip("+-"))
        if said[0] in "+-":
            records.append(Joined(*place, at) if said[0] == "+" else Left(*place, at))
        else:
            records.append(Granted(*place, at, at))
    return records


@pytest.mark.parametrize(
    "text", ["x y", "+x +y x y", "+x +y -x y z", "+x +y -x +x x y", "+x +y -x y x", "+x n:+y n:y x"]
)
def test_first_come_first_served_is_no_problem(text: str) -> None:
    assert check_fairness(line(text)) == []


@pytest.mark.parametrize("text", ["+x +y y x", "+x y", "+x +y -x +x +z z", "+x +y n:x y"])
def test_a_waiter_that_is_overtaken_is_found(text: str) -> None:
    assert check_fairness(line(text))


# -- all of it ------------------------------------------------------------------------------------


def test_a_whole_run_is_looked_at_from_every_side() -> None:
    some, expiries = make(long_sample(7))
    good = History(some, expiries, [Belief("x", "a", 5, 0, 10)], [reply("m", 2, 25)], [ACK], VIEWS)
    assert check_all(good) == []
    bad = History(
        operations=IMPOSSIBLE["two grants and no release"] + [op(LOCK, 9, 10, 4)],
        expiries=[Expiry("a", 5, 0)],
        beliefs=[Belief("x", "a", 5, 0, None), Belief("y", "a", 7, 10, 20)],
        replies=[reply("m", 2, 25, 7), reply("n", 2, 26, 8, acked_frame=0)],
        promotions=[Promotion("o", 3, ("m", "n"), 30)],
        digests=[Digest("m", "h", 7, "aa"), Digest("n", "h", 7, "ab")],
        line=line("+x y"),
    )
    told = "\n".join(check_all(bad))
    invariants = ("(I1)", "(I3)", "(I4)", "(I5)", "(I6)", "(I7)", "(I8)", "(I9)", "(I1, I8)")
    assert [name for name in invariants if name not in told] == []


def test_a_live_history_can_be_looked_at_too() -> None:
    good = [
        live.Op("lock", "a", 0.5, 1.25, 5, "x"),
        live.Op("inspect", "a", 2, 3, 5, "y"),
        live.Op("unlock", "a", 3.5, math.inf, live.UNKNOWN, "x"),
        live.Op("inspect", "a", 4, math.inf, live.UNKNOWN, "y"),
    ]
    operations = from_ops(good)
    assert operations[0] == Operation("x", LOCK, "a", "op-1", 500_000, 1_250_000, 5)
    assert check_linearizable(operations) == [] and live.explain(good) == ""
    bad = [*good, live.Op("lock", "a", 5, 6, 8, "y"), live.Op("lock", "a", 7, 8, 9, "x")]
    assert check_linearizable(from_ops(bad)) and live.explain(bad)
    assert check_linearizable(from_ops(bad, lease_ms=100)) == []


def test_the_checkers_share_no_code_with_the_server() -> None:
    for path in Path(checkers.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert all(alias.name in sys.stdlib_module_names for alias in node.names), path
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1 or node.module in OUTSIDE, f"{path}: {node.module}"


OUTSIDE = {"__future__", "bisect", "collections", "collections.abc", "dataclasses", "operator"}
OUTSIDE |= {"typing"}
