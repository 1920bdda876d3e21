"""The command: what it says of settings and models, what it refuses, and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nett
from nett.core.errors import Refused, UsageError
from nett.experts.duplex_dimensions import of_config, read_config
from nett.experts.duplex_reading import read_settings
from nett.experts.duplex_settings import Bytes
from nett.experts.duplex_units import quantity
from nett.experts.duplex_work import cache_bytes, weight_bytes
from support.cli import nett as command

TEXT = """\
model: {layers: 2, hidden: 256, heads: 8, kv_heads: 2, intermediate: 512, experts: 8, top_k: 2, vocabulary: 512}
hardware:
  devices: 2
  xpu: {flops: 989 TFLOP/s}
  pim: {bandwidth: 4x, flops: 8 FLOP/B}
requests: {count: 30, input: {mean: 64, std: 8}, output: 16}
serving: {batch: 8}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "server.yml"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("989 TFLOP/s", "rate of operations", 989e12), ("8 FLOP/B", "rate of operations", 8.0), ("3.35TB/s", "bandwidth", 3.35e12),
        ("2 GiB/s", "bandwidth", 2 * 2.0**30), ("4x", "bandwidth of PIM", 4.0), ("80 GiB", "memory", 80 * 2.0**30),
        ("80 GB", "memory", 80e9), ("1_000 MB", "memory", 1e9), ("3.5 pJ/bit", "energy of a byte", 28e-12),
        ("28 pJ/B", "energy of a byte", 28e-12), ("0.2 pJ/FLOP", "energy of an operation", 0.2e-12),
        ("0.8 us", "time", 0.8e-6), ("8/s", "rate of requests", 8.0), ("1e2 W", "power", 100.0),
    ],
)  # fmt: skip
def test_quantities(text: str, kind: str, value: float) -> None:
    assert quantity(text, kind).value == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("text", ["989", 989, "TFLOP/s", "989 TB/s", "-1 TFLOP/s", "0 TFLOP/s", "inf TFLOP/s", "4x", True, None, [1], "1e999 FLOP/s", "5 KiFLOP/s"])  # fmt: skip
def test_what_is_no_quantity_says_what_is(text: Any) -> None:
    with pytest.raises(ValueError, match="989 TFLOP/s"):
        quantity(text, "rate of operations")


WRONG = {
    "an unknown key": ("devices: 2", "devcies: 2", 3, ["hardware.devcies", "Did you mean 'devices'?", "Known here"]),
    "an unknown key of the model": ("hidden: 256", "hiden: 256", 1, ["'model.hiden'", "Did you mean 'hidden'?"]),
    "an unknown key at the top": ("serving:", "servng:", 7, ["Did you mean 'serving'?"]),
    "no unit": ("989 TFLOP/s", "989", 4, ["hardware.xpu.flops = 989 has no unit", "989 TFLOP/s"]),
    "the unit of something else": ("989 TFLOP/s", "989 GB/s", 4, ["'GB/s', which is no rate of operations"]),
    "a negative quantity": ("4x", "-4x", 5, ["hardware.pim.bandwidth = '-4x'", "negative"]),
    "nothing relative to itself": ("flops: 989 TFLOP/s", "bandwidth: 4x", 4, ["'x', which is no bandwidth"]),
    "a count below one": ("count: 30", "count: 0", 6, ["requests.count = 0", "greater than or equal to 1"]),
    "top_k of too few experts": ("top_k: 2", "top_k: 9", 1, ["top_k = 9 of 8 experts", "1 to 8"]),
    "heads that do not divide": ("kv_heads: 2", "kv_heads: 3", 1, ["heads = 8 is no multiple of kv_heads = 3"]),
    "two kinds of lengths": ("std: 8", "std: 8, low: 3", 6, ["requests.input", "'low' and 'high'"]),
    "lengths upside down": ("mean: 64, std: 8", "low: 9, high: 3", 6, ["low = 9 is above high = 3"]),
    "a rate for nothing": ("count: 30", "rate: 8/s", 6, ["requests", "arrivals: poisson"]),
    "a word that is none": ("count: 30", "arrivals: poison", 6, ["Did you mean 'poisson'?"]),
    "a scheme that is none": ("serving: {batch: 8}", "schemes: [gpu, pm]", 7, ["schemes.1 = 'pm'", "Did you mean 'pim'?"]),
    "no schemes": ("serving: {batch: 8}", "schemes: []", 7, ["schemes"]),
    "a number in place of a mapping": ("serving: {batch: 8}", "serving: 8", 7, ["serving = 8 is not a mapping", "batch"]),
    "a text in place of a number": ("layers: 2", "layers: '2'", 1, ["model.layers = '2'", "integer"]),
    "a share above one": ("batch: 8", "memory_share: 1.5", 7, ["serving.memory_share = 1.5"]),
    "counts without a file": ("serving: {batch: 8}", "routing: {by: file}", 7, ["routing", "counts: FILE.json"]),
    "a key twice": ("serving: {batch: 8}", "requests: {count: 3}", 7, ["'requests' twice"]),
    "a tag": ("batch: 8", "batch: !!python/name:os.system x", 7, ["plain data"]),
    "no YAML": ("serving: {batch: 8}", "serving: {batch: 8", 8, ["not valid YAML"]),
    "a model that is nothing": ("model: {", "model: 3 #{", 1, ["model"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG, ids=[*WRONG])
def test_settings_that_are_off(case: str, file: Path) -> None:
    old, new, line, parts = WRONG[case]
    assert old in TEXT
    file.write_text(TEXT.replace(old, new, 1))
    command("experts", "simulate", str(file)).failed(2, f"server.yml:{line}", *parts)


def test_the_model_is_missing(file: Path) -> None:
    file.write_text("serving: {batch: 8}\n")
    command("experts", "simulate", str(file)).failed(2, "'model' is missing", "config.json")


def test_files_that_are_not_there(file: Path) -> None:
    command("experts", "simulate").failed(2, "name one file")
    command("experts", "simulate", "nowhere.yml").failed(2, "nowhere.yml", "cannot be read")
    file.write_text(TEXT.replace(TEXT.splitlines()[0], "model: nowhere"))
    command("experts", "simulate", str(file)).failed(3, "nowhere", "cannot be read")
    file.write_text(TEXT + "routing: {by: file, counts: none.json}\n")
    command("experts", "simulate", str(file)).failed(3, "none.json", "cannot be read")
    command("experts", "simulate", str(file), "--html", "no/such/folder/a.html").failed(3, "no such folder")


@pytest.mark.parametrize(
    ("counts", "part"),
    [
        ("[[1,2,3]]", "holds 1 layers; the model has 2"), ("3", "a int"), ("[[1,2],[3,4]]", "2 counts; the model has 8"),
        ("[[1,1,1,1,1,1,1,-1],[1,1,1,1,1,1,1,1]]", "layer 0"), ("[[0,0,0,0,0,0,0,1],[1,1,1,1,1,1,1,1]]", "for 2 experts at least"),
        ("[", "no JSON"),
    ],
)  # fmt: skip
def test_counts_that_do_not_fit(counts: str, part: str, file: Path) -> None:
    (file.parent / "c.json").write_text(counts)
    file.write_text(TEXT + "routing: {by: file, counts: c.json}\n")
    command("experts", "simulate", str(file)).failed(2, "c.json", part)


@pytest.mark.parametrize(
    ("rows", "part"),
    [("arrival,input\n0,1\n", "its columns are"), ("arrival,input,output\n", "no request"), ("arrival,input,output\n0,x,3\n", "t.csv:2"),
     ("arrival,input,output\n0,3,0\n", "1 token or more"), ("arrival,input,output\n-1,3,2\n", "0 or later")],
)  # fmt: skip
def test_traces_that_are_off(rows: str, part: str, file: Path) -> None:
    (file.parent / "t.csv").write_text(rows)
    file.write_text(TEXT.replace("count: 30", "file: t.csv"))
    command("experts", "simulate", str(file)).failed(2, "t.csv", part)


def test_a_trace_from_a_file(file: Path) -> None:
    (file.parent / "t.csv").write_text("arrival,input,output\n5,30,4\n0,20,2\n")
    file.write_text(TEXT.replace("count: 30", "file: t.csv"))
    told = nett.experts.simulate([str(file)])
    assert told["requests"] == {"count": 2, "input": 25.0, "output": 3.0, "arrivals": "file"}


def test_what_does_not_fit_is_refused_with_what_would(file: Path) -> None:
    file.write_text(TEXT.replace("devices: 2", "devices: 2\n  memory: 4 MB"))
    command("experts", "simulate", str(file)).failed(3, "the weights take", "devices: ")
    hint = command("experts", "simulate", str(file)).err.split("{devices: ")[1].split("}")[0]
    file.write_text(TEXT.replace("devices: 2", f"devices: {hint}\n  memory: 4 MB"))
    command("experts", "simulate", str(file)).succeeded()


def test_the_command_says_writes_and_repeats(file: Path) -> None:
    words = (
        "experts",
        "simulate",
        str(file),
        "--sweep",
        "--json",
        str(file.parent / "a.json"),
        "--html",
        str(file.parent / "a.html"),
    )
    file.write_text(
        TEXT
        + "schemes: [gpu, best, duplex]\nsweep: {batch: [4, 8], input: [32], output: [8], experts: [8, 16], pim_bandwidth: [2x], pim_flops: [4 FLOP/B], requests: 12}\n"
    )
    said = command(*words).succeeded()
    assert "xPU only" in said.out and "Duplex" in said.out and "operations a byte while decoding" in said.out
    told = json.loads((file.parent / "a.json").read_text())
    assert list(told["schemes"]) == ["gpu", "best", "duplex"]
    assert {k: [r["value"] for r in v] for k, v in told["sweep"].items()} == {
        "batch": [4, 8], "input": [32], "output": [8], "experts": [8, 16], "pim_bandwidth": [2.0], "pim_flops": [4.0],
    }  # fmt: skip
    page = (file.parent / "a.html").read_text()
    assert page.count("<svg") >= 12 and "Operations a byte" in page
    before = (file.parent / "a.json").read_bytes()
    command(*words).succeeded()
    assert (file.parent / "a.json").read_bytes() == before


def test_a_dense_model_whose_answers_have_one_token(file: Path) -> None:
    """Nothing lies between tokens, and there are no experts."""
    file.write_text(TEXT.replace("experts: 8, top_k: 2, ", "").replace("output: 16", "output: 1"))
    said = command(
        "experts", "simulate", str(file), "--json", str(file.parent / "a.json"), "--html", str(file.parent / "a.html")
    )
    assert "dense" in said.succeeded().out and "–" in said.out
    told = json.loads((file.parent / "a.json").read_text())
    assert told["schemes"]["gpu"]["between_tokens"]["p50"] is None
    assert {r["layer"] for r in told["layers"]} >= {"dense", "qkv"} and told["schemes"]["gpu"]["seconds_by"][
        "experts"
    ] == 0


def test_values_of_a_sweep_that_do_not_fit_are_left_out(file: Path) -> None:
    file.write_text(
        TEXT.replace("devices: 2", "devices: 2\n  memory: 8 MB").replace("count: 30", "count: 9")
        + "sweep: {batch: [8], input: [64, 40000], output: [8], experts: [8], pim_bandwidth: [4x], pim_flops: [8 FLOP/B], requests: 9}\n"
    )
    told = nett.experts.simulate([str(file)], sweep=True)
    fits, left = told["sweep"]["input"]
    assert "tokens_a_second" in fits and "longest request" in left["left_out"]
    assert any("left out" in line for line in told["say"])


def tiny(kind: str, **more: Any) -> Any:
    import transformers

    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 64,
        "tie_word_embeddings": False,
    }
    return getattr(transformers, f"{kind}Config")(**{**sizes, **more})


FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_key_value_heads": 2, "intermediate_size": 48, "num_local_experts": 4},
    "Qwen2Moe": {"num_key_value_heads": 2, "intermediate_size": 80, "moe_intermediate_size": 48, "num_experts": 4,
                 "num_experts_per_tok": 2, "shared_expert_intermediate_size": 24, "mlp_only_layers": [1]},
    "Qwen3Moe": {"num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 80, "moe_intermediate_size": 48, "num_experts": 4,
                 "num_experts_per_tok": 2, "decoder_sparse_step": 2},
    "Olmoe": {"num_key_value_heads": 2, "intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2},
    "Phimoe": {"num_key_value_heads": 2, "intermediate_size": 48, "num_local_experts": 4},
    "GraniteMoe": {"num_key_value_heads": 2, "intermediate_size": 48, "num_local_experts": 4, "num_experts_per_tok": 2},
    "DeepseekV3": {"num_key_value_heads": 4, "intermediate_size": 80, "moe_intermediate_size": 48, "n_routed_experts": 8,
                   "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1,
                   "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 10},
    "Llama": {"num_key_value_heads": 2, "intermediate_size": 48},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_dimensions_hold_the_weights_that_transformers_makes(family: str, tmp_path: Path) -> None:
    """Every matrix of the model, counted by transformers, but for Qwen's gate of the shared expert (a row a layer)."""
    import torch
    import transformers

    config = tiny(family, **FAMILIES[family])
    config.save_pretrained(tmp_path)
    found, notes = read_config(tmp_path)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    held = sum(p.numel() for n, p in model.named_parameters() if p.ndim > 1 and "shared_expert_gate" not in n)
    assert weight_bytes(found, 1, Bytes()) == 2 * held
    assert not notes or "window" in notes[0]


def test_keys_and_values_of_a_token() -> None:
    """Mixtral: 2 x 8 heads x 128 numbers in 32 layers; DeepSeek-V3: 512 + 64 in 61."""
    mixtral, _ = of_config(
        {"model_type": "mixtral", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
         "intermediate_size": 14336, "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000}, "config"
    )  # fmt: skip
    assert cache_bytes(mixtral, 1, Bytes()) == cache_bytes(mixtral, 8, Bytes()) == 32 * 2 * 8 * 128 * 2
    assert cache_bytes(mixtral, 16, Bytes()) == 2 * 32 * 2 * 8 * 128 * 2  # each head on two devices
    assert weight_bytes(mixtral, 1, Bytes()) == pytest.approx(2 * 46.7e9, rel=0.001)
    deepseek, _ = of_config(
        {"model_type": "deepseek_v3", "num_hidden_layers": 61, "hidden_size": 7168, "num_attention_heads": 128,
         "num_key_value_heads": 128, "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256,
         "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "q_lora_rank": 1536, "kv_lora_rank": 512,
         "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "vocab_size": 129280}, "config"
    )  # fmt: skip
    assert deepseek.cache_numbers == 61 * 576 and deepseek.moe_layers == 58
    assert weight_bytes(deepseek, 1, Bytes()) == pytest.approx(2 * 671e9, rel=0.001)


@pytest.mark.parametrize(
    ("config", "kind", "part"),
    [
        ({}, UsageError, "num_hidden_layers"), ({"is_encoder_decoder": True}, Refused, "encoder-decoder"),
        ({"model_type": "qwen9_moe", "num_hidden_layers": 2, "intermediate_size": 4}, UsageError, "looks like a mixture"),
    ],
)  # fmt: skip
def test_configs_that_do_not_do(config: dict[str, Any], kind: type[Exception], part: str) -> None:
    with pytest.raises(kind, match=part):
        of_config(config, "config.json")


def test_windows_are_said_not_to_be_modelled(tmp_path: Path) -> None:
    tiny("Mixtral", **FAMILIES["Mixtral"], sliding_window=128).save_pretrained(tmp_path)
    (tmp_path / "s.yml").write_text("model: .\nrequests: {count: 2, input: 8, output: 2}\n")
    told = nett.experts.simulate([str(tmp_path / "s.yml")])
    assert "sliding_window = 128 is not modelled" in told["notes"][0]


def test_settings_are_what_the_file_says(file: Path) -> None:
    found = read_settings(file)
    assert found.settings.hardware.xpu.flops.value == 989e12 and found.settings.serving.batch == 8
    assert found.model.head_dim == 32 and found.model.moe_layers == 2
    assert np.isclose(found.settings.hardware.memory.value, 80 * 2**30)
