"""SlimMoE (P60): every expert stays and loses neurons, in stages, with distillation from the original after each."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from nett.core.registry import Between, method
from nett.core.shelf import Shelf
from nett.core.whole_model import Shrunk
from nett.experts.protocol import Tensor

QUICK = {"steps": 6, "batch": 2, "sample": 4, "every": 2, "multiple": 4}


@method(
    papers=["P60"],
    title="SlimMoE: narrower experts, distilled in stages",
    grain="model",
    extra="models",
    identity={"width": 1.0},
    resizes=True,
)
def slimmoe(
    model: Any,
    windows: Tensor,
    shelf: Shelf,
    *,
    width: Annotated[float, Between(0, 1, open_low=True)] = 0.5,
    stages: Annotated[int, Between(1, 16)] = 2,
    steps: Annotated[int, Between(0)] = 400,
    by: Literal["distil", "text", "magnitude", "chance"] = "distil",
    top: Annotated[int, Between(1)] = 8,
    sample: Annotated[int, Between(1)] = 64,
    lr: Annotated[float, Between(0, open_low=True)] = 1e-4,
    batch: Annotated[int, Between(1)] = 8,
    multiple: Annotated[int, Between(1)] = 8,
    every: Annotated[int, Between(1)] = 100,
    seed: Annotated[int, Between(0)] = 0,
) -> Shrunk:
    """Cut from every expert the neurons that a distillation loss feels least, in stages, and distil the original into what is left after each.

    Formula: s_j = sum over the weights w of neuron j (rows of gate and up, column of down) of |w dL/dw|, L = - sum over the
             teacher's top logits of p log q, p their softmax, q the model's; each expert keeps its highest; then KL(teacher || model)
    Args:
        width: share of the neurons of each expert that stays, the same for all, so that any loader takes it.
        stages: cuts, each of the same ratio, with equally many steps of distillation after each.
        steps: steps of distillation in all; 0 for none.
        by: what ranks neurons: the distillation loss; the loss on the text's own next tokens; size; chance.
        top: logits of the teacher that the loss of the ranking looks at.
        sample: windows that the ranking looks at, before each cut.
        lr: highest learning rate, of each stage anew.
        batch: windows a step.
        multiple: neurons that stay are rounded to a multiple of this (8 fits the kernels of transformers in 16 bits).
        every: steps between two states on disk, from which a run that was killed goes on.
        seed: order of the windows, and neurons chosen by chance.
    When to use: a mixture that must become several times smaller, with time to train, and text like its own.
    When not: no time to train (reap needs none); models that cannot be trained in memory. On a small mixture, two stages were not
        better than one, and narrower experts not surely better than fewer, distilled alike (claim P60).
    Cost: steps * batch windows forward through two models and backward through one; the model twice, its gradients and two moments in float32 in memory.
    Source: SlimMoE (P60): expert slimming, the ranking by |w dL/dw| with the teacher's top 8 logits, stages of pruning and
        distillation. Ours: sums of single weights, cuts of equal ratio, stages of equal length, AdamW as set here. Attention heads,
        which the paper's smallest model loses too, stay. Before the first cut, model and teacher are one, so a full KL would have
        no gradient; the loss on the top logits has that of the probability which they leave out.
    Place: model level, compression, pruning; model level, compression, distillation
    """
    from nett.experts.slimming import Settings, slimmed

    return slimmed(
        model, windows, shelf, Settings(width, stages, steps, by, top, sample, lr, batch, multiple, every, seed)
    )
