"""`holdfast demo`: the accident both ways with real processes, and its parts one by one."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.commands import Command, Commands
from harness.ports import HOST, Port
from harness.processes import TIMEOUT_S, Cluster, Node, die_with_parent, environment, wait_until

from holdfast.compat import demo
from holdfast.compat.demo import accident, client, storage

MODULE = "holdfast.server"
KEY = client.NAME


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", MODULE, "demo", *arguments]


class Running:
    """A part of the demo: a process with a keyboard, and everything that it has said so far. Forked
    by `commands`; without them it has an interpreter, and `more` in its environment.
    """

    def __init__(self, commands: Commands | None, *arguments: str, **more: str) -> None:
        self.said = ""
        stdin, self._keyboard = os.pipe()
        screen, stdout = os.pipe()
        self._process = self._started(commands, arguments, more, (stdin, stdout, stdout))
        os.close(stdin)
        os.close(stdout)
        self._listener = threading.Thread(target=self._listen, args=(screen,), daemon=True)
        self._listener.start()

    def _started(
        self,
        commands: Commands | None,
        arguments: tuple[str, ...],
        more: dict[str, str],
        files: tuple[int, int, int],
    ) -> Command | subprocess.Popen[bytes]:
        env = {**environment(), **more}
        if commands is not None:
            return commands.start(["demo", *arguments], env=env, folder=Path.cwd(), files=files)
        return subprocess.Popen(
            command(*arguments),
            stdin=files[0],
            stdout=files[1],
            stderr=files[2],
            env=env,
            preexec_fn=die_with_parent,
        )

    def _listen(self, screen: int) -> None:
        with open(screen, encoding="utf-8") as lines:
            for line in lines:
                self.said += line

    def wait_said(self, text: str) -> Running:
        def said() -> bool:
            return text in self.said or self._process.poll() is not None

        wait_until(said, f"{text!r}")
        self._end_of_speech()
        assert text in self.said, f"ended without saying {text!r}:\n{self.said}"
        return self

    def _end_of_speech(self) -> None:
        if self._process.poll() is not None:
            self._listener.join(TIMEOUT_S)

    def press_enter(self) -> Running:
        os.write(self._keyboard, b"\n")
        return self

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait_end(self) -> int:
        code = self._process.wait(TIMEOUT_S)
        self._end_of_speech()
        return code

    def reap(self) -> None:
        self._process.kill()
        self._process.wait(TIMEOUT_S)
        os.close(self._keyboard)


@pytest.fixture
def run(commands: Commands) -> Iterator[Callable[..., Running]]:
    """Starts parts of the demo; whatever is left of them is reaped."""
    started: list[Running] = []

    def run(*arguments: str, **more: str) -> Running:
        started.append(Running(None if more else commands, *arguments, **more))
        return started[-1]

    yield run
    for each in started:
        each.reap()


# ---- the whole accident


def left_of(mark: str) -> list[int]:
    """The processes whose environment has `mark`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has just ended, or is not ours
    return found


ENDS = {
    (): ["REFUSED", "The storage REFUSES (409)", "The stale write was refused", '["client 2"]'],
    ("--unfenced",): [
        "accepted THOUGH",
        "CORRUPTION, as expected",
        '["client 1"]',
        "client 2 was accepted",
    ],
}
STORY = ["client 1  I have it", "SIGSTOP", "client 2  I have it", "Who believes", "SIGCONT"]
STORY += ["I write", "my lease ran out", "The lock was not mine any more"]


def test_the_accident_ends_as_it_must_both_ways_and_at_once(run: Any) -> None:
    mark = f"demo-{uuid.uuid4()}"
    demos = {flags: run("fencing", "--lease", "500ms", *flags, MARK=mark) for flags in ENDS}
    for flags, whole in demos.items():
        assert whole.wait_end() == 0, whole.said
        tokens = [int(text) for text in re.findall(r"with fencing token (\d+)", whole.said)]
        assert tokens[0] < tokens[1]
        at = 0
        for text in STORY:
            at = whole.said.find(text, at)
            assert at >= 0, (text, whole.said)
        for text in ENDS[flags]:
            assert text in whole.said
    assert left_of(mark) == []


def test_nobody_is_left_when_the_demo_is_ended_in_the_middle(run: Any) -> None:
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
    mark = f"demo-{uuid.uuid4()}"
    demos = {number: run("fencing", "--lease", "10s", MARK=f"{mark}-{number}.") for number in codes}
    for number, whole in demos.items():
        whole.wait_said("I stand in line")
        # Itself, the pair with its two nodes, the storage, two clients.
        assert len(left_of(f"{mark}-{number}.")) == 7
        whole.send_signal(number)
        assert whole.wait_end() == codes[number], whole.said
        assert "Traceback" not in whole.said
        if number == signal.SIGKILL:  # the kernel ends its children then, and these theirs
            wait_until(lambda: not left_of(mark), "all have ended")
        assert left_of(f"{mark}-{number}.") == []


@pytest.mark.parametrize(
    ("codes", "value", "fenced", "as_expected"),
    [
        ([client.EXIT_REFUSED, 0], ["client 2"], True, True),
        ([0, 0], ["client 1"], True, False),
        ([0, 0], ["client 2"], True, False),
        ([client.EXIT_REFUSED, 0], ["client 1"], True, False),
        ([client.EXIT_REFUSED, client.EXIT_REFUSED], None, True, False),
        ([69, 0], ["client 2"], True, False),
        ([0, 0], ["client 1"], False, True),
        ([client.EXIT_REFUSED, 0], ["client 2"], False, False),
        ([0, 69], ["client 1"], False, False),
        ([0, 0], ["client 2", "client 1"], False, False),
    ],
)
def test_only_the_very_end_it_is_about_counts_as_success(
    codes: list[int], value: object, fenced: bool, as_expected: bool
) -> None:
    assert accident.judge(codes, value, fenced=fenced)[0] is as_expected


# ---- by hand, in three terminals


@pytest.fixture
def by_hand(
    run: Any, forked_cluster: Cluster
) -> Callable[..., tuple[Node, Callable[..., Running]]]:
    """A lock server, a storage, and what starts client N with a lease."""

    def by_hand(*flags: str) -> tuple[Node, Running, Callable[..., Running]]:
        node = forked_cluster.node("P").start("--log-level", "info")
        storing = run("storage", "--port", "0", *flags).wait_said("\n")
        (url,) = re.findall(r"http://[0-9.:]+", storing.said)
        wait_until(node.answers, "the lock server answers", [node])

        def start(number: int, lease: str = "1h") -> Running:
            return run(
                "client", str(number), "--lease", lease, "--server", node.url, "--storage", url
            )

        return node, storing, start

    return by_hand


def test_a_client_alone_is_accepted_and_gives_the_lock_back(by_hand: Any) -> None:
    node, storing, start = by_hand()
    first = start(1).wait_said(client.READY)
    storing.wait_said(f"GET {KEY} with token")  # from here on nobody before it can write
    first.press_enter()
    assert first.wait_end() == 0
    for text in ("I have it, with fencing token", "I read []", "ACCEPTED", "give the lock back"):
        assert text in first.said
    assert node.ask("EXISTS", KEY) == 0
    second = start(2).wait_said('I read ["client 1"]').press_enter()
    assert second.wait_end() == 0


@pytest.mark.parametrize("fenced", [True, False])
def test_an_operator_revokes_the_grant_of_a_client_that_stands_still(
    by_hand: Any, fenced: bool
) -> None:
    node, _, start = by_hand(*([] if fenced else ["--unfenced"]))
    first = start(1).wait_said(client.READY)
    second = start(2).wait_said("client 1 has it").wait_said("I stand in line")
    assert node.ask("DEL", KEY) == 1
    assert second.wait_said(client.READY).press_enter().wait_end() == 0
    first.press_enter()
    assert first.wait_end() == (client.EXIT_REFUSED if fenced else 0), first.said
    assert "my lease is good for another" in first.said.rpartition("Now I look at the clock")[2]
    assert "The lock was not mine any more" in first.said


def test_a_lease_that_runs_out_is_handed_on_while_its_holder_stands_still(by_hand: Any) -> None:
    *_, start = by_hand()
    first = start(1, "1s").wait_said(client.READY)
    first.send_signal(signal.SIGSTOP)
    second = start(2).wait_said(client.READY).press_enter()
    assert second.wait_end() == 0
    first.press_enter().send_signal(signal.SIGCONT)
    assert first.wait_end() == client.EXIT_REFUSED
    assert "it has seen token" in first.said and "my lease ran out" in first.said


def test_a_client_that_is_stopped_with_ctrl_c_gives_the_lock_back(by_hand: Any) -> None:
    node, _, start = by_hand()
    first = start(1).wait_said(client.READY)
    first.send_signal(signal.SIGINT)
    assert first.wait_end() == 130
    assert "Traceback" not in first.said
    assert node.ask("EXISTS", KEY) == 0


def test_without_a_storage_a_client_says_so_and_gives_the_lock_back(
    run: Any, forked_cluster: Cluster
) -> None:
    node = forked_cluster.node("P").start("--log-level", "info")
    wait_until(node.answers, "the lock server answers", [node])
    nobody = Port()
    there = f"http://{HOST}:{nobody.number}"
    first = run("client", "1", "--server", node.url, "--storage", there)
    assert first.wait_end() == 69
    assert f"no storage answers at {there}" in first.said
    assert "Traceback" not in first.said
    assert node.ask("EXISTS", KEY) == 0
    nobody.release()


# ---- the storage server


class Told:
    """An answer."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        text = response.read()
        self.body: Any = json.loads(text) if text else None


class Asking:
    """A storage server in this process, on a real socket."""

    def __init__(self, *, fenced: bool) -> None:
        self.server = storage.Server(0, storage.Storage(fenced=fenced))
        self.port: int = self.server.server_address[1]
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self._thread.start()

    def ask(self, method: str, path: str, body: bytes | str | None = None, **headers: str) -> Told:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=TIMEOUT_S)
        try:
            named = {name.replace("_", "-"): text for name, text in headers.items()}
            connection.request(method, path, body, named)
            return Told(connection.getresponse())
        finally:
            connection.close()

    def put(self, key: str, value: object, token: object) -> Told:
        return self.ask("PUT", f"/{key}", json.dumps({"value": value, "fencing_token": token}))

    def raw(self, data: bytes) -> bytes:
        """What comes back for bytes of any kind, until the server hangs up."""
        with socket.create_connection((HOST, self.port), TIMEOUT_S) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            with sock.makefile("rb") as stream:
                return stream.read()

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


@pytest.fixture
def asking() -> Iterator[Asking]:
    asking = Asking(fenced=True)
    yield asking
    asking.close()


def test_what_is_written_is_read(asking: Asking) -> None:
    value = {"total": 1.5, "lines": [None, True, "🧾", "\ud800"], "deep": [[[]]]}
    assert asking.put("invoice-7", value, 34).status == 200
    told = asking.ask("GET", "/invoice-7")
    assert told.status == 200
    assert told.headers["Content-Type"] == "application/json"
    assert told.body == {
        "key": "invoice-7",
        "value": value,
        "fencing_token": 34,
        "highest_token": 34,
    }


def test_a_lower_token_gets_409_with_both_tokens_and_writes_nothing(asking: Asking) -> None:
    asking.put("a", "new", 34)
    told = asking.put("a", "old", 33)
    assert told.status == 409
    assert (told.body["fencing_token"], told.body["highest_token"]) == (33, 34)
    assert "stale" in told.body["error"]
    assert asking.ask("GET", "/a").body["value"] == "new"
    assert asking.put("a", "again", 34).status == asking.put("b", "other", 33).status == 200


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("way", ["query", "header"])
def test_a_read_with_a_token_refuses_lower_ones_from_then_on(
    asking: Asking, way: str, there: bool
) -> None:
    if there:
        asking.put("a", 1, 33)
    if way == "query":
        told = asking.ask("GET", "/a?fencing_token=34")
    else:
        told = asking.ask("GET", "/a", Fencing_Token="34")
    assert told.status == (200 if there else 404)
    assert asking.put("a", 2, 33).status == 409
    assert asking.ask("GET", "/a?fencing_token=33").status == 409
    assert asking.put("a", 3, 34).status == 200


def test_a_read_without_a_token_refuses_nobody(asking: Asking) -> None:
    assert asking.ask("GET", "/a").status == 404
    assert asking.put("a", 1, 1).status == 200
    assert asking.ask("GET", "/a").body["highest_token"] == 1


def test_unfenced_accepts_everything_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    asking = Asking(fenced=False)
    assert asking.put("a", "new", 34).status == 200
    assert asking.ask("GET", "/a?fencing_token=33").status == 200
    assert asking.put("a", "old", 33).status == 200
    assert asking.ask("GET", "/a").body["value"] == "old"
    asking.close()
    assert capsys.readouterr().out.splitlines() == [
        'PUT a with token 34: accepted: "new"',
        'GET a with token 33: read THOUGH token 34 has been here: "new"',
        'PUT a with token 33: accepted THOUGH token 34 has been here: "old"',
        'GET a: read: "old"',
    ]


def test_every_request_is_a_line_that_cannot_drive_the_terminal(
    asking: Asking, capsys: pytest.CaptureFixture[str]
) -> None:
    asking.put("gr%C3%B6%C3%9Fe/1", 1, 34)
    asking.put("gr%C3%B6%C3%9Fe/1", 2, 33)
    asking.ask("GET", "/%1b%5b2J")
    asking.ask("POST", "/a", "x")
    assert capsys.readouterr().out.splitlines() == [
        "PUT größe/1 with token 34: accepted: 1",
        "PUT größe/1 with token 33: REFUSED, token 34 has been here",
        "GET \\x1b[2J: not there",
        "POST /a HTTP/1.1: POST is not offered: GET or PUT",
    ]


BAD_WRITES = [
    ("", "no JSON"),
    ('{"value": 1, ', "no JSON"),
    (b"\xff\xfe\xfd", "no JSON"),
    ('{"value": NaN, "fencing_token": 1}', "NaN is no JSON"),
    ("[" * 60_000, "no JSON"),
    ("7", 'a write is {"value"'),
    ("[]", 'a write is {"value"'),
    ('{"value": 1, "fencing-token": 1}', 'a write is {"value"'),
    ('{"fencing_token": 1}', "'value' is missing"),
    ('{"value": 1}', "'fencing_token' is missing"),
    ('{"value": 1, "fencing_token": "1"}', "must be an int, not str"),
    ('{"value": 1, "fencing_token": 1.0}', "must be an int, not float"),
    ('{"value": 1, "fencing_token": true}', "must be an int, not bool"),
    ('{"value": 1, "fencing_token": null}', "must be an int, not NoneType"),
    ('{"value": 1, "fencing_token": 0}', "above 0, not 0"),
    ('{"value": 1, "fencing_token": -1}', "above 0, not -1"),
    ('{"value": 1, "fencing_token": 9223372036854775808}', "at most 2^63-1"),
]


@pytest.mark.parametrize(("body", "says"), BAD_WRITES)
def test_a_write_that_is_none_is_told_why(asking: Asking, body: Any, says: str) -> None:
    told = asking.ask("PUT", "/a", body)
    assert told.status == 400
    assert says in told.body["error"]
    assert asking.ask("GET", "/a").status == 404


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/", "no key"),
        ("/?fencing_token=1", "no key"),
        ("/%ff", "not UTF-8"),
        ("/%00", "no NUL"),
        ("/" + "a" * 513, "1 to 512"),
        ("/a?fencing_token=", "is no fencing token"),
        ("/a?fencing_token=x", "is no fencing token"),
        ("/a?fencing_token=-1", "is no fencing token"),
        ("/a?fencing_token=0", "above 0, not 0"),
        ("/a?fencing_token=99999999999999999999", "is no fencing token"),
        ("/a?fencing_token=1&fencing_token=2", "given twice"),
        ("/a?" + "&".join("x=1" for _ in range(11)), "too many fields"),
    ],
)
def test_a_path_that_is_none_is_told_why(asking: Asking, path: str, says: str) -> None:
    query_has_token = "fencing_token" in path
    told = asking.ask("GET", path if query_has_token or "?" in path else f"{path}?fencing_token=1")
    assert told.status == 400
    assert says in told.body["error"]


@pytest.mark.parametrize("method", ["POST", "DELETE", "HEAD", "PATCH", "OPTIONS", "NONSENSE"])
def test_other_methods_are_not_offered(asking: Asking, method: str) -> None:
    told = asking.ask(method, "/a", "x" if method == "POST" else None)
    assert told.status == 405
    assert told.headers["Allow"] == "GET, PUT"
    assert (told.body is None) == (method == "HEAD")


def write_of(length: int) -> str:
    body = json.dumps({"value": "", "fencing_token": 1})
    return body.replace('""', f'"{"a" * (length - len(body))}"')


def test_a_body_has_a_limit_and_one_byte_more_is_too_much(asking: Asking) -> None:
    largest = storage.BODY_BYTES_MAX
    assert asking.ask("PUT", "/a", write_of(largest)).status == 200
    for length in (largest + 1, 10 * largest):
        told = asking.ask("PUT", "/a", write_of(length))
        assert told.status == 413
        assert f"{length} bytes are too many" in told.body["error"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"PUT /a HTTP/1.1\r\n\r\n", b"411"),
        (b"PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"411"),
        (b"PUT /a HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"PUT /a HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"PUT /a HTTP/1.1\r\nContent-Length: 10\r\n\r\n{}", b"400"),
        (b"PUT /a HTTP/1.1\r\nContent-Length: 999999999999999999\r\n\r\n{}", b"413"),
        (b"GET / a b HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431"),
    ],
)
def test_what_is_no_request_is_answered_and_the_next_one_served(
    asking: Asking, data: bytes, status: bytes
) -> None:
    answer = asking.raw(data)
    assert status in answer[:60]
    assert json.loads(answer[answer.index(b"{") :])["error"]
    assert asking.put("a", 1, 1).status == 200


def test_another_protocol_is_answered_without_a_head(asking: Asking) -> None:
    """As HTTP had it before it had versions."""
    assert json.loads(asking.raw(b"*3\r\n$4\r\nLOCK\r\n")) == {"error": "Bad request syntax ('*3')"}
    assert asking.put("a", 1, 1).status == 200


def test_a_client_that_hangs_up_is_a_line_and_no_traceback(
    asking: Asking, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_connection((HOST, asking.port)) as sock:
        sock.sendall(b"PUT /a HTTP/1.1\r\nContent-Length: 100\r\n\r\n")
    assert asking.put("a", 1, 1).status == 200
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_port_that_is_taken_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert demo.main(["storage", "--port", port]) == 1
    assert capsys.readouterr().err == (
        f"holdfast: cannot listen on port {port}: Address already in use;"
        " choose another with --port\n"
    )


# ---- the command line


def test_help_shows_the_three_terminals() -> None:
    done = subprocess.run(command("--help"), capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0
    for text in (
        "holdfast pair",
        "holdfast demo storage",
        "holdfast demo client 1",
        "holdfast demo client 2",
        f"redis-cli DEL {KEY}",
        f"holdfast break {KEY} --token",
        "--unfenced",
    ):
        assert text in done.stdout


@pytest.mark.parametrize("part", ["fencing", "storage", "client"])
def test_every_part_has_help(capsys: pytest.CaptureFixture[str], part: str) -> None:
    with pytest.raises(SystemExit) as ended:
        demo.main([part, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: holdfast demo {part}")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "PART"),
        (["nonsense"], "nonsense"),
        (["client"], "N"),
        (["client", "x"], "invalid int"),
        (["client", "1", "--lease", "5"], "write 5s for seconds"),
        (["client", "1", "--storage", "ftp://x"], "no http://HOST:PORT"),
        (["client", "1", "--storage", "http://a:b"], "no http://HOST:PORT"),
        (["client", "1", "--server", "nonsense"], "nonsense"),
        (["storage", "--port", "65536"], "from 0 to 65535"),
        (["fencing", "--lease", "1ms"], "from 500ms to 10s"),
    ],
)
def test_a_wrong_command_line_is_one_clear_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    try:
        code: object = demo.main(arguments)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert says in capsys.readouterr().err
