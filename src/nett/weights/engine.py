"""The weights room's engine: what a command line asks for, planned from headers and carried out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

from nett.core.checkpoint import Checkpoint
from nett.core.errors import Refused, UsageError
from nett.core.registry import Between, Card, With


def run(
    card: Card,
    assets: Sequence[str],
    given: Mapping[str, Any],
    *,
    out: Path,
    calibration: Annotated[Path | None, With("gram", "squares", "means", "magnitudes", "largest", "windows")] = None,
    samples: Annotated[int, Between(1, 100_000)] = 128,
    length: Annotated[int, Between(8, 1_000_000)] = 512,
    eval: Path | None = None,
    format: Annotated[str, With("weight", "weights")] = "auto",
    skip: Annotated[str | Sequence[str], With("weight", "weights")] = "",
    per_layer: Annotated[Path | None, With("weight", "weights")] = None,
    dtype: str | None = None,
    device: str = "cpu",
    threads: Annotated[int, Between(0, 256)] = 0,
    disk: Annotated[bool, With("gram", "squares", "means", "magnitudes", "largest")] = False,
    shard_size: str = "5GB",
    overwrite: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Make a model smaller with a method and write the result to ``out``. Returns the receipt.

    Args:
        out: folder to write; appears when it is whole.
        calibration: text like that which the model will meet: .txt, or .jsonl with an entry text.
        samples: at most so many windows of the calibration text, evenly spread over it.
        length: tokens of a window.
        eval: text to judge the result by, apart from the calibration text; without it, an eighth of the calibration
            windows is held out for that.
        format: auto (compressed-tensors where weights become whole numbers), compressed-tensors, dense, or gguf (one file
            for llama.cpp: 4 or 8 bits in groups of 32).
        skip: patterns of layers that stay as they are, such as "*.down_proj".
        per_layer: JSON file of patterns of layers and the parameters that hold for them, as nett weights sensitivity
            writes it.
        dtype: element type of what is not quantised, and of scales; that of the model by default.
        device: where it is computed: cpu, cuda, cuda:1, mps.
        threads: of computation on the CPU; 0 for all that this process may use.
        disk: keep the calibration text's hidden states in a temporary file and not in memory.
        shard_size: largest size of an output file.
        overwrite: replace the folder out if it exists.
        dry_run: say what would be done and what it would take, and do nothing.
    """
    from nett.core.dtypes import dtype_named
    from nett.weights.protocol import MODEL, SHARED, SINGLE

    parameters = card.resolve(given)
    first = card.operands[0] if card.operands else ""
    if card.kind == "train" or first not in (SINGLE, SHARED, MODEL):
        raise UsageError("is used from Python", where=card.key, hint=f"See: nett show {card.key}")
    count = 2 if "compressed" in card.operands else 1
    if len(assets) != count:
        what = "the original model and the compressed one" if count == 2 else "one model"
        raise UsageError(f"takes {what}, {len(assets)} given", where=card.key, hint=f"nett weights {card.name} --help")
    how: dict[str, Any] = {
        "out": out,
        "calibration": calibration,
        "samples": samples,
        "length": length,
        "eval": eval,
        "dtype": dtype_named(dtype) if dtype is not None else None,
        "shard_size": shard_size,
        "overwrite": overwrite,
        "dry_run": dry_run,
    }
    from nett.weights.opening import opened

    with ExitStack() as stack:
        models = [stack.enter_context(opened(asset, device, threads)) for asset in assets]
        if first == MODEL:
            from nett.core.whole_model import run_whole

            return run_whole(card, models[0], parameters, **how)
        from nett.weights.linear import run_linear

        patterns = [p for p in ([skip] if isinstance(skip, str) else skip) if p]
        return run_linear(card, models, parameters, format=format, skip=patterns, per_layer=per_layer, disk=disk, **how)


def restore(folder: Path, receipt: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """The dense model again where nothing was lost; what was rounded away is gone: Refused, naming the original."""
    if receipt["guarantee"] == "exact":
        from nett.weights.dense_again import restore_dense

        taken = ("out", "overwrite", "dry_run")
        return restore_dense(folder, receipt, **{k: v for k, v in {"out": None, **options}.items() if k in taken})
    origin = receipt["inputs"][0]["path"] if receipt["inputs"] else "the original"
    raise Refused(
        f"cannot be undone: weights/{receipt['method']} keeps no more than it writes",
        where=folder,
        hint=f"Use {origin}.",
    )


def open_inside(folder: Path, receipt: Mapping[str, Any], name: str) -> Checkpoint:
    """The model of a stack at the budget ``name`` (``90MB``); all of it where that is empty. Refused for other outputs."""
    if receipt["method"] != "bitstack":
        what = f"has no {name!r} inside" if name else "holds no checkpoint"
        raise Refused(f"{what}: it was written by weights/{receipt['method']}", where=folder)
    from nett.weights.sign_stack import open_stack

    return open_stack(folder, name or None)


def verify(folder: Path, receipt: Mapping[str, Any], **options: Any) -> list[dict[str, Any]]:
    """Files, inputs, and the quality measured again; see :mod:`nett.core.outcome`."""
    from nett.core.outcome import verify_output
    from nett.weights.dense_again import check_tensors

    return verify_output(folder, receipt, check_tensors)
