"""What a pair of real nodes does when one of them, or the link between them, fails.

Nodes are killed (`kill -9`), frozen (SIGSTOP, SIGCONT) and cut off by a proxy on the link. Numbers
in brackets are the invariants of docs/guarantees.md: I2 durability, I3 one voice, I4 at-most-once,
I6 no reply before the backup's acknowledgement, I10 nobody is held back for ever; I13 is liveness.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from functools import partial

import pytest
from harness.history import Recorder, explain
from harness.lab import RawClerk
from harness.processes import Cluster, Node, wait_until
from harness.proxy import Proxy
from harness.wire import Closed, ReplyError, Wire, encode
from harness.workers import Workers

BACKUP_TIMEOUT_S = 0.6
PROMOTION_TIMEOUT_S = 0.9
QUICK = ("--backup-timeout-ms", "600", "--promotion-timeout-ms", "900")
# "At once" on a machine that is busy with other things; far below the time-outs of a default pair.
AT_ONCE_S = 1.0


def has_ended(wire: Wire) -> bool:
    """Whether the connection is closed by the node without a single byte of a reply."""
    try:
        wire.read()
    except Closed:
        return True
    except ReplyError:
        return False
    return False


def error_of(call: Callable[[], object]) -> str:
    """The code word of the error that `call` is answered."""
    with pytest.raises(ReplyError) as caught:
        call()
    return caught.value.code


def token_of(client: Wire, name: str) -> int:
    """The fencing token of the holder, 0 if the lock is free."""
    token = client.inspect(name)["fencing_token"]
    assert isinstance(token, int)
    return token


def serves_alone(node: Node) -> bool:
    """Whether it is a primary without a backup."""
    return node.role == "master" and node.mode == "solo"


def all_got_on(steps: list[int], before: list[int], workers: Workers) -> bool:
    """Whether every client has done a step since (or one has failed: no use waiting)."""
    return all(map(int.__gt__, steps, before)) or bool(workers.errors)


def wait_out_of_view(backup: Node) -> None:
    """Wait until a thawed backup, whose primary went on alone and is dead, knows how it stands: the
    primary's proposal may lie in its sockets still, and says that it is no member any more; or else
    it is in doubt, and stays so."""
    wait_until(
        lambda: backup.mode == "joining" or "undecided" in backup.log_text,
        "it is out, or in doubt",
        [backup],
    )


# -- the backup is lost ------------------------------------------------------------------------


def test_primary_goes_on_at_once_when_its_backup_is_killed(cluster: Cluster) -> None:
    """A request right after the kill is answered far before --backup-timeout-ms, and the mode is
    solo; what was locked still is."""
    primary, backup = cluster.pair()
    with primary.wire() as client:
        token = client.ask("LOCK", "a", "r1")
        killed_s = backup.kill()
        assert client.ask("LOCK", "b", "r2")
        assert time.monotonic() - killed_s < AT_ONCE_S
        assert client.ask("LOCK", "a", "r3") == 0
        assert client.inspect("a")["fencing_token"] == token
    wait_until(lambda: primary.mode == "solo", "the primary knows that it is alone", [primary])


def test_no_client_hangs_while_backups_are_killed_under_load(cluster: Cluster) -> None:
    """Clients that do not wait for one reply before they send the next request: whatever of them
    arrives in the very turn of the loop in which the primary decides to go on alone is answered
    too (I10). The backup is killed several times, and started again when all have got on."""
    primary, backup = cluster.pair()
    steps = [0] * 12

    def pipelines(number: int) -> Callable[[random.Random], None]:
        wire = primary.wire(timeout_s=5.0)
        cluster.defer(wire.close)
        sent = 0

        def step(rng: random.Random) -> None:
            nonlocal sent
            count = rng.randrange(1, 9)
            for _ in range(count):  # small packets, so that some arrive at any moment
                sent += 1
                wire.send("LOCK", f"{number}", f"@{number}:{2 * sent}")
                wire.send("UNLOCK", f"{number}", f"@{number}:{2 * sent + 1}")
            for _ in range(count):
                assert wire.read() > 1  # type: ignore[operator]
                assert wire.read() == 1
            steps[number] += 1

        return step

    workers = Workers([(random.Random(number), pipelines(number)) for number in range(len(steps))])
    for _ in range(6):
        backup.kill()
        wait_until(lambda: primary.mode == "solo", "it goes on alone", cluster.nodes)
        before = list(steps)
        wait_until(
            partial(all_got_on, steps, before, workers),
            "every client gets on",
            cluster.nodes,
        )
        backup.start()
        cluster.wait_paired(primary, backup)
    workers.stop()


def test_replies_stop_while_the_backup_is_frozen_and_go_on_after_its_timeout(
    cluster: Cluster,
) -> None:
    """B frozen -> nothing is answered -> --backup-timeout-ms later P goes on alone and answers;
    B thawed -> it joins again, and has what it missed (I2, I6, I13)."""
    primary, backup = cluster.pair(*QUICK)
    with primary.wire() as client:
        backup.freeze()
        sent_s = time.monotonic()
        client.send("LOCK", "a", "r1")
        assert client.is_silent_for(BACKUP_TIMEOUT_S / 2)
        token = client.read()
        assert time.monotonic() - sent_s > BACKUP_TIMEOUT_S * 0.9
        assert token
        assert primary.mode == "solo"
        assert client.ask("LOCK", "b", "r2")
        backup.thaw()
        cluster.wait_paired(primary, backup)
    primary.kill()
    wait_until(lambda: backup.role == "master", "the backup takes over", cluster.nodes)
    with backup.wire() as client:
        assert client.ask("LOCK", "a", "r1") == token
        assert client.ask("LOCK", "b", "r3") == 0


def test_nothing_that_depends_on_the_state_is_answered_without_the_backup(
    cluster: Cluster,
) -> None:
    """B frozen: LOCK, UNLOCK, INSPECT and repeats of answered requests wait; PING does not, except
    behind one that waits on its own connection. B thawed in time: all are answered, once (I6)."""
    primary, backup = cluster.pair()
    with primary.wire() as client:
        token = client.ask("LOCK", "a", "r1")
        assert client.ask("UNLOCK", "none", "u1") == 0
    requests: list[tuple[str, ...]] = [
        ("LOCK", "b", "r2"),
        ("LOCK", "a", "r3"),
        ("UNLOCK", "none", "u2"),
        ("INSPECT", "a"),
        ("LOCK", "a", "r1"),
        ("UNLOCK", "none", "u1"),
        ("LOCK", "a", "@c:1"),
        ("UNLOCK", "x", "u3", "REQUEST", "never-sent"),
    ]
    wires = [primary.wire() for _ in requests]
    backup.freeze()
    for wire, request in zip(wires, requests, strict=True):
        wire.send(*request)
    with primary.wire() as other:
        assert other.ask("PING", timeout_s=0.5) == b"PONG"
    wires[0].send("PING")
    silent_until_s = time.monotonic() + 0.3
    for wire in wires:
        assert wire.is_silent_for(max(0.001, silent_until_s - time.monotonic()))
    backup.thaw()
    granted, refused, not_held, shown, again, still_not, late, undone = (
        wire.read() for wire in wires
    )
    assert granted > token > 0  # type: ignore[operator]
    assert wires[0].read() == b"PONG"
    assert (refused, not_held, again, still_not, late, undone) == (0, 0, token, 0, 0, 0)
    assert isinstance(shown, list) and b"held" in shown
    for wire in wires:
        assert wire.is_silent_for(0.01), "answered twice"
        wire.close()
    assert primary.mode == "paired"


def test_with_min_backups_a_lone_primary_refuses_grants_and_nothing_else(
    cluster: Cluster,
) -> None:
    """--min-backups 1, B killed: LOCK is -NOREPLICAS and leaves no trace; UNLOCK, INSPECT and a
    repeat of an earlier LOCK are answered. B back: the refused request id is granted (I4, I10)."""
    primary, backup = cluster.pair("--min-backups", "1")
    with primary.wire() as client:
        token = client.ask("LOCK", "a", "r1")
        assert client.ask("LOCK", "a", "r2") == 0
        backup.kill()
        wait_until(lambda: primary.mode == "solo", "it is alone", [primary])
        assert error_of(lambda: client.ask("LOCK", "b", "r3")) == "NOREPLICAS"
        assert error_of(lambda: client.ask("LOCK", "b", "@c:7")) == "NOREPLICAS"
        assert client.ask("LOCK", "a", "r1") == token
        assert client.ask("LOCK", "a", "r2") == 0
        assert client.inspect("b")["state"] == b"free"
        assert client.ask("UNLOCK", "a", "u1") == 1
        assert client.ask("UNLOCK", "a", "u1") == 1
        assert client.inspect("a")["state"] == b"free"
        backup.start()
        cluster.wait_paired(primary, backup)
        assert client.ask("LOCK", "b", "r3")
        assert client.ask("LOCK", "a", "@c:7")


# -- the primary is lost -----------------------------------------------------------------------


def test_a_frozen_primary_is_deposed_says_nothing_and_comes_back_as_the_backup(
    cluster: Cluster,
) -> None:
    """P frozen -> B promotes itself after --promotion-timeout-ms and grants what clients had asked
    of P meanwhile -> P thawed: those clients' connections end without a byte, P drops its state
    and joins B (I3, I6, C2)."""
    primary, backup = cluster.pair(*QUICK)
    with primary.wire() as client:
        token = client.ask("LOCK", "a", "r1")
    requests = [("LOCK", "b", "r2"), ("UNLOCK", "a", "u1"), ("INSPECT", "a"), ("LOCK", "a", "r1")]
    wires = [primary.wire() for _ in requests]
    primary.freeze()
    frozen_s = time.monotonic()
    for wire, request in zip(wires, requests, strict=True):
        wire.send(*request)
    wait_until(lambda: backup.role == "master", "the backup takes over", cluster.nodes)
    assert time.monotonic() - frozen_s > PROMOTION_TIMEOUT_S * 0.7
    with backup.wire() as client:
        granted = client.ask("LOCK", "b", "r2")
        assert granted > token  # type: ignore[operator]
        assert client.ask("LOCK", "a", "r1") == token
        assert client.ask("UNLOCK", "a", "u1") == 1
        primary.thaw()
        for wire in wires:
            assert has_ended(wire), "a deposed primary has answered"
        cluster.wait_paired(backup, primary)
        assert error_of(lambda: primary.ask("LOCK", "c", "r3")) == "READONLY"
        assert client.ask("LOCK", "c", "r3") > granted  # type: ignore[operator]
    backup.kill()
    wait_until(lambda: primary.role == "master", "it takes over in its turn", cluster.nodes)
    with primary.wire() as client:
        assert client.ask("LOCK", "b", "r2") == granted
        assert client.ask("UNLOCK", "a", "u1") == 1
        assert client.ask("LOCK", "c", "r4") == 0


def test_a_primary_frozen_within_the_timeouts_answers_everything_exactly_once(
    cluster: Cluster,
) -> None:
    """P frozen for less than the time-outs, with requests queued in its sockets: it stays primary,
    every request is answered, in order, and has one effect (I4)."""
    # The longest of them is a stall (half of the shorter time-out), and on a busy machine must
    # still stay well within the time-outs.
    primary, backup = cluster.pair("--backup-timeout-ms", "4000", "--promotion-timeout-ms", "6000")
    wires = [primary.wire() for _ in range(8)]
    for frozen_for_s in (0.1, 0.4, 2.4):
        primary.freeze()
        for number, wire in enumerate(wires):
            for _ in range(5):
                wire.send("LOCK", f"{number}", f"r-{frozen_for_s}")  # one request, sent 5 times
                wire.send("UNLOCK", f"{number}", f"u-{frozen_for_s}")
        time.sleep(frozen_for_s)
        primary.thaw()
        for wire in wires:
            answers = [wire.read() for _ in range(10)]
            assert len(set(answers[::2])) == 1 and answers[0] > 1  # type: ignore[operator]
            assert answers[1::2] == [1] * 5
    for number, wire in enumerate(wires):
        assert wire.inspect(f"{number}")["state"] == b"free"
        assert wire.is_silent_for(0.005)
        wire.close()
    cluster.wait_paired(primary, backup)
    assert primary.log_text.count("epoch 1 -> 2") == 1
    assert "epoch 2 ->" not in primary.log_text + backup.log_text


def test_a_primary_that_stood_still_never_serves_after_its_replacement_died(
    cluster: Cluster,
) -> None:
    """P frozen -> B promotes itself, grants, is killed -> P thawed: its peer is gone, but for all
    it knows it was bypassed, and it was. It must not serve, or it would grant what B granted. An
    operator decides (F4, I1)."""
    primary, backup = cluster.pair(*QUICK)
    client = primary.wire()
    assert client.ask("LOCK", "a", "r1")
    primary.freeze()
    wait_until(lambda: backup.role == "master", "the backup takes over", cluster.nodes)
    assert backup.ask("UNLOCK", "a", "u1") == 1
    assert backup.ask("LOCK", "b", "r2")
    backup.kill()
    client.send("LOCK", "b", "r3")
    primary.thaw()
    primary.wait_logged("stood still")
    primary.wait_logged("undecided about")
    with pytest.raises((Closed, TimeoutError)):
        client.read(timeout_s=2 * PROMOTION_TIMEOUT_S)
    assert primary.mode != "solo"
    client.close()


def test_a_primary_whose_backup_was_restarted_while_it_stood_still_asks_an_operator(
    cluster: Cluster,
) -> None:
    """P frozen -> B killed and started again -> P thawed. That B has not taken over is known to
    nobody but an operator, who is told so on both nodes; after FORCE they are a pair again."""
    primary, backup = cluster.pair(*QUICK, "--failover", "manual")
    token = primary.ask("LOCK", "a", "r1")
    primary.freeze()
    backup.kill()
    backup.start()
    wait_until(backup.answers, "the backup is up", cluster.nodes)
    time.sleep(PROMOTION_TIMEOUT_S)  # as long as the pause has to be
    primary.thaw()
    primary.wait_logged("if it has certainly not taken over, REPLICAOF NO ONE FORCE")
    backup.wait_logged("this primary is blocked")
    assert (primary.mode, backup.mode) == ("blocked", "recovery")
    with pytest.raises(ReplyError, match=r"may have taken over .* REPLICAOF NO ONE FORCE"):
        primary.ask("REPLICAOF", "NO", "ONE")
    answer = primary.ask("REPLICAOF", "NO", "ONE", "FORCE")
    assert isinstance(answer, bytes) and answer.startswith(b"OK going on alone")
    cluster.wait_paired(primary, backup)
    assert primary.ask("LOCK", "a", "r1") == token


def test_a_backup_that_stood_still_never_promotes_itself_over_a_primary_it_has_not_heard_since(
    cluster: Cluster,
) -> None:
    """B frozen -> P goes on alone and grants -> P killed -> B thawed: its state is old. It must
    not serve (F4, I2)."""
    primary, backup = cluster.pair(*QUICK)
    backup.freeze()
    with primary.wire() as client:
        assert client.ask("LOCK", "a", "r1")
        assert primary.mode == "solo"
    primary.kill()
    backup.thaw()
    wait_out_of_view(backup)
    time.sleep(2 * PROMOTION_TIMEOUT_S)  # nothing to be seen is what is to be seen
    assert backup.role == "slave"
    assert error_of(lambda: backup.ask("LOCK", "a", "r2")) == "READONLY"


def test_a_killed_primary_that_is_restarted_at_once_never_serves_empty(cluster: Cluster) -> None:
    """A supervisor brings P back on its port before anything else happens. It is an empty node: it
    must join the promoted backup, and nobody ever sees an empty lock server (F5, I2)."""
    primary, backup = cluster.pair()
    tokens: list[object] = []
    serving, other = primary, backup
    for number in range(4):
        with serving.wire() as client:
            tokens.append(client.ask("LOCK", f"{number}", f"r{number}"))
        serving.kill()
        serving.start()
        answers: list[object] = []

        def probes(node: Node = serving, answers: list[object] = answers) -> bool:
            """Ask the empty node all the time, until it has joined."""
            try:
                answers.append(node.ask("LOCK", "0", "thief"))
            except ReplyError as error:
                assert error.code in ("LOADING", "READONLY"), error
            except (OSError, Closed):
                pass
            return node.mode == "paired"

        wait_until(probes, "it joins", cluster.nodes, poll_s=0.001)
        assert not answers, "an empty node has answered"
        serving, other = other, serving
        cluster.wait_paired(serving, other)
        with serving.wire() as client:
            for lock, token in enumerate(tokens):
                assert client.ask("LOCK", f"{lock}", f"r{lock}") == token
                assert client.inspect(f"{lock}")["fencing_token"] == token


def test_a_backup_restarted_at_once_is_not_taken_for_the_one_that_had_the_state(
    cluster: Cluster,
) -> None:
    """B killed and restarted, over and over, under load: P never waits for an ack of the node that
    died, and the new one is a member only when it has everything (I2, I3)."""
    primary, backup = cluster.pair()
    clerks = [RawClerk((primary.port,), persistent=True, sessions=True) for _ in range(4)]
    history = Recorder()
    workers = Workers(
        [(random.Random(n), _locker(history, clerk, f"c{n}")) for n, clerk in enumerate(clerks)]
    )
    for _ in range(5):
        backup.kill()
        backup.start()
        cluster.wait_paired(primary, backup)
    primary.kill()
    wait_until(lambda: backup.role == "master", "the backup takes over", cluster.nodes)
    for clerk in clerks:
        clerk.ports = (backup.port,)
    wait_until(lambda: history.has_called_after(time.monotonic() - 0.1), "they go on")
    workers.stop()
    for clerk in clerks:
        clerk.close()
    assert not (problem := explain(history.ops)), problem


def _locker(history: Recorder, clerk: RawClerk, who: str) -> Callable[[random.Random], None]:
    def step(rng: random.Random) -> None:
        name = f"{rng.randrange(4)}"
        if rng.random() < 0.5:
            history.run(who, "lock", name, lambda: clerk.token(name))
        else:
            history.run(who, "unlock", name, lambda: clerk.unlock(name))

    return step


def test_faults_in_random_order_lose_nothing_and_the_pair_is_always_whole_again(
    cluster: Cluster,
) -> None:
    """Eight clients all the while. Kill, stop or freeze the primary or the backup, bring it back,
    wait until there is a pair again, and so on (I1, I2, I4, I13)."""
    seed = int(os.environ.get("HOLDFAST_TEST_SEED", "0")) or random.randrange(1, 1_000_000)
    print(f"seed {seed}")
    rng = random.Random(seed)
    primary, backup = cluster.pair(*QUICK)
    ports = (primary.port, backup.port)
    clerks = [RawClerk(ports, persistent=n % 3 > 0, sessions=n % 2 == 0) for n in range(8)]
    history = Recorder()
    workers = Workers(
        [
            (random.Random(seed + n), _locker(history, clerk, f"c{n}"))
            for n, clerk in enumerate(clerks)
        ]
    )
    faults = ["kill primary", "kill backup", "freeze primary", "freeze backup", "stop primary"]
    for fault in rng.sample(faults * 2, k=2 * len(faults)):
        print(f"{time.monotonic():.3f} {fault}, the primary is {primary}")
        time.sleep(rng.random() * 0.05)
        what, whom = fault.split()
        node, other = (primary, backup) if whom == "primary" else (backup, primary)
        {"kill": node.kill, "freeze": node.freeze, "stop": node.terminate}[what]()
        wait_until(
            partial(serves_alone, other),
            "the other goes on alone",
            cluster.nodes,
        )
        gone_on_s = time.monotonic()
        if what == "freeze":
            node.thaw()
        else:
            node.start()
        primary, backup = other, node
        cluster.wait_paired(primary, backup)
        wait_until(
            partial(history.has_called_after, gone_on_s),
            "the clients go on",
            cluster.nodes,
        )
    workers.stop()
    for clerk in clerks:
        clerk.close()
    with primary.wire() as client:
        for name in {op.name for op in history.ops}:
            history.run("last", "inspect", name, partial(token_of, client, name))
    assert not (problem := explain(history.ops)), problem


def test_a_replacement_on_another_address_is_the_one_that_is_asked(cluster: Cluster) -> None:
    """B dies for good, and a third node joins P from another address. P is frozen, the third is
    promoted. P, thawed, must ask the third, whose primary it was, and not B's old address, where
    nobody will ever answer: it is deposed and joins it (I3, I13)."""
    primary, backup = cluster.pair(*QUICK)
    backup.kill()
    third = cluster.node("third")
    third.start("--replicaof", primary.address, *QUICK)
    cluster.wait_paired(primary, third)
    primary.freeze()
    wait_until(lambda: third.role == "master", "the third takes over", cluster.nodes)
    primary.thaw()
    cluster.wait_paired(third, primary, timeout_s=5.0)


# -- joining -----------------------------------------------------------------------------------


def test_a_backup_that_joins_a_lone_primary_gets_its_whole_state(cluster: Cluster) -> None:
    """P serves alone, B joins, P is killed: B has the locks with their tokens and owners, and the
    answers to opaque and to @client:n request ids, granted and refused, undone ones included;
    what was frozen stays frozen (I2, I4, I5)."""
    primary, backup = cluster.node("P"), cluster.node("B")
    primary.start("--backup", backup.address, "--bootstrap")
    wait_until(lambda: primary.mode == "solo", "it serves alone", [primary])
    with primary.wire() as client:
        for number in range(2000):  # several slices
            client.send("LOCK", f"many-{number}", f"many-{number}", "OWNER", f"o-{number}")
        many = [client.read() for _ in range(2000)]
        asked: list[tuple[tuple[str, ...], object]] = []
        requests: tuple[tuple[str, ...], ...] = (
            ("LOCK", "a", "opaque-1"),
            ("LOCK", "a", "opaque-2"),
            ("LOCK", "b", "@c:1"),
            ("UNLOCK", "b", "@c:2"),
            ("LOCK", "b", "@d:5"),
            ("LOCK", "b", "@e:9"),
            ("UNLOCK", "none", "opaque-3"),
            ("LOCK", "u", "opaque-4"),
            ("UNLOCK", "u", "opaque-5", "REQUEST", "opaque-4"),
            ("UNLOCK", "u", "opaque-6", "REQUEST", "never-sent"),
        )
        for request in requests:
            asked.append((request, client.ask(*request)))
    backup.start("--replicaof", primary.address)
    cluster.wait_paired(primary, backup)
    primary.kill()
    wait_until(lambda: backup.role == "master", "the backup takes over", cluster.nodes)
    with backup.wire() as client:
        for request, answer in asked:
            if request[2] == "@c:1":
                assert error_of(partial(client.ask, *request)) == "REQUESTGONE"
            else:
                assert client.ask(*request) == answer, request
        assert client.ask("LOCK", "u", "never-sent") == 0, "an undone request is granted"
        for number in (0, 499, 500, 501, 1999):
            shown = client.inspect(f"many-{number}")
            assert shown["fencing_token"] == many[number]
            assert shown["owner"] == f"o-{number}".encode()
        assert client.inspect("u")["state"] == b"free"
        newest = client.ask("LOCK", "u", "opaque-7")
        assert newest > max(many)  # type: ignore[type-var, operator]


def test_a_backup_joins_under_load_and_has_everything(cluster: Cluster) -> None:
    """Eight clients at full speed on a primary with many locks; a backup joins; the primary is
    killed at a random moment after that: each history goes on as if nothing had been (I2, I5)."""
    primary, backup = cluster.node("P"), cluster.node("B")
    primary.start("--backup", backup.address, "--bootstrap")
    wait_until(lambda: primary.mode == "solo", "it serves alone", [primary])
    with primary.wire() as client:
        for first in range(0, 50_000, 1000):
            client.sock.sendall(
                b"".join(encode("LOCK", f"m{n}", f"m{n}") for n in range(first, first + 1000))
            )
            for _ in range(1000):
                assert client.read()
    ports = (primary.port, backup.port)
    clerks = [RawClerk(ports, persistent=True, sessions=n % 2 == 0) for n in range(8)]
    history = Recorder()
    workers = Workers(
        [(random.Random(n), _locker(history, clerk, f"c{n}")) for n, clerk in enumerate(clerks)]
    )
    backup.start("--replicaof", primary.address)
    cluster.wait_paired(primary, backup)
    time.sleep(random.random() * 0.2)
    killed_s = primary.kill()
    wait_until(lambda: history.has_called_after(killed_s), "they go on", cluster.nodes)
    workers.stop()
    for clerk in clerks:
        clerk.close()
    assert not (problem := explain(history.ops)), problem
    assert any(op.result > 0 and op.return_s < killed_s for op in history.ops)
    with backup.wire() as client:
        for number in random.sample(range(50_000), 200):
            assert client.inspect(f"m{number}")["state"] == b"held"


# -- by hand -----------------------------------------------------------------------------------


def test_with_manual_failover_a_member_is_promoted_by_an_operator_only(cluster: Cluster) -> None:
    """--failover manual, P killed: B waits, for far longer than the time-out. REPLICAOF NO ONE
    promotes it, with everything."""
    primary, backup = cluster.pair(*QUICK, "--failover", "manual")
    token = primary.ask("LOCK", "a", "r1")
    primary.kill()
    backup.wait_logged("REPLICAOF NO ONE")
    time.sleep(2 * PROMOTION_TIMEOUT_S)  # nothing to be seen is what is to be seen
    assert backup.role == "slave"
    assert error_of(lambda: backup.ask("LOCK", "b", "r2")) == "READONLY"
    assert backup.ask("REPLICAOF", "NO", "ONE") == b"OK"
    assert backup.role == "master"
    with backup.wire() as client:
        assert client.ask("LOCK", "a", "r1") == token
        assert client.ask("LOCK", "b", "r2") > token  # type: ignore[operator]


def test_replicaof_no_one_is_refused_while_the_primary_serves(cluster: Cluster) -> None:
    """A member cannot be promoted over a primary that answers, and the pair is none the worse."""
    primary, backup = cluster.pair()
    token = primary.ask("LOCK", "a", "r1")
    assert error_of(lambda: backup.ask("REPLICAOF", "NO", "ONE")) == "ERR"
    cluster.wait_paired(primary, backup)
    assert primary.ask("LOCK", "a", "r1") == token


def test_replicaof_no_one_is_refused_by_a_node_that_is_not_a_member(cluster: Cluster) -> None:
    """An empty node has nothing to serve; a backup that was left out lacks what was answered since,
    and serves only if it is told FORCE."""
    primary, backup = cluster.pair(*QUICK)
    blank = cluster.node("blank")
    blank.start("--replicaof", primary.address)
    blank.wait_logged("listening")
    wait_until(blank.answers, "it answers", [blank])
    assert error_of(lambda: blank.ask("REPLICAOF", "NO", "ONE")) == "ERR"
    assert blank.role != "master"
    blank.kill()

    backup.freeze()
    assert primary.ask("LOCK", "a", "r1")
    assert primary.mode == "solo"
    assert primary.ask("LOCK", "b", "r2")
    primary.kill()
    backup.thaw()
    wait_out_of_view(backup)
    assert error_of(lambda: backup.ask("REPLICAOF", "NO", "ONE")) == "ERR"
    assert backup.role == "slave"
    answer = backup.ask("REPLICAOF", "NO", "ONE", "FORCE")
    assert isinstance(answer, bytes) and answer.startswith(b"OK")
    assert backup.role == "master"
    assert backup.ask("LOCK", "b", "r3"), "this is what FORCE may lose"


def test_a_primary_that_is_told_no_one_stays_what_it_is(cluster: Cluster) -> None:
    """REPLICAOF NO ONE on a primary is answered OK and changes nothing, as in Redis."""
    primary, backup = cluster.pair()
    assert primary.ask("REPLICAOF", "NO", "ONE") == b"OK"
    cluster.wait_paired(primary, backup)
    assert "epoch 2 ->" not in primary.log_text + backup.log_text


# -- the link ----------------------------------------------------------------------------------


class LinkedPair:
    """A pair whose nodes reach each other through proxies."""

    def __init__(self, cluster: Cluster, *arguments: str) -> None:
        self.primary, self.backup = cluster.node("P"), cluster.node("B")
        self.to_primary = Proxy(cluster.port(), self.primary.port)
        self.to_backup = Proxy(cluster.port(), self.backup.port)
        cluster.defer(self.to_primary.close)
        cluster.defer(self.to_backup.close)
        self.primary.start("--backup", self.to_backup.address, *arguments)
        self.backup.start("--replicaof", self.to_primary.address, *arguments)
        cluster.wait_paired(self.primary, self.backup)


def test_a_link_that_is_reset_costs_no_answer_and_no_failover(cluster: Cluster) -> None:
    """RST on the link, over and over, under load, both nodes alive: P stays primary, B joins again,
    every request has one effect (I3, I4, I13)."""
    pair = LinkedPair(cluster)
    ports = (pair.primary.port, pair.backup.port)
    clerks = [RawClerk(ports, persistent=True, sessions=True) for _ in range(4)]
    history = Recorder()
    workers = Workers(
        [(random.Random(n), _locker(history, clerk, f"c{n}")) for n, clerk in enumerate(clerks)]
    )
    for _ in range(6):
        assert pair.to_primary.reset() > 0
        cut_s = time.monotonic()
        wait_until(partial(history.has_called_after, cut_s), "they go on", cluster.nodes)
        cluster.wait_paired(pair.primary, pair.backup)
    workers.stop()
    for clerk in clerks:
        clerk.close()
    assert not (problem := explain(history.ops)), problem
    assert "PROMOTED" not in pair.backup.log_text


@pytest.mark.parametrize("direction", ["both ways", "to the primary", "to the backup"])
def test_a_link_that_falls_silent_is_given_up_and_made_anew(
    cluster: Cluster, direction: str
) -> None:
    """The connection delivers nothing, in one direction or in both, while new ones work: whoever
    suspects the other asks it on a new connection, and is answered. P stays primary (F1, I3)."""
    pair = LinkedPair(cluster, *QUICK)
    ports = (pair.primary.port, pair.backup.port)
    clerk = RawClerk(ports, persistent=True, sessions=False)
    token = clerk.token("a")
    assert token
    pair.to_primary.hold_existing(
        to_node=direction != "to the backup", to_client=direction != "to the primary"
    )
    assert not clerk.lock("a")
    assert clerk.unlock("a")
    cluster.wait_paired(pair.primary, pair.backup)
    assert clerk.token("a") > token
    clerk.close()
    assert "PROMOTED" not in pair.backup.log_text


def test_a_black_hole_shorter_than_the_timeouts_only_delays(cluster: Cluster) -> None:
    """Nothing at all passes between the nodes for a while: nothing is answered, then everything is,
    once, and nobody was deposed (I4, I6)."""
    pair = LinkedPair(cluster)
    with pair.primary.wire() as client:
        for proxy in (pair.to_primary, pair.to_backup):
            proxy.hold()
        client.send("LOCK", "a", "r1")
        assert client.is_silent_for(0.6)
        for proxy in (pair.to_primary, pair.to_backup):
            proxy.heal()
        token = client.read()
        assert token
        assert client.is_silent_for(0.01)
        assert client.ask("LOCK", "a", "r1") == token
    cluster.wait_paired(pair.primary, pair.backup)
    assert "epoch 2 ->" not in pair.primary.log_text + pair.backup.log_text


def test_after_a_long_black_hole_a_manual_backup_joins_again(cluster: Cluster) -> None:
    """Nothing passes for longer than both time-outs. With --failover manual only the primary may go
    on; when the network is back the backup joins it, and gets what it missed (I2, I3, I13)."""
    pair = LinkedPair(cluster, *QUICK, "--failover", "manual")
    for proxy in (pair.to_primary, pair.to_backup):
        proxy.hold()
    token = pair.primary.ask("LOCK", "a", "r1")
    assert token
    assert pair.primary.mode == "solo"
    time.sleep(2 * PROMOTION_TIMEOUT_S)  # nothing to be seen is what is to be seen
    assert pair.backup.role == "slave"
    for proxy in (pair.to_primary, pair.to_backup):
        proxy.heal()
    cluster.wait_paired(pair.primary, pair.backup)
    pair.to_primary.refuse_connections()
    pair.to_primary.reset()
    pair.primary.kill()
    assert pair.backup.ask("REPLICAOF", "NO", "ONE") == b"OK"
    assert pair.backup.ask("LOCK", "a", "r1") == token


def test_a_slow_link_slows_replies_and_breaks_nothing(cluster: Cluster) -> None:
    """50 ms in each direction: a reply takes a round trip of the link (I6), and pipelining still
    works: a hundred requests do not take a hundred round trips."""
    pair = LinkedPair(cluster)
    with pair.primary.wire() as client:
        pair.to_primary.delay(0.05)
        sent_s = time.monotonic()
        assert client.ask("LOCK", "a", "r1")
        assert time.monotonic() - sent_s >= 0.1
        sent_s = time.monotonic()
        for number in range(100):
            client.send("LOCK", "a", f"p{number}")
        assert [client.read() for _ in range(100)] == [0] * 100
        assert time.monotonic() - sent_s < 3.0
    cluster.wait_paired(pair.primary, pair.backup)
