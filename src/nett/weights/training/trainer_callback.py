"""Gradual pruning in transformers' Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from transformers import TrainerCallback

from nett.weights.training.gradual_callback import Gradual


@final
class GradualCallback(TrainerCallback):  # type: ignore[misc]
    """Carries a :class:`Gradual` through a training run; ``gradual`` is it."""

    def __init__(self, gradual: Gradual) -> None:
        self.gradual = gradual

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step > 0:
            given = args.resume_from_checkpoint
            own = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self.gradual.load(given if isinstance(given, str) and not own.is_dir() else own)
        self.gradual.attach(more["optimizer"])

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.gradual.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **more: Any) -> None:
        if logs is not None:
            logs["sparsity"] = self.gradual.progress["sparsity"]

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.gradual.detach()
