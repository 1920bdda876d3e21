"""LoRAPrune (P64): heads and channels cut gradually while low-rank updates are trained, chosen by the updates' gradients."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from nett.core.registry import Between, method
from nett.weights.protocol import Shrunk, Tensor

QUICK = {"ratio": 0.5, "steps": 8, "every": 2, "batch": 4}


@method(
    papers=["P64"],
    title="LoRAPrune: heads and channels cut by the gradients of low-rank updates",
    grain="model",
    extra="models",
    identity={"ratio": 0.0},
    resizes=True,
)
def loraprune(
    model: Any,
    windows: Tensor,
    *,
    ratio: Annotated[float, Between(0, 1, open_high=True)] = 0.2,
    by: Literal["lora", "taylor", "magnitude", "random"] = "lora",
    parts: Literal["both", "heads", "mlp"] = "both",
    steps: Annotated[int, Between(1)] = 400,
    every: Annotated[int, Between(1)] = 10,
    warm: Annotated[float, Between(0, 1)] = 0.1,
    cool: Annotated[float, Between(0, 1)] = 0.1,
    lr: Annotated[float, Between(0, open_low=True)] = 3e-4,
    rank: Annotated[int, Between(1)] = 8,
    batch: Annotated[int, Between(1)] = 8,
    uniform: bool = True,
    spare_first: Annotated[int, Between(0)] = 0,
    spare_last: Annotated[int, Between(0)] = 0,
    multiple: Annotated[int, Between(1)] = 1,
    seed: Annotated[int, Between(0)] = 0,
) -> Shrunk:
    """Train low-rank updates, hide ever more heads and MLP channels on a cubic schedule, those that the updates' gradients say matter least, and in the end cut them out and merge the updates.

    Formula: s = |(dB A + B dA - dB dA) * (W + 2 B A)|; summed over the entries of a unit, scaled to length 1 within each
             matrix, added over the matrices of a structure, averaged over steps with weight 0.9 on the past; the least go
    Args:
        ratio: share of the weights of heads and channels that goes.
        by: what ranks units: the updates' gradients; the true gradient (which must be stored); size; chance.
        parts: cut heads and channels, or one of them.
        steps: training steps.
        every: steps between two choices of what is hidden.
        warm: first part of the steps, before anything is hidden.
        cool: last part of the steps, after all is hidden.
        lr: highest learning rate of the updates.
        rank: of the updates.
        batch: windows a training step.
        uniform: cut equally much from every block, as the configs of transformers and vLLM ask; else rank all blocks together.
        spare_first: blocks at the start that nothing is cut from (not uniform).
        spare_last: blocks at the end that nothing is cut from (not uniform).
        multiple: round the channels that stay up to a multiple of this, for kernels and quantisation groups.
        seed: order of the windows, start of the updates, and units chosen by chance.
    When to use: a decoder that should be narrower and still load anywhere, with text to train on and no memory for
        gradients of all weights.
    When not: no time to train; models of few KV heads, of which only whole ones go (see --parts mlp).
    Cost: forward and backward passes over steps * batch windows; model, updates and result in float32 in memory.
    Source: Zhang et al., "LoRAPrune: Pruning Meets Low-Rank Parameter-Efficient Fine-Tuning" (P64), equations 6 to 11, and
        the authors' code, whose absolute value stands in for the paper's square. With grouped-query attention, which that
        code has not, a KV head goes with its query heads.
    """
    from nett.weights.pruning_by_lora import Settings, pruned

    return pruned(
        model,
        windows,
        Settings(
            ratio,
            by,
            parts,
            steps,
            every,
            warm,
            cool,
            lr,
            rank,
            batch,
            uniform,
            spare_first,
            spare_last,
            multiple,
            seed,
        ),
    )
