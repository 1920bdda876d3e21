"""A model of which each mixture has fewer experts in memory than it has: a cache of them over the file."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, final

from nett.core import torch_model
from nett.core.blocks.skeleton import put
from nett.core.checkpoint import Checkpoint, open_checkpoint
from nett.core.errors import Refused
from nett.core.expert_map import MARK, resize
from nett.core.expert_modules import mixtures
from nett.core.fused import resolved_names
from nett.experts.caching import Cache, Policy
from nett.experts.expert_traces import Steps, padded
from nett.experts.page_cache import drop
from nett.experts.protocol import Tensor
from nett.experts.slots import Slots
from nett.experts.view import FileLayer, experts_view


@final
class Offloaded:
    """``model``: of transformers, in the types of the file, with ``size`` experts in memory a mixture; the same answers as
    with all. Each call of the model is a step of every mixture: the experts of all its tokens are served one by one.

    forget: ask the system to drop what was read of the file, so that it does not keep the experts either. Use it in a
    with, or close it: it reads the file as long as it runs. Refused where no mixture is found, or one whose experts
    cannot be put in place one by one.
    """

    def __init__(
        self, reference: str, size: int, policy: Policy = "lru", span: int = 16, *, forget: bool = True
    ) -> None:
        self.drop = forget
        with ExitStack() as stack:
            self.checkpoint = stack.enter_context(open_checkpoint(reference, dense=True))
            self.layers = experts_view(self.checkpoint)
            if (self.checkpoint.config() or {}).get(MARK):
                raise Refused("its layers differ in experts, which cannot be offloaded", where=self.checkpoint.path)
            self.model = _hollow(self.checkpoint, self.layers, size)
            inside = mixtures(self.model)
            self.slots = [Slots(layer, mixture) for layer, mixture in zip(self.layers, inside, strict=True)]
            self.caches = [
                Cache(layer.count, len(s), policy, span) for layer, s in zip(self.layers, self.slots, strict=True)
            ]
            self._trace: list[list[list[int]]] = [[] for _ in self.layers]
            for at, mixture in enumerate(inside):
                mixture.experts.forward = partial(self._forward, at, mixture.experts)
            if forget:
                for file in self.checkpoint.files:
                    drop(file, written=True)
            self._stack = stack.pop_all()

    def _forward(self, at: int, experts: Any, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """In place of a mixture's own: each expert by the module's own code, from the slot that it is in."""
        import torch

        own, slots = type(experts).forward, self.slots[at]
        wanted = torch.unique(index).tolist()
        self._trace[at].append(wanted)
        made: dict[int, tuple[Tensor, Tensor]] = {}
        for expert, slot, missing in self.caches[at].step(wanted):
            if missing:
                slots.fill(slot, expert)
                if self.drop:
                    self._forget(slots.layer, expert)
            token, position = torch.where(index == expert)
            chosen = torch.full((len(token), 1), slot, dtype=index.dtype, device=index.device)
            made[expert] = token, own(experts, hidden[token], chosen, weights[token, position, None])
        result = torch.zeros_like(hidden)
        for expert in wanted:  # in the order of their numbers, as the module adds them up
            result.index_add_(0, *made[expert])
        return result

    def _forget(self, layer: FileLayer, expert: int) -> None:
        names = [n[0] if layer.place.fused else n[expert] for n in layer.place.roles.values()]
        for file in {layer.checkpoint.tensors[n].file for n in names} - {None}:
            assert file is not None
            drop(file)

    @property
    def held_bytes(self) -> dict[str, int]:
        """Of the weights in memory: what is no expert, and the slots."""
        mine = {id(p) for s in self.slots for p in (s.mixture.experts.gate_up_proj, s.mixture.experts.down_proj)}
        sizes = {id(p): p.nbytes for p in [*self.model.parameters(), *self.model.buffers()]}
        return {
            "dense": sum(n for k, n in sizes.items() if k not in mine),
            "experts": sum(n for k, n in sizes.items() if k in mine),
        }

    @property
    def bytes_read(self) -> int:
        """Of experts, so far."""
        return sum(s.bytes_read for s in self.slots)

    @property
    def steps(self) -> Steps:
        """What each mixture was asked for, so far."""
        return Steps([padded(t) for t in self._trace], [layer.count for layer in self.layers], self.layers[0].chosen)

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Offloaded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _hollow(checkpoint: Checkpoint, layers: Sequence[FileLayer], size: int) -> Any:
    """The model with all its weights but experts, of which there are ``size`` empty places a mixture; built on the meta
    device, so that no more is ever in memory."""
    import torch
    from accelerate import init_empty_weights

    infos, experts = checkpoint.tensors, {t for layer in layers for t in layer.place.experts}
    with torch_model.described(checkpoint) as folder:
        kind, config = torch_model.kind_of(folder)
        widest = max((i for i in infos.values() if i.dtype.is_float), key=lambda i: i.nbytes)
        usual = getattr(torch, widest.dtype.alias)
        config.dtype = usual
        before = torch.get_default_dtype()
        torch.set_default_dtype(usual)
        try:
            with init_empty_weights(include_buffers=False), torch_model.quiet():
                made = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
        finally:
            torch.set_default_dtype(before)
    inside = mixtures(made)
    if len(inside) != len(layers):
        raise Refused(
            f"has {len(layers)} mixtures, transformers builds {len(inside)} of its config", where=checkpoint.path
        )
    for mixture in inside:
        count = min(size, mixture.count)
        resize(mixture.experts, count, mixture.count)
        mixture.experts.num_experts = count
    stored, fused = resolved_names(made, made.state_dict(), infos)
    sources = {n: (t,) for n, t in stored.items()} | {n: f.tensors for n, f in fused.items()}
    kept = tuple(getattr(made, "_keep_in_fp32_modules_strict", None) or ())
    for name, value in list(made.state_dict().items()):
        exact = torch.float32 if any(part in name for part in kept) else usual
        if name not in sources:
            continue  # tied, or refused below
        if experts.issuperset(sources[name]):
            put(made, name, torch.zeros(value.shape, dtype=usual))
        elif name in stored:
            put(made, name, _as(torch_model.Slice(checkpoint, stored[name])[...], exact).clone())
        else:
            put(made, name, _as(fused[name].value(made, lambda t: torch_model.Slice(checkpoint, t)[...]), exact))
    made.tie_weights()
    empty = [n for n, p in made.named_parameters() if p.is_meta]
    if empty:
        raise Refused(f"has no tensor {empty[0]!r}, which its architecture needs", where=checkpoint.path)
    made.set_experts_implementation("eager")  # one expert at a time is what comes
    return made.eval().requires_grad_(False)


def _as(tensor: Tensor, kind: Any) -> Tensor:
    return tensor.to(kind) if tensor.is_floating_point() else tensor
