"""Units that can be cut out: what is found, that the cut network answers as the zeroed one does, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from nett.core.errors import Refused, UsageError  # noqa: E402
from nett.core.structure import loads_from_config, removed, slices_of, structure_of  # noqa: E402
from nett.core.structure.units import ALL, MAKING  # noqa: E402
from support.networks import Attending, Dense, Norms, Odd, ResNet, mlp  # noqa: E402

IMAGE = torch.zeros(2, 3, 8, 8)


def randomised(module: Any, seed: int = 0) -> Any:
    """All parameters and statistics random, so that no zero bias or unit variance hides a mistake."""
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=draw)
            tensor.copy_(noise + 0.5 if "var" in name or "norm" in name else (noise - 0.5) * 0.6)
    return module.eval()


def kept_of(structure: Any, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {g.name: rng.permutation(g.size)[: rng.integers(1, g.size)] for g in structure.groups}


def zeroed(module: Any, structure: Any, kept: dict[str, Any]) -> Any:
    full = copy.deepcopy(module)
    for one in slices_of(full, structure):
        one.scale(torch.tensor(sorted(set(range(one.size)) - set(kept[one.name].tolist()))), 0.0)
    return full


def difference(one: Any, other: Any, *inputs: Any) -> float:
    with torch.no_grad():
        a, b = one(*inputs), other(*inputs)
    a, b = getattr(a, "logits", a), getattr(b, "logits", b)
    assert float(a.abs().max()) > 1e-3
    return float((a - b).abs().max())


@pytest.mark.parametrize(
    ("module", "example", "groups"),
    [
        (mlp(6, 5, 4, 3), torch.zeros(2, 6), {"0": 5, "2": 4}),
        (ResNet(2, "B"), IMAGE, {"conv1": 4, "layer1.0.conv1": 4, "layer3.1.conv1": 16, "layer3.0.conv2": 16}),
        (ResNet(1, "A"), IMAGE, {"conv1": 4, "layer1.0.conv1": 4, "layer2.0.conv1": 8, "layer3.0.conv1": 16}),
        (Attending(), torch.zeros(2, 5, dtype=torch.long), {"up": 8}),
        (Dense(), IMAGE, {"grouped": 3, "pointwise": 5}),
    ],
    ids=["mlp", "resnet-b", "resnet-a", "transformer", "dense"],
)
def test_a_cut_network_answers_as_the_zeroed_one(module: Any, example: Any, groups: dict[str, int]) -> None:
    structure = structure_of(module, example)
    found = {g.name: g.size for g in structure.groups}
    assert groups.items() <= found.items() and structure.size == sum(found.values())
    randomised(module)
    before = {n: t.clone() for n, t in module.state_dict().items()}
    draw = torch.Generator().manual_seed(7)
    for seed in range(3):
        kept = kept_of(structure, seed)
        if "grouped" in kept:  # the four quarters stay equally wide
            kept |= {n: kept["grouped"] for n in kept if n.startswith("grouped")}
        full, small = zeroed(module, structure, kept), removed(module, structure.groups, kept)
        x = example if example.dtype == torch.long else torch.randn(example.shape, generator=draw)
        assert difference(full, small, x) < 1e-5
        assert difference(full, module, x) > 1e-3
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in module.parameters())
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())


def test_what_is_zeroed_depends_on_the_way() -> None:
    """A rectifier keeps zeros zero, a sigmoid does not: there what reads the unit is zeroed too."""
    module = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.Sigmoid(), torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)
    )
    structure = structure_of(module, torch.zeros(2, 4))
    assert structure.zeroed == {"0": ALL, "2": MAKING}
    first, second = slices_of(module, structure)
    assert first.numbers == 4 + 1 + 5 and second.numbers == 6 + 1
    expected = [
        np.linalg.norm([*module[0].weight[i].tolist(), module[0].bias[i].item(), *module[2].weight[:, i].tolist()])
        for i in range(6)
    ]
    np.testing.assert_allclose(first.norms().numpy(), expected, rtol=1e-6)


def test_a_residual_stream_without_norms_over_it_is_one_group() -> None:
    """Channels that are added belong together: all their convolutions, and both BatchNorms' weights, but no statistics."""
    structure = structure_of(ResNet(2, "B"), IMAGE)
    members = {p.tensor for p in structure.members(structure.group("conv1"))}
    assert members == {"conv1.weight", *(f"layer1.{i}.conv2.weight" for i in (0, 1))} | {
        f"{bn}.{n}"
        for bn in ("bn1", "layer1.0.bn2", "layer1.1.bn2")
        for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")[:4]
    }
    parts = {p.name for p in next(s for s in slices_of(ResNet(2, "B"), structure) if s.name == "conv1").parts}
    assert not any("running" in name for name in parts) and "bn1.bias" in parts


def llama(**more: Any) -> Any:
    torch.manual_seed(0)
    config = {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 24}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**config | {"num_hidden_layers": 2, "vocab_size": 50, "pad_token_id": 0} | more)
    )


def test_a_llama_loses_whole_kv_heads_with_their_query_heads_and_neurons() -> None:
    model = randomised(llama())
    structure = structure_of(model)
    layers = [f"model.layers.{i}.{what}" for i in (0, 1) for what in ("heads", "mlp")]
    assert sorted(g.name for g in structure.groups) == layers and structure.size == 2 * (4 + 24)
    assert any("residual stream" in str(r) for r in structure.refused)
    ids = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    for seed in range(3):
        kept = kept_of(structure, seed)
        small = removed(model, structure.groups, kept)
        assert difference(zeroed(model, structure, kept), small, ids) < 1e-5
        for i in (0, 1):
            heads = len(kept[f"model.layers.{i}.heads"])
            attention = small.model.layers[i].self_attn
            assert (attention.q_proj.out_features, attention.k_proj.out_features) == (heads * 8, heads * 4)


def test_uniform_widths_go_into_the_config_and_others_are_said(tmp_path: Any) -> None:
    model = randomised(llama())
    structure = structure_of(model)
    kept = {g.name: np.arange(g.size)[1::2] for g in structure.groups}
    small = removed(model, structure.groups, kept)
    assert loads_from_config(small) is None
    assert (small.config.num_attention_heads, small.config.num_key_value_heads, small.config.intermediate_size) == (
        4,
        2,
        12,
    )
    small.save_pretrained(tmp_path)
    ids = torch.arange(12)[None]
    assert difference(transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval(), small, ids) == 0
    kept["model.layers.1.mlp"] = np.arange(5)
    uneven = removed(model, structure.groups, kept)
    why = loads_from_config(uneven)
    assert why is not None and "model.layers.1.mlp" in why and "[5, 32]" in why
    assert uneven.config.intermediate_size == 24


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox", "bert"])
def test_other_families(family: str) -> None:
    plain = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 50}
    sizes: dict[str, Any] = {
        "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0},
        "opt": plain | {"ffn_dim": 24, "word_embed_proj_dim": 32},
        "gpt_neox": plain | {"intermediate_size": 24},
        "bert": plain | {"intermediate_size": 24, "is_decoder": True},
    }
    config = transformers.AutoConfig.for_model(family, **sizes[family])
    model = randomised(transformers.AutoModelForCausalLM.from_config(config))
    structure = structure_of(model)
    assert {g.unit for g in structure.groups} == {"head", "MLP neuron"} and len(structure.groups) == 4
    kept = kept_of(structure)
    ids = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    assert difference(zeroed(model, structure, kept), removed(model, structure.groups, kept), ids) < 1e-5


def test_nothing_to_cut_and_what_cannot_be_followed_are_refused_by_name() -> None:
    with pytest.raises(Refused, match=r"no unit.*fc1.*layernorm sees how many"):
        structure_of(Norms(), torch.zeros(2, 1, 8, 8))
    with pytest.raises(Refused, match=r"cannot be followed: sort: nothing is known of sort") as caught:
        structure_of(Odd(), torch.zeros(2, 6))
    assert "partly=True" in str(caught.value)
    partly = structure_of(Odd(), torch.zeros(2, 6), partly=True)
    assert [g.name for g in partly.groups] == ["fc1", "fc2"] and any("sort" in str(r) for r in partly.refused)

    class Loop(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(3, 3)

        def forward(self, x: Any) -> Any:
            return self.inner(x) if x.sum() > 0 else x

    with pytest.raises(Refused, match=r"Loop: torch.fx cannot follow"):
        structure_of(Loop(), torch.zeros(1, 3))
    with pytest.raises(UsageError, match="needs an example"):
        structure_of(mlp(3, 4, 2))


def test_skipped_groups_and_unknown_units() -> None:
    module = mlp(6, 5, 4, 3)
    structure = structure_of(module, torch.zeros(2, 6), skip="0")
    assert [g.name for g in structure.groups] == ["2"]
    with pytest.raises(UsageError, match="'nothing' fits no group"):
        structure_of(module, torch.zeros(2, 6), skip="nothing")
    with pytest.raises(Refused, match="skipped, as asked"):
        structure_of(module, torch.zeros(2, 6), skip="0, 2")
    with pytest.raises(UsageError, match="1 to 4"):
        removed(module, structure.groups, {"2": np.array([], int)})
    with pytest.raises(UsageError, match="1 to 4"):
        removed(module, structure.groups, {"2": np.array([4])})
