"""``model.sig``: a signature over all files of a folder, made and checked by the package model-signing.

That package refuses a payload that is not its own, so a receipt cannot be in it; but the receipt is one of the files
it covers. Anyone who has the package verifies the file without nett.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from nett.core.errors import Refused, missing_extra
from nett.core.keys import PrivateKey, PublicKey

NAME = "model.sig"
_OTHER = "if another key made it, give that one too"


def package() -> Any:
    """model-signing, imported: a second or more, since it brings a client of sigstore, which nothing here calls."""
    try:
        import model_signing
    except ImportError as error:
        raise missing_extra(error.name or "model_signing", "sign", NAME) from error
    return model_signing


def check_key(key: PrivateKey | PublicKey) -> None:
    """Refused where the package cannot use such a key."""
    if not key.kind.startswith("ECDSA"):
        raise Refused(
            f"is a key of the kind {key.kind}; {NAME} takes ECDSA on P-256 or P-384",
            where=key.path,
            hint="Make one: openssl ecparam -name prime256v1 -genkey -noout -out key.pem. Or leave out --model-sig.",
        )


def signature(out: Path, key: PrivateKey, ignored: list[str]) -> bytes:
    """The content of ``model.sig`` for a folder or a file. ``ignored``: names in the folder that it does not cover."""
    model_signing = package()
    check_key(key)
    hashing = model_signing.hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=True)
    config = model_signing.signing.Config().set_hashing_config(hashing)
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / NAME
        try:
            config.use_elliptic_key_signer(private_key=key.path, password=key.passphrase).sign(out, written)
        except ValueError as error:
            raise Refused(f"model-signing cannot sign it: {error}", where=out) from error
        return written.read_bytes()


def problem(out: Path, file: Path, key: PublicKey) -> str | None:
    """Why ``file`` is no signature of ``out`` by this key; None where it is one."""
    model_signing = package()
    try:
        check_key(key)
        model_signing.verifying.Config().use_elliptic_key_verifier(public_key=key.path).verify(out, file)
    except Refused as error:
        return f"{error.what}; {_OTHER}"
    except Exception as error:  # whatever stands in a file that anyone may have written
        said = _readable(str(error)) or f"wrong signature ({type(error).__name__})"
        return f"{said.strip()} {_OTHER}" if said.startswith("Key mismatch") else said
    return None


def _readable(message: str) -> str:
    """The package's message without its lists in Python's notation and the raw bytes of every digest."""
    said = message.removeprefix("Signature mismatch: [").replace("\\'", "'").lstrip("\"'")
    said = re.sub(r": Expected 'Digest\(.*?(?=Hash mismatch for|$)", "; ", said, flags=re.DOTALL)
    return re.sub(r"[\"']\]$", "", said).removesuffix("; ")
