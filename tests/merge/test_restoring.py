"""``nett restore``: one task back from its bits; what cannot be restored, and why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett.core.tiny import fine_tune_of, write_llama
from support.cli import nett
from support.tensors import read_tensors, write_tensors


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """The output of tall_masks over a pico Llama; m2 has a chat template of its own."""
    base = write_llama(tmp_path / "base", shards=2)
    tuned = [fine_tune_of(base, tmp_path / f"m{i}", seed=i) for i in (1, 2)]
    (tuned[1] / "chat_template.jinja").write_text("m2's")
    out = tmp_path / "masks"
    nett("merge", "tall-masks", *map(str, tuned), "--base", str(base), "--out", str(out), "--no-speak").succeeded()
    return out


def receipt_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "nett.json").read_text())
    return found


def test_restored_task_is_a_whole_model(masks: Path, tmp_path: Path) -> None:
    """Weights, config, tokenizer and the task's own side files; a receipt that verifies."""
    said = nett("restore", str(masks), "--task", "m2", "--out", str(tmp_path / "back")).succeeded()
    row = receipt_of(masks)["tasks"][1]
    assert "approximate reconstruction" in said.out and f"{row['relative_l2']:.4g}" in said.out
    assert (tmp_path / "back" / "chat_template.jinja").read_text() == "m2's"
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "m2" / name).read_bytes()
    receipt = receipt_of(tmp_path / "back")
    assert receipt["restored_task"] == "m2" and receipt["figures"]["relative_l2"] == row["relative_l2"]
    back, original = read_tensors(tmp_path / "back"), read_tensors(tmp_path / "m2")
    apart = sum(float(np.sum((back[n].astype(float) - original[n]) ** 2)) for n in original)
    size = sum(float(np.sum(original[n].astype(float) ** 2)) for n in original)
    assert (apart / size) ** 0.5 == pytest.approx(row["relative_l2"], rel=1e-9)
    nett("verify", str(tmp_path / "back")).succeeded()


def test_the_receipt_says_that_the_base_is_still_needed(masks: Path, tmp_path: Path) -> None:
    size = sum(a.nbytes // 2 for a in read_tensors(tmp_path / "base").values())
    (note,) = [n for n in receipt_of(masks)["notes"] if "rebuilt from the base" in n]
    assert f"its {size:,} bytes are kept, and counted neither before nor after" in note
    assert receipt_of(masks)["bytes_before"] == sum(
        i["bytes"] for i in receipt_of(masks)["inputs"] if i["role"] == "model"
    )
    merged = tmp_path / "ties"
    nett("merge", "ties", str(tmp_path / "m1"), "--base", str(tmp_path / "base"), "--out", str(merged),
         "--no-speak").succeeded()  # fmt: skip
    assert not any("rebuilt from the base" in n for n in receipt_of(merged)["notes"])


def test_default_place_is_beside(masks: Path, tmp_path: Path) -> None:
    nett("restore", str(masks), "--task", "m1").succeeded()
    assert (tmp_path / "masks-m1" / "nett.json").is_file()


def test_dry_run(masks: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    said = nett("restore", str(masks), "--task", "m1", "--out", str(tmp_path / "back"), "--dry-run").succeeded()
    size = sum(a.nbytes // 2 for a in read_tensors(tmp_path / "base").values())
    assert "would write" in said.out and sorted(tmp_path.rglob("*")) == before
    assert size <= int(said.out.split("would write ")[1].split(" bytes")[0].replace(",", "")) < size + 4000


@pytest.mark.parametrize(
    ("words", "parts"), [([], ["several tasks", "m1 | m2"]), (["--task", "m3"], ["no task 'm3'", "m1, m2"])]
)
def test_which_task(masks: Path, tmp_path: Path, words: list[str], parts: list[str]) -> None:
    nett("restore", str(masks), "--out", str(tmp_path / "back"), *words).failed(2, *parts)
    assert not (tmp_path / "back").exists()


def test_moved_base(masks: Path, tmp_path: Path) -> None:
    """Said with what to do; found where --base says; another base is no base."""
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    words = ["restore", str(masks), "--task", "m1", "--out", str(tmp_path / "back")]
    nett(*words).failed(3, "the base lies there no more", "--base PATH", str(tmp_path / "base"))
    write_tensors(tmp_path / "other" / "model.safetensors", {"w": np.zeros(3)})
    nett(*words, "--base", str(tmp_path / "other")).failed(4, "not the base", "'w' does not fit")
    nett(*words, "--base", str(tmp_path / "m1")).failed(4, "not the base", "its hash differs")
    assert not (tmp_path / "back").exists() and not (tmp_path / ".back.nett-partial").exists()
    nett(*words, "--base", str(tmp_path / "elsewhere")).succeeded()


def test_changed_base_is_a_failed_proof(masks: Path, tmp_path: Path) -> None:
    """One weight of the base differs: exit 4, nothing left."""
    file = sorted((tmp_path / "base").glob("*.safetensors"))[0]
    blob = bytearray(file.read_bytes())
    blob[-1] ^= 1
    file.write_bytes(blob)
    place = sorted(tmp_path.rglob("*"))
    nett("restore", str(masks), "--task", "m1", "--out", str(tmp_path / "back")).failed(
        4, "not the base", str(tmp_path / "base")
    )
    assert sorted(tmp_path.rglob("*")) == place


def test_damaged_masks_are_not_used(masks: Path, tmp_path: Path) -> None:
    """A mask or a vector whose bytes are not the receipt's is refused before anything is built from it."""
    for name in ("masks/m1.safetensors", "multi_task_vector.safetensors"):
        blob = bytearray((masks / name).read_bytes())
        blob[-1] ^= 1
        (masks / name).write_bytes(blob)
        nett("restore", str(masks), "--task", "m1", "--out", str(tmp_path / "back")).failed(4, name)
        blob[-1] ^= 1
        (masks / name).write_bytes(blob)
        assert not (tmp_path / "back").exists()
    (masks / "masks" / "m2.safetensors").unlink()
    nett("restore", str(masks), "--task", "m2", "--out", str(tmp_path / "back")).failed(3, "masks/m2.safetensors")
    nett(
        "restore", str(masks), "--task", "m1", "--out", str(tmp_path / "back")
    ).succeeded()  # of which nothing is missing


def test_what_cannot_be_undone(masks: Path, tmp_path: Path) -> None:
    words = [str(tmp_path / "m1"), "--base", str(tmp_path / "base"), "--out", str(tmp_path / "ties"), "--no-speak"]
    nett("merge", "ties", *words).succeeded()
    nett("restore", str(tmp_path / "ties"), "--out", str(tmp_path / "back")).failed(
        3, "merge/ties", "cannot be undone", str(tmp_path / "m1")
    )
    nett("restore", str(tmp_path / "m1")).failed(3, "carries no receipt")
    nett("restore", str(tmp_path / "nowhere")).failed(3, "nowhere")


def test_existing_target(masks: Path, tmp_path: Path) -> None:
    words = ["restore", str(masks), "--task", "m1", "--out", str(tmp_path / "m2")]
    nett(*words).failed(3, "exists and is not empty")
    nett("restore", str(masks), "--task", "m1", "--out", str(masks), "--overwrite").failed(3, "input")
    nett("restore", str(masks), "--task", "m1", "--out", str(tmp_path / "base"), "--overwrite").failed(3, "input")
    nett(*words, "--overwrite").succeeded()
    assert receipt_of(tmp_path / "m2")["restored_task"] == "m1"


def test_a_receipt_that_names_files_elsewhere(masks: Path, tmp_path: Path) -> None:
    """A receipt is input too: paths that leave the folder are not followed."""
    shutil.copy(masks / "masks" / "m1.safetensors", tmp_path / "evil.safetensors")
    receipt = receipt_of(masks)
    for output in receipt["outputs"]:
        if output["path"] == "masks/m1.safetensors":
            output["path"] = "../evil.safetensors"
    (masks / "nett.json").write_text(json.dumps(receipt))
    assert nett("restore", str(masks), "--task", "m1", "--out", str(tmp_path / "back")).code in (3, 4)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"schema": 1}', '{"schema": 99, "outputs": []}', '{"schema": 1, "outputs": [], "room": "../x"}'],
)
def test_broken_receipts(masks: Path, tmp_path: Path, content: str) -> None:
    (masks / "nett.json").write_text(content)
    for verb in (["restore", str(masks), "--task", "m1"], ["verify", str(masks)]):
        said = nett(*verb)
        assert said.code in (3, 4), said.err
        said.failed(said.code, "nett.json")


def test_integers_come_from_the_base(tmp_path: Path) -> None:
    for i, name in enumerate(("base", "m1", "m2")):
        tensors = {"steps": np.array([i]), "w": np.arange(9.0) + i}
        write_tensors(tmp_path / name / "model.safetensors", tensors)
    words = [str(tmp_path / "m1"), str(tmp_path / "m2"), "--base", str(tmp_path / "base"), "--out", str(tmp_path / "o")]
    nett("merge", "tall_masks", *words, "--no-speak").succeeded()
    nett("restore", str(tmp_path / "o"), "--task", "m2", "--out", str(tmp_path / "back")).succeeded()
    assert read_tensors(tmp_path / "back")["steps"].tolist() == [0]
