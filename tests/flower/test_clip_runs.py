"""Runs of image towers with heads of texts: digits' names over four peers, resume, a site without a tower."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from safetensors import safe_open
from typer.testing import CliRunner

from p2pft_flower.cli import app
from p2pft_flower.cli.evaluate import texts_elsewhere
from p2pft_flower.errors import P2PFTError
from p2pft_flower.flower import client
from p2pft_flower.learning.model.tower_names import GLYPH_CLIP
from p2pft_flower.report.collected import collect_results, find_peers
from p2pft_flower.report.results import read_results
from tests.letters import write_names

from .deployment import Deployment
from .engine import run_app
from .sameness import same_run
from .test_resume import killed_after

ROOT = Path(__file__).resolve().parents[2]

CLIP = {"model": GLYPH_CLIP, "head": "text", "text_tower": GLYPH_CLIP}

# The Python of a site that runs this first has no open_clip.
WITHOUT = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "open_clip":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Without())
"""


@pytest.fixture(autouse=True)
def _fresh():
    """As in a process of its own."""
    client.workload.cache_clear()
    client.holdings.cache_clear()
    client._facts.cache_clear()


@pytest.fixture
def names(tmp_path):
    return write_names(tmp_path / "digits.json")


def invoke(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_four_peers_learn_the_names_of_digits_from_where_the_texts_are(names, tmp_path):
    settings = {**CLIP, "class_names": str(names), "tune": "head", "learning_rate": 0.02, "iterations": 100}
    run_app(tmp_path / "run", nodes=1, **settings, evaluate_every=50)
    results = read_results(tmp_path / "run")
    first, last = results["history"][0]["accuracy"], results["history"][-1]["accuracy"]
    assert max(first) < 0.3  # it never saw a digit
    assert min(last) > 0.65
    untrained = invoke("evaluate", "--json", "--zero-shot", tmp_path / "run")
    assert [s["accuracy"] for s in untrained] == first
    drawn = invoke("attention", tmp_path / "run", "-o", tmp_path / "a.png", "--map", "text", "--json")
    assert drawn["subtitle"].startswith("Cosine of each patch and the text of the image's class")
    assert drawn["patches"] == [4, 4]
    # On another machine: without a tower, with the file that one made.
    words = (f"text-tower={GLYPH_CLIP}", f"class-names={names}")
    made = invoke("text-embeddings", tmp_path / "t.safetensors", *words, "--json")
    assert (made["classes"], made["numbers"], made["first"]) == (10, 32, "a photo of a zero.")
    by_file = ["--json", tmp_path / "run", "--text-embeddings", tmp_path / "t.safetensors"]
    assert invoke("evaluate", *by_file) == invoke("evaluate", "--json", tmp_path / "run")
    given = texts_elsewhere(None, GLYPH_CLIP, None)
    assert given == {"text_tower": GLYPH_CLIP, "text_embeddings": ""}  # a site's file does not count first
    names.unlink()
    scored = invoke("evaluate", "--json", tmp_path / "run", "--text-embeddings", tmp_path / "t.safetensors")
    assert [s["accuracy"] for s in scored] == last
    other = write_names(tmp_path / "other.json", ("nought", *"123456789"))
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run"), "--class-names", str(other)])
    assert result.exit_code == 2
    assert "gives other texts than the run's" in " ".join(result.stderr.split())


def test_a_resumed_run_of_a_learned_prompt_is_the_uninterrupted_one(names, tmp_path):
    settings = {
        **CLIP,
        **{"class_names": str(names), "tune": "text-prompt-class:2", "learning_rate": 0.01},
        **{"iterations": 12, "evaluate_every": 4, "checkpoint_every": 4},
    }
    run_app(tmp_path / "whole", nodes=1, **settings)
    kept = str(killed_after(4, tmp_path / "whole", tmp_path / "k", n=4))
    moved = names.rename(tmp_path / "moved.json")
    run_app(tmp_path / "resumed", nodes=1, **{**settings, "class_names": str(moved)}, resume=kept)
    same_run(tmp_path / "whole", tmp_path / "resumed", n=4)
    scored = invoke("evaluate", "--json", tmp_path / "resumed")
    assert [s["accuracy"] for s in scored] == read_results(tmp_path / "whole")["history"][-1]["accuracy"]
    with safe_open(tmp_path / "whole" / "peers" / "peer-0.safetensors", framework="numpy") as tail:
        assert set(tail.keys()) == {"head.classifier.context"}


def test_names_that_do_not_fit_end_a_run_before_it_begins(names, tmp_path):
    names.write_text('{"0": "zero"}')
    settings = {**CLIP, "class_names": str(names), "tune": "head", "iterations": 2}
    with pytest.raises(P2PFTError, match="no name for the classes 1, 2, 3"):
        run_app(tmp_path / "run", nodes=1, **settings)
    assert not (tmp_path / "run" / "peers").exists()


class Unlike(Deployment):
    """Two sites, of which the second has no open_clip, but a file of text embeddings."""

    def node_config(self, peer):
        own = f' text-embeddings="{self.folder.parent}/t.safetensors"' if peer == 1 else ""
        return super().node_config(peer) + own

    def _start(self, name, command):
        if name == "supernode-1":
            places = os.pathsep.join([str(self.folder.parent / "without"), str(ROOT)])
            command = ["env", f"PYTHONPATH={places}", *command]
        return super()._start(name, command)


@pytest.mark.timeout(600)
def test_a_site_with_embeddings_alone_takes_part_beside_one_with_a_tower(names, tmp_path):
    words = (f"text-tower={GLYPH_CLIP}", f"class-names={names}")
    invoke("text-embeddings", tmp_path / "t.safetensors", *words, "--json")
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(WITHOUT)
    settings = {**CLIP, "class_names": str(names), "tune": "head", "learning_rate": 0.02, "iterations": 40}
    with Unlike(tmp_path / "deployment", 2) as deployment:
        run = deployment.run(**settings, partition="classes:0-4,5-9")
        assert deployment.ended(run)["status"] == "finished:completed", deployment.said()
        results = collect_results(find_peers([output / run for output in deployment.outputs]))
    assert results["history"][0]["accuracy"][0] == results["history"][0]["accuracy"][1]
    assert min(results["history"][-1]["accuracy"]) > 0.4
