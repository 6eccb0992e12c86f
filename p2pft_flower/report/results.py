"""results.json: what a run leaves behind for people and scripts; docs/results-schema.md has its schema."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from p2pft_flower.errors import DataError
from p2pft_flower.resources import home
from p2pft_flower.runtime.journal import finite

__all__ = [
    "FILE",
    "SCHEMA",
    "default_output_dir",
    "holds_a_run",
    "read_results",
    "summary",
    "write_json",
    "write_results",
]

SCHEMA = "p2pft.results/1"
FILE = "results.json"


def default_output_dir(run: str) -> Path:
    """Return where a run's results go when ``output-dir`` is not set."""
    return home() / "runs" / run


def summary(values: Sequence[float | None]) -> dict[str, float] | None:
    """Return mean, std, min and max of the numbers among ``values``; None if there are none."""
    numbers = np.array([v for v in values if v is not None], dtype=np.float64)
    if not len(numbers):
        return None
    return {
        "mean": float(numbers.mean()),
        "std": float(numbers.std()),
        "min": float(numbers.min()),
        "max": float(numbers.max()),
    }


def write_results(folder: Path, results: dict[str, Any]) -> Path:
    """Write ``results.json`` into ``folder`` in one piece and return its path.

    Numbers that are not finite (a loss that diverged) become null: JSON has no NaN.
    """
    return write_json(folder / FILE, results)


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Write ``content`` to ``path`` in one piece, its folder too if need be, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(finite(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)  # noqa: PTH105 - a reader sees the whole file or none
    return path


def holds_a_run(folder: Path) -> bool:
    """Tell whether ``folder`` has results, or what an interrupted run left: nothing is mixed with it."""
    return (folder / FILE).exists() or (folder / "peers").exists()


def read_results(folder: Path) -> dict[str, Any]:
    """Read ``results.json`` from ``folder``.

    Raises
    ------
    DataError
        When it is not there, not JSON, or of another schema.
    """
    path = folder / FILE
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); is this a run's folder?") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if results.get("schema") != SCHEMA:
        raise DataError(f"{path}: schema {results.get('schema')!r}, this version reads {SCHEMA!r}")
    return results  # type: ignore[no-any-return]  # JSON
