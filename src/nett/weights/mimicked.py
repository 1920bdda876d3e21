"""A torch module with thin layers in place of its linear layers and embeddings, by what they give on calibration data (P78)."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, final

from nett.core.errors import NettError, UsageError
from nett.core.moments import Moments
from nett.weights.afm import afm, components, even, rank_for
from nett.weights.protocol import Factors

WHERE = "weights/afm"


@final
@dataclass(frozen=True)
class Thinned:
    """One layer: numbers before and after, the rank kept, and why it stayed where it did (rank None).

    error: the share of the variance of its outputs on the calibration data that the rank leaves out.
    """

    name: str
    kind: str
    before: int
    after: int
    rank: int | None
    error: float
    kept_because: str = ""


@final
@dataclass(frozen=True)
class Mimicked:
    """model: a copy with thin layers. layers: every linear layer and embedding."""

    model: Any
    layers: Sequence[Thinned]


def mimicked(
    model: Any,
    batches: Iterable[Any],
    *,
    energy: float = 0.99,
    share: float | None = None,
    rank: int | None = None,
    linears: bool = True,
    embeddings: bool = True,
    skip: Sequence[str] = (),
) -> Mimicked:
    """A copy of a torch module in which each linear layer is two thin ones, and each embedding a thin one and a linear layer.

    Args:
        model: run in evaluation mode; not changed.
        batches: calibration inputs: tensors, tuples of arguments or dictionaries of them. Rows of embeddings count as
            often as they are looked up here.
        energy, share, rank: how many directions stay; see ``nett show weights/afm``.
        linears, embeddings: which kinds are thinned.
        skip: names, or patterns with ``*``, of layers that stay.
    Layers stay where two hold no fewer numbers than one, where their weights are shared with another layer, where no
    input reached them, and embeddings that rescale their rows. Memory: a Gram matrix [in, in] for each linear layer.
    """
    import torch

    made = copy.deepcopy(model).eval()
    uses = Counter(id(m.weight) for m in made.modules() if isinstance(getattr(m, "weight", None), torch.nn.Parameter))
    chosen = {
        name: module
        for name, module in made.named_modules()
        if (linears and type(module) is torch.nn.Linear) or (embeddings and type(module) is torch.nn.Embedding)
        if not any(fnmatch(name, pattern) for pattern in skip)
    }
    if not chosen:
        raise UsageError("the module has no linear layer or embedding that may be made thin", where=WHERE)
    seen, first = _seen(made, chosen, batches)
    layers, places = [], {module: name for name, module in chosen.items()}
    how: Mapping[str, Any] = {"energy": energy, "share": share, "rank": rank}
    thin: dict[Any, Any] = {}
    for name, module in chosen.items():
        kind = "linear" if type(module) is torch.nn.Linear else "embedding"
        before = sum(p.numel() for p in module.parameters())
        reason = _reason(module, uses, seen[name])
        if not reason:
            found, kept, error = (_linear if kind == "linear" else _embedding)(module, seen[name], how)
            after = sum(p.numel() for p in found.parameters()) if found is not None else before
            if after < before:
                thin[module] = found.train(model.training)
                layers.append(Thinned(name, kind, before, after, kept, error))
                continue
            reason = "as many directions as that would not be smaller"
        layers.append(Thinned(name, kind, before, before, None, 0.0, reason))
    for parent in list(made.modules()):
        for child, module in list(parent._modules.items()):
            if module in thin and module in places:
                parent._modules[child] = thin[module]
    if made in thin:
        made = thin[made]
    _check_runs(made.eval(), first, [layer.name for layer in layers if layer.rank is not None])
    return Mimicked(made.train(model.training), layers)


def _seen(model: Any, chosen: Mapping[str, Any], batches: Iterable[Any]) -> tuple[dict[str, Any], Any]:
    """Name -> moments of a linear layer's inputs, or how often each row of an embedding was looked up; the first batch."""
    import torch

    seen: dict[str, Any] = {}
    handles = []
    for name, module in chosen.items():
        device = module.weight.device
        if type(module) is torch.nn.Linear:
            moments = seen[name] = Moments(module.in_features, ("gram", "means"), device)
            handles.append(module.register_forward_pre_hook(lambda _, args, m=moments: m.add(args[0].float())))
        else:
            counts = seen[name] = torch.zeros(module.num_embeddings, dtype=torch.float64, device=device)
            handles.append(module.register_forward_pre_hook(lambda _, args, c=counts: _look_up(c, args[0])))
    first: Any = None
    try:
        with torch.no_grad():
            for batch in batches:
                first = batch if first is None else first
                _run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    if first is None:
        raise UsageError("there are no calibration inputs", where=WHERE)
    return seen, first


def _run(model: Any, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, tuple | list):
        model(*batch)
    else:
        model(batch)


def _check_runs(model: Any, batch: Any, thin: Sequence[str]) -> None:
    """NettError where the module's code looks into a layer that is thin now."""
    import torch

    try:
        with torch.no_grad():
            _run(model, batch)
    except AttributeError as error:
        raise NettError(
            f"the module does not run with thin layers: {error}. Its code reads the weights of a layer itself",
            where=WHERE,
            hint=f"Name that layer in skip; made thin were {', '.join(thin)}.",
        ) from error


def _look_up(counts: Any, rows: Any) -> None:
    counts += rows.reshape(-1).bincount(minlength=len(counts))


def _reason(module: Any, uses: Mapping[int, int], seen: Any) -> str:
    if uses[id(module.weight)] > 1:
        return "shares its weights with another layer"
    if not (seen.rows if isinstance(seen, Moments) else float(seen.sum())):
        return "no calibration input reached it"
    return "rescales its rows" if getattr(module, "max_norm", None) is not None else ""


def _linear(module: Any, moments: Moments, how: Mapping[str, Any]) -> tuple[Any, int, float]:
    import torch

    weight, bias = module.weight.detach(), module.bias.detach() if module.bias is not None else None
    gram, means = moments["gram"], moments["means"]
    try:
        found = afm(weight, bias, gram, means, centre="always", **how)
    except NettError as error:
        raise NettError(error.what, where=module) from error
    if not isinstance(found, Factors) or found.bias is None:
        return None, 0, 0.0
    kept = found.left.shape[1]
    wide, mean = weight.double(), means.double()
    varies = wide @ (gram.double() - torch.outer(mean, mean)) @ wide.T
    basis = found.left.double() / found.left.double().norm(dim=0).clamp(min=1e-30)
    held, total = ((basis.T @ varies) * basis.T).sum(), varies.trace()
    left_out = max(0.0, float(1 - held / total)) if float(total) > 0 else 0.0
    options = {"device": weight.device, "dtype": weight.dtype}
    first = torch.nn.Linear(module.in_features, kept, bias=False, **options)
    second = torch.nn.Linear(kept, module.out_features, **options)
    with torch.no_grad():
        first.weight.copy_(found.right)
        second.weight.copy_(found.left)
        second.bias.copy_(found.bias)
    return torch.nn.Sequential(first, second), kept, left_out


def _embedding(module: Any, counts: Any, how: Mapping[str, Any]) -> tuple[Any, int, float]:
    """Rows (D - mean) U_k and a linear layer U_k with the bias mean, evened out; mean and covariance over the lookups."""
    import torch

    table = module.weight.detach()
    often = counts / counts.sum()
    wide = table.double()
    mean = often @ wide
    apart = wide - mean
    values, vectors = components((apart * often.unsqueeze(1)).T @ apart)
    kept = rank_for(values, (table.shape[1], table.shape[0]), **how)
    left_out = float(values[kept:].sum() / values.sum()) if float(values.sum()) else 0.0
    if kept * sum(table.shape) + len(mean) >= table.numel():
        return None, kept, 0.0
    options = {"device": table.device, "dtype": table.dtype}
    rows = torch.nn.Embedding(
        len(table),
        kept,
        padding_idx=module.padding_idx,
        scale_grad_by_freq=module.scale_grad_by_freq,
        sparse=module.sparse,
        **options,
    )
    back = torch.nn.Linear(kept, table.shape[1], **options)
    left, right = even(vectors[:, :kept], (apart @ vectors[:, :kept]).T)
    with torch.no_grad():
        rows.weight.copy_(right.T)
        back.weight.copy_(left)
        back.bias.copy_(mean)
    return torch.nn.Sequential(rows, back), kept, left_out
