"""Kernels on linear layers, driven block by block: catch what goes in, work, write, and pass on what comes out.

Each block is a part that survives a kill. A run that is taken up walks the text through the parts that are there,
with the values that a loader makes of them, and so comes to the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from nett.core.blocks import Linear, Skeleton, Walk
from nett.core.blocks.skeleton import put
from nett.core.errors import NettError, ProofFailed
from nett.core.moments import NAMES
from nett.core.progress import report
from nett.core.receipt import file_sha256
from nett.core.registry import Card
from nett.core.staging import Staging
from nett.weights.formats.base import Format, Written
from nett.weights.job import Job, Task
from nett.weights.parts import FOLDER, read_part, write_part
from nett.weights.protocol import SHARED, Answer, Quantised, Tensor
from nett.weights.watching import moments_of, sharing


@final
@dataclass
class Done:
    """What was made: each layer as it was written, one record a layer for the receipt, layers that were never run."""

    layers: list[Written] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    unseen: list[Linear] = field(default_factory=list)


def work(
    job: Job,
    skeleton: Skeleton,
    fmt: Format,
    staging: Staging,
    *,
    windows: Any = None,
    compressed: Skeleton | None = None,
    dtype: Any = None,
    disk: bool = False,
) -> Done:
    """All blocks, each into its part. ``windows``: int64 ``[n, length]`` where the kernel is calibrated."""
    ground = skeleton if compressed is None else compressed  # whose blocks the text goes through
    walk = Walk(ground, windows, disk=disk) if job.calibrated else None
    done, known = Done(), {e["block"]: e for e in staging.entries if "block" in e}
    (staging.path / FOLDER).mkdir(exist_ok=True)
    report.begin("blocks", len(job.blocks), "blocks")
    for number, tasks in enumerate(job.blocks):
        path = staging.path / FOLDER / f"block-{number:05d}.safetensors"
        entry: Mapping[str, Any] | None = known.get(number)
        last = number + 1 == len(job.blocks)
        if entry is not None:
            if not path.is_file() or file_sha256(path) != entry["sha256"]:
                raise NettError(
                    "does not hold what its journal says",
                    where=path,
                    hint=f"Delete {staging.path} and run the same command again.",
                )
        elif not tasks and walk is None:
            digest = write_part(path, {} if fmt.added else _rest(skeleton, number, {}, dtype))
            staging.record(block=number, sha256=digest, layers=[], unseen=[])
            entry = staging.entries[-1]
        else:
            entry = _block(job, skeleton, fmt, staging, number, walk, compressed, dtype, path)
        _note(done, tasks, entry)
        if walk is not None and not last:
            _pass_on(walk, ground, fmt, number, tasks, entry, read_part(path))
        report.step(1)
    report.end()
    return done


def _note(done: Done, tasks: Sequence[Task], entry: Mapping[str, Any]) -> None:
    by_name = {t.linear.module: t.linear for t in tasks}
    for record in entry["layers"]:
        done.layers.append(Written(by_name[record["layer"]], record["kind"]))
        done.records.append({k: v for k, v in record.items() if k != "kind"})
    done.unseen += [by_name[name] for name in entry["unseen"]]


def _block(
    job: Job,
    skeleton: Skeleton,
    fmt: Format,
    staging: Staging,
    number: int,
    walk: Walk | None,
    compressed: Skeleton | None,
    dtype: Any,
    path: Any,
) -> Mapping[str, Any]:
    tasks = {t.linear.name: t for t in job.blocks[number]}
    layers = [t.linear for t in tasks.values()]
    groups: list[list[Linear]] = [[layer] for layer in layers]
    moments: Mapping[str, Any] = {}
    if walk is not None:
        with (compressed or skeleton).block(number) as module:
            groups = sharing(walk, module, layers)
            moments = moments_of(walk, module, groups, job.wanted)
    elif job.card.operands[0] == SHARED:
        raise NettError(f"{job.card.key} works on layers that share an input, but asks for no moments")
    seen = {layer.name for group in groups for layer in group}
    tensors: dict[str, Tensor] = {}
    records: list[dict[str, Any]] = []
    for group in groups:
        own = [tasks[layer.name].parameters for layer in group]
        for layer, weight, answer, seconds in answers(job.card, skeleton, compressed, group, own, moments, dtype):
            made, kind = fmt.tensors(layer, answer)
            value = fmt.value(layer, made, kind)
            expected = answer.dense() if isinstance(answer, Quantised) else None
            if expected is not None and not bool((value == expected).all()):
                raise ProofFailed(f"layer {layer.module} would not be loaded as it was computed", where=staging.out)
            size = sum(t.numel() * t.element_size() for t in made.values())
            known = moments.get(layer.name)
            before = {}
            if compressed is not None:
                coarse = compressed.tensor(layer.weight).float()
                before = {"error_before": _error(weight, coarse, known, job)}
                value = coarse + value if fmt.added else value
            records.append(
                {
                    "layer": layer.module,
                    "kind": kind,
                    "bits": round(8 * size / weight.numel(), 4),
                    **before,
                    "error": _error(weight, value, known, job),
                    "seconds": round(seconds, 4),
                }
            )
            tensors |= made
    if not fmt.added:
        gone = {layer.weight for layer in layers if layer.name in seen}
        tensors = _rest(skeleton, number, tensors, dtype, gone) | tensors
    digest = write_part(path, tensors)
    unseen = [layer.module for layer in layers if layer.name not in seen]
    staging.record(block=number, sha256=digest, layers=records, unseen=unseen)
    return staging.entries[-1]


def answers(
    card: Card,
    skeleton: Skeleton,
    compressed: Skeleton | None,
    group: Sequence[Linear],
    parameters: Sequence[Mapping[str, Any]],
    moments: Mapping[str, Any],
    dtype: Any = None,
) -> list[tuple[Linear, Tensor, Answer, float]]:
    """Each layer of a group (layers that share an input, with their parameters) with its weight, what the kernel made
    of it, and the seconds that took."""
    kernel, operands = card.kernel(), card.operands

    def given(name: str, layer: Linear) -> Any:
        if name in NAMES:
            return moments[layer.name][name]
        if name == "bias":
            stored = f"{layer.module}.bias"
            return skeleton.tensor(stored) if stored in skeleton.checkpoint.tensors else None
        source = compressed if name == "compressed" else skeleton
        if source is None:
            raise NettError(f"{card.key} takes the compressed model too")
        return _as(source.tensor(layer.weight), dtype)

    began = time.perf_counter()
    if operands[0] == SHARED:
        weights = [given("weight", layer) for layer in group]
        more = [given(name, group[0]) for name in operands[1:]]
        found = list(kernel(weights, *more, **parameters[0]))
        each = (time.perf_counter() - began) / len(group)
        return [(layer, w, a, each) for layer, w, a in zip(group, weights, found, strict=True)]
    each_one = []
    for layer, own in zip(group, parameters, strict=True):
        began = time.perf_counter()
        arguments = [given(name, layer) for name in operands]
        answer = kernel(*arguments, **own)
        each_one.append((layer, arguments[0], answer, time.perf_counter() - began))
    return each_one


def _error(weight: Tensor, value: Tensor, moments: Any, job: Job) -> float:
    """Relative squared error of the layer's outputs where the moments of its inputs are known, else of its weights."""
    first, gap = weight.float(), value.float() - weight.float()
    if moments is not None and "gram" in job.wanted:
        gram = moments["gram"]
        over, under = float(((gap @ gram) * gap).sum()), float(((first @ gram) * first).sum())
    else:
        by = moments["squares"] if moments is not None and "squares" in job.wanted else 1.0
        over, under = float((gap.square() * by).sum()), float((first.square() * by).sum())
    return over / under if under else 0.0


def _as(tensor: Tensor, dtype: Any) -> Tensor:
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def _rest(
    skeleton: Skeleton, number: int, made: Mapping[str, Tensor], dtype: Any, replaced: Any = frozenset()
) -> dict[str, Tensor]:
    """What else lies in a block: norms, biases, layers that stay; as it is, in the output's type."""
    names = [n for n in skeleton.block_names(number).values() if n not in replaced and n not in made]
    return {n: _as(skeleton.tensor(n), dtype) for n in names}


def outside(skeleton: Skeleton, dtype: Any) -> dict[str, Tensor]:
    """Everything outside the blocks: embeddings, last norm, output layer."""
    inside = {n for i in range(len(skeleton)) for n in skeleton.block_names(i).values()}
    return {n: _as(skeleton.tensor(n), dtype) for n in skeleton.checkpoint.tensors if n not in inside}


def _pass_on(
    walk: Walk,
    skeleton: Skeleton,
    fmt: Format,
    number: int,
    tasks: Sequence[Task],
    entry: Mapping[str, Any],
    part: Mapping[str, Tensor],
) -> None:
    """The text through the block as it was written."""
    kinds = {record["layer"]: record["kind"] for record in entry["layers"]}
    with skeleton.block(number) as module:
        for name, stored in skeleton.block_names(number).items():
            if stored in part and part[stored].is_floating_point():
                put(module, name, part[stored].float().to(skeleton.device))
        for task in tasks:
            if task.linear.module in kinds:
                value = fmt.value(task.linear, part, kinds[task.linear.module]).float().to(skeleton.device)
                if fmt.added:
                    value = skeleton.tensor(task.linear.weight).float() + value
                put(module, f"{task.linear.name}.weight", value)
        walk.run(module)
