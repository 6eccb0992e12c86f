"""A run's learning problem as its hosts see it: model, data, who holds what, one objective a peer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.batches import Batches, PooledBatches
from p2pft_flower.learning.datasets import Dataset, load_dataset
from p2pft_flower.learning.features import Features, compute_features
from p2pft_flower.learning.models import create_model, preprocessing
from p2pft_flower.learning.objective import Evaluation, PeerObjective, evaluate, tail_vector
from p2pft_flower.learning.partitions import Partition, draw_shots, partition_images, resolve_partition
from p2pft_flower.learning.tuning import split_model

__all__ = ["TAIL_SCHEMA", "PeerData", "Workload"]

TAIL_SCHEMA = "p2pft.tail/1"
"""Version of what a tail's safetensors file carries in its metadata."""


@dataclass(frozen=True)
class PeerData:
    """What a peer holds, in numbers only.

    Attributes
    ----------
    images : int
        Training images.
    classes : tuple of str
        Names of the classes of which it holds at least one.
    """

    images: int
    classes: tuple[str, ...]


class Workload:
    """The learning problem that ``config`` describes, for ``n`` peers.

    Parameters
    ----------
    config : LearningConfig
        Model, data, partition, seed.
    n : int
        Number of peers.
    pooled : {"", "uniform", "examples"}
        Not empty (``centralized``): one peer holds all images, and an iteration draws as many as n peers do;
        for the objective ``"uniform"`` the n peers' own mini-batches, for ``"examples"`` from the union.

    Notes
    -----
    Everything is built when first asked for: the coordinator needs the partition only, hosts need all.
    """

    def __init__(self, config: LearningConfig, n: int, *, pooled: str = "") -> None:
        self.config, self.n, self.pooled = config, n, pooled
        self._features: dict[int, Features] = {}

    @cached_property
    def dataset(self) -> Dataset:
        """Training and test images."""
        config = self.config
        return load_dataset(config.dataset, config.data_dir, download=config.download, verify=config.verify)

    @cached_property
    def partition_spec(self) -> str:
        """The partition with ``auto`` resolved."""
        return resolve_partition(
            self.config.partition, self.config.dataset, self.n, len(self.dataset.classes)
        )

    @cached_property
    def _shares(self) -> Partition:
        """Positions in the training split, one array for each of the n peers, pooled or not."""
        labels, classes, seed = self.dataset.train.labels, self.dataset.classes, self.config.seed
        kept = draw_shots(labels, self.config.shots, classes, seed)
        dealt = partition_images(self.partition_spec, labels[kept], self.n, len(classes), seed)
        return [kept[positions] for positions in dealt]

    @property
    def partition(self) -> Partition:
        """Positions in the training split, one array a peer; where pooled one array, peer after peer."""
        return [np.concatenate(self._shares)] if self.pooled else self._shares

    def data(self, peer: int) -> PeerData:
        """Say what ``peer`` holds."""
        labels = np.unique(self.dataset.train.labels[self.partition[peer]])
        return PeerData(len(self.partition[peer]), tuple(self.dataset.classes[c] for c in labels))

    @cached_property
    def model(self) -> nn.Module:
        """The whole model with its new head; frozen, in eval mode."""
        config = self.config
        return create_model(config.model, config.weights, len(self.dataset.classes), config.seed)

    @cached_property
    def _parts(self) -> tuple[nn.Module, nn.Module]:
        return split_model(self.model, self.config.tune)

    @property
    def tail(self) -> nn.Module:
        """The part that is trained, as it starts."""
        return self._parts[1]

    @cached_property
    def theta0(self) -> npt.NDArray[np.float32]:
        """θ^0, (q,) float32, the same on every peer."""
        theta = tail_vector(self.tail)
        theta.flags.writeable = False
        return theta

    @cached_property
    def model_digest(self) -> str:
        """SHA-256 over the names and values of all weights, trained or not, before the first iteration."""
        digest = sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def test_features(self) -> Features:
        """The trunk's outputs for all test images."""
        positions = np.arange(len(self.dataset.test))
        return compute_features(
            self._parts[0], preprocessing(self.model), self.dataset.test, positions, "test"
        )

    def objectives(self, peers: Sequence[int]) -> dict[int, PeerObjective]:
        """Build new objectives of ``peers``, at the start of their data order; the trunk runs once an image.

        Raises
        ------
        DataError
            When an image cannot be read.
        """
        return {
            peer: PeerObjective(
                self.tail,
                self.features(peer),
                self.test_features,
                self._batches(peer),
                seed=self.config.seed,
                peer=peer,
            )
            for peer in peers
        }

    def _batches(self, peer: int) -> Batches | PooledBatches:
        size, seed = self.config.batch_size, self.config.seed
        if self.pooled == "uniform":
            sizes = [len(share) for share in self._shares]
            parts = [Batches(n, size, seed=seed, peer=i) for i, n in enumerate(sizes)]
            return PooledBatches(parts, [sum(sizes[:i]) for i in range(len(sizes))])
        times = self.n if self.pooled else 1
        return Batches(len(self.partition[peer]), size * times, seed=seed, peer=peer)

    def features(self, peer: int) -> Features:
        """Return the trunk's outputs for the peer's training images; computed once."""
        if peer not in self._features:
            positions = self.partition[peer]
            transform, what = preprocessing(self.model), f"peer {peer}'s"
            self._features[peer] = compute_features(
                self._parts[0], transform, self.dataset.train, positions, what
            )
        return self._features[peer]

    def score(self, theta: npt.NDArray[np.float32]) -> Evaluation:
        """Score ``theta`` on all test images, whoever trained it."""
        nothing = torch.zeros(len(self.test_features), dtype=torch.bool)
        return evaluate(copy.deepcopy(self.tail), theta, self.test_features, nothing)

    def metadata(self) -> dict[str, str]:
        """Return what ``p2pft evaluate`` needs to score a tail again: the settings, as text."""
        settings = {f.name.replace("_", "-"): str(getattr(self.config, f.name)) for f in fields(self.config)}
        return {"schema": TAIL_SCHEMA, "model-digest": self.model_digest, **settings}

    def named_tail(self, theta: npt.NDArray[np.float32]) -> dict[str, torch.Tensor]:
        """Return the trained tensors by the names they have in the whole timm model."""
        named = [(name, p) for name, p in self.tail.named_parameters() if p.requires_grad]
        pieces = torch.split(torch.from_numpy(theta.copy()), [p.numel() for _, p in named])
        return {
            name.removeprefix("model."): piece.view_as(p).clone()
            for (name, p), piece in zip(named, pieces, strict=True)
        }

    def theta_from(self, tensors: dict[str, torch.Tensor], source: str) -> npt.NDArray[np.float32]:
        """Return θ from named tensors; the inverse of :meth:`named_tail`.

        Raises
        ------
        DataError
            When a tensor is missing, unknown, or has another shape, naming it and ``source``.
        """
        wanted = {n.removeprefix("model."): p for n, p in self.tail.named_parameters() if p.requires_grad}
        odd = sorted(wanted.keys() ^ tensors.keys())
        if odd:
            where = "missing from" if odd[0] in wanted else "not trained here, but in"
            raise DataError(f"tensor {odd[0]!r} is {where} {source}: the model or tune setting differs")
        for name, p in wanted.items():
            found = tensors[name]
            if found.shape != p.shape:
                raise DataError(
                    f"tensor {name!r} in {source} has shape {tuple(found.shape)}, not {tuple(p.shape)}"
                )
        return torch.cat([tensors[name].reshape(-1).float() for name in wanted]).numpy()

    def whole_model(self, theta: npt.NDArray[np.float32]) -> nn.Module:
        """Return a copy of the whole timm model with ``theta`` in it, in eval mode.

        Raises
        ------
        ConfigError
            When θ holds tensors that the plain model has no place for, naming one.
        """
        tensors, whole = self.named_tail(theta), copy.deepcopy(self.model)
        odd = sorted(tensors.keys() - whole.state_dict().keys())
        if odd:
            raise ConfigError(
                f"tune = {self.config.tune!r} trains {odd[0]!r}, which the plain model "
                f"{self.config.model!r} has not: it cannot be put together as a whole model"
            )
        whole.load_state_dict(tensors, strict=False)  # the rest stays frozen as it was
        return whole.eval()
