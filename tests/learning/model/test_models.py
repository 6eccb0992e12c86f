"""Models by name, their weights, and the new head."""

from __future__ import annotations

import logging
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.model.models import create_model, preprocessing
from p2pft_flower.learning.model.split import split_model
from p2pft_flower.learning.workload import Workload
from tests.learning.conftest import small_vit

TINY = "vit_tiny_patch16_224"


def same(a, b, but=()):
    theirs = b.state_dict()
    return all(torch.equal(v, theirs[k]) for k, v in a.state_dict().items() if not k.startswith(but))


@pytest.fixture(scope="module")
def tiny():
    """A timm model with weights of its own, and 1000 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(77)
        return timm.create_model(TINY)


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(tiny.state_dict(), file)
    return file


def test_the_seed_draws_the_head_and_nothing_else_of_a_pretrained_model():
    one, same_seed, other = (create_model("glyph_vit_8", "pretrained", 10, seed=s) for s in (1, 1, 2))
    assert same(one, same_seed)
    assert same(one, other, but="head.")
    assert not torch.equal(one.head.weight, other.head.weight)


def test_the_head_does_not_depend_on_the_weights_below_it():
    head = create_model("glyph_vit_8", "pretrained", 10, seed=1).head
    random = create_model("glyph_vit_8", "none", 10, seed=1).head
    assert torch.equal(head.weight, random.weight)
    assert torch.equal(head.bias, random.bias)


def test_a_model_comes_frozen_in_eval_mode_with_a_head_for_the_classes():
    model = create_model("glyph_vit_8", "pretrained", 7, seed=1)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


def test_torchs_global_generator_is_left_alone():
    before = torch.get_rng_state()
    create_model("glyph_vit_8", "none", 10, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_weights_are_said_loudly_and_pretrained_ones_quietly(caplog):
    with caplog.at_level(logging.WARNING):
        create_model("glyph_vit_8", "pretrained", 10, seed=1)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        one = create_model("glyph_vit_8", "none", 10, seed=1)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "glyph_vit_8 starts from RANDOM weights" in record.getMessage()
    assert not same(one, create_model("glyph_vit_8", "none", 10, seed=2), but="head.")


@pytest.mark.parametrize("classes", [10, 1000])
def test_weights_come_from_a_safetensors_file_all_but_the_head(classes, tiny, checkpoint):
    model = create_model(TINY, str(checkpoint), classes, seed=3)
    assert same(model, tiny, but="head.")
    assert model.head.weight.shape == (classes, 192)
    assert torch.equal(model.head.weight, create_model(TINY, "none", classes, seed=3).head.weight)


def test_a_file_with_a_head_of_other_classes_fits(tmp_path, tiny):
    state = dict(tiny.state_dict())
    state["head.weight"], state["head.bias"] = torch.zeros(5, 192), torch.zeros(5)
    save_file(state, tmp_path / "five.safetensors")
    assert same(create_model(TINY, str(tmp_path / "five.safetensors"), 1000, seed=0), tiny, but="head.")


def lacking_a_block(state):
    return {k: v for k, v in state.items() if not k.startswith("blocks.3.")}


def with_a_block_more(state):
    return state | {
        k.replace("blocks.0", "blocks.12"): v.clone() for k, v in state.items() if "blocks.0." in k
    }


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lacking_a_block,
            r"do not fit model 'vit_tiny_patch16_224': 12 tensors, as 'blocks\.3\.norm1\.weight', are m",
        ),
        (with_a_block_more, r"do not fit .*: 12 tensors, as 'blocks\.12\.[^']*', are extra"),
        (lambda state: state | {"norm.weight": torch.ones(5)}, r"could not be loaded .*size mismatch"),
    ],
    ids=["a block lacks", "a block more", "another shape"],
)
def test_weights_that_do_not_fit_are_refused_not_left_random(spoil, message, tmp_path, tiny):
    save_file(spoil(dict(tiny.state_dict())), tmp_path / "odd.safetensors")
    with pytest.raises(DataError, match=f"(?s){message}"):
        create_model(TINY, str(tmp_path / "odd.safetensors"), 10, seed=0)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_file_that_is_no_checkpoint_is_refused_by_name(suffix, tmp_path):
    junk = tmp_path / f"junk.{suffix}"
    junk.write_bytes(b"not weights" * 50)
    with pytest.raises(DataError, match=rf"its weights could not be loaded from .*junk\.{suffix}"):
        create_model(TINY, str(junk), 10, seed=0)


def test_a_pickle_that_could_run_code_is_refused(tmp_path):
    torch.save({"cls_token": np.random.default_rng}, tmp_path / "pickled.pth")
    with pytest.raises(DataError, match=r"(?i)could not be loaded from .*pickled\.pth: .*weights.only"):
        create_model(TINY, str(tmp_path / "pickled.pth"), 10, seed=0)


@pytest.mark.parametrize(
    ("model", "weights", "error", "message"),
    [
        (
            TINY,
            "/no/such.safetensors",
            DataError,
            r"weights = '/no/such\.safetensors': there is no such file",
        ),
        (TINY, "tiny.safetensors", ConfigError, r"choose pretrained, none, or the absolute path of a file"),
        (TINY, "imagenet", ConfigError, r"weights = 'imagenet': choose pretrained, none"),
        (
            "vit_tiny",
            "none",
            ConfigError,
            r"model = 'vit_tiny' is unknown; choose one of glyph_vit_8, glyph_clip_8, my_module:my_model",
        ),
        (
            "resnet18",
            "none",
            ConfigError,
            r"model = 'resnet18': timm's resnet does more than pass tokens .* supported are timm's Vis",
        ),
        ("no_module:vit", "none", ConfigError, r"model = 'no_module:vit': cannot import 'no_module'"),
    ],
)
def test_a_model_or_weights_that_are_not_there_are_refused(model, weights, error, message):
    with pytest.raises(error, match=message):
        create_model(model, weights, 10, seed=0)


def test_a_file_for_a_model_that_brings_its_own_weights_is_refused(checkpoint):
    with pytest.raises(ConfigError, match=r"model 'glyph_vit_8' brings its own; choose pretrained or none"):
        create_model("glyph_vit_8", str(checkpoint), 10, seed=0)


def test_weights_that_cannot_be_downloaded_are_an_error_that_says_what_to_do(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("p2pft_flower.learning.model.weights.load_pretrained", offline)
    with pytest.raises(DataError, match=r"from timm's hub \(offline\? give weights = .*\): no network"):
        create_model(TINY, "pretrained", 10, seed=0)


def test_images_of_any_mode_and_size_become_what_the_model_takes(tiny):
    grey, colour = create_model("glyph_vit_8", "none", 10, seed=0), tiny
    for mode in ("L", "RGB", "RGBA", "P", "1", "CMYK"):
        image = Image.new(mode, (31, 17))
        assert preprocessing(grey)(image).shape == (1, 8, 8)
        assert preprocessing(colour)(image).shape == (3, 224, 224)
        assert preprocessing(grey)(image).dtype == torch.float32


def test_preprocessing_normalises_as_the_models_own_config_says():
    from p2pft_flower.learning.model.embedded import MEAN, STD

    grey = preprocessing(create_model("glyph_vit_8", "none", 10, seed=0))
    white, black = (float(grey(Image.new("L", (8, 8), level)).mean()) for level in (255, 0))
    assert white == pytest.approx((1 - MEAN) / STD, rel=1e-5)
    assert black == pytest.approx(-MEAN / STD, rel=1e-5)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    expected = (pixels / 255 - MEAN) / STD
    np.testing.assert_allclose(grey(Image.fromarray(pixels))[0], expected, atol=1e-5)


OWN = """
from timm.models.vision_transformer import VisionTransformer

def two_blocks(num_classes, pretrained):
    model = VisionTransformer(
        img_size=8, patch_size=4, embed_dim=12, depth=2, num_heads=2, num_classes=num_classes
    )
    model.pretrained_cfg = {"input_size": (3, 8, 8), "crop_pct": 1.0}
    return model
"""


def test_an_own_model_plugs_in_by_module_and_by_file(tmp_path, monkeypatch):
    (tmp_path / "own_vit.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    for reference in ("own_vit:two_blocks", f"{tmp_path}/own_vit.py:two_blocks"):
        model = create_model(reference, "pretrained", 4, seed=0)
        assert (len(model.blocks), model.num_classes) == (2, 4)
        workload = Workload(LearningConfig(model=reference), n=4)
        assert workload.objectives([2])[2].gradient(workload.theta0).shape == workload.theta0.shape
    del sys.modules["own_vit"]


def test_an_own_model_that_is_not_built_like_a_vit_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "own_wrong", type(sys)("own_wrong"))
    sys.modules["own_wrong"].linear = lambda num_classes, pretrained: torch.nn.Linear(3, num_classes)
    with pytest.raises(
        ConfigError,
        match=r"'own_wrong:linear' has no blocks \(or layers of blocks\), norm, forward_features",
    ):
        create_model("own_wrong:linear", "none", 10, seed=0)


def test_the_model_is_not_changed_by_splitting_it():
    model = small_vit()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    _, tail, *_ = split_model(model, "last-block")
    with torch.no_grad():
        for p in tail.parameters():
            p.add_(1)
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())


def test_models_built_in_several_threads_at_once_start_from_the_same_weights():
    """torch's generator is the process's: hosts of one process must not draw from each other's."""
    with ThreadPoolExecutor(4) as pool:
        built = pool.map(lambda _: create_model("glyph_vit_8", "none", 10, 5), range(12))
    first, *others = [model.state_dict() for model in built]
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)
