"""The blocks of a language model, whatever its family: found, run with something in between, and cut.

A block is a member of the one list of modules that is as long as the config says that there are layers. What comes
back from a cut is loaded by transformers itself from names and tensors, so that it is what a stock loader makes of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from nett.core.errors import Refused
from nett.core.layer_lists import COUNTS, recut
from nett.core.torch_model import quiet

Between = Callable[[int, Tensor, Tensor], Tensor]  # number of the block, what went in, what came out -> what goes on


@final
@dataclass(frozen=True, eq=False)
class Stack:
    """``name``: where the list of blocks is, such as ``model.layers``; ``layers``: the list itself."""

    name: str
    layers: nn.ModuleList

    def __len__(self) -> int:
        return len(self.layers)


def stack_of(model: Any) -> Stack:
    """The blocks of a decoder. Refused, with what was found, where there is not exactly one such list."""
    if getattr(model.config, "is_encoder_decoder", False):
        raise Refused(f"{type(model).__name__} has an encoder and a decoder", hint="This method needs a decoder alone.")
    text = model.config.get_text_config()
    counts = {getattr(text, name, None) for name in COUNTS}
    inside = _decoder(model)
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) in counts and id(module) in inside:
            if not any(name.startswith(f"{outer}.") for outer in found):
                found[name] = module
    if len(found) != 1:
        numbers = sorted(c for c in counts if isinstance(c, int))
        said = f"there are {len(found)}: {', '.join(found)}" if found else "there is none"
        raise Refused(
            f"the blocks of {type(model).__name__} cannot be told: its config says {numbers or 'no number of'} layers, and of"
            f" lists of so many modules {said}",
            hint="This method needs a decoder: one list of blocks that pass a hidden state on, as causal language models have.",
        )
    return Stack(*next(iter(found.items())))


def _decoder(model: Any) -> set[int]:
    """Ids of the modules of the text decoder; all of them where the model does not tell."""
    inner = model.get_decoder() if hasattr(model, "get_decoder") else None
    return {id(m) for m in (inner if isinstance(inner, nn.Module) else model).modules()}


@contextmanager
def between(stack: Stack, act: Between) -> Iterator[None]:
    """``act`` decides what each block hands on, while this lasts."""

    def hook(number: int) -> Callable[..., Any]:
        def after(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            given = args[0] if args else kwargs["hidden_states"]
            if isinstance(output, tuple):
                return (act(number, given, output[0]), *output[1:])
            return act(number, given, output)

        return after

    handles = [b.register_forward_hook(hook(i), with_kwargs=True) for i, b in enumerate(stack.layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def cut(model: Any, stack: Stack, kept: Sequence[int]) -> tuple[Any, list[str]]:
    """A new model of the blocks ``kept``, in this order, and what a reader should know of its config."""
    told = model.config.to_dict()
    config, notes = recut(told, [(told, number, len(stack)) for number in kept], stack.name)
    state, prefix = {}, f"{stack.name}."
    places = {number: place for place, number in enumerate(kept)}
    for name, tensor in model.state_dict().items():
        if not name.startswith(prefix):
            state[name] = tensor
            continue
        number, _, rest = name.removeprefix(prefix).partition(".")
        if int(number) in places:
            state[f"{prefix}{places[int(number)]}.{rest}"] = tensor
    return remade(model, type(model.config).from_dict(config), state), notes


def remade(model: Any, config: Any, state: Mapping[str, Tensor]) -> Any:
    """A model of this class, config and tensors, as transformers loads it; its tensors are copies.

    Refused where the loader misses a tensor, does not know one, or has it in another shape.
    """
    config._attn_implementation = model.config._attn_implementation
    copies = {name: tensor.detach().clone() for name, tensor in state.items()}
    with torch.random.fork_rng(devices=[]), quiet():
        try:
            made, seen = type(model).from_pretrained(
                None, config=config, state_dict=copies, dtype=model.dtype, output_loading_info=True
            )
        except RuntimeError as error:  # what its loader says of other shapes
            raise Refused(
                f"transformers does not load {type(model).__name__} in these sizes: {_first_line(error)}"
            ) from error
    lost = {k: sorted(map(str, seen[k])) for k in ("missing_keys", "unexpected_keys", "mismatched_keys") if seen[k]}
    if lost:
        said = "; ".join(f"{k.replace('_', ' ')} {', '.join(v[:3])}" for k, v in lost.items())
        raise Refused(f"transformers does not load {type(model).__name__} in these sizes: {said}")
    made.generation_config = copy.deepcopy(model.generation_config)
    return made.to(model.device).eval()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
