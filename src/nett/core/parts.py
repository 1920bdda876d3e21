"""Blocks written one by one, each a whole file that survives a kill, and put together at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nett.core.checkpoint import Checkpoint, OutputFile, TensorSpec, open_checkpoint, shard_plan
from nett.core.checkpoint.writer import FileSpec
from nett.core.dtypes import dtype_named
from nett.core.errors import ProofFailed
from nett.core.progress import report
from nett.core.sink import Sink
from nett.core.staging import Staging

FOLDER = "parts"
_CHUNK = 1 << 22  # elements


def write_part(path: Path, tensors: Mapping[str, Any]) -> str:
    """Torch tensors as one safetensors file, synced. Returns its sha256."""
    import torch

    specs = [TensorSpec(n, dtype_named(str(t.dtype)), tuple(t.shape)) for n, t in tensors.items()]
    spec = FileSpec(path.name, tuple(specs), {"format": "pt"})
    out = OutputFile(path, spec.nbytes)
    try:
        out.write(spec.header())
        for tensor in tensors.values():
            ends = torch.aminmax(tensor) if tensor.is_floating_point() and tensor.numel() else ()  # NaN is both
            if not all(torch.isfinite(end) for end in ends):
                name = next(n for n, t in tensors.items() if t is tensor)
                raise ProofFailed(f"tensor {name!r} of the result would hold NaN or infinite values")
            if tensor.numel():
                out.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        out.sync()
        return out.sha256
    finally:
        out.close()


def read_part(path: Path) -> dict[str, Any]:
    """The tensors of a part, in torch."""
    from safetensors.torch import load_file

    return load_file(path)  # type: ignore[no-any-return]


def joined(
    parts: Sequence[Path],
    staging: Staging,
    shard_bytes: int,
    stem: str = "model",
    order: Sequence[str] | None = None,
    beside: Checkpoint | None = None,
) -> list[dict[str, Any]]:
    """The tensors of all parts, in the ``order`` of their names or as they come, as the shards of one model, called
    ``stem``; the parts are gone afterwards. Names in ``order`` that no part has are read from ``beside``. Returns their
    output records."""
    opened = [open_checkpoint(p) for p in parts]
    try:
        found = {t.name: (beside, t) for t in beside.tensors.values()} if beside is not None and order else {}
        found |= {t.name: (c, t) for c in opened for t in _in_order(c)}
        chosen = [found[name] for name in order] if order is not None else list(found.values())
        specs = [TensorSpec(t.name, t.dtype, t.shape) for _, t in chosen]
        report.begin("writing", sum(s.nbytes for s in specs))
        sink = Sink(staging.path, shard_plan(specs, shard_bytes, stem))
        try:
            for checkpoint, info in chosen:
                for start in range(0, info.size, _CHUNK):
                    raw = checkpoint.read(info.name, start, min(info.size, start + _CHUNK))
                    sink.write(stem, raw.view(np.uint8))
                    report.step(raw.nbytes)
            outputs = sink.finish()
        finally:
            sink.close()
        outputs += [staging.add_file(name, content) for name, content in sink.indexes().items()]
    finally:
        for checkpoint in opened:
            checkpoint.close()
    for path in parts:
        path.unlink()
    (staging.path / FOLDER).rmdir()
    return outputs


def _in_order(checkpoint: Any) -> Iterator[Any]:
    return iter(sorted(checkpoint.tensors.values(), key=lambda t: t.offset))
