"""Runs of several methods on the same problem, read back to be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.report.results import FILE, read_results

if TYPE_CHECKING:
    from p2pft_flower.learning.tails import Tail

__all__ = ["POOLED", "MethodRun", "load_run_tails", "read_runs"]

POOLED = "centralized"

FREE = frozenset(
    {
        "algorithm",
        "strategy-options",
        "local-epochs",
        "topology",
        "name",
        "output-dir",
        "transport",
        "threads",
        "evaluate-every",
        "meet-timeout",
        "peer-timeout",
        "hang-timeout",
        "on-failure",
        "rejoin-deadline",
        "run-timeout",
        "device",
        "cache",
        "download",
        "verify",
        "tensorboard",
        "predictions",
        "callbacks",
    }
)
"""Run-config keys in which runs of the same problem and the same training may differ."""


@dataclass(frozen=True)
class MethodRun:
    """A completed run's folder and results."""

    folder: Path
    results: dict[str, Any]

    @property
    def algorithm(self) -> str:
        """The run-config's ``algorithm``."""
        return str(self.results["algorithm"])

    @property
    def peers(self) -> list[dict[str, Any]]:
        """The entries ``peers`` of results.json; a pooled run has one."""
        return list(self.results["peers"])


def read_runs(paths: Sequence[Path]) -> list[MethodRun]:
    """Return runs that differ in the method only.

    Parameters
    ----------
    paths : sequence of Path
        Folders of runs, or folders that hold folders of runs, whose completed runs count.

    Returns
    -------
    list of MethodRun
        The runs in the paper's order: local, then the others, then centralized.

    Raises
    ------
    ConfigError, DataError
        When a folder holds no completed run, two runs are of one method, all are centralized, or runs differ
        in the problem, or in a setting that is not in :data:`FREE`; the message names the difference.
    """
    order = {"local": 0, POOLED: 2}
    runs = sorted((r for path in paths for r in _read(path)), key=lambda r: order.get(r.algorithm, 1))
    names = [run.algorithm for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two runs of {twice} were given: a method has one column, give one run of each")
    for run in runs[1:]:
        _check_same(runs[0], run)
    peers = [run for run in runs if run.algorithm != POOLED]
    if not peers:
        raise ConfigError(f"only {POOLED} was given: add a run with peers, as local or p2pft")
    for run in peers[1:]:
        if [p["classes"] for p in run.peers] != [p["classes"] for p in peers[0].peers]:
            raise ConfigError(f"the peers of {peers[0].folder} and of {run.folder} hold different classes")
    return runs


def _read(path: Path) -> list[MethodRun]:
    below = sorted(path.glob(f"*/{FILE}"))
    if (path / FILE).exists() or not below:
        run = MethodRun(path, read_results(path))
        if run.results["status"] != "completed":
            raise DataError(f"{path}: this run {run.results['status']}: {run.results['error']}")
        return [run]
    runs = [MethodRun(file.parent, read_results(file.parent)) for file in below]
    for run in runs:
        if run.results["status"] != "completed":
            typer.echo(f"left out: {run.folder} {run.results['status']}: {run.results['error']}", err=True)
    done = [run for run in runs if run.results["status"] == "completed"]
    if not done:
        raise DataError(f"{path}: none of the runs in it completed")
    return done


def _check_same(first: MethodRun, other: MethodRun) -> None:
    for key in first.results["config"]:
        if key in FREE:
            continue
        # The run-config may have partition = auto; the results also have its meaning.
        one, two = (
            (r.results if key == "partition" else r.results["config"]).get(key) for r in (first, other)
        )
        if one != two:
            raise ConfigError(
                f"{first.folder} has {key} = {one!r}, {other.folder} has {two!r}: "
                "only runs that differ in nothing but the method can be compared"
            )


def load_run_tails(runs: Sequence[MethodRun], peer: int | None) -> list[list[Tail]]:
    """Return the tails of each run, in the order of ``runs``.

    Parameters
    ----------
    runs : sequence of MethodRun
        The runs, from :func:`read_runs`.
    peer : int or None
        The peer whose tail is loaded, which every run must have; None: all peers. Of a pooled run, the one
        tail is loaded in any case.

    Raises
    ------
    ConfigError, DataError
        When a tail cannot be used, the test images here are not those of the run, or the runs started from
        different weights.
    """
    from p2pft_flower.learning.tails import load_tails

    files = []
    for run in runs:
        chosen = run.peers
        if peer is not None and run.algorithm != POOLED:
            chosen = [run.peers[peer]]
        files.append([run.folder / p["tail"] for p in chosen])
    loaded = iter(load_tails(file for group in files for file in group))
    tails = [[next(loaded) for _ in group] for group in files]
    for tail in (tail for group in tails for tail in group):
        tail.require_same_images()
    start = tails[0][0]
    for group in tails[1:]:
        one, two = (tail.metadata["model-digest"] for tail in (start, group[0]))
        if one != two:
            raise ConfigError(
                f"{start.file} was trained from weights with digest {one[:12]}…, {group[0].file} from "
                f"{two[:12]}…: only runs from the same weights can be compared"
            )
    return tails
