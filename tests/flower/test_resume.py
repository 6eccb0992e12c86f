"""A run that goes on from checkpoints is the one never interrupted, bit for bit; or it is refused."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from p2pft_flower.report.results import read_results
from p2pft_flower.runtime.checkpoints import checkpoint_files, checkpoint_folder

from .engine import run_app
from .sameness import same_run

SHORT = {
    "iterations": 7,
    "evaluate_every": 3,
    "checkpoint_every": 2,
    "checkpoints_kept": 50,
    "shots": 4,
    "batch_size": 3,
}
"""Checkpoints after 0, 2, 4, 6 and 7 iterations, evaluations after 0, 3, 6 and 7."""


def killed_after(iteration, folder, to, n=4):
    """Copy what a run would have left, had it been killed after the checkpoint of ``iteration``."""
    shutil.copytree(folder, to)
    (to / "results.json").unlink(missing_ok=True)
    for p in range(n):
        (to / "peers" / f"peer-{p}.safetensors").unlink(missing_ok=True)
        for k, path in checkpoint_files(checkpoint_folder(to, p)).items():
            if k > iteration:
                path.unlink()
    return to


@pytest.fixture
def pictures(tmp_path):
    """A folder of images, 6 of each of 4 classes, and one for the test."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 1)):
        for label in range(4):
            folder = tmp_path / "pictures" / part / f"class-{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 60, (8, 8), dtype=np.uint8) + np.uint8(50 * label)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "pictures"


DROPPING = """
from timm.models.vision_transformer import VisionTransformer

def dropping(num_classes, pretrained):
    model = VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, num_classes=num_classes, embed_dim=12, depth=2, num_heads=2,
        drop_rate=0.2, proj_drop_rate=0.2, drop_path_rate=0.2,
    )
    model.pretrained_cfg = {
        "input_size": (1, 8, 8), "interpolation": "bilinear", "mean": (0.5,), "std": (0.5,),
        "crop_pct": 1.0, "crop_mode": "center",
    }
    return model
"""

MINE = """
from typing import NamedTuple
import numpy as np
from p2pft_flower.algorithms.seam import Rows

class State(NamedTuple):
    theta: np.ndarray
    total: np.ndarray
    steps: int
    norm: float

class Adagrad:
    phases = ("theta",)

    def __init__(self, alpha, momentum):
        self.alpha = alpha

    def start(self, theta, gradient):
        return State(theta, np.zeros_like(theta), 0, 0.0)

    def step(self, k, state, gradient):
        g = gradient(state.theta)
        total = state.total + g * g
        mixed = yield Rows(state.theta - self.alpha(k) * g / np.sqrt(total + np.float32(1e-8)))
        return State(mixed, total, state.steps + 1, state.norm + float(np.linalg.norm(g)))
"""

KINDS = {
    "p2pft": {"algorithm": "p2pft"},
    "p2pft, momentum, cosine": {"algorithm": "p2pft", "momentum": 0.9, "schedule": "cosine"},
    "p2pft, by images, decay": {"objective": "examples", "weight_decay": 0.01, "topology": "lopsided-4"},
    "dgd, momentum": {"algorithm": "dgd", "momentum": 0.5},
    "gt-dgd": {"algorithm": "gt-dgd", "topology": "ring-4"},
    "local": {"algorithm": "local", "momentum": 0.9},
    "centralized": {"algorithm": "centralized", "momentum": 0.9},
    "drop-out": {"model": "{tmp}/models.py:dropping", "weights": "none"},
    "augmentation": {"augment": "rand-m9-mstd0.5-inc1"},
    "privacy": {"dp_clip": 1.0, "dp_noise": 0.5, "shots": 0},
    "a folder that may grow": {
        "dataset": "folder:{tmp}/pictures", "stream": True, "shots": 0, "batch_size": 4,
    },
    "a pooled folder that may grow": {
        "dataset": "folder:{tmp}/pictures", "stream": True, "shots": 0, "batch_size": 4,
        "algorithm": "centralized",
    },
    "a method of one's own": {"algorithm": "{tmp}/mine.py:Adagrad", "learning_rate": 0.01},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_bit_identical_to_one_never_interrupted(kind, tmp_path, pictures):
    (tmp_path / "models.py").write_text(DROPPING)
    (tmp_path / "mine.py").write_text(MINE)
    settings = SHORT | {
        k: v.replace("{tmp}", str(tmp_path)) if isinstance(v, str) else v for k, v in KINDS[kind].items()
    }
    n = 1 if settings.get("algorithm") == "centralized" else 4
    run_app(tmp_path / "whole", slots=1, **settings)
    assert list(checkpoint_files(checkpoint_folder(tmp_path / "whole", 0))) == [0, 2, 4, 6, 7]
    killed = killed_after(4, tmp_path / "whole", tmp_path / "killed", n)
    run_app(tmp_path / "resumed", slots=2, resume=str(killed), **settings)
    same_run(tmp_path / "resumed", tmp_path / "whole", n)
    whole, again = read_results(tmp_path / "whole"), read_results(tmp_path / "resumed")
    assert whole["resumed_from"] is None
    assert again["resumed_from"] == {"run": whole["run"], "iteration": 4}
    assert [row["iteration"] for row in again["history"]] == [0, 3, 6, 7]
