"""Where a run can go on from: what peers have kept of it, the newest iteration of all, what must be alike."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pft_flower.config import config_keys
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.runtime.checkpoints import checkpoint_files, checkpoint_folder, read_checkpoint
from p2pft_flower.runtime.plan import PRIVATE_KEYS

__all__ = [
    "FREE_KEYS",
    "Kept",
    "config_differences",
    "look_through",
    "newest_common",
    "place_differences",
    "refuse",
]

FREE_KEYS = frozenset(
    {
        *PRIVATE_KEYS,
        "checkpoint-every",
        "checkpoints-kept",
        "evaluate-every",
        "extend",
        "meet-timeout",
        "hang-timeout",
        "min-peers",
        "observer-address",
        "on-failure",
        "peer-timeout",
        "preflight-only",
        "rejoin-deadline",
        "resume",
        "run-timeout",
        "transport",
        # These are compared by what comes of them: edges and weights, and the length.
        "topology",
        "epochs",
        "iterations",
    }
)
"""Run-config keys that may differ where a run goes on: θ does not depend on them."""

SHOWN = 12
"""Differences that are shown; the others are counted."""

log = logging.getLogger("p2pft_flower")


@dataclass(frozen=True)
class Kept:
    """What one peer has kept of a run.

    Attributes
    ----------
    peer : int
        The peer.
    run : str
        The run's id; empty where nothing is kept.
    digests : dict of int to str
        Of each checkpoint in good state, by iteration, ascending.
    about : dict
        What the newest of them says must be alike.
    live : tuple of int
        The peers of the run when it was written, ascending.
    """

    peer: int
    run: str
    digests: dict[int, str]
    about: dict[str, Any]
    live: tuple[int, ...]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Kept:
        """Read what ``vars`` of another machine's says, after a message."""
        digests = {int(k): str(v) for k, v in told["digests"].items()}
        return cls(int(told["peer"]), str(told["run"]), digests, dict(told["about"]), tuple(told["live"]))


def look_through(output_dir: Path, peer: int, run: str | None = None) -> Kept:
    """Read all checkpoints of ``peer`` in a run's folder.

    What is torn, altered or foreign is left out, with a warning that names the file.

    Parameters
    ----------
    output_dir : Path
        The run's folder.
    peer : int
        The peer.
    run : str, optional
        The run's id, where it is known.

    Raises
    ------
    DataError
        When the folder cannot be read.
    """
    kept = Kept(peer, run or "", {}, {}, ())
    for path in reversed(checkpoint_files(checkpoint_folder(output_dir, peer)).values()):
        try:
            found, digest = read_checkpoint(path, kept.run or None)
        except DataError as error:
            log.warning("left out, and the one before is looked at: %s", error)
            continue
        newest = kept if kept.digests else Kept(peer, found.run, {}, found.about, found.live)
        kept = Kept(peer, newest.run, {found.iteration: digest, **newest.digests}, newest.about, newest.live)
    return kept


def newest_common(kept: Sequence[Kept], *, exchanges: bool) -> dict[int, int]:
    """Return the iteration from which each peer goes on.

    Parameters
    ----------
    kept : sequence of Kept
        Of all peers of the run.
    exchanges : bool
        Whether peers exchange anything: then it is the newest iteration that all have; else each one's.

    Raises
    ------
    DataError
        When there is none; says what each peer has.
    """
    common = set.intersection(*(set(one.digests) for one in kept))
    if exchanges and common:
        return dict.fromkeys((one.peer for one in kept), max(common))
    if not exchanges and all(one.digests for one in kept):
        return {one.peer: max(one.digests) for one in kept}
    has = "; ".join(
        f"peer {one.peer}: {', '.join(map(str, one.digests)) or 'none'}" for one in sorted(kept, key=_number)
    )
    raise DataError(
        "there is no iteration of which all peers have a checkpoint in good state, so the run cannot be "
        f"resumed; the peers have those of iterations: {has}"
    )


def _number(kept: Kept) -> int:
    return kept.peer


def config_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return, key by key, where the run-config now differs in what θ depends on.

    A key that the earlier run's version did not know counts with its default.
    """
    earlier = {**config_keys(), **before}
    return [
        f"{key}: {_value(earlier[key])} in the checkpoint, {_value(now.get(key))} now"
        for key in sorted(earlier.keys() | now.keys())
        if key not in FREE_KEYS and earlier[key] != now.get(key)
    ]


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value) or "(empty)"


def place_differences(
    peer: int,
    about: Mapping[str, Any],
    row: Mapping[int, float],
    column: Mapping[int, float],
) -> list[str]:
    """Return where a peer's place in the graph differs.

    Parameters
    ----------
    peer : int
        The peer.
    about : mapping
        Of its checkpoint, with ``row`` and ``column``.
    row, column : mapping of int to float
        As they are now: weights a_ij of what it receives, shares b_ji of what it sends.
    """
    found = []
    for name, kept, here in (("row", about["row"], row), ("column", about["column"], column)):
        earlier = {int(j): float(w) for j, w in kept.items()}
        for j in sorted(earlier.keys() | here.keys()):
            was, is_ = earlier.get(j), here.get(j)
            if was != is_:
                edge = f"{j} -> {peer}" if name == "row" else f"{peer} -> {j}"
                what = "weight" if name == "row" else "share"
                found.append(
                    f"edge {edge}: {what} {'none' if was is None else f'{was:g}'} in the checkpoint, "
                    f"{'none' if is_ is None else f'{is_:g}'} now"
                )
    return found


def refuse(run: str, differences: Sequence[str]) -> None:
    """Raise what keeps ``run`` from being resumed, if there is anything.

    Raises
    ------
    ConfigError
        With every difference, up to :data:`SHOWN`.
    """
    if differences:
        shown = list(dict.fromkeys(differences))
        more = f"; and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
        raise ConfigError(f"run {run} cannot be resumed like this: {'; '.join(shown[:SHOWN])}{more}")
