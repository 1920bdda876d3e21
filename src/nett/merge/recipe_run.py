"""Running a recipe: one merge, or several documents one after the other, resumed where an earlier run was cut off."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nett.core.checkpoint import Checkpoint
from nett.core.errors import ProofFailed, UsageError
from nett.core.progress import report
from nett.core.staging import check_target
from nett.merge.recipe import Planned, plan_recipe
from nett.merge.recipe_steps import Promised, Step, check_use, load_steps

_TOLD = ("room", "method", "title", "parameters", "inputs", "outputs", "bytes_after", "figures", "checks", "proof",
         "notes", "vocabulary", "references", "seconds", "peak_memory_bytes")  # fmt: skip


def run_recipe(
    file: Path,
    *,
    out: Path,
    shard_size: str = "5GB",
    threads: int = 0,
    speak: bool = True,
    as_lora: str | None = None,
    unsafe_truncate_embeddings: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    keep_steps: Path | None = None,
    known: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run a mergekit recipe and write the result to ``out``. Returns the receipt, which holds the recipe's text.

    ``known``: where its references lie, if not where they say (a receipt's ``references``).

    A file of several documents is planned as a whole first; then its steps are taken in order, into ``keep_steps`` or
    a hidden folder beside ``out`` that is removed at the end; the receipt records each. Raises UsageError naming file,
    line and method for anything the recipe says that cannot be done as it says it; Refused where the models do not fit
    together or the disk has no room.
    """
    from nett.merge.execution import execute

    steps = load_steps(file, known)
    cut = {"unsafe_truncate_embeddings": True} if unsafe_truncate_embeddings else {}
    options = {"shard_size": shard_size} | cut
    if len(steps) == 1:
        _single(steps[0], keep_steps)
        with planned_steps(steps, truncate=unsafe_truncate_embeddings) as plans:
            if as_lora is not None:
                from nett.merge.as_lora import Wanted, execute_as_lora

                return execute_as_lora(
                    plans[0].job, Wanted.of(as_lora), out=out, threads=threads, overwrite=overwrite, dry_run=dry_run,
                    options={"as_lora": as_lora} | cut,
                )  # fmt: skip
            return execute(
                plans[0].job, out=out, shard_size=shard_size, threads=threads, speak_check=speak, overwrite=overwrite,
                dry_run=dry_run, options=options,
            )  # fmt: skip
    if as_lora is not None:
        raise UsageError(
            "has several documents, and --as-lora takes a recipe of one",
            where=file,
            hint="Leave out --as-lora; then: nett merge linear OUT --base BASE --as-lora RANK --out ADAPTER",
        )
    folder = keep_steps if keep_steps is not None else steps_folder(out)
    with planned_steps(steps, truncate=unsafe_truncate_embeddings) as plans:
        check_use(steps, kept=keep_steps is not None)
        needed = sum(t.size * t.dtype.bytes for plan in plans for t in plan.job.tasks)
        inputs = [f for plan in plans for c in plan.job.checkpoints for f in (c.path, *c.files)]
        check_target(out, needed, overwrite=overwrite, inputs=inputs)
        if dry_run:
            return _told_plan(steps, plans, needed, out, shard_size, threads)
    done: dict[str, dict[str, Any]] = {}
    if keep_steps is None:
        _clear(folder, {step.name for step in steps})
    for step in steps[:-1]:
        opened: list[Checkpoint] = []
        try:
            job = plan_recipe(step.recipe, opened, _written(folder, step), truncate=unsafe_truncate_embeddings).job
            report.say(f"step {step.name!r}: {job.card.name}")
            done[step.name] = execute(
                job, out=folder / step.name, shard_size=shard_size, threads=threads, speak_check=False, reuse=True,
                overwrite=overwrite or keep_steps is None, options=options,
            )  # fmt: skip
            _check_taken(done[step.name], step, done)
        finally:
            _close(opened)
    opened = []
    try:
        last = steps[-1]
        job = plan_recipe(last.recipe, opened, _written(folder, last), truncate=unsafe_truncate_embeddings).job

        def amend(receipt: dict[str, Any]) -> None:
            _check_taken(receipt, last, done)
            with_steps(receipt, done)

        receipt = execute(
            job, out=out, shard_size=shard_size, threads=threads, speak_check=speak, overwrite=overwrite, amend=amend,
            options=options,
        )  # fmt: skip
    finally:
        _close(opened)
    if keep_steps is None:
        shutil.rmtree(folder, ignore_errors=True)
    return receipt


def _single(step: Step, keep_steps: Path | None) -> None:
    """A file of one document has no steps."""
    if keep_steps is not None:
        raise UsageError(
            "has one document, so there are no steps to keep",
            where=step.recipe.document.file,
            hint="Leave out --keep-steps.",
        )


def steps_folder(out: Path) -> Path:
    """Where the results of steps lie until the last one is done."""
    return out.absolute().parent / f".{out.name}.nett-steps"


@contextmanager
def planned_steps(steps: Sequence[Step], *, truncate: bool = False) -> Iterator[list[Planned]]:
    """All steps planned from headers, later ones on what earlier ones promise; what was opened is closed at the end."""
    opened: list[Checkpoint] = []
    promised: dict[str, Checkpoint | str] = {}
    plans: list[Planned] = []
    try:
        for step in steps:
            plans.append(plan_recipe(step.recipe, opened, promised, truncate=truncate))
            if len(steps) > 1:
                promised[step.name] = Promised(Path(step.name), plans[-1].job)
        yield plans
    finally:
        _close(opened)


def _written(folder: Path, step: Step) -> dict[str, Checkpoint | str]:
    return {name: str(folder / name) for name in step.needs}


def _close(opened: Sequence[Checkpoint]) -> None:
    for checkpoint in opened:
        checkpoint.close()


def _clear(folder: Path, names: set[str]) -> None:
    """Throw away what an earlier run with other documents left in the hidden folder."""
    if folder.is_dir():
        for left in folder.iterdir():
            name = left.name.removeprefix(".").removesuffix(".nett-partial").removesuffix(".nett-replaced")
            if name not in names:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    folder.mkdir(parents=True, exist_ok=True)


def _check_taken(receipt: Mapping[str, Any], step: Step, done: Mapping[str, Mapping[str, Any]]) -> None:
    """The files that this step read are, by their hashes, those that the steps before it wrote."""
    read = {f["path"]: f["sha256"] for i in receipt["inputs"] for f in i["files"]}
    for name in step.needs:
        for output in done[name]["outputs"]:
            for path, sha256 in read.items():
                if path.endswith(f"/{name}/{output['path']}") and sha256 != output["sha256"]:
                    raise ProofFailed(
                        f"was changed between the step {name!r} and its use",
                        where=path,
                        hint="Run the same command again; the step is done anew.",
                    )


def with_steps(receipt: dict[str, Any], done: Mapping[str, Mapping[str, Any]]) -> None:
    """Add every step to a receipt, and count as inputs what lay there before: not what the steps wrote in between."""
    receipt["steps"] = [{"name": name} | {key: one[key] for key in _TOLD if key in one} for name, one in done.items()]
    between = {str(Path(edge["target"]).resolve()) for one in done.values() for edge in one["edges"]}
    own = [i for i in receipt["inputs"] if i["path"] not in between]
    earlier = [i for one in done.values() for i in one["inputs"] if i["path"] not in between]
    known: dict[str, dict[str, Any]] = {}
    for given in [*own, *earlier]:
        known.setdefault(given["path"], given)
    receipt["inputs"] = list(known.values())
    receipt["references"] = {k: v for one in (*done.values(), receipt) for k, v in one["references"].items()}
    receipt["bytes_before"] = sum(i["bytes"] for i in known.values())
    receipt["seconds"] = round(receipt["seconds"] + sum(one["seconds"] for one in done.values()), 3)
    for edge in receipt["edges"]:
        edge["sources"] = list(known)
        edge["seconds"] = receipt["seconds"]


def _told_plan(
    steps: Sequence[Step], plans: Sequence[Planned], needed: int, out: Path, shard_size: str, threads: int
) -> dict[str, Any]:
    """What a dry run says: the plan of the result, those of the steps, and the disk that all need together."""
    from nett.core.checkpoint.writer import byte_size
    from nett.core.runner import thread_count
    from nett.merge.execution import plan_figures
    from nett.merge.outputs import file_plan

    told = []
    for step, plan in zip(steps, plans, strict=True):
        files = file_plan(plan.job, byte_size(shard_size))
        figures = plan_figures(plan.job, files_bytes=sum(f.nbytes for f in files), threads=thread_count(threads))
        told.append(
            ({"name": step.name} if step.name else {})
            | {
                "plan": figures,
                "files": [{"path": f.name, "bytes": f.nbytes} for f in files],
                "notes": list(plan.job.notes),
            }
            | ({"vocabulary": dict(plan.job.vocabulary)} if plan.job.vocabulary else {})
        )
    return told[-1] | {"steps": told[:-1], "disk_bytes": needed, "steps_folder": str(steps_folder(out))}
