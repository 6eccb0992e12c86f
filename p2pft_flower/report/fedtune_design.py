"""FedTune's comparison as data: the sources, the factors, and the cells that are run.

Source: "FedTune: A Deep Dive into Efficient Federated Fine-Tuning with Pre-trained Transformers" (2022).
Its comparison has four factors beside the source: the way of tuning, the split of the images among the peers,
the number of images a class, and the method. Two of them vary at a time around a base cell; see
:meth:`Design.cells`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from p2pft_flower.errors import ConfigError

__all__ = [
    "ALONE",
    "CLAIMS",
    "METHODS",
    "SOURCES",
    "Cell",
    "Design",
    "read_shots",
    "shots_name",
]

SOURCES = ("vision", "vision-language")
"""The two kinds of pre-trained models."""

METHODS = {"p2pft": "P2P-FT", "fedavg": "FedAvg", "local": "Local-FT", "centralized": "centralised"}
"""The methods, and their names for people."""

ALONE = "local"

CLAIMS = (
    "Tuning the biases of the backbone does best if the pre-trained model is strong",
    "The vision-language model does better than the vision model, and stands few images better",
    "Learning together does better than learning alone, which over-fits",
)
"""The three findings of FedTune's abstract; the base method is the way of learning together."""


class Cell(NamedTuple):
    """One cell of the comparison: everything but the seed.

    Attributes
    ----------
    source : str
        One of :data:`SOURCES`.
    tune : str
        The way of tuning: the run-config's ``tune``, or ``text`` for a head that begins with text embeddings.
    split : str
        The run-config's ``partition``; ``disjoint``: each class belongs to one peer.
    shots : int
        Training images a class; 0: all.
    method : str
        A key of :data:`METHODS`.
    """

    source: str
    tune: str
    split: str
    shots: int
    method: str


@dataclass(frozen=True)
class Design:
    """The factors and their values; the first value of each is that of the base cell.

    Attributes
    ----------
    tunes : mapping of str to tuple of str
        The ways of tuning of each source.
    splits : tuple of str
        The splits.
    shots : tuple of int
        Numbers of training images a class; 0: all.
    methods : tuple of str
        The methods.
    seeds : tuple of int
        The seeds of each cell.
    """

    tunes: Mapping[str, tuple[str, ...]]
    splits: tuple[str, ...]
    shots: tuple[int, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]

    def base(self, source: str) -> Cell:
        """Return the base cell of a source."""
        return Cell(source, self.tunes[source][0], self.splits[0], self.shots[0], self.methods[0])

    def cells(self, source: str) -> list[Cell]:
        """Return the cells of a source, way by way, without repetition.

        They are four planes through the base cell: ways × splits and ways × shots with the base method, and
        methods × splits and methods × shots with the base way.
        """
        base = self.base(source)
        lines = [
            base._replace(split=split, shots=shots)
            for split in self.splits
            for shots in self.shots
            if split == base.split or shots == base.shots
        ]
        found = []
        for tune in self.tunes[source]:
            methods = self.methods if tune == base.tune else self.methods[:1]
            found += [cell._replace(tune=tune, method=method) for cell in lines for method in methods]
        return found


def read_shots(words: Sequence[str]) -> tuple[int, ...]:
    """Return numbers of images a class, 0 for ``all``.

    Raises
    ------
    ConfigError
        When a word is neither ``all`` nor a whole number >= 1.
    """
    if not all(word == "all" or (word.isdecimal() and int(word) > 0) for word in words):
        raise ConfigError(f"--shots {','.join(words)!r}: give all, or whole numbers >= 1, as all,16,4,1")
    return tuple(0 if word == "all" else int(word) for word in words)


def shots_name(shots: int) -> str:
    """Return a number of images a class for people; 0 is ``all``."""
    return str(shots) if shots else "all"
