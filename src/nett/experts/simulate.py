"""What serving a mixture of experts would cost on processors with logic near their memory (Duplex)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nett.core.registry import method


@method(papers=["P42"], title="Simulation of a server for mixtures of experts (Duplex)", kind="measure", grain="corpus",
        command=True)  # fmt: skip
def simulate(
    assets: Sequence[str],
    *,
    sweep: bool = False,
    json: Path | None = None,
    html: Path | None = None,
) -> dict[str, Any]:
    """Simulate serving from CONFIG.yml on an xPU, on Logic-PIM and on both; say speed, waiting times and energy of each.

    Formula: seconds of a layer = max(operations / FLOP/s, bytes / B/s), on each processor; of a layer's experts, by tokens
        ascending, the first s on Logic-PIM: min over s of max(sum_{i <= s} pim_i, sum_{i > s} xpu_i); in stages with prompts
        max(prompts on the xPU, decoding on Logic-PIM)
    Args:
        sweep: also change one thing at a time: batch, lengths, number of experts, bandwidth and operations of Logic-PIM.
        json: file for the findings.
        html: file for a page with the pictures.
    Example:
        # server.yml; all that is left out has a default: docs/guide.md, "Serving a mixture of experts"
        # model: Mixtral-8x7B/config.json
        # hardware: {devices: 4, pim: {bandwidth: 4x, flops: 8 FLOP/B}}
        # requests: {arrivals: poisson, rate: 8/s, count: 2000, input: {mean: 1024, std: 200}, output: {mean: 512, std: 100}}
        # serving: {batch: 64}
        told = nett.experts.simulate(["server.yml"], sweep=True, html=Path("server.html"))
        print(told["schemes"]["duplex"]["tokens_a_second"], told["schemes"]["duplex"]["first_token"]["p99"])
    When to use: to see what limits a server (weights of experts, keys and values, operations), and what a device with logic near
        its memory, or other sizes, rates, batches and routings, would change.
    When not: to predict the milliseconds of a real server: rooflines know no launch of a kernel, no bank conflict, no network that is
        busy; efficiencies below 1 can be given.
    Guarantee: computed from the rates that the settings give; on the same requests and the same routing for all schemes. Stage by
        stage no scheme is slower than one that it contains.
    Cost: some millions of stages a minute; ten thousand requests of a thousand tokens take seconds a scheme.
    Place: hardware level, processing in memory, simulation
    Source: P42, arXiv:2409.01141: sections IV and V (choice of a processor, expert and attention co-processing), VI (the device).
        Its times come from a cycle-accurate simulator, these from rooflines. Chunked prompts and latent attention are ours.
    """
    from nett.core.report.answer import answered
    from nett.core.staging import check_folders
    from nett.experts.duplex_page import page_of, words_of
    from nett.experts.duplex_running import only, simulate_file

    file = only(assets)
    check_folders(json, html)
    told = simulate_file(file, sweep=sweep)
    return answered(told, words_of, json=json, html=html, page=page_of)
