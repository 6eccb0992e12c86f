"""Weights of files and of timm's hub: every tensor of model and source is accounted for, under any naming."""

from __future__ import annotations

import logging
import re

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
from tests.learning.model.weight_sources import (
    ONES,
    changed,
    has,
    state_of,
    training,
    write,
)
from tests.learning.published import (
    clip,
    deit3,
    dinov2,
    hugging_face,
    jax_arrays,
    mae,
    swin_original,
    text_tower,
    under,
    without,
)
from tests.learning.small_timm import MORE, publish

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
    **{name: (name, lambda s: s, f"head ({4 if 'distilled' in name else 2})") for name in MORE},
    "Lightning, XCiT": (
        "small_xcit",
        lambda s: {"state_dict": under("model.", s)},
        "under 'state_dict.model",
    ),
    "an older PiT": (
        "small_pit",
        lambda s: {re.sub(r"transformers\.1\.pool\.", "pools.0.", n): t for n, t in s.items()},
        "head (2)",
    ),
    "Hiera's original": (
        "small_hiera",
        lambda s: {
            "model_state": {
                n.replace("head.fc.", "head.projection.").replace("head.norm.", "norm."): t
                for n, t in s.items()
            }
        },
        "under 'model_state.'; left: head (2)",
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
        ("volo_d1_224", r"timm's volo does more than pass tokens"),
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
        *("cait_xxs24_224", "xcit_nano_12_p8_224", "pit_ti_distilled_224", "swinv2_cr_tiny_ns_224"),
        *("tiny_vit_5m_224", "hiera_tiny_224", "maxvit_pico_rw_256", "naflexvit_base_patch16_gap"),
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
    for draw in ("uniform_", "normal_"):  # what the file replaces is not drawn: that takes most of the time
        monkeypatch.setattr(torch.Tensor, draw, lambda tensor, *_, **__: tensor.zero_())
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
