"""From what a kernel returns to the bytes of the output files, and the figures taken on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from nett.core.checkpoint.writer import FileSpec, TensorSpec, shard_plan
from nett.core.dtypes import DTYPES, Array, decode, encode
from nett.core.errors import NettError, ProofFailed
from nett.core.finite import count_non_finite
from nett.core.registry import Card
from nett.core.sums import dot, squared_distance
from nett.merge.job import Job, TensorTask


@final
@dataclass(frozen=True)
class Output:
    """One entry of a card's ``outputs``: its name, whether it is one a model, whether it is stored as bits."""

    name: str
    each: bool
    bits: bool

    @classmethod
    def of(cls, text: str) -> Output:
        name, _, form = text.partition(":")
        return cls(name.removesuffix("*"), name.endswith("*"), form == "bits")

    def stem(self, label: str) -> str:
        return f"{self.name}s/{label}" if self.each else self.name


def outputs_of(card: Card) -> list[Output]:
    return [Output.of(text) for text in card.outputs]


def file_plan(job: Job, shard_bytes: int) -> list[FileSpec]:
    """Every weight file of the output, sizes and layout fixed before the work starts."""
    files = []
    for output in outputs_of(job.card):
        for label in job.labels if output.each else ("",):
            specs = [
                TensorSpec(t.name, DTYPES["U8"], (-(-t.size // 8),))
                if output.bits
                else TensorSpec(t.name, t.dtype, t.shape)
                for t in job.tasks
                if output.name == "model" or not t.copied
            ]
            files += shard_plan(specs, shard_bytes, output.stem(label))
    return files


@final
@dataclass
class Figures:
    """Sums gathered in chunk order: journalled, so that a resumed run ends with the same receipt."""

    tensors: dict[str, dict[str, float]] = field(default_factory=dict)
    models: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, tensor: str, of_tensor: Mapping[str, float], of_models: Mapping[str, Mapping[str, float]]) -> None:
        for store, part in (
            (self.tensors.setdefault(tensor, {}), of_tensor),
            *((self.models.setdefault(label, {}), part) for label, part in of_models.items()),
        ):
            for name, value in part.items():
                store[name] = store.get(name, 0.0) + value


@final
@dataclass(frozen=True)
class Made:
    """What one chunk became: bytes for each (output, label), in the order of the file plan, and figures."""

    bytes: Mapping[tuple[str, str], Array]
    of_tensor: Mapping[str, float]
    of_models: Mapping[str, Mapping[str, float]]


def finisher(job: Job, restore: Callable[..., Any] | None) -> Callable[[TensorTask, int, Any, list[Any]], Made]:
    """The function that turns a kernel's result for one chunk into :class:`Made`; runs in the worker threads."""
    outputs = outputs_of(job.card)

    def encoded(task: TensorTask, values: Array) -> tuple[Array, Array]:
        raw = encode(np.asarray(values).ravel(), task.dtype)
        back = decode(raw, task.dtype)
        bad = count_non_finite(back) if task.dtype.is_float else 0
        if bad:
            raise ProofFailed(
                f"tensor {task.name!r} of the result would hold {bad:,} NaN or infinite values in {task.dtype.name}",
                where=job.card.key,
                hint="Lower the scale or the weights, or write a wider type with --dtype float32.",
            )
        return raw, back

    def finish(task: TensorTask, index: int, result: Any, operands: list[Any]) -> Made:
        if not task.size:  # a tensor without elements: it stands in the header only
            return Made({}, {}, {})
        if task.copied:
            return Made({("model", ""): result}, {}, {})
        if not isinstance(result, Mapping):
            raw, now = encoded(task, result)
            changes = {}
            if task.base is not None and operands:
                changes = {
                    "distance": squared_distance(now, operands[0]),
                    "size": dot(operands[0], operands[0]),
                }
            return Made({("model", ""): raw}, changes, {})
        made: dict[tuple[str, str], Array] = {}
        stored: dict[str, Any] = {}
        for output in outputs:
            found = result[output.name + ("*" if output.each else "")]
            for label, array in zip(job.labels, found, strict=True) if output.each else [("", found)]:
                if output.bits:
                    made[output.name, label] = np.packbits(array.ravel(), bitorder="little")
                else:
                    made[output.name, label], array = encoded(task, array)
                stored[output.name + label] = array
        figures = {}
        if restore is not None and operands:
            for label, original in zip(job.labels, operands[1], strict=True):
                parts = {o.name: stored[o.name + (label if o.each else "")] for o in outputs}
                rebuilt = decode(encode(restore(operands[0], **parts), task.dtype), task.dtype)
                figures[label] = {
                    "distance": squared_distance(rebuilt, original),
                    "size": dot(original, original),
                    "moved": squared_distance(original, operands[0]),
                    "elements": float(original.size),
                } | {f"{o.name}_ones": float(np.count_nonzero(parts[o.name])) for o in outputs if o.bits}
        summed: dict[str, float] = {}
        for sums in figures.values():
            for name, value in sums.items():
                summed[f"restored_{name}"] = summed.get(f"restored_{name}", 0.0) + value
        return Made(made, summed, figures)

    return finish


def pieces(job: Job, task: TensorTask, made: Made) -> list[tuple[str, Array]]:
    """(stem of the file, bytes) in the order of the outputs; copied tensors go only where whole models go."""
    found: list[tuple[str, Array]] = []
    for output in outputs_of(job.card):
        for label in job.labels if output.each else ("",):
            raw = made.bytes.get((output.name, label))
            if raw is not None:
                found.append((output.stem(label), raw))
            elif not task.copied and task.size:
                raise NettError(f"{job.card.key} gave nothing for its output {output.name!r}")
    return found


def model_figures(figures: Figures, outputs: Sequence[Output]) -> list[dict[str, Any]]:
    """Per model: distance of its rebuilt checkpoint from the original, and the share of ones of its masks."""
    rows = []
    for label, sums in figures.models.items():
        row: dict[str, Any] = {
            "name": label,
            "relative_l2": (sums["distance"] / sums["size"]) ** 0.5 if sums["size"] else 0.0,
            "relative_l2_of_task_vector": (sums["distance"] / sums["moved"]) ** 0.5 if sums["moved"] else 0.0,
        }
        for output in outputs:
            if output.bits:
                row[f"{output.name}_ones"] = sums[f"{output.name}_ones"] / sums["elements"]
        rows.append(row)
    return rows


def tensor_figures(figures: Figures, outputs: Sequence[Output]) -> list[dict[str, Any]]:
    """Per tensor: how far the result lies from the base; or, over all models that can be rebuilt from it, how far
    these lie from the originals, and the share of ones of their masks."""
    rows = []
    for name, sums in figures.tensors.items():
        row: dict[str, Any] = {"name": name}
        if "distance" in sums:
            row["relative_change"] = (sums["distance"] / sums["size"]) ** 0.5 if sums.get("size") else 0.0
        if sums.get("restored_elements"):
            size = sums["restored_size"]
            row["relative_l2"] = (sums["restored_distance"] / size) ** 0.5 if size else 0.0
            row |= {
                f"{o.name}_ones": sums[f"restored_{o.name}_ones"] / sums["restored_elements"] for o in outputs if o.bits
            }
        if len(row) > 1:
            rows.append(row)
    return rows
