"""The backlog: a run without gaps, bounded in bytes (I12)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.server.core.backlog import BATCH_BYTES, Backlog, Batch, Point

ROOM = 10 * (BATCH_BYTES + 10)
"""For ten batches."""

START = Point("h", 1, 0, 7)


def batch(n: int, size: int = 10) -> Batch:
    return Batch(n, n, 1, 50, 0, b"x" * size)


def test_an_empty_backlog_ends_where_it_begins() -> None:
    backlog = Backlog(ROOM, START)
    assert (backlog.end, backlog.first_offset, backlog.size_bytes) == (0, 0, 0)


def test_batches_are_found_by_position() -> None:
    backlog = Backlog(ROOM, START)
    for n in range(5):
        backlog.append(batch(n + 70))
    assert backlog.end == 5 and backlog.first_offset == 70
    for n in range(5):
        found = backlog.batch_at(n)
        assert found is not None and found.first_offset == n + 70


def test_the_oldest_batches_leave_and_positions_stay_valid() -> None:
    backlog = Backlog(ROOM, START)
    for n in range(1_000):
        backlog.append(batch(n))
        assert backlog.size_bytes <= ROOM
    assert backlog.end == 1_000
    held = [n for n in range(1_000) if backlog.batch_at(n) is not None]
    assert held == list(range(held[0], 1_000)), "no gap"
    for n in held:
        found = backlog.batch_at(n)
        assert found is not None and found.first_offset == n


def test_a_batch_larger_than_the_bound_does_not_stay() -> None:
    backlog = Backlog(ROOM, START)
    backlog.append(batch(1))
    backlog.append(batch(2, 10_000))
    assert backlog.size_bytes == 0 and backlog.end == 2
    assert backlog.batch_at(0) is None and backlog.batch_at(1) is None
    backlog.append(batch(3))
    assert backlog.first_offset == 3 and backlog.batch_at(2) is not None


@given(st.integers(1, 5_000), st.lists(st.integers(0, 120), max_size=60))
def test_the_bound_holds_and_what_is_held_is_one_run(bytes_max: int, sizes: list[int]) -> None:
    backlog = Backlog(bytes_max, START)
    for n, size in enumerate(sizes):
        backlog.append(batch(n + 1, size))
        assert 0 <= backlog.size_bytes <= bytes_max
    held = [found for n in range(len(sizes)) if (found := backlog.batch_at(n)) is not None]
    assert [each.first_offset for each in held] == list(
        range(len(sizes) - len(held) + 1, len(sizes) + 1)
    )


# -- where to go on -------------------------------------------------------------------------------


def kept() -> Backlog:
    """Three batches of two entries each, behind offset 10: up to 12, 14 and, in epoch 4, 16."""
    backlog = Backlog(ROOM, Point("h", 2, 10, 100))
    for last, epoch, checksum in ((12, 2, 112), (14, 2, 114), (16, 4, 116)):
        backlog.append(Batch(last - 1, last, epoch, 50, checksum, b"x" * 10))
    return backlog


@pytest.mark.parametrize(
    ("point", "position"),
    [
        (Point("h", 2, 10, 100), 0),
        (Point("h", 2, 12, 112), 1),
        (Point("h", 2, 14, 114), 2),
        (Point("h", 4, 16, 116), 3),
    ],
)
def test_a_point_between_two_batches_is_found(point: Point, position: int) -> None:
    backlog = kept()
    assert backlog.position_behind(point) == position
    following = [backlog.batch_at(n) for n in range(position, backlog.end)]
    offsets = [n for each in following if each for n in (each.first_offset, each.last_offset)]
    assert offsets == list(range(point.offset + 1, 17)), "all that it lacks, and nothing else"


@pytest.mark.parametrize(
    "point",
    [
        Point("h", 2, 9, 100),  # before the first that is here
        Point("h", 2, 0, 0),
        Point("h", 4, 17, 116),  # behind the end
        Point("h", 4, 18, 118),
        Point("h", 2, 11, 112),  # in the middle of a batch
        Point("h", 4, 15, 114),
    ],
)
def test_an_offset_that_is_not_between_two_batches_is_not_found(point: Point) -> None:
    assert kept().position_behind(point) is None


@pytest.mark.parametrize("place", [(2, 10, 100), (2, 12, 112), (2, 14, 114), (4, 16, 116)])
def test_a_point_is_found_only_if_all_of_it_agrees(place: tuple[int, int, int]) -> None:
    epoch, offset, checksum = place
    backlog = kept()
    assert backlog.position_behind(Point("h", *place)) is not None
    for other in (
        Point("another", *place),
        Point("", *place),
        Point("h", epoch - 1, offset, checksum),
        Point("h", epoch + 1, offset, checksum),
        Point("h", epoch, offset, checksum ^ 1),
        Point("h", epoch, offset, 0),
    ):
        assert backlog.position_behind(other) is None, other


def test_what_has_left_is_not_found_and_the_start_moves_with_it() -> None:
    backlog = Backlog(ROOM, Point("h", 1, 0, 0))
    points = [Point("h", 1, 0, 0)]
    for n in range(1, 31):
        epoch = 1 if n < 15 else 3
        backlog.append(Batch(n, n, epoch, 50, 1_000 + n, b"x" * 10))
        points.append(Point("h", epoch, n, 1_000 + n))
    first = backlog.first_offset
    assert 1 < first <= 21
    for point in points:
        expected = point.offset if point.offset >= first - 1 else None
        assert backlog.position_behind(point) == expected, point
    position = backlog.position_behind(points[first - 1])
    assert position is not None and backlog.batch_at(position) is not None
    assert backlog.batch_at(position - 1) is None


def test_with_everything_gone_only_the_end_is_found() -> None:
    backlog = kept()
    backlog.append(Batch(17, 17, 4, 50, 117, b"x" * 10_000))
    assert backlog.size_bytes == 0
    assert backlog.position_behind(Point("h", 4, 17, 117)) == backlog.end == 4
    assert backlog.position_behind(Point("h", 4, 16, 116)) is None
    assert backlog.position_behind(Point("h", 4, 17, 116)) is None


def test_an_empty_backlog_knows_its_start_alone() -> None:
    backlog = Backlog(ROOM, START)
    assert backlog.position_behind(START) == 0
    assert backlog.position_behind(START._replace(offset=1)) is None
    assert Backlog(ROOM, Point("", 0, 0, 0)).position_behind(START) is None


def test_a_skip_of_offsets_inside_a_batch_is_no_point() -> None:
    # A promotion's EPOCH entry: it ends far ahead of where it begins.
    backlog = Backlog(ROOM, Point("h", 2, 10, 100))
    backlog.append(Batch(11, 9_000, 3, 50, 9, b"x"))
    for offset in (11, 12, 8_999):
        for epoch, checksum in ((2, 100), (3, 9)):
            assert backlog.position_behind(Point("h", epoch, offset, checksum)) is None
    assert backlog.position_behind(Point("h", 2, 10, 100)) == 0
    assert backlog.position_behind(Point("h", 3, 9_000, 9)) == 1


def test_a_bound_that_was_lowered_is_reached_in_steps() -> None:
    backlog = Backlog(1 << 30, START)
    for n in range(1, 1_001):
        backlog.append(batch(n))
    backlog.bytes_max = ROOM
    assert backlog.size_bytes > ROOM, "not at once"
    last = 1_000
    while backlog.size_bytes > ROOM:
        last += 1
        before = backlog.first_offset
        backlog.append(batch(last))
        assert before < backlog.first_offset <= before + 64
    assert last < 1_020
    held = [n for n in range(last) if backlog.batch_at(n) is not None]
    assert held == list(range(held[0], last)), "no gap"


@given(st.integers(300, 5_000), st.lists(st.integers(0, 120), min_size=1, max_size=60))
def test_every_end_of_a_batch_that_is_held_is_found_and_nothing_else_is(
    bytes_max: int, sizes: list[int]
) -> None:
    backlog = Backlog(bytes_max, Point("h", 1, 0, 0))
    ends, offset = [Point("h", 1, 0, 0)], 0
    for n, size in enumerate(sizes):
        first, offset = offset + 1, offset + 1 + size
        backlog.append(Batch(first, offset, 1 + n, 50, 70 + n, b"x" * size))
        ends.append(Point("h", 1 + n, offset, 70 + n))
    for position, point in enumerate(ends):
        is_held = all(backlog.batch_at(n) is not None for n in range(position, backlog.end))
        assert backlog.position_behind(point) == (position if is_held else None)
    for between in set(range(offset + 3)) - {point.offset for point in ends}:
        assert backlog.position_behind(Point("h", 1, between, 70)) is None
