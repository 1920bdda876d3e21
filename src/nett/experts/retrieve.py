"""The stored task that a query is nearest to: what it would load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from nett.core.errors import UsageError
from nett.core.registry import Between, method


@method(
    papers=["P66"], title="PreMoe: the task of a query", kind="measure", grain="block", extra="models", command=True
)
def retrieve(
    assets: Sequence[str],
    *,
    query: str | None = None,
    text: Path | None = None,
    model: str | None = None,
    device: str = "cpu",
    threads: Annotated[int, Between(0, 256)] = 0,
    json: Path | None = None,
) -> dict[str, Any]:
    """Find the stored task whose use of experts is nearest to that of a query.

    Formula: argmin over tasks of ||TCESS_1(query) - TCESS_1(task)||_2, both of the first mixture
    Args:
        query: some text; its first 512 tokens count.
        text: a file with the query, in place of it.
        model: where the model lies, if not where it was when the patterns were written.
        device: where it is computed: cpu, cuda, mps.
        threads: of computation on the CPU; 0 for all that this process may use.
        json: file for the distances.
    When to use: to see which experts a query would be given by what nett experts premoe stored.
    When not: in a program that serves queries: there nett.experts.loader finds the task and loads it.
    Cost: reads what comes before the first router, and no expert.
    Source: P66 (arXiv:2505.17639), task-adaptive expert retrieval, as the authors' code does it.
    Place: system level, offloading, prefetching
    """
    from nett.core.report.answer import answered
    from nett.core.staging import check_folders
    from nett.experts.loader import distances
    from nett.experts.opening import opened
    from nett.experts.patterns import read_patterns

    if len(assets) != 1 or (query is None) == (text is None):
        hint = 'nett experts retrieve DIR --query "some text"'
        raise UsageError("takes one folder of patterns and one query", where="experts/retrieve", hint=hint)
    if text is not None and not text.is_file():
        raise UsageError("there is no such text file", where=text)
    check_folders(json)
    said = query if text is None else text.read_text(encoding="utf-8", errors="replace")
    assert said is not None
    patterns = read_patterns(Path(assets[0]))
    with opened(model or patterns.model, device, threads) as found:
        gaps = distances(found, patterns, said)
    nearest = next(iter(gaps))
    told = {"task": nearest, "distances": gaps, "load": f"{Path(assets[0]) / nearest}"}
    return answered(told, _words, json=json)


def _words(told: Any) -> list[str]:
    lines = [f"{'task':<24}{'distance':>10}"]
    lines += [f"{name[:23]:<24}{gap:>10.4g}" for name, gap in told["distances"].items()]
    return [*lines, f'Load it: nett.load("{told["load"]}", as_model=True)']
