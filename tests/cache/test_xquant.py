"""XQuant and XQuant-CL: keys and values made again are those of the model; codes are as they are said to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

import nett
from cache.conftest import made
from cache.test_policies import steps
from nett.cache.hidden import read
from nett.cache.judging import bed_of, judge
from nett.cache.policy import ledger
from nett.core.errors import Refused, UsageError

PIECES = ([40, 24], [20, 1, 1, 12, 1, 9], [30, *[1] * 12])
SMALL = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 64}


def policy(name: str, exact: bool = False, **more: Any) -> Any:
    one = getattr(nett.cache, name)(**{"group": 8, "residual": 4} | more)
    if exact:  # numbers are held as they are, by the same way as codes
        one.parameters |= {"bits": 32, **({"first_bits": 32} if "first_bits" in one.parameters else {})}
    return one


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """As many key heads as query heads; half; a quarter; normed keys; biases; positions that are not rotated, one
    projection for all."""
    llama = transformers.LlamaConfig
    return {
        "mha": made(llama(**SMALL, num_key_value_heads=4)),
        "gqa": made(llama(**SMALL, num_key_value_heads=2)),
        "mqa": made(llama(**SMALL, num_key_value_heads=1)),
        "normed": made(transformers.Qwen3Config(**SMALL, num_key_value_heads=1, head_dim=8, use_sliding_window=False)),
        "biased": made(transformers.Qwen2Config(**SMALL, num_key_value_heads=2, use_sliding_window=False)),
        "gpt2": made(transformers.GPT2Config(n_embd=32, n_layer=4, n_head=4, vocab_size=64, n_positions=128)),
        "neox": made(transformers.GPTNeoXConfig(**SMALL, rotary_pct=0.5)),
    }


WAYS = [("xquant", {}), ("xquant_cl", {"first": 2}), ("xquant_cl", {"first": 1, "stream": "residual"})]


@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa", "normed", "biased", "gpt2", "neox"])
@pytest.mark.parametrize(("name", "more"), WAYS)
def test_numbers_that_are_not_rounded_are_the_model(
    models: dict[str, Any], ids: torch.Tensor, kind: str, name: str, more: dict[str, Any]
) -> None:
    """Without cache, whatever the pieces: chunks of unrounded numbers, latents by singular vectors, differences added up."""
    model = models[kind]
    with torch.no_grad():
        ids = ids[:, :64]
        expected = model(ids, use_cache=False).logits
    one = policy(name, exact=True, **more)
    with one.on(model):
        for pieces in PIECES:
            cache = one.cache(model)
            found = steps(model, cache, ids, pieces)
            assert all(row.chunks for layer in cache.layers for row in layer.rows)
            far = (found - expected[:, : found.shape[1]]).abs().max()
            assert float(far) <= 1e-5 * float(expected.abs().max())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("kind", ["mha", "mqa"])
@pytest.mark.parametrize("stream", ["normed", "residual"])
def test_differences_are_to_what_is_read(models: dict[str, Any], ids: torch.Tensor, kind: str, stream: str) -> None:
    """The encoder's accumulator is the decoder's, and each layer's error that of its own difference alone: half a step."""
    model, one = models[kind], policy("xquant_cl", bits=3, first=2, stream=stream, residual=0)
    told: list[Any] = []
    kernel = one.kernel

    def noting(hidden: Any, before: Any, *more: Any, **parameters: Any) -> Any:
        told.append((hidden.clone(), None if before is None else before.clone()))
        return kernel(hidden, before, *more, **parameters)

    one.kernel = noting
    with one.on(model):
        cache = one.cache(model)
        steps(model, cache, ids[:1], [17, *[1] * 31])
    chunks = len(cache.layers[0].rows[0].chunks)
    assert chunks == 5
    # by the order of coding: two groups of the prompt as one chunk, layer by layer, then one group at a time
    for number in range(chunks):
        accumulator = None
        for layer in cache.layers:
            hidden, before = told[number * len(cache.layers) + layer.index]
            if layer.index >= 2:
                assert torch.equal(before[0], accumulator)
            chunk = layer.rows[0].chunks[number]
            assert chunk.delta == (layer.index >= 2)
            accumulator = read(chunk, layer.bases, accumulator)[0]
            if layer.bases.both is None and layer.bases.keys is None:
                step = chunk.parts[0].scale.repeat_interleave(8, -1).reshape(accumulator.shape)
                assert bool(((accumulator - hidden[0]).abs() <= step / 2 + 1e-4 * hidden.abs().max()).all())


def test_the_ledger_by_hand(models: dict[str, Any], ids: torch.Tensor) -> None:
    """Forty tokens of two rows: 32 in groups of eight, eight as numbers; codes, scales, lowest values, positions."""
    held = {}
    for kind, name in [("mha", "xquant"), ("mqa", "xquant"), ("mha", "xquant_cl"), ("mqa", "xquant_cl")]:
        one = policy(name, bits=3, residual=8)
        with one.on(models[kind]):
            cache = one.cache(models[kind])
            steps(models[kind], cache, ids[:, :40], [40])
        held[kind, name] = ledger(cache)
    d, latents, layers, rows = 32, 8 + 8, 5, 2

    def coded(numbers: int, bits: int) -> int:  # three bits a number, and two of float32 for eight of them
        return 32 * numbers * bits // 8 + 32 * numbers // 8 * 2 * 4

    rest, places = 8 * d * 4, 40 * 4
    assert held["mha", "xquant"]["bytes"] == rows * layers * (coded(d, 3) + rest) + places
    assert held["mqa", "xquant"]["bytes"] == rows * layers * (coded(latents, 3) + rest) + places
    assert held["mha", "xquant_cl"]["bytes"] == rows * (3 * coded(d, 4) + 2 * coded(d, 3) + 5 * rest) + places
    mqa = 2 * coded(latents, 4) + coded(d, 4) + 2 * coded(latents, 3) + 5 * rest
    assert held["mqa", "xquant_cl"]["bytes"] == rows * mqa + places
    assert held["mha", "xquant"]["full_bytes"] == rows * layers * 40 * 2 * d * 4


def test_codes_are_the_formula(ids: torch.Tensor) -> None:
    """Latents against NumPy: keys' by channel along tokens, values' by token along channels."""
    from nett.cache.xquant import xquant

    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 16, 24)).astype(np.float32)
    bases = [np.linalg.qr(rng.normal(size=(24, 8)))[0].astype(np.float32) for _ in range(2)]
    found = xquant(torch.from_numpy(x), *map(torch.from_numpy, bases), bits=3, group=8)
    from nett.cache.packing import decoded

    for which, grid in enumerate(found.parts):
        latent = x[0].astype(np.float64) @ bases[which]
        lines = latent.T if which == 0 else latent
        parts = lines.reshape(len(lines), -1, 8)
        low, high = parts.min(-1, keepdims=True), parts.max(-1, keepdims=True)
        scale = (high - low) / 7
        expected = (np.round((parts - low) / scale) * scale + low).reshape(lines.shape)
        assert np.allclose(decoded(grid)[0].numpy(), expected.T if which == 0 else expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["mha", "gqa", "gpt2"])
@pytest.mark.parametrize("name", ["xquant", "xquant_cl"])
def test_rows_of_unequal_length_are_each_alone(models: dict[str, Any], ids: torch.Tensor, kind: str, name: str) -> None:
    """Padded at the front; prompt in two pieces and twelve tokens more, at three bits."""
    model, lengths = models[kind], (40, 25)
    prompt, mask = torch.zeros(2, 40, dtype=torch.int64), torch.zeros(2, 52, dtype=torch.int64)
    for i, n in enumerate(lengths):
        prompt[i, 40 - n :], mask[i, 40 - n :] = ids[i, :n], 1
    tokens = torch.cat([prompt, ids[:, 60:72]], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    one = policy(name, bits=3)
    with one.on(model), torch.no_grad():
        together, found = one.cache(model), []
        for a, b in [(0, 40), *[(i, i + 1) for i in range(40, 52)]]:
            found.append(
                model(
                    tokens[:, a:b], attention_mask=mask[:, :b], position_ids=positions[:, a:b],
                    past_key_values=together,
                ).logits
            )  # fmt: skip
        for i, n in enumerate(lengths):
            alone = one.cache(model)
            expected = steps(model, alone, tokens[i : i + 1, 40 - n :], [n, *[1] * 12])[0]
            mine = torch.cat(found, 1)[i, 40 - n :]
            assert torch.allclose(mine, expected, atol=1e-4 * float(expected.abs().max()))
            assert together.layers[0].rows[i].nbytes == alone.layers[0].rows[0].nbytes


@pytest.mark.parametrize("name", ["xquant", "xquant_cl"])
def test_more_bits_are_nearer(models: dict[str, Any], ids: torch.Tensor, name: str) -> None:
    for kind in ("mha", "mqa"):
        with torch.no_grad():
            exact = models[kind](ids, use_cache=False).logits[:, 60:72]
        far = []
        for bits in (2, 4, 8):
            one = policy(name, bits=bits, **({"first": 1, "first_bits": 2} if name == "xquant_cl" else {}))
            with one.on(models[kind]):
                found = steps(models[kind], one.cache(models[kind]), ids, [60, *[1] * 12])[:, 60:]
            far.append(float((found - exact).abs().mean() / exact.abs().mean()))
        assert far[0] > 1.5 * far[1] > 3 * far[2] and far[2] < 0.1, (kind, far)


def test_generation(models: dict[str, Any], ids: torch.Tensor) -> None:
    """`generate`, rows padded at the front; beams and samples."""
    model = models["gqa"]
    mask = torch.ones_like(ids[:, :40])
    mask[1, :15] = 0
    how = {"attention_mask": mask, "max_new_tokens": 12, "pad_token_id": 0}
    expected = model.generate(ids[:, :40], do_sample=False, **how)
    beams = model.generate(ids[:, :40], num_beams=3, do_sample=False, **how)
    with policy("xquant_cl", exact=True).on(model):
        assert torch.equal(model.generate(ids[:, :40], do_sample=False, **how), expected)
        assert torch.equal(model.generate(ids[:, :40], num_beams=3, do_sample=False, **how), beams)
    with policy("xquant", bits=2).on(model):
        assert model.generate(ids[:, :40], do_sample=True, num_return_sequences=2, **how).shape[0] == 4
    assert "generate" not in vars(model)


def test_a_prompt_that_was_run_once(models: dict[str, Any], ids: torch.Tensor) -> None:
    """Judged on a recording as on the prompt itself: nothing is lost where nothing is rounded."""
    bed = bed_of(models["mqa"], ids[:, :48], 40)
    for name, more in WAYS:
        assert float(np.abs(judge(models["mqa"], bed, policy(name, exact=True, **more)).kl).max()) < 1e-5
    assert float(judge(models["mqa"], bed, policy("xquant", bits=2)).kl.min()) > 1e-5


def test_what_is_refused(models: dict[str, Any], ids: torch.Tensor) -> None:
    config = transformers.GPTBigCodeConfig(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=128)
    fused = made(config)  # one head of keys and values, in one projection with the queries
    one = policy("xquant")
    with one.on(fused), torch.no_grad(), pytest.raises(Refused, match="no linear layer of their own"):
        fused(ids)
    with pytest.raises(Refused, match="was not told"):
        models["mha"](ids, past_key_values=one.cache(models["mha"]))
    with one.on(models["mha"]) as model:
        cache = one.cache(model)
        steps(model, cache, ids, [96])
        with pytest.raises(NotImplementedError, match="cropped"):
            cache.crop(-1)
    with pytest.raises(UsageError, match="its bits decide"):
        policy("xquant", budget=0.5)
    with pytest.raises(UsageError, match="stream"):
        policy("xquant_cl", stream="both")
