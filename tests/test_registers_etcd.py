"""The view register in etcd when etcd is slow, gone, wiped, guarded, or its answers are lost (F7).

The contract which it shares with the file is in test_registers.py.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import pytest
from harness.etcd import Certificates, EtcdServer
from harness.ports import HOST, Port
from harness.processes import wait_until
from harness.proxy import Proxy

from holdfast.server.core.view import NO_VIEW, Cas, View
from holdfast.server.registers import DamagedRegister, EtcdRegister, RegisterError
from holdfast.server.registers.encoding import encode
from holdfast.server.registers.gateway import InDoubt

pytest.importorskip("urllib3", reason="NOT TESTED WITH ETCD: no urllib3 (holdfast[etcd])")

TIMEOUT_S = 0.6
SLACK_S = 1.5  # of a busy machine
GAP_MAX_S = 0.05  # I12

A = View(2, "a", ("a",))
AB = View(3, "a", ("a", "b"))
B = View(4, "b", ("b",))


@pytest.fixture(scope="module")
def one_member(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


_numbers = itertools.count(1)


@pytest.fixture
def etcd(one_member: EtcdServer) -> EtcdServer:
    """One member, which holds AB under a prefix of this test's own."""
    one_member.mend()
    one_member.prefix = f"/test{next(_numbers)}"
    EtcdRegister(one_member.url()).init(view=AB)
    return one_member


@pytest.fixture
def proxy(etcd: EtcdServer) -> Iterator[Proxy]:
    port = Port()
    proxy = Proxy(port, etcd.port)
    yield proxy
    proxy.close()
    port.release()


def through(etcd: EtcdServer, proxy: Proxy, *others: str) -> EtcdRegister:
    url = f"etcd://{','.join([proxy.address, *others])}{etcd.prefix}"
    return EtcdRegister(url, timeout_s=TIMEOUT_S)


class Timed:
    """Asserts that what stands inside ends within the register's time-out."""

    def __enter__(self) -> None:
        self._began_s = time.monotonic()

    def __exit__(self, *_: object) -> None:
        assert time.monotonic() - self._began_s < TIMEOUT_S + SLACK_S


# -- etcd is gone, or silent ---------------------------------------------------------------------


def test_an_etcd_that_is_gone_is_an_error_at_once_and_asked_again_when_it_is_back(
    etcd: EtcdServer,
) -> None:
    register = EtcdRegister(etcd.url(), timeout_s=60.0)
    etcd.kill()
    for operation in (register.get, lambda: register.cas(B), register.init):
        with pytest.raises(RegisterError, match=rf"{etcd.port}: Connection refused.*See that"):
            operation()
    etcd.start()
    assert register.get() == AB
    assert register.cas(B) == (Cas.WON, B)


def test_a_view_outlives_every_kind_of_restart(etcd: EtcdServer) -> None:
    register = EtcdRegister(etcd.url())
    for end in (etcd.stop, etcd.kill):
        view = after(register.get(), end.__name__)
        assert register.cas(view) == (Cas.WON, view)
        end()
        etcd.start()
        assert register.get() == EtcdRegister(etcd.url()).get() == view


def test_a_paused_etcd_is_an_error_within_the_time_out(etcd: EtcdServer) -> None:
    register = EtcdRegister(etcd.url(), timeout_s=TIMEOUT_S)
    etcd.pause()
    for operation in (register.get, lambda: register.cas(B), register.init):
        with Timed(), pytest.raises(RegisterError, match="was silent"):
            operation()
    etcd.resume()
    assert register.get() == AB


def test_a_silent_member_leaves_time_for_the_next(etcd: EtcdServer, proxy: Proxy) -> None:
    register = through(etcd, proxy, f"{HOST}:{etcd.port}")
    proxy.hold()
    with Timed():
        assert register.cas(B) == (Cas.WON, B)
    began_s = time.monotonic()
    assert register.get() == B
    assert time.monotonic() - began_s < TIMEOUT_S / 2, "the one that answers is asked first"


def test_the_loop_of_a_node_goes_on_while_etcd_is_silent(etcd: EtcdServer) -> None:
    register = EtcdRegister(etcd.url(), timeout_s=TIMEOUT_S)
    etcd.pause()
    gaps = []
    for _ in range(5):  # the machine may be busy
        asking = gevent.get_hub().threadpool.spawn(register.get)
        last_s, gap_s = time.monotonic(), 0.0
        while not asking.ready():
            gevent.sleep(0.001)
            gap_s, last_s = max(gap_s, time.monotonic() - last_s), time.monotonic()
        with pytest.raises(RegisterError):
            asking.get()
        gaps.append(gap_s)
        if gap_s < GAP_MAX_S:
            break
    assert min(gaps) < GAP_MAX_S, gaps


def test_connections_are_used_again_and_given_back(etcd: EtcdServer) -> None:
    register = EtcdRegister(etcd.url())
    register.get()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        register.cas(register.get().alone("a"))
    assert len(os.listdir("/proc/self/fd")) == before
    etcd.kill()
    for _ in range(50):
        with pytest.raises(RegisterError):
            register.get()
    assert len(os.listdir("/proc/self/fd")) <= before


# -- the answer is lost --------------------------------------------------------------------------


@pytest.mark.parametrize("silence_s", [0.05, 60.0])  # the connection is closed, or never again used
def test_an_answer_that_is_lost_after_success_leaves_it_undecided_until_asked_again(
    etcd: EtcdServer, proxy: Proxy, silence_s: float
) -> None:
    register, done = through(etcd, proxy), threading.Event()
    proxy.go_deaf(b"/v3/kv/txn", silence_s, done.set)
    with Timed():
        assert register.cas(B) == (Cas.UNDECIDED, AB)
    assert done.wait(10)
    assert register.reason.startswith("no answer from etcd")
    assert EtcdRegister(etcd.url()).get() == B, "it had won"
    proxy.end_silence()
    proxy.accept_connections()
    assert register.cas(B) == (Cas.WON, B)
    assert register.reason.endswith("since before")


def test_an_answer_that_is_lost_is_had_from_another_member_at_once(
    etcd: EtcdServer, proxy: Proxy
) -> None:
    register, done = through(etcd, proxy, f"{HOST}:{etcd.port}"), threading.Event()
    proxy.go_deaf(b"/v3/kv/txn", 0.05, done.set)
    with Timed():
        assert register.cas(B) == (Cas.WON, B)
    assert done.wait(10)


def test_an_answer_that_is_lost_after_defeat_leaves_it_undecided_until_asked_again(
    etcd: EtcdServer, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    register, other = through(etcd, proxy), View(4, "a", ("a",))
    after_reading(register, monkeypatch, lambda: EtcdRegister(etcd.url()).cas(other))
    proxy.go_deaf(b"/v3/kv/txn", 0.05, lambda: None)
    assert register.cas(B) == (Cas.UNDECIDED, AB)
    proxy.accept_connections()
    assert register.cas(B) == (Cas.LOST, other)


def after_reading(
    register: EtcdRegister, monkeypatch: pytest.MonkeyPatch, then: Callable[[], object]
) -> None:
    """Do something between the reading and the transaction of the next compare-and-set."""
    real: Any = register._read

    def read(deadline_s: float) -> object:
        kept = real(deadline_s)
        monkeypatch.undo()
        then()
        return kept

    monkeypatch.setattr(register, "_read", read)


class Late:
    """The next transaction of a register is on its way until it is told to arrive."""

    def __init__(
        self, etcd: EtcdServer, register: EtcdRegister, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self._etcd = etcd
        self._sent: list[tuple[str, dict[str, Any]]] = []
        real = register._gateway.call

        def call(path: str, body: dict[str, Any], deadline_s: float) -> dict[str, Any]:
            if not path.endswith("txn"):
                return real(path, body, deadline_s)
            self._sent.append((path, body))
            monkeypatch.undo()
            raise InDoubt("it was silent")

        monkeypatch.setattr(register._gateway, "call", call)

    def arrive(self) -> bool:
        """Whether it has won."""
        ((path, body),) = self._sent
        return bool(self._etcd.ask(path, body).get("succeeded", False))


def test_an_undecided_proposal_may_still_win_later_though_the_old_epoch_was_read_since(
    etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    register = EtcdRegister(etcd.url())
    late = Late(etcd, register, monkeypatch)
    assert register.cas(B) == (Cas.UNDECIDED, AB)
    assert register.get() == AB
    assert late.arrive()
    assert register.get() == B


@pytest.mark.parametrize("decided", [B, View(4, "a", ("a",))])
def test_an_undecided_proposal_that_arrives_late_changes_nothing_that_was_decided_since(
    etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch, decided: View
) -> None:
    register = EtcdRegister(etcd.url())
    late = Late(etcd, register, monkeypatch)
    assert register.cas(B) == (Cas.UNDECIDED, AB)
    assert register.cas(decided) == (Cas.WON, decided)
    assert not late.arrive()
    assert register.get() == decided
    assert register.cas(B) == ((Cas.WON if decided == B else Cas.LOST), decided)


def test_a_view_that_was_written_by_force_meanwhile_wins_over_an_undecided_proposal(
    etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    register = EtcdRegister(etcd.url())
    late = Late(etcd, register, monkeypatch)
    assert register.cas(B) == (Cas.UNDECIDED, AB)
    vacant = EtcdRegister(etcd.url()).init(force=True)
    assert not late.arrive()
    assert register.cas(B) == (Cas.LOST, vacant)


def test_a_proposal_from_before_etcd_was_wiped_does_not_win_in_the_new_one(
    etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Revisions begin anew then, so the same revision can come again; the same view does not."""
    restart_empty(etcd)
    register, other = EtcdRegister(etcd.url()), View(3, "c", ("c",))
    register.init(view=AB)
    revision = revision_of(register)
    late = Late(etcd, register, monkeypatch)
    assert register.cas(B) == (Cas.UNDECIDED, AB)
    restart_empty(etcd)
    register.init(view=other)
    assert revision_of(register) == revision
    assert not late.arrive()
    assert register.get() == other


def restart_empty(etcd: EtcdServer) -> None:
    etcd.kill()
    etcd.wipe()
    etcd.start()


def revision_of(register: EtcdRegister) -> int:
    return register._read(register._gateway.deadline_s()).revision


def test_an_operator_whose_answer_is_lost_is_told_to_look(etcd: EtcdServer, proxy: Proxy) -> None:
    proxy.go_deaf(b"/v3/kv/txn", 0.05, lambda: None)
    with pytest.raises(RegisterError, match=r"may have been written.*holdfast view show"):
        through(etcd, proxy).init(force=True)
    assert EtcdRegister(etcd.url()).get() == View(4, "", ())


def test_of_two_operators_one_is_told_that_the_view_has_changed(
    etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    register = EtcdRegister(etcd.url())
    after_reading(register, monkeypatch, lambda: EtcdRegister(etcd.url()).cas(B))
    with pytest.raises(RegisterError, match="somebody else has changed"):
        register.init(force=True, at_least=9)
    assert register.get() == B


# -- what is kept is lost or damaged -------------------------------------------------------------


def test_a_wiped_etcd_has_no_view_and_gets_none_from_a_node(etcd: EtcdServer) -> None:
    register = EtcdRegister(etcd.url())
    assert register.get() == AB
    restart_empty(etcd)
    assert register.get() == NO_VIEW
    for view in (View(1, "a", ("a",)), B):
        assert register.cas(view) == (Cas.LOST, NO_VIEW)
    assert "an operator says 'holdfast view init'" in register.reason
    assert etcd.value(etcd.key) == b""


@pytest.mark.parametrize("value", [b"", b"x", encode(AB)[:-1], b"\xff" * 100, b"9" * 5000])
def test_a_key_that_is_no_view_is_refused_until_an_operator_names_the_epoch(
    etcd: EtcdServer, value: bytes
) -> None:
    etcd.put(etcd.key, value)
    register = EtcdRegister(etcd.url())
    for operation in (register.get, lambda: register.cas(B)):
        with pytest.raises(DamagedRegister, match=rf"the key {etcd.key} in etcd"):
            operation()
    for force, at_least in ((False, 0), (True, 0), (False, 9)):
        with pytest.raises(RegisterError, match="--force --epoch N"):
            register.init(force=force, at_least=at_least)
    assert etcd.value(etcd.key) == value
    assert register.init(force=True, at_least=9) == View(9, "", ())


# -- who may ask ---------------------------------------------------------------------------------


def test_tls_needs_the_ca_that_signed_and_says_so(tmp_path: Path) -> None:
    tls = Certificates.make(tmp_path / "ca")
    stranger = Certificates.make(tmp_path / "other")
    with EtcdServer(tmp_path / "etcd", tls=tls) as etcd:
        register = EtcdRegister(etcd.url(), ca=str(tls.ca))
        register.init(view=AB)
        assert register.get() == AB
        with pytest.raises(RegisterError, match=r"certificate is not accepted.*--etcd-ca"):
            EtcdRegister(etcd.url(), ca=str(stranger.ca)).get()
        with pytest.raises(RegisterError, match=r"if it wants TLS, give --etcd-ca"):
            EtcdRegister(etcd.url()).get()
        name = etcd.url().replace(HOST, "localhost")
        assert EtcdRegister(name, ca=str(tls.ca)).get() == AB


def test_an_etcd_that_wants_certificates_gets_one(tmp_path: Path) -> None:
    tls = Certificates.make(tmp_path / "ca")
    stranger = Certificates.make(tmp_path / "other")
    ca, cert, key = map(str, tls)
    with EtcdServer(tmp_path / "etcd", tls=tls, client_certificates=True) as etcd:
        assert EtcdRegister(etcd.url(), ca, cert, key).init() == View(1, "", ())
        for files in (("", ""), (str(stranger.cert), str(stranger.key))):
            with pytest.raises(RegisterError, match=r"TLS fails|Connection reset|closed"):
                EtcdRegister(etcd.url(), ca, *files).get()


def test_tls_is_not_spoken_to_an_etcd_without_it(etcd: EtcdServer, tmp_path: Path) -> None:
    tls = Certificates.make(tmp_path / "ca")
    with pytest.raises(RegisterError, match=r"TLS fails|Connection reset|closed"):
        EtcdRegister(etcd.url(), ca=str(tls.ca)).get()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[EtcdServer]:
    """An etcd with users: `locks` may read and write under /test/."""
    with EtcdServer(tmp_path / "etcd", login_ttl_s=1) as server:
        EtcdRegister(server.url()).init(view=AB)
        server.enable_auth({"locks": "/test/"}, "secret")
        yield server


def as_user(etcd: EtcdServer, user: str = "locks", password: str = "secret") -> EtcdRegister:
    return EtcdRegister(etcd.url(), user=user, password=password)


def test_a_user_and_a_password_are_asked_for_and_checked(guarded: EtcdServer) -> None:
    assert as_user(guarded).cas(B) == (Cas.WON, B)
    for user, password, why in (
        ("", "", "it wants a user: --etcd-user and --etcd-password-file"),
        ("locks", "wrong", "see --etcd-user and --etcd-password-file"),
        ("nobody", "secret", "see --etcd-user"),
    ):
        register = as_user(guarded, user, password)
        for operation in (register.get, lambda register=register: register.cas(B.alone("b"))):
            with pytest.raises(RegisterError, match=why):
                operation()
    with pytest.raises(RegisterError, match=r"permission denied; give the role"):
        EtcdRegister(guarded.url("/other"), user="locks", password="secret").get()


def test_a_login_that_has_run_out_is_renewed(guarded: EtcdServer) -> None:
    register = as_user(guarded)
    assert register.get() == AB
    ended = b"deleted a simple token"
    log = guarded.members[0].log
    wait_until(lambda: ended in log.read_bytes(), "etcd forgets the login")
    assert register.cas(B) == (Cas.WON, B)


def test_a_login_that_etcd_has_forgotten_is_renewed(guarded: EtcdServer) -> None:
    register = as_user(guarded)
    assert register.get() == AB
    guarded.kill()
    guarded.start()
    assert register.cas(B) == (Cas.WON, B)


def test_a_login_from_before_users_were_changed_is_renewed(guarded: EtcdServer) -> None:
    register = as_user(guarded)
    assert register.get() == AB
    login = guarded.login("root", "secret")
    guarded.ask("/v3/auth/user/add", {"name": "new", "password": "new"}, login=login)
    assert register.cas(B) == (Cas.WON, B)


def test_a_user_is_no_hindrance_where_etcd_has_none(etcd: EtcdServer) -> None:
    assert as_user(etcd).cas(B) == (Cas.WON, B)


# -- several members -----------------------------------------------------------------------------


def test_a_cluster_goes_on_without_any_one_of_its_members(tmp_path: Path) -> None:
    with EtcdServer(tmp_path / "etcd", 3) as etcd:
        register = EtcdRegister(etcd.url())
        view = register.init(view=View(1, "a", ("a",)))
        for number in range(3):
            etcd.kill(number)
            view = after(view, f"without{number}")
            wait_until(partial(settled, register, view), "a majority decides")
            assert register.get() == view
            etcd.start(number)
        for number in range(3):
            etcd.pause(number)
            view = after(view, f"paused{number}")
            wait_until(partial(settled, register, view), "a majority decides")
            etcd.resume(number)
        etcd.kill(0)
        etcd.kill(1)
        lonely = EtcdRegister(etcd.url(), timeout_s=TIMEOUT_S)
        with Timed(), pytest.raises(RegisterError):
            lonely.get()
        etcd.start(0, 1)
        wait_until(partial(settled, register, after(view, "again")), "a majority decides")


def after(view: View, newcomer: str) -> View:
    """The next view: its primary and a newcomer."""
    return View(view.epoch + 1, view.primary, (view.primary, newcomer))


def settled(register: EtcdRegister, view: View) -> bool:
    """Whether it has won, at last: a new leader takes its time."""
    try:
        result, standing = register.cas(view)
    except RegisterError:
        return False
    assert result is not Cas.LOST, standing
    return result is Cas.WON


def test_two_etcds_that_are_no_cluster_are_not_taken_for_one(
    etcd: EtcdServer, tmp_path: Path
) -> None:
    with EtcdServer(tmp_path / "other") as other:
        EtcdRegister(other.url()).init(view=AB)
        register = EtcdRegister(f"etcd://{etcd.endpoints},{other.endpoints}/test")
        EtcdRegister(etcd.url("/test")).init(view=AB)
        assert register.get() == AB
        etcd.kill()
        for _ in range(2):
            with pytest.raises(RegisterError, match=rf"{other.port} belongs to another cluster"):
                register.cas(B)
        assert EtcdRegister(other.url()).get() == AB
