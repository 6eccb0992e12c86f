#!/usr/bin/env bash
# Pillow 13.0.0: an uncompressed grey TIFF that lies on its side (Orientation 5 to 8) is decoded with width and height
# swapped when it is opened by its path, so that its rows are scrambled. Opened as a file object it is right: a path
# lets Pillow map the file into memory, and the map is made with the size that the image has only after it was turned.
# Nothing is raised. A square image does not show it, nor does a compressed one.
#
# Expected of both: the picture turned upright. Seen: they differ. Exit 0 while that is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.4.6
"$work/venv/bin/python" - "$work" <<'PY'
import sys
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

file = Path(sys.argv[1]) / "side.tif"
stored = np.array([[10, 90], [170, 250], [50, 130]], dtype=np.uint8)  # 3 rows of 2
upright = np.rot90(stored, -1)  # what orientation 6 says: 2 rows of 3
tag = Image.Exif()
tag[0x0112] = 6
Image.fromarray(stored).save(file, exif=tag)

with Image.open(file) as image:
    by_path = np.asarray(image)
with file.open("rb") as stream, Image.open(stream) as image:
    by_stream = np.asarray(image)
print("Pillow", PIL.__version__)
print("upright:       ", upright.tolist())
print("by file object:", by_stream.tolist())
print("by path:       ", by_path.tolist())
if not np.array_equal(by_stream, upright) or by_path.tolist() != [[250, 10], [50, 90], [130, 170]]:
    sys.exit("this has changed")
PY
echo "as described"
