"""The view register in etcd: what it makes of every kind of answer, and how it is named.

The answers are scripted here; what a real etcd does is in test_registers_etcd.py.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from harness.etcd import Certificates
from harness.ports import HOST

from holdfast.server.config import ConfigError
from holdfast.server.core.view import Cas, View
from holdfast.server.registers import EtcdRegister, RegisterError
from holdfast.server.registers.encoding import encode
from holdfast.server.registers.url import EtcdUrl, view_kind

pytest.importorskip("urllib3", reason="NOT TESTED WITH ETCD: no urllib3 (holdfast[etcd])")

AB = View(3, "a", ("a", "b"))
B = View(4, "b", ("b",))


class Scripted:
    """Answers reads as an etcd that holds AB does, and transactions by a script."""

    def __init__(self) -> None:
        self.transaction: tuple[int, bytes] = (200, b"")  # after those of `first`
        self.first: list[tuple[int, bytes]] = []
        self.logins: list[str | None] = []  # with which transactions were asked for
        self.reading: tuple[int, bytes] = (200, as_json(kvs=[kept(AB)]))
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked.append(self.path)
                ours = outer.answer(self.path, self.headers["Authorization"])
                self.send_response(ours[0])
                self.send_header("Content-Length", str(len(ours[1])))
                self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(ours[1])

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._server.daemon_threads = True
        self.address = f"{HOST}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def answer(self, path: str, login: str | None) -> tuple[int, bytes]:
        if path.endswith("authenticate"):
            return 200, as_json(token=f"login{self.asked.count(path)}")
        if path.endswith("range"):
            return self.reading
        self.logins.append(login)
        return self.first.pop(0) if self.first else self.transaction

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


def as_json(cluster: str = "1", **fields: object) -> bytes:
    return json.dumps({"header": {"cluster_id": cluster}, **fields}).encode()


def kept(view: View) -> dict[str, str]:
    return {"value": base64.b64encode(encode(view)).decode(), "mod_revision": "7"}


def error(text: str) -> bytes:
    return json.dumps({"error": text, "code": 2}).encode()


@pytest.fixture
def scripted() -> Iterator[Callable[[], Scripted]]:
    made: list[Scripted] = []

    def make() -> Scripted:
        made.append(Scripted())
        return made[-1]

    yield make
    for each in made:
        each.close()


UNCLEAR = [
    (500, error("etcdserver: request timed out")),
    (503, error("etcdserver: no leader")),
    (504, b"<html>gateway time-out</html>"),
    (408, b""),
    (302, b""),
    (200, b""),
    (200, b"not JSON"),
    (200, b"[" * 5000),
    (200, b"[]"),
    (200, b"{}"),
    (200, b'{"header": 1}'),
    (200, b'{"header": {"cluster_id": 1}, "succeeded": true}'),
    (200, as_json(cluster="2", succeeded=True)),
    (200, as_json(succeeded="true")),
    (200, as_json(responses=[])),
    (200, as_json(responses=[{"response_put": {}}])),
    (200, as_json(responses=[{"response_range": {"kvs": [{"value": "%"}]}}])),
    (200, as_json(responses=[{"response_range": {"kvs": 7}}])),
    (200, as_json(succeeded=True) + b" " * 100_000),
]


@pytest.mark.parametrize("answer", UNCLEAR, ids=repr)
def test_an_unclear_answer_to_a_transaction_leaves_it_undecided(
    scripted: Callable[[], Scripted], answer: tuple[int, bytes]
) -> None:
    server = scripted()
    server.transaction = answer
    register = EtcdRegister(f"etcd://{server.address}/test")
    assert register.cas(B) == (Cas.UNDECIDED, AB)
    assert register.reason
    assert "/elsewhere" not in server.asked


@pytest.mark.parametrize("answer", UNCLEAR[:11], ids=repr)
def test_an_unclear_answer_to_a_read_is_an_error(
    scripted: Callable[[], Scripted], answer: tuple[int, bytes]
) -> None:
    server = scripted()
    server.reading = answer
    register = EtcdRegister(f"etcd://{server.address}/test")
    for operation in (register.get, lambda: register.cas(B), register.init):
        with pytest.raises(RegisterError):
            operation()
    assert not any(path.endswith("txn") for path in server.asked)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((400, error("etcdserver: request is too large")), "too large"),
        ((403, error("etcdserver: permission denied")), "permission denied; give the role"),
        ((404, b"404 page not found"), "not as etcd 3.4 or later"),
        ((429, error("etcdserver: mvcc: database space exceeded")), "alarm list"),
        ((429, b""), "HTTP status 429"),
    ],
)
def test_a_refused_transaction_is_an_error_and_not_undecided(
    scripted: Callable[[], Scripted], answer: tuple[int, bytes], why: str
) -> None:
    server = scripted()
    server.transaction = answer
    with pytest.raises(RegisterError, match=why):
        EtcdRegister(f"etcd://{server.address}/test").cas(B)


@pytest.mark.parametrize(
    "text", ["etcdserver: invalid auth token", "etcdserver: revision of auth store is old"]
)
def test_an_old_login_is_renewed_once(scripted: Callable[[], Scripted], text: str) -> None:
    server = scripted()
    server.transaction = (200, as_json(succeeded=True))
    register = EtcdRegister(f"etcd://{server.address}/test", user="locks", password="secret")
    server.first = [(400, error(text))]
    assert register.cas(B) == (Cas.WON, B)
    assert server.logins == ["login1", "login2"]
    server.first = [(401, error(text))] * 2
    with pytest.raises(RegisterError, match=text):
        register.cas(B)
    assert server.logins[2:] == ["login2", "login3"]


def test_what_one_member_leaves_open_another_may_not_refuse_away(
    scripted: Callable[[], Scripted],
) -> None:
    """The first has perhaps done it; that the second did not proves nothing."""
    first, second = scripted(), scripted()
    first.transaction = (503, b"")
    url = f"etcd://{first.address},{second.address}/test"
    for second.transaction in ((400, error("no")), (503, b""), (404, b"")):
        assert EtcdRegister(url).cas(B) == (Cas.UNDECIDED, AB)
    second.transaction = (200, as_json(succeeded=True))
    assert EtcdRegister(url).cas(B) == (Cas.WON, B)
    second.transaction = (200, as_json(responses=[{"response_range": {"kvs": [kept(B)]}}]))
    assert EtcdRegister(url).cas(B) == (Cas.WON, B)
    other = View(4, "a", ("a",))
    second.transaction = (200, as_json(responses=[{"response_range": {"kvs": [kept(other)]}}]))
    assert EtcdRegister(url).cas(B) == (Cas.LOST, other)
    second.close()
    assert EtcdRegister(url).cas(B) == (Cas.UNDECIDED, AB)


# -- how it is named -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("etcd://h:2379", "/holdfast/view"),
        ("etcd://h:2379/", "/holdfast/view"),
        ("etcd://h:2379/locks", "/locks/view"),
        ("etcd://h:2379/a/b-c_d.e/", "/a/b-c_d.e/view"),
        ("etcd://10.0.0.1:1,[::1]:2,h-3.example:3/x", "/x/view"),
    ],
)
def test_an_address_names_members_and_a_key(text: str, key: str) -> None:
    url = EtcdUrl.parse(text)
    assert url.key == key
    assert EtcdUrl.parse(str(url)) == url
    assert view_kind(text) == str(url)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "none of fail-stop, backup, etcd://"),
        ("file", "none of"),
        ("https://h:2379", "write etcd:// also with TLS"),
        ("etcds://h:2379", "write etcd:// also with TLS"),
        ("etcd://", "names no member"),
        ("etcd:///prefix", "names no member"),
        ("etcd://h", "not HOST:PORT"),
        ("etcd://h:0", "port"),
        ("etcd://h:1,h:1", "twice"),
        ("etcd://" + ",".join(f"h:{port}" for port in range(1, 18)), "more than 16"),
        ("etcd://user:pw@h:1", "--etcd-user and --etcd-password-file"),
        ("etcd://h:1/a b", "prefix"),
        ("etcd://h:1/a//b", "prefix"),
        ("etcd://h:1/a?b=c", "prefix"),
        ("etcd://h:1/" + "x" * 200, "prefix"),
    ],
)
def test_an_address_that_makes_no_sense_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        view_kind(text)


def test_without_urllib3_one_is_told_what_to_install() -> None:
    code = (
        "import sys; sys.modules['urllib3'] = None\n"
        "from holdfast.server.registers import EtcdRegister\n"
        "EtcdRegister('etcd://h:2379')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ConfigError: --view etcd://... needs the package urllib3" in done.stderr
    assert "pip install 'urllib3>=2,<3'" in done.stderr


def test_certificates_that_cannot_be_used_are_refused_at_the_start(tmp_path: Path) -> None:
    url, (ca, cert, key) = "etcd://127.0.0.1:1", map(str, Certificates.make(tmp_path / "ca"))
    (tmp_path / "text").write_text("no certificate")
    for files, why in (
        ((str(tmp_path / "none"), "", ""), r"--etcd-ca .*none: No such file"),
        ((str(tmp_path / "text"), "", ""), "--etcd-ca"),
        (("", cert, key), "go with --etcd-ca"),
        ((ca, cert, ""), "give both or none"),
        ((ca, "", key), "give both or none"),
        ((ca, cert, str(tmp_path / "text")), "--etcd-key .*text"),
        ((ca, cert, ca), "--etcd-key"),
    ):
        with pytest.raises(ConfigError, match=why):
            EtcdRegister(url, *files)
