"""``p2pft report`` on small run folders: what it writes, what it leaves out by name, how it ends."""

from __future__ import annotations

import csv
import json
import os
import shutil
import stat
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from p2pft_flower.cli import app
from p2pft_flower.cli.report import BROWSERS
from p2pft_flower.config import LearningConfig
from p2pft_flower.learning.workload import Workload
from tests.cli.test_attention import PEERS, write_run
from tests.commands import CliRunner
from tests.report.page.made_up import LOST, comparison, made_up, write


def invoke(*words):
    return CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "160"})


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    return comparison(tmp_path_factory.mktemp("compared"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of one small run."""
    return write(tmp_path_factory.mktemp("alone"), made_up("local", accuracy=(0.9,) * 2, unseen=(0.8,) * 2))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four peers with real tails of the embedded model, on the digits."""
    folder = tmp_path_factory.mktemp("trained")
    write_run(folder, "p2pft", 0.05)
    classes = [[str(c) for c in group] for group in PEERS]
    results = made_up(classes=[str(c) for c in range(10)])
    for peer, held in zip(results["peers"], classes, strict=True):
        peer["classes"] = held
    write(folder, results)
    return folder


def test_a_comparison_becomes_a_page_markdown_and_tables(compared, tmp_path):
    page = tmp_path / "new" / "c.html"
    result = invoke(
        "report", compared, "-o", page, "--markdown", tmp_path / "c.md", "--csv", tmp_path / "csv"
    )
    assert result.exit_code == 0, result.output
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert (tmp_path / "c.md").read_text().startswith("# p2pft, fedavg, centralized and local")
    outcomes = list(csv.DictReader((tmp_path / "csv" / "outcomes.csv").read_text().splitlines()))
    evaluations = list(csv.DictReader((tmp_path / "csv" / "evaluations.csv").read_text().splitlines()))
    assert (len(outcomes), len(evaluations)) == (13, 52)
    assert "Did every peer learn the classes it never saw? Yes, every peer (p2pft)." in result.stdout
    assert f"report: {page}, " in result.stdout
    assert not list(tmp_path.rglob("*.partial"))


def test_json_says_what_was_written_and_answered_and_all_say_what_is_left_out(compared, tmp_path):
    page = tmp_path / "c.html"
    result = invoke("report", compared, "-o", page, "--json")
    assert "left out: the classes of p2pft: no tail lies in p2pft/peers" in result.stderr
    assert "p2pft is left out here: no tail lies in p2pft/peers" in page.read_text()
    told = json.loads(result.stdout)
    assert told["schema"] == "p2pft.report/1"
    assert told["files"] == [{"file": str(page), "bytes": page.stat().st_size}]
    assert [run["learned"] for run in told["runs"]] == ["all", "all", "nothing unseen", "none"]
    assert [run["agreed"] for run in told["runs"]] == ["yes", "yes", "one model", "no"]
    assert [answer["question"] for answer in told["answers"]][1] == "Do the peers agree?"
    assert told["left_out"]["p2pft"] == "no tail lies in p2pft/peers"


def test_tails_of_stopped_peers_are_said_to_be_there_and_after_how_many_iterations(compared, tmp_path):
    run = tmp_path / "stopped"
    shutil.copytree(compared / "p2pft", run)
    for peer, done in ((0, "240"), (1, "240"), (3, "180")):
        path = run / "peers" / f"peer-{peer}.stopped.safetensors"
        save_file({"a": np.zeros(2)}, path, metadata={"iterations": done})
    told = json.loads(invoke("report", run, "-o", tmp_path / "s.html", "--json").stdout)
    (reason,) = told["left_out"].values()
    assert "no tail" not in reason
    assert reason.startswith("in stopped/peers lie only tails of peers that stopped before their end")
    assert reason.endswith(": peers 0 1 after 240 iterations; peer 3 after 180 iterations")
    assert "; peer 3 after 180 iterations" in (tmp_path / "s.html").read_text()
    refused = invoke("evaluate", run)
    assert "give one of their tails by its name: peer-0.stopped.safetensors, peer-1" in refused.stderr


def test_tails_are_scored_as_p2pft_evaluate_scores_them(trained, tmp_path):
    scores = json.loads(invoke("evaluate", trained, "--json").stdout)
    result = invoke("report", trained, "-o", tmp_path / "r.html", "--markdown", tmp_path / "r.md", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["left_out"] == {}
    assert told["runs"][0]["scored_tails"] == 4
    lines = (tmp_path / "r.md").read_text().splitlines()
    begin = next(k for k, line in enumerate(lines) if "Accuracy by class" in line)
    table = [line.strip("| ").split(" | ") for line in lines[begin + 4 : begin + 14]]
    workload = Workload(LearningConfig(), n=4)
    labels = workload.holdings.scored_test.labels
    images = np.bincount(labels, minlength=10)
    # Of each class one peer holds images, and three do not: all peers' right answers to it, divided by four.
    right = sum(images[int(name)] * (float(held) + 3 * float(never)) for name, held, never in table) / (
        4 * len(labels)
    )
    assert right == pytest.approx(np.mean([score["accuracy"] for score in scores]), abs=1e-3)


def test_a_run_whose_images_are_not_at_hand_gets_a_page_that_says_so(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("p2pft_flower.learning.tails.Tail.same_images", False)
    result = invoke("report", trained, "-o", tmp_path / "r.html")
    assert result.exit_code == 0, result.output
    said = "the test images of digits are other ones here than in its run"
    assert said in result.stderr
    assert said in (tmp_path / "r.html").read_text()
    assert "name the place of the same ones with --data-dir" in result.stderr


def test_a_damaged_tail_leaves_its_run_out_and_a_missing_one_itself(trained, tmp_path):
    write(tmp_path / "run", made_up())
    (tmp_path / "run" / "peers" / "peer-0.safetensors").write_bytes(b"no tail")
    result = invoke("report", tmp_path / "run", "-o", tmp_path / "r.html", "--json")
    assert "not a readable safetensors file" in json.loads(result.stdout)["left_out"]["p2pft"]


def test_a_run_with_a_lost_peer_is_told_in_words_and_over_time(tmp_path):
    write(
        tmp_path / "run", made_up(views=[LOST], ended=(0, 1, 3), error="peer 2 was lost after 100 iterations")
    )
    result = invoke("report", tmp_path / "run", "-o", tmp_path / "r.html")
    assert result.exit_code == 0
    assert "What happened on the way? 1 peer lost on the way (p2pft)." in result.stdout
    page = (tmp_path / "r.html").read_text()
    assert "peer 2 was lost (not heard from for 5 s (crashed))" in page
    assert "p2pft: the peers&#39; time" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{empty}"], "no results.json there and in no folder in it"),
        (["{c}", "-o", "{empty}/r.htm"], "give the name of a file that ends in .html"),
        (["{c}", "-o", "{empty}/r.html", "--markdown", "r.txt"], "give the name of a file that ends in .md"),
        (["{c}", "-o", "/dev/null/r.html"], "nothing can be written to"),
        (["{c}", "-o", "{empty}/r.html", "--csv", "{c}/p2pft/results.json"], "it is a file; give a folder"),
        (["{c}", "-o", "{empty}/r.html", "--pdf", "{empty}/r.pdf"], "apt-get install chromium"),
    ],
    ids=["no run", "ending", "markdown", "place", "csv", "browser"],
)
def test_wrong_words_exit_2_with_one_line_and_write_nothing(words, message, compared, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "empty").mkdir()
    result = invoke("report", *(word.format(c=compared, empty=tmp_path / "empty") for word in words))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert list((tmp_path / "empty").iterdir()) == []


def browser(folder, script):
    """Put a stand-in for a browser into ``folder``, which is Python with the page and the PDF's place."""
    folder.mkdir()
    program = folder / BROWSERS[0]
    program.write_text(
        f"#!{sys.executable}\nimport sys, pathlib\n"
        "place = next(a.partition('=')[2] for a in sys.argv if a.startswith('--print-to-pdf='))\n"
        f"page, target = sys.argv[-1], pathlib.Path(place)\n{script}\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(folder)


def test_a_browser_on_path_that_finds_no_host_prints_the_page_as_pdf(alone, tmp_path, monkeypatch):
    offline = "assert '--host-resolver-rules=MAP * ~NOTFOUND' in sys.argv"
    folder = browser(tmp_path / "bin", f"{offline}\ntarget.write_text(page)")
    monkeypatch.setenv("PATH", os.pathsep.join([folder, os.environ["PATH"]]))
    result = invoke("report", alone, "-o", tmp_path / "r.html", "--pdf", tmp_path / "pdf" / "r.pdf")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "pdf" / "r.pdf").read_text() == (tmp_path / "r.html").as_uri()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("sys.exit('no display')", "no display"),
        ("", "it ended with 0"),
        ("import time; time.sleep(60)", "it took longer than 1 s"),
    ],
    ids=["fails", "prints nothing", "hangs"],
)
def test_a_browser_that_does_not_print_exits_1_and_leaves_the_page(
    script, reason, alone, tmp_path, monkeypatch
):
    if "longer" in reason:
        monkeypatch.setattr("p2pft_flower.cli.report.PRINTING", 1.0)
    folder = browser(tmp_path / "bin", script)
    monkeypatch.setenv("PATH", os.pathsep.join([folder, os.environ["PATH"]]))
    result = invoke("report", alone, "-o", tmp_path / "r.html", "--pdf", tmp_path / "r.pdf")
    assert result.exit_code == 1
    assert reason in result.stderr
    assert (tmp_path / "r.html").exists()
    assert not (tmp_path / "r.pdf").exists()
