"""``nett sign`` and ``nett verify --key`` as a user types them: openssl's keys, passphrases, model.sig, messages."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("securesystemslib", reason="the extra 'sign' is not installed")

from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa

from nett.core.tiny import fine_tune_of, write_llama
from support.cli import nett
from support.signing import KINDS, flip, opened, write_pair

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    base = write_llama(folder / "base")
    models = [str(fine_tune_of(base, folder / f"m{i}", seed=i)) for i in (1, 2)]
    nett("merge", "tall_masks", *models, "--base", str(base), "--no-speak", "--out", str(folder / "out")).succeeded()
    nett("convert", str(base), str(folder / "one.safetensors")).succeeded()
    for kind, new in KINDS.items():
        write_pair(folder / "keys", kind.split()[-1], new())
    write_pair(folder / "keys", "locked", KINDS["ECDSA P-384"](), b"correct horse")
    return folder


@pytest.fixture
def keys(made: Path) -> Path:
    return made / "keys"


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


def state(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_signing_changes_nothing_else(out: Path, keys: Path, tmp_path: Path) -> None:
    """The receipt stays as it is; verify without a key and restore go on as before."""
    before = state(out)
    said = nett("sign", str(out), "--key", str(keys / "Ed25519.pem")).succeeded()
    assert "5 files signed" in said.out and "Ed25519" in said.out and "nett verify" in said.out
    after = state(out)
    assert after.keys() - before.keys() == {"receipt.intoto.jsonl"} and after | before == after
    assert "by whom was not checked" in nett("verify", str(out)).succeeded().out
    said = nett("verify", str(out), "--key", str(keys / "Ed25519.pub"), "--json", str(tmp_path / "found.json"))
    assert "checks hold" in said.succeeded().out and "not checked" not in said.out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["ok"] and found["edges"]
    names = [c["name"] for c in found["checks"]]
    assert names.index("signature receipt.intoto.jsonl") < names.index("statement") < names.index("task m1")
    nett("restore", str(out), "--task", "m1", "--out", str(tmp_path / "m1")).succeeded()
    assert state(out) == after


def test_findings_of_a_wrong_signature_as_json(out: Path, keys: Path, tmp_path: Path) -> None:
    nett("sign", str(out), "--key", str(keys / "Ed25519.pem")).succeeded()
    line = ["verify", str(out), "--json", str(tmp_path / "found.json"), "--key", str(keys / "P-256.pub")]
    nett(*line).failed(4, "signature receipt.intoto.jsonl")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == {"out": str(out), "ok": False, "checks": found["checks"], "edges": []}
    assert [c["ok"] for c in found["checks"]] == [False]


def test_not_signed(out: Path, made: Path, keys: Path) -> None:
    for place in (out, made / "one.safetensors", made / "base"):
        nett("verify", str(place), "--key", str(keys / "Ed25519.pub")).failed(4, "is not signed", "nett sign", "--key")
    nett("verify", str(out / "nowhere"), "--key", str(keys / "Ed25519.pub")).failed(3, "no such file")


def test_what_cannot_be_signed(made: Path, keys: Path) -> None:
    nett("sign", str(made / "base"), "--key", str(keys / "Ed25519.pem")).failed(3, "carries no receipt")
    nett("sign", str(made / "nowhere"), "--key", str(keys / "Ed25519.pem")).failed(3, "no such file")
    nett("sign", str(made / "out")).failed(2, "--key")


def test_dry_run(out: Path, keys: Path) -> None:
    before = state(out)
    plan = json.loads(nett("--dry-run", "sign", str(out), "--key", str(keys / "P-256.pem")).succeeded().out)["plan"]
    assert plan["files"] == sorted(before) and plan["kind"] == "ECDSA P-256"
    assert state(out) == before


# -- keys -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize(
    "make",
    [
        "openssl genpkey -algorithm ed25519 -out K",
        "openssl ecparam -name prime256v1 -genkey -noout -out K",
        "openssl ecparam -name secp384r1 -genkey -out K",  # with a block of parameters before the key
        "openssl ecparam -name prime256v1 -genkey | openssl ec -aes256 -passout pass:secret -out K",
        "openssl genpkey -algorithm ed25519 -aes256 -pass pass:secret -out K",
    ],
)
def test_keys_of_openssl(out: Path, tmp_path: Path, make: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETT_KEY_PASSPHRASE", "secret")  # does no harm where the key is not encrypted
    publish = "openssl pkey -in K -passin pass:secret -pubout -out K.pub"
    subprocess.run(f"{make} && {publish}", shell=True, cwd=tmp_path, check=True, capture_output=True)
    nett("sign", str(out), "--key", str(tmp_path / "K")).succeeded()
    nett("verify", str(out), "--key", str(tmp_path / "K.pub")).succeeded()
    opened(out / "receipt.intoto.jsonl", tmp_path / "K.pub")


def test_passphrases(out: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["sign", str(out), "--key", str(keys / "locked.pem")]
    monkeypatch.delenv("NETT_KEY_PASSPHRASE", raising=False)
    nett(*line).failed(3, "is encrypted", "NETT_KEY_PASSPHRASE", "--passphrase-env")
    for word in ("wrong horse", ""):
        monkeypatch.setenv("NETT_KEY_PASSPHRASE", word)
        assert "horse" not in nett(*line).failed(3, "NETT_KEY_PASSPHRASE").err
    monkeypatch.setenv("OTHER", "correct horse")
    said = nett(*line, "--passphrase-env", "OTHER").succeeded()
    assert "horse" not in said.out
    nett("verify", str(out), "--key", str(keys / "locked.pub")).succeeded()


def test_wrong_keys(out: Path, keys: Path, tmp_path: Path) -> None:
    """Each is named with what it is and what is accepted; nothing is written."""
    before = state(out)
    odd = {
        "RSA 2048": rsa.generate_private_key(65537, 2048),
        "ECDSA secp521r1": ec.generate_private_key(ec.SECP521R1()),
        "ECDSA secp256k1": ec.generate_private_key(ec.SECP256K1()),
        "Ed448": ed448.Ed448PrivateKey.generate(),
    }
    for number, (kind, key) in enumerate(odd.items()):
        private, public = write_pair(tmp_path / "odd", str(number), key)
        nett("sign", str(out), "--key", str(private)).failed(3, kind, "Ed25519, or ECDSA on P-256 or P-384", "openssl")
        nett("verify", str(out), "--key", str(public)).failed(3, kind, "Ed25519, or ECDSA on P-256 or P-384")
    (tmp_path / "text").write_text("no key")
    (tmp_path / "damaged").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    (tmp_path / "damaged.pub").write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    (tmp_path / "two.pub").write_bytes((keys / "P-256.pub").read_bytes() + (keys / "P-384.pub").read_bytes())
    (tmp_path / "ssh").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n")
    (tmp_path / "long").write_bytes(b"-----BEGIN PRIVATE KEY-----\n" + bytes(1 << 17))
    for verb, place, part in (
        ("sign", keys / "Ed25519.pub", "is a public key; signing takes the private key"),
        ("verify", keys / "Ed25519.pem", "is a private key; verifying takes one public key"),
        ("verify", keys / "locked.pem", "is an encrypted private key"),
        ("verify", tmp_path / "two.pub", "is 2 keys in one file"),
        ("sign", tmp_path / "ssh", "OpenSSH's own format"),
        ("sign", tmp_path / "damaged", "is damaged"),
        ("verify", tmp_path / "damaged.pub", "is damaged"),
        ("sign", tmp_path / "text", "is no key in PEM"),
        ("verify", tmp_path / "text", "is no key in PEM"),
        ("sign", tmp_path / "long", "is no key in PEM"),
        ("sign", tmp_path / "nowhere", "No such file"),
        ("verify", tmp_path / "nowhere", "No such file"),
        ("sign", tmp_path, "Is a directory"),
    ):
        nett(verb, str(out), "--key", str(place)).failed(3, part, str(place))
    assert state(out) == before


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_key_of_somebody_else(out: Path, tmp_path: Path) -> None:
    private, _ = write_pair(tmp_path, "mine", KINDS["Ed25519"]())
    private.chmod(0)
    nett("sign", str(out), "--key", str(private)).failed(3, "Permission denied", str(private))


def test_without_the_extra(out: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "securesystemslib.signer", None)
    for verb, name in (("sign", "P-256.pem"), ("verify", "P-256.pub")):
        nett(verb, str(out), "--key", str(keys / name)).failed(3, "securesystemslib", "pip install 'nett[sign]'")
    nett("verify", str(out)).succeeded()


def test_the_extra_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """``nett doctor`` reads what the package declares; ``all`` and ``dev`` bring it along."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "sign" in extras["all"][0].partition("[")[2].rstrip("]").split(",")
    assert set(extras["sign"]) <= set(extras["dev"])
    wanted = [f"{line} ; extra == 'sign'" for line in extras["sign"]]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: wanted)
    found = json.loads(nett("doctor", "--json").succeeded().out)["extras"]["sign"]
    assert found.keys() == {"cryptography", "securesystemslib", "model-signing", "pyOpenSSL"}
    assert found["securesystemslib"] is not None
    assert "sign (nett sign, nett verify --key)" in nett("doctor").succeeded().out


# -- model.sig --------------------------------------------------------------------------------------------------


@pytest.fixture
def model_signing() -> None:
    pytest.importorskip("model_signing", reason="model-signing is not installed", exc_type=ImportError)


@pytest.mark.usefixtures("model_signing")
def test_model_sig(out: Path, keys: Path, tmp_path: Path) -> None:
    """Made by nett, verified by the package's own command; each of the two signatures finds a changed file."""
    before = state(out)
    said = nett("sign", str(out), "--key", str(keys / "P-256.pem"), "--model-sig").succeeded()
    assert "model.sig: by model-signing" in said.out
    assert state(out).keys() - before.keys() == {"receipt.intoto.jsonl", "model.sig"}
    nett("sign", str(out), "--key", str(keys / "Ed25519.pem")).succeeded()  # a second signature breaks nothing
    public = ["--key", str(keys / "P-256.pub")]
    theirs = [sys.executable, "-m", "model_signing", "verify", "key", str(out)]
    theirs += ["--signature", str(out / "model.sig"), "--public_key", str(keys / "P-256.pub")]
    done = subprocess.run(theirs, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "succeeded" in done.stdout
    assert "model-signing: " in nett("verify", str(out), *public).succeeded().out
    nett("verify", str(out)).succeeded()
    nett("restore", str(out), "--task", "m2", "--out", str(tmp_path / "m2")).succeeded()
    for name, blob in before.items():  # the receipt among them
        flip(out / name, 8 * (len(blob) // 2))
        said = nett("verify", str(out), *public).failed(4, "signature model.sig")
        assert f"Hash mismatch for '{name}'\n" in said.out
        (out / name).write_bytes(blob)
    (out / "added.txt").write_text("x")
    said = nett("verify", str(out), *public).failed(4, "signature model.sig", "file added.txt")
    assert "Extra files found in model 'out': added.txt\n" in said.out


@pytest.mark.usefixtures("model_signing")
def test_model_sig_of_another_key(out: Path, keys: Path) -> None:
    """Both files have to be by keys that were given; together the two keys are enough."""
    nett("sign", str(out), "--key", str(keys / "P-384.pem"), "--model-sig").succeeded()
    nett("sign", str(out), "--key", str(keys / "Ed25519.pem"), "--overwrite").succeeded()
    ed, p384, p256 = (["--key", str(keys / f"{k}.pub")] for k in ("Ed25519", "P-384", "P-256"))
    said = nett("verify", str(out), *ed).failed(4, "signature model.sig")
    assert "takes ECDSA" in said.out and "give that one too" in said.out
    assert "Key mismatch" in nett("verify", str(out), *p256).failed(4, "signature model.sig").out
    nett("verify", str(out), *p384).failed(4, "signature receipt.intoto.jsonl")
    nett("verify", str(out), *ed, *p384).succeeded()
    nett("verify", str(out), *ed, *p384, *p256).failed(4, f"key {p256[1]}")


@pytest.mark.usefixtures("model_signing")
def test_bits_of_model_sig(out: Path, keys: Path) -> None:
    """Bits of payload and signature; the package's reader accepts other writings of the same bundle, not others."""
    nett("sign", str(out), "--key", str(keys / "P-256.pem"), "--model-sig").succeeded()
    file = out / "model.sig"
    blob = file.read_bytes()
    inside = json.loads(blob)["dsseEnvelope"]
    for text in (inside["payload"], inside["signatures"][0]["sig"]):
        start = blob.index(text.encode())
        bits = random.Random(text).sample(range(start * 8, (start + len(text) - 4) * 8), 40)
        for bit in bits:
            flip(file, bit)
            nett("verify", str(out), "--key", str(keys / "P-256.pub")).failed(4, "signature model.sig")
            file.write_bytes(blob)
    for other in (b"", b"{}", b"\xff", b"null"):
        file.write_bytes(other)
        nett("verify", str(out), "--key", str(keys / "P-256.pub")).failed(4, "signature model.sig")


@pytest.mark.usefixtures("model_signing")
def test_model_sig_of_a_file_and_of_an_encrypted_key(
    made: Path, tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETT_KEY_PASSPHRASE", "correct horse")
    for file in made.glob("one.*"):
        shutil.copy(file, tmp_path)
    out = tmp_path / "one.safetensors"
    line = ["sign", str(out), "--key", str(keys / "locked.pem"), "--model-sig"]
    nett(*line).succeeded()
    assert {p.name for p in tmp_path.glob("*")} >= {"one.model.sig", "one.receipt.intoto.jsonl"}
    nett("verify", str(out), "--key", str(keys / "locked.pub")).succeeded()
    nett(*line).failed(3, "exists", "--overwrite")
    nett(*line, "--overwrite").succeeded()
    flip(out, 8 * 3000)
    nett("verify", str(out), "--key", str(keys / "locked.pub")).failed(4, "signature one.model.sig")


def test_model_sig_takes_curves_only(out: Path, keys: Path) -> None:
    before = state(out)
    nett("sign", str(out), "--key", str(keys / "Ed25519.pem"), "--model-sig").failed(3, "Ed25519", "prime256v1")
    assert state(out) == before


def test_model_sig_without_its_package(out: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing half is written; a model.sig that cannot be checked does not pass."""
    monkeypatch.setitem(sys.modules, "model_signing", None)
    before = state(out)
    line = ["sign", str(out), "--key", str(keys / "P-256.pem")]
    nett(*line, "--model-sig").failed(3, "model_signing", "pip install 'nett[sign]'")
    assert state(out) == before
    nett(*line).succeeded()
    (out / "model.sig").write_text("{}")
    nett("verify", str(out), "--key", str(keys / "P-256.pub")).failed(3, "model_signing")
