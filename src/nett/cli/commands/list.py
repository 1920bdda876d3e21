"""``nett list [ROOM] [--json]``."""

from __future__ import annotations

import click


@click.command()
@click.argument("room", required=False)
@click.option("--json", "as_json", is_flag=True, help="All cards as JSON.")
def command(room: str | None, as_json: bool) -> None:
    """All methods, by room, with what each guarantees and how it stands against its rivals."""
    import json

    from nett.core.cards import all_cards
    from nett.core.errors import UsageError, did_you_mean
    from nett.core.registry import ROOMS
    from nett.core.standing import standings

    if room is not None and room not in ROOMS:
        raise UsageError(f"no room is called {room!r}.{did_you_mean(room, ROOMS)}")
    everything = all_cards()
    cards = [c for c in everything if room in (None, c.room) and not c.hidden]
    standing = standings(everything)
    if as_json:
        rows = [
            {
                "room": c.room,
                "name": c.name,
                "papers": list(c.papers),
                "kind": c.kind,
                "guarantee": c.guarantee,
                "grain": c.grain,
                "standing": standing.get(c.key, "unproven"),
                "summary": c.summary,
                "parameters": [
                    {"name": p.name, "type": p.type, "default": p.default, "description": p.description}
                    for p in c.parameters
                ],
            }
            for c in cards
        ]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for name in dict.fromkeys(c.room for c in cards):
        click.echo(f"{name}")
        inside = [c for c in cards if c.room == name]
        width = max(len(c.name) for c in inside)
        for c in inside:
            papers = ",".join(c.papers) or "-"
            about = c.summary if len(c.summary) <= 90 else c.summary[:87] + "..."
            click.echo(
                f"  {c.name:<{width}}  {papers:<8} {c.guarantee:<8} {standing.get(c.key, 'unproven'):<11} {about}"
            )
    if not cards:
        click.echo(f"The room {room} has no methods yet.")
