"""The rules of views and of the commit, searched exhaustively by Spin (`tests/model`)."""

from __future__ import annotations

import re

import pytest
from model import check
from model.check import BOUNDS, GOOD, MODEL, MODEL_FILES, RULES, RUNS, Outcome

SMALL = {**BOUNDS, "EPOCHS": 3, "OPS": 1, "NAMES": 2}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """All variants, searched."""
    try:
        check.require_tools()
    except check.ToolMissing as missing:
        pytest.fail(str(missing), pytrace=False)
    return {outcome.variant: outcome for outcome in check.check_all(check.VARIANTS)}


def test_the_rules_keep_the_invariants_in_every_state_within_the_bounds(
    outcomes: dict[str, Outcome],
) -> None:
    assert outcomes[GOOD].as_expected, outcomes[GOOD]
    assert outcomes[GOOD].states > 1_000_000, "far fewer than there were: is something cut off?"


@pytest.mark.parametrize("rule", RULES)
def test_without_any_one_rule_a_client_gets_a_wrong_answer(
    rule: str, outcomes: dict[str, Outcome]
) -> None:
    assert outcomes[rule].as_expected, outcomes[rule]


@pytest.mark.parametrize("run", RUNS)
def test_the_model_has_the_runs_that_it_is_about(run: str, outcomes: dict[str, Outcome]) -> None:
    assert outcomes[run].as_expected, outcomes[run]


def test_every_switch_in_the_model_is_tried() -> None:
    text = "".join((MODEL / name).read_text() for name in MODEL_FILES)
    switches = set(re.findall(r"^#ifn?def (\w+)", text, re.MULTILINE))
    assert switches == {*RULES, *RUNS, *BOUNDS, "CLIENTS_JUDGE"}


def test_every_rule_that_can_be_switched_off_stands_at_the_top_of_the_model() -> None:
    top = (MODEL / "holdfast.pml").read_text().split("*/", 1)[0]
    assert [rule for rule in RULES if f"({rule})" not in top] == []


def test_a_search_that_runs_out_of_memory_does_not_count() -> None:
    outcome = check.check(GOOD, memory_max_mb=20)
    assert not outcome.as_expected, outcome
    assert "MEMLIM" in outcome.trouble


def test_a_smaller_search_passes_too() -> None:
    outcome = check.check(GOOD, SMALL)
    assert outcome.as_expected, outcome


@pytest.mark.parametrize(
    "output",
    [
        "",
        "pan: reached -DMEMLIM bound",
        "error: max search depth too small\nWarning: Search not completed\n"
        "State-vector 100 byte, depth reached 9, errors: 0\n   12 states, stored\n"
        "  128.000 total actual memory usage",
        "pan:1: block in d_step seq (at depth 3)\n"
        "State-vector 100 byte, depth reached 9, errors: 1\n   12 states, stored\n"
        "  128.000 total actual memory usage",
    ],
)
def test_a_search_that_is_not_complete_is_a_failure(output: str) -> None:
    for variant in (GOOD, next(iter(RULES)), next(iter(RUNS))):
        assert not check.verdict(variant, output).as_expected
