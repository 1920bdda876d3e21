"""The second half of a receipt's page: where the output came from, what it took, how to check it or undo it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from nett.core.report.page import Page
from nett.core.report.records import record_table, records, text_of
from nett.core.report.words import Code, clean, duration, number, size


def method(page: Page, receipt: Mapping[str, Any]) -> None:
    parameters, recipe, figures = (receipt.get(k) for k in ("parameters", "recipe", "figures"))
    if receipt.get("method") or parameters:
        page.heading("Method")
        about = {"method": Code("/".join(str(receipt[k]) for k in ("room", "method") if receipt.get(k)))}
        given = dict(parameters) if isinstance(parameters, Mapping) else {}
        options = receipt.get("options")
        given |= options if isinstance(options, Mapping) else {}
        exact = {str(k): Code(v if isinstance(v, str) else json.dumps(v, default=str)) for k, v in given.items()}
        page.key_values({k: v for k, v in about.items() if v} | exact)
    if recipe:
        page.heading("Recipe")
        page.code(recipe if isinstance(recipe, str) else json.dumps(recipe, indent=2, ensure_ascii=False, default=str))
    if isinstance(figures, Mapping) and figures:
        page.heading("Figures")
        tables = {k: found for k in figures if (found := records(figures, k))}
        page.key_values({str(k).replace("_", " "): v for k, v in figures.items() if k not in tables})
        for name, rows in tables.items():
            page.heading(str(name).replace("_", " ").capitalize())
            record_table(page, rows)


def add_edges(page: Page, edges: Sequence[Mapping[str, Any]]) -> None:
    """A table of edges (as their JSON records), in the order given; columns that say nothing are left out."""
    rows = []
    for edge in edges:
        sources = edge.get("sources") or []
        rest = f" and {len(sources) - 3:,} more" if len(sources) > 3 else ""
        begin = "\nfrom " + ", ".join(text_of(s) for s in sources[:3]) + rest if sources else ""
        rows.append(
            {
                "asset": Code(text_of(edge.get("target")) + begin),
                "kind": f"{text_of(edge.get('kind')).replace('_', ' ')}\n{text_of(edge.get('method'))}".strip(),
                "bytes freed": edge.get("bytes_freed"),
                "seconds": edge.get("seconds"),
                "error": edge.get("error"),
                "guarantee": edge.get("guarantee"),
                "command": Code(edge["command"]) if edge.get("command") else None,
            }
        )
    record_table(page, [{k: v for k, v in row.items() if any(r[k] is not None for r in rows)} for row in rows])


def files(page: Page, receipt: Mapping[str, Any]) -> None:
    inputs, outputs = records(receipt, "inputs"), records(receipt, "outputs")
    if inputs:
        page.heading("Inputs")
        about = [{k: v for k, v in i.items() if k != "files"} for i in inputs]
        record_table(page, [{k: Code(v) if k == "path" else v for k, v in row.items()} for row in about])
        rows = []
        for one in inputs:
            name = text_of(one.get("name"))
            for f in records(one, "files"):
                path = text_of(f.get("path"))
                path = f"{name}/{path}" if len(inputs) > 1 and name and not path.startswith("/") else path
                rows.append([Code(path), f.get("bytes"), Code(text_of(f.get("sha256")))])
        if rows:
            page.table(["file", "bytes", "sha256"], rows)
    if outputs:
        page.heading("Outputs")
        rows = [[Code(text_of(o.get("path"))), o.get("bytes"), Code(text_of(o.get("sha256")))] for o in outputs]
        page.table(["file", "bytes", "sha256"], rows)


def cost(page: Page, receipt: Mapping[str, Any]) -> None:
    said: dict[str, Any] = {}
    if receipt.get("seconds") is not None:
        said["time"] = duration(receipt["seconds"])
    if receipt.get("cpu_seconds") is not None:
        said["CPU time"] = duration(receipt["cpu_seconds"])
    if receipt.get("peak_memory_bytes") is not None:
        peak = receipt["peak_memory_bytes"]
        said["peak memory"] = f"{size(peak)} ({number(peak)} bytes)"
    if said:
        page.heading("What the run took")
        page.key_values(said)


def commands(page: Page, receipt: Mapping[str, Any], folder: str) -> None:
    place = shlex.quote(clean(folder))
    page.heading("Check it, undo it")
    page.text("In the folder that holds this page:" if folder == "." else "Where the output lies:")
    lines = [f"nett verify {place}"]
    tasks = [text_of(t["name"]) for t in records(receipt, "tasks") if t.get("name")]
    if _restores(receipt):
        if tasks:
            lines += [
                f"nett restore {place} --task {shlex.quote(t)} --out {shlex.quote('../' + t)}" for t in tasks[:20]
            ]
        else:
            lines.append(f"nett restore {place} --out ../restored")
    page.code("\n".join(lines))
    if len(lines) == 1:
        page.text("The inputs are not changed; there is nothing to restore from this output.", dim=True)


def _restores(receipt: Mapping[str, Any]) -> bool:
    """Whether the output can give back an input: the receipt's own word, else what the method's card says."""
    from nett.core.cards import find_card
    from nett.core.errors import NettError

    if "restore" in receipt:
        return bool(receipt["restore"])
    try:
        return find_card(str(receipt.get("method")), text_of(receipt.get("room")) or None).restore is not None
    except NettError:
        return False
