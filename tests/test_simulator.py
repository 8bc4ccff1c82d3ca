"""The simulator: many seeds are safe and become whole again, and one seed is one run.

``HOLDFAST_TEST_SEEDS`` says how many seeds (2,000 unless told), ``HOLDFAST_TEST_SEEDS_S`` for how
long at most (180 s). A failing one is told as a story, from ``tests/``, by
``python -m harness.simulator --seed N --trace``.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness.checkers.history import LOCK, History, Operation
from harness.checkers.registers import (
    GET,
    NO_KEY,
    PUT,
    SHOWN,
    WRITTEN,
    Answer,
    RegisterOperation,
)
from harness.simulator.campaign import ENOUGH_TO_SEE_ALL, REQUIRED, Campaign, run_campaign
from harness.simulator.network import End, Host, Network
from harness.simulator.options import BACKUP, BOTH, ETCD, FAIL_STOP, REGISTERS, STOPPED, draw
from harness.simulator.run import POLL_US, Run, run_seed
from harness.simulator.scheduler import Clock, Scheduler
from harness.simulator.versioned import check_fenced_order

from holdfast.server.core.replica import Phase, Role

SEEDS = int(os.environ.get("HOLDFAST_TEST_SEEDS", "2000"))
SEEDS_S = float(os.environ.get("HOLDFAST_TEST_SEEDS_S", "180"))

CALM: dict[str, Any] = {
    "fault_every_ms": 10**6,
    "loss_per_mille": 0,
    "total_loss": "",
    "small_limits": False,
}
"""Options of a run in which nothing goes wrong but what its test does."""


# -- volume --------------------------------------------------------------------------------------


def test_every_seed_is_safe_and_becomes_whole_again(measured: list[str]) -> None:
    workers = min(os.cpu_count() or 1, 8)
    campaign = run_campaign(range(SEEDS), workers=workers, budget_s=SEEDS_S)
    print(campaign)
    simulated_s = campaign.simulated_us // 1_000_000
    missing = campaign.missing()
    measured.append(
        f"simulator: {campaign.runs} seeds, {simulated_s} simulated seconds in "
        f"{campaign.took_s:.0f} s, {len(campaign.failures)} failures, "
        f"{len(REQUIRED) - len(missing)} of {len(REQUIRED)} required events seen"
    )
    report = "\n\n".join(f"seed {seed}: {text}" for seed, text in campaign.failures.items())
    assert not campaign.failures, report
    if campaign.runs >= ENOUGH_TO_SEE_ALL:
        assert not missing, "never happened, so it is tested by nothing"


@pytest.mark.parametrize("register", REGISTERS)
@pytest.mark.parametrize("how", [BOTH, STOPPED])
def test_after_the_loss_of_everything_nobody_answers_until_an_operator_begins_anew(
    register: str, how: str
) -> None:
    for seed in range(15):
        result = run_seed(replace(draw(seed), register=register, total_loss=how))
        assert not result.problems, result


def test_a_campaign_in_which_something_never_happened_says_what() -> None:
    campaign = Campaign(counts=Counter(dict.fromkeys(REQUIRED, 1)))
    assert campaign.missing() == []
    del campaign.counts["fault: pause"], campaign.counts["partial resync"]
    assert campaign.missing() == ["fault: pause", "partial resync"]


# -- one seed is one run -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [327_045])
def test_a_seed_that_once_failed_passes(seed: int) -> None:
    """327045: a possible history, whose check was given up after 200,000 steps."""
    result = run_seed(draw(seed))
    assert not result.problems, result


def test_one_seed_is_the_same_run_every_time() -> None:
    for seed in (3, 14, 15):
        results = [run_seed(draw(seed, safety_ms=8_000)) for _ in range(2)]
        assert results[0].fingerprint == results[1].fingerprint
        assert results[0].counts == results[1].counts
        assert results[0].history == results[1].history


def test_another_process_with_another_hash_seed_makes_the_same_run() -> None:
    here = run_seed(draw(7)).fingerprint
    for hash_seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-m", "harness.simulator", "--seed", "7", "--fingerprint"],
            cwd=Path(__file__).parent,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert there.stdout.strip() == here


def test_two_seeds_are_two_runs() -> None:
    prints = {run_seed(draw(seed, safety_ms=4_000)).fingerprint for seed in range(4)}
    assert len(prints) == 4


def test_telling_the_story_changes_nothing() -> None:
    silent, told = (run_seed(draw(5, safety_ms=8_000), tells=tells) for tells in (False, True))
    assert silent.fingerprint == told.fingerprint
    assert told.lines and not silent.lines


# -- moments that the dice seldom hit ------------------------------------------------------------


def _calm_run(register: str, **options: Any) -> Run:
    run = Run(replace(draw(1, register), **CALM, **options))
    for number in (0, 1):
        run.cluster.start(number)
    return run


def _run_until(run: Run, step_us: int, limit_us: int, condition: Any) -> None:
    until_us = run.scheduler.now_us + limit_us
    while not condition():
        assert run.scheduler.now_us < until_us, run.cluster.describe()
        run.scheduler.run(run.scheduler.now_us + step_us)


@pytest.mark.parametrize("register", REGISTERS)
@pytest.mark.parametrize("cut_us", [0, 150_000])
def test_a_backup_that_was_admitted_but_never_told_joins_again(register: str, cut_us: int) -> None:
    run = _calm_run(register, backup_timeout_ms=1_000, promotion_timeout_ms=1_200)
    primary = run.cluster.processes[0]
    assert primary is not None
    _run_until(run, 20, 5_000_000, lambda: primary.replica.phase is Phase.PROPOSED)
    link = primary.pairing.link
    assert link is not None
    one, other = run.cluster.hosts
    run.network.cut_way(one, other)
    run.network.break_off(link.end, 1_000, 1_000)
    run.scheduler.after(cut_us, run.network.mend_way, one, other)
    _run_until(run, POLL_US, 10_000_000, run.cluster.is_whole)
    assert not run.trace.problems


@pytest.mark.parametrize("register", REGISTERS)
def test_a_killed_primary_is_followed_by_its_backup_at_once(register: str) -> None:
    run = _calm_run(register)
    _run_until(run, POLL_US, 5_000_000, run.cluster.is_whole)
    run.cluster.kill(0, silent=False)
    backup = run.cluster.processes[1]
    assert backup is not None
    _run_until(run, 1_000, 100_000, lambda: backup.replica.role is Role.PRIMARY)
    run.cluster.restart(0)
    _run_until(run, POLL_US, 5_000_000, run.cluster.is_whole)


@pytest.mark.parametrize("register", [BACKUP, ETCD])
def test_nobody_goes_on_alone_while_the_register_is_silent(register: str) -> None:
    run = _calm_run(register)
    _run_until(run, POLL_US, 5_000_000, run.cluster.is_whole)
    assert run.cluster.register is not None
    run.cluster.register.is_down = True
    run.cluster.kill(1, silent=False)
    primary = run.cluster.processes[0]
    assert primary is not None
    run.scheduler.run(run.scheduler.now_us + 10_000_000)
    assert primary.replica.blocked
    run.cluster.register.is_down = False
    _run_until(run, POLL_US, 5_000_000, lambda: primary.pairing.mode == "solo")


# -- the parts -----------------------------------------------------------------------------------


def _guarded(kind: str, version: int, token: int, call_us: int) -> RegisterOperation:
    """A put that was written, or a get, at once, of the register of the lock n0."""
    value = b"%d 1" % token
    if kind == PUT:
        answer = Answer(WRITTEN, version)
        fence = "n0", token
        return RegisterOperation(
            "c", PUT, "g-n0", call_us, call_us, answer, version - 1, value, fence
        )
    answer = Answer(SHOWN, version, value) if version else Answer(NO_KEY)
    return RegisterOperation("c", GET, "g-n0", call_us, call_us, answer)


def _granted(token: int, at_us: int) -> Operation:
    return Operation("c", LOCK, "n0", f"r{token}", at_us, at_us, token)


@pytest.mark.parametrize(
    ("seen", "problem"),
    [
        ([(PUT, 1, 5, 20), (PUT, 2, 5, 21), (GET, 2, 5, 35), (PUT, 3, 7, 40)], ""),
        ([(GET, 0, 0, 25), (PUT, 1, 5, 20), (PUT, 2, 7, 40)], ""),  # seen before it was granted
        ([(PUT, 1, 7, 40), (PUT, 2, 5, 41)], "version 2 is of token 5, though 7"),
        ([(GET, 0, 0, 35), (PUT, 1, 5, 36)], "version 1 is of token 5, though 7"),
        ([(PUT, 1, 5, 20), (GET, 1, 5, 35), (GET, 2, 5, 50)], "version 2 is of token 5, though 7"),
    ],
)
def test_an_earlier_holder_cannot_write_what_a_later_one_has_seen_or_written(
    seen: list[tuple[str, int, int, int]], problem: str
) -> None:
    grants = [_granted(5, 10), _granted(7, 30)]
    history = History(operations=grants, registers=[_guarded(*each) for each in seen])
    problems = check_fenced_order(history)
    assert len(problems) == bool(problem)
    assert all(problem in each for each in problems)


def test_calls_of_one_instant_keep_their_order() -> None:
    scheduler = Scheduler()
    said: list[Any] = []
    for number in range(5):
        scheduler.at(10, said.append, number)
    scheduler.at(5, said.append, "first")
    scheduler.run(9)
    assert (said, scheduler.now_us) == (["first"], 9)
    scheduler.run(10)
    assert said == ["first", 0, 1, 2, 3, 4]


def test_a_clock_drifts_and_its_timers_are_never_early() -> None:
    scheduler = Scheduler()
    for rate_ppm in (-10_000, -1, 0, 1, 10_000):
        clock = Clock(scheduler, rate_ppm, 777)
        for local_us in (1, 999, 123_457):
            before_us = clock.us()
            scheduler.run(scheduler.now_us + clock.true_us(local_us))
            assert local_us <= clock.us() - before_us <= local_us + 3
            assert abs(clock.true_instant_us(clock.us()) - scheduler.now_us) <= 2


class _Ear:
    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.end: End | None = None

    def accept(self, end: End) -> None:
        self.end, end.owner = end, self

    def on_data(self, end: End, data: Any) -> None:
        self.heard.append(data)

    def on_closed(self, end: End, why: str) -> None:
        self.heard.append(why)

    def on_late(self, end: End) -> None:
        self.heard.append("late")


class _Net:
    """Two hosts, and a connection from one to the other."""

    def __init__(self, seed: int = 1) -> None:
        self.scheduler = Scheduler()
        self.network = Network(self.scheduler, random.Random(seed))
        self.one, self.other = (Host(name, Clock(self.scheduler, 0, 0)) for name in "xy")
        self.near, self.far = _Ear(), _Ear()
        self.other.listener = self.far
        self.network.dial(self.one, self.other, self.near, 500_000, self._dialled)
        self.why = "not yet"
        self.pass_time(100_000)

    def _dialled(self, end: End | None, why: str) -> None:
        self.near.end, self.why = end, why

    def pass_time(self, length_us: int) -> None:
        self.scheduler.run(self.scheduler.now_us + length_us)

    def say(self, *words: Any) -> None:
        assert self.near.end is not None
        for word in words:
            self.network.send(self.near.end, word)


def test_within_a_connection_messages_keep_their_order_even_if_packets_are_lost() -> None:
    for seed in range(20):
        net = _Net(seed)
        net.network.loss = 0.3
        net.say(*range(50))
        net.pass_time(30_000_000)
        assert net.far.heard == list(range(50))


def test_what_is_sent_into_a_cut_way_arrives_when_it_is_mended() -> None:
    net = _Net()
    net.network.cut_way(net.one, net.other)
    net.say("a", "b")
    net.pass_time(5_000_000)
    assert net.far.heard == []
    net.network.mend_way(net.one, net.other)
    net.pass_time(5_000_000)
    assert net.far.heard == ["a", "b"]


def test_a_close_comes_behind_what_was_sent_and_a_break_loses_it() -> None:
    net = _Net()
    net.say("a")
    assert net.near.end is not None
    net.network.close(net.near.end)
    net.pass_time(1_000_000)
    assert net.far.heard == ["a", "closed by the peer"]
    net = _Net()
    net.say("a")
    assert net.near.end is not None
    net.network.break_off(net.near.end, 10, 20)
    net.pass_time(1_000_000)
    assert (net.far.heard, net.near.heard) == (["connection reset"], ["connection reset"])


def test_a_dead_process_refuses_and_a_machine_that_is_off_is_silent() -> None:
    net = _Net()
    net.other.listener = None
    net.network.dial(net.one, net.other, net.near, 500_000, net._dialled)
    net.pass_time(100_000)
    assert net.why == "refused"
    net.other.down = True
    net.network.dial(net.one, net.other, net.near, 500_000, net._dialled)
    net.pass_time(499_000)
    assert net.why == "refused"
    net.pass_time(2_000)
    assert net.why == "silent"


def test_options_name_their_kind_of_register() -> None:
    kinds = {draw(seed).register for seed in range(50)}
    assert kinds == {FAIL_STOP, BACKUP, ETCD}
    assert draw(3, ETCD).register == ETCD
