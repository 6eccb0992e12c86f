"""Weights that are not the model's: what is missing, extra or unlike is named, and nothing trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from p2pft_flower.errors import DataError
from p2pft_flower.learning.model.models import create_model
from tests.learning.model.weight_sources import (
    ONES,
    changed,
    has,
    small,
    state_of,
    write,
)
from tests.learning.published import (
    hugging_face,
    jax_arrays,
    under,
    without,
)
from tests.learning.small_timm import MORE

MISFITS = {
    # the model, what is in the file (made of a small_vit's state), what the refusal says
    "a block lacks": (
        "small_vit",
        lambda s: without(s, "blocks.1."),
        r"12 tensors, as 'blocks\.1\.[^']*', are missing from it; it has 1 blocks, the model 2",
    ),
    "a block too many": (
        "small_vit",
        small("small_vit_deep"),
        r"24 tensors, as 'blocks\.2\.[^']*', are extra in it; it has 4 blocks, the model 2",
    ),
    "too few blocks": (
        "small_vit_deep",
        lambda s: s,
        r"24 tensors, as 'blocks\.2\.[^']*', are missing from it; it has 2 blocks, the model 4",
    ),
    "below a prefix": (
        "small_vit",
        lambda s: {"state_dict": under("model.", without(s, "norm."))},
        r"2 tensors, as 'state_dict\.model\.norm\.weight', are missing .*all under 'state_dict\.model\.'",
    ),
    "another width": (
        "small_vit",
        small("small_vit_wide"),
        r"for their size mismatch: 'cls_token' is \(1, 1, 24\), in the model \(1, 1, 16\); it is 24 wide",
    ),
    "another patch": ("small_vit", small("small_vit_patch4"), r"patches are 4 × 4 pixels, the model's 8 × 8"),
    "another patch, HF": (
        "small_vit",
        lambda _: hugging_face(state_of("small_vit_patch4"), "vit"),
        r"patches are 4 × 4 pixels, the model's 8 × 8",
    ),
    "distilled into plain": (
        "small_vit",
        small("small_deit_distilled"),
        r"'dist_token', is extra .* it is of a distilled DeiT, the model is a plain one",
    ),
    "plain into distilled": (
        "small_deit_distilled",
        lambda s: s,
        r"'dist_token', is missing .* the model is one of a distilled DeiT, the file is not",
    ),
    "norm_pre": (
        "small_vit",
        lambda s: changed(s, "norm_pre.weight", ONES),
        r"1 tensor, as 'norm_pre\.weight', is extra in it; it has a norm before the blocks",
    ),
    "reg_token": (
        "small_vit",
        lambda s: changed(s, "reg_token", torch.ones(1, 4, 16)),
        r"'reg_token', is extra in it; it has register tokens",
    ),
    "attn_pool": (
        "small_vit",
        lambda s: changed(s, "attn_pool.q.weight", ONES),
        r"'attn_pool\.q\.weight', is extra in it; it pools by attention",
    ),
    "fc_norm": (
        "small_vit",
        small("small_vit_gap"),
        r"'norm\.weight', are missing .*'fc_norm\.weight', are extra .* made with pooling over patches",
    ),
    "layer scales": (
        "small_vit",
        small("small_vit_scaled"),
        r"4 tensors, as 'blocks\.0\.ls1\.gamma', are extra in it",
    ),
    "no layer scales": (
        "small_vit_scaled",
        lambda s: s,
        r"4 tensors, as 'blocks\.0\.ls1\.gamma', are missing from it",
    ),
    "no class token": ("small_vit", small("small_vit_map"), r"'cls_token', is missing from it"),
    "unknown": (
        "small_vit",
        lambda s: changed(s, "blocks.0.adapter.weight", ONES),
        r"'blocks\.0\.adapter\.weight', is extra in it",
    ),
    "tokens of no grid": (
        "small_vit",
        lambda s: changed(s, "pos_embed", torch.ones(1, 19, 16)),
        r"position embeddings are for 19 tokens.*no square grid",
    ),
    "whole numbers": (
        "small_vit",
        lambda s: changed(s, "norm.weight", ONES.to(torch.int8)),
        r"'norm\.weight' has int8 numbers: was it quantised",
    ),
    "8-bit floats": (
        "small_vit",
        lambda s: changed(s, "norm.weight", ONES.to(torch.float8_e4m3fn)),
        r"'norm\.weight' has float8_e4m3fn numbers",
    ),
    "NaN": (
        "small_vit",
        lambda s: changed(s, "blocks.0.attn.qkv.bias", torch.full((48,), torch.nan)),
        r"'blocks\.0\.attn\.qkv\.bias' has NaN",
    ),
    "infinity": (
        "small_vit",
        lambda s: under("module.", changed(s, "norm.bias", ONES / 0)),
        r"'module\.norm\.bias' has infinity",
    ),
    "NaN, HF": (
        "small_vit",
        lambda s: changed(
            hugging_face(s, "vit"), "vit.encoder.layer.1.attention.attention.key.bias", ONES * torch.nan
        ),
        r"'vit\.encoder\.layer\.1\.attention\.attention\.key\.bias' has NaN",
    ),
    "HF, a block lacks": (
        "small_vit_deep",
        lambda s: hugging_face(s, "vit"),
        r"24 tensors, as 'vit\.encoder\.layer\.2\.[^']*', are missing from it.*Hugging Face",
    ),
    "HF, keys lack": (
        "small_vit",
        lambda s: without(hugging_face(s, "vit"), "vit.encoder.layer.0.attention.attention.key"),
        r"as 'vit\.encoder\.layer\.0\.attention\.attention\.key\.weight', are missing.*Hugging Face",
    ),
    "HF Swin, blocks lack": (
        "small_swin_deep",
        lambda _: hugging_face(state_of("small_swin"), "swin"),
        r"as 'swin\.encoder\.layers\.1\.blocks\.2\.[^']*', are missing.*2 \+ 2 blocks, the model 2 \+ 4",
    ),
    "HF Swin, a merging lacks": (
        "small_swin",
        lambda _: without(
            hugging_face(state_of("small_swin"), "swin"), "swin.encoder.layers.0.downsample.norm"
        ),
        r"as 'swin\.encoder\.layers\.0\.downsample\.norm\.weight', are missing",
    ),
    "a deeper Swin": (
        "small_swin",
        small("small_swin_deep"),
        r"'layers\.1\.blocks\.2\.[^']*', are extra in it; it has 2 \+ 4 blocks, the model 2 \+ 2",
    ),
    "HF CLIP": (
        "small_vit",
        lambda _: {"vision_model.encoder.layers.0.self_attn.q_proj.weight": ONES},
        r"missing from it.*Hugging Face transformers' CLIP",
    ),
    "a ResNet": ("small_vit", lambda _: {"layer1.0.conv1.weight": ONES}, r"missing from it.*a ResNet's"),
    "a Swin": (
        "small_vit",
        small("small_swin"),
        r"26 tensors, as 'cls_token', are missing from it.*a Swin's",
    ),
    "two alike": (
        "small_vit",
        lambda s: {"a": s, "b": state_of("small_vit", 1)},
        r"hold model 'small_vit' 2 times, under 'a\.', 'b\.'",
    ),
    "an initial copy": (
        "small_vit",
        lambda s: s | under("init.", state_of("small_vit", 1)),
        r"2 times, under no prefix, 'init\.': save the one that is meant alone",
    ),
    "an initial copy in the model": (
        "small_vit",
        lambda s: under("model.", s) | under("model.frozen_init.", state_of("small_vit", 1)),
        r"2 times, under 'model\.', 'model\.frozen_init\.'",
    ),
    "a copy in a copy in a copy": (
        "small_vit",
        lambda s: s | under("a.", state_of("small_vit", 1)) | under("a.b.", state_of("small_vit", 2)),
        r"3 times, under no prefix, 'a\.', 'a\.b\.'",
    ),
    "an average of another name": (
        "small_vit",
        lambda s: s | under("swa_model.module.", state_of("small_vit", 1)),
        r"2 times, under no prefix, 'swa_model\.module\.'",
    ),
    "a copy where timm looks first": (
        "small_vit",
        lambda s: s | under("visual.trunk.", state_of("small_vit", 1)),
        r"2 times, under no prefix, 'visual\.trunk\.'",
    ),
    "copies of two namings": (
        "small_vit",
        lambda s: hugging_face(s, "vit") | under("init.", state_of("small_vit", 1)),
        r"2 times, under 'init\.', 'vit\.'",
    ),
    "a tensor lacks, and an initial copy": (
        "small_vit",
        lambda s: without(s, "norm.weight") | under("init.", state_of("small_vit", 1)),
        r"2 times, under no prefix \(where 1 tensor, as 'norm\.weight', is missing from it\), 'init\.'",
    ),
    "NaN, and an initial copy": (
        "small_vit",
        lambda s: {"model": changed(s, "norm.bias", ONES * torch.nan), "old": state_of("small_vit", 1)},
        r"2 times, under 'model\.' \(where 1 tensor is no weights: 'model\.norm\.bias' has NaN\), 'old\.'",
    ),
    "an average to which something was added": (
        "small_vit",
        lambda s: {"model": s, "ema": changed(s, "blocks.0.attn.qkv.lora_A", ONES)},
        r"2 times, under 'ema\.' \(where 1 tensor, as 'ema\.blocks\.0\.attn\.qkv\.lora_A', is extra in it\)",
    ),
    **{
        f"an adapted model, and {where}": (
            "small_vit",
            lambda s, where=where: (
                under("model.", changed(s, "blocks.0.attn.qkv.lora_A", ONES)) | under(f"{where}.", s)
            ),
            rf"'model\.blocks\.0\.attn\.qkv\.lora_A', is extra in it\. .* gradients \('{where}\.cls_token'\)",
        )
        for where in ("optimizer.exp_avg", "optimizer.state.exp_avg_sq", "opt.momentum_buffer", "grads")
    },
    "an adapted model, and moments of unknown names": (
        "small_vit",
        lambda s: {"model": changed(s, "blocks.0.attn.qkv.lora_A", ONES), "m1": state_of("small_vit", 1)},
        r"2 times, under 'm1\.', 'model\.' \(where 1 tensor, .*lora_A', is extra in it\)",
    ),
    "moments alone": (
        "small_vit",
        lambda s: {"optimizer": {"exp_avg": s}},
        r"30 tensors, as 'cls_token', are missing from it\. .* 32 of them of an optimiser or gradients",
    ),
    "two averages": (
        "small_vit",
        lambda s: {"ema": s, "teacher": state_of("small_vit", 1)},
        r"2 times, under 'ema\.', 'teacher\.'",
    ),
    "JAX, too many blocks": (
        "small_vit",
        lambda _: jax_arrays(state_of("small_vit_deep"), 2),
        r"it has 4 blocks, the model 2",
    ),
    "JAX, too few": ("small_vit_deep", lambda s: jax_arrays(s, 2), r"it has 2 blocks, the model 4"),
    "JAX, an array lacks": (
        "small_vit",
        lambda s: without(jax_arrays(s, 2), "embedding/bias"),
        r"missing from it: .*embedding/bias",
    ),
    "JAX, one too many": (
        "small_vit",
        lambda s: changed(jax_arrays(s, 2), "Transformer/extra", ONES.numpy()),
        r"1 arrays, as 'Transformer/extra', are extra in it",
    ),
    "JAX, layer scales": (
        "small_vit_scaled",
        lambda s: jax_arrays(s, 2),
        r"4 of the model's tensors, as 'blocks\.0\.ls1\.gamma', are missing from it",
    ),
    "JAX, heads": ("small_vit_heads", lambda s: jax_arrays(s, 2), r"it has 2 attention heads, the model 4"),
    "JAX, width": ("small_vit_wide", lambda s: jax_arrays(s, 2), r"it is 16 wide, the model 24"),
    "JAX, patch": (
        "small_vit_patch4",
        lambda s: jax_arrays(s, 2),
        r"patches are 8 × 8 pixels, the model's 4 × 4",
    ),
    "JAX, NaN": (
        "small_vit",
        lambda s: changed(jax_arrays(s, 2), "cls", np.full((1, 1, 16), np.nan, np.float32)),
        r"'cls' has NaN",
    ),
    "JAX, whole numbers": (
        "small_vit",
        lambda s: changed(jax_arrays(s, 2), "cls", np.ones((1, 1, 16), np.int32)),
        r"'cls' has no floating-point numbers, but int32",
    ),
    "64 bits, too large for 32": (
        "small_vit",
        lambda s: under("module.", changed(s, "norm.bias", ONES.double() * 1e300)),
        r"'norm\.bias', made of 'module\.norm\.bias', has infinity once it is loaded, as float32",
    ),
    "64 bits, too large for 32, JAX": (
        "small_vit",
        lambda s: changed(jax_arrays(s, 2), "cls", np.full((1, 1, 16), 1e300)),
        r"'cls_token' has infinity once it is loaded, as float32",
    ),
    "too large to be resampled": (
        "small_vit",
        lambda s: changed(s, "pos_embed", torch.full((1, 26, 16), torch.finfo(torch.float32).max)),
        r"'pos_embed' has (NaN|infinity) once it is loaded",
    ),
    "JAX, plain Flax": (
        "small_vit",
        lambda s: jax_arrays(s, 2, "params/"),
        r"missing from it: 'params/pos_embedding' "
        r"\(it has 'params/Transformer/posembed_input/pos_embedding'\)",
    ),
    "JAX, elsewhere": (
        "small_vit",
        lambda s: jax_arrays(s, 2, "model/"),
        r"'params/img/embedding/kernel' are all missing from it \(it has 'model/embedding/kernel'\)",
    ),
    "JAX, other arrays": (
        "small_vit",
        lambda _: {"a": np.ones(3)},
        r"'embedding/kernel', .* missing from it",
    ),
    "JAX, tokens of no grid": (
        "small_vit",
        lambda s: changed(
            jax_arrays(s, 2), "Transformer/posembed_input/pos_embedding", np.ones((1, 19, 16), np.float32)
        ),
        r"position embeddings are for 19 tokens.*no square grid",
    ),
    "JAX, flat positions": (
        "small_vit",
        lambda s: changed(
            jax_arrays(s, 2), "Transformer/posembed_input/pos_embedding", np.ones((17, 16), np.float32)
        ),
        r"its position embeddings are \(17, 16\), the model's \(1, 17, 16\)",
    ),
    "JAX, two copies": (
        "small_vit",
        lambda s: jax_arrays(s, 2) | jax_arrays(state_of("small_vit", 1), 2, "opt/target/"),
        r"another copy of the model under '', beside that under 'opt/target/'",
    ),
    "JAX, an initial copy": (
        "small_vit",
        lambda s: jax_arrays(s, 2) | jax_arrays(state_of("small_vit", 1), 2, "init/"),
        r"another copy of the model under 'init/', beside that under ''",
    ),
    "JAX into a hybrid": (
        "small_hybrid",
        lambda s: jax_arrays(s, 2),
        r"patches are 8 × 8 pixels, the model's 1 × 1",
    ),
    "JAX, another width inside": (
        "small_vit",
        lambda s: changed(
            jax_arrays(s, 2),
            "Transformer/encoderblock_0/MlpBlock_3/Dense_0/bias",
            np.ones(48, np.float32),
        ),
        r"timm's own reader of archives fails \(RuntimeError: ",
    ),
    "flat positions": (
        "small_vit",
        lambda s: changed(s, "pos_embed", torch.ones(17, 16)),
        r"its position embeddings are \(17, 16\), the model's \(1, 17, 16\)",
    ),
    "JAX into a Swin": ("small_swin", lambda s: jax_arrays(s, 2), r"which timm reads into ViTs only"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_weights_that_do_not_fit_are_refused_in_their_own_names(case, tmp_path):
    model, published, words = MISFITS[case]
    file = write(tmp_path / "odd.bin", published(state_of("small_vit")))
    with pytest.raises(DataError, match=f"(?s){words}") as refused:
        create_model(model, file, 3, seed=0)
    assert file in str(refused.value)
    assert repr(model) in str(refused.value)
    assert "dye.npz" not in str(refused.value)
    assert "reader of such files fails" not in str(refused.value)


def test_blocks_that_an_archive_stacks_are_not_used_in_part(tmp_path):
    arrays = jax_arrays(state_of("small_vit_deep"), 2)
    content = {n: a for n, a in arrays.items() if "encoderblock_" not in n}
    content["pos_embedding"] = content.pop("Transformer/posembed_input/pos_embedding")
    for name in [n for n in arrays if "encoderblock_0/" in n]:
        of_all = [arrays[name.replace("_0/", f"_{i}/", 1)] for i in range(4)]
        new = name.replace("encoderblock_0/", "encoderblock/")
        for old, changed_name in (
            ("Norm_2", "Norm_1"),
            ("Attention_1", "Attention_0"),
            ("Block_3", "Block_0"),
        ):
            new = new.replace(old, changed_name)
        content[new] = np.stack(of_all)
    file = write(tmp_path / "stacked.npz", content)
    assert has(create_model("small_vit_deep", file, 3, seed=0), state_of("small_vit_deep"))
    with pytest.raises(DataError, match="it has 4 blocks, the model 2"):
        create_model("small_vit", file, 3, seed=0)


def test_a_head_is_left_but_not_when_it_shows_that_training_diverged(tmp_path):
    quantised = state_of("small_vit") | {"head.weight": torch.ones(5, 16, dtype=torch.int8)}
    assert has(create_model("small_vit", write(tmp_path / "w.pth", quantised), 3, seed=0), quantised)
    diverged = {"state_dict": under("model.", quantised | {"head.bias": torch.full((5,), torch.nan)})}
    with pytest.raises(DataError, match=r"'state_dict\.model\.head\.bias' has NaN"):
        create_model("small_vit", write(tmp_path / "w.pth", diverged), 3, seed=0)


def hybrid_state():
    return state_of("small_hybrid")


def test_a_batch_norms_counter_may_lack_for_nothing_uses_it(tmp_path):
    state = hybrid_state() | {"patch_embed.backbone.1.running_var": torch.rand(4)}
    counter = "patch_embed.backbone.1.num_batches_tracked"
    assert counter in state
    model = create_model("small_hybrid", write(tmp_path / "w.pth", without(state, counter)), 3, seed=0)
    assert has(model, state | {counter: torch.tensor(0)})


def test_a_batch_norms_negative_variance_is_refused(tmp_path):
    name = "patch_embed.backbone.1.running_var"
    file = write(tmp_path / "w.pth", hybrid_state() | {name: torch.tensor([1.0, 1.0, -1.0, 1.0])})
    with pytest.raises(DataError, match=r"'patch_embed\.backbone\.1\.running_var' has a negative variance"):
        create_model("small_hybrid", file, 3, seed=0)


@pytest.mark.parametrize("architecture", MORE)
def test_a_file_of_another_family_is_refused_by_name(architecture, tmp_path):
    names = list(MORE)
    others = ["small_vit", "small_swin", names[(names.index(architecture) + 1) % len(names)]]
    for other in others:
        file = write(tmp_path / f"{other}.pth", state_of(other))
        with pytest.raises(DataError, match=rf"^weights = '{file}' do not fit model '{architecture}': "):
            create_model(architecture, file, 3, seed=0)


@pytest.mark.parametrize("architecture", ["small_cait", "small_naflexvit", "small_tiny_vit"])
def test_an_archive_of_a_jax_vit_is_for_vits_only(architecture, tmp_path):
    file = write(tmp_path / "w.npz", jax_arrays(state_of("small_vit"), 2))
    with pytest.raises(DataError, match="an archive of NumPy arrays, which timm reads into ViTs only"):
        create_model(architecture, file, 3, seed=0)
