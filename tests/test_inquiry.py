"""Who is primary, under fail-stop: what is asked next, and what becomes of the role (F1 to F6)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from harness.outside import (
    BACKUP_TIMEOUT_MS,
    PROMOTION_TIMEOUT_MS,
    Duo,
    ScriptedLink,
    World,
    blank,
    following,
    joiner_of,
    joining,
    paired,
    serving,
)

from holdfast.server.core import limits
from holdfast.server.core.failover import Answer, NoAnswer, Standing
from holdfast.server.core.feed import Joiner
from holdfast.server.core.inquiry import ASK_TIMEOUT_MS
from holdfast.server.core.replica import Phase, Role
from holdfast.server.core.stream import PROTOCOL_VERSION
from holdfast.server.core.view import NO_VIEW, View

ALONE, DEPOSED, WAITS, PROMOTED, REJOINS = "alone", "deposed", "waits", "promoted", "rejoins"
RESTARTED = Answer("B9", Standing.BLANK, False, NO_VIEW)


def outcome_of(world: World) -> str:
    """What has become of a node that was in doubt."""
    replica = world.replica
    if replica.role is Role.EMPTY:
        return DEPOSED
    if replica.role is Role.BACKUP:
        return REJOINS if world.dialling else WAITS
    if replica.view.members == (replica.incarnation,):
        assert not replica.blocked and not replica.held_back
        return ALONE if replica.answer().reigns_since == 1 else PROMOTED
    return WAITS


def primary_in_doubt(**settings: Any) -> Duo:
    """P has lost its link, while a reply waits for the backup."""
    duo = paired(**settings)
    duo.primary.lock("c")
    duo.lose_link_of(duo.primary)
    assert duo.primary.released == [] and duo.primary.pairing.mode == "blocked"
    return duo


def backup_in_doubt(**settings: Any) -> Duo:
    """B has lost its link."""
    duo = paired(**settings)
    duo.lose_link_of(duo.backup)
    return duo


# -- a primary whose backup is lost ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "silent_ms", "becomes"),
    [
        (following("B1", 3, accepted=True), 0, ALONE),
        (following("B1", 2), 0, WAITS),
        (following("B1", 2), 9_000, WAITS),
        (serving("B1", 3, since=3), 0, DEPOSED),
        (serving("B1", 3, since=3), 9_000, DEPOSED),
        (serving("B9", 3), 0, DEPOSED),
        (serving("B9", 2), 0, ALONE),
        (RESTARTED, 0, ALONE),
        (following("B9", 2), 0, ALONE),
        (Answer("B9", Standing.HEARD, False, NO_VIEW), 0, ALONE),
        (NoAnswer.GONE, 0, ALONE),
        (NoAnswer.SILENT, 0, WAITS),
        (NoAnswer.SILENT, BACKUP_TIMEOUT_MS - 1, WAITS),
        (NoAnswer.SILENT, BACKUP_TIMEOUT_MS, ALONE),
        (NoAnswer.STRANGER, 9_000, WAITS),
        (NoAnswer.UNASKED, 9_000, WAITS),
    ],
)
def test_what_becomes_of_a_primary_that_lost_its_backup(
    outcome: Answer | NoAnswer, silent_ms: int, becomes: str
) -> None:
    world = primary_in_doubt().primary
    assert world.asked == ("PROPOSE", "P", 3), "at once"
    assert world.ask_timeout_ms <= ASK_TIMEOUT_MS
    world.sleep(silent_ms)
    world.answer(outcome)
    assert outcome_of(world) == becomes
    assert world.released == (["c"] if becomes == ALONE else [])
    assert world.dropped == (["c"] if becomes == DEPOSED else [])
    if becomes == ALONE:
        assert world.replica.view == View(3, "P", ("P",)) and world.pairing.mode == "solo"
    elif becomes == DEPOSED:
        assert world.clients_closed == 1 and world.pairing.mode == "deposed"
        assert world.replica.incarnation == "P2" and world.asked == ("ASK",), "it looks for it"
    else:
        assert world.asked is None and world.pairing.mode == "blocked"
        world.timer()
        assert world.asked == ("PROPOSE", "P", 3), "it is asked again"


def test_it_is_asked_again_ever_more_seldom_but_within_a_while() -> None:
    world = primary_in_doubt().primary
    delays = []
    for _ in range(12):
        world.answer(NoAnswer.STRANGER)
        assert world.timer_ms is not None
        delays.append(world.timer_ms)
        world.timer()
    assert delays == sorted(delays) and delays[0] < 5 and delays[-1] == 50
    assert sum("undecided about the peer" in line for line in world.logged) == 1


def test_a_joining_backup_that_is_lost_needs_no_decision() -> None:
    duo = Duo()
    duo.begin()
    duo.backup.pairing.start()
    duo.seek()
    assert duo.dial() == ""
    duo.carry_to_backup()
    assert Phase.NONE < duo.primary.replica.phase < Phase.PROPOSED
    duo.lose_link()
    assert duo.primary.asked is None and duo.primary.pairing.mode == "solo"
    assert duo.primary.replica.view.epoch == 1


def admitted_without_being_told() -> Duo:
    """P has admitted B by itself, in epoch 2, and the VIEW message is lost with the link."""
    duo = Duo()
    duo.begin()
    duo.backup.pairing.start()
    duo.seek()
    assert duo.dial() == ""
    while duo.primary.replica.phase is not Phase.PROPOSED:
        duo.carry_to_backup()
        duo.carry_to_primary()
    duo.lose_link()
    return duo


def test_from_the_admission_on_a_lost_backup_may_have_been_promoted() -> None:
    duo = admitted_without_being_told()
    assert duo.primary.pairing.mode == "blocked" and duo.primary.replica.view.epoch == 2
    assert duo.primary.asked == ("PROPOSE", "P", 3)
    assert duo.backup.asked == ("ASK",), "it does not know that it may propose itself"
    duo.primary.answer(NoAnswer.SILENT)
    assert outcome_of(duo.primary) == WAITS


def test_a_primary_and_a_backup_that_never_saw_its_admission_find_together_again() -> None:
    duo = admitted_without_being_told()
    duo.primary.lock("c")
    for _ in range(50):
        if duo.primary.asked is not None and duo.primary.asked[0] == "PROPOSE":
            epoch = int(duo.primary.asked[2])
            duo.primary.answer(duo.backup.pairing.answer_proposal("P", epoch))
        elif duo.primary.asked is not None:
            duo.primary.answer(duo.backup.replica.answer())
        if duo.backup.pairing.link is None:
            duo.seek()
            refused = duo.dial()
            assert duo.to_primary is not None
            if not refused:
                break
            duo.backup.pairing.on_messages(duo.to_primary, [Exception(refused)])
        if duo.primary.timer_ms is not None:
            duo.primary.timer()
    duo.carry()
    assert duo.primary.released == ["c"] and duo.primary.pairing.mode == "paired"


# -- a backup whose primary is lost ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "silent_ms", "becomes"),
    [
        (serving("P", 2), 0, REJOINS),
        (serving("P", 3), 9_000, REJOINS),
        (serving("P9", 3), 0, REJOINS),
        (serving("P9", 1), 0, PROMOTED),
        (following("P", 2), 0, WAITS),
        (following("P", 2), 9_000, WAITS),
        (blank("P9"), 0, PROMOTED),
        (Answer("P9", Standing.HEARD, False, NO_VIEW), 0, PROMOTED),
        (following("P9", 2), 0, PROMOTED),
        (NoAnswer.GONE, 0, PROMOTED),
        (NoAnswer.SILENT, 0, WAITS),
        (NoAnswer.SILENT, PROMOTION_TIMEOUT_MS - 1, WAITS),
        (NoAnswer.SILENT, PROMOTION_TIMEOUT_MS, PROMOTED),
        (NoAnswer.STRANGER, 9_000, WAITS),
        (NoAnswer.UNASKED, 9_000, WAITS),
    ],
)
def test_what_becomes_of_a_backup_that_lost_its_primary(
    outcome: Answer | NoAnswer, silent_ms: int, becomes: str
) -> None:
    world = backup_in_doubt().backup
    assert world.asked == ("PROPOSE", "B1", 3), "at once"
    world.sleep(silent_ms)
    world.answer(outcome)
    assert outcome_of(world) == becomes
    assert world.replica.incarnation == "B1", "until a stream begins it is the one it was"
    if becomes == PROMOTED:
        assert world.replica.view == View(3, "B1", ("B1",)) and world.says("PROMOTED in epoch 3")
    elif becomes == WAITS:
        assert world.pairing.mode == "blocked"
        world.timer()
        assert world.asked == ("PROPOSE", "B1", 3)


def test_a_backup_that_is_not_to_promote_itself_looks_for_its_primary_and_no_more() -> None:
    for outcome in (*NoAnswer, blank("P9"), following("P9", 2), serving("P9", 1)):
        world = backup_in_doubt(failover_auto=False).backup
        assert world.asked == ("ASK",)
        world.sleep(9_000)
        world.answer(outcome)
        assert world.replica.role is Role.BACKUP and not world.dialling
        assert world.says("an operator may say REPLICAOF NO ONE here")
        world.timer()
        assert world.asked == ("ASK",)
        world.answer(serving("P", 2))
        assert world.dialling


def test_a_backup_of_a_primary_that_knows_of_no_peer_is_not_promoted_by_itself() -> None:
    duo = Duo()
    duo.primary = World("P", has_peer=False)
    duo.primary.pairing.start()
    duo.backup.pairing.start()
    duo.join()
    assert duo.backup.replica.is_member
    assert not duo.backup.replica.follower.may_promote_itself
    duo.lose_link_of(duo.backup)
    assert duo.backup.asked == ("ASK",)
    duo.backup.answer(NoAnswer.GONE)
    assert duo.backup.replica.role is Role.BACKUP
    # The primary knows it by now, and asks it as it would any other.
    duo.lose_link_of(duo.primary)
    assert duo.primary.asked == ("PROPOSE", "P", 3)


def test_a_backup_that_is_no_member_yet_is_not_promoted() -> None:
    duo = Duo()
    duo.begin()
    duo.backup.pairing.start()
    duo.seek()
    assert duo.dial() == ""
    duo.carry_to_backup()
    duo.lose_link_of(duo.backup)
    assert duo.backup.asked == ("ASK",)
    duo.backup.answer(NoAnswer.GONE)
    assert duo.backup.replica.role is not Role.PRIMARY


def test_a_backup_with_half_a_snapshot_has_no_state_and_another_incarnation() -> None:
    duo = Duo()
    duo.begin()
    for n in range(10):
        duo.primary.lock(f"c{n}", f"n{n}")
    duo.backup.pairing.start()
    duo.seek()
    assert duo.dial() == ""
    assert duo.to_backup is not None and duo.to_primary is not None
    duo.backup.pairing.on_messages(duo.to_primary, duo.to_backup.take()[:1])
    assert duo.backup.replica.is_loading and duo.backup.replica.incarnation == "B1"
    duo.lose_link_of(duo.backup)
    assert duo.backup.replica.role is Role.EMPTY and duo.backup.replica.incarnation == "B2"
    assert duo.backup.asked == ("ASK",)
    duo.backup.answer(NoAnswer.GONE)
    assert duo.backup.replica.role is Role.EMPTY, "and it has heard of a history (F5)"
    assert duo.backup.replica.answer().standing is Standing.HEARD


# -- of two that suspect each other, one goes on --------------------------------------------------


def test_of_two_that_suspect_each_other_at_most_one_wins_whoever_asks_first() -> None:
    for first in ("primary", "backup"):
        duo = paired()
        duo.primary.lock("c")
        duo.lose_link()
        for name in (first, "primary" if first == "backup" else "backup"):
            if name == "primary":
                asked = duo.primary.asked
                assert asked == ("PROPOSE", "P", 3)
                answer = duo.backup.pairing.answer_proposal("P", 3)
                duo.primary.answer(answer)
            else:
                asked = duo.backup.asked
                if asked is None:
                    duo.backup.timer()
                duo.backup.answer(duo.primary.pairing.answer_proposal("B1", 3))
        assert outcome_of(duo.primary) == ALONE, first
        assert duo.backup.replica.role is Role.BACKUP and not duo.backup.replica.is_member
        assert duo.primary.released == ["c"]


def test_a_backup_that_accepts_is_out_and_joins_again() -> None:
    duo = paired()
    duo.lose_link_of(duo.primary)
    answer = duo.backup.pairing.answer_proposal("P", 3)
    assert answer.accepted and answer.standing is Standing.STATE
    assert duo.backup.pairing.link is None and duo.backup.asked == ("ASK",)
    duo.primary.answer(answer)
    duo.seek()
    assert duo.dial() == ""
    duo.carry()
    assert duo.primary.replica.phase is Phase.MEMBER
    assert (duo.primary.pairing.partial_resyncs, duo.backup.pairing.partial_resyncs) == (1, 1)
    assert duo.primary.pairing.full_resyncs == 1, "the first one"
    assert duo.backup.replica.view == View(4, "P", ("P", "B2"))


def test_an_acceptance_whose_answer_is_lost_is_given_again() -> None:
    duo = primary_in_doubt()
    assert duo.backup.pairing.answer_proposal("P", 3).accepted
    duo.primary.answer(NoAnswer.SILENT)
    duo.primary.timer()
    assert duo.primary.asked == ("PROPOSE", "P", 3)
    duo.primary.answer(duo.backup.pairing.answer_proposal("P", 3))
    assert outcome_of(duo.primary) == ALONE


# -- the link stands, and the peer hangs ----------------------------------------------------------


def hanging_backup(**settings: Any) -> Duo:
    """P has sent something that B does not acknowledge."""
    duo = paired(**settings)
    duo.primary.lock("c")
    duo.primary.sleep(int(BACKUP_TIMEOUT_MS * limits.SUSPECT_SHARE))
    duo.primary.tick()
    assert duo.primary.asked is None
    duo.primary.sleep(1)
    duo.primary.tick()
    return duo


def test_a_backup_that_hangs_is_asked_before_its_time_is_up_and_not_told_to_step_aside() -> None:
    for outcome in (following("B1", 2), NoAnswer.SILENT):
        world = hanging_backup().primary
        assert world.asked == ("ASK",)
        world.answer(outcome)
        assert outcome_of(world) == WAITS and world.released == []
        world.timer()
        assert world.asked == ("ASK",)
        world.sleep(BACKUP_TIMEOUT_MS)
        world.answer(outcome)
        assert outcome_of(world) == (ALONE if outcome is NoAnswer.SILENT else WAITS)
        if outcome is not NoAnswer.SILENT:
            world.timer()
            assert world.asked == ("PROPOSE", "P", 3), "now it is"


def test_a_backup_that_acknowledges_after_all_is_suspected_no_more() -> None:
    duo = hanging_backup()
    duo.carry_to_backup()
    duo.carry_to_primary()
    assert duo.primary.released == ["c"]
    duo.primary.answer(following("B1", 2))
    assert duo.primary.is_idle and duo.primary.pairing.mode == "paired"
    assert duo.primary.pairing.link is not None
    duo.primary.lock("d", "d")
    duo.primary.sleep(BACKUP_TIMEOUT_MS)
    duo.primary.tick()
    assert duo.primary.logged[-1].startswith("suspecting the peer"), "the next time it is anew"


def test_a_backup_that_hangs_and_whose_process_is_gone_is_bypassed_at_once() -> None:
    for outcome in (NoAnswer.GONE, RESTARTED):
        world = hanging_backup().primary
        world.answer(outcome)
        assert outcome_of(world) == ALONE and world.pairing.link is None


def hanging_primary(**settings: Any) -> Duo:
    """B hears nothing on a link that stands."""
    duo = paired(**settings)
    duo.backup.sleep(int(PROMOTION_TIMEOUT_MS * limits.SUSPECT_SHARE))
    duo.backup.tick()
    assert duo.backup.asked is None
    duo.backup.sleep(1)
    duo.backup.tick()
    return duo


def test_a_primary_that_hangs_is_asked_and_goes_on_if_it_answers_in_time() -> None:
    world = hanging_primary().backup
    assert world.asked == ("ASK",)
    world.answer(serving("P", 2))
    assert outcome_of(world) == WAITS and world.pairing.link is not None
    world.sleep(PROMOTION_TIMEOUT_MS)
    world.timer()
    assert world.asked == ("PROPOSE", "B1", 3)
    world.answer(serving("P", 2))
    assert outcome_of(world) == REJOINS, "it answers, and its link is worth nothing"


def test_a_primary_that_serves_in_a_later_epoch_is_joined_again_at_once() -> None:
    world = hanging_primary().backup
    world.answer(serving("P", 3))
    assert outcome_of(world) == REJOINS


def test_a_primary_that_is_heard_again_is_suspected_no_more() -> None:
    duo = hanging_primary()
    duo.primary.replica.beat()
    duo.carry_to_backup()
    duo.backup.answer(NoAnswer.SILENT)
    assert duo.backup.is_idle and duo.backup.pairing.mode == "paired"


def test_a_primary_whose_process_is_gone_is_replaced_at_once() -> None:
    for outcome in (NoAnswer.GONE, blank("P9")):
        world = hanging_primary().backup
        world.answer(outcome)
        assert outcome_of(world) == PROMOTED


# -- after a stall (F4) ---------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["primary", "backup"])
@pytest.mark.parametrize("outcome", [*NoAnswer, RESTARTED, following("X9", 2), serving("X9", 1)])
def test_a_node_that_stood_still_bypasses_nobody(outcome: Answer | NoAnswer, who: str) -> None:
    duo = paired()
    world: World = getattr(duo, who)
    world.stand_still(PROMOTION_TIMEOUT_MS)
    assert world.replica.stalled and world.says("this node stood still for 3000 ms")
    duo.lose_link_of(world)
    world.sleep(9_000)
    world.answer(outcome)
    assert outcome_of(world) == WAITS and world.replica.stalled
    assert world.says("if it has certainly not taken over, REPLICAOF NO ONE FORCE")
    world.timer()
    assert world.asked is not None


@pytest.mark.parametrize("who", ["primary", "backup"])
def test_the_answer_of_that_very_incarnation_ends_the_doubt_after_a_stall(who: str) -> None:
    duo = paired()
    world: World = getattr(duo, who)
    world.stand_still(PROMOTION_TIMEOUT_MS)
    duo.lose_link_of(world)
    world.answer(following("B1" if who == "primary" else "P", 2))
    assert outcome_of(world) == WAITS and not world.replica.stalled
    world.timer()
    world.answer(NoAnswer.GONE)
    assert outcome_of(world) == (ALONE if who == "primary" else PROMOTED)


def test_an_answer_from_before_another_stall_ends_no_doubt() -> None:
    world = primary_in_doubt().primary
    world.stand_still(PROMOTION_TIMEOUT_MS)
    world.answer(following("B1", 2))
    assert world.replica.stalled, "it was asked before"
    world.timer()
    world.answer(following("B1", 2))
    assert not world.replica.stalled


def test_a_silence_that_a_stall_made_bypasses_nobody() -> None:
    # The question times out in the very turn that was so long.
    world = primary_in_doubt().primary
    world.stand_still(9_000)
    world.answer(NoAnswer.SILENT)
    assert outcome_of(world) == WAITS and world.released == []


def test_a_short_stall_is_none() -> None:
    for who, limit_ms in (("primary", PROMOTION_TIMEOUT_MS), ("backup", BACKUP_TIMEOUT_MS)):
        world: World = getattr(paired(), who)
        world.stand_still(int(limit_ms * limits.STALL_SHARE))
        assert not world.replica.stalled
        world.stand_still(int(limit_ms * limits.STALL_SHARE) + 1)
        assert world.replica.stalled


def paired_with(which: str, primary_ms: int, backup_ms: int) -> Duo:
    """A pair whose nodes were told different time-outs of that name."""
    duo = Duo()
    for world, timeout_ms in ((duo.primary, primary_ms), (duo.backup, backup_ms)):
        changed: dict[str, Any] = {which: timeout_ms}
        world.pairing.settings = world.pairing.settings._replace(**changed)
    duo.begin()
    duo.backup.pairing.start()
    duo.join()
    assert duo.primary.pairing.mode == duo.backup.pairing.mode == "paired"
    return duo


@pytest.mark.parametrize(
    ("who", "which"), [("primary", "promotion_timeout_ms"), ("backup", "backup_timeout_ms")]
)
@pytest.mark.parametrize(("primary_ms", "backup_ms"), [(8_000, 800), (800, 8_000)])
def test_of_two_time_outs_the_smaller_one_tells_what_a_stall_is(
    who: str, which: str, primary_ms: int, backup_ms: int
) -> None:
    """Each tells the other one its own, in JOIN and in VIEW."""
    duo = paired_with(which, primary_ms, backup_ms)
    world: World = getattr(duo, who)
    world.stand_still(int(800 * limits.STALL_SHARE))
    assert not world.replica.stalled
    world.stand_still(int(800 * limits.STALL_SHARE) + 1)
    assert world.replica.stalled


def test_a_backup_is_told_by_an_echo_that_it_may_be_promoted_again() -> None:
    duo = paired()
    duo.backup.tick()  # a probe from before the stall is under way
    duo.backup.stand_still(BACKUP_TIMEOUT_MS)
    duo.carry()
    assert duo.backup.replica.stalled, "that echo answers a probe of before"
    duo.backup.tick()
    duo.carry()
    assert not duo.backup.replica.stalled


def test_a_primary_that_stood_still_is_told_by_an_ack_of_what_it_sent_afterwards() -> None:
    duo = paired()
    duo.primary.stand_still(PROMOTION_TIMEOUT_MS)
    assert duo.primary.replica.stalled
    duo.primary.tick()
    duo.carry()
    assert not duo.primary.replica.stalled


# -- answers that come when the world is another one ----------------------------------------------


def goes_alone_by_force(duo: Duo) -> None:
    world = duo.primary
    world.pairing.go_alone(world.replica.view.alone("P"), "an operator says so")


def stands_down_by_hand(duo: Duo) -> None:
    duo.primary.pairing.stand_down("an operator says so")


@pytest.mark.parametrize("change", [goes_alone_by_force, stands_down_by_hand])
@pytest.mark.parametrize(
    "outcome", [*NoAnswer, following("B1", 3, accepted=True), serving("B1", 3), RESTARTED]
)
def test_a_primarys_question_is_void_when_the_situation_is_over(
    change: Callable[[Duo], None], outcome: Answer | NoAnswer
) -> None:
    duo = primary_in_doubt()
    change(duo)
    before = (duo.primary.replica.role, duo.primary.replica.view, duo.primary.replica.incarnation)
    duo.primary.sleep(9_000)
    duo.primary.answer(outcome)
    replica = duo.primary.replica
    assert (replica.role, replica.view, replica.incarnation) == before
    assert duo.primary.asked == ("ASK",), "it looks again, as what it is now"


def accepts_a_proposal(duo: Duo) -> None:
    assert duo.backup.pairing.answer_proposal("P", 3).accepted


def is_promoted_by_force(duo: Duo) -> None:
    duo.backup.pairing.promote_by_force()


@pytest.mark.parametrize("change", [accepts_a_proposal, is_promoted_by_force])
@pytest.mark.parametrize("outcome", [*NoAnswer, serving("P", 2), blank("P9")])
def test_a_backups_question_is_void_when_the_situation_is_over(
    change: Callable[[Duo], None], outcome: Answer | NoAnswer
) -> None:
    duo = backup_in_doubt()
    change(duo)
    replica = duo.backup.replica
    before = (replica.role, replica.view)
    duo.backup.sleep(9_000)
    duo.backup.answer(outcome)
    assert (replica.role, replica.view) == before and not duo.backup.dialling
    assert duo.backup.asked == ("ASK",)


def test_a_dial_that_succeeds_too_late_is_closed() -> None:
    duo = backup_in_doubt()
    duo.backup.answer(serving("P", 2))
    assert duo.backup.dialling
    duo.backup.pairing.promote_by_force()
    late = ScriptedLink(duo.backup, "P")
    duo.backup.dialling = False
    duo.backup.pairing.on_dialled(late)
    assert late.closed and late.sent == b"" and duo.backup.pairing.link is None


def test_a_dial_that_fails_is_tried_again() -> None:
    world = backup_in_doubt().backup
    world.answer(serving("P", 2))
    world.dialling = False
    world.pairing.on_dialled(None, "refused")
    assert world.says("cannot reach the primary: refused")
    world.timer()
    assert world.asked == ("PROPOSE", "B1", 3), "it may be gone by now"


def test_a_node_that_stops_takes_no_further_step() -> None:
    duo = primary_in_doubt()
    duo.primary.pairing.stop()
    duo.primary.answer(NoAnswer.GONE)
    assert outcome_of(duo.primary) == WAITS and duo.primary.is_idle
    duo.primary.pairing.proceed()
    assert duo.primary.is_idle


def test_what_arrives_on_a_link_of_the_past_is_dropped() -> None:
    duo = paired()
    old_to_backup, old_to_primary = duo.to_backup, duo.to_primary
    assert old_to_backup is not None and old_to_primary is not None
    duo.lose_link()
    state = (duo.primary.replica.view, duo.backup.replica.view)
    duo.primary.pairing.on_messages(old_to_backup, [[b"A", b"2", b"99", b"1"]])
    duo.backup.pairing.on_messages(old_to_primary, [[b"SB", b"9", b"X"]])
    duo.primary.pairing.on_link_lost(old_to_backup, "again")
    assert (duo.primary.replica.view, duo.backup.replica.view) == state


# -- two primaries (F6) ---------------------------------------------------------------------------


def split() -> Duo:
    """Neither reached the other for long enough: both serve, in epoch 3."""
    duo = paired()
    duo.lose_link()
    for world in (duo.primary, duo.backup):
        world.sleep(9_000)
        world.answer(NoAnswer.SILENT)
        assert world.replica.view.epoch == 3 and world.replica.role is Role.PRIMARY
        world.timer_ms = None
    return duo


def looks_around(world: World, outcome: Answer | NoAnswer) -> None:
    world.tick()
    assert world.asked == ("ASK",)
    world.answer(outcome)


def test_when_two_primaries_of_one_epoch_meet_the_promoted_one_goes_on() -> None:
    for first in ("primary", "backup"):
        duo = split()
        ours, theirs = duo.primary.replica.answer(), duo.backup.replica.answer()
        assert ours.view.epoch == theirs.view.epoch and theirs.rank > ours.rank
        if first == "primary":
            looks_around(duo.primary, theirs)
            looks_around(duo.backup, duo.primary.replica.answer())
        else:
            looks_around(duo.backup, ours)
            looks_around(duo.primary, theirs)
        assert duo.primary.replica.role is Role.EMPTY and duo.primary.pairing.mode == "deposed"
        assert duo.backup.replica.role is Role.PRIMARY
        assert duo.primary.clients_closed == 1


@pytest.mark.parametrize(
    ("outcome", "stays"),
    [
        (serving("B1", 4, since=1), False),
        (serving("B1", 3, since=3), False),
        (serving("B1", 3, since=2), False),
        (serving("A9", 3, since=1), True),  # of equal reigns the larger name goes on
        (serving("Z9", 3, since=1), False),
        (serving("B1", 2, since=2), True),
        (serving("P", 9, since=9), True),  # that is this very node
        (following("B1", 9), True),
        (blank("B9"), True),
        *((each, True) for each in NoAnswer),
    ],
)
def test_a_lone_primary_stands_down_for_whoever_ranks_higher(
    outcome: Answer | NoAnswer, stays: bool
) -> None:
    world = split().primary
    looks_around(world, outcome)
    assert (world.replica.role is Role.PRIMARY) == stays


def test_a_lone_primary_looks_around_now_and_then() -> None:
    world = split().primary
    looks_around(world, NoAnswer.GONE)
    world.sleep(limits.LOOK_AROUND_MS - 1)
    world.tick()
    assert world.asked is None
    world.sleep(1)
    world.tick()
    assert world.asked == ("ASK",)


def test_what_a_lone_primary_sees_does_not_matter_any_more_when_a_backup_has_joined() -> None:
    duo = Duo()
    duo.begin()
    duo.primary.tick()
    assert duo.primary.asked == ("ASK",)
    duo.backup.pairing.start()
    duo.join()
    duo.primary.answer(serving("X", 99))
    assert duo.primary.replica.role is Role.PRIMARY


def test_a_node_without_a_peer_asks_nobody() -> None:
    world = World("P", has_peer=False)
    world.pairing.start()
    world.sleep(9_000)
    world.tick()
    assert world.is_idle and world.replica.role is Role.PRIMARY
    assert world.says("no peer is configured")


# -- an empty node (F5) ---------------------------------------------------------------------------


def test_a_node_that_looks_for_its_peer_says_so_from_the_start() -> None:
    world = World("B")
    world.pairing.start()
    assert world.says("mode starting -> recovery, epoch 0: looking for")


@pytest.mark.parametrize(
    ("settings", "outcome", "silent_ms", "becomes"),
    [
        ({"first_primary": True}, blank("B"), 0, Role.PRIMARY),
        ({"first_primary": True}, NoAnswer.GONE, 9_000, Role.EMPTY),
        ({"first_primary": True}, NoAnswer.SILENT, 9_000, Role.EMPTY),
        ({"first_primary": True}, following("B", 2), 0, Role.EMPTY),
        ({"first_primary": True}, Answer("B", Standing.HEARD, False, NO_VIEW), 0, Role.EMPTY),
        ({}, blank("P"), 9_000, Role.EMPTY),
        ({}, NoAnswer.GONE, 9_000, Role.EMPTY),
        ({"bootstrap": True}, blank("P"), 0, Role.PRIMARY),
        ({"bootstrap": True}, Answer("P", Standing.HEARD, False, NO_VIEW), 0, Role.PRIMARY),
        ({"bootstrap": True}, NoAnswer.GONE, PROMOTION_TIMEOUT_MS, Role.PRIMARY),
        ({"bootstrap": True}, NoAnswer.GONE, PROMOTION_TIMEOUT_MS - 1, Role.EMPTY),
        ({"bootstrap": True}, NoAnswer.SILENT, PROMOTION_TIMEOUT_MS, Role.PRIMARY),
        ({"bootstrap": True}, NoAnswer.STRANGER, 9_000, Role.EMPTY),
        ({"bootstrap": True}, following("P", 2), 9_000, Role.EMPTY),
    ],
)
def test_what_becomes_of_an_empty_node(
    settings: dict[str, bool], outcome: Answer | NoAnswer, silent_ms: int, becomes: Role
) -> None:
    world = World("E", **settings)
    world.pairing.start()
    assert world.asked == ("ASK",)
    if silent_ms:
        world.answer(outcome)
        assert world.replica.role is Role.EMPTY, "it may only be slow to answer"
        world.sleep(silent_ms)
        world.timer_ms = None
        world.pairing.proceed()
    world.answer(outcome)
    assert world.replica.role is becomes
    if becomes is Role.EMPTY:
        assert world.pairing.mode == "recovery" and world.says("waiting for the peer")
        world.timer()
        assert world.asked == ("ASK",)


def test_an_empty_node_joins_whoever_serves_and_remembers_that_there_is_a_history() -> None:
    world = World("E", first_primary=True)
    world.pairing.start()
    world.answer(serving("P", 4))
    assert world.dialling and world.replica.heard_of_history
    world.dialling = False
    world.pairing.on_dialled(None, "refused")
    world.timer()
    world.answer(blank("P"))
    assert world.replica.role is Role.EMPTY, "it has lost it, and this node knows"


def test_a_peer_that_answers_once_has_not_been_silent() -> None:
    world = World("E", bootstrap=True)
    world.pairing.start()
    for outcome in (NoAnswer.SILENT, following("P", 2), NoAnswer.SILENT):
        world.sleep(PROMOTION_TIMEOUT_MS - 1)
        world.answer(outcome)
        assert world.replica.role is Role.EMPTY
        world.timer()


def test_a_new_history_is_above_every_epoch_that_was_seen() -> None:
    world = World("E", bootstrap=True)
    world.pairing.start()
    world.answer(Answer("P", Standing.HEARD, False, View(7, "P", ("P",))))
    assert world.replica.view == View(8, "E", ("E",))


def test_a_node_whose_peer_is_itself_waits() -> None:
    world = World("E", bootstrap=True)
    world.pairing.start()
    world.answer(blank("E"))
    assert world.replica.role is Role.EMPTY and world.says("that is this very node")


def test_a_backup_does_not_join_a_primary_of_a_lower_epoch_than_it_has_seen() -> None:
    world = backup_in_doubt(failover_auto=False).backup
    world.answer(serving("P", 1))
    assert not world.dialling and world.says("it serves in epoch 1, known is 2")


# -- who asks to join -----------------------------------------------------------------------------


def joiner(
    name: str,
    *,
    formerly: str = "",
    port: int = 7_066,
    host: str = "B",
    register: str = "fail-stop",
) -> Joiner:
    link = ScriptedLink(World("J"), host)
    return Joiner(link, name, formerly or name, port, None, register, PROMOTION_TIMEOUT_MS)


@pytest.mark.parametrize(
    "stranger", [joiner("C1", port=9_999), joiner("C1", host="C")], ids=["port", "host"]
)
def test_an_unknown_second_backup_is_refused_and_moves_nobody(stranger: Joiner) -> None:
    world = paired().primary
    for _ in range(2):
        assert world.pairing.join_request(stranger).startswith("TRYAGAIN")
        assert not world.says("suspecting")
        world.sleep(1_000)
        world.lock("c")
    assert world.is_idle and world.pairing.mode == "paired" and world.pairing.link is not None


def test_who_asks_a_blocked_primary_is_told_what_it_waits_for() -> None:
    duo = paired()
    duo.primary.stand_still(BACKUP_TIMEOUT_MS)
    duo.lose_link_of(duo.primary)
    assert duo.primary.pairing.mode == "blocked"
    refused = duo.primary.pairing.join_request(joiner("B9"))
    assert refused.startswith("TRYAGAIN this primary is blocked")


def test_a_backup_that_asks_under_another_incarnation_was_restarted() -> None:
    duo = paired()
    world = duo.primary
    assert world.pairing.join_request(joiner("B9")).startswith("TRYAGAIN")
    assert world.says("the backup asks to join under another incarnation")
    world.sleep(1_000)
    world.lock("c")
    world.pairing.join_request(joiner("B9"))
    world.sleep(1_000)
    world.pairing.join_request(joiner("B9"))
    assert world.asked == ("ASK",)
    world.answer(RESTARTED)
    assert outcome_of(world) == ALONE and world.released == ["c"]
    assert world.pairing.join_request(joiner("B9")) == "", "now there is room for it"


def test_a_backup_that_says_who_it_was_follows_no_more() -> None:
    duo = paired()
    assert duo.primary.pairing.join_request(joiner("B2", formerly="B1")).startswith("TRYAGAIN")
    assert duo.primary.pairing.link is None and duo.primary.asked == ("PROPOSE", "P", 3)
    duo.primary.answer(duo.backup.pairing.answer_proposal("P", 3))
    assert outcome_of(duo.primary) == ALONE
    assert duo.primary.pairing.join_request(joiner("B3", formerly="B1")) == ""


def test_a_joining_backup_that_asks_anew_makes_room_at_once() -> None:
    duo = Duo()
    duo.begin()
    duo.backup.pairing.start()
    duo.seek()
    assert duo.dial() == ""
    duo.carry_to_backup()
    replica = duo.primary.replica
    assert replica.backup == "B1" and Phase.NONE < replica.phase < Phase.PROPOSED
    again = joiner("B2", formerly="B1")
    assert duo.primary.pairing.join_request(again).startswith("TRYAGAIN")
    assert duo.primary.pairing.mode == "solo"
    assert duo.primary.pairing.join_request(again) == ""


def test_only_a_primary_is_joined_and_nobody_by_itself() -> None:
    duo = paired()
    assert duo.backup.pairing.join_request(joiner("C1")).startswith("ERR this node is paired")
    assert World("E").pairing.join_request(joiner("C1")).startswith("ERR this node is recovery")
    for own in (joiner("P"), joiner("C1", formerly="P")):
        assert duo.primary.pairing.join_request(own) == "ERR that is this very node"


def test_of_two_that_ask_in_one_turn_the_first_is_attached() -> None:
    duo = Duo()
    duo.begin()
    assert duo.primary.pairing.join_request(joiner("B1")) == ""
    assert duo.primary.pairing.join_request(joiner("C1")).startswith("TRYAGAIN")
    duo.primary.pairing.end_turn()
    assert duo.primary.replica.backup == "B1"


def test_one_that_is_gone_before_it_is_attached_leaves_no_trace() -> None:
    duo = Duo()
    duo.begin()
    gone = joiner("B1")
    assert duo.primary.pairing.join_request(gone) == ""
    gone.connection.close()
    duo.primary.pairing.end_turn()
    assert duo.primary.replica.phase is Phase.NONE and duo.primary.pairing.mode == "solo"


def test_a_refused_join_is_repeated_ever_more_seldom() -> None:
    duo = Duo()
    duo.begin()
    assert duo.primary.pairing.join_request(joiner("C1", port=1)) == ""
    duo.primary.pairing.end_turn()
    duo.backup.pairing.start()
    at_ms = []
    for _ in range(8):
        duo.seek()
        at_ms.append(duo.backup.now_ms)
        refused = duo.dial()
        assert refused.startswith("TRYAGAIN") and duo.to_primary is not None
        duo.backup.pairing.on_messages(duo.to_primary, [Exception(refused)])
        assert duo.backup.pairing.link is None
    pauses = [after - before for before, after in itertools.pairwise(at_ms)]
    assert pauses == sorted(pauses) and pauses[-1] == 1_000
    assert sum("refuses this backup" in line for line in duo.backup.logged) == 1


def test_what_a_node_says_when_it_joins() -> None:
    duo = backup_in_doubt()
    duo.backup.answer(serving("P", 2))
    link = ScriptedLink(duo.backup, "P")
    duo.backup.dialling = False
    duo.backup.pairing.on_dialled(link)
    (words,) = link.take()
    assert words[:3] == [b"PEER", b"JOIN", PROTOCOL_VERSION]
    asks = joiner_of(words, link)
    assert (asks.incarnation, asks.formerly, asks.port) == ("B2", "B1", 7_066)
    assert asks.point == duo.backup.replica.point
    assert (asks.register, asks.promotion_timeout_ms) == ("fail-stop", PROMOTION_TIMEOUT_MS)


def test_one_that_keeps_the_view_elsewhere_is_refused_and_moves_nobody() -> None:
    elsewhere = "file:/elsewhere"
    for duo in (Duo(), paired()):
        if duo.primary.pairing.link is None:
            duo.begin()
        before = duo.primary.pairing.mode
        for formerly in ("", "B1"):
            refused = duo.primary.pairing.join_request(
                joiner("B9", formerly=formerly, register=elsewhere)
            )
            assert refused.startswith("ERR") and "give both nodes the same --view" in refused
            assert elsewhere in refused and "fail-stop" in refused
        duo.primary.pairing.end_turn()
        assert duo.primary.pairing.mode == before and duo.primary.asked is None


# -- an operator's word ---------------------------------------------------------------------------


def test_a_backup_that_is_to_be_promoted_asks_its_primary_first() -> None:
    duo = paired()
    duo.backup.pairing.inquiry.insist()
    assert duo.backup.asked == ("PROPOSE", "B1", 3)
    duo.backup.answer(duo.primary.pairing.answer_proposal("B1", 3))
    inquiry = duo.backup.pairing.inquiry
    assert "is alive and serves" in inquiry.refused and not inquiry.insists
    assert duo.backup.pairing.link is not None and duo.backup.pairing.mode == "paired"
    assert duo.backup.is_idle


@pytest.mark.parametrize("failover_auto", [True, False])
def test_a_backup_that_is_to_be_promoted_replaces_a_primary_that_is_gone(
    failover_auto: bool,
) -> None:
    duo = paired(failover_auto=failover_auto)
    duo.backup.pairing.inquiry.insist()
    duo.backup.answer(NoAnswer.GONE)
    assert outcome_of(duo.backup) == PROMOTED and not duo.backup.pairing.inquiry.insists


def test_an_operators_word_does_not_override_silence_before_its_time() -> None:
    duo = paired(failover_auto=False)
    duo.lose_link_of(duo.backup)
    duo.backup.answer(NoAnswer.SILENT)
    duo.backup.timer_ms = None
    duo.backup.pairing.inquiry.insist()
    duo.backup.answer(NoAnswer.SILENT)
    assert outcome_of(duo.backup) == WAITS
    duo.backup.sleep(PROMOTION_TIMEOUT_MS)
    duo.backup.timer()
    duo.backup.answer(NoAnswer.SILENT)
    assert outcome_of(duo.backup) == PROMOTED


# -- the planned change of roles (FAILOVER) -------------------------------------------------------


def acknowledged(duo: Duo) -> None:
    """What P has written reaches B, and B's ack reaches P."""
    duo.carry_to_backup()
    duo.carry_to_primary()


def switching(*, told: bool = True, **settings: Any) -> Duo:
    """P is handing over; ``told``: HANDOVER lies on the link."""
    duo = paired(**settings)
    duo.primary.lock("before")
    if told:
        duo.carry()
    assert duo.primary.pairing.switch(0) == ""
    if told:
        acknowledged(duo)
    duo.primary.pairing.end_turn()
    state = "failover-in-progress" if told else "waiting-for-sync"
    assert duo.primary.pairing.switching == state
    return duo


def test_the_roles_change_and_the_old_primary_comes_back_with_its_state() -> None:
    duo = switching()
    duo.carry_to_backup()
    assert outcome_of(duo.backup) == PROMOTED and duo.backup.asked is None
    assert duo.to_primary is not None and duo.to_primary.closed
    duo.lose_link_of(duo.primary)
    assert duo.primary.asked == ("PROPOSE", "P", 3)
    duo.primary.answer(duo.backup.pairing.answer_proposal("P", 3))
    assert duo.primary.replica.role is Role.BACKUP and duo.primary.replica.synced
    assert duo.primary.pairing.switching == "" and duo.primary.clients_closed == 0
    assert duo.primary.pairing.has_handed_over
    duo.primary, duo.backup = duo.backup, duo.primary
    duo.primary.pairing.end_turn()
    duo.seek()
    assert duo.dial() == ""
    duo.carry()
    assert duo.primary.replica.view == View(4, "B1", ("B1", "P2"))
    assert duo.backup.pairing.partial_resyncs == 1 and duo.backup.replica.is_member
    assert duo.primary.replica.point == duo.backup.replica.point
    assert not duo.backup.pairing.has_handed_over


@pytest.mark.parametrize(
    ("outcome", "becomes"),
    [
        (following("B1", 3, accepted=True), ALONE),
        (following("B1", 2), WAITS),
        (RESTARTED, WAITS),  # it may have served before it was restarted
        (serving("B9", 2), WAITS),
        (NoAnswer.GONE, WAITS),
        (NoAnswer.SILENT, WAITS),
        (NoAnswer.STRANGER, WAITS),
    ],
)
def test_a_primary_that_has_handed_over_goes_on_only_if_that_very_backup_says_so(
    outcome: Answer | NoAnswer, becomes: str
) -> None:
    duo = switching()
    duo.lose_link_of(duo.primary)
    for _ in range(2):  # an answer that does not accept is no leave either
        duo.primary.sleep(9_000)
        duo.primary.answer(outcome)
        assert outcome_of(duo.primary) == becomes
        if becomes == ALONE:
            break
        duo.primary.timer()
    assert duo.primary.pairing.switches_failed == (1 if becomes == ALONE else 0)
    assert bool(duo.primary.pairing.switching) == (becomes == WAITS)
    if becomes == WAITS:
        duo.primary.answer(following("B1", 3, accepted=True))
        assert outcome_of(duo.primary) == ALONE and duo.primary.pairing.switching == ""


def test_a_handover_that_is_not_answered_is_asked_about() -> None:
    duo = switching()
    duo.primary.sleep(int(BACKUP_TIMEOUT_MS * limits.SUSPECT_SHARE) + 1)
    duo.primary.tick()
    assert duo.primary.asked == ("ASK",)
    duo.primary.answer(serving("B1", 3, since=3))
    assert duo.primary.replica.role is Role.BACKUP


def test_a_handover_waits_until_all_is_acknowledged_and_every_reply_has_left() -> None:
    duo = switching(told=False)
    assert duo.primary.pairing.switch(0) == "ERR FAILOVER already in progress."
    assert duo.primary.pairing.join_request(joiner("B2")).startswith("TRYAGAIN")
    duo.primary.tick()
    assert duo.primary.pairing.switching == "waiting-for-sync"
    acknowledged(duo)
    assert duo.primary.released == ["before"]
    duo.primary.owes = True
    duo.primary.pairing.end_turn()
    assert duo.primary.pairing.switching == "waiting-for-sync", "an answer is not even queued"
    duo.primary.owes = False
    duo.primary.pairing.end_turn()
    assert duo.primary.pairing.switching == "failover-in-progress"
    assert "cannot be aborted" in duo.primary.pairing.abort_switch("an operator says so")


def test_a_backup_at_rest_is_told_only_when_it_has_answered_since_it_was_asked_for() -> None:
    duo = paired()
    duo.primary.lock("c")
    duo.carry_to_backup()  # its ack is under way
    assert duo.primary.replica.holding and duo.primary.pairing.switch(0) == ""
    duo.carry_to_primary()
    assert duo.primary.released == ["c"] and duo.primary.replica.is_quiet
    for _ in range(3):  # B may have died since it sent that
        duo.primary.sleep(100)
        duo.primary.tick()
        assert duo.primary.pairing.switching == "waiting-for-sync"
    acknowledged(duo)
    duo.primary.pairing.end_turn()
    assert duo.primary.pairing.switching == "failover-in-progress"


def test_nothing_is_handed_over_on_a_link_that_is_closed() -> None:
    duo = paired()
    assert duo.primary.pairing.switch(0) == "" and duo.to_backup is not None
    acknowledged(duo)
    duo.to_backup.close()
    duo.primary.pairing.end_turn()
    assert duo.primary.pairing.switching == "waiting-for-sync"
    assert not duo.primary.replica.blocked and duo.primary.replica.role is Role.PRIMARY


def test_what_is_held_back_when_the_roles_change_is_closed_without_a_word() -> None:
    duo = switching()
    released = list(duo.primary.released)
    duo.primary.replica.hold_back([("late", b"")], 1)
    duo.carry_to_backup()
    duo.lose_link_of(duo.primary)
    duo.primary.answer(duo.backup.replica.answer())
    assert duo.primary.replica.role is Role.BACKUP and duo.primary.dropped == ["late"]
    assert duo.primary.released == released and duo.primary.clients_closed == 0


def test_a_handover_is_called_off_in_time_or_when_the_backup_is_lost() -> None:
    duo = switching(told=False)
    assert duo.primary.pairing.abort_switch("an operator says so") == ""
    assert duo.primary.pairing.switching == "" and duo.primary.pairing.switches_failed == 1
    assert duo.primary.pairing.abort_switch("again") == "ERR No failover in progress."
    duo = switching(told=False)
    duo.lose_link_of(duo.primary)
    duo.primary.tick()
    assert duo.primary.pairing.switching == "" and duo.primary.says("the backup is lost")
    duo = paired()
    duo.primary.lock("c")
    assert duo.primary.pairing.switch(500) == ""
    duo.primary.sleep(499)
    duo.primary.tick()
    assert duo.primary.pairing.switching == "waiting-for-sync"
    duo.primary.sleep(1)
    duo.primary.tick()
    assert duo.primary.pairing.switching == "" and duo.primary.says("its time is up")


def test_only_a_primary_with_a_backup_in_sync_hands_over() -> None:
    assert "is a replica" in paired().backup.pairing.switch(0)
    alone = Duo()
    alone.begin()
    assert "requires a backup in sync" in alone.primary.pairing.switch(0)
    assert "requires a backup in sync" in primary_in_doubt().primary.pairing.switch(0)


def test_one_that_is_no_member_does_not_take_over_when_told_to() -> None:
    duo = Duo()
    duo.begin()
    duo.backup.pairing.start()
    duo.seek()
    assert duo.dial() == ""
    duo.carry_to_backup()
    replica = duo.backup.replica
    assert replica.role is Role.BACKUP and not replica.is_member
    frame = replica.follower._applied_frame + 1
    assert duo.to_primary is not None
    duo.backup.pairing.on_messages(duo.to_primary, [[b"H", b"1", b"%d" % frame]])
    assert replica.role is not Role.PRIMARY and duo.to_primary.closed
    assert duo.backup.says("does not keep to the protocol")


def test_who_stood_in_line_is_turned_away_by_a_planned_change() -> None:
    duo = paired()
    duo.primary.lock("holder")
    duo.carry()
    executor = duo.primary.replica.executor
    assert executor.lock(b"a", b"later", "waiter", b"", 0, 9_000) is None
    assert duo.primary.pairing.switch(0) == ""
    acknowledged(duo)
    duo.carry_to_backup()
    duo.lose_link_of(duo.primary)
    duo.primary.answer(duo.backup.replica.answer())
    assert duo.primary.turned_away == ["waiter"]


def test_joining_backups_admission_is_decided_by_the_only_member() -> None:
    duo = joining()
    assert duo.primary.replica.phase is Phase.MEMBER and duo.primary.proposals == []
    assert duo.primary.register_asked is None
