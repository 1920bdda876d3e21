"""Gradual pruning: exact shares along the cubic curve, zeros that stay, what is pruned, Trainer, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import nett  # noqa: E402
from nett.core.errors import Refused, UsageError  # noqa: E402
from nett.weights.training.masking import prunable, smallest  # noqa: E402


def model() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 5, 3), torch.nn.Flatten(),
        torch.nn.Linear(20, 10), torch.nn.ReLU(), torch.nn.Linear(10, 3),
    )  # fmt: skip


def train(net: Any, optimizer: Any, steps: int, watch: Any = None) -> None:
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = torch.randn(8, 1, 6, 6, generator=draw), torch.randint(0, 3, (8,), generator=draw)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        if watch is not None:
            watch()


def test_the_shares_follow_the_formula_exactly() -> None:
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
    pruning = nett.weights.gradual(net, optimizer, sparsity=0.9, initial=0.2, start=4, steps=20, every=5)
    assert list(pruning.weights) == ["2.weight", "4.weight", "6.weight"]  # not the first convolution, no vectors
    seen: list[list[int]] = []
    train(net, optimizer, 30, lambda: seen.append([int((p == 0).sum()) for p in pruning.weights.values()]))
    sizes = [p.numel() for p in pruning.weights.values()]
    for step, zeros in enumerate(seen, 1):
        done = 0.0 if step < 4 else min((step - 4) // 5 * 5, 20) / 20
        share = 0.0 if step < 4 else 0.9 + (0.2 - 0.9) * (1 - done) ** 3
        assert zeros == [int(share * n + 0.5) for n in sizes], step
    assert pruning.done and pruning.progress["zero"] == sum(int(0.9 * n + 0.5) for n in sizes)
    assert not any((p == 0).any() for n, p in net.named_parameters() if n not in pruning.weights)


def test_the_smallest_go_and_pruned_weights_get_no_update() -> None:
    weight = torch.tensor([[3.0, -0.1, 0.5], [-2.0, 0.1, 0.0]])
    assert smallest(weight, 0.5).tolist() == [[True, False, True], [True, False, False]]
    assert smallest(weight, 0.3).tolist() == [[True, False, True], [True, True, False]]  # ties by position
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    pruning = nett.weights.gradual(net, optimizer, sparsity=0.5, steps=0)
    kept = {n: m.clone() for n, m in pruning.masks.items()}
    expected = {
        n: np.sort(np.abs(p.detach().numpy()).ravel())[p.numel() // 2 - 1] for n, p in model().named_parameters()
    }
    fresh = dict(model().named_parameters())
    for name, mask in kept.items():  # one shot before the first step: all below the median
        assert np.array_equal(mask.numpy(), np.abs(fresh[name].detach().numpy()) > expected[name])
    train(net, optimizer, 6)
    for name, weight in pruning.weights.items():
        assert torch.equal(weight != 0, kept[name]) and not weight.grad[~kept[name]].any()
        assert not optimizer.state[weight]["momentum_buffer"][~kept[name]].any()
    pruning.detach()
    train(net, optimizer, 1)
    assert any((p[~kept[n]] != 0).any() for n, p in pruning.weights.items())


def test_embeddings_and_what_is_tied_to_them_stay_whole() -> None:
    config = transformers.LlamaConfig(
        hidden_size=16, num_attention_heads=2, intermediate_size=24, num_hidden_layers=1, vocab_size=40,
        tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    names = list(prunable(transformers.LlamaForCausalLM(config)))
    assert len(names) == 7 and all("proj" in n for n in names)
    lstm = torch.nn.ModuleDict({"e": torch.nn.Embedding(5, 4), "r": torch.nn.LSTM(4, 6), "h": torch.nn.Linear(6, 5)})
    assert list(prunable(lstm)) == ["r.weight_ih_l0", "r.weight_hh_l0", "h.weight"]
    assert list(prunable(lstm, "h.*, *_hh_*")) == ["r.weight_ih_l0"]


class Rows(torch.utils.data.Dataset):  # type: ignore[misc, type-arg]
    def __len__(self) -> int:
        return 16

    def __getitem__(self, i: int) -> dict[str, Any]:
        ids = torch.arange(i, i + 8) % 40
        return {"input_ids": ids, "labels": ids}


def trainer(folder: Path, steps: int, **more: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, num_attention_heads=2, intermediate_size=24, num_hidden_layers=1, vocab_size=40, pad_token_id=0
    )
    net = transformers.LlamaForCausalLM(config)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, save_steps=5, logging_steps=5,
        report_to=[], disable_tqdm=True, use_cpu=True, learning_rate=1e-2, lr_scheduler_type="constant", seed=3,
    )  # fmt: skip
    pruning = nett.weights.gradual(net, sparsity=0.75, start=2, steps=6, every=2, **more)
    made = transformers.Trainer(
        model=net, args=arguments, train_dataset=Rows(), callbacks=[pruning.for_trainer()]
    )  # fmt: skip
    return made, pruning


@pytest.mark.filterwarnings("ignore")
def test_trainer_prunes_saves_and_resumes_to_the_same_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, pruning = trainer(tmp_path / "one", 10)
    whole.train()
    assert pruning.done and pruning.steps == 10
    assert all(int((p == 0).sum()) == int(0.75 * p.numel() + 0.5) for p in pruning.weights.values())
    assert "'sparsity': '0.75'" in capsys.readouterr().out
    resumed, again = trainer(tmp_path / "one", 10)
    resumed.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-5"))
    assert again.steps == 10
    ours = dict(resumed.model.named_parameters())
    assert all(torch.equal(p, ours[n]) for n, p in whole.model.named_parameters())
    assert all(torch.equal(m, again.masks[n]) for n, m in pruning.masks.items())
    (tmp_path / "one" / "checkpoint-5" / "gradual.safetensors").unlink()
    lacking, _ = trainer(tmp_path / "one", 10)
    with pytest.raises(Refused, match="has no masks"):
        lacking.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-5"))


def test_bad_input_is_refused_with_the_reason() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(UsageError, match=r"initial = 0\.8 is more than sparsity = 0\.5"):
        nett.weights.gradual(net, optimizer, sparsity=0.5, initial=0.8)
    with pytest.raises(UsageError, match=r"every = 0 is out of range: 1 <= every"):
        nett.weights.gradual(net, optimizer, every=0)
    with pytest.raises(UsageError, match="does not hold 2 of the weights to prune"):
        nett.weights.gradual(net, torch.optim.SGD(net[4].parameters(), lr=0.1))
    with pytest.raises(UsageError, match="'lm_head' fits no weight"):
        nett.weights.gradual(net, optimizer, skip="lm_head")
    with pytest.raises(Refused, match="no weights to prune"):
        nett.weights.gradual(torch.nn.Embedding(4, 4))
    pruning = nett.weights.gradual(net, optimizer, sparsity=0.5, steps=5)
    with pytest.raises(UsageError, match="attached to an optimizer already"):
        pruning.attach(optimizer)
    state = pruning.state_dict()
    with pytest.raises(Refused, match=r"sparsity = 0\.5, this one has 0\.6"):
        nett.weights.gradual(net, sparsity=0.6, steps=5).load_state_dict(state)
    with pytest.raises(Refused, match="no state of"):
        pruning.load_state_dict(optimizer.state_dict())
    wrong = {**state, "masks": {"9.weight": torch.ones(3, 3, dtype=torch.bool)}}
    with pytest.raises(Refused, match=r"'9\.weight', which does not fit"):
        pruning.load_state_dict(wrong)
