"""Whole runs as a user starts them: real Flower, real Ray, real processes, and nothing left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from p2pft_flower.lab.ports import free_ports
from tests.flower.deployment import wait_until
from tests.quadratics import QUADRATICS, SLOW

from .real import environment, marked, p2pft

ROOT = Path(__file__).resolve().parents[2]
PROXY = "http://127.0.0.1:9"  # nobody listens there

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def env(tmp_path):
    yield (env := environment(tmp_path))
    left = marked(env)
    for process in left:
        process.kill()
    assert not left, f"left running: {left}"


def sockets():
    return {p.name for p in Path(tempfile.gettempdir()).glob("p2pft-*")}


def test_the_main_job_teaches_four_peers_all_ten_digits(env, tmp_path):
    """`flwr run apps/p2pft --stream`, on Flower's own local SuperLink and default federation."""
    names = ("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "FLWR_LOCAL_CONTROL_API_PORT")
    env |= dict(zip(names, map(str, free_ports(2)), strict=True))
    try:
        command = [str(Path(sys.executable).parent / "flwr"), "run", str(ROOT / "apps" / "p2pft"), "--stream"]
        done = subprocess.run(
            command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (folder,) = (tmp_path / "p2pft" / "runs").iterdir()
        assert f"results: {folder}/results.json" in done.stdout
        assert "iteration 300/300" in done.stdout  # progress came through the observer
        results = json.loads((folder / "results.json").read_text())
        assert results["status"] == "completed"
        assert min(p["accuracy"] for p in results["peers"]) >= 0.93
        rays = [p for p in marked(env) if "ray" in p.name()]
        _, left = psutil.wait_procs(rays, timeout=60)  # Flower's engine takes them down after its last line
        assert not left
    finally:  # Flower's managed SuperLink outlives flwr run by design; this one is ours to end
        for process in marked(env):
            process.terminate()
        psutil.wait_procs(marked(env), timeout=20)


def test_sixteen_peers_finish_whatever_proxies_the_environment_names_and_leave_nothing_behind(env, tmp_path):
    """SuperLink, command line and simulation talk HTTP to each other, on this machine."""
    proxies = {"http_proxy": PROXY, "HTTPS_PROXY": PROXY, "ALL_PROXY": "socks5://127.0.0.1:9"}
    env = {name: value for name, value in env.items() if name.lower() != "no_proxy"} | proxies
    env["RAY_ADDRESS"] = "127.0.0.1:9"  # of a cluster that this run is not for
    before = sockets()
    words = ("topology=exponential:16", f"problem={QUADRATICS}", "iterations=3", "--out", "out")
    done = p2pft(env, "run", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ALL_PROXY = socks5://127.0.0.1:9 cannot be used" in done.stderr
    assert done.stdout.splitlines()[-1] == f"results: {tmp_path}/out/results.json"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [p["peer"] for p in results["peers"]] == list(range(16))
    assert sockets() == before
    again = p2pft(env, "run", "--out", "out", cwd=tmp_path)
    assert again.returncode == 2
    assert "holds an earlier run" in again.stderr


def test_a_peer_that_raises_is_one_clear_error_and_exit_1(env, tmp_path):
    (tmp_path / "faulty.py").write_text(
        "from p2pft_flower.algorithms.p2pft import P2PFT\n"
        "class Faulty(P2PFT):\n"
        "    def step(self, k, state, gradient):\n"
        "        def broken(theta):\n"
        "            if k == 5:\n"
        "                raise MemoryError('the GPU of this site is full')\n"
        "            return gradient(theta)\n"
        "        return (yield from super().step(k, state, broken))\n"
    )
    before = sockets()
    words = (f"algorithm={tmp_path}/faulty.py:Faulty", f"problem={QUADRATICS}", "iterations=20")
    done = p2pft(env, "run", *words, "--out", "out", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    starting, error = done.stderr.strip().splitlines()
    assert starting.startswith("starting Flower")
    assert "the GPU of this site is full" in error
    assert json.loads((tmp_path / "out" / "results.json").read_text())["status"] == "failed"
    assert sockets() == before


def test_a_wrong_graph_or_key_exits_2_before_anything_starts(env, tmp_path):
    (tmp_path / "broken.yaml").write_text("peers: 3\nedges: [[0, 1], [1, 2]]\n")
    done = p2pft(env, "run", "topology=broken.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "strongly connected" in done.stderr
    done = p2pft(env, "run", "learning-rte=0.1", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'learning-rate'" in done.stderr
    assert not (tmp_path / "flwr").exists()  # Flower was never asked


# Whoever starts the tests in the background has them inherit an ignored SIGINT.
INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from p2pft_flower.cli import main
main()
"""


def test_ctrl_c_ends_all_processes_of_a_run_and_keeps_the_scores_so_far(env, tmp_path):
    before = sockets()
    words = [f"problem={SLOW}", "iterations=1000000", "evaluate-every=3", "--out", "out"]
    command = [sys.executable, "-c", INTERRUPTIBLE, "run", *words]
    with subprocess.Popen(
        command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        for line in process.stdout:
            if "iteration " in line and "left" in line:
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    assert process.returncode == 130
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["status"] == "stopped"
    assert [p["peer"] for p in results["peers"]] == [0, 1, 2, 3]  # with the scores that their journals have
    assert all(p["accuracy"] is not None and p["iterations"] >= 3 for p in results["peers"])
    assert len(results["history"]) > 1
    assert marked(env) == []
    assert sockets() == before


def superlink_runs(env):
    try:
        return any("flower-superlink" in " ".join(process.cmdline()) for process in marked(env))
    except psutil.Error:  # one of them has just ended
        return False


def test_a_run_that_is_told_to_end_while_flower_starts_leaves_no_process(env, tmp_path):
    before = sockets()
    command = [Path(sys.executable).parent / "p2pft", "run", f"problem={SLOW}", "--out", "out"]
    with subprocess.Popen(command, env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline().startswith("starting Flower")
        wait_until(lambda: superlink_runs(env), "the SuperLink runs")
        process.terminate()
        process.communicate(timeout=120)
    assert process.returncode == 143
    assert marked(env) == []
    assert sockets() == before


def test_compare_writes_one_table(env, tmp_path):
    done = p2pft(
        env, "compare", "gt-dgd,fedavg", "topology=lopsided-4", "epochs=1", "--out", "cmp", cwd=tmp_path
    )
    # gt-dgd has no business on this graph: its row says so, and the exit code does.
    assert done.returncode == 1
    table = (tmp_path / "cmp" / "comparison.md").read_text()
    assert [row.split("|")[1].strip() for row in table.splitlines()[4:]] == ["gt-dgd", "fedavg"]
    assert "not doubly stochastic" in table
    assert (tmp_path / "cmp" / "comparison.png").stat().st_size > 10_000
    runs = json.loads((tmp_path / "cmp" / "comparison.json").read_text())["runs"]
    assert [r["status"] for r in runs] == ["failed", "completed"]
