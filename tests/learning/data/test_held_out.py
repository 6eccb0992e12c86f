"""Training images that are held out in place of the test images (``validation``)."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.held_out import held_out, held_out_by_each
from p2pft_flower.learning.data.holdings import Holdings
from p2pft_flower.learning.data.splits import Dataset, Split
from p2pft_flower.learning.scoring import answers_of
from p2pft_flower.learning.tails import load_tail
from p2pft_flower.learning.workload import Workload
from p2pft_flower.report.results import read_results
from tests.flower.engine import run_app


def of_vectors(counts):
    """A dataset whose vectors are their own positions, with ``counts`` training samples a class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    train = Split.of_vectors(np.arange(len(labels), dtype=np.float32)[:, None], labels)
    test = Split.of_vectors(-np.ones((len(counts), 1), np.float32), np.arange(len(counts)))
    return Dataset("made up", tuple(f"class {c}" for c in range(len(counts))), train, test)


def test_a_share_of_each_class_takes_the_place_of_the_test_samples_and_is_not_trained_on():
    data = of_vectors([10, 20, 5])
    found = held_out(data, 0.2, seed=3)
    assert np.bincount(found.test.labels).tolist() == [2, 4, 1]
    train, scored = (split.vectors[:, 0].astype(int) for split in (found.train, found.test))
    assert sorted([*train, *scored]) == list(range(35))
    assert (data.train.labels[train] == found.train.labels).all()
    assert (data.train.labels[scored] == found.test.labels).all()


def test_the_draw_is_the_seeds():
    data = of_vectors([30, 30])
    first, again, other = (held_out(data, 0.5, seed).test.vectors for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize(("share", "scored"), [(0.01, [1, 1]), (0.99, [3, 1])])
def test_each_class_is_scored_and_trained_on_however_small_the_share_or_the_rest(share, scored):
    found = held_out(of_vectors([4, 2]), share, seed=0)
    assert np.bincount(found.test.labels).tolist() == scored
    assert set(found.train.labels) == {0, 1}


def test_a_class_of_one_sample_keeps_it_and_is_not_scored():
    found = held_out(of_vectors([1, 4]), 0.5, seed=0)
    assert set(found.train.labels) == {0, 1}
    assert set(found.test.labels) == {1}


def test_classes_of_one_sample_alone_cannot_be_validated():
    with pytest.raises(DataError, match="no class of 'made up' has two training images"):
        held_out(of_vectors([1, 1]), 0.2, seed=0)


def test_images_keep_their_pictures_contents_and_files(tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(6)]
    for level, file in enumerate(files):
        Image.new("L", (2, 2), level).save(file)
    whole = Split.of_files(files, np.array([0, 0, 0, 1, 1, 1]))
    some = whole.at(np.array([4, 1]))
    assert some.labels.tolist() == [1, 0]
    assert [some.picture(i).getpixel((0, 0)) for i in range(2)] == [4, 1]
    assert [some.digest(i) for i in range(2)] == [whole.digest(i) for i in (4, 1)]
    assert [some.name(i, "") for i in range(2)] == [str(files[4]), str(files[1])]
    assert some.look(0) == whole.look(4)


def test_peers_share_what_is_left_and_are_scored_on_what_is_held_out():
    plain, held = (Holdings(LearningConfig(shots=3, validation=v), 4) for v in (0.0, 0.25))
    assert len(plain.test_positions) == 360
    assert len(held.test_positions) == 359  # a quarter of the 1,437 training images, class by class
    assert [len(share) for share in held.shares] == [len(share) for share in plain.shares]
    assert held.test_digest(0) != plain.test_digest(0)
    assert len(held.dataset.train) == 1437 - 359
    scored = {held.dataset.test.digest(i) for i in range(359)}
    assert not scored & {held.dataset.train.digest(int(i)) for share in held.shares for i in share}


def test_a_tail_of_a_run_on_held_out_images_is_scored_on_the_same_images_again(tmp_path):
    run_app(tmp_path, nodes=1, tune="head", validation=0.2, shots=4, iterations=3, learning_rate=0.1, seed=2)
    (first, *_) = read_results(tmp_path)["peers"]
    tail = load_tail(tmp_path / first["tail"])
    assert tail.same_images
    assert tail.workload.score(tail.theta).accuracy == first["accuracy"]


# --- of each peer's own images, to choose the best θ by ---


def of_patients(patients, labels, column="patient_id"):
    """A dataset of grey images of which a column tells the patient; the test image is of another one."""
    labels, picture = np.array(labels), Image.new("L", (4, 4))
    told = {column: np.array(patients, dtype=object)}
    train = Split(labels, lambda _: picture, columns=told)
    test = Split(np.array([0]), lambda _: picture, columns={column: np.array(["other"], dtype=object)})
    return Dataset("made up", tuple(f"class {c}" for c in range(max(labels) + 1)), train, test)


@pytest.mark.parametrize("column", ["patient", "Subject_ID", "participant no"])
def test_all_images_of_a_patient_are_on_one_side_and_the_share_is_one_of_patients(column):
    patients = [f"P{k // 3}" for k in range(24)]  # eight, of three images each
    data = of_patients(patients, [k // 12 for k in range(24)], column)
    for seed in range(5):
        found = held_out(data, 0.25, seed)
        trained, scored = (set(split.columns[column]) for split in (found.train, found.test))
        assert not trained & scored
        assert np.bincount(found.test.labels).tolist() == [3, 3]  # of each class one patient of four


def test_images_whose_patient_is_not_told_are_drawn_one_by_one():
    patients = ["P0"] * 6 + ["", "nan", "NA", "", "", ""]
    found = held_out(of_patients(patients, [0] * 12), 0.5, seed=0)
    trained, scored = (list(split.columns["patient_id"]) for split in (found.train, found.test))
    assert scored.count("P0") in (0, 6)
    assert set(trained) - {"P0"}
    assert set(scored) - {"P0"}
    alone = of_patients([f"P{k}" for k in range(12)], [0] * 12)  # each has one image: as without a column
    without = of_patients([f"P{k}" for k in range(12)], [0] * 12, "remark")
    left = [held_out(data, 0.5, seed=3).train.columns for data in (alone, without)]
    assert list(left[0]["patient_id"]) == list(left[1]["remark"])


def test_a_class_of_one_patient_is_not_scored_and_one_in_all_is_refused():
    found = held_out(of_patients(["P0", "P0", "P1", "P1", "P2"], [0, 0, 1, 1, 1]), 0.5, seed=0)
    assert set(found.test.labels) == {1}
    with pytest.raises(
        DataError, match=r"no class of 'made up' has two .*all images of one patient stay tog"
    ):
        held_out(of_patients(["P0"] * 4, [0] * 4), 0.5, seed=0)


@pytest.mark.parametrize(("other", "value"), [("subject", ""), ("patient_name", "anonymous")])
def test_of_two_columns_of_patients_the_one_that_tells_more_counts_and_names_last(other, value):
    data = of_patients([f"P{k // 3}" for k in range(24)], [k // 12 for k in range(24)])
    columns = {other: np.array([value] * 24, dtype=object), **data.train.columns}
    found = held_out(replace(data, train=replace(data.train, columns=columns)), 0.25, seed=0)
    trained, scored = (set(split.columns["patient_id"]) for split in (found.train, found.test))
    assert not trained & scored


@pytest.mark.parametrize("patient", ["", "Q"])
def test_frames_of_a_file_stay_together_where_the_patient_of_some_is_another_or_not_told(patient):
    told = [patient and f"{patient}{k}" if k % 4 == 3 else f"P{k // 8}" for k in range(48)]
    data = of_patients(told, [k % 2 for k in range(48)])
    files = [Path(f"/scans/{k // 4}.dcm") for k in range(48)]
    frames = np.arange(48) % 4 + 1
    data = replace(data, train=replace(data.train, files=files, frames=frames))
    for seed in range(5):
        found = held_out(data, 0.3, seed)
        assert not set(found.train.files) & set(found.test.files)
        trained, scored = (set(split.columns["patient_id"]) - {""} for split in (found.train, found.test))
        assert not trained & scored


BEST = {"keep": "best:loss", "validation": 0.25}


def write_rows(folder, patients):
    """A table of grey images, two of each patient named, and a test image."""
    folder.mkdir(parents=True)
    rows = ["image,label,split,patient"]
    for k, who in enumerate([*patients, "tested"]):
        for label in "ab":
            Image.new("L", (4, 4), 10 * k + 5 * (label == "b")).save(folder / f"{k}{label}.png")
            rows.append(f"{k}{label}.png,{label},{'test' if who == 'tested' else 'train'},{who}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


def test_no_peer_learns_images_of_patients_by_whom_it_chooses_its_best_theta(tmp_path, caplog):
    """Two sites may call two patients alike."""
    for peer in range(2):
        write_rows(tmp_path / f"site-{peer}", [f"P{k // 2}" for k in range(12)])
    config = LearningConfig(dataset=f"table:{tmp_path}/site-{{peer}}/labels.csv", **BEST)
    together, alone = Holdings(config, 2), Holdings(config, 2, peers=[1])
    patients = together.dataset.train.columns["patient"]
    for peer in range(2):
        scored, trained = set(patients[together.validations[peer]]), set(patients[together.shares[peer]])
        assert scored
        assert trained
        assert not scored & trained
    files = [[h.dataset.train.files[int(k)] for k in h.validations[1]] for h in (together, alone)]
    assert files[0] == files[1]
    assert "PATIENTS" not in caplog.text
    assert "patients whose images are held out" not in caplog.text


def test_a_patient_whose_images_two_peers_have_is_told_where_one_chooses_by_them(tmp_path, caplog):
    write_rows(tmp_path / "all", [f"P{k // 2}" for k in range(12)])
    config = LearningConfig(dataset=f"table:{tmp_path}/all/labels.csv", partition="classes:a,b", **BEST)
    assert all(map(len, Holdings(config, 2).validations))
    assert "another peer has images, too, and learns them" in caplog.text


def test_the_other_peers_images_of_a_patient_are_not_told_where_they_are_held_out_too(caplog):
    patients = np.array([f"P{k}" for k in (0, 0, 1, 1, 0, 0, 1, 1)], dtype=object)
    data = of_patients(patients, [0] * 8)
    dealt = [np.arange(4), np.arange(4, 8)]
    told = {}
    for seed in range(10):
        caplog.clear()
        held = held_out_by_each(dealt, data, 0.5, seed, range(2))
        one, other = (set(patients[own]) for own in held)
        told[one == other] = "another peer has images" in caplog.text
    assert told == {True: False, False: True}


@pytest.mark.parametrize("keys", [BEST, {"validation": 0.25}])
def test_images_are_drawn_where_each_peer_is_a_patient(keys, tmp_path, caplog):
    write_rows(tmp_path / "all", [f"P{k // 4}" for k in range(8)])
    dataset = f"table:{tmp_path}/all/labels.csv"
    holdings = Holdings(LearningConfig(dataset=dataset, partition="by:Patient", **keys), 2)
    assert all(map(len, holdings.shares))
    if keys is BEST:
        assert [len(held) for held in holdings.validations] == [2, 2]
    else:
        assert len(holdings.test_positions) == 4
    assert "another peer has images" not in caplog.text


def test_a_class_of_which_the_peers_hold_all_images_out_is_told(caplog):
    """All images of class 0 are of P0, who counts for class 1, of which there are fewer images."""
    data = of_patients(["P0"] * 6 + ["P1", "P2", "P2"], [0] * 5 + [1] * 4)
    lost = 0
    for seed in range(8):
        caplog.clear()
        held = held_out_by_each([np.arange(9)], data, 0.3, seed, [0])[0]
        assert ("all training images here with class 0" in caplog.text) is (0 in held)
        lost += 0 in held
    assert 0 < lost < 8


def test_each_peer_holds_out_a_share_of_each_class_of_its_own_images_and_does_not_train_on_them():
    plain, held = (Holdings(LearningConfig(shots=12, partition="iid", **keys), 4) for keys in ({}, BEST))
    labels = plain.dataset.train.labels
    for dealt, mine, scored in zip(plain.shares, held.shares, held.validations, strict=True):
        assert sorted([*mine, *scored]) == sorted(dealt)
        for label in range(10):
            of_class, out = (labels[dealt] == label).sum(), (labels[scored] == label).sum()
            assert out == (0 if of_class < 2 else max(1, round(0.25 * of_class)))
    assert held.test_digest(0) == plain.test_digest(0)  # results are of all test images
    assert held.data(0).images == len(held.shares[0])  # what epochs, weights and privacy count


def test_a_site_draws_its_own_alone_as_all_draw_in_one_process(tmp_path):
    for peer in range(2):
        for split, number in (("train", 8), ("test", 2)):
            for k in range(2 * number):
                file = tmp_path / f"site-{peer}" / split / "ab"[k % 2] / f"{k}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (4, 4), 40 * peer + k).save(file)
    config = LearningConfig(dataset=f"folder:{tmp_path}/site-{{peer}}", **BEST)
    together, alone = Holdings(config, 2), Holdings(config, 2, peers=[1])

    def names(holdings, positions):
        return [holdings.dataset.train.files[int(k)] for k in positions]

    assert names(together, together.validations[1]) == names(alone, alone.validations[1])
    assert names(together, together.shares[1]) == names(alone, alone.shares[1])
    assert [len(v) for v in together.validations] == [4, 4]
    assert len(alone.validations[0]) == 0  # another site's folder is not read
    assert len(alone.test_positions) == 4


def test_peers_without_two_images_of_a_class_do_not_choose_and_not_all_may_be_such(caplog):
    with pytest.raises(DataError, match=r"validation = 0.25: no peer has two training images of a class"):
        Holdings(LearningConfig(shots=1, **BEST), 4).validations  # noqa: B018
    config = LearningConfig(shots=2, partition="classes:0,1-9", **BEST)
    assert [len(v) for v in Holdings(config, 2).validations] == [1, 9]
    found = Holdings(LearningConfig(shots=2, partition="iid", **BEST), 6).validations
    empty = [p for p, v in enumerate(found) if not len(v)]
    assert 0 < len(empty) < 6
    assert [r.getMessage() for r in caplog.records if "does not choose" in r.getMessage()] == [
        f"peer {p} has no two images of a class to hold one out: it does not choose" for p in empty
    ]


def test_pooled_images_are_scored_by_the_mean_of_the_peers_own_scores():
    config = LearningConfig(shots=4, tune="head", **BEST)
    theta = Workload(config, 4).theta0
    own = [o.validate(theta) for o in Workload(config, 4).objectives(range(4)).values()]
    (pooled,) = Workload(config, 4, pooled="uniform").objectives([0]).values()
    assert pooled.validate(theta).loss == pytest.approx(np.mean([s.loss for s in own]))
    assert pooled.validate(theta).balanced_accuracy == pytest.approx(
        np.mean([s.balanced_accuracy for s in own])
    )


def test_validation_scores_are_those_of_scikit_learn_on_the_images_that_are_held_out():
    from sklearn.metrics import balanced_accuracy_score

    workload = Workload(LearningConfig(shots=12, tune="head", partition="iid", **BEST), 2)
    theta = np.random.default_rng(0).normal(size=workload.theta0.size).astype(np.float32)
    objective = workload.objectives([0])[0]
    held, split = workload.holdings.validations[0], workload.holdings.pictures.train
    given = answers_of(workload.tail, theta, workload.network.features(split, held, "held out"))
    assert given.labels.tolist() == split.labels[held].tolist()
    scores = objective.validate(theta)
    assert scores.loss == pytest.approx(given.losses.mean().item())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that are answered and not there
        expected = balanced_accuracy_score(given.labels, given.predicted)
    assert scores.balanced_accuracy == pytest.approx(expected)
    gradients = [objective.gradient(theta), workload.objectives([0])[0].gradient(theta)]
    assert gradients[0].tobytes() == gradients[1].tobytes()  # scoring changes no gradient


def test_patients_on_both_sides_at_one_site_are_told_once_with_the_peer(tmp_path, caplog):
    for peer in range(2):
        write_rows(tmp_path / f"site-{peer}", ["P0", "P1"])
    file = tmp_path / "site-1" / "labels.csv"
    file.write_text(file.read_text().replace("test,tested", "test,P0"))
    Holdings(LearningConfig(dataset=f"table:{tmp_path}/site-{{peer}}/labels.csv"), 2).data(0)
    told = [r.getMessage() for r in caplog.records if "TEST PATIENTS HAVE TRAINING IMAGES" in r.getMessage()]
    assert [message.split(":")[0] for message in told] == ["peer 1"]
