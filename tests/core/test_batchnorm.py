"""BatchNorm statistics measured again: those of the inputs, and nothing else is changed."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nett.core.batchnorm import re_estimate  # noqa: E402


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 4, bias=False), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2)
    )


def test_statistics_are_those_of_the_inputs():
    module, rng = network(), np.random.default_rng(1)
    module[1].running_mean += 7
    x = rng.normal(size=(60, 3)).astype(np.float32)
    before = {n: t.clone() for n, t in module.state_dict().items() if "running" not in n and "tracked" not in n}
    assert re_estimate(module.eval(), [(torch.from_numpy(b),) for b in np.split(x, 3)]) == 1
    y = np.split(x @ module[0].weight.detach().numpy().T, 3)
    np.testing.assert_allclose(module[1].running_mean, np.mean([b.mean(0) for b in y], 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(module[1].running_var, np.mean([b.var(0, ddof=1) for b in y], 0), rtol=1e-5)
    assert all(torch.equal(t, module.state_dict()[n]) for n, t in before.items())
    assert not any(m.training for m in module.modules()) and module[1].momentum == 0.1


def test_modes_come_back_and_a_network_without_is_not_run():
    module = network().train()
    re_estimate(module, [(torch.ones(4, 3),)])
    assert all(m.training for m in module.modules())
    assert re_estimate(torch.nn.Linear(2, 2), [("no such input",)]) == 0
