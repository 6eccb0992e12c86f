"""The run-config: kebab-case keys become frozen dataclasses; unknown keys and wrong values are refused.

The Flower app's pyproject.toml carries every key with its default and a comment; a test holds the two
together.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from p2pft_flower.algorithms.codecs import is_own_codec, make_codec
from p2pft_flower.algorithms.objective import OBJECTIVES
from p2pft_flower.algorithms.schedules import make_schedule
from p2pft_flower.errors import ConfigError
from p2pft_flower.plugins import is_reference
from p2pft_flower.topology.schedule import STATIC, check_schedule
from p2pft_flower.typed import MAX_PEERS

__all__ = [
    "LearningConfig",
    "MethodConfig",
    "RunConfig",
    "RuntimeConfig",
    "channel_fault",
    "config_keys",
    "read_channels",
    "read_range",
]

TRANSPORTS = ("auto", "memory", "grpc")
ON_FAILURE = ("continue", "wait", "stop")
CHOICES = {
    "device": ("auto", "cpu", "cuda", "mps"),
    "cache_dtype": ("float16", "float32"),
    "bad_images": ("refuse", "skip"),
    "trunk_dtype": ("auto", "float32", "bfloat16"),
    "interpolation": ("", "nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"),
}
"""Values of the learning keys that have a few only."""

HANDED_ON = ("problem", "batch_size", "seed", "data_dir")
"""Learning keys that are handed on to a ``problem`` of the user's own; the others are for images."""

MAX_IMAGE_SIZE = 2**13
"""Pixels of a side; at patches of 16 × 16 as many tokens as a model is allowed."""


_PLENTY = 10**9
"""Iterations, images or numbers of other things that no run has."""

_BRIGHTEST = 1e30
"""Beyond what a sample of any image may be."""

_YEAR = 31_536_000.0
"""Seconds; the most that anything waits for."""

_BOUNDS: dict[str, tuple[float, float]] = {
    "learning_rate": (1e-30, 1e6),
    "codec_step": (0.0, 1.0),
    "weight_decay": (0.0, 1e6),
    "local_epochs": (1, 10**6),
    "shots": (0, _PLENTY),
    "batch_size": (1, 10**6),
    "dp_clip": (0.0, 1e6),
    "dp_noise": (0.0, 1e6),
    "seed": (0, 2**63 - 1),
    "epochs": (0, 10**6),
    "iterations": (0, _PLENTY),
    "evaluate_every": (0, _PLENTY),
    "threads": (1, 1024),
    "checkpoint_every": (-1, _PLENTY),
    "checkpoints_kept": (1, 10**6),
    "min_peers": (0, MAX_PEERS),
    **dict.fromkeys(
        ("meet_timeout", "peer_timeout", "rejoin_deadline", "hang_timeout", "run_timeout"), (0.001, _YEAR)
    ),
}
"""Least and largest of each numeric key that has no check of its own."""


_CHANNELS = {"mean": (0.0, 1.0), "std": (0.001, 1.0)}
"""Least and largest that mean and deviation of pixels of 0..1 may be; 0 and 1 leave pixels as they are."""


def _require(condition: bool, key: str, value: object, right: str) -> None:
    if not condition:
        raise ConfigError(f"{key} = {value!r}: must be {right}")


def _require_bounds(concern: object) -> None:
    """Refuse numbers of a concern's fields that are out of :data:`_BOUNDS`."""
    for f in dataclasses.fields(concern):  # type: ignore[arg-type]  # each of the concerns is a dataclass
        if f.name not in _BOUNDS:
            continue
        (least, most), value = _BOUNDS[f.name], getattr(concern, f.name)
        kind = "whole number" if isinstance(value, int) else "number"
        kind += " of seconds" if f.name.endswith(("timeout", "deadline")) else ""
        right = f"a {kind} from {least:.15g} to {most:.15g}"
        _require(least <= value <= most, f.name.replace("_", "-"), value, right)


def read_channels(key: str, text: str) -> tuple[float, ...]:
    """Read one number, or one a channel: ``"0.5"``, ``"0.485,0.456,0.406"``; empty: none.

    Raises
    ------
    ConfigError
        When it is something else, naming ``key``.
    """
    try:
        numbers = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        numbers = (math.nan,)
    right = "a number, or one for each of three channels as 0.485,0.456,0.406"
    _require(len(numbers) in (0, 1, 3) and all(map(math.isfinite, numbers)), key, text, right)
    fault = channel_fault(key, numbers)
    if fault:
        raise ConfigError(f"{key} = {text!r}: {fault}")
    return numbers


def channel_fault(key: str, numbers: Sequence[float]) -> str:
    """Say why numbers cannot be ``mean`` or ``std`` of pixels of 0..1; empty if they can.

    Parameters
    ----------
    key : {"mean", "std"}
        The key that they are a value of.
    numbers : sequence of float
        One a channel.
    """
    low, high = _CHANNELS[key]
    if all(low <= number <= high for number in numbers):
        return ""
    divide = "; divide by 255?" if any(number > high for number in numbers) else ""
    return f"must be numbers from {low:g} to {high:g}, as pixels are of 0 … 1{divide}"


def read_range(text: str) -> tuple[float, float] | None:
    """Read one ``pixel-range``: ``"LOW:HIGH"``, or ``"auto"``: None.

    Raises
    ------
    ConfigError
        When it is something else.
    """
    if text == "auto":
        return None
    low, colon, high = text.partition(":")
    try:
        black, white = float(low), float(high)
    except ValueError:
        black, white = math.nan, math.nan
    _require(
        bool(colon) and -_BRIGHTEST <= black < white <= _BRIGHTEST,
        "pixel-range",
        text,
        "auto or LOW:HIGH with LOW < HIGH, such as -1000:400",
    )
    return black, white


@dataclass(frozen=True)
class MethodConfig:
    """The method, and its numbers.

    Attributes
    ----------
    algorithm : str
        A method of :mod:`p2pft_flower.algorithms`, a strategy of ``flwr.serverapp.strategy`` by name
        (``fedavg``, ``fedprox``, …), or ``my_module:my_method``.
    learning_rate : float
        α.
    schedule : str
        ``constant``, ``cosine`` or ``step:EVERY:FACTOR`` (iterations).
    momentum : float
        Heavy-ball β in [0, 1).
    weight_decay : float
        λ ≥ 0; adds λ/2 ‖θ‖² to every peer's loss.
    objective : {"uniform", "examples"}
        Whether peers or images count the same. Flower's strategies: the weights of its averages; FedMedian,
        Krum and others that do not average ignore it.
    local_epochs : int
        Server-based strategies: epochs of local training a round.
    strategy_options : str
        Server-based strategies: arguments as ``"proximal-mu=0.1,server-learning-rate=0.5"``.
    algorithm_options : str
        Methods of :mod:`p2pft_flower.algorithms` and own ones: further arguments, as ``"local-steps=8"``.
    codec : str
        The encoding of payloads: ``none``, ``float16``, ``bfloat16``, ``int8``, ``q4``, ``q3``,
        ``topk:SHARE`` or ``my_module:my_codec``; all but ``none`` send differences and remember the rest.
    codec_step : float
        γ in (0, 1] of exchanges with a codec; 0: chosen from graph and codec.
    schedule_graph : str
        The weights of each iteration: ``static`` (the topology's), ``one-peer-exponential``, ``base:K``,
        graphs in turn separated by commas, or ``my_module:my_schedule``
        (:mod:`p2pft_flower.topology.schedule`).
    pipelined : bool
        Whether p2pft computes its gradients while payloads travel: mix, then adapt.
    """

    algorithm: str = "p2pft"
    learning_rate: float = 0.1
    schedule: str = "constant"
    momentum: float = 0.0
    weight_decay: float = 0.0
    objective: str = "uniform"
    local_epochs: int = 1
    strategy_options: str = ""
    algorithm_options: str = ""
    codec: str = "none"
    codec_step: float = 0.0
    schedule_graph: str = STATIC
    pipelined: bool = False

    def __post_init__(self) -> None:
        if not is_own_codec(self.codec):
            make_codec(self.codec)
        make_schedule(self.schedule, self.learning_rate, 1)
        check_schedule(self.schedule_graph)
        _require(0.0 <= self.momentum < 1.0, "momentum", self.momentum, "in [0, 1)")
        _require_bounds(self)
        _require(self.objective in OBJECTIVES, "objective", self.objective, f"one of {', '.join(OBJECTIVES)}")


@dataclass(frozen=True)
class LearningConfig:
    """The learning problem: model, trained part, images, mini-batches and privacy.

    Attributes
    ----------
    problem : str
        Empty: a vision transformer is fine-tuned on images, as the keys below say. Else
        ``my_module:my_problem``, a learning problem of the user's own, which is given ``batch_size``,
        ``seed`` and ``data_dir``; the other keys are of vision transformers, and must be left out.
    model : str
        ``glyph_vit_8`` (embedded), a ViT, DeiT or Swin of timm by name, or ``my_module:my_model``.
    weights : str
        ``pretrained`` (the model's own), ``none`` (random, said loudly), or a file's absolute path.
    image_size : int
        Pixels of a side of the images that the model sees; 0: the model's own. Position embeddings are
        resampled to it.
    crop_pct : float
        Share of the shorter side that the centre crop keeps, in (0, 1]; 0: the model's own.
    interpolation : str
        The filter with which images are resized: ``nearest``, ``bilinear``, ``bicubic``, ``lanczos``,
        ``box``, ``hamming``; empty: the model's own.
    mean, std : str
        The number that is subtracted from pixels of 0..1, and the number that they are then divided by: one,
        or one a channel as ``"0.485,0.456,0.406"``; ``mean`` in [0, 1], ``std`` in [0.001, 1]; empty: the
        model's own.
    tune : str
        ``last-block``, ``last-blocks:K``, ``head``, ``full``, ``bias``, ``bias+norm``, ``lora:R``,
        ``adapter:R``, ``prompt:N`` or ``prompt-deep:N``.
    device : {"auto", "cpu", "cuda", "mps"}
        The device of trunk and tail; ``auto``: an accelerator if there is one.
    cache : bool
        Whether the frozen trunk's output for an image is kept on disk and computed only once.
    cache_dtype : {"float16", "float32"}
        Precision of the tokens kept.
    trunk_dtype : {"auto", "float32", "bfloat16"}
        Precision in which the trunk computes; ``auto``: bfloat16 if the hardware multiplies in it.
    dataset : str
        ``digits``, ``cifar10``, ``cifar100``, ``oxford-iiit-pet``, ``oxford-flowers102``,
        ``folder:/path``, ``folder:/path-{peer}`` (a folder for each peer, by its number), or
        ``my_module:my_dataset``.
    data_dir : str
        The folder of torchvision's folders, empty: ``$P2PFT_HOME/data``; handed to own datasets.
    download : bool
        Whether torchvision may fetch a dataset that is not there.
    verify : bool
        Refuse torchvision folders whose md5 sums are not the official ones.
    shots : int
        Training images of each class, drawn before they are dealt out; 0: all.
    partition : str
        ``auto``, ``classes:0-1,2-3,…``, ``iid``, ``dirichlet:ALPHA``, ``shards:K``, ``own`` (with a folder
        for each peer), or ``my_module:my_partition``.
    stream : bool
        Whether a folder's training images are listed again at the start of each pass over them.
    pixel_range : str
        ``auto``, or ``LOW:HIGH``: the values that are black and white if an image has more than 8 bits a
        sample, signs or fractions (``"-1000:400"``); with a folder for each peer also one of these a peer,
        separated by commas.
    bad_images : {"refuse", "skip"}
        Whether an image that cannot be read ends the run, or is left out and named in a warning.
    augment : str
        ``none``, ``basic`` (timm's random resized crop and horizontal flip), or one of timm's
        auto-augmentations on top of it, such as ``rand-m9-mstd0.5-inc1``. Training images only.
    batch_size : int
        Images in one mini-batch of one peer; on average, if ``dp_clip`` > 0.
    dp_clip : float
        L2 norm to which each training image's gradient is clipped, for differential privacy; 0: no privacy.
    dp_noise : float
        Standard deviation of the noise that a batch's sum of gradients gets, by ``dp_clip``; 0: none, the
        gradients are clipped only.
    dp_delta : float
        δ of the (ε, δ) that is accounted for; 0: 1 / (10 N_i), N_i the peer's training images.
    seed : int
        Decides partition, new head, mini-batches and every other draw; in deployment not the draws that
        ``dp_clip`` makes.
    """

    problem: str = ""
    model: str = "glyph_vit_8"
    weights: str = "pretrained"
    image_size: int = 0
    crop_pct: float = 0.0
    interpolation: str = ""
    mean: str = ""
    std: str = ""
    tune: str = "last-block"
    device: str = "auto"
    cache: bool = True
    cache_dtype: str = "float16"
    trunk_dtype: str = "auto"
    dataset: str = "digits"
    data_dir: str = ""
    download: bool = False
    verify: bool = True
    shots: int = 0
    partition: str = "auto"
    stream: bool = False
    pixel_range: str = "auto"
    bad_images: str = "refuse"
    augment: str = "none"
    batch_size: int = 32
    dp_clip: float = 0.0
    dp_noise: float = 0.0
    dp_delta: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for key, choices in CHOICES.items():
            value = getattr(self, key)
            named = ", ".join(choice or "empty" for choice in choices)
            _require(value in choices, key.replace("_", "-"), value, f"one of {named}")
        _require(
            0 <= self.image_size <= MAX_IMAGE_SIZE,
            "image-size",
            self.image_size,
            f"a whole number of pixels, at most {MAX_IMAGE_SIZE}, or 0",
        )
        _require(0.0 <= self.crop_pct <= 1.0, "crop-pct", self.crop_pct, "in (0, 1], or 0")
        read_channels("mean", self.mean)
        read_channels("std", self.std)
        self.pixel_ranges  # noqa: B018 - refuses what it cannot read
        _require_bounds(self)
        _require(0.0 <= self.dp_delta < 1.0, "dp-delta", self.dp_delta, "in [0, 1)")

    @property
    def sited(self) -> bool:
        """Whether each peer has a folder of its own."""
        return self.dataset.startswith("folder:") and "{peer}" in self.dataset

    @property
    def pixel_ranges(self) -> tuple[tuple[float, float] | None, ...]:
        """Black and white of ``pixel_range``, None for ``auto``: one for all peers, or one a peer."""
        return tuple(read_range(text.strip()) for text in self.pixel_range.split(","))

    def pixel_range_of(self, peer: int) -> str:
        """Return ``pixel_range`` as it is for one peer's images.

        Raises
        ------
        ConfigError
            When there is one range a peer, and none for this one.
        """
        ranges = [text.strip() for text in self.pixel_range.split(",")]
        if len(ranges) > 1 and peer >= len(ranges):
            raise ConfigError(
                f"pixel-range = {self.pixel_range!r} has {len(ranges)} ranges and none for peer {peer}: give "
                "one for all, or one a peer"
            )
        return ranges[0] if len(ranges) == 1 else ranges[peer]

    def check_problem(self) -> None:
        """Look at the settings beside a ``problem`` of the user's own.

        Raises
        ------
        ConfigError
            When ``problem`` names no function, or keys of vision transformers are set beside it, naming them.
        """
        if not is_reference(self.problem):
            raise ConfigError(
                f"problem = {self.problem!r}: must be empty, my_module:my_problem or /path/file.py:my_problem"
            )
        given = [
            f"{f.name.replace('_', '-')} = {getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)
            if f.name not in HANDED_ON and getattr(self, f.name) != f.default
        ]
        if given:
            raise ConfigError(
                f"{', '.join(given)} with problem = {self.problem!r}: a problem of your own brings its "
                "model and its data, and these keys are of vision transformers: leave them out. Of the keys "
                f"on what is learned it is given {', '.join(key.replace('_', '-') for key in HANDED_ON[1:])}"
            )

    def check_data(self) -> None:
        """Look at the settings of the data together; each alone was checked when it was set.

        Raises
        ------
        ConfigError
            When some do not go together, naming them.
        """
        if self.sited and self.partition not in ("auto", "own"):
            raise ConfigError(
                f"partition = {self.partition!r} with dataset = {self.dataset!r}: each peer has a folder of "
                "its own, so nothing is dealt out; choose auto or own"
            )
        if self.partition == "own" and not self.sited:
            raise ConfigError(
                f"partition = 'own' with dataset = {self.dataset!r}: give dataset = folder:/path with "
                "{peer} in it, as folder:/data/site-{peer}"
            )
        if len(self.pixel_ranges) > 1 and not self.sited:
            raise ConfigError(
                f"pixel-range = {self.pixel_range!r} with dataset = {self.dataset!r}: one range a peer needs "
                "a folder for each peer (dataset = folder:/path with {peer} in it); give one for all images"
            )
        for key, value in (("dp-noise", self.dp_noise), ("dp-delta", self.dp_delta)):
            if value and not self.dp_clip:
                raise ConfigError(
                    f"{key} = {value} with dp-clip = 0: nothing would be private; give dp-clip, the norm to "
                    "which each image's gradient is clipped, such as 1.0"
                )
        if not self.stream:
            return
        if self.dp_clip:
            raise ConfigError(
                f"stream = true with dp-clip = {self.dp_clip}: what a gradient reveals depends on the "
                "number of images, which must not change while it is counted; choose one of the two"
            )
        if not self.dataset.startswith("folder:"):
            raise ConfigError(f"stream = true with dataset = {self.dataset!r}: only a folder:/path can grow")
        if self.shots:
            raise ConfigError(
                f"stream = true with shots = {self.shots}: shots are drawn once, of images that are there; "
                "choose one of the two"
            )
        if self.partition not in ("auto", "own") and not self.partition.startswith("classes:"):
            raise ConfigError(
                f"stream = true with partition = {self.partition!r}: whose a new image is must follow from "
                "its class or its folder; choose auto, classes:0-1,2-3,… or own"
            )


@dataclass(frozen=True)
class RuntimeConfig:
    """The run itself: graph, length, transport, deadlines, checkpoints, and the place of the results.

    Attributes
    ----------
    topology : str
        A graph's name, path or generator (``p2pft topology list``).
    epochs : int
        Length of the run; an epoch has as many gradients as a peer's mean share of the data has batches.
    iterations : int
        Length of the run in iterations; 0 lets ``epochs`` decide.
    evaluate_every : int
        Iterations between two evaluations; 0 means once an epoch. The last iteration is always evaluated.
        Flower's strategies are evaluated after every round.
    transport : {"auto", "memory", "grpc"}
        ``auto``: in memory within a host, sockets between hosts. ``memory``: all peers on one host.
        ``grpc``: sockets even within a host.
    threads : int
        Torch threads of each host. Runs are bit-identical to each other at the same value.
    meet_timeout : float
        Seconds after which a peer is given up that is missing, silent, or prepares without progress (an image
        read, a batch through the trunk) before the first iteration; peers that make progress are waited for.
    peer_timeout : float
        Seconds without a word (payload, heartbeat, answer) after which a peer is taken for lost. One that is
        slow and says so is waited for. The first call that carries a payload has the same deadline; if a link
        needs longer, each next call has twice the deadline of the one before, up to ``hang_timeout``.
    on_failure : {"continue", "wait", "stop"}
        The others' reaction to the loss of a peer: go on without it, wait for it up to ``rejoin_deadline``
        first, or stop. If all peers are on one host, nobody can be lost.
    rejoin_deadline : float
        Seconds that peers wait: for a lost one if ``on_failure`` is ``wait``, and then as long again for an
        agreement on the next view; or to be let in again. Then they stop, with a checkpoint. In a simulation
        no peer comes back, so they wait at most four times ``peer_timeout``.
    hang_timeout : float
        Most seconds that a peer may compute, or evaluate, without getting further, heartbeats or not, before
        it is taken for lost: 20 times its longest stretch so far, at least ``peer_timeout`` and at most this.
        Also the longest deadline of a payload's call: after twice as long without one that gets through,
        though heartbeats do, the graph does without the edge (``on_failure = "stop"``: the run ends).
    run_timeout : float
        Seconds after which the coordinator gives a run up.
    output_dir : str
        Absolute folder for the results; empty: ``$P2PFT_HOME/runs/<run id>``.
    preflight_only : bool
        Look at every peer and link of a deployment, and stop before the first gradient.
    checkpoint_every : int
        Iterations between two checkpoints of each peer; 0: when peers are evaluated, but 50 iterations apart
        at least; -1: none, and the run cannot be resumed. Flower's strategies write one after each round,
        unless it is -1.
    checkpoints_kept : int
        Iterations, the newest ones, of which every peer has a checkpoint.
    resume : str
        The run to go on from, by its id, or by its folder's absolute path; empty: none.
    extend : bool
        Whether a run that is resumed may be longer than it was.
    observer_address : str
        ``host:port`` at which the coordinator of a deployment listens to the peers' progress, and at which
        they reach it; empty: it has their scores at the end only. Nothing waits for it.
    min_peers : int
        Peers with which a run on SuperNodes may start when others are missing after ``meet_timeout``; 0: all
        of the graph. With fewer than these no view goes on (``on_failure``), nor does one of less than half
        of the view before.
    """

    topology: str = "directed-ring-4"
    epochs: int = 25
    iterations: int = 0
    evaluate_every: int = 0
    transport: str = "auto"
    threads: int = 1
    meet_timeout: float = 120.0
    peer_timeout: float = 120.0
    on_failure: str = "continue"
    rejoin_deadline: float = 600.0
    hang_timeout: float = 1800.0
    run_timeout: float = 604_800.0
    output_dir: str = ""
    checkpoint_every: int = 0
    checkpoints_kept: int = 2
    resume: str = ""
    extend: bool = False
    preflight_only: bool = False
    observer_address: str = ""
    min_peers: int = 0

    def __post_init__(self) -> None:
        _require(
            self.checkpoint_every >= -1,
            "checkpoint-every",
            self.checkpoint_every,
            "a whole number of iterations, 0 (when peers are evaluated) or -1 (never)",
        )
        _require(
            not self.resume
            or Path(self.resume).expanduser().is_absolute()
            or re.fullmatch(r"[\w-]{1,64}", self.resume, re.ASCII) is not None,
            "resume",
            self.resume,
            "a run's id (letters, digits, - and _), or the absolute path of a run's folder",
        )
        _require_bounds(self)
        _require(self.epochs >= 1 or self.iterations >= 1, "epochs", self.epochs, "a whole number >= 1")
        _require(self.transport in TRANSPORTS, "transport", self.transport, f"one of {', '.join(TRANSPORTS)}")
        _require(
            self.on_failure in ON_FAILURE, "on-failure", self.on_failure, f"one of {', '.join(ON_FAILURE)}"
        )
        host, _, port = self.observer_address.rpartition(":")
        _require(
            not self.observer_address
            or (bool(host) and port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) < 2**16),
            "observer-address",
            self.observer_address,
            "empty, or host:port, such as office.example:9100",
        )
        _require(
            not self.output_dir or Path(self.output_dir).expanduser().is_absolute(),
            "output-dir",
            self.output_dir,
            "an absolute path (the process that writes runs in a folder of Flower's)",
        )


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run."""

    method: MethodConfig = field(default_factory=MethodConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> RunConfig:
        """Build from kebab-case keys, as Flower's run-config gives them.

        Raises
        ------
        ConfigError
            When a key is unknown, or its value has another type or is not one of the choices.
        """
        known = config_keys()
        for key in values:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise ConfigError(f"unknown run-config key {key!r}: {hint}The keys are {', '.join(known)}")
        return cls(
            method=_build(MethodConfig, values),
            learning=_build(LearningConfig, values),
            runtime=_build(RuntimeConfig, values),
        )

    def to_mapping(self) -> dict[str, Any]:
        """Return the kebab-case keys and values; the inverse of :meth:`from_mapping`."""
        concerns = (self.method, self.learning, self.runtime)
        return {
            f.name.replace("_", "-"): getattr(concern, f.name)
            for concern in concerns
            for f in dataclasses.fields(concern)
        }


def config_keys() -> dict[str, Any]:
    """Return every run-config key with its default."""
    return RunConfig().to_mapping()


Concern = TypeVar("Concern", MethodConfig, LearningConfig, RuntimeConfig)


def _build(concern: type[Concern], values: Mapping[str, Any]) -> Concern:
    types = get_type_hints(concern)
    chosen: dict[str, Any] = {}
    for f in dataclasses.fields(concern):
        key = f.name.replace("_", "-")
        if key in values:
            chosen[f.name] = _typed(key, values[key], types[f.name])
    return concern(**chosen)


def _typed(key: str, value: Any, wanted: type) -> Any:
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf  # as "1e999" is read
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        raise ConfigError(f"{key} = {value!r}: must be {names[wanted]}, not {type(value).__name__}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ConfigError(f"{key} = {value}: must be a whole number of at most 64 bits")
    return value
