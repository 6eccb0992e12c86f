"""DICOM files of several frames: each frame is an image, and the frames of a file stay together.

Frames of one file resemble each other as no two images of different patients do. So the files, and not the
frames, are what is held out and, where a partition draws images, what is dealt out.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt

from p2pft_flower.learning.data.dicom_files import SUFFIXES, begins_as_dicom, frames_in
from p2pft_flower.learning.data.images import picture_suffixes
from p2pft_flower.learning.data.label_arrays import draw_groups, has_several
from p2pft_flower.learning.data.looking import each

__all__ = ["draw_whole_units", "frames_of", "numbered", "whole_files"]

Positions = npt.NDArray[np.int64]

_BY_IMAGE = ("iid", "dirichlet:", "shards:")
"""Beginnings of partitions that draw images one by one."""


def frames_of(files: Sequence[Path]) -> Positions:
    """Return the number of frames of each file, (N,), by the heads of those that may be DICOM files.

    1 also of files that are none, or that cannot be read: reading the image reports it.
    """
    found = np.ones(len(files), np.int64)
    likely = [i for i, file in enumerate(files) if _may_be_dicom(file)]
    with closing(each(lambda i: _frames(files[i]), likely, "DICOM")) as looked_at:
        for index, frames in looked_at:
            if isinstance(frames, int):
                found[index] = frames
    return found


def _may_be_dicom(file: Path) -> bool:
    suffix = file.suffix.lower()
    return suffix in SUFFIXES or suffix not in picture_suffixes()


def _frames(file: Path) -> int:
    if not file.is_file():  # reading a pipe would block
        return 1
    with file.open("rb") as opened:
        return frames_in(opened) if begins_as_dicom(opened) else 1


def numbered(counts: Positions) -> tuple[Positions, Positions | None]:
    """Return, for each image, the position of its file in ``counts``, and the number of its frame.

    Parameters
    ----------
    counts : (N,) int64 array
        The number of frames of each file.

    Returns
    -------
    owners, frames : (M,) int64 arrays
        Frames count from 1, and 0 stands for a file of one; frames is None if all files are.
    """
    owners = np.repeat(np.arange(len(counts)), counts)
    if (counts == 1).all():
        return owners, None
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    return owners, np.where(counts[owners] == 1, 0, np.arange(len(owners)) - starts + 1)


def draw_whole_units(
    units: Positions, labels: npt.NDArray[np.int64], classes: int, share: float, rng: np.random.Generator
) -> Positions:
    """Return the positions of images in units, files or patients, of which some are drawn; ascending.

    Parameters
    ----------
    units : (N,) int64 array
        The number of each image's unit.
    labels : (N,) or (N, C) int64 array
        The images' labels.
    classes : int
        C, the number of classes.
    share : float
        Share of the units of each class that is drawn, in (0, 1), rounded; at least one, and at least one
        is left. A unit whose images have several classes counts for the rarest of them.
    rng : numpy Generator
        The source of the draw.
    """
    groups = draw_groups(labels)
    rarity = np.bincount(groups, minlength=classes + 1)[groups]
    order = np.lexsort((groups, rarity, units))
    found, first = np.unique(units[order], return_index=True)
    group_of = groups[order][first]
    drawn = [found[:0]]
    for group in range(classes + 1):
        of_group = rng.permutation(found[group_of == group])
        number = min(max(1, round(share * len(of_group))), len(of_group) - 1)
        drawn.append(of_group[: max(0, number)])
    return np.flatnonzero(np.isin(units, np.concatenate(drawn)))


def whole_files(
    spec: str, labels: npt.NDArray[np.int64], units: Positions | None
) -> tuple[Positions, Positions] | None:
    """Return the files to deal out as a whole, None if images are dealt out: by class, value or own code.

    So are images whose partition draws them by class, if files have frames of several classes.

    Parameters
    ----------
    spec : str
        The partition.
    labels : (N,) or (N, C) int64 array
        The images' labels.
    units : (N,) int64 array or None
        The number of each image's file; None: each is a file of its own.

    Returns
    -------
    first, file_of : (M,) and (N,) int64 arrays
        The position of the first image of each file, and each image's file among these.
    """
    if units is None or not spec.startswith(_BY_IMAGE):
        return None
    _, first, file_of = np.unique(units, return_index=True, return_inverse=True)
    if spec != "iid" and (has_several(labels) or (labels[first][file_of] != labels).any()):
        return None
    return first, file_of
