"""A run of a kernel that sees a whole model: loaded in float32, made smaller, written as transformers names it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import nett
from nett.core import receipt as receipts
from nett.core import torch_model
from nett.core.blocks import Skeleton
from nett.core.checkpoint.writer import byte_size
from nett.core.dtypes import Dtype
from nett.core.outcome import finish, put_files
from nett.core.parts import FOLDER, joined, write_part
from nett.core.ragged import MARK
from nett.core.registry import Card
from nett.core.shelf import StagedShelf
from nett.core.sidefiles import changed_files
from nett.core.staging import check_target, file_state, staged, work_key
from nett.core.texts import read_text


@final
@dataclass(frozen=True)
class Shrunk:
    """What a kernel on a whole model gives back.

    model: the module, smaller, its ``config`` saying so, in float32; written with the file's names in the
    type that the original has. figures: for the receipt. files: small files that go beside the weights. charts: for
    the report, as :func:`nett.core.report.charts.add` takes them. ragged: its blocks differ in width, which its config
    cannot say: only nett loads it.
    """

    model: Any
    figures: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    charts: Sequence[Mapping[str, Any]] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    ragged: bool = False


_CONFIG_OF_FILE = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path")


def run_whole(
    card: Card,
    skeleton: Skeleton,
    parameters: Mapping[str, Any],
    *,
    out: Path,
    calibration: Path | None,
    samples: int,
    length: int,
    eval: Path | None,
    dtype: Dtype | None,
    shard_size: str,
    overwrite: bool,
    dry_run: bool,
    hint: str | None = None,
) -> dict[str, Any]:
    """See :func:`nett.weights.engine.run`. ``hint``: what to do where a text is needed and none is given."""
    import torch

    checkpoint, needed = skeleton.checkpoint, "windows" in card.operands
    text = read_text(
        skeleton,
        calibration=calibration,
        eval=eval,
        samples=samples,
        length=length,
        needed=needed,
        where=card.key,
        hint=hint,
    )
    check_target(out, 2 * checkpoint.nbytes, overwrite=overwrite, inputs=[checkpoint.path, *checkpoint.files])
    plan = {
        "method": card.key,
        "parameters": checkpoint.parameters,
        "calibration_tokens": text.calibration.tokens if text.calibration is not None else 0,
        "judging_tokens": text.judging.tokens if text.judging is not None else 0,
        "bytes_read": checkpoint.nbytes,
        "bytes_written": checkpoint.nbytes,
        "peak_memory_bytes": 450_000_000 + 20 * checkpoint.parameters,  # weights, gradients, two moments, activations
    }
    if dry_run:
        files = [{"path": "model.safetensors", "at_most_bytes": checkpoint.nbytes}]
        return {"plan": plan, "files": files, "notes": list(text.notes)}
    began = time.monotonic()
    key = work_key(
        {
            "nett": nett.__version__,
            "method": card.key,
            "parameters": dict(parameters),
            "dtype": str(dtype),
            "shard_size": shard_size,
            "texts": [w.as_json() for w in (text.calibration, text.judging) if w is not None],
            "inputs": [file_state(f) for f in checkpoint.files],
        }
    )
    with staged(out, key) as staging:
        hashes = receipts.InputHashes(checkpoint.files)
        model = torch_model.model(checkpoint).float().to(skeleton.device).eval()
        operands = [model]
        if needed:
            assert text.calibration is not None
            operands.append(torch.from_numpy(text.calibration.ids).to(skeleton.device))
        shelf = StagedShelf(staging)
        if "shelf" in card.operands:
            operands.append(shelf)
        shrunk: Shrunk = card.kernel()(*operands, **parameters)
        shelf.clear()
        part = staging.path / FOLDER / "model.safetensors"
        write_part(part, _tensors(shrunk.model, skeleton, dtype))
        outputs = joined([part], staging, byte_size(shard_size))
        said = json.loads(shrunk.model.config.to_json_string(use_diff=False))
        changes = {k: v for k, v in said.items() if k not in _CONFIG_OF_FILE}

        before = json.loads(skeleton.model.config.to_json_string(use_diff=False))

        def change(config: dict[str, Any]) -> dict[str, Any]:
            made = config | {k: v for k, v in changes.items() if k in config or v != before.get(k)}
            read = type(shrunk.model.config).from_dict(made)  # fills in what follows from other entries, as head_dim
            filled = json.loads(read.to_json_string(use_diff=False))
            mark = {MARK: "by block"} if shrunk.ragged else {}
            return made | {k: v for k, v in changes.items() if filled.get(k) != v} | mark

        outputs += put_files(*changed_files(checkpoint, dtype, change), staging)
        outputs += [staging.add_file(name, content) for name, content in shrunk.files.items()]
        return finish(
            card,
            [skeleton],
            parameters,
            staging,
            outputs,
            hashes,
            began=began,
            judging=text.judging,
            calibration=text.calibration,
            figures={"parameters": sum(p.numel() for p in shrunk.model.parameters()), **shrunk.figures},
            notes=[*text.notes, *shrunk.notes],
            charts=shrunk.charts,
        )


def _tensors(model: Any, skeleton: Skeleton, dtype: Dtype | None) -> dict[str, Any]:
    """The model's state as the original stores it: no tied copies, each in the type that it had."""
    import torch

    stored = skeleton.checkpoint.tensors
    fallback = next(t.dtype.alias for t in stored.values() if t.dtype.is_float)
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    found = {}
    state = model.state_dict()
    if skeleton.fused or any(name != held for name, held in skeleton.stored.items()):
        from transformers.core_model_loading import revert_weight_conversion

        state = dict(revert_weight_conversion(model, state))  # experts apart again, under the file's names
    for name, tensor in state.items():
        if name in tied and name not in stored:
            continue
        alias = dtype.alias if dtype is not None else stored[name].dtype.alias if name in stored else fallback
        found[name] = tensor.to(getattr(torch, alias)) if tensor.is_floating_point() else tensor
    return found
