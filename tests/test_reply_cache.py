"""The reply cache: what makes a request the same request, and what is forgotten when (I4)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.server.core import limits, reply_cache
from holdfast.server.core.reply_cache import Refused, ReplyCache, split_reqid
from holdfast.server.core.state import LOCK, UNLOCK


def remembering(*reqids: bytes) -> ReplyCache:
    cache = ReplyCache()
    for answer, reqid in enumerate(reqids, 1):
        cache.remember(LOCK, b"a", reqid, answer, 0)
    return cache


# -- request ids ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reqid", "parts"),
    [
        (b"@c:0", (b"c", 0)),
        (b"@c:7", (b"c", 7)),
        (b"@c:10", (b"c", 10)),
        (b"@a:b:7", (b"a:b", 7)),
        (b"@@:1", (b"@", 1)),
        (b"@\x00\xff:1", (b"\x00\xff", 1)),
        (b"@:::1", (b"::", 1)),
        (b"@c:9223372036854775807", (b"c", 2**63 - 1)),
    ],
)
def test_a_client_id_is_split_at_its_last_colon(reqid: bytes, parts: tuple[bytes, int]) -> None:
    assert split_reqid(reqid) == parts


@pytest.mark.parametrize(
    "reqid",
    [
        b"@", b"@c", b"@:", b"@:1", b"@c:", b"@c:-1", b"@c:+1", b"@c: 1", b"@c:1 ", b"@c:01",
        b"@c:00", b"@c:1.0", b"@c:1_0", b"@c:0x1", b"@c:1\n", b"@c:\xb2", b"@c:\xd9\xa1",
        b"@c:9223372036854775808", b"@c:99999999999999999999", b"@c:1" + b"0" * 400,
    ],
)  # fmt: skip
def test_what_begins_with_an_at_sign_and_has_not_that_form_is_malformed(reqid: bytes) -> None:
    cache = remembering(b"@c:1")
    assert split_reqid(reqid) is None
    assert cache.recall(LOCK, b"a", reqid) is Refused.MALFORMED
    assert cache.recall(LOCK, b"a", b"@c:1") == 1, "it has frozen nothing (I11)"


@given(st.binary(max_size=30))
def test_splitting_never_fails_and_loses_nothing(tail: bytes) -> None:
    parts = split_reqid(b"@" + tail)
    if parts is not None:
        assert b"@%b:%d" % parts == b"@" + tail


# -- the same request -----------------------------------------------------------------------------


@pytest.mark.parametrize("reqid", [b"r", b"@c:1"])
@pytest.mark.parametrize("answer", [0, 1, 2**53])
def test_a_repeat_gets_the_first_answer_true_or_false(reqid: bytes, answer: int) -> None:
    cache = ReplyCache()
    assert cache.recall(LOCK, b"a", reqid) is None
    cache.remember(LOCK, b"a", reqid, answer, 0)
    assert cache.recall(LOCK, b"a", reqid) == answer


def test_an_opaque_id_is_bound_to_command_and_name() -> None:
    cache = remembering(b"r")
    assert cache.recall(UNLOCK, b"a", b"r") is None
    assert cache.recall(LOCK, b"b", b"r") is None


def test_a_clients_number_used_for_another_command_or_name_is_an_error() -> None:
    cache = remembering(b"@c:1")
    assert cache.recall(UNLOCK, b"a", b"@c:1") is Refused.REUSED
    assert cache.recall(LOCK, b"b", b"@c:1") is Refused.REUSED
    assert cache.recall(LOCK, b"a", b"@c:1") == 1


def test_a_higher_number_freezes_everything_below() -> None:
    cache = remembering(b"@c:1", b"@c:5")
    for n in range(5):
        assert cache.recall(LOCK, b"a", b"@c:%d" % n) is Refused.REQUEST_GONE
    assert cache.recall(LOCK, b"a", b"@c:5") == 2
    assert cache.recall(LOCK, b"a", b"@c:6") is None


def test_clients_do_not_touch_one_another_nor_opaque_ids() -> None:
    cache = remembering(b"@c:9", b"c:1", b"@c:c:1")
    assert cache.recall(LOCK, b"a", b"@d:1") is None
    assert cache.recall(LOCK, b"a", b"c:1") == 2
    assert cache.recall(LOCK, b"a", b"@c:c:1") == 3


def test_a_client_costs_one_record_however_much_it_asks() -> None:
    cache = remembering(*(b"@c:%d" % n for n in range(500)))
    assert len(cache.clients) == 1 and not cache.old_clients and not cache.replies


# -- forgetting -----------------------------------------------------------------------------------


def test_what_is_not_used_is_forgotten_by_the_second_rotation() -> None:
    cache = remembering(b"r", b"@c:1")
    cache.rotate_replies(10)
    cache.rotate_clients(10)
    assert cache.recall(LOCK, b"a", b"r") == 1 and cache.recall(LOCK, b"a", b"@c:1") == 2
    cache.rotate_replies(20)
    cache.rotate_clients(20)
    assert cache.recall(LOCK, b"a", b"r") is None and cache.recall(LOCK, b"a", b"@c:1") is None


def test_a_client_that_goes_on_is_kept_through_any_number_of_rotations() -> None:
    cache = remembering(b"@c:0")
    for n in range(1, 6):
        cache.rotate_clients(n)
        assert cache.recall(LOCK, b"a", b"@c:%d" % (n - 1)) is not None
        cache.remember(LOCK, b"a", b"@c:%d" % n, n, n)
        assert len(cache.clients) + len(cache.old_clients) == 1


def test_rotations_are_due_when_their_time_has_passed_and_there_is_something() -> None:
    later = limits.REPLY_RETENTION_MS
    cache = ReplyCache(5)
    assert not cache.replies_due(5 + later) and not cache.clients_due(5 + 10 * later)
    cache.remember(LOCK, b"a", b"r", 1, 5)
    assert not cache.replies_due(4 + later) and cache.replies_due(5 + later)
    assert not cache.clients_due(5 + 10 * later)
    cache.remember(LOCK, b"a", b"@c:1", 1, 5)
    assert not cache.clients_due(4 + limits.CLIENT_RETENTION_MS)
    assert cache.clients_due(5 + limits.CLIENT_RETENTION_MS)
    cache.rotate_replies(5 + later)
    assert not cache.replies_due(5 + later), "the next one a whole period later"
    assert cache.replies_due(5 + 2 * later), "the old generation too is to go"
    cache.rotate_replies(5 + 2 * later)
    assert not cache.replies_due(5 + 20 * later), "and then there is nothing"


def test_opaque_ids_beyond_the_bound_push_out_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_cache, "_GENERATION_MAX", 4)
    cache = ReplyCache()
    for n in range(100):
        cache.remember(LOCK, b"a", b"r%d" % n, n, n)
        assert len(cache.replies) + len(cache.old_replies) <= 8
        for recent in range(max(0, n - 3), n + 1):
            assert cache.recall(LOCK, b"a", b"r%d" % recent) == recent
    assert cache.recall(LOCK, b"a", b"r0") is None


def test_a_full_table_refuses_new_clients_and_evicts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLIENTS_MAX", 3)
    cache = remembering(b"@a:1", b"@b:1")
    cache.rotate_clients(1)
    cache.remember(LOCK, b"a", b"@c:1", 3, 1)
    assert cache.recall(LOCK, b"a", b"@d:1") is Refused.CLIENTS_FULL
    assert cache.recall(LOCK, b"a", b"@a:1") == 1
    assert cache.recall(LOCK, b"a", b"@b:2") is None, "those who are known go on"
    assert cache.recall(LOCK, b"a", b"r") is None, "and so do opaque ids"
    cache.rotate_clients(2)
    assert cache.recall(LOCK, b"a", b"@d:1") is None, "those who were idle have made room"


@pytest.mark.parametrize("refused", list(Refused))
def test_a_refusal_begins_with_its_code_and_is_one_line(refused: Refused) -> None:
    code = refused.value.split()[0]
    assert code.isupper() and code.isalpha()
    assert "\r" not in refused.value and "\n" not in refused.value


def test_not_done_is_said_only_by_refusals_that_did_nothing() -> None:
    assert {each.name for each in Refused if "nothing was done" in each.value} == {
        "TRY_AGAIN",
        "NO_REPLICAS",
        "QUARANTINE",
        "WAITERS_FULL",
        "REGISTERS_FULL",
        "IS_REGISTER",
        "IS_LOCK",
    }
