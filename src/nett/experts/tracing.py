"""The original model runs, and what its routers choose is written down: round by round, so that text of any length needs
no more memory than a round."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, final

import numpy as np

from nett.core.blocks import Walk
from nett.core.dtypes import Array
from nett.core.expert_modules import Mixture
from nett.experts.opening import Opened
from nett.experts.protocol import Tensor

HELD, STREAMED = (
    1 << 14,
    1 << 16,
)  # tokens of a round: where all weights stay in memory, and where each round reads them
_NUMBERS = 1 << 24  # of the outputs of all experts, at a time


@final
class Trace:
    """Of one mixture and round: ``chosen`` int16 and ``weights`` float32, both ``[windows, length, k]``."""

    def __init__(self) -> None:
        self._chosen: list[Tensor] = []
        self._weights: list[Tensor] = []
        self.sample: list[Tensor] = []  # some of what comes into the mixture

    def arrays(self, windows: int) -> tuple[Array, Array]:
        import torch

        chosen, weights = torch.cat(self._chosen), torch.cat(self._weights)
        shape = (windows, -1, chosen.shape[-1])
        return chosen.numpy().reshape(shape), weights.numpy().reshape(shape)

    @contextmanager
    def of(self, mixture: Mixture, stride: int) -> Iterator[None]:
        """While this lasts, all tokens that go through the mixture are written down; of their hidden states every
        ``stride``-th (0: none)."""
        import torch

        seen = 0

        def note(module: Any, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            nonlocal seen
            hidden, index, weights = (*given, *named.values())[:3]
            width = index.shape[-1]
            self._chosen.append(index.detach().reshape(-1, width).to("cpu", torch.int16, copy=True))
            self._weights.append(weights.detach().reshape(-1, width).to("cpu", torch.float32, copy=True))
            if stride:
                rows = hidden.detach().reshape(-1, hidden.shape[-1])
                self.sample.append(rows[-seen % stride :: stride].clone())
                seen += len(rows)

        handle = mixture.experts.register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def traced(
    model: Opened, rounds: Iterable[tuple[int, Any, int]], cosines: list[Array | None]
) -> Iterator[tuple[int, list[tuple[Array, Array]]]]:
    """For each round (number of its text, windows int64 ``[n, length]``, tokens to sample): that number, and (chosen,
    weights) of each mixture.

    On the hidden states of the sampled tokens all experts are run; the cosines of their outputs ``[E, E]``, summed over the
    tokens, are added to ``cosines``.
    """
    by_block = {layer.number: at for at, layer in enumerate(model.layers)}
    for text, windows, count in rounds:
        stride = max(1, int(windows.numel()) // count) if count else 0
        walk = Walk(model.skeleton, windows)
        found: list[Any] = [None] * len(by_block)
        for number in range(max(by_block) + 1):
            with model.skeleton.block(number) as module:
                at = by_block.get(number)
                if at is None:
                    walk.run(module)
                    continue
                mixture, trace = model.mixture(number), Trace()
                with trace.of(mixture, stride):
                    walk.run(module)
                if stride:
                    made = cosines_of_outputs(mixture, trace.sample, model.layers[at].count)
                    before = cosines[at]
                    cosines[at] = made if before is None else before + made
                found[at] = trace.arrays(len(windows))
        yield text, found


def cosines_of_outputs(mixture: Mixture, sample: Sequence[Tensor], experts: int) -> Array:
    """float64 ``[E, E]``: sum over the tokens of the cosine of two experts' outputs, whether the router chose them or not."""
    import torch
    from torch.nn.functional import normalize

    rows = torch.cat(list(sample))
    step = max(1, _NUMBERS // (experts * rows.shape[1]))
    total = np.zeros((experts, experts))
    for hidden in torch.split(rows, step):  # all experts in one call of the model's own code
        every = torch.arange(experts, device=rows.device).repeat_interleave(len(hidden))[:, None]
        with torch.no_grad():
            made = mixture.experts.forward(hidden.repeat(experts, 1), every, hidden.new_ones((len(every), 1)))
        unit = normalize(made.float(), dim=-1).reshape(experts, len(hidden), -1)
        total += torch.einsum("ath,bth->ab", unit, unit).double().cpu().numpy()
    return total


def holding(model: Opened) -> tuple[Any, int]:
    """A context in which the model's blocks keep their weights, if there is room for that, and tokens of a round."""
    import torch

    from nett.core.device import free_memory

    needed = 4 * sum(p.numel() for block in model.skeleton.blocks for p in block.parameters())
    device = model.skeleton.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    return (model.skeleton.held(), HELD) if 2 * needed < free else (nullcontext(), STREAMED)
