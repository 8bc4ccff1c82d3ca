"""A node that watches itself, for tests/test_turns.py.

    traced_node.py REPORT SABOTAGE serve ...     the rest as on the command line

It runs a real Node in this process. Between taking bytes from a client and having queued the
replies, and while requests that had to wait are executed, every greenlet switch is counted as a
violation; in every turn of the loop the writes to the peer, and to each client, are counted; and of
the turns in which leases ended the longest is found, in CPU time. On SIGTERM the report is written
as JSON to the file REPORT.

SABOTAGE adds a command YIELDING whose handler breaks the rule, so that a test can show that it
would be seen: `switch` switches to another greenlet, `sleep` sleeps with gevent, `none` does
neither.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
import greenlet

from holdfast.server.__main__ import main
from holdfast.server.commands import table
from holdfast.server.connection import Connection
from holdfast.server.core.replica import Phase, Role
from holdfast.server.link import Link
from holdfast.server.node import Node

if TYPE_CHECKING:
    from . import processes

VIOLATIONS_KEPT = 20


class Watch:
    """What was seen."""

    def __init__(self) -> None:
        self.depth = 0  # sections entered and not left
        self.sections = 0
        self.requests = 0
        self.switches = 0
        self.violations: list[str] = []
        self.command = b""
        self.turns = 0
        self.link_writes = 0  # in this turn
        self.turns_by_link_writes: Counter[int] = Counter()
        self.flushed: set[int] = set()
        self.second_flushes = 0
        self.flushes = 0
        self.most_flushes_in_a_turn = 0
        self.turn_began_s = 0.0  # CPU time
        self.expired = 0
        self.expiring_turns = 0
        self.longest_expiring_turn_ms = 0.0

    def on_switch(self, event: str, arguments: tuple[Any, Any]) -> None:
        """greenlet.settrace calls this at every switch, in either direction."""
        self.switches += 1
        if self.depth and len(self.violations) < VIOLATIONS_KEPT:
            self.violations.append(f"{event} in {self.command!r}: {arguments[0]} -> {arguments[1]}")

    def section(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """`method` with every switch inside it a violation."""

        def watched(connection: Connection, *arguments: Any) -> Any:
            self.sections += 1
            self.depth += 1
            try:
                return method(connection, *arguments)
            finally:
                self.depth -= 1

        return watched

    def run(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The same for what executes requests, which are counted."""
        inner = self.section(method)

        def watched(connection: Connection, requests: list[list[bytes]]) -> Any:
            self.requests += len(requests)
            self.command = b" ".join(argv[0] for argv in requests[:8])
            return inner(connection, requests)

        return watched

    def link_write(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Count a write to the peer, once the pair is a pair."""

        def watched(link: Link, data: bytes) -> None:
            if self.is_paired():
                self.link_writes += 1
            method(link, data)

        return watched

    def flush(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Count the writes to each client."""

        def watched(connection: Connection) -> None:
            self.flushes += 1
            if connection.id in self.flushed:
                self.second_flushes += 1
            self.flushed.add(connection.id)
            method(connection)

        return watched

    def begin_turn(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """A turn begins with this."""

        def watched(node: Node) -> None:
            self.turn_began_s = time.thread_time()
            method(node)

        return watched

    def end_turn(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """A turn ends with this."""

        def watched(node: Node) -> None:
            self.node = node
            method(node)
            self.measure(node)
            self.turns += 1
            self.turns_by_link_writes[self.link_writes] += 1
            self.link_writes = 0
            self.most_flushes_in_a_turn = max(self.most_flushes_in_a_turn, len(self.flushed))
            self.flushed.clear()

        return watched

    node: Node | None = None

    def measure(self, node: Node) -> None:
        """Note the time that this turn took, if leases ended in it."""
        expired, self.expired = self.expired, node.replica.executor.expired_count
        if self.expired > expired:
            self.expiring_turns += 1
            spent_ms = (time.thread_time() - self.turn_began_s) * 1000
            self.longest_expiring_turn_ms = max(self.longest_expiring_turn_ms, spent_ms)

    def is_paired(self) -> bool:
        """Whether this node is a member of a pair, and not joining or deciding."""
        if self.node is None:
            return False
        replica = self.node.replica
        if replica.role is Role.PRIMARY:
            return replica.phase is Phase.MEMBER and not replica.blocked
        return replica.role is Role.BACKUP and replica.is_member

    def report(self) -> dict[str, object]:
        """All of it."""
        return {
            "sections": self.sections,
            "requests": self.requests,
            "switches": self.switches,
            "violations": self.violations,
            "turns": self.turns,
            "turns_by_link_writes": dict(self.turns_by_link_writes),
            "flushes": self.flushes,
            "second_flushes": self.second_flushes,
            "most_flushes_in_a_turn": self.most_flushes_in_a_turn,
            "expiring_turns": self.expiring_turns,
            "longest_expiring_turn_ms": self.longest_expiring_turn_ms,
        }


def sabotage(kind: str) -> None:
    """Declare YIELDING."""

    @table.command("yielding", 1, "Breaks the rule, or not", group="server")
    def yielding(connection: Connection, argv: list[bytes]) -> bytes:
        if kind == "switch":
            greenlet.greenlet(lambda: None).switch()
        elif kind == "sleep":
            gevent.sleep(0)
        return b"+OK\r\n"


def run(report: Path, kind: str, arguments: list[str]) -> int:
    """Instrument the server, run it, write the report."""
    watch = Watch()
    sabotage(kind)
    Connection.on_readable = watch.section(Connection.on_readable)  # type: ignore[method-assign]
    Connection.run_pending = watch.section(Connection.run_pending)  # type: ignore[method-assign]
    Connection._run = watch.run(Connection._run)  # type: ignore[method-assign]
    Connection.flush = watch.flush(Connection.flush)  # type: ignore[method-assign]
    Link.write = watch.link_write(Link.write)  # type: ignore[method-assign]
    Node._begin_turn = watch.begin_turn(Node._begin_turn)  # type: ignore[method-assign]
    Node._end_turn = watch.end_turn(Node._end_turn)  # type: ignore[method-assign]
    greenlet.settrace(watch.on_switch)
    try:
        return main(arguments)
    finally:
        greenlet.settrace(None)
        report.write_text(json.dumps(watch.report()))


class Traced:
    """A launcher of traced nodes; `report` is what one saw, once it has ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sabotage = "none"

    def start(self, arguments: Sequence[str], log: Path) -> processes.Process:
        """A new interpreter that runs this file."""
        from .processes import die_with_parent, environment  # (not when it is run as a script)

        with log.open("ab") as stderr:
            return subprocess.Popen(
                [
                    sys.executable,
                    __file__,
                    str(log.with_suffix(".json")),
                    self.sabotage,
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                env=environment(),
                preexec_fn=die_with_parent,
            )

    def report(self, node: processes.Node) -> dict[str, Any]:
        """Stop `node` and read its report."""
        code = node.terminate()
        assert code == 0, f"exit code {code}\n{node.log_tail()}"
        report = json.loads(node.log.with_suffix(".json").read_text())
        assert isinstance(report, dict)
        print(node.name, report)
        return report


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
