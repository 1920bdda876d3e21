"""``nett convert IN OUT``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("source", metavar="IN")
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--dtype", metavar="TEXT", help="Element type of all floats (float32, bfloat16, float16, …); by default"
              " each tensor's own, float32 where a GGUF is quantised.")  # fmt: skip
@click.option("--shard-size", metavar="TEXT", help="Largest size of an output file in a folder; default 5GB.")
@click.option("--threads", type=click.IntRange(0, 64), default=0, help="How many threads work; 0 for all that this"
              " process may use. The result does not depend on it.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@click.pass_context
def command(
    ctx: click.Context,
    source: str,
    out: Path,
    dtype: str | None,
    shard_size: str | None,
    threads: int,
    overwrite: bool,
) -> None:
    """Write any checkpoint as safetensors: from GGUF or torch files, in other shards, in another type.

    IN is a safetensors, GGUF or torch file, a folder of them, or BASE+ADAPTER. OUT is a folder that transformers
    loads, or FILE.safetensors: weights only, with the receipt beside it as FILE.nett.json.
    """
    import json

    from nett.core.convert import convert
    from nett.core.receipt import receipt_path

    done = convert(
        source,
        out,
        dtype=dtype,
        shard_size=shard_size,
        threads=threads,
        overwrite=overwrite,
        dry_run=ctx.obj["dry_run"],
    )
    if "plan" in done:
        click.echo(json.dumps(done, indent=2, ensure_ascii=False))
        return
    figures = done["figures"]
    click.echo(f"{out}: {figures['tensors']:,} tensors, {done['bytes_after']:,} bytes, {done['guarantee']}")
    click.echo(f"  {done['checks'][0]['detail']}")
    if figures["changed"]:
        click.echo(
            f"  largest error {figures['max_abs_error']:.4g} absolute, {figures['max_relative_error']:.4g} relative;"
            f" relative L2 {figures['relative_l2']:.4g}"
        )
    receipt = receipt_path(out)
    click.echo(f"Receipt: {receipt}   Report: {receipt.with_suffix('.html')}   Check it: nett verify {out}")
