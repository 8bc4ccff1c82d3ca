"""Unmodified redis-py, the newest version and older ones, on a real node and a real pair."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import redis
from harness.alone import alone
from harness.ports import HOST
from harness.processes import Cluster, Node
from harness.programs import python_with, run
from harness.wire import as_map
from redis.backoff import NoBackoff
from redis.retry import Retry


@pytest.fixture
def node(forked_cluster: Cluster) -> Node:
    return alone(forked_cluster)


@pytest.fixture(params=[2, 3, None], ids=["RESP2", "RESP3", "default"])
def client(node: Node, request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    chosen = {} if request.param is None else {"protocol": request.param}
    client = redis.Redis(host=HOST, port=node.port, client_name="mine", **chosen)
    yield client
    client.close()


def test_locks_are_taken_and_given_back(client: redis.Redis) -> None:
    token = client.execute_command("LOCK", "a", "r1")
    assert isinstance(token, int) and token > 0
    assert client.execute_command("LOCK", "a", "r2") == 0
    assert client.execute_command("LOCK", "a", "r1") == token
    assert client.execute_command("UNLOCK", "a", "r3") == 1
    assert client.execute_command("UNLOCK", "a", "r4") == 0
    assert client.execute_command("LOCK", b"\x00\xff", b"\xfe") > token


def test_leases_and_waits_are_plain_commands(client: redis.Redis) -> None:
    token = client.execute_command("LOCK", "a", "r1", "PX", 60_000, "OWNER", "me")
    assert client.execute_command("LOCK", "a", "r2", "WAIT", 1) == 0
    assert client.execute_command("VERIFY", "a", token) == 1
    assert client.execute_command("RENEW", "a", token, "EX", 120) == 1
    assert client.execute_command("UNLOCK", "a", "r3", "TOKEN", token) == 1
    assert client.execute_command("LOCK", "a", "r4", "PX", 60_000, "WAIT", 1_000) > token


def test_a_lock_is_a_key_to_redis_py(client: redis.Redis) -> None:
    assert client.get("a") is None and client.exists("a", "b") == 0
    assert client.type("a") in (b"none", "none") and client.pttl("a") == client.ttl("a") == -2
    client.execute_command("LOCK", "a", "r1", "OWNER", "me")
    client.execute_command("LOCK", "b", "r2", "PX", 60_000)
    assert client.get("a") in (b"me", "me") and client.exists("a", "b", "a") == 3
    assert client.type("a") in (b"string", "string")
    assert client.ttl("a") == client.pttl("a") == -1
    assert 59 <= client.ttl("b") <= 60 and 50_000 < client.pttl("b") <= 60_000
    assert client.delete("a", "b", "c") == 2 and client.dbsize() == 0


def test_the_walk_goes_through_cursors(client: redis.Redis) -> None:
    for number in range(25):
        client.execute_command("LOCK", f"a{number}", f"r{number}")
    names, cursor = [], 0
    while True:
        cursor, page = client.execute_command("LOCKS", cursor, "COUNT", 10)
        names += [as_map(each)["name"] for each in page]
        if not int(cursor):
            break
    assert names == [b"a%d" % number for number in reversed(range(25))]


def test_pipelines_keep_the_order(client: redis.Redis) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for number in range(500):
            pipeline.execute_command("LOCK", f"a{number}", f"r{number}")
            pipeline.execute_command("LOCK", f"a{number}", f"s{number}")
            pipeline.execute_command("UNLOCK", f"a{number}", f"t{number}")
        replies = pipeline.execute()
    tokens = replies[::3]
    assert tokens == sorted(set(tokens)) and tokens[0] > 0
    assert set(replies[1::3]) == {0} and set(replies[2::3]) == {1}


def test_errors_are_those_that_redis_py_knows(client: redis.Redis) -> None:
    with pytest.raises(redis.ResponseError, match="unknown command 'HGET'"):
        client.hget("a", "b")
    with pytest.raises(redis.ResponseError, match="wrong number of arguments for 'lock' command"):
        client.execute_command("LOCK", "a")
    with pytest.raises(redis.ResponseError, match="syntax error"):
        client.execute_command("CLIENT", "KILL", "a", "b")


def test_a_backup_raises_read_only_error(forked_cluster: Cluster) -> None:
    _, backup = forked_cluster.pair()
    with redis.Redis(host=HOST, port=backup.port) as client:
        with pytest.raises(redis.exceptions.ReadOnlyError):
            client.execute_command("LOCK", "a", "r1")
        assert client.role()[0] == b"slave"


def test_the_commands_of_the_connection_are_parsed(client: redis.Redis) -> None:
    assert client.ping() is True
    assert client.echo("hello") == b"hello"
    assert client.client_getname() in (b"mine", "mine")
    assert client.client_setname("other") is True
    number = client.client_id()
    assert isinstance(number, int)
    own = client.client_info()
    assert int(own["id"]) == number and own["name"] == "other"
    assert own["lib-name"].startswith("redis-py")
    (line,) = client.client_list(client_id=[number])
    assert line["addr"] == own["addr"]
    assert client.client_no_evict("ON") in (True, b"OK", "OK")
    assert client.client_no_touch("ON") in (True, b"OK", "OK")
    assert client.client_kill_filter(_id=987654) == 0
    with pytest.raises(redis.ResponseError, match="No such client"):
        client.client_kill("1.2.3.4:5")
    assert client.select(0)
    assert client.reset() in (b"RESET", "RESET")


def test_the_commands_of_the_server_are_parsed(client: redis.Redis) -> None:
    client.execute_command("LOCK", "a", "r1")
    shown = client.info()
    assert shown["redis_version"] == "7.0.15" and shown["cluster_enabled"] == 0
    assert shown["db0"] == {"keys": 1, "expires": 0, "avg_ttl": 0}
    assert shown["role"] == "master" and isinstance(shown["locks_held"], int)
    assert isinstance(shown["used_cpu_sys"], float) and isinstance(shown["used_memory"], int)
    assert client.info("commandstats")["cmdstat_lock"]["calls"] == 1
    assert client.dbsize() == 1
    seconds, microseconds = client.time()
    assert seconds > 10**9 and 0 <= microseconds < 10**6
    assert client.config_get("maxclients")["maxclients"] == "10000"
    assert client.config_get("databases", "max*")["databases"] == "1"
    assert client.config_set("slowlog-log-slower-than", 0)
    assert client.config_resetstat()
    assert client.slowlog_len() >= 1
    (slow,) = client.slowlog_get(1)
    assert slow["command"] and isinstance(slow["duration"], int)
    assert client.slowlog_reset()
    assert client.wait(0, 1) == 0
    role = client.role()
    assert role[0] in (b"master", "master") and isinstance(role[1], int)
    with pytest.raises(redis.ResponseError, match="without a config file"):
        client.config_rewrite()


def test_the_command_table_is_parsed(client: redis.Redis) -> None:
    described = client.command()
    assert described["lock"]["arity"] == -3 and described["lock"]["first_key_pos"] == 1
    assert "peer" not in described
    assert client.command_count() == len(described)
    assert {b"lock", b"client", b"client|list"} <= set(client.command_list())
    assert client.command_getkeys("LOCK", "a", "r1") in ([b"a"], ["a"])
    writing = {b"lock", b"unlock", b"renew", b"vput", b"del", b"expire", b"pexpire", b"persist"}
    assert set(client.command_list(category="write")) == writing
    assert client.command_getkeys("DEL", "a", "b") in ([b"a", b"b"], ["a", "b"])


def test_shutdown_is_followed_by_a_closed_connection(node: Node) -> None:
    once = Retry(NoBackoff(), 0)  # or it looks for the server ten times after SHUTDOWN
    with redis.Redis(host=HOST, port=node.port, retry=once) as client:
        assert client.ping() and client.shutdown(nosave=True) is None
    node.wait_logged("stopped")


# -- older versions --------------------------------------------------------------------------------

SMOKE = """
import json, sys, redis
port, protocol = map(int, sys.argv[1:3])
assert redis.__version__.startswith(sys.argv[3] + "."), redis.__version__
client = redis.Redis(port=port, protocol=protocol, client_name="old")
out = {}
out["lock"] = client.execute_command("LOCK", "a", "r1") > 0
out["refused"] = client.execute_command("LOCK", "a", "r2")
with client.pipeline(transaction=False) as pipeline:
    for number in range(100):
        pipeline.execute_command("LOCK", f"b{number}", f"r{number}")
        pipeline.execute_command("UNLOCK", f"b{number}", f"s{number}")
    replies = pipeline.execute()
out["pipeline"] = all(reply > 0 for reply in replies[::2]) and set(replies[1::2]) == {1}
out["unlock"] = client.execute_command("UNLOCK", "a", "r3")
out["ping"] = client.ping()
out["name"] = str(client.client_getname())
out["library"] = client.client_info()["lib-name"]
out["version"] = client.info()["redis_version"]
out["maxclients"] = client.config_get("maxclients")["maxclients"]
out["table"] = "lock" in client.command()
try:
    client.hget("a", "b")
except redis.ResponseError as error:
    out["error"] = str(error)
print(json.dumps(out))
"""


@pytest.mark.parametrize("protocol", ["2", "3"])
@pytest.mark.parametrize("version", ["5.0", "6", "7"])
def test_older_redis_py_works_unpatched(node: Node, version: str, protocol: str) -> None:
    python = python_with(f"redis=={version}.*")
    out = json.loads(run(python, "-c", SMOKE, str(node.port), protocol, version))
    assert out.pop("error").startswith("unknown command 'HGET'")
    assert "old" in out.pop("name")
    assert out == {
        "lock": True,
        "refused": 0,
        "pipeline": True,
        "unlock": 1,
        "ping": True,
        "library": "redis-py",
        "version": "7.0.15",
        "maxclients": "10000",
        "table": True,
    }
