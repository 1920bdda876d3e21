"""Prompts out of stored chunks: exact where they should be, and else what partial recomputation means, in plain NumPy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import nett
from cache.plain_llama import PlainLlama
from nett.cache import chunk_files
from nett.cache.chunk_judging import divergence, following, said
from nett.cache.chunk_moving import Mover
from nett.cache.chunk_store import chunk_store
from nett.core.errors import Refused, UsageError

RNG = np.random.default_rng(5)
SYSTEM = RNG.integers(2, 64, 5).tolist()
CHUNKS = [RNG.integers(2, 64, n).tolist() for n in (10, 12, 9, 11, 10)]
QUESTION = RNG.integers(2, 64, 4).tolist()


def serve(store: chunk_store, chunks: list[list[int]], **how: Any) -> Any:
    return nett.cache.cache_craft(store, SYSTEM, chunks, QUESTION, **how)


def prompt(chunks: list[list[int]]) -> list[int]:
    return SYSTEM + [i for c in chunks for i in c] + QUESTION


def own(model: Any, ids: list[int]) -> Any:
    """The model's own logits behind a prompt."""
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        return model(torch.tensor([ids]), past_key_values=cache, logits_to_keep=1).logits[0, -1]


@pytest.fixture(scope="module")
def filled(llama: Any) -> chunk_store:
    """Chunks 0, 1, 2 as they were computed in this order."""
    store = chunk_store(llama)
    serve(store, CHUNKS[:3])
    return store


# -- exactness ---------------------------------------------------------------------------------------------------


def test_all_tokens_computed_is_the_model_itself(llama: Any, filled: chunk_store) -> None:
    chunks = [CHUNKS[2], CHUNKS[0], CHUNKS[3]]
    expected = own(llama, prompt(chunks))
    assert torch.equal(serve(chunk_store(llama), chunks).logits, expected), "an empty store"
    assert torch.equal(serve(filled, chunks, by="full", keep=False).logits, expected)
    one = serve(filled, chunks, alpha=1000.0, keep=False)
    assert {p["state"] for p in one.ledger["parts"][1:]} == {"new"}, "a CFO of 1"
    assert torch.allclose(one.logits, expected, atol=1e-5)
    every = serve(filled, chunks, share=1.0, keep=False)
    assert every.ledger["recomputed"] == len(CHUNKS[2]) + len(CHUNKS[0]) and every.ledger["reused"] == len(SYSTEM)
    assert torch.allclose(every.logits, expected, atol=1e-5)


@pytest.mark.parametrize("by", ["cache_craft", "prefix", "cacheblend", "reuse"])
def test_the_same_prefix_is_exact_reuse(llama: Any, filled: chunk_store, by: str) -> None:
    """As the model continues a cache of its own of the same prompt without its question, bit for bit."""
    cache = transformers.DynamicCache(config=llama.config)
    body = prompt(CHUNKS[:3])[: -len(QUESTION)]
    for number in range(3):
        stored = [filled.of(chunk_files.chunk_name(ids))[0] for ids in (SYSTEM, *CHUNKS[:3])]
        cache.update(*(torch.cat([v.pairs[number][i] for v in stored], 1)[None] for i in (0, 1)), number)
    assert cache.get_seq_length() == len(body)
    with torch.no_grad():
        expected = llama(torch.tensor([QUESTION]), past_key_values=cache, logits_to_keep=1).logits[0, -1]
    served = serve(filled, CHUNKS[:3], by=by, keep=False)
    assert torch.equal(served.logits, expected)
    assert torch.allclose(expected, own(llama, prompt(CHUNKS[:3])), atol=1e-5)
    assert served.ledger["token_layers"] == 3 * len(QUESTION)
    assert [p["cfo"] for p in served.ledger["parts"]] == [0.0] * 4


def test_a_prefix_is_used_as_far_as_it_goes(llama: Any, filled: chunk_store) -> None:
    chunks = [CHUNKS[0], CHUNKS[2], CHUNKS[1]]
    served = serve(filled, chunks, by="prefix", keep=False)
    assert [p["state"] for p in served.ledger["parts"]] == ["as it was", "as it was", "new", "new"]
    assert torch.allclose(served.logits, own(llama, prompt(chunks)), atol=1e-5)


def configured(kind: str) -> Any:
    small: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 48, "vocab_size": 64, "max_position_embeddings": 256,
    }  # fmt: skip
    far = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 64}  # fmt: skip
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    made = {
        "llama3": lambda: transformers.LlamaConfig(**small, rope_parameters=far),
        "yarn": lambda: transformers.LlamaConfig(**small, rope_parameters=yarn),
        "dynamic": lambda: transformers.LlamaConfig(**small, rope_parameters=dynamic),
        "qwen3": lambda: transformers.Qwen3Config(**small, head_dim=8),
        "part": lambda: transformers.StableLmConfig(**small),
        "pairs": lambda: transformers.CohereConfig(**small),
        "gpt2": lambda: transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=128),
    }
    torch.manual_seed(3)
    return transformers.AutoModelForCausalLM.from_config(made[kind]()).eval()


@pytest.mark.parametrize("kind", ["llama3", "yarn", "qwen3", "part", "pairs"])
def test_moved_keys_are_those_of_the_new_place(kind: str) -> None:
    """In the first layer, whose keys depend on token and place alone, for places near and far."""
    model = configured(kind)
    mover = Mover(model, "here")
    assert set(mover.styles) == {"pairs" if kind == "pairs" else "half"}
    ids = torch.tensor([CHUNKS[1]])

    def keys(start: int) -> Any:
        cache = transformers.DynamicCache(config=model.config)
        at = torch.arange(start, start + ids.shape[1])
        with torch.no_grad():
            model(ids, position_ids=at[None], past_key_values=cache)
        return cache.layers[0].keys[0], at

    before, old = keys(7)
    for start in (0, 8, 130, 240):
        expected, new = keys(start)
        found = mover.moved(before, mover.turn(old, new), 0)
        assert torch.allclose(found, expected, atol=1e-6, rtol=1e-5)
        assert start == 7 or not torch.allclose(before, expected, atol=1e-3)


@pytest.mark.parametrize(("kind", "said"), [("dynamic", "depend on how long"), ("gpt2", "0 modules of rotations")])
def test_keys_that_cannot_be_moved(kind: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        chunk_store(configured(kind))


# -- partial recomputation ---------------------------------------------------------------------------------------


def test_partial_recomputation_in_plain_numpy(llama: Any) -> None:
    """Chunks 0, 1, 2 are computed in this order; then 2, 0, 1 behind the same system's text, a third of the tokens of each
    again. In NumPy, keys are kept unrotated, so that moving them is nothing."""
    store = chunk_store(llama)
    serve(store, CHUNKS[:3])
    plain = PlainLlama(llama)
    ids = prompt(CHUNKS[:3])
    logits, first = plain.run(ids, np.arange(len(ids)), plain.nothing(len(ids)), len(ids))
    assert np.allclose(logits, own(llama, ids).numpy(), atol=1e-4), "the reference is the model"
    order = [2, 0, 1]
    starts = np.cumsum([len(SYSTEM)] + [len(c) for c in CHUNKS[:3]])
    new = prompt([CHUNKS[k] for k in order])
    length, place, chosen = len(new), len(SYSTEM), []
    rows = [(0, 0, len(SYSTEM))]  # where each part was, where it is, and its tokens
    for k, count in zip(order, (3, 4, 4), strict=True):  # a third of 9, 10 and 12 tokens, rounded up
        n = len(CHUNKS[k])
        # Equation 14 by loops: attention of each token to the chunks before it, the system's text apart.
        looked = [
            sum(a[h, t, j] for _, _, a in first for h in range(4) for j in range(len(SYSTEM), starts[k]))
            for t in range(starts[k], starts[k] + n)
        ]
        chosen += [place + t for t in sorted(sorted(range(n), key=lambda t, s=looked: (-s[t], t))[:count])]
        rows.append((int(starts[k]), place, n))
        place += n
    stored = [(np.zeros((2, length, 8)), np.zeros((2, length, 8))) for _ in range(3)]
    for layer in range(3):
        for i in (0, 1):
            for was, now, n in rows:
                stored[layer][i][:, now : now + n] = first[layer][i][:, was : was + n]
    chosen += list(range(length - len(QUESTION), length))
    expected, after = plain.run([new[p] for p in chosen], chosen, stored, length)
    served = serve(store, [CHUNKS[k] for k in order], share=1 / 3, keep=False)
    assert [p["computed"] for p in served.ledger["parts"]] == [0, 3, 4, 4]
    assert np.allclose(served.logits.numpy(), expected, atol=1e-4)
    for layer in range(3):
        found = served.cache.layers[layer]
        assert np.allclose(found.keys[0].numpy(), plain.turned(after[layer][0], np.arange(length)), atol=1e-4)
        assert np.allclose(found.values[0].numpy(), after[layer][1], atol=1e-4)
    assert not np.allclose(served.logits.numpy(), own(llama, new).numpy(), atol=1e-2), "and not the full answer"


def test_attention_statistics_in_plain_numpy(llama: Any, filled: chunk_store) -> None:
    plain = PlainLlama(llama)
    ids = prompt(CHUNKS[:3])
    _, noted = plain.run(ids, np.arange(len(ids)), plain.nothing(len(ids)), len(ids))
    mean = np.mean([a.mean(0) for _, _, a in noted], 0)
    edges = np.cumsum([0, len(SYSTEM)] + [len(c) for c in CHUNKS[:3]])
    for number, ids in enumerate([SYSTEM, *CHUNKS[:3]]):
        attended = filled.of(chunk_files.chunk_name(ids))[0].told.attended
        rows = mean[edges[number] : edges[number + 1]]
        assert np.allclose(attended.intra, rows[:, edges[number] : edges[number + 1]].sum(1), atol=1e-5)
        for j in range(number):
            assert np.allclose(attended.inter[:, j], rows[:, edges[j] : edges[j + 1]].sum(1), atol=1e-5)
        assert attended.lengths == tuple(np.diff(edges)[:number])


def test_cacheblend_computes_what_is_furthest(llama: Any, filled: chunk_store) -> None:
    """By the second layer's keys and values of the whole prompt, as the model itself has them."""
    chunks = [CHUNKS[1], CHUNKS[2]]
    cache = transformers.DynamicCache(config=llama.config)
    with torch.no_grad():
        llama(torch.tensor([prompt(chunks)]), past_key_values=cache)
    reuse = serve(filled, chunks, by="reuse", keep=False)
    layer, held = cache.layers[1], reuse.cache.layers[1]
    apart = sum(
        (a - b)[0].square().sum((0, 2)).sqrt() for a, b in ((layer.keys, held.keys), (layer.values, held.values))
    )
    body = slice(len(SYSTEM), -len(QUESTION))
    served = serve(filled, chunks, by="cacheblend", share=0.25, keep=False)
    count = served.ledger["recomputed"]
    assert count == 3 + 3
    best = set((torch.topk(apart[body], count).indices + len(SYSTEM)).tolist())
    changed = (served.cache.layers[1].values - held.values)[0].abs().sum((0, 2)) > 1e-6
    assert set(torch.nonzero(changed)[:, 0].tolist()) - set(range(len(prompt(chunks)) - 4, len(prompt(chunks)))) <= best
    stored = len(SYSTEM) + len(chunks[0]) + len(chunks[1])
    assert served.ledger["token_layers"] == (count + len(QUESTION)) * 3 + stored - count


def test_rivals_compute_as_many_tokens(filled: chunk_store) -> None:
    chunks = [CHUNKS[2], CHUNKS[1], CHUNKS[0]]
    ledgers = {
        by: serve(filled, chunks, by=by, keep=False, alpha=0.6).ledger
        for by in ("cache_craft", "cacheblend", "first", "random", "reuse")
    }
    wanted = ledgers["cache_craft"]["recomputed"]
    assert wanted > 0 and ledgers["reuse"]["recomputed"] == 0
    assert all(ledgers[by]["recomputed"] == wanted for by in ("cacheblend", "first", "random"))
    assert ledgers["cache_craft"]["share"] < 1


def test_the_cache_goes_on(llama: Any, filled: chunk_store) -> None:
    """``generate`` continues it; what follows is as far from full recomputation as it is told."""
    exact = serve(filled, CHUNKS[:3], keep=False)
    tokens = said(llama, exact, 6)
    again = serve(filled, CHUNKS[:3], keep=False)
    out = llama.generate(again.ids, past_key_values=again.cache, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert out[0, -6:].tolist() == tokens
    whole = prompt(CHUNKS[:3]) + tokens
    with torch.no_grad():
        expected = llama(torch.tensor([whole])).logits[0, -7:-1].log_softmax(-1)
    fresh = serve(filled, CHUNKS[:3], keep=False)
    length = fresh.cache.get_seq_length()
    mine = following(llama, fresh, tokens)
    assert torch.allclose(mine, expected, atol=1e-5) and fresh.cache.get_seq_length() == length
    assert float(divergence(expected, mine).abs().max()) < 1e-5


# -- the store ---------------------------------------------------------------------------------------------------


def test_variants_of_one_chunk(llama: Any) -> None:
    store = chunk_store(llama, variants=2)
    name = chunk_files.chunk_name(CHUNKS[1])
    for first in (0, 2, 3):
        serve(store, [CHUNKS[first], CHUNKS[1]], alpha=1000.0)
    contexts = [v.told.attended.before[1] for v in store.of(name)]
    assert len(contexts) == 2 and chunk_files.chunk_name(CHUNKS[3]) in contexts
    served = serve(store, [CHUNKS[3], CHUNKS[1]], alpha=1.0)
    assert served.ledger["parts"][2]["cfo"] == 0.0, "the variant of this context"
    assert store.tiers()["chunks"] == 5


def test_worth_keeps_what_is_used_often_and_cheaply(llama: Any) -> None:
    token = 3 * 2 * 2 * 8 * 4  # layers, keys and values, heads, width of a head, bytes
    room = token * (len(SYSTEM) + 22)
    for evict, stays in (("worth", {0, 1}), ("lru", {0, 4})):
        store = chunk_store(llama, memory=room, evict=evict)
        serve(store, [CHUNKS[0]])
        for _ in range(3):
            serve(store, [CHUNKS[1]], by="reuse")
        serve(store, [CHUNKS[0]])
        for k in (4, 0):
            serve(store, [CHUNKS[k]])
        here = {k for k in range(5) if store.of(chunk_files.chunk_name(CHUNKS[k]))}
        assert store.tiers()["memory"] <= room
        assert here == stays, evict


def test_the_disk_is_a_tier_read_layer_by_layer(llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = chunk_store(llama, folder=tmp_path)
    serve(first, CHUNKS[:3])
    chunks = [CHUNKS[2], CHUNKS[0]]
    expected = serve(first, chunks, alpha=0.5, keep=False)
    again = chunk_store(llama, folder=tmp_path)
    assert again.tiers() == first.tiers() | {"memory": 0}
    asked: list[int] = []
    read = chunk_files.read_layer
    module = sys.modules["nett.cache.chunk_store"]  # of the same name as the class in it
    monkeypatch.setattr(module, "read_layer", lambda o, layer, d: (asked.append(layer), read(o, layer, d))[1])
    served = serve(again, chunks, alpha=0.5)
    assert {p["tier"] for p in served.ledger["parts"]} == {"disk"}
    assert torch.equal(served.logits, expected.logits)
    assert asked == sorted(asked) and set(asked) == {0, 1, 2}
    assert again.tiers()["memory"] > 0
    served = serve(again, chunks, alpha=0.5, keep=False)
    assert {p["tier"] for p in served.ledger["parts"]} == {"memory"} and len(asked) == 9


def test_the_disk_keeps_within_its_bytes(llama: Any, tmp_path: Path) -> None:
    token = 3 * 2 * 2 * 8 * 4
    room = token * (len(SYSTEM) + 22)
    store = chunk_store(llama, folder=tmp_path, memory=token * 16, disk=room)
    for k in range(5):
        serve(store, [CHUNKS[k]])
    files = list(tmp_path.iterdir())
    tiers = store.tiers()
    assert tiers["disk"] <= room and tiers["memory"] <= token * 16 and len(files) == 3
    assert chunk_store(llama, folder=tmp_path).tiers()["chunks"] == 3


def test_a_store_of_another_model_is_refused(llama: Any, tmp_path: Path) -> None:
    serve(chunk_store(llama, folder=tmp_path), CHUNKS[:1])
    torch.manual_seed(9)
    other = transformers.AutoModelForCausalLM.from_config(llama.config).eval()
    with pytest.raises(Refused, match="was computed by another model") as caught:
        chunk_store(other, folder=tmp_path)
    assert caught.value.where is not None and caught.value.where.startswith(str(tmp_path))


def test_one_weight_makes_another_model(llama: Any) -> None:
    before = chunk_files.model_hash(llama)
    weight = llama.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        kept = weight[3, 3].item()
        weight[3, 3] += 1e-3
        changed = chunk_files.model_hash(llama)
        weight[3, 3] = kept
    assert changed != before == chunk_files.model_hash(llama)


@pytest.mark.parametrize("left", [4, 100, 0.5, -1])
def test_a_truncated_file_is_refused_by_name(llama: Any, tmp_path: Path, left: float) -> None:
    store = chunk_store(llama, folder=tmp_path, memory=1)
    serve(store, CHUNKS[:1])
    file = next(f for f in tmp_path.iterdir() if f.name.startswith(chunk_files.chunk_name(CHUNKS[0])))
    whole = file.read_bytes()
    file.write_bytes(whole[: int(left * len(whole)) if 0 < left < 1 else int(left)])
    for opening in (lambda: chunk_store(llama, folder=tmp_path), lambda: serve(store, CHUNKS[:1])):
        with pytest.raises(Refused) as caught:
            opening()
        assert file.name in str(caught.value)


def test_files_that_are_no_chunks(llama: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(Refused, match="is no stored chunk"):
        chunk_store(llama, folder=tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="cannot be written"):
        chunk_store(llama, folder=tmp_path / "file")


def test_a_file_that_lies_is_refused(llama: Any, tmp_path: Path) -> None:
    """Tokens that are not those of its name."""
    from safetensors.torch import load_file, save_file

    serve(chunk_store(llama, folder=tmp_path), [])
    file = next(tmp_path.iterdir())
    words = chunk_files.read_header(file)[1]
    tensors = load_file(file)
    tensors["ids"][0] += 1
    save_file(tensors, file, words)
    with pytest.raises(Refused, match="do not fit together"):
        chunk_store(llama, folder=tmp_path)
    save_file(tensors, file, {k: v for k, v in words.items() if k != "chunk"})
    with pytest.raises(Refused, match="does not say what chunk"):
        chunk_store(llama, folder=tmp_path)


def test_a_death_while_writing_leaves_what_was(llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(chunk_store(llama, folder=tmp_path), CHUNKS[:1])
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}

    class Death(BaseException):
        pass

    def dies(*_: Any) -> None:
        raise Death

    store = chunk_store(llama, folder=tmp_path)
    for step in ("os.fsync", "os.replace", "os.unlink"):
        with monkeypatch.context() as inside:
            inside.setattr(step if step != "os.unlink" else "os.replace", dies)
            if step == "os.unlink":  # no time to clean up: what lies half written is no chunk
                inside.setattr("os.unlink", dies)
            with pytest.raises(Death):
                serve(store, CHUNKS[:2])
        whole = {f.name: f.read_bytes() for f in tmp_path.iterdir() if not f.name.startswith(".")}
        assert whole == before
        assert chunk_store(llama, folder=tmp_path).tiers()["chunks"] == 2


# -- bad input ---------------------------------------------------------------------------------------------------


def test_a_prompt_beyond_the_model(llama: Any, filled: chunk_store) -> None:
    with pytest.raises(Refused, match="256 positions"):
        serve(filled, CHUNKS * 5)
    with pytest.raises(Refused, match="240 that follow"):
        serve(filled, CHUNKS[:3], room=240)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"store": 3}, UsageError, "store is int, not a chunk store"),
        ({"question": []}, UsageError, "the question holds no token"),
        ({"chunks": [[3], []]}, UsageError, "chunk 1 holds no token"),
        ({"chunks": ["words"]}, UsageError, "texts need a tokenizer"),
        ({"chunks": [[3, 64]]}, Refused, "there is a token 64, and the model knows 64"),
        ({"chunks": [[-1]]}, Refused, "there is a token -1"),
        ({"alpha": -1.0}, UsageError, "0 <= alpha"),
        ({"renew": 0.0}, UsageError, "0 < renew"),
        ({"by": "magic"}, UsageError, "magic"),
    ],
)
def test_bad_input(filled: chunk_store, change: dict[str, Any], error: type[Exception], said: str) -> None:
    given: dict[str, Any] = {"store": filled, "chunks": CHUNKS[:1], "question": QUESTION, **change}
    with pytest.raises(error, match="cache/cache_craft") as caught:
        nett.cache.cache_craft(given.pop("store"), SYSTEM, given.pop("chunks"), given.pop("question"), **given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"variants": 0}, "1 <= variants"),
        ({"memory": "much"}, "'much' is not a size"),
        ({"evict": "all"}, "worth, lru"),
    ],
)
def test_bad_stores(llama: Any, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        chunk_store(llama, **change)
    assert said in str(caught.value)


def test_models_that_do_not_see_all_tokens() -> None:
    config = transformers.MistralConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        vocab_size=64, sliding_window=16,
    )  # fmt: skip
    with pytest.raises(Refused, match="sliding window"):
        chunk_store(transformers.AutoModelForCausalLM.from_config(config))
