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

    from nett.core.checkpoint import open_checkpoint
    from nett.core.diff import diff

    with open_checkpoint(a) as left, open_checkpoint(b) as right:
        found = diff(left, right, threads=threads)
    content = found.as_json()
    if json_file is not None:
        json_file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if found.identical:
        click.echo(f"{a} and {b} hold the same tensors, bit for bit ({found.bytes_a:,} bytes).")
    keys = [k for k in ("name", "status", "relative_l2", "max_abs", "density", "rank", "sign_changes")
            if any(k in t for t in content["tensors"])]  # fmt: skip

    def shown(value: object) -> str:
        return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    moved = [t for t in content["tensors"] if t.get("status") != "same"]
    if moved:
        click.echo("  ".join(keys))
    for tensor in moved[:SHOWN]:
        click.echo("  ".join(shown(tensor.get(k)) for k in keys))
    if len(moved) > SHOWN:
        click.echo(f"… and {len(moved) - SHOWN} more; --json FILE has all")
    for layer in content["layers"]:
        click.echo(f"{layer['layer']}: relative change {shown(layer['relative_l2'])}, {layer['bytes']:,} bytes")
    if html_file is not None:
        from nett.core.report import Page

        page = Page("nett diff", f"{a} and {b}")
        page.bars([(x["layer"], x["relative_l2"] or 0.0, "") for x in content["layers"]], title="Change of each layer")
        page.table(keys, [[shown(t.get(k)) for k in keys] for t in content["tensors"]])
        page.write(html_file)
