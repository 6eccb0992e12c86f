"""Transformers of timm whose blocks are given positions beside tokens: Beit, Eva, relative-position ViTs."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.model.added import merge_low_rank
from p2pft_flower.learning.model.block_arguments import block_arguments
from p2pft_flower.learning.model.model_names import check_model_name
from p2pft_flower.learning.model.split import split_model
from p2pft_flower.learning.model.structure import check_structure, share_copy
from p2pft_flower.learning.model.tuning import tune_model
from tests.learning.conftest import small_vit

SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
ROPE = {"use_abs_pos_emb": False, "use_rot_pos_emb": True}

FAMILIES = {
    "BEiT": lambda: Beit(**SIZES, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1),
    "BEiT, one bias for all blocks": lambda: Beit(**SIZES, use_shared_rel_pos_bias=True),
    "EVA": lambda: Eva(**SIZES),
    "EVA-02": lambda: Eva(**SIZES, use_rot_pos_emb=True, ref_feat_shape=(4, 4), swiglu_mlp=True),
    "EVA-02 base": lambda: Eva(
        **SIZES, use_rot_pos_emb=True, qkv_fused=False, swiglu_mlp=True, scale_mlp=True
    ),
    "rope": lambda: Eva(**SIZES, **ROPE, no_embed_class=True),
    "rope of each block": lambda: Eva(**SIZES, **ROPE, rope_type="mixed"),
    "DINOv3": lambda: Eva(
        **SIZES, **ROPE, rope_type="dinov3", num_reg_tokens=2, init_values=0.1, use_fc_norm=False
    ),
    "relative bias": lambda: VisionTransformerRelPos(**SIZES, rel_pos_type="bias"),
    "relative, shared": lambda: VisionTransformerRelPos(**SIZES, rel_pos_type="bias", shared_rel_pos=True),
    "relative, MLP": lambda: VisionTransformerRelPos(**SIZES, rel_pos_type="mlp", class_token=True),
}
STORED = [
    *("head", "last-block", "last-blocks:2", "bias:last-block", "bias+norm:last-blocks:2"),
    *("lora:2:last-block", "lora-fa:2:last-blocks:2", "adapter:3:last-block"),
]
WHOLE = ["full", "bias", "lora:2", "adapter:3"]
LABELS = torch.tensor([0, 1, 2, 3])
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))

every_family = pytest.mark.parametrize("family", FAMILIES)


def build(family):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FAMILIES[family]()
        for p in model.parameters():  # also what starts at 0, as tables of biases do
            p.data += 0.05 * torch.randn(p.shape)
    model.pretrained_cfg = {"input_size": (3, 16, 16)}
    return model.eval().requires_grad_(False)


def trained(model):
    return [n for n, p in model.named_parameters() if p.requires_grad]


@every_family
@pytest.mark.parametrize("tune", [*STORED, *WHOLE])
def test_trunk_and_tail_answer_and_learn_as_the_whole_model(family, tune):
    model = build(family)
    check_structure(family, model)
    parts, whole = split_model(model, tune), tune_model(model, tune)
    assert (parts.path == "full") is (tune in WHOLE)
    own = dict(parts.tail.named_parameters())
    generator = torch.Generator().manual_seed(5)
    for name in trained(whole):
        p = whole.get_parameter(name)
        p.data = p.data + 0.05 * torch.randn(p.shape, generator=generator)
        own[f"model.{name}"].data = p.data.clone()
    stored = parts.trunk(IMAGES)
    answers, expected = parts.tail(*stored), whole(IMAGES)
    assert (answers - expected).abs().max() <= 1e-5
    nn.functional.cross_entropy(answers, LABELS).backward()
    nn.functional.cross_entropy(expected, LABELS).backward()
    for name in trained(whole):
        ours, theirs = own[f"model.{name}"].grad, whole.get_parameter(name).grad
        assert (ours is None) is (theirs is None), name
        if theirs is not None:
            assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-7, name


@every_family
def test_the_tail_has_timms_names_alone_and_a_copy_of_it_answers_alike(family):
    model = build(family)
    parts = split_model(model, "last-block")
    names = {name.removeprefix("model.") for name in parts.tail.state_dict()}
    assert names <= model.state_dict().keys()
    stored = parts.trunk(IMAGES)
    assert torch.equal(share_copy(parts.tail)(*stored), parts.tail(*stored))
    assert torch.equal(copy.deepcopy(parts.tail).eval()(*stored), parts.tail(*stored))


@every_family
def test_low_rank_updates_merge_into_timms_own_weights(family):
    tuned = tune_model(build(family), "lora:2")
    for name in trained(tuned):
        nn.init.normal_(tuned.get_parameter(name).data, std=0.1)
    with torch.no_grad():
        expected = tuned(IMAGES)
        merge_low_rank(tuned)
        plain = build(family)
        plain.load_state_dict(tuned.state_dict(), strict=True)
        assert (plain(IMAGES) - expected).abs().max() <= 1e-4 * expected.abs().max()


@every_family
def test_prompts_have_no_position_there_and_are_refused(family):
    with pytest.raises(ConfigError, match=r"prompts are not defined for .*; choose a ViT or Swin V1"):
        split_model(build(family), "prompt:2")


def test_what_a_block_is_given_is_the_same_for_every_image():
    given = block_arguments(build("rope of each block"), ["blocks.1", "blocks.2"])
    first, second = (named["rope"] for _, named in given.values())
    assert first.shape == second.shape
    assert not torch.equal(first, second)  # each block has its own


class Asks(Eva):
    """Gives its blocks a mask that depends on the image."""

    def forward_features(self, images):
        return super().forward_features(images, attn_mask=images.mean().view(1, 1, 1, 1))


def test_a_model_whose_blocks_are_given_what_depends_on_the_image_is_refused():
    model = Asks(**SIZES)
    model.pretrained_cfg = {"input_size": (3, 16, 16)}
    with pytest.raises(ConfigError, match=r"a Asks's block blocks\.2 is given something that depends on"):
        block_arguments(model.eval(), ["blocks.2"])


def test_a_low_rank_update_needs_linear_projections():
    model = small_vit()
    model.blocks[0].attn.proj = nn.Identity()
    with pytest.raises(ConfigError, match=r"\(Attention\) has no linear proj: choose another tune"):
        tune_model(model, "lora:2")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "beit_base_patch16_224",
            "beitv2_large_patch16_224",
            "eva_giant_patch14_224",
            "eva02_tiny_patch14_224",
        ),
        *("vit_base_patch16_dinov3", "vit_pe_core_base_patch16_224", "vit_base_patch16_rope_224"),
        *("vit_relpos_small_patch16_224", "vit_base_patch16_rope_mixed_224"),
    ],
)
def test_their_names_are_known_without_torch(name):
    check_model_name(name)
