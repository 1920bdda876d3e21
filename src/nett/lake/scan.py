"""Which tables of a lake are contained in others: R2D2's stages, then proof."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from nett.core.errors import Refused, UsageError
from nett.core.registry import Between, method


@method(papers=["P03"], title="Containment between tables (R2D2)", kind="measure", grain="stream", guarantee="exact",
        extra="lake", command=True)  # fmt: skip
def scan(
    assets: Sequence[str],
    *,
    semantics: Literal["set", "bag"] = "set",
    compare: Literal["value", "text"] = "value",
    verify: bool = True,
    min_containment: Annotated[float, Between(0, 1, open_low=True)] = 1.0,
    epsilon: Annotated[float, Between(0, 1, open_low=True, open_high=True)] = 0.05,
    delta: Annotated[float, Between(0, 1, open_low=True, open_high=True)] = 0.01,
    preset: Literal["none", "paper"] = "none",
    ignore: str | None = None,
    strict: bool = False,
    engine: Literal["duckdb", "spark"] = "duckdb",
    master: str | None = None,
    memory_limit: str | None = None,
    threads: Annotated[int, Between(1, None)] | None = None,
    seed: int = 0,
    cache: Path | None = None,
    no_cache: bool = False,
    json: Path | None = None,
    html: Path | None = None,
) -> dict[str, Any]:
    """Say which tables below a folder are wholly contained in others, and prove it row by row.

    Formula: containment(C, P) = |rows(C) in P's columns of C's names| / |rows(C)|;  an edge where it is 1
    Args:
        semantics: set counts equal rows once; under bag a row must be in the parent as often as in the child.
        compare: by value (1 = 1.0, NULL = NULL, any scale of a decimal), or by the text that stands there.
        verify: look at every row of what the sample left; without, edges are as sure as the sample.
        min_containment: also name pairs of which at least this share of the child's rows is in the parent.
        epsilon: the share of missing rows that the sample must find.
        delta: the chance that it misses one such pair, taken over all pairs.
        preset: paper samples 10 rows in 4 columns, as the paper does.
        ignore: columns that are left out, as patterns: a,b*
        strict: a file that cannot be read ends the scan with exit code 3.
        engine: where rows are compared; duckdb is this process.
        master: of Spark, such as local[2] or spark://host:7077; all cores of this machine by default.
        memory_limit: of the engine, such as 512MB; beyond it spills to disk.
        threads: of the engine.
        seed: of the columns that the preset draws.
        cache: folder for what the next scan need not read again; by default the user's cache folder.
        no_cache: read everything, and keep nothing.
        json: file for the findings.
        html: file for a page with the containment graph.
    When to use: to find extracts, copies, old snapshots and projections among the tables of a lake.
    When not: for tables whose columns were renamed, and for near-equal text inside of values.
    Guarantee: exact: no true edge is lost, and a verified edge holds for every row.
    Cost: footers of all tables, whole text files among those whose columns fit; a sampled scan of each parent; a join
        for each edge that does not follow from others.
    Source: P03 (R2D2), sections 4.1 to 4.3; verification, bags and inference are ours.
    """
    from nett.core.staging import check_folders
    from nett.lake.scanning import scan_lake, write_json
    from nett.lake.stages import Sampling
    from nett.lake.words import as_lines

    paths = [assets] if isinstance(assets, str) else list(assets)
    if len(paths) != 1:
        raise UsageError("name one folder of tables", where="lake/scan", hint="nett lake scan PATH")
    check_folders(json, html)
    paper = preset == "paper"
    sampling = Sampling(epsilon, delta, 10 if paper else None, 4 if paper else None, seed)
    told = scan_lake(
        paths[0], engine=engine, semantics=semantics, text=compare == "text", verify=verify, least=min_containment,
        sampling=sampling, ignore=ignore, memory=memory_limit, threads=threads, master=master,
        cache=cache, no_cache=no_cache,
    )  # fmt: skip
    if json is not None:
        write_json(json, told)
    if html is not None:
        from nett.lake.page import lake_page

        lake_page(told).write(html)
    if strict and told["warnings"]:
        first = told["warnings"][0]
        raise Refused(f"{first['why']} ({len(told['warnings'])} warnings in all)", where=first["table"])
    return told | {"say": as_lines(told)}
