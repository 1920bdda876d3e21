"""Signatures of outputs: receipts that cannot be rewritten together with their outputs.

Two files: receipt.intoto.jsonl, the receipt and the hash of every file as a signed statement; and on request
model.sig over the same files, for those who check models with the package model-signing and not with nett.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nett.core.envelope import envelope_for, line, read, signed_by
from nett.core.errors import NettError, ProofFailed, Refused
from nett.core.keys import PASSPHRASE, PublicKey, private_key, public_key
from nett.core.model_sig import NAME as MODEL_SIG
from nett.core.model_sig import check_key
from nett.core.model_sig import problem as model_problem
from nett.core.model_sig import signature as model_signature
from nett.core.receipt import check_files, read_receipt, receipt_path
from nett.core.staging import put_file
from nett.core.statement import NAME, Check, against, statement

if TYPE_CHECKING:
    from securesystemslib.dsse import Envelope


def signature_path(out: Path) -> Path:
    """Where the signed receipt of an output lies: beside its receipt."""
    return _beside(out, NAME)


def model_sig_path(out: Path) -> Path:
    return _beside(out, MODEL_SIG)


def _beside(out: Path, name: str) -> Path:
    return out / name if receipt_path(out).parent == out else out.with_suffix(f".{name}")


def sign(
    out: Path,
    key: Path,
    *,
    passphrase_env: str = PASSPHRASE,
    model_sig: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Sign an output that matches its receipt. The receipt itself is not changed.

    A statement that others have signed already, and that is still true, gets one signature more.

    Args:
        out: a folder that nett wrote, or FILE.safetensors.
        key: the private key, PEM.
        passphrase_env: the variable of the environment that holds the passphrase of an encrypted key.
        model_sig: also write model.sig, by the package model-signing.
        overwrite: replace signatures of what the output was before, and model.sig.
        dry_run: say what would be signed and write nothing.
    """
    signer = private_key(key, passphrase_env)
    place, model_place = signature_path(out), model_sig_path(out)
    receipt = read_receipt(out)
    if not receipt["outputs"]:
        hint = "A store goes on changing; sign what is restored from it or made of it."
        raise Refused("names no output files in its receipt, so there is nothing to sign", where=out, hint=hint)
    wrong = [c for c in check_files(out, receipt) if not c["ok"]]
    if wrong:
        raise ProofFailed(f"is not signed, for {wrong[0]['name']} {wrong[0]['detail']}", where=out)
    if model_sig:
        check_key(signer)
        if model_place.exists() and not overwrite:
            raise Refused("exists", where=model_place, hint="Add --overwrite to replace it.")
    payload = statement(out, receipt)
    envelope = envelope_for(payload, place, overwrite)
    result = {
        "signature": str(place),
        "keyid": signer.public.keyid,
        "kind": signer.kind,
        "files": [s["name"] for s in json.loads(payload)["subject"]],
        "model_sig": str(model_place) if model_sig else None,
        "proof": receipt.get("proof", "kept"),
    }
    if dry_run:
        return {"plan": result}
    envelope.sign(signer.signer)
    if not signed_by(envelope, signer.public):
        raise NettError("the signature just made does not verify", where=key)
    outside = [MODEL_SIG, NAME] if out.is_dir() else []  # so that a second signature breaks nothing
    model = model_signature(out, signer, outside) if model_sig else None
    try:
        put_file(place, line(envelope))
        if model is not None:
            put_file(model_place, model)
    except OSError as error:
        raise Refused(f"cannot be written: {error.strerror}", where=place) from error
    return result | {"signatures": len(envelope.signatures)}


def verify(out: Path, keys: Sequence[Path]) -> list[Check]:
    """Check an output's signatures. Every signature file must be signed by a key given, and every key have signed one.

    Hashes every signed file but those that a receipt found genuine names: ``check_files`` does these. ProofFailed:
    there is no signed receipt, or the file is not one; Refused: a key cannot be read.
    """
    publics = [public_key(k) for k in keys]
    place, model_place = signature_path(out), model_sig_path(out)
    if not out.exists():
        raise Refused("there is no such file or folder", where=out)
    if not place.is_file():
        hint = f"Sign it with the private key: nett sign {out} --key KEY. Or leave out --key to check the receipt only."
        raise ProofFailed(f"is not signed: there is no {place.name}", where=out, hint=hint)
    envelope = read(place)
    good = [k for k in publics if signed_by(envelope, k)]
    checks = [_signature_check(place, envelope, good, publics)]
    signers = {k.path for k in good}
    if model_place.is_file():
        problems = {k: model_problem(out, model_place, k) for k in publics}
        held = [k for k, problem in problems.items() if problem is None]
        said = "; ".join(f"{k.path}: {problem}" for k, problem in problems.items())
        detail = f"model-signing: {_names(held)}" if held else f"model-signing says: {said}"
        checks.append({"name": f"signature {model_place.name}", "ok": bool(held), "detail": detail})
        signers |= {k.path for k in held}
    if good:
        idle = [k for k in publics if k.path not in signers]
        checks += [{"name": f"key {k.path}", "ok": False, "detail": "has signed nothing here"} for k in idle]
        checks += against(out, envelope.payload)
    return checks


def _signature_check(place: Path, envelope: Envelope, good: Sequence[PublicKey], given: Sequence[PublicKey]) -> Check:
    found = ", ".join(sorted(envelope.signatures)) or "none"
    detail = _names(good) if good else f"no good signature by {_names(given)}; the file names the keys: {found}"
    return {"name": f"signature {place.name}", "ok": bool(good), "detail": detail}


def _names(keys: Iterable[PublicKey]) -> str:
    return ", ".join(f"{k.path} ({k.kind}, {k.keyid[:16]}…)" for k in keys)
