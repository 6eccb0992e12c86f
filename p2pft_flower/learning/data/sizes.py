"""The largest images that are decoded: a small file can claim more pixels than the memory holds."""

from __future__ import annotations

from PIL import Image

__all__ = ["LARGEST", "TOO_LARGE", "allow", "check_size"]

_WARNED_OF = Image.MAX_IMAGE_PIXELS or 89_478_485
"""Pixels of an image of which Pillow warns."""

LARGEST = 2 * _WARNED_OF
"""The most pixels of an image unless ``max-megapixels`` is set: Pillow refuses more."""

TOO_LARGE = "max-megapixels allows more"
"""What to do with an image that has too many pixels."""


def allow(megapixels: float) -> int:
    """Return the most pixels of an image by ``max-megapixels``, and have Pillow open such images.

    Pillow's own limit holds for the whole process, so it is only ever raised; each image is held to the
    result by :func:`check_size`.
    """
    if not megapixels:
        return LARGEST
    most = round(megapixels * 1e6)
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or most, most)
    return most


def check_size(width: int, height: int, most: int | None) -> None:
    """Refuse an image of more pixels than ``most``, by default than any image of this process may have.

    Raises
    ------
    ValueError
        When the image has more; the message has its size, the limit and the key.
    """
    limit = most or max(LARGEST, Image.MAX_IMAGE_PIXELS or 0)
    if width * height > limit:
        raise ValueError(
            f"{width} × {height} pixels, {width * height / 1e6:.4g} megapixels, more than {limit / 1e6:.4g}: "
            f"{TOO_LARGE}"
        )
