"""Weights of files and of timm's hub: every tensor of model and source is accounted for, under any naming."""

from __future__ import annotations

import gzip
import json
import logging
import pickle
import re
import sys
import zipfile

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.data.image_settings import ImageKeys
from p2pft_flower.learning.model import weights as weights_module
from p2pft_flower.learning.model.model_names import TIMM_MODULES
from p2pft_flower.learning.model.models import create_model
from p2pft_flower.learning.model.namings import timm_filter
from p2pft_flower.learning.model.weight_files import flatten
from tests.learning.published import (
    clip,
    deit3,
    dinov2,
    hugging_face,
    jax_arrays,
    mae,
    random_state,
    swin_original,
    text_tower,
    under,
    without,
)
from tests.learning.small_timm import publish


def state_of(architecture, seed=0):
    return random_state(timm.create_model(architecture, num_classes=5), seed)


def write(file, content):
    """Write a checkpoint of torch, or of arrays an archive."""
    if isinstance(next(iter(content.values())), np.ndarray):
        with file.open("wb") as opened:
            np.savez(opened, **content)
    else:
        torch.save(content, file)
    return str(file)


def has(model, state):
    """Tell whether all but the head is exactly the state's."""
    return all(torch.equal(t, state[n]) for n, t in model.state_dict().items() if not n.startswith("head"))


def training(state, **more):
    """What a training script saves: model, optimiser, epoch."""
    moments = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return {"state_dict": state, "optimizer": moments, "epoch": 3, **more}


NAMINGS = {
    "timm": ("small_vit", lambda s: s, "head (2)"),
    "timm, no head": ("small_vit", lambda s: without(s, "head"), "are there"),
    "data parallel": ("small_vit", lambda s: under("module.", s), "under 'module.'"),
    "compiled": ("small_vit", lambda s: under("_orig_mod.module.", s), "under '_orig_mod.module.'"),
    "a training's": ("small_vit", training, "optimiser state (1)"),
    "EMA": (
        "small_vit",
        lambda s: training(state_of("small_vit", 1), state_dict_ema=s),
        "under 'state_dict_ema.', the averaged copy, rather than 'state_dict.'",
    ),
    "Lightning": ("small_vit", lambda s: {"state_dict": under("model.", s)}, "under 'state_dict.model.'"),
    "Lightning, net": (
        "small_vit",
        lambda s: {"state_dict": under("net.backbone.", s)},
        "'state_dict.net.backb",
    ),
    "a backbone and a neck": (
        "small_vit",
        lambda s: under("backbone.", without(s, "head")) | {"neck.conv.weight": torch.ones(3)},
        "under 'backbone.'; left: 'neck' (1)",
    ),
    "own nesting": ("small_vit", lambda s: {"a": {"b": {"encoder.vit": s}}}, "under 'a.b.encoder.vit.'"),
    "DINO": (
        "small_vit",
        lambda s: {
            "student": under("module.backbone.", state_of("small_vit", 1)),
            "teacher": under("backbone.", s) | {"head.last_layer.weight_v": torch.ones(4)},
        },
        "under 'teacher.backbone.', the averaged copy, rather than 'student.module.backbone.'",
    ),
    "moments by the model's names": (
        "small_vit",
        lambda s: {"model": s, "optimizer": {"exp_avg": state_of("small_vit", 1)}, "grads": s},
        "under 'model.'; left: head (2), optimiser state (32), 'grads' (32)",
    ),
    "moments below a model without a prefix": (
        "small_vit",
        lambda s: {**s, "optimizer": {"exp_avg": state_of("small_vit", 1)}},
        "are there; left: head (2), optimiser state (32)",
    ),
    "EMA in a model without a prefix": (
        "small_vit",
        lambda s: state_of("small_vit", 1) | under("ema_model.module.", s),
        "under 'ema_model.module.', the averaged copy, rather than no prefix; left: head (4)",
    ),
    "EMA beside an adapted model": (
        "small_vit",
        lambda s: {"model": changed(s, "blocks.0.attn.qkv.lora_A", ONES), "ema": s},
        "under 'ema.', the averaged copy, rather than 'model.'",
    ),
    "MAE, pre-trained": ("small_vit", lambda s: {"model": mae(s)}, "decoder (6), mask token (1)"),
    "MAE, fine-tuned": ("small_vit_gap", lambda s: {"model": s}, "head (2)"),
    "DeiT-III": ("small_vit_scaled", lambda s: {"model": deit3(s)}, "under 'model.'"),
    "DINOv2 with registers": ("small_vit_reg", dinov2, "mask token (1)"),
    "Swin's original": (
        "small_swin",
        lambda s: {"model": swin_original(s)},
        "tables that the model makes (8)",
    ),
    "HF ViT": ("small_vit", lambda s: hugging_face(s, "vit"), "under 'vit.'; left: head (2)"),
    "HF ViT, Lightning": (
        "small_vit",
        lambda s: {"state_dict": under("model.", hugging_face(s, "vit"))},
        "under 'state_dict.model.vit.'",
    ),
    "HF ViT alone": (
        "small_vit",
        lambda s: (
            {n.removeprefix("vit."): t for n, t in hugging_face(s, "vit").items() if n.startswith("vit.")}
            | {"pooler.dense.weight": torch.ones(16, 16)}
        ),
        "head (1)",
    ),
    "HF DeiT": ("small_deit_distilled", lambda s: hugging_face(s, "deit"), "head (4)"),
    "HF DINOv2": (
        "small_vit_scaled",
        lambda s: (
            {
                re.sub(
                    r"layernorm_before|layernorm_after", lambda m: f"norm{1 + (m[0][-5:] == 'after')}", name
                )
                .replace("intermediate.dense", "mlp.fc1")
                .replace("output.dense", "mlp.fc2")
                .replace("attention.mlp.fc2", "attention.output.dense")
                .replace("ls1.gamma", "layer_scale1.lambda1")
                .replace("ls2.gamma", "layer_scale2.lambda1")
                .removeprefix("dinov2."): tensor
                for name, tensor in hugging_face(s, "dinov2").items()
            }
            | {"embeddings.mask_token": torch.ones(1, 16)}
        ),
        "left: head (2), mask token (1)",
    ),
    "HF Swin": ("small_swin", lambda s: hugging_face(s, "swin"), "under 'swin.'"),
    "HF Swin V2": ("small_swinv2", lambda s: hugging_face(s, "swinv2"), "under 'swinv2.'"),
    "CLIP": ("small_vit_clip", lambda s: under("visual.", clip(s)) | text_tower(), "text tower (6)"),
    "CLIP, Lightning": (
        "small_vit_clip",
        lambda s: {"state_dict": under("model.visual.", clip(s)) | under("model.", text_tower())},
        "under 'state_dict.model.visual.'; left: head (1), text tower (6)",
    ),
    "CLIP's image tower alone": ("small_vit_clip", clip, "head (1)"),
    "open_clip with a timm tower": (
        "small_vit",
        lambda s: (
            under("visual.trunk.", without(s, "head"))
            | {"visual.head.proj.weight": torch.ones(6, 16)}
            | under("text.", text_tower())
        ),
        "under 'visual.trunk.'; left: head (1), text tower (6)",
    ),
    "half precision": ("small_vit", lambda s: {n: t.half() for n, t in s.items()}, "are there"),
    "JAX": ("small_vit", lambda s: jax_arrays(s, 2), "head (2)"),
    "JAX, an optimiser's": (
        "small_vit",
        lambda s: jax_arrays(s, 2, "opt/target/") | {"opt/state/step": np.ones(1, np.float32)},
        "head (2), 'opt/' (1)",
    ),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_files_of_known_namings_load_exactly_and_the_log_says_what_was_left(naming, tmp_path, caplog):
    architecture, published, said = NAMINGS[naming]
    state = state_of(architecture)
    file = write(tmp_path / "weights.bin", published(state))
    with caplog.at_level(logging.INFO, logger="p2pft_flower"):
        model = create_model(architecture, file, 3, seed=0)
    expected = {n: t.half().float() for n, t in state.items()} if naming == "half precision" else state
    assert has(model, expected)
    assert model.get_classifier() is not None
    (line,) = [r.getMessage() for r in caplog.records]
    assert said in line
    assert file in line


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "bin", "npz", ""])
@pytest.mark.parametrize("kind", ["safetensors", "torch", "torch before 1.6"])
def test_what_a_file_is_called_does_not_matter(kind, suffix, tmp_path):
    state, file = state_of("small_vit"), tmp_path / f"weights.{suffix}"
    if kind == "safetensors":
        save_file(state, file)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=kind == "torch")
    assert has(create_model("small_vit", str(file), 3, seed=0), state)


def torch_bytes(content, path, **options):
    torch.save(content, path, **options)
    return path.read_bytes()


def safetensors_bytes(path):
    save_file(state_of("small_vit"), path)
    return path.read_bytes()


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return path.read_bytes()


def scripted(path):
    with pytest.warns(Warning, match="deprecated"):
        torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(path)
    return path.read_bytes()


def objects(path):
    with path.open("wb") as opened:
        np.savez(opened, a=np.array([{}], dtype=object))
    return path.read_bytes()


def within_itself():
    content = {"model": {"a": torch.ones(2)}}
    content["model"]["again"] = [content]
    return content


def deep(levels):
    content = {"a": torch.ones(2)}
    for _ in range(levels):
        content = {"a": content}
    return content


def array(path):
    with path.open("wb") as opened:
        np.save(opened, np.ones(3))
    return path.read_bytes()


NO_WEIGHTS = {
    "empty": (lambda _: b"", "is empty"),
    "a web page": (lambda _: b"\n<!DOCTYPE html><title>404</title>", "web page"),
    "XML": (lambda _: b"<?xml version='1.0'?><Error/>", "web page"),
    "a Git-LFS pointer": (
        lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "Git-LFS pointer",
    ),
    "JSON": (lambda _: json.dumps({"message": "not found"}).encode(), "JSON"),
    "an index": (lambda _: json.dumps({"weight_map": {}}).encode(), "lie in several files"),
    "a text": (lambda _: "keine Gewichte – nein".encode() * 60, "is a text"),
    "zeros": (lambda _: bytes(4000), "zeros"),
    "noise": (lambda _: np.random.default_rng(0).bytes(4000), "of no kind that is read"),
    "gzip": (lambda p: gzip.compress(torch_bytes({"a": torch.ones(3)}, p)), "gzip"),
    "HDF5": (lambda _: b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "a pickle": (lambda _: pickle.dumps({"a": 1}), "none of torch's"),
    "a whole module": (lambda p: torch_bytes(torch.nn.Linear(2, 2), p), "whole pickled module"),
    "a whole module before 1.6": (
        lambda p: torch_bytes(torch.nn.Linear(2, 2), p, _use_new_zipfile_serialization=False),
        "whole pickled module",
    ),
    "code": (lambda p: torch_bytes({"a": np.random.default_rng}, p), "weights only"),
    "TorchScript": (scripted, "TorchScript"),
    "no names": (lambda p: torch_bytes([torch.ones(2)], p), "holds a list"),
    "one tensor": (lambda p: torch_bytes(torch.ones(2), p), "single tensor"),
    "no tensors": (lambda p: torch_bytes({"epoch": 3}, p), "has no tensor"),
    "no tensors, safetensors": (lambda p: save_file({}, p) or p.read_bytes(), "has no tensor, but nothing"),
    "tensors without values": (
        lambda p: torch_bytes({"a": {"b": torch.ones(2, device="meta")}}, p),
        r"a tensor without values, 'a\.b' \(on the device meta",
    ),
    "a container in itself": (lambda p: torch_bytes(within_itself(), p), r"in itself, at 'model\.again\.0'"),
    "too many containers": (lambda p: torch_bytes(deep(200), p), "more than 100 containers in one another"),
    "a truncated file of torch": (lambda p: torch_bytes(state_of("small_vit"), p)[:-100], "truncated"),
    "a truncated one before 1.6": (
        lambda p: torch_bytes({"a": torch.ones(99)}, p, _use_new_zipfile_serialization=False)[:-9],
        "truncated",
    ),
    "truncated safetensors": (lambda p: safetensors_bytes(p)[:-100], "truncated safetensors"),
    "safetensors without tensors": (lambda p: safetensors_bytes(p)[:100], "truncated safetensors"),
    "a zip archive": (zipped, "zip archive of other files"),
    "NumPy objects": (objects, "pickles"),
    "an array": (array, "single NumPy array"),
}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_a_file_without_weights_is_refused_as_what_it_is(kind, suffix, tmp_path):
    make, words = NO_WEIGHTS[kind]
    file = tmp_path / f"odd.{suffix}"
    file.write_bytes(make(tmp_path / "raw"))
    with pytest.raises(DataError, match=words) as refused:
        create_model("small_vit", str(file), 3, seed=0)
    assert f"could not be loaded from {file}: it " in str(refused.value)
    assert "=False" not in str(refused.value)  # no advice to read code


def test_a_file_below_the_folder_of_the_process_may_be_named_by_itself(tmp_path, monkeypatch):
    torch.save(state_of("small_vit"), tmp_path / "w.pth")
    monkeypatch.chdir(tmp_path)
    assert has(create_model("small_vit", "w.pth", 3, seed=0), state_of("small_vit"))
    with pytest.raises(
        ConfigError, match=r"weights = 'v\.pth': choose pretrained, none, or the absolute path"
    ):
        create_model("small_vit", "v.pth", 3, seed=0)


def test_a_folder_is_refused_with_what_is_in_it(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"it is a folder, with model\.safetensors in it"):
        create_model("small_vit", str(tmp_path), 3, seed=0)


def changed(state, name, value):
    return state | {name: value}


def small(name):
    return lambda _: state_of(name)


ONES = torch.ones(16)
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


def test_checkpoints_are_read_however_deep_they_are_nested():
    levels = sys.getrecursionlimit() * 3
    with pytest.raises(DataError, match="more than 100 containers"):
        flatten(deep(levels))
    shared = {"a": torch.ones(2)}
    assert list(flatten({"one": shared, "two": {"three": shared, "": [shared]}, None: deep(60)})) == [
        *("one.a", "two.three.a", "two..0.a", "None" + ".a" * 61)
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of such tensors
@pytest.mark.parametrize("kind", ["sparse", "quantised"])
def test_tensors_of_other_layouts_are_refused(kind, tmp_path):
    other = ONES.to_sparse() if kind == "sparse" else torch.quantize_per_tensor(ONES, 0.1, 0, torch.qint8)
    file = write(tmp_path / "odd.bin", changed(state_of("small_vit"), "norm.weight", other))
    with pytest.raises(DataError, match=rf"its tensor 'norm\.weight' is {kind}"):
        create_model("small_vit", file, 3, seed=0)


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


@pytest.mark.parametrize("architecture", ["small_vit", "small_vit_reg", "small_deit_distilled"])
@pytest.mark.parametrize("size", [24, 64])
def test_at_another_image_size_position_embeddings_are_timms_resampled_ones(
    architecture, size, tmp_path, caplog
):
    file = write(tmp_path / "w.pth", state_of(architecture))
    with caplog.at_level(logging.INFO, logger="p2pft_flower"):
        ours = create_model(architecture, file, 3, seed=0, images=ImageKeys(image_size=size))
    name = publish(architecture, a={"file": file})
    theirs = timm.create_model(name, pretrained=True, num_classes=3, img_size=size)
    assert has(ours, theirs.state_dict())
    assert ours(torch.zeros(1, 3, size, size)).shape == (1, 3)
    grid = size // 8
    assert f"position embeddings resampled from 4 × 4 to {grid} × {grid} patches" in caplog.text


def test_an_archives_position_embeddings_are_timms_resampled_ones(tmp_path, caplog):
    file = write(tmp_path / "w.npz", jax_arrays(state_of("small_vit"), 2))
    with caplog.at_level(logging.INFO, logger="p2pft_flower"):
        ours = create_model("small_vit", file, 3, seed=0, images=ImageKeys(image_size=64))
    theirs = timm.create_model("small_vit", num_classes=3, img_size=64)
    theirs.load_pretrained(file)
    assert has(ours, theirs.state_dict())
    assert "position embeddings resampled to 8 × 8 patches; left: head (2)" in caplog.text


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning", "ignore:torch.searchsorted")
@pytest.mark.parametrize("architecture", ["small_swin", "small_swinv2"])
def test_a_swins_windows_grow_with_the_image_and_its_tables_are_timms(architecture, tmp_path, caplog):
    file = write(tmp_path / "w.pth", state_of(architecture))
    with caplog.at_level(logging.INFO, logger="p2pft_flower"):
        ours = create_model(architecture, file, 3, seed=0, images=ImageKeys(image_size=96))
    assert tuple(ours.layers[0].blocks[0].window_size) == (6, 6)  # 4 at 64 pixels
    name = publish(architecture, a={"file": file})
    theirs = timm.create_model(name, pretrained=True, num_classes=3, img_size=96, window_size=6)
    assert has(ours, theirs.state_dict())
    assert ours(torch.zeros(1, 3, 96, 96)).shape == (1, 3)
    assert f"{architecture} has windows of 6 × 6 tokens, as many as before" in caplog.text
    assert ("tables of relative positions resampled" in caplog.text) is (architecture == "small_swin")


def test_stages_with_windows_of_their_own_keep_as_many():
    model = create_model("small_swin_s3", "none", 3, seed=0, images=ImageKeys(image_size=128))
    assert [tuple(stage.blocks[0].window_size) for stage in model.layers] == [
        (4, 4),
        (8, 8),
        (4, 4),
    ]  # 2, 4, 2
    assert model(torch.zeros(1, 3, 128, 128)).shape == (1, 3)


HUB = {
    "its own": (lambda s: s, None),
    "foreign prefixes": (lambda s: {"state_dict": under("model.", s)}, None),
    "other names": (
        lambda s: {f"x{i}": t for i, t in enumerate(s.values())},
        r"30 tensors, as 'cls_token', are missing",
    ),
    "too many blocks": (
        lambda _: state_of("small_vit_deep"),
        r"24 tensors, as 'blocks\.2\..* are extra in it",
    ),
    "NaN": (lambda s: s | {"norm.bias": ONES * torch.nan}, r"'norm\.bias' has NaN"),
    "JAX": (lambda s: jax_arrays(s, 2), None),
    "JAX, too many blocks": (
        lambda _: jax_arrays(state_of("small_vit_deep"), 2),
        r"it has 4 blocks, the model 2",
    ),
}


@pytest.mark.parametrize("case", HUB)
def test_pretrained_weights_are_accounted_for_as_files_are(case, tmp_path):
    published, words = HUB[case]
    state = state_of("small_vit")
    file = write(tmp_path / ("w.npz" if "JAX" in case else "w.pth"), published(state))
    name = publish("small_vit", tag={"file": file, "custom_load": "JAX" in case})
    if words is None:
        assert has(create_model(name, "pretrained", 3, seed=0), state)
        return
    with pytest.raises(DataError, match=words) as refused:
        create_model(name, "pretrained", 3, seed=0)
    assert f"the weights of timm's hub for {name} (tag tag)" in str(refused.value)


def test_the_hubs_own_cache_is_read(tmp_path, monkeypatch):
    name = publish("small_vit", tag={"hf_hub_id": "timm/"})
    entry = tmp_path / f"models--timm--{name}.tag"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("abc")
    (entry / "snapshots" / "abc").mkdir(parents=True)
    save_file(state_of("small_vit"), entry / "snapshots" / "abc" / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert has(create_model(name, "pretrained", 3, seed=0), state_of("small_vit"))


def test_timm_gives_files_with_an_attention_pool_to_models_without_one(tmp_path, caplog):
    """Its entries of SigLIP for models that pool over patches: then the pool is left, and said to be."""
    state = without(state_of("small_vit_map"), "head")
    file = write(tmp_path / "w.pth", state)
    name = publish("small_siglip_gap", tag={"file": file})
    with caplog.at_level(logging.INFO, logger="p2pft_flower"):
        model = create_model(name, "pretrained", 3, seed=0)
    assert has(model, state)
    assert "left: attention pool (13)" in caplog.text
    with pytest.raises(DataError, match=r"13 tensors, as 'attn_pool\.latent', are extra in it"):
        create_model(name, file, 3, seed=0)


def test_weights_of_the_hub_that_hold_code_are_refused_without_advice_to_run_it(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    name = publish("small_vit", tag={"file": str(tmp_path / "w.pth")})
    with pytest.raises(DataError, match=r"from timm's hub .*weights only") as refused:
        create_model(name, "pretrained", 3, seed=0)
    assert "=False" not in str(refused.value)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("resnet18", r"'resnet18': timm's resnet does more than pass tokens"),
        ("cait_s24_224", r"timm's cait does more than pass tokens"),
        ("vit_tinny", r"'vit_tinny' is unknown"),
        (
            "vit_tiny_patch16_224.augreg",
            r"no weights tagged 'augreg' for vit_tiny_patch16_224; choose one of augreg_in21k",
        ),
        ("small_vit.dino", r"timm has no pre-trained weights of that name"),
    ],
)
def test_a_model_that_is_not_supported_is_refused_before_any_weight_is_read(
    model, words, monkeypatch, tmp_path
):
    def read(*_, **__):
        pytest.fail("weights were read")

    monkeypatch.setattr(weights_module, "load_pretrained", read)
    monkeypatch.setattr(weights_module, "read_tensors", read)
    with pytest.raises(ConfigError, match=words):
        create_model(model, "pretrained", 3, seed=0)
    if model != "small_vit.dino":  # which a file can be loaded into
        (tmp_path / "w.pth").touch()
        with pytest.raises(ConfigError, match=words):
            create_model(model, str(tmp_path / "w.pth"), 3, seed=0)


def test_what_timm_loads_is_held_against_what_was_accounted_for(tmp_path, monkeypatch):
    """If a version of timm changes a tensor on the way in, that is no load."""
    file = write(tmp_path / "w.pth", state_of("small_vit"))
    load = weights_module.load_pretrained

    def change(model, *args, **options):
        load(model, *args, **options)
        with torch.no_grad():
            model.norm.weight.mul_(2)

    monkeypatch.setattr(weights_module, "load_pretrained", change)
    with pytest.raises(DataError, match=r"loads the model's 'norm\.weight' otherwise"):
        create_model("small_vit", file, 3, seed=0)


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "swin_tiny_patch4_window7_224",
        "swinv2_tiny_window8_256",
        "vit_tiny_r_s16_p8_224",
        "vit_small_resnet26d_224",
        "vitamin_small_224",
    ],
)
def test_a_file_needs_no_network(name, monkeypatch, tmp_path):
    """Also where timm's builder would fetch the backbone of a hybrid: a model of each of timm's modules."""
    with torch.device("meta"):
        plan = timm.create_model(name)
    state = {n: torch.ones(()).expand(t.shape) for n, t in plan.state_dict().items()}
    (tmp_path / "w.safetensors").write_bytes(bytes(7) + b"\0{")
    monkeypatch.setattr(weights_module, "read_tensors", lambda _: state)

    def connect(*_, **__):
        pytest.fail("the network was asked")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("socket.getaddrinfo", connect)
    assert has(create_model(name, str(tmp_path / "w.safetensors"), 3, seed=0), state)


def test_weights_are_translated_as_timms_own_builders_do(monkeypatch):
    built = {}

    def note(_, variant, *args, pretrained_filter_fn=None, **options):
        built[variant] = pretrained_filter_fn
        raise InterruptedError

    for module in TIMM_MODULES:
        monkeypatch.setattr(f"timm.models.{module}.build_model_with_cfg", note)
        for name in timm.list_models(module=module):
            with pytest.raises(InterruptedError), torch.device("meta"):
                timm.model_entrypoint(name)()
    assert len(built) > 200
    for name, theirs in built.items():
        ours = timm_filter(name)
        named = getattr(theirs, "keywords", {})
        assert getattr(theirs, "func", theirs) is ours.func
        # A layer scale's old name is read into any model that has layer scales.
        assert {**named, "adapt_layer_scale": True} == {"adapt_layer_scale": True, **ours.keywords}, name


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
