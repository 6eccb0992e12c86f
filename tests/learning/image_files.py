"""Image files written byte by byte, so that what reads them is held against no library's own idea of them."""

from __future__ import annotations

import struct
import zlib

import numpy as np


def png(array, bits, colour, **chunks):
    """A PNG of (H, W) or (H, W, C) samples; ``colour`` is 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""

    def chunk(name, content):
        body = name.encode() + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = array.shape[:2]
    rows = b""
    for row in array.reshape(height, -1):
        text = "".join(format(int(v), f"0{bits}b") for v in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    late = {name: chunks.pop(name) for name in ("eXIf",) if name in chunks}
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk("IHDR", head),
            *(chunk(name, content) for name, content in chunks.items()),
            chunk("IDAT", zlib.compress(rows)),
            *(chunk(name, content) for name, content in late.items()),
            chunk("IEND", b""),
        ]
    )


def tiff(array, *, photometric=1, order="<", extra=(), compressed=False, planar=False, bits=None, tags=()):
    """A TIFF of one strip (one a channel where ``planar``); kind and bits of samples as the array's type."""
    kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    bits = bits or array.dtype.itemsize * 8
    height, width = array.shape[:2]
    channels = 1 if array.ndim == 2 else array.shape[2]
    parts = [array[..., c] for c in range(channels)] if planar else [array]
    strips = [np.ascontiguousarray(p).astype(p.dtype.newbyteorder(order)).tobytes() for p in parts]
    if compressed:
        strips = [zlib.compress(strip) for strip in strips]
    fields = [
        (256, "H", [width]),
        (257, "H", [height]),
        (258, "H", [bits] * channels),
        (259, "H", [8 if compressed else 1]),
        (262, "H", [photometric]),
        (273, "I", [0] * len(strips)),
        (277, "H", [channels]),
        (278, "H", [height]),
        (279, "I", [len(strip) for strip in strips]),
        (284, "H", [2 if planar else 1]),
        *([(338, "H", list(extra))] if extra else []),
        (339, "H", [kind] * channels),
        *tags,
    ]
    fields.sort(key=lambda field: field[0])
    end = 8 + 2 + 12 * len(fields) + 4
    long = sum(s for _, form, values in fields if (s := struct.calcsize(form) * len(values)) > 4)
    places = np.cumsum([end + long, *(len(strip) for strip in strips)])[: len(strips)].tolist()
    directory, beyond = struct.pack(f"{order}H", len(fields)), b""
    for tag, form, values in fields:
        packed = struct.pack(f"{order}{len(values)}{form}", *(places if tag == 273 else values))
        directory += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[form], len(values))
        if len(packed) > 4:
            directory += struct.pack(f"{order}I", end + len(beyond))
            beyond += packed
        else:
            directory += packed.ljust(4, b"\0")
    magic = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    return magic + directory + struct.pack(f"{order}I", 0) + beyond + b"".join(strips)


def pnm(array, white, *, plain=False):
    """A PGM or PPM; samples of two bytes where ``white`` is more than 255."""
    colour = array.ndim == 3
    magic = {(False, False): 5, (True, False): 6, (False, True): 2, (True, True): 3}[colour, plain]
    head = f"P{magic}\n# made for a test\n{array.shape[1]} {array.shape[0]}\n{white}\n".encode()
    if plain:
        return head + " ".join(map(str, array.ravel())).encode()
    return head + array.astype(">u2" if white > 255 else "u1").tobytes()


def exif(orientation):
    """EXIF data that says nothing but how the picture lies."""
    return struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def window(values, black, white):
    """Grey levels of samples, by the formula that docs/images.md gives."""
    return np.rint(np.clip((values.astype(float) - black) / (white - black), 0, 1) * 255)


def on_white(levels, alpha):
    """Grey levels of (H, W, C) levels laid on white; ``alpha`` (H, W) in 0..1."""
    return np.rint(levels * alpha[..., None] + 255 * (1 - alpha[..., None]))
