"""Sites that are lost while the others train: these go on, and the results say so. Real processes."""

from __future__ import annotations

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


def test_a_site_whose_supernode_dies_is_left_behind_and_named_in_the_results(deployment):
    folder = deployment.folder / "results"
    # Its peer trains on until it is told, which takes Flower some seconds.
    settings = {"iterations": 2500, "evaluate-every": 20, "peer-timeout": 5.0, "output-dir": str(folder)}
    run = deployment.run(topology="directed-ring:3", **settings)
    deployment.trains(run)
    deployment.supernodes[1].kill()
    why = "was told to end (SIGINT); the site stopped it, or its SuperNode is gone"
    deployment.peers_end(run, 0, 2)
    for peer in (0, 2):
        (view,) = deployment.lines(run, peer, "view")
        assert (view["number"], view["peers"], view["lost"]) == (1, [0, 2], [1])
        assert [0, 2] in view["edges"]  # 1 stood between them
    deployment.ended(run)
    results = read_results(Path(folder))
    assert results["status"] == "completed-with-2-of-3"
    assert [p["peer"] for p in results["peers"]] == [0, 2]
    assert "peer 1 was lost after" in results["error"]
    assert why in results["error"]
    (view,) = results["views"]
    assert view["peers"] == [0, 2]
    assert why in view["why"]["1"]
    assert results["history"][-1]["accuracy"][1] is None
    collected = collect_results(find_peers([output / run for output in deployment.outputs]))
    assert collected["views"] == results["views"]
    assert collected["status"] == results["status"]
