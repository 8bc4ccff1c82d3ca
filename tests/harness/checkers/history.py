"""What a test records of a run: the only thing that the checkers look at.

Times are integers, microseconds of one true clock that no node reads (in a simulation the
simulated one, of live processes the monotonic clock of the test). A node is named by its
incarnation, so a restarted one has another name. Each list is in the order in which things
happened; where instants are equal, that order decides.

- Clients record an Operation for every request and a Belief for every grant that they act on; of
  versioned registers a RegisterOperation (registers.py).
- The trace of the nodes gives the rest. What a run cannot see stays empty: no checker demands more
  than it is given, save that `expiries=None` (nobody watched) differs from () (none happened).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .registers import RegisterOperation

UNKNOWN = None  # the answer, and the return, of an operation that is indeterminate to the end

LOCK = "lock"
UNLOCK = "unlock"  # bare: whoever holds it
UNLOCK_TOKEN = "unlock_token"  # UNLOCK name reqid TOKEN argument
UNDO = "undo"  # UNLOCK name reqid REQUEST argument
RENEW = "renew"
VERIFY = "verify"
READ = "read"  # INSPECT, or whatever else shows the fencing token of the holder
KINDS = (LOCK, UNLOCK, UNLOCK_TOKEN, UNDO, RENEW, VERIFY, READ)


class Operation(NamedTuple):
    """One request as its client saw it; all repeats of it (same request id) are one Operation.

    An error that promises "not done" (-NOREPLICAS, -TRYAGAIN to the last attempt) is not recorded;
    an error that promises nothing (-REQUESTGONE, connection lost) leaves the outcome unknown.
    A late copy of a request of unknown outcome may act at any time, so nothing bounds it.
    """

    client: str
    kind: str  # one of KINDS
    name: str
    reqid: str  # "" for renew, verify, read
    call_us: int  # before the first transmission
    return_us: int | None  # after the answer; None: the outcome is unknown to the end
    answer: int | None  # lock, read: fencing token or 0; the rest: 1 or 0; None: unknown
    argument: int | str = 0  # token of unlock_token, renew, verify; for undo the undone request id
    lease_ms: int = 0  # of lock and renew; 0: none
    wait_ms: int = 0  # of lock; a lock that waits is one operation all the same

    def __str__(self) -> str:
        end = "..." if self.return_us is None else f"{self.return_us}"
        words = [self.kind, self.name, self.reqid, str(self.argument or "")]
        words += [f"lease {self.lease_ms} ms"] if self.lease_ms else []
        said = " ".join(word for word in words if word)
        answer = "?" if self.answer is None else self.answer
        return f"{said} -> {answer} [{self.call_us} .. {end}] by {self.client}"


class Expiry(NamedTuple):
    """The primary applied EXPIRE to this grant. It may have been lost with that primary."""

    name: str
    token: int
    at_us: int


class Belief(NamedTuple):
    """While a client acted as the holder: from the grant's answer until it released (sent the
    first copy of its UNLOCK), stopped trusting its lease, or (None) never stopped."""

    client: str
    name: str
    token: int
    from_us: int
    until_us: int | None


class Reply(NamedTuple):
    """A reply that left a node. Every reply that depends on state is recorded: grants, refusals,
    reads and repeats. Errors need not be; one with a text as `answer` is passed over."""

    node: str
    epoch: int  # of the node at the instant at which the reply left
    command: str
    name: str
    reqid: str  # "" if the command has none
    answer: int | str
    computed_us: int  # the turn in which it was computed
    at_us: int  # when it left
    offset: int  # of the state from which it was computed
    solo: bool  # it waited for nobody: no backup whose acknowledgement is required
    needed_frame: int = 0  # not solo: number of the first frame sent at or after that turn
    acked_frame: int = 0  # not solo: highest frame that the backup acked in this very epoch


class Ack(NamedTuple):
    """A backup's acknowledgement as it reached the primary (recorded by the network, not by the
    primary, so that a primary which counts wrongly is found out)."""

    node: str  # the primary that it reached
    backup: str
    epoch: int  # as it stands in the acknowledgement
    frame: int
    frame_sent_us: int  # when the primary sent that frame
    offset: int  # up to which the backup had applied
    at_us: int


class View(NamedTuple):
    """A view that the register took, at the instant at which it did. Vacant: members ()."""

    epoch: int
    primary: str
    members: tuple[str, ...]
    at_us: int


class Promotion(NamedTuple):
    """A node became primary. `view_before_members` are those of the epoch before; () if there was
    no view or a vacant one."""

    node: str
    epoch: int
    view_before_members: tuple[str, ...]
    at_us: int


class Digest(NamedTuple):
    """The digest of a node's state at an offset of a history (of entries, by id)."""

    node: str
    history: str
    offset: int
    digest: str
    at_us: int = 0


class Joined(NamedTuple):
    """A LOCK began to stand in line (again, if it had Left: a repeat that found its place kept)."""

    node: str
    epoch: int
    name: str
    reqid: str
    at_us: int


class Left(NamedTuple):
    """It stands in line no more, or its connection is gone and it is passed over."""

    node: str
    epoch: int
    name: str
    reqid: str
    at_us: int


class Granted(NamedTuple):
    """The primary granted the lock, to a waiter or to somebody who just came."""

    node: str
    epoch: int
    name: str
    reqid: str
    token: int
    at_us: int


@dataclass
class History:
    """Everything recorded of one run, for `check_all`."""

    operations: list[Operation] = field(default_factory=list)
    expiries: list[Expiry] | None = None  # None: nobody watched, leases may end once they passed
    beliefs: list[Belief] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    acks: list[Ack] | None = None  # None: the network was not watched
    views: list[View] = field(default_factory=list)
    promotions: list[Promotion] = field(default_factory=list)
    digests: list[Digest] = field(default_factory=list)
    line: list[Joined | Left | Granted] = field(default_factory=list)
    registers: list[RegisterOperation] = field(default_factory=list)


class Undecided(Exception):
    """The search gave up at its limit; the history may be right or wrong."""
