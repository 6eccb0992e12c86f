"""Whoever ends a deployed run does end its peers, at all sites. Real processes.

A start takes a quarter of a minute and more, so what can share a deployment does.
"""

from __future__ import annotations

import socket

import pytest

from p2pft_flower.report.results import FILE, read_results

from .deployment import Deployment, wait_until

LEAVE = 10.0
"""Seconds within which stopped peers have left."""

FOR_EVER = {"iterations": 10_000_000, "evaluate_every": 100}

OVER = "was told to end (SIGINT); the site stopped it, or its SuperNode is gone"

pytestmark = pytest.mark.timeout(900)


def all_stop(deployment, run, reason):
    """Wait until both ClientApps have left, each having said why in its log; and the ports are free."""
    wait_until(lambda: not deployment.processes("flwr-clientapp"), "ClientApps end", said=deployment.said)
    for peer in (0, 1):
        (last,) = deployment.lines(run, peer, "failed")
        assert reason in last["error"]
        assert not deployment.lines(run, peer, "end")
        socket.create_server(("127.0.0.1", deployment.ports[peer])).close()
    times = [deployment.lines(run, peer, "failed")[0]["time"] for peer in (0, 1)]
    assert max(times) - min(times) < LEAVE


def test_flwr_stop_and_a_sites_command_end_all_peers(tmp_path):
    with Deployment(tmp_path / "deployment") as deployment:
        folder = tmp_path / "by flwr stop"
        run = deployment.run(**FOR_EVER, output_dir=str(folder))
        deployment.trains(run)
        deployment.flwr("stop", run, "test")
        all_stop(deployment, run, "the run was stopped (flwr stop)")
        wait_until((folder / FILE).exists, "the coordinator writes its results", said=deployment.said)
        results = read_results(folder)
        assert results["status"] == "stopped"
        assert results["error"] == "the run was stopped by flwr stop or Ctrl-C (SIGINT)"

        folder = tmp_path / "by p2pft stop"
        run = deployment.run(**FOR_EVER, output_dir=str(folder))
        deployment.trains(run)
        said = deployment.p2pft("stop", run)
        assert f"run {run}: peer 0 has ended" in said
        all_stop(deployment, run, "the run was stopped at a site of it (p2pft stop, SIGTERM)")
        assert deployment.ended(run)["status"] == "finished:failed"
        results = read_results(folder)
        assert (results["status"], results["views"]) == ("stopped", [])
        assert "(p2pft stop, SIGTERM)" in results["error"]
    assert not list(deployment.started())


def test_executors_of_the_sites_own_train_the_peers_and_end_them_with_their_supernode(tmp_path):
    """SuperNodes with ``--isolation process`` start nothing themselves."""
    with Deployment(tmp_path, isolation="process") as deployment:
        run = deployment.run(**FOR_EVER, on_failure="stop")
        deployment.trains(run)
        parents = {p.ppid() for p in deployment.processes("flwr-clientapp")}
        assert parents == {executor.pid for executor in deployment.superexecs}
        deployment.superexecs[1].kill()
        deployment.superexecs[1].wait()
        all_stop(deployment, run, OVER)
        assert deployment.ended(run)["status"] == "finished:failed"

        deployment.start_superexec(1)  # as a service manager does; the SuperNode has not been restarted
        run = deployment.run(**FOR_EVER, on_failure="stop")
        deployment.trains(run)
        deployment.supernodes[1].kill()
        deployment.supernodes[1].wait()
        all_stop(deployment, run, OVER)
    assert not list(deployment.started())
