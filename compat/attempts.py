"""What Clerk decides, without doing it: no socket, clock, thread or dice in here.

A request is sent again and again, always under the same request id, until a node answers it or its
deadline passes. The server executes a request id at most once and repeats its first answer, so a
repeat is harmless, and any answer is the answer. What has to be decided is what to do about each
thing that can be *seen* of one attempt:

    seen            means                                             then
    ANSWERED        final; a refusal of VPUT is an answer too (R7)    return it
    NOT_SENT        this attempt reached nobody                       next node
    NOT_EXECUTED    this node did not do it (-READONLY and the like)  next node
    LOST            it was sent and may have been executed            next node, and remember it
    GONE            -REQUESTGONE: the outcome is no longer known      indeterminate
    REJECTED        any other error: this node will not do it         raise it

A LOCK with a wait is such a request too, only that its answer may take as long as the wait. While
it stands in line the node is asked now and then, on another connection, whether it is still there
(a dead process ends the connection, a stopped one or a dead machine does not). The alternative was
to hang up and send the request again every few seconds: whoever hangs up is passed over for as long
as that takes, so it would cost the place in line now and then, and a new connection every time.

Rules that the tests hold:

 R1  "Not done" is said only if no attempt was ever LOST. A -READONLY or an -ERR from one node says
     nothing of a copy that another node took in before: after a LOST attempt only an answer ends
     the doubt (and without a request id not every answer does: R7).
 R2  The nodes are tried in turn, the next one at once. Waiting starts only when all of them have
     failed in a row, and is short at first: a failover takes a few milliseconds.
 R3  A client id has one request at a time and its numbers rise from 1. It goes back to the pool
     when its outcome is known. Executing number n freezes everything below at the server, so:
       - an indeterminate `acquire` is undone (UNLOCK ... REQUEST) under the next number of the same
         client id, which nothing else may overtake: it would freeze the undo out. That id stays
         out of the pool until the undo is answered, for ever if it never is;
       - an indeterminate `release` needs no undo. Its client id goes back at once and is lent
         first, so that the next request of this Clerk freezes any late copy of that release
         before it could meet a lock that was granted later. Sending the release once more, later,
         would be worse than useless: by then the lock may be somebody else's;
       - an indeterminate `put` is treated like a release. It cannot be undone: what it has written
         over is gone. A late copy can write only as long as the version fits, and the next request
         of this Clerk that has an id freezes it, for the client id is lent first;
       - after -REQUESTGONE somebody else has used higher numbers: never use that id again.

 R4  An attempt that has no time left for its answer turns a certain "not done" into doubt. So the
     last one begins while an answer can still be expected.

 R5  A grant counts only once its caller has it. If an exception from outside (a signal's handler,
     a greenlet that is killed) comes between the answer and the caller, the grant is abandoned
     like any indeterminate one, and undone. And whatever interrupts whatever, one request is
     settled once: its client id is given back, passed on to the undo, or given up.

 R6  The wait is the caller's, not an attempt's: every sending says WAIT with what is left of it,
     so whoever has to stand in line again, behind a failover, waits no longer for it. The deadline
     of the call comes after the wait. A call that waits as long as it takes ends when for the time
     of its deadline no node has shown that it keeps our place: then nothing is being waited for.

 R7  -NOKEY, -VERSION and -STALETOKEN are what VGET and VPUT answer, not errors on the way to an
     answer. To a put with a request id they are its first answer, and settle what was LOST before.
     Without an id nothing was remembered, and such a refusal may have been brought about by our
     own copy, which was LOST and yet done. So then, and only then, the put is in doubt:

         put (version 6), no id   ──▶ node: writes version 7; the reply is lost
         the same once more       ──▶ node: -VERSION the current version is 7

     It is a doubt that one reading ends: the version has gone on, no copy will fit any more.

What a grant is worth once it has come is decided in `leases`, registers in `registers`.

Instants and lengths are integers in microseconds (`_us`), on any clock that does not go back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

# The longest WAIT that a node takes: a day.
WAIT_MS_MAX = 86_400_000

# The first wait after every node has failed once, doubled each round up to the last.
BACKOFF_FIRST_US = 2_000
BACKOFF_MAX_US = 100_000

# No further attempt with less than this left, and nothing is sent with less than that (R4).
ATTEMPT_MIN_US = 20_000
SENDING_MIN_US = 2_000

# Answers that say: this node did not do it, ask the other one.
NOT_EXECUTED_CODES = frozenset({"READONLY", "NOREPLICAS", "TRYAGAIN", "MASTERDOWN", "LOADING"})
GONE_CODE = "REQUESTGONE"

# Answers that refuse a put, or a get (R7).
REFUSAL_CODES = frozenset({"NOKEY", "VERSION", "STALETOKEN"})


class Kind(Enum):
    """What a request is to its caller."""

    ACQUIRE = "acquire"
    RELEASE = "release"
    UNDO = "undo"
    RENEW = "renew"
    VERIFY = "verify"
    INSPECT = "inspect"
    LIST = "list"
    PING = "ping"
    GET = "get"
    PUT = "put"


# They change nothing: asked again as often as one likes, and never in doubt.
_READS = frozenset({Kind.VERIFY, Kind.INSPECT, Kind.LIST, Kind.PING, Kind.GET})


@dataclass(frozen=True)
class Request:
    """One request, the same words at every attempt but for what is left of a wait.

    `request_id` is empty for a read, for a renewal, which may be done twice, and for a put that is
    to leave nothing behind (R7).
    """

    kind: Kind
    name: bytes
    request_id: bytes
    words: tuple[bytes, ...]

    @property
    def command(self) -> str:
        return self.words[0].decode()


@dataclass(frozen=True)
class PutRequest(Request):
    """VPUT. `version` is that which the register must have; `fence` a lock and its grant."""

    version: int
    fence: tuple[bytes, int] | None


class Client:
    """A client id, lent to one request, and the last number that it used. Each loan is an object
    of its own, `lent` until it ends: who has been interrupted can tell whether it had ended,
    though the id may be lent to somebody else by then.
    """

    __slots__ = ("client_id", "last_n", "lent")

    def __init__(self, client_id: str, last_n: int = 0) -> None:
        self.client_id = client_id
        self.last_n = last_n
        self.lent = True

    def next_request_id(self) -> bytes:
        assert self.lent, "only the borrower of a client id may number a request"
        self.last_n += 1
        return b"@%b:%d" % (self.client_id.encode(), self.last_n)


class ClientPool:
    """Client ids that are free. The one returned last is lent first, so that the server has to
    remember few of them, and so that a late copy of its last request is frozen soon (R3).
    """

    def __init__(self, new_client_id: Callable[[], str]) -> None:
        self._new_client_id = new_client_id
        self._free: list[tuple[str, int]] = []

    def borrow(self) -> Client:
        """By any thread, and by a signal's handler in the middle of another loan: no lock."""
        try:
            return Client(*self._free.pop())
        except IndexError:
            return Client(self._new_client_id())

    def give_back(self, client: Client) -> None:
        """By any thread, and without a call: Python runs the handlers of signals after calls, so
        none can come between here and the caller of `acquire` (R5; in Python 3.10 it still can).
        """
        assert client.lent
        client.lent = False
        self._free += [(client.client_id, client.last_n)]


def acquire_request(
    client: Client, name: bytes, lease_ms: int | None = None, owner: bytes | None = None
) -> Request:
    request_id = client.next_request_id()
    words = [b"LOCK", name, request_id]
    if lease_ms is not None:
        words += [b"PX", b"%d" % lease_ms]
    if owner is not None:
        words += [b"OWNER", owner]
    return Request(Kind.ACQUIRE, name, request_id, tuple(words))


def release_request(client: Client, name: bytes, token: int | None = None) -> Request:
    request_id = client.next_request_id()
    words = [b"UNLOCK", name, request_id]
    if token is not None:
        words += [b"TOKEN", b"%d" % token]
    return Request(Kind.RELEASE, name, request_id, tuple(words))


def undo_request(client: Client, abandoned: Request) -> Request:
    """Releases what `abandoned` was granted, or sees to it that it never will be."""
    assert abandoned.kind is Kind.ACQUIRE
    request_id = client.next_request_id()
    words = (b"UNLOCK", abandoned.name, request_id, b"REQUEST", abandoned.request_id)
    return Request(Kind.UNDO, abandoned.name, request_id, words)


def renew_request(name: bytes, token: int, lease_ms: int) -> Request:
    return Request(Kind.RENEW, name, b"", (b"RENEW", name, b"%d" % token, b"PX", b"%d" % lease_ms))


def verify_request(name: bytes, token: int) -> Request:
    return Request(Kind.VERIFY, name, b"", (b"VERIFY", name, b"%d" % token))


def inspect_request(name: bytes) -> Request:
    return Request(Kind.INSPECT, name, b"", (b"INSPECT", name))


def locks_request(cursor: bytes, pattern: bytes | None, count: int) -> Request:
    """`pattern` as MATCH takes it."""
    match = (b"MATCH", pattern) if pattern is not None else ()
    return Request(Kind.LIST, b"", b"", (b"LOCKS", cursor, *match, b"COUNT", b"%d" % count))


def ping_request() -> Request:
    return Request(Kind.PING, b"", b"", (b"PING",))


class Fate(Enum):
    """What was seen of one attempt; the table at the top says what each means."""

    ANSWERED = "answered"
    NOT_SENT = "not sent"
    NOT_EXECUTED = "not executed"
    LOST = "lost"
    GONE = "gone"
    REJECTED = "rejected"


class Refusal(NamedTuple):
    """An answer that begins with one of REFUSAL_CODES; `current_version` is what -VERSION says."""

    code: str
    current_version: int = 0


class Seen(NamedTuple):
    """`value` is the reply of ANSWERED, `error` the reason of any other fate."""

    fate: Fate
    value: Any = None
    error: Exception | None = None


class Verdict(Enum):
    """What a call comes to."""

    ANSWERED = "answered"
    INDETERMINATE = "indeterminate"
    UNAVAILABLE = "unavailable"
    REJECTED = "rejected"


class Send(NamedTuple):
    """Do: wait `delay_us`, then send the request to node number `node`."""

    node: int
    delay_us: int


class Finish(NamedTuple):
    """Do: tell the caller. `error` is what decided; `lost` the first attempt that went unanswered,
    `node` the one that answered, `gone` whether the server has forgotten the outcome. A `value` of
    an indeterminate call is the refusal that may be of its own making (R7).
    """

    verdict: Verdict
    tries: int
    value: Any = None
    error: Exception | None = None
    lost: Exception | None = None
    node: int | None = None
    gone: bool = False


class Call:
    """One request on its way to a verdict: `start()` once, `observe()` after each attempt; in each
    that comes so far `sending()`, and `node_is_there()` when a node shows that it keeps our place.

    `jitter` gives numbers from 0 up to 1; `first_node` is where the primary was last seen. The
    request may stand in line until `wait_until_us`. `patience_us` is for one that waits as long as
    it takes: so long after the last sign of a node it ends (R6); then `deadline_us` is the first
    such instant. `attempt_us` is for one whose answer is soon of no use: the first attempt at each
    node takes no longer than that, the second twice that, and so on, so that a connection which is
    dead without a word leaves time for another, and a long way to the node does too.
    """

    def __init__(
        self,
        request: Request,
        *,
        node_count: int,
        first_node: int,
        deadline_us: int,
        jitter: Callable[[], float],
        wait_until_us: int = 0,
        patience_us: int | None = None,
        attempt_us: int | None = None,
    ) -> None:
        assert 0 <= first_node < node_count
        assert wait_until_us == 0 or request.kind is Kind.ACQUIRE
        self.request = request
        self.deadline_us = deadline_us
        self.wait_until_us = wait_until_us
        self.tries = 0
        self.sendings = 0
        self.first_sent_us = 0
        self._patience_us = patience_us
        self._attempt_us = attempt_us
        self._node_count = node_count
        self._node = first_node
        self._jitter = jitter
        self._lost: Exception | None = None
        self._finished: Finish | None = None

    def start(self) -> Send:
        """The first attempt, made even if the deadline leaves it no time."""
        return self._send(delay_us=0)

    def sending(self, now_us: int) -> tuple[bytes, ...]:
        """What to send, now: from here on it may be executed."""
        self.sendings += 1
        if self.sendings == 1:
            self.first_sent_us = now_us
        wait_ms = (self.wait_until_us - now_us) // 1_000
        wait = (b"WAIT", b"%d" % wait_ms) if wait_ms > 0 else ()
        return (*self.request.words, *wait)

    def timeout_us(self, usual_us: int) -> int:
        """How long this attempt may wait for one thing, a connection or a reply."""
        if self._attempt_us is None:
            return usual_us
        rounds = max(0, self.tries - 1) // self._node_count
        return min(usual_us, self._attempt_us << min(rounds, 16))

    def reply_by_us(self, sent_us: int, read_timeout_us: int) -> int:
        """Until when to wait for the reply to what was sent at `sent_us`."""
        wait_us = max(0, self.wait_until_us - sent_us)
        reply_by_us = sent_us + wait_us + self.timeout_us(read_timeout_us)
        if wait_us and self._patience_us is not None:
            return reply_by_us
        return min(reply_by_us, self.deadline_us)

    def node_is_there(self, now_us: int) -> None:
        """The node at which this request stands in line has shown that it lives."""
        if self._patience_us is not None:
            self.deadline_us = now_us + self._patience_us

    def observe(self, seen: Seen, now_us: int) -> Send | Finish:
        assert self.tries and self._finished is None
        step = self._decide(seen, now_us)
        if isinstance(step, Finish):
            self._finished = step
        return step

    def _decide(self, seen: Seen, now_us: int) -> Send | Finish:
        if seen.fate is Fate.ANSWERED and not _fits(self.request, seen.value):
            # Whatever said that is no lock server, or not in step with us: it answered nothing.
            seen = Seen(Fate.LOST, error=ValueError(f"unexpected reply {seen.value!r:.80}"))
        match seen.fate:
            case Fate.ANSWERED:
                return self._answered(seen.value)
            case Fate.LOST:
                self._remember_lost(seen.error)
                return self._again(seen.error, now_us)
            case Fate.NOT_SENT | Fate.NOT_EXECUTED:
                return self._again(seen.error, now_us)
            case Fate.REJECTED:
                return self._finish(Verdict.REJECTED, seen.error)
            case Fate.GONE:
                verdict = Verdict.REJECTED if self._is_read else Verdict.INDETERMINATE
                return self._finish(verdict, seen.error)._replace(gone=True)

    def interrupt(self) -> Finish:
        """The caller was interrupted: by a signal, or by having its greenlet killed. An attempt
        that was under way then counts as lost; one that had not begun does no harm counted so. A
        grant that was answered never reached the caller: it is in doubt again (R5).
        """
        finish = self._finished
        if finish is None:
            if self.tries:
                self._remember_lost(InterruptedError("interrupted while waiting for the reply"))
            return self._finish(Verdict.UNAVAILABLE, self._lost)
        if self.request.kind is Kind.ACQUIRE and finish.verdict is Verdict.ANSWERED:
            lost = InterruptedError("interrupted after the reply had come")
            return finish._replace(verdict=Verdict.INDETERMINATE, lost=lost)
        return finish

    @property
    def _is_read(self) -> bool:
        return self.request.kind in _READS

    def _remember_lost(self, error: Exception | None) -> None:
        if self._lost is None and not self._is_read:
            self._lost = error

    def _answered(self, value: Any) -> Finish:
        may_be_our_own_doing = isinstance(value, Refusal) and not self.request.request_id
        in_doubt = self._lost is not None and may_be_our_own_doing
        finish = Finish(Verdict.ANSWERED, self.tries, value=value, node=self._node)
        if in_doubt:
            finish = finish._replace(verdict=Verdict.INDETERMINATE, lost=self._lost)
        return finish

    def _again(self, error: Exception | None, now_us: int) -> Send | Finish:
        left_us = self.deadline_us - now_us
        if left_us < ATTEMPT_MIN_US:
            return self._finish(Verdict.UNAVAILABLE, error)
        self._node = (self._node + 1) % self._node_count
        return self._send(min(self._backoff_us(), left_us - ATTEMPT_MIN_US))

    def _backoff_us(self) -> int:
        rounds, rest = divmod(self.tries, self._node_count)
        if rest:
            return 0
        longest_us = min(BACKOFF_MAX_US, BACKOFF_FIRST_US << min(rounds - 1, 16))
        return int(longest_us * (1 + self._jitter()) / 2)

    def _send(self, delay_us: int) -> Send:
        self.tries += 1
        return Send(self._node, delay_us)

    def _finish(self, verdict: Verdict, error: Exception | None) -> Finish:
        if self._lost is not None:
            verdict = Verdict.INDETERMINATE
        return Finish(verdict, self.tries, error=error, lost=self._lost)


def _fits(request: Request, value: object) -> bool:
    match request.kind:
        case Kind.ACQUIRE:
            return type(value) is int and value >= 0
        case Kind.RELEASE | Kind.UNDO | Kind.RENEW | Kind.VERIFY:
            return type(value) is int and value in (0, 1)
        case Kind.INSPECT:
            return isinstance(value, dict) or (isinstance(value, list) and len(value) % 2 == 0)
        case Kind.LIST:
            return isinstance(value, list) and len(value) == 2 and isinstance(value[1], list)
        case Kind.GET:
            return _is_register(value) or (isinstance(value, Refusal) and value.code == "NOKEY")
        case Kind.PUT:
            assert isinstance(request, PutRequest)
            is_next = type(value) is int and value == request.version + 1
            return is_next or isinstance(value, Refusal)
        case Kind.PING:
            return True


def _is_register(value: object) -> bool:
    """A value and a version."""
    if not (isinstance(value, list) and [type(each) for each in value] == [bytes, int]):
        return False
    return bool(value[1] > 0)


class Aftermath(Enum):
    """What becomes of the client id of a finished request (R3)."""

    REUSE = "reuse"
    UNDO = "undo"
    RETIRE = "retire"


def aftermath(kind: Kind, finish: Finish) -> Aftermath:
    if finish.gone:
        return Aftermath.RETIRE
    if kind is Kind.UNDO:
        answered = finish.verdict is Verdict.ANSWERED
        return Aftermath.REUSE if answered else Aftermath.RETIRE
    if kind is Kind.ACQUIRE and finish.verdict is Verdict.INDETERMINATE:
        return Aftermath.UNDO
    return Aftermath.REUSE
