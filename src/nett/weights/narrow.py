"""A model with fewer heads and MLP channels: its tensors cut, its config told, loaded as a stock loader loads it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nett.core.dtypes import Array
from nett.core.errors import NettError, Refused
from nett.core.symmetry import scrambled, small_model
from nett.weights.stack import remade
from nett.weights.structures import Parts, Structure, input_masks, module_name, structures_of, told

_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim")
Gone = Mapping[str, Array]  # structure's name -> numbers of the units that go


def narrowed(model: Any, structures: Sequence[Structure], gone: Gone) -> Any:
    """A new model without the units ``gone``: equally many of each kind in every block, since a config tells one number.

    Refused where transformers does not make a model of these sizes.
    """
    kept = {kind: {s.size - len(gone[s.name]) for s in structures if s.kind == kind} for kind in ("heads", "mlp")}
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    for kind, sizes in kept.items():
        if len(sizes) > 1:
            raise NettError(f"the blocks keep unequal numbers of {kind}: {sorted(sizes)}")
        if sizes:
            _tell(text, kind, structures, sizes.pop())
    state = dict(model.state_dict())
    return remade(model, config, state | cut_tensors(state, structures, gone))


def cut_tensors(state: Mapping[str, Tensor], structures: Sequence[Structure], gone: Gone) -> dict[str, Tensor]:
    """The tensors that hold units, without those that go."""
    out: dict[tuple[str, int], list[Array]] = {}
    for structure in structures:
        for place in structure.places:
            out.setdefault((place.tensor, place.axis), []).append(place.index[gone[structure.name]].reshape(-1))
    found: dict[str, Tensor] = {}
    for (name, axis), places in out.items():
        tensor = found.get(name, state[name])
        stay = np.setdiff1d(np.arange(tensor.shape[axis]), np.concatenate(places))
        found[name] = tensor.index_select(axis, torch.from_numpy(stay).to(tensor.device))
    return found


def _tell(text: Any, kind: str, structures: Sequence[Structure], kept: int) -> None:
    """Change what a config says of one kind of units."""
    size = next(s.size for s in structures if s.kind == kind)
    if kind == "mlp":
        for name in _WIDTHS:
            if hasattr(text, name) and getattr(text, name) in (size, None):
                setattr(text, name, kept)
        return
    queries = int(text.num_attention_heads)
    pairs = getattr(text, "num_key_value_heads", None)
    text.head_dim = getattr(text, "head_dim", None) or text.hidden_size // queries
    text.num_attention_heads = queries // size * kept
    if pairs is not None and size == pairs:
        text.num_key_value_heads = kept


@contextmanager
def masked(model: nn.Module, structures: Sequence[Structure], gone: Gone) -> Iterator[None]:
    """Units hidden from the model, while this lasts: the layers that read them see zeros."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    widths = {module_name(p): shapes[p.tensor][p.axis] for s in structures for p in s.places if p.role == "consumer"}
    handles = []
    for name, mask in input_masks(structures, gone, widths).items():
        tensor = torch.from_numpy(mask)

        def hide(_module: Any, given: tuple[Tensor, ...], tensor: Tensor = tensor) -> tuple[Tensor, ...]:
            return (given[0] * tensor.to(given[0]), *given[1:])

        handles.append(model.get_submodule(name).register_forward_pre_hook(hide))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def prove_removable(model: Any, parts: Parts) -> None:
    """On a small random model of the same family: without a unit it loads as usual, and answers as with the unit hidden.

    Refused otherwise, before anything was trained.
    """
    small = small_model(told(model))
    stored = {n: t.detach().numpy() for n, t in small.state_dict().items()}
    small.load_state_dict({n: torch.from_numpy(a) for n, a in scrambled(stored).items()})  # biases and norms as well
    small.tie_weights()
    structures = structures_of(small, parts)
    gone = {s.name: np.arange(0, s.size - 1, 3) for s in structures}
    ids = torch.arange(2, 14)[None]
    hint = "Try --parts mlp." if parts != "mlp" else None
    try:
        cut = narrowed(small, structures, gone)
    except Refused as error:
        raise Refused(f"{error.what}: heads or channels cannot be fewer in this family", hint=hint) from error
    with torch.no_grad():
        with masked(small, structures, gone):
            hidden = small(input_ids=ids, use_cache=False).logits
        far = float((cut(input_ids=ids, use_cache=False).logits - hidden).abs().max())
    if not far <= 1e-5 * max(1.0, float(hidden.abs().max())):
        raise Refused(
            f"a model of the family {type(model).__name__} without a head or channel is not the model with it hidden: its"
            f" answers differ by {far:.2g} (a norm over all heads, for one)",
            hint=hint,
        )


def narrow_in_place(model: nn.Module, structures: Sequence[Structure], gone: Gone) -> None:
    """Cut the tensors within the modules of ``model``, whatever each block keeps; the config stays as it was."""
    for name, tensor in cut_tensors(model.state_dict(), structures, gone).items():
        outer, _, last = name.rpartition(".")
        module = model.get_submodule(outer)
        setattr(module, last, nn.Parameter(tensor.clone(), requires_grad=False))
        if isinstance(module, nn.Linear) and last == "weight":
            module.out_features, module.in_features = tensor.shape
        elif last == "weight" and hasattr(module, "nf"):
            setattr(module, "nf", tensor.shape[1])  # noqa: B010 - GPT-2's own name for its outputs
