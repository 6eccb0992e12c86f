"""Runs are read whole or refused by name; journals add times, bytes and distances to results."""

from __future__ import annotations

import contextlib
import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from p2pft_flower.errors import DataError
from p2pft_flower.keeping import sketch
from p2pft_flower.keeping.journal import Journal, read_journal
from p2pft_flower.keeping.lines import Trace, written
from p2pft_flower.report.page import happenings, verdicts
from p2pft_flower.report.page.reading import find_runs
from p2pft_flower.report.page.tidy import evaluations_csv, outcomes_csv
from tests.report.page.made_up import BACK, LOST, comparison, made_up, write


def test_runs_are_found_in_a_folder_of_runs_and_each_once(tmp_path):
    comparison(tmp_path)
    runs = find_runs([tmp_path, tmp_path / "p2pft"])
    assert [run.algorithm for run in runs] == ["p2pft", "fedavg", "centralized", "local"]
    assert [run.kind for run in runs] == ["peers", "server", "pooled", "alone"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no results.json there and in no folder in it"),
        (lambda folder: folder.rmdir(), "there is no such folder"),
        (lambda folder: Journal(folder, 0).close(), "p2pft collect makes results of them first"),
        (lambda folder: (folder / "results.json").write_text("{}"), "results.json: .*schema"),
        (lambda folder: (folder / "results.json").write_text("{"), "results.json: "),
        (lambda folder: write_as(folder, schema="p2pft.results/9"), "schema 'p2pft.results/9', this version"),
        (
            lambda folder: write_as(folder, iterations="many"),
            r"Expected `int`, got `str` - at `\$.iterations`",
        ),
        (lambda folder: write_as(folder, graph=None), "it has peers, but no graph"),
        (
            lambda folder: write_as(folder, history=[{"iteration": 0, "accuracy": [1.0]}]),
            "has 1 values of accuracy",
        ),
    ],
    ids=["empty", "none", "journals", "object", "cut", "schema", "type", "graph", "history"],
)
def test_a_folder_that_holds_no_run_is_refused_by_name(make, message, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    make(folder)
    with pytest.raises(DataError, match=message):
        find_runs([folder])


def write_as(folder, **changes):
    write(folder, made_up())
    (folder / "results.json").write_text(json.dumps(made_up() | changes))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_results_are_refused_or_read_and_never_raise_anything_else(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    text = json.dumps(made_up(views=[LOST, BACK]))
    place = data.draw(st.integers(0, len(text) - 1))
    value = data.draw(st.sampled_from(["", "-", "9", "null", '"', "[", "1e999", "\\ud800"]))
    (folder / "results.json").write_text(text[:place] + value + text[place + 1 :])
    with contextlib.suppress(DataError):
        find_runs([folder])


def test_labels_tell_runs_of_one_method_apart(tmp_path):
    for seed in (0, 1):
        write(tmp_path / f"seed-{seed}", made_up(seed=seed))
    assert [run.label for run in find_runs([tmp_path])] == ["p2pft, seed 0", "p2pft, seed 1"]
    write(tmp_path / "again", made_up(seed=1))
    labels = [run.label for run in find_runs([tmp_path])]
    assert labels == ["p2pft, seed 1 in again", "p2pft, seed 0", "p2pft, seed 1 in seed-1"]


def test_journals_give_seconds_bytes_and_distances_also_of_strategies(tmp_path):
    write(tmp_path / "p2pft", made_up(), pace=0.01, apart=0.01)
    write(tmp_path / "fedavg", made_up("fedavg"), pace=0.02)
    mine, theirs = find_runs([tmp_path])
    assert mine.seconds_at == pytest.approx({0: 0, 100: 1, 200: 2, 300: 3})
    assert theirs.training_seconds == pytest.approx(6)
    assert mine.sent[2] == {0: 0, 100: 333_333, 200: 666_666, 300: 1_000_000}
    assert mine.apart[-1] == (300, pytest.approx(0.01, rel=0.2))


def test_a_clock_that_was_set_back_makes_no_time_negative(tmp_path):
    write(tmp_path, made_up(), pace=0.01)
    for path in (tmp_path / "peers").glob("*.jsonl"):
        lines = list(read_journal(path))
        late = [replace(line, time=line.time - 3600) for line in lines[-2:]]
        path.write_bytes(b"".join(map(written, [*lines[:-2], *late])))
    (run,) = find_runs([tmp_path])
    assert list(run.seconds_at.values()) == sorted(run.seconds_at.values())
    assert (run.seconds_at[0], run.seconds_at[300]) == (0, pytest.approx(2))


def test_without_journals_times_are_unknown_and_the_reason_is_noted(tmp_path):
    results = made_up()
    write(tmp_path, results)
    for peer in range(4):
        (tmp_path / "peers" / f"peer-{peer}.jsonl").unlink()
    (run,) = find_runs([tmp_path])
    assert (run.seconds_at, run.training_seconds) == ({}, None)
    assert "no peer's journal lies in" in run.notes[0]


def test_a_damaged_journal_is_noted_and_the_rest_is_read(tmp_path):
    write(tmp_path, made_up())
    journal = tmp_path / "peers" / "peer-1.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b'"iteration":100', b'"iteration":101'))
    (run,) = find_runs([tmp_path])
    assert any("peer-1.jsonl: 1 damaged lines were left out" in note for note in run.notes)
    assert set(run.seconds_at) == {0, 200, 300}


def test_a_lost_peer_is_known_from_its_journal_until_it_was_lost(tmp_path):
    """A deployed run's coordinator has no scores of a peer that was lost, nor the distance to it."""
    write(tmp_path, made_up(views=[LOST], ended=(0, 1, 3), error="peer 2 was lost"), gone=(2,))
    (run,) = find_runs([tmp_path])
    assert [moment.accuracy[2] for moment in run.results.history] == [0.3, 0.3, None, None]
    assert [(share.name, share.classes) for share in run.shares][2] == ("2 (not at the end)", ("lost",))
    assert "lost" in run.classes
    assert run.unknown == []
    assert [run.error_at(moment) for moment in run.results.history] == [
        0,
        *(pytest.approx(0.001 * k, rel=0.3) for k in (100, 200, 300)),
    ]


def test_a_stopped_run_with_numbers_and_a_lost_peer_is_read_as_far_as_it_is_known(tmp_path):
    results = made_up(ended=(0, 1, 3), views=[LOST], error="peer 0: the run was stopped")
    lost = {**made_up()["peers"][2], "tail": None, "seconds": {}, "state": "lost", "accuracy_unseen": None}
    nothing = {"trainable_parameters": None, "model_parameters": None}
    write(tmp_path, results | {"status": "stopped", "unfinished": [lost]} | nothing)
    (run,) = find_runs([tmp_path])
    assert run.bytes_sent == 4_000_000
    assert [share.name for share in run.shares] == ["0", "1", "2 (not at the end)", "3"]
    assert run.unknown == []
    found = verdicts.learned(run, [run])
    assert "all 3 peers that were there when the run was stopped learned" in found.sentence
    told = "p2pft was stopped on purpose: peer 0: the run was stopped."
    assert happenings.happened(run) == f"{told} Before that peer 2 was lost and did not come back."


def test_a_lost_peer_without_a_journal_is_named_as_unknown(tmp_path):
    write(tmp_path, made_up(views=[LOST], ended=(0, 1, 3), error="peer 2 was lost"))
    (run,) = find_runs([tmp_path])
    assert run.unknown == [2]
    assert run.results.history[1].accuracy[2] is None


def test_the_trackers_sum_is_read_from_traces(tmp_path):
    import numpy as np

    write(tmp_path, made_up())
    for peer in range(4):
        journal = Journal(tmp_path, peer)
        vector = np.zeros(128)
        vector[0] = (1.0, -1.0, 2.0, -2.0)[peer] * 1.0
        journal.write(Trace(peer=peer, view=0, iteration=1, surplus=sketch.encode(vector)))
        vector[0] = 1.0
        journal.write(Trace(peer=peer, view=0, iteration=2, surplus=sketch.encode(vector)))
        journal.close()
    (run,) = find_runs([tmp_path])
    assert [(s.iteration, s.relative) for s in run.surplus] == [(1, 0.0), (2, 4.0)]


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_the_tables_are_tidy_a_row_an_evaluation_of_a_peer_and_a_row_an_outcome(tmp_path):
    runs = find_runs([comparison(tmp_path)])
    evaluations, outcomes = rows(evaluations_csv(runs)), rows(outcomes_csv(runs))
    assert len(evaluations) == 4 * (4 + 4 + 1 + 4)
    last = next(r for r in evaluations if (r["run"], r["iteration"], r["peer"]) == ("p2pft", "300", "2"))
    assert (last["accuracy"], last["accuracy_unseen"], last["bytes_sent"]) == ("0.95", "0.94", "1000000")
    assert float(last["seconds"]) == pytest.approx(3.0)
    assert len(outcomes) == 13
    assert outcomes[0] | {"accuracy": "0.95", "seconds_gradient": "3.0", "images": "100"} == outcomes[0]


def test_a_run_without_numbers_has_a_row_and_a_name_is_no_formula(tmp_path):
    results = {key: made_up()[key] for key in ("schema", "run", "algorithm", "seed", "config")}
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "results.json").write_text(
        json.dumps({**results, "status": "failed", "error": "e"})
    )
    write(tmp_path / "named", made_up("dgd", names=["=HYPERLINK(1)", "b", "c", "d"]))
    outcomes = rows(outcomes_csv(find_runs([tmp_path])))
    assert [row["status"] for row in outcomes] == ["failed"] + ["completed"] * 4
    assert outcomes[1]["name"] == "'=HYPERLINK(1)"
