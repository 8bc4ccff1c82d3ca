"""Can each versioned register have behaved as its clients saw it? (I1)

A register has a value and a version, 0 while there is none. Whatever is asked of it fits one state,
and most of it one version:

    operation, answer            fits                       then
    get -> value, n              version n, that value      the same
    get -> no key                version 0                  the same
    put v -> v + 1               version v                  version v + 1, its value
    put v -> conflict, has n     version n, which is not v  the same
    put v -> no key              version 0, and v is not 0  the same
    put -> stale token           any                        the same
    delete -> 1                  any but 0                  version 0
    delete -> 0                  version 0                  the same

One of unknown outcome may have changed the register at any time after its call, or never. A put
that is answered `maybe` is two things: a copy of unknown outcome, and one with that answer.

The search is that of linearizable.py (Wing and Gong, with the memory of Lowe), on events that are
so much simpler that little is needed to keep it short:

S1  An event that changes nothing is placed as soon as it fits.
S2  Where nothing is ever deleted, versions only rise. So a state is of no use if anything that must
    be placed fits a lower version only; nor is a put of unknown outcome placed where one that is
    known to have been done would go.
S3  Of events of unknown outcome with the same effect, one is tried. Values that nobody has seen are
    the same.
S4  Nor is a state tried if one was that differs only in that less of what may happen had happened.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .history import VERIFY, Operation, Undecided

GET = "get"
PUT = "put"
DELETE = "delete"

SHOWN = "shown"  # a value and a version
WRITTEN = "written"  # the new version
CONFLICT = "conflict"  # the current version
NO_KEY = "no key"
STALE = "stale token"
DELETED = "deleted"

STEPS_MAX = 200_000
NEVER = 1 << 62
_ANY = -1  # version: whichever there is, but not 0


class Answer(NamedTuple):
    """What a client was told in the end."""

    outcome: str
    version: int = 0
    value: bytes = b""
    maybe: bool = False  # of a refused put: a copy sent before the refused one may have been done

    def __str__(self) -> str:
        said = self.outcome + (f" {self.version}" if self.version else "")
        return said + (f" {self.value!r}" if self.outcome == SHOWN else "") + " maybe" * self.maybe


class RegisterOperation(NamedTuple):
    """One request as its client saw it; all copies of it are one operation.

    A put that certainly was not done is not recorded, unless it says why.
    """

    client: str
    kind: str
    key: str
    call_us: int  # before the first transmission
    return_us: int | None  # after the answer; None: the outcome is unknown to the end
    answer: Answer | None
    version: int = 0  # of a put: what it replaces
    value: bytes = b""  # of a put
    fence: tuple[str, int] | None = None  # of a put: the name of a lock, and a fencing token

    def __str__(self) -> str:
        end = "..." if self.return_us is None else f"{self.return_us}"
        said = f"{self.kind} {self.key}" + (
            f" {self.value!r} for version {self.version}" if self.kind == PUT else ""
        )
        fence = f" fence {self.fence[0]} {self.fence[1]}" if self.fence else ""
        answer = "?" if self.answer is None else self.answer
        return f"{said}{fence} -> {answer} [{self.call_us} .. {end}] by {self.client}"


class _State(NamedTuple):
    version: int = 0
    value: bytes | None = None  # None: one that nobody has seen

    def __str__(self) -> str:
        return f"{self.value!r}, version {self.version}" if self.version else "no register"


class _Event(NamedTuple):
    fits: int  # the version before it, or _ANY
    shows: bytes | None  # the value before it; None: it does not say
    writes: bytes | None  # the value after it; None: it does not write
    deletes: bool
    call: int
    end: int  # NEVER: it need not happen at all
    text: str

    @property
    def changes(self) -> bool:
        return self.writes is not None or self.deletes


_Path = tuple[_Event, "_Path | None"]
_Node = tuple[int, _State, "_Path | None"]  # events placed, state, way there


def check_registers(
    operations: Iterable[RegisterOperation], *, steps_max: int = STEPS_MAX
) -> list[str]:
    """Problems, one for each register that cannot have behaved so. There was none in the beginning.
    A search that is given up is a problem, too."""
    by_key: dict[str, list[RegisterOperation]] = defaultdict(list)
    for operation in operations:
        by_key[operation.key].append(operation)
    problems = []
    for key, some in sorted(by_key.items()):
        try:
            problem = _absurd(some) or _Search(some).run(steps_max)
        except Undecided as undecided:
            problem = str(undecided)
        if problem:
            problems.append(f"register {key!r}: {problem}")
    return problems


def fences_of(operations: Iterable[RegisterOperation], locks: Iterable[str]) -> list[Operation]:
    """What fenced puts saw of these locks, as operations on them: a put is only done, or looked at
    any further, while the grant is the current one. (That lock and register say so at one and the
    same instant is more than this asks.)"""
    known = frozenset(locks)
    return [
        Operation(
            client=op.client,
            kind=VERIFY,
            name=op.fence[0],
            reqid="",
            call_us=op.call_us,
            return_us=op.return_us,
            answer=int(op.answer.outcome != STALE),
            argument=op.fence[1],
        )
        for op in operations
        if op.fence is not None and op.fence[0] in known and op.answer is not None
    ]


def _absurd(operations: Sequence[RegisterOperation]) -> str:
    """An answer that no register gives, whatever its state; empty if there is none."""
    for op in operations:
        assert op.return_us is None or op.return_us >= op.call_us, f"returns before its call: {op}"
        if op.answer is not None and not _is_sensible(op, op.answer):
            return f"no register answers so (I1): {op}"
    return ""


def _is_sensible(op: RegisterOperation, answer: Answer) -> bool:
    outcome, version = answer.outcome, answer.version
    if outcome == SHOWN:
        return op.kind == GET and version > 0
    if outcome == WRITTEN:
        return op.kind == PUT and version == op.version + 1 and not answer.maybe
    if outcome == CONFLICT:
        return op.kind == PUT and version > 0 and version != op.version
    if outcome == NO_KEY:
        return op.kind != PUT or op.version > 0
    return op.kind == {STALE: PUT, DELETED: DELETE}.get(outcome)


class _Search:
    """The search for one register. A set of events is an integer of bits. First come the events
    that must be placed, in the order of their calls."""

    def __init__(self, operations: Sequence[RegisterOperation]) -> None:
        ordered = sorted(operations, key=lambda op: op.call_us)
        self._seen = {
            (op.answer.version, op.answer.value) for op in ordered if op.answer is not None
        }
        must = [event for op in ordered if (event := self._answered(op)) is not None]
        may = [event for op in ordered if (event := self._unknown(op)) is not None]
        self.events = must + may
        self.must_count = len(must)
        self.must = (1 << len(must)) - 1
        self.memory: dict[object, list[int]] = defaultdict(list)
        self._rises = not any(event.deletes for event in self.events)
        self._tabulate(must)

    def _answered(self, op: RegisterOperation) -> _Event | None:
        """What must have happened, by the answer; None if that says nothing of the register."""
        if op.answer is None or op.return_us is None or op.answer.outcome == STALE:
            return None
        outcome, version, value, _ = op.answer
        event = _Event(version, None, None, False, op.call_us, op.return_us, str(op))
        if outcome == SHOWN:
            return event._replace(shows=value)
        if outcome == WRITTEN:
            return event._replace(fits=op.version, writes=op.value)
        if outcome == DELETED:
            return event._replace(fits=_ANY, deletes=True)
        return event

    def _unknown(self, op: RegisterOperation) -> _Event | None:
        """What may have happened beside that, or instead."""
        if op.kind == GET or (op.answer is not None and not op.answer.maybe):
            return None
        event = _Event(op.version, None, op.value, False, op.call_us, NEVER, str(op))
        if op.kind == DELETE:
            return event._replace(fits=_ANY, writes=None, deletes=True)
        return event

    def _tabulate(self, must: Sequence[_Event]) -> None:
        """For S2: what must be placed below a version, and which versions are known to have been
        written over."""
        fitting: dict[int, int] = defaultdict(int)
        for number, event in enumerate(must):
            fitting[event.fits] |= 1 << number
        self._below: dict[int, int] = {}
        below = 0
        for version in range(max((event.fits for event in self.events), default=0) + 2):
            self._below[version] = below
            below |= fitting.get(version, 0)
        self._known = {event.fits for event in must if event.writes is not None}

    # -- the search ------------------------------------------------------------------------------

    def run(self, steps_max: int) -> str:
        """Empty if there is a solution, else what cannot be. Raises Undecided."""
        stack: list[_Node] = [(0, _State(), None)]
        best, best_count = stack[0], -1
        for _ in range(steps_max):
            if not stack:
                return self._explain(*best)
            placed, state, path = self._settle(*stack.pop())
            if placed & self.must == self.must:
                return ""
            count = (placed & self.must).bit_count()
            if count > best_count:
                best, best_count = (placed, state, path), count
            if not self._is_hopeless(placed, state) and not self._is_tried(placed, state):
                stack.extend(self._successors(placed, state, path))
        raise Undecided(f"could not decide within {steps_max} steps")

    def _settle(self, placed: int, state: _State, path: _Path | None) -> _Node:
        """Place what changes nothing (S1)."""
        more = True
        while more:
            more = False
            for number in self._candidates(placed)[0]:
                event = self.events[number]
                if not event.changes and _fits(event, state):
                    placed |= 1 << number
                    path = (event, path)
                    more = True
        return placed, state, path

    def _candidates(self, placed: int) -> tuple[list[int], int]:
        """The events to be placed that can be next, by their calls, and the first of their returns:
        the instant before which one of them must be."""
        found: list[int] = []
        bound = NEVER
        first = (~placed & (placed + 1)).bit_length() - 1
        for number in range(first, self.must_count):
            if placed >> number & 1:
                continue
            event = self.events[number]
            if event.call > bound:
                break
            found.append(number)
            bound = min(bound, event.end)
        return found, bound

    def _is_hopeless(self, placed: int, state: _State) -> bool:
        """Whether something that must be placed fits a version that will not come again (S2)."""
        return self._rises and bool(self._below[state.version] & ~placed)

    def _is_tried(self, placed: int, state: _State) -> bool:
        """Whether a like state is in the memory, with the same or more that may still happen (S4);
        else it is now. (The value has been shown to whoever sees it: the next event replaces it.)
        """
        spent = placed & ~self.must
        tried = self.memory[placed & self.must, state.version]
        if any(not before & ~spent for before in tried):
            return True
        tried.append(spent)
        return False

    def _successors(self, placed: int, state: _State, path: _Path | None) -> list[_Node]:
        """Where the events that can be next lead to, the best last."""
        found, bound = self._candidates(placed)
        found = [number for number in found if self.events[number].changes]
        found.sort(key=lambda number: self.events[number].end)
        if not (self._rises and state.version in self._known):
            found += self._of_unknown_outcome(placed, bound)
        successors: list[_Node] = []
        tried: set[_State] = set()
        for number in found:
            event = self.events[number]
            after = self._after(event, state)
            if not _fits(event, state) or after in tried:
                continue
            if number >= self.must_count:
                tried.add(after)  # S3
            successors.append((placed | 1 << number, after, (event, path)))
        successors.reverse()
        return successors

    def _of_unknown_outcome(self, placed: int, bound: int) -> list[int]:
        return [
            number
            for number in range(self.must_count, len(self.events))
            if not placed >> number & 1 and self.events[number].call <= bound
        ]

    def _after(self, event: _Event, state: _State) -> _State:
        if event.deletes:
            return _State()
        version, value = state.version + 1, event.writes
        assert value is not None
        return _State(version, value if (version, value) in self._seen else None)

    def _explain(self, placed: int, state: _State, path: _Path | None) -> str:
        """What was placed last in the attempt that came furthest, and what it was stuck with."""
        before: list[str] = []
        while path is not None and len(before) < 8:
            before.append(f"    {path[0].text}")
            path = path[1]
        stuck = [f"    {self.events[number].text}" for number in self._candidates(placed)[0]]
        return "\n".join(
            ["it cannot have behaved so (I1). At best it is", f"  {state} after"]
            + (before[::-1] or ["    nothing"])
            + ["  and then none of these leads on:", *stuck]
        )


def _fits(event: _Event, state: _State) -> bool:
    if event.fits == _ANY:
        return state.version > 0
    return event.fits == state.version and (event.shows is None or event.shows == state.value)
