"""holdfast demo client: a holder as most programs are, and what becomes of it.

It takes the lock, reads, looks at its lease, and then writes *without looking again*: between the
last look and the write there is always a gap, however small. Here the gap lasts until Enter.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from ..clerk import Clerk
from ..cli import servers
from ..cli.holding import now_ms, trusted_ms
from ..cli.program import EXIT_LOST, EXIT_UNAVAILABLE, Failure, Parser, lease, one_line
from . import storage

NAME = "invoice-7"
LEASE_MS = 5_000
STORAGE_TIMEOUT_S = 10.0

EXIT_REFUSED = 3

# The demo waits for this line of a client.
READY = "Press Enter"

_DESCRIPTION = f"""\
Client N takes the lock {NAME!r} (and waits for it), reads what the storage has under that key,
waits for Enter, adds itself to what it has read, and writes that with its fencing token.
"""
_EPILOG = f"""\
exit codes:
  0    the storage has accepted the write
  {EXIT_REFUSED}    it has refused it: a later holder has been there
  {EXIT_UNAVAILABLE}   the lock server or the storage cannot be reached
  {EXIT_LOST}   the lock was lost before anything was read
"""


class Answer(NamedTuple):
    """Of the storage."""

    status: int
    body: dict[str, Any]


class StorageClient:
    """Talks to one storage server."""

    def __init__(self, url: str) -> None:
        self._url = url
        split = urlsplit(url)
        try:
            host, port, path = split.hostname, split.port or 80, split.path
        except ValueError:
            host, port, path = None, 0, ""
        if split.scheme != "http" or not host or path not in ("", "/"):
            raise ValueError(f"{url!r} is no http://HOST:PORT")
        self._host, self._port = host, port

    def get(self, key: str, token: int | None = None) -> Answer:
        """Read, and register a token if there is one. Raises Failure."""
        query = "" if token is None else f"?fencing_token={token}"
        return self._ask("GET", f"/{quote(key, safe='')}{query}", None)

    def put(self, key: str, value: Any, token: int) -> Answer:
        """Write. Raises Failure."""
        body = json.dumps({"value": value, "fencing_token": token}).encode()
        return self._ask("PUT", f"/{quote(key, safe='')}", body)

    def _ask(self, method: str, path: str, body: bytes | None) -> Answer:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=STORAGE_TIMEOUT_S)
        try:
            with contextlib.closing(connection):
                connection.request(method, path, body)
                response = connection.getresponse()
                told = json.loads(response.read(storage.DRAINED_BYTES_MAX))
        except (OSError, http.client.HTTPException, ValueError) as error:
            hint = "'holdfast demo storage' starts one"
            text = f"no storage answers at {self._url} ({error}); {hint}"
            raise Failure(EXIT_UNAVAILABLE, text) from None
        if not isinstance(told, dict):
            raise Failure(EXIT_UNAVAILABLE, f"what answers at {self._url} is no storage of ours")
        return Answer(response.status, told)


class Client:
    """One client, and what it believes."""

    def __init__(self, label: str, clerk: Clerk, its_storage: StorageClient, lease_ms: int) -> None:
        self._label = label
        self._clerk = clerk
        self._storage = its_storage
        self._lease_ms = lease_ms
        self._token = 0
        self._trusted_until_ms = 0

    def run(self, wait_for_enter: Callable[[], object]) -> int:
        """The whole life of it; the exit code. Raises RedisError, Failure."""
        self._take()
        try:
            code = self._work(wait_for_enter)
            self._say(f"Now I look at the clock: {self._lease()}")
            return code
        finally:
            self._give_back()

    def _work(self, wait_for_enter: Callable[[], object]) -> int:
        lines = self._read()
        self._say(f"{self._lease()}, so I may write. {READY}: I write, and look no more")
        wait_for_enter()
        return self._write([*lines, self._label])

    def _take(self) -> None:
        self._say(f"I ask for the lock {NAME!r}, with a lease of {seconds(self._lease_ms)}")
        self._token = self._acquire(wait_ms=0) or self._stand_in_line()
        # The grant's lease began while we waited for its answer, at an instant that we do not see.
        # A renewal is answered at once, and our lease is counted from before we sent it.
        sent_ms = now_ms()
        if not self._clerk.renew(NAME, self._token, self._lease_ms):
            raise Failure(EXIT_LOST, "the lock was lost as soon as it was granted")
        self._trusted_until_ms = sent_ms + trusted_ms(self._lease_ms)
        self._say(f"I have it, with fencing token {self._token}; {self._lease()}")

    def _acquire(self, wait_ms: int | None) -> int:
        owner = self._label.encode()
        return self._clerk.acquire(NAME, lease_ms=self._lease_ms, wait_ms=wait_ms, owner=owner)

    def _stand_in_line(self) -> int:
        held = self._clerk.inspect(NAME)
        if held["fencing_token"]:
            owner, left_ms = held["owner"].decode(errors="replace"), held["remaining_ms"]
            until = "no lease" if left_ms < 0 else f"{seconds(left_ms)} of its lease left"
            self._say(f"{owner} has it, token {held['fencing_token']}, {until}: I stand in line")
        return self._acquire(wait_ms=None)

    def _read(self) -> list[Any]:
        answer = self._storage.get(NAME, self._token)
        if answer.status not in (200, 404):
            raise Failure(EXIT_LOST, f"the storage will not let me read: {answer.body}")
        value = answer.body.get("value", [])
        self._say(f"I read {json.dumps(value)}, and the storage has seen my token")
        return value if isinstance(value, list) else [value]

    def _write(self, value: list[Any]) -> int:
        self._say(f"I write {json.dumps(value)} with token {self._token}")
        status, body = self._storage.put(NAME, value, self._token)
        if status == 409:
            self._say(f"The storage REFUSES (409): it has seen token {body.get('highest_token')}")
            return EXIT_REFUSED
        if status != 200:
            raise Failure(EXIT_UNAVAILABLE, f"the storage answers {status}: {body}")
        self._say("The storage has ACCEPTED it")
        return 0

    def _give_back(self) -> None:
        released = self._clerk.release(NAME, fencing_token=self._token)
        self._say("I give the lock back" if released else "The lock was not mine any more")

    def _lease(self) -> str:
        left_ms = self._trusted_until_ms - now_ms()
        if left_ms > 0:
            return f"my lease is good for another {seconds(left_ms)}"
        return f"my lease ran out {seconds(-left_ms)} ago"

    def _say(self, text: str) -> None:
        print(one_line(f"{self._label}: {text}"), flush=True)


def seconds(length_ms: int) -> str:
    """1.2 s"""
    return f"{length_ms / 1000:.1f} s"


def wait_for_enter() -> None:
    """Back at once if there is no keyboard, as in `< /dev/null`."""
    sys.stdin.readline()


def main(argv: Sequence[str]) -> int:
    """holdfast demo client"""
    parser = Parser("demo client", _DESCRIPTION, _EPILOG + "\n" + servers.HELP)
    parser.add_argument("number", type=int, metavar="N", help="its name is 'client N'")
    parser.add_argument(
        "--lease", type=lease, default=LEASE_MS, metavar="TIME", help="of the lock [5s]"
    )
    parser.add_argument(
        "--storage",
        type=_storage_client,
        default=f"http://{storage.HOST}:{storage.PORT}",
        metavar="URL",
        help="the storage server [%(default)s]",
    )
    servers.add_flag(parser)
    given = parser.parse_args(argv)
    label = f"client {given.number}"
    with servers.answers_expected(), servers.clerk(given) as clerk:
        return Client(label, clerk, given.storage, given.lease).run(wait_for_enter)


def _storage_client(url: str) -> StorageClient:
    try:
        return StorageClient(url)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
