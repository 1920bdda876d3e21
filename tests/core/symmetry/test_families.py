"""transformers' families: the permuted model is the same function, and what may not move does not."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from nett.core.errors import Refused  # noqa: E402
from nett.core.symmetry import Group, Place, of_config, prove_config, proved_symmetry, small_model  # noqa: E402

FAMILIES = [
    ("llama", "LlamaForCausalLM", {"num_attention_heads": 4, "num_key_value_heads": 2}),
    ("llama", "LlamaForCausalLM", {"num_key_value_heads": 1, "attention_bias": True, "tie_word_embeddings": True}),
    ("llama", "LlamaModel", {}),
    ("mistral", "MistralForCausalLM", {}),
    ("qwen2", "Qwen2ForCausalLM", {}),
    ("qwen3", "Qwen3ForCausalLM", {}),
    ("gemma", "GemmaForCausalLM", {}),
    ("gemma2", "Gemma2ForCausalLM", {}),
    ("gemma3_text", "Gemma3ForCausalLM", {}),
    ("smollm3", "SmolLM3ForCausalLM", {}),
    ("phi", "PhiForCausalLM", {}),
    ("phi3", "Phi3ForCausalLM", {}),
    ("stablelm", "StableLmForCausalLM", {}),
    ("olmo", "OlmoForCausalLM", {}),
    ("olmo2", "Olmo2ForCausalLM", {}),
    ("granite", "GraniteForCausalLM", {}),
    ("starcoder2", "Starcoder2ForCausalLM", {"bos_token_id": 1, "eos_token_id": 1}),
    ("glm4", "Glm4ForCausalLM", {}),
    ("cohere", "CohereForCausalLM", {}),
    ("gpt_neox", "GPTNeoXForCausalLM", {}),
    ("gpt2", "GPT2LMHeadModel", {}),
    ("opt", "OPTForCausalLM", {}),
    ("bert", "BertModel", {}),
    ("bert", "BertForMaskedLM", {}),
    ("bert", "BertForPreTraining", {}),
    ("bert", "BertForSequenceClassification", {}),
    ("roberta", "RobertaForMaskedLM", {}),
    ("roberta", "RobertaForSequenceClassification", {}),
    ("distilbert", "DistilBertForMaskedLM", {}),
    ("distilbert", "DistilBertForSequenceClassification", {}),
    ("vit", "ViTForImageClassification", {}),
]


def small(kind, named, more):
    config = transformers.AutoConfig.for_model(kind, **more).to_dict() | {"architectures": [named]}
    model = small_model(config)
    return model, model.config.to_dict() | {"architectures": [named]}


def outputs(model, weights=None):
    generator = torch.Generator().manual_seed(5)
    if weights is not None:
        model.load_state_dict({n: torch.from_numpy(np.ascontiguousarray(w)) for n, w in weights.items()})
    with torch.no_grad():
        if model.main_input_name == "pixel_values":
            return model(torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64))[0]
        return model(torch.randint(2, 40, (2, 9), generator=generator))[0]


QUICK = {
    "LlamaForCausalLM", "Qwen3ForCausalLM", "Gemma2ForCausalLM", "Phi3ForCausalLM", "GPTNeoXForCausalLM",
    "GPT2LMHeadModel", "BertModel", "BertForMaskedLM", "RobertaForSequenceClassification", "ViTForImageClassification",
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "named", "more"),
    [
        pytest.param(*family, id=f"{family[1]}-{i}", marks=[] if family[1] in QUICK else [pytest.mark.slow])
        for i, family in enumerate(FAMILIES)
    ],
)
def test_permuted_model_is_the_same_function(kind, named, more):
    model, config = small(kind, named, more)
    rng = np.random.default_rng(3)
    weights = {n: t.numpy().copy() for n, t in model.state_dict().items()}
    for values in weights.values():  # no weight is left at one or zero
        if values.dtype.kind == "f":
            values += rng.normal(size=values.shape) * 0.2
    for tied in (model._tied_weights_keys or {}) if config.get("tie_word_embeddings") else {}:
        if tied in weights:
            weights[tied] = weights[model._tied_weights_keys[tied]]
    symmetry = of_config(config, {n: w.shape for n, w in weights.items()})
    proved, _ = prove_config(symmetry, config)
    assert [g.name for g in proved.groups] == [g.name for g in symmetry.groups]
    before = outputs(model, weights)
    orders = symmetry.random(rng)
    after = outputs(model, symmetry.apply(weights, orders))
    assert float((before - after).abs().max()) < 2e-5 * float(before.abs().max())  # norms work in float32
    kinds = {g.unit for g in symmetry.groups}
    assert "MLP neuron" in kinds and "value dimension" in kinds
    assert ("residual dimension" in kinds) == (named not in ("LlamaModel", "BertModel"))


def test_grouped_heads_and_what_is_inside_them():
    model, config = small("llama", "LlamaForCausalLM", {"num_attention_heads": 4, "num_key_value_heads": 2})
    symmetry = of_config(config, {n: tuple(t.shape) for n, t in model.state_dict().items()})
    names = [g.name for g in symmetry.groups if g.name.startswith("model.layers.0.self") or ".0.heads" in g.name]
    assert names == [
        "model.layers.0.heads.0.value", "model.layers.0.heads.0.query", "model.layers.0.heads.1.value",
        "model.layers.0.heads.1.query", "model.layers.0.heads",
    ]  # fmt: skip
    heads = symmetry.group("model.layers.0.heads")
    runs = {p.tensor.split(".")[-2]: p.run for p in heads.places}
    assert runs == {"q_proj": 32, "k_proj": 16, "v_proj": 16, "o_proj": 32} and heads.size == 2
    inner = symmetry.group("model.layers.0.heads.1.value")
    assert (inner.parent, inner.cell, inner.size) == ("model.layers.0.heads", 1, 16)
    columns = next(p for p in inner.places if "o_proj" in p.tensor)
    assert columns.index[0].tolist() == [32, 48]  # dimension 0 of query heads 2 and 3


def test_rotary_dimensions_may_not_change_places_not_even_in_pairs():
    """Pair i of every head turns at a speed of its own, so what is stored at pair i has to stay there."""
    model, config = small("llama", "LlamaForCausalLM", {})
    symmetry = of_config(config, {n: tuple(t.shape) for n, t in model.state_dict().items()})
    assert not any(g.unit == "query and key dimension" for g in symmetry.groups)
    size, heads = 16, 2
    pairs = np.array([[i, i + size // 2] for i in range(size // 2)])
    group = Group(
        "pairs",
        "rotary pair",
        tuple(
            Place(
                f"model.layers.0.self_attn.{x}_proj.weight",
                0,
                np.hstack([pairs + h * size for h in range(heads)]),
                "producer",
            )
            for x in "qk"
        ),
    )
    from nett.core.symmetry.proof import prove, scrambled
    from nett.core.symmetry.shrunken import _function

    tensors = scrambled({n: t.numpy() for n, t in model.state_dict().items()})
    weird = type(symmetry)((*symmetry.groups, group), symmetry.shapes)
    proved, proofs = prove(weird, _function(model, 0), tensors)
    assert [r.name for r in proved.refused] == ["pairs"]
    assert "changed the output by" in proved.refused[0].why
    assert {g.name for g in proved.groups} == {g.name for g in symmetry.groups}
    assert all(p.difference < 1e-12 for p in proofs if p.group != "pairs")


def test_dimensions_that_are_not_rotated_are_free():
    model, config = small("gpt_neox", "GPTNeoXForCausalLM", {})
    symmetry = of_config(config, {n: tuple(t.shape) for n, t in model.state_dict().items()})
    inside = symmetry.group("gpt_neox.layers.0.heads.0.key")
    assert inside.size == 12  # of 16, a quarter is rotated
    assert symmetry.group("gpt_neox.layers.0.heads.0.value").size == 16


@pytest.mark.parametrize(
    ("kind", "named", "said"),
    [
        ("t5", "T5ForConditionalGeneration", "family 't5' are not known.*'shared.weight'"),
        ("gptj", "GPTJForCausalLM", "family 'gptj' are not known"),
        ("electra", "ElectraForTokenClassification", "embeddings_project"),
    ],
)
def test_unknown_families_are_refused_by_name(kind, named, said):
    config = transformers.AutoConfig.for_model(kind).to_dict() | {"architectures": [named]}
    with torch.device("meta"):
        model = getattr(transformers, named)(transformers.AutoConfig.for_model(kind))
    with pytest.raises(Refused, match=said) as caught:
        proved_symmetry({n: tuple(t.shape) for n, t in model.state_dict().items()}, config=config)
    assert "of_module" in str(caught.value)


def test_a_tied_head_that_is_not_stored_is_a_head_all_the_same():
    model, config = small("gpt2", "GPT2LMHeadModel", {})
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items() if n != "lm_head.weight"}
    symmetry, _ = proved_symmetry(shapes, config=config)
    assert symmetry.group("residual").size == 32


def test_a_config_of_another_model_is_refused():
    model, config = small("llama", "LlamaForCausalLM", {})
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    with pytest.raises(Refused, match=r"q_proj.*has 32 along axis 0, but its config makes that 64"):
        of_config(config | {"num_attention_heads": 4}, shapes)
