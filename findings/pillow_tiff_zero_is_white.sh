#!/usr/bin/env bash
# Pillow 13.0.0: TIFF's PhotometricInterpretation 0 says that zero is white. Pillow inverts such images where samples
# have 8 bits and leaves them as they are where they have 16 or are floating-point: the same film, stored deeper, comes
# out as its negative. SampleFormat 2, signed, is heeded for 16 bits and not for 8: -56 is read as 200.
#
# Expected: at every depth the picture that the tags describe. Seen: at 8 bits the negative is undone and the sign is
# lost, deeper the other way round. Exit 0 while that is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import io
import struct
import sys

import numpy as np
import PIL
from PIL import Image


def tiff(array, photometric):
    """One uncompressed strip, little-endian."""
    kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    (height, width), data = array.shape, array.tobytes()
    tags = [(256, 3, width), (257, 3, height), (258, 3, 8 * array.itemsize), (259, 3, 1), (262, 3, photometric),
            (273, 4, 8 + 2 + 12 * 10 + 4), (277, 3, 1), (278, 3, height), (279, 4, len(data)), (339, 3, kind)]
    body = b"".join(struct.pack("<HHII", tag, form, 1, value) for tag, form, value in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + body + struct.pack("<I", 0) + data


def read(array, photometric):
    return np.asarray(Image.open(io.BytesIO(tiff(array, photometric)))).ravel().tolist()


print("Pillow", PIL.__version__)
samples = {
    "zero is white, 8 bits": read(np.array([[0, 200]], np.uint8), 0),
    "zero is white, 16 bits": read(np.array([[0, 51400]], np.uint16), 0),
    "zero is white, float": read(np.array([[0.0, 0.75]], np.float32), 0),
    "signed, 8 bits": read(np.array([[-56, 100]], np.int8), 1),
    "signed, 16 bits": read(np.array([[-56, 100]], np.int16), 1),
}
for name, values in samples.items():
    print(f"{name:23} {values}")
expected = [[255, 55], [0, 51400], [0.0, 0.75], [200, 100], [-56, 100]]
if list(samples.values()) != expected:
    sys.exit("this has changed")
PY
echo "as described"
