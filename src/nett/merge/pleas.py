"""PLeaS (P16): two networks merged where their units agree, kept apart where they do not, and solved for anew."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import UsageError
from nett.core.network import Network, noise_for
from nett.core.registry import Between, method
from nett.core.symmetry import Symmetry, proved_symmetry
from nett.core.symmetry.fitting import fitted
from nett.merge import widening
from nett.merge.features import products, weight_scores
from nett.merge.layer_squares import GRAM_BYTES, layers_to_solve, solve
from nett.merge.matching import matched
from nett.merge.partial import Partial, shaped_as
from nett.merge.whole import Whole

RECORD = "pleas.json"
MODELS = 2  # how many it takes


@final
@dataclass(frozen=True)
class Merged:
    """modules: the result as torch modules, one for each head. whole: tensors, figures, notes and files."""

    modules: tuple[Any, ...]
    whole: Whole


@method(
    papers=["P16"],
    title="PLeaS: partial matching and layer-wise least squares",
    grain="model",
    needs=["symmetry"],
    extra="models",
    identity={},
    resizes=True,
)
def pleas(
    models: Sequence[Mapping[str, Array]],
    symmetry: Symmetry,
    network: Network | None = None,
    noise: Network | None = None,
    *,
    budget: Annotated[float, Between(1, 2)] = 1.55,
    of: Literal["flops", "parameters"] = "flops",
    spread: Literal["gain", "uniform"] = "gain",
    ratio: Annotated[float | None, Between(0, 1)] = None,
    widths: str | None = None,
    match: Literal["activations", "weights"] = "activations",
    score: Literal["distance", "inner"] = "distance",
    squares: bool = True,
    ridge: Annotated[float, Between(0, 1)] = 1e-6,
    statistics: bool = True,
    heads: str = "",
    sweeps: Annotated[int, Between(1, 10000)] = 100,
    seed: Annotated[int, Between(0)] = 0,
) -> Whole:
    """Match the hidden units of two networks, merge the pairs that are most alike, keep the others apart in wider layers, and solve for the weights layer by layer.

    Formula: W = argmin |W z - y|^2 for every layer, z and y the inputs and outputs of that layer in both networks: means
             where a unit is merged, each network's own where it is kept apart; units of one network never read the other's
    Args:
        budget: cost of the result in networks: 1 merges all, 2 keeps all apart (the mean of both networks' outputs).
        of: what the budget counts. Zeros between the networks' own units are not counted; the receipt says both.
        spread: which groups get the budget: those whose merging moves the outputs most from the networks' mean, or all alike.
        ratio: share of every group's units that is kept apart, in place of the budget.
        widths: widths as GROUP=N,GROUP=N in place of the budget; groups that are not named are merged whole.
        match: what decides which units go together: what they do on the data, or their weights.
        score: how pairs are ranked: by distance, or by inner product.
        squares: solve for the weights; else they stay averages.
        ridge: weight of staying near those averages, as a share of the inputs' mean square.
        statistics: estimate BatchNorm's running statistics anew, where anything was merged and --data is given.
        heads: layers that each network keeps for itself, comma-separated; those of unlike shapes are kept anyway.
        sweeps: most sweeps over all groups (match by weights).
        seed: order of the groups (match by weights), and random inputs where no data are given.
    When to use: two networks of one architecture from different starting points or for different tasks, and room for
        a result between one and two networks. Data need no labels; with --net and --input alone, noise is used.
    When not: fine-tunes of one base, which average as they are; networks whose widths the code fixes.
    Cost: two passes over the data for each GB of the layers' Gram matrices; both networks and the result in memory.
    Guarantee: each permuted network is the same function, and groups are widened only where doubled units proved to be
        the same function too; the result is measured.
    Source: P16, sections 3 and 4; in closed form, with the averages as the ridge's centre.
    """
    if len(models) == 1:
        return Whole({n: np.array(t) for n, t in models[0].items()})
    if len(models) != MODELS:
        raise UsageError(f"takes two models, {len(models)} were given", where="merge/pleas")
    one, two = models
    notes: list[str] = []
    symmetry = symmetry.only(one)
    own = widening.own_heads(one, two, symmetry, heads)
    probe = network if network is not None else noise  # what the layers' inputs and outputs are taken from
    if probe is not None and network is None:
        notes.append("no data were given: units are matched and weights solved for on random input")
    if match == "activations" and probe is None:
        match = "weights"
        notes.append("units are matched by their weights: activations need --net")
    trunk = symmetry.only(n for n in one if n not in own)
    orders = {}
    found = {}
    if match == "activations" and probe is not None:
        found = products(probe, one, two, symmetry)
        orders = {name: p.order() for name, p in found.items()}
    if len(found) < len(symmetry.groups):
        by_weights = matched([_without(m, own) for m in models], trunk, sweeps=sweeps, seed=seed).orders[1]
        orders = by_weights | orders
        if match == "activations":
            left = [g.name for g in symmetry.groups if g.name not in found]
            notes.append(f"matched by weights, since no layer takes or gives their units: {widening.some(left)}")
    two = shaped_as(symmetry, two).apply(two, orders)
    scores = {
        g.name: found[g.name].scores(orders[g.name], score)
        if g.name in found
        else weight_scores(g, one, two, score, own)
        for g in symmetry.groups
    }
    able, refused = widening.able(symmetry, probe)
    notes += [f"merged whole: {r}" for r in refused]
    plan = widening.Plan(symmetry, able, probe, of)
    apart, said = widening.apart(
        plan,
        scores,
        one,
        two,
        own,
        budget=budget,
        ratio=ratio,
        widths=widths,
        spread=spread,
        statistics=statistics and network is not None,
    )
    notes += said
    partial = Partial(symmetry, apart, one, two)
    tensors = [partial.tensors(k, own) for k in (0, 1)] if own else [partial.tensors()]
    rows: list[dict[str, Any]] = []
    if squares and probe is not None:
        layers, left = layers_to_solve(probe, partial, own)
        made, rows = solve(probe, layers, one, two, tensors, ridge)
        tensors = [t | m for t, m in zip(tensors, made, strict=True)]
        notes += [f"not solved for, left as averages: {widening.some(left)}"] if left else []
    elif squares:
        notes.append("nothing is solved for: that needs --net")
    merged_any = any(len(apart.get(g.name, ())) < g.size for g in symmetry.groups)
    if statistics and network is not None and network.norms and merged_any:
        tensors = [network.restated(t) for t in tensors]
        notes.append(f"the statistics of {len(network.norms)} BatchNorm layers were estimated anew")
    elif merged_any and any(n.endswith("running_var") for n in one):
        notes.append("BatchNorm's statistics are averages of both networks'; with --data they are estimated anew")
    figures = plan.figures(apart) | widening.errors(rows)
    return Whole(
        tensors[0],
        figures,
        files={RECORD: _record(partial, orders, rows), **widening.head_files(tensors, own)},
        config=widening.config_of(symmetry, partial) if probe is None else {},
        notes=notes,
        charts=widening.charts(rows),
    )


def merged_modules(one: Any, two: Any, inputs: Any = None, *, example: Any = None, **parameters: Any) -> Merged:
    """Two torch modules of one architecture as one with new widths, which runs; a second for the second head, if any.

    Args:
        inputs: ``[N, …]``, an array or a tensor: what the units are matched and the weights solved for on.
        example: without inputs, a tensor of the shape of the module's input; noise is used then.
        parameters: those of :func:`pleas`.
    """
    import torch

    models = [{n: _array(t) for n, t in m.state_dict().items() if t.is_floating_point()} for m in (one, two)]
    given = None if inputs is None else np.asarray(inputs.detach().cpu() if hasattr(inputs, "detach") else inputs)
    if given is None and example is None:
        raise UsageError("needs inputs, or an example of one", where="merge/pleas")
    if given is not None:
        kind = models[0][min(models[0])].dtype if given.dtype.kind == "f" else given.dtype
        example = torch.from_numpy(np.array(given[:2], kind))
    shapes = {n: tuple(t.shape) for n, t in one.state_dict().items()}
    symmetry, _ = proved_symmetry(shapes, module=one, example=example)
    networks = (Network(one, given), None) if given is not None else (None, noise_for(one, example.shape))
    found: Whole = pleas(models, symmetry, *networks, **parameters)
    modules = [fitted(one, found.tensors)]
    if widening.HEAD in found.files:
        from safetensors.numpy import load

        modules.append(fitted(two, {**found.tensors, **load(found.files[widening.HEAD])}))
    return Merged(tuple(modules), found)


def _array(tensor: Any) -> Array:
    return np.asarray((tensor if tensor.itemsize > 2 else tensor.float()).detach().cpu().numpy())


def memory(symmetry: Symmetry, parameters: Mapping[str, Any]) -> int:
    """Bytes beside the networks at the most: the result in float64, and the sums of the layers of one pass."""
    wide = sum(8 * 4 * int(np.prod(shape)) for shape in symmetry.shapes.values())
    if not parameters["squares"]:
        return wide
    sums = []
    for shape in (s for s in symmetry.shapes.values() if len(s) > 1):
        columns = 2 * int(np.prod(shape[1:])) + 1
        sums.append(8 * columns * (columns + 2 * shape[0]))
    largest = max(sums, default=0)
    return wide + max(largest, min(sum(sums), GRAM_BYTES)) + 4 * largest


def _without(model: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    return {n: t for n, t in model.items() if n not in names}


def _record(partial: Partial, orders: Mapping[str, Array], rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Everything that says how the result was made, as JSON."""
    widths = {g.name: [g.size, g.size + len(partial.apart.get(g.name, ()))] for g in partial.old.groups}
    record = {
        "widths": widths,
        "apart": {name: units.tolist() for name, units in partial.apart.items()},
        "orders": {name: np.asarray(order).tolist() for name, order in orders.items()},
        "layers": list(rows),
    }
    return json.dumps(record).encode()
