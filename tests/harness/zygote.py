"""Forks nodes: see processes.py. Reads requests as lines of JSON, answers each with a number.

["fork", arguments, log]    its process id
["poll", pid]               its exit code, or RUNS

Nothing here may create gevent's hub: a fork would inherit its event loop.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys

import holdfast.server.node  # noqa: F401  (what a node would spend its start on)
from holdfast.server.__main__ import main

RUNS = 1_000
PR_SET_PDEATHSIG = 1


def fork(arguments: list[str], log: str) -> int:
    """Start a node."""
    pid = os.fork()
    if pid:
        return pid
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    stderr = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDWR)
    for source, target in ((nothing, 0), (nothing, 1), (stderr, 2)):
        os.dup2(source, target)
    os.chdir(os.path.dirname(log))
    code = 70
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stderr.flush()
        os._exit(code)


def poll(pid: int) -> int:
    """The exit code of a child; a signal's is negative."""
    try:
        done, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return -signal.SIGKILL
    return os.waitstatus_to_exitcode(status) if done else RUNS


for line in sys.stdin:
    verb, *rest = json.loads(line)
    print(fork(*rest) if verb == "fork" else poll(*rest), flush=True)
