"""Attention maps against what timm's own unfused attention hands to its drop-out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.attention import (
    attention_maps,
    changed_tensors,
    check_map,
    describe_map,
    read_maps,
    shown_image,
    tail_maps,
)
from p2pft_flower.learning.model.models import create_model
from p2pft_flower.learning.model.tuning import tune_model
from p2pft_flower.learning.theta import tail_vector
from p2pft_flower.learning.workload import Workload

VITS = {
    "vit": (VisionTransformer, {}),
    "normed queries and keys": (VisionTransformer, {"qk_norm": True}),
    "distilled": (VisionTransformerDistilled, {}),
    "pooled patches": (VisionTransformer, {"class_token": False, "global_pool": "avg"}),
    "pooled patches beside a class token": (VisionTransformer, {"global_pool": "avg"}),
    "registers": (VisionTransformer, {"reg_tokens": 2}),
}


def lively(model, seed=0):
    """Give every parameter a random value: timm starts biases, class tokens and position tables near zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


def vit(which):
    cls, options = VITS[which]
    return lively(
        cls(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=5, **options)
    )


def swin(size=56, window=7, depths=(2, 2)):
    """A Swin whose last block, an odd one of its stage, shifts its windows where there are several."""
    return lively(
        SwinTransformer(
            img_size=size,
            patch_size=2,
            embed_dim=16,
            depths=depths,
            num_heads=(2, 4),
            window_size=window,
            num_classes=5,
        )
    )


def pictures(size=32, count=4):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def probabilities_of_timm(model, images):
    """Return what each block's drop-out for attention is given when timm does not fuse: (B, heads, T, T)."""
    found = []
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
            module.attn_drop.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    logits = model(images)
    return logits, found


def class_rows(which, matrix):
    """Return the row that the map shows: the class token's, or where patches are pooled their mean."""
    pooled, prefix = which.startswith("pooled"), prefix_tokens(which)
    return matrix[:, prefix:].mean(dim=1) if pooled else matrix[:, 0]


def prefix_tokens(which):
    return {"distilled": 2, "pooled patches": 0, "registers": 3}.get(which, 1)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("which", VITS)
def test_a_vits_maps_are_the_rows_that_timm_computes(which, fused):
    model, images = vit(which), pictures()
    for block in model.blocks:
        block.attn.fused_attn = fused
    found = {kind: attention_maps(model, images, kind) for kind in ("mean", "head:2")}
    logits, blocks = probabilities_of_timm(model, images)
    last, prefix = blocks[-1], prefix_tokens(which)
    assert found["mean"].maps.shape == (4, 4, 4)
    assert found["mean"].maps.dtype == torch.float32
    torch.testing.assert_close(found["mean"].logits, logits)
    for kind, matrix in (("mean", last.mean(dim=1)), ("head:2", last[:, 2])):
        row = class_rows(which, matrix)
        torch.testing.assert_close(row.sum(dim=-1), torch.ones(4))
        torch.testing.assert_close(found[kind].maps.flatten(1), row[:, prefix:])
    if prefix == 0:  # no other token takes a share
        torch.testing.assert_close(found["mean"].maps.sum(dim=(1, 2)), torch.ones(4))


@pytest.mark.parametrize("which", VITS)
def test_rollout_is_the_product_of_all_blocks_with_their_shortcuts(which):
    model, images = vit(which), pictures()
    maps = attention_maps(model, images, "rollout").maps
    _, blocks = probabilities_of_timm(model, images)
    product = torch.eye(blocks[0].shape[-1]).expand(4, -1, -1)
    for block in blocks:
        product = (0.5 * block.mean(dim=1) + 0.5 * torch.eye(block.shape[-1])) @ product
    row = class_rows(which, product)
    torch.testing.assert_close(row.sum(dim=-1), torch.ones(4))
    torch.testing.assert_close(maps.flatten(1), row[:, prefix_tokens(which) :])


def received_by_the_book(model, probabilities, grid):
    """Put Swin's windows together one token at a time, from where each token of each window came."""
    block = model.layers[-1].blocks[-1]
    (rows, columns), (h, w), (shift_h, shift_w) = grid, block.window_size, block.shift_size
    across, down = -(-columns // w), -(-rows // h)
    maps = torch.zeros(len(probabilities) // (across * down), rows, columns)
    for number, p in enumerate(probabilities):
        image, window = divmod(number, across * down)
        top, left = (window // across) * h, (window % across) * w
        cells = [(top + t // w, left + t % w) for t in range(h * w)]
        real = [t for t, (r, c) in enumerate(cells) if r < rows and c < columns]
        for t in real:
            r, c = cells[t]
            received = p[:, real, t].mean()
            maps[image, (r + shift_h) % rows, (c + shift_w) % columns] = received
    return maps


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("size", "window", "grid", "shifts"),
    [(28, 7, (7, 7), False), (56, 7, (14, 14), True), (40, 4, (10, 10), True), (20, 4, (5, 5), True)],
    ids=["one window", "shifted", "padded", "padded, more than half of it"],
)
def test_swins_windows_are_put_back_where_their_tokens_came_from(size, window, grid, shifts, fused):
    model, images = swin(size, window), pictures(size, 3)
    last = model.layers[-1].blocks[-1]
    assert any(last.shift_size) == shifts
    last.attn.fused_attn = fused
    found = {kind: attention_maps(model, images, kind) for kind in ("mean", "head:3")}
    logits, blocks = probabilities_of_timm(model, images)
    torch.testing.assert_close(found["mean"].logits, logits)
    torch.testing.assert_close(blocks[-1].sum(dim=-1), torch.ones(blocks[-1].shape[:-1]))
    torch.testing.assert_close(found["mean"].maps, received_by_the_book(model, blocks[-1], grid))
    torch.testing.assert_close(found["head:3"].maps, received_by_the_book(model, blocks[-1][:, 3:], grid))
    if all(length % window == 0 for length in grid):  # each window gives out one
        windows = (grid[0] // window) * (grid[1] // window)
        torch.testing.assert_close(found["mean"].maps.sum(dim=(1, 2)), torch.full((3,), float(windows)))


@pytest.mark.parametrize("kind", ["mean", "rollout", "head:1"])
@pytest.mark.parametrize("trained", ["blocks.2.", "blocks.1."], ids=["the last block", "an earlier block"])
def test_tails_in_one_model_give_what_each_whole_model_gives(kind, trained):
    model, images = vit("vit"), pictures()
    others = [lively(vit("vit"), seed=seed) for seed in (1, 2)]
    tails = [
        {n: t for n, t in other.state_dict().items() if n.startswith((trained, "norm.", "head."))}
        for other in others
    ]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    together = list(tail_maps(model, tails, images, kind))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    for tensors, found in zip(tails, together, strict=True):
        whole = vit("vit")
        whole.load_state_dict(tensors, strict=False)
        alone = attention_maps(whole, images, kind)
        torch.testing.assert_close(found.maps, alone.maps)
        torch.testing.assert_close(found.logits, alone.logits)
        assert changed_tensors(model, whole).keys() == tensors.keys()


@pytest.mark.parametrize(("trained", "runs"), [("blocks.2.", 1), ("blocks.1.", 3)])
def test_the_blocks_before_all_tails_run_once(trained, runs):
    model, counted = vit("vit"), []
    model.blocks[0].register_forward_hook(lambda *_: counted.append(1))
    tensors = {n: t for n, t in model.state_dict().items() if n.startswith(trained)}
    list(tail_maps(model, [tensors] * 3, pictures()))
    assert len(counted) == runs


def test_swins_tails_share_all_but_the_last_block():
    model, images = swin(56, 7), pictures(56, 2)
    other = lively(swin(56, 7), seed=3)
    tail = {n: t for n, t in other.state_dict().items() if n.startswith(("layers.1.blocks.1.", "norm."))}
    *_, found = tail_maps(model, [{}, tail], images)
    model.load_state_dict(tail, strict=False)
    torch.testing.assert_close(found.maps, attention_maps(model, images).maps)
    torch.testing.assert_close(found.logits, model(images))


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (lambda: vit("vit"), "max", "map = 'max' is unknown; choose one of mean, rollout, head:H"),
        (lambda: vit("vit"), "head:x", "map = 'head:x' is unknown"),
        (lambda: vit("vit"), "head:3", "the last block has the heads 0 to 2"),
        (swin, "rollout", "not for Swin"),
        (lambda: torch.nn.Linear(2, 2), "mean", "not Linear"),
        (
            lambda: SwinTransformerV2(
                img_size=32, patch_size=4, embed_dim=16, depths=(1,), num_heads=(2,), window_size=4
            ),
            "mean",
            "not SwinTransformerV2",
        ),
    ],
    ids=["unknown", "no number", "no such head", "rollout of swin", "no transformer", "other attention"],
)
def test_a_map_that_a_model_does_not_have_is_refused(model, kind, message):
    with pytest.raises(ConfigError, match=message):
        check_map(model(), kind)


def test_blocks_with_another_attention_are_refused():
    model = vit("vit")
    model.blocks[1].attn = torch.nn.Identity()
    with pytest.raises(ConfigError, match=r"blocks with timm's Attention; Block has Identity"):
        attention_maps(model, pictures())


def test_the_words_say_whose_attention_it_is():
    assert describe_map(vit("vit"), "mean") == (
        "attention of the class token in the last block, mean of 3 heads"
    )
    assert describe_map(vit("distilled"), "head:1").endswith("class token in the last block, head 1")
    assert "each patch receives" in describe_map(vit("pooled patches"), "mean")
    assert describe_map(vit("vit"), "rollout") == "attention rollout over all blocks, row of the class token"
    assert "in its window" in describe_map(swin(), "mean")


def test_a_whole_model_answers_and_looks_as_its_tail_does():
    workload = Workload(LearningConfig(cache_dtype="float32", trunk_dtype="float32"), n=1)
    theta = workload.theta0 + np.random.default_rng(0).normal(0, 0.05, workload.theta0.shape).astype(
        np.float32
    )
    whole = workload.whole_model(theta)
    positions = range(40)
    reading = read_maps(
        workload.model,
        [changed_tensors(workload.model, whole)],
        [lambda p=p: workload.holdings.dataset.test.read(p) for p in positions],
    )
    assert reading.maps.shape == (1, 40, 4, 4)
    np.testing.assert_allclose(reading.probabilities.sum(axis=-1), 1, rtol=1e-5)
    inputs, _ = workload.test_features.read(np.arange(40))
    torch.nn.utils.vector_to_parameters(
        torch.from_numpy(theta), [p for p in workload.tail.parameters() if p.requires_grad]
    )
    logits = workload.tail.eval()(*inputs)
    np.testing.assert_allclose(reading.probabilities[0], logits.softmax(1).detach().numpy(), atol=1e-6)


def test_a_whole_model_is_a_copy_and_keeps_what_is_frozen():
    workload = Workload(LearningConfig(), n=1)
    whole = workload.whole_model(workload.theta0 + 1)
    start = workload.model.state_dict()
    changed = {name for name, t in whole.state_dict().items() if not torch.equal(t, start[name])}
    assert changed == workload.named_tail(workload.theta0).keys()
    assert not whole.training
    np.testing.assert_array_equal(tail_vector(workload.tail), workload.theta0)


def test_theta_that_the_plain_model_has_no_place_for_is_refused(monkeypatch):
    workload = Workload(LearningConfig(), n=1)
    monkeypatch.setattr(workload, "named_tail", lambda _: {"prompt": torch.zeros(3)})
    with pytest.raises(
        DataError, match=r"tensor 'prompt' has no place in 'glyph_vit_8' with tune = 'last-block'"
    ):
        workload.whole_model(workload.theta0)


def test_an_image_is_shown_as_the_model_sees_it():
    workload = Workload(LearningConfig(), n=1)
    image = workload.holdings.dataset.test.read(3)
    seen = shown_image(workload.model, image)
    assert seen.shape == (8, 8, 1)
    np.testing.assert_allclose(seen[..., 0], np.asarray(image) / 255, atol=1e-6)


def test_a_model_with_added_tensors_is_refused_by_name():
    model = create_model("glyph_vit_8", "pretrained", 10, seed=0)
    with pytest.raises(ConfigError, match=r"'blocks\.0\.mlp\.adapter\.\S+' was added by tuning"):
        changed_tensors(model, tune_model(model, "adapter:4"))
