"""Walking a table: what is there all the while is found exactly once."""

from __future__ import annotations

import random

import pytest
from harness.replicas import Pair

from holdfast.server.core.lock_table import LockTable
from holdfast.server.core.walk import Walk


def table_of(count: int) -> LockTable:
    table = LockTable()
    for n in range(count):
        table.grant(b"n%d" % n, n + 1, b"r", b"o", 0)
    return table


def whole_walk(table: LockTable, count: int) -> list[bytes]:
    walk, cursor, found = Walk(), 0, list[bytes]()
    while True:
        cursor, names = walk.page(table.held, cursor, count)
        found += names
        if not cursor:
            return found


@pytest.mark.parametrize("held", [0, 1, 2, 9, 10, 11, 100])
@pytest.mark.parametrize("count", [1, 3, 10, 1_000])
def test_a_walk_finds_all_locks_in_pages_of_the_wanted_size(held: int, count: int) -> None:
    table = table_of(held)
    assert whole_walk(table, count) == list(reversed(table.held))
    cursor, names = Walk().page(table.held, 0, count)
    assert len(names) == min(held, count) and bool(cursor) == (held > count)


def churn(table: LockTable, dice: random.Random, token: int, kept: set[bytes]) -> int:
    """Grants and releases of others than ``kept``; the last token."""
    for _ in range(dice.randrange(6)):
        name = b"n%d" % dice.randrange(80)
        if name in kept:
            continue
        token += 1
        if not table.release(name):
            table.grant(name, token, b"r", b"o", 0)
    return token


@pytest.mark.parametrize("seed", range(60))
def test_what_is_held_throughout_is_found_exactly_once_by_each_of_many_walks(seed: int) -> None:
    dice = random.Random(seed)
    table, walk, token = table_of(60), Walk(), 60
    kept = {b"n%d" % dice.randrange(60) for _ in range(20)}
    cursors, found = {0: 0, 1: 0, 2: 0}, dict[int, list[bytes]]({0: [], 1: [], 2: []})
    begun, done = set[int](), 0
    while done < 12:
        token = churn(table, dice, token, kept)
        which = dice.randrange(3)
        begun.add(which)
        cursors[which], names = walk.page(table.held, cursors[which], dice.randrange(1, 9))
        assert all(name in table.held for name in names)
        found[which] += names
        if not cursors[which]:
            assert sorted(name for name in found[which] if name in kept) == sorted(kept)
            found[which], done = [], done + 1
    assert len(begun) == 3


def test_a_walk_ends_however_many_locks_are_granted_meanwhile() -> None:
    table, walk, token = table_of(100), Walk(), 100
    cursor, _ = walk.page(table.held, 0, 10)
    pages = 1
    while cursor:
        for _ in range(20):  # more than a page
            token += 1
            table.grant(b"new %d" % token, token, b"r", b"o", 0)
        cursor, _ = walk.page(table.held, cursor, 10)
        pages += 1
        assert pages < 50


def test_a_walk_finds_what_was_granted_after_an_older_walks_copy_was_made() -> None:
    table, walk = table_of(30), Walk()
    older, _ = walk.page(table.held, 0, 10)
    walk.page(table.held, older, 10)  # the copy is made, and kept
    for n in range(30, 60):
        table.grant(b"n%d" % n, n + 1, b"r", b"o", 0)
    cursor, found = walk.page(table.held, 0, 7)
    while cursor:
        cursor, names = walk.page(table.held, cursor, 7)
        found += names
    assert found == list(reversed(table.held))


def test_a_name_that_is_granted_anew_is_no_longer_the_one_that_was_held() -> None:
    table, walk = table_of(30), Walk()
    cursor, _ = walk.page(table.held, 0, 10)
    walk.page(table.held, cursor, 5)  # the copy is made
    table.release(b"n12")
    table.grant(b"n12", 99, b"r", b"o", 0)
    _, names = walk.page(table.held, cursor, 100)
    assert names == [b"n%d" % n for n in reversed(range(20)) if n != 12]


def test_a_cursor_means_the_same_on_the_other_node_after_a_failover() -> None:
    pair = Pair()
    for n in range(30):
        pair.primary.lock("c", f"n{n}", f"r{n}")
    pair.join()
    cursor, first = Walk().page(pair.primary.replica.state.locks.held, 0, 10)
    pair.primary.unlock("c", "n19", "u")  # the very lock at which the next page begins
    pair.settle()
    pair.backup.promote()
    pair.backup.lock("c", "new", "r")
    end, rest = Walk().page(pair.backup.replica.state.locks.held, cursor, 100)
    assert (end, first + rest) == (0, [b"n%d" % n for n in reversed(range(30)) if n != 19])


def test_the_copy_of_another_table_is_not_walked() -> None:
    """A node that walked as primary, lost the role, and has it again with a newer state."""
    walk, old = Walk(), table_of(100)
    cursor, _ = walk.page(old.held, 0, 10)
    walk.page(old.held, cursor, 10)  # its copy is kept for the next page
    new = table_of(50)
    new.grant(b"later", 1_000, b"r", b"o", 0)
    _, names = walk.page(new.held, 1_000, 12)
    assert b"later" in names and len(names) == 12


def test_any_number_is_a_cursor() -> None:
    for cursor in (10**15, 2**63, 3):
        assert Walk().page(table_of(5).held, cursor, 10)[0] == 0
        assert Walk().page(LockTable().held, cursor, 10) == (0, [])


def test_a_cursor_of_somebodys_own_making_spoils_nobodys_walk() -> None:
    table, walk = table_of(30), Walk()
    walk.page(table.held, 2**63, 10)  # a copy is made, and kept
    for n in range(30, 60):
        table.grant(b"n%d" % n, n + 1, b"r", b"o", 0)
    cursor, names = walk.page(table.held, 0, 10)
    while cursor:
        cursor, more = walk.page(table.held, cursor, 10)
        names += more
    assert names == list(reversed(table.held))


def test_walks_end_although_others_begin_and_locks_are_granted_all_the_time() -> None:
    table, walk, token = table_of(100), Walk(), 100
    cursor, names = walk.page(table.held, 0, 10)
    pages = 1
    while cursor:
        for _ in range(20):  # more than a page
            token += 1
            table.grant(b"new %d" % token, token, b"r", b"o", 0)
        other, _ = walk.page(table.held, 0, 10)
        walk.page(table.held, other, 10)
        cursor, more = walk.page(table.held, cursor, 10)
        names += more
        pages += 1
    assert pages == 10 and names == [b"n%d" % n for n in reversed(range(100))]


def test_the_copy_can_be_given_back_at_any_time() -> None:
    table, walk = table_of(50), Walk()
    cursor, names = walk.page(table.held, 0, 10)
    while cursor:
        cursor, more = walk.page(table.held, cursor, 10)
        assert len(walk._names) == 50
        walk.forget()
        assert walk._names == [] and walk._offsets == []
        names += more
    assert names == list(reversed(table.held))


def test_names_that_are_gone_do_not_make_a_page_long() -> None:
    """What is looked at is bounded, not only what is found."""
    table, walk = table_of(1_000), Walk()
    cursor, _ = walk.page(table.held, 0, 10)
    walk.page(table.held, cursor, 10)  # the copy is made
    for n in range(100, 990):
        table.release(b"n%d" % n)
    assert walk.page(table.held, cursor, 10) == (cursor - 10, [])


def test_the_copy_serves_although_some_are_newer() -> None:
    table, walk = table_of(1_000), Walk()
    cursor, _ = walk.page(table.held, 0, 10)
    walk.page(table.held, cursor, 10)  # the copy is made
    copied = walk._names
    for n in range(1_000, 1_500):
        table.grant(b"n%d" % n, n + 1, b"r", b"o", 0)
    cursor, found = walk.page(table.held, 0, 10)
    while cursor:
        cursor, more = walk.page(table.held, cursor, 100)
        found += more
    assert found == list(reversed(table.held)) and walk._names is copied
