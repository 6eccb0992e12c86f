"""The point from which a run can go on: peers' checkpoints, their newest common iteration, differences."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

from msgspec import structs

from p2pft_flower.config import config_keys
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.facts import KnownImages
from p2pft_flower.keeping.about import PeerAbout, ServerAbout
from p2pft_flower.keeping.checkpoints import Checkpoint, checkpoint_files, checkpoint_folder, read_checkpoint
from p2pft_flower.plan import PRIVATE_KEYS
from p2pft_flower.typed import Count, Settings

__all__ = [
    "FREE_KEYS",
    "Kept",
    "KeptView",
    "accepts_changes",
    "config_differences",
    "data_differences",
    "given_up",
    "image_differences",
    "look_through",
    "newest_common",
    "place_differences",
    "refuse",
    "without_paths",
]

FREE_KEYS = frozenset(
    {
        *PRIVATE_KEYS,
        "callbacks",
        "checkpoint-every",
        "checkpoints-kept",
        "data-changed",
        "evaluate-every",
        "extend",
        "meet-timeout",
        "hang-timeout",
        "min-peers",
        "name",
        "observer-address",
        "on-failure",
        "peer-timeout",
        "predictions",
        "preflight-only",
        "rejoin-deadline",
        "resume",
        "run-timeout",
        "tensorboard",
        "transport",
        # These are compared by their results: edges and weights, and the length.
        "topology",
        "epochs",
        "iterations",
    }
)
"""Run-config keys that may differ when a run goes on: θ does not depend on them."""

PLACES = ("folder", "table", "features")
"""Beginnings of a ``dataset`` that is a path: the same data may lie elsewhere when a run goes on."""

SHOWN = 12
"""The most differences that an error shows; the others are counted."""

log = logging.getLogger("p2pft_flower")


@dataclass(frozen=True)
class KeptView:
    """One peer's checkpoints of one view.

    Attributes
    ----------
    live : tuple of int
        The peers of the view, ascending.
    about : PeerAbout or ServerAbout
        The facts in the newest of these checkpoints, which must be alike if a run goes on.
    digests : dict of int to str
        Digest of each checkpoint in good state, by iteration, ascending.
    """

    live: tuple[int, ...]
    about: PeerAbout | ServerAbout
    digests: dict[Count, str]

    @property
    def of_peer(self) -> PeerAbout:
        """The facts ``about`` of a peer, which must not be those of a strategy's server.

        Raises
        ------
        DataError
            If ``about`` is of a strategy's server.
        """
        if isinstance(self.about, ServerAbout):
            raise DataError("a checkpoint of the server of a strategy is none of a peer's")
        return self.about


@dataclass(frozen=True)
class Kept:
    """One peer's checkpoints of a run.

    Attributes
    ----------
    peer : int
        The peer.
    run : str
        The run's id; empty if nothing is kept and no run was asked for.
    views : dict of int to KeptView
        The checkpoints of each view, by the view's number, ascending.
    """

    peer: int
    run: str
    views: dict[Count, KeptView]

    @property
    def digests(self) -> dict[int, str]:
        """Digest of each checkpoint in good state, by iteration, ascending."""
        return dict(sorted((k, d) for one in self.views.values() for k, d in one.digests.items()))

    @property
    def newest(self) -> KeptView:
        """The checkpoints of the newest view; there must be one."""
        return self.views[max(self.views)]

    def among(self, peers: Collection[int]) -> KeptView | None:
        """Return the checkpoints of the newest view whose peers are exactly ``peers``; None without one."""
        return next(
            (one for _, one in sorted(self.views.items(), reverse=True) if set(one.live) == set(peers)), None
        )


def look_through(output_dir: Path, peer: int, run: str | None = None, q: int | None = None) -> Kept:
    """Return all checkpoints of ``peer`` in a run's folder, after reading each of them.

    A file that is torn, altered or foreign is left out, with a warning that names the file.

    Parameters
    ----------
    output_dir : Path
        The run's folder.
    peer : int
        The peer.
    run : str, optional
        The run's id. Default: the run with the most files or, among runs with as many, with the newest file.
    q : int, optional
        The length of θ, if it is known.

    Raises
    ------
    DataError
        If the folder cannot be read.
    """
    found: list[tuple[Checkpoint, str]] = []  # the newest first
    for path in reversed(checkpoint_files(checkpoint_folder(output_dir, peer)).values()):
        try:
            one, digest = read_checkpoint(path, run, q)
        except DataError as error:
            log.warning("left out, and the one before is looked at: %s", error)
            continue
        found.append((structs.replace(one, state={}, memories={}), digest))
    files = Counter(one.run for one, _ in found)
    own = max(files, key=files.__getitem__, default=run or "")
    views: dict[int, KeptView] = {}
    for one, digest in found:
        if one.run != own:
            log.warning(
                "peer %d: its checkpoint of iteration %d is left out: it is of run %s, and others of run %s",
                *(peer, one.iteration, one.run, own),
            )
            continue
        newer = views.get(one.view, KeptView(one.live, one.about, {}))
        views[one.view] = replace(newer, digests={one.iteration: digest, **newer.digests})
    return Kept(peer, own, dict(sorted(views.items())))


def newest_common(kept: Sequence[Kept], *, exchanges: bool) -> tuple[int, dict[int, int]]:
    """Return the view from which the peers go on, and the iteration of each.

    Checkpoints of one iteration belong together only if they are of one view: after a change of view the
    method has begun again.

    Parameters
    ----------
    kept : sequence of Kept
        The checkpoints of all peers that are to go on.
    exchanges : bool
        Whether peers exchange anything. If so, all go on from the newest view of exactly these peers of which
        they have a common iteration, and from the newest such iteration; if not, each goes on from its newest
        iteration, in view 0.

    Returns
    -------
    tuple of int and dict of int to int
        The view's number, and the iteration by peer.

    Raises
    ------
    DataError
        If there is no such iteration; the message lists the iterations that each peer has.
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
        for one in sorted(kept, key=attrgetter("peer"))
    )
    raise DataError(
        "there is no iteration of which all peers have a checkpoint in good state, so the run cannot be "
        f"resumed; the peers have those of iterations: {has}"
    )


def given_up(kept: Sequence[Kept], view: int) -> list[str]:
    """Return a text on each view after ``view``, from which the run goes on: its iterations are given up."""
    last: dict[tuple[int, tuple[int, ...]], int] = {}
    for number, one in ((number, one) for peer in kept for number, one in peer.views.items()):
        if number > view:
            last[number, one.live] = max(last.get((number, one.live), 0), *one.digests)
    return [
        f"view {v} of the peers {list(live)}, up to iteration {k}" for (v, live), k in sorted(last.items())
    ]


def _of_view(number: int, view: KeptView) -> str:
    """Return a text on a view's iterations, and on the view if it is not the first."""
    iterations = ", ".join(map(str, view.digests))
    return iterations if number == 0 else f"{iterations} (view {number}, peers {list(view.live)})"


def config_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a text for each key of the run-config on which θ depends and whose value differs.

    A key that the earlier run's version did not know counts with its default. Paths are left out:
    :func:`data_differences` compares data at another path.
    """
    earlier = {**config_keys(), **before}
    alike = without_paths(earlier), without_paths(now)
    return [
        f"{key}: {_value(earlier[key])} in the checkpoint, {_value(now.get(key))} now"
        for key in sorted(earlier.keys() | now.keys())
        if key not in FREE_KEYS and alike[0].get(key) != alike[1].get(key)
    ]


def without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run-config without paths, which may differ on another machine or another day.

    Parameters
    ----------
    config : mapping
        The run-config's keys and values.

    Returns
    -------
    dict
        The keys and values that are left; of files and folders of texts whether they are set; ``dataset =
        "folder:…"``, ``"table:…"`` or ``"features:…"`` only tells whether each peer has one of its own.
    """
    left = {key: value for key, value in config.items() if key not in PRIVATE_KEYS}
    kind, colon, place = str(left.get("dataset", "")).partition(":")
    if kind in PLACES:
        left["dataset"] = kind + colon + ("{peer}" if "{peer}" in place else "")
    for key in ("text-embeddings", "class-names"):  # the model's digest knows what the file holds
        if key in left:
            left[key] = bool(left[key])
    if str(left.get("text-tower", "")).startswith("local-dir:"):
        left["text-tower"] = "local-dir:"
    if str(left.get("prompts", "")).startswith("/"):
        left["prompts"] = "/"
    return left


def image_differences(before: KnownImages, now: KnownImages, config: Settings) -> dict[str, str]:
    """Return what differs between a peer's images and those of its checkpoint, by ``training`` and ``test``.

    Parameters
    ----------
    before, now : KnownImages
        The images that the checkpoint names, and those that the peer holds.
    config : dict
        The run-config with which the run is to be resumed.
    """
    found = {}
    if before.images != now.images and not config.get("stream"):
        found["training"] = f"{before.images} in the checkpoint, {now.images} now"
    digests = (
        ("training", before.train_digest, now.train_digest),
        ("test", before.test_digest, now.test_digest),
    )
    for what, was, is_ in digests:
        if was and is_ and was != is_:
            found.setdefault(
                what,
                "other labels, file names, sizes or contents than in the checkpoint, or another order",
            )
    return found


def accepts_changes(config: Settings, what: str) -> bool:
    """Return whether a run goes on with other ``training`` or ``test`` images.

    If gradients are private, ε counts on the same ones. With ``keep = best:…`` others would be held out of
    other training images: θ, which has learned some of them, would be chosen by these.
    """
    if config.get("data-changed") != "accept" or config.get("dp-clip"):
        return False
    return what != "training" or not _keeps_best(config)


def _keeps_best(config: Settings) -> bool:
    return str(config.get("keep", "")).startswith("best:")


def _remedy(config: Settings, what: str) -> str:
    """Return what to do, or why nothing can be done, if a peer's images are other ones."""
    if config.get("dp-clip"):
        return "with private gradients a run goes on with the same images only"
    if what == "training" and _keeps_best(config):
        return (
            "with keep = best:… a run goes on with the same training images only: others would be held out, "
            "among them some that θ has learned"
        )
    return "data-changed = accept goes on with those of now"


def data_differences(
    peer: int,
    before: KnownImages | None,
    now: KnownImages,
    earlier: Settings,
    config: Settings,
    details: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """Return texts on the differences of a peer's images from those of its checkpoint, but accepted ones.

    Parameters
    ----------
    peer : int
        The peer.
    before : KnownImages or None
        The images that the checkpoint names; None if it names none.
    now : KnownImages
        The images that the peer holds when the run is to be resumed.
    earlier, config : dict
        The run-config of the checkpoint, and that with which the run is to be resumed.
    details : mapping of str to str
        What is known beside of the changes of the ``training`` and ``test`` images.

    Returns
    -------
    list of str
        One text for each difference; empty if there is none.
    """
    if before is None:
        return [f"peer {peer}'s images: the checkpoint does not say by what they are known again"]
    found = []
    for what, told in image_differences(before, now, config).items():
        if not accepts_changes(config, what):
            more = f": {details[what]}" if what in details else ""
            found.append(f"peer {peer}'s {what} images: {told}{more} ({_remedy(config, what)})")
    ranges = (before.pixel_range, now.pixel_range)
    same_key = earlier.get("pixel-range") == config.get("pixel-range")  # else reported already
    if all(ranges) and ranges[0] != ranges[1] and same_key:
        found.append(f"peer {peer}'s pixel-range: {ranges[0]} in the checkpoint, {ranges[1]} now")
    names = [str(one.get("dataset", "")) for one in (earlier, config)]
    moved = names[0] != names[1] and all(name.partition(":")[0] in PLACES for name in names)
    if moved and not before.test_digest:
        found.append(
            f"dataset: {names[0]} in the checkpoint, {names[1]} now; the checkpoint does not say by what its "
            "images are known again"
        )
    return found


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value) or "(empty)"


def place_differences(
    peer: int,
    about: PeerAbout,
    row: Mapping[int, float],
    column: Mapping[int, float],
) -> list[str]:
    """Return texts on the differences of a peer's neighbours and weights from those of its checkpoint.

    Parameters
    ----------
    peer : int
        The peer.
    about : PeerAbout
        The facts in the peer's checkpoint.
    row, column : mapping of int to float
        The peer's present weights a_ij of the vectors that it receives, and its present shares b_ji of those
        that it sends.

    Returns
    -------
    list of str
        One text for each difference; empty if there is none.
    """
    found = []
    for what, edge, earlier, here in (
        ("weight", f"{{}} -> {peer}", about.row, row),
        ("share", f"{peer} -> {{}}", about.column, column),
    ):
        for j in sorted(earlier.keys() | here.keys()):
            if earlier.get(j) != here.get(j):
                was, is_ = (f"{told[j]:g}" if j in told else "none" for told in (earlier, here))
                found.append(f"edge {edge.format(j)}: {what} {was} in the checkpoint, {is_} now")
    return found


def refuse(run: str, differences: Sequence[str]) -> None:
    """Raise an error if ``differences`` stand against resuming ``run``.

    Raises
    ------
    ConfigError
        If there are differences; the message lists them, up to :data:`SHOWN`.
    """
    if differences:
        shown = list(dict.fromkeys(differences))
        more = f"; and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
        raise ConfigError(f"run {run} cannot be resumed like this: {'; '.join(shown[:SHOWN])}{more}")
