"""INFO: the fields that monitoring tools want, in the format that their parsers insist on."""

from __future__ import annotations

import re

import pytest
from harness.alone import alone, info_of
from harness.processes import Cluster, Node, wait_until
from harness.wire import ReplyError

# Fields that monitoring reads and that mean something on a node of this version.
WANTED = """
    redis_version redis_mode os process_id run_id tcp_port uptime_in_seconds server_name
    holdfast_version connected_clients blocked_clients maxclients clients_in_timeout_table
    used_memory used_memory_rss used_memory_peak maxmemory maxmemory_policy
    mem_fragmentation_ratio loading rdb_changes_since_last_save rdb_bgsave_in_progress aof_enabled
    aof_rewrite_in_progress total_connections_received total_commands_processed
    instantaneous_ops_per_sec instantaneous_input_kbps instantaneous_output_kbps
    total_net_input_bytes total_net_output_bytes rejected_connections expired_keys evicted_keys
    keyspace_hits keyspace_misses pubsub_channels pubsub_patterns total_error_replies
    latest_fork_usec role connected_slaves master_repl_offset master_replid repl_backlog_active
    repl_backlog_size repl_backlog_histlen used_cpu_sys used_cpu_user used_cpu_sys_children
    used_cpu_user_children cluster_enabled locks_held locks_waiters locks_granted_total
    locks_denied_total locks_longest_hold_ms locks_fence_last locks_reply_retention_ms pair_epoch
    pair_in_sync holdfast_mode holdfast_epoch holdfast_primary holdfast_members
    holdfast_incarnation holdfast_failover
"""
ON_BACKUP = """
    master_host master_port master_link_status master_last_io_seconds_ago master_sync_in_progress
    slave_repl_offset slave_read_only slave_priority
"""
FLOATS = """
    instantaneous_input_kbps instantaneous_output_kbps mem_fragmentation_ratio used_cpu_sys
    used_cpu_user used_cpu_sys_children used_cpu_user_children
"""
HEADINGS = """
    Server Clients Memory Persistence Stats Replication CPU Errorstats Cluster Keyspace Locks
    Registers
"""


def text_of(node: Node, *sections: str) -> str:
    reply = node.ask("INFO", *sections)
    assert isinstance(reply, bytes)
    return reply.decode()


def headings(text: str) -> list[str]:
    return [line[2:] for line in text.split("\r\n") if line.startswith("# ")]


def busy(node: Node) -> None:
    """Something of everything that INFO counts."""
    with node.wire() as wire:
        wire.ask("LOCK", "a", "r1")
        wire.ask("LOCK", "a", "r2")
        wire.ask("LOCK", "b", "r3")
        wire.ask("CLIENT", "SETNAME", "me")
        for words in (
            ("NONSENSE",),
            ("LOCK",),
            ("CLIENT", "NONSENSE"),
            ("CLIENT", "SETNAME", "a b"),
        ):
            with pytest.raises(ReplyError):
                wire.ask(*words)


def test_everything_is_in_the_form_that_parsers_insist_on(forked_cluster: Cluster) -> None:
    for node in forked_cluster.pair():
        if node.role == "master":
            busy(node)
        text = text_of(node, "everything")
        assert text.endswith("\r\n") and "\n\n" not in text
        assert text.count("\n") == text.count("\r\n") == text.count("\r")
        for line in text.split("\r\n"):
            assert line == "" or re.fullmatch(r"# [A-Z][A-Za-z]+|[a-z][a-zA-Z0-9_|-]*:.*", line), (
                line
            )
        for block in text.split("\r\n\r\n"):
            assert block.startswith("# ")


def test_floats_have_a_point_and_integers_never(forked_cluster: Cluster) -> None:
    node = alone(forked_cluster)
    for _ in range(2):  # with and without traffic: a type must not flip
        fields = info_of(node)
        for name, value in fields.items():
            is_float = re.fullmatch(r"-?\d+\.\d+", value) is not None
            assert is_float == (name in FLOATS.split()), (name, value)
        busy(node)


def test_our_own_fields_are_integers_where_tools_take_them_as_they_are(
    forked_cluster: Cluster,
) -> None:
    for node in forked_cluster.pair():
        fields = info_of(node, "locks")
        assert len(fields) >= 9
        assert all(re.fullmatch(r"\d+", value) for value in fields.values()), fields
        names = set(info_of(node, "everything"))
        assert not [name for name in names if name.startswith(("db", "cluster_"))
                    and name not in ("cluster_enabled",)]  # fmt: skip


def test_all_fields_that_tools_use_are_there(forked_cluster: Cluster) -> None:
    primary, backup = forked_cluster.pair()
    assert set(WANTED.split()) <= set(info_of(primary))
    assert set(WANTED.split()) | set(ON_BACKUP.split()) <= set(info_of(backup))
    assert not set(ON_BACKUP.split()) & set(info_of(primary))


def test_sections_are_chosen_as_in_redis(forked_cluster: Cluster) -> None:
    node = alone(forked_cluster)
    busy(node)
    default = HEADINGS.split()
    assert headings(text_of(node)) == default
    assert headings(text_of(node, "default")) == default
    everything = sorted([*default, "Commandstats"])
    assert sorted(headings(text_of(node, "all"))) == everything
    assert sorted(headings(text_of(node, "EVERYTHING"))) == everything
    assert headings(text_of(node, "Replication")) == ["Replication"]
    assert headings(text_of(node, "cpu", "server", "nonsense", "cpu")) == ["Server", "CPU"]
    assert "Commandstats" in headings(text_of(node, "default", "commandstats"))
    assert text_of(node, "nonsense") == ""


def test_no_line_of_the_keyspace_without_locks(forked_cluster: Cluster) -> None:
    node = alone(forked_cluster)
    assert text_of(node, "keyspace") == "# Keyspace\r\n"
    busy(node)
    assert text_of(node, "keyspace") == "# Keyspace\r\ndb0:keys=2,expires=0,avg_ttl=0\r\n"


def test_what_happened_is_counted(forked_cluster: Cluster) -> None:
    node = alone(forked_cluster)
    busy(node)
    fields = info_of(node, "everything")
    assert (fields["keyspace_hits"], fields["keyspace_misses"]) == ("2", "1")
    assert (fields["locks_granted_total"], fields["locks_denied_total"]) == ("2", "1")
    assert fields["locks_held"] == "2"
    assert fields["errorstat_ERR"] == "count=4" and fields["total_error_replies"] == "4"
    assert fields["cmdstat_lock"].startswith("calls=")
    setname = dict(part.split("=") for part in fields["cmdstat_client|setname"].split(","))
    assert (setname["calls"], setname["failed_calls"]) == ("2", "1")
    assert set(setname) == {"calls", "usec", "usec_per_call", "rejected_calls", "failed_calls"}
    assert int(fields["total_commands_processed"]) >= 7
    assert int(fields["total_net_input_bytes"]) > 100
    assert int(fields["total_net_output_bytes"]) > 100
    assert int(fields["used_memory_peak"]) >= int(fields["used_memory_rss"]) > 10**6


def test_the_longest_hold_is_that_of_the_oldest_grant(forked_cluster: Cluster) -> None:
    node = alone(forked_cluster)
    with node.wire() as wire:
        assert info_of(node)["locks_longest_hold_ms"] == "0"
        wire.ask("LOCK", "a", "r1")
        wire.ask("LOCK", "b", "r2")
        held = wire.inspect("a")["held_ms"]
        longest = int(info_of(node)["locks_longest_hold_ms"])
        assert isinstance(held, int) and held <= longest <= held + 1_000


def test_rates_are_those_of_the_last_moments(forked_cluster: Cluster) -> None:
    node = alone(forked_cluster)
    with node.wire() as wire:

        def rate() -> int:
            for _ in range(200):
                wire.ask("PING")
            return int(info_of(node)["instantaneous_ops_per_sec"])

        wait_until(lambda: rate() > 500, "the rate shows what is going on", [node])
    wait_until(
        lambda: int(info_of(node)["instantaneous_ops_per_sec"]) < 100,
        "and when it is over",
        [node],
        poll_s=0.2,  # each look is a request, too
    )


def test_resp3_marks_it_as_text(forked_cluster: Cluster) -> None:
    node = alone(forked_cluster)
    with node.wire() as wire:
        wire.ask("HELLO", "3")
        wire.sock.sendall(b"INFO cluster\r\nCLIENT INFO\r\n")
        received = b""
        while received.count(b"\r\n") < 5:
            received += wire.sock.recv(4096)
    assert received.startswith(b"=34\r\ntxt:# Cluster\r\ncluster_enabled:0\r\n\r\n=")
    assert b"txt:id=" in received


def test_waiting_commands_are_the_blocked_clients(forked_cluster: Cluster) -> None:
    node = alone(forked_cluster)
    with node.wire() as wire:
        wire.send("WAIT", "1", "0")
        wait_until(lambda: info_of(node)["blocked_clients"] == "1", "it waits", [node])
    wait_until(lambda: info_of(node)["blocked_clients"] == "0", "it has gone", [node])
