"""AsyncClerk and its lock: what Clerk does, in an event loop, and what cancelling does to it."""

from __future__ import annotations

import asyncio
import gc
import inspect
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from harness.alone import alone
from harness.processes import TIMEOUT_S, Cluster
from harness.processes import Node as RealNode
from harness.programs import python_with, run
from harness.scripted import HANG_UP, SILENCE, Action, Heard, Node, Script, ok, say
from redis.exceptions import LockError, LockNotOwnedError, ResponseError

import holdfast
import holdfast.compat.leases as leases
from holdfast.compat import (
    AsyncClerk,
    AsyncLock,
    Clerk,
    IndeterminateError,
    Lock,
    LockLostError,
    LockNotAcquiredError,
    UnavailableError,
)
from holdfast.compat.endpoints import now_us


@pytest.fixture
def scripted() -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def start(*answers: bytes | Action, script: Script | None = None) -> Node:
        nodes.append(Node(script or say(*answers), ok))
        return nodes[-1]

    yield start
    for each in nodes:
        each.stop()


@pytest.fixture
def real(forked_cluster: Cluster) -> RealNode:
    return alone(forked_cluster)


@asynccontextmanager
async def clerk_of(*nodes: Node | RealNode | str, **options: int) -> AsyncIterator[AsyncClerk]:
    urls = [each if isinstance(each, str) else each.url for each in nodes]
    async with AsyncClerk(*urls, **options) as clerk:
        yield clerk


def play(scene: Coroutine[Any, Any, None]) -> None:
    """In a loop of its own, which must come to an end and complain of nothing."""
    complaints: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
        await asyncio.wait_for(scene, TIMEOUT_S)
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(watched())
    assert complaints == []


async def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.002)


def in_line(answer_after_s: float, answer: bytes) -> Script:
    def script(heard: Heard) -> bytes:
        if heard.words[0] == b"PING":
            return b"+PONG\r\n"
        if heard.words[0] == b"LOCK":
            time.sleep(answer_after_s)
            return answer
        return b":1\r\n"

    return script


def deaf_to_lock(heard: Heard) -> bytes | Action:
    return SILENCE if heard.words[0] == b"LOCK" else b":1\r\n"


def commands(node: Node) -> list[bytes]:
    return [words[0] for words in node.words]


# --- as Clerk --------------------------------------------------------------------------------


@pytest.mark.parametrize(("plain", "awaited"), [(Clerk, AsyncClerk), (Lock, AsyncLock)])
def test_the_names_and_parameters_are_the_same(plain, awaited):
    for name in (name for name in vars(plain) if not name.startswith("_")):
        ours, twin = getattr(plain, name), getattr(awaited, name)
        if not callable(ours):
            continue
        wanted, offered = (list(inspect.signature(each).parameters) for each in (ours, twin))
        if name == "acquire" and plain is Lock:
            wanted.remove("sleep")  # redis-py's asynchronous lock has none either
        if name == "lock":
            wanted.remove("thread_local")
        assert offered == wanted, name
        if name != "lock":
            assert inspect.iscoroutinefunction(twin) or inspect.isasyncgenfunction(twin), name


def test_every_call_on_a_real_node(real: RealNode) -> None:
    async def scene() -> None:
        async with clerk_of(real) as clerk:
            token = await clerk.acquire("a", lease_ms=60_000, owner="me")
            assert token > 0 and await clerk.acquire("a") == 0
            assert await clerk.acquire("a", wait_ms=50) == 0
            assert await clerk.verify("a", token) and not await clerk.verify("a", token + 1)
            assert await clerk.renew("a", token, lease_ms=90_000)
            shown = await clerk.inspect("a")
            assert shown["owner"] == b"me" and shown["remaining_ms"] > 80_000
            assert [lock["name"] async for lock in clerk.locks()] == [b"a"]
            assert [lock async for lock in clerk.locks(match="b*")] == []
            assert await clerk.release("a", token) is True
            assert await clerk.release("a", token) is False
            with pytest.raises(ResponseError):
                await clerk.acquire("a", lease_ms=10**15)
        with pytest.raises(RuntimeError, match="closed"):
            await clerk.acquire("a")

    play(scene())


def test_many_tasks_share_a_clerk_and_have_the_lock_in_turn(real: RealNode) -> None:
    async def scene() -> None:
        inside = 0
        tokens: list[int] = []

        async def step() -> None:
            nonlocal inside
            async with clerk.lock("a") as lock:
                inside += 1
                assert inside == 1
                tokens.append(lock.fencing_token)
                await asyncio.sleep(0)
                inside -= 1

        async with clerk_of(real) as clerk:
            await asyncio.gather(*(step() for _ in range(200)))
        assert tokens == sorted(set(tokens)) and len(tokens) == 200

    play(scene())


@pytest.mark.parametrize("answer", [HANG_UP, SILENCE, b"garbage\r\n", b"-READONLY no\r\n"])
def test_what_one_node_does_not_answer_is_asked_of_the_other(scripted, answer):
    first, second = scripted(answer), scripted(b":5\r\n")

    async def scene() -> None:
        async with clerk_of(first, second, read_timeout_ms=50) as clerk:
            assert await clerk.acquire("a") == 5

    play(scene())
    assert first.words == second.words and len(first.words) == 1


def test_at_the_deadline_it_says_what_is_known(scripted):
    async def scene() -> None:
        async with clerk_of(scripted(b"-READONLY no\r\n"), deadline_ms=100) as clerk:
            with pytest.raises(UnavailableError):
                await clerk.acquire("a")
        async with clerk_of(scripted(HANG_UP), deadline_ms=100) as clerk:
            with pytest.raises(IndeterminateError):
                await clerk.release("a")

    play(scene())


def test_a_late_reply_is_never_taken_for_the_next_one_and_connections_are_used_again(scripted):
    def script(heard: Heard) -> bytes:
        if heard.connection == 0:
            time.sleep(0.2)
            return b":111\r\n"
        return b":%d\r\n" % len(node.heard)

    node = scripted(script=script)

    async def scene() -> None:
        async with clerk_of(node, read_timeout_ms=100) as clerk:
            assert await clerk.acquire("a") == 2
            await asyncio.sleep(0.15)
            assert await clerk.acquire("b") == 3

    play(scene())
    assert {heard.connection for heard in node.heard} == {0, 1}


def test_a_reply_that_nobody_asked_for_costs_the_connection(scripted):
    node = scripted(b":1\r\n:99\r\n", b":2\r\n")

    async def scene() -> None:
        async with clerk_of(node) as clerk:
            assert [await clerk.acquire("a"), await clerk.acquire("a")] == [1, 2]

    play(scene())
    assert [heard.connection for heard in node.heard] == [0, 1]


def test_one_clerk_is_used_in_one_loop_after_the_other(scripted):
    node = scripted(b":5\r\n")
    clerk = AsyncClerk(node.url)
    for _ in range(2):

        async def scene() -> None:
            assert await clerk.acquire("a") == 5

        asyncio.run(scene())
    assert node.words[0][2] != node.words[1][2]


# --- standing in line ------------------------------------------------------------------------


def test_a_wait_longer_than_the_read_time_out_is_waited_for_in_one_place(scripted):
    node = scripted(script=in_line(0.5, b":5\r\n"))

    async def scene() -> None:
        async with clerk_of(node, read_timeout_ms=100, deadline_ms=300) as clerk:
            assert await clerk.acquire("a", lease_ms=300, wait_ms=10_000) == 5

    play(scene())
    assert commands(node).count(b"LOCK") == 1 and commands(node).count(b"RENEW") == 1
    assert 2 <= commands(node).count(b"PING") <= 5


def test_a_node_that_falls_silent_while_we_stand_in_line_sends_the_clerk_to_the_other(scripted):
    silent, other = scripted(SILENCE), scripted(b":5\r\n")

    async def scene() -> None:
        async with clerk_of(silent, other, read_timeout_ms=100) as clerk:
            begun = time.monotonic()
            assert await clerk.acquire("a", wait_ms=60_000) == 5
            assert 0.15 < time.monotonic() - begun < 1

    play(scene())
    assert commands(silent) == [b"LOCK", b"PING"]
    assert int(other.words[0][-1]) < int(silent.words[0][-1])


def test_all_who_wait_have_their_turn_though_the_primary_dies(forked_cluster: Cluster) -> None:
    primary, backup = forked_cluster.pair()

    async def scene() -> None:
        turns: list[int] = []

        async def stand(clerk: AsyncClerk) -> None:
            token = await clerk.acquire("a", lease_ms=20_000, wait_ms=20_000)
            turns.append(token)
            assert await clerk.release("a", token)

        async def waiter_count() -> int:
            return (await clerk.inspect("a"))["waiter_count"]

        async with clerk_of(primary, backup) as clerk:
            token = await clerk.acquire("a")
            tasks = [asyncio.create_task(stand(clerk)) for _ in range(8)]
            while await waiter_count() < 8:
                await asyncio.sleep(0.005)
            primary.kill()
            while await waiter_count() < 8:
                await asyncio.sleep(0.005)
            await clerk.release("a", token)
            await asyncio.gather(*tasks)
            assert turns == sorted(set(turns)) and len(turns) == 8 and turns[0] > token

    play(scene())


# --- cancelling ------------------------------------------------------------------------------


def test_a_cancelled_acquire_is_undone_and_its_client_id_comes_back_only_then(scripted):
    node = scripted(script=deaf_to_lock)

    async def scene() -> None:
        async with clerk_of(node) as clerk:
            task = asyncio.create_task(clerk.acquire("a", wait_ms=60_000))
            await until(lambda: node.heard)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await clerk._open_session()._undoer.wait_idle(5_000)
            await clerk.release("b")

    play(scene())
    client = node.heard[0].client
    assert node.words[1] == (b"UNLOCK", b"a", client + b":2", b"REQUEST", client + b":1")
    assert node.words[2][2] == client + b":3"


def test_an_acquire_that_a_time_out_cancels_is_undone(scripted):
    node = scripted(script=deaf_to_lock)

    async def scene() -> None:
        async with clerk_of(node) as clerk:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(clerk.acquire("a"), 0.05)

    play(scene())
    assert node.words[1][3:] == (b"REQUEST", node.words[0][2])


def test_wherever_an_acquire_is_cancelled_its_lock_is_undone(real: RealNode, monkeypatch) -> None:
    """After each number of turns of the loop, through the sending, the answer and the renewal."""
    monkeypatch.setattr(leases, "AT_ONCE_MAX_US", -1)

    async def scene() -> None:
        cancelled = 0
        async with clerk_of(real) as clerk:
            for turns in range(60):
                name = f"lock{turns}"
                task = asyncio.create_task(clerk.acquire(name, lease_ms=60_000))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    assert await task > 0
                    await clerk.release(name)
                except asyncio.CancelledError:
                    cancelled += 1
                await clerk._open_session()._undoer.wait_idle(5_000)
                assert (await clerk.inspect(name))["state"] == "free", turns
        assert cancelled > 5

    play(scene())


def test_a_program_that_is_cancelled_as_a_whole_still_undoes_its_acquire(scripted):
    node = scripted(script=deaf_to_lock)

    async def main() -> None:
        clerk = AsyncClerk(node.url)
        asyncio.get_running_loop().call_later(0.1, task_of_main().cancel)
        await clerk.acquire("a", wait_ms=60_000)

    def task_of_main() -> asyncio.Task[None]:
        (task,) = asyncio.all_tasks()
        return task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert node.words[-1][3:] == (b"REQUEST", node.words[0][2])


# --- the lock --------------------------------------------------------------------------------


def test_the_lock_has_the_interface_of_redis_pys(real: RealNode) -> None:
    async def scene() -> None:
        async with clerk_of(real) as clerk:
            lock = clerk.lock("a", lease_ms=60_000, wait_ms=50)
            assert not await lock.locked() and not await lock.owned()
            for call in (lock.release, lock.reacquire, lambda: lock.extend(1)):
                with pytest.raises(LockError, match="an unlocked lock"):
                    await call()
            assert await lock.acquire(token="me") is True
            assert (await clerk.inspect("a"))["owner"] == b"me"
            other = clerk.lock("a", wait_ms=50)
            assert await other.acquire() is False and await other.locked()
            assert await other.acquire(blocking=False) is False
            with pytest.raises(LockNotAcquiredError):
                async with other:
                    raise AssertionError("nobody is in here")
            assert await lock.extend(60) is True and await lock.reacquire() is True
            assert (await clerk.inspect("a"))["remaining_ms"] > 100_000
            await lock.release()
            async with lock:
                assert await lock.owned() and lock.fencing_token
                await clerk.release("a")
                assert not await lock.owned()
                with pytest.raises(LockNotOwnedError):
                    await lock.extend(1)
                with pytest.raises(LockLostError):
                    await lock.release()
                await lock.acquire()
            assert not await lock.locked()

    play(scene())


def test_an_exception_in_the_section_is_not_replaced_by_that_of_a_lost_lock(
    real: RealNode,
) -> None:
    async def scene() -> None:
        async with clerk_of(real) as clerk:
            with pytest.raises(KeyError):
                async with clerk.lock("a"):
                    await clerk.release("a")
                    raise KeyError
            with pytest.raises(LockLostError):
                async with clerk.lock("a"):
                    await clerk.release("a")

    play(scene())


def renewers() -> list[asyncio.Task[Any]]:
    return [each for each in asyncio.all_tasks() if each.get_name() == "holdfast-renew"]


def test_a_renewed_lock_outlives_its_lease_many_times(real: RealNode) -> None:
    async def scene() -> None:
        async with clerk_of(real) as clerk:
            async with clerk.lock("a", lease_ms=300, renew=True) as lock:
                for _ in range(60):
                    await asyncio.sleep(0.02)
                    assert await lock.owned() and not lock.lost
            assert (await clerk.inspect("a"))["state"] == "free"
            await until(lambda: not renewers())

    play(scene())


@pytest.mark.parametrize("awaitable", [False, True])
def test_a_lock_that_an_operator_breaks_is_lost_and_its_holder_told_once(
    real: RealNode, awaitable: bool
) -> None:
    async def scene() -> None:
        told: list[AsyncLock] = []

        async def tell(lock: AsyncLock) -> None:
            await asyncio.sleep(0)
            told.append(lock)

        async with clerk_of(real) as clerk:
            on_lost = tell if awaitable else told.append
            lock = clerk.lock("a", lease_ms=300, renew=True, on_lost=on_lost)
            with pytest.raises(LockLostError):
                async with lock:
                    assert real.ask("DEL", "a") == 1
                    await until(lambda: told)
                    assert lock.lost and not await lock.owned()
            assert told == [lock] and lock.lost

    play(scene())


def test_when_the_node_falls_silent_the_lock_is_lost_when_it_is_not_trusted_any_more(
    real: RealNode,
) -> None:
    async def scene() -> None:
        told: list[int] = []
        async with clerk_of(real) as clerk:
            lock = clerk.lock(
                "a", lease_ms=300, renew=True, on_lost=lambda lock: told.append(now_us())
            )
            await lock.acquire()
            await asyncio.sleep(0.3)
            real.freeze()
            await until(lambda: told)
            assert lock._held is not None
            until_us = lock._held.renewal.grant.trusted_until_us
            assert until_us is not None and -30_000 < told[0] - until_us < 100_000
            real.thaw()
            with pytest.raises(LockLostError):
                await lock.release()

    play(scene())


def test_whoever_is_told_of_a_loss_is_not_cut_off(real: RealNode) -> None:
    async def scene() -> None:
        seen: list[str] = []
        holder = asyncio.current_task()
        assert holder is not None

        async def on_lost(lock: AsyncLock) -> None:
            task.cancel()  # the natural thing to do
            await asyncio.sleep(0.1)
            seen.append("told to the end")

        async def section(clerk: AsyncClerk) -> None:
            async with clerk.lock("a", lease_ms=300, renew=True, on_lost=on_lost):
                real.ask("DEL", "a")
                await asyncio.sleep(TIMEOUT_S)

        async with clerk_of(real) as clerk:
            task = asyncio.create_task(section(clerk))
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: seen)

    play(scene())


@pytest.mark.parametrize("verb", ["release", "extend", "reacquire"])
def test_whoever_finds_a_loss_has_it_told_once(real: RealNode, verb: str) -> None:
    async def scene() -> None:
        told: list[AsyncLock] = []

        async def on_lost(lock: AsyncLock) -> None:
            told.append(lock)

        async with clerk_of(real) as clerk:
            lock = clerk.lock("a", lease_ms=60_000, renew=True, on_lost=on_lost)
            await lock.acquire()
            await clerk.release("a")
            call = {"release": lock.release, "reacquire": lock.reacquire}
            with pytest.raises(LockLostError):
                await (lock.extend(10) if verb == "extend" else call[verb]())
            assert told == [lock] and lock.lost
            if verb != "release":
                with pytest.raises(LockLostError):
                    await lock.release()
            assert told == [lock]

    play(scene())


def test_a_renewer_that_somebody_cancels_has_the_lock_lost_and_told(real: RealNode) -> None:
    async def scene() -> None:
        told: list[AsyncLock] = []
        async with clerk_of(real) as clerk:
            lock = clerk.lock("a", lease_ms=60_000, renew=True, on_lost=told.append)
            await lock.acquire()
            await asyncio.sleep(0)
            (renewer,) = renewers()
            renewer.cancel()
            await until(lambda: told)
            assert lock.lost
            with pytest.raises(LockLostError):
                await lock.release()
            assert told == [lock] and (await clerk.inspect("a"))["state"] == "free"
            async with lock:
                await asyncio.sleep(0)
            assert told == [lock], "a release is no loss"

    play(scene())


def test_a_lock_object_belongs_to_the_task_that_acquired_it(real: RealNode) -> None:
    async def scene() -> None:
        async with clerk_of(real) as clerk:
            lock, go_on = clerk.lock("a", lease_ms=100), asyncio.Event()

            async def hold() -> None:
                await lock.acquire()
                await go_on.wait()

            task = asyncio.create_task(hold())
            await until(lambda: lock.fencing_token)
            await until(lambda: lock.lost)
            with pytest.raises(LockError, match="use one lock object for each task"):
                await lock.acquire()
            go_on.set()
            await task
            assert await lock.acquire() and await lock.owned()
            await lock.release()
            assert await asyncio.create_task(lock.acquire(blocking=False))

    play(scene())


def test_a_lease_that_was_extended_is_not_renewed_all_the_time(real: RealNode) -> None:
    async def scene() -> None:
        async with clerk_of(real) as clerk:
            async with clerk.lock("a", lease_ms=300, renew=True) as lock:
                await lock.extend(1)
                sent: list[float] = []
                renew = clerk._renew

                async def counted(*args: Any) -> int | None:
                    sent.append(time.monotonic())
                    return await renew(*args)

                clerk._renew = counted  # type: ignore[method-assign]
                await asyncio.sleep(1.5)
                assert await lock.owned() and 1 <= len(sent) < 15

    play(scene())


def test_two_loops_that_live_at_the_same_time_keep_their_connections(scripted) -> None:
    node = scripted(b":5\r\n")
    clerk = AsyncClerk(node.url)
    loops = [asyncio.new_event_loop() for _ in range(2)]
    for loop in loops * 5:
        assert loop.run_until_complete(clerk.acquire("a")) == 5
    assert node.connection_count == 2
    for loop in loops:
        loop.run_until_complete(clerk.close())
        loop.close()
    node.wait_until(lambda: len(node.hung_up) == 2)


def test_a_close_that_was_cancelled_half_way_can_be_repeated(scripted) -> None:
    node = scripted(script=deaf_to_everything_but_once())

    async def scene() -> None:
        clerk = AsyncClerk(node.url, deadline_ms=200)
        assert await clerk.acquire("a") == 1
        with pytest.raises(IndeterminateError):
            await clerk.acquire("b")
        closing = asyncio.create_task(clerk.close())
        await asyncio.sleep(0.05)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await clerk.close()
        await asyncio.to_thread(node.wait_until, lambda: 0 in node.hung_up)

    asyncio.run(scene())


def deaf_to_everything_but_once() -> Script:
    heard_before: list[Heard] = []

    def script(heard: Heard) -> bytes | Action:
        heard_before.append(heard)
        return b":1\r\n" if len(heard_before) == 1 else SILENCE

    return script


def test_a_lock_object_that_is_forgotten_is_renewed_no_more(real: RealNode) -> None:
    async def scene() -> None:
        async with clerk_of(real) as clerk:
            await clerk.lock("a", lease_ms=300, renew=True).acquire()
            gc.collect()
            await until(lambda: not renewers())
            assert await clerk.acquire("a", wait_ms=5_000)

    play(scene())


# --- versions of redis-py --------------------------------------------------------------------

VERSIONS = """
import asyncio, os, signal, sys, redis
from holdfast.compat import AsyncClerk, LockLostError, UnavailableError

version, primary_pid, *urls = sys.argv[1:]
assert redis.__version__.startswith(version + "."), redis.__version__

async def main():
    async with AsyncClerk(*reversed(urls), deadline_ms=20_000, read_timeout_ms=100) as clerk:
        first = await clerk.acquire("a", lease_ms=60_000)
        assert first > 0 and await clerk.acquire("a") == 0
        waiting = asyncio.create_task(clerk.acquire("a", wait_ms=20_000))
        while (await clerk.inspect("a"))["waiter_count"] == 0:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        os.kill(int(primary_pid), signal.SIGKILL)
        assert await clerk.renew("a", first, 60_000) and await clerk.release("a", first)
        second = await waiting
        assert second > first
        abandoned = asyncio.create_task(clerk.acquire("a", wait_ms=20_000))
        while (await clerk.inspect("a"))["waiter_count"] == 0:
            await asyncio.sleep(0.01)
        abandoned.cancel()
        while (await clerk.inspect("a"))["waiter_count"]:
            await asyncio.sleep(0.01)
        assert [lock["fencing_token"] async for lock in clerk.locks()] == [second]
        assert await clerk.release("a", second)
        async with clerk.lock("a", lease_ms=200, renew=True) as lock:
            await asyncio.sleep(0.4)
            assert await lock.owned()
        try:
            async with lock:
                await clerk.release("a")
        except redis.exceptions.LockNotOwnedError as error:
            assert isinstance(error, LockLostError) and "no longer owned" in str(error)
    try:
        await AsyncClerk(urls[0], deadline_ms=200).acquire("a")
    except UnavailableError:
        print("done")

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("version", "parser"), [("5.0", "hiredis"), ("5.0", "pure"), ("6", "hiredis"), ("7", "pure")]
)
def test_it_works_with_older_redis_py(
    forked_cluster: Cluster, tmp_path: Path, version: str, parser: str
) -> None:
    python = python_with(f"redis=={version}.*", *(["hiredis"] if parser == "hiredis" else []))
    (tmp_path / "holdfast").symlink_to(Path(holdfast.__file__).resolve().parent)
    primary, backup = forked_cluster.pair()
    source = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{VERSIONS}"
    urls = (primary.url, backup.url)
    assert run(python, "-c", source, version, str(primary.pid), *urls) == "done\n"
