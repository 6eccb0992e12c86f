"""Sites whose images are of different kinds: the same pictures train alike, and unlike ones are found out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from p2pft_flower.flower.nodes import RunFailedError
from p2pft_flower.flower.unlike import unlike
from p2pft_flower.lab.ports import free_ports
from tests.learning.image_files import exif, png, tiff

from .engine import run_app

RNG = np.random.default_rng(0)
LEVELS = RNG.integers(0, 200, (12, 8, 8))
LEVELS[::2, :, 2:4] += 50


def site(folder, content, suffix="png"):
    for number, levels in enumerate(LEVELS):
        part = "test" if number % 3 == 2 else "train"
        file = folder / part / "ab"[number % 2] / f"{number}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content(levels))


def grey(levels):
    return png(levels, 8, 0)


def cut_out(levels):
    """White is transparent, and black below."""
    return png(np.stack([levels * 0, 255 - levels], 2), 8, 4)


KINDS = {
    "12 bits": (lambda g: png(g * 16, 16, 0), "png", "0:4080"),
    "Hounsfield units": (lambda g: tiff((g * 5 - 1000).astype(np.int16)), "tif", "-1000:275"),
    "shares of white": (lambda g: tiff((g / 255).astype(np.float32)), "tif", "0:1"),
    "cut-outs": (cut_out, "png", ""),
    "zero is white": (lambda g: tiff((65535 - g * 257).astype(np.uint16), photometric=0), "tif", ""),
    "turned": (lambda g: png(np.rot90(g), 8, 0, eXIf=exif(6)), "png", ""),
}


def settings_of(folder, **settings):
    name = f"folder:{folder}/site-{{peer}}"
    return {"dataset": name, "topology": "directed-ring:7", "iterations": 4, "batch_size": 4, **settings}


def thetas(folder):
    return [load_file(file) for file in sorted(folder.rglob("peer-*.safetensors"))]


def test_sites_with_images_of_other_kinds_train_to_the_same_bits_as_with_8_bits(tmp_path):
    for peer in range(7):
        site(tmp_path / "same" / f"site-{peer}", grey)
    site(tmp_path / "kinds" / "site-0", grey)
    for peer, (content, suffix, _) in enumerate(KINDS.values(), 1):
        site(tmp_path / "kinds" / f"site-{peer}", content, suffix)
    ranges = ["", *(black_white for *_, black_white in KINDS.values())]
    nodes = [
        {"peer-id": p, "peer-address": f"127.0.0.1:{port}", **({"pixel-range": r} if r else {})}
        for (p, port), r in zip(enumerate(free_ports(7)), ranges, strict=True)
    ]
    run_app(tmp_path / "reference", nodes=1, **settings_of(tmp_path / "same"))
    run_app(tmp_path / "deployed", slots=7, node_configs=nodes, **settings_of(tmp_path / "kinds"))
    simulated = settings_of(tmp_path / "kinds", pixel_range=",".join(r or "auto" for r in ranges))
    run_app(tmp_path / "simulated", nodes=1, **simulated)
    reference = thetas(tmp_path / "reference")
    assert len(reference) == 7
    for other in ("deployed", "simulated"):
        for one, two in zip(reference, thetas(tmp_path / other), strict=True):
            for name, tensor in one.items():
                np.testing.assert_array_equal(tensor, two[name])


def test_a_site_of_which_the_range_is_unclear_ends_the_run_before_it_trains_by_its_name(tmp_path):
    site(tmp_path / "site-0", grey)
    site(tmp_path / "site-1", KINDS["12 bits"][0])
    nodes = [{"peer-id": p, "peer-address": f"127.0.0.1:{port}"} for p, port in enumerate(free_ports(2))]
    settings = settings_of(tmp_path, topology="ring:2")
    with pytest.raises(
        RunFailedError, match=r"peer 1's images: .*hold 0 to .*pixel-range = LOW:HIGH.*node-config"
    ):
        run_app(tmp_path / "out", slots=2, node_configs=nodes, **settings)
    assert not list((tmp_path / "out").rglob("peer-*.jsonl"))


@pytest.mark.parametrize("deployed", [True, False])
def test_sites_that_read_the_same_pictures_differently_are_warned_of_with_the_numbers(
    deployed, tmp_path, capsys
):
    site(tmp_path / "site-0", lambda g: png(g // 3, 8, 0))
    site(tmp_path / "site-1", lambda g: png(255 - g // 3, 8, 0))
    nodes = [{"peer-id": p, "peer-address": f"127.0.0.1:{port}"} for p, port in enumerate(free_ports(2))]
    settings = settings_of(tmp_path, topology="ring:2")
    run_app(tmp_path / "out", slots=2, **({"node_configs": nodes} if deployed else {}), **settings)
    said = capsys.readouterr().out
    assert "the pictures of peers 0 and 1 differ in mean, as if one site read them inverted" in said
    assert "peer 0: mean 0.1" in said
    assert "peer 1: mean 0.8" in said
    if deployed:
        found = json.loads((tmp_path / "out" / "preflight.json").read_text())
        assert [row["pixels"]["images"] for row in found["peers"]] == [8, 8]


def test_private_runs_tell_no_statistics_of_their_pictures(tmp_path, capsys):
    site(tmp_path / "site-0", lambda g: png(g // 3, 8, 0))
    site(tmp_path / "site-1", lambda g: png(255 - g // 3, 8, 0))
    run_app(tmp_path / "out", dp_clip=1.0, dp_noise=1.0, **settings_of(tmp_path, topology="ring:2"))
    assert "the pictures of peers" not in capsys.readouterr().out


def statistics(mean=0.5, deviation=0.2, black=0.1, white=0.1):
    return {"images": 9, "mean": mean, "deviation": deviation, "black": black, "white": white}


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (statistics(mean=0.1), "mean"),
        (statistics(deviation=0.05), "deviation"),
        (statistics(black=0.5), "share of black pixels"),
        (statistics(mean=0.9, white=0.9), "mean, share of white pixels"),
    ],
)
def test_what_makes_sites_unlike_is_named(other, what):
    assert f"peers 1 and 3 differ in {what}, as if" in unlike({1: statistics(), 3: other})
    assert unlike({1: statistics(), 3: statistics(mean=0.6, deviation=0.3, black=0.2)}) is None
    assert unlike({1: other}) is None
    assert unlike({}) is None
