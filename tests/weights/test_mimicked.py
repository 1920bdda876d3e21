"""Whole torch modules with thin layers."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import nett
from nett.core.errors import NettError, UsageError


class Recommender(nn.Module):
    """An embedding, and an MLP over what was looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(50, 12)
        self.mlp = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 1))

    def forward(self, rows):
        return self.mlp(self.items(rows).flatten(1))[:, 0]


@pytest.fixture(scope="module")
def bed():
    torch.manual_seed(0)
    model = Recommender().train()
    draw = torch.Generator().manual_seed(1)
    often = torch.arange(50, 0, -1).float() ** 2
    rows = torch.multinomial(often, 2 * 600, replacement=True, generator=draw).reshape(600, 2)
    return model, rows.split(100)


def test_full_rank_changes_nothing_and_says_why(bed):
    model, batches = bed
    found = nett.weights.mimicked(model, batches, energy=1.0)
    assert all(layer.rank is None and "smaller" in layer.kept_because for layer in found.layers)
    assert torch.equal(found.model(batches[0]), model(batches[0]))
    assert found.model is not model


def test_an_embedding_leaves_out_the_dropped_eigenvalues_weighted_by_lookups(bed):
    model, batches = bed
    found = nett.weights.mimicked(model, batches, rank=3, linears=False)
    rows = torch.cat(list(batches)).reshape(-1)
    table = model.items.weight.detach().double().numpy()
    looked_up = table[rows.numpy()]
    values = np.linalg.eigvalsh(np.cov(looked_up.T, bias=True))[::-1]
    made = found.model.items(rows).detach().double().numpy()
    assert np.square(looked_up - made).sum(axis=1).mean() == pytest.approx(values[3:].sum(), rel=1e-4)
    (layer,) = found.layers
    assert layer.error == pytest.approx(values[3:].sum() / values.sum(), rel=1e-4)
    assert (layer.before, layer.after) == (600, 50 * 3 + 12 * 3 + 12)


def test_linear_layers_leave_out_what_they_say(bed):
    model, batches = bed
    found = nett.weights.mimicked(model, batches, energy=0.7, embeddings=False)
    x = torch.cat(list(batches))
    into = model.items(x).flatten(1).detach()
    y, made = model.mlp[0](into).detach().double(), found.model.mlp[0](into).detach().double()
    left_out = (y - made).square().sum() / (y - y.mean(0)).square().sum()
    layer = next(one for one in found.layers if one.name == "mlp.0")
    assert layer.rank is not None
    assert float(left_out) == pytest.approx(layer.error, rel=1e-3)
    assert 0 < layer.error < 0.3
    last = next(one for one in found.layers if one.name == "mlp.4")
    assert last.rank is None  # one output: rank one is the layer itself
    total = sum(p.numel() for p in found.model.parameters())
    assert total == 600 + sum(one.after for one in found.layers)


def test_the_model_is_left_alone_and_can_be_trained_on(bed):
    model, batches = bed
    before = copy.deepcopy(model.state_dict())
    found = nett.weights.mimicked(model, batches, rank=4)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert model.training
    assert found.model.training
    found.model(batches[0]).sum().backward()
    assert all(p.grad is not None for p in found.model.parameters())


def test_batches_may_be_arguments_or_keywords(bed):
    model, batches = bed
    plain = nett.weights.mimicked(model, batches, rank=2)
    for wrapped in ([(b,) for b in batches], [{"rows": b} for b in batches]):
        again = nett.weights.mimicked(model, wrapped, rank=2)
        assert torch.equal(plain.model(batches[0]), again.model(batches[0]))


def test_layers_that_must_stay_say_why(bed):
    _, batches = bed
    model = Recommender()
    model.tied = nn.Linear(12, 50, bias=False)
    model.tied.weight = model.items.weight
    model.unused = nn.Linear(30, 30)
    found = nett.weights.mimicked(model, batches, rank=2, skip=["mlp.*"])
    said = {layer.name: layer.kept_because for layer in found.layers}
    assert said == {
        "items": "shares its weights with another layer",
        "tied": "shares its weights with another layer",
        "unused": "no calibration input reached it",
    }


def test_a_layer_that_appears_twice_is_made_thin_once():
    shared = nn.Linear(20, 20)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    found = nett.weights.mimicked(model, [torch.randn(64, 20)], rank=3)
    assert found.model[0] is found.model[2]


def test_a_lone_layer_is_a_module_too():
    found = nett.weights.mimicked(nn.Linear(20, 20), [torch.randn(64, 20)], rank=3)
    assert found.model(torch.randn(2, 20)).shape == (2, 20)


def test_code_that_reads_weights_itself_is_named():
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(20, 20)

        def forward(self, x):
            return self.inner(x) + self.inner.weight.sum()

    with pytest.raises(NettError, match=r"reads the weights of a layer itself[\s\S]*inner"):
        nett.weights.mimicked(Reads(), [torch.randn(64, 20)], rank=3)


def test_nothing_to_do_and_nothing_to_learn_from_are_refused(bed):
    model, _ = bed
    with pytest.raises(UsageError, match="no linear layer or embedding"):
        nett.weights.mimicked(nn.ReLU(), [torch.ones(1)])
    with pytest.raises(UsageError, match="no calibration inputs"):
        nett.weights.mimicked(model, [])
