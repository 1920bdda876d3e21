"""Which groups may merge, and which may be scaled: tried on the network's own code, refused by name."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from nett.core.symmetry import Refusal, proved_symmetry  # noqa: E402
from nett.core.symmetry.merging import Mergeable, mergeable, told  # noqa: E402
from support.networks import Norms, ResNet, mlp  # noqa: E402


def of(module: Any, *shape: int) -> Mergeable:
    shapes = {n: tuple(t.shape) for n, t in module.state_dict().items()}
    return mergeable(proved_symmetry(shapes, module=module, example=torch.zeros(shape))[0])


def test_plain_layers_merge_and_scale_with_a_rectifier() -> None:
    found = of(mlp(6, 5, 4, 3), 2, 6)
    assert [g.name for g in found.symmetry.groups] == ["0", "2"] and found.scalable == {"0", "2"}
    module = mlp(6, 5, 4, 3)
    module[1] = torch.nn.GELU()
    assert of(module, 2, 6).scalable == {"2"}


def test_folded_normalisations_scale_and_are_told() -> None:
    found = of(ResNet(1, "B"), 2, 3, 8, 8)
    assert len(found.symmetry.groups) == 6 and found.epsilon["layer1.0.bn1"] == 1e-5
    assert found.scalable == {g.name for g in found.symmetry.groups}


def test_norms_over_the_units_are_named() -> None:
    refused = {r.name: r.why for r in of(Norms(), 2, 1, 8, 8).symmetry.refused}
    assert "layernorm sees how many units there are" in refused["fc1"]
    assert any("groupnorm sees how many units there are" in why for why in refused.values())


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        (
            {"model_type": "llama", "hidden_act": "silu", "intermediate_size": 24, "num_key_value_heads": 2},
            {"gate_proj": (24, 32), "up_proj": (24, 32), "down_proj": (32, 24)},
        ),
        (
            {"model_type": "llama", "hidden_act": "relu", "intermediate_size": 24, "num_key_value_heads": 2},
            {"gate_proj": (24, 32), "up_proj": (24, 32), "down_proj": (32, 24)},
        ),
    ],
    ids=["silu", "relu"],
)
def test_decoders_merge_their_neurons_only(config: dict[str, Any], tensors: dict[str, tuple[int, ...]]) -> None:
    whole = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 50, **config}
    shapes = {"model.embed_tokens.weight": (50, 32), "lm_head.weight": (50, 32), "model.norm.weight": (32,)}
    layer = "model.layers.0"
    shapes |= {f"{layer}.{n}_layernorm.weight": (32,) for n in ("input", "post_attention")}
    shapes |= {f"{layer}.self_attn.{n}_proj.weight": (16 if n in "kv" else 32, 32) for n in "qkvo"}
    shapes |= {f"{layer}.mlp.{n}.weight": shape for n, shape in tensors.items()}
    found = mergeable(proved_symmetry(shapes, config={**whole, "architectures": ["LlamaForCausalLM"]})[0])
    assert [g.name for g in found.symmetry.groups] == [f"{layer}.mlp"]
    refused = {r.name: r.why for r in found.symmetry.refused}
    assert "norms see how many dimensions" in refused["residual"]
    assert "attention heads" in refused[f"{layer}.heads"]
    assert not found.scalable


def test_groups_of_one_reason_are_told_in_one_sentence() -> None:
    refused = [Refusal("a", "too wide"), Refusal("b", "too deep"), Refusal("c", "too wide"), Refusal("d", "too wide")]
    assert told(refused) == ["a and 2 more: too wide", "b: too deep"]
