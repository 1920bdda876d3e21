"""EoRA: against the paper's own form in plain NumPy, as an adapter that PEFT applies, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nett
from nett.core import torch_model
from nett.core.cards import find_card
from nett.core.checkpoint import open_checkpoint
from nett.core.errors import NettError, Refused, UsageError
from nett.core.tiny import write_llama
from nett.weights import engine

WORDS = ["sun", "road", "river", "letter", "house", "dust", "noon", "brother", "water", "air"]


def problem(rows, columns, seed=0, tokens=4000, bits=3):
    """A matrix, what rounding a row to 2^bits levels leaves of it, and the second moments of uneven inputs."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(rows, columns))
    inputs = rng.normal(size=(tokens, columns)) @ (rng.normal(size=(columns, columns)) * np.geomspace(1, 0.2, columns))
    step = np.abs(weight).max(1, keepdims=True) / (2 ** (bits - 1) - 0.5)
    return weight, np.round(weight / step) * step, inputs.T @ inputs / tokens


def paper(error, gram, rank):
    """Singular values and B A by the paper: E' = E Q sqrt(L), cut to the rank, back through 1 / sqrt(L)."""
    values, vectors = np.linalg.eigh(gram)
    outer, sigma, inner = np.linalg.svd(error @ (vectors * np.sqrt(values)), full_matrices=False)
    return sigma, (outer[:, :rank] * sigma[:rank]) @ (inner[:rank] / np.sqrt(values)) @ vectors.T


def loss(error, gram):
    return np.sqrt(max(0, np.einsum("ij,jk,ik->", error, gram, error)))


def made(weight, compressed, gram, **how):
    tensors = [torch.from_numpy(a) for a in (weight, compressed, gram)]
    answer = nett.weights.eora(*tensors, **how)
    assert answer.added
    return answer.left.numpy(), answer.right.numpy()


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (40, 40)])
def test_it_is_the_papers_product_and_leaves_exactly_the_dropped_singular_values(shape):
    weight, compressed, gram = problem(*shape)
    sigma, expected = paper(weight - compressed, gram, 8)
    left, right = made(weight, compressed, gram, rank=8)
    np.testing.assert_allclose(left @ right, expected, rtol=1e-6, atol=1e-8)
    assert loss(weight - compressed - left @ right, gram) == pytest.approx(np.sqrt((sigma[8:] ** 2).sum()), rel=1e-9)
    np.testing.assert_allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1), rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(2, 40),
    columns=st.integers(2, 40),
    rank=st.integers(1, 12),
    tokens=st.integers(3, 60),
    seed=st.integers(0, 999),
)
def test_no_compensation_is_better_under_the_inputs_moments(rows, columns, rank, tokens, seed):
    """Also where there are fewer tokens than columns, so that the moments are singular."""
    weight, compressed, gram = problem(rows, columns, seed, tokens)
    none = loss(weight - compressed, gram)
    errors = {}
    for by in ("eora", "activation", "svd"):
        left, right = made(weight, compressed, gram, rank=rank, by=by)
        assert left.shape == (rows, min(rank, rows, columns))
        errors[by] = loss(weight - compressed - left @ right, gram)
    # What the smallest eigenvalues, which count as rounding, can hide.
    slack = np.sqrt(columns * 2.0**-23 * np.linalg.eigvalsh(gram)[-1]) * np.linalg.norm(weight - compressed) + 1e-7
    assert errors["eora"] <= errors["svd"] + slack
    assert errors["eora"] <= errors["activation"] + slack
    assert errors["svd"] <= none + slack


def test_svd_is_the_best_without_moments():
    weight, compressed, gram = problem(30, 20)
    left, right = made(weight, compressed, gram, rank=5, by="svd")
    sigma = np.linalg.svd(weight - compressed, compute_uv=False)
    assert np.linalg.norm(weight - compressed - left @ right) == pytest.approx(np.linalg.norm(sigma[5:]), rel=1e-9)


def test_full_rank_brings_the_weight_back():
    weight, compressed, gram = problem(12, 18)
    left, right = made(weight, compressed, gram, rank=64)
    np.testing.assert_allclose(compressed + left @ right, weight, atol=1e-10)


# -- folders ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    """A Llama, its text, and what rtn makes of it at 2 bits, dense and packed, one layer left as it is."""
    folder = tmp_path_factory.mktemp("eora")
    model = write_llama(folder / "model", layers=2, hidden=64, inter=96, dtype="F32")
    rng = np.random.default_rng(0)
    (folder / "text.txt").write_text(" ".join(rng.choice(WORDS, 3000)) + ".\n")
    for form in ("dense", "compressed-tensors"):
        how = {"format": form, "skip": "*layers.0.mlp.up_proj", "threads": 1}
        engine.run(find_card("weights/rtn"), [str(model)], {"bits": 2}, out=folder / form, **how)
    return folder


def compensated(bed, out, over="dense", model="model", parameters=None, **more):
    options = {"calibration": bed / "text.txt", "length": 32, "samples": 64, "threads": 1, "out": out, **more}
    card = find_card("weights/eora")
    return engine.run(card, [str(bed / model), str(bed / over)], parameters or {"rank": 8}, **options)


@pytest.fixture(scope="module")
def receipt(bed):
    return compensated(bed, bed / "adapter")


def test_the_adapter_is_better_than_none_and_says_by_how_much(bed, receipt):
    before, after = receipt["figures"]["judged_compressed"], receipt["figures"]["judged"]
    assert after["kl"]["mean"] < before["kl"]["mean"]
    assert [row["model"] for row in receipt["quality"]] == ["original", "compressed", "result"]
    assert [i["role"] for i in receipt["inputs"]] == ["original", "compressed"]
    for row in receipt["tensors"]:
        if row["error_before"]:
            assert row["error"] < row["error_before"]
    with open_checkpoint(bed / "dense") as c:
        assert after["perplexity_original"] == before["perplexity_original"]
        assert "model.layers.0.mlp.up_proj.weight" in c.tensors


def test_a_layer_that_lost_nothing_has_no_adapter(bed, receipt):
    with open_checkpoint(bed / "adapter" / "adapter_model.safetensors") as c:
        modules = {n.rpartition(".lora_")[0].removeprefix("base_model.model.") for n in c.tensors}
        assert {t.dtype.name for t in c.tensors.values()} == {"F16"}
        assert {min(t.shape) for t in c.tensors.values()} == {8}
    assert len(modules) == 13
    assert "model.layers.0.mlp.up_proj" not in modules
    assert any("1 layers are the original's" in note for note in receipt["notes"])


@pytest.mark.parametrize("over", ["dense", "compressed-tensors"])
@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning", "ignore:You passed `quantization_config`"
)
def test_peft_and_nett_apply_it_alike(bed, receipt, over):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    how = {}
    if over != "dense":  # PEFT wants a layer's weight, which a packed layer does not have
        pytest.importorskip("compressed_tensors")
        how["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    base = AutoModelForCausalLM.from_pretrained(bed / over, dtype=torch.float32, **how)
    theirs = peft.PeftModel.from_pretrained(base, bed / "adapter").eval()
    with open_checkpoint(f"{bed / over}+{bed / 'adapter'}", dense=True) as sums:
        ours = torch_model.model(sums).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        logits = theirs(ids).logits
        with theirs.disable_adapter():
            assert float((theirs(ids).logits - logits).abs().max()) > 1e-3
        assert float((ours(ids).logits - logits).abs().max()) < 1e-4
        if over == "dense":
            short = nett.load(f"{bed / over}+{bed / 'adapter'}", as_model=True)
            assert torch.equal(short(ids).logits, ours(ids).logits)
    with open_checkpoint(f"{bed / over}+{bed / 'adapter'}", dense=True) as c:
        name = "model.layers.1.mlp.down_proj.weight"
        with open_checkpoint(bed / "model") as original, open_checkpoint(bed / "dense") as coarse:
            gaps = [np.linalg.norm(x.values(name) - original.values(name)) for x in (c, coarse)]
    assert gaps[0] < gaps[1]


def test_over_a_packed_folder_it_is_the_same_adapter(bed, receipt, tmp_path):
    compensated(bed, tmp_path / "packed", over="compressed-tensors")
    weights = [(f / "adapter_model.safetensors").read_bytes() for f in (bed / "adapter", tmp_path / "packed")]
    assert weights[0] == weights[1]
    config = json.loads((tmp_path / "packed" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(bed / "compressed-tensors")
    assert config["r"] == config["lora_alpha"] == 8


def test_a_rank_beyond_every_layer_is_cut(bed, tmp_path):
    compensated(bed, tmp_path / "out", parameters={"rank": 500}, dtype="float32")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == 64
    with open_checkpoint(f"{bed / 'dense'}+{tmp_path / 'out'}") as c, open_checkpoint(bed / "model") as original:
        for name in original.tensors:
            np.testing.assert_allclose(c.values(name), original.values(name), atol=1e-5)


def test_an_adapter_of_an_adapter_is_refused(bed, receipt, tmp_path):
    with pytest.raises(Refused, match="nett convert"):
        compensated(bed, tmp_path / "out", over="adapter")


def test_the_original_itself_has_lost_nothing(bed, tmp_path):
    with pytest.raises(Refused, match="nothing to make good"):
        compensated(bed, tmp_path / "out", over="model")
    assert not (tmp_path / "out").exists()


def test_another_model_is_refused_before_any_work(bed, tmp_path):
    other = write_llama(tmp_path / "other", layers=3, hidden=64, inter=96, dtype="F32")
    with pytest.raises(Refused, match="3 layers"):
        compensated(bed, tmp_path / "out", over=other)
    wider = write_llama(tmp_path / "wider", layers=2, hidden=64, inter=128, dtype="F32")
    with pytest.raises(Refused, match=r"shape \[64, 128\]"):
        compensated(bed, tmp_path / "out", over=wider)


def test_moved_norms_are_refused(bed, tmp_path):
    from safetensors.numpy import load_file, save_file

    from nett.core.tiny import fine_tune_of

    moved = fine_tune_of(bed / "model", tmp_path / "moved", seed=1)
    tensors = load_file(moved / "model.safetensors")
    tensors["model.layers.1.input_layernorm.weight"] *= 2
    save_file(tensors, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(Refused, match="moved scales"):
        compensated(bed, tmp_path / "out", over=moved)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"format": "dense"}, "nett convert"),
        ({"calibration": None}, "--calibration"),
        ({"parameters": {"rank": 0}}, "1 <= rank"),
        ({"parameters": {"by": "magic"}}, "eora, activation, svd"),
        ({"skip": "*"}, "no layer"),
    ],
)
def test_bad_input_is_named(bed, tmp_path, change, word):
    with pytest.raises(UsageError) as error:
        compensated(bed, tmp_path / "out", **change)
    assert word in str(error.value)
    assert not (tmp_path / "out").exists()


def test_one_model_is_not_enough(bed, tmp_path):
    with pytest.raises(NettError, match="original model and the compressed one"):
        engine.run(
            find_card("weights/eora"), [str(bed / "model")], {}, out=tmp_path / "out", calibration=bed / "text.txt"
        )


def test_for_other_methods_there_is_no_adapter(bed, tmp_path):
    with pytest.raises(UsageError, match="nett weights eora"):
        engine.run(find_card("weights/rtn"), [str(bed / "model")], {}, out=tmp_path / "out", format="adapter")
