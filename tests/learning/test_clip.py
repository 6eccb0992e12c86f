"""Image towers with heads of texts: what they know before training, what they learn, and what is refused."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.attention import check_map, tail_maps
from p2pft_flower.learning.exports import load_export, write_export
from p2pft_flower.learning.model.class_texts import ClassTexts, class_texts, read_prompts
from p2pft_flower.learning.model.embedded.glyph_clip import create_glyph_clip, glyph_clip_tower
from p2pft_flower.learning.model.heads import CosineHead, TowerHead
from p2pft_flower.learning.model.model_facts import (
    light_digest,
    model_facts,
    require_class_texts,
    text_facts,
)
from p2pft_flower.learning.model.models import create_image_tower
from p2pft_flower.learning.model.text_embeddings import read_text_embeddings, write_text_embeddings
from p2pft_flower.learning.model.text_heads import text_classifier
from p2pft_flower.learning.model.text_tower import load_tower
from p2pft_flower.learning.model.tower_names import GLYPH_CLIP, GLYPH_CLIP_FOLDER, check_tower_model
from p2pft_flower.learning.settings import check_learning, require_here
from p2pft_flower.learning.tails import Tail
from p2pft_flower.learning.workload import Workload
from tests.later import Later
from tests.letters import DIGITS, write_letters, write_names

open_clip = Later("open_clip")

CLIP = {"model": GLYPH_CLIP, "head": "text", "text_tower": GLYPH_CLIP}
CLASSES = tuple("0123456789")


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    return write_names(tmp_path_factory.mktemp("names") / "digits.json")


@pytest.fixture(scope="module")
def whole():
    """open_clip's own model of both towers, and its tokenizer."""
    name = f"local-dir:{GLYPH_CLIP_FOLDER}"
    return open_clip.create_model(name).eval(), open_clip.get_tokenizer(name)


def config(names, **more):
    return LearningConfig(**{**CLIP, "class_names": str(names), "tune": "head", **more})


def test_the_image_tower_and_the_rows_are_those_of_open_clip(whole, names):
    model, tokenizer = whole
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model.encode_image(images)
        texts = model.encode_text(tokenizer([f"a photo of a {name}." for name in DIGITS]), normalize=True)
        ours = glyph_clip_tower()(images)
    assert torch.allclose(ours, expected, atol=1e-5)
    workload = Workload(config(names), 4)
    head = workload.model.head
    assert isinstance(head, TowerHead)
    assert torch.allclose(head.classifier.weight, texts, atol=1e-6)
    with torch.inference_mode():
        logits = workload.model(images)
        cosines = nn.functional.normalize(expected, dim=1) @ texts.T
        assert torch.allclose(logits, model.logit_scale.exp() * cosines, atol=1e-3)


def test_templates_are_averaged_as_directions(whole, names, tmp_path):
    model, tokenizer = whole
    file = tmp_path / "prompts.txt"
    file.write_text("the {}\n\n a drawing of the {}.\n")
    texts = class_texts(str(names), str(file), CLASSES)
    assert texts.templates == ("the {}", "a drawing of the {}.")
    with torch.inference_mode():
        each = [
            model.encode_text(tokenizer([t.format(name) for name in DIGITS]), normalize=True)
            for t in texts.templates
        ]
    expected = nn.functional.normalize(each[0] + each[1], dim=1)
    assert torch.allclose(load_tower(GLYPH_CLIP).rows(texts), expected, atol=1e-6)
    templates = read_prompts("imagenet80")
    assert len(templates) == 80
    assert templates[0] == "a bad photo of a {}."


def test_letters_are_known_before_any_training_and_digits_names_are_not(names, tmp_path):
    folder = write_letters(tmp_path / "letters")
    letters = Workload(LearningConfig(**CLIP, tune="head", dataset=f"folder:{folder}"), 2)
    known = letters.score(letters.theta0)
    assert known.accuracy > 0.75  # chance is 1/8
    digits = Workload(config(names), 4)
    assert digits.score(digits.theta0).accuracy < 0.3


def test_the_start_of_a_learned_prompt_is_the_templates_words(names):
    head, prompt = (Workload(config(names, tune=tune), 4) for tune in ("head", "text-prompt:4"))
    there, here = (w.score(w.theta0) for w in (head, prompt))  # "a photo of a" has four tokens
    assert here.accuracy == there.accuracy
    assert here.loss == pytest.approx(there.loss, rel=1e-5)
    longer = Workload(config(names, tune="text-prompt:6"), 4)
    first, rest = longer.theta0.reshape(6, 16)[:2], longer.theta0.reshape(6, 16)[2:]
    assert np.array_equal(rest, prompt.theta0.reshape(4, 16))
    assert 0.005 < first.std() < 0.05
    again = Workload(config(names, tune="text-prompt:6", seed=1), 4)
    assert not np.array_equal(again.theta0, longer.theta0)
    each = Workload(config(names, tune="text-prompt-class:4"), 4)
    assert np.array_equal(
        each.theta0.reshape(10, 4, 16), np.tile(prompt.theta0.reshape(1, 4, 16), (10, 1, 1))
    )


@pytest.mark.parametrize("prompts", ["the {}.", "photo of {}.", "a photo of {}.", "see a {}, a kind of {}."])
@pytest.mark.parametrize("tune", ["text-prompt", "text-prompt-class"])
def test_a_context_of_as_many_vectors_as_words_before_the_name_begins_at_zero_shot(prompts, tune, names):
    number = len(prompts.partition("{}")[0].split())
    head, _ = text_classifier(config(names, tune=f"{tune}:{number}", prompts=prompts), CLASSES, 32)
    expected = load_tower(GLYPH_CLIP).rows(class_texts(str(names), prompts, CLASSES))
    assert torch.allclose(nn.functional.normalize(head.rows(), dim=1), expected, atol=1e-6)


def test_the_payload_of_a_learned_prompt_is_small(names):
    theta = Workload(config(names, tune="text-prompt:16"), 4).theta0
    assert theta.nbytes == 16 * 16 * 4
    assert 2 * theta.nbytes < 20_000  # θ and the tracker


@pytest.mark.parametrize(
    "tune", ["head", "text-prompt:4", "text-prompt-class:2", "last-block", "bias", "lora:2"]
)
def test_gradients_are_the_slope_of_the_loss(tune, names):
    workload = Workload(config(names, tune=tune, cache=False), 4)
    objective = workload.objectives([1])[1]
    theta = workload.theta0
    rng = np.random.default_rng(3)
    gradient = objective.gradient(theta)
    direction = rng.normal(size=theta.size).astype(np.float32)
    direction /= np.linalg.norm(direction)
    step = 1e-2 * max(1.0, float(np.linalg.norm(theta))) / 10

    def loss(vector):
        own = workload.objectives([1])[1]
        own.gradient(vector.astype(np.float32))
        return own.train_loss

    slope = (loss(theta + step * direction) - loss(theta - step * direction)) / (2 * step)
    assert slope == pytest.approx(float(gradient @ direction), rel=0.05, abs=2e-3)


def test_a_text_head_trains_its_rows_and_no_projection(names):
    workload = Workload(config(names), 4)
    assert workload.parts.path == "pooled"
    assert {n: p.shape for n, p in workload.tail.named_parameters() if p.requires_grad} == {
        "model.head.classifier.weight": (10, 32)
    }
    block = Workload(config(names, tune="last-block"), 4)
    assert "head.projection.weight" in block.named_tail(block.theta0)
    assert "head.projection.bias" in Workload(config(names, tune="bias"), 4).named_tail(
        Workload(config(names, tune="bias"), 4).theta0
    )


@pytest.mark.parametrize("tune", ["head", "text-prompt:4", "last-block", "lora:2", "prompt:2"])
def test_an_export_is_a_plain_model_of_timm_with_the_same_answers(tune, names, tmp_path):
    workload = Workload(config(names, tune=tune, trunk_dtype="float32", cache_dtype="float32"), 4)
    theta = workload.theta0 + 0.01 * np.random.default_rng(1).normal(size=workload.theta0.size).astype(
        np.float32
    )
    written = write_export(
        Tail(tmp_path / "x", workload, theta, {"peer": "0"}, 1), tmp_path / "e.safetensors"
    )
    assert bool(written["added"]) == tune.startswith("prompt")
    model, classes = load_export(tmp_path / "e.safetensors")
    assert classes == CLASSES
    features = workload.test_features
    own = Workload(config(names, tune="full"), 4)
    images = torch.cat([own.test_features.read(np.array([i]))[0][0] for i in range(40)])
    with torch.inference_mode():
        tail = workload.tail
        torch.nn.utils.vector_to_parameters(
            torch.from_numpy(theta), [p for p in tail.parameters() if p.requires_grad]
        )
        expected = tail(*features.read(np.arange(40))[0]).argmax(dim=1)
        assert torch.equal(model(images).argmax(dim=1), expected)
        if not written["added"]:
            plain = create_glyph_clip(10, pretrained=False)
            plain.load_state_dict(load_file(tmp_path / "e.safetensors"), strict=True)
            assert torch.equal(plain(images).argmax(dim=1), expected)


def test_timms_tower_by_name_takes_both_towers_file_of_open_clip(monkeypatch, names):
    """A tower of timm's registry, with the weights in an open_clip file, gives open_clip's images."""
    from tests.learning import small_clip

    small_clip.register()
    weights = str(GLYPH_CLIP_FOLDER / "open_clip_model.safetensors")
    tower = create_image_tower("small_clip_tower", weights, 0)
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(tower(images), glyph_clip_tower()(images), atol=1e-5)
    workload = Workload(config(names, model="small_clip_tower", weights=weights), 4)
    known = Workload(config(names), 4)
    assert np.array_equal(workload.theta0, known.theta0)


def test_a_head_of_texts_on_images_is_the_one_on_their_features(names, tmp_path):
    """The same gradients as of features that the tower made: dataset = features:… with the same head."""
    images = Workload(config(names), 4)
    whole = images.holdings
    features = images.test_features
    pooled = features.read(np.arange(len(features)))[0][0]
    with torch.inference_mode():
        embedded = images.model.head.projection(pooled)
    logits = images.tail(pooled)
    head, _ = text_classifier(images.config, whole.classes, 32)
    assert torch.allclose(head(embedded), logits, atol=1e-4)


def test_where_rows_come_from_counts_and_their_roundings_do_not(names, tmp_path, monkeypatch):
    file = tmp_path / "t.safetensors"
    tower, texts = load_tower(GLYPH_CLIP), class_texts(str(names), "a photo of a {}.", CLASSES)
    rows = tower.rows(texts).numpy()
    write_text_embeddings(file, CLASSES, rows, tower.scale, tower.digest, texts)
    by_tower, by_file = config(names), config(names, text_embeddings=str(file))
    alone = LearningConfig(model=GLYPH_CLIP, head="text", tune="head", text_embeddings=str(file))
    first = Workload(by_tower, 4)
    assert [Workload(c, 4).model_digest for c in (by_file, alone)] == [first.model_digest] * 2
    assert [Workload(c, 4).frozen_facts() for c in (by_file, alone)] == [first.frozen_facts()] * 2
    rounded = rows * (1 + 1e-7)
    write_text_embeddings(file, CLASSES, rounded.astype(np.float32), tower.scale, tower.digest, texts)
    assert Workload(alone, 4).model_digest == first.model_digest
    # Another template, another name of a class, another seed's prompt: other facts.
    assert Workload(config(names, prompts="the {}"), 4).model_digest != first.model_digest
    other = write_names(tmp_path / "other.json", ("nought", *DIGITS[1:]))
    assert Workload(config(other), 4).model_digest != first.model_digest
    light = {
        c: light_digest(model_facts(c)) for c in (by_tower, config(other), config(names, prompts="the {}"))
    }
    assert len(set(light.values())) == 3


def test_a_sites_file_of_other_texts_than_the_runs_is_refused_as_far_as_these_are_here(names, tmp_path):
    file = tmp_path / "t.safetensors"
    tower, texts = load_tower(GLYPH_CLIP), class_texts(str(names), "a photo of a {}.", CLASSES[::-1])
    write_text_embeddings(file, CLASSES, tower.rows(texts).numpy(), tower.scale, tower.digest, texts)
    other = config(names, text_embeddings=str(file))
    message = "was made of other names or templates than this run's, whose first text is 'a photo of a zero.'"
    with pytest.raises(DataError, match=message):
        text_classifier(other, CLASSES, 32)
    with pytest.raises(DataError, match=message):
        require_class_texts(other, CLASSES)
    text_classifier(replace(other, class_names=str(tmp_path / "elsewhere.json")), CLASSES, 32)


def test_a_run_has_one_source_of_texts(names, tmp_path):
    alone = config(names, text_tower="", class_names="", text_embeddings=f"{tmp_path}/t.npz")
    check_learning(alone, 4, pooled=False)
    for more in ({"text_tower": GLYPH_CLIP}, {"class_names": str(names)}, {"prompts": "a {}"}):
        with pytest.raises(ConfigError, match=f"{min(more).replace('_', '-')} = .*nothing would read"):
            check_learning(replace(alone, **more), 4, pooled=False)


def test_a_changed_file_of_embeddings_is_refused(names, tmp_path):
    file = tmp_path / "t.safetensors"
    tower, texts = load_tower(GLYPH_CLIP), class_texts(str(names), "a photo of a {}.", CLASSES)
    write_text_embeddings(file, CLASSES, tower.rows(texts).numpy(), tower.scale, tower.digest, texts)
    made = read_text_embeddings(str(file), CLASSES[::-1], 32)
    assert np.array_equal(made.rows[::-1], tower.rows(texts).numpy())
    assert made.scale == tower.scale
    with safe_open(file, framework="numpy") as held:
        metadata, rows = held.metadata(), held.get_tensor("embeddings")
    save_file({"embeddings": torch.from_numpy(rows + np.float32(0.01))}, file, metadata)
    with pytest.raises(DataError, match="were changed after p2pft text-embeddings made them"):
        read_text_embeddings(str(file), CLASSES, 32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"0": "zero"}', "no name for the classes 1, 2"),
        ('{"zero": "zero"}', "no name for the classes 0"),
        ('["zero"]', "must be one object such as"),
        (json.dumps(dict.fromkeys(CLASSES, "one")), "more than one class is called one; texts cannot tell"),
        ('{"0": 0}', "must be one object such as"),
        ('{"0": "zero", "1": "one", "0": "nought"}', "more than once there: 0"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_class_names_that_do_not_fit_are_named(content, message, tmp_path):
    file = tmp_path / "names.json"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        require_class_texts(config(file), CLASSES)


def test_a_template_without_a_place_for_the_name_is_named_with_its_line(names, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a {}\na photo\n")
    settings = config(names, prompts=str(file))
    check_learning(settings, 4, pooled=False)
    with pytest.raises(DataError, match=r"line 2, 'a photo', has no \{\}"):
        require_here(settings, 4)
    for prompts, message in (("photo", "must be a template with"), ("imagenet8", "imagenet80")):
        with pytest.raises(ConfigError, match=message):
            check_learning(config(names, prompts=prompts), 4, pooled=False)


def test_without_open_clip_the_extra_is_named_before_anything_starts(names, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"open_clip, which is not installed here: run pip install"):
        require_here(config(names), 4)
    with pytest.raises(ConfigError, match="prompts = imagenet80: a text tower needs open_clip"):
        read_prompts("imagenet80")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"text_tower": ""}, "needs text-tower, the name of a model of open_clip, or text-embeddings"),
        ({"head": "random"}, "only head = text reads texts"),
        (
            {"tune": "text-prompt:4", "text_tower": "", "text_embeddings": "/t.npz"},
            "give head = text and text-tower",
        ),
        ({"tune": "text-prompt:4", "text_embeddings": "/t.npz"}, "leave text-embeddings out"),
        ({"tune": "text-prompt:0"}, "0 is not a whole number"),
        ({"tune": "mlp:4"}, "are for features"),
        ({"model": "vit_tiny_patch16_224"}, "it is no image tower that was trained with texts"),
        ({"model": "glyph_vit_8"}, "it is no image tower that was trained with texts"),
        ({"text_tower": "ViT-B-32"}, "NAME:TAG"),
        ({"text_tower": "local-dir:here"}, "the folder's path must be absolute"),
        ({"text_tower": "glyph_clip"}, "did you mean 'glyph_clip_8'"),
    ],
)
def test_settings_of_texts_that_do_not_go_together_are_named(more, message, names):
    with pytest.raises(ConfigError, match=message):
        check_learning(config(names, **more), 4, pooled=False)


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        ("local-dir:/no/such/folder", "there is no such folder"),
        ("ViT-B-31:openai", "open_clip has no 'ViT-B-31'"),
        ("ViT-B-32:opena", "open_clip has no weights 'opena' of ViT-B-32"),
    ],
)
def test_a_text_tower_that_is_not_there_is_named(tower, message):
    with pytest.raises((ConfigError, DataError), match=message):
        load_tower(tower)


def test_a_folder_that_is_no_model_is_named_with_open_clips_reason(tmp_path):
    with pytest.raises(DataError, match="open_clip could not load it"):
        load_tower(f"local-dir:{tmp_path}")


def test_a_model_that_never_saw_texts_and_towers_of_two_models_are_refused(names, tmp_path):
    for model in ("vit_tiny_patch16_224", "glyph_vit_8", "small:model"):
        with pytest.raises(
            ConfigError, match=r"it is no image tower that was trained with texts|cannot import"
        ):
            create_image_tower(model, "none", 0)
    with pytest.raises(
        ConfigError, match="its texts have 32 numbers each, the images of 'glyph_clip_8' have 512"
    ):
        text_classifier(config(names), CLASSES, 512)
    wide = tmp_path / "wide.npz"
    np.savez(wide, embeddings=np.ones((10, 512), np.float32), names=np.array(CLASSES))
    with pytest.raises(DataError, match="its embeddings have 512 numbers each, the features 32"):
        text_classifier(config(names, text_tower="", class_names="", text_embeddings=str(wide)), CLASSES, 32)


def test_a_tower_of_open_clips_other_kind_embeds_and_takes_a_learned_prompt(names, tmp_path):
    """CustomTextCLIP, as SigLIP's and EVA-CLIP's models are, with its text tower in ``text``."""
    sizes = {"context_length": 24, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
    vision = {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4}
    made = {"embed_dim": 12, "custom_text": True, "vision_cfg": vision, "text_cfg": sizes}
    model = open_clip.model.CustomTextCLIP(12, dict(vision), dict(sizes)).eval()
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": made, "preprocess_cfg": {}}))
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    settings = config(names, text_tower=f"local-dir:{tmp_path}")
    head, _ = text_classifier(settings, CLASSES, 12)
    tokens = open_clip.SimpleTokenizer(context_length=24)([f"a photo of a {name}." for name in DIGITS])
    with torch.inference_mode():
        expected = model.encode_text(tokens, normalize=True)
        assert torch.allclose(head.weight, expected, atol=1e-5)
        prompt, _ = text_classifier(replace(settings, tune="text-prompt:4"), CLASSES, 12)
        assert torch.allclose(nn.functional.normalize(prompt.rows(), dim=1), expected, atol=1e-5)


def test_a_tower_that_pools_into_the_space_of_texts_itself_is_taken(names, tmp_path):
    """As SigLIP's: no projection behind the pooling, and a bias of all logits, which no answer depends on."""
    from tests.learning import small_clip

    small_clip.register()
    sizes = {"context_length": 24, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
    vision = {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4}
    made = {"embed_dim": 12, "custom_text": True, "init_logit_bias": -10.0}
    made |= {"vision_cfg": vision, "text_cfg": sizes}
    model = open_clip.model.CustomTextCLIP(12, dict(vision), dict(sizes), init_logit_bias=-10.0).eval()
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": made, "preprocess_cfg": {}}))
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    settings = config(
        names, model="small_siglip_tower", weights="none", text_tower=f"local-dir:{tmp_path}", tune="head"
    )
    workload = Workload(settings, 4)
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1)
    with torch.inference_mode():
        embedded = nn.functional.normalize(create_image_tower("small_siglip_tower", "none", 0)(images), dim=1)
        tokens = open_clip.SimpleTokenizer(context_length=24)([f"a photo of a {name}." for name in DIGITS])
        expected = model.logit_scale.exp() * embedded @ model.encode_text(tokens, normalize=True).T
        assert torch.allclose(workload.model(images), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("model", "taken"),
    [
        ("vit_base_patch16_siglip_224.v2_webli", True),
        ("vit_base_patch16_siglip_gap_224.v2_webli", False),
        ("vit_so400m_patch14_siglip_gap_448.pali2_3b_pt", False),
        ("naflexvit_base_patch16_siglip", True),
        ("naflexvit_base_patch16_radio_v3", False),
        ("eva02_base_patch16_clip_224.merged2b", True),
        ("vit_pe_core_base_patch16_224.fb", True),
        ("vit_base_patch16_dinov3.lvd1689m", False),
    ],
)
def test_image_towers_are_known_by_their_names(model, taken):
    with contextlib.nullcontext() if taken else pytest.raises(ConfigError, match="it is no image tower"):
        check_tower_model(model)


def test_a_text_that_the_tower_would_cut_off_is_refused():
    long = ClassTexts(("a very " * 40 + "long name",), ("{}",))
    with pytest.raises(DataError, match="has more than 32 tokens; use a shorter name or template"):
        load_tower(GLYPH_CLIP).rows(long)


@pytest.mark.parametrize("tune", ["head", "text-prompt:4"])
def test_names_that_the_tokenizer_cannot_tell_apart_are_refused(tune, tmp_path):
    file = write_names(tmp_path / "names.json", ("Polish", "polish", *DIGITS[2:]))
    with pytest.raises(DataError, match="'Polish' and 'polish' are the same to its tokenizer"):
        text_classifier(config(file, tune=tune), CLASSES, 32)


@pytest.mark.parametrize(
    ("classes", "message"),
    [(("sea_lion", "sea lion"), "more than one class is called sea lion"), (("cat", "_"), "is called ' '")],
)
def test_the_datasets_own_names_are_looked_at_too(classes, message):
    with pytest.raises(DataError, match=f"class-names is not set, .*{message}"):
        class_texts("", "a {}.", classes)


def test_a_mark_of_the_byte_order_is_no_part_of_a_text(tmp_path):
    (tmp_path / "prompts.txt").write_text("\ufeffthe {}\n", encoding="utf-8")
    (tmp_path / "names.json").write_text('\ufeff{"0": "zero"}', encoding="utf-8")
    found = class_texts(f"{tmp_path}/names.json", f"{tmp_path}/prompts.txt", ("0",))
    assert found == ClassTexts(("zero",), ("the {}",))


def test_a_text_that_a_tokenizer_cuts_off_is_found_where_it_pads_with_the_token_of_the_end(monkeypatch):
    """As SigLIP's does."""
    tower = load_tower(GLYPH_CLIP)

    def tokenizer(texts, context_length):
        rows = [[*map(ord, text[: context_length - 1]), 1] for text in texts]
        return torch.tensor([row + [1] * (context_length - len(row)) for row in rows])

    monkeypatch.setattr(tower, "_tokenizer", tokenizer)
    assert tower.tokens(["x" * 31]).shape == (1, 32)
    with pytest.raises(DataError, match="has more than 32 tokens"):
        tower.tokens(["x" * 32])


def test_a_tower_in_a_file_is_recognised_by_its_content(names, tmp_path):
    file = tmp_path / "tower.safetensors"
    found = []
    for content in (b"one", b"two"):
        file.write_bytes(content)
        found.append(text_facts(config(names, text_tower=f"ViT-B-32:{file}"))["text-tower"])
    assert found[0] != found[1]
    assert str(tmp_path) not in found[0]


def test_a_learned_prompt_begins_with_one_template(names):
    settings = config(names, tune="text-prompt:4", prompts="imagenet80")
    with pytest.raises(ConfigError, match="with 80 templates in prompts: a learned prompt begins with one"):
        text_classifier(settings, CLASSES, 32)
    with pytest.raises(DataError, match="has more than 32 tokens"):
        text_classifier(config(names, tune="text-prompt:40"), CLASSES, 32)


def test_weights_of_another_activation_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        create_image_tower("vit_base_patch32_clip_224.openai", "none", 0)
    assert "choose vit_base_patch32_clip_quickgelu_224.openai" in caplog.text
    caplog.clear()


def test_open_clip_gives_the_root_logger_no_handler(monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    load_tower.cache_clear()
    load_tower(GLYPH_CLIP)
    assert root.handlers == []


def test_private_gradients_of_a_text_head_are_clipped_one_image_at_a_time(names):
    pytest.importorskip("opacus", reason="dp is an extra")
    workload = Workload(config(names, dp_clip=0.1), 4)
    gradient = workload.objectives([0])[0].gradient(workload.theta0)
    assert 0 < np.linalg.norm(gradient) <= 0.1 * 2


def test_the_map_of_texts_is_the_cosine_of_each_patch_and_its_classs_text(names):
    workload = Workload(config(names), 4)
    model = workload.model
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    rows = nn.Parameter(torch.randn(10, 32, generator=torch.Generator().manual_seed(5)))
    tails = [{}, {"head.classifier.weight": rows.detach()}]
    with torch.inference_mode():
        patches = nn.functional.normalize(model.head.projection(model.forward_features(images)[:, 1:]), dim=2)
    for number, found in enumerate(tail_maps(model, tails, images, "text", [7, None, 2])):
        answered = int(found.logits[1].argmax())
        direction = nn.functional.normalize(
            tails[number].get("head.classifier.weight", model.head.classifier.weight)
        )
        expected = torch.stack([patches[i] @ direction[c] for i, c in enumerate((7, answered, 2))])
        assert torch.allclose(found.maps, expected.reshape(3, 4, 4), atol=1e-5)
    with pytest.raises(ConfigError, match="map = 'text': not for this model"):
        check_map(Workload(LearningConfig(), 4).model, "text")


def test_a_cosine_head_is_folded_into_one_layer_with_the_same_order():
    generator = torch.Generator().manual_seed(2)
    rows, images = torch.randn(6, 8, generator=generator), torch.randn(9, 12, generator=generator)
    for projection in (nn.Linear(12, 8), nn.Linear(12, 8, bias=False)):
        head = TowerHead(projection, CosineHead(rows, 30.0))
        lengths = projection(images).norm(dim=1, keepdim=True)
        assert torch.allclose(head.plain()(images), head(images) * lengths, atol=1e-3)
    head = TowerHead(nn.Identity(), CosineHead(rows, 30.0))
    seen = torch.randn(9, 8, generator=generator)
    assert torch.allclose(head.plain()(seen), head(seen) * seen.norm(dim=1, keepdim=True), atol=1e-3)


def test_the_packaged_folder_is_small_and_read_by_timm():
    size = sum(file.stat().st_size for file in GLYPH_CLIP_FOLDER.iterdir())
    assert size < 2_000_000
    assert (
        json.loads((GLYPH_CLIP_FOLDER / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"] == 32
    )
    assert timm.data.resolve_data_config({}, model=glyph_clip_tower())["input_size"] == (3, 8, 8)


@pytest.mark.parametrize("tune", ["head", "text-prompt:4"])
def test_features_of_the_tower_are_trained_as_its_images_are(tune, names, tmp_path):
    """dataset = features:… with what the tower made of the images gives the same start and gradients."""
    images = Workload(config(names, tune=tune, trunk_dtype="float32"), 4)
    held = images.holdings
    arrays = {}
    for part, split in (("train", held.pictures.train), ("test", held.pictures.test)):
        everything = np.arange(len(split.labels))
        pooled = images.network.features(split, everything, part).read(everything)[0][0]
        with torch.inference_mode():
            arrays[f"{part}.features"] = images.model.head.projection(pooled).numpy()
        arrays[f"{part}.labels"] = np.asarray(split.labels)
    np.savez(tmp_path / "f.npz", **arrays, classes=np.array(CLASSES))
    more = {"model": "none", "dataset": f"features:{tmp_path}/f.npz", "partition": "classes:0-1,2-3,4-6,7-9"}
    features = Workload(config(names, tune=tune, **more), 4)
    assert np.array_equal(features.theta0, images.theta0)
    assert features.score(features.theta0).loss == pytest.approx(images.score(images.theta0).loss, rel=1e-5)
    ours, theirs = (w.objectives([2])[2].gradient(w.theta0) for w in (features, images))
    assert np.allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    written = write_export(Tail(tmp_path, features, features.theta0, {}, 1), tmp_path / "head.safetensors")
    assert written["added"] == 0
    head, _ = load_export(tmp_path / "head.safetensors")
    seen = torch.from_numpy(arrays["test.features"])
    with torch.inference_mode():
        answers = head(seen).argmax(dim=1).numpy()
    right = (answers == arrays["test.labels"]).mean()
    assert right == pytest.approx(features.score(features.theta0).accuracy)
