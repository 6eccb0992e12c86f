"""Score the weights on letters, and on digits after the last block, norm and head are tuned.

The digits are split as everywhere in this package (20 % test, stratified, random_state 0). All choices were
made on the validation part: 20 % of the training part, cut off in the same way.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from importlib.resources import as_file, files

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import train_test_split
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from p2pft_flower.learning.model import embedded
from p2pft_flower.learning.model.embedded import MEAN, STD, WEIGHTS_FILE, build, create_glyph_vit
from tools.embedded_weights.glyphs import ALPHABET, FACES, UNSEEN_FACE, Bank, draw, load_bank

__all__ = [
    "Digits",
    "central",
    "directed_ring",
    "letter_accuracy",
    "linear_probe",
    "load_split",
    "score",
    "unseen_bank",
]

RATE = 0.1
ITERATIONS = 300
TEST_SEED = 1_000_003
"""Seed of the held-out letters, far from the seeds that people choose."""
PEERS = ((0, 1), (2, 3), (4, 5, 6), (7, 8, 9))
"""The classes of each peer."""


@dataclass(frozen=True)
class Digits:
    """Images, (N, 1, 8, 8) float32 from 0 to 1, and labels, (N,) int64, to fit on and to score on."""

    images: torch.Tensor
    labels: torch.Tensor
    score_images: torch.Tensor
    score_labels: torch.Tensor


class _Tail(nn.Module):
    """The last block, the final norm and a new head, which run on the trunk's tokens."""

    def __init__(self, model: VisionTransformer, seed: int) -> None:
        super().__init__()
        self.block = copy.deepcopy(model.blocks[-1])
        self.norm = copy.deepcopy(model.norm)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Linear(model.embed_dim, 10)
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(self.block(tokens))[:, 0])
        return logits

    def load(self, theta: torch.Tensor) -> None:
        vector_to_parameters(theta, self.parameters())

    def gradient(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.zero_grad()
        functional.cross_entropy(self(tokens), labels).backward()  # type: ignore[no-untyped-call]  # torch
        return torch.cat([p.grad.reshape(-1) for p in self.parameters() if p.grad is not None])

    @torch.no_grad()
    def accuracy(self, tokens: torch.Tensor, labels: torch.Tensor) -> float:
        return float((self(tokens).argmax(1) == labels).float().mean())


@torch.no_grad()
def letter_accuracy(model: VisionTransformer, bank: Bank, count: int = 4096) -> float:
    """Return the share of ``count`` letters, drawn with :data:`TEST_SEED`, that the model names right."""
    images, labels = draw(bank, count, torch.Generator().manual_seed(TEST_SEED))
    return float((model((images - MEAN) / STD).argmax(1) == labels).float().mean())


def unseen_bank() -> Bank:
    """Return the Latin letters of the font that pre-training leaves out."""
    return load_bank({UNSEEN_FACE: FACES["cmr10"]})


def load_split(split: str) -> Digits:
    """Return the digits, to be scored on the part ``split``: ``"validation"`` or ``"test"``.

    ``"validation"`` cuts the training part in two; ``"test"`` is for the final figures.
    """
    images, labels = load_digits(return_X_y=True)
    fit, held = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    if split == "validation":
        fit, held = train_test_split(fit, test_size=0.2, stratify=labels[fit], random_state=0)
    pixels = torch.from_numpy(images / 16).float().view(-1, 1, 8, 8)
    classes = torch.from_numpy(labels)
    return Digits(pixels[fit], classes[fit], pixels[held], classes[held])


@torch.no_grad()
def _tokens(model: VisionTransformer, images: torch.Tensor) -> torch.Tensor:
    """Return the trunk's tokens, (N, tokens, d): the output of all that is before the last block."""
    tokens = model.norm_pre(model._pos_embed(model.patch_embed((images - MEAN) / STD)))
    for block in model.blocks[:-1]:
        tokens = block(tokens)
    return tokens  # type: ignore[no-any-return]  # timm's modules


@torch.no_grad()
def linear_probe(model: VisionTransformer, digits: Digits) -> float:
    """Return the accuracy, 0..1, of a ridge classifier on the frozen model's class token."""

    def features(images: torch.Tensor) -> torch.Tensor:
        return model.forward_features((images - MEAN) / STD)[:, 0]  # type: ignore[no-any-return]  # timm

    probe = RidgeClassifier().fit(features(digits.images), digits.labels)
    return float(probe.score(features(digits.score_images), digits.score_labels))


def central(model: VisionTransformer, digits: Digits, seed: int, iterations: int = ITERATIONS) -> float:
    """Return the accuracy, 0..1, after plain SGD on all classes, in batches of 128: θ ← θ − α g."""
    tokens, held = _tokens(model, digits.images), _tokens(model, digits.score_images)
    tail = _Tail(model, seed)
    generator = torch.Generator().manual_seed(seed)
    theta = parameters_to_vector(tail.parameters()).detach()
    for _ in range(iterations):
        batch = torch.randperm(len(tokens), generator=generator)[:128]
        theta = theta - RATE * tail.gradient(tokens[batch], digits.labels[batch])
        tail.load(theta)
    return tail.accuracy(held, digits.score_labels)


def directed_ring(
    model: VisionTransformer, digits: Digits, seed: int, iterations: int = ITERATIONS
) -> list[float]:
    """Return each peer's accuracy, 0..1, after P2P-FT on a directed ring of four with disjoint classes.

    The dense recursion is θ ← A(θ − α τ), τ ← B(τ + g' − g), with a batch of 32 for each peer; self-weights
    and edges are 1.
    """
    tokens, held = _tokens(model, digits.images), _tokens(model, digits.score_images)
    tail = _Tail(model, seed)
    mix = (torch.eye(4) + torch.roll(torch.eye(4), 1, 0)) / 2  # doubly stochastic, so A = B
    shares = [torch.isin(digits.labels, torch.tensor(classes)).nonzero()[:, 0] for classes in PEERS]
    generators = [torch.Generator().manual_seed(4 * seed + peer) for peer in range(len(PEERS))]

    def gradients(theta: torch.Tensor) -> torch.Tensor:
        rows = []
        for vector, share, generator in zip(theta, shares, generators, strict=True):
            batch = share[torch.randperm(len(share), generator=generator)[:32]]
            tail.load(vector)
            rows.append(tail.gradient(tokens[batch], digits.labels[batch]))
        return torch.stack(rows)

    theta = parameters_to_vector(tail.parameters()).detach().repeat(len(PEERS), 1)
    grad = gradients(theta)
    tau = grad
    for _ in range(iterations):
        theta = mix @ (theta - RATE * tau)
        new = gradients(theta)
        tau = mix @ (tau + new - grad)
        grad = new
    accuracies = []
    for vector in theta:
        tail.load(vector)
        accuracies.append(tail.accuracy(held, digits.score_labels))
    return accuracies


def score(split: str, console: Console) -> None:
    """Print the table of README.md, with three seeds of the new head and of the batches.

    ``split`` is the digits' part, ``"validation"`` or ``"test"``.
    """
    model = create_glyph_vit(10)
    torch.manual_seed(0)
    random = create_glyph_vit(10, pretrained=False)
    table = Table("what", f"accuracy ({split} digits; letters: fresh drawings)")
    letters = build(len(ALPHABET)).eval()
    with as_file(files(embedded) / WEIGHTS_FILE) as path:
        letters.load_state_dict(load_file(path))
    table.add_row("letters, fonts of the pre-training", f"{letter_accuracy(letters, load_bank(FACES)):.4f}")
    table.add_row("letters, Latin in a font never seen", f"{letter_accuracy(letters, unseen_bank()):.4f}")
    digits = load_split(split)
    for name, weights in (("letters' weights", model), ("random weights", random)):
        table.add_row(f"linear probe, {name}", f"{linear_probe(weights, digits):.4f}")
        runs = [central(weights, digits, seed) for seed in range(3)]
        table.add_row(f"last block, centralised SGD, {name}", " ".join(f"{run:.4f}" for run in runs))
    worst = [min(directed_ring(model, digits, seed)) for seed in range(3)]
    table.add_row("last block, P2P-FT, worst of 4 peers", " ".join(f"{run:.4f}" for run in worst))
    console.print(table)
