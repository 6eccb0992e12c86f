"""The commands that need no run: settings, evaluate, demo."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from p2pft_flower.cli import app
from p2pft_flower.cli.demo import regression_problem
from p2pft_flower.cli.settings import parse_settings
from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.data.holdings import Holdings
from tests.commands import CliRunner
from tests.flower.engine import run_app


def invoke(*words):
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "160"})


def test_a_tail_is_not_scored_on_images_of_other_classes(tmp_path):
    run_app(tmp_path / "run", iterations=1)
    for part in ("train", "test"):
        for name in ("eight", "nine"):
            (tmp_path / "other" / part / name).mkdir(parents=True)
            Image.new("L", (8, 8)).save(tmp_path / "other" / part / name / "0.png")
    result = invoke("evaluate", str(tmp_path / "run"), "--dataset", f"folder:{tmp_path / 'other'}")
    assert result.exit_code == 2
    told = result.output.replace("\n", " ")
    assert "without 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and with eight, nine: answers would mean other" in told


def test_values_need_no_quotes_and_get_the_type_of_their_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = parse_settings(
        [
            "algorithm=dgd",
            "epochs=3",
            "learning-rate=1",
            "topology=mine.yaml",
            "partition=classes:0-1,2-3",
            "data-dir=d",
            "download=true",
            "verify=False",
        ]
    )
    assert values == {
        "algorithm": "dgd",
        "epochs": 3,
        "learning-rate": 1.0,
        "topology": str(tmp_path / "mine.yaml"),
        "partition": "classes:0-1,2-3",
        "data-dir": str(tmp_path / "d"),
        "download": True,
        "verify": False,
    }
    assert isinstance(values["learning-rate"], float)
    assert parse_settings(["topology=ring:8"]) == {"topology": "ring:8"}
    assert parse_settings(["dataset=folder:birds", "algorithm=./m.py:f", "weights=w.pth"]) == {
        "dataset": f"folder:{tmp_path}/birds",
        "algorithm": f"{tmp_path}/m.py:f",
        "weights": f"{tmp_path}/w.pth",
    }


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("epochs", "'epochs' is not of the form key=value"),
        ("epoch=3", "unknown run-config key 'epoch': did you mean 'epochs'"),
        ("epochs=many", "epochs = 'many': must be a whole number"),
        ("momentum=x", "momentum = 'x': must be a number"),
        ("download=yes", "download = 'yes': must be true or false"),
    ],
)
def test_a_wrong_word_is_refused_by_name(word, message):
    with pytest.raises(ConfigError, match=message):
        parse_settings([word])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "algorithm=fedxyz"], "algorithm = 'fedxyz' is unknown; choose one of p2pft"),
        (["run", "topology=nowhere"], "there is no graph 'nowhere'"),
        (["run", "algorithm=gt-dgd", "topology=lopsided-4"], "not doubly stochastic"),
        (["run", "batch-size=0"], "batch-size = 0: must be a whole number from 1 to 1000000"),
        (["compare", "p2pft,p2pft"], "give different methods"),
        (["compare", "p2pft", "algorithm=dgd"], "algorithm is not for compare"),
        (["compare", "p2pft,nothing"], "algorithm = 'nothing' is unknown"),
        (["evaluate", "/nowhere"], "no peer-<i>.safetensors there"),
        (["data", "show", "dataset=digit"], "dataset = 'digit' is unknown"),
        (["data", "show", "partition=classes:0-1,2-9"], "names 2 groups of classes for 4 peers"),
        (["data", "show", "--png", "/nowhere/x.png"], "/nowhere/x.png: "),
        (["demo", "regression", "--topology", "nowhere"], "there is no graph 'nowhere'"),
    ],
    ids=str,
)
def test_wrong_words_exit_2_with_one_line_and_start_nothing(words, message):
    result = invoke(*words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def test_every_command_teaches_itself():
    for words in (
        [],
        ["run"],
        ["compare"],
        ["reproduce"],
        ["evaluate"],
        ["attention"],
        ["data", "show"],
        ["topology", "show"],
        ["topology", "list"],
        ["demo", "regression"],
    ):
        result = invoke(*words, "--help")
        assert result.exit_code == 0
        assert "Usage" in result.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run_app(folder, iterations=12)
    return folder


def test_tails_load_back_and_score_what_the_run_said(finished):
    result = invoke("evaluate", str(finished), "--json")
    assert result.exit_code == 0, result.stderr
    scores = json.loads(result.stdout)
    said = json.loads((finished / "results.json").read_text())["peers"]
    assert [s["accuracy"] for s in scores] == [p["accuracy"] for p in said]
    assert [s["loss"] for s in scores] == [p["loss"] for p in said]
    table = invoke("evaluate", str(finished / "peers" / "peer-2.safetensors"))
    assert f"{said[2]['accuracy']:.4f}" in table.stdout


def test_scores_fit_80_columns_with_every_word_whole(finished, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    first, *table = invoke("evaluate", str(finished)).stdout.splitlines()
    assert first == f"{finished / 'peers'} on digits"  # a path may be longer; it is not cut
    assert max(len(line) for line in table) <= 80
    assert sum("peer-" in line and ".safetensors │" in line for line in table) == 4
    assert all(word in table[1] for word in ("peer", "accuracy", "loss", "images", "tail"))


def _altered(finished, folder, change):
    from safetensors import safe_open

    source = finished / "peers" / "peer-0.safetensors"
    with safe_open(source, framework="pt") as opened:
        metadata = dict(opened.metadata())
    tensors = load_file(source)
    change(tensors, metadata)
    save_file(tensors, folder / "peer-0.safetensors", metadata=metadata)
    return str(folder / "peer-0.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: t.pop("head.bias"), "tensor 'head.bias' is missing from"),
        (lambda t, m: t.update({"head.bias": t["head.bias"][:5].clone()}), "has shape (5,), not (10,)"),
        (lambda t, m: m.update(schema="other/9"), "schema 'other/9'"),
        (lambda t, m: m.update({"model-digest": "0" * 64}), "the frozen part differs"),
        (lambda t, m: m.update(threads="0"), "its metadata says threads = '0', not a whole number >= 1"),
        (
            lambda t, m: m.update(classes='["0", '),
            "its metadata says classes = '[\"0\", ', not a list of names",
        ),
        (
            lambda t, m: m.update(classes="[0, 1]"),
            "its metadata says classes = '[0, 1]', not a list of names",
        ),
    ],
    ids=["missing", "shape", "schema", "digest", "threads", "classes", "numbers for classes"],
)
def test_a_tail_that_does_not_fit_is_refused_by_name(change, message, finished, tmp_path):
    result = invoke("evaluate", _altered(finished, tmp_path, change))
    assert result.exit_code == 2
    assert message in result.stderr
    assert "peer-0.safetensors" in result.stderr


def test_a_file_that_is_no_tail_is_refused(tmp_path):
    (tmp_path / "peer-0.safetensors").write_bytes(b"not a tail")
    result = invoke("evaluate", str(tmp_path))
    assert result.exit_code == 2
    assert "not a readable safetensors file" in result.stderr


def test_the_regression_demo_shows_the_papers_figure_2(tmp_path):
    result = invoke("demo", "regression", "--png", str(tmp_path / "figure.png"))
    assert result.exit_code == 0
    rows = {
        line.split("│")[1].strip(): line.split("│")[-2].strip()
        for line in result.stdout.splitlines()
        if "│" in line
    }
    assert float(rows["p2pft"]) < 1e-9
    assert float(rows["dgd"]) > 0.1
    assert float(rows["local"]) > 0.5
    assert (tmp_path / "figure.png").stat().st_size > 20_000
    features, targets = regression_problem(4, 0)
    own = [np.linalg.lstsq(X, y)[0][0] for X, y in zip(features, targets, strict=True)]
    assert max(own) - min(own) > 1.0  # the local slopes really differ


def test_data_show_prints_and_draws_what_the_peers_of_a_run_would_hold(tmp_path):
    png = tmp_path / "shares.png"
    result = invoke("data", "show", "shots=7", "seed=1", "--json", "--png", str(png))
    assert result.exit_code == 0, result.stderr
    shares = json.loads(result.stdout)
    holdings = Holdings(LearningConfig(shots=7, seed=1), n=4)
    assert (shares["dataset"], shares["shots"], shares["seed"]) == ("digits", 7, 1)
    assert shares["partition"] == holdings.partition_spec
    for peer in shares["peers"]:
        held = {name: count for name, count in zip(shares["classes"], peer["images"], strict=True) if count}
        assert held == dict.fromkeys(holdings.data(peer["peer"]).classes, 7)
    assert sum(shares["unused"]) == 1437 - 70
    assert sum(shares["test"]) == 360
    assert png.stat().st_size > 10_000


def test_data_show_has_a_column_a_peer_and_a_row_a_peer_where_there_are_many():
    few = invoke("data", "show").stdout
    row = next(line for line in few.splitlines() if line.startswith("│ 4 "))
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["4", "·", "·", "145", "·", "·", "36"]
    many = invoke("data", "show", "topology=exponential:16", "partition=shards:9").stdout
    row = next(line for line in many.splitlines() if line.startswith("│ 15 "))
    assert row.split("│")[3].strip() == "9"
    assert "… 1 more" in row
