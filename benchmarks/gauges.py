"""What is read off a running server from outside: CPU time, memory, and its own counts."""

import re
from pathlib import Path

from .load import RECV_BYTES_MIN, SILENCE_MAX_S, LoadError, connect, cpu_of, encode
from .servers import ServerError, ask

INFO_MAX_S = 30.0  # a server may stand still, which is what some of this is to show

# What a Redis script calls is counted beside what the client sent; and asking is no work either.
NOT_SENT = frozenset(("get", "del", "info", "quit"))


def cpu_us(pid: int) -> float:
    """CPU microseconds of a process so far, all threads together: to the nanosecond, give or take
    a tick, where the kernel keeps such records, else in ticks of 10 ms."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    run_ns = [int(task.read_text().split()[0]) for task in tasks]
    if any(run_ns):
        return sum(run_ns) / 1e3
    cpu = cpu_of(pid)
    return (cpu.user + cpu.system) * 1e6


def rss_bytes(pid: int) -> int:
    """Resident memory, counted page by page (`VmRSS` is off by some hundred KB)."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Rss:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def info_text(port: int, section: str) -> str:
    """One section of INFO; raises ServerError if there is no answer."""
    text = ask(port, f"INFO {section}", INFO_MAX_S)
    if "# " not in text:
        raise ServerError(f"INFO {section} on port {port} was answered {text!r}")
    return text


def info(port: int, section: str) -> dict[str, str]:
    """The fields of one section of INFO."""
    lines = (line.partition(":") for line in info_text(port, section).split("\r\n"))
    return {name: value for name, colon, value in lines if colon}


def calls(port: int) -> dict[str, int]:
    """How often the server has run each command, by its own count."""
    found = re.findall(r"^cmdstat_([^:]+):calls=(\d+)", info_text(port, "commandstats"), re.M)
    return {name: int(count) for name, count in found}


def sent_count(before: dict[str, int], after: dict[str, int]) -> int:
    """The commands that clients sent between two readings of `calls`. (A container command, such
    as CLIENT, is counted under its subcommand.)"""
    return sum(after[name] - before.get(name, 0) for name in after.keys() - NOT_SENT)


def keys_count(port: int) -> int:
    """Locks that are held, or keys that are there."""
    keys = re.search(r"keys=(\d+)", info(port, "keyspace").get("db0", ""))
    return int(keys.group(1)) if keys else 0


class Wire:
    """One blocking connection: a request, then its reply, which is a single line."""

    def __init__(self, port: int, silence_max_s: float = SILENCE_MAX_S) -> None:
        self._sock = connect(port)
        self._sock.settimeout(silence_max_s)

    def ask(self, *words: bytes) -> bytes:
        """The reply, without its end of line; an error reply raises LoadError."""
        self._sock.sendall(encode(*words))
        reply = b""
        while not reply.endswith(b"\r\n"):
            piece = self._sock.recv(RECV_BYTES_MIN)
            if not piece:
                raise LoadError(f"the server closed a connection instead of answering {words!r}")
            reply += piece
        if reply.startswith(b"-"):
            raise LoadError(f"wrong reply {reply!r} in the answer to {words!r}")
        return reply[:-2]

    def expect(self, wanted: bytes, *words: bytes) -> None:
        """Ask for what has but one right answer."""
        reply = self.ask(*words)
        if reply != wanted:
            raise LoadError(f"wrong reply {reply!r} in the answer to {words!r}")

    def close(self) -> None:
        """Hang up."""
        self._sock.close()
