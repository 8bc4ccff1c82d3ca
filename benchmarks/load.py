"""The load generator: lock/unlock cycles over many connections, every reply verified.

One process, one epoll, a closed loop. Each connection sends a batch of P operations, waits for all
of their replies, checks them, and sends the next batch: P locks, then P unlocks of the same names,
for ever. Nobody competes for a name, so every lock must be granted and every unlock must release.

It has to cost less per operation than the server it measures, hence:
- a batch is encoded once, with holes; filling them is one `bytes.join` with the cycle's number;
- replies are not parsed: a batch's replies are compared as one string (or matched by one compiled
  expression, where fencing tokens vary), so a wrong one cannot pass, and a right one costs nothing;
- a connection is a generator: its state lives in local variables, and it reads as a straight line.

A reply that is not the expected one, a connection that closes and a server that falls silent all
raise `LoadError`: no figures come out of a run with a wrong reply. All replies are single lines.

Standard library only, and no imports from the rest of the package: it can be run as a file.
"""

import argparse
import gc
import hashlib
import itertools
import json
import os
import re
import select
import socket
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from pathlib import Path

HOST = "127.0.0.1"
CYCLE_FIRST = 1_000_000_000  # always ten digits, none of them a leading zero
HOLE = b"#" * len(str(CYCLE_FIRST))  # where a batch takes the number of the cycle
NAMES_PER_SLOT = 8  # each pipeline slot walks through this many lock names of its own
PIPELINE_MAX = 1024  # a batch must fit the socket's send buffer, see `cycles`
RECV_BYTES_MIN = 4096
REPLY_BYTES_MAX = 64  # a longer one is an error reply, and may come in pieces
SILENCE_MAX_S = 5.0
LEASE_MS = 30_000
WAIT_MS = 1_000

# The release script of redis-py's `Lock`.
RELEASE_SCRIPT = b"""
        local token = redis.call('get', KEYS[1])
        if not token or token ~= ARGV[1] then
            return 0
        end
        redis.call('del', KEYS[1])
        return 1
    """
RELEASE_SHA = hashlib.sha1(RELEASE_SCRIPT).hexdigest().encode()


class LoadError(Exception):
    """The server answered wrongly, closed a connection, or fell silent."""


@dataclass(frozen=True)
class Batch:
    """P operations in one write: the request between its holes, and the replies it must bring."""

    parts: list[bytes]
    reply_lines_count: int
    is_expected: Callable[[bytes], object]  # truthy only for all the replies, and all right


@dataclass(frozen=True)
class Slot:
    """One place in one connection's pipeline, and the name it has locked in the cycle at hand."""

    number: int
    name: bytes
    run: bytes  # makes the request ids of this run unlike those of any other


@dataclass(frozen=True)
class Cpu:
    """CPU time of a process; microseconds per operation in results, seconds when just read."""

    user: float
    system: float


@dataclass(frozen=True)
class Result:
    """What one run measured, over the window after the warm-up."""

    workload: str
    connections_count: int
    pipeline: int
    window_s: float
    operations_count: int
    operations_total_count: int  # with those of the warm-up and of the last, unmeasured batches
    throughput_per_s: float
    p50_ms: float  # of a batch: from its write to its last reply
    p99_ms: float
    cpu_us: dict[str, Cpu]  # per operation; "primary", "backup" and "generator"
    generator_busy: float  # CPU seconds per second; near 1 the generator is what limits


# What the workloads send and expect


def encode(*words: bytes) -> bytes:
    """A request as a RESP array."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)


def opaque_id(slot: Slot, kind: bytes) -> bytes:
    """A request id that the server knows nothing about, fresh in each cycle."""
    return b"%s-%06d-%s-%s" % (slot.run, slot.number, kind, HOLE)


def client_id(slot: Slot, kind: bytes) -> bytes:
    """An `@client:n`, one client a slot; the last digit lets the unlock's n follow the lock's."""
    return b"@%s-%06d:%s%s" % (slot.run, slot.number, HOLE, b"1" if kind == b"lock" else b"2")


IdMaker = Callable[[Slot, bytes], bytes]


def holdfast_batches(slots: list[Slot], make_id: IdMaker) -> tuple[Batch, Batch]:
    """`LOCK` with a fresh request id, then `UNLOCK` with another."""
    lock = b"".join(encode(b"LOCK", s.name, make_id(s, b"lock")) for s in slots)
    unlock = b"".join(encode(b"UNLOCK", s.name, make_id(s, b"unlock")) for s in slots)
    granted = re.compile(rb"(?::[1-9][0-9]*\r\n){%d}" % len(slots)).fullmatch
    return (
        Batch(lock.split(HOLE), len(slots), granted),
        fixed_batch(unlock, b":1\r\n" * len(slots)),
    )


def fixed_batch(request: bytes, replies: bytes) -> Batch:
    """A batch whose replies are known to the byte."""
    return Batch(request.split(HOLE), replies.count(b"\n"), replies.__eq__)


def redis_batches(slots: list[Slot], wait: str) -> tuple[Batch, Batch]:
    """`SET NX PX` with a fresh owner, then compare-and-delete; `wait` says where a `WAIT` goes."""
    px = b"%d" % LEASE_MS
    wait_request = encode(b"WAIT", b"1", b"%d" % WAIT_MS)
    each = (wait_request, b":1\r\n") if wait == "operation" else (b"", b"")
    last = (wait_request, b":1\r\n") if wait == "batch" else (b"", b"")
    lock = unlock = b""
    for slot in slots:
        owner = opaque_id(slot, b"lock")
        lock += encode(b"SET", slot.name, owner, b"NX", b"PX", px) + each[0]
        unlock += encode(b"EVALSHA", RELEASE_SHA, b"1", slot.name, owner) + each[0]
    return (
        fixed_batch(lock + last[0], (b"+OK\r\n" + each[1]) * len(slots) + last[1]),
        fixed_batch(unlock + last[0], (b":1\r\n" + each[1]) * len(slots) + last[1]),
    )


WORKLOADS: dict[str, Callable[[list[Slot]], tuple[Batch, Batch]]] = {
    "holdfast": lambda slots: holdfast_batches(slots, opaque_id),
    "holdfast-client-ids": lambda slots: holdfast_batches(slots, client_id),
    "redis": lambda slots: redis_batches(slots, "never"),
    "redis-wait": lambda slots: redis_batches(slots, "operation"),
    "redis-wait-batch": lambda slots: redis_batches(slots, "batch"),
}


def batches_of(workload: str, index: int, pipeline: int, run: bytes) -> list[tuple[Batch, Batch]]:
    """What connection `index` sends in turn; its lock names belong to no other connection."""
    numbers = range(index * pipeline, (index + 1) * pipeline)
    return [
        WORKLOADS[workload]([Slot(n, b"lock:%06d:%d" % (n, turn), run) for n in numbers])
        for turn in range(NAMES_PER_SLOT)
    ]


# The hot loop


def cycles(
    sock: socket.socket, batches: list[tuple[Batch, Batch]], record: Callable[[int], None]
) -> Generator[None, bool | None, None]:
    """One connection, for ever: write a batch, `yield` until there is something to read, check it.

    Records each batch's nanoseconds. `send(True)` instead of `next()` ends it after the unlocks of
    the cycle that is under way, so that no lock stays behind.
    """
    send, recv, clock = sock.send, sock.recv, time.perf_counter_ns
    recv_bytes = max(RECV_BYTES_MIN, REPLY_BYTES_MAX * batches[0][0].reply_lines_count)
    for number, pair in zip(itertools.count(CYCLE_FIRST), itertools.cycle(batches), strict=False):
        hole = b"%d" % number
        for batch in pair:
            request = hole.join(batch.parts)
            sent_ns = clock()
            if send(request) != len(request):
                raise LoadError(f"a batch of {len(request)} bytes does not fit the send buffer")
            ending = yield
            replies = recv(recv_bytes)
            while not batch.is_expected(replies):
                refuse_unless_partial(replies, batch, request)
                ending = (yield) or ending
                replies = grown(replies, recv(recv_bytes))
            record(clock() - sent_ns)
        if ending:
            return


def grown(replies: bytes, more: bytes) -> bytes:
    """Replies that come in pieces, put together; an empty piece is the connection's end."""
    if not more:
        raise LoadError(f"the server closed a connection after {replies!r}")
    return replies + more


def refuse_unless_partial(replies: bytes, batch: Batch, request: bytes) -> None:
    """Raise unless these may be the first bytes of the right replies."""
    if not replies:
        raise LoadError(f"the server closed a connection instead of answering {request[:120]!r}")
    wrong = re.search(rb"^(?:[^:+]|:0|:-).*", replies, re.MULTILINE)
    if wrong or replies.count(b"\n") >= batch.reply_lines_count:
        shown = (wrong.group().rstrip() if wrong else replies)[:200]
        raise LoadError(f"wrong reply {shown!r} in the answer to {request[:120]!r}")


def connect(port: int) -> socket.socket:
    """A connection without Nagle's delay."""
    sock = socket.create_connection((HOST, port), timeout=SILENCE_MAX_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def load_release_script(port: int) -> None:
    """Make the release script known, and check that the server hashes it as we do."""
    with connect(port) as sock:
        sock.sendall(encode(b"SCRIPT", b"LOAD", RELEASE_SCRIPT))
        reply = sock.recv(RECV_BYTES_MIN)
        if reply != b"$40\r\n%s\r\n" % RELEASE_SHA:
            raise LoadError(f"SCRIPT LOAD was answered {reply!r}")


class Load:
    """The connections of one run, and the time that each of their batches took."""

    def __init__(self, port: int, workload: str, connections_count: int, pipeline: int) -> None:
        """Connect, and encode what will be sent; nothing is sent yet."""
        if workload.startswith("redis"):
            load_release_script(port)
        run = os.urandom(4).hex().encode()
        self.latencies_ns: list[int] = []
        self.epoll = select.epoll(connections_count)
        self.sockets = [connect(port) for _ in range(connections_count)]
        self.active: dict[int, Generator[None, bool | None, None]] = {}
        for index, sock in enumerate(self.sockets):
            sock.setblocking(False)
            self.epoll.register(sock, select.EPOLLIN)
            batches = batches_of(workload, index, pipeline, run)
            self.active[sock.fileno()] = cycles(sock, batches, self.latencies_ns.append)

    def start(self) -> None:
        """Send every connection's first batch."""
        for connection in self.active.values():
            next(connection)

    def drive(self, duration_s: float) -> float:
        """Keep every connection busy for so long; return the seconds it really was."""
        steps = {fd: connection.__next__ for fd, connection in self.active.items()}
        poll, clock = self.epoll.poll, time.perf_counter
        start_s = clock()
        until_s = start_s + duration_s
        while clock() < until_s:
            events = poll(SILENCE_MAX_S)
            if not events:
                raise LoadError(f"no reply on any connection for {SILENCE_MAX_S} s")
            for fd, _ in events:
                steps[fd]()
        return clock() - start_s

    def finish(self) -> None:
        """Let every connection end its cycle, checked like all others."""
        until_s = time.perf_counter() + SILENCE_MAX_S
        while self.active:
            if time.perf_counter() > until_s:
                raise LoadError(f"{len(self.active)} connections did not end their cycle")
            for fd, _ in self.epoll.poll(SILENCE_MAX_S):
                self._finish_step(fd)

    def _finish_step(self, fd: int) -> None:
        try:
            self.active[fd].send(True)
        except StopIteration:
            del self.active[fd]
            self.epoll.unregister(fd)

    def close(self) -> None:
        """Close all sockets."""
        for sock in self.sockets:
            sock.close()
        self.epoll.close()


# Measuring


def cpu_of(pid: int) -> Cpu:
    """CPU seconds that a process has used, all threads together; read in ticks of 10 ms."""
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    fields = stat.rpartition(b")")[2].split()  # the name before it may hold anything
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    return Cpu(int(fields[11]) * tick_s, int(fields[12]) * tick_s)


def per_operation_us(before: Cpu, after: Cpu, operations_count: int) -> Cpu:
    """CPU microseconds per operation between two readings."""
    scale = 1e6 / operations_count
    return Cpu((after.user - before.user) * scale, (after.system - before.system) * scale)


def percentile(ordered: list[int], part: float) -> int:
    """The smallest value that at least `part` of all are not above."""
    return ordered[max(0, -int(-len(ordered) * part // 1) - 1)]


@dataclass(frozen=True)
class Settings:
    """What one run is asked to do."""

    port: int
    workload: str
    connections_count: int
    pipeline: int
    warmup_ms: int
    window_ms: int
    pids: dict[str, int]  # whose CPU time to read: "primary", "backup"


def run_load(settings: Settings) -> Result:
    """Warm up, measure over the window, check the last replies, and say what it cost."""
    load = Load(settings.port, settings.workload, settings.connections_count, settings.pipeline)
    try:
        return measure(load, settings)
    finally:
        load.close()


def measure(load: Load, settings: Settings) -> Result:
    """The run itself. The window's figures hold nothing of the warm-up or of the last batches."""
    pids = {**settings.pids, "generator": os.getpid()}
    latencies_ns = load.latencies_ns
    load.start()
    load.drive(settings.warmup_ms / 1000)
    warmup_count = len(latencies_ns)
    before = {who: cpu_of(pid) for who, pid in pids.items()}
    window_s = load.drive(settings.window_ms / 1000)
    after = {who: cpu_of(pid) for who, pid in pids.items()}
    measured_ns = sorted(latencies_ns[warmup_count:])
    if not measured_ns:
        raise LoadError(f"not one batch was answered in {window_s:.3f} s")
    load.finish()
    operations_count = len(measured_ns) * settings.pipeline
    busy = after["generator"].user + after["generator"].system
    busy -= before["generator"].user + before["generator"].system
    return Result(
        workload=settings.workload,
        connections_count=settings.connections_count,
        pipeline=settings.pipeline,
        window_s=window_s,
        operations_count=operations_count,
        operations_total_count=len(latencies_ns) * settings.pipeline,
        throughput_per_s=operations_count / window_s,
        p50_ms=percentile(measured_ns, 0.50) / 1e6,
        p99_ms=percentile(measured_ns, 0.99) / 1e6,
        cpu_us={who: per_operation_us(before[who], after[who], operations_count) for who in pids},
        generator_busy=busy / window_s,
    )


def parse_arguments(argv: list[str] | None = None) -> Settings:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--port", type=int, required=True, help=f"server's port on {HOST}")
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--connections", type=int, default=50, metavar="N")
    parser.add_argument("--pipeline", type=int, default=1, metavar="P", help="operations a batch")
    parser.add_argument("--warmup-ms", type=int, default=500, metavar="MS")
    parser.add_argument("--window-ms", type=int, default=2000, metavar="MS")
    parser.add_argument("--primary-pid", type=int, metavar="PID", help="whose CPU time to read")
    parser.add_argument("--backup-pid", type=int, metavar="PID")
    args = parser.parse_args(argv)
    if not 1 <= args.pipeline <= PIPELINE_MAX:
        parser.error(f"--pipeline {args.pipeline} is not within 1 to {PIPELINE_MAX}")
    if args.connections < 1:
        parser.error(f"--connections {args.connections} is not at least 1")
    pids = {"primary": args.primary_pid, "backup": args.backup_pid}
    return Settings(
        port=args.port,
        workload=args.workload,
        connections_count=args.connections,
        pipeline=args.pipeline,
        warmup_ms=args.warmup_ms,
        window_ms=args.window_ms,
        pids={who: pid for who, pid in pids.items() if pid is not None},
    )


def main() -> int:
    """Print the result as one line of JSON; 1 if a reply was wrong or the server went away."""
    settings = parse_arguments()
    gc.disable()  # nothing here makes cycles, and a collection would show as latency
    try:
        result = run_load(settings)
    except (LoadError, OSError) as error:
        print(f"load: {settings.workload}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
