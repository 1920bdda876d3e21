"""``nett papers [--json]``."""

from __future__ import annotations

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="All papers as JSON.")
def command(as_json: bool) -> None:
    """The 81 papers: which of them work here, and whether their effect was seen.

    Status and claim are computed from the methods that exist and from stored results of laws and experiments.
    """
    import json
    import shutil
    import sys

    from nett.core.papers import CLAIMS, STATUSES, paper_rows

    rows = paper_rows()
    if as_json:
        click.echo(json.dumps([r.as_json() for r in rows], indent=2, ensure_ascii=False))
        return
    status = {word: sum(r.status == word for r in rows) for word in STATUSES}
    claim = {word: sum(r.claim == word for r in rows) for word in CLAIMS}
    click.echo(
        f"{len(rows)} papers: {status['works']} work, {status['building']} building, {status['planned']} planned"
    )
    tested = f"{claim['holds']} hold, {claim['fails']} fail, {claim['none']} not tested"
    click.echo(f"claims: {tested}\n")
    methods = {r.paper.id: ", ".join(r.methods or r.paper.methods) for r in rows}
    room, wide = max(len(r.paper.top_room) for r in rows), max(map(len, methods.values()))
    left = shutil.get_terminal_size().columns - (29 + room + wide) if sys.stdout.isatty() else 0
    click.echo(f"{'id':<4} {'status':<9} {'claim':<6} {'room':<{room}}  {'methods':<{wide}}  title")
    for r in rows:
        title = r.paper.title if left < 20 or len(r.paper.title) <= left else r.paper.title[: left - 3] + "..."
        # A dot where nothing was measured keeps the eye on what was.
        seen = "stale" if r.stale_claim else "." if r.claim == "none" else r.claim
        words = f"{r.paper.id:<4} {r.status:<9} {seen:<6} {r.paper.top_room:<{room}}  {methods[r.paper.id]:<{wide}}"
        click.echo(f"{words}  {title}")
    open_ends = [r for r in rows if r.status == "building"]
    if open_ends:
        click.echo("\nWhat keeps the papers that are building:")
        for r in open_ends:
            click.echo(f"  {r.paper.id}: {'; '.join(r.lacking)}")
