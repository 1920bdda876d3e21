"""Kernels on linear layers, driven block by block: catch what goes in, work, write, and pass on what comes out.

Each block is a part that survives a kill. A run that is taken up walks the text through the parts that are there,
with the values that a loader makes of them, and so comes to the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from nett.core.blocks import Linear, Skeleton, Walk
from nett.core.blocks.skeleton import put
from nett.core.errors import NettError, ProofFailed
from nett.core.heap import give_back
from nett.core.parts import FOLDER, read_part, write_part
from nett.core.progress import report
from nett.core.receipt import file_sha256
from nett.core.registry import Card
from nett.core.staging import Staging
from nett.weights.answering import answers, cast
from nett.weights.folding import Fold, folds, ordered
from nett.weights.formats.base import Format, Written
from nett.weights.job import Job, Task
from nett.weights.protocol import SHARED, Quantised, Tensor
from nett.weights.watching import moments_of, sharing


@final
@dataclass
class Done:
    """What was made: each layer as it was written, one record a layer for the receipt, layers that were never run."""

    layers: list[Written] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    unseen: list[Linear] = field(default_factory=list)
    folded: int = 0  # layers whose inputs are scaled
    unplaced: int = 0  # layers whose inputs cannot be
    places: dict[str, Fold] = field(default_factory=dict)  # where they are, in the last block that was worked on


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
            staging.record(block=number, sha256=digest, layers=[], unseen=[], folded=0, unplaced=0)
            entry = staging.entries[-1]
        else:
            entry = _block(job, skeleton, fmt, staging, number, walk, compressed, dtype, path, done.places)
        _note(done, tasks, entry)
        if walk is not None and not last:
            _pass_on(walk, ground, fmt, number, tasks, entry, read_part(path))
        give_back()
        report.step(1)
    report.end()
    return done


def _note(done: Done, tasks: Sequence[Task], entry: Mapping[str, Any]) -> None:
    by_name = {t.linear.module: t.linear for t in tasks}
    for record in entry["layers"]:
        done.layers.append(Written(by_name[record["layer"]], record["kind"]))
        done.records.append({k: v for k, v in record.items() if k != "kind"})
    done.unseen += [by_name[name] for name in entry["unseen"]]
    done.folded += entry["folded"]
    done.unplaced += entry["unplaced"]


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
    places: dict[str, Fold],
) -> Mapping[str, Any]:
    tasks = {t.linear.name: t for t in job.blocks[number]}
    layers = [t.linear for t in tasks.values()]
    groups: list[list[Linear]] = [[layer] for layer in layers]
    moments: Mapping[str, Any] = {}
    if walk is not None:
        with (compressed or skeleton).block(number) as module:
            groups = [alike for group in sharing(walk, module, layers) for alike in _alike(group, tasks)]
            moments = moments_of(walk, module, groups, job.wanted)
            if "source" in job.card.operands:
                found = folds(walk, module, groups, layers, places)
                places.clear()
                places |= found
                groups = ordered(groups, places)
    elif job.card.operands[0] == SHARED:
        raise NettError(f"{job.card.key} works on layers that share an input, but asks for no moments")
    seen = {layer.name for group in groups for layer in group}
    stored, tensors = skeleton.block_names(number), dict[str, Tensor]()
    changed: dict[str, Tensor] = {}  # what scales were folded into
    records: list[dict[str, Any]] = []
    folded, unplaced = 0, sum(len(g) for g in groups if g[0].name not in places)
    for group in groups:
        own, fold = [tasks[layer.name].parameters for layer in group], places.get(group[0].name)
        made_of = answers(
            job.card, skeleton, compressed, group, own, moments, dtype, changed=changed, source=fold and fold.source
        )
        for layer, weight, answer, seconds, scale in made_of:
            made, kind = fmt.tensors(layer, answer)
            value = fmt.value(layer, made, kind)
            expected = fmt.expected(answer) if isinstance(answer, Quantised) else None
            if expected is not None and not bool((value == expected).all()):
                raise ProofFailed(f"layer {layer.module} would not be loaded as it was computed", where=staging.out)
            exact = _proved(job.card, layer, weight, value, staging) if job.card.guarantee == "exact" else {}
            size = sum(t.numel() * t.element_size() for t in made.values())
            known = moments.get(layer.name)
            before = {}
            if compressed is not None:
                coarse = compressed.tensor(layer.weight).float()
                before = {"error_before": _error(weight, coarse, known, job)}
                value = coarse + value if fmt.added else value
            if scale is not None:
                value = value.float() / scale
            records.append(
                {
                    "layer": layer.module,
                    "kind": kind,
                    "bits": round(8 * size / weight.numel(), 4),
                    **before,
                    "error": _error(weight, value, known, job),
                    **exact,
                    "seconds": round(seconds, 4),
                }
            )
            tensors |= made
        if fold is not None and made_of[0].scale is not None:
            folded += len(group)
            held = {n: changed.get(stored[n], skeleton.tensor(stored[n])) for n in fold.names}
            divided = fold.divided(held, made_of[0].scale).items()
            changed |= {stored[n]: t.to(dtype or held[n].dtype) for n, t in divided}
    if not fmt.added:
        gone = {layer.weight for layer in layers if layer.name in seen}
        rest = _rest(skeleton, number, tensors, dtype, gone)
        tensors = rest | {n: t for n, t in changed.items() if n in rest} | tensors
    digest = write_part(path, tensors)
    unseen = [layer.module for layer in layers if layer.name not in seen]
    order = {layer.module: place for place, layer in enumerate(layers)}
    records.sort(key=lambda r: order[r["layer"]])
    staging.record(block=number, sha256=digest, layers=records, unseen=unseen, folded=folded, unplaced=unplaced)
    return staging.entries[-1]


def _proved(card: Card, layer: Linear, weight: Tensor, value: Tensor, staging: Staging) -> dict[str, str]:
    """The hash of a layer's bytes, which are those that it will be loaded with."""
    import torch

    before, after = (t.contiguous().cpu().view(torch.uint8) for t in (weight, value))
    if weight.dtype != value.dtype or not torch.equal(before, after):
        raise ProofFailed(f"{card.key} changes layer {layer.module}", where=staging.out)
    return {"sha256": hashlib.sha256(before.numpy().tobytes()).hexdigest()}


def _alike(group: Sequence[Linear], tasks: Mapping[str, Task]) -> list[list[Linear]]:
    """A group cut into those layers that have the same parameters."""
    found: list[list[Linear]] = []
    for layer in group:
        same = (g for g in found if tasks[g[0].name].parameters == tasks[layer.name].parameters)
        place = next(same, None)
        found.append([layer]) if place is None else place.append(layer)
    return found


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


def _rest(
    skeleton: Skeleton, number: int, made: Mapping[str, Tensor], dtype: Any, replaced: Any = frozenset()
) -> dict[str, Tensor]:
    """What else lies in a block: norms, biases, layers that stay; as it is, in the output's type."""
    names = [n for n in skeleton.block_names(number).values() if n not in replaced and n not in made]
    return {n: cast(skeleton.tensor(n), dtype) for n in names}


def outside(skeleton: Skeleton, dtype: Any) -> dict[str, Tensor]:
    """Everything outside the blocks: embeddings, last norm, output layer."""
    inside = {n for i in range(len(skeleton)) for n in skeleton.block_names(i).values()}
    return {n: cast(skeleton.tensor(n), dtype) for n in skeleton.checkpoint.tensors if n not in inside}


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
