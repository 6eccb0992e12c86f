"""``p2pft rejoin``: a site that died comes back while the others train. Real processes."""

from __future__ import annotations

import os
import re
import signal
import stat
from pathlib import Path

import pytest

from p2pft_flower.report.collected import collect_results, find_peers
from p2pft_flower.report.results import read_results

from .deployment import Deployment

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def deployment(tmp_path):
    with Deployment(tmp_path, 3) as started:
        yield started
    assert not list(started.started())


def node_config(deployment, peer):
    address, folder = f"127.0.0.1:{deployment.ports[peer]}", deployment.outputs[peer]
    return f'peer-id={peer} peer-address="{address}" output-dir="{folder}"'


def signal_site(deployment, peer, number):
    """Signal a site's SuperNode and all its children at once."""
    deployment.supernodes[peer].send_signal(signal.SIGSTOP)  # it starts nothing meanwhile
    group = os.getpgid(deployment.supernodes[peer].pid)
    os.killpg(group, number)


def test_a_site_that_died_comes_back_and_all_peers_train_to_the_end(deployment):
    folder = deployment.folder / "results"
    settings = {"iterations": 1000, "evaluate-every": 20, "peer-timeout": 5.0, "output-dir": str(folder)}
    # The others wait for it from when it is suspended: on however fast a machine they do not end before.
    run = deployment.run(topology="directed-ring:3", **settings, on_failure="wait")
    deployment.trains(run)
    signal_site(deployment, 1, signal.SIGSTOP)
    plan = deployment.outputs[1] / run / "peers" / "peer-1.plan.json"
    assert stat.S_IMODE(plan.stat().st_mode) == 0o600
    refused = deployment.p2pft_fails("rejoin", run, "--node-config", node_config(deployment, 1))
    assert re.search(rf"peer 1 of run {run} trains already, in process \d+", refused)
    signal_site(deployment, 1, signal.SIGKILL)  # as a power cut would
    rejoined = deployment.start_p2pft("rejoin", run, "--node-config", node_config(deployment, 1))
    deployment.peers_end(run)
    assert rejoined.wait(60) == 0, deployment.said()
    for peer in range(3):
        views = deployment.lines(run, peer, "view")
        assert [(view["peers"], view["joined"]) for view in views] == [([0, 1, 2], [1])]
    deployment.ended(run)
    results = read_results(Path(folder))
    assert results["status"] == "completed-with-2-of-3"
    assert "peers [1] came back through p2pft rejoin" in results["error"]
    assert [view["joined"] for view in results["views"]] == [[1]]
    collected = collect_results(find_peers([output / run for output in deployment.outputs]))
    assert collected["status"] == "completed"
    assert collected["error"] is None
    assert collected["history"][-1]["accuracy"][1] is not None
