"""Gradual magnitude pruning: the smallest weights go while the network trains, fast at first and slowly in the end."""

from __future__ import annotations

from typing import Annotated, Any

from nett.core.registry import Between, method


@method(
    papers=["P24"],
    title="Gradual magnitude pruning",
    kind="train",
    grain="model",
    guarantee="measured",
    extra="models",
    identity={"sparsity": 0.0},
)
def gradual(
    model: Any,
    optimizer: Any = None,
    *,
    sparsity: Annotated[float, Between(0, 1, open_high=True)] = 0.75,
    initial: Annotated[float, Between(0, 1, open_high=True)] = 0.0,
    start: Annotated[int, Between(0)] = 0,
    steps: Annotated[int, Between(0)] = 1000,
    every: Annotated[int, Between(1)] = 100,
    skip: str = "",
) -> Any:
    """Prune the smallest weights of each layer step by step while training, along a cubic schedule.

    Formula: s_t = s_f + (s_i - s_f) * (1 - (t - start) / steps)^3 at t = start, start + every, …, start + steps; in each tensor
        the round(s_t * n) smallest |w| are zero, and their gradients with them
    Args:
        sparsity: share of each tensor's weights that is zero in the end, exactly (s_f).
        initial: share when it starts (s_i).
        start: the step after which pruning starts, so that the network has found its way.
        steps: how many steps it takes; train on after that, with a learning rate that still moves something.
        every: steps between two prunings.
        skip: names of weights that stay whole, with wildcards and commas, such as ``lm_head.weight``. Biases,
            normalisations, embeddings and the first convolution always do.
    Returns: a callback that hangs on the optimizer's steps, so that the loop stays as it is; ``for_trainer()`` gives one for
        transformers' Trainer (then no optimizer is given here). ``progress``, ``layers`` and ``masks`` tell where it is;
        ``state_dict()`` resumes to the same bits.
    Example:
        pruning = nett.weights.gradual(model, optimizer, sparsity=0.9, start=500, steps=3000)
        for x, y in batches:
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
        torch.save({"model": model.state_dict(), "pruning": pruning.state_dict()}, "checkpoint.pt")
    When to use: before a model is stored or sent compressed, or quantised: zeros cost one bit each at the most.
    When not: for speed: no loader runs scattered zeros faster. hesso makes the network itself smaller.
    Cost: a mask of one byte a weight; each pruning sorts every tensor.
    Guarantee: exactly the share asked for is zero in each tensor from step start + steps on, and stays so.
    Source: P24, arXiv:1710.01878, equation 1; per layer, masks by magnitude.
    """
    from nett.weights.training.gradual_callback import Gradual

    settings = {"sparsity": sparsity, "initial": initial, "start": start, "steps": steps, "every": every}
    made = Gradual(model, settings, skip)
    return made if optimizer is None else made.attach(optimizer)
