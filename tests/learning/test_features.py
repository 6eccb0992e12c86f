"""Features that a model made elsewhere: files, heads, gradients, and text embeddings to begin with."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.data.data_digest import images_digest
from p2pft_flower.learning.data.datasets import load_dataset
from p2pft_flower.learning.data.sites import load_sites
from p2pft_flower.learning.data.splits import Split
from p2pft_flower.learning.model.split import split_model
from p2pft_flower.learning.model.text_embeddings import read_text_embeddings
from p2pft_flower.learning.named_tensors import weights_digest
from p2pft_flower.learning.theta import tail_vector
from p2pft_flower.learning.workload import Workload
from tests.features import NAMES, WIDTH, arrays, centres, write_features, write_text

DOCS = Path(__file__).resolve().parents[2] / "docs"


def of_features(file, **settings):
    settings = {"model": "none", "tune": "head", "partition": "iid", **settings}
    return LearningConfig(dataset=f"features:{file}", **settings)


# Files


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_file_has_rows_labels_and_names(ending, dtype, tmp_path):
    file = write_features(tmp_path / f"f.{ending}", dtype=dtype)
    found = load_dataset(f"features:{file}")
    given = arrays(dtype)
    assert found.classes == NAMES
    assert found.width == WIDTH
    for part, split in (("train", found.train), ("test", found.test)):
        assert split.vectors.dtype == np.float32
        np.testing.assert_array_equal(split.vectors, given[f"{part}.features"].astype(np.float32))
        np.testing.assert_array_equal(split.labels, given[f"{part}.labels"])


def test_classes_without_names_are_called_by_their_labels(tmp_path):
    file = write_features(tmp_path / "f.npz", classes=None)
    assert load_dataset(f"features:{file}").classes == ("0", "1", "2")


def test_a_wild_label_makes_no_million_classes(tmp_path):
    wild = {**arrays(), "train.labels": np.where(np.arange(30) == 3, 2**60, arrays()["train.labels"])}
    file = write_features(tmp_path / "f.npz", wild, classes=None)
    with pytest.raises(DataError, match=r"train.labels has 1152921504606846976, .* are 30 training samples"):
        load_dataset(f"features:{file}")


def test_every_number_of_every_row_counts_when_data_is_known_again():
    split = load_rows(3000)
    positions = np.arange(3000)
    digests = {images_digest(split, positions, NAMES)}
    for row in (1, 1500, 2999):
        split.vectors[row, 3] += 1
        digests.add(images_digest(split, positions, NAMES))
    assert len(digests) == 4


def load_rows(number):
    rows = np.random.default_rng(0).normal(size=(number, WIDTH)).astype(np.float32)
    return Split.of_vectors(rows, np.arange(number) % 3)


def broken(**changes):
    return {**arrays(), **changes}


ROWS = arrays()["train.features"]
WITH_NAN = ROWS.copy()
WITH_NAN[3, 2] = np.nan
LARGE = ROWS.astype(np.float64)
LARGE[5, 0] = 1e39
LABELS = arrays()["train.labels"]


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"train.features": ROWS}, "it has no array train.labels, test.features, test.labels; it has"),
        (broken(**{"train.features": ROWS.astype(np.int32)}), r"train.features is \(30, 6\) of int32"),
        (broken(**{"train.features": ROWS.ravel()}), r"train.features is \(180,\)"),
        (broken(**{"train.labels": LABELS[:-1]}), r"train.labels is \(29,\) of int64; it must be \(30,\)"),
        (broken(**{"train.labels": LABELS.astype(np.float32)}), "train.labels is .* of float32"),
        (
            broken(**{"train.labels": LABELS + 1}),
            "row 2 of train.labels has 3; the labels of 3 classes are",
        ),
        (broken(**{"train.labels": LABELS - 1}), "row 0 of train.labels has -1; "),
        (
            broken(**{"train.labels": LABELS.astype(np.uint64) + 2**63}),
            "row 0 of train.labels has 92233720368547758",
        ),
        (broken(**{"test.features": ROWS[:0], "test.labels": LABELS[:0]}), "test.features has no row"),
        (broken(**{"train.features": ROWS[:0], "train.labels": LABELS[:0]}), "train.features has no row"),
        (broken(**{"train.features": WITH_NAN}), "row 3 of train.features has NaN or an infinite number"),
        (broken(**{"train.features": LARGE}), "row 5 of train.features has NaN or an infinite number"),
        (broken(**{"train.labels": np.zeros_like(LABELS)}), "no training sample of the classes cat, 狐"),
        (broken(**{"test.features": ROWS[:, :4], "test.labels": LABELS}), "6 numbers each, test.features 4"),
    ],
)
@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_what_is_wrong_in_a_file_is_named_with_the_file(ending, held, message, tmp_path):
    file = write_features(tmp_path / f"f.{ending}", held)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(f"features:{file}")
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "a", "b"], "more than once"),
        *((wrong, "no list of texts") for wrong in ([], [1, 2, 3], "abc", {"a": 2, "b": 1, "c": 0})),
    ],
)
def test_classes_must_be_names_that_differ(names, message, tmp_path):
    save_file(arrays(), tmp_path / "f.safetensors", {"classes": json.dumps(names)})
    with pytest.raises(DataError, match=message):
        load_dataset(f"features:{tmp_path}/f.safetensors")


def test_an_array_that_claims_more_memory_than_there_is_is_named(tmp_path):
    header = io.BytesIO()
    claimed = {"descr": "<f4", "fortran_order": False, "shape": (2**50, 4)}
    np.lib.format.write_array_header_1_0(header, claimed)
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as held:
        held.writestr("train.features.npy", header.getvalue())
    with pytest.raises(DataError, match=r"f\.npz: not a readable file of features"):
        load_dataset(f"features:{tmp_path}/f.npz")


def test_the_documents_example_makes_a_file_that_is_read(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "features.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/features.md", "exec"), {})
    found = load_dataset(f"features:{tmp_path}/slides.safetensors")
    assert found.classes == ("healthy", "benign", "in situ", "invasive")
    assert (len(found.train), len(found.test), found.width) == (160, 40, 16)


def test_a_column_of_labels_is_no_label_that_samples_have_or_lack_unless_it_has_a_name(tmp_path):
    held = {k: (a > 0).astype(int)[:, None] if k.endswith("labels") else a for k, a in arrays().items()}
    np.savez(tmp_path / "f.npz", **held)
    with pytest.raises(DataError, match=r"train.labels is \(30, 1\): a class a sample is \(30,\)"):
        load_dataset(f"features:{tmp_path}/f.npz")
    np.savez(tmp_path / "f.npz", **held, classes=np.array(["sick"]))
    assert load_dataset(f"features:{tmp_path}/f.npz").classes == ("sick",)


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"no such format", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_named(ending, content, tmp_path):
    (tmp_path / f"f.{ending}").write_bytes(content)
    with pytest.raises(DataError, match=rf"f\.{ending}: not a readable file of features"):
        load_dataset(f"features:{tmp_path}/f.{ending}")


def test_an_array_of_objects_is_not_unpickled(tmp_path):
    np.savez(tmp_path / "f.npz", **{**arrays(), "classes": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(DataError, match="not a readable file of features"):
        load_dataset(f"features:{tmp_path}/f.npz")


def test_a_file_of_another_kind_and_none_are_named(tmp_path):
    with pytest.raises(DataError, match=r"ends in \.safetensors or \.npz"):
        load_dataset(f"features:{tmp_path}/f.csv")
    with pytest.raises(DataError, match="there is no such file"):
        load_dataset(f"features:{tmp_path}/f.npz")


def test_peers_have_files_of_their_own_of_which_some_lack_classes_or_test_samples(tmp_path):
    train = {name: array for name, array in arrays().items() if name.startswith("train.")}
    some = LABELS != 1
    write_features(tmp_path / "0.npz")
    write_features(tmp_path / "1.npz", {name: array[some] for name, array in train.items()})
    sites = load_sites(f"features:{tmp_path}/{{peer}}.npz", [0, 1])
    assert sites.dataset.width == WIDTH
    np.testing.assert_array_equal(sites.dataset.train.vectors[sites.train[1]], ROWS[some])
    assert len(sites.test[1]) == 0
    # Without names nobody knows that label 0 is the same thing.
    write_features(tmp_path / "1.npz", classes=None)
    with pytest.raises(DataError, match=r"peer 1: .*1\.npz: it does not name the classes"):
        load_sites(f"features:{tmp_path}/{{peer}}.npz", [0, 1])
    write_features(tmp_path / "1.npz", classes=("dog", "cat", "fox"))
    with pytest.raises(DataError, match="the classes differ"):
        load_sites(f"features:{tmp_path}/{{peer}}.npz", [0, 1])
    narrow = {name: array[:, :4] if array.ndim == 2 else array for name, array in arrays().items()}
    write_features(tmp_path / "1.npz", narrow)
    with pytest.raises(DataError, match=r"have 6 numbers each, those of .* 4: one model"):
        load_sites(f"features:{tmp_path}/{{peer}}.npz", [0, 1])


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "glyph_vit_8"}, "give model = none, and tune = head, mlp:WIDTH"),
        ({"tune": "last-block"}, "give model = none, and tune = head, mlp:WIDTH"),
        ({"tune": "lora:2"}, "give model = none, and tune = head, mlp:WIDTH"),
        ({"tune": "mlp:x"}, "give model = none, and tune = head, mlp:WIDTH"),
        ({"tune": "mlp"}, "give model = none, and tune = head, mlp:WIDTH"),
        ({"image_size": 32}, "image-size = 32 with dataset = .*: these keys are for images"),
        ({"augment": "basic", "stream": True}, "stream = True, augment = 'basic' with"),
        ({"head": "text"}, "needs text-tower, the name of a model of open_clip"),
        ({"text_embeddings": "/t.npz"}, "only head = text reads texts"),
        ({"head": "text", "text_embeddings": "/t.npz", "tune": "mlp:4"}, "the weights of one layer"),
    ],
)
def test_settings_that_do_not_go_with_features_are_named_with_their_remedy(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        of_features(tmp_path / "f.npz", **settings).check_data()


@pytest.mark.parametrize("settings", [{"model": "none"}, {"tune": "mlp:4"}])
def test_settings_of_features_are_refused_for_images(settings):
    with pytest.raises(ConfigError, match=r"are for features: give dataset = features:/path\.npz"):
        LearningConfig(**settings).check_data()


def test_a_model_is_not_cut_by_a_tune_of_features():
    with pytest.raises(ConfigError, match="for features that were made elsewhere"):
        split_model(torch.nn.Linear(2, 2), "mlp:4")


# Heads


def test_a_linear_heads_gradient_is_that_of_softmax_regression(tmp_path):
    file = write_features(tmp_path / "f.npz")
    problem = Workload(of_features(file, batch_size=30), 1)
    theta = problem.theta0 + np.linspace(-0.5, 0.5, problem.theta0.size, dtype=np.float32)
    assert theta.size == 3 * WIDTH + 3
    weight, bias = theta[: 3 * WIDTH].reshape(3, WIDTH).astype(np.float64), theta[3 * WIDTH :]
    logits = ROWS @ weight.T + bias
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    gap = (shares - np.eye(3)[LABELS]) / len(ROWS)
    found = problem.objectives([0])[0].gradient(theta)
    np.testing.assert_allclose(found[: 3 * WIDTH].reshape(3, WIDTH), gap.T @ ROWS, atol=1e-6)
    np.testing.assert_allclose(found[3 * WIDTH :], gap.sum(axis=0), atol=1e-6)


def test_a_text_head_begins_with_what_the_embeddings_know(tmp_path):
    file, text = write_features(tmp_path / "f.npz"), write_text(tmp_path / "t.npz", scale=20.0)
    problem = Workload(of_features(file, head="text", text_embeddings=str(text)), 1)
    rows = centres() / np.linalg.norm(centres(), axis=1, keepdims=True)
    np.testing.assert_allclose(problem.theta0.reshape(3, WIDTH), rows, atol=1e-6)
    tests = arrays()["test.features"].astype(np.float64)
    logits = 20.0 * (tests / np.linalg.norm(tests, axis=1, keepdims=True)) @ rows.T
    right = (logits.argmax(axis=1) == arrays()["test.labels"]).mean()
    loss = -(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    score = problem.objectives([0])[0].evaluate(problem.theta0)
    assert score.accuracy == pytest.approx(right)
    assert score.loss == pytest.approx(loss[np.arange(len(tests)), arrays()["test.labels"]].mean(), rel=1e-5)
    assert set(problem.named_tail(problem.theta0)) == {"head.weight"}


def test_a_text_heads_gradient_is_the_slope_of_its_loss(tmp_path):
    file, text = write_features(tmp_path / "f.npz"), write_text(tmp_path / "t.npz")
    problem = Workload(of_features(file, head="text", text_embeddings=str(text), batch_size=30), 1)
    theta = problem.theta0 * np.linspace(0.5, 2.0, problem.theta0.size, dtype=np.float32)

    def loss(at):
        weight = at.reshape(3, WIDTH)
        cosines = (ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)) @ (
            weight / np.linalg.norm(weight, axis=1, keepdims=True)
        ).T
        logits = 100.0 * cosines
        top = logits.max(axis=1, keepdims=True)
        return (np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0] - logits[range(30), LABELS]).mean()

    at, step = theta.astype(np.float64), 1e-6
    slopes = [(loss(at + step * e) - loss(at - step * e)) / (2 * step) for e in np.eye(theta.size)]
    np.testing.assert_allclose(problem.objectives([0])[0].gradient(theta), slopes, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e30])
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_row_without_a_direction_is_refused_by_a_text_head(part, length, tmp_path):
    held = arrays()
    held[f"{part}.features"][7] *= np.float32(length)
    text = write_text(tmp_path / "t.npz")
    file = write_features(tmp_path / "f.npz", held)
    settings = of_features(file, head="text", text_embeddings=str(text))
    with pytest.raises(DataError, match=r"row 7 has length .* and no direction"):
        Workload(settings, 1).objectives([0])
    Workload(of_features(file), 1).objectives([0])  # of which a linear head makes what it is


@pytest.mark.parametrize("tune", ["head", "mlp:5"])
def test_a_seed_decides_the_first_head(tune, tmp_path):
    file = write_features(tmp_path / "f.npz")
    heads = [Workload(of_features(file, tune=tune, seed=seed), 1) for seed in (0, 0, 1)]
    assert heads[0].theta0.size == (3 * WIDTH + 3 if tune == "head" else 5 * WIDTH + 5 + 3 * 5 + 3)
    assert heads[0].model_digest == heads[1].model_digest != heads[2].model_digest


@pytest.mark.parametrize("text", [False, True])
def test_whole_models_of_two_thetas_are_two_and_leave_the_first_head_as_it_was(text, tmp_path):
    start = {"head": "text", "text_embeddings": str(write_text(tmp_path / "t.npz"))} if text else {}
    problem = Workload(of_features(write_features(tmp_path / "f.npz"), **start), 1)
    theta, before = problem.theta0.copy(), weights_digest(problem.model)
    one, other = problem.whole_model(theta), problem.whole_model(theta + np.float32(1))
    assert torch.equal(one.head.weight.flatten(), torch.from_numpy(theta[: 3 * WIDTH]))
    assert torch.equal(other.head.weight, one.head.weight + 1)
    assert weights_digest(problem.model) == before
    np.testing.assert_array_equal(tail_vector(problem.tail), theta)


@pytest.mark.parametrize("tune", ["head", "mlp:5"])
def test_private_gradients_of_a_head_are_clipped_one_sample_at_a_time(tune, tmp_path):
    file = write_features(tmp_path / "f.npz")
    problem = Workload(of_features(file, tune=tune, dp_clip=0.01, batch_size=8), 1)
    size = np.linalg.norm(problem.objectives([0])[0].gradient(problem.theta0))
    assert 0 < size <= 0.01 * 30 / 8


# Text embeddings


def test_embeddings_are_found_by_name_whatever_their_order_and_number(tmp_path):
    file = write_text(tmp_path / "t.safetensors", names=("horse", *reversed(NAMES)))
    rows, scale, _ = read_text_embeddings(str(file), NAMES, WIDTH)
    given = np.concatenate([np.ones((1, WIDTH)), centres()[::-1]])[[3, 2, 1]]
    np.testing.assert_allclose(rows, given / np.linalg.norm(given, axis=1, keepdims=True), atol=1e-6)
    assert scale == 100.0


@pytest.mark.parametrize(
    ("change", "classes", "width", "message"),
    [
        ({}, ("dog", "kat"), WIDTH, "no embedding of the classes kat; did you mean 'cat'"),
        ({}, NAMES, 5, "its embeddings have 6 numbers each, the features 5: another model's tower"),
        ({"rows": np.zeros((3, WIDTH))}, NAMES, WIDTH, "the embeddings of dog, cat, 狐 are not finite, or 0"),
        ({"rows": np.full((3, WIDTH), np.nan)}, NAMES, WIDTH, "are not finite, or 0"),
        ({"rows": np.ones((2, WIDTH))}, NAMES, WIDTH, r"embeddings is \(2, 6\) of float64 for 3 names"),
        ({"scale": 1e300}, NAMES, WIDTH, "logit-scale = 1e.300: must be a positive number of float32"),
        ({"scale": -1.0}, NAMES, WIDTH, "logit-scale = -1.0: must be a positive number"),
    ],
)
def test_embeddings_that_do_not_fit_are_named(change, classes, width, message, tmp_path):
    file = write_text(tmp_path / "t.npz", **change)
    with pytest.raises(DataError, match=message) as caught:
        read_text_embeddings(str(file), classes, width)
    assert str(file) in str(caught.value)


def test_the_scale_of_a_safetensors_file_may_be_a_number_of_its_own(tmp_path):
    file = tmp_path / "t.safetensors"
    save_file(
        {"embeddings": centres().astype(np.float32), "logit-scale": np.array([50.0], np.float32)},
        file,
        {"names": json.dumps(NAMES)},
    )
    assert read_text_embeddings(str(file), NAMES, WIDTH).scale == 50.0


@pytest.mark.parametrize("place", ["array", "metadata"])
def test_a_scale_by_the_name_of_clips_logarithm_is_refused(place, tmp_path):
    file = tmp_path / "t.safetensors"
    number, told = {"logit_scale": np.array([4.6])}, {"logit_scale": "4.6"}
    save_file(
        {"embeddings": centres(), **(number if place == "array" else {})},
        file,
        {"names": json.dumps(NAMES), **(told if place == "metadata" else {})},
    )
    with pytest.raises(DataError, match=r"logit_scale, which is a logarithm .* as logit-scale"):
        read_text_embeddings(str(file), NAMES, WIDTH)


def test_a_scale_that_looks_like_the_logarithm_is_told_of(tmp_path, caplog):
    read_text_embeddings(str(write_text(tmp_path / "t.npz", scale=4.6052)), NAMES, WIDTH)
    assert "logit-scale = 4.6052, where CLIP's models have about 100" in caplog.text


def test_a_name_that_differs_unseen_is_told_of(tmp_path):
    file = write_text(tmp_path / "t.npz")
    with pytest.raises(
        DataError, match="no embedding of the classes Dog; it differs from 'dog' only in case"
    ):
        read_text_embeddings(str(file), ("Dog",), WIDTH)


def test_a_file_of_embeddings_is_looked_for_and_read_with_care(tmp_path):
    with pytest.raises(ConfigError, match="must be the absolute path"):
        read_text_embeddings("t.npz", NAMES, WIDTH)
    with pytest.raises(DataError, match="there is no such file"):
        read_text_embeddings(f"{tmp_path}/t.npz", NAMES, WIDTH)
    (tmp_path / "t.npz").write_bytes(b"no zip")
    with pytest.raises(DataError, match="not a readable file of text embeddings"):
        read_text_embeddings(f"{tmp_path}/t.npz", NAMES, WIDTH)
