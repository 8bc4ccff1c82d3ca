"""Two nodes that reach each other, and the view register, through proxies; and clients at work.

A pair is made for each way of keeping the view. Who is primary changes as a test goes on, so the
nodes are called `a` (begun as primary) and `b` (begun as backup).
"""

from __future__ import annotations

import itertools
import os
import random
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from holdfast.server.core.view import View
from holdfast.server.registers import EtcdRegister, FileRegister
from holdfast.server.registers.opening import open_register

from .checkers import History, check_all, from_ops
from .etcd import EtcdServer
from .history import Recorder, explain
from .lab import RawClerk
from .ports import HOST
from .processes import Cluster, Node, ViewKind, wait_until
from .proxy import Proxy
from .wire import Closed, ReplyError, Wire
from .workers import Workers

BACKUP_TIMEOUT_S = 0.6
PROMOTION_TIMEOUT_S = 0.8
QUICK = ("--backup-timeout-ms", "600", "--promotion-timeout-ms", "800")
"""Time-outs as short as a busy machine allows."""
PATIENT = ("--backup-timeout-ms", "60000", "--promotion-timeout-ms", "60000")
"""For what has to happen at once, or not at all."""
LONG_S = 40.0
"""For what takes several time-outs, and several conditions to meet."""

KINDS = ("fail-stop", "backup", "etcd")
SAFE_KINDS = ("backup", "etcd")
"""Under these no cut of the network makes two primaries."""


def seed() -> int:
    """A new one, or HOLDFAST_TEST_SEED; printed."""
    number = int(os.environ.get("HOLDFAST_TEST_SEED", "0")) or random.randrange(1, 1_000_000)
    print(f"seed {number}")
    return number


def rounds(default: int) -> int:
    """How often something random is done: HOLDFAST_TEST_ROUNDS, or the default."""
    return int(os.environ.get("HOLDFAST_TEST_ROUNDS", str(default)))


def error_of(call: Callable[[], object]) -> str:
    """The error that `call` is answered, its text."""
    with pytest.raises(ReplyError) as caught:
        call()
    return str(caught.value)


def token_of(client: Wire, name: str) -> int:
    """The fencing token of the holder, 0 if the lock is free."""
    token = client.inspect(name)["fencing_token"]
    assert isinstance(token, int)
    return token


def serves_alone(node: Node) -> bool:
    """Whether it is a primary without a backup."""
    return node.role == "master" and node.mode == "solo"


def ends_without_a_word(wire: Wire, timeout_s: float | None = None) -> bool:
    """Whether the node closes the connection without a byte of an answer."""
    try:
        wire.read(timeout_s)
    except Closed:
        return True
    except ReplyError:
        return False
    return False


class Register(NamedTuple):
    """A view register, and how to name it to nodes."""

    kind: str
    place: str = ""  # the file, or PREFIX in etcd
    etcd: EtcdServer | None = None

    def view_kind(self, proxies: Sequence[Proxy] = ()) -> ViewKind:
        """The flags; of etcd through a proxy for each node."""
        if self.kind == "fail-stop":
            return ViewKind(self.kind)
        if self.kind == "backup":
            return ViewKind(
                self.kind, ("--view", "backup"), ("--view", "backup", "--view-file", self.place)
            )
        assert self.etcd is not None
        ports = [proxy.port for proxy in proxies] or 2 * [self.etcd.port]
        urls = [f"etcd://{HOST}:{port}{self.place}" for port in ports]
        return ViewKind(self.kind, ("--view", urls[0]), ("--view", urls[1]))

    def open(self) -> FileRegister | EtcdRegister:
        """The register itself, past all proxies."""
        if self.kind == "backup":
            return open_register("backup", self.place)
        assert self.etcd is not None
        return open_register(self.etcd.url(self.place))

    def view(self) -> View:
        """What it holds."""
        return self.open().get()

    def init(self, *, force: bool = False) -> None:
        """`holdfast view init`"""
        self.open().init(force=force)


def new_register(request: pytest.FixtureRequest, kind: str, folder: Path) -> Register:
    """A register of its own, not yet written. `etcd` is a fixture of the test's module."""
    if kind == "etcd":
        return Register(kind, f"/{secrets.token_hex(6)}", request.getfixturevalue("etcd"))
    return Register(kind, str(folder / "view"))


class Pair:
    """Two nodes and what is between them. Not started yet."""

    def __init__(self, cluster: Cluster, register: Register, *arguments: str) -> None:
        self.cluster, self.register = cluster, register
        self.a, self.b = cluster.node("A"), cluster.node("B")
        self.to_a, self.to_b = self.proxy(self.a.port), self.proxy(self.b.port)
        self.etcd_of: dict[Node, Proxy] = {}
        if register.etcd is not None:
            port = register.etcd.port
            self.etcd_of = {node: self.proxy(port) for node in (self.a, self.b)}
        view = register.view_kind(list(self.etcd_of.values()))
        arguments = arguments or QUICK
        self.a_arguments = ("--backup", self.to_b.address, *view.primary, *arguments)
        self.b_arguments = ("--replicaof", self.to_a.address, *view.backup, *arguments)

    def proxy(self, port: int) -> Proxy:
        """In front of that port, closed with the cluster."""
        proxy = Proxy(self.cluster.port(), port)
        self.cluster.defer(proxy.close)
        return proxy

    @property
    def nodes(self) -> list[Node]:
        """Both."""
        return [self.a, self.b]

    @property
    def ports(self) -> tuple[int, int]:
        """Of both, past the proxies."""
        return self.a.port, self.b.port

    @property
    def kind(self) -> str:
        """fail-stop, backup or etcd."""
        return self.register.kind

    def init(self) -> Pair:
        """The register's first view, if there is a register."""
        if self.kind != "fail-stop":
            self.register.init()
        return self

    def start_a(self) -> None:
        """The node with --backup."""
        self.a.start(*self.a_arguments)

    def start_b(self) -> None:
        """The node with --replicaof."""
        self.b.start(*self.b_arguments)

    def start(self) -> Pair:
        """Everything, and wait until they are a pair."""
        self.init()
        self.start_a()
        if self.kind == "etcd":
            self.cluster.wait_begun(self.a)
        self.start_b()
        self.cluster.wait_paired(self.a, self.b)
        return self

    def other(self, node: Node) -> Node:
        """Its peer."""
        return self.b if node is self.a else self.a

    def way_to(self, node: Node) -> Proxy:
        """What its peer goes through to reach it."""
        return self.to_a if node is self.a else self.to_b

    def cut(self) -> None:
        """Nothing passes between the nodes any more, and nothing says so."""
        for proxy in (self.to_a, self.to_b):
            proxy.hold()

    def cut_one_way(self, sender: Node) -> None:
        """Nothing that it sends reaches its peer, on whosever connection."""
        self.way_to(self.other(sender)).hold_more(to_node=True)
        self.way_to(sender).hold_more(to_client=True)

    def isolate(self, node: Node) -> None:
        """The same, and nothing passes between this node and the register."""
        self.cut()
        if self.etcd_of:
            self.etcd_of[node].hold()

    def reset(self) -> int:
        """All connections between the nodes end with a reset; how many there were."""
        return self.to_a.reset() + self.to_b.reset()

    def heal(self) -> None:
        """The network is as it was."""
        for proxy in (self.to_a, self.to_b, *self.etcd_of.values()):
            proxy.heal()

    def wait_serving(self, node: Node) -> None:
        """Wait until it serves alone."""
        wait_until(partial(serves_alone, node), f"{node} serves alone", self.nodes)

    def wait_whole(self) -> tuple[Node, Node]:
        """Wait until they are a pair, whoever is primary: that one, and its backup."""

        def is_whole() -> bool:
            for node in self.nodes:
                assert node.is_running, f"{node} has ended\n{node.log_tail()}"
            modes = {node.mode for node in self.nodes}
            return modes == {"paired"} and {node.role for node in self.nodes} == {"master", "slave"}

        wait_until(is_whole, "they are a pair", self.nodes, timeout_s=LONG_S)
        return (self.a, self.b) if self.a.role == "master" else (self.b, self.a)


class Load:
    """Clerks that lock and unlock a few locks at random until they are stopped; what they saw is
    checked then. A call that is never answered is an error."""

    def __init__(
        self,
        ports: tuple[int, ...],
        number: int,
        *,
        clients: int = 6,
        patience_s: float = 1.0,
        persistent: bool | None = None,
        connect: Callable[[int, float], Wire] = Wire,
    ) -> None:
        self.history = Recorder()
        self.steps = [0] * clients
        self._numbers = itertools.count()
        self.clerks = [
            RawClerk(
                ports,
                persistent=n % 3 > 0 if persistent is None else persistent,
                sessions=n % 2 == 0,
                patience_s=patience_s,
                connect=connect,
            )
            for n in range(clients)
        ]
        self.workers = Workers(
            [(random.Random(number + n), partial(self._step, n)) for n in range(clients)]
        )

    def _step(self, n: int, rng: random.Random) -> None:
        clerk, who, name = self.clerks[n], f"c{n}", f"{rng.randrange(4)}"
        if rng.random() < 0.5:
            self.history.run(who, "lock", name, lambda: clerk.token(name))
        else:
            self.history.run(who, "unlock", name, lambda: clerk.unlock(name))
        self.steps[n] += 1

    def goes_on(self, nodes: Sequence[Node] = ()) -> None:
        """Wait until every client has had two more answers: one of them to a request that was sent
        after this was called."""
        before = list(self.steps)

        def all_got_on() -> bool:
            got_on = all(now > then + 1 for now, then in zip(self.steps, before, strict=True))
            return got_on or bool(self.workers.errors)

        wait_until(all_got_on, "every client goes on", nodes, timeout_s=LONG_S)

    def stop(self, primary: Node | None = None) -> None:
        """End it. The histories must be possible, and so must what `primary` shows at the end."""
        self.workers.stop()
        for clerk in self.clerks:
            clerk.close()
        if primary is not None:
            with primary.wire() as client:
                for name in sorted({op.name for op in self.history.ops}):
                    self.history.run("last", "inspect", name, partial(token_of, client, name))
        check(self.history)


def check(history: Recorder) -> None:
    """Whether the locks can have behaved so, by two checkers that share nothing."""
    ops = history.ops
    assert not (problem := explain(ops)), problem
    assert not (problems := check_all(History(operations=from_ops(ops)))), "\n".join(problems)


def digests_agree(primary: Node, backup: Node) -> bool:
    """Whether both nodes have the same state at the same offset."""
    with primary.wire() as one, backup.wire() as other:
        return one.digest() == other.digest()


def held(node: Node, names: Sequence[str]) -> dict[str, int]:
    """The fencing tokens of these locks as a primary shows them; 0: free."""
    with node.wire() as client:
        return {name: token_of(client, name) for name in names}
