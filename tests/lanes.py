"""Two lanes of pytest-xdist's workers: one for tests that wait, one for tests that compute.

A test that waits starts processes, or has deadlines in real time: it needs little of the processor, but that
at once. A test that computes keeps a core busy. The first half of the workers (two of the four that
``pyproject.toml`` asks for) compute, at a lower priority, so that they take what the others leave;
the rest wait. When a lane has no more to do, its workers help the other one.

A unit of work is a file, whose fixtures are then made once, or a single test of those in `ALONE`. In each
lane the units that take longest come first.

Two workers, as many as a small machine has cores, collect the tests before the others do: what they import is
compiled twice then, not by every worker.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

WAITS = (
    "tests/flower/test_deployments.py",
    "tests/deploy/test_guide.py",
    "tests/cli/test_ray_cluster.py",
    "tests/cli/test_up.py",
    "tests/cli/test_real_runs.py",
    "tests/flower/test_killed_and_resumed.py",
    "tests/cli/test_killed_and_resumed.py",
    "tests/lab",
    "tests/faults",
    "tests/namespaces",
    "tests/host",
    "tests/flower/test_own_problem.py",
    "tests/cli/test_rehearsal.py",
    "tests/cli/test_completion.py",
    "tests/cli/test_places.py",
    "tests/cli/test_exit_codes.py",
    "tests/cli/test_proxies.py",
    "tests/cli/test_dashboard.py",
    "tests/cli/test_dashboard_browser.py",
    "tests/flower/test_signals.py",
    "tests/flower/test_supernode.py",
    "tests/keeping/test_running.py",
    "tests/transport",
)
"""Files and folders of tests that wait, those first that take longest."""

COMPUTES = (
    "tests/flower/test_every_tune.py",
    "tests/learning/test_exports.py",
    "tests/agreement",
    "tests/flower",
    "tests/cli",
    "tests/algorithms",
)
"""What takes longest of the others."""

ALONE = (
    "tests/faults/",
    "tests/namespaces/",
    "tests/cli/test_real_runs.py",
    "tests/flower/test_every_tune.py",
    "tests/learning/test_exports.py",
    "tests/host/test_rejoin.py",
    "tests/host/test_survival.py",
    "tests/host/test_payloads.py",
)
"""Where each test is a unit: they share no fixture that takes long."""

NICE = 5


def waits(nodeid: str) -> bool:
    """Tell which lane a test belongs to."""
    return nodeid.startswith(WAITS)


def rank(nodeid: str) -> int:
    """Return which place a test has in its lane; those of one place stay in their order."""
    lane = WAITS if waits(nodeid) else COMPUTES
    return next((i for i, prefix in enumerate(lane) if nodeid.startswith(prefix)), len(lane))


def computes(worker: str, workers: int) -> bool:
    """Tell whether a worker (``gw0``, …) is one of those that compute."""
    return int(worker.removeprefix("gw")) < workers // 2


def lower_priority() -> None:
    """Let this process, where it is a worker that computes, take what the others leave of the processor."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None and computes(worker, int(os.environ["PYTEST_XDIST_WORKER_COUNT"])):
        os.nice(NICE)


FIRST = 2

COLLECTED = "P2PFT_TESTS_COLLECTED"
"""Environment variable with a folder, in which each of the first workers has a file once it has collected."""

PATIENCE = 120.0
"""Seconds that the other workers wait for that; then they collect all the same."""


class Turns:
    """A plugin of pytest: the turns in which workers collect tests."""

    def __init__(self) -> None:
        self._worker = os.environ.get("PYTEST_XDIST_WORKER")

    def pytest_configure(self) -> None:
        if self._worker is None:  # workers inherit the environment
            os.environ[COLLECTED] = tempfile.mkdtemp(prefix="t")
        elif self._number() >= FIRST:
            end = time.monotonic() + PATIENCE
            while len(list(self._folder().iterdir())) < FIRST and time.monotonic() < end:
                time.sleep(0.1)  # processes of pytest-xdist have no other way to hear of one another

    def pytest_collection_finish(self) -> None:
        if self._worker is not None and self._number() < FIRST:
            (self._folder() / self._worker).touch()

    def pytest_unconfigure(self) -> None:
        if self._worker is None:
            shutil.rmtree(self._folder())

    def _number(self) -> int:
        return int(self._worker.removeprefix("gw"))

    def _folder(self) -> Path:
        return Path(os.environ[COLLECTED])


class Lanes(LoadScopeScheduling):
    """pytest-xdist's scheduler of files, for two lanes."""

    def _split_scope(self, nodeid):
        return nodeid if nodeid.startswith(ALONE) else nodeid.partition("::")[0]

    def _assign_work_unit(self, node):
        own = not computes(node.gateway.id, self.numnodes)
        units = sorted(self.workqueue, key=lambda unit: (waits(unit) != own, rank(unit)))
        self.workqueue.move_to_end(units[0], last=False)
        super()._assign_work_unit(node)

    def _reschedule(self, node):
        # A worker runs a test when it knows the next one: with more than these two it would hold up the rest.
        if node.shutting_down or not self.workqueue or self._pending_of(self.assigned_work[node]) < 2:
            super()._reschedule(node)
