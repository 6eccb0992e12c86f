"""A peer's share of the images, in numbers and digests, as it tells it to the coordinator."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PeerData"]


@dataclass(frozen=True)
class PeerData:
    """A peer's share of the images, in numbers only.

    Attributes
    ----------
    images : int
        Number of training images.
    classes : tuple of str
        Names of the classes of which the peer holds at least one training image.
    train_digest : str
        Digest of the training images; empty if they may change (``stream``), or if nothing may be revealed
        of them (``dp_clip``).
    test_digest : str
        Digest of the images on which the peer is scored.
    pixel_range : str
        The sample values that stand for black and for white, as the run-config or the site gives them.
    """

    images: int
    classes: tuple[str, ...]
    train_digest: str = ""
    test_digest: str = ""
    pixel_range: str = ""
