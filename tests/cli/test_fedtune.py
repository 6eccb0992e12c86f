"""``p2pft reproduce fedtune``: which runs, which learning rates, what is kept, what is refused."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from p2pft_flower.cli import app
from p2pft_flower.cli.fedtune import _complete_words
from p2pft_flower.cli.fedtune_runs import MOST_RATES, choose_rate, ladder, step_of
from p2pft_flower.cli.reproducing import warnings_once
from p2pft_flower.host.exchange import DivergedError
from p2pft_flower.lab.trials import TrialOutcome
from p2pft_flower.report.fedtune_findings import group_of
from tests.commands import CliRunner
from tests.letters import write_letters

BEST_HELD_OUT, BEST_ON_TEST = 0.1, 0.003


class StandIn:
    """Takes the place of a run: notes what is asked for, and scores best at different rates."""

    def __init__(self):
        self.asked = []
        self.error = None
        self.at = ""

    def __call__(self, config, graph, workload):
        values = config.to_mapping()
        self.asked.append(values)
        if self.error is not None and values["algorithm"] == self.at:
            raise self.error
        best = BEST_HELD_OUT if values["validation"] else BEST_ON_TEST
        accuracy = 0.9 - 0.05 * abs(np.log10(values["learning-rate"] / best)) + 0.001 * values["seed"]
        return TrialOutcome(
            accuracy=[accuracy] * graph.n,
            own_accuracy=[0.95] * graph.n,
            curve=[[0, 0.1], [150, 0.88 * accuracy], [300, accuracy]],
            bytes_sent=1000,
            parameters=7,
            model_parameters=70,
            images=100,
            test_images=360,
            seconds=1.0,
        )

    @property
    def scored(self):
        """What was asked for and scored on test images."""
        return [v for v in self.asked if not v["validation"]]


@pytest.fixture
def trials(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setattr("p2pft_flower.lab.trials.run_trial", stand_in)
    return stand_in


SMALL = ("--vision-tunes", "head,bias:last-block", "--splits", "disjoint,iid", "--shots", "all,2")


def fedtune(out, *words):
    return CliRunner().invoke(app, ["reproduce", "fedtune", *words, "--out", str(out)])


def body(out):
    return json.loads((out / "fedtune.json").read_text())


def key(values):
    return tuple(values[k] for k in ("tune", "partition", "shots", "algorithm", "seed"))


def test_two_factors_vary_at_a_time_around_the_base_cell_with_every_seed(trials, tmp_path):
    done = fedtune(tmp_path, *SMALL, "--seeds", "0,7")
    assert done.exit_code == 0, done.stderr
    places = [("auto", 0), ("auto", 2), ("iid", 0)]  # and not ("iid", 2): that is two factors off
    cells = [("head", *p, m) for p in places for m in ("p2pft", "fedavg", "local", "centralized")]
    cells += [("bias:last-block", *p, "p2pft") for p in places]
    assert sorted(map(key, trials.scored)) == sorted((*cell, seed) for cell in cells for seed in (0, 7))
    (common,) = {tuple((k, v[k]) for k in ("dataset", "iterations", "momentum")) for v in trials.scored}
    assert common == (("dataset", "digits"), ("iterations", 300), ("momentum", 0.9))
    assert len(body(tmp_path)["cells"]) == len(cells)
    assert done.stdout.splitlines()[-2:] == [
        f"table: {tmp_path / 'fedtune.md'}",
        f"figure: {tmp_path / 'fedtune.png'}",
    ]
    assert (tmp_path / "fedtune.png").stat().st_size < 60_000


def test_each_way_split_and_method_has_the_rate_that_did_best_on_held_out_images(trials, tmp_path):
    done = fedtune(tmp_path, *SMALL, "--seeds", "0")
    assert {v["learning-rate"] for v in trials.scored} == {BEST_HELD_OUT}
    held_out = [v for v in trials.asked if v["validation"]]
    assert {(v["validation"], v["shots"], v["seed"], v["evaluate-every"]) for v in held_out} == {
        (0.2, 0, 0, 300)
    }
    rates = body(tmp_path)["rates"]
    assert len(rates) == len({tuple(r[k] for k in ("tune", "split", "method")) for r in rates}) == 10
    assert "learning rate of vision, head, disjoint, P2P-FT: 0.1" in done.stderr
    assert "vision, head, disjoint, P2P-FT: 0.1 of 0.003 82.4, 0.01 85.0, 0.03 87.4, 0.1 90.0" in " ".join(
        (tmp_path / "fedtune.md").read_text().split()
    )


def test_completed_runs_are_kept_and_the_same_command_goes_on(trials, tmp_path):
    trials.error, trials.at = KeyboardInterrupt(), "centralized"
    assert fedtune(tmp_path, *SMALL, "--seeds", "0").exit_code == 130
    before = len(trials.asked) - 1  # the last one was interrupted
    assert before > 3
    trials.error = None
    assert fedtune(tmp_path, *SMALL, "--seeds", "0").exit_code == 0
    runs = list(tmp_path.glob("runs/vision/**/*seed-0.json"))
    assert len(trials.asked) - 1 == len(runs)
    trials.asked.clear()
    assert fedtune(tmp_path, *SMALL, "--seeds", "0").exit_code == 0
    assert trials.asked == []
    assert fedtune(tmp_path, *SMALL, "--seeds", "0,1").exit_code == 0
    assert {v["seed"] for v in trials.asked} == {1}


def test_a_run_that_fails_is_told_and_repeated_and_one_that_diverges_is_told(trials, tmp_path):
    words = (*SMALL, "--seeds", "0", "--methods", "p2pft,local", "--splits", "iid", "--shots", "all")
    assert fedtune(tmp_path, *words).exit_code == 0
    for file in tmp_path.glob("runs/vision/head/local/iid-all-rate-*.json"):
        file.unlink()
    trials.error, trials.at = DivergedError.not_finite(2, "iteration 9", "parameters"), "local"
    done = fedtune(tmp_path, *words)
    assert done.exit_code == 1
    assert "vision, head, iid, all images a class, Local-FT, seed 0: peer 2, iteration 9" in done.stdout
    assert "failed" in done.stdout
    trials.asked.clear()
    assert fedtune(tmp_path, *words).exit_code == 1
    assert trials.asked == []  # it would diverge again


def test_a_rate_that_cannot_be_chosen_fails_the_cells_and_no_others(trials, tmp_path):
    words = (*SMALL, "--seeds", "0", "--methods", "p2pft,local", "--splits", "iid", "--shots", "all")
    trials.error, trials.at = DivergedError.not_finite(2, "iteration 9", "parameters"), "local"
    done = fedtune(tmp_path, *words)
    assert done.exit_code == 1
    assert "every learning rate diverged on the held-out training images" in done.stdout
    assert {c["method"]: c["seeds"] for c in body(tmp_path)["cells"]} == {"p2pft": [0], "local": []}


def test_json_is_alone_on_standard_output(trials, tmp_path):
    done = fedtune(tmp_path, *SMALL, "--seeds", "0", "--json")
    assert json.loads(done.stdout) == body(tmp_path)
    assert body(tmp_path)["schema"] == "p2pft.fedtune/1"


def refused(done, message, trials):
    assert done.exit_code == 2, done.stderr
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert trials.asked == []


def test_runs_with_other_settings_are_neither_mixed_in_nor_removed(trials, tmp_path):
    assert fedtune(tmp_path, *SMALL, "--seeds", "0").exit_code == 0
    trials.asked.clear()
    refused(fedtune(tmp_path, *SMALL, "momentum=0.5"), "momentum: 0.9 there, 0.5 now", trials)
    assert list(tmp_path.glob("runs/vision/**/*seed-0.json"))


def test_runs_on_other_images_of_the_same_number_are_not_mixed_in(trials, tmp_path):
    folder, out = write_letters(tmp_path / "letters"), tmp_path / "out"
    words = (*SMALL, "--seeds", "0", f"vision.dataset=folder:{folder}")
    assert fedtune(out, *words).exit_code == 0
    trials.asked.clear()
    one, other = sorted((folder / "train").iterdir())[:2]
    one.rename(folder / "moved")
    other.rename(one)
    (folder / "moved").rename(other)
    refused(fedtune(out, *words), "SHA-256 of dataset", trials)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["pictures.dataset=digits"],
            "there is no source 'pictures'; the sources are vision, vision-language",
        ),
        (["vision.datset=digits"], "unknown run-config key 'datset': did you mean 'dataset'"),
        (["dataset=digits"], "dataset = is for one source, as vision.dataset=…"),
        (["vision.tune=head"], "tune is not for fedtune"),
        (["learning-rate=0.1"], "learning-rate is not for fedtune"),
        (["codec=q4"], "codec is not for fedtune"),
        (["iterations=0"], "iterations = 0: all cells have the same number of iterations"),
        (["--seeds", "1,1"], "give different whole numbers"),
        (["--shots", "all,few"], "give all, or whole numbers >= 1"),
        (["--splits", "iid,iid"], "give different values, separated by commas"),
        (["--splits", "dirichlet:x"], "ALPHA must be a positive number"),
        (["--methods", "p2pft,fedprox"], "'fedprox' is none of p2pft, fedavg, local, centralized"),
        (["--vision-tunes", "everything"], "tune = 'everything' is unknown"),
        (
            ["--vision-tunes", "text"],
            "the ways text, text+TUNE and text-prompt:N need vision.text-embeddings=/path or",
        ),
        (["--vision-language-tunes", "head"], "no such source is given, as vision-language.dataset=…"),
        (["vision.dataset=folder:SITES/{peer}"], "are drawn once, from a dataset that all peers share"),
        (["vision.prompts=a {}."], "vision.prompts = 'a {}.': it is read with vision.text-tower=NAME alone"),
        (["vision.dataset=folder:/nowhere"], "dataset folder '/nowhere' does not exist"),
        (["vision.weights=/nowhere/w.pth"], "weights = '/nowhere/w.pth'"),
        (["vision-language.dataset=features:/nowhere.npz"], "there is no such file"),
    ],
    ids=str,
)
def test_what_cannot_run_is_refused_before_anything_starts(words, message, trials, tmp_path):
    if "SITES" in words[0]:
        for peer in range(4):
            write_letters(tmp_path / "sites" / str(peer))
        words = [word.replace("SITES", str(tmp_path / "sites")) for word in words]
    refused(fedtune(tmp_path / "out", *words), message, trials)
    assert not (tmp_path / "out").exists()


def test_a_warning_that_every_run_repeats_is_told_once(capsys):
    log, before = logging.getLogger("p2pft_flower.learning"), [*logging.getLogger("p2pft_flower").handlers]
    with warnings_once():
        for _ in range(3):
            log.warning("verify = false: %s", "the files are others")
        log.warning("another")
    assert capsys.readouterr().err.splitlines() == [
        "warning: verify = false: the files are others",
        "warning: another",
    ]
    assert logging.getLogger("p2pft_flower").handlers == before


def test_keys_of_a_source_are_completed_and_those_that_the_command_sets_are_not():
    assert _complete_words("vision.data") == ["vision.dataset=", "vision.data-dir="]
    assert _complete_words("vision-l") == ["vision-language."]
    assert "vision.model=glyph_vit_8" in _complete_words("vision.model=")
    assert _complete_words("vision.learning") == []
    assert _complete_words("momen") == ["momentum=", "momentum=0.0"]


def test_the_best_rate_is_found_between_worse_ones_and_beyond_the_first_three():
    asked = []

    def score(rate):
        asked.append(rate)
        return 1 - abs(np.log10(rate) - 1)  # best at 10

    tried, chosen = choose_rate(score, step_of(0.03))
    assert chosen == 10
    assert len(asked) == len(set(asked)) == len(tried) <= MOST_RATES
    assert sorted(tried) == [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30]
    assert [ladder(step_of(rate)) for rate in tried] == [*tried]


def test_of_equal_rates_the_nearest_to_the_start_is_taken_and_no_further_ones_are_tried():
    tried, chosen = choose_rate(lambda rate: 0.5, 0)
    assert (sorted(tried), chosen) == ([0.3, 1, 3], 1)


def test_smaller_rates_are_tried_while_all_diverge_and_none_is_chosen_if_none_is_left():
    tried, chosen = choose_rate(lambda rate: 0.7 if rate < 0.02 else None, 0)
    assert chosen == 0.01
    assert tried[0.03] is None
    tried, chosen = choose_rate(lambda rate: None, 0)
    assert (len(tried), chosen) == (MOST_RATES, None)


def test_an_image_tower_is_tuned_from_its_texts_in_every_way(tmp_path):
    done = fedtune(
        tmp_path / "out",
        *("vision-language.model=glyph_clip_8", "vision-language.text-tower=glyph_clip_8", "iterations=4"),
        *("vision-language.prompts=the {}", "vision-language.dataset=digits", "--seeds", "0"),
        *("--vision-language-tunes", "text,text+bias:last-block,text-prompt:2,head"),
        *("--splits", "disjoint", "--shots", "4", "--methods", "p2pft"),
    )
    assert done.exit_code == 0, done.stderr
    found = body(tmp_path / "out")
    cells = {cell["tune"]: cell for cell in found["cells"]}
    assert cells["text"]["parameters"] == 320
    assert cells["text-prompt:2"]["parameters"] == 32
    assert cells["text+bias:last-block"]["parameters"] > 320
    (source,) = found["sources"]
    assert (source["settings"]["text-tower"], source["settings"]["prompts"]) == ("glyph_clip_8", "the {}")
    # Other texts are another comparison: their runs are not taken for these.
    other = fedtune(
        tmp_path / "out",
        *("vision-language.model=glyph_clip_8", "vision-language.text-tower=glyph_clip_8", "iterations=4"),
        *("vision-language.prompts=a {}", "vision-language.dataset=digits", "--seeds", "0"),
        *("--vision-language-tunes", "text", "--splits", "disjoint", "--shots", "4", "--methods", "p2pft"),
    )
    assert other.exit_code == 2
    assert "holds runs with other settings (SHA-256 of texts" in " ".join(other.stderr.split())
    assert group_of("text+bias:last-block") == "biases"
    assert group_of("text-prompt:2") == "input"


def test_real_runs_on_features_from_a_text_start_and_on_images(tmp_path):
    rng = np.random.default_rng(0)
    names = np.array([f"class {c}" for c in range(4)])
    centres = rng.normal(size=(4, 16))
    labels = np.arange(80) % 4
    vectors = (centres[labels] + 2.0 * rng.normal(size=(80, 16))).astype(np.float32)
    arrays = {"train.features": vectors[:40], "train.labels": labels[:40], "classes": names}
    np.savez(tmp_path / "made.npz", **arrays, **{"test.features": vectors[40:], "test.labels": labels[40:]})
    np.savez(tmp_path / "names.npz", embeddings=centres.astype(np.float32), names=names)
    done = fedtune(
        tmp_path / "out",
        f"vision-language.dataset=features:{tmp_path / 'made.npz'}",
        f"vision-language.text-embeddings={tmp_path / 'names.npz'}",
        "vision.model=glyph_vit_8",
        *("iterations=8", "--vision-tunes", "head", "--vision-language-tunes", "text,head"),
        *("--splits", "iid", "--shots", "all,2", "--methods", "p2pft,local", "--seeds", "0,1"),
    )
    assert done.exit_code == 0, done.stderr
    found = body(tmp_path / "out")
    accuracy = {
        (c["source"], c["tune"], c["shots"], c["method"]): c["accuracy"]["mean"] for c in found["cells"]
    }
    assert accuracy["vision-language", "text", 2, "p2pft"] > accuracy["vision-language", "head", 2, "p2pft"]
    assert accuracy["vision", "head", 0, "p2pft"] > accuracy["vision", "head", 0, "local"]
    assert [source["source"] for source in found["sources"]] == ["vision", "vision-language"]
    assert set(found["sources"][1]["digests"]) == {"dataset", "text-embeddings", "texts"}
    assert found["findings"][0]["answer"] == "open"  # no way of tuning the biases was run
    assert "Finding 3: " in done.stdout
