"""Which weights an unstructured method prunes, and their masks: the smallest of each tensor, an exact number."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from nett.core.errors import Refused, UsageError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def prunable(model: nn.Module, skip: str = "") -> dict[str, nn.Parameter]:
    """Matrices and kernels by name: no vectors (biases, normalisations), no embeddings nor what is tied to them, not the
    first convolution, nothing that does not train, nothing that ``skip`` (wildcards, commas) fits."""
    left = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    first = next((m for m in model.modules() if isinstance(m, _CONVOLUTIONS)), None)
    left |= {id(first.weight)} if first is not None else set()
    found = {n: p for n, p in model.named_parameters() if p.dim() > 1 and p.requires_grad and id(p) not in left}
    for word in (w for w in (p.strip() for p in skip.split(",")) if w):
        if not any(fnmatchcase(name, word) for name in found):
            raise UsageError(f"skip = {word!r} fits no weight that would be pruned", hint=f"They are: {_some(found)}")
        found = {n: p for n, p in found.items() if not fnmatchcase(n, word)}
    if not found:
        raise Refused(
            "no weights to prune: there is no matrix or kernel but embeddings, a first convolution and what was skipped",
            where=type(model).__name__,
        )
    return found


def smallest(weight: Tensor, sparsity: float) -> Tensor:
    """The mask (True stays) that leaves out the ``round(sparsity * n)`` smallest in magnitude; ties by position."""
    count = int(sparsity * weight.numel() + 0.5)
    mask = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    if count:
        mask[weight.detach().abs().flatten().argsort(stable=True)[:count]] = False
    return mask.reshape(weight.shape)


def _some(names: Any) -> str:
    listed = list(names)
    return ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")
