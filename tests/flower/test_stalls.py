"""The coordinator's own lines while a run stands still."""

from __future__ import annotations

import pytest

from p2pft_flower.flower.stalls import StallLog
from p2pft_flower.report.status import status_of
from tests.report.test_status import NOW, bulletin, peer, view


@pytest.fixture
def said(caplog):
    caplog.set_level("INFO")
    stalls = StallLog()

    def note(*peers, **fields):
        caplog.clear()
        stalls.note(status_of([bulletin(*peers, own=(), **fields)], NOW))
        return [record.getMessage() for record in caplog.records]

    return note


def silent(seconds):
    return peer(1, heard=seconds, spoken=None)


def test_a_silence_is_told_once_and_its_end_too(said):
    assert said() == []
    assert said(silent(9.5)) == []
    (line,) = said(silent(12.0))
    assert line == "peer 1 (east) has been silent for 12 s: lost after 30 s without a word (peer-timeout)"
    assert said(silent(13.0)) == []
    assert said() == ["peer 1 (east) is silent no longer"]
    assert said() == []


def test_who_is_slow_is_named_with_who_waits(said):
    waits = peer(0, state="waiting", awaited=3, busy=15.0, heard=0.0, spoken=None)
    (line,) = said(waits)
    assert line.startswith("peer 3 (west) is slow: peer 0 (north) has waited 15 s for it;")


def test_the_end_of_a_silence_by_a_loss_is_told_by_the_change_of_view(said):
    assert len(said(peer(3, heard=12.0, spoken=None))) == 1
    assert said(live=(0, 1, 2), views=(view(),)) == []
