"""Which groups of a module can have other widths: doubled units are the same function, or the code forbids them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from nett.core.symmetry import of_module, prove_module  # noqa: E402
from nett.core.symmetry.proving_widths import prove_widths  # noqa: E402
from support.networks import Dense, Norms, ResNet, mlp  # noqa: E402

IMAGE = torch.zeros(2, 3, 8, 8)


def proved(module, example):
    symmetry, _ = prove_module(of_module(module, example), module, example)
    return prove_widths(symmetry, module, example)


class Flat(torch.nn.Module):
    """Channels flattened with their positions behind them, before them, or by a size written down."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.fc, self.how = torch.nn.Conv2d(1, 5, 3), torch.nn.Linear(5 * 4, 3), how

    def forward(self, x):
        x = torch.relu(self.conv(x))
        if self.how == "written":
            return self.fc(x.view(-1, 20))
        return self.fc((x.permute(0, 2, 3, 1) if self.how == "last" else x).flatten(1))


@pytest.mark.parametrize(
    ("module", "example", "groups"),
    [
        (mlp(6, 5, 4, 3), torch.zeros(3, 6), 2),
        (ResNet(1, "B"), IMAGE, 6),
        (Flat("first"), torch.zeros(2, 1, 4, 4), 1),
        (Flat("last"), torch.zeros(2, 1, 4, 4), 1),
    ],
    ids=["mlp", "resnet", "flat", "channels last"],
)
def test_doubled_units_are_the_same_function(module, example, groups):
    symmetry, refused = proved(module, example)
    assert len(symmetry.groups) == groups and not refused


def test_channels_that_the_code_pads_keep_their_number():
    symmetry, refused = proved(ResNet(1, "A"), IMAGE)
    assert len(refused) == 2 and len(symmetry.groups) == 4
    assert "conv1" in [g.name for g in symmetry.groups]
    assert all("the module's code does not run" in r.why or "its largest value" in r.why for r in refused)


def test_what_counts_or_mixes_units_is_refused():
    symmetry, refused = proved(Norms(), torch.zeros(2, 1, 8, 8))
    assert symmetry.groups == ()
    assert any("its largest value" in r.why for r in refused)
    symmetry, refused = proved(Flat("written"), torch.zeros(2, 1, 4, 4))
    assert symmetry.groups == () and "does not run with another width" in refused[0].why
    _, refused = proved(Dense(), IMAGE)
    assert any("grouped convolution" in r.why for r in refused)
