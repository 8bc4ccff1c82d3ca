"""Two replicas back to back: coming back, changing roles, quarantine (I3, I5, I6, I8)."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from harness.replicas import WALL_CLOCK_US, Pair, SimNode, messages_of, pack
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.server.core import limits, stream
from holdfast.server.core.backlog import Point
from holdfast.server.core.failover import Standing
from holdfast.server.core.follower import Diverged, StaleStream
from holdfast.server.core.replica import BacklogOverrun, Phase, Role
from holdfast.server.core.snapshot import Header, digest
from holdfast.server.core.view import View


def joined(*, quarantine_ms: int = 0) -> Pair:
    pair = Pair(quarantine_ms=quarantine_ms)
    pair.join()
    return pair


def phase_of(pair: Pair) -> Phase:
    return pair.primary.replica.phase


def first_message(pair: Pair) -> list[bytes]:
    """The first that lies on the wire to the backup."""
    message: list[bytes] = messages_of(pair.to_backup.lying)[0]
    return message


def some_entries(pair: Pair, what: str, count: int = 3) -> None:
    """So many entries, each in a turn of its own."""
    for n in range(count):
        pair.primary.lock("c", f"{what}{n}", f"{what}{n}")
        pair.turn()


def swapped(pair: Pair) -> Pair:
    """The other node is the primary now."""
    pair.primary, pair.backup = pair.backup, pair.primary
    pair.turn()
    return pair


# -- partial resync -------------------------------------------------------------------------------


def test_a_backup_that_comes_back_gets_what_it_lacks_and_no_snapshot() -> None:
    pair = joined()
    some_entries(pair, "a")
    pair.settle()
    stood_at = pair.backup.replica.point
    pair.lose_link()
    some_entries(pair, "blocked")
    pair.primary.go_alone()
    some_entries(pair, "alone")
    pair.link("B2")
    assert first_message(pair)[0] == stream.CONTINUE
    assert pair.backup.replica.point == stood_at
    pair.settle()
    assert phase_of(pair) is Phase.MEMBER and pair.backup.replica.is_member
    assert pair.primary.replica.view == pair.backup.replica.view == View(4, "P", ("P", "B2"))
    assert b"blocked1" in pair.backup.replica.state.locks.held, "the blocked primary kept it"
    pair.assert_agreed()
    assert len(pair.primary.said) == 9 and not pair.primary.closed


def test_a_backup_that_lacks_nothing_comes_back_too() -> None:
    pair = joined()
    some_entries(pair, "a")
    pair.settle()
    pair.lose_link()
    pair.primary.go_alone()
    pair.link("B2")
    assert first_message(pair)[0] == stream.CONTINUE
    pair.settle()
    assert phase_of(pair) is Phase.MEMBER
    some_entries(pair, "b")
    pair.settle()
    pair.assert_agreed()


def test_what_was_on_the_wire_when_the_link_broke_is_sent_again() -> None:
    pair = joined()
    some_entries(pair, "a", 4)
    first = len(pack(*first_message(pair)))
    pair.deliver(first)  # one of four batches
    pair.lose_link()
    pair.primary.go_alone()
    pair.link("B2")
    assert first_message(pair)[0] == stream.CONTINUE
    pair.settle()
    pair.assert_agreed()


def test_the_stream_may_begin_before_the_first_entry_of_a_history() -> None:
    pair = joined()
    pair.lose_link()
    pair.primary.go_alone()
    some_entries(pair, "a")
    pair.link("B2")
    assert first_message(pair)[0] == stream.CONTINUE
    pair.settle()
    pair.assert_agreed()


def test_until_the_stream_begins_a_member_is_the_one_it_was() -> None:
    pair = joined()
    pair.lose_link()
    pair.primary.go_alone()
    pair.link("B2")
    backup = pair.backup.replica
    assert backup.incarnation == "B" and backup.is_member, "it may be promoted all the while"
    pair.deliver(len(pack(*first_message(pair))))
    assert backup.incarnation == "B2" and not backup.is_member
    assert not backup.follower.may_promote_itself
    with pytest.raises(AssertionError):
        pair.backup.promote()
    pair.settle()
    assert backup.is_member


def test_replies_wait_for_a_backup_that_catches_up_only_when_it_has_everything() -> None:
    pair = joined()
    pair.lose_link()
    pair.primary.go_alone()
    some_entries(pair, "a", 5)
    pair.primary.said.clear()
    pair.primary.room_bytes = 1
    pair.link("B2")
    pair.primary.inspect("d", "a0")
    pair.turn()
    assert phase_of(pair) is Phase.CATCHING_UP
    assert len(pair.primary.said) == 1, "nothing depends on it yet"
    pair.primary.room_bytes = 1 << 20
    pair.turn()
    assert phase_of(pair) is Phase.REQUIRED
    pair.primary.inspect("d", "a0")
    pair.turn()
    assert len(pair.primary.said) == 1
    pair.settle()
    assert len(pair.primary.said) == 2 and phase_of(pair) is Phase.MEMBER


def comes_back(pair: Pair) -> bytes:
    """What the primary begins with when the lost backup comes back; in the end they agree."""
    pair.link("B2")
    kind = first_message(pair)[0]
    pair.settle()
    assert phase_of(pair) is Phase.MEMBER
    pair.assert_agreed()
    return kind


def test_a_snapshot_it_is_when_the_backlog_has_dropped_what_it_lacks() -> None:
    for room, kind in ((1 << 20, stream.CONTINUE), (1_000, stream.BEGIN)):
        pair = joined()
        some_entries(pair, "a")
        pair.settle()
        pair.lose_link()
        pair.primary.replica.backlog.bytes_max = room
        pair.primary.go_alone()
        pair.primary.replica.backlog.bytes_max = room
        some_entries(pair, "b", 10)
        assert comes_back(pair) == kind


def test_a_snapshot_it_is_when_the_histories_differ() -> None:
    # Both began at the same offset and have the same entries: only the name tells.
    pair = Pair()
    pair.primary.lock("c", "a", "r1")
    pair.join()
    ours = pair.backup.replica.point
    for history, differs in (("the history", False), ("another", True)):
        other = SimNode("X")
        other.replica.begin_history(history, WALL_CLOCK_US)
        other.lock("c", "a", "r1")
        other.end_turn()
        assert other.replica.point[1:] == ours[1:]
        other.attach("B2", ours)
        assert (other.cut is not None) == differs
        other.close_cut()


def test_a_snapshot_it_is_for_a_tail_that_was_never_acknowledged() -> None:
    # A deposed primary that kept its state would stand where no backup ever was.
    for lost in range(4):
        pair = joined()
        some_entries(pair, "a")
        pair.settle()
        for n in range(lost):
            pair.primary.lock("c", f"lost{n}", f"lost{n}")
            pair.primary.end_turn()  # its frame never arrives
        point = pair.primary.replica.point
        pair.backup.promote()
        swapped(pair)
        some_entries(pair, "b", 300)
        cut = pair.primary.replica.attach("P2", point)
        assert (cut is None) == (lost == 0)
        pair.primary.cut = cut
        pair.primary.drop_joining_backup()


def test_a_tail_that_reaches_the_offsets_of_the_new_reign_is_not_taken_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The skip makes that impossible; without it the epoch and the checksum tell them apart.
    monkeypatch.setattr(limits, "UNACKED_ENTRIES_MAX", 0)
    pair = joined()
    for n in range(3):
        pair.primary.lock("c", f"lost{n}", f"lost{n}")
        pair.primary.end_turn()
    point = pair.primary.replica.point
    pair.backup.replica.promote(View(3, "B", ("B",)), pair.backup.replica.view, 0)
    swapped(pair)
    some_entries(pair, "b", 5)
    first = pair.primary.replica.backlog.first_offset
    assert first <= point.offset <= pair.primary.replica.state.offset
    assert pair.primary.replica.backlog.position_behind(point) is None
    pair.backup.stand_down("P2")
    pair.join()
    pair.assert_agreed()


def test_a_node_without_a_whole_state_names_no_point() -> None:
    pair = Pair()
    some_entries(pair, "a", 50)
    pair.primary.items_per_slice = 5
    pair.link()
    pair.turn()
    pair.deliver()
    assert pair.backup.replica.is_loading and phase_of(pair) is Phase.SNAPSHOT
    pair.lose_link()
    assert comes_back(pair) == stream.BEGIN


def test_one_that_was_lost_while_it_caught_up_goes_on_from_there() -> None:
    pair = joined()
    pair.lose_link()
    pair.primary.go_alone()
    some_entries(pair, "a", 5)
    pair.primary.room_bytes = 1
    pair.link("B2")
    pair.turn()
    pair.deliver()
    assert phase_of(pair) is Phase.CATCHING_UP and pair.backup.replica.incarnation == "B2"
    assert pair.backup.replica.state.offset == WALL_CLOCK_US + 1
    pair.lose_link()
    pair.primary.room_bytes = 1 << 20
    pair.link("B3")
    assert first_message(pair)[0] == stream.CONTINUE
    pair.settle()
    assert pair.primary.replica.view.members == ("P", "B3")
    pair.assert_agreed()


def test_one_that_comes_back_and_is_slower_than_the_writes_is_dropped_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "BACKLOG_BYTES_MAX", 2_000)
    pair = joined()
    pair.lose_link()
    pair.primary.go_alone()
    some_entries(pair, "a", 1)
    pair.primary.room_bytes = 0
    pair.link("B2")
    some_entries(pair, "b", 20)
    assert phase_of(pair) is Phase.CATCHING_UP
    pair.primary.room_bytes = 1
    with pytest.raises(BacklogOverrun):
        pair.turn()
    pair.lose_link()
    pair.primary.room_bytes = 1 << 20
    assert comes_back(pair) == stream.BEGIN


def test_a_stream_of_a_lower_epoch_is_not_gone_on_from() -> None:
    pair = joined()
    backup = pair.backup.replica
    with pytest.raises(StaleStream):
        backup.follower.on_continue(1, 1, "P", 0, 0, "B2")
    assert backup.incarnation == "B" and backup.is_member
    with pytest.raises(AssertionError):
        SimNode("E").replica.follower.on_continue(1, 1, "P", 0, 0, "E2")


def test_state_time_is_told_anew_to_one_that_comes_back() -> None:
    pair = joined()
    some_entries(pair, "a", 1)
    pair.settle()
    pair.lose_link()
    pair.primary.go_alone()
    pair.primary.sleep(5_000)
    pair.backup.sleep(4_000)  # its clock is slow, or it was not read
    pair.join("B2")
    assert pair.backup.replica.state_time_ms() == pair.primary.replica.state_time_ms() - 1


def test_a_primary_that_knew_of_no_peer_keeps_a_backlog_from_its_first_backup_on() -> None:
    pair = Pair()
    pair.primary.replica.keeps_backlog = False
    some_entries(pair, "before")
    assert pair.primary.replica.backlog.end == 0
    pair.join()
    some_entries(pair, "a")
    pair.settle()
    pair.lose_link()
    pair.primary.go_alone()
    some_entries(pair, "b")
    assert comes_back(pair) == stream.CONTINUE


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_a_backup_that_comes_and_goes_at_any_pace_holds_the_same_in_the_end(seed: int) -> None:
    dice = random.Random(seed)
    pair, kinds = joined(), []
    for round_ in range(6):
        pair.primary.items_per_slice = dice.randrange(1, 9)
        pair.primary.room_bytes = dice.choice([1, 300, 5_000])
        for n in range(dice.randrange(30)):
            name, reqid = f"n{dice.randrange(20)}", f"x{round_}.{n}"
            dice.choice([pair.primary.lock, pair.primary.unlock])("c", name, reqid)
            dice.choice([pair.turn, pair.deliver, pair.ack, pair.round])()
            pair.primary.sleep(dice.randrange(9))
        pair.lose_link()
        if pair.primary.replica.blocked:
            pair.primary.go_alone()
        some_entries(pair, f"alone{round_}.", dice.randrange(9))
        pair.link(f"B{round_ + 2}")
        kinds.append(first_message(pair)[0])
    pair.settle()
    assert phase_of(pair) is Phase.MEMBER, seed
    pair.assert_agreed()
    assert stream.CONTINUE in kinds, seed


# -- the checksum goes on -------------------------------------------------------------------------


def test_the_checksum_is_chained_through_whatever_happens_to_the_pair() -> None:
    pair = Pair()
    some_entries(pair, "before")
    assert pair.primary.replica.checksum != 0
    pair.link()  # by snapshot
    begin = stream.BEGIN, b"1", b"P", b"%d" % pair.primary.replica.checksum
    assert tuple(first_message(pair)[:4]) == begin
    pair.settle()
    pair.assert_agreed()
    pair.lose_link()
    pair.primary.go_alone()
    some_entries(pair, "alone")
    pair.join("B2")  # by partial resync
    some_entries(pair, "paired")
    pair.settle()
    pair.assert_agreed()
    before = pair.backup.replica.checksum
    pair.backup.promote()
    swapped(pair)
    batch = pair.primary.replica.backlog.batch_at(0)
    assert batch is not None
    skip = stream.chain(before, batch.epoch, batch.time_ms, batch.payload, [0])
    assert batch.checksum == skip == pair.primary.replica.checksum, "of the EPOCH entry"
    pair.backup.stand_down("P2")
    pair.join()
    pair.assert_agreed()


def test_what_differs_after_a_partial_resync_stops_the_backup() -> None:
    pair = joined()
    pair.lose_link()
    pair.primary.go_alone()
    some_entries(pair, "a")
    pair.link("B2")
    pair.backup.replica.state.locks.grant(b"a1", 1, b"x", b"x", 0)  # a bug, say
    pair.turn()
    with pytest.raises(Diverged):
        pair.deliver()
    # The process ends; had it said anything before, that would not have been taken for an ack.
    ((_, *fields),) = messages_of(pair.backup.replica.follower.ack())
    with pytest.raises(ValueError):
        pair.primary.replica.on_ack(*map(int, fields))
    assert phase_of(pair) is Phase.REQUIRED


# -- promotion ------------------------------------------------------------------------------------


def unaware() -> Pair:
    """The backup's admission was decided, and neither node has been told."""
    pair = Pair()
    pair.link()
    pair.turn()
    pair.deliver()
    replica = pair.primary.replica
    while phase_of(pair) is not Phase.REQUIRED:
        pair.ack()
        pair.turn()
        pair.deliver()
    for message in messages_of(pair.to_primary.lying):
        replica.on_ack(int(message[1]), int(message[2]), int(message[3]))
    assert replica.proposal() == View(2, "P", ("P", "B"))
    return pair


def test_a_member_that_was_never_told_is_promoted_behind_the_view_that_says_so() -> None:
    backup = unaware().backup.replica
    assert backup.view == View(1, "P", ("P",)) and not backup.is_member
    after = View(2, "P", ("P", "B"))
    for view, behind in (
        (View(2, "B", ("B",)), View(1, "P", ("P",))),  # no member there
        (View(2, "B", ("B",)), after),
        (View(4, "B", ("B",)), after),
        (View(3, "B", ("P", "B")), after),
        (View(3, "P", ("P",)), after),
        (View(1, "B", ("B",)), View(0, "P", ("P", "B"))),  # behind what it has seen
    ):
        with pytest.raises(AssertionError):
            backup.promote(view, behind, 0)
    backup.promote(View(3, "B", ("B",)), after, 0)
    assert backup.role is Role.PRIMARY and backup.view == View(3, "B", ("B",))


def test_from_the_proposal_on_no_ack_makes_a_member_before_it_is_told() -> None:
    pair = unaware()
    primary = pair.primary.replica
    primary.propose()
    with pytest.raises(AssertionError):
        primary.propose()
    with pytest.raises(AssertionError):
        pair.primary.drop_joining_backup()
    pair.to_primary.lying = b""
    pair.primary.lock("c", "a", "r1")
    pair.turn()
    assert pair.primary.said == []
    pair.deliver()
    for message in messages_of(pair.to_primary.lying):
        pair.primary.release(primary.on_ack(*(int(field) for field in message[1:])))
    pair.to_primary.lying = b""
    assert len(pair.primary.said) == 1, "it has the entry: the reply may leave"
    assert phase_of(pair) is Phase.PROPOSED and primary.view.epoch == 1
    primary.admit(View(2, "P", ("P", "B")), may_promote_itself=True)
    pair.settle()
    assert phase_of(pair) is Phase.MEMBER and pair.backup.replica.is_member


def test_a_backup_that_is_lost_after_the_proposal_blocks_until_both_are_decided() -> None:
    pair = unaware()
    primary = pair.primary.replica
    with pytest.raises(AssertionError):
        primary.adopt(View(2, "P", ("P", "B")))
    primary.propose()
    pair.lose_link()
    pair.primary.lock("c", "a", "r1")
    pair.turn()
    assert pair.primary.said == [] and primary.mode == "blocked"
    for view in (View(2, "P", ("P", "X")), View(3, "P", ("P", "B")), View(2, "B", ("P", "B"))):
        with pytest.raises(AssertionError):
            primary.adopt(view)
    primary.adopt(View(2, "P", ("P", "B")))
    assert pair.primary.said == [], "that it was admitted decides nothing about its loss"
    pair.primary.go_alone()
    assert primary.view == View(3, "P", ("P",)) and len(pair.primary.said) == 1


# -- the planned change of roles ------------------------------------------------------------------


def test_a_primary_is_quiet_when_its_backup_has_everything_and_every_reply_has_left() -> None:
    pair = Pair()
    assert not pair.primary.replica.is_quiet, "alone"
    pair.link()
    while phase_of(pair) is not Phase.MEMBER:
        assert not pair.primary.replica.is_quiet, phase_of(pair)
        pair.round()
    pair.settle()
    assert pair.primary.replica.is_quiet


def not_acknowledged(pair: Pair) -> None:
    pair.primary.replica.beat()
    pair.turn()


def not_sent(pair: Pair) -> None:
    pair.primary.lock("c", "a", "r1")


def held_back(pair: Pair) -> None:
    pair.primary.inspect("c", "a")
    pair.turn()


def without_its_backup(pair: Pair) -> None:
    pair.lose_link()


def an_answer_is_not_queued(pair: Pair) -> None:
    pair.primary.replica.executor.answered.append((["c"], 7))


@pytest.mark.parametrize(
    "spoil",
    [not_acknowledged, not_sent, held_back, without_its_backup, an_answer_is_not_queued],
)
def test_what_is_not_quiet_is_not_handed_over(spoil: Callable[[Pair], None]) -> None:
    pair = joined()
    spoil(pair)
    assert not pair.primary.replica.is_quiet
    with pytest.raises(AssertionError):
        pair.primary.replica.hand_over()


@pytest.mark.parametrize("is_at_rest", [True, False])
def test_an_ack_that_is_asked_for_is_one_of_a_frame_that_was_sent_since(is_at_rest: bool) -> None:
    pair = joined()
    if not is_at_rest:
        pair.primary.lock("c", "a", "r1")
        pair.turn()
        pair.deliver()  # its ack is under way
    primary = pair.primary.replica
    assert primary.outbound is not None
    wanted = primary.ask_for_ack()
    pair.ack()
    assert primary.outbound.acked_frame < wanted and not primary.outbound.unacked
    pair.turn()
    kind, _, frame, _ = first_message(pair)
    assert (kind, int(frame)) == (stream.BEAT, wanted)
    pair.deliver()
    pair.ack()
    assert primary.outbound.acked_frame == wanted and primary.is_quiet


@pytest.mark.parametrize(
    ("ahead", "accepted"), [(0, False), (1, True), (2, True), (3, False), (10**18, False)]
)
def test_a_proposal_is_at_most_two_epochs_ahead_of_what_the_backup_knows(
    ahead: int, accepted: bool
) -> None:
    """Its own admission, of which it has not heard, and the view without it."""
    backup = joined().backup.replica
    before = backup.view
    answer = backup.answer("P", before.epoch + ahead)
    assert answer.accepted == accepted and backup.is_member != accepted
    assert backup.view == (View(before.epoch + ahead, "P", ("P",)) if accepted else before)


def handed_over() -> Pair:
    """The primary has told its backup to take over; that lies on the wire."""
    pair = joined()
    pair.primary.lock("c", "a", "r1")
    pair.settle()
    assert pair.to_backup.lying == b""
    pair.to_backup.lying += pair.primary.replica.hand_over()
    ((kind, *_),) = messages_of(pair.to_backup.lying)
    assert kind == stream.HANDOVER
    return pair


def test_a_primary_that_has_handed_over_says_nothing_and_nobody_bypasses() -> None:
    pair = handed_over()
    primary = pair.primary.replica
    assert primary.blocked and primary.stalled and not primary.is_quiet
    pair.primary.lock("d", "b", "r2")
    pair.primary.inspect("e", "a")
    before = pair.to_backup.lying
    primary.beat()
    pair.turn()
    assert pair.to_backup.lying == before and len(pair.primary.said) == 1
    pair.deliver()
    ((kind, *_),) = messages_of(pair.to_primary.lying)
    assert kind == stream.ACK
    pair.ack()
    assert primary.stalled and primary.blocked, "an ack is not the answer that is waited for"
    assert len(pair.primary.said) == 1


def test_the_backup_takes_over_and_the_old_primary_comes_back_with_its_state() -> None:
    pair = handed_over()
    pair.deliver()
    pair.backup.promote()
    assert pair.primary.replica.step_aside(pair.backup.replica.view) == ([], [])
    old = pair.primary.replica
    assert (old.role, old.synced, old.is_member) == (Role.BACKUP, True, False)
    assert old.answer().standing is Standing.STATE and old.view.primary == "B"
    assert not old.stalled and not old.blocked and not old.holding
    stood_at = old.point
    swapped(pair)
    some_entries(pair, "b")
    pair.link("P2")
    assert first_message(pair)[0] == stream.CONTINUE and old.point == stood_at
    pair.settle()
    assert pair.primary.replica.view == old.view == View(4, "B", ("B", "P2"))
    pair.assert_agreed()
    pair.primary.lock("c", "a", "r1")
    pair.settle()
    assert pair.primary.said[-1] == ("c", str(WALL_CLOCK_US + 1)), "a repeat gets the first answer"


def test_roles_may_change_again_and_again() -> None:
    pair = joined()
    for n in range(5):
        some_entries(pair, f"n{n}.")
        pair.settle()
        pair.to_backup.lying += pair.primary.replica.hand_over()
        pair.deliver()
        pair.backup.promote()
        pair.primary.replica.step_aside(pair.backup.replica.view)
        pair.primary.said.clear()
        swapped(pair)
        pair.link(f"again{n}")
        assert first_message(pair)[0] == stream.CONTINUE, n
        pair.settle()
        pair.assert_agreed()
    assert pair.primary.replica.view.epoch == 12 and not pair.primary.closed


def test_those_who_stood_in_line_are_named_when_a_primary_steps_aside() -> None:
    pair = joined()
    pair.primary.lock("c", "a", "r1")
    pair.primary.lock("d", "a", "r2", "WAIT", "9000")
    pair.primary.lock("e", "a", "r3", "WAIT", "9000")
    pair.primary.lock("f", "a", "r3", "WAIT", "9000")
    pair.settle()
    pair.to_backup.lying += pair.primary.replica.hand_over()
    pair.deliver()
    pair.backup.promote()
    tickets, abandoned = pair.primary.replica.step_aside(pair.backup.replica.view)
    assert sorted(map(str, tickets)) == ["d", "e", "f"] and abandoned == []
    assert pair.primary.waiting == []


def test_only_a_primary_that_has_handed_over_steps_aside_and_only_for_a_later_view() -> None:
    later = View(3, "B", ("B",))
    for node in (joined().primary, joined().backup, SimNode("E")):
        with pytest.raises(AssertionError):
            node.replica.step_aside(later)
    for view in (View(2, "B", ("B",)), View(1, "B", ("B",))):
        with pytest.raises(AssertionError):
            handed_over().primary.replica.step_aside(view)
    pair = handed_over()
    an_answer_is_not_queued(pair)
    with pytest.raises(AssertionError):
        pair.primary.replica.step_aside(later)  # nobody would be told
    pair = handed_over()
    pair.primary.lock("c", "b", "r2")
    with pytest.raises(AssertionError):
        pair.primary.replica.step_aside(later)  # an entry that the other one does not have


def test_what_is_held_back_when_a_primary_steps_aside_is_named_and_never_said() -> None:
    pair = handed_over()
    pair.primary.inspect("d", "a")
    pair.turn()
    said = list(pair.primary.said)
    pair.deliver()
    pair.backup.promote()
    tickets, abandoned = pair.primary.replica.step_aside(pair.backup.replica.view)
    assert tickets == [] and [client for client, _ in abandoned] == ["d"]
    assert not pair.primary.replica.held_back and pair.primary.said == said


def test_a_hand_over_that_comes_to_nothing_leaves_all_as_it_was() -> None:
    pair = handed_over()
    pair.primary.inspect("d", "a")
    pair.turn()
    pair.lose_link()
    pair.primary.go_alone()
    assert pair.primary.said[-1] == ("d", "held by r1")
    assert not pair.primary.replica.stalled and pair.primary.replica.mode == "solo"
    assert comes_back(pair) == stream.CONTINUE


def test_a_handover_is_a_frame_like_any_other() -> None:
    pair = handed_over()
    backup = pair.backup.replica
    frame = int(first_message(pair)[2])
    for wrong in (frame - 1, frame + 1):
        with pytest.raises(Diverged):
            backup.follower.on_handover(2, wrong)
    with pytest.raises(StaleStream):
        backup.follower.on_handover(1, frame)
    assert backup.follower.ack() == b""
    backup.follower.on_handover(2, frame)
    assert backup.follower.ack() == pack(stream.ACK, 2, frame, backup.state.offset)


# -- quarantine -----------------------------------------------------------------------------------


def test_in_quarantine_no_lock_is_granted_and_everything_else_goes_on() -> None:
    pair = Pair(quarantine_ms=1_000)
    node = pair.primary
    before = digest(node.replica.state)
    node.lock("c", "a", "r1")
    node.lock("c", "a", "r1", "PX", "50", "WAIT", "500")
    assert node.said == [("c", "-TRYAGAIN")] * 2 and node.waiting == []
    assert digest(node.replica.state) == before, "nothing was done (X2)"
    node.said.clear()
    node.unlock("c", "a", "u1")
    node.inspect("c", "a")
    node.verify("c", "a", "7")
    node.renew("c", "a", "7", "50")
    node.delete("c", "a")
    assert [answer for _, answer in node.said] == ["0", "free", "0", "0", "0"]
    pair.turn()
    node.sleep(999)
    node.lock("c", "a", "r1")
    assert node.said[-1] == ("c", "-TRYAGAIN")
    node.sleep(1)
    node.lock("c", "a", "r1")
    assert int(node.said[-1][1]) > 0, "not done was true: the same request may be granted"


def test_a_request_that_was_answered_in_quarantine_is_answered_alike_after_it() -> None:
    pair = Pair(quarantine_ms=1_000)
    pair.primary.undo("c", "a", "u1", "r1")  # r1 is never to be granted
    pair.primary.lock("c", "a", "r1")
    pair.primary.sleep(1_000)
    pair.primary.lock("c", "a", "r1")
    assert [answer for _, answer in pair.primary.said] == ["0", "0", "0"]


@pytest.mark.parametrize("way", ["snapshot", "partial resync"])
def test_a_promoted_backup_keeps_the_quarantine(way: str) -> None:
    pair = joined(quarantine_ms=1_000)
    if way == "partial resync":
        pair.lose_link()
        pair.primary.go_alone()
        pair.join("B2")
    pair.primary.sleep(400)
    pair.primary.unlock("c", "a", "u1")
    pair.settle()
    assert pair.backup.replica.state.grants_from_ms == 2_000
    pair.backup.promote()
    pair.backup.sleep(599)
    pair.backup.lock("c", "a", "r1")
    assert pair.backup.said[-1] == ("c", "-TRYAGAIN")
    pair.backup.sleep(2)  # one more: its estimate of state time is never ahead
    pair.backup.lock("c", "a", "r1")
    assert int(pair.backup.said[-1][1]) > 0


def test_a_new_history_has_a_quarantine_only_if_it_was_told_to() -> None:
    pair = Pair()
    assert pair.primary.replica.state.grants_from_ms == 0
    pair.primary.lock("c", "a", "r1")
    assert int(pair.primary.said[-1][1]) > 0
    assert "grants_from_ms" in Header._fields, "a snapshot carries it"


def test_a_point_of_no_history_is_nowhere() -> None:
    pair = Pair()
    cut = pair.primary.replica.attach("B", Point("", 0, 0, 0))
    assert cut is not None
    cut.close()
