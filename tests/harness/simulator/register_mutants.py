"""Deliberate bugs of versioned registers, each of which the simulator has to catch."""

from __future__ import annotations

from typing import Any

from holdfast.compat import attempts
from holdfast.server.core import snapshot
from holdfast.server.core.register_executor import RegisterExecutor
from holdfast.server.core.register_table import NO_KEY, STALE_TOKEN, RegisterTable
from holdfast.server.core.reply_cache import ReplyCache
from holdfast.server.core.state import PUT, State

from .links import Door
from .mutant import Wrap, mutant
from .node import Process
from .requests import Requests

REQID_AT = 4  # in the words of a put

# -- what a put looks at -------------------------------------------------------------------------


def _any_version(original: Any) -> Any:
    def refusal(self: RegisterTable, name: bytes, version: int) -> int | None:
        return NO_KEY if version and name not in self.held else None

    return refusal


def _unfenced(original: Any) -> Any:
    return lambda self, name, argument: original(self, name, argument.partition(b" ")[0])


def _fenced_first(original: Any) -> Any:
    """VERIFY and then, a moment later, VPUT, made into one command by somebody in a hurry."""

    def put(self: Requests, door: Door, words: tuple[bytes, ...]) -> None:
        at = words.index(b"FENCE") if b"FENCE" in words else len(words)
        state = self._replica.state
        is_repeat = at == REQID_AT + 1 and state.replies.recall(PUT, words[1], words[REQID_AT])
        if at == len(words) or is_repeat:
            original(self, door, words[:at])
        elif state.locks.is_current(words[at + 1], int(words[at + 2])):
            self._process.after_us(200_000, self.execute, door, (words[:at], 1))
        else:
            self._answer(door, "vput", words[1], b"", STALE_TOKEN, "STALETOKEN")

    return put


# -- what becomes of registers -------------------------------------------------------------------


def _emptied(original: Any) -> Any:
    def delete(self: RegisterTable, name: bytes) -> int:
        register = self.held.get(name)
        if register is None:
            return 0
        self.end_at(name, 0)
        return int(self.write(name, 0, b"0", register[2]) > 0)

    return delete


def _by_own_clock(original: Any) -> Any:
    return lambda self, register: 0 < register[3] <= self._replica._now_ms


def _unchecked(original: Any) -> Any:
    return lambda self, name, now_ms: self.delete(name)


def _ended_here_only(original: Any) -> Any:
    def end_at(self: RegisterExecutor, name: bytes, expires_at_ms: int) -> int:
        return self._replica.state.registers.end_at(name, expires_at_ms)

    return end_at


def _half_as_long(original: Any) -> Any:
    return lambda self, name, duration_ms: original(self, name, duration_ms // 2)


def _without_registers(original: Any) -> Any:
    def load(state: State, fields: list[bytes]) -> int:
        items = [fields[start : start + 7] for start in range(0, len(fields), 7)]
        original(state, [field for item in items if item[0] != b"V" for field in item])
        return len(items)

    return load


# -- at most once --------------------------------------------------------------------------------


def _forgets(which: Any) -> Wrap:
    def wrap(original: Any) -> Any:
        def remember(
            self: ReplyCache, command: int, name: bytes, reqid: bytes, answer: int, now_ms: int
        ) -> None:
            if command != PUT or not which(answer):
                original(self, command, name, reqid, answer, now_ms)

        return remember

    return wrap


def _reads_at_once(original: Any) -> Any:
    def say(self: Process, said: Any, *, at_once: bool) -> None:
        original(self, said, at_once=at_once or said[1].command == "vget")

    return say


def _never_in_doubt(original: Any) -> Any:
    def answered(self: attempts.Call, value: Any) -> attempts.Finish:
        return attempts.Finish(attempts.Verdict.ANSWERED, self.tries, value=value, node=self._node)

    return answered


def add() -> None:
    """All of them."""
    mutant("a put does not look at the version", (RegisterTable, "refusal", _any_version))
    mutant("a put does not look at its fence", (State, "put_refusal", _unfenced))
    mutant(
        "fence and put are two steps",
        (Requests, "_vput", _fenced_first),
        think_ms=200,
        locks=2,
        registers_every_ms=50,
    )
    mutant("a deleted register keeps its version", (RegisterTable, "delete", _emptied))
    mutant(
        "a register ends by the clock of its node",
        (RegisterExecutor, "_has_passed", _by_own_clock),
        (RegisterTable, "expire", _unchecked),
    )
    mutant("a register ends in half the time", (RegisterExecutor, "end_in", _half_as_long))
    mutant(
        "the end of a register is not replicated", (RegisterExecutor, "_end_at", _ended_here_only)
    )
    mutant(
        "a promoted node does not end the registers that it finds",
        (RegisterExecutor, "schedule", lambda _: lambda self, name: None),
    )
    mutant("a snapshot leaves out registers", (snapshot, "load", _without_registers))
    mutant(
        "a snapshot shows what a register has become",
        (RegisterTable, "_save", lambda _: lambda self, name, register: None),
        small_limits=True,
        registers_every_ms=20,
        clients=6,
        think_ms=1_600,
        fault_every_ms=400,
    )
    mutant("puts are not remembered", (ReplyCache, "remember", _forgets(lambda answer: True)))
    mutant(
        "refused puts are not remembered",
        (ReplyCache, "remember", _forgets(lambda answer: answer <= 0)),
        late_copy_percent=60,
        opaque_percent=100,
        registers_every_ms=500,
    )
    mutant("registers are read before the ack", (Process, "say", _reads_at_once))
    mutant(
        "Clerk takes a refusal of a put for its answer",
        (attempts.Call, "_answered", _never_in_doubt),
        registers_every_ms=200,
        fault_every_ms=600,
    )
