"""``p2pft chaos`` as a user runs it: real processes, killed and stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from p2pft_flower.cli import app
from tests.commands import CliRunner
from tests.journals import tracker_surplus

PROGRAM = str(Path(sys.executable).parent / "p2pft")
PATIENCE = 240.0


def test_peers_that_are_harmed_for_some_seconds_keep_what_is_promised(tmp_path):
    words = ["--peers", "4", "--minutes", "0.2", "--seed", "1", "--out", str(tmp_path / "out"), "--json"]
    ended = subprocess.run(
        [PROGRAM, "chaos", *words], check=False, capture_output=True, text=True, timeout=PATIENCE
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert (report["held"], report["violations"]) == (True, [])
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["faults"]
    assert report["changes-of-view"] >= 1
    # The same is found in the logs that were kept, all lives of a peer together.
    surplus = tracker_surplus(tmp_path / "out", range(4))
    assert len(surplus) == report["iterations-checked"]
    assert max(s.relative for s in surplus) == report["largest-relative-surplus"] < 1e-4
    assert "all held" in ended.stderr


# Whoever starts the tests in the background has them inherit an ignored SIGINT.
INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from p2pft_flower.cli import main
main()
"""


def test_who_interrupts_it_leaves_no_process(tmp_path):
    words = ["--peers", "3", "--minutes", "5", "--out", str(tmp_path / "out")]
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, "chaos", *words],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as command:
        for line in command.stdout:
            if "all 3 peers train" in line:
                break
        started = psutil.Process(command.pid).children(recursive=True)
        assert len(started) >= 3
        os.killpg(command.pid, signal.SIGINT)  # as a terminal does: all of them get it
        rest, _ = command.communicate(timeout=PATIENCE)
    assert command.returncode == 130, rest
    assert "interrupted" in rest
    _, left = psutil.wait_procs(started, timeout=30)
    assert left == []


def test_what_cannot_be_started_is_said_before(tmp_path):
    (tmp_path / "kept").touch()
    for words in (["--topology", "no-such-graph"], ["--minutes", "0"], ["--out", str(tmp_path)]):
        ended = CliRunner().invoke(app, ["chaos", *words])
        assert ended.exit_code == 2, ended.output
