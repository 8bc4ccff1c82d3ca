"""Debian's prometheus-redis-exporter scrapes a real pair, and what it exports is what INFO says."""

from __future__ import annotations

import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.alone import info_of
from harness.ports import HOST, Port
from harness.processes import Cluster, Node, die_with_parent, environment, wait_until
from harness.programs import needed
from harness.wire import ReplyError

SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")


class Exporter:
    """The exporter of one node, and its last scrape."""

    def __init__(self, node: Node, folder: Path) -> None:
        program = needed("prometheus-redis-exporter", "prometheus-redis-exporter")
        self._port = Port()
        self.log = folder / f"exporter-{node.name}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"-redis.addr=redis://{node.address}",
                    f"-web.listen-address={HOST}:{self._port.number}",
                    "-export-client-list",
                    "-include-config-metrics",
                    "-include-system-metrics",
                    "-ping-on-connect",
                ],
                stdout=log,
                stderr=log,
                env=environment(),
                preexec_fn=die_with_parent,
            )
        self.samples: dict[str, float] = {}
        self.text = ""
        wait_until(self._is_up, "the exporter listens")

    def _is_up(self) -> bool:
        try:
            self.scrape()
        except urllib.error.URLError:
            return False
        return True

    def scrape(self) -> dict[str, float]:
        """Samples by name; of those with labels, by name and labels, too."""
        url = f"http://{HOST}:{self._port.number}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:
            self.text = response.read().decode()
        self.samples = {}
        for line in self.text.splitlines():
            match = SAMPLE.fullmatch(line)
            if match:
                name, labels, value = match.groups()
                self.samples[f"{name}{{{labels}}}" if labels else name] = float(value)
        return self.samples

    def labelled(self, name: str) -> list[dict[str, str]]:
        """The labels of the samples of this name."""
        found = [key for key in self.samples if key.startswith(name + "{")]
        return [dict(re.findall(r'(\w+)="([^"]*)"', key)) for key in found]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._port.release()


@pytest.fixture
def pair(forked_cluster: Cluster) -> tuple[Node, Node]:
    needed("prometheus-redis-exporter", "prometheus-redis-exporter")
    primary, backup = forked_cluster.pair()
    with primary.wire() as wire:
        for number in range(5):
            wire.ask("LOCK", f"a{number}", f"r{number}")
        for number in range(3):
            wire.ask("LOCK", "a0", f"s{number}")
        wire.ask("UNLOCK", "a4", "t")
        with pytest.raises(ReplyError):
            wire.ask("NONSENSE")
    return primary, backup


@pytest.fixture
def exporters(pair: tuple[Node, Node], tmp_path: Path) -> Iterator[tuple[Exporter, Exporter]]:
    primary, backup = (Exporter(node, tmp_path) for node in pair)
    yield primary, backup
    primary.close()
    backup.close()


def test_the_dashboard_of_the_primary_shows_the_truth(
    pair: tuple[Node, Node], exporters: tuple[Exporter, Exporter]
) -> None:
    node, exporter = pair[0], exporters[0]
    waiting = node.wire()
    waiting.send("WAIT", "2", "0")
    wait_until(lambda: info_of(node)["blocked_clients"] == "1", "it waits", [node])
    samples = exporter.scrape()
    shown = info_of(node, "everything")
    assert samples["redis_up"] == 1
    assert samples['redis_exporter_last_scrape_error{err=""}'] == 0
    assert samples['redis_db_keys{db="db0"}'] == 4
    assert [labels["db"] for labels in exporter.labelled("redis_db_keys")] == ["db0"]
    assert samples["redis_keyspace_hits_total"] == 5
    assert samples["redis_keyspace_misses_total"] == 3
    assert samples["redis_blocked_clients"] == 1
    for name, field in {
        "redis_connected_slaves": "connected_slaves",
        "redis_master_repl_offset": "master_repl_offset",
        "redis_config_maxclients": "maxclients",
        "redis_memory_max_bytes": "maxmemory",
        "redis_evicted_keys_total": "evicted_keys",
        "redis_expired_keys_total": "expired_keys",
        "redis_rejected_connections_total": "rejected_connections",
        "redis_cluster_enabled": "cluster_enabled",
        "redis_loading_dump_file": "loading",
        "redis_replication_backlog_bytes": "repl_backlog_size",
    }.items():
        assert samples[name] == float(shown[field]), name
    for name, field in {
        "redis_memory_used_bytes": "used_memory",
        "redis_memory_used_rss_bytes": "used_memory_rss",
        "redis_memory_used_peak_bytes": "used_memory_peak",
        "redis_uptime_in_seconds": "uptime_in_seconds",
        "redis_commands_processed_total": "total_commands_processed",
        "redis_connections_received_total": "total_connections_received",
        "redis_net_input_bytes_total": "total_net_input_bytes",
        "redis_cpu_user_seconds_total": "used_cpu_user",
    }.items():
        assert 0 <= samples[name] <= float(shown[field]) * 1.1 + 2, name
    waiting.close()


def test_commands_errors_and_clients_are_exported(
    pair: tuple[Node, Node], exporters: tuple[Exporter, Exporter]
) -> None:
    exporter = exporters[0]
    samples = exporter.scrape()
    assert samples['redis_commands_total{cmd="lock"}'] == 8
    assert samples['redis_commands_total{cmd="unlock"}'] == 1
    assert samples['redis_commands_duration_seconds_total{cmd="lock"}'] >= 0
    (instance,) = exporter.labelled("redis_instance_info")
    assert instance["redis_version"] == "7.0.15" and instance["role"] == "master"
    assert instance["tcp_port"] == str(pair[0].port) and instance["run_id"]
    clients = exporter.labelled("redis_connected_client_output_buffer_memory_usage_bytes")
    clients = clients or exporter.labelled("redis_connected_client_info")
    clients = clients or exporter.labelled("redis_connected_clients_details")
    assert any(labels.get("name") == "redis_exporter" for labels in clients), exporter.text
    # (On a busy machine one of them may have been slow.)
    slow_count = pair[0].ask("SLOWLOG", "LEN")
    assert isinstance(slow_count, int) and 0 <= samples["redis_slowlog_length"] <= slow_count
    log = exporter.log.read_text()
    complaints = [line for line in log.splitlines() if "level=error" in line]
    # LATENCY is asked of every server, and may be missing.
    assert all("cmd LATENCY" in line for line in complaints), log
    assert "panic" not in log


def test_the_backup_is_exported_as_one(
    pair: tuple[Node, Node], exporters: tuple[Exporter, Exporter]
) -> None:
    primary, exporter = pair[0], exporters[1]
    samples = exporter.scrape()
    (instance,) = exporter.labelled("redis_instance_info")
    assert samples["redis_up"] == 1 and instance["role"] == "slave"
    (link,) = exporter.labelled("redis_master_link_up")
    assert (link["master_host"], link["master_port"]) == (HOST, str(primary.port))
    assert next(value for key, value in samples.items() if "master_link_up{" in key) == 1
    assert samples['redis_db_keys{db="db0"}'] == 4
    (slave,) = exporters[0].labelled("redis_connected_slave_offset_bytes")
    assert (slave["slave_ip"], slave["slave_port"]) == (HOST, str(pair[1].port))
    assert slave["slave_state"] == "online"


def test_a_lost_primary_turns_its_dashboard_red_and_the_backup_s_to_master(
    pair: tuple[Node, Node], exporters: tuple[Exporter, Exporter]
) -> None:
    primary, backup = pair
    primary.kill()
    wait_until(lambda: backup.role == "master", "the backup takes over", [backup])
    assert exporters[0].scrape()["redis_up"] == 0
    exporters[1].scrape()
    (instance,) = exporters[1].labelled("redis_instance_info")
    assert instance["role"] == "master"
    assert exporters[1].samples['redis_db_keys{db="db0"}'] == 4
