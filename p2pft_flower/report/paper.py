"""The paper's experiments as data: Tables 1 to 4 and the settings that it states.

Source: "Learning the Unseen: Peer-to-Peer Fine-Tuning of Vision Transformers", section 3. Accuracies are in
percent, as printed there; a tuple has nodes 1 to 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["DATASETS", "STATED", "TABLES", "PaperDataset", "PaperTable"]

NODES = 4
"""Peers in the paper's tables, which calls them nodes 1 to 4."""

STATED: Mapping[str, object] = MappingProxyType(
    {
        "learning-rate": 1e-3,
        "epochs": 100,
        "iterations": 0,
        "tune": "last-block",
        "weights": "pretrained",
        "objective": "uniform",
        "schedule": "constant",
        "momentum": 0.0,
        "weight-decay": 0.0,
        "shots": 0,
        "augment": "none",
        "stream": False,
    }
)
"""Run-config values of the paper.

Learning rate, epochs, last block and pre-trained weights are stated in section 3. The objective is its
problem P, the mean over peers; that the steps are plain (no schedule, momentum or decay) is its Algorithm 1.
It mentions no augmentation, and its tables are of datasets that do not grow.
"""


@dataclass(frozen=True)
class PaperDataset:
    """One of the paper's datasets.

    Attributes
    ----------
    name : str
        The dataset's name in the tables.
    dataset : str
        The run-config's value.
    classes : int
        Number of classes.
    train, test : int
        Images of the full set as this package reads it. Flowers: torchvision's ``train`` and ``val``.
    partition : str
        Table 1 as a run-config value; classes count from 0, both ends belong to the range.
    note : str
        The sentence on a statement of Table 1 that cannot be followed; empty if there is none.
    """

    name: str
    dataset: str
    classes: int
    train: int
    test: int
    partition: str
    note: str = ""


DATASETS: Mapping[str, PaperDataset] = MappingProxyType(
    {
        "pets": PaperDataset("Pets", "oxford-iiit-pet", 37, 3_680, 3_669, "classes:0-4,5-19,20-29,30-36"),
        "flowers": PaperDataset(
            "Flowers", "oxford-flowers102", 102, 2_040, 6_149, "classes:0-19,20-39,40-79,80-101"
        ),
        "cifar10": PaperDataset(
            "CIFAR-10",
            "cifar10",
            10,
            50_000,
            10_000,
            "classes:0-1,2-3,4-6,7-9",
            note="Table 1 gives node 4 the classes 7-10; CIFAR-10's end at 9",
        ),
        "cifar100": PaperDataset(
            "CIFAR-100", "cifar100", 100, 50_000, 10_000, "classes:0-9,10-19,20-74,75-99"
        ),
    }
)
"""The paper's datasets by the short names that presets and ``p2pft reproduce`` use, in its order."""

Row = tuple[float, float, float, float]


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables of accuracies after fine-tuning for 100 epochs.

    Attributes
    ----------
    number : int
        Number of the table.
    architecture : str
        Name of the architecture in the caption, such as ``"ViT"``; the presets have it in lower case.
    model : str
        The timm model.
    local, p2pft : mapping
        Short name of a dataset ↦ accuracies of nodes 1 to 4, percent.
    """

    number: int
    architecture: str
    model: str
    local: Mapping[str, Row]
    p2pft: Mapping[str, Row]

    def figures(self, method: str, dataset: str) -> Row | None:
        """Return the paper's accuracies, percent, of one of our methods; None if the paper has none."""
        return {"local": self.local, "p2pft": self.p2pft}.get(method, {}).get(dataset)


TABLES: Mapping[str, PaperTable] = MappingProxyType(
    {
        "table2": PaperTable(
            2,
            "ViT",
            "vit_small_patch16_224",
            local={
                "pets": (13.80, 43.10, 23.88, 13.13),
                "flowers": (13.36, 15.65, 44.84, 25.98),
                "cifar10": (20.07, 19.88, 29.78, 29.94),
                "cifar100": (9.86, 9.81, 49.28, 24.07),
            },
            p2pft={
                "pets": (87.21, 87.28, 87.21, 87.21),
                "flowers": (99.80, 99.80, 99.80, 99.80),
                "cifar10": (97.44, 97.45, 97.44, 97.44),
                "cifar100": (87.40, 87.40, 87.44, 87.40),
            },
        ),
        "table3": PaperTable(
            3,
            "DeiT",
            "deit_small_patch16_224",
            local={
                "pets": (13.26, 42.96, 24.22, 13.06),
                "flowers": (13.36, 15.58, 44.63, 25.78),
                "cifar10": (19.88, 19.63, 29.45, 29.70),
                "cifar100": (9.70, 9.34, 45.96, 23.20),
            },
            p2pft={
                "pets": (86.40, 86.40, 86.40, 86.40),
                "flowers": (92.81, 92.98, 92.87, 92.84),
                "cifar10": (95.15, 95.12, 95.10, 95.11),
                "cifar100": (79.05, 79.04, 79.14, 79.03),
            },
        ),
        "table4": PaperTable(
            4,
            "Swin",
            "swin_small_patch4_window7_224.ms_in22k",
            local={
                "pets": (13.13, 43.37, 24.15, 12.79),
                "flowers": (13.36, 15.65, 44.90, 25.98),
                "cifar10": (19.98, 19.72, 29.72, 29.88),
                "cifar100": (9.86, 9.86, 48.79, 24.05),
            },
            p2pft={
                "pets": (86.81, 86.74, 86.60, 86.67),
                "flowers": (99.83, 99.83, 99.83, 99.83),
                "cifar10": (97.59, 97.65, 97.55, 97.59),
                "cifar100": (87.04, 86.99, 87.03, 87.02),
            },
        ),
    }
)
"""Tables 2, 3 and 4 by the names that ``p2pft reproduce`` takes."""
