"""Keys that sign and verify: PEM files as openssl writes them, Ed25519 or ECDSA on P-256 or P-384."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from nett.core.errors import Refused, missing_extra

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner, SSlibKey

PASSPHRASE = "NETT_KEY_PASSPHRASE"
ACCEPTED = "Ed25519, or ECDSA on P-256 or P-384"
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384"}
_LARGEST = 1 << 16  # bytes; a key has a few hundred
_MAKE = "Make one: openssl genpkey -algorithm ed25519 -out key.pem"
_PUBLISH = "openssl pkey -in key.pem -pubout -out key.pub"


@final
@dataclass(frozen=True)
class PrivateKey:
    """``passphrase``: what opened the file, if it is encrypted."""

    path: Path
    kind: str
    signer: CryptoSigner
    passphrase: bytes | None

    @property
    def public(self) -> PublicKey:
        return PublicKey(self.path, self.kind, self.signer.public_key)


@final
@dataclass(frozen=True)
class PublicKey:
    path: Path
    kind: str
    key: SSlibKey

    @property
    def keyid(self) -> str:
        """64 hexadecimal digits that name the key in an envelope: a hash of the public key."""
        return str(self.key.keyid)


def private_key(path: Path, passphrase_env: str = PASSPHRASE) -> PrivateKey:
    """The key in a PEM file, opened with the passphrase in a variable of the environment where it is encrypted.

    Refused: no such file, no PEM, a public key, another kind of key, a missing or wrong passphrase.
    """
    pem, labels = _read(path)
    signers = _library()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if "OPENSSH PRIVATE KEY" in labels:
        raise Refused("is a key in OpenSSH's own format; signing takes PEM", where=path, hint=_MAKE)
    if not any(label.endswith("PRIVATE KEY") for label in labels):
        hint = "Give the file of the pair that says BEGIN PRIVATE KEY." if "PUBLIC KEY" in labels else _MAKE
        raise Refused(f"is {_speak(labels)}; signing takes the private key", where=path, hint=hint)
    passphrase: bytes | None = None
    try:
        found = load_pem_private_key(pem, None)
    except TypeError:  # encrypted
        passphrase = _passphrase(path, passphrase_env)
        try:
            found = load_pem_private_key(pem, passphrase)
        except ValueError as error:
            raise Refused(f"is not opened by the passphrase in ${passphrase_env}", where=path) from error
    except Exception as error:
        raise Refused(f"is damaged or of an unknown kind: {error}", where=path, hint=_MAKE) from error
    kind = _kind(found, path)
    return PrivateKey(path, kind, signers.CryptoSigner(found), passphrase)


def public_key(path: Path) -> PublicKey:
    """The public key in a PEM file. Refused: no such file, no PEM, a private key, another kind of key."""
    pem, labels = _read(path)
    signers = _library()
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if labels != ["PUBLIC KEY"]:
        hint = f"Make it of the private one: {_PUBLISH}"
        raise Refused(f"is {_speak(labels)}; verifying takes one public key", where=path, hint=hint)
    try:
        found = load_pem_public_key(pem)
    except Exception as error:
        raise Refused(f"is damaged or of an unknown kind: {error}", where=path) from error
    return PublicKey(path, _kind(found, path), signers.SSlibKey.from_crypto(found))


def _library() -> Any:
    try:
        import cryptography.hazmat  # noqa: F401 (securesystemslib itself starts without it)
        import securesystemslib.signer
    except ImportError as error:
        raise missing_extra(error.name or "securesystemslib", "sign", "signing") from error
    return securesystemslib.signer


def _read(path: Path) -> tuple[bytes, list[str]]:
    """The file and the labels of the PEM blocks in it."""
    try:
        with path.open("rb") as file:
            pem = file.read(_LARGEST + 1)
    except OSError as error:
        raise Refused(f"the key cannot be read: {error.strerror}", where=path) from error
    labels = [label.decode() for label in re.findall(rb"-----BEGIN ([A-Z0-9 ]+)-----", pem)]
    if not labels or len(pem) > _LARGEST:
        raise Refused(f"is no key in PEM; accepted is {ACCEPTED}", where=path, hint=_MAKE)
    return pem, labels


def _speak(labels: list[str]) -> str:
    label = labels[0]
    if label == "PUBLIC KEY":
        return "a public key" if len(labels) == 1 else f"{len(labels)} keys in one file"
    return f"a {label.lower()}" if label[0] not in "EO" else f"an {label.lower().replace('ec ', 'EC ')}"


def _passphrase(path: Path, variable: str) -> bytes:
    word = os.environ.get(variable)
    if not word:
        raise Refused(
            f"is encrypted, and ${variable} is not set or empty",
            where=path,
            hint=f"Put its passphrase into that variable (read -rs {variable}; export {variable}), or name another"
            " one: --passphrase-env NAME",
        )
    return os.fsencode(word)


def _kind(key: Any, path: Path) -> str:
    """How people call the kind of a key, private or public. Refused where it is none of ours."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ed25519.Ed25519PrivateKey | ed25519.Ed25519PublicKey):
        return "Ed25519"
    if isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        name = f"ECDSA {_CURVES.get(key.curve.name, key.curve.name)}"
        if key.curve.name in _CURVES:
            return name
    elif isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey):
        name = f"RSA {key.key_size}"
    else:
        name = re.sub("(Private|Public)Key$", "", type(key).__name__)
    raise Refused(f"is a key of the kind {name}; accepted is {ACCEPTED}", where=path, hint=_MAKE)
