"""The estimate comes near the exact figures, which come near what a store then takes; nothing is counted twice."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from nett.core.tiny import write_llama
from nett.scan.disk.account import Amount, wilson
from nett.scan.disk.engine import DiskScan, run_disk
from nett.scan.disk.entropy import page_shares
from nett.scan.disk.sample import Depth, places
from nett.store import add
from support import caches
from support.scanning import write, write_gguf, write_pickle
from support.tensors import read_tensors


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base; fine-tunes of all weights, of a hundredth of them, in shards; a copy; a stranger; float32 of the base."""
    root = tmp_path_factory.mktemp("disk")
    base = caches.llama(root / "base")
    caches.tuned(base, root / "tuned", 1)
    caches.tuned(base, root / "shards", 2, shards=3)
    caches.sparse_tuned(base, root / "sparse", 3)
    caches.llama(root / "stranger", seed=9)
    caches.tuned(base, root / "single", 4, dtype="F32")
    caches.llama(root / "disguised", noise_from=base, delta=0.0, dtype="F32")
    caches.copy(base, root / "copy")
    return root


@pytest.fixture(scope="module")
def exact(disk: Path) -> DiskScan:
    return run_disk([disk], exact=True)


@pytest.mark.parametrize("depth", [None, Depth(0.5, 1)], ids=["deep", "half of the layers"])
def test_the_estimate_is_within_five_percent_of_the_exact_figure(disk: Path, exact: DiskScan, depth: Depth) -> None:
    found = run_disk([disk], depth=depth)
    assert found.free.value == pytest.approx(exact.free.value, rel=0.05)
    assert found.free.low <= exact.free.value <= found.free.high
    assert found.now.value == exact.now.value > 0 and found.families == exact.families == 2
    assert {(f.edge.kind, f.edge.target, f.edge.sources) for f in found.found} == {
        (f.edge.kind, f.edge.target, f.edge.sources) for f in exact.found
    }


def test_the_exact_figure_is_what_a_store_frees(disk: Path, exact: DiskScan, tmp_path: Path) -> None:
    """Measured by adding everything: entropies are bounds, which coders miss by a percent or two, and each object has a
    header; the store cannot free more than was counted but by tensors under 4 KiB, which it codes and scan leaves out."""
    models = [disk / n for n in ("base", "tuned", "shards", "sparse", "stranger", "single", "disguised", "copy")]
    add([str(m) for m in models], into=str(tmp_path / "store"))
    objects = [f for f in (tmp_path / "store" / "objects").rglob("*") if f.is_file()]
    weights = sum(f.stat().st_size for m in models for f in m.glob("*.safetensors"))
    freed = weights - sum(f.stat().st_size for f in objects)
    assert exact.free.value == pytest.approx(freed, rel=0.05)


def test_findings_of_the_disk(disk: Path, exact: DiskScan) -> None:
    base, copy = (str(disk / n / "model.safetensors") for n in ("base", "copy"))
    (equal,) = (f.edge for f in exact.found if f.edge.kind == "equal_file")
    assert {equal.target, *equal.sources} == {base, copy} and equal.error == 0 and equal.guarantee == "exact"
    kept = equal.sources[0]
    delta = caches.of_kind(exact, "delta")
    shards = [str(p) for p in sorted((disk / "shards").glob("*.safetensors"))]
    assert set(delta) == {str(disk / n / "model.safetensors") for n in ("tuned", "sparse", "single")} | set(shards)
    disguised = str(disk / "disguised" / "model.safetensors")  # float32 of one model: the smaller one is the base
    assert all(e.sources == ((disguised,) if "single" in t else (kept,)) for t, e in delta.items())  # type: ignore[attr-defined]
    narrow = caches.of_kind(exact, "narrower_dtype")
    assert set(narrow) == {str(disk / "disguised" / "model.safetensors")}
    tensors = sum(a.nbytes for a in read_tensors(disk / "disguised" / "model.safetensors").values() if a.nbytes >= 4096)
    (edge,) = narrow.values()
    assert edge.bytes_freed == tensors // 2  # type: ignore[attr-defined]
    assert edge.command == f"nett convert {disk / 'disguised'} OUT --dtype bfloat16"  # type: ignore[attr-defined]
    for one in exact.found:
        assert one.amount.low == one.amount.high == one.edge.bytes_freed
        assert one.edge.seconds is not None and one.edge.command


def test_bytes_of_a_delta_are_the_entropy_of_ordered_integers(disk: Path, exact: DiskScan) -> None:
    """By NumPy from the formula: o(v) = ~v for negative patterns, v with the top bit else; d = o(tuned) - o(base) folded;
    entropies of its two byte planes over whole tensors, of difference or XOR the smaller."""
    tuned, base = (_patterns(disk / n / "model.safetensors") for n in ("tuned", "base"))

    def entropy(plane: np.ndarray) -> float:  # type: ignore[type-arg]
        p = np.unique(plane, return_counts=True)[1] / plane.size
        bits = float(-(p * np.log2(p)).sum())
        return 8.0 if bits > 7.9 else bits

    def ordered(v: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return np.where(v >> 15, ~v, v | 0x8000).astype(np.uint16)

    total = 0.0
    for name, mine in tuned.items():
        if mine.nbytes < 4096:
            continue
        d = (ordered(mine) - ordered(base[name])).astype(np.int16)
        ways = [((d << 1) ^ (d >> 15)).astype(np.uint16), mine ^ base[name]]
        total += mine.nbytes * (1 - min(entropy(w & 255) + entropy(w >> 8) for w in ways) / 16)
    edge = caches.of_kind(exact, "delta")[str(disk / "tuned" / "model.safetensors")]
    assert edge.bytes_freed == pytest.approx(total, abs=2)  # type: ignore[attr-defined]


def _patterns(path: Path) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    from nett.core.checkpoint import open_checkpoint

    with open_checkpoint(path) as found:
        return {n: found.read(n).view(np.uint16) for n in found.tensors}


def test_nothing_is_counted_twice_and_no_file_rests_on_itself(exact: DiskScan) -> None:
    assert exact.free.value < exact.allocated < sum(f.edge.bytes_freed for f in exact.found) + exact.allocated
    assert exact.free.value < sum(f.edge.bytes_freed for f in exact.found)
    base = next(f.edge for f in exact.found if f.edge.kind == "equal_file").sources[0]
    resting = {f.edge.target for f in exact.found if f.edge.kind in ("delta", "equal_file", "equal_tensors")}
    assert base not in resting


def test_equal_tensors_across_formats(tmp_path: Path) -> None:
    """The same numbers as safetensors, GGUF and a zipped torch file: each tensor of at least 4 KiB is found again."""
    rng = np.random.default_rng(0)
    tensors = {f"model.layers.{i}.w": rng.standard_normal((64, 64)).astype(np.float32) for i in range(5)}
    write(tmp_path / "a", tensors)
    write_gguf(tmp_path / "b.gguf", tensors)
    write_pickle(tmp_path / "c.bin", tensors)
    for exactly in (False, True):
        scan = run_disk([tmp_path], exact=exactly)
        found = caches.of_kind(scan, "equal_tensors")
        whole = 5 * 64 * 64 * 4
        assert sorted(e.bytes_freed for e in found.values()) == [whole, whole]  # type: ignore[attr-defined]
        assert {i.layout.format for i in scan.items if i.layout} == {"safetensors", "gguf", "zip"}


def test_tied_weights_stored_twice(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    write(tmp_path / "m", {"model.embed_tokens.weight": values, "lm_head.weight": values, "other": values + 1})
    (edge,) = (f.edge for f in run_disk([tmp_path]).found if f.edge.kind == "tied_twice")
    assert edge.bytes_freed == values.nbytes and edge.target.split("::")[1] in (
        "lm_head.weight",
        "model.embed_tokens.weight",
    )


def test_rows_that_llama_cpp_permuted_are_seen_through(tmp_path: Path) -> None:
    from support.gguf_files import write_llama_gguf

    folder = write_llama(tmp_path / "m", hidden=128, heads=4, kv_heads=2, inter=256, vocab=64, dtype="F32")
    write_llama_gguf(tmp_path / "m.gguf", folder)
    for exactly in (False, True):
        scan = run_disk([tmp_path], exact=exactly)
        ((target, edge),) = caches.of_kind(scan, "permuted_tensors").items()
        assert target.endswith("m.gguf") and edge.command is None  # type: ignore[attr-defined]
        assert edge.bytes_freed == 2 * (128 * 128 + 64 * 128) * 4  # type: ignore[attr-defined]  # q and k of two layers


def test_checkpoints_of_one_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = caches.llama(run / "checkpoint-100")
    caches.tuned(first, run / "checkpoint-1000", 1)
    caches.tuned(first, run / "checkpoint-200", 2)
    (edge,) = (f.edge for f in run_disk([tmp_path]).found if f.edge.kind == "training_run")
    steps = [str(run / f"checkpoint-{n}") for n in (100, 200, 1000)]
    assert edge.target == str(run) and edge.sources == (steps[-1],)
    assert edge.command == f"nett store add {' '.join(steps)} --into STORE"


def test_fine_tunes_are_found_whatever_they_are_called(tmp_path: Path) -> None:
    """And strangers with the same header are not."""
    base = caches.llama(tmp_path / "x7")
    caches.tuned(base, tmp_path / "totally-different", 1)
    for seed in range(20, 26):
        caches.llama(tmp_path / f"x7-finetune-{seed}", seed=seed)
    scan = run_disk([tmp_path])
    assert scan.families == 1
    ((target, edge),) = caches.of_kind(scan, "delta").items()
    names = {Path(p).parent.name for p in (target, *edge.sources)}  # type: ignore[attr-defined]
    assert names == {"x7", "totally-different"}


def test_holes_are_not_freed_twice(tmp_path: Path) -> None:
    """Bytes that are not on the disk cannot be freed from it."""
    for name in ("a", "b"):
        path = caches.llama(tmp_path / name) / "model.safetensors"
        header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        size = path.stat().st_size
        os.truncate(path, header)
        os.truncate(path, size)
    scan = run_disk([tmp_path], exact=True)
    assert scan.nbytes > 2_000_000 and scan.allocated < 100_000
    assert scan.free.value <= scan.allocated


@pytest.mark.parametrize("nbytes", [4096, 5000, 1 << 20, (1 << 31) + 7])
@pytest.mark.parametrize("pages", [1, 4])
def test_pages_lie_in_the_tensor_and_do_not_overlap(nbytes: int, pages: int) -> None:
    found = places(nbytes, pages)
    assert found == sorted(found) and all(o % 4096 == 0 for o in found)
    assert all(b - a >= 4096 for a, b in pairwise(found)) and found[0] >= 0
    assert found[-1] + 4096 <= nbytes and len(found) == (pages if nbytes >= pages * 4 * 4096 else 1)


def test_the_entropy_of_pages_is_corrected_for_their_size() -> None:
    """Of 4096 bytes drawn from 64 equally likely ones the plain entropy is below 6 bits by (63 / 2n) / ln 2 = 0.011."""
    rng = np.random.default_rng(1)
    pages = rng.integers(0, 64, (200, 4096)).astype(np.uint8)
    found = page_shares(pages, 1) * 8
    assert found.mean() == pytest.approx(6.0, abs=0.001) and found.std() < 0.003


def test_wilsons_interval() -> None:
    """18 of 20: 0.699 to 0.972 (Newcombe 1998, method 3, by its formula). Unequal weights count as fewer."""
    yes = np.arange(20) < 18
    found = wilson(np.full(20, 1e6), yes)
    assert (found.value, found.low, found.high) == (
        18_000_000,
        pytest.approx(0.69897 * 2e7, rel=1e-4),
        pytest.approx(0.97210 * 2e7, rel=1e-4),
    )
    weights = np.where(np.arange(20) == 0, 19e6, 1e6)
    assert wilson(weights, np.ones(20)).low < wilson(np.full(20, 1.9e6), np.ones(20)).low
    assert wilson(weights, yes, exact=True) == Amount.exactly(36e6)
    assert wilson(np.empty(0), np.empty(0)) == Amount(0, 0, 0)


def test_weights_on_a_quantisation_grid(tmp_path: Path) -> None:
    """Blocks of 32 four-bit codes with a float16 scale, as Q4_0: 4.5 bits of 32; not on the grid but for one element,
    and --exact says so."""
    rng = np.random.default_rng(0)
    scales = rng.uniform(0.01, 0.1, (256 * 256 // 32, 1)).astype(np.float16).astype(np.float32)
    values = (rng.integers(-8, 8, (256 * 256 // 32, 32)).astype(np.float32) * scales).reshape(256, 256)
    spoiled = values.copy()
    spoiled[200, 3] = np.float32(0.0123456)
    write(tmp_path / "a", {"w": values})
    write(tmp_path / "b", {"w": spoiled})
    write(tmp_path / "c", {"w": rng.standard_normal((256, 256)).astype(np.float32)})
    freed = round(values.nbytes * (1 - 4.5 / 32))
    found = caches.of_kind(run_disk([tmp_path]), "quantisation_grid")
    assert found[str(tmp_path / "a/model.safetensors")].bytes_freed == freed  # type: ignore[attr-defined]
    assert str(tmp_path / "c/model.safetensors") not in found
    found = caches.of_kind(run_disk([tmp_path], exact=True), "quantisation_grid")
    assert {Path(p).parent.name for p in found} == {"a"}
    assert found[str(tmp_path / "a/model.safetensors")].bytes_freed == freed  # type: ignore[attr-defined]
