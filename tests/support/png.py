"""PNG pictures as arrays."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numba
import numpy as np

from support.tensors import Array


def pixels(file: Path) -> Array:
    """A PNG of 8-bit RGB or RGBA, without interlacing, as an array [rows, columns, 3]."""
    blob = file.read_bytes()
    assert blob[:8] == b"\x89PNG\r\n\x1a\n"
    at, data, wide, high, channels = 8, b"", 0, 0, 0
    while at < len(blob):
        length, kind = struct.unpack(">I4s", blob[at : at + 8])
        body = blob[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            wide, high, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", body)
            assert depth == 8 and colour in (2, 6) and not interlaced
            channels = 3 if colour == 2 else 4
        elif kind == b"IDAT":
            data += body
        at += 12 + length
    raw = np.frombuffer(zlib.decompress(data), np.uint8).reshape(high, 1 + wide * channels)
    rows = np.zeros((high + 1, (wide + 1) * channels), np.uint8)  # a row above and a pixel to the left, of zeros
    numba.njit(unfiltered)(raw, channels, rows)
    return rows[1:, channels:].reshape(high, wide, channels)[..., :3]


def unfiltered(raw: Array, channels: int, rows: Array) -> None:
    """Undo the filters of PNG (section 9 of its specification): each byte is told from its neighbours."""
    for y in range(raw.shape[0]):
        for x in range(raw.shape[1] - 1):
            at = x + channels
            left, up, corner = np.int64(rows[y + 1, x]), np.int64(rows[y, at]), np.int64(rows[y, x])
            guess = 0
            if raw[y, 0] == 1:
                guess = left
            elif raw[y, 0] == 2:
                guess = up
            elif raw[y, 0] == 3:
                guess = (left + up) // 2
            elif raw[y, 0] == 4:
                a, b, c = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
                guess = left if a <= b and a <= c else up if b <= c else corner
            rows[y + 1, at] = (raw[y, x + 1] + guess) & 255
