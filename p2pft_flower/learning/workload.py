"""A run's learning problem for the run's hosts: model, trunk and tail, features, one objective a peer."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from p2pft_flower.config import LearningConfig
from p2pft_flower.cores import cores
from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.data.batches import Batches, GrowingBatches
from p2pft_flower.learning.data.holdings import Holdings
from p2pft_flower.learning.data.image_settings import ImageSettings
from p2pft_flower.learning.device_vectors import VectorDevice
from p2pft_flower.learning.feature_model import FeatureModel
from p2pft_flower.learning.image_model import ImageModel
from p2pft_flower.learning.minibatches import MiniBatch, MiniBatches, PooledMiniBatches
from p2pft_flower.learning.model.split import Parts
from p2pft_flower.learning.model.structure import share_copy
from p2pft_flower.learning.named_tensors import named_digest, named_tensors, vector_of, weights_digest
from p2pft_flower.learning.objective import PeerObjective
from p2pft_flower.learning.preparing import progress_to
from p2pft_flower.learning.privacy import ClippedGradients, Privacy, log_draws, require_accountant
from p2pft_flower.learning.scoring import Answers, Evaluation, InFull, Scored, answers_of, evaluate
from p2pft_flower.learning.scoring_together import evaluate_together
from p2pft_flower.learning.settings import check_privacy
from p2pft_flower.learning.store.features import Features
from p2pft_flower.learning.theta import tail_vector
from p2pft_flower.learning.together import Together, why_apart

__all__ = ["TAIL_SCHEMA", "Workload"]

TAIL_SCHEMA = "p2pft.tail/1"
"""Version of the metadata in a tail's safetensors file."""

MANY = 32
"""Number of peers of a run from which their gradients are computed together, if ``batched = auto``."""

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
    width : int
        Numbers of a sample, of a dataset of features, if they are known without the file: to the coordinator
        of peers on other machines; 0: the file tells.

    Raises
    ------
    ConfigError
        When two settings of the data contradict each other.

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
        width: int = 0,
    ) -> None:
        self.holdings = holdings or Holdings(config, n, pooled=pooled, peers=peers, classes=classes)
        self.config, self.n, self.pooled = config, n, pooled
        self._width = width
        self._features: dict[int, Features] = {}
        self._checked: set[int] = set()
        self._own_tests: dict[int, Features] = {}
        self._private = False
        self._deployed = peers is not None

    @cached_property
    def network(self) -> ImageModel | FeatureModel:
        """The model, cut into trunk and tail, with the trunk's outputs; for features the head alone."""
        if self.config.of_features:
            width = self._width or self.holdings.dataset.width
            return FeatureModel(self.config, self.holdings.classes, width)
        return ImageModel(self.config, self.holdings.classes)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the head's outputs."""
        return self.holdings.classes

    @property
    def loss(self) -> str:
        """The loss of an image: ``"ce"``, or ``"bce"`` if an image may have several labels."""
        return "bce" if self.holdings.several_labels else "ce"

    @property
    def model(self) -> nn.Module:
        """The whole model with its new head; frozen, in eval mode."""
        return self.network.model

    @property
    def images(self) -> ImageSettings | None:
        """The settings of the images that the model sees, and each setting's origin; None for features."""
        return self.network.images

    @property
    def preprocessing(self) -> dict[str, Any] | None:
        """The settings of :attr:`images` for JSON, as in results and tails; None for features."""
        return self.network.preprocessing

    @property
    def device(self) -> str:
        """The name of the device of trunk and tail: ``"cpu"``, ``"cuda"`` or ``"mps"``."""
        return self.network.device

    @property
    def vector_device(self) -> VectorDevice | None:
        """Where the peers' vectors are: on an accelerator beside the model; None: in the CPU's memory."""
        return None if self.device == "cpu" else VectorDevice(self.device)

    @property
    def parts(self) -> Parts:
        """The model cut into trunk and tail: :attr:`ImageModel.parts`."""
        return self.network.parts

    @property
    def model_parameters(self) -> int:
        """Number of parameters of the whole model."""
        return self.network.parameters

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
        """SHA-256, hexadecimal, of all weights and θ^0, as they are before the first iteration.

        Rows that a text tower made count by their origin, as processors round their numbers differently.
        """
        origin = self.network.text_origin
        if "text tower" not in origin:
            return sha256(weights_digest(self.model).encode() + self.theta0.tobytes()).hexdigest()
        made = ("classifier.weight", "head.weight")  # of image towers, and of features
        digests = (
            named_digest({n: t for n, t in tensors.items() if not n.endswith(made)})
            for tensors in (self.model.state_dict(), self.named_tail(self.theta0))
        )
        return sha256("".join([*digests, json.dumps(origin, sort_keys=True)]).encode()).hexdigest()

    @property
    def images_line(self) -> str:
        """The log's line on the images that the model sees."""
        return self.network.line

    def frozen_facts(self) -> dict[str, str]:
        """Return the facts that decide the frozen part's output; they must agree on all machines."""
        several = {"loss": self.loss} if self.holdings.several_labels else {}
        return {**self.network.facts, "model digest": self.model_digest, **several}

    @cached_property
    def meeting_digest(self) -> str:
        """SHA-256, hexadecimal, of :meth:`frozen_facts`, which neighbours compare when they meet."""
        return sha256(json.dumps(self.frozen_facts(), sort_keys=True).encode()).hexdigest()

    @cached_property
    def test_features(self) -> Features:
        """The trunk's outputs for all test images on which the peers of this machine are scored."""
        return self.network.features(self.holdings.pictures.test, self.holdings.test_positions, "test")

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
        if self.network.reads_images:
            unchecked = [peer for peer in peers if peer not in self._checked]
            if unchecked:
                # These images are read during the run: broken ones shall be found here.
                self.holdings.check_images(unchecked)
                self._checked.update(unchecked)
        return {peer: self._objective(peer) for peer in peers}

    def together(self, objectives: Mapping[int, PeerObjective]) -> Together | None:
        """Return what draws the gradients of all ``objectives`` at once; None: each is drawn by itself.

        Settings and model decide, not the number of the peers that are here: gradients must not depend on
        which host runs which peer. The log tells which it is.

        Raises
        ------
        ConfigError
            When ``batched = true`` and the model or the settings do not admit that.
        """
        asked = self.config.batched
        if self.pooled or asked == "false" or (asked == "auto" and self.n < MANY):
            return None
        why = self._why_apart(objectives)
        if not why:
            log.info("gradients: those of all peers of a host together (batched = %s)", asked)
            return Together(self.tail, objectives, self._threads(objectives))
        if asked == "true":
            raise ConfigError(f"batched = true: {why}; leave batched out, or set it to auto")
        log.info("gradients: one peer after the other, for %s", why)
        return None

    def _threads(self, objectives: Mapping[int, PeerObjective]) -> int:
        """Return how many threads compute for peers: each core has one if no other host is there for it."""
        alone = len(objectives) == self.n and self.device == "cpu"
        return max(1, cores() // torch.get_num_threads()) if alone else 1

    def _why_apart(self, objectives: Mapping[int, PeerObjective]) -> str:
        if self.config.dp_clip:
            return "dp-clip clips the gradient of each image by itself"
        if self.parts.path == "full" and self.config.batched == "auto":
            return "the whole model runs in every step, and so many products gain nothing"
        inputs, labels = self.features(min(objectives)).read(np.arange(1))
        return why_apart(self.tail, self.theta0, MiniBatch(inputs, labels, (1,)))

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
        scored = Scored(self.holdings.classes, lambda: self.holdings.test_names(self._tests_of(peer)), self.n)
        return PeerObjective(
            self.tail,
            images,
            self._test_of(peer),
            seed=self.config.seed,
            peer=peer,
            privacy=privacy,
            scored=scored,
            validation=self._validation(peer),
            balanced=self.config.balances,
        )

    def _validation(self, peer: int) -> list[Features]:
        """Return the trunk's outputs for the images that are held out to choose the best θ by."""
        if not self.config.keeps_best:
            return []
        owners = range(self.n) if self.pooled else [peer]
        train, held = self.holdings.pictures.train, self.holdings.validations
        return [self.network.features(train, held[i], f"peer {i}'s validation") for i in owners]

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
            self._own_tests[peer] = self.network.features(
                self.holdings.pictures.test, self._tests_of(peer), what
            )
        return self._own_tests[peer]

    def _tests_of(self, peer: int) -> npt.NDArray[np.int64]:
        """Return the positions of the test images on which ``peer`` is scored."""
        return (
            self.holdings.tests[peer]
            if self.config.sited and not self.pooled
            else self.holdings.test_positions
        )

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
            self._features[peer] = self.network.training_features(
                self.holdings.pictures.train,
                self._held(peer),
                peer,
                lambda: self.holdings.stream(peer),
            )
        return self._features[peer]

    def evaluate_together(
        self,
        objectives: Mapping[int, PeerObjective],
        thetas: Mapping[int, npt.NDArray[np.float32]],
        *,
        full: bool = False,
        progress: Callable[[], None] = lambda: None,
    ) -> Iterator[dict[int, InFull]]:
        """Score the θ of many peers, some at a time: see :mod:`~p2pft_flower.learning.scoring_together`."""
        threads = self._threads(objectives)
        return evaluate_together(objectives, thetas, full=full, progress=progress, threads=threads)

    def score(self, theta: npt.NDArray[np.float32]) -> Evaluation:
        """Score any peer's ``theta``, (q,) float32, on all test images, without ``accuracy_unseen``."""
        return self._score(theta, self.test_features)

    def answers(self, theta: npt.NDArray[np.float32], *, probabilities: bool = False) -> Answers:
        """Return the answers of any peer's ``theta``, (q,) float32, to all test images.

        If ``probabilities``, the answers have them.
        """
        return answers_of(share_copy(self.tail), theta, self.test_features, probabilities=probabilities)

    def score_on_own(self, theta: npt.NDArray[np.float32], peer: int) -> Evaluation:
        """Score ``theta``, (q,) float32, on the training images of ``peer``, without ``accuracy_unseen``."""
        return self._score(theta, self.features(peer))

    def _score(self, theta: npt.NDArray[np.float32], images: Features) -> Evaluation:
        return evaluate(share_copy(self.tail), theta, images)

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
            "loss": self.loss,  # labels of the other kind are refused
        }
        if isinstance(self.network, FeatureModel):
            told["width"] = str(self.network.width)
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
            When a tensor is missing, unknown, or has another shape; the message names the tensor and
            ``source``.
        """
        return vector_of(self.tail, tensors, source)

    def whole_model(self, theta: npt.NDArray[np.float32]) -> nn.Module:
        """Return the whole model with ``theta``, (q,) float32, in it, in eval mode on the CPU.

        See :meth:`ImageModel.with_tensors` and :meth:`FeatureModel.with_tensors`.

        Raises
        ------
        DataError
            When the model has no place for a tensor of ``theta``; the message names the tensor.
        """
        return self.network.with_tensors(self.named_tail(theta))
