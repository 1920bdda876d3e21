"""What a text tells of a mixture: the statistics that methods ask for by name, taken while the original model runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

from nett.core.errors import Refused
from nett.core.expert_modules import Mixture
from nett.experts.protocol import STATISTICS, Tensor

INPUTS = 1024  # tokens whose inputs are kept, at most


@final
class Statistics:
    """Of one mixture, added up batch by batch. ``tokens``: of the whole text, so that ``inputs`` are spread over it."""

    def __init__(self, experts: int, hidden: int, wanted: Collection[str], tokens: int) -> None:
        import torch

        unknown = set(wanted) - set(STATISTICS)
        if unknown:
            raise KeyError(f"no statistics are called {sorted(unknown)}")
        self.wanted, self.experts = frozenset(wanted), experts
        self._seen, self._stride = 0, max(1, -(-tokens // INPUTS))
        size: dict[str, tuple[int, ...]] = dict.fromkeys(
            ("coactive", "logit_products", "output_products"), (experts, experts)
        )
        size["outputs"] = (experts, hidden)
        whole = {"counts", "coactive"}
        self._sums: dict[str, Tensor] = {
            name: torch.zeros(size.get(name, (experts,)), dtype=torch.int64 if name in whole else torch.float64)
            for name in {*self.wanted, "counts"} - {"inputs"}
        }
        self._inputs: list[Tensor] = []

    def add_choice(self, mixture: Mixture, hidden: Tensor, index: Tensor, weights: Tensor) -> None:
        """Some tokens' inputs [T, H], the experts that they chose [T, k] and with which weights."""
        import torch

        hidden, index = hidden.reshape(-1, hidden.shape[-1]), index.reshape(-1, index.shape[-1])
        weights = weights.reshape(index.shape).double()
        sums, flat = self._sums, index.reshape(-1)
        sums["counts"] += torch.bincount(flat, minlength=self.experts).cpu()
        if "mass" in sums:
            sums["mass"].index_add_(0, flat.cpu(), weights.reshape(-1).cpu())
        if "coactive" in sums:
            chosen = torch.zeros((len(index), self.experts), dtype=torch.float32, device=index.device)
            chosen.scatter_(1, index, 1.0)
            sums["coactive"] += (chosen.T @ chosen).round().long().cpu()
        if "contribution" in sums:
            for expert in torch.unique(flat).tolist():
                token, place = torch.where(index == expert)
                norms = output_of(mixture, expert, hidden[token]).double().norm(dim=-1)
                sums["contribution"][expert] += float((weights[token, place] * norms).sum())
        if {"outputs", "output_products"} & self.wanted:
            self._add_outputs(mixture, hidden)
        if "inputs" in self.wanted:
            first = -self._seen % self._stride
            self._inputs.append(hidden[first :: self._stride].float().cpu().clone())
        self._seen += len(hidden)

    def _add_outputs(self, mixture: Mixture, hidden: Tensor) -> None:
        import torch

        made = torch.stack([output_of(mixture, e, hidden).float() for e in range(self.experts)])  # [E, T, H]
        if "outputs" in self.wanted:
            self._sums["outputs"] += made.double().sum(1).cpu()
        if "output_products" in self.wanted:
            flat = made.flatten(1)
            self._sums["output_products"] += (flat @ flat.T).double().cpu()

    def add_logits(self, logits: Tensor) -> None:
        """The router's logits [T, E] of some tokens."""
        rows = logits.reshape(-1, self.experts).double()
        self._sums["logit_products"] += (rows.T @ rows).cpu()

    def result(self) -> dict[str, Tensor]:
        """Each statistic that was wanted, and ``counts``."""
        import torch

        found = dict(self._sums)
        for name in {"outputs", "output_products"} & self.wanted:
            found[name] = found[name] / max(1, self._seen)
        if "contribution" in found:
            found["contribution"] = found["contribution"] / found["counts"].clamp(min=1)
        if "inputs" in self.wanted:
            found["inputs"] = torch.cat(self._inputs)
        return found


def output_of(mixture: Mixture, expert: int, hidden: Tensor) -> Tensor:
    """What one expert makes of inputs [T, H], without the router's weight; by the model's own code."""
    import torch

    index = torch.full((len(hidden), 1), expert, dtype=torch.int64, device=hidden.device)
    with torch.no_grad():
        made: Tensor = mixture.experts.forward(hidden, index, hidden.new_ones((len(hidden), 1)))
    return made


@contextmanager
def watched(mixture: Mixture, into: Statistics) -> Iterator[None]:
    """While this lasts, all tokens that go through the mixture are added."""

    def chosen(module: Any, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        hidden, index, weights = (*given, *named.values())[:3]
        into.add_choice(mixture, hidden.detach(), index.detach(), weights.detach())

    def routed(module: Any, given: tuple[Any, ...], answer: Any) -> None:
        into.add_logits((answer[0] if isinstance(answer, tuple) else answer).detach())

    handles = [mixture.experts.register_forward_pre_hook(chosen, with_kwargs=True)]
    if "logit_products" in into.wanted:
        if mixture.router is None:
            raise Refused(f"the router of {mixture.name} is no module of its own, so its logits cannot be watched")
        handles.append(mixture.router.register_forward_hook(routed))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
