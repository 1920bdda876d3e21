"""``nett verify OUT``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the findings as JSON."
)
@click.option("--rerun", is_flag=True, help="Also do the work again from the inputs and compare every byte.")
def command(out: Path, json_file: Path | None, rerun: bool) -> None:
    """Check an output against the receipt it carries: files, inputs, and what the method guarantees.

    Exits 4 if anything does not hold.
    """
    import importlib
    import json

    from nett.core.errors import ProofFailed
    from nett.core.receipt import check_files, module_of, read_receipt

    receipt = read_receipt(out)
    checks = check_files(out, receipt)
    if all(c["ok"] for c in checks):
        engine = importlib.import_module(module_of(receipt))
        checks += engine.verify(out, receipt, rerun=rerun)
    ok = all(c["ok"] for c in checks)
    if json_file is not None:
        found = {"out": str(out), "ok": ok, "checks": checks, "edges": receipt["edges"]}
        json_file.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    for check in checks:
        click.echo(f"{'ok    ' if check['ok'] else 'FAILED'}  {check['name']}: {check['detail']}")
    if not ok:
        wrong = [c["name"] for c in checks if not c["ok"]]
        raise ProofFailed(f"{len(wrong)} of {len(checks)} checks failed: {', '.join(wrong[:5])}", where=out)
    click.echo(f"{out}: all {len(checks)} checks hold")
