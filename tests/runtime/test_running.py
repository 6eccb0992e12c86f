"""What p2pft stop looks up: processes in which peers train, and no others."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import psutil
import pytest

from p2pft_flower.runtime.running import Running, registered, running


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path))
    return tmp_path


def test_a_process_is_found_while_its_peers_train():
    assert running() == []
    with registered("17", [2, 3]):
        (found,) = running()
        assert (found.run, found.peers, found.process.pid) == ("17", (2, 3), os.getpid())
        assert [r.run for r in running("17")] == ["17"]
        assert running("18") == []
    assert running() == []


def test_what_a_killed_process_left_counts_for_nothing(own_home):
    folder = own_home / "running"
    folder.mkdir()
    here = psutil.Process()
    # Another process may have got the number of one that was killed: it started at another time.
    for pid, when in ((here.pid, here.create_time() - 60), (2**22 + 1, 1.0)):
        entry = {"run": "17", "peers": [0], "pid": pid, "started": when}
        (folder / f"{pid}-0.json").write_text(json.dumps(entry))
    assert running() == []


def test_a_process_that_has_ended_is_not_alive_though_its_parent_has_not_noticed():
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    ) as child:
        there = Running("17", (0,), psutil.Process(child.pid))
        assert there.alive
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # until it has ended; it stays a zombie
        assert not there.alive
    assert not there.alive


def test_a_home_that_cannot_be_written_is_told_and_ends_no_training(own_home, monkeypatch, caplog):
    (own_home / "file").write_text("")
    monkeypatch.setenv("P2PFT_HOME", str(own_home / "file"))
    with registered("17", [0]):
        pass
    assert "p2pft stop will not find these peers" in caplog.text
