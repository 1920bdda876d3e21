"""The receipt of a merge, and its edges."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nett.core import receipt as receipts
from nett.core.edge import Edge
from nett.core.standing import beyond_measured
from nett.merge.job import Job
from nett.merge.outputs import Figures, model_figures, outputs_of, tensor_figures


def merge_receipt(
    job: Job,
    outputs: list[dict[str, Any]],
    figures: Figures,
    hashes: Mapping[Path, str],
    began: float,
    out: Path,
) -> dict[str, Any]:
    roles = [("base", job.base)] if job.base is not None else []
    inputs = [receipts.input_record(c, role, hashes) for role, c in roles if c is not None]
    for label, model in zip(job.labels, job.tuned, strict=True):
        inputs.append(receipts.input_record(model, "model", hashes) | {"name": label})
    inputs += [receipts.input_record(c, "base", hashes) for c in job.other_bases]
    rows = model_figures(figures, outputs_of(job.card))
    seconds = time.monotonic() - began
    tensors = tensor_figures(figures, outputs_of(job.card))
    size = sum(s.get("size", 0.0) for s in figures.tensors.values())
    moved = (
        {"relative_change": (sum(s.get("distance", 0.0) for s in figures.tensors.values()) / size) ** 0.5}
        if size
        else {}
    )
    return receipts.new_receipt(
        job.card,
        parameters=job.parameters,
        inputs=inputs,
        outputs=outputs,
        edges=_edges(job, inputs, outputs, rows, seconds, out),
        checks=[{"name": "finite", "ok": True, "detail": "no NaN or infinity in any input or output tensor"}],
        figures=moved | {"tensors": len(job.tasks), "parameters": sum(t.size for t in job.tasks)},
        seconds=seconds,
        tasks=rows,
        tensors=tensors,
        notes=[*job.notes, *_still_needed(job), *beyond_measured(job.card, sum(o["bytes"] for o in outputs))],
        **({"bytes_before": sum(i["bytes"] for i in inputs if i["role"] == "model")} if job.card.restore else {}),
        **({"recipe": job.recipe, "references": dict(job.references)} if job.recipe else {}),
        **({"vocabulary": dict(job.vocabulary)} if job.vocabulary else {}),
    )


def _still_needed(job: Job) -> list[str]:
    """Inputs that the output does not replace, so that their bytes are counted neither before nor after."""
    if job.card.restore is None or job.base is None:
        return []
    size = f"{job.base.nbytes:,} bytes"
    return [f"The tasks are rebuilt from the base too: its {size} are kept, and counted neither before nor after."]


def _edges(
    job: Job,
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    seconds: float,
    out: Path,
) -> list[Edge]:
    """The merged model from its inputs; or, where tasks can be rebuilt, each task from base and output."""
    size = sum(o["bytes"] for o in outputs)
    models = [i for i in inputs if i["role"] == "model"]
    if not job.card.restore:
        freed = max(0, sum(i["bytes"] for i in models) - size)
        sources = tuple(i["path"] for i in inputs)
        return [
            Edge(
                "merge",
                str(out.absolute()),
                sources,
                job.card.key,
                freed,
                round(seconds, 3),
                None,
                "measured",
            )
        ]
    share = size // max(1, len(models))
    ground = [i["path"] for i in inputs if i["role"] == "base"]
    return [
        Edge(
            "task_of_multi_task_vector",
            model["path"],
            (*ground, str(out.absolute())),
            job.card.key,
            max(0, model["bytes"] - share),
            round(seconds / len(models), 3),
            row["relative_l2"],
            "measured",
            f"nett restore {shlex.quote(str(out))} --task {shlex.quote(model['name'])} --out DIR",
        )
        for model, row in zip(models, rows, strict=True)
    ]
