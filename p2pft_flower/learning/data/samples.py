"""An image's samples with the file's own values, and their description in its head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Form", "Kind", "Look", "Samples", "form_of", "samples_of"]

Kind: TypeAlias = Literal["unsigned", "signed", "float"]
"""Kind of number."""


@dataclass(frozen=True)
class Form:
    """The form of an image's deep samples: of more than 8 bits, with signs or with fractions.

    Attributes
    ----------
    container : str
        Kind of file, ``"array"`` or ``"image"``, for messages.
    kind : {"unsigned", "signed", "float"}
        Kind of number.
    bits : int
        Bits of a sample.
    white : int or None
        The value that the file declares to be white, while 0 is black; None if the file declares none.
    significant : int
        Number of significant bits as declared (PNG's sBIT), else ``bits``.
    windowed : bool
        Whether each file has a window of its own, which says what is black and white (DICOM).
    """

    container: str
    kind: Kind
    bits: int
    white: int | None
    significant: int
    windowed: bool = field(default=False, repr=False)  # stored outputs are found by the other fields

    @property
    def of_dicom(self) -> bool:
        """Whether the samples are grey values of a DICOM file."""
        return self.container.endswith("DICOM")

    def __str__(self) -> str:
        kind = "floating-point" if self.kind == "float" else self.kind
        return f"{self.bits}-bit {kind} {self.container}"


def form_of(
    container: str,
    kind: Kind,
    bits: int,
    *,
    white: int | None = None,
    significant: int | None = None,
    windowed: bool = False,
) -> Form:
    """Return a form; without ``white``, the largest value of unsigned samples of at most 16 bits is white."""
    declared = 2**bits - 1 if kind == "unsigned" and bits <= 16 else None
    return Form(container, kind, bits, declared if white is None else white, significant or bits, windowed)


@dataclass(frozen=True)
class Samples:
    """A decoded image whose samples are not yet grey levels.

    Attributes
    ----------
    values : (H, W) or (H, W, 3) array
        Samples in the file's own numbers.
    form : Form
        Form of the samples.
    alpha : (H, W) array, optional
        Opacity in the file's own numbers, like ``values``; None: opaque.
    premultiplied : bool
        Whether colours are multiplied by ``alpha`` already.
    zero_is_white : bool
        Whether small samples are bright and large ones dark.
    orientation : int
        EXIF's orientation of the picture, 1..8.
    own_window : callable, optional
        The file's own window: ``values`` ↦ their brightness, 0 (black, or white if ``zero_is_white``) to 1.
    """

    values: npt.NDArray[Any]
    form: Form
    alpha: npt.NDArray[Any] | None = None
    premultiplied: bool = False
    zero_is_white: bool = False
    orientation: int = 1
    own_window: Callable[[npt.NDArray[Any]], npt.NDArray[np.float64]] | None = None


class Look(NamedTuple):
    """The description of an image in its file's head; the image is not decoded.

    Attributes
    ----------
    form : Form or None
        Form of deep samples; None for unsigned samples of at most 8 bits.
    turned : bool
        Whether the orientation tag asks to turn or mirror the image.
    transparent : bool
        Whether the image has an alpha channel or a transparent colour.
    pages : bool
        Whether the file has several pages or frames.
    """

    form: Form | None
    turned: bool
    transparent: bool
    pages: bool


def samples_of(array: npt.NDArray[Any], form: Form | None = None) -> Samples:
    """Separate grey, colour and alpha in an array of samples.

    Parameters
    ----------
    array : (H, W) or (H, W, 1..4) array
        Numbers of any type but complex; grey, grey and alpha, RGB, or RGB and alpha.
    form : Form, optional
        The samples' form in the file, by default that of the array's type.

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
    kinds: dict[str, Kind] = {"u": "unsigned", "i": "signed", "f": "float"}
    if array.dtype.kind not in kinds:
        raise ValueError(f"an array of type {array.dtype} is no image; one has whole or floating numbers")
    form = form or form_of("array", kinds[array.dtype.kind], array.dtype.itemsize * 8)
    colours = array.shape[2] - 1 + array.shape[2] % 2
    values = array[..., :colours]
    alpha = array[..., colours] if array.shape[2] > colours else None
    return Samples(values[..., 0] if colours == 1 else values, form, alpha)
