"""``p2pft status`` shows a run before its hosts are there: while their processes read data."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from msgspec import structs

from p2pft_flower.host.early import EarlyBulletin
from p2pft_flower.host.host import Host
from p2pft_flower.keeping.absence import LastWord
from p2pft_flower.keeping.bulletins import bulletins, write_bulletin
from p2pft_flower.keeping.lines import written
from p2pft_flower.report.status import status_of
from p2pft_flower.report.status_text import status_table
from tests.journals import made_line
from tests.keeping.test_absence import bulletin

from .hosts import ALONE, RING, tcp, until
from .quadratic import Quadratics, plans


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))
    made = plans(RING, ALONE, tcp(), tmp_path, survive=True)[2]
    return replace(made, names={2: "south", 3: "west"})


def seen(plan):
    return status_of(bulletins(plan.run), time.time())


def test_the_run_and_its_sites_are_shown_with_what_this_one_does_and_nothing_is_left(plan):
    with EarlyBulletin(plan) as early:
        until(lambda: bulletins(plan.run))
        status = seen(plan)
        assert [p.state for p in status.peers] == ["unknown", "unknown", "preparing", "unknown"]
        text = status_table(status, time.time())
        assert "reading data" in text
        assert "west" in text
        early.close()
        assert bulletins(plan.run), "until the host writes it"
    assert bulletins(plan.run) == []


def test_a_peer_that_comes_back_is_lost_while_it_reads_its_data_and_its_host_knows_since_when(plan, tmp_path):
    (tmp_path / "peers").mkdir()
    lines = [
        made_line("run", 2, time=10.0, run=plan.run),
        made_line("evaluation", 2, time=20.0, iteration=30),
    ]
    (tmp_path / "peers" / "peer-2.jsonl").write_bytes(b"".join(map(written, lines)))
    killed = tmp_path / "home" / "running" / "1-2.bulletin"
    write_bulletin(killed, structs.replace(bulletin(25.0), run=plan.run))
    with EarlyBulletin(plan, joining=True):
        until(lambda: bulletins(plan.run))
        assert seen(plan).peers[2].state == "lost"
        now = time.time()
        assert status_of(bulletins(plan.run), now).peers[2].since == pytest.approx(now - 25.0, abs=0.001)
        assert not killed.exists(), "its bulletin is replaced"
        assert Host(plan, Quadratics(), joining=True)._last_words == {2: LastWord(25.0, 47)}


def test_a_host_says_whether_it_prepares_or_meets_the_others(plan):
    host = Host(plan, Quadratics())
    assert host._publisher._doing == "preparing data and model"
    host._meeting.end()
    assert host._publisher._doing == "meeting the others"
    host._publisher.training_begins()
    assert host._publisher._doing == ""
