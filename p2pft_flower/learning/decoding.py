"""Image files decoded: 8-bit pictures by Pillow, deeper samples in the file's own numbers.

Pillow keeps eight bits of colours that have more, clips or scales what it converts, and takes no note of
signs. So samples of more than 8 bits, with signs or fractions come from tifffile and imagecodecs, as they
stand in the file; :mod:`p2pft_flower.learning.pixels` makes pictures of them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import ExifTags, Image, UnidentifiedImageError

from p2pft_flower.errors import DataError

__all__ = [
    "REMEDY",
    "UNREADABLE",
    "Form",
    "Look",
    "Samples",
    "decode",
    "formats",
    "look_at",
    "look_at_image",
    "orientation",
    "samples_of",
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
"""Formats that hold pictures. Pillow registers others too: data of other kinds, films, printed pages."""

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What is raised of files that are no images, or broken ones."""

REMEDY = "; repair or remove it, or set bad-images = skip"
"""What to do about an image that cannot be read."""

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG = b"\x89PNG\r\n\x1a\n"
_PNM = re.compile(rb"P([2356])" + rb"(?:\s|#[^\r\n]*[\r\n])+(\d+)" * 3 + rb"\s")
_J2K = b"\xff\x4f\xff\x51"
"""Start of a JPEG 2000 codestream and of its first segment, which says how samples are held."""

_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")

_NO_EXIF = (SyntaxError, ValueError, KeyError, struct.error, OSError)
"""What Pillow raises of broken EXIF data."""

_KINDS: dict[int, Literal["unsigned", "signed", "float"]] = {1: "unsigned", 2: "signed", 3: "float"}
"""TIFF's SampleFormat."""


@dataclass(frozen=True)
class Form:
    """How an image holds samples of more than 8 bits, with signs or with fractions.

    Attributes
    ----------
    container : str
        Kind of file, ``"array"`` or ``"image"``: for messages.
    kind : {"unsigned", "signed", "float"}
        Kind of number.
    bits : int
        Bits of a sample.
    white : int or None
        The sample that the file declares to be white, with 0 black; None where it declares none.
    significant : int
        Bits that it says are significant (PNG's sBIT); ``bits`` where it says nothing.
    """

    container: str
    kind: Literal["unsigned", "signed", "float"]
    bits: int
    white: int | None
    significant: int

    def __str__(self) -> str:
        kind = "floating-point" if self.kind == "float" else self.kind
        return f"{self.bits}-bit {kind} {self.container}"


def _form(
    container: str,
    kind: Literal["unsigned", "signed", "float"],
    bits: int,
    *,
    white: int | None = None,
    significant: int | None = None,
) -> Form:
    declared = 2**bits - 1 if kind == "unsigned" and bits <= 16 else None
    return Form(container, kind, bits, declared if white is None else white, significant or bits)


@dataclass(frozen=True)
class Samples:
    """A decoded image whose samples are not yet grey levels.

    Attributes
    ----------
    values : (H, W) or (H, W, 3) array
        Samples in the file's own numbers, as the file holds them.
    form : Form
        What the file says of them.
    alpha : (H, W) float64 array, optional
        Opacity, 0..1; None: opaque.
    premultiplied : bool
        Whether colours are multiplied by ``alpha`` already.
    zero_is_white : bool
        Whether small samples are bright.
    orientation : int
        EXIF's orientation of the picture, 1..8.
    """

    values: npt.NDArray[Any]
    form: Form
    alpha: npt.NDArray[np.float64] | None = None
    premultiplied: bool = False
    zero_is_white: bool = False
    orientation: int = 1


class Look(NamedTuple):
    """What a file's head says of the image, which is not decoded.

    Attributes
    ----------
    form : Form or None
        How it holds deep samples; None: it has unsigned ones of at most 8 bits.
    turned : bool
        Whether its orientation tag asks for it to be turned or mirrored.
    transparent : bool
        Whether it has an alpha channel or a transparent colour.
    pages : bool
        Whether it has several pages or frames.
    """

    form: Form | None
    turned: bool
    transparent: bool
    pages: bool


@cache
def formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats of pictures that can be opened here."""
    Image.init()
    return tuple(name for name in _PICTURES if name in Image.OPEN)


def look_at(file: Path) -> Look:
    """Read the head of an image file.

    Raises
    ------
    DataError
        When it cannot be read, naming it.
    """
    return _naming(file, _look)


def decode(file: Path) -> Image.Image | Samples:
    """Decode the first page of an image file; orientation and transparency are left to be applied.

    Raises
    ------
    DataError
        When it cannot be read, naming it.
    """
    return _naming(file, _decode)


def look_at_image(image: Image.Image) -> Look:
    """Say of an image what :func:`look_at` says of a file."""
    return Look(_form_of_mode(image), orientation(image) != 1, _transparent(image), _several(image))


def samples_of(array: npt.NDArray[Any], form: Form | None = None) -> Samples:
    """Tell grey, colour and alpha apart in an array of samples.

    Parameters
    ----------
    array : (H, W) or (H, W, 1..4) array
        Numbers of any type; grey, grey and alpha, RGB, or RGB and alpha.
    form : Form, optional
        How the file held them; without it, as the array's type says.

    Raises
    ------
    ValueError
        When the array has another shape or holds no numbers.
    """
    if array.ndim not in (2, 3) or 0 in array.shape or array.shape[2:] not in [(), (1,), (2,), (3,), (4,)]:
        raise ValueError(f"an array of shape {array.shape} is no image; one has (H, W) or (H, W, 1 to 4)")
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    kinds: dict[str, Literal["unsigned", "signed", "float"]] = {"u": "unsigned", "i": "signed", "f": "float"}
    if array.dtype.kind not in kinds:
        raise ValueError(f"an array of type {array.dtype} is no image; one has whole or floating numbers")
    form = form or _form("array", kinds[array.dtype.kind], array.dtype.itemsize * 8)
    colours = array.shape[2] - 1 + array.shape[2] % 2
    values = array[..., :colours]
    alpha = None
    if array.shape[2] > colours:
        opaque = 1 if form.kind == "float" else form.white
        if opaque is None:
            raise ValueError(f"{form} samples with transparency: nothing says which alpha is opaque")
        alpha = array[..., colours] / float(opaque)
    return Samples(values[..., 0] if colours == 1 else values, form, alpha)


_Found = TypeVar("_Found")


def _naming(file: Path, read: Callable[[Path], _Found]) -> _Found:
    try:
        return read(file)
    except UNREADABLE as error:
        raise DataError(f"{file}: not a readable image ({error}){REMEDY}") from error


def _look(file: Path) -> Look:
    head = _head(file)
    if head.startswith(_TIFF) and (found := _look_at_tiff(file)) is not None:
        return found
    with _opened(file) as image:
        if head.startswith(_PNG):  # Pillow would decode it to look for its orientation
            form, transparent, turned = _look_at_png(file)
            return Look(form, turned, transparent, _several(image))
        seen = look_at_image(image)
        if (header := _PNM.match(head)) is not None:
            return seen._replace(form=_form_of_pnm(header))
        if image.format == "JPEG2000":
            return seen._replace(form=_form_of_jpeg2000(file.read_bytes()))
        return seen


def _decode(file: Path) -> Image.Image | Samples:
    head = _head(file)
    if head.startswith(_TIFF) and (found := _decode_tiff(file)) is not None:
        return found
    with _opened(file) as image:
        samples = _decode_deep(file, head, image)
        if samples is not None:
            return samples
        image.load()
        return image


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    # Not by its path: Pillow would map the file, and one that lies on its side with its sides swapped.
    with file.open("rb") as stream:
        try:
            image = Image.open(stream, formats=formats())
        except UnidentifiedImageError as error:
            raise ValueError("no picture of a format that can be opened here") from error
        with image:
            yield image


def _decode_deep(file: Path, head: bytes, image: Image.Image) -> Samples | None:
    """Decode what is deeper than a picture; None: it is not."""
    if head.startswith(_PNG):
        form, transparent, _ = _look_at_png(file)
        if form is not None:
            pixels = _by_library(partial(imagecodecs.png_decode, file.read_bytes()))
            return _oriented(samples_of(pixels, form), image)
        if transparent and image.mode in ("1", "L"):
            # Pillow compares the transparent level of greys of 1, 2 and 4 bits with their 8-bit ones.
            pixels = _by_library(partial(imagecodecs.png_decode, file.read_bytes()))
            return _oriented(samples_of(pixels), image)
    elif (header := _PNM.match(head)) is not None:
        if (form := _form_of_pnm(header)) is not None:
            return samples_of(_pnm_samples(header, file.read_bytes()), form)
    elif image.format == "JPEG2000" and (form := _form_of_jpeg2000(data := file.read_bytes())) is not None:
        return _oriented(samples_of(_by_library(partial(imagecodecs.jpeg2k_decode, data)), form), image)
    return None


def _head(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(512)


def _by_library(decoder: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Call a decoder; what it raises of broken data becomes a ValueError."""
    try:
        return decoder()
    except Exception as error:  # the decoders raise errors of their own, each format another
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _oriented(samples: Samples, image: Image.Image) -> Samples:
    image.load()  # what follows the pixels in the file may say how they lie
    return Samples(samples.values, samples.form, samples.alpha, orientation=orientation(image))


def orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, 1..8; 1 where none can be read: viewers show such an image as it lies."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _NO_EXIF:
        return 1
    return value if value in range(2, 9) else 1


def _transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _several(image: Image.Image) -> bool:
    return bool(getattr(image, "is_animated", False))


def _form_of_mode(image: Image.Image) -> Form | None:
    container = image.format or "image"
    if image.mode in _GREY_16:
        return _form(container, "unsigned", 16)
    if image.mode == "I":
        return _form(container, "signed", 32)
    return _form(container, "float", 32) if image.mode == "F" else None


# TIFF


def _tiff(file: Path, read: Callable[[tifffile.TiffPage, bool], _Found]) -> _Found:
    """Call ``read`` with the first page, and whether there are more; tifffile's errors become ValueErrors."""
    try:
        with tifffile.TiffFile(file) as opened:
            return read(opened.pages.first, len(opened.pages) > 1)
    except UNREADABLE:
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _form_of_page(page: tifffile.TiffPage) -> Form | None:
    """Return how a page holds deep samples; None where Pillow is to read it."""
    kind = _KINDS.get(int(page.sampleformat or 1))
    bits = page.bitspersample
    if kind == "unsigned" and bits <= 8:
        return None
    if int(page.photometric) not in (0, 1, 2):
        return None  # deep CMYK, CIELAB and palettes are Pillow's to read, or to refuse
    if kind is None:
        raise ValueError(f"samples of TIFF's format {page.sampleformat}, which are no real numbers")
    return _form("TIFF", kind, bits)


def _look_at_tiff(file: Path) -> Look | None:
    def read(page: tifffile.TiffPage, more: bool) -> Look | None:
        form = _form_of_page(page)
        if form is None:
            return None
        turned = page.tags.valueof(274, 1) in range(2, 9)
        return Look(form, turned, bool({1, 2} & set(page.extrasamples)), more)

    return _tiff(file, read)


def _decode_tiff(file: Path) -> Samples | None:
    def read(page: tifffile.TiffPage, _: bool) -> Samples | None:
        form = _form_of_page(page)
        if form is None:
            return None
        number = page.imagewidth * page.imagelength
        if Image.MAX_IMAGE_PIXELS is not None and number > 2 * Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError(f"{number} pixels, more than {2 * Image.MAX_IMAGE_PIXELS}")
        pixels = page.asarray()
        if page.axes == "SYX":
            pixels = np.moveaxis(pixels, 0, -1)
        elif page.axes not in ("YX", "YXS"):
            raise ValueError(f"a TIFF page with the axes {page.axes}, not one picture")
        pixels = np.atleast_3d(pixels)
        colours = 3 if int(page.photometric) == 2 else 1
        extra = [int(e) for e in page.extrasamples]
        if pixels.shape[2] != colours + len(extra):
            raise ValueError(f"{pixels.shape[2]} channels of which {len(extra)} are extra, not {colours}")
        alpha = next((i for i, e in enumerate(extra) if e in (1, 2)), None)
        wanted = [*range(colours), *([] if alpha is None else [colours + alpha])]
        made = samples_of(pixels[..., wanted], form)
        return Samples(
            made.values,
            form,
            made.alpha,
            premultiplied=alpha is not None and extra[alpha] == 1,
            zero_is_white=int(page.photometric) == 0,
            orientation=int(page.tags.valueof(274, 1)),
        )

    return _tiff(file, read)


# PNG


def _look_at_png(file: Path) -> tuple[Form | None, bool, bool]:
    """Return the form of deep samples, whether anything is transparent, and whether it is to be turned."""
    chunks: dict[bytes, bytes] = {}
    with file.open("rb") as opened:
        opened.seek(len(_PNG))
        while len(start := opened.read(8)) == 8:
            length, name = struct.unpack(">I4s", start)
            if name in (b"IHDR", b"sBIT", b"tRNS", b"eXIf"):  # the last one may stand behind the pixels
                chunks[name] = opened.read(length)
                opened.seek(4, 1)
            else:
                opened.seek(length + 4, 1)
    depth, colour = chunks[b"IHDR"][8:10]
    transparent = b"tRNS" in chunks or colour in (4, 6)
    turned = _turned(chunks[b"eXIf"]) if b"eXIf" in chunks else False
    if depth != 16:
        return None, transparent, turned
    colours = chunks.get(b"sBIT", b"")[: 1 if colour in (0, 4) else 3]  # alpha may have others
    significant = max(colours, default=16)
    return _form("PNG", "unsigned", 16, significant=min(significant, 16) or 16), transparent, turned


def _turned(exif: bytes) -> bool:
    found = Image.Exif()
    try:
        found.load(b"Exif\0\0" + exif)
        return found.get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except _NO_EXIF:
        return False


# PGM and PPM


def _form_of_pnm(header: re.Match[bytes]) -> Form | None:
    white = int(header[4])
    return None if white < 256 else _form("PNM", "unsigned", white.bit_length(), white=white)


def _pnm_samples(header: re.Match[bytes], data: bytes) -> npt.NDArray[np.uint16]:
    kind, width, height, white = (int(header[i]) for i in range(1, 5))
    shape = (height, width, 3) if kind in (3, 6) else (height, width)
    number, body = int(np.prod(shape)), data[header.end() :]
    if kind in (5, 6):
        found = np.frombuffer(body[: 2 * number], ">u2").astype(np.uint16)
    else:
        found = np.array(re.sub(rb"#[^\r\n]*", b"", body).split()[:number], dtype=np.uint16)
    if len(found) < number:
        raise ValueError(f"the image has {len(found)} of {number} samples: it is truncated")
    if found.max(initial=0) > white:
        raise ValueError(f"a sample of {found.max()} where the largest is said to be {white}")
    return found.reshape(shape)


# JPEG 2000


def _form_of_jpeg2000(data: bytes) -> Form | None:
    """Read SIZ, the first segment of the codestream: bits and sign of each component (ISO 15444-1, A.5.1)."""
    start = data.find(_J2K)
    if start < 0:
        raise ValueError("no JPEG 2000 codestream")
    (components,) = struct.unpack_from(">H", data, start + 40)
    found = data[start + 42 : start + 42 + 3 * components : 3]
    bits, signed = max(b & 0x7F for b in found) + 1, any(b & 0x80 for b in found)
    if bits <= 8 and not signed:
        return None
    return _form("JPEG 2000", "signed" if signed else "unsigned", bits)
