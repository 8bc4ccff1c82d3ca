"""Clerk's decisions, without a socket or a clock: every row of the table in compat/attempts.py."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.compat.attempts import (
    ATTEMPT_MIN_US,
    BACKOFF_FIRST_US,
    BACKOFF_MAX_US,
    Aftermath,
    Call,
    ClientPool,
    Fate,
    Finish,
    Kind,
    Request,
    Seen,
    Send,
    Verdict,
    acquire_request,
    aftermath,
    inspect_request,
    locks_request,
    release_request,
    renew_request,
    undo_request,
    verify_request,
)

FINAL = (Fate.ANSWERED, Fate.GONE, Fate.REJECTED)
NEVER_DONE = (Fate.NOT_SENT, Fate.NOT_EXECUTED)
FAR_US = 10**12


def a_pool() -> ClientPool:
    numbers = itertools.count()
    return ClientPool(lambda: f"{next(numbers):016x}")


def a_request(kind: Kind) -> Request:
    client = a_pool().borrow()
    if kind is Kind.UNDO:
        return undo_request(client, acquire_request(client, b"a"))
    if kind is Kind.INSPECT:
        return inspect_request(b"a")
    return (acquire_request if kind is Kind.ACQUIRE else release_request)(client, b"a")


def a_call(
    kind: Kind = Kind.ACQUIRE,
    *,
    node_count: int = 2,
    first_node: int = 0,
    deadline_us: int = FAR_US,
    jitter: float = 0.0,
) -> Call:
    return Call(
        a_request(kind),
        node_count=node_count,
        first_node=first_node,
        deadline_us=deadline_us,
        jitter=lambda: jitter,
    )


def seen(fate: Fate, value: object = None) -> Seen:
    if fate is Fate.ANSWERED:
        return Seen(fate, value=1 if value is None else value)
    return Seen(fate, error=OSError(fate.value))


def run(call: Call, fates: Sequence[Fate], now_us: int = 0) -> Send | Finish:
    """Shows the call these fates in turn; the last step that it decided on."""
    step: Send | Finish = call.start()
    for fate in fates:
        assert isinstance(step, Send)
        value = [] if call.request.kind is Kind.INSPECT else 1
        step = call.observe(seen(fate, value), now_us)
    return step


def test_an_answer_ends_the_call_and_names_the_node_that_gave_it():
    finish = run(a_call(first_node=1), [Fate.NOT_EXECUTED, Fate.LOST, Fate.ANSWERED])
    assert finish == Finish(Verdict.ANSWERED, tries=3, value=1, node=1)


def test_a_refusal_is_an_answer():
    call = a_call()
    call.start()
    finish = call.observe(Seen(Fate.ANSWERED, value=0), 0)
    assert isinstance(finish, Finish) and (finish.verdict, finish.value) == (Verdict.ANSWERED, 0)


@pytest.mark.parametrize("kind", [Kind.ACQUIRE, Kind.RELEASE, Kind.UNDO])
@pytest.mark.parametrize("length", range(5))
def test_every_sequence_of_failures_and_every_end_comes_to_the_right_verdict(kind, length):
    for fates in itertools.product([*NEVER_DONE, Fate.LOST], repeat=length):
        in_doubt = Fate.LOST in fates
        for last in FINAL:
            finish = run(a_call(kind), [*fates, last])
            assert isinstance(finish, Finish)
            if last is Fate.ANSWERED:
                expected = Verdict.ANSWERED
            elif last is Fate.GONE or in_doubt:
                expected = Verdict.INDETERMINATE
            else:
                expected = Verdict.REJECTED
            assert finish.verdict is expected, (fates, last)
            assert finish.tries == length + 1
            assert finish.gone == (last is Fate.GONE)


@pytest.mark.parametrize("length", range(1, 6))
def test_at_the_deadline_not_done_is_said_only_if_nothing_was_lost(length):
    for fates in itertools.product([*NEVER_DONE, Fate.LOST], repeat=length):
        call = a_call()
        step = run(call, fates[:-1])
        assert isinstance(step, Send)
        finish = call.observe(seen(fates[-1]), FAR_US)
        assert isinstance(finish, Finish)
        in_doubt = Fate.LOST in fates
        assert finish.verdict is (Verdict.INDETERMINATE if in_doubt else Verdict.UNAVAILABLE)
        assert (finish.lost is not None) == in_doubt


def test_a_read_is_never_indeterminate():
    for fates in itertools.product([*NEVER_DONE, Fate.LOST], repeat=3):
        for last, expected in [
            (Fate.ANSWERED, Verdict.ANSWERED),
            (Fate.REJECTED, Verdict.REJECTED),
            (Fate.GONE, Verdict.REJECTED),
        ]:
            finish = run(a_call(Kind.INSPECT), [*fates, last])
            assert isinstance(finish, Finish) and finish.verdict is expected
        call = a_call(Kind.INSPECT)
        run(call, fates[:-1])
        finish = call.observe(seen(fates[-1]), FAR_US)
        assert isinstance(finish, Finish) and finish.verdict is Verdict.UNAVAILABLE


@pytest.mark.parametrize("value", [None, "1", b"1", -1, True, 1.0, [1]])
def test_a_reply_of_the_wrong_kind_answers_nothing(value):
    call = a_call()
    call.start()
    step = call.observe(Seen(Fate.ANSWERED, value=value), 0)
    assert isinstance(step, Send) and step.node == 1
    finish = call.observe(seen(Fate.REJECTED), 0)
    assert isinstance(finish, Finish) and finish.verdict is Verdict.INDETERMINATE


@pytest.mark.parametrize("kind", [Kind.RELEASE, Kind.UNDO])
def test_a_release_answers_0_or_1(kind):
    for value in (0, 1):
        call = a_call(kind)
        call.start()
        assert isinstance(call.observe(Seen(Fate.ANSWERED, value=value), 0), Finish)
    for value in (2, -1, True, 1800000000000001):
        call = a_call(kind)
        call.start()
        assert isinstance(call.observe(Seen(Fate.ANSWERED, value=value), 0), Send)


@pytest.mark.parametrize("value", [None, 1, b"x", [b"state"]])
def test_an_inspection_is_a_map_or_pairs(value):
    call = a_call(Kind.INSPECT)
    call.start()
    assert isinstance(call.observe(Seen(Fate.ANSWERED, value=value), 0), Send)


@pytest.mark.parametrize("node_count", [1, 2, 3])
def test_the_nodes_are_tried_in_turn_and_waiting_starts_when_all_have_failed(node_count):
    call = a_call(node_count=node_count, first_node=node_count - 1, jitter=0.5)
    step: Send | Finish = call.start()
    steps = []
    for _ in range(10 * node_count):
        assert isinstance(step, Send)
        steps.append(step)
        step = call.observe(seen(Fate.NOT_SENT), 0)
    nodes = [step.node for step in steps]
    assert nodes == [(node_count - 1 + i) % node_count for i in range(len(steps))]
    waits = [step.delay_us for step in steps]
    assert all(waits[i] == 0 for i in range(len(waits)) if i % node_count or i == 0)
    rounds = waits[node_count::node_count]
    assert rounds[0] == BACKOFF_FIRST_US * 3 // 4
    assert rounds == sorted(rounds) and rounds[-1] == BACKOFF_MAX_US * 3 // 4


@given(jitter=st.floats(0, 1, exclude_max=True), failures=st.integers(1, 200))
def test_a_wait_is_between_half_and_all_of_its_round(jitter, failures):
    step = run(a_call(node_count=1, jitter=jitter), [Fate.NOT_SENT] * failures)
    assert isinstance(step, Send)
    longest = min(BACKOFF_MAX_US, BACKOFF_FIRST_US * 2 ** (failures - 1))
    assert longest // 2 <= step.delay_us <= longest


def test_the_first_attempt_is_made_even_after_the_deadline():
    assert a_call(deadline_us=0).start() == Send(node=0, delay_us=0)


@given(
    deadline_us=st.integers(1, 3_000_000),
    costs=st.lists(
        st.tuples(st.sampled_from([*NEVER_DONE, Fate.LOST]), st.integers(1, 600_000)), min_size=1
    ),
    jitter=st.floats(0, 1, exclude_max=True),
)
def test_every_further_attempt_leaves_time_for_its_answer_and_then_the_call_ends(
    deadline_us, costs, jitter
):
    call = a_call(deadline_us=deadline_us, jitter=jitter)
    step: Send | Finish = call.start()
    now_us, lost = 0, False
    for fate, cost_us in itertools.cycle(costs):
        assert isinstance(step, Send)
        now_us += step.delay_us
        assert call.tries == 1 or now_us <= deadline_us - ATTEMPT_MIN_US
        # An attempt is cut off at the deadline by whoever makes it.
        now_us = min(now_us + cost_us, deadline_us)
        lost = lost or fate is Fate.LOST
        step = call.observe(seen(fate), now_us)
        if isinstance(step, Finish):
            break
    assert isinstance(step, Finish)
    assert deadline_us - now_us < ATTEMPT_MIN_US
    assert step.verdict is (Verdict.INDETERMINATE if lost else Verdict.UNAVAILABLE)


@given(data=st.data())
def test_what_is_said_is_true_of_a_server_that_executes_each_request_id_once(data):
    """The nodes share one memory of answers, as a pair does; copies and answers get lost."""
    call = a_call()
    first_answer = None
    step: Send | Finish = call.start()
    now_us = 0
    while isinstance(step, Send):
        now_us += step.delay_us + 1_000
        fate = data.draw(st.sampled_from(Fate))
        executed = fate is Fate.ANSWERED or (fate is Fate.LOST and data.draw(st.booleans()))
        if executed and first_answer is None:
            first_answer = data.draw(st.integers(0, 9))
        if fate is Fate.GONE and first_answer is None:
            fate = Fate.NOT_EXECUTED
        if data.draw(st.integers(0, 9)) == 0:
            now_us = FAR_US
        step = call.observe(seen(fate, first_answer), now_us)
    match step.verdict:
        case Verdict.ANSWERED:
            assert step.value == first_answer
        case Verdict.UNAVAILABLE | Verdict.REJECTED:
            assert first_answer is None
        case Verdict.INDETERMINATE:
            assert step.lost is not None or step.gone


def test_an_interrupted_attempt_counts_as_lost():
    call = a_call()
    call.start()
    finish = call.interrupt()
    assert finish.verdict is Verdict.INDETERMINATE
    assert aftermath(Kind.ACQUIRE, finish) is Aftermath.UNDO


def test_an_interrupted_read_needs_nothing():
    call = a_call(Kind.INSPECT)
    call.start()
    assert call.interrupt().verdict is Verdict.UNAVAILABLE


@pytest.mark.parametrize("value", [0, 5])
def test_an_answer_that_never_reached_the_caller_of_acquire_is_in_doubt(value):
    call = a_call()
    call.start()
    call.observe(seen(Fate.ANSWERED, value), 0)
    assert aftermath(Kind.ACQUIRE, call.interrupt()) is Aftermath.UNDO


@pytest.mark.parametrize("kind", [Kind.RELEASE, Kind.UNDO, Kind.INSPECT])
def test_any_other_answer_stands_though_the_caller_was_interrupted(kind):
    call = a_call(kind)
    finish = run(call, [Fate.ANSWERED])
    assert call.interrupt() == finish


@pytest.mark.parametrize("last", [Fate.GONE, Fate.REJECTED])
def test_what_was_known_of_a_failed_acquire_stands_though_the_caller_was_interrupted(last):
    call = a_call()
    finish = run(call, [last])
    assert call.interrupt() == finish


def test_a_call_that_was_interrupted_before_its_first_attempt_was_certainly_not_done():
    assert a_call().interrupt().verdict is Verdict.UNAVAILABLE


ANSWERED = Finish(Verdict.ANSWERED, 1, value=1)
REJECTED = Finish(Verdict.REJECTED, 1)
UNAVAILABLE = Finish(Verdict.UNAVAILABLE, 1)
INDETERMINATE = Finish(Verdict.INDETERMINATE, 1)
GONE = Finish(Verdict.INDETERMINATE, 1, gone=True)


@pytest.mark.parametrize(
    ("kind", "finish", "expected"),
    [
        (Kind.ACQUIRE, ANSWERED, Aftermath.REUSE),
        (Kind.ACQUIRE, REJECTED, Aftermath.REUSE),
        (Kind.ACQUIRE, UNAVAILABLE, Aftermath.REUSE),
        (Kind.ACQUIRE, INDETERMINATE, Aftermath.UNDO),
        (Kind.ACQUIRE, GONE, Aftermath.RETIRE),
        (Kind.RELEASE, ANSWERED, Aftermath.REUSE),
        (Kind.RELEASE, REJECTED, Aftermath.REUSE),
        (Kind.RELEASE, UNAVAILABLE, Aftermath.REUSE),
        (Kind.RELEASE, INDETERMINATE, Aftermath.REUSE),
        (Kind.RELEASE, GONE, Aftermath.RETIRE),
        (Kind.UNDO, ANSWERED, Aftermath.REUSE),
        (Kind.UNDO, REJECTED, Aftermath.RETIRE),
        (Kind.UNDO, UNAVAILABLE, Aftermath.RETIRE),
        (Kind.UNDO, INDETERMINATE, Aftermath.RETIRE),
        (Kind.UNDO, GONE, Aftermath.RETIRE),
    ],
)
def test_what_becomes_of_the_client_id(kind, finish, expected):
    assert aftermath(kind, finish) is expected


def test_request_ids_rise_from_one_and_the_words_are_those_of_the_contract():
    client = a_pool().borrow()
    acquire = acquire_request(client, b"a")
    assert acquire.words == (b"LOCK", b"a", b"@0000000000000000:1")
    assert undo_request(client, acquire).words == (
        b"UNLOCK",
        b"a",
        b"@0000000000000000:2",
        b"REQUEST",
        b"@0000000000000000:1",
    )
    assert release_request(client, b"a").words == (b"UNLOCK", b"a", b"@0000000000000000:3")
    assert inspect_request(b"a").words == (b"INSPECT", b"a")


def test_the_client_id_returned_last_is_lent_first():
    pool = a_pool()
    first, second = pool.borrow(), pool.borrow()
    pool.give_back(first)
    pool.give_back(second)
    assert pool.borrow().client_id == second.client_id
    assert pool.borrow().client_id == first.client_id
    assert pool.borrow().client_id not in (first.client_id, second.client_id)


def test_after_an_indeterminate_release_the_next_request_has_the_next_number_of_the_same_client():
    """So that it freezes a late copy of the release before it can meet another lock."""
    pool = a_pool()
    others = [pool.borrow() for _ in range(3)]
    for client in others:
        pool.give_back(client)
    client = pool.borrow()
    release = release_request(client, b"a")
    assert aftermath(release.kind, INDETERMINATE) is Aftermath.REUSE
    pool.give_back(client)
    following = acquire_request(pool.borrow(), b"a")
    assert following.request_id.partition(b":")[0] == release.request_id.partition(b":")[0]
    assert int(following.request_id.rpartition(b":")[2]) > int(
        release.request_id.rpartition(b":")[2]
    )


@given(st.lists(st.integers(0, 7)))
def test_a_client_id_has_one_request_at_a_time(choices):
    pool = a_pool()
    lent = []
    seen_ids = set()
    for choice in choices:
        if choice < len(lent):
            pool.give_back(lent.pop(choice))
        else:
            client = pool.borrow()
            assert client.client_id not in [other.client_id for other in lent]
            lent.append(client)
            request_id = acquire_request(client, b"a").request_id
            assert request_id not in seen_ids
            seen_ids.add(request_id)


# --- standing in line ------------------------------------------------------------------------


def a_waiting_call(
    wait_ms: int, *, deadline_us: int = 10_000_000, patience_us: int | None = None
) -> Call:
    """Begun at 0."""
    wait_us = wait_ms * 1_000
    return Call(
        a_request(Kind.ACQUIRE),
        node_count=2,
        first_node=0,
        deadline_us=deadline_us if patience_us is not None else wait_us + deadline_us,
        jitter=lambda: 0.0,
        wait_until_us=wait_us,
        patience_us=patience_us,
    )


def waits_sent(call: Call, instants_us: Sequence[int]) -> list[int]:
    """What WAIT says in each sending; 0 where it is left out."""
    words = [call.sending(now_us) for now_us in instants_us]
    assert {each[: len(call.request.words)] for each in words} == {call.request.words}
    rest = [each[len(call.request.words) :] for each in words]
    assert all(each == () or (each[0] == b"WAIT" and len(each) == 2) for each in rest)
    return [int(each[1]) if each else 0 for each in rest]


def test_every_sending_says_what_is_left_of_the_wait_under_the_same_request_id():
    call = a_waiting_call(60_000)
    instants = [0, 1_000, 5_000_000, 59_999_500, 60_000_000, 61_000_000]
    assert waits_sent(call, instants) == [60_000, 59_999, 55_000, 0, 0, 0]
    assert (call.sendings, call.first_sent_us) == (6, 0)


def test_a_call_without_a_wait_says_nothing_of_one():
    call = a_call()
    assert call.sending(7) == call.request.words
    assert call.first_sent_us == 7


def test_the_reply_to_a_waiting_call_may_take_its_wait_and_a_read_time_out_longer():
    call = a_waiting_call(60_000)
    assert call.reply_by_us(0, 1_000_000) == 61_000_000
    assert call.reply_by_us(50_000_000, 1_000_000) == 61_000_000
    assert call.reply_by_us(65_000_000, 1_000_000) == 66_000_000
    assert call.reply_by_us(69_900_000, 1_000_000) == call.deadline_us == 70_000_000
    assert a_call(deadline_us=500_000).reply_by_us(0, 1_000_000) == 500_000


def test_a_waiting_call_that_lost_its_node_late_in_its_wait_is_sent_to_the_next_at_once():
    call = a_waiting_call(60_000)
    call.start()
    call.sending(0)
    assert call.observe(seen(Fate.LOST), 59_000_000) == Send(node=1, delay_us=0)
    finish = call.observe(seen(Fate.ANSWERED, 5), 59_500_000)
    assert isinstance(finish, Finish) and finish.value == 5


def test_a_call_that_waits_as_long_as_it_takes_ends_when_no_node_keeps_its_place():
    call = a_waiting_call(86_400_000, patience_us=10_000_000)
    call.start()
    assert call.reply_by_us(0, 1_000_000) > 86_400_000_000
    call.node_is_there(3_600_000_000)
    assert isinstance(call.observe(seen(Fate.LOST), 3_601_000_000), Send)
    assert isinstance(call.observe(seen(Fate.NOT_SENT), 3_609_000_000), Send)
    finish = call.observe(seen(Fate.NOT_SENT), 3_610_000_000)
    assert isinstance(finish, Finish) and finish.verdict is Verdict.INDETERMINATE


def test_signs_of_a_node_do_not_stretch_a_wait_that_has_an_end():
    call = a_waiting_call(1_000)
    call.node_is_there(900_000)
    assert call.deadline_us == 11_000_000


# --- requests without an id ------------------------------------------------------------------


def test_the_words_of_every_request_are_those_of_the_contract():
    client = a_pool().borrow()
    leased = acquire_request(client, b"a", 300, b"me")
    assert leased.words[3:] == (b"PX", b"300", b"OWNER", b"me")
    assert release_request(client, b"a", 7).words[3:] == (b"TOKEN", b"7")
    assert renew_request(b"a", 7, 300).words == (b"RENEW", b"a", b"7", b"PX", b"300")
    assert verify_request(b"a", 7).words == (b"VERIFY", b"a", b"7")
    assert locks_request(b"0", None, 100).words == (b"LOCKS", b"0", b"COUNT", b"100")
    assert locks_request(b"8", b"a*", 9).words == (
        *(b"LOCKS", b"8", b"MATCH", b"a*"),
        *(b"COUNT", b"9"),
    )


@pytest.mark.parametrize(
    ("request_", "good", "bad"),
    [
        (renew_request(b"a", 7, 300), [0, 1], [2, True, None, b"1"]),
        (verify_request(b"a", 7), [0, 1], [2, True, None, b"1"]),
        (locks_request(b"0", None, 9), [[b"0", []]], [[b"0"], [b"0", 1], 0, [[], [], []]]),
    ],
)
def test_a_reply_is_what_its_request_can_be_answered_or_nothing(request_, good, bad):
    for value in [*good, *bad]:
        call = Call(request_, node_count=1, first_node=0, deadline_us=FAR_US, jitter=lambda: 0.0)
        call.start()
        step = call.observe(Seen(Fate.ANSWERED, value=value), 0)
        assert isinstance(step, Finish if value in good and value is not True else Send)


def test_a_renewal_that_stays_unanswered_is_in_doubt_and_leaves_nothing_to_undo():
    call = a_call(deadline_us=1_000_000)
    call.request = renew_request(b"a", 7, 300)
    call.start()
    assert isinstance(call.observe(seen(Fate.LOST), 0), Send)
    finish = call.observe(seen(Fate.NOT_EXECUTED), 1_000_000)
    assert isinstance(finish, Finish) and finish.verdict is Verdict.INDETERMINATE
    assert aftermath(Kind.RENEW, finish) is Aftermath.REUSE


def test_a_lost_renewal_is_answered_by_its_next_copy():
    call = a_call()
    call.request = renew_request(b"a", 7, 300)
    finish = run(call, [Fate.LOST, Fate.LOST, Fate.ANSWERED])
    assert isinstance(finish, Finish) and (finish.verdict, finish.value) == (Verdict.ANSWERED, 1)


def test_an_attempt_whose_answer_is_soon_of_no_use_is_short_and_the_next_at_each_node_longer() -> (
    None
):
    call = Call(
        renew_request(b"a", 7, 1_000),
        node_count=2,
        first_node=0,
        deadline_us=10**12,
        jitter=lambda: 0.0,
        attempt_us=100,
    )
    call.start()
    allowed = []
    for _ in range(6):
        allowed.append(call.timeout_us(350))
        call.observe(Seen(Fate.LOST, error=OSError("lost")), 0)
    assert allowed == [100, 100, 200, 200, 350, 350]
    assert call.reply_by_us(1_000, 350) == 1_350
