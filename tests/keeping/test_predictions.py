"""A table of answers is CSV that every reader takes, whole, and for its owner only."""

from __future__ import annotations

import contextlib
import csv
import stat

import pytest

from p2pft_flower.keeping.journal import Journal, JournalError

ROWS = [["image", "truth"], ['a, "b".png', "cat"], ["line\nend.png", "ü"]]


def test_any_name_comes_back_from_the_table(tmp_path):
    with contextlib.closing(Journal(tmp_path, 3)) as journal:
        path = journal.save_predictions(iter(ROWS))
    assert path == tmp_path / "peers" / "peer-3.predictions.csv"
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == ROWS
    assert path.read_bytes().startswith(b'image,truth\r\n"a, ""b"".png",cat\r\n')
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_name_that_is_no_text_is_escaped(tmp_path):
    with contextlib.closing(Journal(tmp_path, 0)) as journal:
        path = journal.save_predictions([["caf\udce9.png"]])
    assert path.read_text(encoding="utf-8") == "caf\\udce9.png\n"


def test_a_table_that_cannot_be_written_is_the_peers_own_fault_and_leaves_no_half(tmp_path):
    def rows():
        yield ROWS[0]
        raise OSError(28, "No space left on device")

    with (
        contextlib.closing(Journal(tmp_path, 0)) as journal,
        pytest.raises(JournalError, match=r"peer-0.predictions.csv cannot be written: No space left"),
    ):
        journal.save_predictions(rows())
    assert [path.name for path in journal.folder.iterdir()] == ["peer-0.jsonl"]
