"""What claims P21 and P24 count by: sizes on disk, and networks that their methods can follow."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from claims.char_models import CharLSTM, numbers, prunable_numbers, stored, width_for  # noqa: E402
from claims.pruning_beds import ResNet, llama_bed  # noqa: E402

from nett.core.structure import structure_of  # noqa: E402
from nett.weights.training.masking import prunable  # noqa: E402


@pytest.mark.parametrize("hidden", [1, 7, 40])
def test_numbers_of_the_language_model(hidden: int) -> None:
    model = CharLSTM(hidden, 65)
    assert numbers(hidden, 65) == sum(p.numel() for p in model.parameters())
    assert prunable_numbers(hidden, 65) == sum(p.numel() for p in prunable(model).values())


def test_a_bit_a_weight_is_paid_for_sparsity() -> None:
    """hidden 8: matrices of 768, 256 and 520 weights, of which 192, 64 and 130 stay at 75 %; 1,689 others."""
    count, size = stored(8, 65, 0.75)
    others = 65 * 24 + 2 * 32 + 65
    assert count == 192 + 64 + 130 + others and size == 4 * count + 96 + 32 + 65
    assert stored(8, 65, 0.0) == (numbers(8, 65), 4 * numbers(8, 65))
    assert width_for(numbers(9, 65), 65, lambda h: numbers(h, 65)) == 9
    assert width_for(numbers(9, 65) - 1, 65, lambda h: numbers(h, 65)) == 8


def test_the_networks_have_units_to_cut_out() -> None:
    found = structure_of(ResNet(8), torch.zeros(2, 1, 8, 8))
    assert found.size == 3 * 8 + 4 * 16 and not found.refused
    bed = llama_bed(24, torch.arange(4000) % 65)
    decoder = structure_of(bed.make(0))
    assert {g.unit for g in decoder.groups} == {"KV head with its query heads", "MLP neuron"}
    (x, y), *_ = bed.batches(0, 1)
    assert torch.equal(x[:, 1:], y[:, :-1])
