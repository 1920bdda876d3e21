"""``nett bench ROOM [NAME…]``."""

from __future__ import annotations

import click


@click.command()
@click.argument("room", metavar="ROOM")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--json", "as_json", is_flag=True, help="The whole records as JSON.")
@click.option("--pico", is_flag=True, help="The smallest bed, one repetition, nothing stored: only whether it runs.")
@click.pass_context
def command(ctx: click.Context, room: str, names: tuple[str, ...], as_json: bool, pico: bool) -> None:
    """Measure a room's speed beside what else one would take. Needs a checkout of the sources.

    Results go to benchmarks/results, and benchmarks/README.md is written from them. A bar that is missed is a
    finding, not an error: the exit code is 0.
    """
    import json
    import tempfile
    from pathlib import Path

    from nett.core.bench import benches_of, find_benches, run_bench, store, stored
    from nett.core.bench_page import bench_page
    from nett.core.claims import checkout

    root = checkout("benchmarks")
    found = find_benches(room, names, root)
    if ctx.obj["dry_run"]:
        for bench in found:
            click.echo(f"would run {bench.file}: {bench.title}")
        return
    records = []
    for bench in found:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder) if pico else root / "benchmarks" / ".work" / bench.room
            record = run_bench(bench, work=work, pico=pico)
        records.append(record)
        if not pico:
            click.echo(f"stored in {store(bench, record)}", err=True)
        for figure in record["figures"] if not as_json else ():
            verdict = {True: "met", False: "MISSED", None: ""}[figure["met"]]
            bar = f"{figure['sense']} {figure['bar']:.3g}" if figure["bar"] is not None else ""
            click.echo(f"  {figure['value']:>8.4g} {figure['unit']:<14} {bar:<14} {verdict:<7} {figure['what']}")
        for what, why in record["skipped"].items() if not as_json else ():
            click.echo(f"  skipped {what}: {why}")
    if as_json:
        click.echo(json.dumps(records, indent=2, ensure_ascii=False))
    if not pico:
        page = bench_page(benches_of(root), stored(root))
        (root / "benchmarks" / "README.md").write_text(page, encoding="utf-8")
