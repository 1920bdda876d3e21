"""An adapter's error, measured again: the merge is done once more, and the stored factors are compared with it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nett.core.cards import find_card
from nett.core.checkpoint import Checkpoint
from nett.core.checkpoint.lora import WEIGHTS
from nett.core.checkpoint.safetensors import SafetensorsCheckpoint
from nett.core.dtypes import Array
from nett.core.low_rank import left_out
from nett.core.runner import thread_count
from nett.merge.as_lora import ground_of
from nett.merge.job import Job
from nett.merge.lora_layout import keys, places_of
from nett.merge.lora_stream import Change, changes

TOLERANCE = 1e-6  # relative; below the rounding of float32, both count as none


def check_adapter(folder: Path, receipt: Mapping[str, Any]) -> dict[str, Any]:
    """The relative Frobenius error of the adapter against the merge that its receipt describes."""
    gone = [i["path"] for i in receipt["inputs"] if not Path(i["path"]).exists()]
    if gone:
        return {"name": "adapter", "ok": True, "detail": f"{gone[0]} is not there any more, so it was not measured"}
    opened: list[Checkpoint] = []
    try:
        job = _planned(receipt, opened)
        ground = ground_of(job)
        weights = SafetensorsCheckpoint(folder, [folder / WEIGHTS])
        opened.append(weights)
        square = lost = rounding = 0.0
        with tempfile.TemporaryDirectory() as scratch:
            for change in changes(job, ground, places_of(job, ground), thread_count(0), Path(scratch)):
                if change.changed:
                    square, rounding = square + change.square, rounding + change.rounding
                    lost += _lost(change, weights)
    finally:
        for checkpoint in opened:
            checkpoint.close()
    error, said = math.sqrt(lost / square) if square else 0.0, receipt["lora"]["relative_error"]
    same = abs(error - said) <= TOLERANCE * max(error, said)
    ok = same or (lost <= rounding and bool(receipt["lora"]["exact_to_rounding"]))
    return {"name": "adapter", "ok": ok, "detail": f"relative error {error:.6g}, the receipt says {said:.6g}"}


def _planned(receipt: Mapping[str, Any], opened: list[Checkpoint]) -> Job:
    if receipt.get("recipe"):
        from nett.merge.recipe import plan_recipe
        from nett.merge.recipe_file import load_recipe
        from nett.merge.references import places_now

        known = places_now(receipt.get("references", {}))
        with tempfile.NamedTemporaryFile("w", suffix=".yml", encoding="utf-8") as file:
            file.write(receipt["recipe"])
            file.flush()
            return plan_recipe(load_recipe(Path(file.name), known), opened).job
    from nett.merge.engine import plan

    base = next(i.get("reference", i["path"]) for i in receipt["inputs"] if i["role"] == "base")
    models = [i.get("reference", i["path"]) for i in receipt["inputs"] if i["role"] == "model"]
    card = find_card(f"{receipt['room']}/{receipt['method']}")
    return plan(card, models, receipt["parameters"], base=base, dtype=None, opened=opened)


def _lost(change: Change, weights: Checkpoint) -> float:
    """Squared norm of what the adapter's file lacks of one tensor's change: all of it where the tensor is not there."""
    place = change.place
    if change.raw is not None:
        held = place.key in weights.tensors and np.array_equal(weights.read(place.key), change.raw)
        return 0.0 if held else change.square
    assert change.delta is not None
    a, b = keys(place)
    if a not in weights.tensors or b not in weights.tensors:
        return change.square
    first, second = _matrix(weights, a), _matrix(weights, b)
    turned = place.kind == "embedding" or place.turned
    return left_out(change.delta, *((first.T, second.T) if turned else (second, first)))


def _matrix(weights: Checkpoint, name: str) -> Array:
    return weights.values(name).reshape(weights.tensors[name].shape)
