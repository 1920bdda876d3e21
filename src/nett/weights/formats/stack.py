"""A container that is read at any budget: blocks of all layers, in the order in which they are worth their bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from nett.core.blocks import Linear, Skeleton
from nett.core.checkpoint import Checkpoint, open_checkpoint
from nett.core.dtypes import Dtype
from nett.core.errors import Refused
from nett.core.progress import report
from nett.weights.formats.base import Arranged, Format, Run, Written
from nett.weights.protocol import Answer, Signs, Stack, Tensor
from nett.weights.sign_stack import NAME, STEM, Layer, Plan, StackCheckpoint, layers_of, open_stack


@final
class StackFormat(Format):
    """See :mod:`nett.weights.sign_stack`; of one run."""

    name = "stack"
    stem = STEM

    def __init__(self) -> None:
        self._plan: Plan | None = None

    def tensors(self, linear: Linear, answer: Answer) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if not isinstance(answer, Stack):
            raise Refused("is no stack", where=linear.module)
        kind = {"rank": answer.terms[0].left.shape[1], "blocks": len(answer.terms), "errors": list(answer.errors)}
        layer = _layer(linear, kind)
        made = {layer.scale: answer.scale}
        for number, term in enumerate(answer.terms):
            made |= dict(zip(layer.names(number), (term.signs, term.left, term.right), strict=True))
        return made, kind

    def value(self, linear: Linear, tensors: Mapping[str, Tensor], kind: Mapping[str, Any]) -> Tensor:
        layer = _layer(linear, kind)
        terms = [Signs(*(tensors[name] for name in layer.names(block))) for block in range(layer.blocks)]
        return Stack(tensors[layer.scale], terms, layer.errors).dense()

    def arranged(self, run: Run) -> Arranged:
        from nett.weights.sign_order import by_error, by_perplexity, curve

        stored = run.skeleton.checkpoint.tensors
        kinds = [(run.dtype or stored[w.linear.weight].dtype).name for w in run.layers]
        layers = layers_of([vars(_layer(*w, kind)) for w, kind in zip(run.layers, kinds, strict=True)])
        plan, notes = Plan(layers, by_error(layers)), list[str]()
        sources = [open_checkpoint(p) for p in run.parts]
        try:
            if run.parameters["order"] == "perplexity" and run.calibration is not None:
                found = by_perplexity(run.skeleton, plan, sources, run.calibration, int(run.parameters["evaluations"]))
                plan, notes = Plan(layers, found.order), [found.said]
            whole = StackCheckpoint(run.skeleton.checkpoint.path, plan, sources)
            steps = plan.steps(whole.ground)
            points = curve(run.skeleton, plan, sources, run.judging) if run.judging is not None else []
        finally:
            for source in sources:
                source.close()
        self._plan = plan
        stacked = set(plan.tensors())
        ground = [n for s in sources for n in s.tensors if n not in stacked]
        largest = max((layer.block_bytes for layer in layers), default=0)
        figures = {"smallest_bytes": int(steps[0]), "largest_bytes": int(steps[-1]), "largest_step_bytes": largest}
        chart = {
            "kind": "lines",
            "title": "What each budget gives",
            "series": {"perplexity": [[b / 1e6, p] for b, p in points]},
            "xlabel": "budget [MB]",
            "ylabel": "perplexity of the judging text",
        }
        report.say(f"budgets from {steps[0]:,} to {steps[-1]:,} bytes, in steps of at most {largest:,}")
        return Arranged(
            [*ground, *plan.tensors()],
            figures | {"budgets": [{"bytes": b, "perplexity": p} for b, p in points]},
            notes,
            [chart] if len(points) > 1 else [],
        )

    def files(
        self, models: Sequence[Skeleton], layers: Sequence[Written], kept: Sequence[str], dtype: Dtype | None
    ) -> tuple[dict[str, bytes], list[str]]:
        found, notes = super().files(models, layers, kept, dtype)
        assert self._plan is not None
        return found | {NAME: self._plan.as_bytes()}, notes

    def opened(self, folder: Path) -> Checkpoint:
        return open_stack(folder)

    def notes(self, layers: Sequence[Written]) -> list[str]:
        return ["nett reads this at any budget; for other programs: nett convert DIR/90MB OUT"]


def _layer(linear: Linear, kind: Mapping[str, Any], dtype: str = "F32") -> Layer:
    return Layer(linear.module, dtype, linear.rows, linear.columns, kind["rank"], kind["blocks"], tuple(kind["errors"]))
