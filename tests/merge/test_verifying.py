"""``nett verify``: each promise of a receipt, broken one at a time."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from nett.core.edge import SCHEMA
from nett.core.tiny import fine_tune_of, write_llama
from support.cli import nett
from support.tensors import read_tensors, write_tensors


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ties merge and tall masks of one family; tests work on copies."""
    folder = tmp_path_factory.mktemp("made")
    base = write_llama(folder / "base")
    words = [*(str(fine_tune_of(base, folder / f"m{i}", seed=i)) for i in (1, 2)), "--base", str(base), "--no-speak"]
    nett("merge", "ties", *words, "--out", str(folder / "ties"), "--shard-size", "20KB").succeeded()
    nett("merge", "tall_masks", *words, "--out", str(folder / "masks")).succeeded()
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """Fresh copies, with the receipts' paths moved along."""
    shutil.copytree(made, tmp_path / "here")
    for name in ("ties", "masks"):
        file = tmp_path / "here" / name / "nett.json"
        file.write_text(file.read_text().replace(str(made), str(tmp_path / "here")))
    return tmp_path / "here"


def flip(file: Path, at: int = -1) -> None:
    blob = bytearray(file.read_bytes())
    blob[at] ^= 1
    file.write_bytes(blob)


def reseal(folder: Path) -> None:
    """Make the receipt's sizes and hashes those of the files, as somebody would who wants to deceive."""
    file = folder / "nett.json"
    receipt = json.loads(file.read_text())
    for output in receipt["outputs"]:
        blob = (folder / output["path"]).read_bytes()
        output |= {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
    file.write_text(json.dumps(receipt))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    receipt = json.loads((folder / "nett.json").read_text())
    change(receipt)
    (folder / "nett.json").write_text(json.dumps(receipt))


@pytest.mark.parametrize("name", ["ties", "masks"])
def test_all_holds(place: Path, name: str) -> None:
    said = nett("verify", str(place / name), "--json", str(place / "found.json")).succeeded()
    assert "checks hold" in said.out and "FAILED" not in said.out
    found = json.loads((place / "found.json").read_text())
    assert found["ok"] and found["checks"] and all(c["ok"] for c in found["checks"])
    for edge in found["edges"]:
        jsonschema.validate(edge, SCHEMA)


@pytest.mark.parametrize("name", ["ties", "masks"])
def test_rerun_gives_the_same_bytes(place: Path, name: str) -> None:
    said = nett("verify", str(place / name), "--rerun").succeeded()
    assert "rerun" in said.out and "same bytes" in said.out
    assert sorted(p.name for p in place.iterdir()) == ["base", "m1", "m2", "masks", "ties"]


@pytest.mark.parametrize("name", ["ties", "masks"])
def test_every_file_is_watched(place: Path, name: str) -> None:
    """One bit of any output file, wherever: exit 4, and the file is named."""
    for output in json.loads((place / name / "nett.json").read_text())["outputs"]:
        file = place / name / output["path"]
        for at in (-1, 20):
            flip(file, at)
            nett("verify", str(place / name), "--json", str(place / "found.json")).failed(4, f"file {output['path']}")
            assert json.loads((place / "found.json").read_text())["ok"] is False
            flip(file, at)
    nett("verify", str(place / name)).succeeded()


def test_missing_longer_and_added_files(place: Path) -> None:
    (place / "ties" / "tokenizer.json").rename(place / "kept")
    assert "is missing" in nett("verify", str(place / "ties")).failed(4, "tokenizer.json").out
    (place / "kept").rename(place / "ties" / "tokenizer.json")
    with (place / "ties" / "config.json").open("ab") as file:
        file.write(b"\n")
    assert "the receipt says" in nett("verify", str(place / "ties")).failed(4, "config.json").out
    shutil.copy(place / "base" / "config.json", place / "ties" / "config.json")
    shutil.copy(place / "base" / "model.safetensors", place / "ties" / "extra.safetensors")
    assert "is not in the receipt" in nett("verify", str(place / "ties")).failed(4, "extra.safetensors").out


def test_inputs_may_be_gone_but_not_changed(place: Path) -> None:
    flip(place / "m1" / "model.safetensors")
    assert "changed since" in nett("verify", str(place / "ties")).failed(4, "input m1").out
    shutil.rmtree(place / "m1")
    assert "not there any more" in nett("verify", str(place / "ties")).succeeded().out
    assert "not there any more" in nett("verify", str(place / "masks")).succeeded().out


def test_resealed_nan_is_found(place: Path) -> None:
    """The hashes fit, the numbers do not."""
    file = sorted((place / "ties").glob("*.safetensors"))[0]
    blob = bytearray(file.read_bytes())
    blob[-2:] = b"\xc0\x7f"
    file.write_bytes(blob)
    reseal(place / "ties")
    assert "NaN" in nett("verify", str(place / "ties")).failed(4, "finite").out


def test_resealed_config_is_found(place: Path) -> None:
    file = place / "ties" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_size": 31}))
    reseal(place / "ties")
    nett("verify", str(place / "ties")).failed(4, "config hidden_size")


def test_resealed_mask_is_found(place: Path) -> None:
    """A changed mask rebuilds another task than the one whose distance the receipt states."""
    file = place / "masks" / "masks" / "m1.safetensors"
    flip(file)
    reseal(place / "masks")
    said = nett("verify", str(place / "masks")).failed(4, "task m1")
    assert "the receipt says" in said.out and "ok      task m2" in said.out


def test_rounded_figures_are_found(place: Path) -> None:
    def nicer(receipt: dict[str, Any]) -> None:
        receipt["tasks"][1]["relative_l2"] *= 0.999

    edit(place / "masks", nicer)
    nett("verify", str(place / "masks")).failed(4, "task m2")


def test_rerun_finds_what_hashes_cannot(place: Path) -> None:
    """A vector that was never what the method gives: every hash and figure may fit, the rerun does not."""
    tensors = read_tensors(place / "ties")
    name = next(iter(tensors))
    index = json.loads((place / "ties" / "model.safetensors.index.json").read_text())
    shard = place / "ties" / index["weight_map"][name]
    inside = read_tensors(shard)
    inside[name] = inside[name] + np.float32(0.25)
    write_tensors(shard, inside, "BF16", format="pt")
    reseal(place / "ties")
    nett("verify", str(place / "ties")).succeeded()
    nett("verify", str(place / "ties"), "--rerun").failed(4, "rerun")


def test_rerun_with_other_parameters(place: Path) -> None:
    def other(receipt: dict[str, Any]) -> None:
        receipt["parameters"]["density"] = 0.7

    edit(place / "ties", other)
    nett("verify", str(place / "ties"), "--rerun").failed(4, "rerun")


def test_rerun_of_what_is_not_there(place: Path) -> None:
    shutil.rmtree(place / "m2")
    assert "could not be done" in nett("verify", str(place / "ties"), "--rerun").failed(4, "rerun").out
    assert not [p for p in place.iterdir() if p.name.startswith(".")]


def test_receipt_that_leaves_the_folder(place: Path) -> None:
    for path in ("../base/model.safetensors", "/etc/hostname"):
        edit(place / "ties", lambda r, path=path: r["outputs"][0].update(path=path))  # type: ignore[misc]
        nett("verify", str(place / "ties")).failed(4, "leaves the folder", path)


def test_a_failed_check_of_the_receipt_stays_failed(place: Path) -> None:
    def heard(receipt: dict[str, Any]) -> None:
        receipt["checks"].append({"name": "speaks", "ok": False, "detail": "perplexity 1e9"})

    edit(place / "ties", heard)
    nett("verify", str(place / "ties")).failed(4, "speaks")


def test_no_receipt(place: Path) -> None:
    nett("verify", str(place / "base")).failed(3, "carries no receipt")
    nett("verify", str(place / "nowhere")).failed(3, "nowhere")
