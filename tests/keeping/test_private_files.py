"""What a peer leaves is for its owner only, and nothing of it is written or read through links and pipes."""

from __future__ import annotations

import os
import stat

import pytest
import torch

from p2pft_flower.errors import DataError
from p2pft_flower.keeping.checkpoints import checkpoint_files, checkpoint_folder, read_checkpoint
from p2pft_flower.keeping.journal import Journal, JournalError, read_journal
from p2pft_flower.keeping.lives import next_incarnation
from p2pft_flower.keeping.rejoining import kept_plan, plan_file, save_plan
from p2pft_flower.keeping.running import _stop_mark, registered, running
from tests.host.test_keeper import keeping, run_all

REFUSED = r"a link, which is not followed|no regular file"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def usual_mask():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("usual_mask")
def test_logs_tails_and_checkpoints_are_for_their_owner_only(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))
    (plan,) = keeping(tmp_path / "run")
    run_all([plan])
    save_plan(plan)
    next_incarnation(tmp_path / "run", 0)
    left = sorted((tmp_path / "run" / "peers").rglob("*"))
    assert {path.suffix for path in left if path.is_file()} == {".jsonl", ".safetensors", ".starts", ".json"}
    with registered("test", [0], [1]) as there:
        (record,) = running("test")
        assert not there.stops_run()
        _stop_mark(record.pid, 0).touch(mode=0o600)
        here = [tmp_path / "home" / "running", *(tmp_path / "home" / "running").iterdir()]
        assert len(here) == 3
        assert [mode(path) for path in here] == [0o700, 0o600, 0o600]
    for path in [tmp_path / "run" / "peers", *left]:
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path


def in_place_of(path, what, elsewhere):
    path.unlink(missing_ok=True)
    if what == "link":
        elsewhere.write_text("mine")
        path.symlink_to(elsewhere)
    else:
        os.mkfifo(path)


@pytest.mark.parametrize("what", ["link", "pipe"])
def test_a_log_is_neither_written_nor_read_through_a_link_or_a_pipe(what, tmp_path):
    Journal(tmp_path, 0).close()
    path = tmp_path / "peers" / "peer-0.jsonl"
    in_place_of(path, what, tmp_path / "elsewhere")
    with pytest.raises(JournalError, match=REFUSED):
        Journal(tmp_path, 0)
    with pytest.raises(DataError, match=rf"peer-0.jsonl: the log cannot be read \(({REFUSED})\)"):
        list(read_journal(path))
    if what == "link":
        assert (tmp_path / "elsewhere").read_text() == "mine"


@pytest.mark.parametrize("what", ["link", "pipe"])
def test_a_plan_or_a_count_of_starts_that_is_a_link_or_a_pipe_is_named_and_not_read(what, tmp_path):
    (plan,) = keeping(tmp_path / "run")
    save_plan(plan)
    next_incarnation(tmp_path / "run", 0)
    in_place_of(plan_file(tmp_path / "run", 0), what, tmp_path / "elsewhere")
    with pytest.raises(DataError, match=rf"peer-0\.plan\.json: cannot be read \(({REFUSED})\)"):
        kept_plan(tmp_path / "run", "test", 0)
    in_place_of(tmp_path / "run" / "peers" / "peer-0.starts", what, tmp_path / "elsewhere")
    with pytest.raises(DataError, match=rf"peer-0\.starts: .*cannot be read \(({REFUSED})\)"):
        next_incarnation(tmp_path / "run", 0)


@pytest.mark.parametrize("what", ["link", "pipe"])
def test_what_lies_where_a_tail_or_checkpoint_is_begun_is_replaced_not_written_through(what, tmp_path):
    journal = Journal(tmp_path, 0)
    in_place_of(tmp_path / "peers" / "peer-0.safetensors.partial", what, tmp_path / "elsewhere")
    path = journal.save_tail({"theta": torch.zeros(3)}, {})
    journal.close()
    assert path.is_file()
    assert not path.is_symlink()
    if what == "link":
        assert (tmp_path / "elsewhere").read_text() == "mine"


@pytest.mark.parametrize("what", ["link", "pipe"])
def test_a_checkpoint_that_is_a_link_or_a_pipe_is_named_and_not_read(what, tmp_path):
    run_all(keeping(tmp_path / "run"))
    newest = [*checkpoint_files(checkpoint_folder(tmp_path / "run", 0)).values()][-1]
    in_place_of(newest, what, tmp_path / "elsewhere")
    with pytest.raises(DataError, match=rf"cannot be read \(({REFUSED})\)"):
        read_checkpoint(newest)


def test_a_tail_that_cannot_be_written_is_still_told_of_with_its_peer(tmp_path):
    journal = Journal(tmp_path, 4)
    (tmp_path / "peers" / "peer-4.safetensors.partial").mkdir()
    with pytest.raises(JournalError, match=r"peer 4: .*cannot be written"):
        journal.save_tail({"theta": torch.zeros(3)}, {})
    journal.close()
