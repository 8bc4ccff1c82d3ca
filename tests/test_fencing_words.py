"""Holdfast in the words of the fencing-lock libraries, and without the faults they are known for.

Such a library has an object for each lock: `acquire` with a time and a client's id returns a token,
`verify` and `release` want that token back. Here each is one call of Clerk.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from harness.processes import TIMEOUT_S, Cluster, Node, Zygote, environment, wait_until

from holdfast.compat import Clerk
from holdfast.compat.fencing import FencingGuard, StaleTokenError

LONG_S = 3_600.0
SHORT_S = 0.2


class FencedLock:
    """What such libraries call a lock. To create one is to name it."""

    def __init__(self, clerk: Clerk, name: str) -> None:
        self._clerk = clerk
        self.name = name

    def acquire(self, seconds: float, client_id: str) -> int:
        """A token, or 0 if somebody holds the lock."""
        return self._clerk.acquire(self.name, lease_ms=int(seconds * 1_000), owner=client_id)

    def verify(self, token: int) -> bool:
        """Whether the token is that of the present holder."""
        return self._clerk.verify(self.name, token)

    def release(self, token: int) -> bool:
        """Whether the token's holder had the lock, and now has not."""
        return self._clerk.release(self.name, fencing_token=token)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Iterator[Node]:
    """One for all tests: each has locks of its own."""
    cluster = Cluster(tmp_path_factory.mktemp("words"), zygote)
    node = cluster.node("P").start("--log-level", "info")
    wait_until(node.answers, "the node answers", [node])
    yield node
    cluster.close()


@pytest.fixture
def clerk(node: Node) -> Iterator[Clerk]:
    with Clerk(node.url) as clerk:
        yield clerk


@pytest.fixture
def create(clerk: Clerk) -> Callable[[], FencedLock]:
    """Locks that nobody has heard of."""
    return lambda: FencedLock(clerk, f"lock-{uuid.uuid4()}")


@pytest.fixture
def lock(create: Callable[[], FencedLock]) -> FencedLock:
    return create()


def expired(lock: FencedLock) -> int:
    """The token of a grant whose time has run out."""
    token = lock.acquire(SHORT_S, "expired")
    assert token
    wait_until(lambda: not lock.verify(token), "the lease runs out")
    return token


def released(lock: FencedLock) -> int:
    token = lock.acquire(LONG_S, "released")
    assert lock.release(token)
    return token


# ---- the words


def test_acquire_returns_a_token_with_which_to_verify_and_to_release(lock: FencedLock) -> None:
    token = lock.acquire(LONG_S, "client 1")
    assert isinstance(token, int) and token > 0
    assert lock.verify(token)
    assert lock.release(token)
    assert not lock.verify(token)


def test_acquire_is_refused_while_somebody_holds_the_lock(clerk: Clerk, lock: FencedLock) -> None:
    token = lock.acquire(LONG_S, "client 1")
    assert lock.acquire(LONG_S, "client 2") == 0
    assert lock.acquire(LONG_S, "client 1") == 0  # an id is no key: a second grant is a second one
    assert lock.verify(token)
    assert clerk.inspect(lock.name)["owner"] == b"client 1"


def test_the_time_is_the_one_that_was_asked_for(clerk: Clerk, lock: FencedLock) -> None:
    lock.acquire(LONG_S, "client 1")
    assert LONG_S * 1_000 - 60_000 < clerk.inspect(lock.name)["remaining_ms"] <= LONG_S * 1_000


def test_tokens_rise_over_all_clients_locks_and_ways_in_which_a_grant_ends(
    create: Callable[[], FencedLock],
) -> None:
    one, other = create(), create()
    tokens = [released(one), released(other), expired(one), released(one), expired(other)]
    assert tokens == sorted(set(tokens))


# ---- what a token that is not the present one gets


@pytest.mark.parametrize("ending", [expired, released])
@pytest.mark.parametrize("superseded", [False, True])
def test_a_token_of_the_past_is_refused(lock: FencedLock, ending: Any, superseded: bool) -> None:
    old = ending(lock)
    new = lock.acquire(LONG_S, "client 2") if superseded else 0
    assert not lock.verify(old)
    assert not lock.release(old)
    assert not lock.release(old)
    assert not new or lock.verify(new)


def test_a_token_of_another_lock_is_refused(create: Callable[[], FencedLock]) -> None:
    lock, other = create(), create()
    token = lock.acquire(LONG_S, "client 1")
    other_token = other.acquire(LONG_S, "client 1")
    assert not lock.verify(other_token) and not lock.release(other_token)
    assert not other.verify(token) and not other.release(token)
    assert lock.verify(token) and other.verify(other_token)


def test_a_token_of_the_future_is_refused(lock: FencedLock) -> None:
    token = lock.acquire(LONG_S, "client 1")
    assert not lock.verify(token + 1) and not lock.release(token + 1)
    assert lock.verify(token)


@pytest.mark.parametrize("nonsense", [0, -1, True, "17", None, 1.0])
def test_what_is_no_token_is_an_error_and_not_an_answer(lock: FencedLock, nonsense: Any) -> None:
    token = lock.acquire(LONG_S, "client 1")
    with pytest.raises((TypeError, ValueError)):
        lock.verify(nonsense)
    if nonsense is not None:  # to release without a token is to release whosever it is
        with pytest.raises((TypeError, ValueError)):
            lock.release(nonsense)
    assert lock.verify(token)


# ---- the faults that such libraries are known for


def pass_the_time(create: Callable[[], FencedLock]) -> None:
    """Until a grant of SHORT_S made just now has run out: the time of earlier ones is over then."""
    expired(create())


@pytest.mark.parametrize("later_time_s", [LONG_S, SHORT_S * 10])
def test_an_old_grants_timer_does_not_release_the_lock_of_a_later_holder(
    create: Callable[[], FencedLock], lock: FencedLock, later_time_s: float
) -> None:
    """A timer a grant, that is not undone with it, and releases whatever it finds when it fires:

    client 1   acquire 200 ms, release      timer: release!
    client 2                   acquire 1 h        ▲ and somebody else gets in
    """
    assert lock.release(lock.acquire(SHORT_S, "client 1"))
    token = lock.acquire(later_time_s, "client 2")
    pass_the_time(create)
    assert lock.verify(token)
    assert lock.acquire(SHORT_S, "client 3") == 0


def test_a_renewed_grants_first_timer_does_not_end_it(
    clerk: Clerk, create: Callable[[], FencedLock], lock: FencedLock
) -> None:
    token = lock.acquire(SHORT_S, "client 1")
    assert clerk.renew(lock.name, token, lease_ms=int(LONG_S * 1_000))
    pass_the_time(create)
    assert lock.verify(token)


def test_a_lock_whose_time_ran_out_is_free_though_nobody_released_it(lock: FencedLock) -> None:
    old = expired(lock)
    assert lock.acquire(LONG_S, "client 2") > old


def test_many_clients_acquire_the_same_lock_and_one_of_them_gets_it(
    node: Node, lock: FencedLock
) -> None:
    """Acquiring that decides on a copy of the state, and stores it afterwards, grants it twice."""
    tokens: list[int] = []
    together = threading.Barrier(8)

    def acquire(n: int) -> None:
        with Clerk(node.url) as clerk:
            together.wait(TIMEOUT_S)
            tokens.append(FencedLock(clerk, lock.name).acquire(LONG_S, f"client {n}"))

    threads = [threading.Thread(target=acquire, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert len(tokens) == 8
    assert sorted(tokens)[:7] == [0] * 7 and max(tokens) > 0


def test_another_process_sees_the_same_lock(node: Node, lock: FencedLock) -> None:
    token = lock.acquire(LONG_S, "client 1")
    code = (
        "from holdfast import Clerk\n"
        f"name, token = {lock.name!r}, {token}\n"
        f"with Clerk({node.url!r}) as clerk:\n"
        "    print(clerk.acquire(name), clerk.verify(name, token), end=' ')\n"
        "    print(clerk.release(name, fencing_token=token), clerk.acquire(name) > token)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.stdout.split() == ["0", "True", "True", "True"], done.stderr
    assert not lock.verify(token)
    assert not lock.release(token)


def test_a_release_that_comes_after_the_time_says_so(clerk: Clerk, lock: FencedLock) -> None:
    """Released without a word, a holder would never learn that it was alone for a part only."""
    assert lock.release(expired(lock)) is False
    with pytest.raises(redis.exceptions.LockNotOwnedError):
        with clerk.lock(lock.name, lease_ms=int(SHORT_S * 1_000)) as held:
            wait_until(lambda: not held.locked(), "the lease runs out")


def test_a_release_that_comes_after_an_operators_says_so(
    clerk: Clerk, node: Node, lock: FencedLock
) -> None:
    held = clerk.lock(lock.name, lease_ms=int(LONG_S * 1_000))
    assert held.acquire()
    assert node.ask("DEL", lock.name) == 1
    with pytest.raises(redis.exceptions.LockNotOwnedError):
        held.release()


# ---- what the tokens are for


def test_a_guard_refuses_the_writes_of_whoever_held_the_lock_before(lock: FencedLock) -> None:
    guard = FencingGuard()
    old = expired(lock)
    new = lock.acquire(LONG_S, "client 2")
    guard.check(lock.name, new)
    with pytest.raises(StaleTokenError) as caught, guard.guarding(lock.name, old):
        pytest.fail("the stale write went through")
    assert (caught.value.token, caught.value.highest_token) == (old, new)
