"""LoRAPrune (P64): importance from low-rank updates, equal widths, cutting, and what transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nett
from nett.core.errors import Refused, UsageError
from nett.core.symmetry import Group, Place
from nett.core.token_batches import next_token_loss
from nett.weights import lora
from nett.weights.lora_importance import Importance, gradient_by_lora, least, sensitivity
from nett.weights.narrow import masked, narrow_in_place, narrowed, prove_removable
from nett.weights.structures import Structure, structures_of
from nett.weights.width_plan import equal_counts, global_counts
from support.language_models import FAMILIES, VOCAB, language_model, loaded_again, logits, token_windows

QUICK = {"steps": 12, "every": 2, "batch": 4}
FIXED_HEADS = ("opt", "gpt_neox", "gpt2")  # the config has no head size of its own


def trained_updates(model: Any, *, backward: bool = True) -> dict[str, lora.Updated]:
    """Updates on all matrices of the structures after one backward pass; A and B random where that is asked."""
    from nett.weights.structures import matrices

    model.requires_grad_(False)
    updates = lora.attach(model, matrices(model, structures_of(model)), rank=3, scaling=2.0, seed=0)
    lora.trainable(p for one in updates.values() for p in (one.a, one.b))
    if backward:
        windows = token_windows(4)
        next_token_loss(model(input_ids=windows, use_cache=False).logits, windows).backward()
    return updates


def array(tensor: Any) -> np.ndarray:
    found: np.ndarray = tensor.detach().numpy().astype(np.float64)
    return found


# -- the formulas, against plain NumPy ----------------------------------------------------------------------------


def test_with_b_at_zero_the_gradient_is_db_a() -> None:
    for one in trained_updates(language_model("llama")).values():
        assert not one.b.any() and one.b.grad.any()
        np.testing.assert_allclose(array(gradient_by_lora(one)), array(one.b.grad) @ array(one.a), atol=1e-7)


def test_the_gradient_and_the_importance_are_the_formulas() -> None:
    model = language_model("llama")
    updates = trained_updates(model, backward=False)
    random = torch.Generator().manual_seed(3)
    for one in updates.values():
        one.b.data.normal_(generator=random)
    windows = token_windows(4)
    next_token_loss(model(input_ids=windows, use_cache=False).logits, windows).backward()
    worth = {}
    for name, one in updates.items():
        a, b, da, db, w = (array(t) for t in (one.a, one.b, one.a.grad, one.b.grad, one.base.weight))
        hat = db @ a + b @ da - db @ da
        np.testing.assert_allclose(array(gradient_by_lora(one)), hat, rtol=1e-4, atol=1e-6)
        worth[name] = np.abs(hat * (w + 2.0 * b @ a))
        np.testing.assert_allclose(array(sensitivity(one, "lora")), worth[name], rtol=1e-3, atol=1e-6)

    structures = structures_of(model_without_updates())
    seen = Importance(structures, updates, "lora", 0)
    seen.see()
    size, layer = 8, "model.layers.1"
    sums = [
        worth[f"{layer}.self_attn.q_proj"].reshape(2, 2 * size, 32).sum((1, 2)),  # two query heads a KV head
        worth[f"{layer}.self_attn.k_proj"].reshape(2, size, 32).sum((1, 2)),
        worth[f"{layer}.self_attn.v_proj"].reshape(2, size, 32).sum((1, 2)),
        worth[f"{layer}.self_attn.o_proj"].reshape(32, 2, 2 * size).sum((0, 2)),
    ]
    expected = 0.1 * sum(s / (np.linalg.norm(s) + 1e-8) for s in sums)
    np.testing.assert_allclose(seen.scores["heads of block 1"], expected, rtol=1e-4)
    rows = [worth[f"{layer}.mlp.{n}_proj"].sum(1) for n in ("gate", "up")] + [worth[f"{layer}.mlp.down_proj"].sum(0)]
    expected = 0.1 * sum(s / (np.linalg.norm(s) + 1e-8) for s in rows)
    np.testing.assert_allclose(seen.scores["mlp of block 1"], expected, rtol=1e-4)
    seen.see()
    np.testing.assert_allclose(seen.scores["mlp of block 1"], 1.9 * expected, rtol=1e-4)  # 0.9 * 0.1 s + 0.1 s


def model_without_updates() -> Any:
    return language_model("llama")


def test_taylor_takes_the_true_gradient() -> None:
    model = language_model("llama")
    plain = language_model("llama").requires_grad_(True)
    windows = token_windows(4)
    next_token_loss(plain(input_ids=windows, use_cache=False).logits, windows).backward()
    updates = trained_updates(model, backward=False)
    for one in updates.values():
        one.weight.requires_grad_(True)
    next_token_loss(model(input_ids=windows, use_cache=False).logits, windows).backward()
    for name, one in updates.items():
        weight = plain.get_submodule(name).weight
        expected = np.abs(array(weight.grad) * array(weight))
        np.testing.assert_allclose(array(sensitivity(one, "taylor")), expected, rtol=1e-3, atol=1e-7)
        np.testing.assert_allclose(array(sensitivity(one, "magnitude")), np.abs(array(weight)))


def test_a_step_that_is_no_number_is_left_out() -> None:
    model = language_model("llama")
    updates = trained_updates(model)
    seen = Importance(structures_of(model_without_updates()), updates, "lora", 0)
    seen.see()
    before = {name: values.copy() for name, values in seen.scores.items()}
    next(iter(updates.values())).b.grad[0, 0] = float("nan")
    seen.see()
    assert (seen.taken, seen.skipped) == (1, 1)
    assert all(np.array_equal(values, before[name]) for name, values in seen.scores.items())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_merged_update_answers_as_the_update(family: str) -> None:
    model = language_model(family)
    names = [n for n, m in model.named_modules() if lora.is_matrix(m) and "lm_head" not in n]
    updates = lora.attach(model, names, rank=3, scaling=2.0, seed=0)
    before = logits(language_model(family), token_windows(2))
    np.testing.assert_allclose(logits(model, token_windows(2)), before, atol=1e-5)  # B starts at zero
    for one in updates.values():
        one.b.data.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    trained = logits(model, token_windows(2))
    lora.detach(model, updates)
    assert np.abs(trained - before).max() > 0.01
    np.testing.assert_allclose(logits(model, token_windows(2)), trained, atol=1e-4)


# -- which units, and how many -------------------------------------------------------------------------------------


def test_units_that_are_gone_stay_gone_whatever_their_scores() -> None:
    scores = np.array([9.0, 0.0, 5.0, 1.0, 0.0])
    assert least(scores, np.array([0]), 3).tolist() == [0, 1, 4]
    assert least(scores, np.array([], np.int64), 2).tolist() == [1, 4]


def test_a_kv_head_goes_with_its_query_heads() -> None:
    heads = [s for s in structures_of(language_model("llama")) if s.kind == "heads"]
    assert [s.size for s in heads] == [2] * 4
    places = {p.tensor.removeprefix("model.layers.0."): p.index.shape for p in heads[0].places}
    assert places == {
        "self_attn.q_proj.weight": (2, 16), "self_attn.k_proj.weight": (2, 8), "self_attn.v_proj.weight": (2, 8),
        "self_attn.o_proj.weight": (2, 16),
    }  # fmt: skip
    assert heads[0].weights == (16 + 8 + 8 + 16) * 32


def test_with_one_kv_head_query_heads_go() -> None:
    model = language_model("llama", num_key_value_heads=1)
    assert {s.size for s in structures_of(model) if s.kind == "heads"} == {4}
    found = nett.weights.loraprune(model, token_windows(), ratio=0.5, **QUICK)
    config = found.model.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 8)


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.6])
def test_so_many_units_go_that_the_share_is_kept(ratio: float) -> None:
    structures = structures_of(language_model("llama"))
    counts = equal_counts(structures, ratio)
    whole = sum(s.size * s.weights for s in structures)
    gone = sum(counts[s.name] * s.weights for s in structures)
    channel = max(s.weights for s in structures if s.kind == "mlp") * 4
    assert abs(gone - ratio * whole) <= channel / 2
    assert len({(s.kind, counts[s.name]) for s in structures}) == 2


def test_channels_are_rounded_up_to_a_multiple() -> None:
    structures = structures_of(language_model("llama"), "mlp")
    assert {s.size - equal_counts(structures, 0.4, 16)[s.name] for s in structures} == {32}  # 28.8 channels would stay


def made_up(sizes: list[int]) -> list[Structure]:
    return [
        Structure(i, "mlp", Group(str(i), "MLP neuron", (Place("w", 0, np.arange(n)[:, None], "producer"),)), 1)
        for i, n in enumerate(sizes)
    ]


def test_all_blocks_together_keep_one_unit_each() -> None:
    structures = made_up([4, 4])
    scores = {"mlp of block 0": np.array([1.0, 2, 3, 4]), "mlp of block 1": np.array([5.0, 6, 7, 8])}
    assert global_counts(structures, scores, {"mlp": 0.25}) == {"mlp of block 0": 2, "mlp of block 1": 0}
    assert global_counts(structures, scores, {"mlp": 0.75}) == {"mlp of block 0": 3, "mlp of block 1": 3}


# -- cutting is hiding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_was_cut_is_the_model_with_the_units_hidden(family: str, tmp_path: Path) -> None:
    model, windows = language_model(family), token_windows(3)
    parts: Any = "mlp" if family in (*FIXED_HEADS, "olmo2") else "both"
    prove_removable(model, parts)
    structures = structures_of(model, parts)
    random = np.random.default_rng(0)
    gone = {s.name: np.sort(random.permutation(s.size)[: s.size // 2]) for s in structures}
    with masked(model, structures, gone):
        hidden = logits(model, windows)
    assert np.abs(hidden - logits(model, windows)).max() > 1e-2
    small = narrowed(model, structures, gone)
    np.testing.assert_allclose(logits(small, windows), hidden, atol=1e-4)
    np.testing.assert_allclose(logits(loaded_again(small, tmp_path), windows), hidden, atol=1e-4)


@pytest.mark.parametrize("family", [*FIXED_HEADS, "olmo2"])
def test_families_whose_heads_cannot_be_fewer_are_refused_before_training(family: str) -> None:
    with pytest.raises(Refused, match="--parts mlp"):
        nett.weights.loraprune(language_model(family), token_windows(), ratio=0.5, **QUICK)


def test_blocks_of_unlike_widths_answer_as_with_the_units_hidden() -> None:
    model, windows = language_model("qwen2"), token_windows(3)
    structures = structures_of(model)
    gone = {s.name: np.arange(s.layer % 2 if s.kind == "heads" else 5 * s.layer) for s in structures}
    with masked(model, structures, gone):
        hidden = logits(model, windows)
    narrow_in_place(model, structures, gone)
    np.testing.assert_allclose(logits(model, windows), hidden, atol=1e-4)
    assert model.model.layers[3].mlp.up_proj.out_features == 48 - 15


# -- the whole method ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "more"),
    [("llama", {}), ("llama", {"tie_word_embeddings": False}), ("qwen2", {}), ("phi3", {}), ("qwen3", {})],
)
def test_transformers_loads_the_result_with_the_same_logits(family: str, more: dict[str, Any], tmp_path: Path) -> None:
    windows = token_windows(4)
    found = nett.weights.loraprune(language_model(family, **more), windows, ratio=0.5, lr=0.01, **QUICK)
    again = loaded_again(found.model, tmp_path)
    config = again.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 8)
    assert config.intermediate_size == 24
    np.testing.assert_allclose(logits(again, windows), logits(found.model, windows), atol=1e-3)
    assert found.figures["largest difference of logits between hiding and cutting"] < 1e-3


def test_matrices_stored_the_other_way_round(tmp_path: Path) -> None:
    windows = token_windows(4)
    found = nett.weights.loraprune(language_model("gpt2"), windows, ratio=0.5, parts="mlp", lr=0.01, **QUICK)
    again = loaded_again(found.model, tmp_path)
    assert again.config.n_inner == 64
    np.testing.assert_allclose(logits(again, windows), logits(found.model, windows), atol=1e-3)


@pytest.mark.parametrize("by", ["lora", "taylor", "magnitude", "random"])
def test_every_ranking_cuts_as_much(by: str) -> None:
    found = nett.weights.loraprune(language_model("llama"), token_windows(), ratio=0.5, by=by, **QUICK)
    kept = {kind: set(blocks.values()) for kind, blocks in found.figures["units kept"].items()}
    assert kept == {"heads": {1}, "mlp": {24}}


def test_channels_that_do_nothing_go_first() -> None:
    """Zero rows of the up projection make a channel that is always zero, which no gradient wants."""
    model = language_model("llama")
    dead = [1, 7, 20, 33, 41]
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.up_proj.weight[dead] = 0
            block.mlp.gate_proj.weight[dead] = 0
            block.mlp.down_proj.weight[:, dead] = 0
    live = [c for c in range(48) if c not in dead]
    expected = model.model.layers[2].mlp.up_proj.weight[live].detach().clone()
    found = nett.weights.loraprune(model, token_windows(), ratio=5 / 48, parts="mlp", lr=1e-12, **QUICK)
    assert torch.allclose(found.model.model.layers[2].mlp.up_proj.weight, expected, atol=1e-6)


def test_blocks_ranked_together_are_said_not_to_load() -> None:
    windows = token_windows()
    asked = {"ratio": 0.5, "uniform": False, "spare_first": 1, "spare_last": 1}
    found = nett.weights.loraprune(language_model("llama"), windows, **asked, **QUICK)
    assert "stock loaders refuse" in found.notes[0]
    assert set(found.figures["units kept"]["mlp"]) == {"1", "2"}
    assert found.model.model.layers[0].mlp.up_proj.out_features == 48
    assert logits(found.model, windows).shape == (*windows.shape, VOCAB)


def test_a_seed_fixes_every_bit() -> None:
    def made(seed: int) -> Any:
        torch.manual_seed(int(np.random.default_rng().integers(1 << 30)))  # the global state must not matter
        return nett.weights.loraprune(language_model("llama"), token_windows(), ratio=0.5, seed=seed, lr=0.01, **QUICK)

    one, two, other = made(0), made(0), made(1)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    assert one.figures == two.figures
    assert not all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_nothing_is_cut_at_ratio_zero() -> None:
    model = language_model("llama")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    found = nett.weights.loraprune(model, token_windows(), ratio=0.0)
    assert found.model is model and not found.notes
    assert all(torch.equal(t, before[n]) for n, t in found.model.state_dict().items())


# -- bad input ----------------------------------------------------------------------------------------------------


def test_a_ratio_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(Refused, match="leaves none of the 2 heads"):
        nett.weights.loraprune(language_model("llama"), token_windows(), ratio=0.8)
    with pytest.raises(Refused, match="leaves none of the 48 channels"):
        nett.weights.loraprune(language_model("llama"), token_windows(), ratio=0.995, parts="mlp")


def test_spared_blocks_need_unlike_widths() -> None:
    with pytest.raises(UsageError, match="one width for all"):
        nett.weights.loraprune(language_model("llama"), token_windows(), spare_last=1)
    with pytest.raises(Refused, match="all 4 blocks are spared"):
        nett.weights.loraprune(language_model("llama"), token_windows(), uniform=False, spare_last=4)


def test_too_few_windows_are_refused() -> None:
    with pytest.raises(Refused, match="makes 2 windows"):
        nett.weights.loraprune(language_model("llama"), token_windows(2), batch=4)


def test_a_bad_parameter_is_named_with_its_range() -> None:
    with pytest.raises(UsageError, match="0 <= ratio < 1"):
        nett.weights.loraprune(language_model("llama"), token_windows(), ratio=-0.1)


def test_a_family_of_unknown_layout_is_refused() -> None:
    import transformers

    model = transformers.MambaForCausalLM(
        transformers.MambaConfig(hidden_size=16, state_size=4, num_hidden_layers=2, vocab_size=VOCAB)
    )
    with pytest.raises(Refused, match="not known"):
        nett.weights.loraprune(model, token_windows(), ratio=0.5)
