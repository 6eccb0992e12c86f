"""``p2pft evaluate`` and results.json tell scores by class; scikit-learn confirms them on predictions.csv."""

from __future__ import annotations

import csv
import io
import json
import stat
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from p2pft_flower import scores as room
from p2pft_flower.flower import client
from p2pft_flower.report.collected import collect_results, find_peers
from p2pft_flower.report.results import read_results
from tests.cli.test_commands import invoke
from tests.features import NAMES, write_features
from tests.flower.engine import run_app
from tests.quadratics import QUADRATICS

SCRIPT = """
import csv, json, sys
import numpy as np
from sklearn import metrics

header, *rows = csv.reader(open(sys.argv[1], encoding="utf-8", newline=""))
classes = [name[2:-1] for name in header[3:]]
truth, predicted = (np.array([classes.index(row[k]) for row in rows]) for k in (1, 2))
likely = np.array([row[3:] for row in rows], dtype=float)
told = {
    "accuracy": metrics.accuracy_score(truth, predicted),
    "loss": metrics.log_loss(truth, likely, labels=range(len(classes))),
    "balanced_accuracy": metrics.balanced_accuracy_score(truth, predicted),
    "macro_f1": metrics.f1_score(truth, predicted, average="macro"),
    "confusion": metrics.confusion_matrix(truth, predicted).tolist(),
    "classes": {},
}
confidence, bins = likely.max(1), np.ceil(15 * likely.max(1)).astype(int)
told["calibration_error"] = sum(
    (bins == b).mean() * abs((truth == predicted)[bins == b].mean() - confidence[bins == b].mean())
    for b in set(bins)
)
for k, name in enumerate(classes):
    own, said = truth == k, predicted == k
    told["classes"][name] = {
        "support": int(own.sum()),
        "answers": int(said.sum()),
        "recall": metrics.recall_score(own, said),
        "specificity": metrics.recall_score(~own, ~said),
        "precision": metrics.precision_score(own, said),
        "auroc": metrics.roc_auc_score(own, likely[:, k]),
        "average_precision": metrics.average_precision_score(own, likely[:, k]),
    }
print(json.dumps(told))
"""


def by_scikit_learn(file):
    """Return what scikit-learn, called by a script of its own, makes of a table of answers."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(file)], capture_output=True, text=True, check=True, timeout=240
    )
    return json.loads(done.stdout)


def evaluated(*words):
    result = invoke("evaluate", *map(str, words), "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def table_of(file):
    return list(csv.reader(io.StringIO(file.read_bytes().decode(), newline="")))


@pytest.fixture(autouse=True)
def _fresh():
    """As in a process of its own."""
    client.workload.cache_clear()
    client.holdings.cache_clear()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    run_app(folder, iterations=20, predictions=True)
    return folder


def test_scikit_learn_confirms_each_figure_on_predictions_csv_to_1e9(run):
    told, printed = evaluated(run), invoke("evaluate", str(run)).stdout
    results = read_results(run)["peers"]
    for peer in (0, 3):
        confirmed = by_scikit_learn(run / "peers" / f"peer-{peer}.predictions.csv")
        found = told[peer]["class_scores"]
        assert results[peer]["class_scores"] == found
        assert found["confusion"] == confirmed["confusion"]
        assert told[peer]["accuracy"] == pytest.approx(confirmed["accuracy"], abs=1e-9)
        assert told[peer]["loss"] == pytest.approx(confirmed["loss"], abs=1e-6)  # of float32, as in training
        for name in ("balanced_accuracy", "macro_f1", "calibration_error"):
            assert found[name] == pytest.approx(confirmed[name], abs=1e-9), name
        section = printed.split(f"peer {peer}, each class")[1].split("confusion")[0]
        rows = {line.split()[0]: line.split()[1:] for line in section.splitlines()[2:] if line.split()}
        for k, (name, numbers) in enumerate(confirmed["classes"].items()):
            assert {key: found["classes"][key][k] for key in numbers} == pytest.approx(numbers, abs=1e-9)
            columns = ("support", "recall", "specificity", "precision", "auroc", "average_precision")
            shown = [numbers[key] if key == "support" else f"{numbers[key]:.4f}" for key in columns]
            assert rows[name] == [str(value) for value in [*shown, numbers["answers"]]]


def test_evaluate_writes_the_table_of_answers_that_the_run_wrote(run, tmp_path):
    told = evaluated(run, "--predictions", tmp_path / "tables")
    for peer, score in enumerate(told):
        file = tmp_path / "tables" / f"peer-{peer}.predictions.csv"
        assert score["predictions"] == str(file)
        assert file.read_bytes() == (run / "peers" / file.name).read_bytes()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_bytes().startswith(b"image,truth,predicted,p(0),p(1),")
    assert file.read_bytes().count(b"\r\n") == file.read_bytes().count(b"\n") == 361
    assert [row[0] for row in table_of(file)[1:4]] == ["0", "1", "2"]


def test_without_the_key_a_run_writes_no_table_and_two_tails_of_a_peer_do_not_share_one(run, tmp_path):
    run_app(tmp_path / "run", iterations=1)
    assert not list((tmp_path / "run" / "peers").glob("*.csv"))
    result = invoke("evaluate", str(run), str(tmp_path / "run"), "--predictions", str(tmp_path / "tables"))
    assert result.exit_code == 2
    assert "are both of peer 0, and would write peer-0.predictions.csv" in result.stderr
    (tmp_path / "file").write_text("")
    result = invoke("evaluate", str(run), "--predictions", str(tmp_path / "file"))
    assert result.exit_code == 2
    assert "peer-0.predictions.csv: cannot be written" in result.stderr


def test_intervals_are_told_with_their_level_and_hold_the_scores(run):
    words = [run / "peers" / "peer-1.safetensors", "--ci", "--ci-level", "0.8"]
    (told,) = evaluated(*words)
    ends, scores = told["intervals"], told["class_scores"]
    assert (ends["level"], ends["resamples"]) == (0.8, 1000)
    assert ends["accuracy"][0] < told["accuracy"] < ends["accuracy"][1]
    assert ends["macro_f1"][0] < scores["macro_f1"] < ends["macro_f1"][1]
    for name in ("recall", "auroc"):
        for (low, high), value in zip(ends[name], scores["classes"][name], strict=True):
            assert low <= value <= high
    printed = invoke("evaluate", *map(str, words)).stdout
    assert "80 % intervals of 1000 drawings" in " ".join(printed.split())
    assert f"{ends['recall'][4][0]:.3f} to {ends['recall'][4][1]:.3f}" in printed
    assert evaluated(run / "peers" / "peer-1.safetensors")[0]["intervals"] is None
    refused = invoke("evaluate", str(run), "--ci", "--ci-level", "95")
    assert refused.exit_code == 2
    assert "--ci-level 95: must be between 0 and 1" in refused.stderr


def test_the_table_of_classes_can_be_left_out_and_is_of_many_tails(run, monkeypatch):
    short = invoke("evaluate", str(run), "--no-per-class").stdout
    assert "each class of the 4 tails: --per-class shows it, --json has it" in short
    assert "peer 3: macro F1" in short
    assert "recall" not in short
    monkeypatch.setattr("p2pft_flower.cli.evaluate.EACH_PEER", 3)
    assert invoke("evaluate", str(run), "--no-per-class").stdout == invoke("evaluate", str(run)).stdout
    assert invoke("evaluate", str(run), "--per-class").stdout.count("each class") == 4


def test_the_runs_table_tells_the_balanced_accuracy_and_the_lowest_recall(run):
    from p2pft_flower.report.tables import run_table

    results = read_results(run)
    lowest = min((p["class_scores"] for p in results["peers"]), key=lambda scores: scores["lowest_recall"])
    told = next(line for line in run_table(results).splitlines() if line.startswith("balanced accuracy"))
    assert f"mean {results['summary']['balanced_accuracy']['mean']:.4f}" in told
    assert f"lowest recall {lowest['lowest_recall']:.4f}: class {lowest['lowest_class']} (" in told
    assert f"({lowest['lowest_support']} test images)" in told


def test_journals_have_what_results_have(run):
    collected = json.loads(json.dumps(collect_results(find_peers([run]))))
    results = read_results(run)
    assert [p["class_scores"] for p in collected["peers"]] == [p["class_scores"] for p in results["peers"]]


def test_results_of_an_earlier_version_are_still_read(run, tmp_path):
    results = json.loads((run / "results.json").read_text())
    results["schema"] = "p2pft.results/1"
    for peer in results["peers"]:
        del peer["class_scores"]
    for key in ("balanced_accuracy", "macro_f1", "calibration_error"):
        del results["summary"][key]
    (tmp_path / "old" / "peers").mkdir(parents=True)
    (tmp_path / "old" / "results.json").write_text(json.dumps(results))
    for file in (run / "peers").glob("peer-*.safetensors"):
        (tmp_path / "old" / "peers" / file.name).symlink_to(file)
    assert invoke("report", str(tmp_path / "old"), "-o", str(tmp_path / "r.html")).exit_code == 0
    assert evaluated(tmp_path / "old")[0]["class_scores"] == evaluated(run)[0]["class_scores"]
    assert (
        json.loads(invoke("runs", "--folder", str(tmp_path), "--json").stdout)["runs"][0]["status"]
        == "completed"
    )
    from p2pft_flower.report.tables import run_table

    assert "balanced" not in run_table(read_results(tmp_path / "old"))


def test_a_run_of_more_classes_than_results_have_room_for_leaves_them_to_evaluate(monkeypatch, tmp_path):
    monkeypatch.setattr(room, "MOST_ROWS", 39)  # four peers with ten classes
    monkeypatch.setattr(room, "MOST_CELLS", 399)
    run_app(tmp_path, iterations=2)
    for told, score in zip(read_results(tmp_path)["peers"], evaluated(tmp_path), strict=True):
        assert (told["class_scores"]["classes"], told["class_scores"]["confusion"]) == (None, None)
        whole = score["class_scores"]
        assert told["class_scores"] == {**whole, "classes": None, "confusion": None}
        assert sum(whole["classes"]["support"]) == sum(map(sum, whole["confusion"])) == 360


@pytest.mark.parametrize("algorithm", ["fedavg", "centralized"])
def test_other_methods_have_the_same_scores_by_class(algorithm, tmp_path):
    run_app(tmp_path, algorithm=algorithm, iterations=12, predictions=True)
    told = read_results(tmp_path)["peers"]
    assert [p["class_scores"] for p in told] == [s["class_scores"] for s in evaluated(tmp_path)]
    tables = sorted(path.name for path in (tmp_path / "peers").glob("*.csv"))
    assert tables == [f"peer-{p['peer']}.predictions.csv" for p in told]


def test_features_have_scores_by_class_too(tmp_path):
    file = write_features(tmp_path / "f.safetensors")
    settings = {"model": "none", "tune": "head", "topology": "directed-ring:3", "partition": "classes:0,1,2"}
    run_app(tmp_path / "run", dataset=f"features:{file}", **settings, iterations=3, predictions=True)
    (score, *_) = evaluated(tmp_path / "run")
    assert score["class_scores"]["classes"]["names"] == list(NAMES)
    assert score["class_scores"]["classes"]["support"] == [20, 20, 20]
    header, *rows = table_of(tmp_path / "run" / "peers" / "peer-0.predictions.csv")
    assert header[3:] == [f"p({name})" for name in NAMES]
    assert len(rows) == 60


@pytest.mark.parametrize("algorithm", ["p2pft", "fedavg"])
def test_in_a_deployment_each_site_keeps_its_own_table_and_only_numbers_cross(algorithm, tmp_path):
    nodes = [
        {
            **{"peer-id": p, "peer-address": f"unix:{tmp_path}/{p}.sock", "insecure": True},
            "output-dir": str(tmp_path / f"out-{p}"),
        }
        for p in range(2)
    ]
    for p in range(2):
        write_features(tmp_path / f"site-{p}.npz")
    settings = {"model": "none", "tune": "head", "topology": "ring:2", "iterations": 2, "predictions": True}
    place = {"dataset": f"features:{tmp_path}/site-{{peer}}.npz", "slots": 2, "node_configs": nodes}
    engine = run_app(tmp_path / "office", algorithm=algorithm, **settings, **place)
    assert not list((tmp_path / "office").rglob("*.csv"))
    tables = [[file.name for file in (tmp_path / f"out-{p}").rglob("*.csv")] for p in range(2)]
    assert tables == [["peer-0.predictions.csv"], ["peer-1.predictions.csv"]]
    told = read_results(tmp_path / "office")["peers"]
    assert [p["class_scores"]["classes"]["support"] for p in told] == [[20, 20, 20]] * 2
    table = next((tmp_path / "out-1").rglob("*.csv"))
    probability = table_of(table)[1][3]
    assert len(probability) > 10
    assert not any(probability in text for text in engine.texts)


def test_a_problem_of_ones_own_has_none_and_refuses_to_be_asked(tmp_path):
    run_app(tmp_path, problem=QUADRATICS, topology="ring:2", iterations=2, predictions=True)
    assert [p["class_scores"] for p in read_results(tmp_path)["peers"]] == [None, None]
    assert read_results(tmp_path)["summary"]["balanced_accuracy"] is None
    assert evaluated(tmp_path)[0]["class_scores"] is None
    assert not list((tmp_path / "peers").glob("*.csv"))
    for words in (["--ci"], ["--predictions", str(tmp_path)]):
        result = invoke("evaluate", str(tmp_path), *words)
        assert result.exit_code == 2
        assert f"which has no classes: {words[0]} does not apply" in result.stderr


CLASSES = ('a, "b"', "cat", "dog")


def write_site(root, seed, tests):
    """Write a site's images of three classes, of which ``tests`` have a test image or two."""
    rng = np.random.default_rng(seed)
    for part in ("train", "test"):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for i in range(2 if part == "train" else tests[label]):
                grey = rng.integers(0, 90, (8, 8)) + 80 * label
                Image.fromarray(grey.astype(np.uint8)).save(root / part / name / f"{i}.png")


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    root = tmp_path_factory.mktemp("sites")
    for peer, tests in enumerate(((2, 1, 0), (1, 1, 2))):
        write_site(root / f"site-{peer}", peer, tests)
    graph = root / "graph.yaml"
    graph.write_text("peers: [north, south]\nundirected: true\nedges: [[north, south]]\n")
    settings = {"topology": str(graph), "iterations": 2, "batch_size": 4, "tune": "head", "predictions": True}
    run_app(root / "run", dataset=f"folder:{root}/site-{{peer}}", **settings)
    return root


def test_a_tail_is_scored_on_its_own_sites_test_images(sites):
    told, results = evaluated(sites / "run"), read_results(sites / "run")["peers"]
    assert [s["class_scores"] for s in told] == [p["class_scores"] for p in results]
    assert [s["class_scores"]["classes"]["support"] for s in told] == [[2, 1, 0], [1, 1, 2]]
    rows = told[0]["class_scores"]["classes"]
    assert [rows[key][2] for key in ("recall", "auroc", "average_precision")] == [None, None, None]
    assert rows["specificity"][2] is not None
    printed = invoke("evaluate", str(sites / "run" / "peers" / "peer-0.safetensors")).stdout
    row = next(line.split() for line in printed.splitlines() if line.strip().startswith("dog"))
    assert row[1:3] == ["0", "–"]
    header, *table = table_of(sites / "run" / "peers" / "peer-1.predictions.csv")
    assert header == ["image", "truth", "predicted", *(f"p({name})" for name in CLASSES)]
    assert [row[0] for row in table][:2] == [
        str(sites / "site-1" / "test" / name / "0.png") for name in CLASSES[:2]
    ]
    assert [row[1] for row in table] == [CLASSES[0], CLASSES[1], CLASSES[2], CLASSES[2]]


def test_peers_are_called_by_their_names(sites, run):
    assert [(s["peer"], s["name"]) for s in evaluated(sites / "run")] == [("0", "north"), ("1", "south")]
    printed = invoke("evaluate", str(sites / "run")).stdout
    for said in ("0 (north) ", "peer 1 (south): macro F1", "1 (south), each", "0 (north), confusion"):
        assert said in printed, said
    assert {s["name"] for s in evaluated(run)} == {None}


def test_a_long_name_is_not_cut_where_it_differs_from_another(sites, tmp_path):
    name, tail = f"{'hospital_' * 20}[north]", sites / "run" / "peers" / "peer-0.safetensors"
    with safe_open(tail, framework="numpy") as opened:
        metadata = opened.metadata() | {"peer-name": name}
    save_file(load_file(tail), copy := tmp_path / "peer-0.safetensors", metadata)
    printed = invoke("evaluate", str(copy), "--no-per-class").stdout
    cells = [line.split("│")[1].strip() for line in printed.splitlines() if line.startswith("│")]
    assert "".join(cells).replace(" ", "") == f"0({name})"


def test_a_tail_is_scored_on_the_images_of_another_folder(sites, tmp_path):
    tail = sites / "run" / "peers" / "peer-0.safetensors"
    other = f"folder:{sites}/site-1"
    (told,) = evaluated(tail, "--dataset", other, "--predictions", tmp_path)
    assert (told["dataset"], told["same_images"], told["images"]) == (other, False, 4)
    assert told["class_scores"]["classes"]["support"] == [1, 1, 2]
    _, *table = table_of(tmp_path / "peer-0.predictions.csv")
    assert all(row[0].startswith(str(sites / "site-1")) for row in table)
