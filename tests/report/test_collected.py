"""Results made of the peers' own files are those that the coordinator made."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from p2pft_flower.cli import app
from p2pft_flower.errors import DataError
from p2pft_flower.keeping.journal import read_journal
from p2pft_flower.keeping.lines import written
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.report.collected import collect_results, find_peers
from p2pft_flower.report.results import read_results

from ..flower.engine import run_app
from ..journals import made_line

CLOCK = {"seconds", "begun", "ended"}
"""What only the coordinator's clock says: the time from its start to its results."""


def without_clock(results):
    return {key: value for key, value in results.items() if key not in CLOCK}


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """Four deployed peers, each with an output folder of its own; the coordinator's results beside them."""
    folder = tmp_path_factory.mktemp("sites")
    nodes = [
        {"peer-id": p, "peer-address": f"127.0.0.1:{port}", "output-dir": str(folder / f"site-{p}")}
        for p, port in enumerate(free_ports(4))
    ]
    run_app(folder / "coordinator", slots=4, node_configs=nodes, iterations=12, evaluate_every=4)
    return folder


def run_folders(sites):
    return [next((sites / f"site-{p}").iterdir()) for p in range(4)]


def copied(sites, target):
    """Return copies of the peers' folders, to be spoilt."""
    return [shutil.copytree(f, target / f"{p}") for p, f in enumerate(run_folders(sites))]


def edit_log(folder, peer, change):
    log = folder / "peers" / f"peer-{peer}.jsonl"
    log.write_bytes(b"".join(map(written, change(list(read_journal(log))))))


def with_weights(about, weights):
    return dataclasses.replace(about, rows=(dataclasses.replace(about.rows[0], weights=weights),))


def test_they_equal_the_coordinators_in_all_but_its_clock(sites):
    collected = collect_results(find_peers(run_folders(sites)))
    coordinators = read_results(sites / "coordinator")
    assert collected.keys() == coordinators.keys()
    assert without_clock(json.loads(json.dumps(collected))) == without_clock(coordinators)
    assert 0 < collected["seconds"] < coordinators["seconds"]


def test_the_coordinator_has_its_history_without_the_peers_folders(sites):
    history = read_results(sites / "coordinator")["history"]
    assert not (sites / "coordinator" / "peers").exists()
    assert [row["iteration"] for row in history] == [0, 4, 8, 12]
    assert all(None not in row["accuracy"] and row["consensus_error"] is not None for row in history)


def test_a_simulated_run_is_collected_too_pooled_or_not(tmp_path):
    for algorithm in ("p2pft", "centralized"):
        run_app(tmp_path / algorithm, iterations=4, algorithm=algorithm, topology="lopsided-4")
        collected = collect_results(find_peers([tmp_path / algorithm]))
        assert without_clock(json.loads(json.dumps(collected))) == without_clock(
            read_results(tmp_path / algorithm)
        )


def test_missing_peers_are_listed_with_how_far_they_came(sites, tmp_path):
    folders = copied(sites, tmp_path)
    edit_log(folders[2], 2, lambda lines: lines[:4])
    with pytest.raises(DataError) as caught:
        collect_results(find_peers([folders[0], folders[1], folders[2]]))
    for part in (
        "2 of 4 peers",
        "peer 2: its journal breaks off after the evaluation of iteration 4",
        "peer 3: no journal of it was given",
        "--partial",
    ):
        assert part in str(caught.value)


def test_a_part_of_the_peers_says_so_in_status_error_and_exit_code(sites, tmp_path):
    folders = run_folders(sites)[:3]
    said = CliRunner().invoke(
        app, ["collect", *map(str, folders), "--partial", "--json", "-o", str(tmp_path / "out")]
    )
    assert said.exit_code == 3, said.output
    results = read_results(tmp_path / "out")
    assert results["status"] == "completed-with-3-of-4"
    assert "peer 3: no journal of it was given" in results["error"]
    assert [p["peer"] for p in results["peers"]] == [0, 1, 2]
    assert results["graph"]["weights"][3] is None
    assert all(row["accuracy"][3] is None and row["consensus_error"] is None for row in results["history"])


def test_the_command_makes_a_whole_runs_folder(sites, tmp_path):
    folders = [str(f) for f in run_folders(sites)]
    said = CliRunner().invoke(app, ["collect", *folders, "--out", str(tmp_path / "out")])
    assert said.exit_code == 0, said.output
    results = read_results(tmp_path / "out")
    for p in results["peers"]:
        assert (tmp_path / "out" / p["log"]).is_file()
        assert (tmp_path / "out" / p["tail"]).is_file()
    again = CliRunner().invoke(app, ["collect", *folders, "--out", str(tmp_path / "out")])
    assert again.exit_code == 2
    assert "is there already" in again.output


def test_a_peer_without_its_tail_has_not_ended(sites, tmp_path):
    folders = copied(sites, tmp_path)
    (folders[1] / "peers" / "peer-1.safetensors").unlink()
    with pytest.raises(
        DataError, match=r"peer 1: its journal has an end, but .*peer-1.safetensors is missing"
    ):
        collect_results(find_peers(folders))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: replace(line, run="77"), "are not of the same run: run is"),
        (lambda line: replace(line, iterations=13), "are not of the same run: iterations is 12 and 13"),
        (
            lambda line: replace(line, about=with_weights(line.about, {0: 0.5, 3: 0.25})),
            r"the peers' rows of weights (make no|are not those of the run's) graph",
        ),
        (lambda line: made_line("start"), "no line of event run"),
    ],
    ids=["another-run", "another-length", "other-weights", "no-run-line"],
)
def test_a_log_that_does_not_fit_is_refused(change, message, sites, tmp_path):
    folders = copied(sites, tmp_path)
    edit_log(folders[3], 3, lambda lines: [change(lines[0]), *lines[1:]])
    with pytest.raises(DataError, match=message):
        collect_results(find_peers(folders))


def test_folders_that_cannot_be_used_are_named(sites, tmp_path):
    with pytest.raises(DataError, match=r"no peers/peer-<i>\.jsonl there"):
        find_peers([tmp_path])
    run = run_folders(sites)[0]
    with pytest.raises(DataError, match=rf"it holds the runs {run.name}: choose one"):
        find_peers([run.parent])
    twin = shutil.copytree(run, tmp_path / "twin")
    with pytest.raises(DataError, match="peer 0 is there twice"):
        find_peers([run, twin])
    run_app(tmp_path / "fedavg", algorithm="fedavg", epochs=1)
    with pytest.raises(DataError, match="not the clients of Flower's strategies"):
        find_peers([tmp_path / "fedavg"])


def test_the_last_run_in_a_log_counts(sites, tmp_path):
    folders = copied(sites, tmp_path)
    for p in range(4):
        edit_log(folders[p], p, lambda lines: [*lines[:3], *lines])  # a run before, cut short
    assert [h["iteration"] for h in collect_results(find_peers(folders))["history"]] == [0, 4, 8, 12]
