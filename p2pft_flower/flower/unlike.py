"""Sites that read the same pictures differently, found by simple statistics of some images of each."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

__all__ = ["unlike"]

MEAN = 0.25
"""Difference of two sites' mean grey, black 0 and white 1, above which their pictures are unlike."""

SHARE = 0.25
"""Difference of two sites' shares of black, or of white, pixels, above which their pictures are unlike."""

DEVIATION = 2.5
"""Factor between the standard deviations of two sites' pixels, above which their pictures are unlike."""


def unlike(statistics: Mapping[int, Mapping[str, Any]]) -> str | None:
    """Return a warning that names the two peers whose pictures differ most; None if no two peers' differ.

    The two are those with the most kinds of difference. The warning has the statistics of every peer.
    Pictures of different classes differ too, so the warning asks people to look at both sites; it is not an
    error.

    Parameters
    ----------
    statistics : mapping of int to mapping
        Fields of :class:`~p2pft_flower.learning.data.survey.Statistics`, by peer.
    """
    pairs = [
        (i, j, differences)
        for i, j in combinations(sorted(statistics), 2)
        if (differences := _differences(statistics[i], statistics[j]))
    ]
    if not pairs:
        return None
    i, j, differences = max(pairs, key=lambda pair: len(pair[2]))
    numbers = "; ".join(
        f"peer {p}: mean {s['mean']:.2f}, deviation {s['deviation']:.2f}, black {100 * s['black']:.0f} %, "
        f"white {100 * s['white']:.0f} % ({s['images']} images)"
        for p, s in sorted(statistics.items())
    )
    return (
        f"the pictures of peers {i} and {j} differ in {', '.join(differences)}, as if one site read them "
        f"inverted or in another range (pixel-range), or had images of another kind: {numbers}"
    )


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    found = []
    if abs(one["mean"] - other["mean"]) > MEAN:
        found.append("mean")
    low, high = sorted((one["deviation"], other["deviation"]))
    if high > DEVIATION * low:
        found.append("deviation")
    shares = [share for share in ("black", "white") if abs(one[share] - other[share]) > SHARE]
    return [*found, *(f"share of {share} pixels" for share in shares)]
