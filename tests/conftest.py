"""For all tests: nothing is kept in the home of whoever runs them."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_home(tmp_path_factory):
    """One for the session: what a trunk made of an image need not be computed for every test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("P2PFT_HOME", str(tmp_path_factory.mktemp("p2pft-home")))
        yield
