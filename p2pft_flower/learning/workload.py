"""A run's learning problem as its hosts see it: model, data, who holds what, one objective a peer."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import timm
import torch
from torch import nn

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import DataError
from p2pft_flower.learning.added import merge_low_rank
from p2pft_flower.learning.batches import Batches, PooledBatches
from p2pft_flower.learning.datasets import Dataset, Split, load_dataset
from p2pft_flower.learning.devices import choose_device, choose_trunk_dtype
from p2pft_flower.learning.features import Features, TrunkStore
from p2pft_flower.learning.live import LiveFeatures
from p2pft_flower.learning.models import create_model, data_config, preprocessing
from p2pft_flower.learning.objective import Evaluation, PeerObjective, evaluate, tail_vector
from p2pft_flower.learning.partitions import Partition, draw_shots, partition_images, resolve_partition
from p2pft_flower.learning.split import PATHS, Parts, split_model
from p2pft_flower.learning.structure import share_copy
from p2pft_flower.learning.tuning import tune_model
from p2pft_flower.plugins import is_reference

__all__ = ["TAIL_SCHEMA", "PeerData", "Workload"]

TAIL_SCHEMA = "p2pft.tail/1"
"""Version of what a tail's safetensors file carries in its metadata."""

log = logging.getLogger(__name__)


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
    classes : sequence of str, optional
        Names of the classes where they are known without the dataset, as from a tail's metadata.

    Notes
    -----
    Everything is built when first asked for: the coordinator needs the partition only, hosts need all.
    """

    def __init__(
        self, config: LearningConfig, n: int, *, pooled: str = "", classes: Sequence[str] | None = None
    ) -> None:
        self.config, self.n, self.pooled = config, n, pooled
        self._known_classes = None if classes is None else tuple(classes)
        self._features: dict[int, Features] = {}
        self._told_live = False

    @cached_property
    def dataset(self) -> Dataset:
        """Training and test images."""
        config = self.config
        return load_dataset(config.dataset, config.data_dir, download=config.download, verify=config.verify)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the head's outputs."""
        return self.dataset.classes if self._known_classes is None else self._known_classes

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
        return create_model(config.model, config.weights, len(self.classes), config.seed)

    @cached_property
    def device(self) -> str:
        """Where trunk and tail run."""
        return choose_device(self.config.device)

    @cached_property
    def parts(self) -> Parts:
        """The model cut in two; what is trained, how large it is and how it is run stands in the log."""
        parts = split_model(self.model, self.config.tune, self.config.seed)
        own, trained = self.model_parameters, tail_vector(parts.tail).size
        log.info(
            "tune = %s: q = %d trained parameters, %.2f %% of the model's %d; payload %.2f MB",
            self.config.tune,
            trained,
            100 * trained / own,
            own,
            trained * 4 / 1e6,
        )
        because = f"; no cheaper way, for {parts.why}" if parts.why else ""
        log.info("path %s: %s%s", parts.path, PATHS[parts.path], because)
        return parts._replace(tail=parts.tail.to(self.device))

    @property
    def model_parameters(self) -> int:
        """Number of parameters of the whole model."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def tail(self) -> nn.Module:
        """The part that is trained, as it starts."""
        return self.parts.tail

    @cached_property
    def theta0(self) -> npt.NDArray[np.float32]:
        """θ^0, (q,) float32, the same on every peer."""
        theta = tail_vector(self.tail)
        theta.flags.writeable = False
        return theta

    @cached_property
    def model_digest(self) -> str:
        """SHA-256 of all weights and θ^0, as they are before the first iteration."""
        return sha256(_digest(self.model).encode() + self.theta0.tobytes()).hexdigest()

    @cached_property
    def _trunk_store(self) -> TrunkStore:
        config, parts = self.config, self.parts
        dtype = choose_trunk_dtype(config.trunk_dtype, self.device)
        identity = {
            "model": config.model,
            "weights": _digest(parts.trunk),
            "preprocessing": repr(sorted(data_config(self.model).items())),
            "trunk-dtype": str(dtype).removeprefix("torch."),
            "path": parts.path,
            "structure": sha256(repr(parts.trunk).encode()).hexdigest(),  # sizes, activations, …
            "code": self._code_digest(),
        }
        return TrunkStore(
            parts.trunk,
            preprocessing(self.model),
            identity,
            # Residual streams reach far, pooled features are small: neither is worth rounding.
            exact={"class-token": (1,), "pooled": (0,)}.get(parts.path, ()),
            halves=config.cache_dtype == "float16",
            compute_dtype=dtype,
            device=self.device,
        )

    def _code_digest(self) -> str:
        """Say which code computes the trunk: timm's version, or what a model of the user's own answers."""
        if not is_reference(self.config.model):
            return f"timm {timm.__version__}"
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(1, *data_config(self.model)["input_size"], generator=generator)
        with torch.inference_mode():
            answers = self.parts.trunk(probe)
        return sha256(b"".join(a.numpy().tobytes() for a in answers)).hexdigest()

    def _features_of(self, split: Split, positions: npt.NDArray[np.int64], what: str) -> Features:
        if self.parts.path == "full" or not self.config.cache:
            if self.config.cache and not self._told_live:
                log.info("no cache: every iteration runs the whole model, as %s", self.parts.why)
                self._told_live = True
            return self._live(split, positions)
        return self._trunk_store.features(split, positions, what)

    def _live(self, split: Split, positions: npt.NDArray[np.int64]) -> LiveFeatures:
        raise NotImplementedError

    @cached_property
    def test_features(self) -> Features:
        """What the trunk makes of all test images."""
        split = self.dataset.test
        return self._features_of(split, np.arange(len(split)), "test")

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
        """Return what the trunk makes of the peer's training images; computed once."""
        if peer not in self._features:
            positions = self.partition[peer]
            self._features[peer] = self._features_of(self.dataset.train, positions, f"peer {peer}'s")
        return self._features[peer]

    def score(self, theta: npt.NDArray[np.float32]) -> Evaluation:
        """Score ``theta`` on all test images, whoever trained it."""
        nothing = torch.zeros(len(self.test_features), dtype=torch.bool)
        return evaluate(share_copy(self.tail), theta, self.test_features, nothing)

    def metadata(self) -> dict[str, str]:
        """Return what ``p2pft evaluate`` needs to score a tail again: the settings, as text."""
        here = ("device", "cache")  # what holds on this machine only
        names = [f.name for f in fields(self.config) if f.name not in here]
        settings = {name.replace("_", "-"): str(getattr(self.config, name)) for name in names}
        return {
            "schema": TAIL_SCHEMA,
            "model-digest": self.model_digest,
            "classes": json.dumps(self.classes),
            **settings,
        }

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
        """Return the whole model with ``theta`` in it, in eval mode on the CPU.

        A plain timm model: low-rank updates are merged into the weights that they belong to. Adapters and
        prompts stay what they are, modules that the plain model has not.
        """
        whole = tune_model(self.model, self.config.tune, self.config.seed)
        # strict would ask for the frozen part; that every name fits, theta_from and named_tail see to.
        whole.load_state_dict(self.named_tail(theta), strict=False)
        merge_low_rank(whole)
        return whole.requires_grad_(False)



def _digest(module: nn.Module) -> str:
    """SHA-256 over the names and values of a module's tensors."""
    digest = sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
