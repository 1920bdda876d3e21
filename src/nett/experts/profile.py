"""What the routers of a mixture of experts do on some text: which experts are used, together, where, and how locally."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from nett.core.errors import UsageError
from nett.core.registry import Between, method


@method(papers=["P17"], title="Profile of a mixture: routing, consistency, caches", kind="measure", grain="stream",
        extra="models", command=True)  # fmt: skip
def profile(
    assets: Sequence[str],
    *,
    text: str | Sequence[str] = "",
    samples: Annotated[int, Between(0, 10_000_000)] = 128,
    length: Annotated[int, Between(8, 1_000_000)] = 512,
    similar: Annotated[int, Between(0, 100_000)] = 128,
    hits: Annotated[float, Between(0, 1, open_low=True)] = 0.9,
    device: str = "cpu",
    threads: Annotated[int, Between(0, 256)] = 0,
    json: Path | None = None,
    html: Path | None = None,
) -> dict[str, Any]:
    """Tell how a mixture's routers use its experts on some text, and which cache of experts would serve it.

    Formula: SRP(m) = max_t F1 of the sets {experts that at least t of m neighbouring tokens choose} against the choices;
             SCH(m, C) = hit rate of a cache of C experts that keeps those which the next m tokens choose most often
    Args:
        text: file (.txt, or .jsonl with an entry text), or NAME=FILE for each of several tasks, whose patterns are compared.
        samples: windows of each text, evenly spread over it; 0 for all of it, read as a stream.
        length: tokens of a window; neighbours are only counted within one.
        similar: tokens of each text on which the outputs of all experts are compared (fewer where that would take long).
        hits: the hit rate that the advised cache shall reach.
        device: where it is computed: cpu, cuda, cuda:1, mps.
        threads: of computation on the CPU; 0 for all that this process may use.
        json: file for all figures.
        html: file for a page with pictures.
    When to use: before experts are offloaded, dropped or merged: it says whether neighbours in the text share experts, how
        many a cache must hold, and which experts are idle, alike, or always chosen together.
    When not: as a promise of speed: SCH knows the future, and a real cache does not; LRU, told beside it, is what one gets
        without guessing.
    Guarantee: measured on this text; 95 % intervals by leaving out twentieths of the windows.
    Cost: a forward pass of the text without its output layer, and some percent. Where the weights in float32 take more than
        half of the free memory they are read anew for every 65,536 tokens, a block at a time.
    Place: system level, offloading, caching; system level, expert parallelism, load balance
    Source: P17 and its code (ljcleo/moe-lrc): segments begin at every token; filling a cache that was never full counts as
        hits. Beside SRP stands what uneven use alone would give, which the paper does not subtract. How evenly, together and
        alike: entropy, counts, and mean cosines of outputs.
    """
    from nett.core.report.answer import answered
    from nett.core.staging import check_folders
    from nett.experts.profile_page import page_of, words_of
    from nett.experts.profiling import profile_of

    if len(assets) != 1:
        raise UsageError("name one model", where="experts/profile", hint="nett experts profile MODEL --text FILE")
    check_folders(json, html)
    told = profile_of(
        assets[0], text=text if isinstance(text, str) else ",".join(text), samples=samples, length=length, similar=similar,
        hits=hits, device=device, threads=threads,
    )  # fmt: skip
    return answered(told, words_of, json=json, html=html, page=page_of)
