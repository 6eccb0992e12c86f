"""Facts in a checkpoint of the run that wrote it, which must be alike if another run goes on from it."""

from __future__ import annotations

import msgspec

from p2pft_flower.facts import GraphName, KnownImages
from p2pft_flower.typed import Number, PeerNumber, Positive, Settings, Share

__all__ = ["About", "PeerAbout", "ServerAbout"]


class About(msgspec.Struct, frozen=True, kw_only=True, tag_field="of", forbid_unknown_fields=True):
    """Facts in the checkpoints of peers and of a strategy's server alike.

    Attributes
    ----------
    config : dict
        The run-config by its keys.
    iterations : int
        Number of iterations of the run.
    model_digest : str
        Digest of the frozen weights and θ^0.
    partition : str
        The run-config's ``partition`` with ``auto`` resolved; empty if it is not known.
    versions : dict of str to str
        Each package's version.
    """

    config: Settings
    iterations: Positive
    model_digest: str
    partition: str
    versions: dict[str, str]


class PeerAbout(About, frozen=True, kw_only=True, tag="peer"):
    """Facts in a peer's checkpoint.

    Attributes
    ----------
    evaluate_every, checkpoint_every : int
        Number of iterations between two evaluations, and between two checkpoints.
    graph : GraphName or None
        The run's graph; None if it is not known.
    loss_weight : float
        Factor of the peer's loss among the peers of the view.
    known : KnownImages or None
        The peer's images; None if they are not known.
    row, column : dict of int to float
        The peer's weights a_ij of the vectors that it receives, and its shares b_ji of those that it sends.
    whole : bool
        Whether the view has all peers and links of the run.
    """

    evaluate_every: Positive
    checkpoint_every: Number
    graph: GraphName | None
    loss_weight: Share
    known: KnownImages | None
    row: dict[PeerNumber, Share]
    column: dict[PeerNumber, Share]
    whole: bool


class ServerAbout(About, frozen=True, kw_only=True, tag="server"):
    """Facts in the checkpoint of a strategy's server.

    Attributes
    ----------
    steps : int
        Number of local iterations of a round.
    known : dict of int to KnownImages
        Each peer's images.
    """

    steps: Positive
    known: dict[PeerNumber, KnownImages]
