"""Images that are read when a mini-batch is drawn: augmented ones, growing folders, whatever cannot be kept.

Three cases have nothing that a store could keep: train-time augmentation (another image each time), a stream
(images that were not there before), and a tail that begins at the pixels. Their images are read, prepared and
run through the frozen trunk batch by batch.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from timm.data import create_transform
from torch import nn

from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.datasets import (
    UNREADABLE,
    Split,
    file_content,
    image_files,
    read_image,
    some_names,
    unreadable_images,
)
from p2pft_flower.learning.draws import seeded
from p2pft_flower.learning.models import data_config

__all__ = ["ImageStream", "LiveFeatures", "StreamFeatures", "StreamPart", "augmentation"]

Transform: TypeAlias = Callable[[Image.Image], torch.Tensor]
Trunk: TypeAlias = Callable[[torch.Tensor], "torch.Tensor | tuple[torch.Tensor, ...]"]
Positions: TypeAlias = npt.NDArray[np.int64]

AUGMENTING = 1
"""Sets the draws of augmentation apart from others of the same seed, peer and mini-batch (drop-out)."""

PATIENCE = 3
"""A file that could not be read at so many listings is no longer taken for one that is being written."""

log = logging.getLogger(__name__)


def augmentation(model: nn.Module, augment: str) -> Transform:
    """Return the preparation of training images: timm's, with the size, mean and std of the model.

    Parameters
    ----------
    model : nn.Module
        Says what images it wants, by its ``pretrained_cfg``.
    augment : str
        ``"basic"`` (random resized crop, horizontal flip), or a timm auto-augmentation on top of it:
        ``"rand-m9-mstd0.5-inc1"``, ``"augmix-m3-w3"``, ``"original"``, ``"v0"``, ``"3a"``, …

    Returns
    -------
    callable
        PIL image ↦ (C, H, W) float32. It draws from the process's global generators
        (:func:`~p2pft_flower.learning.draws.seeded`).

    Raises
    ------
    ConfigError
        When timm has no such augmentation.
    """
    config = data_config(model)
    policy = None if augment == "basic" else augment
    try:
        if policy is not None:
            _check_sections(policy)
        transform = create_transform(
            **{key: config[key] for key in ("input_size", "interpolation", "mean", "std")},
            is_training=True,
            color_jitter=None,
            auto_augment=policy,
        )
    except (AssertionError, KeyError, ValueError) as error:  # what timm raises of strings it does not know
        raise ConfigError(
            f"augment = {augment!r}: choose none, basic, or an auto-augmentation of timm, such as "
            f"rand-m9-mstd0.5-inc1 or augmix-m3 ({error})"
        ) from error
    mode = "L" if config["input_size"][0] == 1 else "RGB"
    return lambda image: transform(image.convert(mode))


def _check_sections(policy: str) -> None:
    """Refuse what timm passes over without a word: an empty policy, sections without a number."""
    name, *sections = policy.split("-")
    odd = [
        s
        for s in sections
        if not re.fullmatch(r"[a-z]+[0-9.]+", s) and not (name == "rand" and re.fullmatch(r"t[a-z0-9]+", s))
    ]
    if not name or odd:
        raise ValueError(f"{odd[0]!r} is no setting of it" if odd else "it is empty")


class LiveFeatures:
    """The tail's inputs for images that are read, prepared and run through the trunk when they are drawn.

    Parameters
    ----------
    split : Split
        Where images and labels come from.
    positions : (N,) int64 array
        Which ones, in this order.
    transform : callable
        PIL image ↦ (C, H, W) tensor.
    trunk : callable
        (B, C, H, W) ↦ a tensor, or a tuple of them; run without gradients.
    seed, peer : int
        With the mini-batch's number they decide what ``transform`` draws.
    augmented : bool
        Whether ``transform`` draws random numbers (:func:`augmentation`).
    """

    def __init__(
        self,
        split: Split,
        positions: Positions,
        transform: Transform,
        trunk: Trunk,
        *,
        seed: int,
        peer: int,
        augmented: bool,
    ) -> None:
        self.labels = torch.from_numpy(split.labels[positions])
        """Classes, (N,) int64."""
        self._split, self._positions = split, positions
        self._prepare = _Preparation(transform, trunk, seed, peer, augmented)

    def __len__(self) -> int:
        return len(self.labels)

    def read(
        self, positions: Positions, draw: int | None = None
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Return what the trunk makes of the images at ``positions``, and their labels.

        Parameters
        ----------
        positions : (B,) int64 array
            Which ones of the N.
        draw : int or None
            The mini-batch's number; None in evaluation.

        Raises
        ------
        DataError
            When an image cannot be read, naming it.
        ValueError
            When ``draw`` is None, but the images are augmented.
        """
        images = [self._split.read(int(p)) for p in self._positions[positions]]
        inputs = self._prepare(images, draw)
        return inputs, self.labels[torch.from_numpy(positions)].to(inputs[0].device)

    def ahead(self, following: Callable[[], Positions]) -> None:
        """Fetch nothing: what is drawn depends on its moment."""


class _Preparation:
    """Images ↦ the tail's inputs."""

    def __init__(self, transform: Transform, trunk: Trunk, seed: int, peer: int, augmented: bool) -> None:
        self._transform, self._trunk = transform, trunk
        self._key = (seed, peer)
        self._augmented = augmented

    def __call__(self, images: Iterable[Image.Image], draw: int | None) -> tuple[torch.Tensor, ...]:
        if not self._augmented:
            batch = torch.stack([self._transform(image) for image in images])
        elif draw is None:
            raise ValueError("augmented images are for training: they need the mini-batch's number")
        else:
            with seeded(*self._key, draw, AUGMENTING):
                batch = torch.stack([self._transform(image) for image in images])
        with torch.no_grad():
            made = self._trunk(batch)
        return made if isinstance(made, tuple) else (made,)


@dataclass(frozen=True)
class StreamPart:
    """One folder of a stream, and the classes of it that count.

    Attributes
    ----------
    folder : Path
        Holds a folder for each class (``train/``).
    labels : (K,) int64 array
        The classes, by number.
    """

    folder: Path
    labels: npt.NDArray[np.int64]


class ImageStream:
    """The training images of folders in which new ones appear.

    Every image that was ever readable keeps its position for good; :meth:`refresh` says which are there.

    - A file that cannot be read is taken for one that is still being written, and left for the next listing.
      One that stays so is told of in a warning. To be safe, write under another extension and rename.
    - Images that are gone are left out from the next listing on, with a warning.
    - Folders of new classes are passed over, with a warning: the model's head has a fixed size.

    Parameters
    ----------
    parts : sequence of StreamPart
        Where the images lie.
    classes : sequence of str
        Names of all classes, by number.
    what : str
        For the log, e.g. ``"peer 2's"``.

    Raises
    ------
    DataError
        When there is no image to begin with, or a folder cannot be read.
    """

    def __init__(self, parts: Sequence[StreamPart], classes: Sequence[str], what: str) -> None:
        self._parts, self._classes, self._what = parts, tuple(classes), what
        self.labels: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
        """Classes of all images that were ever there, (N,) int64, by position; replaced when N grows."""
        self._files: list[Path] = []
        self._positions: dict[Path, int] = {}
        self._there: list[set[Path]] = [set() for _ in parts]
        self._unreadable: dict[Path, int] = {}
        self._strange: set[Path] = set()
        self.refresh()

    def read(self, position: int) -> Image.Image:
        """Read an image.

        Raises
        ------
        DataError
            When it cannot be read, naming it.
        """
        return read_image(self._files[position])

    def refresh(self, part: int | None = None) -> Positions:
        """List again, and return the positions of the images that are there now, by class and file name.

        Parameters
        ----------
        part : int, optional
            Number of the part to list; without it, all of them.

        Raises
        ------
        DataError
            When no image is there, or a folder cannot be read.
        """
        which = range(len(self._parts)) if part is None else [part]
        there = np.array([p for number in which for p in self._list(number)], dtype=np.int64)
        if not len(there):
            folders = some_names([self._parts[number].folder for number in which])
            raise DataError(f"{self._what} stream: no readable image of its classes in {folders}; add some")
        return there

    def _list(self, number: int) -> list[int]:
        part, before = self._parts[number], self._there[number]
        self._warn_of_new_classes(part.folder)
        found = {f: int(c) for c in part.labels for f in image_files(part.folder / self._classes[c])}
        gone = sorted(before - found.keys())
        if gone:
            log.warning("%s stream: %d images are gone: %s", self._what, len(gone), some_names(gone))
        waiting = self._not_yet([f for f in found if f not in before])
        new = [file for file in found if file not in waiting and file not in self._positions]
        for file in new:
            self._positions[file] = len(self._files)
            self._files.append(file)
        if new:
            self.labels = np.concatenate([self.labels, np.array([found[file] for file in new])])
        there = [file for file in found if file not in waiting]
        self._there[number] = set(there)
        if before and len(there) > len(before) - len(gone):
            come = len(there) - len(before) + len(gone)
            log.info("%s stream: %d new images, %d in all", self._what, come, len(there))
        return [self._positions[file] for file in there]

    def _not_yet(self, files: list[Path]) -> set[Path]:
        """Return those of ``files`` that cannot be read."""
        fresh = Split(
            np.zeros(len(files), dtype=np.int64),
            lambda index: read_image(files[index]),
            lambda index: file_content(files[index]),
        )
        wrong = {files[i]: why for i, why in unreadable_images(fresh, range(len(files)), self._what).items()}
        for file in files:
            if file not in wrong:
                self._unreadable.pop(file, None)
                continue
            times = self._unreadable[file] = self._unreadable.get(file, 0) + 1
            if times == 1:
                log.debug(
                    "%s stream: not yet readable, left for the next listing: %s", self._what, wrong[file]
                )
            elif times == PATIENCE:
                log.warning(
                    "%s stream: not readable at %d listings, left out until it is: %s",
                    self._what,
                    times,
                    wrong[file],
                )
        return set(wrong)

    def _warn_of_new_classes(self, folder: Path) -> None:
        try:
            here = {p for p in folder.iterdir() if p.is_dir() and p.name not in self._classes}
        except OSError as error:
            raise DataError(f"{folder}: the folder cannot be read ({error.strerror})") from error
        new = sorted(here - self._strange)
        if new:
            self._strange.update(new)
            log.warning(
                "%s stream: folders of classes that were not there when the run began are passed over "
                "(the model's head has %d outputs): %s",
                self._what,
                len(self._classes),
                some_names(new),
            )


class StreamFeatures:
    """:class:`LiveFeatures` of a stream: images may come and go between two batches.

    Parameters
    ----------
    stream : ImageStream
        Where images and labels come from.
    transform, trunk, seed, peer, augmented
        As of :class:`LiveFeatures`.
    """

    def __init__(
        self,
        stream: ImageStream,
        transform: Transform,
        trunk: Trunk,
        *,
        seed: int,
        peer: int,
        augmented: bool,
    ) -> None:
        self._stream = stream
        self._prepare = _Preparation(transform, trunk, seed, peer, augmented)

    @property
    def labels(self) -> torch.Tensor:
        """Classes of the images that were ever there, (N,) int64; N grows."""
        return torch.from_numpy(self._stream.labels)

    def __len__(self) -> int:
        return len(self._stream.labels)

    def read(
        self, positions: Positions, draw: int | None = None
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Return what the trunk makes of the images at ``positions``, and their labels.

        Images that were removed or broken after they were listed are left out of the batch, with a warning.
        Parameters as of :meth:`LiveFeatures.read`.

        Raises
        ------
        DataError
            When none of the images is left.
        ValueError
            When ``draw`` is None, but the images are augmented.
        """
        images: list[Image.Image] = []
        kept: list[int] = []
        for position in positions.tolist():
            try:
                images.append(self._stream.read(position))
                kept.append(position)
            except UNREADABLE as error:
                log.warning("left out of a mini-batch, as it was listed but cannot be read now: %s", error)
        if not kept:
            raise DataError(f"none of the {len(positions)} images of a mini-batch is there any more")
        inputs = self._prepare(images, draw)
        return inputs, torch.from_numpy(self._stream.labels[kept]).to(inputs[0].device)

    def ahead(self, following: Callable[[], Positions]) -> None:
        """Fetch nothing: what is drawn depends on its moment."""
