"""Which images a model sees, by its name, its weights, itself or the run-config: the same everywhere."""

from __future__ import annotations

import json
import logging
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError, P2PFTError
from p2pft_flower.flower.run import plan_run
from p2pft_flower.learning.attention import shown_image
from p2pft_flower.learning.data.image_settings import ImageKeys, image_settings
from p2pft_flower.learning.exports import load_export, write_export
from p2pft_flower.learning.live import augmentation
from p2pft_flower.learning.model.models import create_model, data_config, preprocessing
from p2pft_flower.learning.tails import load_tail
from p2pft_flower.learning.workload import Workload
from tests.learning.published import random_state
from tests.learning.small_timm import publish

HALF, IMAGENET = (0.5, 0.5, 0.5), (0.485, 0.456, 0.406)


@pytest.fixture
def own(monkeypatch):
    """Put a factory into a module ``own_vit``; what it is called with comes after its own options."""
    module = type(sys)("own_vit")
    monkeypatch.setitem(sys.modules, "own_vit", module)

    def plug_in(cfg=None, cls=VisionTransformer, **options):
        def build(num_classes, pretrained):
            with torch.random.fork_rng(devices=[]):
                model = cls(
                    **{
                        "img_size": 16,
                        "patch_size": 4,
                        "embed_dim": 12,
                        "depth": 2,
                        "num_heads": 2,
                        **options,
                    },
                    num_classes=num_classes,
                )
            if cfg is not None:
                model.pretrained_cfg = cfg
            return model

        module.vit = build
        return "own_vit:vit"

    return plug_in


CFG = {"input_size": (3, 16, 16), "mean": HALF, "std": HALF, "crop_pct": 1.0, "interpolation": "bilinear"}


def test_a_tag_in_the_name_decides_for_a_file_too_and_the_log_says_whose_they_are(tmp_path):
    torch.save(random_state(create_model("small_vit", "none", 3, 0)), tmp_path / "w.pth")
    plain, dino = (create_model(n, str(tmp_path / "w.pth"), 3, 0) for n in ("small_vit", "small_vit.dino"))
    assert data_config(plain)["mean"] == HALF
    assert data_config(dino)["mean"] == IMAGENET
    assert "from timm's default for the name (small_vit.plain; the file" in image_settings(plain).describe()
    assert "a tag in model, or mean and std, choose them" in image_settings(plain).origins["mean"]
    assert "from timm's small_vit.dino, by the tag in model" in image_settings(dino).describe()


def test_settings_of_the_hubs_weights_are_those_of_their_entry(tmp_path):
    torch.save(random_state(create_model("small_vit", "none", 3, 0)), tmp_path / "w.pth")
    name = publish("small_vit", a={"file": str(tmp_path / "w.pth"), "mean": IMAGENET, "crop_pct": 0.8})
    model = create_model(name, "pretrained", 3, 0)
    assert (data_config(model)["mean"], data_config(model)["crop_pct"]) == (IMAGENET, 0.8)
    assert image_settings(model).origins["mean"] == f"timm's hub entry of the weights, {name}.a"


def test_an_own_model_says_itself_what_it_sees(own):
    model = create_model(own(CFG), "none", 3, 0)
    assert data_config(model) == {**CFG, "crop_mode": "center"}
    assert set(image_settings(model).origins.values()) == {"the model's pretrained_cfg"}


def test_an_own_model_that_says_nothing_has_timms_defaults_and_the_line_says_so(own):
    model = create_model(own(img_size=224, patch_size=56), "none", 3, 0)
    assert data_config(model)["mean"] == IMAGENET
    assert "from timm's defaults, as own_vit:vit has no pretrained_cfg" in image_settings(model).describe()


KEYS = [
    ("image_size", 64, "input_size", (3, 64, 64), "image-size", "image size 64 × 64 pixels, RGB"),
    ("crop_pct", 0.75, "crop_pct", 0.75, "crop-pct", "crop 0.75 (center)"),
    ("interpolation", "nearest", "interpolation", "nearest", "interpolation", "interpolation nearest"),
    ("mean", "0.25", "mean", (0.25, 0.25, 0.25), "mean", "mean (0.25, 0.25, 0.25)"),
    ("std", "0.1,0.2,0.3", "std", (0.1, 0.2, 0.3), "std", "deviation (0.1, 0.2, 0.3)"),
]


@pytest.mark.parametrize(("field", "value", "setting", "result", "key", "words"), KEYS)
def test_each_key_overrides_its_setting_and_no_other(field, value, setting, result, key, words):
    plain = data_config(create_model("small_vit", "none", 3, 0))
    config = LearningConfig(model="small_vit", weights="none", **{field: value})
    model = create_model("small_vit", "none", 3, 0, ImageKeys.of(config))
    assert data_config(model) == {**plain, setting: result}
    settings = image_settings(model)
    named = {k for k, origin in settings.origins.items() if "run-config" in origin}
    assert named == {setting}
    assert settings.origins[setting] == f"the run-config's {key}"
    assert f"{words}, from the run-config's {key}" in settings.describe()


CHANGED = {
    "image_size": 64,
    "crop_pct": 0.5,
    "interpolation": "nearest",
    "mean": "0.1,0.2,0.3",
    "std": "0.4,0.5,0.6",
}


def changed_workload(pictures, **more):
    config = LearningConfig(
        model="small_vit",
        weights="none",
        dataset=f"folder:{pictures}",
        trunk_dtype="float32",
        **CHANGED,
        **more,
    )
    return Workload(config, n=1)


def reference(image):
    """The picture as CHANGED says, without timm or torchvision."""
    side = int(64 / 0.5)
    left, size = (side - 64) // 2, 64
    resized = image.resize((side, side), Image.Resampling.NEAREST).crop(
        (left, left, left + size, left + size)
    )
    mean, std = (np.array([float(x) for x in CHANGED[k].split(",")]) for k in ("mean", "std"))
    return np.moveaxis((np.asarray(resized) / 255 - mean) / std, -1, 0)


def test_the_keys_hold_wherever_a_picture_becomes_a_tensor(folder):
    problem = changed_workload(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    np.testing.assert_allclose(preprocessing(problem.model)(image).numpy(), reference(image), atol=1e-5)
    white = Image.new("RGB", (40, 40), (255, 255, 255))
    augmented = augmentation(problem.model, "basic")(white)
    np.testing.assert_allclose(
        augmented[:, 0, 0], (1 - np.array([0.1, 0.2, 0.3])) / [0.4, 0.5, 0.6], rtol=1e-5
    )
    assert augmented.shape == (3, 64, 64)
    np.testing.assert_allclose(shown_image(problem.model, white), 1, atol=1e-6)
    assert shown_image(problem.model, white).shape == (64, 64, 3)
    inputs, _ = problem.features(0).read(np.arange(2))
    assert problem.tail(*inputs).shape == (2, 3)


def test_a_tail_is_scored_on_the_images_that_it_was_trained_on(folder, tmp_path):
    problem = changed_workload(folder)
    file = tmp_path / "peer-0.safetensors"
    told = {"run": "1", "peer": "0", "preprocessing": json.dumps(problem.preprocessing)}
    save_file(problem.named_tail(problem.theta0), file, {**problem.metadata(), **told})
    loaded = load_tail(file).workload
    assert loaded.preprocessing == problem.preprocessing
    np.testing.assert_allclose(
        loaded.score(problem.theta0).loss, problem.score(problem.theta0).loss, rtol=1e-6
    )

    other = {**problem.preprocessing, "mean": [0.3, 0.3, 0.3]}
    save_file(
        problem.named_tail(problem.theta0),
        file,
        {**problem.metadata(), **told, "preprocessing": json.dumps(other)},
    )
    with pytest.raises(
        DataError, match=r"trained on images with mean \(0\.3, 0\.3, 0\.3\), here .* \(0\.1, 0"
    ):
        load_tail(file)


def test_an_export_sees_the_images_that_it_was_trained_on(folder, tmp_path):
    problem = changed_workload(folder)
    file = tmp_path / "peer-0.safetensors"
    save_file(problem.named_tail(problem.theta0), file, {**problem.metadata(), "run": "1", "peer": "0"})
    write_export(load_tail(file), tmp_path / "whole.safetensors")
    model, _ = load_export(tmp_path / "whole.safetensors")
    assert data_config(model) == data_config(problem.model)
    assert image_settings(model).origins == problem.images.origins
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_an_export_with_nan_is_refused(folder, tmp_path):
    problem = changed_workload(folder)
    file = tmp_path / "peer-0.safetensors"
    theta = problem.theta0.copy()
    theta[0] = np.nan
    save_file(problem.named_tail(theta), file, {**problem.metadata(), "run": "1", "peer": "0"})
    write_export(load_tail(file), tmp_path / "whole.safetensors")
    with pytest.raises(DataError, match=r"whole\.safetensors: its tensor '.*' has NaN"):
        load_export(tmp_path / "whole.safetensors")


def test_the_log_names_every_setting_once_and_where_it_comes_from(folder, caplog):
    with caplog.at_level(logging.INFO, logger="p2pft_flower"):
        problem = changed_workload(folder)
        _ = problem.theta0, problem.tail, problem.objectives([0])
    (line,) = [r.getMessage() for r in caplog.records if " sees: " in r.getMessage()]
    for words in (
        "64 × 64 pixels",
        "crop 0.5 (center)",
        "nearest",
        "mean (0.1, 0.2, 0.3)",
        "deviation (0.4, 0.5, 0.6)",
    ):
        assert words in line
    assert line.startswith("small_vit sees: ")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mean": "127.5"}, r"mean = '127\.5': must be numbers from 0 to 1, .*; divide by 255\?"),
        ({"std": "127.5"}, r"std = '127\.5': must be numbers from 0\.001 to 1, .*; divide by 255\?"),
        ({"mean": "123.7,116.3,103.5"}, r"mean = '123\.7,.*; divide by 255\?"),
        ({"mean": "1e308"}, "mean = '1e308': must be numbers from 0 to 1"),
        ({"mean": "-0.1"}, r"mean = '-0\.1': must be numbers from 0 to 1, as pixels are of 0 … 1$"),
        ({"std": "1e-320"}, "std = '1e-320': must be numbers from 0.001 to 1, as pixels are of 0 … 1$"),
        ({"std": "-0.5"}, r"std = '-0\.5': must be numbers from 0\.001 to 1"),
    ],
)
def test_mean_and_deviation_on_another_scale_than_the_pixels_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        LearningConfig(**settings)


def test_pixels_may_be_left_as_they_are_or_brought_to_bytes():
    LearningConfig(mean="0", std="1")
    LearningConfig(mean="0", std=str(1 / 255))


@pytest.mark.parametrize("key", ["mean", "std"])
@pytest.mark.parametrize(("model", "values", "channels"), [("glyph_vit_8", (0.4, 0.4, 0.4), "1 channel;")])
def test_three_numbers_for_a_model_of_one_channel_are_refused(key, model, values, channels):
    with pytest.raises(ConfigError, match=rf"{key} = '0.4,0.4,0.4': that is 3 numbers, but .* of {channels}"):
        create_model(model, "pretrained", 10, 0, ImageKeys(**{key: values}))


def test_one_number_holds_for_every_channel():
    grey = create_model("glyph_vit_8", "pretrained", 10, 0, ImageKeys(mean=(0.25,)))
    assert data_config(grey)["mean"] == (0.25,)


@pytest.mark.parametrize(
    ("model", "size", "words"),
    [
        ("small_vit", 30, r"image-size = 30: the patches of small_vit are 8 × 8 pixels, .* such as 24 or 32"),
        ("small_vit", 4, r"multiple of 8, such as 8 or 16"),
        ("small_swin", 62, r"the patches of small_swin are 4 × 4 pixels"),
        (
            "small_swin",
            72,
            r"the windows of small_swin do not divide it; .* multiple of 16, such as 64 or 80",
        ),
        ("glyph_vit_8", 9, r"the patches of glyph_vit_8 are"),
    ],
)
def test_an_image_size_that_patches_or_windows_do_not_divide_is_refused(model, size, words):
    with pytest.raises(ConfigError, match=words):
        create_model(model, "none", 3, 0, ImageKeys(image_size=size))


def test_an_own_model_of_timms_make_is_resized_and_another_is_refused(own):
    model = create_model(own(CFG), "none", 3, 0, ImageKeys(image_size=32))
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert data_config(model)["input_size"] == (3, 32, 32)

    class Fixed(VisionTransformer):
        set_input_size = None

    with pytest.raises(ConfigError, match=r"image-size = 32: model 'own_vit:vit' cannot be resized"):
        create_model(own(CFG, Fixed), "none", 3, 0, ImageKeys(image_size=32))


@pytest.mark.parametrize(
    ("cfg", "options", "words"),
    [
        ({**CFG, "input_size": (3, 32, 32)}, {}, r"does not take images of 3 × 32 × 32 .*correct input_size"),
        (
            {**CFG, "input_size": (1, 16, 16), "mean": (0.5,), "std": (0.5,)},
            {},
            r"does not take images of 1 × 16",
        ),
        (None, {}, r"does not take images of 3 × 224 × 224 .*timm's defaults"),
        (
            {**CFG, "input_size": (1, 16, 16)},
            {"in_chans": 1},
            r"its mean \(0\.5, 0\.5, 0\.5\) does not fit .* 1 channel",
        ),
        ({**CFG, "std": (0.5, 0.5, 0.0)}, {}, r"its std \(0\.5, 0\.5, 0\.0\) does not fit"),
        ({**CFG, "mean": (0.5, 0.5, float("nan"))}, {}, r"its mean .* does not fit"),
        (
            {**CFG, "mean": (127.5,) * 3, "std": (127.5,) * 3},
            {},
            r"its mean \(127\.5, .* must be numbers from 0 to 1, .*; divide by 255\?; correct mean in",
        ),
        ({**CFG, "std": (58.4, 57.1, 57.4)}, {}, r"its std .* from 0\.001 to 1, .*; divide by 255\?"),
        (
            {**CFG, "std": (1e-320,) * 3},
            {},
            r"its std \(1e-320, .* from 0\.001 to 1, as pixels are of 0 … 1; c",
        ),
        ({**CFG, "mean": (-0.5,) * 3}, {}, r"its mean \(-0\.5, .* must be numbers from 0 to 1"),
        ({**CFG, "mean": 0.5}, {}, r"the mean 0\.5 in its pretrained_cfg must be numbers, one a channel"),
        ({**CFG, "std": "0.5"}, {}, r"the std '0\.5' in its pretrained_cfg must be numbers, one a channel"),
    ],
    ids=[
        "another size",
        "other channels",
        "no config",
        "mean of other channels",
        "std 0",
        "mean NaN",
        "mean of bytes",
        "std of bytes",
        "tiny std",
        "negative mean",
        "one number",
        "text",
    ],
)
def test_an_own_model_that_contradicts_its_config_is_refused(cfg, options, words, own):
    with pytest.raises(ConfigError, match=words):
        create_model(own(cfg, **options), "none", 3, 0)


def test_dinov2_runs_at_224():
    model = create_model("vit_small_patch14_dinov2", "none", 3, 0, ImageKeys(image_size=224))
    assert data_config(model)["input_size"] == (3, 224, 224)
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 3)


def answer(**facts):
    frozen = {
        "model digest": "d",
        **image_settings(create_model("small_vit", "none", 3, 0)).facts,
        "trunk-dtype": "torch.float32",
        **facts,
    }
    return {
        "versions": {"timm": "1"},
        "classes": ["a", "b"],
        "frozen": frozen,
        "images": "small_vit sees: …",
        "peer-id": 0,
        "warnings": [],
    }


@pytest.mark.parametrize(
    ("what", "value", "words"),
    [
        (
            "image size",
            "64 × 64 pixels, RGB",
            r"image size differs: peers \[1\] have 64 .* set image-size in",
        ),
        ("crop", "0.5 (center)", r"crop differs: peers \[1\] have 0\.5 .* 0\.9 .* set crop-pct in"),
        ("interpolation", "nearest", r"interpolation differs: .* nearest, .* bicubic"),
        (
            "mean",
            "(0.4)",
            r"mean differs: peers \[1\] have \(0\.4\), peers \[0\] have \(0\.5, .* set mean in",
        ),
        ("deviation", "(0.4)", r"deviation differs: .* set std in"),
    ],
)
def test_sites_whose_models_see_other_images_are_refused_at_hello(what, value, words):
    from p2pft_flower.config import RunConfig
    from p2pft_flower.flower.nodes import HostAssignment

    hosts = [HostAssignment(10, (0,)), HostAssignment(11, (1,))]
    answers = {10: answer(), 11: answer(**{what: value})}
    with pytest.raises(P2PFTError, match=words):
        plan_run("1", RunConfig(), None, None, None, False, True, 1, hosts, answers)


def test_what_sites_say_of_themselves_has_every_setting():
    problem = Workload(LearningConfig(model="small_vit", weights="none", mean="0.4"), n=4)
    facts = problem.frozen_facts()
    assert facts.keys() >= {"image size", "crop", "interpolation", "mean", "deviation"}
    assert facts["mean"] == "(0.4, 0.4, 0.4)"


@pytest.mark.parametrize(
    ("cfg", "options", "says"),
    [
        ({"interpolation": "foo"}, {}, r"interpolation in its pretrained_cfg is 'foo'; .* one of nearest"),
        ({"interpolation": "random"}, {}, "interpolation in its pretrained_cfg is 'random'"),
        ({"crop_pct": -1}, {}, r"crop_pct in its pretrained_cfg is -1; it must be in \(0, 1\]"),
        ({"crop_pct": "all"}, {}, "crop_pct in its pretrained_cfg is 'all'"),
        ({"crop_mode": "foo"}, {}, "crop_mode in its pretrained_cfg is 'foo'; it must be one of center"),
        ({"input_size": (3,)}, {}, r"input_size in its pretrained_cfg is \(3,\); .* three whole numbers"),
        ({"input_size": (3, 16.0, 16)}, {}, "input_size in its pretrained_cfg is .* three whole numbers"),
        ({"input_size": (2, 16, 16), "mean": (0.5,) * 2, "std": (0.5,) * 2}, {"in_chans": 2}, "2 channels"),
        ({"input_size": (4, 16, 16), "mean": (0.5,) * 4, "std": (0.5,) * 4}, {"in_chans": 4}, "4 channels"),
    ],
)
def test_settings_of_an_own_model_that_are_none_are_refused_as_the_keys_are(own, cfg, options, says):
    with pytest.raises(ConfigError, match=rf"^model = 'own_vit:vit': .*{says}"):
        create_model(own(CFG | cfg, **options), "none", 3, 0)


def test_a_key_takes_the_place_of_an_own_models_wrong_setting(own):
    keys = ImageKeys(crop_pct=0.5, interpolation="bicubic")
    model = create_model(own(CFG | {"interpolation": "foo", "crop_pct": 2}), "none", 3, 0, keys)
    assert (image_settings(model).crop_pct, image_settings(model).interpolation) == (0.5, "bicubic")


class Uncopyable(VisionTransformer):
    def __deepcopy__(self, memo):
        raise RuntimeError("not twice")


class OddHead(VisionTransformer):
    def reset_classifier(self):
        pass


@pytest.mark.parametrize(
    ("cls", "says"),
    [
        (
            lambda **o: VisionTransformer(**o).half(),
            r"'cls_token' is torch\.float16; all must be torch\.float32",
        ),
        (lambda **o: VisionTransformer(**o).double(), r"'cls_token' is torch\.float64"),
        (Uncopyable, "copying it, as each peer needs its own, raised RuntimeError: not twice"),
        (OddHead, r"its reset_classifier\(3\) raised TypeError"),
    ],
)
def test_an_own_model_that_cannot_be_used_says_why(own, cls, says):
    with pytest.raises(ConfigError, match=rf"^model = 'own_vit:vit': .*{says}"):
        create_model(own(CFG, cls), "none", 3, 0)


class FailsInTraining(VisionTransformer):
    def forward_head(self, x, pre_logits=False):
        if self.training:
            raise KeyError("targets")
        return super().forward_head(x, pre_logits)


def test_an_own_model_that_raises_in_training_mode_is_named(own):
    config = LearningConfig(model=own(CFG, FailsInTraining), weights="none", tune="full")
    says = r"^model = 'own_vit:vit': a probe of it, with tune = 'full', raised KeyError: 'targets'"
    with pytest.raises(ConfigError, match=says):
        _ = Workload(config, n=1).parts
