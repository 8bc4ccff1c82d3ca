"""The backlog: a run without gaps, bounded in bytes (I12)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from holdfast.server.core.backlog import BATCH_BYTES, Backlog, Batch

ROOM = 10 * (BATCH_BYTES + 10)
"""For ten batches."""


def batch(n: int, size: int = 10) -> Batch:
    return Batch(n, n, 1, 50, 0, b"x" * size)


def test_a_cleared_backlog_is_empty_and_its_positions_go_on() -> None:
    backlog = Backlog(ROOM)
    for n in range(5):
        backlog.append(batch(n))
    backlog.clear()
    assert (backlog.end, backlog.first_offset, backlog.size_bytes) == (5, 0, 0)
    assert backlog.batch_at(4) is None
    backlog.append(batch(5))
    found = backlog.batch_at(5)
    assert found is not None and found.first_offset == 5


def test_an_empty_backlog_ends_where_it_begins() -> None:
    backlog = Backlog(ROOM)
    assert (backlog.end, backlog.first_offset, backlog.size_bytes) == (0, 0, 0)


def test_batches_are_found_by_position() -> None:
    backlog = Backlog(ROOM)
    for n in range(5):
        backlog.append(batch(n + 70))
    assert backlog.end == 5 and backlog.first_offset == 70
    for n in range(5):
        found = backlog.batch_at(n)
        assert found is not None and found.first_offset == n + 70


def test_the_oldest_batches_leave_and_positions_stay_valid() -> None:
    backlog = Backlog(ROOM)
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
    backlog = Backlog(ROOM)
    backlog.append(batch(1))
    backlog.append(batch(2, 10_000))
    assert backlog.size_bytes == 0 and backlog.end == 2
    assert backlog.batch_at(0) is None and backlog.batch_at(1) is None
    backlog.append(batch(3))
    assert backlog.first_offset == 3 and backlog.batch_at(2) is not None


@given(st.integers(1, 5_000), st.lists(st.integers(0, 120), max_size=60))
def test_the_bound_holds_and_what_is_held_is_one_run(bytes_max: int, sizes: list[int]) -> None:
    backlog = Backlog(bytes_max)
    for n, size in enumerate(sizes):
        backlog.append(batch(n + 1, size))
        assert 0 <= backlog.size_bytes <= bytes_max
    held = [found for n in range(len(sizes)) if (found := backlog.batch_at(n)) is not None]
    assert [each.first_offset for each in held] == list(
        range(len(sizes) - len(held) + 1, len(sizes) + 1)
    )
