"""What the report says in words follows the numbers: each sentence turns out otherwise with other numbers."""

from __future__ import annotations

import numpy as np
import pytest

from p2pft_flower.keeping.journal import Journal
from p2pft_flower.report.page import happenings, verdicts
from p2pft_flower.report.page.reading import find_runs
from p2pft_flower.report.page.verdicts import Answers
from p2pft_flower.report.results import write_results
from p2pft_flower.report.stand_stills import moment
from tests.journals import made_line
from tests.report.page.made_up import BACK, CHEAP_FEDAVG, DEAR_FEDAVG, LOST, comparison, made_up, write


def runs_of(folder, **changes):
    runs = find_runs([comparison(folder, **changes)])
    return {run.algorithm: run for run in runs}, runs


@pytest.mark.parametrize(
    ("unseen", "verdict", "words"),
    [
        (
            (0.94, 0.95, 0.94, 0.93),
            "all",
            "all 4 peers learned the classes they never saw: accuracy 0.930 to",
        ),
        (
            (0.94, 0.95, 0.2, 0.93),
            "some",
            "3 of 4 peers learned the classes they never saw; peer 2: 0.200 did",
        ),
        ((0.1, 0.0, 0.2, 0.1), "none", "no peer learned the classes it never saw: accuracy 0.000 to 0.200"),
        ((None,) * 4, "not known", "the test images have none of a class that a peer never saw"),
    ],
)
def test_peers_have_learned_what_they_never_saw_if_they_come_near_centralised_training(
    unseen, verdict, words, tmp_path
):
    by_name, runs = runs_of(tmp_path, unseen=unseen)
    found = verdicts.learned(by_name["p2pft"], runs)
    assert found.verdict == verdict
    assert words in found.sentence
    if verdict in ("all", "some", "none"):
        assert "90% of the 0.960 of training with all images in one place (centralized)" in found.sentence


def test_lone_peers_have_not_learned_and_one_model_on_all_images_has_nothing_unseen(tmp_path):
    by_name, runs = runs_of(tmp_path)
    assert verdicts.learned(by_name["local"], runs).verdict == "none"
    assert verdicts.learned(by_name["centralized"], runs).verdict == "nothing unseen"


def test_without_centralised_training_the_best_run_is_the_yardstick_but_no_bad_one(tmp_path):
    write(tmp_path / "p2pft", made_up(accuracy=(0.3,) * 4, unseen=(0.29,) * 4))
    (run,) = find_runs([tmp_path])
    found = verdicts.learned(run, [run])
    assert found.verdict == "none"
    assert "not 90% of an accuracy of 0.5 (no centralised run is there to compare with)" in found.sentence


def test_of_one_run_alone_its_own_accuracy_is_the_yardstick(tmp_path):
    write(tmp_path, made_up(unseen=(0.94, 0.94, 0.94, 0.5)))
    (run,) = find_runs([tmp_path])
    found = verdicts.learned(run, [run])
    assert found.verdict == "some"
    assert "reach 90% of their own mean accuracy on all classes, 0.950" in found.sentence


def several(told, unseen, all_labels=0.8):
    """Give results scores by label; ``unseen`` is recall on the labels that a peer does not hold."""
    names = tuple(sorted({name for peer in told["peers"] for name in peer["classes"]}))
    for peer in told["peers"]:
        recall = [0.9 if name in peer["classes"] else unseen for name in names]
        rows = {
            "names": names,
            "support": [30] * len(names),
            "recall": recall,
            "specificity": [0.9] * len(names),
        }
        peer["class_scores"] = {"images": 100, "balanced_accuracy": all_labels, "classes": rows}
    return told


@pytest.mark.parametrize(
    ("recall", "whole", "verdict", "words"),
    [
        (0.0, 0.9, "none", "balanced accuracy 0.450 to 0.450 on them, not 90% of the 0.900"),
        (0.8, 0.9, "all", "balanced accuracy 0.850 to 0.850 on them, at least 90% of the 0.900"),
        (0.8, 0.54, "not known", "hardly better than guessing (0.500)"),
    ],
)
def test_of_several_labels_a_peer_that_gives_none_has_learned_nothing_whatever_its_accuracy(
    recall, whole, verdict, words, tmp_path
):
    pooled = several(made_up("centralized", accuracy=(0.96,), unseen=(None,)), 0.9, whole)
    write(tmp_path / "centralized", pooled)
    write(tmp_path / "p2pft", several(made_up(accuracy=(0.95,) * 4, unseen=(0.95,) * 4), recall))
    runs = find_runs([tmp_path])
    found = verdicts.learned(verdicts.main_run(runs), runs)
    assert found.verdict == verdict
    assert words in found.sentence


def test_nothing_is_learned_beside_centralised_training_that_only_guesses(tmp_path):
    write(tmp_path / "centralized", made_up("centralized", accuracy=(0.12,), unseen=(None,)))
    write(tmp_path / "p2pft", made_up(accuracy=(0.12,) * 4, unseen=(0.12,) * 4))
    runs = find_runs([tmp_path])
    found = verdicts.learned(verdicts.main_run(runs), runs)
    assert found.verdict == "not known"
    assert "hardly better than guessing" in found.sentence


def answers(*predicted):
    """Return answers of peers 0, 1, … to 100 images of class 0; a number is the share of right ones."""
    labels = np.zeros(100, dtype=np.int64)
    return [
        Answers(p, ("a", "b"), labels, (np.arange(100) >= 100 * share).astype(np.int64))
        for p, share in enumerate(predicted)
    ]


@pytest.mark.parametrize(
    ("accuracy", "apart", "given", "verdict"),
    [
        ((0.95, 0.95, 0.95, 0.95), 0.001, answers(0.97, 0.96, 0.97, 0.97), "yes"),
        ((0.95, 0.95, 0.95, 0.95), 0.001, answers(0.97, 0.5, 0.97, 0.97), "no"),
        ((0.95, 0.95, 0.95, 0.95), 0.001, (), "yes"),
        ((0.95, 0.95, 0.95, 0.95), 0.7, (), "no"),
        ((0.95, 0.80, 0.95, 0.95), 0.001, (), "no"),
        ((0.95, 0.80, 0.95, 0.95), 0.001, answers(0.97, 0.96, 0.97, 0.97), "no"),
    ],
    ids=["same answers", "other answers", "near models", "far models", "other accuracies", "both"],
)
def test_peers_agree_if_they_answer_alike_else_if_scores_and_models_are_near(
    accuracy, apart, given, verdict, tmp_path
):
    write(tmp_path, made_up(accuracy=accuracy), apart=apart)
    (run,) = find_runs([tmp_path])
    found = verdicts.agreed(run, given)
    assert found.verdict == verdict
    assert ("the peers agree" if verdict == "yes" else "the peers do not agree") in found.sentence


def test_the_peer_that_answers_most_unlike_the_others_counts(tmp_path):
    write(tmp_path, made_up())
    (run,) = find_runs([tmp_path])
    found = verdicts.agreed(run, answers(0.97, 0.90, 0.97, 0.97))
    assert found.same == pytest.approx(0.93)
    assert "each of the 4 gives the answer of most to at least 93.0% of the test images" in found.sentence
    assert found.verdict == "no"


def test_answers_to_other_images_are_not_compared(tmp_path):
    write(tmp_path, made_up())
    (run,) = find_runs([tmp_path])
    one, two = answers(0.97, 0.97)
    other = Answers(1, two.classes, two.labels + 1, two.predicted)
    assert verdicts.agreed(run, [one, other]).same is None


def test_one_model_has_nothing_to_agree_on(tmp_path):
    by_name, _ = runs_of(tmp_path)
    assert verdicts.agreed(by_name["centralized"], ()).verdict == "one model"


@pytest.mark.parametrize(
    ("fedavg", "verdict", "words"),
    [
        (DEAR_FEDAVG, "cheaper", "p2pft is cheaper than fedavg in bytes"),
        (CHEAP_FEDAVG, "dearer", "p2pft is dearer than fedavg in bytes"),
        (4_100_000, "the same", "p2pft costs about as much as fedavg in bytes"),
    ],
)
def test_bytes_are_compared_with_fedavgs_at_the_same_accuracy(fedavg, verdict, words, tmp_path):
    by_name, runs = runs_of(tmp_path, fedavg=fedavg)
    found = verdicts.against_fedavg(by_name["p2pft"], runs)
    assert found.verdict == verdict
    assert words in found.sentence
    assert found.ratio == found.whole == pytest.approx(4_000_000 / fedavg)
    assert "Training took 3.0 s up to there, that of fedavg 6.0 s" in found.sentence


def test_a_run_that_never_comes_to_fedavgs_accuracy_is_neither_cheaper_nor_dearer(tmp_path):
    by_name, runs = runs_of(tmp_path, accuracy=(0.7,) * 4)
    found = verdicts.against_fedavg(by_name["p2pft"], runs)
    assert found.verdict == "not reached"
    assert "p2pft does not come to 0.902, 95% of the accuracy of fedavg: it ends with 0.700" in found.sentence


def test_without_fedavg_or_on_other_data_there_is_nothing_to_compare(tmp_path):
    write(tmp_path / "p2pft", made_up())
    write(tmp_path / "fedavg", made_up("fedavg") | {"partition": "iid"})
    runs = find_runs([tmp_path])
    for against in (verdicts.against_fedavg, verdicts.against_pooled):
        assert against(runs[0], runs).verdict == "not known"
    said = verdicts.against_fedavg(runs[0], runs).sentence
    assert said.startswith("p2pft sent 4.0 MB in all and trained for 3.0 s; there is no run of fedavg")


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [(0.95, "1.0 points less than"), (0.97, "1.0 points more than"), (0.96, "as much as")],
)
def test_accuracy_is_compared_with_centralised_training(accuracy, words, tmp_path):
    by_name, runs = runs_of(tmp_path, accuracy=(accuracy,) * 4)
    found = verdicts.against_pooled(by_name["p2pft"], runs)
    assert f"{words} centralized (0.960)" in found.sentence


def happened(tmp_path, **changes):
    write(tmp_path, made_up(**changes))
    (run,) = find_runs([tmp_path])
    return happenings.happened(run), happenings.events(run)


def test_a_run_without_a_loss_says_so(tmp_path):
    said, events = happened(tmp_path)
    assert said == "p2pft: nothing went wrong: all 4 peers trained through all 300 iterations."
    assert events == []


def test_a_lost_peer_is_told_with_why_and_when(tmp_path):
    said, events = happened(tmp_path, views=[LOST], ended=(0, 1, 3), error="peer 2 was lost")
    assert "peer 2 was lost on the way and did not come back; the others trained on" in said
    assert events[0] == (
        f"p2pft, after iteration 100, {moment(1001.0)}, 1.0 s into the training: peer 2 was lost (not heard "
        "from for 5 s "
        "(crashed)); after "
        "6.3 s the others went on as view 1 with 3 peers and 3 edges."
    )
    assert events[1] == "p2pft ended as completed-with-3-of-4: peer 2 was lost"


def test_the_longest_waits_are_told_and_how_many_others_there_were(tmp_path):
    folder = write(tmp_path, made_up())
    waits = [made_line("stall", 0, time=1000.0 + 20 * k, seconds=6.0 + k) for k in range(10)]
    log = Journal(folder, 0)
    for wait in waits:
        log.write(wait)
    log.close()
    (run,) = find_runs([tmp_path])
    assert run.stalls == waits
    told = happenings.events(run)
    assert told[0] == (
        f"p2pft: peer 0 waited 8 s for peer 1, which was slow, after 0 iterations, until {moment(1040.0)}."
    )
    assert told[8:] == ["p2pft: 2 shorter waits are left out."]


def test_what_happened_has_its_local_time_and_stands_in_its_order(tmp_path):
    lost, back = LOST | {"time": 1100.0}, BACK | {"time": 1200.0, "missed": {"2": 90}}
    folder = write(tmp_path, made_up(views=[lost, back], error="p2pft stop") | {"ended": 1300.0})
    for p in (0, 1, 3):
        log = Journal(folder, p)
        log.write(made_line("stall", p, time=1099.0, seconds=20.0, awaited=2, last=2, silent=True))
        log.close()
    (run,) = find_runs([tmp_path])
    waited, gone, came, end = happenings.events(run)
    assert waited == (
        f"p2pft: all stood still from {moment(1079.0)} to {moment(1099.0)} (20 s), waiting for peer 2, which "
        "was silent, after 0 iterations."
    )
    assert f"after iteration 100, {moment(1100.0)}, " in gone
    assert f"after iteration 200, {moment(1200.0)}, " in came
    assert "peer 2 came back, 90 iterations behind, lost after 110" in came
    assert end.startswith(f"p2pft ended as completed at {moment(1300.0)}: ")


def test_a_long_reason_is_cut(tmp_path):
    _, events = happened(tmp_path, views=[LOST | {"why": {"2": "no answer " * 100}}], ended=(0, 1, 3))
    assert len(events[0]) < 450
    assert "no answer …" in events[0]


def test_what_was_learned_without_a_lost_peer_is_of_those_that_came_to_the_end(tmp_path):
    write(tmp_path, made_up(views=[LOST], ended=(0, 1, 3), error="peer 2 was lost"))
    (run,) = find_runs([tmp_path])
    assert "all 3 peers that came to the end learned" in verdicts.learned(run, [run]).sentence


def test_a_peer_that_came_back_is_told(tmp_path):
    said, events = happened(tmp_path, views=[LOST, BACK])
    assert "peer 2 was lost on the way and came back" in said
    assert "peer 2 came back" in events[1]


def test_a_run_that_was_stopped_after_a_loss_names_who_was_lost(tmp_path):
    write(tmp_path, made_up(views=[LOST], ended=(0, 1, 3), error="p2pft stop") | {"status": "stopped"})
    (run,) = find_runs([tmp_path])
    said = happenings.happened(run)
    assert "was stopped on purpose: p2pft stop. Before that peer 2 was lost and did not come back." in said


@pytest.mark.parametrize(
    ("status", "words"), [("failed", "p2pft failed: no room"), ("stopped", "was stopped on purpose")]
)
def test_a_run_without_numbers_says_how_it_ended(status, words, tmp_path):
    results = {key: made_up()[key] for key in ("schema", "run", "algorithm", "seed", "config")}
    write_results(tmp_path, results | {"status": status, "error": "no room", "views": []})
    (run,) = find_runs([tmp_path])
    assert words in happenings.happened(run)
    assert verdicts.learned(run, [run]).verdict == verdicts.agreed(run, ()).verdict == "not known"


def test_the_first_lines_are_about_p2pft_else_about_peers_that_exchange(tmp_path):
    for method in ("local", "fedavg", "dgd", "p2pft"):
        write(tmp_path / method, made_up(method))
    runs = find_runs([tmp_path])
    assert verdicts.main_run(runs).algorithm == "p2pft"
    assert verdicts.main_run([r for r in runs if r.algorithm != "p2pft"]).algorithm == "dgd"
    assert verdicts.main_run([r for r in runs if r.algorithm == "local"]).algorithm == "local"
