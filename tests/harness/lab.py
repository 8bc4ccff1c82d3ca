"""The original lock service's test bench: a primary that can go deaf, a backup, and its clerks.

`dying` in the original: the next connection is served, the reply thrown away, the connection held
open and silent for two seconds, and no new connection accepted. Here a proxy in front of the
primary does that to the next request, and the primary is killed with -9 at the moment in which the
reply shows that the request is on the backup. The two seconds are SILENCE_S: long against
everything else that happens, short against a test run.
"""

from __future__ import annotations

import itertools
import secrets
import threading
import time
from collections.abc import Callable
from typing import Protocol

from holdfast import Clerk

from .processes import FAIL_STOP, Cluster, Node, ViewKind
from .proxy import Proxy
from .wire import Closed, ReplyError, Wire

SILENCE_S = 0.5
DEADLINE_S = 15.0
ASK_ELSEWHERE = ("READONLY", "LOADING", "TRYAGAIN", "NOREPLICAS", "MASTERDOWN")


class LabClerk(Protocol):
    """What the original's tests know of a clerk. One call at a time."""

    def lock(self, name: str) -> bool:
        """Whether it was free, and now is held."""

    def token(self, name: str) -> int:
        """The same, as the fencing token or 0."""

    def unlock(self, name: str) -> bool:
        """Whether it was held, and now is free."""

    def close(self) -> None:
        """Hang up."""


MakeClerk = Callable[[tuple[int, ...]], LabClerk]


class RawClerk:
    """The original's clerk: the primary, on any transport error the backup, same request id.

    `persistent` keeps a connection to each node; otherwise every request dials a new one.
    `sessions` has request ids of the form @client:n, otherwise they are opaque. A node that has not
    answered for `patience_s` is given up, and the other asked.
    """

    def __init__(
        self,
        ports: tuple[int, ...],
        *,
        persistent: bool,
        sessions: bool,
        patience_s: float = DEADLINE_S,
        connect: Callable[[int, float], Wire] = Wire,
    ) -> None:
        self._connect = connect
        self.ports = ports
        self.resent = 0
        self._patience_s = patience_s
        self._persistent = persistent
        self._prefix = f"@{secrets.token_hex(6)}:" if sessions else f"lab-{secrets.token_hex(6)}-"
        self._numbers = itertools.count(1)
        self._wires: dict[int, Wire] = {}

    def lock(self, name: str) -> bool:
        """LOCK"""
        return self.token(name) > 0

    def token(self, name: str) -> int:
        """LOCK: the fencing token or 0."""
        return self.call("LOCK", name)

    def unlock(self, name: str) -> bool:
        """UNLOCK"""
        return self.call("UNLOCK", name) == 1

    def call(self, command: str, name: str) -> int:
        """One request, repeated under its id until it is answered."""
        reqid = f"{self._prefix}{next(self._numbers)}"
        deadline_s = time.monotonic() + DEADLINE_S
        last: object = None
        while time.monotonic() < deadline_s:
            for port in self.ports:
                try:
                    answer = self._ask(port, command, name, reqid)
                    assert isinstance(answer, int), answer
                    return answer
                except ReplyError as error:
                    if error.code not in ASK_ELSEWHERE:
                        raise
                    last = error
                except (OSError, Closed) as error:
                    self._drop(port)
                    last = error
                self.resent += 1
            time.sleep(0.001)
        raise AssertionError(f"{command} {name} {reqid}: no answer in {DEADLINE_S} s: {last!r}")

    def _ask(self, port: int, command: str, name: str, reqid: str) -> object:
        if not self._persistent:
            with self._connect(port, self._patience_s) as wire:
                return wire.ask(command, name, reqid)
        if port not in self._wires:
            self._wires[port] = self._connect(port, self._patience_s)
        return self._wires[port].ask(command, name, reqid)

    def _drop(self, port: int) -> None:
        wire = self._wires.pop(port, None)
        if wire is not None:
            wire.close()

    def close(self) -> None:
        """Hang up."""
        for port in list(self._wires):
            self._drop(port)


class RealClerk:
    """Clerk under the names of the original's tests."""

    def __init__(self, ports: tuple[int, ...], read_timeout_ms: int = 5_000) -> None:
        urls = (f"redis://127.0.0.1:{port}" for port in ports)
        self._clerk = Clerk(
            *urls, deadline_ms=int(DEADLINE_S * 1000), read_timeout_ms=read_timeout_ms
        )

    def lock(self, name: str) -> bool:
        """acquire"""
        return self.token(name) > 0

    def token(self, name: str) -> int:
        """acquire: the fencing token or 0."""
        return self._clerk.acquire(name)

    def unlock(self, name: str) -> bool:
        """release"""
        return self._clerk.release(name)

    def close(self) -> None:
        """Hang up."""
        self._clerk.close()


CLERKS: dict[str, MakeClerk] = {
    "a connection per request": lambda ports: RawClerk(ports, persistent=False, sessions=False),
    "persistent connections": lambda ports: RawClerk(ports, persistent=True, sessions=True),
    "Clerk": RealClerk,
}

_PATIENCE_S = 0.2
IMPATIENT_CLERKS: dict[str, MakeClerk] = {
    "a connection per request": lambda ports: RawClerk(
        ports, persistent=False, sessions=False, patience_s=_PATIENCE_S
    ),
    "persistent connections": lambda ports: RawClerk(
        ports, persistent=True, sessions=True, patience_s=_PATIENCE_S
    ),
    "Clerk": lambda ports: RealClerk(ports, int(_PATIENCE_S * 1000)),
}
"""The same for a primary that stands still: they do not wait for it to go on."""


class Lab:
    """A pair whose primary can go deaf, and clerks that know it by the proxy in front of it."""

    def __init__(
        self,
        cluster: Cluster,
        make_clerk: MakeClerk,
        *arguments: str,
        view: ViewKind = FAIL_STOP,
    ) -> None:
        self.primary, self.backup = cluster.pair(*arguments, view=view)
        self.proxy = Proxy(cluster.port(), self.primary.port)
        cluster.defer(self.proxy.close)
        self._ports = (self.proxy.port, self.backup.port)
        self._make_clerk = make_clerk
        self._died = threading.Event()
        self.killed_s = 0.0  # when the primary was, or began to stand still
        self._cluster = cluster

    @property
    def nodes(self) -> list[Node]:
        """For messages."""
        return [self.primary, self.backup]

    def clerk(self) -> LabClerk:
        """One more clerk."""
        clerk = self._make_clerk(self._ports)
        self._cluster.defer(clerk.close)
        return clerk

    def kill_primary(self) -> None:
        """`kill -9`, and nobody listens there any more."""
        self.proxy.refuse_connections()
        self.killed_s = self.primary.kill()

    def freeze_primary(self) -> None:
        """SIGSTOP: its connections stay, and nothing comes of them."""
        self.killed_s = time.monotonic()
        self.primary.freeze()

    def kill_backup(self) -> None:
        """`kill -9`."""
        self.backup.kill()

    def primary_dies_before_its_next_reply(self, silence_s: float = SILENCE_S) -> None:
        """`dying = true` in the original: see the top of this file."""
        self.proxy.go_deaf(b"LOCK", silence_s, self._die)

    def _die(self) -> None:
        self.primary.kill()
        self._died.set()

    def wait_died(self) -> None:
        """Wait until the request was swallowed and the primary killed."""
        assert self._died.wait(DEADLINE_S), "no reply came by that could be swallowed"

    def background_loses_its_reply(self, call: Callable[[], bool]) -> Background:
        """Send the request whose reply is lost, from a thread. Back when the primary is dead; the
        thread hears nothing before `end_silence`."""
        self.primary_dies_before_its_next_reply(silence_s=4.0)
        background = Background(call)
        self.wait_died()
        return background

    def end_silence(self) -> None:
        """The connection that was deaf is closed: its clerk sends its request again."""
        self.proxy.end_silence()


class Background:
    """A call in a thread; `result` waits for it."""

    def __init__(self, call: Callable[[], bool]) -> None:
        self._call = call
        self._outcome: bool | BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome = self._call()
        except BaseException as error:
            self._outcome = error

    @property
    def is_over(self) -> bool:
        """Whether it has returned."""
        return not self._thread.is_alive()

    def result(self) -> bool:
        """What it returned or raised."""
        self._thread.join(DEADLINE_S + 5)
        assert self._outcome is not None, "it hangs"
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome
