"""Laws of the merge room (stated in nett.merge.protocol): what every merge must keep, whatever it computes."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.common_laws import bad_values
from nett.core.errors import NettError, UsageError
from nett.core.registry import Card
from nett.merge import engine, job, stream
from nett.merge.outputs import outputs_of
from support.forge import forge
from support.memory import ArraysCheckpoint, merged_in_memory
from support.shared import made_once
from support.tensors import Array, read_tensors, rounded, write_tensors

Law = Callable[[Card, Path], None]
SHAPES = {"a.weight": (37, 29), "b.bias": (64,), "c.weight": (3, 5, 7), "d.empty": (0, 4), "e.scalar": (), "f": (513,)}


def laws(card: Card) -> list[Law]:
    """Every law that applies to a card of this room."""
    if card.command or card.kind != "reduce":
        from conformance import measure_laws

        return measure_laws.LAWS
    if "symmetry" in card.operands:
        from conformance import whole_laws

        return whole_laws.laws(card)
    found = [
        works_on_plain_arrays,
        float64_stays_float64,
        same_call_same_bits,
        same_bits_under_any_hash_seed,
        inputs_untouched,
        any_chunks_equal_the_whole,
        any_number_of_threads,
        budget_is_kept_in_bytes,
        peak_memory_within_grain,
        bad_parameters_on_arrays,
    ]
    if card.identity is not None:
        found.append(identity)
    if card.symmetric or any(output.each for output in outputs_of(card)):
        found.append(order_is_irrelevant)
    if card.parameter("seed"):
        found.append(seed_decides)
    if card.restore:
        found.append(restored_as_the_formula_says)
    return found


# -- material ---------------------------------------------------------------------------------------------------


def models_of(card: Card) -> int:
    """How many models the method takes: its own number, or three."""
    return int((card.mergekit or {}).get("models", 3))


def grid_arrays(shape: tuple[int, ...], count: int, seed: int, dtype: type = np.float32) -> list[Array]:
    """A base and ``count - 1`` fine-tunes on a coarse dyadic grid: sums are exact in any order, many values tie."""
    rng = np.random.default_rng(seed)
    base = rng.integers(-256, 257, shape) / 256
    deltas = [rng.integers(-32, 33, shape) / 1024 * (rng.random(shape) < 0.7) for _ in range(count - 1)]
    return [np.asarray(a, dtype) for a in (base, *(base + d for d in deltas))]


def noise_arrays(shape: tuple[int, ...], count: int, seed: int, dtype: type = np.float32) -> list[Array]:
    """A base and fine-tunes of normal noise."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape)
    return [np.asarray(base + (rng.normal(size=shape) * 0.1 if i else 0), dtype) for i in range(count)]


def operands(card: Card, arrays: Sequence[Array]) -> tuple[Any, ...]:
    """How a card's kernel takes a base and its fine-tunes."""
    tuned = list(arrays[1 : models_of(card) + 1])
    return (arrays[0], tuned) if "base" in card.operands else (tuned,)


def every(result: Any) -> list[Array]:
    """The arrays of a result, in order."""
    if isinstance(result, Mapping):
        return [a for key in sorted(result) for a in every(result[key])]
    return [a for part in result for a in every(part)] if isinstance(result, list) else [result]


def digest(result: Any) -> str:
    """A hash of every bit of a result."""
    return hashlib.sha256(b"".join(a.tobytes() for a in every(result))).hexdigest()


def settings_of(card: Card) -> list[dict[str, Any]]:
    """Parameter sets to try: the defaults, and each alternative of each choice and switch by itself."""
    found: list[dict[str, Any]] = [{}]
    for p in card.parameters:
        if p.choices or p.type == "bool":
            found += [{p.name: v} for v in p.choices or (False, True) if v != p.default]
    if card.parameter("scope") and card.parameter("tie_policy"):
        found.append({"scope": "tensor", "tie_policy": "lowest-index"})
    if card.parameter("density") and card.parameter("over"):
        found.append({"over": "ties", "density": 0.37})
    if rescale := card.parameter("rescale"):
        found.append({"rescale": "l1" if rescale.choices else True, "density": 0.3})
    return found


def folders(card: Card, folder: Path, *, dtype: str = "F32", make: Any = grid_arrays) -> dict[str, Any]:
    """Written models, ready for the engine: base and models by path."""
    count = models_of(card) + 1
    arrays = {name: make(shape, count, seed) for seed, (name, shape) in enumerate(sorted(SHAPES.items()))}
    paths = []
    for i in range(count):
        path = folder / ("base" if i == 0 else f"m{i}")
        tensors = {name: found[i] for name, found in arrays.items()} | {"z.steps": np.arange(5) + i}
        write_tensors(path / "model.safetensors", tensors, dtype)
        paths.append(str(path))
    return {"base": paths[0] if "base" in card.operands else None, "models": paths[1:]}


def merged(card: Card, made: Mapping[str, Any], out: Path, parameters: Any = None, **options: Any) -> dict[str, Any]:
    """One run of the engine, without the speak check."""
    base = Path(made["base"]) if made["base"] else None
    return engine.run(card, made["models"], parameters or {}, base=base, out=out, speak=False, **options)


def weights(folder: Path) -> dict[str, bytes]:
    """Every file of an output but receipt and report, which hold times."""
    found = {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
    return {name: blob for name, blob in found.items() if name not in ("nett.json", "nett.html")}


# -- laws -------------------------------------------------------------------------------------------------------


def works_on_plain_arrays(card: Card, folder: Path) -> None:
    """Arrays of any shape in, arrays of that shape out, no file in sight."""
    for shape in ((7,), (5, 4), (2, 3, 4), (1,), (3, 0), ()):
        arrays = grid_arrays(shape, models_of(card) + 1, 1)
        result = card.load()(*operands(card, arrays))
        for array in every(result):
            assert array.shape == shape
            assert array.dtype in (np.float32, np.bool_)
        if isinstance(result, Mapping):
            assert sorted(result) == sorted(o.name + ("*" if o.each else "") for o in outputs_of(card))


def float64_stays_float64(card: Card, folder: Path) -> None:
    """The type stays, and so does the precision: what differs only in float64 comes out different."""
    arrays = noise_arrays((50,), models_of(card) + 1, 2, np.float64)
    result = card.load()(*operands(card, arrays))
    floats = [a for a in every(result) if a.dtype != np.bool_]
    assert floats and all(a.dtype == np.float64 for a in floats)
    assert any(np.any(a != a.astype(np.float32)) for a in floats)


def same_call_same_bits(card: Card, folder: Path) -> None:
    for parameters in settings_of(card):
        arrays = noise_arrays((400,), models_of(card) + 1, 3)
        first, second = (card.load()(*operands(card, arrays), **parameters) for _ in range(2))
        assert digest(first) == digest(second)


def seed_decides(card: Card, folder: Path) -> None:
    """The same seed gives the same bits, another seed gives others."""
    arrays = noise_arrays((400,), models_of(card) + 1, 4)
    found = [digest(card.load()(*operands(card, arrays), seed=seed)) for seed in (0, 1, 2, 1)]
    assert found[1] == found[3] and len(set(found)) == 3


def digests() -> dict[str, str]:
    """Card -> hash of what it makes of fixed arrays; run in this process and in others."""
    from nett.core.cards import all_cards

    found = {}
    for card in all_cards():
        if card.room == "merge" and card.kind == "reduce" and not card.command and "symmetry" not in card.operands:
            arrays = noise_arrays((400,), models_of(card) + 1, 5)
            found[card.key] = digest(card.load()(*operands(card, arrays)))
    return found


@cache
def digests_under(hash_seed: str, laws: str = "merge_laws") -> dict[str, str]:
    """The same (of the cards of these laws) in a process of its own."""
    tests = Path(__file__).resolve().parents[1]
    code = (
        f"import sys, json; sys.path.insert(0, {str(tests)!r}); from conformance import {laws};"
        f" print(json.dumps({laws}.digests()))"
    )
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}

    def make(folder: Path) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    found: dict[str, str] = made_once(f"{laws}-{hash_seed}", make)
    return found


def same_bits_under_any_hash_seed(card: Card, folder: Path) -> None:
    arrays = noise_arrays((400,), models_of(card) + 1, 5)
    here = digest(card.load()(*operands(card, arrays)))
    assert here == digests_under("0")[card.key] == digests_under("4242")[card.key]


def inputs_untouched(card: Card, folder: Path) -> None:
    """Arrays: read-only ones do, their bytes stay, the result is memory of its own. Files: same bytes after."""
    for parameters in settings_of(card):
        arrays = noise_arrays((60,), models_of(card) + 1, 6)
        before = [a.tobytes() for a in arrays]
        for array in arrays:
            array.flags.writeable = False
        result = card.load()(*operands(card, arrays), **parameters)
        assert [a.tobytes() for a in arrays] == before
        for made, array in itertools.product(every(result), arrays):
            assert not np.shares_memory(made, array)
    made = folders(card, folder)
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    states = [(f.read_bytes(), f.stat().st_mtime_ns) for f in files]
    merged(card, made, folder / "out")
    assert [(f.read_bytes(), f.stat().st_mtime_ns) for f in files] == states


def identity(card: Card, folder: Path) -> None:
    """One fine-tune under the card's ``identity`` parameters comes back: bit for bit where no base is subtracted
    and added again, else within one unit in the last place of |base| + |fine-tune|; in bfloat16 files bit for bit
    wherever the fine-tune is not vanishing beside its base."""
    kernel, parameters = card.load(), dict(card.identity or {})
    for dtype, seed in itertools.product((np.float32, np.float64), range(3)):
        base, tuned = noise_arrays((2000,), 2, seed, dtype)
        tuned[::17] *= 1e-4
        result = kernel(*((base, [tuned]) if "base" in card.operands else ([tuned],)), **parameters)
        if "base" in card.operands:
            assert np.all(np.abs(result - tuned) <= np.spacing(np.abs(base) + np.abs(tuned)))
        else:
            assert result.tobytes() == tuned.tobytes()
    one = folders(card, folder, dtype="BF16", make=noise_arrays)
    one["models"] = one["models"][:1]
    merged(card, one, folder / "out", parameters)
    found, origin = read_tensors(folder / "out"), read_tensors(Path(one["models"][0]))
    base_tensors = read_tensors(folder / "base")
    for name, values in found.items():
        if values.dtype.kind == "f":
            safe = np.abs(origin[name]) > 2.0**-12 * np.abs(base_tensors[name])
            assert np.array_equal(values[safe], origin[name][safe])
            assert np.count_nonzero(safe) >= 0.99 * values.size - 1
        else:
            # integers are copied, from the base where there is one
            assert np.array_equal(values, (base_tensors if "base" in card.operands else origin)[name])


def order_is_irrelevant(card: Card, folder: Path) -> None:
    """Permuted models give the same bits (sums on the dyadic grid are exact); what is stored for each model moves
    with its model."""
    for parameters in settings_of(card):
        base, *tuned = grid_arrays((700,), 5, 7)
        kernel = card.load()
        lead = (base,) if "base" in card.operands else ()
        straight = kernel(*lead, tuned, **parameters)
        for order in ((3, 2, 1, 0), (1, 0, 3, 2), (2, 3, 0, 1)):
            turned = kernel(*lead, [tuned[i] for i in order], **parameters)
            for output in outputs_of(card):
                if output.each:
                    back = [turned[output.name + "*"][order.index(i)] for i in range(4)]
                    assert digest(back) == digest(straight[output.name + "*"])
                elif isinstance(straight, Mapping):
                    assert digest(turned[output.name]) == digest(straight[output.name])
                else:
                    assert digest(turned) == digest(straight)


def any_chunks_equal_the_whole(card: Card, folder: Path) -> None:
    """Streamed in chunks of any size, by any way through the engine's stream, the bits are those of whole arrays."""
    kernel = card.load()
    choices = settings_of(card)

    @settings(max_examples=25)
    @given(
        size=st.integers(1, 80),
        chunk=st.integers(1, 90),
        small=st.sampled_from([1, 4, 1000]),
        seed=st.integers(0, 99),
        choice=st.sampled_from(choices),
        threads=st.sampled_from([1, 1, 2]),
    )
    def check(size: int, chunk: int, small: int, seed: int, choice: dict[str, Any], threads: int) -> None:
        base, *tuned = grid_arrays((size,), models_of(card) + 1, seed)
        # Random numbers depend on the tensor's name; plain arrays have none.
        checkpoints = [ArraysCheckpoint({"": a}, "F32", f"m{i}") for i, a in enumerate((base, *tuned))]
        ground = checkpoints[0] if "base" in card.operands else None
        whole = kernel(*operands(card, [base, *tuned]), **choice)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(job, "CHUNK", chunk)
            patch.setattr(stream, "SMALL", small * chunk)
            patch.setattr(stream, "CHUNK", chunk)
            found = merged_in_memory(card, ground, checkpoints[1:], card.resolve(choice), threads=threads)
        assert digest(found[""]) == digest(whole)

    check()


def any_number_of_threads(card: Card, folder: Path) -> None:
    """Files of 1, 2 and 3 threads are equal, for tensors below and above what one thread takes whole."""
    made = folders(card, folder, make=noise_arrays)
    for number, (chunk, small) in enumerate(((64, 128), (1 << 17, 1 << 21))):
        with pytest.MonkeyPatch.context() as patch:
            for module in (job, stream):
                patch.setattr(module, "CHUNK", chunk)
            patch.setattr(stream, "SMALL", small)
            found = []
            for threads in (1, 2, 3):
                out = folder / f"out{number}-{threads}"
                merged(card, made, out, threads=threads)
                found.append(weights(out))
        assert found[0] == found[1] == found[2]


def budget_is_kept_in_bytes(card: Card, folder: Path) -> None:
    """What lies on the disk is what the dry run planned and what the receipt says: to the byte."""
    for dtype in ("BF16", "F32"):
        made = folders(card, folder / dtype, dtype=dtype)
        plan = merged(card, made, folder / dtype / "out", dry_run=True)
        assert not (folder / dtype / "out").exists()
        receipt = merged(card, made, folder / dtype / "out")
        on_disk = {name: len(blob) for name, blob in weights(folder / dtype / "out").items()}
        assert {f["path"]: f["bytes"] for f in plan["files"]} == on_disk
        assert {o["path"]: o["bytes"] for o in receipt["outputs"]} == on_disk
        assert receipt["bytes_after"] == sum(on_disk.values()) == plan["plan"]["bytes_written"]
        width = {"BF16": 2, "F32": 4}[dtype]
        for output in outputs_of(card):
            sizes = [prod(shape) for shape in SHAPES.values()]
            expected = sum(-(-n // 8) if output.bits else n * width for n in sizes)
            expected += 5 * 8 if output.name == "model" else 0  # the copied integers
            for label in [f"m{i + 1}" for i in range(models_of(card))] if output.each else [""]:
                blob = (folder / dtype / "out" / f"{output.stem(label)}.safetensors").read_bytes()
                header = 8 + int.from_bytes(blob[:8], "little")
                assert len(blob) - header == expected


def large_models(root: Path) -> dict[str, list[str]]:
    """Two model families of bfloat16, the second with four times the tensors of the first."""
    rng = np.random.default_rng(8)
    block = rng.normal(size=1 << 19).astype(np.float32)
    found: dict[str, list[str]] = {}
    for family, count in (("one", 12), ("four", 48)):
        for model in range(4):
            values = rounded(block + np.float32(0.01) * np.roll(block, 7 * model + 1) * (model > 0), "BF16")
            tensors = {f"layer.{i}": values.reshape(8192, 64) for i in range(count)}
            write_tensors(root / family / f"m{model}" / "model.safetensors", tensors, "BF16")
            found.setdefault(family, []).append(str(root / family / f"m{model}"))
    return found


def peak_memory_within_grain(card: Card, folder: Path) -> None:
    """Four times the model does not take more memory: 12 and 48 MB a model, chunks of 64 Ki elements."""
    found: dict[str, list[str]] = made_once("large", large_models)

    def peak(family: str) -> int:
        base, *models = found[family]
        return int(
            forge().run(
                "support.work:peak_memory",
                method=card.name,
                models=models[: models_of(card)],
                base=base if "base" in card.operands else None,
                out=str(folder / family),
                chunk=1 << 16,
                small=1 << 19,
                threads=2,
                overwrite=True,
            )
        )

    allowed = 8 << 20  # against 36 MB more in each model
    peaks = {"one": peak("one"), "four": peak("four")}
    # A peak is what two threads happened to hold at once, some megabytes more or less, and over few tensors they may never
    # have been at their heights together. Memory that grows with the model is 36 MB and more, each time.
    for _ in range(2):
        if peaks["four"] > peaks["one"] + allowed:
            peaks = {"one": max(peaks["one"], peak("one")), "four": min(peaks["four"], peak("four"))}
    assert peaks["four"] <= peaks["one"] + allowed, peaks


def bad_parameters_on_arrays(card: Card, folder: Path) -> None:
    """The Python call refuses what the command line refuses, by name; and lists and arrays of the wrong length."""
    arrays = grid_arrays((6,), models_of(card) + 1, 9)
    for parameter in card.parameters:
        bad = [*bad_values(parameter), *([[parameter.default] * (models_of(card) + 1)] if parameter.many else [])]
        for value in bad:
            with pytest.raises(UsageError, match=parameter.name):
                card.load()(*operands(card, arrays), **{parameter.name: value})
    with pytest.raises(UsageError, match="no_such_thing"):
        card.load()(*operands(card, arrays), no_such_thing=1)
    if "base" in card.operands or models_of(card) > 1:
        with pytest.raises(NettError, match="shape"):
            card.load()(*operands(card, [arrays[0], *arrays[1:-1], arrays[-1][:5]]))


def restored_as_the_formula_says(card: Card, folder: Path) -> None:
    """Each task comes back from its files as the method's own ``restore`` makes it of arrays, and at the distance
    that the receipt states."""
    restore = getattr(sys.modules[card.load().__module__], str(card.restore))
    made = folders(card, folder, make=noise_arrays)
    receipt = merged(card, made, folder / "out")
    base = read_tensors(Path(made["base"]))
    for row, model in zip(receipt["tasks"], made["models"], strict=True):
        forge().run(
            "support.work:restore",
            folder=str(folder / "out"),
            task=row["name"],
            out=str(folder / row["name"]) + "-back",
        )
        back, origin = read_tensors(folder / f"{row['name']}-back"), read_tensors(Path(model))
        stored = {}
        for output in outputs_of(card):
            file = folder / "out" / f"{output.stem(row['name'])}.safetensors"
            stored[output.name] = (output.bits, read_tensors(file))
        distance = size = 0.0
        for name, values in base.items():
            if values.dtype.kind != "f":
                assert np.array_equal(back[name], values)
                continue
            parts = {}
            for key, (bits, tensors) in stored.items():
                found = tensors[name]
                if bits:
                    found = (
                        np.unpackbits(found, count=values.size, bitorder="little").astype(bool).reshape(values.shape)
                    )
                parts[key] = found
            assert np.array_equal(back[name], restore(values, **parts))
            distance += float(np.sum((back[name].astype(np.float64) - origin[name]) ** 2))
            size += float(np.sum(origin[name].astype(np.float64) ** 2))
        assert row["relative_l2"] == pytest.approx((distance / size) ** 0.5, rel=1e-9)
