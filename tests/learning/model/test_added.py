"""Prompts, adapters, low-rank updates and biases: what is trained, and that it does what its name says."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.data.batches import Batches
from p2pft_flower.learning.minibatches import MiniBatches
from p2pft_flower.learning.model.added import merge_low_rank
from p2pft_flower.learning.model.split import split_model
from p2pft_flower.learning.model.tuning import tune_model
from p2pft_flower.learning.objective import PeerObjective
from p2pft_flower.learning.theta import tail_vector
from tests.learning.conftest import MemoryFeatures, small_swin, small_vit

BATCH = {
    small_vit: torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)),
    small_swin: torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1)),
}
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
ADDED = ["lora:2", "lora-fa:2", "adapter:3", "prompt:2", "prompt-deep:2"]

every_model = pytest.mark.parametrize("build", [small_vit, small_swin])


def trained(model):
    return {n for n, p in model.named_parameters() if p.requires_grad}


@every_model
@pytest.mark.parametrize("tune", [*ADDED, "bias", "bias+norm", "head", "last-block", "full"])
def test_every_way_of_tuning_learns(build, tune):
    model, batch = build(), BATCH[build]
    trunk, tail, *_ = split_model(model, tune)
    with torch.no_grad():
        features = MemoryFeatures(trunk(batch), LABELS)
    images = MiniBatches(features, Batches(6, 6, seed=0, peer=0))
    objective = PeerObjective(tail, images, features, seed=0, peer=0)
    theta = tail_vector(tail)
    before = objective.evaluate(theta).loss
    for _ in range(10):
        theta = theta - np.float32(0.01) * objective.gradient(theta)
    assert objective.evaluate(theta).loss < before


@every_model
@pytest.mark.parametrize("tune", ["lora:2", "lora-fa:2", "adapter:3"])
def test_what_is_added_starts_as_the_identity(build, tune):
    model, batch = build(), BATCH[build]
    with torch.no_grad():
        assert (tune_model(model, tune)(batch) - model(batch)).abs().max() <= 1e-5


@every_model
@pytest.mark.parametrize("tune", ADDED)
def test_only_what_is_added_and_the_head_are_trained_and_other_names_stay_timms(build, tune):
    model = build()
    tuned = tune_model(model, tune)
    low_rank = dict.fromkeys(("lora:2", "lora-fa:2"), "parametrizations.weight.0.")
    new = {**low_rank, "adapter:3": ".adapter."}.get(tune, ".prompts")
    assert all(new in n or n.startswith("head.") for n in trained(tuned))
    assert any(new in n for n in trained(tuned))
    merge_low_rank(tuned)
    names = {n for n in tuned.state_dict() if ".adapter." not in n and not n.endswith(".prompts")}
    assert names == model.state_dict().keys()


@every_model
def test_merged_low_rank_updates_answer_as_before(build):
    tuned = tune_model(build(), "lora:2")
    with torch.no_grad():
        for n, p in tuned.named_parameters():
            if n.endswith(".up"):
                nn.init.normal_(p)
        expected = tuned(BATCH[build])
        merged = copy.deepcopy(tuned)
        merge_low_rank(merged)
        plain = build()
        plain.load_state_dict(merged.state_dict(), strict=True)
        assert (plain(BATCH[build]) - expected).abs().max() <= 1e-3 * expected.abs().max()


@every_model
def test_biases_are_all_biases_and_norms_are_optional(build):
    model = build()
    names = {n for n, _ in model.named_parameters()}
    biases = {n for n in names if n.endswith(".bias")} | {n for n in names if n.startswith("head.")}
    assert trained(tune_model(model, "bias")) == biases
    scales = {n for n in names if "norm" in n and n.endswith(".weight")}
    assert scales
    assert trained(tune_model(model, "bias+norm")) == biases | scales


def test_prompts_of_a_vit_are_tokens_between_class_token_and_patches():
    model, batch = small_vit(), BATCH[small_vit]
    tuned = tune_model(model, "prompt:2")
    seen = []
    for block in tuned.blocks:
        block.norm1.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    with torch.no_grad():
        answer = tuned(batch)
        # By hand, as Jia et al. have it: [class, prompts, patches] through all blocks.
        tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(batch))))
        prompts = tuned.blocks[0].prompts.expand(6, -1, -1)
        tokens = model.blocks(torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], dim=1))
        expected = model.forward_head(model.norm(tokens))
    assert [t.shape[1] for t in seen] == [7, 7, 7]
    assert (answer - expected).abs().max() <= 1e-5


def test_deep_prompts_are_new_in_every_block():
    tuned = tune_model(small_vit(), "prompt-deep:2")
    assert {n for n in trained(tuned) if "prompts" in n} == {f"blocks.{i}.prompts" for i in range(3)}
    before = tuned(BATCH[small_vit])
    with torch.no_grad():
        nn.init.normal_(tuned.blocks[2].prompts)
    assert not torch.allclose(tuned(BATCH[small_vit]), before)


def test_a_swins_windows_see_the_prompts_as_keys_and_values_only():
    model = small_swin()
    tuned = tune_model(model, "prompt-deep:2")
    block, plain = tuned.layers[0].blocks[1], model.layers[0].blocks[1]
    attention = block.attn
    x = torch.randn(8, 4, 16, generator=torch.Generator().manual_seed(2))
    mask = plain.attn_mask[:2] if plain.attn_mask is not None else None
    with torch.no_grad():
        # By hand: probabilities over prompts and tokens, window by window, head by head.
        q, k, v = attention.qkv(x).reshape(8, 4, 3, 2, 8).permute(2, 0, 3, 1, 4)
        _, pk, pv = attention.qkv(attention.prompts).reshape(2, 3, 2, 8).permute(1, 2, 0, 3)
        scores = q @ k.transpose(-2, -1) * 8**-0.5 + plain.attn._get_rel_pos_bias()
        if mask is not None:
            scores = (scores.view(4, 2, 2, 4, 4) + mask[None, :, None]).view(8, 2, 4, 4)
        own = q @ pk.transpose(-2, -1) * 8**-0.5
        p = torch.cat([own, scores], dim=-1).softmax(-1)
        out = p @ torch.cat([pv.expand(8, -1, -1, -1), v], dim=2)
        expected = attention.proj(out.transpose(1, 2).reshape(8, 4, 16))
        assert (attention(x, mask) - expected).abs().max() <= 1e-5 * expected.abs().max() + 1e-5


def test_what_is_added_is_drawn_from_the_seed_alone():
    for tune in set(ADDED) - {"lora-fa:2"}:  # of which θ begins at 0
        one, again, other = (tail_vector(tune_model(small_vit(), tune, seed)) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, again)
        assert not np.array_equal(one, other), tune


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ("lora:0", r"lora:R: 0 is not a whole number >= 1"),
        ("lora:17", r"17 is not in 1\.\.16"),
        ("adapter:0", r"adapter:R: 0"),
        ("prompt:0", r"prompt:N: 0"),
        ("lora", "tune = 'lora' is unknown"),
        ("prompt:x", "tune = 'prompt:x' is unknown"),
    ],
)
def test_numbers_that_do_not_fit_the_model_are_refused(tune, message):
    with pytest.raises(ConfigError, match=message):
        tune_model(small_vit(), tune)


WITHIN = [
    "bias:last-block",
    "bias+norm:last-blocks:2",
    "lora:2:last-block",
    "lora-fa:2:last-block",
    "adapter:3:last-block",
]
PATHS = {"bias:last-block": "class-token", "bias+norm:last-blocks:2": "query"}
LAST = {small_vit: ("blocks.1.", "blocks.2."), small_swin: ("layers.1.blocks.0.", "layers.1.blocks.1.")}
AFTER = ("norm.", "fc_norm.", "head.")


@every_model
@pytest.mark.parametrize("tune", WITHIN)
def test_in_the_last_blocks_alone_the_trunk_stays_frozen_and_gradients_are_the_whole_models(build, tune):
    model, batch = build(), BATCH[build]
    parts = split_model(model, tune)
    assert parts.path == (PATHS.get(tune, "class-token") if build is small_vit else "tokens")
    tuned = tune_model(model, tune)
    last = LAST[build] if ":last-blocks:2" in tune else LAST[build][1:]
    assert trained(tuned) == {n.removeprefix("model.") for n in trained(parts.tail)}
    assert all(name.startswith((*last, *AFTER)) for name in trained(tuned))
    assert any(name.startswith(last[0]) for name in trained(tuned))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # away from where the added modules are the identity
        own = dict(parts.tail.named_parameters())
        for name in trained(tuned):
            whole = tuned.get_parameter(name)
            whole.data = whole + 0.1 * torch.randn(whole.shape, generator=generator)
            own[f"model.{name}"].data = whole.data.clone()
    nn.functional.cross_entropy(tuned(batch), LABELS).backward()
    nn.functional.cross_entropy(parts.tail(*parts.trunk(batch)), LABELS).backward()
    ours = {n.removeprefix("model."): p.grad for n, p in parts.tail.named_parameters() if p.requires_grad}
    for name, p in tuned.named_parameters():
        if p.requires_grad:
            assert (ours[name] - p.grad).norm() <= 1e-4 * p.grad.norm() + 1e-6, name


def test_what_is_tuned_in_the_last_blocks_is_what_is_tuned_everywhere_but_there_alone():
    model = small_vit()
    for tune in ("bias", "bias+norm", "lora:2", "adapter:3"):
        everywhere, within = (
            trained(tune_model(model, tune)),
            trained(tune_model(model, f"{tune}:last-block")),
        )
        assert within == {n for n in everywhere if n.startswith(("blocks.2.", *AFTER))}
        assert trained(tune_model(model, f"{tune}:last-blocks:3")) == {
            n for n in everywhere if n.startswith(("blocks.", *AFTER))
        }


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ("lora:2:last-blocks:4", r"the model has 3 blocks, K must be in 1\.\.3"),
        ("lora:2:last-blocks:0", r"tune = last-blocks:K: 0 is not a whole number"),
        ("lora:2:last-blocks:", "is unknown"),
        ("lora:2:last-blocks", "is unknown"),
        ("lora:last-block", "is unknown"),
        ("head:last-block", "is unknown; .* may follow bias, "),
        ("prompt:2:last-block", "is unknown"),
        ("bias:last-block:last-block", "is unknown"),
        (":last-block", "is unknown"),
    ],
)
def test_only_some_ways_of_tuning_can_be_kept_to_the_last_blocks(tune, message):
    with pytest.raises(ConfigError, match=message):
        tune_model(small_vit(), tune)


def test_with_a_frozen_first_factor_the_mean_of_two_peers_is_the_mean_of_their_updates():
    """And with two trained factors it is not: averaging factors is not averaging products."""

    def weights(tune, thetas):
        found = []
        for theta in thetas:
            model = tune_model(small_vit(), tune, seed=3)
            nn.utils.vector_to_parameters(theta, [p for p in model.parameters() if p.requires_grad])
            merge_low_rank(model)
            found.append(model.blocks[1].attn.qkv.weight.detach().clone())
        return found

    for tune, alike in (("lora-fa:2", True), ("lora:2", False)):
        size = sum(p.numel() for p in tune_model(small_vit(), tune).parameters() if p.requires_grad)
        one, other = torch.randn(2, size, generator=torch.Generator().manual_seed(6))
        first, second, mean = weights(tune, [one, other, (one + other) / 2])
        assert torch.allclose(mean, (first + second) / 2, atol=1e-5) is alike


def test_of_a_frozen_first_factor_nothing_is_sent():
    def size(tune):
        tuned = tune_model(small_vit(), tune)
        return sum(tuned.get_parameter(n).numel() for n in trained(tuned) if "parametrizations" in n)

    # Of qkv (48 x 16) and proj (16 x 16), in three blocks.
    assert size("lora:2") == 3 * 2 * (48 + 16 + 16 + 16)
    assert size("lora-fa:2") == 3 * 2 * (48 + 16)
