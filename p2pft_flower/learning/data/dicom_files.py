"""DICOM files, read by pydicom: stored values to those of the modality, colours to RGB, the file's window.

A frame of several is decoded alone. Enhanced files have rescale and window of a frame in functional groups,
those that all frames share and those of the frame, which count before the shared ones.
Only the tags that a picture needs are parsed. No text of pydicom's goes into messages or logs: it may quote
values of a file, which may be a patient's.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import PurePath
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from p2pft_flower.learning.data.samples import Form, Kind, Look, Samples, form_of
from p2pft_flower.learning.data.sizes import check_size

__all__ = ["SUFFIXES", "begins_as_dicom", "decode_dicom", "frames_in", "look_at_dicom", "unnamed"]

_PREAMBLE, _MAGIC = 128, b"DICM"

SUFFIXES = (".dcm", ".dicom")
"""The endings of DICOM files' names, in lower case; many have none."""

_TAGS = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames"),
    *("RedPaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData"),
    *("GreenPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableData"),
    *("BluePaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableData"),
    *("SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData"),
    *("SegmentedBluePaletteColorLookupTableData", "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "SharedFunctionalGroupsSequence"),
    *("PerFrameFunctionalGroupsSequence", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
"""The tags that are parsed, beside the pixels."""

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

_GREY, _PALETTE = ("MONOCHROME1", "MONOCHROME2"), "PALETTE COLOR"

_OF_GROUPS = {
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
}
"""The functional groups that say how a frame's values become a picture, and the tags in them that do."""

_SHARED, _PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"

_LEAST_FRAME = 8
"""Bytes that each frame of a compressed file takes at least: the head of its fragment."""

_LIBRARY = r"pydicom(\.|$)"

_FAR = 1e30
"""A value beyond every window."""

_Found = TypeVar("_Found")


def begins_as_dicom(stream: IO[bytes]) -> bool:
    """Return whether a file has DICOM's preamble: 128 bytes of any content, and ``DICM``."""
    stream.seek(0)
    return stream.read(_PREAMBLE + len(_MAGIC))[_PREAMBLE:] == _MAGIC


def unnamed(file: PurePath) -> bool:
    """Return whether a file's name tells no format, as many archives name DICOM files.

    Such a name has no suffix, or one of digits only, as a unique identifier has.
    """
    return file.suffix in ("", ".") or file.suffix[1:].isdecimal()


def frames_in(stream: IO[bytes]) -> int:
    """Return the number of frames of a DICOM file by its head, at least 1.

    1 also if the file is one that is not read here: decoding it reports why.
    """
    try:
        return _frames(_head(stream, None, pixels=False))
    except ValueError:
        return 1


def look_at_dicom(stream: IO[bytes], most: int | None = None, frame: int = 0) -> Look:
    """Return the description of a DICOM file's frame by the file's head; the pixels are not decoded.

    Parameters
    ----------
    stream : binary file
        The file.
    most : int, optional
        The most pixels of a frame.
    frame : int
        The frame, from 1; 0: the only one.

    Raises
    ------
    ValueError
        When the file is broken, no picture, too large, of several frames without one of them being named, or
        one that is not read here; the message quotes no value.
    """
    form = _form(_of_frame(_head(stream, most, pixels=False), frame))
    shallow = form.kind == "unsigned" and form.bits <= 8
    return Look(None if shallow else form, turned=False, transparent=False, pages=False)


def decode_dicom(stream: IO[bytes], most: int | None = None, frame: int = 0) -> Image.Image | Samples:
    """Decode a frame of a DICOM file: an RGB image, or grey values of the modality with the frame's window.

    The parameters are those of :func:`look_at_dicom`. Of several frames only the one is read and decoded,
    unless the whole file is deflated.

    Raises
    ------
    ValueError
        When the file is broken, no picture, too large, of several frames without one of them being named, or
        one that is not read here, or a plug-in of pydicom is missing, which the message names.
    """
    alone = frame == 0
    head = _of_frame(_head(stream, most, pixels=alone), frame)
    if not alone and head.file_meta.TransferSyntaxUID.is_deflated:
        alone, head = True, _of_frame(_head(stream, most, pixels=True), frame)
    form, stored = _form(head), _decoded(head, None if alone else stream, frame)
    if head.PhotometricInterpretation not in _GREY:
        return Image.fromarray(stored) if stored.dtype == np.uint8 else Samples(stored, form)
    from pydicom.pixels import apply_modality_lut

    values = _told(lambda: apply_modality_lut(stored, head), "the values of its modality cannot be computed")
    for name in _PIXELS:
        if name in head:
            delattr(head, name)  # the window needs the other tags only
    inverted = head.PhotometricInterpretation == "MONOCHROME1"
    window = _window_of(head) if _windowed(head) else None
    return Samples(np.asarray(values), form, zero_is_white=inverted, own_window=window)


def _told(compute: Callable[[], _Found], fault: str) -> _Found:
    """Return what ``compute`` returns; errors become ValueErrors that say ``fault`` and quote nothing."""
    if not any(getattr(entry[3], "pattern", "") == _LIBRARY for entry in warnings.filters):
        warnings.filterwarnings("ignore", module=_LIBRARY)  # for all threads: a context's would not be
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    try:
        return compute()
    except Exception as error:  # pydicom's errors of broken files are of many kinds
        raise ValueError(f"{fault} ({type(error).__name__})") from None


def _head(stream: IO[bytes], most: int | None, *, pixels: bool) -> Any:
    """Return the tags of a file, after a check that it is one picture of a kind that is read here."""
    try:
        import pydicom
    except ImportError as error:
        raise ValueError(
            "DICOM is read by pydicom, which is not installed here: run pip install 'pydicom>=3,<4' (in a "
            "clone of the repository: pip install -e '.[medical]')"
        ) from error
    stream.seek(0)
    wanted: list[Any] = [*_TAGS, *(_PIXELS if pixels else ())]

    def read() -> tuple[Any, str]:
        head = pydicom.dcmread(stream, specific_tags=wanted, stop_before_pixels=not pixels)
        return head, _fault(head, stream.seek(0, 2))

    head, fault = _told(read, "a broken DICOM file")
    if fault:
        raise ValueError(fault)
    check_size(int(head.Columns), int(head.Rows), most)
    return head


def _frames(head: Any) -> int:
    return int(head.get("NumberOfFrames") or 1)


def _of_frame(head: Any, frame: int) -> Any:
    """Return ``head`` with rescale and window of a frame, from 1, out of its functional groups.

    Raises
    ------
    ValueError
        When there is no such frame, or ``frame`` is 0 and there are several.
    """
    frames = _frames(head)
    if frame == 0 and frames > 1:
        raise ValueError(
            f"a DICOM file of {frames} frames, and nothing says which of them counts here: in a folder or a "
            "table each frame is an image; elsewhere write the frame as a file of its own"
        )
    if frame > frames:
        raise ValueError(
            f"a DICOM file of {frames} frame{'s' if frames > 1 else ''}, so none is number {frame}"
        )

    def composed() -> Any:
        place = max(frame, 1) - 1
        groups = [*(head.get(_SHARED) or ())[:1], *(head.get(_PER_FRAME) or ())[place : place + 1]]
        for name, tags in _OF_GROUPS.items():
            for item in (group[name][0] for group in groups if group.get(name)):
                for tag in tags:
                    if tag in item:
                        head[tag] = item[tag]
        return head

    return _told(composed, "a broken DICOM file")


def _fault(head: Any, size: int) -> str:
    """Return the reason why a file of ``size`` bytes is not read here; empty if it is read."""
    rows, columns = int(head.get("Rows") or 0), int(head.get("Columns") or 0)
    if not rows or not columns or not head.get("PhotometricInterpretation"):
        return "a DICOM file without an image, such as a report or a contour, or one that is cut off"
    if lacking := _lacking(head):
        return f"a broken DICOM file, which does not say its {' and '.join(lacking)}"
    frames, groups = _frames(head), head.get(_PER_FRAME)
    if frames < 1 or (groups and len(groups) < frames):
        return "a broken DICOM file, which has fewer groups of functions than frames"
    if frames > 1 and (least := frames * _least_frame(head)) > size:
        return (
            f"a DICOM file of {frames} frames, which take {least:.0f} bytes or more, but has {size}: it is "
            "cut off"
        )
    bits, highest = head.get("BitsStored"), head.get("HighBit")
    if None not in (bits, highest) and int(highest) != int(bits) - 1:
        return (
            "a DICOM file whose samples are not in the lowest bits of their words (HighBit is not BitsStored "
            "- 1), which pydicom would read as other values: write it anew"
        )
    return ""


def _lacking(head: Any) -> list[str]:
    """Return the names of tags without which no pixels can be decoded, and that a file lacks."""
    needed = ["SamplesPerPixel", "BitsAllocated"]
    if head.get("BitsStored") is not None or head.get("PixelRepresentation") is not None:  # no floats
        needed += ["BitsStored", "PixelRepresentation"]
    return [name for name in needed if head.get(name) is None]


def _least_frame(head: Any) -> float:
    """Return the least number of bytes that a frame takes in the file."""
    syntax = head.file_meta.TransferSyntaxUID
    if syntax.is_deflated:
        return 1
    if syntax.is_encapsulated:
        return _LEAST_FRAME
    samples = head.get("SamplesPerPixel") or 1
    stored = 2 if head.PhotometricInterpretation == "YBR_FULL_422" else samples  # half of its colours
    return float(head.Rows * head.Columns * stored * head.BitsAllocated / 8)


def _form(head: Any) -> Form:
    """Return the form of the values that a file's picture is made of."""

    def found() -> Form:
        bits = int(head.get("BitsStored") or head.get("BitsAllocated") or 64)
        if head.PhotometricInterpretation == _PALETTE:
            entry = int(head.RedPaletteColorLookupTableDescriptor[2])
            return form_of("DICOM", "unsigned", 8 if entry <= 8 else 16)
        if head.PhotometricInterpretation not in _GREY:
            return form_of("DICOM", "unsigned", bits)
        windowed = _windowed(head)
        if head.get("ModalityLUTSequence"):
            depth = int(head.ModalityLUTSequence[0].LUTDescriptor[2])
            return form_of("DICOM", "unsigned", depth, windowed=windowed)
        slope, intercept = head.get("RescaleSlope"), head.get("RescaleIntercept")
        if None not in (slope, intercept) and (float(slope), float(intercept)) != (1.0, 0.0):
            return form_of("rescaled DICOM", "float", 64, windowed=windowed)
        kind: Kind = "signed" if head.get("PixelRepresentation") == 1 else "unsigned"
        if head.get("BitsStored") is None:  # of FloatPixelData and DoubleFloatPixelData
            kind = "float"
        return form_of("DICOM", kind, bits, windowed=windowed)

    return _told(found, "a broken DICOM file")


def _decoded(head: Any, stream: IO[bytes] | None, frame: int) -> npt.NDArray[Any]:
    """Return the stored values of a frame, (H, W), or its colours, (H, W, 3), as RGB.

    Without ``stream`` the pixels of all frames are in ``head``; else only those of the frame are read.
    """
    from pydicom.pixels import apply_color_lut, pixel_array

    if stream is None and not any(name in head for name in _PIXELS):
        raise ValueError("a DICOM file without pixels")
    stored = b"" if stream is not None else next(head[name].value for name in _PIXELS if name in head) or b""
    least = _frames(head) * _least_frame(head)
    if stream is None and not head.file_meta.TransferSyntaxUID.is_encapsulated and len(stored) < int(least):
        raise ValueError(
            f"a DICOM file whose pixels take {least:.0f} bytes, but has {len(stored)} of them: it is cut off"
        )
    index = frame - 1 if frame else None

    def decoded() -> npt.NDArray[Any]:
        found = np.asarray(pixel_array(stream or head, index=index))  # YBR becomes RGB
        if head.PhotometricInterpretation != _PALETTE:
            return found
        return np.asarray(apply_color_lut(found, head)[..., :3])

    return _told(decoded, f"the pixels of a DICOM file cannot be decoded{_remedy(head)}")


def _remedy(head: Any) -> str:
    """Return a text that names the plug-ins of pydicom that a file's compression may need; else empty."""
    from pydicom.pixels import get_decoder

    def found() -> str:
        syntax = head.file_meta.TransferSyntaxUID
        decoder = get_decoder(syntax) if syntax.is_encapsulated else None
        if decoder is None or not decoder.missing_dependencies:
            return ""
        ways = "; or ".join(decoder.missing_dependencies)
        if decoder.is_available:  # one that is here may read some of the compression's forms only
            return f": it is {syntax.name}, and damaged, or in need of another plug-in of pydicom: {ways}"
        return f": it is {syntax.name}, which a plug-in of pydicom reads; install one: {ways}"

    return _told(found, "a DICOM file of a compression that nothing here reads")


def _windowed(head: Any) -> bool:
    """Return whether a grey file has a window, or a table for the same, of its own."""
    if head.PhotometricInterpretation not in _GREY:
        return False
    return _by_table(head) or None not in (head.get("WindowCenter"), head.get("WindowWidth"))


def _by_table(head: Any) -> bool:
    tables = head.get("VOILUTSequence")
    return bool(tables) and None not in (tables[0].get("LUTDescriptor"), tables[0].get("LUTData"))


def _window_of(head: Any) -> Callable[[npt.NDArray[Any]], npt.NDArray[np.float64]]:
    """Return the file's first window as a function: values of the modality ↦ brightness, 0..1."""
    from pydicom.pixels import apply_voi_lut

    def applied(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        if _by_table(head):
            entries, _, depth = (int(number) for number in head.VOILUTSequence[0].LUTDescriptor)
            if depth == 8 and not 0 < entries <= 256:
                raise OverflowError  # pydicom 3.0 counts such a table's entries in 8 bits
            looked_up = apply_voi_lut(np.rint(values).astype(np.int64), head)
            return np.asarray(looked_up, dtype=np.float64) / float(2**depth - 1)
        with np.errstate(over="ignore"):  # of a sigmoid, far outside
            low, high = (float(end) for end in apply_voi_lut(np.array([-_FAR, _FAR]), head))
            shown = np.asarray(apply_voi_lut(values, head), dtype=np.float64)
        if low == high:  # as with a rescale slope of 0
            raise ZeroDivisionError
        return np.asarray((shown - low) / (high - low), dtype=np.float64)

    def window(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        return _told(lambda: applied(values), "its window cannot be applied")

    return window
