"""A pair on hosts of its own, with a real network between them that loses packets in silence (F4).

Network namespaces: needs root and iproute2, and says so where it has not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from harness.netns import FarEtcd, Network
from harness.pairs import LONG_S, QUICK, Load, rounds, seed, serves_alone
from harness.processes import Cluster, Command, Node, wait_until
from harness.wire import Wire

from holdfast.server.registers.opening import open_register

PORT = "6379"


@pytest.fixture
def network() -> Iterator[Network]:
    """Hosts for two nodes, for etcd and for the clients; this thread is on the last one."""
    network = Network("a", "b", "w", "c")
    with network.inside("c"):
        yield network
    network.close()


@pytest.fixture
def hosts(network: Network, tmp_path: Path) -> Iterator[Hosts]:
    cluster = Cluster(tmp_path)
    yield Hosts(network, cluster)
    cluster.close()


class Hosts:
    """A node on each of two hosts."""

    def __init__(self, network: Network, cluster: Cluster) -> None:
        self.network, self.cluster = network, cluster
        self.nodes = {host: self._node(host) for host in ("a", "b")}

    def _node(self, host: str) -> Node:
        node = Node(
            host,
            self.cluster.port(),
            self.cluster.folder / f"{host}.log",
            Command(),
            self.network.address[host],
        )
        self.cluster.nodes.append(node)
        return node

    def start(self, *arguments: str) -> Hosts:
        """Both, and wait until they are a pair."""
        a, b = self.nodes["a"], self.nodes["b"]
        for host, flags in (("a", ("--backup", b.address)), ("b", ("--replicaof", a.address))):
            with self.network.inside(host):
                bind = ("--bind", self.network.address[host])
                self.nodes[host].start(*flags, *bind, *arguments)
            if host == "a" and "--view" in arguments:
                self.cluster.wait_begun(a)
        self.cluster.wait_paired(a, b)
        return self

    @property
    def ports(self) -> tuple[int, int]:
        """Of both: they name the nodes to `connect`."""
        return self.nodes["a"].port, self.nodes["b"].port

    def connect(self, port: int, timeout_s: float) -> Wire:
        """A connection to the node of that port, across the network."""
        (node,) = [node for node in self.nodes.values() if node.port == port]
        return node.wire(timeout_s)

    def wait_one_serves_alone(self) -> None:
        """Wait until one does."""
        nodes = list(self.nodes.values())
        wait_until(lambda: any(map(serves_alone, nodes)), "one goes on", nodes, timeout_s=LONG_S)

    def wait_whole(self) -> Node:
        """Wait until they are a pair; the primary."""
        nodes = list(self.nodes.values())

        def is_whole() -> bool:
            seen = [(node.mode, node.role) for node in nodes]
            return sorted(seen) == [("paired", "master"), ("paired", "slave")]

        wait_until(is_whole, "they are a pair", nodes, timeout_s=LONG_S)
        return nodes[0] if nodes[0].role == "master" else nodes[1]


def test_with_etcd_one_serves_whatever_is_cut_and_the_pair_is_whole_again(hosts: Hosts) -> None:
    """Under load, in random order: the nodes cannot hear each other, one of them cannot be heard,
    one of them is unplugged, or is cut off from the register and its peer (I1, I2, I3, I13). Three
    of these; all with HOLDFAST_TEST_ROUNDS."""
    number = seed()
    network, rng = hosts.network, random.Random(number)
    etcd = FarEtcd(network, "w", hosts.cluster.folder)
    hosts.cluster.defer(etcd.close)
    etcd.wait_up()
    url = f"etcd://{etcd.address}/test"
    open_register(url).init()
    hosts.start("--view", url, *QUICK)
    load = Load(hosts.ports, number, clients=4, connect=hosts.connect)
    cuts: dict[str, Callable[[], None]] = {
        "a and b": partial(network.sever, "a", "b"),
        "a to b": partial(network.cut, "a", "b"),
        "b to a": partial(network.cut, "b", "a"),
        "a unplugged": partial(network.unplug, "a"),
        "b unplugged": partial(network.unplug, "b"),
        "a to b and w": partial(network.cut, "a", "b", "w"),
    }
    for what in rng.sample(sorted(cuts), k=min(len(cuts), rounds(3))):
        print(what)
        cuts[what]()
        hosts.wait_one_serves_alone()
        load.goes_on(hosts.cluster.nodes)
        network.heal()
        hosts.wait_whole()
        load.goes_on(hosts.cluster.nodes)
    load.stop(hosts.wait_whole())


def test_without_the_register_the_pair_serves_on_and_a_dead_primary_is_replaced_when_it_is_back(
    hosts: Hosts,
) -> None:
    """etcd is unplugged: nothing changes for clients. A is killed: nobody serves. Plugged in again:
    B does."""
    network = hosts.network
    etcd = FarEtcd(network, "w", hosts.cluster.folder)
    hosts.cluster.defer(etcd.close)
    etcd.wait_up()
    url = f"etcd://{etcd.address}/test"
    open_register(url).init()
    a, b = hosts.start("--view", url, *QUICK).nodes.values()
    network.unplug("w")
    b.wait_logged("the view register does not answer")
    token = a.ask("LOCK", "x", "r1")
    a.kill()
    wait_until(lambda: b.mode == "blocked", "B waits for the register", [a, b])
    network.heal()
    wait_until(partial(serves_alone, b), "B takes over", [a, b], timeout_s=LONG_S)
    assert b.ask("LOCK", "x", "r1") == token


def test_without_a_register_an_unplugged_primary_is_replaced_and_stands_down_when_it_is_back(
    hosts: Hosts,
) -> None:
    """fail-stop: both serve while A's cable is out, to whoever reaches them. Plugged in again A
    joins B by itself."""
    a, b = hosts.start(*QUICK).nodes.values()
    token = a.ask("LOCK", "x", "r1")
    hosts.network.unplug("a")
    wait_until(partial(serves_alone, b), "B takes over", [a, b])
    with hosts.network.inside("a"):  # a client that is cut off with A
        a.wait_logged("serving alone")
    assert b.ask("UNLOCK", "x", "u1") == 1
    newer = b.ask("LOCK", "x", "r2")
    assert newer > token  # type: ignore[operator]
    hosts.network.heal()
    hosts.cluster.wait_paired(b, a)
    assert b.ask("LOCK", "x", "r2") == newer
