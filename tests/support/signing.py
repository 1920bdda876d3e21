"""Keys of the tests, and a reader of envelopes that knows nothing of the code under test: cryptography and the PAE."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("securesystemslib", reason="the extra 'sign' is not installed")
pytest.importorskip("cryptography", reason="the extra 'sign' is not installed")

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

KINDS = {
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "ECDSA P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ECDSA P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
}
PAYLOAD_TYPE = "application/vnd.in-toto+json"


def write_pair(folder: Path, name: str, key: Any, passphrase: bytes | None = None) -> tuple[Path, Path]:
    """NAME.pem and NAME.pub."""
    folder.mkdir(parents=True, exist_ok=True)
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    lock = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def pae(kind: str, payload: bytes) -> bytes:
    """What DSSE v1 signs, written from its protocol.md: "DSSEv1" SP LEN(type) SP type SP LEN(body) SP body."""
    parts = [b"DSSEv1", str(len(kind.encode())).encode(), kind.encode(), str(len(payload)).encode(), payload]
    return b" ".join(parts)


def opened(file: Path, public: Path) -> dict[str, Any]:
    """The statement in an envelope; raises InvalidSignature unless its first signature is by ``public``."""
    envelope = json.loads(file.read_text())
    payload = base64.b64decode(envelope["payload"], validate=True)
    message = pae(envelope["payloadType"], payload)
    signature = base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
    key = load_pem_public_key(public.read_bytes())
    if isinstance(key, ec.EllipticCurvePublicKey):
        digest = hashes.SHA256() if key.key_size == 256 else hashes.SHA384()
        key.verify(signature, message, ec.ECDSA(digest))
    else:
        assert isinstance(key, ed25519.Ed25519PublicKey)
        key.verify(signature, message)
    statement: dict[str, Any] = json.loads(payload)
    return statement


def put(file: Path, payload: bytes, key: ed25519.Ed25519PrivateKey, keyid: str, kind: str = PAYLOAD_TYPE) -> None:
    """An envelope as nett writes it, around any payload, signed by hand."""
    sig = base64.b64encode(key.sign(pae(kind, payload))).decode()
    content = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": kind,
        "signatures": [{"keyid": keyid, "sig": sig}],
    }
    file.write_text(json.dumps(content, separators=(",", ":")) + "\n")


def keyid_of(key: ed25519.Ed25519PrivateKey) -> str:
    """sha256 of the key's description as canonical JSON, as the TUF specification defines the id of a key."""
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
    text = f'{{"keytype":"ed25519","keyval":{{"public":"{raw}"}},"scheme":"ed25519"}}'
    return hashlib.sha256(text.encode()).hexdigest()


def flip(file: Path, bit: int) -> None:
    """Turn one bit of a file over."""
    blob = bytearray(file.read_bytes())
    blob[bit // 8] ^= 1 << (bit % 8)
    file.write_bytes(blob)
