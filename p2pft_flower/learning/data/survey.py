"""A survey of a site's images before a run: black and white samples, orientation, transparency.

The head of every file is read; of images with deep samples (more than 8 bits, signs, fractions) some are
decoded. If the files declare a range of samples from black to white, and the images use the range, it is
taken. If the files declare none, or the images use little of it, the range could only be guessed: the run is
refused until ``pixel-range`` gives it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.data.decoding import look_at_image
from p2pft_flower.learning.data.looking import each
from p2pft_flower.learning.data.own_images import NoImageError
from p2pft_flower.learning.data.pixels import Pixels, Range, as_source
from p2pft_flower.learning.data.samples import Form, Look, Samples
from p2pft_flower.learning.data.splits import Split

__all__ = ["Statistics", "Survey", "statistics_of", "survey"]

LOOKED_AT = 256
"""Most images of a form that are decoded, evenly spaced and the same number of each split; also most images
that are read of a split without files."""

VALUES = 4096
"""About the number of evenly spaced samples of each decoded image that are counted."""

BRIGHT = 99.9
"""Percentile of the samples that must reach half of the declared range for the range to be accepted."""

SPAN = 1 / 8
"""Least share of the declared range between the samples' percentiles 100 − :data:`BRIGHT` and BRIGHT."""

FULL = 0.98
"""Share of the declared white from which on samples are not judged if there are others: burned-in marks and
borders have such samples, in images that use little of the range."""

APART = 1.8
"""Ratio of two images' brightest samples above which they may have two depths."""

GROUP, NEAR_WHITE = 4, 0.8
"""Least number of images in a group of one depth, and the share of the depth's white that half must reach."""

OPAQUE = 0.99
"""Share of the opaque alpha that the largest alpha found must reach."""

ENOUGH = 8
"""Number of images of one split from which on the split is also judged by itself."""

DARK_IMAGE = 1 / 8
"""Share of the declared range below which an image of more than one colour counts as dark."""

DARK_IMAGES = 0.05
"""Share of dark images above which two kinds of images may be mixed."""

CLIPPED = 0.99
"""Share of the samples outside a given range from which on the range is probably meant for other images."""

HOUNSFIELD = -500
"""Value below which images may be CT: air has -1000, fat and water about 0."""

STATISTICS = 256
"""Most images in the statistics of a site, evenly spaced."""

BLACK, WHITE = 5, 250
"""Grey levels up to which, and from which, a pixel counts as black and white."""


@dataclass(frozen=True)
class Survey:
    """The findings of a survey.

    Attributes
    ----------
    pixels : Pixels
        The conversion of the images to pictures.
    looked_at : int
        Number of images whose description was read.
    turned : int
        Number of images with an orientation tag that turns or mirrors them.
    transparent : int
        Number of images with an alpha channel or a transparent colour.
    pages : int
        Number of images with several pages or frames.
    deep : mapping of str to int
        Number of images of each kind of deep samples, by words for the kind with its black and white.
    warnings : tuple of str
        Warnings for the user.
    frames : int
        Number of images that are frames of DICOM files of several.
    """

    pixels: Pixels
    looked_at: int
    turned: int
    transparent: int
    pages: int
    deep: Mapping[str, int]
    warnings: tuple[str, ...]
    frames: int = 0

    def __str__(self) -> str:
        """Return one line on the conversions of the images; empty if there are none."""
        parts = [
            (self.turned, "turned upright as their orientation tags say"),
            (self.transparent, "with transparency, laid on white"),
            (self.pages, "with several pages, of which the first is read"),
            (self.frames, "frames of DICOM files of several, each an image with its file's class"),
            *((number, what) for what, number in self.deep.items()),
        ]
        done = [f"{number} {what}" for number, what in parts if number]
        return f"of {self.looked_at} images {'; '.join(done)}" if done else ""


@dataclass(frozen=True)
class Statistics:
    """Simple statistics of a site's pictures in grey, for comparison with other sites.

    Attributes
    ----------
    images : int
        Number of pictures; each counts the same.
    mean, deviation : float
        Mean and standard deviation of all pixels, 0 (black) to 1 (white).
    black, white : float
        Shares of pixels that are black and white, 0..1.
    """

    images: int
    mean: float
    deviation: float
    black: float
    white: float


def survey(splits: Sequence[Split], window: Range | None, whose: str, dicom: Range | None = None) -> Survey:
    """Examine the images of one site, and return the conversion to pictures with other findings.

    Parameters
    ----------
    splits : sequence of Split
        The site's training and test images; unreadable ones are skipped here and reported when they are read.
    window : (float, float) or None
        The values that stand for black and for white, as the run-config gives them; None: auto.
    whose : str
        Words for the images' owner in messages, e.g. ``"peer 1's"``.
    dicom : (float, float), optional
        The same for deep grey DICOM samples, instead of ``window`` and of the files' own windows.

    Raises
    ------
    ConfigError
        When the black and white samples of some images are unknown; the message names the values seen and the
        key.
    NoImageError
        When the reader of a dataset of the user's own returned something that is no image.
    """
    looks = [look for split in splits for look in _looks(split, whose)]
    forms = Counter(look.form for _, _, look in looks if look.form is not None)
    images = {form: [(split, i) for split, i, look in looks if look.form == form] for form in forms}
    settings = Pixels(window, dicom=dicom)
    own = {form for form in forms if form.windowed and settings.chosen(form) is None}
    unknown = [form for form in forms if form not in own]
    seen = {form: some for form in unknown if (some := _see(form, images[form], whose)) is not None}
    warnings = []
    ranges: dict[Form, Range] = {}
    opacities: dict[Form, Range] = {}
    unclear = []
    for form, samples in seen.items():
        split, first = images[form][0]
        where = f"{forms[form]} of {form} samples, as {split.name(first, 'its')},"
        chosen = settings.chosen(form)
        found = chosen or _declared(form, samples)
        if isinstance(found, str):
            unclear.append(f"{where} {found}")
            continue
        if chosen is None:
            warnings += _dark(form, samples, found[1])
        else:
            by_dicom = form.of_dicom and dicom is not None
            given = "dicom-window, {:g} to {:g}," if by_dicom else "pixel-range = {:g}:{:g}"
            warnings += _unfit(form, samples, chosen, given.format(*chosen))
        ranges[form] = found
        if samples.alpha is not None:
            opacity = _opacity(form, samples.alpha, found)
            if opacity is None:
                low, high = samples.alpha
                raise ConfigError(
                    f"{whose} images: {where} have alpha of {low:g} to {high:g}, and nothing says which is "
                    f"opaque, where {found[1]:g} is white: write them without alpha"
                )
            opacities[form] = opacity
    if unclear:
        raise ConfigError(
            f"{whose} images: {'; '.join(unclear)}: set pixel-range = LOW:HIGH, the values that are to be "
            f"black and white ({_advice(seen)}); a site of a deployment can set its own in --node-config"
        )
    if window is not None and looks and not forms:
        warnings.append(
            f"pixel-range = {window[0]:g}:{window[1]:g} changes nothing: no sample has more than 8 bits"
        )
    if dicom is not None and looks and not any(form.of_dicom for form in forms):
        warnings.append("dicom-window changes nothing: no grey DICOM sample has more than 8 bits")
    declared = {form: ranges[form] for form in ranges if settings.chosen(form) is None}
    pixels = Pixels(window, declared, opacities, dicom)
    return Survey(
        pixels,
        len(looks),
        sum(look.turned for _, _, look in looks),
        sum(look.transparent for _, _, look in looks),
        sum(look.pages for _, _, look in looks),
        {
            _described(form, ranges.get(form)): number
            for form, number in forms.items()
            if form in ranges or form in own
        },
        tuple(warnings),
        sum(int(np.sum(split.frames > 0)) for split in splits if split.frames is not None),
    )


def statistics_of(split: Split, positions: npt.NDArray[np.int64], whose: str) -> Statistics | None:
    """Return statistics of some pictures, evenly spaced among ``positions``; None if none can be read."""
    histograms = []
    with closing(each(split.picture, _spaced(positions, STATISTICS), whose)) as found:
        for _, picture in found:
            if not isinstance(picture, Exception):
                counts = np.array(picture.convert("L").histogram(), dtype=np.float64)
                histograms.append(counts / counts.sum())
    if not histograms:
        return None
    shares = np.mean(histograms, axis=0)
    levels = np.arange(256) / 255
    mean = float(shares @ levels)
    return Statistics(
        len(histograms),
        mean,
        float(np.sqrt(shares @ (levels - mean) ** 2)),
        float(shares[: BLACK + 1].sum()),
        float(shares[WHITE:].sum()),
    )


def _looks(split: Split, whose: str) -> list[tuple[Split, int, Look]]:
    """Return descriptions of images, by the heads of files; of a split without files, of some images.

    Raises
    ------
    NoImageError
        When the reader of a dataset of the user's own returned something that is no image.
    """
    positions = np.arange(len(split))
    look = split.look
    if look is None:
        positions = _spaced(positions, LOOKED_AT)

        def look(position: int) -> Look:
            source = as_source(split.read(position))
            if not isinstance(source, Samples):
                return look_at_image(source)
            deep = source.form.kind != "unsigned" or source.form.bits > 8
            turned = source.orientation != 1
            return Look(source.form if deep else None, turned, source.alpha is not None, False)

    looks = []
    with closing(each(look, positions, whose)) as found:
        for position, seen in found:
            if isinstance(seen, NoImageError):
                raise seen  # also if unreadable images are skipped
            if not isinstance(seen, Exception):
                looks.append((split, position, seen))
    return looks


@dataclass(frozen=True)
class _Seen:
    """Samples of some images of a form."""

    lowest: float
    highest: float
    bright: float
    """The percentile :data:`BRIGHT`."""
    values: npt.NDArray[np.float64]
    """Some samples of all images."""
    tops: npt.NDArray[np.float64]
    """The largest sample, without marks near white, of each image of more than one colour."""
    alpha: Range | None
    """The smallest and the largest alpha."""
    parts: tuple[npt.NDArray[np.float64], ...]
    """``values`` of each split with enough images, if several splits have images."""


def _see(form: Form, images: Sequence[tuple[Split, int]], whose: str) -> _Seen | None:
    """Return samples of some of the ``images`` of a form; None if no image can be decoded."""
    by_split = [list(part) for _, part in groupby(images, lambda image: id(image[0]))]
    most = LOOKED_AT // len(by_split)
    some = [part[i] for part in by_split for i in _spaced(np.arange(len(part)), most)]
    lows, highs, tops, alphas = [], [], [], []
    values: dict[int, list[npt.NDArray[np.float64]]] = {}

    def read(number: int) -> Samples | None:
        split, position = some[number]
        source = as_source(split.read(position))
        if not isinstance(source, Samples) or source.form != form or not np.isfinite(source.values).all():
            return None
        return source

    with closing(each(read, range(len(some)), whose)) as found:
        for number, source in found:
            if source is None or isinstance(source, Exception):
                continue
            samples = np.ravel(source.values).astype(np.float64)
            lows.append(samples.min())
            highs.append(samples.max())
            if samples.max() > samples.min():
                tops.append(_without_marks(samples, form.white).max())
            if source.alpha is not None:
                alphas += [float(source.alpha.min()), float(source.alpha.max())]
            part = samples[:: max(1, len(samples) // VALUES)]
            values.setdefault(id(some[number][0]), []).append(part)
    if not values:
        return None
    joined = np.concatenate([part for parts in values.values() for part in parts])
    parts = tuple(np.concatenate(parts) for parts in values.values() if len(parts) >= ENOUGH)
    return _Seen(
        min(lows),
        max(highs),
        float(np.percentile(joined, BRIGHT)),
        joined,
        np.array(tops),
        (min(alphas), max(alphas)) if alphas else None,
        parts if len(values) > 1 else (),
    )


def _without_marks(samples: npt.NDArray[np.float64], white: int | None) -> npt.NDArray[np.float64]:
    """Return samples without those near the declared white; all of them if only black ones would remain."""
    if white is None:
        return samples
    rest = samples[samples < FULL * white]
    return rest if rest.any() else samples


def _declared(form: Form, seen: _Seen) -> Range | str:
    """Return black and white as the files declare them, or, as text, the reason against that."""
    values = f"hold {seen.lowest:g} to {seen.highest:g}"
    if form.white is None:
        return f"{values}, and nothing says which are black and white"
    white = form.white
    if form.significant < form.bits and seen.highest < 2**form.significant:
        white = 2**form.significant - 1  # the low bits are the significant ones
    if seen.alpha is not None and seen.lowest == seen.highest:
        return 0.0, float(white)  # cut-outs of one colour: only their alpha shows anything
    for part in (seen.values, *seen.parts):
        low, high = np.percentile(_without_marks(part, white), [100 - BRIGHT, BRIGHT])
        if high < white / 2 or high - low < white * SPAN:
            most = f" ({2 * BRIGHT - 100:g} % of them {low:g} to {high:g})" if high < seen.highest else ""
            return f"{values}{most}, though they declare 0 to {white}"
    dark = seen.tops[seen.tops < white * DARK_IMAGE]
    if len(dark) and len(dark) / len(seen.tops) >= DARK_IMAGES:
        share = 100 * len(dark) / len(seen.tops)
        return (
            f"declare 0 to {white}, but {share:.0f} % of those looked at hold at most {dark.max():g}, "
            "as if two kinds were mixed"
        )
    if (bits := _two_depths(seen.tops)) is not None:
        return f"declare 0 to {white}, but some use {bits} bits and others more, as if two kinds were mixed"
    return 0.0, float(white)


def _two_depths(tops: npt.NDArray[np.float64]) -> int | None:
    """Return the lower depth in bits if the images' brightest samples form two groups, as of two depths.

    None if they do not.
    """
    ordered = np.sort(tops)
    for i in range(1, len(ordered)):
        below, above = ordered[i - 1], ordered[i]
        bits = int(below).bit_length()
        many = min(i, len(ordered) - i) >= max(GROUP, DARK_IMAGES * len(ordered))
        # Most images of a depth have a sample near its white; of single dark ones that is chance.
        full = np.mean(ordered[:i] >= NEAR_WHITE * 2**bits) >= 0.5
        if many and full and bits >= 8 and above >= APART * below:
            return bits
    return None


def _opacity(form: Form, alpha: Range, black_white: Range) -> Range | None:
    """Return transparent and opaque alpha, by the largest alpha found; None if they could only be guessed."""
    black, white = black_white
    if alpha[0] < 0:
        return (black, white) if black <= alpha[0] and OPAQUE * white <= alpha[1] <= white else None
    largest = {"unsigned": 2.0**form.bits - 1, "signed": 2.0 ** (form.bits - 1) - 1, "float": 1.0}[form.kind]
    for opaque in sorted({white, largest, float(form.white or largest)}):
        if OPAQUE * opaque <= alpha[1] <= opaque:
            return 0.0, opaque
    return None


def _described(form: Form, black_white: Range | None) -> str:
    if black_white is None:
        return f"of {form} samples, each in its file's own window"
    return f"of {form} samples, black {black_white[0]:g}, white {black_white[1]:g}"


def _dark(form: Form, seen: _Seen, white: float) -> list[str]:
    """Return a warning of single images that use little of the range that the others use; empty: none."""
    dark = int(np.sum(seen.tops < white * DARK_IMAGE))
    if not dark:
        return []
    return [
        f"{dark} of {len(seen.tops)} images of {form} samples that were looked at hold at most "
        f"{white * DARK_IMAGE:g} of 0 to {white:g}, and are nearly black"
    ]


def _unfit(form: Form, seen: _Seen, window: Range, given: str) -> list[str]:
    clipped = float(np.mean((seen.values < window[0]) | (seen.values > window[1])))
    if seen.alpha is not None and seen.lowest == seen.highest:
        return []  # cut-outs of one colour
    if clipped < CLIPPED and seen.highest > seen.lowest:
        low, high = np.percentile(np.clip(seen.values, *window), [100 - BRIGHT, BRIGHT])
        if high - low >= SPAN * (window[1] - window[0]):
            return []
    return [f"{given} leaves little of {form} samples, which hold {seen.lowest:g} to {seen.highest:g}"]


def _advice(seen: Mapping[Form, _Seen]) -> str:
    """Return a text with examples of ranges that fit the samples seen."""
    low = min(s.lowest for s in seen.values())
    high = max(_without_marks(s.values, form.white).max() for form, s in seen.items())
    if low < 0:
        hounsfield = "-1000:400 is usual for CT in Hounsfield units; " if low <= HOUNSFIELD else ""
        return f"{hounsfield}they hold {low:g}:{high:g}"
    if high <= 1 and any(form.kind == "float" for form in seen):
        return "0:1 if they are shares of white"
    if low > high / 2:
        return f"they hold {low:g}:{high:g}"
    fitting = [f"0:{2**bits - 1} for {bits} bits" for bits in (8, 10, 12, 14, 16) if high < 2**bits]
    return " or ".join([*fitting[:1], *fitting[-1:]] if len(fitting) > 1 else fitting) or f"0:{high:g}"


def _spaced(positions: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """Return at most ``most`` of the positions, evenly spaced."""
    if len(positions) <= most:
        return positions
    return positions[np.linspace(0, len(positions) - 1, most).round().astype(np.int64)]
