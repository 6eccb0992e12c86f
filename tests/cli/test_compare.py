"""``p2pft compare`` without Flower: settings, output, and what is put back afterwards."""

from __future__ import annotations

import json
import signal
import sys

import pytest

from p2pft_flower.cli import app, flwr_run
from p2pft_flower.cli.flwr_run import FlowerError, local_superlink
from p2pft_flower.lab import supervisor
from p2pft_flower.report.results import read_results
from tests.commands import CliRunner


def compare(tmp_path, *words):
    return CliRunner().invoke(app, ["compare", *words, "--out", str(tmp_path / "cmp")])


def test_strategy_options_reach_the_strategy_alone_and_cost_nobody_the_table(flower, tmp_path):
    done = compare(tmp_path, "p2pft,fedprox,local", "strategy-options=proximal-mu=0.1", "epochs=1")
    assert done.exit_code == 0, done.stderr
    given = {values["algorithm"]: values.get("strategy-options") for values in flower.asked}
    assert given == {"p2pft": None, "fedprox": "proximal-mu=0.1", "local": None}
    assert {values["epochs"] for values in flower.asked} == {1}
    body = json.loads((tmp_path / "cmp" / "comparison.json").read_text())
    assert [run["status"] for run in body["runs"]] == ["completed"] * 3


def test_json_is_alone_on_standard_output(flower, tmp_path):
    done = compare(tmp_path, "p2pft,local", "--json")
    assert done.exit_code == 0, done.stderr
    body = json.loads(done.stdout)
    assert [run["algorithm"] for run in body["runs"]] == ["p2pft", "local"]
    assert "05:00:00 a line of p2pft" in done.stderr
    assert "comparison.md" in done.stderr


def test_a_method_that_fails_is_a_row_and_the_next_one_runs(flower, tmp_path):
    flower.errors["dgd"] = "the GPU of this site is full"
    done = compare(tmp_path, "dgd,local")
    assert done.exit_code == 1
    assert "failed: the GPU of this site is full" in (tmp_path / "cmp" / "comparison.md").read_text()
    assert [values["algorithm"] for values in flower.asked] == ["dgd", "local"]


def test_a_run_that_flower_calls_failed_after_its_results_is_no_success(flower, tmp_path, monkeypatch):
    def fails_late(values, **options):
        ended = flower(values, **options)
        return flwr_run.Ended(ended.run_id, False, "finished:failed", "")

    monkeypatch.setattr("p2pft_flower.cli.run.run_app", fails_late)
    done = compare(tmp_path, "local")
    assert done.exit_code == 1
    assert read_results(tmp_path / "cmp" / "local")["status"] == "failed"


def test_a_comparison_from_random_weights_says_so_in_its_titles(flower, tmp_path):
    done = compare(tmp_path, "p2pft,local", "weights=none")
    assert "RANDOM WEIGHTS" in done.stdout
    assert "RANDOM WEIGHTS" in (tmp_path / "cmp" / "comparison.md").read_text().splitlines()[0]
    assert "RANDOM WEIGHTS" in json.loads((tmp_path / "cmp" / "comparison.json").read_text())["title"]


ANSWERS = """
import http.server, sys
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Health).serve_forever()
"""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def superlink(monkeypatch, tmp_path):
    """Make ``flower-superlink`` a script of one's own."""

    def become(source):
        file = tmp_path / "flower-superlink"
        file.write_text(f"#!{sys.executable}\n{source}")
        file.chmod(0o700)
        monkeypatch.setattr(flwr_run, "program", lambda name: str(file))

    return become


@pytest.fixture
def handlers():
    """Handlers of this test's own, so that it shows who put them back."""

    def mine(number, frame):
        raise AssertionError("no signal is sent here")

    before = {number: signal.signal(number, mine) for number in SIGNALS}
    yield dict.fromkeys(SIGNALS, mine)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signal_handlers_are_put_back_when_the_superlink_has_ended(superlink, handlers, monkeypatch):
    superlink(ANSWERS)
    during = {}
    end = supervisor.marked

    def look(mark):
        during.update({number: signal.getsignal(number) for number in SIGNALS})
        return end(mark)

    monkeypatch.setattr(supervisor, "marked", look)
    with local_superlink():
        assert {number: signal.getsignal(number) for number in SIGNALS} == handlers
    assert during == dict.fromkeys(SIGNALS, signal.SIG_IGN)  # a second Ctrl-C must not cut the clean-up short
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_signal_handlers_are_put_back_when_the_superlink_does_not_start(superlink, handlers):
    superlink("raise SystemExit('no room on this machine')")
    with pytest.raises(FlowerError, match="no room on this machine"), local_superlink():
        pytest.fail("it did not start")
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers
