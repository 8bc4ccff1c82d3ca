"""Deliberate bugs: the simulator has to catch each, or it does not test what it claims.

``python -m harness.simulator --mutants``, from ``tests/``, prints the table, with what it was that
gave each away.
"""

from __future__ import annotations

import pytest
from harness.simulator.mutants import MUTANTS, hunt
from harness.simulator.run import run_seed


@pytest.mark.parametrize("name", MUTANTS)
def test_the_simulator_catches(name: str, measured: list[str]) -> None:
    seed, how = hunt(name)
    assert seed >= 0, f"{name}: it survives"
    mistakes = ("AttributeError", "NameError", "TypeError")
    assert not any(each in how for each in mistakes), f"{name}: the mutant itself is wrong\n{how}"
    measured.append(f"mutant caught at seed {seed}: {name}")
    print(how)


def test_there_are_enough_of_them() -> None:
    assert len(MUTANTS) >= 55


def test_a_mutant_leaves_nothing_behind() -> None:
    for mutant in MUTANTS.values():
        before = [getattr(owner, attribute) for owner, attribute, _ in mutant.patches]
        with mutant.applied():
            during = [getattr(owner, attribute) for owner, attribute, _ in mutant.patches]
        after = [getattr(owner, attribute) for owner, attribute, _ in mutant.patches]
        assert before == after
        assert all(one is not other for one, other in zip(before, during, strict=True))
    assert not run_seed(next(iter(MUTANTS.values())).options_of(0)).problems
