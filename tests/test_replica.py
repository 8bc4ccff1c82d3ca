"""Two replicas back to back, through their bytes: who may say what, and when (I3, I5, I6, I7)."""

from __future__ import annotations

import random
from collections.abc import Callable

import hiredis
import pytest
from harness.replicas import WALL_CLOCK_US, Pair, SimNode, messages_of, pack
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.server.core import limits, reply_cache, stream
from holdfast.server.core.failover import Standing
from holdfast.server.core.follower import Diverged, StaleStream
from holdfast.server.core.replica import BacklogOverrun, Phase, Role
from holdfast.server.core.reply_cache import Refused
from holdfast.server.core.snapshot import Header, digest
from holdfast.server.core.state import LOCK
from holdfast.server.core.view import View


def phase_of(pair: Pair) -> Phase:
    return pair.primary.replica.phase


WAITING = (Phase.REQUIRED, Phase.PROPOSED, Phase.MEMBER)


def joined(*, min_backups: int = 0) -> Pair:
    pair = Pair(min_backups=min_backups)
    pair.join()
    return pair


def at_phase(phase: Phase, *, min_backups: int = 0) -> Pair:
    """A pair on its way, stopped right where the primary has come to ``phase``."""
    pair = Pair(min_backups=min_backups)
    pair.primary.lock("before", "before", "r0")
    pair.primary.said.clear()
    pair.link()
    steps: list[Callable[[], None]] = [pair.turn, pair.deliver, pair.ack]
    for n in range(60):
        if phase_of(pair) is phase:
            return pair
        steps[n % 3]()
    raise AssertionError(f"never at {phase}, but at {pair.primary.replica.phase}")


# -- joining --------------------------------------------------------------------------------------


def test_a_backup_that_joins_gets_everything_and_is_a_member() -> None:
    pair = Pair()
    for n in range(10):
        pair.primary.lock("c", f"n{n}", f"r{n}")
    pair.join()
    pair.assert_agreed()
    assert pair.primary.replica.view == pair.backup.replica.view == View(2, "P", ("P", "B"))
    assert pair.primary.replica.mode == pair.backup.replica.mode == "paired"
    assert pair.backup.replica.follower.may_promote_itself


def test_the_phases_come_in_order_and_only_the_later_ones_hold_back() -> None:
    for phase in Phase:
        if phase is Phase.NONE:
            continue
        pair = at_phase(phase)
        pair.primary.lock("c", "a", "r1")
        pair.primary.inspect("d", "a")
        pair.turn()
        at_once = phase < Phase.REQUIRED
        assert bool(pair.primary.said) == at_once, phase
        pair.settle()
        assert [client for client, _ in pair.primary.said] == ["c", "d"]
        pair.assert_agreed()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_a_backup_joins_under_writes_whatever_the_pace(seed: int) -> None:
    dice = random.Random(seed)
    pair = Pair()
    for n in range(dice.randrange(40)):
        pair.primary.lock("c", f"n{n}", f"@c{n % 5}:{n}")
    pair.primary.items_per_slice = dice.randrange(1, 20)
    pair.primary.room_bytes = dice.choice([1, 100, 5_000])
    pair.link()
    for n in range(120):
        for _ in range(dice.randrange(3)):
            name, reqid = f"n{dice.randrange(40)}", f"x{n}.{dice.random()}"
            dice.choice([pair.primary.lock, pair.primary.unlock])("c", name, reqid)
        match dice.randrange(6):
            case 0 | 1 | 2:
                pair.turn()
            case 3:
                pair.deliver(dice.randrange(200))
            case 4:
                pair.deliver()
            case _:
                pair.ack()
        if dice.random() < 0.1:
            pair.primary.sleep(dice.randrange(1_000))
    pair.settle()
    assert phase_of(pair) is Phase.MEMBER
    pair.assert_agreed()
    assert not pair.primary.replica.held_back and not pair.primary.replica.held_back_bytes


def test_a_backup_is_not_proposed_before_it_has_everything_appended_before() -> None:
    pair = at_phase(Phase.CATCHING_UP)
    for n in range(3):
        pair.primary.lock("c", f"n{n}", f"r{n}")
        pair.primary.room_bytes = 1
        pair.turn()
    while phase_of(pair) is not Phase.REQUIRED:
        pair.turn()
    assert pair.primary.replica.proposal() is None
    first_frame = messages_of(pair.to_backup.lying)[0]
    pair.deliver(len(pack(*first_frame)))
    pair.ack()
    assert phase_of(pair) is Phase.REQUIRED, "one frame of several is acknowledged"
    pair.settle()
    assert phase_of(pair) is Phase.MEMBER


def test_a_backup_is_no_member_until_it_has_seen_the_view() -> None:
    pair = at_phase(Phase.PROPOSED)
    assert not pair.backup.replica.is_member
    with pytest.raises(AssertionError):
        pair.backup.promote()
    pair.turn()
    pair.deliver()
    assert pair.backup.replica.is_member


def test_the_view_may_be_sent_in_a_turn_that_has_appended_already() -> None:
    # The ack that completes the joining comes behind a request in the same turn, and the backup
    # reads VIEW and ENTRIES in two pieces: its ack of VIEW is at the offset before the request.
    pair = at_phase(Phase.REQUIRED)
    pair.turn()
    pair.deliver()
    pair.primary.lock("c", "a", "r1")
    pair.ack()
    assert phase_of(pair) is Phase.PROPOSED
    pair.turn()
    view, _ = messages_of(pair.to_backup.lying)
    assert view[0] == stream.VIEW
    pair.deliver(len(pack(*view)))
    pair.ack()
    assert phase_of(pair) is Phase.MEMBER and pair.primary.said == []
    pair.settle()
    assert len(pair.primary.said) == 1
    pair.assert_agreed()


def test_an_ack_before_the_snapshot_has_been_sent_does_not_end_it() -> None:
    pair = Pair()
    pair.primary.lock("c", "a", "r")
    pair.primary.items_per_slice = 1
    pair.link()
    pair.primary.replica.on_ack(1, 0, 0)
    assert phase_of(pair) is Phase.SNAPSHOT
    pair.settle()
    assert phase_of(pair) is Phase.MEMBER


def test_only_a_primary_without_a_backup_attaches_one_and_only_between_turns() -> None:
    with pytest.raises(AssertionError):
        joined().primary.attach("C")
    with pytest.raises(AssertionError):
        SimNode("E").attach("C")
    pair = Pair()
    pair.primary.lock("c", "a", "r")
    with pytest.raises(AssertionError):
        pair.primary.attach("C")


# -- the commit rule ------------------------------------------------------------------------------


def test_nothing_leaves_before_the_ack_of_the_frame_of_its_turn() -> None:
    pair = joined()
    for n in range(4):
        pair.primary.lock("c", f"n{n}", f"r{n}")
        pair.primary.inspect("d", f"n{n}")
        pair.turn()
    assert pair.primary.said == []
    frames = messages_of(pair.to_backup.lying)
    assert len(frames) == 4
    for n, frame in enumerate(frames, 1):
        pair.deliver(len(pack(*frame)))
        assert len(pair.primary.said) == 2 * (n - 1)
        pair.ack()
        assert len(pair.primary.said) == 2 * n, "an ack releases its own turn, and no other"


def test_a_read_waits_for_a_beat_and_one_beat_serves_all_reads_of_a_turn() -> None:
    pair = joined()
    for n in range(5):
        pair.primary.inspect(f"c{n}", "a")
    pair.turn()
    (beat,) = messages_of(pair.to_backup.lying)
    assert beat[0] == stream.BEAT
    assert pair.primary.said == []
    pair.deliver()
    pair.ack()
    assert pair.primary.said == [(f"c{n}", "free") for n in range(5)]


def test_a_read_is_not_released_by_the_ack_of_an_earlier_turn() -> None:
    pair = joined()
    pair.primary.lock("c", "a", "r1")
    pair.turn()
    pair.deliver()
    pair.primary.inspect("d", "a")
    pair.turn()
    pair.ack()
    assert [client for client, _ in pair.primary.said] == ["c"]
    pair.settle()
    assert [client for client, _ in pair.primary.said] == ["c", "d"]


def test_a_turn_without_anything_to_say_sends_nothing() -> None:
    pair = joined()
    pair.turn()
    assert pair.to_backup.lying == b""
    pair.deliver()
    assert pair.to_primary.lying == b""


def test_acks_of_an_earlier_epoch_release_nothing() -> None:
    # Two acks of epoch 1 are under way: the first has the backup admitted, in epoch 2.
    pair = at_phase(Phase.REQUIRED)
    primary = pair.primary.replica
    pair.turn()
    pair.deliver()
    pair.primary.lock("c", "a", "r1")
    pair.turn()
    (entries,) = messages_of(pair.to_backup.lying)
    assert entries[0] == stream.ENTRIES
    pair.deliver()
    acks = messages_of(pair.to_primary.lying)
    assert [(ack[0], ack[1]) for ack in acks] == [(stream.ACK, b"1")] * 2
    assert int(acks[1][2]) == stream.decode_entries(entries[1]).frame
    pair.ack()
    assert phase_of(pair) is Phase.PROPOSED and primary.view.epoch == 2
    assert pair.primary.said == [] and len(primary.held_back) == 1
    assert primary.on_ack(1, int(acks[1][2]), primary.state.offset) == []
    assert pair.primary.said == [], "what was under way was of the earlier epoch"
    pair.settle()
    assert len(pair.primary.said) == 1


def test_an_ack_of_a_later_epoch_releases_nothing() -> None:
    pair = joined()
    pair.primary.lock("c", "a", "r1")
    pair.turn()
    primary = pair.primary.replica
    assert primary.outbound is not None
    epoch, frame = primary.view.epoch + 1, primary.outbound.frame
    assert primary.on_ack(epoch, frame, primary.state.offset) == []
    assert len(primary.held_back) == 1


def test_a_repeat_and_a_refusal_wait_like_everything_else() -> None:
    pair = joined()
    pair.primary.lock("c", "a", "@c:2")
    pair.settle()
    pair.primary.said.clear()
    pair.primary.lock("c", "a", "@c:2")
    pair.primary.lock("d", "a", "@c:1")
    pair.primary.lock("e", "b", "@c:2")
    pair.primary.lock("f", "b", "@c")
    pair.turn()
    assert pair.primary.said == []
    pair.settle()
    token = str(WALL_CLOCK_US + 1)
    assert pair.primary.said == [
        ("c", token), ("d", "-REQUESTGONE"), ("e", "-ERR"), ("f", "-ERR")
    ]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_was_said_is_in_the_state_of_a_backup_that_takes_over(seed: int) -> None:
    """The whole promise of a member: each answer that left can be had from it again (I2, I4)."""
    dice = random.Random(seed)
    pair = joined()
    asked = dict[str, tuple[str, str]]()
    for n in range(80):
        match dice.randrange(8):
            case 0 | 1 | 2:
                name, client = f"n{dice.randrange(3)}", f"c{n}"
                asked[client] = (dice.choice(["lock", "unlock"]), name)
                getattr(pair.primary, asked[client][0])(client, name, f"r{n}")
            case 3 | 4:
                pair.turn()
            case 5 | 6:
                pair.deliver(dice.randrange(1, 300))
            case _:
                pair.ack()
    said = dict(pair.primary.said)
    pair.backup.promote()
    for client, answer in said.items():
        command, name = asked[client]
        getattr(pair.backup, command)("again", name, "r" + client[1:])
        assert pair.backup.said[-1] == ("again", answer), (seed, client)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_through_any_comings_and_goings_all_is_said_once_or_closed(seed: int) -> None:
    """Joins, losses and time at random: no reply is held back for ever, none is said twice."""
    dice = random.Random(seed)
    pair, count, incarnations = Pair(), 0, 0
    for _ in range(300):
        primary = pair.primary.replica
        match dice.randrange(16):
            case 0 | 1 | 2 | 3:
                count += 1
                name = f"n{dice.randrange(9)}"
                dice.choice([pair.primary.lock, pair.primary.unlock])(
                    f"c{count}", name, f"r{count}"
                )
            case 4:
                count += 1
                pair.primary.inspect(f"c{count}", "n1")
            case 5 | 6 | 7 | 8:
                pair.turn()
            case 9 | 10:
                pair.deliver(dice.choice([None, 5, 50, 500]))
            case 11 | 12:
                pair.ack()
            case 13:
                pair.primary.sleep(dice.randrange(300))
                primary.beat()
                primary.forget()
            case 14:
                if dice.random() < 0.3 and not primary.blocked:
                    pair.lose_link()
            case _:
                if primary.blocked:
                    pair.primary.go_alone()
                elif primary.phase is Phase.NONE:
                    incarnations += 1
                    if dice.random() < 0.5:  # the same process once more
                        pair.backup.replica.renew_incarnation(f"B{incarnations}")
                    else:
                        pair.backup = SimNode(f"B{incarnations}", now_ms=dice.randrange(99_999))
                    pair.link()
        assert pair.primary.replica.held_back_bytes == sum(
            len(data) for _, _, replies, _ in primary.held_back for _, data in replies
        )
        if primary.phase not in WAITING:
            assert not primary.held_back, "nobody is there to release it"
    if pair.primary.replica.blocked:
        pair.primary.go_alone()
    pair.settle()
    assert sorted(c for c, _ in pair.primary.said) == sorted(f"c{n + 1}" for n in range(count))
    if phase_of(pair) is Phase.MEMBER:
        pair.assert_agreed()


# -- losing the backup ----------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [Phase.SNAPSHOT, Phase.CATCHING_UP, Phase.REQUIRED])
def test_a_joining_backup_that_is_lost_is_dropped_and_all_replies_leave(phase: Phase) -> None:
    pair = at_phase(phase)
    pair.primary.lock("c", "a", "r1")
    pair.turn()
    pair.lose_link()
    assert [client for client, _ in pair.primary.said] == ["c"]
    assert pair.primary.replica.mode == "solo" and pair.primary.replica.view.epoch == 1
    pair.primary.lock("d", "b", "r2")
    pair.turn()
    assert len(pair.primary.said) == 2
    pair.backup = SimNode("B2")
    pair.join()
    pair.assert_agreed()


@pytest.mark.parametrize("phase", [Phase.PROPOSED, Phase.MEMBER])
def test_one_that_may_have_been_promoted_blocks_the_primary_until_it_is_decided(
    phase: Phase,
) -> None:
    pair = at_phase(phase)
    pair.primary.lock("c", "a", "r1")
    pair.turn()
    pair.lose_link()
    with pytest.raises(AssertionError):
        pair.primary.drop_joining_backup()
    pair.primary.lock("d", "b", "r2")
    pair.primary.inspect("e", "b")
    pair.turn()
    assert pair.primary.replica.mode == "blocked"
    assert pair.primary.said == [] and pair.to_backup.lying == b""
    pair.primary.go_alone()
    assert [client for client, _ in pair.primary.said] == ["c", "d", "e"]
    assert pair.primary.replica.view == View(3, "P", ("P",))
    pair.backup = SimNode("B2")
    pair.join()
    pair.assert_agreed()


def test_a_primary_that_stands_down_closes_what_it_held_back() -> None:
    pair = joined()
    pair.primary.lock("c", "a", "r1")
    pair.turn()
    pair.lose_link()
    pair.primary.lock("d", "b", "r2")
    pair.turn()
    pair.primary.stand_down("P2")
    assert pair.primary.said == [] and pair.primary.closed == ["c", "d"]
    node = pair.primary.replica
    assert (node.role, node.incarnation, node.mode) == (Role.EMPTY, "P2", "recovery")
    assert not node.held_back and not node.holding and not node.state.locks.held
    assert node.answer().standing is Standing.HEARD


def test_a_reply_held_back_for_too_long_is_closed_and_no_other() -> None:
    pair = joined()
    pair.primary.lock("c", "a", "r1")
    pair.turn()
    pair.primary.sleep(6_000)
    pair.primary.lock("d", "b", "r2")
    pair.turn()
    pair.primary.sleep(limits.BLOCKED_MAX_MS - 6_000)
    assert pair.primary.replica.drop_overdue() == []
    pair.primary.sleep(1)
    pair.primary.close(pair.primary.replica.drop_overdue())
    assert pair.primary.closed == ["c"]
    pair.settle()
    assert [client for client, _ in pair.primary.said] == ["d"]
    assert pair.primary.replica.held_back_bytes == 0


def test_a_new_backup_that_acknowledges_releases_nothing_of_before_it() -> None:
    pair = joined()
    pair.primary.lock("c", "a", "r1")
    pair.turn()
    assert pair.primary.replica.outbound is not None
    frame = pair.primary.replica.outbound.frame
    pair.lose_link()
    pair.primary.go_alone()
    pair.backup = SimNode("B2")
    pair.link()
    assert pair.primary.replica.outbound is not None
    assert pair.primary.replica.outbound.frame >= frame, "frames go on without a gap"


# -- bounds ---------------------------------------------------------------------------------------


def test_at_the_limit_of_unacknowledged_entries_new_work_is_refused_and_repeats_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("holdfast.server.core.sender._UNACKED_LIMIT", 5)
    pair = joined()
    primary = pair.primary.replica
    assert primary.outbound is not None
    for n in range(9):
        pair.primary.lock("c", f"n{n}", f"r{n}")
    pair.turn()
    acked = primary.outbound.acked_offset
    assert pair.primary.said == [("c", "-TRYAGAIN")] * 4
    before = digest(primary.state)
    for command in (pair.primary.lock, pair.primary.unlock):
        command("d", "n0", "new")
        command("d", "new", "@d:1")
    pair.primary.undo("d", "n0", "new", "r0")
    primary.begin_turn(10 * limits.CLIENT_RETENTION_MS)
    primary.forget()
    assert digest(primary.state) == before, "nothing was appended, by timers neither"
    assert primary.state.offset == acked + 5
    pair.primary.said.clear()
    pair.primary.lock("e", "n1", "r1")
    pair.turn()
    assert pair.primary.said == [], "a repeat is recognised first, and waits like any"
    pair.settle()
    assert len(pair.primary.said) == 6
    pair.primary.lock("c", "more", "r99")
    pair.settle()
    assert pair.primary.said[-1] == ("c", str(acked + 6))


def test_what_a_promotion_skips_covers_all_that_was_appended_unacknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("holdfast.server.core.sender._UNACKED_LIMIT", 5)
    for lost in range(7):
        pair = joined()
        for n in range(lost):
            pair.primary.lock("c", f"n{n}", f"r{n}")
        pair.primary.end_turn()  # its frame never arrives
        used = pair.primary.replica.state.offset
        pair.backup.replica.promote(View(3, "B", ("B",)), pair.backup.replica.view, 0)
        pair.backup.lock("d", "a", "r")
        ((_, token),) = pair.backup.said
        assert int(token) > used


def test_puts_wait_for_a_joining_backup_that_lags_and_locks_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "JOINER_LAG_BYTES", 2_000)
    pair = Pair()
    pair.primary.put("c", "there", "x", "0")
    pair.turn()
    pair.primary.room_bytes = 0
    pair.link()
    pair.round()
    pair.primary.said.clear()
    for n in range(20):
        pair.primary.put("c", f"n{n}", "x" * 200, "0", f"r{n}")
        pair.turn()
    answers = [answer for _, answer in pair.primary.said]
    assert answers[0] == "1" and answers[-1] == "-TRYAGAIN" and sorted(set(answers)) == [
        "-TRYAGAIN", "1",
    ]  # fmt: skip
    pair.primary.lock("c", "a lock", "r")
    assert pair.primary.said[-1][1] != "-TRYAGAIN"
    pair.primary.room_bytes = 1 << 20
    pair.settle()
    pair.primary.put("c", "n19", "x" * 200, "0", "r19")
    pair.settle()
    assert pair.primary.said[-1][1] == "1", "what was refused was not done"
    pair.assert_agreed()


def test_a_backup_that_was_outrun_is_told_before_its_snapshot_is_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "BACKLOG_BYTES_MAX", 3_000)
    pair = Pair()
    pair.primary.lock("c", "a", "r")
    pair.turn()
    pair.link()  # a snapshot is cut, and none of it sent
    with pytest.raises(BacklogOverrun):
        for n in range(30):
            pair.primary.lock("c", f"n{n}", f"r{n}")
            pair.primary.replica.end_turn()
            pair.primary.replica.begin_turn(pair.primary.now_ms)


def test_a_backup_slower_than_the_writes_overruns_the_backlog(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "BACKLOG_BYTES_MAX", 300)
    pair = Pair()
    pair.primary.room_bytes = 0
    pair.link()
    pair.round()
    with pytest.raises(BacklogOverrun):
        pair.primary.room_bytes = 1
        for n in range(100):
            for m in range(3):
                pair.primary.lock("c", f"n{n}.{m}", f"r{n}.{m}")
            pair.primary.room_bytes = 1 if n > 50 else 0
            pair.turn()
            pair.deliver()
            pair.ack()
    pair.lose_link()
    pair.primary.sleep(1_000)
    pair.primary.lock("c", "after", "r")
    assert pair.primary.replica.state.time_ms == pair.primary.now_ms, "stamped in its own turn"
    pair.turn()
    pair.primary.room_bytes = 1 << 20
    pair.backup = SimNode("B2")
    pair.join()
    pair.assert_agreed()


def test_a_full_lock_table_refuses_new_grants_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "LOCKS_MAX", 3)
    pair = Pair()
    for n in range(3):
        pair.primary.lock("c", f"n{n}", f"r{n}")
    pair.turn()
    first = pair.primary.said[0]
    before = digest(pair.primary.replica.state)
    pair.primary.lock("c", "more", "r9")
    assert pair.primary.said[-1] == ("c", "-ERR")
    assert digest(pair.primary.replica.state) == before
    pair.primary.lock("c", "n0", "r0")
    assert pair.primary.said[-1] == first, "a repeat is answered"
    pair.primary.unlock("c", "n0", "u")
    pair.turn()
    pair.primary.lock("c", "more", "r9")
    assert int(pair.primary.said[-1][1]) > 0


# -- min-backups ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "phase", [Phase.SNAPSHOT, Phase.CATCHING_UP, Phase.REQUIRED, Phase.PROPOSED]
)
def test_with_min_backups_new_grants_wait_for_a_member_and_nothing_else_does(phase: Phase) -> None:
    pair = joined(min_backups=1)
    pair.primary.lock("c", "a", "r1")
    pair.settle()
    pair.lose_link()
    pair.primary.go_alone()
    pair.backup = SimNode("B2")
    pair.turn()
    pair.link()
    steps: list[Callable[[], None]] = [pair.turn, pair.deliver, pair.ack]
    for n in range(60):
        if phase_of(pair) is phase:
            break
        steps[n % 3]()
    assert phase_of(pair) is phase
    pair.primary.said.clear()
    before = pair.primary.replica.state.offset
    pair.primary.lock("d", "b", "r2")
    pair.primary.lock("d", "b", "r3", "OWNER", "me")
    assert pair.primary.said == [("d", "-NOREPLICAS")] * 2
    assert pair.primary.replica.state.offset == before, "before it touches any state (X2)"
    pair.primary.lock("e", "a", "r1")
    pair.primary.inspect("e", "a")
    pair.primary.unlock("e", "a", "u1")
    pair.settle()
    token = str(WALL_CLOCK_US + 1)
    assert pair.primary.said[2:] == [("e", token), ("e", f"held by {'r1'}"), ("e", "1")]
    pair.primary.lock("d", "b", "r2")
    pair.settle()
    assert int(pair.primary.said[-1][1]) > 0, "not done was true: the same request may be granted"


def test_with_min_backups_a_lone_primary_grants_nothing() -> None:
    pair = Pair(min_backups=1)
    pair.turn()
    pair.primary.lock("c", "a", "r1")
    pair.primary.unlock("c", "a", "u1")
    assert pair.primary.said == [("c", "-NOREPLICAS"), ("c", "0")]


# -- divergence, stale and broken streams ---------------------------------------------------------


def flipped(data: bytes, bit: int) -> bytes:
    at = bit // 8
    return data[:at] + bytes([data[at] ^ 1 << bit % 8]) + data[at + 1 :]


def a_batch_of_grants(node: SimNode) -> None:
    node.lock("c", "a", "r1", "OWNER", "me", "PX", "100")
    node.lock("d", "b", "r2")
    node.unlock("d", "b", "u1")


def a_batch_of_endings(node: SimNode) -> None:
    node.lock("d", "h", "r2", "WAIT", "9")
    node.undo("c", "h", "u2", "r2")  # REFUSE, UNDO
    node.unlock("c", "e", "u3")  # EXPIRE, UNLOCK


def a_batch_about_grants(node: SimNode) -> None:
    tokens = [held[0] for held in node.replica.state.locks.held.values()]
    node.renew("c", "l", str(tokens[0]), "9000")
    node.unlock_grant("c", "h", "u1", str(tokens[1]))
    node.delete("c", "f")


@pytest.mark.parametrize("requests", [a_batch_of_grants, a_batch_of_endings, a_batch_about_grants])
def test_any_bit_flipped_in_a_batch_stops_the_backup_before_it_acknowledges(
    requests: Callable[[SimNode], None],
) -> None:
    length, at = 1, 0
    while at < length:
        pair = joined()
        for name, lease_ms in (("l", 999), ("h", 999), ("f", 999), ("e", 5)):
            pair.primary.lock("c", name, "r", "PX", str(lease_ms))
        pair.settle()
        pair.primary.sleep(6)
        requests(pair.primary)
        pair.turn()
        ((_, header, payload),) = messages_of(pair.to_backup.lying)
        length = 8 * (len(header) + len(payload))
        spoilt = flipped(header + payload, at)
        message = [stream.ENTRIES, spoilt[: len(header)], spoilt[len(header) :]]
        backup = pair.backup.replica
        before = digest(backup.state)
        try:
            pair.backup.on_message(message)
        except (Diverged, AssertionError):
            pass  # the process ends, and is never promoted
        except (StaleStream, ValueError, hiredis.HiredisError):
            assert digest(backup.state) == before, f"bit {at} of {length}: it could be promoted"
        else:
            raise AssertionError(f"bit {at} of {length} makes no difference")
        assert backup.follower.ack() == b"", f"bit {at} of {length}"
        at += 1


def test_an_answer_that_differs_stops_the_backup() -> None:
    pair = joined()
    pair.backup.replica.state.locks.grant(b"a", 1, b"x", b"x", 0)  # a bug, say
    pair.primary.lock("c", "a", "r1")
    pair.turn()
    with pytest.raises(Diverged):
        pair.deliver()
    assert pair.backup.replica.follower.ack() == b""


def test_what_differs_before_the_snapshot_cannot_be_seen_but_after_it_is_chained() -> None:
    pair = joined()
    pair.primary.lock("c", "a", "r1")
    pair.settle()
    pair.backup.replica.checksum ^= 1
    pair.primary.lock("c", "b", "r2")
    pair.turn()
    with pytest.raises(Diverged):
        pair.deliver()


@pytest.mark.parametrize("by", [-1, 1, 2])
def test_frames_come_without_a_gap(by: int) -> None:
    pair = joined()
    backup = pair.backup.replica
    frame = backup.follower._applied_frame + 1 + by
    with pytest.raises(Diverged):
        backup.follower.on_beat(backup.view.epoch, frame, backup.state.offset)
    with pytest.raises(Diverged):
        backup.follower.on_view(backup.view.epoch + 1, frame, "P", "P,B", True)
    assert backup.follower.ack() == b"" and backup.view.epoch == 2


def test_a_beat_at_another_offset_stops_the_backup() -> None:
    backup = joined().backup.replica
    for offset in (backup.state.offset - 1, backup.state.offset + 1):
        with pytest.raises(Diverged):
            backup.follower.on_beat(backup.view.epoch, backup.follower._applied_frame + 1, offset)


def test_a_lower_epoch_is_refused_whatever_carries_it() -> None:
    pair = joined()
    pair.primary.lock("c", "a", "r1")
    pair.turn()
    backup = pair.backup.replica
    assert backup.answer("P", 3).accepted  # the view is of epoch 3 now
    frame = backup.follower._applied_frame + 1
    with pytest.raises(StaleStream):
        pair.deliver()
    with pytest.raises(StaleStream):
        backup.follower.on_beat(2, frame, backup.state.offset)
    with pytest.raises(StaleStream):
        backup.follower.on_view(2, frame, "P", "P,B", True)
    with pytest.raises(StaleStream):
        backup.follower.load_end(2, frame, 1, 0)
    with pytest.raises(StaleStream):
        backup.follower.load(2, "P", Header("h", 1, 1, 1, 0, 0, 0, 0, 0))
    assert not backup.is_member and b"a" not in backup.state.locks.held


def test_a_snapshot_that_ends_short_or_over_stops_the_backup() -> None:
    for items in (0, 2):
        backup = SimNode("B")
        backup.replica.follower.load(1, "P", Header("h", 9, 1, 1, 0, 0, 0, 0, items))
        backup.replica.follower.load_items([b"L", b"a", b"1", b"r", b"o", b"1", b"0"])
        with pytest.raises(Diverged):
            backup.replica.follower.load_end(1, 1, 1, 0)
        assert not backup.replica.synced and not backup.replica.is_member


# -- promotion ------------------------------------------------------------------------------------


def test_a_member_takes_over_with_everything_that_was_acknowledged() -> None:
    pair = joined()
    pair.primary.lock("c", "a", "r1")
    pair.primary.lock("c", "a", "r2")
    pair.settle()
    pair.backup.promote()
    node = pair.backup.replica
    assert (node.role, node.mode, node.view) == (Role.PRIMARY, "solo", View(3, "B", ("B",)))
    pair.backup.lock("c", "a", "r1")
    pair.backup.lock("c", "a", "r2")
    assert pair.backup.said == pair.primary.said
    pair.backup.lock("c", "b", "r3")
    assert int(pair.backup.said[-1][1]) > WALL_CLOCK_US + limits.UNACKED_ENTRIES_MAX


@pytest.mark.parametrize("phase", [Phase.SNAPSHOT, Phase.CATCHING_UP, Phase.REQUIRED])
def test_none_but_a_member_is_promoted(phase: Phase) -> None:
    pair = at_phase(phase)
    with pytest.raises(AssertionError):
        pair.backup.promote()
    with pytest.raises(AssertionError):
        SimNode("E").promote()
    with pytest.raises(AssertionError):
        pair.primary.promote()


def test_a_member_is_promoted_only_into_the_very_next_view_of_itself_alone() -> None:
    for view in (View(2, "B", ("B",)), View(4, "B", ("B",)), View(3, "B", ("P", "B"))):
        backup = joined().backup.replica
        with pytest.raises(AssertionError):
            backup.promote(view, backup.view, 0)


def test_a_backup_that_joins_anew_is_no_member_whatever_it_was() -> None:
    pair = joined()
    pair.backup.replica.renew_incarnation("B2")
    assert not pair.backup.replica.is_member and not pair.backup.replica.follower.may_promote_itself
    with pytest.raises(AssertionError):
        pair.backup.promote()
    with pytest.raises(AssertionError):
        pair.primary.replica.renew_incarnation("P2")


def test_a_backup_that_accepts_its_primarys_proposal_is_out() -> None:
    pair = joined()
    answer = pair.backup.replica.answer("P", 3)
    assert answer.accepted and answer.view == View(3, "P", ("P",))
    assert not pair.backup.replica.is_member
    again = pair.backup.replica.answer("P", 3)
    assert again.accepted, "the first answer may have been lost"
    for proposer, epoch in (("P", 2), ("X", 4), ("", 4)):
        assert not pair.backup.replica.answer(proposer, epoch).accepted
        assert pair.backup.replica.view == View(3, "P", ("P",))


def test_a_primary_and_an_empty_node_accept_nothing() -> None:
    pair = joined()
    for epoch in range(5):
        for proposer in ("P", "B", ""):
            assert not pair.primary.replica.answer(proposer, epoch).accepted
            assert not SimNode("E").replica.answer(proposer, epoch).accepted
    assert pair.primary.replica.view.epoch == 2


def test_by_force_any_node_with_a_whole_state_is_promoted() -> None:
    pair = at_phase(Phase.REQUIRED)
    pair.primary.lock("c", "z", "lost")
    pair.backup.replica.promote_by_force(WALL_CLOCK_US)
    assert pair.backup.replica.view == View(2, "B", ("B",))
    assert b"before" in pair.backup.replica.state.locks.held
    half = at_phase(Phase.SNAPSHOT)
    half.deliver()
    assert half.backup.replica.role is Role.BACKUP and not half.backup.replica.synced
    for node in (SimNode("E"), half.backup, pair.primary):
        with pytest.raises(AssertionError):
            node.replica.promote_by_force(0)


def test_state_time_goes_on_with_the_backups_own_clock_and_never_back() -> None:
    pair = joined()
    pair.primary.sleep(500)
    pair.primary.lock("c", "a", "r1")
    pair.settle()
    last = pair.primary.replica.state.time_ms
    pair.backup.sleep(250)
    pair.backup.promote()
    assert pair.backup.replica.state_time_ms() == last + 249, "never ahead: both clocks are rounded"
    pair.backup.lock("c", "b", "r2")
    assert pair.backup.replica.state.locks.held[b"b"][3] == last + 249


def test_a_promoted_node_takes_the_old_primary_as_its_backup() -> None:
    pair = joined()
    pair.primary.lock("c", "a", "r1")
    pair.settle()
    pair.primary.lock("c", "b", "lost")
    pair.primary.end_turn()
    pair.backup.promote()
    pair.primary.replica.lose_link()
    pair.primary.stand_down("P2")
    assert pair.primary.closed == ["c"]
    pair.primary, pair.backup = pair.backup, pair.primary
    pair.turn()
    pair.join()
    pair.assert_agreed()
    assert b"b" not in pair.backup.replica.state.locks.held
    assert pair.primary.replica.view == View(4, "B", ("B", "P2"))


def test_a_history_begins_once_and_only_on_an_empty_node() -> None:
    for node in (joined().primary, joined().backup):
        with pytest.raises(AssertionError):
            node.begin_history()


# -- after a stall (F4) ---------------------------------------------------------------------------


def test_a_primary_that_stood_still_needs_an_ack_of_something_sent_afterwards() -> None:
    pair = joined()
    pair.primary.lock("c", "a", "r1")
    pair.turn()
    pair.deliver()
    pair.primary.replica.note_stall()
    pair.ack()
    assert pair.primary.replica.stalled, "that ack may have been sent before the stall"
    pair.primary.replica.beat()
    pair.round()
    assert not pair.primary.replica.stalled


def test_a_second_stall_counts_anew() -> None:
    pair = joined()
    pair.primary.replica.note_stall()
    pair.primary.replica.beat()
    pair.turn()
    pair.deliver()
    pair.primary.replica.note_stall()  # the ack lies in its socket all the while
    pair.ack()
    assert pair.primary.replica.stalled and pair.primary.replica.stalls == 2


def test_a_backup_that_stood_still_before_it_saw_that_it_is_a_member_remembers_it() -> None:
    # The primary's VIEW lies in the socket, the backup stands still, is bypassed, and reads it.
    pair = at_phase(Phase.PROPOSED)
    pair.turn()
    pair.backup.replica.note_stall()
    pair.deliver()
    assert pair.backup.replica.is_member and pair.backup.replica.stalled


def test_a_node_that_cannot_have_been_bypassed_does_not_mind_a_stall() -> None:
    empty, alone = SimNode("E").replica, Pair().primary.replica
    empty.note_stall()
    alone.note_stall()
    assert not empty.stalled and not alone.stalled


@pytest.mark.parametrize("change", ["go alone", "stand down", "load", "renew"])
def test_the_stall_is_over_with_the_situation_that_it_was_about(change: str) -> None:
    pair = joined()
    node = pair.primary.replica if change in ("go alone", "stand down") else pair.backup.replica
    node.note_stall()
    assert node.stalled
    match change:
        case "go alone":
            pair.lose_link()
            pair.primary.go_alone()
        case "stand down":
            pair.primary.stand_down("P2")
        case "load":
            node.follower.load(2, "P", Header("h", 9, 1, 1, 0, 0, 0, 0, 0))
        case _:
            node.renew_incarnation("B2")
    assert not node.stalled


# -- the primary's own entries --------------------------------------------------------------------


def test_forgetting_is_an_entry_that_the_backup_applies_too() -> None:
    pair = joined()
    pair.primary.lock("c", "a", "r1")
    pair.primary.lock("c", "b", "@c:1")
    pair.settle()
    for _ in range(2):
        pair.primary.sleep(limits.CLIENT_RETENTION_MS)
        pair.primary.replica.forget()
        pair.settle()
        pair.assert_agreed()
    for node in (pair.primary.replica, pair.backup.replica):
        assert node.state.replies.recall(LOCK, b"a", b"r1") is None
        assert node.state.replies.recall(LOCK, b"b", b"@c:1") is None
    with pytest.raises(AssertionError):
        pair.backup.replica.forget()


def test_the_rotation_for_the_bound_happens_on_both_nodes_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reply_cache, "_GENERATION_MAX", 3)
    pair = joined()
    for n in range(20):
        pair.primary.undo("c", "a", f"u{n}", f"r{n}")
        pair.primary.sleep(1)
        pair.settle()
        pair.assert_agreed()


def test_no_beat_goes_out_while_something_is_unacknowledged() -> None:
    pair = joined()
    pair.primary.replica.beat()
    pair.turn()
    pair.primary.replica.beat()
    before = pair.to_backup.lying
    pair.turn()
    assert pair.to_backup.lying == before
    alone = Pair()
    alone.primary.replica.beat()
    alone.turn()
    assert alone.to_backup.lying == b""


def test_a_probe_is_echoed_and_refusals_are_values() -> None:
    pair = joined()
    pair.primary.on_message([stream.PROBE, b"17"])
    pair.turn()
    assert messages_of(pair.to_backup.lying) == [[stream.ECHO, b"17"]]
    assert pair.primary.replica.executor.lock(b"a", b"@", "c") is Refused.MALFORMED
