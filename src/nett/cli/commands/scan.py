"""``nett scan PATH…``."""

from __future__ import annotations

from pathlib import Path

import click

SHOWN = 40


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--base", metavar="PATH", help="The model that the others were tuned from.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the findings as JSON."
)
@click.option(
    "--html", "html_file", type=click.Path(path_type=Path), metavar="FILE", help="Write a page with pictures."
)
@click.option("--only", multiple=True, metavar="PROBE", help="Run only this probe (again for more; or a,b,c).")
@click.option("--threads", type=click.IntRange(0, 64), default=0, help="How many threads work; 0 for all.")
def command(
    paths: tuple[str, ...],
    base: str | None,
    json_file: Path | None,
    html_file: Path | None,
    only: tuple[str, ...],
    threads: int,
) -> None:
    """What is redundant in checkpoints, what removing it would free, at what risk, and the command for it."""
    import json

    from nett.cli.text import columns, common_folder, count, figure
    from nett.scan import engine
    from nett.scan.page import by_checkpoint, commands, scan_page

    chosen = [word for words in only for word in words.split(",") if word]
    found = engine.run(list(paths), base=base, threads=threads, only=chosen)
    if json_file is not None:
        json_file.write_text(json.dumps(found.as_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    headers = ("bytes", "guarantee", "error", "finding", "target")
    rows = [
        (f"{e.bytes_freed:,}", e.guarantee, "0" if e.error == 0 else "-" if e.error is None else f"{e.error:.3g}",
         e.kind, e.target)
        for e in found.edges
    ]  # fmt: skip
    known = commands(found)
    summary = (
        f"{found.nbytes:,} bytes in {count(len(found.assets), 'checkpoint')}; "
        f"{found.lossless:,} can be freed without loss"
    )
    if found.most > found.lossless:
        summary += f", {found.most:,} at a relative error of up to {found.error:.3g}"
    click.echo(summary + f" ({found.seconds:.1f} s)")
    folder = common_folder([e.target.partition("::")[0] for e in found.edges[:SHOWN]])
    shown = [
        (*row[:-1], row[-1].removeprefix(folder), f"[{known.index(e.command) + 1}]" if e.command else "")
        for row, e in zip(rows[:SHOWN], found.edges, strict=False)
    ]
    if shown:
        where = f"target in {folder}" if folder else "target"
        click.echo("\n".join(columns((*headers[:-1], where, ""), shown, right=("bytes", "error"))))
    if len(rows) > SHOWN:
        click.echo(f"… and {len(rows) - SHOWN} more; --json FILE has all")
    for number, text in enumerate(known, start=1):
        if any(row[-1] == f"[{number}]" for row in shown):
            click.echo(f"[{number}] {text}")
    if not rows:
        click.echo("Nothing redundant was found.")
    for probe, (heads, lines) in by_checkpoint(found).items():
        click.echo(f"\n{probe.replace('_', ' ')}")
        click.echo("\n".join(columns(heads, [[figure(v) for v in line] for line in lines], right=heads[1:])))
    if html_file is not None:
        scan_page(found, summary).write(html_file)
