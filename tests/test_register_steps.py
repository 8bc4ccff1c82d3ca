"""What RegisterLock decides: rules K1 to K4 of compat/register_steps.py, one by one, and against a
model of a register whose puts get lost, come late, or come twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from holdfast.compat import Versioned
from holdfast.compat.register_steps import (
    FREE,
    LOOK_FIRST_US,
    LOOK_MAX_US,
    NO_REGISTER,
    Acquiring,
    Done,
    Freeing,
    Read,
    Step,
    Write,
)

ME, OTHER = b"me", b"other"


def an_acquiring(until_us: int | None = None, jitter: float = 0.0) -> Acquiring:
    return Acquiring(ME, until_us=until_us, jitter=lambda: jitter)


def at_write(version: int = 4, until_us: int | None = None) -> Acquiring:
    """One that has found the lock free at this version, and is about to write."""
    acquiring = an_acquiring(until_us)
    assert acquiring.start() == Read()
    assert acquiring.read(Versioned(FREE, version), 0) == Write(ME, version)
    return acquiring


# --- decisions, one by one -------------------------------------------------------------------


def test_a_register_that_is_not_there_is_free_and_made_by_whoever_takes_it() -> None:
    acquiring = an_acquiring()
    acquiring.start()
    assert acquiring.read(NO_REGISTER, 0) == Write(ME, 0)
    assert acquiring.written(1) == Done(1) and acquiring.at_stake


def test_who_finds_the_lock_held_looks_again_less_and_less_often() -> None:
    acquiring = an_acquiring(jitter=0.999_999)
    pauses = []
    for version in range(1, 12):
        step = acquiring.read(Versioned(OTHER, version), 0)
        assert isinstance(step, Read)
        pauses.append(step.delay_us + 1)
    assert pauses == [min(LOOK_MAX_US, LOOK_FIRST_US << n) for n in range(11)]
    assert not acquiring.at_stake


def test_who_does_not_wait_looks_once_and_writes_once_if_the_lock_is_free() -> None:
    assert an_acquiring(until_us=0).read(Versioned(OTHER, 4), 0) == Done(None)
    acquiring = at_write(until_us=0)
    assert acquiring.refused(0) == Read(0)
    assert acquiring.read(Versioned(OTHER, 5), 0) == Done(None) and not acquiring.at_stake


def test_the_last_look_is_at_the_end_of_the_wait_and_still_takes_a_free_lock() -> None:
    acquiring = an_acquiring(until_us=1_000)
    assert acquiring.read(Versioned(OTHER, 4), 900) == Read(100)
    assert acquiring.read(Versioned(FREE, 5), 1_000) == Write(ME, 5)


@pytest.mark.parametrize("outcome", ["maybe", "doubtful"])
def test_an_unknown_put_is_settled_by_reading_the_identity(outcome: str) -> None:
    acquiring = at_write()
    assert getattr(acquiring, outcome)() == Read()
    assert acquiring.read(Versioned(ME, 5), 0) == Done(5)
    acquiring = at_write()
    getattr(acquiring, outcome)()
    assert isinstance(acquiring.read(Versioned(OTHER, 5), 0), Read)
    assert not acquiring.at_stake


def test_while_a_put_is_in_doubt_the_same_put_is_made_again_and_reading_tells_whose_it_was() -> (
    None
):
    acquiring = at_write()
    acquiring.doubtful()
    assert acquiring.read(Versioned(FREE, 4), 0) == Write(ME, 4)
    assert isinstance(acquiring.refused(0), Read) and acquiring.at_stake
    assert acquiring.read(Versioned(ME, 5), 0) == Done(5)


def test_a_put_that_was_certainly_not_done_leaves_nothing_at_stake_but_what_was_in_doubt() -> None:
    acquiring = at_write()
    assert acquiring.at_stake
    acquiring.not_done()
    assert not acquiring.at_stake
    acquiring = at_write()
    acquiring.doubtful()
    acquiring.read(Versioned(FREE, 4), 0)
    acquiring.not_done()
    assert acquiring.at_stake


def test_who_gives_up_in_doubt_writes_free_at_the_old_version_so_that_no_copy_fits() -> None:
    acquiring = at_write(until_us=0)
    acquiring.doubtful()
    assert acquiring.read(Versioned(FREE, 4), 1) == Done(None) and acquiring.at_stake
    freeing = acquiring.giving_up()
    assert freeing.start() == Read()
    assert freeing.read(Versioned(FREE, 4), 1) == Write(FREE, 4)
    assert freeing.written(5) == Done() and freeing.is_done and not freeing.was_lost


def test_who_gives_up_and_reads_its_identity_frees_it() -> None:
    acquiring = at_write()
    freeing = acquiring.giving_up()
    freeing.start()
    assert freeing.read(Versioned(ME, 5), 0) == Write(FREE, 5)
    assert freeing.doubtful() == Read() and not freeing.is_done
    assert freeing.read(Versioned(ME, 5), 0) == Write(FREE, 5)
    assert freeing.refused(0) == Read()
    assert freeing.read(Versioned(OTHER, 7), 0) == Done() and freeing.is_done


@pytest.mark.parametrize("register", [Versioned(OTHER, 4), Versioned(FREE, 5), NO_REGISTER])
def test_who_gives_up_leaves_alone_what_no_copy_can_reach(register: Versioned) -> None:
    freeing = Freeing(ME, doubt=4)
    freeing.start()
    assert freeing.read(register, 0) == Done() and freeing.is_done


def test_a_release_that_is_refused_at_once_was_lost() -> None:
    freeing = Freeing(ME, held=5)
    assert freeing.start() == Write(FREE, 5)
    assert freeing.refused(0) == Done() and freeing.was_lost


@pytest.mark.parametrize("outcome", ["maybe", "doubtful"])
def test_a_release_of_unknown_outcome_is_over_when_its_identity_is_not_read(outcome: str) -> None:
    freeing = Freeing(ME, held=5)
    freeing.start()
    assert getattr(freeing, outcome)() == Read()
    assert freeing.read(Versioned(ME, 5), 0) == Write(FREE, 5)
    assert freeing.refused(0) == Read()
    assert freeing.read(Versioned(FREE, 6), 0) == Done() and not freeing.was_lost


def test_a_release_that_was_broken_off_is_gone_on_with_by_reading() -> None:
    freeing = Freeing(ME, held=5)
    freeing.start()
    assert freeing.start() == Read()
    freeing.is_done = True
    assert freeing.start() == Done()


# --- the decisions against a register, in every kind of trouble ------------------------------


class _Register:
    """One register, and copies of puts that are still under way."""

    def __init__(self, rng: random.Random) -> None:
        self.value, self.version = FREE, 0
        self.copies: list[Write] = []
        self.outcomes: set[str] = set()
        self._rng = rng

    def apply(self, put: Write) -> bool:
        fits = put.version == self.version
        if fits:
            self.value, self.version = put.value, self.version + 1
        return fits

    def land(self) -> None:
        """One copy that was thought lost comes, and may come again."""
        if self.copies:
            self.apply(self._rng.choice(self.copies))

    def put(self, put: Write) -> str:
        outcome = self._put(put)
        self.outcomes.add(outcome)
        return outcome

    def _put(self, put: Write) -> str:
        """What Clerk makes of it: a first copy, lost or not, and sometimes a second one."""
        dice = self._rng.randrange(6)
        if dice == 0:
            return "not_done"
        if dice <= 2:
            return "written" if self.apply(put) else "refused"
        self.copies.append(put)
        if self._rng.random() < 0.5:
            self.apply(put)
        if dice == 3:
            return "doubtful"
        return "written" if self.apply(put) else "maybe"


class _Actor:
    """Takes the lock and gives it back, one step at a time; is interrupted now and then."""

    def __init__(self, number: int, register: _Register, rng: random.Random) -> None:
        self.held: Versioned | None = None
        self.takings = 0
        self._number, self._register, self._rng = number, register, rng
        self._steps: Acquiring | Freeing
        self._step: Step = Done()
        self._begin()

    @property
    def is_idle(self) -> bool:
        return self.held is None and isinstance(self._steps, Freeing) and self._steps.is_done

    def act(self, now_us: int, *, to_the_end: bool) -> None:
        """Its next step. `to_the_end`: it gives up, or back, whatever it has."""
        if self.held is not None:
            if to_the_end or self._rng.random() < 0.3:
                identity, self.held = self.held, None
                self._take_up(Freeing(identity.value, held=identity.version))
        elif isinstance(self._steps, Acquiring) and (to_the_end or self._rng.random() < 0.1):
            self._interrupt()
        elif not isinstance(self._step, Done):
            self._step = self._do(now_us)
            self._look_at_end()
        elif not to_the_end:
            self._begin()

    def _begin(self) -> None:
        self.takings += 1
        until_us = self._rng.choice([None, 0, 500])
        identity = b"%d-%d" % (self._number, self.takings)
        self._take_up(Acquiring(identity, until_us=until_us, jitter=lambda: 0.0))

    def _take_up(self, steps: Acquiring | Freeing) -> None:
        self._steps, self._step = steps, steps.start()

    def _interrupt(self) -> None:
        """Perhaps in the middle of a put."""
        assert isinstance(self._steps, Acquiring)
        if isinstance(self._step, Write) and self._rng.random() < 0.5:
            self._register.put(self._step)
        self._take_up(self._steps.giving_up())

    def _do(self, now_us: int) -> Step:
        step, steps = self._step, self._steps
        if isinstance(step, Read):
            return steps.read(Versioned(self._register.value, self._register.version), now_us)
        assert isinstance(step, Write)
        match self._register.put(step):
            case "written":
                return steps.written(step.version + 1)
            case "refused":
                return steps.refused(now_us)
            case "maybe":
                return steps.maybe()
            case "doubtful":
                return steps.doubtful()
            case _:
                steps.not_done()
                return Done()  # an exception: the call is over

    def _look_at_end(self) -> None:
        """A call is over: its lock is held, or what it left open is freed."""
        if not isinstance(self._step, Done):
            return
        if isinstance(self._steps, Freeing):
            assert not self._steps.was_lost
            self._step = self._steps.start()  # unless it is done, the background goes on
        elif self._step.version is not None:
            self.held = Versioned(self._steps.identity, self._step.version)
        elif self._steps.at_stake:
            self._take_up(self._steps.giving_up())


def play(seed: int, steps_count: int = 120) -> tuple[set[str], int]:
    """A few actors on one register; fails if two hold the lock, or if it is stuck in the end."""
    rng = random.Random(seed)
    register = _Register(rng)
    actors = [_Actor(number, register, rng) for number in range(rng.randint(1, 3))]
    holdings = 0

    def check() -> None:
        nonlocal holdings
        held = [actor.held for actor in actors if actor.held is not None]
        holdings += bool(held)
        assert held in ([], [Versioned(register.value, register.version)]), f"seed {seed}: {held}"

    for now_us in range(steps_count):
        rng.choice(actors).act(now_us, to_the_end=False)
        check()
        if rng.random() < 0.3:
            register.land()
            check()
    for now_us in range(100_000):
        if all(actor.is_idle for actor in actors):
            break
        rng.choice(actors).act(steps_count + now_us, to_the_end=True)
        check()
    assert all(actor.is_idle for actor in actors), f"seed {seed}: they never come to an end"
    for copy in rng.sample(register.copies, len(register.copies)):
        register.apply(copy)
    assert register.value == FREE, f"seed {seed}: stuck"
    return register.outcomes, holdings


def seeds(count: int) -> range:
    first = random.randrange(1 << 32)
    print("seeds from", first)
    return range(first, first + count)


def test_two_never_hold_it_and_it_is_never_stuck_whatever_becomes_of_the_puts() -> None:
    outcomes: set[str] = set()
    holdings = 0
    for seed in seeds(1_500):
        seen, held = play(seed)
        outcomes |= seen
        holdings += held
    assert outcomes == {"written", "refused", "maybe", "doubtful", "not_done"}
    assert holdings > 1_500


def _without_writing_free_at_the_old_version(
    self: Freeing, register: Versioned, now_us: int
) -> Step:
    return Write(FREE, register.version) if register.value == self.identity else self._finish()


def _guessing_after_a_maybe(self: Acquiring) -> Step:
    return self._hold((self._doubt or 0) + 1)


def _forgetting_the_doubt(self: Acquiring) -> None:
    self._doubt = None


def _done_though_doubtful(self: Freeing) -> Step:
    return self._finish()


@pytest.mark.parametrize(
    ("where", "method", "mistake"),
    [
        (Freeing, "read", _without_writing_free_at_the_old_version),
        (Freeing, "doubtful", _done_though_doubtful),
        (Acquiring, "maybe", _guessing_after_a_maybe),
        (Acquiring, "not_done", _forgetting_the_doubt),
    ],
)
def test_the_model_notices_each_mistake(
    monkeypatch: pytest.MonkeyPatch, where: type, method: str, mistake: Callable[..., Any]
) -> None:
    monkeypatch.setattr(where, method, mistake)
    for seed in seeds(3_000):
        try:
            play(seed)
        except AssertionError:
            return
    raise AssertionError("nothing was noticed")
