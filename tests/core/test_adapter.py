"""PEFT adapters applied while streaming, against PEFT's own ``merge_and_unload`` on the same model; unknown kinds are
refused by name. Adapters are made by PEFT itself, every trained tensor filled with noise."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett import convert
from nett.core.checkpoint import open_checkpoint
from nett.core.errors import Refused
from nett.core.tiny import write_llama
from support.cli import nett
from support.tensors import Array, read_tensors, write_tensors

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico Llama in float32 with biases in its attention, embeddings not tied."""
    folder = write_llama(tmp_path_factory.mktemp("llama") / "base", dtype="F32", tied=False)
    return with_biases(folder)


def with_biases(folder: Path) -> Path:
    tensors = read_tensors(folder)
    rng = np.random.default_rng(5)
    for name in [n for n in tensors if "_proj" in n and "self_attn" in n]:
        tensors[name.replace("weight", "bias")] = rng.normal(size=tensors[name].shape[0]).astype(np.float32)
    write_tensors(folder / "model.safetensors", tensors, "F32", format="pt")
    config = json.loads((folder / "config.json").read_text()) | {"attention_bias": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its linear layers are Conv1D: weights lie transposed, hence PEFT's fan_in_fan_out."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2") / "base"
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2)).save_pretrained(folder)
    return folder


def tuned(base: Path, folder: Path, *, dtype: Any = None, resize: int = 0, **options: Any) -> dict[str, Array]:
    """Make an adapter with PEFT, save it to ``folder``, and return what PEFT's merge gives: name -> float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(base))
    if resize:
        model.resize_token_embeddings(resize)
    return merged(model, folder, dtype=dtype, **options)


def merged(model: Any, folder: Path, *, dtype: Any = None, **options: Any) -> dict[str, Array]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own
        model = peft.get_peft_model(model, peft.LoraConfig(**options))
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator) * 0.2
                parameter.data = (parameter.data + noise).to(dtype or parameter.dtype)
        model.save_pretrained(folder)
        whole = model.merge_and_unload()
    return {n: t.float().numpy() for n, t in whole.state_dict().items()}


def assert_same(reference: str, expected: dict[str, Array], *, rtol: float = 1e-5, atol: float = 2e-6) -> None:
    """Every tensor of the checkpoint is PEFT's, and in ranges it reads as in one piece."""
    with open_checkpoint(reference) as checkpoint:
        assert checkpoint.tensors.keys() <= expected.keys()
        moved = 0
        for name, info in checkpoint.tensors.items():
            values = checkpoint.values(name)
            np.testing.assert_allclose(values.reshape(info.shape), expected[name], rtol=rtol, atol=atol, err_msg=name)
            cut = [0, info.size // 3, info.size // 2 + 1, info.size]
            parts = [checkpoint.values(name, a, b) for a, b in pairwise(cut)]
            assert np.concatenate(parts).tobytes() == values.tobytes()
            moved += info.file is None
        assert moved


CASES: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 10},
    "rank-stabilised": {"target_modules": ["q_proj"], "r": 4, "lora_alpha": 10, "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "k_proj", "up_proj"],
        "r": 4,
        "rank_pattern": {"q_proj": 2, "layers.1.*up_proj": 3, "proj": 7},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 5, "k_proj": 1},
    },
    "patterns, rank-stabilised": {
        "target_modules": "all-linear",
        "r": 3,
        "use_rslora": True,
        "rank_pattern": {"gate_proj": 5},
        "alpha_pattern": {r"model\.layers\.1\.mlp\.gate_proj": 16},
    },
    "anchored patterns": {
        "target_modules": ["q_proj"],
        "r": 4,
        "rank_pattern": {"^model.layers.1.self_attn.q_proj": 2},
    },
    "regex": {"target_modules": r".*\.layers\.1\..*(q|o|down)_proj", "r": 2},
    "some layers": {"target_modules": ["v_proj"], "r": 2, "layers_to_transform": [1]},
    "all biases": {"target_modules": ["q_proj"], "r": 2, "bias": "all"},
    "biases of adapted layers": {"target_modules": ["q_proj"], "r": 2, "bias": "lora_only"},
    "bias in the adapter": {"target_modules": ["q_proj", "o_proj"], "r": 2, "lora_alpha": 6, "lora_bias": True},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"], "r": 2, "lora_alpha": 6},
    "head": {"target_modules": ["lm_head"], "r": 2},
    "modules to save": {"target_modules": ["q_proj"], "r": 2, "modules_to_save": ["lm_head", "norm"]},
    "embeddings and head to save": {
        "target_modules": ["k_proj"],
        "r": 2,
        "modules_to_save": ["embed_tokens", "lm_head"],
    },
    "orthogonal": {"target_modules": ["q_proj"], "r": 4, "init_lora_weights": "orthogonal"},
    "gaussian": {"target_modules": ["q_proj"], "r": 4, "init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_peft(llama: Path, tmp_path: Path, case: str) -> None:
    expected = tuned(llama, tmp_path / "a", **CASES[case])
    assert_same(f"{llama}+{tmp_path / 'a'}", expected)
    assert_same(str(tmp_path / "a"), expected)  # the base that the adapter names


@pytest.mark.parametrize("turned", [True, False])
def test_transposed_layers(gpt2: Path, tmp_path: Path, turned: bool) -> None:
    """PEFT mends a wrong fan_in_fan_out of Conv1D itself; square matrices give no hint by their shape."""
    targets = ["c_attn", "attn.c_proj", "mlp.c_fc"]
    expected = tuned(gpt2, tmp_path / "a", target_modules=targets, r=3, lora_alpha=7, fan_in_fan_out=turned)
    assert_same(f"{gpt2}+{tmp_path / 'a'}", {n.replace("_orig_mod.", ""): t for n, t in expected.items()})


def test_adapter_in_bfloat16_and_in_a_torch_file(llama: Path, tmp_path: Path) -> None:
    """The sum is made in float32 whatever the factors are; PEFT rounds the product to their type on the way."""
    options = {"target_modules": ["q_proj", "up_proj"], "r": 4}
    expected = tuned(llama, tmp_path / "a", dtype=torch.bfloat16, **options)
    assert_same(f"{llama}+{tmp_path / 'a'}", expected, rtol=2**-7, atol=2**-6)
    weights = tmp_path / "a" / "adapter_model.safetensors"
    factors = read_tensors(weights)
    before = read_tensors(llama)
    base, start = before["model.layers.0.mlp.up_proj.weight"], "base_model.model.model.layers.0.mlp.up_proj.lora_"
    exact = base + 2.0 * factors[f"{start}B.weight"].astype(np.float64) @ factors[f"{start}A.weight"].astype(np.float64)
    with open_checkpoint(f"{llama}+{tmp_path / 'a'}") as checkpoint:
        found = checkpoint.values("model.layers.0.mlp.up_proj.weight").reshape(base.shape)
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)
    torch.save({n: torch.from_numpy(t) for n, t in factors.items()}, tmp_path / "a" / "adapter_model.bin")
    weights.unlink()
    with open_checkpoint(f"{llama}+{tmp_path / 'a'}") as checkpoint:
        assert checkpoint.values("model.layers.0.mlp.up_proj.weight").tobytes() == found.tobytes()


def test_bfloat16_base_is_rounded_once(tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base", dtype="BF16", tied=False)
    tuned(base, tmp_path / "a", target_modules=["v_proj"], r=4)
    with open_checkpoint(f"{base}+{tmp_path / 'a'}") as checkpoint:
        name = "model.layers.0.self_attn.v_proj.weight"
        raw, values = checkpoint.read(name), checkpoint.values(name)
    assert raw.tobytes() == torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy().tobytes()


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolutions(tmp_path: Path, kernel: int) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(6, 8, kernel, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 1))
    write_tensors(tmp_path / "base.safetensors", {n: t.numpy() for n, t in model.state_dict().items()})
    expected = merged(model, tmp_path / "a", target_modules=["0", "2"], r=3, lora_alpha=5)
    assert_same(f"{tmp_path / 'base.safetensors'}+{tmp_path / 'a'}", expected)


def test_grouped_convolutions_are_refused_as_peft_does(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(6, 8, 3, groups=2))
    write_tensors(tmp_path / "base.safetensors", {n: t.detach().numpy() for n, t in model.state_dict().items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], r=4)).save_pretrained(tmp_path / "a")
    with pytest.raises(Refused, match=r"lora_A.*do not"):
        open_checkpoint(f"{tmp_path / 'base.safetensors'}+{tmp_path / 'a'}")


def test_adapter_over_adapter(llama: Path, tmp_path: Path) -> None:
    """BASE+FIRST+SECOND: each over what is left of it; also where a name has a plus in it."""
    base = tmp_path / "b+c"
    shutil.copytree(llama, base)
    tuned(base, tmp_path / "first", target_modules=["q_proj"], r=2)
    first = tmp_path / "whole"
    convert(f"{base}+{tmp_path / 'first'}", first)
    expected = tuned(first, tmp_path / "second", target_modules=["q_proj", "v_proj"], r=2)
    stacked = f"{base}+{tmp_path / 'first'}+{tmp_path / 'second'}"
    assert_same(stacked, expected)
    convert(stacked, tmp_path / "both")
    nett("verify", str(tmp_path / "both"), "--rerun").succeeded()


# -- tied embeddings and resized vocabularies ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("tied") / "base", dtype="F32", tied=True)


def test_tied_embeddings_with_both_saved(tied: Path, tmp_path: Path) -> None:
    """Trained apart, they are untied: the head becomes a tensor of its own and the config says so."""
    expected = tuned(tied, tmp_path / "a", target_modules=["q_proj"], r=2, modules_to_save=["embed_tokens", "lm_head"])
    assert_same(f"{tied}+{tmp_path / 'a'}", expected)
    with open_checkpoint(f"{tied}+{tmp_path / 'a'}") as checkpoint:
        assert "lm_head.weight" in checkpoint.tensors and checkpoint.config()["tie_word_embeddings"] is False


def test_tied_embeddings_trained_alone_are_ambiguous(tied: Path, tmp_path: Path) -> None:
    for number, options in enumerate(
        ({"target_modules": ["embed_tokens"]}, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]})
    ):
        tuned(tied, tmp_path / str(number), r=2, **options)
        with pytest.raises(Refused, match="output layer"):
            open_checkpoint(f"{tied}+{tmp_path / str(number)}")


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_resized_vocabulary(llama: Path, tied: Path, tmp_path: Path, kind: str) -> None:
    base = tied if kind == "tied" else llama
    expected = tuned(base, tmp_path / "a", target_modules=["q_proj"], r=2, resize=70)
    assert_same(f"{base}+{tmp_path / 'a'}", expected)
    with open_checkpoint(f"{base}+{tmp_path / 'a'}") as checkpoint:
        assert checkpoint.config()["vocab_size"] == 70
        assert checkpoint.tensors["model.embed_tokens.weight"].shape == (70, 32)


# -- what nett does not apply, by name -----------------------------------------------------------------------------

VARIANTS = sorted(f.name for f in fields(peft.LoraConfig) if f.metadata.get("is_lora_variant"))
KINDS = sorted(k.value for k in peft.PeftType if k.value != "LORA")


@pytest.fixture(scope="module")
def plain(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "a"
    tuned(llama, folder, target_modules=["q_proj"], r=2)
    return folder


def altered(plain: Path, place: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    shutil.copytree(plain, place)
    config = json.loads((place / "adapter_config.json").read_text())
    change(config)
    (place / "adapter_config.json").write_text(json.dumps(config))
    return place


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_adapter(llama: Path, plain: Path, tmp_path: Path, kind: str) -> None:
    folder = altered(plain, tmp_path / "a", lambda c: c.update(peft_type=kind))
    with pytest.raises(Refused, match=repr(kind)):
        open_checkpoint(f"{llama}+{folder}")


@pytest.mark.parametrize("option", [*VARIANTS, "layer_replication", "target_parameters", "trainable_token_indices"])
def test_variants_of_lora(llama: Path, plain: Path, tmp_path: Path, option: str) -> None:
    """All that PEFT itself marks as computing something else, and what needs more than a sum."""
    assert "use_dora" in VARIANTS
    folder = altered(plain, tmp_path / "a", lambda c: c.update({option: True}))
    with pytest.raises(Refused, match="PEFT first"):
        open_checkpoint(f"{llama}+{folder}")


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "mica", "newer"])
def test_starts_that_change_the_base(llama: Path, plain: Path, tmp_path: Path, start: str) -> None:
    folder = altered(plain, tmp_path / "a", lambda c: c.update(init_lora_weights=start))
    with pytest.raises(Refused, match=start):
        open_checkpoint(f"{llama}+{folder}")


def test_options_that_nett_does_not_know(llama: Path, plain: Path, tmp_path: Path) -> None:
    """What a later PEFT may add: refused by its name where it is set, passed over where it is not."""
    folder = altered(plain, tmp_path / "off", lambda c: c.update(use_newest=False, newest_config=None))
    open_checkpoint(f"{llama}+{folder}").close()
    folder = altered(plain, tmp_path / "on", lambda c: c.update(use_newest=True))
    with pytest.raises(Refused, match="use_newest"):
        open_checkpoint(f"{llama}+{folder}")


def test_real_dora_is_named(llama: Path, tmp_path: Path) -> None:
    tuned(llama, tmp_path / "a", target_modules=["q_proj"], r=2, use_dora=True)
    with pytest.raises(Refused, match="DoRA"):
        open_checkpoint(f"{llama}+{tmp_path / 'a'}")
    altered(tmp_path / "a", tmp_path / "b", lambda c: c.update(use_dora=False))  # the config hides it, the keys do not
    with pytest.raises(Refused, match="DoRA"):
        open_checkpoint(f"{llama}+{tmp_path / 'b'}")


# -- adapters that do not fit --------------------------------------------------------------------------------------

KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(KEY.format("B")), "no partner lora_B"),
        (lambda t: t.update({KEY.format("A"): np.zeros((3, 32))}), "do not have the rank 2"),
        (lambda t: t.update({KEY.format("A"): np.zeros((2, 31))}), "do not fit"),
        (lambda t: t.update({KEY.format("A").replace("q_proj", "z_proj"): t.pop(KEY.format("A")),
                             KEY.format("B").replace("q_proj", "z_proj"): t.pop(KEY.format("B"))}), "right base"),
        (lambda t: t.update({"base_model.model.model.norm.lora_C.weight": np.zeros(3)}), "does not apply"),
        (lambda t: t.update({"base_model.model.stranger.weight": np.zeros(3)}), "stranger"),
        (lambda t: t.clear(), "changes no tensor"),
    ],
)  # fmt: skip
def test_keys_that_do_not_fit(llama: Path, plain: Path, tmp_path: Path, change: Any, said: str) -> None:
    folder = tmp_path / "a"
    shutil.copytree(plain, folder)
    tensors: dict[str, Array] = read_tensors(folder / "adapter_model.safetensors")
    change(tensors)
    write_tensors(folder / "adapter_model.safetensors", tensors)
    with pytest.raises(Refused, match=said):
        open_checkpoint(f"{llama}+{folder}")


@pytest.mark.parametrize(
    "change", [{"r": 0}, {"r": "x"}, {"r": True}, {"lora_alpha": None}, {"lora_alpha": "8"}, {"rank_pattern": [1]},
               {"alpha_pattern": {"q_proj": "y"}}, {"modules_to_save": 3}, {"rank_pattern": {"(": 3, "q_proj": 1.5}},
               {"lora_alpha": 1e400}, {"rank_pattern": {"(a|b.*)+": 2}}, {"alpha_pattern": {".*.*.*.*x": 2}}],
)  # fmt: skip
def test_configs_that_make_no_sense(llama: Path, plain: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    folder = altered(plain, tmp_path / "a", lambda c: c.update(change))
    with pytest.raises(Refused):
        open_checkpoint(f"{llama}+{folder}")


def test_no_base_on_this_machine(plain: Path, tmp_path: Path) -> None:
    folder = altered(plain, tmp_path / "a", lambda c: c.update(base_model_name_or_path="someone/model"))
    with pytest.raises(Refused, match=r"'someone/model'.*\n.*BASE\+"):
        open_checkpoint(folder)
