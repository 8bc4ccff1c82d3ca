"""INFO: the state of the node for people and for monitoring tools.

Names and meanings are Redis' where Redis has them, so that its tools and dashboards show the truth:

==================  ==========================================
blocked_clients     connections whose command waits
keyspace_hits       locks granted
keyspace_misses     locks refused
expired_keys        leases that ran out
db0:keys            held locks; no line at all if there are none
master_replid       the history; offsets count its entries
==================  ==========================================

The format is what the parsers of the tools insist on: headings ``# Name``, CRLF, a decimal point in
every float and in no integer, and no name of our own that begins with db, cmdstat_ or cluster_.

Nothing here walks the locks: INFO of a million of them costs what INFO of none costs.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...resp import encoder
from ..core.replica import Phase, Role
from .connection import REDIS_VERSION
from .replication import link_state
from .table import COMMANDS, Argument, command

if TYPE_CHECKING:
    from ..connection import Connection

Fields = Iterator[tuple[str, object]]


class Section(NamedTuple):
    """A section of INFO. ``default``: shown by a bare INFO."""

    heading: str
    fields: Callable[[Any], Fields]
    default: bool = True


@command(
    "info",
    -1,
    "Returns information and statistics about the server",
    group="server",
    flags=("loading", "stale"),
    categories=("dangerous",),
    arguments=(Argument("section", optional=True, multiple=True),),
)
def info(connection: Connection, argv: list[bytes]) -> bytes:
    """``INFO [section ...]``: what the node believes, at once."""
    wanted = {name.decode("latin-1").lower() for name in argv[1:]} or {"default"}
    everything = not wanted.isdisjoint(("all", "everything"))
    text = "\r\n".join(
        _render(section, connection.node)
        for name, section in SECTIONS.items()
        if everything or name in wanted or (section.default and "default" in wanted)
    )
    return encoder.encode(encoder.Verbatim(text), connection.protocol)


def _render(section: Section, node: Any) -> str:
    lines = [f"{name}:{value}\r\n" for name, value in section.fields(node)]
    return f"# {section.heading}\r\n{''.join(lines)}"


# -- the process -----------------------------------------------------------------------------------


def _server(node: Any) -> Fields:
    uptime_s = (node.now_ms - node.started_ms) // 1000
    yield "redis_version", REDIS_VERSION
    yield "redis_mode", "standalone"
    yield "server_name", "holdfast"
    yield "holdfast_version", _holdfast_version()
    yield "os", _operating_system()
    yield "arch_bits", 64
    yield "multiplexing_api", "epoll"
    yield "process_id", os.getpid()
    yield "run_id", node.replica.incarnation
    yield "tcp_port", node.port
    yield "server_time_usec", time.time_ns() // 1000
    yield "uptime_in_seconds", uptime_s
    yield "uptime_in_days", uptime_s // 86_400
    yield "executable", _executable()
    yield "config_file", ""


@cache
def _holdfast_version() -> str:
    try:
        return metadata.version("holdfast")
    except metadata.PackageNotFoundError:
        return "unknown"  # run from a folder that was never installed


@cache
def _operating_system() -> str:
    system = platform.uname()
    return f"{system.system} {system.release} {system.machine}"


@cache
def _executable() -> str:
    return os.path.realpath("/proc/self/exe")


def _clients(node: Any) -> Fields:
    connections = node.connections.values()
    yield "connected_clients", len(connections)
    yield "maxclients", node.connections_max
    yield (
        "client_recent_max_input_buffer",
        max((each.input_bytes for each in connections), default=0),
    )
    yield (
        "client_recent_max_output_buffer",
        max((each.output_bytes for each in connections), default=0),
    )
    yield "blocked_clients", sum(each.paused for each in connections)
    yield "tracking_clients", 0
    yield "clients_in_timeout_table", 0


def _memory(node: Any) -> Fields:
    used, peak = _resident_bytes()
    yield "used_memory", used
    yield "used_memory_human", _human(used)
    yield "used_memory_rss", used
    yield "used_memory_rss_human", _human(used)
    yield "used_memory_peak", peak
    yield "used_memory_peak_human", _human(peak)
    yield "used_memory_peak_perc", f"{100 * used / peak:.2f}%"
    yield "total_system_memory", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield "maxmemory", 0
    yield "maxmemory_human", "0B"
    yield "maxmemory_policy", "noeviction"
    yield "mem_fragmentation_ratio", "1.00"


def _resident_bytes() -> tuple[int, int]:
    """Resident memory of this process, now and at most."""
    now = peak = 0
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            peak = int(value.split()[0]) * 1024
        elif name == "VmRSS":
            now = int(value.split()[0]) * 1024
    return now, max(now, peak)


def _human(count: int) -> str:
    for unit, size in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if count >= size:
            return f"{count / size:.2f}{unit}"
    return f"{count}B"


def _persistence(node: Any) -> Fields:
    yield "loading", int(node.replica.role is not Role.PRIMARY and not node.replica.synced)
    yield "async_loading", 0
    yield "rdb_changes_since_last_save", 0
    yield "rdb_bgsave_in_progress", 0
    yield "aof_enabled", 0
    yield "aof_rewrite_in_progress", 0


def _cpu(node: Any) -> Fields:
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    yield "used_cpu_sys", f"{own.ru_stime:.6f}"
    yield "used_cpu_user", f"{own.ru_utime:.6f}"
    yield "used_cpu_sys_children", f"{children.ru_stime:.6f}"
    yield "used_cpu_user_children", f"{children.ru_utime:.6f}"


# -- requests --------------------------------------------------------------------------------------


def _stats(node: Any) -> Fields:
    stats = node.stats
    bytes_in, bytes_out = node.network_bytes()
    commands_s, bytes_in_s, bytes_out_s = stats.rates()
    yield "total_connections_received", stats.connections_received
    yield "total_commands_processed", node.commands_processed()
    yield "instantaneous_ops_per_sec", round(commands_s)
    yield "total_net_input_bytes", bytes_in
    yield "total_net_output_bytes", bytes_out
    yield "instantaneous_input_kbps", f"{bytes_in_s / 1024:.2f}"
    yield "instantaneous_output_kbps", f"{bytes_out_s / 1024:.2f}"
    yield "rejected_connections", stats.connections_rejected
    yield "sync_full", node.pairing.full_resyncs
    yield "sync_partial_ok", node.pairing.partial_resyncs
    yield "sync_partial_err", node.pairing.partial_resyncs_refused
    executor = node.replica.executor
    yield "expired_keys", executor.expired_count + executor.registers.expired_count
    yield "evicted_keys", 0
    yield "keyspace_hits", node.replica.executor.granted_count
    yield "keyspace_misses", node.replica.executor.refused_count
    yield "pubsub_channels", 0
    yield "pubsub_patterns", 0
    yield "latest_fork_usec", 0
    yield "total_error_replies", sum(stats.errors.values())
    yield "client_output_buffer_limit_disconnections", stats.output_overflows
    yield "protocol_errors", stats.protocol_errors


def _commandstats(node: Any) -> Fields:
    for declared in COMMANDS.values():
        subs = declared.subcommands.values()
        for each in (declared, *subs):
            # What a container itself did is what is left when its subcommands are taken away.
            own = subs if each is declared else ()
            calls = each.calls - sum(sub.calls for sub in own)
            microseconds = max(0, each.microseconds - sum(sub.microseconds for sub in own))
            rejected = each.rejected_calls
            failed = max(0, each.failed_calls - sum(sub.failed_calls for sub in own))
            if calls or rejected or failed:
                yield (
                    f"cmdstat_{each.name}",
                    f"calls={calls},usec={microseconds},"
                    f"usec_per_call={microseconds / max(calls, 1):.2f},"
                    f"rejected_calls={rejected},failed_calls={failed}",
                )


def _errorstats(node: Any) -> Fields:
    for code, count in sorted(node.stats.errors.items()):
        yield f"errorstat_{code}", f"count={count}"


# -- the pair --------------------------------------------------------------------------------------


def _replication(node: Any) -> Fields:
    replica, pairing = node.replica, node.pairing
    is_primary = replica.role is Role.PRIMARY
    yield "role", "master" if is_primary else "slave"
    yield from _backup_link(node) if not is_primary else ()
    backups = list(_backups(node)) if is_primary else []
    yield "connected_slaves", len(backups)
    yield from ((f"slave{number}", backup) for number, backup in enumerate(backups))
    yield "master_failover_state", pairing.switching or "no-failover"
    yield "holdfast_failovers_failed", pairing.switches_failed
    yield "master_replid", replica.state.history or "0" * 40
    yield "master_repl_offset", replica.state.offset
    backlog = replica.backlog if replica.keeps_backlog and is_primary else None
    yield "repl_backlog_active", int(backlog is not None)
    yield "repl_backlog_size", replica.backlog.bytes_max
    yield "repl_backlog_first_byte_offset", backlog.first_offset if backlog else 0
    yield "repl_backlog_histlen", backlog.size_bytes if backlog else 0
    yield "holdfast_mode", node.pairing.mode
    yield "holdfast_epoch", replica.view.epoch
    yield "holdfast_primary", replica.view.primary
    yield "holdfast_members", ",".join(replica.view.members)
    yield "holdfast_incarnation", replica.incarnation
    yield "holdfast_failover", node.config.failover
    yield "holdfast_register", node.config.view
    if pairing.settings.has_register:
        ballot = pairing.inquiry.ballot
        yield "holdfast_register_epoch", ballot.shown_epoch
        yield "holdfast_register_status", ballot.register_status
    left_ms = replica.state.grants_from_ms - replica.state_time_ms() if is_primary else 0
    if left_ms > 0:
        yield "holdfast_quarantine_ms", left_ms
    yield "holdfast_peer", node.peer.address or ""


def _backups(node: Any) -> Iterator[str]:
    """The attached backup, if there is one. ``lag``: seconds since it was last heard of."""
    replica, link = node.replica, node.pairing.link
    if link is None or link.address is None or replica.outbound is None:
        return
    state = "online" if replica.phase >= Phase.REQUIRED else "send_bulk"
    lag_s = max(0, node.now_ms - link.last_heard_ms) // 1000
    yield (
        f"ip={link.address.host},port={link.address.port},state={state},"
        f"offset={replica.outbound.acked_offset},lag={lag_s}"
    )


def _backup_link(node: Any) -> Fields:
    replica, pairing, link = node.replica, node.pairing, node.pairing.link
    address = link.address if link is not None else node.peer.address
    is_up = link_state(node) == "connected"
    heard_s = max(0, node.now_ms - link.last_heard_ms) // 1000 if link is not None else -1
    yield "master_host", address.host if address else ""
    yield "master_port", address.port if address else 0
    yield "master_link_status", "up" if is_up else "down"
    yield "master_last_io_seconds_ago", heard_s
    yield "master_sync_in_progress", int(link is not None and not replica.synced)
    yield "slave_read_repl_offset", replica.state.offset
    yield "slave_repl_offset", replica.state.offset
    if not is_up:
        since_ms = pairing.link_lost_ms or node.started_ms
        yield "master_link_down_since_seconds", max(0, node.now_ms - since_ms) // 1000
    yield "slave_priority", 100
    yield "slave_read_only", 1
    yield "replica_announced", 1


def _cluster(node: Any) -> Fields:
    yield "cluster_enabled", 0


def _keyspace(node: Any) -> Fields:
    locks, registers = node.replica.state.locks, node.replica.state.registers
    keys = len(locks.held) + len(registers.held)
    if keys:
        yield "db0", f"keys={keys},expires={locks.leases + registers.expiring},avg_ttl=0"


def _locks(node: Any) -> Fields:
    replica = node.replica
    held, now_ms = replica.state.locks.held, replica.state_time_ms()
    # Grants stand in the order in which they were made, so the first has been held the longest.
    _, _, _, oldest_ms, _ = next(iter(held.values()), (0, b"", b"", now_ms, 0))
    executor = replica.executor
    yield "locks_held", len(held)
    yield "locks_leased", replica.state.locks.leases
    yield "locks_waiters", len(executor.queue)
    yield "locks_waited_keys", len(executor.queue.lines)
    yield "locks_longest_wait_ms", executor.queue.longest_wait_ms(now_ms)
    yield "locks_longest_hold_ms", now_ms - oldest_ms
    yield "locks_granted_total", executor.granted_count
    yield "locks_denied_total", executor.refused_count
    yield "locks_timeouts_total", executor.timeouts_count
    yield "locks_lease_expired_total", executor.expired_count
    yield "locks_forced_total", executor.revoked_count
    # No fencing token above this has been given: tokens are offsets.
    yield "locks_fence_last", replica.state.offset
    yield "locks_reply_retention_ms", replica.state.replies.retention_ms(now_ms)
    yield "pair_epoch", replica.view.epoch
    yield "pair_in_sync", int(node.pairing.mode == "paired")
    yield "pair_held_back_bytes", replica.held_back_bytes


def _registers(node: Any) -> Fields:
    table, requests = node.replica.state.registers, node.replica.executor.registers
    yield "registers_held", len(table.held)
    yield "registers_expiring", table.expiring
    yield "registers_bytes", table.size_bytes
    yield "registers_written_total", requests.written_count
    yield "registers_conflicts_total", requests.conflicts_count
    yield "registers_stale_tokens_total", requests.stale_count
    yield "registers_expired_total", requests.expired_count


SECTIONS: dict[str, Section] = {
    "server": Section("Server", _server),
    "clients": Section("Clients", _clients),
    "memory": Section("Memory", _memory),
    "persistence": Section("Persistence", _persistence),
    "stats": Section("Stats", _stats),
    "replication": Section("Replication", _replication),
    "cpu": Section("CPU", _cpu),
    "commandstats": Section("Commandstats", _commandstats, default=False),
    "errorstats": Section("Errorstats", _errorstats),
    "cluster": Section("Cluster", _cluster),
    "keyspace": Section("Keyspace", _keyspace),
    "locks": Section("Locks", _locks),
    "registers": Section("Registers", _registers),
}
