"""What is looked at before a run: which samples are black and white, and what is done to the images."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.data.holdings import Holdings
from p2pft_flower.learning.data.lone_picture import picture_of
from p2pft_flower.learning.data.splits import Dataset, Split
from p2pft_flower.learning.data.survey import statistics_of, survey
from p2pft_flower.learning.workload import Workload
from tests.cli.test_commands import invoke
from tests.learning.image_files import exif, png, pnm, tiff, window

RNG = np.random.default_rng(0)
LEVELS = [RNG.integers(0, 256, (8, 8)) for _ in range(20)]
"""Pictures in grey levels 0..255."""


def split_of(folder, contents, name="png"):
    files = []
    for number, content in enumerate(contents):
        files.append(folder / f"{number:03}.{name}")
        files[-1].write_bytes(content)
    return Split.of_files(files, np.zeros(len(files), np.int64))


def range_of(folder, contents, black_white=None):
    found = survey([split_of(folder, contents)], black_white, "peer 1's")
    (chosen,) = found.pixels.ranges.values() if black_white is None else [found.pixels.window]
    return chosen


DECLARED = {
    "16 bits in a PNG": (lambda g: png(g * 257, 16, 0), (0, 65535)),
    "16 bits of colour in a PNG": (lambda g: png(np.stack([g * 257] * 3, 2), 16, 2), (0, 65535)),
    "12 significant bits, low ones": (lambda g: png(g * 16, 16, 0, sBIT=b"\x0c"), (0, 4095)),
    "12 significant bits, high ones": (lambda g: png(g * 257 >> 4 << 4, 16, 0, sBIT=b"\x0c"), (0, 65535)),
    "16 bits in a TIFF": (lambda g: tiff((g * 257).astype(np.uint16)), (0, 65535)),
    "16 bits in a big-endian TIFF": (lambda g: tiff((g * 257).astype(np.uint16), order=">"), (0, 65535)),
    "zero is white": (lambda g: tiff((65535 - g * 257).astype(np.uint16), photometric=0), (0, 65535)),
    "a PGM of 12 bits": (lambda g: pnm(g * 16, 4095), (0, 4095)),
    "a PGM up to 1000": (lambda g: pnm(g * 1000 // 255, 1000), (0, 1000)),
    "a PPM of 16 bits": (lambda g: pnm(np.stack([g * 257] * 3, 2), 65535), (0, 65535)),
}


@pytest.mark.parametrize("kind", DECLARED)
def test_the_range_that_files_declare_and_use_is_taken(kind, tmp_path):
    make, expected = DECLARED[kind]
    assert range_of(tmp_path, [make(g) for g in LEVELS]) == expected


PNG_16, TIFF_16 = (
    "16-bit unsigned PNG samples, as .*, hold 0 to",
    "16-bit unsigned TIFF samples, as .*, hold 0 to",
)
DECLARES, SAYS_NOTHING = ".*though they declare 0 to 65535", ", and nothing says which are black and white"

UNCLEAR = {
    "12 bits in a PNG of 16": (
        lambda g: png(g * 16, 16, 0),
        f"20 of {PNG_16} 4080{DECLARES}.*0:4095 for 12 bits or 0:65535 for 16 bits",
    ),
    "12 bits of colour in a PNG of 16": (
        lambda g: png(np.stack([g * 16] * 3, 2), 16, 2),
        f"{PNG_16} 4080{DECLARES}",
    ),
    "12 bits in a TIFF of 16": (
        lambda g: tiff((g * 16).astype(np.uint16)),
        f"{TIFF_16} 4080{DECLARES}",
    ),
    "12 bits of colour in a TIFF of 16": (
        lambda g: tiff(np.stack([g * 16] * 3, 2).astype(np.uint16), photometric=2),
        f"{TIFF_16} 4080{DECLARES}",
    ),
    "15 bits in a PGM of 16": (
        lambda g: pnm(g * 100, 65535),
        f"16-bit unsigned PNM samples, as .*, hold 0 to 25500{DECLARES}",
    ),
    "10 bits where 12 are significant": (
        lambda g: png(g * 4, 16, 0, sBIT=b"\x0c"),
        f"{PNG_16} 1020, though they declare 0 to 4095",
    ),
    "signed": (
        lambda g: tiff((g * 5 - 1000).astype(np.int16)),
        f"16-bit signed TIFF samples, as .*, hold -1000 to 275{SAYS_NOTHING}.*-1000:400 is usual for CT",
    ),
    "signed bytes": (
        lambda g: tiff((g - 128).astype(np.int8)),
        f"8-bit signed TIFF samples, as .*, hold -128 to 127{SAYS_NOTHING}",
    ),
    "32 bits": (
        lambda g: tiff(g.astype(np.uint32)),
        f"32-bit unsigned TIFF samples, as .*, hold 0 to 255{SAYS_NOTHING}.*0:255 for 8 bits",
    ),
    "32 bits signed": (
        lambda g: tiff(g.astype(np.int32)),
        f"32-bit signed TIFF samples, as .*, hold 0 to 255{SAYS_NOTHING}",
    ),
    "shares of one": (
        lambda g: tiff((g / 255).astype(np.float32)),
        f"32-bit floating-point TIFF samples, as .*, hold 0 to 1{SAYS_NOTHING}.*0:1 if they are shares",
    ),
    "doubles": (
        lambda g: tiff(g * 257.0),
        f"64-bit floating-point TIFF samples, as .*, hold 0 to 65535{SAYS_NOTHING}",
    ),
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_where_the_range_could_only_be_guessed_the_set_is_refused_with_what_was_seen_and_the_key(
    kind, tmp_path
):
    make, seen = UNCLEAR[kind]
    message = rf"peer 1's images: .*{seen}"
    with pytest.raises(ConfigError, match=message) as raised:
        survey([split_of(tmp_path, [make(g) for g in LEVELS])], None, "peer 1's")
    assert "set pixel-range = LOW:HIGH, the values that are to be black and white" in str(raised.value)


@pytest.mark.parametrize("kind", UNCLEAR)
def test_the_range_that_is_given_is_taken_and_shows_every_picture(kind, tmp_path):
    make, _ = UNCLEAR[kind]
    split = split_of(tmp_path, [make(g) for g in LEVELS])
    samples = [split.read(i).values for i in range(len(split))]
    low, high = float(np.min(samples)), float(np.max(samples))
    found = survey([split], (low, high), "peer 1's")
    assert found.warnings == ()
    np.testing.assert_array_equal(
        np.asarray(found.pixels.picture(split.read(0))), window(samples[0], low, high)
    )


def test_a_few_bright_pixels_do_not_make_a_dark_set_a_full_one(tmp_path):
    dark = [g * 16 for g in LEVELS]
    dark[3][0, 0] = 65535  # a mark that was burnt in: 1 of 1280
    with pytest.raises(
        ConfigError,
        match=r"hold 0 to 65535 \(99.8 % of them 0 to \d+\), though they declare 0 to 65535.*0:4095",
    ):
        survey([split_of(tmp_path, [png(g, 16, 0) for g in dark])], None, "x")


def bordered(g):
    """12 bits in 16, in a border that holds no data."""
    return np.pad(g * 16, 2, constant_values=65535)


USES_LITTLE = {
    "signed numbers stored with an offset": (lambda g, i: g * 4 + 32768, "they hold 32768:33788"),
    "a border of the declared white": (lambda g, i: bordered(g), "0:4095 for 12 bits"),
    "two depths": (lambda g, i: g * (257 if i % 2 else 64), "some use 14 bits and others more"),
}


@pytest.mark.parametrize("kind", USES_LITTLE)
def test_sets_that_declare_more_than_they_use_are_refused_whatever_reaches_white(kind, tmp_path):
    make, message = USES_LITTLE[kind]
    contents = [png(make(g, i), 16, 0) for i, g in enumerate(LEVELS)]
    with pytest.raises(ConfigError, match=message):
        survey([split_of(tmp_path, contents)], None, "x")


def test_single_images_that_are_half_as_bright_as_the_others_are_no_other_depth(tmp_path):
    contents = [png(g * (120 if i < 3 else 257), 16, 0) for i, g in enumerate(LEVELS)]
    assert range_of(tmp_path, contents) == (0, 65535)


def test_test_images_of_another_depth_than_the_training_images_are_refused(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    train = split_of(tmp_path / "train", [png(g * 257, 16, 0) for g in LEVELS * 20])
    test = split_of(tmp_path / "test", [png(g * 64, 16, 0) for g in LEVELS[:10]])
    with pytest.raises(ConfigError, match=r"99.8 % of them 0 to 16320"):
        survey([train, test], None, "x")


def rgba(g, colour, alpha, dtype):
    """Transparent in its left half, with what stands for white and for opaque."""
    opacity = np.where(np.arange(g.shape[1]) < g.shape[1] // 2, 0, alpha) * np.ones_like(g)
    return np.stack([g / 255 * colour] * 3 + [opacity], 2).astype(dtype)


ALPHA = {
    "16 bits": (lambda g: png(rgba(g, 65535, 65535, int), 16, 6), None),
    "12 significant bits, low ones": (lambda g: png(rgba(g, 4095, 4095, int), 16, 6, sBIT=b"\x0c" * 4), None),
    "12 bits, alpha of 16": (lambda g: png(rgba(g, 4095, 65535, int), 16, 6), (0, 4095)),
    "12 bits and alpha of 12": (lambda g: png(rgba(g, 4095, 4095, int), 16, 6), (0, 4095)),
    "12 bits in a TIFF": (
        lambda g: tiff(rgba(g, 4095, 4095, np.uint16), photometric=2, extra=[2]),
        (0, 4095),
    ),
    "32 bits": (lambda g: tiff(rgba(g, 1e6, 1e6, np.uint32), photometric=2, extra=[2]), (0, 1e6)),
    "signed": (lambda g: tiff(rgba(g, 1000, 32767, np.int16), photometric=2, extra=[2]), (0, 1000)),
    "floats to 1": (lambda g: tiff(rgba(g, 1, 1, np.float32), photometric=2, extra=[2]), (0, 1)),
    "floats to 255": (lambda g: tiff(rgba(g, 255, 255, np.float32), photometric=2, extra=[2]), (0, 255)),
    "floats to 255, alpha to 1": (
        lambda g: tiff(rgba(g, 255, 1, np.float32), photometric=2, extra=[2]),
        (0, 255),
    ),
    "floats of -1 to 1, alpha too": (
        lambda g: tiff(rgba(g, 1, 1, np.float32) * 2 - 1, photometric=2, extra=[2]),
        (-1, 1),
    ),
}


@pytest.mark.parametrize("kind", ALPHA)
def test_what_is_transparent_is_white_and_what_is_opaque_as_it_is_at_every_depth(kind, tmp_path):
    make, black_white = ALPHA[kind]
    split = split_of(tmp_path, [make(g) for g in LEVELS])
    found = survey([split], black_white, "x")
    half = LEVELS[0].shape[1] // 2
    for i, g in enumerate(LEVELS[:3]):
        shown = np.asarray(found.pixels.picture(split.read(i))).astype(int)
        assert (shown[:, :half] == 255).all()
        np.testing.assert_allclose(shown[:, half:], g[:, half:, None].repeat(3, 2), atol=1)


def test_cut_outs_of_one_colour_show_what_their_alpha_says(tmp_path):
    cut = [rgba(np.zeros_like(g), 65535, 65535, int) for g in LEVELS]
    split = split_of(tmp_path, [png(c, 16, 6) for c in cut])
    for black_white in (None, (0, 65535)):
        found = survey([split], black_white, "x")
        shown = np.asarray(found.pixels.picture(split.read(0)))
        assert (shown == np.where(cut[0][..., 3:] > 0, 0, 255)).all()
        assert found.warnings == ()


def test_alpha_of_which_nothing_says_what_is_opaque_is_refused(tmp_path):
    contents = [png(rgba(g, 65535, 30000, int), 16, 6) for g in LEVELS]
    with pytest.raises(ConfigError, match="have alpha of 0 to 30000, and nothing says which is opaque"):
        survey([split_of(tmp_path, contents)], None, "x")


def test_a_deep_image_that_cannot_be_read_is_left_to_who_counts_those(tmp_path):
    good = [png(g, 8, 0) for g in LEVELS]
    nan = tiff(np.full((4, 4), np.nan, np.float32))
    split = split_of(tmp_path, [*good, nan], "img")
    pixels = survey([split], None, "x").pixels
    with pytest.raises(ValueError, match="a sample is NaN or infinite"):
        pixels.picture(split.read(len(good)))


def test_two_kinds_of_images_mixed_in_one_set_are_refused_and_single_dark_ones_named(tmp_path):
    mixed = [png(g * (257 if i % 2 else 16), 16, 0) for i, g in enumerate(LEVELS)]
    with pytest.raises(
        ConfigError, match=r"50 % of those looked at hold at most 4080, as if two kinds were mixed"
    ):
        survey([split_of(tmp_path, mixed)], None, "x")
    single = [png(g * 257, 16, 0) for g in LEVELS * 2] + [png(LEVELS[0] * 16, 16, 0)]
    found = survey([split_of(tmp_path, single)], None, "x")
    assert found.warnings[0].startswith(
        "1 of 41 images of 16-bit unsigned PNG samples that were looked at hold"
    )
    blank = [png(g * 257, 16, 0) for g in LEVELS] + [png(np.zeros((8, 8), int), 16, 0)] * 20
    assert survey([split_of(tmp_path, blank)], None, "x").warnings == ()


def test_a_range_that_fits_no_image_or_leaves_nothing_of_them_is_warned_of(tmp_path):
    eight = [png(g, 8, 0) for g in LEVELS]
    assert (
        "pixel-range = 0:4095 changes nothing"
        in survey([split_of(tmp_path, eight)], (0, 4095), "x").warnings[0]
    )
    floats = [tiff((g / 255).astype(np.float32)) for g in LEVELS]
    for low, high in ((-1000, 400), (5, 9), (0, 65535)):
        (warning,) = survey([split_of(tmp_path, floats)], (low, high), "x").warnings
        assert "leaves little of 32-bit floating-point TIFF samples, which hold 0 to 1" in warning


def test_images_of_8_bits_are_never_windowed(tmp_path):
    split = split_of(tmp_path, [png(g, 8, 0) for g in LEVELS])
    pixels = survey([split], (100, 120), "x").pixels
    np.testing.assert_array_equal(np.asarray(pixels.picture(split.read(0))), LEVELS[0])


def test_what_is_done_to_images_is_counted_in_one_line(tmp_path):
    grey = LEVELS[0]
    contents = [
        *[png(grey, 8, 0, eXIf=exif(6))] * 3,
        png(grey, 8, 0, eXIf=exif(1)),
        *[png(np.stack([grey] * 4, 2), 8, 6)] * 2,
        png(grey, 8, 0, tRNS=b"\0\0"),
        *[png(grey * 257, 16, 0)] * 5,
    ]
    split = split_of(tmp_path, contents)
    pages = [Image.fromarray(grey.astype(np.uint8)), Image.fromarray(grey.astype(np.uint8))]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    several = Split.of_files([tmp_path / "pages.tif"], np.zeros(1, np.int64))
    assert str(survey([split, several], None, "x")) == (
        "of 13 images 3 turned upright as their orientation tags say; 3 with transparency, laid on white; "
        "1 with several pages, of which the first is read; 5 of 16-bit unsigned PNG samples, black 0, white "
        "65535"
    )
    assert str(survey([split_of(tmp_path, [png(grey, 8, 0)] * 12)], None, "x")) == ""


def test_what_a_user_should_look_at_is_warned_of(tmp_path, caplog):
    folder = make_folder(tmp_path, lambda g: png(g, 8, 0, eXIf=exif(3)))
    Holdings(LearningConfig(dataset=f"folder:{folder}", pixel_range="0:9"), n=2).pictures  # noqa: B018
    assert "the dataset's images: pixel-range = 0:9 changes nothing" in caplog.text


def make_folder(root, content, suffix="png"):
    for number, part in enumerate(["train"] * 10 + ["test"] * 6):
        file = root / part / "ab"[number % 2] / f"{number}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content(LEVELS[number]))
    return root


def test_every_site_of_which_the_range_is_unclear_is_named_and_each_may_have_its_own(tmp_path):
    make_folder(tmp_path / "site-0", lambda g: png(g, 8, 0))
    make_folder(tmp_path / "site-1", lambda g: png(g * 16, 16, 0))
    make_folder(tmp_path / "site-2", lambda g: tiff((g / 255).astype(np.float32)), "tif")
    make_folder(
        tmp_path / "site-3", lambda g: tiff((65535 - g * 257).astype(np.uint16), photometric=0), "tif"
    )

    def holdings(pixel_range, n=4):
        config = LearningConfig(dataset=f"folder:{tmp_path}/site-{{peer}}", pixel_range=pixel_range)
        return Holdings(config, n=n)

    with pytest.raises(
        ConfigError, match=r"peer 1's images: .*hold 0 to 4080.*; peer 2's images: .*hold 0 to 1,"
    ):
        holdings("auto").pictures  # noqa: B018
    found = holdings("auto,0:4080,0:1,auto")
    shown = [np.asarray(found.pictures.train.picture(i)) for i in range(40)]
    for i, picture in enumerate(shown):
        np.testing.assert_array_equal(picture, shown[i % 10])
    with pytest.raises(ConfigError, match=r"pixel-range = 'auto,0:1' has 2 ranges for 4 peers"):
        holdings("auto,0:1")


def test_a_site_that_reads_alone_sees_the_same_pictures_as_all_together(tmp_path):
    for site in range(2):
        make_folder(tmp_path / f"site-{site}", lambda g: png(g * (16 if site else 257), 16, 0))  # noqa: B023
    config = LearningConfig(dataset=f"folder:{tmp_path}/site-{{peer}}", pixel_range="auto,0:4095")
    together, alone = Holdings(config, n=2), Holdings(config, n=2, peers=(1,))
    for i in range(10):
        one, other = (np.asarray(h.pictures.train.picture(j)) for h, j in ((together, 10 + i), (alone, i)))
        np.testing.assert_array_equal(one, other)
        assert together.pictures.train.digest(10 + i) == alone.pictures.train.digest(i)


def test_rows_that_were_made_in_another_range_are_not_served(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))
    folder = make_folder(tmp_path / "pictures", lambda g: png(g * 16, 16, 0))

    def inputs(pixel_range):
        config = LearningConfig(dataset=f"folder:{folder}", pixel_range=pixel_range, partition="iid")
        problem = Workload(config, n=1)
        return problem.features(0).read(np.arange(10))[0][0]

    first, again, other = inputs("0:4095"), inputs("0:4095"), inputs("0:65535")
    assert (first == again).all()
    assert not (first == other).all()


def test_own_datasets_are_looked_at_as_files_are(monkeypatch, tmp_path):
    deep = np.stack(LEVELS).astype(np.uint16) * 16

    def make(read):
        split = Split(np.arange(20) % 2, read)
        return Dataset("own", ("a", "b"), split, split)

    for read in (lambda i: deep[i], lambda i: Image.fromarray(deep[i])):
        with pytest.raises(
            ConfigError, match=r"16-bit unsigned (array|image) samples, as .*, hold 0 to 4080"
        ):
            survey([make(read).train], None, "x")
        found = survey([make(read).train], (0, 4080), "x")
        np.testing.assert_array_equal(np.asarray(found.pixels.picture(read(3))), LEVELS[3])
    turned = Image.fromarray(LEVELS[0].astype(np.uint8))
    turned.getexif()[0x0112] = 6
    found = survey([make(lambda i: turned).train], None, "x")
    assert found.turned == 20
    np.testing.assert_array_equal(np.asarray(found.pixels.picture(turned)), np.rot90(LEVELS[0], -1))


def test_statistics_say_how_bright_pictures_are(tmp_path):
    black_and_white = np.zeros((8, 8), int)
    black_and_white[:, :2] = 255
    split = split_of(tmp_path, [png(black_and_white, 8, 0), png(np.full((4, 4), 51), 8, 0), b"broken"])
    found = statistics_of(split, np.arange(3), "x")
    assert found.images == 2
    np.testing.assert_allclose(
        [found.mean, found.deviation, found.black, found.white],
        [0.225, np.sqrt((0.25 + 0.04) / 2 - 0.225**2), 0.375, 0.125],
    )
    assert statistics_of(split, np.array([2]), "x") is None


def test_data_show_says_what_is_done_to_the_images_and_refuses_what_a_run_would(tmp_path):
    make_folder(tmp_path / "site-0", lambda g: png(g, 8, 0, eXIf=exif(6)))
    make_folder(tmp_path / "site-1", lambda g: png(g * 16, 16, 0))
    words = ["data", "show", f"dataset=folder:{tmp_path}/site-{{peer}}", "topology=ring:2"]
    refused = invoke(*words)
    assert refused.exit_code == 2
    assert "peer 1's images: 16 of 16-bit unsigned PNG samples, as " in refused.stderr
    shown = invoke(*words, "pixel-range=auto,0:4080")
    assert "0: of 16 images 16 turned upright" in shown.stdout
    assert "1: of 16 images 16 of 16-bit unsigned PNG samples, black 0, white 4080" in shown.stdout


def test_an_image_of_ones_own_becomes_a_picture_as_the_datasets_do(tmp_path):
    file = tmp_path / "own.png"
    file.write_bytes(png(LEVELS[0] * 16, 16, 0, eXIf=exif(6)))
    with pytest.raises(
        ConfigError, match=r"own\.png's images: 1 of 16-bit unsigned PNG samples, as .*, hold"
    ):
        picture_of(file, None)
    shown = picture_of(file, (0.0, 4080.0))
    np.testing.assert_array_equal(np.asarray(shown), np.rot90(LEVELS[0], -1))


def test_a_pipe_is_no_image_of_ones_own_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "mine.png")
    with pytest.raises(DataError, match=r"mine\.png: not a readable image \(no regular file\)"):
        picture_of(tmp_path / "mine.png", None)
