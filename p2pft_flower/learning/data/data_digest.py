"""Digests that recognise images at another path: of classes, labels, names, some sizes and some contents."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from p2pft_flower.facts import ListedImage
from p2pft_flower.learning.data.label_arrays import draw_groups, has_several, named
from p2pft_flower.learning.data.looking import each
from p2pft_flower.learning.data.splits import Split
from p2pft_flower.typed import textual

__all__ = ["images_digest", "listed_images"]

LOOKED_AT = 2000
"""Most images, spread evenly, whose file size or pixels count; of all others only label and name count."""

OPENED = 400
"""Most files, spread evenly over the classes, whose content counts too."""

BLOCK, BLOCKS = 2**16, 16
"""Bytes of a block, and the number of evenly spaced blocks that are read of a larger file."""


LISTED = 100_000
"""Most images that :func:`listed_images` lists."""


def images_digest(
    split: Split,
    positions: npt.NDArray[np.int64],
    classes: Sequence[str],
    seen: dict[int, bytes] | None = None,
) -> str:
    """Return a digest of images: the same images in the same order have the same digest in any folder.

    Up to :data:`OPENED` files are opened, always the same ones, and up to 1 MiB of each is read, so this is
    quick on a network's disk too. Of vectors every number counts. If the split has neither ``files`` nor
    ``content``, as a dataset of the user's own, only classes and labels count.

    Parameters
    ----------
    split : Split
        The split of the images.
    positions : (N,) int64 array
        The positions of the images in ``split``; their order counts.
    classes : sequence of str
        Names of the classes.
    seen : dict of int to bytes, optional
        The digests of the contents of files that were opened already, by position; others are added.

    Returns
    -------
    str
        XXH3-128, hexadecimal.
    """
    found = xxhash.xxh3_128()

    def add(part: bytes) -> None:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)

    for name in classes:
        add(_bytes(name))
    if has_several(split.labels):
        add(b"several labels")
    add(np.ascontiguousarray(split.labels[positions], dtype="<i8").tobytes())
    if split.vectors is not None:
        add(np.ascontiguousarray(split.vectors[positions], dtype="<f4").tobytes())
        return found.hexdigest()
    some = positions[:: max(1, -(-len(positions) // LOOKED_AT))]
    if (held := split.files) is not None and len(positions):
        files = [os.path.abspath(held[index]) for index in positions]  # noqa: PTH100 - of many
        above = os.path.commonpath(files)
        for index, file in zip(positions.tolist(), files, strict=True):
            frame = split.frame(index)
            add(_bytes(file.removeprefix(above)) + (f"#{frame}".encode() if frame else b""))
        for index in some:
            add(str(_size(held[index])).encode())
        for content in _contents(split, held, positions, {} if seen is None else seen).values():
            add(content)
    elif split.content is not None:
        for index in some:
            add(split.content(int(index)))
    return found.hexdigest()


def listed_images(
    split: Split, positions: npt.NDArray[np.int64], classes: Sequence[str], seen: dict[int, bytes]
) -> tuple[ListedImage, ...] | None:
    """Return images with what tells later whether one has changed; None of images without files.

    The parameters are those of :func:`images_digest`, and the same files are opened. None are listed if they
    are more than :data:`LISTED`.
    """
    if split.files is None or len(positions) > LISTED:
        return None
    contents = _contents(split, split.files, positions, seen)
    return tuple(
        ListedImage(
            textual(_named(split, split.files[index], index)),
            textual(named(split.labels[index], classes)),
            _size(split.files[index]),
            contents[index].hex() if index in contents else "",
        )
        for index in positions.tolist()
    )


def _named(split: Split, file: Path, index: int) -> str:
    frame = split.frame(index)
    return f"{Path(file).absolute()}#{frame}" if frame else str(Path(file).absolute())


def _contents(
    split: Split, files: Sequence[Path], positions: npt.NDArray[np.int64], seen: dict[int, bytes]
) -> dict[int, bytes]:
    """Return the digests of the contents of some of the files, by position; they are added to ``seen``."""
    opened = _over_classes(draw_groups(split.labels), positions).tolist()
    left = [index for index in opened if index not in seen]
    with closing(each(lambda index: _content(files[index]), left, "sampled")) as contents:
        for index, content in contents:
            # Reading the file for its image will report the error.
            seen[index] = b"unreadable" if isinstance(content, Exception) else content
    return {index: seen[index] for index in opened}


def _over_classes(labels: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return at most :data:`OPENED` of the positions, evenly spaced in the order of classes."""
    by_class = positions[np.argsort(labels[positions], kind="stable")]
    if len(by_class) <= OPENED:
        return by_class
    return by_class[np.linspace(0, len(by_class) - 1, OPENED).round().astype(np.int64)]


def _content(file: Path) -> bytes:
    """Return a digest of the file's content: all of it, or of a large file's :data:`BLOCKS` blocks."""
    found = xxhash.xxh3_128()
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        starts = [0]
        if size > BLOCK * BLOCKS:
            starts = [round(i * (size - BLOCK) / (BLOCKS - 1)) for i in range(BLOCKS)]
        for start in starts:
            opened.seek(start)
            found.update(opened.read(BLOCK if len(starts) > 1 else BLOCK * BLOCKS))
    return found.digest()


def _bytes(name: str) -> bytes:
    return name.encode(errors="surrogatepass")  # names may be any bytes


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1  # reading it for its image will report the error
