"""holdfast demo fencing: the accident that leases cannot prevent, with real processes.

    client 1   lock, token 33 · reads · "I may write" ▌SIGSTOP ............ SIGCONT▐ writes with 33
    lease of 1 ──────────────────────────────────────────────| over
    client 2                                   in line ······ lock, token 34 · reads · writes
    storage                                                   has seen 34          33 < 34: refuses

Every step waits for what has to have happened before it; nothing is left to the clock but the lease
itself.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..clerk import Clerk
from ..cli import servers
from ..cli.program import Parser, lease
from .children import EXIT_FAILED, Child, Children
from .client import EXIT_REFUSED, NAME, READY, StorageClient
from .storage import HOST

LEASE_MS = 1_500
LEASE_MS_MIN = 500
LEASE_MS_MAX = 10_000

_DESCRIPTION = """\
Replays the classic accident: client 1 takes the lock with a short lease, is stopped (SIGSTOP) just
before it writes, and comes back after client 2 has taken the lock and written. Starts a pair of
lock servers, a storage server and both clients as processes of this machine, on free ports, and
ends all of them.
"""
_EPILOG = """\
exit codes:
  0    the write of client 1 was refused (with --unfenced: it was accepted, and the corruption
       really happened)
  1    anything else
"""


class Story:
    """Tells what happens, line by line, with the seconds since the beginning."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._lock = threading.Lock()

    def tell(self, who: str, text: str) -> None:
        """One line."""
        with self._lock:
            at_s = time.monotonic() - self._began_s
            print(f"{at_s:6.2f} s  {who:9} {text}", flush=True)

    def hear(self, who: str, line: str) -> None:
        """What a process has said."""
        if who == "pair":
            return  # how to connect to it is of no use to anybody here
        with contextlib.suppress(BrokenPipeError):  # the next line that is told by us ends it all
            self.tell(who, line.removeprefix(f"{who}: "))


class Stage:
    """The processes, and how to look at what they have done."""

    def __init__(self, children: Children, *, fenced: bool) -> None:
        ports = [_Port() for _ in range(2)]
        try:
            self.servers = [f"redis://{HOST}:{port.number}" for port in ports]
            flags = ["--port", str(ports[0].number), "--backup-port", str(ports[1].number)]
            pair = children.start("pair", "holdfast.server", "pair", *flags, gently=True)
            unfenced = [] if fenced else ["--unfenced"]
            storage = children.start("storage", *_DEMO, "storage", "--port", "0", *unfenced)
            pair.wait_line("^Holdfast: primary on")
            self.storage_url = storage.wait_line(r"http://\S+?(?=,)")[0]
        finally:
            for port in ports:
                port.release()
        self._children = children
        self.storage = StorageClient(self.storage_url)

    def client(self, number: int, lease_ms: int) -> Child:
        """Start a client."""
        flags = ["--lease", f"{lease_ms}ms", "--storage", self.storage_url]
        for url in self.servers:
            flags += ["--server", url]
        return self._children.start(f"client {number}", *_DEMO, "client", str(number), *flags)


_DEMO = ("holdfast.compat.demo",)


class _Port:
    """Bound and not listened on, a port is given to nobody; a node may listen there all the same,
    since both sides say SO_REUSEADDR."""

    def __init__(self) -> None:
        self._sock = socket.socket()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sock.bind((HOST, 0))
        self.number: int = self._sock.getsockname()[1]

    def release(self) -> None:
        self._sock.close()


def play(stage: Stage, clerk: Clerk, tell: Callable[[str, str], None], lease_ms: int) -> list[int]:
    """The accident; the exit codes of both clients."""
    tell("", f"Both clients add themselves to the list {NAME!r}, under the lock of that name.")
    first = stage.client(1, lease_ms)
    token = int(first.wait_line(r"with fencing token (\d+)")[1])
    first.wait_line(READY)
    first.stop()
    tell("", "SIGSTOP: client 1 stands still between its last look at the clock and its write.")

    second = stage.client(2, LEASE_MS_MAX)
    second.wait_line(READY)
    tell("", "The lease of client 1 has run out, and client 1 does not know.")
    second.press_enter()
    second_code = second.wait_end()

    standing, known = _standing(clerk, token), _known(stage.storage.get(NAME).body)
    tell("", "Who believes what now:")
    tell("", f"  client 1     the lock is mine, under token {token}, and I may write")
    tell("", f"  lock server  token {token} is {standing}")
    tell("", f"  storage      {known}")
    first.press_enter()
    tell("", "SIGCONT: client 1 goes on where it stood.")
    first.resume()
    return [first.wait_end(), second_code]


def _standing(clerk: Clerk, token: int) -> str:
    return "the current one" if clerk.verify(NAME, token) else "over: VERIFY answers 0"


def _known(shown: dict[str, Any]) -> str:
    value = json.dumps(shown.get("value"))
    return f"token {shown.get('highest_token')} has been here, and left {value}"


def judge(codes: list[int], value: Any, *, fenced: bool) -> tuple[bool, str]:
    """Whether it ended as it must, and how it ended."""
    text = json.dumps(value)
    if fenced:
        if codes == [EXIT_REFUSED, 0] and value == ["client 2"]:
            return True, f"The stale write was refused: the storage has {text}, as client 2 left it"
        return False, f"THE STALE WRITE WAS NOT REFUSED: exit codes {codes}, the storage has {text}"
    if codes == [0, 0] and value == ["client 1"]:
        return True, (
            f"CORRUPTION, as expected without fencing: the storage has {text}. The write of"
            " client 2 was accepted, and is gone"
        )
    return False, f"no corruption happened: exit codes {codes}, the storage has {text}"


def main(argv: Sequence[str]) -> int:
    """holdfast demo fencing"""
    parser = Parser("demo fencing", _DESCRIPTION, _EPILOG)
    parser.add_argument(
        "--unfenced", action="store_true", help="have the storage accept everything"
    )
    parser.add_argument(
        "--lease",
        type=lease,
        default=LEASE_MS,
        metavar="TIME",
        help=f"of client 1, from {LEASE_MS_MIN}ms to {LEASE_MS_MAX // 1000}s [{LEASE_MS}ms]",
    )
    given = parser.parse_args(argv)
    if not LEASE_MS_MIN <= given.lease <= LEASE_MS_MAX:
        parser.error(f"--lease is from {LEASE_MS_MIN}ms to {LEASE_MS_MAX // 1000}s")
    return _show(given.lease, fenced=not given.unfenced)


def _show(lease_ms: int, *, fenced: bool) -> int:
    story = Story()
    with Children(story.hear) as children:
        story.tell("", "A pair of lock servers, a storage, two clients: processes of this machine.")
        stage = Stage(children, fenced=fenced)
        with servers.answers_expected(), Clerk(*stage.servers) as clerk:
            codes = play(stage, clerk, story.tell, lease_ms)
        value = stage.storage.get(NAME).body.get("value")
        as_expected, text = judge(codes, value, fenced=fenced)
    story.tell("", text + ".")
    return 0 if as_expected else EXIT_FAILED
