"""What Clerk decides about registers, without a socket or a clock: rule R7 of compat/attempts.py,
and compat/registers.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.compat import (
    IndeterminateError,
    LockNotHeldError,
    MaybeError,
    NoKeyError,
    StaleTokenError,
    UnavailableError,
    VersionError,
)
from holdfast.compat.attempts import (
    ATTEMPT_MIN_US,
    Aftermath,
    Call,
    ClientPool,
    Fate,
    Finish,
    Kind,
    PutRequest,
    Refusal,
    Request,
    Seen,
    Send,
    Verdict,
    aftermath,
)
from holdfast.compat.endpoints import seen_of
from holdfast.compat.outcomes import value_of
from holdfast.compat.registers import (
    CONFLICT_FIRST_US,
    CONFLICT_MAX_US,
    Update,
    get_request,
    put_of,
)

VERSION = Refusal("VERSION", 7)
NOKEY = Refusal("NOKEY")
STALETOKEN = Refusal("STALETOKEN")
REFUSALS = (VERSION, NOKEY, STALETOKEN)
FAILURES = (Fate.NOT_SENT, Fate.NOT_EXECUTED, Fate.LOST)
FAR_US = 10**12


def a_put(once: bool, *, version: int = 6, fence: tuple[str, int] | None = ("l", 3)) -> PutRequest:
    client = ClientPool(lambda: "c").borrow() if once else None
    return put_of("a", "x", version, fence).request(client)


def a_call(request: Request) -> Call:
    return Call(request, node_count=2, first_node=0, deadline_us=FAR_US, jitter=lambda: 0.0)


def seen(what: Fate | Refusal | int) -> Seen:
    if isinstance(what, Fate):
        return Seen(what, error=OSError(what.value))
    return Seen(Fate.ANSWERED, value=what)


def run(call: Call, events: Sequence[Fate | Refusal | int], last_us: int = 0) -> Send | Finish:
    """Shows the call these in turn, the last one at that instant; what it then decided."""
    step: Send | Finish = call.start()
    for number, event in enumerate(events, 1):
        assert isinstance(step, Send)
        step = call.observe(seen(event), last_us if number == len(events) else 0)
    return step


# --- what a put comes to (R7) ----------------------------------------------------------------


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("length", range(5))
def test_after_every_sequence_a_refusal_is_final_unless_an_attempt_without_an_id_was_lost(
    once: bool, length: int, refusal: Refusal
) -> None:
    for fates in itertools.product(FAILURES, repeat=length):
        finish = run(a_call(a_put(once)), [*fates, refusal])
        assert isinstance(finish, Finish)
        in_doubt = not once and Fate.LOST in fates
        assert finish.verdict is (Verdict.INDETERMINATE if in_doubt else Verdict.ANSWERED), fates
        assert finish.value == refusal and finish.tries == length + 1
        assert (finish.lost is not None) == in_doubt


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("length", range(5))
def test_after_every_sequence_a_new_version_says_that_it_was_written(
    once: bool, length: int
) -> None:
    for fates in itertools.product(FAILURES, repeat=length):
        request = a_put(once)
        finish = run(a_call(request), [*fates, 7])
        assert isinstance(finish, Finish) and finish.verdict is Verdict.ANSWERED
        assert value_of(request, finish) == 7


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("length", range(1, 5))
def test_without_an_answer_not_written_is_said_only_if_nothing_was_lost(
    once: bool, length: int
) -> None:
    for fates in itertools.product(FAILURES, repeat=length):
        for end, last_us in [([Fate.REJECTED], 0), ([], FAR_US)]:
            request = a_put(once)
            finish = run(a_call(request), [*fates, *end], last_us)
            assert isinstance(finish, Finish)
            if Fate.LOST in fates:
                assert finish.verdict is Verdict.INDETERMINATE
            else:
                assert finish.verdict is (Verdict.REJECTED if end else Verdict.UNAVAILABLE)


@pytest.mark.parametrize(
    ("events", "once", "expected"),
    [
        ([VERSION], True, VersionError),
        ([VERSION], False, VersionError),
        ([Fate.LOST, VERSION], True, VersionError),
        ([Fate.LOST, VERSION], False, MaybeError),
        ([Fate.NOT_SENT, Fate.NOT_EXECUTED, VERSION], False, VersionError),
        ([Fate.LOST, Fate.NOT_EXECUTED, NOKEY], False, MaybeError),
        ([NOKEY], False, NoKeyError),
        ([Fate.LOST, STALETOKEN], True, StaleTokenError),
        ([STALETOKEN], False, StaleTokenError),
        ([Fate.LOST, STALETOKEN], False, MaybeError),
    ],
)
def test_each_refusal_is_raised_as_what_it_is(
    events: list[Fate | Refusal], once: bool, expected: type[Exception]
) -> None:
    request = a_put(once)
    finish = run(a_call(request), events)
    assert isinstance(finish, Finish)
    with pytest.raises(expected) as raised:
        value_of(request, finish)
    assert type(raised.value) is expected
    if expected is MaybeError:
        assert type(raised.value.__cause__) in (VersionError, NoKeyError, StaleTokenError)
        assert "read the register again" in str(raised.value)


def test_an_unanswered_put_says_whether_it_may_have_been_done_and_what_to_do() -> None:
    request = a_put(True)
    finish = run(a_call(request), [Fate.LOST], FAR_US)
    assert isinstance(finish, Finish)
    with pytest.raises(IndeterminateError, match=r"VPUT 'a' .*read the register again") as raised:
        value_of(request, finish)
    assert not isinstance(raised.value, MaybeError)
    finish = run(a_call(request), [Fate.NOT_SENT], FAR_US)
    assert isinstance(finish, Finish)
    with pytest.raises(UnavailableError, match="it was not done"):
        value_of(request, finish)


@pytest.mark.parametrize("value", [6, 8, 0, True, None, b"7", [b"x", 7], 7.0])
def test_a_new_version_is_one_above_the_old_or_it_is_no_answer(value: object) -> None:
    call = a_call(a_put(True))
    call.start()
    assert isinstance(call.observe(Seen(Fate.ANSWERED, value=value), 0), Send)
    finish = call.observe(seen(VERSION), 0)
    assert isinstance(finish, Finish) and finish.verdict is Verdict.ANSWERED


def test_true_is_no_version() -> None:
    call = a_call(a_put(True, version=0))
    call.start()
    assert isinstance(call.observe(Seen(Fate.ANSWERED, value=True), 0), Send)


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ([b"", 1], True),
        ([b"x", 7], True),
        (NOKEY, True),
        (VERSION, False),
        ([b"x", 0], False),
        ([b"x", True], False),
        ([b"x"], False),
        ([None, 1], False),
        (b"x", False),
        (None, False),
    ],
)
def test_a_get_is_answered_by_a_value_and_a_version_or_by_nokey(value: object, fits: bool) -> None:
    call = a_call(get_request(b"a"))
    call.start()
    step = call.observe(Seen(Fate.ANSWERED, value=value), 0)
    assert isinstance(step, Finish if fits else Send)


def test_a_get_is_never_in_doubt() -> None:
    for fates in itertools.product(FAILURES, repeat=3):
        finish = run(a_call(get_request(b"a")), [*fates, NOKEY])
        assert isinstance(finish, Finish) and finish.verdict is Verdict.ANSWERED
        with pytest.raises(NoKeyError):
            value_of(get_request(b"a"), finish)
        finish = run(a_call(get_request(b"a")), fates, FAR_US)
        assert isinstance(finish, Finish) and finish.verdict is Verdict.UNAVAILABLE


def test_a_refusal_of_a_register_answers_no_lock() -> None:
    call = a_call(Request(Kind.RELEASE, b"a", b"c:1", (b"UNLOCK", b"a", b"c:1")))
    call.start()
    assert isinstance(call.observe(seen(NOKEY), 0), Send)


@given(data=st.data())
def test_what_is_said_of_a_put_is_true_of_a_register(data: st.DataObject) -> None:
    """One register, other writers, copies that are done at once, later, or never."""
    once = data.draw(st.booleans())
    version = data.draw(st.integers(5, 7))
    request = a_put(once, version=6, fence=None)
    remembered: Refusal | int | None = None
    ours_done, copies = 0, 0

    def execute() -> Refusal | int:
        nonlocal version, ours_done, remembered
        if once and remembered is not None:
            return remembered
        answer: Refusal | int = Refusal("VERSION", version)
        if version == 6:
            version, ours_done, answer = 7, ours_done + 1, 7
        remembered = answer
        return answer

    call = a_call(request)
    step: Send | Finish = call.start()
    now_us = 0
    while isinstance(step, Send):
        version += data.draw(st.integers(0, 4)) == 0
        if copies and data.draw(st.booleans()):
            copies -= 1
            execute()
        fate = data.draw(st.sampled_from([Fate.ANSWERED, *FAILURES]))
        answer: Refusal | int | Fate = fate
        if fate is Fate.ANSWERED:
            answer = execute()
        elif fate is Fate.LOST:
            copies += 1
        if data.draw(st.integers(0, 9)) == 0:
            now_us = FAR_US
        step = call.observe(seen(answer), now_us)
    ours_by_now = ours_done
    for _ in range(copies):
        execute()
    assert ours_done <= 1
    try:
        assert value_of(request, step) == 7 and ours_by_now == 1
    except MaybeError:
        assert not once and ours_done == ours_by_now  # settled: no copy writes any more
    except IndeterminateError:
        pass
    except (VersionError, UnavailableError):
        assert ours_done == 0


# --- client ids (R3) -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finish", "expected"),
    [
        (Finish(Verdict.ANSWERED, 1, value=7), Aftermath.REUSE),
        (Finish(Verdict.ANSWERED, 1, value=VERSION), Aftermath.REUSE),
        (Finish(Verdict.REJECTED, 1), Aftermath.REUSE),
        (Finish(Verdict.UNAVAILABLE, 1), Aftermath.REUSE),
        (Finish(Verdict.INDETERMINATE, 1), Aftermath.REUSE),
        (Finish(Verdict.INDETERMINATE, 1, gone=True), Aftermath.RETIRE),
    ],
)
def test_the_client_id_of_a_put_goes_back_at_once_as_that_of_a_release_does(
    finish: Finish, expected: Aftermath
) -> None:
    assert aftermath(Kind.PUT, finish) is expected
    assert aftermath(Kind.RELEASE, finish) is expected


@pytest.mark.parametrize("value", [7, VERSION])
def test_an_answer_to_a_put_stands_though_its_caller_was_interrupted(value: int | Refusal) -> None:
    call = a_call(a_put(True))
    finish = run(call, [value])
    assert call.interrupt() == finish


def test_an_interrupted_put_is_in_doubt() -> None:
    call = a_call(a_put(True))
    call.start()
    assert call.interrupt().verdict is Verdict.INDETERMINATE


# --- words -----------------------------------------------------------------------------------


def test_the_words_are_those_of_the_contract() -> None:
    assert get_request(b"a").words == (b"VGET", b"a")
    assert a_put(False).words == (b"VPUT", b"a", b"x", b"6", b"FENCE", b"l", b"3")
    assert a_put(True).words == (b"VPUT", b"a", b"x", b"6", b"@c:1", b"FENCE", b"l", b"3")
    assert a_put(True, version=0, fence=None).words == (b"VPUT", b"a", b"x", b"0", b"@c:1")
    assert a_put(False, fence=None).words == (b"VPUT", b"a", b"x", b"6")


class _Lock:
    name: str | bytes = "l"

    def __init__(self, token: int | None) -> None:
        self.fencing_token = token


def test_a_lock_object_that_is_held_is_a_fence_and_one_that_is_not_is_none() -> None:
    assert put_of("a", "x", 6, _Lock(3)).fence == (b"l", 3)
    with pytest.raises(LockNotHeldError):
        put_of("a", "x", 6, _Lock(None))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NOKEY no such register", NOKEY),
        ("VERSION the current version is 7", VERSION),
        ("STALETOKEN that fencing token is not the current grant", STALETOKEN),
        ("VERSION the current version is unknown", None),
        ("VERSION", None),
        ("WRONGTYPE this name is a lock, not a register; nothing was done", None),
        ("OOM registers hold as much as is allowed", None),
    ],
)
def test_refusals_are_read_from_the_words_of_the_error(text: str, expected: Refusal | None) -> None:
    from redis.exceptions import ResponseError

    found = seen_of(ResponseError(text), otherwise=Fate.LOST)
    if expected is None:
        assert found.fate is Fate.REJECTED
    else:
        assert (found.fate, found.value) == (Fate.ANSWERED, expected)


# --- update ----------------------------------------------------------------------------------


def test_the_first_conflict_waits_for_nothing_and_later_ones_longer_and_longer_up_to_a_limit() -> (
    None
):
    update = Update(FAR_US, 0, lambda: 0.999_999)
    pauses = [update.conflict(0) for _ in range(12)]
    assert pauses[0] == 0 and None not in pauses
    longest = [min(CONFLICT_MAX_US, CONFLICT_FIRST_US << n) for n in range(1, 12)]
    assert [pause + 1 for pause in pauses[1:] if pause is not None] == longest


def test_an_update_ends_when_the_deadline_leaves_no_time_for_another_try() -> None:
    update = Update(1_000_000, 0, lambda: 0.0)
    assert update.conflict(1_000_000 - 2 * ATTEMPT_MIN_US) == 0
    assert update.conflict(1_000_001 - 2 * ATTEMPT_MIN_US) is None
    assert update.left_us(2_000_000) == 1


def test_the_time_that_the_callers_function_takes_is_not_counted() -> None:
    update = Update(1_000_000, 0, lambda: 0.0)
    update.applied(5_000_000)
    assert update.left_us(5_400_000) == 600_000
    assert update.conflict(5_400_000) == 0
