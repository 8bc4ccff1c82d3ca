"""ROLE, REPLICAOF, WAIT and INFO replication: the truth about the pair, in Redis' shapes."""

from __future__ import annotations

import time

import pytest
from harness.alone import alone, config_of, info_of
from harness.processes import Cluster, Node, wait_until
from harness.wire import Closed, ReplyError, Wire

from holdfast.server.core.stream import PROTOCOL_VERSION


def role_of(node: Node) -> list[object]:
    role = node.ask("ROLE")
    assert isinstance(role, list)
    return role


def field(line: str, name: str) -> str:
    return dict(part.split("=") for part in line.split(","))[name]


# -- ROLE and INFO replication ---------------------------------------------------------------------


def test_role_has_the_shape_of_redis_on_both_nodes(forked_cluster: Cluster) -> None:
    primary, backup = forked_cluster.pair()
    token = primary.ask("LOCK", "a", "r1")
    assert role_of(primary)[:2] == [b"master", token]
    wait_until(
        lambda: role_of(primary)[2] == [[b"127.0.0.1", b"%d" % backup.port, b"%d" % token]],
        "the backup's offset is shown",
        [primary],
    )
    assert role_of(backup) == [b"slave", b"127.0.0.1", primary.port, b"connected", token]


def test_info_replication_tells_the_truth_throughout(forked_cluster: Cluster) -> None:
    primary, backup = forked_cluster.pair()
    token = primary.ask("LOCK", "a", "r1")
    ours, theirs = info_of(primary), info_of(backup)
    assert (ours["role"], theirs["role"]) == ("master", "slave")
    assert ours["connected_slaves"] == "1"
    line = ours["slave0"]
    assert (field(line, "ip"), field(line, "port")) == ("127.0.0.1", str(backup.port))
    assert (field(line, "state"), field(line, "lag")) == ("online", "0")
    assert ours["master_repl_offset"] == theirs["master_repl_offset"] == str(token)
    assert theirs["slave_repl_offset"] == str(token)
    assert ours["master_replid"] == theirs["master_replid"] and len(ours["master_replid"]) == 40
    assert (theirs["master_host"], theirs["master_port"]) == ("127.0.0.1", str(primary.port))
    assert (theirs["master_link_status"], theirs["master_sync_in_progress"]) == ("up", "0")
    assert "master_link_down_since_seconds" not in theirs
    assert ours["holdfast_mode"] == theirs["holdfast_mode"] == "paired"
    assert ours["holdfast_epoch"] == theirs["holdfast_epoch"] == ours["pair_epoch"]
    assert ours["holdfast_primary"] == theirs["holdfast_primary"] == ours["holdfast_incarnation"]
    members = {ours["holdfast_incarnation"], theirs["holdfast_incarnation"]}
    assert set(ours["holdfast_members"].split(",")) == members
    assert ours["run_id"] == ours["holdfast_incarnation"]
    assert (ours["pair_in_sync"], theirs["pair_in_sync"]) == ("1", "1")
    backup.kill()
    wait_until(lambda: primary.mode == "solo", "it goes on alone", [primary])
    alone_now = info_of(primary)
    assert (alone_now["connected_slaves"], alone_now["pair_in_sync"]) == ("0", "0")
    assert "slave0" not in alone_now and role_of(primary)[2] == []
    assert int(alone_now["holdfast_epoch"]) > int(ours["holdfast_epoch"])


def test_a_node_without_state_says_that_it_is_loading(forked_cluster: Cluster) -> None:
    node = forked_cluster.node("P").start("--backup", f"127.0.0.1:{forked_cluster.port().number}")
    wait_until(node.answers, "it answers", [node])
    fields = info_of(node)
    assert (fields["loading"], fields["role"]) == ("1", "slave")
    assert fields["holdfast_mode"] == "recovery"
    assert fields["master_link_status"] == "down"
    assert int(fields["master_link_down_since_seconds"]) >= 0
    assert fields["master_last_io_seconds_ago"] == "-1"
    assert role_of(node)[0] == b"slave" and role_of(node)[3:] == [b"connect", -1]
    with pytest.raises(ReplyError, match=r"^LOADING"):
        node.ask("WAIT", "0", "0")


def test_a_backup_that_lost_its_primary_says_so(forked_cluster: Cluster) -> None:
    primary, backup = forked_cluster.pair("--failover", "manual")
    primary.kill()
    wait_until(
        lambda: info_of(backup)["master_link_status"] == "down", "the link is down", [backup]
    )
    fields = info_of(backup)
    assert int(fields["master_link_down_since_seconds"]) >= 0
    assert role_of(backup)[3] == b"connect" and fields["loading"] == "0"


def test_a_new_history_in_quarantine_says_so_and_grants_nothing(forked_cluster: Cluster) -> None:
    node = alone(forked_cluster, "--quarantine-ms", "60000")
    assert 0 < int(info_of(node)["holdfast_quarantine_ms"]) <= 60_000
    with pytest.raises(ReplyError, match=r"^TRYAGAIN .*--quarantine-ms"):
        node.ask("LOCK", "a", "r1")
    assert node.ask("UNLOCK", "a", "u1") == 0
    assert config_of(node, "quarantine-ms") == {"quarantine-ms": "60000"}


def test_info_tells_where_the_view_is_kept_and_how_backups_came(forked_cluster: Cluster) -> None:
    primary, backup = forked_cluster.pair()
    fields = info_of(primary)
    assert (fields["holdfast_register"], fields["master_failover_state"]) == (
        "fail-stop",
        "no-failover",
    )
    assert "holdfast_register_epoch" not in fields and "holdfast_quarantine_ms" not in fields
    assert fields["repl_backlog_active"] == "1"
    stats = info_of(primary, "stats")
    assert (stats["sync_full"], stats["sync_partial_ok"], stats["sync_partial_err"]) == (
        "1",
        "0",
        "0",
    )
    assert info_of(backup)["repl_backlog_active"] == "0"


# -- FAILOVER --------------------------------------------------------------------------------------


def test_failover_changes_the_roles_and_the_old_primary_comes_back_with_its_state(
    forked_cluster: Cluster,
) -> None:
    primary, backup = forked_cluster.pair()
    token = primary.ask("LOCK", "a", "r1")
    before = primary.epoch
    assert primary.ask("FAILOVER") == b"OK"
    forked_cluster.wait_paired(backup, primary)
    assert backup.ask("LOCK", "a", "r1") == token, "a repeat gets the first answer"
    assert backup.epoch == primary.epoch == before + 2
    assert info_of(backup, "stats")["sync_partial_ok"] == "1"
    assert info_of(backup, "stats")["sync_full"] == "1", "as a backup, at the start"
    assert info_of(primary)["master_failover_state"] == "no-failover"
    assert backup.ask("FAILOVER", "TIMEOUT", "5000") == b"OK"
    forked_cluster.wait_paired(primary, backup)
    assert primary.ask("LOCK", "a", "r1") == token


def stuck_failover(cluster: Cluster, *words: str) -> tuple[Node, Node, Wire]:
    """A FAILOVER that waits for the ack of a LOCK, whose reply the connection waits for."""
    primary, backup = cluster.pair("--backup-timeout-ms", "20000")
    backup.freeze()
    client = primary.wire()
    cluster.defer(client.close)
    client.send("LOCK", "a", "r1")
    assert client.is_silent_for(0.05)
    assert primary.ask("FAILOVER", *words) == b"OK"
    assert info_of(primary)["master_failover_state"] == "waiting-for-sync"
    return primary, backup, client


def test_a_request_that_comes_meanwhile_is_left_to_the_other_node_unexecuted(
    forked_cluster: Cluster,
) -> None:
    primary, backup, client = stuck_failover(forked_cluster)
    with primary.wire() as other:
        other.send("LOCK", "b", "r2")
        other.send("PING")
        assert other.is_silent_for(0.05)
        backup.thaw()
        assert client.read(), "what was executed before is answered before"
        with pytest.raises(ReplyError, match=r"^READONLY"):
            other.read()
        assert other.read() == b"PONG"
    forked_cluster.wait_paired(backup, primary)
    assert (backup.ask("EXISTS", "a"), backup.ask("EXISTS", "b")) == (1, 0)


def test_requests_that_do_not_depend_on_the_state_are_answered_throughout(
    forked_cluster: Cluster,
) -> None:
    primary, backup = forked_cluster.pair()
    with primary.wire() as wire:
        assert wire.ask("FAILOVER") == b"OK"
        for _ in range(50):
            assert wire.ask("PING") == b"PONG"
    forked_cluster.wait_paired(backup, primary)


def test_a_failover_is_called_off_by_hand(forked_cluster: Cluster) -> None:
    primary, backup, client = stuck_failover(forked_cluster)
    with pytest.raises(ReplyError, match="already in progress"):
        primary.ask("FAILOVER")
    with primary.wire() as other:
        other.send("LOCK", "b", "r2")
        assert other.is_silent_for(0.05), "it is held up, and not executed"
        assert primary.ask("FAILOVER", "ABORT") == b"OK"
        backup.thaw()
        assert other.read() and client.read()
    assert info_of(primary)["master_failover_state"] == "no-failover"
    assert (primary.role, backup.role) == ("master", "slave")


def test_a_failover_gives_up_when_its_time_is_up(forked_cluster: Cluster) -> None:
    primary, backup, client = stuck_failover(forked_cluster, "TIMEOUT", "200")
    wait_until(
        lambda: info_of(primary)["master_failover_state"] == "no-failover",
        "it gives up",
        [primary],
    )
    backup.thaw()
    assert client.read()
    assert primary.role == "master"


def test_a_failover_that_waits_goes_on_when_the_backup_does(forked_cluster: Cluster) -> None:
    primary, backup, client = stuck_failover(forked_cluster)
    backup.thaw()
    token = client.read()
    forked_cluster.wait_paired(backup, primary)
    assert backup.ask("LOCK", "a", "r1") == token


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "requires a backup in sync"),
        (("ABORT",), "No failover in progress"),
        (("TIMEOUT", "0"), "timeout must be greater than 0"),
        (("TIMEOUT", "-5"), "timeout must be greater than 0"),
        (("TIMEOUT", "soon"), "not an integer"),
        (("TIMEOUT",), "syntax error"),
        (("TO", "127.0.0.1", "7000"), "a pair has one backup"),
        (("NOW",), "syntax error"),
        (("ABORT", "NOW"), "syntax error"),
    ],
)
def test_a_failover_that_cannot_be_is_refused(
    forked_cluster: Cluster, words: tuple[str, ...], why: str
) -> None:
    node = alone(forked_cluster)
    with pytest.raises(ReplyError, match=why):
        node.ask("FAILOVER", *words)
    assert node.ask("LOCK", "a", "r1")


def test_a_backup_does_not_hand_over(forked_cluster: Cluster) -> None:
    _, backup = forked_cluster.pair()
    with pytest.raises(ReplyError, match="not valid when server is a replica"):
        backup.ask("FAILOVER")


# -- PEER ------------------------------------------------------------------------------------------

VERSION = PROTOCOL_VERSION.decode()
WHO = ("ab12", "cd34", "7000")


@pytest.mark.parametrize(
    "words",
    [
        ("JOIN", VERSION, *WHO),  # as version 1 had it
        ("JOIN", VERSION, *WHO, "-", "0", "0"),
        ("JOIN", VERSION, *WHO, "-", "0", "0", "0", "fail-stop"),
        ("JOIN", VERSION, "ab 12", "cd34", "7000", "-", "0", "0", "0", "fail-stop", "9"),
        ("JOIN", VERSION, "ab12", "", "7000", "-", "0", "0", "0", "fail-stop", "9"),
        ("JOIN", VERSION, "ab12", "cd34", "0", "-", "0", "0", "0", "fail-stop", "9"),
        ("JOIN", VERSION, "ab12", "cd34", "65536", "-", "0", "0", "0", "fail-stop", "9"),
        ("JOIN", VERSION, *WHO, "-", "x", "0", "0", "fail-stop", "9"),
        ("JOIN", VERSION, *WHO, "-", "-1", "0", "0", "fail-stop", "9"),
        ("JOIN", VERSION, *WHO, "-", "0", "9" * 30, "0", "fail-stop", "9"),
        ("JOIN", VERSION, *WHO, "-", "0", "0", "0", "fail-stop", "soon"),
        ("JOIN", VERSION, *WHO, "-", "0", "0", "0", "fail-stop", "9", "9"),
        ("JOIN", VERSION, *WHO, "-", "0", "0", "0", "x" * 257, "9"),
        ("PROPOSE", VERSION, "ab12"),
        ("PROPOSE", VERSION, "ab12", "x"),
        ("ASK", VERSION, "now"),
        ("LEAVE", VERSION),
    ],
)
def test_a_malformed_message_of_a_peer_is_refused(
    forked_cluster: Cluster, words: tuple[str, ...]
) -> None:
    node = alone(forked_cluster)
    with pytest.raises(ReplyError, match="malformed PEER request"):
        node.ask("PEER", *words)
    assert node.mode == "solo"


def test_a_node_that_keeps_the_view_elsewhere_is_told_so_and_not_attached(
    forked_cluster: Cluster,
) -> None:
    node = alone(forked_cluster)
    with node.wire() as wire:
        with pytest.raises(ReplyError, match=r"^ERR the view is kept in file:/x there and in fail"):
            wire.ask("PEER", "JOIN", VERSION, *WHO, "-", "0", "0", "0", "file:/x", "9")
        assert wire.ask("PING") == b"PONG"
    assert node.mode == "solo" and info_of(node, "stats")["sync_full"] == "0"


@pytest.mark.parametrize("words", [("ASK", "1"), ("JOIN", "2", "ab12", "7000"), ("ASK", "99")])
def test_a_peer_of_another_version_is_refused(
    forked_cluster: Cluster, words: tuple[str, ...]
) -> None:
    with pytest.raises(ReplyError, match=f"is not spoken here, this node has {VERSION}"):
        alone(forked_cluster).ask("PEER", *words)


def test_a_node_that_keeps_no_register_says_so(forked_cluster: Cluster) -> None:
    with pytest.raises(ReplyError, match="keeps no view register"):
        alone(forked_cluster).ask("PEER", "VIEW", VERSION)


def test_a_point_of_another_history_is_answered_with_a_snapshot(forked_cluster: Cluster) -> None:
    node = alone(forked_cluster)
    node.ask("LOCK", "a", "r1")
    with node.wire() as joiner:
        joiner.send("PEER", "JOIN", VERSION, *WHO, "another", "1", "5", "7", "fail-stop", "9")
        begin = joiner.read()
        assert isinstance(begin, list) and begin[0] == b"SB"
    wait_until(lambda: node.mode == "solo", "it is dropped", [node])


# -- REPLICAOF -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["REPLICAOF", "SLAVEOF", "slaveof"])
def test_a_member_is_promoted_by_hand_when_the_primary_is_gone(
    forked_cluster: Cluster, command: str
) -> None:
    primary, backup = forked_cluster.pair("--failover", "manual")
    token = primary.ask("LOCK", "a", "r1")
    primary.kill()
    wait_until(lambda: role_of(backup)[3] == b"connect", "the link is down", [backup])
    assert backup.ask(command, "no", "one") == b"OK"
    assert (backup.role, backup.mode) == ("master", "solo")
    with backup.wire() as wire:
        assert wire.inspect("a")["fencing_token"] == token


def test_promotion_by_hand_is_refused_while_the_primary_serves(forked_cluster: Cluster) -> None:
    primary, backup = forked_cluster.pair()
    with pytest.raises(ReplyError, match="the primary is alive and serves"):
        backup.ask("REPLICAOF", "NO", "ONE")
    wait_until(lambda: backup.mode == "paired", "it is paired again", [primary, backup])
    assert (primary.role, backup.role) == ("master", "slave")


def test_force_serves_what_is_here_and_says_what_that_may_lose(forked_cluster: Cluster) -> None:
    primary, backup = forked_cluster.pair("--failover", "manual")
    primary.ask("LOCK", "a", "r1")
    primary.kill()
    reply = backup.ask("REPLICAOF", "NO", "ONE", "FORCE")
    assert isinstance(reply, bytes) and reply.startswith(b"OK serving what was here at offset")
    assert backup.role == "master"


def test_a_primary_is_told_ok_that_it_is_one(forked_cluster: Cluster) -> None:
    assert alone(forked_cluster).ask("REPLICAOF", "NO", "ONE") == b"OK"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("NO", "ONE", "NOW"), "syntax error"),
        (("127.0.0.1", "7000", "FORCE"), "syntax error"),
        (("NO", "ONE", "FORCE", "x"), "syntax error"),
        (("127.0.0.1", "x"), "Invalid master port"),
        (("127.0.0.1", "0"), "Invalid master port"),
        (("127.0.0.1", "65536"), "Invalid master port"),
        (("", "7000"), "is not HOST:PORT"),
        (("a b", "7000"), "is not a host"),
        (("a,b", "7000"), "is not a host"),
        (("::zz", "7000"), "is not an IPv6 address"),
    ],
)
def test_a_malformed_replicaof_is_refused(
    forked_cluster: Cluster, words: tuple[str, ...], why: str
) -> None:
    node = alone(forked_cluster)
    with pytest.raises(ReplyError, match=why):
        node.ask("REPLICAOF", *words)
    assert node.role == "master"


def test_a_serving_primary_follows_nobody_of_no_higher_epoch(forked_cluster: Cluster) -> None:
    node = alone(forked_cluster)
    gone = forked_cluster.port()
    with node.wire() as wire:
        with pytest.raises(ReplyError, match=f"127.0.0.1:{gone.number} is gone"):
            wire.ask("REPLICAOF", "127.0.0.1", gone.number)
        with pytest.raises(ReplyError, match="that is this very node"):
            wire.ask("REPLICAOF", "127.0.0.1", node.port)
        # The connection goes on, and what is behind a REPLICAOF runs when it is answered.
        wire.send("REPLICAOF", "127.0.0.1", gone.number)
        wire.send("PING")
        with pytest.raises(ReplyError):
            wire.read()
        assert wire.read() == b"PONG"
    assert node.role == "master"


def test_replicaof_its_own_primary_is_nothing_new(forked_cluster: Cluster) -> None:
    primary, backup = forked_cluster.pair()
    reply = backup.ask("REPLICAOF", "127.0.0.1", primary.port)
    assert reply == b"OK Already connected to specified master"
    assert config_of(backup, "replicaof") == {"replicaof": f"127.0.0.1 {primary.port}"}
    assert config_of(primary, "slaveof") == {"slaveof": ""}


# -- WAIT ------------------------------------------------------------------------------------------


def test_wait_is_answered_at_once_by_a_pair(forked_cluster: Cluster) -> None:
    primary, backup = forked_cluster.pair()
    with primary.wire() as wire:
        for _ in range(3):
            wire.ask("LOCK", "a", "r1")
            assert wire.ask("WAIT", "1", "0") == 1
        assert wire.ask("WAIT", "0", "0") == 1
    with pytest.raises(ReplyError, match="WAIT cannot be used with replica instances"):
        backup.ask("WAIT", "1", "0")


def test_wait_behind_a_lock_in_one_pipeline_covers_it(forked_cluster: Cluster) -> None:
    primary, _ = forked_cluster.pair()
    with primary.wire() as wire:
        started_s = time.monotonic()
        for number in range(200):
            wire.send("LOCK", f"a{number}", f"r{number}")
            wire.send("WAIT", "1", "1000")
            wire.send("ECHO", str(number))
        for number in range(200):
            assert wire.read()
            assert wire.read() == 1
            assert wire.read() == str(number).encode()
        assert time.monotonic() - started_s < 5, "each is answered when the ack is there"


def test_wait_runs_out_on_a_node_alone(forked_cluster: Cluster) -> None:
    node = alone(forked_cluster)
    with node.wire() as wire:
        started_s = time.monotonic()
        assert wire.ask("WAIT", "1", "150") == 0
        assert 0.14 <= time.monotonic() - started_s < 5
        assert wire.ask("WAIT", "0", "0") == 0


def test_more_backups_than_a_pair_has_are_waited_for_in_vain(forked_cluster: Cluster) -> None:
    primary, _ = forked_cluster.pair()
    assert primary.ask("WAIT", "2", "100") == 1


def test_wait_lasts_until_a_backup_is_a_member(forked_cluster: Cluster) -> None:
    node = alone(forked_cluster)
    with node.wire() as wire, node.wire() as other:
        wire.ask("LOCK", "a", "r1")
        wire.send("WAIT", "1", "0")
        other.send("WAIT", "1", "15000")
        assert wire.is_silent_for(0.1)
        backup = forked_cluster.node("B").start("--replicaof", node.address)
        assert (wire.read(), other.read()) == (1, 1)
        assert wire.ask("PING") == b"PONG"
        forked_cluster.wait_paired(node, backup)


def test_a_wait_whose_client_has_gone_harms_nobody(forked_cluster: Cluster) -> None:
    node = alone(forked_cluster)
    for timeout_ms in ("0", "50", "9007199254740992"):
        for wanted in ("1", "2"):
            with node.wire() as wire:
                wire.send("WAIT", wanted, timeout_ms)
                wait_until(lambda: info_of(node)["blocked_clients"] == "1", "it waits", [node])
            wait_until(lambda: info_of(node)["blocked_clients"] == "0", "it has gone", [node])
    backup = forked_cluster.node("B").start("--replicaof", node.address)
    forked_cluster.wait_paired(node, backup)
    assert node.ask("WAIT", "1", "0") == 1


def test_wait_is_not_answered_by_a_primary_that_cannot_know(forked_cluster: Cluster) -> None:
    """The backup stands still, so nothing can be confirmed: no answer, rather than a wrong one."""
    primary, backup = forked_cluster.pair("--backup-timeout-ms", "5000")
    with primary.wire() as wire:
        wire.ask("LOCK", "a", "r1")
        backup.freeze()
        wire.send("LOCK", "b", "r2")
        wire.send("WAIT", "1", "50")
        assert wire.is_silent_for(0.3)
        backup.thaw()
        assert wire.read()
        try:
            assert wire.read() in (0, 1)  # 0: the time was up before the backup was back
        except Closed:
            pytest.fail("the connection was closed")
