"""docs/clinical-data.md, followed with small files of the same layout."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from p2pft_flower.cli.settings import parse_settings
from p2pft_flower.report.results import read_results
from tests.blocks import ROOT, blocks_of, commands_of
from tests.test_document_blocks import run_here

from .engine import run_app

SMALL = {"model": "glyph_vit_8", "iterations": 1, "batch_size": 2}
"""In place of a model whose weights the package does not bring, and of hours."""


def paint(folder, names, suffix):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in names:
        file = folder / f"{name}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)).save(file)


def write(file, header, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([header, *rows])


def write_fed_isic(root):
    """As FLamby writes it: one-hot columns, target, center, fold and both; six centres, eight classes."""
    diagnoses = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC"]
    rows = []
    for center, images in enumerate((16, 8, 7, 6, 4, 3)):
        for i in range(images):
            target, fold = i % 8, "test" if i % 3 == 2 else "train"
            name = f"ISIC_{len(rows):07d}" + "_downsampled" * (center == 4)
            hot = [float(target == k) for k in range(8)]
            rows.append([name, *hot, 0.0, target, center, fold, f"{fold}_{center}"])
    header = ["image", *diagnoses, "UNK", "target", "center", "fold", "fold2"]
    write(root / "train_test_split", header, rows)
    paint(root / "ISIC_2019_Training_Input_preprocessed", [row[0] for row in rows], ".jpg")
    return rows


def write_camelyon(root):
    """As WILDS writes it: an unnamed first column, and no names of files; ten slides of five hospitals."""
    rows = []
    for slide in range(10):
        for tumour in (0, 1):
            patient, node, x = f"{slide + 4:03d}", slide % 5, 3328 + tumour
            rows.append([len(rows), patient, node, x, 21792, tumour, slide, slide // 2, 0])
            name = f"patient_{patient}_node_{node}"
            paint(root / "patches" / name, [f"patch_{name}_x_{x}_y_21792"], ".png")
    header = ["", "patient", "node", "x_coord", "y_coord", "tumor", "slide", "center", "split"]
    write(root / "metadata.csv", header, rows)


def write_slides(root):
    rng = np.random.default_rng(0)
    rows = [
        (f"slide-{center}-{i}", label, "train" if i < 3 else "test", center)
        for center in (0, 1)
        for label in ("normal", "tumour")
        for i in range(4)
    ]
    rows = [(f"{label}-{name}", label, *rest) for name, label, *rest in rows]
    write(root / "slides.csv", ["slide", "label", "split", "center"], rows)
    for name, label, *_ in rows:
        tiles = rng.normal(1.0 if label == "tumour" else -1.0, 1.0, (5, 4)).astype(np.float16)
        np.save(root / f"{name}.npy", tiles)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """The page's blocks are run one after the other; the results of its runs, in their order."""
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "clinic", [f"{i}" for i in range(8)], ".png")
    rows = [(f"{i}.png", "ab"[i % 2], "test" if i < 2 else "train", ("n", "s")[i // 2 % 2]) for i in range(8)]
    write(tmp_path / "clinic" / "labels.csv", ["image", "label", "split", "center"], rows)
    write_fed_isic(tmp_path / "isic")
    write_camelyon(tmp_path / "camelyon17_v1.0")
    write_slides(tmp_path / "slides")
    blocks = blocks_of(ROOT / "docs" / "clinical-data.md")
    found = []
    for number, block in enumerate(blocks):
        if block.language == "python":
            exec(compile(block.text, block.document, "exec"), {})
            continue
        for words in commands_of([block], tmp_path):
            if words[:2] != ["p2pft", "run"]:
                run_here(words[1:])
                continue
            settings = parse_settings([word for word in words[2:] if "=" in word])
            values = {key.replace("-", "_"): value for key, value in settings.items()}
            small = SMALL if values["model"] != "none" else SMALL | {"model": "none"}
            out = tmp_path / (words[words.index("--out") + 1] if "--out" in words else f"run-{number}")
            run_app(out, **values | small)
            found.append(read_results(out))
    return found


def test_the_page_on_clinical_data_can_be_followed_with_small_files(results, tmp_path):
    isic, centers, camelyon, slides = results
    assert [r["status"] for r in results] == ["completed"] * 4
    assert isic["partition"] == "by:center=0,1,2,3,4,5"
    assert [peer["images"] for peer in isic["peers"]] == [11, 6, 5, 4, 3, 2]  # of FLamby's train
    assert [peer["images"] for peer in centers["peers"]] == [11, 6, 5, 4, 3, 2]
    assert centers["partition"] == "own"
    assert centers["peers"][5]["classes"] == ["0", "1"]
    assert camelyon["partition"] == "by:center=0,1,2,3,4"
    assert [peer["images"] for peer in camelyon["peers"]] == [2] * 5
    assert camelyon["peers"][0]["classes"] == ["normal", "tumour"]
    assert [peer["images"] for peer in slides["peers"]] == [6, 6]
