"""Checks of the learning settings that need neither torch, timm nor an image, and take less than a second."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.data.augmenting import check_augment
from p2pft_flower.learning.data.by_column import BY, resolve_by
from p2pft_flower.learning.data.dataset_names import (
    check_dataset_name,
    classes_of,
    columns_of,
    is_users_own,
    refuse_data_dir,
    require_data,
    several_labels_in,
)
from p2pft_flower.learning.data.label_arrays import check_several
from p2pft_flower.learning.data.partitions import check_partition
from p2pft_flower.learning.model.class_texts import check_prompts
from p2pft_flower.learning.model.devices import check_device
from p2pft_flower.learning.model.model_facts import require_class_texts
from p2pft_flower.learning.model.model_names import check_model_name, check_weights
from p2pft_flower.learning.model.model_sizes import check_sizes
from p2pft_flower.learning.model.text_embeddings import embeddings_for
from p2pft_flower.learning.model.tower_names import (
    check_tower_model,
    check_tower_name,
    require_tower_here,
)
from p2pft_flower.learning.model.tune_values import read_tune
from p2pft_flower.plugins import check_reference, is_reference

__all__ = [
    "check_learning",
    "check_privacy",
    "check_ranges",
    "no_accountant",
    "refuse_pooling",
    "require_accountant_here",
    "require_here",
]


def check_learning(config: LearningConfig, n: int, *, pooled: bool) -> None:
    """Refuse values that are wrong on every machine, by the same rules as the code that uses them.

    Parameters
    ----------
    config : LearningConfig
        The settings, each of which is valid by itself.
    n : int
        Number of peers.
    pooled : bool
        Whether one peer holds all images.

    Raises
    ------
    ConfigError
        When a value is wrong; the message names key, value and remedy.
    """
    if config.problem:
        config.check_problem()
        refuse_pooling(config, pooled=pooled)
        return
    config.check_data()
    check_dataset_name(config.dataset)
    _check_texts(config)
    if config.of_features:
        read_tune(config.tune)
    else:
        check_model_name(config.model)
        check_weights(config.model, config.weights, here=False)
        check_sizes(config.model, config.tune, config.image_size)
    check_ranges(config, n)
    refuse_data_dir(config.dataset, config.data_dir)
    check_partition(config.partition, n)
    check_augment(config.augment)
    check_privacy(config, pooled=pooled)


def _check_texts(config: LearningConfig) -> None:
    """Refuse settings of texts that are wrong on every machine."""
    told = {"text-tower": config.text_tower, "class-names": config.class_names}
    told["prompts"] = "" if config.prompts == LearningConfig.prompts else config.prompts
    beside = [f"{key} = {value!r}" for key, value in told.items() if value]
    if config.text_embeddings and beside:
        raise ConfigError(
            f"text-embeddings = {config.text_embeddings!r} with {', '.join(beside)}: the file holds the "
            "classes' embeddings, so nothing would read the others: leave them out; a file of one site alone "
            "belongs into its --node-config"
        )
    if config.head == "text" and not config.of_features:
        check_tower_model(config.model)
    if config.text_tower:
        check_tower_name(config.text_tower)
        check_prompts(config.prompts)


def _require_texts(config: LearningConfig) -> None:
    """Refuse a text tower that is not here, and texts that do not fit the classes, where these are known."""
    if config.text_tower and not config.text_embeddings:
        require_tower_here(config.text_tower)
    if config.head == "text":
        require_class_texts(config, classes_of(config.dataset) or ())


_OUR_OWN = ("classes:", "dirichlet:", "shards:", "by:")
"""Beginnings of partitions that only look like references to a module of the user's own."""


def require_here(config: LearningConfig, n: int, places: Sequence[Path] = ()) -> None:
    """Refuse settings whose files, modules or devices are missing on this machine, on which the peers run.

    Parameters
    ----------
    config : LearningConfig
        The settings, which have passed :func:`check_learning`.
    n : int
        Number of peers.
    places : sequence of Path
        Folders in which the peers' processes look for modules, beside those of ``sys.path``.

    Raises
    ------
    ConfigError, DataError
        When a file, module or device is missing; the message names key, value and the missing thing.
    """
    if config.problem:
        check_reference(config.problem, key="problem", beside=places)
        return
    if not config.of_features:
        check_weights(config.model, config.weights, here=True)
    check_device(config.device)
    require_data(config.dataset, config.data_dir, download=config.download, peers=range(n))
    if (several := several_labels_in(config.dataset, config.data_dir)) is not None:
        check_several(config, several=several)
    _require_texts(config)
    check_partition(config.partition, n, classes_of(config.dataset))
    columns = None if config.sited else columns_of(config.dataset)
    if columns is not None and config.partition.startswith(BY):
        resolve_by(config.partition, n, columns, warn=False)  # the peers' own look does
    if config.of_features:
        _require_features(config, n)
    for key, value in (("model", config.model), ("partition", config.partition)):
        if is_reference(value) and not value.startswith(_OUR_OWN):
            check_reference(value, key=key, beside=places)
    if is_users_own(config.dataset):
        check_reference(config.dataset, key="dataset", beside=places)
    require_accountant_here(config)


def _require_features(config: LearningConfig, n: int) -> None:
    """Read the files of features, and of text embeddings, which takes a moment."""
    from p2pft_flower.learning.data.datasets import load_dataset
    from p2pft_flower.learning.data.sites import load_sites

    data = load_sites(config.dataset, range(n)).dataset if config.sited else load_dataset(config.dataset)
    if config.text_embeddings:
        embeddings_for(config, data.classes, data.width)


def check_ranges(config: LearningConfig, n: int) -> None:
    """Refuse a number of pixel ranges other than one or the number of peers.

    Raises
    ------
    ConfigError
        When the number is neither; the message gives the number of ranges and the number of peers.
    """
    if len(config.pixel_ranges) not in (1, n):
        raise ConfigError(
            f"pixel-range = {config.pixel_range!r} has {len(config.pixel_ranges)} ranges for {n} peers: "
            "give one for all, or one a peer"
        )


def require_accountant_here(config: LearningConfig) -> None:
    """Refuse private gradients (``dp_clip`` > 0) on a machine without Opacus, which is not imported here.

    Raises
    ------
    ConfigError
        When Opacus is not installed; the message says how to install it.
    """
    if config.dp_clip and importlib.util.find_spec("opacus") is None:
        raise no_accountant("No module named 'opacus'")


def refuse_pooling(config: LearningConfig, *, pooled: bool) -> None:
    """Refuse to pool the data of a ``problem`` of the user's own, which hands out one objective a peer.

    Raises
    ------
    ConfigError
        When one peer is to hold all data.
    """
    if pooled:
        raise ConfigError(
            f"problem = {config.problem!r} with algorithm = centralized: it has one objective a peer, and "
            "none of all data together; choose another algorithm"
        )


def check_privacy(config: LearningConfig, *, pooled: bool) -> None:
    """Refuse differential privacy for one peer that holds all images.

    Raises
    ------
    ConfigError
        When one peer is to hold all images.
    """
    if config.dp_clip and pooled:
        raise ConfigError(
            f"dp-clip = {config.dp_clip} with algorithm = centralized: the peer that pools all "
            "images sees them; choose another algorithm, or dp-clip = 0"
        )


def no_accountant(why: object) -> ConfigError:
    """Return the error that Opacus, whose accountant computes ε, cannot be used, for the reason ``why``."""
    return ConfigError(
        f"dp-clip > 0: Opacus, which computes ε, cannot be used here ({why}); run "
        "pip install 'opacus>=1.5,<2' (in a clone of the repository: pip install -e '.[dp]')"
    )
