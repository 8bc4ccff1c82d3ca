"""What a grant is worth, and until when: the rules of compat/leases.py, without a clock."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from holdfast.compat.attempts import (
    WAIT_MS_MAX,
    Aftermath,
    Call,
    ClientPool,
    Finish,
    Kind,
    Verdict,
    aftermath,
    renew_request,
)
from holdfast.compat.leases import (
    AT_ONCE_MAX_US,
    LOOK_AT_CLOCK_US,
    RETRY_PARTS,
    Acquisition,
    Grant,
    Renewal,
    Wanted,
    renewal_attempt_us,
    trusted_us,
)
from holdfast.compat.sessions import wanted as wanted_now

S = 1_000_000


def a_lock(wait_until_us: int | None = 0) -> Wanted:
    return Wanted(b"a", 1_000, None, wait_until_us)


def a_call(want: Wanted, sent_us: int = 0, sendings: int = 1) -> Call:
    request = want.request(ClientPool(lambda: "c").borrow())
    call = Call(
        request,
        node_count=2,
        first_node=0,
        deadline_us=10**12,
        jitter=lambda: 0.0,
        wait_until_us=want.wait_of_one_request(0),
    )
    for _ in range(sendings):
        call.sending(sent_us)
    return call


def a_renewal(sent_us: int) -> Call:
    call = Call(
        renew_request(b"a", 7, 1_000),
        node_count=2,
        first_node=0,
        deadline_us=10**12,
        jitter=lambda: 0.0,
    )
    call.sending(sent_us)
    return call


def answered(value: int) -> Finish:
    return Finish(Verdict.ANSWERED, 1, value=value, node=0)


def granted(answered_us: int, *, sendings: int = 1, lease_ms: int | None = 1_000) -> Acquisition:
    acquisition = Acquisition(a_call(a_lock(), sendings=sendings), lease_ms)
    acquisition.needs = acquisition.take(answered(7), answered_us)  # type: ignore[attr-defined]
    return acquisition


def test_a_lease_is_trusted_less_twice_the_drift_from_the_first_sending():
    assert trusted_us(1_000) == 980_000
    grant = Grant(7, 1_000, 5 * S)
    assert grant.trusted_until_us == 5_980_000
    assert grant.is_trusted(5_979_999) and not grant.is_trusted(5_980_000)
    assert grant.renew_at_us(1_000) == 5_333_333


def test_a_grant_without_a_lease_is_trusted_for_ever():
    grant = Grant(7, None, 0)
    assert grant.trusted_until_us is None
    assert grant.is_trusted(10**18)
    assert grant.renewed(1_000, 5 * S) == grant


def test_a_renewal_never_shortens_what_is_trusted():
    grant = Grant(7, 10_000, 0)
    assert grant.renewed(1_000, 1 * S) == grant
    assert grant.renewed(1_000, 9 * S) == Grant(7, 1_000, 9 * S)
    assert grant.renewed(10_000, 1) == Grant(7, 10_000, 1)


@given(
    lease_ms=st.integers(1, 10**9),
    grant_delay_us=st.integers(0, 10**9),
    ours=st.integers(9_900, 10_100),
    theirs=st.integers(9_900, 10_100),
    past_us=st.integers(0, 10**10),
)
def test_whoever_trusts_a_grant_never_overlaps_the_next_holder(
    lease_ms, grant_delay_us, ours, theirs, past_us
):
    """Both clocks are up to 1 % off, either way; the node's lease begins after our sending (I8)."""
    grant = Grant(7, lease_ms, 0)
    real_us = grant_delay_us + past_us
    assume(grant.is_trusted(real_us * ours // 10_000))
    on_their_clock_us = past_us * theirs / 10_000
    assert on_their_clock_us < lease_ms * 1_000


def test_a_grant_that_comes_at_once_counts_from_its_sending():
    acquisition = granted(AT_ONCE_MAX_US)
    assert not acquisition.needs
    assert acquisition.grant == Grant(7, 1_000, 0)


@pytest.mark.parametrize("sendings", [1, 2])
def test_a_grant_that_stood_in_line_or_was_sent_for_again_is_renewed_at_once(sendings):
    acquisition = granted(AT_ONCE_MAX_US + 1 if sendings == 1 else 1, sendings=sendings)
    assert acquisition.needs
    assert acquisition.renewal().words == (b"RENEW", b"a", b"7", b"PX", b"1000")


def test_at_once_is_at_most_a_tenth_of_the_lease():
    assert granted(5_001, lease_ms=50).needs
    assert not granted(5_000, lease_ms=50).needs


def test_a_grant_without_a_lease_or_a_refusal_needs_no_renewal():
    assert not granted(60 * S, lease_ms=None, sendings=3).needs
    acquisition = Acquisition(a_call(a_lock(), sendings=2), 1_000)
    assert not acquisition.take(answered(0), 60 * S)
    assert acquisition.grant is None and not acquisition.came_late


def test_a_renewed_grant_counts_from_the_sending_of_its_renewal():
    acquisition = granted(60 * S)
    acquisition.confirm(a_renewal(61 * S), answered(1), 61 * S + 500)
    assert acquisition.grant == Grant(7, 1_000, 61 * S)
    assert aftermath(Kind.ACQUIRE, acquisition.finish) is Aftermath.REUSE


def test_a_grant_whose_renewal_is_refused_is_none_and_there_is_nothing_to_undo():
    acquisition = granted(60 * S)
    acquisition.confirm(a_renewal(61 * S), answered(0), 61 * S + 500)
    assert acquisition.grant is None and acquisition.came_late
    assert (acquisition.finish.verdict, acquisition.finish.value) == (Verdict.ANSWERED, 0)
    assert aftermath(Kind.ACQUIRE, acquisition.finish) is Aftermath.REUSE


@pytest.mark.parametrize(
    ("renewal", "took_us"),
    [
        (answered(1), 980_000),
        (Finish(Verdict.INDETERMINATE, 3, lost=OSError("lost")), 980_000),
        (Finish(Verdict.UNAVAILABLE, 3, error=OSError("refused")), 980_000),
        (Finish(Verdict.REJECTED, 1, error=OSError("-ERR")), 500),
    ],
    ids=["too late", "lost", "not sent", "rejected"],
)
def test_a_grant_whose_renewal_fails_is_none_and_undone(renewal, took_us):
    acquisition = granted(60 * S)
    acquisition.confirm(a_renewal(61 * S), renewal, 61 * S + took_us)
    assert acquisition.grant is None and acquisition.came_late
    assert acquisition.finish.verdict is Verdict.INDETERMINATE
    assert acquisition.finish.lost is not None
    assert aftermath(Kind.ACQUIRE, acquisition.finish) is Aftermath.UNDO


def test_nobody_waits_for_the_answer_to_a_renewal_that_has_lost_its_worth():
    acquisition = granted(60 * S)
    assert acquisition.renewal_left_us(10 * S) == 980_000
    assert acquisition.renewal_left_us(500_000) == 500_000


# --- renewing --------------------------------------------------------------------------------


def renewals_until(renewal: Renewal, until_us: int, answer_after_us: int) -> list[int]:
    """When they are sent, if each is answered so much later."""
    sent, now = [], renewal.grant.sent_us
    while now < until_us:
        wait_us = renewal.wait_us(now)
        assert wait_us is not None
        if wait_us == 0:
            sent.append(now)
            assert renewal.begin(now) > answer_after_us
            now += answer_after_us
            renewal.answered(sent[-1])
        now += wait_us
    return sent


def test_a_lease_is_renewed_when_a_third_of_it_is_over():
    sent = renewals_until(Renewal(Grant(7, 3_000, 0), 3_000), 6 * S, 0)
    assert sent == [1 * S, 2 * S, 3 * S, 4 * S, 5 * S]


def test_a_lease_that_was_extended_is_left_alone_until_a_renewal_changes_something():
    sent = renewals_until(Renewal(Grant(7, 60_000, 0), 3_000), 60 * S, 0)
    assert sent[:2] == [56_800_000, 57_800_000]
    renewal = Renewal(Grant(7, 1_000, 0), 1_000)
    renewal.acknowledge(6_000, 100_000)
    assert renewals_until(renewal, 5 * S, 0) == []


@given(
    first_ms=st.integers(10, 10**6),
    renew_ms=st.integers(10, 10**4),
    answer_part=st.floats(0, 0.3),
)
def test_renewals_keep_a_grant_and_are_never_many(first_ms, renew_ms, answer_part):
    answer_us = int(min(first_ms, renew_ms) * 1_000 * answer_part)
    renewal, until_us = Renewal(Grant(7, first_ms, 0), renew_ms), 20_000 * renew_ms
    sent = renewals_until(renewal, until_us, answer_us)
    assert not renewal.is_lost(until_us)
    part_us = renew_ms * 1_000 // RETRY_PARTS
    assert all(later - sooner >= part_us for sooner, later in pairwise(sent))


def test_a_renewal_that_failed_is_tried_again_after_a_part_of_the_lease():
    renewal = Renewal(Grant(7, 12_000, 0), 12_000)
    assert renewal.begin(4 * S) == 7_760_000, "an answer after that is of no use"
    assert renewal.wait_us(4 * S) == LOOK_AT_CLOCK_US, "one at a time"
    renewal.failed(5 * S)
    assert renewal.wait_us(5_100_000) == 900_000 and renewal.wait_us(6 * S) == 0


def test_whoever_renews_looks_at_the_clock_once_a_second():
    assert Renewal(Grant(7, 60_000, 0), 60_000).wait_us(1) == 1_000_000


def test_a_grant_is_lost_when_its_trust_ends_whatever_is_under_way_or_comes_later():
    renewal = Renewal(Grant(7, 1_000, 0), 1_000)
    renewal.begin(900_000)
    assert renewal.wait_us(900_000) == 80_000 and not renewal.is_lost(979_999)
    assert renewal.is_lost(980_000)
    renewal.answered(900_000)
    assert renewal.is_lost(980_001) and renewal.wait_us(980_001) is None
    assert renewal.loss == "no renewal was answered in time"


def test_a_loss_that_nobody_was_told_of_is_mended_by_a_renewal():
    renewal = Renewal(Grant(7, 1_000, 0))
    assert renewal.is_lost(2 * S) and not renewal.is_lost_for_good(2 * S)
    renewal.acknowledge(1_000, 2 * S)
    assert not renewal.is_lost(2 * S)
    renewal.acknowledge(1_000, None)
    renewal.acknowledge(1_000, 3 * S)
    assert renewal.is_lost(3 * S) and "released by somebody else" in renewal.loss


@pytest.mark.parametrize(
    ("lease_ms", "first_us"),
    [(100, 33_333), (300, 100_000), (600, 100_000), (1_200, 200_000), (30_000, 5_000_000)],
)
def test_a_renewals_first_attempts_leave_time_for_others(lease_ms, first_us):
    assert renewal_attempt_us(lease_ms) == first_us


# --- going on within the wait ----------------------------------------------------------------


def ended(want: Wanted, value: int, *, late: bool = False) -> Acquisition:
    acquisition = Acquisition(a_call(want), 1_000)
    acquisition.take(answered(value), 60 * S)
    if late:
        acquisition.confirm(a_renewal(61 * S), answered(0), 61 * S)
    return acquisition


def test_what_came_too_late_is_asked_for_again_within_the_wait_and_only_then():
    for until_us, expected in [(100 * S, True), (61 * S, False), (0, False), (None, True)]:
        want = a_lock(until_us)
        assert want.may_go_on_after(ended(want, 7, late=True), 61 * S) is expected


def test_a_refusal_ends_a_wait_that_one_request_can_hold():
    want = a_lock(100 * S)
    assert not want.may_go_on_after(ended(want, 0), 61 * S)


def test_a_wait_that_no_single_request_may_have_goes_on_with_the_next():
    day_us = WAIT_MS_MAX * 1_000
    for until_us in (None, 2 * day_us):
        want = a_lock(until_us)
        assert want.wait_of_one_request(0) == day_us
        assert want.may_go_on_after(ended(want, 0), day_us)


def test_a_request_that_failed_is_not_asked_again():
    want = a_lock(100 * S)
    acquisition = Acquisition(a_call(want), 1_000)
    assert not acquisition.take(Finish(Verdict.INDETERMINATE, 3, lost=OSError("lost")), 20 * S)
    assert not want.may_go_on_after(acquisition, 20 * S)


@pytest.mark.parametrize(
    ("lease_ms", "wait_ms", "owner", "error"),
    [
        (0, 0, None, ValueError),
        (-1, 0, None, ValueError),
        (1.5, 0, None, TypeError),
        (True, 0, None, TypeError),
        (1_000, -1, None, ValueError),
        (1_000, 0.5, None, TypeError),
        (1_000, 0, "", ValueError),
        (1_000, 0, b"x" * 513, ValueError),
        (1_000, 0, 7, TypeError),
    ],
)
def test_what_cannot_be_wanted_is_refused(lease_ms, wait_ms, owner, error):
    with pytest.raises(error):
        wanted_now("a", lease_ms, wait_ms, owner)
