"""The import graph points downward, and the core is pure.

The contracts stand in setup.cfg; here they are run, and tried against a package that breaks them.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import holdfast.server

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "server" / "core"
COMMANDS = ROOT / "server" / "commands"
PACKAGES = ("resp", "server", "compat")

CORE_MAY_IMPORT = {
    "__future__",
    "bisect",
    "collections",
    "collections.abc",
    "dataclasses",
    "enum",
    "functools",
    "hashlib",
    "heapq",
    "itertools",
    "operator",
    "re",
    "struct",
    "typing",
    "zlib",
}
# Bytes to values and back. (``replies`` is hiredis: a parser, which does no IO of its own either.)
CORE_MAY_IMPORT_OF_RESP = {"encoder", "errors", "replies"}
# Built-in, so no import shows them: IO, code from text, and what differs between two processes.
CORE_MAY_NOT_CALL = {"__import__", "breakpoint", "eval", "exec", "hash", "id", "input", "open"}
CORE_MAY_NOT_CALL |= {"print"}


def lint(package_root: Path) -> subprocess.CompletedProcess[str]:
    """Checks the contracts over the package whose root is `package_root`, named holdfast."""
    code = "import sys; from importlinter.cli import lint_imports_command as run; run()"
    # The link's folder comes first on the path, so that no installed holdfast is looked at instead.
    return subprocess.run(
        [sys.executable, "-c", code, "--config", str(ROOT / "setup.cfg"), "--no-cache"],
        cwd=package_root.parent,
        env={**os.environ, "PYTHONPATH": str(package_root.parent), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_tests_look_at_this_checkout() -> None:
    assert Path(holdfast.server.__file__).resolve().parent == ROOT / "server"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, to be spoilt."""
    root = tmp_path / "holdfast"
    root.mkdir()
    shutil.copy(ROOT / "__init__.py", root)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def test_the_import_graph_points_downward(package: Path) -> None:
    done = lint(package)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("path", "source", "contract"),
    [
        ("server/core/spoilt.py", "import time", "core does no IO"),
        ("server/core/spoilt.py", "from gevent import sleep", "core does no IO"),
        ("server/core/spoilt.py", "from .. import commands", "shell above"),
        ("server/commands/spoilt.py", "from ..config import Config", "shell above"),
        ("server/config.py", "from .flags import Flag", "shell above"),
        ("server/unplaced.py", "", "shell above"),
        ("resp/spoilt.py", "from ..server import core", "resp knows nothing"),
        ("compat/spoilt.py", "from ..resp import errors", "the client side needs"),
        ("compat/spoilt.py", "def f():\n    import holdfast.server.log", "the client side needs"),
        ("server/log.py", "import redis", "does not load the client side"),
        ("server/core/spoilt.py", "from ..peer import Peer", "shell above"),
        ("server/core/spoilt.py", "from ..registers import FileRegister", "shell above"),
        ("server/commands/spoilt.py", "from ..keeper import Keeper", "shell above"),
        ("server/registers/spoilt.py", "from ..keeper import Keeper", "shell above"),
        ("server/keeper.py", "from .views import VIEW_FLAGS", "shell above"),
        ("server/link.py", "from .peer import Peer", "shell above"),
    ],
)
def test_an_import_that_points_upward_is_found(
    package: Path, path: str, source: str, contract: str
) -> None:
    (package / path).write_text(source + "\n")
    done = lint(package)
    assert done.returncode == 1
    broken = [line for line in done.stdout.splitlines() if "BROKEN" in line]
    assert any(contract in line for line in broken), done.stdout + done.stderr


def imports(tree: ast.Module, package: str = "core") -> Iterator[str]:
    """The modules that a file of server/`package` imports, by absolute name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ["holdfast", "server", package][: 4 - node.level] if node.level else []
            yield ".".join([*above, *([node.module] if node.module else [])])


def may_import(module: str) -> bool:
    ours = {f"holdfast.resp.{name}" for name in CORE_MAY_IMPORT_OF_RESP}
    core = "holdfast.server.core"
    return module in CORE_MAY_IMPORT | ours | {core} or module.startswith(core + ".")


@pytest.mark.parametrize("path", sorted(CORE.glob("**/*.py")), ids=lambda path: path.name)
def test_the_core_imports_only_what_is_pure(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert [module for module in imports(tree) if not may_import(module)] == []
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert called & CORE_MAY_NOT_CALL == set()


def test_to_load_the_core_loads_nothing_that_does_io_or_rolls_dice() -> None:
    names = [f"holdfast.server.core.{path.stem}" for path in CORE.glob("*.py")]
    code = f"import sys, {', '.join(names)}; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.split())
    assert "hiredis" in loaded, "the one library in C that the core parses with"
    assert loaded.isdisjoint({"gevent", "greenlet", "redis", "logging", "asyncio", "threading"})
    assert "holdfast.server.peer" not in loaded and "holdfast.compat" not in loaded


def at_run_time(tree: ast.Module) -> ast.Module:
    """The tree without what only type checkers load."""
    kept = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return ast.Module(kept, tree.type_ignores)


@pytest.mark.parametrize("path", sorted(COMMANDS.glob("**/*.py")), ids=lambda path: path.name)
def test_the_commands_load_nothing_of_the_shell(path: Path) -> None:
    found = imports(at_run_time(ast.parse(path.read_text())), "commands")
    ours = [module for module in found if module.startswith("holdfast")]
    below = ("holdfast.server.commands", "holdfast.server.core", "holdfast.resp")
    assert [module for module in ours if not module.startswith(below)] == []


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("import os.path", "os.path"),
        ("from ..log import set_up", "holdfast.server.log"),
        ("from .. import log", "holdfast.server"),
        ("from ... import server", "holdfast"),
        ("def f():\n    from time import time", "time"),
        ("from ...resp.decoder import Decoder", "holdfast.resp.decoder"),
        ("import hiredis", "hiredis"),
    ],
)
def test_the_rule_of_the_core_sees_every_form_of_import(source: str, module: str) -> None:
    found = list(imports(ast.parse(source)))
    assert found == [module]
    assert not may_import(module)
