"""Which layers hurt when they are quantised, and the bits that each is best given under a budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from nett.core.errors import UsageError
from nett.core.registry import Between, method


@method(papers=[], title="Sensitivity of layers to quantisation", kind="measure", grain="model", extra="models",
        command=True)  # fmt: skip
def sensitivity(
    assets: Sequence[str],
    *,
    eval: Path | None = None,
    calibration: Path | None = None,
    by: str = "rtn",
    bits: str = "2,3,4,8",
    group: Annotated[int, Between(-1)] = 0,
    symmetric: bool = True,
    per: Literal["block", "input", "layer"] = "input",
    budget: str | None = None,
    samples: Annotated[int, Between(1, 100_000)] = 8,
    length: Annotated[int, Between(8, 1_000_000)] = 128,
    device: str = "cpu",
    threads: Annotated[int, Between(0, 256)] = 0,
    json: Path | None = None,
    html: Path | None = None,
) -> dict[str, Any]:
    """Quantise one part of a model at a time and say what that does to its predictions; choose bits under a budget.

    Formula: cost(part, b) = mean KL(p_original || p_with that part at b bits);  min sum cost, sum bytes <= budget
    Args:
        eval: text whose predictions are compared.
        calibration: text for methods that need it.
        by: the method that quantises: rtn, gptq or another of this room with bits.
        bits: those that are tried, separated by commas.
        group: neighbouring columns that share a scale; 0 for the largest of 128, 64 and 32 that divides all layers.
        symmetric: numbers around zero; otherwise each group has a zero point as well.
        per: what changes at a time: a block, the layers that share an input (fused loaders want one width for them),
            or a layer.
        budget: bits a weight (3.2bit, scales included) or bytes (80MB) of all linear layers, for which --json says
            the bits of each layer, to be given to nett weights METHOD --per-layer.
        samples: windows of text; the last digits of KL need more of them.
        length: tokens of a window.
        device: where it is computed: cpu, cuda, mps.
        threads: of computation on the CPU; 0 for all that this process may use.
        json: file for the findings, and the choice.
        html: file for a page with the picture.
    When to use: before quantising below 4 bits, to see what must stay fine and what may be coarse.
    When not: layers whose errors meet: costs are added up as if they did not; measure the result.
    Cost: for each part and width the rest of the model on the text: about parts * widths / 2 runs of the model.
    Source: P52 studies widths model-wide; one part at a time and the knapsack are common practice.
    """
    from nett.core.report.answer import answered
    from nett.core.staging import check_folders
    from nett.weights.sensing import page_of, sense, words_of

    if len(assets) != 1:
        raise UsageError(
            "name one model", where="weights/sensitivity", hint="nett weights sensitivity MODEL --eval FILE"
        )
    check_folders(json, html)
    told = sense(
        assets[0], eval=eval, calibration=calibration, by=by, bits=bits, group=group, symmetric=symmetric, per=per,
        budget=budget, samples=samples, length=length, device=device, threads=threads,
    )  # fmt: skip
    return answered(told, words_of, json=json, html=html, page=page_of)
