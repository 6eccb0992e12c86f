"""A run's learning problem for the run's hosts: model, trunk and tail, features, one objective a peer."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from torch import nn

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.batches import Batches, GrowingBatches
from p2pft_flower.learning.data.holdings import Holdings
from p2pft_flower.learning.data.image_settings import ImageKeys, ImageSettings, image_settings
from p2pft_flower.learning.data.splits import Split
from p2pft_flower.learning.hidden_state import refuse_hidden_state
from p2pft_flower.learning.live import LiveFeatures, StreamFeatures, augmentation
from p2pft_flower.learning.minibatches import MiniBatches, PooledMiniBatches
from p2pft_flower.learning.model.added import merge_low_rank
from p2pft_flower.learning.model.devices import choose_device, choose_trunk_dtype
from p2pft_flower.learning.model.models import MODELS, create_model, data_config, preprocessing
from p2pft_flower.learning.model.modes import has_statistics
from p2pft_flower.learning.model.own_forward import check_own_forward
from p2pft_flower.learning.model.own_step import check_own_step
from p2pft_flower.learning.model.split import PATHS, Parts, split_model
from p2pft_flower.learning.model.structure import share_copy
from p2pft_flower.learning.model.tuning import tune_model
from p2pft_flower.learning.named_tensors import named_tensors, vector_of
from p2pft_flower.learning.objective import Evaluation, PeerObjective, evaluate, tail_vector
from p2pft_flower.learning.preparing import progress_to
from p2pft_flower.learning.privacy import ClippedGradients, Privacy, log_draws, require_accountant
from p2pft_flower.learning.settings import check_privacy
from p2pft_flower.learning.store.features import Features, TrunkStore
from p2pft_flower.plugins import is_reference, telling_whose

__all__ = ["TAIL_SCHEMA", "Workload"]

TAIL_SCHEMA = "p2pft.tail/1"
"""Version of the metadata in a tail's safetensors file."""

log = logging.getLogger(__name__)


class Workload:
    """The learning problem that ``config`` describes, for ``n`` peers.

    Parameters
    ----------
    config : LearningConfig
        Model, data, partition, seed.
    n : int
        Number of peers.
    pooled : {"", "uniform", "examples"}
        The objective of one peer that holds all images (``centralized``), of which an iteration draws as many
        as n peers do: with ``"uniform"`` the n peers' own mini-batches, with ``"examples"`` one mini-batch of
        the union. Empty: the images are not pooled.
    peers : sequence of int, optional
        The peers whose images are on this machine, by default all n. The others' images are not read. If
        peers are given, private gradients draw from the machine's entropy, not from the seed.
    classes : sequence of str, optional
        Names of the classes if they are known without images: to the coordinator of peers on other
        machines, or from a tail's metadata.
    holdings : Holdings, optional
        The images that each peer holds, if they were computed already, with the same settings.

    Raises
    ------
    ConfigError
        When settings of the data do not go together.

    Attributes
    ----------
    holdings : Holdings
        The images that each peer holds.

    Notes
    -----
    Everything is built when first used.
    """

    def __init__(
        self,
        config: LearningConfig,
        n: int,
        *,
        pooled: str = "",
        peers: Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
        holdings: Holdings | None = None,
    ) -> None:
        self.holdings = holdings or Holdings(config, n, pooled=pooled, peers=peers, classes=classes)
        self.config, self.n, self.pooled = config, n, pooled
        self._features: dict[int, Features] = {}
        self._checked: set[int] = set()
        self._own_tests: dict[int, Features] = {}
        self._told = False
        self._private = False
        self._deployed = peers is not None

    @cached_property
    def model(self) -> nn.Module:
        """The whole model with its new head; frozen, in eval mode."""
        config = self.config
        classes, images = len(self.holdings.classes), ImageKeys.of(config)
        return create_model(config.model, config.weights, classes, config.seed, images)

    @property
    def images(self) -> ImageSettings:
        """The settings of the images that the model sees, and the origin of each setting."""
        return image_settings(self.model)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The settings of :attr:`images` for JSON, as in results and tails."""
        return self.images.to_dict()

    @cached_property
    def device(self) -> str:
        """The name of the device of trunk and tail: ``"cpu"``, ``"cuda"`` or ``"mps"``."""
        return choose_device(self.config.device)

    @cached_property
    def parts(self) -> Parts:
        """The model cut into trunk and tail, which were seen to answer as the whole model does.

        The first use logs the settings of the images, the size of the trained part, and the path.

        Raises
        ------
        ConfigError
            When ``tune`` does not fit the model, or a model of the user's own has a state besides θ or does
            more in its forward than its parts do.
        """
        config = self.config
        log.info("%s", self.images_line)
        doing = f"a probe of it, with tune = {config.tune!r},"
        named = telling_whose(config.model, key="model", doing=doing)
        with named if is_reference(config.model) else nullcontext():
            parts = self._tried_parts()
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
        still = [type(module).__name__ for module in parts.tail.modules() if has_statistics(module)]
        if still:
            log.info(
                "%d batch-norm layers (%s) keep their statistics, in training too; scales and shifts are "
                "trained if tune says so",
                len(still),
                ", ".join(sorted(set(still))),
            )
        return parts

    def _tried_parts(self) -> Parts:
        """Return the model cut into trunk and tail, after a comparison of their answers with the model's."""
        config = self.config
        parts = split_model(self.model, config.tune, config.seed)
        parts = parts._replace(trunk=parts.trunk.to(self.device), tail=parts.tail.to(self.device))
        if is_reference(config.model):  # first: it tries a copy that no call has changed yet
            what = f"model = {config.model!r} with tune = {config.tune!r}"
            check_own_step(parts, self.images.input_size, what)
            refuse_hidden_state(parts, self.images.input_size, what)
        check_own_forward(config.model, self.model, config.tune, config.seed, self.device)
        return parts

    @property
    def model_parameters(self) -> int:
        """Number of parameters of the whole model."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def tail(self) -> nn.Module:
        """The tail, in which the trained parameters are θ^0."""
        return self.parts.tail

    @cached_property
    def theta0(self) -> npt.NDArray[np.float32]:
        """θ^0, (q,) float32, the same on every peer."""
        theta = tail_vector(self.tail)
        theta.flags.writeable = False
        return theta

    @cached_property
    def model_digest(self) -> str:
        """SHA-256, hexadecimal, of all weights and θ^0, as they are before the first iteration."""
        return sha256(_digest(self.model).encode() + self.theta0.tobytes()).hexdigest()

    @property
    def images_line(self) -> str:
        """The log's line on the images that the model sees."""
        return f"{self.config.model} sees: {self.images.describe()}"

    def frozen_facts(self) -> dict[str, str]:
        """Return the facts that decide the frozen part's output; they must agree on all machines."""
        return {
            "model digest": self.model_digest,
            **self.images.facts,
            "trunk-dtype": str(choose_trunk_dtype(self.config.trunk_dtype, self.device)),
        }

    @cached_property
    def meeting_digest(self) -> str:
        """SHA-256, hexadecimal, of :meth:`frozen_facts`, which neighbours compare when they meet."""
        return sha256(json.dumps(self.frozen_facts(), sort_keys=True).encode()).hexdigest()

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
            # One token and pooled features are small: rounding them would gain nothing.
            exact={"class-token": (1,), "pooled": (0,)}.get(parts.path, ()),
            halves=config.cache_dtype == "float16",
            compute_dtype=dtype,
            device=self.device,
        )

    def _code_digest(self) -> str:
        """Return a text that identifies the trunk's code: timm's version, or a digest of the trunk's answer.

        The answer, to a fixed input, counts for the embedded models and those of the user's own.
        """
        if not is_reference(self.config.model) and self.config.model not in MODELS:
            return f"timm {timm.__version__}"
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(1, *data_config(self.model)["input_size"], generator=generator)
        with torch.inference_mode():
            answers = self.parts.trunk(probe.to(self.device))
        return sha256(b"".join(a.cpu().numpy().tobytes() for a in answers)).hexdigest()

    def _features_of(self, split: Split, positions: npt.NDArray[np.int64], what: str) -> Features:
        if self.parts.path == "full" or not self.config.cache or not len(positions):
            return self._live(split, positions, preprocessing(self.model))
        return self._trunk_store.features(split, positions, what)

    def _live(
        self,
        split: Split,
        positions: npt.NDArray[np.int64],
        transform: Callable[[Any], torch.Tensor],
        peer: int = 0,
        *,
        augmented: bool = False,
    ) -> LiveFeatures:
        seed = self.config.seed
        return LiveFeatures(
            split, positions, transform, self._run_trunk, seed=seed, peer=peer, augmented=augmented
        )

    def _run_trunk(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._trunk_store.run(images)

    @cached_property
    def test_features(self) -> Features:
        """The trunk's outputs for all test images on which the peers of this machine are scored."""
        return self._features_of(self.holdings.pictures.test, self.holdings.test_positions, "test")

    def objectives(
        self, peers: Sequence[int], progress: Callable[[], None] = lambda: None
    ) -> dict[int, PeerObjective]:
        """Build a new objective for each of ``peers``, at the start of the peer's data order.

        For images whose trunk outputs are stored, the trunk runs here, once an image.

        Parameters
        ----------
        peers : sequence of int
            The peers' numbers.
        progress : callable, optional
            Called whenever an image was read or a batch passed the trunk.

        Returns
        -------
        dict of int to PeerObjective
            The objectives by the peers' numbers.

        Raises
        ------
        ConfigError
            When gradients are to be private, but the accountant is not installed, one peer holds all images,
            or the model does not admit gradients of single images.
        DataError
            When an image cannot be read, or a trunk output that is to be stored is not finite.
        """
        self.check_privacy()
        with progress_to(progress):
            return self._objectives(peers)

    def _objectives(self, peers: Sequence[int]) -> dict[int, PeerObjective]:
        if self.parts.path == "full" or not self.config.cache or self.config.augment != "none":
            unchecked = [peer for peer in peers if peer not in self._checked]
            if unchecked:
                # These images are read during the run: broken ones shall be found here.
                self.holdings.check_images(unchecked)
                self._checked.update(unchecked)
        return {peer: self._objective(peer) for peer in peers}

    def check_privacy(self) -> None:
        """Check, without reading data, that gradients can be made private if the settings ask for that.

        Raises
        ------
        ConfigError
            When the accountant is not installed, or one peer holds all images.
        """
        check_privacy(self.config, pooled=bool(self.pooled))
        if self.config.dp_clip:
            require_accountant()

    def _objective(self, peer: int) -> PeerObjective:
        privacy = self._privacy(peer)
        images = self.mini_batches(peer)
        if privacy is not None:
            images = MiniBatches(self.features(peer), privacy.batches())
        return PeerObjective(
            self.tail, images, self._test_of(peer), seed=self.config.seed, peer=peer, privacy=privacy
        )

    def mini_batches(self, peer: int) -> MiniBatches | PooledMiniBatches:
        """Return the peer's mini-batches, from the start.

        If images are pooled and the objective is ``"uniform"``, these are the n peers' own mini-batches.
        """
        if self.pooled != "uniform":
            return MiniBatches(self.features(peer), self.batches(peer))
        return PooledMiniBatches([MiniBatches(self.features(i), self.batches(i)) for i in range(self.n)])

    def _privacy(self, peer: int) -> Privacy | None:
        config = self.config
        if not config.dp_clip:
            return None
        if not self._private:
            self._private = True
            what = f"model = {config.model!r}, tune = {config.tune!r} (path {self.parts.path})"
            ClippedGradients(share_copy(self.tail), config.dp_clip).check(self.features(peer), what)
            log_draws(config.dp_noise, seeded=not self._deployed)
        return Privacy.of(
            config, len(self.holdings.partition[peer]), None if self._deployed else (config.seed, peer)
        )

    def _test_of(self, peer: int) -> Features:
        if self.pooled or not self.config.sited:
            return self.test_features
        if peer not in self._own_tests:
            what = f"peer {peer}'s test"
            self._own_tests[peer] = self._features_of(
                self.holdings.pictures.test, self.holdings.tests[peer], what
            )
        return self._own_tests[peer]

    def batches(self, peer: int) -> Batches | GrowingBatches:
        """Return the order of the peer's images, from the start; ``peer`` is that of :meth:`features`."""
        # For the objective "examples" a pooled batch is drawn from the union, n times as large.
        size = self.config.batch_size * (self.n if self.pooled == "examples" else 1)
        if self.config.stream:
            stream = self.holdings.stream(peer)
            return GrowingBatches(stream.refresh, stream, size, seed=self.config.seed, peer=peer)
        return Batches(len(self._held(peer)), size, seed=self.config.seed, peer=peer)

    def _held(self, peer: int) -> npt.NDArray[np.int64]:
        """Return the positions of the images that the peer draws: its own, or all of the union."""
        return (self.holdings.partition if self.pooled == "examples" else self.holdings.shares)[peer]

    def features(self, peer: int) -> Features:
        """Return the trunk's outputs for the peer's training images.

        If images are pooled, ``peer`` is one of the n peers whose images they are with the objective
        ``"uniform"``, and 0, the peer that holds them all, with ``"examples"``.
        """
        if peer not in self._features:
            self._features[peer] = self._training_features(peer)
        return self._features[peer]

    def _training_features(self, peer: int) -> Features:
        config, split, held = self.config, self.holdings.pictures.train, self._held(peer)
        self._log_unstored()
        augmented = config.augment != "none"
        transform = augmentation(self.model, config.augment) if augmented else preprocessing(self.model)
        if config.stream:
            return StreamFeatures(
                self.holdings.stream(peer),
                transform,
                self._run_trunk,
                seed=config.seed,
                peer=peer,
                augmented=augmented,
            )
        if augmented:
            return self._live(split, held, transform, peer, augmented=True)
        return self._features_of(split, held, f"peer {peer}'s")

    def _log_unstored(self) -> None:
        """Log, once, the reasons why the trunk, or the whole model, runs in every iteration."""
        if self._told:
            return
        self._told = True
        config = self.config
        reasons = [
            (not config.cache, "cache = false"),
            (config.augment != "none", f"augment = {config.augment} makes another image each time"),
            (config.stream, "stream = true: new images come while it runs"),
            (self.parts.path == "full", self.parts.why),
        ]
        told = [reason for holds, reason in reasons if holds]
        if told:
            log.info("the store is not used for training images: %s", "; ".join(told))

    def score(self, theta: npt.NDArray[np.float32]) -> Evaluation:
        """Score any peer's ``theta``, (q,) float32, on all test images, without ``accuracy_unseen``."""
        nothing = torch.zeros(len(self.test_features), dtype=torch.bool)
        return evaluate(share_copy(self.tail), theta, self.test_features, nothing)

    def metadata(self) -> dict[str, str]:
        """Return the settings and digests, as text, with which ``p2pft evaluate`` scores a tail again."""
        here = ("device", "cache")  # settings of this machine only
        names = [f.name for f in fields(self.config) if f.name not in here]
        settings = {name.replace("_", "-"): str(getattr(self.config, name)) for name in names}
        told = {
            "schema": TAIL_SCHEMA,
            "model-digest": self.model_digest,
            "classes": json.dumps(self.holdings.classes),
            "threads": str(torch.get_num_threads()),  # roundings depend on them
            **settings,
        }
        if self.pooled and self.config.sited:
            told["pooled-peers"] = str(self.n)  # the peers whose folders it was scored on
        return told

    def named_tail(self, theta: npt.NDArray[np.float32]) -> dict[str, torch.Tensor]:
        """Return the tensors in ``theta``, (q,) float32, by their names in the whole tuned model."""
        return named_tensors(self.tail, theta)

    def theta_from(self, tensors: dict[str, torch.Tensor], source: str) -> npt.NDArray[np.float32]:
        """Return θ, (q,) float32, from named tensors; the inverse of :meth:`named_tail`.

        Raises
        ------
        DataError
            When a tensor is missing, unknown, or has another shape; names the tensor and ``source``.
        """
        return vector_of(self.tail, tensors, source)

    def whole_model(self, theta: npt.NDArray[np.float32]) -> nn.Module:
        """Return the whole model with ``theta``, (q,) float32, in it, in eval mode on the CPU.

        It is a plain timm model: low-rank updates are merged into their weights. Only adapters and prompts
        remain as modules that the plain model lacks.

        Raises
        ------
        DataError
            When the model has no place for a tensor of ``theta``; names the tensor.
        """
        whole = tune_model(self.model, self.config.tune, self.config.seed)
        keys = whole.load_state_dict(self.named_tail(theta), strict=False)  # strict would ask for all
        if keys.unexpected_keys:
            raise DataError(
                f"tensor {keys.unexpected_keys[0]!r} has no place in {self.config.model!r} with tune = "
                f"{self.config.tune!r}"
            )
        merge_low_rank(whole)
        return whole.requires_grad_(False)


def _digest(module: nn.Module) -> str:
    """Return the SHA-256, hexadecimal, of the names and values of a module's tensors."""
    digest = sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
