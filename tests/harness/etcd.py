"""A real etcd, of one member or of several; where there is none, the test is skipped.

Members are killed, paused and started again one by one. With `tls` they speak TLS with clients, by
certificates which `openssl` makes on the spot; with `client_certificates` they want one too. With
`quota_bytes` a cluster can be filled: it raises the alarm NOSPACE, and refuses what writes.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from .ports import HOST, Port
from .processes import TIMEOUT_S, die_with_parent, wait_until

_LOG_SHOWN_BYTES = 4_000


class Certificates(NamedTuple):
    """Files in PEM form: a CA, and a certificate which it signed, for servers and clients."""

    ca: Path
    cert: Path
    key: Path

    @classmethod
    def make(cls, folder: Path) -> Certificates:
        """A new CA; certificates of another one are strangers to it."""
        if shutil.which("openssl") is None:
            pytest.skip("NOT TESTED WITH TLS: no openssl here (apt: openssl)")
        folder.mkdir(exist_ok=True)
        curve = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
        _openssl(
            folder,
            f"req -x509 {curve} -keyout ca.key -out ca.pem -days 2 -subj /CN=ca "
            "-addext keyUsage=critical,keyCertSign",
        )
        _openssl(folder, f"req -new {curve} -keyout node.key -out node.csr -subj /CN=node")
        (folder / "extensions").write_text(
            f"subjectAltName=IP:{HOST},DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n"
        )
        _openssl(
            folder,
            "x509 -req -in node.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 "
            "-extfile extensions -out node.pem",
        )
        return cls(folder / "ca.pem", folder / "node.pem", folder / "node.key")


def _openssl(folder: Path, arguments: str) -> None:
    done = subprocess.run(
        ["openssl", *arguments.split()], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


class Member:
    """One server of a cluster."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.client_port, self.peer_port = Port(), Port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """Where it listens for clients."""
        return self.client_port.number

    @property
    def data(self) -> Path:
        """What it keeps."""
        return self.folder / f"{self.name}.data"

    @property
    def log(self) -> Path:
        """What it says."""
        return self.folder / f"{self.name}.log"

    def log_tail(self) -> str:
        """For a failure."""
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")[-_LOG_SHOWN_BYTES:]
        return ""

    def send(self, number: signal.Signals) -> None:
        """A signal, if it runs."""
        if self.process is not None:
            self.process.send_signal(number)

    def stands_still(self) -> bool:
        """Whether every thread has obeyed SIGSTOP."""
        assert self.process is not None
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/stat")
        try:
            return all(task.read_text().rpartition(")")[2].split()[0] == "T" for task in tasks)
        except OSError:  # a thread has just ended
            return False

    def end(self, number: signal.Signals) -> None:
        """A signal which ends it, and its end."""
        if self.process is None:
            return
        self.process.send_signal(number)
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


class EtcdServer:
    """A cluster of `count` members in `folder`, as a context manager."""

    def __init__(
        self,
        folder: Path,
        count: int = 1,
        *,
        tls: Certificates | None = None,
        client_certificates: bool = False,
        login_ttl_s: int = 300,
        quota_bytes: int = 0,
    ) -> None:
        self._command = shutil.which("etcd") or ""
        if not self._command:
            pytest.skip("NOT TESTED WITH ETCD: it is not here (apt: etcd-server)")
        self._tls, self._wants_certificates = tls, client_certificates
        self._login_ttl_s = login_ttl_s
        self._quota_bytes = quota_bytes  # of the space on disk; 0: what etcd thinks fit
        folder.mkdir(exist_ok=True)
        self.prefix = "/test"
        self.members = [Member(f"m{number}", folder) for number in range(count)]

    # -- addresses -------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """Where the first member listens."""
        return self.members[0].port

    @property
    def endpoints(self) -> str:
        """HOST:PORT,HOST:PORT,..."""
        return ",".join(f"{HOST}:{member.port}" for member in self.members)

    def url(self, prefix: str = "") -> str:
        """For `--view`."""
        return f"etcd://{self.endpoints}{prefix or self.prefix}"

    @property
    def key(self) -> str:
        """Where `url()` has its view."""
        return f"{self.prefix}/view"

    # -- life ------------------------------------------------------------------------------------

    def __enter__(self) -> EtcdServer:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every member, whatever state it is in, and give back the ports."""
        for member in self.members:
            member.end(signal.SIGKILL)
            member.client_port.release()
            member.peer_port.release()

    def start(self, *numbers: int) -> None:
        """Start these members (default: all) and wait until they answer."""
        started = [self.members[number] for number in numbers] or self.members
        for member in started:
            assert member.process is None, f"{member.name} runs"
            with member.log.open("ab") as log:
                member.process = subprocess.Popen(
                    [self._command, *self._arguments(member)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
                    preexec_fn=die_with_parent,
                )
        for member in started:
            wait_until(partial(self._is_healthy, member), f"{member.name} answers")

    def mend(self) -> None:
        """Have every member run again, whatever a test did to it."""
        for number, member in enumerate(self.members):
            self.resume(number)
            if member.process is None:
                self.start(number)

    def stop(self, number: int = 0) -> None:
        """End a member as its supervisor would."""
        self.members[number].end(signal.SIGTERM)

    def kill(self, number: int = 0) -> None:
        """End a member as a power failure would, but for the page cache."""
        self.members[number].end(signal.SIGKILL)

    def pause(self, number: int = 0) -> None:
        """It is silent; its connections stay."""
        self.members[number].send(signal.SIGSTOP)
        wait_until(self.members[number].stands_still, f"{self.members[number].name} is stopped")

    def resume(self, number: int = 0) -> None:
        """It answers what it was asked meanwhile."""
        self.members[number].send(signal.SIGCONT)

    def wipe(self, number: int = 0) -> None:
        """Its disk is lost. Not while it runs."""
        assert self.members[number].process is None
        shutil.rmtree(self.members[number].data)

    def _arguments(self, member: Member) -> list[str]:
        scheme = "https" if self._tls else "http"
        client, peer = f"{scheme}://{HOST}:{member.port}", _peer_url(member)
        cluster = ",".join(f"{each.name}={_peer_url(each)}" for each in self.members)
        arguments = ["--name", member.name, "--data-dir", str(member.data), "--logger", "zap"]
        arguments += ["--listen-client-urls", client, "--advertise-client-urls", client]
        arguments += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        arguments += ["--initial-cluster", cluster, "--auth-token-ttl", str(self._login_ttl_s)]
        if self._quota_bytes:
            arguments += ["--quota-backend-bytes", str(self._quota_bytes)]
        if self._tls:
            arguments += ["--cert-file", str(self._tls.cert), "--key-file", str(self._tls.key)]
        if self._tls and self._wants_certificates:
            arguments += ["--client-cert-auth", "--trusted-ca-file", str(self._tls.ca)]
        return arguments

    def _is_healthy(self, member: Member) -> bool:
        assert member.process is not None and member.process.poll() is None, member.log_tail()
        try:
            return self.ask("/health", member=member).get("health") == "true"
        except OSError:
            return False

    # -- asking it, with nothing of ours between -------------------------------------------------

    def ask(
        self,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        member: Member | None = None,
        login: str = "",
    ) -> dict[str, Any]:
        """The answer of the JSON gateway (a GET without `body`). Raises OSError."""
        context = None
        if self._tls:
            context = ssl.create_default_context(cafile=str(self._tls.ca))
            context.load_cert_chain(self._tls.cert, self._tls.key)
        request = urllib.request.Request(
            f"{'https' if self._tls else 'http'}://{HOST}:{(member or self.members[0]).port}{path}",
            None if body is None else json.dumps(body).encode(),
            {"Authorization": login} if login else {},
        )
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(request, timeout=5.0) as answer:
            return dict(json.loads(answer.read()))

    def login(self, user: str, password: str) -> str:
        """What goes into the header Authorization."""
        return str(self.ask("/v3/auth/authenticate", {"name": user, "password": password})["token"])

    def enable_auth(self, users: dict[str, str], password: str) -> None:
        """Users with this password; each may read and write the keys under its prefix; and `root`,
        who may everything."""
        for user, prefix in {"root": "", **users}.items():
            self.ask("/v3/auth/user/add", {"name": user, "password": password})
            self.ask("/v3/auth/role/add", {"name": user})
            if prefix:
                key, end = prefix.encode(), prefix[:-1].encode() + bytes([ord(prefix[-1]) + 1])
                permission = {"permType": "READWRITE", "key": _b64(key), "range_end": _b64(end)}
                self.ask("/v3/auth/role/grant", {"name": user, "perm": permission})
            self.ask("/v3/auth/user/grant", {"user": user, "role": user})
        self.ask("/v3/auth/enable", {})

    def put(self, key: str, value: bytes) -> None:
        """Write a key behind everybody's back."""
        self.ask("/v3/kv/put", {"key": _b64(key.encode()), "value": _b64(value)})

    def value(self, key: str) -> bytes:
        """What a key holds; b"" if there is none."""
        pairs = self.ask("/v3/kv/range", {"key": _b64(key.encode())}).get("kvs", [])
        return base64.b64decode(pairs[0].get("value", "")) if pairs else b""

    # -- its space -------------------------------------------------------------------------------

    def fill(self) -> None:
        """Write one key over and over, as somebody does who shares the cluster and never compacts
        it, until there is no space left."""
        assert self._quota_bytes, "there is no end to what it takes"
        try:
            for _ in range(1_000):
                self.put("/of somebody else", bytes(self._quota_bytes // 16))
        except urllib.error.HTTPError as error:
            assert b"database space exceeded" in error.read()
        assert [alarm["alarm"] for alarm in self.alarms()] == ["NOSPACE"]

    def alarms(self) -> list[dict[str, str]]:
        """`etcdctl alarm list`"""
        return list(self.ask("/v3/maintenance/alarm", {"action": "GET"}).get("alarms", []))

    def make_room(self) -> None:
        """`etcdctl compact`, `etcdctl defrag`, `etcdctl alarm disarm`: what the manual says."""
        header = self.ask("/v3/kv/range", {"key": _b64(b"any")})["header"]
        self.ask("/v3/kv/compaction", {"revision": header["revision"], "physical": True})
        for member in self.members:
            self.ask("/v3/maintenance/defragment", {}, member=member)
        for alarm in self.alarms():
            self.ask("/v3/maintenance/alarm", {**alarm, "action": "DEACTIVATE"})
        assert not self.alarms()


def _peer_url(member: Member) -> str:
    return f"http://{HOST}:{member.peer_port.number}"


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
