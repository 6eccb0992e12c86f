"""Datasets in folders: ``train/<class>/`` and ``test/<class>/``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.dataset_names import require_parts
from p2pft_flower.learning.data.frames import frames_of, numbered
from p2pft_flower.learning.data.images import Listing, find_images, folders_in, identity, looks_hidden
from p2pft_flower.learning.data.names import differing_unseen, in_order, look_alikes, some_names
from p2pft_flower.learning.data.splits import Dataset, Split

__all__ = ["check_same_files", "folder"]

log = logging.getLogger(__name__)


def folder(path: str, *, site: bool = False) -> Dataset:
    """Return the dataset ``path/train/<class>/<image>`` and ``path/test/<class>/<image>``.

    Classes are in natural order. Hidden files and folders are passed over. Links to folders are followed,
    within a class once into each folder. A warning counts the files that are no pictures.

    Parameters
    ----------
    path : str
        The folder.
    site : bool
        Whether the folder is one peer's own: a class may then have a folder in train/ without an image, with
        a warning, and test/ may be missing or empty.

    Raises
    ------
    DataError
        When a folder is missing or may not be read, a class has no training image, train/ or test/ has no
        image at all, test/ has a class that train/ lacks, or one file lies in two classes.
    """
    root = require_parts(path, site=site)
    found, passed_over = folders_in(root / "train")
    tested, beside = folders_in(root / "test")
    passed_over.add(beside)
    classes = in_order(found)
    for alike in look_alikes(classes):
        log.warning("%s: the names of the classes %s", root / "train", alike)
    if doubtful := [name for name in classes if looks_hidden(name) and name not in tested]:
        log.warning(
            "%s: %s are CLASSES here, named as systems name their folders, and have no folder in test/: if "
            "they are none, remove them, or begin their names with a dot",
            root / "train",
            some_names(doubtful),
        )
    for name in in_order(set(tested) - set(classes)):
        raise DataError(
            f"{root / 'test'}: class {name!r} has no folder in train/{differing_unseen(name, classes)}; the "
            f"classes there: {classes}"
        )
    outside, passed_over.files = passed_over.files, []

    def split(part: str) -> Split:
        files: list[Path] = []
        labels: list[int] = []
        empty: list[str] = []
        for label, name in enumerate(classes):
            listing = find_images(root / part / name)
            passed_over.add(listing)
            if part == "train" and not listing.files:
                if not site:
                    kinds = f", but {_kinds(listing)}" if listing.others else ""
                    raise DataError(
                        f"{root / part / name}: no image of class {name!r}{kinds}; add some or remove the "
                        "folder"
                    )
                empty.append(name)
            files += listing.files
            labels += [label] * len(listing.files)
        if not files and (part == "train" or not site):
            raise DataError(f"{root / part}: no image in any class folder")
        if empty:
            log.warning(
                "%s: no image of the classes %s: this peer holds none", root / part, some_names(empty)
            )
        owners, frames = numbered(frames_of(files))
        images = files if frames is None else [files[owner] for owner in owners]
        return Split.of_files(images, np.array(labels, dtype=np.int64)[owners], frames=frames)

    train, test = split("train"), split("test")
    _log_passed_over(root, passed_over, outside)
    check_same_files(root, classes, train, test)
    hidden = passed_over.hidden
    names = some_names([*hidden])
    line = f"{root}: hidden files and folders, {hidden.total()} in all, are passed over: {names}"
    return Dataset(f"folder:{path}", tuple(classes), train, test, line if hidden else "")


def _kinds(found: Listing) -> str:
    """Return a text with the number of files of each kind that is no picture."""
    return some_names(
        [f"{number} {suffix or 'without a suffix'}" for suffix, number in found.others.most_common()]
    )


def _log_passed_over(root: Path, found: Listing, outside: Sequence[Path]) -> None:
    """Log the files in a dataset's folders that are not used, a line for each kind."""
    if found.others:
        log.warning(
            "%s: %d files are no pictures that can be opened here and are not used: %s",
            root,
            found.others.total(),
            _kinds(found),
        )
    if found.loops:
        log.warning("%s: links that lead back to a folder above them: %s", root, some_names(found.loops))
    if found.repeated:
        log.warning(
            "%s: links to folders whose images are in the class already, and count once: %s",
            root,
            some_names(found.repeated),
        )
    if outside:
        log.warning(
            "%s: %d pictures lie in no class's folder and are not used: %s",
            root,
            len(outside),
            some_names(outside),
        )


def check_same_files(root: Path, classes: Sequence[str], train: Split, test: Split) -> None:
    """Refuse files that are linked into two classes; warn of files in train/ and test/, or twice in a class.

    Of a file of several frames each may have its own class, but not one in train/ and one in test/.

    Raises
    ------
    DataError
        When a file is linked into two classes; the message names two paths of one such file.
    """
    first: dict[tuple[tuple[int, int], int], tuple[str, int, bool]] = {}
    twice, in_both, in_two = [], [], []
    trained_on: dict[tuple[int, int], str] = {}
    for split in (train, test):
        for index, (file, label) in enumerate(zip(split.files or (), split.labels.tolist(), strict=True)):
            one, name = identity(file), split.name(index, "")
            before, other, trained = first.setdefault(
                (one, split.frame(index)), (name, label, split is train)
            )
            pair = f"{before} and {name}"
            if split is train:
                trained_on.setdefault(one, name)
            elif before == name and not trained and one in trained_on and split.frame(index):
                in_both.append(f"{trained_on[one]} and {name}")
            if other != label:
                in_two.append(f"{pair} ({classes[other]!r} and {classes[label]!r})")
            elif trained and split is test:
                in_both.append(pair)
            elif before != name:
                twice.append(pair)
    if in_two:
        raise DataError(
            f"{root}: {len(in_two)} image files lie in two classes, as {in_two[0]}, which are one file: what "
            "it shows cannot be both; remove it, or the link that leads to it, from one of them"
        )
    if in_both:
        log.warning(
            "%s: %d TEST IMAGES ARE TRAINING IMAGES too, as %s, which are one file: scores on them say "
            "nothing of new images",
            root,
            len(in_both),
            in_both[0],
        )
    if twice:
        log.warning(
            "%s: %d image files lie more than once in their class, as %s, which are one file: they count as "
            "often as they lie there",
            root,
            len(twice),
            twice[0],
        )
