"""Small data of which an image has several labels, or none: scikit-learn's digits, by their looks."""

from __future__ import annotations

import csv

import numpy as np
from PIL import Image

from tests.later import Later

sklearn_datasets = Later("sklearn.datasets")

LOOKS = {"even": (0, 2, 4, 6, 8), "large": (5, 6, 7, 8, 9), "round": (0, 6, 8, 9)}
"""The digits of each label; 1 and 3 have none."""

NAMES = tuple(LOOKS)

SITES = ((0, 1), (2, 3), (4, 5, 6), (7, 8, 9))
"""The digits of each site: no site has all labels' images."""


def labels_of(digit):
    return [name for name, digits in LOOKS.items() if digit in digits]


def site_of(digit):
    return next(str(site) for site, digits in enumerate(SITES) if digit in digits)


def truth_of(cells):
    """(N, 3) of 0 and 1, of the cells ``labels`` of a table."""
    return np.array([[name in cell.split("|") for name in NAMES] for cell in cells]).astype(int)


def rows_of(folder, train, test, start=0):
    """Paint so many digits, and return a table's rows: image, labels, split, site."""
    pixels, digits = sklearn_datasets.load_digits(return_X_y=True)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(start, start + train + test):
        grey = np.rint(pixels[i].reshape(8, 8) * (255 / 16)).astype(np.uint8)
        Image.fromarray(grey).save(folder / "images" / f"{i}.png")
        split, cell = ("train" if i < start + train else "test"), "|".join(labels_of(digits[i]))
        rows.append([f"images/{i}.png", cell, split, site_of(digits[i])])
    return rows


def write_table(file, rows, header=("image", "labels", "split", "site")):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([header, *rows])
    return file


def write_digits(folder, train=120, test=60):
    """Write a table of digits with their looks; return its file."""
    return write_table(folder / "labels.csv", rows_of(folder, train, test))


def write_site_tables(folder, train=120, test=60):
    """Write a table for each site; a row without an image names each label of which the site has none."""
    rows = rows_of(folder, train, test)
    for site in range(len(SITES)):
        own = [row[:3] for row in rows if row[3] == str(site)]
        held = {name for row in own if row[2] == "train" for name in row[1].split("|")}
        absent = "|".join(name for name in NAMES if name not in held)
        own += [["", absent, "train"]] if absent else []
        write_table(folder / f"site-{site}.csv", own, ("image", "labels", "split"))
    return f"table:{folder}/site-{{peer}}.csv"
