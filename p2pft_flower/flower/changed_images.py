"""The peers' images compared with those of the run that is resumed, where the images are."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from p2pft_flower.errors import printable
from p2pft_flower.facts import ChangedData, ImageChanges, KnownImages
from p2pft_flower.flower.run import Run
from p2pft_flower.keeping.checkpoints import checkpoint_folder
from p2pft_flower.keeping.image_lists import ImageLists, difference, read_lists, write_lists
from p2pft_flower.keeping.resuming import image_differences
from p2pft_flower.learning.data.holdings import Holdings
from p2pft_flower.plan import Plan

__all__ = ["Changes", "accepted", "changes_of", "keep_lists"]

log = logging.getLogger("p2pft_flower")


@dataclass(frozen=True)
class Changes:
    """The changes of one peer's images, for its coordinator: numbers, and a few names.

    Attributes
    ----------
    told : dict of str to str
        The changes in words, by ``training`` and ``test``; without those that are not known.
    counts : ChangedData
        The numbers.
    """

    told: dict[str, str] = field(default_factory=dict)
    counts: ChangedData = field(default_factory=ChangedData)


def accepted(
    before: Mapping[int, KnownImages | None], run: Run, changes: Mapping[int, Changes] = MappingProxyType({})
) -> dict[int, ChangedData]:
    """Return the changes with which a run goes on, by the peers that have any, and warn of each.

    Parameters
    ----------
    before : mapping of int to KnownImages or None
        Each peer's images in its checkpoint.
    run : Run
        The run as it is now.
    changes : mapping of int to Changes
        What is known of the changes, by peer.
    """
    found = {}
    for peer, images in before.items():
        if images is None:
            continue
        differing = image_differences(images, run.about(peer).known, run.config.to_mapping())
        known = changes.get(peer, Changes())
        if differing:
            counts = {what: getattr(known.counts, what) or ImageChanges() for what in differing}
            found[peer] = ChangedData(**counts)
        for what, told in differing.items():
            log.warning(
                "data-changed = accept: peer %d goes on with other %s images: %s",
                peer,
                what,
                printable(known.told.get(what, told)),
            )
    return found


def keep_lists(plan: Plan, held: Holdings) -> None:
    """Write the lists of the images of the plan's peers beside their checkpoints, if there will be any."""
    if plan.checkpoint_every < 0:
        return
    for one in plan.peers:
        write_lists(checkpoint_folder(Path(plan.output_dir), one.peer), ImageLists(*held.listed(one.peer)))


def changes_of(peer: int, folder: Path, held: Holdings) -> Changes:
    """Return the changes of a peer's images since the run in ``folder``; empty if that has no lists."""
    before, now = read_lists(checkpoint_folder(folder, peer)), ImageLists(*held.listed(peer))
    if before is None:
        return Changes()
    told: dict[str, str] = {}
    counts: dict[str, ImageChanges] = {}
    for what in ("training", "test"):
        earlier, later = getattr(before, what), getattr(now, what)
        if earlier is None or later is None or earlier == later:
            continue
        found = difference(earlier, later)
        told[what], counts[what] = str(found), found.counts
    return Changes(told, ChangedData(**counts))
