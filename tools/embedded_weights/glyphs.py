"""Letters that look as if they had been written by hand and scanned the way the UCI digits were.

A letter of a font becomes a field of distances: to its medial axis (where a pen would have gone) or to its
outline. The field is warped by an affine map and a smooth elastic one, and everything nearer than a random
level is ink, so the level is the thickness of the stroke. The ink is stretched to fill a 32 × 32 bitmap, and
its set pixels are counted in blocks of 4 × 4: the 8 × 8 counts 0..16 of scikit-learn's ``load_digits``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch.nn import functional

__all__ = ["ALPHABET", "FACES", "LEFT_OUT", "UNSEEN_FACE", "Bank", "draw", "font_path", "load_bank"]

# One class a shape. Letters that only repeat the shape of another one are not there: the size is normalised,
# so lower case c is upper case C, and Greek and Cyrillic А is Latin A.
LATIN = "ACEFHJKLMNPRTUVWXY" + "adefhjmnrty"
GREEK = "ΓΔΛΞΠΣΦΨΩ" + "αεζηλμξπφψω"
CYRILLIC = "ДЖИЙЛЦШЩЮЯ"
ALPHABET = LATIN + GREEK + CYRILLIC

LEFT_OUT = {
    "0": "OoQDΟοΘθσОо",
    "1": "IilΙιІі",
    "2": "Zz",
    "3": "ЗзЭэ",
    "4": "Чч",
    "5": "SsςЅѕ",
    "6": "GbБбЬьδ",
    "8": "BβВв",
    "9": "gqρ",
}
"""Letters that a reader could take for a digit, by that digit; they are never drawn. (No letter is a 7.)"""

# matplotlib brings these fonts along, so they are wherever the package is. Computer Modern has Latin only.
FACES = {
    **dict.fromkeys(
        (
            "DejaVuSans",
            "DejaVuSans-Bold",
            "DejaVuSans-Oblique",
            "DejaVuSans-BoldOblique",
            "DejaVuSansMono",
            "DejaVuSansMono-Oblique",
            "DejaVuSerif",
            "DejaVuSerif-Bold",
            "DejaVuSerif-Italic",
            "DejaVuSerif-BoldItalic",
            "STIXGeneral",
            "STIXGeneralBol",
            "STIXGeneralItalic",
            "STIXGeneralBolIta",
        ),
        ALPHABET,
    ),
    **dict.fromkeys(("cmr10", "cmb10", "cmmi10", "cmti10", "cmtt10"), LATIN),
}
"""The letters that are drawn from each font, by the font's name."""

UNSEEN_FACE = "cmss10"
"""Latin font that pre-training never draws from: letters in it are a held-out test."""

_CANVAS = 48  # pixels of a distance field
_GLYPH = 33  # of which the letter fills at most this many; the rest is room to warp
_BITMAP = 32  # the UCI digits' bitmaps
_BLOCK = 4  # and the blocks in which their pixels were counted


@dataclass(frozen=True)
class Bank:
    """Letters ready to be drawn.

    Attributes
    ----------
    fields : (n, 2, 48, 48) float32 tensor
        Distances in pixels to the letter's medial axis, and to its outline (negative inside).
    labels : (n,) int64 tensor
        Position of each letter in :data:`ALPHABET`.
    """

    fields: torch.Tensor
    labels: torch.Tensor


def font_path(face: str) -> Path:
    """Return the path of the file of a font that matplotlib ships."""
    return Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"


def load_bank(faces: dict[str, str]) -> Bank:
    """Return the bank of all letters in ``faces``, which has each font's letters, all in :data:`ALPHABET`."""
    masks, labels = [], []
    for face, letters in faces.items():
        font = ImageFont.truetype(str(font_path(face)), 160)
        for letter in letters:
            masks.append(_mask(font, letter))
            labels.append(ALPHABET.index(letter))
    stack = np.stack(masks)
    fields = [
        (
            ndimage.distance_transform_edt(~axis),
            ndimage.distance_transform_edt(~mask) - ndimage.distance_transform_edt(mask),
        )
        for axis, mask in zip(_thin(stack), stack, strict=True)
    ]
    return Bank(torch.from_numpy(np.asarray(fields, dtype=np.float32)), torch.tensor(labels))


def _mask(font: ImageFont.FreeTypeFont, letter: str) -> npt.NDArray[np.bool_]:
    left, top, right, bottom = (int(side) for side in font.getbbox(letter))
    image = Image.new("L", (right - left + 8, bottom - top + 8))
    ImageDraw.Draw(image).text((4 - left, 4 - top), letter, font=font, fill=255)
    image = image.crop(image.getbbox())
    scale = _GLYPH / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    corner = ((_CANVAS - size[0]) // 2, (_CANVAS - size[1]) // 2)
    canvas.paste(image.resize(size, Image.Resampling.BOX), corner)
    return np.asarray(canvas) > 110


def _thin(masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return (n, h, w) masks thinned to lines one pixel wide (Zhang and Suen, 1984), all at once."""
    ink = np.pad(masks, ((0, 0), (1, 1), (1, 1))).astype(np.uint8)
    shifts = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))  # clockwise from north
    changed = True
    while changed:
        changed = False
        for first in (True, False):
            ring = np.stack([np.roll(ink, shift, (1, 2)) for shift in shifts])
            north, east, south, west = ring[::2]
            neighbours = ring.sum(0)
            crossings = ((ring == 0) & (np.roll(ring, -1, 0) == 1)).sum(0)
            pairs = (east & south & (north | west)) if first else (north & west & (east | south))
            peel = (ink == 1) & (neighbours >= 2) & (neighbours <= 6) & (crossings == 1) & (pairs == 0)
            ink[peel] = 0
            changed = changed or bool(peel.any())
    return ink[:, 1:-1, 1:-1].astype(bool)


def draw(bank: Bank, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``count`` distorted letters, drawn at random.

    Returns
    -------
    images : (count, 1, 8, 8) float32 tensor
        The letters, in multiples of 1/16 from 0 to 1; ink is 1.
    labels : (count,) int64 tensor
        Position of each letter in :data:`ALPHABET`.
    """

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    chosen = torch.randint(len(bank.labels), (count,), generator=generator)
    pen = uniform(0, 1) < 0.75  # three in four are written with a pen, the rest keep the font's own strokes
    field = bank.fields[chosen, (~pen).long()]
    level = torch.where(pen, uniform(1.6, 4.2), uniform(-0.5, 1.5))

    rotation, shear, aspect = uniform(-0.22, 0.22), uniform(-0.25, 0.25), uniform(-0.25, 0.25).exp()
    cos, sin, zero = rotation.cos(), rotation.sin(), torch.zeros(count)
    turn = torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)
    slant = torch.stack([aspect, shear, zero, 1 / aspect], 1).view(-1, 2, 2)
    affine = torch.cat([turn @ slant, torch.zeros(count, 2, 1)], 2)
    grid = functional.affine_grid(affine, [count, 1, _CANVAS, _CANVAS], align_corners=False)
    # A coarse random field, made smooth, moves the strokes as an unsteady hand does.
    elastic = torch.randn(count, 2, 5, 5, generator=generator) * uniform(0, 0.09).view(-1, 1, 1, 1)
    elastic = functional.interpolate(elastic, (_CANVAS, _CANVAS), mode="bicubic", align_corners=True)
    grid = grid + elastic.permute(0, 2, 3, 1)
    warped = functional.grid_sample(field[:, None], grid, padding_mode="border", align_corners=False)
    warped = warped - level.view(-1, 1, 1, 1)

    # The UCI bitmaps are normalised for size: full height, the width follows.
    top, bottom = _extent((warped[:, 0] < 0).any(2))
    left, right = _extent((warped[:, 0] < 0).any(1))
    height, width = (bottom - top).clamp(min=4), (right - left).clamp(min=4)
    tall = uniform(29, 33)
    wide = (width * tall / height * uniform(0.75, 1.1)).clamp(10, 25)
    step_y, step_x = height / tall, width / wide  # canvas pixels a bitmap pixel
    centre_y = (top + bottom) / 2 + uniform(-1, 1) * step_y
    centre_x = (left + right) / 2 + uniform(-2.5, 2.5) * step_x
    place = torch.stack(
        [step_x * _BITMAP, zero, centre_x * 2 - _CANVAS, zero, step_y * _BITMAP, centre_y * 2 - _CANVAS], 1
    )
    grid = functional.affine_grid(
        place.view(-1, 2, 3) / _CANVAS, [count, 1, _BITMAP, _BITMAP], align_corners=False
    )
    bitmap = functional.grid_sample(warped, grid, padding_mode="border", align_corners=False)
    # Noise before the cut frays the strokes' edges, and nothing else: the scanner's part.
    noise = torch.randn(bitmap.shape, generator=generator) * uniform(0, 0.3).view(-1, 1, 1, 1)
    return functional.avg_pool2d((bitmap + noise < 0).float(), _BLOCK), bank.labels[chosen]


def _extent(ink: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, (n,) float32 each, every row's first set position in an (n, w) mask, and one past its last."""
    position = torch.arange(ink.shape[1])
    first = torch.where(ink, position, ink.shape[1]).amin(1)
    last = torch.where(ink, position, -1).amax(1) + 1
    return first.float(), last.float()
