"""Which path a tail takes, and that every path has the gradients of the plain timm model."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from p2pft_flower.learning.model.split import PATHS, split_model
from p2pft_flower.learning.model.stem import stem_share
from p2pft_flower.learning.model.tuning import tune_model
from tests.learning.conftest import small_hybrid, small_swin, small_vit

LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def gradients(tail, inputs, labels):
    """Gradients of a tail's trained parameters by the names of the whole model."""
    named = [(n.removeprefix("model."), p) for n, p in tail.named_parameters() if p.requires_grad]
    loss = nn.functional.cross_entropy(tail(*inputs), labels)
    return dict(zip([n for n, _ in named], torch.autograd.grad(loss, [p for _, p in named]), strict=True))


def gap(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-12))


def real_size(name, seed, **options):
    """A model of timm in its real size, random, with affine parts and biases far from 1 and 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(name, num_classes=10, **options).eval()
        for n, p in model.named_parameters():
            if n.endswith("bias") or "token" in n:
                nn.init.normal_(p, std=0.3)
            elif "norm" in n:
                nn.init.uniform_(p, 0.3, 2.0)
    return model.requires_grad_(False)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"]
)
def test_the_class_tokens_tail_has_the_gradients_of_the_plain_model(name, seed):
    model = real_size(name, seed)
    images = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(seed))
    labels = torch.tensor([1, 4, 7])
    trunk, tail, path, why = split_model(model, "last-block")
    assert (path, why) == ("class-token", "")
    with torch.no_grad():
        inputs = trunk(images)
    ours = gradients(tail.eval(), inputs, labels)

    for n, p in model.named_parameters():
        p.requires_grad_(n in ours)
    nn.functional.cross_entropy(model(images), labels).backward()
    theirs = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    key_bias = slice(192, 384)  # softmax does not see it: zero, and in the plain model rounding noise
    assert ours["blocks.11.attn.qkv.bias"][key_bias].abs().max() == 0
    theirs["blocks.11.attn.qkv.bias"][key_bias] = 0
    assert max(gap(ours[n], theirs[n]) for n in ours) <= 1e-5


@pytest.mark.parametrize("path", ["query", "tokens"])
def test_slower_paths_have_the_same_gradients(path, images):
    model = small_vit(init_values=0.4)
    fast, slow = split_model(model, "last-block"), split_model(model, "last-block", path=path)
    assert (fast.path, slow.path) == ("class-token", path)
    ours = gradients(fast.tail, fast.trunk(images), LABELS)
    theirs = gradients(slow.tail, slow.trunk(images), LABELS)
    assert max(gap(ours[n], theirs[n]) for n in ours if not n.endswith("qkv.bias")) <= 1e-5


@pytest.mark.parametrize(
    ("model", "tune", "path", "why"),
    [
        (small_vit, "last-block", "class-token", ""),
        (lambda: small_vit(init_values=0.1), "last-block", "class-token", ""),
        (lambda: small_vit(drop_path_rate=0.2), "last-block", "class-token", ""),
        (lambda: small_vit(reg_tokens=2), "last-block", "class-token", ""),
        (lambda: small_vit(cls=VisionTransformerDistilled), "last-block", "class-token", ""),
        (lambda: small_vit(attn_drop_rate=0.1), "last-block", "query", "drops probabilities"),
        (lambda: small_vit(qk_norm=True), "last-block", "query", "normalises queries and keys"),
        (small_vit, "last-blocks:2", "query", "2 blocks are trained"),
        (lambda: small_vit(global_pool="avg", class_token=False), "last-block", "tokens", "pools all tokens"),
        (small_swin, "last-block", "tokens", "no class token"),
        (small_swin, "last-blocks:3", "tokens", "no class token"),
        (small_vit, "head", "pooled", ""),
        (small_swin, "head", "pooled", ""),
        (lambda: small_vit(drop_rate=0.1), "head", "tokens", "dropped out before the head"),
        (lambda: small_vit(cls=VisionTransformerDistilled), "head", "pooled", ""),
        (
            lambda: small_vit(cls=VisionTransformerDistilled, drop_rate=0.1),
            "head",
            "tokens",
            "dropped out before the head",
        ),
        (small_vit, "full", "full", "the stem has trained parameters"),
        (small_vit, "bias", "full", "the stem has trained parameters"),
        (small_vit, "lora:2", "full", r"the first block (blocks.0) has trained parameters"),
        (small_vit, "prompt:2", "full", r"the first block (blocks.0)"),
        (small_vit, "last-blocks:3", "full", r"the first block (blocks.0)"),
        (small_swin, "last-blocks:4", "full", r"the first block (layers.0.blocks.0)"),
    ],
)
def test_the_cheapest_path_that_the_model_allows_is_taken_and_the_reason_told(model, tune, path, why):
    parts = split_model(model(), tune)
    assert parts.path == path
    assert (why in parts.why) if why else parts.why == ""


IN_ALL_BLOCKS = ["lora:2", "lora-fa:2", "adapter:3", "prompt:2", "prompt-deep:2", "last-blocks:3"]


@pytest.mark.parametrize("tune", IN_ALL_BLOCKS)
def test_where_all_blocks_are_tuned_the_output_of_a_costly_stem_is_stored(tune):
    model = small_hybrid()
    batch = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    parts, whole = split_model(model, tune), tune_model(model, tune)
    assert parts.path == ("tokens" if tune.startswith("prompt") else "query")
    assert not any("patch_embed" in name for name in parts.tail.state_dict())
    inputs = parts.trunk(batch)
    assert [t.shape for t in inputs] == [(6, 17, 16)]
    own = dict(parts.tail.named_parameters())
    generator = torch.Generator().manual_seed(5)
    for name, p in whole.named_parameters():  # what is added starts at zero, with gradients of zero
        if p.requires_grad:
            p.data = p.data + 0.05 * torch.randn(p.shape, generator=generator)
            own[f"model.{name}"].data = p.data.clone()
    ours, theirs = gradients(parts.tail, inputs, LABELS), gradients(whole, (batch,), LABELS)
    assert ours.keys() == theirs.keys()
    assert max(gap(ours[n], theirs[n]) for n in ours if not n.endswith("qkv.bias")) <= 1e-4


@pytest.mark.parametrize("tune", ["bias", "bias+norm", "full"])
def test_a_costly_stem_that_is_trained_itself_is_not_stored(tune):
    assert split_model(small_hybrid(), tune).path == "full"


def test_a_stem_of_one_layer_costs_less_than_its_output(images):
    parts = split_model(small_vit(), "lora:2")
    assert parts.path == "full"
    assert "what is before it costs less than it would take to store" in parts.why


def test_the_share_of_a_stem_is_that_of_its_products():
    model = small_hybrid()
    inside = sum(m.weight.numel() for m in model.blocks.modules() if isinstance(m, nn.Linear)) * 17
    head = model.head.weight.numel()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.patch_embed(torch.zeros(1, 3, 16, 16))
    stem = counter.get_total_flops() / 2
    assert stem_share(model, "blocks.0") == pytest.approx(stem / (stem + inside + head), rel=1e-12)


def test_the_text_of_a_trunk_is_the_one_that_names_stores_that_are_there():
    """What was computed once is not computed again because a class here has another name."""
    text = repr(split_model(small_vit(), "last-block").trunk)
    assert "(2): Identity()" in text
    assert "_Pass" not in text


def test_a_path_that_the_model_does_not_allow_is_refused():
    with pytest.raises(ValueError, match=r"path .class-token. is not for this model: .* no class token"):
        split_model(small_swin(), "last-block", path="class-token")
    with pytest.raises(ValueError, match="path 'pooled' is not for this model: it trains other parts"):
        split_model(small_vit(), "last-block", path="pooled")


def test_what_the_class_tokens_tail_cannot_honour_is_seen_in_the_model(images):
    hooked = small_vit()
    hooked.blocks[2].attn.register_forward_hook(lambda *_: None)
    assert split_model(hooked, "last-block").path == "tokens"
    gated = small_vit()
    gated.blocks[2].attn.gate = nn.Linear(16, 16)
    parts = split_model(gated.requires_grad_(False), "last-block")
    with torch.no_grad():
        assert (parts.tail(*parts.trunk(images)) - gated(images)).abs().max() <= 1e-5


@pytest.mark.parametrize("tune", ["last-block", "last-blocks:2", "last-blocks:3", "head", "full", "bias"])
def test_trunk_and_tail_of_a_swin_answer_and_learn_as_the_whole_model(tune):
    model = small_swin()
    batch = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    trunk, tail, *_ = split_model(model, tune)
    with torch.no_grad():
        inputs = trunk(batch)
        assert (tail(*inputs) - model(batch)).abs().max() <= 1e-4 * model(batch).abs().max()
    ours = gradients(tail, inputs, LABELS)
    for n, p in model.named_parameters():
        p.requires_grad_(n in ours)
    nn.functional.cross_entropy(model(batch), LABELS).backward()
    theirs = {n: p.grad for n, p in model.named_parameters() if n in ours}
    assert max(gap(ours[n], theirs[n]) for n in ours if not n.endswith("qkv.bias")) <= 1e-4


def test_the_last_block_of_a_swin_is_that_of_its_last_stage():
    trained = {
        n for n, p in split_model(small_swin(), "last-block").tail.named_parameters() if p.requires_grad
    }
    groups = {n.removeprefix("model.").rsplit(".", 2)[0].split(".attn")[0].split(".mlp")[0] for n in trained}
    assert {n.removeprefix("model.").split(".")[0] for n in trained} == {"layers", "norm", "head"}
    assert all(g.startswith(("layers.1.blocks.1", "norm", "head")) for g in groups)


def test_a_norm_without_a_shift_keeps_the_class_token_waiting(images):
    model = small_vit()
    model.blocks[2].norm1 = nn.LayerNorm(16, bias=False)
    parts = split_model(model.requires_grad_(False).eval(), "last-block")
    assert parts.path == "query"
    assert "not a LayerNorm with scale and shift" in parts.why
    with torch.no_grad():
        assert (parts.tail(*parts.trunk(images)) - model(images)).abs().max() <= 1e-5


@pytest.mark.parametrize(("tune", "trains"), [("lora:2", False), ("last-blocks:3", False), ("full", True)])
def test_the_drop_outs_of_a_frozen_stem_stay_off(tune, trains):
    tail = split_model(small_vit(pos_drop_rate=0.5, patch_drop_rate=0.5), tune).tail.train()
    assert tail.model.pos_drop.training is trains
    assert tail.model.patch_drop.training is trains
    assert tail.model.blocks[2].training


@pytest.mark.parametrize("cls", [VisionTransformer, VisionTransformerDistilled])
def test_the_trunk_of_a_head_does_not_know_the_head(cls):
    trunk = split_model(small_vit(cls=cls), "head").trunk
    assert not any(name.startswith("model.head") for name in trunk.state_dict())


def test_of_a_distilled_model_the_two_tokens_that_its_heads_read_are_stored(images):
    model = small_vit(cls=VisionTransformerDistilled)
    parts = split_model(model, "head")
    (stored,) = parts.trunk(images)
    assert stored.shape == (6, 2, 16)
    ours = gradients(parts.tail, (stored,), LABELS)
    for n, p in model.named_parameters():
        p.requires_grad_(n in ours)
    nn.functional.cross_entropy(model(images), LABELS).backward()
    assert ours.keys() == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    assert max(gap(ours[n], model.get_parameter(n).grad) for n in ours) <= 1e-5


def test_every_path_is_described():
    assert list(PATHS) == ["pooled", "class-token", "query", "tokens", "full"]
