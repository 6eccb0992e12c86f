"""``p2pft export``: what it writes and what it says."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from p2pft_flower.cli import app
from p2pft_flower.cli.evaluate import tail_files
from tests.commands import CliRunner
from tests.flower.engine import run_app


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short run of four peers on the digits."""
    folder = tmp_path_factory.mktemp("run")
    run_app(folder, iterations=2)
    return folder


def invoke(*words):
    return CliRunner().invoke(app, ["export", *map(str, words)], env={"COLUMNS": "160"})


def test_a_runs_folder_becomes_a_folder_of_whole_models(finished, tmp_path):
    result = invoke(finished, "-o", tmp_path / "models")
    assert result.exit_code == 0, result.output
    files = sorted((tmp_path / "models").iterdir())
    assert [f.name for f in files] == [f"peer-{p}.safetensors" for p in range(4)]
    assert result.stdout.count("glyph_vit_8, 10 classes") == 4
    assert {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "head.bias"} <= load_file(files[0]).keys()


def test_one_tail_becomes_one_file_and_scripts_get_json(finished, tmp_path):
    tail = finished / "peers" / "peer-2.safetensors"
    result = invoke(tail, "-o", tmp_path / "deep" / "two.safetensors", "--json")
    assert result.exit_code == 0, result.output
    (told,) = json.loads(result.stdout)
    assert (told["tail"], told["file"]) == (str(tail), str(tmp_path / "deep" / "two.safetensors"))
    assert (told["num_classes"], told["added"]) == (10, 0)
    assert told["bytes"] == (tmp_path / "deep" / "two.safetensors").stat().st_size


def test_what_cannot_be_exported_is_said_and_nothing_is_left(finished, tmp_path):
    result = invoke(finished, "-o", tmp_path / "one.safetensors")
    assert (result.exit_code, "4 tails; give a folder" in result.output) == (2, True)
    result = invoke(tmp_path / "nothing", "-o", tmp_path / "out")
    assert (result.exit_code, "no peer-<i>.safetensors there" in result.output) == (2, True)
    result = invoke(finished, finished, "-o", tmp_path / "out")
    assert (result.exit_code, "same file name" in result.output) == (2, True)
    (tmp_path / "file").write_text("in the way")
    result = invoke(finished, "-o", tmp_path / "file" / "below")
    assert (result.exit_code, "nothing can be written" in result.output) == (2, True)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_of_a_folder_only_the_models_that_came_to_their_end_are_taken(tmp_path):
    for name in ("peer-10.safetensors", "peer-2.safetensors", "peer-2.stopped.safetensors"):
        (tmp_path / name).touch()
    stopped = tmp_path / "peer-2.stopped.safetensors"
    assert [f.name for f in tail_files(tmp_path)] == ["peer-2.safetensors", "peer-10.safetensors"]
    assert tail_files(stopped) == [stopped]
