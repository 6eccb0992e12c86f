"""How ``p2pft run`` ends where the results are on another machine: Flower's exit code does not tell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from p2pft_flower.cli import app, run
from p2pft_flower.cli.flwr_run import Ended
from p2pft_flower.cli.run import RunStoppedError, execute_or_record
from p2pft_flower.errors import P2PFTError
from p2pft_flower.flower.logs import status_in, status_line
from p2pft_flower.report.results import SCHEMA, read_results, write_results
from tests.commands import CliRunner
from tests.flower.engine import run_app


@pytest.fixture
def far(monkeypatch, tmp_path, connections):
    """Return a function that makes a run on another machine stream a text and complete, and its exit code."""

    def exit_code(*streamed: str, status: str = "finished:completed") -> tuple[int, str]:
        ended = Ended("17", status == "finished:completed", status, "\n".join(streamed))
        monkeypatch.setattr("p2pft_flower.cli.run.run_app", lambda *_, **__: ended)
        monkeypatch.setenv("P2PFT_HOME", str(tmp_path))
        found = CliRunner().invoke(app, ["run", "--connection", "far", "topology=directed-ring:4"])
        return found.exit_code, found.output

    return exit_code


def test_a_run_far_away_that_all_peers_completed_exits_0(far):
    assert far(f"07:05:17 {status_line('17', 'completed')}") == (0, "")


def test_a_run_far_away_that_some_peers_completed_exits_3_and_says_who_was_missing(far):
    line = status_line("17", "completed-with-3-of-4", "peers [2] were not there at the start")
    code, said = far(f"07:05:17 {line}", "07:05:17 results: /far/results.json")
    assert code == 3
    assert said == "completed-with-3-of-4: peers [2] were not there at the start\n"


def test_a_run_far_away_that_was_stopped_at_a_site_exits_4_and_says_where(far):
    line = status_line("17", "stopped", "peer 0: the run was stopped at a site of it (p2pft stop, SIGTERM)")
    code, said = far(f"07:05:17 {line}", status="finished:failed")
    assert code == 4
    assert said.splitlines()[-1] == (
        "stopped: run 17: peer 0: the run was stopped at a site of it (p2pft stop, SIGTERM)"
    )


def test_a_run_far_away_that_flower_stopped_exits_4_and_one_that_failed_exits_1(far):
    code, said = far("07:05:17 waiting", status="finished:stopped")
    assert code == 4
    assert "stopped: run 17: flwr stop" in said
    assert far("07:05:17 run 17 failed: no", status="finished:failed")[0] == 1


def test_a_simulation_that_ray_did_not_start_in_time_says_so_without_rays_own_words(far):
    words = "Exception: The current node timed out during startup. This could happen because"
    code, said = far("Traceback (most recent call last):", words, status="finished:failed")
    assert code == 1
    assert "Ray, which simulates the peers, did not start in its time of 30 s" in said
    assert "do the run again" in said
    assert words not in said
    assert "Ray, " not in far("Exception: another", status="finished:failed")[1]


@pytest.mark.parametrize(
    ("status", "flowers", "code"),
    [
        ("completed", "finished:completed", 0),
        ("completed-with-3-of-4", "finished:completed", 3),
        ("failed", "finished:failed", 1),
        ("stopped", "finished:failed", 4),
        ("stopped", "finished:stopped", 4),
        ("completed", "finished:stopped", 4),
    ],
)
def test_the_exit_code_tells_completed_partial_failed_and_stopped_apart(
    status, flowers, code, monkeypatch, connections, tmp_path
):
    def run(values, **_):
        results = {"schema": SCHEMA, "status": status, "error": None if status == "completed" else "a reason"}
        write_results(Path(values["output-dir"]), results)
        return Ended("17", flowers == "finished:completed", flowers, "")

    monkeypatch.setattr("p2pft_flower.cli.run.run_app", run)
    words = ["run", "--connection", "far", "topology=directed-ring:4", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == code, done.output
    assert ("a reason" in done.output) == (status != "completed")
    assert "finished:" not in done.output  # Flower calls a stopped run failed, and so would contradict


def test_where_the_results_are_is_said_once_at_the_end(monkeypatch, connections, tmp_path):
    """By the coordinator where they are on its machine only, else by the command."""

    def run(values, *, show, **_):
        lines = [
            "07:05:12 first",
            f"07:05:17 {status_line('17', 'completed')}",
            "07:05:17 results: /far/r.json",
        ]
        for line in (*lines, "07:05:18 last"):
            show(line)
        if folder := values.get("output-dir"):
            write_results(Path(folder), {"schema": SCHEMA, "status": "completed", "error": None})
        return Ended("17", True, "finished:completed", "\n".join(lines))

    monkeypatch.setattr("p2pft_flower.cli.run.run_app", run)
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path))
    words = ["run", "--connection", "far", "topology=directed-ring:4"]
    far = CliRunner().invoke(app, words)
    near = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert (far.exit_code, near.exit_code) == (0, 0), far.output + near.output
    assert far.stdout.splitlines()[2:] == ["07:05:18 last", "07:05:17 results: /far/r.json"]
    assert near.stdout.splitlines()[2:] == ["07:05:18 last", f"results: {tmp_path}/out/results.json"]


def test_a_run_far_away_that_only_looked_exits_0(far):
    assert far(f"07:05:17 {status_line('17', 'preflight-passed')}")[0] == 0


@pytest.mark.parametrize(
    "line", ["", f"07:05:17 {status_line('16', 'completed')}", "run 17 ended: completed"]
)
def test_a_run_far_away_that_does_not_say_how_it_ended_is_no_success(far, line):
    assert far(line)[0] == 1


def test_the_coordinator_says_how_its_run_ended(tmp_path, capsys):
    run_app(tmp_path, iterations=1)
    said = capsys.readouterr().out
    (run,) = re.findall(r"run (\d+) ended", said)
    assert status_in(said, run) == ("completed", "")


@pytest.mark.parametrize("status", ["completed", "completed-with-3-of-4"])
@pytest.mark.parametrize(("error", "told"), [(P2PFTError, "failed"), (RunStoppedError, "stopped")])
def test_a_run_of_a_table_that_failed_after_it_wrote_results_has_failed(
    status, error, told, tmp_path, monkeypatch
):
    def execute(*_, **__):
        write_results(tmp_path, {"schema": SCHEMA, "status": status, "error": None})
        raise error("the processes could not be ended")

    monkeypatch.setattr("p2pft_flower.cli.run.execute", execute)
    values = {"output-dir": str(tmp_path), "algorithm": "p2pft"}
    results = execute_or_record(values, connection=None, environment=None, verbose=False)
    assert (results["status"], results["error"]) == (told, "the processes could not be ended")


@pytest.mark.parametrize(
    ("journal", "told"),
    [(None, "before its peers had begun"), ("{", "of the peers nothing is known: ")],
)
def test_a_run_that_was_ended_before_anything_is_known_of_its_peers_says_so(journal, told, tmp_path, capsys):
    (tmp_path / "peers").mkdir()
    if journal is not None:
        (tmp_path / "peers" / "peer-0.jsonl").write_text(journal)
    run._record_given_up({"output-dir": str(tmp_path)}, "17")
    assert told in capsys.readouterr().err
    results = read_results(tmp_path)
    assert (results["status"], results["run"]) == ("stopped", "17")
