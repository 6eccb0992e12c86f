"""A check, before a start, of the folders that a run here writes to besides the folder of its results."""

from __future__ import annotations

from p2pft_flower.cli.connections import require_flower_home
from p2pft_flower.cli.flwr_run import temporary_folder
from p2pft_flower.config import LearningConfig
from p2pft_flower.keeping.folders import require_writable
from p2pft_flower.learning.store.cache import cache_folder
from p2pft_flower.resources import home_named

__all__ = ["require_cache", "require_places"]


def require_cache(learning: LearningConfig) -> None:
    """Refuse a cache that cannot be written to, if the settings use it.

    Raises
    ------
    ConfigError
        When its folder cannot be written to; the message names folder, environment variable and remedy.
    """
    if learning.cache and not learning.problem and learning.tune != "full":  # else there is no trunk
        remedy = "set P2PFT_HOME to a folder that can be written, or cache = false"
        require_writable(home_named(), cache_folder(), remedy)


def require_places(learning: LearningConfig) -> None:
    """Refuse to start if the cache, Flower's home or the folder for temporary files cannot be written to.

    Parameters
    ----------
    learning : LearningConfig
        The settings that decide whether the cache is used.

    Raises
    ------
    ConfigError
        When such a folder cannot be written to; the message names folder, environment variable and remedy.
    """
    require_cache(learning)
    require_flower_home()
    temporary_folder()
