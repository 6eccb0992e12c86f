"""Runs on features that a model made elsewhere: methods, text embeddings, resume, files, own sites."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from p2pft_flower.cli import app
from p2pft_flower.errors import P2PFTError
from p2pft_flower.flower import client
from p2pft_flower.learning.data.sites import load_sites
from p2pft_flower.learning.exports import load_export
from p2pft_flower.report.results import read_results
from p2pft_flower.report.tables import run_table
from tests.commands import CliRunner
from tests.features import NAMES, arrays, write_features, write_text

from .engine import run_app
from .sameness import same_run
from .test_resume import killed_after

SETTINGS = {
    **{"model": "none", "tune": "head", "topology": "directed-ring:3", "partition": "classes:0,1,2"},
    **{"batch_size": 5, "learning_rate": 0.3, "iterations": 60, "evaluate_every": 20},
}


@pytest.fixture(autouse=True)
def _fresh():
    """As in a process of its own."""
    client.workload.cache_clear()
    client.holdings.cache_clear()
    client._facts.cache_clear()


@pytest.fixture
def files(tmp_path):
    return write_features(tmp_path / "f.safetensors"), write_text(tmp_path / "t.npz")


def invoke(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 2, result.output
    return result.stderr


@pytest.mark.parametrize("tune", ["head", "mlp:8"])
def test_peers_that_hold_one_class_each_learn_all_and_files_score_as_the_run(tune, files, tmp_path):
    run_app(tmp_path / "run", nodes=1, dataset=f"features:{files[0]}", **{**SETTINGS, "tune": tune})
    results = read_results(tmp_path / "run")
    assert [p["classes"] for p in results["peers"]] == [[name] for name in NAMES]
    assert max(results["history"][0]["accuracy"]) < 0.6
    assert all(p["accuracy"] > 0.85 for p in results["peers"])
    assert all(p["accuracy_unseen"] > 0.8 for p in results["peers"])
    scored = invoke("evaluate", "--json", tmp_path / "run")
    assert [s["accuracy"] for s in scored] == [p["accuracy"] for p in results["peers"]]
    assert {s["same_images"] for s in scored} == {True}
    table = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run")]).stdout
    assert "samples" in table
    assert "images" not in table
    assert "images" not in run_table(results)
    # Neither on features of another length, nor as pictures.
    narrow = {name: a[:, :4] if a.ndim == 2 else a for name, a in arrays().items()}
    other = write_features(tmp_path / "narrow.npz", narrow)
    said = refused("evaluate", tmp_path / "run", "--dataset", f"features:{other}")
    assert "its features have 4 numbers each, the head was made for 6" in said
    said = refused("attention", tmp_path / "run", "-o", tmp_path / "a.png")
    assert "features have no image and no attention" in said
    # The export holds the head alone, and needs no features to be made.
    files[0].rename(tmp_path / "elsewhere.safetensors")
    written = invoke("export", "--json", tmp_path / "run", "-o", tmp_path / "heads")
    model, classes = load_export(tmp_path / "heads" / "peer-1.safetensors")
    assert len(written) == 3
    assert classes == NAMES
    tests = arrays()
    answers = model(torch.from_numpy(tests["test.features"])).argmax(dim=1).numpy()
    assert (answers == tests["test.labels"]).mean() == pytest.approx(results["peers"][1]["accuracy"])


def test_a_text_head_begins_at_zero_shot_and_a_resumed_run_is_the_uninterrupted_one(files, tmp_path):
    settings = {
        **SETTINGS,
        **{"dataset": f"features:{files[0]}", "head": "text", "text_embeddings": str(files[1])},
        **{"shots": 2, "iterations": 12, "evaluate_every": 4, "checkpoint_every": 4, "learning_rate": 0.01},
    }
    run_app(tmp_path / "whole", nodes=1, **settings)
    results = read_results(tmp_path / "whole")
    assert min(results["history"][0]["accuracy"]) > 0.85  # before any training
    run_app(
        tmp_path / "resumed",
        nodes=1,
        **settings,
        resume=str(killed_after(4, tmp_path / "whole", tmp_path / "k", n=3)),
    )
    same_run(tmp_path / "whole", tmp_path / "resumed", n=3)
    scored = invoke("evaluate", "--json", tmp_path / "whole")
    assert [s["accuracy"] for s in scored] == [p["accuracy"] for p in results["peers"]]
    untrained = invoke("evaluate", "--json", "--zero-shot", tmp_path / "whole")
    assert [s["accuracy"] for s in untrained] == results["history"][0]["accuracy"]
    # Neither the place of the features nor that of the embeddings counts.
    moved = tmp_path / "moved"
    moved.mkdir()
    place, text = (file.rename(moved / file.name) for file in files)
    more = settings | {"dataset": f"features:{place}", "text_embeddings": str(text), "iterations": 16}
    run_app(tmp_path / "more", nodes=1, **more, resume=str(tmp_path / "whole"), extend=True)
    assert read_results(tmp_path / "more")["resumed_from"]["iteration"] == 12
    with_text = ["--json", tmp_path / "whole", "--text-embeddings", text]
    scored = invoke("evaluate", *with_text, "--dataset", f"features:{place}")
    assert [s["accuracy"] for s in scored] == [p["accuracy"] for p in results["peers"]]
    invoke("export", *with_text, "-o", tmp_path / "heads")
    model, _ = load_export(tmp_path / "heads" / "peer-0.safetensors")
    answers = model(torch.from_numpy(arrays()["test.features"])).argmax(dim=1).numpy()
    right = (answers == arrays()["test.labels"]).mean()
    assert right == pytest.approx(results["peers"][0]["accuracy"])


@pytest.mark.parametrize("algorithm", ["centralized", "local", "fedavg", "dgd"])
def test_other_methods_train_on_features(algorithm, files, tmp_path):
    settings = {**SETTINGS, "topology": "ring:3", "dataset": f"features:{files[0]}", "algorithm": algorithm}
    run_app(tmp_path, nodes=1, **settings)
    accuracy = read_results(tmp_path)["summary"]["accuracy"]["mean"]
    if algorithm == "local":  # each has seen one class only
        assert accuracy < 0.7
    else:
        assert accuracy > 0.85


def sites(tmp_path, n=3):
    """Return the node configs of n sites, of which each holds one class in a file of its own."""
    held = arrays()
    for p in range(n):
        mine = held["train.labels"] == p
        own = {name: array[mine] if name.startswith("train.") else array for name, array in held.items()}
        write_features(tmp_path / f"site-{p}.npz", own)
    return [{"peer-id": p, "peer-address": f"unix:{tmp_path}/{p}.sock", "insecure": True} for p in range(n)]


OWN = {key: value for key, value in SETTINGS.items() if key != "partition"}


@pytest.mark.parametrize("algorithm", ["p2pft", "fedavg"])
def test_sites_train_on_features_of_their_own_which_the_server_does_not_have(
    algorithm, tmp_path, monkeypatch
):
    nodes = sites(tmp_path)

    def of_one_site(name, peers, *places, **settings):
        assert len(peers) == 1, "somebody looks for the files of all sites"
        return load_sites(name, peers, *places, **settings)

    monkeypatch.setattr("p2pft_flower.learning.data.holdings.load_sites", of_one_site)
    place = f"features:{tmp_path}/site-{{peer}}.npz"
    run_app(tmp_path / "run", slots=3, node_configs=nodes, dataset=place, algorithm=algorithm, **OWN)
    peers = read_results(tmp_path / "run")["peers"]
    assert all(p["accuracy"] > 0.8 for p in peers)


def test_a_site_may_have_its_text_embeddings_at_a_place_of_its_own(tmp_path):
    nodes = sites(tmp_path)
    for node in nodes:
        node["text-embeddings"] = str(write_text(tmp_path / f"own-{node['peer-id']}.npz"))
    settings = OWN | {"head": "text", "text_embeddings": "/nowhere/t.npz", "learning_rate": 0.01}
    place = f"features:{tmp_path}/site-{{peer}}.npz"
    run_app(tmp_path / "run", slots=3, node_configs=nodes, dataset=place, **settings)
    assert min(read_results(tmp_path / "run")["history"][0]["accuracy"]) > 0.85


def test_a_class_without_an_embedding_ends_a_run_before_it_begins(files, tmp_path):
    nodes = sites(tmp_path)
    text = write_text(tmp_path / "less.npz", names=NAMES[:2])
    place = f"features:{tmp_path}/site-{{peer}}.npz"
    with pytest.raises(P2PFTError, match="no embedding of the classes 狐"):
        run_app(
            tmp_path / "run",
            slots=3,
            node_configs=nodes,
            dataset=place,
            head="text",
            text_embeddings=str(text),
            **OWN,
        )
    result = CliRunner().invoke(
        app,
        [
            "run",
            f"dataset=features:{files[0]}",
            "model=none",
            "tune=head",
            "head=text",
            f"text-embeddings={text}",
        ],
    )
    assert result.exit_code == 2
    assert "no embedding of the classes 狐" in result.output


def test_a_site_whose_features_another_model_made_is_named(tmp_path):
    nodes = sites(tmp_path)
    narrow = {name: a[:, :4] if a.ndim == 2 else a for name, a in arrays().items()}
    write_features(tmp_path / "site-1.npz", narrow)
    place = f"features:{tmp_path}/site-{{peer}}.npz"
    with pytest.raises(P2PFTError, match=r"peers \[1\] have 4 numbers, .*; one model must have made"):
        run_app(tmp_path / "run", slots=3, node_configs=nodes, dataset=place, **OWN)


def test_a_site_with_other_embeddings_is_named(tmp_path):
    nodes = sites(tmp_path)
    place = f"features:{tmp_path}/site-{{peer}}.npz"
    text = write_text(tmp_path / "t.npz")
    begun = []

    def another(*args):
        """Each site reads the file at its own time: between two of them it is replaced."""
        begun.append(args)
        rows = np.random.default_rng(len(begun)).normal(size=(3, 6))
        write_text(text, rows=rows)
        return original(*args)

    original = client.feature_facts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "feature_facts", another)
        with pytest.raises(P2PFTError, match="model digest differs"):
            run_app(
                tmp_path / "run",
                slots=1,
                node_configs=nodes,
                dataset=place,
                head="text",
                text_embeddings=str(text),
                **OWN,
            )
