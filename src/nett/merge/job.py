"""What is to be merged, decided from headers alone: which tensor from which, with which parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from nett.core.checkpoint import Checkpoint, TensorInfo
from nett.core.dtypes import Array, Dtype
from nett.core.errors import Refused
from nett.core.registry import Card, View
from nett.merge.averages import check_average
from nett.merge.heads import HEAD, is_tied

CHUNK = 1 << 17  # elements: a handful of float32 chunks stay in a core's cache

Resolver = Callable[[str], dict[str, Any]]
Edit = Callable[[dict[str, bytes]], dict[str, bytes]]  # of what lies beside the weights: name -> content


@final
@dataclass(frozen=True)
class Operand:
    """A tensor of one input: where the kernel's arrays come from."""

    checkpoint: Checkpoint
    name: str

    @property
    def info(self) -> TensorInfo:
        return self.checkpoint.tensors[self.name]


@final
@dataclass(frozen=True)
class TensorTask:
    """One output tensor. ``copied`` tensors (integers, booleans) are taken from the first operand unchanged."""

    name: str
    shape: tuple[int, ...]
    dtype: Dtype
    base: Operand | None
    tuned: tuple[Operand, ...]
    parameters: Mapping[str, Any]
    copied: bool
    first_chunk: int
    size: int
    view: View = "flat"  # what the kernel sees of it at a time

    @property
    def operands(self) -> tuple[Operand, ...]:
        return (*((self.base,) if self.base else ()), *self.tuned)

    @property
    def step(self) -> int:
        """Elements in a chunk."""
        if self.view == "flat":
            return CHUNK
        if self.view == "whole" or len(self.shape) < 2 or not self.size:
            return max(1, self.size)
        row = self.size // self.shape[0]
        return max(1, CHUNK // row) * row

    @property
    def chunks(self) -> int:
        return max(1, -(-self.size // self.step))

    def bounds(self, index: int) -> tuple[int, int]:
        return index * self.step, min(self.size, (index + 1) * self.step)

    def shaped(self, values: Array) -> Array:
        """A chunk's flat values as the kernel sees them."""
        if self.view == "flat":
            return values
        return values.reshape(-1, *self.shape[1:]) if len(self.shape) > 1 else values.reshape(self.shape)


@final
@dataclass(frozen=True)
class Job:
    """A merge, planned: everything that decides the output's bytes."""

    card: Card
    base: Checkpoint | None
    tuned: tuple[Checkpoint, ...]
    labels: tuple[str, ...]  # what the tuned models are called
    parameters: Mapping[str, Any]  # as the receipt shows them
    tasks: tuple[TensorTask, ...]
    cast: Dtype | None = None  # inputs are rounded to this type first (recipes: `dtype`)
    recipe: str | None = None
    notes: tuple[str, ...] = field(default=())
    vocabulary: Mapping[str, Any] | None = None  # what became of the tokens (recipes: `tokenizer`)
    giver: Checkpoint | None = None  # of config and tokenizer, where it is not the one below (recipes: base_model)
    edits: tuple[Edit, ...] = ()  # of the files beside the weights, one after the other
    references: Mapping[str, str] = field(default_factory=dict)  # of a recipe: as it names models -> where they lie
    ground: Checkpoint | None = None  # the base that the user named, whether or not the kernel takes it

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        found = [*((self.base,) if self.base else ()), *self.tuned, *self.other_bases]
        return tuple({id(c): c for c in found}.values())

    @property
    def wide(self) -> bool:
        """Whether any number of the merge is read as float64."""
        if self.cast is not None:
            return self.cast.name == "F64"
        return any(o.info.dtype.name == "F64" for t in self.tasks if not t.copied for o in t.operands)

    @property
    def other_bases(self) -> tuple[Checkpoint, ...]:
        """The bases of single slices of a recipe, where they are neither the base of all nor merged elsewhere."""
        known = {id(c) for c in (self.base, *self.tuned)}
        found = [t.base.checkpoint for t in self.tasks if t.base is not None]
        return tuple({id(c): c for c in found if id(c) not in known}.values())

    @property
    def donor(self) -> Checkpoint:
        """Who gives config and tokenizer: the base, else the first model."""
        if self.giver is not None:
            return self.giver
        return self.base if self.base is not None else self.tuned[0]


def labels_of(checkpoints: Sequence[Checkpoint], called: Sequence[str | None] = ()) -> tuple[str, ...]:
    """The models' names (``called``: other names than their paths give), made distinct: by the parent folder first,
    by a number at last."""
    names = [c.name for c in checkpoints]
    if len(set(names)) < len(names):
        names = [f"{c.path.resolve().parent.name}.{c.name}" if names.count(c.name) > 1 else c.name for c in checkpoints]
    names = [other or name for other, name in zip(called, names, strict=True)] if called else names
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        distinct.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return tuple(distinct)


def _missing(name: str, holder: Checkpoint, other: Checkpoint) -> Refused:
    import difflib

    near = difflib.get_close_matches(name, list(other.tensors), n=1, cutoff=0.8)
    return Refused(
        f"has no tensor {name!r}, which {holder.path} has" + (f" (nearest: {near[0]!r})" if near else ""),
        where=other.path,
        hint="Models that are merged must have the same architecture. nett diff shows all differences.",
    )


def operand(checkpoint: Checkpoint, name: str, holder: Checkpoint) -> Operand:
    """``name`` in a checkpoint; an output layer that is tied to the embeddings is found there."""
    if name in checkpoint.tensors:
        return Operand(checkpoint, name)
    if name == HEAD and is_tied(checkpoint):
        tied = next((n for n in checkpoint.tensors if n.endswith("embed_tokens.weight")), None)
        if tied is not None:
            return Operand(checkpoint, tied)
    raise _missing(name, holder, checkpoint)


@final
@dataclass(frozen=True)
class Line:
    """One tensor of the output, and the tensors that it is made of."""

    name: str
    base: Operand | None
    tuned: tuple[Operand, ...]

    @property
    def operands(self) -> tuple[Operand, ...]:
        return (*((self.base,) if self.base else ()), *self.tuned)


def plan_tensors(
    card: Card,
    base: Checkpoint | None,
    tuned: Sequence[Checkpoint],
    resolve: Resolver,
    out_dtype: Dtype | None,
) -> tuple[tuple[TensorTask, ...], list[str]]:
    """Line up the tensors of all models by name, and plan the lines."""
    models = [*([base] if base is not None else []), *tuned]
    names: dict[str, Checkpoint] = {}
    for model in models:
        for name in model.tensors:
            names.setdefault(name, model)
    lines = []
    for name in sorted(names):
        found = [operand(model, name, names[name]) for model in models]
        lines.append(Line(name, found[0] if base is not None else None, tuple(found[1 if base is not None else 0 :])))
    return plan_lines(card, lines, resolve, out_dtype)


def plan_lines(
    card: Card, lines: Sequence[Line], resolve: Resolver, out_dtype: Dtype | None
) -> tuple[tuple[TensorTask, ...], list[str]]:
    """The tasks of an output's lines; Refused at the first whose shapes or kinds of numbers do not fit together.

    The output type is ``out_dtype``, else that of the base or the first model.
    """
    tasks, chunk = [], 0
    models = dict.fromkeys(operand.checkpoint for line in lines for operand in line.operands)
    notes = list(dict.fromkeys(note for model in models for note in model.notes))
    for line in lines:
        first = line.operands[0]
        _check_fit(line)
        copied = not first.info.dtype.is_float
        if copied:
            notes.append(f"{line.name} ({first.info.dtype.name}) is copied from {first.checkpoint.path}")
        parameters = {} if copied else resolve(line.name)
        check_average(card, line.name, parameters, len(line.tuned))
        task = TensorTask(
            name=line.name,
            shape=first.info.shape,
            dtype=first.info.dtype if copied or out_dtype is None else out_dtype,
            base=line.base,
            tuned=line.tuned,
            parameters=parameters,
            copied=copied,
            first_chunk=chunk,
            size=first.info.size,
            view="flat" if copied else card.view(parameters),
        )
        chunk += task.chunks
        tasks.append(task)
    if not any(not t.copied for t in tasks):
        where = lines[0].operands[0].checkpoint.path if lines else None
        raise Refused("holds no floating-point tensor, so there is nothing to merge", where=where)
    return tuple(tasks), notes


def _check_fit(line: Line) -> None:
    """All tensors of a line have one shape, and are all floating-point or none."""
    first = line.operands[0]
    for other in line.operands[1:]:
        if other.info.shape != first.info.shape:
            raise Refused(
                f"tensor {other.name!r} has shape {list(other.info.shape)}, but {list(first.info.shape)} in "
                f"{first.checkpoint.path}" + (f" ({first.name})" if first.name != other.name else ""),
                where=other.checkpoint.path,
                hint=_shape_hint(line.name),
            )
        if other.info.dtype.is_float != first.info.dtype.is_float:
            raise Refused(
                f"tensor {other.name!r} is {other.info.dtype.name}, but {first.info.dtype.name} in "
                f"{first.checkpoint.path}",
                where=other.checkpoint.path,
            )


def _shape_hint(name: str) -> str:
    if "embed" in name or "lm_head" in name:
        return "The vocabularies differ in size. A recipe brings them to one: tokenizer_source: union, base or a path."
    return "Only models of one architecture and size can be merged."
