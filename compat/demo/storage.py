"""holdfast demo storage: JSON values over HTTP, behind a FencingGuard.

    GET /KEY[?fencing_token=N]    or with the header Fencing-Token: N
    PUT /KEY                      {"value": ..., "fencing_token": N}

    200   {"key": ..., "value": ..., "fencing_token": written with, "highest_token": ...}
    404   no such key (its token is remembered all the same)
    409   {"error": ..., "key": ..., "fencing_token": N, "highest_token": M}: N < M, nothing written
    400, 405, 411, 413   what was wrong, as {"error": ...}

A read without a token is an onlooker's: it is answered, and refuses nobody.
"""

from __future__ import annotations

import contextlib
import json
import re
import socketserver
import sys
import threading
from argparse import ArgumentTypeError
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from ..cli.program import Failure, Parser, fencing_token, one_line
from ..fencing import FencingGuard, StaleTokenError

HOST = "127.0.0.1"
PORT = 8077
BODY_BYTES_MAX = 64 * 1024
# Of a body that is too large so much is read, so that its sender lives to see the answer.
DRAINED_BYTES_MAX = 16 * BODY_BYTES_MAX
IDLE_TIMEOUT_S = 10.0

EXIT_FAILED = 1

_DESCRIPTION = """\
A small storage server on this machine, in memory: values are read and written as JSON. It remembers
the highest fencing token that it has seen for each key and refuses lower ones with 409.
"""
_EPILOG = f"""\
examples:
  curl -X PUT localhost:{PORT}/a -d '{{"value": [1, 2], "fencing_token": 34}}'
  curl localhost:{PORT}/a
  curl 'localhost:{PORT}/a?fencing_token=35'       from now on 34 is refused
  curl -X PUT localhost:{PORT}/a -d '{{"value": [], "fencing_token": 34}}'
"""


class Reply(NamedTuple):
    """What a request is answered, and what is said of it on the screen."""

    status: int
    body: dict[str, Any]
    said: str


class Bad(Exception):
    """A request that cannot be understood."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Storage:
    """Values, and the guard in front of them. Safe to share between threads."""

    def __init__(self, *, fenced: bool = True) -> None:
        self._fenced = fenced
        self._guard = FencingGuard()
        self._values: dict[str, tuple[Any, int]] = {}

    def get(self, key: str, token: int | None) -> Reply:
        """Read. Without a token nothing is guarded."""
        if token is None:
            return self._read(key)
        try:
            with self._guard.guarding(key, token):
                return self._read(key)
        except StaleTokenError as error:
            return _refusal(error) if self._fenced else self._read(key, _stale_note(error))

    def put(self, key: str, value: Any, token: int) -> Reply:
        """Write."""
        try:
            with self._guard.guarding(key, token):
                return self._write(key, value, token)
        except StaleTokenError as error:
            if self._fenced:
                return _refusal(error)
            return self._write(key, value, token, _stale_note(error))

    def _read(self, key: str, note: str = "") -> Reply:
        if key not in self._values:
            return Reply(404, {"error": f"there is no {key!r}", "key": key}, f"not there{note}")
        return self._shown(key, *self._values[key], f"read{note}")

    def _write(self, key: str, value: Any, token: int, note: str = "") -> Reply:
        self._values[key] = (value, token)
        return self._shown(key, value, token, f"accepted{note}")

    def _shown(self, key: str, value: Any, token: int, said: str) -> Reply:
        highest = self._guard.highest(key)
        shown = {"key": key, "value": value, "fencing_token": token, "highest_token": highest}
        return Reply(200, shown, f"{said}: {json.dumps(value)}")


def _refusal(error: StaleTokenError) -> Reply:
    tokens = {"fencing_token": error.token, "highest_token": error.highest_token}
    return Reply(
        409,
        {"error": str(error), "key": error.resource, **tokens},
        f"REFUSED, token {error.highest_token} has been here",
    )


def _stale_note(error: StaleTokenError) -> str:
    return f" THOUGH token {error.highest_token} has been here"


class Handler(BaseHTTPRequestHandler):
    """One request: HTTP in, HTTP out, and a line on the screen."""

    timeout = IDLE_TIMEOUT_S
    server: Server

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_PUT(self) -> None:
        self._answer(self._put)

    def _answer(self, work: Any) -> None:
        self._about = f"{self.command} {self.path}"
        try:
            reply: Reply = work(_key(self.path))
        except Bad as bad:
            reply = Reply(bad.status, {"error": str(bad)}, str(bad))
        except (TypeError, ValueError) as error:  # what the guard says of tokens and names
            reply = Reply(400, {"error": str(error)}, str(error))
        self._send(reply)

    def _get(self, key: str) -> Reply:
        texts = [text for name, text in _query(self.path) if name == "fencing_token"]
        texts += self.headers.get_all("Fencing-Token", [])
        if len(texts) > 1:
            raise Bad(400, "the fencing token is given twice")
        token = _token(texts[0]) if texts else None
        self._about = f"GET {key}" + (f" with token {token}" if token is not None else "")
        return self.server.storage.get(key, token)

    def _put(self, key: str) -> Reply:
        told = _json(self._body())
        if not isinstance(told, dict) or not {"value", "fencing_token"} >= told.keys():
            raise Bad(400, 'a write is {"value": ..., "fencing_token": N}')
        for name in ("value", "fencing_token"):
            if name not in told:
                raise Bad(400, f"{name!r} is missing")
        token = told["fencing_token"]
        self._about = f"PUT {key} with token {token!r}"
        return self.server.storage.put(key, told["value"], token)

    def _body(self) -> bytes:
        text = self.headers.get("Content-Length")
        if text is None:
            raise Bad(411, "a write needs a body and its Content-Length")
        if not re.fullmatch("[0-9]{1,18}", text, re.ASCII):
            raise Bad(400, f"Content-Length {text!r} is no number")
        length = int(text)
        if length > BODY_BYTES_MAX:
            self.rfile.read(min(length, DRAINED_BYTES_MAX))
            raise Bad(413, f"{length} bytes are too many: {BODY_BYTES_MAX} at most")
        body = self.rfile.read(length)
        if len(body) < length:
            raise Bad(400, f"the body ended after {len(body)} of {length} bytes")
        return body

    def _send(self, reply: Reply) -> None:
        # Said first: whoever has the answer finds the line on the screen.
        self.server.say(f"{self._about}: {reply.said}")
        body = json.dumps(reply.body).encode() + b"\n"
        self.send_response(reply.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if reply.status == 405:
            self.send_header("Allow", "GET, PUT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class finds wrong: a method that is not here, a request that is none."""
        text = message or explain or "bad request"
        if code == 501:
            code, text = 405, f"{self.command} is not offered: GET or PUT"
        self._about = one_line(getattr(self, "requestline", ""))[:100]
        self._send(Reply(code, {"error": text}, text))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: every request has its line already."""


def _key(path: str) -> str:
    try:
        key = unquote(urlsplit(path).path, errors="strict").removeprefix("/")
    except ValueError:
        raise Bad(400, "the path is not UTF-8") from None
    if not key:
        raise Bad(400, "no key: GET /KEY or PUT /KEY")
    return key


def _query(path: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(urlsplit(path).query, keep_blank_values=True, max_num_fields=10)
    except ValueError:
        raise Bad(400, "the query has too many fields") from None


def _token(text: str) -> int:
    try:
        return fencing_token(text)
    except ArgumentTypeError as error:
        raise Bad(400, str(error)) from None


def _json(body: bytes) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    try:
        return json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise Bad(400, f"the body is no JSON: {error}") from None


class Server(ThreadingHTTPServer):
    """Listens on this machine only."""

    daemon_threads = True

    def __init__(self, port: int, storage: Storage) -> None:
        self.storage = storage
        self._screen = threading.Lock()
        super().__init__((HOST, port), Handler)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://{HOST}:{self.server_address[1]}"

    def server_bind(self) -> None:
        """Without the base class' question for a host name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)

    def say(self, text: str) -> None:
        """One line on the screen."""
        # Whoever reads the screen may have left; the storage does not stop for it.
        with self._screen, contextlib.suppress(BrokenPipeError):
            print(one_line(text), flush=True)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up in mid-sentence, and whatever else goes wrong with one request."""
        self.say(f"a request came to nothing: {sys.exc_info()[1]!r}")


def main(argv: Sequence[str]) -> int:
    """holdfast demo storage"""
    parser = Parser("demo storage", _DESCRIPTION, _EPILOG)
    parser.add_argument(
        "--port", type=int, default=PORT, metavar="N", help=f"0: any that is free [{PORT}]"
    )
    parser.add_argument(
        "--unfenced", action="store_true", help="accept every token: shows what fencing prevents"
    )
    given = parser.parse_args(argv)
    if not 0 <= given.port <= 65_535:
        parser.error(f"--port is from 0 to 65535, not {given.port}")
    try:
        server = Server(given.port, Storage(fenced=not given.unfenced))
    except OSError as error:
        text = f"cannot listen on port {given.port}: {error.strerror}; choose another with --port"
        raise Failure(EXIT_FAILED, text) from None
    with server:
        rule = "accepts everything" if given.unfenced else "refuses lower fencing tokens"
        server.say(f"storage on {server.url}, {rule}")
        server.serve_forever()
    return 0
