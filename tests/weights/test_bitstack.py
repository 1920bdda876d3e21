"""BitStack: against plain NumPy; one container at many budgets, as arrays, as a model, at run time, exported."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nett
from nett.core.cards import find_card
from nett.core.checkpoint import open_checkpoint
from nett.core.errors import NettError, Refused, UsageError
from nett.core.tiny import write_llama
from nett.weights import engine
from nett.weights.sign_order import by_error, evaluations_of
from nett.weights.sign_stack import Layer, Plan
from nett.weights.sign_terms import packed, rank_for, taken_apart, term_bytes, unpacked

WORDS = ["sun", "road", "river", "letter", "house", "dust", "noon", "brother", "water", "air"]
BLOCKS = 4


def signs_of(words, shape):
    """NumPy's own unpacking: +1 or -1."""
    return np.unpackbits(words)[: np.prod(shape)].reshape(shape) * 2.0 - 1


def drawn(rows, columns, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32))


# -- one matrix -----------------------------------------------------------------------------------------------------


def test_bits_are_packed_as_stated():
    plus = torch.tensor([1, 0, 0, 0, 0, 0, 0, 1, 1], dtype=torch.bool)
    assert packed(plus).tolist() == [0x81, 0x80]


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_packing_is_numpys_and_comes_back(bits):
    plus = torch.tensor(bits)
    words = packed(plus)
    np.testing.assert_array_equal(words.numpy(), np.packbits(bits))
    assert torch.equal(unpacked(words, len(bits)), plus)


def test_the_rank_keeps_factors_at_an_eighth_of_a_bit():
    assert rank_for(4096, 4096) == 16
    assert term_bytes(4096, 4096, 16) * 8 / 4096**2 == 1.125
    assert rank_for(256, 256) == 1
    assert rank_for(64, 64) == 1
    assert rank_for(8, 300, 50) == 8


@pytest.mark.parametrize(("shape", "rank"), [((24, 40), 3), ((40, 24), 1)])
def test_each_term_is_the_sign_and_the_leading_directions_of_the_rounded_rest(shape, rank):
    matrix = drawn(*shape)
    terms, errors = taken_apart(matrix, 3, rank)
    rest = matrix.numpy().astype(np.float64)
    whole = (rest**2).sum()
    for term, error in zip(terms, errors[1:], strict=True):
        signs = np.where(rest >= 0, 1.0, -1.0)
        np.testing.assert_array_equal(signs_of(term.signs.numpy(), shape), signs)
        outer, values, inner = np.linalg.svd(np.abs(rest), full_matrices=False)
        product = term.left.numpy().astype(np.float64) @ term.right.numpy().astype(np.float64)
        np.testing.assert_allclose(product, (outer[:, :rank] * values[:rank]) @ inner[:rank], atol=4e-3)
        rest = rest - signs * product
        assert error == pytest.approx((rest**2).sum() / whole, rel=1e-4)


def test_zero_is_plus_and_stays_zero():
    terms, errors = taken_apart(torch.zeros(4, 9), 2, 1)
    assert all(unpacked(t.signs, 36).all() for t in terms)
    assert errors == [0.0, 0.0, 0.0]


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(2, 40),
    columns=st.integers(2, 40),
    rank=st.integers(1, 3),
    seed=st.integers(0, 999),
    uneven=st.booleans(),
)
def test_every_block_lowers_the_error(rows, columns, rank, seed, uneven):
    """As long as there is more left than half precision can hold."""
    rng = np.random.default_rng(seed)
    weight = drawn(rows, columns, seed)
    squares = torch.from_numpy((rng.lognormal(0, 2 if uneven else 0, columns)).astype(np.float32))
    made = nett.weights.bitstack(weight, squares, blocks=6, rank=rank)
    assert len(made.errors) == 7
    for before, after in zip(made.errors, made.errors[1:], strict=False):
        assert after < before or before < 1e-5
    scaled = weight.double() * made.scale.double()
    for count in (1, 3, 6):
        gap = scaled - made.dense(count).double() * made.scale.double()
        left = float(gap.square().sum() / scaled.square().sum())
        assert left == pytest.approx(made.errors[count], rel=1e-3, abs=1e-6)


def test_the_scale_is_the_root_mean_square_of_the_inputs_but_for_its_mean():
    squares = torch.tensor([4.0, 0.0, 1.0, 9.0])
    made = nett.weights.bitstack(drawn(5, 4), squares, blocks=1)
    np.testing.assert_allclose(made.scale.numpy(), np.array([2, 0.015, 1, 3]) / 1.5, rtol=1e-3)


def test_a_large_matrix_loses_little_by_iterating():
    """Shorter side beyond 128: the leading directions by subspace iteration, against the exact ones."""
    matrix = drawn(150, 400)
    _, errors = taken_apart(matrix, 1, 4)
    values = np.linalg.svd(np.abs(matrix.numpy().astype(np.float64)), compute_uv=False)
    exact = (values[4:] ** 2).sum() / (values**2).sum()
    assert exact <= errors[1] < 1.02 * exact


def test_nan_is_refused():
    weight = drawn(4, 6)
    weight[1, 2] = float("nan")
    with pytest.raises(Refused, match="NaN"):
        nett.weights.bitstack(weight, torch.ones(6))


def test_the_order_by_error_takes_the_steepest_first_level_by_level():
    falls = [(1.0, 0.5, 0.4, 0.39), (1.0, 0.5, 0.2, 0.1), (1.0, 0.5, 0.3, 0.29)]
    layers = tuple(Layer(f"m{i}", "F16", 4, 4, 1, 3, e) for i, e in enumerate(falls))
    assert by_error(layers) == (1, 2, 0, 1, 0, 2)
    plan = Plan(layers, by_error(layers))
    assert plan.counts(4) == [2, 3, 2]
    size = term_bytes(4, 4, 1)
    assert plan.steps(100).tolist() == [100 + 3 * (8 + size) + i * size for i in range(7)]


# -- folders --------------------------------------------------------------------------------------------------------


def stack(bed, out, **more):
    parameters = {"blocks": BLOCKS} | more.pop("parameters", {})
    options = {"calibration": bed / "text.txt", "length": 32, "samples": 40, "threads": 1, "out": out, **more}
    return engine.run(find_card("weights/bitstack"), [str(bed / "model")], parameters, **options)


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bitstack")
    write_llama(folder / "model", layers=2, hidden=32, inter=48, dtype="F32")
    rng = np.random.default_rng(0)
    (folder / "text.txt").write_text(" ".join(rng.choice(WORDS, 3000)) + ".\n")
    return folder


@pytest.fixture(scope="module")
def receipt(bed):
    return stack(bed, bed / "stack")


@pytest.fixture(scope="module")
def said(bed, receipt):
    return json.loads((bed / "stack" / "signs.json").read_text())


@pytest.fixture(scope="module")
def stored(bed, receipt):
    with open_checkpoint(bed / "stack" / "signs" / "signs.safetensors") as c:
        return {n: c.read(n).reshape(t.shape) for n, t in c.tensors.items()}, sorted(
            c.tensors.values(), key=lambda t: t.offset
        )


def composed(stored, layer, count):
    """The weight of a layer behind ``count`` blocks, float64 NumPy."""
    module, shape = layer["module"], (layer["rows"], layer["columns"])
    total = np.zeros(shape)
    for block in range(count):
        left, right = (stored[f"{module}.{block}.{n}"].view(np.float16).astype(np.float64) for n in ("left", "right"))
        total += signs_of(stored[f"{module}.{block}.signs"], shape) * (left @ right)
    return total / stored[f"{module}.scale"].view(np.float16).astype(np.float64)


def counts_within(said, stored, budget):
    """Blocks of each layer within a budget of bytes, by counting through the file."""
    layers = said["layers"]
    sizes = [sum(stored[f"{r['module']}.0.{n}"].nbytes for n in ("signs", "left", "right")) for r in layers]
    used = sum(a.nbytes for n, a in stored.items() if not any(n.startswith(r["module"] + ".") for r in layers))
    used += sum(sizes) + sum(stored[f"{r['module']}.scale"].nbytes for r in layers)
    counts = [1] * len(layers)
    for number in said["order"]:
        if used + sizes[number] > budget:
            break
        used += sizes[number]
        counts[number] += 1
    return counts, used


def test_the_file_is_laid_out_so_that_every_budget_is_a_beginning_of_it(said, stored, receipt):
    arrays, infos = stored
    names = [t.name for t in infos]
    stacked = [n for n in names if ".signs" in n]
    seen = [r["module"] for r in said["layers"]]
    assert [n.rpartition(".0.signs")[0] for n in stacked[: len(seen)]] == seen
    assert [n.rpartition(".signs")[0].rpartition(".")[0] for n in stacked[len(seen) :]] == [
        seen[i] for i in said["order"]
    ]
    first = next(t.offset for t in infos if ".scale" in t.name)
    assert all(t.offset < first for t in infos if "norm" in t.name or "embed" in t.name)
    figures = receipt["figures"]
    assert counts_within(said, arrays, 0)[1] == figures["smallest_bytes"]
    assert sum(t.nbytes for t in infos) == figures["largest_bytes"]
    assert figures["largest_step_bytes"] == term_bytes(32, 48, 1)
    perplexities = [b["perplexity"] for b in figures["budgets"]]
    assert len(perplexities) == 6
    assert receipt["proof"] == "kept"


def test_the_order_is_that_of_the_whole_model_run_anew_for_each_block(bed, said, stored):
    """Level one, by transformers with composed weights put in, on the windows that were used."""
    arrays, _ = stored
    from nett.core import torch_model
    from nett.core.windows import read_windows

    model = torch_model.model(bed / "model").float().eval()
    windows = read_windows(bed / "text.txt", torch_model.tokenizer(bed / "model"), samples=40, length=32, vocabulary=64)
    ids = torch.from_numpy(windows.ids[:35][:32])  # of 40, an eighth judges; 32 tell what a block is worth
    state, layers = model.state_dict(), said["layers"]

    def put(number, count):
        layer = layers[number]
        state[f"{layer['module']}.weight"].copy_(torch.from_numpy(composed(arrays, layer, count)))

    for number in range(len(layers)):
        put(number, 1)
    worth = []
    for number in range(len(layers)):
        put(number, 2)
        with torch.no_grad():
            said_now = torch.log_softmax(model(ids).logits[:, :-1].double(), -1)
        worth.append(-float(said_now.gather(-1, ids[:, 1:, None]).mean()))
        put(number, 1)
    chosen = said["order"][: len(layers)]
    assert sorted(chosen) == list(range(len(layers)))
    steps = np.diff([worth[i] for i in chosen])
    assert (steps > -1e-5).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_a_budget_gives_what_fits_into_it(bed, said, stored, receipt, share):
    arrays, _ = stored
    low, high = receipt["figures"]["smallest_bytes"], receipt["figures"]["largest_bytes"]
    budget = int(low + share * (high - low))
    counts, used = counts_within(said, arrays, budget)
    assert used <= budget
    found = nett.load(bed / "stack", budget=budget)
    assert set(found) == set(nett.load(bed / "model"))
    for layer, count in zip(said["layers"], counts, strict=True):
        np.testing.assert_allclose(
            found[f"{layer['module']}.weight"], composed(arrays, layer, count), rtol=1e-4, atol=1e-5
        )
    with open_checkpoint(bed / "stack" / str(budget)) as c:
        assert c.nbytes == used
        with open_checkpoint(c.reference) as again:
            assert again.nbytes == used


def test_model_stack_and_export_answer_alike(bed, receipt, tmp_path):
    from transformers import AutoModelForCausalLM

    budget = f"{receipt['figures']['smallest_bytes'] * 1.2 / 1000:.1f}kB"
    ids = torch.arange(3, 40)[None]
    nett.convert(bed / "stack" / budget, tmp_path / "out")
    models = [
        nett.load(bed / "stack", budget=budget, as_model=True),
        AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
        nett.weights.stacked(bed / "stack", budget=budget),
        nett.weights.stacked(bed / "stack", budget=budget, dense=True),
    ]
    with torch.no_grad():
        first, *others = [m(ids).logits for m in models]
        whole = nett.load(bed / "stack", as_model=True)(ids).logits
    assert all(float((first - o).abs().max()) < 1e-4 for o in others)
    assert float((first - whole).abs().max()) > 1e-3


@pytest.mark.parametrize("dense", [False, True])
def test_blocks_come_and_go_at_run_time(bed, receipt, dense):
    low, high = receipt["figures"]["smallest_bytes"], receipt["figures"]["largest_bytes"]
    ids = torch.arange(3, 40)[None]
    held = nett.weights.stacked(bed / "stack", dense=dense)
    assert (held.smallest, held.largest, held.nbytes) == (low, high, high)
    for budget in ((low + high) // 2, low, low + (high - low) // 3, 10 * high):
        assert held.resize(budget) == held.nbytes <= min(budget, high)
        with nett.weights.stacked(bed / "stack", budget=budget) as fresh, torch.no_grad():
            assert fresh.nbytes == held.nbytes
            assert torch.equal(fresh(ids).logits, held(ids).logits)
    terms = sum(
        t.numel() * t.element_size() for layer in held.layers for term in layer.terms for t in vars(term).values()
    )
    scales = sum(2 * len(layer.scale) for layer in held.layers)
    assert terms + scales + held._ground == held.nbytes
    with pytest.raises(Refused, match=f"{low:,}"):
        held.resize(low - 1)
    assert held.nbytes == high


def test_too_small_a_budget_is_refused_with_the_smallest(bed, receipt):
    low = receipt["figures"]["smallest_bytes"]
    for tried in (lambda: nett.load(bed / "stack", budget="1kB"), lambda: nett.convert(bed / "stack/1kB", bed / "no")):
        with pytest.raises(Refused, match=f"{low:,}"):
            tried()
    with pytest.raises(UsageError, match="500MB"):
        nett.load(bed / "stack", budget="much")
    with pytest.raises(NettError, match="receipt"):
        nett.load(bed / "model", budget="1MB")


def test_other_outputs_have_one_size(bed, tmp_path):
    engine.run(find_card("weights/rtn"), [str(bed / "model")], {}, out=tmp_path / "rtn", threads=1)
    with pytest.raises(NettError, match="rtn"):
        nett.load(tmp_path / "rtn", budget="1MB")


def test_few_evaluations_are_said(bed, tmp_path):
    one = stack(bed, tmp_path / "one", parameters={"evaluations": 14})
    assert any("1 of 3 levels" in note for note in one["notes"])
    none = stack(bed, tmp_path / "none", parameters={"order": "error"})
    said = json.loads((tmp_path / "none" / "signs.json").read_text())
    assert not any("levels" in note for note in none["notes"])
    layers = tuple(Layer(**(r | {"errors": tuple(r["errors"])})) for r in said["layers"])
    assert tuple(said["order"]) == by_error(layers)


def test_the_plan_foresees_the_order(bed, tmp_path):
    """4 bytes a parameter of the model that is run; no more runs than are allowed."""
    plans = [stack(bed, tmp_path / "no", dry_run=True, parameters=p)["plan"] for p in ({}, {"order": "error"})]
    assert plans[0]["peak_memory_bytes"] - plans[1]["peak_memory_bytes"] == 4 * plans[0]["parameters"]
    assert evaluations_of(14, {"order": "perplexity", "blocks": BLOCKS, "evaluations": 500}) == 42
    assert evaluations_of(14, {"order": "perplexity", "blocks": BLOCKS, "evaluations": 30}) == 28
    assert evaluations_of(14, {"order": "error", "blocks": BLOCKS, "evaluations": 500}) == 0
    assert not (tmp_path / "no").exists()


def test_in_several_files_and_another_type_it_is_the_same_stack(bed, receipt, tmp_path):
    stack(bed, tmp_path / "out", shard_size="20kB", dtype="float16")
    assert len([*(tmp_path / "out" / "signs").glob("*.safetensors")]) > 1
    with open_checkpoint(bed / "stack") as one, open_checkpoint(tmp_path / "out") as other:
        assert {t.dtype.name for t in one.tensors.values()} == {"F32"}
        assert {t.dtype.name for t in other.tensors.values()} == {"F16"}
        for name in one.tensors:
            gap = np.linalg.norm(one.values(name) - other.values(name))
            assert gap < 0.05 * np.linalg.norm(one.values(name))  # rounding turns some signs of entries near zero


def test_a_plan_that_was_changed_is_refused(bed, receipt, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(bed / "stack", broken)
    said = json.loads((broken / "signs.json").read_text())
    said["order"].append(0)
    (broken / "signs.json").write_text(json.dumps(said))
    with pytest.raises(Refused, match="every block once"):
        nett.load(broken)
    assert not all(c["ok"] for c in engine.verify(broken, receipt))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"calibration": None}, "--calibration"),
        ({"format": "dense"}, "stack"),
        ({"parameters": {"blocks": 0}}, "1 <= blocks"),
    ],
)
def test_bad_input_is_named(bed, tmp_path, change, word):
    with pytest.raises(NettError) as error:
        stack(bed, tmp_path / "out", **change)
    assert word in str(error.value)
    assert not (tmp_path / "out").exists()
