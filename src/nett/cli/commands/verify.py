"""``nett verify OUT``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


def _kept(folder: Path, *, rerun: bool) -> list[dict[str, Any]] | None:
    """The checks of a folder that is no output, and so carries no receipt, but that a room keeps for later work."""
    import importlib.util

    from nett.cli.app import rooms
    from nett.core.receipt import receipt_path

    if not folder.is_dir() or receipt_path(folder).is_file():
        return None
    for room in rooms():
        if importlib.util.find_spec(f"nett.{room}.engine") is None:
            continue
        engine = importlib.import_module(f"nett.{room}.engine")
        found = engine.verify_kept(folder, rerun=rerun) if hasattr(engine, "verify_kept") else None
        if found is not None:
            return list(found)
    return None


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the findings as JSON."
)
@click.option("--key", "keys", multiple=True, type=click.Path(path_type=Path), metavar="FILE", help="Also check that"
              " this public key (PEM) has signed it; may be given several times.")  # fmt: skip
@click.option("--rerun", is_flag=True, help="Also do the work again from the inputs and compare every byte.")
def command(out: Path, json_file: Path | None, keys: tuple[Path, ...], rerun: bool) -> None:
    """Check an output against the receipt it carries: files, inputs, and what the method guarantees.

    What a merge keeps with --state is checked too, by the hashes that stand in it.

    With --key also who signed it (nett sign): whatever was changed, replaced or added since is found. Exits 4 if
    anything does not hold, and if a key is given for an output that is not signed.
    """
    import importlib
    import json

    from nett.core import signing
    from nett.core.errors import ProofFailed
    from nett.core.receipt import check_files, module_of, read_receipt

    checks = signing.verify(out, keys) if keys else []
    edges: list[object] = []
    if all(c["ok"] for c in checks):  # what is not signed as it should be is not read any further
        kept = _kept(out, rerun=rerun)
        if kept is not None:
            checks += kept
        else:
            receipt = read_receipt(out)
            edges = receipt["edges"]
            checks += check_files(out, receipt)
            if all(c["ok"] for c in checks):
                engine = importlib.import_module(module_of(receipt))
                checks += engine.verify(out, receipt, rerun=rerun)
    ok = all(c["ok"] for c in checks)
    if json_file is not None:
        found = {"out": str(out), "ok": ok, "checks": checks, "edges": edges}
        json_file.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    for check in checks:
        click.echo(f"{'ok    ' if check['ok'] else 'FAILED'}  {check['name']}: {check['detail']}")
    if not ok:
        wrong = [c["name"] for c in checks if not c["ok"]]
        raise ProofFailed(f"{len(wrong)} of {len(checks)} checks failed: {', '.join(wrong[:5])}", where=out)
    click.echo(f"{out}: all {len(checks)} checks hold")
    if not keys and signing.signature_path(out).exists():
        click.echo("It is signed; by whom was not checked: --key PUBLIC does.")
