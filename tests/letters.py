"""Letters that the embedded CLIP knows, as folders of pictures, and names of the digits that it does not."""

from __future__ import annotations

import json
from functools import cache

import torch
from PIL import Image

from tests.later import Later

glyphs, make_clip = Later("tools.embedded_weights.glyphs"), Later("tools.embedded_weights.make_clip")

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FACE = "DejaVuSans"


@cache
def _drawn():
    return glyphs.draw(glyphs.load_bank({FACE: "AEFHKLMR"}), 240, torch.Generator().manual_seed(9))


def write_letters(folder, train=4, test=10):
    """Write a folder of pictures with eight letters of one font, so many a class, and return its path."""
    images, labels = _drawn()
    for label in labels.unique():
        for number, image in enumerate(images[labels == label][: train + test]):
            part = "train" if number < train else "test"
            place = folder / part / make_clip.name_of(glyphs.ALPHABET[int(label)]).replace(" ", "_")
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image[0] * 255).byte().numpy()).save(place / f"{number}.png")
    return folder


def write_names(file, names=DIGITS):
    """Write a JSON file with the name of each digit, and return it."""
    file.write_text(json.dumps({str(number): name for number, name in enumerate(names)}))
    return file
