"""The experts room's engine: what a command line asks for, planned from headers and carried out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from nett.core.checkpoint.base import Checkpoint
from nett.core.errors import Refused, UsageError
from nett.core.registry import Between, Card, With

HINT = "Add --text FILE (.txt, or .jsonl with an entry text); nett experts random needs none."


def run(
    card: Card,
    assets: Sequence[str],
    given: Mapping[str, Any],
    *,
    out: Path,
    text: Path | None = None,
    eval: Path | None = None,
    samples: Annotated[int, Between(1, 100_000)] = 128,
    length: Annotated[int, Between(8, 1_000_000)] = 512,
    router: Annotated[Literal["rows", "map", "copies"], With("layers")] = "rows",
    device: str = "cpu",
    threads: Annotated[int, Between(0, 256)] = 0,
    disk: Annotated[bool, With("layers")] = False,
    shard_size: str = "5GB",
    overwrite: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Make a mixture of experts smaller with a method and write the result to ``out``. Returns the receipt.

    Args:
        out: folder to write; appears when it is whole.
        text: text like that which the model will meet: .txt, or .jsonl with an entry text. Methods that look at no
            text judge their result by it.
        eval: text to judge the result by, apart from the other; without it, an eighth of the text's windows is held out
            for that.
        samples: at most so many windows of the text, evenly spread over it.
        length: tokens of a window.
        router: what becomes of the router where experts are merged: rows (it keeps one row for each new expert, the row of
            the one that leads its group; loads anywhere, approximate), map (it keeps all rows, and a table says which
            expert answers; exact, loads with nett.load alone), copies (each old expert is written as a copy of the new
            one that answers for it; exact, loads anywhere, and saves bytes only where equal tensors are kept once).
            Where experts are dropped, the router loses their rows, which is exact: it is as if they were never chosen.
        device: where it is computed: cpu, cuda, cuda:1, mps.
        threads: of computation on the CPU; 0 for all that this process may use.
        disk: keep the text's hidden states in a temporary file and not in memory.
        shard_size: largest size of an output file.
        overwrite: replace the folder out if it exists.
        dry_run: say what would be done and what it would take, and do nothing.
    """
    from nett.experts.opening import opened
    from nett.experts.protocol import LAYERS, MODEL

    parameters = card.resolve(given)
    first = card.operands[0] if card.operands else ""
    if card.kind != "reduce" or first not in (LAYERS, MODEL):
        raise UsageError("is used from Python", where=card.key, hint=f"See: nett show {card.key}")
    if len(assets) != 1:
        raise UsageError(
            f"takes one model, {len(assets)} given", where=card.key, hint=f"nett experts {card.name} --help"
        )
    how: dict[str, Any] = {
        "out": out,
        "eval": eval,
        "samples": samples,
        "length": length,
        "shard_size": shard_size,
        "overwrite": overwrite,
        "dry_run": dry_run,
    }
    with opened(assets[0], device, threads) as model:
        if first == MODEL:
            from nett.core.whole_model import run_whole

            return run_whole(card, model.skeleton, parameters, calibration=text, dtype=None, hint=HINT, **how)
        from nett.experts.run import run_layers

        return run_layers(card, model, parameters, text=text, router=router, disk=disk, **how)


def restore(folder: Path, receipt: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """What was dropped or merged is gone: Refused, naming the original."""
    origin = receipt["inputs"][0]["path"] if receipt["inputs"] else "the original"
    raise Refused(
        f"cannot be undone: experts/{receipt['method']} keeps no more than it writes",
        where=folder,
        hint=f"Use {origin}.",
    )


def open_inside(folder: Path, receipt: Mapping[str, Any], name: str) -> Checkpoint:
    """The model with the experts of the stored task ``name``, read where it lies. Refused for outputs that store no tasks."""
    if receipt["method"] != "premoe":
        what = f"has no {name!r} inside" if name else "holds no checkpoint"
        raise Refused(f"{what}: it was written by experts/{receipt['method']}", where=folder)
    from nett.experts.task_checkpoint import open_task

    return open_task(folder, name)


def verify(folder: Path, receipt: Mapping[str, Any], **options: Any) -> list[dict[str, Any]]:
    """Files, inputs, and the quality measured again; see :mod:`nett.core.outcome`."""
    from nett.core.outcome import verify_output

    return verify_output(folder, receipt)
