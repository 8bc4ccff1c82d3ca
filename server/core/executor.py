"""The executor: requests on the primary, at most once, with leases that end and waiters in line.

A request comes in here, is looked up in the reply cache, and becomes entries (``Replica.append``);
its answer goes back. What is the primary's alone lives here, outside state and digest: who stands
in line, and a schedule of the leases. It is begun anew with every reign.

Rules
-----
X1  (I4) A repeat is recognised before anything else is decided about a request; a repeat of one
    that waits joins that wait. A client's later number ends the wait of an earlier one; a lower
    number that was not executed before a later one began to wait is refused, as if that were done.
X2  (I11) What is refused with TRYAGAIN, NOREPLICAS or for a bound was refused before anything was
    appended for it.
X3  (I8) A request on a name sees that name's expiry exactly: a lease that has passed is ended by an
    entry before the request is looked at. A lease begins when it is granted, not before: at that
    instant the clock is read, not at the beginning of the turn.
X4  (I9) Whatever ends a grant (a release, a deletion, an expiry) hands the name to the first in
    line, in the same turn, by an entry of its own. One release wakes one waiter.
X5  Nothing has passed before the input was read that had arrived by then (below). A renewal is
    honoured until an entry has ended its grant: until then nobody else can have been granted it.

Late turns
----------
A turn has one time. Usually a lease whose end is not after it has passed. But a process that was
stopped, or busy, wakes late::

    0 ms      a holder is granted a lease of 100 ms
    50 ms     this process is stopped
    80 ms     the holder's RENEW arrives in the socket
    5000 ms   the process goes on: first thing in its turn, the lease has passed

So time is judged by a *horizon*. When something has been overdue for more than a few milliseconds
at the beginning of a turn, the horizon stays where it was until the shell has read all input that
was there, or has tried to for long enough; nothing expires, and no wait ends, before that. Leases
that are granted or renewed meanwhile begin now. A horizon that lags makes leases longer, never
shorter.

Pacing
------
What is due without being asked is worked off in bounded steps (``work_off``), so that a million
leases that end in the same second stall nobody. Leases that somebody waits for come first, then
waits, then all other leases. One step at a time is under way to the backup: what clients ask is
answered behind it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

from . import limits
from .deadlines import Deadlines
from .lock_table import Grant
from .register_executor import RegisterExecutor
from .reply_cache import AT, Refused, split_reqid
from .state import DELETE, EXPIRE, LOCK, LOCK_WITH, REFUSE, RENEW, UNDO, UNLOCK
from .wait_queue import Ticket, Waiter, WaitQueue

if TYPE_CHECKING:
    from .replica import Replica


Answered = tuple[list[Ticket], int]
"""The connections that waited, and what they are to be told."""


class Executor:
    """Executes requests on the primary."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.queue = WaitQueue()
        self._lines = self.queue.lines  # empty, as a rule: asked for with every request
        self.answered: list[Answered] = []  # waits that ended in this turn
        self._leases: Deadlines[bytes] = Deadlines(self._is_live, self._lease_count)
        # Those that somebody waits for, once more: they come first.
        self._awaited: Deadlines[bytes] = Deadlines(self._is_awaited, self._line_count)
        self._unscheduled: deque[bytes] = deque()  # names taken over at a promotion
        self._freed: dict[bytes, None] = {}  # lines that may not be served yet, in order
        self._horizon_ms = 0  # state time
        self._late_until_ms = 0  # how long input is read first, at most; 0: the turn is on time
        self._step_end = 0  # the offset behind what was done last without being asked
        self.registers = RegisterExecutor(replica, self)
        self.put_bytes = 0  # of the puts of this turn, as entries
        self.reset_statistics()

    def reset_statistics(self) -> None:
        """Count from 0. Repeats are not counted."""
        self.granted_count = 0
        self.refused_count = 0
        self.timeouts_count = 0  # waits that ran out, among the refused
        self.expired_count = 0
        self.revoked_count = 0  # released by DEL, without the holder's doing
        self.registers.reset_statistics()

    # -- requests --------------------------------------------------------------------------------

    def lock(
        self,
        name: bytes,
        reqid: bytes,
        ticket: Ticket,
        owner: bytes = b"",
        lease_ms: int = 0,
        wait_ms: int = 0,
    ) -> int | Refused | None:
        """LOCK: the fencing token, 0, or why not. None: ``ticket`` stands in line, and its answer
        will be among ``answered``."""
        replica = self._replica
        state = replica.state
        waiter = self.queue.find(name, reqid) if self._lines else None
        if waiter is not None:
            self.queue.attend(waiter, ticket)
            if name not in state.locks.held:  # all in line were gone, and here is one again
                self._serve(name)
            return None
        known = state.replies.recall(LOCK, name, reqid)
        if known is not None:
            return known
        if self._lines:
            refused = self.overtaken(reqid)
            if refused is not None:
                return refused
        if state.offset >= replica.offset_limit or replica.overflows:
            return Refused.TRY_AGAIN
        if name in state.registers.held and self.registers.look(name) is not None:
            return Refused.IS_REGISTER
        if replica.no_grants is not None:
            return replica.no_grants
        if wait_ms and self.queue.is_full(name) and name in state.locks.held:
            return Refused.WAITERS_FULL
        if self._lines:
            self.end_earlier_wait(reqid)
            if name in self._freed and name not in state.locks.held:
                self._serve(name)  # those in line come before a newcomer
        grant = state.locks.held.get(name)
        if grant is not None:
            if self.has_passed(grant[4]):
                self._expire(name)
                grant = state.locks.held.get(name)
            if grant is not None and wait_ms:
                self._stand_in_line(grant, name, reqid, ticket, owner, lease_ms, wait_ms)
                return None
        if lease_ms:
            token = self._grant(name, reqid, owner, lease_ms)
        elif owner:
            token = replica.append(LOCK_WITH, name, reqid, owner)
        else:
            token = replica.append(LOCK, name, reqid)
        if token:
            self.granted_count += 1
        else:
            self.refused_count += 1
        return token

    def unlock(self, kind: int, name: bytes, reqid: bytes, argument: bytes = b"") -> int | Refused:
        """UNLOCK, and its kinds with an option (UNLOCK_GRANT, UNDO): 1 or 0, or why not."""
        replica = self._replica
        state = replica.state
        known = state.replies.recall(UNLOCK, name, reqid)
        if known is not None:
            return known
        if self._lines:
            refused = self.overtaken(reqid)
            if refused is not None:
                return refused
        if state.offset >= replica.offset_limit or replica.overflows:
            return Refused.TRY_AGAIN
        # (To undo an earlier request is to bind its answer, whatever the name has become.)
        if name in state.registers.held and kind != UNDO and self.registers.look(name) is not None:
            return Refused.IS_REGISTER
        if self._lines:
            self.end_earlier_wait(reqid)
            undone = self.queue.find(name, argument) if kind == UNDO else None
            if undone is not None:
                self._refuse(undone)
        grant = state.locks.held.get(name)
        expired = grant is not None and self.has_passed(grant[4])
        if expired:
            self._end_lease(name)
        answer = replica.append(kind, name, reqid, b"", argument)
        # Who stands in line comes behind the release: of an expired lock it releases nothing, and
        # least of all the next holder's.
        if (answer or expired) and self._lines:
            self._serve(name)
        return answer

    def renew(self, name: bytes, fencing_token: int, lease_ms: int) -> int | Refused:
        """RENEW: 1, 0 if that grant has ended, or why not. What changes nothing is no entry."""
        replica = self._replica
        if replica.overflows:
            return Refused.TRY_AGAIN
        grant = replica.state.locks.held.get(name)
        if grant is not None and 0 < grant[4] <= self._horizon_ms - limits.LATE_MS:
            # (Up to then the renewal may have been there in time: X5.)
            seen = self.look(name)
            return seen if isinstance(seen, Refused) else 0
        if grant is None:
            seen = self.look(name)
            return seen if isinstance(seen, Refused) else 0
        if grant[0] != fencing_token:
            return 0
        expires_at_ms = self.end_ms(lease_ms)
        if 0 < grant[4] < expires_at_ms:
            if replica.state.offset >= replica.offset_limit:
                return Refused.TRY_AGAIN
            # (Its place in the schedule is moved when it comes up.)
            replica.append(RENEW, name, b"", b"%d" % fencing_token, b"%d" % expires_at_ms)
        return 1

    def delete(self, name: bytes) -> int | Refused:
        """End the lock or register ``name``, whoever holds it, without a request id: 1, 0, or why
        not."""
        replica = self._replica
        if name in replica.state.registers.held:
            return self.registers.delete(name)
        if replica.state.offset >= replica.offset_limit or replica.overflows:
            return Refused.TRY_AGAIN
        grant = replica.state.locks.held.get(name)
        if grant is None:
            return 0
        answer = 0
        if self.has_passed(grant[4]):
            self._end_lease(name)
        else:
            answer = replica.append(DELETE, name, b"")
            self.revoked_count += 1
        self._serve(name)
        return answer

    def look(self, name: bytes) -> Grant | Refused | None:
        """The grant of ``name``, as of now; None if it is free. IS_REGISTER if it is one; TRY_AGAIN
        if that cannot be said, since a lease has passed and no entry may be appended."""
        replica = self._replica
        if replica.overflows:
            return Refused.TRY_AGAIN
        held = replica.state.locks.held
        grant = held.get(name)
        if grant is None:
            register = self.registers.look(name)
            return Refused.IS_REGISTER if isinstance(register, tuple) else register
        if not self.has_passed(grant[4]):
            return grant
        if replica.state.offset >= replica.offset_limit:
            return Refused.TRY_AGAIN
        self._expire(name)
        return held.get(name)

    def refuses_entries(self, requests: int) -> Refused | None:
        """Why so many requests would not be executed now; None if they will."""
        replica = self._replica
        entries = requests * limits.ENTRIES_PER_REQUEST_MAX
        if replica.state.offset + entries >= replica.offset_limit or replica.overflows:
            return Refused.TRY_AGAIN
        return None

    def hang_up(self, ticket: Ticket) -> None:
        """A connection is gone: it waits for nothing any more."""
        self.queue.hang_up(ticket, self._replica.state_time_ms())

    # -- waiting ---------------------------------------------------------------------------------

    def overtaken(self, reqid: bytes) -> Refused | None:
        """Whether a client's request that waits rules this one out (X1)."""
        waiter, sequence = self._waiting_request_of(reqid)
        if waiter is None or waiter.sequence < sequence:
            return None
        return Refused.REUSED if waiter.sequence == sequence else Refused.REQUEST_GONE

    def end_earlier_wait(self, reqid: bytes) -> None:
        """A client's higher number is executed: its earlier request will never be."""
        waiter, _ = self._waiting_request_of(reqid)
        if waiter is not None:
            self._refuse(waiter)

    def _waiting_request_of(self, reqid: bytes) -> tuple[Waiter | None, int]:
        identity = split_reqid(reqid) if reqid[0] == AT else None
        return (None, 0) if identity is None else (self.queue.of_client(identity[0]), identity[1])

    def _stand_in_line(
        self,
        grant: Grant,
        name: bytes,
        reqid: bytes,
        ticket: Ticket,
        owner: bytes,
        lease_ms: int,
        wait_ms: int,
    ) -> None:
        if name not in self._lines and grant[4]:
            self._awaited.add(grant[4], grant[0], name)
        now_ms = self._replica.real_time_ms()
        waiter = Waiter(name, reqid, owner, lease_ms, now_ms, self.end_ms(wait_ms))
        self.queue.join(waiter, ticket)

    def _refuse(self, waiter: Waiter) -> None:
        """A wait ends without a grant, before its time."""
        self.queue.take(waiter)
        self._answer_refused(waiter)

    def _answer_refused(self, waiter: Waiter) -> None:
        answer = self._replica.append(REFUSE, waiter.name, waiter.reqid)
        self.refused_count += 1
        self.answered.append((waiter.tickets, answer))

    def _serve(self, name: bytes) -> None:
        """``name`` has become free: grant it to the first in line (X4)."""
        if name not in self._lines:
            return
        if not self._may_serve():
            self._freed[name] = None
            return
        self._freed.pop(name, None)
        waiter = self.queue.take_first(name)
        if waiter is None:
            return  # all of them gone
        token = self._grant(name, waiter.reqid, waiter.owner, waiter.lease_ms)
        assert token, f"{name!r} was free (I1)"
        self.granted_count += 1
        self.answered.append((waiter.tickets, token))

    def _may_serve(self) -> bool:
        # (Room in the stream there is: the door of each request leaves some, ``work_off`` too.)
        return self._replica.no_grants is not Refused.NO_REPLICAS

    def _serve_freed(self) -> None:
        """Serve lines that could not be served when their names became free."""
        for name in list(islice(self._freed, limits.DUE_PER_TURN)):
            if not self._may_serve():
                return
            del self._freed[name]
            if name not in self._replica.state.locks.held:
                self._serve(name)

    # -- leases ----------------------------------------------------------------------------------

    def _grant(self, name: bytes, reqid: bytes, owner: bytes, lease_ms: int) -> int:
        if not lease_ms:
            return self._replica.append(LOCK_WITH, name, reqid, owner)
        expires_at_ms = self.end_ms(lease_ms)
        token = self._replica.append(LOCK_WITH, name, reqid, owner, b"%d" % expires_at_ms)
        if token:
            self._leases.add(expires_at_ms, token, name)
            if name in self._lines:
                self._awaited.add(expires_at_ms, token, name)
        return token

    def has_passed(self, expires_at_ms: int) -> bool:
        """Whether the end of a lease or a register has come; 0 never does."""
        return 0 < expires_at_ms <= self._horizon_ms

    def end_ms(self, duration_ms: int) -> int:
        """When a lease or a wait that begins now ends. Clocks are read in whole milliseconds,
        rounded down: the one more sees to it that it never ends early."""
        return self._replica.real_time_ms() + 1 + duration_ms

    def _expire(self, name: bytes) -> None:
        self._end_lease(name)
        if self._lines:
            self._serve(name)

    def _end_lease(self, name: bytes) -> None:
        self._replica.append(EXPIRE, name, b"")
        self.expired_count += 1

    def _is_live(self, fencing_token: int, name: bytes) -> bool:
        return self._replica.state.locks.is_current(name, fencing_token)

    def _is_awaited(self, fencing_token: int, name: bytes) -> bool:
        return name in self._lines and self._is_live(fencing_token, name)

    def _line_count(self) -> int:
        return len(self._lines)

    def _lease_count(self) -> int:
        return self._replica.state.locks.leases

    def remaining_ms(self, expires_at_ms: int) -> int:
        """What is left until the end of a lease or a register; -1 if it has none."""
        if not expires_at_ms:
            return -1
        return max(expires_at_ms - 1 - self._replica.real_time_ms(), 0)

    # -- turns -----------------------------------------------------------------------------------

    def begin_turn(self) -> None:
        """A turn begins: is it on time?"""
        self.put_bytes = 0
        time_ms = self._replica.entry_time_ms()
        scheduled = self._lines or self._leases or self.registers.deadlines
        due_ms = self._due_ms() if scheduled else None
        # What was due at the horizon has passed already; it only has not been worked off.
        late_ms = 0 if due_ms is None else time_ms - max(due_ms, self._horizon_ms)
        if late_ms <= limits.LATE_MS:
            self._horizon_ms = time_ms
            self._late_until_ms = 0
        elif not self._late_until_ms:
            self._late_until_ms = time_ms + min(late_ms, limits.LATE_INPUT_MS)

    def work_off(self, input_is_read: Callable[[], bool]) -> int | None:
        """At the end of a turn, do what is due; for how many milliseconds nothing will be. None:
        for ever. ``input_is_read``: whether all that had arrived when a late turn began has been
        looked at; only then it is asked."""
        replica = self._replica
        time_ms = replica.entry_time_ms()
        if not self._late_until_ms or time_ms >= self._late_until_ms or input_is_read():
            self._horizon_ms = time_ms
            self._late_until_ms = 0
        if not (self._leases or self._lines or self._unscheduled or self.registers.deadlines):
            return None
        if not replica.has_acked(self._step_end):
            return limits.STEP_UNDER_WAY_MS  # (Its ack makes a turn of its own.)
        offset = replica.state.offset
        if self._freed:
            self._serve_freed()
        for _ in range(limits.DUE_PER_TURN):
            if not self._do_next():
                break
        if self._unscheduled:
            self._schedule_more()
        if replica.state.offset != offset:
            self._step_end = replica.state.offset
        if self._unscheduled or (self._freed and self._may_serve()):
            return 0
        due_ms = self._due_ms()
        return None if due_ms is None else max(due_ms - replica.real_time_ms(), 0)

    def _do_next(self) -> bool:
        """Do one thing that is due; whether there may be more."""
        return (
            self._end_next(self._awaited)
            or self._end_next_wait()
            or self._end_next(self._leases)
            or self.registers.end_next(self._horizon_ms)
        )

    def _end_next(self, leases: Deadlines[bytes]) -> bool:
        due = leases.pop_due(self._horizon_ms)
        if due is None:
            return False
        fencing_token, name = due
        grant = self._replica.state.locks.held.get(name)
        if grant is not None and grant[0] == fencing_token:
            if self.has_passed(grant[4]):
                self._expire(name)
            else:
                leases.add(grant[4], fencing_token, name)  # renewed meanwhile
        return True

    def _end_next_wait(self) -> bool:
        is_due, waiter = self.queue.pop_due(self._horizon_ms)
        # (One whose grace period is over may still come back: nothing is recorded.)
        if waiter is not None and waiter.deadline_ms <= self._horizon_ms:
            self._answer_refused(waiter)
            self.timeouts_count += 1
        return is_due

    def _due_ms(self) -> int | None:
        due_ms = self._leases.first_ms
        others = self._awaited.first_ms, self.queue.first_due_ms, self.registers.deadlines.first_ms
        for other_ms in others:
            if other_ms is not None and (due_ms is None or other_ms < due_ms):
                due_ms = other_ms
        return due_ms

    # -- reigns ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """This node has become the primary."""
        assert not self.queue and not self.answered
        state = self._replica.state
        self._unscheduled = deque([*state.locks.held, *state.registers.held])
        self._horizon_ms = state.time_ms
        self._late_until_ms = 0
        self._step_end = 0

    def end(self) -> None:
        """It no longer is. Nobody in line is answered: their connections are closed (C2)."""
        self.queue = WaitQueue()
        self._lines = self.queue.lines
        self.answered.clear()
        self._leases = Deadlines(self._is_live, self._lease_count)
        self._awaited = Deadlines(self._is_awaited, self._line_count)
        self._unscheduled.clear()
        self._freed.clear()
        self.put_bytes = 0
        self.registers.begin()

    def _schedule_more(self) -> None:
        """Take over some more of the leases that the last primary gave."""
        held = self._replica.state.locks.held
        for _ in range(min(limits.DUE_PER_TURN, len(self._unscheduled))):
            name = self._unscheduled.popleft()
            grant = held.get(name)
            if grant is None:
                self.registers.schedule(name)
            elif grant[4]:
                self._leases.add(grant[4], grant[0], name)
