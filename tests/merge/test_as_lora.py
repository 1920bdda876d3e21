"""--as-lora: adapters that PEFT loads, errors worked out with numpy.linalg.svd, what has no factors, verify, refusals."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett.core.checkpoint import open_checkpoint
from nett.core.errors import UsageError
from nett.core.tiny import fine_tune_of, write_llama
from nett.merge.as_lora import Wanted
from support.cli import nett
from support.tensors import Array, read_tensors, write_tensors

PREFIX = "base_model.model."


def adapter(folder: Path, ranks: dict[str, int], seed: int, base: Path) -> tuple[Path, dict[str, Array]]:
    """A LoRA of these modules (name -> rank), and each module's change in float64; scaling 2."""
    rng = np.random.default_rng(seed)
    shapes = {n: a.shape for n, a in read_tensors(base).items()}
    rank = max(ranks.values())
    tensors, change = {}, {}
    for module in ranks:
        rows, columns = shapes[f"{module}.weight"]
        a = (rng.normal(size=(rank, columns)) * 0.1).astype(np.float32)
        b = (rng.normal(size=(rows, rank)) * 0.1).astype(np.float32)
        tensors |= {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b}
        change[f"{module}.weight"] = 2 * b.astype(np.float64) @ a
    folder.mkdir()
    write_tensors(folder / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "base_model_name_or_path": str(base)}
    config["target_modules"] = sorted({m.rpartition(".")[2] for m in ranks})  # type: ignore[assignment]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder, change


def product(folder: Path, name: str) -> Array:
    """The change of a matrix that an adapter holds, from its file alone (scaling 1)."""
    tensors = read_adapter(folder)
    module = PREFIX + name.removesuffix(".weight")
    if f"{module}.lora_embedding_A" in tensors:
        found = tensors[f"{module}.lora_embedding_B"].astype(np.float64) @ tensors[f"{module}.lora_embedding_A"]
        return np.asarray(found.T)
    found = tensors[f"{module}.lora_B.weight"].astype(np.float64) @ tensors[f"{module}.lora_A.weight"]
    return np.asarray(found)


def read_adapter(folder: Path) -> dict[str, Array]:
    from nett.core.checkpoint.safetensors import SafetensorsCheckpoint

    with SafetensorsCheckpoint(folder, [folder / "adapter_model.safetensors"]) as found:
        return {n: found.values(n).reshape(t.shape) for n, t in found.tensors.items()}


def receipt_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "nett.json").read_text())
    return found


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """An untied float32 base and two fine-tunes of all its weights."""
    place = tmp_path_factory.mktemp("family")
    base = write_llama(place / "base", layers=1, dtype="F32", tied=False)
    return base, fine_tune_of(base, place / "a", seed=1), fine_tune_of(base, place / "b", seed=2)


def merge(family: Any, out: Path, *words: str, method: str = "task_arithmetic", models: Any = None) -> dict[str, Any]:
    base, *tuned = family
    given = [str(m) for m in models or tuned]
    nett("merge", method, *given, "--base", str(base), "--out", str(out), *words).succeeded()
    return receipt_of(out)


def delta_of(family: Any, weights: tuple[float, ...], scale: float = 1.0) -> dict[str, Array]:
    """Task arithmetic's change of each tensor, from the files, in float64."""
    base, *tuned = (read_tensors(p) for p in family)
    return {
        n: scale * sum(w * (t[n].astype(np.float64) - b) for w, t in zip(weights, tuned, strict=True))
        for n, b in base.items()
    }


def test_errors_as_the_singular_values_say(family: Any, tmp_path: Path) -> None:
    """Each tensor's, and the total over all that changed (norms are kept whole, so they lose nothing)."""
    receipt = merge(family, tmp_path / "out", "--as-lora", "5", "--scale", "0.7")
    rows = {r["name"]: r for r in receipt["tensors"]}
    lost = square = 0.0
    for name, delta in delta_of(family, (1, 1), 0.7).items():
        square += np.square(delta).sum()
        if delta.ndim < 2:
            assert rows[name]["kept"] == "whole" and rows[name]["relative_error"] == 0
            continue
        singular = np.linalg.svd(delta, compute_uv=False)
        expected = np.sqrt(np.square(singular[5:]).sum() / np.square(singular).sum())
        assert rows[name]["relative_error"] == pytest.approx(expected, rel=1e-4)
        measured = np.linalg.norm(delta - product(tmp_path / "out", name)) / np.linalg.norm(delta)
        assert rows[name]["relative_error"] == pytest.approx(measured, rel=1e-4)
        lost += np.square(singular[5:]).sum()
    assert receipt["figures"]["relative_error"] == pytest.approx(np.sqrt(lost / square), rel=1e-4)
    assert receipt["edges"][0]["error"] == receipt["figures"]["relative_error"]
    assert not receipt["figures"]["exact_to_rounding"]
    assert any("5 tensors" in n or "3 tensors" in n for n in receipt["notes"])


@pytest.mark.parametrize(("rank", "exact"), [(5, True), (4, False)])
def test_merged_adapters_are_exactly_of_the_sum_of_their_ranks(
    family: Any, tmp_path: Path, rank: int, exact: bool
) -> None:
    base = family[0]
    q, up = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"
    one, first = adapter(tmp_path / "one", {q: 2, up: 2}, 1, base)
    two, second = adapter(tmp_path / "two", {q: 3}, 2, base)
    receipt = merge(
        family, tmp_path / "out", "--as-lora", str(rank), "--scale", "0.6", "--weight", "1,-0.5", models=(one, two)
    )
    rows = {r["name"]: r for r in receipt["tensors"]}
    assert set(rows) == {f"{q}.weight", f"{up}.weight"}  # nothing else changed, so nothing else is in the adapter
    summed = 0.6 * (first[f"{q}.weight"] - 0.5 * second[f"{q}.weight"])
    singular = np.linalg.svd(summed, compute_uv=False)
    assert singular[5] < 1e-12 < singular[4]
    assert receipt["figures"]["exact_to_rounding"] is exact
    assert any(("exactly, to the rounding of float32" in n) is exact for n in receipt["notes"] if "adapter of" in n)
    assert (rows[f"{q}.weight"]["rank"], rows[f"{up}.weight"]["rank"]) == (rank, 2)
    left = np.abs(product(tmp_path / "out", f"{q}.weight") - summed).max()
    if exact:
        assert left < 4 * 2.0**-24 * np.abs(read_tensors(base)[f"{q}.weight"]).max()
    else:
        expected = singular[4] / np.linalg.norm(singular)
        assert rows[f"{q}.weight"]["relative_error"] == pytest.approx(expected, rel=1e-4)
    shapes = {n: a.shape for n, a in read_adapter(tmp_path / "out").items()}
    assert shapes[f"{PREFIX}{up}.lora_A.weight"][0] == rank  # one rank for all, zeros where it is not needed
    nett("verify", str(tmp_path / "out")).succeeded()


def peft_weights(base: Path, folder: Path) -> dict[str, Array]:
    """What PEFT makes of base and adapter, with no key of the adapter left over."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own, but for keys that do not fit
        warnings.filterwarnings("error", message="(?s).*(missing|unexpected).*")
        loaded = peft.PeftModel.from_pretrained(model, str(folder))
        whole = loaded.merge_and_unload()
    return {n: t.float().numpy() for n, t in whole.state_dict().items()}


@pytest.mark.parametrize("tied", [False, True])
def test_peft_loads_it_and_gets_the_merged_model(tmp_path: Path, tied: bool) -> None:
    """At full rank the adapter over its base is the merged model; norms, embeddings and the output layer included."""
    base = write_llama(tmp_path / "base", layers=2, dtype="F32", tied=tied)
    tuned = fine_tune_of(base, tmp_path / "tuned", seed=1)
    merge((base, tuned), tmp_path / "out", "--as-lora", "64", "--scale", "0.5", method="task_arithmetic")
    merge((base, tuned), tmp_path / "whole", "--no-speak", "--scale", "0.5")
    expected = read_tensors(tmp_path / "whole")
    made = peft_weights(base, tmp_path / "out")
    for name, values in expected.items():
        np.testing.assert_allclose(made[name], values, rtol=0, atol=3e-7, err_msg=name)
    if tied:
        assert (made["lm_head.weight"] == made["model.embed_tokens.weight"]).all()
    with open_checkpoint(f"{base}+{tmp_path / 'out'}") as ours:
        for name, values in expected.items():
            np.testing.assert_allclose(ours.values(name), values.ravel(), rtol=0, atol=3e-7)


def test_biases_go_into_their_layers(family: Any, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in family[0].iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    tensors = read_tensors(base)
    rng = np.random.default_rng(5)
    for name in [n for n in tensors if "self_attn" in n]:
        tensors[name.replace("weight", "bias")] = rng.normal(size=tensors[name].shape[0]).astype(np.float32)
    write_tensors(base / "model.safetensors", tensors, "F32", format="pt")
    config = json.loads((base / "config.json").read_text()) | {"attention_bias": True}
    (base / "config.json").write_text(json.dumps(config))
    tuned = fine_tune_of(base, tmp_path / "tuned", seed=3)
    receipt = merge((base, tuned), tmp_path / "out", "--as-lora", "32")
    assert {r["kept"] for r in receipt["tensors"]} == {"factors", "whole", "bias"}
    made, expected = peft_weights(base, tmp_path / "out"), read_tensors(tuned)
    for name in ("self_attn.q_proj.bias", "self_attn.o_proj.bias", "mlp.up_proj.weight", "input_layernorm.weight"):
        name = f"model.layers.0.{name}"
        assert np.abs(expected[name] - tensors[name]).max() > 1e-3
        np.testing.assert_allclose(made[name], expected[name], rtol=0, atol=3e-7, err_msg=name)


def test_layers_that_lie_turned(tmp_path: Path) -> None:
    """GPT-2: Conv1D keeps [in, out], square ones included; its norms have biases; positions have factors of their own.
    One fine-tune of every weight, and one of a layer's and a norm's bias alone."""
    torch = pytest.importorskip("torch")
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    base = tmp_path / "base"
    GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=12, n_embd=8, n_layer=2, n_head=2)).save_pretrained(base)
    tuned = fine_tune_of(base, tmp_path / "all", seed=1, density=1.0)
    biases = fine_tune_of(base, tmp_path / "biases", seed=1, density=0.0)
    tensors = read_tensors(biases)
    tensors["transformer.h.1.mlp.c_fc.bias"] += 1
    tensors["transformer.ln_f.bias"] += 1
    write_tensors(biases / "model.safetensors", tensors, "F32", format="pt")
    for name, one in (("a", tuned), ("b", biases)):
        merge((base, one), tmp_path / name, "--as-lora", "8", method="linear")
        made, expected = peft_weights(base, tmp_path / name), read_tensors(one)
        for key, values in expected.items():
            np.testing.assert_allclose(made[key], values, rtol=0, atol=3e-7, err_msg=key)
        nett("verify", str(tmp_path / name)).succeeded()


def test_auto_takes_the_smallest_rank(family: Any, tmp_path: Path) -> None:
    deltas = delta_of(family, (1, 1))
    square = sum(np.square(d).sum() for d in deltas.values())
    singular = [np.linalg.svd(d, compute_uv=False) for d in deltas.values() if d.ndim == 2]

    def error(rank: int) -> float:
        return float(np.sqrt(sum(np.square(s[rank:]).sum() for s in singular) / square))

    smallest = next(r for r in range(1, 65) if error(r) <= 0.3)
    receipt = merge(family, tmp_path / "out", "--as-lora", "auto:0.3")
    assert receipt["figures"]["rank"] == smallest > 1
    assert receipt["figures"]["relative_error"] == pytest.approx(error(smallest), rel=1e-4)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == smallest


def test_a_recipe_and_a_method_without_base(family: Any, tmp_path: Path) -> None:
    base, one, two = family
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        f"merge_method: task_arithmetic\nbase_model: {base}\nmodels:\n"
        f"  - model: {one}\n    parameters: {{weight: 0.5}}\n  - model: {two}\n    parameters: {{weight: 0.5}}\n"
    )
    nett("merge", str(recipe), "--as-lora", "6", "--out", str(tmp_path / "a")).succeeded()
    nett("merge", "linear", str(one), str(two), "--base", str(base), "--as-lora", "6", "--out", str(tmp_path / "b"))
    for name in ("model.layers.0.mlp.down_proj.weight", "lm_head.weight", "model.embed_tokens.weight"):
        a, b = product(tmp_path / "a", name), product(tmp_path / "b", name)
        np.testing.assert_allclose(a, b, atol=1e-6)
        assert np.abs(a).max() > 1e-4
    for name in ("a", "b"):
        said = nett("verify", str(tmp_path / name), "--rerun").succeeded()
        assert "adapter: relative error" in said.out and "came out with the same bytes" in said.out


def test_verify_measures_the_factors_that_lie_there(family: Any, tmp_path: Path) -> None:
    """Factors changed behind the receipt's back, hashes and all, do not keep the error that it states."""
    from nett.core.receipt import file_sha256

    merge(family, tmp_path / "out", "--as-lora", "3")
    weights = tmp_path / "out" / "adapter_model.safetensors"
    blob = bytearray(weights.read_bytes())
    blob[-4096:] = bytes(4096)
    weights.write_bytes(blob)
    receipt = receipt_of(tmp_path / "out")
    next(o for o in receipt["outputs"] if o["path"] == weights.name)["sha256"] = file_sha256(weights)
    (tmp_path / "out" / "nett.json").write_text(json.dumps(receipt))
    nett("verify", str(tmp_path / "out")).failed(4, "adapter")


def test_the_factors_take_the_type_that_is_asked_for(family: Any, tmp_path: Path) -> None:
    receipt = merge(family, tmp_path / "out", "--as-lora", "3", "--dtype", "bfloat16")
    name = "model.layers.0.mlp.down_proj.weight"
    with open_checkpoint(tmp_path / "out" / "adapter_model.safetensors") as found:
        key = f"{PREFIX}{name.removesuffix('.weight')}.lora_A.weight"
        assert found.tensors[key].dtype.name == "BF16"
    delta = delta_of(family, (1, 1))[name]
    measured = np.linalg.norm(delta - product(tmp_path / "out", name)) / np.linalg.norm(delta)
    row = next(r for r in receipt["tensors"] if r["name"] == name)
    assert row["relative_error"] == pytest.approx(measured, rel=1e-4)  # the rounding of the factors is in it


def test_what_cannot_be_an_adapter(family: Any, tmp_path: Path) -> None:
    base, one, two = (str(p) for p in family)
    out = ("--out", str(tmp_path / "out"))
    nett("merge", "tall_masks", one, two, "--base", base, "--as-lora", "4", *out).failed(2, "does not give one model")
    nett("merge", "linear", one, two, "--as-lora", "4", *out).failed(2, "needs the model", "--base MODEL")
    nett("merge", "ties", one, two, "--base", base, "--as-lora", "big", *out).failed(2, "neither a rank nor auto")
    nett("merge", "linear", base, "--base", base, "--as-lora", "4", *out).failed(3, "changes nothing of its base")
    nett("merge", "linear", one, "--base", base, "--as-lora", "auto:1e-9", *out)
    for text in ("0", "-3", "auto:0", "auto:2", "1.5", ""):
        with pytest.raises(UsageError):
            Wanted.of(text)
    experts = {"mlp.experts.gate_up_proj": np.ones((2, 3, 4), np.float32), "w.weight": np.ones((2, 2), np.float32)}
    write_tensors(tmp_path / "e0.safetensors", experts)
    write_tensors(tmp_path / "e1.safetensors", {n: a + 1 for n, a in experts.items()})
    words = (str(tmp_path / "e1.safetensors"), "--base", str(tmp_path / "e0.safetensors"), "--as-lora", "1", *out)
    nett("merge", "linear", *words).failed(3, "mlp.experts.gate_up_proj", "neither a linear layer")
    assert not any(p.name.startswith(".out") for p in tmp_path.iterdir())


def test_dry_run_and_names_of_some_layers_only(family: Any, tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base", layers=2, dtype="F32")
    q = "model.layers.1.self_attn.q_proj"
    one, _ = adapter(tmp_path / "one", {q: 2}, 1, base)
    words = (str(one), "--base", str(base), "--as-lora", "2", "--out", str(tmp_path / "out"))
    nett("--dry-run", "merge", "linear", *words).succeeded()
    assert not (tmp_path / "out").exists()
    nett("merge", "linear", *words).succeeded()
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == [q] and config["modules_to_save"] is None


def test_a_rank_beyond_every_matrix_is_brought_down(tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base", layers=1, dtype="F32", tied=False)
    tuned = write_llama(tmp_path / "tuned", layers=1, tied=False, noise_from=base, seed=1, dtype="F32")
    words = ["merge", "linear", str(tuned), "--base", str(base), "--as-lora"]
    plans = [json.loads(nett(*words, rank, "--out", str(tmp_path / "out"), "--dry-run").out) for rank in ("32", "4096")]
    assert plans[0]["plan"] == plans[1]["plan"]
    nett(*words, "4096", "--out", str(tmp_path / "out")).succeeded()
    receipt = json.loads((tmp_path / "out" / "nett.json").read_text())
    assert receipt["figures"]["rank"] == 32 and receipt["figures"]["exact_to_rounding"]
    assert any("rank 32 is taken, not 4096" in note for note in receipt["notes"])
    nett("verify", str(tmp_path / "out"), "--rerun").succeeded()
