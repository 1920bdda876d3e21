"""``nett scan`` of a disk on the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nett.scan.disk.engine import DiskScan

SHOWN = 15
_TROUBLE = 10


def scan_disk(
    folders: tuple[str, ...], *, exact: bool, json_file: Path | None, html_file: Path | None, threads: int
) -> None:
    """Scan, print, write what is asked for."""
    from nett.scan.disk.engine import run_disk

    found = run_disk(folders, exact=exact, threads=threads)
    if json_file is not None:
        json_file.write_text(json.dumps(found.as_json(), indent=2, ensure_ascii=True) + "\n", encoding="utf-8")
    _show(found)
    if html_file is not None:
        from nett.scan.disk.page import disk_page

        disk_page(found).write(html_file)


def _show(found: DiskScan) -> None:
    from nett.cli.text import columns, common_folder
    from nett.core.report.words import size
    from nett.core.shown import shown
    from nett.scan.disk.engine import unreadable
    from nett.scan.disk.words import MEANING, basis, between, kinds, places, remarks, summary

    click.echo(f"{summary(found)} ({found.seconds:.1f} s)")
    if found.items:
        click.echo(basis(found))
    else:
        click.echo("Looked in:")
    rows = [(what, kind, shown(path)) for kind, path, what in places(found)]
    there = [row for row in rows if row[0] not in ("not there", "nothing")]
    click.echo("\n".join(f"  {line}" for line in columns(("found", "place", "folder"), there if there else rows)[1:]))
    if not there:
        click.echo("nett scan --disk DIR looks elsewhere; nett scan PATH looks into one model.")
    if table := [(size(n), f"{count:,}", MEANING.get(kind, kind)) for kind, count, n in kinds(found)]:
        click.echo("\nWhat could be freed (kinds overlap; together, what the first line says)")
        click.echo("\n".join(columns(("bytes", "findings", "what"), table, right=("bytes", "findings"))))
        first = [f for f in found.found if f.edge.command][:SHOWN]
        folder = common_folder([f.edge.target.partition("::")[0] for f in first])
        commands = list(dict.fromkeys(str(f.edge.command) for f in first))
        listed = [
            (between(f.amount), f.edge.kind, shown(f.edge.target.removeprefix(folder)),
             f"[{commands.index(str(f.edge.command)) + 1}]")
            for f in first
        ]  # fmt: skip
        head = f"target in {shown(folder)}" if folder else "target"
        click.echo("\n" + "\n".join(columns(("bytes", "finding", head, ""), listed, right=("bytes",))))
        if len(found.found) > len(first):
            click.echo(f"… and {len(found.found) - len(first):,} more; --json FILE has all")
        for number, text in enumerate(commands, start=1):
            click.echo(f"[{number}] {text}")
    for line in remarks(found):
        click.echo(line)
    trouble = unreadable(found)
    for path, why in trouble[:_TROUBLE]:
        click.echo(f"not read: {shown(path)}: {why}")
    if len(trouble) > _TROUBLE:
        click.echo(f"… and {len(trouble) - _TROUBLE:,} more that could not be read")
