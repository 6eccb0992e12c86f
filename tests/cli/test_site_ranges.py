"""Where each site has a pixel range of its own, its tail is scored, exported and drawn with that range."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from p2pft_flower.errors import P2PFTError
from p2pft_flower.flower import client
from p2pft_flower.keeping.checkpoints import checkpoint_files, checkpoint_folder
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.learning.tails import load_tail
from p2pft_flower.report.collected import collect_results, find_peers
from p2pft_flower.report.results import read_results, write_results
from tests.cli.test_commands import invoke
from tests.flower.engine import run_app

RANGES = ["auto", "0:4095", "auto"]
SETTINGS = {"topology": "directed-ring:3", "iterations": 2, "batch_size": 4, "tune": "head"}


def write_site(root, peer):
    """Write a site of two classes: peer 0's images have 8 bits, 1's have 12 in 16, 2 has none to test."""
    rng = np.random.default_rng(peer)
    for part, count in (("train", 3), ("test", 0 if peer == 2 else 2)):
        for label, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                grey = rng.integers(0, 90, (8, 8)) + 160 * label
                grey[0, 0] = 255
                pixels = np.rint(grey / 255 * 4095).astype(np.uint16) if peer == 1 else grey.astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("ranges")
    for peer in range(3):
        write_site(root / f"site-{peer}", peer)
    dataset = f"folder:{root}/site-{{peer}}"
    for name, algorithm in (("run", "p2pft"), ("local", "local"), ("pooled", "centralized")):
        run_app(root / name, dataset=dataset, pixel_range=",".join(RANGES), **SETTINGS, algorithm=algorithm)
    return root


def scores(*words):
    result = invoke("evaluate", "--json", *map(str, words))
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def said(folder):
    return [(peer["accuracy"], peer["loss"]) for peer in read_results(folder)["peers"]]


@pytest.mark.parametrize("run", ["run", "local", "pooled"])
def test_tails_are_scored_as_in_the_run_each_with_its_own_range(run, root):
    found = scores(root / run)
    assert [(s["accuracy"], s["loss"]) for s in found] == said(root / run)
    ranges = [",".join(RANGES)] if run == "pooled" else RANGES
    assert [s["pixel_range"] for s in found] == ranges


def test_a_sites_own_range_of_a_deployment_is_that_of_its_tail(root, tmp_path):
    nodes = [
        {"peer-id": peer, "peer-address": f"127.0.0.1:{port}", "output-dir": str(tmp_path / f"out-{peer}")}
        for peer, port in enumerate(free_ports(3))
    ]
    nodes[1]["pixel-range"] = "0:4095"
    settings = {**SETTINGS, "dataset": f"folder:{root}/site-{{peer}}", "checkpoint_every": 1}
    run_app(tmp_path / "run", slots=3, node_configs=nodes, **settings)
    run = read_results(tmp_path / "run")["run"]
    folders = [tmp_path / f"out-{peer}" / run for peer in range(3)]
    found = [score for folder in folders for score in scores(folder)]
    assert [s["pixel_range"] for s in found] == RANGES
    assert [(s["accuracy"], s["loss"]) for s in found] == said(root / "run")
    results = collect_results(find_peers(folders))
    gathered = tmp_path / "gathered"
    for folder in folders:
        shutil.copytree(folder / "peers", gathered / "peers", dirs_exist_ok=True)
    write_results(gathered, results)
    drawn = invoke("attention", str(gathered), "--peer", "1", "-o", str(tmp_path / "a.png"))
    assert drawn.exit_code == 0, drawn.output

    for peer, folder in enumerate(folders):
        checkpoint_files(checkpoint_folder(folder, peer))[2].unlink()
    nodes[1]["pixel-range"] = "0:8190"
    client.holdings.cache_clear()
    client.workload.cache_clear()
    client._facts.cache_clear()
    message = r"cannot be resumed like this: peer 1's pixel-range: 0:4095 in the checkpoint, 0:8190 now$"
    with pytest.raises(P2PFTError, match=message):
        run_app(tmp_path / "on", slots=3, node_configs=nodes, **settings, resume=run)


def test_other_data_is_scored_with_the_tails_range_or_with_the_one_given(root):
    other = f"folder:{root}/site-1"
    tail = root / "run" / "peers" / "peer-1.safetensors"
    own = scores(root / "run")[1]
    assert scores(tail, "--dataset", other)[0]["loss"] == own["loss"]
    assert scores(tail, "--dataset", other)[0]["same_images"]
    darker = scores(tail, "--dataset", other, "--pixel-range", "0:65535")[0]
    assert darker["pixel_range"] == "0:65535"
    assert darker["loss"] != own["loss"]
    refused = invoke("evaluate", str(root / "run" / "peers" / "peer-0.safetensors"), "--dataset", other)
    assert "set pixel-range = LOW:HIGH" in refused.stderr  # its own is auto
    pooled = invoke("evaluate", str(root / "pooled"), "--dataset", other)
    assert pooled.exit_code == 2
    assert "it was trained on all peers' images, with pixel-range = 'auto,0:4095,auto'" in pooled.stderr
    assert scores(root / "pooled", "--dataset", other, "--pixel-range", "0:4095")[0]["images"] == 4


def test_ranges_for_each_peer_that_are_given_go_to_the_peers(root):
    found = scores(root / "run", "--pixel-range", "auto,0:65535,auto")
    assert [s["pixel_range"] for s in found] == ["auto", "0:65535", "auto"]
    for words, message in (
        (["--pixel-range", "auto,0:4095"], "has 2 ranges and none for peer 2"),
        (["--pixel-range", "4095:0"], "pixel-range = '4095:0': must be"),
        (["--pixel-range", ",".join(RANGES), "--dataset", f"folder:{root}/site-1"], "one range a peer needs"),
    ):
        refused = invoke("evaluate", str(root / "run"), *words)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert message in refused.stderr


@pytest.mark.parametrize(
    ("source", "change"), [("run", {"peer": "one"}), ("pooled", {"pooled-peers": "all"})]
)
def test_a_tail_that_does_not_say_whose_it_is_is_refused_by_name(root, tmp_path, source, change):
    (file,) = (root / source / "peers").glob("peer-[0-9].safetensors" if source == "pooled" else "peer-1.*rs")
    metadata = {**load_tail(file).metadata, **change}
    save_file(load_file(file), tmp_path / "changed.safetensors", metadata=metadata)
    ((key, value),) = change.items()
    with pytest.raises(P2PFTError, match=rf"changed\.safetensors: its metadata says {key} = '{value}'"):
        load_tail(tmp_path / "changed.safetensors")


def test_whole_models_of_such_a_run_are_written(root, tmp_path):
    result = invoke("export", str(root / "run"), "-o", str(tmp_path / "models"))
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "models").iterdir())) == 3


def attention(root, tmp_path, *words):
    return invoke("attention", *map(str, words), "--json", "-o", str(tmp_path / "a.png"))


def test_a_site_is_drawn_on_its_own_test_images(root, tmp_path):
    done = attention(root, tmp_path, root / "run", root / "local", "--peer", 1)
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["drawn"]["rows"]
    assert [row["group"] for row in rows] == ["class held by peer 1"] * 3
    without = attention(root, tmp_path, root / "run", "--peer", 2)
    assert without.exit_code == 2
    assert "nothing to draw: there are no test images" in without.stderr


def test_beside_a_pooled_run_all_sites_are_compared_on_the_test_images_of_all(root, tmp_path):
    done = attention(root, tmp_path, root / "run", root / "pooled")
    assert done.exit_code == 0, done.output
    numbers = json.loads(done.stdout)
    assert numbers["test_images"] == 8
    assert [peer["seen"]["images"] for peer in numbers["methods"][1]["peers"]] == [8, 8, 8]


def test_an_image_of_ones_own_is_drawn_with_the_peers_range_or_with_the_one_given(root, tmp_path):
    own = root / "site-1" / "test" / "cat" / "0.png"
    words = [root / "run", "--images", own]
    assert attention(root, tmp_path, *words, "--peer", 1).exit_code == 0
    refused = attention(root, tmp_path, *words, "--peer", 0)
    assert refused.exit_code == 2
    assert "set pixel-range = LOW:HIGH" in refused.stderr
    assert attention(root, tmp_path, *words, "--peer", 0, "--pixel-range", "0:4095").exit_code == 0
    unread = attention(root, tmp_path, root / "run", "--pixel-range", "0:4095")
    assert "--pixel-range is about --images, and there are none" in unread.stderr
