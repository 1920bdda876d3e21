"""Every layout is understood: what is there, what is a link, what is left over, and what is left alone."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest

from nett.scan.disk.engine import DiskScan, run_disk
from nett.scan.disk.places import known_places
from support import caches
from support.forge import forge

HOME_VARIABLES = (
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_XET_CACHE",
    "XDG_CACHE_HOME",
    "OLLAMA_MODELS",
    "TORCH_HOME",
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, with an empty working folder."""
    for name in HOME_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def paths(scan: DiskScan) -> dict[str, str]:
    """Path -> who keeps it."""
    return {i.path: i.held for i in scan.items}


def test_places_follow_their_variables_and_empty_ones_are_unset(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {(p.kind, p.path) for p in known_places()}
    assert ("Hugging Face", str(home / ".cache/huggingface/hub")) in found
    assert ("Ollama", str(home / ".ollama/models")) in found and ("Ollama", "/usr/share/ollama/.ollama/models") in found
    assert ("LM Studio", str(home / ".lmstudio/models")) in found
    assert ("torch hub", str(home / ".cache/torch/hub")) in found
    assert ("working folder", str(home / "work")) in found
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    assert ("Hugging Face", str(home / "hf/hub")) in {(p.kind, p.path) for p in known_places()}
    monkeypatch.setenv("HUGGINGFACE_HUB_CACHE", str(home / "older"))
    monkeypatch.setenv("HF_HUB_CACHE", "")
    assert ("Hugging Face", str(home / "older")) in {(p.kind, p.path) for p in known_places()}
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "o"))
    monkeypatch.setenv("TORCH_HOME", str(home / "t"))
    found = {(p.kind, p.path) for p in known_places()}
    assert ("Ollama", str(home / "o")) in found and ("Ollama", "/usr/share/ollama/.ollama/models") not in found
    assert ("torch hub", str(home / "t/hub")) in found


@pytest.mark.parametrize(
    "text", ['{"downloadsFolder": "FOLDER"}', "{", '{"downloadsFolder": 3}', "[]", '{"downloadsFolder": "a\\u0000b"}']
)
def test_lm_studios_settings_are_believed_where_they_make_sense(home: Path, text: str) -> None:
    (home / ".lmstudio").mkdir()
    (home / ".lmstudio/settings.json").write_text(text.replace("FOLDER", str(home / "moved")))
    found = [p for p in known_places() if p.kind == "LM Studio"]
    assert (str(home / "moved") in {p.path for p in found}) == ("FOLDER" in text)
    assert str(home / ".lmstudio/models") in {p.path for p in found}


def test_a_link_of_the_hub_is_no_copy_and_a_real_copy_is_one(home: Path) -> None:
    cache, data = home / ".cache/huggingface/hub", caches.weights(1)
    first = caches.hub_repository(cache, "a--one", {"model.safetensors": data, "config.json": b"{}"})
    (first / "snapshots/c1").mkdir()
    os.link(first / "snapshots/c0/model.safetensors", first / "snapshots/c1/model.safetensors", follow_symlinks=False)
    scan = run_disk()
    assert scan.models == 1 and len(scan.items) == 1 and scan.items[0].held == "hub"
    assert not caches.of_kind(scan, "equal_file") and scan.left == 0
    caches.hub_repository(cache, "a--two", {"model.safetensors": data}, links=False)
    scan = run_disk()
    assert scan.models == 2
    (edge,) = caches.of_kind(scan, "equal_file").values()
    assert edge.bytes_freed == scan.items[0].allocated  # type: ignore[attr-defined]
    assert edge.command.startswith("nett store add ") and not scan.links  # type: ignore[attr-defined]


def test_repositories_that_share_a_payload_hold_it_once(home: Path) -> None:
    cache, data = home / ".cache/huggingface/hub", caches.weights(1)
    for name in ("a--one", "b--two"):
        caches.shared_repository(cache, name, {"model.safetensors": data})
    garbage = caches.aged(_written(cache / "blobs/ab" / ("ab" + "0" * 62), b"x" * 5000))
    scan = run_disk()
    assert len(scan.items) == 1 and scan.items[0].size == len(data)
    assert set(caches.of_kind(scan, "orphaned_blob")) == {str(garbage)}
    assert caches.of_kind(scan, "orphaned_blob")[str(garbage)].command == "hf cache prune"  # type: ignore[attr-defined]
    assert scan.left == garbage.stat().st_blocks * 512 and not caches.of_kind(scan, "equal_file")


def _written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_orphans_and_partial_downloads_of_all_layouts(home: Path) -> None:
    hub, ollama = home / ".cache/huggingface/hub", home / ".ollama/models"
    blobs = caches.hub_repository(hub, "a--b", {"model.safetensors": caches.weights(1)}) / "blobs"
    orphans = [_written(blobs / ("1" * 64), b"o" * 9000), _written(ollama / f"blobs/sha256-{'2' * 64}", b"o" * 9000)]
    caches.ollama_model(ollama, "llama", caches.gguf(3))
    partial = [
        _written(blobs / ("3" * 64 + ".incomplete"), b"p" * 9000),
        _written(blobs / ("3" * 64 + ".0a1b2c3d.incomplete"), b"p" * 9000),
        _written(ollama / f"blobs/sha256-{'4' * 64}-partial", b"p" * 9000),
        _written(ollama / f"blobs/sha256-{'4' * 64}-partial-0", b"p" * 9000),
        _written(home / ".lmstudio/models/p/m/m.gguf.part", b"p" * 9000),
        _written(home / ".cache/torch/hub/checkpoints/x-01234567.pth.abc.partial", b"p" * 9000),
        _written(home / "work/m.safetensors.incomplete", b"p" * 9000),
        _written(home / "work/local/.cache/huggingface/download/abc.incomplete", b"p" * 9000),
    ]
    _written(home / "work/film.part", b"p" * 9000)  # nobody's model
    for path in orphans + partial:
        caches.aged(path)
    young = _written(blobs / ("5" * 64 + ".incomplete"), b"p" * 9000)
    scan = run_disk()
    assert set(caches.of_kind(scan, "orphaned_blob")) == {str(p) for p in orphans}
    assert set(caches.of_kind(scan, "partial_download")) == {str(p) for p in partial}
    assert scan.left == sum(p.stat().st_blocks * 512 for p in orphans + partial)
    assert scan.survey.notes["left alone: downloads that may be going on"] == 1 and str(young) not in str(scan.found)
    assert scan.free.value < scan.allocated  # what is left over is no part of what is free without loss


def test_a_gguf_that_ollama_copied_can_be_linked(home: Path) -> None:
    data = caches.gguf(5)
    mine = _written(home / "work/m.gguf", data)
    blob = caches.ollama_model(home / ".ollama/models", "mine", data)
    scan = run_disk()
    (edge,) = (f for f in scan.found if f.edge.kind == "equal_file")
    assert (
        edge.now
        and edge.edge.method == "store/link"
        and {edge.edge.target, *edge.edge.sources} == {str(mine), str(blob)}
    )
    assert edge.edge.command == scan.links == f"nett store link {home / '.ollama/models'} {home / 'work'}"
    assert scan.now.value == edge.edge.bytes_freed == mine.stat().st_blocks * 512


def test_nothing_in_a_hub_cache_is_ever_linked(home: Path) -> None:
    data = caches.weights(1)
    for n in range(2):
        caches.hub_repository(home / ".cache/huggingface/hub", f"a--{n}", {"model.safetensors": data})
    copies = [_written(home / f"work/{n}/model.safetensors", data) for n in range(2)]
    scan = run_disk()
    equal = caches.of_kind(scan, "equal_file")
    assert len(equal) == 3 and sum(f.now for f in scan.found) == 1
    linked = next(f.edge for f in scan.found if f.now)
    assert {linked.target, *linked.sources} == {str(c) for c in copies}
    assert "huggingface" not in scan.links
    inside = next((home / ".cache/huggingface/hub").glob("models--a--0/snapshots/c0"))
    scan = run_disk([inside, home / "work"])
    assert "huggingface" not in scan.links


def test_hardlinks_are_one_file_and_names_outside_pin_it(tmp_path: Path) -> None:
    data = caches.weights(1)
    first = _written(tmp_path / "in/a.safetensors", data)
    os.link(first, tmp_path / "in/b.safetensors")
    scan = run_disk([tmp_path / "in"])
    assert len(scan.items) == 1 and scan.items[0].names == {str(first), str(tmp_path / "in/b.safetensors")}
    assert scan.free.value > 0
    os.link(first, tmp_path / "outside")
    scan = run_disk([tmp_path / "in"])
    assert scan.free.value == 0 and not scan.found
    _written(tmp_path / "in/copy.safetensors", data)  # its own bytes are free: the pinned file is kept
    (edge,) = caches.of_kind(run_disk([tmp_path / "in"]), "equal_file").values()
    assert edge.target.endswith("copy.safetensors")  # type: ignore[attr-defined]


def test_links_out_cycles_broken_links_and_pipes(home: Path) -> None:
    cache = home / ".cache/huggingface/hub"
    snapshot = caches.hub_repository(cache, "a--b", {"model.safetensors": caches.weights(1)}) / "snapshots/c0"
    outside = _written(home / "secret.safetensors", caches.weights(2))
    (snapshot / "out.safetensors").symlink_to(outside)
    (snapshot / "gone.safetensors").symlink_to("../../blobs/nowhere")
    (snapshot / "one.safetensors").symlink_to("two.safetensors")
    (snapshot / "two.safetensors").symlink_to("one.safetensors")
    (home / "work/loop").symlink_to(home / "work", target_is_directory=True)
    (home / "work/away.safetensors").symlink_to(outside)
    os.mkfifo(home / "work/pipe.safetensors")
    scan = run_disk()
    assert [i.held for i in scan.items] == ["hub"]
    notes = scan.survey.notes
    assert sum(n for text, n in notes.items() if "lead out of it" in text) == 1
    assert sum(n for text, n in notes.items() if "broken links" in text) == 3
    assert "secret" not in json.dumps(scan.as_json())


def test_git_and_stores_and_work_of_netts_own_are_left_alone(tmp_path: Path) -> None:
    data = caches.weights(1)
    for place in (".git/lfs", "repo.git/objects", "store/objects", ".nett-x", "ok"):
        _written(tmp_path / place / "m.safetensors", data)
    (tmp_path / "repo.git/refs").mkdir()
    (tmp_path / "repo.git/HEAD").touch()
    (tmp_path / "store/models").mkdir()
    (tmp_path / "store/nett.json").write_text("{}")
    scan = run_disk([tmp_path])
    assert paths(scan) == {str(tmp_path / "ok/m.safetensors"): ""}
    assert any("store of nett" in text for text in scan.survey.notes)


def test_broken_manifests_make_no_orphans(home: Path) -> None:
    models = home / ".ollama/models"
    caches.ollama_model(models, "good", caches.gguf(1))
    caches.aged(_written(models / f"blobs/sha256-{'2' * 64}", b"o" * 9000))
    for number, text in enumerate(('{"layers": [{"digest": "../../x"}]}', "{", "[]", '{"layers": 3}', "[" * 5000)):
        _written(models / f"manifests/r/n/bad/{number}", text.encode())
    scan = run_disk()
    assert not caches.of_kind(scan, "orphaned_blob") and len(scan.items) == 1
    assert sum(n for text, n in scan.survey.notes.items() if "not valid" in text) == 5


@pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to become nobody")
def test_what_may_not_be_read_is_said_and_makes_no_orphans() -> None:
    with tempfile.TemporaryDirectory() as scratch:  # not pytest's, which the next pytest of this user closes to others
        disk = Path(scratch)
        disk.chmod(0o755)
        closed = caches.hub_repository(disk / "hub", "a--b", {"model.safetensors": caches.weights(1)})
        file = _written(disk / "mine.safetensors", caches.weights(2))
        for path in (closed / "snapshots", file):
            path.chmod(0)
        code, out, err = forge().run("support.work:unprivileged", words=["scan", "--disk", str(disk)])
    assert code == 0, err
    lines = [line for line in out.splitlines() if line.startswith("not read: ")]
    assert lines == [
        f"not read: {closed / 'snapshots'}: Permission denied",
        f"not read: {file}: cannot be read: Permission denied",
    ]
    assert "orphan" not in out and "0 bytes free without loss" in out


def test_data_sets_are_counted_apart_and_reach_shared_payloads(home: Path) -> None:
    cache, data = home / ".cache/huggingface/hub", caches.weights(1)
    caches.shared_repository(cache, "a--b", {"x.bin": data})
    (cache / "models--a--b").rename(cache / "datasets--a--b")
    scan = run_disk()
    assert not scan.items and not caches.of_kind(scan, "orphaned_blob") and scan.survey.other >= len(data)


def test_the_chunk_cache_can_go(home: Path) -> None:
    _written(home / ".cache/huggingface/xet/default/chunk-cache/aa/x", b"c" * 10_000)
    scan = run_disk()
    (edge,) = caches.of_kind(scan, "chunk_cache").values()
    assert edge.bytes_freed == scan.left >= 10_000  # type: ignore[attr-defined]


def test_a_place_in_a_place_is_walked_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caches.ollama_model(home / ".ollama/models", "m", caches.gguf(1))
    _written(home / "x.safetensors", caches.weights(1))
    monkeypatch.chdir(home)
    scan = run_disk()
    assert sorted((i.place.kind, i.held) for i in scan.items) == [("Ollama", "ollama"), ("working folder", "")]


def test_reflinks_are_no_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file system here has them: the one that is asked says so."""
    for name in ("a", "b"):
        _written(tmp_path / name / "m.safetensors", caches.weights(1))
    before = run_disk([tmp_path])
    monkeypatch.setattr("nett.store.sharing.share_blocks", lambda one, other: True)
    found = run_disk([tmp_path])
    assert before.now.value == found.items[0].allocated and found.now.value == 0 and not found.links
    assert found.free.value == pytest.approx(before.free.value - before.now.value)
