"""Whether the images that tails are to be scored on are here, known without torch."""

from __future__ import annotations

import contextlib
from pathlib import Path

from safetensors import SafetensorError, safe_open

from p2pft_flower.learning.data.dataset_names import (
    check_dataset_name,
    reads_data_dir,
    refuse_data_dir,
    require_data,
)
from p2pft_flower.plugins import check_reference, is_reference

__all__ = ["require_scored_data"]


def require_scored_data(file: Path, dataset: str | None, data_dir: str | None) -> None:
    """Refuse a dataset or its folder, where one was given, that is unknown or not on this machine.

    Of a folder for each peer nothing is said.

    Parameters
    ----------
    file : Path
        A tail; says which dataset it was trained on.
    dataset, data_dir : str or None
        In place of those that the tail names; None: its own.

    Raises
    ------
    ConfigError, DataError
        Naming what is unknown or missing.
    """
    if dataset is None and data_dir is None:
        return
    told: dict[str, str] = {}
    with contextlib.suppress(OSError, SafetensorError), safe_open(file, framework="numpy") as opened:
        told = opened.metadata() or {}  # what cannot be read is refused where the tail is loaded
    name = dataset or told.get("dataset", "")
    if not name:
        return
    check_dataset_name(name)
    own = told.get("data-dir", "") if reads_data_dir(name) else ""
    place = own if data_dir is None else data_dir
    refuse_data_dir(name, place)
    require_data(name, place, download=told.get("download") == "True", peers=())
    if is_reference(name) and not name.startswith("folder:"):
        check_reference(name, key="dataset")
