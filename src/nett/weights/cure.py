"""Curing (P07): a model that lost blocks is trained for a while on next tokens and on the last layer of the original."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from nett.core.token_batches import batches, next_token_loss, rate, sound
from nett.weights import lora
from nett.weights.stack import Stack

Tail = Literal["hidden", "logits"]
SCALING = 2.0  # of the low-rank updates: alpha over rank


def tail_loss(student: Any, teacher: Any, on: Tail) -> Tensor:
    """How far the student's last layer is from the teacher's.

    ``hidden``: mean squared distance of the last hidden states, in units of the teacher's mean square. ``logits``: mean
    KL divergence of the next-token distributions, teacher to student, in nats.
    """
    if on == "hidden":
        s, t = student.hidden_states[-1], teacher.hidden_states[-1]
        far: Tensor = ((s - t) ** 2).mean() / (t**2).mean()
        return far
    s, t = (x.logits.flatten(0, 1).log_softmax(-1) for x in (student, teacher))
    return functional.kl_div(s, t, reduction="batchmean", log_target=True)


@torch.enable_grad()
def cured(
    student: Any,
    stack: Stack,
    teacher: Any,
    windows: Tensor,
    *,
    by: Literal["lora", "weights"],
    steps: int,
    batch: int,
    peak: float,
    tail: float,
    on: Tail,
    rank: int,
    seed: int,
) -> list[float]:
    """Train the blocks of ``student`` in place by AdamW; returns the losses on next tokens, one a step.

    The blocks' vectors (norms) are always trained; their matrices by low-rank updates that are merged in the end
    (``lora``), or themselves (``weights``). Embeddings, final norm and head stay. peak: the highest learning rate;
    tail: weight of :func:`tail_loss`. Raises NettError where the loss is no number.
    """
    for model in (student, teacher):
        model.requires_grad_(False)
    matrices = [f"{stack.name}.{n}" for n, m in stack.layers.named_modules(remove_duplicate=False) if lora.is_matrix(m)]
    parts = [p for p in stack.layers.parameters() if by == "weights" or p.dim() == 1]
    updates = lora.attach(student, matrices, rank=rank, scaling=SCALING, seed=seed) if by == "lora" else {}
    parts += [p for one in updates.values() for p in (one.a, one.b)]
    optimizer = torch.optim.AdamW(lora.trainable(parts), lr=peak, weight_decay=0.0)
    losses = []
    for step, ids in enumerate(batches(windows, batch, steps, seed)):
        for group in optimizer.param_groups:
            group["lr"] = peak * rate(step, steps)
        asked = {"input_ids": ids, "use_cache": False, "output_hidden_states": on == "hidden"}
        made = student(**asked)
        loss = next_token_loss(made.logits, ids)
        losses.append(sound(loss, step, "curing"))
        if tail:
            with torch.no_grad():
                shown = teacher(**asked)
            loss = loss + tail * tail_loss(made, shown, on)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parts, 1.0)
        optimizer.step()
    student.requires_grad_(False)
    lora.detach(student, updates)
    return losses
