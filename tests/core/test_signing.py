"""Signed receipts: what is signed, by an independent reader of the envelope; that whatever is changed is found."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("securesystemslib", reason="the extra 'sign' is not installed")

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nett.core import signing
from nett.core.errors import NettError, ProofFailed, Refused
from nett.core.tiny import fine_tune_of, write_llama
from support.cli import nett
from support.signing import KINDS, flip, keyid_of, opened, put, write_pair
from support.tensors import read_tensors, write_tensors

ED = Ed25519PrivateKey.generate()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Masks, a folder that can be restored, and a single file; keys of each kind; nothing is signed."""
    folder = tmp_path_factory.mktemp("made")
    base = write_llama(folder / "base")
    models = [str(fine_tune_of(base, folder / f"m{i}", seed=i)) for i in (1, 2)]
    nett("merge", "tall_masks", *models, "--base", str(base), "--no-speak", "--out", str(folder / "out")).succeeded()
    nett("convert", str(base), str(folder / "one.safetensors")).succeeded()
    for kind, new in KINDS.items():
        write_pair(folder / "keys", kind, ED if kind == "Ed25519" else new())
    write_pair(folder / "keys", "other", Ed25519PrivateKey.generate())
    return folder


@pytest.fixture
def keys(made: Path) -> Path:
    return made / "keys"


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


@pytest.fixture
def signed(out: Path, keys: Path) -> Path:
    signing.sign(out, keys / "Ed25519.pem")
    return out


def wrong(out: Path, *publics: Path) -> list[str]:
    """The names of the checks that do not hold; the message instead where the file is not even an envelope."""
    try:
        return [c["name"] for c in signing.verify(out, publics) if not c["ok"]]
    except ProofFailed as error:
        return [error.what]


def state(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def reseal(folder: Path) -> None:
    """Make the receipt agree with the files, as somebody would who wants to deceive."""
    receipt = json.loads((folder / "nett.json").read_text())
    for output in receipt["outputs"]:
        blob = (folder / output["path"]).read_bytes()
        output |= {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
    (folder / "nett.json").write_text(json.dumps(receipt))


def parts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "receipt.intoto.jsonl").read_text())
    return found


# -- what is signed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_independent_reader_verifies_it(out: Path, keys: Path, kind: str) -> None:
    """PAE and signature by cryptography alone; the statement by hashes that the test computes."""
    before = state(out)
    done = signing.sign(out, keys / f"{kind}.pem")
    statement = opened(out / "receipt.intoto.jsonl", keys / f"{kind}.pub")
    with pytest.raises(InvalidSignature):
        opened(out / "receipt.intoto.jsonl", write_pair(out.parent, "new", KINDS[kind]())[1])
    receipt = json.loads(before["nett.json"])
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://nett/receipt/v1"
    subjects = {s["name"]: s["digest"] for s in statement["subject"]}
    assert subjects == {n: {"sha256": hashlib.sha256(b).hexdigest()} for n, b in before.items()}
    assert {o["path"] for o in receipt["outputs"]} | {"nett.json"} <= subjects.keys()
    assert {k: v for k, v in statement["predicate"].items() if k != "materials"} == receipt
    inputs = {f["path"]: f["sha256"] for i in receipt["inputs"] for f in i["files"]}
    assert {m["name"]: m["digest"]["sha256"] for m in statement["predicate"]["materials"]} == inputs
    assert inputs == {p: hashlib.sha256(Path(p).read_bytes()).hexdigest() for p in inputs} and len(inputs) == 3
    # nothing but the envelope was written
    assert {n: b for n, b in state(out).items() if n != "receipt.intoto.jsonl"} == before
    assert done["kind"] == kind and done["signatures"] == 1 and parts(out)["signatures"][0]["keyid"] == done["keyid"]
    assert wrong(out, keys / f"{kind}.pub") == []


def test_one_line_as_in_toto_names_it(signed: Path) -> None:
    blob = (signed / "receipt.intoto.jsonl").read_bytes()
    assert blob.endswith(b"}\n") and blob.count(b"\n") == 1
    assert list(parts(signed)) == ["payload", "payloadType", "signatures"]
    assert parts(signed)["payloadType"] == "application/vnd.in-toto+json"
    assert parts(signed)["signatures"][0]["keyid"] == keyid_of(ED)


def test_a_number_that_json_has_not_is_null(out: Path, keys: Path) -> None:
    receipt = json.loads((out / "nett.json").read_text())
    receipt["figures"]["broken"] = float("nan")
    (out / "nett.json").write_text(json.dumps(receipt))
    signing.sign(out, keys / "Ed25519.pem")
    assert opened(out / "receipt.intoto.jsonl", keys / "Ed25519.pub")["predicate"]["figures"]["broken"] is None
    assert wrong(out, keys / "Ed25519.pub") == []


# -- whatever is changed ----------------------------------------------------------------------------------------


def test_bits_of_the_envelope(signed: Path, keys: Path) -> None:
    """One of every byte outside the payload (names, type, key id, signature, the line's end), and of 120 in it."""
    file, public, pick = signed / "receipt.intoto.jsonl", keys / "Ed25519.pub", random.Random(1)
    blob = file.read_bytes()
    start = blob.index(b'"payload":"') + 11
    stop = start + len(parts(signed)["payload"])
    outside = [b for b in range(len(blob)) if not start <= b < stop]
    bits = [8 * b + pick.randrange(8) for b in [*outside, *pick.sample(range(start, stop), 120)]]
    spare = [*range(8 * stop - 24, 8 * stop), *range(8 * len(blob) - 56, 8 * len(blob) - 32)]  # ends of base64
    for bit in [*bits, *spare]:
        flip(file, bit)
        assert wrong(signed, public), bit
        file.write_bytes(blob)
    assert len(outside) > 200 and wrong(signed, public) == []


def test_every_file_that_was_signed(signed: Path, keys: Path) -> None:
    """Bits of receipt, page and outputs; ``nett verify`` says which file it was."""
    for name, blob in state(signed).items():
        if name == "receipt.intoto.jsonl":
            continue
        for bit in random.Random(name).sample(range(len(blob) * 8), 6):
            flip(signed / name, bit)
            nett("verify", str(signed), "--key", str(keys / "Ed25519.pub")).failed(4, name)
            (signed / name).write_bytes(blob)
        (signed / name).unlink()
        nett("verify", str(signed), "--key", str(keys / "Ed25519.pub")).failed(4, name)
        (signed / name).write_bytes(blob)
    nett("verify", str(signed), "--key", str(keys / "Ed25519.pub")).succeeded()


def test_a_receipt_rewritten_with_its_output(made: Path, tmp_path: Path, keys: Path) -> None:
    """Unsigned, such a forgery passes where nothing else can be compared; signed, it does not."""
    shutil.copytree(made / "base", tmp_path / "base")
    out = tmp_path / "out"
    nett("convert", str(tmp_path / "base"), str(out)).succeeded()
    signing.sign(out, keys / "Ed25519.pem")
    shutil.rmtree(tmp_path / "base")
    tensors = read_tensors(out / "model.safetensors")
    name = next(n for n, a in tensors.items() if a.ndim == 2)
    tensors[name][:] = 0
    write_tensors(out / "model.safetensors", tensors)
    reseal(out)
    nett("verify", str(out)).succeeded()  # the forgery holds against everything but the signature
    said = nett("verify", str(out), "--key", str(keys / "Ed25519.pub")).failed(4, "signed nett.json")
    assert "FAILED  signed model.safetensors" in said.out and "values" not in said.out


def test_files_added_after_the_signing(signed: Path, keys: Path) -> None:
    names = ["added.bin", "masks/added.py", ".hidden", "deeper/er/still.json"]
    for name in names:
        (signed / name).parent.mkdir(parents=True, exist_ok=True)
        (signed / name).write_text("x")
    assert sorted(wrong(signed, keys / "Ed25519.pub")) == sorted(f"file {n}" for n in names)
    nett("verify", str(signed)).succeeded()  # as before signatures were
    said = nett("verify", str(signed), "--key", str(keys / "Ed25519.pub")).failed(4, "file added.bin")
    assert "is not signed" in said.out and "receipt.intoto.jsonl, model.sig and git's own files" in said.out


def test_a_folder_behind_a_link_is_noticed(signed: Path, keys: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (signed / "linked").symlink_to(tmp_path / "elsewhere")
    assert wrong(signed, keys / "Ed25519.pub") == ["file linked"]
    with pytest.raises(Refused, match="'linked'"):
        signing.sign(signed, keys / "Ed25519.pem", overwrite=True)


def test_a_name_that_is_no_text_is_noticed(signed: Path, keys: Path) -> None:
    Path(os.fsdecode(os.fsencode(signed) + b"/\xff\x1b[2J")).write_text("x")
    said = nett("verify", str(signed), "--key", str(keys / "Ed25519.pub")).failed(4)
    assert "\\xff" in said.out or "\\udcff" in said.out
    assert "\x1b" not in said.out + said.err
    with pytest.raises(Refused, match="no plain name"):
        signing.sign(signed, keys / "Ed25519.pem", overwrite=True)


def test_files_added_before_the_signing_are_signed(out: Path, keys: Path) -> None:
    (out / "README.md").write_text("a card")
    signing.sign(out, keys / "Ed25519.pem")
    assert wrong(out, keys / "Ed25519.pub") == []
    (out / "README.md").write_text("another card")
    assert wrong(out, keys / "Ed25519.pub") == ["signed README.md"]


def test_what_git_adds_is_not_signed(signed: Path, keys: Path) -> None:
    (signed / ".git").mkdir()
    (signed / ".git" / "HEAD").write_text("ref: refs/heads/main")
    (signed / ".gitattributes").write_text("*.safetensors filter=lfs")
    assert wrong(signed, keys / "Ed25519.pub") == []
    (signed / "masks" / ".gitattributes").write_text("only at the top")
    assert wrong(signed, keys / "Ed25519.pub") == ["file masks/.gitattributes"]


def test_links_to_the_very_files_are_the_files(signed: Path, keys: Path, tmp_path: Path) -> None:
    """As the Hugging Face cache lays a downloaded folder out."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, name in enumerate(state(signed)):
        (signed / name).rename(blobs / str(number))
        (signed / name).symlink_to(blobs / str(number))
    assert wrong(signed, keys / "Ed25519.pub") == []


# -- who signed -------------------------------------------------------------------------------------------------


def test_another_key(signed: Path, keys: Path) -> None:
    for public in ("other.pub", "ECDSA P-256.pub", "ECDSA P-384.pub"):
        said = nett("verify", str(signed), "--key", str(keys / public)).failed(4, "signature receipt.intoto.jsonl")
        assert public in said.out and keyid_of(ED) in said.out and "file masks" not in said.out


def test_two_signatures(signed: Path, keys: Path) -> None:
    """Of one statement: both are asked for by giving both keys, each holds without the other."""
    one = parts(signed)
    assert signing.sign(signed, keys / "ECDSA P-384.pem")["signatures"] == 2
    assert signing.sign(signed, keys / "Ed25519.pem")["signatures"] == 2  # the same key again: still one each
    both = parts(signed)
    assert both["payload"] == one["payload"] and both["signatures"][0] == one["signatures"][0]
    ed, p384, other = (keys / f"{k}.pub" for k in ("Ed25519", "ECDSA P-384", "other"))
    for given in ([ed], [p384], [ed, p384]):
        assert wrong(signed, *given) == []
    assert wrong(signed, ed, other) == [f"key {other}"]
    both["signatures"][1]["sig"] = one["signatures"][0]["sig"]  # the second key's signature replaced by the first's
    (signed / "receipt.intoto.jsonl").write_text(json.dumps(both, separators=(",", ":")) + "\n")
    assert wrong(signed, ed) == [] and wrong(signed, p384) == ["signature receipt.intoto.jsonl"]
    assert wrong(signed, ed, p384) == [f"key {p384}"]


@pytest.mark.parametrize("keyid", ["", "0" * 64, 7, "\n", None])
def test_the_name_of_the_key_counts(signed: Path, keys: Path, keyid: Any) -> None:
    """A good signature under another name, or under none, is not taken."""
    content = parts(signed)
    content["signatures"][0]["keyid"] = keyid
    (signed / "receipt.intoto.jsonl").write_text(json.dumps(content, separators=(",", ":")) + "\n")
    nett("verify", str(signed), "--key", str(keys / "Ed25519.pub")).failed(4)


def test_a_key_named_by_another_does_not_help(signed: Path, keys: Path) -> None:
    """Signed by a stranger who writes the expected key's name beside it."""
    payload = base64.b64decode(parts(signed)["payload"])
    put(signed / "receipt.intoto.jsonl", payload, Ed25519PrivateKey.generate(), keyid_of(ED))
    assert wrong(signed, keys / "Ed25519.pub") == ["signature receipt.intoto.jsonl"]
    put(signed / "receipt.intoto.jsonl", payload, ED, keyid_of(ED))
    assert wrong(signed, keys / "Ed25519.pub") == []


# -- the payload, with a good signature but something else in it ------------------------------------------------


def test_a_payload_is_not_parsed_before_its_signature(
    signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(signing, "against", lambda *_: seen.append(1) or [])
    assert wrong(signed, keys / "other.pub") and not seen
    assert wrong(signed, keys / "Ed25519.pub") == [] and seen


def altered(statement: dict[str, Any], case: str) -> Any:
    subjects = statement["subject"]
    if case == "no list":
        return []
    if case == "type":
        return statement | {"_type": "https://in-toto.io/Statement/v0.1"}
    if case == "predicate type":
        return statement | {"predicateType": "https://model_signing/signature/v1.0"}
    if case == "no receipt":
        return statement | {"subject": [s for s in subjects if s["name"] != "nett.json"]}
    if case == "no output":
        return statement | {"subject": [s for s in subjects if s["name"] != "masks/m1.safetensors"]}
    if case == "other output":
        changed = [s | ({"digest": {"sha256": "0" * 64}} if "m1" in s["name"] else {}) for s in subjects]
        return statement | {"subject": changed}
    if case == "more":
        return statement | {"subject": [*subjects, {"name": "gone.bin", "digest": {"sha256": "0" * 64}}]}
    if case == "no digest":
        return statement | {"subject": [{"name": s["name"]} for s in subjects]}
    if case == "figure":
        return statement | {"predicate": statement["predicate"] | {"seconds": -1}}
    assert case == "materials"
    return statement | {"predicate": statement["predicate"] | {"materials": []}}


@pytest.mark.parametrize(
    ("case", "check"),
    [
        ("no list", "statement"),
        ("type", "statement"),
        ("predicate type", "statement"),
        ("no receipt", "signed nett.json"),
        ("no output", "statement"),
        ("other output", "statement"),
        ("more", "signed gone.bin"),
        ("no digest", "statement"),
        ("figure", "statement"),
        ("materials", "statement"),
    ],
)
def test_statements_that_do_not_fit_the_receipt(signed: Path, keys: Path, case: str, check: str) -> None:
    statement = altered(opened(signed / "receipt.intoto.jsonl", keys / "Ed25519.pub"), case)
    put(signed / "receipt.intoto.jsonl", json.dumps(statement).encode(), ED, keyid_of(ED))
    assert check in wrong(signed, keys / "Ed25519.pub")
    nett("verify", str(signed), "--key", str(keys / "Ed25519.pub")).failed(4)


@pytest.mark.parametrize("payload", [b"", b"\xff\xfe", b"[" * 100_000, b"null", b"{}", b'{"_type": 1}'])
def test_signed_nonsense(signed: Path, keys: Path, payload: bytes) -> None:
    put(signed / "receipt.intoto.jsonl", payload, ED, keyid_of(ED))
    assert wrong(signed, keys / "Ed25519.pub") == ["statement"]


def test_another_payload_type(signed: Path, keys: Path) -> None:
    payload = base64.b64decode(parts(signed)["payload"])
    put(signed / "receipt.intoto.jsonl", payload, ED, keyid_of(ED), kind="application/json")
    with pytest.raises(ProofFailed, match="not a signed receipt"):
        signing.verify(signed, [keys / "Ed25519.pub"])


@pytest.mark.parametrize(
    "blob", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"payload":"","payloadType":"","signatures":[1]}', b"null"]
)
def test_no_envelope(signed: Path, keys: Path, blob: bytes) -> None:
    (signed / "receipt.intoto.jsonl").write_bytes(blob)
    nett("verify", str(signed), "--key", str(keys / "Ed25519.pub")).failed(4, "not a signed receipt")
    with pytest.raises(Refused, match="--overwrite"):
        signing.sign(signed, keys / "Ed25519.pem")


def test_another_writing_of_a_good_envelope_is_a_change(signed: Path, keys: Path) -> None:
    """Spaces, a second line, an unknown field: a signature does not cover them, so they are not let through."""
    file, public = signed / "receipt.intoto.jsonl", keys / "Ed25519.pub"
    content, blob = parts(signed), file.read_bytes()
    for other in (json.dumps(content).encode(), blob + blob, blob.rstrip(), json.dumps(content | {"x": 1}).encode()):
        file.write_bytes(other)
        with pytest.raises(ProofFailed):
            signing.verify(signed, [public])


# -- what may be signed -----------------------------------------------------------------------------------------


def test_an_output_that_does_not_match_its_receipt_is_not_signed(out: Path, keys: Path) -> None:
    flip(out / "masks/m1.safetensors", 5001)
    before = state(out)
    with pytest.raises(ProofFailed, match=r"masks/m1\.safetensors sha256 differs"):
        signing.sign(out, keys / "Ed25519.pem")
    assert state(out) == before


def test_a_receipt_without_outputs_is_not_signed(out: Path, keys: Path) -> None:
    """As that of a store, whose files come and go."""
    receipt = json.loads((out / "nett.json").read_text())
    (out / "nett.json").write_text(json.dumps({**receipt, "outputs": []}))
    shutil.rmtree(out / "masks")
    (out / "multi_task_vector.safetensors").unlink()
    nett("sign", str(out), "--key", str(keys / "Ed25519.pem")).failed(3, "no output files", "store")


def test_a_signature_of_what_was_before_is_kept_unless_told(signed: Path, keys: Path) -> None:
    (signed / "README.md").write_text("a card")
    before = state(signed)
    with pytest.raises(Refused, match="--overwrite"):
        signing.sign(signed, keys / "other.pem")
    assert state(signed) == before
    assert signing.sign(signed, keys / "other.pem", overwrite=True)["signatures"] == 1
    assert wrong(signed, keys / "other.pub") == [] and wrong(signed, keys / "Ed25519.pub")


def test_nothing_is_left_where_it_cannot_be_written(out: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = state(out)
    monkeypatch.setattr("nett.core.staging.os.fsync", full)
    with pytest.raises(NettError, match="No space left"):
        signing.sign(out, keys / "Ed25519.pem")
    assert state(out) == before


def test_a_single_file(made: Path, tmp_path: Path, keys: Path) -> None:
    """What belongs to it is beside it; other files there are not its business."""
    for file in made.glob("one.*"):
        shutil.copy(file, tmp_path)
    out = tmp_path / "one.safetensors"
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    signing.sign(out, keys / "Ed25519.pem")
    after = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert after.keys() - before.keys() == {"one.receipt.intoto.jsonl"} and after | before == after
    statement = opened(tmp_path / "one.receipt.intoto.jsonl", keys / "Ed25519.pub")
    assert {s["name"] for s in statement["subject"]} == {"one.safetensors", "one.nett.json", "one.nett.html"}
    (tmp_path / "two.safetensors").write_bytes(b"not ours")
    nett("verify", str(out), "--key", str(keys / "Ed25519.pub")).succeeded()
    nett("verify", str(out)).succeeded()
    for name in before:
        flip(tmp_path / name, 8 * (len(before[name]) // 2))
        nett("verify", str(out), "--key", str(keys / "Ed25519.pub")).failed(4, name)
        (tmp_path / name).write_bytes(before[name])
