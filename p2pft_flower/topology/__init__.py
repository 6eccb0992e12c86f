"""Directed weighted graphs of peers: from YAML, from a generator's name or from a matrix.

Index convention everywhere: ``W[i, j]`` is the weight that peer i gives to peer j's vector, so the
edge is j → i. ``A = W / row sums`` are the receivers' weights, ``B = W / column sums`` the senders' shares
(section 2.3 of the paper). Drawing is in :mod:`p2pft_flower.topology.draw`, which loads matplotlib.
"""

from __future__ import annotations

from p2pft_flower.topology.graph import Graph

__all__ = ["Graph"]
