"""``p2pft runs``: what it lists of each run, and what it removes and does not remove."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from rich.filesize import decimal

from p2pft_flower.cli import app
from p2pft_flower.cli import runs as command
from p2pft_flower.cli.run_names import folder_named
from p2pft_flower.errors import Cause
from p2pft_flower.facts import GraphName, RunFacts
from p2pft_flower.keeping.journal import Journal
from p2pft_flower.keeping.run_folders import in_use
from p2pft_flower.keeping.running import registered
from p2pft_flower.report.results import SCHEMA, write_results
from tests.commands import CliRunner
from tests.flower.engine import run_app
from tests.journals import KINDS, made_line
from tests.quadratics import QUADRATICS
from tests.report.made_up import results

NAMED = {**KINDS["run"][1]["config"], "name": "pets"}
FACTS = RunFacts(GraphName("lopsided-4", "d"), (0, 1), "iid", {}, False)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def runs(home):
    """The folder of the runs."""
    return home / "runs"


def invoke(*words, **options):
    return CliRunner().invoke(app, ["runs", *map(str, words)], **options)


def listed(*words):
    """Return the runs that ``p2pft runs --json`` lists, by their ids."""
    done = invoke("--json", *words)
    assert done.exit_code == 0, done.output
    return {one["run"]: one for one in json.loads(done.stdout)["runs"]}


def journal(runs, folder, *lines, peer=0, **fields):
    """Write a peer's journal: the line of the run, and ``lines``."""
    one = Journal(runs / folder, peer)
    one.write(made_line("run", peer, n=2, **{"run": folder.rpartition("-")[2], "time": 1.6e9} | fields))
    for line in lines:
        one.write(line)
    one.close()


def completed(runs, folder, **changed):
    run = folder.rpartition("-")[2]
    write_results(runs / folder, results() | {"run": run, "begun": 1.7e9, "ended": 1.7e9 + 600} | changed)
    journal(runs, folder, made_line("end", accuracy=0.9))


def test_a_real_run_is_listed_with_all_that_its_results_say_and_when_it_was(runs):
    before = time.time()
    run_app("", problem=QUADRATICS, topology="ring:2", iterations=4, name="squares")
    (one,) = listed().values()
    (folder,) = runs.iterdir()
    assert folder.name == f"squares-{one['run']}"
    written = json.loads((folder / "results.json").read_text())
    assert one["folder"] == str(folder)
    assert (one["name"], one["method"], one["graph"], one["peers"]) == ("squares", "p2pft", "ring:2", 2)
    assert one["model"] == QUADRATICS
    assert (one["status"], one["told"]) == ("completed", "completed")
    assert one["bytes"] == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert before <= one["begun"] <= one["ended"] - written["seconds"] <= one["ended"] <= time.time()
    assert written["name"] == "squares"


def test_the_list_is_for_people_the_newest_first_and_has_a_sum(runs):
    completed(runs, "17", begun=1.7e9 - 9e5, ended=1.7e9 - 8e5)
    completed(runs, "pets-18", name="pets", config={"model": "vit_tiny_patch16_224"})
    done = invoke()
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["18", "pets"]
    assert " to " in lines[0]
    assert lines[1] == "  p2pft on directed-ring-4, 4 peers, vit_tiny_patch16_224, accuracy 0.900"
    assert lines[2] == "  completed"
    assert lines[3].split()[:2] == ["17", "–"]
    assert lines[-1].startswith("2 runs, ")
    assert lines[-1].endswith(f" in {runs}")


def test_no_run_is_one_line(runs):
    assert invoke().output == f"0 runs, 0 bytes in {runs}\n"


def test_what_is_no_run_is_not_listed(runs):
    completed(runs, "17")
    (runs / "notes").mkdir()
    (runs / "notes" / "results.json").write_text('{"accuracy": 1}')
    (runs / "file").write_text("")
    assert listed().keys() == {"17"}


def test_runs_of_another_folder_are_told_with_their_folder_where_its_name_has_no_id(tmp_path):
    completed(tmp_path / "cmp", "p2pft", run="123")
    done = invoke("--folder", tmp_path / "cmp")
    assert "accuracy 0.900, in p2pft" in done.stdout
    assert listed("--folder", tmp_path / "cmp" / "p2pft").keys() == {"123"}
    refused = invoke("--folder", tmp_path / "nowhere")
    assert refused.exit_code == 2
    assert "there is no such folder" in refused.stderr


def test_a_comparisons_runs_are_found_by_their_ids_and_folders_not_by_what_looks_like_an_id(tmp_path):
    """The folder p2pft-seed-0 has no run 0 in it."""
    completed(tmp_path / "cmp", "p2pft-seed-0", run="123")
    write_results(tmp_path / "cmp" / "dgd-seed-0", {"schema": SCHEMA, "status": "failed", "error": "no"})
    assert listed("--folder", tmp_path / "cmp").keys() == {"123", "dgd-seed-0"}
    assert listed("--folder", tmp_path / "cmp")["123"]["name"] == ""
    assert invoke("remove", "0", "--yes", "--folder", tmp_path / "cmp").exit_code == 2
    assert invoke("remove", "p2pft-seed", "--yes", "--folder", tmp_path / "cmp").exit_code == 2
    for wanted in ("123", "dgd-seed-0"):
        assert invoke("remove", wanted, "--yes", "--folder", tmp_path / "cmp").exit_code == 0
    assert list((tmp_path / "cmp").iterdir()) == []


def test_the_office_of_a_deployment_under_way_says_so_without_journals(runs):
    (runs / "pets-17").mkdir(parents=True)
    (runs / "pets-17" / "preflight.json").write_text('{"run": "17", "graph": "ring:4"}')
    with in_use(runs / "pets-17"):
        one = listed()["17"]
    assert (one["status"], one["told"]) == ("training", "training; its journals are at its sites")
    assert (one["name"], one["graph"]) == ("pets", "ring:4")
    assert listed()["17"]["status"] == "broken-off"


def ended(cause, **fields):
    return made_line("failed", iteration=40, error="the disk is full", cause=cause.name, **fields)


@pytest.mark.parametrize(
    ("lines", "status", "told"),
    [
        ((), "broken-off", "broken off before its first iteration: its processes are gone"),
        ((made_line("evaluation", iteration=40),), "broken-off", "broken off after iteration 40 of 300: "),
        ((made_line("end"),), "trained", "its peers here have trained to the end"),
        ((ended(Cause.OWN),), "failed", "failed after iteration 40 of 300: the disk is full"),
        ((ended(Cause.STOPPED),), "stopped", "stopped after iteration 40 of 300: the disk is full"),
    ],
)
def test_a_sites_run_is_told_by_its_journal(runs, lines, status, told):
    journal(runs, "pets-17", *lines, config=NAMED, facts=FACTS)
    one = listed()["17"]
    assert (one["status"], one["told"][: len(told)]) == (status, told)
    assert (one["name"], one["graph"], one["peers"], one["begun"]) == ("pets", "lopsided-4", 2, 1.6e9)
    assert one["accuracy"] == (None if not lines or lines[0].__struct_config__.tag == "failed" else 0.5)


def test_a_run_under_way_says_how_far_it_is_and_has_no_end(runs):
    journal(runs, "17", made_line("evaluation", iteration=40))
    with in_use(runs / "17"):
        one = listed()["17"]
        assert "until now" in invoke().stdout
    assert (one["status"], one["told"], one["ended"]) == (
        "training",
        "training, after iteration 40 of 300",
        None,
    )


def test_a_pipe_in_place_of_results_does_not_hold_the_list_up(runs):
    """Whoever reads a pipe waits until somebody writes to it."""
    for number, name in enumerate(("results.json", "preflight.json")):
        (runs / str(number)).mkdir(parents=True)
        os.mkfifo(runs / str(number) / name)
    answer = CliRunner().invoke(app, ["runs", "--json"])
    assert answer.exit_code == 0, answer.output


@pytest.mark.parametrize(
    "text",
    [
        '{"schema": "p2pft.results/1"}',
        '{\n "schema": "p2pft.results/2",\n "status": "completed",\n "su',
        '{"schema": "p2pft.results/1", "status": "completed", "peers": 3, "summary": []}',
        '{"schema": "p2pft.results/1", "status": 7}',
        '{"schema": "p2pft.results/9", "status": "completed"}',
        '{"schema": "p2pft.results/1", "status": "completed", "begun": "now"}',
        '{"schema": "p2pft.results/1", "status": "completed", "begun": 1e300}',
        '{"schema": "p2pft.results/1", "status": "completed", "ended": NaN}',
        '{"schema": "p2pft.results/1", "status": "completed", "ended": ' + "9" * 400 + "}",
        '{"schema": "p2pft.results/1", "status": "completed", "summary": {"accuracy": {"mean": NaN}}}',
    ],
)
def test_a_damaged_run_is_listed_as_one_and_hides_no_other(runs, text):
    completed(runs, "17")
    (runs / "18").mkdir()
    (runs / "18" / "results.json").write_text(text)
    found = listed()
    assert found["17"]["status"] == "completed"
    assert found["18"]["status"] == "damaged"
    assert "results.json" in found["18"]["told"]
    assert invoke().exit_code == 0, "the list for people"


def test_no_text_of_a_file_reaches_the_terminal_with_its_control_characters(runs):
    completed(runs, "17", run="17\x1b[2J", name="a\nb", error="\x1b]0;x\x07")
    assert all(c.isprintable() for c in "".join(invoke().stdout.splitlines()))
    assert len(invoke().stdout.splitlines()) == 4


def test_a_line_that_cannot_be_read_is_left_out(runs):
    journal(runs, "17", made_line("evaluation", iteration=40))
    path = runs / "17" / "peers" / "peer-0.jsonl"
    path.write_bytes(path.read_bytes() + b"garbage\n")
    assert listed()["17"]["told"].startswith("broken off after iteration 40")


# --- remove -----------------------------------------------------------------------------------------------


def test_a_removed_run_is_gone_and_its_bytes_are_told(runs):
    completed(runs, "pets-17", name="pets")
    completed(runs, "18")
    size = decimal(listed()["17"]["bytes"])
    done = invoke("remove", "17", "--yes")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"removed run 17 ({size})\nfreed {size}\n"
    assert [path.name for path in runs.iterdir()] == ["18"]


def test_every_file_of_a_real_run_is_removed(runs):
    run_app("", problem=QUADRATICS, topology="ring:2", iterations=4, checkpoint_every=1, tensorboard=True)
    run_app("", topology="ring:2", epochs=1, algorithm="fedavg", name="server")
    found = listed()
    assert len(found) == 2
    done = invoke("remove", *found, "--yes")
    assert done.exit_code == 0, done.output
    assert list(runs.iterdir()) == []


def test_without_a_terminal_it_needs_yes_and_with_one_it_asks(runs, monkeypatch):
    completed(runs, "17")
    refused = invoke("remove", "17")
    assert refused.exit_code == 2
    assert "give --yes" in refused.stderr
    monkeypatch.setattr(command, "sys", type("sys", (), {"stdin": type("tty", (), {"isatty": lambda: True})}))
    no = invoke("remove", "17", input="n\n")
    assert no.exit_code == 1
    assert "Remove run 17 (" in no.stdout
    assert listed().keys() == {"17"}
    assert invoke("remove", "17", input="y\n").exit_code == 0
    assert listed() == {}


def test_a_run_at_work_is_left_and_so_are_those_named_with_it(runs):
    completed(runs, "17")
    journal(runs, "pets-18", config=NAMED)
    for working in (in_use(runs / "pets-18"), registered("18", [0], [])):
        with working:
            done = invoke("remove", "17", "pets", "--yes")
        assert done.exit_code == 2
        assert "run 18 is at work on this machine" in done.stderr
        assert "p2pft stop 18" in done.stderr
        assert listed().keys() == {"17", "18"}


def test_a_run_with_results_in_whose_folder_a_process_still_works_is_left(runs):
    completed(runs, "17")
    with in_use(runs / "17"):
        done = invoke("remove", "17", "--yes")
    assert done.exit_code == 2
    assert "run 17 is at work on this machine" in done.stderr
    assert listed().keys() == {"17"}


def test_a_name_of_several_runs_removes_none(runs):
    completed(runs, "pets-17", name="pets")
    completed(runs, "pets-18", name="pets")
    done = invoke("remove", "pets", "--yes")
    assert done.exit_code == 2
    assert "2 runs have this name; give the id of each: 17, 18" in done.stderr
    assert listed().keys() == {"17", "18"}


@pytest.mark.parametrize("wanted", ["18", "cats", "../outside", ".", "/"])
def test_what_is_no_run_is_not_removed(runs, wanted, monkeypatch, tmp_path):
    completed(runs, "17")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "results.json").write_text('{"mine": 1}')
    (tmp_path / "outside" / "peers").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    done = invoke("remove", wanted, "--yes")
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert (tmp_path / "outside" / "results.json").exists()
    assert listed().keys() == {"17"}


def test_no_link_is_followed_out_of_a_run(runs, tmp_path):
    """Not that of a checkpoint's folder, of the peers' folder, of a file, nor of the run itself."""
    completed(runs, "17")
    outside = tmp_path / "outside"
    (outside / "peers").mkdir(parents=True)
    (outside / "peers" / "peer-0.jsonl").write_text("mine")
    (runs / "17" / "peers" / "peer-0.checkpoints").symlink_to(outside)
    (runs / "17" / "server.checkpoints").symlink_to(outside)
    (runs / "17" / "preflight.json").symlink_to(outside / "peers" / "peer-0.jsonl")
    (runs / "18").symlink_to(outside)
    assert invoke("remove", "17", "--yes").exit_code == 0
    done = invoke("remove", "18", "--yes")
    assert done.exit_code == 2
    assert "is a link, which is not followed" in done.stderr
    assert [path.name for path in runs.iterdir()] == ["18"]
    assert (outside / "peers" / "peer-0.jsonl").read_text() == "mine"


def test_peers_that_are_a_link_lose_the_link_alone(runs, tmp_path):
    completed(runs, "17")
    (runs / "17" / "peers").rename(tmp_path / "elsewhere")
    (runs / "17" / "peers").symlink_to(tmp_path / "elsewhere")
    assert invoke("remove", "17", "--yes").exit_code == 0
    assert (tmp_path / "elsewhere" / "peer-0.jsonl").exists()
    assert not (runs / "17").exists()


def test_files_that_are_none_of_a_runs_are_left_and_named(runs):
    completed(runs, "17")
    (runs / "17" / "notes.txt").write_text("mine")
    (runs / "17" / "peers" / "my-peers.txt").write_text("mine")
    done = invoke("remove", "17", "--yes")
    assert done.exit_code == 0, done.output
    assert f"left in {runs / '17'}, none of the run's: notes.txt, peers" in done.stdout
    assert sorted(path.name for path in (runs / "17").rglob("*")) == ["my-peers.txt", "notes.txt", "peers"]


def test_a_failed_run_can_be_removed_by_its_folder_from_anywhere(tmp_path):
    failed = {"schema": SCHEMA, "status": "failed", "algorithm": "dgd", "error": "no"}
    write_results(tmp_path / "cmp" / "dgd", failed)
    done = invoke("remove", tmp_path / "cmp" / "dgd", "--yes")
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "cmp" / "dgd").exists()


def test_evaluate_export_report_and_attention_take_a_run_by_its_name_or_id(runs, tmp_path, capsys):
    for folder in ("pets-1", "pets-2", "birds-3"):
        completed(runs, folder, name=folder.partition("-")[0])
    assert folder_named(Path("birds")) == folder_named(Path("3")) == runs / "birds-3"
    assert folder_named(tmp_path) == tmp_path
    assert folder_named(Path("pets")) == runs / "pets-2", "the last one, as for --resume"
    assert "run 2" in capsys.readouterr().err
    page = str(tmp_path / "page.png")
    for words in (["evaluate"], ["export"], ["report"], ["attention", "-o", page]):
        done = CliRunner().invoke(app, [words[0], "cats", *words[1:]])
        assert done.exit_code == 2
        assert f"cats: no such file or folder, and no run in {runs} has this id or name" in done.output
        told = CliRunner().invoke(app, [words[0], "birds", *words[1:]]).output
        assert "no such file" not in told, told
