"""The merge room's engine: what a command line asks for, planned from headers and carried out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from nett.core.checkpoint import Checkpoint, open_checkpoint
from nett.core.dtypes import dtype_named
from nett.core.errors import UsageError
from nett.core.registry import Between, Card
from nett.merge.job import Job, labels_of, plan_tensors


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
    from nett.merge.execution import execute

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


def restore(folder: Path, receipt: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Undo a merge, as far as it can be undone; see :mod:`nett.merge.restoring`."""
    from nett.merge.restoring import restore_task

    return restore_task(folder, receipt, **options)


def verify(folder: Path, receipt: Mapping[str, Any], **options: Any) -> list[dict[str, Any]]:
    """Walk the receipt's edges again; see :mod:`nett.merge.verifying`."""
    from nett.merge.verifying import verify_merge

    return verify_merge(folder, receipt, **options)


def verify_kept(folder: Path, **options: Any) -> list[dict[str, Any]] | None:
    """Check what ``--state`` keeps; None where the folder is none. See :mod:`nett.merge.state_verifying`."""
    from nett.merge.state_verifying import verify_state

    return verify_state(folder, **options)


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
