"""Envelopes (DSSE): a payload as it is, and the signatures of it by any number of keys, on one line of JSON.

    {"payload": base64, "payloadType": TYPE, "signatures": [{"keyid": hex, "sig": base64}]}

A signature is over ``DSSEv1 LEN payloadType LEN payload``, lengths in bytes, decimal: over the stored bytes of the
payload, which is to be parsed only after a signature of it was found good.

Source: DSSE v1 (secure-systems-lab/dsse, protocol.md).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from nett.core.errors import ProofFailed, Refused
from nett.core.keys import PublicKey

if TYPE_CHECKING:
    from securesystemslib.dsse import Envelope

PAYLOAD = "application/vnd.in-toto+json"
_LARGEST = 1 << 28  # bytes of an envelope


def line(envelope: Envelope) -> bytes:
    """The one way in which nett writes an envelope. A file that is not written so was changed."""
    found = envelope.to_dict()
    found["signatures"] = [{"keyid": s["keyid"], "sig": s["sig"]} for s in found["signatures"]]
    return json.dumps(found, separators=(",", ":")).encode() + b"\n"


def read(place: Path) -> Envelope:
    """The envelope in a file, unverified. ProofFailed where it is not as nett writes it, to the byte."""
    from securesystemslib.dsse import Envelope

    try:
        with place.open("rb") as file:
            blob = file.read(_LARGEST + 1)
        if len(blob) > _LARGEST:
            raise ValueError(f"more than {_LARGEST:,} bytes")
        envelope = Envelope.from_dict(json.loads(blob))
        named = all(isinstance(keyid, str) and keyid.isprintable() for keyid in envelope.signatures)
        if not named or line(envelope) != blob or envelope.payload_type != PAYLOAD:
            raise ValueError("not written so by nett")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProofFailed(f"is not a signed receipt, or was changed: {error}", where=place) from error
    return envelope


def envelope_for(payload: bytes, place: Path, overwrite: bool) -> Envelope:
    """The envelope that is there if it says the same, else a new one."""
    from securesystemslib.dsse import Envelope

    if place.exists() and not overwrite:
        hint = "Add --overwrite to replace it and all signatures in it."
        try:
            envelope = read(place)
        except ProofFailed as error:
            raise Refused(error.what, where=place, hint=hint) from error
        if envelope.payload != payload:
            raise Refused("holds signatures of what this output was before", where=place, hint=hint)
        return envelope
    return Envelope(payload, PAYLOAD, {})


def signed_by(envelope: Envelope, key: PublicKey) -> bool:
    from securesystemslib.exceptions import VerificationError

    try:
        envelope.verify([key.key], 1)
    except VerificationError:
        return False
    return True
