"""The lock table: at most one grant a name, and what its record keeps (L1 to L4)."""

from __future__ import annotations

from holdfast.server.core.lock_table import LockTable


def test_a_held_name_is_not_granted_again() -> None:
    table = LockTable()
    assert table.grant(b"a", 7, b"r1", b"me", 50) == 7
    assert table.grant(b"a", 8, b"r2", b"you", 60) == 0
    assert table.held == {b"a": (7, b"r1", b"me", 50)}


def test_the_same_holder_is_not_granted_it_again_either() -> None:
    table = LockTable()
    table.grant(b"a", 7, b"r1", b"me", 50)
    assert table.grant(b"a", 8, b"r1", b"me", 50) == 0


def test_anyone_may_release_and_only_once() -> None:
    table = LockTable()
    table.grant(b"a", 7, b"r1", b"me", 50)
    assert [table.release(b"a"), table.release(b"a")] == [1, 0]
    assert table.held == {}


def test_a_released_name_is_granted_anew_with_the_larger_token() -> None:
    table = LockTable()
    table.grant(b"a", 7, b"r1", b"me", 50)
    table.release(b"a")
    assert table.grant(b"a", 9, b"r2", b"you", 60) == 9
    assert table.held[b"a"] == (9, b"r2", b"you", 60)


def test_only_the_grant_of_that_very_request_is_released() -> None:
    table = LockTable()
    assert table.release_grant_of(b"a", b"r1") == 0
    table.grant(b"a", 7, b"r1", b"me", 50)
    assert table.release_grant_of(b"a", b"r2") == 0
    assert table.release_grant_of(b"b", b"r1") == 0
    assert table.release_grant_of(b"a", b"r1") == 1
    assert table.release_grant_of(b"a", b"r1") == 0


def test_names_do_not_touch_one_another() -> None:
    table = LockTable()
    table.grant(b"a", 7, b"r1", b"me", 50)
    table.grant(b"a\x00", 8, b"r2", b"me", 50)
    table.release(b"a")
    assert list(table.held) == [b"a\x00"]


def test_while_a_snapshot_is_sent_the_first_ended_grant_of_a_name_is_kept() -> None:
    table = LockTable()
    table.grant(b"a", 7, b"r1", b"me", 50)
    table.before_cut = {}
    table.release(b"a")
    table.grant(b"a", 8, b"r2", b"you", 60)
    table.release(b"a")
    table.release(b"a")
    assert table.before_cut == {b"a": (7, b"r1", b"me", 50)}
