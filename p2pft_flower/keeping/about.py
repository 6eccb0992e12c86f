"""What a checkpoint says of the run that wrote it: what must be alike where another one goes on."""

from __future__ import annotations

import msgspec

from p2pft_flower.facts import GraphName, KnownImages
from p2pft_flower.typed import Number, PeerNumber, Positive, Settings, Share

__all__ = ["About", "PeerAbout", "ServerAbout"]


class About(msgspec.Struct, frozen=True, kw_only=True, tag_field="of", forbid_unknown_fields=True):
    """What peers and the server of a strategy say alike.

    Attributes
    ----------
    config : dict
        The run-config by its keys.
    iterations : int
        Length of the run.
    model_digest : str
        Of the frozen weights and θ^0.
    partition : str
        With ``auto`` resolved; empty where nothing was told.
    versions : dict of str to str
        Package to version.
    """

    config: Settings
    iterations: Positive
    model_digest: str
    partition: str
    versions: dict[str, str]


class PeerAbout(About, frozen=True, kw_only=True, tag="peer"):
    """What a peer says.

    Attributes
    ----------
    evaluate_every, checkpoint_every : int
        Iterations between two evaluations, and between two checkpoints.
    graph : GraphName or None
        The run's; None where nothing was told.
    loss_weight : float
        Factor of the peer's loss.
    known : KnownImages or None
        Its images; None where nothing was told.
    row, column : dict of int to float
        Its weights a_ij of what it receives, its shares b_ji of what it sends.
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
    """What the server of a strategy says.

    Attributes
    ----------
    steps : int
        Local iterations of a round.
    known : dict of int to KnownImages
        Each peer's images.
    """

    steps: Positive
    known: dict[PeerNumber, KnownImages]
