"""Executors that a site starts itself, beside its SuperNode. Real processes."""

from __future__ import annotations

import socket

import pytest

from tests.quadratics import SLOW

from .deployment import Deployment, wait_until

LEAVE = 10.0
"""Seconds within which stopped peers have left."""

FOR_EVER = {"problem": SLOW, "iterations": 10_000_000, "evaluate_every": 20}

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
