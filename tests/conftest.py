"""Fixtures of the live tests: nodes that are always reaped, and whose logs a failure shows."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.commands import Commands
from harness.processes import Cluster, Zygote

_CLUSTERS = pytest.StashKey[list[Cluster]]()

# Two workers share the files out: the longest ones go first, so that none is left alone at the end.
_LONGEST = (
    "test_simulator.py", "test_model.py", "test_simulator_mutants.py", "test_live_rejoin.py",
    "test_live_lab.py", "test_live_kv.py", "test_packaging.py", "test_live_cli_lock.py",
)  # fmt: skip

# A shell that starts this in the background has the terminal's signals ignored, and what we start
# inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others as they come."""
    rank = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """Nodes started by the command line."""
    yield from _cluster(request, Cluster(tmp_path))


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """What forks nodes in a few milliseconds."""
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    """What forks `holdfast lock` and others of the client side."""
    commands = Commands()
    yield commands
    commands.close()


@pytest.fixture
def forked_cluster(
    request: pytest.FixtureRequest, tmp_path: Path, zygote: Zygote
) -> Iterator[Cluster]:
    """Nodes forked by the zygote: for tests that need many."""
    yield from _cluster(request, Cluster(tmp_path, zygote))


def _cluster(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Cluster]:
    request.node.stash.setdefault(_CLUSTERS, []).append(cluster)
    yield cluster
    cluster.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the logs of the nodes with a failure."""
    report = yield
    if report.failed:
        for cluster in item.stash.get(_CLUSTERS, []):
            for node in cluster.nodes:
                report.sections.append((f"log of {node}", node.log_text[-20_000:]))
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what tests have measured."""
    for line in MEASURED:
        terminalreporter.write_line(line)


MEASURED: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Gather what tests have measured, in whichever process they ran."""
    if report.when == "teardown":
        MEASURED.extend(str(value) for key, value in report.user_properties if key == "measured")


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Lines for the end of the run: figures are recorded, never a reason to fail."""
    lines: list[str] = []
    yield lines
    request.node.user_properties += [("measured", line) for line in lines]
