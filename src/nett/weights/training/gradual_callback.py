"""The callback of gradual magnitude pruning, for a plain loop and for transformers' Trainer (P24)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from nett.core.cubic import changes, cubic
from nett.core.errors import Refused, UsageError
from nett.weights.training.masking import prunable, smallest

FILE = "gradual.safetensors"  # in a Trainer's checkpoint


@final
class Gradual:
    """See :func:`nett.weights.gradual`. It hooks itself to an optimizer's steps: before one the gradients of pruned weights
    are zeroed, after it the weights are, and where the schedule says so more are pruned."""

    method = "weights/gradual"

    def __init__(self, model: torch.nn.Module, settings: Mapping[str, Any], skip: str) -> None:
        if not settings["initial"] <= settings["sparsity"]:
            raise UsageError(
                f"initial = {settings['initial']} is more than sparsity = {settings['sparsity']}: initial <= sparsity",
                where=self.method,
            )
        self.model, self.settings = model, dict(settings)
        self.weights = prunable(model, skip)
        self.masks: dict[str, Tensor] = {}  # none yet for a tensor that is whole
        self.steps = 0
        self._hooks: list[Any] = []

    # The schedule.
    @property
    def _when(self) -> dict[str, int]:
        return {k: self.settings[k] for k in ("start", "steps", "every")}

    def target(self, step: int) -> float:
        """The sparsity after a step, counted from 1."""
        s = self.settings
        if step < s["start"]:
            return 0.0
        return cubic(step, final=s["sparsity"], initial=s["initial"], **self._when)

    @property
    def done(self) -> bool:
        """Whether the final sparsity was reached; masks rest from then on."""
        return bool(self.steps >= self.settings["start"] + self.settings["steps"])

    @property
    def progress(self) -> dict[str, Any]:
        """Steps taken, whether the final sparsity is reached, and the share of weights that is zero by a mask."""
        total = sum(p.numel() for p in self.weights.values())
        zero = sum(int((~m).sum()) for m in self.masks.values())
        return {"step": self.steps, "done": self.done, "weights": total, "zero": zero, "sparsity": zero / total}

    @property
    def layers(self) -> list[dict[str, Any]]:
        """Each pruned tensor: its name, how many weights it has and how many are zero by its mask."""
        return [
            {"weight": n, "weights": p.numel(), "zero": int((~self.masks[n]).sum()) if n in self.masks else 0}
            for n, p in self.weights.items()
        ]

    # What happens at a step.
    def attach(self, optimizer: torch.optim.Optimizer) -> Gradual:
        """Hook to an optimizer's steps; a wrapper's (accelerate's) inner one is taken, whose steps are real ones."""
        inner = getattr(optimizer, "optimizer", optimizer)
        if self._hooks:
            raise UsageError("it is attached to an optimizer already", where=self.method, hint="Call detach() first.")
        held = {id(p) for g in inner.param_groups for p in g["params"]}
        away = [n for n, p in self.weights.items() if id(p) not in held]
        if away:
            raise UsageError(
                f"the optimizer does not hold {len(away)} of the weights to prune, the first being {away[0]!r}",
                where=self.method,
                hint="Give it all of model.parameters(), or leave those out with skip=.",
            )
        self._hooks = [
            inner.register_step_pre_hook(lambda *_: self.before_step()),
            inner.register_step_post_hook(lambda *_: self.after_step()),
        ]
        if self.steps == 0 and self.settings["start"] == 0:
            self._prune()
        return self

    def detach(self) -> None:
        """Take the hooks off; weights keep their zeros, but nothing holds them there any more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @torch.no_grad()
    def before_step(self) -> None:
        """No update for what is pruned."""
        for name, mask in self.masks.items():
            gradient = self.weights[name].grad
            if gradient is not None:
                gradient.masked_fill_(~mask.to(gradient.device), 0)

    @torch.no_grad()
    def after_step(self) -> None:
        """Zeros stay zeros, whatever momentum and weight decay did; and more of them where it is time."""
        self.steps += 1
        self._zero()
        if changes(self.steps, **self._when):
            self._prune()

    @torch.no_grad()
    def _prune(self) -> None:
        """What is pruned already is zero, so it is among the smallest."""
        sparsity = self.target(self.steps)
        self.masks = {n: smallest(p, sparsity) for n, p in self.weights.items() if sparsity > 0}
        self._zero()

    def _zero(self) -> None:
        for name, mask in self.masks.items():
            weight = self.weights[name].detach()
            weight.masked_fill_(~mask.to(weight.device), 0)

    # Saved and resumed.
    def state_dict(self) -> dict[str, Any]:
        return {
            "method": self.method, "settings": dict(self.settings), "steps": self.steps,
            "masks": {n: m.clone() for n, m in self.masks.items()},
        }  # fmt: skip

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Refused for the state of other settings or of a model with other weights."""
        if state_dict.get("method") != self.method:
            raise Refused(f"this is no state of {self.method}", where="load_state_dict")
        for name, value in self.settings.items():
            if state_dict["settings"].get(name) != value:
                found = state_dict["settings"].get(name)
                raise Refused(f"the state was saved with {name} = {found}, this one has {value}", where=self.method)
        for name, mask in state_dict["masks"].items():
            if name not in self.weights or mask.shape != self.weights[name].shape:
                raise Refused(f"the state has a mask for {name!r}, which does not fit this model", where=self.method)
        self.steps = int(state_dict["steps"])
        self.masks = {n: m.bool().to(self.weights[n].device).clone() for n, m in state_dict["masks"].items()}

    def save(self, folder: str | Path) -> Path:
        """Write the state into a folder, as one small file: a byte a weight while masks are few, no pickle."""
        import json

        from safetensors.torch import save_file

        file = Path(folder) / FILE
        words = {"settings": json.dumps(self.settings, sort_keys=True), "steps": str(self.steps)}
        save_file({n: m.contiguous() for n, m in self.masks.items()}, file, metadata=words)
        return file

    def load(self, folder: str | Path) -> None:
        """The inverse of :meth:`save`."""
        import json

        from safetensors import safe_open

        file = Path(folder) / FILE
        if not file.is_file():
            raise Refused("the checkpoint has no masks", where=file, hint="It was saved without this callback.")
        with safe_open(file, "pt") as stored:
            words = stored.metadata()
            masks = {n: stored.get_tensor(n) for n in stored.keys()}  # noqa: SIM118
        state = {"method": self.method, "settings": json.loads(words["settings"]), "steps": int(words["steps"])}
        self.load_state_dict({**state, "masks": masks})

    def for_trainer(self) -> Any:
        """A callback for ``transformers.Trainer(callbacks=[…])``: attaches to its optimizer, writes the masks into each
        checkpoint and takes them up again from there."""
        from nett.weights.training.trainer_callback import GradualCallback

        return GradualCallback(self)
