"""The merge room's engine: plan from headers, survey, stream, write, look after, receipt."""

from __future__ import annotations

import importlib
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import nett
from nett.core import receipt as receipts
from nett.core.aftercare import check_config, speak
from nett.core.checkpoint import Checkpoint, open_checkpoint
from nett.core.checkpoint.rows import HELD, RowsCheckpoint
from nett.core.checkpoint.writer import byte_size
from nett.core.dtypes import dtype_named
from nett.core.edge import Edge
from nett.core.errors import NettError, ProofFailed, UsageError
from nett.core.progress import report
from nett.core.registry import Between, Card
from nett.core.runner import Pool, thread_count
from nett.core.sink import Sink
from nett.core.staging import Staging, check_target, file_state, staged, work_key
from nett.core.standing import beyond_measured
from nett.merge.beside import side_files_of
from nett.merge.carrier import Carrier, carrier_of
from nett.merge.carrying import plan_carrying
from nett.merge.job import Job, labels_of, plan_tensors
from nett.merge.outputs import Figures, file_plan, finisher, model_figures, outputs_of, pieces, tensor_figures
from nett.merge.stream import SMALL, Stream

TOKEN_BYTES = 600  # of memory for a token of an input's tokenizer, measured with 450,000 of them
MARK_BYTES = 64 << 20  # how much may have to be done again after a kill


def run(
    card: Card,
    assets: Sequence[str],
    given: Mapping[str, Any],
    *,
    out: Path,
    base: Path | None = None,
    dtype: str | None = None,
    shard_size: str = "5GB",
    threads: Annotated[int, Between(0, 64)] = 0,
    speak: bool = True,
    eval: str | None = None,
    state: Path | None = None,
    net: str | None = None,
    input: str | None = None,
    data: Path | None = None,
    as_lora: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Merge the models ``assets`` with a method and write the result to ``out``. Returns the receipt.

    Args:
        out: folder to write; appears when it is whole.
        base: the model that the others were tuned from; BASE+ADAPTER applies a PEFT adapter.
        dtype: element type of the output (float32, bfloat16, float16, …); that of the base by default.
        shard_size: largest size of an output file.
        threads: how many threads work; 0 for all that this process may use. The result does not depend on it.
        speak: afterwards load the result in a process of its own and compare its perplexity with the inputs'.
        eval: command that judges a model, for parameters set to auto: {model} becomes a path, {task} a name; the
            last line it prints is a number, larger is better.
        state: folder that holds what is merged already and is brought up to date: models that come later are merged in
            without the earlier ones, and models that are in it are left out.
        net: the code that makes the network, FILE.py:FUNCTION or package.module:FUNCTION; not needed for folders of
            transformers models.
        input: shape of the network's input, such as 1x3x32x32; that of the data by default.
        data: NumPy archive of inputs x and labels y for the network.
        as_lora: write what the merge changes of the base as a PEFT adapter of this rank, with the error stated; auto
            (or auto:0.05) takes the smallest rank whose relative error is at most 0.01 (0.05).
        overwrite: replace the folder out if it exists.
        dry_run: say what would be done and what it would take, and do nothing.
    """
    parameters = card.resolve(given)
    if state is not None and not card.carries:
        raise UsageError("keeps no state, so --state means nothing to it", where=card.key)
    if "symmetry" in card.operands:
        from nett.merge.whole import run_whole

        if base is not None:
            raise UsageError("knows no base", where=card.key, hint="Leave out --base.")
        if as_lora is not None:
            raise UsageError("gives networks of another form, so --as-lora means nothing to it", where=card.key)
        return run_whole(
            card,
            assets,
            parameters,
            out=out,
            dtype=dtype,
            shard_size=shard_size,
            speak=speak,
            net=net,
            input=input,
            data=data,
            overwrite=overwrite,
            dry_run=dry_run,
        )
    if net is not None or input is not None or data is not None:
        raise UsageError(
            "looks at no network's code or data, so --net, --input and --data mean nothing to it", where=card.key
        )
    if "auto" in parameters.values():
        from nett.merge.tuning import tuned_parameters

        parameters = tuned_parameters(
            card, assets, parameters, command=eval, base=base, out=out, dtype=dtype, threads=threads
        )
    opened: list[Checkpoint] = []
    try:
        job = plan(card, assets, parameters, base=base, dtype=dtype, opened=opened)
        if as_lora is not None:
            return _as_lora(job, as_lora, dtype, out=out, threads=threads, overwrite=overwrite, dry_run=dry_run)
        return execute(
            job,
            out=out,
            shard_size=shard_size,
            threads=threads,
            speak_check=speak,
            state=state,
            overwrite=overwrite,
            dry_run=dry_run,
            options={"shard_size": shard_size} | ({"dtype": dtype} if dtype is not None else {}),
        )
    finally:
        for checkpoint in opened:
            checkpoint.close()


def plan(
    card: Card,
    assets: Sequence[str],
    parameters: Mapping[str, Any],
    *,
    base: Path | str | None,
    dtype: str | None,
    opened: list[Checkpoint],
) -> Job:
    """The job of a command line: every model read from its headers, every tensor lined up."""
    if not assets:
        raise UsageError("name at least one model", where=card.key, hint=f"nett merge {card.name} --help")
    if "base" in card.needs and base is None:
        raise UsageError("needs the model that the others were tuned from", where=card.key, hint="Add --base MODEL.")
    models = [open_checkpoint(a, base=base, dense=True) for a in assets]
    opened += models
    ground = open_checkpoint(base, dense=True) if base is not None else None
    opened += [ground] if ground is not None else []
    used = ground if "base" in card.operands else None
    count = (card.mergekit or {}).get("models")
    if count is not None and len(models) != count:
        raise UsageError(f"takes {count} model(s), but {len(models)} were given", where=card.key)
    for name, value in parameters.items():
        if isinstance(value, list) and len(value) != len(models):
            raise UsageError(f"{name} has {len(value)} values for {len(models)} models", where=card.key)
    tasks, notes = plan_tensors(
        card, used, models, lambda _: dict(parameters), dtype_named(dtype) if dtype is not None else None
    )
    return Job(card, used, tuple(models), labels_of(models), parameters, tasks, notes=tuple(notes), ground=ground)


def _as_lora(job: Job, wanted: str, dtype: str | None, **how: Any) -> dict[str, Any]:
    from nett.merge.as_lora import Wanted, execute_as_lora

    options = {"as_lora": wanted} | ({"dtype": dtype} if dtype is not None else {})
    kind = dtype_named(dtype) if dtype is not None else None
    return execute_as_lora(job, Wanted.of(wanted), dtype=kind, options=options, **how)


def execute(
    job: Job,
    *,
    out: Path,
    shard_size: str = "5GB",
    threads: int = 0,
    speak_check: bool = True,
    state: Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    options: Mapping[str, Any] | None = None,
    reuse: bool = False,
    amend: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Carry a job out. ``options`` is what a rerun must be given beside the parameters; ``reuse``: take what lies at
    ``out`` if it is whole and the outcome of the same work; ``amend`` may add to the receipt before it is written.

    Raises ProofFailed, after writing, if the result fails a check.
    """
    files = file_plan(job, byte_size(shard_size))
    needed = sum(f.nbytes for f in files)
    if reuse and (whole := _finished(out, _key(job, shard_size, _states(job)))) is not None:
        return whole
    check_target(out, needed, overwrite=overwrite, inputs=[f for c in job.checkpoints for f in (c.path, *c.files)])
    carrying = plan_carrying(job, state, out) if job.card.carries else None
    if carrying is not None:
        job = carrying.job
        check_target(out, needed + carrying.scratch, overwrite=overwrite)
    key = _key(job, shard_size, carrying.identity if carrying else _states(job))
    figures = plan_figures(job, files_bytes=needed, threads=thread_count(threads))
    if dry_run:
        return {
            "plan": figures,
            "files": [{"path": f.name, "bytes": f.nbytes} for f in files],
            "notes": list(job.notes),
            **({"vocabulary": dict(job.vocabulary)} if job.vocabulary else {}),
        }
    for note in job.notes:
        report.say(note)
    began = time.monotonic()
    with staged(out, key) as staging:
        hashes = receipts.InputHashes([f for c in job.checkpoints for f in c.files])
        with carrier_of(carrying, staging) as carrier:
            outputs, found = _write(job, files, staging, thread_count(threads), carrier)
        outputs += _write_side_files(job, staging)
        report.end()
        receipt = _receipt(job, outputs, found, hashes.result(), began, out)
        if carrying and carrying.folder:
            receipt["state"] = carrying.as_record()
        receipt["options"] = dict(options) if options is not None else {"shard_size": shard_size}
        receipt["work"] = key
        _look_after(job, staging, receipt, speak_check)
        receipt["seconds"] = round(time.monotonic() - began, 3)
        if amend is not None:
            amend(receipt)
        staging.write_file(receipts.NAME, receipts.as_bytes(receipt))
        from nett.core.report import receipt_page

        staging.write_file(receipts.PAGE, receipt_page(receipt).render().encode())
        staging.commit()
    if receipt["proof"] == "failed":
        wrong = next(c for c in receipt["checks"] if not c["ok"])
        raise ProofFailed(
            f"was written, but the check '{wrong['name']}' failed: {wrong['detail']}",
            where=out,
            hint=f"See {out / receipts.PAGE}. Do not use this model before you know why.",
        )
    return receipt


def _key(job: Job, shard_size: str, inputs: Any) -> str:
    """A hash of everything that decides what the output will be."""
    return work_key(
        {
            "nett": nett.__version__,
            "method": job.card.key,
            "parameters": job.parameters,
            "recipe": job.recipe,
            "vocabulary": job.vocabulary,
            "shard_size": shard_size,
            "inputs": inputs,
            "tensors": [(t.name, t.dtype.name, t.parameters) for t in job.tasks],
        }
    )


def _states(job: Job) -> list[Any]:
    """What tells that the inputs are still the same files."""
    return [file_state(f) for c in job.checkpoints for f in c.files]


def _finished(out: Path, key: str) -> dict[str, Any] | None:
    """The receipt of what lies at ``out``, if it came of the same work and every file has its hash."""
    try:
        receipt = receipts.read_receipt(out)
    except NettError:
        return None
    kept = receipt.get("work") == key and receipt.get("proof") == "kept"
    return receipt if kept and all(c["ok"] for c in receipts.check_files(out, receipt)) else None


def plan_figures(job: Job, *, files_bytes: int, threads: int) -> dict[str, Any]:
    """What the work will take: bytes read and written, peak memory, from headers alone."""
    largest = max(t.step for t in job.tasks)
    models = len(job.tuned) + 1
    per_thread = largest * 4 * (3 * models + 4)
    decomposing = 0.0
    if job.card.carries:  # one model at a time, and float64 matrices of the shorter side
        per_thread = max(t.step * 4 * 6 + 8 * 8 * min(t.shape, default=1) ** 2 for t in job.tasks)
        sides = [sorted(t.shape) for t in job.tasks if len(t.shape) == 2]
        decomposing = len(job.tuned) * sum(6 * b * a**2 + 20 * a**3 for a, b in sides) / 3e10 / threads
    waiting = SMALL * 4 * 2 * threads
    return {
        "method": job.card.key,
        "models": len(job.tuned),
        "tensors": len(job.tasks),
        "parameters": sum(t.size for t in job.tasks),
        "bytes_read": sum(c.nbytes for c in job.checkpoints),
        "bytes_written": files_bytes,
        # Rough: three readings at memory-cache speed, one writing at that of a slow disk.
        "seconds_estimate": round(
            decomposing + 3 * sum(c.nbytes for c in job.checkpoints) / 1.5e9 + files_bytes / 3e8 + 1, 1
        ),
        "peak_memory_bytes": 150_000_000 + threads * per_thread + waiting + _vocabulary_memory(job),
    }


def _vocabulary_memory(job: Job) -> int:
    """Of a merge of vocabularies: tokenizers while they are brought to one, then tables whose rows are looked up."""
    if job.vocabulary is None:
        return 0
    tables = sum(c.source.tensors[n].nbytes for c in job.checkpoints if isinstance(c, RowsCheckpoint) for n in c.mapped)
    tokens: int = sum(m["tokens"] for m in job.vocabulary["models"])
    return min(HELD, tables) + TOKEN_BYTES * tokens


def _write(
    job: Job, files: Sequence[Any], staging: Staging, threads: int, carrier: Carrier | None
) -> tuple[list[dict[str, Any]], Figures]:
    """Survey and write all tensors, going on from the journal. Returns the output records and the figures."""
    pool = Pool(threads)
    stream = Stream(job, pool, report.step, carrier)
    figures, first, marks = Figures(), 0, None
    for entry in staging.entries:
        if "known" in entry and (carrier is None or carrier.whole):
            stream.model_known = {(level, i): (known, done) for level, i, known, done in entry["known"]}
        if "task" in entry:
            first, marks = entry["task"], entry["files"]
            figures = Figures(**entry["figures"])
    if staging.resumed:
        report.say(f"resuming at tensor {first} of {len(job.tasks)}")
    restore = getattr(importlib.import_module(job.card.module), job.card.restore) if job.card.restore else None

    def journal_known() -> None:
        if carrier is not None:
            carrier.complete()
        staging.record(known=[[level, i, known, done] for (level, i), (known, done) in stream.model_known.items()])
        report.begin("reading again", sum(c.nbytes for c in job.checkpoints))

    sink = Sink(staging.path, files, marks)
    try:
        report.begin("reading", sum(c.nbytes for c in job.checkpoints))
        tensors = stream.survey_model(journal_known)
        if carrier is not None:
            carrier.complete()
        report.begin("merging", sum(f.nbytes for f in files))
        unsynced = 0
        position = first
        for task, index, made in stream.results(tensors, first, finisher(job, restore)):
            figures.add(task.name, made.of_tensor, made.of_models)
            for stem, data in pieces(job, task, made):
                sink.write(stem, data)
                unsynced += data.nbytes
                report.step(data.nbytes)
            if index == task.chunks - 1:
                position += 1
                tensors.pop(task.name, None)
                if unsynced >= MARK_BYTES:
                    staging.record(task=position, files=sink.sync(), figures=vars(figures))
                    unsynced = 0
        written = sink.finish()
        staging.record(task=position, files=sink.sync(), figures=vars(figures))
        for name, content in sink.indexes().items():
            written.append(staging.add_file(name, content))
        return written, figures
    finally:
        sink.close()
        pool.close()


def _write_side_files(job: Job, staging: Staging) -> list[dict[str, Any]]:
    """Config, tokenizer and so on, next to the weights."""
    found, notes = side_files_of(job)
    for note in notes:
        report.say(note)
    return [staging.add_file(name, content) for name, content in found.items()]


def _receipt(
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
        **({"recipe": job.recipe} if job.recipe else {}),
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


def _look_after(job: Job, staging: Staging, receipt: dict[str, Any], speak_check: bool) -> None:
    """Check the written model in its staging folder; the findings go into the receipt."""
    if not any(o.name == "model" for o in outputs_of(job.card)):
        return
    with open_checkpoint(staging.path) as written:
        receipt["checks"] += check_config(written)
    if speak_check:
        report.say("loading the result and its inputs to hear them speak (--no-speak leaves this out)")
        inputs = [c.path for c in job.checkpoints if c.path.is_dir() and c.format == "safetensors"]
        checks, rows = speak(staging.path, inputs)
        receipt["checks"] += checks
        names = ["merged", *(c.name for c in job.checkpoints if c.path in inputs)]
        receipt["quality"] = [
            {"model": n, "text": "built-in", "perplexity": r.get("perplexity"), "says": r.get("says")}
            for n, r in zip(names, rows, strict=False)
        ]
        for check in checks:
            report.say(f"{check['name']}: {check['detail']}")
    receipt["proof"] = "kept" if all(c["ok"] for c in receipt["checks"]) else "failed"


def restore(folder: Path, receipt: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Undo a merge, as far as it can be undone; see :mod:`nett.merge.restoring`."""
    from nett.merge.restoring import restore_task

    return restore_task(folder, receipt, **options)


def verify(folder: Path, receipt: Mapping[str, Any], **options: Any) -> list[dict[str, Any]]:
    """Walk the receipt's edges again; see :mod:`nett.merge.verifying`."""
    from nett.merge.verifying import verify_merge

    return verify_merge(folder, receipt, **options)


def recipe(
    file: Path,
    *,
    out: Path,
    shard_size: str = "5GB",
    threads: Annotated[int, Between(0, 64)] = 0,
    speak: bool = True,
    as_lora: str | None = None,
    unsafe_truncate_embeddings: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    keep_steps: Path | None = None,
) -> dict[str, Any]:
    """Run a mergekit recipe and write the result to ``out``. Returns the receipt.

    Args:
        out: folder to write; appears when it is whole.
        shard_size: largest size of an output file.
        threads: how many threads work; 0 for all that this process may use. The result does not depend on it.
        speak: afterwards load the result in a process of its own and compare its perplexity with the inputs'.
        as_lora: write what the merge changes of the base as a PEFT adapter of this rank, with the error stated; auto
            (or auto:0.05) takes the smallest rank whose relative error is at most 0.01 (0.05).
        unsafe_truncate_embeddings: cut vocabularies of different sizes to the smallest, as if the same numbers stood for
            the same tokens in all models; a recipe's tokenizer does it right.
        overwrite: replace the folder out if it exists.
        dry_run: say what would be done and what it would take, and do nothing.
        keep_steps: folder for the results of the named documents of a recipe of several; removed at the end without.
    """
    from nett.merge.recipe_run import run_recipe

    return run_recipe(
        file,
        out=out,
        shard_size=shard_size,
        threads=threads,
        speak=speak,
        as_lora=as_lora,
        unsafe_truncate_embeddings=unsafe_truncate_embeddings,
        overwrite=overwrite,
        dry_run=dry_run,
        keep_steps=keep_steps,
    )
