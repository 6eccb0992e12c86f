"""Every decoded image becomes the picture that a viewer shows."""

from __future__ import annotations

import contextlib
import io
import warnings

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.decoding import decode, look_at
from p2pft_flower.learning.data.pixels import Pixels, grey_levels
from p2pft_flower.learning.data.samples import Samples, samples_of
from p2pft_flower.learning.data.splits import Split
from tests.learning.image_files import exif, on_white, png, pnm, tiff, window

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7)).astype(np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3)).astype(np.uint8)
ALPHA = RNG.integers(0, 256, (5, 7, 1)).astype(np.uint8)


def picture_of(content, folder, *, black_white=None, name="image.bin"):
    file = folder / name
    file.write_bytes(content)
    return show(decode(file), black_white)


def show(source, black_white=None):
    """Show an image; the alpha that is opaque is the sample that is white."""
    form = getattr(source, "form", None)
    return np.asarray(Pixels(black_white, {}, {form: black_white} if form else {}).picture(source))


def assert_shows(content, expected, folder, black_white=None, off=0):
    shown = picture_of(content, folder, black_white=black_white)
    assert shown.shape == expected.shape
    np.testing.assert_allclose(shown.astype(float), expected, atol=off)


KINDS = {
    "unsigned 8": (GREY, None),
    "unsigned 16": (GREY.astype(np.uint16) * 257, (0, 65535)),
    "12 of 16 bits": (GREY.astype(np.uint16) * 16, (0, 4080)),
    "unsigned 32": (GREY.astype(np.uint32) * 16843009, (0, 2**32 - 1)),
    "signed 8": ((GREY.astype(int) - 128).astype(np.int8), (-128, 127)),
    "signed 16": (GREY.astype(np.int16) * 5 - 1000, (-1000, 275)),
    "signed 32": (GREY.astype(np.int32) * 1000 - 70000, (-70000, 185000)),
    "half": ((GREY / 255).astype(np.float16), (0, 1)),
    "float": ((GREY / 255).astype(np.float32), (0, 1)),
    "float of 16 bits": (GREY.astype(np.float32) * 257, (0, 65535)),
    "double": (GREY.astype(np.float64) * 1e-9 - 3e-8, (-3e-8, 2.25e-7)),
}


@pytest.mark.parametrize("zero_is_white", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_tiff_of_any_depth_and_sign_shows_its_window_and_zero_is_white_is_inverted(
    kind, compressed, order, zero_is_white, tmp_path
):
    values, black_white = KINDS[kind]
    content = tiff(values, order=order, compressed=compressed, photometric=0 if zero_is_white else 1)
    expected = window(values, *(black_white or (0, 255)))
    assert_shows(content, 255 - expected if zero_is_white else expected, tmp_path, black_white, off=1e-9)
    deep = look_at(tmp_path / "image.bin").form
    assert (deep is None) == (kind == "unsigned 8")


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_png_of_any_depth_shows_its_range_and_its_transparent_level_is_white(bits, tmp_path):
    top = 2**bits - 1
    values = np.rint(GREY / 255 * top).astype(int)
    black_white = (0, top) if bits == 16 else None
    assert_shows(png(values, bits, 0), window(values, 0, top), tmp_path, black_white)
    clear = int(values[0, 0])
    shown = np.where(values == clear, 255, window(values, 0, top))
    assert_shows(png(values, bits, 0, tRNS=clear.to_bytes(2, "big")), shown, tmp_path, black_white)
    assert look_at(tmp_path / "image.bin").transparent


@pytest.mark.parametrize("bits", [8, 16])
def test_colours_of_8_and_16_bits_show_the_same_with_and_without_transparency(bits, tmp_path):
    factor, black_white = (257, (0, 65535)) if bits == 16 else (1, None)
    colour, alpha = COLOUR.astype(np.uint32) * factor, ALPHA.astype(np.uint32) * factor
    dtype = np.uint16 if bits == 16 else np.uint8
    laid = on_white(COLOUR, ALPHA[..., 0] / 255)
    assert_shows(png(colour, bits, 2), COLOUR, tmp_path, black_white)
    assert_shows(png(np.concatenate([colour, alpha], 2), bits, 6), laid, tmp_path, black_white, off=1)
    clear = np.where((COLOUR[0, 0] == COLOUR).all(2, keepdims=True), 255, COLOUR)
    trns = colour[0, 0].astype(">u2").tobytes()
    assert_shows(png(colour, bits, 2, tRNS=trns), clear, tmp_path, black_white)
    for planar in (False, True):
        assert_shows(tiff(colour.astype(dtype), photometric=2, planar=planar), COLOUR, tmp_path, black_white)
    for kind, shown in ((2, laid), (0, COLOUR)):  # unassociated alpha; a channel that means nothing
        content = tiff(np.concatenate([colour, alpha], 2).astype(dtype), photometric=2, extra=[kind])
        assert_shows(content, shown, tmp_path, black_white, off=1)


def test_alpha_that_colours_are_multiplied_by_is_not_applied_twice(tmp_path):
    alpha = ALPHA / 255
    content = np.rint(np.concatenate([COLOUR * alpha, ALPHA], 2) * 257).astype(np.uint16)
    laid = on_white(COLOUR, alpha[..., 0])
    assert_shows(tiff(content, photometric=2, extra=[1]), laid, tmp_path, (0, 65535), off=1)


@pytest.mark.parametrize(("black", "white"), [(0, 65535), (1000, 60000)])
def test_colours_that_alpha_has_multiplied_are_divided_by_it_before_they_are_windowed(black, white):
    alpha = np.full((5, 7), 0.5)
    colours = black + COLOUR / 255 * (white - black)
    form = samples_of(np.zeros((5, 7), np.float32)).form
    straight = Samples(colours, form, alpha)
    multiplied = Samples(colours * 0.5, form, alpha, premultiplied=True)
    for samples in (straight, multiplied):
        laid = grey_levels(samples, (black, white), (0.0, 1.0))
        np.testing.assert_allclose(laid.astype(float), on_white(COLOUR, alpha), atol=1)


def test_alpha_beyond_what_is_opaque_is_refused():
    samples = samples_of(np.full((4, 4, 2), 300, np.uint16))
    with pytest.raises(ValueError, match="alpha of 300 to 300, where 0 is transparent and 255 is opaque"):
        grey_levels(samples, (0, 65535), (0.0, 255.0))


def test_grey_with_alpha_is_laid_on_white_at_8_and_16_bits(tmp_path):
    laid = on_white(GREY[..., None], ALPHA[..., 0] / 255)[..., 0]
    both = np.concatenate([GREY[..., None], ALPHA], 2)
    assert_shows(png(both, 8, 4), laid, tmp_path, off=1)
    assert_shows(png(both.astype(np.uint32) * 257, 16, 4), laid, tmp_path, (0, 65535), off=1)
    assert_shows(tiff(both.astype(np.uint16) * 257, extra=[2]), laid, tmp_path, (0, 65535), off=1)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("white", [1, 100, 255, 1000, 4095, 65535])
def test_a_pgm_and_a_ppm_show_the_range_up_to_their_maxval(white, plain, tmp_path):
    for levels in (GREY, COLOUR):
        values = np.rint(levels / 255 * white).astype(int)
        black_white = (0, white) if white > 255 else None
        assert_shows(pnm(values, white, plain=plain), window(values, 0, white), tmp_path, black_white)
        form = look_at(tmp_path / "image.bin").form
        assert (form and form.white) == (white if white > 255 else None)


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_a_jpeg_2000_shows_its_samples_as_they_were_written(bits, signed, tmp_path):
    low = -(2 ** (bits - 1)) if signed else 0
    values = np.kron(np.rint(GREY / 255 * (2**bits - 1)), np.ones((8, 8))).astype(int) + low
    array = values.astype(np.int16 if signed else np.uint16)
    content = imagecodecs.jpeg2k_encode(array, level=0, reversible=True, bitspersample=bits)
    top = low + 2**bits - 1
    assert_shows(content, window(values, low, top), tmp_path, (low, top))
    form = look_at(tmp_path / "image.bin").form
    assert (form.kind, form.bits) == ("signed" if signed else "unsigned", bits)
    assert form.white == (None if signed else 2**bits - 1)


def test_a_window_clips_what_lies_beyond_it(tmp_path):
    hounsfield = np.array([[-2000, -1000, -300, 400, 3000]], dtype=np.int16)
    assert_shows(tiff(hounsfield), np.array([[0, 0, 128, 255, 255]]), tmp_path, (-1000, 400), off=0.5)


MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"]


def by_numpy(mode, samples, palette):
    """What an image of this mode shows, by its definition; (H, W) or (H, W, 3)."""
    s = samples.astype(float)
    if mode == "1":
        return np.where(samples[..., 0] > 127, 255.0, 0.0)
    if mode == "L":
        return s[..., 0]
    if mode in ("LA", "La"):
        alpha = s[..., 1] / 255
        straight = (
            s[..., :1] if mode == "LA" else np.clip(s[..., :1] / np.maximum(alpha[..., None], 1e-9), 0, 255)
        )
        return on_white(straight, alpha)[..., 0]
    if mode in ("P", "PA"):
        shown = palette[samples[..., 0]].astype(float)
        return shown if mode == "P" else on_white(shown, s[..., 1] / 255)
    if mode in ("RGB", "RGBX"):
        return s[..., :3]
    if mode in ("RGBA", "RGBa"):
        alpha = s[..., 3] / 255
        straight = (
            s[..., :3] if mode == "RGBA" else np.clip(s[..., :3] / np.maximum(alpha[..., None], 1e-9), 0, 255)
        )
        return on_white(straight, alpha)
    if mode == "CMYK":
        return np.clip(255 - s[..., :3], 0, 255) * (255 - s[..., 3:]) / 255
    if mode == "YCbCr":  # JPEG's, ITU-T T.871
        y, cb, cr = s[..., 0], s[..., 1] - 128, s[..., 2] - 128
        return np.clip(
            np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1), 0, 255
        )
    if mode == "HSV":
        h, sat, v = s[..., 0] / 255 * 6, s[..., 1] / 255, s[..., 2]
        k = [(n + h) % 6 for n in (5, 3, 1)]
        return np.stack([v - v * sat * np.clip(np.minimum(x, 4 - x), 0, 1) for x in k], -1)
    raise ValueError(mode)


WRITABLE = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"],
    "WEBP": ["RGB", "RGBA"],
    "GIF": ["1", "L", "P"],
    "BMP": ["1", "L", "P", "RGB", "RGBA"],
    "TGA": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "PPM": ["1", "L", "RGB", "RGBA"],
    "JPEG2000": ["L", "LA", "RGB", "RGBA"],
    "SGI": ["L", "RGB", "RGBA"],
    "PCX": ["1", "L", "P", "RGB"],
    "QOI": ["RGB", "RGBA"],
}
"""Formats without loss and the modes of at most 8 bits that Pillow writes into them."""

LOSSLESS = {"WEBP": {"lossless": True, "exact": True}, "JPEG2000": {"irreversible": False}}


@st.composite
def pictures(draw, modes):
    mode = draw(st.sampled_from(modes))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    bands = 1 if mode in ("1", "P") else len(Image.new(mode, (1, 1)).getbands())
    samples = rng.integers(0, 256, (height, width, bands)).astype(np.uint8)
    if mode in ("La", "RGBa"):
        samples[..., :-1] = np.minimum(samples[..., :-1], samples[..., -1:])
    palette = rng.integers(0, 256, (256, 3)).astype(np.uint8)
    if mode == "1":
        samples = (samples > 127).astype(np.uint8) * 255
        image = Image.fromarray(samples[..., 0]).convert("1", dither=Image.Dither.NONE)
    else:
        image = Image.frombytes(mode, (width, height), samples.tobytes())
        if mode in ("P", "PA"):
            image.putpalette(palette.tobytes())
    return Drawn((mode, image, samples, palette))


class Drawn(tuple):
    """What was drawn; shown by its mode and size."""

    def __repr__(self):
        return f"{self[0]} {self[2].shape} {self[2].ravel()[:8]}"


@given(pictures([m for m in MODES if m != "LAB"]))
def test_an_image_of_any_mode_is_the_picture_that_its_definition_says(drawn):
    mode, image, samples, palette = drawn
    shown = Pixels().picture(image)
    expected = by_numpy(mode, samples, palette)
    assert shown.mode == ("L" if expected.ndim == 2 else "RGB")
    # Pillow computes conversions in whole numbers; HSV's hue has 256 steps.
    off = {"HSV": 4, "La": 2, "RGBa": 2}.get(mode, 1)
    np.testing.assert_allclose(np.asarray(shown, dtype=float), expected, atol=off)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data())
def test_what_pillow_writes_is_the_picture_that_was_written(data, tmp_path):
    kind = data.draw(st.sampled_from(sorted(WRITABLE)))
    mode, image, samples, palette = data.draw(pictures(WRITABLE[kind]))
    content = io.BytesIO()
    image.save(content, kind, **LOSSLESS.get(kind, {}))
    shown = picture_of(content.getvalue(), tmp_path, name="written.image").astype(float)
    expected = by_numpy(mode, samples, palette)
    if shown.ndim > expected.ndim:  # formats without greys
        expected = np.repeat(expected[..., None], 3, axis=2)
    if kind in ("BMP", "PPM") and mode == "RGBA":
        expected = samples[..., :3].astype(float)  # their fourth channel means nothing
    np.testing.assert_allclose(shown, expected, atol=1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["TIFF", "PNG", "PPM"]),
    mode=st.sampled_from(["I;16", "I;16B", "I", "F"]),
    seed=st.integers(0, 2**32 - 1),
    orientation=st.integers(1, 8),
)
def test_deep_greys_that_pillow_writes_show_their_window(kind, mode, seed, orientation, tmp_path):
    if kind == "PNG" and mode in ("I;16B", "F"):
        mode = "I;16"  # all that it writes
    if kind == "PPM":
        mode = "F"  # its greys of 16 bits are scaled when they are written
    rng = np.random.default_rng(seed)
    dtype = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4", "F": "<f4"}[mode]
    values = rng.integers(0, 5000, (4, 6)).astype(dtype)
    if kind == "PNG":
        values, mode = values.astype("<u2"), "I;16"
    content = io.BytesIO()
    image = Image.frombytes(mode, (6, 4), values.tobytes())
    image.save(content, kind, **({"exif": tagged(orientation)} if kind in ("TIFF", "PNG") else {}))
    shown = picture_of(content.getvalue(), tmp_path, black_white=(100, 4000), name="deep.image")
    expected = window(values, 100, 4000)
    if kind in ("TIFF", "PNG"):
        expected = upright(expected, orientation)
    np.testing.assert_array_equal(shown, expected)


SRGB_OF_XYZ = np.array(  # of D50, by Bradford's adaptation (Lindbloom)
    [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
)
D50 = np.array([0.96422, 1.0, 0.82521])


def srgb_of_lab(lab):
    """sRGB levels of (…, 3) CIELAB, by CIE 15 and IEC 61966-2-1."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    xyz = D50 * np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2)
    linear = np.clip(xyz @ SRGB_OF_XYZ.T, 0, 1)
    return 255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def test_cielab_shows_the_colours_that_it_means(tmp_path):
    light, a, b = np.meshgrid(np.arange(90, 200, 10), np.arange(-20, 25, 5), np.arange(-20, 25, 5))
    levels = np.stack([light, a & 255, b & 255], -1).astype(np.uint8).reshape(11, -1, 3)
    expected = srgb_of_lab(np.stack([light / 2.55, a, b], -1).reshape(11, -1, 3))
    inside = expected.min(axis=-1) > 60  # where a channel is nearly black, rounding shows
    image = Image.frombytes("LAB", levels.shape[1::-1], levels.tobytes())
    for shown in (np.asarray(Pixels().picture(image)), picture_of(tiff(levels, photometric=8), tmp_path)):
        np.testing.assert_allclose(shown[inside], expected[inside], atol=2.5)
    assert inside.sum() > 600


def tagged(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def upright(array, orientation):
    """The picture that is stored as ``array``, by EXIF's words on where its first row and column are."""
    turns = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, 1),
    }
    return turns[orientation](array)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "WEBP", "TIFF", "LZW TIFF", "deep TIFF", "deep PNG", "PNG, tag last"]
)
def test_an_image_is_turned_as_its_orientation_tag_says(kind, orientation, tmp_path):
    levels = np.kron(np.array([[10, 90], [170, 250], [50, 130]]), np.ones((16, 16))).astype(np.uint8)
    black_white = None
    if kind.startswith("deep"):
        black_white = (0, 65535)
        deep = levels.astype(np.uint16) * 257
        content = (
            tiff(deep, tags=[(274, "H", [orientation])])
            if kind == "deep TIFF"
            else png(deep, 16, 0, eXIf=exif(orientation))
        )
    elif kind == "PNG, tag last":
        content = png(levels, 8, 0, eXIf=exif(orientation))
    else:
        made = io.BytesIO()
        options = {
            "JPEG": {"quality": 95},
            "WEBP": {"lossless": True},
            "LZW TIFF": {"compression": "tiff_lzw"},
        }
        options = options.get(kind, {})
        image = Image.fromarray(levels).convert("RGB" if kind == "WEBP" else "L")
        image.save(made, kind.split()[-1], exif=tagged(orientation), **options)
        content = made.getvalue()
    shown = picture_of(content, tmp_path, black_white=black_white).astype(float)
    expected = upright(levels, orientation)
    if shown.ndim == 3:
        shown = shown[..., 0]
    assert shown.shape == expected.shape
    np.testing.assert_allclose(shown, expected, atol=4)
    assert look_at(tmp_path / "image.bin").turned == (orientation != 1)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_an_orientation_that_cannot_be_read_turns_nothing(tmp_path):
    levels = np.zeros((4, 6), np.uint8)
    for broken in (b"", b"II*\0", exif(6)[:-7], exif(9), exif(0), b"MM" + exif(6)[2:]):
        assert picture_of(png(levels, 8, 0, eXIf=broken), tmp_path).shape == (4, 6)
        assert not look_at(tmp_path / "image.bin").turned


def test_of_several_pages_the_first_is_shown_and_the_file_is_known_to_have_them(tmp_path):
    frames = [Image.new("RGB", (4, 4), (level, 0, 0)) for level in (50, 200)]
    for kind in ("TIFF", "GIF", "WEBP", "PNG"):
        file = tmp_path / f"pages.{kind.lower()}"
        frames[0].save(file, kind, save_all=True, append_images=frames[1:], **LOSSLESS.get(kind, {}))
        assert look_at(file).pages
        assert np.asarray(Pixels().picture(decode(file)))[0, 0, 0] == 50
    deep = [Image.fromarray(np.full((4, 4), v, np.uint16)) for v in (1000, 65535)]
    deep[0].save(tmp_path / "deep.tif", save_all=True, append_images=deep[1:])
    assert look_at(tmp_path / "deep.tif").pages
    assert (np.asarray(Pixels((0, 2000)).picture(decode(tmp_path / "deep.tif"))) == 128).all()


ARRAYS = [
    (GREY, None, GREY),
    (GREY[..., None], None, GREY),
    (COLOUR, None, COLOUR),
    (GREY > 99, None, np.where(GREY > 99, 255, 0)),
    (np.concatenate([COLOUR, ALPHA], 2), None, on_white(COLOUR, ALPHA[..., 0] / 255)),
    (
        np.concatenate([GREY[..., None], ALPHA], 2),
        None,
        on_white(GREY[..., None], ALPHA[..., 0] / 255)[..., 0],
    ),
    (COLOUR.astype(np.uint16) * 16, (0, 4080), COLOUR),
    ((COLOUR / 255).astype(np.float64), (0, 1), COLOUR),
    (COLOUR.astype(np.int64) - 1000, (-1000, -745), COLOUR),
    ((np.concatenate([COLOUR, ALPHA], 2) / 255), (0, 1), on_white(COLOUR, ALPHA[..., 0] / 255)),
]


@pytest.mark.parametrize(("array", "black_white", "expected"), ARRAYS)
def test_an_array_is_shown_as_a_file_of_the_same_samples_would_be(array, black_white, expected):
    np.testing.assert_allclose(show(samples_of(array), black_white).astype(float), expected, atol=1)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "a NoneType is no image"),
        ("cat.png", "a str is no image"),
        (np.zeros((3, 32, 32), np.uint8), r"shape \(3, 32, 32\) is no image; one has \(H, W\)"),
        (np.zeros(7, np.uint8), r"shape \(7,\) is no image"),
        (np.zeros((0, 4), np.uint8), r"shape \(0, 4\) is no image"),
        (np.zeros((4, 4), complex), "complex128 is no image"),
        (np.zeros((4, 4), object), "object is no image"),
        (np.full((4, 4), np.nan), "a sample is NaN or infinite"),
        (np.zeros((4, 4, 2), np.int16), "nothing says which is opaque"),
    ],
)
def test_what_is_no_image_is_refused_with_what_it_is(source, message):
    with pytest.raises(ValueError, match=message):
        Pixels((0, 1)).picture(source)


def test_deep_samples_of_which_nothing_says_what_is_black_are_never_shown():
    for array in (GREY.astype(np.uint16), GREY.astype(np.int8), GREY.astype(np.float32)):
        with pytest.raises(ValueError, match=r"nothing says which are black and white: set pixel-range"):
            Pixels().picture(array)
        with pytest.raises(ValueError, match=r"nothing says which are black and white: set pixel-range"):
            Pixels().picture(Image.fromarray(array) if array.dtype != np.int8 else array)


def test_an_image_that_somebody_opened_is_decoded_in_full(tmp_path):
    file = tmp_path / "deep.png"
    file.write_bytes(png(COLOUR.astype(int) * 16, 16, 2))
    with Image.open(file) as image:
        for _ in range(2):
            np.testing.assert_array_equal(np.asarray(Pixels((0, 4080)).picture(image)), COLOUR)
        cut = image.crop((0, 0, 2, 2))  # what its owner did to it stays done
    assert np.asarray(Pixels((0, 4080)).picture(cut)).shape == (2, 2, 3)


BROKEN = {
    "an empty file": b"",
    "words": b"not an image",
    "half a TIFF": tiff(GREY.astype(np.uint16))[:60],
    "a TIFF without its samples": tiff(GREY.astype(np.uint16))[:-20],
    "half a deep PNG": png(GREY.astype(int) * 257, 16, 0)[:70],
    "half a PGM": pnm(GREY.astype(int) * 16, 4095)[:-10],
    "a PGM brighter than its white": pnm(GREY.astype(int) * 257, 4095),
    "complex numbers": tiff(GREY, tags=[])[:0]
    + tiff(np.zeros((4, 4), np.float32)).replace(
        b"\x53\x01\x03\0\x01\0\0\0\x03\0", b"\x53\x01\x03\0\x01\0\0\0\x06\0"
    ),
    "a channel too many": tiff(np.zeros((4, 4, 5), np.uint16), photometric=2),
    "infinite samples": tiff(np.full((4, 4), np.inf, np.float32)),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_cannot_be_decoded_or_shown_is_named_as_unreadable(what, tmp_path):
    file = tmp_path / "broken.tif"
    file.write_bytes(BROKEN[what])
    split = Split.of_files([file], np.zeros(1, np.int64))
    with pytest.raises(
        DataError, match=r"broken\.tif: not a readable image \(.*\); repair or remove it, or set bad"
    ):
        Split(split.labels, split.read, split.content, split.files, pixels=Pixels((0, 1000))).picture(0)


# --- what Pillow cuts, misreads or does not open ---


def written(folder, array, **how):
    file = folder / "image.tif"
    tifffile.imwrite(file, array, **how)
    return file


@pytest.mark.parametrize("scale", [1, 257], ids=["colours of 8 bits", "colours of 16 bits"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_palette_shows_its_colours_whether_they_have_8_or_16_bits(dtype, scale, tmp_path):
    rng = np.random.default_rng(1)
    colours = rng.integers(0, 256, (3, 2 ** (8 * np.dtype(dtype).itemsize))).astype(np.uint16)
    indices = rng.integers(0, colours.shape[1], (5, 7)).astype(dtype)
    file = written(tmp_path, indices, photometric="palette", colormap=colours * np.uint16(scale))
    np.testing.assert_array_equal(show(decode(file)), colours[:, indices].transpose(1, 2, 0))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_channels_that_are_no_colours_are_refused(planar, dtype, tmp_path):
    bands = np.zeros((4, 16, 16) if planar == "separate" else (16, 16, 4), dtype)
    file = written(tmp_path, bands, photometric="minisblack", planarconfig=planar)
    with pytest.raises(DataError, match="4 channels, and TIFF does not say which of them are colours"):
        decode(file)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_cmyk_of_16_bits_shows_the_colours_of_8(planar, tmp_path):
    inks = np.random.default_rng(1).integers(0, 256, (16, 16, 4)).astype(np.uint16)
    stored = inks * 257 if planar == "contig" else np.moveaxis(inks * 257, -1, 0)
    file = written(tmp_path, stored, photometric="separated", planarconfig=planar)
    expected = Image.fromarray(inks.astype(np.uint8), mode="CMYK").convert("RGB")
    np.testing.assert_array_equal(show(decode(file)), np.asarray(expected))


@pytest.mark.parametrize("compression", ["jpeg2000", "jpegxl", "webp"])
def test_a_tiff_whose_compression_pillow_does_not_know_is_read(compression, tmp_path):
    colours = np.random.default_rng(1).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    how = {"compressionargs": {"lossless": True}} if compression != "jpeg2000" else {}
    file = written(tmp_path, colours, photometric="rgb", compression=compression, **how)
    np.testing.assert_array_equal(show(decode(file)), colours)
    assert look_at(file).form is None


@pytest.mark.parametrize("bits", [1, 4, 7])
def test_a_jpeg_2000_of_less_than_8_bits_ends_at_white(bits, tmp_path):
    levels = np.random.default_rng(1).integers(0, 2**bits, (16, 16)).astype(np.uint8)
    file = tmp_path / "low.jp2"
    file.write_bytes(imagecodecs.jpeg2k_encode(levels, level=0, bitspersample=bits))
    np.testing.assert_array_equal(show(decode(file)), np.rint(levels * (255 / (2**bits - 1))))


def test_a_pgm_shows_its_range_however_long_its_comments_are(tmp_path):
    file = tmp_path / "long.pgm"
    head = b"P5\n" + b"# a note\n" * 500 + b"7 5\n4095\n"
    file.write_bytes(head + (GREY.astype(np.uint16) * 16).astype(">u2").tobytes())
    assert look_at(file).form.white == 4095
    np.testing.assert_allclose(show(decode(file), (0, 4095)).astype(float), GREY, atol=1)


def test_an_opened_image_is_decoded_in_full_wherever_its_bytes_lie_and_at_the_page_that_was_chosen(tmp_path):
    pages = [GREY.astype(np.uint16) * 16, (255 - GREY).astype(np.uint16) * 16]
    with tifffile.TiffWriter(tmp_path / "stack.tif") as file:
        for page in pages:
            file.write(page, photometric="miniswhite")
    content = (tmp_path / "stack.tif").read_bytes()
    for number, page in enumerate(pages):
        with Image.open(io.BytesIO(content)) as image:
            image.seek(number)
            np.testing.assert_array_equal(np.asarray(Pixels((0, 4080)).picture(image)), 255 - page // 16)


def test_a_deep_tiff_that_pillow_has_loaded_is_refused(tmp_path):
    file = written(tmp_path, COLOUR.astype(np.uint16) * 16, photometric="rgb")
    with Image.open(file) as image:
        image.load()
        with pytest.raises(ValueError, match="16-bit unsigned TIFF samples that Pillow has loaded"):
            Pixels((0, 4080)).picture(image)


@pytest.mark.parametrize("kind", ["gif", "png", "jpg", "tif", "webp", "ppm", "jp2", "tga", "bmp"])
def test_of_files_cut_or_with_wrong_bytes_nothing_is_raised_but_that_they_cannot_be_read(kind, tmp_path):
    rng = np.random.default_rng(2)
    file = tmp_path / f"image.{kind}"
    Image.fromarray(rng.integers(0, 256, (24, 24, 3)).astype(np.uint8)).save(file)
    whole = file.read_bytes()
    for _ in range(60):
        broken = bytearray(whole)
        for at in rng.integers(0, min(len(whole), 200), 3):
            broken[at] = rng.integers(256)
        file.write_bytes(broken[: rng.integers(1, len(whole) + 1)] if rng.random() < 0.5 else broken)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for read in (look_at, decode):
                with contextlib.suppress(DataError):
                    read(file)
