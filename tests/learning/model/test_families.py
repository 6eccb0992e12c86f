"""Transformers of timm whose blocks are given positions beside tokens: Beit, Eva, relative-position ViTs."""

from __future__ import annotations

import copy
from functools import cache, partial

import pytest
import timm
import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import (
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from timm.models.vision_transformer_relpos import ResPostRelPosBlock, VisionTransformerRelPos
from torch import nn

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.model.added import merge_low_rank
from p2pft_flower.learning.model.block_arguments import block_arguments
from p2pft_flower.learning.model.model_names import check_model_name
from p2pft_flower.learning.model.one_query import why_not_query
from p2pft_flower.learning.model.split import split_model
from p2pft_flower.learning.model.structure import check_structure, share_copy
from p2pft_flower.learning.model.tuning import tune_model
from tests.learning.conftest import small_vit
from tests.learning.small_timm import MORE

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
ONE_QUERY = {
    "BEiT, class token": lambda: Beit(
        **SIZES, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1, global_pool="token"
    ),
    "BEiT, one bias for all blocks, class token": lambda: Beit(
        **SIZES, use_shared_rel_pos_bias=True, global_pool="token"
    ),
    "BEiT, biases of all blocks and its own, class token": lambda: Beit(
        **SIZES, use_shared_rel_pos_bias=True, use_rel_pos_bias=True, global_pool="token"
    ),
    "EVA-02, class token": lambda: Eva(
        **SIZES, use_rot_pos_emb=True, ref_feat_shape=(4, 4), swiglu_mlp=True, scale_mlp=True,
        scale_attn_inner=True, qkv_fused=False, global_pool="token",
    ),
    "EVA, norms behind, class token": lambda: Eva(**SIZES, use_post_norm=True, global_pool="token"),
    "rope, class token": lambda: Eva(**SIZES, **ROPE, no_embed_class=True, global_pool="token"),
    "rope of each block, class token": lambda: Eva(
        **SIZES, **ROPE, rope_type="mixed", num_reg_tokens=2, global_pool="token"
    ),
    "DINOv3, class token": lambda: Eva(
        **SIZES, **ROPE, rope_type="dinov3", num_reg_tokens=2, init_values=0.1, qk_norm=True,
        rope_rotate_half=True, global_pool="token",
    ),
    "perception encoder, class token": lambda: Eva(
        **SIZES, **ROPE, attn_type="rope", use_pre_transformer_norm=True, global_pool="token"
    ),
    "grouped queries, class token": lambda: Eva(
        **SIZES | {"num_heads": 4}, **ROPE, attn_type="rope", qkv_fused=False, num_kv_heads=2,
        global_pool="token",
    ),
    "relative, class token": lambda: VisionTransformerRelPos(
        **SIZES, rel_pos_type="mlp", class_token=True, global_pool="token", init_values=0.1
    ),
    "relative, shared, class token": lambda: VisionTransformerRelPos(
        **SIZES, rel_pos_type="bias", shared_rel_pos=True, class_token=True, global_pool="token"
    ),
    "relative, norms behind, class token": lambda: VisionTransformerRelPos(
        **SIZES, rel_pos_type="bias", class_token=True, global_pool="token", block_fn=ResPostRelPosBlock
    ),
    "norms behind": lambda: VisionTransformer(**SIZES, block_fn=ResPostBlock),
    "parallel things": lambda: VisionTransformer(**SIZES, block_fn=ParallelThingsBlock, init_values=0.1),
    "attention beside MLP": lambda: VisionTransformer(
        **SIZES, block_fn=ParallelScalingBlock, qkv_bias=False, qk_norm=True
    ),
    "attention beside MLP, one projection": lambda: VisionTransformer(
        **SIZES, block_fn=partial(ParallelScalingBlock, fuse_out_proj=True), init_values=0.1
    ),
}  # fmt: skip
"""Models whose last block runs for the class token alone, with keys and values of all tokens."""

FAMILIES |= ONE_QUERY
FAMILIES |= {name: partial(timm.create_model, name, num_classes=5) for name in MORE}
STORED = [
    *("head", "last-block", "last-blocks:2", "bias:last-block", "bias+norm:last-blocks:2"),
    *("lora:2:last-block", "lora-fa:2:last-blocks:2", "adapter:3:last-block"),
]
WHOLE = ["full", "bias", "lora:2", "adapter:3"]
NO_ATTN = ("parallel things", "attention beside MLP", "attention beside MLP, one projection")
NEITHER = {"lora": "without attn: choose tune = last-bl", "adapter": "without mlp and norm2"}
REFUSED = {
    **dict.fromkeys(NO_ATTN, NEITHER),
    "small_tiny_vit": {
        "lora:2:last-blocks:3": "is a MBConv without attn", "lora:2!": "is a MBConv without attn",
        "adapter": "without (mlp and )?norm2",
    },
    "small_maxvit": NEITHER,
    "small_coatnet": {
        "lora:2!": "is a MbConvBlock without attn", "lora": r"\(Attention2d\) has no linear qkv, proj",
        "adapter:3!": "is a MbConvBlock without", "adapter": r"\(ConvMlp\) has convolutions",
    },
}  # fmt: skip
"""Additions to blocks of other parts: beginnings of tune (with ! the whole of it), and the message."""
LABELS = torch.tensor([0, 1, 2, 3])
COSTLY_STEM = ("small_xcit",)

every_family = pytest.mark.parametrize("family", FAMILIES)


@cache
def shared(family):
    """The model of a family, for tests that only make copies of it."""
    return build(family)


def build(family):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FAMILIES[family]()
        for p in model.parameters():  # also what starts at 0, as tables of biases do
            p.data += 0.05 * torch.randn(p.shape)
    if family not in MORE:
        model.pretrained_cfg = {"input_size": (3, 16, 16)}
    return model.eval().requires_grad_(False)


def images_for(model, number=4):
    size = model.pretrained_cfg["input_size"]
    return torch.randn(number, *size, generator=torch.Generator().manual_seed(1))


def refusal(family, tune):
    """The message, a pattern, with which ``tune`` is refused for a family; None if it is not."""
    for beginning, message in REFUSED.get(family, {}).items():
        if f"{tune}!".startswith(beginning):
            return message
    return None


def trained(model):
    return [n for n, p in model.named_parameters() if p.requires_grad]


@every_family
@pytest.mark.parametrize("tune", [*STORED, *WHOLE])
def test_trunk_and_tail_answer_and_learn_as_the_whole_model(family, tune):
    model = shared(family)
    check_structure(family, model)
    if message := refusal(family, tune):
        with pytest.raises(ConfigError, match=message):
            split_model(model, tune)
        return
    parts, whole = split_model(model, tune), tune_model(model, tune)
    stays = tune not in WHOLE or (family in COSTLY_STEM and tune.startswith(("lora", "adapter")))
    assert (parts.path == "full") is not stays
    images = images_for(model)
    own = dict(parts.tail.named_parameters())
    generator = torch.Generator().manual_seed(5)
    for name in trained(whole):
        p = whole.get_parameter(name)
        p.data = p.data + 0.05 * torch.randn(p.shape, generator=generator)
        own[f"model.{name}"].data = p.data.clone()
    stored = parts.trunk(images)
    answers, expected = parts.tail(*stored), whole(images)
    assert (answers - expected).abs().max() <= 1e-5
    nn.functional.cross_entropy(answers, LABELS).backward()
    nn.functional.cross_entropy(expected, LABELS).backward()
    for name in trained(whole):
        ours, theirs = own[f"model.{name}"].grad, whole.get_parameter(name).grad
        assert (ours is None) is (theirs is None), name
        if theirs is not None:
            assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-7, name


@pytest.mark.parametrize("family", ONE_QUERY)
@pytest.mark.parametrize("tune", ["last-block", "last-blocks:2", "bias:last-block"])
def test_a_last_block_that_only_the_class_token_leaves_runs_for_one_query(family, tune):
    model = shared(family)
    parts = split_model(model, tune)
    assert parts.path == "query"
    seen = []
    parts.tail.model.norm.register_forward_hook(lambda _, args, __: seen.append(args[0].shape))
    parts.tail(*parts.trunk(images_for(model)))
    assert seen == [(4, 1, 32)]


def test_an_attention_that_rotates_the_class_token_is_not_run_for_one_query():
    model = build("rope, class token")
    model.blocks[-1].attn.num_prefix_tokens = 0
    assert "rotates the class token" in why_not_query(model, model.blocks[-1])


@pytest.mark.parametrize("family", ["BEiT", "rope, class token", "attention beside MLP"])
def test_drops_of_the_last_block_are_on_while_it_runs_for_one_query(family):
    """A drop-out in the last block changes the answer in training mode, and not in eval mode."""
    model = build(family)
    model.global_pool = "token"
    for name, module in model.blocks[-1].named_modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5 if "attn_drop" in name else 0.0
    parts = split_model(model, "last-block")
    assert parts.path == "query"
    stored = parts.trunk(images_for(model))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        assert torch.equal(parts.tail(*stored), parts.tail(*stored))
        parts.tail.train()
        assert not torch.equal(parts.tail(*stored), parts.tail(*stored))


@every_family
def test_the_tail_has_timms_names_alone_and_a_copy_of_it_answers_alike(family):
    model = shared(family)
    parts = split_model(model, "last-block")
    names = {name.removeprefix("model.") for name in parts.tail.state_dict()}
    assert names <= model.state_dict().keys()
    stored = parts.trunk(images_for(model))
    assert torch.equal(share_copy(parts.tail)(*stored), parts.tail(*stored))
    assert torch.equal(copy.deepcopy(parts.tail).eval()(*stored), parts.tail(*stored))


def test_a_copy_that_shares_memory_has_attributes_of_its_own():
    model = shared("EVA")
    copied = share_copy(model)
    copied.blocks[0].register_forward_hook(lambda *_: None)
    copied.blocks[0].register_buffer("more", torch.zeros(1), persistent=False)
    copied.blocks[0].norm1.weight.requires_grad_(True)
    assert not model.blocks[0]._forward_hooks
    assert "more" not in dict(model.blocks[0].named_buffers())
    assert not model.blocks[0]._non_persistent_buffers_set
    assert not model.blocks[0].norm1.weight.requires_grad
    assert copied.blocks[0].norm1.weight.data_ptr() == model.blocks[0].norm1.weight.data_ptr()


@pytest.mark.parametrize("family", [name for name in FAMILIES if not refusal(name, "lora:2")])
def test_low_rank_updates_merge_into_timms_own_weights(family):
    tuned = tune_model(shared(family), "lora:2")
    for name in trained(tuned):
        nn.init.normal_(tuned.get_parameter(name).data, std=0.1)
    with torch.no_grad():
        images = images_for(tuned)
        expected = tuned(images)
        merge_low_rank(tuned)
        plain = build(family)
        plain.load_state_dict(tuned.state_dict(), strict=True)
        assert (plain(images) - expected).abs().max() <= 1e-4 * expected.abs().max()


WITH_POSITIONS = [n for n in FAMILIES if n not in (*NO_ATTN, "norms behind")]


@pytest.mark.parametrize("family", WITH_POSITIONS)
def test_prompts_have_no_position_there_and_are_refused(family):
    with pytest.raises(ConfigError, match=r"prompts are not defined for .*; choose a ViT or Swin V1"):
        split_model(shared(family), "prompt:2")


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
        *("cait_xxs24_224", "xcit_nano_12_p8_224", "pit_ti_distilled_224", "swinv2_cr_tiny_ns_224"),
        *("tiny_vit_5m_224", "hiera_tiny_224", "maxvit_tiny_tf_224", "coatnet_0_rw_224"),
        *("maxxvitv2_nano_rw_256", "naflexvit_base_patch16_gap"),
    ],
)
def test_their_names_are_known_without_torch(name):
    check_model_name(name)
