"""Merges that see whole networks and their permutation symmetry: derive, prove, call the kernel, write, receipt."""

from __future__ import annotations

import importlib
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import nett
from nett.core import receipt as receipts
from nett.core.checkpoint import Checkpoint, open_checkpoint
from nett.core.checkpoint.writer import byte_size
from nett.core.errors import ProofFailed, Refused, UsageError
from nett.core.network import Network, noise_for, read_data
from nett.core.progress import report
from nett.core.registry import Card
from nett.core.staging import check_target, file_state, staged, work_key
from nett.core.symmetry import Proof, Symmetry, example_input, network, proved_symmetry
from nett.merge.job import plan_tensors
from nett.merge.protocol import Whole as Whole
from nett.merge.whole_output import beside, floats_of, look_after, receipt_of, written


def run_whole(
    card: Card,
    assets: Sequence[str],
    parameters: Mapping[str, Any],
    *,
    out: Path,
    dtype: str | None = None,
    shard_size: str = "5GB",
    speak: bool = True,
    net: str | None = None,
    input: str | None = None,
    data: Path | str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """One merge of whole networks; see :func:`nett.merge.engine.run` for the options."""
    one = "model" in card.operands
    if not assets or (one and len(assets) != 1):
        raise UsageError(f"takes {'one model' if one else 'at least one model'}, {len(assets)} given", where=card.key)
    count = getattr(importlib.import_module(card.module), "MODELS", None)
    if count is not None and len(assets) not in (1, count):
        raise UsageError(f"takes {count} models, but {len(assets)} were given", where=card.key)
    if "network" in card.needs and (net is None or data is None):
        raise UsageError("needs the network's code and data for it", where=card.key, hint="Add --net and --data.")
    for name, value in parameters.items():
        if isinstance(value, list) and len(value) != len(assets):
            raise UsageError(f"{name} has {len(value)} values for {len(assets)} models", where=card.key)
        if value == "auto":
            raise UsageError(f"{name} cannot be auto: this method is not tuned", where=card.key)
    opened: list[Checkpoint] = []
    try:
        for asset in assets:
            opened.append(open_checkpoint(asset, dense=True))
        if card.parameter("heads") is None:  # else the method says which tensors may differ
            _alike(card, opened)
        needed = sum(c.nbytes for c in opened) if card.resizes else opened[0].nbytes
        check_target(out, needed, overwrite=overwrite, inputs=[f for c in opened for f in (c.path, *c.files)])
        symmetry, proofs, made = _symmetry(opened, net, input, data)
        symmetry = symmetry.only(n for n, t in opened[0].tensors.items() if t.dtype.is_float)  # what kernels see
        figures = plan_figures(card, opened, symmetry, needed)
        figures["peak_memory_bytes"] += _more_memory(card, symmetry, parameters)
        if dry_run:
            refused = [f"not permuted: {r}" for r in symmetry.refused]
            return {
                "plan": figures,
                "files": [{"path": "model.safetensors", "at_most_bytes": needed}],
                "notes": refused,
            }
        options = (
            {"shard_size": shard_size} | ({"dtype": dtype} if dtype else {}) | ({"net": _absolute(net)} if net else {})
        )
        options |= ({"input": input} if input else {}) | ({"data": str(Path(data).absolute())} if data else {})
        return _execute(card, opened, parameters, symmetry, proofs, made, out, dtype, shard_size, speak, options)
    finally:
        for checkpoint in opened:
            checkpoint.close()


def plan_figures(card: Card, models: Sequence[Checkpoint], symmetry: Symmetry, written: int) -> dict[str, Any]:
    """What the work will take. Memory: every model three times in float32 (as it is, on
    its way, in its places), one tensor's units, and the largest assignment."""
    counted = [t for t in models[0].tensors.values() if t.dtype.is_float]
    parameters = sum(t.size for t in counted)
    wide = 8 if any(t.dtype.name == "F64" for t in counted) else 4
    units = max((g.size for g in symmetry.groups), default=0)
    return {
        "method": card.key,
        "models": len(models),
        "tensors": len(models[0].tensors),
        "parameters": parameters,
        "groups": len(symmetry.groups),
        "units": sum(g.size for g in symmetry.groups),
        "largest_group": units,
        "bytes_read": sum(c.nbytes for c in models),
        "bytes_written": written,
        "peak_memory_bytes": 600_000_000  # torch, which the proof runs in
        + parameters * wide * (3 * len(models) + 2)
        + max((t.size for t in counted), default=0) * 24
        + units * units * 24,
    }


def _more_memory(card: Card, symmetry: Symmetry, parameters: Mapping[str, Any]) -> int:
    """What the method's own file says that it needs beside the models: ``memory(symmetry, parameters)``."""
    more = getattr(importlib.import_module(card.module), "memory", None)
    return int(more(symmetry, parameters)) if more is not None else 0


def _alike(card: Card, models: Sequence[Checkpoint]) -> None:
    """The same names, shapes and kinds of numbers in all models; Refused at the first that differs."""
    plan_tensors(card, None, models, lambda _: {}, None)
    for model in models[1:]:  # a tied output layer may be stored in one and not in the other
        for name in sorted(model.tensors.keys() ^ models[0].tensors.keys()):
            holder, other = (model, models[0]) if name in model.tensors else (models[0], model)
            raise Refused(
                f"has no tensor {name!r}, which {holder.path} stores",
                where=other.path,
                hint="Give it one of its own, equal to its embeddings, and merge that: "
                f"nett merge linear {shlex.quote(str(other.path))} {shlex.quote(str(holder.path))} --weight 1,0 --out OUT",
            )


def _symmetry(
    models: Sequence[Checkpoint], net: str | None, input: str | None, data: Path | str | None
) -> tuple[Symmetry, list[Proof], Network | None]:
    shapes = {n: t.shape for n, t in models[0].tensors.items()}
    if net is None:
        if data is not None:
            raise UsageError("--data is given to the network that --net names", hint="Add --net FILE.py:FUNCTION.")
        symmetry, proofs = proved_symmetry(shapes, config=models[0].config(), where=models[0].path)
        return symmetry, proofs, None
    module = network(net)
    x = y = None
    if data is not None:
        x, y = read_data(Path(data))
    example: Any = example_input(input) if input is not None else None
    if example is None and x is not None:
        import torch

        example = torch.from_numpy(x[:2].astype(np.float32) if x.dtype.kind == "f" else x[:2])
    symmetry, proofs = proved_symmetry(shapes, module=module, example=example, where=models[0].path)
    return symmetry, proofs, Network(module, x, y) if x is not None else None


def _noise(options: Mapping[str, Any]) -> Network:
    """The network on noise, for methods that ask what it does on any input."""
    return noise_for(network(str(options["net"])), example_input(str(options["input"])).shape)


def _execute(
    card: Card,
    models: Sequence[Checkpoint],
    parameters: Mapping[str, Any],
    symmetry: Symmetry,
    proofs: Sequence[Proof],
    made: Network | None,
    out: Path,
    dtype: str | None,
    shard_size: str,
    speak: bool,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    files = [f for c in models for f in c.files]
    key = work_key(
        {"nett": nett.__version__, "method": card.key, "parameters": parameters, "options": options,
         "inputs": [file_state(f) for f in files]}
    )  # fmt: skip
    began = time.monotonic()
    with staged(out, key) as staging:
        hashes = receipts.InputHashes(files)
        report.begin("reading", sum(c.nbytes for c in models))
        given = [floats_of(c) for c in models]
        report.begin("matching", 1)
        operands: list[Any] = [given[0] if "model" in card.operands else given, symmetry]
        if "network" in card.operands:
            operands.append(made)
        if "noise" in card.operands:
            operands.append(_noise(options) if made is None and "net" in options else None)
        whole: Whole = card.kernel()(*operands, **parameters)
        report.begin("writing", 1)
        outputs = written(whole, models[0], dtype, byte_size(shard_size), staging)
        outputs += [staging.add_file(name, content) for name, content in beside(whole, models[0], dtype).items()]
        report.end()
        receipt = receipt_of(card, models, parameters, symmetry, proofs, whole, outputs, hashes.result(), began, out)
        receipt["options"] = dict(options)
        look_after(models, staging, receipt, speak)
        receipt["seconds"] = round(time.monotonic() - began, 3)
        staging.write_file(receipts.NAME, receipts.as_bytes(receipt))
        from nett.core.report import receipt_page

        staging.write_file(receipts.PAGE, receipt_page(receipt).render().encode())
        staging.commit()
    if receipt["proof"] == "failed":
        wrong = next(c for c in receipt["checks"] if not c["ok"])
        raise ProofFailed(f"was written, but the check '{wrong['name']}' failed: {wrong['detail']}", where=out)
    return receipt


def _absolute(net: str) -> str:
    place, _, function = net.rpartition(":")
    return f"{Path(place).absolute()}:{function}" if place.endswith(".py") else net
