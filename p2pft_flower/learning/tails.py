"""The fine-tuned tails of runs, read back from their files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.bootstrap import Intervals, intervals
from p2pft_flower.learning.data.dataset_names import data_dir_of
from p2pft_flower.learning.data.holdings import Holdings
from p2pft_flower.learning.data.image_settings import ImageSettings
from p2pft_flower.learning.scoring import Answers, Evaluation, prediction_rows, scores_of
from p2pft_flower.learning.workload import TAIL_SCHEMA, Workload
from p2pft_flower.scores import ClassScores

__all__ = ["Tail", "TailScores", "load_tail", "load_tails"]


_TYPES: dict[str, type] = get_type_hints(LearningConfig)


class TailScores(NamedTuple):
    """All that is known of a tail's answers to its test images.

    Attributes
    ----------
    score : Evaluation
        The scores of every evaluation.
    class_scores : ClassScores or None
        The scores by class; None without test images.
    intervals : Intervals or None
        The confidence intervals; None without test images, or if nobody asked for them.
    predictions : iterator of list of str
        The rows of a table of the answers: :func:`prediction_rows`.
    """

    score: Evaluation
    class_scores: ClassScores | None
    intervals: Intervals | None
    predictions: Iterator[list[str]]


@dataclass(frozen=True)
class Tail:
    """One peer's θ and the learning problem that it belongs to.

    Attributes
    ----------
    file : Path
        The file from which the tail was read.
    workload : Workload
        The model, data and settings of the learning problem; tails with equal settings share the object.
    theta : (q,) float32 array
        The trained parameters.
    metadata : dict of str to str
        The file's metadata (docs/results-schema.md).
    threads : int
        Number of torch threads with which the tail was trained and scored.
    """

    file: Path
    workload: Workload
    theta: npt.NDArray[np.float32]
    metadata: dict[str, str]
    threads: int

    def score(self, *, untrained: bool = False) -> Evaluation:
        """Score θ on all test images; on the same machine the scores equal the run's to the last bit.

        As many torch threads are used as in the run, since sums and roundings depend on their number. If
        ``untrained``, θ^0 is scored instead, with which the run began.
        """
        with _torch_threads(self.threads):
            return self.workload.score(self.workload.theta0 if untrained else self.theta)

    def answers(self) -> Answers:
        """Return the answers of θ to all test images, which are those that :meth:`score` scores."""
        with _torch_threads(self.threads):
            return self.workload.answers(self.theta)

    def in_full(self, *, untrained: bool = False, level: float | None = None) -> TailScores:
        """Return the scores of :meth:`score` and those by class, of any number of classes.

        If a ``level`` is given, 0 < level < 1, there are confidence intervals; ``untrained`` as in
        :meth:`score`.
        """
        theta = self.workload.theta0 if untrained else self.theta
        with _torch_threads(self.threads):
            answers = self.workload.answers(theta, probabilities=True)
        holdings = self.workload.holdings
        found = None
        if level is not None:
            if self.workload.holdings.several_labels:
                raise ConfigError(
                    f"{self.file}: its images have several labels each, but --ci is for images of "
                    "one class: leave it out"
                )
            found = intervals(*answers.arrays, level=level, seed=self.workload.config.seed)
        names = holdings.test_names(holdings.test_positions)
        return TailScores(
            scores_of(answers),
            answers.by_class(holdings.classes),
            found,
            prediction_rows(names, holdings.classes, answers),
        )

    @property
    def peer(self) -> int:
        """The number of the tail's peer."""
        return _peer(self.metadata, self.file)

    @property
    def same_images(self) -> bool | None:
        """Whether the test images here are those of the tail's run; None if the file does not identify those.

        Compared are classes, labels, names below the dataset's folder, some sizes and some contents.
        """
        known = self.metadata.get("test-digest")
        if known is None:
            return None
        holdings = self.workload.holdings
        return holdings.test_digest(holdings.here[0]) == known

    def require_same_images(self, remedy: str = "") -> None:
        """Refuse to score the tail if the test images here are not those of its run.

        Raises
        ------
        DataError
            When they are other ones; names the tail and the dataset, and ends with ``remedy``.
        """
        if self.same_images is False:
            raise DataError(
                f"{self.file}: the test images of {self.workload.config.dataset} are other ones here than in "
                f"its run (their labels, file names, sizes or contents differ){remedy}"
            )


def load_tail(
    file: Path, dataset: str | None = None, data_dir: str | None = None, pixel_range: str | None = None
) -> Tail:
    """Read the tail in a ``peer-<i>.safetensors``, and build the tail's model and data.

    Parameters
    ----------
    file : Path
        The tail.
    dataset, data_dir, pixel_range : str, optional
        Values that replace those of the tail's run. If there is a range for each peer, the range of the
        tail's peer counts.

    Raises
    ------
    ConfigError, DataError
        When the file cannot be read or is no tail, or when model or data are missing or differ.
    """
    return load_tails([file], dataset, data_dir, pixel_range)[0]


def load_tails(
    files: Iterable[Path],
    dataset: str | None = None,
    data_dir: str | None = None,
    pixel_range: str | None = None,
    **texts: str,
) -> list[Tail]:
    """Read several tails as :func:`load_tail` does; tails with equal settings share one workload.

    ``texts`` are values of ``text_embeddings``, ``text_tower``, ``class_names`` and ``prompts`` that replace
    those of the tails' run.
    """
    workloads: dict[Any, Workload] = {}
    tails = []
    for file in files:
        tensors, metadata = _read(file)
        values = _settings(metadata, file)
        run_dataset = values.get("dataset", "")
        values["data_dir"] = data_dir_of(dataset or run_dataset, run_dataset, values.get("data_dir", ""))
        chosen = {
            "dataset": dataset,
            "data_dir": data_dir,
            "pixel_range": pixel_range,
            **texts,
        }
        values |= {key: value for key, value in chosen.items() if value is not None}
        values.setdefault("loss", "ce")  # earlier versions knew no other
        # The test images do not depend on the partition or on a stream.
        config = LearningConfig(**{**values, "partition": "auto", "stream": False, "shots": 0})
        config = _with_own_range(config, metadata, file, given=pixel_range is not None)
        place = _place(config, metadata, file)
        if config.dataset != run_dataset:
            config = _with_own_test(config, place, metadata, file)
        key = (config, *place.values())
        if key not in workloads:
            width = _number({"width": "0", **metadata}, "width", file, least=0)
            workloads[key] = Workload(config, **place, classes=_classes(metadata, file), width=width)
        workload, threads = workloads[key], _threads(metadata, file)
        with _torch_threads(threads):  # the model is tried out as in the run
            digest = workload.model_digest
        if digest != metadata["model-digest"]:
            if config.head == "text":
                source = {
                    "text-embeddings": config.text_embeddings,
                    "text-tower": config.text_tower,
                    "class-names": config.class_names,
                    "prompts": config.prompts if config.text_tower else "",
                }
                named = ", ".join(f"{key} = {value!r}" for key, value in source.items() if value)
                raise DataError(
                    f"{file}: it was trained from weights and texts with digest "
                    f"{metadata['model-digest'][:12]}…, here they have {digest[:12]}…: {named} gives other "
                    "texts than the run's, or the model is another one"
                )
            raise DataError(
                f"{file}: it was trained from weights with digest {metadata['model-digest'][:12]}…, here "
                f"model {config.model!r} has {digest[:12]}…: "
                "the frozen part differs, its scores would mean nothing"
            )
        _check_images(file, metadata, workload)
        theta = workload.theta_from(tensors, str(file))
        tails.append(Tail(file, workload, theta, metadata, threads))
    return tails


def _check_images(file: Path, metadata: dict[str, str], workload: Workload) -> None:
    """Refuse a tail that was trained on images of other settings (mean, crop, …) than the model's here.

    Raises
    ------
    DataError
        When a setting differs; the message names it.
    """
    if workload.images is None or "preprocessing" not in metadata:  # features, or an earlier version's tail
        return
    try:
        then = ImageSettings.from_dict(json.loads(metadata["preprocessing"])).facts
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: its metadata's preprocessing cannot be read ({error})") from error
    for what, now in workload.images.facts.items():
        if then[what] != now:
            raise DataError(
                f"{file}: it was trained on images with {what} {then[what]}, here model "
                f"{workload.config.model!r} sees them with {now}: its scores would mean nothing; was the "
                "model's code or timm changed?"
            )


def _read(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: not a readable safetensors file ({error})") from error
    if metadata.get("problem"):
        raise DataError(f"{file}: it is no vision transformer's: problem = {metadata['problem']!r} made it")
    if metadata.get("schema") != TAIL_SCHEMA:
        raise DataError(f"{file}: schema {metadata.get('schema')!r}, this version reads {TAIL_SCHEMA!r}")
    for key in ("model-digest", "classes", "peer"):
        if key not in metadata:
            raise DataError(f"{file}: its metadata has no {key}; was it changed after the run?")
    return tensors, metadata


@contextlib.contextmanager
def _torch_threads(number: int) -> Iterator[None]:
    """Have torch use ``number`` threads within the ``with`` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _threads(metadata: dict[str, str], file: Path) -> int:
    return _number({"threads": "1", **metadata}, "threads", file, least=1)


def _number(metadata: dict[str, str], key: str, file: Path, *, least: int) -> int:
    """Return a whole number of a tail's metadata; refuse another text by ``file`` and ``key``."""
    text = metadata[key]
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= least):
        raise DataError(f"{file}: its metadata says {key} = {text!r}, not a whole number >= {least}")
    return int(text)


def _classes(metadata: dict[str, str], file: Path) -> list[str]:
    """Return the names of the classes in a tail's metadata."""
    text = metadata["classes"]
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{file}: its metadata says classes = {text[:80]!r}, not a list of names")
    return names


def _settings(metadata: dict[str, str], file: Path) -> dict[str, Any]:
    """Return the run-config values that the metadata carries as text, each with its field's type."""
    values: dict[str, Any] = {}
    for field in fields(LearningConfig):
        key = field.name.replace("_", "-")
        if key not in metadata:
            continue
        text, kind = metadata[key], _TYPES[field.name]
        try:
            values[field.name] = {"True": True, "False": False}[text] if kind is bool else kind(text)
        except (KeyError, ValueError) as error:
            raise DataError(f"{file}: its metadata says {key} = {text!r}, not a {kind.__name__}") from error
    return values


def _with_own_range(
    config: LearningConfig, metadata: dict[str, str], file: Path, *, given: bool
) -> LearningConfig:
    """Return ``config`` with the pixel range of the tail's own peer, if there is one for each peer.

    Raises
    ------
    ConfigError
        When the settings have a range for each peer but the images need a single range; the message names the
        key.
    """
    if len(config.pixel_ranges) == 1 or (config.sited and "pooled-peers" in metadata):
        return config
    if given and not config.sited:
        config.check_data()  # raises: the images do not belong to single peers
    if "pooled-peers" in metadata:
        raise ConfigError(
            f"{file}: it was trained on all peers' images, with pixel-range = {config.pixel_range!r}; say "
            f"with --pixel-range which samples are black and white in {config.dataset!r}"
        )
    return replace(config, pixel_range=config.pixel_range_of(_peer(metadata, file)))


def _with_own_test(
    config: LearningConfig, place: dict[str, Any], metadata: dict[str, str], file: Path
) -> LearningConfig:
    """Return ``config``, with which a tail is scored on another dataset than its run's, for its test images.

    A run that was scored on held-out training images (``validation``), or on some images (``evaluate-on``),
    is scored on them again if they lie at another path; of another dataset all test images count.
    """
    validation = config.validation if config.keeps_best else 0.0
    if config.validation == validation and not config.evaluate_on:
        return config
    if "test-digest" in metadata:
        with contextlib.suppress(DataError):
            there = Holdings(config, **place, classes=_classes(metadata, file))
            if there.test_digest(there.here[0]) == metadata["test-digest"]:
                return config
    return replace(config, validation=validation, evaluate_on=0)


def _peer(metadata: dict[str, str], file: Path) -> int:
    return _number(metadata, "peer", file, least=0)


def _place(config: LearningConfig, metadata: dict[str, str], file: Path) -> dict[str, Any]:
    """Return arguments of :class:`Workload` for the test images on which the tail was scored.

    With a folder for each peer these are the images of the tail's peer, or of all peers if they were pooled.
    """
    if config.sited and "pooled-peers" in metadata:
        return {"n": _number(metadata, "pooled-peers", file, least=1), "pooled": "uniform", "peers": None}
    if config.sited:
        peer = _peer(metadata, file)
        return {"n": peer + 1, "pooled": "", "peers": (peer,)}
    return {"n": 1, "pooled": "", "peers": None}
