"""Deliberate bugs, each of which the simulator has to catch: else it does not test what it claims.

Each is put in from here, by replacing a method while it is tried; the product has no switches. Most
sit in the core or the client's logic. A few that the core cannot have, since they are the shell's
part (which replies may leave at once, what identity a process starts under), sit in the simulated
shell. Those of versioned registers are in ``register_mutants.py``, more of those of views and of
what a node keeps in ``view_mutants.py``.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from typing import Any

from holdfast.compat import attempts, leases
from holdfast.server.core import inquiry, snapshot
from holdfast.server.core.ballot import Ballot
from holdfast.server.core.executor import Executor
from holdfast.server.core.failover import Answer, NoAnswer, Standing, Step, Verdict
from holdfast.server.core.feed import Feed
from holdfast.server.core.inquiry import Inquiry
from holdfast.server.core.lock_table import LockTable
from holdfast.server.core.pairing import Pairing
from holdfast.server.core.replica import Phase, Replica, Role
from holdfast.server.core.reply_cache import ReplyCache
from holdfast.server.core.sender import Sender
from holdfast.server.core.state import LOCK, State
from holdfast.server.core.view import Cas
from holdfast.server.core.wait_queue import Line, WaitQueue

from . import register_mutants, view_mutants
from .mutant import MUTANTS, Wrap, mutant
from .node import Process
from .options import BOTH, ETCD, FAIL_STOP, STOPPED
from .run import run_seed

SEEDS_MAX = 400

# -- replies and acknowledgements ----------------------------------------------------------------


def _frame_too_low(original: Any) -> Any:
    def hold_back(self: Sender, replies: Any, size_bytes: int) -> None:
        original(self, replies, size_bytes)
        frame, *rest = self.held_back.pop()
        self.held_back.append((frame - 1, *rest))

    return hold_back


def _any_epoch(original: Any) -> Any:
    return lambda self, _, frame, offset: original(self, self.view.epoch, frame, offset)


def _at_once(may: Callable[[Any], bool]) -> Wrap:
    def wrap(original: Any) -> Any:
        def say(self: Process, said: Any, *, at_once: bool) -> None:
            original(self, said, at_once=at_once or may(said[1]))

        return say

    return wrap


def _release_abandoned(original: Any) -> Any:
    def stand_down(self: Pairing, why: str) -> None:
        self.outside.drop = lambda replies, _: self.outside.release(replies)
        try:
            original(self, why)
        finally:
            del self.outside.drop

    return stand_down


mutant("replies wait for one frame too few", (Sender, "hold_back", _frame_too_low))
mutant("acks of any epoch count", (Sender, "on_ack", _any_epoch))
mutant(
    "refusals leave before the ack",
    (Process, "say", _at_once(lambda reply: reply.command == "lock" and reply.answer == 0)),
)
mutant(
    "reads leave before the ack",
    (Process, "say", _at_once(lambda reply: reply.command in ("read", "verify"))),
)
mutant("repeats leave before the ack", (Process, "say", _at_once(lambda reply: reply.repeat)))
mutant("a deposed primary answers what it held back", (Pairing, "stand_down", _release_abandoned))


# -- views ---------------------------------------------------------------------------------------


def _without_register(role: Role) -> Wrap:
    def wrap(original: Any) -> Any:
        def propose_self(self: Ballot) -> None:
            replica = self._replica
            if replica.role is role:
                after = self.last_view() if role is Role.BACKUP else replica.view
                self._inquiry.bypass(after.alone(replica.incarnation), after)
            else:
                original(self)

        return propose_self

    return wrap


def _unanswered_has_won(original: Any) -> Any:
    def on_view(self: Ballot, result: Any, view: Any) -> None:
        replica = self._replica
        if result is Cas.UNDECIDED and replica.role is Role.PRIMARY and replica.blocked:
            self.is_busy = False
            self._inquiry.bypass(replica.view.alone(replica.incarnation), replica.view)
        else:
            original(self, result, view)

    return on_view


def _unanswered_has_lost(original: Any) -> Any:
    def on_view(self: Ballot, result: Any, view: Any) -> None:
        replica = self._replica
        if result is Cas.UNDECIDED and replica.phase is Phase.PROPOSED and self.admission:
            self.admission = None
            replica.phase = Phase.REQUIRED
            self._pairing.lose_link("its admission has failed")
        original(self, result, view)

    return on_view


def _proposed_is_dropped(original: Any) -> Any:
    def on_lost(self: Feed, why: str) -> None:
        if self._replica.phase is Phase.PROPOSED:
            self._replica.phase = Phase.REQUIRED
            self._pairing.inquiry.ballot.admission = None
        original(self, why)

    return on_lost


def _proposed_too_early(original: Any) -> Any:
    def proposal(self: Sender) -> Any:
        if self.phase in (Phase.CATCHING_UP, Phase.REQUIRED) and self.outbound is not None:
            return self.view.joined_by(self.backup)
        return None

    return proposal


def _silence_is_death(original: Any) -> Any:
    def judge(outcome: Any, **facts: Any) -> Any:
        if outcome is NoAnswer.SILENT:
            return Verdict.BYPASS, "it is silent"
        return original(outcome, **facts)

    return judge


def _serving_is_no_answer(original: Any) -> Any:
    def judge(outcome: Any, **facts: Any) -> Any:
        if isinstance(outcome, Answer) and outcome.standing is Standing.SERVING:
            return Verdict.BYPASS, "it serves, but the link is lost"
        return original(outcome, **facts)

    return judge


def _claims_alone(original: Any) -> Any:
    def begin_or_wait(self: Inquiry, outcome: Any) -> Any:
        if isinstance(outcome, NoAnswer):
            return Step.BEGIN, "nobody is there"
        return original(self, outcome)

    return begin_or_wait


def _same_after_restart(original: Any) -> Any:
    return lambda self: f"node{self.host.name}"


mutant(
    "a primary goes on alone without the register",
    (Ballot, "propose_self", _without_register(Role.PRIMARY)),
    register=ETCD,
)
mutant(
    "a backup is promoted without the register",
    (Ballot, "propose_self", _without_register(Role.BACKUP)),
    register=ETCD,
)
mutant(
    "a proposal without an answer counts as won",
    (Ballot, "on_view", _unanswered_has_won),
    register=ETCD,
)
mutant(
    "an admission without an answer counts as lost",
    (Ballot, "on_view", _unanswered_has_lost),
    register=ETCD,
)
mutant(
    "a backup lost behind its proposal is dropped",
    (Feed, "on_lost", _proposed_is_dropped),
    register=ETCD,
)
mutant(
    "a backup is proposed before it has everything",
    (Sender, "proposal", _proposed_too_early),
)
mutant(
    "a silent peer is bypassed at once",
    (inquiry, "judge", _silence_is_death),
    register=FAIL_STOP,
)
mutant(
    "a backup takes over from a primary that answers",
    (inquiry, "judge", _serving_is_no_answer),
    register=FAIL_STOP,
)
mutant(
    "an empty node begins when nobody answers",
    (Inquiry, "_begin_or_wait", _claims_alone),
    register=FAIL_STOP,
    fault_every_ms=600,
)
mutant(
    "a node does not notice that it stood still",
    (Replica, "note_stall", lambda _: lambda self: None),
    register=FAIL_STOP,
    total_loss=STOPPED,
)
mutant("a restarted node keeps its identity", (Process, "_first_incarnation", _same_after_restart))


# -- at most once --------------------------------------------------------------------------------


def _forget_refusals(original: Any) -> Any:
    def remember(
        self: ReplyCache, command: int, name: bytes, reqid: bytes, answer: int, now_ms: int
    ) -> None:
        if command != LOCK or answer:
            original(self, command, name, reqid, answer, now_ms)

    return remember


def _locks_only(original: Any) -> Any:
    def load(state: Any, fields: list[bytes]) -> int:
        items = [fields[start : start + 7] for start in range(0, len(fields), 7)]
        original(state, [field for item in items if item[0] == b"L" for field in item])
        return len(items)

    return load


def _undo_only_grants(original: Any) -> Any:
    return lambda self, name, undone: self.locks.release_grant_of(name, undone)


mutant(
    "nothing is remembered",
    (ReplyCache, "recall", lambda _: lambda self, command, name, reqid: None),
    (ReplyCache, "remember", lambda _: lambda self, *record: None),
)
mutant("refusals are not remembered", (ReplyCache, "remember", _forget_refusals))
mutant("a snapshot leaves out what was answered", (snapshot, "load", _locks_only))
mutant(
    "an undo does not bind what it did not find",
    (State, "_undo", _undo_only_grants),
    late_copy_percent=60,
    opaque_percent=100,
    fault_every_ms=600,
)


# -- tokens, leases, waiters ---------------------------------------------------------------------


def _no_skip(original: Any) -> Any:
    return lambda self, wall_clock_us: self.offset + 1


def _offsets_from_one(original: Any) -> Any:
    def begin_history(self: Replica, history: str, _: int, *rest: int) -> None:
        original(self, history, 1, *rest)

    return begin_history


def _no_quarantine(original: Any) -> Any:
    def begin_history(
        self: Replica, history: str, wall_us: int, after: int = 0, _: int = 0
    ) -> None:
        original(self, history, wall_us, after, 0)

    return begin_history


def _time_runs_ahead(original: Any) -> Any:
    return lambda self, time_ms, now_ms: original(self, time_ms + 300, now_ms)


def _renewed_here_only(original: Any) -> Any:
    def renew(self: Executor, name: bytes, token: int, lease_ms: int) -> Any:
        grant = self._replica.state.locks.held.get(name)
        if grant is None or grant[0] != token or self.has_passed(grant[4]):
            return original(self, name, token, lease_ms)
        return self._replica.state.locks.renew(name, token, self.end_ms(lease_ms))

    return renew


def _any_token_renews(original: Any) -> Any:
    def renew(self: Executor, name: bytes, token: int, lease_ms: int) -> Any:
        grant = self._replica.state.locks.held.get(name)
        return original(self, name, token if grant is None else grant[0], lease_ms)

    return renew


def _shortens(original: Any) -> Any:
    def renew(self: Executor, name: bytes, token: int, lease_ms: int) -> Any:
        held = self._replica.state.locks.held
        grant = held.get(name)
        if grant is not None and grant[0] == token and grant[4] > 0:
            held[name] = (*grant[:4], min(grant[4], self.end_ms(lease_ms)))
        return original(self, name, token, lease_ms)

    return renew


def _last_come(original: Any) -> Any:
    def take_first(self: WaitQueue, name: bytes) -> Any:
        waiters = [waiter for waiter in self.line(name) if not waiter.gone_at_ms]
        if waiters:
            self.take(waiters[-1])
            return waiters[-1]
        return None

    return take_first


def _anybody_first(original: Any) -> Any:
    return lambda self: next(iter(self.waiters.values()), None)


mutant("a promotion skips no tokens", (State, "next_epoch_offset", _no_skip))
mutant(
    "a new history does not look at the wall clock",
    (Replica, "begin_history", _offsets_from_one),
    total_loss=BOTH,
)
mutant(
    "no quarantine after a total loss",
    (Replica, "begin_history", _no_quarantine),
    total_loss=BOTH,
    think_ms=200,
    locks=2,
    fault_every_ms=10_000,
)
mutant("a promoted node's time runs ahead", (Replica, "set_state_time", _time_runs_ahead))
mutant("renewals are not replicated", (Executor, "renew", _renewed_here_only))
mutant("any fencing token renews", (Executor, "renew", _any_token_renews))
mutant("a renewal may shorten a lease", (Executor, "renew", _shortens), think_ms=200)
mutant(
    "any fencing token releases",
    (LockTable, "release_grant", lambda _: lambda self, name, token: self.release(name)),
)
mutant("last come, first served", (WaitQueue, "take_first", _last_come))
mutant("a waiter that hung up is granted", (Line, "first", _anybody_first))


# -- the client ----------------------------------------------------------------------------------


def _counts_from_answer(original: Any) -> Any:
    def take(self: Any, finish: Any, now_us: int) -> bool:
        must = original(self, finish, now_us)
        if self.grant is not None:
            self.grant = self.grant._replace(sent_us=now_us)
            must = False
        return bool(must)

    return take


mutant(
    "Clerk counts a lease from the answer",
    (leases.Acquisition, "take", _counts_from_answer),
)
mutant(
    "Clerk trusts all of a lease",
    (leases, "trusted_us", lambda _: lambda lease_ms: lease_ms * 1_050),
    clock_ppm=10_000,
)
mutant(
    "Clerk forgets attempts that were lost",
    (attempts.Call, "_remember_lost", lambda _: lambda self, error: None),
)


register_mutants.add()
view_mutants.add()


# -- the hunt ------------------------------------------------------------------------------------


def hunt(name: str, seeds_max: int = SEEDS_MAX) -> tuple[int, str]:
    """The first seed that catches a mutant, and how; -1 if none does."""
    bug = MUTANTS[name]
    with bug.applied():
        for seed in range(seeds_max):
            result = run_seed(bug.options_of(seed))
            if result.problems:
                return seed, result.problems[0]
    return -1, ""


def _hunt_timed(name: str) -> tuple[str, int, str, float]:
    begun_s = time.monotonic()
    seed, how = hunt(name)
    return name, seed, how, time.monotonic() - begun_s


def hunt_all(only: str = "", workers: int = 2) -> int:
    """Print the table of mutants; 1 if one survives."""
    names = [name for name in MUTANTS if only in name]
    survivors = 0
    with multiprocessing.get_context("fork").Pool(workers, maxtasksperchild=1) as pool:
        for name, seed, how, took_s in pool.imap(_hunt_timed, names):
            caught = f"seed {seed}" if seed >= 0 else "SURVIVED"
            survivors += seed < 0
            first_line = how.partition("\n")[0][:90]
            print(f"{name:50} {caught:9} {took_s:6.1f} s  {first_line}", flush=True)
    return 1 if survivors else 0
