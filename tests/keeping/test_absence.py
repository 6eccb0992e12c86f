"""A peer's last word before it was lost, and how far behind it was when it came back."""

from __future__ import annotations

import os

import pytest

from p2pft_flower.keeping.absence import LastWord, last_word, returned
from p2pft_flower.keeping.bulletins import Bulletin, PeerNow, bulletin_path, write_bulletin
from p2pft_flower.keeping.lines import written
from p2pft_flower.keeping.processes import start_mark
from tests.journals import made_line


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))
    (tmp_path / "peers").mkdir()
    return tmp_path


def journal(folder, *lines):
    told = [made_line(event, 2, time=at, **fields) for event, at, fields in lines]
    (folder / "peers" / "peer-2.jsonl").write_bytes(b"".join(map(written, told)))


FIRST = [
    ("run", 100.0, {}),
    ("start", 101.0, {}),
    ("evaluation", 102.0, {"iteration": 0}),
    ("evaluation", 110.0, {"iteration": 40}),
]


def bulletin(written, *, started="another process", gone=None):
    return Bulletin(
        run="7",
        n=3,
        iterations=300,
        own=(2,),
        names={},
        live=(0, 1, 2),
        on_failure="continue",
        min_peers=0,
        silence=5.0,
        folder="",
        pid=os.getpid(),
        started=started,
        begun=100.0,
        written=written,
        peers=(PeerNow(peer=2, iteration=0 if gone else 47),),
        gone=gone or {},
    )


def test_without_a_trace_of_an_earlier_life_there_is_no_last_word(folder):
    assert last_word(folder, 2, "7") is None
    journal(folder, *FIRST)
    assert last_word(folder, 2, "8") is None, "the journal is of another run"


def test_the_journal_of_a_peer_that_left_has_its_last_word(folder):
    journal(folder, *FIRST, ("failed", 112.0, {"iteration": 45}))
    assert last_word(folder, 2, "7") == LastWord(112.0, 45)


def test_a_life_that_was_not_let_in_is_no_word_of_a_peer_that_trained(folder):
    journal(folder, *FIRST, ("run", 150.0, {}), ("start", 151.0, {}), ("failed", 190.0, {"iteration": 0}))
    assert last_word(folder, 2, "7") == LastWord(110.0, 40)


def test_a_killed_process_has_left_its_bulletin_which_is_newer_than_its_journal(folder):
    journal(folder, *FIRST)
    write_bulletin(bulletin_path(2), bulletin(113.0))
    assert last_word(folder, 2, "7") == LastWord(113.0, 47)


def test_a_killed_process_that_was_not_let_in_has_handed_the_word_of_the_one_before_on(folder):
    journal(folder, *FIRST)
    write_bulletin(bulletin_path(2), bulletin(160.0, gone={2: 113.0}))
    assert last_word(folder, 2, "7") == LastWord(113.0, 40)


def test_the_bulletin_of_this_very_process_is_no_word_from_before(folder):
    journal(folder, *FIRST)
    write_bulletin(bulletin_path(2), bulletin(170.0, started=start_mark(os.getpid())))
    assert last_word(folder, 2, "7") == LastWord(110.0, 40)


@pytest.mark.parametrize(
    ("missed", "words"),
    [
        (None, "peer 2 has come back"),
        (0, "peer 2 has come back, no iteration behind"),
        (1, "peer 2 has come back, 1 iteration behind (it was lost after 59)"),
        (20, "peer 2 has come back, 20 iterations behind (it was lost after 40)"),
    ],
)
def test_a_return_in_words(missed, words):
    assert returned("peer 2", 60, missed) == words
