"""Which folders hold a run, with which nothing is mixed, and which can be used again."""

from __future__ import annotations

import pytest

from p2pft_flower.errors import ConfigError
from p2pft_flower.keeping.journal import Journal
from p2pft_flower.report.results import SCHEMA, holds_a_run, take_place, write_results
from tests.journals import made_line

FAILED = {"schema": SCHEMA, "status": "failed", "run": "7", "error": "peer 0: lora:99 is not in 1..64"}


def leave_log(folder, *lines):
    """Leave the log of a peer that wrote ``lines`` after its first."""
    journal = Journal(folder, 0)
    journal.write(made_line("run"))
    for event, fields in lines:
        journal.write(made_line(event, **fields))
    journal.close()


def test_logs_and_plans_of_peers_that_failed_before_they_trained_make_place(tmp_path):
    write_results(tmp_path, FAILED)
    leave_log(tmp_path, ("start", {"parameters": 3}), ("failed", {"iteration": 0, "error": "lora:99"}))
    (tmp_path / "peers" / "peer-0.plan.json").write_text("{}")
    (tmp_path / "note.txt").write_text("mine")
    assert not holds_a_run(tmp_path)
    take_place(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_a_run_that_was_stopped_before_its_peers_trained_makes_place(tmp_path):
    write_results(tmp_path, {**FAILED, "status": "stopped"})
    leave_log(tmp_path)
    take_place(tmp_path)
    assert not any(tmp_path.iterdir())


def leave_checkpoint(folder):
    (folder / "peers" / "peer-0.checkpoints").mkdir()


def leave_server_checkpoint(folder):
    (folder / "server.checkpoints").mkdir()


def leave_tail(folder):
    (folder / "peers" / "peer-0.safetensors").write_bytes(b"tail")


def leave_stopped_tail(folder):
    (folder / "peers" / "peer-0.stopped.safetensors").write_bytes(b"tail")


def leave_iteration(folder):
    leave_log(folder, ("evaluation", {"iteration": 12, "loss": 1.0}))


def leave_failure(folder):
    leave_log(folder, ("failed", {"iteration": 3, "error": "the disk is gone"}))


def leave_no_log(folder):
    (folder / "peers" / "peer-1.jsonl").write_text("no log\n")


def leave_no_results(folder):
    (folder / "results.json").unlink()


@pytest.mark.parametrize(
    "leave",
    [
        leave_checkpoint,
        leave_server_checkpoint,
        leave_tail,
        leave_stopped_tail,
        leave_iteration,
        leave_failure,
        leave_no_log,
        leave_no_results,
    ],
)
def test_checkpoints_tails_iterations_and_what_cannot_be_known_are_a_run(leave, tmp_path):
    write_results(tmp_path, FAILED)
    leave_log(tmp_path)
    leave(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="holds an earlier run"):
        take_place(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_completed_run_is_held_whatever_its_peers_left(tmp_path):
    write_results(tmp_path, {**FAILED, "status": "completed"})
    assert holds_a_run(tmp_path)
