"""A pair and its view register when that one is down, slow, lost, or has forgotten (F7), and what
an operator can do about it; a history that follows a lost one (F8)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.etcd import EtcdServer
from harness.pairs import (
    Load,
    Pair,
    Register,
    error_of,
    held,
    new_register,
    seed,
)
from harness.processes import Cluster, Node, wait_until
from harness.programs import run

SILENT_S = 0.5
QUARANTINE_MS = 1_500


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def pair(
    request: pytest.FixtureRequest, etcd: EtcdServer, forked_cluster: Cluster
) -> Iterator[Pair]:
    """By etcd, which is mended at the end."""
    yield Pair(forked_cluster, new_register(request, "etcd", forked_cluster.folder)).start()
    etcd.mend()


def view(*words: str) -> str:
    """`holdfast view ...`, as an operator says it; what it prints."""
    return run(sys.executable, "-m", "holdfast.server", "view", *words)


def register_status(node: Node) -> str:
    """up or down"""
    return node.info()["holdfast_register_status"]


# -- etcd ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stopped", "paused"])
def test_a_pair_serves_on_without_etcd_and_sees_it_come_back(
    pair: Pair, etcd: EtcdServer, how: str
) -> None:
    """Nothing is to be decided, so nobody needs it; INFO says that it is down, the log what that
    means, and both that it is back."""
    load = Load(pair.ports, seed(), clients=3)
    epoch = pair.a.epoch
    {"stopped": etcd.stop, "paused": etcd.pause}[how]()
    for node in pair.nodes:
        wait_until(lambda: register_status(node) == "down", "it is seen", pair.nodes)  # noqa: B023
        node.wait_logged("no change of roles is possible")
    load.goes_on(pair.nodes)
    etcd.mend()
    for node in pair.nodes:
        wait_until(lambda: register_status(node) == "up", "it is seen", pair.nodes)  # noqa: B023
        node.wait_logged("the view register answers again")
    load.goes_on(pair.nodes)
    load.stop(pair.a)
    assert pair.a.epoch == epoch and pair.a.mode == "paired"


@pytest.mark.parametrize(("lost", "how"), [("primary", "paused"), ("backup", "stopped")])
def test_a_node_that_is_lost_without_etcd_blocks_the_other_until_etcd_is_back(
    pair: Pair, etcd: EtcdServer, lost: str, how: str
) -> None:
    """Whoever is left answers nothing that depends on the state; etcd back, it goes on by itself,
    with everything, and answers who is still waiting."""
    token = pair.a.ask("LOCK", "a", "r1")
    {"stopped": etcd.stop, "paused": etcd.pause}[how]()
    node = pair.a if lost == "primary" else pair.b
    other = pair.other(node)
    node.kill()
    wait_until(lambda: other.mode == "blocked", "it is blocked", pair.nodes)
    with other.wire() as client:
        if lost == "primary":
            assert error_of(lambda: client.ask("LOCK", "b", "r2")).startswith("READONLY")
        else:
            client.send("LOCK", "b", "r2")
            assert client.is_silent_for(SILENT_S)
        assert other.mode == "blocked"
        etcd.mend()
        if lost == "backup":
            assert client.read() > token  # type: ignore[operator]
    pair.wait_serving(other)
    assert held(other, ["a"]) == {"a": token}
    node.start()
    pair.cluster.wait_paired(other, node)


def test_a_wiped_etcd_is_refused_and_never_written_anew_by_a_node(
    forked_cluster: Cluster, tmp_path: Path
) -> None:
    """etcd comes back empty. The pair serves on, and says what to do; a node lost now blocks the
    other, for as long as it takes: `view init --from` gives the register the view that stands."""
    with EtcdServer(tmp_path / "etcd") as etcd:
        pair = Pair(forked_cluster, Register("etcd", "/locks", etcd)).start()
        token = pair.a.ask("LOCK", "a", "r1")
        etcd.kill()
        etcd.wipe()
        etcd.start()
        pair.a.wait_logged("the view register has forgotten")
        pair.a.wait_logged("'holdfast view")
        assert pair.a.ask("LOCK", "a", "r1") == token
        assert register_status(pair.a) == "forgotten"
        assert pair.a.info()["holdfast_register_epoch"] == "0"
        pair.b.kill()
        with pair.a.wire() as client:
            client.send("LOCK", "b", "r2")
            assert client.is_silent_for(2 * SILENT_S)
            assert pair.a.mode == "blocked" and etcd.value("/locks/view") == b""
            says = error_of(lambda: pair.a.ask("REPLICAOF", "NO", "ONE"))
            assert "register is behind this node" in says and "view init --from" in says
            shown = view("init", "--view", etcd.url("/locks"), "--from", pair.a.address)
            assert pair.a.info()["holdfast_incarnation"] in shown
            assert client.read() > token  # type: ignore[operator]
        pair.wait_serving(pair.a)
        pair.b.start()
        pair.cluster.wait_paired(pair.a, pair.b)


def test_a_backup_is_not_promoted_by_an_etcd_that_was_wiped(
    forked_cluster: Cluster, tmp_path: Path
) -> None:
    """The primary dies meanwhile: B stays blocked, and an operator who knows better says FORCE."""
    with EtcdServer(tmp_path / "etcd") as etcd:
        pair = Pair(forked_cluster, Register("etcd", "/locks", etcd)).start()
        token = pair.a.ask("LOCK", "a", "r1")
        etcd.kill()
        etcd.wipe()
        pair.a.kill()
        etcd.start()
        wait_until(lambda: pair.b.mode == "blocked", "B is blocked", pair.nodes)
        pair.b.wait_logged("the view register has forgotten")
        says = error_of(lambda: pair.b.ask("REPLICAOF", "NO", "ONE"))
        assert says.startswith("ERR undecided: the view register is behind this node")
        assert etcd.value("/locks/view") == b""
        answer = pair.b.ask("REPLICAOF", "NO", "ONE", "FORCE")
        assert isinstance(answer, bytes) and answer.startswith(b"OK")
        assert held(pair.b, ["a"]) == {"a": token}
        view("init", "--view", etcd.url("/locks"), "--from", pair.b.address)
        pair.a.start()
        pair.cluster.wait_paired(pair.b, pair.a)


def test_a_member_is_promoted_by_hand_through_the_register_only(pair: Pair) -> None:
    """REPLICAOF NO ONE without etcd is undecided, and changes nothing; with it, refused while the
    primary serves."""
    assert "the primary is alive" in error_of(lambda: pair.b.ask("REPLICAOF", "NO", "ONE"))
    pair.cluster.wait_paired(pair.a, pair.b)
    pair.etcd_of[pair.b].hold()
    pair.a.kill()
    assert error_of(lambda: pair.b.ask("REPLICAOF", "NO", "ONE")).startswith("ERR undecided")
    assert pair.b.role == "slave"
    pair.heal()
    pair.wait_serving(pair.b)


# -- the file on the backup's machine --------------------------------------------------------------


@pytest.mark.parametrize("damage", ["missing", "empty", "cut short", "a bit flipped"])
def test_a_node_whose_register_is_missing_or_damaged_does_not_start(
    request: pytest.FixtureRequest, forked_cluster: Cluster, damage: str
) -> None:
    """It names the file and what to do, and ends with an error; the file is left as it is."""
    register = new_register(request, "backup", forked_cluster.folder)
    path = Path(register.place)
    pair = Pair(forked_cluster, register).init()
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        spoilt = bytes([data[0] ^ 4]) + data[1:]
        path.write_bytes({"empty": b"", "cut short": data[:-3], "a bit flipped": spoilt}[damage])
    before = path.read_bytes() if path.exists() else None
    pair.start_b()
    wait_until(lambda: not pair.b.is_running, "it ends", pair.nodes)
    said = pair.b.log_text
    assert str(path) in said
    assert {"missing": "holdfast view init", "empty": "is empty"}.get(
        damage, "is not a view"
    ) in said
    assert "Traceback" not in pair.b.log_text
    assert (path.read_bytes() if path.exists() else None) == before


def test_a_primary_that_lost_the_machine_of_the_register_waits_for_an_operator(
    request: pytest.FixtureRequest, forked_cluster: Cluster
) -> None:
    """B's machine is gone, and its file: A answers nothing until it is told FORCE. A new machine,
    its register told by `view init --from` how things stand, is the backup then."""
    register = new_register(request, "backup", forked_cluster.folder)
    pair = Pair(forked_cluster, register).start()
    token = pair.a.ask("LOCK", "a", "r1")
    pair.b.kill()
    Path(register.place).unlink()
    with pair.a.wire() as client:
        client.send("LOCK", "b", "r2")
        assert client.is_silent_for(2 * SILENT_S)
        assert pair.a.mode == "blocked"
        says = error_of(lambda: pair.a.ask("REPLICAOF", "NO", "ONE"))
        assert "the view register does not answer" in says and "NO ONE FORCE" in says
        answer = pair.a.ask("REPLICAOF", "NO", "ONE", "FORCE")
        assert isinstance(answer, bytes) and answer.startswith(b"OK going on alone")
        second = client.read()
        assert second > token  # type: ignore[operator]
    view("init", "--view", "backup", "--view-file", register.place, "--from", pair.a.address)
    pair.start_b()
    pair.cluster.wait_paired(pair.a, pair.b)
    pair.a.kill()
    pair.wait_serving(pair.b)
    assert held(pair.b, ["a", "b"]) == {"a": token, "b": second}


def test_what_is_printed_when_the_file_is_lost_with_the_primary_keeps_the_locks(
    request: pytest.FixtureRequest, forked_cluster: Cluster
) -> None:
    """B has every lock and lacks its file, and A dies: B is blocked. What it says, and what `view
    init --from` says, leads an operator to FORCE and not to a vacant register, which would have B
    drop the last copy."""
    register = new_register(request, "backup", forked_cluster.folder)
    pair = Pair(forked_cluster, register).start()
    token = pair.a.ask("LOCK", "a", "r1")
    Path(register.place).unlink()
    pair.a.kill()
    pair.b.wait_logged("one that is blocked with its state serves after REPLICAOF NO ONE FORCE")
    flags = ("--view", "backup", "--view-file", register.place, "--from", pair.b.address)
    with pytest.raises(AssertionError, match="serves after REPLICAOF NO ONE FORCE"):
        view("init", *flags)
    answer = pair.b.ask("REPLICAOF", "NO", "ONE", "FORCE")
    assert isinstance(answer, bytes) and answer.startswith(b"OK")
    view("init", *flags)
    pair.a.start()
    pair.cluster.wait_paired(pair.b, pair.a)
    assert held(pair.b, ["a"]) == {"a": token}


def test_a_primary_goes_on_by_itself_when_the_machine_of_the_register_is_back(
    request: pytest.FixtureRequest, forked_cluster: Cluster
) -> None:
    """B is back, empty, with its file: that is enough to decide. Who waited is answered."""
    pair = Pair(forked_cluster, new_register(request, "backup", forked_cluster.folder)).start()
    token = pair.a.ask("LOCK", "a", "r1")
    pair.b.kill()
    with pair.a.wire() as client:
        client.send("LOCK", "b", "r2")
        assert client.is_silent_for(SILENT_S)
        pair.b.start()
        assert client.read() > token  # type: ignore[operator]
    pair.cluster.wait_paired(pair.a, pair.b)


# -- a new history -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fail-stop", "etcd"])
def test_a_history_behind_a_lost_one_grants_nothing_before_its_quarantine_is_over(
    request: pytest.FixtureRequest, forked_cluster: Cluster, kind: str
) -> None:
    """Both nodes lost with leases held. The next history, begun by an operator, refuses grants with
    -TRYAGAIN for --quarantine-ms, and everything else works; a backup that is promoted meanwhile
    goes on with what is left of it; then locks are granted (F8)."""
    register = new_register(request, kind, forked_cluster.folder)
    pair = Pair(forked_cluster, register).start()
    old = pair.a.ask("LOCK", "a", "r1", "PX", str(QUARANTINE_MS))
    for node in pair.nodes:
        node.kill()
    if kind == "etcd":
        view("init", "--force", *register.view_kind().backup)
    bootstrap = ("--bootstrap",) if kind == "fail-stop" else ()
    quarantine = ("--quarantine-ms", str(QUARANTINE_MS))
    began_s = time.monotonic()
    pair.a.start(*pair.a_arguments, *quarantine, *bootstrap)
    pair.b.start(*pair.b_arguments, *quarantine)
    pair.cluster.wait_paired(pair.a, pair.b)
    is_early = time.monotonic() - began_s < QUARANTINE_MS / 2000
    with pair.a.wire() as client:
        refused = error_of(lambda: client.ask("LOCK", "a", "r2")) if is_early else "TRYAGAIN"
        assert refused.startswith("TRYAGAIN")
        assert client.ask("UNLOCK", "a", "u1") == 0
        assert client.inspect("a")["state"] == b"free"
    assert not is_early or 0 < int(pair.a.info()["holdfast_quarantine_ms"]) <= QUARANTINE_MS
    pair.a.kill()
    pair.wait_serving(pair.b)
    wait_until(lambda: granted(pair.b), "a lock is granted", pair.nodes)
    assert time.monotonic() - began_s > QUARANTINE_MS / 1000
    assert held(pair.b, ["a"])["a"] > old  # type: ignore[operator]


def granted(node: Node) -> bool:
    """Whether a LOCK is granted now."""
    with node.wire() as client:
        try:
            return bool(client.ask("LOCK", "a", "r3"))
        except Exception as error:
            assert str(error).startswith("TRYAGAIN"), error
            return False
