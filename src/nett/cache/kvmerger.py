"""KVMerger (P19): neighbours whose keys are alike become one slot, weighed by a Gaussian around the one most looked at."""

from __future__ import annotations

from typing import Annotated, Literal

from nett.cache.merging import gone_first, merged, spread_of
from nett.cache.protocol import Merged, Tensor
from nett.core.registry import Between, method


@method(papers=["P19"], title="KVMerger", kind="serve", grain="block", extra="models")
def kvmerger(
    keys: Tensor,
    values: Tensor,
    mass: Tensor,
    sizes: Tensor,
    keep: int,
    *,
    epsilon: Annotated[float, Between(-1, 1)] = -1.0,
    recent: Annotated[float, Between(0, 1)] = 0.34,
    heavy: Annotated[float, Between(0, 1)] = 0.24,
    sigma: Annotated[float, Between(0, open_low=True)] = 5.0,
    sigma_by: Literal["fixed", "mean-distance", "fixed-point"] = "fixed",
    value_scale: Literal["mean", "sum"] = "mean",
    size_bias: bool = True,
    skip_layers: str = "",
) -> Merged:
    """Merge runs of neighbouring tokens whose keys are most alike; the last tokens and those most looked at stay alone.

    Formula: sets are runs with cos(k_i, k_(i+1)) above the threshold that meets the budget; p = argmax mass in the set;
             g_i = exp(-|k_p - k_i|^2 / (2 sigma^2)); w = g / sum g;  k = sum w k_i;  v = sum w v_i
    Args:
        epsilon: pairs less alike than this are never merged; what is too much then goes by least attention. The paper
            has 0.75 and lets the budget follow.
        recent: share of the slots for last tokens that stay alone (the paper's 17 of 50 %).
        heavy: share of the slots for tokens most looked at, which stay alone (the paper's 12 of 50 %).
        sigma: width of the Gaussian for heads of 128 channels; it goes with the root of their number.
        sigma_by: that; or the mean distance to the pivot; or the paper's equation, solved by iteration.
        value_scale: values are averaged, or added up as the paper's text has it.
        size_bias: let a slot of s tokens count s times (log s is added to its logits), which the paper does not.
        skip_layers: layers that hold all their tokens, by number, as 0,1,-1 (the paper's: the first two and the last); the
            others hold so many fewer that the budget is kept.
    When to use: budgets of a third to a half where everything may still be asked for.
    When not: a few per cent: there only the tokens most looked at help.
    Cost: the weights of attention are computed once more; a slot holds its size (4 bytes) beside its numbers.
    Source: P19, algorithm 1 and equations 5 to 7; the threshold is set by the budget.
    """
    import torch

    heads, count, width = keys.shape
    unit = torch.nn.functional.normalize(keys, dim=-1)
    alike = (unit[:, 1:] * unit[:, :-1]).sum(-1)  # [h, n-1]
    protected = torch.zeros(heads, count, dtype=torch.bool, device=keys.device)
    last = min(count, round(recent * keep))
    if last:
        protected[:, count - last :] = True
    most = min(count - last, round(heavy * keep))
    if most:
        protected.scatter_(1, mass[:, : count - last].topk(most, dim=1).indices, True)
    free = ~(protected[:, 1:] | protected[:, :-1]) & (alike >= epsilon)
    ranked = alike.masked_fill(~free, -torch.inf)
    excess = count - keep
    order = ranked.argsort(dim=1, descending=True, stable=True)[:, :excess]
    joined = torch.zeros(heads, count, dtype=torch.bool, device=keys.device)  # with the slot before
    joined[:, 1:].scatter_(1, order, True)
    joined[:, 1:] &= free
    sets = (~joined).cumsum(1) - 1
    spread = spread_of(sigma * (width / 128) ** 0.5, sigma_by)
    found = merged(keys, values, mass, sizes, sets, spread, add=value_scale == "sum")
    return gone_first(found, mass, keep)
