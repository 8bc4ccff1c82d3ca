"""What is installed, and how a fresh machine gets it."""

from __future__ import annotations

import configparser
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import holdfast

ROOT = Path(__file__).resolve().parent.parent
NOT_PACKAGES = {"tests", "benchmarks", "docs", "build", "dist"}


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def words(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


def source_packages() -> set[str]:
    """Every folder with an __init__.py that is part of the product."""
    found = {"holdfast"}
    for path in ROOT.glob("[!.]*/**/__init__.py"):
        parts = path.parent.relative_to(ROOT).parts
        if parts[0] not in NOT_PACKAGES and not any(part.startswith(".") for part in parts):
            found.add(".".join(("holdfast", *parts)))
    return found


def copy_of_the_checkout(target: Path) -> Path:
    def ignored(folder: str, names: list[str]) -> set[str]:
        inner = {name for name in names if name == "__pycache__" or name.endswith(".egg-info")}
        hidden = {name for name in names if name.startswith(".")}
        top = hidden | {"build", "dist"} if Path(folder) == ROOT else set()
        return inner | (top & set(names))

    shutil.copytree(ROOT, target, ignore=ignored)
    return target


def test_every_package_is_named_for_installation() -> None:
    assert set(words(setup_cfg()["options"]["packages"])) == source_packages()


def test_three_dependencies_at_run_time() -> None:
    required = words(setup_cfg()["options"]["install_requires"])
    assert {name.split(">")[0] for name in required} == {"gevent", "hiredis", "redis"}


def test_the_version_is_the_one_in_setup_cfg() -> None:
    assert holdfast.__version__ == setup_cfg()["metadata"]["version"]


def test_public_names_are_there_and_load_on_first_use() -> None:
    code = (
        "import sys, holdfast\n"
        "assert 'redis' not in sys.modules and 'holdfast.compat' not in sys.modules\n"
        "assert set(holdfast.__all__) <= set(dir(holdfast))\n"
        "for name in holdfast.__all__: getattr(holdfast, name)\n"
        "from holdfast import Clerk, IndeterminateError\n"
        "assert issubclass(IndeterminateError, Exception)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = holdfast.nothing_of_that_name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy under another name: building leaves files behind, and names must not matter.
    source = copy_of_the_checkout(folder / "any-name")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--no-build-isolation", "--wheel-dir", str(folder), str(source)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    info = f"holdfast-{holdfast.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"holdfast", info}
    folders = {name.rpartition("/")[0].replace("/", ".") for name in names if name.endswith(".py")}
    assert folders == source_packages()
    assert "holdfast/py.typed" in names
    assert any(name.startswith(info) and name.endswith("LICENSE") for name in names)


def test_the_installed_wheel_runs_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(target), str(wheel)], check=True, timeout=300)
    code = "import holdfast.server as s; print(s.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(target)}
    for arguments, expected in (
        (["-c", code], str(target)),
        (["-m", "holdfast.server", "version"], f"holdfast {holdfast.__version__}"),
    ):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.startswith(expected), done.stderr


# ---- the Makefile

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(folder: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **extra}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    return copy_of_the_checkout(tmp_path / "a checkout")


def write_python(folder: Path, without: str) -> Path:
    """A python3 on which any code that mentions `without` fails."""
    script = folder / "some-python"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *{without}*) exit 1;; esac\nexec "{sys.executable}" "$@"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


@needs_make
def test_make_alone_lists_its_targets(fresh: Path) -> None:
    done = make(fresh)
    assert done.returncode == 0
    for target in ("run", "test", "soak", "check", "bench", "clean", "help"):
        assert f"make {target} " in done.stdout


@needs_make
@pytest.mark.parametrize(
    ("without", "says"), [("ensurepip", "python3-venv"), ("version_info", "Python 3.10")]
)
def test_a_python_that_will_not_do_is_one_clear_line(fresh: Path, without: str, says: str) -> None:
    done = make(fresh, "run", f"PYTHON={write_python(fresh.parent, without)}")
    assert done.returncode != 0
    first, *others = done.stderr.splitlines()
    assert says in first
    assert all(line.startswith("make") for line in others)
    assert not (fresh / ".venv").exists()


@needs_make
def test_make_check_runs_every_step_and_fails_at_the_end(fresh: Path) -> None:
    binaries = fresh / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").symlink_to(sys.executable)
    for name, code in (("ruff", 1), ("mypy", 0), ("lint-imports", 0)):
        tool = binaries / name
        tool.write_text(f'#!/bin/sh\necho "ran {name} $*"\nexit {code}\n')
        tool.chmod(0o755)
    (fresh / ".venv" / "installed-run").write_text(f"{fresh.resolve()}\n")
    (fresh / ".venv" / "installed-check").touch()
    done = make(fresh, "check")
    assert done.returncode != 0
    ran = [line for line in done.stdout.splitlines() if line.startswith("ran ")]
    assert ran == [
        "ran ruff format --check .",
        "ran ruff check .",
        "ran mypy -p holdfast",
        "ran lint-imports ",
    ]


@needs_make
def test_an_installation_that_fails_leaves_nothing_behind(fresh: Path) -> None:
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0"}
    done = make(fresh, "run", f"PYTHON={write_python(fresh.parent, 'nothing')}", **nowhere)
    assert done.returncode != 0
    assert not (fresh / ".venv").exists()


def test_continuous_integration_is_a_script_that_runs() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
