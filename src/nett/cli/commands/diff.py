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
@click.option("--threads", type=click.IntRange(0, 64), default=0, help="How many threads work; 0 for all.")
def command(a: str, b: str, json_file: Path | None, html_file: Path | None, threads: int) -> None:
    """Which tensors and layers moved between two checkpoints, by how much, rank, signs and bytes."""
    import json

    from nett.cli.text import columns, figure
    from nett.core.checkpoint import open_checkpoint
    from nett.core.diff import diff

    with open_checkpoint(a) as left, open_checkpoint(b) as right:
        found = diff(left, right, threads=threads)
    content = found.as_json()
    if json_file is not None:
        json_file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if found.identical:
        click.echo(f"{a} and {b} hold the same tensors, bit for bit ({found.bytes_a:,} bytes).")
    keys = ("name", "status", "relative_l2", "max_abs", "density", "effective_rank", "rank_99", "sign_changes")
    moved = [t for t in content["tensors"] if t["status"] != "same"]
    if moved:
        rows = [[figure(t[k]) for k in keys] for t in moved[:SHOWN]]
        click.echo("\n".join(columns(keys, rows, right=keys[2:])))
    if len(moved) > SHOWN:
        click.echo(f"… and {len(moved) - SHOWN} more; --json FILE has all")
    if moved:
        layers = [(x["layer"], figure(x["relative_l2"]), f"{x['bytes']:,}") for x in content["layers"]]
        click.echo()
        click.echo("\n".join(columns(("layer", "relative_l2", "bytes"), layers, right=("relative_l2", "bytes"))))
    if html_file is not None:
        from nett.core.report import Page

        page = Page("nett diff", f"{a} and {b}")
        page.bars([(x["layer"], x["relative_l2"] or 0.0, "") for x in content["layers"]], title="Change of each layer")
        page.table(list(keys), [[figure(t[k]) for k in keys] for t in content["tensors"]])
        page.write(html_file)
