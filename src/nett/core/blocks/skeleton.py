"""The modules of a causal language model as transformers builds them, without memory for their weights; a block is
given its weights from the checkpoint when it is its turn, and lets go of them.

No family is known here: the blocks are the longest list of modules.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np

from nett.core import expert_map, ragged
from nett.core.checkpoint import Checkpoint
from nett.core.errors import Refused, missing_extra
from nett.core.fused import Fused, resolved_names, shape_of
from nett.core.heap import give_back
from nett.core.torch_model import described

_PIECE = 1 << 20  # numbers of a tensor that are compared at a time


@final
@dataclass(frozen=True)
class Linear:
    """A linear layer inside a block: ``name`` there (``mlp.up_proj``), its two sizes, ``weight``: what its matrix is
    called in the checkpoint."""

    name: str
    weight: str
    rows: int
    columns: int

    @property
    def module(self) -> str:
        """The layer as the checkpoint calls it."""
        return self.weight.removesuffix(".weight")


@final
class Skeleton:
    """``model`` with its parameters on torch's meta device; ``stack`` is what its list of blocks is called."""

    def __init__(self, checkpoint: Checkpoint, model: Any, device: str = "cpu") -> None:
        import torch

        self.checkpoint, self.model, self.device = checkpoint, model, torch.device(device)
        self._held = False
        self.stack, self.blocks = _stack_of(model, checkpoint)
        names = [n for n, _ in model.named_parameters(remove_duplicate=False)]
        self.ground_names = [n for n in names if not n.startswith(f"{self.stack}.")]
        buffers = [n for n, _ in model.named_buffers() if n.startswith(f"{self.stack}.")]
        self.stored, self.fused = resolved_names(model, [*names, *buffers], checkpoint.tensors)
        self._check()
        for name, bits in getattr(checkpoint, "rounded", {}).items():
            model.get_submodule(name).register_forward_pre_hook(partial(_rounded, bits))

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding table: token ids are below it."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    def linears(self, block: int) -> list[Linear]:
        """The linear layers of a block, in the order of its modules."""
        import torch

        found = []
        for name, module in self.blocks[block].named_modules():
            if isinstance(module, torch.nn.Linear):
                rows, columns = module.weight.shape
                weight = self.stored[f"{self.stack}.{block}.{name}.weight"]
                found.append(Linear(name, weight, int(rows), int(columns)))
        return found

    @property
    def linear_names(self) -> list[str]:
        """All linear layers of the model, also those outside its blocks."""
        import torch

        return [n for n, m in self.model.named_modules() if isinstance(m, torch.nn.Linear)]

    def block_names(self, number: int) -> dict[str, str]:
        """Name in the block -> name in the checkpoint, of all its parameters, and of its buffers that the checkpoint has;
        without those that are made of several tensors (:meth:`block_fused`)."""
        stem = f"{self.stack}.{number}."
        block = self.blocks[number]
        names = [n for n, _ in block.named_parameters() if stem + n not in self.fused]
        names += [n for n, _ in block.named_buffers() if stem + n in self.stored]
        return {n: self.stored[stem + n] for n in names}

    def block_fused(self, number: int) -> dict[str, Fused]:
        """Name in the block -> what it is made of, for its parameters that are several tensors of the checkpoint."""
        stem = f"{self.stack}.{number}."
        return {n.removeprefix(stem): f for n, f in self.fused.items() if n.startswith(stem)}

    def _fill(self, number: int) -> None:
        """The block's weights, in float32."""
        module = self.blocks[number]
        for name, stored in self.block_names(number).items():
            put(module, name, self.tensor(stored).float())
        for name, fused in self.block_fused(number).items():
            put(module, name, fused.value(self.model, self.tensor).float())

    def _empty(self, number: int) -> None:
        module = self.blocks[number]
        size = sum(p.numel() for p in module.parameters())
        for name in [*self.block_names(number), *self.block_fused(number)]:
            put(module, name, None)
        if size > _PIECE:
            give_back()  # the pieces that its tensors were read in lie between what lives on

    def tensor(self, name: str) -> Any:
        """A tensor of the checkpoint in its own type, on the device; Refused where it holds NaN or infinity."""
        import torch

        info = self.checkpoint.tensors[name]
        raw = torch.from_numpy(self.checkpoint.read(name).view(np.uint8))
        tensor = raw.view(getattr(torch, info.dtype.alias)).reshape(info.shape).to(self.device)
        if info.dtype.is_float and tensor.numel() and not all(torch.isfinite(one) for one in torch.aminmax(tensor)):
            count = int((~torch.isfinite(tensor)).sum())
            raise Refused(f"tensor {name!r} holds {count:,} NaN or infinite values", where=self.checkpoint.path)
        return tensor

    @contextmanager
    def block(self, number: int) -> Iterator[Any]:
        """A block with its weights in float32, which it loses at the end."""
        if self._held:
            yield self.blocks[number]
            return
        self._fill(number)
        try:
            yield self.blocks[number]
        finally:
            self._empty(number)

    @contextmanager
    def held(self) -> Iterator[None]:
        """All blocks keep their weights meanwhile, for work that comes by each of them again and again."""
        for number in range(len(self)):
            self._fill(number)
        self._held = True
        try:
            yield
        finally:
            self._held = False
            for number in range(len(self)):
                self._empty(number)

    @contextmanager
    def ground(self, like: Skeleton | None = None) -> Iterator[Any]:
        """The model with the weights of all that lies outside its blocks, in float32; those that are equal to what
        ``like`` holds just now are shared with it, and take no memory of their own."""
        for name in self.ground_names:
            if name in self.stored:
                held = self._held_by(like, name)
                put(self.model, name, self.tensor(self.stored[name]).float() if held is None else held)
        self.model.tie_weights()
        try:
            yield self.model
        finally:
            for name in self.ground_names:
                put(self.model, name, None)

    def _held_by(self, other: Skeleton | None, name: str) -> Any:
        """Another model's parameter of a name, if it has the very values of the checkpoint's tensor; else None. The file
        is read a piece at a time."""
        import torch

        if other is None or name not in other.ground_names:
            return None
        info, held = self.checkpoint.tensors[self.stored[name]], other.model.get_parameter(name)
        if held.device != torch.device(self.device) or tuple(held.shape) != info.shape:
            return None
        flat = held.detach().reshape(-1)
        for at in range(0, info.size, _PIECE):
            raw = torch.from_numpy(self.checkpoint.read(info.name, at, min(at + _PIECE, info.size)).view(np.uint8))
            piece = raw.view(getattr(torch, info.dtype.alias)).to(flat)
            if not torch.equal(piece, flat[at : at + _PIECE]):
                return None
        return held

    def _check(self) -> None:
        """Every parameter has its tensor, of its shape; but for output layers that are tied to the embeddings."""
        tied = bool(getattr(self.model.config.get_text_config(), "tie_word_embeddings", False))
        head = self.model.get_output_embeddings()
        shapes = {t.name: t.shape for t in self.checkpoint.tensors.values()}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if name in self.fused:
                made = shape_of(self.fused[name], self.model, shapes)
                if made != tuple(parameter.shape):
                    several = self.fused[name].tensors
                    fit = f"give the shape {list(made)}" if made is not None else "do not fit together"
                    raise Refused(
                        f"the {len(several)} tensors of {name!r} ({several[0]} …) {fit}, its config says {list(parameter.shape)}",
                        where=self.checkpoint.path,
                    )
                continue
            info = self.checkpoint.tensors.get(self.stored.get(name, name))
            if info is None and tied and head is not None and parameter is head.weight:
                continue
            if info is None:
                raise Refused(f"has no tensor {name!r}, which its architecture needs", where=self.checkpoint.path)
            if info.shape != tuple(parameter.shape):
                raise Refused(
                    f"tensor {name!r} has the shape {list(info.shape)}, its config says {list(parameter.shape)}",
                    where=self.checkpoint.path,
                )


def _rounded(bits: int, _: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """A module's inputs at whole numbers of ``bits`` bits around zero with a scale a token, as compressed-tensors
    rounds activations while a model runs."""
    inputs, *more = given
    scale = inputs.abs().amax(-1, keepdim=True) / ((2**bits - 1) / 2)
    scale = scale.where(scale > 0, scale.new_ones(()))
    codes = (inputs / scale).round_().clamp_(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (codes.mul_(scale), *more)


def put(root: Any, name: str, value: Any) -> None:
    """Set a parameter or buffer by its dotted name; None puts it back on the meta device."""
    import torch

    place, _, leaf = name.rpartition(".")
    module = root.get_submodule(place) if place else root
    if value is None:
        value = torch.empty_like(getattr(module, leaf), device="meta")
    if leaf in module._buffers:
        module._buffers[leaf] = value
        return
    module._parameters[leaf] = torch.nn.Parameter(value, requires_grad=False)


def open_skeleton(checkpoint: Checkpoint, device: str = "cpu") -> Skeleton:
    """The skeleton of an open checkpoint; Refused where it has no config, or one that transformers does not know."""
    try:
        import torch
        import transformers
        from accelerate import init_empty_weights
    except ImportError as error:
        raise missing_extra(error.name or "torch", "models", "running a model") from error
    with described(checkpoint) as folder:
        try:
            config = transformers.AutoConfig.from_pretrained(str(folder))
            with init_empty_weights(include_buffers=False), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except (ValueError, KeyError, TypeError, OSError, ImportError) as error:
            text = " ".join(str(error).split())[:300]
            raise Refused(
                f"is no language model that transformers {transformers.__version__} can build: {text}",
                where=checkpoint.path,
            ) from error
    if hasattr(config, ragged.MARK):
        ragged.fit_widths(model, checkpoint.tensors)
    if hasattr(config, expert_map.MARK):
        expert_map.fit_experts(model, getattr(config, expert_map.MARK), checkpoint.path)
    model.eval().requires_grad_(False)
    for name, buffer in list(model.named_buffers()):
        if buffer.device.type != device:
            place, _, leaf = name.rpartition(".")
            model.get_submodule(place)._buffers[leaf] = buffer.to(device)
    return Skeleton(checkpoint, model, device)


def _stack_of(model: Any, checkpoint: Checkpoint) -> tuple[str, Any]:
    import torch

    lists: Mapping[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)}
    outer = {n: m for n, m in lists.items() if not any(n.startswith(f"{other}.") for other in lists if other != n)}
    if not outer:
        raise Refused("its layers were not found: it has no list of modules", where=checkpoint.path)
    name = max(outer, key=lambda n: len(outer[n]))
    return name, outer[name]
