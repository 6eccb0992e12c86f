#!/usr/bin/env bash
# Pillow 13.0.0: a PNG may name one grey level or colour that is transparent (tRNS), in samples of the file's own depth.
# Pillow scales greys of 2 and 4 bits to 8 and reduces colours of 16 bits to 8, but compares them with the level as it
# stands in the file. So nothing of such images becomes transparent when they are converted to RGBA, without a word;
# of 8-bit ones it does.
#
# Expected: the first pixel transparent, at every depth. Seen: at 8 bits only. Exit 0 while that is so, 1 when it has
# changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0
"$work/venv/bin/python" - <<'PY'
import io
import struct
import sys
import zlib

import PIL
from PIL import Image


def png(bits, colour, row, transparent):
    """One row of two pixels, packed into whole bytes."""
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", 2, 1, bits, colour, 0, 0, 0)
    body = zlib.compress(b"\0" + row)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", head), chunk(b"tRNS", transparent), chunk(b"IDAT", body), chunk(b"IEND", b"")]
    )


IMAGES = {
    "grey, 2 bits": png(2, 0, bytes([0b10_01_0000]), struct.pack(">H", 0b10)),
    "grey, 4 bits": png(4, 0, bytes([0xA3]), struct.pack(">H", 0xA)),
    "grey, 8 bits": png(8, 0, bytes([200, 3]), struct.pack(">H", 200)),
    "RGB, 8 bits": png(8, 2, bytes([9, 8, 7, 1, 2, 3]), struct.pack(">HHH", 9, 8, 7)),
    "RGB, 16 bits": png(16, 2, struct.pack(">6H", 4000, 5000, 6000, 1, 2, 3), struct.pack(">3H", 4000, 5000, 6000)),
}
print("Pillow", PIL.__version__)
seen = {}
for name, content in IMAGES.items():
    alpha = list(Image.open(io.BytesIO(content)).convert("RGBA").getchannel("A").tobytes())
    seen[name] = alpha
    print(f"{name:13} alpha of the two pixels: {alpha}")
opaque, right = [255, 255], [0, 255]
expected = dict(zip(IMAGES, [opaque, opaque, right, right, opaque], strict=True))
if seen != expected:
    sys.exit("this has changed")
PY
echo "as described"
