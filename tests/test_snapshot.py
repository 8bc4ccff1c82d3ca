"""Snapshots: the state as it was at the cut, whatever happens while it is walked (I5)."""

from __future__ import annotations

import pytest
from harness.replicas import fields_of, pack
from hypothesis import given, settings
from hypothesis import strategies as st
from test_state import (
    Entry,
    batch_of,
    execute,
    forget,
    lock,
    new_state,
    put,
    random_history,
    unlock,
)

from holdfast.server.core import limits, snapshot
from holdfast.server.core.snapshot import digest
from holdfast.server.core.state import (
    DELETE,
    END_AT,
    EPOCH,
    EXPIRE,
    FORGET,
    LOCK,
    LOCK_WITH,
    PUT,
    RENEW,
    UNDO,
    UNLOCK,
    State,
)


def received(cut: snapshot.Cut, parts: list[bytes]) -> State:
    """What a backup makes of a snapshot: through bytes, as on the wire."""
    words = fields_of(pack(*cut.header))
    header = snapshot.Header(words[0].decode(), *map(int, words[1:]))
    assert header == cut.header
    state = snapshot.restore(header)
    assert sum(snapshot.load(state, fields_of(part)) for part in parts) == header.items
    return state


def walk(cut: snapshot.Cut, size: int = 2) -> list[bytes]:
    """The rest of a cut, in encoded slices."""
    parts = list[bytes]()
    while fields := cut.slice(size):
        assert len(fields) <= size * snapshot.ITEM_FIELDS
        parts.append(pack(*fields))
    return parts


def a_full_state() -> State:
    state = new_state()
    for n in range(4):
        lock(state, b"old %d" % n, b"r%d" % n)
        lock(state, b"old %d" % n, b"@c%d:1" % n)
    forget(state, b"r", 1)
    forget(state, b"c", 1)
    for n in range(4, 8):
        lock(state, b"new %d" % n, b"r%d" % n, b"me")
        unlock(state, b"none", b"@c%d:2" % n)
    state.apply(LOCK_WITH, b"leased", b"r8", b"", b"5000")
    state.apply(LOCK_WITH, b"passed", b"r9", b"", b"1000")
    for n in range(4):
        put(state, b"register %d" % n, b"", b"\x00value\r\n" * n, 0)
    put(state, b"register 1", b"@r:1", b"", 1)
    state.apply(END_AT, b"register 2", b"", b"", b"5000")
    state.apply(END_AT, b"register 3", b"", b"", b"1000")
    state.stamp(3, 1_234)
    return state


@pytest.mark.parametrize("size", [1, 2, 5, 1_000])
def test_a_restored_snapshot_is_the_state_that_was_cut(size: int) -> None:
    state = a_full_state()
    cut = snapshot.Cut(state)
    copy = received(cut, walk(cut, size))
    cut.close()
    assert digest(copy) == digest(state)
    assert copy.replies.old_replies_since_ms == state.replies.old_replies_since_ms
    assert copy.locks.held == state.locks.held and copy.locks.leases == state.locks.leases == 2
    assert list(copy.registers.held.items()) == list(state.registers.held.items()), "in order (V5)"
    assert copy.registers.expiring == state.registers.expiring == 2
    assert copy.registers.size_bytes == state.registers.size_bytes > 0


def test_large_values_make_slices_shorter() -> None:
    """A turn of the loop sends, or hashes, so much and not more, however large the registers."""
    state = new_state()
    for n in range(40):
        put(state, b"large %d" % n, b"", b"v" * limits.VALUE_BYTES_MAX, 0)
        put(state, b"small %d" % n, b"", b"v" * 9, 0)
    expected, cut, items = digest(state), snapshot.Cut(state), 0
    while fields := cut.slice(limits.SNAPSHOT_ITEMS_PER_SLICE):
        items += len(fields) // snapshot.ITEM_FIELDS
        values = sum(len(str(field)) for field in fields[3 :: snapshot.ITEM_FIELDS])
        assert values < limits.CATCH_UP_BYTES_PER_TURN + 2 * limits.VALUE_BYTES_MAX
    cut.close()
    assert items == 80
    sliced, slices = snapshot.Digest(state), 1
    while sliced.advance(limits.DIGEST_ITEMS_PER_SLICE):
        slices += 1
    sliced.close()
    assert 20 <= slices <= 42 and sliced.hexdigest() == expected


def test_an_empty_state_has_an_empty_snapshot() -> None:
    state = new_state()
    before = digest(state)
    cut = snapshot.Cut(state)
    assert cut.header.items == 0 and cut.slice(9) == []
    assert digest(received(cut, [])) == before


def test_the_copy_goes_on_as_the_original_does() -> None:
    state = a_full_state()
    cut = snapshot.Cut(state)
    copy = received(cut, walk(cut))
    cut.close()
    for reqid in (b"r1", b"@c1:1", b"@c6:2", b"r99", b"@c6:3"):
        assert lock(copy, b"old 1", reqid) == lock(state, b"old 1", reqid)
    assert digest(copy) == digest(state)


CHANGES: dict[str, list[Entry]] = {
    "a release": [(UNLOCK, b"old 1", b"u", b"", b"")],
    "a release and a new grant": [
        (UNLOCK, b"old 1", b"u", b"", b""),
        (LOCK, b"old 1", b"x", b"", b""),
    ],
    "two grants after the cut's": [
        (UNLOCK, b"old 1", b"u", b"", b""),
        (LOCK, b"old 1", b"x", b"", b""),
        (UNLOCK, b"old 1", b"u2", b"", b""),
        (LOCK_WITH, b"old 1", b"x2", b"you", b""),
    ],
    "a grant that is undone": [(UNDO, b"old 2", b"u", b"", b"r2")],
    "a new name": [(LOCK, b"fresh", b"x", b"", b"")],
    "a new name that is released": [
        (LOCK, b"fresh", b"x", b"", b""),
        (UNLOCK, b"fresh", b"u", b"", b""),
    ],
    "an old client becomes young": [(LOCK, b"n", b"@c1:2", b"", b"")],
    "a client goes on twice": [
        (LOCK, b"n", b"@c5:3", b"", b""),
        (LOCK, b"n", b"@c5:4", b"", b""),
    ],
    "both tables rotate": [(FORGET, b"", b"", b"", b"r"), (FORGET, b"", b"", b"", b"c")],
    "both tables rotate twice": [
        (FORGET, b"", b"", b"", b"r"),
        (FORGET, b"", b"", b"", b"c"),
        (FORGET, b"", b"", b"", b"r"),
        (FORGET, b"", b"", b"", b"c"),
    ],
    "a client of the young generation goes on after it became old": [
        (FORGET, b"", b"", b"", b"c"),
        (LOCK, b"n", b"@c5:3", b"", b""),
        (FORGET, b"", b"", b"", b"c"),
        (LOCK, b"n", b"@c5:4", b"", b""),
    ],
    "a client is forgotten and comes back as new": [
        (FORGET, b"", b"", b"", b"c"),
        (UNLOCK, b"none", b"@c1:0", b"", b""),
        (UNLOCK, b"none", b"@c1:1", b"", b""),
    ],
    "an opaque id is forgotten and comes back as new": [
        (FORGET, b"", b"", b"", b"r"),
        (UNLOCK, b"none", b"r1", b"", b""),
        (LOCK, b"old 1", b"r1", b"", b""),
    ],
    "a renewal": [(RENEW, b"leased", b"", b"1019", b"9000")],
    "two renewals and an end": [
        (RENEW, b"leased", b"", b"1019", b"9000"),
        (RENEW, b"leased", b"", b"1019", b"9900"),
        (DELETE, b"leased", b"", b"", b""),
    ],
    "a renewal of a later grant": [
        (UNLOCK, b"leased", b"u", b"", b""),
        (LOCK_WITH, b"leased", b"x", b"", b"6000"),
        (RENEW, b"leased", b"", b"1029", b"9000"),
    ],
    "an expiry": [(EXPIRE, b"passed", b"", b"", b"")],
    "an expiry and a new grant": [
        (EXPIRE, b"passed", b"", b"", b""),
        (LOCK_WITH, b"passed", b"x", b"you", b"7000"),
    ],
    "a put": [(PUT, b"register 1", b"", b"new", b"2")],
    "two puts, one with a request id": [
        (PUT, b"register 0", b"p1", b"new", b"1"),
        (PUT, b"register 0", b"", b"newer", b"2"),
    ],
    "a refused put": [(PUT, b"register 0", b"p1", b"new", b"5")],
    "a fenced put": [(PUT, b"register 2", b"@c7:3", b"new", b"1 1019 leased")],
    "a register is given an end": [(END_AT, b"register 0", b"", b"", b"9000")],
    "an end is taken back": [(END_AT, b"register 3", b"", b"", b"0")],
    "a deleted register": [(DELETE, b"register 1", b"", b"", b"")],
    "an expired register that is created again": [
        (EXPIRE, b"register 3", b"", b"", b""),
        (PUT, b"register 3", b"", b"again", b"0"),
        (PUT, b"register 3", b"", b"and again", b"1"),
    ],
    "a new register that is deleted": [
        (PUT, b"fresh", b"p1", b"x", b"0"),
        (DELETE, b"fresh", b"", b"", b""),
    ],
    "a register becomes a lock": [
        (DELETE, b"register 2", b"", b"", b""),
        (LOCK_WITH, b"register 2", b"x", b"you", b"6000"),
    ],
    "a lock becomes a register": [
        (UNLOCK, b"old 1", b"u", b"", b""),
        (PUT, b"old 1", b"p1", b"x", b"0"),
        (END_AT, b"old 1", b"", b"", b"7000"),
    ],
    "a lock and a register change places": [
        (DELETE, b"old 1", b"", b"", b""),
        (DELETE, b"register 2", b"", b"", b""),
        (PUT, b"old 1", b"", b"x", b"0"),
        (LOCK, b"register 2", b"x", b"", b""),
    ],
    "a new epoch": [(EPOCH, b"", b"", b"", b"5000")],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("sent_before", range(0, 30, 3))
def test_a_change_during_the_walk_is_not_in_the_snapshot(change: str, sent_before: int) -> None:
    state = a_full_state()
    before = digest(state)
    cut = snapshot.Cut(state)
    first = cut.slice(sent_before)
    for entry in CHANGES[change]:
        execute(state, entry)
    copy = received(cut, ([pack(*first)] if first else []) + walk(cut))
    cut.close()
    assert digest(copy) == before
    for entry in CHANGES[change]:
        execute(copy, entry)
    assert digest(copy) == digest(state), "and the backlog leads from one to the other"


slices = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), max_size=30)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 120), slices)
def test_entries_and_slices_in_any_order_give_the_state_of_the_cut(
    seed: int, applied_before: int, steps: list[tuple[int, int]]
) -> None:
    history = random_history(seed, applied_before + sum(count for _, count in steps))
    state = new_state()
    for entry in history[:applied_before]:
        state.apply(*entry)
    before, at = digest(state), applied_before
    cut = snapshot.Cut(state)
    parts = list[bytes]()
    for size, count in steps:
        fields = cut.slice(size)
        if fields:
            parts.append(pack(*fields))
        for entry in history[at : at + count]:
            state.apply(*entry)
        at += count
    copy = received(cut, parts + walk(cut, 3))
    cut.close()
    assert digest(copy) == before
    copy.apply_batch(copy.offset + 1, 1, 50, *batch_of(history[applied_before:at]))
    assert digest(copy) == digest(state)


def test_closing_leaves_no_trace_wherever_the_walk_stood() -> None:
    for sent in (0, 1, 7, 1_000):
        state = a_full_state()
        cut = snapshot.Cut(state)
        cut.slice(sent)
        unlock(state, b"old 1", b"u")
        lock(state, b"old 1", b"@c1:3")
        put(state, b"register 0", b"", b"new", 1)
        cut.close()
        assert state.locks.before_cut is None and state.replies.before_cut is None
        assert state.registers.before_cut is None
        unlock(state, b"old 2", b"u2")
        now = digest(state)
        again = snapshot.Cut(state)
        assert digest(received(again, walk(again))) == now
        again.close()


def test_there_is_one_cut_at_a_time() -> None:
    state = a_full_state()
    snapshot.Cut(state)
    for cut_again in (snapshot.Cut, snapshot.Digest):
        with pytest.raises(AssertionError):
            cut_again(state)


def test_a_broken_slice_is_refused() -> None:
    with pytest.raises(ValueError):
        snapshot.load(new_state(), [b"L", b"a"])
    with pytest.raises(AssertionError):
        snapshot.load(new_state(), [b"?", b"a", b"1", b"r", b"o", b"1", b""])


# -- digests --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 1_000])
def test_a_digest_in_slices_is_the_digest_in_one_go(size: int) -> None:
    state = a_full_state()
    expected = digest(state)
    sliced = snapshot.Digest(state)
    while sliced.advance(size):
        pass
    sliced.close()
    assert (sliced.hexdigest(), sliced.offset) == (expected, state.offset)
    assert len(expected) == 64 and state.locks.before_cut is None


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("taken_before", range(0, 30, 5))
def test_changes_during_the_slices_make_no_difference(change: str, taken_before: int) -> None:
    state = a_full_state()
    expected, offset = digest(state), state.offset
    sliced = snapshot.Digest(state)
    sliced.advance(taken_before)
    for entry in CHANGES[change]:
        execute(state, entry)
    while sliced.advance(3):
        pass
    sliced.close()
    assert (sliced.hexdigest(), sliced.offset) == (expected, offset)
    assert digest(state) != expected


def test_a_digest_does_not_depend_on_the_order_of_the_tables() -> None:
    state, other = a_full_state(), a_full_state()
    replies = other.replies
    for table in (other.locks.held, other.registers.held, replies.clients, replies.replies):
        for key in reversed(list(table)):
            table[key] = table.pop(key)  # type: ignore[index, call-overload]
    assert list(other.locks.held) != list(state.locks.held)
    assert digest(other) == digest(state)


def test_a_digest_sees_every_single_item_and_the_header() -> None:
    seen = {digest(a_full_state())}
    count = 1
    for table_of in (
        lambda state: state.locks.held,
        lambda state: state.registers.held,
        lambda state: state.replies.clients,
        lambda state: state.replies.old_clients,
        lambda state: state.replies.replies,
        lambda state: state.replies.old_replies,
    ):
        for key in list(table_of(a_full_state())):
            state = a_full_state()
            del table_of(state)[key]
            seen.add(digest(state))
            count += 1
    for field in ("offset", "epoch", "time_ms"):
        state = a_full_state()
        setattr(state, field, getattr(state, field) + 1)
        seen.add(digest(state))
        count += 1
    assert len(seen) == count


def test_a_digest_tells_which_generation_an_answer_is_in() -> None:
    """It decides when the answer is forgotten, so two nodes must agree on it."""
    state, other = a_full_state(), a_full_state()
    key, answer = next(iter(other.replies.replies.items()))
    other.replies.old_replies[key] = answer
    del other.replies.replies[key]
    assert digest(other) != digest(state)


def test_a_digest_sees_every_field_of_a_register() -> None:
    created, value, version, ends_ms = a_full_state().registers.held[b"register 2"]
    seen = {digest(a_full_state())}
    for register in (
        (created + 1, value, version, ends_ms),
        (created, value + b"x", version, ends_ms),
        (created, value, version + 1, ends_ms),
        (created, value, version, ends_ms + 1),
    ):
        state = a_full_state()
        state.registers.held[b"register 2"] = register
        seen.add(digest(state))
    assert len(seen) == 5


def test_the_puts_among_the_changes_write_unless_they_say_otherwise() -> None:
    for change in CHANGES:
        state = a_full_state()
        answers = [(entry[0], execute(state, entry)) for entry in CHANGES[change]]
        puts = [answer for kind, answer in answers if kind in (PUT, END_AT)]
        assert all(isinstance(answer, int) and answer > 0 for answer in puts) is (
            change != "a refused put"
        ), change


def test_the_renewals_among_the_changes_are_of_current_grants() -> None:
    for change in CHANGES:
        state = a_full_state()
        answers = [(entry[0], execute(state, entry)) for entry in CHANGES[change]]
        assert (RENEW, 0) not in answers, change
