"""A table of images with several labels, or none: trained, scored, resumed, deployed, by other methods."""

from __future__ import annotations

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from p2pft_flower.cli.settings import parse_settings
from p2pft_flower.errors import P2PFTError
from p2pft_flower.flower import client
from p2pft_flower.flower.nodes import RunFailedError
from p2pft_flower.keeping.checkpoints import checkpoint_files, checkpoint_folder
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.learning.data.batches import Batches
from p2pft_flower.learning.data.datasets import load_dataset
from p2pft_flower.learning.exports import load_export
from p2pft_flower.learning.feature_model import HeldFeatures
from p2pft_flower.learning.minibatches import MiniBatches
from p2pft_flower.learning.model.models import preprocessing
from p2pft_flower.learning.objective import PeerObjective
from p2pft_flower.learning.theta import tail_vector
from p2pft_flower.report.results import read_results
from tests.blocks import ROOT, blocks_of, commands_of
from tests.cli.test_commands import invoke
from tests.later import Later
from tests.several_labels import NAMES, rows_of, write_digits, write_site_tables, write_table
from tests.test_document_blocks import run_here

from .engine import run_app
from .sameness import tails

metrics = Later("sklearn.metrics")

SETTINGS = {"topology": "ring:4", "iterations": 40, "evaluate_every": 20, "learning_rate": 0.1, "threads": 1}


@pytest.fixture(autouse=True)
def _fresh():
    """As in a process of its own."""
    client.workload.cache_clear()
    client.holdings.cache_clear()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A table of digits with their looks, and a run of it with predictions."""
    folder = tmp_path_factory.mktemp("several")
    table = write_digits(folder / "data", 160, 80)
    settings = SETTINGS | {"dataset": f"table:{table}"}
    run_app(folder / "run", **settings, predictions=True, checkpoint_every=20)
    return folder


@pytest.fixture
def settings(root):
    return SETTINGS | {"dataset": f"table:{root}/data/labels.csv"}


def macro_auroc(folder):
    return [peer["class_scores"]["macro_auroc"] for peer in read_results(folder)["peers"]]


# --- learning -----------------------------------------------------------------------------------------------


def test_peers_of_a_ring_learn_labels_that_they_hold_no_image_of_as_well_as_pooled_images_do(
    root, settings, tmp_path
):
    run_app(tmp_path / "pooled", **settings, algorithm="centralized")
    run_app(tmp_path / "alone", **settings, algorithm="local")
    results = read_results(root / "run")
    assert results["partition"] == "by:site=0,1,2,3"
    assert [peer["classes"] for peer in results["peers"]] == [["even", "round"], ["even"], [*NAMES], [*NAMES]]
    together, pooled, alone = (
        macro_auroc(root / "run"),
        macro_auroc(tmp_path / "pooled"),
        macro_auroc(tmp_path / "alone"),
    )
    assert min(together) > 0.9  # by chance 0.5
    assert min(together) > max(alone) + 0.1
    assert min(together) > pooled[0] - 0.02
    common = [max(np.mean(column), 1 - np.mean(column)) for column in np.transpose(truth_in(root)[1])]
    for peer in results["peers"]:
        assert peer["accuracy"] > np.mean(common)  # of which each label's commoner side is right
    assert results["peers"][1]["accuracy_unseen"] > 0.7


def truth_in(root, peer=0):
    """The names, truth, answers and probabilities in a peer's predictions.csv."""
    with (root / "run" / "peers" / f"peer-{peer}.predictions.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    names = [name[2:-1] for name in header[3:]]
    truth, taken = (np.array([[n in row[k].split("|") for n in names] for row in rows], int) for k in (1, 2))
    return names, truth, taken, np.array([row[3:] for row in rows], float)


def test_scikit_learn_confirms_each_figure_from_predictions_csv(root):
    for peer in read_results(root / "run")["peers"]:
        names, truth, taken, likely = truth_in(root, peer["peer"])
        assert names == [*NAMES]
        scores = peer["class_scores"]
        rows = scores["classes"]
        np.testing.assert_array_equal(taken, likely >= 0.5)
        for k in range(len(names)):
            assert rows["support"][k] == truth[:, k].sum()
            auroc = metrics.roc_auc_score(truth[:, k], likely[:, k])
            ap = metrics.average_precision_score(truth[:, k], likely[:, k])
            assert rows["auroc"][k] == pytest.approx(auroc, abs=1e-9)
            assert rows["average_precision"][k] == pytest.approx(ap, abs=1e-9)
            assert rows["recall"][k] == pytest.approx(
                metrics.recall_score(truth[:, k], taken[:, k]), abs=1e-9
            )
        assert scores["macro_auroc"] == pytest.approx(metrics.roc_auc_score(truth, likely), abs=1e-9)
        assert scores["macro_f1"] == pytest.approx(metrics.f1_score(truth, taken, average="macro"), abs=1e-9)
        assert peer["accuracy"] == pytest.approx(1 - metrics.hamming_loss(truth, taken), abs=1e-9)
        loss = np.mean([metrics.log_loss(truth[:, k], likely[:, k]) for k in range(len(names))])
        assert peer["loss"] == pytest.approx(loss, abs=1e-6)
        assert scores["confusion"] is None


@pytest.mark.parametrize(
    "how", [{"algorithm": "fedavg"}, {"cache": False, "augment": "basic"}, {"dp_clip": 1.0, "dp_noise": 0.1}]
)
def test_flowers_strategies_augmented_images_and_private_gradients_learn_them_too(how, settings, tmp_path):
    if "dp_clip" in how:
        pytest.importorskip("opacus")
    run_app(tmp_path, **settings | {"iterations": 20} | how)
    assert np.mean(macro_auroc(tmp_path)) > 0.6
    first = read_results(tmp_path)["history"][0]
    assert np.mean(read_results(tmp_path)["history"][-1]["loss"]) < np.mean(first["loss"])


def test_validation_scores_images_that_are_held_out(settings, tmp_path):
    run_app(tmp_path, **settings | {"iterations": 2, "validation": 0.25})
    scores = read_results(tmp_path)["peers"][0]["class_scores"]
    assert 38 <= scores["images"] <= 42
    assert all(scores["classes"]["support"])


def test_the_best_theta_is_kept_by_validation_images_with_several_labels(settings, tmp_path):
    run_app(
        tmp_path, **settings | {"iterations": 6, "evaluate_every": 2, "validation": 0.25, "keep": "best:loss"}
    )
    kept = [peer["kept"]["iteration"] for peer in read_results(tmp_path)["peers"]]
    assert kept == [6] * 4  # the loss falls from each evaluation to the next


def test_a_peer_whose_held_out_images_have_no_label_has_a_loss_and_no_balanced_accuracy():
    nothing, tail = torch.zeros((4, 3), dtype=torch.int64), torch.nn.Linear(2, 3)
    images = HeldFeatures(np.ones((4, 2), np.float32), nothing.numpy())
    batches = MiniBatches(images, Batches(4, 4, seed=0, peer=0))
    found = PeerObjective(tail, batches, images, seed=0, peer=0, validation=[images]).validate(
        tail_vector(tail)
    )
    assert found.loss > 0
    assert found.balanced_accuracy is None


# --- resumed, deployed, each site its own -------------------------------------------------------------------


def interrupted(folder, to):
    """Copy what the run would have left, had it been killed after its checkpoint of iteration 20."""
    shutil.copytree(folder, to)
    (to / "results.json").unlink()
    for peer in range(4):
        for k, path in checkpoint_files(checkpoint_folder(to, peer)).items():
            if k > 20:
                path.unlink()
    return str(to)


def test_a_run_that_is_resumed_ends_bit_for_bit_as_one_that_was_not(root, settings, tmp_path):
    resume = interrupted(root / "run", tmp_path / "killed")
    run_app(tmp_path / "on", **settings, resume=resume)
    assert read_results(tmp_path / "on")["resumed_from"]["iteration"] == 20
    assert tails(tmp_path / "on") == tails(root / "run")


def test_a_run_is_not_resumed_with_other_labels_of_the_same_images(root, settings, tmp_path):
    resume = interrupted(root / "run", tmp_path / "killed")
    table = root / "data" / "other.csv"
    table.write_text((root / "data" / "labels.csv").read_text().replace("even|round", "even"))
    with pytest.raises(P2PFTError, match=r"peer 0's training images: .* 16 changed \("):
        run_app(tmp_path / "on", **settings | {"dataset": f"table:{table}"}, resume=resume)


def nodes_of(number=4):
    return [{"peer-id": p, "peer-address": f"127.0.0.1:{port}"} for p, port in enumerate(free_ports(number))]


def test_sites_with_tables_of_their_own_are_deployed_and_reach_the_theta_of_the_simulation(root, tmp_path):
    settings = SETTINGS | {"iterations": 6, "dataset": write_site_tables(tmp_path, 160, 80)}
    run_app(tmp_path / "deployed", slots=4, node_configs=nodes_of(), **settings)
    run_app(tmp_path / "simulated", **settings)
    assert tails(tmp_path / "deployed") == tails(tmp_path / "simulated")
    peers = read_results(tmp_path / "deployed")["peers"]
    assert [peer["classes"] for peer in peers] == [["even", "round"], ["even"], [*NAMES], [*NAMES]]
    assert peers[0]["class_scores"]["several_labels"]


def test_a_deployed_site_with_one_class_an_image_beside_others_is_refused_before_training(tmp_path):
    name = write_site_tables(tmp_path, 160, 80)
    one = tmp_path / "site-3.csv"
    kept, seen = ["image,label,split"], set()
    for line in one.read_text().splitlines()[1:]:
        image, cell, split = line.split(",")
        kept.append(f"{image},{cell.split('|')[-1]},{split}")
        seen.add(cell.split("|")[-1])
    kept += [f",{name},train" for name in NAMES if name not in seen]
    one.write_text("\n".join(kept) + "\n")
    with pytest.raises(
        RunFailedError, match=r"labels differs: peers \[3\] have one an image, .* several an image"
    ):
        run_app(tmp_path / "run", slots=4, node_configs=nodes_of(), **SETTINGS | {"dataset": name})


# --- the page -----------------------------------------------------------------------------------------------


def test_the_page_on_several_labels_can_be_followed_with_small_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        [image, cell, split, ("north", "south")[int(site) // 2]]
        for image, cell, split, site in rows_of(tmp_path / "chest", 12, 6)
    ]
    write_table(tmp_path / "chest" / "labels.csv", rows)
    for words in commands_of(blocks_of(ROOT / "docs" / "multi-label.md"), tmp_path):
        if words[:2] != ["p2pft", "run"]:
            run_here(words[1:])
            continue
        values = parse_settings([word for word in words[2:] if "=" in word])
        small = {"model": "glyph_vit_8", "iterations": 1, "batch_size": 2}
        settings = {key.replace("-", "_"): value for key, value in values.items()} | small
        run_app(tmp_path / words[words.index("--out") + 1], **settings)
    assert (tmp_path / "chest" / "tables" / "peer-1.predictions.csv").exists()
    assert read_results(tmp_path / "chest" / "run")["partition"] == "by:site=north,south"


# --- commands -----------------------------------------------------------------------------------------------


def test_evaluate_scores_the_tails_as_their_run_did_and_shows_labels_without_a_confusion_matrix(
    root, tmp_path
):
    result = invoke("evaluate", str(root / "run"), "--json", "--predictions", str(tmp_path))
    assert result.exit_code == 0, result.output
    for told, peer in zip(json.loads(result.stdout), read_results(root / "run")["peers"], strict=True):
        assert told["class_scores"] == peer["class_scores"]
        assert (told["accuracy"], told["loss"]) == (peer["accuracy"], peer["loss"])
    own = root / "run" / "peers" / "peer-2.predictions.csv"
    assert (tmp_path / own.name).read_bytes() == own.read_bytes()
    shown = invoke("evaluate", str(root / "run" / "peers" / "peer-0.safetensors"))
    assert shown.exit_code == 0, shown.output
    assert "macro AUROC" in shown.stdout
    assert "no confusion matrix" in shown.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluate", "RUN", "--ci"), "its images have several labels each, but --ci"),
        (
            ("evaluate", "RUN", "--dataset", "table:ROOT/single.csv"),
            "loss = 'bce' with dataset = 'table:.*single.csv': each image has one class",
        ),
        (("attention", "RUN", "-o", "maps.png"), "an image has several labels there"),
    ],
)
def test_commands_that_need_one_class_an_image_refuse_by_name(words, message, root, tmp_path):
    lines = (root / "data" / "labels.csv").read_text().splitlines()
    single = [
        line.replace(line.split(",")[1], line.split(",")[1].split("|")[-1])
        for line in lines
        if ",," not in line
    ]
    (root / "data" / "single.csv").write_text("\n".join(single).replace("labels", "label", 1))
    places = {"RUN": str(root / "run"), "ROOT": str(root / "data")}
    result = invoke(*[re.sub("RUN|ROOT", lambda found: places[found[0]], word) for word in words])
    assert result.exit_code == 2
    assert re.search(message, result.output), result.output


def test_an_exported_model_says_that_the_sigmoid_of_its_outputs_counts_and_needs_no_images(root, tmp_path):
    tail, whole = root / "run" / "peers" / "peer-0.safetensors", tmp_path / "whole.safetensors"
    with safe_open(tail, "np") as file:
        metadata = {**file.metadata(), "dataset": "table:/is/not/here.csv"}
    save_file(load_file(tail), tmp_path / "far.safetensors", metadata)
    result = invoke("export", str(tmp_path / "far.safetensors"), "--out", str(whole))
    assert result.exit_code == 0, result.output
    model, classes = load_export(whole)
    assert (classes, model.num_classes) == (NAMES, 3)
    with safe_open(whole, "np") as file:
        assert file.metadata()["loss"] == "bce"
    _, truth, _, likely = truth_in(root)
    data = load_dataset(f"table:{root}/data/labels.csv")
    seen = preprocessing(model)
    with torch.inference_mode():
        outputs = model(torch.stack([seen(data.test.picture(i)) for i in range(len(truth))]))
    np.testing.assert_allclose(outputs.sigmoid().numpy(), likely, atol=0.05)  # the run's trunk rounds


def test_p2pft_data_counts_an_image_for_each_label_and_the_images_without_one(root):
    words = ("data", "show", f"dataset=table:{root}/data/labels.csv", "topology=ring:4")
    told = json.loads(invoke(*words, "--json").stdout)
    assert told["several_labels"]
    assert sum(peer["total"] for peer in told["peers"]) + told["unused_total"] == 160
    assert told["test_total"] == 80
    one = told["peers"][1]  # twos and threes: even, or nothing
    assert one["images"] == [one["total"] - one["unlabelled"], 0, 0]
    assert one["unlabelled"] > 0
    shown = invoke(*words)
    assert shown.exit_code == 0, shown.output
    assert "images may have several labels, and count for each; without a label:" in shown.stdout


def test_the_report_page_has_the_recall_of_each_label_and_no_confusion(root, tmp_path):
    words = (
        "report",
        str(root / "run"),
        "-o",
        str(tmp_path / "report.html"),
        "--markdown",
        str(tmp_path / "r.md"),
    )
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "r.md").read_text()
    recalls = [peer["class_scores"]["classes"]["recall"] for peer in read_results(root / "run")["peers"]]
    never = (recalls[0][1] + recalls[1][1]) / 2  # of large, by the peers that hold no image of it
    line = next(line for line in page.splitlines() if line.startswith("| large |"))
    assert f"{never:.3f}" in line
    assert "No label is taken for another, so there is no confusion matrix" in page
    assert "mistake" not in page
    assert "give the same answer to every test image" in page or "gives the answer of most" in page
