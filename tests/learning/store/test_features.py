"""The trunk's output in the store: computed once, whoever asks, and the same gradients as without it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from p2pft_flower.cli import app
from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.model import devices
from p2pft_flower.learning.store import features
from p2pft_flower.learning.store.cache import stores
from p2pft_flower.learning.store.features import StoredFeatures, TrunkStore
from p2pft_flower.learning.workload import Workload
from tests.commands import CliRunner
from tests.learning import small_timm  # noqa: F401 - has timm know the small models
from tests.learning.conftest import write_images


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Three classes of four pictures, and a store of their own."""
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))
    return f"folder:{write_images(tmp_path / 'pictures', {'train': 4, 'test': 2})}"


@pytest.fixture
def passes(monkeypatch):
    """Numbers of images in each pass of a trunk."""
    seen = []
    original = TrunkStore._run

    def watch(self, split, positions):
        seen.append(len(positions))
        return original(self, split, positions)

    monkeypatch.setattr(TrunkStore, "_run", watch)
    return seen


def workload(pictures, n=3, pooled="", **settings):
    return Workload(LearningConfig(dataset=pictures, batch_size=2, **settings), n=n, pooled=pooled)


def gap(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.mark.parametrize(
    ("model", "tune"),
    [
        *(("glyph_vit_8", tune) for tune in ("last-block", "last-blocks:2", "head")),
        *(("small_cait", "last-block"), ("small_xcit", "lora:2"), ("small_pit_distilled", "head")),
    ],
)
def test_the_cache_changes_no_gradient(pictures, model, tune):
    chosen = {"model": model, "tune": tune, "weights": "pretrained" if model == "glyph_vit_8" else "none"}
    chosen["trunk_dtype"] = "float32"
    kept = workload(pictures, cache_dtype="float32", **chosen).objectives([1])[1]
    live = workload(pictures, cache=False, **chosen).objectives([1])[1]
    theta = workload(pictures, **chosen).theta0
    for _ in range(4):
        ours, theirs = kept.gradient(theta), live.gradient(theta)
        assert gap(ours, theirs) <= 1e-5
        theta = theta - np.float32(0.1) * theirs
    assert kept.evaluate(theta).loss == pytest.approx(live.evaluate(theta).loss, rel=1e-5)


def test_halves_round_gradients_a_little(pictures):
    halves, exact = (workload(pictures, cache_dtype=d).objectives([0])[0] for d in ("float16", "float32"))
    theta = workload(pictures).theta0
    assert 0 < gap(halves.gradient(theta), exact.gradient(theta)) < 1e-2


@pytest.mark.parametrize(
    ("model", "tune", "dtypes"),
    [
        ("small_vit", "last-block", ["float16", "float32"]),
        ("small_vit_deep", "last-blocks:2", ["float16"]),
        ("small_pit_distilled", "head", ["float32"]),
        ("small_cait", "last-block", ["float16", "float32"]),  # patches, and the class token beside them
        ("small_xcit", "last-block", ["float16"]),
    ],
)
def test_what_is_small_is_stored_exactly(pictures, model, tune, dtypes):
    rows = workload(pictures, model=model, weights="none", tune=tune).test_features.rows
    assert [str(field.dtype) for field in rows.gather(np.arange(1))] == dtypes


def test_peers_partitions_seeds_and_pooled_runs_share_what_the_trunk_made(pictures, passes):
    first = workload(pictures)
    first.objectives([0, 1, 2])
    assert sum(passes) == 12 + 6 + 1  # every image once, and one to learn the shapes
    passes.clear()
    workload(pictures, partition="iid", seed=3).objectives([0, 1, 2])
    workload(pictures, pooled="uniform").objectives([0])
    assert sum(passes) == 2  # shapes only


def test_stores_are_told_apart_by_all_that_the_trunks_output_depends_on(pictures, passes):
    def filled(**settings):
        passes.clear()
        workload(pictures, **{"trunk_dtype": "float32"} | settings).objectives([0])
        return sum(passes) > 1

    assert filled()
    assert not filled(seed=5)  # another head, the same trunk
    assert filled(tune="last-blocks:2")
    assert filled(tune="head")
    assert not filled(tune="head", seed=5)
    assert filled(cache_dtype="float32")
    assert filled(trunk_dtype="bfloat16")
    assert filled(weights="none")
    assert not filled()
    assert len(stores()) == 6
    shown = CliRunner().invoke(app, ["cache", "list"], env={"COLUMNS": "160"}).output
    for word in ("glyph_vit_8", "class-token", "pooled", "query", "bfloat16"):
        assert word in shown


def test_an_image_that_changes_is_computed_again(pictures, passes, tmp_path):
    workload(pictures).objectives([0])
    passes.clear()
    folder = tmp_path / "pictures" / "train" / "blue"
    files = sorted(folder.iterdir())
    files[0].write_bytes(files[-1].read_bytes() + b"\0")  # an unknown content of the same name
    workload(pictures).objectives([0])
    assert sum(passes) == 1 + 1


def test_the_batch_fetched_ahead_is_the_one_that_is_read(pictures):
    features = workload(pictures).features(2)
    wanted = np.array([3, 0])
    features.ahead(lambda: wanted)
    ahead, labels = features.read(wanted)
    features.ahead(lambda: np.array([1, 2]))  # but something else is read
    again, same = features.read(wanted)
    assert all(torch.equal(a, b) for a, b in zip(ahead, again, strict=True))
    assert torch.equal(labels, same)


def test_rows_are_on_an_accelerator_if_they_fit_and_else_come_batch_by_batch(pictures, monkeypatch):
    """The CPU stands for an accelerator, under a name by which it is not known as the CPU."""
    held = workload(pictures).features(0)
    on_device = StoredFeatures(held.rows, held.labels, "cpu:0")
    monkeypatch.setattr(features, "free_memory", lambda _: 2 * held.rows.nbytes - 1)
    in_memory = StoredFeatures(held.rows, held.labels, "cpu:0")
    assert on_device._resident is not None
    assert in_memory._resident is None
    positions = np.array([3, 0, 3])
    for one in (on_device, in_memory):
        one.ahead(lambda: positions)
        found, labels = one.read(positions)
        expected, truth = held.read(positions)
        assert {t.dtype for t in found} == {torch.float32}
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert torch.equal(labels, truth)


def test_values_too_large_for_halves_are_refused_with_the_remedy(pictures, monkeypatch):
    problem = workload(pictures, tune="last-blocks:2")
    original = TrunkStore._run
    monkeypatch.setattr(TrunkStore, "_run", lambda *args: tuple(1e6 * (1 + t.abs()) for t in original(*args)))
    with pytest.raises(DataError, match=r"too large for float16.*float32"):
        problem.objectives([0])


@pytest.mark.parametrize(
    ("dtype", "remedy"), [("float32", "check the weights"), ("bfloat16", "or set trunk-dtype = float32")]
)
def test_an_image_of_which_the_trunk_makes_a_nan_is_named_and_never_stored(
    pictures, monkeypatch, dtype, remedy
):
    original = TrunkStore._run

    def spoiled(self, split, positions):
        outputs = original(self, split, positions)
        for row, position in enumerate(positions):
            if str(split.files[position]).endswith("train/green/2.PNG"):
                outputs[-1][row].view(-1)[3] = np.nan
        return outputs

    with monkeypatch.context() as patch:
        patch.setattr(TrunkStore, "_run", spoiled)
        with pytest.raises(DataError, match=rf"train/green/2\.PNG: .*is not finite.*{remedy}$"):
            workload(pictures, trunk_dtype=dtype).features(1)
    inputs, _ = workload(pictures, trunk_dtype=dtype).features(1).read(np.arange(4))
    assert all(field.isfinite().all() for field in inputs)


def test_an_image_without_a_file_is_named_by_its_position(pictures, monkeypatch):
    monkeypatch.setattr(TrunkStore, "run", lambda self, images: (torch.full((len(images), 16), torch.inf),))
    with pytest.raises(
        DataError, match=r"^peer 1's image \d+: the frozen trunk's output .*\(NaN or infinite\)"
    ):
        Workload(LearningConfig(tune="head"), n=4).features(1)


@pytest.mark.parametrize("cache", [True, False])
def test_objectives_note_progress_at_least_once_an_image_and_only_while_they_are_built(pictures, cache):
    noted = []
    problem = workload(pictures, cache=cache)
    objective = problem.objectives([1], lambda: noted.append(1))[1]
    assert len(noted) >= 4 + 6  # its training images, and all test images
    before = len(noted)
    objective.gradient(problem.theta0)
    workload(pictures, cache=cache).objectives([2])
    assert len(noted) == before


def test_the_trunks_dtype_follows_the_hardware(monkeypatch):
    assert devices.choose_trunk_dtype("float32", "cpu") is torch.float32
    assert devices.choose_trunk_dtype("bfloat16", "cpu") is torch.bfloat16
    for told, dtype in [
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
    ]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda told=told: told, raising=False)
        assert devices.choose_trunk_dtype("auto", "cpu") is dtype
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert devices.choose_trunk_dtype("auto", "cpu") is torch.float32


def test_a_device_that_is_not_there_is_refused_and_auto_takes_what_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert devices.choose_device("auto") == "cpu"
    with pytest.raises(ConfigError, match="device = 'cuda': torch finds none on this machine; there is cpu"):
        devices.choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.choose_device("auto") == "cuda"


def test_what_is_not_kept_is_told_once_with_the_reason(pictures, caplog):
    with caplog.at_level("INFO", logger="p2pft_flower"):
        workload(pictures, tune="bias").objectives([0, 1])
        workload(pictures, augment="basic").objectives([0, 1])
    told = [r.getMessage() for r in caplog.records if "store is not used" in r.getMessage()]
    assert len(told) == 2
    assert "the stem has trained parameters" in told[0]
    assert "augment = basic makes another image each time" in told[1]
    assert "q = 50" not in told[0]


@pytest.mark.parametrize("tune", ["last-block", "lora:4"])
def test_what_is_tuned_is_told_with_q_share_and_payload(pictures, tune, caplog):
    with caplog.at_level("INFO", logger="p2pft_flower"):
        problem = workload(pictures, tune=tune)
        q = problem.theta0.size
    assert f"tune = {tune}: q = {q} trained parameters" in caplog.text
    assert f"a vector of them has {4 * q / 1e3:.1f} kB" in caplog.text
