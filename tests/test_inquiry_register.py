"""Who is primary, with a view register: what is asked next, and what becomes of the role (I3)."""

from __future__ import annotations

from typing import Any

import pytest
from harness.outside import (
    BACKUP_TIMEOUT_MS,
    GET,
    PROMOTION_TIMEOUT_MS,
    Duo,
    ScriptedLink,
    World,
    blank,
    following,
    joining,
    paired,
    serving,
)

from holdfast.server.core import limits
from holdfast.server.core.failover import Answer, NoAnswer, Standing
from holdfast.server.core.replica import Phase, Role
from holdfast.server.core.view import NO_VIEW, Cas, View

PAIR = View(3, "P", ("P", "B1"))  # what stands while they are a pair
P_ALONE = View(4, "P", ("P",))
B_ALONE = View(4, "B1", ("B1",))
VACANT = View(4, "", ())
RESTARTED = Answer("B9", Standing.BLANK, False, NO_VIEW)


def primary_in_doubt(**settings: Any) -> Duo:
    """P has lost its link, while a reply waits for the backup."""
    duo = paired(register=True, **settings)
    assert duo.view == PAIR
    duo.primary.lock("c")
    duo.lose_link_of(duo.primary)
    return duo


def backup_in_doubt(**settings: Any) -> Duo:
    """B has lost its link."""
    duo = paired(register=True, **settings)
    duo.lose_link_of(duo.backup)
    return duo


def primary_proposing() -> Duo:
    """P has asked the register to go on alone."""
    duo = primary_in_doubt()
    duo.primary.answer(NoAnswer.GONE)
    assert duo.primary.register_asked == P_ALONE
    return duo


def backup_proposing() -> Duo:
    """B has asked the register to take over."""
    duo = backup_in_doubt()
    duo.backup.answer(NoAnswer.GONE)
    assert duo.backup.register_asked == B_ALONE
    return duo


def is_blocked(world: World) -> bool:
    """Whether nothing has left, and nothing is decided."""
    assert world.dropped == [] and world.clients_closed == 0
    return world.replica.blocked and world.released == []


def is_alone(world: World, epoch: int = 4) -> bool:
    """Whether the primary goes on without its backup, and what was held back has left."""
    replica = world.replica
    return replica.view == View(epoch, "P", ("P",)) and world.released == ["c"]


def is_deposed(world: World) -> bool:
    """Whether the primary has dropped its state, and closed what was held back."""
    replica = world.replica
    assert world.released == []
    return (
        replica.role is Role.EMPTY
        and replica.incarnation != "P"
        and world.dropped == ["c"]
        and world.clients_closed == 1
    )


def looks_at_register(world: World) -> None:
    """The next look is due, and asked for."""
    world.sleep(limits.LOOK_AROUND_MS)
    world.tick()
    assert world.register_asked == GET


# -- when a change is proposed --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "silent_ms", "what"),
    [
        (following("B1", 3), 0, "proposes"),  # it answers, and its link is lost
        (following("B1", 4, accepted=True), 0, "proposes"),
        (RESTARTED, 0, "proposes"),
        (following("B9", 3), 0, "proposes"),
        (serving("B9", 3), 0, "proposes"),
        (serving("B1", 4), 0, "yields"),
        (serving("B9", 4), 0, "yields"),
        (NoAnswer.GONE, 0, "proposes"),
        (NoAnswer.SILENT, 0, "waits"),
        (NoAnswer.SILENT, BACKUP_TIMEOUT_MS - 1, "waits"),
        (NoAnswer.SILENT, BACKUP_TIMEOUT_MS, "proposes"),
        (NoAnswer.STRANGER, 0, "waits"),
        (NoAnswer.STRANGER, 9_000, "proposes"),  # the register decides
        (NoAnswer.UNASKED, 0, "waits"),
        (NoAnswer.UNASKED, 9_000, "proposes"),
    ],
)
def test_what_a_primary_that_lost_its_backup_does_next(
    outcome: Answer | NoAnswer, silent_ms: int, what: str
) -> None:
    world = primary_in_doubt().primary
    assert world.asked == ("ASK",) and world.register_asked is None
    world.sleep(silent_ms)
    world.answer(outcome)
    if what == "yields":
        assert is_deposed(world)
        return
    assert is_blocked(world), "only the register decides"
    assert world.register_asked == (P_ALONE if what == "proposes" else None)
    if what == "waits":
        world.timer()
        assert world.asked == ("ASK",)


@pytest.mark.parametrize(
    ("outcome", "silent_ms", "what"),
    [
        (serving("P", 3), 0, "rejoins"),
        (serving("P9", 4), 0, "rejoins"),
        (serving("P9", 3), 0, "proposes"),
        (following("P", 3), 0, "proposes"),
        (blank("P9"), 0, "proposes"),
        (NoAnswer.GONE, 0, "proposes"),
        (NoAnswer.SILENT, 0, "waits"),
        (NoAnswer.SILENT, PROMOTION_TIMEOUT_MS, "proposes"),
        (NoAnswer.STRANGER, 0, "waits"),
        (NoAnswer.UNASKED, PROMOTION_TIMEOUT_MS, "proposes"),
    ],
)
def test_what_a_backup_that_lost_its_primary_does_next(
    outcome: Answer | NoAnswer, silent_ms: int, what: str
) -> None:
    world = backup_in_doubt().backup
    assert world.asked == ("ASK",)
    world.sleep(silent_ms)
    world.answer(outcome)
    assert world.replica.role is Role.BACKUP and world.dialling == (what == "rejoins")
    assert world.register_asked == (B_ALONE if what == "proposes" else None)
    if what == "waits":
        world.timer()
        assert world.asked == ("ASK",)


def test_a_peer_is_never_told_to_step_aside_and_accepts_nothing() -> None:
    duo = primary_in_doubt()
    duo.primary.sleep(9_000)
    duo.primary.answer(NoAnswer.SILENT)
    assert all(words == ("ASK",) for words in duo.primary.questions)
    assert not duo.backup.pairing.answer_proposal("P", 4).accepted
    assert duo.backup.replica.is_member and duo.backup.pairing.link is not None


def test_while_the_link_stands_and_the_peer_answers_in_time_nothing_is_proposed() -> None:
    duo = paired(register=True)
    duo.primary.lock("c")
    duo.primary.sleep(int(BACKUP_TIMEOUT_MS * limits.SUSPECT_SHARE) + 1)
    duo.primary.pairing.tick()
    if duo.primary.register_asked is not None:
        duo.register_answers(duo.primary)
    assert duo.primary.asked == ("ASK",)
    duo.primary.answer(following("B1", 3))
    assert duo.primary.register_asked is None
    duo.primary.sleep(BACKUP_TIMEOUT_MS)
    duo.primary.timer()
    duo.primary.answer(following("B1", 3))
    assert duo.primary.register_asked == P_ALONE, "now its time is up"


def test_with_a_register_a_stall_is_no_reason_to_wait() -> None:
    for duo in (primary_in_doubt(), backup_in_doubt()):
        world = duo.primary if duo.primary.asked else duo.backup
        world.stand_still(9_000)
        assert not world.replica.stalled
        world.answer(NoAnswer.GONE)
        assert isinstance(world.register_asked, View)


def test_a_backup_with_manual_failover_proposes_nothing() -> None:
    duo = backup_in_doubt(failover_auto=False)
    assert duo.backup.register_asked == GET
    duo.register_answers(duo.backup)
    assert duo.backup.asked == ("ASK",)
    duo.backup.answer(NoAnswer.GONE)
    assert duo.backup.proposals == [] and duo.backup.replica.role is Role.BACKUP


# -- what the register says to a primary ----------------------------------------------------------


def test_a_primary_that_has_won_goes_on() -> None:
    world = primary_proposing().primary
    world.register_says(Cas.WON, P_ALONE)
    assert is_alone(world) and world.pairing.mode == "solo"


def test_a_primary_that_has_lost_to_its_backup_is_deposed() -> None:
    world = primary_proposing().primary
    world.register_says(Cas.LOST, B_ALONE)
    assert is_deposed(world) and world.pairing.mode == "deposed"
    assert world.register_asked == GET or world.asked == ("ASK",), "it looks for the other"


def test_a_primary_without_an_answer_from_the_register_asks_on_and_says_nothing() -> None:
    duo = primary_proposing()
    world = duo.primary
    for _ in range(3):
        world.register_says(Cas.UNDECIDED)
        assert is_blocked(world) and world.asked is None
        world.timer()
        world.answer(NoAnswer.GONE)
        assert world.register_asked == P_ALONE
    assert not world.pairing.inquiry.register_answers
    assert sum("no change of roles is possible" in line for line in world.logged) == 1
    duo.register_answers(world)
    assert is_alone(world) and world.says("the view register answers again")


def test_a_proposal_that_won_without_an_answer_is_found_by_the_next_one() -> None:
    duo = primary_proposing()
    assert duo.cas(P_ALONE)[0] is Cas.WON
    duo.primary.register_says(Cas.UNDECIDED)
    assert is_blocked(duo.primary)
    duo.primary.timer()
    duo.primary.answer(NoAnswer.GONE)
    assert duo.primary.register_asked == P_ALONE
    duo.register_answers(duo.primary)  # LOST, to this very view
    assert is_alone(duo.primary)


def test_a_proposal_that_won_without_an_answer_is_found_by_a_look_too() -> None:
    duo = primary_proposing()
    duo.cas(P_ALONE)
    duo.primary.register_says(Cas.UNDECIDED)
    looks_at_register(duo.primary)
    duo.register_answers(duo.primary)
    assert is_alone(duo.primary)


def test_to_read_the_epoch_that_was_known_proves_nothing() -> None:
    duo = primary_proposing()
    duo.primary.register_says(Cas.UNDECIDED)
    looks_at_register(duo.primary)
    duo.primary.register_says(None, PAIR)
    assert is_blocked(duo.primary), "the proposal may still win"
    assert duo.primary.asked == ("ASK",)


@pytest.mark.parametrize("result", [Cas.LOST, None])
@pytest.mark.parametrize("view", [View(2, "P", ("P",)), View(1, "", ()), NO_VIEW])
def test_a_register_that_has_forgotten_decides_nothing(view: View, result: Cas | None) -> None:
    world = primary_proposing().primary
    if result is None:
        world.register_says(Cas.UNDECIDED)
        looks_at_register(world)
    world.register_says(result, view)
    assert is_blocked(world) and world.says("the view register has forgotten")
    assert world.timer_ms is not None and world.asked is None, "it asks again, and not at once"


def test_how_the_register_is_and_why_it_decides_nothing() -> None:
    world = Duo(register=True).primary
    ballot = world.pairing.inquiry.ballot
    assert (ballot.register_status, ballot.trouble) == ("unknown", "")
    world = paired(register=True).primary
    ballot = world.pairing.inquiry.ballot
    assert (ballot.register_status, ballot.trouble, ballot.shown_epoch) == ("up", "", 3)
    looks_at_register(world)
    world.register_says(Cas.UNDECIDED)
    assert ballot.register_status == "down" and "does not answer" in ballot.trouble
    looks_at_register(world)
    world.register_says(None, View(1, "P", ("P",)))
    assert ballot.register_status == "forgotten" and "view init --from" in ballot.trouble
    assert ballot.shown_epoch == 1 and ballot.seen == PAIR
    ballot.look()
    world.register_says(None, PAIR)
    assert (ballot.register_status, ballot.trouble) == ("up", "")


def test_a_pair_whose_register_has_forgotten_serves_on() -> None:
    duo = paired(register=True)
    looks_at_register(duo.primary)
    duo.primary.register_says(None, NO_VIEW)
    assert duo.primary.pairing.mode == "paired"
    assert duo.primary.says("the view register has forgotten: it is in epoch 0")
    duo.primary.lock("c")
    duo.carry()
    assert duo.primary.released == ["c"]


@pytest.mark.parametrize("view", [B_ALONE, View(9, "X", ("X",)), VACANT])
def test_a_primary_that_reads_of_another_one_stands_down_whatever_it_was_doing(
    view: View,
) -> None:
    for duo in (paired(register=True), primary_in_doubt()):
        if duo.primary.asked is not None:
            duo.primary.answer(NoAnswer.STRANGER)
        looks_at_register(duo.primary)
        duo.primary.register_says(None, view)
        assert duo.primary.replica.role is Role.EMPTY
        assert duo.primary.clients_closed == 1


def test_a_view_that_is_known_changes_nothing() -> None:
    duo = paired(register=True)
    for view in (PAIR, View(3, "P", ("P", "B9")), View(2, "X", ("X",))):
        looks_at_register(duo.primary)
        duo.primary.register_says(None, view)
        duo.carry()
        assert duo.primary.pairing.mode == "paired" and duo.primary.replica.view == PAIR


@pytest.mark.parametrize("view", [View(3, "B1", ("B1",)), View(3, "X", ("X",)), View(3, "", ())])
def test_a_primary_that_reads_of_another_one_in_its_own_epoch_stands_down(view: View) -> None:
    """One of the two was forced: it is the register that decides which."""
    duo = paired(register=True)
    looks_at_register(duo.primary)
    duo.primary.register_says(None, view)
    assert duo.primary.replica.role is Role.EMPTY and duo.primary.pairing.mode == "deposed"
    assert duo.primary.clients_closed == 1
    assert duo.primary.says("vacant: an operator has declared") == view.is_vacant


# -- the admission of a backup --------------------------------------------------------------------


def admitting() -> Duo:
    """P has proposed B to the register, which has not answered."""
    duo = joining(register=True)
    assert duo.primary.register_asked == PAIR
    assert duo.primary.replica.phase is Phase.PROPOSED
    duo.primary.released.clear()
    duo.primary.sleep(100)
    duo.backup.sleep(100)
    return duo


def test_a_backup_is_told_when_the_register_has_admitted_it_and_not_before() -> None:
    duo = admitting()
    duo.primary.lock("c")
    duo.carry()
    assert duo.primary.replica.view.epoch == 2 and not duo.backup.replica.is_member
    duo.register_answers(duo.primary)
    duo.carry()
    assert duo.primary.replica.view == duo.backup.replica.view == PAIR
    assert duo.backup.replica.is_member


def test_from_the_proposal_on_nothing_leaves_without_the_backups_ack() -> None:
    duo = admitting()
    duo.primary.lock("c")
    assert duo.primary.released == []
    duo.carry()
    assert duo.primary.released == ["c"], "it has it, and may well be promoted with it"


def test_an_admission_without_an_answer_is_proposed_again() -> None:
    duo = admitting()
    for won in (False, True):
        if won:
            duo.cas(PAIR)
        duo.primary.register_says(Cas.UNDECIDED)
        assert duo.primary.replica.phase is Phase.PROPOSED and duo.primary.register_asked is None
        duo.primary.tick()
        assert duo.primary.register_asked == PAIR
    duo.register_answers(duo.primary)  # LOST, to this very view
    duo.carry()
    assert duo.backup.replica.is_member and duo.primary.pairing.mode == "paired"


def test_a_backup_lost_while_its_admission_is_decided_blocks_the_primary() -> None:
    duo = admitting()
    duo.primary.lock("c")
    duo.lose_link_of(duo.primary)
    assert is_blocked(duo.primary) and duo.primary.asked is None
    duo.register_answers(duo.primary)  # it was admitted, too late to be told
    assert is_blocked(duo.primary) and duo.primary.replica.view == PAIR
    assert duo.primary.asked == ("ASK",)
    duo.primary.answer(NoAnswer.GONE)
    assert duo.primary.register_asked == P_ALONE
    duo.register_answers(duo.primary)
    assert is_alone(duo.primary)


def test_an_admission_that_won_without_an_answer_is_undone_in_the_epoch_after_it() -> None:
    duo = admitting()
    duo.primary.lock("c")
    duo.cas(PAIR)
    duo.lose_link_of(duo.primary)
    duo.primary.register_says(Cas.UNDECIDED)
    duo.primary.timer()
    duo.primary.answer(NoAnswer.GONE)
    assert duo.primary.register_asked == View(3, "P", ("P",)), "as far as it knows"
    duo.register_answers(duo.primary)  # LOST, to its own earlier proposal
    assert is_blocked(duo.primary) and duo.primary.replica.view == PAIR
    duo.primary.answer(NoAnswer.GONE)
    assert duo.primary.register_asked == P_ALONE
    duo.register_answers(duo.primary)
    assert is_alone(duo.primary) and duo.view == P_ALONE


def test_an_admission_that_did_not_win_is_undone_in_its_own_epoch() -> None:
    duo = admitting()
    duo.primary.lock("c")
    duo.lose_link_of(duo.primary)
    duo.primary.register_says(Cas.UNDECIDED)
    duo.primary.timer()
    duo.primary.answer(NoAnswer.GONE)
    duo.register_answers(duo.primary)
    assert is_alone(duo.primary, 3)
    assert duo.cas(PAIR)[0] is Cas.LOST, "should it arrive after all"
    looks_at_register(duo.primary)
    assert duo.primary.proposals[-1] == View(3, "P", ("P",)), "and it is not proposed again"


def test_two_proposals_that_won_without_an_answer_are_found_at_once() -> None:
    duo = admitting()
    duo.primary.lock("c")
    duo.lose_link_of(duo.primary)
    duo.primary.register_says(Cas.UNDECIDED)
    looks_at_register(duo.primary)
    duo.primary.register_says(None, P_ALONE)
    assert is_alone(duo.primary)


def test_a_backup_that_was_admitted_without_being_told_takes_over() -> None:
    duo = admitting()
    duo.cas(PAIR)
    duo.lose_link_of(duo.backup)
    assert not duo.backup.replica.is_member
    assert duo.backup.register_asked == GET, "it may be one without knowing"
    duo.register_answers(duo.backup)
    assert duo.backup.asked == ("ASK",)
    duo.backup.answer(NoAnswer.GONE)
    assert duo.backup.register_asked == B_ALONE
    duo.register_answers(duo.backup)
    assert duo.backup.replica.role is Role.PRIMARY and duo.backup.replica.view == B_ALONE
    duo.primary.lock("c")
    duo.lose_link_of(duo.primary)
    duo.primary.register_says(Cas.LOST, duo.view)
    assert is_deposed(duo.primary)


def test_a_backup_that_was_not_admitted_does_not_take_over() -> None:
    duo = admitting()
    duo.lose_link_of(duo.backup)
    duo.register_answers(duo.backup)
    assert duo.backup.asked == ("ASK",)
    duo.backup.answer(NoAnswer.GONE)
    assert duo.backup.proposals == [] and duo.backup.replica.role is Role.BACKUP


def test_a_primary_whose_admission_finds_another_primary_stands_down() -> None:
    duo = admitting()
    duo.primary.lock("c")
    duo.primary.register_says(Cas.LOST, View(3, "X", ("X",)))
    assert is_deposed(duo.primary)


# -- what the register says to a backup -----------------------------------------------------------


def test_a_backup_that_has_won_is_promoted() -> None:
    world = backup_proposing().backup
    world.register_says(Cas.WON, B_ALONE)
    assert world.replica.role is Role.PRIMARY and world.replica.view == B_ALONE
    assert world.pairing.mode == "solo" and world.says("PROMOTED in epoch 4")


def test_a_backup_that_has_lost_is_no_member_any_more_and_rejoins() -> None:
    duo = backup_proposing()
    duo.cas(P_ALONE)
    duo.register_answers(duo.backup)
    assert duo.backup.replica.role is Role.BACKUP and duo.backup.replica.synced
    assert duo.backup.asked == ("ASK",) and not duo.backup.dialling
    duo.backup.answer(NoAnswer.GONE)
    assert duo.backup.register_asked is None, "it proposes itself no more"
    duo.backup.timer()
    if duo.backup.register_asked == GET:
        duo.register_answers(duo.backup)
    duo.backup.answer(serving("P", 4))
    assert duo.backup.dialling


def test_a_promotion_without_an_answer_is_asked_for_again() -> None:
    duo = backup_proposing()
    for _ in range(3):
        duo.backup.register_says(Cas.UNDECIDED)
        assert duo.backup.replica.role is Role.BACKUP and duo.backup.asked is None
        duo.backup.timer()
        duo.backup.answer(NoAnswer.GONE)
        assert duo.backup.register_asked == B_ALONE
    duo.register_answers(duo.backup)
    assert duo.backup.replica.view == B_ALONE


def test_a_promotion_that_won_without_an_answer_is_found() -> None:
    for way in ("proposal", "look"):
        duo = backup_proposing()
        duo.cas(B_ALONE)
        duo.backup.register_says(Cas.UNDECIDED)
        if way == "look":
            looks_at_register(duo.backup)
        else:
            duo.backup.timer()
            duo.backup.answer(NoAnswer.GONE)
        duo.register_answers(duo.backup)
        assert duo.backup.replica.view == B_ALONE and duo.backup.replica.role is Role.PRIMARY, way


def test_a_backup_whose_proposal_is_not_settled_joins_nobody() -> None:
    # Joined under another incarnation it would be a primary that there is no more (R3).
    for wins in (True, False):
        duo = backup_proposing()
        duo.backup.register_says(Cas.UNDECIDED)
        duo.backup.timer()
        duo.backup.answer(serving("P", 3))
        assert not duo.backup.dialling and duo.backup.register_asked == B_ALONE
        duo.cas(B_ALONE if wins else P_ALONE)
        duo.register_answers(duo.backup)
        assert (duo.backup.replica.role is Role.PRIMARY) == wins
        if not wins:
            duo.backup.answer(serving("P", 4))
            assert duo.backup.dialling, "now it may"


@pytest.mark.parametrize("way", ["an operator's word is over", "configured otherwise"])
def test_one_that_may_not_promote_itself_any_more_settles_its_proposal_all_the_same(
    way: str,
) -> None:
    if way == "configured otherwise":
        duo = backup_proposing()
        duo.backup.pairing.settings = duo.backup.pairing.settings._replace(failover_auto=False)
    else:
        duo = paired(register=True, failover_auto=False)
        duo.backup.pairing.inquiry.insist()
        duo.backup.answer(NoAnswer.GONE)
        duo.lose_link_of(duo.backup)
        duo.backup.pairing.inquiry.insists = False  # as ``by_hand`` does when its time is up
    assert duo.backup.register_asked == B_ALONE
    duo.backup.register_says(Cas.UNDECIDED)
    for _ in range(6):
        if duo.backup.asked is not None:
            duo.backup.answer(serving("P", 3))
        if duo.backup.register_asked is not None:
            # It does not show yet, and may still win.
            asked = duo.backup.register_asked
            duo.backup.sleep(1)
            duo.backup.register_says(*((None, PAIR) if asked == GET else (Cas.UNDECIDED,)))
        assert not duo.backup.dialling, "it would drop the identity that may win"
        if duo.backup.timer_ms is not None:
            duo.backup.timer()


@pytest.mark.parametrize("view", [View(2, "P", ("P",)), View(1, "", ()), NO_VIEW])
def test_a_backup_whose_register_has_forgotten_is_not_promoted_and_does_not_hammer_it(
    view: View,
) -> None:
    world = backup_proposing().backup
    world.register_says(Cas.LOST, view)
    assert world.replica.role is Role.BACKUP and world.replica.synced
    for _ in range(3):  # a question or two may be under way at once, but then it pauses
        if world.asked is not None:
            world.answer(NoAnswer.GONE)
        if world.register_asked is not None:
            world.register_says(Cas.LOST if world.register_asked != GET else None, view)
    assert world.timer_ms is not None, "it asks and proposes without a pause"


@pytest.mark.parametrize("linked", [True, False])
def test_a_backup_that_reads_of_a_vacant_register_drops_its_state(linked: bool) -> None:
    duo = paired(register=True) if linked else backup_in_doubt(failover_auto=False)
    if linked:
        looks_at_register(duo.backup)
    duo.backup.register_says(None, VACANT)
    assert duo.backup.replica.role is Role.EMPTY and duo.backup.pairing.link is None
    assert duo.backup.replica.incarnation != "B1"
    assert duo.backup.says("this node drops its state, which was at offset")


def test_a_linked_backup_that_reads_of_a_view_without_it_waits_for_its_primary_to_tell() -> None:
    duo = paired(register=True)
    looks_at_register(duo.backup)
    duo.backup.register_says(None, P_ALONE)
    assert duo.backup.replica.role is Role.BACKUP
    duo.lose_link_of(duo.backup)
    assert duo.backup.proposals == [], "it is no member, and proposes nothing"


# -- an empty node, and a vacant register ---------------------------------------------------------


def empty(**settings: Any) -> World:
    """A node that has just started and has asked the register."""
    world = World("E", has_register=True, **settings)
    world.pairing.start()
    assert world.register_asked == GET, "the register comes first"
    return world


@pytest.mark.parametrize(
    ("settings", "outcome", "silent_ms", "claims"),
    [
        ({"first_primary": True}, blank("B"), 0, True),
        ({"first_primary": True}, NoAnswer.GONE, 0, True),
        ({"bootstrap": True}, blank("B"), 0, True),
        ({}, blank("P"), 9_000, False),
        ({}, NoAnswer.GONE, 0, False),
        ({}, NoAnswer.GONE, PROMOTION_TIMEOUT_MS, True),
        ({}, NoAnswer.SILENT, PROMOTION_TIMEOUT_MS, True),
        ({}, Answer("P", Standing.HEARD, False, NO_VIEW), 9_000, False),
    ],
)
def test_who_claims_a_vacant_register(
    settings: dict[str, bool], outcome: Answer | NoAnswer, silent_ms: int, claims: bool
) -> None:
    world = empty(**settings)
    world.register_says(None, VACANT)
    if silent_ms:
        world.answer(outcome)
        world.sleep(silent_ms)
        world.timer_ms = None
        world.pairing.proceed()
        if world.register_asked == GET:
            world.register_says(None, VACANT)
    world.answer(outcome)
    assert world.proposals == ([View(5, "E", ("E",))] if claims else [])
    assert world.replica.role is Role.EMPTY
    if claims:
        world.register_says(Cas.WON, View(5, "E", ("E",)))
        assert world.replica.role is Role.PRIMARY and world.replica.view == View(5, "E", ("E",))


@pytest.mark.parametrize(
    ("view", "says"),
    [
        (NO_VIEW, "'holdfast view init' begins"),
        (View(3, "P", ("P",)), "the register's primary of epoch 3 is not there"),
    ],
)
@pytest.mark.parametrize("settings", [{"first_primary": True}, {"bootstrap": True}])
def test_a_register_that_is_not_vacant_is_claimed_by_nobody(
    view: View, says: str, settings: dict[str, bool]
) -> None:
    for outcome in (*NoAnswer, blank("B")):
        world = empty(**settings)
        world.register_says(None, view)
        world.sleep(9_000)
        world.answer(outcome)
        assert world.proposals == [] and world.replica.role is Role.EMPTY
        assert world.says(says)
        world.timer()


def test_a_register_that_does_not_answer_is_claimed_by_nobody() -> None:
    world = empty(first_primary=True)
    world.register_says(Cas.UNDECIDED)
    world.answer(blank("B"))
    assert world.replica.role is Role.EMPTY and world.proposals == []
    assert world.says("the view register does not answer")


def test_a_node_that_finds_a_primary_joins_it_without_the_register() -> None:
    world = empty()
    world.register_says(Cas.UNDECIDED)
    world.answer(serving("P", 3))
    assert world.dialling


def test_a_claim_that_won_without_an_answer_is_found() -> None:
    for way in ("proposal", "look"):
        world = empty(first_primary=True)
        world.register_says(None, VACANT)
        world.answer(blank("B"))
        claim = View(5, "E", ("E",))
        assert world.register_asked == claim
        world.register_says(Cas.UNDECIDED)
        assert world.replica.role is Role.EMPTY
        if way == "look":
            world.answer(blank("B"))
            looks_at_register(world)
            world.register_says(None, claim)
        else:
            for _ in range(20):
                if world.asked is not None:
                    world.answer(blank("B"))
                elif world.register_asked is None:
                    world.timer()
            world.register_says(None if world.register_asked == GET else Cas.LOST, claim)
        assert world.replica.role is Role.PRIMARY and world.replica.view == claim, way


def test_of_two_that_claim_one_begins_and_the_other_joins_it() -> None:
    world = empty(first_primary=True)
    world.register_says(None, VACANT)
    world.answer(blank("B"))
    world.register_says(Cas.LOST, View(5, "B", ("B",)))
    assert world.replica.role is Role.EMPTY
    if world.register_asked == GET:
        world.register_says(None, View(5, "B", ("B",)))
    world.answer(serving("B", 5))
    assert world.dialling


def test_a_deposed_node_does_not_claim_a_register_that_has_forgotten_it() -> None:
    duo = primary_proposing()
    duo.primary.register_says(Cas.LOST, B_ALONE)
    world = duo.primary
    assert is_deposed(world)
    for _ in range(4):
        if world.register_asked is not None:
            world.register_says(None if world.register_asked == GET else Cas.LOST, View(1, "", ()))
        if world.asked is not None:
            world.sleep(9_000)
            world.answer(NoAnswer.SILENT)
        if world.timer_ms is not None:
            world.timer()
    assert world.proposals == [P_ALONE] and world.replica.role is Role.EMPTY


def test_a_serving_primary_whose_register_is_declared_vacant_begins_anew_only_by_a_claim() -> None:
    duo = paired(register=True)
    duo.view = VACANT
    looks_at_register(duo.primary)
    duo.register_answers(duo.primary)
    world = duo.primary
    assert world.replica.role is Role.EMPTY
    if world.register_asked == GET:
        duo.register_answers(world)
    world.answer(blank("B"))
    assert world.register_asked == View(5, world.replica.incarnation, (world.replica.incarnation,))
    duo.register_answers(world)
    assert world.replica.role is Role.PRIMARY and world.replica.view.epoch == 5


# -- two primaries, by force ----------------------------------------------------------------------


def test_of_two_primaries_the_one_of_the_lower_epoch_stands_down() -> None:
    for epoch, stays in ((3, True), (4, True), (5, False)):
        duo = primary_proposing()
        duo.primary.register_says(Cas.WON, P_ALONE)
        duo.primary.sleep(limits.LOOK_AROUND_MS)
        duo.primary.tick()
        if duo.primary.register_asked is not None:
            duo.primary.register_says(None, P_ALONE)
        assert duo.primary.asked == ("ASK",)
        duo.primary.answer(serving("B1", epoch, since=epoch))
        assert (duo.primary.replica.role is Role.PRIMARY) == stays, epoch


def forced() -> Duo:
    """An operator has forced B to serve: it reads the register first."""
    duo = paired(register=True)
    looks_at_register(duo.backup)
    duo.register_answers(duo.backup)
    duo.lose_link_of(duo.backup)
    duo.backup.answer(NoAnswer.SILENT)
    duo.backup.timer_ms = None
    duo.backup.pairing.promote_by_force(duo.backup.pairing.inquiry.seen.epoch)
    assert duo.backup.replica.view == B_ALONE
    duo.backup.pairing.inquiry.record(B_ALONE)
    assert duo.backup.register_asked == GET
    return duo


def ticks_and_looks_around(world: World) -> None:
    """A heartbeat later; the peer, if it is asked, does not answer."""
    if world.asked is not None:
        world.answer(NoAnswer.SILENT)
    world.sleep(100)
    world.tick()


def test_what_an_operator_has_forced_is_recorded() -> None:
    duo = forced()
    duo.register_answers(duo.backup)
    ticks_and_looks_around(duo.backup)
    assert duo.backup.register_asked == B_ALONE
    duo.register_answers(duo.backup)
    assert duo.view == B_ALONE and duo.backup.replica.role is Role.PRIMARY


def test_what_an_operator_has_forced_is_recorded_again_until_the_register_has_it() -> None:
    duo = forced()
    duo.register_answers(duo.backup)
    for _ in range(3):
        ticks_and_looks_around(duo.backup)
        assert duo.backup.register_asked == B_ALONE
        duo.backup.register_says(Cas.UNDECIDED)
        assert duo.backup.replica.role is Role.PRIMARY
    ticks_and_looks_around(duo.backup)
    duo.register_answers(duo.backup)
    assert duo.view == B_ALONE and duo.backup.proposals == [B_ALONE] * 4
    for _ in range(3):
        ticks_and_looks_around(duo.backup)
        if duo.backup.register_asked is not None:
            duo.register_answers(duo.backup)
    assert duo.backup.proposals == [B_ALONE] * 4, "it is there"
    assert duo.backup.replica.view == B_ALONE


def test_a_register_that_cannot_be_read_at_first_is_told_later_what_was_forced() -> None:
    duo = forced()
    duo.backup.register_says(Cas.UNDECIDED)
    for _ in range(30):
        ticks_and_looks_around(duo.backup)
        if duo.backup.register_asked is not None:
            duo.register_answers(duo.backup)
    assert duo.view == B_ALONE == duo.backup.replica.view


def test_who_was_forced_stands_down_for_another_one_of_that_epoch_and_insists_no_more() -> None:
    duo = forced()
    duo.view = P_ALONE
    duo.register_answers(duo.backup)
    assert duo.backup.replica.role is Role.EMPTY and duo.backup.pairing.mode == "deposed"
    for _ in range(30):
        ticks_and_looks_around(duo.backup)
        if duo.backup.register_asked is not None:
            duo.register_answers(duo.backup)
    assert duo.backup.proposals == [] and duo.view == P_ALONE


# -- an operator's word ---------------------------------------------------------------------------


def test_one_that_is_made_to_follow_proposes_nothing_of_what_it_wanted_as_a_primary() -> None:
    was_forced, was_admitting = forced().backup, admitting().primary
    for world in (was_forced, was_admitting):
        world.register_says(Cas.UNDECIDED)
        before = list(world.proposals)
        world.pairing.stand_down("an operator says so")
        world.pairing.link = ScriptedLink(world, "another primary")
        for _ in range(3):
            ticks_and_looks_around(world)
            if world.register_asked is not None:
                world.register_says(Cas.UNDECIDED)
        assert world.proposals == before


def test_a_backup_that_is_to_be_promoted_asks_the_primary_and_then_the_register() -> None:
    duo = paired(register=True)
    duo.backup.pairing.inquiry.insist()
    assert duo.backup.asked == ("ASK",)
    duo.backup.answer(serving("P", 3))
    assert "is alive and serves" in duo.backup.pairing.inquiry.refused
    assert duo.backup.proposals == [] and duo.backup.pairing.link is not None
    duo.backup.pairing.inquiry.insist()
    duo.backup.answer(NoAnswer.GONE)
    assert duo.backup.register_asked == B_ALONE
    duo.register_answers(duo.backup)
    assert duo.backup.replica.role is Role.PRIMARY


def test_a_backup_that_the_register_leaves_out_is_refused_its_promotion() -> None:
    duo = paired(register=True, failover_auto=False)
    duo.backup.pairing.inquiry.insist()
    duo.backup.answer(NoAnswer.GONE)
    duo.cas(P_ALONE)
    duo.register_answers(duo.backup)
    assert "goes on without this node" in duo.backup.pairing.inquiry.refused
    assert duo.backup.replica.role is Role.BACKUP


# -- the planned change of roles (FAILOVER) -------------------------------------------------------


def asked_to_switch() -> Duo:
    """P is to hand over, and B has acknowledged that it is there; the register is being read."""
    duo = paired(register=True)
    assert duo.primary.pairing.switch(0) == ""
    assert duo.primary.register_asked == GET
    duo.carry_to_backup()
    duo.carry_to_primary()
    duo.primary.pairing.end_turn()
    assert duo.primary.replica.is_quiet
    assert duo.primary.pairing.switching == "waiting-for-sync", "the register has not answered"
    return duo


def switching() -> Duo:
    """P has told B to take over; B has read that."""
    duo = asked_to_switch()
    duo.register_answers(duo.primary)
    duo.carry_to_backup()
    assert duo.primary.pairing.switching == "failover-in-progress"
    assert duo.backup.register_asked == B_ALONE and duo.backup.asked is None
    assert duo.backup.replica.role is Role.BACKUP
    return duo


def test_the_roles_change_when_the_register_says_so() -> None:
    duo = switching()
    duo.register_answers(duo.backup)
    assert duo.backup.replica.view == B_ALONE and duo.backup.replica.role is Role.PRIMARY
    duo.lose_link_of(duo.primary)
    assert duo.primary.asked == ("ASK",)
    duo.primary.answer(duo.backup.replica.answer())
    assert duo.primary.replica.role is Role.BACKUP and duo.primary.replica.synced
    assert duo.primary.clients_closed == 0 and duo.primary.pairing.switching == ""


def test_the_roles_change_when_the_primary_reads_of_it_before_it_hears_of_it() -> None:
    duo = switching()
    duo.register_answers(duo.backup)
    looks_at_register(duo.primary)
    duo.register_answers(duo.primary)
    assert duo.primary.replica.role is Role.BACKUP and duo.primary.replica.synced
    assert duo.primary.clients_closed == 0 and duo.primary.pairing.switching == ""
    assert duo.primary.pairing.has_handed_over and duo.primary.replica.view == B_ALONE
    assert duo.primary.pairing.link is None, "and looks for it"
    if duo.primary.register_asked == GET:
        duo.register_answers(duo.primary)
    duo.primary.answer(duo.backup.replica.answer())
    assert duo.primary.dialling


@pytest.mark.parametrize("view", [View(4, "X", ("X",)), View(5, "B1", ("B1",)), VACANT])
def test_a_primary_that_has_handed_over_stands_down_for_any_other_view(view: View) -> None:
    duo = switching()
    looks_at_register(duo.primary)
    duo.primary.register_says(None, view)
    assert duo.primary.replica.role is Role.EMPTY and duo.primary.clients_closed == 1
    assert duo.primary.pairing.switching == "" and not duo.primary.pairing.has_handed_over


def test_a_switch_is_off_when_the_register_does_not_answer() -> None:
    duo = asked_to_switch()
    duo.primary.register_says(Cas.UNDECIDED)
    duo.primary.pairing.end_turn()
    assert duo.primary.pairing.switching == "waiting-for-sync", "nobody was told"
    duo.primary.tick()
    assert duo.primary.pairing.switching == "" and duo.primary.pairing.switches_failed == 1
    assert duo.primary.says("FAILOVER is off: the view register does not answer")
    assert duo.primary.pairing.mode == "paired"
    refused = duo.primary.pairing.switch(0)
    assert refused.startswith("ERR FAILOVER needs the view register")
    assert duo.primary.pairing.switching == ""


def test_a_switch_is_possible_again_when_the_register_answers_again() -> None:
    duo = asked_to_switch()
    duo.primary.register_says(Cas.UNDECIDED)
    looks_at_register(duo.primary)
    duo.register_answers(duo.primary)
    assert duo.primary.pairing.switch(0) == ""
    duo.carry()
    assert duo.primary.pairing.switching == "waiting-for-sync", "that answer was of before"
    duo.register_answers(duo.primary)
    duo.primary.pairing.end_turn()
    assert duo.primary.pairing.switching == "failover-in-progress"


def test_a_handover_without_an_answer_from_the_register_is_asked_for_again() -> None:
    duo = switching()
    for _ in range(3):
        duo.backup.register_says(Cas.UNDECIDED)
        assert duo.backup.replica.role is Role.BACKUP
        duo.backup.timer()
        assert duo.backup.register_asked == B_ALONE
    duo.register_answers(duo.backup)
    assert duo.backup.replica.role is Role.PRIMARY


def test_a_primary_whose_handover_comes_to_nothing_goes_on_when_the_register_says_so() -> None:
    duo = switching()
    duo.lose_link_of(duo.primary)
    duo.primary.answer(NoAnswer.GONE)
    assert duo.primary.register_asked == P_ALONE and duo.primary.replica.blocked
    duo.register_answers(duo.primary)
    assert duo.primary.replica.view == P_ALONE and duo.primary.pairing.mode == "solo"
    assert duo.primary.pairing.switching == "" and duo.primary.pairing.switches_failed == 1
    duo.register_answers(duo.backup)
    assert duo.backup.replica.role is Role.BACKUP
    duo.lose_link_of(duo.backup)
    assert duo.backup.register_asked is None or duo.backup.register_asked == GET
    assert duo.backup.proposals == [B_ALONE], "it does not insist"


def test_a_backup_that_hangs_after_it_was_told_to_take_over_is_asked_about() -> None:
    # It has acknowledged HANDOVER, has not proposed itself, and stands still: its link stands too.
    duo = switching()
    duo.carry_to_primary()
    duo.primary.sleep(BACKUP_TIMEOUT_MS)
    for _ in range(100):
        duo.primary.sleep(100)
        duo.primary.tick()
        if duo.primary.register_asked is not None:
            duo.register_answers(duo.primary)
        if duo.primary.asked is not None:
            duo.primary.answer(NoAnswer.SILENT)
        if duo.primary.timer_ms is not None:
            duo.primary.timer()
    assert duo.primary.replica.view == P_ALONE, "silent for ten seconds, and nobody minds"
    assert duo.primary.pairing.switching == ""


# -- an operator's word, and a register that is behind -------------------------------------------


def test_a_promotion_by_force_is_recorded_although_the_admission_was_not_seen() -> None:
    duo = backup_in_doubt()
    duo.backup.answer(NoAnswer.SILENT)
    inquiry = duo.backup.pairing.inquiry
    duo.backup.pairing.promote_by_force(inquiry.seen.epoch)
    inquiry.record(duo.backup.replica.view)
    for _ in range(30):
        if duo.backup.asked is not None:
            duo.backup.answer(NoAnswer.SILENT)
        duo.backup.sleep(100)
        duo.backup.tick()
        if duo.backup.register_asked is not None:
            duo.register_answers(duo.backup)
    assert duo.view == B_ALONE


def test_nothing_is_handed_over_under_a_register_that_has_forgotten() -> None:
    duo = paired(register=True)
    duo.view = View(1, "", ())
    assert duo.primary.pairing.switch(0) == ""
    duo.carry()
    duo.register_answers(duo.primary)
    duo.carry()
    duo.primary.tick()
    assert duo.primary.pairing.switching == ""
    assert duo.primary.replica.role is Role.PRIMARY and not duo.primary.replica.blocked


def test_an_answer_of_before_the_switch_does_not_count() -> None:
    duo = paired(register=True)
    looks_at_register(duo.primary)
    duo.carry()
    assert duo.primary.pairing.switch(0) == ""
    duo.carry()
    duo.register_answers(duo.primary)  # it was asked before
    duo.carry()
    assert duo.primary.pairing.switching == "waiting-for-sync"
    duo.register_answers(duo.primary)
    duo.carry()
    duo.primary.pairing.end_turn()
    assert duo.primary.pairing.switching == "failover-in-progress"


def test_the_own_view_as_the_register_shows_it_moves_nothing() -> None:
    duo = paired(register=True)
    looks_at_register(duo.primary)
    duo.primary.register_says(None, View(3, "P", ("P",)))
    assert duo.primary.replica.phase is Phase.MEMBER
