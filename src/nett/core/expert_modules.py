"""The mixtures of experts inside a model of transformers, known by their shape and not by their family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final


@final
@dataclass(frozen=True)
class Mixture:
    """One mixture: ``name`` of its module (``model.layers.0.mlp``), the experts (called with hidden states ``[tokens,
    width]``, chosen experts and their weights ``[tokens, k]``), and the router (whose answer begins with its logits
    ``[tokens, experts]``); None where no module beside the experts has a row for each of them."""

    name: str
    experts: Any
    router: Any

    @property
    def count(self) -> int:
        """Experts that are stored."""
        return int(next(p.shape[0] for p in self.experts.parameters(recurse=False) if p.dim() == 3))


def mixtures(model: Any) -> list[Mixture]:
    """All mixtures of a model (or block), in the order of its modules: modules that hold three-dimensional parameters and
    a ``num_experts``."""
    found = []
    for name, module in model.named_modules():
        if not hasattr(module, "num_experts") or not any(p.dim() == 3 for p in module.parameters(recurse=False)):
            continue
        outer = name.rpartition(".")[0]
        around = model.get_submodule(outer) if outer else model
        routers = [
            m
            for m in around.children()
            if m is not module and getattr(m, "weight", None) is not None and hasattr(m, "top_k")
        ]
        found.append(Mixture(outer, module, routers[0] if len(routers) == 1 else None))
    return found
