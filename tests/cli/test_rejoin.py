"""``p2pft rejoin``: what it refuses, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pft_flower.cli import app
from p2pft_flower.flower import client
from p2pft_flower.host.agreement import LostContactError
from p2pft_flower.host.host import PeerFailedError
from p2pft_flower.keeping.journal import Journal
from p2pft_flower.transport import ExchangeStoppedError
from tests.commands import CliRunner
from tests.journals import made_line


def rejoin(*arguments):
    return CliRunner().invoke(app, ["rejoin", "17", *arguments])


def test_a_site_without_the_run_is_told_where_it_was_looked_for(tmp_path):
    said = rejoin("--node-config", f'peer-id=2 output-dir="{tmp_path}"')
    assert said.exit_code == 2
    assert f"peer 2 of run 17 cannot be started again here: there is no {tmp_path / '17'}" in said.output
    said = rejoin("--node-config", "peer-id=2", "--output-dir", str(tmp_path))
    assert said.exit_code == 2
    assert f"{tmp_path} has no plan of it" in said.output


def test_the_text_of_a_sites_file_is_read_with_its_spaces(tmp_path):
    said = rejoin("--node-config", f'peer-id = 2 output-dir = "{tmp_path}"')
    assert "peer 2 of run 17 cannot be started again here" in said.output


@pytest.mark.parametrize("text", ["", "peer-id=two", "peer=2", "peer-id=2 insecure"])
def test_a_wrong_node_config_starts_nothing(text):
    said = rejoin("--node-config", text)
    assert said.exit_code == 2
    assert "--node-config" in said.output


@pytest.mark.parametrize(
    "error",
    [
        LostContactError("nobody has let it in for 600 s"),
        ExchangeStoppedError("peer 0 stopped in iteration 9: flwr stop"),
        PeerFailedError(2, 9, "its gradient failed", ValueError("no more images")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whoever_does_not_get_to_the_end_exits_1_and_says_why(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(client, "rejoin", fail)
    said = rejoin("--node-config", "peer-id=2")
    assert said.exit_code == 1
    assert f"error: {error}" in said.output


def test_whoever_gets_to_the_end_exits_0_and_says_where_the_model_is(monkeypatch):
    outcome = made_line("end", 2, accuracy=0.96)
    monkeypatch.setattr(client, "rejoin", lambda *_: (outcome, Path("/var/p2pft/17")))
    said = rejoin("--node-config", "peer-id=2")
    assert said.exit_code == 0
    assert "peer 2 has trained to the end: 300 iterations, accuracy 0.960" in said.output
    assert "/var/p2pft/17/peers" in said.output


def test_a_site_looks_for_a_run_by_its_name_and_says_which_one_that_is(tmp_path):
    (tmp_path / "pets-17").mkdir()
    said = CliRunner().invoke(app, ["rejoin", "pets", "--node-config", f'peer-id=2 output-dir="{tmp_path}"'])
    assert said.exit_code == 2
    assert "peer 2 of run 17 cannot be started again here" in said.output
    assert f"pets is run 17 ({tmp_path / 'pets-17'})" in said.output


def rejoins(*words):
    return CliRunner().invoke(app, ["rejoin", *words])


def test_a_site_without_an_interrupted_run_says_so_and_exits_0(tmp_path):
    site = ("--node-config", f'peer-id=2 output-dir="{tmp_path}"')
    said = rejoins("--interrupted", *site)
    assert said.exit_code == 0
    assert (
        f"there is nothing to rejoin: no run of peer 2 is below {tmp_path}; if the run-config" in said.stdout
    )
    said = rejoins("17", "--interrupted", *site)
    assert said.exit_code == 2
    assert "leave RUN out" in said.stderr
    said = rejoins(*site)
    assert said.exit_code == 2
    assert "or --interrupted for the site's last one" in said.stderr


def test_a_sites_interrupted_run_is_rejoined_without_its_id(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "pets-17", 2)
    journal.write(made_line("run", 2, run="17"))
    journal.close()
    (tmp_path / "pets-17" / "peers" / "peer-2.plan.json").touch()
    asked = []
    monkeypatch.setattr(
        client,
        "rejoin",
        lambda run, site, folder: asked.append((run, folder)) or (made_line("end", 2), folder),
    )
    said = rejoins("--interrupted", "--node-config", f'peer-id=2 output-dir="{tmp_path}"')
    assert said.exit_code == 0
    assert asked == [("17", tmp_path / "pets-17")]
    assert f"run 17 was interrupted ({tmp_path / 'pets-17'})" in said.stdout
    chosen = (tmp_path / "pets-17").rename(tmp_path / "chosen")  # as p2pft run --out does
    site = ("--node-config", f'peer-id=2 output-dir="{tmp_path / "elsewhere"}"')
    assert rejoins("--interrupted", "--output-dir", str(chosen), *site).exit_code == 0
    assert asked[1:] == [("17", chosen)]
