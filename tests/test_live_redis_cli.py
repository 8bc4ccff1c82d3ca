"""redis-cli and redis-benchmark, as Debian ships them, against a real node and a real pair."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from harness.alone import alone, info_of
from harness.ports import HOST
from harness.processes import Cluster, Node, wait_until
from harness.programs import Terminal, needed, run
from harness.wire import encode


@pytest.fixture
def cli() -> str:
    return needed("redis-cli", "redis-tools")


@pytest.fixture
def node(forked_cluster: Cluster) -> Node:
    return alone(forked_cluster)


def at(node: Node) -> tuple[str, ...]:
    return ("-h", HOST, "-p", str(node.port))


@pytest.fixture
def terminal(cli: str, node: Node) -> Iterator[Terminal]:
    terminal = Terminal(cli, *at(node))
    yield terminal
    terminal.close()


def test_one_shot_commands(cli: str, node: Node) -> None:
    token = run(cli, *at(node), "LOCK", "a", "r1").strip()
    assert int(token) > 0
    assert run(cli, *at(node), "LOCK", "a", "r2") == "0\n"
    assert run(cli, *at(node), "LOCK", "a", "r1").strip() == token
    assert run(cli, *at(node), "--no-raw", "UNLOCK", "a", "r3") == "(integer) 1\n"
    assert run(cli, *at(node), "PING") == "PONG\n"
    assert "holdfast_version:" in run(cli, *at(node), "INFO", "server")


def test_resp3(cli: str, node: Node) -> None:
    run(cli, *at(node), "-3", "LOCK", "a", "r1")
    shown = run(cli, *at(node), "-3", "--no-raw", "INSPECT", "a")
    assert re.search(r'\d+# "owner" => "r1"', shown), shown
    assert "# Replication" in run(cli, *at(node), "-3", "INFO")
    assert "maxclients" in run(cli, *at(node), "-3", "CONFIG", "GET", "max*")


def test_a_backup_refuses_in_words_that_redis_cli_shows(cli: str, forked_cluster: Cluster) -> None:
    primary, backup = forked_cluster.pair()
    assert int(run(cli, *at(primary), "LOCK", "a", "r1")) > 0
    shown = run(cli, *at(backup), "LOCK", "a", "r2")
    assert shown.startswith("READONLY this node is the backup") and str(primary.port) in shown


def test_pipe_mode_takes_thousands_of_commands(cli: str, node: Node) -> None:
    requests = b"".join(encode("LOCK", f"a{number}", f"r{number}") for number in range(20_000))
    shown = run(cli, *at(node), "--pipe", stdin=requests)
    assert "errors: 0, replies: 20000" in shown
    assert node.ask("DBSIZE") == 20_000


def test_pipe_mode_reads_inline_commands_from_a_script(cli: str, node: Node) -> None:
    shown = run(cli, *at(node), stdin=b"LOCK a r1\nLOCK a r2\nUNLOCK a r3\nDBSIZE\n")
    assert shown.split()[1:] == ["0", "1", "0"]


def stat_lines(cli: str, node: Node, count: int) -> list[list[str]]:
    """The columns of the first lines of --stat, which never ends."""
    terminal = Terminal(cli, *at(node), "--stat", "-i", "0.1")
    try:
        while terminal.shown.count(b"\n") < 2 + count:  # behind two lines of headings
            terminal.wait_more()
    finally:
        terminal.close()
    return [line.split() for line in terminal.shown.decode().splitlines()[2 : 2 + count]]


def test_stat_shows_locks_memory_clients_and_requests(cli: str, node: Node) -> None:
    for number in range(3):
        node.ask("LOCK", f"a{number}", "r1")
    with node.wire() as waiting:
        waiting.send("WAIT", "1", "0")
        wait_until(lambda: info_of(node)["blocked_clients"] == "1", "it waits", [node])
        fields = stat_lines(cli, node, 2)[1]
    keys, memory, clients, blocked, requests = fields[:5]
    assert keys == "3"
    assert re.fullmatch(r"\d+\.\d+[MG]", memory)
    assert (clients, blocked) == ("2", "1")
    assert int(requests) >= 4


def test_stat_shows_no_locks_as_zero(cli: str, node: Node) -> None:
    assert stat_lines(cli, node, 1)[0][0] == "0"


def test_latency_mode_measures(cli: str, node: Node) -> None:
    # Not on a terminal, it samples for the interval given and prints min, max, avg and count.
    shown = run(cli, *at(node), "--latency", "-i", "0.3")
    least, most, average, count = shown.split()[:4]
    assert 0 <= float(least) <= float(average) <= float(most) < 1000 and int(count) > 3


def test_the_interactive_prompt_hints_at_arguments(terminal: Terminal, node: Node) -> None:
    prompt = f"{HOST}:{node.port}> ".encode()

    def enter(text: str) -> bytes:
        terminal.forget()
        terminal.type(text + "\r")
        # The line that is typed shows the prompt as well: look for the one behind its answer.
        terminal.wait_shown(b"\n" + prompt)
        shown = re.sub(rb"\x1b\[[0-9;]*[A-Za-z]", b"", terminal.shown)  # without the colours
        terminal.forget()
        return shown

    terminal.wait_shown(prompt)
    terminal.type("LOCK ")
    terminal.wait_shown(
        b"name reqid [PX milliseconds|EX seconds] [WAIT milliseconds] [OWNER owner]"
    )
    assert b"(integer) " in enter("a r1")
    terminal.type("CLIENT LIST ")
    terminal.wait_shown(b"[TYPE NORMAL|MASTER|REPLICA|PUBSUB] [ID client-id [client-id ...]]")
    assert b"cmd=client|list" in enter("")
    shown = enter("help unlock")
    for text in (b"UNLOCK name reqid", b"summary: ", b"since: 0.1.0", b"group: locks"):
        assert text in shown
    shown = enter("help @locks")
    assert b"INSPECT name" in shown and b"LOCK name reqid" in shown


def test_the_interactive_prompt_in_resp3(cli: str, node: Node) -> None:
    terminal = Terminal(cli, *at(node), "-3")
    prompt = f"{HOST}:{node.port}> ".encode()
    try:
        terminal.wait_shown(prompt)
        terminal.type("CONFIG SET ")
        terminal.wait_shown(b"parameter value [parameter value ...]")
        terminal.type("maxclients 77\r")
        terminal.wait_shown(b"OK\r\n" + prompt)
        terminal.type("CONFIG GET maxclients\r")
        terminal.wait_shown(b'1# "maxclients" => "77"')
    finally:
        terminal.close()


def test_shutdown_from_redis_cli(cli: str, node: Node) -> None:
    assert run(cli, *at(node), "SHUTDOWN", "NOSAVE") == ""
    node.wait_logged("stopped")


# -- redis-benchmark -------------------------------------------------------------------------------


@pytest.fixture
def benchmark() -> str:
    return needed("redis-benchmark", "redis-tools")


def test_redis_benchmark_pings(benchmark: str, node: Node) -> None:
    command = (benchmark, *at(node), "-n", "5000", "-c", "20", "-q", "-t", "ping")
    shown = run(*command) + run(*command, "-P", "16")
    assert len(re.findall(r"PING_(?:INLINE|MBULK): [\d.]+ requests per second", shown)) == 4
    assert "WARNING" not in shown and "rror" not in shown


def test_redis_benchmark_takes_locks_of_a_pair(benchmark: str, forked_cluster: Cluster) -> None:
    primary, backup = forked_cluster.pair()
    requests = ("LOCK", "lock:__rand_int__", "request:__rand_int__")
    shown = run(
        benchmark, *at(primary), "-n", "5000", "-c", "20", "-P", "4", "-r", "1000000", "-q",
        *requests,
    )  # fmt: skip
    assert re.search(r"[\d.]+ requests per second", shown) and "rror" not in shown
    fields = info_of(primary)
    held = int(fields["locks_held"])
    assert held == int(fields["keyspace_hits"]) > 4000
    assert f"keys={held}" in fields["db0"] and f"keys={held}" in info_of(backup)["db0"]
    assert primary.mode == "paired"
