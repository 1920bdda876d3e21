"""HESSO: scores against the authors' own numbers, the choice, the course of the fading, the smaller network, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import nett  # noqa: E402
from nett.core.errors import ProofFailed, Refused, UsageError  # noqa: E402
from nett.core.structure import Slices  # noqa: E402
from nett.core.structure.slices import Part  # noqa: E402
from nett.weights.training.choice import lowest, part_of, wanted  # noqa: E402
from nett.weights.training.scores import direction, overall, raw_scores  # noqa: E402
from support.networks import Norms, ResNet, mlp  # noqa: E402

IMAGE = torch.zeros(2, 3, 8, 8)


def numbers(rows: int, columns: int, k: int) -> dict[str, Any]:
    grid, one = np.indices((rows, columns)), np.arange(rows)
    made = {
        "w": ((7 * grid[0] + 3 * grid[1] + k) % 11 - 5) / 4,
        "b": ((5 * one + k) % 7 - 3) / 3,
        "dw": ((4 * grid[0] + 5 * grid[1] + 2 * k) % 9 - 4) / 8,
        "db": ((3 * one + k) % 5 - 2) / 5,
    }
    return {name: torch.tensor(a, dtype=torch.float32) for name, a in made.items()}


def test_scores_are_those_of_the_authors_code() -> None:
    """Stored from only_train_once at 4517648, importance_score.calculate_importance_score and the normalisation of
    BaseHybridSparseOptimizer.compute_importance_scores, run on two groups of these numbers."""
    magnitude = [[1.968502, 1.67912, 1.520691], [1.325498, 1.837117, 1.409295, 1.409295]]
    cosine = [[1.716734, 0.478092, 0.228073], [1.336795, 1.594476, 0.870927, 1.261823]]
    first = [[1.11875, 0.585417, 0.875], [0.227083, 0.7125, 0.09375, 0.227083]]
    second = [[0.625801, 0.171356, 0.382812], [0.025783, 0.253828, 0.004395, 0.025783]]
    expected = [[0.570171, 0.289857, 0.346647], [0.248772, 0.42928, 0.206632, 0.252293]]
    raw = []
    for i, (rows, columns) in enumerate([(3, 4), (4, 3)]):
        t = numbers(rows, columns, i)
        parts = tuple(Part(n, torch.nn.Parameter(t[n]), 0, None, rows, 1) for n in "wb")
        one = Slices("g", "channel", rows, parts)
        raw.append(raw_scores(one, {"w": t["w"], "b": t["b"]}, {"w": t["dw"], "b": t["db"]}))
        np.testing.assert_allclose(raw[-1][0], magnitude[i], rtol=1e-5)
        np.testing.assert_allclose(raw[-1][1], np.array(magnitude[i]) / (columns + 1), rtol=1e-5)
        np.testing.assert_allclose(raw[-1][2], cosine[i], rtol=2e-5)
        np.testing.assert_allclose(raw[-1][3], first[i], rtol=1e-5)
        np.testing.assert_allclose(raw[-1][4], second[i], rtol=1e-3, atol=1e-6)
    for ours, theirs in zip(overall(raw), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_the_direction_is_that_of_the_step() -> None:
    """What torch's own optimizers took away, over the learning rate."""
    for make in (
        lambda p: torch.optim.Adam([p], lr=0.1, weight_decay=0.3),
        lambda p: torch.optim.SGD([p], lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD([p], lr=0.1),
    ):
        p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        optimizer = make(p)
        for k in (1, 2):
            p.grad = torch.tensor([0.5, 0.1, -0.7]) * k
            before = p.detach().clone()
            optimizer.step()
        way = direction(optimizer, p, optimizer.param_groups[0])
        np.testing.assert_allclose(way, (before - p.detach()) / 0.1, rtol=2e-4)
    p.grad = None
    assert direction(optimizer, p, optimizer.param_groups[0]) is None


def masks(chosen: list[Any]) -> list[list[int]]:
    return [m.nonzero()[:, 0].tolist() for m in chosen]


def test_the_lowest_go_but_never_a_whole_layer() -> None:
    scores = [torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.9, 0.8, 0.15, 0.7])]
    none = [torch.zeros(3, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)]
    assert masks(lowest(scores, none, 3)) == [[0, 1], [2]]
    assert masks(lowest(scores, none, 4)) == [[0, 1], [2, 3]]  # 0.3 would be next, but is its layer's last
    assert masks(lowest(scores, none, 99)) == [[0, 1], [1, 2, 3]]
    gone = [torch.tensor([True, False, False]), none[1]]
    assert masks(lowest(scores, gone, 2)) == [[1], [2]]
    assert masks(lowest(scores, none, [1, 2])) == [[0], [2, 3]]
    assert masks(lowest(scores, none, [3, 9])) == [[0, 1], [1, 2, 3]]


def test_what_stays_is_rounded_up_to_a_multiple() -> None:
    scores = [torch.arange(8.0), torch.arange(8.0) + 0.5, torch.tensor([0.0, 0.1])]
    none = [torch.zeros(len(s), dtype=torch.bool) for s in scores]
    chosen = lowest(scores, none, 7, divisible=4)  # 4 and 3 by score; of the second layer 5 would stay, so 8 do
    assert masks(chosen) == [[0, 1, 2, 3], [], []]
    assert wanted([8, 8, 2], 0.5, each=False, divisible=4) == 8  # layers of no more than four lose none
    assert wanted([8, 8, 2], 0.5, each=True, divisible=4) == [4, 4, 0]
    assert wanted([10], 1.0, each=False, divisible=1) == 9
    assert [part_of(10, k, 3) for k in (1, 2, 3)] == [3, 6, 10]
    assert [part_of([10, 4], k, 3) for k in (1, 2, 3)] == [[3, 1], [6, 2], [10, 4]]


def trained(optimizer: Any, model: Any, x: Any, y: Any, steps: int, watch: Any = None) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if watch is not None:
            watch()


def case(seed: int = 0) -> tuple[Any, Any, Any]:
    torch.manual_seed(seed)
    return ResNet(1, "B"), torch.randn(16, 3, 8, 8), torch.randint(0, 10, (16,))


def test_units_fade_on_a_straight_line_and_stay_zero() -> None:
    """With a learning rate of next to nothing only the fading moves: D = 5, so 3/4, 2/3, 1/2 and 0 of what was."""
    model, x, y = case()
    optimizer = nett.weights.hesso(
        model, x[:2], sparsity=0.5, start=3, steps=10, periods=2, variant="sgd", lr=1e-20, weight_decay=0.0
    )
    weight = model.layer3[0].conv1.weight
    start = weight.detach().clone()
    ratios = []
    one = next(i for i, s in enumerate(optimizer.slices) if s.name == "layer3.0.conv1")
    trained(optimizer, model, x, y, 16, lambda: ratios.append((weight.detach() / start)[:, 0, 0, 0].numpy().copy()))
    first, whole = optimizer.zero[one].numpy(), np.array(ratios)
    seen = {tuple(np.round(whole[:, u], 6)) for u in np.flatnonzero(first)}
    falling = [0.75, 0.5, 0.25, 0.0]
    early = tuple([1.0] * 3 + falling + [0.0] * 9)
    late = tuple([1.0] * 8 + falling + [0.0] * 4)
    assert seen == {early, late}
    assert np.all(whole[:, ~first] == 1)
    assert optimizer.done and optimizer.progress["zero"] == optimizer.progress["asked"] == optimizer.structure.size // 2


@pytest.mark.parametrize(("scope", "divisible"), [("global", 1), ("layer", 1), ("global", 4)])
def test_the_smaller_network_answers_as_the_trained_one(scope: str, divisible: int) -> None:
    model, x, y = case()
    optimizer = nett.weights.hesso(
        model, x[:2], sparsity=0.6, start=2, steps=8, periods=2, lr=1e-2, scope=scope, divisible=divisible
    )
    with pytest.raises(Refused, match="pruning goes on until step 10"):
        optimizer.smaller()
    trained(optimizer, model, x, y, 14)
    small = optimizer.smaller()
    model.eval(), small.eval()
    with torch.no_grad():
        difference = float((model(x) - small(x)).abs().max())
    assert difference < 1e-5 and optimizer.figures["difference"] < 1e-5
    assert optimizer.figures["parameters_smaller"] == sum(p.numel() for p in small.parameters()) < 5000
    zero = {layer["group"]: (layer["units"], layer["zero"]) for layer in optimizer.layers}
    assert all(z < n for n, z in zero.values())
    if scope == "layer":
        assert all(z == int(n * 0.6) for n, z in zero.values())
    if divisible == 4:
        assert all((n - z) % 4 == 0 for n, z in zero.values()) and zero["conv1"] == (4, 0)
    elif scope == "global":
        assert optimizer.progress["zero"] == int(0.6 * optimizer.structure.size)
    for group, slices in zip(optimizer.structure.groups, optimizer.slices, strict=True):
        assert (slices.norms() == 0).sum() == zero[group.name][1]


def test_a_llama_gets_narrower_and_loads_from_its_folder(tmp_path: Any) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, num_attention_heads=8, num_key_value_heads=4, intermediate_size=24, num_hidden_layers=2,
        vocab_size=40, pad_token_id=0, use_cache=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    ids = torch.randint(0, 40, (4, 9))
    optimizer = nett.weights.hesso(model, {"input_ids": ids}, sparsity=0.5, steps=6, scope="layer", lr=1e-2)
    for _ in range(7):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    small = optimizer.smaller()
    assert optimizer.figures["config"] == "says the widths" and optimizer.figures["difference"] < 1e-5
    assert (small.config.num_key_value_heads, small.config.num_attention_heads, small.config.intermediate_size) == (
        2,
        4,
        12,
    )
    small.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, small.eval()(ids).logits)


class Rows(torch.utils.data.Dataset):  # type: ignore[misc, type-arg]
    def __len__(self) -> int:
        return 16

    def __getitem__(self, i: int) -> dict[str, Any]:
        ids = torch.arange(i, i + 8) % 40
        return {"input_ids": ids, "labels": ids}


@pytest.mark.filterwarnings("ignore")
def test_transformers_trainer_takes_it_and_resumes_to_the_same_bits(tmp_path: Any) -> None:
    def run(resume: str | None = None) -> tuple[Any, Any]:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            hidden_size=16, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24, num_hidden_layers=1,
            vocab_size=40, pad_token_id=0,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
        optimizer = nett.weights.hesso(model, {"input_ids": torch.arange(6)[None]}, sparsity=0.5, steps=8, lr=1e-2)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=10, per_device_train_batch_size=4, save_steps=5, report_to=[],
            disable_tqdm=True, use_cpu=True, seed=3,
        )  # fmt: skip
        steady = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        trainer = transformers.Trainer(
            model=model, args=arguments, train_dataset=Rows(), optimizers=(optimizer, steady)
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return model, optimizer

    model, optimizer = run()
    assert optimizer.steps == 10 and optimizer.progress["zero"] == 13 and optimizer.smaller() is not None
    again, resumed = run(str(tmp_path / "checkpoint-5"))
    assert resumed.progress == optimizer.progress
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_schedulers_and_closures_work_as_with_any_optimizer() -> None:
    model, x, y = case()
    optimizer = nett.weights.hesso(model, x[:2], sparsity=0.5, steps=4, lr=0.5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    schedule.step()
    assert loss.item() > 0 and optimizer.base.param_groups[0]["lr"] == pytest.approx(0.05)


def test_bad_input_is_refused_with_the_reason() -> None:
    model, x, y = case()
    with pytest.raises(UsageError, match=r"sparsity = 1 is out of range: 0 <= sparsity < 1"):
        nett.weights.hesso(model, x[:2], sparsity=1)
    with pytest.raises(UsageError, match=r"steps = 3 are fewer than periods = 4"):
        nett.weights.hesso(model, x[:2], steps=3, periods=4)
    with pytest.raises(UsageError, match=r"does not hold .* parameters that units lie in"):
        nett.weights.hesso(model, x[:2], torch.optim.SGD(model.linear.parameters(), lr=0.1))
    with pytest.raises(Refused, match=r"no unit of this network can be cut out: .*layernorm"):
        nett.weights.hesso(Norms(), torch.zeros(2, 1, 8, 8))
    optimizer = nett.weights.hesso(model, x[:2], sparsity=0.5, steps=4)
    state = optimizer.state_dict()
    with pytest.raises(Refused, match=r"saved with sparsity = 0\.5, this one has 0\.7"):
        nett.weights.hesso(model, x[:2], sparsity=0.7, steps=4).load_state_dict(state)
    with pytest.raises(Refused, match="state of a plain optimizer"):
        optimizer.load_state_dict(torch.optim.AdamW(model.parameters()).state_dict())
    small = mlp(6, 5, 4, 3)
    with pytest.raises(Refused, match="other units"):
        nett.weights.hesso(small, torch.zeros(1, 6), sparsity=0.5, steps=4).load_state_dict(state)
    trained(optimizer, model, x, y, 5)
    with torch.no_grad():
        model.layer3[0].bn1.bias += 1.0  # someone wrote to what was zero
    with pytest.raises(ProofFailed, match="answers differ"):
        optimizer.smaller()
