"""The images on which peers are scored: some of the test images, or training images that are held out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.frames import draw_whole_units
from p2pft_flower.learning.data.label_arrays import draw_groups, held_classes
from p2pft_flower.learning.data.names import some_names
from p2pft_flower.learning.data.partitions import Partition
from p2pft_flower.learning.data.patients import deals_patients, patient_column, patients_of
from p2pft_flower.learning.data.splits import Dataset, Split

__all__ = ["drawn_to_score", "held_out", "held_out_by_each"]

log = logging.getLogger(__name__)

Positions = npt.NDArray[np.int64]


def drawn_to_score(images: Positions, config: LearningConfig, peer: int | None = None) -> Positions:
    """Return ``evaluate-on`` of ``images``, drawn at random, ascending; all if there are no more, or it is 0.

    Parameters
    ----------
    images : (N,) int64 array
        Positions of the images.
    config : LearningConfig
        The settings: number and seed. The seed draws places of ``images``, whatever numbers are there, and
        fewer are among more.
    peer : int, optional
        The peer whose own images they are; default: peers share them.
    """
    most, seed = config.evaluate_on, config.seed
    if not 0 < most < len(images):
        return images
    log.info(
        "evaluate-on: %sscored on %d of %d test images, drawn by seed %d",
        "" if peer is None else f"peer {peer} is ",
        most,
        len(images),
        seed,
    )
    rng = np.random.default_rng([seed, 2] if peer is None else [seed, 2, peer])
    return images[np.sort(rng.permutation(len(images))[:most])]


def held_out(data: Dataset, share: float, seed: int, partition: str = "") -> Dataset:
    """Return ``data`` with some of its training images in place of its test images.

    Parameters
    ----------
    data : Dataset
        The images; its test images are left out.
    share : float
        Share of each class that is held out, in (0, 1), rounded; at least one image of a class, and at least
        one is left to train on. A class with a single image keeps it and is not scored. If images have
        several labels, an image counts for the rarest of its labels, and images without a label for none;
        a warning names labels of which no image is left to train on. All images of a patient, and all frames
        of a file, are on one side: then it is the share of the patients, or of the files.
    seed : int
        Number that decides the draw.
    partition : str
        The run-config's. Where each peer is a patient, by a column that names patients, images are drawn.

    Raises
    ------
    DataError
        When no class has two training images.
    """
    labels = data.train.labels
    together = _together(data.train, partition)
    scored = _drawn(labels, len(data.classes), share, np.random.default_rng(seed), together)
    if not len(scored):
        raise DataError(
            f"validation = {share:g}: no class of {data.name!r} has two training images, one to train on and "
            f"one to hold out{_what_stays_together(data, partition)}"
        )
    left = np.setdiff1d(np.arange(len(labels)), scored)
    _warn_of_lost_classes(data, share, np.arange(len(labels)), left)
    return replace(data, train=data.train.at(left), test=data.train.at(scored))


def held_out_by_each(
    dealt: Partition, data: Dataset, share: float, seed: int, here: Sequence[int], partition: str = ""
) -> Partition:
    """Return the positions of the training images that each peer holds out of its own, by peer.

    Parameters
    ----------
    dealt : list of (N_i,) int64 arrays
        Positions of each peer's training images.
    data : Dataset
        The images.
    share : float
        As for :func:`held_out`, of each class of each peer's images.
    seed : int
        Number that decides the draws, together with the peer's.
    here : sequence of int
        The peers whose images are on this machine; a warning names those that can hold none out.
    partition : str
        As for :func:`held_out`.

    Raises
    ------
    DataError
        When no peer can hold an image out, and all are here; or when a peer would hold out frames of a file
        of which another peer trains on others.

    Notes
    -----
    A warning tells of patients whose images one peer holds out and another one learns, and of classes that
    no peer can learn, as all of their images are held out.
    """
    labels, together, found = data.train.labels, _together(data.train, partition), []
    for peer, own in enumerate(dealt):
        # 1: another draw than that of images to be scored on instead of the test images.
        rng = np.random.default_rng([seed, peer, 1])
        of_own = None if together is None else together[own]
        found.append(own[_drawn(labels[own], len(data.classes), share, rng, of_own)])
    if (units := data.train.units) is not None:
        _refuse_divided(dealt, found, units, data)
    patients = None if deals_patients(partition) else patients_of(data.train.columns)
    if patients is not None:
        left = [np.setdiff1d(own, out) for own, out in zip(dealt, found, strict=True)]
        _warn_of_divided_patients(*([set(patients[own]) - {""} for own in some] for some in (left, found)))
    without = [peer for peer in here if not len(found[peer])]
    if len(without) == len(dealt):
        raise DataError(
            f"validation = {share:g}: no peer has two training images of a class, one to train on and one to "
            f"hold out to choose the best θ by{_what_stays_together(data, partition)}; keep = last needs none"
        )
    for peer in without:
        log.warning("peer %d has no two images of a class to hold one out: it does not choose", peer)
    every = np.concatenate(dealt)
    _warn_of_lost_classes(data, share, every, np.setdiff1d(every, np.concatenate(found)))
    return found


def _warn_of_lost_classes(data: Dataset, share: float, before: Positions, left: Positions) -> None:
    labels = data.train.labels
    if len(lost := np.setdiff1d(held_classes(labels[before]), held_classes(labels[left]))):
        log.warning(
            "validation = %g holds out all training images here with %s: nobody can learn them from these",
            share,
            some_names([data.classes[k] for k in lost]),
        )


def _refuse_divided(
    dealt: Partition, held: Sequence[npt.NDArray[np.int64]], units: npt.NDArray[np.int64], data: Dataset
) -> None:
    for peer, own in enumerate(held):
        for other, others in enumerate(dealt):
            both = np.flatnonzero(np.isin(units[own], units[others])) if other != peer else own[:0]
            if len(both):
                name = data.train.name(int(own[both[0]]), "training")
                raise DataError(
                    f"validation: peer {peer} would hold {name} out, and peer {other} has other frames of "
                    "that file, so the choice of the best θ would rest on what was learned; choose a "
                    "partition that keeps files together: iid, or by:COLUMN with one value for all rows of a "
                    "file"
                )


def _warn_of_divided_patients(learned: Sequence[set[str]], held: Sequence[set[str]]) -> None:
    """Warn of patients of whom one peer holds images out, and another one learns images."""
    out = set().union(*held)
    if divided := out & set().union(*learned):
        log.warning(
            "validation: of %d of %d patients whose images are held out, another peer has images, too, and "
            "learns them, so the best θ is chosen by patients who are not all new; partition = by:COLUMN, "
            "with the column of their sites, keeps the images of a patient together",
            len(divided),
            len(out),
        )


def _together(train: Split, partition: str) -> npt.NDArray[np.int64] | None:
    return train.units if deals_patients(partition) else train.kept_together


def _what_stays_together(data: Dataset, partition: str) -> str:
    if patient_column(data.train.columns) and not deals_patients(partition):
        return " (all images of one patient stay together)"
    return "" if data.train.units is None else " (the frames of one file stay together)"


def _drawn(
    labels: npt.NDArray[np.int64],
    classes: int,
    share: float,
    rng: np.random.Generator,
    together: npt.NDArray[np.int64] | None,
) -> npt.NDArray[np.int64]:
    if together is not None:
        return draw_whole_units(together, labels, classes, share, rng)
    chosen, groups = [np.empty(0, np.int64)], draw_groups(labels)
    for group in range(classes + 1):
        of_class = rng.permutation(np.flatnonzero(groups == group))
        number = min(max(1, round(share * len(of_class))), len(of_class) - 1)
        chosen.append(of_class[: max(0, number)])
    return np.sort(np.concatenate(chosen))
