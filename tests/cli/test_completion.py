"""Tab completion, as a real bash has it after ``p2pft --install-completion``."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm

import p2pft_flower
from p2pft_flower.algorithms import ALGORITHMS
from p2pft_flower.algorithms.codecs import make_codec
from p2pft_flower.cli import app
from p2pft_flower.cli.completion import (
    EXAMPLES,
    BashComplete,
    complete_connections,
    complete_graphs,
    complete_settings,
)
from p2pft_flower.config import RunConfig, config_keys
from p2pft_flower.flower.strategies import strategy_names
from p2pft_flower.learning.data.datasets import DATASETS, TORCHVISION
from p2pft_flower.learning.data.partitions import partition_images, resolve_partition
from p2pft_flower.learning.live import augmentation
from p2pft_flower.learning.model.models import MODELS, create_model
from p2pft_flower.learning.model.tuning import tune_model
from p2pft_flower.topology import Graph
from p2pft_flower.topology.schedule import scheduled
from tests.commands import command_of

SCRIPT = """
. "$HOME/.bash_completions/p2pft.sh"
tab() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    _p2pft_completion p2pft
    (IFS=" "; echo "${COMPREPLY[*]}")
}
"""


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    """Return a function that gives bash's COMPREPLY for each line, which is a list of bash's words."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    home = tmp_path_factory.mktemp("home")
    root = Path(p2pft_flower.__file__).resolve().parent.parent
    environment = {
        **os.environ,
        "HOME": str(home),
        "FLWR_HOME": str(home / "flwr"),
        "PYTHONPATH": str(root),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",  # pytest's own shell is not what is tested
    }
    (home / "flwr").mkdir()

    def said(*command):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    said("p2pft", "--install-completion", "bash")

    def replies(*lines):
        script = SCRIPT + "\n".join(shlex.join(["tab", "p2pft", *words]) for words in lines)
        return [line.split() for line in said("bash", "--norc", "-c", script).splitlines()]

    return replies


def test_bash_completes_keys_and_the_part_after_the_last_break(bash):
    key, numbers = bash(["run", "algor"], ["run", "topology", "=", "ring", ":"])
    assert key == ["algorithm=", "algorithm-options="]  # bash inserts what they share, and no space
    assert numbers == ["8"]


def offered(monkeypatch, *words):
    """Return what a bash with the words ``p2pft`` and ``words`` is answered; as above, but in process."""
    monkeypatch.setenv("COMP_WORDS", " ".join(["p2pft", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    return BashComplete(command_of(app), {}, "p2pft", "_P2PFT_COMPLETE").complete().split()


def test_values_graphs_connections_and_options_are_completed_too(monkeypatch, connections):
    connections.write_text('[superlink]\ndefault = "far"\n[superlink.far]\naddress = "x:1"\n')
    every = [*ALGORITHMS, *strategy_names()]
    assert offered(monkeypatch, "run", "algorithm", "=") == every
    some = [name for name in every if name.startswith("d")]
    assert offered(monkeypatch, "run", "algorithm", "=", "d") == some
    assert offered(monkeypatch, "topology", "show", "directed") == ["directed-ring-4", "directed-ring:8"]
    followed = offered(monkeypatch, "run", "topology", "=", "ring", ":", "4", "learning")
    assert followed == ["learning-rate=", "learning-rate=0.1"]
    assert offered(monkeypatch, "run", "--connection", "") == ["far"]
    option = offered(monkeypatch, "up", "--topology", "=", "exponential")
    assert option == ["exponential-16", "exponential:16"]


@pytest.mark.parametrize("key", config_keys())
def test_a_key_alone_is_offered_with_two_words_or_more_that_share_only_its_beginning(key):
    """A shell that has one offer only puts a space behind it."""
    offers = complete_settings(key)
    assert len(offers) > 1
    if not any(other != key and other.startswith(key) for other in config_keys()):
        assert all(offer.startswith(f"{key}=") for offer in offers)


def test_after_a_key_its_choices_its_default_or_the_files_are_offered():
    assert complete_settings("device=c") == ["device=cpu", "device=cuda"]
    assert complete_settings("download=") == ["download=true", "download=false"]
    assert complete_settings("epochs=") == ["epochs=25"]
    assert complete_settings("output-dir=") == []  # nothing of ours: bash goes on with files
    assert complete_settings("epoch=") == []


def test_every_value_offered_is_one_that_the_key_accepts():
    for key in config_keys():
        for offer in complete_settings(f"{key}="):
            text = offer.partition("=")[2]
            default = config_keys()[key]
            RunConfig.from_mapping(
                {key: text == "true" if isinstance(default, bool) else type(default)(text)}
            )
    for graph in complete_graphs(""):
        Graph.load(graph)


def test_the_examples_are_values_that_the_learning_layer_knows():
    for codec in EXAMPLES["codec"]:
        make_codec(codec)
    for schedule in EXAMPLES["schedule-graph"]:
        scheduled(Graph.load("ring-4"), schedule)
    for tune in EXAMPLES["tune"]:
        tune_model(create_model("glyph_vit_8", "none", 10, 0), tune)
    for augment in set(EXAMPLES["augment"]) - {"none"}:
        augmentation(create_model("glyph_vit_8", "none", 10, 0), augment)
    for model in EXAMPLES["model"]:
        assert model in MODELS or timm.is_model(model)
    texts = ("folder:/", "table:/", "features:/", "medmnist:pathmnist", "hf:")
    assert EXAMPLES["dataset"] == (*DATASETS, *TORCHVISION, *texts)
    sites = {"site": np.array(["a", "b", "c", "d"] * 100, dtype=object)}
    assert resolve_partition("by:site", "table:/", 4, (), sites) == "by:site=a,b,c,d"
    for partition in set(EXAMPLES["partition"]) - {"auto", "own", "by:site"}:
        partition_images(partition, np.arange(400) % 10, 4, [str(c) for c in range(10)], 0)


def test_a_config_file_of_flower_that_cannot_be_read_offers_nothing(connections):
    connections.write_text("[superlink\n")
    assert complete_connections("") == []
