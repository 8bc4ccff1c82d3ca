"""The register table: what a put comes to, and what is counted beside it (V1 to V5)."""

from __future__ import annotations

import os
import random

import pytest

from holdfast.server.core.limits import REGISTER_OVERHEAD_BYTES, VERSION_MAX
from holdfast.server.core.register_table import NO_KEY, STALE_TOKEN, Register, RegisterTable


def put(table: RegisterTable, name: bytes, offset: int, value: bytes, version: int) -> int:
    """As the state does it: ask, then write."""
    refusal = table.refusal(name, version)
    return table.write(name, offset, value, version) if refusal is None else refusal


def a_register(ends_ms: int = 0) -> RegisterTable:
    table = RegisterTable()
    put(table, b"a", 7, b"one", 0)
    if ends_ms:
        table.end_at(b"a", ends_ms)
    return table


# -- versions (V1, V2) ----------------------------------------------------------------------------


def test_version_0_creates_a_register_and_the_first_version_is_1() -> None:
    table = RegisterTable()
    assert put(table, b"a", 7, b"one", 0) == 1
    assert table.held == {b"a": (7, b"one", 1, 0)}


def test_a_put_of_the_current_version_writes_the_next_one() -> None:
    table = a_register()
    assert put(table, b"a", 8, b"two", 1) == 2
    assert put(table, b"a", 9, b"", 2) == 3
    assert table.held == {b"a": (7, b"", 3, 0)}, "it was created once"


@pytest.mark.parametrize("version", [0, 1, 3, VERSION_MAX])
def test_any_other_version_is_refused_with_the_current_one_and_changes_nothing(
    version: int,
) -> None:
    table = a_register()
    put(table, b"a", 8, b"two", 1)
    assert put(table, b"a", 9, b"three", version) == -2
    assert table.held == {b"a": (7, b"two", 2, 0)}


def test_where_there_is_no_register_only_version_0_writes() -> None:
    table = a_register()
    assert put(table, b"b", 8, b"x", 1) == put(table, b"b", 8, b"x", VERSION_MAX) == NO_KEY
    assert list(table.held) == [b"a"]
    assert put(table, b"b", 8, b"x", 0) == 1


def test_of_several_puts_that_saw_the_same_version_one_writes() -> None:
    table = a_register()
    answers = [put(table, b"a", 8 + n, b"by %d" % n, 1) for n in range(5)]
    assert answers == [2, -2, -2, -2, -2] and table.held[b"a"][1] == b"by 0"


def test_no_two_answers_of_a_put_are_the_same_int() -> None:
    """A version is above 0, a conflict is below it, and neither reaches the two that are left."""
    assert NO_KEY == 0 and STALE_TOKEN < -(VERSION_MAX + 1)
    table = RegisterTable()
    table.load(b"a", (7, b"x", VERSION_MAX, 0))
    assert put(table, b"a", 8, b"y", VERSION_MAX) == VERSION_MAX + 1
    assert put(table, b"a", 9, b"z", VERSION_MAX) == -(VERSION_MAX + 1)
    assert -(1 << 63) <= STALE_TOKEN and VERSION_MAX + 1 < 1 << 63, "an answer has 64 bits"


def test_names_do_not_touch_one_another() -> None:
    table = a_register()
    put(table, b"a\x00", 8, b"other", 0)
    put(table, b"a", 9, b"two", 1)
    table.delete(b"a")
    assert table.held == {b"a\x00": (8, b"other", 1, 0)}


# -- the end of a register (V3, V4) ---------------------------------------------------------------


def test_a_deleted_register_is_gone_with_its_version() -> None:
    table = a_register()
    put(table, b"a", 8, b"two", 1)
    assert [table.delete(b"a"), table.delete(b"a")] == [1, 0]
    assert put(table, b"a", 9, b"again", 2) == NO_KEY
    assert put(table, b"a", 9, b"again", 0) == 1
    assert table.held[b"a"] == (9, b"again", 1, 0)


def test_an_expired_register_is_gone_with_its_version_and_its_end() -> None:
    table = a_register(100)
    put(table, b"a", 8, b"two", 1)
    assert table.expire(b"a", 100) == 1
    assert put(table, b"a", 9, b"again", 0) == 1
    assert table.held[b"a"] == (9, b"again", 1, 0)


def test_a_register_ends_when_its_time_has_come_and_not_before() -> None:
    table = a_register(100)
    for now_ms in (0, 99):
        with pytest.raises(AssertionError):
            table.expire(b"a", now_ms)
    assert b"a" in table.held
    assert table.expire(b"a", 100) == 1 and table.held == {}


def test_what_has_no_end_never_expires() -> None:
    table = a_register()
    with pytest.raises(AssertionError):
        table.expire(b"a", 10**15)
    assert b"a" in table.held


def test_a_put_leaves_the_end_as_it_is() -> None:
    table = a_register(100)
    put(table, b"a", 8, b"two", 1)
    put(table, b"a", 9, b"refused", 1)
    assert table.held[b"a"] == (7, b"two", 2, 100)


def test_an_end_is_set_moved_either_way_and_taken_back() -> None:
    table = a_register()
    for ends_ms, expiring in ((100, 1), (300, 1), (50, 1), (0, 0), (0, 0), (70, 1)):
        assert table.end_at(b"a", ends_ms) == 1
        assert table.held[b"a"] == (7, b"one", 1, ends_ms) and table.expiring == expiring
    assert table.end_at(b"b", 100) == 0 and table.expiring == 1


# -- while a snapshot is sent ---------------------------------------------------------------------


@pytest.mark.parametrize("change", ["write", "end_at", "delete", "expire"])
def test_while_a_snapshot_is_sent_the_first_changed_register_of_a_name_is_kept(
    change: str,
) -> None:
    """Whatever changed it first, and whatever happens to it then."""
    table = a_register(100)
    table.before_cut, table.cut_at = {}, 10**9
    arguments: dict[str, tuple[int | bytes, ...]] = {
        "write": (8, b"two", 1), "end_at": (200,), "delete": (), "expire": (100,),
    }  # fmt: skip
    getattr(table, change)(b"a", *arguments[change])
    assert table.before_cut == {b"a": (7, b"one", 1, 100)}
    table.delete(b"a")
    put(table, b"a", 9, b"again", 0)
    put(table, b"a", 10, b"and again", 1)
    table.end_at(b"a", 900)
    table.delete(b"a")
    assert table.before_cut == {b"a": (7, b"one", 1, 100)}


def test_what_changes_nothing_is_not_kept() -> None:
    table = a_register()
    table.before_cut, table.cut_at = {}, 10**9
    assert put(table, b"a", 8, b"x", 0) == -1
    assert put(table, b"b", 8, b"x", 3) == NO_KEY
    assert table.delete(b"b") == table.end_at(b"b", 100) == 0
    assert table.before_cut == {}


# -- order (V5) and counts ------------------------------------------------------------------------


def test_the_table_is_in_the_order_of_creation() -> None:
    table = RegisterTable()
    for offset, name in enumerate((b"a", b"b", b"c", b"d"), 1):
        put(table, name, offset, b"x", 0)
    put(table, b"a", 5, b"written again", 1)
    table.end_at(b"b", 100)
    table.delete(b"c")
    put(table, b"c", 6, b"x", 0)
    assert [(name, register[0]) for name, register in table.held.items()] == [
        (b"a", 1), (b"b", 2), (b"d", 4), (b"c", 6),
    ]  # fmt: skip


def recounted(held: dict[bytes, Register]) -> tuple[int, int]:
    """Size and number of those that will end, counted from nothing."""
    sizes = [REGISTER_OVERHEAD_BYTES + len(name) + len(each[1]) for name, each in held.items()]
    return sum(sizes), sum(each[3] > 0 for each in held.values())


def step(dice: random.Random, table: RegisterTable, now_ms: int, offset: int) -> None:
    """Some change, or a refusal."""
    name = b"n" * dice.randrange(1, 6)
    register = table.held.get(name)
    match dice.randrange(8):
        case 0:
            table.delete(name)
        case 1 | 2:
            table.end_at(name, dice.choice([0, now_ms + dice.randrange(1, 20)]))
        case 3 if register is not None and 0 < register[3] <= now_ms:
            table.expire(name, now_ms)
        case _:
            current = register[2] if register is not None else 0
            version = dice.choice([current, current, current, 0, 1])
            put(table, name, offset, b"v" * dice.choice([0, 1, 9, 65_536]), version)


def test_size_and_number_of_ends_are_what_a_recount_gives_whatever_happens() -> None:
    seed = int(os.environ.get("HOLDFAST_TEST_SEED", "0")) or random.randrange(1, 1_000_000)
    print(f"seed {seed}")
    for number in range(20):
        dice, table = random.Random(f"{seed} {number}"), RegisterTable()
        for at in range(500):
            if at % 50 == 25:
                table.before_cut, table.cut_at = {}, 10**9
            step(dice, table, 1_000 + at, at + 1)
            assert (table.size_bytes, table.expiring) == recounted(table.held)
            offsets = [register[0] for register in table.held.values()]
            assert offsets == sorted(set(offsets)), "V5"
        loaded = RegisterTable()
        for name, register in table.held.items():
            loaded.load(name, register)
        assert loaded.held == table.held
        assert (loaded.size_bytes, loaded.expiring) == (table.size_bytes, table.expiring)


def test_an_empty_table_has_no_size() -> None:
    table = a_register(100)
    put(table, b"a", 8, b"v" * 1_000, 1)
    table.expire(b"a", 100)
    assert (table.size_bytes, table.expiring) == (0, 0)


def test_a_snapshot_keeps_nothing_of_what_came_after_it() -> None:
    """Registers that come and go while one is sent would else pile up behind it."""
    table = RegisterTable()
    table.write(b"a", 7, b"one", 0)
    table.before_cut, table.cut_at = {}, 7
    for offset in range(8, 100):
        table.write(b"b", offset, b"x", 0)
        table.delete(b"b")
    assert table.before_cut == {}
    table.delete(b"a")
    assert table.before_cut == {b"a": (7, b"one", 1, 0)}
