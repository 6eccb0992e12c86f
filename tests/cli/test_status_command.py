"""``p2pft status`` and ``p2pft dashboard`` find a run by its id or name, while it trains and later."""

from __future__ import annotations

import json

import pytest

from p2pft_flower.cli import app
from p2pft_flower.cli.dashboard import _chosen
from p2pft_flower.errors import DataError
from p2pft_flower.keeping.bulletins import bulletin_path, write_bulletin
from p2pft_flower.report.results import SCHEMA, runs_folder
from tests.commands import CliRunner
from tests.report.test_status import bulletin


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))


def status(*words):
    return CliRunner().invoke(app, ["status", *words])


def ended(name, run, **more):
    """A run's folder, as it is called by default."""
    folder = runs_folder() / f"{name}-{run}"
    folder.mkdir(parents=True)
    told = {"schema": SCHEMA, "run": run, "name": name, "status": "completed", "algorithm": "p2pft", **more}
    (folder / "results.json").write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize("wanted", ["7", "day"])
def test_a_run_that_trains_is_found_by_its_id_and_by_its_name(wanted):
    write_bulletin(bulletin_path(0), bulletin(name="day"))
    done = status(wanted, "--json")
    assert (done.exit_code, [s["run"] for s in json.loads(done.stdout)]) == (0, ["7"]), done.stderr
    assert _chosen(wanted) == ("7", None)
    assert status("night").exit_code == 1


@pytest.mark.parametrize("wanted", ["8", "day", "day-8"])
def test_the_page_of_a_run_that_has_ended_is_found_by_its_id_and_by_its_name(wanted):
    folder = ended("day", "8")
    assert _chosen(wanted) == (None, folder.resolve())


def test_of_two_runs_of_a_name_that_train_the_page_asks_for_an_id():
    write_bulletin(bulletin_path(0), bulletin(name="day"))
    write_bulletin(bulletin_path(1), bulletin(name="day", run="8"))
    with pytest.raises(DataError, match="runs 7, 8 are called day: give the id of one"):
        _chosen("day")
