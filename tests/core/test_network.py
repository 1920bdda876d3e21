"""A network run with weights that are given as arrays."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nett.core.network import Network  # noqa: E402


def test_two_networks_looked_into_at_once_leave_gradients_as_they_were():
    module = torch.nn.Linear(3, 2)
    network = Network(module, np.ones((5, 3)), batch=2)
    weights = {n: t.detach().numpy() for n, t in module.state_dict().items()}
    seen = list(zip(*(network.taps(weights, [""]) for _ in range(2)), strict=True))
    assert len(seen) == 3 and torch.is_grad_enabled()
    np.testing.assert_allclose(seen[0][0][""][1], np.ones((2, 3)) @ weights["weight"].T + weights["bias"], rtol=1e-6)
