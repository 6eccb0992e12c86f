"""What p2pft stop looks up: processes in which peers train, and no others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from p2pft_flower.keeping import processes
from p2pft_flower.keeping.processes import is_alive, start_mark
from p2pft_flower.keeping.running import Running, registered, running


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path))
    return tmp_path


def test_a_process_is_found_while_its_peers_train():
    assert running() == []
    with registered("17", [2, 3], [0]):
        (found,) = running()
        assert (found.run, found.peers, found.neighbours, found.pid) == (
            "17",
            (2, 3),
            (0,),
            os.getpid(),
        )
        assert [r.run for r in running("17")] == ["17"]
        assert running("18") == []
    assert running() == []


def leave(folder, name, **entry):
    (folder / "running").mkdir(exist_ok=True)
    (folder / "running" / name).write_text(json.dumps(entry))


def test_what_a_killed_process_left_counts_for_nothing(own_home):
    # Another process may have got the number of one that was killed: it started at another time.
    here = start_mark(os.getpid())
    for pid, mark in ((os.getpid(), here + "0"), (2**22 + 1, here)):
        leave(own_home, f"{pid}-0.json", run="17", peers=[0], neighbours=[], pid=pid, started=mark)
    assert running() == []


def test_a_clock_that_is_set_loses_no_process(monkeypatch):
    with registered("17", [0], []):
        moved = psutil.Process.create_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: moved(self) + 3600)
        assert [r.peers for r in running()] == [(0,)]


def test_where_only_the_clock_tells_of_a_start_it_may_move_by_less_than_a_second(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_PROC", tmp_path)  # no Linux
    mark = start_mark(os.getpid())
    create_time = psutil.Process.create_time
    for shift, same in ((0.0, True), (0.5, True), (60.0, False)):
        monkeypatch.setattr(psutil.Process, "create_time", lambda self, by=shift: create_time(self) + by)
        assert is_alive(os.getpid(), mark) is same


@pytest.mark.parametrize("text", ["", "[]", '{"run": "17"}', '{"pid": "x", "peers": 3}'])
def test_an_entry_that_cannot_be_read_is_told_of_and_hides_no_other(own_home, text, caplog):
    with registered("17", [0], []):
        (own_home / "running" / "1-0.json").write_text(text)
        assert [r.peers for r in running()] == [(0,)]
    assert "1-0.json is left out" in caplog.text


def test_a_process_that_has_ended_is_not_alive_though_its_parent_has_not_noticed():
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    ) as child:
        there = Running("17", (0,), (), child.pid, start_mark(child.pid))
        assert there.alive
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # until it has ended; it stays a zombie
        assert not there.alive
    assert not there.alive


def test_a_home_that_cannot_be_written_is_told_and_ends_no_training(own_home, monkeypatch, caplog):
    (own_home / "file").write_text("")
    monkeypatch.setenv("P2PFT_HOME", str(own_home / "file"))
    with registered("17", [0], []):
        pass
    assert "p2pft stop will not find these peers" in caplog.text


@pytest.fixture
def terminated():
    """Have SIGTERM do no more than be counted."""
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    yield seen
    signal.signal(signal.SIGTERM, before)


def test_who_stops_a_run_ends_the_process_and_leaves_word_that_the_whole_run_is_meant(own_home, terminated):
    with registered("17", [2, 3], [0]) as entry:
        assert not entry.stops_run()
        (there,) = running("17")
        there.stop_run()
        assert terminated == [signal.SIGTERM]
        assert entry.stops_run()
    assert not list((own_home / "running").iterdir())


def test_a_mere_sigterm_is_no_word_for_the_whole_run(terminated):
    with registered("17", [0], []) as entry:
        os.kill(os.getpid(), signal.SIGTERM)
        assert terminated == [signal.SIGTERM]
        assert not entry.stops_run()


def test_a_word_for_one_host_of_a_process_is_none_for_another(terminated):
    with registered("17", [0], []) as one, registered("18", [1], []) as other:
        running("18")[0].stop_run()
        assert (one.stops_run(), other.stops_run()) == (False, True)


def test_what_a_killed_process_of_the_same_number_was_told_does_not_count(own_home):
    (own_home / "running").mkdir()
    (own_home / "running" / f"{os.getpid()}-0.stop").touch()
    with registered("17", [0], []) as entry:
        assert not entry.stops_run()


def test_a_process_that_has_just_ended_by_itself_is_stopped_without_an_error(own_home):
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        there = Running("17", (0,), (), child.pid, start_mark(child.pid))
    (own_home / "running").mkdir()
    there.stop_run()
    assert not there.alive


def test_a_process_is_found_by_its_runs_name_too():
    with registered("17", [0], [], "pets"), registered("18", [1], []):
        assert [r.run for r in running("pets")] == ["17"]
        assert [r.run for r in running("17")] == ["17"]
        assert running("") == []
