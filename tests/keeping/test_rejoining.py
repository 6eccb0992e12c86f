"""The plan that a site keeps: with it the peer is started again, and with nothing else."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.keeping.bulletins import Bulletin, bulletin_path, write_bulletin
from p2pft_flower.keeping.journal import Journal
from p2pft_flower.keeping.processes import start_mark
from p2pft_flower.keeping.rejoining import interrupted, kept_plan, last_place, plan_file, save_plan
from p2pft_flower.keeping.running import registered
from p2pft_flower.plan import Neighbourhood
from p2pft_flower.topology import Graph
from tests.host.quadratic import plans
from tests.journals import made_line


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))
    graph = Graph.load("directed-ring:3")
    hosts = [[0], [1], [2]]
    return plans(graph, hosts, {p: f"127.0.0.1:{9000 + p}" for p in range(3)}, tmp_path / "run")[1]


def lines(plan, *events):
    journal = Journal(Path(plan.output_dir), 1)
    for event, fields in events:
        journal.write(made_line(event, 1, **fields))
    journal.close()


def test_a_plan_is_read_as_it_was_kept_and_no_other_user_reads_it(plan):
    save_plan(plan)
    save_plan(plan)  # a run may be started again with the same folder
    path = plan_file(Path(plan.output_dir), 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]
    assert kept_plan(Path(plan.output_dir), "test", 1) == plan
    lines(plan, ("run", {}), ("failed", {"error": "no more images", "cause": "OWN"}))
    assert kept_plan(Path(plan.output_dir), "test", 1) == plan


def test_a_plan_that_cannot_be_written_stops_the_run_before_it_trains(plan, tmp_path):
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(DataError, match=r"peer-1.plan.json: the plan.*choose another output-dir"):
        save_plan(plan)


def test_without_its_plan_a_peer_is_not_started_again(plan, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"peer 1 of run test.*there is no .*run: is that the site's"):
        kept_plan(folder, "test", 1)
    (folder / "peers").mkdir(parents=True)
    with pytest.raises(ConfigError, match="has no plan of it: none is kept where on-failure = 'stop'"):
        kept_plan(folder, "test", 1)
    save_plan(plan)
    with pytest.raises(ConfigError, match=r"has peer-1.plan.json: is peer-id right"):
        kept_plan(folder, "test", 2)
    with pytest.raises(ConfigError, match="is of peer 1 of run test, not of peer 1 of run 17"):
        kept_plan(folder, "17", 1)


def test_a_plan_that_was_damaged_is_named(plan):
    save_plan(plan)
    path = plan_file(Path(plan.output_dir), 1)
    for text in ("", "{}", "[]", path.read_text()[:-9]):
        path.write_text(text)
        with pytest.raises(DataError, match=r"peer-1.plan.json: not a plan of this version"):
            kept_plan(Path(plan.output_dir), "test", 1)


def test_a_peer_that_trains_is_not_started_a_second_time(plan):
    save_plan(plan)
    with (
        registered("test", [1], [0, 2]),
        pytest.raises(ConfigError, match=f"trains already, in process {os.getpid()};"),
    ):
        kept_plan(Path(plan.output_dir), "test", 1)
    with registered("test", [2], [0, 1]), registered("other", [1], [0, 2]):
        assert kept_plan(Path(plan.output_dir), "test", 1) == plan


def test_a_peer_that_has_ended_is_not_started_again(plan):
    save_plan(plan)
    lines(plan, ("run", {}), ("start", {}), ("end", {}))
    with pytest.raises(ConfigError, match="peer 1 of run test has trained to its end"):
        kept_plan(Path(plan.output_dir), "test", 1)


@pytest.mark.parametrize("cause", ["STOPPED", "HEARSAY"])
def test_of_a_run_that_was_stopped_it_is_told_that_nobody_may_be_there(cause, plan, caplog):
    save_plan(plan)
    lines(plan, ("run", {}), ("failed", {"error": "peer 0 stopped", "cause": cause}))
    assert kept_plan(Path(plan.output_dir), "test", 1) == plan
    assert "run test was stopped when peer 1 was there last (peer 0 stopped)" in caplog.text


def test_a_plan_of_several_peers_belongs_to_no_site(plan):
    save_plan(replace(plan, peers=(plan.peers[0], Neighbourhood(2, {2: 1.0}, {2: 1.0}))))
    with pytest.raises(ConfigError, match="is of peer 1, 2 of run test"):
        kept_plan(Path(plan.output_dir), "test", 1)


OVER = {"STOPPED": "the run was stopped (flwr stop)", "HEARSAY": "peer 2 gave up", "RUN": "no finite number"}


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([("run", {}), ("start", {})], None),  # a power cut
        ([("run", {}), ("failed", {"error": "its ClientApp was told to end", "cause": "OWN"})], None),
        ([("run", {}), ("failed", {"error": "no agreement for 60 s", "cause": "LOST"})], None),
        ([("run", {}), ("end", {}), ("run", {})], None),  # its second life
        ([("run", {}), ("end", {})], "run 17, the last one of peer 1, was trained to its end"),
        *(
            ([("run", {}), ("failed", {"error": error, "cause": cause})], f"peer 1, is over: {error}")
            for cause, error in OVER.items()
        ),
    ],
    ids=str,
)
def test_a_run_that_a_site_did_not_end_itself_is_found_as_interrupted(events, said, plan, tmp_path):
    plan = replace(plan, run="17", output_dir=str(tmp_path / "runs" / "17"))
    lines(plan, *((event, {"run": "17", **fields} if event == "run" else fields) for event, fields in events))
    if said is None:
        assert "keeps no plan to rejoin it with" in interrupted(tmp_path / "runs", 1)
    save_plan(plan)
    found = interrupted(tmp_path / "runs", 1)
    if said is None:
        assert (found.run, found.folder) == ("17", tmp_path / "runs" / "17")
        assert kept_plan(found.folder, found.run, 1) == plan
        with registered("17", [1], [0, 2]):
            assert interrupted(tmp_path / "runs", 1) == f"peer 1 trains run 17, in process {os.getpid()}"
    else:
        assert said in found
    assert interrupted(tmp_path / "runs", 2).startswith(f"no run of peer 2 is below {tmp_path / 'runs'}; if")
    elsewhere = plan_file(tmp_path / "runs" / "17", 1).parents[1].rename(tmp_path / "chosen")
    assert (
        interrupted(tmp_path / "runs", 1, tmp_path / "runs") == f"no run of peer 1 is in {tmp_path / 'runs'}"
    )
    chosen = interrupted(tmp_path / "runs", 1, elsewhere)
    assert said in chosen if said else (chosen.run, chosen.folder) == ("17", elsewhere)


def test_only_a_sites_last_run_is_rejoined_whatever_the_runs_are_called(plan, tmp_path):
    runs = tmp_path / "runs"
    for name, time, last in (("pets-17", 1.0, "start"), ("9", 3.0, "end"), ("pets-5", 2.0, "start")):
        journal = Journal(runs / name, 1)
        journal.write(made_line("run", 1, time=time, run=name.split("-")[-1]))
        journal.write(made_line(last, 1, time=time))
        journal.close()
    assert interrupted(runs, 1) == "run 9, the last one of peer 1, was trained to its end"


def last_words(folder, *, run="17", begun=5.0, started="another boot", peer=1):
    """The bulletin that a process of a peer has left, by default one that was killed."""
    fields = {
        "n": 3,
        "iterations": 9,
        "names": {},
        "live": (0, 1, 2),
        "on_failure": "continue",
        "min_peers": 0,
    }
    fields |= {"silence": 30.0, "pid": os.getpid(), "written": 9.0, "peers": (), "name": "pets"}
    told = Bulletin(run=run, own=(peer,), folder=str(folder), begun=begun, started=started, **fields)
    path = bulletin_path(peer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bulletin(path, told)


@pytest.mark.parametrize("wanted", [None, "17", "pets"])
def test_a_killed_process_has_left_word_of_a_folder_that_the_run_config_chose(wanted, plan, tmp_path):
    plan = replace(plan, run="17", output_dir=str(tmp_path / "chosen"))
    lines(plan, ("run", {"run": "17"}), ("start", {}))
    save_plan(plan)
    last_words(tmp_path / "chosen", peer=2)
    assert last_place(1, wanted) is None, "that is of another peer"
    last_words(tmp_path / "chosen")
    assert last_place(1, wanted)[:2] == ("17", tmp_path / "chosen")
    assert last_place(1, "18") is None
    found = interrupted(tmp_path / "runs", 1)
    assert (found.run, found.folder) == ("17", tmp_path / "chosen")
    last_words(tmp_path / "chosen", started=start_mark(os.getpid()))
    assert last_place(1, wanted) is None, "it lives"


def test_a_later_run_below_the_sites_folder_counts_before_a_killed_processs_word(plan, tmp_path):
    plan = replace(plan, run="17", output_dir=str(tmp_path / "chosen"))
    lines(plan, ("run", {"run": "17", "time": 5.0}), ("start", {}))
    save_plan(plan)
    last_words(tmp_path / "chosen")
    later = replace(plan, run="18", output_dir=str(tmp_path / "runs" / "18"))
    lines(later, ("run", {"run": "18", "time": 50.0}), ("end", {}))
    assert interrupted(tmp_path / "runs", 1) == "run 18, the last one of peer 1, was trained to its end"


def test_a_plan_is_of_the_run_by_its_name_too(plan):
    named = replace(plan, config=replace(plan.config, runtime=replace(plan.config.runtime, name="pets")))
    save_plan(named)
    assert kept_plan(Path(plan.output_dir), "pets", 1) == named
    with pytest.raises(ConfigError, match="is of peer 1 of run test, not of peer 1 of run cats"):
        kept_plan(Path(plan.output_dir), "cats", 1)
