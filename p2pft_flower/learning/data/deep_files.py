"""Decoding of PNG, PGM, PPM and JPEG 2000 that Pillow would cut or misread, in the file's own numbers."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from p2pft_flower.learning.data.samples import Form, Samples, form_of, samples_of

__all__ = [
    "NO_EXIF",
    "PNG",
    "PNM",
    "decode_jpeg2000",
    "decode_png",
    "decode_pnm",
    "form_of_jpeg2000",
    "form_of_pnm",
    "look_at_png",
]

NO_EXIF = (SyntaxError, ValueError, KeyError, struct.error, OSError)
"""Exceptions that Pillow raises on broken EXIF data."""

PNG = b"\x89PNG\r\n\x1a\n"
"""The beginning of a PNG."""

PNM = (b"P2", b"P3", b"P5", b"P6")
"""The beginnings of PGMs and PPMs."""

_PNM_HEADER = re.compile(rb"P([2356])" + rb"(?:\s|#[^\r\n]*[\r\n])+(\d+)" * 3 + rb"\s")

_XMP = b"XML:com.adobe.xmp\0"

_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=\"|>)([2-8])")

_J2K = b"\xff\x4f\xff\x51"
"""Start of a JPEG 2000 codestream and of its first segment, which describes the samples."""

_CMYK, _SYCC = 12, 18
"""Colour spaces by their numbers in a JP2 file (ISO 15444-1, I.5.3.3, and ISO 15444-2, M.11.7.3.1)."""


def by_library(decoder: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return the array that a decoder makes; the decoder's errors become ValueErrors."""
    try:
        return decoder()
    except Exception as error:  # each decoder has its own errors
        raise ValueError(f"{type(error).__name__}: {error}") from error


# PNG


def look_at_png(stream: IO[bytes]) -> tuple[Form | None, bool, bool]:
    """Return the form of 16-bit samples, whether a part is transparent, and whether the image must be turned.

    The form is None for samples of fewer bits.

    Raises
    ------
    ValueError
        When the PNG has no header.
    """
    chunks: dict[bytes, bytes] = {}
    turned = False
    for name, content in _chunks(stream):
        if name in (b"IHDR", b"sBIT", b"tRNS"):
            chunks[name] = content
        elif name == b"eXIf":  # the chunk may follow the pixels
            turned = turned or _turned(content)
        elif name == b"iTXt" and content.startswith(_XMP):
            turned = turned or _XMP_ORIENTATION.search(content) is not None
    if len(chunks.get(b"IHDR", b"")) < 13:
        raise ValueError("a PNG without its header")
    depth, colour = chunks[b"IHDR"][8:10]
    transparent = b"tRNS" in chunks or colour in (4, 6)
    if depth != 16:
        return None, transparent, turned
    colours = chunks.get(b"sBIT", b"")[: 1 if colour in (0, 4) else 3]  # alpha may have others
    significant = max(colours, default=16)
    return form_of("PNG", "unsigned", 16, significant=min(significant, 16) or 16), transparent, turned


def decode_png(data: bytes, mode: str) -> Samples | None:
    """Decode a PNG that Pillow opens in ``mode``; None if Pillow should decode it."""
    form, transparent, _ = look_at_png(io.BytesIO(data))
    # Pillow compares the transparent level of greys of 1, 2 and 4 bits with their 8-bit ones.
    if form is None and not (transparent and mode in ("1", "L")):
        return None
    return samples_of(by_library(partial(imagecodecs.png_decode, data)), form)


def _chunks(stream: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and content of each chunk but the pixels', and restore the stream's position at the end."""
    at = stream.tell()
    stream.seek(len(PNG))
    while len(start := stream.read(8)) == 8:
        length, name = struct.unpack(">I4s", start)
        if name != b"IDAT":
            yield name, stream.read(length)
            length = 0
        stream.seek(length + 4, 1)
    stream.seek(at)


def _turned(exif: bytes) -> bool:
    found = Image.Exif()
    try:
        found.load(b"Exif\0\0" + exif)
        return found.get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except NO_EXIF:
        return False


# PGM and PPM


def form_of_pnm(data: bytes) -> Form | None:
    """Return the form of samples of more than 8 bits by a file's head; None for samples of at most 8 bits.

    Raises
    ------
    ValueError
        When the header is broken.
    """
    white = int(_pnm_header(data)[4])
    return None if white < 256 else form_of("PNM", "unsigned", white.bit_length(), white=white)


def decode_pnm(data: bytes) -> Samples | None:
    """Decode a PGM or PPM of more than 8 bits; None if Pillow should decode it.

    Raises
    ------
    ValueError
        When the header is broken, or samples are missing or too large.
    """
    form = form_of_pnm(data)
    if form is None:
        return None
    header = _pnm_header(data)
    kind, width, height, white = (int(header[i]) for i in range(1, 5))
    shape = (height, width, 3) if kind in (3, 6) else (height, width)
    number, body = int(np.prod(shape)), data[header.end() :]
    if kind in (5, 6):
        found = np.frombuffer(body[: len(body) // 2 * 2], ">u2")[:number].astype(np.int64)
    else:
        words = re.sub(rb"#[^\r\n]*", b"", body).split()[:number]
        found = np.array([int(w) for w in words], dtype=np.int64)
    if len(found) < number:
        raise ValueError(f"the image has {len(found)} of {number} samples: it is truncated")
    if found.min(initial=0) < 0 or found.max(initial=0) > white:
        raise ValueError(f"a sample of {found.max()} or less than 0, but the header's largest is {white}")
    return samples_of(found.astype(np.uint16).reshape(shape), form)


def _pnm_header(data: bytes) -> re.Match[bytes]:
    header = _PNM_HEADER.match(data)
    if header is None:
        raise ValueError("a PGM or PPM whose header is broken")
    if int(header[4]) > 65535:
        raise ValueError(f"a PGM or PPM with samples up to {int(header[4])}, more than it may have")
    return header


# JPEG 2000


def form_of_jpeg2000(data: bytes) -> Form | None:
    """Return the form of samples that need a range; None for unsigned samples of at most 8 bits."""
    form = _components(data)[0]
    return None if form.kind == "unsigned" and form.bits <= 8 else form


def decode_jpeg2000(data: bytes) -> Image.Image | Samples | None:
    """Decode an image in the file's own numbers; None for unsigned 8-bit samples, which Pillow should decode.

    Raises
    ------
    ValueError
        When the file is broken, or has colours that nothing here converts.
    """
    form, number = _components(data)
    if form.kind == "unsigned" and form.bits == 8:
        return None
    space = _colour_space(data)
    if space == _SYCC or (space == _CMYK and (form.white is None or number != 4)):
        raise ValueError(f"{number} components of {form} samples in colours that nothing here converts")
    pixels = by_library(partial(imagecodecs.jpeg2k_decode, data))
    if space == _CMYK:
        inks = np.rint(pixels.astype(np.float64) * (255 / (form.white or 1))).astype(np.uint8)
        return Image.fromarray(inks, mode="CMYK")
    return samples_of(pixels, form)


def _components(data: bytes) -> tuple[Form, int]:
    """Return form and number of the components, by the codestream's segment SIZ (ISO 15444-1, A.5.1)."""
    start = data.find(_J2K)
    if start < 0 or len(data) < start + 42:
        raise ValueError("no JPEG 2000 codestream")
    (number,) = struct.unpack_from(">H", data, start + 40)
    found = data[start + 42 : start + 42 + 3 * number : 3]
    if len(set(found)) != 1:
        raise ValueError("components of different depths, or none")
    bits, signed = (found[0] & 0x7F) + 1, bool(found[0] & 0x80)
    return form_of("JPEG 2000", "signed" if signed else "unsigned", bits), number


def _colour_space(data: bytes) -> int | None:
    """Return the number of the colour space that a JP2 file names; None if it names none."""
    at = data[: data.find(_J2K)].find(b"colr")
    if at < 0 or data[at + 4] != 1:
        return None
    return int(struct.unpack_from(">I", data, at + 7)[0])
