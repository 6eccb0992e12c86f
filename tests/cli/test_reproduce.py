"""``p2pft reproduce`` without Flower: which runs, which settings, what is kept, what is refused."""

from __future__ import annotations

import fcntl
import json

import pytest

from p2pft_flower.cli import app
from p2pft_flower.cli.flwr_run import Ended
from p2pft_flower.report.results import read_results
from tests.commands import CliRunner
from tests.flower.engine import run_app

# Digits and the embedded model stand in: they are there on every machine.
SMALL = ("model=glyph_vit_8", "cifar10.dataset=digits", "--datasets", "cifar10", "epochs=2")


def reproduce(out, *words, table="table2"):
    return CliRunner().invoke(app, ["reproduce", table, *words, "--out", str(out)])


def body(out):
    return json.loads((out / "reproduction.json").read_text())


def test_local_and_p2pft_run_for_every_row_and_seed_with_the_presets_settings(flower, tmp_path):
    words = ("model=glyph_vit_8", "pets.dataset=digits", "pets.partition=iid", "cifar10.dataset=digits")
    done = reproduce(tmp_path, *words, "cifar10.epochs=7", "--datasets", "cifar10,pets", "--seeds", "0,5")
    assert done.exit_code == 0, done.stderr
    order = [(v["dataset"], v["partition"], v["seed"], v["algorithm"], v["epochs"]) for v in flower.asked]
    assert order == [
        *(("digits", "iid", s, m, 100) for s in (0, 5) for m in ("local", "p2pft")),
        *(("digits", "classes:0-1,2-3,4-6,7-9", s, m, 7) for s in (0, 5) for m in ("local", "p2pft")),
    ]
    assert {(v["learning-rate"], v["batch-size"], v["topology"]) for v in flower.asked} == {
        (0.001, 32, "directed-ring-4")
    }
    assert "run 2 of 8: Pets, p2pft, seed 0, about " in done.stderr
    assert "05:00:00 a line of p2pft" in done.stderr
    table = body(tmp_path)
    assert [row["dataset"] for row in table["rows"]] == ["pets", "cifar10"]
    assert table["rows"][1]["images"] == {"train": 1437, "available": 1437, "test": 360, "full": False}
    assert table["rows"][1]["ours"]["local"]["peers"][0]["mean"] == pytest.approx(0.15)
    assert "CIFAR-10 ours" in done.stdout
    assert done.stdout.splitlines()[-1] == f"table: {tmp_path / 'reproduction.md'}"


def test_all_runs_the_other_methods_as_well(flower, tmp_path):
    done = reproduce(tmp_path, *SMALL, "--all", "--seeds", "0", "strategy-options=")
    assert done.exit_code == 0, done.stderr
    assert [v["algorithm"] for v in flower.asked] == [
        "local",
        "p2pft",
        "dgd",
        "gt-dgd",
        "fedavg",
        "centralized",
    ]
    assert "All methods" in done.stdout
    assert "## All methods" in (tmp_path / "reproduction.md").read_text()


def test_json_is_alone_on_standard_output(flower, tmp_path):
    done = reproduce(tmp_path, *SMALL, "--json")
    assert json.loads(done.stdout) == body(tmp_path)
    assert body(tmp_path)["schema"] == "p2pft.reproduction/1"


def test_quick_is_one_seed_with_few_images_and_says_so(flower, tmp_path):
    done = reproduce(tmp_path, *SMALL, "--quick")
    assert done.exit_code == 0, done.stderr
    assert [(v["seed"], v["shots"], v["epochs"]) for v in flower.asked] == [(0, 20, 2)] * 2
    assert "--quick: a first look" in done.stdout
    assert body(tmp_path)["rows"][0]["images"]["train"] == 200


def test_random_weights_are_said_in_every_output(flower, tmp_path):
    done = reproduce(tmp_path, *SMALL, "weights=none", "--seeds", "0")
    for text in (done.stdout, (tmp_path / "reproduction.md").read_text()):
        assert "RANDOM WEIGHTS" in text
    assert body(tmp_path)["rows"][0]["weights"] == "RANDOM"


def test_completed_runs_are_kept_and_an_interrupted_one_is_run_again(flower, tmp_path):
    flower.errors["p2pft"] = KeyboardInterrupt()
    done = reproduce(tmp_path, *SMALL, "--seeds", "0")
    assert done.exit_code == 130
    assert "the same command continues" in done.stderr
    assert [run["status"] for run in body(tmp_path)["runs"]] == ["completed", "not run"]

    flower.errors.clear()
    flower.asked.clear()
    done = reproduce(tmp_path, *SMALL, "--seeds", "0")
    assert done.exit_code == 0, done.stderr
    assert [v["algorithm"] for v in flower.asked] == ["p2pft"]
    assert "kept: cifar10/local-seed-0" in done.stderr
    assert "cifar10/p2pft-seed-0 did not complete: it is removed and run again" in done.stderr
    assert [(run["status"], run["kept"]) for run in body(tmp_path)["runs"]] == [
        ("completed", True),
        ("completed", False),
    ]

    flower.asked.clear()
    assert reproduce(tmp_path, *SMALL, "--seeds", "0,1").exit_code == 0
    assert [(v["algorithm"], v["seed"]) for v in flower.asked] == [("local", 1), ("p2pft", 1)]


def test_a_failed_run_is_told_in_its_cell_and_is_run_again_next_time(flower, tmp_path):
    flower.errors["local"] = "the GPU of this site is full"
    done = reproduce(tmp_path, *SMALL, "--seeds", "0")
    assert done.exit_code == 1
    assert "failed: the GPU of this site is full" in (tmp_path / "reproduction.md").read_text()
    assert "CIFAR-10, local, seed 0: the GPU of this site is full" in done.stdout
    assert [run["status"] for run in body(tmp_path)["runs"]] == ["failed", "completed"]
    flower.errors.clear()
    flower.asked.clear()
    assert reproduce(tmp_path, *SMALL, "--seeds", "0").exit_code == 0
    assert [v["algorithm"] for v in flower.asked] == ["local"]


def test_a_graph_that_gt_dgd_does_not_admit_is_a_cell_of_its_row(flower, tmp_path):
    done = reproduce(tmp_path, *SMALL, "--all", "--seeds", "0", "topology=lopsided-4")
    assert done.exit_code == 1
    second = (tmp_path / "reproduction.md").read_text().partition("## All methods")[2]
    (row,) = [line for line in second.splitlines() if "| gt-dgd |" in line]
    assert "not doubly stochastic" in row


def refused(done, message, flower):
    assert done.exit_code == 2, done.stderr
    assert message in done.stderr
    assert done.stdout == ""
    assert flower.asked == []


def test_a_completed_run_with_other_settings_is_neither_mixed_in_nor_removed(flower, tmp_path):
    assert reproduce(tmp_path, *SMALL, "--seeds", "0").exit_code == 0
    flower.asked.clear()
    refused(
        reproduce(tmp_path, *SMALL, "--seeds", "0", "learning-rate=0.5"), "learning-rate: 0.001 there", flower
    )
    assert read_results(tmp_path / "cifar10" / "local-seed-0")["status"] == "completed"


def test_other_images_at_the_same_path_are_another_run(flower, tmp_path):
    assert reproduce(tmp_path, *SMALL, "--seeds", "0").exit_code == 0
    flower.asked.clear()
    mark = tmp_path / "cifar10" / "local-seed-0" / "reproduce.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"images": [100, 360]}))
    refused(reproduce(tmp_path, *SMALL, "--seeds", "0"), "images: [100, 360] there, [1437, 360] now", flower)


def test_a_run_of_somebody_elses_is_left_alone(flower, tmp_path):
    theirs = tmp_path / "cifar10" / "local-seed-0" / "peers"
    theirs.mkdir(parents=True)
    refused(reproduce(tmp_path, *SMALL), "holds a run that is none of this command's", flower)
    assert theirs.exists()


def test_a_second_command_in_the_same_folder_is_refused(flower, tmp_path):
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(reproduce(tmp_path, *SMALL), "another p2pft reproduce is at work there", flower)
    assert reproduce(tmp_path, *SMALL, "--seeds", "0").exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table=2"], "No such command 'table=2'"),
        (["table2", "--datasets", "pets,digits"], "give different ones of pets, flowers, cifar10, cifar100"),
        (["table2", "--seeds", "0,0"], "give different whole numbers"),
        (["table2", "--seeds", "-1"], "give different whole numbers"),
        (["table2", "dogs.epochs=3"], "there is no row 'dogs'; the rows are pets"),
        (["table2", "pets.epoch=3"], "unknown run-config key 'epoch': did you mean 'epochs'"),
        (["table2", "dataset=digits"], "dataset = is for one row only"),
        (["table2", "seed=3"], "seed is not for reproduce"),
        (["table2", "pets.algorithm=dgd"], "algorithm is not for reproduce"),
        (["table2", "output-dir=/x"], "output-dir is not for reproduce"),
        (["table2", "data-dir=/x", "--data-dir", "/y"], "data-dir is given twice"),
        (["table2", "batch-size=0"], "batch-size = 0: must be a whole number from 1 to 1000000"),
        (["table2", "topology=ring:8"], "has 8 peers: the tables have 4 nodes"),
        (["table2", "--data-dir", "/nowhere"], "there is no folder /nowhere/oxford-iiit-pet"),
        (["table2", *SMALL, "weights=/nowhere/w.pth"], "weights = '/nowhere/w.pth'"),
        (["table2", *SMALL, "cifar10.partition=classes:0-1,2-3,4-6,7-10"], "class 10 does not exist"),
        (["table2", *SMALL, "tune=everything"], "tune = 'everything'"),
        (["table2", *SMALL, "model=vit_unknown"], "model = 'vit_unknown'"),
    ],
    ids=str,
)
def test_what_cannot_run_is_refused_before_anything_starts(words, message, flower, tmp_path):
    done = CliRunner().invoke(app, ["reproduce", *words, "--out", str(tmp_path / "out")])
    refused(done, message, flower)
    assert not (tmp_path / "out").exists()


def test_the_table_holds_what_real_runs_scored(tmp_path, flower, monkeypatch):
    def in_process(values, **_):
        values = {key.replace("-", "_"): value for key, value in values.items()}
        run_app(values.pop("output_dir"), **values)
        return Ended("1", True, "finished:completed", "")

    monkeypatch.setattr("p2pft_flower.cli.run.run_app", in_process)
    done = reproduce(tmp_path, *SMALL, "learning-rate=0.1", "--seeds", "0")
    assert done.exit_code == 0, done.stderr
    ours = body(tmp_path)["rows"][0]["ours"]
    for method in ("local", "p2pft"):
        results = read_results(tmp_path / "cifar10" / f"{method}-seed-0")
        assert results["partition"] == "classes:0-1,2-3,4-6,7-9"
        assert [p["mean"] for p in ours[method]["peers"]] == [p["accuracy"] for p in results["peers"]]
    assert ours["p2pft"]["accuracy"]["min"] > ours["local"]["accuracy"]["max"]
    assert (tmp_path / "cifar10" / "p2pft-seed-0" / "reproduce.json").exists()
