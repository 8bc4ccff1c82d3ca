"""The lock table: at most one grant a name, and what its record keeps (L1 to L5)."""

from __future__ import annotations

import pytest

from holdfast.server.core.lock_table import LockTable


def test_a_held_name_is_not_granted_again() -> None:
    table = LockTable()
    assert table.grant(b"a", 7, b"r1", b"me", 50) == 7
    assert table.grant(b"a", 8, b"r2", b"you", 60) == 0
    assert table.held == {b"a": (7, b"r1", b"me", 50, 0)}


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
    assert table.held[b"a"] == (9, b"r2", b"you", 60, 0)


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
    assert table.before_cut == {b"a": (7, b"r1", b"me", 50, 0)}


# -- leases ---------------------------------------------------------------------------------------


def leased(ends_ms: int = 100) -> LockTable:
    table = LockTable()
    table.grant(b"a", 7, b"r1", b"me", 50, ends_ms)
    return table


def test_a_lease_ends_when_it_has_passed_and_not_before() -> None:
    table = leased()
    for now_ms in (0, 99):
        with pytest.raises(AssertionError):
            table.expire(b"a", now_ms)
    assert table.expire(b"a", 100) == 1 and table.held == {}


def test_what_has_no_lease_or_is_not_held_never_expires() -> None:
    table = leased(0)
    for name in (b"a", b"b"):
        with pytest.raises(AssertionError):
            table.expire(name, 10**15)
    assert b"a" in table.held


def test_a_renewal_is_for_that_very_grant_and_never_shortens_it() -> None:
    table = leased()
    assert table.renew(b"a", 7, 200) == 1
    assert table.held[b"a"] == (7, b"r1", b"me", 50, 200), "all else stays as it was"
    assert table.renew(b"a", 7, 150) == 1, "a late copy of an earlier one"
    assert table.renew(b"a", 8, 900) == table.renew(b"b", 7, 900) == 0
    assert table.held[b"a"][4] == 200
    with pytest.raises(AssertionError):
        table.expire(b"a", 199)


def test_a_grant_without_a_lease_is_not_given_one_by_a_renewal() -> None:
    table = leased(0)
    assert table.renew(b"a", 7, 900) == 1
    assert table.held[b"a"][4] == 0 and table.leases == 0


def test_a_token_is_current_until_its_grant_ends() -> None:
    table = leased()
    assert table.is_current(b"a", 7)
    assert not table.is_current(b"a", 6) and not table.is_current(b"b", 7)
    assert table.release_grant(b"a", 6) == 0
    assert table.release_grant(b"a", 7) == 1
    assert not table.is_current(b"a", 7) and table.release_grant(b"a", 7) == 0
    table.grant(b"a", 9, b"r1", b"me", 60)
    assert table.release_grant(b"a", 7) == 0, "the same request id, another grant"


def test_the_number_of_leases_is_counted_through_every_end() -> None:
    table = leased()
    for n, name in enumerate((b"b", b"c", b"d", b"e"), 8):
        table.grant(name, n, b"r", b"o", 50, 100)
    table.grant(b"f", 20, b"r", b"o", 50)
    table.grant(b"f", 21, b"r", b"o", 50, 100)  # refused
    table.renew(b"e", 11, 300)
    assert table.leases == 5
    table.release(b"a")
    table.release_grant(b"b", 8)
    table.release_grant_of(b"c", b"r")
    table.expire(b"d", 100)
    table.release(b"f")
    assert table.leases == 1


def test_while_a_snapshot_is_sent_the_first_renewed_grant_of_a_name_is_kept() -> None:
    table = leased()
    table.before_cut = {}
    table.renew(b"a", 7, 90)
    assert table.before_cut == {}, "nothing has changed"
    table.renew(b"a", 7, 200)
    table.renew(b"a", 7, 300)
    table.release(b"a")
    assert table.before_cut == {b"a": (7, b"r1", b"me", 50, 100)}


def test_the_table_is_in_the_order_of_tokens() -> None:
    table = LockTable()
    for token, name in enumerate((b"a", b"b", b"c", b"d"), 1):
        table.grant(name, token, b"r", b"o", 50, 100)
    table.renew(b"a", 1, 900)
    table.release(b"b")
    table.grant(b"b", 5, b"r", b"o", 50)
    assert [grant[0] for grant in table.held.values()] == [1, 3, 4, 5]
