"""``nett restore OUT [--task NAME] [--out DIR]``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--task", help="Which of the tasks to rebuild.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--base", type=click.Path(path_type=Path), help="Where the base lies now, if it was moved.")
@click.option("--overwrite", is_flag=True, help="Replace the folder --out if it exists.")
@click.pass_context
def command(
    ctx: click.Context, output: Path, task: str | None, out: Path | None, base: Path | None, overwrite: bool
) -> None:
    """Undo what the receipt describes, wherever the method is reversible; or rebuild one task."""
    import importlib

    from nett.core.receipt import locate, module_of, read_receipt

    output, inside = locate(output)
    receipt = read_receipt(output)
    engine = importlib.import_module(module_of(receipt))
    done = engine.restore(
        output,
        receipt,
        task=task or inside or None,
        out=out,
        base=base,
        overwrite=overwrite,
        dry_run=ctx.obj["dry_run"],
    )
    for line in done["say"]:
        click.echo(line)
