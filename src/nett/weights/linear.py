"""A run of a linear kernel, from the plan to the receipt."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nett
from nett.core import receipt as receipts
from nett.core.blocks import Skeleton
from nett.core.checkpoint.writer import byte_size
from nett.core.device import check_memory
from nett.core.dtypes import Dtype
from nett.core.errors import UsageError
from nett.core.outcome import finish, put_files
from nett.core.parts import FOLDER, write_part
from nett.core.registry import Card
from nett.core.staging import check_target, file_state, staged, work_key
from nett.core.texts import read_text
from nett.weights import layerwise
from nett.weights.dense_again import check_exact, check_gain
from nett.weights.formats import format_for, group_of
from nett.weights.formats.base import Run
from nett.weights.job import figures, plan_job
from nett.weights.pairing import check_pair


def run_linear(
    card: Card,
    models: Sequence[Skeleton],
    parameters: Mapping[str, Any],
    *,
    out: Path,
    calibration: Path | None,
    samples: int,
    length: int,
    eval: Path | None,
    format: str,
    skip: Sequence[str],
    per_layer: Path | None,
    dtype: Dtype | None,
    disk: bool,
    shard_size: str,
    overwrite: bool,
    dry_run: bool,
) -> dict[str, Any]:
    """See :func:`nett.weights.engine.run`."""
    import torch

    skeleton, compressed = models[0], models[1] if len(models) > 1 else None
    if compressed is not None:
        check_pair(skeleton, compressed)
    job = plan_job(card, skeleton, parameters, skip=skip, per_layer=per_layer, group=group_of(format))
    if card.guarantee == "exact":
        check_exact(card, format, dtype)
    kind = getattr(torch, dtype.alias) if dtype is not None else None
    fmt = format_for(job, format, kind, skeleton)
    if fmt.scales is not None:
        if dtype is not None and dtype.alias != fmt.scales:
            raise UsageError(f"--dtype {dtype.alias}: scales are {fmt.scales} in {fmt.name}", where=card.key)
        kind = getattr(torch, fmt.scales)
    text = read_text(
        skeleton,
        calibration=calibration,
        eval=eval,
        samples=samples,
        length=length,
        needed=job.calibrated,
        where=card.key,
    )
    tokens, judged = (w.tokens if w is not None else 0 for w in (text.calibration, text.judging))
    plan = figures(job, skeleton, tokens, judged, disk=disk)
    inputs = [f for m in models for f in m.checkpoint.files]
    check_target(
        out,
        2 * plan["bytes_written"],
        overwrite=overwrite,
        inputs=[*(m.checkpoint.path for m in models), *inputs],
    )
    check_memory(plan["peak_memory_bytes"], skeleton.device, skeleton.checkpoint.path)
    notes = [*job.notes, *text.notes]
    if dry_run:
        return {
            "plan": plan,
            "files": [{"path": f"{fmt.stem}.{fmt.suffix}", "at_most_bytes": plan["bytes_written"]}],
            "notes": notes,
        }
    began = time.monotonic()
    key = work_key(
        {
            "nett": nett.__version__,
            "method": card.key,
            "parameters": [[t.linear.module, dict(t.parameters)] for block in job.blocks for t in block],
            "format": fmt.name,
            "dtype": str(dtype),
            "shard_size": shard_size,
            "texts": [w.as_json() for w in (text.calibration, text.judging) if w is not None],
            "inputs": [file_state(f) for f in inputs],
        }
    )
    with staged(out, key) as staging:
        hashes = receipts.InputHashes(inputs)
        windows = torch.from_numpy(text.calibration.ids) if text.calibration is not None else None
        done = layerwise.work(
            job,
            skeleton,
            fmt,
            staging,
            windows=windows,
            compressed=compressed,
            dtype=None if fmt.added else kind,
            disk=disk,
        )
        if card.guarantee == "exact":
            check_gain(card, done, skeleton)
        parts = [staging.path / FOLDER / f"block-{i:05d}.safetensors" for i in range(len(skeleton))]
        if not fmt.added:
            parts.insert(0, staging.path / FOLDER / "ground.safetensors")
            write_part(parts[0], layerwise.outside(skeleton, kind))
        at_hand = Run(skeleton, parts, done.layers, text.calibration, text.judging, job.parameters, dtype)
        settled = fmt.arranged(at_hand)
        outputs = fmt.join(parts, staging, byte_size(shard_size), done.layers, settled.names)
        worked = {w.linear.module for w in done.layers}
        kept = [name for name in skeleton.linear_names if name not in worked]
        files, said = fmt.files(models, done.layers, kept, dtype)
        outputs += put_files(files, said, staging)
        notes += said
        if "source" in card.operands:
            said_too = (
                f"the inputs of {done.folded} of {len(done.records)} layers are scaled, folded into what stands before"
            )
            notes.append(f"{said_too}; for {done.unplaced} there is no place for that" if done.unplaced else said_too)
        if done.unseen:
            notes.append(f"{len(done.unseen)} layers were not run on the calibration text and stay as they are")
        if job.kept:
            notes.append(f"{len(job.kept)} linear layers stay as they are (--skip)")
        bits = sum(r["bits"] * count for r, count in _sized(done))
        found = {
            "layers": len(done.records),
            "weights": job.weights,
            "bits_a_weight": round(bits / max(1, job.weights), 4),
            "error": max((r["error"] for r in done.records), default=0.0),
            **settled.figures,
        }
        rows = [{"name": r["layer"], **{k: v for k, v in r.items() if k != "layer"}} for r in done.records]
        return finish(
            card,
            models,
            dict(job.parameters),
            staging,
            outputs,
            hashes,
            began=began,
            judging=text.judging,
            calibration=text.calibration,
            figures=found,
            notes=[*notes, *settled.notes, *fmt.notes(done.layers)],
            tensors=rows,
            charts=settled.charts,
            opened=fmt.opened,
        )


def _sized(done: layerwise.Done) -> list[tuple[dict[str, Any], int]]:
    return [(r, w.linear.rows * w.linear.columns) for r, w in zip(done.records, done.layers, strict=True)]
