"""Entropy coders for one byte plane, each a library's: raw, one byte repeated, Huffman (zstd), FSE (openzl).

Huffman spends at least a bit a byte, which is too much for planes below about two bits of entropy; there FSE is
within a percent of the entropy. Match search is off in both: planes of weights have no matches worth the time.
"""

from __future__ import annotations

import threading
from typing import Any, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import NettError, missing_extra

RAW, CONSTANT, HUFFMAN, FSE = "r", "c", "h", "f"  # "h": any zstd frame
FULL = 7.9  # bits a byte beyond which coding is not tried
LOW, LOW_PATIENT = 2.0, 4.5  # bits a byte below which Huffman wastes too much for the speed that it has
SAMPLE = 1 << 14
OPENZL_FORMAT = 24  # of frames; fixed, so that what is written is readable by every later version

_local = threading.local()


def entropy(plane: Array) -> float:
    """Order-0 entropy of bytes, in bits a byte."""
    counts = np.bincount(plane, minlength=256)
    share = counts[counts > 0] / max(1, plane.size)
    return float(-(share * np.log2(share)).sum())


def sampled(plane: Array) -> Array:
    """At most ``SAMPLE`` bytes of a plane, in runs spread over it."""
    if plane.size <= SAMPLE:
        return plane
    run = 1 << 10
    rows = plane[: plane.size // run * run].reshape(-1, run)
    return np.ascontiguousarray(rows[:: -(-len(rows) * run // SAMPLE)]).ravel()


def code(plane: Array, *, patient: bool = False) -> tuple[str, Any]:
    """The coder that suits a plane, and what it makes of it; ``patient`` takes FSE where it saves a few percent."""
    if not plane.size:
        return RAW, b""
    bits = entropy(sampled(plane))
    if bits == 0.0 and bool((plane == plane[0]).all()):
        return CONSTANT, plane[:1].tobytes()
    if bits > FULL:
        return RAW, plane
    low = bits < (LOW_PATIENT if patient else LOW)
    made: bytes = (_fse() if low else _huffman()).compress(plane)
    if len(made) >= plane.size:
        return RAW, plane
    return (FSE if low else HUFFMAN), made


def code_text(data: Array) -> tuple[str, Any]:
    """Headers, tokenizers and other files, where matches are what is to be had."""
    made = _huffman().compress_text(data)
    return (HUFFMAN, made) if len(made) < data.size else (RAW, data)


def decode(coder: str, data: Any, size: int) -> Array:
    """The plane of ``size`` bytes, not to be written to; NettError where the data is not what a coder wrote for so
    many bytes."""
    if coder == RAW:
        found = np.frombuffer(data, np.uint8)
    elif coder == CONSTANT and len(data) == 1:
        found = np.full(size, data[0], np.uint8)
    elif coder in (HUFFMAN, FSE):
        try:
            found = _huffman().decompress(data, size) if coder == HUFFMAN else _fse().decompress(data)
        except Exception as error:  # each library has errors of its own
            raise NettError(f"coded bytes are damaged: {error}") from error
    else:
        raise NettError(f"unknown coder {coder!r}: written by a newer nett")
    if found.size != size:
        raise NettError(f"coded bytes give {found.size:,} bytes in place of {size:,}")
    return found


def _huffman() -> _Zstd:
    if not hasattr(_local, "zstd"):
        _local.zstd = _Zstd()
    return _local.zstd  # type: ignore[no-any-return]


def _fse() -> _OpenZl:
    if not hasattr(_local, "openzl"):
        _local.openzl = _OpenZl()
    return _local.openzl  # type: ignore[no-any-return]


@final
class _Zstd:
    """zstandard with the match search practically off: what is left is its Huffman coder."""

    def __init__(self) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise missing_extra("zstandard", "store", "coding tensors") from error
        parameters = zstandard.ZstdCompressionParameters.from_level(
            1, strategy=zstandard.STRATEGY_FAST, min_match=7, hash_log=6, window_log=17, write_content_size=True
        )
        self._in, self._text = (
            zstandard.ZstdCompressor(compression_params=parameters),
            zstandard.ZstdCompressor(level=9),
        )
        self._out = zstandard.ZstdDecompressor()

    def compress(self, plane: Array) -> bytes:
        return bytes(self._in.compress(plane.data))

    def compress_text(self, data: Array) -> bytes:
        return bytes(self._text.compress(data.data))

    def decompress(self, data: Any, size: int) -> Array:
        return np.frombuffer(self._out.decompress(data, max_output_size=size), np.uint8)


@final
class _OpenZl:
    """openzl's entropy graph over bytes."""

    def __init__(self) -> None:
        try:
            import openzl.ext as zl
        except ImportError as error:
            raise missing_extra("openzl", "store", "coding deltas") from error
        self._zl = zl
        self._compressor = zl.Compressor()
        self._compressor.set_parameter(zl.CParam.FormatVersion, OPENZL_FORMAT)
        self._compressor.select_starting_graph(zl.graphs.Fse()(self._compressor))

    def compress(self, plane: Array) -> bytes:
        context = self._zl.CCtx()
        context.ref_compressor(self._compressor)
        context.set_parameter(self._zl.CParam.FormatVersion, OPENZL_FORMAT)
        held = plane.tobytes()  # an Input does not own its buffer
        return bytes(context.compress([self._zl.Input(self._zl.Type.Serial, held)]))

    def decompress(self, data: Any) -> Array:
        return np.frombuffer(self._zl.DCtx().decompress(bytes(data))[0].content.as_bytes(), np.uint8)
