"""A deployment rehearsed with real Flower, real processes, mutual TLS: up, runs, down, nothing left."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.flower.engine import run_app
from tests.flower.sameness import tails
from tests.quadratics import QUADRATICS

from .real import environment, marked, p2pft

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(900)

SETTINGS = {"problem": QUADRATICS, "iterations": 4, "meet-timeout": 300, "peer-timeout": 300}

RING = {"north": "directed-ring:2", "south": "complete:1"}


@pytest.fixture
def env(tmp_path):
    yield (env := environment(tmp_path) | {"OMP_NUM_THREADS": "1"})
    _, left = psutil.wait_procs(marked(env), timeout=30)
    for process in left:
        process.kill()
    assert not left, f"left running: {left}"


class Site:
    """A home of its own, in which a federation is rehearsed."""

    def __init__(self, name, env, folder):
        self.name, self.folder, self.graph = name, folder / name, RING[name]
        self.folder.mkdir()
        self.env = env | {"P2PFT_HOME": f"{self.folder}/p2pft", "FLWR_HOME": f"{self.folder}/flwr"}

    def p2pft(self, *words):
        return p2pft(self.env, *words, cwd=self.folder, timeout=400)

    def up(self):
        up = self.p2pft("up", "--topology", self.graph, "--federation", self.name, "--json")
        assert up.returncode == 0, up.stderr
        peers = json.loads(up.stdout)["peers"]
        assert all((Path(peer["certificates"]) / "peer.key").is_file() for peer in peers)

    def alive(self):
        file = self.folder / "p2pft" / "rehearsal" / "state.json"
        state = json.loads(file.read_text()) if file.is_file() else {"processes": []}
        return [psutil.pid_exists(process["pid"]) for process in state["processes"]]


def test_two_rehearsals_at_once_of_which_one_reaches_the_simulations_theta_and_down_ends_its_own_only(
    env, tmp_path
):
    """A SuperLink's SuperNodes are one federation: different peers at once are two SuperLinks.

    `tests/flower/test_deployments.py` has run after run on one SuperLink, `tests/deploy/test_guide.py` has
    `p2pft run --connection`.
    """
    north, south = Site("north", env, tmp_path), Site("south", env, tmp_path)
    try:
        north.up()
        assert north.p2pft("up", "--peers", "3").returncode == 3
        south.up()
        settings = SETTINGS | {
            "topology": north.graph,
            "evaluate-every": 1,
            "observer-address": "127.0.0.1:0",  # the peers are told which port it became
            "output-dir": f"{north.folder}/run",
        }
        config = " ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())
        flwr, app = Path(sys.executable).parent / "flwr", ROOT / "apps" / "p2pft"
        done = subprocess.run(
            [flwr, "run", app, "rehearsal", "--stream", "--run-config", config],
            env=north.env,
            cwd=north.folder,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert f"results: {north.folder}/run/results.json" in said, said
        # Over mutual TLS, while they trained: these lines are written only when a report comes in.
        told = re.findall(r"iteration (\d)/4 \| loss", said)
        assert told == ["0", "1", "2", "3", "4"], said
    finally:
        down = north.p2pft("down")
        alive = south.alive()
        last = south.p2pft("down")
    assert (down.returncode, down.stdout) == (0, "ended the rehearsal of 2 peers\n"), down.stderr
    assert alive == [True, True]
    assert last.returncode == 0, last.stderr
    assert marked(env) == []
    assert "rehearsal" not in (north.folder / "flwr" / "config.toml").read_text()

    results = json.loads((north.folder / "run" / "results.json").read_text())
    assert (results["status"], results["hosts"]) == ("completed", [[0], [1]])
    run_app(tmp_path / "simulated", topology=north.graph, iterations=4, problem=QUADRATICS)
    assert tails(north.folder / "run", range(2)) == tails(tmp_path / "simulated", range(2))
