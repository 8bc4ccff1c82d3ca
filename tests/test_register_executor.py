"""Requests on registers, on the primary: the rules of the executor for them too (X1 to X5), and
what is theirs alone (G1 to G3).

How they go together with locks, time and failures is held against a model in
``test_core_properties.py``, and told step by step in ``scenarios/``.
"""

from __future__ import annotations

import pytest
from harness.replicas import Pair, SimNode

from holdfast.server.core import limits
from holdfast.server.core.register_executor import RegisterExecutor
from holdfast.server.core.register_table import STALE_TOKEN
from holdfast.server.core.reply_cache import Refused
from holdfast.server.core.snapshot import digest


def alone() -> SimNode:
    node = SimNode("P")
    node.begin_history()
    return node


def joined() -> Pair:
    pair = Pair()
    pair.join()
    return pair


def promoted(pair: Pair) -> SimNode:
    """The backup, after everything has reached it and the primary is lost."""
    pair.settle()
    pair.backup.promote()
    pair.backup.end_turn()
    return pair.backup


def registers_of(node: SimNode) -> RegisterExecutor:
    return node.replica.executor.registers


def held(node: SimNode) -> dict[str, tuple[str, int, int]]:
    """Value, version and end of each register."""
    return {
        name.decode(): (value.decode(), version, ends_ms)
        for name, (_, value, version, ends_ms) in node.replica.state.registers.held.items()
    }


def ask(node: SimNode, request: str, *words: str) -> str:
    """The answer to one request of a client, whether it may leave or not."""
    said, waits = len(node.said), len(node._held)
    getattr(node, request)("c", *words)
    (answer,) = node.said[said:] + node._held[waits:]
    return answer[1]


def offset_of(node: SimNode) -> int:
    return node.replica.state.offset


# -- repeats (X1) ---------------------------------------------------------------------------------

REPEATED = {
    "written": (("a", "again", "1"), "2"),
    "another version": (("a", "again", "7"), "-VERSION 1"),
    "it exists": (("a", "again", "0"), "-VERSION 1"),
    "no register": (("none", "again", "3"), "-NOKEY"),
    "stale": (("a", "again", "1", "FENCE", "l", "77"), "-STALETOKEN"),
}


def ask_with_id(node: SimNode, words: tuple[str, ...], reqid: str) -> str:
    return ask(node, "put", *words[:3], reqid, *words[3:])


@pytest.mark.parametrize("what", REPEATED)
@pytest.mark.parametrize("reqid", ["r1", "@c:5"])
def test_a_repeated_put_gets_the_first_answer_and_has_no_second_effect(
    what: str, reqid: str
) -> None:
    words, answer = REPEATED[what]
    node = alone()
    ask(node, "put", "a", "x", "0")
    assert ask_with_id(node, words, reqid) == answer
    ask(node, "delete", "a")
    ask(node, "put", "none", "x", "0")
    before = digest(node.replica.state)
    assert ask_with_id(node, words, reqid) == answer
    assert ask_with_id(node, (words[0], "another value", "9"), reqid) == answer, "the id decides"
    assert digest(node.replica.state) == before


@pytest.mark.parametrize("what", REPEATED)
@pytest.mark.parametrize("reqid", ["r1", "@c:5"])
def test_the_backup_that_took_over_gives_the_first_answer_too(what: str, reqid: str) -> None:
    words, answer = REPEATED[what]
    pair = joined()
    ask(pair.primary, "put", "a", "x", "0")
    assert ask_with_id(pair.primary, words, reqid) == answer
    node = promoted(pair)
    before = digest(node.replica.state)
    assert ask_with_id(node, words, reqid) == answer
    assert digest(node.replica.state) == before


def test_a_put_that_never_reached_the_backup_is_a_new_one_there() -> None:
    pair = joined()
    pair.settle()
    ask(pair.primary, "put", "a", "x", "0", "r1")
    pair.turn()
    assert pair.primary.said == [], "nobody was told"
    pair.backup.promote()
    assert ask(pair.backup, "put", "a", "y", "0", "r1") == "1"
    assert held(pair.backup) == {"a": ("y", 1, 0)}


def test_a_clients_number_is_of_one_put_on_one_name() -> None:
    node = alone()
    assert ask(node, "put", "a", "x", "0", "@c:5") == "1"
    offset = offset_of(node)
    assert ask(node, "put", "b", "x", "0", "@c:5") == "-ERR"
    assert ask(node, "lock", "a", "@c:5") == "-ERR"
    assert ask(node, "unlock", "a", "@c:5") == "-ERR"
    assert ask(node, "put", "a", "x", "1", "@c:4") == "-REQUESTGONE"
    assert offset_of(node) == offset
    assert ask(node, "lock", "l", "@c:6") == str(offset + 1)
    assert ask(node, "put", "a", "x", "0", "@c:5") == "-REQUESTGONE"
    assert ask(node, "put", "l", "x", "0", "@c:6") == "-ERR"


def test_malformed_ids_and_a_full_table_of_clients_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = alone()
    ask(node, "put", "a", "x", "0", "@c:1")
    before = digest(node.replica.state)
    for reqid in ("@", "@c:", "@c:01", "@:1", "@c:-1", "@c:9223372036854775808"):
        assert registers_of(node).put(b"a", reqid.encode(), b"y", 1) is Refused.MALFORMED
    monkeypatch.setattr(limits, "CLIENTS_MAX", 1)
    assert registers_of(node).put(b"a", b"@d:1", b"y", 1) is Refused.CLIENTS_FULL
    assert digest(node.replica.state) == before
    assert ask(node, "put", "a", "y", "1", "@c:2") == "2"


@pytest.mark.parametrize(
    ("version", "answer"), [("0", "1"), ("5", "-NOKEY"), ("0 FENCE l 77", "-STALETOKEN")]
)
def test_a_put_that_is_executed_ends_its_clients_earlier_wait(version: str, answer: str) -> None:
    """Whatever its answer is: the answer is remembered, and freezes what was before."""
    node = alone()
    node.lock("c1", "l", "r1")
    node.lock("w", "l", "@w:1", "WAIT", "9000")
    version, *fence = version.split()
    assert ask(node, "put", "a", "x", version, "@w:2", *fence) == answer
    node.end_turn()
    assert ("w", "0") in node.said and node.waiting == []
    assert ask(node, "lock", "l", "@w:1") == "-REQUESTGONE"


def test_a_put_without_an_id_or_of_another_client_ends_no_wait() -> None:
    node = alone()
    node.lock("c1", "l", "r1")
    node.lock("w", "l", "@w:1", "WAIT", "9000")
    ask(node, "put", "a", "x", "0")
    ask(node, "put", "a", "x", "1", "@v:2")
    assert node.waiting == ["w"]


def test_a_put_with_a_lower_number_than_a_wait_is_gone_and_with_the_same_one_an_error() -> None:
    node = alone()
    node.lock("c1", "l", "r1")
    node.lock("w", "l", "@w:5", "WAIT", "9000")
    offset = offset_of(node)
    assert ask(node, "put", "a", "x", "0", "@w:4") == "-REQUESTGONE"
    assert ask(node, "put", "a", "x", "0", "@w:5") == "-ERR"
    assert offset_of(node) == offset and node.waiting == ["w"]


# -- refused before anything was appended (X2) ----------------------------------------------------


def test_without_room_in_the_stream_nothing_is_appended_and_nothing_remembered() -> None:
    node = joined().primary
    ask(node, "put", "a", "x", "0", "@c:1")
    ask(node, "lock", "l", "r1", "PX", "100")
    ask(node, "put", "short", "x", "0")
    ask(node, "expire_in", "short", "100")
    node.lock("w", "l", "@w:1", "WAIT", "9000")
    node.end_turn()
    node.sleep(101)
    before, limit = digest(node.replica.state), node.replica.offset_limit
    node.replica.offset_limit = offset_of(node)
    token = str(node.replica.state.locks.held[b"l"][0])
    for request in (
        ("put", "a", "y", "1"),
        ("put", "a", "y", "1", "@w:2"),
        ("put", "new", "y", "0", "r9"),
        ("put", "a", "y", "9"),
        ("put", "a", "y", "1", "FENCE", "l", token),
        ("get", "short"),
        ("expire_in", "a", "100"),
        ("expire_in", "short", "100"),
        ("persist", "short"),
        ("delete", "a"),
        ("delete", "short"),
    ):
        assert ask(node, *request) == "-TRYAGAIN", request
    assert digest(node.replica.state) == before and node.waiting == ["w"]
    assert ask(node, "get", "a") == "x version 1", "what needs no entry is answered"
    assert ask(node, "put", "a", "whatever", "1", "@c:1") == "1", "and a repeat"
    node.replica.offset_limit = limit
    assert ask(node, "put", "a", "y", "1", "r9") == "2"


def test_while_too_much_is_held_back_only_repeats_are_answered() -> None:
    node = joined().primary
    ask(node, "put", "a", "x", "0", "r1")
    node.end_turn()
    node.replica.overflows = True
    offset = offset_of(node)
    for request in (
        ("put", "a", "y", "1"), ("put", "a", "y", "1", "r2"), ("get", "a"), ("delete", "a"),
        ("expire_in", "a", "100"), ("persist", "a"),
    ):  # fmt: skip
        assert ask(node, *request) == "-TRYAGAIN", request
    assert ask(node, "put", "a", "y", "1", "r1") == "1" and offset_of(node) == offset


def test_values_count_among_what_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """They lie in the link until the backup has them: so a backup that reads nothing leads to
    TRYAGAIN, long before there are too many entries."""
    monkeypatch.setattr(limits, "HELD_BACK_BYTES_MAX", 16 * limits.VALUE_BYTES_MAX)
    pair = joined()
    node, value = pair.primary, "v" * limits.VALUE_BYTES_MAX
    puts = 0
    while ask(node, "put", f"k{puts}", value, "0") != "-TRYAGAIN":
        puts += 1
        pair.turn()
        assert puts <= 17
    assert puts == 16, "the replies themselves are what is beyond it"
    assert node.replica.overflows
    pair.settle()
    assert ask(node, "put", "k", value, "0") == "1"
    assert len(node.said) == puts + 1, "all of them, and the TRYAGAIN"


def test_with_min_backups_a_lone_primary_writes_nothing() -> None:
    pair = Pair(min_backups=1)
    pair.join()
    node = pair.primary
    ask(node, "put", "a", "x", "0", "r1")
    ask(node, "expire_in", "a", "100")
    pair.settle()
    pair.lose_link()
    node.go_alone()
    pair.turn()
    before = digest(node.replica.state)
    for request in (("a", "y", "1"), ("a", "y", "1", "r2"), ("b", "y", "0"), ("a", "y", "9")):
        assert ask(node, "put", *request) == "-NOREPLICAS", request
    assert ask(node, "put", "a", "y", "1", "r1") == "1", "a repeat"
    assert ask(node, "get", "a") == "x version 1"
    assert digest(node.replica.state) == before
    node.sleep(101)
    assert ask(node, "put", "a", "y", "0") == "-NOREPLICAS", "though its time has come"
    assert digest(node.replica.state) == before
    pair.join()
    assert ask(node, "put", "a", "y", "0", "r2") == "1", "it was not remembered"


def test_registers_are_bounded_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes them larger is refused; the rest goes on."""
    room = 2 * (limits.REGISTER_OVERHEAD_BYTES + 1) + 10
    monkeypatch.setattr(limits, "REGISTERS_BYTES_MAX", room)
    node = alone()
    assert ask(node, "put", "a", "12345", "0") == "1"
    assert ask(node, "put", "b", "12345", "0") == "1", "to the last byte"
    assert node.replica.state.registers.size_bytes == room
    before = digest(node.replica.state)
    for request in (("c", "", "0"), ("c", "", "0", "r1"), ("b", "123456", "1", "@c:1")):
        assert ask(node, "put", *request) == "-OOM", request
    assert digest(node.replica.state) == before
    assert ask(node, "put", "b", "123456", "7", "@c:1") == "-VERSION 1", "would not write anyway"
    assert ask(node, "put", "b", "54321", "1") == "2", "as large as before"
    assert ask(node, "put", "a", "", "1") == "2"
    assert ask(node, "put", "b", "1234567890", "2") == "3"
    assert ask(node, "put", "b", "12345678901", "3") == "-OOM"
    assert ask(node, "delete", "a") == "1"
    assert ask(node, "put", "c", "", "0", "r1") == "1", "OOM was not remembered"


def test_a_register_whose_time_has_come_makes_room_for_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "REGISTERS_BYTES_MAX", limits.REGISTER_OVERHEAD_BYTES + 6)
    node = alone()
    ask(node, "put", "a", "12345", "0")
    ask(node, "expire_in", "a", "100")
    node.end_turn()
    node.sleep(101)
    assert ask(node, "put", "a", "54321", "0") == "1"
    assert ask(node, "put", "a", "543210", "1") == "-OOM"


# -- a lock or a register (G1) --------------------------------------------------------------------


def test_a_register_is_no_lock() -> None:
    node = alone()
    ask(node, "put", "a", "x", "0")
    before = digest(node.replica.state)
    for request in (
        ("lock", "a", "r1"), ("lock", "a", "@c:1", "PX", "100", "WAIT", "100"),
        ("unlock", "a", "r2"), ("unlock_grant", "a", "r3", "7"), ("renew", "a", "7", "100"),
        ("verify", "a", "7"), ("inspect", "a"),
    ):  # fmt: skip
        assert ask(node, *request) == "-WRONGTYPE", request
    assert digest(node.replica.state) == before and not node.waiting
    ask(node, "delete", "a")
    assert int(ask(node, "lock", "a", "r1")) > 1, "it was not remembered"


def test_a_held_lock_is_no_register() -> None:
    node = alone()
    ask(node, "lock", "a", "r1", "PX", "100")
    before = digest(node.replica.state)
    for request in (
        ("put", "a", "x", "0"), ("put", "a", "x", "5", "r1"), ("get", "a"), ("persist", "a"),
        ("expire_in", "a", "100"), ("expire_in", "a", "0"),
    ):  # fmt: skip
        assert ask(node, *request) == "-WRONGTYPE", request
    assert digest(node.replica.state) == before
    node.end_turn()
    node.sleep(101)
    assert ask(node, "put", "a", "x", "0", "r1") == "1", "nor was that; and its lease has passed"
    assert offset_of(node) == 1_000_003


def test_a_put_with_a_client_id_on_a_lock_ends_no_wait() -> None:
    """Nothing was done."""
    node = alone()
    ask(node, "lock", "a", "r1")
    node.lock("w", "a", "@w:1", "WAIT", "9000")
    assert ask(node, "put", "a", "x", "0", "@w:2") == "-WRONGTYPE"
    assert node.waiting == ["w"]


def a_free_name_with_a_line() -> Pair:
    """Free, and somebody in line, who is not granted it: a lone primary that wants a backup."""
    pair = Pair(min_backups=1)
    pair.join()
    pair.primary.lock("c", "a", "r")
    pair.primary.lock("w", "a", "r1", "WAIT", "9000")
    pair.settle()
    pair.lose_link()
    pair.primary.go_alone()
    pair.primary.unlock("c", "a", "u")
    pair.turn()
    assert pair.primary.waiting == ["w"] and not pair.primary.replica.state.locks.held
    return pair


def test_a_free_name_that_is_waited_for_is_no_register() -> None:
    """Not even before the line is served: they were there first."""
    pair = a_free_name_with_a_line()
    node = pair.primary
    node.replica.min_backups = 0
    node.replica._review_grants()
    assert ask(node, "put", "a", "x", "0") == "-WRONGTYPE"
    pair.turn()
    assert node.said[-1][0] == "w" and int(node.said[-1][1]) > 1


def test_a_name_whose_waiters_are_gone_is_free_for_a_put_after_their_grace_period_only() -> None:
    """Whoever comes back within it would have to be granted what is a register by then."""
    pair = a_free_name_with_a_line()
    node = pair.primary
    node.hang_up("w")
    node.replica.min_backups = 0
    node.sleep(1)
    node.end_turn()
    assert ask(node, "put", "a", "x", "0") == "-WRONGTYPE"
    node.lock("w2", "a", "r1", "WAIT", "9000")
    node.end_turn()
    assert node.said[-1][0] == "w2" and int(node.said[-1][1]) > 1
    ask(node, "unlock", "a", "u2")

    pair = a_free_name_with_a_line()
    node = pair.primary
    node.hang_up("w")
    node.replica.min_backups = 0
    node.sleep(limits.WAITER_GRACE_MS)
    node.end_turn()
    assert ask(node, "put", "a", "x", "0") == "1"
    assert ask(node, "lock", "a", "r1", "WAIT", "9000") == "-WRONGTYPE"


def test_undo_on_the_name_of_a_register_still_binds() -> None:
    """The LOCK that it undoes may be on its way, and the register gone when it comes."""
    node = alone()
    ask(node, "put", "a", "x", "0")
    assert ask(node, "undo", "a", "u1", "r1") == "0"
    assert ask(node, "undo", "a", "@c:6", "@c:5") == "0"
    assert held(node) == {"a": ("x", 1, 0)}
    ask(node, "delete", "a")
    assert ask(node, "lock", "a", "r1") == "0"
    assert ask(node, "lock", "a", "@c:5") == "-REQUESTGONE"


def test_undo_of_a_grant_whose_name_has_become_a_register_touches_nothing() -> None:
    node = alone()
    ask(node, "lock", "a", "r1")
    ask(node, "delete", "a")
    ask(node, "put", "a", "x", "0")
    assert ask(node, "undo", "a", "u1", "r1") == "0"
    assert held(node) == {"a": ("x", 1, 0)}


def test_a_put_hands_a_lock_whose_lease_has_passed_to_the_next_in_line() -> None:
    node = alone()
    node.lock("c1", "a", "r1", "PX", "100")
    node.lock("w", "a", "r2", "WAIT", "9000")
    node.end_turn()
    node.sleep(101)
    assert ask(node, "put", "a", "x", "0") == "-WRONGTYPE"
    assert node.replica.state.locks.held[b"a"][1] == b"r2"


# -- what is no entry (G2) ------------------------------------------------------------------------


def test_what_changes_nothing_and_has_no_id_is_no_entry() -> None:
    node = alone()
    ask(node, "put", "a", "x", "0")
    offset = offset_of(node)
    for request, answer in (
        (("put", "a", "y", "0"), "-VERSION 1"),
        (("put", "b", "y", "1"), "-NOKEY"),
        (("put", "a", "y", "1", "FENCE", "l", "7"), "-STALETOKEN"),
        (("get", "a"), "x version 1"),
        (("get", "b"), "-NOKEY"),
        (("persist", "a"), "0"),
        (("persist", "b"), "0"),
        (("expire_in", "b", "100"), "0"),
        (("expire_in", "b", "0"), "0"),
        (("delete", "b"), "0"),
    ):
        assert ask(node, *request) == answer, request
    assert offset_of(node) == offset and not node.replica.state.replies.replies
    ask(node, "put", "a", "y", "1")
    assert not node.replica.state.replies.replies, "nor is a put that writes remembered"
    ask(node, "put", "a", "y", "1", "r1")
    assert offset_of(node) == offset + 2, "a refusal with an id is bound to it, by an entry"


# -- fences (G3) ----------------------------------------------------------------------------------


def with_a_lock(*options: str) -> tuple[SimNode, tuple[str, str, str]]:
    """A node that holds the lock l, and the fence of its grant."""
    node = alone()
    token = ask(node, "lock", "l", "r1", *options)
    node.end_turn()
    return node, ("FENCE", "l", token)


def test_a_put_is_written_while_its_token_is_current_and_not_after() -> None:
    node, fence = with_a_lock()
    assert ask(node, "put", "a", "one", "0", *fence) == "1"
    assert ask(node, "put", "a", "two", "1", "r2", *fence) == "2"
    ask(node, "unlock", "l", "u1")
    assert ask(node, "put", "a", "three", "2", *fence) == "-STALETOKEN"
    assert ask(node, "put", "a", "three", "2", "r3", *fence) == "-STALETOKEN"
    token = ask(node, "lock", "l", "r4")
    assert ask(node, "put", "a", "three", "2", *fence) == "-STALETOKEN"
    assert ask(node, "put", "a", "three", "2", "FENCE", "l", str(int(token) + 1)) == "-STALETOKEN"
    assert ask(node, "put", "a", "three", "2", "FENCE", "other", token) == "-STALETOKEN"
    assert ask(node, "put", "a", "three", "2", "FENCE", "l", token) == "3"


def test_a_stale_token_is_said_before_anything_about_key_and_version() -> None:
    node, _ = with_a_lock()
    ask(node, "put", "a", "x", "0")
    for name, version in (("a", "1"), ("a", "9"), ("none", "3"), ("none", "0")):
        assert ask(node, "put", name, "y", version, "FENCE", "l", "7") == "-STALETOKEN"
    assert held(node) == {"a": ("x", 1, 0)}


def test_a_lease_guards_up_to_its_very_end() -> None:
    node, fence = with_a_lock("PX", "100")
    node.sleep(100)
    assert ask(node, "put", "a", "one", "0", *fence) == "1"
    node.end_turn()
    node.sleep(1)
    before = offset_of(node)
    assert ask(node, "put", "a", "two", "1", *fence) == "-STALETOKEN"
    assert offset_of(node) == before + 1, "the expiry is an entry; the refusal is none"
    assert b"l" not in node.replica.state.locks.held


def test_a_fenced_put_of_a_passed_lease_hands_the_lock_on() -> None:
    node, fence = with_a_lock("PX", "100")
    node.lock("w", "l", "r2", "WAIT", "9000")
    node.sleep(101)
    assert ask(node, "put", "a", "x", "0", *fence) == "-STALETOKEN"
    assert node.replica.state.locks.held[b"l"][1] == b"r2"


def test_a_renewed_lease_guards_for_longer() -> None:
    node, fence = with_a_lock("PX", "100")
    assert ask(node, "renew", "l", fence[2], "500") == "1"
    node.end_turn()
    node.sleep(400)
    assert ask(node, "put", "a", "one", "0", *fence) == "1"
    node.end_turn()
    node.sleep(101)
    assert ask(node, "put", "a", "two", "1", *fence) == "-STALETOKEN"


def test_in_a_late_turn_a_lease_guards_until_the_input_is_read() -> None:
    """The put may have lain in the socket since before the lease's end (X5)."""
    node, fence = with_a_lock("PX", "100")
    node.input_is_read = False
    node.sleep(5_000)
    assert ask(node, "put", "a", "one", "0", *fence) == "1"
    node.end_turn()
    assert ask(node, "put", "a", "two", "1", *fence) == "2"
    node.input_is_read = True
    node.end_turn()
    assert ask(node, "put", "a", "three", "2", *fence) == "-STALETOKEN"


def test_the_lock_of_a_fence_cannot_be_the_key_itself() -> None:
    node, fence = with_a_lock()
    assert ask(node, "put", "l", "x", "0", *fence) == "-WRONGTYPE"
    ask(node, "unlock", "l", "u1")
    assert ask(node, "put", "l", "x", "0", *fence) == "-STALETOKEN"


def test_a_register_as_the_lock_of_a_fence_is_a_stale_token() -> None:
    node = alone()
    ask(node, "put", "l", "x", "0")
    token = str(node.replica.state.registers.held[b"l"][0])
    assert ask(node, "put", "a", "y", "0", "FENCE", "l", token) == "-STALETOKEN"
    assert ask(node, "put", "l", "y", "1", "FENCE", "l", token) == "-STALETOKEN"


def test_the_backup_that_took_over_judges_a_fence_alike() -> None:
    pair = joined()
    token = ask(pair.primary, "lock", "l", "r1", "PX", "1000")
    old = ask(pair.primary, "lock", "m", "r2")
    ask(pair.primary, "unlock", "m", "u2")
    ask(pair.primary, "put", "a", "one", "0", "FENCE", "l", token)
    node = promoted(pair)
    assert ask(node, "put", "a", "two", "1", "FENCE", "m", old) == "-STALETOKEN"
    assert ask(node, "put", "a", "two", "1", "FENCE", "l", token) == "2"
    node.end_turn()
    node.sleep(1_100)
    node.end_turn()
    assert ask(node, "put", "a", "three", "2", "FENCE", "l", token) == "-STALETOKEN"


def test_a_fence_is_judged_by_what_has_passed_even_at_the_last_place_in_the_stream() -> None:
    """The register's own expiry takes that place; the lease's then must not be overlooked (X3)."""
    pair = joined()
    node = pair.primary
    ask(node, "put", "a", "x", "0")
    ask(node, "expire_in", "a", "100")
    token = ask(node, "lock", "l", "r1", "PX", "100")
    pair.settle()
    node.sleep(101)
    node.replica.offset_limit = offset_of(node) + 1
    assert ask(node, "put", "a", "y", "0", "FENCE", "l", token) in ("-STALETOKEN", "-TRYAGAIN")
    assert b"y" not in [register[1] for register in node.replica.state.registers.held.values()]


# -- expiry (X3, X5) ------------------------------------------------------------------------------


def with_an_end(length_ms: str = "100") -> SimNode:
    node = alone()
    ask(node, "put", "a", "x", "0")
    assert ask(node, "expire_in", "a", length_ms) == "1"
    node.end_turn()
    return node


def test_a_register_ends_on_time_by_itself_and_not_before() -> None:
    node = with_an_end()
    assert node.due_in_ms == 101, "the one more is for the part of a millisecond that has begun"
    node.sleep(100)
    node.end_turn()
    assert held(node) == {"a": ("x", 1, node.now_ms + 1)} and node.due_in_ms == 1
    node.sleep(1)
    node.end_turn()
    assert held(node) == {} and node.due_in_ms is None


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        ("get a", "-NOKEY"), ("put a y 1", "-NOKEY"), ("put a y 0", "1"),
        ("put a y 1 r1", "-NOKEY"), ("put a y 9 @c:1", "-NOKEY"),
        ("delete a", "0"), ("expire_in a 100", "0"), ("persist a", "0"), ("inspect a", "free"),
        ("verify a 7", "0"), ("renew a 7 100", "0"), ("unlock a u1", "0"),
        ("lock a r1", "1000004"), ("put b y 0 FENCE a 7", "-STALETOKEN"),
    ],
)  # fmt: skip
def test_a_request_sees_the_end_of_a_register_exactly(request_: str, answer: str) -> None:
    """One millisecond before it is there; then whoever asks first ends it."""
    node = with_an_end()
    node.sleep(100)
    assert ask(node, "get", "a") == "x version 1"
    node.sleep(1)
    before = offset_of(node)
    assert ask(node, *request_.split()) == answer
    assert "x" not in [value for value, _, _ in held(node).values()]
    assert offset_of(node) > before


def test_a_put_keeps_the_end_and_a_register_that_was_created_again_has_none() -> None:
    node = with_an_end()
    ends_ms = node.now_ms + 101
    assert ask(node, "put", "a", "y", "1") == "2"
    assert held(node) == {"a": ("y", 2, ends_ms)}
    node.end_turn()
    node.sleep(101)
    node.end_turn()
    assert ask(node, "put", "a", "z", "2") == "-NOKEY"
    assert ask(node, "put", "a", "z", "0") == "1", "it begins again (V3)"
    node.end_turn()
    node.sleep(10_000)
    node.end_turn()
    assert held(node) == {"a": ("z", 1, 0)}


def test_persist_takes_the_end_back_and_what_was_scheduled_means_nothing_any_more() -> None:
    node = with_an_end()
    assert [ask(node, "persist", "a"), ask(node, "persist", "a")] == ["1", "0"]
    node.end_turn()
    node.sleep(1_000)
    node.end_turn()
    assert held(node) == {"a": ("x", 1, 0)} and node.due_in_ms is None


@pytest.mark.parametrize("length_ms", [5, 5_000])
def test_an_end_can_be_moved_either_way(length_ms: int) -> None:
    node = with_an_end()
    assert ask(node, "expire_in", "a", str(length_ms)) == "1"
    node.end_turn()
    node.sleep(length_ms)
    node.end_turn()
    assert list(held(node)) == ["a"]
    node.sleep(1)
    node.end_turn()
    assert held(node) == {}


@pytest.mark.parametrize("length_ms", ["0", "-1", "-9223372036854775808"])
def test_an_end_that_is_not_to_come_is_now(length_ms: str) -> None:
    node = with_an_end()
    assert ask(node, "expire_in", "a", length_ms) == "1"
    assert held(node) == {} and registers_of(node).expired_count == 0, "it was deleted"


def test_the_end_of_a_register_that_is_gone_does_not_end_the_next_one_of_that_name() -> None:
    node = with_an_end()
    ask(node, "delete", "a")
    ask(node, "put", "a", "y", "0")
    ask(node, "expire_in", "a", "300")
    ask(node, "put", "b", "y", "0")
    node.end_turn()
    for milliseconds, left in ((101, 2), (199, 2), (1, 1)):
        node.sleep(milliseconds)
        node.end_turn()
        assert len(held(node)) == left


def test_a_register_begins_to_live_when_it_is_told_so_not_when_the_turn_began() -> None:
    node = alone()
    ask(node, "put", "a", "x", "0")
    node.be_busy(7)
    ask(node, "expire_in", "a", "100")
    assert held(node)["a"][2] == node.now_ms + 101
    executor = node.replica.executor
    assert executor.remaining_ms(held(node)["a"][2]) == 100


def test_in_a_late_turn_no_register_ends_before_the_input_is_read() -> None:
    node = with_an_end()
    node.input_is_read = False
    node.sleep(3_000)
    for _ in range(3):
        assert ask(node, "get", "a") == "x version 1"
        node.end_turn()
        assert node.due_in_ms == 0
    assert ask(node, "expire_in", "a", "100") == "1", "this was in the socket in time, perhaps"
    node.input_is_read = True
    node.end_turn()
    assert list(held(node)) == ["a"]


def test_registers_that_end_together_are_ended_in_bounded_steps_and_leases_come_first() -> None:
    node = alone()
    count = 2 * limits.DUE_PER_TURN + 100
    for n in range(count):
        ask(node, "put", f"v{n}", "x", "0")
        ask(node, "expire_in", f"v{n}", "90")
    for n in range(200):
        ask(node, "lock", f"l{n}", f"r{n}", "PX", "100")
    node.end_turn()
    node.sleep(101)
    for left in (count - 300, count - 800, 0):
        before = offset_of(node)
        node.end_turn()
        assert len(held(node)) == left and not node.replica.state.locks.held
        assert offset_of(node) - before <= limits.DUE_PER_TURN
        assert node.due_in_ms == (0 if left else None)


def test_expiry_does_not_run_ahead_of_a_slow_backup() -> None:
    pair = joined()
    for n in range(2 * limits.DUE_PER_TURN):
        ask(pair.primary, "put", f"v{n}", "x", "0")
        ask(pair.primary, "expire_in", f"v{n}", "100")
    pair.settle()
    pair.primary.sleep(101)
    for _ in range(5):
        pair.turn()
    assert len(held(pair.primary)) == limits.DUE_PER_TURN
    pair.settle()
    pair.settle()
    assert held(pair.primary) == held(pair.backup) == {}


def test_a_backup_ends_nothing_by_itself_and_after_a_failover_ends_it_on_time() -> None:
    pair = joined()
    for n in range(1_200):
        ask(pair.primary, "put", f"v{n}", "x", "0")
        if n % 2:
            ask(pair.primary, "expire_in", f"v{n}", "500")
    pair.settle()
    backup = pair.backup
    backup.sleep(100)
    backup.promote()
    for _ in range(9):
        backup.end_turn()
    assert backup.due_in_ms is not None and backup.due_in_ms > 0
    backup.sleep(backup.due_in_ms - 1)
    backup.end_turn()
    assert len(held(backup)) == 1_200, "none ends early (I8)"
    backup.sleep(1)
    for _ in range(2):
        backup.end_turn()
    assert set(held(backup)) == {f"v{n}" for n in range(0, 1_200, 2)}


def test_a_request_sees_the_end_of_a_register_whose_takeover_is_not_done_yet() -> None:
    pair = joined()
    for n in range(1_200):
        ask(pair.primary, "put", f"v{n}", "x", "0")
        ask(pair.primary, "expire_in", f"v{n}", "500")
    pair.settle()
    pair.backup.sleep(502)
    pair.backup.promote()
    assert ask(pair.backup, "get", "v1199") == "-NOKEY"
    assert ask(pair.backup, "put", "v1198", "y", "0") == "1"


def test_what_was_changed_before_the_takeover_came_to_it_is_seen_as_it_is() -> None:
    pair = joined()
    for name in ("later", "never", "gone", "again"):
        ask(pair.primary, "put", name, "x", "0")
        ask(pair.primary, "expire_in", name, "500")
    pair.settle()
    node = pair.backup
    node.promote()
    ask(node, "expire_in", "later", "2000")
    ask(node, "persist", "never")
    ask(node, "delete", "gone")
    ask(node, "delete", "again")
    assert int(ask(node, "lock", "again", "r1", "PX", "3000")) > 1, "it is a lock by now"
    node.end_turn()
    for milliseconds, left, locks in ((1_000, 2, 1), (1_002, 1, 1), (1_002, 1, 0)):
        node.sleep(milliseconds)
        node.end_turn()
        assert (len(held(node)), len(node.replica.state.locks.held)) == (left, locks)


def test_giving_ends_again_and_again_leaves_nothing_behind() -> None:
    node = alone()
    ask(node, "put", "a", "x", "0")
    for n in range(30_000):
        registers_of(node).end_in(b"a", limits.LEASE_MS_MAX - n)
    assert len(registers_of(node).deadlines) < 5_000


def test_giving_the_same_end_again_and_again_leaves_nothing_behind_either() -> None:
    node = alone()
    ask(node, "put", "a", "x", "0")
    for _ in range(30_000):
        registers_of(node).end_in(b"a", limits.LEASE_MS_MAX)
    assert len(registers_of(node).deadlines) < 5_000


# -- reigns and counts ----------------------------------------------------------------------------


def test_replies_of_puts_and_gets_are_held_back_until_the_backup_has_what_they_depend_on() -> None:
    pair = joined()
    node = pair.primary
    node.put("c1", "a", "x", "0")
    node.get("c2", "a")
    node.put("c3", "a", "y", "0")
    pair.turn()
    assert node.said == []
    pair.deliver()
    assert node.said == []
    pair.ack()
    assert node.said == [("c1", "1"), ("c2", "x version 1"), ("c3", "-VERSION 1")]
    pair.assert_agreed()


def test_nothing_of_one_reign_is_scheduled_in_the_next() -> None:
    pair = joined()
    node = pair.primary
    ask(node, "put", "a", "x", "0")
    ask(node, "expire_in", "a", "100")
    pair.settle()
    node.stand_down("P2")
    pair.backup.promote()
    pair.primary, pair.backup = pair.backup, node
    ask(pair.primary, "persist", "a")
    pair.turn()
    pair.join()
    pair.lose_link()
    node.promote()
    for _ in range(2):
        node.end_turn()
    assert node.due_in_ms is None and held(node) == {"a": ("x", 1, 0)}


def test_the_newest_entry_of_a_lost_primary_cannot_make_a_token_current_again() -> None:
    """A grant that the backup never had is stale there, whatever its token."""
    pair = joined()
    pair.settle()
    token = ask(pair.primary, "lock", "l", "r1")
    pair.turn()
    pair.backup.promote()
    ask(pair.backup, "lock", "l", "r2")
    assert ask(pair.backup, "put", "a", "x", "0", "FENCE", "l", token) == "-STALETOKEN"


def test_it_counts_what_it_does_and_repeats_are_not_counted() -> None:
    node = alone()
    for _ in range(2):
        ask(node, "put", "a", "x", "0", "r1")
        ask(node, "put", "a", "x", "9", "r2")
        ask(node, "put", "b", "x", "9", "r3")
        ask(node, "put", "a", "x", "1", "r4", "FENCE", "l", "7")
    ask(node, "put", "a", "x", "9")
    ask(node, "put", "a", "x", "1", "FENCE", "l", "7")
    ask(node, "expire_in", "a", "100")
    node.end_turn()
    node.sleep(101)
    node.end_turn()
    registers = registers_of(node)
    counted = [
        registers.written_count,
        registers.conflicts_count,
        registers.stale_count,
        registers.expired_count,
    ]
    assert counted == [1, 3, 2, 1]
    node.replica.executor.reset_statistics()
    assert registers.written_count == registers.expired_count == 0


def test_no_put_appends_more_entries_than_the_bound_reckons_with() -> None:
    """All that one can bring about: the end of the register and of the lease, a grant to who stood
    in line for that, the end of its client's wait, and its own."""
    node = alone()
    node.lock("c1", "l", "r1", "PX", "100")
    node.lock("c2", "l", "r2", "WAIT", "9000")
    node.lock("c4", "m", "r4")
    node.lock("c5", "m", "@w:1", "WAIT", "9000")
    ask(node, "put", "a", "x", "0")
    ask(node, "expire_in", "a", "100")
    node.end_turn()
    node.sleep(101)
    before = offset_of(node)
    token = "1000001"
    assert ask(node, "put", "a", "y", "0", "@w:2", "FENCE", "l", token) == "-STALETOKEN"
    assert 5 == offset_of(node) - before <= limits.ENTRIES_PER_REQUEST_MAX


def test_a_put_is_one_entry_on_both_nodes_whatever_it_looks_at() -> None:
    pair = joined()
    node = pair.primary
    token = ask(node, "lock", "l", "r1")
    pair.settle()
    before = offset_of(node)
    ask(node, "put", "a", "x", "0", "r2", "FENCE", "l", token)
    assert offset_of(node) == before + 1
    assert registers_of(node).put(b"a", b"", b"y", 1, b"7 l") == STALE_TOKEN
    pair.settle()
    pair.assert_agreed()
