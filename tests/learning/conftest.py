"""Small models, and folders of images, for the tests of learning."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import BatchNormAct2d, HybridEmbed
from timm.models.resnetv2 import ResNetV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

DROPS = {
    "drop_rate": 0.4,
    "proj_drop_rate": 0.3,
    "attn_drop_rate": 0.3,
    "drop_path_rate": 0.5,
}


def small_vit(seed=0, cls=VisionTransformer, **options):
    """A ViT of 3 blocks for (3, 8, 8) images, 5 classes, frozen as create_model leaves it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(img_size=8, patch_size=4, embed_dim=16, depth=3, num_heads=2, num_classes=5, **options)
        for p in model.parameters():  # timm starts biases and class tokens at (almost) zero
            torch.nn.init.normal_(p, std=0.2)
    return model.eval().requires_grad_(False)


def small_swin(seed=0, **options):
    """A Swin of 2 stages of 2 blocks, the second shifted, for (3, 32, 32) images, 5 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SwinTransformer(
            img_size=32,
            patch_size=4,
            embed_dim=16,
            depths=(2, 2),
            num_heads=(2, 4),
            window_size=2,
            num_classes=5,
            **options,
        )
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.2)
    return model.eval().requires_grad_(False)


def small_hybrid(seed=0, **options):
    """A ViT of 3 blocks over a small ResNet with batch norm, for (3, 16, 16) images, 5 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = ResNetV2(
            layers=(1,), channels=(8,), stem_chs=8, num_classes=0, global_pool="", preact=False,
            stem_type="same", norm_layer=BatchNormAct2d,
        )  # fmt: skip
        model = VisionTransformer(
            img_size=16,
            patch_size=1,
            embed_dim=16,
            depth=3,
            num_heads=2,
            num_classes=5,
            embed_layer=partial(HybridEmbed, backbone=backbone),
            **options,
        )
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.2)
        set_statistics(model)
    model.pretrained_cfg = {"input_size": (3, 16, 16)}
    return model.eval().requires_grad_(False)


def set_statistics(model):
    """Give batch-norm layers statistics as if they had seen images, far from those of any batch."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            torch.nn.init.normal_(buffer, std=0.5)
        elif name.endswith("running_var"):
            torch.nn.init.uniform_(buffer, 0.3, 3.0)


class TokenBatchNorm(torch.nn.BatchNorm1d):
    """Batch norm of (N, T, D) tokens."""

    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class MemoryFeatures:
    """Tail inputs in memory, as the trunk made them."""

    def __init__(self, inputs, labels):
        self.inputs, self.labels = inputs, labels

    def __len__(self):
        return len(self.labels)

    def read(self, positions, draw=None):
        return tuple(t[torch.from_numpy(positions)] for t in self.inputs), self.labels[positions]

    def ahead(self, following):
        pass


@pytest.fixture(autouse=True)
def _one_thread():
    """The models are so small that threads cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def images():
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


COLOURS = {"blue": (20, 30, 220), "green": (30, 200, 40), "red": (210, 30, 20)}


def write_images(root, counts, colours=COLOURS):
    """Write ``counts[part]`` noisy images of each colour, of changing sizes and formats."""
    rng = np.random.default_rng(0)
    for part, count in counts.items():
        for name, colour in colours.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                shape = (12 + 5 * i, 30 - 3 * i, 3)
                pixels = np.clip(np.array(colour) + rng.normal(0, 15, shape), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(
                    root / part / name / f"{i}.{('png', 'jpg', 'PNG', 'jpeg')[i % 4]}"
                )
    return root


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "pictures", {"train": 4, "test": 2})
