"""The replicated state: one door, the same result on every machine (I4, I5, I7, I11)."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from holdfast.server.core import limits, reply_cache
from holdfast.server.core.register_table import NO_KEY, STALE_TOKEN
from holdfast.server.core.reply_cache import Refused
from holdfast.server.core.snapshot import digest
from holdfast.server.core.state import (
    COMMAND_OF,
    DELETE,
    END_AT,
    EPOCH,
    EXPIRE,
    FORGET,
    LOCK,
    LOCK_WITH,
    PUT,
    REFUSE,
    RENEW,
    SHORT,
    UNDO,
    UNLOCK,
    UNLOCK_GRANT,
    State,
)

Entry = tuple[int, bytes, bytes, bytes, bytes]

NAMES = [b"a", b"b", b"\x00\xff\r\n"]
REGISTERS = [b"v", b"\x00v\r\n", b"a"]  # one of them is sometimes a lock
SEED = 20240607


def new_state() -> State:
    state = State("h", 1_000, 1, 50)
    state.stamp(1, 50)
    return state


def execute(state: State, entry: Entry) -> int | Refused:
    """As the primary does: recall, and apply only what is new."""
    kind, name, reqid, owner, argument = entry
    if kind in COMMAND_OF and reqid:
        known = state.replies.recall(COMMAND_OF[kind], name, reqid)
        if known is not None:
            return known
    return state.apply(kind, name, reqid, owner, argument)


def lock(state: State, name: bytes, reqid: bytes, owner: bytes = b"") -> int | Refused:
    return execute(state, (LOCK_WITH if owner else LOCK, name, reqid, owner, b""))


def unlock(state: State, name: bytes, reqid: bytes) -> int | Refused:
    return execute(state, (UNLOCK, name, reqid, b"", b""))


def undo(state: State, name: bytes, reqid: bytes, undone: bytes) -> int | Refused:
    return execute(state, (UNDO, name, reqid, b"", undone))


def put(
    state: State, name: bytes, reqid: bytes, value: bytes, version: int, fence: bytes = b""
) -> int | Refused:
    """``fence``: b"<fencing token> <lock>"."""
    argument = b"%d %b" % (version, fence) if fence else b"%d" % version
    return execute(state, (PUT, name, reqid, value, argument))


def forget(state: State, table: bytes, times: int = 2) -> None:
    for _ in range(times):
        state.apply(FORGET, b"", b"", b"", table)


def random_history(seed: int, count: int) -> list[Entry]:
    """Entries that a primary could append: repeats are left out by ``execute``."""
    dice = random.Random(seed)
    shadow, history, sequences = new_state(), list[Entry](), dict[int, int]()
    while len(history) < count:
        name = dice.choice(NAMES)
        client = dice.randrange(4)
        n = sequences[client] = sequences.get(client, 0) + dice.randrange(1, 3)
        reqid = b"@%d:%d" % (client, n) if dice.random() < 0.5 else b"r%d" % dice.randrange(99)
        if name in shadow.registers.held:
            name = b"b"  # a name is a lock or a register at a time
        match dice.randrange(28):
            case 0:
                entry = (FORGET, b"", b"", b"", dice.choice([b"r", b"c"]))
            case 1:
                entry = (EPOCH, b"", b"", b"", b"%d" % (shadow.offset + dice.randrange(1, 9)))
            case 2 | 3 | 4:
                undone = b"r%d" % dice.randrange(99)
                if reqid[:1] == b"@":
                    undone = b"@%d:%d" % (client, n - 1) if n > 1 else b"r1"
                entry = (UNDO, name, reqid, b"", undone)
            case 5 | 6 | 7:
                ends = dice.choice([b"", b"40", b"5000"])  # none, passed, to come
                entry = (LOCK_WITH, name, reqid, dice.choice([b"me", b""]), ends)
            case 8 | 9:
                entry = (UNLOCK, name, reqid, b"", b"")
            case 10:
                entry = (REFUSE, name, reqid, b"", b"")
            case 11 | 12:
                entry = about_the_grant(dice, shadow, name, reqid)
            case 20 | 21 | 22 | 23 | 24 | 25 | 26 | 27:
                entry = about_a_register(dice, shadow, reqid)
            case _:
                entry = (LOCK, name, reqid, b"", b"")
        before = shadow.offset
        execute(shadow, entry)
        if shadow.offset != before:
            history.append(entry)
    return history


def about_the_grant(dice: random.Random, state: State, name: bytes, reqid: bytes) -> Entry:
    """What a primary could append about whoever holds ``name``."""
    grant = state.locks.held.get(name, (77, b"", b"", 0, 0))
    if 0 < grant[4] <= state.time_ms:
        return (EXPIRE, name, b"", b"", b"")
    token = b"%d" % dice.choice([grant[0], 77])
    return dice.choice(
        [
            (RENEW, name, b"", token, b"%d" % dice.randrange(60, 9_000)),
            (UNLOCK_GRANT, name, reqid, b"", token),
            (DELETE, name, b"", b"", b""),
        ]
    )


def about_a_register(dice: random.Random, state: State, reqid: bytes) -> Entry:
    """What a primary could append about registers."""
    name = dice.choice([name for name in REGISTERS if name not in state.locks.held])
    register = state.registers.held.get(name, (0, b"", 0, 0))
    if 0 < register[3] <= state.time_ms:
        return (EXPIRE, name, b"", b"", b"")
    argument = b"%d" % dice.choice([register[2], register[2], register[2], 0, 5])
    if state.locks.held and dice.random() < 0.3:
        lock_name, grant = dice.choice(list(state.locks.held.items()))
        argument += b" %d %b" % (dice.choice([grant[0], grant[0], 77]), lock_name)
    value = dice.choice([b"", b"x", b"\r\n$5\r\n", b"long" * 500])
    entry = (PUT, name, dice.choice([reqid, reqid, b""]), value, argument)
    ends = dice.choice([b"0", b"40", b"5000"])  # never, passed, to come
    return dice.choice(
        [entry] * 4 + [(END_AT, name, b"", b"", ends), (DELETE, name, b"", b"", b"")]
    )


def batch_of(history: list[Entry]) -> tuple[bytes, list[bytes]]:
    """Kinds and fields of a batch, as the primary seals it."""
    fields = list[bytes]()
    for kind, name, reqid, owner, argument in history:
        fields += (name, reqid) if kind in SHORT else (name, reqid, owner, argument)
    return bytes(kind for kind, *_ in history), fields


# -- determinism ----------------------------------------------------------------------------------


def test_the_same_entries_give_the_same_answers_and_digest() -> None:
    history = random_history(SEED, 400)
    first, second = new_state(), new_state()
    assert [first.apply(*entry) for entry in history] == [second.apply(*e) for e in history]
    assert digest(first) == digest(second)


@pytest.mark.parametrize("size", [1, 3, 50, 400])
def test_a_batch_is_applied_as_its_entries_one_by_one(size: int) -> None:
    history = random_history(SEED + size, 400)
    alone, batched = new_state(), new_state()
    for start in range(0, len(history), size):
        part = history[start : start + size]
        alone.stamp(2, 60 + start)
        expected = [alone.apply(*entry) for entry in part]
        answers = batched.apply_batch(batched.offset + 1, 2, 60 + start, *batch_of(part))
        assert list(answers) == expected
    assert digest(batched) == digest(alone)


def test_another_process_with_another_hash_seed_gets_the_same_digest() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_state as t\n"
        "state = t.new_state()\n"
        "answers = [state.apply(*entry) for entry in t.random_history(t.SEED, 400)]\n"
        "from holdfast.server.core.snapshot import digest; "
        "print(digest(state), sum(answers))"
    )
    said = set[str]()
    for seed in ("0", "1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        said.add(done.stdout)
    assert len(said) == 1, said


def test_the_digest_tells_states_apart() -> None:
    states = [new_state() for _ in range(19)]
    lock(states[1], b"a", b"r1")
    lock(states[2], b"a", b"r1", b"me")
    lock(states[3], b"a", b"@c:1")
    unlock(states[4], b"a", b"r1")
    states[5].stamp(2, 50)
    states[6].stamp(1, 51)
    states[7].apply(LOCK_WITH, b"a", b"r1", b"", b"100")
    states[8].apply(LOCK_WITH, b"a", b"r1", b"", b"101")
    states[9].apply(REFUSE, b"a", b"r1")
    states[10].apply(LOCK_WITH, b"r1", b"a")  # the fields of states[1], elsewhere
    states[11].history = "another"
    put(states[12], b"a", b"", b"x", 0)
    put(states[13], b"a", b"", b"y", 0)
    put(states[14], b"a", b"r1", b"x", 0)
    put(states[15], b"a", b"r1", b"x", 1)
    put(states[16], b"x", b"", b"a", 0)  # the fields of states[12], elsewhere
    states[17].registers.load(b"a", (1_001, b"x", 2, 0))
    states[18].registers.load(b"a", (1_001, b"x", 1, 60))
    for state in (states[17], states[18]):
        state.offset = states[12].offset
    assert len({digest(state) for state in states}) == 19


# -- answers --------------------------------------------------------------------------------------


def test_a_grant_answers_its_own_offset_as_the_fencing_token() -> None:
    state = new_state()
    assert lock(state, b"a", b"r1") == 1_001
    assert state.locks.held[b"a"] == (1_001, b"r1", b"r1", 50, 0)
    assert lock(state, b"b", b"r2", b"me") == 1_002
    assert state.locks.held[b"b"] == (1_002, b"r2", b"me", 50, 0)


@pytest.mark.parametrize("reqid", [b"r2", b"@c:2"])
def test_a_refusal_is_remembered_after_the_lock_is_free(reqid: bytes) -> None:
    state = new_state()
    lock(state, b"a", b"r1")
    assert lock(state, b"a", reqid) == 0
    unlock(state, b"a", b"u1")
    assert lock(state, b"a", reqid) == 0
    assert b"a" not in state.locks.held


@pytest.mark.parametrize("reqid", [b"u1", b"@c:2"])
def test_a_refused_unlock_does_not_release_a_later_holder(reqid: bytes) -> None:
    state = new_state()
    assert unlock(state, b"a", reqid) == 0
    token = lock(state, b"a", b"r1")
    assert unlock(state, b"a", reqid) == 0
    assert state.locks.held[b"a"][0] == token


@pytest.mark.parametrize("reqid", [b"u1", b"@c:2"])
def test_a_repeated_unlock_does_not_release_the_next_holder(reqid: bytes) -> None:
    state = new_state()
    lock(state, b"a", b"r1")
    assert unlock(state, b"a", reqid) == 1
    token = lock(state, b"a", b"r2")
    assert unlock(state, b"a", reqid) == 1
    assert state.locks.held[b"a"][0] == token


def test_one_opaque_id_may_serve_a_lock_and_an_unlock_and_other_names() -> None:
    state = new_state()
    assert lock(state, b"a", b"r1") == 1_001
    assert lock(state, b"b", b"r1") == 1_002
    assert unlock(state, b"a", b"r1") == 1
    assert lock(state, b"a", b"r1") == 1_001  # the first answer


def test_an_owner_is_the_request_id_unless_it_is_given() -> None:
    state = new_state()
    state.apply(LOCK_WITH, b"a", b"r1", b"", b"900")
    state.apply(LOCK_WITH, b"b", b"r2", b"me", b"")
    assert state.locks.held[b"a"] == (1_001, b"r1", b"r1", 50, 900)
    assert state.locks.held[b"b"] == (1_002, b"r2", b"me", 50, 0)


def test_an_unlock_with_a_token_releases_that_grant_only_and_is_remembered() -> None:
    state = new_state()
    token = lock(state, b"a", b"r1")
    assert execute(state, (UNLOCK_GRANT, b"a", b"u1", b"", b"999")) == 0
    assert execute(state, (UNLOCK_GRANT, b"a", b"u2", b"", b"%d" % token)) == 1
    again = lock(state, b"a", b"r2")
    assert execute(state, (UNLOCK_GRANT, b"a", b"u2", b"", b"%d" % again)) == 1, "the first answer"
    assert unlock(state, b"a", b"u1") == 0, "the same request: command, name and id agree"
    assert state.locks.held[b"a"][0] == again


@pytest.mark.parametrize("reqid", [b"r2", b"@c:2"])
def test_a_wait_that_is_over_is_a_refusal_of_that_very_request(reqid: bytes) -> None:
    state = new_state()
    assert execute(state, (REFUSE, b"a", reqid, b"", b"")) == 0
    assert lock(state, b"a", reqid) == 0 and b"a" not in state.locks.held


def test_what_has_no_request_id_is_not_remembered() -> None:
    state = new_state()
    state.apply(LOCK_WITH, b"a", b"r1", b"", b"60")
    token = state.locks.held[b"a"][0]
    before = dict(state.replies.replies)
    assert state.apply(RENEW, b"a", b"", b"%d" % token, b"90") == 1
    assert state.apply(RENEW, b"a", b"", b"%d" % (token + 1), b"99") == 0
    state.stamp(1, 90)
    assert state.apply(EXPIRE, b"a", b"") == 1
    assert state.apply(DELETE, b"a", b"") == 0
    assert state.apply(PUT, b"a", b"", b"x", b"0") == 1
    assert state.apply(PUT, b"a", b"", b"x", b"0") == -1
    assert state.apply(END_AT, b"a", b"", b"", b"900") == 1
    assert state.replies.replies == before and state.offset == token + 7


# -- registers -----------------------------------------------------------------------------------


def fence_of(state: State, name: bytes) -> bytes:
    return b"%d %b" % (state.locks.held[name][0], name)


def test_a_put_answers_the_new_version_or_what_it_met() -> None:
    state = new_state()
    assert put(state, b"a", b"r1", b"one", 1) == NO_KEY
    assert put(state, b"a", b"r2", b"one", 0) == 1
    assert put(state, b"a", b"r3", b"two", 1) == 2
    assert put(state, b"a", b"r4", b"no", 1) == -2
    assert put(state, b"a", b"", b"three", 2) == 3
    assert state.registers.held == {b"a": (1_002, b"three", 3, 0)}


@pytest.mark.parametrize("ids", [(b"r1", b"r2", b"r3"), (b"@c:1", b"@d:1", b"@e:1")])
def test_a_repeated_put_gets_the_first_answer_and_writes_nothing(
    ids: tuple[bytes, bytes, bytes],
) -> None:
    state = new_state()
    puts = ((b"a", 0, b""), (b"a", 5, b""), (b"a", 1, b"77 lock"))
    expected = [1, -1, STALE_TOKEN]
    for reqid, (name, version, fence), answer in zip(ids, puts, expected, strict=True):
        assert put(state, name, reqid, b"x", version, fence) == answer
    put(state, b"a", b"", b"later", 1)
    before = digest(state)
    for reqid, (name, version, fence), answer in zip(ids, puts, expected, strict=True):
        assert put(state, name, reqid, b"x", version, fence) == answer
    assert digest(state) == before


def test_one_opaque_id_may_serve_a_put_too() -> None:
    state = new_state()
    assert lock(state, b"a", b"r1") == 1_001
    assert unlock(state, b"a", b"r1") == 1
    assert put(state, b"a", b"r1", b"x", 0) == 1
    assert lock(state, b"a", b"r1") == 1_001, "each its own first answer"
    assert put(state, b"a", b"r1", b"y", 1) == 1


def test_a_clients_id_is_of_one_command_on_one_name() -> None:
    state = new_state()
    put(state, b"a", b"@c:5", b"x", 0)
    assert put(state, b"b", b"@c:5", b"x", 0) is Refused.REUSED
    assert unlock(state, b"a", b"@c:5") is Refused.REUSED
    assert put(state, b"a", b"@c:4", b"y", 1) is Refused.REQUEST_GONE
    assert lock(state, b"l", b"@c:6") == 1_002
    assert put(state, b"a", b"@c:5", b"x", 0) is Refused.REQUEST_GONE


def test_a_put_without_a_request_id_is_remembered_nowhere() -> None:
    state = new_state()
    assert [put(state, b"a", b"", b"x", 0), put(state, b"a", b"", b"x", 0)] == [1, -1]
    assert not state.replies.replies and not state.replies.clients and state.offset == 1_002


def test_a_fenced_put_writes_while_the_grant_is_current() -> None:
    state = new_state()
    lock(state, b"l", b"r1")
    fence = fence_of(state, b"l")
    assert put(state, b"a", b"", b"one", 0, fence) == 1
    assert put(state, b"a", b"", b"one", 0, fence) == -1, "the fence is no excuse for the version"
    unlock(state, b"l", b"u1")
    assert put(state, b"a", b"", b"two", 1, fence) == STALE_TOKEN
    lock(state, b"l", b"r2")
    assert put(state, b"a", b"", b"two", 1, fence) == STALE_TOKEN
    assert put(state, b"a", b"", b"two", 1, fence_of(state, b"l")) == 2


def test_a_fence_is_looked_at_before_key_and_version() -> None:
    state = new_state()
    put(state, b"a", b"", b"x", 0)
    for name, version in ((b"a", 0), (b"a", 9), (b"none", 3)):
        assert put(state, name, b"", b"y", version, b"77 l") == STALE_TOKEN


@pytest.mark.parametrize("lock_name", [b" ", b"a b", b" 12 x", b"\x00\r\n", b"7"])
def test_the_name_of_a_fence_may_have_any_bytes(lock_name: bytes) -> None:
    state = new_state()
    lock(state, lock_name, b"r1")
    assert put(state, b"v", b"", b"x", 0, fence_of(state, lock_name)) == 1
    lock(state, lock_name[:-1] + b"?", b"r2")
    assert put(state, b"v", b"", b"x", 1, b"1001 " + lock_name[:-1] + b"?") == STALE_TOKEN


def test_a_register_is_deleted_and_expires_by_the_same_entries_as_a_lock() -> None:
    state = new_state()
    put(state, b"a", b"", b"x", 0)
    assert state.apply(END_AT, b"a", b"", b"", b"60") == 1
    assert state.apply(END_AT, b"none", b"", b"", b"60") == 0
    with pytest.raises(AssertionError):
        state.apply(EXPIRE, b"a", b"")
    state.stamp(1, 60)
    assert state.apply(EXPIRE, b"a", b"") == 1 and not state.registers.held
    assert put(state, b"a", b"", b"x", 0) == 1
    assert state.apply(DELETE, b"a", b"") == 1
    assert state.apply(DELETE, b"a", b"") == 0
    assert lock(state, b"a", b"r1") == state.offset, "the name is free for a lock"


def test_a_held_lock_is_never_overwritten_by_a_put() -> None:
    state = new_state()
    lock(state, b"a", b"r1")
    with pytest.raises(AssertionError):
        state.apply(PUT, b"a", b"r2", b"x", b"0")


# -- UNLOCK ... REQUEST ---------------------------------------------------------------------------


def test_undo_releases_the_grant_that_the_request_made() -> None:
    state = new_state()
    lock(state, b"a", b"r1")
    assert undo(state, b"a", b"u1", b"r1") == 1
    assert b"a" not in state.locks.held
    assert lock(state, b"a", b"r1") == 1_001  # a late copy: answered, not executed
    assert b"a" not in state.locks.held


def test_undo_of_an_unknown_request_refuses_its_late_copy() -> None:
    state = new_state()
    assert undo(state, b"a", b"u1", b"r1") == 0
    assert lock(state, b"a", b"r1") == 0
    assert b"a" not in state.locks.held


def test_undo_of_a_clients_unknown_request_freezes_its_late_copy() -> None:
    state = new_state()
    assert undo(state, b"a", b"@c:6", b"@c:5") == 0
    assert lock(state, b"a", b"@c:5") is Refused.REQUEST_GONE
    assert b"a" not in state.locks.held


def test_undo_of_a_clients_grant_releases_it_and_freezes_it() -> None:
    state = new_state()
    lock(state, b"a", b"@c:5")
    assert undo(state, b"a", b"@c:6", b"@c:5") == 1
    assert lock(state, b"a", b"@c:5") is Refused.REQUEST_GONE
    assert undo(state, b"a", b"@c:6", b"@c:5") == 1


def test_undo_of_a_refused_request_releases_nobody() -> None:
    state = new_state()
    token = lock(state, b"a", b"r1")
    assert lock(state, b"a", b"r2") == 0
    assert undo(state, b"a", b"u2", b"r2") == 0
    assert state.locks.held[b"a"][0] == token


def test_undo_does_not_release_the_next_holder_of_the_name() -> None:
    state = new_state()
    lock(state, b"a", b"r1")
    unlock(state, b"a", b"u1")
    token = lock(state, b"a", b"r2")
    assert undo(state, b"a", b"u2", b"r1") == 0
    assert state.locks.held[b"a"][0] == token


def test_undo_of_a_request_for_another_name_releases_nothing() -> None:
    state = new_state()
    token = lock(state, b"a", b"r1")
    assert undo(state, b"b", b"u1", b"r1") == 0
    assert state.locks.held[b"a"][0] == token
    assert lock(state, b"b", b"r1") == 0, "on that name it is recorded as refused"


def test_a_repeated_undo_does_not_release_a_later_grant() -> None:
    state = new_state()
    undo(state, b"a", b"u1", b"r1")
    token = lock(state, b"a", b"r2")
    assert undo(state, b"a", b"u1", b"r2") == 0, "it was answered before, whatever it names now"
    assert state.locks.held[b"a"][0] == token


def test_undo_of_a_grant_whose_answer_is_forgotten_also_refuses_its_late_copy() -> None:
    state = new_state()
    lock(state, b"a", b"r1")
    forget(state, b"r")
    assert undo(state, b"a", b"u1", b"r1") == 1
    late = lock(state, b"a", b"r1")
    assert b"a" not in state.locks.held, f"the late copy was granted {late}"


def test_undo_of_a_clients_grant_after_the_client_was_forgotten() -> None:
    state = new_state()
    lock(state, b"a", b"@c:5")
    forget(state, b"c")
    assert undo(state, b"a", b"@c:6", b"@c:5") == 1
    assert lock(state, b"a", b"@c:5") is Refused.REQUEST_GONE


# -- fencing tokens, epochs and time --------------------------------------------------------------


def test_fencing_tokens_rise_over_all_names_and_through_a_promotion() -> None:
    state = new_state()
    tokens = list[int]()
    for n in range(50):
        if n % 10 == 9:
            state.stamp(state.epoch + 1, state.time_ms)
            offset = state.next_epoch_offset(0)
            state.apply(EPOCH, b"", b"", b"", b"%d" % offset)
        token = lock(state, b"name %d" % (n % 7), b"r%d" % n)
        assert isinstance(token, int)
        if token:
            tokens.append(token)
            unlock(state, b"name %d" % (n % 7), b"u%d" % n)
    assert tokens == sorted(set(tokens)) and len(tokens) == 50


def test_a_promotion_skips_more_than_the_old_primary_can_have_appended() -> None:
    state = new_state()
    assert state.next_epoch_offset(0) > state.offset + limits.UNACKED_ENTRIES_MAX
    assert state.next_epoch_offset(10**16) == 10**16, "and is not behind the wall clock"
    state.apply(EPOCH, b"", b"", b"", b"%d" % 10**16)
    assert lock(state, b"a", b"r") == 10**16 + 1


def test_neither_time_nor_epoch_nor_offset_goes_back() -> None:
    state = new_state()
    for epoch, time_ms in ((0, 50), (1, 49)):
        with pytest.raises(AssertionError):
            state.stamp(epoch, time_ms)
    with pytest.raises(AssertionError):
        state.apply(EPOCH, b"", b"", b"", b"1000")
    with pytest.raises(AssertionError):
        new_state().apply_batch(1_000, 1, 50, *batch_of([(LOCK, b"a", b"r", b"", b"")]))
    with pytest.raises(AssertionError):
        new_state().apply_batch(1_002, 1, 50, *batch_of([(LOCK, b"a", b"r", b"", b"")]))


def test_an_unknown_kind_of_entry_is_never_skipped() -> None:
    with pytest.raises(AssertionError):
        new_state().apply(ord("?"), b"a", b"r", b"", b"")
    with pytest.raises(AssertionError):
        new_state().apply(FORGET, b"", b"", b"", b"x")


def test_a_lease_is_never_ended_early_not_even_by_an_entry() -> None:
    state = new_state()
    state.apply(LOCK_WITH, b"a", b"r1", b"", b"100")
    state.apply(LOCK, b"b", b"r2")
    for name, time_ms in ((b"a", 99), (b"b", 10**9), (b"c", 10**9)):
        state.stamp(1, max(state.time_ms, time_ms))
        with pytest.raises(AssertionError):
            state.apply(EXPIRE, name, b"")
        assert len(state.locks.held) == 2
    assert state.apply(EXPIRE, b"a", b"") == 1


def test_an_older_request_of_a_client_is_never_applied() -> None:
    state = new_state()
    lock(state, b"a", b"@c:5")
    with pytest.raises(AssertionError):
        state.apply(UNLOCK, b"a", b"@c:5", b"", b"")


# -- against a model ------------------------------------------------------------------------------


class Model:
    """What LOCK and UNLOCK promise, as plainly as it can be said: no offsets, no generations."""

    def __init__(self) -> None:
        self.holder: dict[bytes, bytes] = {}  # name -> request id of the grant
        self.clients: dict[bytes, tuple[int, bytes, bytes, int]] = {}
        self.answered: dict[tuple[bytes, bytes, bytes], int] = {}

    def recall(self, command: bytes, name: bytes, reqid: bytes) -> int | Refused | None:
        if reqid[:1] != b"@":
            return self.answered.get((command, name, reqid))
        client, _, n = reqid.rpartition(b":")
        last, *which, answer = self.clients.get(client, (-1, b"", b"", 0))
        if int(n) > last:
            return None
        if int(n) < last:
            return Refused.REQUEST_GONE
        return answer if which == [command, name] else Refused.REUSED

    def remember(self, command: bytes, name: bytes, reqid: bytes, answer: int) -> int:
        if reqid[:1] != b"@":
            self.answered[command, name, reqid] = answer
        else:
            client, _, n = reqid.rpartition(b":")
            self.clients[client] = (int(n), command, name, answer)
        return answer

    def lock(self, name: bytes, reqid: bytes, token: int) -> int:
        free = name not in self.holder
        self.holder.setdefault(name, reqid)
        return self.remember(b"L", name, reqid, token if free else 0)

    def unlock(self, name: bytes, reqid: bytes, only: bytes | None = None) -> int:
        held = name in self.holder and only in (None, self.holder[name])
        if held:
            del self.holder[name]
        if only is not None and self.recall(b"L", name, only) is None:
            self.remember(b"L", name, only, 0)
        return self.remember(b"U", name, reqid, int(held))


names = st.sampled_from([b"a", b"b"])
opaque_ids = st.sampled_from([b"r%d" % n for n in range(6)])
clients = st.sampled_from([b"@c", b"@d:d"])
steps = st.integers(0, 2)  # 0: the same n again


class StateAgainstModel(RuleBasedStateMachine):
    """State and reply cache on one side, a model on the other, and a backup that is fed what the
    primary appended. Rotations forget nothing here that was used less than a period ago."""

    @initialize()
    def begin(self) -> None:
        self.state, self.backup, self.model = new_state(), new_state(), Model()
        self.sent = list[tuple[Entry, int]]()
        self.pending = list[Entry]()
        self.expected = list[int]()
        self.numbers = dict[bytes, int]()

    def do(self, entry: Entry) -> None:
        kind, name, reqid, _, argument = entry
        command = b"L" if COMMAND_OF[kind] == LOCK else b"U"
        expected = self.model.recall(command, name, reqid)
        before = digest(self.state)
        answer = execute(self.state, entry)
        if expected is None:
            if command == b"L":
                expected = self.model.lock(name, reqid, self.state.offset)
            else:
                expected = self.model.unlock(name, reqid, argument if kind == UNDO else None)
            self.pending.append(entry)
            self.expected.append(expected)
            self.sent.append((entry, expected))
        else:
            assert digest(self.state) == before, "a repeat changes nothing (I11)"
        assert answer == expected

    @rule(name=names, reqid=opaque_ids)
    def lock(self, name: bytes, reqid: bytes) -> None:
        self.do((LOCK, name, reqid, b"", b""))

    @rule(name=names, reqid=opaque_ids)
    def lock_with_an_owner(self, name: bytes, reqid: bytes) -> None:
        self.do((LOCK_WITH, name, reqid, b"me", b""))

    @rule(name=names, reqid=opaque_ids)
    def unlock(self, name: bytes, reqid: bytes) -> None:
        self.do((UNLOCK, name, reqid, b"", b""))

    @rule(name=names, reqid=opaque_ids, undone=opaque_ids)
    def undo(self, name: bytes, reqid: bytes, undone: bytes) -> None:
        self.do((UNDO, name, reqid, b"", undone))

    def next_id(self, client: bytes, step: int) -> bytes:
        number = self.numbers[client] = self.numbers.get(client, 0) + step
        return b"%b:%d" % (client, number)

    @rule(name=names, client=clients, step=steps, kind=st.sampled_from([LOCK, UNLOCK]))
    def a_clients_request(self, name: bytes, client: bytes, step: int, kind: int) -> None:
        self.do((kind, name, self.next_id(client, step), b"", b""))

    @rule(name=names, step=st.integers(1, 3))
    def undo_of_a_clients_request(self, name: bytes, step: int) -> None:
        undone = self.next_id(b"@c", 0)
        self.do((UNDO, name, self.next_id(b"@c", step), b"", undone))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def a_late_copy(self, data: st.DataObject) -> None:
        entry, first = data.draw(st.sampled_from(self.sent))
        before = digest(self.state)
        assert execute(self.state, entry) in (first, Refused.REQUEST_GONE)
        assert digest(self.state) == before

    @rule(table=st.sampled_from([b"r", b"c"]))
    def a_period_passes(self, table: bytes) -> None:
        """Both tables are asked to forget; the model forgets what the young generation lacks."""
        entry = (FORGET, b"", b"", b"", table)
        replies = self.state.replies
        if table == b"r":
            kept = set(replies.replies)
            self.model.answered = {
                key: answer
                for key, answer in self.model.answered.items()
                if (key[0][0], key[1], key[2]) in kept
            }
            self.sent = [(e, a) for e, a in self.sent if (COMMAND_OF[e[0]], e[1], e[2]) in kept
                         or e[2][:1] == b"@"]  # fmt: skip
        else:
            young = {b"@" + client for client in replies.clients}
            self.model.clients = {c: r for c, r in self.model.clients.items() if c in young}
            self.sent = [(e, a) for e, a in self.sent if e[2].rpartition(b":")[0] in young
                         or e[2][:1] != b"@"]  # fmt: skip
        self.state.apply(*entry)
        self.pending.append(entry)
        self.expected.append(0)

    @rule()
    def the_backup_gets_a_batch(self) -> None:
        backup, pending, expected = self.backup, self.pending, self.expected
        if pending:
            answers = backup.apply_batch(backup.offset + 1, 1, 50, *batch_of(pending))
            assert list(answers) == expected
            self.pending, self.expected = [], []
        assert digest(backup) == digest(self.state)

    @invariant()
    def the_holders_agree(self) -> None:
        assert {name: grant[1] for name, grant in self.state.locks.held.items()} == (
            self.model.holder
        )


StateAgainstModel.TestCase.settings = settings(
    max_examples=300, stateful_step_count=40, deadline=None, print_blob=True
)
TestStateAgainstModel = StateAgainstModel.TestCase


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_bounds_hold_whatever_is_applied(seed: int) -> None:
    before = reply_cache._GENERATION_MAX
    reply_cache._GENERATION_MAX = 5
    try:
        state = new_state()
        for entry in random_history(seed, 60):
            state.apply(*entry)
            assert len(state.replies.replies) <= 5 and len(state.replies.old_replies) <= 5
    finally:
        reply_cache._GENERATION_MAX = before
