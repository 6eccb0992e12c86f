"""What a peer leaves on its own disk is there when its log says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from p2pft_flower.keeping.journal import Journal, JournalError
from tests.journals import lines_of, made_line


@pytest.fixture
def synced(monkeypatch):
    """Names of what was brought to disk, and whether the tail was in its place then."""
    seen, real = [], os.fsync

    def fsync(number):
        path = Path(f"/proc/self/fd/{number}").readlink()
        folder = path if path.is_dir() else path.parent
        seen.append((path.name, (folder / "peer-3.safetensors").exists()))
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    return seen


def test_a_tail_is_on_disk_before_it_has_its_name_and_its_name_before_the_log_can_say_so(tmp_path, synced):
    journal = Journal(tmp_path, 3)
    path = journal.save_tail({"theta": torch.ones(4)}, {})
    journal.close()
    assert synced == [("peer-3.safetensors.partial", False), ("peers", True)]
    assert load_file(path)["theta"].tolist() == [1.0] * 4


def test_the_tail_of_a_peer_that_stops_waits_for_no_disk(tmp_path, synced):
    journal = Journal(tmp_path, 3)
    path = journal.save_tail({"theta": torch.ones(4)}, {}, stopped=True)
    journal.close()
    assert (path.name, synced) == ("peer-3.stopped.safetensors", [])


@pytest.fixture
def full(tmp_path):
    """A log whose disk has become full."""
    journal = Journal(tmp_path, 3)
    journal.write(made_line("run", 3))
    kept, journal._file = journal._file, open("/dev/full", "ab")  # noqa: SIM115, PTH123
    yield journal
    kept.close()


@pytest.mark.parametrize("write", [Journal.write, Journal.write_last])
def test_a_line_that_the_disk_does_not_take_is_an_error_that_names_peer_file_and_remedy(write, full):
    with pytest.raises(
        JournalError, match=r"peer 3: .*peer-3\.jsonl cannot be written: No space left .*output-dir"
    ) as e:
        write(full, made_line("view", 3))
    assert e.value.peer == 3
    full.close()  # and what the disk did not take does not come up again
    assert [line["event"] for line in lines_of(full.path)] == ["run"]


def test_a_tail_that_cannot_be_written_is_the_same_error(tmp_path):
    journal = Journal(tmp_path, 3)
    (tmp_path / "peers" / "peer-3.safetensors.partial").mkdir()
    with pytest.raises(JournalError, match=r"peer 3: .*peer-3\.safetensors cannot be written"):
        journal.save_tail({"theta": torch.ones(4)}, {})
    journal.close()


@pytest.mark.parametrize("taken", ["peers", "peers/peer-3.jsonl/x"])
def test_a_journal_that_cannot_be_opened_is_a_named_error_with_a_remedy(tmp_path, taken):
    (tmp_path / taken).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / taken).touch()
    with pytest.raises(JournalError, match=r"peer 3: .*peer-3\.jsonl cannot be written: .*output-dir"):
        Journal(tmp_path, 3)


MANY_FILES = """
import resource, sys
from pathlib import Path
from p2pft_flower.keeping.journal import Journal, allow_journals
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
allow_journals(100)
journals = [Journal(Path(sys.argv[1]), peer) for peer in range(100)]
allow_journals(1)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[1] == hard, len(journals))
"""


def test_a_host_may_open_more_journals_than_the_systems_soft_limit_on_files_allows(tmp_path):
    command = [sys.executable, "-c", MANY_FILES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (0, "True 100\n"), done.stderr
