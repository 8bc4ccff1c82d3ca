"""The reply cache: request id -> reply, which is at-most-once execution (I4).

Rules
-----
R1  A request is the same request if command, name and request id agree. A repeat gets the first
    answer, true or false, and has no second effect. Refusals are remembered like grants.
R2  ``@<client>:<n>``: one request of a client at a time, n rising. Only the last is remembered,
    so a client costs one record. Executing n freezes everything below: it happened or it never
    will, and a late copy of it is answered REQUESTGONE, never executed.
R3  Any other id is opaque, and remembered by itself.
R4  Forgetting is part of the replicated state: by an entry when time has passed, and by the very
    entry that reaches the bound of the opaque ids. Both nodes agree on what is remembered.
R5  A full table of clients refuses new ones. None is evicted: its late copies would get through.

A client's record is packed into one bytes object, which takes half of what a tuple of its fields
would, and the garbage collector never looks at it.

Two generations
---------------
Both tables are a *young* and an *old* dict. What is used goes into (or moves to) the young one;
``rotate`` makes the young one old and drops the old one. So what was used is remembered for at
least one period and at most two, with no queue, no time stamp per record and no walk: rotating is
two assignments. When half of the bound of opaque ids is young, they rotate early; INFO shows the
retention that is left.
"""

from __future__ import annotations

from enum import Enum
from struct import Struct

from . import limits

AT = 64  # "@"

_GENERATION_MAX = limits.REPLIES_MAX // 2

RequestKey = tuple[int, bytes, bytes]
"""Command, name and request id: what makes a request the same request."""

Record = bytes
"""The last request of a client, packed: ``fields_of``."""

_RECORD = Struct(">QBq")
_pack = _RECORD.pack
_unpack_from = _RECORD.unpack_from
_NAME_AT = _RECORD.size
_sequence_of = Struct(">Q").unpack_from


def fields_of(record: Record) -> tuple[int, int, int, bytes]:
    """Sequence number, command, answer and name of a client's last request."""
    sequence, command, answer = _unpack_from(record)
    return sequence, command, answer, record[_NAME_AT:]


class Refused(Enum):
    """Why a request is not executed, as a value; the text that the client sees is its value."""

    REQUEST_GONE = (
        "REQUESTGONE a later request of this client was executed; "
        "whether this one was is no longer known"
    )
    REUSED = "ERR request id was already used for another command or name"
    MALFORMED = (
        "ERR request ids that begin with '@' have the form @<client>:<n>, "
        "n a decimal number without leading zeros below 2^63"
    )
    CLIENTS_FULL = "ERR too many client ids are remembered; use fewer, or opaque request ids"
    LOCKS_FULL = "ERR too many locks are held"
    REGISTERS_FULL = "OOM registers take up as much memory as they may; nothing was done"
    IS_REGISTER = "WRONGTYPE this name is a register, not a lock; nothing was done"
    IS_LOCK = "WRONGTYPE this name is a lock, not a register; nothing was done"
    WAITERS_FULL = "ERR too many waiters are in line; nothing was done, try again later"
    TRY_AGAIN = (
        "TRYAGAIN the backup has not acknowledged enough of the stream; "
        "nothing was done, send the request again"
    )
    QUARANTINE = (
        "TRYAGAIN this history may follow a lost one, whose holders still trust their leases: no "
        "lock is granted yet (--quarantine-ms); nothing was done"
    )
    NO_REPLICAS = "NOREPLICAS no backup in sync, and --min-backups wants one; nothing was done"


def split_reqid(reqid: bytes) -> tuple[bytes, int] | None:
    """``@client:n`` as (client, n); None if it begins with "@" but is not of that form."""
    client, _, digits = reqid[1:].rpartition(b":")
    if not client or not digits.isdigit() or (digits[0] == 48 and digits != b"0"):
        return None
    if len(digits) > 19:
        return None
    sequence = int(digits)
    return (client, sequence) if sequence <= limits.SEQUENCE_MAX else None


class ReplyCache:
    """What was answered to whom. Changed only by ``State.apply``."""

    __slots__ = (
        "before_cut",
        "clients",
        "clients_since_ms",
        "old_clients",
        "old_replies",
        "old_replies_since_ms",
        "replies",
        "replies_since_ms",
    )

    def __init__(self, now_ms: int = 0) -> None:
        self.clients: dict[bytes, Record] = {}
        self.old_clients: dict[bytes, Record] = {}
        self.clients_since_ms = now_ms  # when the young generation began, state time
        self.replies: dict[RequestKey, int] = {}
        self.old_replies: dict[RequestKey, int] = {}
        self.replies_since_ms = now_ms
        self.old_replies_since_ms = now_ms
        # While a snapshot is being sent: records of the cut that changed since (snapshot.py).
        self.before_cut: dict[bytes, Record | None] | None = None

    def recall(self, command: int, name: bytes, reqid: bytes) -> int | Refused | None:
        """What to answer without executing: the first answer, or why not; None: a new request."""
        if reqid[0] != AT:
            key = (command, name, reqid)
            answer = self.replies.get(key)
            return self.old_replies.get(key) if answer is None else answer
        identity = split_reqid(reqid)
        if identity is None:
            return Refused.MALFORMED
        client, sequence = identity
        record = self.clients.get(client) or self.old_clients.get(client)
        if record is None:
            full = len(self.clients) + len(self.old_clients) >= limits.CLIENTS_MAX
            return Refused.CLIENTS_FULL if full else None
        (last,) = _sequence_of(record)
        if sequence > last:
            return None
        if sequence < last:
            return Refused.REQUEST_GONE
        _, last_command, answer, last_name = fields_of(record)
        return answer if last_command == command and last_name == name else Refused.REUSED

    def remember(self, command: int, name: bytes, reqid: bytes, answer: int, now_ms: int) -> None:
        """Bind ``answer`` to the request, for good (R1)."""
        if reqid[0] != AT:
            replies = self.replies
            if len(replies) >= _GENERATION_MAX:
                self.rotate_replies(now_ms)
                replies = self.replies
            replies[command, name, reqid] = answer
            return
        identity = split_reqid(reqid)
        assert identity is not None, "an entry carries a well-formed request id (I5)"
        client, sequence = identity
        previous = self.clients.get(client) or self.old_clients.pop(client, None)
        if previous is not None:
            (last,) = _sequence_of(previous)
            assert sequence > last, f"request {sequence} after {last} (I4)"
        if self.before_cut is not None:
            # None too: a client of the cut may have been forgotten since, and come back as new.
            self.before_cut.setdefault(client, previous)
        self.clients[client] = _pack(sequence, command, answer) + name

    def load_client(
        self, client: bytes, record: tuple[int, int, int, bytes], *, is_young: bool
    ) -> None:
        """Put in what a snapshot says: the record as ``fields_of`` has it."""
        sequence, command, answer, name = record
        table = self.clients if is_young else self.old_clients
        table[client] = _pack(sequence, command, answer) + name

    def rotate_replies(self, now_ms: int) -> None:
        """Forget the older generation of opaque ids."""
        self.old_replies = self.replies
        self.old_replies_since_ms = self.replies_since_ms
        self.replies = {}
        self.replies_since_ms = now_ms

    def rotate_clients(self, now_ms: int) -> None:
        """Forget the clients that were idle for a whole period."""
        self.old_clients = self.clients
        self.clients = {}
        self.clients_since_ms = now_ms

    def replies_due(self, now_ms: int) -> bool:
        """Whether the opaque ids are to be rotated for their age."""
        return (
            bool(self.replies or self.old_replies)
            and now_ms - self.replies_since_ms >= limits.REPLY_RETENTION_MS
        )

    def clients_due(self, now_ms: int) -> bool:
        """Whether the client ids are to be rotated for their age."""
        return (
            bool(self.clients or self.old_clients)
            and now_ms - self.clients_since_ms >= limits.CLIENT_RETENTION_MS
        )

    def retention_ms(self, now_ms: int) -> int:
        """For how long opaque ids are remembered at the present rate, at least."""
        if not self.old_replies:
            return limits.REPLY_RETENTION_MS
        return min(limits.REPLY_RETENTION_MS, now_ms - self.old_replies_since_ms)
