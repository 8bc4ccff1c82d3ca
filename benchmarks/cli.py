"""Holdfast beside Redis, side by side on the same machine: `make bench`.

    throughput  operations a second and CPU time of each; also what a bare command line does
    contention  one lock that many want: hand-over, cost, fairness
    expiry      how late a lease that ran out is noticed
    storm       a million leases that run out at once: does anybody else have to wait?
    resync      a backup that comes back under load: does anybody have to wait?
    memory      bytes for each held lock
    all         one after the other

`python -m benchmarks PART --help` lists the options of a part. `all` knows those that every part
knows, such as --quick, --rounds and --directory.
"""

import signal
import sys
from types import FrameType, ModuleType

from . import contention, expiry, memory, parts, resync, run, storm

PARTS: dict[str, ModuleType] = {
    part.NAME: part for part in (contention, expiry, storm, resync, memory)
}


def stop_orderly(number: int, _frame: FrameType | None) -> None:
    """SIGTERM unwinds the stack, and so ends all servers."""
    raise SystemExit(128 + number)


def one(name: str, argv: list[str]) -> int:
    """One part; its exit status."""
    return run.main(argv) if name == "throughput" else parts.main(PARTS[name], argv)


def main(argv: list[str]) -> int:
    """0; or 1 if anything was wrong in any part."""
    signal.signal(signal.SIGTERM, stop_orderly)
    name, rest = (argv[0], argv[1:]) if argv[:1] and argv[0][0] != "-" else ("throughput", argv)
    names = ("throughput", *PARTS) if name == "all" else (name,)
    if not {*names} <= {"throughput", *PARTS}:
        print(f"there is no part {name!r}\n\n{__doc__}", file=sys.stderr)
        return 2
    try:
        return max([one(each, rest) for each in names])
    except KeyboardInterrupt:
        print("interrupted: the results that there were stay", file=sys.stderr)
        return 128 + signal.SIGINT
