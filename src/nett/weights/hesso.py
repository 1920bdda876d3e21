"""HESSO: an optimizer that trains a network once and leaves a smaller one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from nett.core.registry import Between, method


@method(
    papers=["P21"],
    title="HESSO",
    kind="train",
    grain="model",
    guarantee="measured",
    extra="models",
    identity={"sparsity": 0.0},
)
def hesso(
    model: Any,
    example: Any,
    optimizer: Any = None,
    *,
    sparsity: Annotated[float, Between(0, 1, open_high=True)] = 0.5,
    start: Annotated[int, Between(0)] = 0,
    steps: Annotated[int, Between(1)] = 1000,
    periods: Annotated[int, Between(1)] = 1,
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
    """Train as usual; units that matter least fade to zero on the way and are then cut out, with the same answers.

    Formula: score = mean of |w|, |w|/n, cos(w, d) + 1, |<w, d>| and <w, d>^2 / 2, each over its norm over all units (w: all
        numbers of a unit, d: the optimizer's direction); the lowest are multiplied by (D-t-1)/(D-t), t = 1 ... D-1
    Args:
        sparsity: share of the units (channels, neurons, heads) that go.
        start: steps of plain training before the first are chosen.
        steps: steps from the first choice until the last unit is zero; train on after that.
        periods: how often units are chosen, an equal part each time. More periods ask more often what matters.
        variant: torch's optimizer to train by, where none is given.
        lr: its learning rate.
        momentum: that of sgd.
        weight_decay: its weight decay; by default 0.01 for adamw and none for the others.
        scope: rank the units of all layers together, or take the same share of each layer. Layers of a transformers
            model are then equally wide, which its config can say, so that it is saved and loaded as any other.
        divisible: the number of units that stay in a layer is rounded up to a multiple of this; layers of no more
            units than that stay whole.
        skip: names of groups that stay whole, with wildcards and commas, such as ``*.heads,conv1``.
        partly: go on where a part of the network cannot be followed; what that part touches stays whole.
        seed: of the random numbers on which it is proved what can be cut out.
    Returns: a torch.optim.Optimizer. ``step()`` as ever; ``progress`` and ``layers`` tell where it is; ``smaller()`` gives the
        small network once ``done``; ``state_dict()`` resumes to the same bits.
    Example:
        optimizer = nett.weights.hesso(model, inputs[:2], sparsity=0.5, start=200, steps=1000, periods=10, lr=1e-3)
        for x, y in batches:
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
        small = optimizer.smaller()
    When to use: you train or fine-tune anyway, and want a dense network with fewer channels, neurons or heads.
    When not: no training is possible: the kernels of this room prune without. Networks that torch.fx cannot follow and
        transformers does not know are refused. With its own optimizer, give ``optimizer``; variant, lr, momentum and
        weight_decay are then its own.
    Cost: one copy of the weights while units are chosen; some small operations a step.
    Guarantee: units, and that cutting zeroed ones out changes nothing, are proved on the network's code before the first
        step; the smaller network is tried on the example.
    Source: P21, arXiv:2409.09085 (HESSO). What is zeroed of a unit is what makes it and belongs to it; also
        what reads it where a zero would not stay one. Floors hold within the one ranking, so the number is exact.
    """
    from nett.core.structure import structure_of
    from nett.weights.training.base import base_optimizer
    from nett.weights.training.hesso_optimizer import Hesso

    structure = structure_of(model, example, partly=partly, skip=skip, seed=seed)
    base = base_optimizer(model, optimizer, variant, lr, momentum, weight_decay)
    settings = {
        "sparsity": sparsity, "start": start, "steps": steps, "periods": periods, "scope": scope, "divisible": divisible,
    }  # fmt: skip
    return Hesso(model, structure, base, settings)
