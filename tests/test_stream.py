"""The stream's messages and the primary's count of frames and acks (I5, I6)."""

from __future__ import annotations

import pytest
from harness.replicas import WALL_CLOCK_US, SimNode, fields_of, messages_of
from hypothesis import given
from hypothesis import strategies as st

from holdfast.server.core import stream
from holdfast.server.core.backlog import Batch
from holdfast.server.core.failover import Answer, Standing
from holdfast.server.core.state import LOCK, UNLOCK
from holdfast.server.core.stream import EntriesHeader, Outbound
from holdfast.server.core.view import NO_VIEW, View

numbers = st.integers(0, 2**64 - 1)


@given(numbers, numbers, numbers, numbers, numbers, numbers, st.integers(0, 2**32 - 1), st.binary())
def test_entries_come_back_as_they_were_sent(
    stream_epoch: int, frame: int, first: int, last: int, epoch: int, time_ms: int, checksum: int,
    payload: bytes,
) -> None:  # fmt: skip
    data = stream.encode_entries(
        stream_epoch, frame, Batch(first, last, epoch, time_ms, checksum, payload)
    )
    ((kind, header, sent),) = messages_of(data)
    assert (kind, sent) == (stream.ENTRIES, payload)
    assert stream.decode_entries(header) == EntriesHeader(
        stream_epoch, frame, first, last, epoch, time_ms, checksum
    )


@pytest.mark.parametrize("header", [b"", b"short", b"x" * 51, b"x" * 53])
def test_a_malformed_header_is_a_value_error(header: bytes) -> None:
    with pytest.raises(ValueError):
        stream.decode_entries(header)


ANSWERS = [
    Answer("ab12", Standing.SERVING, False, View(7, "ab12", ("ab12", "cd34")), True, 5),
    Answer("ab12", Standing.STATE, True, View(7, "cd34", ("cd34",))),
    Answer("ab12", Standing.BLANK, False, NO_VIEW),
    Answer("ab12", Standing.HEARD, False, View(2**62, "", ())),
]


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.standing.value)
def test_an_answer_comes_back_as_it_was_given(answer: Answer) -> None:
    assert stream.decode_answer(fields_of(stream.encode_answer(answer))) == answer


GOOD = fields_of(stream.encode_answer(ANSWERS[0]))


@pytest.mark.parametrize(
    "answer",
    [
        None, 1, b"OK", [], GOOD[:-1], [*GOOD, b""], [b"1", *GOOD[1:]], [None, *GOOD[1:]],
        [*GOOD[:2], b"dead", *GOOD[3:]], [*GOOD[:4], b"x", *GOOD[5:]], [*GOOD[:4], b"", *GOOD[5:]],
        [GOOD[0], b"\xff", *GOOD[2:]],
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_not_such_an_answer_is_a_value_error(answer: object) -> None:
    with pytest.raises(ValueError):
        stream.decode_answer(answer)


# -- the checksum ---------------------------------------------------------------------------------


def test_the_checksum_covers_the_payload_the_answers_the_stamp_and_the_past() -> None:
    seen = {
        stream.chain(0, 1, 50, b"ab", [1, 0]),
        stream.chain(9, 1, 50, b"ab", [1, 0]),
        stream.chain(0, 2, 50, b"ab", [1, 0]),
        stream.chain(0, 1, 51, b"ab", [1, 0]),
        stream.chain(0, 1, 50, b"aa", [1, 0]),
        stream.chain(0, 1, 50, b"ab", [0, 1]),
        stream.chain(0, 1, 50, b"ab", [1]),
        stream.chain(0, 1, 50, b"ab", []),
    }
    assert len(seen) == 8


def sealed(*turns: list[tuple[int, bytes, bytes]], checksum: int = 0) -> list[Batch]:
    """The batches of a primary that appends these entries, each list in one turn."""
    node = SimNode("P")
    node.begin_history()
    node.replica.keeps_backlog = True
    node.replica.checksum = checksum
    for entries in turns:
        for kind, name, reqid in entries:
            node.replica.append(kind, name, reqid)
        node.end_turn()
    backlog = node.replica.backlog
    batches = [backlog.batch_at(position) for position in range(backlog.end)]
    assert batches[-1] is not None and batches[-1].checksum == node.replica.checksum
    return [batch for batch in batches if batch is not None]


def test_batches_are_chained_in_their_order() -> None:
    a, b = (LOCK, b"a", b"r"), (LOCK, b"b", b"r")
    first, second = sealed([a], [b]), sealed([b], [a])
    assert first[-1].checksum != second[-1].checksum
    assert first[-1].checksum != sealed([a, b])[-1].checksum
    assert first[-1].checksum != sealed([a], [b], checksum=1)[-1].checksum


def test_a_sealed_batch_carries_its_stamp_and_the_chained_checksum() -> None:
    (batch,) = sealed([(LOCK, b"a", b"r"), (UNLOCK, b"a", b"u")], checksum=9)
    first = WALL_CLOCK_US + 1
    assert batch[:4] == (first, first + 1, 1, 1_000)
    assert batch.checksum == stream.chain(9, 1, 1_000, batch.payload, [first, 1])
    assert fields_of(batch.payload) == [bytes([LOCK, UNLOCK]), b"a", b"r", b"a", b"u"]


# -- frames and acks ------------------------------------------------------------------------------


def sent(*offsets: int) -> Outbound:
    outbound = Outbound(5, 10, 0)
    for at, offset in enumerate(offsets):
        assert outbound.sending(offset, 1_000 + at) == 6 + at, "without a gap"
    return outbound


def test_an_ack_of_a_frame_is_an_ack_of_all_before_it() -> None:
    outbound = sent(11, 12, 12, 15)
    assert outbound.oldest_unacked_ms == 1_000
    outbound.on_ack(8, 12)
    assert (outbound.acked_frame, outbound.acked_offset) == (8, 12)
    assert outbound.oldest_unacked_ms == 1_003
    outbound.on_ack(9, 15)
    assert outbound.oldest_unacked_ms is None


def test_a_backup_that_works_off_a_long_queue_is_not_silent() -> None:
    outbound = Outbound(0, 10, 0)
    for n in range(5):
        outbound.sending(11 + n, 1_000 + n)
    assert outbound.waits_since_ms == 1_000
    outbound.on_ack(2, 12)
    outbound.progress_ms = 3_000  # as the sender notes
    assert (outbound.waits_since_ms, outbound.oldest_unacked_ms) == (3_000, 1_002)
    outbound.on_ack(5, 15)
    assert outbound.waits_since_ms is None


def test_an_old_ack_changes_nothing() -> None:
    outbound = sent(11, 12)
    outbound.on_ack(7, 12)
    for frame, offset in ((7, 12), (6, 11), (5, 10), (0, 0), (-1, 0)):
        assert not outbound.on_ack(frame, offset)
        assert (outbound.acked_frame, outbound.acked_offset) == (7, 12)


@pytest.mark.parametrize(("frame", "offset"), [(8, 12), (7, 11), (7, 13), (6, 12), (2**70, 12)])
def test_an_ack_of_what_was_never_sent_is_a_value_error(frame: int, offset: int) -> None:
    with pytest.raises(ValueError):
        sent(11, 12).on_ack(frame, offset)
