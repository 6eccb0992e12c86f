"""TIFF pages that Pillow would cut, misread or not open: read by tifffile, in the file's own numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from p2pft_flower.learning.data.samples import Form, Kind, Look, Samples, form_of, samples_of
from p2pft_flower.learning.data.sizes import check_size

__all__ = ["MAGIC", "declared", "decode_tiff", "look_at_tiff"]

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""The beginnings of TIFF files."""

_KINDS: dict[int, Kind] = {1: "unsigned", 2: "signed", 3: "float"}
"""Kinds of number by TIFF's SampleFormat."""

_ZERO_IS_WHITE, _ZERO_IS_BLACK, _RGB, _PALETTE, _CMYK = 0, 1, 2, 3, 5

_Found = TypeVar("_Found")


def look_at_tiff(
    stream: IO[bytes], number: int = 0, *, refused: bool = False, most: int | None = None
) -> Look | None:
    """Return the description of page ``number`` by the page's head; None if Pillow should read the page.

    Parameters
    ----------
    stream : binary file
        The TIFF.
    number : int
        The page's number, from 0.
    refused : bool
        Whether Pillow has refused the page; the result is then never None.
    most : int, optional
        The most pixels of a page (:func:`~p2pft_flower.learning.data.sizes.check_size`).

    Raises
    ------
    ValueError, OSError
        When the page is broken, no picture, or too large.
    """

    def read(page: tifffile.TiffPage, more: bool) -> Look | None:
        check_size(page.imagewidth, page.imagelength, most)
        if not (_ours(page) or refused):
            return None
        turned = page.tags.valueof(274, 1) in range(2, 9)
        return Look(_deep(page), turned, bool({1, 2} & set(page.extrasamples)), more)

    return _page(stream, number, read)


def decode_tiff(
    stream: IO[bytes], number: int = 0, *, refused: bool = False, most: int | None = None
) -> Image.Image | Samples | None:
    """Decode page ``number``, with the parameters of :func:`look_at_tiff`; None if Pillow should read it.

    Raises
    ------
    ValueError, OSError
        When the page is broken, no picture, or too large.
    """

    def read(page: tifffile.TiffPage, _: bool) -> Image.Image | Samples | None:
        check_size(page.imagewidth, page.imagelength, most)
        return _decode(page) if _ours(page) or refused else None

    return _page(stream, number, read)


def declared(tags: Any) -> Form | None:
    """Return the form of deep samples by a page's tags, as Pillow reads them; None if no sample is deep."""
    kind = _KINDS.get(int(np.max(tags.get(339, 1))))
    bits = int(np.max(tags.get(258, 1)))
    if kind is None or (kind == "unsigned" and bits <= 8):
        return None
    return form_of("TIFF", kind, bits)


def _page(stream: IO[bytes], number: int, read: Callable[[tifffile.TiffPage, bool], _Found]) -> _Found:
    """Call ``read`` with a page and whether there are several; tifffile's errors become ValueErrors."""
    stream.seek(0)
    try:
        with tifffile.TiffFile(stream) as opened:
            pages = opened.pages
            page = pages.first if number == 0 else pages[number]
            if not isinstance(page, tifffile.TiffPage):
                page = page.aspage()
            return read(page, len(pages) > 1)
    except (OSError, ValueError):
        raise
    except Exception as error:  # tifffile raises its own errors, and others on broken numbers
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _kind(page: tifffile.TiffPage) -> Kind:
    kind = _KINDS.get(int(page.sampleformat or 1))
    if kind is None:
        raise ValueError(f"samples of TIFF's format {page.sampleformat}, which are no real numbers")
    return kind


def _deep(page: tifffile.TiffPage) -> Form | None:
    """Return the form of a page's samples that need a range; None for levels or palette indices."""
    kind = _KINDS.get(int(page.sampleformat or 1))
    if (kind == "unsigned" and page.bitspersample <= 8) or int(page.photometric) in (_PALETTE, _CMYK):
        return None
    return form_of("TIFF", _kind(page), page.bitspersample)


def _ours(page: tifffile.TiffPage) -> bool:
    """Return whether Pillow would not show a page as it is."""
    photometric = int(page.photometric)
    kind = _KINDS.get(int(page.sampleformat or 1))
    deep = kind != "unsigned" or page.bitspersample > 8
    if photometric in (_ZERO_IS_WHITE, _ZERO_IS_BLACK):
        return deep or page.samplesperpixel > 1
    if photometric == _PALETTE:
        return deep or _coarse(page)
    return deep and photometric in (_RGB, _CMYK)  # Pillow reads or refuses the others


def _coarse(page: tifffile.TiffPage) -> bool:
    """Return whether a palette's colours have 8 bits, not 16, as libtiff decides: many writers give 8."""
    return page.colormap is not None and int(page.colormap.max()) < 256


def _decode(page: tifffile.TiffPage) -> Image.Image | Samples:
    photometric, kind = int(page.photometric), _kind(page)
    colours = {_ZERO_IS_WHITE: 1, _ZERO_IS_BLACK: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4}.get(photometric)
    if colours is None:
        raise ValueError(
            f"{page.bitspersample}-bit samples in TIFF's colours {page.photometric!s}, compressed by "
            f"{page.compression!s}, which nothing here reads"
        )
    extra = [int(e) for e in page.extrasamples]
    channels = page.samplesperpixel
    alpha = next((i for i, e in enumerate(extra) if e in (1, 2)), None)
    if channels > colours and alpha is None and photometric != _RGB:
        raise ValueError(f"{channels} channels, and TIFF does not say which of them are colours or opacity")
    pixels = np.atleast_3d(_upright_axes(page))
    if pixels.shape[2] != channels or channels != colours + len(extra):
        raise ValueError(f"{pixels.shape[2]} channels of which {len(extra)} are extra, not {colours}")
    turned = int(page.tags.valueof(274, 1))
    form = form_of("TIFF", kind, page.bitspersample)
    if photometric == _PALETTE:
        return Samples(_looked_up(page, pixels[..., 0]), form_of("array", "unsigned", 8), orientation=turned)
    if photometric == _CMYK:
        return _of_inks(pixels[..., :4], form, turned)
    wanted = [*range(colours), *([] if alpha is None else [colours + alpha])]
    made = samples_of(pixels[..., wanted], form)
    return Samples(
        made.values,
        form,
        made.alpha,
        premultiplied=alpha is not None and extra[alpha] == 1,
        zero_is_white=photometric == _ZERO_IS_WHITE,
        orientation=turned,
    )


def _upright_axes(page: tifffile.TiffPage) -> npt.NDArray[Any]:
    pixels = page.asarray()
    if page.axes == "SYX":
        return np.moveaxis(pixels, 0, -1)
    if page.axes not in ("YX", "YXS"):
        raise ValueError(f"a TIFF page with the axes {page.axes}, not one picture")
    return pixels


def _looked_up(page: tifffile.TiffPage, indices: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the levels, (H, W, 3), of palette indices, (H, W)."""
    if page.colormap is None:
        raise ValueError("a palette without colours")
    colours = page.colormap.astype(np.float64) / (1 if _coarse(page) else 257)
    return np.rint(colours).astype(np.uint8)[:, indices].transpose(1, 2, 0)


def _of_inks(inks: npt.NDArray[Any], form: Form, turned: int) -> Image.Image:
    """Return CMYK samples, (H, W, 4), as an 8-bit CMYK image, which Pillow converts."""
    if form.white is None:
        raise ValueError(f"CMYK of {form} samples, and nothing says which of them is all ink")
    levels = np.rint(inks.astype(np.float64) * (255 / form.white)).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(levels), mode="CMYK")
    image.getexif()[274] = turned
    return image
