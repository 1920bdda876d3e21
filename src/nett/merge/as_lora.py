"""The merged model as a PEFT adapter of its base: truncated factors of each difference, and what they leave out."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np

import nett
from nett.core import receipt as receipts
from nett.core.checkpoint import Checkpoint
from nett.core.checkpoint.lora import CONFIG, WEIGHTS
from nett.core.checkpoint.rows import RowsCheckpoint
from nett.core.dtypes import DTYPES, Dtype
from nett.core.edge import Edge
from nett.core.errors import Refused, UsageError
from nett.core.low_rank import factors
from nett.core.progress import report
from nett.core.runner import thread_count
from nett.core.sidefiles import model_files
from nett.core.staging import check_target, file_state, staged, work_key
from nett.merge.job import Job
from nett.merge.lora_file import Spool, Tally
from nett.merge.lora_layout import Place, adapter_config, places_of
from nett.merge.lora_stream import changes

AUTO_ERROR = 0.01  # of --as-lora auto, relative to the norm of the change
MOST = 256  # rank that auto goes up to


@final
@dataclass(frozen=True)
class Wanted:
    """What ``--as-lora`` says: a rank, or (rank 0) the smallest whose relative error is at most ``error``."""

    rank: int
    error: float

    @classmethod
    def of(cls, text: str) -> Wanted:
        found = re.fullmatch(r"(\d+)|auto(?::(\d*\.?\d+(?:e-?\d+)?))?", text.strip().lower())
        if found and found[1] and 0 < int(found[1]) <= 1 << 16:
            return cls(int(found[1]), 0.0)
        if found and not found[1]:
            error = float(found[2]) if found[2] else AUTO_ERROR
            if 0 < error < 1:
                return cls(0, error)
        raise UsageError(
            f"--as-lora {text!r} is neither a rank nor auto",
            hint="Write --as-lora 16, --as-lora auto (relative error at most 0.01) or --as-lora auto:0.05.",
        )


def ground_of(job: Job) -> Checkpoint:
    """The base that the adapter will belong to. UsageError or Refused where there is none that it could."""
    if list(job.card.outputs) != ["model"]:
        raise UsageError("does not give one model, so there is nothing to write as an adapter", where=job.card.key)
    if job.card.carries:
        raise UsageError(
            "takes one model after the other, which --as-lora does not follow yet",
            where=job.card.key,
            hint="Merge without it; then: nett merge linear MERGED --base BASE --as-lora RANK --out OUT",
        )
    if job.edits or any(isinstance(c, RowsCheckpoint) for c in job.checkpoints):
        raise UsageError(
            "the recipe changes config, tokenizer or layers, which an adapter cannot hold",
            where=job.card.key,
            hint="Leave out --as-lora, which writes the whole model.",
        )
    if job.ground is None:
        raise UsageError(
            "--as-lora needs the model that the adapter is to be added to",
            where=job.card.key,
            hint="Add --base MODEL; in a recipe, base_model.",
        )
    if job.ground.format == "peft":
        raise Refused(
            "is itself a base with an adapter, which an adapter cannot name as its base",
            where=job.ground.path,
            hint="Write it as one model first: nett convert BASE+ADAPTER OUT",
        )
    return job.ground


def full_rank(placed: Mapping[str, Place], ground: Checkpoint) -> int:
    """The largest rank that any matrix with factors can have; more would be zeros in the file."""
    sides = [min(ground.tensors[n].shape) for n, p in placed.items() if p.kind in ("linear", "embedding")]
    return max(1, *sides) if sides else 1


def smallest_rank(job: Job, ground: Checkpoint, placed: Mapping[str, Place], error: float, **how: Any) -> int:
    """The smallest rank for all matrices whose error is at most ``error`` of the change; one pass over the merge."""
    square, kept = 0.0, np.zeros(MOST)
    most = 1
    for change in changes(job, ground, placed, **how):
        if not change.changed:
            continue
        square += change.square
        if change.place.kind in ("linear", "embedding") and change.delta is not None:
            energies = np.square(factors(change.delta, MOST).singular)
            kept[: len(energies)] += energies
            most = max(most, len(energies))
        else:
            kept[0] += change.square
    lost = np.maximum(0.0, square - np.cumsum(kept))
    enough = np.flatnonzero(lost <= error**2 * square)
    if not len(enough):
        at_most = math.sqrt(lost[-1] / square)
        raise Refused(
            f"no rank up to {MOST} holds the change with a relative error of {error:g}; at {MOST} it is {at_most:.3g}",
            where=job.card.key,
            hint=f"Allow more (--as-lora auto:{min(0.99, math.ceil(at_most * 100) / 100):g}), or write the whole model.",
        )
    return int(min(enough[0] + 1, most))


def execute_as_lora(
    job: Job,
    wanted: Wanted,
    *,
    out: Path,
    threads: int = 0,
    overwrite: bool = False,
    dry_run: bool = False,
    dtype: Dtype | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Carry a merge out and write what it changes of its base as an adapter. Returns the receipt.

    Args:
        dtype: of the factors; float32 by default. Tensors kept whole have the base's type.
    """
    ground = ground_of(job)
    placed = places_of(job, ground)
    kind = dtype or DTYPES["F32"]
    full = full_rank(placed, ground)
    if wanted.rank > full:
        told = f"rank {full} is taken, not {wanted.rank}: no matrix of the base can have more"
        job, wanted = replace(job, notes=(*job.notes, told)), Wanted(full, 0.0)
    needed = _most_bytes(placed, ground, wanted.rank or min(MOST, full), kind)
    check_target(out, 2 * needed, overwrite=overwrite, inputs=[f for c in _inputs(job) for f in (c.path, *c.files)])
    if dry_run:
        figures = {"method": job.card.key, "tensors": len(job.tasks), "bytes_read": sum(c.nbytes for c in _inputs(job))}
        return {
            "plan": figures | {"bytes_written_at_most": needed},
            "files": [{"path": WEIGHTS, "bytes": needed}],
            "notes": list(job.notes),
        }
    for note in job.notes:
        report.say(note)
    began = time.monotonic()
    work = {"nett": nett.__version__, "method": job.card.key, "as_lora": vars(wanted), "parameters": job.parameters,
            "recipe": job.recipe, "dtype": kind.name, "inputs": [file_state(f) for c in _inputs(job) for f in c.files]}  # fmt: skip
    with staged(out, work_key(work)) as staging:
        hashes = receipts.InputHashes([f for c in _inputs(job) for f in c.files])
        how: dict[str, Any] = {"threads": thread_count(threads), "scratch": staging.path}
        rank = wanted.rank or smallest_rank(job, ground, placed, wanted.error, **how)
        with Spool(staging.path, ground, rank, kind) as spool:
            for change in changes(job, ground, placed, **how):
                if change.changed:
                    spool.keep(change)
            if not spool.tally.changed:
                raise Refused("changes nothing of its base, so there is no adapter to write", where=job.card.key)
            spool.complete()
            outputs = [spool.write()]
        tally = spool.tally
        outputs.append(staging.add_file(CONFIG, adapter_config(ground, placed, tally.changed, rank)))
        for name, content in model_files(ground)[0].items():
            if name.startswith(("tokenizer", "special_tokens", "chat_template")):
                outputs.append(staging.add_file(name, content))
        receipt = _receipt(job, ground, tally, rank, outputs, hashes.result(), began, out)
        receipt["options"] = dict(options or {})
        staging.write_file(receipts.NAME, receipts.as_bytes(receipt))
        from nett.core.report import receipt_page

        staging.write_file(receipts.PAGE, receipt_page(receipt).render().encode())
        staging.commit()
    return receipt


def _inputs(job: Job) -> list[Checkpoint]:
    found = [*job.checkpoints, *([job.ground] if job.ground is not None else [])]
    return list({id(c): c for c in found}.values())


def _most_bytes(placed: Mapping[str, Place], ground: Checkpoint, rank: int, kind: Dtype) -> int:
    total = 1 << 20
    for name, place in placed.items():
        info = ground.tensors[name]
        factored = place.kind in ("linear", "embedding")
        total += rank * sum(info.shape) * kind.bytes if factored else info.size * max(kind.bytes, info.dtype.bytes)
    return total


def _receipt(
    job: Job,
    ground: Checkpoint,
    tally: Tally,
    rank: int,
    outputs: list[dict[str, Any]],
    hashes: Mapping[Path, str],
    began: float,
    out: Path,
) -> dict[str, Any]:
    inputs = [receipts.input_record(ground, "base", hashes)]
    for label, model in zip(job.labels, job.tuned, strict=True):
        inputs.append(receipts.input_record(model, "model", hashes) | {"name": label})
    size, seconds = sum(o["bytes"] for o in outputs), time.monotonic() - began
    models = [i for i in inputs if i["role"] == "model"]
    freed = max(0, sum(i["bytes"] for i in models) - size)
    sources = tuple(i["path"] for i in inputs)
    edge = Edge(
        "merge", str(out.absolute()), sources, job.card.key, freed, round(seconds, 3), tally.error, "measured"
    )  # fmt: skip
    said = (
        f"rank {rank} holds the change of the base exactly, to the rounding of float32"
        if tally.exact
        else f"rank {rank} leaves out {tally.error:.4g} of the norm of the change"
    )
    whole = [r["name"] for r in tally.rows if r["kept"] != "factors"]
    notes = [*job.notes, f"written as an adapter of {ground.path}: {said}"]
    if whole:
        nbytes = sum(ground.tensors[n].nbytes for n in whole)
        notes.append(
            f"{len(whole):,} tensors that have no factors (norms, biases, tied embeddings) changed too and are kept whole, in"
            f" modules_to_save or in their layers ({nbytes:,} bytes; the first is {whole[0]}): loaders that take only LoRA leave them out"
        )
    for note in notes[len(job.notes) :]:
        report.say(note)
    return receipts.new_receipt(
        job.card,
        parameters=job.parameters,
        inputs=inputs,
        outputs=outputs,
        edges=[edge],
        checks=[{"name": "finite", "ok": True, "detail": "no NaN or infinity in any input or in the result"},
                {"name": "adapter", "ok": True, "detail": said}],
        figures={
            "rank": rank,
            "relative_error": tally.error,
            "exact_to_rounding": tally.exact,
            "tensors": len(tally.rows),
            "parameters": sum(t.size for t in job.tasks),
        },
        seconds=seconds,
        tensors=tally.rows,
        notes=notes,
        lora={"rank": rank, "relative_error": tally.error, "exact_to_rounding": tally.exact},
        **({"recipe": job.recipe, "references": dict(job.references)} if job.recipe else {}),
    )  # fmt: skip
