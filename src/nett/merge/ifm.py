"""Iterative Feature Merging (P38): equal features inside one network become one."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Annotated, Any, Literal

import numpy as np

from nett.core.checkpoint.json_text import text_part
from nett.core.dtypes import Array
from nett.core.errors import Refused
from nett.core.network import Network
from nett.core.registry import Between, method
from nett.core.symmetry import Symmetry, proved_symmetry
from nett.core.symmetry.fitting import fitted
from nett.core.symmetry.folding import folds_of
from nett.core.symmetry.merging import NEURON, mergeable, told
from nett.core.symmetry.widths import resized
from nett.merge.complexity import complexity_charts, complexity_files
from nett.merge.feature_weights import Features, features, merging_map
from nett.merge.whole import Whole

SWEEP = (0.001, 0.01, 0.03, 0.05, 0.07, 0.1, 0.12, 0.14, 0.15, 0.18, 0.2, 0.22, 0.24, 0.25, 0.26, 0.28, 0.3)
WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "hidden_dim")


@method(
    papers=["P38"],
    title="Iterative Feature Merging",
    grain="model",
    needs=["symmetry"],
    extra="models",
    resizes=True,
    identity={"beta": 0.0},
)
def ifm(
    model: Mapping[str, Array],
    symmetry: Symmetry,
    network: Network | None = None,
    *,
    beta: Annotated[float, Between(0, 1)] = 0.1,
    max_ratio: Annotated[float, Between(0, 1)] = 1.0,
    distance: Literal["ward", "paper"] = "ward",
    match: Literal["joint", "producers"] = "joint",
    normalize: bool = False,
    report: bool = True,
) -> Whole:
    """Merge the units of each layer whose weights are alike, the closest pair first, without data.

    Formula: while min d(i, j) <= beta * max d(i, j) within a group:  w_in = (c_i w_in_i + c_j w_in_j) / (c_i + c_j),
             w_out = w_out_i + w_out_j;  d = 2 c_i c_j / (c_i + c_j) |w_i - w_j|^2, w the means of both kinds (ward)
    Args:
        beta: a pair merges while its squared distance is at most this share of the largest in its layer; 0 merges only
            units that are exactly equal, 1 merges until max_ratio.
        max_ratio: the largest share of a layer's units that goes.
        distance: between clusters of units: what merging them adds to the squared error (ward), or that between their summed
            incoming and mean outgoing weights (paper), where a third copy of a unit is no longer equal to the first two.
        match: compare the weights that make a unit and those that read it (joint), or only the former (producers),
            which is all that equal features need.
        normalize: compare units up to a positive factor, where the activation allows it.
        report: add the layer-wise feature complexity, the share of units that remain, at many values of beta.
    When to use: a network that is wider than its task needs, with no data at hand; as a measure of how much it repeats.
    When not: narrow networks, which have no units to spare: a CIFAR-10 ResNet-20 (16 to 64 channels) lost 15 points at nine
        tenths of its parameters (200 images, one draw). Data is at hand: pruning or distillation that looks at activations keeps more. Transformers' residual
        streams and attention heads: only their MLPs are merged.
    Guarantee: merging equal features does not change the function (each group is proved before it is used); what beta
        lets merge beyond that is measured.
    Cost: for a layer of n units up to three matrices of n x n float64 numbers, and O(n) to O(n^2) steps a merge: 3 s of one
        core for 4,096 units of 2,048 weights each, all merges. All tensors in memory.
    Source: P38; the authors' repository sums producers and averages consumers, which for equal features is the same
        function (see nett.merge.feature_tree). BatchNorm counts as folded into the layer before it. Layers are measured
        on the weights as given, so that one order of merges serves every beta; the repository measures again after
        each round. ward, normalize and match are ours.
    """
    symmetry.check(model)
    allowed = mergeable(symmetry)
    groups = allowed.symmetry.groups
    if not groups:
        said = "; ".join(told(allowed.symmetry.refused)) or "it has no hidden units"
        raise Refused(f"no units of this network may be merged: {said}")
    folds = folds_of(allowed.symmetry, model, allowed.epsilon)
    betas = sorted({*SWEEP, beta}) if report else [beta]
    found, notes = dict[str, Features](), told(allowed.symmetry.refused)
    for group in groups:
        free = normalize and group.name in allowed.scalable
        if normalize and not free:
            notes.append(
                f"{group.name}: units were compared as they are, since what they pass does not scale with them"
            )
        most = None if report else ceil(max_ratio * group.size)
        found[group.name] = features(
            group, model, folds, beta=betas[-1], distance=distance, match=match, normalize=free, most=most
        )  # fmt: skip
    merges = {name: f.tree.merges(beta, max_ratio) for name, f in found.items()}
    config = _evened(merges, allowed.symmetry, notes)
    maps = {
        g.name: merging_map(g, found[g.name], merges[g.name], model, folds) for g in groups if merges[g.name]
    }  # fmt: skip
    after, tensors = resized(allowed.symmetry, model, maps)
    tensors = {n: np.array(t) if t is model.get(n) else t for n, t in tensors.items()}
    remaining = {g.name: g.size for g in after.groups}
    figures: dict[str, Any] = {
        "parameters_before": sum(t.size for t in model.values()),
        "parameters_after": sum(t.size for t in tensors.values()),
        "units_before": sum(f.tree.size for f in found.values()),
        "units_after": sum(remaining.values()),
    }
    figures |= _on_data(network, model, tensors)
    trees = [f.tree for f in found.values()]
    files = complexity_files(trees, betas, remaining) if report else {}
    charts = complexity_charts(trees, betas, beta, remaining) if report else []
    return Whole(tensors, figures, files=files, config=config, notes=notes, charts=charts)


def merged_module(module: Any, example: Any, **parameters: Any) -> tuple[Any, Whole]:
    """A copy of a torch module with its equal features merged, which runs with its new widths; and what was found.

    Args:
        example: what the module is called with: a tensor, or a tuple of arguments.
        parameters: those of :func:`ifm`.
    """
    stored = module.state_dict()
    symmetry, _ = proved_symmetry({n: tuple(t.shape) for n, t in stored.items()}, module=module, example=example)
    arrays = {n: _array(t) for n, t in stored.items() if t.is_floating_point()}
    found: Whole = ifm(arrays, symmetry.only(arrays), **parameters)
    return fitted(module, found.tensors), found


def _array(tensor: Any) -> Array:
    """float64 stays; narrower floats become float32, which holds them exactly."""
    import torch

    wide = tensor.dtype == torch.float64
    return np.asarray(tensor.detach().cpu().to(torch.float64 if wide else torch.float32).numpy())


def _evened(merges: dict[str, int], symmetry: Symmetry, notes: list[str]) -> dict[str, Any]:
    """Transformers' layers have one MLP width: each merges as often as the layer that merges least. In place; returns
    the change to the config."""
    neurons = [g for g in symmetry.groups if g.unit == NEURON]
    if not neurons:
        return {}
    least = min(neurons, key=lambda g: merges[g.name])
    fewest = merges[least.name]
    most = max(merges[g.name] for g in neurons)
    if most > fewest:
        notes.append(
            f"all layers keep {least.size - fewest:,} MLP neurons, as {least.name} does, since the config has one width for all;"
            f" by itself one layer would keep {least.size - most:,}"
        )
    for group in neurons:
        merges[group.name] = fewest
    config = symmetry.origin.config if symmetry.origin is not None else None
    return _with_width(config, least.size, least.size - fewest) if config and fewest else {}


def _with_width(config: Mapping[str, Any], before: int, after: int) -> dict[str, Any]:
    """The change to ``config.json`` that says the new width of the MLPs."""
    text = text_part(dict(config))
    key = next((k for k in WIDTHS if text.get(k) == before), None)
    if key is None and "n_embd" in text and text.get("n_inner") is None:
        key = "n_inner"  # unset, it is four times the model's width
    if key is None:
        raise Refused(f"config.json does not say that the MLPs have {before:,} neurons (in {', '.join(WIDTHS)})")
    if text.get(key) == config.get(key):
        return {key: after}
    part = next(k for k, v in config.items() if v == text)
    return {part: {**text, key: after}}


def _on_data(network: Network | None, before: Mapping[str, Array], after: Mapping[str, Array]) -> dict[str, Any]:
    """On the data that the user gave: how often the answer changed, and accuracy where there are labels."""
    if network is None:
        return {}
    narrow = Network(fitted(network.module, after), network.inputs, network.labels, batch=network.batch)
    one, other = network.outputs(before), narrow.outputs(after)
    found: dict[str, Any] = {
        "inputs": len(one),
        "output_change": float(np.max(np.abs(one - other)) / max(float(np.max(np.abs(one))), 1e-30)),
    }
    if one.ndim == 2:
        found["flips"] = float(np.mean(one.argmax(1) != other.argmax(1)))
    if network.labels is not None and one.ndim == 2:
        found["accuracy_before"] = float(np.mean(one.argmax(1) == network.labels))
        found["accuracy_after"] = float(np.mean(other.argmax(1) == network.labels))
    return found
