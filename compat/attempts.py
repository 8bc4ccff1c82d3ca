"""What Clerk decides, without doing it: no socket, clock, thread or dice in here.

A request is sent again and again, always under the same request id, until a node answers it or its
deadline passes. The server executes a request id at most once and repeats its first answer, so a
repeat is harmless, and any answer is the answer. What has to be decided is what to do about each
thing that can be *seen* of one attempt:

    seen            means                                             then
    ANSWERED        final                                             return it
    NOT_SENT        this attempt reached nobody                       next node
    NOT_EXECUTED    this node did not do it (-READONLY and the like)  next node
    LOST            it was sent and may have been executed            next node, and remember it
    GONE            -REQUESTGONE: the outcome is no longer known      indeterminate
    REJECTED        any other error: this node will not do it         raise it

Rules that the tests hold:

 R1  "Not done" is said only if no attempt was ever LOST. A -READONLY or an -ERR from one node says
     nothing of a copy that another node took in before: after a LOST attempt only an answer ends
     the doubt.
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
       - after -REQUESTGONE somebody else has used higher numbers: never use that id again.

 R4  An attempt that has no time left for its answer turns a certain "not done" into doubt. So the
     last one begins while an answer can still be expected.

 R5  A grant counts only once its caller has it. If an exception from outside (a signal's handler,
     a greenlet that is killed) comes between the answer and the caller, the grant is abandoned
     like any indeterminate one, and undone. And whatever interrupts whatever, one request is
     settled once: its client id is given back, passed on to the undo, or given up.

Instants and lengths are integers in microseconds (`_us`), on any clock that does not go back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

NAME_BYTES_MAX = 512

# The first wait after every node has failed once, doubled each round up to the last.
BACKOFF_FIRST_US = 2_000
BACKOFF_MAX_US = 100_000

# No further attempt with less than this left, and nothing is sent with less than that (R4).
ATTEMPT_MIN_US = 20_000
SENDING_MIN_US = 2_000

# Answers that say: this node did not do it, ask the other one.
NOT_EXECUTED_CODES = frozenset({"READONLY", "NOREPLICAS", "TRYAGAIN", "MASTERDOWN", "LOADING"})
GONE_CODE = "REQUESTGONE"


class Kind(Enum):
    """What a request is to its caller."""

    ACQUIRE = "acquire"
    RELEASE = "release"
    UNDO = "undo"
    READ = "read"


@dataclass(frozen=True)
class Request:
    """One request, the same words at every attempt; `request_id` is empty for a read."""

    kind: Kind
    name: bytes
    request_id: bytes
    words: tuple[bytes, ...]

    @property
    def command(self) -> str:
        return self.words[0].decode()


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
        """Not to be called by two threads at once."""
        return Client(*self._free.pop()) if self._free else Client(self._new_client_id())

    def give_back(self, client: Client) -> None:
        """By any thread, and without a call: Python runs the handlers of signals after calls, so
        none can come between here and the caller of `acquire` (R5; in Python 3.10 it still can).
        """
        assert client.lent
        client.lent = False
        self._free += [(client.client_id, client.last_n)]


def acquire_request(client: Client, name: bytes) -> Request:
    request_id = client.next_request_id()
    return Request(Kind.ACQUIRE, name, request_id, (b"LOCK", name, request_id))


def release_request(client: Client, name: bytes) -> Request:
    request_id = client.next_request_id()
    return Request(Kind.RELEASE, name, request_id, (b"UNLOCK", name, request_id))


def undo_request(client: Client, abandoned: Request) -> Request:
    """Releases what `abandoned` was granted, or sees to it that it never will be."""
    assert abandoned.kind is Kind.ACQUIRE
    request_id = client.next_request_id()
    words = (b"UNLOCK", abandoned.name, request_id, b"REQUEST", abandoned.request_id)
    return Request(Kind.UNDO, abandoned.name, request_id, words)


def inspect_request(name: bytes) -> Request:
    return Request(Kind.READ, name, b"", (b"INSPECT", name))


class Fate(Enum):
    """What was seen of one attempt; the table at the top says what each means."""

    ANSWERED = "answered"
    NOT_SENT = "not sent"
    NOT_EXECUTED = "not executed"
    LOST = "lost"
    GONE = "gone"
    REJECTED = "rejected"


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
    `node` the one that answered, `gone` whether the server has forgotten the outcome.
    """

    verdict: Verdict
    tries: int
    value: Any = None
    error: Exception | None = None
    lost: Exception | None = None
    node: int | None = None
    gone: bool = False


class Call:
    """One request on its way to a verdict: `start()` once, `observe()` after each attempt.

    `jitter` gives numbers from 0 up to 1; `first_node` is where the primary was last seen.
    """

    def __init__(
        self,
        request: Request,
        *,
        node_count: int,
        first_node: int,
        deadline_us: int,
        jitter: Callable[[], float],
    ) -> None:
        assert 0 <= first_node < node_count
        self.request = request
        self.deadline_us = deadline_us
        self.tries = 0
        self._node_count = node_count
        self._node = first_node
        self._jitter = jitter
        self._lost: Exception | None = None
        self._finished: Finish | None = None

    def start(self) -> Send:
        """The first attempt, made even if the deadline leaves it no time."""
        return self._send(delay_us=0)

    def observe(self, seen: Seen, now_us: int) -> Send | Finish:
        assert self.tries and self._finished is None
        step = self._decide(seen, now_us)
        if isinstance(step, Finish):
            self._finished = step
        return step

    def _decide(self, seen: Seen, now_us: int) -> Send | Finish:
        if seen.fate is Fate.ANSWERED and not _fits(self.request.kind, seen.value):
            # Whatever said that is no lock server, or not in step with us: it answered nothing.
            seen = Seen(Fate.LOST, error=ValueError(f"unexpected reply {seen.value!r:.80}"))
        match seen.fate:
            case Fate.ANSWERED:
                node = self._node
                return Finish(Verdict.ANSWERED, self.tries, value=seen.value, node=node)
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
        return self.request.kind is Kind.READ

    def _remember_lost(self, error: Exception | None) -> None:
        if self._lost is None and not self._is_read:
            self._lost = error

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


def _fits(kind: Kind, value: object) -> bool:
    if kind is Kind.READ:
        return isinstance(value, dict) or (isinstance(value, list) and len(value) % 2 == 0)
    if type(value) is not int:
        return False
    return value >= 0 if kind is Kind.ACQUIRE else value in (0, 1)


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
