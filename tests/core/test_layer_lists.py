"""Configs after layers were cut and stacked: counts, lists by layer, lists of layers' numbers; and what stands before
the layers."""

from __future__ import annotations

from typing import Any

import pytest

from nett.core.layer_lists import recut
from nett.core.layers import precedes_layers


def picks(config: dict[str, Any], numbers: list[int], total: int) -> list[Any]:
    return [(config, number, total) for number in numbers]


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "num_layers", "n_layers"])
def test_the_count_under_each_name(key: str) -> None:
    config = {key: 4, "vocab_size": 4, "num_attention_heads": 4}
    assert recut(config, picks(config, [0, 1, 1, 3, 2], 4)) == ({**config, key: 5}, [])


def test_lists_by_layer_and_of_numbers() -> None:
    config = {
        "num_hidden_layers": 3, "layer_types": ["f", "s", "m"], "mlp_only_layers": [0, 2], "moe_layers": [0, 1, 2],
        "sliding_window_pattern": 2, "eos_token_id": [5, 6, 7], "layers_block_type": ["x", "y", "z"], "no_rope_layers": [],
        "hybrid_override_pattern": "M-*", "some_layers": [1],
    }  # fmt: skip
    made, notes = recut(config, picks(config, [2, 0, 2, 1], 3))
    assert made["num_hidden_layers"] == 4 and made["layer_types"] == ["m", "f", "m", "s"]
    assert made["mlp_only_layers"] == [0, 1, 2] and made["moe_layers"] == [0, 1, 2, 3] and made["some_layers"] == [3]
    assert made["layers_block_type"] == ["z", "x", "z", "y"] and made["hybrid_override_pattern"] == "*M*-"
    assert made["eos_token_id"] == [5, 6, 7] and made["sliding_window_pattern"] == 2 and made["no_rope_layers"] == []
    assert len(notes) == 6 and config["num_hidden_layers"] == 3


def test_each_layer_brings_what_its_own_model_says() -> None:
    one = {"num_hidden_layers": 2, "layer_types": ["a", "b"]}
    other = {"num_hidden_layers": 3, "layer_types": ["c", "d", "e"]}
    made, _ = recut(one, [(one, 1, 2), (other, 2, 3), ({}, 0, 3)])
    assert made["layer_types"] == ["b", "e", "a"]  # of a model that says nothing, what the donor says


def test_the_part_that_a_stack_belongs_to() -> None:
    config = {
        "text_config": {"num_hidden_layers": 2, "layer_types": ["a", "b"]}, "vision_config": {"depth": 2}, "hidden": 1,
    }  # fmt: skip
    made, _ = recut(config, picks(config, [0, 1, 1], 2), "model.language_model.layers")
    assert made["text_config"] == {"num_hidden_layers": 3, "layer_types": ["a", "b", "b"]}
    assert made["vision_config"] == {"depth": 2} and config["text_config"]["num_hidden_layers"] == 2  # type: ignore[index]
    assert recut(config, picks(config, [1], 2), "visual.blocks")[0]["vision_config"] == {"depth": 1}


def test_encoder_and_decoder() -> None:
    t5 = {"num_layers": 2, "num_decoder_layers": 3}
    assert recut(t5, picks(t5, [0], 2), "encoder.block")[0] == {"num_layers": 1, "num_decoder_layers": 3}
    assert recut(t5, picks(t5, [0], 3), "decoder.block")[0] == {"num_layers": 2, "num_decoder_layers": 1}
    whisper = {"num_hidden_layers": 2, "encoder_layers": 2, "decoder_layers": 2}
    made, _ = recut(whisper, picks(whisper, [0, 1, 1], 2), "model.encoder.layers")
    assert made == {"num_hidden_layers": 3, "encoder_layers": 3, "decoder_layers": 2}


def test_a_config_that_does_not_say() -> None:
    made, notes = recut({"a": 1}, picks({}, [0, 1], 2))
    assert made == {"a": 1} and "does not say how many layers" in notes[0]


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("model.embed_tokens.weight", True), ("transformer.wpe.weight", True), ("gpt_neox.embed_in.weight", True),
        ("bert.embeddings.LayerNorm.bias", True), ("shared.weight", True), ("backbone.embeddings.weight", True),
        ("model.encoder.conv1.weight", True), ("vision_model.layernorm_pre.bias", True), ("model.norm.weight", False),
        ("lm_head.weight", False), ("embed_out.weight", False), ("transformer.ln_f.bias", False), ("score.weight", False),
        ("bert.pooler.dense.weight", False), ("cls.predictions.decoder.weight", False), ("model.layers.0.embed.weight", False),
    ],
)  # fmt: skip
def test_what_stands_before_the_layers(name: str, before: bool) -> None:
    assert precedes_layers(name) is before
