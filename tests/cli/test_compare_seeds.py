"""``p2pft compare --seeds N``: mean and deviation over the seeds, and runs that are kept."""

from __future__ import annotations

import fcntl
import json
import math

import pytest

from p2pft_flower.cli import app
from p2pft_flower.report.results import read_results
from tests.commands import CliRunner


def compare(tmp_path, *words):
    return CliRunner().invoke(app, ["compare", *words, "--out", str(tmp_path / "cmp")])


def body(tmp_path):
    return json.loads((tmp_path / "cmp" / "comparison.json").read_text())


def asked(flower):
    found = [(values["algorithm"], values["seed"]) for values in flower.asked]
    flower.asked.clear()
    return found


def test_each_method_runs_with_each_seed_from_the_given_one_on(flower, tmp_path):
    done = compare(tmp_path, "p2pft,local", "seed=5", "--seeds", "2", "epochs=1")
    assert done.exit_code == 0, done.stderr
    assert asked(flower) == [("p2pft", 5), ("local", 5), ("p2pft", 6), ("local", 6)]
    assert body(tmp_path)["seeds"] == [5, 6]
    assert (tmp_path / "cmp" / "comparison.png").stat().st_size > 0


def test_the_table_has_mean_and_deviation_over_the_seeds(flower, tmp_path):
    """Made-up runs: a seed adds 0.02 to each accuracy and 1 to the seconds; 4 peers send 1000 bytes each."""
    done = compare(tmp_path, "p2pft,local", "--seeds", "3", "epochs=1")
    first, _ = body(tmp_path)["methods"]
    deviation = math.sqrt(2 / 3)  # of 0, 1, 2
    assert first["accuracy"]["mean"] == pytest.approx(0.92)
    assert first["accuracy"]["std"] == pytest.approx(0.02 * deviation)
    assert first["accuracy_unseen"] is None
    assert first["seconds"] == pytest.approx({"mean": 3.0, "std": deviation, "min": 2.0, "max": 4.0})
    assert first["bytes_sent"]["mean"] == 4000
    (row,) = [
        line for line in (tmp_path / "cmp" / "comparison.md").read_text().splitlines() if "| p2pft |" in line
    ]
    assert row == (
        "| p2pft | 3 | 0.920 ± 0.016 | – | – | 1.000 ± 0.000 | 5.0e-01 ± 0.0e+00 | 4.0 kB ± 0 B | 3.0 ± 0.8 |"
    )
    assert "0.920 ± 0.016" in done.stdout
    assert "over the seeds 0, 1, 2" in done.stdout


def test_seen_and_unseen_accuracy_have_columns_of_their_own(tmp_path, monkeypatch, flower):
    import tests.cli.conftest as stand_in
    from tests.report.made_up import results

    def with_parts(method, seed, config):
        made = results(method, seed, config)
        parts = {"accuracy_seen": {"mean": 0.8 + seed / 10}, "accuracy_unseen": {"mean": 0.1 + seed / 10}}
        return made | {"summary": made["summary"] | parts}

    monkeypatch.setattr(stand_in, "results", with_parts)
    compare(tmp_path, "local", "--seeds", "2", "epochs=1")
    (one,) = body(tmp_path)["methods"]
    assert (one["accuracy_seen"]["mean"], one["accuracy_unseen"]["mean"]) == pytest.approx((0.85, 0.15))
    assert "| 0.850 ± 0.050 | 0.150 ± 0.050 |" in (tmp_path / "cmp" / "comparison.md").read_text()


def test_json_is_alone_on_standard_output(flower, tmp_path):
    done = compare(tmp_path, "p2pft", "--seeds", "2", "--json")
    assert json.loads(done.stdout) == body(tmp_path)
    assert body(tmp_path)["schema"] == "p2pft.comparison/1"
    assert [run["seed"] for run in body(tmp_path)["runs"]] == [0, 1]


def test_an_interrupted_table_goes_on_with_the_runs_that_are_missing(flower, tmp_path):
    flower.errors["local"] = KeyboardInterrupt()
    done = compare(tmp_path, "p2pft,local", "--seeds", "2")
    assert done.exit_code == 130
    assert "the same command continues" in done.stderr
    assert asked(flower) == [("p2pft", 0), ("local", 0)]
    assert body(tmp_path)["methods"][1]["not_run"] == [0, 1]

    flower.errors.clear()
    done = compare(tmp_path, "p2pft,local", "--seeds", "2")
    assert done.exit_code == 0, done.stderr
    assert asked(flower) == [("local", 0), ("p2pft", 1), ("local", 1)]
    assert "kept: p2pft-seed-0" in done.stderr
    assert "local-seed-0 did not complete: it is removed and run again" in done.stderr
    assert [one["completed"] for one in body(tmp_path)["methods"]] == [[0, 1], [0, 1]]

    assert compare(tmp_path, "p2pft,local,dgd", "--seeds", "3").exit_code == 0
    assert asked(flower) == [("dgd", 0), ("dgd", 1), ("p2pft", 2), ("local", 2), ("dgd", 2)]


def test_a_table_whose_runs_are_all_kept_starts_nothing(flower, tmp_path, monkeypatch):
    assert compare(tmp_path, "p2pft", "--seeds", "2").exit_code == 0

    def start():
        raise AssertionError("nothing is to be started")

    monkeypatch.setattr("p2pft_flower.cli.compare.local_superlink", start)
    done = compare(tmp_path, "p2pft", "--seeds", "2")
    assert done.exit_code == 0, done.stderr
    assert "2 | 0.910" in done.stdout.replace("│", "|").replace("  ", " ").replace("  ", " ")


def test_a_failed_run_is_told_with_its_seed_and_is_run_again_next_time(flower, tmp_path):
    flower.errors["dgd"] = "the GPU of this site is full"
    done = compare(tmp_path, "dgd,local", "--seeds", "2")
    assert done.exit_code == 1
    assert "dgd, seed 1: failed: the GPU of this site is full" in done.stdout
    assert "| dgd | 0 of 2 |" in (tmp_path / "cmp" / "comparison.md").read_text()
    flower.errors.clear()
    asked(flower)
    assert compare(tmp_path, "dgd,local", "--seeds", "2").exit_code == 0
    assert asked(flower) == [("dgd", 0), ("dgd", 1)]


def refused(done, message, flower):
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert done.stdout == ""
    assert flower.asked == []


def test_a_completed_run_with_other_settings_is_neither_mixed_in_nor_removed(flower, tmp_path):
    assert compare(tmp_path, "p2pft", "--seeds", "1").exit_code == 0
    asked(flower)
    refused(
        compare(tmp_path, "p2pft", "--seeds", "1", "learning-rate=0.5"), "learning-rate: 0.1 there", flower
    )
    assert read_results(tmp_path / "cmp" / "p2pft-seed-0")["status"] == "completed"
    assert compare(tmp_path, "p2pft", "--seeds", "1", "name=another").exit_code == 0  # that is no setting


def test_other_weights_at_the_same_path_are_another_run(flower, tmp_path):
    weights = tmp_path / "file.safetensors"
    weights.write_bytes((2).to_bytes(8, "little") + b"{}")
    words = ("p2pft", "--seeds", "1", "model=vit_tiny_patch16_224.augreg_in21k", f"weights={weights}")
    assert compare(tmp_path, *words).exit_code == 0
    asked(flower)
    weights.write_bytes((3).to_bytes(8, "little") + b"{ }")
    refused(compare(tmp_path, *words), "weights-sha256: ", flower)


def test_a_run_of_somebody_elses_and_a_second_command_are_left_alone(flower, tmp_path):
    theirs = tmp_path / "cmp" / "local-seed-0" / "peers"
    theirs.mkdir(parents=True)
    refused(compare(tmp_path, "local", "--seeds", "1"), "holds a run that is none of this command's", flower)
    assert theirs.exists()
    with (tmp_path / "cmp" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(compare(tmp_path, "p2pft", "--seeds", "1"), "another p2pft compare is at work there", flower)


@pytest.mark.parametrize("seeds", ["0", "-1", "0,1", "1001"])
def test_a_number_of_seeds_that_is_none_is_refused(flower, tmp_path, seeds):
    assert compare(tmp_path, "p2pft", "--seeds", seeds).exit_code == 2
    assert flower.asked == []
    assert not (tmp_path / "cmp").exists()
