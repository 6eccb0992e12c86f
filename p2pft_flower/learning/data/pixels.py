"""Pictures of decoded images, made in this place alone: upright, opaque, 8 bits, grey or RGB.

The model gets the picture that a viewer shows. Samples of more than 8 bits, with signs or fractions become
grey levels by a range: the values that are black and white. The run-config gives the range (``pixel-range``),
else the file declares it and :mod:`p2pft_flower.learning.data.survey` has confirmed it. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps, TiffImagePlugin

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.decoding import decode_stream, orientation
from p2pft_flower.learning.data.samples import Form, Samples, samples_of
from p2pft_flower.learning.data.tiff_files import declared

__all__ = ["VERSION", "Pixels", "Range", "Source", "as_source", "grey_levels"]

VERSION = 3
"""Number that grows whenever a change of code turns some image into another picture: stored outputs are
then stale."""

Range: TypeAlias = tuple[float, float]
"""The sample values that are black and white."""

Source: TypeAlias = "Image.Image | npt.NDArray[Any] | Samples"
"""An image as a reader returns it."""

_WHITE = 255

_ROUNDING = 1e-3
"""Largest excess of alpha beyond transparent or opaque, as a share of their difference."""


@dataclass(frozen=True)
class Pixels:
    """The conversion of one site's images to pictures.

    Attributes
    ----------
    window : (float, float) or None
        The values that stand for black and for white in all deep samples; None: ``ranges`` gives them.
    ranges : mapping of Form to (float, float)
        The values that stand for black and for white in deep samples, by the samples' form.
    opacities : mapping of Form to (float, float)
        The values of alpha that stand for transparent and for opaque in deep samples, by the samples' form.
    dicom : (float, float) or None
        The values that stand for black and for white in deep grey DICOM samples, in the modality's units;
        None: ``window``, else the file's own window, else ``ranges``.
    """

    window: Range | None = None
    ranges: Mapping[Form, Range] = field(default_factory=dict)
    opacities: Mapping[Form, Range] = field(default_factory=dict)
    dicom: Range | None = None

    def picture(self, source: Source) -> Image.Image:
        """Return the picture as a viewer shows it: upright, on white, mode ``L`` or ``RGB``.

        Parameters
        ----------
        source : PIL image, (H, W) or (H, W, 1..4) array, or Samples
            Unsigned samples of at most 8 bits are grey levels; others become grey levels by their range.

        Raises
        ------
        ValueError
            When ``source`` is no image, a sample is not finite, or the black and white samples are unknown.
        OSError, SyntaxError, Image.DecompressionBombError
            When an opened file is broken.
        """
        source = as_source(source)
        if isinstance(source, Samples):
            if not np.isfinite(source.values).all():
                raise ValueError("a sample is NaN or infinite")
            opacity = None if source.alpha is None else self.opacity_of(source.form)
            if source.own_window is not None and self.chosen(source.form) is None:
                levels = _own_levels(source, source.own_window(source.values))
            else:
                levels = grey_levels(source, self.range_of(source.form), opacity)
            return _upright(Image.fromarray(levels), source.orientation)
        # Before the conversions, which lose the tag.
        turned = orientation(source)
        return _upright(_opaque(source), turned)

    def range_of(self, form: Form) -> Range:
        """Return the values that stand for black and for white in samples of this ``form``.

        Raises
        ------
        DataError
            When the values are unknown.
        """
        if form.kind == "unsigned" and form.bits <= 8:
            return 0.0, float(form.white or 255)
        if (chosen := self.chosen(form)) is not None:
            return chosen
        if form in self.ranges:
            return self.ranges[form]
        raise DataError(
            f"{form} samples, and nothing says which are black and white: set pixel-range = LOW:HIGH"
        )

    def chosen(self, form: Form) -> Range | None:
        """Return the range that a setting gives for deep samples of this ``form``; None: none does."""
        if form.kind == "unsigned" and form.bits <= 8:
            return None
        return self.dicom if form.of_dicom and self.dicom is not None else self.window

    def opacity_of(self, form: Form) -> Range:
        """Return the values of alpha that stand for transparent and for opaque in samples of this ``form``.

        Raises
        ------
        DataError
            When the values are unknown.
        """
        if form.kind == "unsigned" and form.bits <= 8:
            return 0.0, float(form.white or 255)
        if form in self.opacities:
            return self.opacities[form]
        raise DataError(f"{form} samples with alpha, and nothing says which is opaque: write it with 8 bits")

    @property
    def key(self) -> bytes:
        """Bytes that identify the conversion from an image's content to a picture."""
        ranges = sorted((repr(form), black_white) for form, black_white in self.ranges.items())
        opacities = sorted((repr(form), alpha) for form, alpha in self.opacities.items())
        dicom = "" if self.dicom is None else f"dicom {self.dicom} "
        return f"pixels {VERSION} {self.window} {ranges} {opacities} {dicom}".encode()


def as_source(source: object) -> Image.Image | Samples:
    """Return ``source`` as an image or as samples; a file that Pillow has only opened is decoded here.

    Raises
    ------
    ValueError
        When ``source`` is no image, or a broken one.
    OSError, SyntaxError, Image.DecompressionBombError
        When an opened file is broken.
    """
    if isinstance(source, Samples):
        return source
    if isinstance(source, np.ndarray):
        if isinstance(source, np.ma.MaskedArray):
            raise DataError("a masked array has no values behind its mask; image.filled(VALUE) gives them")
        return samples_of(source)
    if not isinstance(source, Image.Image):
        raise DataError(f"a {type(source).__name__} is no image; give a PIL image or an (H, W, C) array")
    if isinstance(source, ImageFile.ImageFile):
        if source.tile and source.fp is not None:
            # Not loaded yet, so unchanged; Pillow by itself would drop bits and signs.
            at = source.fp.tell()
            try:
                return decode_stream(source.fp, source.tell())  # Pillow has checked its size
            finally:
                source.fp.seek(at)  # from which Pillow reads on if the image's owner uses it
        if (
            isinstance(source, TiffImagePlugin.TiffImageFile)
            and (form := declared(source.tag_v2)) is not None
        ):
            raise ValueError(
                f"{form} samples that Pillow has loaded, which cuts, clips or inverts them: give the image "
                "before it is loaded, or an array"
            )
    source.load()
    if source.mode.startswith("I") or source.mode == "F":
        array = np.asarray(source)
        made = samples_of(array if source.mode != "I" else array.astype(np.int32))
        return Samples(made.values, made.form, orientation=orientation(source))
    return source


def grey_levels(samples: Samples, black_white: Range, opacity: Range | None = None) -> npt.NDArray[np.uint8]:
    """Return levels, (H, W) or (H, W, 3) uint8: round(255 (v − black) / (white − black)), clipped to 0..255.

    Parameters
    ----------
    samples : Samples
        The image; if it has alpha, it is laid on white.
    black_white : (float, float)
        The sample values that are black and white.
    opacity : (float, float), optional
        The values of alpha that are transparent and opaque; needed if there is alpha.

    Raises
    ------
    ValueError
        When alpha lies outside ``opacity``, or there is alpha without ``opacity``.
    """
    values = samples.values.astype(np.float64)
    if samples.alpha is None:
        return _rounded(_shares(samples, values, black_white))
    if opacity is None:
        raise ValueError("nothing says which alpha is opaque")
    transparent, opaque = opacity
    alpha = (samples.alpha.astype(np.float64) - transparent) / (opaque - transparent)
    if not np.isfinite(alpha).all() or alpha.min() < -_ROUNDING or alpha.max() > 1.0 + _ROUNDING:
        raise ValueError(
            f"alpha of {samples.alpha.min():g} to {samples.alpha.max():g}, where {transparent:g} is "
            f"transparent and {opaque:g} is opaque"
        )
    alpha = np.clip(alpha, 0.0, 1.0)
    alpha = alpha[..., None] if values.ndim == 3 else alpha
    if samples.premultiplied:
        values = np.divide(values, alpha, out=np.zeros_like(values), where=alpha > 0)
    return _rounded(_shares(samples, values, black_white) * alpha + 1.0 - alpha)


def _own_levels(samples: Samples, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Return levels of the brightness that a file's own window gives."""
    shares = np.clip(shares, 0.0, 1.0)
    return _rounded(1.0 - shares if samples.zero_is_white else shares)


def _shares(samples: Samples, values: npt.NDArray[np.float64], black_white: Range) -> npt.NDArray[np.float64]:
    """Return the brightness of opaque samples, 0..1."""
    black, white = black_white
    shares: npt.NDArray[np.float64] = np.clip((values - black) / (white - black), 0.0, 1.0)
    return 1.0 - shares if samples.zero_is_white else shares


def _rounded(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    return np.rint(shares * _WHITE).astype(np.uint8)


def _opaque(image: Image.Image) -> Image.Image:
    """Lay an image of at most 8 bits on white, and return it as ``L`` or ``RGB``."""
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (_WHITE,) * 4), image)
    elif image.mode == "LAB":
        image = _from_lab(image)
    return image.convert("L" if grey else "RGB")


def _from_lab(image: Image.Image) -> Image.Image:
    """Return CIELAB (D50) as sRGB; Pillow's own conversion lacks it."""
    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    # Exactly, not through a table of colours.
    exact = ImageCms.Flags.NOOPTIMIZE
    shown = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB", flags=exact)
    if shown is None:  # None only if the function changes the image in place
        raise ValueError("CIELAB was not converted")
    return shown


def _upright(image: Image.Image, turned: int) -> Image.Image:
    if turned == 1:
        return image
    image.getexif()[ExifTags.Base.Orientation] = turned
    return ImageOps.exif_transpose(image)
