"""``nett show METHOD``."""

from __future__ import annotations

import click


@click.command()
@click.argument("method")
@click.option("--json", "as_json", is_flag=True, help="The whole card as JSON.")
def command(method: str, as_json: bool) -> None:
    """One method: what it does, its options with their ranges, when to use it and when not."""
    import json

    from nett.core.cards import find_card

    card = find_card(method)
    if as_json:
        click.echo(json.dumps(card.as_json(), indent=2, ensure_ascii=False))
        return
    papers = f" ({', '.join(card.papers)})" if card.papers else ""
    click.echo(f"{card.key}: {card.title}{papers}\n\n{card.summary}\n")
    for title in ("Formula", "Returns", "When to use", "When not", "Guarantee", "Cost", "Place", "Source"):
        if title in card.sections:
            click.echo(f"{title}: {card.sections[title]}")
    click.echo(f"kind {card.kind}, grain {card.grain}, guarantee {card.guarantee}")
    if card.needs:
        click.echo(f"needs {', '.join('--' + n for n in card.needs)}")
    python = card.kind == "train"
    click.echo("\nParameters:" if python else "\nOptions:")
    for p in card.parameters:
        limits = f" [{p.range}]" if p.range else ""
        name = p.name if python else f"--{p.name.replace('_', '-')}"
        click.echo(f"  {name} {p.type}{limits}, default {p.default}\n      {p.description}")
    if python:
        click.echo(f"\nUse, from Python:\n\nimport nett\n\n{card.sections.get('Example', '')}")
    else:
        click.echo(f"\nUse: nett {card.room} {card.name} --help")
