"""What a process writes of its run for ``p2pft status``."""

from __future__ import annotations

import pytest

from p2pft_flower.config import RunConfig
from p2pft_flower.host.bulletin import BulletinWriter
from p2pft_flower.host.standings import Heard
from p2pft_flower.transport import Standing
from tests.journals import made_line

HOSTS = {0: (0,), 1: (1,), 2: (2,)}


@pytest.fixture
def at(monkeypatch, tmp_path):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path))

    def set_clock(now):
        monkeypatch.setattr("p2pft_flower.host.bulletin.time.time", lambda: now)

    set_clock(1000.0)
    return set_clock


def writer(own=(0,), **more):
    return BulletinWriter("7", RunConfig(), 3, 100, own, HOSTS, {}, "/runs/7", **more)


def heard(since):
    return {2: Heard(Standing(iteration=5), None, since)}


def view(number, peers):
    return made_line("view", number=number, peers=peers, edges=())


def test_a_peer_is_gone_since_its_last_word_though_its_next_process_speaks(at):
    one = writer()
    assert one.write(heard(1.0), {2: 0.5}, []).gone == {}
    at(1020.0)
    one.write(heard(21.0), {2: 20.5}, [])
    lost = [view(1, (0, 1))]
    at(1021.0)
    assert one.write(heard(22.0), {2: None}, lost).gone == {2: 999.5}
    at(1060.0)
    assert one.write(heard(0.3), {2: 0.2}, lost).gone == {2: 999.5}, "it asks to be let in"
    at(1070.0)
    assert one.write(heard(0.3), {2: 0.2}, [*lost, view(2, (0, 1, 2))]).gone == {}
    at(1090.0)
    assert one.write(heard(20.3), {}, [*lost, view(2, (0, 1, 2)), view(3, (0, 1))]).gone == {2: 1069.8}


def test_a_process_that_comes_back_says_that_its_peer_is_in_no_view_until_one_lets_it_in(at):
    one = writer(own=(2,), gone={2: 950.0})
    first = one.write({2: Heard(Standing(), None, 0.0)}, {}, [])
    assert (first.live, first.gone) == ((0, 1), {2: 950.0})
    let_in = one.write({2: Heard(Standing(), None, 0.0)}, {}, [view(2, (0, 1, 2))])
    assert (let_in.live, let_in.gone) == ((0, 1, 2), {})


def test_a_peer_that_asks_to_come_back_is_not_set_back_to_its_beginning(at):
    one = writer()
    one.write(heard(1.0), {}, [])
    anew = {2: Heard(Standing(iteration=0, incarnation=2), None, 0.2)}
    lost = [view(1, (0, 1))]
    assert one.write(anew, {}, lost).peers[2].iteration == 5
    assert one.write(anew, {}, [*lost, view(2, (0, 1, 2))]).peers[2].iteration == 0, "it is let in"


def test_the_bulletin_of_a_host_goes_on_from_that_of_its_process_before_there_was_a_host(at):
    writer(own=(2,), gone={2: 950.0}).write({2: Heard(Standing(iteration=80), None, 0.0)}, {}, [])
    at(1060.0)
    host = writer(own=(2,), gone={2: 950.0}).write({2: Heard(Standing(), None, 0.0)}, {}, [])
    assert (host.begun, host.peers[2].iteration) == (1000.0, 80)
    other = BulletinWriter("8", RunConfig(), 3, 100, (2,), HOSTS, {}, "/runs/8").write({}, {}, [])
    assert (other.begun, other.peers[2].iteration) == (1060.0, 0), "another run of the same process"


def test_a_bulletin_has_the_name_of_its_run(at):
    config = RunConfig.from_mapping({"name": "day"})
    assert BulletinWriter("7", config, 3, 100, (0,), HOSTS, {}, "/runs/day-7").write({}, {}, []).name == "day"
