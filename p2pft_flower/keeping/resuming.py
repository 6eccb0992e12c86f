"""Where a run can go on from: what peers have kept of it, the newest iteration of all, what must be alike."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from p2pft_flower.config import config_keys
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.keeping.checkpoints import checkpoint_files, checkpoint_folder, read_checkpoint
from p2pft_flower.plan import PRIVATE_KEYS

__all__ = [
    "DIGESTS",
    "FREE_KEYS",
    "KNOWN_BY",
    "Kept",
    "KeptView",
    "config_differences",
    "data_differences",
    "given_up",
    "look_through",
    "newest_common",
    "place_differences",
    "refuse",
    "without_paths",
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

DIGESTS = ("train_digest", "test_digest")
"""By what a peer's images are known again, in its checkpoints and in the ``run`` line of its log."""

KNOWN_BY = (*DIGESTS, "pixel_range")
"""The same, and which samples are black and white in them, which a site may decide for itself."""

SHOWN = 12
"""Differences that are shown; the others are counted."""

log = logging.getLogger("p2pft_flower")


@dataclass(frozen=True)
class KeptView:
    """What one peer has kept of one view.

    Attributes
    ----------
    live : tuple of int
        The peers of that view, ascending.
    about : dict
        What the newest checkpoint in it says must be alike.
    digests : dict of int to str
        Of each checkpoint in good state, by iteration, ascending.
    """

    live: tuple[int, ...]
    about: dict[str, Any]
    digests: dict[int, str]


@dataclass(frozen=True)
class Kept:
    """What one peer has kept of a run.

    Attributes
    ----------
    peer : int
        The peer.
    run : str
        The run's id; empty where nothing is kept.
    views : dict of int to KeptView
        By the number of the view, ascending.
    """

    peer: int
    run: str
    views: dict[int, KeptView]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Kept:
        """Read what :func:`dataclasses.asdict` of another machine's says, after a message."""
        views = {
            int(v): KeptView(
                tuple(one["live"]), dict(one["about"]), {int(k): str(d) for k, d in one["digests"].items()}
            )
            for v, one in told["views"].items()
        }
        return cls(int(told["peer"]), str(told["run"]), views)

    @property
    def digests(self) -> dict[int, str]:
        """Of each checkpoint in good state, by iteration, ascending."""
        return dict(sorted((k, d) for one in self.views.values() for k, d in one.digests.items()))

    @property
    def newest(self) -> KeptView:
        """The view of the newest checkpoint."""
        return self.views[max(self.views)]

    def among(self, peers: Collection[int]) -> KeptView | None:
        """Return the newest view of exactly ``peers``; None where there is none."""
        return next(
            (one for _, one in sorted(self.views.items(), reverse=True) if set(one.live) == set(peers)), None
        )


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
    views: dict[int, KeptView] = {}
    for path in reversed(checkpoint_files(checkpoint_folder(output_dir, peer)).values()):
        try:
            found, digest = read_checkpoint(path, run)
        except DataError as error:
            log.warning("left out, and the one before is looked at: %s", error)
            continue
        run = found.run
        newer = views.get(found.view, KeptView(found.live, found.about, {}))
        views[found.view] = replace(newer, digests={found.iteration: digest, **newer.digests})
    return Kept(peer, run or "", dict(sorted(views.items())))


def newest_common(kept: Sequence[Kept], *, exchanges: bool) -> tuple[int, dict[int, int]]:
    """Return the view from which the peers go on, and the iteration of each.

    Checkpoints of one iteration belong together only where they are of one view: after a change of view the
    method has begun again.

    Parameters
    ----------
    kept : sequence of Kept
        Of all peers that are to go on.
    exchanges : bool
        Whether peers exchange anything: then it is the newest iteration that all have, in a view of exactly
        these peers; else each one's newest.

    Raises
    ------
    DataError
        When there is none; says what each peer has.
    """
    peers = {one.peer for one in kept}
    if exchanges:
        common = set.intersection(
            *(
                {
                    (v, k)
                    for v, in_view in one.views.items()
                    if set(in_view.live) == peers
                    for k in in_view.digests
                }
                for one in kept
            )
        )
        if common:
            view, iteration = max(common)
            return view, dict.fromkeys(sorted(peers), iteration)
    elif all(one.views for one in kept):
        return 0, {one.peer: max(one.digests) for one in kept}
    has = "; ".join(
        f"peer {one.peer}: {', '.join(_of_view(*item) for item in one.views.items()) or 'none'}"
        for one in sorted(kept, key=_number)
    )
    raise DataError(
        "there is no iteration of which all peers have a checkpoint in good state, so the run cannot be "
        f"resumed; the peers have those of iterations: {has}"
    )


def given_up(kept: Sequence[Kept], view: int) -> list[str]:
    """Return, ascending, what was done in later views than ``view``, the one from which the run goes on."""
    later: dict[int, KeptView] = {}
    last: dict[int, int] = {}
    for one in kept:
        for number, in_view in one.views.items():
            if number > view:
                later[number] = in_view
                last[number] = max(last.get(number, 0), *in_view.digests)
    return [f"view {v} of the peers {list(later[v].live)}, up to iteration {last[v]}" for v in sorted(later)]


def _of_view(number: int, view: KeptView) -> str:
    """Tell a view's iterations; also the view, where it is not the first."""
    iterations = ", ".join(map(str, view.digests))
    return iterations if number == 0 else f"{iterations} (view {number}, peers {list(view.live)})"


def _number(kept: Kept) -> int:
    return kept.peer


def config_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return, key by key, where the run-config now differs in what θ depends on.

    A key that the earlier run's version did not know counts with its default. Whether data at another path is
    the same is for :func:`data_differences` to say.
    """
    earlier = {**config_keys(), **before}
    alike = without_paths(earlier), without_paths(now)
    return [
        f"{key}: {_value(earlier[key])} in the checkpoint, {_value(now.get(key))} now"
        for key in sorted(earlier.keys() | now.keys())
        if key not in FREE_KEYS and alike[0].get(key) != alike[1].get(key)
    ]


def without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run-config without what may be at another path on another machine, or another day.

    Parameters
    ----------
    config : mapping
        Keys and values.

    Returns
    -------
    dict
        Of a dataset in folders it has left only whether each peer has one.
    """
    left = {key: value for key, value in config.items() if key not in PRIVATE_KEYS}
    if str(left.get("dataset", "")).startswith("folder:"):
        left["dataset"] = "folder:{peer}" if "{peer}" in left["dataset"] else "folder:"
    return left


def data_differences(
    peer: int, about: Mapping[str, Any], now: Mapping[str, Any], config: Mapping[str, Any]
) -> list[str]:
    """Return where a peer's images are other ones than those of its checkpoint.

    Parameters
    ----------
    peer : int
        The peer.
    about : mapping
        Of its checkpoint.
    now : mapping
        ``images`` and :data:`KNOWN_BY` of what it holds now.
    config : mapping
        The run-config now.
    """
    found = []
    growing = bool(config.get("stream"))
    if about["images"] != now["images"] and not growing:
        found.append(
            f"peer {peer}'s training images: {about['images']} in the checkpoint, {now['images']} now"
        )
    for key, what in zip(DIGESTS, ("training", "test"), strict=True):
        before = about.get(key)
        if before and now.get(key) and before != now[key] and not (found and key == DIGESTS[0]):
            found.append(
                f"peer {peer}'s {what} images: other labels, file names, sizes or contents than in the "
                "checkpoint, or another order"
            )
    ranges = [one.get("pixel_range") for one in (about, now)]
    same_key = about["config"].get("pixel-range") == config.get("pixel-range")  # else that is told already
    if all(ranges) and ranges[0] != ranges[1] and same_key:
        found.append(f"peer {peer}'s pixel-range: {ranges[0]} in the checkpoint, {ranges[1]} now")
    names = [str(one.get("dataset", "")) for one in (about["config"], config)]
    moved = names[0] != names[1] and all(name.startswith("folder:") for name in names)
    if moved and not about.get("test_digest"):
        found.append(
            f"dataset: {names[0]} in the checkpoint, {names[1]} now; the checkpoint does not say by what its "
            "images are known again (it is of an earlier version)"
        )
    return found


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
