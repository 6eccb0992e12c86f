"""The embedded model: what ships, that it loads offline, and that it was made without digits."""

from __future__ import annotations

import socket
import unicodedata
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from timm.data import resolve_data_config

from p2pft_flower.errors import DataError
from p2pft_flower.learning.model import embedded
from p2pft_flower.learning.model.embedded import MEAN, STD, WEIGHTS_FILE, create_glyph_vit
from tests.later import Later

ft2font = Later("matplotlib.ft2font")
glyphs = Later("tools.embedded_weights.glyphs")
make_weights = Later("tools.embedded_weights.make_weights")
probe = Later("tools.embedded_weights.score")

PACKAGED = Path(str(files(embedded) / WEIGHTS_FILE))


@pytest.fixture(scope="module")
def few_letters():
    return glyphs.load_bank({"DejaVuSans": "AEh", "cmr10": "AEh"})


def test_weights_stay_below_two_megabytes():
    assert PACKAGED.stat().st_size < 2_000_000


def test_file_says_how_it_was_made():
    with safe_open(PACKAGED, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["alphabet"] == glyphs.ALPHABET
    assert metadata["seed"] == "0"
    assert metadata["steps"] == str(make_weights.STEPS)
    assert float(metadata["letter_accuracy"]) > 0.9


def test_loads_without_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the embedded model opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    assert create_glyph_vit(7)(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


def test_everything_but_the_head_comes_from_the_file():
    stored = load_file(PACKAGED)
    state = create_glyph_vit(10).state_dict()
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[key], state[key]) for key in state if not key.startswith("head."))
    assert state["head.weight"].shape == (10, 64)


def test_head_is_new_and_follows_the_seed():
    torch.manual_seed(3)
    first = create_glyph_vit(10).head.weight
    torch.manual_seed(3)
    assert torch.equal(first, create_glyph_vit(10).head.weight)
    assert not torch.equal(first, create_glyph_vit(10).head.weight)


@pytest.mark.parametrize("spoil", ["lose", "add", "reshape"])
def test_damaged_file_is_refused(monkeypatch, spoil):
    state = load_file(PACKAGED)
    weight = state.pop("norm.weight")
    if spoil != "lose":
        state["norm.weight"] = weight if spoil == "add" else weight[:3]
    if spoil == "add":
        state["blocks.9.norm.weight"] = weight
    monkeypatch.setattr(embedded, "load_file", lambda _: state)
    with pytest.raises(DataError, match=r"norm\.weight do not fit"):
        create_glyph_vit(10)


def test_timm_reads_the_data_config():
    config = resolve_data_config({}, model=create_glyph_vit(10))
    assert config["input_size"] == (1, 8, 8)
    assert config["mean"] == (MEAN,)
    assert config["std"] == (STD,)
    assert config["crop_pct"] == 1.0


def test_no_digit_is_in_the_alphabet():
    assert len(set(glyphs.ALPHABET)) == len(glyphs.ALPHABET)
    assert all(unicodedata.category(sign) in ("Lu", "Ll") for sign in glyphs.ALPHABET)
    assert not any(sign.isnumeric() for sign in glyphs.ALPHABET)
    assert not set(glyphs.ALPHABET) & set("".join(glyphs.LEFT_OUT.values()))
    assert all(set(letters) <= set(glyphs.ALPHABET) for letters in glyphs.FACES.values())


def test_every_font_has_its_letters():
    # A font without a letter draws a box in its place, and the model would learn the box.
    for face, letters in glyphs.FACES.items():
        known = ft2font.FT2Font(str(glyphs.font_path(face))).get_charmap()
        assert {letter for letter in letters if ord(letter) not in known} == set(), face
    assert glyphs.UNSEEN_FACE not in glyphs.FACES


def test_glyphs_are_counts_as_in_the_uci_digits(few_letters):
    images, labels = glyphs.draw(few_letters, 64, torch.Generator().manual_seed(0))
    assert images.shape == (64, 1, 8, 8)
    assert torch.equal(images * 16, (images * 16).round())
    assert images.min() == 0
    assert images.max() == 1
    assert {glyphs.ALPHABET[label] for label in labels.tolist()} == set("AEh")
    again, _ = glyphs.draw(few_letters, 64, torch.Generator().manual_seed(0))
    assert torch.equal(images, again)


def test_script_makes_the_same_weights_twice(tmp_path, monkeypatch, few_letters):
    monkeypatch.setattr(make_weights, "load_bank", lambda _: few_letters)
    for name in ("first", "second"):
        make_weights.main(["--quick", "--out", str(tmp_path / name)])
    # Tensors, not bytes: safetensors writes its metadata in no fixed order.
    first, second = load_file(tmp_path / "first"), load_file(tmp_path / "second")
    assert all(torch.equal(first[key], second[key]) for key in first | second)
    assert first.keys() == load_file(PACKAGED).keys()


def test_script_draws_a_preview(tmp_path, monkeypatch, few_letters):
    monkeypatch.setattr(make_weights, "load_bank", lambda _: few_letters)
    make_weights.main(["--preview", str(tmp_path / "glyphs.png")])
    assert (tmp_path / "glyphs.png").stat().st_size > 1000


def test_letters_help_with_digits():
    digits = probe.load_split("validation")
    torch.manual_seed(0)
    random = probe.linear_probe(create_glyph_vit(10, pretrained=False), digits)
    assert probe.linear_probe(create_glyph_vit(10), digits) > max(0.9, random + 0.1)
