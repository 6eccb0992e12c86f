"""Decoding of image files: 8-bit pictures by Pillow, deeper samples in the file's own numbers.

Pillow reduces deeper colours to eight bits, clips or scales when it converts, and ignores signs. So samples
of more than 8 bits, with signs or fractions are read by tifffile and imagecodecs, with the file's own values;
:mod:`p2pft_flower.learning.data.pixels` makes pictures of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data import deep_files, tiff_files
from p2pft_flower.learning.data.dicom_files import begins_as_dicom, decode_dicom, look_at_dicom
from p2pft_flower.learning.data.samples import Form, Look, Samples, form_of, samples_of
from p2pft_flower.learning.data.sizes import TOO_LARGE, check_size

__all__ = [
    "REMEDY",
    "UNREADABLE",
    "decode",
    "decode_stream",
    "formats",
    "look_at",
    "look_at_image",
    "look_at_stream",
    "orientation",
]

_PICTURES = (
    "AVIF",
    "BLP",
    "BMP",
    "DCX",
    "DDS",
    "DIB",
    "GIF",
    "ICNS",
    "ICO",
    "JPEG",
    "JPEG2000",
    "MSP",
    "PCX",
    "PNG",
    "PPM",
    "PSD",
    "QOI",
    "SGI",
    "SUN",
    "TGA",
    "TIFF",
    "WEBP",
    "XBM",
    "XPM",
)
"""Pillow's names of formats of pictures. Pillow also registers other data, films and printed pages."""

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""Exceptions that files which are no images, or broken images, raise."""

REMEDY = "; repair or remove it, or set bad-images = skip"
"""The remedy for an image that cannot be read."""

_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")

_LONG_HEAD = 1 << 20
"""Bytes within which the numbers of a PGM's or PPM's header must appear, after its comments."""

_Found = TypeVar("_Found")


@cache
def formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats of pictures that can be opened here."""
    Image.init()
    return tuple(name for name in _PICTURES if name in Image.OPEN)


def look_at(file: Path, most: int | None = None, frame: int = 0) -> Look:
    """Return the description of an image in its file's head; the image is not decoded.

    ``frame`` is that of a DICOM file of several, from 1.

    Raises
    ------
    DataError
        When the file cannot be read, or has more pixels than ``most``
        (:func:`~p2pft_flower.learning.data.sizes.check_size`); the message names it.
    """
    if frame:
        return _naming(f"{file}#{frame}", file, partial(look_at_dicom, most=most, frame=frame))
    return _naming(str(file), file, partial(look_at_stream, most=most))


def decode(file: Path, most: int | None = None, frame: int = 0) -> Image.Image | Samples:
    """Decode the first page of an image file; orientation and transparency are not yet applied.

    ``frame`` is that of a DICOM file of several, from 1.

    Returns
    -------
    PIL image or Samples
        The image; Samples if Pillow would cut or misread it.

    Raises
    ------
    DataError
        When the file cannot be read, or has more pixels than ``most``; the message names it.
    """
    if frame:
        return _naming(f"{file}#{frame}", file, partial(decode_dicom, most=most, frame=frame))
    return _naming(str(file), file, partial(decode_stream, most=most))


def decode_stream(stream: IO[bytes], page: int = 0, most: int | None = None) -> Image.Image | Samples:
    """Decode a page, counted from 0, of the image file that ``stream`` reads, as :func:`decode` does.

    Raises
    ------
    ValueError, OSError, SyntaxError, Image.DecompressionBombError
        When the page cannot be read; these are :data:`UNREADABLE`.
    """
    if begins_as_dicom(stream):
        return decode_dicom(stream, most)
    head = _head(stream)
    if (
        head.startswith(tiff_files.MAGIC)
        and (found := tiff_files.decode_tiff(stream, page, most=most)) is not None
    ):
        return found
    try:
        with _opened(stream) as image:
            if page:
                image.seek(page)
            check_size(*image.size, most)
            if (deep := _decode_deep(stream, head, image)) is not None:
                image.load()  # a tag behind the pixels may give their orientation
                return _turned(deep, orientation(image))
            image.load()
            if (form := _form_of_mode(image)) is not None:
                values = np.asarray(image)
                whole = samples_of(values.astype(np.int32) if image.mode == "I" else values, form)
                return _turned(whole, orientation(image))
            return image
    except UNREADABLE:
        if head.startswith(tiff_files.MAGIC):
            found = tiff_files.decode_tiff(stream, page, refused=True, most=most)
            if found is not None:
                return found
        raise


def look_at_image(image: Image.Image) -> Look:
    """Return the description of an opened image, as :func:`look_at` does of a file."""
    return Look(_form_of_mode(image), orientation(image) != 1, _transparent(image), _several(image))


def _naming(name: str, file: Path, read: Callable[[IO[bytes]], _Found]) -> _Found:
    try:
        # Not by its path: Pillow would map the file, with width and height swapped if it is on its side.
        with file.open("rb") as stream:
            return read(stream)
    except UNREADABLE as error:
        raise DataError(f"{name}: not a readable image ({error}){REMEDY}") from error


def look_at_stream(stream: IO[bytes], most: int | None = None) -> Look:
    """Return the description of the image file that ``stream`` reads, as :func:`look_at` does.

    Raises
    ------
    ValueError, OSError, SyntaxError, Image.DecompressionBombError
        When the file cannot be read; these are :data:`UNREADABLE`.
    """
    return look_at_dicom(stream, most) if begins_as_dicom(stream) else _look(stream, most)


def _look(stream: IO[bytes], most: int | None) -> Look:
    head = _head(stream)
    if (
        head.startswith(tiff_files.MAGIC)
        and (found := tiff_files.look_at_tiff(stream, most=most)) is not None
    ):
        return found
    try:
        with _opened(stream) as image:
            check_size(*image.size, most)
            if head.startswith(deep_files.PNG):  # Pillow would decode it to look for its orientation
                form, transparent, turned = deep_files.look_at_png(stream)
                return Look(form, turned, transparent, _several(image))
            seen = look_at_image(image)
            if head.startswith(deep_files.PNM):
                return seen._replace(form=deep_files.form_of_pnm(_content(stream, _LONG_HEAD)))
            if image.format == "JPEG2000":
                return seen._replace(form=deep_files.form_of_jpeg2000(_content(stream)))
            _refuse_sgi(head, image)
            return seen
    except UNREADABLE:
        if head.startswith(tiff_files.MAGIC):
            found = tiff_files.look_at_tiff(stream, refused=True, most=most)
            if found is not None:
                return found
        raise


@contextmanager
def _opened(stream: IO[bytes]) -> Iterator[Image.Image]:
    """Open an image by Pillow; errors of Pillow's readers outside :data:`UNREADABLE` become ValueErrors."""
    stream.seek(0)
    try:
        with Image.open(stream, formats=formats()) as image:
            yield image
    except UnidentifiedImageError as error:
        raise ValueError("no picture of a format that can be opened here") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{error} {TOO_LARGE}") from error
    except UNREADABLE:
        raise
    except Exception as error:  # Pillow's readers do not catch errors caused by broken numbers
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _decode_deep(stream: IO[bytes], head: bytes, image: Image.Image) -> Image.Image | Samples | None:
    """Decode an image that Pillow would cut or misread; None if Pillow should decode it."""
    if head.startswith(deep_files.PNG):
        return deep_files.decode_png(_content(stream), image.mode)
    if head.startswith(deep_files.PNM):
        return deep_files.decode_pnm(_content(stream))
    if image.format == "JPEG2000":
        return deep_files.decode_jpeg2000(_content(stream))
    _refuse_sgi(head, image)
    return None


def _refuse_sgi(head: bytes, image: Image.Image) -> None:
    if image.format == "SGI" and head[3] == 2:
        raise ValueError("SGI with 16-bit samples, of which Pillow reads 8: write it as PNG or TIFF")


def _head(stream: IO[bytes]) -> bytes:
    stream.seek(0)
    return stream.read(16)


def _content(stream: IO[bytes], most: int = -1) -> bytes:
    """Return the first ``most`` bytes, −1: all, and restore the stream's position, where Pillow reads on."""
    at = stream.tell()
    stream.seek(0)
    data = stream.read(most)
    stream.seek(at)
    return data


def _turned(decoded: Image.Image | Samples, turned: int) -> Image.Image | Samples:
    if isinstance(decoded, Samples):
        return replace(decoded, orientation=turned)
    decoded.getexif()[ExifTags.Base.Orientation] = turned
    return decoded


def orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, 1..8; 1 if none can be read, as viewers assume."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except deep_files.NO_EXIF:
        return 1
    return value if value in range(2, 9) else 1


def _transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _several(image: Image.Image) -> bool:
    return bool(getattr(image, "is_animated", False))


def _form_of_mode(image: Image.Image) -> Form | None:
    container = image.format or "image"
    if image.mode in _GREY_16:
        return form_of(container, "unsigned", 16)
    if image.mode == "I":
        return form_of(container, "signed", 32)
    return form_of(container, "float", 32) if image.mode == "F" else None
