"""Runs of image towers with heads of texts: digits' names over four peers, resume, a site without a tower."""

from __future__ import annotations

import json
import sys
import threading

import pytest
from safetensors import safe_open

from p2pft_flower.cli import app
from p2pft_flower.cli.evaluate import texts_elsewhere
from p2pft_flower.errors import P2PFTError
from p2pft_flower.flower import client
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.learning.model.tower_names import GLYPH_CLIP
from p2pft_flower.report.results import read_results
from tests.commands import CliRunner
from tests.letters import write_names

from .engine import Engine, run_app
from .sameness import same_run
from .test_resume import killed_after

CLIP = {"model": GLYPH_CLIP, "head": "text", "text_tower": GLYPH_CLIP}


def forget():
    """Let the next run be as in a process of its own."""
    client.workload.cache_clear()
    client.holdings.cache_clear()
    client._facts.cache_clear()


@pytest.fixture(autouse=True)
def _fresh():
    forget()


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
    templates = tmp_path / "templates.txt"
    templates.write_text("a photo of a {}.\n")
    moved = ["evaluate", "--json", tmp_path / "run", "--prompts", templates]
    assert invoke(*moved) == invoke("evaluate", "--json", tmp_path / "run")
    templates.write_text("the {}.\n")
    result = CliRunner().invoke(app, list(map(str, moved)))
    assert result.exit_code == 2
    assert f"prompts = '{templates}' gives other texts than the run's" in " ".join(result.stderr.split())
    given = texts_elsewhere(None, GLYPH_CLIP, None, None)
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


class Site(threading.local):
    """Which node's ClientApp runs in this thread."""

    node = None


class Guarded:
    """open_clip, or a module of it, which one site has not installed."""

    def __init__(self, module, site):
        self._module, self._site = module, site

    def __getattr__(self, name):
        if self._site.node == 1:
            raise ModuleNotFoundError("No module named 'open_clip'")
        return getattr(self._module, name)


@pytest.fixture
def _second_site_has_no_open_clip(monkeypatch):
    site = Site()
    execute = Engine._execute

    def executed(self, message):
        site.node = message.metadata.dst_node_id - 1000
        return execute(self, message)

    monkeypatch.setattr(Engine, "_execute", executed)
    for name in [name for name in sys.modules if name.partition(".")[0] == "open_clip"]:
        monkeypatch.setitem(sys.modules, name, Guarded(sys.modules[name], site))


@pytest.mark.usefixtures("_second_site_has_no_open_clip")
def test_a_site_with_embeddings_alone_takes_part_beside_one_with_a_tower(names, tmp_path):
    words = (f"text-tower={GLYPH_CLIP}", f"class-names={names}")
    invoke("text-embeddings", tmp_path / "t.safetensors", *words, "--json")
    sites = [{"peer-id": p, "peer-address": f"127.0.0.1:{port}"} for p, port in enumerate(free_ports(2))]
    settings = {**CLIP, "class_names": str(names), "tune": "head", "learning_rate": 0.02, "iterations": 40}
    settings |= {"topology": "ring:2", "partition": "classes:0-4,5-9", "slots": 2, "node_configs": sites}
    with pytest.raises(P2PFTError, match=r"peer 1 .*No module named 'open_clip'"):
        run_app(tmp_path / "refused", **settings)
    sites[1]["text-embeddings"] = str(tmp_path / "t.safetensors")
    forget()
    run_app(tmp_path / "run", **settings)
    results = read_results(tmp_path / "run")
    assert results["history"][0]["accuracy"][0] == results["history"][0]["accuracy"][1]
    assert min(results["history"][-1]["accuracy"]) > 0.4
