"""FoldGPT (P07): gates, the baselines that rank blocks, sharing, curing, and what transformers loads."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nett
from nett.core.errors import NettError, Refused, UsageError
from nett.core.token_batches import batches, next_token_loss
from nett.weights.block_scores import block_norms, influence
from nett.weights.cure import tail_loss
from nett.weights.fold_gates import Gates, penalty, trained_gates
from nett.weights.fold_sharing import bytes_held, share
from nett.weights.stack import between, cut, remade, stack_of
from support.language_models import FAMILIES, language_model, loaded_again, logits, token_windows

QUICK = {"gate_steps": 3, "cure_steps": 3, "batch": 4}


@pytest.fixture(scope="module")
def llama() -> Any:
    return language_model("llama")


def hidden_states(model: Any, windows: Any) -> list[np.ndarray]:
    """What goes into each block, and out of the last, from transformers' own record (before the final norm)."""
    seen: list[np.ndarray] = []
    stack = stack_of(model)

    def look(number: int, given: Any, made: Any) -> Any:
        seen.append(given.numpy())
        if number == len(stack) - 1:
            seen.append(made.numpy())
        return made

    with between(stack, look):
        logits(model, windows)
    return seen


# -- the formulas, against plain NumPy ----------------------------------------------------------------------------


def test_the_penalty_is_the_formula() -> None:
    g = np.array([1.0, 0.2, 0.0, 0.7])
    mean = g.mean()
    expected = 0.3 * np.mean(1.2 * np.abs(g) - np.abs(g - mean)) + 10 * (mean - 0.5) ** 2
    found = penalty(torch.tensor(g), 0.5, polarise=0.3, pull=1.2)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_polarisation_prefers_open_and_closed_gates() -> None:
    halves, ends = torch.full((4,), 0.5), torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert penalty(ends, 0.5, polarise=1.0, pull=1.2) < penalty(halves, 0.5, polarise=1.0, pull=1.2)


def test_block_influence_is_one_minus_the_mean_cosine(llama: Any) -> None:
    windows = token_windows()
    states = [s.astype(np.float64) for s in hidden_states(llama, windows)]
    expected = [
        1 - np.mean((a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)))
        for a, b in pairwise(states)
    ]
    np.testing.assert_allclose(influence(llama, stack_of(llama), windows, batch=5), expected, atol=1e-6)


def test_block_norms_count_matrices_only(llama: Any) -> None:
    expected = []
    for block in stack_of(llama).layers:
        entries = np.concatenate([p.detach().numpy().ravel() for p in block.parameters() if p.dim() == 2])
        expected.append(np.sqrt(np.mean(entries.astype(np.float64) ** 2)))
    np.testing.assert_allclose(block_norms(stack_of(llama)), expected, rtol=1e-6)


def test_a_closed_gate_is_a_block_that_is_gone(llama: Any) -> None:
    windows = token_windows(3)
    with between(stack_of(llama), lambda number, given, made: given if number in (1, 3) else made):
        closed = logits(llama, windows)
    small, _ = cut(llama, stack_of(llama), [0, 2])
    np.testing.assert_allclose(logits(small, windows), closed, atol=1e-5)


def test_the_loss_of_the_tail_is_the_formula(llama: Any) -> None:
    other = language_model("llama", seed=1)
    windows = token_windows(2)
    with torch.no_grad():
        a, b = (m(input_ids=windows, output_hidden_states=True, use_cache=False) for m in (llama, other))
    s, t = (x.hidden_states[-1].numpy().astype(np.float64) for x in (a, b))
    assert float(tail_loss(a, b, "hidden")) == pytest.approx(((s - t) ** 2).mean() / (t**2).mean(), rel=1e-5)
    p, q = (np.exp(x.logits.numpy().astype(np.float64)) for x in (b, a))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    assert float(tail_loss(a, b, "logits")) == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-4)


def test_of_equal_gates_the_one_that_closed_earlier_goes_first() -> None:
    path = np.array([[1.0, 0.0, 0.5], [1.0, 0.0, 0.0]])
    assert Gates(path[-1], path, (1.0, 1.0)).order() == [1, 2, 0]


def test_gates_find_the_block_that_does_nothing() -> None:
    """In a model that was trained around a block whose outputs are zero, closing that one costs nothing."""
    model, windows = language_model("llama"), token_windows(32)
    block = stack_of(model).layers[2]
    with torch.no_grad():
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    block.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for ids in batches(windows, 8, 80, seed=1):
        optimizer.zero_grad()
        next_token_loss(model(input_ids=ids).logits, ids).backward()
        optimizer.step()
    asked = {"steps": 40, "batch": 8, "rate": 0.05, "polarise": 20.0, "pull": 1.2}
    found = trained_gates(model, stack_of(model), windows, kept=0.75, seed=0, **asked)
    assert found.order()[0] == 2
    assert all(value < 0.2 or value > 0.8 for value in found.values)
    assert found.path.shape == (40, 4) and found.path.min() >= 0 and found.path.max() <= 1


# -- the whole method ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["gates", "influence", "magnitude", "last", "random"])
def test_every_ranking_removes_as_many_blocks(by: str) -> None:
    found = nett.weights.foldgpt(language_model("llama"), token_windows(), ratio=0.5, by=by, **QUICK)
    assert found.model.config.num_hidden_layers == len(stack_of(found.model)) == 2
    assert len(found.figures["blocks removed"]) == 2
    if by == "last":
        assert found.figures["blocks removed"] == [2, 3]


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_the_result_of_any_family(family: str, tmp_path: Path) -> None:
    windows = token_windows(4)
    found = nett.weights.foldgpt(
        language_model(family), windows, ratio=0.5, by="influence", share=2, cure_steps=1, batch=4
    )
    again = loaded_again(found.model, tmp_path)
    assert again.config.num_hidden_layers == 2
    np.testing.assert_allclose(logits(again, windows), logits(found.model, windows), atol=1e-5)


def test_the_result_generates_with_a_cache(tmp_path: Path) -> None:
    found = nett.weights.foldgpt(language_model("llama"), token_windows(), ratio=0.5, **QUICK)
    again = loaded_again(found.model, tmp_path)
    one = token_windows(1)
    tokens = [again.generate(one, max_new_tokens=6, do_sample=False, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*tokens)


@pytest.mark.parametrize("cure", ["lora", "weights"])
def test_blocks_that_share_stay_equal_but_for_their_norms(cure: str) -> None:
    found = nett.weights.foldgpt(
        language_model("llama"), token_windows(), ratio=0.0, share=2, cure=cure, cure_steps=5, lr=0.05, batch=4
    )
    one, two, three, _ = stack_of(found.model).layers
    for name, parameter in one.named_parameters():
        twin = two.get_parameter(name)
        assert parameter is not twin
        assert torch.equal(parameter, twin) == (parameter.dim() == 2)
    assert not torch.equal(one.mlp.up_proj.weight, three.mlp.up_proj.weight)
    assert found.figures["blocks that share"] == [[0, 1], [2, 3]]
    assert found.figures["bytes after"] < found.figures["bytes after, written out"] == bytes_held(found.model)


def test_sharing_is_the_parents_matrices_with_own_norms() -> None:
    model = language_model("llama")
    expected = language_model("llama")
    blocks = stack_of(expected).layers
    for group in ((0, 1), (2, 3)):
        for name, parameter in blocks[group[0]].named_parameters():
            if parameter.dim() == 2:
                blocks[group[1]].get_parameter(name).data.copy_(parameter)
    assert share(stack_of(model), 2) == [[0, 1], [2, 3]]
    np.testing.assert_array_equal(logits(model, token_windows(2)), logits(expected, token_windows(2)))


def test_curing_lowers_the_loss() -> None:
    windows = token_windows(32)
    asked = {"ratio": 0.5, "by": "last", "batch": 8, "lr": 0.02}
    cured = nett.weights.foldgpt(language_model("llama"), windows, cure_steps=60, **asked)
    assert cured.figures["loss of the cure's last tenth"] < cured.figures["loss of the cure's first tenth"] - 0.1


def test_a_seed_fixes_every_bit() -> None:
    def made(seed: int) -> Any:
        torch.manual_seed(int(np.random.default_rng().integers(1 << 30)))  # the global state must not matter
        return nett.weights.foldgpt(language_model("llama"), token_windows(), ratio=0.5, seed=seed, **QUICK)

    one, two, other = made(0), made(0), made(1)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    assert one.figures == two.figures
    assert not all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_nothing_is_removed_at_ratio_zero(llama: Any) -> None:
    before = {n: t.clone() for n, t in llama.state_dict().items()}
    found = nett.weights.foldgpt(llama, token_windows(), ratio=0.0)
    assert found.model is llama and not found.notes
    assert all(torch.equal(t, before[n]) for n, t in found.model.state_dict().items())


def test_less_than_half_a_block_is_said(llama: Any) -> None:
    assert "half a block" in nett.weights.foldgpt(llama, token_windows(), ratio=0.1).notes[0]


def test_every_window_is_seen_before_one_comes_again() -> None:
    windows = torch.arange(10)[:, None]
    seen = torch.cat(list(batches(windows, 3, 10, seed=0))).flatten().tolist()
    assert all(sorted(seen[i : i + 10]) == list(range(10)) for i in (0, 10, 20))


# -- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("windows", "said"),
    [
        (torch.zeros((0, 8), dtype=torch.int64), "makes 0 windows"),
        (torch.zeros((3, 8), dtype=torch.int64), "makes 3 windows"),
        (torch.zeros((8, 1), dtype=torch.int64), "have 1 tokens"),
        (torch.full((8, 8), 99), "token 99"),
        (torch.full((8, 8), -1), "token -1"),
        (torch.zeros((8, 8)), "whole numbers"),
        (torch.zeros(8, dtype=torch.int64), "whole numbers"),
    ],
)
def test_bad_windows_are_refused(llama: Any, windows: Any, said: str) -> None:
    with pytest.raises(Refused, match=said):
        nett.weights.foldgpt(llama, windows, ratio=0.5)


def test_all_blocks_are_refused(llama: Any) -> None:
    with pytest.raises(Refused, match="removes all 4 blocks"):
        nett.weights.foldgpt(llama, token_windows(), ratio=0.9)


def test_a_bad_parameter_is_named_with_its_range(llama: Any) -> None:
    with pytest.raises(UsageError, match="0 <= ratio < 1"):
        nett.weights.foldgpt(llama, token_windows(), ratio=1.0)


def test_weights_that_are_no_numbers_are_named() -> None:
    model = language_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(Refused, match=r"layers\.1\.mlp\.up_proj\.weight"):
        nett.weights.foldgpt(model, token_windows(), ratio=0.5)


def test_a_cure_that_runs_away_is_an_error() -> None:
    with pytest.raises(NettError, match=r"step \d+ of curing"):
        nett.weights.foldgpt(
            language_model("llama"), token_windows(), ratio=0.5, by="last", cure_steps=50, lr=1e30, batch=4
        )


def test_a_model_without_one_list_of_blocks_is_refused(llama: Any) -> None:
    import transformers

    sizes = {
        "d_model": 16,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 2,
        "d_kv": 8,
        "d_ff": 16,
        "vocab_size": 40,
    }
    both = transformers.AutoModelForSeq2SeqLM.from_config(transformers.T5Config(**sizes, decoder_start_token_id=0))
    with pytest.raises(Refused, match="has an encoder and a decoder"):
        stack_of(both)
    odd = language_model("llama")
    odd.config.num_hidden_layers = 3
    with pytest.raises(Refused, match=r"its config says \[3\] layers, and of lists of so many modules there is none"):
        stack_of(odd)


def test_sizes_that_no_loader_takes_are_refused(llama: Any) -> None:
    state = llama.state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(Refused, match="does not load LlamaForCausalLM"):
        remade(llama, llama.config, state | {name: state[name][:-1]})
    with pytest.raises(Refused, match="missing keys"):
        remade(llama, llama.config, {n: t for n, t in state.items() if n != name})
