"""When a reply may leave a node, and which node may answer at all (I3, I6).

Everything here is judged from the trace, in the order in which it was recorded.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence

from .history import Ack, Promotion, Reply, View


def check_one_voice(replies: Iterable[Reply]) -> list[str]:
    """Problems: an epoch in which two nodes answer; a node that goes back in epochs (I3). (An old
    primary's last reply may well leave after a new one's first: it was safe by then.)"""
    problems = []
    voice_of: dict[int, Reply] = {}
    last_of: dict[str, Reply] = {}
    for reply in _answers(replies):
        voice = voice_of.setdefault(reply.epoch, reply)
        if voice.node != reply.node:
            problems.append(f"two nodes answer in epoch {reply.epoch} (I3): {voice} and {reply}")
        last = last_of.get(reply.node, reply)
        if reply.epoch < last.epoch:
            problems.append(f"{reply.node} goes back in epochs (I3): {last}, later {reply}")
        last_of[reply.node] = reply
    return problems


def check_promotions(promotions: Sequence[Promotion], views: Sequence[View] = ()) -> list[str]:
    """Problems: a new primary that was no member before, two of them in one epoch, epochs that do
    not rise; the same of the views that a register took (I3)."""
    problems = []
    by_epoch: dict[int, Promotion] = {}
    for promotion in promotions:
        other = by_epoch.setdefault(promotion.epoch, promotion)
        if other is not promotion:
            problems.append(f"two promotions in one epoch (I3): {other} and {promotion}")
        before = promotion.view_before_members
        if before and promotion.node not in before:
            problems.append(f"a new primary was no member before (I3): {promotion}")
    return problems + _check_views(views)


def _check_views(views: Sequence[View]) -> list[str]:
    problems = []
    for before, view in itertools.pairwise(views):
        if view.epoch <= before.epoch:
            problems.append(f"epochs of views do not rise (I3): {before}, then {view}")
        vacant = not before.members or not view.members
        if view.primary != before.primary and not vacant and view.primary not in before.members:
            problems.append(f"a new primary was no member before (I3): {before}, then {view}")
        if view.members and view.primary not in view.members:
            problems.append(f"the primary of a view is no member of it (I3): {view}")
    return problems


def check_commits(
    replies: Iterable[Reply], acks: Iterable[Ack] | None = None, views: Sequence[View] = ()
) -> list[str]:
    """Problems: a reply that left before what it depends on was safe (I6).

    A reply that waits for a backup leaves after the acknowledgement, in the node's epoch at that
    instant, of a frame sent at or after the turn in which the reply was computed. By the node's own
    account, and if `acks` are given, by what reached it. A reply that waits for nobody leaves only
    while the view in force, if the register's `views` are given, has no other member.
    """
    replies = list(_answers(replies))
    problems = [
        f"a reply left before its frame was acknowledged in epoch {reply.epoch} (I6): {reply}"
        for reply in replies
        if not reply.solo and reply.acked_frame < reply.needed_frame
    ]
    problems += [
        f"a reply left before it was computed: {reply}"
        for reply in replies
        if reply.at_us < reply.computed_us
    ]
    if acks is not None:
        problems += _check_acks(replies, acks)
    return problems + (_check_solo(replies, views) if views else [])


def _check_acks(replies: Iterable[Reply], acks: Iterable[Ack]) -> list[str]:
    """The same by the acknowledgements that really came; and they must cover the state, too."""
    of_reign: dict[tuple[str, int], list[Ack]] = defaultdict(list)
    for ack in acks:
        of_reign[ack.node, ack.epoch].append(ack)
    return [
        f"no acknowledgement in epoch {reply.epoch} let this reply go (I6): {reply}"
        for reply in replies
        if not reply.solo and not _is_covered(reply, of_reign[reply.node, reply.epoch])
    ]


def _is_covered(reply: Reply, acks: Sequence[Ack]) -> bool:
    came = bisect_right(acks, reply.at_us, key=lambda ack: ack.at_us)
    return any(
        ack.frame_sent_us >= reply.computed_us
        and ack.frame >= reply.needed_frame
        and ack.offset >= reply.offset
        for ack in reversed(acks[:came])  # as a rule the last one does
    )


def _check_solo(replies: Iterable[Reply], views: Sequence[View]) -> list[str]:
    """A node that answers alone is alone in the view: who else is a member might be promoted."""
    problems = []
    for reply in replies:
        # At the very instant of a change, either view may have been the one in force.
        before = [view for view in views if view.at_us < reply.at_us][-1:]
        now = before + [view for view in views if view.at_us == reply.at_us]
        if reply.solo and now and all(set(view.members) != {reply.node} for view in now):
            problems.append(f"a reply waited for nobody, but the view is {now[-1]} (I6): {reply}")
    return problems


def _answers(replies: Iterable[Reply]) -> Iterable[Reply]:
    return (reply for reply in replies if isinstance(reply.answer, int))
