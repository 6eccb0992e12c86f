"""The images that each peer holds: dataset, partition, shots, streams, test images, unreadable images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.facts import ListedImage
from p2pft_flower.learning.data.by_column import BY, refuse_all_held_out
from p2pft_flower.learning.data.class_groups import class_owners
from p2pft_flower.learning.data.data_digest import images_digest, listed_images
from p2pft_flower.learning.data.dataset_names import refuse_data_dir
from p2pft_flower.learning.data.datasets import load_dataset
from p2pft_flower.learning.data.held_out import drawn_to_score, held_out, held_out_by_each
from p2pft_flower.learning.data.label_arrays import held_classes
from p2pft_flower.learning.data.names import some_names
from p2pft_flower.learning.data.odd_data import check_whole
from p2pft_flower.learning.data.partitions import Partition, draw_shots, partition_images, resolve_partition
from p2pft_flower.learning.data.peer_data import PeerData
from p2pft_flower.learning.data.pixels import Pixels, Range
from p2pft_flower.learning.data.readable import require_readable, unreadable_images
from p2pft_flower.learning.data.sites import Sites, load_sites
from p2pft_flower.learning.data.sizes import allow
from p2pft_flower.learning.data.splits import Dataset, Split
from p2pft_flower.learning.data.streams import ImageStream, StreamPart
from p2pft_flower.learning.data.survey import Statistics, Survey, statistics_of, survey
from p2pft_flower.learning.settings import check_ranges

__all__ = ["Holdings"]

log = logging.getLogger(__name__)


class Holdings:
    """The images of the dataset in ``config`` that each of ``n`` peers holds.

    Parameters
    ----------
    config : LearningConfig
        Dataset, partition, shots, seed.
    n : int
        Number of peers.
    pooled : {"", "uniform", "examples"}
        The objective if one peer holds all images (``centralized``); empty if each peer holds its own.
    peers : sequence of int, optional
        The peers whose images are on this machine, by default all n. The others' images are not read.
    classes : sequence of str, optional
        Names of the classes if they are known without reading images. The coordinator gets them from peers on
        other machines; a tail has them in its metadata.

    Attributes
    ----------
    here : tuple of int
        The peers whose images are on this machine.
    unreadable : int
        Number of images looked at so far that are left out because they cannot be read.

    Raises
    ------
    ConfigError
        When two settings of the data contradict each other.

    Notes
    -----
    Everything is computed when first used. No image is opened before it is needed.
    """

    def __init__(
        self,
        config: LearningConfig,
        n: int,
        *,
        pooled: str = "",
        peers: Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        config.check_data()
        refuse_data_dir(config.dataset, config.data_dir)
        self.config, self.n, self.pooled = config, n, pooled
        self.here = tuple(range(n)) if peers is None else tuple(peers)
        self.unreadable = 0
        self._most = allow(config.max_megapixels)
        self._classes = classes
        self._streams: dict[int, ImageStream] = {}
        self._seen: dict[str, dict[int, bytes]] = {"train": {}, "test": {}}
        check_ranges(config, n)
        if pooled and config.sited and peers is not None:
            raise ConfigError(
                f"dataset = {config.dataset!r}: the peers' folders are on separate machines, so their images "
                "cannot be pooled: run algorithm = centralized in simulation, which has all folders"
            )

    @cached_property
    def dataset(self) -> Dataset:
        """Training and test images; with a folder for each peer those of the peers here, concatenated.

        Raises
        ------
        ConfigError, DataError
            When the dataset cannot be used, or its classes are not those that are known.
        """
        config = self.config
        if config.sited:
            found = self._sites.dataset
        else:
            scored_on_held_out = config.validation > 0 and not config.keeps_best
            found = load_dataset(
                config.dataset,
                config.data_dir,
                download=config.download,
                verify=config.verify,
                missing_ok=config.bad_images == "skip",
                untested=scored_on_held_out,
                known=self._classes,
            ).within(self._most)
            if scored_on_held_out:
                found = held_out(found, config.validation, config.seed, config.partition)
            if self._classes is not None:
                found = found.numbered_as(self._classes)
        check_whole(config, found)
        return found

    @cached_property
    def _sites(self) -> Sites:
        config, skip = self.config, self.config.bad_images == "skip"
        found = load_sites(config.dataset, self.here, config.data_dir, missing_ok=skip, known=self._classes)
        found = found.within(self._most)
        return found if self._classes is None else found.numbered_as(self._classes)

    @cached_property
    def surveys(self) -> dict[int | None, Survey]:
        """The survey of each peer's own folder of images, by peer; the key None is a dataset for all peers.

        Empty for a dataset of features, which has no images.

        Raises
        ------
        ConfigError
            When the black and white samples of some images are unknown; the message names each peer.
        """
        if self.dataset.width:
            return {}
        if self.config.sited:
            looked_at: dict[int | None, Dataset] = dict(self._sites.folders.items())
        else:
            looked_at = {None: self.dataset}
        found: dict[int | None, Survey] = {}
        unclear = []
        for peer, images in looked_at.items():
            whose = "the dataset's" if peer is None else f"peer {peer}'s"
            try:
                found[peer] = survey(
                    [images.train, images.test], self._window(peer), whose, self.config.dicom_range
                )
            except ConfigError as error:
                unclear.append(str(error))
                continue
            for warning in found[peer].warnings:
                log.warning("%s images: %s", whose, warning)
        if unclear:
            raise ConfigError("; ".join(unclear))
        return found

    @property
    def notes(self) -> list[tuple[int | None, str]]:
        """Lines on files passed over and on conversions of images, each with the peer whose folder has them.

        Instead of a peer there is None if all peers share one dataset.
        """
        if self.config.sited:
            looked_at: dict[int | None, Dataset] = dict(self._sites.folders.items())
        else:
            looked_at = {None: self.dataset}
        lines = [(peer, images.passed_over) for peer, images in looked_at.items()]
        lines += [(peer, str(found)) for peer, found in self.surveys.items()]
        return [(peer, line) for peer, line in lines if line]

    def _window(self, peer: int | None) -> Range | None:
        ranges = self.config.pixel_ranges
        return ranges[0] if peer is None or len(ranges) == 1 else ranges[peer]

    def _pixels(self, peer: int) -> Pixels:
        return self.surveys[peer if self.config.sited else None].pixels

    @cached_property
    def pictures(self) -> Dataset:
        """The images of :attr:`dataset` as pictures, at the same positions; features as they are.

        Raises
        ------
        ConfigError
            When black and white samples are unknown, as in :attr:`surveys`.
        """
        if self.dataset.width:
            return self.dataset
        if not self.config.sited:
            return _with_pixels(self.dataset, self.surveys[None].pixels)
        folders = {p: _with_pixels(f, self.surveys[p].pixels) for p, f in self._sites.folders.items()}
        return replace(self._sites, folders=folders).dataset

    def statistics(self, peer: int) -> Statistics | None:
        """Return statistics of some of the peer's training pictures; None if none can be read."""
        if self.dataset.width:
            return None
        return statistics_of(self.pictures.train, self.partition[peer], f"peer {peer}'s")

    @property
    def several_labels(self) -> bool:
        """Whether an image may have several labels, or none, instead of one class.

        If ``loss`` says it, no images are needed; those that are read are checked by it.
        """
        return self.dataset.several_labels if self.config.loss == "auto" else self.config.loss == "bce"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the head's outputs."""
        return self.dataset.classes if self._classes is None else tuple(self._classes)

    @cached_property
    def partition_spec(self) -> str:
        """The partition as text, with ``auto`` replaced by the partition that it means.

        Raises
        ------
        ConfigError
            When ``stream`` is set, and class or folder of a new image do not give it to a peer.
        """
        config = self.config
        dealt = not config.sited and config.partition.startswith(("auto", BY))
        columns = self.dataset.train.columns if dealt else {}
        if columns and config.validation and not config.keeps_best:
            refuse_all_held_out(config.partition, config.validation, columns, self.dataset.test.columns)
        several = dealt and self.several_labels
        spec = resolve_partition(
            config.partition, config.dataset, self.n, self.classes, columns, several=several
        )
        if self.config.stream and not self.config.sited and not spec.startswith("classes:"):
            raise ConfigError(
                f"stream = true: with {self.n} peers and {len(self.classes)} classes, partition = auto means "
                f"{spec}, but whose a new image is must follow from its class or its folder; choose "
                "classes:0-1,2-3,…, or a folder for each peer"
            )
        return spec

    @cached_property
    def shares(self) -> Partition:
        """Positions in the training split, one array for each of the n peers, pooled or not.

        Without the images that the peers hold out to choose their best θ by (:attr:`validations`).
        """
        if not self.config.keeps_best:
            return self._dealt
        return [np.setdiff1d(d, v) for d, v in zip(self._dealt, self.validations, strict=True)]

    @cached_property
    def validations(self) -> Partition:
        """Positions in the training split of the images by which the peers choose their best θ, by peer.

        Raises
        ------
        DataError
            When no peer, of all n, has any.
        """
        c, data = self.config, self.dataset
        return held_out_by_each(self._dealt, data, c.validation, c.seed, self.here, c.partition)

    @cached_property
    def _dealt(self) -> Partition:
        """Positions in the training split, one array for each of the n peers, with those that are held out.

        With ``bad-images = skip``, unreadable images are left out before shots are drawn and images dealt.
        """
        labels, classes, seed = self.dataset.train.labels, self.dataset.classes, self.config.seed
        usable = self._usable
        if self.config.sited:
            # Each peer draws from its own folder and sees no other.
            mine = self._sites.train
            held = [np.intersect1d(mine.get(p, np.empty(0, dtype=np.int64)), usable) for p in range(self.n)]
            return [p[draw_shots(labels[p], self.config.shots, classes, seed)] for p in held]
        kept = usable[draw_shots(labels[usable], self.config.shots, classes, seed)]
        columns = {name: values[kept] for name, values in self.dataset.train.columns.items()}
        units = self.dataset.train.units
        units = None if units is None else units[kept]
        parts = partition_images(self.partition_spec, labels[kept], self.n, classes, seed, columns, units)
        return [kept[positions] for positions in parts]

    @cached_property
    def _usable(self) -> npt.NDArray[np.int64]:
        """Positions of the training images; with ``bad-images = skip`` only of those that can be read.

        Raises
        ------
        DataError
            When no image of a class, or of a peer's own folder, can be read.
        """
        every = np.arange(len(self.dataset.train))
        if self.config.bad_images != "skip" or self.config.stream:
            return every
        left = np.setdiff1d(every, self._unreadable(self.pictures.train, every, "training"))
        if self.config.sited:
            for peer, mine in self._sites.train.items():
                if not np.isin(mine, left).any():
                    raise DataError(
                        f"peer {peer}: none of its {len(mine)} training images can be read "
                        "(the warnings above name them); repair them, or run without this peer"
                    )
        labels = self.dataset.train.labels
        lost = np.setdiff1d(held_classes(labels), held_classes(labels[left])).tolist()
        if lost:
            raise DataError(
                f"dataset = {self.config.dataset!r}: no training image can be read of the classes "
                f"{some_names([self.classes[c] for c in lost])} (the warnings above name them); repair them, "
                "or remove the classes"
            )
        return left

    def _unreadable(self, split: Split, among: npt.NDArray[np.int64], what: str) -> npt.NDArray[np.int64]:
        """Return the positions of the images that cannot be read, count them, and warn of them."""
        wrong = unreadable_images(split, among, what)
        self.unreadable += len(wrong)
        if wrong:
            log.warning(
                "bad-images = skip: %d of %d %s images cannot be read and are left out: %s",
                len(wrong),
                len(among),
                what,
                some_names([*wrong.values()]),
            )
        return np.array([*wrong], dtype=np.int64)

    @property
    def partition(self) -> Partition:
        """Positions in the training split, one array a peer; if pooled, one array, peer after peer.

        The arrays of peers with own folders on other machines are empty.
        """
        return [np.concatenate(self.shares)] if self.pooled else self.shares

    @cached_property
    def tests(self) -> Partition:
        """Positions in the test split, one array for each of the n peers.

        With ``bad-images = skip``, unreadable images are left out; then ``evaluate-on`` images are drawn.

        Raises
        ------
        DataError
            When no image of a test split for all peers can be read.
        """
        every = np.arange(len(self.dataset.test))
        if self.config.bad_images == "skip":
            every = np.setdiff1d(every, self._unreadable(self.pictures.test, every, "test"))
        if not self.config.sited:
            every = drawn_to_score(every, self.config)
            self._check_test(every, "")
            return [every] * self.n
        tests = [np.intersect1d(every, self._sites.test.get(p, [])).astype(np.int64) for p in range(self.n)]
        tests = [drawn_to_score(test, self.config, p) for p, test in enumerate(tests)]
        for peer in self.here:
            if len(tests[peer]):
                self._check_test(tests[peer], f"peer {peer}: ")
            else:
                log.warning("peer %d has no test image: it trains with the others and is not scored", peer)
            if len(self._sites.train[peer]) == 1:
                log.warning("peer %d has one training image", peer)
        return tests

    def _check_test(self, positions: npt.NDArray[np.int64], whose: str) -> None:
        if not len(positions):
            raise DataError(f"{whose}no test image can be read (the warnings above name them); repair them")
        held = set(held_classes(self.dataset.test.labels[positions]).tolist())
        absent = [name for label, name in enumerate(self.classes) if label not in held]
        if absent:
            log.warning("%sno test image of the classes %s: they are not scored", whose, some_names(absent))

    @cached_property
    def test_positions(self) -> npt.NDArray[np.int64]:
        """Positions in the test split of all images on which the peers here are scored, ascending."""
        return np.unique(np.concatenate([self.tests[p] for p in self.here]))

    def test_names(self, positions: npt.NDArray[np.int64]) -> list[str]:
        """Return the names of the test images at ``positions``: their files, else the positions."""
        split = self.dataset.test
        return [str(p) if split.files is None else split.name(p, "test") for p in positions.tolist()]

    @property
    def scored_test(self) -> Split:
        """The test images on which the peers here are scored, as a split of their own."""
        split, positions = self.pictures.test, self.test_positions
        return Split(split.labels[positions], lambda index: split.picture(int(positions[index])), pixels=None)

    def check_images(self, peers: Sequence[int]) -> None:
        """Decode once the training images of ``peers`` and all test images, for runs that store no outputs.

        Raises
        ------
        DataError
            When an image cannot be read; the message names it.
        """
        if not self.config.stream:  # a stream checks its images itself
            mine = np.unique(np.concatenate([self._held(p) for p in peers]))
            require_readable(self.pictures.train, mine, "training")
        require_readable(self.pictures.test, self.test_positions, "test")

    def stream(self, peer: int) -> ImageStream:
        """Return the growing set of the peer's training images, the same object at every call.

        If images are pooled with the objective ``"examples"``, there is one set, peer 0's; with ``"uniform"``
        each of the n peers has a set.

        Raises
        ------
        DataError
            When the set has no readable image, or a folder cannot be read.
        """
        if peer not in self._streams:
            pooled = self.pooled == "examples"
            parts = [self._stream_part(owner) for owner in (range(self.n) if pooled else [peer])]
            whose = "the pooled" if pooled else f"peer {peer}'s"
            self._streams[peer] = ImageStream(parts, self.classes, whose)
        return self._streams[peer]

    def _stream_part(self, peer: int) -> StreamPart:
        path = self.config.dataset.removeprefix("folder:").replace("{peer}", str(peer))
        every = np.arange(len(self.classes))
        if not self.config.sited:
            every = np.flatnonzero(class_owners(self.partition_spec, self.n, self.classes) == peer)
        return StreamPart(Path(path).expanduser() / "train", every, self._pixels(peer), self._most)

    def data(self, peer: int) -> PeerData:
        """Return ``peer``'s share of the images, in numbers and digests."""
        train, mine = self.dataset.train, self.partition[peer]
        labels = held_classes(train.labels[mine])
        return PeerData(
            len(mine),
            tuple(self.dataset.classes[c] for c in labels),
            "" if self._untold else images_digest(train, self._held(peer), self.classes, self._seen["train"]),
            self.test_digest(peer),
            self.config.pixel_range if self.pooled else self.config.pixel_range_of(peer),
        )

    def _held(self, peer: int) -> npt.NDArray[np.int64]:
        """Return the positions of the images that ``peer`` trains on, then of those that it holds out."""
        if not self.config.keeps_best:
            return self.partition[peer]
        owners = range(self.n) if self.pooled else [peer]
        return np.concatenate([self.partition[peer], *(self.validations[p] for p in owners)])

    @property
    def _untold(self) -> bool:
        """Whether nothing is told of the training images but their number."""
        return self.config.stream or self.config.dp_clip > 0

    def listed(self, peer: int) -> tuple[tuple[ListedImage, ...] | None, tuple[ListedImage, ...] | None]:
        """Return the training images of ``peer``, and those on which it is scored, as lists.

        None for images without files, and for training images of which only the number is told.
        """
        data, seen = self.dataset, self._seen
        own = self.config.sited and not self.pooled
        test = self.tests[peer] if own else self.test_positions
        mine = self._held(peer)
        train = None if self._untold else listed_images(data.train, mine, self.classes, seen["train"])
        return train, listed_images(data.test, test, self.classes, seen["test"])

    @cached_property
    def dealt_digest(self) -> str:
        """Digest of the training images that are dealt out; it must be the same on all machines.

        If a column deals them out, whose each image is counts, too.
        """
        found = images_digest(self.dataset.train, self._usable, self.classes, self._seen["train"])
        if not self.partition_spec.startswith(BY):
            return found
        whose = b"".join(share.tobytes() for share in self.shares)
        return xxhash.xxh3_128(found.encode() + whose).hexdigest()

    def test_digest(self, peer: int) -> str:
        """Return the digest of the images on which ``peer`` is scored."""
        if self.config.sited and not self.pooled:
            return images_digest(self.dataset.test, self.tests[peer], self.classes, self._seen["test"])
        return self._test_digest

    @cached_property
    def _test_digest(self) -> str:
        return images_digest(self.dataset.test, self.test_positions, self.classes, self._seen["test"])


def _with_pixels(data: Dataset, pixels: Pixels) -> Dataset:
    return replace(data, train=replace(data.train, pixels=pixels), test=replace(data.test, pixels=pixels))
