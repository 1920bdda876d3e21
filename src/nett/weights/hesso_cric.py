"""HESSO-CRIC: HESSO that looks what pruning would do before it chooses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from nett.core.registry import Between, method


@method(
    papers=["P21"],
    title="HESSO-CRIC",
    kind="train",
    grain="model",
    guarantee="measured",
    extra="models",
    identity={"sparsity": 0.0},
)
def hesso_cric(
    model: Any,
    example: Any,
    optimizer: Any = None,
    *,
    sparsity: Annotated[float, Between(0, 1, open_high=True)] = 0.5,
    start: Annotated[int, Between(0)] = 0,
    sampling: Annotated[int, Between(1)] = 10,
    cycles: Annotated[int, Between(1)] = 10,
    tolerance: Annotated[int, Between(0)] = 0,
    steps: Annotated[int, Between(1)] = 1000,
    variant: Literal["sgd", "adam", "adamw"] = "adamw",
    lr: Annotated[float, Between(0, open_low=True)] = 1e-3,
    momentum: Annotated[float, Between(0, 1, open_high=True)] = 0.0,
    weight_decay: Annotated[float, Between(0)] | None = None,
    scope: Literal["global", "layer"] = "global",
    divisible: Annotated[int, Between(1)] = 1,
    skip: str = "",
    partly: bool = False,
    seed: Annotated[int, Between(0)] = 0,
) -> Any:
    """As hesso, but units are chosen by scores gathered while candidates were tried at zero, and by what the loss did.

    Formula: score = mean of HESSO's scores over all sampled steps + (mean loss of the trials / loss at whole weights) / units of the layer
    Args:
        sparsity: share of the units (channels, neurons, heads) that go.
        start: steps of plain training before the search.
        sampling: steps of a corrective cycle, in which the violating units fade to zero on trial.
        cycles: corrective cycles at the most; the search ends earlier once a cycle brings up no new candidates.
        tolerance: that few new candidates are none.
        steps: steps in which the chosen units fade to zero after the search; train on after that.
        variant: torch's optimizer to train by, where none is given.
        lr: its learning rate.
        momentum: that of sgd.
        weight_decay: its weight decay; by default 0.01 for adamw and none for the others.
        scope: rank the units of all layers together, or take the same share of each layer.
        divisible: the number of units that stay in a layer is rounded up to a multiple of this; layers of no more
            units than that stay whole.
        skip: names of groups that stay whole, with wildcards and commas, such as ``*.heads,conv1``.
        partly: go on where a part of the network cannot be followed; what that part touches stays whole.
        seed: of the random numbers on which it is proved what can be cut out.
    Returns: a torch.optim.Optimizer as hesso's. Call ``step(loss=loss)``, or ``step(closure)``: the search needs the loss.
        ``search_steps`` tells the fewest and the most steps of the search.
    Example:
        optimizer = nett.weights.hesso_cric(model, inputs[:2], sparsity=0.7, start=200, steps=500, lr=1e-3)
        for x, y in batches:
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            optimizer.step(loss=loss)
        small = optimizer.smaller()
    When to use: as hesso, at high sparsity, where a single ranking misjudges layers.
    When not: short training: the search takes 6 steps a layer and some cycles, in which the weights go nowhere.
    Cost: while it searches one copy of the weights, buffers and the optimizer's state.
    Guarantee: as hesso's. The search leaves no trace: weights, buffers and state come back as they were.
    Source: P21, arXiv:2409.09085 (HESSO-CRIC). The loss at whole weights is the mean over the trials' steps, and scores
        are taken at whole weights only.
    """
    from nett.core.structure import structure_of
    from nett.weights.training.base import base_optimizer
    from nett.weights.training.cric_optimizer import HessoCric

    structure = structure_of(model, example, partly=partly, skip=skip, seed=seed)
    base = base_optimizer(model, optimizer, variant, lr, momentum, weight_decay)
    settings = {
        "sparsity": sparsity, "start": start, "sampling": sampling, "cycles": cycles, "tolerance": tolerance,
        "steps": steps, "scope": scope, "divisible": divisible,
    }  # fmt: skip
    return HessoCric(model, structure, base, settings)
