"""Outputs that keep every bit: the dense model out of them again, and the proof that it is the one that went in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nett
from nett.core import conversion
from nett.core.blocks import Skeleton
from nett.core.checkpoint import Checkpoint, open_checkpoint
from nett.core.checkpoint.writer import byte_size
from nett.core.dtypes import Dtype
from nett.core.errors import ProofFailed, Refused, UsageError
from nett.core.registry import Card
from nett.core.runner import thread_count
from nett.core.sidefiles import model_files
from nett.core.staging import check_target, file_state, staged, work_key

_SHARD = "5GB"


def check_exact(card: Card, format: str, dtype: Dtype | None) -> None:
    """UsageError for options that would lose what is to be kept, or gain nothing."""
    if dtype is not None:
        raise UsageError("keeps every bit, and so the types", where=card.key, hint="Leave out --dtype.")
    if format == "gguf":
        raise UsageError(
            "keeps every bit, and matrices outside the blocks are float16 in GGUF",
            where=card.key,
            hint="Leave out --format.",
        )
    if format == "dense":
        raise UsageError("would write what is there already", where=card.key, hint="Leave out --format dense.")


def check_gain(card: Card, done: Any, skeleton: Skeleton) -> None:
    """Refused where no layer became smaller."""
    if not any("group" in w.kind for w in done.layers):
        raise Refused(
            f"{card.key} finds none of its {len(done.layers)} layers on a grid that the format can hold",
            where=skeleton.checkpoint.path,
            hint="nett scan says which grids its tensors lie on; nett store add keeps those packed.",
        )


def sha256_of(checkpoint: Checkpoint, name: str) -> str:
    """Of a tensor's bytes as the checkpoint gives them."""
    return hashlib.sha256(checkpoint.read(name).tobytes()).hexdigest()


def check_tensors(checkpoint: Checkpoint, receipt: Mapping[str, Any]) -> dict[str, Any]:
    """One check: every layer that the receipt names has the values that it had."""
    rows: Sequence[Mapping[str, Any]] = [r for r in receipt["tensors"] if "sha256" in r]
    for row in rows:
        name = f"{row['name']}.weight"
        if name not in checkpoint.tensors or sha256_of(checkpoint, name) != row["sha256"]:
            return {"name": "exact", "ok": False, "detail": f"{name} is not what it was"}
    return {"name": "exact", "ok": True, "detail": f"{len(rows)} layers are bit for bit what they were"}


def restore_dense(
    folder: Path, receipt: Mapping[str, Any], out: Path | None, *, overwrite: bool = False, dry_run: bool = False
) -> dict[str, Any]:
    """Write the dense model to ``out``; ProofFailed where a tensor is not what it was, and then nothing is left there."""
    if out is None:
        raise UsageError("say where the dense model goes", where=folder, hint="--out DIR")
    with open_checkpoint(folder, dense=True) as packed:
        job = conversion.plan(packed, None, byte_size(_SHARD))
        needed = sum(f.nbytes for f in job.files)
        check_target(out, needed, overwrite=overwrite, inputs=[folder, *packed.files])
        if dry_run:
            return {"say": [f"would write {needed:,} bytes to {out}"]}
        key = work_key({"nett": nett.__version__, "restore": [file_state(f) for f in packed.files]})
        with staged(out, key) as staging:
            conversion.write(job, staging, thread_count(0))
            for name, content in model_files(packed)[0].items():
                staging.add_file(name, content)
            with open_checkpoint(staging.path) as written:
                check = check_tensors(written, receipt)
            if not check["ok"]:
                raise ProofFailed(str(check["detail"]), where=folder)
            staging.commit()
    return {"say": [f"{out}: {needed:,} bytes; {check['detail']}"], "out": str(out)}
