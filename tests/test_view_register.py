"""The view register of ``fail-stop``: compare-and-set by asking the peer (I3, F4)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from harness.replicas import Pair

from holdfast.server.core.failover import Answer, NoAnswer, Standing
from holdfast.server.core.replica import Replica
from holdfast.server.core.view import Cas, View
from holdfast.server.view_register import FailStop

SILENT_MS = 10_000


class Peer:
    """What comes back when the peer is asked, and what happens while one waits for it."""

    def __init__(
        self, outcome: Answer | NoAnswer, meanwhile: Callable[[], None] | None = None
    ) -> None:
        self.outcome = outcome
        self.meanwhile = meanwhile
        self.asked: list[View] = []

    def __call__(self, view: View) -> Answer | NoAnswer:
        self.asked.append(view)
        if self.meanwhile is not None:
            self.meanwhile()
        return self.outcome


def nothing_asked(view: View) -> Answer | NoAnswer:
    raise AssertionError(f"nobody is to be asked about {view}")


def of_pair() -> tuple[Replica, Replica]:
    pair = Pair()
    pair.join()
    return pair.primary.replica, pair.backup.replica


def register(
    replica: Replica,
    ask: Callable[[View], Answer | NoAnswer] = nothing_asked,
    *,
    suspect: str = "B",
    silent_ms: int = 0,
) -> FailStop:
    return FailStop(replica, ask, lambda: (suspect, silent_ms, 1_000))


def an_answer(
    incarnation: str = "B",
    standing: Standing = Standing.STATE,
    *,
    accepted: bool = False,
    epoch: int = 2,
) -> Answer:
    return Answer(incarnation, standing, accepted, View(epoch, incarnation, (incarnation,)))


def test_it_knows_the_view_of_this_node() -> None:
    primary, _ = of_pair()
    assert register(primary).get() == primary.view == View(2, "P", ("P", "B"))


def test_a_view_that_leaves_nobody_out_is_won_without_asking() -> None:
    pair = Pair()
    proposal = pair.primary.replica.view.joined_by("B")
    assert register(pair.primary.replica).cas(proposal) == (Cas.WON, proposal)


@pytest.mark.parametrize("epoch", [0, 1, 2, 4, 5])
def test_only_the_very_next_epoch_can_be_won(epoch: int) -> None:
    primary, _ = of_pair()
    result = register(primary).cas(View(epoch, "P", ("P",)))
    assert result == (Cas.LOST, primary.view)


def test_the_one_that_is_left_out_is_asked_about_that_very_view() -> None:
    primary, _ = of_pair()
    peer = Peer(an_answer(accepted=True))
    proposal = primary.view.alone("P")
    assert register(primary, peer).cas(proposal) == (Cas.WON, proposal)
    assert peer.asked == [proposal]


@pytest.mark.parametrize(
    ("outcome", "silent_ms", "result"),
    [
        (NoAnswer.GONE, 0, Cas.WON),
        (NoAnswer.SILENT, 0, Cas.UNDECIDED),
        (NoAnswer.SILENT, SILENT_MS, Cas.WON),
        (an_answer("another"), 0, Cas.WON),
        (an_answer(), SILENT_MS, Cas.UNDECIDED),
        (an_answer(standing=Standing.SERVING, epoch=3), 0, Cas.LOST),
        (an_answer("another", Standing.SERVING, epoch=3), 0, Cas.LOST),
    ],
)
def test_how_it_ends(outcome: Answer | NoAnswer, silent_ms: int, result: Cas) -> None:
    primary, _ = of_pair()
    chosen = register(primary, Peer(outcome), silent_ms=silent_ms)
    found, view = chosen.cas(primary.view.alone("P"))
    assert found is result and chosen.reason
    if result is Cas.LOST:
        assert isinstance(outcome, Answer) and view == outcome.view
    elif result is Cas.UNDECIDED:
        assert view == primary.view


@pytest.mark.parametrize("outcome", [*NoAnswer, an_answer("another")])
def test_a_node_that_stood_still_wins_nothing_from_silence(outcome: Answer | NoAnswer) -> None:
    for node in of_pair():
        node.note_stall()
        chosen = register(node, Peer(outcome), suspect="?", silent_ms=SILENT_MS)
        assert chosen.cas(node.view.alone(node.incarnation))[0] is Cas.UNDECIDED
        assert node.stalled


def test_the_answer_of_that_very_incarnation_ends_the_doubt_after_a_stall() -> None:
    primary, _ = of_pair()
    primary.note_stall()
    assert register(primary, Peer(an_answer())).cas(primary.view.alone("P"))[0] is Cas.UNDECIDED
    assert not primary.stalled
    assert register(primary, Peer(NoAnswer.GONE)).cas(primary.view.alone("P"))[0] is Cas.WON


def test_an_answer_from_before_another_stall_ends_no_doubt() -> None:
    primary, _ = of_pair()
    primary.note_stall()
    peer = Peer(an_answer(), primary.note_stall)
    assert register(primary, peer).cas(primary.view.alone("P"))[0] is Cas.UNDECIDED
    assert primary.stalled


def test_a_view_that_changed_while_we_waited_is_what_stands() -> None:
    _, backup = of_pair()

    def accept() -> None:
        assert backup.answer("P", 3).accepted

    for outcome in (NoAnswer.GONE, an_answer("P", accepted=True)):
        chosen = register(backup, Peer(outcome, accept), suspect="P")
        if backup.view.epoch == 2:
            proposal = backup.view.alone("B")
        assert chosen.cas(proposal) == (Cas.LOST, View(3, "P", ("P",)))


def test_of_two_that_suspect_each_other_at_most_one_wins() -> None:
    primary, backup = of_pair()
    of_backup = register(
        backup, lambda view: primary.answer("B", view.epoch), suspect="P", silent_ms=SILENT_MS
    )
    of_primary = register(primary, lambda view: backup.answer("P", view.epoch), silent_ms=SILENT_MS)
    assert of_backup.cas(backup.view.alone("B"))[0] is Cas.LOST, "a serving primary never accepts"
    assert of_primary.cas(primary.view.alone("P"))[0] is Cas.WON
    assert not backup.is_member
