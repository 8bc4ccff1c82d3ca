"""The executor: requests, waits and leases of the primary (X1 to X5).

Each rule is also told, step by step, in ``scenarios/``, and held against a model in
``test_core_properties.py``. Here are the bounds, and what takes many locks.
"""

from __future__ import annotations

import pytest
from harness.replicas import Pair, SimNode

from holdfast.server.core import limits
from holdfast.server.core.executor import Executor
from holdfast.server.core.reply_cache import Refused
from holdfast.server.core.snapshot import digest
from holdfast.server.core.state import UNLOCK


def alone() -> SimNode:
    node = SimNode("P")
    node.begin_history()
    return node


def joined() -> Pair:
    pair = Pair()
    pair.join()
    return pair


def executor_of(node: SimNode) -> Executor:
    return node.replica.executor


def held(node: SimNode) -> set[str]:
    return {name.decode() for name in node.replica.state.locks.held}


# -- leases ---------------------------------------------------------------------------------------


def test_a_lease_begins_when_it_is_granted_not_when_the_turn_began() -> None:
    """Nor when its request came: time passes within a turn too, whatever ended the last grant."""
    for end in ("unlock", "delete", "undo", "verify", "inspect", "lock"):
        node = alone()
        node.lock("c1", "a", "r1", "PX", "100")
        node.lock("c2", "a", "r2", "WAIT", "5000", "PX", "100")
        is_expiry = end in ("verify", "inspect", "lock")
        node.end_turn()
        node.sleep(101 if is_expiry else 1)
        since_ms = node.now_ms
        node.be_busy(7)
        more = {"unlock": ["u"], "undo": ["u", "r1"], "verify": ["9"], "lock": ["r9"]}
        getattr(node, end)("c3", "a", *more.get(end, []))
        assert node.replica.state.locks.held[b"a"][1:] == (b"r2", b"r2", since_ms, since_ms + 108)


def test_a_lease_that_was_taken_over_ends_in_the_background_too() -> None:
    pair = joined()
    for n in range(1_200):
        pair.primary.lock("c", f"n{n}", f"r{n}", *(["PX", "500"] if n % 2 else []))
    pair.settle()
    pair.backup.sleep(100)
    pair.backup.promote()
    backup, turns = pair.backup, 0
    while turns < 9 and backup.due_in_ms in (None, 0):
        backup.end_turn()
        turns += 1
    assert 3 <= turns <= 4, "a bounded number of them is taken over in each turn"
    assert backup.due_in_ms is not None
    backup.sleep(backup.due_in_ms - 1)
    backup.end_turn()
    assert len(held(backup)) == 1_200, "none ends early (I8)"
    backup.sleep(1)
    for _ in range(2):
        backup.end_turn()
    assert held(backup) == {f"n{n}" for n in range(0, 1_200, 2)}


def test_a_request_sees_the_expiry_of_a_lease_whose_takeover_is_not_done_yet() -> None:
    pair = joined()
    for n in range(1_200):
        pair.primary.lock("c", f"n{n}", f"r{n}", "PX", "500")
    pair.settle()
    pair.backup.sleep(502)
    pair.backup.promote()
    pair.backup.lock("c", "n1199", "new")
    assert int(pair.backup.said[-1][1]) > 0


def test_what_was_renewed_or_released_before_the_takeover_came_to_it_is_seen_as_it_is() -> None:
    pair = joined()
    for name in ("renewed", "released", "again"):
        pair.primary.lock("c", name, f"r {name}", "PX", "500")
    pair.settle()
    pair.backup.promote()
    token = pair.backup.replica.state.locks.held[b"renewed"][0]
    pair.backup.renew("c", "renewed", str(token), "2000")
    pair.backup.unlock("c", "released", "u1")
    pair.backup.unlock("c", "again", "u2")
    pair.backup.lock("c", "again", "r2", "PX", "3000")
    pair.backup.end_turn()
    for milliseconds, left in ((1_000, 2), (1_002, 1), (1_002, 0)):
        pair.backup.sleep(milliseconds)
        pair.backup.end_turn()
        assert len(held(pair.backup)) == left


def test_what_is_left_of_a_lease_is_never_more_than_the_holder_asked_for() -> None:
    node = alone()
    node.lock("c", "a", "r1", "PX", "100")
    node.lock("c", "b", "r2")
    grants = node.replica.state.locks.held
    executor = executor_of(node)
    assert executor.remaining_ms(grants[b"a"][4]) == 100
    node.be_busy(99)
    assert executor.remaining_ms(grants[b"a"][4]) == 1
    node.be_busy(5_000)
    assert executor.remaining_ms(grants[b"a"][4]) == 0
    assert executor.remaining_ms(grants[b"b"][4]) == -1


def test_taking_and_giving_back_long_leases_leaves_nothing_behind() -> None:
    node = alone()
    for n in range(30_000):
        node.lock("c", "a", f"r{n}", "PX", str(limits.LEASE_MS_MAX))
        node.unlock("c", "a", f"u{n}")
    assert len(executor_of(node)._leases) < 5_000


# -- pacing ---------------------------------------------------------------------------------------


def test_leases_that_end_together_are_ended_in_bounded_steps() -> None:
    node = alone()
    count = 2 * limits.DUE_PER_TURN + 100
    for n in range(count):
        node.lock("c", f"n{n}", f"r{n}", "PX", "100")
    node.end_turn()
    node.sleep(101)
    for left in (count - limits.DUE_PER_TURN, 100, 0):
        before = node.replica.state.offset
        node.end_turn()
        assert len(held(node)) == left
        assert node.replica.state.offset - before <= limits.DUE_PER_TURN
        assert node.due_in_ms == (0 if left else None)


def test_a_request_overtakes_the_background_on_its_own_name() -> None:
    node = alone()
    for n in range(limits.DUE_PER_TURN + 10):
        node.lock("c", f"n{n}", f"r{n}", "PX", "100")
    node.end_turn()
    node.sleep(101)
    node.lock("c", f"n{limits.DUE_PER_TURN + 9}", "new", "PX", "100")
    assert int(node.said[-1][1]) > 0
    node.end_turn()
    node.end_turn()
    assert held(node) == {f"n{limits.DUE_PER_TURN + 9}"}, "and it is not ended with the others"


def test_waits_that_end_together_are_ended_in_bounded_steps_too() -> None:
    node = alone()
    node.lock("c", "a", "r")
    for n in range(limits.DUE_PER_TURN + 10):
        node.lock(f"c{n}", "a", f"r{n}", "WAIT", "100")
    node.said.clear()
    node.end_turn()
    node.sleep(101)
    node.end_turn()
    assert node.said == [(f"c{n}", "0") for n in range(limits.DUE_PER_TURN)]
    node.end_turn()
    assert len(node.said) == limits.DUE_PER_TURN + 10 and not executor_of(node).queue


def test_leases_that_somebody_waits_for_end_before_all_others() -> None:
    node = alone()
    count = 3 * limits.DUE_PER_TURN
    node.lock("c", "first", "r", "PX", "100")
    node.lock("c1", "first", "r1", "WAIT", "9000", "PX", "100")
    node.lock("c2", "first", "r2", "WAIT", "9000")
    for n in range(count):
        node.lock("c", f"n{n}", f"r{n}", "PX", "90")
    node.lock("c", "last", "r", "PX", "100")
    node.lock("c3", "last", "r3", "WAIT", "9000")
    node.lock("c", "taken", "r")
    node.lock("c4", "taken", "r4", "WAIT", "100")
    node.end_turn()
    node.said.clear()
    node.sleep(101)
    node.end_turn()
    assert {client for client, _ in node.said} == {"c1", "c3", "c4"}, "and waits come next"
    node.sleep(101)
    node.end_turn()
    assert node.said[-1][0] == "c2", "the lease of who had waited itself, too"
    assert len(held(node)) > limits.DUE_PER_TURN // 2, "the others are not done yet"


def test_an_awaited_lease_that_is_renewed_goes_on() -> None:
    node = alone()
    node.lock("c", "a", "r", "PX", "100")
    node.lock("c1", "a", "r1", "WAIT", "9000")
    node.renew("c", "a", "1000001", "300")
    node.end_turn()
    node.sleep(300)
    node.end_turn()
    assert node.waiting == ["c1"] and node.due_in_ms == 1
    node.sleep(1)
    node.end_turn()
    assert node.said[-1][0] == "c1"


def test_a_wait_is_counted_from_when_its_request_is_looked_at() -> None:
    """And one more: that instant may be almost a millisecond after what the clock says."""
    node = alone()
    node.lock("c", "a", "r")
    node.be_busy(7)
    node.lock("c1", "a", "r1", "WAIT", "100")
    node.end_turn()
    node.sleep(100)
    node.end_turn()
    assert node.waiting == ["c1"]
    node.sleep(1)
    node.end_turn()
    assert node.said[-1] == ("c1", "0")


def test_clients_that_keep_the_node_busy_cannot_keep_leases_alive() -> None:
    """No turn is on time and none has read all input: expiry goes on all the same."""
    node = alone()
    count = 3 * limits.DUE_PER_TURN
    for n in range(count):
        node.lock("c", f"n{n}", f"r{n}", "PX", "100")
    node.end_turn()
    node.input_is_read = False
    latest_ms = node.now_ms + 101 + 2 * limits.LATE_INPUT_MS
    while held(node) and node.now_ms < latest_ms:
        node.sleep(25)
        node.end_turn()
    assert not held(node)


def test_a_renewal_long_after_the_end_is_refused_though_no_entry_has_ended_the_grant() -> None:
    """The step that would have done so waits for the one before it."""
    pair = joined()
    node = pair.primary
    for n in range(limits.DUE_PER_TURN):
        node.lock("c", f"n{n}", f"r{n}", "PX", "100")
    node.lock("c", "early", "r", "PX", "108")
    node.lock("c", "late", "r", "PX", "108")
    pair.settle()
    tokens = {name: grant[0] for name, grant in node.replica.state.locks.held.items()}
    node.sleep(109)
    pair.turn()
    executor = executor_of(node)
    node.sleep(limits.LATE_MS - 1)
    pair.turn()
    assert held(node) == {"early", "late"}
    assert executor.renew(b"early", tokens[b"early"], 100) == 1
    node.sleep(1)
    pair.turn()
    assert executor.renew(b"late", tokens[b"late"], 100) == 0
    assert held(node) == {"early"}


def test_turns_are_not_late_for_what_has_only_not_been_worked_off_yet() -> None:
    """Ten steps of it: meanwhile, requests see expiry as exactly as ever."""
    node = alone()
    for n in range(10 * limits.DUE_PER_TURN):
        node.lock("c", f"n{n}", f"r{n}", "PX", "100")
    node.end_turn()
    node.input_is_read = False
    node.sleep(101)
    node.lock("c", "x", "rx", "PX", "20")
    for _ in range(7):
        node.end_turn()
        node.sleep(3)
    assert len(held(node)) > limits.DUE_PER_TURN
    node.inspect("c", "x")
    assert node.said[-1] == ("c", "free")


def test_a_late_turn_is_over_with_its_input() -> None:
    node = alone()
    node.lock("c", "a", "r1", "PX", "100")
    node.end_turn()
    node.sleep(101 + limits.LATE_MS)
    node.verify("c", "a", "1000001")
    assert node.said[-1] == ("c", "0"), "this much is no delay"

    node.lock("c", "a", "r2", "PX", "100")
    node.end_turn()
    node.sleep(102 + limits.LATE_MS)
    node.lock("d", "a", "r3", "WAIT", "5")
    node.lock("e", "a", "r4", "WAIT", "100000")
    token = node.replica.state.locks.held[b"a"][0]
    node.verify("c", "a", str(token))
    assert node.said[-1] == ("c", "1")
    node.end_turn()
    assert node.replica.state.locks.held[b"a"][1] == b"r3", "the turn's own requests come first"


@pytest.mark.parametrize("waits", [False, True])
def test_nothing_that_has_passed_is_due_before_a_late_turn_has_read_its_input(waits: bool) -> None:
    node = alone()
    node.lock("c", "a", "r1", *(["PX", "100"] if not waits else []))
    if waits:
        node.lock("d", "a", "r2", "WAIT", "100")
    node.end_turn()
    node.input_is_read = False
    node.sleep(3_000)
    offset = node.replica.state.offset
    for _ in range(9):
        node.end_turn()
        node.sleep(100)
        assert node.due_in_ms == 0, "it asks for the next turn at once"
    assert node.replica.state.offset == offset
    node.input_is_read = True
    node.end_turn()
    assert node.replica.state.offset == offset + 1


# -- room -----------------------------------------------------------------------------------------


def test_what_is_due_has_a_share_of_the_room_that_it_cannot_exceed() -> None:
    """Requests are refused at the limit; behind it is room for one step of ends and grants."""
    pair = joined()
    node = pair.primary
    count = 2 * limits.DUE_PER_TURN
    for n in range(count):
        node.lock(f"c{n}", f"n{n}", f"r{n}", "PX", "100")
        node.lock(f"w{n}", f"n{n}", f"s{n}", "WAIT", "9000")
    pair.settle()
    node.sleep(101)
    limit = node.replica.offset_limit = node.replica.state.offset
    for _ in range(3):
        pair.turn()
        assert node.due_in_ms in (0, limits.STEP_UNDER_WAY_MS)
    appended = node.replica.state.offset - limit
    assert limits.DUE_PER_TURN <= appended <= 3 * limits.DUE_PER_TURN
    assert limit_of_requests() + 3 * limits.DUE_PER_TURN < limits.UNACKED_ENTRIES_MAX
    for _ in range(2):
        pair.settle()
    assert not node.waiting


def limit_of_requests() -> int:
    """How many entries may be unacknowledged when a request comes in."""
    pair = joined()
    outbound = pair.primary.replica.outbound
    assert outbound is not None
    return pair.primary.replica.offset_limit - outbound.acked_offset


def test_what_no_entry_may_be_appended_for_is_refused_and_changes_nothing() -> None:
    node = joined().primary
    executor = executor_of(node)
    node.lock("c1", "lease", "r1", "PX", "100")
    node.lock("c1", "a", "r2")
    node.lock("c2", "a", "@w:1", "WAIT", "900")
    node.end_turn()
    node.sleep(101)
    token = node.replica.state.locks.held[b"lease"][0]
    node.replica.offset_limit = node.replica.state.offset
    before = digest(node.replica.state)
    refused = [
        executor.lock(b"new", b"r3", "c3"),
        executor.lock(b"a", b"r4", "c3", wait_ms=9),
        executor.lock(b"b", b"@w:2", "c3"),
        executor.unlock(UNLOCK, b"a", b"u1"),
        executor.unlock(UNLOCK, b"a", b"@w:2"),
        executor.renew(b"lease", token, 100),
        executor.delete(b"a"),
        executor.delete(b"lease"),
        executor.look(b"lease"),
        executor.refuses_entries(1),
    ]
    assert refused == [Refused.TRY_AGAIN] * 10
    assert digest(node.replica.state) == before and node.waiting == ["c2"]
    assert executor.answered == []


def test_a_renewal_that_would_be_an_entry_needs_room_like_any_other() -> None:
    node = joined().primary
    node.lock("c", "a", "r1", "PX", "100")
    node.replica.offset_limit = node.replica.state.offset
    token = node.replica.state.offset
    executor = executor_of(node)
    node.be_busy(1)
    assert executor.renew(b"a", token, 100) is Refused.TRY_AGAIN
    assert executor.renew(b"a", token, 99) == 1, "this one says what is true already"
    assert executor.renew(b"a", token + 1, 100) == 0


def test_many_names_in_one_command_are_executed_altogether_or_not_at_all() -> None:
    node = joined().primary
    executor, replica = executor_of(node), node.replica
    replica.offset_limit = replica.state.offset + 3 * limits.ENTRIES_PER_REQUEST_MAX
    assert executor.refuses_entries(2) is None
    assert executor.refuses_entries(3) is Refused.TRY_AGAIN
    replica.overflows = True
    assert executor.refuses_entries(1) is Refused.TRY_AGAIN


def test_no_request_appends_more_entries_than_the_bound_reckons_with() -> None:
    """All that one UNLOCK ... REQUEST can bring about."""
    node = alone()
    node.lock("c1", "a", "r1", "PX", "100")
    node.lock("c2", "a", "r2", "WAIT", "9000")
    node.lock("c3", "a", "r3", "WAIT", "9000")
    node.lock("c4", "b", "r4")
    node.lock("c5", "b", "@w:1", "WAIT", "9000")
    node.end_turn()
    node.sleep(101)
    before = node.replica.state.offset
    node.undo("c6", "a", "@w:2", "r2")
    assert 5 == node.replica.state.offset - before <= limits.ENTRIES_PER_REQUEST_MAX


def test_expiry_does_not_run_ahead_of_a_slow_backup() -> None:
    """Replies wait for the backup, which applies entries in order: one batch is under way."""
    pair = joined()
    for n in range(2 * limits.DUE_PER_TURN):
        pair.primary.lock("c", f"n{n}", f"r{n}", "PX", "100")
    pair.settle()
    pair.primary.sleep(101)
    for _ in range(5):
        pair.turn()
    assert len(held(pair.primary)) == limits.DUE_PER_TURN
    pair.deliver()
    pair.ack()
    pair.turn()
    assert held(pair.primary) == set()


# -- bounds ---------------------------------------------------------------------------------------


def test_a_line_that_is_full_takes_nobody_and_that_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "WAITERS_PER_LOCK_MAX", 2)
    node = alone()
    node.lock("c", "a", "r")
    node.lock("c1", "a", "r1", "WAIT", "900")
    node.lock("c2", "b", "r0")
    node.lock("c2", "a", "r2", "WAIT", "900")
    node.end_turn()
    executor, offset = executor_of(node), node.replica.state.offset
    assert executor.lock(b"a", b"r3", "c3", wait_ms=900) is Refused.WAITERS_FULL
    assert node.replica.state.offset == offset
    node.lock("c4", "a", "r2", "WAIT", "900")
    assert node.waiting == ["c1", "c2", "c4"], "a repeat joins the wait that there is"
    assert executor.lock(b"a", b"r5", "c5") == 0, "who does not wait needs no place"
    node.unlock("c", "a", "u")
    node.lock("c3", "a", "r3", "WAIT", "900")
    assert node.waiting == ["c2", "c4", "c3"], "not done was true"


def test_a_request_refused_for_a_full_line_does_not_end_its_clients_earlier_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = alone()
    node.lock("c", "a", "r")
    node.lock("c", "b", "r")
    node.lock("c1", "a", "@w:1", "WAIT", "900")
    node.lock("c2", "b", "r2", "WAIT", "900")
    monkeypatch.setattr(limits, "WAITERS_PER_LOCK_MAX", 1)
    assert executor_of(node).lock(b"b", b"@w:2", "c3", wait_ms=900) is Refused.WAITERS_FULL
    assert node.waiting == ["c1", "c2"]


def test_a_repeat_of_a_wait_joins_it_even_if_no_more_clients_can_be_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A repeat is recognised before anything else is decided about it (X1)."""
    node = alone()
    node.lock("c", "a", "@holder:1")
    node.lock("c1", "a", "@w:1", "WAIT", "900")
    monkeypatch.setattr(limits, "CLIENTS_MAX", 1)
    node.lock("c2", "a", "@w:1", "WAIT", "900")
    assert node.waiting == ["c1", "c2"]
    assert executor_of(node).lock(b"a", b"@z:1", "c3", wait_ms=900) is Refused.CLIENTS_FULL


def test_a_full_lock_table_still_hands_a_lock_to_the_next_in_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = alone()
    node.lock("c", "a", "r")
    node.lock("c1", "a", "r1", "WAIT", "900")
    monkeypatch.setattr(limits, "LOCKS_MAX", 1)
    node.end_turn()
    assert executor_of(node).lock(b"b", b"r2", "c2") is Refused.LOCKS_FULL
    node.unlock("c", "a", "u")
    node.end_turn()
    assert node.replica.state.locks.held[b"a"][1] == b"r1"


# -- lines that may not be served -----------------------------------------------------------------


def lone(pair: Pair) -> SimNode:
    """The primary, after its backup was lost and it was decided that it goes on."""
    pair.lose_link()
    pair.primary.go_alone()
    pair.turn()
    return pair.primary


def a_line_with_min_backups() -> Pair:
    pair = Pair(min_backups=1)
    pair.join()
    pair.primary.lock("c", "a", "r", "PX", "100000")
    pair.primary.lock("c1", "a", "r1", "WAIT", "500")
    pair.settle()
    return pair


def test_whose_wait_ends_before_a_backup_is_back_is_refused_and_the_name_is_free() -> None:
    pair = a_line_with_min_backups()
    node = lone(pair)
    node.unlock("c", "a", "u")
    node.end_turn()
    node.sleep(501)
    node.end_turn()
    assert node.said[-1] == ("c1", "0") and held(node) == set()
    pair.join()
    node.lock("c2", "a", "r2")
    node.lock("c3", "a", "r3", "WAIT", "900")
    node.lock("c4", "a", "r4", "WAIT", "900")
    assert node.waiting == ["c3", "c4"], "the old line is forgotten"
    pair.settle()
    node.unlock("c2", "a", "u2")
    pair.settle()
    assert node.replica.state.locks.held[b"a"][1] == b"r3"


def test_a_waiter_that_comes_back_to_a_free_lock_is_served_when_a_backup_is() -> None:
    pair = a_line_with_min_backups()
    node = lone(pair)
    node.hang_up("c1")
    node.unlock("c", "a", "u")
    node.lock("c2", "a", "r1", "WAIT", "500")
    node.end_turn()
    assert node.waiting == ["c2"] and held(node) == set()
    pair.join()
    pair.settle()
    assert node.said[-1][0] == "c2" and int(node.said[-1][1]) > 0


def test_a_node_that_is_promoted_alone_grants_nothing_in_that_very_turn() -> None:
    pair = a_line_with_min_backups()
    pair.backup.replica.min_backups = 1
    pair.backup.promote()
    assert executor_of(pair.backup).lock(b"new", b"r9", "c") is Refused.NO_REPLICAS
    first = SimNode("F", min_backups=1)
    first.begin_history()
    assert executor_of(first).lock(b"new", b"r9", "c") is Refused.NO_REPLICAS


# -- reigns ---------------------------------------------------------------------------------------


def test_nothing_of_one_reign_is_left_in_the_next() -> None:
    pair = joined()
    node = pair.primary
    node.lock("c", "a", "r", "PX", "100")
    node.lock("c1", "a", "r1", "WAIT", "500")
    node.lock("c2", "a", "r2", "WAIT", "500")
    node.unlock("c", "a", "u")
    executor = executor_of(node)
    assert executor.answered and node.waiting == ["c2"]
    node.stand_down("P2")
    assert "c2" in node.closed and not executor.queue and not executor.answered
    pair.backup.promote()
    pair.primary, pair.backup = pair.backup, node
    pair.primary.lock("c3", "a", "r3")
    pair.turn()
    pair.join()
    pair.lose_link()
    node.promote()
    for _ in range(2):
        node.end_turn()
    assert node.due_in_ms is None, "no lease of the first reign is scheduled"
    node.lock("c1", "a", "r1", "WAIT", "500")
    assert node.waiting == ["c1"]


def test_it_counts_what_it_does_and_repeats_are_not_counted() -> None:
    node = alone()
    executor = executor_of(node)
    node.lock("c", "a", "r1", "PX", "100")
    node.lock("c", "a", "r1", "PX", "100")
    node.lock("c", "a", "r2")
    node.lock("c1", "a", "r3", "WAIT", "50")
    node.lock("c2", "a", "r4", "WAIT", "900")
    node.lock("c3", "a", "@w:1", "WAIT", "900")
    node.end_turn()
    node.sleep(51)
    node.end_turn()
    node.unlock("c3", "b", "@w:2")
    node.sleep(51)
    node.end_turn()
    node.delete("c", "a")
    node.delete("c", "a")
    counted = [
        executor.granted_count,  # r1, r4
        executor.refused_count,  # r2, r3, @w:1
        executor.timeouts_count,
        executor.expired_count,
        executor.revoked_count,
    ]
    assert counted == [2, 3, 1, 1, 1]
    executor.reset_statistics()
    assert executor.granted_count == executor.refused_count == 0
