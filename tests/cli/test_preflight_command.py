"""``p2pft preflight`` asks for what the run will do, and prints what the coordinator wrote."""

from __future__ import annotations

import json

import pytest

from p2pft_flower.cli import app
from p2pft_flower.cli.flwr_run import Ended
from tests.commands import CliRunner


@pytest.fixture
def flower(monkeypatch, connections):
    """Return a list of what was asked for, and a function that sets what the run streams."""
    asked, streamed = [], [""]

    def stand_in(values, **_):
        asked.append(dict(values))
        return Ended("17", True, "finished:completed", streamed[0])

    monkeypatch.setattr("p2pft_flower.cli.preflight.run_app", stand_in)
    return asked, lambda text: streamed.__setitem__(0, text)


def preflight(*words):
    return CliRunner().invoke(app, ["preflight", *words])


def test_it_asks_for_the_folders_that_the_run_itself_will_have(flower):
    asked, _ = flower
    assert preflight("topology=ring:2").exit_code == 0
    assert preflight("output-dir=/results").exit_code == 0
    assert [values.get("output-dir", "") for values in asked] == ["", "/results"]
    assert all(values["preflight-only"] is True for values in asked)


def test_json_is_what_the_coordinator_wrote_wherever_that_is(flower, tmp_path):
    _, stream = flower
    (tmp_path / "preflight.json").write_text('{"failures": []}')
    stream(f"07:05:12 a table\n07:05:13 preflight: {tmp_path / 'preflight.json'}\nINFO: done")
    assert json.loads(preflight("--json").stdout) == {"failures": []}


@pytest.mark.parametrize(
    ("streamed", "says"),
    [
        ("", "ended before it could write"),
        ("07:05:13 preflight: /far/preflight.json", "needs the SuperLink on this"),
    ],
)
def test_without_the_coordinators_file_json_is_refused_in_one_line(flower, streamed, says):
    flower[1](streamed)
    result = preflight("--json")
    assert result.exit_code == 1
    assert says in result.stderr
    assert result.stdout == ""
