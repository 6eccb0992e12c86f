"""Who holds which images: dataset, partition, shots, streams, test images, and what cannot be read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.datasets import Dataset, Sites, Split, load_dataset, load_sites, some_names
from p2pft_flower.learning.partitions import (
    Partition,
    class_owners,
    draw_shots,
    partition_images,
    resolve_partition,
)
from p2pft_flower.learning.readable import require_readable, unreadable_images
from p2pft_flower.learning.streams import ImageStream, StreamPart

__all__ = ["Holdings", "PeerData"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PeerData:
    """What a peer holds, in numbers only.

    Attributes
    ----------
    images : int
        Training images.
    classes : tuple of str
        Names of the classes of which it holds at least one.
    """

    images: int
    classes: tuple[str, ...]


class Holdings:
    """Who of ``n`` peers holds which images of the dataset that ``config`` names.

    Parameters
    ----------
    config : LearningConfig
        Dataset, partition, shots, seed.
    n : int
        Number of peers.
    pooled : {"", "uniform", "examples"}
        Not empty (``centralized``): one peer holds all images. How it draws them is the workload's.
    peers : sequence of int, optional
        The peers whose images are on this machine; without it, all n. Of the others' nothing is looked at.
    classes : sequence of str, optional
        Names of the classes where they are known without images: to the coordinator of peers on other
        machines, or from a tail's metadata.

    Attributes
    ----------
    here : tuple of int
        The peers whose images are on this machine.
    unreadable : int
        Images left out because they cannot be read, as far as they were looked at yet.

    Raises
    ------
    ConfigError
        When settings of the data do not go together.

    Notes
    -----
    Everything is looked at when first asked for. No image is opened before one has to be.
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
        self.config, self.n, self.pooled = config, n, pooled
        self.here = tuple(range(n)) if peers is None else tuple(peers)
        self.unreadable = 0
        self._classes = classes
        self._streams: dict[int, ImageStream] = {}
        if pooled and config.sited and peers is not None:
            raise ConfigError(
                f"dataset = {config.dataset!r}: the peers' folders are on separate machines, so their images "
                "cannot be pooled: run algorithm = centralized in simulation, where all folders are"
            )

    @cached_property
    def dataset(self) -> Dataset:
        """Training and test images; of own folders those of the peers here, one folder after the other."""
        config = self.config
        if config.sited:
            found = self._sites.dataset
        else:
            found = load_dataset(
                config.dataset, config.data_dir, download=config.download, verify=config.verify
            )
        if self._classes is not None and tuple(self._classes) != found.classes:
            raise DataError(
                f"dataset = {config.dataset!r} has the classes {some_names(found.classes)}, but the model "
                f"was trained on {some_names(self._classes)}: its answers would mean other classes here"
            )
        return found

    @cached_property
    def _sites(self) -> Sites:
        return load_sites(self.config.dataset, self.here)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the head's outputs."""
        return self.dataset.classes if self._classes is None else tuple(self._classes)

    @cached_property
    def partition_spec(self) -> str:
        """The partition with ``auto`` resolved."""
        spec = resolve_partition(self.config.partition, self.config.dataset, self.n, len(self.classes))
        if self.config.stream and not self.config.sited and not spec.startswith("classes:"):
            raise ConfigError(
                f"stream = true: with {self.n} peers and {len(self.classes)} classes, partition = auto means "
                f"{spec}, but whose a new image is must follow from its class or its folder; choose "
                "classes:0-1,2-3,…, or a folder for each peer"
            )
        return spec

    @cached_property
    def shares(self) -> Partition:
        """Positions in the training split, one array for each of the n peers, pooled or not."""
        labels, classes, seed = self.dataset.train.labels, self.dataset.classes, self.config.seed
        if self.config.sited:
            # Each draws from its own folder: it sees no other's.
            held = [self._sites.train.get(p, np.empty(0, dtype=np.int64)) for p in range(self.n)]
            dealt = [p[draw_shots(labels[p], self.config.shots, classes, seed)] for p in held]
        else:
            kept = draw_shots(labels, self.config.shots, classes, seed)
            parts = partition_images(self.partition_spec, labels[kept], self.n, len(classes), seed)
            dealt = [kept[positions] for positions in parts]
        if self.config.bad_images == "skip" and not self.config.stream:
            dealt = self._without_unreadable(dealt)
        return dealt

    def _without_unreadable(self, shares: Partition) -> Partition:
        """Leave out what cannot be read of the images of the peers here; others' machines do the same."""
        mine = np.concatenate([shares[p] for p in self.here])
        wrong = self._unreadable(self.dataset.train, mine, "training")
        left = [positions[~np.isin(positions, wrong)] for positions in shares]
        for peer in self.here:
            if not len(left[peer]):
                raise DataError(
                    f"peer {peer}: none of its {len(shares[peer])} training images can be read "
                    "(the warnings above name them); repair them, or run without this peer"
                )
        labels = self.dataset.train.labels
        lost = sorted(set(labels[mine].tolist()) - set(labels[np.setdiff1d(mine, wrong)].tolist()))
        if lost:
            raise DataError(
                f"dataset = {self.config.dataset!r}: no training image can be read of the classes "
                f"{some_names([self.classes[c] for c in lost])} (the warnings above name them); repair them, "
                "or remove the classes"
            )
        return left

    def _unreadable(self, split: Split, among: npt.NDArray[np.int64], what: str) -> npt.NDArray[np.int64]:
        """Return the positions of images that cannot be read, and warn of them."""
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
        """Positions in the training split, one array a peer; where pooled one array, peer after peer.

        Of own folders on other machines nothing is known: their peers' arrays are empty.
        """
        return [np.concatenate(self.shares)] if self.pooled else self.shares

    @cached_property
    def tests(self) -> Partition:
        """Positions in the test split, one array for each of the n peers; unreadable images left out."""
        every = np.arange(len(self.dataset.test))
        if self.config.bad_images == "skip":
            every = np.setdiff1d(every, self._unreadable(self.dataset.test, every, "test"))
        if not self.config.sited:
            self._check_test(every, "")
            return [every] * self.n
        tests = [np.intersect1d(every, self._sites.test.get(p, [])).astype(np.int64) for p in range(self.n)]
        for peer in self.here:
            self._check_test(tests[peer], f"peer {peer}: ")
        return tests

    def _check_test(self, positions: npt.NDArray[np.int64], whose: str) -> None:
        if not len(positions):
            raise DataError(f"{whose}no test image can be read (the warnings above name them); repair them")
        held = set(self.dataset.test.labels[positions].tolist())
        absent = [name for label, name in enumerate(self.classes) if label not in held]
        if absent:
            log.warning("%sno test image of the classes %s: they are not scored", whose, some_names(absent))

    @property
    def test_positions(self) -> npt.NDArray[np.int64]:
        """Positions in the test split of all images that are scored on this machine, ascending."""
        return np.unique(np.concatenate([self.tests[p] for p in self.here]))

    @property
    def scored_test(self) -> Split:
        """The test images that are scored on this machine, as a split of their own."""
        split, positions = self.dataset.test, self.test_positions
        return Split(split.labels[positions], lambda index: split.read(int(positions[index])))

    def check_images(self, peers: Sequence[int]) -> None:
        """Decode once all images that ``peers`` use; for runs that read them only as they go.

        Raises
        ------
        DataError
            When one cannot be read, naming it.
        """
        if not self.config.stream:  # a stream looks at its images itself
            mine = np.unique(np.concatenate([self.partition[p] for p in peers]))
            require_readable(self.dataset.train, mine, "training")
        require_readable(self.dataset.test, self.test_positions, "test")

    def stream(self, peer: int) -> ImageStream:
        """Return the growing set of the peer's training images; the same one whenever it is asked for.

        Raises
        ------
        DataError
            When it is empty.
        """
        if peer not in self._streams:
            owners = range(self.n) if self.pooled else [peer]
            parts = [self._stream_part(owner) for owner in owners]
            whose = "the pooled" if self.pooled else f"peer {peer}'s"
            self._streams[peer] = ImageStream(parts, self.classes, whose)
        return self._streams[peer]

    def _stream_part(self, peer: int) -> StreamPart:
        path = self.config.dataset.removeprefix("folder:").replace("{peer}", str(peer))
        every = np.arange(len(self.classes))
        if not self.config.sited:
            every = np.flatnonzero(class_owners(self.partition_spec, self.n, len(every)) == peer)
        return StreamPart(Path(path).expanduser() / "train", every)

    def data(self, peer: int) -> PeerData:
        """Say what ``peer`` holds."""
        labels = np.unique(self.dataset.train.labels[self.partition[peer]])
        return PeerData(len(self.partition[peer]), tuple(self.dataset.classes[c] for c in labels))
