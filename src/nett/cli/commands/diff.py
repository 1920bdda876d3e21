"""``nett diff A B``."""

from __future__ import annotations

from pathlib import Path

import click

SHOWN = 30


@click.command()
@click.argument("a")
@click.argument("b")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the comparison as JSON."
)
@click.option(
    "--html", "html_file", type=click.Path(path_type=Path), metavar="FILE", help="Write a page with pictures."
)
@click.option("--store", metavar="STORE", help="A and B name models of this store; where it has none so named, paths.")
@click.option("--threads", type=click.IntRange(0, 64), default=0, help="How many threads work; 0 for all.")
def command(a: str, b: str, json_file: Path | None, html_file: Path | None, store: str | None, threads: int) -> None:
    """Which tensors and layers moved between two checkpoints, by how much, rank, signs and bytes."""
    import json

    from nett.cli.text import columns, figure
    from nett.core.checkpoint import open_checkpoint
    from nett.core.diff import diff
    from nett.core.diff_page import HEADERS, LAYER_HEADERS, LEGEND, diff_page, layer_row_of, row_of, summary
    from nett.core.progress import report

    places = [_place(one, store) for one in (a, b)]
    with open_checkpoint(places[0]) as left, open_checkpoint(places[1]) as right:
        report.begin("comparing", left.nbytes + right.nbytes)
        found = diff(left, right, names=(a, b), threads=threads)
        report.end()
    if json_file is not None:
        json_file.write_text(json.dumps(found.as_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    click.echo(summary(found))
    moved = [t for t in found.tensors if t.status != "same"]
    if moved:
        rows = [[figure(v) for v in row_of(t)] for t in moved[:SHOWN]]
        click.echo("\n" + "\n".join(columns(HEADERS, rows, right=HEADERS[2:])))
        if len(moved) > SHOWN:
            click.echo(f"… and {len(moved) - SHOWN} more; --json FILE has all")
        rows = [[figure(v) for v in layer_row_of(x)] for x in found.layers]
        click.echo("\n" + "\n".join(columns(LAYER_HEADERS, rows, right=LAYER_HEADERS[1:])))
        click.echo(LEGEND)
    for edge in found.edges:
        if not found.identical:
            loss = "without loss" if edge.guarantee == "exact" else f"at a relative error of {edge.error:.3g}"
            kind = edge.kind.replace("_", " ")
            click.echo(f"{b} from {a} by a {kind}: {edge.bytes_freed:,} of {found.bytes_b:,} bytes less, {loss}")
    if html_file is not None:
        diff_page(found).write(html_file)


def _place(reference: str, store: str | None) -> str:
    """A model of the store by that name; else the path, where there is such a one."""
    if store is None:
        return reference
    from nett.core.receipt import read_receipt

    read_receipt(Path(store))  # refused where there is none
    inside = Path(store) / reference
    return (
        reference
        if Path(reference).exists() and not (Path(store) / "models" / f"{reference}.json").is_file()
        else str(inside)
    )
