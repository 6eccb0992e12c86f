"""A deployment rehearsed with real Flower, real processes, mutual TLS: up, runs, down, nothing left."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from safetensors.numpy import load_file

from tests.flower.engine import run_app
from tests.quadratics import QUADRATICS

from .real import environment, marked, p2pft

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(900)

SETTINGS = ("iterations=4", "meet-timeout=300", "peer-timeout=300")


@pytest.fixture
def env(tmp_path):
    yield (env := environment(tmp_path) | {"OMP_NUM_THREADS": "1"})
    _, left = psutil.wait_procs(marked(env), timeout=30)
    for process in left:
        process.kill()
    assert not left, f"left running: {left}"


def tails(folder):
    return [load_file(folder / "peers" / f"peer-{p}.safetensors") for p in range(3)]


def same(a, b):
    return all(
        x.keys() == y.keys() and all((x[k] == y[k]).all() for k in x) for x, y in zip(a, b, strict=True)
    )


def test_a_rehearsal_reaches_the_simulations_theta_bit_for_bit_run_after_run(env, tmp_path):
    settings = ("topology=directed-ring:3", *SETTINGS)
    up = p2pft(env, "up", "--peers", "3", "--json", cwd=tmp_path, timeout=300)
    try:
        assert up.returncode == 0, up.stderr
        peers = json.loads(up.stdout)["peers"]
        assert all((Path(peer["certificates"]) / "peer.key").is_file() for peer in peers)
        assert p2pft(env, "up", "--peers", "3", cwd=tmp_path).returncode == 3

        words = ("run", "--connection", "rehearsal", *settings, "--out", "first")
        first = p2pft(env, *words, cwd=tmp_path, timeout=400)
        assert first.returncode == 0, first.stdout + first.stderr
        assert json.loads((tmp_path / "first" / "results.json").read_text())["hosts"] == [[0], [1], [2]]

        assert "iteration 4/4 |" not in first.stdout  # the coordinator hears of the scores at the end
        observer = 'observer-address="127.0.0.1:0"'  # the peers are told which port it became
        config = " ".join(
            [
                f"topology='directed-ring:3' problem='{QUADRATICS}'",
                *SETTINGS,
                "evaluate-every=1",
                observer,
                f'output-dir="{tmp_path}/second"',
            ]
        )
        flwr, app = Path(sys.executable).parent / "flwr", ROOT / "apps" / "p2pft"
        second = subprocess.run(
            [flwr, "run", app, "rehearsal", "--stream", "--run-config", config],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert second.returncode == 0, second.stdout + second.stderr
        assert f"results: {tmp_path}/second/results.json" in second.stdout, second.stdout
        # Over mutual TLS, while they trained: these lines are written only when a report comes in.
        told = re.findall(r"iteration (\d)/4 \| loss", second.stdout)
        assert told == ["0", "1", "2", "3", "4"], second.stdout
    finally:
        down = p2pft(env, "down", cwd=tmp_path)
    assert (down.returncode, down.stdout) == (0, "ended the rehearsal of 3 peers\n"), down.stderr
    assert marked(env) == []
    assert "rehearsal" not in (tmp_path / "flwr" / "config.toml").read_text()

    for name, more in {"first": {}, "second": {"problem": QUADRATICS}}.items():
        simulated = tmp_path / f"{name}-simulated"
        run_app(simulated, topology="directed-ring:3", iterations=4, **more)
        assert same(tails(tmp_path / name), tails(simulated)), name


def test_two_federations_run_at_once_and_down_ends_its_own_only(env, tmp_path):
    """A SuperLink's SuperNodes are one federation: different peers at once are two SuperLinks."""
    sites = {
        name: env | {"P2PFT_HOME": str(tmp_path / name / "p2pft"), "FLWR_HOME": str(tmp_path / name / "flwr")}
        for name in ("north", "south")
    }
    graph = "directed-ring:2"
    program = str(Path(sys.executable).parent / "p2pft")

    def both(*words):
        """Run a command in both at once; return their standard outputs."""
        running = [
            subprocess.Popen(
                [program, *(word.format(name=name) for word in words)],
                env=site,
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for name, site in sites.items()
        ]
        said = [process.communicate(timeout=400)[0] for process in running]
        assert [process.returncode for process in running] == [0, 0], said
        return said

    try:
        both("up", "--topology", graph, "--federation", "{name}")
        settings = (f"topology={graph}", f"problem={QUADRATICS}", *SETTINGS)
        both("run", "--connection", "rehearsal", *settings, "--out", "{name}/out")
        for name in sites:
            results = json.loads((tmp_path / name / "out" / "results.json").read_text())
            assert (results["status"], results["hosts"]) == ("completed", [[0], [1]])
    finally:
        north = p2pft(sites["north"], "down", cwd=tmp_path)
        state = json.loads((tmp_path / "south" / "p2pft" / "rehearsal" / "state.json").read_text())
        alive = [psutil.pid_exists(process["pid"]) for process in state["processes"]]
        south = p2pft(sites["south"], "down", cwd=tmp_path)
    assert (north.returncode, south.returncode) == (0, 0), north.stderr + south.stderr
    assert alive == [True, True, True]
    assert marked(env) == []
