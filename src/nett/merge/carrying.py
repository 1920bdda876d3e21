"""Merging model by model, planned: which models are new, and what they are merged onto.

What the kernel carries stands in a file on disk while the work goes on (:mod:`nett.merge.carrier`). With ``--state``
that file becomes the new state, put in place whole before the merged model is written from it: a run that dies after
that finds all its models in the state and goes on with the writing. Without, it lies in the output's staging folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import nett
from nett.core.checkpoint import Checkpoint
from nett.core.checkpoint.writer import FileSpec, TensorSpec
from nett.core.dtypes import DTYPES
from nett.core.errors import NettError, Refused
from nett.core.staging import check_target, work_key
from nett.merge.job import Job
from nett.merge.state import TENSORS, Known, State, check_state, content_sha256, read_state


@final
@dataclass(frozen=True)
class Carrying:
    """A job that goes model by model, reduced to the models that are new, and what it goes on from."""

    job: Job
    base: Known
    models: tuple[Known, ...]  # in the order merged: those of the state, then the new ones
    spec: FileSpec  # of the tensor file
    folder: Path | None  # of the state, where one is kept
    before: State | None

    @property
    def identity(self) -> list[Any]:
        """What decides what is carried, the same before and after the state was put in place."""
        return [self.base.sha256, [m.sha256 for m in self.models], self.spec.tensors[0].dtype.name]

    @property
    def key(self) -> str:
        """A hash of all that decides what the new state will be."""
        return work_key(
            {
                "nett": nett.__version__,
                "method": self.job.card.key,
                "parameters": [self.job.parameters, [(t.name, t.parameters) for t in self.job.tasks]],
                "carried": self.identity,
                "before": None if self.before is None else self.before.sha256,
            }
        )

    @property
    def scratch(self) -> int:
        """Bytes beside the output while the work goes on."""
        return self.spec.nbytes if self.folder is None else 0

    def as_record(self) -> dict[str, Any]:
        """How the receipt speaks of it."""
        models = [{"name": m.name, "path": m.path, "sha256": m.sha256} for m in self.models]
        return {"path": None if self.folder is None else str(self.folder.resolve()), "models": models}


def plan_carrying(job: Job, folder: Path | None, out: Path, *, headers: bool = False) -> Carrying:
    """Hash the tensors of all inputs, read and check the state, leave out models that are in it or given twice.

    ``headers``: for a plan alone, nothing is hashed: models are known by their paths. Refused where the state does
    not fit.
    """
    if job.base is None:
        raise NettError(f"{job.card.key} goes model by model but has no base to tell models from", where=job.card.key)
    if folder is not None:
        _apart(folder, out)
    before = read_state(folder) if folder is not None else None
    base = _by_path(job.base, job.base.name, before) if headers else _known(job.base, job.base.name)
    layout = [_spec(job, "F32"), _spec(job, "F64")]
    spec = layout[job.wide]
    if before is not None and folder is not None:
        held = check_state(before, folder, job.card, job.parameters, base, layout, hashed=not headers)
    models, new, notes = list(before.models) if before else [], [], []
    for place, (label, model) in enumerate(zip(job.labels, job.tuned, strict=True)):
        one = _by_path(model, label, before) if headers else _known(model, label)
        twin = next((m for m in models if m.sha256 == one.sha256), None)
        if twin is None:
            models.append(one)
            new.append(place)
            continue
        where = "is in the state already" if before and twin in before.models else "is given twice"
        notes.append(f"{one.path} {where} (the same tensors as {twin.name}, {twin.path}) and was left out")
    if headers:
        notes.append("told from paths; the tensors are hashed when it runs, and equal ones are then merged once")
    if before is not None and folder is not None:
        notes.insert(0, f"goes on from {folder}, which holds {_counted(before.models)}")
        if _reduced(job, new).wide and held is layout[0]:
            raise Refused(
                "holds float32 numbers, but a model that is new has float64 ones, which would be rounded",
                where=folder,
                hint="Convert the model first (nett convert MODEL --dtype float32), or begin a new state from all models.",
            )
        spec = held
    if folder is not None:
        check_target(
            folder, spec.nbytes if new else 0, overwrite=True, inputs=[f for c in job.checkpoints for f in c.files]
        )
    reduced = _reduced(job, new)
    return Carrying(replace(reduced, notes=(*job.notes, *notes)), base, tuple(models), spec, folder, before)


def _counted(models: Sequence[Known]) -> str:
    return f"{len(models)} model{'s' * (len(models) != 1)}: " + ", ".join(m.name for m in models)


def _apart(folder: Path, out: Path) -> None:
    a, b = folder.resolve(), out.resolve()
    if a.is_relative_to(b) or b.is_relative_to(a):
        raise Refused(f"the state and the output {out} must lie apart", where=folder, hint="Choose another --state.")


def _known(checkpoint: Checkpoint, label: str) -> Known:
    return Known(label, checkpoint.reference, content_sha256(checkpoint))


def _by_path(checkpoint: Checkpoint, label: str, before: State | None) -> Known:
    """As :func:`_known` for a plan: a model of the state if it lies where that one lay, else one of its own."""
    place = checkpoint.reference
    known = [] if before is None else [m for m in (before.base, *before.models) if m.path == place]
    return replace(known[0], name=label) if known else Known(label, place, f"path {place}")


def _spec(job: Job, dtype: str) -> FileSpec:
    tensors = tuple(TensorSpec(t.name, DTYPES[dtype], t.shape) for t in job.tasks if not t.copied)
    return FileSpec(TENSORS, tensors, {"format": "pt"})


def _reduced(job: Job, places: Sequence[int]) -> Job:
    """The job with some of its models only."""
    tasks = tuple(replace(t, tuned=tuple(t.tuned[i] for i in places)) for t in job.tasks)
    return replace(
        job, tuned=tuple(job.tuned[i] for i in places), labels=tuple(job.labels[i] for i in places), tasks=tasks
    )
