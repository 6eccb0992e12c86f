"""Folders that runs on this machine write to beside their results, looked at before anything is started."""

from __future__ import annotations

from p2pft_flower.cli.connections import require_flower_home
from p2pft_flower.cli.flwr_run import temporary_folder
from p2pft_flower.config import LearningConfig
from p2pft_flower.keeping.folders import require_writable
from p2pft_flower.learning.store.cache import cache_folder
from p2pft_flower.resources import home_named

__all__ = ["require_places"]


def require_places(learning: LearningConfig) -> None:
    """Refuse a cache, a home of Flower or a folder for temporary files to which nothing can be written.

    Parameters
    ----------
    learning : LearningConfig
        Says whether anything is kept in the cache.

    Raises
    ------
    ConfigError
        Names the variable, the folder, and what to choose instead.
    """
    if learning.cache and not learning.problem and learning.tune != "full":  # then there is no trunk
        remedy = "set P2PFT_HOME to a folder that can be written, or cache = false"
        require_writable(home_named(), cache_folder(), remedy)
    require_flower_home()
    temporary_folder()
