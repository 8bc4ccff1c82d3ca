"""The tests of the original view service and its key/value service, over real processes.

MIT 6.824, spring 2013, lab 2. One test each, named for them, for every way of keeping the view in
which what it asks for is promised. (What the network does to them: test_live_partitions.py.)

HOLDFAST_TEST_ROUNDS=100 crashes nodes that often; HOLDFAST_TEST_SEED=n uses that seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from harness.etcd import EtcdServer
from harness.lab import RawClerk
from harness.pairs import (
    KINDS,
    PATIENT,
    SAFE_KINDS,
    Load,
    Pair,
    error_of,
    held,
    new_register,
    rounds,
    seed,
    serves_alone,
)
from harness.processes import Cluster, Node, wait_until
from harness.wire import encode

NOT_BACKUP = ("fail-stop", "etcd")
"""Where a primary goes on without its backup: not where the register is on the backup's machine."""
IDLE_S = 0.3
"""For how long nothing is to be seen."""


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def pair(request: pytest.FixtureRequest, forked_cluster: Cluster) -> Pair:
    """Not started. The test's parameter says how the view is kept."""
    kind = request.getfixturevalue("kind")
    return Pair(forked_cluster, new_register(request, kind, forked_cluster.folder))


def serves(node: Node) -> bool:
    """Whether it answers requests that depend on the state."""
    return node.role == "master" and node.mode in ("solo", "paired", "joining")


def never_serves(node: Node) -> None:
    """It has had all the time that it needs, and has not begun."""
    wait_until(node.answers, f"{node} answers", [node])
    with node.wire() as client:
        assert error_of(lambda: client.ask("LOCK", "a", "x1")).startswith("LOADING")
        assert client.is_silent_for(IDLE_S)
        assert error_of(lambda: client.ask("LOCK", "a", "x1")).startswith("LOADING")
    assert node.role == "slave"


# -- the view service ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_first_primary(pair: Pair, kind: str) -> None:
    """The node with --backup is the first primary: at once if the register can be reached and is
    vacant, else when the other one has said that it never heard of a history either."""
    pair.init().start_a()
    if kind == "etcd":
        pair.wait_serving(pair.a)
        view = pair.register.view()
        assert (view.epoch, view.members) == (pair.a.epoch, (pair.a.info()["holdfast_primary"],))
    else:
        never_serves(pair.a)
    pair.start_b()
    pair.cluster.wait_paired(pair.a, pair.b)


@pytest.mark.parametrize("kind", SAFE_KINDS)
def test_a_register_that_was_never_written_makes_no_primary(pair: Pair, kind: str) -> None:
    """No `view init`: nobody begins, and the log says what to do. Once it is done, they do."""
    if kind == "backup":
        pair.start_b()
        pair.b.wait_logged("view init")
        wait_until(lambda: not pair.b.is_running, "B without its register ends", pair.nodes)
        pair.start_a()
    else:
        pair.start_a()
        pair.start_b()
        pair.a.wait_logged("view init")
    never_serves(pair.a)
    pair.init()
    if kind == "backup":
        pair.start_b()
    pair.cluster.wait_paired(pair.a, pair.b)


@pytest.mark.parametrize("kind", KINDS)
def test_first_backup(pair: Pair, kind: str) -> None:
    """The node with --replicaof becomes the backup, and then a member of the view."""
    pair.start()
    members = {node.info()["holdfast_incarnation"] for node in pair.nodes}
    for node in pair.nodes:
        assert set(node.info()["holdfast_members"].split(",")) == members
        assert node.info()["holdfast_primary"] == pair.a.info()["holdfast_incarnation"]
    if kind != "fail-stop":
        view = pair.register.view()
        assert set(view.members) == members and view.epoch == pair.a.epoch == pair.b.epoch


@pytest.mark.parametrize("kind", KINDS)
def test_backup_takes_over_and_the_restarted_server_becomes_backup(pair: Pair, kind: str) -> None:
    """A killed, B is the primary of the next epoch; A started again is its backup; B killed, A has
    everything."""
    pair.start()
    epoch, token = pair.a.epoch, pair.a.ask("LOCK", "a", "r1")
    pair.a.kill()
    pair.wait_serving(pair.b)
    assert pair.b.epoch == epoch + 1
    if kind != "fail-stop":
        assert pair.register.view().members == (pair.b.info()["holdfast_incarnation"],)
    assert pair.b.ask("LOCK", "a", "r1") == token
    second = pair.b.ask("LOCK", "b", "r2")
    pair.a.start()
    pair.cluster.wait_paired(pair.b, pair.a)
    pair.b.kill()
    if kind == "backup":  # the register was on B's machine: nobody is promoted before it is back
        pair.a.wait_logged("the view register does not answer")
        assert not serves(pair.a)
        pair.b.start()
    wait_until(lambda: serves(pair.a), "A takes over", pair.nodes)
    assert held(pair.a, ["a", "b"]) == {"a": token, "b": second}


@pytest.mark.parametrize("kind", NOT_BACKUP)
def test_an_idle_third_server_becomes_backup(pair: Pair, kind: str) -> None:
    """A third node asks to join, and is refused while the pair is whole. B dies: the third is the
    backup; A dies: it takes over. (Started with A's address, it needs nothing else.)"""
    pair.start()
    token = pair.a.ask("LOCK", "a", "r1")
    third = pair.cluster.node("third")
    third.start(*pair.b_arguments)
    third.wait_logged("has a backup")
    pair.cluster.wait_paired(pair.a, pair.b)
    pair.b.kill()
    pair.cluster.wait_paired(pair.a, third)
    pair.a.kill()
    pair.wait_serving(third)
    assert third.ask("LOCK", "a", "r1") == token


@pytest.mark.parametrize("kind", KINDS)
def test_a_restarted_primary_is_treated_as_dead_though_it_never_missed_a_ping(
    request: pytest.FixtureRequest, forked_cluster: Cluster, kind: str
) -> None:
    """Time-outs of a minute, A is killed and back at once: B takes over all the same, with what was
    locked, and A joins it."""
    register = new_register(request, kind, forked_cluster.folder)
    pair = Pair(forked_cluster, register, *PATIENT).start()
    token = pair.a.ask("LOCK", "a", "r1")
    pair.a.restart()
    pair.cluster.wait_paired(pair.b, pair.a)
    assert pair.b.ask("LOCK", "a", "r1") == token
    assert pair.b.ask("LOCK", "a", "r2") == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_view_does_not_advance_to_a_backup_that_the_primary_has_not_admitted(
    pair: Pair, kind: str
) -> None:
    """B has half of the state when its primary dies. It is no member: it must not serve, and as the
    only one with all of it is lost, nobody may before an operator says so."""
    pair.start()
    pair.b.kill()
    if kind == "backup":
        pair.start_b()
        pair.wait_whole()
        fill(pair.a, 4000)
        pair.b.kill()
        pair.to_a.cut_after(500_000, to_node=False)
        pair.start_b()
    else:
        pair.wait_serving(pair.a)
        fill(pair.a, 4000)
        pair.to_a.cut_after(500_000, to_node=False)
        pair.start_b()
    wait_until(lambda: pair.to_a.cut_count, "the snapshot is cut short", pair.nodes)
    pair.to_a.refuse_connections()
    pair.a.kill()
    never_serves(pair.b)
    assert error_of(lambda: pair.b.ask("REPLICAOF", "NO", "ONE")).startswith("ERR")
    pair.a.start()
    pair.to_a.accept_connections()
    never_serves(pair.b)
    assert not serves(pair.a)


def fill(node: Node, count: int) -> None:
    """Lock so many locks of long names: 500 bytes each."""
    with node.wire() as client:
        names = [f"{n}-".ljust(400, "x") for n in range(count)]
        client.sock.sendall(b"".join(encode("LOCK", name, name[:100]) for name in names))
        for _ in names:
            assert client.read()


@pytest.mark.parametrize("kind", KINDS)
def test_an_uninitialised_server_never_becomes_primary(pair: Pair, kind: str) -> None:
    """A alone has the state, and dies. An empty B does not take over, nor does an empty A go on;
    with a register not before `view init --force`, without one not before --bootstrap. (Without
    one, two nodes that both know nothing take themselves for a new pair.)"""
    pair.start()
    pair.a.ask("LOCK", "a", "r1")
    pair.b.kill()
    if kind != "backup":
        pair.wait_serving(pair.a)
    epoch = pair.a.epoch
    pair.a.kill()
    pair.start_b()
    never_serves(pair.b)
    if kind == "fail-stop":
        pair.b.kill()
        pair.a.start()
        never_serves(pair.a)
        pair.a.kill()
        pair.a.start(*pair.a_arguments, "--bootstrap")
        pair.wait_serving(pair.a)
        pair.start_b()
    else:
        pair.a.start()
        never_serves(pair.b)
        assert not serves(pair.a)
        pair.register.init(force=True)
    primary, _ = pair.wait_whole()
    assert kind == "fail-stop" or primary.epoch > epoch
    assert held(primary, ["a"]) == {"a": 0}


# -- the key/value service -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_kill_the_last_server_and_start_a_fresh_one_which_must_not_serve(
    pair: Pair, kind: str
) -> None:
    """A killed, B serves, B killed: a third, fresh, with A's flags and with B's, serves nothing."""
    pair.start()
    pair.a.kill()
    pair.wait_serving(pair.b)
    assert pair.b.ask("LOCK", "a", "r1")
    pair.b.kill()
    fresh = pair.cluster.node("fresh")
    fresh.start(*pair.a_arguments)
    never_serves(fresh)
    fresh.kill()
    fresh.start(*pair.b_arguments)
    never_serves(fresh)


@pytest.mark.parametrize("kind", NOT_BACKUP)
def test_write_right_after_the_death_of_the_backup(pair: Pair, kind: str) -> None:
    """The very next request is answered, far before any time-out, and so is what was before."""
    pair.start()
    with pair.a.wire() as client:
        token = client.ask("LOCK", "a", "r1")
        pair.b.kill()
        assert client.ask("LOCK", "b", "r2", timeout_s=5.0) > token  # type: ignore[operator]
        assert client.ask("LOCK", "a", "r1") == token


@pytest.mark.parametrize("kind", KINDS)
def test_write_right_after_the_death_of_the_primary(pair: Pair, kind: str) -> None:
    """The next request, sent to A and then to B, is granted with a larger fencing token."""
    pair.start()
    clerk = RawClerk(pair.ports, persistent=False, sessions=True)
    token = clerk.token("before")
    pair.a.kill()
    assert clerk.token("after") > token
    assert not clerk.lock("before")


@pytest.mark.parametrize("lossy", [False, True], ids=["", "lossy replies"])
@pytest.mark.parametrize("kind", NOT_BACKUP)
def test_concurrent_writes_then_kill_the_primary_leaves_identical_values(
    pair: Pair, kind: str, lossy: bool
) -> None:
    """Eight clients, then A is killed: B shows what A showed. And the same where of requests and
    replies one in ten is lost."""
    pair.start()
    number = seed()
    proxies = [pair.proxy(node.port) for node in pair.nodes]
    if lossy:
        for proxy in proxies:
            proxy.lose(random.Random(number), requests=0.1, replies=0.1)
    ports = (proxies[0].port, proxies[1].port)
    load = Load(ports, number, clients=8, persistent=False)
    for _ in range(3):
        load.goes_on(pair.nodes)
    load.stop(pair.a)
    names = sorted({op.name for op in load.history.ops})
    before = held(pair.a, names)
    pair.a.kill()
    pair.wait_serving(pair.b)
    assert held(pair.b, names) == before
    assert not lossy or any(proxy.lost_count for proxy in proxies)


@pytest.mark.parametrize("kind", KINDS)
def test_repeated_crash_and_restart(pair: Pair, kind: str) -> None:
    """Six clients; again and again either node is killed, and started again when it pleases. (The
    original waits; here a node may be back before anybody has noticed.)"""
    number = seed()
    rng = random.Random(number)
    pair.start()
    load = Load(pair.ports, number)
    for _ in range(rounds(4)):
        node = rng.choice(pair.nodes)
        node.kill()
        if rng.random() < 0.5 and kind != "backup":
            wait_until(lambda: serves_alone(pair.other(node)), "it goes on", pair.nodes)  # noqa: B023
        node.start()
        pair.wait_whole()
        load.goes_on(pair.nodes)
    load.stop(pair.wait_whole()[0])
