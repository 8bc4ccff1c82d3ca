"""Every bound of the server, with its reason. (The decoder's own stand in ``resp/decoder.py``.)

Nothing in the process may grow without one of these. Relations between them are asserted below,
so that changing one number cannot quietly break a promise that rests on two.
"""

from __future__ import annotations

# -- what a client may name -------------------------------------------------------------------

NAME_BYTES_MAX = 512
"""Length of a lock's name, of a request id and of an owner: room for a path or a URL; an entry
with three of them still fits in a network packet or two."""

LOCKS_MAX = 4_000_000
"""Locks held at a time: about 1.2 GB. Beyond it a grant is refused, nothing is evicted."""

LEASE_MS_MAX = 365 * 86_400_000
"""Length of a lease: a year. What is meant to be held for longer is held without one."""

VALUE_BYTES_MAX = 64 * 1024
"""Length of a register's value: the small state that a lock protects, not a document."""

REGISTERS_BYTES_MAX = 1024 * 1024 * 1024
"""Registers with their names and values. Beyond it a put that makes them larger is refused."""

REGISTER_OVERHEAD_BYTES = 250
"""What one takes beside its name and value, for that bound."""

VERSION_MAX = 2**62
"""Largest version that a put may name. (At a million puts a second: after 146,000 years.)"""

SEQUENCE_MAX = 2**63 - 1
"""Largest n of an ``@client:n`` request id: fits a signed 64-bit integer everywhere."""

# -- at-most-once -----------------------------------------------------------------------------

CLIENT_RETENTION_MS = 3_600_000
"""A client id idle for this long is forgotten. Clerk gives up after its deadline, seconds."""

CLIENTS_MAX = 1_000_000
"""Client ids remembered; a new one beyond it is refused, since evicting one would let its late
copies through."""

REPLY_RETENTION_MS = 600_000
"""An opaque request id is remembered for this long, as far as the next bound leaves it."""

REPLIES_MAX = 262_144
"""Opaque request ids remembered, in two generations of half: about 70 MB. At least the last half
of this number is always there, whatever the rate."""

# -- waiting and leases -----------------------------------------------------------------------

WAIT_MS_MAX = 86_400_000
"""How long a request may stand in line: a day."""

WAITERS_MAX = 200_000
"""Requests in line, over all locks: about 150 MB. (Each has a connection, or had one a moment ago;
a repeat joins the wait that there is.)"""

WAITERS_PER_LOCK_MAX = 100_000
"""Requests in line for one lock: ten times what may be connected."""

WAITER_GRACE_MS = 2_000
"""How long the place of a waiter whose connection is gone is kept: longer than a client's backoff
before it connects again."""

INSPECT_WAITERS_MAX = 100
"""Waiters that INSPECT lists; their number it always tells."""

DUE_PER_TURN = 500
"""Leases ended, and waits, in one turn of the loop without being asked: two milliseconds."""

LATE_MS = 10
"""A turn that begins this much after something was due is late: queued input is read first. Less
than the 20 ms within which a waiter is granted what has expired."""

LATE_INPUT_MS = 1_000
"""For how long at most that holds expiry up, with clients that send faster than they are served."""

STEP_UNDER_WAY_MS = 10
"""How soon to look again whether the backup has acknowledged the last step."""

WALK_KEPT_MS = 60_000
"""How long the copy of the lists that a walk goes through is kept for its next page."""

LOCKS_PAGE_MAX = 1_000
"""Locks that one LOCKS may list (COUNT). It lists fewer when its time is up (TURN_BUDGET_NS)."""

DIGEST_ITEMS_PER_SLICE = 1_000
"""Items of the state that DEBUG DIGEST takes in at a time: three milliseconds."""

NAMES_MAX = 1_000
"""Names in one DEL or EXISTS."""

# -- the stream -------------------------------------------------------------------------------

UNACKED_ENTRIES_MAX = 262_144
"""Entries appended and not yet acknowledged by the backup. Beyond it work is refused with
TRYAGAIN. A promotion skips more offsets than this, so a lost entry's token is never used again."""

ENTRIES_PER_REQUEST_MAX = 8
"""Entries that one request may append: its own, the end of an earlier wait of its client, an
expiry, and the grants to who stood in line."""

ENTRY_FRAMING_BYTES = 64
"""What an entry takes in the stream beside its fields, at most."""

LINK_BYTES_MAX = 128 * 1024 * 1024
"""Bytes queued on the link for a backup that does not read. Beyond it the link is closed. Puts are
refused long before (HELD_BACK_BYTES_MAX)."""

HELD_BACK_BYTES_MAX = 64 * 1024 * 1024
"""Replies held back for the backup's acknowledgement. Beyond it: TRYAGAIN, reads included."""

BACKLOG_BYTES_MAX = 64 * 1024 * 1024
"""Encoded entries kept for a backup that is catching up. One that falls further behind starts
again with a new snapshot."""

JOINER_LAG_BYTES = BACKLOG_BYTES_MAX // 4 * 3
"""With so much of it unsent, puts are refused with TRYAGAIN: otherwise large values would outrun
every snapshot."""

BACKLOG_KEPT_BYTES_MAX = 16 * 1024 * 1024
"""The same while none is: for one that comes back after a short while. A few seconds of full load,
or half an hour of ten requests a second."""

CATCH_UP_BYTES_PER_TURN = 16 * 1024
"""Backlog or snapshot sent in one turn of the loop: a millisecond's work or two. Larger turns make
everybody wait, smaller ones make the resync longer and gain nothing."""

SNAPSHOT_ITEMS_PER_SLICE = 25
"""Snapshot items encoded at a time: what a turn sends beyond its bound at most."""

CAUGHT_UP_MS = 10
"""A joining backup has nearly caught up when it acknowledges what was sent so long ago: from then
on every reply waits for it, and should not wait for what it has yet to apply."""

CATCH_UP_PATIENCE_MS = 5_000
"""How long that is waited for, with a backup that is slower than the writes: then the replies wait
for it all the same, which slows the writers down."""

LOOK_AROUND_MS = 1_000
"""How often a primary without a backup asks its peer whether that one serves too, and how often a
node reads the view register when there is nothing to decide."""

# -- time -------------------------------------------------------------------------------------

BLOCKED_MAX_MS = 10_000
"""A reply held back for longer has its connection closed: the client asks elsewhere, with the
same request id. (With a peer time-out above this, clients are sent away before it ends.)"""

SUSPECT_SHARE = 0.75
"""A peer that hangs is asked after this share of its time-out: early enough to have its answer when
that is over."""

STALL_SHARE = 0.75
"""A loop that stood still for this share of its peer's time-out may have been bypassed."""

# -- connections ------------------------------------------------------------------------------

CONNECTIONS_MAX = 10_000
"""Clients at a time, as in Redis (``maxclients``)."""

CONNECTIONS_FOR_PEER_MAX = 16
"""Connections beyond ``maxclients`` that may say PEER, and nothing else: the other node must get
through to a node that is full of clients."""

CONNECTIONS_FOR_PEER_MS = 300
"""How long such a connection may take to say it."""

DESCRIPTORS_MAX = CONNECTIONS_MAX + 256
"""File descriptors that the process asks for at its start, as far as the system allows it."""

RECEIVE_BYTES = 16 * 1024
"""Bytes taken from a client's socket at a time, as in Redis: five hundred requests, which is a
millisecond of the loop."""

POLL_BUDGET_NS = 10_000_000
"""Time after which clients' sockets that are ready wait for the next turn, so that the link to the
peer and the timers have theirs."""

OUTPUT_BYTES_MAX = 32 * 1024 * 1024
"""Replies that a client has not read yet. Room for a pipeline of a million and a half requests
sent before the first reply is read; beyond it the client is dropped."""

PENDING_REQUESTS_MAX = 4_096
"""Requests read behind a command that waits; beyond it the connection is not read."""

PENDING_BYTES_MAX = 1024 * 1024
"""And their bytes: small requests cost their number, large ones their size."""

TURN_BUDGET_NS = 5_000_000
"""Time that requests other than the hot ones may take in one turn, all connections together; those
that Redis calls fast have as much again. What is left runs in the next turn."""

KEEPALIVE_IDLE_S = 60
"""Silence of a client after which TCP asks whether its machine is still there; it is given up after
as long again."""

LISTEN_QUEUE_MAX = 1_024
"""Connections that the kernel may hold for us to accept."""

CLIENT_NAME_BYTES_MAX = 256
"""Name and library strings set by CLIENT SETNAME and SETINFO."""

SLOWLOG_MAX = 128
"""Slow requests remembered, as in Redis, unless CONFIG SET slowlog-max-len says otherwise."""

SLOWLOG_LENGTH_MAX = 1_024
"""The most that it may say: each is up to 4 KB, and SLOWLOG GET -1 shows all in one turn."""

GLOBS_BYTES_MAX = 512
"""Patterns of one request in all: each is matched against many names, in this turn of the loop."""

assert DUE_PER_TURN + ENTRIES_PER_REQUEST_MAX < UNACKED_ENTRIES_MAX // 4, "expiry leaves room"
assert BACKLOG_KEPT_BYTES_MAX <= BACKLOG_BYTES_MAX
assert HELD_BACK_BYTES_MAX <= LINK_BYTES_MAX // 2, "refused before the link is given up"
assert BACKLOG_BYTES_MAX > 16 * CATCH_UP_BYTES_PER_TURN, "a joining backup must be able to catch up"
assert REPLIES_MAX % 2 == 0, "two generations of half"
assert NAME_BYTES_MAX * 4 < 64 * 1024, "every valid request fits in an inline command"
