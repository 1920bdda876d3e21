"""``nett claims run ID [--json]`` and ``nett claims table``."""

from __future__ import annotations

import click


@click.group()
def command() -> None:
    """Run a paper's experiment, or write the table of all claims. Needs a checkout of the sources."""


@command.command()
@click.argument("paper", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="The whole record as JSON.")
@click.pass_context
def run(ctx: click.Context, paper: str, as_json: bool) -> None:
    """Run the experiment of one paper (such as P10) and store its verdict in the package.

    A claim that fails is a finding, not an error: the exit code is 0. Beds that need the real assets are skipped
    with the reason where NETT_ASSETS is not set.
    """
    import json

    from nett.core.claims import checkout, find_claim, run_claim

    claim = find_claim(paper, checkout())
    if ctx.obj["dry_run"]:
        click.echo(f"would run {claim.file}: {claim.claim}")
        return
    record = run_claim(claim)
    if as_json:
        click.echo(json.dumps(record, indent=2, ensure_ascii=False))
        return
    click.echo(f"{claim.paper}: {claim.claim}")
    for check in record["checks"]:
        click.echo(f"  {'holds' if check['holds'] else 'FAILS'}  {check['rule']}\n         {check['figures']}")
    for text in record["because"]:
        click.echo(f"  {text}")
    for bed, why in record["skipped"].items():
        click.echo(f"  skipped {bed}: {why}")
    click.echo(f"{claim.paper} {record['verdict']}, on {', '.join(record['beds'])} ({record['seconds']} s)")


@command.command()
@click.pass_context
def table(ctx: click.Context) -> None:
    """Write docs/claims.md from the stored results."""
    from nett.core.claims import checkout, claims_of
    from nett.core.claims_page import claims_page

    root = checkout()
    claims = claims_of(root)
    page, target = claims_page(claims), root / "docs" / "claims.md"
    if ctx.obj["dry_run"]:
        click.echo(f"would write {target}: {len(claims)} claims, {len(page.encode()):,} bytes")
        return
    target.parent.mkdir(exist_ok=True)
    target.write_text(page, encoding="utf-8")
    click.echo(f"{target}: {len(claims)} claims")
