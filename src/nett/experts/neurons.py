"""Neurons of all experts of a model in torch: their scores, and a model without some of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nett.core.dtypes import Array
from nett.core.errors import Refused
from nett.core.expert_modules import Mixture, mixtures
from nett.experts.view import width_key

Scores = list[Tensor]  # for each mixture float64 [E, I]


def width_of(model: Any) -> int:
    """Neurons of an expert; Refused where mixtures differ in that."""
    found = {int(m.experts.down_proj.shape[-1]) for m in mixtures(model)}
    if len(found) != 1:
        raise Refused(f"the model's mixtures have experts of {len(found)} widths: {sorted(found)}")
    return found.pop()


def check_width_can_be_said(model: Any) -> None:
    """Refused where no entry of the config tells the experts' width, or one tells that of other parts too."""
    config = model.config.get_text_config().to_dict()
    if width_key(config) is None:
        raise Refused("its config does not say the width of an expert")
    if config.get("n_shared_experts"):
        raise Refused(
            f"its config says the width of experts and of its {config['n_shared_experts']} shared experts in one number",
            hint="nett experts reap drops experts and leaves their width.",
        )


def distil_loss(logits: Tensor, teacher: Tensor, top: int) -> Tensor:
    """Mean over tokens of - sum p log q over the teacher's ``top`` logits; p is their softmax."""
    best, index = teacher.topk(min(top, teacher.shape[-1]), dim=-1)
    return -(best.softmax(-1) * logits.log_softmax(-1).gather(-1, index)).sum(-1).mean()


def kl(logits: Tensor, teacher: Tensor) -> Tensor:
    """Mean over tokens of KL(teacher || model), in nats."""
    flat = logits.flatten(0, -2).log_softmax(-1)
    return functional.kl_div(flat, teacher.flatten(0, -2).log_softmax(-1), log_target=True, reduction="batchmean")


def felt(mixture: Mixture) -> Tensor:
    """float64 ``[E, I]``: sum of ``|w dL/dw|`` over each neuron's weights, of the gradients that are there now."""
    both, down = mixture.experts.gate_up_proj, mixture.experts.down_proj
    count, wide = down.shape[0], down.shape[-1]
    if both.grad is None or down.grad is None:
        return torch.zeros((count, wide), dtype=torch.float64, device=down.device)
    rows = (both * both.grad).detach().abs().sum(-1).double()
    found: Tensor = rows[:, :wide] + rows[:, wide:] + (down * down.grad).detach().abs().sum(1).double()
    return found


def size(mixture: Mixture) -> Tensor:
    """float64 ``[E, I]``: sum of squares of each neuron's weights."""
    both, down = mixture.experts.gate_up_proj.detach(), mixture.experts.down_proj.detach()
    rows = both.square().sum(-1).double()
    found: Tensor = rows[:, : down.shape[-1]] + rows[:, down.shape[-1] :] + down.square().sum(1).double()
    return found


def kept(scores: Tensor, sizes: Tensor, count: int) -> Array:
    """int64 ``[E, count]``: each expert's neurons with the highest scores, in ascending order; equal scores, as those of an
    expert that no token chose, by size, and then by number."""
    score, second = scores.cpu().numpy(), sizes.cpu().numpy()
    order = np.stack([np.lexsort((-b, -a))[:count] for a, b in zip(score, second, strict=True)])
    return np.sort(order, axis=1).astype(np.int64)


def cut(model: Any, stay: Mapping[int, Array] | list[Array]) -> None:
    """Leave in each mixture the neurons ``stay[i]`` ``[E, I']`` of its experts, in place; the config says the new width."""
    for i, mixture in enumerate(mixtures(model)):
        both, down = mixture.experts.gate_up_proj, mixture.experts.down_proj
        index, wide = torch.from_numpy(stay[i]).to(down.device), down.shape[-1]
        rows = torch.cat([index, index + wide], 1)[..., None].expand(-1, -1, both.shape[-1])
        columns = index[:, None, :].expand(-1, down.shape[1], -1)
        put(mixture, both.detach().gather(1, rows), down.detach().gather(2, columns))
    tell_width(model)


def put(mixture: Mixture, both: Tensor, down: Tensor) -> None:
    """New matrices for the experts of a mixture."""
    mixture.experts.gate_up_proj = torch.nn.Parameter(both.contiguous())
    mixture.experts.down_proj = torch.nn.Parameter(down.contiguous())
    mixture.experts.intermediate_dim = int(down.shape[-1])


def tell_width(model: Any) -> None:
    """Write the experts' width into the config."""
    config = model.config.get_text_config()
    setattr(config, str(width_key(config.to_dict())), width_of(model))
