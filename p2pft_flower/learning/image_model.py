"""A vision transformer and the images that it sees: cut into trunk and tail, with the trunk's outputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from rich.filesize import decimal
from torch import nn

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.image_settings import ImageKeys, ImageSettings, image_settings
from p2pft_flower.learning.data.splits import Split
from p2pft_flower.learning.data.streams import ImageStream
from p2pft_flower.learning.hidden_state import refuse_hidden_state
from p2pft_flower.learning.live import LiveFeatures, StreamFeatures, augmentation
from p2pft_flower.learning.model.added import merge_low_rank
from p2pft_flower.learning.model.devices import choose_device, choose_trunk_dtype
from p2pft_flower.learning.model.heads import TowerHead
from p2pft_flower.learning.model.models import (
    MODELS,
    create_image_tower,
    create_model,
    data_config,
    preprocessing,
)
from p2pft_flower.learning.model.modes import has_statistics
from p2pft_flower.learning.model.own_forward import check_own_forward
from p2pft_flower.learning.model.own_step import check_own_step
from p2pft_flower.learning.model.split import PATHS, Parts, split_model
from p2pft_flower.learning.model.structure import set_classifier
from p2pft_flower.learning.model.text_heads import fixed_head, text_classifier
from p2pft_flower.learning.model.tuning import tune_model
from p2pft_flower.learning.named_tensors import weights_digest
from p2pft_flower.learning.store.features import Features, TrunkStore
from p2pft_flower.learning.theta import tail_vector
from p2pft_flower.plugins import is_reference, telling_whose

__all__ = ["ImageModel"]

log = logging.getLogger(__name__)


class ImageModel:
    """The vision transformer that ``config`` describes, for images of ``classes`` classes.

    Parameters
    ----------
    config : LearningConfig
        Model, tuning, settings of images, store, device, seed.
    classes : sequence of str
        Names of the classes.

    Notes
    -----
    Everything is built when first used.
    """

    def __init__(self, config: LearningConfig, classes: Sequence[str]) -> None:
        self.config, self.classes = config, tuple(classes)
        self._told = False

    @property
    def model(self) -> nn.Module:
        """The whole model with its new head, or its head of texts; frozen, in eval mode."""
        return self._built[0]

    @property
    def text_origin(self) -> dict[str, str]:
        """The facts that decide a text head's start; empty for a new head."""
        return self._built[1]

    @cached_property
    def _built(self) -> tuple[nn.Module, dict[str, str]]:
        config, keys = self.config, ImageKeys.of(self.config)
        if config.head != "text":
            return create_model(config.model, config.weights, len(self.classes), config.seed, keys), {}
        tower: Any = create_image_tower(config.model, config.weights, config.seed, keys)
        projection = tower.get_classifier()
        width = projection.out_features if isinstance(projection, nn.Linear) else tower.num_features
        classifier, made = text_classifier(config, self.classes, width)
        set_classifier(tower, TowerHead(projection, classifier))
        return tower.eval().requires_grad_(False), made

    @property
    def images(self) -> ImageSettings:
        """The settings of the images that the model sees, and the origin of each setting."""
        return image_settings(self.model)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The settings of :attr:`images` for JSON, as in results and tails."""
        return self.images.to_dict()

    @property
    def line(self) -> str:
        """The log's line on the images that the model sees."""
        return f"{self.config.model} sees: {self.images.describe()}"

    @property
    def facts(self) -> dict[str, str]:
        """The facts, beside weights and θ^0, that decide the trunk's output."""
        dtype = choose_trunk_dtype(self.config.trunk_dtype, self.device)
        return {**self.images.facts, "trunk-dtype": str(dtype)}

    @property
    def reads_images(self) -> bool:
        """Whether training images are read again whenever they are drawn, since no output is stored."""
        config = self.config
        return self.parts.path == "full" or not config.cache or config.augment != "none"

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
        log.info("%s", self.line)
        doing = f"a probe of it, with tune = {config.tune!r},"
        named = telling_whose(config.model, key="model", doing=doing)
        with named if is_reference(config.model) else nullcontext():
            parts = self._tried_parts()
        own, trained = self.parameters, tail_vector(parts.tail).size
        log.info(
            "tune = %s: q = %d trained parameters, %.2f %% of the model's %d; a vector of them has %s",
            self.config.tune,
            trained,
            100 * trained / own,
            own,
            decimal(4 * trained),
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
    def parameters(self) -> int:
        """Number of parameters of the whole model."""
        return sum(p.numel() for p in self.model.parameters())

    @cached_property
    def _trunk_store(self) -> TrunkStore:
        config, parts = self.config, self.parts
        dtype = choose_trunk_dtype(config.trunk_dtype, self.device)
        identity = {
            "model": config.model,
            "weights": weights_digest(parts.trunk),
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
            # One token and pooled features are small: rounding them would gain nothing. Class-attention is
            # given its class token beside the patches.
            exact={"class-token": (1,), "pooled": (0,), "tokens": (1,)}.get(parts.path, ()),
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

    def features(self, split: Split, positions: npt.NDArray[np.int64], what: str) -> Features:
        """Return the trunk's outputs for the pictures of ``split`` at ``positions``, (N,).

        They are stored, unless the whole model is trained, ``cache = false``, or N is 0; ``what`` names the
        images in messages, as ``"test"``.
        """
        if self.parts.path == "full" or not self.config.cache or not len(positions):
            return self._live(split, positions, self._plain)
        return self._trunk_store.features(split, positions, what)

    @cached_property
    def _plain(self) -> Callable[[Any], torch.Tensor]:
        """PIL image ↦ the model's input, without augmentation."""
        return preprocessing(self.model)

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

    def training_features(
        self,
        split: Split,
        positions: npt.NDArray[np.int64],
        peer: int,
        stream: Callable[[], ImageStream],
    ) -> Features:
        """Return the tail's inputs for a peer's training images, as ``augment`` and ``stream`` have them.

        Parameters
        ----------
        split : Split
            The training images as pictures.
        positions : (N,) int64 array
            The positions, in ``split``, of the images that the peer draws.
        peer : int
            The peer's number, which decides random draws.
        stream : callable
            Returns the growing set of the peer's images; called only if ``stream = true``.
        """
        self._log_unstored()
        config = self.config
        augmented = config.augment != "none"
        transform = augmentation(self.model, config.augment) if augmented else self._plain
        if config.stream:
            return StreamFeatures(
                stream(), transform, self._run_trunk, seed=config.seed, peer=peer, augmented=augmented
            )
        if augmented:
            return self._live(split, positions, transform, peer, augmented=True)
        return self.features(split, positions, f"peer {peer}'s")

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

    def with_tensors(self, tensors: dict[str, torch.Tensor]) -> nn.Module:
        """Return the whole model with the tail's ``tensors``, by name, in it, in eval mode on the CPU.

        It is a plain timm model but for adapters and prompts of tokens, which remain as modules that the
        plain model lacks, and but for a text head: low-rank updates are merged into their weights, and a
        learned prompt's rows stand in the head.

        Raises
        ------
        DataError
            When the model has no place for a tensor; the message names the tensor.
        """
        whole: Any = tune_model(self.model, self.config.tune, self.config.seed)
        keys = whole.load_state_dict(tensors, strict=False)  # strict would ask for all
        if keys.unexpected_keys:
            raise DataError(
                f"tensor {keys.unexpected_keys[0]!r} has no place in {self.config.model!r} with tune = "
                f"{self.config.tune!r}"
            )
        merge_low_rank(whole)
        if isinstance(head := whole.get_classifier(), TowerHead):
            set_classifier(whole, TowerHead(head.projection, fixed_head(head.classifier)))
        plain: nn.Module = whole.requires_grad_(False)
        return plain
