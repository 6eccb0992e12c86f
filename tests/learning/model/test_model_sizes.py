"""What is known of models without building them is what they are built with."""

from __future__ import annotations

import pytest
import timm
import torch

from p2pft_flower.config import RunConfig
from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.model.model_names import EMBEDDED
from p2pft_flower.learning.model.model_sizes import EMBEDDED_SIZES, ModelSize, check_sizes
from p2pft_flower.learning.model.models import MODELS
from p2pft_flower.learning.model.structure import stages
from p2pft_flower.learning.model.timm_names import timm_names

TIMMS = [
    *(
        "vit_tiny_patch16_224",
        "vit_small_patch14_dinov2",
        "vit_base_patch16_clip_224",
        "deit3_small_patch16_224",
    ),
    *("deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"),
]


def size_of(model):
    blocks = [name for name in stages(model) if not name.endswith("downsample")]
    width = len(model.get_submodule(blocks[0]).get_parameter("norm1.weight"))
    return ModelSize(model.patch_embed.patch_size[0], width, len(blocks))


def test_of_every_embedded_model_it_is_known_as_it_is():
    assert set(EMBEDDED_SIZES) == set(EMBEDDED)
    for name, size in EMBEDDED_SIZES.items():
        assert size_of(MODELS[name](num_classes=2, pretrained=False)) == size


@pytest.mark.parametrize("name", TIMMS)
def test_of_timms_models_what_is_read_from_its_files_is_as_it_builds_them(name):
    with torch.device("meta"):
        built = size_of(timm.create_model(name))
    patch, width, blocks = timm_names().sizes[name]
    assert (width, blocks) == (built.width, built.blocks)
    assert patch in (0, built.patch)
    assert patch or name.startswith("swinv2")


def test_of_most_models_something_is_read():
    sizes = timm_names().sizes
    assert len(sizes) > 150
    assert sum(all(size[1:]) for size in sizes.values()) > 0.9 * len(sizes)


@pytest.mark.parametrize("model", ["my_module:vit", "vit_small_r26_s32_224", "vitamin_small_224"])
def test_what_is_not_known_is_let_pass(model):
    check_sizes(model, "lora:99999", 9)
    with pytest.raises(ConfigError, match="10001 is not in"):
        check_sizes(model, "prompt-deep:10001", 0)


INTS = sorted(key for key, value in RunConfig().to_mapping().items() if type(value) is int)


@pytest.mark.parametrize("key", INTS)
@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**400])
def test_whole_numbers_beyond_64_bits_are_refused_by_key(key, value):
    with pytest.raises(ConfigError, match=rf"^{key} = .*: must be a whole number of at most 64 bits"):
        RunConfig.from_mapping({key: value})


FLOATS = sorted(key for key, value in RunConfig().to_mapping().items() if type(value) is float)


@pytest.mark.parametrize("key", FLOATS)
def test_whole_numbers_that_no_float_holds_are_refused_by_key(key):
    with pytest.raises(ConfigError, match=key):
        RunConfig.from_mapping({key: 10**400})
