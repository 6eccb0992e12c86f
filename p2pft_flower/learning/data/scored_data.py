"""A check, without torch, that the images on which tails are scored are on this machine."""

from __future__ import annotations

import contextlib
from pathlib import Path

from safetensors import SafetensorError, safe_open

from p2pft_flower.learning.data.dataset_names import (
    check_dataset_name,
    data_dir_of,
    is_users_own,
    refuse_data_dir,
    require_data,
)
from p2pft_flower.plugins import check_reference

__all__ = ["require_scored_data"]


def require_scored_data(file: Path, dataset: str | None, data_dir: str | None) -> None:
    """Refuse to score a tail on an unknown dataset, or on one whose folder is not on this machine.

    Nothing is checked if both ``dataset`` and ``data_dir`` are None; nor is a folder for each peer.

    Parameters
    ----------
    file : Path
        A tail, which names the dataset on which it was trained.
    dataset, data_dir : str or None
        Settings that replace those that the tail names; None: the tail's setting.

    Raises
    ------
    ConfigError, DataError
        When the dataset or its module is unknown or missing; the message names it.
    """
    if dataset is None and data_dir is None:
        return
    metadata: dict[str, str] = {}
    with contextlib.suppress(OSError, SafetensorError), safe_open(file, framework="numpy") as opened:
        metadata = opened.metadata() or {}  # loading the tail will refuse an unreadable file
    name = dataset or metadata.get("dataset", "")
    if not name:
        return
    check_dataset_name(name)
    place = data_dir
    if place is None:
        place = data_dir_of(name, metadata.get("dataset", ""), metadata.get("data-dir", ""))
    refuse_data_dir(name, place)
    require_data(name, place, download=metadata.get("download") == "True", peers=())
    if is_users_own(name):
        check_reference(name, key="dataset")
