"""View registers: one contract for the file and for etcd (R1 to R4), and the bytes they keep."""

from __future__ import annotations

import json
import os
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from harness.etcd import EtcdServer
from hypothesis import given
from hypothesis import strategies as st

from holdfast.server.core.view import NO_VIEW, Cas, View
from holdfast.server.registers import DamagedRegister, EtcdRegister, FileRegister, RegisterError
from holdfast.server.registers.encoding import EPOCH_MAX, Malformed, decode, encode

Register = FileRegister | EtcdRegister
Open = Callable[[], Register]

RACES = 200
GAP_MAX_S = 0.05  # I12

VACANT = View(1, "", ())
A = View(2, "a", ("a",))
AB = View(3, "a", ("a", "b"))


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    pytest.importorskip("urllib3", reason="NOT TESTED WITH ETCD: no urllib3 (holdfast[etcd])")
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture(params=["file", "etcd"])
def open_it(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the same register anew at each call."""
    if request.param == "file":
        return lambda: FileRegister(tmp_path / "view")
    server = request.getfixturevalue("etcd")
    prefix = "/" + re.sub(r"[^a-z0-9_]", "-", request.node.name)
    return lambda: EtcdRegister(server.url(prefix))


def at(register: Register, view: View) -> Register:
    """The register, made to hold ``view`` by its own means."""
    if view.is_vacant:
        assert register.init(at_least=view.epoch) == view
    else:
        assert register.init(view=view) == view
    return register


def proposal(view: View, newcomer: str) -> View:
    """The next view: its primary and a newcomer."""
    return View(view.epoch + 1, view.primary, (view.primary, newcomer))


# -- the contract --------------------------------------------------------------------------------


def test_nothing_is_taken_for_no_view_and_never_made_up(open_it: Open) -> None:
    """A file that is missing may be one that was lost; a key that is missing is NO_VIEW, which a
    node refuses."""
    register = open_it()
    for _ in range(2):
        if isinstance(register, EtcdRegister):
            assert register.get() == NO_VIEW
            for proposed in (View(1, "a", ("a",)), A):
                assert register.cas(proposed) == (Cas.LOST, NO_VIEW)
        else:
            with pytest.raises(DamagedRegister, match=r"does not exist.*view init"):
                register.get()
            with pytest.raises(DamagedRegister, match="does not exist"):
                register.cas(A)
            assert os.listdir(Path(str(register)).parent) == []


def test_init_writes_a_vacant_view_which_others_see(open_it: Open) -> None:
    assert open_it().init() == VACANT
    assert VACANT.is_vacant
    assert open_it().get() == VACANT


def test_init_begins_where_it_is_told_to(open_it: Open) -> None:
    assert open_it().init(at_least=41) == View(41, "", ())
    assert open_it().get() == View(41, "", ())


def test_init_refuses_where_a_view_is(open_it: Open) -> None:
    register = at(open_it(), AB)
    with pytest.raises(RegisterError, match=r"epoch 3, primary a, members a, b.*--force"):
        register.init(at_least=9)
    assert open_it().get() == AB


def test_init_by_force_goes_up_by_one_or_to_what_is_named_if_that_is_more(open_it: Open) -> None:
    register = at(open_it(), AB)
    assert register.init(force=True) == View(4, "", ())
    assert register.init(force=True, at_least=2) == View(5, "", ())
    assert register.init(force=True, at_least=20) == View(20, "", ())
    assert open_it().get() == View(20, "", ())


def test_init_refuses_an_epoch_that_is_none(open_it: Open) -> None:
    with pytest.raises(RegisterError, match="an epoch is a number"):
        open_it().init(at_least=EPOCH_MAX + 1)
    assert open_it().init(at_least=EPOCH_MAX) == View(EPOCH_MAX, "", ())
    with pytest.raises(RegisterError, match="an epoch is a number"):
        open_it().init(force=True)


def test_init_takes_over_the_view_of_a_node_that_serves(open_it: Open) -> None:
    assert open_it().init(view=AB) == AB
    assert open_it().get() == AB
    assert open_it().init(view=AB) == AB, "said twice, when the first answer was lost"
    later = View(7, "b", ("b",))
    with pytest.raises(RegisterError, match="there is a view already"):
        open_it().init(view=later)
    assert open_it().init(force=True, view=later) == later


@pytest.mark.parametrize("given", [A, View(3, "b", ("b",)), View(4, "", ()), NO_VIEW])
def test_init_takes_over_no_view_that_would_take_the_register_back(
    open_it: Open, given: View
) -> None:
    at(open_it(), AB)
    with pytest.raises(RegisterError, match=r"epochs only grow|no view to take over"):
        open_it().init(force=True, view=given)
    assert open_it().get() == AB


def test_a_view_one_epoch_up_wins(open_it: Open) -> None:
    open_it().init()
    for view in (A, AB, AB.alone("b"), AB.alone("b").joined_by("c")):
        register = open_it()
        assert register.cas(view) == (Cas.WON, view)
        assert f"to {view.epoch}" in register.reason
        assert open_it().get() == view


@pytest.mark.parametrize("epoch", [1, 2, 3, 5, 6])
def test_a_view_of_any_other_epoch_loses_to_what_stands(open_it: Open, epoch: int) -> None:
    register = at(open_it(), AB)
    assert register.cas(View(epoch, "b", ("b",))) == (Cas.LOST, AB)
    assert f"epoch 3, not {epoch - 1}" in register.reason
    assert open_it().get() == AB


def test_the_same_proposal_again_has_won(open_it: Open) -> None:
    at(open_it(), AB)
    for _ in range(2):
        assert open_it().cas(AB) == (Cas.WON, AB)
    assert open_it().cas(View(3, "a", ("a",))) == (Cas.LOST, AB), "the same primary, another view"


@pytest.mark.parametrize(
    "proposed",
    [
        View(4, "", ()),
        View(4, "b", ("a",)),
        View(4, "b", ("b", "b")),
        View(4, "b\n", ("b\n",)),
        View(4, "", ("a", "")),
        View(0, "b", ("b",)),
        NO_VIEW,
    ],
)
def test_what_no_node_can_propose_is_refused(open_it: Open, proposed: View) -> None:
    at(open_it(), AB)
    with pytest.raises(RegisterError, match="no view that a node can propose"):
        open_it().cas(proposed)
    assert open_it().get() == AB


def test_of_two_that_propose_at_once_exactly_one_wins_each_epoch(open_it: Open) -> None:
    registers = [open_it(), open_it()]
    view = registers[0].init(view=View(1, "a", ("a",)))
    barrier = threading.Barrier(2, timeout=20)
    wins = [0, 0]
    for turn in range(RACES):
        results: list[Any] = [None, None]

        def propose(number: int, view: View = view, turn: int = turn, out: Any = results) -> None:
            barrier.wait()
            out[number] = registers[number].cas(proposal(view, f"node{number}-{turn}"))

        threads = [threading.Thread(target=propose, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        winner = [result for result, _ in results].index(Cas.WON)
        wins[winner] += 1
        view = proposal(view, f"node{winner}-{turn}")
        assert results[winner] == (Cas.WON, view)
        assert results[1 - winner] == (Cas.LOST, view)
    assert registers[0].get() == registers[1].get() == view
    assert view.epoch == RACES + 1
    print("won:", wins)


def test_the_loop_of_a_node_goes_on_while_it_asks_in_a_thread(open_it: Open) -> None:
    register = open_it()
    view = register.init(view=View(1, "a", ("a",)))
    gaps: list[float] = []

    def tick() -> None:
        last_s = time.monotonic()
        while True:
            gevent.sleep(0.001)
            now_s = time.monotonic()
            gaps[-1] = max(gaps[-1], now_s - last_s)
            last_s = now_s

    for attempt in range(5):  # the machine may be busy
        gaps.append(0.0)
        ticking = gevent.spawn(tick)
        pool = gevent.get_hub().threadpool
        for turn in range(50):
            proposed = proposal(view, f"node{attempt}-{turn}")
            assert pool.apply(register.cas, (proposed,)) == (Cas.WON, proposed)
            view = pool.apply(register.get)
        ticking.kill()
        if gaps[-1] < GAP_MAX_S:
            break
    assert min(gaps) < GAP_MAX_S, gaps


# -- the bytes -----------------------------------------------------------------------------------

_nodes = st.from_regex(r"[0-9A-Za-z._:-]{1,64}", fullmatch=True)
_epochs = st.integers(1, EPOCH_MAX)


@st.composite
def _views(draw: st.DrawFn) -> View:
    members = tuple(draw(st.lists(_nodes, max_size=3, unique=True)))
    return View(draw(_epochs), draw(st.sampled_from(members)) if members else "", members)


@given(_views())
def test_what_is_written_is_read(view: View) -> None:
    data = encode(view)
    assert data.isascii() and data.count(b"\n") == 1 and data.endswith(b"\n")
    assert decode(data) == view


@given(_views(), st.data())
def test_what_was_written_otherwise_is_refused(view: View, data: st.DataObject) -> None:
    line = bytearray(encode(view))
    where = data.draw(st.integers(0, len(line) - 1))
    line[where : where + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    if bytes(line) != encode(view):
        with pytest.raises(Malformed):
            decode(bytes(line))


@given(st.binary())
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(data)


def resealed(**changes: object) -> bytes:
    """A line whose checksum is right and which no Holdfast of this version has written."""
    body = {"epoch": 3, "primary": "a", "members": ["a", "b"]}
    body |= {name: value for name, value in changes.items() if name in body}
    checksum = zlib.crc32(json.dumps(body).encode())
    line = {"holdfast_view": changes.get("format", 1), **body, "crc32": checksum}
    return json.dumps(line).encode() + b"\n"


def test_the_line_that_tests_spoil_is_a_good_one() -> None:
    assert decode(resealed()) == AB


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"format": 2}, "format 2"),
        ({"format": "1"}, "format '1'"),
        ({"epoch": 0}, "form"),
        ({"epoch": -1}, "form"),
        ({"epoch": True}, "kind"),
        ({"epoch": 3.0}, "kind"),
        ({"epoch": EPOCH_MAX + 1}, "form"),
        ({"primary": None}, "kind"),
        ({"primary": "c"}, "form"),
        ({"primary": ""}, "form"),
        ({"members": []}, "form"),
        ({"members": "a"}, "kind"),
        ({"members": ["a", "a"]}, "form"),
        ({"members": ["a", ""]}, "form"),
        ({"members": ["a", "b c"]}, "form"),
        ({"members": ["a", "b,c"]}, "form"),
        ({"members": ["a", "\x1b[2J"]}, "form"),
        ({"members": ["a", 1]}, "kind"),
        ({"members": ["a", "b" * 65]}, "form"),
        ({"members": ["a", *map(str, range(2000))]}, "longer"),
    ],
)
def test_a_view_that_cannot_be_is_refused_though_its_checksum_is_right(
    changes: dict[str, object], why: str
) -> None:
    with pytest.raises(Malformed, match=why):
        decode(resealed(**changes))


@pytest.mark.parametrize(
    "proposed",
    [
        View(4, "c", ("c",)),  # a stranger
        View(4, "c", ("a", "b", "c")),
        View(4, "b", ("b", "a")),  # a member, but a new primary begins alone
    ],
)
def test_only_a_member_becomes_primary_and_begins_alone(open_it: Open, proposed: View) -> None:
    """I3, held by the register itself."""
    register = at(open_it(), AB)
    assert register.cas(proposed) == (Cas.LOST, AB)
    assert register.cas(AB.alone("b")) == (Cas.WON, AB.alone("b"))
