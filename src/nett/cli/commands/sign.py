"""``nett sign OUT --key K``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--key", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The private key, PEM as"
              " openssl writes it: Ed25519, or ECDSA on P-256 or P-384.")  # fmt: skip
@click.option("--passphrase-env", default="NETT_KEY_PASSPHRASE", show_default=True, metavar="NAME", help="Variable of"
              " the environment with the passphrase, where the key is encrypted.")  # fmt: skip
@click.option("--model-sig", is_flag=True, help="Also write model.sig over the folder, by the package model-signing"
              " (ECDSA keys only).")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace signatures of what OUT was before, and model.sig.")
@click.pass_context
def command(ctx: click.Context, out: Path, key: Path, passphrase_env: str, model_sig: bool, overwrite: bool) -> None:
    """Sign an output: its receipt and the sha256 of every file, as an in-toto statement in receipt.intoto.jsonl.

    OUT must match its receipt (exit code 4 if not), which is not changed. Signing again with another key adds a
    signature. Check with: nett verify OUT --key PUBLIC
    """
    import json

    from nett.core.signing import sign

    done = sign(
        out,
        key,
        passphrase_env=passphrase_env,
        model_sig=model_sig,
        overwrite=overwrite,
        dry_run=ctx.obj["dry_run"],
    )
    if "plan" in done:
        click.echo(json.dumps(done, indent=2, ensure_ascii=False))
        return
    click.echo(f"{done['signature']}: {len(done['files'])} files signed, {done['signatures']} signature(s) in all")
    click.echo(f"  with {key} ({done['kind']}), keyid {done['keyid']}")
    if done["model_sig"]:
        click.echo(f"{done['model_sig']}: by model-signing")
    if done["proof"] != "kept":
        click.echo(f"The receipt says: proof {done['proof']}. The signature does not make it better.")
    click.echo(f"Check it: nett verify {out} --key PUBLIC")
