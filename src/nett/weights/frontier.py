"""Quality against bytes of all methods on one model, with its trivial answers and what peers gave."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from nett.core.errors import UsageError
from nett.core.registry import Between, method


@method(
    papers=[], title="Frontier of quality against bytes", kind="measure", grain="block", extra="models", command=True
)
def frontier(
    assets: Sequence[str],
    *,
    eval: Path | None = None,
    calibration: Path | None = None,
    methods: str = "auto",
    bits: str = "2,3,4,8",
    sparsity: str = "0.5,2:4",
    settings: Path | None = None,
    peers: Path | None = None,
    samples: Annotated[int, Between(1, 100_000)] = 32,
    length: Annotated[int, Between(8, 1_000_000)] = 512,
    work: Path | None = None,
    device: str = "cpu",
    threads: Annotated[int, Between(0, 256)] = 0,
    json: Path | None = None,
    html: Path | None = None,
) -> dict[str, Any]:
    """Compress a model by every method that applies and draw what each costs against what it saves.

    Formula: on the frontier is what nothing else beats in both bytes and KL(p_original || p_result)
    Args:
        eval: text to judge by, the same for all.
        calibration: text for methods that look at what goes into the layers; without it, only those that need none.
        methods: their names, separated by commas; auto for all that work layer by layer on one model.
        bits: widths for methods that have them, separated by commas.
        sparsity: shares (0.5) and patterns (2:4) for methods that prune.
        settings: JSON file with a list of {"method": NAME, parameter: value, …} that is tried instead.
        peers: JSON file with a list of {"name": …, "bytes": …, "perplexity": …} of other tools on the same text.
        samples: at most so many windows of the calibration text.
        length: tokens of a window.
        work: folder in which the results are kept; a temporary one by default.
        device: where it is computed: cpu, cuda, mps.
        threads: of computation on the CPU; 0 for all that this process may use.
        json: file for the points.
        html: file for a page with the picture.
    When to use: to choose a method and a width for a model by what they cost on your own text.
    When not: speed matters most: bytes and quality say nothing of it.
    Cost: that of every method that is tried.
    Source: ours; the same points decide the standings of nett list.
    """
    from nett.core.report.answer import answered
    from nett.core.staging import check_folders
    from nett.weights.frontier_run import page_of, run_frontier, words_of

    if len(assets) != 1:
        raise UsageError("name one model", where="weights/frontier", hint="nett weights frontier MODEL --eval FILE")
    check_folders(json, html)
    told = run_frontier(
        assets[0], eval=eval, calibration=calibration, methods=methods, bits=bits, sparsity=sparsity,
        settings=settings, peers=peers, work=work,
        options={"samples": samples, "length": length, "device": device, "threads": threads},
    )  # fmt: skip
    return answered(told, words_of, json=json, html=html, page=page_of)
