"""Clerk on a real pair: shared by threads and greenlets through a failover, forked, and with every
supported version of redis-py.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from harness.processes import TIMEOUT_S, Cluster, environment, wait_until
from harness.programs import python_with, run
from harness.workers import Workers

import holdfast
from holdfast.compat import Clerk

NAMES = ("a", "b")


class Watch:
    """Counts who is in each critical section; an error for the second one."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._inside: Counter[str] = Counter()
        self.tokens: list[int] = []
        self.cycles = 0

    def step(self, clerk: Clerk, rng: random.Random) -> None:
        """Take a lock if it is free, and give it back."""
        name = rng.choice(NAMES)
        if token := clerk.acquire(name):
            with self._mutex:
                self._inside[name] += 1
                self.tokens.append(token)
                assert self._inside[name] == 1, f"{name} has two holders"
            time.sleep(0)
            with self._mutex:
                self._inside[name] -= 1
            assert clerk.release(name), f"{name} was not held any more"
        self.cycles += 1


def test_a_clerk_shared_by_32_threads_outlives_the_primary_and_no_lock_has_two_holders(
    cluster: Cluster,
) -> None:
    primary, backup = cluster.pair()
    watch = Watch()
    with Clerk(primary.url, backup.url) as clerk:
        workers = Workers(
            [(random.Random(seed), lambda rng: watch.step(clerk, rng)) for seed in range(32)]
        )

        def wait_cycles(count: int) -> None:
            goal = watch.cycles + count
            wait_until(lambda: watch.cycles >= goal or workers.errors, "they go on", cluster.nodes)

        wait_cycles(500)
        primary.kill()
        wait_cycles(500)
        workers.stop()
        assert watch.tokens and len(set(watch.tokens)) == len(watch.tokens)
        assert {clerk.inspect(name)["state"] for name in NAMES} == {"free"}


def test_parent_and_child_go_on_with_one_clerk_and_exclude_each_other(cluster: Cluster) -> None:
    primary, backup = cluster.pair()
    source = """
import os, sys
from holdfast.compat import Clerk
clerk = Clerk(*sys.argv[1:])
assert clerk.acquire("a")
child = os.fork()
if child == 0:
    try:
        assert clerk.acquire("a") == 0
        assert clerk.acquire("b") > 0
        clerk.close()
        os._exit(0)
    finally:
        os._exit(1)
for _ in range(200):
    assert clerk.acquire("parent") and clerk.release("parent")
assert os.waitpid(child, 0)[1] == 0
assert clerk.acquire("b") == 0
assert clerk.release("a") and clerk.release("b") and not clerk.release("b")
assert clerk.acquire("a")
print("done")
"""
    assert run(sys.executable, "-c", source, primary.url, backup.url) == "done\n"


GREENLETS = """
from gevent import monkey; monkey.patch_all()
import gevent, json, random, sys
from collections import Counter
from holdfast.compat import Clerk

clerk = Clerk(*sys.argv[1:])
inside, tokens, going = Counter(), [], [True]

def work():
    while going[0]:
        name = random.choice("ab")
        if token := clerk.acquire(name):
            tokens.append(token)
            inside[name] += 1
            assert inside[name] == 1, "two holders"
            gevent.sleep(0)
            inside[name] -= 1
            assert clerk.release(name)

def wait_granted(count):
    goal = len(tokens) + count
    while len(tokens) < goal and not any(job.ready() for job in jobs):
        gevent.sleep(0.01)

jobs = [gevent.spawn(work) for _ in range(20)]
wait_granted(100)
print("warm", flush=True)
sys.stdin.readline()
wait_granted(100)
going[0] = False
gevent.joinall(jobs, raise_error=True)
print(json.dumps([len(tokens), len(set(tokens)), [clerk.inspect(n)["state"] for n in "ab"]]))
"""


def test_the_greenlets_of_a_patched_program_share_a_clerk_and_outlive_the_primary(
    cluster: Cluster,
) -> None:
    pytest.importorskip("gevent")
    primary, backup = cluster.pair()
    program = subprocess.Popen(
        [sys.executable, "-c", GREENLETS, primary.url, backup.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "warm\n"
        primary.kill()
        out, errors = program.communicate("\n", TIMEOUT_S)
    finally:
        program.kill()
        program.wait()
    assert program.returncode == 0, errors
    granted, distinct, states = json.loads(out)
    assert granted == distinct >= 200 and states == ["free", "free"]


# -- versions of redis-py --------------------------------------------------------------------------

VERSIONS = """
import dataclasses, os, signal, sys, threading, time, redis
from holdfast.compat import Clerk, UnavailableError
from holdfast.compat.attempts import release_request

def misspelt(client):
    request = release_request(client, b"a")
    return dataclasses.replace(request, words=(*request.words, b"NONSENSE", b"x"))

version, primary_pid, *urls = sys.argv[1:]
assert redis.__version__.startswith(version + "."), redis.__version__
# The backup first: -READONLY.
with Clerk(*reversed(urls), deadline_ms=20_000, read_timeout_ms=150) as clerk:
    first = clerk.acquire("a")
    assert first > 0 and clerk.acquire("a") == 0
    held = clerk.inspect("a")
    assert (held["state"], held["fencing_token"]) == ("held", first), held
    assert held["owner"].startswith(b"@"), held
    assert clerk.release("a") is True and clerk.release("a") is False
    assert clerk.acquire("a") > first
    try:
        clerk._session.change(misspelt, 5_000_000)
        sys.exit("it was taken")
    except redis.ResponseError as error:
        assert "NONSENSE" in str(error), error
    threading.Timer(0.4, clerk.release, ("a",)).start()
    assert clerk.acquire("a", lease_ms=60_000, wait_ms=10_000) > first  # past the read time-out
    with clerk.lock("b", lease_ms=200, renew=True) as lock:
        time.sleep(0.3)
        assert lock.owned()
    try:
        lock.release()
        sys.exit("it was released twice")
    except redis.exceptions.LockError as error:
        assert "an unlocked lock" in str(error), error
    os.kill(int(primary_pid), signal.SIGKILL)
    assert clerk.acquire("a") == 0
    assert clerk.release("a") is True and clerk.acquire("a") > first
    assert clerk.inspect("b")["state"] == "free"
try:
    Clerk(urls[0], deadline_ms=200).acquire("a")
except UnavailableError:
    print("done")
"""


@pytest.mark.parametrize("parser", ["hiredis", "pure"])
@pytest.mark.parametrize("version", ["5.0", "6", "7"])
def test_clerk_works_with_older_redis_py(
    cluster: Cluster, tmp_path: Path, version: str, parser: str
) -> None:
    python = python_with(f"redis=={version}.*", *(["hiredis"] if parser == "hiredis" else []))
    (tmp_path / "holdfast").symlink_to(Path(holdfast.__file__).resolve().parent)
    primary, backup = cluster.pair()
    source = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{VERSIONS}"
    urls = (primary.url, backup.url)
    assert run(python, "-c", source, version, str(primary.pid), *urls) == "done\n"
