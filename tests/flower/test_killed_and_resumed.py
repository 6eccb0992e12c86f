"""A deployment of which every process is killed, and the run that goes on from what its sites kept."""

from __future__ import annotations

import random

import pytest

from p2pft_flower.keeping.checkpoints import checkpoint_files, checkpoint_folder
from p2pft_flower.report.collected import collect_results, find_peers
from p2pft_flower.report.results import read_results
from tests.quadratics import HOLD, QUADRATICS, SLOW

from .deployment import Deployment, wait_until
from .engine import run_app
from .sameness import scores, tails

pytestmark = pytest.mark.timeout(600)

SETTINGS = {
    "problem": SLOW,
    "topology": "ring:2",
    "momentum": 0.5,
    "iterations": 40,
    "evaluate_every": 10,
    "checkpoint_every": 2,
}


def test_a_deployment_of_which_all_processes_were_killed_goes_on_to_the_same_bits(tmp_path):
    last = random.randrange(2, 20)  # whichever it is, the outcome is the same
    hold = tmp_path / "hold"  # no peer comes to the end before it is killed, however late that is
    hold.touch()
    with Deployment(tmp_path / "first", environment={HOLD: str(hold)}) as killed:
        run = killed.run(**SETTINGS)
        own = checkpoint_folder(killed.outputs[0] / run, 0)
        wait_until(
            lambda: max(checkpoint_files(own), default=0) >= last, f"{last} iterations", said=killed.said
        )
        killed.kill()
    assert not any(killed.lines(run, p, "end") for p in range(2))

    folder = tmp_path / "results"
    with Deployment(tmp_path / "second", outputs=killed.outputs) as deployment:
        again = deployment.run(**SETTINGS, resume=run, output_dir=str(folder))
        assert deployment.ended(again)["status"] == "finished:completed", deployment.said()
    results = read_results(folder)
    assert results["resumed_from"]["run"] == run
    assert last - 4 <= results["resumed_from"]["iteration"] < 40

    # In memory, never interrupted, and without the wait for each gradient.
    run_app(tmp_path / "whole", slots=1, **SETTINGS | {"problem": QUADRATICS})
    sites = [output / again for output in killed.outputs]
    assert [tails(site, [p])[0] for p, site in enumerate(sites)] == tails(tmp_path / "whole", range(2))
    assert scores(results) == scores(read_results(tmp_path / "whole"))
    assert scores(collect_results(find_peers(sites))) == scores(results)
