"""F8: the loss of everything that was answered, on purpose, and the operator who begins anew.

Two ways: both nodes die at once; or a primary is stopped, the backup takes over, serves and dies,
and the old primary wakes up with a state that is no longer true (rule F4 is about that one). Either
way nobody may answer anything until an operator has said that a new history begins, fencing tokens
go on rising, and no lock is granted before the leases of the lost history are over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.checkers.history import History, Operation
from harness.checkers.registers import RegisterOperation
from holdfast.server.core.replica import Role

from .node import Process
from .options import STOPPED

if TYPE_CHECKING:
    from .run import Run

POLL_US = 50_000
SERVES_US = 600_000  # how long the one that took over serves
SILENCE_US = 1_200_000  # how long it is watched that nobody answers
PATIENCE_US = 9_000_000


class Loss:
    """The loss of everything in one run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._until_us = 0
        self.at_us = 0  # when it happened; 0: it did not

    def begin(self) -> None:
        """As soon as it can be, from now on."""
        run = self._run
        if run.options.total_loss != STOPPED:
            run.faults.lose_all()
            self._has_happened()
            return
        self._until_us = run.scheduler.now_us + PATIENCE_US
        self._stop_primary()

    def _later(self, call: Any, *arguments: Any) -> None:
        """Look again, or give it up."""
        if self._run.scheduler.now_us < self._until_us:
            self._run.scheduler.after(POLL_US, call, *arguments)
        else:
            self._run.faults.are_suspended = False
            for process in arguments:
                process.go_on()

    def _stop_primary(self) -> None:
        run = self._run
        if not run.cluster.is_whole():
            self._later(self._stop_primary)
            return
        run.faults.are_suspended = True
        for process in run.cluster.processes:
            if process is not None and process.replica.role is Role.PRIMARY:
                run.trace.say("----", "stopped for good", process.host)
                process.pause()
                self._lose_other(process)

    def _lose_other(self, stopped: Process) -> None:
        run = self._run
        number = 1 - run.cluster.hosts.index(stopped.host)
        other = run.cluster.alive(number)
        if other is None or other.replica.role is not Role.PRIMARY or not stopped.alive:
            self._later(self._lose_other, stopped)
            return
        run.scheduler.after(SERVES_US, self._kill_other, number, stopped)

    def _kill_other(self, number: int, stopped: Process) -> None:
        run = self._run
        run.trace.count("fault: total loss behind a stopped primary")
        run.cluster.kill(number, silent=False)
        self._has_happened()
        run.scheduler.after(300_000, stopped.go_on)

    def _has_happened(self) -> None:
        run = self._run
        self.at_us = run.scheduler.now_us
        run.faults.are_suspended = False
        run.workload.forget_the_lost()
        run.scheduler.after(SILENCE_US, self._begin_anew)

    def _begin_anew(self) -> None:
        """An operator: whatever was answered meanwhile was answered by nobody."""
        run = self._run
        for reply in run.trace.history.replies:
            if reply.computed_us > self.at_us:
                run.trace.problem(f"I2: answered although everything is lost: {reply}")
                break
        run.trace.say("====", "an operator begins a new history")
        for number in (0, 1):
            run.cluster.kill(number, silent=False)
        run.cluster.begin_anew()


def split(history: History, at_us: int) -> tuple[History, History]:
    """Before and after the loss of everything. What was answered before it was done before it; what
    was not is of unknown outcome before, and after begins at the loss."""
    answers = {
        (each.name, each.reqid): each.answer
        for each in history.replies
        if each.reqid and each.computed_us <= at_us
    }
    before, after = [], []
    for each in history.operations:
        late = each._replace(call_us=max(each.call_us, at_us))
        if each.return_us is not None and each.return_us <= at_us:
            before.append(each)
        elif each.call_us > at_us:
            after.append(each)
        elif not each.reqid:
            pass  # reads and renewals across the loss are left out: they change nothing
        elif each.answer is not None and answers.get((each.name, each.reqid)) == each.answer:
            before.append(each)
            after.append(late._replace(return_us=None, answer=None))  # sent once more, perhaps
        else:
            before.append(each._replace(return_us=None, answer=None))
            after.append(late)
    registers = [list(_registers(history, at_us, early)) for early in (True, False)]

    def only(records: Iterable[Any], early: bool) -> list[Any]:
        return [each for each in records if (each.at_us <= at_us) is early]

    def part(operations: list[Operation], early: bool) -> History:
        return replace(
            history,
            operations=operations,
            registers=registers[not early],
            expiries=only(history.expiries or (), early),
            replies=[each for each in history.replies if (each.computed_us <= at_us) is early],
            promotions=only(history.promotions, early),
            line=history.line if early else [],  # whoever was stopped kept its line
        )

    return part(before, True), part(after, False)


def _registers(history: History, at_us: int, early: bool) -> Iterator[RegisterOperation]:
    """What was asked before, or after. Of what was asked across the loss nothing is claimed: where
    it was done, if it was, is not asked."""
    for op in history.registers:
        is_across = op.call_us <= at_us and (op.return_us is None or op.return_us > at_us)
        if is_across:
            yield op._replace(call_us=op.call_us if early else at_us, return_us=None, answer=None)
        elif (op.call_us <= at_us) is early:
            yield op
