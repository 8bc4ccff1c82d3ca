"""The replication stream: what the two nodes say to each other, and how the primary keeps count.

Messages are RESP arrays of bulk strings; the first one names the message. Everything carries the
epoch of its sender, and a receiver refuses a lower one.

From the primary:

======== =====================================  ==============================================
ENTRIES  header, payload                        one loop turn's entries; header as below
BEAT     epoch, frame, offset                   nothing new, but something waits for the ack
VIEW     epoch, frame, primary, members, auto,  a new view; ``auto``: may the backup promote
         timeout                                itself; ``timeout``: of its silence, ms
BEGIN    epoch, primary, checksum,              a snapshot starts: drop what you have
         ... (snapshot.Header)
ITEMS    payload                                some of its items
END      epoch, frame, time                     that was all; state time is now this
CONTINUE epoch, frame, primary, time            what you have is on this history: it goes on there
HANDOVER epoch, frame                           take over: nothing comes behind this
ECHO     number                                 answer to PROBE
======== =====================================  ==============================================

From the backup:

=======  =====================================  ==============================================
ACK      epoch, frame, offset                   everything up to this frame is applied
PROBE    number                                 say something, so that I know that you are there
=======  =====================================  ==============================================

A stream is refused by closing its connection: whoever finds it closed asks (``PEER PROPOSE``), and
the answer carries the whole view.

Frames
------
ENTRIES, BEAT, VIEW, END, CONTINUE and HANDOVER are *frames*: numbered without a gap over the whole
life of a primary, whatever connection carries them. A reply that depends on the state waits for the
frame that goes out at the end of its loop turn (the commit rule, I6), and an ack of a frame is an
ack of all before it. A frame's number is above every reply that was held back before it was sent,
so even a reply held back before a connection broke is released rightly by a frame of the next.

The payload of ENTRIES is a RESP array: the kinds of all entries as one string, a byte each, and
then the fields of each entry (``core/state.py``).

Checksum
--------
Every ENTRIES frame carries a CRC chained over all payloads and all answers of the history, as far
back as anybody has kept count; a snapshot carries the chain's value at its cut. The backup computes
its own from what *it* applied and what *its* answers were; if they differ it stops with an alarm,
before it acknowledges, and can never be promoted. (The check sits in the frame rather than in the
ack so that a backup which has diverged knows it even if the primary dies.) A backup that comes back
names history, epoch, offset and checksum, and is continued only from exactly that point.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from typing import Any, NamedTuple

from ...resp.encoder import pack
from .backlog import Batch
from .failover import Answer, Standing
from .view import View

ENTRIES = b"E"
BEAT = b"B"
VIEW = b"V"
BEGIN = b"SB"
ITEMS = b"SI"
END = b"SE"
CONTINUE = b"C"
HANDOVER = b"H"
ECHO = b"O"
ACK = b"A"
PROBE = b"P"

PROTOCOL_VERSION = b"4"
"""Nodes that name another one are refused."""

_HEADER = struct.Struct(">QQQQQQI")
_ENTRIES_FRAME = b"*3\r\n$1\r\nE\r\n$%d\r\n%%b\r\n$%%d\r\n%%b\r\n" % _HEADER.size


class EntriesHeader(NamedTuple):
    """The fixed part of an ENTRIES frame."""

    stream_epoch: int
    frame: int
    first_offset: int
    last_offset: int
    epoch: int  # in which the entries were appended
    time_ms: int
    checksum: int


def encode_entries(stream_epoch: int, frame: int, batch: Batch) -> bytes:
    """A batch as a frame."""
    first_offset, last_offset, epoch, time_ms, checksum, payload = batch
    header = _HEADER.pack(stream_epoch, frame, first_offset, last_offset, epoch, time_ms, checksum)
    return _ENTRIES_FRAME % (header, len(payload), payload)


def decode_entries(header: bytes) -> EntriesHeader:
    """The fixed part of an ENTRIES frame. Raises ValueError."""
    try:
        return EntriesHeader._make(_HEADER.unpack(header))
    except struct.error as error:
        raise ValueError(f"malformed ENTRIES header: {error}") from None


def chain(checksum: int, epoch: int, time_ms: int, payload: bytes, answers: list[int]) -> int:
    """The checksum after one more batch, with its stamp, and the answers that applying it gave."""
    stamp_and_answers = struct.pack(f">QQ{len(answers)}q", epoch, time_ms, *answers)
    return zlib.crc32(stamp_and_answers, zlib.crc32(payload, checksum))


def encode_answer(answer: Answer) -> bytes:
    """The reply to PEER ASK and PEER PROPOSE."""
    view = answer.view
    return pack(
        (
            PROTOCOL_VERSION,
            answer.incarnation,
            answer.standing.value,
            int(answer.accepted),
            view.epoch,
            view.primary,
            ",".join(view.members),
            int(answer.has_backup),
            answer.reigns_since,
            answer.register,
        )
    )


def decode_answer(answer: Any) -> Answer:
    """Read it back. Raises ValueError."""
    if (
        not isinstance(answer, list)
        or len(answer) != 10
        or not all(isinstance(field, bytes) for field in answer)
        or answer[0] != PROTOCOL_VERSION
    ):
        raise ValueError(f"not a Holdfast node of this version: {answer!r}")
    incarnation, standing, accepted, epoch, primary, members, has_backup, since, register = (
        field.decode() for field in answer[1:]
    )
    view = View(int(epoch), primary, tuple(filter(None, members.split(","))))
    return Answer(
        incarnation,
        Standing(standing),
        accepted == "1",
        view,
        has_backup == "1",
        int(since),
        register,
    )


class Sent(NamedTuple):
    """A frame that is on its way."""

    frame: int
    offset: int
    sent_at_ms: int


class Outbound:
    """The primary's end of the stream to one backup: its place in the backlog, frames and acks.

    It lives as long as one attached backup. ``frame`` goes on from where the last one stood.
    """

    __slots__ = (
        "acked_frame",
        "acked_offset",
        "backlog_position",
        "frame",
        "progress_ms",
        "unacked",
    )

    def __init__(self, frame: int, offset: int, backlog_position: int) -> None:
        self.frame = frame  # number of the last frame sent
        self.acked_frame = frame
        self.acked_offset = offset
        self.backlog_position = backlog_position  # of the next batch to be sent
        self.unacked: deque[Sent] = deque()
        self.progress_ms = 0  # when an ack was news

    def sending(self, offset: int, now_ms: int) -> int:
        """The number for a frame that goes out now and covers everything up to ``offset``."""
        self.frame += 1
        self.unacked.append(Sent(self.frame, offset, now_ms))
        return self.frame

    def on_ack(self, frame: int, offset: int) -> bool:
        """Count an ack; whether it is news. Raises ValueError if that was never sent."""
        if frame > self.frame:
            raise ValueError(f"ack of frame {frame}, but only {self.frame} were sent")
        sent = None
        while self.unacked and self.unacked[0].frame <= frame:
            sent = self.unacked.popleft()
        if sent is None:
            return False  # an older ack, overtaken
        if sent.frame != frame or sent.offset != offset:
            raise ValueError(f"ack of frame {frame} at {offset}, sent was {sent}")
        self.acked_frame = frame
        self.acked_offset = offset
        return True

    @property
    def oldest_unacked_ms(self) -> int | None:
        """When the oldest unacknowledged frame went out; None if all are acknowledged."""
        return self.unacked[0].sent_at_ms if self.unacked else None

    @property
    def waits_since_ms(self) -> int | None:
        """Since when an ack has been waited for in vain; None if all are there. One that works off
        a long queue, over a slow network, is not silent."""
        return max(self.unacked[0].sent_at_ms, self.progress_ms) if self.unacked else None
