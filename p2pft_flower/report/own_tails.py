"""Tails of a ``problem`` of the user's own, read back and scored by that problem; needs no torch itself."""

from __future__ import annotations

from pathlib import Path

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import DataError
from p2pft_flower.host.own_problem import PROBLEM_TAIL, Plugged
from p2pft_flower.host.problem import Score

__all__ = ["is_own_tail", "score_own_tail", "tail_metadata"]


def tail_metadata(file: Path) -> dict[str, str]:
    """Return the metadata of a tail; empty if the file cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            return dict(opened.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def is_own_tail(file: Path) -> bool:
    """Tell whether a tail is of a problem of the user's own."""
    return tail_metadata(file).get("schema") == PROBLEM_TAIL


def score_own_tail(file: Path, data_dir: str | None = None) -> tuple[dict[str, str], Score]:
    """Build the problem that a tail was trained on, and score the tail as its peer did.

    Parameters
    ----------
    file : Path
        The tail, for which :func:`is_own_tail` holds.
    data_dir : str, optional
        Folder of the data, in place of the run's ``data-dir``.

    Returns
    -------
    metadata : dict of str to str
        The file's own metadata.
    score : Score
        The score of its peer's objective.

    Raises
    ------
    ConfigError
        When the problem cannot be built here, or cannot read a tail back.
    DataError
        When the file's metadata is damaged, or the file is of a model with another digest.
    """
    from safetensors.numpy import load_file

    metadata = tail_metadata(file)
    try:
        peer, n = int(metadata["peer"]), int(metadata["n"])
        config = LearningConfig(
            problem=metadata["problem"],
            batch_size=int(metadata["batch-size"]),
            seed=int(metadata["seed"]),
            data_dir=metadata["data-dir"] if data_dir is None else data_dir,
        )
        digest = metadata["model-digest"]
    except (KeyError, ValueError) as error:
        raise DataError(f"{file}: its metadata is damaged ({type(error).__name__}: {error})") from error
    config.check_problem()
    problem = Plugged(config, n, (peer,))
    if problem.model_digest != digest:
        raise DataError(
            f"{file}: it was trained on a model with digest {digest}, problem = {config.problem!r} has "
            f"{problem.model_digest} here: its scores would mean nothing"
        )
    theta = problem.theta_from(load_file(file), str(file))
    return metadata, problem.objectives([peer])[peer].evaluate(theta)
