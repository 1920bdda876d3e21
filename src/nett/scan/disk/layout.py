"""The tensors of a file, from its header alone; files with the same header share one layout.

A fine-tune's header is that of its base, byte for byte but for the metadata, so on a disk of ten thousand checkpoints
few headers need parsing. What a header says is checked by the ground floor's readers before it is believed; a file whose
header does not hold is opaque: it can only be equal to another file. Pickles are not obeyed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.core.checkpoint import gguf_header, safetensors
from nett.core.dtypes import Array
from nett.core.errors import NettError
from nett.core.layers import layer_of
from nett.core.segments import SMALL, ZIPPED, gguf_segments, tensors_of_file
from nett.scan.disk.ahead import Ahead
from nett.scan.disk.items import Item

FIRST = 1 << 15  # bytes that are read of a file at once; most headers are shorter
_METADATA = re.compile(rb'\{"__metadata__":\{[^{}]*\},')
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_OLD_GGML = (b"lmgg", b"fmgg", b"tjgg")
_GGML = {0: "F32", 1: "F16", 30: "BF16"}
_ROTARY = {"attn_q.weight": "attention.head_count", "attn_k.weight": "attention.head_count_kv"}


@final
@dataclass(eq=False)
class Layout:
    """Tensors of at least ``SMALL`` bytes, in file order. ``offsets``: from the start of the data. ``widths``: bytes of
    an element, 0 where the header does not tell. ``types``: of the elements where the header tells, else empty.
    ``rotary``: tensor -> (heads, bytes of a row) where llama.cpp may have permuted the rows within each head."""

    format: str
    names: list[str]
    offsets: Array
    nbytes: Array
    widths: Array
    types: list[str]
    size: int  # of the data
    rotary: dict[int, tuple[int, int]] = field(default_factory=dict)
    memo: dict[Any, Any] = field(default_factory=dict)  # what others derive from it

    @property
    def floats(self) -> Array:
        """Whether the elements are F32, which may be something narrower."""
        if "floats" not in self.memo:
            self.memo["floats"] = np.array([t == "F32" for t in self.types], bool)
        found: Array = self.memo["floats"]
        return found

    @property
    def layers(self) -> list[int]:
        """A number for each tensor, the same in all shards and formats: its layer's, -1 outside the layers."""
        found = [layer_of(n) for n in self.names] if self.format != "zip" else [None] * len(self.names)
        return [f.number if f is not None else -1 for f in found]


@final
class Layouts:
    """Reads headers; remembers those that it has seen."""

    def __init__(self) -> None:
        self._known: dict[bytes, Layout] = {}

    def look(self, items: Sequence[Item]) -> list[Item]:
        """Find the layouts of files. Those that turn out not to hold weights, or are gone, are left out.

        ``problem`` says what is wrong with a header that does not hold, or why nothing could be read.
        """
        ahead = Ahead(items, lambda item: [(0, min(FIRST, item.size))])
        return [item for number, item in enumerate(items) if self._look(item, number, ahead)]

    def _look(self, item: Item, number: int, ahead: Ahead) -> bool:
        from xxhash import xxh3_64_intdigest

        try:
            fd = os.open(item.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return False
        except OSError as error:
            item.problem = f"cannot be read: {error.strerror}"
            return True
        try:
            if not item.is_state(os.fstat(fd)):
                item.stat = os.fstat(fd)
            held = memoryview(bytearray(min(FIRST, item.size)))
            head = bytes(held[: ahead.read(fd, held, 0, number)])
            item.head = xxh3_64_intdigest(head)
            if item.ending == ".safetensors":
                self._safetensors(item, fd, head)
            elif head[:4] == b"GGUF" and item.ending in (".gguf", ".bin"):
                item.layout = self._shared(_of_gguf(item.path))
            elif head[:4] == _PICKLES[0] and item.ending in ZIPPED:
                item.layout = self._shared(_of_zip(item.path))
            elif item.ending == ".gguf":
                item.problem = "is not a GGUF file"
            elif item.ending in (".bin", ".pkl", ".pickle", ".ggml"):  # many things are called so
                return head.startswith((*_PICKLES, *_OLD_GGML))
        except NettError as error:
            item.problem = error.what
        except OSError as error:
            item.problem = f"cannot be read: {error.strerror}"
        finally:
            os.close(fd)
        return True

    def opaque(self, size: int) -> Layout:
        """Of a file whose inside is not known: one piece."""
        zero, whole = np.array([0]), np.array([size])
        return self._shared(Layout("opaque", ["file"], zero, whole, zero, [""], size))

    def _shared(self, layout: Layout) -> Layout:
        """The first layout that says the same."""
        from xxhash import xxh3_128

        digest = xxh3_128(
            repr((layout.format, layout.names, layout.types, layout.rotary, layout.size)).encode(
                "utf-8", "backslashreplace"
            )
        )
        for part in (layout.offsets, layout.nbytes, layout.widths):
            digest.update(part.tobytes())
        return self._known.setdefault(digest.digest(), layout)

    def _safetensors(self, item: Item, fd: int, head: bytes) -> None:
        from xxhash import xxh3_128_digest

        length = int.from_bytes(head[:8], "little")
        if 8 + length > len(head) and length <= safetensors.MAX_HEADER and 8 + length <= item.size:
            head += os.pread(fd, 8 + length - len(head), len(head))
        blob = head[8 : 8 + length]
        found = _METADATA.match(blob)
        key = xxh3_128_digest((blob[found.end() :] if found else blob[1:]).rstrip())
        layout = self._known.get(key)
        if layout is None or layout.size != item.size - 8 - length or len(blob) != length:
            layout = _of_safetensors(item.path)
            self._known[key] = layout
        item.layout, item.start = layout, 8 + length


def _made(format: str, rows: list[tuple[str, int, int, int, str]], size: int) -> Layout:
    """Rows of (name, offset, bytes, width, type); small ones and those that overlap are left out."""
    kept = []
    at = 0
    for row in sorted(rows, key=lambda r: (r[1], -r[2])):
        if row[2] >= SMALL and row[1] >= at and row[1] + row[2] <= size:
            kept.append(row)
            at = row[1] + row[2]
    numbers = np.array([r[1:4] for r in kept], np.int64).reshape(-1, 3)
    names = [r[0] for r in kept]
    return Layout(format, names, numbers[:, 0], numbers[:, 1], numbers[:, 2], [r[4] for r in kept], size)


def _of_safetensors(path: str) -> Layout:
    infos, _ = safetensors.read_header(Path(path))
    size = os.path.getsize(path)
    start = size - sum(t.nbytes for t in infos.values())
    rows = [(t.name, t.offset - start, t.nbytes, t.dtype.bytes, t.dtype.name) for t in infos.values()]
    return _made("safetensors", rows, size - start)


def _of_gguf(path: str) -> Layout:
    header = gguf_header.read_header(Path(path))
    kinds = {t.name: t for t in header.tensors}
    rows = [
        (str(s.name), s.offset, s.nbytes, s.width, _GGML.get(kinds[str(s.name)].type, ""))
        for s in gguf_segments(header)
    ]
    found = _made("gguf", rows, header.size)
    architecture = header.metadata.get("general.architecture")
    for number, name in enumerate(found.names):
        tensor = kinds[name]
        key = next((k for end, k in _ROTARY.items() if name.endswith(end)), "")
        heads = header.metadata.get(f"{architecture}.{key}") or header.metadata.get(
            f"{architecture}.{_ROTARY['attn_q.weight']}"
        )
        if key and type(heads) is int and len(tensor.shape) == 2 and int(found.widths[number]) > 1:
            rows_, columns = tensor.shape
            if heads > 0 and rows_ % (2 * heads) == 0:
                found.rotary[number] = (heads, columns * int(found.widths[number]))
    return found


def _of_zip(path: str) -> Layout:
    segments = tensors_of_file(Path(path), ".bin")
    # The archive's first folder is called after the file: no part of a name.
    rows = [(str(s.name).partition("/")[2], s.offset, s.nbytes, s.width, "") for s in segments]
    return _made("zip", rows, os.path.getsize(path))
