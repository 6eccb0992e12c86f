"""`p2pft attention` on small run folders: the embedded model on the digits, θ made up."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from p2pft_flower.cli import app
from p2pft_flower.config import LearningConfig, RunConfig
from p2pft_flower.learning.attention import attention_maps
from p2pft_flower.learning.likeness import correlation, top_overlap
from p2pft_flower.learning.model.models import preprocessing
from p2pft_flower.learning.tails import load_tail
from p2pft_flower.learning.workload import Workload
from p2pft_flower.report.results import SCHEMA, write_results
from tests.commands import CliRunner

PEERS = (range(2), range(2, 4), range(4, 7), range(7, 10))


def invoke(*words):
    return CliRunner().invoke(app, ["attention", *map(str, words)], env={"COLUMNS": "160"})


def write_run(folder, algorithm, noise, **settings):
    """Write what a run leaves behind; its peers' θ are θ^0 with so much noise on it, another one a peer."""
    learning = LearningConfig(**settings)
    workload = Workload(learning, n=4)
    groups = [range(10)] if algorithm == "centralized" else PEERS
    (folder / "peers").mkdir(parents=True)
    peers = []
    for peer, classes in enumerate(groups):
        rng = np.random.default_rng(peer + 1)
        theta = workload.theta0 + np.float32(noise) * rng.normal(size=workload.theta0.shape).astype("f4")
        tail = f"peers/peer-{peer}.safetensors"
        metadata = {**workload.metadata(), "run": "1", "peer": str(peer), "iterations": "12"}
        save_file(workload.named_tail(theta), folder / tail, metadata=metadata)
        name = "all" if algorithm == "centralized" else str(peer)
        peers.append({"peer": peer, "name": name, "classes": [str(c) for c in classes], "tail": tail})
    results = {
        "schema": SCHEMA,
        "status": "completed",
        "algorithm": algorithm,
        "peers": peers,
        "partition": workload.holdings.partition_spec,
        "graph": {"name": "directed-ring-4"},
        "iterations": 12,
        "config": RunConfig(learning=learning).to_mapping(),
        "error": None,
    }
    write_results(folder, results)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    for algorithm, noise in (("centralized", 0.0), ("local", 0.2), ("p2pft", 0.05)):
        write_run(folder / algorithm, algorithm, noise)
    return folder


@pytest.fixture(scope="module")
def drawn(runs, tmp_path_factory):
    figure = tmp_path_factory.mktemp("figure") / "attention.png"
    result = invoke(runs, "--seen", 2, "--unseen", 1, "--peer", 2, "-o", figure)
    assert result.exit_code == 0, result.stderr
    return result, figure


def test_a_comparison_is_drawn_and_its_numbers_printed_and_written_beside(drawn):
    result, figure = drawn
    with Image.open(figure) as image:
        # Three rows of original and three methods, and room for words.
        assert image.width > 1000
        assert image.height > image.width * 0.7
    markdown = figure.with_suffix(".md").read_text()
    assert "![Attention of the class token in the last block, mean of 4 heads; models of peer 2" in markdown
    numbers = json.loads(figure.with_suffix(".json").read_text())
    assert [m["algorithm"] for m in numbers["methods"]] == ["start", "local", "p2pft", "centralized"]
    for name in ("before training", "Local-FT", "P2P-FT", "centralised"):
        assert name in markdown
        assert name in result.stdout
    assert "partition classes:0-1,2-3,4-6,7-9" in numbers["subtitle"]
    mean = numbers["methods"][1]["all"]["seen"]["correlation"]["mean"]
    assert f"{mean:.3f} ±" in markdown
    assert f"{mean:.3f} ±" in result.stdout
    assert result.stdout.splitlines()[-1] == f"figure: {figure}"


def test_the_images_are_of_classes_that_the_peer_holds_and_of_others(drawn):
    rows = json.loads(drawn[1].with_suffix(".json").read_text())["drawn"]["rows"]
    assert [row["group"] for row in rows] == [
        "class held by peer 2",
        "class held by peer 2",
        "class of which peer 2 holds no image",
    ]
    assert {int(row["image"]) in PEERS[2] for row in rows[:2]} == {True}
    assert int(rows[2]["image"]) not in PEERS[2]
    assert [a["algorithm"] for a in rows[0]["answers"]] == ["local", "p2pft", "centralized"]
    for row in rows:
        for answer in row["answers"]:
            assert answer["right"] == (answer["label"] == row["image"])
            assert 0.1 < answer["confidence"] <= 1
        assert [a["correlation"] is None for a in row["answers"]] == [False, False, True]


def test_the_numbers_are_those_of_each_peers_whole_model_on_the_test_set(drawn, runs):
    methods = json.loads(drawn[1].with_suffix(".json").read_text())["methods"]
    tails = [
        load_tail(runs / f)
        for f in ("local/peers/peer-3.safetensors", "centralized/peers/peer-0.safetensors")
    ]
    workload = tails[0].workload
    test, transform = workload.holdings.dataset.test, preprocessing(workload.model)
    images = torch.stack([transform(test.read(i)) for i in range(len(test))])
    own, reference = (attention_maps(workload.whole_model(t.theta), images) for t in tails)
    seen = np.isin(test.labels, PEERS[3])
    r = correlation(own.maps.numpy(), reference.maps.numpy())
    overlap = top_overlap(own.maps.numpy(), reference.maps.numpy())
    right = own.logits.argmax(dim=1).numpy() == test.labels
    found = methods[1]["peers"][3]
    for name, mask in (("seen", seen), ("unseen", ~seen)):
        assert found[name]["images"] == mask.sum()
        assert found[name]["correlation"]["mean"] == pytest.approx(r[mask].mean(), abs=1e-5)
        assert found[name]["correlation"]["std"] == pytest.approx(r[mask].std(), abs=1e-5)
        assert found[name]["overlap"]["mean"] == pytest.approx(overlap[mask].mean(), abs=0.01)
        assert found[name]["accuracy"] == pytest.approx(right[mask].mean(), abs=0.01)
    # Each image is of one peer's classes, and of no class of the three others.
    assert methods[1]["all"]["seen"]["images"] == len(test)
    assert methods[1]["all"]["unseen"]["images"] == 3 * len(test)


def test_what_is_nearer_to_centralised_is_said_to_be(drawn):
    methods = json.loads(drawn[1].with_suffix(".json").read_text())["methods"]
    start, local, p2pft, centralised = (m["all"]["unseen"]["correlation"]["mean"] for m in methods)
    # This centralised run was given θ^0 itself.
    assert start == pytest.approx(1, abs=1e-5)
    assert centralised == pytest.approx(1, abs=1e-5)
    assert local < p2pft < 1


def test_without_a_centralised_run_the_figure_is_drawn_and_the_reason_said(runs, tmp_path):
    figure = tmp_path / "two.png"
    result = invoke(
        runs / "local", runs / "p2pft", "--seen", 1, "--unseen", 0, "-o", figure, "--map", "rollout"
    )
    assert result.exit_code == 0, result.stderr
    assert "no numbers: none of the runs is centralized" in result.stdout
    assert figure.stat().st_size > 10_000
    assert "No numbers: none of the runs is centralized" in figure.with_suffix(".md").read_text()
    numbers = json.loads(figure.with_suffix(".json").read_text())
    assert numbers["methods"] == []
    assert numbers["drawn"]["rows"][0]["answers"][0]["correlation"] is None


def test_own_images_are_drawn_alone_and_their_class_is_not_judged(runs, tmp_path):
    own = tmp_path / "mine.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(own)
    result = invoke(runs, "--images", own, "-o", tmp_path / "f.png", "--map", "head:1", "--json")
    assert result.exit_code == 0, result.stderr
    numbers = json.loads(result.stdout)
    (row,) = numbers["drawn"]["rows"]
    assert (row["image"], row["group"]) == ("mine.png", "own images")
    assert {answer["right"] for answer in row["answers"]} == {None}
    assert numbers["subtitle"].startswith("Attention of the class token in the last block, head 1")
    assert numbers == json.loads((tmp_path / "f.json").read_text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--map", "max"], "map = 'max' is unknown; choose one of mean, rollout, head:H"),
        (["--map", "head:4"], "the last block has the heads 0 to 3"),
        (["--peer", "4"], "--peer 4: the runs have the peers 0 to 3"),
        (["--seen", "1000"], "--seen 1000: the test set has"),
        (["--seen", "0", "--unseen", "0"], "nothing to draw"),
        (["--images", "nowhere.png"], "nowhere.png: not a readable image"),
        (["-o", "f.text"], "-o f.text: matplotlib cannot write such a file"),
        (["-o", "/nowhere/f.png"], "there is no folder /nowhere"),
    ],
    ids=str,
)
def test_wrong_words_exit_2_with_one_line_and_write_nothing(words, message, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(runs, "-o", "f.png", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", 1, "has seed = 0, "),
        ("shots", 20, "has shots = 0, "),
        ("partition", "iid", "has partition = 'classes:0-1,2-3,4-6,7-9', "),
        ("weights", "none", "has weights = 'pretrained', "),
    ],
)
def test_runs_that_differ_in_more_than_the_method_are_refused_by_name(key, value, message, runs, tmp_path):
    other = write_run(tmp_path / "other", "dgd", 0.1, **{key: value})
    result = invoke(runs / "local", other, "-o", tmp_path / "f.png")
    assert result.exit_code == 2
    assert message in result.stderr
    assert "other" in result.stderr


def altered(source, folder, change):
    results = json.loads((source / "results.json").read_text())
    change(results)
    return write_results(folder, results).parent


def test_folders_that_are_no_comparable_runs_are_refused(runs, tmp_path):
    failed = altered(
        runs / "local", tmp_path / "failed", lambda r: r.update(status="failed", error="no memory")
    )
    swapped = altered(
        runs / "local", tmp_path / "swapped", lambda r: (r["peers"].reverse(), r.update(algorithm="dgd"))
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    for words, message in (
        ([empty], "results.json: cannot be read"),
        ([failed], "this run failed: no memory"),
        ([runs, runs / "local"], "two runs of local were given"),
        ([runs / "centralized"], "only centralized was given"),
        ([runs / "local", swapped], "hold different classes"),
    ):
        result = invoke(*words, "-o", tmp_path / "f.png")
        assert result.exit_code == 2
        assert message in result.stderr


def test_a_failed_method_of_a_comparison_is_left_out_and_named(runs, tmp_path):
    for name in ("local", "p2pft"):
        (tmp_path / name).symlink_to(runs / name)
    error = "its weights are not doubly stochastic"
    write_results(
        tmp_path / "gt-dgd", {"schema": SCHEMA, "status": "failed", "algorithm": "gt-dgd", "error": error}
    )
    result = invoke(tmp_path, "--seen", 1, "--unseen", 1, "-o", tmp_path / "f.png")
    assert result.exit_code == 0, result.stderr
    assert f"left out: {tmp_path / 'gt-dgd'} failed: {error}" in result.stderr


def test_random_weights_are_named_in_the_title(tmp_path):
    write_run(tmp_path / "local", "local", 0.1, weights="none")
    result = invoke(tmp_path / "local", "--seen", 1, "--unseen", 0, "-o", tmp_path / "f.png")
    assert result.exit_code == 0, result.stderr
    assert "RANDOM weights" in (tmp_path / "f.md").read_text().splitlines()[0]


def test_a_damaged_tail_is_refused_by_name(runs, tmp_path):
    folder = write_run(tmp_path / "local", "local", 0.1)
    file = folder / "peers" / "peer-0.safetensors"
    save_file(load_file(file), file, metadata={"schema": "p2pft.tail/1"})
    result = invoke(folder, "-o", tmp_path / "f.png")
    assert result.exit_code == 2
    assert f"{file}: its metadata has no model-digest" in result.stderr
