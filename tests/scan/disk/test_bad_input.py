"""Headers that lie, files that are cut, grow, vanish or change: said or passed over, never believed, never fatal."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett.core.segments import tensors_of_file
from nett.scan.disk import engine, sample
from nett.scan.disk.engine import run_disk
from support import caches
from support.cli import nett
from support.scanning import write_gguf, write_pickle

BIG = {"dtype": "F32", "shape": [64, 64], "data_offsets": [0, 16384]}


def safetensors(path: Path, header: object, data: int, claim: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    rng = np.random.default_rng(0)
    path.write_bytes(struct.pack("<Q", len(text) if claim is None else claim) + text + rng.bytes(data))
    return path


LIES: dict[str, tuple[object, int, int | None]] = {
    "longer than the file": ({"w": BIG}, 16384, 1 << 40),
    "far too long": ({"w": BIG}, 16384, 1 << 63),
    "cut": ({"w": BIG}, 16000, None),
    "more than it says": ({"w": BIG}, 20000, None),
    "no json": (b"{" * 5000, 16384, None),
    "twice": (b'{"w": %s, "w": %s}' % ((json.dumps(BIG).encode(),) * 2), 16384, None),
    "overlapping": ({"w": BIG, "v": BIG}, 16384, None),
    "negative": ({"w": BIG | {"shape": [-64, -64]}}, 16384, None),
    "huge": ({"w": BIG | {"shape": [0, 1 << 62]}}, 16384, None),
    "unknown type": ({"w": BIG | {"dtype": "F7"}}, 16384, None),
    "no list": ({"w": BIG | {"shape": "64"}}, 16384, None),
    "empty": (b"", 0, None),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_named_and_the_file_is_opaque(tmp_path: Path, lie: str) -> None:
    header, data, claim = LIES[lie]
    bad = safetensors(tmp_path / "bad.safetensors", header, data, claim)
    safetensors(tmp_path / "good.safetensors", {"w": BIG}, 16384)
    for exact in (False, True):
        scan = run_disk([tmp_path], exact=exact)
        by_path = {i.path: i for i in scan.items}
        assert by_path[str(bad)].problem and by_path[str(bad)].layout.format == "opaque"  # type: ignore[union-attr]
        assert not by_path[str(tmp_path / "good.safetensors")].problem
        assert scan.free.value <= scan.allocated and all(
            f.amount.low <= f.amount.value <= f.amount.high for f in scan.found
        )
    said = nett("scan", "--disk", str(tmp_path)).succeeded().out
    assert f"not read: {bad}: " in said


def test_files_with_broken_headers_can_still_be_equal(tmp_path: Path) -> None:
    for name in ("a", "b"):
        safetensors(tmp_path / f"{name}.safetensors", b"{" * 100, 2_000_000)
    for exact in (False, True):
        scan = run_disk([tmp_path], exact=exact)
        assert scan.now.value == 2_002_944 or scan.now.value == next(i.allocated for i in scan.items)


def test_a_header_that_another_file_also_has_is_not_believed_of_a_file_of_another_length(tmp_path: Path) -> None:
    """Layouts are remembered by their header: a cut file with the header of a whole one is cut all the same."""
    safetensors(tmp_path / "a.safetensors", {"w": BIG}, 16384)
    safetensors(tmp_path / "b.safetensors", {"w": BIG}, 16000)
    scan = run_disk([tmp_path])
    assert [bool(i.problem) for i in scan.items] == [False, True]


@pytest.mark.parametrize("at", [4, 8, 16, 40, 120])
def test_ggufs_cut_or_damaged(tmp_path: Path, at: int) -> None:
    whole = Path(write_gguf(tmp_path / "a.gguf", {"w": np.ones((64, 64), np.float32)})).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:at])
    (tmp_path / "bent.gguf").write_bytes(whole[:at] + b"\xff" * 8 + whole[at + 8 :])
    scan = run_disk([tmp_path], exact=True)
    assert len(scan.items) == 3 and scan.free.value <= scan.allocated
    assert next(i for i in scan.items if i.path.endswith("cut.gguf")).problem


def test_pickles_are_not_obeyed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    import pickle

    (tmp_path / "bare.bin").write_bytes(pickle.dumps(Trap()) + bytes(1_000_000))
    with zipfile.ZipFile(tmp_path / "zipped.bin", "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps(Trap()))
        archive.writestr("m/data/0", np.random.default_rng(0).bytes(9000))
    scan = run_disk([tmp_path], exact=True)
    assert len(scan.items) == 2 and not (tmp_path / "sprung").exists()


def test_zips_that_lie(tmp_path: Path) -> None:
    whole = Path(write_pickle(tmp_path / "a.bin", {"w": np.ones((64, 64), np.float32)})).read_bytes()
    (tmp_path / "cut.bin").write_bytes(whole[: len(whole) // 2])
    entry = whole.rindex(
        b"PK\x01\x02", 0, whole.rindex(b"/data/0")
    )  # of the list at the end; its local header is said to lie far away
    (tmp_path / "far.bin").write_bytes(whole[: entry + 42] + b"\xf0\xff\xff\x7f" + whole[entry + 46 :])
    scan = run_disk([tmp_path], exact=True)
    assert sum(bool(i.problem) for i in scan.items) == 2 and scan.free.value <= scan.allocated
    for one in tensors_of_file(tmp_path / "a.bin", ".bin"):
        assert one.offset + one.nbytes <= len(whole)


def test_other_files_that_are_called_bin(tmp_path: Path) -> None:
    (tmp_path / "firmware.bin").write_bytes(b"\x7fELF" + bytes(5000))
    (tmp_path / "empty.safetensors").touch()
    scan = run_disk([tmp_path])
    assert not scan.items and scan.models == 0


def test_a_file_that_vanishes_between_the_walk_and_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(2):
        (tmp_path / f"{seed}.safetensors").write_bytes(caches.weights(seed))
    walked = engine.survey

    def then_vanish(*given: Any) -> Any:
        found = walked(*given)
        (tmp_path / "0.safetensors").unlink()
        return found

    monkeypatch.setattr(engine, "survey", then_vanish)
    assert [i.path for i in run_disk([tmp_path]).items] == [str(tmp_path / "1.safetensors")]


@pytest.mark.parametrize("what", ["vanishes", "is cut"])
@pytest.mark.parametrize("exact", [False, True])
def test_a_file_that_is_gone_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, exact: bool
) -> None:
    for seed in range(3):
        (tmp_path / f"{seed}.safetensors").write_bytes(caches.weights(seed))
    victim = tmp_path / "1.safetensors"
    if exact:
        gathered = engine.gather

        def gather(*given: Any) -> Any:
            found = gathered(*given)
            victim.unlink() if what == "vanishes" else os.truncate(victim, 50_000)
            return found

        monkeypatch.setattr(engine, "gather", gather)
    else:
        batched = sample.read_pages

        def read(*given: Any) -> Any:
            if victim.exists() and victim.stat().st_size > 50_000:
                victim.unlink() if what == "vanishes" else os.truncate(victim, 50_000)
            return batched(*given)

        monkeypatch.setattr("nett.scan.disk.evidence.read_pages", read)
    scan = run_disk([tmp_path], exact=exact)
    problems = {Path(i.path).name: i.problem for i in scan.items}
    assert problems["1.safetensors"] and not problems["0.safetensors"] and not problems["2.safetensors"]
    assert str(victim) not in {f.edge.target for f in scan.found}


def test_a_file_that_is_written_while_it_is_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{n}.safetensors" for n in range(2)]
    for path in paths:
        path.write_bytes(caches.weights(1))
    gathered = engine.gather

    def gather(*given: Any) -> Any:
        found = gathered(*given)
        with paths[0].open("r+b") as file:
            file.seek(500_000)
            file.write(b"changed")
        os.utime(paths[0], ns=(1, 1))
        return found

    monkeypatch.setattr(engine, "gather", gather)
    scan = run_disk([tmp_path], exact=True)
    assert scan.items[0].problem == "changed while it was being read" and not scan.now.value


def test_names_with_line_breaks_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/a\nb\xff 'x'"
    os.mkdir(folder)
    for n in range(2):
        with open(folder + b"/%d.safetensors" % n, "wb") as file:
            file.write(caches.weights(1))
    said = nett("scan", "--disk", str(tmp_path), "--html", str(tmp_path / "p.html")).succeeded().out
    assert all(line.isprintable() for line in said.splitlines())
    (edge,) = (f.edge for f in run_disk([tmp_path]).found if f.now)
    assert str(edge.command).isprintable() and str(edge.command).startswith("nett store link $'")
    done = subprocess.run(["bash", "-c", str(edge.command).replace("nett store link", "test -d")], check=False)
    assert done.returncode == 0
    nett("scan", "--disk", str(tmp_path), "--json", str(tmp_path / "s.json")).succeeded()
    assert json.loads((tmp_path / "s.json").read_text())["edges"]
