"""Results made of the peers' own files are those that the coordinator made."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from msgspec.structs import replace

from p2pft_flower.cli import app
from p2pft_flower.errors import DataError
from p2pft_flower.keeping.journal import read_journal
from p2pft_flower.keeping.lines import written
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.report.collected import collect_results, find_peers
from p2pft_flower.report.results import read_results
from tests.commands import CliRunner

from ..flower.engine import run_app
from ..journals import made_line

CLOCK = {"begun", "ended"}
"""What the coordinator reads from its own clock, and p2pft collect from the peers' journals."""


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


def test_they_equal_the_coordinators(sites):
    collected = collect_results(find_peers(run_folders(sites)))
    coordinators = read_results(sites / "coordinator")
    assert without_clock(json.loads(json.dumps(collected))) == without_clock(coordinators)
    assert coordinators["begun"] <= collected["begun"] <= collected["ended"] <= coordinators["ended"]


def test_seconds_are_those_of_the_peers_and_not_of_flowers_start(sites):
    told = [list(read_journal(run / "peers" / f"peer-{p}.jsonl")) for p, run in enumerate(run_folders(sites))]
    longest = max(lines[-1].time - lines[0].time for lines in told)
    assert read_results(sites / "coordinator")["seconds"] == longest


def test_a_clock_that_was_set_back_by_an_hour_makes_no_time_negative(sites, tmp_path):
    def set_back(lines):
        return [*lines[:3], *(replace(line, time=line.time - 3600) for line in lines[3:])]

    folders = copied(sites, tmp_path)
    for peer, folder in enumerate(folders):
        edit_log(folder, peer, set_back)
    results, right = (collect_results(find_peers(f)) for f in (folders, run_folders(sites)))
    assert 0 < results["seconds"] <= right["seconds"]
    assert results["begun"] <= results["ended"]


def test_results_that_the_disk_does_not_take_are_one_error(sites, tmp_path):
    (tmp_path / "results.partial").mkdir()
    done = CliRunner().invoke(app, ["collect", *map(str, run_folders(sites)), "--out", str(tmp_path)])
    assert (done.exit_code, done.stderr) == (
        2,
        f"error: {tmp_path / 'results.json'} cannot be written: Is a directory\n",
    )


def test_the_coordinator_has_its_history_without_the_peers_folders(sites):
    history = read_results(sites / "coordinator")["history"]
    assert not (sites / "coordinator" / "peers").exists()
    assert [row["iteration"] for row in history] == [0, 4, 8, 12]
    assert all(None not in row["accuracy"] and row["consensus_error"] is not None for row in history)


def test_a_simulated_run_is_collected_too_pooled_or_not(tmp_path):
    for algorithm in ("p2pft", "centralized"):
        run_app(tmp_path / algorithm, iterations=4, algorithm=algorithm, topology="lopsided-4")
        collected = collect_results(find_peers([tmp_path / algorithm]))
        found = read_results(tmp_path / algorithm)
        assert without_clock(json.loads(json.dumps(collected))) == without_clock(found)


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


@pytest.mark.parametrize("by", ["name", "id"])
def test_a_run_of_this_machine_may_be_given_by_its_id_or_name_beside_other_folders(
    by, sites, tmp_path, monkeypatch
):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))
    here, *others = run_folders(sites)
    shutil.copytree(here, tmp_path / "home" / "runs" / f"pets-{here.name}")
    wanted = "pets" if by == "name" else here.name
    said = CliRunner().invoke(app, ["collect", wanted, *map(str, others), "--json"])
    assert said.exit_code == 0, said.output
    assert without_clock(json.loads(said.stdout)) == without_clock(read_results(sites / "coordinator"))
    odd = CliRunner().invoke(app, ["collect", "dogs", *map(str, others)])
    assert odd.exit_code == 2
    assert "has this id or name; p2pft runs lists them" in odd.stderr


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
        (lambda line: replace(line, run="77", time=0.0), "no results of 1 of 4 peers: peer 3: no journal"),
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
    twin = shutil.copytree(run, tmp_path / "twin")
    with pytest.raises(DataError, match="peer 0 is there twice"):
        find_peers([run, twin])
    run_app(tmp_path / "fedavg", algorithm="fedavg", epochs=1)
    with pytest.raises(DataError, match="not the clients of Flower's strategies"):
        find_peers([tmp_path / "fedavg"])


def beside(sites, target):
    """Return the sites' folders, each with its run, one that began before, and a client's of a strategy."""
    for p, run in enumerate(run_folders(sites)):
        shutil.copytree(run, target / str(p) / run.name)
        other = shutil.copytree(run, target / str(p) / "77")
        edit_log(other, p, lambda lines: [replace(lines[0], run="77", time=1.0), *lines[1:-1]])
        client = shutil.copytree(run, target / str(p) / "8")
        edit_log(client, p, lambda lines: [replace(lines[0], run="8", facts=None), *lines[1:]])
    return [target / str(p) for p in range(4)]


@pytest.mark.parametrize("pattern", ["*", ""], ids=["the runs' folders", "the folders of the runs"])
def test_of_several_runs_in_the_folders_the_last_counts_or_the_one_that_is_named(pattern, sites, tmp_path):
    folders = [
        str(f) for site in beside(sites, tmp_path) for f in (site.glob(pattern) if pattern else [site])
    ]
    run = run_folders(sites)[0].name
    said = CliRunner().invoke(app, ["collect", *folders, "--json"])
    assert said.exit_code == 0, said.output
    assert without_clock(json.loads(said.stdout)) == without_clock(read_results(sites / "coordinator"))
    assert f"note: run {run}, which began last; --run takes another one: 77\n" in said.stderr
    other = CliRunner().invoke(app, ["collect", *folders, "--run", "77"])
    assert other.exit_code == 2
    assert "run 77 has no results of 4 of 4 peers: peer 0: its journal breaks off" in other.stderr
    none = CliRunner().invoke(app, ["collect", *folders, "--run", "5"])
    assert none.exit_code == 2
    assert "no journal there is of run 5; they are of run " in none.stderr


STOP = "the run was stopped at a site of it (p2pft stop, SIGTERM)"


def stopped(sites, target):
    """Return copies of folders of a run that lost peer 2 after 4 iterations and was stopped in its tenth."""
    folders = copied(sites, target)
    view = made_line("view", iteration=5, peers=(0, 1, 3), lost=(2,), why={2: "nothing listens any more"})
    for p in (0, 1, 3):
        last = made_line(
            "failed", p, iteration=9, error=STOP, cause="STOPPED", bytes_sent=10**9, parameters=9
        )
        edit_log(
            folders[p], p, lambda lines, p=p, last=last: [*lines[:4], replace(view, peer=p), lines[4], last]
        )
    edit_log(folders[2], 2, lambda lines: lines[:4])
    return folders


def test_of_a_stopped_run_there_is_a_table_of_all_peers_also_of_the_lost_one(sites, tmp_path):
    said = CliRunner().invoke(
        app, ["collect", *map(str, stopped(sites, tmp_path)), "-o", str(tmp_path / "o")]
    )
    assert said.exit_code == 4, said.output
    results = read_results(tmp_path / "o")
    assert results["status"] == "stopped"
    assert STOP in results["error"]
    assert [(p["peer"], p["iterations"]) for p in results["peers"]] == [(0, 8), (1, 8), (3, 8)]
    (lost,) = results["unfinished"]
    assert (lost["peer"], lost["iterations"], lost["state"]) == (2, 4, "lost after 5 iterations")
    assert all(p["accuracy"] is not None and p["loss"] is not None for p in [*results["peers"], lost])
    assert [p["bytes_sent"] for p in results["peers"]][:2] == [10**9] * 2
    assert [row["iteration"] for row in results["history"]] == [0, 4, 8]
    before, after = (row["bytes_sent"] for row in results["history"][1:])
    assert after > before  # what the lost peer has sent is still in it
    assert "nothing listens any more" in said.output
    assert "peer 2: lost after 5 iterations" in said.output


def test_of_a_run_that_all_died_of_there_is_a_table_when_it_is_asked_for(sites, tmp_path):
    folders = copied(sites, tmp_path)
    for p in range(4):
        edit_log(folders[p], p, lambda lines: lines[:4])
    assert CliRunner().invoke(app, ["collect", *map(str, folders)]).exit_code == 2
    said = CliRunner().invoke(app, ["collect", *map(str, folders), "--partial", "--json"])
    assert said.exit_code == 3, said.output
    results = json.loads(said.stdout)
    assert (results["status"], results["peers"]) == ("completed-with-0-of-4", [])
    assert [(p["peer"], p["iterations"]) for p in results["unfinished"]] == [(p, 4) for p in range(4)]


def test_of_a_run_that_lost_a_peer_the_lost_one_is_beside_the_others(sites, tmp_path):
    folders = copied(sites, tmp_path)
    view = made_line("view", iteration=5, peers=(0, 1, 3), lost=(2,), why={2: "nothing listens any more"})
    for p in (0, 1, 3):
        edit_log(folders[p], p, lambda lines, p=p: [*lines[:4], replace(view, peer=p), *lines[4:]])
    edit_log(folders[2], 2, lambda lines: lines[:4])
    said = CliRunner().invoke(app, ["collect", *map(str, folders), "-o", str(tmp_path / "o")])
    assert said.exit_code == 3, said.output
    results = read_results(tmp_path / "o")
    assert [p["peer"] for p in results["peers"]] == [0, 1, 3]
    assert [(p["peer"], p["iterations"]) for p in results["unfinished"]] == [(2, 4)]
    assert (
        sum(p["bytes_sent"] for p in [*results["peers"], *results["unfinished"]])
        == results["history"][-1]["bytes_sent"]
    )


def test_results_of_two_parts_of_a_run_that_both_went_on_are_refused(sites, tmp_path):
    folders = copied(sites, tmp_path)
    for peer, part in ((0, (0, 1, 2)), (3, (1, 2, 3))):
        view = made_line("view", peer, number=1, iteration=8, peers=part)
        edit_log(folders[peer], peer, lambda told, view=view: [*told[:-1], view, told[-1]])
    told = CliRunner().invoke(app, ["collect", *map(str, folders), "--out", str(tmp_path / "all")])
    assert told.exit_code == 2
    told = " ".join(told.stderr.split())
    assert "peers 0 and 3 have gone on in different views 1, with the peers [0, 1, 2] after 8" in told
    assert not (tmp_path / "all").exists()


def test_the_last_run_in_a_log_counts(sites, tmp_path):
    folders = copied(sites, tmp_path)
    for p in range(4):
        edit_log(folders[p], p, lambda lines: [*lines[:3], *lines])  # a run before, cut short
    assert [h["iteration"] for h in collect_results(find_peers(folders))["history"]] == [0, 4, 8, 12]
