"""``p2pft run --canary``: two iterations with everything that the whole run does, and what it will take."""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from p2pft_flower.algorithms.registry import gradients_per_step
from p2pft_flower.config import RunConfig
from p2pft_flower.errors import ConfigError
from p2pft_flower.flower.method import make_method
from p2pft_flower.flower.strategies import is_strategy
from p2pft_flower.keeping.checkpoints import checkpoint_folder
from p2pft_flower.keeping.folders import make_private
from p2pft_flower.keeping.progress import human_bytes
from p2pft_flower.plugins import is_reference
from p2pft_flower.report.status_text import span
from p2pft_flower.resources import home

__all__ = ["ITERATIONS", "NAME", "canary_values", "own_folder", "require_room", "verdict"]

ITERATIONS = 2
"""Iterations of a canary: in the second one, what the first one has sent is used."""

NAME = "canary"
"""The name of a canary's run where it keeps its files."""

_GREW = 2.0
"""Multiple of its first loss from which on a peer's loss is told to have grown."""


def canary_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a canary of the run with ``values``: some iterations, and all that it keeps.

    It has no ``output-dir``, so that the folder is free for the run itself.

    Raises
    ------
    ConfigError
        If ``values`` go on from an earlier run.
    """
    if values.get("resume") or values.get("extend"):
        raise ConfigError(
            "--canary tries a run from its beginning: it goes with neither --resume nor --extend"
        )
    few = {"iterations": ITERATIONS, "evaluate-every": ITERATIONS, "name": NAME, "output-dir": ""}
    if values.get("checkpoint-every", 0) != -1:
        few["checkpoint-every"] = ITERATIONS
    return {**values, **few}


@contextlib.contextmanager
def own_folder(values: Mapping[str, Any], chosen: str) -> Iterator[dict[str, Any]]:
    """Give a simulated canary a folder of its own for a ``with`` block, on the disk of the whole run's.

    Parameters
    ----------
    values : mapping
        The canary's settings.
    chosen : str
        The whole run's ``output-dir``, beside which the folder is made; empty: ``$P2PFT_HOME/canaries``.

    Yields
    ------
    dict
        The settings, with ``output-dir``. The folder is removed at the end, but kept if the block raises.
    """
    above = home() / "canaries"
    if chosen:
        above = Path(chosen).parent
        above.mkdir(parents=True, exist_ok=True)
    else:
        make_private(above)
    folder = Path(tempfile.mkdtemp(prefix="canary-", dir=above))
    yield {**values, "output-dir": str(folder)}
    shutil.rmtree(folder)
    if not chosen:
        with contextlib.suppress(OSError):  # another canary's is there
            above.rmdir()


def verdict(results: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """Return the sentences on a canary that went well: what the whole run will take, and what is odd.

    Parameters
    ----------
    results : mapping
        The content of the canary's results.json.
    values : mapping
        The settings of the whole run.
    """
    config, peers = RunConfig.from_mapping(values), results["peers"]
    seconds = [peer["seconds"] for peer in peers]
    step = max((s.get("gradient", 0.0) + s.get("exchange", 0.0)) / ITERATIONS for s in seconds)
    score = max(s.get("evaluation", 0.0) for s in seconds) / 2  # before training, and at the end
    graph = (results.get("graph") or {}).get("name", "")
    told = [
        f"the canary lives: {len(peers)} peer{'s' if len(peers) > 1 else ''} on {graph} trained, exchanged, "
        f"were evaluated and wrote their files; {results['seconds']:.0f} s in all"
    ]
    length = _length(config, results)
    if length is not None:
        iterations, every = length
        scored = math.ceil(iterations / every) + 1
        told.append(
            f"the whole run: {iterations} iterations and {scored} evaluations, at the pace of these two "
            f"iterations, the slowest of all ({step:.2g} s each, {score:.2g} s an evaluation), at most "
            f"{span(iterations * step + scored * score)}"
        )
        sent = max(peer["bytes_sent"] for peer in peers) / ITERATIONS * iterations
        if sent:
            told.append(f"a peer sends up to {human_bytes(round(sent))}")
    return told + _grown(results)


def _length(config: RunConfig, results: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the iterations of the whole run, and those between two evaluations; None if not known."""
    images = [peer["images"] for peer in results["peers"]]
    own = is_reference(config.method.algorithm) or is_strategy(config.method.algorithm)
    if own or not all(images):
        return None
    gradients = gradients_per_step(make_method(config.method))
    batches = math.ceil(sum(images) / len(images) / config.learning.batch_size)
    iterations = config.runtime.iterations or math.ceil(config.runtime.epochs * batches / gradients)
    return iterations, config.runtime.evaluate_every or math.ceil(batches / gradients)


def require_room(results: Mapping[str, Any], values: Mapping[str, Any], folder: Path) -> None:
    """Refuse a disk that is too small for the checkpoints of the whole run, by those of its canary.

    Parameters
    ----------
    results, values
        As for :func:`verdict`.
    folder : Path
        The canary's folder.

    Raises
    ------
    ConfigError
        If less room is free than they need; the message has both numbers and the remedy.
    """
    config = RunConfig.from_mapping(values)
    files = [
        file
        for peer in results["peers"]
        for file in checkpoint_folder(folder, peer["peer"]).glob("iteration-*.safetensors")
    ]
    # Each peer keeps so many, and writes the next one before it removes the oldest.
    largest = max((file.stat().st_size for file in files), default=0)
    need = largest * (config.runtime.checkpoints_kept + 1) * len(results["peers"])
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ConfigError(
            f"the whole run would fail: its checkpoints need {human_bytes(need)}, and {human_bytes(free)} "
            f"are free in {folder.parent}: make room, or set output-dir, checkpoints-kept = 1 or "
            "checkpoint-every = -1"
        )


def _grown(results: Mapping[str, Any]) -> list[str]:
    """Return a sentence on the peers whose loss has grown much in these few iterations."""
    first, last = results["history"][0]["loss"], results["history"][-1]["loss"]
    pairs = [(p, a, b) for p, (a, b) in enumerate(zip(first, last, strict=True)) if a and b]
    grown = [f"peer {p} from {a:.3g} to {b:.3g}" for p, a, b in pairs if b > _GREW * a]
    if not grown:
        return []
    return [f"note: the loss grew in these iterations ({', '.join(grown[:4])}): is learning-rate too high?"]
