"""TensorBoard's event files: what TensorBoard itself reads back from them."""

from __future__ import annotations

import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from p2pft_flower.errors import ConfigError
from p2pft_flower.keeping import event_files
from p2pft_flower.keeping.event_files import ConsensusFile, EventFiles, require_tensorboard
from tests.journals import made_line


def curves(folder):
    """Return the points (iteration, value) of each curve in a folder of event files, and their times."""
    found = EventAccumulator(str(folder)).Reload()
    points = {tag: found.Scalars(tag) for tag in found.Tags()["scalars"]}
    return {tag: [(e.step, pytest.approx(e.value)) for e in events] for tag, events in points.items()}


def test_each_peers_scores_are_curves_that_can_be_read_while_the_run_goes_on(tmp_path):
    files = EventFiles(tmp_path)
    for k in (0, 10):
        for p in (0, 3):
            files.evaluated(
                made_line("evaluation", p, iteration=k, time=1.7e9 + k, loss=k + p / 10, bytes_sent=100 * k)
            )
    for p in (0, 3):
        assert curves(tmp_path / "tensorboard" / f"peer-{p}") == {
            "loss": [(0, p / 10), (10, 10 + p / 10)],
            "accuracy": [(0, 0.5), (10, 0.5)],
            "bytes_sent": [(0, 0), (10, 1000)],
        }
    events = EventAccumulator(str(tmp_path / "tensorboard" / "peer-0")).Reload().Scalars("loss")
    assert [e.wall_time for e in events] == [1.7e9, 1.7e9 + 10]
    files.ended({})


def test_a_number_that_is_none_or_not_finite_is_no_point(tmp_path):
    files = EventFiles(tmp_path)
    files.evaluated(made_line("evaluation", iteration=1, loss=math.nan, accuracy=None, accuracy_unseen=0.25))
    files.ended({})
    found = curves(tmp_path / "tensorboard" / "peer-0")
    assert found == {"accuracy_unseen": [(1, 0.25)], "bytes_sent": [(1, 0)]}


def test_the_folder_is_for_its_owner_only(tmp_path):
    files = EventFiles(tmp_path)
    files.evaluated(made_line("evaluation", iteration=1))
    files.ended({})
    assert (tmp_path / "tensorboard").stat().st_mode & 0o777 == 0o700


def test_the_coordinators_file_has_each_iteration_once_and_at_the_end_what_was_missed(tmp_path):
    file = ConsensusFile(tmp_path)
    file.add(0, 0.0, 0)
    file.add(10, 0.5, 100)
    row = {"iteration": 10, "consensus_error": 0.5, "bytes_sent": 100}
    missed = {"iteration": 20, "consensus_error": 0.25, "bytes_sent": 200}
    file.close([row, missed, {"iteration": 30, "consensus_error": None, "bytes_sent": 300}])
    assert curves(tmp_path / "tensorboard" / "all") == {
        "consensus_error": [(0, 0.0), (10, 0.5), (20, 0.25)],
        "bytes_sent": [(0, 0), (10, 100), (20, 200)],
    }


def test_a_coordinators_file_that_cannot_be_written_is_told_once_and_ends_nothing(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("in the way")
    file = ConsensusFile(tmp_path)
    for k in range(3):
        file.add(k, 0.0, 0)
    file.close([])
    assert len(caplog.records) == 1
    assert "the run goes on" in caplog.text


def test_without_the_package_a_run_is_refused_with_the_remedy(monkeypatch):
    require_tensorboard()
    monkeypatch.setattr(event_files, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'p2pft-flower\[tensorboard\]'"):
        require_tensorboard()
