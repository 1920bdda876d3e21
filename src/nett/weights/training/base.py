"""An optimizer that trains by another one and takes units out on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nett.core.errors import ProofFailed, Refused, UsageError
from nett.core.structure import Structure, loads_from_config, outputs_of, removed, slices_of
from nett.core.structure.families import is_transformers
from nett.weights.training.scores import direction, overall, raw_scores

_TOLERANCE = 1e-5  # of the largest output, in float32


class StructuredOptimizer(torch.optim.Optimizer):
    """Abstract. Steps as ``base`` does, and after each step does what the method does to units (:meth:`_prune`).

    It shares ``param_groups`` and ``state`` with ``base``, so that schedulers and loops treat it as they would that one.
    ``step(closure)`` is torch's; ``step(loss=loss)`` passes a loss that the loop has already.
    """

    method = ""

    def __init__(self, model: Any, structure: Structure, base: torch.optim.Optimizer, settings: Mapping[str, Any]):
        super().__init__(base.param_groups, base.defaults)
        self.model, self.structure, self.base, self.settings = model, structure, base, dict(settings)
        self.param_groups, self.state = base.param_groups, base.state
        self.slices = slices_of(model, structure)
        self.steps = 0  # taken so far
        self.zero = [torch.zeros(s.size, dtype=torch.bool) for s in self.slices]  # units that are zero for good
        self.fading = [torch.zeros(s.size, dtype=torch.bool) for s in self.slices]  # on their way there
        self._ours = {p.name: p.parameter for s in self.slices for p in s.parts}
        held = {id(p) for g in base.param_groups for p in g["params"]}
        away = [name for name, p in self._ours.items() if id(p) not in held]
        if away:
            raise UsageError(
                f"the optimizer does not hold {len(away)} of the parameters that units lie in, the first being {away[0]!r}",
                where=self.method,
                hint="Give it model.parameters(), or leave those groups out with skip=.",
            )

    def step(self, closure: Callable[[], Any] | None = None, *, loss: Any = None) -> Any:
        """One step. Returns the loss, where it was told one."""
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.steps += 1
        with torch.no_grad():
            self._advance(None if loss is None else float(loss.detach() if isinstance(loss, Tensor) else loss))
        return loss

    def _advance(self, loss: float | None) -> None:
        raise NotImplementedError

    # What subclasses are made of.
    def _weights(self) -> dict[str, Tensor]:
        """Copies of the parameters that units lie in."""
        return {name: p.detach().clone() for name, p in self._ours.items()}

    def _scores(self, weights: Mapping[str, Tensor]) -> list[Tensor]:
        """``[units]`` a group, for these weights and the direction of the step that was just taken from them."""
        of = {id(p): group for group in self.param_groups for p in group["params"]}
        ways = {n: direction(self.base, p, of[id(p)]) for n, p in self._ours.items()}
        return overall([raw_scores(s, weights, ways) for s in self.slices])

    def _scale(self, masks: list[Tensor], factor: float) -> None:
        for one, mask in zip(self.slices, masks, strict=True):
            if bool(mask.any()):
                one.scale(mask.nonzero()[:, 0], factor)

    def _fade(self, t: int, duration: int) -> None:
        """The ``t``-th of ``duration`` steps on a straight line to zero; those that are zero stay so."""
        self._scale(self.fading, (duration - t - 1) / (duration - t))
        if t == duration - 1:
            self.zero = [z | f for z, f in zip(self.zero, self.fading, strict=True)]
            self.fading = [torch.zeros_like(f) for f in self.fading]
        self._scale(self.zero, 0.0)

    # What users see.
    @property
    def done(self) -> bool:
        """Whether all units that go are zero."""
        raise NotImplementedError

    @property
    def progress(self) -> dict[str, Any]:
        """Where it is: steps taken, units in all, units that are zero and that fade, and the share that is zero."""
        zero = sum(int(z.sum()) for z in self.zero)
        units = self.structure.size
        return {
            "step": self.steps, "done": self.done, "units": units, "zero": zero,
            "fading": sum(int(f.sum()) for f in self.fading), "sparsity": zero / units,
        }  # fmt: skip

    @property
    def layers(self) -> list[dict[str, Any]]:
        """Each group: its name, what its units are, how many it has and how many are zero."""
        return [
            {"group": s.name, "unit": s.unit, "units": s.size, "zero": int(z.sum())}
            for s, z in zip(self.slices, self.zero, strict=True)
        ]

    def smaller(self) -> Any:
        """The network without the units that are zero: a copy, with the same answers.

        With an example of the input it is tried on that, in evaluation mode; ProofFailed where it answers otherwise.
        A model of transformers says its widths in its config where that can say them (all layers alike); ``figures``
        holds what was seen.
        """
        if not self.done:
            raise Refused(
                f"after {self.steps} steps {self._missing()}, so there is no smaller network yet",
                where=self.method,
                hint="Train on, or start earlier and take fewer steps.",
            )
        kept = {s.name: (~z).nonzero()[:, 0].numpy() for s, z in zip(self.slices, self.zero, strict=True)}
        made = removed(self.model, self.structure.groups, kept)
        self.figures: dict[str, Any] = {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "parameters_smaller": sum(p.numel() for p in made.parameters()),
        }
        if self.structure.example is not None:
            self.figures["difference"] = self._difference(made)
        if is_transformers(made):
            self.figures["config"] = loads_from_config(made) or "says the widths"
        return made

    def _missing(self) -> str:
        return "not all units that go are zero"

    def _difference(self, made: Any) -> float:
        """The largest difference of the outputs on the example; ProofFailed where that is more than rounding."""
        example = _to(self.structure.example, next(self.model.parameters()).device)
        training = self.model.training
        self.model.eval()
        try:
            before = outputs_of(self.model, example)
        finally:
            self.model.train(training)
        after = outputs_of(made.eval(), example)
        made.train(training)
        change = max((float(abs(a - b).max()) for a, b in zip(before, after, strict=True) if a.size), default=0.0)
        largest = max((float(abs(b).max()) for b in before if b.size), default=0.0)
        if not change <= _TOLERANCE * max(1.0, largest):
            raise ProofFailed(f"the smaller network's answers differ by {change:.1e}", where=self.method)
        return change

    # Saved and resumed to the same bits.
    def state_dict(self) -> dict[str, Any]:
        """That of the optimizer it trains by, and under ``nett`` its own: tensors and plain numbers."""
        names = [s.name for s in self.slices]
        own = {"method": self.method, "settings": self.settings, "steps": self.steps}
        masks = {k: dict(zip(names, v, strict=True)) for k, v in (("zero", self.zero), ("fading", self.fading))}
        return {**self.base.state_dict(), "nett": {**own, **masks, **self._more()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refused for the state of another method, of other settings or of a network with other units."""
        found = state_dict.get("nett")
        if not isinstance(found, dict) or found.get("method") != self.method:
            what = found.get("method") if isinstance(found, dict) else "a plain optimizer"
            raise Refused(f"this is the state of {what}, not of {self.method}", where="load_state_dict")
        for name, value in self.settings.items():
            if found["settings"].get(name) != value:
                raise Refused(
                    f"the state was saved with {name} = {found['settings'].get(name)}, this one has {value}",
                    where=self.method,
                )
        if {n: len(m) for n, m in found["zero"].items()} != {s.name: s.size for s in self.slices}:
            raise Refused("the state was saved for a network with other units", where=self.method)
        self.base.load_state_dict({k: v for k, v in state_dict.items() if k != "nett"})
        self.param_groups, self.state = self.base.param_groups, self.base.state
        self.steps = int(found["steps"])
        self.zero, self.fading = ([found[k][s.name].cpu().clone() for s in self.slices] for k in ("zero", "fading"))
        self._resume(found)

    def _more(self) -> dict[str, Any]:
        return {}

    def _resume(self, found: Mapping[str, Any]) -> None:
        pass


def base_optimizer(
    model: Any, optimizer: torch.optim.Optimizer | None, variant: str, lr: float, momentum: float, decay: float | None
) -> torch.optim.Optimizer:
    """The user's own, or one of torch's three on all parameters that train."""
    if optimizer is not None:
        return optimizer
    parameters = [p for p in model.parameters() if p.requires_grad]
    if variant == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=decay or 0.0)
    if variant == "adam":
        return torch.optim.Adam(parameters, lr=lr, weight_decay=decay or 0.0)
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-2 if decay is None else decay)


def _to(example: Any, device: Any) -> Any:
    if isinstance(example, Mapping):
        return {k: _to(v, device) for k, v in example.items()}
    if isinstance(example, tuple):
        return tuple(_to(v, device) for v in example)
    return example.to(device) if isinstance(example, Tensor) else example
