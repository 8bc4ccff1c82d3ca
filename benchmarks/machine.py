"""What the figures were measured on: processor, versions, load, and CPU time that others took."""

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
STAT_STEAL_FIELD = 7  # of the cpu line in /proc/stat, after its name


def output_of(*command: str) -> str:
    """What a command prints, or "" if it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def first_match(pattern: str, text: str) -> str:
    """The first group of a pattern, or "unknown"."""
    match = re.search(pattern, text, re.MULTILINE)
    return match.group(1).strip() if match else "unknown"


def version_of(distribution: str) -> str:
    """The installed version of a Python distribution."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def commit() -> str:
    """The commit that was measured, with a plus if files differ from it."""
    git = ("git", "-C", str(REPOSITORY))
    short = output_of(*git, "rev-parse", "--short", "HEAD") or "unknown"
    return short + ("+" if output_of(*git, "status", "--porcelain", "-uno") else "")


def describe() -> dict[str, Any]:
    """Machine and versions; nothing that names the host or its users."""
    memory_kib = first_match(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": first_match(r"^model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text()),
        "cores_count": os.cpu_count(),
        "memory_gib": round(int(memory_kib) / 2**20, 1),
        "linux": first_match(r"^(\d+\.\d+)", platform.release()),
        "python": platform.python_version(),
        "gevent": version_of("gevent"),
        "hiredis": version_of("hiredis"),
        "holdfast": f"{version_of('holdfast')} ({commit()})",
        "redis": first_match(r"v=(\S+)", output_of("redis-server", "--version")),
        "load_average_before": os.getloadavg()[0],
    }


def busy_ticks() -> tuple[int, int]:
    """CPU ticks of all cores together so far: stolen by the hypervisor, and all."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    return ticks[STAT_STEAL_FIELD], sum(ticks[: STAT_STEAL_FIELD + 1])


def stolen_part(before: tuple[int, int]) -> dict[str, float]:
    """The part of the machine's CPU time that the hypervisor gave to others since then."""
    stolen, every = busy_ticks()
    return {"stolen_part": (stolen - before[0]) / max(1, every - before[1])}
