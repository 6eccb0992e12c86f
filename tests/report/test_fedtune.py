"""FedTune's comparison: which cells, which answers, and how they are told."""

from __future__ import annotations

import pytest

from p2pft_flower.errors import ConfigError
from p2pft_flower.report.fedtune import CellRun, Rate, Source, fedtune, iterations_to
from p2pft_flower.report.fedtune_design import Cell, Design, read_shots
from p2pft_flower.report.fedtune_figure import draw_few_images
from p2pft_flower.report.fedtune_findings import Comparison, answer, group_of
from p2pft_flower.report.fedtune_text import fedtune_markdown, fedtune_table

VISION, LANGUAGE = ("bias:last-block", "lora:8:last-block", "head"), ("text", "head")
SETTINGS = {
    "model": "vit",
    "dataset": "pictures",
    "weights": "/w",
    "iterations": 20,
    "batch-size": 8,
    "schedule": "cosine",
    "momentum": 0.9,
    "weight-decay": 0.0,
    "topology": "directed-ring-4",
}


def design(sources=("vision", "vision-language"), seeds=(0, 1, 2)):
    tunes = {"vision": VISION, "vision-language": LANGUAGE}
    return Design(
        {name: tunes[name] for name in sources},
        ("disjoint", "iid"),
        (0, 1),
        ("p2pft", "local"),
        seeds,
    )


def usual(cell):
    """FedTune's findings: biases first, vision-language above vision, together above alone."""
    accuracy = {"bias:last-block": 0.8, "lora:8:last-block": 0.7, "head": 0.6, "text": 0.9}[cell.tune]
    accuracy -= (0.1 if cell.source == "vision-language" else 0.4) * (cell.shots == 1)
    return accuracy - 0.2 * (cell.method == "local"), 0.95


def comparison(scores=usual, the_design=None, test=10_000):
    the_design = the_design or design()
    runs = []
    for seed in the_design.seeds:
        for name in the_design.tunes:
            for cell in the_design.cells(name):
                accuracy, own = (value + 0.001 * seed for value in scores(cell))
                outcome = {
                    "accuracy": [accuracy - 0.01, accuracy + 0.01],
                    "own_accuracy": [own],
                    "curve": [[0, 0.1], [10, 0.94 * accuracy], [15, 0.96 * accuracy], [20, accuracy]],
                    "bytes_sent": 4000,
                    "seconds": 1.0,
                    "parameters": 10,
                    "model_parameters": 1000,
                    "images": 100,
                    "test_images": test,
                }
                runs.append(CellRun(cell, seed, outcome))
    choices = {run.cell._replace(shots=0) for run in runs}
    rates = [Rate(c.source, c.tune, c.split, c.method, {0.1: scores(c)[0], 0.3: None}, 0.1) for c in choices]
    sources = [
        Source(name, SETTINGS, "weights.pth", {"weights": "ab" * 32}, 10, 1000, test, "classes:0-4,5-9")
        for name in the_design.tunes
    ]
    return fedtune(the_design, sources, rates, runs, validation=0.2, quick=False)


def answers(body):
    return [finding["answer"] for finding in body["findings"]]


def test_the_cells_are_four_planes_through_the_base_cell_each_once():
    cells = design().cells("vision")
    base = design().base("vision")
    assert base == Cell("vision", "bias:last-block", "disjoint", 0, "p2pft") == cells[0]
    assert len(cells) == len(set(cells)) == 3 * 3 + 3  # (splits and shots) of each way; of the other method
    for cell in cells:
        ways = (cell.tune, cell.method) != (base.tune, base.method)
        images = (cell.split, cell.shots) != (base.split, base.shots)
        off = sum(a != b for a, b in zip(cell, base, strict=True))
        assert off <= ways + images


def test_shots_are_whole_numbers_or_all():
    assert read_shots(["all", "16", "1"]) == (0, 16, 1)
    for wrong in ("0", "-1", "few", "1.5"):
        with pytest.raises(ConfigError, match="give all, or whole numbers >= 1"):
            read_shots([wrong])


def test_iterations_count_up_to_the_first_evaluation_near_the_last_accuracy():
    curve = [[0, 0.1], [10, 0.7], [20, 0.78], [30, 0.6], [40, 0.8]]
    assert iterations_to(0.95, curve) == 20
    assert iterations_to(1.0, curve) == 40


@pytest.mark.parametrize(
    ("differences", "least", "sign"),
    [
        ((0.05, 0.06, 0.07), 0.01, 1),
        ((-0.05, -0.06, -0.07), 0.01, -1),
        ((0.05, 0.06, 0.07), 0.10, 0),  # too few test images
        ((0.01, 0.06, 0.11), 0.01, 1),
        ((-0.02, 0.06, 0.11), 0.01, 0),  # seeds differ too much
        ((0.5,), 0.01, 0),  # one seed
    ],
)
def test_a_difference_counts_if_seeds_agree_and_test_images_are_many(differences, least, sign):
    assert Comparison("", differences, least).sign == sign


def test_the_answer_is_that_of_all_comparisons_or_says_that_they_differ():
    more, less, close = (Comparison("", (d, d), 0.01) for d in (0.1, -0.1, 0.0))
    assert answer([more, more]) == "yes"
    assert answer([less, close]) == "no"
    assert answer([more, close]) == answer([more, less]) == "in this setting"
    assert answer([close]) == answer([]) == "open"


def test_ways_of_tuning_belong_to_fedtunes_groups():
    names = ("bias", "bias+norm:last-block", "prompt-deep:4", "lora-fa:8", "last-blocks:2", "head", "text")
    assert [group_of(name) for name in names] == [
        *("biases", "biases", "input", "modules", "whole blocks", "head", "head")
    ]


def test_fedtunes_own_findings_are_answered_yes():
    assert answers(comparison()) == ["yes", "yes", "yes"]


def test_findings_that_hold_in_one_place_alone_say_where():
    def scores(cell):
        accuracy, own = usual(cell)
        if cell.tune == "lora:8:last-block" and cell.split == "iid":
            accuracy += 0.2
        if cell.source == "vision-language" and cell.shots == 1:
            accuracy -= 0.5  # loses more than the vision model
        if cell.method == "local" and cell.split == "iid":
            accuracy += 0.3
        return accuracy, own

    body = comparison(scores)
    assert answers(body) == ["in this setting"] * 3
    first = "\n".join(body["findings"][0]["evidence"])
    assert "vision, iid: bias:last-block and lora:8:last-block 80.1 ± 0.1 against 90.1 ± 0.1: -10.0" in first
    assert first.count("against it") == first.count("for it") == 1


def test_findings_that_hold_nowhere_are_answered_no():
    def scores(cell):
        accuracy, _ = usual(cell)
        return 1.2 - accuracy, 1.2 - accuracy

    assert answers(comparison(scores)) == ["no", "no", "no"]


def test_without_a_second_source_or_with_one_seed_the_findings_stay_open():
    body = comparison(the_design=design(("vision",)))
    assert answers(body) == ["yes", "open", "yes"]
    assert body["findings"][1]["evidence"] == ["no vision-language model was given"]
    assert answers(comparison(the_design=design(seeds=(0,)))) == ["open"] * 3


def test_over_fitting_is_asked_where_images_are_dealt_out_at_random():
    def scores(cell):
        accuracy, _ = usual(cell)
        return accuracy, accuracy + 0.3  # together and alone, own images are as far above the test images

    body = comparison(scores)
    assert answers(body)[2] == "in this setting"
    (line,) = [e for e in body["findings"][2]["evidence"] if e.startswith("vision, iid: accuracy on own")]
    assert line.endswith("too close to count")


def test_a_cell_has_its_seeds_and_says_which_failed_and_which_are_missing():
    the_design = design(("vision",), seeds=(0, 1, 2))
    base = the_design.base("vision")
    whole = comparison(the_design=the_design)
    outcome = {"accuracy": [0.5], "own_accuracy": [0.6], "curve": [[0, 0.5]], "bytes_sent": 1, "seconds": 1.0}
    outcome |= {"parameters": 1, "model_parameters": 2, "images": 3}
    runs = [CellRun(base, 0, outcome), CellRun(base, 1, error="the disk is full"), CellRun(base, 2)]
    source = Source("vision", SETTINGS, "w", {}, 10, 100, 100, "")
    body = fedtune(the_design, [source], [], runs, validation=0.2, quick=True)
    (cell,) = body["cells"]
    assert (cell["seeds"], cell["failed"], cell["not_run"]) == ([0], {"1": "the disk is full"}, [2])
    told = [finding["evidence"] for finding in body["findings"]]
    assert told[0] == told[2] == ["runs still to come: 1"]
    assert told[1] == ["runs still to come: 1", "no vision-language model was given"]
    text = fedtune_markdown(body)
    assert "50.0 (1 of 3 seeds)" in text
    assert "vision, bias:last-block, disjoint, all images a class, P2P-FT, seed 1: the disk is full" in text
    assert "--quick: a first look" in text
    assert whole["cells"][0]["accuracy"]["mean"] == pytest.approx(0.801)


def test_the_text_has_answers_tables_settings_and_rates():
    body = comparison()
    for text in (fedtune_markdown(body), fedtune_table(body)):
        flat = " ".join(text.split())
        assert "Finding 1: YES. Tuning the biases of the backbone does best" in flat
        assert "80.1 ± 0.1" in flat
        assert "vision, bias:last-block, disjoint, P2P-FT: 0.1 of 0.1 80.0, 0.3 diverged" in flat
        assert "weights SHA-256 abababababab…" in flat
        assert "4.0 kB" in flat


def test_sources_of_different_images_are_said_to_compare_more_than_the_models():
    body = comparison()
    assert "more than the models" not in fedtune_markdown(body)
    body["sources"][0]["images"]["test"] = 77
    assert "finding 2 compares more than the models" in fedtune_markdown(body)


def test_random_weights_are_said_in_the_titles():
    assert "RANDOM WEIGHTS" not in fedtune_markdown(comparison())
    body = comparison(the_design=design(("vision",)))
    body["sources"][0]["settings"] = {**SETTINGS, "weights": "none"}
    assert "RANDOM WEIGHTS, no pre-training: vision: ways of tuning" in fedtune_markdown(body)


def test_the_figure_is_small_and_there_is_none_of_one_number_of_images(tmp_path):
    assert draw_few_images(comparison(), tmp_path / "few.png")
    assert 5_000 < (tmp_path / "few.png").stat().st_size < 60_000
    body = comparison()
    body["shots"] = [0]
    assert not draw_few_images(body, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
