"""Requests on versioned registers, on the primary: the executor's sister.

The rules of the executor hold here too: a repeat is recognised first (X1), what is refused for a
bound was refused before anything was appended for it (X2), a request sees the expiry of every name
that it asks for exactly (X3), and late turns read their input first (X5). Beyond them:

G1  A name is a lock or a register at a time. A lock is what is held or stood in line for: a put
    that took the name from under those in line would leave them nothing to be granted.
G2  A put without a request id is no entry if it changes nothing, and is remembered nowhere.
G3  A fenced put looks at the lock and at the register in one entry. So nobody can be granted the
    lock between the look and the write, on no node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import limits
from .deadlines import Deadlines
from .register_table import STALE_TOKEN, Register
from .reply_cache import Refused
from .state import DELETE, END_AT, EXPIRE, PUT

if TYPE_CHECKING:
    from .executor import Executor
    from .replica import Replica


class RegisterExecutor:
    """Executes requests on registers, and ends those whose time has come."""

    def __init__(self, replica: Replica, executor: Executor) -> None:
        self._replica = replica
        self._executor = executor
        self.begin()
        self.reset_statistics()

    def begin(self) -> None:
        """A reign begins or ends: nothing is scheduled."""
        self._scheduled: dict[bytes, int] = {}  # the number of the deadline that counts
        self._last_number = 0
        self.deadlines: Deadlines[bytes] = Deadlines(self._is_live, lambda: len(self._scheduled))

    def reset_statistics(self) -> None:
        """Count from 0. Repeats are not counted."""
        self.written_count = 0
        self.conflicts_count = 0  # refused for their version, or since there is no register
        self.stale_count = 0  # refused for their fencing token
        self.expired_count = 0

    # -- requests --------------------------------------------------------------------------------

    def put(
        self, name: bytes, reqid: bytes, value: bytes, version: int, fence: bytes = b""
    ) -> int | Refused:
        """VPUT: the new version, or a refusal as ``register_table`` has them; or why not.

        ``fence`` is b"<fencing token> <lock name>" or empty, ``reqid`` may be empty.
        """
        replica, executor = self._replica, self._executor
        state = replica.state
        if reqid:
            known = state.replies.recall(PUT, name, reqid)
            if known is None:
                known = executor.overtaken(reqid)  # (X1)
            if known is not None:
                return known
        # (Room for every end that it sees: one that could not be appended would be overlooked.)
        room = replica.offset_limit - state.offset
        if room < limits.ENTRIES_PER_REQUEST_MAX or replica.overflows or replica.joiner_lags:
            return Refused.TRY_AGAIN
        if replica.no_grants is Refused.NO_REPLICAS:
            return Refused.NO_REPLICAS
        self._see_expiry(name, fence)
        if name in state.locks.held or executor.queue.length(name):
            return Refused.IS_LOCK
        argument = b"%d %b" % (version, fence) if fence else b"%d" % version
        refusal = state.put_refusal(name, argument)
        if refusal is None and self._is_full(name, value):
            return Refused.REGISTERS_FULL
        if reqid:
            executor.end_earlier_wait(reqid)
        elif refusal is not None:
            return self._count(refusal)  # (G2)
        # (As much as it takes in the link, so that a backup that does not read ends in TRYAGAIN.)
        entry_bytes = len(name) + len(reqid) + len(value) + len(argument)
        executor.put_bytes += entry_bytes + limits.ENTRY_FRAMING_BYTES
        return self._count(replica.append(PUT, name, reqid, value, argument))

    def look(self, name: bytes) -> Register | Refused | None:
        """The register ``name``, as of now; None if there is none, though it may be a lock.
        TRY_AGAIN if that cannot be said, as for a lock."""
        replica = self._replica
        register = replica.state.registers.held.get(name)
        if replica.overflows:
            return Refused.TRY_AGAIN
        if register is None or not self._has_passed(register):
            return register
        if replica.state.offset >= replica.offset_limit:
            return Refused.TRY_AGAIN
        self._expire(name)
        return None

    def end_in(self, name: bytes, duration_ms: int) -> int | Refused:
        """Have a register end after that time, at once if it is not above 0: 1, or 0 if there is
        none; or why not."""
        if duration_ms <= 0:
            return self.delete(name)
        expires_at_ms = self._executor.end_ms(duration_ms)
        answer = self._end_at(name, expires_at_ms)
        if answer == 1:
            self._schedule(name, expires_at_ms)
        return answer

    def end_never(self, name: bytes) -> int | Refused:
        """Have a register stay: 1, or 0 if there is none, or it would have; or why not."""
        register = self.look(name)
        if isinstance(register, Refused):
            return register
        if register is None or not register[3]:
            return 0
        answer = self._end_at(name, 0)
        if answer == 1:
            self._scheduled.pop(name, None)
        return answer

    def delete(self, name: bytes) -> int | Refused:
        """End a register, without a request id: 1, or 0 if there is none; or why not."""
        answer = self._change(DELETE, name)
        if answer == 1:
            self._scheduled.pop(name, None)
        return answer

    def _end_at(self, name: bytes, expires_at_ms: int) -> int | Refused:
        return self._change(END_AT, name, b"%d" % expires_at_ms)

    def _change(self, kind: int, name: bytes, argument: bytes = b"") -> int | Refused:
        replica = self._replica
        if replica.state.offset >= replica.offset_limit or replica.overflows:
            return Refused.TRY_AGAIN
        if self.look(name) is None:
            return 0
        return replica.append(kind, name, b"", b"", argument)

    def _see_expiry(self, name: bytes, fence: bytes) -> None:
        """End what has passed, of all that a put asks for (X3)."""
        self.look(name)
        self._executor.look(name)
        if fence:
            self._executor.look(fence.partition(b" ")[2])

    def _is_full(self, name: bytes, value: bytes) -> bool:
        """Whether that value would make the registers larger than they may be."""
        registers = self._replica.state.registers
        register = registers.held.get(name)
        if register is None:
            growth = len(name) + len(value) + limits.REGISTER_OVERHEAD_BYTES
        else:
            growth = len(value) - len(register[1])
        return growth > 0 and registers.size_bytes + growth > limits.REGISTERS_BYTES_MAX

    def _count(self, answer: int) -> int:
        if answer > 0:
            self.written_count += 1
        elif answer == STALE_TOKEN:
            self.stale_count += 1
        else:
            self.conflicts_count += 1
        return answer

    # -- expiry ----------------------------------------------------------------------------------

    def schedule(self, name: bytes) -> None:
        """Take over a register that the last primary's clients gave an end."""
        register = self._replica.state.registers.held.get(name)
        if register is not None and register[3] and name not in self._scheduled:
            self._schedule(name, register[3])

    def _schedule(self, name: bytes, at_ms: int) -> None:
        # Any earlier deadline of that name is dead now: however often it is moved, one counts.
        self._last_number += 1
        self._scheduled[name] = self._last_number
        self.deadlines.add(at_ms, self._last_number, name)

    def end_next(self, horizon_ms: int) -> bool:
        """End one that is due; whether there may be more."""
        due = self.deadlines.pop_due(horizon_ms)
        if due is None:
            return False
        number, name = due
        if self._is_live(number, name):
            self._expire(name)
        return True

    def _expire(self, name: bytes) -> None:
        self._replica.append(EXPIRE, name, b"")
        self._scheduled.pop(name, None)  # (taken over, it may not be scheduled yet)
        self.expired_count += 1

    def _has_passed(self, register: Register) -> bool:
        return self._executor.has_passed(register[3])

    def _is_live(self, number: int, name: bytes) -> bool:
        return self._scheduled.get(name) == number
