"""What a merge of whole networks reads and leaves: tensors, files, receipt, and the looks that are taken at them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from nett.core import receipt as receipts
from nett.core.checkpoint import Checkpoint, TensorSpec, open_checkpoint, shard_plan
from nett.core.dtypes import Array, decode, dtype_named, encode
from nett.core.edge import Edge
from nett.core.errors import ProofFailed, Refused
from nett.core.finite import count_non_finite
from nett.core.progress import report
from nett.core.registry import Card
from nett.core.sidefiles import model_files
from nett.core.sink import Sink
from nett.core.staging import Staging
from nett.core.standing import beyond_measured
from nett.core.symmetry import Proof, Symmetry
from nett.merge.job import labels_of
from nett.merge.protocol import Whole


def floats_of(checkpoint: Checkpoint) -> dict[str, Array]:
    """Every floating-point tensor in float32 (float64 where it is stored so); Refused where one is not finite."""
    found = {}
    for name, info in checkpoint.tensors.items():
        if info.dtype.is_float:
            values = checkpoint.values(name).reshape(info.shape)
            report.step(info.nbytes)
            if count_non_finite(values.reshape(-1)):
                raise Refused(f"tensor {name!r} holds NaN or infinity", where=checkpoint.path)
            found[name] = values
    return found


def written(
    whole: Whole, first: Checkpoint, dtype: str | None, shard_bytes: int, staging: Staging
) -> list[dict[str, Any]]:
    specs, raws = [], {}
    asked = dtype_named(dtype) if dtype is not None else None
    for name in sorted({*whole.tensors, *(n for n, t in first.tensors.items() if not t.dtype.is_float)}):
        info = first.tensors.get(name)
        if name not in whole.tensors:
            assert info is not None
            raws[name] = first.read(name)
            specs.append(TensorSpec(name, info.dtype, info.shape))
            continue
        kind = asked or (info.dtype if info is not None else dtype_named("F32"))
        values = np.asarray(whole.tensors[name])
        raws[name] = encode(np.ascontiguousarray(values).reshape(-1), kind)
        bad = count_non_finite(decode(raws[name], kind))
        if bad:
            raise ProofFailed(f"tensor {name!r} of the result would hold {bad:,} NaN or infinite values in {kind.name}")
        specs.append(TensorSpec(name, kind, tuple(values.shape)))
    sink = Sink(staging.path, shard_plan(specs, shard_bytes, "model"))
    try:
        for spec in specs:
            if prod(spec.shape):
                sink.write("model", raws[spec.name])
        written = sink.finish()
    finally:
        sink.close()
    return written + [staging.add_file(name, content) for name, content in sink.indexes().items()]


def beside(whole: Whole, first: Checkpoint, dtype: str | None) -> dict[str, bytes]:
    """Config and tokenizer of the first model, with the config's changes; and the kernel's own files."""
    found: dict[str, bytes] = {}
    if first.config() is not None:
        found, notes = model_files(first)
        for note in notes:
            report.say(note)
        if "config.json" in found and (whole.config or dtype is not None):
            config = json.loads(found["config.json"]) | dict(whole.config)
            if dtype is not None:
                config["dtype"] = dtype_named(dtype).alias
            found["config.json"] = json.dumps(config, indent=2).encode()
    return {**found, **whole.files}


def receipt_of(
    card: Card,
    models: Sequence[Checkpoint],
    parameters: Mapping[str, Any],
    symmetry: Symmetry,
    proofs: Sequence[Proof],
    whole: Whole,
    outputs: list[dict[str, Any]],
    hashes: Mapping[Path, str],
    began: float,
    out: Path,
) -> dict[str, Any]:
    labels = labels_of(models)
    inputs = [receipts.input_record(c, "model", hashes) | {"name": n} for n, c in zip(labels, models, strict=True)]
    size = sum(o["bytes"] for o in outputs)
    seconds = time.monotonic() - began
    freed = max(0, sum(i["bytes"] for i in inputs) - size)
    worst = max((p.difference for p in proofs if p.ok), default=0.0)
    edge = Edge(
        "merge",
        str(out.absolute()),
        tuple(i["path"] for i in inputs),
        card.key,
        freed,
        round(seconds, 3),
        None,
        "measured",
    )
    checks = [
        {"name": "finite", "ok": True, "detail": "no NaN or infinity in any input or output tensor"},
        {
            "name": "symmetry",
            "ok": True,
            "detail": f"{len(symmetry.groups):,} groups of {sum(g.size for g in symmetry.groups):,} units, permuted at"
            f" random, changed the output of random weights by {worst:.1e} of its largest value",
        },
    ]
    return receipts.new_receipt(
        card,
        parameters=parameters,
        inputs=inputs,
        outputs=outputs,
        edges=[edge],
        checks=checks,
        figures={"tensors": len(whole.tensors), "parameters": sum(int(t.size) for t in whole.tensors.values()), **whole.figures},
        seconds=seconds,
        models=[{"name": labels[i], **row} for i, row in enumerate(whole.rows)],
        charts=list(whole.charts),
        notes=[
            *dict.fromkeys(note for c in models for note in c.notes),
            *(f"not permuted: {r}" for r in symmetry.refused), *whole.notes,
            *beyond_measured(card, size),
        ],
    )  # fmt: skip


def look_after(models: Sequence[Checkpoint], staging: Staging, receipt: dict[str, Any], speak: bool) -> None:
    from nett.core.aftercare import check_config
    from nett.core.aftercare import speak as let_speak

    with open_checkpoint(staging.path) as written:
        receipt["checks"] += check_config(written)
        talks = written.config() is not None
    if speak and talks:
        inputs = [c.path for c in models if c.path.is_dir() and c.format == "safetensors"]
        checks, rows = let_speak(staging.path, inputs)
        receipt["checks"] += checks
        names = ["merged", *(c.name for c in models if c.path in inputs)]
        receipt["quality"] = [
            {"model": n, "text": "built-in", "perplexity": r.get("perplexity"), "says": r.get("says")}
            for n, r in zip(names, rows, strict=False)
        ]
    receipt["proof"] = "kept" if all(c["ok"] for c in receipt["checks"]) else "failed"
