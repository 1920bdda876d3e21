"""How wide each group of a partial merge becomes: what can be widened, what it costs, what it gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import Refused, UsageError, did_you_mean
from nett.core.network import Network
from nett.core.symmetry import Group, Refusal, Symmetry
from nett.core.symmetry.fitting import fitted
from nett.core.symmetry.proving_widths import prove_widths
from nett.merge.features import layers_of, units_first
from nett.merge.partial import Partial, chosen_apart
from nett.merge.width_budget import best_ratios, terms_of, total, uniform_ratio, whole_units

SAMPLES = 512  # inputs on which the gain of a group is measured
HEAD = "head-2.safetensors"  # of the second network, where each has its own
MLP = "MLP neuron"
# What a config calls the number of MLP neurons, by the end of the name of a tensor that reads them.
_KEYS = {
    "mlp.down_proj.weight": "intermediate_size",
    "mlp.dense_4h_to_h.weight": "intermediate_size",
    "mlp.fc2.weight": "intermediate_size",
    "mlp.c_proj.weight": "n_inner",
    "output.dense.weight": "intermediate_size",
    "ffn.lin2.weight": "hidden_dim",
    ".fc2.weight": "ffn_dim",
}


def own_heads(one: Mapping[str, Array], two: Mapping[str, Array], symmetry: Symmetry, named: str) -> list[str]:
    """Tensors that each network keeps for itself: those of unlike shapes, and those of the named layers."""
    lacking = sorted(one.keys() ^ two.keys())
    if lacking:
        raise Refused(f"only one of the networks has the tensor {lacking[0]!r}")
    found = {n for n in one if one[n].shape != two[n].shape}
    for name in (n.strip() for n in named.split(",") if n.strip()):
        of_layer = [n for n in one if n == name or n.startswith(f"{name}.")]
        if not of_layer:
            layers = {n.rpartition(".")[0] for n in one}
            raise UsageError(f"heads: there is no layer {name!r}.{did_you_mean(name, layers)}")
        found.update(of_layer)
    for group in symmetry.groups:
        for place in group.places:
            if place.tensor in found and place.role != "consumer":
                raise Refused(
                    f"tensor {place.tensor!r} makes the hidden units of group {group.name!r}, so it cannot differ between"
                    f" the networks ({list(one[place.tensor].shape)} and {list(two[place.tensor].shape)})",
                    hint="Only layers that make outputs can be kept for each network.",
                )
    return sorted(found)


def able(symmetry: Symmetry, network: Network | None) -> tuple[list[str], list[Refusal]]:
    """The groups that can be widened, and why the others cannot: one refusal for each reason."""
    if network is not None:
        proved, refused = prove_widths(symmetry, network.module, example(network))
        return [g.name for g in proved.groups], _by_reason(refused)
    names, refused = [], []
    for group in symmetry.groups:
        if group.unit == MLP and _key(group) is not None:
            names.append(group.name)
        else:
            refused.append(Refusal(group.name, f"config.json has no width of its own for it ({group.unit})"))
    return names, _by_reason(refused)


def _by_reason(refused: Sequence[Refusal]) -> list[Refusal]:
    reasons = dict.fromkeys(r.why for r in refused)
    return [Refusal(", ".join(r.name for r in refused if r.why == why), why) for why in reasons]


def example(network: Network) -> Any:
    """Two inputs, as the module takes them."""
    import torch

    x = network.inputs[:2]
    return torch.from_numpy(x.astype(np.float32) if x.dtype.kind == "f" else np.array(x))


def _key(group: Group) -> str | None:
    ends = [(end, key) for end, key in _KEYS.items() for p in group.having("consumer") if p.tensor.endswith(end)]
    return max(ends)[1] if ends and len({key for _, key in ends}) == 1 else (ends[0][1] if ends else None)


def config_of(symmetry: Symmetry, partial: Partial) -> dict[str, Any]:
    """Changes to config.json: the width that all MLPs have."""
    groups = [g for g in symmetry.groups if g.name in partial.apart]
    return {str(_key(g)): g.size + len(partial.apart[g.name]) for g in groups}


@final
class Plan:
    """What a partial merge of these groups costs."""

    def __init__(self, symmetry: Symmetry, able: Sequence[str], network: Network | None, of: str) -> None:
        self.symmetry, self.able, self.network, self.of = symmetry, list(able), network, of
        self.parameters = terms_of(symmetry, dict.fromkeys(symmetry.shapes, 1.0))
        positions = _positions(network, symmetry) if network is not None else {}
        matrices = {n: 1.0 for n, shape in symmetry.shapes.items() if len(shape) == 2}
        self.flops = terms_of(symmetry, {n: 2 * times for n, times in (positions or matrices).items()})
        self.terms = self.flops if of == "flops" else self.parameters

    def figures(self, apart: Mapping[str, Array]) -> dict[str, Any]:
        """Cost before (one network) and after; dense counts the zeros between the networks' own units."""
        ratios = {name: len(units) / self.symmetry.group(name).size for name, units in apart.items()}
        sizes = {g.name: g.size for g in self.symmetry.groups}
        found: dict[str, Any] = {"widths": {n: [size, size + len(apart.get(n, ()))] for n, size in sizes.items()}}
        for what, terms in (("flops", self.flops), ("parameters", self.parameters)):
            found[f"{what}_one_network"] = round(total(terms, {}))
            found[f"{what}_result"] = round(total(terms, ratios))
            found[f"{what}_result_dense"] = round(total(terms, ratios, dense=True))
        return found


def apart(
    plan: Plan,
    scores: Mapping[str, Array],
    one: Mapping[str, Array],
    two: Mapping[str, Array],
    own: Sequence[str],
    *,
    budget: float,
    ratio: float | None,
    widths: str | None,
    spread: str,
    statistics: bool,
) -> tuple[dict[str, Array], list[str]]:
    """Group -> the units kept apart, and what is to be said about it."""
    sizes = {name: plan.symmetry.group(name).size for name in plan.able}
    notes: list[str] = []
    if ratio is not None and widths is not None:
        raise UsageError("ratio and widths were both given", where="merge/pleas", hint="Give one of them.")
    if widths is not None:
        counts = _widths(widths, plan, sizes)
    elif ratio is not None:
        counts = {name: round(ratio * size) for name, size in sizes.items()}
    else:
        shares = _shares(plan, scores, one, two, own, budget, spread, statistics, notes)
        counts = {name: int(shares[name] * size + 1e-9) for name, size in sizes.items()}
    if plan.network is None and len(set(counts.values())) > 1:
        raise UsageError(f"config.json has one width for all MLPs, not {counts}", where="merge/pleas")
    return {name: chosen_apart(scores[name], count) for name, count in counts.items()}, notes


def _shares(
    plan: Plan,
    scores: Mapping[str, Array],
    one: Mapping[str, Array],
    two: Mapping[str, Array],
    own: Sequence[str],
    budget: float,
    spread: str,
    statistics: bool,
    notes: list[str],
) -> Mapping[str, float]:
    sizes = {n: plan.symmetry.group(n).size for n in plan.able}
    same = dict.fromkeys(plan.able, uniform_ratio(plan.terms, plan.able, budget))
    if not plan.able or budget == 1 or plan.network is None:
        if spread == "gain" and plan.able and budget > 1:
            notes.append("all groups get the same share: config.json has one width for all MLPs")
        return same
    if spread == "uniform":
        return whole_units(plan.terms, same, sizes, budget)
    gains = gains_of(plan, scores, one, two, own, statistics)
    if not any(g > 0 for g in gains.values()):
        notes.append("all groups get the same share: keeping any one of them apart brought the outputs no nearer")
        return whole_units(plan.terms, same, sizes, budget)
    return best_ratios(plan.terms, gains, sizes, budget)


def gains_of(
    plan: Plan,
    scores: Mapping[str, Array],
    one: Mapping[str, Array],
    two: Mapping[str, Array],
    own: Sequence[str],
    statistics: bool,
) -> dict[str, float]:
    """Group -> by how much its being kept apart, alone, brings the outputs nearer to the mean of both networks'.

    As a share of the targets' squares, on a few of the inputs; of networks with heads of their own, the sum of both.
    """
    assert plan.network is not None
    few = Network(plan.network.module, plan.network.inputs[:SAMPLES], batch=plan.network.batch)
    outputs = [few.outputs(m).astype(np.float64) for m in (one, two)]
    targets = outputs if own else [(outputs[0] + outputs[1]) / 2]

    def error(groups: Sequence[str]) -> float:
        everything = {name: np.arange(plan.symmetry.group(name).size) for name in groups}
        partial = Partial(plan.symmetry, everything, one, two)
        found = 0.0
        for k, target in enumerate(targets):
            tensors = partial.tensors(k, own) if own else partial.tensors()
            if statistics and few.norms:
                tensors = few.restated(tensors)
            made = outputs_of(few, tensors).astype(np.float64)
            found += float(np.sum((made - target) ** 2) / max(float(np.sum(target**2)), 1e-300))
        return found

    merged = error([])
    return {name: merged - error([name]) for name in plan.able}


def outputs_of(network: Network, tensors: Mapping[str, Array]) -> Array:
    """Outputs with tensors of other widths."""
    return Network(fitted(network.module, tensors), network.inputs, batch=network.batch).outputs(tensors)


def _widths(text: str, plan: Plan, sizes: Mapping[str, int]) -> dict[str, int]:
    counts = dict.fromkeys(sizes, 0)
    for part in (p.strip() for p in text.split(",") if p.strip()):
        name, equals, number = part.rpartition("=")
        if not equals or not number.strip().isdigit():
            raise UsageError(f"widths: {part!r} is not GROUP=N", where="merge/pleas")
        if name not in sizes:
            plan.symmetry.group(name)
            raise UsageError(
                f"widths: group {name!r} cannot be widened.{did_you_mean(name, sizes)}", where="merge/pleas"
            )
        size = sizes[name]
        if not size <= int(number) <= 2 * size:
            raise UsageError(
                f"widths: {name} = {number} is out of range: {size} (all merged) <= {name} <= {2 * size} (all apart)",
                where="merge/pleas",
            )
        counts[name] = int(number) - size
    return counts


def _positions(network: Network, symmetry: Symmetry) -> dict[str, float]:
    """Weight -> how often each of its entries is used for one input."""
    layers = layers_of(network.module)
    few = Network(network.module, network.inputs[:1])
    state = {n: t.detach().numpy() for n, t in network.module.state_dict().items() if t.is_floating_point()}
    taps = next(iter(few.taps(state, sorted(layers))))
    found = {}
    for name, layer in layers.items():
        if name in taps and f"{name}.weight" in symmetry.shapes:
            found[f"{name}.weight"] = float(units_first(layer, taps[name][1])[0].size)
    return found


def errors(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of the least squares: the mean over the layers, and each."""
    if not rows:
        return {}
    found: dict[str, Any] = {
        f"layer_error_{k}": float(np.mean([r[f"error_{k}"] for r in rows])) for k in ("before", "after")
    }
    return found | {"layers": [dict(r) for r in rows]}


def charts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The error of each layer before and after it was solved, for the report."""
    if not rows:
        return []
    labels = [r["layer"] + (f", network {r['network'] + 1}" if "network" in r else "") for r in rows]
    series = {k: [r[f"error_{k}"] for r in rows] for k in ("before", "after")}
    title, note = "Squared error of each layer", "as a share of its targets' squares; smaller is better"
    return [{"kind": "grouped_bars", "title": title, "note": note, "labels": labels, "series": series}]


def head_files(tensors: Sequence[Mapping[str, Array]], own: Sequence[str]) -> dict[str, bytes]:
    """The second network's head, for the same trunk; the first's is in the model."""
    if not own:
        return {}
    from safetensors.numpy import save

    return {HEAD: save({n: np.ascontiguousarray(tensors[1][n]) for n in own}, {"format": "pt"})}


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
