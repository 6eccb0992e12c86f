#!/usr/bin/env bash
# pydicom 3.0.2: a VOI table (VOILUTSequence) may have more entries than its values have bits, such as 4,096 entries of
# 8 bits for an image of 12 bits: DICOM PS3.3 C.8.11.3.1.5 names the number of entries and the bits of each entry apart.
# apply_voi holds the *positions* in the table in an array of the entries' type. With 8-bit entries, position 256 becomes
# 0, and a bright pixel silently gets a dark one's value: the picture wraps every 256 steps of brightness. No warning.
#
# Expected: sample k gets entry k (here k // 16, so 0, 15, 16, 128, 255). Seen: sample 256 gets entry 0, and so on.
# Exit 0 while it does so, 1 when that has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pydicom==3.0.2 numpy==2.3.5
"$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_voi

table = np.arange(4096) // 16  # 12 bits in, 8 bits out
item = Dataset()
item.add_new("LUTDescriptor", "US", [len(table), 0, 8])
item.add_new("LUTData", "US", [int(value) for value in table])
image = Dataset()
image.VOILUTSequence = [item]

samples = np.array([0, 255, 256, 2048, 4095], np.uint16)
seen = apply_voi(samples, image)
print("pydicom", pydicom.__version__)
print("samples ", samples.tolist())
print("expected", table[samples].tolist())
print("seen    ", seen.tolist())
if seen.tolist() == table[samples].tolist() or seen[2] != 0:
    sys.exit("this has changed")
PY
