"""Can each lock have behaved as its clients saw it? (I1; leases: I8)

The search is that of Wing and Gong, with the memory of Lowe ("Testing for linearizability", 2017):
give every operation an instant between its call and its return; place one after the other, each
that could come next; forget what has been tried, by the set of what was placed and the state that
this led to. One lock at a time, since linearizability is local.

An event that may happen, but need not (an operation of unknown outcome, the expiry of a lease), may
be left out. Placed events carry a time: the earliest instant that the last one can have had. An
expiry that the trace shows can only be placed at the time when it was applied.

What keeps the search short, and loses no solution:

S1  An event that changes nothing is placed as soon as it fits: moved to there, from wherever it
    stands in a solution, it disturbs nobody. Unless the time that it brings would put an expiry of
    the trace out of reach.
S2  Grants come in the order of their tokens (I7), so which one is next is known.
S3  A grant does not end before everything that saw it has been placed: tokens are not used twice.
S4  Of events with the same effect that fit, the one that must be placed first goes first: in a
    solution with another here, the two can be swapped.
S5  What cannot happen any more counts as placed, so that states which differ in nothing else are
    the same to the memory.
S6  Nor is a state tried if one was that differs only in that less of what may happen had happened,
    and that the tokens so far were lower.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Sequence

from . import history as records
from .history import LOCK, READ, RENEW, UNDO, UNLOCK, UNLOCK_TOKEN, VERIFY, Operation, Undecided
from .model import EXPIRE, FREE, Event, Lock, Model

STEPS_MAX = 2_000_000
"""Then it is given up. One history in 200,000 of the simulator took more than a tenth of that."""
LEASE_ROUNDING_US = 1000  # nodes count whole milliseconds: one may be lost when a lease begins
NEVER = 1 << 62

Path = tuple[Event, "Path | None"]
Node = tuple[int, Lock, int, Path | None]  # events placed, state, time of the last, way there


def check_linearizable(
    operations: Iterable[Operation],
    expiries: Iterable[records.Expiry] | None = None,
    *,
    clock_drift: float = 0.0,
    window_us: int = 0,
    steps_max: int = STEPS_MAX,
) -> list[str]:
    """Problems, one for each lock that cannot have behaved so. All were free in the beginning.

    With `expiries` a lease ends when one of them says so, give or take `window_us`; without, at any
    time once it has passed. `clock_drift`: how much faster, as a fraction, the clock of a node may
    run. A search that is given up is a problem, too.
    """
    by_name: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        by_name[operation.name].append(operation)
    expiries_of: dict[str, list[records.Expiry]] = defaultdict(list)
    for expiry in expiries or ():
        expiries_of[expiry.name].append(expiry)
    problems = []
    for name, some in sorted(by_name.items()):
        seen = None if expiries is None else expiries_of[name]
        try:
            problem = _Search(some, seen, clock_drift, window_us).run(steps_max)
        except Undecided as undecided:
            problem = str(undecided)
        if problem:
            problems.append(f"lock {name!r}: {problem}")
    return problems


class _Search:
    """The search for one lock. Events are numbered; a set of events is an integer of bits. First
    come the operations with an answer, which must be placed, in the order of their calls."""

    def __init__(
        self,
        operations: Sequence[Operation],
        expiries: Sequence[records.Expiry] | None,
        clock_drift: float,
        window_us: int,
    ) -> None:
        for operation in operations:
            end = operation.return_us
            assert end is None or end >= operation.call_us, f"returns before its call: {operation}"
        self.events: list[Event] = []
        self.calls: list[int] = []
        self.returns: list[int] = []
        self.lease_ends: dict[int, int] = {}  # earliest, by the number of the LOCK
        self._rate = 1000 * (1 - clock_drift)
        ordered = sorted(operations, key=lambda op: op.call_us)
        for operation in ordered:
            if _is_answered(operation):
                self._add_operation(operation)
        self.must_count = len(self.events)
        for operation in ordered:
            if not _is_answered(operation) and operation.kind in (LOCK, UNLOCK, UNLOCK_TOKEN, UNDO):
                self._add_operation(operation)
        self._add_expiries(expiries, window_us)
        self.model = Model(self.events)
        self._tabulate(operations)

    def _add_operation(self, op: Operation) -> None:
        answer = op.answer if _is_answered(op) else None
        end = op.return_us if op.return_us is not None and answer is not None else NEVER
        if op.kind == LOCK and op.lease_ms:
            self.lease_ends[len(self.events)] = self._lease_end(op)
        self._add(op.kind, op.reqid, answer, op.argument, str(op), op.call_us, end)

    def _add(
        self,
        kind: str,
        reqid: str,
        answer: int | None,
        argument: int | str,
        text: str,
        call: int,
        end: int,
    ) -> None:
        self.events.append(Event(len(self.events), kind, reqid, answer, argument, text))
        self.calls.append(call)
        self.returns.append(end)

    def _add_expiries(self, expiries: Sequence[records.Expiry] | None, window_us: int) -> None:
        for expiry in sorted(expiries or (), key=lambda expiry: expiry.at_us):
            text, at = f"expiry of token {expiry.token} at {expiry.at_us}", expiry.at_us
            self._add(EXPIRE, "", None, expiry.token, text, at - window_us, at + window_us)
        if expiries is None:
            for number, end in sorted(self.lease_ends.items(), key=lambda item: item[1]):
                text = f"expiry, from {end} on, of {self.events[number].text}"
                self._add(EXPIRE, "", None, -number - 1, text, end, NEVER)

    def _lease_end(self, op: Operation) -> int:
        return op.call_us + int(op.lease_ms * self._rate) - LEASE_ROUNDING_US

    def _tabulate(self, operations: Sequence[Operation]) -> None:
        """What the rules above look up: sets of events, by what they are about."""
        self.must = (1 << self.must_count) - 1
        self.spent = 0  # optional events of which nothing remains but that they cannot happen again
        self.memory: dict[object, list[tuple[int, int]]] = defaultdict(list)
        self.grants = 0
        self.tokens: list[int] = []  # of the answered grants, rising
        self.saw_token: dict[int, int] = defaultdict(int)  # needs a grant with this token
        self.ends_token: dict[int, int] = defaultdict(int)  # optional, ends this grant or nothing
        self.undid: dict[str, int] = defaultdict(int)  # released what this request was granted
        self.undoes: dict[str, int] = defaultdict(int)  # any undo of it
        self.locks: dict[str, int] = defaultdict(int)  # LOCK of this request id, grant or unknown
        for event in self.events:
            self._tabulate_event(event, 1 << event.number)
        self.renewed_until: dict[int, int] = defaultdict(int)
        for op in operations:
            if op.kind == RENEW and op.answer == 1 and op.return_us is not None:
                token = int(op.argument)
                end = max(self.renewed_until[token], self._lease_end(op))
                self.renewed_until[token] = end
        windows = [end for end in self.returns[self.must_count :] if end != NEVER]
        self.windows = sorted(windows)

    def _tabulate_event(self, event: Event, bit: int) -> None:
        kind, answer, argument = event.kind, event.answer, event.argument
        if not bit & self.must and kind != UNDO:
            self.spent |= bit
        if kind == LOCK:
            if answer:
                self.grants |= bit
                insort(self.tokens, answer)
            if answer != 0:
                self.locks[event.reqid] |= bit
        elif kind == READ:
            if answer:
                self.saw_token[answer] |= bit
        elif kind == UNDO:
            self.undoes[str(argument)] |= bit
            if answer:
                self.undid[str(argument)] |= bit
        elif kind in (VERIFY, RENEW, UNLOCK_TOKEN, EXPIRE) and answer != 0:
            about = self.saw_token if answer else self.ends_token
            about[int(argument)] |= bit

    # -- the search ------------------------------------------------------------------------------

    def run(self, steps_max: int) -> str:
        """Empty if there is a solution, else what cannot be. Raises Undecided."""
        stack: list[Node] = [(0, Lock(), -NEVER, None)]
        best, best_count = stack[0], -1
        for _ in range(steps_max):
            if not stack:
                return self._explain(*best)
            placed, lock, now, path = self._settle(*stack.pop())
            if placed & self.must == self.must:
                return ""
            if self._is_tried(placed, lock, now):
                continue
            count = (placed & self.must).bit_count()
            if count > best_count:
                best, best_count = (placed, lock, now, path), count
            stack.extend(self._successors(placed, lock, now, path))
        raise Undecided(f"could not decide within {steps_max} steps")

    def _is_tried(self, placed: int, lock: Lock, now: int) -> bool:
        """Whether a like state is in the memory, with the same or more that may still happen (S6);
        else it is now."""
        holder = self._kind_of_grant(lock.holder, placed, now)
        key = (placed & ~self.spent, holder, lock.token, lock.ruled_out, self._window(now))
        tried = self.memory[key]
        spent, highest = placed & self.spent, lock.highest
        if any(not before & ~spent and least <= highest for before, least in tried):
            return True
        tried.append((spent, highest))
        return False

    def _kind_of_grant(self, holder: int, placed: int, now: int) -> object:
        """Two grants of which this is the same can end in the same ways."""
        if holder == FREE:
            return None
        reqid = self.events[holder].reqid
        lease_end = self.lease_ends.get(holder, NEVER)
        undone = reqid if self.undoes.get(reqid, 0) & ~placed else ""
        return undone, lease_end if lease_end > now else 0

    def _settle(self, placed: int, lock: Lock, now: int, path: Path | None) -> Node:
        """Place what changes nothing (S1)."""
        more = True
        while more:
            more = False
            for number in self._candidates(placed)[0]:
                event, call = self.events[number], self.calls[number]
                if self._step(placed, lock, event) != lock or not self._is_idle(event, placed):
                    continue
                if call > now:
                    if self._closes_window(now, call):
                        continue
                    now = call
                placed |= 1 << number
                path = (event, path)
                more = True
        return placed, lock, now, path

    def _candidates(self, placed: int) -> tuple[list[int], int]:
        """The events to be placed that can be next, by their calls, and the first of their returns:
        the instant before which one of them must be."""
        found: list[int] = []
        bound = NEVER
        first = (~placed & (placed + 1)).bit_length() - 1
        for number in range(first, self.must_count):
            if placed >> number & 1:
                continue
            if self.calls[number] > bound:
                break
            found.append(number)
            bound = min(bound, self.returns[number])
        return found, bound

    def _step(self, placed: int, lock: Lock, event: Event) -> Lock | None:
        """The lock after this event; None if it cannot be, or leads nowhere (S2, S3)."""
        undone = event.kind == LOCK and bool(self.undoes.get(event.reqid, 0) & placed)
        after = self.model.step(lock, event, undone)
        if after is None:
            return None
        if after == lock:
            return None if event.kind == UNDO and self._forbids(event, placed) else lock
        if event.kind == LOCK and event.answer:
            if event.answer != self.tokens[(placed & self.grants).bit_count()]:
                return None
        if after.holder == FREE:
            saw = self.saw_token.get(_token_ended(lock, event), 0)
            saw |= self.undid.get(self.events[lock.holder].reqid, 0)
            if saw & ~placed & ~(1 << event.number):
                return None
        return after

    def _forbids(self, undo: Event, placed: int) -> bool:
        """Whether this undo, which releases nothing, comes before a grant that it would forbid."""
        return bool(self.locks.get(str(undo.argument), 0) & self.must & ~placed)

    def _is_idle(self, event: Event, placed: int) -> bool:
        """Whether an event that leaves the lock as it is has no consequences: an undo has, if what
        it undoes has not been placed and may be a grant."""
        return event.kind != UNDO or not self.locks.get(str(event.argument), 0) & ~placed

    def _closes_window(self, now: int, call: int) -> bool:
        """Whether an expiry that could still be placed now cannot be after an event at `call`."""
        return self._window(now) < self._window(call)

    def _window(self, now: int) -> int:
        """The next expiry of the trace, by its rank: all that matters of the time so far."""
        return bisect_left(self.windows, now)

    def _successors(self, placed: int, lock: Lock, now: int, path: Path | None) -> list[Node]:
        """Where the events that can be next lead to, the best last."""
        at = (placed & self.grants).bit_count()
        if at < len(self.tokens) and self.tokens[at] <= lock.highest:
            return []  # S2: the next grant has come too late
        found, bound = self._candidates(placed)
        for number in range(self.must_count, len(self.events)):
            if not placed >> number & 1 and self.calls[number] <= bound:
                found.append(number)
        found.sort(key=lambda number: (self.returns[number], self.calls[number]))
        earliest: dict[object, int] = {}
        successors: list[Node] = []
        for number in found:
            event = self.events[number]
            after = self._step(placed, lock, event)
            if after is None or (
                number >= self.must_count and not self._is_of_use(event, lock, after)
            ):
                continue
            then = self._instant(event, lock, now)
            if then > min(bound, self.returns[number]):
                continue
            effect = self._effect(event, now)
            if effect is not None:
                if earliest.get(effect, NEVER) <= then:
                    continue  # S4
                earliest[effect] = then
            now_placed = placed | 1 << number
            now_placed |= self._gone(event, now_placed, lock, after)
            successors.append((now_placed, after, then, (event, path)))
        successors.reverse()
        return successors

    def _is_of_use(self, event: Event, lock: Lock, after: Lock) -> bool:
        """Whether placing this optional event makes any difference for the better."""
        return after != lock or event.kind == UNDO

    def _instant(self, event: Event, lock: Lock, now: int) -> int:
        """The earliest instant that this event can have after `now`; NEVER if there is none."""
        then = max(now, self.calls[event.number])
        if event.kind == EXPIRE:
            token = _token_ended(lock, event)
            then = max(then, self.lease_ends.get(lock.holder, NEVER))
            then = max(then, self.renewed_until.get(token, then))
        return then

    def _effect(self, event: Event, now: int) -> object:
        """Events of which this is the same, and not None, are interchangeable (S4)."""
        if event.kind == UNLOCK and event.answer != 0:
            return UNLOCK
        if event.kind == LOCK and event.answer is None:
            undone = event.reqid if event.reqid in self.undoes else ""
            lease_end = self.lease_ends.get(event.number, NEVER)
            return (LOCK, undone, lease_end if lease_end > now else 0)
        return None

    def _gone(self, event: Event, placed: int, lock: Lock, after: Lock) -> int:
        """The events that cannot happen any more after this one (S5)."""
        gone = 0
        if event.kind == UNDO:
            gone |= self.locks.get(str(event.argument), 0) & ~self.must
        if after.holder == FREE and lock.holder != FREE:
            gone |= self.ends_token.get(_token_ended(lock, event), 0)
            gone |= self.ends_token.get(-lock.holder - 1, 0)
            reqid = self.events[lock.holder].reqid
            if not self.locks[reqid] & ~placed:
                gone |= self.undoes.get(reqid, 0) & ~self.must
        return gone

    def _explain(self, placed: int, lock: Lock, now: int, path: Path | None) -> str:
        """What was placed last in the attempt that came furthest, and what it was stuck with."""
        before: list[str] = []
        while path is not None and len(before) < 8:
            before.append(f"    {path[0].text}")
            path = path[1]
        stuck = [f"    {self.events[number].text}" for number in self._candidates(placed)[0]]
        return "\n".join(
            ["it cannot have behaved so (I1). At best it is", f"  {lock} after"]
            + (before[::-1] or ["    nothing"])
            + ["  and then none of these leads on:", *stuck]
        )


def _token_ended(lock: Lock, event: Event) -> int:
    """The token of the grant that this event ends, if that shows it; else that of the holder."""
    if event.kind in (UNLOCK_TOKEN, EXPIRE) and int(event.argument) > 0:
        return int(event.argument)
    return lock.token


def _is_answered(op: Operation) -> bool:
    return op.answer is not None and op.return_us is not None
