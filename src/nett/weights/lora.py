"""Low-rank updates (LoRA) on the matrices of a model while it is trained, and inputs that can be masked.

Our own and not PEFT's, since a pruner must read A, B and their gradients beside the weight, mask what a layer reads,
and share one update between layers that share one weight. Layers of any class that multiply by a matrix ``weight`` take
part: ``nn.Linear``, and GPT-2's ``Conv1D``, whose matrix is ``[in, out]``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional


@final
class Updated(nn.Module):
    """``base(x) + scaling * x A^T B^T``, with ``x`` masked by ``keep`` [in] where that is given.

    a: [r, in], b: [out, r]; b starts at zero, so that nothing changes at first.
    """

    def __init__(self, base: nn.Module, a: nn.Parameter, b: nn.Parameter, scaling: float) -> None:
        super().__init__()
        self.base, self.a, self.b, self.scaling = base, a, b, scaling
        self.keep: Tensor | None = None

    @property
    def turned(self) -> bool:
        """Whether the matrix is ``[in, out]``."""
        return not isinstance(self.base, nn.Linear)

    @property
    def weight(self) -> Tensor:
        found: Any = self.base.weight
        return found  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        if self.keep is not None:
            x = x * self.keep
        made: Tensor = self.base(x) + self.scaling * functional.linear(functional.linear(x, self.a), self.b)
        return made

    def as_stored(self, matrix: Tensor) -> Tensor:
        """A matrix ``[out, in]`` in the order of the base's weight."""
        return matrix.T if self.turned else matrix

    def effective(self) -> Tensor:
        """W + scaling * B A, in the base's order; no gradient."""
        with torch.no_grad():
            return self.weight + self.as_stored(self.scaling * (self.b @ self.a))


def is_matrix(module: nn.Module) -> bool:
    """Whether a module multiplies by one matrix and adds at most a bias."""
    weight = getattr(module, "weight", None)
    two = isinstance(weight, Tensor) and weight.dim() == 2
    own = {name for name, _ in module.named_parameters()}
    return two and own <= {"weight", "bias"} and not isinstance(module, nn.Embedding)


def attach(model: nn.Module, names: Iterable[str], *, rank: int, scaling: float, seed: int) -> dict[str, Updated]:
    """Replace the named layers by :class:`Updated` ones. Layers that share a weight share the update.

    A is uniform in +-1/sqrt(in) (LoRA's Kaiming start), drawn by ``seed`` in the order of the names.
    """
    random = torch.Generator().manual_seed(seed)
    pairs: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    found = {}
    for name in names:
        base = model.get_submodule(name)
        weight: Any = base.weight
        rows, columns = weight.shape if isinstance(base, nn.Linear) else weight.shape[::-1]
        if id(weight) not in pairs:
            least = min(rank, rows, columns)
            a = (2 * torch.rand(least, columns, generator=random) - 1) / columns**0.5
            like = {"device": weight.device, "dtype": weight.dtype}
            pairs[id(weight)] = nn.Parameter(a.to(**like)), nn.Parameter(torch.zeros(rows, least, **like))
        found[name] = Updated(base, *pairs[id(weight)], scaling)
        put(model, name, found[name])
    return found


def detach(model: nn.Module, updated: dict[str, Updated], *, merge: bool = True) -> None:
    """Put the layers back, their updates merged into the weights (once where a weight is shared)."""
    done = set()
    for name, one in updated.items():
        if merge and id(one.weight) not in done:
            done.add(id(one.weight))
            one.weight.data.copy_(one.effective())
        put(model, name, one.base)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Set the submodule of this name."""
    outer, _, last = name.rpartition(".")
    setattr(model.get_submodule(outer), last, module)


def trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters, each once, with their gradients switched on."""
    found = list({id(p): p for p in parameters}.values())
    for p in found:
        p.requires_grad_(True)
    return found
