"""`holdfast view`: an operator looks at the register, or writes its first view."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from harness.etcd import EtcdServer

from holdfast.server import flags, views
from holdfast.server.core.view import Cas, View
from holdfast.server.registers import FileRegister
from holdfast.server.registers.opening import open_register

AB = View(3, "a", ("a", "b"))


class Said:
    """How a command ended, and what it wrote."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def __repr__(self) -> str:
        return f"exit code {self.code}\nout: {self.out}\nerr: {self.err}"


class Command:
    """Runs `holdfast view` in this process."""

    def __init__(self, captured: pytest.CaptureFixture[str]) -> None:
        self._captured = captured

    def __call__(self, *arguments: object) -> Said:
        try:
            code = views.main([str(each) for each in arguments])
        except SystemExit as ended:
            assert isinstance(ended.code, int)
            code = ended.code
        out, err = self._captured.readouterr()
        said = Said(code, out, err)
        assert "Traceback" not in err
        assert not code or err.startswith(("holdfast view", "usage: holdfast view")), said
        return said


@pytest.fixture
def view(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    for name in list(os.environ):
        if name.startswith("HOLDFAST_"):
            monkeypatch.delenv(name)
    return Command(capsys)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "view"


def in_file(path: Path) -> tuple[str, ...]:
    return ("--view", "backup", "--view-file", str(path))


def test_a_first_view_is_written_and_shown(view: Command, path: Path) -> None:
    said = view("init", *in_file(path))
    assert (said.code, said.err) == (0, "")
    assert said.out == (
        f"the view in {path} is vacant, at epoch 1: the first empty node to claim it begins a "
        "history\n"
    )
    said = view("show", *in_file(path))
    assert (said.code, said.err) == (0, "")
    assert said.out == (
        "epoch    1\nprimary  none: vacant, for an empty node to claim\nmembers  none\n"
    )


def test_a_view_of_two_members_is_shown(view: Command, path: Path) -> None:
    FileRegister(path).init(view=AB)
    assert view("show", *in_file(path)).out == "epoch    3\nprimary  a\nmembers  a b\n"


@pytest.mark.parametrize("shown", [AB, View(7, "", ())])
def test_a_view_is_shown_to_programs(view: Command, path: Path, shown: View) -> None:
    FileRegister(path).init(at_least=shown.epoch, view=shown if shown.primary else None)
    said = view("show", "--json", *in_file(path))
    assert said.out.count("\n") == 1
    assert json.loads(said.out) == {
        "epoch": shown.epoch,
        "primary": shown.primary,
        "members": list(shown.members),
        "vacant": not shown.primary,
    }


def test_a_second_first_view_is_refused_and_force_goes_one_up(view: Command, path: Path) -> None:
    FileRegister(path).init(view=AB)
    said = view("init", *in_file(path))
    assert (said.code, said.out) == (1, "")
    assert "there is a view already: epoch 3, primary a, members a, b" in said.err
    assert "'holdfast view init --force'" in said.err
    assert FileRegister(path).get() == AB
    assert "at epoch 4" in view("init", "--force", *in_file(path)).out
    assert "at epoch 40" in view("init", "--force", "--epoch", 40, *in_file(path)).out
    assert FileRegister(path).get() == View(40, "", ())


def test_a_node_and_an_operator_use_the_same_file(view: Command, path: Path) -> None:
    node = FileRegister(path)
    view("init", *in_file(path))
    assert node.cas(View(2, "a", ("a",)))[0] is Cas.WON
    assert "epoch    2" in view("show", *in_file(path)).out
    view("init", "--force", *in_file(path))
    assert node.cas(View(3, "b", ("b",))) == (Cas.LOST, View(3, "", ()))


def test_a_file_that_is_missing_or_damaged_is_an_error_which_says_what_to_do(
    view: Command, path: Path
) -> None:
    said = view("show", *in_file(path))
    assert (said.code, said.out) == (1, "")
    assert f"{path} does not exist" in said.err and "'holdfast view init'" in said.err
    path.write_bytes(b"damaged")
    assert "is not a view of Holdfast" in view("show", *in_file(path)).err
    for force in ((), ("--force",), ("--epoch", 9)):
        said = view("init", *force, *in_file(path))
        assert said.code == 1 and "'holdfast view init --force --epoch N'" in said.err
    assert view("init", "--force", "--epoch", 9, *in_file(path)).code == 0
    assert FileRegister(path).get() == View(9, "", ())


@pytest.mark.parametrize("command", ["show", "init"])
def test_under_fail_stop_there_is_no_register(view: Command, command: str) -> None:
    for where in ((), ("--view", "fail-stop")):
        said = view(command, *where)
        assert said.code == 2
        assert "there is no register under fail-stop; give --view backup or" in said.err
        assert said.err.endswith(f"Try 'holdfast view {command} --help'.\n")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["show", "--view", "backup"], "needs --view-file"),
        (["show", "--view", "backup", "--view-file", "/"], "is a folder; name a file in it"),
        (["show", "--view", "backup", "--view-file", "/no/"], "is a folder"),
        (["show", "--view", "both"], "--view: 'both' is none of"),
        (["show", "--view", "etcd://h"], "not HOST:PORT"),
        (["show", "--view", "etcd://h:1", "--view-file", "f"], "--view-file is for --view backup"),
        (["show", "--view", "backup", "--view-file", "f", "--etcd-user", "u"], "--etcd flags"),
        (["show", "--view", "etcd://h:1", "--etcd-user", "u"], "go together"),
        (["show", "--view", "etcd://h:1", "--etcd-user", "u:pw"], "on a command line"),
        (["show", "--view", "etcd://h:1", "--etcd-key", "k"], "go with --etcd-ca"),
        (["init", "--epoch", "0"], "is no epoch"),
        (["init", "--epoch", "1e3"], "is no epoch"),
        (["init", "--epoch", "9" * 17], "is no epoch"),
        (["show", "--force"], "unrecognized arguments: --force"),
        (["reset"], "invalid choice"),
    ],
)
def test_a_wrong_command_line_is_refused(view: Command, arguments: list[str], why: str) -> None:
    pytest.importorskip("urllib3")
    said = view(*arguments)
    assert (said.code, said.out) == (2, "")
    assert why in said.err
    assert "--help'" in said.err


def test_without_a_command_the_help_is_shown(view: Command) -> None:
    said = view()
    assert said.code == 2 and "show" in said.err and "init" in said.err


def test_the_help_of_each_command_has_every_flag(view: Command) -> None:
    for command in ("show", "init"):
        said = view(command, "--help")
        assert said.code == 0
        for flag in flags.REGISTER_FLAGS:
            assert f"{flag.option} {flag.metavar}" in said.out
            assert flag.variable in said.out


def test_flags_can_be_given_in_the_environment_which_is_blamed_for_its_errors(
    view: Command, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_VIEW", "backup")
    assert "(from the environment: HOLDFAST_VIEW)" in view("show").err
    monkeypatch.setenv("HOLDFAST_VIEW_FILE", str(path))
    assert view("init").code == 0
    assert view("show").code == 0
    monkeypatch.setenv("HOLDFAST_VIEW", "both")
    assert "HOLDFAST_VIEW: 'both' is none of" in view("show").err
    assert view("show", *in_file(path)).code == 0, "a flag wins over its variable"


@pytest.mark.parametrize("content", [b"", b"\n", b"a\nb\n", b"x" * 2000, b"\xff"])
def test_a_password_file_that_holds_no_password_is_refused(
    view: Command, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    login = ("--etcd-user", "locks", "--etcd-password-file", file)
    said = view("show", "--view", "etcd://h:1", *login)
    assert said.code == 2 and f"--etcd-password-file {file}: it" in said.err
    file.unlink()
    assert "No such file" in view("show", "--view", "etcd://h:1", *login).err


def test_a_view_in_etcd_is_written_and_shown(view: Command, tmp_path: Path) -> None:
    pytest.importorskip("urllib3", reason="NOT TESTED WITH ETCD: no urllib3 (holdfast[etcd])")
    password = tmp_path / "password"
    password.write_text("secret\n")
    with EtcdServer(tmp_path / "etcd") as etcd:
        where = ("--view", etcd.url())
        said = view("show", *where)
        assert (said.code, said.out) == (1, "")
        assert f"there is no view in {etcd.url()}. Before the first start" in said.err
        assert view("init", *where).code == 0
        assert "epoch    1" in view("show", *where).out
        etcd.enable_auth({"locks": "/test/"}, "secret")
        assert "it wants a user" in view("show", *where).err
        login = ("--etcd-user", "locks", "--etcd-password-file", password)
        assert view("init", "--force", *where, *login).code == 0
        as_user = {"etcd_user": "locks", "etcd_password_file": str(password)}
        assert open_register(etcd.url(), **as_user).get() == View(2, "", ())
        etcd.kill()
        said = view("show", *where, *login)
        assert said.code == 1
        assert re.search(r"no answer from etcd \(.*Connection refused\). See that", said.err)
