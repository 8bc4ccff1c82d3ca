"""The rules of ``fail-stop``, as whole tables: every outcome in every situation (F1 to F6)."""

from __future__ import annotations

import itertools

import pytest

from holdfast.server.core.failover import (
    Answer,
    NoAnswer,
    Standing,
    Step,
    Verdict,
    judge,
    judge_for_register,
    step_of_empty_node,
)
from holdfast.server.core.view import NO_VIEW, View

EPOCH = 7
LIMIT_MS = 1_000
SILENCES = (0, 999, 1_000, 5_000)
INCARNATIONS = ("the one we knew", "another one")
EPOCHS = (0, 6, 7, 8, 9)


def answer(incarnation: str, standing: Standing, accepted: bool, epoch: int) -> Answer:
    return Answer(incarnation, standing, accepted, View(epoch, "x", ("x",)))


def verdict(
    outcome: Answer | NoAnswer, *, stalled: bool = False, silent_ms: int = 0
) -> tuple[Verdict, str]:
    return judge(
        outcome,
        suspect=INCARNATIONS[0],
        epoch=EPOCH,
        silent_ms=silent_ms,
        timeout_ms=LIMIT_MS,
        stalled=stalled,
    )


ANSWERS = [
    answer(*each) for each in itertools.product(INCARNATIONS, Standing, (False, True), EPOCHS)
]


@pytest.mark.parametrize("stalled", [False, True])
@pytest.mark.parametrize("silent_ms", SILENCES)
def test_the_whole_table_of_answers(silent_ms: int, stalled: bool) -> None:
    for outcome in ANSWERS:
        known = outcome.incarnation == INCARNATIONS[0]
        serving = outcome.standing is Standing.SERVING
        if serving and (known or outcome.view.epoch > EPOCH):
            expected = Verdict.YIELD  # F1: a serving primary never accepts
        elif known:
            expected = Verdict.BYPASS if outcome.accepted else Verdict.WAIT  # F1
        else:
            expected = Verdict.WAIT if stalled else Verdict.BYPASS  # F2, F4
        found, why = verdict(outcome, stalled=stalled, silent_ms=silent_ms)
        assert found is expected, (outcome, stalled, silent_ms)
        assert why


@pytest.mark.parametrize(
    ("outcome", "silent_ms", "stalled", "expected"),
    [
        (NoAnswer.GONE, 0, False, Verdict.BYPASS),
        (NoAnswer.GONE, 5_000, False, Verdict.BYPASS),
        (NoAnswer.GONE, 0, True, Verdict.WAIT),
        (NoAnswer.GONE, 5_000, True, Verdict.WAIT),
        (NoAnswer.SILENT, 0, False, Verdict.WAIT),
        (NoAnswer.SILENT, 999, False, Verdict.WAIT),
        (NoAnswer.SILENT, 1_000, False, Verdict.BYPASS),
        (NoAnswer.SILENT, 5_000, False, Verdict.BYPASS),
        (NoAnswer.SILENT, 999, True, Verdict.WAIT),
        (NoAnswer.SILENT, 5_000, True, Verdict.WAIT),
    ],
)
def test_the_whole_table_of_silence(
    outcome: NoAnswer, silent_ms: int, stalled: bool, expected: Verdict
) -> None:
    found, why = verdict(outcome, stalled=stalled, silent_ms=silent_ms)
    assert found is expected and why


def test_a_peer_that_answers_is_never_bypassed_for_having_been_silent() -> None:
    for outcome in ANSWERS:
        at_once = verdict(outcome, silent_ms=0)[0]
        assert verdict(outcome, silent_ms=10**9)[0] is at_once


def test_a_stall_never_makes_a_node_bolder() -> None:
    outcomes: list[Answer | NoAnswer] = [*ANSWERS, *NoAnswer]
    for outcome, silent_ms in itertools.product(outcomes, SILENCES):
        stalled = verdict(outcome, silent_ms=silent_ms, stalled=True)[0]
        if stalled is Verdict.BYPASS:
            assert isinstance(outcome, Answer) and outcome.accepted
        assert stalled in (verdict(outcome, silent_ms=silent_ms)[0], Verdict.WAIT)


def test_two_that_both_serve_do_not_both_go_on() -> None:
    # With equal epochs the promoted backup wins: the old primary asks it, and finds it serving.
    promoted = answer(INCARNATIONS[0], Standing.SERVING, False, EPOCH)
    assert verdict(promoted)[0] is Verdict.YIELD


# -- with a view register -------------------------------------------------------------------------


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("silent_ms", SILENCES)
def test_the_whole_table_of_when_a_change_is_proposed_to_a_register(
    silent_ms: int, linked: bool
) -> None:
    outcomes: list[Answer | NoAnswer] = [*ANSWERS, *NoAnswer]
    for outcome in outcomes:
        is_late = silent_ms >= LIMIT_MS
        if isinstance(outcome, NoAnswer):
            proposes = is_late or outcome is NoAnswer.GONE
            expected = Verdict.BYPASS if proposes else Verdict.WAIT
        else:
            known = outcome.incarnation == INCARNATIONS[0]
            if outcome.standing is Standing.SERVING and (known or outcome.view.epoch > EPOCH):
                expected = Verdict.YIELD
            elif known and linked and not is_late:
                expected = Verdict.WAIT
            else:
                expected = Verdict.BYPASS
        found, why = judge_for_register(
            outcome,
            suspect=INCARNATIONS[0],
            epoch=EPOCH,
            silent_ms=silent_ms,
            timeout_ms=LIMIT_MS,
            linked=linked,
        )
        assert found is expected and why, (outcome, silent_ms, linked)


# -- F6 -------------------------------------------------------------------------------------------


def test_of_two_primaries_the_later_epoch_ranks_higher_then_the_later_reign_then_the_name() -> None:
    ranked = [
        Answer(name, Standing.SERVING, False, View(epoch, name, (name,)), False, since)
        for epoch, since, name in ((3, 3, "z"), (4, 1, "a"), (4, 1, "b"), (4, 2, "a"), (4, 4, "a"))
    ]
    ranks = [each.rank for each in ranked]
    assert ranks == sorted(ranks) and len(set(ranks)) == len(ranks)


# -- F5 -------------------------------------------------------------------------------------------

JOIN, BEGIN, WAIT = Step.JOIN, Step.BEGIN, Step.WAIT
SITUATIONS = list(itertools.product((False, True), repeat=3))  # heard, first primary, bootstrap


def expected_step(
    outcome: Answer | NoAnswer, heard: bool, first_primary: bool, bootstrap: bool
) -> Step:
    standing = outcome.standing if isinstance(outcome, Answer) else None
    if standing is Standing.SERVING:
        return JOIN
    if standing is Standing.STATE:
        return WAIT
    if bootstrap:
        return BEGIN
    if standing is Standing.BLANK and first_primary and not heard:
        return BEGIN
    return WAIT


@pytest.mark.parametrize("standing", Standing)
@pytest.mark.parametrize(("heard", "first_primary", "bootstrap"), SITUATIONS)
def test_the_whole_table_of_an_empty_node_whose_peer_answers(
    standing: Standing, heard: bool, first_primary: bool, bootstrap: bool
) -> None:
    outcome = Answer("x", standing, False, NO_VIEW)
    step, why = step_of_empty_node(
        outcome, heard=heard, first_primary=first_primary, bootstrap=bootstrap
    )
    assert step is expected_step(outcome, heard, first_primary, bootstrap) and why


@pytest.mark.parametrize("outcome", NoAnswer)
@pytest.mark.parametrize(("heard", "first_primary", "bootstrap"), SITUATIONS)
def test_the_whole_table_of_an_empty_node_whose_peer_does_not_answer(
    outcome: NoAnswer, heard: bool, first_primary: bool, bootstrap: bool
) -> None:
    step, why = step_of_empty_node(
        outcome, heard=heard, first_primary=first_primary, bootstrap=bootstrap
    )
    answers_nothing = outcome in (NoAnswer.GONE, NoAnswer.SILENT)
    assert step is (BEGIN if bootstrap and answers_nothing else WAIT) and why


def test_a_peer_that_has_state_is_never_overridden() -> None:
    for standing in (Standing.SERVING, Standing.STATE):
        for heard, first_primary, bootstrap in SITUATIONS:
            step, _ = step_of_empty_node(
                Answer("x", standing, True, View(3, "x", ("x",))),
                heard=heard, first_primary=first_primary, bootstrap=bootstrap,
            )  # fmt: skip
            assert step is not BEGIN


def test_of_two_blank_nodes_only_the_first_primary_begins() -> None:
    blank = Answer("x", Standing.BLANK, False, NO_VIEW)
    steps = [
        step_of_empty_node(blank, heard=False, first_primary=first, bootstrap=False)[0]
        for first in (True, False)
    ]
    assert steps == [BEGIN, WAIT]
