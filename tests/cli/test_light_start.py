"""Commands that train and score nothing start without the libraries that take seconds to import."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.flower.engine import run_app
from tests.quadratics import QUADRATICS

COMMANDS = """
import json, os, sys
from p2pft_flower.cli import main

for folder, words in json.load(sys.stdin):
    sys.stdout.flush()
    if os.fork() == 0:
        os.chdir(folder)
        os.environ["P2PFT_HOME"], os.environ["FLWR_HOME"] = f"{folder}/home", f"{folder}/flwr"
        sys.argv[1:] = words
        try:
            main()
        except SystemExit as ended:
            heavy = sorted({"torch", "timm", "torchvision", "matplotlib", "flwr"} & sys.modules.keys())
            print("\\n" + json.dumps([ended.code or 0, heavy]), flush=True)
        os._exit(0)
    os.wait()
    print("END", flush=True)
"""


def started(folder, *commands):
    """Run each of ``commands`` after ``p2pft``, in a process of its own that has imported p2pft's main alone.

    Returns, for each, its exit code and what it imported of the heavy. Its processes are forks of one, which
    imports what all of them do only once.
    """
    folders = [folder / f"command-{number}" for number in range(len(commands))]
    for one in folders:
        one.mkdir()
    given = [[str(one), [str(word) for word in words]] for one, words in zip(folders, commands, strict=True)]
    done = subprocess.run(
        [sys.executable, "-P", "-c", COMMANDS],
        input=json.dumps(given),
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = done.stdout.split("\nEND\n")
    assert len(told) == len(commands) + 1, done.stderr
    return [json.loads(one.splitlines()[-1]) for one in told[:-1]]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder, as a site keeps it."""
    folder = tmp_path_factory.mktemp("run") / "1"
    run_app(folder, problem=QUADRATICS, topology="ring:2", iterations=4)
    (folder / "results.json").unlink()
    return folder


LIGHT = (
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
)

DRAWN = ("topology", "show", "ring:3", "--png", "ring.png")


@pytest.fixture(scope="module")
def ended(run, tmp_path_factory):
    """Each command's exit code, and what it imported of the heavy."""
    commands = [[word.format(run=run) for word in words.split()] for words in LIGHT]
    told = started(tmp_path_factory.mktemp("commands"), *commands, DRAWN)
    return dict(zip((*LIGHT, DRAWN), told, strict=True))


@pytest.mark.parametrize("words", LIGHT)
def test_a_command_that_trains_nothing_imports_no_flower_torch_timm_or_matplotlib(words, ended):
    code, heavy = ended[words]
    assert heavy == []
    refused = words.startswith(
        ("stop", "preflight", "run topology", "runs remove", "dashboard")
    )  # there is no such run, connection or graph
    assert (code != 0) == refused


def test_what_a_process_imports_is_seen(ended):
    """Drawing a graph needs matplotlib: the test above would tell."""
    assert ended[DRAWN] == [0, ["matplotlib"]]
