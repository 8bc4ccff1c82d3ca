"""A network of the kernel's own: one namespace for each host, a router between them, and cuts.

Every host hangs on the router by a veth pair; a cut is a rule there that swallows what one host
sends to another, without a word to the sender, as a broken network does. A host can be unplugged.

The test's own thread steps into a namespace (`inside`); threads and processes that it starts there
stay in there, and so does every socket that was made there. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from .processes import die_with_parent, wait_until

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_NETNS = Path("/run/netns")


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Network:
    """Hosts by name, each with one address. Skips the test where namespaces are not permitted."""

    def __init__(self, *hosts: str) -> None:
        if shutil.which("ip") is None:
            pytest.skip("NOT TESTED WITH NAMESPACES: no `ip` here (apt: iproute2)")
        self._mark = f"hf{secrets.token_hex(3)}"
        self._router = f"{self._mark}-router"
        self._made: list[str] = []
        self.address: dict[str, str] = {}
        try:
            self._make(self._router)
            self._allow_forwarding()
            for number, host in enumerate(hosts, 1):
                self._add(host, number)
        except OSError as error:
            self.close()
            pytest.skip(f"NOT TESTED WITH NAMESPACES: not permitted here: {error}")

    def _make(self, name: str) -> None:
        _ip("netns", "add", name)
        self._made.append(name)
        _ip("-n", name, "link", "set", "lo", "up")

    def _allow_forwarding(self) -> None:
        with self._in_namespace(self._router):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def _add(self, host: str, number: int) -> None:
        name, router, outer = self._name(host), self._router, f"to{number}"
        self._make(name)
        self.address[host] = f"10.77.{number}.2"
        _ip("link", "add", "eth", "netns", name, "type", "veth", "peer", outer, "netns", router)
        _ip("-n", router, "addr", "add", f"10.77.{number}.1/24", "dev", outer)
        _ip("-n", router, "link", "set", outer, "up")
        _ip("-n", name, "addr", "add", f"10.77.{number}.2/24", "dev", "eth")
        self._connect(host)

    def _connect(self, host: str) -> None:
        name, number = self._name(host), self.address[host].split(".")[2]
        _ip("-n", name, "link", "set", "eth", "up")
        _ip("-n", name, "route", "replace", "default", "via", f"10.77.{number}.1")

    def _name(self, host: str) -> str:
        return f"{self._mark}-{host}"

    # -- cuts --------------------------------------------------------------------------------------

    def cut(self, sender: str, *receivers: str) -> None:
        """What `sender` sends to these is lost."""
        for receiver in receivers:
            addresses = ("from", self.address[sender], "to", self.address[receiver])
            _ip("-n", self._router, "rule", "add", *addresses, "blackhole")

    def sever(self, one: str, other: str) -> None:
        """Neither hears the other."""
        self.cut(one, other)
        self.cut(other, one)

    def heal(self) -> None:
        """Everything arrives again, and everybody is plugged in."""
        with contextlib.suppress(OSError):
            while True:
                _ip("-n", self._router, "rule", "del", "type", "blackhole")
        for host in self.address:
            self._connect(host)

    def unplug(self, host: str) -> None:
        """Its cable is pulled: its own kernel knows, nobody else's does."""
        _ip("-n", self._name(host), "link", "set", "eth", "down")

    # -- who is where ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """This thread is on that host, and so is whatever it starts."""
        with self._in_namespace(self._name(host)):
            yield

    @contextlib.contextmanager
    def _in_namespace(self, name: str) -> Iterator[None]:
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            wanted = os.open(_NETNS / name, os.O_RDONLY)
            try:
                _enter(wanted)
            finally:
                os.close(wanted)
            try:
                yield
            finally:
                _enter(before)
        finally:
            os.close(before)

    def close(self) -> None:
        """Take it all down; the processes in it have to be gone."""
        for name in reversed(self._made):
            with contextlib.suppress(OSError):
                _ip("netns", "del", name)
        self._made.clear()


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


class FarEtcd:
    """One etcd on a host of its own."""

    def __init__(self, network: Network, host: str, folder: Path) -> None:
        command = shutil.which("etcd")
        if command is None:
            pytest.skip("NOT TESTED WITH ETCD: it is not here (apt: etcd-server)")
        self.address = f"{network.address[host]}:2379"
        self._url, peer = f"http://{self.address}", "http://127.0.0.1:2380"
        urls = ["--initial-cluster", f"default={peer}"]
        urls += ["--listen-client-urls", self._url, "--advertise-client-urls", self._url]
        urls += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        with network.inside(host), (folder / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [command, "--data-dir", str(folder / "etcd"), *urls],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )

    def wait_up(self) -> None:
        """Wait until it answers whoever asks from here."""
        wait_until(self._is_healthy, "etcd answers")

    def _is_healthy(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with contextlib.suppress(OSError):
            return b"true" in opener.open(f"{self._url}/health", timeout=2.0).read()
        return False

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
