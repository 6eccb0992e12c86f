"""For all tests: nothing is kept in the home of whoever runs them, and random examples never change.

Neither torch nor NumPy has more than one thread, here or in a process that a test starts: four processes of
tests share the cores, and threads that wait for one another there take ten times as long.

``HYPOTHESIS_PROFILE=search pytest …`` draws new ones; what fails there becomes a test of its own.
"""

from __future__ import annotations

import gc
import logging
import os
import tempfile

import pytest
from hypothesis import settings

from tests import lanes

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

settings.register_profile("repeat", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))


def pytest_configure(config):
    lanes.lower_priority()
    turns = lanes.Turns()
    config.pluginmanager.register(turns)


def pytest_collection_finish():
    """Spare what tests and libraries consist of: Flower's strategies collect garbage for each client."""
    gc.collect()
    gc.freeze()


def pytest_xdist_make_scheduler(config, log):
    return lanes.Lanes(config, log)


@pytest.fixture(autouse=True, scope="session")
def _own_temporary_folder():
    """One for each of pytest-xdist's processes: tests look whether a run leaves sockets there."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    # A short name: the path of a Unix socket has little room.
    with tempfile.TemporaryDirectory(prefix="t") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", None)
        yield


@pytest.fixture(autouse=True)
def _own_log(monkeypatch):
    """The log's handlers and level are those of a test alone: an app that runs in it sets its own."""
    logger = logging.getLogger("p2pft_flower")
    for name, value in (("handlers", []), ("level", logging.NOTSET), ("propagate", True)):
        monkeypatch.setattr(logger, name, value)


@pytest.fixture(autouse=True, scope="session")
def _own_home(tmp_path_factory):
    """One for the session: what a trunk made of an image need not be computed for every test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("P2PFT_HOME", str(tmp_path_factory.mktemp("p2pft-home")))
        yield
