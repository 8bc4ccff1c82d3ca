"""A view register that is full: an etcd that has used up its space (--quota-backend-bytes) raises
the alarm NOSPACE, answers reads, and refuses whatever writes, until somebody has made room and
disarmed the alarm (F7). Nobody is promoted meanwhile, and nothing is lost."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from harness.etcd import EtcdServer
from harness.pairs import Load, Pair, Register, error_of, held, seed
from harness.processes import Cluster, Node, wait_until

QUOTA_BYTES = 1024 * 1024
WHY = "etcdserver: mvcc: database space exceeded; see 'etcdctl alarm list' and 'etcdctl defrag'"
SILENT_S = 0.5


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd"), quota_bytes=QUOTA_BYTES) as server:
        yield server


@pytest.fixture
def pair(etcd: EtcdServer, forked_cluster: Cluster) -> Iterator[Pair]:
    """A pair that is whole; there is room again at the end."""
    yield Pair(forked_cluster, Register("etcd", f"/{secrets.token_hex(6)}", etcd)).start()
    etcd.make_room()


def serving(pair: Pair) -> list[Node]:
    """Which of the nodes grant locks at this moment."""
    return [
        node for node in pair.nodes if node.role == "master" and node.mode in ("solo", "paired")
    ]


def test_a_pair_serves_on_while_its_register_is_full(pair: Pair, etcd: EtcdServer) -> None:
    """Nothing is to be decided, so nothing is to be written. Nobody is suspected, and the register,
    which answers reads, is not called down."""
    load = Load(pair.ports, seed(), clients=3)
    epoch = pair.a.epoch
    etcd.fill()
    load.goes_on(pair.nodes)
    read = etcd.value(f"{pair.register.place}/view")
    load.goes_on(pair.nodes)
    load.stop(pair.a)
    assert serving(pair) == [pair.a] and pair.a.epoch == epoch
    assert etcd.value(f"{pair.register.place}/view") == read != b""
    for node in pair.nodes:
        assert node.info()["holdfast_register_status"] == "up"
        assert "suspecting" not in node.log_text


@pytest.mark.parametrize("lost", ["primary", "backup"])
def test_a_failover_that_a_full_register_refuses_is_made_as_soon_as_there_is_room(
    pair: Pair, etcd: EtcdServer, lost: str
) -> None:
    """A node dies: what the other proposes is refused, and its log says why and what to do. It
    answers nothing that depends on the state, and the register has the old view, for as long as it
    takes. `etcdctl compact`, `defrag` and `alarm disarm`: it goes on by itself, with everything."""
    load = Load(pair.ports, seed(), clients=3)
    token = pair.a.ask("LOCK", "a", "r1")
    before = pair.register.view()
    etcd.fill()
    node = pair.a if lost == "primary" else pair.b
    other = pair.other(node)
    node.kill()
    other.wait_logged(WHY)
    with other.wire() as client:
        if lost == "primary":
            assert error_of(lambda: client.ask("LOCK", "b", "r2")).startswith("READONLY")
        client.send(*(("PING",) if lost == "primary" else ("LOCK", "b", "r2")))
        assert client.is_silent_for(SILENT_S) is (lost == "backup")
        assert pair.register.view() == before and serving(pair) == []
        assert other.mode == "blocked" and other.epoch == before.epoch
        etcd.make_room()
        if lost == "backup":
            assert client.read() > token  # type: ignore[operator]
    pair.wait_serving(other)
    assert pair.register.view() == before.alone(other.info()["holdfast_incarnation"])
    assert held(other, ["a"]) == {"a": token}
    load.goes_on(pair.nodes)
    node.start()
    pair.cluster.wait_paired(other, node)
    load.stop(other)


def test_a_planned_failover_that_a_full_register_refuses_promotes_nobody_before_there_is_room(
    pair: Pair, etcd: EtcdServer
) -> None:
    """FAILOVER, and the backup cannot have itself recorded. Neither node serves on its own word, or
    there might be two; the backup's log says why. With room again they are a pair, each request has
    one answer, and what was held is held."""
    load = Load(pair.ports, seed(), clients=3)
    token = pair.a.ask("LOCK", "a", "r1")
    before = pair.register.view()
    etcd.fill()
    assert pair.a.ask("FAILOVER") == b"OK"
    pair.b.wait_logged(WHY)
    pair.a.wait_logged(WHY)
    with pair.a.wire() as client:
        client.send("LOCK", "b", "r2")
        assert client.is_silent_for(SILENT_S)
        assert error_of(lambda: pair.b.ask("LOCK", "b", "r3")).startswith("READONLY")
        assert pair.register.view() == before and serving(pair) == []
        etcd.make_room()
        primary, _ = pair.wait_whole()
        if primary is pair.a:
            assert client.read() > token  # type: ignore[operator]
        else:
            assert error_of(client.read).startswith("READONLY")
    load.goes_on(pair.nodes)
    wait_until(lambda: serving(pair) == [primary], "one of them serves", pair.nodes)
    assert held(primary, ["a"]) == {"a": token}
    load.stop(primary)
