"""The lock object: the interface of redis-py's, played on both, and what it has besides."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from harness.alone import alone, info_of
from harness.ports import HOST
from harness.processes import TIMEOUT_S, Cluster, Node, environment, wait_until
from harness.redis_server import RedisServer
from harness.scripted import SILENCE, Action, Heard, ok
from harness.scripted import Node as ScriptedNode
from redis.exceptions import LockError, LockNotOwnedError

from holdfast.compat import (
    Clerk,
    Lock,
    LockLostError,
    LockNotAcquiredError,
    LockNotHeldError,
)
from holdfast.compat import lock as lock_module
from holdfast.compat.endpoints import now_us
from holdfast.compat.lock import Held


@pytest.fixture
def node(forked_cluster: Cluster) -> Node:
    return alone(forked_cluster)


@pytest.fixture
def clerk(node: Node) -> Iterator[Clerk]:
    with Clerk(node.url) as clerk:
        yield clerk


# --- redis-py's lock and ours, side by side --------------------------------------------------


class World(NamedTuple):
    """Somewhere to lock: `lock(name, lease in s, wait in s)`, and a client for what is seen."""

    lock: Callable[..., Any]
    client: redis.Redis


@pytest.fixture(params=["redis-py on redis-server", "clerk"])
def world(
    request: pytest.FixtureRequest, tmp_path: Path, forked_cluster: Cluster
) -> Iterator[World]:
    if request.param != "clerk":
        with RedisServer(tmp_path) as server, redis.Redis(host=HOST, port=server.port) as client:

            def theirs(name: str, lease_s: float | None = None, wait_s: float | None = None) -> Any:
                return client.lock(name, timeout=lease_s, blocking_timeout=wait_s, sleep=0.01)

            yield World(theirs, client)
        return
    node = alone(forked_cluster)
    with Clerk(node.url) as clerk, redis.Redis(host=HOST, port=node.port) as client:

        def ours(name: str, lease_s: float | None = None, wait_s: float | None = None) -> Lock:
            return clerk.lock(name, lease_ms=_ms(lease_s), wait_ms=_ms(wait_s))

        yield World(ours, client)


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1_000)


def test_drop_in_a_lock_is_taken_and_given_back(world: World) -> None:
    lock = world.lock("a")
    assert not lock.locked() and not lock.owned()
    assert lock.acquire(blocking=False) is True
    assert lock.locked() and lock.owned()
    assert world.client.ttl("a") == -1
    assert world.lock("a").acquire(blocking=False) is False
    assert lock.release() is None
    assert not lock.locked() and not lock.owned()
    assert world.client.get("a") is None


def test_drop_in_another_object_sees_that_it_is_locked_and_not_its_own(world: World) -> None:
    lock, other = world.lock("a"), world.lock("a")
    lock.acquire(blocking=False)
    assert other.locked() and not other.owned()
    with pytest.raises(LockError, match="Cannot release"):
        other.release()
    assert lock.owned()


def test_drop_in_the_lease_is_a_ttl(world: World) -> None:
    lock = world.lock("a", 10)
    assert lock.acquire(blocking=False)
    assert 8_000 < world.client.pttl("a") <= 10_000
    lock.release()


def test_drop_in_waiting_takes_as_long_as_allowed(world: World) -> None:
    holder = world.lock("a")
    holder.acquire(blocking=False)
    lock = world.lock("a", wait_s=0.2)
    begun = time.monotonic()
    assert lock.acquire() is False
    assert 0.15 < time.monotonic() - begun < 1.0
    begun = time.monotonic()
    assert lock.acquire(blocking_timeout=0.05) is False
    assert lock.acquire(blocking=True, blocking_timeout=0.05) is False
    assert time.monotonic() - begun < 0.5
    threading.Timer(0.05, world.client.delete, ("a",)).start()
    assert world.lock("a").acquire() is True


def test_drop_in_the_token_is_what_others_see(world: World) -> None:
    for token in ("me", b"\xffme"):
        lock = world.lock("a")
        assert lock.acquire(blocking=False, token=token)
        assert world.client.get("a") == (token.encode() if isinstance(token, str) else token)
        lock.release()


def test_drop_in_the_context_manager_holds_it_and_gives_it_back(world: World) -> None:
    with world.lock("a", 10) as lock:
        assert lock.owned()
    assert world.client.get("a") is None
    with pytest.raises(KeyError), world.lock("a", 10):
        raise KeyError
    assert world.client.get("a") is None


def test_drop_in_the_context_manager_raises_a_lock_error_if_it_cannot_be_had(world: World) -> None:
    world.lock("a").acquire(blocking=False)
    with (
        pytest.raises(LockError, match="Unable to acquire lock within the time specified"),
        world.lock("a", wait_s=0.05),
    ):
        raise AssertionError("nobody is in here")


def test_drop_in_what_is_not_held_cannot_be_released_extended_or_renewed(world: World) -> None:
    lock = world.lock("a", 10)
    for call in (lock.release, lambda: lock.extend(1), lock.reacquire):
        with pytest.raises(LockError, match="Cannot"):
            call()
    lock.acquire(blocking=False)
    lock.release()
    with pytest.raises(LockError, match="Cannot release"):
        lock.release()


@pytest.mark.parametrize("verb", ["release", "extend", "reacquire"])
def test_drop_in_a_lock_that_was_lost_is_not_owned_any_more(world: World, verb: str) -> None:
    lock = world.lock("a", 10)
    lock.acquire(blocking=False)
    assert world.client.delete("a") == 1
    other = world.lock("a")
    assert other.acquire(blocking=False)
    assert not lock.owned()
    call = {"release": lock.release, "extend": lambda: lock.extend(10), "reacquire": lock.reacquire}
    with pytest.raises(LockNotOwnedError, match="no longer owned"):
        call[verb]()
    assert other.owned()


def test_drop_in_extending_adds_to_the_lease_or_replaces_it(world: World) -> None:
    lock = world.lock("a", 10)
    lock.acquire(blocking=False)
    assert lock.extend(10) is True
    assert 17_000 < world.client.pttl("a") <= 20_000
    assert lock.extend(30, replace_ttl=True) is True
    assert 28_000 < world.client.pttl("a") <= 30_000
    lock.release()


def test_drop_in_reacquiring_begins_the_lease_anew(world: World) -> None:
    lock = world.lock("a", 0.5)
    lock.acquire(blocking=False)
    wait_until(lambda: world.client.pttl("a") < 350, "it runs")
    assert lock.reacquire() is True
    assert world.client.pttl("a") > 350
    lock.release()


def test_drop_in_without_a_lease_there_is_nothing_to_extend(world: World) -> None:
    lock = world.lock("a")
    lock.acquire(blocking=False)
    for call in (lambda: lock.extend(1), lock.reacquire):
        with pytest.raises(LockError, match="with no timeout"):
            call()


def test_drop_in_an_object_that_holds_the_lock_does_not_get_it_again(world: World) -> None:
    lock = world.lock("a", 10)
    assert lock.acquire(blocking=False)
    assert lock.acquire(blocking=False) is False
    assert lock.owned()
    lock.release()


# --- ours ------------------------------------------------------------------------------------


def test_programs_with_redis_pys_lock_and_clerks_exclude_each_other(
    node: Node, clerk: Clerk
) -> None:
    with redis.Redis(host=HOST, port=node.port) as client:
        with clerk.lock("a", owner="me"):
            assert client.get("a") == b"me" and client.exists("a") == 1
            assert client.execute_command("LOCK", "a", "r1") == 0
        assert client.execute_command("LOCK", "a", "r2") > 0
    assert clerk.lock("a", wait_ms=0).acquire() is False


def test_the_errors_are_those_of_redis_py_and_say_which(clerk: Clerk) -> None:
    lock = clerk.lock("a", wait_ms=0)
    with pytest.raises(LockNotHeldError, match="Cannot release an unlocked lock") as caught:
        lock.release()
    assert isinstance(caught.value, LockError) and caught.value.lock_name == "a"
    clerk.acquire("a")
    with pytest.raises(LockNotAcquiredError), lock:
        pass
    assert issubclass(LockLostError, LockNotOwnedError)


def test_the_fencing_token_is_there_while_the_lock_is_held(clerk: Clerk) -> None:
    lock = clerk.lock("a")
    assert lock.fencing_token is None and lock.name == "a"
    with lock:
        first = lock.fencing_token
        assert first == clerk.inspect("a")["fencing_token"]
    assert lock.fencing_token is None
    with lock:
        assert lock.fencing_token > first


def test_a_wait_of_0_does_not_wait_and_blocking_overrules_it(clerk: Clerk) -> None:
    token = clerk.acquire("a")
    lock = clerk.lock("a", wait_ms=0)
    assert lock.acquire() is False
    threading.Timer(0.1, clerk.release, ("a", token)).start()
    assert lock.acquire(blocking=True) is True


def test_an_exception_in_the_section_is_not_replaced_by_that_of_a_lost_lock(
    clerk: Clerk, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyError), clerk.lock("a"):
        clerk.release("a")
        raise KeyError
    assert "no longer owned" in caplog.text
    with pytest.raises(LockLostError), clerk.lock("a"):
        clerk.release("a")


def test_what_is_left_of_a_lease_is_known_without_asking(clerk: Clerk) -> None:
    lock = clerk.lock("a", lease_ms=100)
    lock.acquire()
    assert not lock.lost
    wait_until(lambda: lock.lost, "its trust runs out")
    assert not lock.owned()
    wait_until(lambda: clerk.inspect("a")["state"] == "free", "its lease ends")
    with pytest.raises(LockLostError):
        lock.release()
    assert lock.lost
    assert lock.acquire() and not lock.lost


def test_trust_that_ran_out_unnoticed_is_mended_if_a_node_still_knows_the_grant(
    clerk: Clerk,
) -> None:
    lock = clerk.lock("a", lease_ms=200)
    lock.acquire()
    clerk.renew("a", lock.fencing_token, 60_000)
    wait_until(lambda: lock.lost, "its trust runs out")
    assert lock.extend(10) is True
    assert not lock.lost and lock.owned()
    lock.release()


def test_extending_below_what_is_left_shortens_nothing(node: Node, clerk: Clerk) -> None:
    lock = clerk.lock("a", lease_ms=60_000)
    lock.acquire()
    assert lock.extend(1, replace_ttl=True)
    assert node.ask("PTTL", "a") > 50_000 and not lock.lost
    with pytest.raises(ValueError):
        lock.extend(0, replace_ttl=True)


def test_a_lock_that_cannot_be_meant_is_refused(clerk: Clerk) -> None:
    for options in ({"lease_ms": 0}, {"wait_ms": -1}, {"owner": ""}, {"lease_ms": None}):
        with pytest.raises(ValueError):
            clerk.lock("a", renew=True, **options)
    with pytest.raises(TypeError):
        clerk.lock(7)


def test_each_thread_has_a_grant_of_its_own(clerk: Clerk) -> None:
    lock = clerk.lock("a", lease_ms=150)
    lock.acquire()
    first, others = lock.fencing_token, []
    assert first is not None

    def other() -> None:
        assert lock.fencing_token is None and not lock.lost
        with pytest.raises(LockNotHeldError):
            lock.release()
        lock.acquire()  # once the first one's lease is over
        lock.extend(60)
        others.append(lock.fencing_token)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join(TIMEOUT_S)
    assert lock.lost and lock.fencing_token == first < others[0]
    with pytest.raises(LockLostError):
        lock.release()
    assert clerk.verify("a", others[0])


def test_a_grant_that_threads_share_is_taken_by_one_and_given_back_by_another(clerk: Clerk) -> None:
    lock = clerk.lock("a", thread_local=False)
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    thread.join(TIMEOUT_S)
    assert lock.owned()
    lock.release()
    assert clerk.inspect("a")["state"] == "free"


def test_an_exception_in_the_section_is_not_replaced_by_that_of_a_closed_clerk(node: Node) -> None:
    clerk = Clerk(node.url)
    with pytest.raises(KeyError), clerk.lock("a", lease_ms=100):
        clerk.close()
        raise KeyError


def test_a_release_that_fails_may_be_a_line_in_the_log(
    clerk: Clerk, caplog: pytest.LogCaptureFixture
) -> None:
    with clerk.lock("a", raise_on_release_error=False):
        clerk.release("a")
    assert "no longer owned" in caplog.text


def test_a_blocking_timeout_may_be_endless(clerk: Clerk) -> None:
    assert clerk.lock("a", wait_ms=0).acquire(blocking_timeout=float("inf"))


def test_the_options_go_by_their_names(clerk: Clerk) -> None:
    with pytest.raises(TypeError):
        clerk.lock("a", 30)  # type: ignore[misc]


@pytest.mark.parametrize("renew", [False, True])
@pytest.mark.parametrize("verb", ["release", "extend", "reacquire"])
def test_whoever_finds_a_loss_has_it_told_once(clerk: Clerk, verb: str, renew: bool) -> None:
    told: list[int | None] = []
    lock = clerk.lock(
        "a", renew=renew, lease_ms=60_000, on_lost=lambda lock: told.append(lock.fencing_token)
    )
    lock.acquire()
    clerk.release("a")
    call = {"release": lock.release, "extend": lambda: lock.extend(10), "reacquire": lock.reacquire}
    with pytest.raises(LockLostError):
        call[verb]()
    assert len(told) == 1 and lock.lost
    if verb != "release":
        with pytest.raises(LockLostError):
            lock.release()
    assert len(told) == 1
    lock.acquire()
    clerk.release("a")
    with pytest.raises(LockLostError):
        lock.release()
    assert len(told) == 2, "once for each grant"


HANDLER = """
import faulthandler, logging, signal, sys, time
from holdfast.compat import Clerk, LockNotHeldError
logging.disable()
faulthandler.dump_traceback_later(15, exit=True)
clerk = Clerk(sys.argv[1])
lock = clerk.lock("mine", renew=True, lease_ms=60_000)
given_back = busy = 0

def give_back(*_):
    global given_back, busy
    if not busy:
        busy = 1
        lock.acquire()
        lock.release()
        given_back += 1
        busy = 0

signal.signal(signal.SIGTERM, give_back)
signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGTERM))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0013)
until = time.monotonic() + 3
while time.monotonic() < until:
    clerk.release("a", clerk.acquire("a", lease_ms=60_000))
signal.setitimer(signal.ITIMER_REAL, 0)
print("done" if given_back > 100 else given_back)
"""


def test_a_signals_handler_uses_the_clerk_that_it_interrupts(node: Node) -> None:
    assert played(HANDLER, node) == "done\n"


# --- renewing --------------------------------------------------------------------------------


def renewers() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "holdfast-renew"]


def test_a_renewed_lock_outlives_its_lease_many_times(node: Node, clerk: Clerk) -> None:
    lost: list[Lock] = []
    with clerk.lock("a", lease_ms=300, renew=True, on_lost=lost.append) as lock:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert node.ask("VERIFY", "a", str(lock.fencing_token)) == 1
            assert not lock.lost and lock.owned()
            time.sleep(0.02)
    assert lost == [] and not lock.lost
    assert node.ask("EXISTS", "a") == 0
    wait_until(lambda: not renewers(), "nobody renews any more")


def test_a_lock_that_an_operator_breaks_is_lost_and_its_holder_told_once(
    node: Node, clerk: Clerk
) -> None:
    told: list[Lock] = []
    with (
        pytest.raises(LockLostError),
        clerk.lock("a", lease_ms=300, renew=True, on_lost=told.append) as lock,
    ):
        token = lock.fencing_token
        assert node.ask("DEL", "a") == 1
        assert clerk.acquire("a") > token
        wait_until(lambda: told, "it is told")
        assert lock.lost and not lock.owned() and lock.fencing_token == token
        with pytest.raises(LockNotOwnedError):
            lock.extend(1)
    assert told == [lock] and lock.lost
    assert clerk.inspect("a")["state"] == "held"
    wait_until(lambda: not renewers(), "nobody renews any more")


def test_an_on_lost_that_raises_harms_nobody(
    node: Node, clerk: Clerk, caplog: pytest.LogCaptureFixture
) -> None:
    def complain(lock: Lock) -> None:
        raise KeyError

    lock = clerk.lock("a", lease_ms=300, renew=True, on_lost=complain)
    lock.acquire()
    node.ask("DEL", "a")
    wait_until(lambda: "on_lost of the lock 'a' went wrong" in caplog.text, "it is logged")
    assert lock.lost


def test_a_release_while_a_renewal_is_under_way_is_no_loss(
    clerk: Clerk, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, released, answers = threading.Event(), threading.Event(), []
    renew = clerk._renew

    def slow(*args: Any) -> int | None:
        under_way.set()
        assert released.wait(TIMEOUT_S)
        answers.append(renew(*args))
        return answers[-1]

    monkeypatch.setattr(clerk, "_renew", slow)
    told: list[Lock] = []
    with clerk.lock("a", lease_ms=600, renew=True, on_lost=told.append) as lock:
        assert under_way.wait(TIMEOUT_S)
    released.set()
    wait_until(lambda: answers and not renewers(), "nobody renews any more")
    assert answers == [None] and told == [] and not lock.lost


def renewals(node: Node) -> int:
    (line,) = [value for name, value in info_of(node, "commandstats").items() if "renew" in name]
    return int(line.partition("calls=")[2].partition(",")[0])


def test_a_lease_that_was_extended_is_not_renewed_all_the_time(node: Node, clerk: Clerk) -> None:
    with clerk.lock("a", lease_ms=300, renew=True) as lock:
        lock.extend(1.2)
        time.sleep(2.0)
        assert lock.owned() and renewals(node) < 20


def test_a_suspended_machine_wakes_up_to_a_lock_that_is_lost(
    clerk: Clerk, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Lock] = []
    lock = clerk.lock("a", lease_ms=30_000, renew=True, on_lost=told.append)
    lock.acquire()
    monkeypatch.setattr(lock_module, "now_us", lambda: now_us() + 60_000_000)
    wait_until(lambda: told, "it is told", timeout_s=1.5)
    monkeypatch.undo()
    assert lock.lost, "it stays so"


def test_it_is_told_in_time_though_looking_up_a_name_takes_for_ever(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    look_up, found = socket.getaddrinfo, threading.Event()

    def slow(*args: Any, **options: Any) -> Any:
        found.wait(TIMEOUT_S)
        return look_up(*args, **options)

    with Clerk(f"redis://localhost:{node.port}") as clerk:
        lock = clerk.lock("a", lease_ms=400, renew=True, on_lost=lambda _: told.append(now_us()))
        lock.acquire()
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        node.kill()
        wait_until(lambda: told, "it is told")
        assert lock._held is not None
        until_us = lock._held.renewal.grant.trusted_until_us
        assert until_us is not None and told[0] - until_us < 200_000
        found.set()


def test_a_dead_connection_does_not_cost_a_short_lease() -> None:
    """A router has forgotten it: what is sent there is never answered, though the node is well."""
    dead: list[bytes] = []

    def script(heard: Heard) -> bytes | Action:
        if heard.words[0] == b"RENEW" and heard.connection == 0:
            dead.append(heard.words[0])
            return SILENCE
        return b":1\r\n"

    scripted = ScriptedNode(script, ok)
    try:
        with (
            Clerk(scripted.url) as clerk,
            clerk.lock("a", lease_ms=600, renew=True) as lock,
        ):
            time.sleep(1.2)
            assert dead and not lock.lost
    finally:
        scripted.stop()


def test_a_loss_is_that_of_one_grant_though_the_object_has_the_next_one_by_then(
    node: Node, clerk: Clerk, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int | None, bool]] = []
    finding, go_on = threading.Event(), threading.Event()
    whom_to_tell = Lock._whom_to_tell

    def slow(self: Lock, held: Held) -> Any:
        finding.set()
        assert go_on.wait(TIMEOUT_S)
        return whom_to_tell(self, held)

    monkeypatch.setattr(Lock, "_whom_to_tell", slow)
    lock = clerk.lock(
        "a", lease_ms=300, renew=True, on_lost=lambda it: told.append((it.fencing_token, it.lost))
    )
    lock.acquire()
    first = lock.fencing_token
    node.ask("DEL", "a")
    assert finding.wait(TIMEOUT_S)
    lock.acquire()
    go_on.set()
    wait_until(lambda: told, "the first loss is told")
    second = lock.fencing_token
    assert told == [(first, True)] and not lock.lost
    node.ask("DEL", "a")
    wait_until(lambda: len(told) == 2, "the second loss is told")
    assert told[1] == (second, True)


def test_a_lock_object_that_is_forgotten_is_renewed_no_more(clerk: Clerk) -> None:
    clerk.lock("a", lease_ms=300, renew=True).acquire()
    gc.collect()
    wait_until(lambda: clerk.inspect("a")["state"] == "free", "its lease ends")
    wait_until(lambda: not renewers(), "nobody renews any more")


def test_a_lock_taken_again_is_renewed_by_one_only(clerk: Clerk) -> None:
    lock = clerk.lock("a", lease_ms=300, renew=True)
    for _ in range(5):
        with lock:
            wait_until(lambda: len(renewers()) == 1, "one renews")
    wait_until(lambda: not renewers(), "nobody renews any more")


def test_if_no_thread_is_to_be_had_the_lock_is_given_back(
    clerk: Clerk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    lock = clerk.lock("a", renew=True)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            lock.acquire()
    assert lock.fencing_token is None
    assert clerk.inspect("a")["state"] == "free"


def test_a_forked_childs_copy_renews_nothing_and_knows_when_its_trust_ends(node: Node) -> None:
    source = """
import os, sys, time
from holdfast.compat import Clerk
clerk = Clerk(sys.argv[1])
lock = clerk.lock("a", lease_ms=300, renew=True)
lock.acquire()
child = os.fork()
if child == 0:
    time.sleep(0.4)
    os._exit(0 if lock.lost else 1)
time.sleep(0.4)
assert lock.owned() and not lock.lost
assert os.waitpid(child, 0)[1] == 0
lock.release()
print("done")
"""
    assert played(source, node) == "done\n"


def test_in_a_patched_program_the_renewer_is_a_greenlet(node: Node) -> None:
    pytest.importorskip("gevent")
    source = """
from gevent import monkey; monkey.patch_all()
import gevent, sys, threading
from holdfast.compat import Clerk
clerk = Clerk(sys.argv[1])
told = []
with clerk.lock("a", lease_ms=200, renew=True) as lock:
    gevent.sleep(0.5)
    assert lock.owned()
    waiter = gevent.spawn(clerk.acquire, "a", 1_000, 10_000)
    gevent.sleep(0.1)
assert waiter.get() > 0
lock = clerk.lock("b", lease_ms=200, renew=True, on_lost=told.append)
lock.acquire()
clerk.release("b")
with gevent.Timeout(5):
    while not told:
        gevent.sleep(0.01)
assert len(gevent.get_hub().threadpool) == 0
print("done")
"""
    assert played(source, node) == "done\n"


def played(source: str, node: Node) -> str:
    done = subprocess.run(
        [sys.executable, "-c", source, node.url],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
