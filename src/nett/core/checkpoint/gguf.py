"""GGUF: llama.cpp's files, read in ranges, dequantised block by block, under their Hugging Face names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.core.checkpoint.base import Checkpoint, TensorInfo
from nett.core.checkpoint.files import FileReader
from nett.core.checkpoint.gguf_header import GgufTensor, read_header
from nett.core.checkpoint.gguf_names import HuggingFaceView, hugging_face_view
from nett.core.dtypes import DTYPES, Array, Dtype, decode
from nett.core.errors import Refused, missing_extra

_PLAIN = ("F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64")
_PIECE = 1 << 18  # elements dequantised at once: their temporaries stay in the cache


@final
@dataclass(frozen=True)
class _Layout:
    """How a tensor lies in the file and what is to be undone: ``heads`` > 0 for rows that llama.cpp permuted
    within each head, ``shift`` for what it added to each value."""

    dtype: Dtype  # of the elements once dequantised
    type: Any  # gguf's GGMLQuantizationType, None for plain numbers
    offset: int
    block: int  # elements
    block_bytes: int
    rows: int
    columns: int
    heads: int = 0
    shift: float = 0.0


@final
class GgufCheckpoint(Checkpoint):
    """One GGUF file. Quantised tensors read as float32, plain ones as what they are.

    ``renamed`` says whether the tensors carry Hugging Face names and values; where they do not, ``reason`` says why.
    ``skipped`` are tensors that transformers does not load either.
    """

    format = "gguf"

    def __init__(self, path: Path) -> None:
        try:
            import gguf  # noqa: F401
        except ImportError as error:
            raise missing_extra("gguf", "models", "reading GGUF files") from error
        self.path, self.files = path, (path,)
        header = read_header(path)
        if int(header.metadata.get("split.count", 1) or 1) > 1:
            raise Refused(
                "is one part of a GGUF that was split into several files",
                where=path,
                hint="Join them first: llama-gguf-split --merge FIRST-PART OUT.gguf",
            )
        self.metadata = header.metadata
        self._bounds = header.size
        blocks = header.metadata.get(f"{header.metadata.get('general.architecture')}.block_count", 0)
        if type(blocks) is int and blocks > len(header.tensors):
            raise Refused(f"says that it has {blocks} layers, but it holds {len(header.tensors)} tensors", where=path)
        layouts = {t.name: self._layout(t) for t in header.tensors}
        self._no_overlap(header.tensors, layouts)
        view = hugging_face_view(path, header)
        if isinstance(view, HuggingFaceView):
            view = self._unlike(view, header.tensors) or view
        self.reason = view if isinstance(view, str) else None
        self.renamed = self.reason is None
        self.skipped: tuple[str, ...] = ()
        self._view = view if isinstance(view, HuggingFaceView) else None
        self._layouts: dict[str, _Layout] = {}
        tensors: dict[str, TensorInfo] = {}
        for tensor in header.tensors:
            layout = layouts[tensor.name]
            name, shape = tensor.name, tensor.shape
            if self._view is not None:
                if name not in self._view.names:
                    self.skipped += (name,)
                    continue
                layout = _undoing(tensor, layout, self._view)
                name = self._view.names[name]
                shape = self._view.shapes[name]
            nbytes = layout.rows * layout.columns // layout.block * layout.block_bytes
            as_it_lies = layout.type is None and not layout.heads and not layout.shift
            where = (path, layout.offset) if as_it_lies else (None, -1)
            stored = layout.type.name if layout.type is not None else layout.dtype.name
            dtype = DTYPES["F32"] if layout.shift else layout.dtype
            tensors[name] = TensorInfo(name, dtype, shape, stored, nbytes, *where)
            self._layouts[name] = layout
        self.tensors = tensors
        self.notes = self._said()
        self._reader = FileReader(path)

    def _said(self) -> tuple[str, ...]:
        """What is quantised, for whoever makes a model of it; nothing where all is plain."""
        kinds = sorted({layout.type.name for layout in self._layouts.values() if layout.type is not None})
        if not kinds:
            return ()
        said = f"{self.path} is quantised (GGUF {', '.join(kinds)}): its weights are taken as the numbers they stand"
        return (f"{said} for, in float32; a model written in that type is larger, --dtype bfloat16 halves it",)

    def _layout(self, tensor: GgufTensor) -> _Layout:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

        def refuse(what: str) -> Refused:
            return Refused(f"tensor {tensor.name!r} {what}", where=self.path)

        try:
            kind = GGMLQuantizationType(tensor.type)
        except ValueError:
            raise refuse(f"is of ggml type {tensor.type}, which the gguf package does not know") from None
        block, block_bytes = GGML_QUANT_SIZES[kind]
        plain = kind.name in _PLAIN
        if not plain:
            try:
                dequantize(np.zeros(block_bytes, np.uint8), kind)
            except NotImplementedError:
                raise refuse(f"is of ggml type {kind.name}, which the gguf package cannot dequantise") from None
        columns = tensor.shape[-1] if tensor.shape else 1
        if columns % block:
            raise refuse(f"has rows of {columns} elements, not a multiple of the {block} of a {kind.name} block")
        size = prod(tensor.shape)
        if tensor.offset + size // block * block_bytes > self._bounds:
            raise refuse(f"of {size // block * block_bytes} bytes ends after the file (truncated download?)")
        dtype = DTYPES[kind.name] if plain else DTYPES["F32"]
        rows = size // columns if columns else 0
        return _Layout(dtype, None if plain else kind, tensor.offset, block, block_bytes, rows, columns)

    def _no_overlap(self, tensors: tuple[GgufTensor, ...], layouts: dict[str, _Layout]) -> None:
        end, last = 0, ""
        for tensor in sorted(tensors, key=lambda t: t.offset):
            layout = layouts[tensor.name]
            nbytes = layout.rows * layout.columns // layout.block * layout.block_bytes
            if tensor.offset < end and nbytes:
                raise Refused(f"tensor {tensor.name!r} overlaps {last!r}", where=self.path)
            end = max(end, tensor.offset + nbytes)
            last = tensor.name

    def _unlike(self, view: HuggingFaceView, tensors: tuple[GgufTensor, ...]) -> str | None:
        """Why the model that the metadata describe is not the one in the file."""
        for tensor in tensors:
            name = view.names.get(tensor.name)
            if name is not None and prod(view.shapes[name]) != prod(tensor.shape):
                return f"its metadata give {tensor.name!r} the shape {view.shapes[name]}, the file {tensor.shape}"
            heads = _permuted_heads(tensor, view)
            if heads and (not tensor.shape or tensor.shape[0] % (2 * heads)):
                return f"the rows of {tensor.name!r} of shape {tensor.shape} do not divide into {heads} heads"
        return None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        info, layout = self.tensors[name], self._layouts[name]
        stop = info.size if stop is None else stop
        raw = self._permuted(layout, start, stop) if layout.heads else self._flat(layout, start, stop)
        if layout.shift:
            return decode(raw, layout.dtype) - np.float32(layout.shift)
        return raw

    def _flat(self, layout: _Layout, start: int, stop: int) -> Array:
        """Elements of the tensor as the file orders them."""
        if layout.type is None:
            width = layout.dtype.bytes
            return self._reader.read(layout.offset + start * width, stop - start, layout.dtype.raw)
        from gguf import dequantize

        out = np.empty(stop - start, np.float32)
        at = start // layout.block * layout.block
        while at < stop:
            end = min(at + _PIECE, -(-stop // layout.block) * layout.block)
            first, count = at // layout.block, (end - at) // layout.block
            packed = self._reader.read(layout.offset + first * layout.block_bytes, count * layout.block_bytes, "u1")
            with np.errstate(all="ignore"):  # NaN and infinite scales: whoever reads the values reports them
                values = dequantize(packed.reshape(1, -1), layout.type).reshape(-1)
            low, high = max(at, start), min(end, stop)
            out[low - start : high - start] = values[low - at : high - at]
            at = end
        return out

    def _permuted(self, layout: _Layout, start: int, stop: int) -> Array:
        """The same in Hugging Face's order of rows: within a head of 2 d rows, the file's row 2 i + j is row j d + i
        (llama.cpp interleaves the two halves that rotate together). Only the rows in between are read."""
        columns = layout.columns
        if start >= stop:
            return self._flat(layout, 0, 0)
        head = layout.rows // layout.heads
        half = head // 2
        rows = np.arange(start // columns, -(-stop // columns))
        within = rows % head
        lying = rows - within + 2 * (within % half) + within // half
        out = np.empty((len(rows), columns), layout.dtype.raw)
        for part in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows // head)) + 1):
            low, high = int(lying[part].min()), int(lying[part].max()) + 1
            out[part] = self._flat(layout, low * columns, high * columns).reshape(-1, columns)[lying[part] - low]
        skip = start - int(rows[0]) * columns
        return out.reshape(-1)[skip : skip + stop - start]

    def config(self) -> dict[str, Any] | None:
        """What transformers makes of the metadata; None where it knows no such architecture."""
        return dict(self._view.config) if self._view is not None else None

    def close(self) -> None:
        self._reader.close()


def _permuted_heads(tensor: GgufTensor, view: HuggingFaceView) -> int:
    """In how many heads llama.cpp permuted the rows; 0 where it did not. Told by the name, as in transformers."""
    if view.rule != "llama" or view.heads is None or view.kv_heads is None:
        return 0
    return view.heads if ".attn_q." in tensor.name else view.kv_heads if ".attn_k." in tensor.name else 0


def _undoing(tensor: GgufTensor, layout: _Layout, view: HuggingFaceView) -> _Layout:
    """The layout with what has to be undone to the values."""
    if view.rule == "minus_one" and "norm.weight" in tensor.name:
        return replace(layout, shift=1.0)
    heads = _permuted_heads(tensor, view)
    if heads:
        return replace(layout, heads=heads, rows=tensor.shape[0], columns=prod(tensor.shape[1:]))
    return layout
