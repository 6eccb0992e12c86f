"""A simulation of which every process is killed, and the run that goes on from what it left."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from p2pft_flower.keeping.checkpoints import checkpoint_files, checkpoint_folder
from p2pft_flower.report.results import read_results
from tests.flower.deployment import wait_until
from tests.flower.engine import run_app
from tests.flower.sameness import same_run
from tests.quadratics import HOLD, QUADRATICS, SLOW

from .real import environment, marked, p2pft

pytestmark = pytest.mark.timeout(400)

SETTINGS = {
    "problem": SLOW,
    "iterations": 24,
    "evaluate_every": 8,
    "checkpoint_every": 2,
    "momentum": 0.5,
    "topology": "lopsided-4",
}
WORDS = [f"{key.replace('_', '-')}={value}" for key, value in SETTINGS.items()]


@pytest.fixture
def env(tmp_path):
    with tempfile.TemporaryDirectory(prefix="k") as scratch:  # killed processes tidy nothing up
        yield (env := environment(tmp_path) | {"TMPDIR": scratch})
        for process in marked(env):
            process.kill()


def newest(folder, peer):
    return max(checkpoint_files(checkpoint_folder(folder, peer)), default=0)


def test_a_run_of_which_all_processes_were_killed_goes_on_to_the_same_bits(env, tmp_path):
    last = random.randrange(2, 12)  # whichever it is, the outcome is the same
    program = str(Path(sys.executable).parent / "p2pft")
    hold = tmp_path / "hold"  # no peer comes to the end before it is killed, however late that is
    hold.touch()
    with subprocess.Popen(
        [program, "run", *WORDS, "--out", "killed"],
        env=env | {HOLD: str(hold)}, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        wait_until(lambda: newest(tmp_path / "killed", 0) >= last, f"peer 0 has done {last} iterations")
        for _ in range(2):  # what is being started meanwhile, too
            left = marked(env)
            for one in left:
                one.kill()
            psutil.wait_procs(left, timeout=60)
        process.wait(60)
    assert not marked(env)
    assert not (tmp_path / "killed" / "results.json").exists()
    assert all(newest(tmp_path / "killed", p) < 24 for p in range(4))

    done = p2pft(env, "run", "--resume", "killed", "--out", "resumed", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    # In memory, never interrupted, and without the wait for each gradient.
    run_app(tmp_path / "whole", slots=1, **SETTINGS | {"problem": QUADRATICS})
    same_run(tmp_path / "resumed", tmp_path / "whole")
    begun = read_results(tmp_path / "resumed")["resumed_from"]["iteration"]
    assert begun % 2 == 0
    assert last - 4 <= begun < 24
