"""Commands that train and score nothing start without the libraries that take seconds to import."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.flower.engine import run_app
from tests.quadratics import QUADRATICS

HEAVY = ("torch", "timm", "torchvision", "matplotlib")

COMMAND = """
import json, sys
from p2pft_flower.cli import main
try:
    main()
except SystemExit as ended:
    heavy = sorted({"torch", "timm", "torchvision", "matplotlib"} & sys.modules.keys())
    print(json.dumps([ended.code or 0, heavy]))
"""


def started(folder, *words):
    """Run ``p2pft WORDS`` in a process of its own; return its exit code and what it imported of the heavy."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", COMMAND, *map(str, words)],
        cwd=folder,
        env={**os.environ, "P2PFT_HOME": str(folder / "home"), "FLWR_HOME": str(folder / "flwr")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder, as a site keeps it."""
    folder = tmp_path_factory.mktemp("run") / "1"
    run_app(folder, problem=QUADRATICS, topology="ring:2", iterations=4)
    (folder / "results.json").unlink()
    return folder


@pytest.mark.parametrize(
    "words",
    [
        "certs init federation --federation hospitals",
        "certs request site --federation hospitals --peer 1",
        "collect {run} --out collected",
        "evaluate {run}",
        "stop 1",
        "runs",
        "runs remove 1 --yes",
        "topology list",
        "topology show lopsided-4",
        "topology audit lopsided-4",
        "preflight --connection nowhere",
        "run topology=nowhere",
        "dashboard nowhere --listen 127.0.0.1:0",
        "--help",
    ],
)
def test_a_command_that_trains_nothing_imports_no_torch_timm_torchvision_or_matplotlib(words, run, tmp_path):
    code, heavy = started(tmp_path, *(word.format(run=run) for word in words.split()))
    assert heavy == []
    refused = words.startswith(
        ("stop", "preflight", "run topology", "runs remove", "dashboard")
    )  # there is no such run, connection or graph
    assert (code != 0) == refused


def test_what_a_process_imports_is_seen(tmp_path):
    """Drawing a graph needs matplotlib: the test above would tell."""
    assert started(tmp_path, "topology", "show", "ring:3", "--png", "ring.png") == [0, ["matplotlib"]]
