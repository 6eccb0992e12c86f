"""Runs without Flower: what the commands that make several runs ask for, and results as a run leaves them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from p2pft_flower.cli.flwr_run import Ended
from p2pft_flower.config import RunConfig
from p2pft_flower.report.results import SCHEMA, write_results
from tests.report.made_up import results


class StandIn:
    """Takes the place of ``flwr run``: notes what is asked for, and leaves made-up results."""

    def __init__(self) -> None:
        self.asked: list[dict] = []
        self.errors: dict[str, BaseException | str] = {}
        """By method: a text fails the run as the app does, an exception is raised."""

    def __call__(self, values, *, connection, environment, federation, show, verbose=False):
        self.asked.append(dict(values))
        folder, method = Path(values["output-dir"]), values["algorithm"]
        (folder / "peers").mkdir(parents=True)
        show(f"05:00:00 a line of {method}")
        error = self.errors.get(method)
        if isinstance(error, BaseException):
            raise error
        if error is not None:
            failed = {"schema": SCHEMA, "status": "failed", "algorithm": method, "error": error}
            write_results(folder, failed)
            return Ended("1", False, "finished:failed", "")
        config = RunConfig.from_mapping(values).to_mapping()
        write_results(folder, results(method, config["seed"], config))
        return Ended("1", True, "finished:completed", "")


@pytest.fixture
def flower(monkeypatch):
    """A :class:`StandIn` behind ``p2pft run``, ``compare`` and ``reproduce``."""
    stand_in = StandIn()
    monkeypatch.setattr("p2pft_flower.cli.run.run_app", stand_in)
    for command in ("compare", "reproduce"):
        monkeypatch.setattr(f"p2pft_flower.cli.{command}.local_superlink", lambda: contextlib.nullcontext({}))
    return stand_in


@pytest.fixture
def connections(monkeypatch, tmp_path):
    """Give Flower a config.toml with the connections ``far`` and ``rehearsal``; return its path."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    file = tmp_path / "flwr" / "config.toml"
    file.parent.mkdir()
    file.write_text(
        '[superlink]\ndefault = "far"\n\n[superlink.far]\naddress = "192.0.2.7:8000"\n\n'
        '[superlink.rehearsal]\naddress = "127.0.0.1:18000"\ninsecure = true\n'
    )
    return file
